"""Prometheus itself: its checker finds nothing wrong with /metrics, and a server of its own scrapes it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from rtmpd.client import Client
from tests.e2e.media import until
from tests.integration.wire import AVC_HEADER, key

ROOT = Path(__file__).parents[2]
PACKAGE = "prometheus"
INI = "[metrics]\nmetrics_listen = 127.0.0.1:0\nstream_series_limit = 3\n"
NAMES = ["plain", 'qu"o\\te', b"\xff\xfe\xc3".decode("utf-8", "surrogateescape"), "smile\U0001f600", "one more"]
CONFIG = """
global:
  scrape_interval: 1s
scrape_configs:
  - job_name: rtmpd
    static_configs:
      - targets: ["127.0.0.1:{port}"]
"""


@pytest.fixture
def live(server):
    """A server with streams of odd names, each with a player; the first has a picture."""
    running = server(INI)
    clients = []
    for name in NAMES:
        publisher, player = Client(running.url(name)), Client(running.url(name))
        clients += [publisher, player]
        publisher.publish()
        player.play()
    clients[0].send_video(0, AVC_HEADER)
    clients[0].send_video(0, key(0))
    clients[0].send_video(2000, key(1))
    # What its player has, the server has counted.
    next(message for message in clients[1].messages() if getattr(message, "payload", b"") == key(1))
    yield running
    for client in clients:
        client.close()


def metrics_url(running):
    return running.wait_for_line(r"metrics on (http://\S+/metrics)")[1]


def get(url):
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read()


def promtool(peer, *arguments, text=b""):
    done = subprocess.run([peer("promtool", PACKAGE), *arguments], input=text, capture_output=True, timeout=20, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.peer
def test_promtool_accepts_the_metrics(live, peer):
    text = get(metrics_url(live))
    assert b"rtmp_stream_keyframe_interval_seconds{" in text
    assert promtool(peer, "check", "metrics", text=text) == (0, "")


@pytest.mark.peer
def test_the_examples_of_the_page_are_right(peer, tmp_path):
    text = (ROOT / "docs" / "metrics.rst").read_text("utf-8")
    examples = re.findall(r"^\.\. code-block:: yaml\n\n((?:   .*\n|\n)+)", text, re.MULTILINE)
    scrape, rules = ("".join(line[3:] or "\n" for line in each.splitlines(keepends=True)) for each in examples)
    (tmp_path / "prometheus.yml").write_text(scrape)
    (tmp_path / "rules.yml").write_text(rules)
    assert promtool(peer, "check", "config", "--lint-fatal", str(tmp_path / "prometheus.yml"))[0] == 0
    code, said = promtool(peer, "check", "rules", "--lint-fatal", str(tmp_path / "rules.yml"))
    assert (code, "13 rules found" in said) == (0, True), said


class Prometheus:
    """A Prometheus that scrapes one server every second."""

    def __init__(self, program: str, directory: Path, port: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        config = directory / "prometheus.yml"
        config.write_text(CONFIG.format(port=port))
        self.url = f"http://{address}/api/v1"
        self.log = directory / "prometheus.log"
        command = [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address={address}",
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)

    def ask(self, path: str, **query: str):
        try:
            answer = json.loads(get(f"{self.url}/{path}?{urllib.parse.urlencode(query)}"))
        except OSError:
            # It is not up yet.
            assert self.process.poll() is None, self.log.read_text()
            return None
        assert answer["status"] == "success"
        return answer["data"]

    def values(self, query: str) -> dict[str, float]:
        """The present value for each stream."""
        data = self.ask("query", query=query) or {"result": []}
        return {each["metric"].get("stream", ""): float(each["value"][1]) for each in data["result"]}

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def prometheus(live, peer, tmp_path):
    port = int(urllib.parse.urlsplit(metrics_url(live)).port)
    made = Prometheus(peer("prometheus", PACKAGE), tmp_path, port)
    yield made
    made.close()


@pytest.mark.peer
def test_prometheus_scrapes_it(live, prometheus):
    until(lambda: prometheus.values("up") == {"": 1}, "Prometheus has scraped the server")
    expected = {"live/plain": 1, 'live/qu"o\\te': 1, "live/\\udcff\\udcfe\\udcc3": 1, "(other)": 2}
    assert prometheus.values("rtmp_stream_players") == expected
    assert prometheus.values("rtmp_stream_keyframe_interval_seconds") == {"live/plain": 2}
    assert prometheus.values("rtmp_connections_active") == {"": 10}
    assert prometheus.values("rtmp_messages_video_total") == {"": 3}
    kinds = prometheus.ask("metadata")
    assert kinds["rtmp_connections_total"][0]["type"] == "counter"
    assert kinds["rtmpd_event_loop_lag_seconds"][0]["type"] == "histogram"
    # A rate and a quantile need a few scrapes.
    until(lambda: prometheus.values("histogram_quantile(0.5, rate(rtmpd_event_loop_lag_seconds_bucket[1m]))"), "two scrapes")
    (target,) = prometheus.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert prometheus.values("scrape_samples_scraped")[""] > 80
