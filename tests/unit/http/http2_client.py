"""A client of HTTP/2 for tests: the library h2 on a socket with TLS, which also sends what it must not."""

from __future__ import annotations

from collections import defaultdict

from gevent import socket, ssl
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

LIMIT_S = 10
_HEADER_BYTES = 9
_RST_STREAM, _GOAWAY = 3, 7


def tls_socket(authority, port, protocols=("h2",)):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.path)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    sock = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
    return context.wrap_socket(sock, server_hostname="localhost")


class Answer:
    """What has come of the response on a stream."""

    def __init__(self):
        self.status = 0
        self.headers = {}
        self.body = b""
        self.ended = False
        self.reset = None


class Http2Client:
    def __init__(self, sock, settings=None):
        self.sock = sock
        lax = {"validate_outbound_headers": False, "normalize_outbound_headers": False, "header_encoding": "utf-8"}
        self.h2 = H2Connection(H2Configuration(client_side=True, **lax))
        self.answers = defaultdict(Answer)
        self.goaway = None
        self.closed = False
        self.acknowledges = True
        self.informed = []
        self._data = b""
        if settings:
            self.h2.local_settings.update(settings)
            self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        self.flush()

    def flush(self):
        self.sock.sendall(self.h2.data_to_send())

    def send_fields(self, fields, end=True):
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, fields, end_stream=end)
        self.flush()
        return stream

    def ask(self, path, method="GET", *more, end=True):
        base = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)]
        return self.send_fields([*base, *more], end)

    def forget_limit(self):
        """Open more streams than the server allows."""
        self.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 1000
        self.h2.remote_settings.acknowledge()

    def send(self, stream, data, end=True):
        self.until(lambda: self.h2.local_flow_control_window(stream) >= len(data))
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    def read(self):
        """Read once; return False if the connection has ended."""
        try:
            data = self.sock.recv(65536)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            data = b""
        if not data:
            self.closed = True
            return False
        found = []
        for frame in self._whole_frames(data):
            if frame[3] == _GOAWAY:
                # Not for h2: it takes nothing after it, although streams may go on.
                self.goaway = ErrorCodes(int.from_bytes(frame[13:17], "big"))
                continue
            if frame[3] == _RST_STREAM:
                # h2 does not report that of a stream that has ended.
                self.answers[int.from_bytes(frame[5:9], "big")].reset = ErrorCodes(int.from_bytes(frame[9:13], "big"))
            found += self.h2.receive_data(frame)
        for event in found:
            answer = self.answers[event.stream_id] if getattr(event, "stream_id", 0) else None
            if isinstance(event, events.InformationalResponseReceived):
                self.informed.append(dict(event.headers)[":status"])
            elif isinstance(event, events.ResponseReceived):
                answer.headers = dict(event.headers)
                answer.status = int(answer.headers.pop(":status"))
            elif isinstance(event, events.DataReceived):
                answer.body += event.data
                if self.acknowledges:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, events.StreamEnded):
                answer.ended = True
        self.flush()
        return True

    def _whole_frames(self, data):
        self._data += data
        while len(self._data) >= _HEADER_BYTES + (size := int.from_bytes(self._data[:3], "big")):
            yield self._data[: _HEADER_BYTES + size]
            self._data = self._data[_HEADER_BYTES + size :]

    def until(self, condition):
        while not condition():
            assert self.read(), "the server has closed the connection"

    def answer(self, stream):
        answer = self.answers[stream]
        self.until(lambda: answer.ended or answer.reset is not None)
        return answer

    def until_closed(self):
        while self.read():
            pass

    def get(self, path, method="GET", *more):
        return self.answer(self.ask(path, method, *more))
