"""Keeping the memory of all streams' logs and of the buffers of all connections below one limit.

Above the limit connections are closed if their buffers hold more than half of it, those that hold most first. Then streams free
pages, those that hold most first: what slow players have not been sent yet, then what is kept for new players. Players that
keep up lose nothing by that. Pages are counted one by one, buffers by each sweep, and in steps of a megabyte in between; what
exceeds the limit wakes a greenlet.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

import gevent
from gevent.event import Event

from rtmpd.live.pages import ALL_PAGES
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.protocol.chunk import GROWTH_BYTES
from rtmpd.util.event_loop import give_way
from rtmpd.util.log_throttle import LogThrottle

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Collection, Mapping

    from rtmpd.live.fanout import Fanout
    from rtmpd.live.stream import Stream

log = logging.getLogger(__name__)

_GOAL = 0.9
"""Memory is freed down to this share of the limit: to do it for each page would be dear."""

_CONNECTIONS_SHARE = 0.5
"""The share of the limit that buffers of connections may take while memory is short."""

_REST_FACTOR = 20
"""After a round the guard rests so many times as long as the round computed: it takes at most a twentieth of a core."""

_FAR_SHARE = 0.02
"""Growth by this share of the limit ends a rest: to read and send as much media costs more than another round."""

_ERROR_REST_S = 0.05
_SLICE_S = 0.003
_SELDOM = 4  # sweeps from one count of the buffers of connections to the next: it takes 4 µs for each
_COUNTED = 2500  # connections for which one sweep more goes by
_BLOCK = 64  # connections between two looks at the clock
_PRESSED_S = 10.0
"""How long new publishes are refused after join points had to be forgotten: another stream would only make things worse."""


class Holder(Protocol):
    """A connection: its buffers take memory."""

    @property
    def peer(self) -> str:
        """The client's address and port."""

    @property
    def ending(self) -> bool:
        """Whether it has been closed, so that its memory will be free in a moment."""

    @property
    def dispensability(self) -> int:
        """Those with the most memory, times this, are closed first."""

    def held_bytes(self) -> int:
        """Return how much memory its buffers take."""

    def close(self, reason: CloseReason) -> None:
        """Close it. Must not wait."""


class MemoryGuard:
    """Watches the pages of all streams and the buffers of all connections.

    Args:
        streams: The streams, by key.
        connections: The connections.
        counters: Counts what happens.
        limit_bytes: How much memory all of them may take; 0: without a limit.

    Attributes:
        limit_bytes: Likewise; see `reload`.
        connections: The connections.
        connection_bytes: The memory of the buffers of connections, by the last count, and by how much they have grown since.
    """

    def __init__(
        self, streams: Mapping[str, Stream], connections: Collection[Holder], counters: Counter[str], limit_bytes: int
    ) -> None:
        self.limit_bytes = limit_bytes
        self.connection_bytes = 0
        self._grown_bytes = 0  # of buffers, since the server started
        self._sweeps_left = 0
        self._wake_bytes = 0  # growth above this wakes the greenlet
        self._streams = streams
        self.connections = connections
        self._counters = counters
        self._excess = Event()
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._computed_s = 0.0  # by the present round
        self._pressed_at_s: float | None = None
        self._throttle = LogThrottle()
        self._closes_throttle = LogThrottle()
        # Since the last log line.
        self._closes = self._closed_bytes = 0
        self._first_closed = ""
        self._peak_bytes = self._backlogs = self._standbys = self._caches = 0
        self._largest = ""

    @staticmethod
    def page_bytes() -> int:
        """Return the memory of all pages."""
        return ALL_PAGES.bytes

    def total_bytes(self) -> int:
        """Return the memory of all pages and buffers."""
        return ALL_PAGES.bytes + self.connection_bytes

    def start(self) -> None:
        """Start watching."""
        self._greenlet = gevent.spawn(self._run)
        ALL_PAGES.alarm = self._excess.set
        self.reload(self.limit_bytes)

    def reload(self, limit_bytes: int) -> None:
        """Apply another limit."""
        self.limit_bytes = limit_bytes
        self._wake_above(limit_bytes)
        self._excess.set()

    def stop(self) -> None:
        """Stop watching."""
        if self._greenlet is not None:
            ALL_PAGES.alarm_bytes = None
            self._greenlet.kill(block=False)
            self._greenlet = None

    def _wake_above(self, total_bytes: int) -> None:
        """Wake the greenlet when there is more memory in use."""
        self._wake_bytes = total_bytes
        if self._greenlet is not None:
            ALL_PAGES.alarm_bytes = max(0, total_bytes - self.connection_bytes) if self.limit_bytes else None
            if self.limit_bytes and self.total_bytes() > total_bytes:
                self._excess.set()

    def note_growth(self) -> None:
        """Take note that a connection holds `GROWTH_BYTES` more than when it was counted. Called in the middle of a read."""
        self._grown_bytes += GROWTH_BYTES
        self.connection_bytes += GROWTH_BYTES
        self._wake_above(self._wake_bytes)

    def sweep(self) -> None:
        """Count the buffers of connections: seldom, unless half of the limit is in use. Once per second."""
        short = self.limit_bytes and self.total_bytes() > self.limit_bytes // 2
        self._sweeps_left -= 1
        if short or self._sweeps_left <= 0:
            self._sweeps_left = _SELDOM + len(self.connections) // _COUNTED
            self.count_connections()

    def count_connections(self) -> list[tuple[int, Holder]]:
        """Count the buffers of all connections, in slices; return each connection with its memory."""
        grown_before = self._grown_bytes
        found: list[tuple[int, Holder]] = []
        begun = time.thread_time()
        for number, connection in enumerate(list(self.connections), 1):
            if not connection.ending:
                found.append((connection.held_bytes(), connection))
            if number % _BLOCK == 0:
                begun = self._slice(begun)
        self._computed_s += time.thread_time() - begun
        # What grew meanwhile may be counted twice, until the next count.
        self.connection_bytes = sum([held for held, _ in found]) + self._grown_bytes - grown_before
        self._wake_above(self._wake_bytes)
        return found

    def _slice(self, begun: float) -> float:
        """Give way if the slice that began at that CPU time is over; return when the present one began."""
        computed_s = time.thread_time() - begun
        if computed_s <= _SLICE_S:
            return begun
        self._computed_s += computed_s
        give_way()
        return time.thread_time()

    def refusal(self, now_s: float) -> str:
        """Return why new publishes are refused now; empty: they are not.

        They are refused above the limit, and for a while after join points had to be forgotten.
        """
        if not self.limit_bytes:
            return ""
        total_bytes = self.total_bytes()
        if total_bytes > self.limit_bytes:
            return f"memory_limit_bytes is {self.limit_bytes}, and streams and connections hold {total_bytes} bytes"
        if self._pressed_at_s is not None and now_s - self._pressed_at_s < _PRESSED_S:
            return f"memory_limit_bytes is {self.limit_bytes}, and was exceeded less than {_PRESSED_S:g} s ago"
        return ""

    def _run(self) -> None:
        while True:
            self._excess.wait()
            self._excess.clear()
            self._expect_growth()
            self._computed_s = 0.0
            try:
                self.shed(time.monotonic())
            except Exception:
                # A bound must stay enforced after an error.
                self._counters["internal_errors"] += 1
                log.exception("internal error: memory_limit_bytes was not enforced this time; the next page tries again")
                gevent.sleep(_ERROR_REST_S)
            self._rest(self._computed_s * _REST_FACTOR)

    def _expect_growth(self) -> None:
        """Let pages wake the guard only after much growth: a round is under way, or has just freed what it could."""
        self._wake_above(max(self.limit_bytes, self.total_bytes()) + int(self.limit_bytes * _FAR_SHARE))

    def _rest(self, rest_s: float) -> None:
        """Wait before the next round, or until memory has grown by much.

        During a rest of a fixed length publishers could exceed the limit by whatever they can send in that time.
        """
        before = self.total_bytes()
        self._expect_growth()
        if not self._excess.wait(rest_s):
            # What could not be freed is no reason for another round, but the next page is.
            grown = self.total_bytes() > before
            self._wake_above(self.limit_bytes)
            if not grown:
                self._excess.clear()

    def shed(self, now_s: float) -> None:
        """Bring the memory of all streams and connections below the limit, as far as that can be."""
        if not self.limit_bytes or self.total_bytes() <= self.limit_bytes:
            return
        self._close_holders(self.count_connections())
        if self.total_bytes() <= self.limit_bytes:
            return
        begun = time.thread_time()
        self._peak_bytes = max(self._peak_bytes, self.total_bytes())
        holders = sorted(self._streams.values(), key=lambda stream: stream.held_bytes(), reverse=True)
        self._largest = holders[0].key if holders else ""
        self._computed_s += time.thread_time() - begun
        self._backlogs += self._free(holders, _shed_backlog, now_s)
        self._standbys += self._forget_standbys(holders)
        caches = self._free(holders, _shed_cache, now_s)
        if caches:
            self._caches += caches
            self._pressed_at_s = now_s
        self._log()

    def _close_holders(self, found: list[tuple[int, Holder]]) -> None:
        """Close connections, those that hold most first, if buffers take more than their share and memory is short."""
        share_bytes = self.limit_bytes * _CONNECTIONS_SHARE
        if self.total_bytes() <= self.limit_bytes or self.connection_bytes <= share_bytes:
            return
        begun = time.thread_time()
        ranks: list[tuple[int, int]] = []
        few_bytes = self.connection_bytes // (4 * len(found) + 1)
        for number, (held, connection) in enumerate(found):
            # Those that hold little would bring little.
            if held >= few_bytes:
                ranks.append((held * connection.dispensability, number))
            if number % _BLOCK == 0:
                begun = self._slice(begun)
        ranks.sort(reverse=True)
        for _, number in ranks:
            held, connection = found[number]
            if self.connection_bytes <= share_bytes or self.total_bytes() <= self.limit_bytes * _GOAL:
                break
            if not connection.ending:
                self._counters["memory_closes"] += 1
                self._first_closed = self._first_closed or connection.peer
                self._closes += 1
                self._closed_bytes += held
                self.connection_bytes -= held
                connection.close(CloseReason(CloseKind.EXPELLED, f"memory_limit_bytes is exceeded, and it holds {held} bytes"))
            begun = self._slice(begun)
        self._computed_s += time.thread_time() - begun
        if self._closes and self._closes_throttle.due():
            log.warning(
                "memory_limit_bytes is %d, and buffers of connections took more than half of it: %d connections, which held %d "
                "bytes, were closed, first that of %s; now streams and connections hold %d bytes",
                self.limit_bytes,
                self._closes,
                self._closed_bytes,
                self._first_closed,
                self.total_bytes(),
            )
            self._closes = self._closed_bytes = 0
            self._first_closed = ""

    def _free(self, holders: list[Stream], shed: Callable[[Fanout, float], bool], now_s: float) -> int:
        """Let streams free pages, one after the other, until it is enough; return how many did."""
        shedders = 0
        begun = time.thread_time()
        for stream in holders:
            if self.total_bytes() <= self.limit_bytes * _GOAL:
                break
            # Each of its outputs, and not only the first that can free pages.
            if sum(shed(output.fanout, now_s) for output in stream.outputs):
                self._counters["memory_sheds"] += 1
                shedders += 1
            begun = self._slice(begun)
        self._computed_s += time.thread_time() - begun
        return shedders

    def _forget_standbys(self, holders: list[Stream]) -> int:
        """Free what is kept of sources that stand by, until it is enough; return in how many streams."""
        freed = 0
        for stream in holders:
            if self.total_bytes() <= self.limit_bytes * _GOAL:
                break
            freed += stream.forget_standbys()
        return freed

    def _log(self) -> None:
        if not self._throttle.due():
            return
        log.warning(
            "memory_limit_bytes is %d, and streams and connections held up to %d bytes, most of all %s: slow players skipped "
            "media in %d streams, %d streams freed what they kept of sources that stand by, and %d what they kept for new "
            "players; now they hold %d bytes",
            self.limit_bytes,
            self._peak_bytes,
            self._largest or "streams that have ended",
            self._backlogs,
            self._standbys,
            self._caches,
            self.total_bytes(),
        )
        self._peak_bytes = self._backlogs = self._standbys = self._caches = 0


# No local may hold a page here: it would keep all of the log behind it.


def _shed_backlog(fanout: Fanout, now_s: float) -> bool:
    """Move players that are behind the join point there, or let them wait for one; return whether there were any."""
    stream_log = fanout.log
    slow = [each for each in fanout.lagging if each.page is not None and _is_far(fanout, each.position)]
    if stream_log.join_page is None:
        for subscriber in slow:
            fanout.skip_and_wait(subscriber, now_s)
        return bool(slow)
    behind = [each for each in slow if each.position < stream_log.join_position]
    for subscriber in behind:
        fanout.skip(subscriber)
    return bool(behind)


def _shed_cache(fanout: Fanout, now_s: float) -> bool:
    """Forget the join point, and move the players that are still there; return whether there was one far back."""
    stream_log = fanout.log
    if stream_log.join_page is None or not _is_far(fanout, stream_log.join_position):
        return False
    stream_log.forget_join_point()
    _shed_backlog(fanout, now_s)
    return True


def _is_far(fanout: Fanout, position: int) -> bool:
    """Whether a place keeps more pages than a player in sync does: otherwise nothing would be freed."""
    stream_log = fanout.log
    return stream_log.position - position > stream_log.tail.size
