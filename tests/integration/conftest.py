"""Fixtures of the integration tests: a server per module, and clients that are closed when a test ends."""

from __future__ import annotations

import re
from contextlib import ExitStack

import pytest

from rtmpd.client import Client
from tests.conftest import Server
from tests.integration.beside import Bystander
from tests.integration.web import Web
from tests.integration.wire import Wire


@pytest.fixture(scope="module")
def shared(request, tmp_path_factory):
    """One server for the module, with the module's INI; the last test fails if it met an internal error."""
    made = Server(getattr(request.module, "INI", ""), directory=tmp_path_factory.mktemp("shared"))
    yield made
    made.process.terminate()
    # Read what is in the log's pipe: a full one would hold up the end.
    made.wait_for_line(r" INFO +stopped\b")
    code = made.stop()
    internal = [line for line in made.lines if "internal error" in line or "Traceback" in line or " CRITICAL" in line]
    assert not internal, "\n".join(made.lines[-60:])
    assert code == 0


@pytest.fixture(scope="module")
def bystander(shared):
    """A publisher and a player of the module's server that must notice nothing of its tests."""
    made = Bystander(shared)
    yield made
    made.close()


@pytest.fixture
def name(request):
    """A stream name of the test's own, and of its try: the server may keep a stream for a while."""
    return re.sub(r"\W+", "_", f"{request.node.name}_{getattr(request.node, 'execution_count', 1)}")


@pytest.fixture
def opened():
    """A stack that closes what a test opens."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def raw(opened):
    """Return a function that connects a `Wire`."""

    def connect(server, **options) -> Wire:
        return opened.enter_context(Wire(server, **options))

    return connect


@pytest.fixture
def player(opened):
    """Return a function that connects a client and plays."""

    def play(server, name: str, app: str = "live", **options) -> Client:
        client = opened.enter_context(Client(server.url(name, app), **options))
        client.play()
        return client

    return play


@pytest.fixture
def publisher(opened):
    """Return a function that connects a client and publishes."""

    def publish(server, name: str, app: str = "live", **options) -> Client:
        client = opened.enter_context(Client(server.url(name, app), **options))
        client.publish()
        return client

    return publish


@pytest.fixture
def web():
    """A web server, for callbacks."""
    with Web() as made:
        yield made


@pytest.fixture
def watched_server(server):
    """Start a server as `server` does; the test fails if the secret ``s3cret`` has got into its log."""
    started = []

    def start(*arguments, **options):
        started.append(server(*arguments, **options))
        return started[-1]

    yield start
    for made in started:
        made.stop()
        told = [line for line in made.lines if "s3cret" in line]
        assert not told, told
