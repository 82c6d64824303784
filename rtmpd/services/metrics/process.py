"""Figures of the process and of its event loop. Imports prometheus-client and gevent."""

from __future__ import annotations

import time
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

import gevent
from gevent.threadpool import ThreadPool
from prometheus_client import ProcessCollector
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric

__all__ = ["LoopLag", "ProcessFigures"]

_INTERVAL_S = 0.1
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_PROCESS_S = 2.0


class LoopLag(Collector):
    """How late the event loop is: a greenlet sleeps, and looks by how much it is woken too late.

    Prometheus-client's own histogram would give a second family, with the time of its making.
    """

    def __init__(self) -> None:
        self._counts = [0] * (len(_BUCKETS_S) + 1)
        self._sum_s = 0.0
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Look no more."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _run(self) -> None:
        while True:
            due = time.monotonic() + _INTERVAL_S
            gevent.sleep(_INTERVAL_S)
            self.observe(time.monotonic() - due)

    def observe(self, late_s: float) -> None:
        """Count that the loop was late by so much; a timer may also come a little early."""
        self._counts[bisect_left(_BUCKETS_S, late_s)] += 1
        self._sum_s += max(late_s, 0.0)

    def collect(self) -> Iterator[Metric]:
        """Give the histogram."""
        bounds = [*map(str, _BUCKETS_S), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(
            "rtmpd_event_loop_lag_seconds", "How late the event loop wakes a greenlet.", buckets, self._sum_s
        )


class ProcessFigures(Collector):
    """Prometheus-client's figures of the process, read in a thread: counting 9000 open files takes 20 ms."""

    def __init__(self) -> None:
        self._inner = ProcessCollector(registry=None)
        self._pool: ThreadPool | None = None

    def _read(self) -> list[Metric]:
        return list(self._inner.collect())

    def collect(self) -> Iterable[Metric]:
        """Give the figures; none if the system does not answer in time."""
        if self._pool is None:
            self._pool = ThreadPool(1)
        with gevent.Timeout(_PROCESS_S, False):  # type: ignore[arg-type]
            return list(self._pool.apply(self._read))
        return []

    def stop(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.kill()
            self._pool = None
