"""The scenarios: each starts a server, puts load on it, and emits rows of figures."""

import contextlib
import json
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from bench import paired, publisher, servers
from bench.floor import Floor
from bench.servers import BenchError, Load, Server
from bench.torture import torture

LIVE_LIMIT_S = 600  # a publisher without an end is stopped after this, whatever happens to its parent
RAMP_PLAYERS_PER_S = 250
GOP_CACHE_S = 2.7  # more than one GOP: the cache of a server is full before the first player
STALL_PLAYERS, STALL_STALLED, STALL_SECONDS, STALL_KBPS = 60, 20, 15, 5000
SLOW_PLAYERS, SLOW_SHARE, SLOW_READS = 1000, 0.3, 0.6  # of all players; of the bitrate
SLOW_SETTLE_S = 8  # so that they are too far behind when the window begins
SLOW_INI = "[backpressure]\nlag_limit_s = 2\nbackpressure_policy = {policy}\n"
RELAYS, RELAY_KBPS = 10, 5000
JOIN_GAP_S = 0.15  # mean time between two joins
RECORD_PUBLISHERS, RECORD_PLAYERS = 50, 50
RECORD_INI = "[record]\nrecord_streams = live/rec_*\nrecord_directory = {work}/recordings\n"
HOOK_PLAYERS, HOOK_EVENTS_PER_S, HOOK_SLOW_MS = 100, 1000, 200
HOOKS_INI = "[limits]\ncommand_limit = 1000000\n"
HLS_STREAMS = 50
HLS_VIEWERS_INI = "[http]\nhttp_listen = 127.0.0.1:{port}\n[hls]\nhls = always\nhls_part_ms = 200\n"
TLS_PLAYERS, HANDSHAKE_PLAYERS, HANDSHAKES_PER_S = 500, 200, 50
TLS_INI = "[tls]\ntls_listen = 127.0.0.1:{port}\ntls_cert = {{work}}/tls.pem\n"
FLOOR_TICKS_MS = (0, 30, 100)
LOAD_WARN_PERCENT, OTHER_WARN_PERCENT, DELIVERED_WARN = 90, 5, 0.99


class Bench:
    """The options of one invocation, and the rows it has emitted."""

    def __init__(self, options):
        self.options = options
        self.rows = []
        self.failed = False
        self.peer = servers.nginx() if options.peer == "nginx" else None
        if options.peer == "nginx" and not self.peer:
            print("nginx-rtmp is not installed: no peer in this run (apt-get install nginx libnginx-mod-rtmp)")

    def kinds(self, *, unpaced=False):
        """The servers to measure: rtmpd, then the peer."""
        rtmpd = servers.rtmpd(self.options.server_command, unpaced=unpaced)
        return [rtmpd, self.peer] if self.peer else [rtmpd]

    def measure(self, scenario, kind, measure, **about):
        """Run measure(server, work) on a fresh server, emit its figures, and return the row, or None if it failed."""
        with tempfile.TemporaryDirectory(prefix="rtmpd-bench-") as work:
            try:
                with Server(kind, work) as server:
                    try:
                        figures = measure(server, Path(work))
                    except BenchError as error:
                        raise BenchError(f"{error}\n{server.log_tail()}".strip()) from error
            except BenchError as error:
                self.failed = True
                print(f"{scenario}  server={kind.name}  failed: {error}", flush=True)
                return None
        return self.emit(scenario, server=kind.name, **about, **figures)

    def emit(self, scenario, **figures):
        row = {"scenario": scenario, **figures}
        self.rows.append(row)
        print("  ".join(f"{key}={_shown(value)}" for key, value in row.items()), flush=True)
        for warning in _warnings(row):
            print(f"    warning: {warning}", flush=True)
        if self.options.json:
            self._append(row)
        return row

    def _append(self, row):
        path = self.options.json
        rows = json.loads(path.read_text()) if path.exists() else []
        rows.append({"when": datetime.now(UTC).isoformat(timespec="seconds"), **row})
        path.write_text(json.dumps(rows, indent=1) + "\n")

    def ratio(self, label, upper, lower):
        """Print upper / lower CPU, where both were measured."""
        if upper and lower and lower["cpu"]:
            ratio = upper["cpu"] / lower["cpu"]
            names = f"{upper['server']}/{lower['server']}"
            print(f"{label}  {names}  cpu_ratio={ratio:.2f}", flush=True)

    def find(self, **wanted):
        """The last row that has these figures."""
        found = (row for row in reversed(self.rows) if all(row.get(key) == value for key, value in wanted.items()))
        return next(found, None)


def _shown(value):
    if isinstance(value, dict):
        return json.dumps(value) if value else "none"
    return value


def _warnings(row):
    if row.get("load_cpu", 0) > LOAD_WARN_PERCENT:
        yield "load_cpu is near its core's limit: these figures are the generator's, not the server's"
    if row.get("ksoftirqd_cpu", 0) > OTHER_WARN_PERCENT:
        yield "the core is so loaded that the kernel did part of the sending apart: the cost is cpu + ksoftirqd_cpu"
    if row.get("other_cpu", 0) > OTHER_WARN_PERCENT:
        yield "something else ran on the server's core"
    if row.get("delivered", 1) < DELIVERED_WARN:
        yield "not all was delivered: CPU and latency are those of a server that is too slow, or that drops"
    if row.get("ready", 0) < row.get("players", 0) and "ready" in row:
        yield "some players never got media"
    if row.get("live", 0) < row.get("publishers", 0):
        yield "some publishers were disconnected"
    if row.get("unstamped"):
        yield "messages without a stamp: the server changes payloads"
    if row.get("skipped"):
        yield "publishers were held back"
    if row.get("incomplete"):
        yield "send(2) did not take everything: the drain on the other core is too slow"


@contextlib.contextmanager
def _live_streams(server, work, kbps, streams=1):
    """A publisher for each stream, all of them live for longer than what any server caches."""
    stat = work / "published"
    arguments = ("--port", server.port, "--kbps", kbps, "--seconds", LIVE_LIMIT_S, "--stat", stat, "--publishers", streams)
    with Load("publisher", *arguments) as live:
        count = live.line()["live"]
        if count < streams:
            live.process.terminate()
            raise BenchError(f"{count} of {streams} publishers are live: {live.figures(30)['errors']}")
        servers.pause(GOP_CACHE_S)
        yield live, stat


def _play(server, work, kbps, players, seconds, stall=0, streams=1, more=()):
    """Return the figures of players and of their publishers. *more* are arguments for bench.players."""
    with _live_streams(server, work, kbps, streams) as (live, stat):
        arguments = ["--port", server.port, "--players", players, "--seconds", seconds, "--stall", stall]
        arguments += ["--streams", streams]
        arguments += ["--pid", server.pid, "--publisher-pid", live.pid, "--stat", stat, *more]
        with Load("players", *arguments) as load:
            figures = load.figures(players / RAMP_PLAYERS_PER_S + seconds + 60)
        live.process.terminate()
        published = live.figures(30)
    if published["errors"]:
        figures["errors"] |= {f"publisher: {reason}": count for reason, count in published["errors"].items()}
    return figures, published


def fanout(bench, *, unpaced=False):
    """One publisher, many players: what delivering costs, and how late it is."""
    scenario = "fanout-unpaced" if unpaced else "fanout"
    options = bench.options
    for players in options.players:

        def measure(server, work, players=players):
            return _play(server, work, options.kbps or 1000, players, options.seconds)[0]

        rows = [bench.measure(scenario, kind, measure) for kind in bench.kinds(unpaced=unpaced)]
        if len(rows) == 2:
            bench.ratio(f"{scenario}  players={players}", *rows)
        if unpaced:
            floor_row = bench.find(scenario="floor", players=players, tick_ms=0)
            bench.ratio(f"{scenario}  players={players}", rows[0], floor_row)


def fanout_unpaced(bench):
    """The same with pacing off: each message is sent when it arrives."""
    fanout(bench, unpaced=True)


def floor(bench):
    """The same bytes by plain send(2), from a C program without a server."""
    options = bench.options
    with tempfile.TemporaryDirectory(prefix="rtmpd-bench-") as work:
        try:
            program = Floor(work, options.kbps or 1000)
        except BenchError as error:
            print(f"floor  skipped: {error}")
            return
        for players in options.players:
            for tick_ms in FLOOR_TICKS_MS:
                try:
                    figures = program.figures(players, options.seconds, tick_ms)
                except BenchError as error:
                    bench.failed = True
                    print(f"floor  players={players}  failed: {error}", flush=True)
                    continue
                bench.emit("floor", server="send(2)", players=players, tick_ms=tick_ms, **figures)
            unpaced = bench.find(scenario="fanout-unpaced", server="rtmpd-unpaced", players=players)
            bench.ratio(f"floor  players={players}", unpaced, bench.find(scenario="floor", players=players, tick_ms=0))


def ingest(bench):
    """Many publishers, no players: what receiving costs."""
    options = bench.options
    kbps = options.kbps or 1000
    audio_kbps = publisher.AUDIO_BYTES * 8 * publisher.AUDIO_RATE / publisher.AUDIO_SAMPLES / 1000
    for publishers in options.publishers:

        def measure(server, _work, publishers=publishers):
            arguments = ["--port", server.port, "--publishers", publishers, "--kbps", kbps, "--settle", 3]
            with Load("publisher", *arguments, "--seconds", options.seconds, "--pid", server.pid) as load:
                return load.figures(options.seconds + 60)

        # What a server holds if it keeps exactly one GOP of each stream; read rss_mb against it.
        gop_mb = round(publishers * publisher.GOP_S * (kbps + audio_kbps) * 1000 / 8 / 2**20, 1)
        about = {"publishers": publishers, "gop_estimate_mb": gop_mb}
        rows = [bench.measure("ingest", kind, measure, **about) for kind in bench.kinds()]
        if len(rows) == 2:
            bench.ratio(f"ingest  publishers={publishers}", *rows)


SOURCES = (("alone", (), True), ("standby", ("--sources", 2), False), ("copies", ("--sources", 2, "--copies"), True))
"""How publishers share streams: a name, arguments of bench.publisher, and match_copies."""


def sources(bench):
    """Two publishers of each stream, one that stands by, and identical copies; beside as many publishers, each alone."""
    options = bench.options
    for publishers in options.publishers:
        rows = []
        for name, more, match in SOURCES:
            arguments = ("--publishers", publishers, *more, "--kbps", options.kbps or 1000, "--settle", 5)

            def measure(server, _work, arguments=arguments):
                with Load(
                    "publisher", "--port", server.port, "--pid", server.pid, *arguments, "--seconds", options.seconds
                ) as load:
                    return load.figures(options.seconds + 60)

            ini = f"[publish]\non_conflict = backup\nmatch_copies = {'yes' if match else 'no'}\n"
            kind = servers.rtmpd_with(f"rtmpd-{name}", ini)
            rows.append(bench.measure("sources", kind, measure, publishers=publishers, sources=name))
        for row in rows[1:]:
            bench.ratio(f"sources  publishers={publishers}  {row['sources']}", row, rows[0])


def many(bench, *, unpaced=False):
    """Streams of a few players each, or of none: paired turns of all servers, which run at the same time."""
    scenario, ini, suffix = ("many-unpaced", servers.UNPACED_INI, "-unpaced") if unpaced else ("many", "", "")
    kinds = servers.many_kinds(bench.options, ini, suffix) + ([bench.peer] if bench.peer else [])
    for streams, players in bench.options.streams:
        try:
            paired.run(bench, scenario, kinds, streams, players)
        except BenchError as error:
            bench.failed = True
            print(f"{scenario}  streams={streams}x{players}  failed: {error}", flush=True)


def many_unpaced(bench):
    """The same with pacing off: each message is sent when it arrives."""
    many(bench, unpaced=True)


def join(bench):
    """Late joiners at random moments: how soon each has a picture."""
    options = bench.options
    over_s = options.joins * JOIN_GAP_S

    def measure(server, work):
        with _live_streams(server, work, options.kbps or 1000):
            arguments = ("--port", server.port, "--joins", options.joins, "--seconds", over_s)
            with Load("joins", *arguments) as load:
                return load.figures(over_s + 60)

    for kind in bench.kinds():
        bench.measure("join", kind, measure)


def stall(bench):
    """Some players stop reading: what that does to the others, to the publisher and to memory."""
    options = bench.options
    kbps, seconds = options.kbps or STALL_KBPS, max(STALL_SECONDS, options.seconds)
    for kind in bench.kinds():
        rows = []
        for stalled in (0, STALL_STALLED):

            def measure(server, work, stalled=stalled):
                figures, published = _play(server, work, kbps, STALL_PLAYERS, seconds, stall=stalled)
                wanted = ("lag_max_ms", "pending_max_bytes", "skipped")
                return {**figures, **{f"publisher_{key}": published[key] for key in wanted}}

            rows.append(bench.measure("stall", kind, measure, kbps=kbps))
        calm, stalled_row = rows
        if calm and stalled_row and calm["p99_ms"] and stalled_row["p99_ms"]:
            growth_mb = stalled_row["rss_mb"] - stalled_row["rss_start_mb"]
            print(
                f"stall  server={kind.name}  p50_ratio={stalled_row['p50_ms'] / calm['p50_ms']:.2f}"
                f"  p99_ratio={stalled_row['p99_ms'] / calm['p99_ms']:.2f}  rss_growth_mb={growth_mb:.1f}",
                flush=True,
            )


def slow(bench):
    """1000 players of which 300 read less than the bitrate, by policy: the others compared with a run without slow players."""
    options = bench.options
    kbps, players = options.kbps or 1000, min(SLOW_PLAYERS, max(options.players))
    rows = {}
    for policy in (None, "keyframe", "nonref", "disconnect"):
        count = int(players * SLOW_SHARE) if policy else 0
        more = ("--slow", count, "--slow-kbps", kbps * SLOW_READS, "--settle", SLOW_SETTLE_S)

        def measure(server, work, more=more):
            return _play(server, work, kbps, players, options.seconds, more=more)[0]

        ini = SLOW_INI.format(policy=policy or "keyframe")
        kind = servers.rtmpd_with(f"rtmpd-{policy or 'calm'}", ini, options.server_command)
        rows[policy] = bench.measure("slow", kind, measure)
    calm = rows.pop(None)
    for policy, row in rows.items():
        if calm and row and calm["p99_ms"] and row["p99_ms"]:
            print(
                f"slow  policy={policy}  p50_ratio={row['p50_ms'] / calm['p50_ms']:.2f}"
                f"  p99_ratio={row['p99_ms'] / calm['p99_ms']:.2f}  cpu_ratio={row['cpu'] / max(0.1, calm['cpu']):.2f}",
                flush=True,
            )


def record(bench):
    """50 publishers that are not recorded, or as FLV, or as MP4, beside 50 players of another stream: what recording costs."""
    options = bench.options
    kinds = [
        servers.rtmpd(options.server_command),
        servers.rtmpd_with("rtmpd-record", RECORD_INI, options.server_command),
        servers.rtmpd_with("rtmpd-record-mp4", f"{RECORD_INI}record_format = mp4\n", options.server_command),
    ]
    rows = []
    for kind in kinds:

        def measure(server, work):
            arguments = ("--port", server.port, "--name", "rec", "--publishers", RECORD_PUBLISHERS)
            with Load("publisher", *arguments, "--kbps", options.kbps or 1000, "--seconds", LIVE_LIMIT_S) as load:
                live = load.line()["live"]
                figures = _play(server, work, options.kbps or 1000, RECORD_PLAYERS, options.seconds)[0]
                recorded = sum(path.stat().st_size for path in work.glob("recordings/live/*"))
                load.process.terminate()
                published = load.figures(30)
            about = {"live": live, "recorded_mb": round(recorded / 2**20, 1)}
            return {**figures, **about, "publisher_lag_max_ms": published["lag_max_ms"], "skipped": published["skipped"]}

        rows.append(bench.measure("record", kind, measure))
    plain, *recorded = rows
    for name, row in zip(("flv", "mp4"), recorded, strict=True):
        if plain and row:
            more = f"cpu_more={row['cpu'] - plain['cpu']:.1f}  p99_more_ms={row['p99_ms'] - plain['p99_ms']:.1f}"
            print(f"record  format={name}  {more}", flush=True)


def relay(bench):
    """10 relays to a sink that reads everything, beside 10 players: CPU of the one by that of the other."""
    options = bench.options
    kbps, port = options.kbps or RELAY_KBPS, servers.free_port()

    def play(server, work):
        return _play(server, work, kbps, RELAYS, options.seconds)[0]

    def push(server, work):
        stat = work / "published"
        publisher.Published(stat, create=1)
        arguments = ("--port", port, "--relays", RELAYS, "--seconds", options.seconds, "--pid", server.pid)
        with Load("sink", *arguments, "--stat", stat) as sink:
            sink.line()
            with _live_streams(server, work, kbps):
                return sink.figures(options.seconds + 60)

    urls = ", ".join(f"rtmp://127.0.0.1:{port}/sink/{{name}}_{number}" for number in range(RELAYS))
    command = options.server_command
    players = bench.measure("relay", servers.rtmpd_with("rtmpd-players", "", command), play, kbps=kbps)
    ini = f"[relay]\nrelay_to = {urls}\n"
    relays = bench.measure("relay", servers.rtmpd_with("rtmpd-relays", ini, command), push, kbps=kbps)
    bench.ratio("relay", relays, players)


def hooks(bench):
    """1000 events a second: without a webhook, with a slow web server, and with one that answers at once."""
    options = bench.options
    rows = {}
    for name, answer_ms in (("none", None), ("slow", HOOK_SLOW_MS), ("fast", 0)):
        web_port = servers.free_port()
        ini = HOOKS_INI if answer_ms is None else f"{HOOKS_INI}[hooks]\nhook_webhooks = *=http://127.0.0.1:{web_port}/\n"

        def measure(server, work, web_port=web_port, answer_ms=answer_ms):
            arguments = ("--port", server.port, "--web-port", web_port, "--answer-ms", answer_ms or 0)
            arguments += ("--events", HOOK_EVENTS_PER_S, "--seconds", LIVE_LIMIT_S)
            with Load("events", *arguments) as events:
                events.line()
                figures = _play(server, work, options.kbps or 1000, HOOK_PLAYERS, options.seconds)[0]
                events.process.terminate()
                made = events.figures(30)
            figures["errors"] |= {f"events: {reason}": count for reason, count in made.pop("errors").items()}
            return {**figures, **made}

        rows[name] = bench.measure("hooks", servers.rtmpd_with(f"rtmpd-hooks-{name}", ini, options.server_command), measure)
    for name in ("slow", "fast"):
        if rows["none"] and rows[name]:
            change_ms = rows[name]["p99_ms"] - rows["none"]["p99_ms"]
            print(f"hooks  webhook={name}  p99_change_ms={change_ms:+.2f}", flush=True)


def _tls_kind(bench, name, more=""):
    """Return a server that also listens for RTMPS, and the port."""
    port = servers.free_port()
    return servers.rtmpd_with(name, TLS_INI.format(port=port) + more, bench.options.server_command), port


def tls_players(bench):
    """Players over RTMPS beside as many without: what encryption costs, and whether all is delivered."""
    options = bench.options
    players = min(TLS_PLAYERS, max(options.players))
    for suffix, ini in (("", ""), ("-unpaced", "[live]\npacing = no\n")):
        rows = {}
        for name in ("rtmp", "rtmps"):
            kind, port = _tls_kind(bench, f"rtmpd-{name}{suffix}", ini)
            more = ("--play-port", port, "--tls") if name == "rtmps" else ()

            def measure(server, work, more=more):
                return _play(server, work, options.kbps or 1000, players, options.seconds, more=more)[0]

            rows[name] = bench.measure(f"tls{suffix}", kind, measure)
        bench.ratio(f"tls{suffix}  players={players}", rows["rtmps"], rows["rtmp"])
        if all(rows.values()):
            delivered = {name: row["delivered"] for name, row in rows.items()}
            print(f"tls{suffix}  delivered={delivered['rtmps']}  delivered_plain={delivered['rtmp']}", flush=True)


def handshakes(bench):
    """50 TLS handshakes a second beside plain players: what they change for these."""
    options = bench.options
    players = min(HANDSHAKE_PLAYERS, max(options.players))
    rows = {}
    for rate in (0, HANDSHAKES_PER_S):
        kind, port = _tls_kind(bench, f"rtmpd-{rate}-handshakes")

        def measure(server, work, rate=rate, port=port):
            if not rate:
                return _play(server, work, options.kbps or 1000, players, options.seconds)[0]
            with Load("tls", "--port", port, "--rate", rate, "--seconds", LIVE_LIMIT_S) as load:
                load.line()
                figures = _play(server, work, options.kbps or 1000, players, options.seconds)[0]
                load.process.terminate()
                made = load.figures(30)
            failed = made.pop("failed")
            figures["errors"] |= {"handshakes": failed} if failed else {}
            return {**figures, **made}

        rows[rate] = bench.measure("handshakes", kind, measure)
    calm, busy = rows.values()
    if calm and busy:
        change_ms, more = busy["p99_ms"] - calm["p99_ms"], busy["cpu"] - calm["cpu"]
        print(f"handshakes  p99_change_ms={change_ms:+.2f}  cpu_more={more:.1f}", flush=True)


def hls(bench):
    """Viewers of low-latency HLS, with parts of 200 ms: CPU, and how late parts are."""
    options = bench.options
    for viewers in options.viewers:
        port = servers.free_port()

        def measure(server, work, viewers=viewers, port=port):
            with _live_streams(server, work, options.kbps or 1000) as (live, _):
                arguments = ("--port", port, "--viewers", viewers, "--seconds", options.seconds, "--pid", server.pid)
                with Load("hls", *arguments) as load:
                    figures = load.figures(viewers / 50 + options.seconds + 90)
                live.process.terminate()
                live.figures(30)
            return figures

        ini = HLS_VIEWERS_INI.format(port=port)
        bench.measure("hls", servers.rtmpd_with("rtmpd-hls", ini, options.server_command), measure)


def hls_making(bench):
    """50 publishers, with and without making HLS of their streams: what that costs."""
    options = bench.options

    def measure(server, _work):
        arguments = ["--port", server.port, "--publishers", HLS_STREAMS, "--kbps", options.kbps or 1000, "--settle", 5]
        with Load("publisher", *arguments, "--seconds", options.seconds, "--pid", server.pid) as load:
            return load.figures(options.seconds + 60)

    rows = []
    for name in ("off", "always"):
        kind = servers.rtmpd_with(f"rtmpd-hls-{name}", f"[hls]\nhls = {name}\n", options.server_command)
        rows.append(bench.measure("hls-making", kind, measure, publishers=HLS_STREAMS))
    if all(rows):
        print(f"hls-making  publishers={HLS_STREAMS}  cpu_more={rows[1]['cpu'] - rows[0]['cpu']:.1f}", flush=True)


SCENARIOS = {
    "fanout": fanout,
    "fanout-unpaced": fanout_unpaced,
    "floor": floor,
    "handshakes": handshakes,
    "hls": hls,
    "hls-making": hls_making,
    "hooks": hooks,
    "ingest": ingest,
    "join": join,
    "many": many,
    "many-unpaced": many_unpaced,
    "relay": relay,
    "slow": slow,
    "sources": sources,
    "stall": stall,
    "record": record,
    "tls": tls_players,
    "torture": torture,
}


def run(options):
    """Run the requested scenarios and return the exit code."""
    servers.raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that context managers stop what they started
    bench = Bench(options)
    for name in options.scenarios:
        SCENARIOS[name](bench)
    return 1 if bench.failed else 0
