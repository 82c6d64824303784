"""The relay of one stream to one destination: a greenlet that connects, publishes, reads the answers, and retries.

Once the destination has accepted the publish, the stream's fan-out writes to the connection: the same bytes as to players, with
the same rules for slow ones. When the stream is no longer live, the relay leaves the fan-out, sends the rest, and unpublishes.
"""

from __future__ import annotations

import logging
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import gevent

from rtmpd.client import Client
from rtmpd.errors import Refused, RtmpdError
from rtmpd.events import EventType
from rtmpd.hub import RelayFigures
from rtmpd.live.rtmp_framing import RelayFraming
from rtmpd.live.subscriber import State, Subscriber
from rtmpd.net.listener import is_listened_on
from rtmpd.net.transport import deadline
from rtmpd.phases import RELAY, CloseKind, CloseReason, Machine, RelayPhase
from rtmpd.protocol import via
from rtmpd.protocol.enhanced import parse_capabilities, server_answer
from rtmpd.services.relay.delivery import DeliveryWatch
from rtmpd.services.relay.redirect import Redirected, check, redirect_url
from rtmpd.util.backoff import Backoff
from rtmpd.util.text import count_of, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.config.model import RelayConfig
    from rtmpd.config.relay_url import RelayUrl
    from rtmpd.events import Scalar
    from rtmpd.hub import Hub
    from rtmpd.live.output import Output
    from rtmpd.live.pages import Page
    from rtmpd.live.stream import Stream
    from rtmpd.net.resolver import Resolver

log = logging.getLogger(__name__)

_WINDOW_BYTES = 250_000
"""How often the destination is to acknowledge."""

_STABLE_S = 30.0
"""A relay that was up for this long starts over with short waits."""

_REDIRECT_S = 2.0
"""A relay that was up for this long follows a redirect without a wait."""

_FINISH_S = 5.0
_LINGER_S = 1.0
_AFTER_OTHER_S = _FINISH_S + _LINGER_S
_RECONNECT = "reconnect"
_REASON_LENGTH = 200
_SERVER_TEXT_LENGTH = 10_000
_REASONS = 64  # different ones that are remembered


class _Ended(gevent.GreenletExit):
    """Thrown into the greenlet: the relay is over."""


class _Anew(Exception):
    """Thrown into the greenlet while it waits for messages: the headers have changed, and it is to publish anew."""


class _Loop(RtmpdError):
    """The destination is this server, or leads to it."""


class _Rest(NamedTuple):
    """What a relay that has left the fan-out has still to send: bytes, and then the log from a cursor to a position.

    Attributes:
        end_number: The number of messages in the log before that position.
    """

    owed: bytes
    page: Page | None
    offset: int
    end_position: int
    end_number: int


class _Failure(NamedTuple):
    """What ended an attempt.

    Attributes:
        reason: For the log.
        key: What the reason has in common with others of its kind: a server's text may be different each time.
        was_up: The relay was up before.
        loop: The destination is this server, or leads to it: that hardly changes soon.
        redirected: The destination asked for it, and not too soon.
        anew: It was ended in an orderly way, since the headers have changed.
    """

    reason: str
    key: str
    was_up: bool
    loop: bool = False
    redirected: bool = False
    anew: bool = False


class RelayOptions(NamedTuple):
    """The part of the configuration that relays use, besides the ``relay`` options of each stream.

    Attributes:
        relay_limit: The largest number of relays.
        unsent_limit_bytes: The option of ``[server]``.
    """

    relay_limit: int
    unsent_limit_bytes: int


class RelayOwner(Protocol):
    """What a relay asks of the service."""

    @property
    def hub(self) -> Hub:
        """The hub."""

    @property
    def options(self) -> RelayOptions:
        """The options in force."""

    @property
    def resolver(self) -> Resolver:
        """Looks up the names of destinations."""


class Relay:
    """A stream's relay to one destination, for as long as the stream is live.

    Args:
        owner: The service.
        stream: The stream; it is live.
        url: The destination.
        label: The destination's name in logs and metrics.
        origin: The ids of the servers that the stream has come through.
        after: A greenlet that must end first: the relay of the stream before, which still holds the name there.

    Attributes:
        greenlet: To be started by the owner.
        reconnects: How often the relay came up again.
        failures: Attempts that failed, and connections that were lost.
    """

    def __init__(
        self,
        owner: RelayOwner,
        stream: Stream,
        url: RelayUrl,
        label: str,
        origin: tuple[str, ...] = (),
        after: gevent.Greenlet[[], None] | None = None,
    ) -> None:
        self.url = url
        self.label = label
        self.reconnects = 0
        self.failures = 0
        self._owner = owner
        self._stream = stream
        self._origin = origin
        self._after = after
        self._switched_at = 0  # the position in the log before which it must not join
        self._listens = False  # the greenlet waits for messages
        self._finishes = False  # it unpublishes, to publish anew
        self._machine = Machine(RELAY, RelayPhase.CONNECTING)
        self._began_at = time.monotonic()
        self._changed_at = self._began_at
        self._ups = 0
        self._live_s = 0.0
        self._attempts = 0
        self._reasons: set[str] = set()
        self._backoff = Backoff(random.random)
        self._client: Client | None = None
        self._subscriber: Subscriber | None = None
        self._framing = RelayFraming(1)
        self._watch = DeliveryWatch()
        self._rest: _Rest | None = None
        self._checked_codecs: set[str] = set()
        self._end_reason = ""
        self._next_url = ""
        # Of connections that are gone, and the part of all figures that is in the hub's counters.
        self._bytes = self._messages = self._dropped = 0
        self._bytes_before = 0  # when the relay came up
        self._counted = (0, 0, 0)
        self._skips = 0
        self._left_at: int | None = None
        self.greenlet: gevent.Greenlet[[], None] = gevent.Greenlet(self._run)

    @property
    def phase(self) -> RelayPhase:
        """The phase."""
        return self._machine.phase

    @property
    def _options(self) -> RelayConfig:
        return self._stream.options.relay

    @property
    def _output(self) -> Output:
        return self._stream.published

    def __str__(self) -> str:
        return f"{self._stream.key}: relay to {self.label}"

    # Its life ----------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._after is not None:
            self._after.join(_AFTER_OTHER_S)
            self._after = None
        try:
            while True:
                failure = self._attempt()
                options = self._options
                if failure.redirected:
                    log.info("%s: the destination asks to connect again%s", self, " elsewhere" if self._next_url else "")
                    self._owner.hub.count("relay_moves")
                    continue
                if failure.anew:
                    if self._end_reason:
                        return
                    continue
                wait_s = self._backoff.next_s(options.relay_retry_s, options.relay_retry_limit_s, longest=failure.loop)
                self._report_failure(failure, wait_s)
                gevent.sleep(wait_s)
        finally:
            self._enter(RelayPhase.ENDED)
            self._count()
            log.info(
                "%s ended: %s; live %.1f of %.1f s, %d bytes, %s, %s, %s",
                self,
                self._end_reason or "the server is stopping",
                self._live_s,
                time.monotonic() - self._began_at,
                self._bytes,
                count_of(self.reconnects, "reconnect"),
                count_of(self.failures, "failure"),
                count_of(self._skips, "skip"),
            )

    def _enter(self, phase: RelayPhase) -> None:
        if phase is not self.phase and RelayPhase.UP in (phase, self.phase):
            self._changed_at = time.monotonic()
        self._machine.to(phase)

    def _attempt(self) -> _Failure:
        """Connect and relay until the connection ends; return why it did."""
        hub, options = self._owner.hub, self._options
        self._enter(RelayPhase.CONNECTING)
        self._attempts += 1
        client: Client | None = None
        self._rest = None
        reason, key, loop, redirected, anew = "", "", False, False, False
        # A redirect counts for one attempt: if that fails, the configuration holds again.
        url, self._next_url = self._next_url or self.url.expand(self._stream.key.app, self._stream.key.name), ""
        try:
            client = self._client = Client(
                url,
                timeout_s=options.relay_connect_timeout_s,
                chunk_size=hub.chunk_size,
                window_ack_size=_WINDOW_BYTES,
                # As a server it takes any codec, and declares that as a client.
                connect_properties={via.MEMBER: via.format_via((*self._origin, hub.id)), **server_answer()},
                vet=self._vet,
                resolve=self._owner.resolver.resolve,
                tls=hub.tls.client.context if url.startswith("rtmps:") else True,
            )
            client.publish(drain=False)
            self._come_up(client)
            self._listens = True
            for item in client.messages():
                check(item)
        except _Anew:
            self._listens = False
            reason, anew = "the headers have changed", True
            if client is not None and self._rest is not None:
                self._finishes = True
                self._finish(client, self._rest)
        except Redirected as error:
            reason, redirected = str(error), time.monotonic() - self._changed_at >= _REDIRECT_S
            self._next_url = redirect_url(url, error.tc_url)
        except _Loop as error:
            reason, loop = str(error), True
        except Refused as error:
            loop = error.description == via.LOOP
            reason, key = f"refused: {error}", f"refused: {error.code}"
        except RtmpdError as error:
            reason = str(error)
        except _Ended:
            if client is not None and self._rest is not None:
                self._finish(client, self._rest)
            raise
        except Exception:
            hub.count("internal_errors")
            log.exception("%s: internal error: this attempt has ended, the relay tries again", self)
            reason = "internal error"
        finally:
            self._listens = self._finishes = False
            was_up = self._go_down(reason or self._end_reason or "the server is stopping")
            if client is not None:
                client.close()
        if anew and self._rest is not None:
            self._left_at = self._rest.end_number
        return _Failure(reason, key or reason, was_up, loop, was_up and redirected, anew)

    def _vet(self, address: tuple[Any, ...]) -> None:
        if is_listened_on(address, self._owner.hub.listening):
            raise _Loop("the destination is this very server: a loop")

    def _come_up(self, client: Client) -> None:
        """Let the fan-out write to the connection from now on."""
        hub, stream, now_s = self._owner.hub, self._stream, time.monotonic()
        if client.address is not None:
            self._owner.resolver.worked(client.url.host, client.url.port, client.address)
        client.transport.limit_unsent(self._owner.options.unsent_limit_bytes)
        client.transport.interactive = False
        self._framing = RelayFraming(hub.chunk_size, client.message_stream_id)
        subscriber = self._subscriber = Subscriber(client.transport, self._framing, f"relay to {self.label}")
        # Frames left out here would be missing for all players there; a relay that is closed comes back, with more lost.
        subscriber.skips_only = True
        subscriber.left_at = self._left_at
        subscriber.write_timeout_s = self._options.relay_write_timeout_s
        self._watch = DeliveryWatch()
        again = ""
        if self._ups:
            self.reconnects += 1
            hub.count("relay_reconnects")
            down_s = now_s - self._changed_at
            again = f" again, after {down_s:.1f} s" if self._attempts == 1 else f" again, attempt {self._attempts}"
        elif self._attempts > 1:
            again = f", attempt {self._attempts}"
        self._ups += 1
        self._attempts = 0
        self._bytes_before = self._bytes
        self._reasons.clear()
        self._enter(RelayPhase.UP)
        log.info("%s is up%s (%s)", self, again, client.transport.peer)
        # By now handlers find the relay in the figures.
        hub.bus.emit(EventType.RELAY_UP, {"destination": self.label}, stream=stream)
        client.delegate_writes(partial(self._output.fanout.write, subscriber))
        output = self._output
        if output.log.position < self._switched_at:
            # Another log, after an error.
            self._switched_at = 0
        # What is before the stream was live is for players.
        output.fanout.join(subscriber, max(self._stream.begun_at, self._switched_at))

    def _go_down(self, reason: str) -> bool:
        """Leave a connection that has ended; return whether the relay was up."""
        client, subscriber, fanout = self._client, self._subscriber, self._output.fanout
        self._client = self._subscriber = None
        if client is None or subscriber is None:
            return False
        fanout.leave(subscriber)
        self._bytes += fanout.sent_bytes(subscriber)
        self._messages += subscriber.messages
        self._dropped += subscriber.dropped
        self._skips += subscriber.skips
        self._left_at = subscriber.left_at
        duration_s = time.monotonic() - self._changed_at
        self._live_s += duration_s
        self._enter(RelayPhase.WAITING)
        data: dict[str, Scalar] = {
            "destination": self.label,
            "reason": self._hidden(reason),
            "duration_s": round(duration_s, 3),
            "bytes": self._bytes - self._bytes_before,
        }
        self._owner.hub.bus.emit(EventType.RELAY_DOWN, data, stream=self._stream)
        return True

    def _report_failure(self, failure: _Failure, wait_s: float) -> None:
        """Count and log what ended an attempt. A reason that was logged since the relay was last up is not logged again."""
        hub = self._owner.hub
        if not failure.was_up:
            self._enter(RelayPhase.FAILED)
        self.failures += 1
        hub.count("relay_failures")
        if failure.loop:
            hub.count("relay_loops")
        self._count()
        news = failure.was_up or (failure.key not in self._reasons and len(self._reasons) < _REASONS)
        self._reasons.add(failure.key if news else "")
        log.log(
            logging.WARNING if news else logging.DEBUG,
            "%s %s: %s; the next attempt follows in %.1f s",
            self,
            "is down" if failure.was_up else "does not come up",
            self._hidden(failure.reason),
            wait_s,
        )

    def _hidden(self, reason: str) -> str:
        """Return a reason for the log, without secrets: servers may repeat the stream's name."""
        # Cut only after that: half a secret would not be found.
        key = self._stream.key
        return printable(self.url.hide(reason[:_SERVER_TEXT_LENGTH], key.app, key.name)[:_REASON_LENGTH])

    # The end -----------------------------------------------------------------------------------------------------------

    def end(self, reason: str) -> None:
        """End the relay behind the last message that the log has now. Does not wait."""
        if self._end_reason:
            return
        self._end_reason = reason
        # Before anything else is appended: what comes next is for players.
        self._leave()
        # A relay that is about to publish anew ends after it has unpublished.
        if not self._finishes:
            self.greenlet.kill(_Ended, block=False)

    def _leave(self) -> bool:
        """Leave the fan-out; return whether the relay was there. What it was not sent yet is taken note of."""
        subscriber, fanout = self._subscriber, self._output.fanout
        if subscriber is None or subscriber.state is State.REMOVED:
            return False
        page, offset = fanout.place_of(subscriber)
        tail = fanout.log.tail
        end_number = tail.messages_before(tail.end)
        self._rest = _Rest(fanout.leave(subscriber), page, offset, fanout.log.position, end_number)
        return True

    def headers_changed(self) -> None:
        """Publish anew, if the options say so: a source with other headers is active. None of its messages is in the log.

        Does not wait.
        """
        if self._end_reason or self._options.relay_on_header_change != _RECONNECT:
            return
        self._switched_at = self._output.log.position
        if self.phase is RelayPhase.UP and self._leave():
            log.info("%s publishes anew: the codecs or their parameters have changed (relay_on_header_change)", self)
            gevent.get_hub().loop.run_callback(self._interrupt)

    def _interrupt(self) -> None:
        """Wake the greenlet for the new publish, unless its connection has ended in the meantime."""
        if self._listens and not self._end_reason:
            self.greenlet.throw(_Anew)

    def _finish(self, client: Client, rest: _Rest) -> None:
        """Send the rest, and unpublish as encoders do."""
        client.delegate_writes(None)
        limit_s = min(_FINISH_S, self._options.relay_write_timeout_s)
        try:
            with deadline(limit_s, "sending the rest"):
                for data, messages in self._pieces(rest):
                    client.transport.send_all(data, limit_s)
                    self._bytes += len(data)
                    self._messages += messages
                client.unpublish()
            client.transport.linger(_LINGER_S)
        except RtmpdError as error:
            log.warning("%s: the last messages of the stream could not be delivered: %s", self, self._hidden(str(error)))

    def _pieces(self, rest: _Rest) -> Iterator[tuple[bytes, int]]:
        """Yield the rest in pieces, and the number of messages in each."""
        yield rest.owed, 0
        page, offset = rest.page, rest.offset
        while page is not None and page.base + offset < rest.end_position:
            if not self._framing.shared:
                message = self._output.log.read(page, offset)
                assert message is not None
                page, offset = message.page, message.offset
                yield self._framing.message(message), 1
                continue
            end = min(page.end, rest.end_position - page.base)
            yield bytes(page.view[offset:end]), page.messages_before(end) - page.messages_before(offset)
            page, offset = page.next, 0

    # Upkeep ------------------------------------------------------------------------------------------------------------

    def sweep(self, now_s: float) -> None:
        """Check whether what is sent is delivered, and send changed metadata. Called about every second."""
        client, subscriber = self._client, self._subscriber
        leaving = self._rest is not None or self._end_reason
        if client is None or subscriber is None or self.phase is not RelayPhase.UP or leaving:
            return
        self._count()
        if now_s - self._changed_at >= _STABLE_S:
            self._backoff.reset()
        self._check_codec(client)
        options, fanout = self._options, self._output.fanout
        subscriber.write_timeout_s = options.relay_write_timeout_s
        transport, endpoint = client.transport, client.endpoint
        delivered, outstanding = transport.delivery()
        problem = self._watch.check(
            now_s,
            options.relay_ack_timeout_s,
            delivered=delivered,
            outstanding=outstanding,
            acknowledgements=endpoint.acknowledgements,
            window=endpoint.window_out_bytes,
        )
        if problem:
            transport.close(CloseReason(CloseKind.STALLED, problem))
            return
        # Without a place in the log yet, the relay gets metadata with the headers there.
        metadata = self._framing.changed_metadata(fanout.log.headers) if subscriber.headers is not None else b""
        if metadata:
            fanout.write(subscriber, metadata)

    def _check_codec(self, client: Client) -> None:
        """Log once for each codec if the destination probably can't take the video: it drops such messages without a word."""
        four_cc = self._stream.content.video_four_cc
        if not four_cc or four_cc in self._checked_codecs:
            return
        self._checked_codecs.add(four_cc)
        answer = {name: value for part in client.connect_result if isinstance(part, dict) for name, value in part.items()}
        if not parse_capabilities(answer).takes_video(four_cc):
            text = "%s: the video is %s (Enhanced RTMP), not declared by the destination: it may arrive as audio only"
            log.warning(text, self, printable(four_cc))

    def _count(self) -> float:
        """Bring the hub's counters up to date; return how far the destination is behind, ms."""
        sent, messages, dropped, lag_ms = self._bytes, self._messages, self._dropped, 0.0
        subscriber, fanout = self._subscriber, self._output.fanout
        if subscriber is not None:
            page, offset = fanout.place_of(subscriber)
            sent += fanout.sent_bytes(subscriber)
            messages += subscriber.messages_until(page, offset)
            dropped += subscriber.dropped
            lag_ms = fanout.log.lag_ms(page, offset) if page is not None else 0.0
        counters, (sent_before, messages_before, dropped_before) = self._owner.hub.counters, self._counted
        counters["relay_bytes_sent"] += sent - sent_before
        counters["relay_messages_sent"] += messages - messages_before
        counters["relay_messages_dropped"] += dropped - dropped_before
        self._counted = sent, messages, dropped
        return lag_ms

    def figures(self) -> RelayFigures:
        """Return the relay's figures."""
        lag_s = self._count() / 1000
        if self._subscriber is None:
            lag_s = round(time.monotonic() - self._changed_at, 3)
        return RelayFigures(self._stream.key, self.label, self.phase.value, *self._counted, self.reconnects, lag_s)
