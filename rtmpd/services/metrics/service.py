"""The metrics service: what is served on ``/metrics`` and ``/debug/vars``.

Sessions and streams add integers, as they do anyway; everything else happens when somebody asks. Imports gevent,
prometheus-client and the hub's types. The HTTP listener stands above: it is handed the routes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gevent.lock import BoundedSemaphore
from prometheus_client import CollectorRegistry

from rtmpd.services.metrics.collector import HubCollector
from rtmpd.services.metrics.pace import Pace
from rtmpd.services.metrics.process import LoopLag, ProcessFigures
from rtmpd.services.metrics.render import render_json, render_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from rtmpd.config.model import Config
    from rtmpd.hub import Hub

__all__ = ["Metrics"]

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_JSON = "application/json; charset=utf-8"
_TURN_S = 5.0


class Metrics:
    """The service.

    Args:
        hub: Whose figures to give.
        served: Somebody can ask, whatever the configuration says.

    Attributes:
        registry: All collectors; never prometheus-client's global one.
    """

    def __init__(self, hub: Hub, *, served: bool = False) -> None:
        self._hub = hub
        self._served = served
        self._pace = Pace()
        self._collector = HubCollector(hub, self._pace)
        self._loop_lag = LoopLag()
        self._process = ProcessFigures()
        self.registry = CollectorRegistry()
        for collector in (self._collector, self._loop_lag, self._process):
            self.registry.register(collector)
        # One scrape at a time: together they would hold the event loop as long as each alone, but longer for everyone.
        self._turn = BoundedSemaphore(1)

    @property
    def routes(self) -> Mapping[str, WSGIApplication]:
        """What to serve, by path."""
        return {"/metrics": self._serve_text, "/debug/vars": self._serve_json}

    def start(self) -> None:
        """Begin, if anybody can ask."""
        if self._served or self._hub.config.metrics.metrics_listen:
            self._loop_lag.start()

    @staticmethod
    def select(config: Config) -> Config:
        """Return the part of a configuration that the service uses."""
        return config

    def reload(self, config: Config) -> None:
        """Nothing: the limit is looked up each time."""

    def stop(self, limit_s: float) -> None:
        """End."""
        self._loop_lag.stop()
        self._process.stop()

    def text(self) -> bytes:
        """Return all metrics as Prometheus reads them. One call at a time."""
        self._pace.restart()
        return render_text(self.registry, self._pace)

    def json(self) -> bytes:
        """Return the figures as JSON. One call at a time."""
        self._pace.restart()
        collector = self._collector
        return render_json(collector.overview(), collector.streams(), collector.relays(), self._pace)

    def _serve_text(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self._serve(start_response, _TEXT, self.text)

    def _serve_json(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self._serve(start_response, _JSON, self.json)

    def _serve(self, start_response: StartResponse, content_type: str, render: Callable[[], bytes]) -> Iterable[bytes]:
        if not self._turn.acquire(timeout=_TURN_S):
            body = b"Others are being answered.\n"
            headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), ("Retry-After", "5")]
            start_response("503 Service Unavailable", headers)
            return [body]
        try:
            body = render()
        finally:
            self._turn.release()
        # In one piece: the listener bounds the time for each.
        start_response("200 OK", [("Content-Type", content_type), ("Content-Length", str(len(body)))])
        return [body]
