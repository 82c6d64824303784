"""Short and small forms of the attacks of ``make torture`` that no other test has: viewers and memory hardly notice.

The attackers are a process of their own.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from bench import attacks
from bench.holds import Holds
from tests.conftest import ROOT
from tests.integration.test_load import Watched
from tests.ports import free_port

ATTACK_S = 1.0
RSS_GROWTH_MB = 60
HOLD_MS = 100

# By attack: its scale, and the counts that show that it took place.
SHORT = {
    "long-names": (1, ("bursts",)),
    "unread-replies": (0.4, ("mb",)),
    "guesses": (0.2, ("guesses",)),
    "waiting-plays": (0.04, ("plays",)),
    "handshakes": (0.1, ("connections",)),
    "leaving": (0.05, ("clients",)),
    "hello-and-gone": (0.15, ("connections",)),
    "connections": (0.3, ("connections",)),
    "slow-bytes": (0.2, ("connections",)),
    "codecs": (0.5, ("mb",)),
    "endless-answers": (0.5, ("posts", "mb")),
    "hanging-names": (0.5, ("publishes",)),
}
MORE_INI = {"handshakes": "[server]\nhandshake_timeout_s = 0.5\n"}


@contextmanager
def attacked(running, name, scale, more_port):
    """Attack a server; yield the figures of the attackers, which are complete at the end."""
    command = [sys.executable, "-m", "bench.attacks", name, "--port", running.port, "--more-port", more_port]
    command += ["--pid", running.pid, "--scale", scale, "--nice", 5]
    figures = {}
    with subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            json.loads(process.stdout.readline())
            process.send_signal(signal.SIGUSR1)
            yield figures
            process.send_signal(signal.SIGTERM)
            figures |= json.loads(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.parametrize("name", SHORT)
def test_an_attack_delays_no_viewer_and_costs_little_memory(server, tmp_path, authority, name):
    attack, more_port = attacks.ATTACKS[name], free_port()
    if "tls.pem" in attack.ini:
        shutil.copy(authority.issue("localhost").both, tmp_path / "tls.pem")
    ini = attack.ini.replace("{more_port}", str(more_port)).replace("{work}", str(tmp_path)) + MORE_INI.get(name, "")
    holds = Holds(tmp_path / "holds", create=True)
    # Names below hanging.invalid are never found.
    start = (
        str(ROOT / "bench" / "holds.py"),
        str(tmp_path / "holds"),
        "rtmpd",
        "--listen",
        "127.0.0.1:0",
        "--log-level",
        "info",
    )
    running = server(ini or "[live]\n", start=start)
    watched = Watched(running)
    before_mb = running.rss_mb()
    scale, did = SHORT[name]
    holds.begin()
    with attacked(running, name, scale, more_port) as figures:
        watched.check(ATTACK_S)
        after_mb = running.rss_mb()
    assert all(figures["did"].get(what) for what in did), figures
    longest_ms, _ = holds.end()
    assert longest_ms < HOLD_MS
    assert after_mb < before_mb + RSS_GROWTH_MB
    watched.close()
