"""The collector: reads the hub when Prometheus asks, and gives metric families.

Nothing is kept between two scrapes, so the figures of a stream go with it. Imports prometheus-client and the hub's types.
"""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING

import gevent
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

import rtmpd
from rtmpd.services.metrics.catalogue import COUNTERS, FAILURES, GAUGES, RELAYS, STREAMS
from rtmpd.services.metrics.figures import relay_series, stream_series

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator, Sequence

    from prometheus_client.core import Metric

    from rtmpd.hub import Hub
    from rtmpd.services.metrics.catalogue import Column
    from rtmpd.services.metrics.figures import RelaySeries, StreamSeries
    from rtmpd.services.metrics.pace import Pace

__all__ = ["BUILD", "HubCollector", "Overview"]

BUILD = {"version": rtmpd.__version__, "python": platform.python_version(), "gevent": gevent.__version__}
"""What the server is made of."""


class Overview:
    """The figures of the whole server, all of one moment.

    Attributes:
        totals: The hub's counters, with those of live streams, and with those of the event bus.
        drops: Skips of players, and players that were disconnected or cut off for being too slow.
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


class HubCollector(Collector):
    """Collects from the hub.

    Args:
        hub: The hub.
        pace: Keeps it from holding the event loop.
    """

    def __init__(self, hub: Hub, pace: Pace) -> None:
        self._hub = hub
        self._pace = pace
        self._since_s = time.monotonic()

    def overview(self) -> Overview:
        """Return the figures of the whole server as they are now."""
        return Overview(self._hub, self._since_s)

    def streams(self) -> list[StreamSeries]:
        """Return the figures of streams."""
        return stream_series(self._hub, self._pace)

    def relays(self) -> list[RelaySeries]:
        """Return the figures of relays."""
        return relay_series(self._hub.relays(), self._hub.config.metrics.stream_series_limit, self._pace)

    def collect(self) -> Iterator[Metric]:
        """Give each family; between them the event loop may run."""
        yield InfoMetricFamily("rtmpd_build", "What the server is made of.", value=BUILD)
        yield from self._of_the_server(self.overview())
        yield from self._table(STREAMS, ("stream",), [((series.label,), series) for series in self.streams()])
        relays = [((series.stream, series.destination), series) for series in self.relays()]
        yield from self._table(RELAYS, ("stream", "destination"), relays)

    @staticmethod
    def _of_the_server(now: Overview) -> Iterator[Metric]:
        yield GaugeMetricFamily("rtmp_uptime_seconds", "Time since the server started.", now.uptime_s)
        yield GaugeMetricFamily("rtmp_connections_active", "Connections that are open.", now.connections)
        yield GaugeMetricFamily("rtmp_streams_active", "Streams that are published or waited for.", now.streams)
        yield GaugeMetricFamily("rtmp_publishers_active", "Publishers.", now.publishers)
        yield GaugeMetricFamily("rtmp_subscribers_active", "Players.", now.subscribers)
        for name, gauge in GAUGES.items():
            kind = CounterMetricFamily if gauge.counter else GaugeMetricFamily
            yield kind(gauge.family, gauge.help, now.gauges[name])
        for name, counter in COUNTERS.items():
            yield CounterMetricFamily(counter.family, counter.help, now.totals[name])
        drops = "Skips of players, and players that were disconnected or cut off, for being too slow."
        yield CounterMetricFamily("rtmp_subscriber_drops", drops, now.drops)
        failures = CounterMetricFamily("rtmpd_failures", "Failures, by what went wrong.", labels=("reason",))
        for reason in sorted(FAILURES.keys() | (now.totals.keys() - COUNTERS.keys())):
            failures.add_metric((reason,), now.totals[reason])
        yield failures

    def _table(
        self,
        columns: Iterable[Column],
        names: Sequence[str],
        rows: Sequence[tuple[Sequence[str], StreamSeries | RelaySeries]],
    ) -> Iterator[Metric]:
        for column in columns:
            family: CounterMetricFamily | GaugeMetricFamily
            if column.counter:
                family = CounterMetricFamily(column.family, column.help, labels=names)
            else:
                family = GaugeMetricFamily(column.family, column.help, labels=names)
            for labels, series in rows:
                value = getattr(series, column.field)
                if value is not None:
                    family.add_metric(labels, value)
                self._pace()
            yield family
