"""The figures of the server, its streams and its relays, read from the hub. Independent of any output format."""

from __future__ import annotations

import time
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol, TypeVar

import gevent

from rtmpd.services.metrics.catalogue import GAUGES

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator
    from typing import Self

    from rtmpd.hub import Hub, RelayFigures
    from rtmpd.live.stream import Stream

__all__ = ["OTHER", "Overview", "Pace", "RelaySeries", "Series", "StreamSeries", "label", "relay_series", "stream_series"]

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
        self.publishers = sum(stream.publisher is not None for stream in hub.streams.values())
        self.subscribers = sum(len(stream.players) for stream in hub.streams.values())
        self.uptime_s = time.monotonic() - since_s
        self.gauges = {name: hub.gauges[name]() if name in hub.gauges else 0.0 for name in GAUGES}


class Series(Protocol):
    """The figures under one set of label values. A figure that is None is unknown, and not exported."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The label values."""

    def add(self, other: Self) -> None:
        """Add the figures of *other*, as far as they can be summed."""


AnySeries = TypeVar("AnySeries", bound=Series)


@dataclass(slots=True)
class StreamSeries:
    """The figures of a stream, or of several streams together.

    Attributes:
        published: The number of streams that have a publisher.
    """

    label: str
    published: int = 0
    players: int = 0
    bitrate_bps: float = 0.0
    fps: float | None = None
    keyframe_age_s: float | None = None
    keyframe_interval_s: float | None = None
    lag_s: float = 0.0
    drops: int | None = None
    skips: int | None = None
    messages_dropped: int | None = None
    frames_disposed: int | None = None
    disconnects: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The value of the label ``stream``."""
        return (self.label,)

    def add(self, other: StreamSeries) -> None:
        """Add the gauges of another stream; the lag is the worst one.

        Counters are not summed: the sum would fall when one of the streams ends, which looks like a restart.
        """
        self.published += other.published
        self.players += other.players
        self.bitrate_bps += other.bitrate_bps
        self.lag_s = max(self.lag_s, other.lag_s)


@dataclass(slots=True)
class RelaySeries:
    """The figures of a relay, or of several relays together."""

    stream: str
    destination: str
    up: int = 0
    state: str = ""
    bytes_sent: int | None = None
    messages_sent: int | None = None
    messages_dropped: int | None = None
    reconnects: int | None = None
    lag_s: float = 0.0

    @property
    def labels(self) -> tuple[str, ...]:
        """The values of the labels ``stream`` and ``destination``."""
        return self.stream, self.destination

    def add(self, other: RelaySeries) -> None:
        """Add the gauges of another relay; the lag is the worst one."""
        self.up += other.up
        self.lag_s = max(self.lag_s, other.lag_s)


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


def stream_series(hub: Hub, limit: int, pace: Pace) -> list[StreamSeries]:
    """Return the figures of the *limit* oldest streams, and of all others together if there are more.

    Published streams come first: players that wait for unpublished names must not take their places. Streams may come and go
    meanwhile.
    """
    streams = list(hub.streams.values())
    if len(streams) > limit:
        # The dict is ordered by age, and the sort is stable.
        streams.sort(key=lambda stream: not stream.announced)
    return _limited(map(_of_stream, streams), StreamSeries(OTHER), limit, pace)


def relay_series(relays: Iterable[RelayFigures], limit: int, pace: Pace) -> list[RelaySeries]:
    """Return the figures of the first *limit* relays, and of all others together if there are more."""
    return _limited(map(_of_relay, list(relays)), RelaySeries(OTHER, OTHER), limit, pace)


def _limited(series: Iterator[AnySeries], others: AnySeries, limit: int, pace: Pace) -> list[AnySeries]:
    """Return the first *limit* series with different labels, followed by *others*, to which all further series are added."""
    found: dict[tuple[str, ...], AnySeries] = {}
    further = False
    for each in series:
        if len(found) < limit and each.labels not in found:
            found[each.labels] = each
        else:
            others.add(each)
            further = True
        pace()
    return [*found.values(), others] if further else list(found.values())


def _of_stream(stream: Stream) -> StreamSeries:
    vitals, tally = stream.vitals, stream.fanout.tally
    published = stream.publisher is not None
    return StreamSeries(
        label=label(stream.key),
        published=int(published),
        players=len(stream.players),
        bitrate_bps=vitals.bitrate,
        fps=vitals.fps,
        keyframe_age_s=time.monotonic() - vitals.keyframe_at if published and vitals.keyframes else None,
        keyframe_interval_s=vitals.keyframe_interval_ms / 1000 if published and vitals.keyframe_interval_ms else None,
        lag_s=max(fanout.lag_ms() for fanout in stream.fanouts) / 1000,
        drops=tally.drops,
        skips=tally.skips,
        messages_dropped=tally.dropped,
        frames_disposed=tally.disposed,
        disconnects=tally.disconnects,
        bytes_in=stream.bytes_in,
        bytes_out=tally.bytes_sent,
    )


def _of_relay(relay: RelayFigures) -> RelaySeries:
    return RelaySeries(
        label(relay.stream_key),
        label(relay.destination),
        up=int(relay.state == "up"),
        state=relay.state,
        bytes_sent=relay.bytes_sent,
        messages_sent=relay.messages_sent,
        messages_dropped=relay.messages_dropped,
        reconnects=relay.reconnects,
        lag_s=relay.lag_s,
    )
