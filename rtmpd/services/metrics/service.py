"""The metrics service: ``/metrics`` and ``/debug/vars`` as WSGI applications, which the daemon gives to the HTTP listener."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gevent.lock import BoundedSemaphore
from prometheus_client import CollectorRegistry

from rtmpd.services.metrics.exposition import HubCollector, LoopLag, ProcessFigures, render_json, render_text
from rtmpd.services.metrics.figures import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from rtmpd.config.model import Config, MetricsConfig
    from rtmpd.hub import Hub

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_JSON = "application/json; charset=utf-8"
_TURN_S = 5.0


class Metrics:
    """The metrics service.

    Args:
        hub: The hub whose figures are served.
        options: The options of ``[metrics]``.
        served: Whether a listener serves the metrics even if ``metrics_listen`` is empty.

    Attributes:
        registry: All collectors. Not prometheus-client's global registry.
    """

    def __init__(self, hub: Hub, options: MetricsConfig, *, served: bool = False) -> None:
        self._served = served or bool(options.metrics_listen)
        self._pace = Pace()
        self._collector = HubCollector(hub, options.stream_series_limit, self._pace)
        self._loop_lag = LoopLag()
        self.registry = CollectorRegistry()
        for collector in (self._collector, self._loop_lag, ProcessFigures()):
            self.registry.register(collector)
        # One scrape at a time: concurrent ones would hold the event loop for as long in total, and each would take longer.
        self._turn = BoundedSemaphore(1)

    @staticmethod
    def select(config: Config) -> MetricsConfig:
        """Return the options of ``[metrics]``."""
        return config.metrics

    @property
    def routes(self) -> Mapping[str, WSGIApplication]:
        """The WSGI applications, by path."""
        return {"/metrics": partial(self._serve, _TEXT, self.text), "/debug/vars": partial(self._serve, _JSON, self.json)}

    def start(self) -> None:
        """Start to measure the lag of the event loop, if the metrics are served at all."""
        if self._served:
            self._loop_lag.start()

    def reload(self, options: MetricsConfig) -> None:
        """Apply ``stream_series_limit``."""
        self._collector.limit = options.stream_series_limit

    def stop(self, limit_s: float) -> None:
        """Stop to measure the lag of the event loop."""
        self._loop_lag.stop()

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format. Must not be called concurrently."""
        self._pace.restart()
        return render_text(self.registry, self._pace)

    def json(self) -> bytes:
        """Return the figures as JSON. Must not be called concurrently."""
        self._pace.restart()
        collector = self._collector
        return render_json(collector.overview(), collector.streams(), collector.sources(), collector.relays(), self._pace)

    def _serve(
        self, content_type: str, render: Callable[[], bytes], environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        if not self._turn.acquire(timeout=_TURN_S):
            body = b"Another request is being served.\n"
            headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), ("Retry-After", "5")]
            start_response("503 Service Unavailable", headers)
            return [body]
        try:
            body = render()
        finally:
            self._turn.release()
        # In one piece: the listener limits the time for each piece.
        start_response("200 OK", [("Content-Type", content_type), ("Content-Length", str(len(body)))])
        return [body]
