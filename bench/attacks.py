"""Clients that ask a server for as much work and memory as they can. ``bench.torture`` and the tests use them.

Runs as a process of its own: ``python -m bench.attacks NAME --port N``. It prepares, prints one JSON line, attacks from SIGUSR1
to SIGTERM, and prints one line with figures. It runs at the lowest priority and for at most SHARE of its core.
"""

import argparse
import contextlib
import itertools
import json
import os
import resource
import select
import signal
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass, field

from bench import rtmp, tls, wire
from bench.publisher import AAC_HEADER, AVC_HEADER, CHUNK_BYTES
from bench.servers import pause, raise_file_limit

SHARE = 0.7  # of a core, for the attackers
REST_S = 0.001  # after each turn, at least
MEND_S = 0.1  # from one replacement of closed clients to the next
PREPARE_S = 10
LIMIT_S = 60
PENDING_BYTES = 256 * 1024
SMALL_BUFFER_BYTES = 4096
LEAVE_AFTER_S = 0.3
BURST_S = 1.0  # a client that has sent everything is replaced after this


# What is sent ------------------------------------------------------------------------------------------------------------

PINGS = bytes(wire.message(2, wire.USER_CONTROL, 0, struct.pack(">HI", wire.PING_REQUEST, 1))) * 20_000
EMPTY_MESSAGES = bytes((7, *bytes(6), 30, *bytes(4))) + b"\xc7" * 300_000
"""A message of an unknown type without payload, and type 3 headers that repeat it."""


def aggregate(tags=250_000):
    """Return an aggregate of empty messages of an unknown type, for a client with large chunks."""
    return bytes(wire.message(4, 22, 1, (b"\x1f" + bytes(14)) * tags, 1 << 24))


def commands(names, count, prefix, stream_id=0):
    """Return so many commands, pipelined, each with a stream name of its own."""
    return b"".join(
        bytes(wire.message(3, wire.COMMAND, stream_id, wire.amf(name, 0, None, f"{prefix}_{turn}"), 1 << 16))
        for turn in range(count // len(names))
        for name in names
    )


LARGE_CHUNKS = bytes(wire.control(wire.SET_CHUNK_SIZE, 1 << 24))
HALF_MESSAGE = b"\x03" + bytes(3) + ((1 << 23) - 256).to_bytes(3, "big") + b"\x14" + bytes(4) + bytes(4 << 20)
"""The first 4 MB of a command of 8 MB, for a client with large chunks."""

CODECS = (
    (6, wire.VIDEO, AVC_HEADER),
    (6, wire.VIDEO, b"\x17\1\0\0\0" + (40).to_bytes(4, "big") + b"\x65" + bytes(39)),
    (4, wire.AUDIO, AAC_HEADER),
    (4, wire.AUDIO, b"\xaf\1" + bytes(40)),
    (6, wire.VIDEO, AVC_HEADER.replace(b"\x4d\x40\x1f", b"\x64\x00\x28")),
    (6, wire.VIDEO, b"\x90hvc1" + bytes.fromhex("01 01 60000000 900000000000 5d f000fcfdf8f8 00000f00")),
    (6, wire.VIDEO, b"\x93hvc1" + (40).to_bytes(4, "big") + b"\x26\1" + bytes(38)),
    (4, wire.AUDIO, b"\xaf\0\x12\x10"),
    (4, wire.AUDIO, b"\x2f\xff\xfb" + bytes(38)),
)


def codec_changes(count=200):
    """Return media messages of which every second one is for another codec or configuration than the one before."""
    return b"".join(bytes(wire.message(*message[:2], 1, message[2], 4096)) for message in CODECS) * (count // len(CODECS))


def client_hello():
    """Return the first message of a TLS client."""
    sent = ssl.MemoryBIO()
    connection = tls.context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return sent.read()


def flood(socks, data, over):
    """Send *data* again and again to all connected sockets, and discard what comes, until *over* is set."""
    left = {sock: memoryview(data) for sock in socks}
    for sock in left:
        sock.setblocking(False)
    while left and not over.is_set():
        readable, writable, _ = select.select(left, left, [], 0.1)
        for sock in {*readable, *writable}:
            try:
                if sock in readable and not sock.recv(1 << 16):
                    del left[sock]
                elif sock in writable:
                    left[sock] = left[sock][sock.send(left[sock][: 1 << 16]) :] or memoryview(data)
            except BlockingIOError:
                continue
            except OSError:
                del left[sock]
        over.wait(REST_S)


# Clients -----------------------------------------------------------------------------------------------------------------


class Attacker(rtmp.Client):
    """A client that connects and begins a publish or play, or nothing, and is then *ready*.

    Args:
        first: What to do after connect: publish, play, createStream or nothing.
        url: The tcUrl, if it is not the usual one.
    """

    SENT_CHUNK_BYTES = CHUNK_BYTES
    FLASH_VERSION = "FMLE/3.0 (compatible; rtmpd-bench attack)"
    left = False

    def __init__(self, ground, name="", *, first="", app="live", url="", buffer_bytes=0):
        self._first, self._url = first, url
        self.ready_s = 0.0
        super().__init__(ground.loop, ground.port, app, name, buffer_bytes)

    def url(self):
        return self._url or super().url()

    def leave(self):
        """Close the connection, which the server has not closed."""
        self.left = True
        self.close()

    def on_connected(self):
        if self._first:
            self.command("createStream", None, answer=self._on_stream)
        else:
            self.ready_s = time.monotonic()

    def _on_stream(self, values):
        self.stream_id = int(values[3])
        if self._first == "createStream":
            self.ready_s = time.monotonic()
        else:
            self.command(self._first, None, self.name, stream_id=self.stream_id, chunk_stream=8)

    def on_status(self, code):
        if code in {"NetStream.Publish.Start", "NetStream.Play.Start"}:
            self.ready_s = self.ready_s or time.monotonic()


class Ground:
    """The server and the time of an attack, and its sockets."""

    def __init__(self, options):
        self.port, self.more_port, self.pid = options.port, options.more_port, options.pid
        self._scale = options.scale
        self.loop = rtmp.Loop()
        self.over = threading.Event()
        self.counts = {}
        self.figures = {}
        self._raw = []
        self._numbers = itertools.count()
        self._turn_cpu_s = time.process_time()

    def count(self, what, number=1):
        self.counts[what] = self.counts.get(what, 0) + number

    def scaled(self, number):
        """Return the share of a number that this attack is to have; at least 1."""
        return max(1, round(number * self._scale))

    def name(self, prefix):
        """Return a new name."""
        return f"{prefix}{next(self._numbers)}"

    def turn(self, timeout_s=0.01):
        """Let clients work for one turn, rest as SHARE demands, and return whether the attack goes on."""
        self.loop.turn(timeout_s)
        used_s = time.process_time() - self._turn_cpu_s
        pause(max(REST_S, used_s * (1 - SHARE) / SHARE))
        self._turn_cpu_s = time.process_time()
        return not self.over.is_set()

    def prepare(self, clients):
        """Let clients connect."""
        ends_s = time.monotonic() + PREPARE_S
        while time.monotonic() < ends_s and any(client.alive and not client.ready_s for client in clients):
            self.loop.turn(0.02)
        return [client for client in clients if client.alive and client.ready_s]

    def connect(self, port=None):
        """Return a plain socket that is connected, or is about to be; None if there is no descriptor left."""
        try:
            sock = socket.socket()
        except OSError:
            self.count("no descriptor")
            return None
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port or self.port))
        self.count("connections")
        return sock

    def keep(self, sock):
        """Keep a socket open until the end."""
        self._raw.append(sock)


def send_some(sock, data):
    """Send what the socket takes; return whether it is still connected."""
    try:
        sock.send(data)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def drop(sock):
    """Close a socket with a reset, which leaves no port in TIME_WAIT."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Crowd:
    """Clients of one kind: those that are closed are replaced."""

    def __init__(self, ground, make, count, pause_s=MEND_S):
        self._ground, self._make, self._pause_s = ground, make, pause_s
        self._mend_s = 0.0
        self.clients = [make() for _ in range(count)]

    def mend(self):
        now_s = time.monotonic()
        if now_s >= self._mend_s:
            self._mend_s = now_s + self._pause_s
            for index, client in enumerate(self.clients):
                if not client.alive:
                    self._ground.count("clients closed by the server", not client.left)
                    self.clients[index] = self._make()

    def ready(self):
        self.mend()
        return [client for client in self.clients if client.alive and client.ready_s]


# Attacks -----------------------------------------------------------------------------------------------------------------
#
# An attack is a generator: it prepares, yields once, and then attacks until Ground.turn() returns False.


def _flood(ground, data, clients, *, first="publish", large=False):
    """Publishers that send the same bytes again and again."""
    crowd = Crowd(ground, lambda: Attacker(ground, ground.name("flood"), first=first), ground.scaled(clients))
    ground.prepare(crowd.clients)
    yield
    enlarged = set()
    while ground.turn():
        for client in crowd.ready():
            if large and client not in enlarged:
                enlarged.add(client)
                client.send(LARGE_CHUNKS)
            if len(client.pending) < PENDING_BYTES:
                ground.count("mb", len(data) / 1e6)
                client.send(data)


def _bursts(ground, make_data, clients, **about):
    """Clients that send their bytes at once when they are ready, and are replaced after a while."""
    crowd = Crowd(ground, lambda: Attacker(ground, ground.name("burst"), **about), ground.scaled(clients))
    yield
    sent = set()
    while ground.turn():
        for client in crowd.ready():
            if client not in sent:
                sent.add(client)
                ground.count("bursts")
                client.send(make_data(client))
            elif time.monotonic() > client.ready_s + BURST_S:
                sent.discard(client)
                client.close()
                crowd.clients[crowd.clients.index(client)] = Attacker(ground, ground.name("burst"), **about)


def _pipelined(ground, names, count, prefix):
    about = {"first": "createStream"}
    return _bursts(ground, lambda client: commands(names, count, ground.name(prefix), client.stream_id), 12, **about)


def _calm(ground):
    yield
    while ground.turn():
        pass


def _slashes(ground):
    query = "&".join(f"{number}=%41" for number in range(500))

    def plays(client):
        names = (f"{ground.name('n')}?{query}" for _ in range(12))
        return b"".join(bytes(wire.message(3, wire.COMMAND, 0, wire.amf("play", 0, None, one), CHUNK_BYTES)) for one in names)

    largest = Crowd(ground, lambda: Attacker(ground, app="", url="rtmp://host/live" + "/" * 60_000), 4)
    bursts = _bursts(ground, plays, 12, app="", url="rtmp://host/live" + "/" * 4000)
    ground.loop.tickers.append(largest.mend)
    yield from bursts


def _long_names(ground):
    def plays(client):
        name = struct.pack(">BI", 12, 1 << 20) + "\N{GRINNING FACE}".encode() * (1 << 18)
        start = wire.amf("play", 0, None)
        return b"".join(bytes(wire.message(3, wire.COMMAND, 1, start + name, CHUNK_BYTES)) for _ in range(2))

    def names(client):
        text = "\N{GRINNING FACE}" * 1000
        parts = (wire.amf("play", 0, None, f"{number}{text}") for number in range(16))
        return b"".join(bytes(wire.message(3, wire.COMMAND, 1, part, CHUNK_BYTES)) for part in parts)

    turns = itertools.cycle((plays, names))
    return _bursts(ground, lambda client: next(turns)(client), 12, first="createStream")


def _half_messages(ground):
    waiting = Crowd(ground, lambda: Attacker(ground, ground.name("waiting"), first="play"), ground.scaled(10))
    early = []
    hello = b"\x03" + bytes(rtmp.HANDSHAKE_BYTES)
    yield
    sent = set()
    while ground.turn():
        for client in waiting.ready():
            if client not in sent:
                sent.add(client)
                client.send(LARGE_CHUNKS + HALF_MESSAGE)
        early = [(sock, left[_sent(sock, left) :]) for sock, left in early if _open(sock, left)]
        if len(early) < ground.scaled(10):
            sock = ground.connect()
            early.append((sock, memoryview(hello + bytes(rtmp.HANDSHAKE_BYTES) + LARGE_CHUNKS + HALF_MESSAGE)))


def _sent(sock, left):
    with contextlib.suppress(OSError):
        return sock.send(left[: 1 << 18])
    return 0


def _open(sock, left):
    try:
        if left and sock.recv(1 << 16):
            return True
    except BlockingIOError:
        return True
    except OSError:
        pass
    sock.close()
    return not left


def _unread_replies(ground):
    make = lambda: Attacker(ground, ground.name("deaf"), first="play", buffer_bytes=SMALL_BUFFER_BYTES)  # noqa: E731
    crowd = Crowd(ground, make, ground.scaled(50))
    ground.prepare(crowd.clients)
    yield
    deaf = set()
    while ground.turn():
        for client in crowd.ready():
            if client not in deaf:
                deaf.add(client)
                ground.loop.forget(client)
            try:
                ground.count("mb", client.socket.send(memoryview(PINGS)[: 18 * 3000]) / 1e6)
            except BlockingIOError:
                continue
            except OSError:
                client.close()


def _guesses(ground):
    """A wrong guess ends the connection."""
    make = lambda: Attacker(ground, ground.name("key_"), app="guess", first="createStream")  # noqa: E731
    crowd = Crowd(ground, make, ground.scaled(60), pause_s=0)
    guessed = set()
    yield
    while ground.turn():
        for client in crowd.ready():
            if client not in guessed:
                guessed.add(client)
                ground.count("guesses")
                client.send(commands(("play",), 1, client.name, client.stream_id))
        guessed &= set(crowd.clients)


def _waiting_plays(ground):
    clients, wanted = [], ground.scaled(1250)

    class Waiting(Attacker):
        """Plays 16 names."""

        def on_connected(self):
            self.ready_s = time.monotonic()
            for _ in range(16):
                self.command("createStream", None)
            for number in range(1, 17):
                self.command("play", None, ground.name("absent"), stream_id=number, chunk_stream=8)

        def on_status(self, code):
            ground.count("plays", code == "NetStream.Play.Start")

    yield
    while ground.turn():
        if len(clients) < wanted:
            clients += [Waiting(ground) for _ in range(10)]


def _expiring_handshakes(ground):
    wanted, count = ground.scaled(5000), 0
    yield
    while ground.turn():
        for _ in range(50 if count < wanted else 0):
            sock = ground.connect()
            if sock:
                count += 1
                send_some(sock, b"\x03" + bytes(100))
                ground.keep(sock)


def _leaving_together(ground):
    clients, wanted = [], ground.scaled(9000)
    ends_s = time.monotonic() + PREPARE_S
    while len(clients) < wanted and time.monotonic() < ends_s:
        clients += [Attacker(ground) for _ in range(20)]
        ground.loop.turn(0.001)
        ground.loop.turn(0)
    clients = ground.prepare(clients)
    ground.count("clients", len(clients))
    yield
    begun_s = time.monotonic()
    while ground.turn():
        if clients and time.monotonic() > begun_s + LEAVE_AFTER_S:
            for client in clients:
                client.close()
            clients = []


def _hello_and_gone(ground):
    hello = client_hello()
    yield
    begun_s, done = time.monotonic(), 0
    while ground.turn(0):
        due = int((time.monotonic() - begun_s) * ground.scaled(3300))
        done = max(done, due - 100)
        while done < due:
            done += 1
            sock = ground.connect(ground.more_port)
            if sock:
                send_some(sock, hello)
                drop(sock)


def _connections(ground):
    kept = []
    yield
    begun_s, done = time.monotonic(), 0
    while ground.turn(0):
        due = int((time.monotonic() - begun_s) * ground.scaled(2000))
        done = max(done, due - 100)
        while done < due:
            done += 1
            sock = ground.connect()
            if sock:
                send_some(sock, b"\x03" + bytes(rtmp.HANDSHAKE_BYTES) if done % 2 else b"")
                kept.append(sock)
        while len(kept) > 200:
            drop(kept.pop(0))


def _bytes_of_a_second(ground):
    hello = b"\x03" + bytes(rtmp.HANDSHAKE_BYTES)
    socks = [ground.connect() for _ in range(ground.scaled(1000))]
    yield
    due_s = 0.0
    while ground.turn():
        if time.monotonic() >= due_s:
            due_s = time.monotonic() + 1
            for index, sock in enumerate(socks):
                if not send_some(sock, hello[:1]):
                    sock.close()
                    socks[index] = ground.connect()


def _reload_storm(ground):
    yield
    while ground.turn(0.005):
        with contextlib.suppress(ProcessLookupError):
            os.kill(ground.pid, signal.SIGHUP)
            ground.count("signals")


def _endless_answers(ground):
    """A web server for webhooks: of three answers, each has something without end: headers, a redirect's body, a body."""
    starts = itertools.cycle(
        (
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 99999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
    )
    rest = b"X-Header: " + b"x" * 1000 + b"\r\n"
    listener = socket.create_server(("127.0.0.1", ground.more_port), backlog=100)
    listener.setblocking(False)
    crowd = Crowd(ground, lambda: Attacker(ground, ground.name("hooked"), first="play"), ground.scaled(20))
    answering = []
    yield
    while ground.turn():
        for client in crowd.ready():
            client.command("closeStream", None, stream_id=client.stream_id)
            client.command("play", None, ground.name("hooked"), stream_id=client.stream_id)
            client.ready_s = 0
        with contextlib.suppress(BlockingIOError):
            sock, _ = listener.accept()
            sock.setblocking(False)
            ground.count("posts")
            answering.append(sock)
            send_some(sock, next(starts))
        for sock in list(answering):
            with contextlib.suppress(BlockingIOError):
                try:
                    ground.count("mb", sock.send(rest * 60) / 1e6)
                except BlockingIOError:
                    pass
                except OSError:
                    sock.close()
                    answering.remove(sock)


def _hanging_names(ground):
    crowd = Crowd(ground, lambda: Attacker(ground, ground.name("relayed"), app="hanging", first="publish"), ground.scaled(20))
    published = set()
    yield
    while ground.turn():
        for client in crowd.ready():
            if client not in published:
                published.add(client)
                ground.count("publishes")
            elif time.monotonic() > client.ready_s + BURST_S:
                client.leave()


def _slow_scrapes(ground):
    """Clients that send a request without end, or read no answer, beside one that scrapes."""
    slow = []
    scrapes_s = []
    request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    yield

    def scrape():
        while not ground.over.wait(0.5):
            begun_s = time.monotonic()
            with contextlib.suppress(OSError), socket.socket() as sock:
                sock.settimeout(10)
                sock.connect(("127.0.0.1", ground.more_port))
                sock.sendall(request)
                while sock.recv(1 << 16):
                    pass
            scrapes_s.append(time.monotonic() - begun_s)
            ground.figures["scrape_max_ms"] = round(1000 * max(scrapes_s), 1)

    threading.Thread(target=scrape, daemon=True).start()
    due_s = 0.0
    while ground.turn():
        if len(slow) < ground.scaled(64):
            sock = ground.connect(ground.more_port)
            slow.append((sock, len(slow) % 2))
            send_some(sock, request if len(slow) % 2 else request[:20])
        if time.monotonic() >= due_s:
            due_s = time.monotonic() + 0.5
            for sock, reads_nothing in list(slow):
                if not send_some(sock, request if reads_nothing else b"x"):
                    sock.close()
                    slow.remove((sock, reads_nothing))


@dataclass(frozen=True)
class Attack:
    """One attack: what it does, its generator, and what the server needs in its configuration.

    In *ini* ``{more_port}`` becomes a free port, ``{work}`` a directory.
    """

    text: str
    run: object
    ini: str = ""
    seconds: float = 5
    arguments: dict = field(default_factory=dict)

    def steps(self, ground):
        return self.run(ground, **self.arguments)


TLS_INI = "[tls]\ntls_listen = 127.0.0.1:{more_port}\ntls_cert = {work}/tls.pem\n"
KEYS_INI = "[auth]\nauth_publish_keys = {keys}\n".replace(
    "{keys}", ", ".join(f"guess/key_{number}=s3cret_{number}" for number in range(100))
)
APPLICATIONS_INI = "[applications]\n[[live]]\n" + "".join(
    f"[[app{number}]]\nplayers_per_stream_limit = {number + 1}\n" for number in range(50)
)
RELAYS = ", ".join(f"rtmp://relay-{number}.hanging.invalid/live/{{name}}" for number in range(8))

ATTACKS = {
    "rest": Attack("no attack", _calm),
    "empty-messages": Attack(
        "50 publishers send type 3 headers of empty messages", _flood, arguments={"data": EMPTY_MESSAGES, "clients": 50}
    ),
    "pings": Attack("50 publishers send pings", _flood, arguments={"data": PINGS, "clients": 50}),
    "aggregates": Attack(
        "4 publishers send aggregates of 250,000 messages",
        _flood,
        arguments={"data": aggregate(), "clients": 4, "large": True},
    ),
    "plays": Attack(
        "12 clients a second send 490 plays at once",
        _pipelined,
        arguments={"names": ("play",), "count": 490, "prefix": "play"},
    ),
    "publishes": Attack(
        "12 clients a second publish and close 240 times at once",
        _pipelined,
        arguments={"names": ("publish", "closeStream"), "count": 480, "prefix": "publish"},
    ),
    "slashes": Attack("tcUrls of up to 60 KB of slashes, then plays", _slashes),
    "long-names": Attack("plays of 1 MB names, and 16 of 4 KB names", _long_names),
    "half-messages": Attack("20 clients send half of an 8 MB message, before connect or as players", _half_messages),
    "unread-replies": Attack("50 players send pings and read nothing", _unread_replies),
    "guesses": Attack("up to 60 clients guess publish keys, each with a connection per guess", _guesses, KEYS_INI),
    "waiting-plays": Attack("1250 clients play 20,000 names that are not published", _waiting_plays),
    "handshakes": Attack("5000 handshakes expire together", _expiring_handshakes, seconds=8),
    "leaving": Attack("up to 9000 clients leave at once", _leaving_together),
    "hello-and-gone": Attack("3300 TLS clients a second leave after ClientHello", _hello_and_gone, TLS_INI),
    "connections": Attack("2000 connections a second", _connections),
    "slow-bytes": Attack("1000 clients send a byte a second", _bytes_of_a_second),
    "slow-scrapes": Attack(
        "64 slow HTTP clients beside a scrape", _slow_scrapes, "[metrics]\nmetrics_listen = 127.0.0.1:{more_port}\n"
    ),
    "codecs": Attack(
        "4 publishers change codecs with every message", _flood, arguments={"data": codec_changes(), "clients": 4}
    ),
    "reloads": Attack("SIGHUP 150 times a second, 50 applications", _reload_storm, APPLICATIONS_INI),
    "endless-answers": Attack(
        "a webhook's answers have no end", _endless_answers, "[hooks]\nhook_webhooks = *=http://127.0.0.1:{more_port}/\n"
    ),
    "hanging-names": Attack(
        "160 relays to names whose look-up hangs",
        _hanging_names,
        f"[applications]\n[[live]]\n[[hanging]]\nrelay_to = {RELAYS}\n",
    ),
}


def _cpu_s():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.attacks", description=__doc__)
    parser.add_argument("attack", choices=ATTACKS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--more-port", type=int, default=0, help="port of the attack's own: TLS, metrics or a web server")
    parser.add_argument("--pid", type=int, default=0, help="server to send signals to")
    parser.add_argument("--nice", type=int, default=19, help="nice value (19)")
    parser.add_argument("--scale", type=float, default=1, help="share of the clients and rates of the whole attack (1)")
    options = parser.parse_args()
    os.nice(options.nice)
    raise_file_limit()
    ground, go = Ground(options), threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: go.set())
    signal.signal(signal.SIGTERM, lambda *_: (go.set(), ground.over.set()))
    signal.signal(signal.SIGALRM, lambda *_: ground.over.set())
    signal.alarm(LIMIT_S)
    steps = ATTACKS[options.attack].steps(ground)
    next(steps)
    print(json.dumps({"prepared": ground.counts}), flush=True)
    while not go.is_set():
        ground.turn()
    begun_s, cpu_s = time.monotonic(), _cpu_s()
    for _ in steps:
        pass
    seconds = max(0.001, time.monotonic() - begun_s)
    counts = {what: round(number, 1) for what, number in ground.counts.items()}
    print(
        json.dumps(
            {
                "attack_cpu": round(100 * (_cpu_s() - cpu_s) / seconds, 1),
                "did": counts,
                **ground.figures,
                "errors": ground.loop.errors,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
