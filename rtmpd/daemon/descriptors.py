"""Open files: how many a configuration needs, and making room for them.

A server that runs out of descriptors accepts nobody, opens no recording and reaches no hook. So what a configuration may need
is counted before it is taken. Only `provide_descriptors` touches the process; the rest is pure. Imports the configuration.
"""

from __future__ import annotations

import logging
import resource
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from rtmpd.connection_limits import DEFAULT_CONNECTION_LIMIT
from rtmpd.errors import RtmpdError
from rtmpd.http.server import CONNECTIONS as HTTP_CONNECTIONS
from rtmpd.services.auth.service import CALLS as AUTH_CALLS

if TYPE_CHECKING:
    from rtmpd.config.model import Config

__all__ = ["LEAST_CONNECTIONS", "Need", "descriptors_problem", "fitting_connections", "needs", "provide_descriptors"]

log = logging.getLogger(__name__)

LEAST_CONNECTIONS = 16
"""Room for fewer is no server."""

_SPARE = 64
"""For the event loop, threads, logs, look-ups of names, old recordings that are looked through, what libraries open."""

_PER_CALL = 2
"""A hook or callback under way: its socket and a second descriptor of it, or a program's pipe and the program."""

_UNBOUNDED = 1 << 30


class Need(NamedTuple):
    """What so many open files are needed for."""

    files: int
    what: str


def needs(config: Config, connections: int) -> list[Need]:
    """Return what a configuration needs open files for, while it serves so many connections; what needs none is left out."""
    limits, hooks = config.limits, config.hooks
    everywhere = [config.defaults, *config.applications.values()]
    recorded = min(connections, limits.stream_limit or connections)
    destinations = len(hooks.hook_scripts) + len(hooks.hook_webhooks)
    listeners = len(config.server.listen) + len(config.tls.tls_listen) + len(config.metrics.metrics_listen)
    found = [
        Need(connections, "connections"),
        Need(limits.relay_limit if any(each.relay.relay_to for each in everywhere) else 0, "relays"),
        Need(recorded if config.record.record_all or config.record.record_streams else 0, "recordings"),
        Need(_PER_CALL * max(hooks.hook_concurrency, destinations) if destinations else 0, "hooks"),
        Need(_PER_CALL * AUTH_CALLS if any(each.auth.auth_callback for each in everywhere) else 0, "authentication callbacks"),
        Need(HTTP_CONNECTIONS * len(config.metrics.metrics_listen), "clients of metrics"),
        Need(listeners, "addresses"),
        Need(_SPARE, "spare"),
    ]
    return [need for need in found if need.files]


def _needed(config: Config, connections: int) -> int:
    return sum(need.files for need in needs(config, connections))


def _shown(config: Config, connections: int) -> str:
    return ", ".join(f"{need.files} {need.what}" for need in needs(config, connections))


def _bounded(hard_limit: int) -> int:
    return _UNBOUNDED if hard_limit == resource.RLIM_INFINITY else hard_limit


def fitting_connections(config: Config, hard_limit: int) -> int:
    """Return how many connections ``connection_limit = 0`` means: as many as *hard_limit* open files allow, 10000 at most.

    Args:
        config: The configuration.
        hard_limit: Of RLIMIT_NOFILE; may be ``RLIM_INFINITY``.
    """
    allowed = _bounded(hard_limit)
    return bisect_right(range(1, DEFAULT_CONNECTION_LIMIT + 1), allowed, key=lambda count: _needed(config, count))


def descriptors_problem(config: Config, hard_limit: int) -> str:
    """Return why a configuration can't be had with so many open files, and what to do; an empty text: it can.

    Args:
        config: The configuration.
        hard_limit: Of RLIMIT_NOFILE; may be ``RLIM_INFINITY``.
    """
    connections = config.limits.connection_limit
    wanted = connections or LEAST_CONNECTIONS
    if _needed(config, wanted) <= _bounded(hard_limit):
        return ""
    who = f"connection_limit = {connections}" if connections else f"a server of only {wanted} connections"
    lower = "lower connection_limit, or " if connections else ""
    return (
        f"{who} needs {_needed(config, wanted)} open files ({_shown(config, wanted)}), and {hard_limit} are allowed: "
        f"{lower}raise the hard limit (LimitNOFILE= in the unit, ulimit -Hn in a shell)"
    )


def provide_descriptors(config: Config) -> int:
    """Raise the soft limit of open files as far as a configuration needs; return how many connections there may be.

    Raises:
        RtmpdError: The hard limit does not allow it. Nothing has changed then.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    problem = descriptors_problem(config, hard)
    if problem:
        raise RtmpdError(problem)
    connections = config.limits.connection_limit or fitting_connections(config, hard)
    needed = _needed(config, connections)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    if not config.limits.connection_limit and connections < DEFAULT_CONNECTION_LIMIT:
        log.warning(
            "connection_limit = 0 is %d connections here, not %d: %d open files are allowed (%s)",
            connections,
            DEFAULT_CONNECTION_LIMIT,
            hard,
            _shown(config, connections),
        )
    return connections
