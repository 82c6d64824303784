"""The handshake of both roles, checked by a verifier after the behaviour of Flash Player and FFmpeg."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
from pathlib import Path

import pytest

from rtmpd.errors import HandshakeError
from rtmpd.protocol.handshake import HANDSHAKE_SIZE, ClientHandshake, ServerHandshake, find_digest

WIRE = Path(__file__).parents[2] / "golden" / "wire"

PLAYER = b"Genuine Adobe Flash Player 001"
SERVER = b"Genuine Adobe Flash Media Server 001"
SECRET = bytes((
    *(0xF0, 0xEE, 0xC2, 0x4A, 0x80, 0x68, 0xBE, 0xE8, 0x2E, 0x00, 0xD0, 0xD1, 0x02, 0x9E, 0x7E, 0x57),
    *(0x6E, 0xEC, 0x5D, 0x2D, 0x29, 0x80, 0x6F, 0xAB, 0x93, 0xB8, 0xE6, 0x36, 0xCF, 0xEB, 0x31, 0xAE),
))  # fmt: skip


# The independent verifier ------------------------------------------------------------------------------------------------


def sha256(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()


def place_of_digest(block: bytes, scheme: int) -> int:
    """Where the 32 bytes are: behind four bytes whose sum, modulo 728, is the distance to go."""
    four = 8 if scheme == 0 else 772
    return four + 4 + (block[four] + block[four + 1] + block[four + 2] + block[four + 3]) % 728


def signed(block: bytes, scheme: int, key: bytes) -> bytes:
    at = place_of_digest(block, scheme)
    return block[:at] + sha256(key, block[:at] + block[at + 32 :]) + block[at + 32 :]


def digest_of(block: bytes, scheme: int, key: bytes) -> bytes:
    """Return a block's digest, which must be valid."""
    at = place_of_digest(block, scheme)
    assert block[at : at + 32] == sha256(key, block[:at] + block[at + 32 :])
    return block[at : at + 32]


def proves(block: bytes, key: bytes, digest: bytes) -> bool:
    """Tell whether a C2 or S2 ends in the proof that its sender saw *digest*."""
    return block[1504:] == sha256(sha256(key + SECRET, digest), block[:1504])


def noise(seed: object = 0):
    return random.Random(f"{seed}").randbytes


def c1(version: str = "00000000", seed: object = "c1") -> bytes:
    return bytes(4) + bytes.fromhex(version) + noise(seed)(1528)


def signed_c1(scheme: int, version: str = "09007c02", seed: object = "c1") -> bytes:
    return signed(c1(version, seed), scheme, PLAYER)


def answer(block: bytes, seed: object = "server") -> tuple[ServerHandshake, bytes, bytes]:
    """Give C0 and a C1 to a server; return it, S1 and S2."""
    server = ServerHandshake(noise(seed))
    reply = server.feed(b"\x03" + block)
    assert len(reply) == 1 + 2 * HANDSHAKE_SIZE
    assert reply[0] == 3
    return server, reply[1 : 1 + HANDSHAKE_SIZE], reply[1 + HANDSHAKE_SIZE :]


def test_the_verifier_agrees_with_the_recordings_of_others():
    # nginx signs S1 and S2, FFmpeg's player C1 and C2: the keys and places above are not ours alone.
    c2s, s2c = (WIRE.joinpath(f"ffmpeg_play.{way}.bin").read_bytes()[1:3073] for way in ("c2s", "s2c"))
    c1_digest = digest_of(c2s[:1536], 0, PLAYER)
    s1_digest = digest_of(s2c[:1536], 0, SERVER)
    assert proves(c2s[1536:], PLAYER, s1_digest)
    assert proves(s2c[1536:], SERVER, c1_digest)


# The server --------------------------------------------------------------------------------------------------------------


def test_row_1_a_plain_c1_is_echoed_in_s2():
    block = c1()
    server, s1, s2 = answer(block)
    assert server.kind == "plain"
    assert s2 == block
    assert s1[:8] == bytes(8)
    assert s1[8:] == noise("server")(1528)


def test_row_1_the_time_field_of_c1_is_echoed_too():
    block = b"\x12\x34\x56\x78" + c1()[4:]
    assert answer(block)[2] == block


@pytest.mark.parametrize("version", ["09007c02", "0a002d02", "0c000d0e", "80000702", "00000001"])
@pytest.mark.parametrize("scheme", [0, 1])
def test_row_2_a_digest_in_either_scheme_is_answered_with_one(scheme, version):
    block = signed_c1(scheme, version)
    server, s1, s2 = answer(block)
    assert server.kind == "digest"
    digest_of(s1, scheme, SERVER)
    assert s1[4:8] != bytes(4)
    assert proves(s2, SERVER, digest_of(block, scheme, PLAYER))


@pytest.mark.parametrize("scheme", [0, 1])
@pytest.mark.parametrize("four", ["00000000", "ffffffff", "000000d7", "b6b6b6b6", "b5b6b6b6"])
def test_row_2_a_digest_may_stand_at_any_offset(scheme, four):
    at = 8 if scheme == 0 else 772
    block = c1("09007c02")
    block = signed(block[:at] + bytes.fromhex(four) + block[at + 4 :], scheme, PLAYER)
    server, _, s2 = answer(block)
    assert server.kind == "digest"
    assert proves(s2, SERVER, digest_of(block, scheme, PLAYER))


def test_row_2_our_own_digest_may_stand_at_any_offset():
    for seed in range(200):
        scheme = seed % 2
        _, s1, _ = answer(signed_c1(scheme), seed)
        digest_of(s1, scheme, SERVER)


@pytest.mark.parametrize("version", ["09007c02", "01020304"])
def test_row_2_a_version_without_a_valid_digest_is_answered_plain(version):
    block = c1(version)
    server, s1, s2 = answer(block)
    assert server.kind == "plain"
    assert s2 == block
    assert s1[4:8] == bytes(4)


def test_row_2_a_digest_with_one_wrong_bit_is_answered_plain():
    block = bytearray(signed_c1(1))
    block[700] ^= 1
    server, _, s2 = answer(bytes(block))
    assert server.kind == "plain"
    assert s2 == block


def test_row_2_a_digest_without_a_version_is_not_looked_for():
    block = signed(c1(), 0, PLAYER)
    server, _, s2 = answer(block)
    assert server.kind == "plain"
    assert s2 == block


def test_find_digest_tells_scheme_and_digest():
    for scheme in (0, 1):
        block = signed_c1(scheme)
        assert find_digest(block, PLAYER) == (scheme, digest_of(block, scheme, PLAYER))
        assert find_digest(block, SERVER) is None


@pytest.mark.parametrize("version", [6, 8])
@pytest.mark.parametrize("rest", [b"", bytes(1536)])
def test_row_3_rtmpe_is_refused_by_name(version, rest):
    server = ServerHandshake(noise())
    with pytest.raises(HandshakeError, match=rf"C0 is {version}: the client asks for RTMPE, .* use rtmps"):
        server.feed(bytes((version,)) + rest)


@pytest.mark.parametrize("c2_time2", ["00000000", "00000001", "12345678"])
def test_row_4_a_c2_that_is_no_echo_is_taken(c2_time2):
    # GStreamer: S1 with the time of reading in the second field.
    server, s1, _ = answer(c1())
    assert server.feed(s1[:4] + bytes.fromhex(c2_time2) + s1[8:]) == b""
    assert server.done


def test_row_4_a_c2_of_anything_is_taken():
    for block in (c1(), signed_c1(0)):
        server, _, _ = answer(block)
        server.feed(noise("c2")(1536))
        assert server.done


def test_row_5_c2_may_come_with_connect():
    server, s1, _ = answer(c1())
    assert not server.done
    assert server.remainder == b""
    server.feed(s1 + b"connect")
    assert server.done
    assert server.remainder == b"connect"


def test_row_5_everything_may_come_at_once():
    server = ServerHandshake(noise())
    reply = server.feed(b"\x03" + c1() + noise("c2")(1536) + b"connect")
    assert len(reply) == 3073
    assert server.done
    assert server.remainder == b"connect"


@pytest.mark.parametrize("scheme", [None, 0, 1])
def test_row_5_it_may_come_byte_by_byte(scheme):
    block = c1() if scheme is None else signed_c1(scheme)
    expected = b"".join((b"\x03", *answer(block)[1:]))
    server = ServerHandshake(noise("server"))
    replies = []
    for i, byte in enumerate(b"\x03" + block + noise("c2")(1536) + b"rest"):
        reply = server.feed(bytes((byte,)))
        if reply:
            replies.append((i, reply))
        assert server.done == (i >= 3072)
    # The answer goes out with the last byte of C1, and does not wait for C2.
    assert replies == [(1536, expected)]
    assert server.remainder == b"rest"


def test_row_5_it_may_come_as_memoryviews():
    server = ServerHandshake(noise("server"))
    data = memoryview(b"\x03" + c1() + noise("c2")(1536) + b"rest")
    assert server.feed(data[:1000]) + server.feed(data[1000:]) == b"".join((b"\x03", *answer(c1())[1:]))
    assert server.remainder == b"rest"


def test_without_received_bytes_there_is_no_reply():
    server = ServerHandshake(noise())
    assert server.feed(b"") == b""
    assert not server.done
    assert server.kind == ""


@pytest.mark.parametrize(
    ("data", "guess"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n", "; the client speaks HTTP"),
        (b"G", "; the client speaks HTTP"),
        (b"POST /open/1 HTTP/1.1\r\n", "; the client speaks HTTP"),
        (b"OPTIONS * HTTP/1.1\r\n", "; the client speaks HTTP"),
        (b"OPTIONS * RTSP/1.0\r\n", "; the client speaks HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "; the client speaks TLS: rtmps:// has its own port"),
        (b"\x16", "; the client speaks TLS: rtmps:// has its own port"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ""),
        (b"GETTING", ""),
        (b"\0", ""),
        (b"\x02" + bytes(1536), ""),
        (b"\x04" + bytes(1536), ""),
        (b"\xff" * 2000, ""),
    ],
)
def test_a_c0_that_is_not_3_is_refused_with_a_hint(data, guess):
    with pytest.raises(HandshakeError, match=rf"^C0 is {data[0]}, expected 3: this is not RTMP{guess}$"):
        ServerHandshake(noise()).feed(data)


# The client --------------------------------------------------------------------------------------------------------------


def test_a_plain_c1_is_zeros_and_random_bytes():
    client = ClientHandshake(noise("client"))
    assert client.hello() == b"\x03" + bytes(8) + noise("client")(1528)
    assert client.hello() == client.hello()


@pytest.mark.parametrize("scheme", [0, 1])
def test_a_signing_client_has_a_version_and_a_digest(scheme):
    for seed in range(100):
        hello = ClientHandshake(noise(seed), scheme).hello()
        assert hello[5:9] == bytes((9, 0, 124, 2))
        digest_of(hello[1:], scheme, PLAYER)


@pytest.mark.parametrize("scheme", [None, 0, 1])
def test_a_server_that_answers_plain_is_taken_and_gets_its_echo(scheme):
    client = ClientHandshake(noise("client"), scheme)
    s1 = bytes(8) + noise("s1")(1528)
    assert client.feed(b"\x03" + s1) == s1
    assert client.kind == "plain"
    assert not client.done
    # Whatever S2 is: there are servers that send noise.
    assert client.feed(noise("s2")(1536) + b"rest") == b""
    assert client.done
    assert client.remainder == b"rest"


def signed_server(client: ClientHandshake, scheme: int, server_scheme: int | None = None) -> tuple[bytes, bytes, bytes]:
    """Answer a client as a Flash Media Server does; return S1, S2, and the digest of S1."""
    used = scheme if server_scheme is None else server_scheme
    s1 = signed(bytes(4) + bytes((4, 5, 0, 1)) + noise("s1")(1528), used, SERVER)
    filler = noise("s2")(1504)
    s2 = filler + sha256(sha256(SERVER + SECRET, digest_of(client.hello()[1:], scheme, PLAYER)), filler)
    return s1, s2, digest_of(s1, used, SERVER)


@pytest.mark.parametrize("server_scheme", [0, 1])
@pytest.mark.parametrize("scheme", [0, 1])
def test_a_client_proves_that_it_read_the_digest_of_s1(scheme, server_scheme):
    client = ClientHandshake(noise("client"), scheme)
    s1, s2, digest = signed_server(client, scheme, server_scheme)
    c2 = client.feed(b"\x03" + s1)
    assert client.kind == "digest"
    assert proves(c2, PLAYER, digest)
    client.feed(s2)
    assert client.done


@pytest.mark.parametrize("wrong", ["noise", "echo", "one bit"])
def test_a_server_that_signs_s1_and_not_s2_is_refused(wrong):
    client = ClientHandshake(noise("client"), 1)
    s1, s2, _ = signed_server(client, 1)
    bad = {"noise": noise("x")(1536), "echo": client.hello()[1:], "one bit": bytes((s2[0] ^ 1,)) + s2[1:]}[wrong]
    client.feed(b"\x03" + s1)
    with pytest.raises(HandshakeError, match="S2 does not prove that the server has read the digest in C1"):
        client.feed(bad)
    assert not client.done


def test_a_plain_client_does_not_look_for_digests():
    signing, plain = ClientHandshake(noise("client"), 0), ClientHandshake(noise("client"))
    s1, _, _ = signed_server(signing, 0)
    assert plain.feed(b"\x03" + s1) == s1
    assert plain.kind == "plain"


@pytest.mark.parametrize(("version", "text"), [(6, "S0 is 6: the server asks for RTMPE"), (0x48, "S0 is 72, expected 3")])
def test_a_server_of_another_version_is_refused(version, text):
    with pytest.raises(HandshakeError, match=text):
        ClientHandshake(noise()).feed(bytes((version,)))


# Both --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [None, 0, 1])
def test_client_and_server_agree(scheme):
    client, server = ClientHandshake(noise("client"), scheme), ServerHandshake(noise("server"))
    s012 = server.feed(client.hello())
    c2 = client.feed(s012 + b"from the server")
    assert client.done
    assert server.feed(c2 + b"from the client") == b""
    assert server.done
    assert client.kind == server.kind == ("plain" if scheme is None else "digest")
    assert client.remainder == b"from the server"
    assert server.remainder == b"from the client"


@pytest.mark.parametrize("name", [entry["name"] for entry in json.loads(WIRE.joinpath("index.json").read_text())])
def test_the_server_recognises_each_recorded_client(name):
    entry = next(entry for entry in json.loads(WIRE.joinpath("index.json").read_text()) if entry["name"] == name)
    data = WIRE.joinpath(entry["file"]).read_bytes()
    server, s1, s2 = answer(data[1:1537])
    assert server.kind == entry["handshake"]
    if server.kind == "plain":
        assert s2 == data[1:1537]
    else:
        assert proves(s2, SERVER, digest_of(data[1:1537], 0, PLAYER))
        digest_of(s1, 0, SERVER)
    server.feed(data[1537:])
    assert server.done
    assert server.remainder == data[3073:]
