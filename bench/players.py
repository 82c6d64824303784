"""Play one stream or several many times: a few players parse every message, the others only count bytes.

Runs as a process of its own: ``python -m bench.players --port N --players N``. It prints one JSON line at the start
of the window, and one at the end.
Python cannot parse for thousands of players on one core, so only --sample players, spread evenly among all, read
messages, stamps and numbers. The others have the kernel discard what arrived and count it.
"""

import argparse
import json
import resource
import select
import socket
import struct
import time
from pathlib import Path

from bench import http_players, rtmp, tls, wire
from bench.publisher import CLOCK_MARK, GOP_FRAMES, STAMP, Published
from bench.servers import ServerSample, core_figures

PROTOCOLS = ("rtmp", "http-flv", "http-mp4")
BUFFER_LENGTH_MS = 3000
MEDIA_LIMIT_S = 20  # for the first media, after the last connect
ALIGN_LIMIT_S = 4
DISCARD_BYTES = 1024 * 1024
MARK_WITHIN_BYTES = 64  # the stamp is at the start of a payload
STALLED_BUFFER_BYTES = 8192


def is_key(payload):
    return payload[0] >> 4 & 7 == 1


def is_header(kind, payload):
    """Return whether a payload is a sequence header and not a frame."""
    return len(payload) < 2 or payload[1] == 0 if kind == wire.VIDEO else payload[:2] == b"\xaf\x00"


class Frames:
    """The frames of a client: calls on_frame() for each of its messages that is one."""

    def on_media(self, kind, payload):
        if payload and not is_header(kind, payload):
            self.on_frame(kind, payload, time.monotonic_ns())

    def on_frame(self, kind, payload, now_ns):
        raise NotImplementedError


class Player(rtmp.Client):
    """Play a stream, and call on_media() for each message."""

    play_ns = 0

    def on_connected(self):
        self.command("createStream", None, answer=self._on_stream)

    def _on_stream(self, values):
        self.stream_id = int(values[3])
        self.play_ns = time.monotonic_ns()
        self.command("play", None, self.name, stream_id=self.stream_id, chunk_stream=8)
        buffer_length = struct.pack(">HII", wire.SET_BUFFER_LENGTH, self.stream_id, BUFFER_LENGTH_MS)
        if self.alive:
            self.send(wire.message(2, wire.USER_CONTROL, 0, buffer_length))


class Sampled(Frames):
    """A player that parses every message, for latency, gaps in the numbers and the first keyframe."""

    ready = False
    first_key_ns = 0

    def __init__(self, run, stream, *arguments):
        super().__init__(run.loop, run.port, run.options.app, run.name_of(stream), *arguments)
        self._run, self.stream = run, stream
        self.last = {}
        self.begin()

    def begin(self):
        """Reset the counts at the start of the window."""
        self.messages = self.gaps = self.unstamped = 0
        self.latencies_ns = []
        self.start_bytes = self.received_bytes
        self._start_published = self._published()

    def _published(self):
        return sum(self._run.published.read(self.stream))

    def published(self):
        """Return the number of messages published on the player's stream since begin()."""
        return self._published() - self._start_published

    def on_frame(self, kind, payload, now_ns):
        if not self.ready:
            self.ready = True
            self._run.ready += 1
        self.messages += 1
        if kind == wire.VIDEO and not self.first_key_ns:
            self.first_key_ns = now_ns if is_key(payload) else 0
        at = payload.find(CLOCK_MARK, 0, MARK_WITHIN_BYTES)
        if at < 0:
            self.unstamped += 1
            return
        sent_ns, number = STAMP.unpack_from(payload, at + len(CLOCK_MARK))
        self.gaps += number != self.last.get(kind, number - 1) + 1
        self.last[kind] = number
        if kind == wire.VIDEO:
            self.latencies_ns.append(now_ns - sent_ns)


class Drained(Frames):
    """A player that parses until the first frame; then Drains counts its bytes."""

    ready = False

    def __init__(self, run, stream):
        super().__init__(run.loop, run.port, run.options.app, run.name_of(stream))
        self._run = run

    def on_frame(self, kind, payload, now_ns):
        if not self.ready:
            self.ready = True
            self._run.ready += 1
            self.loop.forget(self)
            self._run.drains.take(self)


class SampledPlayer(Sampled, Player):
    """By RTMP."""


class DrainPlayer(Drained, Player):
    """By RTMP."""


class SampledFlvPlayer(Sampled, http_players.HttpPlayer):
    """By HTTP-FLV."""


class DrainFlvPlayer(Drained, http_players.HttpPlayer):
    """By HTTP-FLV."""


class SampledMp4Player(Sampled, http_players.Mp4Player):
    """By fragmented MP4 over HTTP."""


class DrainMp4Player(Drained, http_players.Mp4Player):
    """By fragmented MP4 over HTTP."""


PLAYERS = {
    "rtmp": (SampledPlayer, DrainPlayer),
    "http-flv": (SampledFlvPlayer, DrainFlvPlayer),
    "http-mp4": (SampledMp4Player, DrainMp4Player),
}
"""By protocol: players that parse, and players that only count."""


class Drains:
    """All players that only count, with an epoll of their own, so that sampled players never wait for them."""

    EVENTS_PER_TURN = 128

    def __init__(self, loop):
        self._loop = loop
        self._epoll = select.epoll()
        self._receive, self._players = {}, {}
        self.received, self._acknowledge_at = {}, {}
        self._scratch = bytearray(DISCARD_BYTES)
        loop.watch(self, select.EPOLLIN)

    def fileno(self):
        return self._epoll.fileno()

    def take(self, player):
        descriptor = player.fileno()
        self._players[descriptor] = player
        self._receive[descriptor] = player.raw_socket.recv_into
        self.received[descriptor] = player.received_bytes
        self._acknowledge_at[descriptor] = self._next_acknowledgement(player)
        self._epoll.register(descriptor, select.EPOLLIN)

    @staticmethod
    def _next_acknowledgement(player):
        return player.received_bytes + player.window_bytes // 2 if player.window_bytes else 1 << 62

    def acknowledge(self):
        """Send an Acknowledgement for each player: servers take it for a sign of life, as they do an answer to a ping."""
        for descriptor, player in self._players.items():
            if player.alive:
                player.received_bytes = self.received[descriptor]
                player.acknowledge()
                self._acknowledge_at[descriptor] = self._next_acknowledgement(player)

    def on_events(self, _events):
        receive, received, scratch = self._receive, self.received, self._scratch
        acknowledge_at, discard = self._acknowledge_at, socket.MSG_TRUNC
        for descriptor, _ in self._epoll.poll(0, self.EVENTS_PER_TURN):
            try:
                size = receive[descriptor](scratch, DISCARD_BYTES, discard)
            except BlockingIOError:
                continue
            except OSError as error:
                self._lose(descriptor, f"receive: {error.strerror}")
                continue
            if not size:
                self._lose(descriptor, "closed by the server")
                continue
            total = received[descriptor] = received[descriptor] + size
            if total >= acknowledge_at[descriptor]:
                player = self._players[descriptor]
                player.received_bytes = total
                player.acknowledge()
                acknowledge_at[descriptor] = self._next_acknowledgement(player)

    def _lose(self, descriptor, reason):
        self._epoll.unregister(descriptor)
        self._players.pop(descriptor).fail(reason)
        del self._receive[descriptor]


class Trickle:
    """Players that read less than the bitrate: a fixed number of bytes per second each."""

    TICK_S = 0.05

    def __init__(self, loop, kbps):
        self._bytes_per_s = kbps * 1000 / 8
        self._last_s = time.monotonic()
        self.players, self.closed = [], 0
        self._scratch = bytearray(DISCARD_BYTES)
        loop.tickers.append(self._tick)

    def take(self, player):
        player.loop.forget(player)
        self.players.append(player)

    def _tick(self):
        now_s = time.monotonic()
        if now_s - self._last_s < self.TICK_S:
            return
        share = min(DISCARD_BYTES, int(self._bytes_per_s * (now_s - self._last_s)))
        self._last_s = now_s
        left = []
        for player in self.players:
            try:
                size = player.socket.recv_into(self._scratch, share, socket.MSG_TRUNC)
            except BlockingIOError:
                left.append(player)
                continue
            except OSError:
                size = 0
            if size:
                left.append(player)
            else:
                self.closed += 1
                player.close()
        self.players = left


class Run:
    """A set of players from the first connect to the last figure."""

    def __init__(self, options):
        self.options = options
        self.port = options.play_port or options.port
        self.loop = rtmp.Loop()
        self.drains = Drains(self.loop)
        self.players, self.sampled, self.stalled, self.slow = [], [], [], []
        self.trickle = Trickle(self.loop, options.slow_kbps)
        self.ready = 0
        self.published = Published(options.stat)

    def name_of(self, stream):
        """The name that bench.publisher gives to a stream."""
        return f"{self.options.name}_{stream}" if self.options.streams > 1 else self.options.name

    def connect(self):
        """Connect at a rate that fills no accept queue, and wait until all players have media or have failed."""
        options = self.options
        sampled, drained = PLAYERS[options.protocol]
        count, hampered = options.players, options.stall + options.slow
        watching = count - hampered
        sample = min(options.sample, watching)
        # Sample different places among the players of a stream, since a server serves them in order.
        step = max(1, watching // max(1, sample))
        sampled_at = {hampered + index * watching // sample + index % step for index in range(sample)}
        pause_s = max(options.ramp, count / 250) / count
        start_s = time.monotonic()
        for index in range(count):
            stream = index * options.streams // count
            if index < hampered:
                player = sampled(self, stream, STALLED_BUFFER_BYTES)
                (self.stalled if index < options.stall else self.slow).append(player)
            elif index in sampled_at:
                player = sampled(self, stream)
                self.sampled.append(player)
            else:
                player = drained(self, stream)
            self.players.append(player)
            while time.monotonic() < start_s + (index + 1) * pause_s:
                self.loop.turn(0.002)
        self.loop.spin(MEDIA_LIMIT_S, lambda: self.ready + sum(self.loop.errors.values()) >= count)

    def _stall(self):
        for player in self.stalled:
            if player.alive:
                self.loop.forget(player)
        for player in self.slow:
            if player.alive:
                self.trickle.take(player)

    def _align(self):
        """Wait for the middle of a GOP, so that no keyframe is half inside the window at some of the players.

        Several streams have their keyframes at different times: the first one counts.
        """
        self.loop.spin(ALIGN_LIMIT_S, lambda: self.published.read()[0] % GOP_FRAMES == GOP_FRAMES // 2)

    def figures(self):
        self.connect()
        everyone = len(self.players)
        self._stall()
        self.loop.spin(self.options.settle)
        self._align()
        for player in self.sampled:
            player.begin()
        drained = dict(self.drains.received)
        load_s = self._load_cpu_s()
        print(json.dumps({"window_s": self.options.seconds}), flush=True)
        before = ServerSample.take(self.options.pid)
        self.loop.spin(self.options.seconds)
        published = sum(player.published() for player in self.sampled)
        drained = [total - drained.get(key, 0) for key, total in self.drains.received.items()]
        after = ServerSample.take(self.options.pid)
        load_percent = 100 * (self._load_cpu_s() - load_s) / (after.time_s - before.time_s)
        hampered = [*self.stalled, *self.slow]
        return {
            "players": everyone - len(hampered),
            "ready": sum(player.ready for player in self.players) - sum(player.ready for player in hampered),
            **core_figures(before, after),
            "rss_start_mb": before.rss_mb,
            "rss_mb": after.rss_mb,
            **self.window_figures(published, drained),
            "load_cpu": round(load_percent, 1),
            "errors": self.loop.errors,
            **({"stalled": len(self.stalled), "stalled_closed": self._closed_stalled()} if self.stalled else {}),
            **({"slow": len(self.slow), "slow_closed": self.trickle.closed} if self.slow else {}),
        }

    def window_figures(self, published, drained):
        sampled = self.sampled
        latencies_ns = sorted(value for player in sampled for value in player.latencies_ns)
        first_keys_ns = sorted(p.first_key_ns - p.play_ns for p in sampled if p.first_key_ns)
        messages = sum(player.messages for player in sampled)
        sampled_bytes = sum(player.received_bytes - player.start_bytes for player in sampled) / max(1, len(sampled))
        figures = {
            "delivered": round(messages / max(1, published), 3),
            "p50_ms": percentile_ms(latencies_ns, 0.5),
            "p99_ms": percentile_ms(latencies_ns, 0.99),
            "max_ms": percentile_ms(latencies_ns, 1),
            "gaps": sum(player.gaps for player in sampled),
            "unstamped": sum(player.unstamped for player in sampled),
            "first_key_p50_ms": percentile_ms(first_keys_ns, 0.5),
            "first_key_p99_ms": percentile_ms(first_keys_ns, 0.99),
        }
        if drained and sampled_bytes:
            figures["drained"] = round(sum(drained) / len(drained) / sampled_bytes, 3)
            figures["drained_min"] = round(min(drained) / sampled_bytes, 3)
        return figures

    def _load_cpu_s(self):
        """CPU of this process and of the publisher, which share a core."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        return own.ru_utime + own.ru_stime + ServerSample.take(self.options.publisher_pid).cpu_s

    def _closed_stalled(self):
        """Return how many stalled players the server has closed, by reading the data that the kernel still has."""
        closed = 0
        scratch = bytearray(DISCARD_BYTES)
        for player in self.stalled:
            try:
                while player.alive and player.socket.recv_into(scratch, DISCARD_BYTES, socket.MSG_TRUNC):
                    pass
            except BlockingIOError:
                continue
            except OSError:
                pass
            closed += 1
        return closed


def percentile_ms(sorted_ns, share):
    """Return a percentile in ms, or None without values."""
    if not sorted_ns:
        return None
    return round(sorted_ns[min(len(sorted_ns) - 1, int(len(sorted_ns) * share))] / 1e6, 2)


def add_connection_options(parser):
    """Options that every kind of player has."""
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--app", default="live")
    parser.add_argument("--name", default="bench")
    parser.add_argument("--seconds", type=float, default=10, help="length of the window")
    parser.add_argument("--play-port", type=int, default=0, help="play from this port")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="rtmp", help="how players play")


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.players", description=__doc__)
    add_connection_options(parser)
    parser.add_argument("--players", type=int, default=100)
    parser.add_argument("--sample", type=int, default=50, help="players that parse")
    parser.add_argument("--stall", type=int, default=0, help="players among them that stop reading")
    parser.add_argument("--streams", type=int, default=1, help="streams that the players are spread over: NAME_0, NAME_1 ...")
    parser.add_argument("--slow", type=int, default=0, help="players among them that read less than comes")
    parser.add_argument("--slow-kbps", type=float, default=600, help="what these read")
    parser.add_argument("--ramp", type=float, default=2, help="seconds to connect in, at least")
    parser.add_argument("--settle", type=float, default=2, help="seconds between the last player and the window")
    parser.add_argument("--pid", type=int, default=0, help="server to sample")
    parser.add_argument("--publisher-pid", type=int, default=0, help="publisher that shares the core")
    parser.add_argument("--stat", type=Path, required=True, help="file of the publisher's --stat")
    parser.add_argument("--tls", action="store_true", help="play over RTMPS")
    options = parser.parse_args()
    if options.tls:
        Player.TLS = tls.context()
    print(json.dumps(Run(options).figures()), flush=True)


if __name__ == "__main__":
    main()
