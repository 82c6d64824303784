"""Ports for servers of tests that can't listen on port 0."""

from __future__ import annotations

import itertools
import os
import random
import socket

# Below the ports of outgoing connections and of port 0 (32768 and up), so that no other program takes a port before its use.
_FIRST, _SHARE = 20_000, 1500
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
_BEGIN = random.randrange(_SHARE)  # two runs on one machine begin elsewhere
_numbers = itertools.count()


def free_port() -> int:
    """Return a port that is free on every address, another one each time."""
    while True:
        port = _FIRST + _WORKER * _SHARE + (_BEGIN + next(_numbers)) % _SHARE
        with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("", port))
            except OSError:
                continue
        return port
