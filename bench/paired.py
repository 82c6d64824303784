"""Measure servers in paired turns: all of them run, and the load goes to one after the other for a second each.

What else happens on the machine then meets all servers alike, and the median of the paired ratios repeats much better than
the ratio of two long windows.
"""

import contextlib
import itertools
import statistics
import tempfile
import time
from pathlib import Path

from bench import publisher, servers
from bench.floor import Floor
from bench.servers import BenchError, Load, Server

LEAD_S = 0.2  # load before the window of a turn: the caches are warm again, and what waits at its start also waits at its end
TAIL_S = 0.15  # without load after it, so that everything is delivered before the next server's turn
WARM_S = 2.7  # more than one GOP
TURN_LIMIT_S = 30  # for what a turn takes beyond its time
ACKNOWLEDGE_S = 15  # players that only count bytes answer no ping: nginx-rtmp closes them after 90 s without a sign of life


class Contender:
    """A running server with its publishers and players."""

    def __init__(self, stack, kind, work, streams, players, kbps):
        """Start everything, wait until all players have media, and pause the publishers."""
        self.name = kind.name
        self._streams = streams
        work.mkdir()
        self._server = stack.enter_context(Server(kind, work))
        self._start_rss_mb = servers.ServerSample.take(self._server.pid).rss_mb
        arguments = ["--port", self._server.port, "--pid", self._server.pid, "--stat", work / "published"]
        arguments += ["--publishers", streams, "--players", players * streams, "--kbps", kbps]
        self._publishers = stack.enter_context(Load("turns", "publishers", *arguments, commanded=True))
        self._players = None
        live = self._publishers.line()["live"]
        if live < streams:
            raise self._error(f"{live} of {streams} publishers are live")
        if players:
            arguments += ["--protocol", kind.protocol, "--play-port", kind.play_port]
            self._players = stack.enter_context(Load("turns", "players", *arguments, commanded=True))
            if not self._players.line()["ready"]:
                raise self._error("no player has media")
        self._acknowledged_s = time.monotonic()
        self._publishers.tell("pause")
        self._publishers.line()
        self.turns = []

    def _error(self, text):
        return BenchError(f"{self.name}: {text}\n{self._server.log_tail()}".strip())

    def _players_do(self, command):
        if self._players:
            self._players.tell(command)
            self._players.line()

    def warm_up(self):
        """Load the server for longer than one GOP, then begin to count."""
        self.turn(WARM_S)
        self.turns.clear()
        self._players_do("begin")

    def turn(self, seconds):
        """Load this server for one turn, while the others rest.

        Raises:
            BenchError: The server has ended, or has closed all publishers.
        """
        load_pids = [self._players.pid] if self._players else []
        try:
            self._publishers.tell("turn", lead_s=LEAD_S, seconds=seconds, tail_s=TAIL_S, load_pids=load_pids)
            self.turns.append(self._publishers.line())
        except BenchError as error:
            raise self._error(str(error)) from error
        if (status := self._server.process.poll()) is not None:
            raise self._error(f"the server has ended with {status}")
        if not self.turns[-1]["messages"]:
            raise self._error(f"nothing was published: {self._publishers_end()['errors']}")
        if time.monotonic() - self._acknowledged_s > ACKNOWLEDGE_S:
            self._acknowledged_s = time.monotonic()
            self._players_do("acknowledge")

    def _publishers_end(self):
        self._publishers.tell("end")
        return self._publishers.figures(TURN_LIMIT_S)

    def figures(self):
        """Return the figures of all turns, and end the load."""
        rss_mb = servers.ServerSample.take(self._server.pid).rss_mb
        median = {name: statistics.median(turn[name] for turn in self.turns) for name in self.turns[0]}
        played = {}
        if self._players:
            self._players.tell("end")
            played = self._players.figures(TURN_LIMIT_S)
            played = {name: value for name, value in played.items() if not name.startswith("first_key")}  # pauses are in them
        published = self._publishers_end()
        errors = dict(played.pop("errors", {}))
        errors |= {f"publisher: {reason}": count for reason, count in published["errors"].items()}
        return {
            "turns": len(self.turns),
            "us_per_message": round(median["us_per_message"], 2),
            "cpu": round(median["cpu"], 1),
            "other_cpu": round(median["other_cpu"], 1),
            "load_cpu": round(median["load_cpu"], 1),
            "messages": int(median["messages"]),
            "publishers": self._streams,
            "live": published["live"],
            **played,
            "rss_start_mb": self._start_rss_mb,
            "rss_mb": rss_mb,
            "rss_per_publisher_kb": round((rss_mb - self._start_rss_mb) * 1024 / self._streams),
            "lag_max_ms": round(max(turn["lag_max_ms"] for turn in self.turns), 1),
            "skipped": published["skipped"],
            "errors": errors,
        }


class FloorContender:
    """Plain send(2) to the players of one stream, as one more contender: no server can cost less."""

    name = "send(2)"

    def __init__(self, work, players, kbps):
        self._program, self._players = Floor(work, kbps), players
        # The place of the servers' streams in their GOP at the start of the window of the next turn.
        self._frame = publisher.GOP_FRAMES / 2 + (WARM_S + 2 * LEAD_S) * publisher.FRAMES_PER_S
        self.turns = []

    def warm_up(self):
        """Do nothing: there are no caches and no pages that a first turn would fill."""

    def turn(self, seconds):
        figures = self._program.figures(self._players, seconds, first_frame=int(self._frame))
        self._frame += (seconds + LEAD_S) * publisher.FRAMES_PER_S
        figures["us_per_message"] = figures["us_per_send"] * self._players
        self.turns.append(figures)

    def figures(self):
        """Return the figures of all turns."""
        names = ("us_per_message", "us_per_send", "cpu", "load_cpu")
        median = {name: round(statistics.median(turn[name] for turn in self.turns), 2) for name in names}
        return {"turns": len(self.turns), **median, "incomplete": sum(turn["incomplete"] for turn in self.turns)}


def run(bench, scenario, kinds, streams, players):
    """Measure *kinds* with streams x players each, and emit a row for each server and for each pair of them.

    With --floor, the players of one stream are compared with plain send(2), too.

    Raises:
        BenchError: A server or its load does not run.
    """
    options = bench.options
    kbps = options.kbps or 1000
    about = {"streams": f"{streams}x{players}"}
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rtmpd-bench-")))
        contenders = [Contender(stack, kind, work / str(number), streams, players, kbps) for number, kind in enumerate(kinds)]
        if options.floor and streams == 1 and players:
            try:
                contenders.append(FloorContender(work, players, kbps))
            except BenchError as error:
                print(f"floor  skipped: {error}", flush=True)
        for contender in contenders:
            contender.warm_up()
        for _ in range(options.turns):
            for contender in contenders:
                contender.turn(options.turn_seconds)
        for contender in contenders:
            bench.emit(scenario, server=contender.name, **about, **contender.figures())
        for upper, lower in itertools.combinations(contenders, 2):
            bench.emit(scenario, **about, **_ratios(upper, lower))


def _ratios(upper, lower):
    """Return the median and the quartiles of the ratios of CPU per message, turn by turn."""
    ratios = [
        mine["us_per_message"] / max(other["us_per_message"], 1e-9)
        for mine, other in zip(upper.turns, lower.turns, strict=True)
    ]
    first, _, third = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {
        "ratio": f"{upper.name}/{lower.name}",
        "cpu_ratio": round(statistics.median(ratios), 2),
        "quartiles": f"{first:.2f}..{third:.2f}",
        "turns": len(ratios),
    }
