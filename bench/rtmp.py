"""An RTMP client on a non-blocking socket, and the epoll loop that drives thousands of them."""

import errno
import os
import select
import socket
import struct
import time

from bench import tls, wire

HANDSHAKE_BYTES = 1536
RECEIVE_BYTES = 256 * 1024

_scratch = bytearray(RECEIVE_BYTES)
_scratch_view = memoryview(_scratch)


class Loop:
    """One epoll and its clients, with counts of their errors."""

    EVENTS_PER_TURN = 512

    def __init__(self):
        self.epoll = select.epoll()
        self.handlers = {}
        self.errors = {}
        self.tickers = []  # functions that are called at each turn

    def watch(self, handler, events):
        self.handlers[handler.fileno()] = handler
        self.epoll.register(handler.fileno(), events)

    def forget(self, handler):
        if self.handlers.pop(handler.fileno(), None):
            self.epoll.unregister(handler.fileno())

    def want_write(self, handler, *, wanted):
        if handler.fileno() in self.handlers:
            self.epoll.modify(handler, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def error(self, reason):
        self.errors[reason] = self.errors.get(reason, 0) + 1

    def turn(self, timeout_s):
        """Wait for events, at most timeout_s, and dispatch them."""
        for descriptor, events in self.epoll.poll(timeout_s, self.EVENTS_PER_TURN):
            handler = self.handlers.get(descriptor)
            if handler:
                handler.on_events(events)
        for tick in self.tickers:
            tick()

    def spin(self, seconds, done=lambda: False):
        """Run turns until done() is true or the time is over; return whether done() came first."""
        end_s = time.monotonic() + seconds
        while not done():
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return False
            self.turn(min(left_s, 0.02))
        return True


class Client:
    """A connection from TCP connect to createStream; subclasses continue in on_connected()."""

    SENT_CHUNK_BYTES = wire.DEFAULT_CHUNK_BYTES
    FLASH_VERSION = "LNX 9,0,124,2"
    TLS = None  # the context, for rtmps://

    def __init__(self, loop, port, app, name, receive_buffer_bytes=0):
        self.loop, self.port, self.app, self.name = loop, port, app, name
        self.alive, self.stream_id = True, 0
        self.pending = bytearray()
        self._writing = True
        self._hello = bytearray()
        self._reader = wire.ChunkReader()
        self._transaction = 0
        self._waiting = {}
        self.received_bytes = self.acknowledged_bytes = self.window_bytes = 0
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self._descriptor = self.socket.fileno()
        code = self.socket.connect_ex(("127.0.0.1", port))
        loop.watch(self, select.EPOLLIN | select.EPOLLOUT)
        self.raw_socket = self.socket
        if self.TLS:
            self.socket = tls.TlsSocket(self.socket, self.TLS)
        self.pending += b"\x03" + bytes(8) + os.urandom(HANDSHAKE_BYTES - 8)
        if code not in {0, errno.EINPROGRESS}:
            self.fail(os.strerror(code))

    def fileno(self):
        return self._descriptor

    def fail(self, reason):
        """Close this connection and count the reason."""
        if self.alive:
            self.loop.error(reason)
            self.close()

    def close(self):
        if self.alive:
            self.alive = False
            self.loop.forget(self)
            self.socket.close()

    def send(self, data):
        """Send as much as the socket accepts; the loop sends the remaining bytes."""
        if self.pending:
            self.pending += data
            return
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.fail(f"send: {error.strerror}")
            return
        if sent < len(data):
            self.pending += memoryview(data)[sent:]
            self._want_write(wanted=True)

    def command(self, name, *arguments, stream_id=0, chunk_stream=3, answer=None):
        """Send a command; answer, if any, is called with the values of its _result."""
        self._transaction += 1
        if answer:
            self._waiting[self._transaction] = answer
        values = wire.amf(name, self._transaction, *arguments)
        self.send(wire.message(chunk_stream, wire.COMMAND, stream_id, values, self.SENT_CHUNK_BYTES))

    def on_events(self, events):
        if events & ~select.EPOLLOUT:
            self._on_readable()
        if self.alive and events & select.EPOLLOUT:
            self._flush()

    def _want_write(self, *, wanted):
        if wanted != self._writing:
            self._writing = wanted
            self.loop.want_write(self, wanted=wanted)

    def _flush(self):
        try:
            while self.pending:
                del self.pending[: self.socket.send(self.pending)]
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(f"send: {error.strerror}")
            return
        self._want_write(wanted=False)

    def _on_readable(self):
        try:
            size = self.socket.recv_into(_scratch)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(f"receive: {error.strerror}")
            return
        if not size:
            self.fail("closed by the server")
            return
        self.received_bytes += size
        try:
            self._on_data(_scratch_view[:size])
        except (wire.ProtocolError, IndexError, struct.error) as error:
            self.fail(f"not RTMP: {error}")
            return
        if self.window_bytes and self.received_bytes - self.acknowledged_bytes >= self.window_bytes // 2:
            self.acknowledge()

    def acknowledge(self):
        self.acknowledged_bytes = self.received_bytes
        self.send(wire.control(wire.ACKNOWLEDGEMENT, self.received_bytes & 0xFFFFFFFF, self.SENT_CHUNK_BYTES))

    def _on_data(self, data):
        if self._hello is not None:
            self._hello += data
            if len(self._hello) < 1 + 2 * HANDSHAKE_BYTES:
                return
            hello, self._hello = self._hello, None
            if hello[0] != 3:
                raise wire.ProtocolError(f"version {hello[0]}")
            self.send(hello[1 : 1 + HANDSHAKE_BYTES])
            self._connect()
            data = hello[1 + 2 * HANDSHAKE_BYTES :]
        for kind, payload in self._reader.feed(data):
            if self.alive:
                self._on_message(kind, payload)

    def _connect(self):
        if self.SENT_CHUNK_BYTES != wire.DEFAULT_CHUNK_BYTES:
            self.send(wire.control(wire.SET_CHUNK_SIZE, self.SENT_CHUNK_BYTES))
        about = {"app": self.app, "flashVer": self.FLASH_VERSION, "tcUrl": self.url()}
        self.command("connect", about, answer=lambda _: self.on_connected())

    def url(self):
        return f"rtmp{'s' if self.TLS else ''}://127.0.0.1:{self.port}/{self.app}"

    def _on_message(self, kind, payload):
        if kind in {wire.AUDIO, wire.VIDEO}:
            self.on_media(kind, payload)
        elif kind == wire.WINDOW_SIZE:
            self.window_bytes = int.from_bytes(payload[:4], "big")
        elif kind == wire.PEER_BANDWIDTH:
            self.send(wire.control(wire.WINDOW_SIZE, int.from_bytes(payload[:4], "big"), self.SENT_CHUNK_BYTES))
        elif kind == wire.USER_CONTROL and int.from_bytes(payload[:2], "big") == wire.PING_REQUEST:
            answer = struct.pack(">H", wire.PING_RESPONSE) + payload[2:6]
            self.send(wire.message(2, wire.USER_CONTROL, 0, answer, self.SENT_CHUNK_BYTES))
        elif kind in {wire.COMMAND, wire.COMMAND_AMF3}:
            self._on_command(wire.amf_values(payload[1:] if kind == wire.COMMAND_AMF3 else payload))

    def _on_command(self, values):
        name, transaction = values[0], values[1]
        if name in {"_result", "_error"}:
            answer = self._waiting.pop(transaction, None)
            if answer and name == "_error":
                self.fail(f"_error {self._code(values)}")
            elif answer:
                answer(values)
        elif name == "onStatus":
            if isinstance(values[-1], dict) and values[-1].get("level") == "error":
                self.fail(f"onStatus {self._code(values)}")
            else:
                self.on_status(self._code(values))

    @staticmethod
    def _code(values):
        return values[-1].get("code", "") if isinstance(values[-1], dict) else ""

    def on_connected(self):
        raise NotImplementedError

    def on_status(self, code):
        pass

    def on_media(self, kind, payload):
        pass
