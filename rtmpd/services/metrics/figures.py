"""What is told of single streams and relays: as many as the configuration allows, the rest together.

Imports the hub's types; waits only where its `Pace` does, so streams may come and go meanwhile.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rtmpd.hub import Hub, RelayFigures
    from rtmpd.live.stream import Stream
    from rtmpd.services.metrics.pace import Pace

__all__ = ["OTHER", "RelaySeries", "StreamSeries", "label", "relay_series", "stream_series"]

OTHER = "(other)"
"""Stands for all streams without figures of their own. No key: that has a slash."""

_LABEL_LIMIT = 200


def label(text: str) -> str:
    """Return a name from the wire as a label: without bytes that are no UTF-8, and not too long.

    A long one is cut, and marked with a digest of the whole, so that two with the same beginning stay two.
    """
    data = text.encode("utf-8", "backslashreplace")
    text = data.decode("utf-8")
    if len(text) <= _LABEL_LIMIT:
        return text
    digest = blake2b(data, digest_size=6).hexdigest()
    return f"{text[: _LABEL_LIMIT - len(digest) - 3]}...{digest}"


@dataclass(slots=True)
class StreamSeries:
    """The figures of a stream, or of all others together: then there are only those that can be added up, and the worst lag.

    Attributes:
        label: What it is called.
        published: Whether somebody publishes it; of the others: how many are.
        keyframe_age_s, keyframe_interval_s: None while they are not known.
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


@dataclass(slots=True)
class RelaySeries:
    """The figures of a relay, or of all others together."""

    stream: str
    destination: str
    up: int = 0
    state: str = ""
    bytes_sent: int | None = None
    messages_sent: int | None = None
    messages_dropped: int | None = None
    reconnects: int | None = None
    lag_s: float = 0.0


def _series(stream: Stream, name: str, now_s: float) -> StreamSeries:
    vitals, tally = stream.vitals, stream.fanout.tally
    published = stream.publisher is not None
    return StreamSeries(
        label=name,
        published=int(published),
        players=len(stream.players),
        bitrate_bps=vitals.bitrate,
        fps=vitals.fps,
        keyframe_age_s=now_s - vitals.keyframe_at if published and vitals.keyframes else None,
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


def stream_series(hub: Hub, pace: Pace) -> list[StreamSeries]:
    """Return the figures of the streams that have lived longest; of the others together, if there are more than allowed.

    Published streams go first: players that wait for names which nobody publishes must not take the places.
    """
    limit = hub.config.metrics.stream_series_limit
    streams = list(hub.streams.values())
    if len(streams) > limit:
        # The dict is in the order of coming.
        streams = list(chain((each for each in streams if each.announced), (each for each in streams if not each.announced)))
    found: dict[str, StreamSeries] = {}
    others: StreamSeries | None = None
    for stream in streams:
        pace()
        name = label(stream.key)
        series = _series(stream, name, time.monotonic())
        if len(found) < limit and name not in found:
            found[name] = series
            continue
        # Counters are not added up: the sum would fall when one of these streams ends, which looks like a restart.
        others = others or StreamSeries(OTHER)
        others.published += series.published
        others.players += series.players
        others.bitrate_bps += series.bitrate_bps
        others.lag_s = max(others.lag_s, series.lag_s)
    return list(found.values()) if others is None else [*found.values(), others]


def relay_series(relays: Iterable[RelayFigures], limit: int, pace: Pace) -> list[RelaySeries]:
    """Return the figures of the first relays; of the others together, if there are more than *limit*."""
    found: dict[tuple[str, str], RelaySeries] = {}
    others: RelaySeries | None = None
    for relay in list(relays):
        pace()
        name = (label(relay.stream_key), label(relay.destination))
        up = int(relay.state == "up")
        if len(found) < limit and name not in found:
            found[name] = RelaySeries(
                *name,
                up=up,
                state=relay.state,
                bytes_sent=relay.bytes_sent,
                messages_sent=relay.messages_sent,
                messages_dropped=relay.messages_dropped,
                reconnects=relay.reconnects,
                lag_s=relay.lag_s,
            )
            continue
        others = others or RelaySeries(OTHER, OTHER)
        others.up += up
        others.lag_s = max(others.lag_s, relay.lag_s)
    return list(found.values()) if others is None else [*found.values(), others]
