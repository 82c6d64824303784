"""The daemon: builds the server from its configuration, runs, reloads and stops it.

The composition root: the only module that knows all parts.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import gevent
from gevent import get_hub
from gevent.event import Event

import rtmpd
from rtmpd.config.changes import changes, keep_fixed, restart_needed
from rtmpd.daemon.descriptors import provide_descriptors
from rtmpd.daemon.dump import Dump
from rtmpd.daemon.logs import Logs
from rtmpd.daemon.ports import Ports
from rtmpd.daemon.privileges import drop_privileges
from rtmpd.daemon.supervision import Notifier, Supervision, take_sockets
from rtmpd.errors import ConfigError, RtmpdError
from rtmpd.http.server import HttpServer
from rtmpd.hub import Hub
from rtmpd.media.slate import load_slate
from rtmpd.net.listener import inherited_socket, listening_places
from rtmpd.net.tls import ClientTls, ServerTls
from rtmpd.services.accesslog import AccessLog
from rtmpd.services.auth.service import Auth, read_files
from rtmpd.services.hls.service import Hls
from rtmpd.services.hooks.service import Hooks
from rtmpd.services.medialog import MediaLog
from rtmpd.services.metrics.service import Metrics
from rtmpd.services.recorder.service import Recorder
from rtmpd.services.relay.service import Relays
from rtmpd.util import speed
from rtmpd.util.files import being_read
from rtmpd.util.log_throttle import LogThrottle
from rtmpd.util.text import count_of, printable
from rtmpd.util.threads import Result, Threads
from rtmpd.viewers.page.service import PlayerPage
from rtmpd.viewers.service import Viewers
from rtmpd.viewers.stream_pages import StreamPages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from gevent.socket import socket

    from rtmpd.config.model import Config, TlsConfig
    from rtmpd.daemon.supervision import Inherited
    from rtmpd.media.slate import Slate
    from rtmpd.services.auth.credentials import Credentials
    from rtmpd.services.contract import Service

log = logging.getLogger(__name__)

_GC_THRESHOLDS = (5_000, 4, 500)
"""The middle generation has at most 25,000 objects, 3 ms; with half a million a collection held the event loop for 90 ms."""
_CHANGES_SHOWN = 20
_READ_LIMIT_S = 5.0
"""Time for each of the steps of a reload that read files: configuration and secrets, certificates, tokens."""
_READERS = 4
"""Reloads whose files don't answer, each in a thread that waits, before later ones can't be tried."""
_SLACK_S = 1.0
_SERVICES_STOP_S = 10.0
"""Time for all services together to finish their work once the streams have ended."""
_END_S = 10.0
"""Time for the rest of a stop: the last bytes of streams, services that must be killed, the log."""


class Daemon:
    """The server.

    Args:
        config: The configuration.
        inherited: Sockets that systemd handed over. The server listens on them and on the configured addresses.
        first: Services that start before the others.

    Attributes:
        config: The configuration in force.
        hub: The registry of streams.
        services: All services in the order in which they stop.
        ports: The listeners; bound by `start`.
        on_stop: Called when a stop begins, with its time limit in seconds.

    Raises:
        RtmpdError: An inherited socket has an unknown name.
    """

    def __init__(self, config: Config, inherited: Sequence[Inherited] = (), first: Sequence[Service] = ()) -> None:
        self.config = config
        self.hub = Hub(config)
        self._sockets = _by_purpose(inherited)
        addresses = listening_places(config.metrics.metrics_listen, self._sockets["metrics"])
        http_addresses = listening_places(config.http.http_listen, self._sockets["http"])
        https_addresses = listening_places(config.http.http_tls_listen, self._sockets["https"])
        served = bool(addresses or http_addresses or https_addresses)
        metrics = Metrics(self.hub, Metrics.select(config), served=served)
        self._pages = HttpServer("metrics", addresses, metrics.routes(), self.hub.count, page="/metrics")
        viewers = Viewers(self.hub)
        hls = Hls(self.hub, Hls.select(config))
        stream_pages = StreamPages(self.hub, StreamPages.select(config))
        page = PlayerPage(PlayerPage.select(config))
        self._http = HttpServer(
            "HTTP",
            http_addresses,
            # The first route that matches serves a request; that of the page matches each name of a stream.
            [
                *metrics.routes(restricted=True),
                *hls.routes,
                *stream_pages.routes,
                *viewers.routes,
                *page.routes,
            ],
            self.hub.count,
            tls_addresses=https_addresses,
            tls=self.hub.tls,
            gate=self.hub,
            optional=config.http.may_be_in_use,
            allow_origin=config.http.http_allow_origin,
        )
        self.hub.give_way = self._http.places.give_way
        self._auth = Auth(self.hub, Auth.select(config))
        self.services: list[Service] = [
            *first,
            self._auth,
            Recorder(self.hub, Recorder.select(config)),
            Relays(self.hub, Relays.select(config)),
            MediaLog(self.hub, MediaLog.select(config)),
            hls,
            Hooks(self.hub, Hooks.select(config)),
            AccessLog(self.hub, AccessLog.select(config)),
            self._pages,
            self._http,
            viewers,
            stream_pages,
            page,
            metrics,
        ]
        self.hub.parts.extend(self.services)
        self.ports = Ports(self.hub.serve, self._sockets["rtmp"], self._sockets["rtmps"])
        tls = self.hub.tls
        self.hub.gauges["tls_certificate_expiry"] = lambda: tls.server.not_after if tls.server is not None else 0.0
        self.on_stop: Callable[[float], None] = lambda limit_s: None
        self._readers = Threads(_READERS)
        self._failed = False
        self._accept_throttle = LogThrottle()
        self._over = Event()
        self._at_once = Event()

    def start(self) -> None:
        """Bind all addresses, drop privileges, start the services, accept connections.

        Raises:
            RtmpdError: There are too few open files, an address can't be bound, the process can't switch to the configured
                user, or a service can't start. Everything is closed then.
        """
        capacity = provide_descriptors(self.config)
        get_hub().print_exception = self._unhandled  # type: ignore[method-assign, assignment]
        try:
            self.ports.open(*Ports.select(self.config))
            self._pages.bind()
            self._http.bind()
            # Before a service opens a directory or runs a program, and before the first connection.
            drop_privileges(self.config.server)
            # As the user that will read the files again at a reload.
            self._apply(capacity, self._read(self._load_tls, self.config.tls))
            self._auth.files = self._read_credentials(self.config)
            self.hub.slates = self._read_slates(self.config, keep=False)
            for service in self.services:
                service.start()
        except RtmpdError:
            self.ports.close()
            self._stop_services()
            raise
        self.hub.start()
        assert self.hub.greenlet is not None
        self.hub.greenlet.link_exception(self._hub_died)
        self.ports.start()

    def reload(self, load: Callable[[], Config]) -> str:
        """Load the configuration again and apply it, or change nothing.

        The steps that can fail are first; then the hub hands each part the options that it selects. Files are read in a thread
        with a deadline, so that one that does not answer stops neither the server nor the next reload.

        Args:
            load: Loads and validates the configuration; raises `ConfigError`.

        Returns:
            The first problem; empty: the reload succeeded.
        """
        try:
            loaded = self._read(load)
            config = keep_fixed(self.config, loaded)
            capacity = provide_descriptors(config)
            tls = self._read(self._load_tls, config.tls)
            credentials = self._read_credentials(config)
            slates = self._read_slates(config, keep=True)
            # Last, so that no later step can fail after the addresses have changed.
            self.ports.change(*Ports.select(config))
        except RtmpdError as error:
            problems = error.problems if isinstance(error, ConfigError) else [str(error)]
            for problem in problems:
                log.error("reload failed: %s; the old configuration stays in force", problem)
            return problems[0]
        for option in restart_needed(self.config, loaded):
            log.warning("reload: %s keeps its old value until rtmpd is restarted", option)
        changed = changes(self.config, config)
        self.config = config
        self._apply(capacity, tls)
        self._auth.files = credentials
        self.hub.slates = slates
        self.hub.reload(config)
        shown = ", ".join(changed[:_CHANGES_SHOWN]) or "nothing has changed"
        more = f", and {len(changed) - _CHANGES_SHOWN} more" if len(changed) > _CHANGES_SHOWN else ""
        log.info("configuration reloaded: %s%s", shown, more)
        return ""

    def _read(self, job: Callable[..., Result], *args: object) -> Result:
        """Run a job that reads files in a thread; raises RtmpdError if it takes too long."""
        limit = gevent.Timeout(_READ_LIMIT_S)
        try:
            with limit:
                return self._readers.call(job, *args)
        except gevent.Timeout as passed:
            if passed is not limit:
                raise
            names = ", ".join(map(printable, being_read())) or "a file"
            raise RtmpdError(
                f"{names} could not be read within {_READ_LIMIT_S:g} s: its disk or its writer does not answer"
            ) from None

    def _read_credentials(self, config: Config) -> dict[str, Credentials]:
        try:
            return self._read(read_files, Auth.select(config).files)
        except RtmpdError:
            self.hub.count("auth_file_errors")
            raise

    def _read_slates(self, config: Config, *, keep: bool) -> dict[str, Slate]:
        """Read each ``slate_file``; with *keep*, one that can't be used is replaced by what was read of it before.

        A slate that is as it was stays the same object, so that players of it notice nothing.

        Raises:
            RtmpdError: One can't be used, or not be read in time.
        """
        found: dict[str, Slate] = {}
        for path, limit_bytes in config.slate_files.items():
            earlier = self.hub.slates.get(path)
            try:
                found[path] = self._read(_load_slate, path, limit_bytes, earlier)
            except RtmpdError as error:
                self.hub.count("slate_errors")
                problem = str(error).removeprefix(f"{path}: ")
                if not keep or earlier is None:
                    raise RtmpdError(f"slate_file {printable(path)}: {problem}") from None
                log.error("slate_file %s can't be used: %s; what was read of it before stays in use", printable(path), problem)
                found[path] = earlier
            if found[path] is not earlier:
                log.info("slate_file %s was read: %s", printable(path), found[path].description)
        return found

    def _load_tls(self, options: TlsConfig) -> tuple[ServerTls | None, ClientTls]:
        """Load the certificates; raises RtmpdError if one can't be used."""
        needed = options.tls_listen or self._sockets["rtmps"] or self._sockets["https"] or self.config.http.http_tls_listen
        server, client = ServerTls(options) if needed else None, ClientTls(options)
        for warning in server.warnings(time.time()) if server is not None else ():
            log.warning("%s: clients that verify certificates will refuse to connect", warning)
        return server, client

    def _apply(self, capacity: int, tls: tuple[ServerTls | None, ClientTls]) -> None:
        """Hand the hub what the daemon has provided for it."""
        self.hub.connection_limits.capacity = capacity
        self.hub.tls.server, self.hub.tls.client = tls
        self.hub.listening = self.ports.addresses

    def request_stop(self) -> None:
        """Request a graceful stop; a second call stops at once. Safe in a signal handler's greenlet."""
        if self._over.is_set():
            log.warning("stop requested twice: not waiting for connections, recordings and other services")
            self._at_once.set()
            self.ports.kill()
        self._over.set()

    def wait(self) -> int:
        """Wait for a stop request, stop, and return the exit code."""
        self._over.wait()
        self.stop()
        return 1 if self._failed else 0

    def stop(self) -> None:
        """Stop accepting, end all streams, and wait for connections to end, at most drain_timeout_s."""
        limit_s = self.config.server.drain_timeout_s
        self.on_stop(limit_s + _SERVICES_STOP_S + _END_S)
        log.info(
            "stopping: %s, %s", count_of(len(self.hub.streams), "stream"), count_of(len(self.hub.connections), "connection")
        )
        self.ports.close()
        deadline = time.monotonic() + limit_s
        self.hub.stop(limit_s)
        self.ports.wait(max(0.0, deadline - time.monotonic()))
        self.ports.kill()
        stopping: list[Any] = [gevent.spawn(self._stop_services), self._at_once]
        gevent.wait(stopping, count=1)
        counters = ", ".join(f"{name} {count}" for name, count in sorted(self.hub.counters.items()) if count)
        log.info("stopped; counted: %s", counters or "nothing")

    def _stop_services(self) -> None:
        deadline = time.monotonic() + _SERVICES_STOP_S
        for service in self.services:
            left_s = max(0.0, deadline - time.monotonic())
            # Each in a greenlet of its own: a service that fails or hangs must not keep the others from stopping.
            gevent.spawn(service.stop, left_s).join(left_s + _SLACK_S)

    def _hub_died(self, greenlet: gevent.Greenlet[[], None]) -> None:
        log.critical("the greenlet of the hub failed: %s; the server stops", greenlet.exception, exc_info=greenlet.exc_info)
        self._failed = True
        self._over.set()

    def _unhandled(
        self,
        context: object,
        kind: type[BaseException] | None,
        value: BaseException | str | None,
        traceback: TracebackType | None,
    ) -> None:
        """Log an unhandled exception of a greenlet or event-loop callback. gevent would print it to standard error."""
        if isinstance(value, OSError) and value.errno in (errno.EMFILE, errno.ENFILE):
            # From gevent's accept loop, which tries again after a while.
            self.hub.count("accept_failures")
            text = "can't accept connections: %s; lower connection_limit or raise the limit of open files"
            self._accept_throttle.log(log, logging.ERROR, text, value.strerror)
            return
        self.hub.count("internal_errors")
        error = value if isinstance(value, BaseException) else RuntimeError(f"{kind}: {value}")
        log.error("internal error in %r", context, exc_info=(type(error), error, traceback))


def _load_slate(path: str, limit_bytes: int, earlier: Slate | None) -> Slate:
    slate = load_slate(path, limit_bytes)
    return earlier if earlier is not None and slate == earlier else slate


def _by_purpose(inherited: Sequence[Inherited]) -> dict[str, list[socket]]:
    """Return inherited sockets by purpose: a socket without a name is for RTMP."""
    found: dict[str, list[socket]] = {name: [] for name in ("rtmp", "rtmps", "metrics", "http", "https")}
    for name, descriptor in inherited:
        if (name or "rtmp") not in found:
            raise RtmpdError(
                f"expected FileDescriptorName=rtmp, rtmps, http, https or metrics in the socket unit, got {name!r}"
            )
        found[name or "rtmp"].append(inherited_socket(descriptor))
    return found


def run(config: Config, load: Callable[[], Config]) -> int:
    """Run the server until SIGTERM or SIGINT; return the exit code of the process.

    Args:
        config: The configuration to start with.
        load: Loads the configuration again on SIGHUP; raises `ConfigError`.
    """
    logs = Logs(Logs.select(config))
    try:
        code = _run(config, load, logs)
    except BaseException:
        logs.finish()
        raise
    if not logs.finish():
        # A thread of the logs is blocked in a write, and the interpreter would wait for it to flush standard error.
        os._exit(code)
    return code


def _run(config: Config, load: Callable[[], Config], logs: Logs) -> int:
    log.info("rtmpd %s (%s)", rtmpd.__version__, speed.IN_USE)
    # The watchdog sends SIGABRT to a server that hangs: this prints where.
    faulthandler.enable()
    notifier = Notifier()
    try:
        daemon = Daemon(config, take_sockets(), [logs])
    except RtmpdError as error:
        return _report_failed_start(error, notifier, logs)
    daemon.hub.gauges["log_lines_dropped"] = lambda: logs.dropped
    daemon.hub.gauges["access_lines_dropped"] = lambda: logs.access_dropped
    supervision = Supervision(notifier, daemon.hub, lambda: daemon.reload(load))
    daemon.on_stop = supervision.stopping
    dump = Dump(daemon.hub)
    # Handlers run in greenlets of their own and only set flags. They are installed before the start, so that an early signal is
    # not lost.
    gevent.signal_handler(signal.SIGTERM, daemon.request_stop)
    gevent.signal_handler(signal.SIGINT, daemon.request_stop)
    gevent.signal_handler(signal.SIGHUP, supervision.request_reload)
    gevent.signal_handler(signal.SIGUSR1, logs.reopen)
    gevent.signal_handler(signal.SIGUSR2, dump.write)
    try:
        daemon.start()
    except RtmpdError as error:
        return _report_failed_start(error, notifier, logs)
    supervision.start()
    # Objects of the start live as long as the process, and messages make no cycles, so the collector ignores the former and
    # seldom runs: with thousands of connections a full collection blocks the event loop for tens of milliseconds.
    gc.collect()
    dump.remember_greenlets()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    return daemon.wait()


def _report_failed_start(error: RtmpdError, notifier: Notifier, logs: Logs) -> int:
    """Report why the server can't start; return the exit code."""
    log.error("%s", error)
    logs.echo_error(str(error))
    notifier.send(STATUS=str(error))
    return 1
