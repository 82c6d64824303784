"""One stream's way to one destination: a greenlet that connects, publishes, reads what comes back, and begins again.

The media is not its business: once the destination has agreed, the stream's fan-out writes to the connection, the same bytes as
to players, and with the same rules for who is slow. When the publish ends, the relay leaves the fan-out, sends the rest, and
says good-bye. May import gevent; imports the client, and the stream.
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
from rtmpd.live.subscriber import State
from rtmpd.net.listener import is_listened_on
from rtmpd.net.transport import deadline
from rtmpd.protocol import via
from rtmpd.protocol.enhanced import server_answer
from rtmpd.services.relay.delivery import DeliveryWatch
from rtmpd.services.relay.moving import Moved, check, moved_url
from rtmpd.services.relay.subscriber import RelaySubscriber
from rtmpd.util.backoff import Backoff
from rtmpd.util.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.config.model import RelayConfig
    from rtmpd.config.relay_url import RelayUrl
    from rtmpd.events import Scalar
    from rtmpd.hub import Hub
    from rtmpd.live.pages import Page
    from rtmpd.live.stream import Stream

__all__ = ["Relay", "RelayOwner"]

log = logging.getLogger(__name__)

_WINDOW_BYTES = 250_000
"""How often the destination is to acknowledge."""

_WELL_S = 30.0
"""Who was live for as long begins with short waits again."""

_MOVE_S = 2.0
"""Who was live for as long is moved without a wait, if the destination asks for it."""

_FINISH_S = 5.0
_LINGER_S = 1.0
_AFTER_OTHER_S = _FINISH_S + _LINGER_S
_REASON_LENGTH = 200
_HEARD_LENGTH = 10_000
_REASONS = 64  # different ones that are remembered


class _Ended(gevent.GreenletExit):
    """Thrown into the greenlet: the relay is over."""


class _Loop(RtmpdError):
    """The destination is this server, or leads to it."""


class _Rest(NamedTuple):
    """What a relay that has left the fan-out has still to send: bytes, and then the log from a cursor to a position."""

    owed: bytes
    page: Page | None
    offset: int
    end_position: int


class _Failure(NamedTuple):
    """What ended a try.

    Attributes:
        reason: In words.
        key: What it has in common with others of its kind: what a server says may be different each time.
        was_up: It was up before.
        loop: The destination is this server, or leads to it: it hardly changes soon.
        moved: The destination asked for it, and not too soon.
    """

    reason: str
    key: str
    was_up: bool
    loop: bool = False
    moved: bool = False


class RelayOwner(Protocol):
    """What a relay asks of the service."""

    @property
    def hub(self) -> Hub:
        """The hub."""

    def options_of(self, stream: Stream) -> RelayConfig:
        """Return the options in force for a stream."""


class Relay:
    """A stream's relay to one destination, for as long as one publish.

    Args:
        owner: The service.
        stream: What is relayed.
        url: Where to.
        label: What the destination is called where others can read it.
        after: A greenlet that must end first: the relay of the publish before, which still holds the name there.

    Attributes:
        greenlet: To be started by the owner.
        state: ``connecting``, ``up``, ``waiting`` (it was up, and is to be tried again), ``failed`` (likewise, but the last try
            did not come so far) or ``ended``.
        reconnects: How often it came up again.
        failures: Tries that failed, and connections that were lost.
    """

    def __init__(
        self, owner: RelayOwner, stream: Stream, url: RelayUrl, label: str, after: gevent.Greenlet[[], None] | None = None
    ) -> None:
        self.url = url
        self.label = label
        self.state = "connecting"
        self.reconnects = 0
        self.failures = 0
        self._owner = owner
        self._stream = stream
        self._after = after
        self._app, _, self._name = stream.key.rpartition("/")
        self._publish_began_at = stream.begun_at
        self._began_at = time.monotonic()
        self._changed_at = self._began_at
        self._ups = 0
        self._live_s = 0.0
        self._tries = 0
        self._reasons: set[str] = set()
        self._backoff = Backoff(random.random)
        self._client: Client | None = None
        self._subscriber: RelaySubscriber | None = None
        self._watch = DeliveryWatch(0.0)
        self._rest: _Rest | None = None
        self._end_reason = ""
        self._next_url = ""
        # Of connections that are gone, and what of it all the hub's counters have.
        self._bytes = self._messages = self._dropped = 0
        self._bytes_before = 0  # when it came up
        self._counted = (0, 0, 0)
        self._skips = 0
        self._left_at: int | None = None
        self.greenlet: gevent.Greenlet[[], None] = gevent.Greenlet(self._run)

    @property
    def _options(self) -> RelayConfig:
        return self._owner.options_of(self._stream)

    def __str__(self) -> str:
        return f"{self._stream.key}: relay to {self.label}"

    # Its life ----------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._after is not None:
            self._after.join(_AFTER_OTHER_S)
            self._after = None
        try:
            while True:
                failure = self._try()
                options = self._options
                if failure.moved:
                    log.info("%s: the destination asks to connect again%s", self, " elsewhere" if self._next_url else "")
                    self._owner.hub.count("relay_moves")
                    continue
                wait_s = self._backoff.next_s(options.relay_retry_s, options.relay_retry_limit_s, longest=failure.loop)
                self._say_failure(failure, wait_s)
                gevent.sleep(wait_s)
        finally:
            self._set_state("ended")
            self._count()
            log.info(
                "%s ended: %s; live %.1f of %.1f s, %d bytes, %d reconnects, %d failures, %d skips",
                self,
                self._end_reason or "the server is stopping",
                self._live_s,
                time.monotonic() - self._began_at,
                self._bytes,
                self.reconnects,
                self.failures,
                self._skips,
            )

    def _try(self) -> _Failure:
        """Connect and relay until the connection ends; return why it has."""
        hub, options = self._owner.hub, self._options
        self._set_state("connecting")
        self._tries += 1
        ids = (*self._stream.via, hub.id)
        client: Client | None = None
        reason, key, loop, moved = "", "", False, False
        # Where a destination has sent it, but once: if that does not work, the configuration counts.
        url, self._next_url = self._next_url or self.url.expand(self._app, self._name), ""
        try:
            client = self._client = Client(
                url,
                timeout_s=options.relay_connect_timeout_s,
                chunk_size=self._stream.wirelog.chunk_size,
                window_ack_size=_WINDOW_BYTES,
                # As a server it takes whatever there is, and so it says as a client.
                connect_properties={via.MEMBER: via.format_via(ids), **server_answer()},
                vet=self._vet,
                tls=hub.tls.client.context if url.startswith("rtmps:") else True,
            )
            client.publish(drain=False)
            self._go_live(client)
            for item in client.messages():
                check(item)
        except Moved as error:
            reason, moved = str(error), time.monotonic() - self._changed_at >= _MOVE_S
            self._next_url = moved_url(url, error.tc_url)
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
            log.exception("%s: internal error", self)
            reason = "internal error"
        finally:
            was_up = self._go_down(reason or self._end_reason or "the server is stopping")
            if client is not None:
                client.close()
        return _Failure(reason, key or reason, was_up, loop, was_up and moved)

    def _vet(self, address: tuple[Any, ...]) -> None:
        if is_listened_on(address, self._owner.hub.listening):
            raise _Loop("it is this very server: a loop")

    def _go_live(self, client: Client) -> None:
        """Have the fan-out write to the connection from now on."""
        hub, stream, now_s = self._owner.hub, self._stream, time.monotonic()
        client.transport.limit_unsent(hub.config.server.unsent_limit_bytes)
        client.transport.interactive = False
        subscriber = self._subscriber = RelaySubscriber(client.transport, client.message_stream_id)
        subscriber.left_at = self._left_at
        subscriber.write_timeout_s = self._options.relay_write_timeout_s
        self._watch = DeliveryWatch(now_s)
        again = ""
        if self._ups:
            self.reconnects += 1
            hub.count("relay_reconnects")
            again = f" again, after {now_s - self._changed_at:.1f} s" if self._tries == 1 else f" again, try {self._tries}"
        elif self._tries > 1:
            again = f", try {self._tries}"
        self._ups += 1
        self._tries = 0
        self._bytes_before = self._bytes
        self._reasons.clear()
        self._set_state("up")
        log.info("%s is up%s (%s)", self, again, client.transport.peer)
        # By now whoever is told may find it in the figures.
        hub.bus.emit(EventType.RELAY_UP, {"destination": self.label}, stream=stream)
        client.delegate_writes(partial(stream.fanout.write, subscriber))
        stream.fanout.join(subscriber, self._publish_began_at)

    def _go_down(self, reason: str) -> bool:
        """Take leave of a connection that is over; return whether it was up."""
        client, subscriber, stream = self._client, self._subscriber, self._stream
        self._client = self._subscriber = None
        if client is None or subscriber is None:
            return False
        stream.fanout.leave(subscriber)
        self._bytes += stream.fanout.sent_bytes(subscriber)
        self._messages += subscriber.messages
        self._dropped += subscriber.dropped
        self._skips += subscriber.skips
        self._left_at = subscriber.left_at
        duration_s = time.monotonic() - self._changed_at
        self._live_s += duration_s
        self._set_state("waiting")
        data: dict[str, Scalar] = {
            "destination": self.label,
            "reason": self._hidden(reason),
            "duration_s": round(duration_s, 3),
            "bytes": self._bytes - self._bytes_before,
        }
        self._owner.hub.bus.emit(EventType.RELAY_DOWN, data, stream=stream)
        return True

    def _set_state(self, state: str) -> None:
        if state != self.state and "up" in (state, self.state):
            self._changed_at = time.monotonic()
        self.state = state

    # Failures ----------------------------------------------------------------------------------------------------------

    def _say_failure(self, failure: _Failure, wait_s: float) -> None:
        """Count and log what ended a try. The same again, before it was up, is no news."""
        hub = self._owner.hub
        if not failure.was_up:
            self._set_state("failed")
        self.failures += 1
        hub.count("relay_failures")
        if failure.loop:
            hub.count("relay_loops")
        self._count()
        news = failure.was_up or (failure.key not in self._reasons and len(self._reasons) < _REASONS)
        self._reasons.add(failure.key if news else "")
        log.log(
            logging.WARNING if news else logging.DEBUG,
            "%s %s: %s; trying again in %.1f s",
            self,
            "is down" if failure.was_up else "does not come up",
            self._hidden(failure.reason),
            wait_s,
        )

    def _hidden(self, reason: str) -> str:
        """Return a reason for the log, without secrets: servers may say the stream's name back."""
        # Cut only then: half a secret would not be found.
        return printable(self.url.hide(reason[:_HEARD_LENGTH], self._app, self._name)[:_REASON_LENGTH])

    # The end -----------------------------------------------------------------------------------------------------------

    def end(self, reason: str) -> None:
        """End the relay behind the last message that the log has now. Does not wait."""
        if self._end_reason:
            return
        self._end_reason = reason
        subscriber, stream = self._subscriber, self._stream
        if subscriber is not None and subscriber.state is not State.GONE:
            # Before anything else is appended: what comes next is for players.
            page, offset = stream.fanout.place_of(subscriber)
            self._rest = _Rest(stream.fanout.leave(subscriber), page, offset, stream.wirelog.position)
        self.greenlet.kill(_Ended, block=False)

    def _finish(self, client: Client, rest: _Rest) -> None:
        """Send the rest, and say good-bye as encoders do."""
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
            log.warning("%s: the end of the stream did not get there: %s", self, self._hidden(str(error)))

    def _pieces(self, rest: _Rest) -> Iterator[tuple[bytes, int]]:
        """Yield the rest in pieces, and how many messages each has."""
        yield rest.owed, 0
        subscriber, wirelog = self._subscriber, self._stream.wirelog
        assert subscriber is not None
        page, offset = rest.page, rest.offset
        while page is not None and page.base + offset < rest.end_position:
            if subscriber.message_stream_id != 1:
                message = wirelog.read(page, offset)
                assert message is not None
                page, offset = message.page, message.offset
                yield subscriber.frame(*message[:4], wirelog.chunk_size), 1
                continue
            end = min(page.end, rest.end_position - page.base)
            yield bytes(page.view[offset:end]), page.messages_before(end) - page.messages_before(offset)
            page, offset = page.next, 0

    # Upkeep ------------------------------------------------------------------------------------------------------------

    def sweep(self, now_s: float) -> None:
        """Look whether what is sent arrives, and whether there are other metadata. Called every second or so."""
        client, subscriber = self._client, self._subscriber
        if client is None or subscriber is None or self.state != "up" or self._end_reason:
            return
        self._count()
        if now_s - self._changed_at >= _WELL_S:
            self._backoff.reset()
        options, fanout, wirelog = self._options, self._stream.fanout, self._stream.wirelog
        subscriber.write_timeout_s = options.relay_write_timeout_s
        transport, endpoint = client.transport, client.endpoint
        segments, host_acknowledged_s = transport.unacknowledged()
        dead = self._watch.look(
            now_s,
            options.relay_ack_timeout_s,
            sent=transport.bytes_sent + fanout.sent_bytes(subscriber),
            acknowledged=endpoint.bytes_acknowledged,
            window=endpoint.window_out_bytes,
            segments=segments,
            host_acknowledged_s=host_acknowledged_s,
        )
        if dead:
            transport.close(dead)
            return
        news = subscriber.news(wirelog.headers, wirelog.chunk_size)
        if news:
            fanout.write(subscriber, news)

    def _count(self) -> float:
        """Bring the hub's counters up to date; return how far the destination is behind, ms."""
        sent, messages, dropped, lag_ms = self._bytes, self._messages, self._dropped, 0.0
        subscriber, stream = self._subscriber, self._stream
        if subscriber is not None:
            page, offset = stream.fanout.place_of(subscriber)
            sent += stream.fanout.sent_bytes(subscriber)
            messages += subscriber.messages_until(page, offset)
            dropped += subscriber.dropped
            lag_ms = stream.wirelog.lag_ms(page, offset) if page is not None else 0.0
        counters, (sent_before, messages_before, dropped_before) = self._owner.hub.counters, self._counted
        counters["relay_bytes_sent"] += sent - sent_before
        counters["relay_messages_sent"] += messages - messages_before
        counters["relay_messages_dropped"] += dropped - dropped_before
        self._counted = sent, messages, dropped
        return lag_ms

    def figures(self) -> RelayFigures:
        """Return how it does."""
        lag_s = self._count() / 1000
        if self._subscriber is None:
            lag_s = round(time.monotonic() - self._changed_at, 3)
        return RelayFigures(self._stream.key, self.label, self.state, *self._counted, self.reconnects, lag_s)
