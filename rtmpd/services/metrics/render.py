"""Metrics as text, family by family, and as JSON, stream by stream, without holding the event loop.

Imports prometheus-client.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from prometheus_client import generate_latest

from rtmpd.services.metrics.collector import BUILD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from rtmpd.services.metrics.collector import Overview
    from rtmpd.services.metrics.figures import RelaySeries, StreamSeries
    from rtmpd.services.metrics.pace import Pace

__all__ = ["render_json", "render_text"]

_BLOCK = 50
"""Samples that are rendered at a time."""


class _One:
    """As much of a registry as `generate_latest` asks for, with one family."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]


def render_text(registry: CollectorRegistry, pace: Pace) -> bytes:
    """Return all families of a registry in Prometheus's text format."""
    parts = []
    for family in registry.collect():
        pace()
        samples = family.samples
        for start in range(0, max(len(samples), 1), _BLOCK):
            family.samples = samples[start : start + _BLOCK]
            text = generate_latest(_One(family))
            # What it is is said once: in the first two lines.
            parts.append(text.split(b"\n", 2)[2] if start else text)
            pace()
    return b"".join(parts)


def render_json(now: Overview, streams: Iterable[StreamSeries], relays: Iterable[RelaySeries], pace: Pace) -> bytes:
    """Return the figures as go-rtmp's ``/debug/vars`` has them, each stream and relay by itself besides."""
    totals = now.totals
    flat: dict[str, object] = {
        "rtmp_auth_failures_total": totals["auth_failures"],
        "rtmp_auth_successes_total": totals["auth_successes"],
        "rtmp_bytes_egress": totals["bytes_egress"],
        "rtmp_bytes_ingested": totals["bytes_ingested"],
        "rtmp_connections_active": now.connections,
        "rtmp_connections_total": totals["connections"],
        "rtmp_handshake_failures_total": totals["handshake_failures"],
        "rtmp_messages_audio": totals["audio_messages"],
        "rtmp_messages_video": totals["video_messages"],
        "rtmp_publishers_active": now.publishers,
        "rtmp_publishers_total": totals["publishes"],
        "rtmp_recording_errors_total": totals["recording_errors"],
        "rtmp_recordings_active": int(now.gauges["recordings_active"]),
        "rtmp_relay_bytes_sent": totals["relay_bytes_sent"],
        "rtmp_relay_messages_dropped": totals["relay_messages_dropped"],
        "rtmp_relay_messages_sent": totals["relay_messages_sent"],
        "rtmp_server_info": BUILD,
        "rtmp_streams_active": now.streams,
        "rtmp_subscriber_drops_total": now.drops,
        "rtmp_subscribers_active": now.subscribers,
        "rtmp_subscribers_total": totals["plays"],
        "rtmp_uptime_seconds": int(now.uptime_s),
        "rtmp_zombie_connections_total": totals["zombie_connections"],
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in flat.items()]
    found = []
    for stream in streams:
        found.append(f"{json.dumps(stream.label)}: {_object(stream)}")
        pace()
    lines.append(f'"streams": {{{", ".join(found)}}}')
    found = []
    for relay in relays:
        found.append(_object(relay))
        pace()
    lines.append(f'"relays": [{", ".join(found)}]')
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _object(series: StreamSeries | RelaySeries) -> str:
    """Return what is known of a stream or relay."""
    fields = {name: value for name, value in asdict(series).items() if name != "label" and value is not None}
    return json.dumps(fields)
