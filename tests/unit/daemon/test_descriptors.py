from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest

from rtmpd.config.loader import load_text
from rtmpd.daemon import descriptors as module
from rtmpd.daemon.descriptors import (
    LEAST_CONNECTIONS,
    descriptors_problem,
    fitting_connections,
    needs,
    provide_descriptors,
)
from rtmpd.errors import RtmpdError

RECORDING = "[record]\nrecord_all = yes\n"
SPARE = 64 + 2  # and the addresses of RTMP and HTTP


def needed(ini, connections=100):
    return needs(load_text(ini), connections)


# Needs ------------------------------------------------------------------------------------------------------------------


def test_a_server_that_only_serves_needs_a_file_for_each_connection():
    assert needed("") == {"connections": 100, "addresses": 2, "spare": 64}


@pytest.mark.parametrize(
    "ini",
    [
        "[relay]\nrelay_to = rtmp://192.0.2.1/live\n[limits]\nrelay_limit = 30\n",
        "[limits]\nrelay_limit = 30\n[applications]\n[[a]]\n[[b]]\nrelay_to = rtmp://192.0.2.1/live\n",
    ],
)
def test_relays_count_when_there_may_be_any(ini):
    assert needed(ini)["relays"] == 30
    assert "relays" not in needed("[limits]\nrelay_limit = 30\n")


@pytest.mark.parametrize("wanted", ["record_all = yes", "record_streams = live/*"])
def test_a_recording_is_a_file_for_each_stream(wanted):
    assert needed(f"[record]\n{wanted}\n")["recordings"] == 100
    assert needed(f"[record]\n{wanted}\n[limits]\nstream_limit = 7\n")["recordings"] == 7
    # Each has a publisher.
    assert needed(f"[record]\n{wanted}\n[limits]\nstream_limit = 700\n")["recordings"] == 100


def test_hooks_callbacks_metrics_and_addresses_count():
    found = needed(
        "[server]\nlisten = :1935, :1936\n[metrics]\nmetrics_listen = :9500, :9501\n"
        "[hooks]\nhook_webhooks = publish_start=http://192.0.2.1/\nhook_concurrency = 40\n"
        "[applications]\n[[a]]\nauth_mode = callback\nauth_callback = http://192.0.2.1/\n"
    )
    assert found == {
        "connections": 100,
        # Its answers may demand these.
        "relays": 1000,
        "recordings": 100,
        "hooks": 80,
        "authentication callbacks": 32,
        "clients of metrics": 192,
        "addresses": 5,
        "spare": 64,
    }


# Fitting -----------------------------------------------------------------------------------------------------------------


def test_an_explicit_limit_that_just_fits_is_no_problem():
    config = load_text("[limits]\nconnection_limit = 1000\n")
    assert descriptors_problem(config, 1000 + SPARE) == ""
    assert descriptors_problem(config, resource.RLIM_INFINITY) == ""
    assert descriptors_problem(config, 999 + SPARE) == (
        "connection_limit = 1000 needs 1066 open files (1000 connections, 2 addresses, 64 spare), but the hard limit is 1065: "
        "lower connection_limit, or raise the hard limit (LimitNOFILE= in the unit, ulimit -Hn in a shell)"
    )


def test_without_a_limit_only_room_for_fewer_than_16_connections_is_a_problem():
    config = load_text("")
    assert descriptors_problem(config, LEAST_CONNECTIONS + SPARE) == ""
    assert descriptors_problem(config, LEAST_CONNECTIONS + SPARE - 1) == (
        "a server of only 16 connections needs 82 open files (16 connections, 2 addresses, 64 spare), "
        "but the hard limit is 81: raise the hard limit (LimitNOFILE= in the unit, ulimit -Hn in a shell)"
    )


@pytest.mark.parametrize("hard_limit", [100, 1024, 1025, 4096, 10_000 + SPARE - 1])
@pytest.mark.parametrize("ini", ["", RECORDING, RECORDING + "[limits]\nstream_limit = 9\n"])
def test_without_a_limit_as_many_connections_are_possible_as_fit(ini, hard_limit):
    config = load_text(ini)
    count = fitting_connections(config, hard_limit)
    assert sum(needs(config, count).values()) <= hard_limit
    assert sum(needs(config, count + 1).values()) > hard_limit


@pytest.mark.parametrize("hard_limit", [10_000 + SPARE, 1 << 20, resource.RLIM_INFINITY])
def test_without_a_limit_at_most_10000_connections_are_possible(hard_limit):
    assert fitting_connections(load_text(""), hard_limit) == 10_000


# The process ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def limits(monkeypatch):
    """The limits of open files, soft and hard; those of the kernel are not changed."""
    found = [1024, 4096]
    monkeypatch.setattr(module.resource, "getrlimit", lambda which: tuple(found))

    def set_limits(which, new):
        found[:] = new

    monkeypatch.setattr(module.resource, "setrlimit", set_limits)
    return found


def test_the_soft_limit_is_raised_as_far_as_needed_and_no_further(limits):
    assert provide_descriptors(load_text("[limits]\nconnection_limit = 2000\n")) == 2000
    assert limits == [2000 + SPARE, 4096]


def test_a_soft_limit_that_is_high_enough_stays(limits):
    assert provide_descriptors(load_text("[limits]\nconnection_limit = 100\n")) == 100
    assert limits == [1024, 4096]


def test_a_limit_that_does_not_fit_is_refused_and_changes_nothing(limits):
    with pytest.raises(RtmpdError, match=r"^connection_limit = 4096 needs 4162 open files .*, but the hard limit is 4096: "):
        provide_descriptors(load_text("[limits]\nconnection_limit = 4096\n"))
    assert limits == [1024, 4096]


def test_a_reduced_number_of_connections_is_logged(limits, caplog):
    assert provide_descriptors(load_text("")) == 4096 - SPARE
    assert limits == [4096, 4096]
    (message,) = caplog.messages
    assert message == (
        "connection_limit = 0 means 4030 connections here, not 10000: the hard limit of open files is 4096 ("
        "4030 connections, 2 addresses, "
        "64 spare)"
    )


def test_nearly_as_many_connections_are_no_warning(limits, caplog):
    caplog.set_level("INFO")
    for hard, connections in ((10_024, 10_024 - SPARE), (9_000 + SPARE, 9_000)):
        limits[:] = [1024, hard]
        assert provide_descriptors(load_text("")) == connections
        assert not caplog.messages
    limits[:] = [1024, 8_999 + SPARE]
    assert provide_descriptors(load_text("")) == 8_999
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_with_enough_open_files_nothing_is_logged(limits, caplog):
    for limits[:] in ([1024, 65536], [1024, resource.RLIM_INFINITY], [resource.RLIM_INFINITY] * 2):
        soft = limits[0]
        assert provide_descriptors(load_text("")) == 10_000
        assert limits[0] == (resource.RLIM_INFINITY if soft == resource.RLIM_INFINITY else 10_000 + SPARE)
    assert not caplog.messages


def test_the_systemd_unit_allows_the_open_files_of_all_features_by_default():
    unit = (Path(__file__).parents[3] / "systemd" / "rtmpd.service").read_text("utf-8")
    allowed = int(re.search(r"^LimitNOFILE=(\d+)$", unit, re.MULTILINE)[1])
    config = load_text(
        "[server]\nlisten = :1935\n[metrics]\nmetrics_listen = :9500\n[record]\nrecord_all = yes\n"
        "[relay]\nrelay_to = rtmp://192.0.2.1/live\n[hooks]\nhook_webhooks = publish_start=http://192.0.2.1/\n"
        "[auth]\nauth_mode = callback\nauth_callback = http://192.0.2.1/\n"
    )
    assert fitting_connections(config, allowed) == 10_000
