"""Keeping the memory of all streams' logs below a limit.

When it is above, streams shed: those that hold most first give up what slow players have not taken yet, then what they keep for
new players. Who keeps up loses nothing by that. A page that is added above the limit wakes a greenlet; nothing here runs
otherwise. Imports gevent and the stream's type; knows no session.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event

from rtmpd.live.pages import ALL_PAGES
from rtmpd.util.event_loop import give_way

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping

    from rtmpd.live.fanout import Fanout
    from rtmpd.live.stream import Stream

__all__ = ["MemoryGuard", "held_bytes"]

log = logging.getLogger(__name__)

_GOAL = 0.9
"""It is shed down to this share of the limit: to shed for each page would be dear."""

_PAUSE_S = 0.05
_SLICE_S = 0.003
_SAY_S = 10.0
_PRESSED_S = 10.0
"""How long after join points had to go another stream would only make things worse."""


def held_bytes(stream: Stream) -> int:
    """Return the memory of a stream's logs."""
    held = sum(fanout.wirelog.account.bytes for fanout in stream.fanouts)
    return held + (stream.flvlog.account.bytes if stream.flvlog is not None else 0)


class MemoryGuard:
    """Watches the pages of all streams.

    Args:
        streams: Those that there are.
        counters: Where it is counted what happens.
        limit_bytes: How much their pages may take; 0: as much as they like.

    Attributes:
        limit_bytes: Likewise; see `reload`.
    """

    def __init__(self, streams: Mapping[str, Stream], counters: Counter[str], limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._streams = streams
        self._counters = counters
        self._excess = Event()
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._pressed_at_s: float | None = None
        self._said_at_s: float | None = None
        # Since the last line of the log.
        self._peak_bytes = self._backlogs = self._caches = 0
        self._largest = ""

    @staticmethod
    def total_bytes() -> int:
        """Return the memory of all pages."""
        return ALL_PAGES.bytes

    def start(self) -> None:
        """Begin to watch."""
        self._greenlet = gevent.spawn(self._run)
        ALL_PAGES.alarm = self._excess.set
        self.reload(self.limit_bytes)

    def reload(self, limit_bytes: int) -> None:
        """Watch another limit."""
        self.limit_bytes = limit_bytes
        if self._greenlet is not None:
            ALL_PAGES.alarm_bytes = limit_bytes or None
            self._excess.set()

    def stop(self) -> None:
        """Watch no more."""
        if self._greenlet is not None:
            ALL_PAGES.alarm_bytes = None
            self._greenlet.kill(block=False)
            self._greenlet = None

    def refusal(self, now_s: float) -> str:
        """Return why nobody else may publish now; empty: they may.

        That is above the limit, and for a while after streams had to give up what they keep for new players.
        """
        if not self.limit_bytes:
            return ""
        total_bytes = self.total_bytes()
        if total_bytes > self.limit_bytes:
            return f"memory_limit_bytes is {self.limit_bytes}, and the logs of streams take {total_bytes}"
        if self._pressed_at_s is not None and now_s - self._pressed_at_s < _PRESSED_S:
            return f"memory_limit_bytes is {self.limit_bytes}, and the logs of streams have just had to be cut to fit"
        return ""

    def _run(self) -> None:
        while True:
            self._excess.wait()
            self._excess.clear()
            try:
                self.shed(time.monotonic())
            except Exception:
                # Whoever is in charge of a bound must not end.
                self._counters["internal_errors"] += 1
                log.exception("internal error in shedding memory")
            gevent.sleep(_PAUSE_S)

    def shed(self, now_s: float) -> None:
        """Bring the memory of all streams below the limit, as far as that can be."""
        if not self.limit_bytes or self.total_bytes() <= self.limit_bytes:
            return
        self._peak_bytes = max(self._peak_bytes, self.total_bytes())
        holders = sorted(self._streams.values(), key=held_bytes, reverse=True)
        self._largest = holders[0].key if holders else ""
        self._backlogs += self._let(holders, _shed_backlog, now_s)
        caches = self._let(holders, _shed_cache, now_s)
        if caches:
            self._caches += caches
            self._pressed_at_s = now_s
        self._say(now_s)

    def _let(self, holders: list[Stream], shed: Callable[[Fanout, float], bool], now_s: float) -> int:
        """Let streams give something up, one after the other, until it is enough; return how many did."""
        shedders = 0
        begun = time.thread_time()
        for stream in holders:
            if self.total_bytes() <= self.limit_bytes * _GOAL:
                break
            # Each of its fan-outs, and not only the first that has something to give.
            if sum(shed(fanout, now_s) for fanout in stream.fanouts):
                self._counters["memory_sheds"] += 1
                shedders += 1
            if time.thread_time() - begun > _SLICE_S:
                give_way()
                begun = time.thread_time()
        return shedders

    def _say(self, now_s: float) -> None:
        if self._said_at_s is not None and now_s - self._said_at_s < _SAY_S:
            return
        self._said_at_s = now_s
        log.warning(
            "memory_limit_bytes is %d, and streams held up to %d, most of all %s: %d times a stream gave up what slow players "
            "had not taken, %d times what it kept for new ones; now they hold %d",
            self.limit_bytes,
            self._peak_bytes,
            self._largest or "those that have ended",
            self._backlogs,
            self._caches,
            self.total_bytes(),
        )
        self._peak_bytes = self._backlogs = self._caches = 0


# No local may hold a page here: it would keep all of the log behind it.


def _shed_backlog(fanout: Fanout, now_s: float) -> bool:
    """Move players that are behind the join point there, or let them wait for one; return whether there were any."""
    wirelog = fanout.wirelog
    slow = [each for each in fanout.alone if each.page is not None and _is_far(fanout, each.position)]
    if wirelog.join_page is None:
        for subscriber in slow:
            fanout.skip_and_wait(subscriber, now_s)
        return bool(slow)
    behind = [each for each in slow if each.position < wirelog.join_position]
    for subscriber in behind:
        fanout.skip(subscriber)
    return bool(behind)


def _shed_cache(fanout: Fanout, now_s: float) -> bool:
    """Give up the join point, and with it the players that are still there; return whether there was one far back."""
    wirelog = fanout.wirelog
    if wirelog.join_page is None or not _is_far(fanout, wirelog.join_position):
        return False
    wirelog.forget_join_point()
    _shed_backlog(fanout, now_s)
    return True


def _is_far(fanout: Fanout, position: int) -> bool:
    """Whether a place keeps more pages than who is level does: with less to be had, nothing would be won."""
    wirelog = fanout.wirelog
    return wirelog.position - position > wirelog.tail.size
