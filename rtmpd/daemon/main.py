"""The daemon: builds the server from its configuration, runs it, stops it.

The composition root: the one place that knows all parts. Imports everything but the command line.
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
from rtmpd.daemon.supervision import Supervision
from rtmpd.daemon.systemd import Notifier, take_sockets
from rtmpd.errors import ConfigError, RtmpdError
from rtmpd.http.server import HttpServer
from rtmpd.hub import Hub
from rtmpd.net.listener import inherit, places
from rtmpd.net.tls import ClientTls, ServerTls
from rtmpd.services.accesslog import AccessLog
from rtmpd.services.auth.service import Auth
from rtmpd.services.hooks.service import Hooks
from rtmpd.services.medialog import MediaLog
from rtmpd.services.metrics.service import Metrics
from rtmpd.services.recorder.service import Recorder
from rtmpd.services.relay.service import Relays

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from gevent.socket import socket

    from rtmpd.config.model import Config
    from rtmpd.daemon.systemd import Inherited
    from rtmpd.services.contract import Service

__all__ = ["Daemon", "run"]

log = logging.getLogger(__name__)

_REPEAT_S = 10.0
_GC_THRESHOLDS = (25_000, 20, 20)
_CHANGES_SHOWN = 20
_SLACK_S = 1.0
_SERVICES_STOP_S = 10.0
"""Time that services have to finish what is under way, all together, once the streams have ended."""
_END_S = 10.0
"""What all else takes at the most: the last bytes of streams, services that must be ended, the log."""


class Daemon:
    """A server, ready to start.

    Args:
        config: Its configuration.
        inherited: Sockets that it was started with: they are listened with, besides the addresses of the configuration.
        first: Services that start before the others.

    Attributes:
        hub: The registry of streams.
        services: What follows the streams, in the order in which they stop.
        ports: Where it listens; bound by `start`.
        on_stop: Called when the end begins, with how long it may take at the most.

    Raises:
        RtmpdError: A socket has a name that means nothing here.
    """

    def __init__(self, config: Config, inherited: Sequence[Inherited] = (), first: Sequence[Service] = ()) -> None:
        self.config = config
        self.hub = Hub(config)
        self._sockets = _by_purpose(inherited)
        addresses = places(config.metrics.metrics_listen, self._sockets["metrics"])
        metrics = Metrics(self.hub, Metrics.select(config), served=bool(addresses))
        self._pages = pages = HttpServer("metrics", addresses, metrics.routes, self.hub.count)
        self.services: list[Service] = [
            *first,
            Auth(self.hub),
            Recorder(self.hub, Recorder.select(config)),
            Relays(self.hub),
            MediaLog(self.hub, MediaLog.select(config)),
            Hooks(self.hub, Hooks.select(config)),
            AccessLog(self.hub, AccessLog.select(config)),
            pages,
            metrics,
        ]
        self.hub.parts.extend(self.services)
        self.ports = Ports(self.hub.serve, self._sockets["rtmp"], self._sockets["rtmps"])
        tls = self.hub.tls
        self.hub.gauges["tls_certificate_expiry"] = lambda: tls.server.not_after if tls.server is not None else 0.0
        self.on_stop: Callable[[float], None] = lambda limit_s: None
        self._failed = False
        self._descriptors_logged_at = 0.0
        self._over = Event()
        self._at_once = Event()

    def start(self) -> None:
        """Listen, then be nobody in particular, then serve.

        Raises:
            RtmpdError: There are too few open files, an address can't be listened on, root can't become the user of the
                configuration, or a service can't begin. Nothing is left open then.
        """
        self.hub.connection_limits.capacity = provide_descriptors(self.config)
        get_hub().print_exception = self._unhandled  # type: ignore[method-assign, assignment]
        try:
            self.ports.open(self.config.server.listen, self.config.tls.tls_listen)
            self._pages.bind()
            # Before a service looks at a directory or runs a program, and before anybody is listened to.
            drop_privileges(self.config.server)
            # By the user who reads them again when they are renewed.
            self.hub.tls.server, self.hub.tls.client = self._load_tls(self.config)
            self.hub.listening = self.ports.addresses
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

    def _load_tls(self, config: Config) -> tuple[ServerTls | None, ClientTls]:
        """Read the certificates; raises RtmpdError if there is no serving with them."""
        wanted = config.tls.tls_listen or self._sockets["rtmps"]
        server, client = ServerTls(config.tls) if wanted else None, ClientTls(config.tls)
        for warning in server.warnings(time.time()) if server is not None else ():
            log.warning("%s: clients that look at it will not connect", warning)
        return server, client

    def request_stop(self) -> None:
        """Ask for the end; safe in a signal handler's greenlet. A second time means at once."""
        if self._over.is_set():
            log.warning("asked twice to stop: not waiting for connections, recordings and the like")
            self._at_once.set()
            self.ports.kill()
        self._over.set()

    def reload(self, load: Callable[[], Config]) -> str:
        """Read the configuration again; a wrong one changes nothing. Return what is wrong first, or nothing."""
        try:
            config = load()
        except ConfigError as error:
            for problem in error.problems:
                log.error("reload: %s", problem)
            log.error("reload failed: the old configuration stays in force")
            return error.problems[0]
        try:
            capacity = provide_descriptors(keep_fixed(self.config, config))
            tls = self._load_tls(config)
            self.ports.change(config.server.listen, config.tls.tls_listen)
        except RtmpdError as error:
            log.error("reload failed: %s; the old configuration stays in force", error)
            return str(error)
        self.hub.listening = self.ports.addresses
        self.hub.tls.server, self.hub.tls.client = tls
        for option in restart_needed(self.config, config):
            log.warning("reload: %s only changes when rtmpd is started again", option)
        config = keep_fixed(self.config, config)
        changed = changes(self.config, config)
        self.config = config
        self.hub.connection_limits.capacity = capacity
        self.hub.reload(self.config)
        shown = ", ".join(changed[:_CHANGES_SHOWN]) or "nothing has changed"
        more = f", and {len(changed) - _CHANGES_SHOWN} more" if len(changed) > _CHANGES_SHOWN else ""
        log.info("configuration reloaded: %s%s", shown, more)
        return ""

    def wait(self) -> int:
        """Wait until somebody asks for the end, stop, and return the exit code."""
        self._over.wait()
        self.stop()
        return 1 if self._failed else 0

    def stop(self) -> None:
        """Accept no more, end streams, wait for connections to leave as long as the configuration allows."""
        limit_s = self.config.server.drain_timeout_s
        self.on_stop(limit_s + _SERVICES_STOP_S + _END_S)
        log.info("stopping: %d streams, %d connections", len(self.hub.streams), len(self.hub.connections))
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
            # In a greenlet each: one that fails, or does not keep to its limit, is not to keep the others from ending.
            gevent.spawn(service.stop, left_s).join(left_s + _SLACK_S)

    def _hub_died(self, greenlet: gevent.Greenlet[[], None]) -> None:
        log.critical("the hub has died: %s", greenlet.exception, exc_info=greenlet.exc_info)
        self._failed = True
        self._over.set()

    def _unhandled(
        self,
        context: object,
        kind: type[BaseException] | None,
        value: BaseException | str | None,
        traceback: TracebackType | None,
    ) -> None:
        """Log what a greenlet or an event-loop callback let escape; gevent would print it to standard error."""
        if isinstance(value, OSError) and value.errno in (errno.EMFILE, errno.ENFILE):
            # gevent's accept loop has met it, and tries again after a while.
            self.hub.count("accept_failures")
            now = time.monotonic()
            if now - self._descriptors_logged_at > _REPEAT_S:
                self._descriptors_logged_at = now
                log.error("can't accept: %s; lower connection_limit or raise the system's limit", value.strerror)
            return
        self.hub.count("internal_errors")
        error = value if isinstance(value, BaseException) else RuntimeError(f"{kind}: {value}")
        log.error("internal error in %r", context, exc_info=(type(error), error, traceback))


def _by_purpose(inherited: Sequence[Inherited]) -> dict[str, list[socket]]:
    """Return the sockets that were handed over, by what they are for: those without a name are for RTMP."""
    found: dict[str, list[socket]] = {"rtmp": [], "rtmps": [], "metrics": []}
    for one in inherited:
        if (one.name or "rtmp") not in found:
            known = "rtmp, rtmps or metrics"
            raise RtmpdError(f"a socket that was handed over is called {one.name!r}: FileDescriptorName= is {known}")
        found[one.name or "rtmp"].append(inherit(one.descriptor))
    return found


def run(config: Config, load: Callable[[], Config]) -> int:
    """Run the server until SIGTERM or SIGINT; return the process's exit code.

    Args:
        config: What to begin with.
        load: Reads the configuration again, on SIGHUP; raises `ConfigError`.
    """
    logs = Logs(config.log)
    try:
        code = _run(config, load, logs)
    except BaseException:
        logs.finish()
        raise
    if not logs.finish():
        # The thread of a log is stuck in a write, and the interpreter would wait for it to flush standard error.
        os._exit(code)
    return code


def _run(config: Config, load: Callable[[], Config], logs: Logs) -> int:
    log.info("rtmpd %s", rtmpd.__version__)
    # A watchdog ends what hangs with SIGABRT: this says where it hung.
    faulthandler.enable()
    notifier = Notifier()
    try:
        daemon = Daemon(config, take_sockets(), [logs])
    except RtmpdError as error:
        return _refuse(error, notifier, logs)
    daemon.hub.gauges["log_lines_dropped"] = lambda: logs.dropped
    daemon.hub.gauges["access_lines_dropped"] = lambda: logs.access_dropped
    supervision = Supervision(notifier, daemon.hub, lambda: daemon.reload(load))
    daemon.on_stop = supervision.stopping
    dump = Dump(daemon.hub)
    # Handlers run in a greenlet of their own and only ask. They are there before anything else: a signal that comes early is
    # heeded as soon as there is a server.
    gevent.signal_handler(signal.SIGTERM, daemon.request_stop)
    gevent.signal_handler(signal.SIGINT, daemon.request_stop)
    gevent.signal_handler(signal.SIGHUP, supervision.request_reload)
    gevent.signal_handler(signal.SIGUSR1, logs.reopen)
    gevent.signal_handler(signal.SIGUSR2, dump.write)
    try:
        daemon.start()
    except RtmpdError as error:
        return _refuse(error, notifier, logs)
    supervision.start()
    # What start-up made stays for good: the collector need not look at it again. Messages come and go without cycles, so it may
    # come seldom: with thousands of connections each full collection holds the event loop for tens of ms.
    gc.collect()
    dump.remember_greenlets()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    return daemon.wait()


def _refuse(error: RtmpdError, notifier: Notifier, logs: Logs) -> int:
    """Say why the server can't start; return the exit code."""
    log.error("%s", error)
    logs.echo_error(str(error))
    notifier.send(STATUS=str(error))
    return 1
