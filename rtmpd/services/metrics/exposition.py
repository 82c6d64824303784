"""The figures as metric families in Prometheus's text format, and as JSON, without holding the event loop."""

from __future__ import annotations

import json
import platform
import time
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

import gevent
from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

import rtmpd
from rtmpd.services.metrics.catalogue import COUNTERS, FAILURES, GAUGES, RELAYS, SOURCES, STREAMS, SWITCHES
from rtmpd.services.metrics.figures import Overview, relay_series, source_series, stream_series
from rtmpd.util import speed
from rtmpd.util.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from rtmpd.hub import Hub
    from rtmpd.services.metrics.catalogue import Column
    from rtmpd.services.metrics.figures import Pace, Series

_BUILD = {
    "version": rtmpd.__version__,
    "code": speed.IN_USE,
    "python": platform.python_version(),
    "gevent": gevent.__version__,
}
_BLOCK = 50
"""The number of samples that are rendered at a time."""
_LAG_INTERVAL_S = 0.1
_LAG_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_PROCESS_S = 2.0


class HubCollector(Collector):
    """Collects the families of the server, its streams, their sources and its relays.

    Args:
        hub: The hub.
        limit: The ``stream_series_limit``.
        pace: Lets the event loop run between samples.

    Attributes:
        limit: See above; may be changed at any time.
    """

    def __init__(self, hub: Hub, limit: int, pace: Pace) -> None:
        self.limit = limit
        self._hub = hub
        self._pace = pace
        self._since_s = time.monotonic()

    def overview(self) -> Overview:
        """Return the present figures of the whole server."""
        return Overview(self._hub, self._since_s)

    def streams(self) -> list[Series]:
        """Return the figures of streams."""
        return stream_series(self._hub, self.limit, self._pace)

    def sources(self) -> list[Series]:
        """Return the figures of the sources of streams."""
        return source_series(self._hub, self.limit, self._pace)

    def relays(self) -> list[Series]:
        """Return the figures of relays."""
        return relay_series(self._hub.relays(), self.limit, self._pace)

    def collect(self) -> Iterator[Metric]:
        """Yield each family. The event loop may run in between."""
        yield InfoMetricFamily("rtmpd_build", "Versions of rtmpd, Python and gevent; compiled or pure.", value=_BUILD)
        now = self.overview()
        yield GaugeMetricFamily("rtmp_uptime_seconds", "Time since the server started.", now.uptime_s)
        yield GaugeMetricFamily("rtmp_connections_active", "Open RTMP connections.", now.connections)
        yield GaugeMetricFamily("rtmp_streams_active", "Streams that have a publisher or wait for one.", now.streams)
        yield GaugeMetricFamily("rtmp_publishers_active", "Active publishers.", now.publishers)
        yield GaugeMetricFamily("rtmp_subscribers_active", "Active players, including those that wait.", now.subscribers)
        for name, gauge in GAUGES.items():
            kind = CounterMetricFamily if gauge.counter else GaugeMetricFamily
            yield kind(gauge.family, gauge.help, now.gauges[name])
        for name, counter in COUNTERS.items():
            yield CounterMetricFamily(counter.family, counter.help, now.totals[name])
        yield CounterMetricFamily("rtmp_subscriber_drops", "Skips and disconnects of players that were too slow.", now.drops)
        switches = CounterMetricFamily("rtmpd_source_switches", "Changes of the active source, by cause.", labels=("cause",))
        for name, cause in SWITCHES.items():
            switches.add_metric((cause,), now.totals[name])
        yield switches
        failures = CounterMetricFamily("rtmpd_failures", "Failures by reason.", labels=("reason",))
        for reason in sorted(FAILURES.keys() | (now.totals.keys() - COUNTERS.keys() - SWITCHES.keys())):
            failures.add_metric((reason,), now.totals[reason])
        yield failures
        yield from self._table(STREAMS, ("stream",), self.streams())
        sources = self.sources()
        yield from self._table(SOURCES, ("stream", "source"), sources)
        yield _faults(sources)
        yield from self._table(RELAYS, ("stream", "destination"), self.relays())

    def _table(self, columns: Iterable[Column], names: Sequence[str], rows: Sequence[Series]) -> Iterator[Metric]:
        for column in columns:
            kind = CounterMetricFamily if column.counter else GaugeMetricFamily
            family: CounterMetricFamily | GaugeMetricFamily = kind(column.family, column.help, labels=names)
            for series in rows:
                value = series.figures.get(column.field)
                if value is not None:
                    family.add_metric(series.labels, value)
                self._pace()
            yield family


def _faults(sources: Iterable[Series]) -> Metric:
    """Return the family of the faults of sources: a sample only for a source that has one."""
    labels = ("stream", "source", "fault")
    family = GaugeMetricFamily("rtmp_stream_source_fault", "1 while the source has this fault.", labels=labels)
    for each in sources:
        if each.figures["fault"]:
            family.add_metric((*each.labels, each.figures["fault"]), 1)
    return family


class LoopLag(Collector):
    """Measures the lag of the event loop: a greenlet sleeps, and observes how late the loop wakes it.

    Not prometheus-client's own histogram: that would add a second family with its time of creation.
    """

    def __init__(self) -> None:
        self._counts = [0] * (len(_LAG_BUCKETS_S) + 1)
        self._sum_s = 0.0
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Start the greenlet."""
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Stop the greenlet."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _run(self) -> None:
        while True:
            due = time.monotonic() + _LAG_INTERVAL_S
            gevent.sleep(_LAG_INTERVAL_S)
            self.observe(time.monotonic() - due)

    def observe(self, late_s: float) -> None:
        """Count one observation. A timer may fire slightly early: negative values count as 0."""
        self._counts[bisect_left(_LAG_BUCKETS_S, late_s)] += 1
        self._sum_s += max(late_s, 0.0)

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram."""
        bounds = [*map(str, _LAG_BUCKETS_S), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        text = "Delay with which the event loop wakes a greenlet."
        yield HistogramMetricFamily("rtmpd_event_loop_lag_seconds", text, buckets, self._sum_s)


class ProcessFigures(Collector):
    """Prometheus-client's figures of the process, read in a thread: counting 9000 open files takes 20 ms."""

    def __init__(self) -> None:
        self._inner = ProcessCollector(registry=None)
        self._threads = Threads(1)

    def _read(self) -> list[Metric]:
        return list(self._inner.collect())

    def collect(self) -> Iterable[Metric]:
        """Return the families; none if the system does not answer within 2 s."""
        with gevent.Timeout(_PROCESS_S, False):  # type: ignore[arg-type]
            return self._threads.call(self._read)
        return []


class _OneFamily(Collector):
    """As much of a registry as `generate_latest` needs."""

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
            text = generate_latest(_OneFamily(family))
            # Only the first block keeps the two lines with help text and type.
            parts.append(text.split(b"\n", 2)[2] if start else text)
            pace()
    return b"".join(parts)


def render_json(
    now: Overview, streams: Iterable[Series], sources: Iterable[Series], relays: Iterable[Series], pace: Pace
) -> bytes:
    """Return the figures under the names of go-rtmp's ``/debug/vars``, followed by each stream, source and relay."""
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
        "rtmp_server_info": _BUILD,
        "rtmp_streams_active": now.streams,
        "rtmp_subscriber_drops_total": now.drops,
        "rtmp_subscribers_active": now.subscribers,
        "rtmp_subscribers_total": totals["plays"],
        "rtmp_uptime_seconds": int(now.uptime_s),
        "rtmp_zombie_connections_total": totals["zombie_connections"],
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in flat.items()]
    of_streams, of_sources, of_relays = [], [], []
    for stream in streams:
        of_streams.append(f"{json.dumps(stream.labels[0])}: {_object(stream.figures)}")
        pace()
    for source in sources:
        of_sources.append(_object({"stream": source.labels[0], "source": source.labels[1], **source.figures}))
        pace()
    for relay in relays:
        of_relays.append(_object({"stream": relay.labels[0], "destination": relay.labels[1], **relay.figures}))
        pace()
    lines += [f'"streams": {{{", ".join(of_streams)}}}', f'"sources": [{", ".join(of_sources)}]']
    lines += [f'"relays": [{", ".join(of_relays)}]']
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _object(figures: Mapping[str, object]) -> str:
    return json.dumps({name: value for name, value in figures.items() if value is not None})
