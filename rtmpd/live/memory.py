"""Keeping the memory of all streams' logs below a limit.

Above the limit streams free pages, those that hold most first: what slow players have not been sent yet, then what is kept for
new players. Players that keep up lose nothing by that. A page that is added above the limit wakes a greenlet; nothing here runs
otherwise.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event

from rtmpd.live.pages import ALL_PAGES
from rtmpd.util.event_loop import give_way
from rtmpd.util.log_throttle import LogThrottle

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping

    from rtmpd.live.fanout import Fanout
    from rtmpd.live.stream import Stream

log = logging.getLogger(__name__)

_GOAL = 0.9
"""Memory is freed down to this share of the limit: to do it for each page would be dear."""

_REST_FACTOR = 20
"""After a round the guard rests so many times as long as the round computed: it takes at most a twentieth of a core."""

_FAR_SHARE = 0.02
"""Growth by this share of the limit ends a rest: to read and send as much media costs more than another round."""

_ERROR_REST_S = 0.05
_SLICE_S = 0.003
_PRESSED_S = 10.0
"""How long new publishes are refused after join points had to be forgotten: another stream would only make things worse."""


class MemoryGuard:
    """Watches the pages of all streams.

    Args:
        streams: The streams, by key.
        counters: Counts what happens.
        limit_bytes: How much memory their pages may take; 0: without a limit.

    Attributes:
        limit_bytes: Likewise; see `reload`.
    """

    def __init__(self, streams: Mapping[str, Stream], counters: Counter[str], limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._streams = streams
        self._counters = counters
        self._excess = Event()
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._computed_s = 0.0  # by the present round
        self._pressed_at_s: float | None = None
        self._throttle = LogThrottle()
        # Since the last log line.
        self._peak_bytes = self._backlogs = self._caches = 0
        self._largest = ""

    @staticmethod
    def total_bytes() -> int:
        """Return the memory of all pages."""
        return ALL_PAGES.bytes

    def start(self) -> None:
        """Start watching."""
        self._greenlet = gevent.spawn(self._run)
        ALL_PAGES.alarm = self._excess.set
        self.reload(self.limit_bytes)

    def reload(self, limit_bytes: int) -> None:
        """Apply another limit."""
        self.limit_bytes = limit_bytes
        if self._greenlet is not None:
            ALL_PAGES.alarm_bytes = limit_bytes or None
            self._excess.set()

    def stop(self) -> None:
        """Stop watching."""
        if self._greenlet is not None:
            ALL_PAGES.alarm_bytes = None
            self._greenlet.kill(block=False)
            self._greenlet = None

    def refusal(self, now_s: float) -> str:
        """Return why new publishes are refused now; empty: they are not.

        They are refused above the limit, and for a while after join points had to be forgotten.
        """
        if not self.limit_bytes:
            return ""
        total_bytes = self.total_bytes()
        if total_bytes > self.limit_bytes:
            return f"memory_limit_bytes is {self.limit_bytes}, and the logs of streams take {total_bytes} bytes"
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
        if self._greenlet is not None and self.limit_bytes:
            far_bytes = int(self.limit_bytes * _FAR_SHARE)
            ALL_PAGES.alarm_bytes = max(self.limit_bytes, self.total_bytes()) + far_bytes

    def _rest(self, rest_s: float) -> None:
        """Wait before the next round, or until memory has grown by much.

        During a rest of a fixed length publishers could exceed the limit by whatever they can send in that time.
        """
        before = self.total_bytes()
        self._expect_growth()
        if not self._excess.wait(rest_s) and self._greenlet is not None and self.limit_bytes:
            ALL_PAGES.alarm_bytes = self.limit_bytes
            if self.total_bytes() > max(self.limit_bytes, before):
                self._excess.set()

    def shed(self, now_s: float) -> None:
        """Bring the memory of all streams below the limit, as far as that can be."""
        if not self.limit_bytes or self.total_bytes() <= self.limit_bytes:
            return
        begun = time.thread_time()
        self._peak_bytes = max(self._peak_bytes, self.total_bytes())
        holders = sorted(self._streams.values(), key=lambda stream: stream.held_bytes(), reverse=True)
        self._largest = holders[0].key if holders else ""
        self._computed_s += time.thread_time() - begun
        self._backlogs += self._free(holders, _shed_backlog, now_s)
        caches = self._free(holders, _shed_cache, now_s)
        if caches:
            self._caches += caches
            self._pressed_at_s = now_s
        self._log()

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
            computed_s = time.thread_time() - begun
            if computed_s > _SLICE_S:
                self._computed_s += computed_s
                give_way()
                begun = time.thread_time()
        self._computed_s += time.thread_time() - begun
        return shedders

    def _log(self) -> None:
        if not self._throttle.due():
            return
        log.warning(
            "memory_limit_bytes is %d, and streams held up to %d bytes, most of all %s: slow players skipped media in %d "
            "streams, and %d streams freed what they kept for new players; now they hold %d bytes",
            self.limit_bytes,
            self._peak_bytes,
            self._largest or "streams that have ended",
            self._backlogs,
            self._caches,
            self.total_bytes(),
        )
        self._peak_bytes = self._backlogs = self._caches = 0


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
