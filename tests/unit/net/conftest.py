"""Transports that are connected to a socket of the test."""

from __future__ import annotations

import pytest
from gevent import socket

from rtmpd.net.transport import format_address

LIMIT_S = 10


@pytest.fixture
def make_transport():
    """Make a transport of a class and the peer's socket, connected over loopback or by a pair of Unix sockets."""
    made = []

    def make(kind, send_buffer=None, receive_buffer=None, *, tcp=False):
        if tcp:
            with socket.socket() as listener:
                if receive_buffer:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
                listener.bind(("127.0.0.1", 0))
                listener.listen()
                peer = socket.socket()
                if send_buffer:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, send_buffer)
                peer.connect(listener.getsockname())
                ours, address = listener.accept()
        else:
            ours, peer = socket.socketpair()
            address = "unix"
        peer.settimeout(LIMIT_S)
        if send_buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        transport = kind(ours, format_address(address))
        made.append((transport, peer))
        return transport, peer

    yield make
    for transport, peer in made:
        peer.close()
        if transport.sock.fileno() >= 0:
            transport.dispose()
