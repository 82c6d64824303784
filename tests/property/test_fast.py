"""The extension does exactly what the pure Python form does: results, exceptions, their texts, and what has been sent.

Each input is given to both forms. Without the extension there is nothing to compare.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gevent.socket
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtmpd.util import speed
from tests.unit.live.fakes import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Callable

_fast = pytest.importorskip("rtmpd._fast", reason="the extension is not built")

PURE = speed.PURE
SMALL_BUFFER = 4096
CLOSED = OSError(9, "Bad file descriptor")


# Sending -------------------------------------------------------------------------------------------------------------------


@dataclass
class Member:
    """What `send_each` needs of a subscriber, and how to look at what was sent."""

    send: Callable[[object], int]
    received: Callable[[], bytes]


def drain(sock: socket.socket) -> bytes:
    found = b""
    while True:
        try:
            data = sock.recv(1 << 20)
        except (BlockingIOError, ConnectionResetError):
            return found
        if not data:
            return found
        found += data


def member(stack: ExitStack, kind: str, filled: int) -> Member:
    """Make a member: a plain socket in a state, or something else that has a send."""
    if kind == "fake":
        transport = FakeTransport(filled)
        return Member(transport.try_send, lambda: bytes(transport.data))
    if kind == "fake error":
        transport = FakeTransport()
        transport.error = ConnectionResetError(104, "Connection reset by peer")
        return Member(transport.try_send, lambda: bytes(transport.data))
    if kind == "tcp":
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        there = stack.enter_context(socket.socket())
        there.connect(listener.getsockname())
        here = stack.enter_context(listener.accept()[0])
    else:
        here, there = map(stack.enter_context, socket.socketpair())
    if kind == "gevent":
        here = stack.enter_context(gevent.socket.socket(fileno=here.detach()))._sock
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
    here.setblocking(False)
    there.setblocking(False)
    if kind == "full":
        with suppress(BlockingIOError):
            while True:
                here.send(bytes(512))
    elif kind == "peer closed":
        there.close()
    elif kind == "closed":
        here.close()
    elif kind == "shut down":
        here.shutdown(socket.SHUT_RDWR)
    return Member(here.send, lambda: b"" if there.fileno() < 0 else drain(there))


KINDS = ["fake", "fake error", "tcp", "unix", "gevent", "full", "peer closed", "closed", "shut down"]


def shown(result: tuple[int, int | OSError]) -> tuple[int, object]:
    index, sent = result
    return index, (type(sent), str(sent)) if isinstance(sent, OSError) else sent


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 3000)), min_size=1, max_size=6),
    st.sampled_from([0, 1, 1400, 3000, 40_000]),
    st.sampled_from([bytes, bytearray, memoryview]),
)
def test_both_forms_send_alike(kinds, size, make):
    data = bytes(range(256)) * (size // 256 + 1)
    outcomes = []
    for form in (PURE["send_each"], _fast.send_each):
        with ExitStack() as stack:
            members = [member(stack, *kind) for kind in kinds]
            results, index = [], 0
            while index < len(members):
                index, sent = form(members, index, len(members), make(data[:size]))
                results.append(shown((index, sent)))
                index += 1
            outcomes.append((results, [each.received() for each in members]))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("form", [PURE["send_each"], _fast.send_each])
def test_an_exception_that_is_no_error_of_a_connection_is_raised(form):
    def send(data: object) -> int:
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        form([Member(send, bytes)], 0, 1, b"x")
    with pytest.raises(IndexError):
        form([], 0, 1, b"x")


@pytest.mark.parametrize("form", [PURE["send_each"], _fast.send_each])
def test_a_tls_socket_encrypts(form):
    """Its send is not that of a plain socket, though it is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        wrapped = context.wrap_socket(here, do_handshake_on_connect=False)
        with wrapped:
            index, sent = form([Member(wrapped.send, bytes)], 0, 1, b"secret")
            assert index == 0
            assert b"secret" not in drain(there)
            assert sent == 0 or isinstance(sent, OSError)


def test_the_descriptor_is_that_of_the_socket_at_the_time_of_the_send():
    """A closed socket's number soon belongs to another connection."""
    here, there = socket.socketpair()
    other, beyond = None, None
    with there:
        each = Member(here.send, bytes)
        number = here.fileno()
        here.close()
        other, beyond = socket.socketpair()
        with other, beyond:
            beyond.setblocking(False)
            assert number in (other.fileno(), beyond.fileno())
            index, sent = _fast.send_each([each], 0, 1, b"x")
            assert (index, sent.errno) == (0, 9)
            assert drain(beyond) == b""
