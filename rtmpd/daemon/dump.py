"""SIGUSR2: the state of the server as log lines: where greenlets wait, services, the streams, and their slowest players.

It is for a server that misbehaves, so it yields to the event loop regularly and its output is bounded. It contains only names,
addresses and numbers, no values.
"""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING
from weakref import WeakSet

from greenlet import greenlet

from rtmpd.live.lane import Mode
from rtmpd.live.subscriber import State
from rtmpd.util.event_loop import give_way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.hub import Hub
    from rtmpd.live.stream import Stream

log = logging.getLogger(__name__)

_STACKS = 40
_FRAMES = 12
_STREAMS = 200
_PLAYERS = 20
"""Players of one stream that are shown: those with the largest lag."""

_BLOCK = 5000  # objects between two yields to the event loop
_Stack = tuple[tuple[str, int, str], ...]


class Dump:
    """Writes the state of the server to the log.

    Args:
        hub: The source of the state.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._early: WeakSet[greenlet] = WeakSet()
        self._writing = False

    def write(self) -> None:
        """Write the lines to the log, as warnings so that every log level shows them. Does nothing while another dump runs."""
        if self._writing:
            return
        self._writing = True
        try:
            for line in self.lines():
                log.warning("%s", line)
        finally:
            self._writing = False

    def remember_greenlets(self) -> None:
        """Remember all greenlets before `gc.freeze`: the collector does not list frozen objects."""
        self._early.update(each for each in gc.get_objects() if isinstance(each, greenlet))

    def lines(self) -> Iterator[str]:
        """Give the lines. Yields to the event loop in between."""
        hub = self._hub
        secure = sum(each.transport.scheme == "rtmps" for each in hub.connections)
        yield f"state: {len(hub.streams)} streams, {len(hub.connections)} connections, {secure} of them RTMPS"
        counters = ", ".join(f"{name} {count}" for name, count in sorted(hub.totals().items()) if count)
        yield f"counted: {counters or 'nothing'}"
        if hub.http_connections:
            kinds = Counter(f"{each.version}{' with TLS' if each.secure else ''}" for each in hub.http_connections)
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            yield f"HTTP connections: {counts}"
        for report in hub.reports:
            yield from report()
            give_way()
        yield from self._greenlets()
        streams = list(hub.streams.values())
        for stream in streams[:_STREAMS]:
            yield from _stream_lines(stream)
            give_way()
        if len(streams) > _STREAMS:
            yield f"and {len(streams) - _STREAMS} more streams"

    def _greenlets(self) -> Iterator[str]:
        objects = iter(gc.get_objects())
        found = set(self._early)
        while block := list(islice(objects, _BLOCK)):
            found.update(each for each in block if isinstance(each, greenlet))
            give_way()
        stacks: Counter[_Stack] = Counter()
        for index, each in enumerate(found):
            stack = _stack_of(each)
            if stack:
                stacks[stack] += 1
            if index % _PLAYERS == 0:
                give_way()
        yield f"{stacks.total()} greenlets wait, in {len(stacks)} places"
        for stack, count in stacks.most_common(_STACKS):
            yield f"greenlets: {count} in {' < '.join(f'{name} {file}:{line}' for file, line, name in stack)}"


def _stack_of(one: greenlet) -> _Stack:
    """Return the stack of a waiting greenlet, innermost frame first; empty if it runs, has ended or has not started."""
    frame = one.gr_frame
    stack: list[tuple[str, int, str]] = []
    while frame is not None and len(stack) < _FRAMES:
        code = frame.f_code
        stack.append(("/".join(code.co_filename.rsplit("/", 2)[-2:]), frame.f_lineno, code.co_name))
        frame = frame.f_back
    return tuple(stack)


def _stream_lines(stream: Stream) -> Iterator[str]:
    published, key = stream.published.log, stream.key
    source = "no source" if stream.source is None else f"published by {stream.source.info.peer}"
    joins = f"{published.position - published.join_position} bytes back" if published.join_page is not None else "none"
    yield (
        f"{key}: {source}, {len(stream.players)} players, {time.monotonic() - stream.created_at:.0f} s, "
        f"log at {published.position}, join point {joins}"
    )
    yield from _source_lines(stream)
    places = []
    for output in stream.outputs:
        for index, subscriber in enumerate(output.fanout.subscribers()):
            page, offset = subscriber.page, subscriber.offset
            if subscriber.state is State.GROUP:
                page, offset = output.fanout.place_of(subscriber)
            behind = output.log.position - page.base - offset if page is not None else 0
            lag_ms = output.log.lag_ms(page, offset) if page is not None else 0
            places.append((behind, lag_ms, subscriber.label, subscriber))
            if index % _BLOCK == _BLOCK - 1:
                give_way()
    places.sort(key=lambda place: place[:3], reverse=True)
    for behind, lag_ms, name, subscriber in places[:_PLAYERS]:
        thin = ", no disposable frames" if subscriber.thin else ""
        full = ", its socket is full" if subscriber.blocked else ""
        yield (
            f"{key}: {name} {subscriber.state.name.lower()}: {behind} bytes and {lag_ms} ms behind, "
            f"{subscriber.skips} skips, {subscriber.dropped} messages dropped{thin}{full}"
        )
    if len(places) > _PLAYERS:
        yield f"{key}: and {len(places) - _PLAYERS} more players and relays, no further behind"


def _source_lines(stream: Stream) -> Iterator[str]:
    """Give a line for each source, if there are several, or one that is not active."""
    ingest = stream.ingest
    if len(ingest.lanes) == 1 and ingest.lanes[0] is ingest.active:
        return
    for lane in ingest.lanes:
        source = lane.source
        peer = f" from {source.info.peer}" if source.info.peer else ""
        where = "is active" if lane is ingest.active else "is a copy" if lane.mode is Mode.COPY else "stands by"
        copy = ", merged with its copies" if lane is ingest.active and lane.mode is Mode.COPY else ""
        kept = f", {lane.held_bytes} bytes kept{'' if lane.has_join_point else ' without a keyframe'}" if lane.log else ""
        yield (
            f"{stream.key}: {lane.role}{peer} (id {source.number}) {where}: {lane.health.text or 'healthy'}, "
            f"{source.stats.bitrate / 1000:.0f} kbit/s{copy}{kept}"
        )
    merged = ingest.merged
    if ingest.switches or ingest.copies_joined:
        yield (
            f"{stream.key}: {ingest.switches} changes of the active source, {ingest.copies_joined} copies joined, "
            f"{ingest.copies_broken} broken; of their frames {merged.duplicates} duplicates, {merged.filled} filled in, "
            f"{merged.mismatches} mismatches, {merged.late} late"
        )
