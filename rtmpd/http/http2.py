"""HTTP/2 on one connection (RFC 9113): one greenlet reads, one writes, and each request is served by one of its own.

The library h2 keeps the rules of the protocol, without I/O. What it does not bound is bounded here and in `FrameMeter`.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import gevent
from gevent.event import Event
from gevent.lock import Semaphore
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame, RstStreamFrame, SettingsFrame

from rtmpd.errors import DeadlineExceeded, HttpError, RemoteProtocolError, TransportClosed
from rtmpd.http import limits
from rtmpd.http.http2_frames import (
    COST_PER_CPU_S,
    CREDITS_PER_BYTE,
    FRAME_LIMIT_BYTES,
    RESET_COST,
    RESPONSE_CREDITS,
    FrameError,
    FrameMeter,
    StrictDecoder,
)
from rtmpd.http.http2_requests import request_of
from rtmpd.http.http2_stream import Http2Stream
from rtmpd.http.messages import HEAD_LIMIT_BYTES
from rtmpd.http.responder import Responder
from rtmpd.net.transport import deadline
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.util.event_loop import give_way

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rtmpd.events import Scalar
    from rtmpd.http.base import Wire
    from rtmpd.http.messages import Request
    from rtmpd.http.routes import Route

log = logging.getLogger(__name__)

STREAMS_LIMIT = 32
"""The requests of one connection at the same time; further ones are refused, and may be sent again."""

BODIES_LIMIT = 16
"""The bodies of one connection that handlers send: viewers would not count as connections otherwise."""

PLACES_LIMIT = 4
"""The places for responses that one connection takes, or waits for: its other requests wait, and not those of others."""

REQUESTS_LIMIT = 10_000
"""The requests of one connection. More than by HTTP/1.1: low-latency HLS makes ten each second."""

REFUSALS_LIMIT = 10
"""The refused plays of one connection: bans, and the limits of connections, are checked when another one is accepted. By
HTTP/1.1 it is one, but here a browser would lose the connection of its other requests."""

QUEUE_LIMIT_BYTES = 64 << 10
"""What may wait to be written before more is made or read."""

_STREAM_WINDOW_BYTES = limits.BODY_LIMIT_BYTES + FRAME_LIMIT_BYTES
_CONNECTION_WINDOW_BYTES = 256 << 10
"""The bodies of requests that are not complete, of all streams together."""

_LEAST_WINDOW_BYTES = 65_535
_UNANNOUNCED_STREAMS_LIMIT = 100
"""The requests of a client that has not read `STREAMS_LIMIT` yet; with more the connection ends."""

_HEADER_LIST_LIMIT_BYTES = 2 * HEAD_LIMIT_BYTES
"""More than is announced, so that most of those clients get a response and not the end of their connection."""

_END_S = 1.0
_FAREWELL_S = 0.5
_QUOTED = re.compile(r":? b['\"]")
"""Where h2 begins to quote what the client has sent, which may be secret."""

_OVER: Final = CloseReason(CloseKind.COMMAND, "the response was sent")
_RESET: Final = CloseReason(CloseKind.PEER_LEFT, "the client has cancelled the request")


_CONFIGURATION = H2Configuration(
    client_side=False,
    header_encoding=None,
    validate_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)
"""Requests are checked by `request_of`, and responses are well-formed: a quarter of the time of a request is saved."""


class _Connection(H2Connection):
    MAX_CLOSED_STREAMS = 1000
    """How many ended streams it remembers."""


class Http2:
    """A conversation in HTTP/2.

    Args:
        wire: The connection.

    Attributes:
        transport: Its transport.
        version, agent, outcome, bytes_streamed: As of `rtmpd.http.base.Conversation`.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._host = wire.host
        self._responder = Responder(wire.host)
        self.transport = wire.transport
        self.version = "HTTP/2"
        self.agent = ""
        self.outcome: Mapping[str, Scalar] = {}
        self.bytes_streamed = 0
        now_s = time.monotonic()
        self._h2 = _Connection(_CONFIGURATION)
        self._meter = FrameMeter(now_s)
        self._step, self._step_since_s = 0, now_s
        self._streams: dict[int, Http2Stream] = {}
        self._idle_since_s = now_s
        self._requests = self._refusals = 0
        self._reports_refusal = False  # the outcome is that of a refused play
        self._draining = False  # further requests are refused
        self._finishing: CloseReason | None = None  # the connection ends when everything was sent
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._wake = Event()
        self._room = Event()
        self._places = Semaphore(PLACES_LIMIT)

    def held_bytes(self) -> int:
        """Return the memory of what waits to be written, of bodies, and of what handlers hold."""
        return self._queued_bytes + sum(each.held_bytes() for each in self._streams.values())

    def serve(self, first: bytes) -> None:
        """Serve requests until the connection must end; as `rtmpd.http.base.Conversation.serve`."""
        writer = gevent.spawn(self._write)
        code, reason = ErrorCodes.NO_ERROR, _OVER
        try:
            self._begin()
            self._read(first)
        except TransportClosed as error:
            reason = CloseReason(CloseKind.PEER_LEFT, str(error))
            raise
        except DeadlineExceeded as error:
            reason = CloseReason(CloseKind.DEADLINE, str(error))
            raise
        except FrameError as error:
            code, reason = error.code, CloseReason(CloseKind.PROTOCOL, "HTTP was violated", detail=str(error))
            raise
        except ProtocolError as error:
            # The GOAWAY of h2 is replaced: h2 itself sends nothing after it.
            self._h2.clear_outbound_data_buffer()
            text = f"HTTP/2: {_QUOTED.split(str(error))[0]}"
            code, reason = ErrorCodes(error.error_code), CloseReason(CloseKind.PROTOCOL, "HTTP was violated", detail=text)
            raise RemoteProtocolError(text) from None
        except gevent.GreenletExit:
            reason = CloseReason(CloseKind.SHUTDOWN, "the server is stopping")
            raise
        finally:
            self._end(code, self.transport.close_reason or reason, writer)

    def _end(self, code: ErrorCodes, reason: CloseReason, writer: gevent.Greenlet[[], None]) -> None:
        """End all requests and the writer."""
        if not self._draining:
            for stream in self._streams.values():
                if stream.is_sent_by_handler:
                    # The play of this stream ends with the connection, and is reported now.
                    self._report(stream)
        self._draining = True
        self._queue_goaway(code)
        for stream in list(self._streams.values()):
            stream.abort(reason)
        greenlets = [each.greenlet for each in self._streams.values() if each.greenlet is not None]
        gevent.joinall(greenlets, timeout=_END_S)
        gevent.killall(greenlets, timeout=_END_S)
        until_s = time.monotonic() + _END_S
        while self._queued_bytes and not writer.dead and time.monotonic() < until_s:
            self._room.clear()
            self._room.wait(_END_S)
        writer.kill()

    def finish(self, reason: CloseReason) -> bool:
        """Begin to end; as `rtmpd.http.base.Conversation.finish`."""
        if self._finishing is not None:
            return True
        self.drain()
        if reason.kind is CloseKind.SHUTDOWN and (self._streams or self._queued_bytes):
            self._finishing = reason
            for stream in self._streams.values():
                stream.end_body(reason)
            gevent.spawn_later(_FAREWELL_S, self.transport.close, reason)
            return True
        if not self.transport.sending:
            # What does not fit is lost: the client learns the same from the end of the connection.
            data = b"".join(self._queue)
            with contextlib.suppress(OSError):
                self.transport.try_send(data)
            self._queue.clear()
            self._queued_bytes -= len(data)
        return False

    # Reading -----------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        settings = {
            SettingCodes.MAX_CONCURRENT_STREAMS: _UNANNOUNCED_STREAMS_LIMIT,
            SettingCodes.MAX_HEADER_LIST_SIZE: HEAD_LIMIT_BYTES,
            SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
        }
        self._h2.local_settings = Settings(client=False, initial_values=settings)
        self._h2.decoder = StrictDecoder(max_header_list_size=_HEADER_LIST_LIMIT_BYTES)
        self._h2.initiate_connection()
        self._h2.clear_outbound_data_buffer()
        # Requests above the announced limit are refused; above the limit of h2 the connection ends.
        announced = {**self._h2.local_settings, SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS_LIMIT}
        self._put(SettingsFrame(0, settings=announced).serialize())
        self._release(_CONNECTION_WINDOW_BYTES - _LEAST_WINDOW_BYTES)
        self._collect()

    def _read(self, data: bytes) -> None:
        """Read until the connection has been idle for too long."""
        while True:
            now_s = time.monotonic()
            for number, part in enumerate(self._meter.split(data, now_s)):
                if number:
                    give_way()
                begun_s = time.thread_time()
                for event in self._h2.receive_data(part):
                    self._react(event)
                self._collect()
                self._meter.spend((time.thread_time() - begun_s) * COST_PER_CPU_S)
            if self._meter.steps != self._step:
                self._step, self._step_since_s = self._meter.steps, now_s
            while self._queued_bytes > QUEUE_LIMIT_BYTES:
                # A client that does not read is not read, either: it may cause answers, such as those to pings.
                self._room.clear()
                self._room.wait()
            found = self._receive()
            if not found:
                return
            data = found

    def _receive(self) -> bytes:
        """Wait for bytes of the client; return none if the connection was idle for too long.

        Raises:
            DeadlineExceeded: It has sent a part of a frame or of a header block, and not the rest.
        """
        while True:
            now_s = time.monotonic()
            self._expire_requests(now_s)
            until_s = min((each.begun_s + limits.REQUEST_S for each in self._incomplete()), default=now_s + limits.IDLE_S)
            if self._meter.midway:
                until_s = min(until_s, self._step_since_s + limits.REQUEST_S)
                if until_s <= now_s:
                    if self._wire.bytes_received:
                        self._host.count("http_deadlines")
                        log.warning(
                            "http %s: request not complete within %g s, connection closed", self._wire.peer, limits.REQUEST_S
                        )
                    raise DeadlineExceeded("the request", limits.REQUEST_S)
            if not self._streams:
                until_s = min(until_s, self._idle_since_s + limits.IDLE_S)
                if until_s <= now_s:
                    return b""
            try:
                with deadline(until_s - now_s, "waiting for a request"):
                    return self._wire.receive()
            except DeadlineExceeded:
                continue

    def _incomplete(self) -> list[Http2Stream]:
        """Return the requests that wait for their bodies."""
        return [each for each in self._streams.values() if each.greenlet is None]

    def _expire_requests(self, now_s: float) -> None:
        for stream in self._incomplete():
            if stream.begun_s + limits.REQUEST_S <= now_s:
                self._host.count("http_deadlines")
                text = "The request was not complete in time."
                log.warning("http %s: bad request: %s", self._wire.peer, text)
                self._refuse(stream, HttpError(408, text))

    def _react(self, event: events.Event) -> None:
        """React to what the client has sent. Does not wait."""
        if isinstance(event, events.RequestReceived):
            self._take_request(event)
        elif isinstance(event, events.DataReceived):
            self._take_data(event)
        elif isinstance(event, events.StreamEnded):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                stream.complete = True
                stream.progress.set()
                if stream.pending is not None and stream.greenlet is None:
                    request, route = stream.pending
                    self._start(stream, replace(request, body=bytes(stream.body)), route)
        elif isinstance(event, events.TrailersReceived):
            # They are not used.
            if any(name.startswith(b":") for name, _ in event.headers):
                self.send_reset(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
        elif isinstance(event, events.StreamReset):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                stream.abort(_RESET)
                if stream.greenlet is None:
                    self._done(stream)
        elif isinstance(event, (events.WindowUpdated, events.RemoteSettingsChanged)):
            self._notify()
        elif isinstance(event, events.ConnectionTerminated):
            # h2 sends nothing after that.
            raise TransportClosed("ended by the client (GOAWAY)")

    def _take_request(self, event: events.RequestReceived) -> None:
        stream_id = event.stream_id
        if self._draining or len(self._streams) >= STREAMS_LIMIT:
            self.send_reset(stream_id, ErrorCodes.REFUSED_STREAM)
            self._meter.spend(RESET_COST)
            return
        self._host.places.end(self._wire)
        stream = self._streams[stream_id] = Http2Stream(self, self._responder, stream_id, self._wire.number)
        stream.complete = event.stream_ended is not None
        self._requests += 1
        if self._requests >= REQUESTS_LIMIT:
            self.drain()
        try:
            request = request_of(event.headers, self._wire.peer)
        except HttpError as error:
            self._host.count("http_bad_requests")
            log.warning("http %s: bad request: %s", self._wire.peer, error.text)
            stream.malformed = error.status == HTTPStatus.BAD_REQUEST
            self._refuse(stream, error)
            self._meter.spend(RESET_COST)
            return
        self.agent = stream.agent = request.headers.get("user-agent", "")[:256]
        stream.path = request.path
        request, found = self._responder.find(request)
        if stream.complete or isinstance(found, HttpError) or not found.takes_body:
            self._start(stream, request, found)
            return
        stream.pending = request, found
        if request.headers.get("expect", "").lower() == "100-continue":
            self._h2.send_headers(stream_id, [(":status", "100")])

    def _take_data(self, event: events.DataReceived) -> None:
        stream, data = self._streams.get(event.stream_id), event.data or b""
        if stream is None or stream.pending is None or stream.greenlet is not None:
            # Nothing reads it.
            self._release(event.flow_controlled_length)
            return
        self._release(event.flow_controlled_length - len(data))
        stream.body += data
        if len(stream.body) > limits.BODY_LIMIT_BYTES:
            self._host.count("http_bad_requests")
            text = f"The body is longer than {limits.BODY_LIMIT_BYTES} bytes."
            log.warning("http %s: bad request: %s", self._wire.peer, text)
            self._refuse(stream, HttpError(413, text))

    def _release(self, size: int) -> None:
        """Let the client send as many bytes more: so many are not held any longer."""
        if size:
            self._h2.increment_flow_control_window(size)

    # Serving -----------------------------------------------------------------------------------------------------------

    def _refuse(self, stream: Http2Stream, error: HttpError) -> None:
        self._spawn(stream, lambda: self._responder.refuse(error, None, stream))

    def _start(self, stream: Http2Stream, request: Request, found: Route | HttpError) -> None:
        def serve() -> None:
            with contextlib.nullcontext() if isinstance(found, HttpError) or found.long else self._places:
                self._responder.serve(request, found, stream)

        self._spawn(stream, serve)

    def _spawn(self, stream: Http2Stream, serve: Callable[[], None]) -> None:
        stream.greenlet = gevent.spawn(self._serve, stream, serve)
        # Also if the greenlet is killed before it has begun.
        stream.greenlet.rawlink(lambda greenlet: self._done(stream))

    def _serve(self, stream: Http2Stream, serve: Callable[[], None]) -> None:
        """Serve one request, in the greenlet of its stream."""
        try:
            stream.run(serve)
            if not stream.malformed:
                self._meter.earn(RESPONSE_CREDITS)
        except Exception:
            self._host.count("internal_errors")
            log.exception("internal error: a request for %.80r failed", stream.path)

    def _done(self, stream: Http2Stream) -> None:
        """Take note that a request is served, or cancelled. Does not wait."""
        if self._streams.pop(stream.id, None) is None:
            return
        if stream.ends_connection or not self._draining:
            # Events report the request that has ended the connection, or the last one.
            self._report(stream)
        if stream.body:
            with contextlib.suppress(ProtocolError):
                self._release(len(stream.body))
                self._collect()
        if self._streams:
            return
        self._idle_since_s = time.monotonic()
        if self._finishing is not None:
            self._wake.set()
        elif self._draining:
            gevent.spawn_later(limits.LINGER_S, self.transport.close, _OVER)
        else:
            self._host.places.begin_idle(self._wire)

    def _report(self, stream: Http2Stream) -> None:
        """Have events report a request; not in place of a refused play, unless it is one for a stream as well."""
        if not self._reports_refusal or "wanted" in stream.outcome:
            self.outcome = stream.outcome
            self._reports_refusal = stream.was_refused

    # As the connection of its streams ----------------------------------------------------------------------------------

    def send_headers(self, stream_id: int, headers: Sequence[tuple[bytes, bytes]], *, end: bool) -> None:
        """Queue headers; as `rtmpd.http.http2_stream.Frames.send_headers`."""
        try:
            self._h2.send_headers(stream_id, headers, end_stream=end)
        except ProtocolError:
            raise TransportClosed(_RESET) from None
        self._collect()

    def send_some(self, stream_id: int, data: memoryview, *, end: bool) -> int:
        """Queue some of the data; as `rtmpd.http.http2_stream.Frames.send_some`."""
        if self._queued_bytes >= QUEUE_LIMIT_BYTES:
            return 0
        try:
            size = min(len(data), FRAME_LIMIT_BYTES, self._h2.local_flow_control_window(stream_id))
            if size <= 0:
                return 0
            self._h2.send_data(stream_id, bytes(data[:size]), end_stream=end and size == len(data))
        except ProtocolError:
            raise TransportClosed(_RESET) from None
        self._meter.earn(size * CREDITS_PER_BYTE)
        self._collect()
        return size

    def send_end(self, stream_id: int) -> None:
        """Queue the end of a body; as `rtmpd.http.http2_stream.Frames.send_end`."""
        try:
            self._h2.end_stream(stream_id)
        except ProtocolError:
            raise TransportClosed(_RESET) from None
        self._collect()

    def send_reset(self, stream_id: int, code: ErrorCodes) -> None:
        """Queue a RST_STREAM; as `rtmpd.http.http2_stream.Frames.send_reset`."""
        # The client may have reset it, or ended the connection.
        with contextlib.suppress(ProtocolError):
            self._h2.reset_stream(stream_id, code)
            self._collect()

    def send_error(self, stream_id: int) -> None:
        """Queue a RST_STREAM for a malformed request; as `rtmpd.http.http2_stream.Frames.send_error`."""
        # Not by h2, which sends nothing on a stream that has ended.
        self._collect()
        self._put(RstStreamFrame(stream_id, error_code=ErrorCodes.PROTOCOL_ERROR).serialize())

    def ensure_room_for_body(self) -> None:
        """Raise HttpError if there are too many bodies; as `rtmpd.http.http2_stream.Frames.ensure_room_for_body`."""
        if sum(each.is_sent_by_handler for each in self._streams.values()) >= BODIES_LIMIT:
            raise HttpError(503, "One connection has too many streams.")

    def count_refusal(self) -> bool:
        """Count a refusal; as `rtmpd.http.http2_stream.Frames.count_refusal`."""
        self._refusals += 1
        return self._refusals >= REFUSALS_LIMIT

    def drain(self) -> None:
        """Refuse further requests, and tell the client (RFC 9113 section 6.8). Does not wait."""
        if not self._draining:
            self._draining = True
            self._queue_goaway(ErrorCodes.NO_ERROR)

    def _queue_goaway(self, code: ErrorCodes) -> None:
        # Not by h2, which sends nothing after it.
        self._collect()
        self._put(GoAwayFrame(0, last_stream_id=self._h2.highest_inbound_stream_id, error_code=code).serialize())

    # Writing -----------------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Queue what h2 has made."""
        data = self._h2.data_to_send()
        if data:
            self._put(data)

    def _put(self, data: bytes) -> None:
        self._queue.append(data)
        self._queued_bytes += len(data)
        self._wake.set()

    def _write(self) -> None:
        """Write what is queued, in a greenlet of its own, until the connection ends."""
        transport = self.transport
        try:
            while True:
                self._wake.wait()
                self._wake.clear()
                while self._queue:
                    data = b"".join(self._queue)
                    self._queue.clear()
                    transport.send_all(data, limits.WRITE_S)
                    self._queued_bytes -= len(data)
                    self._notify()
                if self._finishing is not None and not self._streams:
                    transport.close(self._finishing)
        except DeadlineExceeded as error:
            transport.close(CloseReason(CloseKind.DEADLINE, str(error)))
        except TransportClosed as error:
            transport.close(CloseReason(CloseKind.PEER_LEFT, str(error)))
        finally:
            self._notify()

    def _notify(self) -> None:
        """Wake what waits for room in the queue, or for flow control."""
        self._room.set()
        for stream in self._streams.values():
            stream.progress.set()
