"""Publishers, or players, that load a server for one turn at a time and keep their connections between the turns.

Runs as a process of its own for each server and role: ``python -m bench.turns publishers --port N ...``. Commands come
as JSON lines on standard input, the figures leave as JSON lines on standard output. The process ends after the command
"end", or at the end of its input.
"""

import argparse
import json
import os
import select
import signal
import time
from pathlib import Path

from bench import players, publisher, rtmp, servers

IDLE_TURN_S = 0.5
BURST_S = 0.0005  # many publishers: gather what is due within this time, as a sender that wakes up for every message would not
BURST_PUBLISHERS = 20  # from so many publishers on
ALIGN_LIMIT_S = 2 * publisher.GOP_S
SPREAD_CONNECTS_PER_S = 250


class FineLoop(rtmp.Loop):
    """A loop whose turns end within 0.1 ms of their time; epoll alone rounds up to whole milliseconds."""

    def turn(self, timeout_s):
        select.select([self.epoll], [], [], timeout_s)
        super().turn(0)


class Commands:
    """The commands on standard input, or another descriptor, as a handler of the loop."""

    def __init__(self, loop, descriptor=0):
        self._loop, self._descriptor = loop, descriptor
        self._data, self._waiting = b"", []
        loop.watch(self, select.EPOLLIN)

    def fileno(self):
        return self._descriptor

    def on_events(self, _events):
        data = os.read(self.fileno(), 65536)
        if not data:
            self._loop.forget(self)
            self._waiting.append({"command": "end"})
        *lines, self._data = (self._data + data).split(b"\n")
        self._waiting += map(json.loads, lines)

    def next(self, pass_time):
        """Return the next command; call *pass_time* until it is here."""
        while not self._waiting:
            pass_time()
        return self._waiting.pop(0)


class TurnPublishers(publisher.Run):
    """Publishers that pause between turns. Their timestamps count media time, so a pause leaves no gap in them."""

    LOOP = FineLoop

    def __init__(self, options):
        super().__init__(options)
        self._commands = Commands(self.loop)
        self._held, self._paused_ns = [], 0

    def run(self):
        """Connect, publish until the command "pause", then one turn at each command, and print the figures of each."""
        self.connect(max(publisher.GOP_S, self.options.publishers / SPREAD_CONNECTS_PER_S))
        self._commands.next(lambda: self.spin(0.05))
        # All servers pause at the same moment of their streams, so that their turns have the same share of keyframes.
        self.spin(ALIGN_LIMIT_S, lambda: self.load.published.read()[0] % publisher.GOP_FRAMES == publisher.GOP_FRAMES // 2)
        self._pause()
        self._print({"paused": True})
        while not self.stopping:
            command = self._commands.next(lambda: self.loop.turn(IDLE_TURN_S))
            if command["command"] == "end":
                break
            self._print(self._turn(command))
        self._print({"live": self.live(), "skipped": self.load.skipped, "errors": self.loop.errors})
        for each in self.publishers:
            each.leave()

    def spin(self, seconds, done=lambda: False):
        end_s = time.monotonic() + seconds
        burst_s = BURST_S if self.options.publishers >= BURST_PUBLISHERS else 0
        while not self.stopping and not done():
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return
            self.loop.turn(min(left_s, max(burst_s, self.load.publish_due())))

    @staticmethod
    def _print(figures):
        print(json.dumps(figures), flush=True)

    def _pause(self):
        self._paused_ns = time.monotonic_ns()
        self._held, self.load.due = self.load.due, []

    def _resume(self):
        pause_ns = time.monotonic_ns() - self._paused_ns
        for each in self.publishers:
            each.start_ns += pause_ns
        self.load.due = [(due_ns + pause_ns, index, each) for due_ns, index, each in self._held]

    def _turn(self, command):
        """Publish for lead_s + seconds, then only read for tail_s. Return the figures of the *seconds*."""
        load, server, pids = self.load, self.options.pid, [os.getpid(), *command["load_pids"]]
        self._resume()
        self.spin(command["lead_s"])
        load.lag_max_ns = 0
        messages, start_s, load_ns = load.video + load.audio, time.monotonic(), sum(map(servers.cpu_ns, pids))
        busy_s, cpu_ns = servers.core_busy_s(), servers.cpu_ns(server)
        self.spin(command["seconds"])
        cpu_ns, busy_s = servers.cpu_ns(server) - cpu_ns, servers.core_busy_s() - busy_s
        messages, window_s = load.video + load.audio - messages, time.monotonic() - start_s
        load_ns = sum(map(servers.cpu_ns, pids)) - load_ns
        self._pause()
        self.spin(command["tail_s"])
        return {
            "us_per_message": cpu_ns / 1000 / max(1, messages),
            "messages": messages,
            "cpu": cpu_ns / 1e7 / window_s,
            "other_cpu": 100 * max(0, busy_s - cpu_ns / 1e9) / window_s,
            "load_cpu": load_ns / 1e7 / window_s,
            "lag_max_ms": load.lag_max_ns / 1e6,
        }


class TurnPlayers(players.Run):
    """Players that stay connected while nothing is published."""

    def __init__(self, options):
        super().__init__(options)
        self._commands = Commands(self.loop)

    def run(self):
        """Connect, wait for media, then follow the commands "begin", "acknowledge" and "end"."""
        self.connect()
        self._print({"ready": self.ready})
        drained = {}
        while (command := self._commands.next(lambda: self.loop.turn(IDLE_TURN_S)))["command"] != "end":
            if command["command"] == "begin":
                for player in self.sampled:
                    player.begin()
                drained = dict(self.drains.received)
            elif command["command"] == "acknowledge":
                self.drains.acknowledge()
            self._print({"done": True})
        published = sum(player.published() for player in self.sampled)
        drained = [total - drained.get(key, 0) for key, total in self.drains.received.items()]
        figures = {"players": len(self.players), "ready": sum(player.ready for player in self.players)}
        self._print({**figures, **self.window_figures(published, drained), "errors": self.loop.errors})

    _print = staticmethod(TurnPublishers._print)


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.turns", description=__doc__)
    parser.add_argument("role", choices=["publishers", "players"])
    players.add_connection_options(parser)
    parser.add_argument("--publishers", type=int, default=1, help="publishers, each of a stream of its own")
    parser.add_argument("--kbps", type=int, default=1000, help="video bitrate of each publisher")
    parser.add_argument("--players", type=int, default=0, help="players, spread over the streams of all publishers")
    parser.add_argument("--sample", type=int, default=50, help="players that parse")
    parser.add_argument("--pid", type=int, required=True, help="the server, whose CPU time is measured")
    parser.add_argument("--stat", type=Path, required=True, help="file that shares the number of published messages")
    parser.set_defaults(stall=0, slow=0, slow_kbps=0, ramp=2)
    options = parser.parse_args()
    options.streams = options.publishers
    if options.role == "publishers":
        TurnPublishers(options).run()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of the input ends the process
        TurnPlayers(options).run()


if __name__ == "__main__":
    main()
