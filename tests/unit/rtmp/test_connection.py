"""The state of a connection: its log, its phase, and what a sweep does to it."""

from __future__ import annotations

import logging

import pytest

from rtmpd.errors import LimitExceeded
from rtmpd.phases import CloseKind, CloseReason, ConnectionPhase
from rtmpd.util.connection_log import ConnectionLog
from tests.unit.rtmp.fakes import ConnectionTransport, FakePolicy, connection_options, new_connection

STOPPING = CloseReason(CloseKind.SHUTDOWN, "the server is stopping")
LEFT = CloseReason(CloseKind.PEER_LEFT, "closed by the peer")


def test_each_log_record_has_the_number_the_peer_and_the_stream(caplog):
    caplog.set_level(logging.INFO, "rtmpd")
    log = ConnectionLog(logging.getLogger("rtmpd.test"), 7, "[fe80::1%eth0]:50512")
    log.info("closed: %s", "100%")
    log.stream = "live/a"
    log.info("closed")
    log.info("stopped", extra={"stream": "live/b"})
    found = [(each.getMessage(), each.connection, each.peer, each.stream) for each in caplog.records]
    assert found == [
        ("closed: 100%", 7, "[fe80::1%eth0]:50512", ""),
        ("closed", 7, "[fe80::1%eth0]:50512", "live/a"),
        ("stopped", 7, "[fe80::1%eth0]:50512", "live/b"),
    ]


def test_a_connection_has_at_most_twenty_attributes():
    assert len(vars(new_connection())) <= 20


# Phases -----------------------------------------------------------------------------------------------------------------


def test_the_first_phase_is_the_handshake_and_of_rtmps_the_tls_handshake():
    transport = ConnectionTransport()
    transport.scheme = "rtmps"
    assert new_connection().phase is ConnectionPhase.HANDSHAKE
    assert new_connection(transport=transport).phase is ConnectionPhase.TLS_HANDSHAKE


def test_the_first_reason_of_a_close_counts():
    policy = FakePolicy()
    connection = new_connection(policy)
    first = CloseReason(CloseKind.DEADLINE, "neither published nor played within 10 s")
    connection.close(first)
    connection.close(STOPPING)
    assert connection.phase is ConnectionPhase.CLOSING
    assert connection.transport.close_reason is first
    connection.closed(LEFT)
    assert connection.phase is ConnectionPhase.CLOSED
    assert connection.close_reason is first
    assert policy.counted == ["deadlines_exceeded"]


def test_a_client_that_leaves_while_it_is_refused_does_not_change_the_reason():
    policy = FakePolicy()
    connection = new_connection(policy)
    refused = CloseReason(CloseKind.REFUSED, "refused: code: no")
    connection.begin_closing(refused)
    # It may still read the refusal.
    assert not connection.transport.close_reason
    connection.closed(LEFT)
    assert connection.transport.close_reason is connection.close_reason is refused
    # Refusals are counted where they happen.
    assert policy.counted == []


@pytest.mark.parametrize("phase", [ConnectionPhase.COMMAND, ConnectionPhase.PUBLISH])
def test_a_closing_connection_enters_no_other_phase(phase):
    connection = new_connection()
    connection.close(STOPPING)
    connection.enter(phase)
    connection.settle()
    assert connection.phase is ConnectionPhase.CLOSING
    connection.closed(LEFT)
    connection.settle()
    assert connection.phase is ConnectionPhase.CLOSED


def test_an_exceeded_command_limit_names_the_limit_in_force_when_the_connection_was_accepted():
    connection = new_connection(ini="[limits]\ncommand_limit = 10\n")
    connection.options = connection_options("[limits]\ncommand_limit = 20\n")
    for _ in range(10):
        connection.check_command_rate()
    with pytest.raises(LimitExceeded, match=r"is 10, .* 11"):
        connection.check_command_rate()


# The sweep --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [ConnectionPhase.CONNECT, ConnectionPhase.COMMAND])
def test_a_connection_that_neither_publishes_nor_plays_is_closed(phase, caplog):
    policy = FakePolicy()
    connection = new_connection(policy, ini="[server]\nconnect_timeout_s = 5\nping_interval_s = 0\n")
    connection.enter(ConnectionPhase.CONNECT)
    connection.enter(phase)
    connection.sweep(connection.opened_at + 4.9)
    assert not connection.transport.close_reason
    connection.sweep(connection.opened_at + 5.1)
    assert connection.transport.close_reason == "neither published nor played within 5 s"
    assert connection.close_reason.kind is CloseKind.DEADLINE
    assert policy.counted == ["deadlines_exceeded"]
    assert caplog.messages == [f"{phase.value}: neither published nor played within 5 s"]


@pytest.mark.parametrize("phase", [ConnectionPhase.HANDSHAKE, ConnectionPhase.AUTHORIZE, ConnectionPhase.CLOSING])
def test_a_phase_with_its_own_deadline_is_not_swept(phase):
    connection = new_connection()
    if phase is not ConnectionPhase.HANDSHAKE:
        connection.enter(ConnectionPhase.CONNECT)
        connection.enter(ConnectionPhase.COMMAND)
        connection.enter(phase)
    connection.sweep(connection.opened_at + 10_000)
    assert not connection.transport.close_reason
    assert connection.transport.data == b""


def test_the_wait_for_the_authorizer_does_not_count_as_silence():
    connection = new_connection(ini="[server]\nconnect_timeout_s = 5\nping_interval_s = 5\nping_timeout_s = 5\n")
    for phase in (ConnectionPhase.CONNECT, ConnectionPhase.COMMAND, ConnectionPhase.AUTHORIZE):
        connection.enter(phase)
    connection.sweep(connection.opened_at + 100)
    connection.enter(ConnectionPhase.COMMAND)
    connection.sweep(connection.opened_at + 104)
    assert not connection.transport.close_reason
    connection.sweep(connection.opened_at + 106)
    assert connection.close_reason.kind is CloseKind.DEADLINE


def test_a_client_that_answers_no_ping_is_closed(caplog):
    policy = FakePolicy()
    connection = new_connection(policy, ini="[server]\nconnect_timeout_s = 100\nping_interval_s = 5\nping_timeout_s = 3\n")
    for phase in (ConnectionPhase.CONNECT, ConnectionPhase.COMMAND):
        connection.enter(phase)
    connection.sweep(connection.opened_at + 5.1)
    sent = len(connection.transport.data)
    assert sent
    connection.sweep(connection.opened_at + 7)
    assert len(connection.transport.data) == sent
    assert not connection.transport.close_reason
    connection.sweep(connection.opened_at + 8.1)
    assert connection.transport.close_reason == "no answer to a ping for 3 s"
    assert policy.counted == ["deadlines_exceeded", "zombie_connections"]
    assert caplog.messages == ["command: no answer to a ping for 3 s"]


def test_a_client_that_does_not_read_a_ping_is_closed():
    policy = FakePolicy()
    connection = new_connection(policy, ConnectionTransport(3), ini="[server]\nping_interval_s = 5\nconnect_timeout_s = 100\n")
    for phase in (ConnectionPhase.CONNECT, ConnectionPhase.COMMAND):
        connection.enter(phase)
    connection.sweep(connection.opened_at + 5.1)
    assert connection.close_reason == "its socket accepts no data"
    assert policy.counted == []
