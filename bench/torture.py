"""Attack a server beside a watched stream, one attack after the other, and hold what its viewers and its event loop suffer
against bounds."""

import contextlib
import os
import signal
import tempfile
import time
from pathlib import Path

from bench import attacks, servers
from bench.holds import Holds
from bench.servers import BenchError, Load

P99_BOUND_MS, HOLD_BOUND_MS = 20, 10
BADLY = 5  # a bound is broken badly if the figure is this many times as large
LIMIT_S = 300
OVERHEAD_S = 8  # of an attack, beside its window
VIEWERS = 5
PRECEDENCE = -15  # nice value
PUBLISH_LIMIT_S = 60
LOG_LEVEL = ("--log-level", "info")
COLUMNS = ("attack", "p99 ms", "hold ms", "holds", "CPU %", "RSS MB", "attackers %", "verdict")


def torture(bench):
    """Each attack of bench.attacks beside a watched stream: p99 of its viewers, longest hold of the loop, CPU and RSS."""
    options = bench.options
    names = options.attacks or list(attacks.ATTACKS)
    rows, ends_s = [], time.monotonic() + LIMIT_S
    for name in names:
        attack = attacks.ATTACKS[name]
        if time.monotonic() + attack.seconds + OVERHEAD_S > ends_s:
            print(f"torture  attack={name}  skipped: {LIMIT_S} s are over")
            bench.failed = True
            continue
        row = _one(bench, name, attack)
        rows.append(row or {"attack": name, "verdict": "failed"})
    _print_table(rows)
    badly = any(any(map(str.isupper, row["verdict"].split())) or row["verdict"] == "failed" for row in rows)
    bench.failed |= badly or (options.strict and any(row["verdict"] != "ok" for row in rows))


def _one(bench, name, attack):
    """Run one attack on a server of its own, and return the row of figures; None if it failed."""
    more_port = servers.free_port()
    ini = attack.ini.replace("{more_port}", str(more_port))
    with tempfile.TemporaryDirectory(prefix="rtmpd-bench-") as directory:
        path, causes = Path(directory, "holds"), Path(directory, "holds.causes")
        if bench.options.causes:
            causes.touch()
        holds = Holds(path, create=True)

        def measure(server, work):
            figures = _attacked(server, work, holds, name, attack, more_port)
            return {**figures, "verdict": _verdict(figures)}

        kind = servers.rtmpd_with("rtmpd", ini, _measured(bench.options.server_command, path))
        row = bench.measure("torture", kind, measure, attack=name)
        if causes.exists() and causes.read_text():
            print(f"    samples of long turns:\n{causes.read_text()}", flush=True)
    return row


def _measured(command, path):
    """Return a command that runs rtmpd under bench.holds, if it is ``python -m rtmpd``."""
    words = list(command)
    for index in range(len(words) - 1):
        if words[index : index + 2] == ["-m", "rtmpd"]:
            words[index : index + 2] = [str(servers.ROOT / "bench" / "holds.py"), str(path), "rtmpd"]
            break
    return [*words, *LOG_LEVEL]


def _attacked(server, work, holds, name, attack, more_port):
    """Watch a stream, attack during the whole window, and return the figures."""
    stat = work / "published"
    target = ("--port", server.port, "--more-port", more_port, "--pid", server.pid)
    publisher = ("--port", server.port, "--seconds", PUBLISH_LIMIT_S, "--stat", stat)
    with Load("publisher", *publisher) as live, Load("attacks", name, *target) as attackers:
        if not live.line()["live"]:
            raise BenchError("the publisher is not live")
        prepared = attackers.line()["prepared"]
        arguments = ["--port", server.port, "--players", VIEWERS, "--seconds", attack.seconds, "--ramp", 0.5, "--settle", 0.5]
        arguments += ["--pid", server.pid, "--publisher-pid", live.pid, "--stat", stat]
        with Load("players", *arguments) as viewers:
            viewers.line()
            for pid in (server.pid, live.pid, viewers.pid):
                _prefer(pid)
            _reset_peak(server.pid)
            holds.begin()
            attackers.process.send_signal(signal.SIGUSR1)
            watched = viewers.figures(attack.seconds + 30)
        longest_ms, above = holds.end()
        peak_mb = _peak_mb(server.pid)
        attackers.process.terminate()
        attacked = attackers.figures(30)
        live.process.terminate()
        live.figures(30)
    wanted = ("ready", "delivered", "p50_ms", "p99_ms", "max_ms", "gaps", "cpu", "other_cpu", "rss_start_mb", "errors")
    figures = {key: watched[key] for key in wanted}
    attacked["attack_errors"] = attacked.pop("errors")
    figures |= {"hold_max_ms": longest_ms or None, "holds": above, "rss_more_mb": round(peak_mb - watched["rss_start_mb"], 1)}
    return {**figures, **attacked, **({"prepared": prepared} if prepared else {})}


def _prefer(pid):
    """Give a process and its session precedence of other programs on this machine, if that is allowed."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, PRECEDENCE)
        Path(f"/proc/{pid}/autogroup").write_text(str(PRECEDENCE))


def _reset_peak(pid):
    """Make the peak of resident memory begin anew, where the kernel allows that."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak_mb(pid):
    """Return the peak of resident memory; 0 if the process has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0


def _verdict(figures):
    """Return ok, or the bounds that are broken: in capitals those that are broken badly."""
    broken = []
    for name, key, bound_ms in (("hold", "hold_max_ms", HOLD_BOUND_MS), ("p99", "p99_ms", P99_BOUND_MS)):
        value_ms = figures[key]
        if value_ms and value_ms >= bound_ms:
            broken.append(name.upper() if value_ms >= BADLY * bound_ms else name)
    if figures["gaps"] or not figures["p99_ms"] or figures["errors"]:
        broken.append("LOST")
    return " ".join(broken) or "ok"


def _print_table(rows):
    """Print the table of CONTRIBUTING.rst and bench/README.rst, in reStructuredText."""
    keys = ("attack", "p99_ms", "hold_max_ms", "holds", "cpu", "rss_more_mb", "attack_cpu", "verdict")
    lines = [[str("-" if row.get(key) is None else row[key]) for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *lines, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    print(rule)
    for number, line in enumerate([COLUMNS, *lines]):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if number == 0:
            print(rule)
    print(rule, flush=True)
