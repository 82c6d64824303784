"""TLS for the clients of the bench: a non-blocking socket that encrypts, and a load of handshakes.

Runs as a process of its own, too: ``python -m bench.tls --port N --rate N`` connects, shakes hands and leaves again so many
times a second until it is terminated. It prints one JSON line at once, and one at the end.
"""

import argparse
import contextlib
import json
import select
import signal
import socket
import ssl
import time

CIPHERTEXT_BYTES = 64 * 1024
HANDSHAKE_LIMIT_S = 5
WAITING = 500  # handshakes under way at the most


def context():
    """Return a context that accepts every certificate: that of the server under test is self-signed."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


class TlsSocket:
    """The part of a socket that bench.rtmp needs, over TLS. The handshake runs during reads and writes.

    `raw` is the plain socket: a reader that only counts encrypted bytes may use it after the handshake.
    """

    def __init__(self, raw, tls_context):
        self.raw = raw
        self.done = False
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls_context.wrap_bio(self._in, self._out, server_hostname="localhost")
        self._rest = b""

    def _flush(self):
        self._rest += self._out.read()
        if self._rest:
            self._rest = self._rest[self.raw.send(self._rest) :]

    def shake(self):
        """Continue the handshake, and return whether it is done."""
        if not self.done:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.do_handshake()
                self.done = True
            self._flush()
        return self.done

    def send(self, data):
        if not self.shake() or self._rest:
            self._flush()
            if self._rest or not self.done:
                raise BlockingIOError
        sent = self._tls.write(data)
        self._flush()
        return sent

    def recv_into(self, buffer):
        data = self.raw.recv(CIPHERTEXT_BYTES)
        if not data:
            return 0
        self._in.write(data)
        if not self.shake():
            raise BlockingIOError
        size, view = 0, memoryview(buffer)
        with contextlib.suppress(ssl.SSLWantReadError):
            while size < len(buffer):
                size += self._tls.read(len(buffer) - size, view[size:])
        if not size:
            raise BlockingIOError
        return size

    def close(self):
        self.raw.close()


class Handshakes:
    """Connections at a fixed rate that do a TLS handshake and disconnect."""

    def __init__(self, options):
        self._options = options
        self._context = context()
        self._epoll = select.epoll()
        self._open = {}  # by descriptor: the socket, and when it began
        self.tried = self.done = self.failed = 0
        self.times_ns = []
        self.over = False

    def run(self):
        print(json.dumps({"rate": self._options.rate}), flush=True)
        start_s = time.monotonic()
        while not self.over and time.monotonic() - start_s < self._options.seconds:
            if self.tried < (time.monotonic() - start_s) * self._options.rate and len(self._open) < WAITING:
                self._begin()
            for descriptor, _ in self._epoll.poll(0.5 / self._options.rate):
                self._go_on(descriptor)
            self._give_up_slow()
        times_ns = sorted(self.times_ns)
        seconds = time.monotonic() - start_s
        middle_ms = round(times_ns[len(times_ns) // 2] / 1e6, 2) if times_ns else None
        figures = {"handshakes_per_s": round(self.done / seconds, 1), "handshake_p50_ms": middle_ms, "failed": self.failed}
        print(json.dumps(figures), flush=True)

    def _begin(self):
        raw = socket.socket()
        raw.setblocking(False)
        raw.connect_ex(("127.0.0.1", self._options.port))
        self.tried += 1
        self._open[raw.fileno()] = TlsSocket(raw, self._context), time.monotonic_ns()
        self._epoll.register(raw.fileno(), select.EPOLLOUT)

    def _go_on(self, descriptor):
        sock, began_ns = self._open[descriptor]
        try:
            try:
                sock.recv_into(bytearray(1))
            except BlockingIOError:
                sock.shake()
            self._epoll.modify(descriptor, select.EPOLLIN)
            if not sock.done:
                return
            self.done += 1
            self.times_ns.append(time.monotonic_ns() - began_ns)
        except OSError:
            self.failed += 1
        self._end(descriptor)

    def _give_up_slow(self):
        limit_ns = time.monotonic_ns() - HANDSHAKE_LIMIT_S * 10**9
        for descriptor in [each for each, (_, began_ns) in self._open.items() if began_ns < limit_ns]:
            self.failed += 1
            self._end(descriptor)

    def _end(self, descriptor):
        self._epoll.unregister(descriptor)
        self._open.pop(descriptor)[0].close()


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.tls", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, default=50, help="handshakes a second")
    parser.add_argument("--seconds", type=float, default=600)
    load = Handshakes(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: setattr(load, "over", True))
    load.run()


if __name__ == "__main__":
    main()
