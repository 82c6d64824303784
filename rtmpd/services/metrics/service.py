"""The metrics service: ``/metrics`` and ``/debug/vars`` as routes, which the daemon gives to the HTTP listeners."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gevent.lock import BoundedSemaphore
from prometheus_client import CollectorRegistry

from rtmpd.config.access_rules import parse_address, within
from rtmpd.errors import HttpError
from rtmpd.http.messages import JSON, Response
from rtmpd.http.routes import Route
from rtmpd.services.metrics.exposition import HubCollector, LoopLag, ProcessFigures, render_json, render_text
from rtmpd.services.metrics.figures import Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.config.model import Config, MetricsConfig
    from rtmpd.http.messages import Request
    from rtmpd.http.routes import Exchange
    from rtmpd.hub import Hub

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
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
        self._hub = hub
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

    def routes(self, *, restricted: bool = False) -> list[Route]:
        """Return the routes; if *restricted*, only for clients in ``http_metrics_from``."""
        pages = (("/metrics", _TEXT, self.text), ("/debug/vars", JSON, self.json))
        return [Route(path, partial(self._serve, content_type, render, restricted)) for path, content_type, render in pages]

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
        self, content_type: str, render: Callable[[], bytes], restricted: bool, request: Request, exchange: Exchange
    ) -> Response:
        if restricted and not within(parse_address(request.address), self._hub.config.http.http_metrics_from):
            raise HttpError(403, "Metrics are not served to this address (http_metrics_from).")
        if not self._turn.acquire(timeout=_TURN_S):
            raise HttpError(503, "Another request is being served.", [("Retry-After", "5")])
        try:
            body = render()
        finally:
            self._turn.release()
        return Response(body=body, content_type=content_type)
