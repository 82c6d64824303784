"""The figures of the server, its streams, their sources and its relays, read from the hub. Independent of any output format."""

from __future__ import annotations

import operator
import time
from collections import Counter
from dataclasses import asdict
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent

from rtmpd.live.selection import SourceRole
from rtmpd.services.metrics.catalogue import GAUGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rtmpd.hub import Hub, RelayFigures
    from rtmpd.live.stream import Stream

OTHER = "(other)"
"""The label of all streams without series of their own. It can't be a stream key: those contain a slash."""

_LABEL_LIMIT = 200
_SLICE_S = 0.002
_REST_S = 0.001
"""Not 0: gevent runs up to fifty switches of that kind before it polls timers and sockets again. Measured: slices of 2 ms then
held the event loop for 100 ms."""


class Pace:
    """Divides long work into slices: each call sleeps for a moment if the current slice is used up."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start a slice: the event loop has just run."""
        self._begun = time.perf_counter()

    def __call__(self) -> None:
        """Sleep for 1 ms if the slice has lasted longer than 2 ms."""
        if time.perf_counter() - self._begun > _SLICE_S:
            gevent.sleep(_REST_S)
            self.restart()


class Overview:
    """The figures of the whole server, all of the same moment.

    Attributes:
        totals: The counters of the hub, including those of live streams and of the event bus.
        drops: Skips and disconnects of players that were too slow.
    """

    def __init__(self, hub: Hub, since_s: float) -> None:
        self.totals: Counter[str] = hub.totals()
        self.totals["internal_errors"] += hub.bus.failures
        self.drops = sum(self.totals[name] for name in ("player_skips", "players_disconnected", "players_stalled"))
        self.connections = len(hub.connections)
        self.streams = len(hub.streams)
        self.publishers = sum(len(stream.ingest.publishers) for stream in hub.streams.values())
        self.subscribers = sum(len(stream.players) for stream in hub.streams.values())
        self.uptime_s = time.monotonic() - since_s
        self.gauges = {name: hub.gauges[name]() if name in hub.gauges else 0.0 for name in GAUGES}


class Series(NamedTuple):
    """The figures under one set of label values: one stream, source or relay, or all others together. None: not known."""

    labels: tuple[str, ...]
    figures: dict[str, Any]


def label(text: str) -> str:
    """Return a name from the wire as a label value of valid UTF-8 and at most 200 characters.

    A longer name is cut and ends in a digest of the whole, so that names with the same beginning stay different.
    """
    data = text.encode("utf-8", "backslashreplace")
    text = data.decode("utf-8")
    if len(text) <= _LABEL_LIMIT:
        return text
    digest = blake2b(data, digest_size=6).hexdigest()
    return f"{text[: _LABEL_LIMIT - len(digest) - 3]}...{digest}"


def stream_series(hub: Hub, limit: int, pace: Pace) -> list[Series]:
    """Return the figures of the *limit* oldest streams, and of all others together if there are more.

    Published streams come first: players that wait for unpublished names must not take their places. Streams may come and go
    meanwhile.
    """
    others = Series((OTHER,), {"published": 0, "players": 0, "bitrate_bps": 0.0, "lag_s": 0.0})
    return _limited(map(_of_stream, _in_order(hub, limit)), others, limit, pace)


def _in_order(hub: Hub, limit: int) -> list[Stream]:
    streams = list(hub.streams.values())
    if len(streams) > limit:
        # The dict is ordered by age, and the sort is stable.
        streams.sort(key=lambda stream: not stream.announced)
    return streams


def source_series(hub: Hub, limit: int, pace: Pace) -> list[Series]:
    """Return the figures of the sources of those streams that have series of their own."""
    found: dict[tuple[str, ...], Series] = {}
    for stream in _in_order(hub, limit)[:limit]:
        for each in _of_sources(stream):
            found.setdefault(each.labels, each)
        pace()
    return list(found.values())


def _of_sources(stream: Stream) -> Iterator[Series]:
    """Yield the figures of each source: its health is judged only beside others.

    A label is the role, and for the second source of that role and later ones a number: that of a publish would make series
    without end.
    """
    lanes, roles = stream.ingest.lanes, Counter[str]()
    for lane in lanes:
        roles[lane.role] += 1
        name = str(lane.role) if roles[lane.role] == 1 else f"{lane.role} {roles[lane.role]}"
        judged = len(lanes) > 1 and lane.role is not SourceRole.SLATE
        fault = lane.health.fault if judged else None
        yield Series(
            (label(stream.key), name),
            {
                "active": int(lane is stream.ingest.active),
                "healthy": int(fault is None) if judged else None,
                "fault": fault.value if fault is not None else None,
                "bitrate_bps": lane.source.stats.bitrate if lane.role is not SourceRole.SLATE else None,
            },
        )


def relay_series(relays: Iterable[RelayFigures], limit: int, pace: Pace) -> list[Series]:
    """Return the figures of the first *limit* relays, and of all others together if there are more."""
    return _limited(map(_of_relay, list(relays)), Series((OTHER, OTHER), {"up": 0, "lag_s": 0.0}), limit, pace)


def _limited(series: Iterator[Series], others: Series, limit: int, pace: Pace) -> list[Series]:
    """Return the first *limit* series with different labels; then *others* with the sums (of lags, the largest) of all others.

    Counters are not added: the sum would fall when one of the streams ends, which looks like a restart.
    """
    found: dict[tuple[str, ...], Series] = {}
    sums = others.figures
    further = False
    for each in series:
        if len(found) < limit and each.labels not in found:
            found[each.labels] = each
        else:
            further = True
            for name, value in sums.items():
                combine = max if name == "lag_s" else operator.add
                sums[name] = combine(value, each.figures[name])
        pace()
    return [*found.values(), others] if further else list(found.values())


def _of_stream(stream: Stream) -> Series:
    stats, counters = stream.stats, stream.counters
    active = stream.source is not None
    return Series(
        (label(stream.key),),
        {
            "published": int(bool(stream.ingest.publishers)),
            "players": len(stream.players),
            "bitrate_bps": stats.bitrate,
            "fps": stats.fps,
            "keyframe_age_s": time.monotonic() - stats.keyframe_at if active and stats.keyframes else None,
            "keyframe_interval_s": stats.keyframe_interval_ms / 1000 if active and stats.keyframe_interval_ms else None,
            "lag_s": stream.lag_ms() / 1000,
            "drops": counters.drops,
            "skips": counters.skips,
            "messages_dropped": counters.dropped,
            "frames_disposed": counters.disposed,
            "disconnects": counters.disconnects,
            "bytes_in": stream.received.bytes,
            "bytes_out": counters.bytes_sent,
            "source_count": len(stream.ingest.lanes),
            "source_switches": stream.ingest.switches,
            "copy_frames_filled": stream.ingest.merged.filled,
        },
    )


def _of_relay(relay: RelayFigures) -> Series:
    figures = asdict(relay)
    labels = label(figures.pop("stream_key")), label(figures.pop("destination"))
    return Series(labels, {"up": int(relay.state == "up"), **figures})
