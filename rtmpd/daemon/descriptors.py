"""Open files: how many a configuration needs, and raising the soft limit accordingly.

A server without free descriptors accepts no connection, opens no recording and reaches no hook, so the need is computed before
a configuration is applied.
"""

from __future__ import annotations

import logging
import resource
from bisect import bisect_right
from typing import TYPE_CHECKING

from rtmpd.connection_limits import DEFAULT_CONNECTION_LIMIT
from rtmpd.errors import RtmpdError
from rtmpd.http.server import OPEN as HTTP_CONNECTIONS
from rtmpd.services.auth.callback import THREADS as AUTH_THREADS

if TYPE_CHECKING:
    from rtmpd.config.model import Config

log = logging.getLogger(__name__)

_AMPLE_CONNECTIONS = 9_000
"""Room for so many is no reason for a warning: hard limits of 10,000 and 10,240 open files are usual."""

LEAST_CONNECTIONS = 16
"""The server does not start with room for fewer connections."""

_SPARE = 64
"""For the event loop, threads, logs, name lookups, scans of old recordings, and libraries."""

_PER_CALL = 2
"""For a hook or callback: its socket and a second descriptor, or the pipe and the handle of a program."""

_UNBOUNDED = 1 << 30


def needs(config: Config, connections: int) -> dict[str, int]:
    """Return how many open files a configuration needs, by purpose, with this number of connections."""
    limits, hooks = config.limits, config.hooks
    everywhere = [config.defaults, *config.applications.values()]
    # The answer of a callback may demand relays and recordings.
    callbacks = any(each.auth.auth_callback for each in everywhere)
    recorded = min(connections, limits.stream_limit or connections)
    destinations = len(hooks.hook_scripts) + len(hooks.hook_webhooks)
    sections = (config.server.listen, config.tls.tls_listen, config.metrics.metrics_listen)
    listeners = sum(map(len, (*sections, config.http.http_listen, config.http.http_tls_listen)))
    found = {
        "connections": connections,
        "relays": limits.relay_limit if callbacks or any(each.relay.relay_to for each in everywhere) else 0,
        "recordings": recorded if callbacks or config.record.record_all or config.record.record_streams else 0,
        "hooks": _PER_CALL * max(hooks.hook_concurrency, destinations) if destinations else 0,
        "authentication callbacks": _PER_CALL * AUTH_THREADS if callbacks else 0,
        "clients of metrics": HTTP_CONNECTIONS * len(config.metrics.metrics_listen),
        "addresses": listeners,
        "spare": _SPARE,
    }
    return {purpose: files for purpose, files in found.items() if files}


def _needed(config: Config, connections: int) -> int:
    return sum(needs(config, connections).values())


def _described(config: Config, connections: int) -> str:
    return ", ".join(f"{files} {purpose}" for purpose, files in needs(config, connections).items())


def _bounded(hard_limit: int) -> int:
    return _UNBOUNDED if hard_limit == resource.RLIM_INFINITY else hard_limit


def fitting_connections(config: Config, hard_limit: int) -> int:
    """Return the meaning of ``connection_limit = 0``: as many connections as the hard limit allows, at most 10000.

    Args:
        config: The configuration.
        hard_limit: The hard limit of RLIMIT_NOFILE; may be ``RLIM_INFINITY``.
    """
    allowed = _bounded(hard_limit)
    return bisect_right(range(1, DEFAULT_CONNECTION_LIMIT + 1), allowed, key=lambda count: _needed(config, count))


def descriptors_problem(config: Config, hard_limit: int) -> str:
    """Return why the hard limit is too low for a configuration, with a hint; empty if it is not.

    Args:
        config: The configuration.
        hard_limit: The hard limit of RLIMIT_NOFILE; may be ``RLIM_INFINITY``.
    """
    connections = config.limits.connection_limit
    wanted = connections or LEAST_CONNECTIONS
    if _needed(config, wanted) <= _bounded(hard_limit):
        return ""
    subject = f"connection_limit = {connections}" if connections else f"a server of only {wanted} connections"
    lower = "lower connection_limit, or " if connections else ""
    return (
        f"{subject} needs {_needed(config, wanted)} open files ({_described(config, wanted)}), but the hard limit is "
        f"{hard_limit}: {lower}raise the hard limit (LimitNOFILE= in the unit, ulimit -Hn in a shell)"
    )


def provide_descriptors(config: Config) -> int:
    """Raise the soft limit of open files as far as a configuration needs; return the number of possible connections.

    Raises:
        RtmpdError: The hard limit is too low. Nothing has changed then.
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
        log.log(
            logging.WARNING if connections < _AMPLE_CONNECTIONS else logging.DEBUG,
            "connection_limit = 0 means %d connections here, not %d: the hard limit of open files is %d (%s)",
            connections,
            DEFAULT_CONNECTION_LIMIT,
            hard,
            _described(config, connections),
        )
    return connections
