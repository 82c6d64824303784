"""/metrics and /debug/vars of a real server."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gevent import socket
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ROOT
from tests.integration.beside import Bystander, wait_until
from tests.integration.wire import AVC_HEADER, VIDEO, inter, key

INI = "[metrics]\nmetrics_listen = 127.0.0.1:0\n[publish]\npublisher_grace_s = 0\n"


def metrics_port(server):
    return int(server.wait_for_line(r"metrics on http://127\.0\.0\.1:(\d+)/metrics$")[1])


def fetch(port, path="/metrics", method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        return answer, answer.read()


def scrape(port):
    """All samples: (name, labels without their names) to value."""
    answer, body = fetch(port)
    assert answer.status == 200
    families = list(text_string_to_metric_families(body.decode()))
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


@pytest.fixture
def port(shared):
    return metrics_port(shared)


# Figures ----------------------------------------------------------------------------------------------------------------


def test_metrics_follow_publishes_and_plays(server, publisher, player):
    running = server(INI)
    port = metrics_port(running)
    assert scrape(port)["rtmp_connections_total",] == 0
    sender = publisher(running, "a")
    players = [player(running, "a") for _ in range(2)]
    sender.send_video(0, AVC_HEADER)
    size = 0
    for number in range(10):
        payload = key(number) if number % 5 == 0 else inter(number)
        size += len(payload)
        sender.send_video(number * 40, payload)
    for each in players:
        next(message for message in each.messages() if getattr(message, "payload", b"") == payload)
    found = scrape(port)
    assert found["rtmp_connections_total",] == found["rtmp_connections_active",] == 3
    assert found["rtmp_publishers_total",] == found["rtmp_publishers_active",] == 1
    assert found["rtmp_subscribers_total",] == found["rtmp_subscribers_active",] == 2
    assert found["rtmp_messages_video_total",] == 11
    assert found["rtmp_bytes_ingested_total",] == size + len(AVC_HEADER)
    assert found["rtmp_stream_bytes_ingested_total", "live/a"] == size + len(AVC_HEADER)
    assert found["rtmp_stream_bytes_egress_total", "live/a"] == found["rtmp_bytes_egress_total",] > size
    assert found["rtmp_stream_players", "live/a"] == 2
    assert found["rtmp_stream_keyframe_interval_seconds", "live/a"] == 0.2
    wait_until(lambda: scrape(port)["rtmp_stream_lag_seconds", "live/a"] == 0, "no player is behind")
    entry = json.loads(fetch(port, "/debug/vars")[1])["streams"]["live/a"]
    assert (entry["players"], entry["published"], entry["bytes_in"]) == (2, 1, size + len(AVC_HEADER))
    for each in (sender, *players):
        each.close()
    wait_until(lambda: scrape(port)["rtmp_connections_active",] == 0, "all connections are closed")
    found = scrape(port)
    assert found["rtmp_messages_video_total",] == 11
    assert found["rtmp_streams_active",] == found["rtmp_publishers_active",] == found["rtmp_subscribers_active",] == 0
    assert not [names for names in found if "live/a" in names]


def test_rates_are_those_of_the_last_seconds(shared, port, bystander):
    def running():
        bystander.check()
        return scrape(port).get(("rtmp_stream_fps", "live/bystander"), 0) > 50

    wait_until(running, "frames are counted")
    found = scrape(port)
    assert found["rtmp_stream_fps", "live/bystander"] < 110
    # 24 of 25 frames have 59 bytes.
    assert found["rtmp_stream_bitrate_bps", "live/bystander"] == pytest.approx(
        found["rtmp_stream_fps", "live/bystander"] * 8 * 61, rel=0.2
    )
    assert found["rtmp_stream_keyframe_age_seconds", "live/bystander"] < 2
    assert found["rtmp_stream_published", "live/bystander"] == 1


def test_the_lag_of_a_player_is_exported(server, raw):
    running = server(INI + "[backpressure]\nlag_limit_s = 60\n[server]\nunsent_limit_bytes = 1024\n")
    port = metrics_port(running)
    sender = raw(running).publish("a")
    raw(running, receive_buffer=4096).play("a")
    number = 0

    def lags():
        nonlocal number
        number += 1
        sender.send(VIDEO, number * 40, inter(number, 100_000) if number > 1 else key(number))
        return scrape(port)["rtmp_stream_lag_seconds", "live/a"] > 0.1

    wait_until(lags, "a player is behind")


def test_failures_are_counted_by_their_reason(shared, port, raw):
    before = scrape(port)
    with socket.create_connection(("127.0.0.1", shared.port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(2000))
        assert sock.recv(10) == b""
    wait_until(
        lambda: scrape(port)["rtmp_handshake_failures_total",] == before["rtmp_handshake_failures_total",] + 1,
        "the failed handshake is counted",
    )
    wire = raw(shared)
    wire.handshake()
    wire.command("play", "a")
    wait_until(
        lambda: (
            scrape(port)["rtmpd_failures_total", "protocol_errors"] == before["rtmpd_failures_total", "protocol_errors"] + 1
        ),
        "the command before connect is counted",
    )


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "smile\U0001f600", b"\xff\xfe".decode("utf-8", "surrogateescape")])
def test_unusual_stream_names_are_labels(shared, port, publisher, name):
    publisher(shared, name)
    shown = f"live/{name}".encode("utf-8", "backslashreplace").decode()
    assert scrape(port)["rtmp_stream_published", shown] == 1
    assert json.loads(fetch(port, "/debug/vars")[1])["streams"][shown]["published"] == 1


def test_the_process_is_measured(shared, port):
    found = scrape(port)
    assert found["process_open_fds",] >= 8
    assert found["process_resident_memory_bytes",] == pytest.approx(shared.rss_mb() * 2**20, rel=0.1)
    assert found["rtmpd_event_loop_lag_seconds_count",] >= 0
    wait_until(lambda: scrape(port)["rtmpd_event_loop_lag_seconds_count",] > 5, "the lag of the event loop is observed")
    assert abs(found["process_start_time_seconds",] - time.time()) < 600


# HTTP -------------------------------------------------------------------------------------------------------------------


def test_head_is_get_without_a_body(port):
    answer, body = fetch(port, method="HEAD")
    assert (answer.status, body) == (200, b"")
    assert answer.getheader("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
    assert int(answer.getheader("Content-Length")) > 5000
    answer, _ = fetch(port, "/debug/vars")
    assert answer.getheader("Content-Type") == "application/json; charset=utf-8"


def test_other_paths_and_methods_are_refused(port):
    assert fetch(port, "/")[0].status == 404
    assert fetch(port, "/metrics/")[0].status == 404
    answer, _ = fetch(port, method="POST")
    assert (answer.status, answer.getheader("Allow")) == (405, "GET, HEAD, OPTIONS")


def test_slow_http_clients_disturb_no_stream_and_are_disconnected(server):
    running = server(INI)
    port = metrics_port(running)
    bystander = Bystander(running)
    socks = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(40)]
    try:
        for sock in socks[:20]:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nA: ")
        begun = time.monotonic()
        bystander.check()
        # Sixteen have the places, and send nothing more: others come when their 10 s are over.
        assert all(sock.recv(100).startswith(b"HTTP/1.1 408 ") for sock in socks[:16])
        assert 5 < time.monotonic() - begun < 15
        for sock in socks:
            sock.close()
        assert scrape(port)["rtmpd_failures_total", "http_deadlines"] >= 16
        bystander.check()
    finally:
        for sock in socks:
            sock.close()
        bystander.close()


# The daemon -------------------------------------------------------------------------------------------------------------


def test_without_an_address_there_is_no_listener(server, publisher):
    running = server()
    publisher(running, "a")
    assert not [line for line in running.log() if "metrics" in line]
    links = [str(path.readlink()) for path in Path(f"/proc/{running.pid}/fd").iterdir()]
    # State 0A is listening.
    lines = [line.split() for line in Path(f"/proc/{running.pid}/net/tcp").read_text().splitlines()]
    assert len([words for words in lines if words[3] == "0A" and f"socket:[{words[9]}]" in links]) == 1


def test_the_flag_accepts_several_addresses(server):
    running = server("", "--metrics-addr", ":0", "--metrics-addr", "127.0.0.1:0")
    first = metrics_port(running)
    second = int([line for line in running.log() if "metrics on" in line][1].rpartition(":")[2].partition("/")[0])
    assert first != second
    assert scrape(first).keys() == scrape(second).keys()


def test_a_port_in_use_fails_the_start_with_a_reason():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "rtmpd", "--listen", "127.0.0.1:0", "--metrics-addr", f":{port}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=20, check=False)
    assert done.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}: Address already in use: another process listens on it" in done.stderr
    assert "Traceback" not in done.stderr
    assert "listening on" not in done.stderr


def test_a_reload_keeps_the_listener_and_applies_the_limit(server, publisher, tmp_path):
    running = server(INI)
    port = metrics_port(running)
    for name in "abc":
        publisher(running, name)
    assert len([names for names in scrape(port) if names[0] == "rtmp_stream_players"]) == 3
    changed = "[metrics]\nmetrics_listen = 127.0.0.1:1\nstream_series_limit = 1\n"
    (tmp_path / "rtmpd.ini").write_text(changed)
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_line("configuration reloaded")
    running.wait_for_line(r"WARNING reload: \[metrics\] metrics_listen keeps its old value until rtmpd is restarted")
    found = scrape(port)
    assert [names[1] for names in found if names[0] == "rtmp_stream_players"] == ["live/a", "(other)"]
    assert found["rtmp_stream_players", "(other)"] == 0
    assert found["rtmp_publishers_active",] == 3


def test_a_stop_in_the_middle_of_a_request_is_orderly(server):
    running = server(INI)
    with socket.create_connection(("127.0.0.1", metrics_port(running)), timeout=20) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\n")
        begun = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - begun < 5
        assert sock.recv(10) == b""


# Peers that no longer respond -------------------------------------------------------------------------------------------


def test_a_peer_that_disconnects_is_counted_once_in_every_phase(server, raw):
    limits = "read_timeout_s = 1\nping_interval_s = 0.3\nping_timeout_s = 1\nconnect_timeout_s = 1\n"
    running = server(f"{INI}[server]\n{limits}")
    port = metrics_port(running)
    publisher = raw(running).publish("a")
    publisher.send(VIDEO, 0, key(0))
    player = raw(running).play("b")
    # A connection that neither published nor played exceeds a deadline, and is not counted as a zombie.
    idle = raw(running)
    idle.connect()
    for each in (publisher, player, idle):
        each.answers_pings = False
        each.rest()
    found = scrape(port)
    assert found["rtmp_zombie_connections_total",] == 2
    assert found["rtmpd_failures_total", "deadlines_exceeded"] == 3
