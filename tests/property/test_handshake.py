"""Rules for every handshake in any segments, and for any bytes."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rtmpd.errors import HandshakeError
from rtmpd.protocol.handshake import HANDSHAKE_SIZE, ClientHandshake, ServerHandshake

HANDSHAKE = settings(deadline=None, max_examples=100)

seeds = st.integers(0, 2**32)
cuts = st.lists(st.integers(0, 3100), max_size=8)


def pieces_of(data: bytes, at: list[int]) -> list[bytes]:
    ends = [*sorted(min(cut, len(data)) for cut in at), len(data)]
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@HANDSHAKE
@given(st.sampled_from([None, 0, 1]), seeds, cuts, cuts, st.binary(max_size=20), st.binary(max_size=20))
def test_client_and_server_agree_at_any_split(scheme, seed, client_cuts, server_cuts, first, second):
    client = ClientHandshake(random.Random(seed).randbytes, scheme)
    server = ServerHandshake(random.Random(seed + 1).randbytes)
    to_client = b"".join(server.feed(piece) for piece in pieces_of(client.hello(), client_cuts))
    assert len(to_client) == 1 + 2 * HANDSHAKE_SIZE
    to_server = b"".join(client.feed(piece) for piece in pieces_of(to_client + first, server_cuts))
    assert len(to_server) == HANDSHAKE_SIZE
    for piece in pieces_of(to_server + second, client_cuts):
        assert server.feed(piece) == b""
    assert client.done
    assert server.done
    assert client.kind == server.kind == ("plain" if scheme is None else "digest")
    assert client.remainder == first
    assert server.remainder == second


@HANDSHAKE
@given(seeds, st.binary(min_size=8, max_size=8), cuts, st.binary(max_size=50))
@example(1, b"\0\0\0\0\x09\0\x7c\2", [], b"")
def test_any_c1_and_c2_make_a_plain_handshake_and_any_split_the_same(seed, start, at, rest):
    generator = random.Random(seed)
    c1 = start + generator.randbytes(HANDSHAKE_SIZE - 8)
    data = b"\x03" + c1 + generator.randbytes(HANDSHAKE_SIZE) + rest
    server = ServerHandshake(random.Random(5).randbytes)
    reply = b"".join(server.feed(piece) for piece in pieces_of(data, at))
    assert server.done
    assert server.kind == "plain"
    assert reply[1 + HANDSHAKE_SIZE :] == c1
    assert server.remainder == rest


@HANDSHAKE
@given(st.binary(min_size=1, max_size=200).filter(lambda data: data[0] != 3))
def test_any_other_first_byte_is_refused_by_both(data):
    for handshake in (ServerHandshake(random.Random(1).randbytes), ClientHandshake(random.Random(1).randbytes)):
        with pytest.raises(HandshakeError):
            handshake.feed(data)
        assert not handshake.done


@HANDSHAKE
@given(seeds, st.sampled_from([0, 1]), st.integers(0, 2 * HANDSHAKE_SIZE - 1), st.integers(0, 7))
def test_a_signed_answer_with_one_wrong_bit_never_counts_as_signed(seed, scheme, at, bit):
    client = ClientHandshake(random.Random(seed).randbytes, scheme)
    reply = bytearray(ServerHandshake(random.Random(seed + 1).randbytes).feed(client.hello()))
    reply[1 + at] ^= 1 << bit
    try:
        client.feed(reply)
    except HandshakeError:
        # S1 was good and S2 was not.
        assert at >= HANDSHAKE_SIZE
        assert client.kind == "digest"
        return
    assert at < HANDSHAKE_SIZE
    assert client.kind == "plain"
