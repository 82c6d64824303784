"""A destination of relays that parses everything: a server with a minimum of RTMP.

Runs as a process of its own: ``python -m bench.sink --port N --relays N``. It prints one JSON line when it listens, and one at
the end. Every message is parsed, as sampled players do.
"""

import argparse
import json
import os
import resource
import select
import socket
import struct
import time
from pathlib import Path

from bench import rtmp, wire
from bench.players import ALIGN_LIMIT_S, MARK_WITHIN_BYTES, is_header, percentile_ms
from bench.publisher import CLOCK_MARK, GOP_FRAMES, STAMP, Published
from bench.servers import ServerSample, core_figures

START_LIMIT_S = 30
WINDOW_BYTES = 2_500_000


class Relayed:
    """One connection of a relay."""

    def __init__(self, run, sock):
        self._run, self._socket = run, sock
        self._descriptor = sock.fileno()
        self._hello, self._shaken = bytearray(), 0
        self._reader = wire.ChunkReader()
        self.received_bytes = self._acknowledged = 0
        self.window_bytes = WINDOW_BYTES
        self.ready = False
        self.last = {}
        self.begin()
        run.loop.watch(self, select.EPOLLIN)

    def begin(self):
        """Reset the counts at the start of the window."""
        self.messages = self.gaps = self.unstamped = 0
        self.latencies_ns = []

    def fileno(self):
        return self._descriptor

    def _fail(self, reason):
        self._run.loop.error(reason)
        self._run.loop.forget(self)
        self._socket.close()

    def on_events(self, _events):
        try:
            data = self._socket.recv(rtmp.RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(f"receive: {error.strerror}")
            return
        if not data:
            self._fail("closed by the server")
            return
        self.received_bytes += len(data)
        try:
            self._take(data)
        except (wire.ProtocolError, IndexError, struct.error) as error:
            self._fail(f"not RTMP: {error}")
            return
        if self.received_bytes - self._acknowledged >= self.window_bytes // 2:
            self._acknowledged = self.received_bytes
            self._send(wire.control(wire.ACKNOWLEDGEMENT, self.received_bytes & 0xFFFFFFFF))

    def _send(self, data):
        # Answers are few and small: they fit.
        self._socket.send(data)

    def _take(self, data):
        if self._shaken < 2:
            self._hello += data
            if not self._shaken and len(self._hello) > rtmp.HANDSHAKE_BYTES:
                hello = self._hello[1 : 1 + rtmp.HANDSHAKE_BYTES]
                self._send(b"\x03" + bytes(8) + os.urandom(rtmp.HANDSHAKE_BYTES - 8) + hello)
                self._shaken = 1
            if len(self._hello) < 1 + 2 * rtmp.HANDSHAKE_BYTES:
                return
            self._shaken = 2
            data = self._hello[1 + 2 * rtmp.HANDSHAKE_BYTES :]
        now_ns = time.monotonic_ns()
        for kind, payload in self._reader.feed(data):
            if kind in {wire.AUDIO, wire.VIDEO}:
                if payload and not is_header(kind, payload):
                    self._on_frame(kind, payload, now_ns)
            elif kind == wire.COMMAND:
                self._on_command(wire.amf_values(payload))
            elif kind == wire.WINDOW_SIZE:
                self.window_bytes = int.from_bytes(payload[:4], "big")

    def _on_command(self, values):
        name, transaction = values[0], values[1]
        if name == "publish":
            info = {"level": "status", "code": "NetStream.Publish.Start", "description": ""}
            self._send(wire.message(5, wire.COMMAND, 1, wire.amf("onStatus", 0, None, info)))
        elif name == "connect":
            info = {"level": "status", "code": "NetConnection.Connect.Success", "description": ""}
            self._send(wire.message(3, wire.COMMAND, 0, wire.amf("_result", transaction, None, info)))
        elif transaction:
            self._send(wire.message(3, wire.COMMAND, 0, wire.amf("_result", transaction, None, 1)))

    def _on_frame(self, kind, payload, now_ns):
        self.ready = True
        self.messages += 1
        at = payload.find(CLOCK_MARK, 0, MARK_WITHIN_BYTES)
        if at < 0:
            self.unstamped += 1
            return
        sent_ns, number = STAMP.unpack_from(payload, at + len(CLOCK_MARK))
        self.gaps += number != self.last.get(kind, number - 1) + 1
        self.last[kind] = number
        if kind == wire.VIDEO:
            self.latencies_ns.append(now_ns - sent_ns)


class Run:
    """The sink from its first connection to the last figure."""

    def __init__(self, options):
        self.options = options
        self.loop = rtmp.Loop()
        self.relays = []
        self.published = Published(options.stat)
        self._listener = socket.create_server(("127.0.0.1", options.port))
        self._listener.setblocking(False)
        self.loop.watch(self, select.EPOLLIN)

    def fileno(self):
        return self._listener.fileno()

    def on_events(self, _events):
        sock, _ = self._listener.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.relays.append(Relayed(self, sock))

    def figures(self):
        options, loop = self.options, self.loop
        loop.spin(START_LIMIT_S, lambda: sum(relay.ready for relay in self.relays) >= options.relays)
        loop.spin(options.settle)
        loop.spin(ALIGN_LIMIT_S, lambda: self.published.read()[0] % GOP_FRAMES == GOP_FRAMES // 2)
        for relay in self.relays:
            relay.begin()
        published = sum(self.published.read())
        before, own_s = ServerSample.take(options.pid), _own_cpu_s()
        loop.spin(options.seconds)
        published = sum(self.published.read()) - published
        after = ServerSample.take(options.pid)
        latencies_ns = sorted(value for relay in self.relays for value in relay.latencies_ns)
        messages = sum(relay.messages for relay in self.relays)
        return {
            "relays": len(self.relays),
            **core_figures(before, after),
            "rss_start_mb": before.rss_mb,
            "rss_mb": after.rss_mb,
            "delivered": round(messages / max(1, published * options.relays), 3),
            "p50_ms": percentile_ms(latencies_ns, 0.5),
            "p99_ms": percentile_ms(latencies_ns, 0.99),
            "gaps": sum(relay.gaps for relay in self.relays),
            "unstamped": sum(relay.unstamped for relay in self.relays),
            "load_cpu": round(100 * (_own_cpu_s() - own_s) / (after.time_s - before.time_s), 1),
            "errors": loop.errors,
        }


def _own_cpu_s():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.sink", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--relays", type=int, required=True, help="connections to wait for")
    parser.add_argument("--settle", type=float, default=2, help="seconds between the first media of all and the window")
    parser.add_argument("--seconds", type=float, default=10, help="length of the window")
    parser.add_argument("--pid", type=int, default=0, help="server to sample")
    parser.add_argument("--stat", type=Path, required=True, help="file that shares the number of published messages")
    run = Run(parser.parse_args())
    print(json.dumps({"listening": True}), flush=True)
    print(json.dumps(run.figures()), flush=True)


if __name__ == "__main__":
    main()
