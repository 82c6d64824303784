from __future__ import annotations

import errno
import logging
import resource

import gevent
import pytest
from gevent import get_hub, socket
from gevent.event import Event

from rtmpd.config.loader import load_text
from rtmpd.config.model import ListenAddress
from rtmpd.daemon.main import Daemon
from rtmpd.errors import ConfigError, RtmpdError
from rtmpd.net.listener import Listener
from rtmpd.rtmp.connection import ClientInfo
from tests.ports import free_port

LIMIT_S = 10


@pytest.fixture
def make_daemon(monkeypatch, caplog):
    """Make daemons on ports that the kernel chooses, with their log in caplog."""
    made = []
    caplog.set_level(logging.INFO, "rtmpd")
    hub = get_hub()
    # The daemon replaces the method; this restores it.
    monkeypatch.setattr(hub, "print_exception", hub.print_exception)

    def make(ini="", addresses="127.0.0.1:0"):
        made.append(Daemon(load_text(f"[server]\nlisten = {addresses}\n{ini}")))
        return made[-1]

    yield make
    for daemon in made:
        for service in daemon.services:
            service.stop(0)
        for listener in daemon.ports.listeners:
            listener.close()
            listener.kill()
        if daemon.hub.greenlet is not None:
            daemon.hub.greenlet.kill()


def connect(daemon, index=0):
    return socket.create_connection(("127.0.0.1", daemon.ports.listeners[index].port), timeout=LIMIT_S)


# Start and stop ---------------------------------------------------------------------------------------------------------


def test_the_server_runs_until_a_stop_request(make_daemon, caplog):
    daemon = make_daemon()
    daemon.start()
    port = daemon.ports.listeners[0].port
    assert f"listening on 127.0.0.1:{port}" in caplog.text
    client = connect(daemon)
    waiting = gevent.spawn(daemon.wait)
    while not daemon.hub.connections:
        gevent.sleep(0)
    daemon.request_stop()
    assert waiting.get(timeout=LIMIT_S) == 0
    assert client.recv(1) == b""
    assert not daemon.hub.connections
    with pytest.raises(ConnectionRefusedError):
        connect(daemon)
    assert "stopping: 0 streams, 1 connection" in caplog.text


def test_every_address_is_listened_on(make_daemon):
    daemon = make_daemon(addresses="127.0.0.1:0, 127.0.0.1:0")
    daemon.start()
    assert len({listener.port for listener in daemon.ports.listeners}) == 2
    connect(daemon, 0).close()
    connect(daemon, 1).close()


def test_when_one_address_is_taken_none_is_left_open(make_daemon):
    taken = Listener(ListenAddress("127.0.0.1", 0), lambda transport: None)
    port = free_port()
    daemon = make_daemon(addresses=f"127.0.0.1:{port}, 127.0.0.1:{taken.port}")
    with pytest.raises(RtmpdError, match=f"can't listen on 127.0.0.1:{taken.port}"):
        daemon.start()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
    taken.close()


@pytest.fixture
def stubborn(monkeypatch):
    """Connections that do not end by themselves."""

    def attach(daemon):
        ended = []

        def serve(transport):
            try:
                Event().wait()
            except gevent.GreenletExit:
                ended.append(transport.peer)

        monkeypatch.setattr(daemon.ports, "_serve", serve)
        return ended

    return attach


def test_connections_that_do_not_leave_are_ended_after_the_drain(make_daemon, stubborn):
    daemon = make_daemon("drain_timeout_s = 0.1\n")
    ended = stubborn(daemon)
    daemon.start()
    clients = [connect(daemon) for _ in range(3)]
    waiting = gevent.spawn(daemon.wait)
    gevent.sleep(0.01)
    daemon.request_stop()
    assert waiting.get(timeout=LIMIT_S) == 0
    assert len(ended) == 3
    assert all(client.recv(1) == b"" for client in clients)


def test_without_a_drain_connections_are_closed_at_once(make_daemon, stubborn):
    daemon = make_daemon("drain_timeout_s = 0\n")
    stubborn(daemon)
    daemon.start()
    client = connect(daemon)
    gevent.sleep(0.01)
    daemon.request_stop()
    assert gevent.spawn(daemon.wait).get(timeout=LIMIT_S) == 0
    assert client.recv(1) == b""


def test_a_second_stop_request_does_not_wait_for_connections(make_daemon, stubborn, caplog):
    daemon = make_daemon("drain_timeout_s = 3600\n")
    ended = stubborn(daemon)
    daemon.start()
    client = connect(daemon)
    waiting = gevent.spawn(daemon.wait)
    gevent.sleep(0.01)
    daemon.request_stop()
    gevent.sleep(0.01)
    assert not waiting.ready()
    gevent.spawn(daemon.request_stop)
    assert waiting.get(timeout=LIMIT_S) == 0
    assert len(ended) == 1
    assert client.recv(1) == b""
    assert "stop requested twice" in caplog.text


class SlowService:
    """A service that stops slowly, or fails to stop."""

    def __init__(self, error=None):
        self.error = error
        self.limits = []
        self.may_end = Event()

    def start(self):
        pass

    def reload(self, config):
        pass

    def stop(self, limit_s):
        self.limits.append(limit_s)
        if self.error is not None:
            raise self.error
        self.may_end.wait()


def test_a_second_stop_request_does_not_wait_for_services(make_daemon, caplog):
    daemon = make_daemon()
    slow = SlowService()
    daemon.services = [slow]
    daemon.start()
    waiting = gevent.spawn(daemon.wait)
    daemon.request_stop()
    while not slow.limits:
        gevent.sleep(0)
    assert not waiting.ready()
    daemon.request_stop()
    assert waiting.get(timeout=LIMIT_S) == 0
    slow.may_end.set()
    daemon.services = []


def test_a_service_that_fails_to_stop_does_not_prevent_the_others_from_stopping(make_daemon, caplog, monkeypatch):
    monkeypatch.setattr("rtmpd.daemon.main._SERVICES_STOP_S", 0.05)
    monkeypatch.setattr("rtmpd.daemon.main._SLACK_S", 0.05)
    daemon = make_daemon()
    fails, hangs, last = SlowService(RuntimeError("a bug")), SlowService(), SlowService()
    last.may_end.set()
    daemon.services = [fails, hangs, last]
    daemon.start()
    waiting = gevent.spawn(daemon.wait)
    daemon.request_stop()
    assert waiting.get(timeout=LIMIT_S) == 0
    assert last.limits == [0.0]
    assert "a bug" in caplog.text
    hangs.may_end.set()
    daemon.services = []


class UnsweptConnection:
    """A bug that ends the greenlet of the hub."""

    client = ClientInfo()

    def sweep(self, now_s):
        raise RuntimeError("a bug")

    def close(self, reason):
        pass


def test_the_server_ends_with_an_error_when_the_hub_fails(make_daemon, monkeypatch, caplog):
    monkeypatch.setattr("rtmpd.hub._SWEEP_S", 0.001)
    daemon = make_daemon("drain_timeout_s = 0\n")
    daemon.start()
    daemon.hub.connections.add(UnsweptConnection())
    waiting = gevent.spawn(daemon.wait)
    assert waiting.get(timeout=LIMIT_S) == 1
    assert "the greenlet of the hub failed" in caplog.text


# Unhandled errors ------------------------------------------------------------------------------------------------------


def test_an_error_that_escapes_a_greenlet_is_logged_and_counted(make_daemon, caplog):
    daemon = make_daemon()
    daemon.start()

    def fail():
        raise RuntimeError("a bug")

    gevent.spawn(fail).join()
    assert daemon.hub.counters["internal_errors"] == 1
    assert "internal error in <Greenlet" in caplog.text
    assert "RuntimeError: a bug" in caplog.text


def test_an_error_in_an_event_loop_callback_is_logged_and_counted(make_daemon, caplog):
    daemon = make_daemon()
    daemon.start()
    get_hub().loop.run_callback(lambda: [][1])
    gevent.sleep(0)
    gevent.sleep(0)
    assert daemon.hub.counters["internal_errors"] == 1
    assert "IndexError" in caplog.text


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_missing_descriptors_are_counted_and_logged_seldom(make_daemon, caplog, number):
    daemon = make_daemon()
    daemon.start()

    def fail():
        raise OSError(number, "Too many open files")

    for _ in range(20):
        gevent.spawn(fail).join()
    assert daemon.hub.counters["accept_failures"] == 20
    assert daemon.hub.counters["internal_errors"] == 0
    assert [record.levelname for record in caplog.records if "can't accept connections" in record.getMessage()] == ["ERROR"]


def test_a_greenlet_that_is_killed_is_no_error(make_daemon):
    daemon = make_daemon()
    daemon.start()
    victim = gevent.spawn(gevent.sleep, LIMIT_S)
    gevent.sleep(0)
    victim.kill()
    assert daemon.hub.counters["internal_errors"] == 0


# Reload -----------------------------------------------------------------------------------------------------------------


def test_a_reload_applies_the_new_options(make_daemon, caplog):
    daemon = make_daemon()
    daemon.reload(lambda: load_text("[server]\nlisten = 127.0.0.1:0\nping_interval_s = 7\n[live]\nkeyframe_wait_s = 3\n"))
    assert daemon.config.server.ping_interval_s == daemon.hub.config.server.ping_interval_s == 7
    assert daemon.hub.config.live.keyframe_wait_s == 3
    assert caplog.messages[-1] == "configuration reloaded: [server] ping_interval_s = 7, [live] keyframe_wait_s = 3"
    daemon.reload(lambda: daemon.config)
    assert caplog.messages[-1] == "configuration reloaded: nothing has changed"


def test_a_wrong_configuration_changes_nothing_and_every_problem_is_logged(make_daemon, caplog):
    daemon = make_daemon()
    before = daemon.config

    def load():
        raise ConfigError(["rtmpd.ini:1: first", "rtmpd.ini:2: second"])

    daemon.reload(load)
    assert daemon.config is before
    assert daemon.hub.config is before
    for text in ("rtmpd.ini:1: first", "rtmpd.ini:2: second", "the old configuration stays in force"):
        assert text in caplog.text


def test_options_that_need_a_restart_are_kept_and_named(make_daemon, caplog):
    daemon = make_daemon()
    before = daemon.config
    text = "[server]\nlisten = 127.0.0.1:0\nchunk_size_bytes = 4096\nping_interval_s = 7\n[log]\nqueue_limit = 5\n"
    for _ in range(2):
        caplog.clear()
        daemon.reload(lambda: load_text(text))
        assert daemon.config.server.chunk_size_bytes == before.server.chunk_size_bytes
        assert daemon.config.log.queue_limit == before.log.queue_limit
        assert daemon.config.server.ping_interval_s == 7
        for option in ("[server] chunk_size_bytes", "[log] queue_limit"):
            assert f"{option} keeps its old value until rtmpd is restarted" in caplog.text


def test_a_reload_changes_the_addresses_and_keeps_connections(make_daemon, caplog):
    daemon = make_daemon()
    daemon.start()
    client = connect(daemon)
    port, other = daemon.ports.listeners[0].port, free_port()
    while not daemon.hub.connections:
        gevent.sleep(0)
    assert daemon.reload(lambda: load_text(f"[server]\nlisten = 127.0.0.1:{other}\n")) == ""
    assert f"listening on 127.0.0.1:{other}" in caplog.text
    assert f"no longer listening on 127.0.0.1:{port}" in caplog.text
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
    assert daemon.hub.listening == (("127.0.0.1", other),)
    connect(daemon).close()
    assert daemon.hub.connections
    waiting = gevent.spawn(daemon.wait)
    daemon.request_stop()
    assert waiting.get(timeout=LIMIT_S) == 0
    assert client.recv(1) == b""


def test_a_reload_with_an_address_that_is_taken_changes_nothing(make_daemon, caplog):
    taken = Listener(ListenAddress("127.0.0.1", 0), lambda transport: None)
    daemon = make_daemon()
    daemon.start()
    text = f"[server]\nlisten = 127.0.0.1:{free_port()}, 127.0.0.1:{taken.port}\nping_interval_s = 7\n"
    problem = daemon.reload(lambda: load_text(text))
    assert problem.startswith(f"can't listen on 127.0.0.1:{taken.port}")
    assert daemon.config.server.ping_interval_s == 30
    assert f"reload failed: {problem}; the old configuration stays in force" in caplog.text
    connect(daemon).close()
    assert len(daemon.ports.listeners) == 1
    taken.close()


# Descriptors ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def descriptors(monkeypatch):
    """The limits of open files, soft and hard; those of the kernel are not changed."""
    limits = [1024, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda which: tuple(limits))

    def set_limits(which, new):
        limits[:] = new

    monkeypatch.setattr(resource, "setrlimit", set_limits)
    return limits


def test_the_limit_of_open_files_is_raised_as_far_as_needed(make_daemon, descriptors):
    make_daemon("[limits]\nconnection_limit = 2000\n").start()
    assert 2000 < descriptors[0] < 4096
    assert descriptors[1] == 4096


def test_more_connections_than_open_files_prevent_the_start(make_daemon, descriptors):
    with pytest.raises(RtmpdError, match=r"connection_limit = 10000 needs 1\d{4} open files"):
        make_daemon("[limits]\nconnection_limit = 10000\n").start()
    assert descriptors == [1024, 4096]


def test_without_a_limit_there_are_as_many_connections_as_open_files_allow(make_daemon, descriptors):
    daemon = make_daemon()
    daemon.start()
    assert 3900 < daemon.hub.connection_limits.capacity < 4096
    assert descriptors == [4096, 4096]


def test_a_reload_with_more_connections_than_open_files_changes_nothing(make_daemon, descriptors, caplog):
    daemon = make_daemon("[limits]\nconnection_limit = 100\n")
    daemon.start()
    more = load_text("[server]\nlisten = 127.0.0.1:0\n[limits]\nconnection_limit = 10000\n")
    assert daemon.reload(lambda: more).startswith("connection_limit = 10000 needs")
    assert "the old configuration stays in force" in caplog.text
    assert daemon.hub.config.limits.connection_limit == 100
    assert descriptors == [1024, 4096]
    fitting = load_text("[server]\nlisten = 127.0.0.1:0\n[limits]\nconnection_limit = 3000\n")
    assert daemon.reload(lambda: fitting) == ""
    assert daemon.hub.config.limits.connection_limit == 3000
    assert 3000 < descriptors[0] < 4096
