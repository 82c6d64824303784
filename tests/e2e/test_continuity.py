"""A stream with two encoders goes on when one of them fails: what viewers decode, what is recorded, and what relays send.

The encoders are ffmpeg; the camera gives all of them the same pictures, each with its number. Encoders are killed, stopped,
ended and cut off, ten times each, while one viewer decodes the stream; all these streams run at the same time.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import pytest

from rtmpd.media.flv_repair import scan
from tests.conftest import ROOT, Server
from tests.e2e.clocked import (
    FRAME_S,
    H264,
    H264_B_FRAMES,
    HEIGHT,
    HEVC,
    RATE,
    SOUND,
    TONE,
    WIDTH,
    Camera,
    Viewer,
    backward,
    longest_freeze_s,
    pause,
    picture,
    shown,
)
from tests.e2e.media import AT_ONCE, NGINX_CONF, PATIENCE_S, Clips, Programs, read_framemd5
from tests.e2e.namespaces import Namespace, link
from tests.e2e.paths import NetworkPath
from tests.e2e.test_peers import find_nginx_module
from tests.integration.tls_wire import tls_port
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.clocked import Encoder, Seen
    from tests.e2e.media import Tracks

FAILURES = 10
STALL_S = 1.0
NEVER_S = 20  # no encoder that is merely slow fails
SETTLE = 30  # pictures after which an encoder that has come, or has come back, has sent a keyframe
BUSY_S = 1.5
"""A slow machine: one freeze may take this much longer than on a quiet one."""
USUAL_S = 0.3
"""The median of the freezes may be this much longer than the time in which the failure is noticed."""


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition is true, in a thread."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
        pause()


class Log:
    """The log of a server, for several threads."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()

    def find(self, pattern: str) -> list[re.Match[str]]:
        with self._lock:
            lines = list(self._server.log())
        return [found for line in lines if (found := re.search(pattern, line))]


@dataclass
class Place:
    """One of the two encoders of a stream.

    Attributes:
        role: Its role.
        encoding: The arguments of ffmpeg.
        host: The address of the server, as the encoder sees it.
        prefix: The prefix of its command.
        cut, join: Cut its network, and end that.
        scheme: Of its URL.
        output: Arguments of ffmpeg before the URL.
    """

    role: str
    encoding: str
    host: str
    prefix: tuple[str, ...] = ()
    scheme: str = "rtmp"
    output: tuple[str, ...] = ("-f", "flv")
    cut: Callable[[], None] = lambda: None
    join: Callable[[], None] = lambda: None
    encoder: Encoder | None = None

    @property
    def running(self) -> Encoder:
        assert self.encoder is not None
        return self.encoder


class Failure(NamedTuple):
    """A failure: when it begins, and when the viewer is behind it."""

    begun_s: float
    ended_s: float


@dataclass
class Outcome:
    """What is known of a stream at the end."""

    pictures: list[Seen] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    running: bool = False
    error: BaseException | None = None

    @property
    def freezes_s(self) -> list[float]:
        return [longest_freeze_s(self.pictures, *each) for each in self.failures]


class Listener:
    """A player of a stream without video, in the place of a `Viewer`: with each packet it has heard what the camera takes."""

    def __init__(self, programs: Programs, camera: Camera, url: str) -> None:
        self.player = programs.play(url, name="listener", seconds=10 * PATIENCE_S)
        self.err = self.player.err
        self._camera = camera
        self._size, self._newest = 0, -1

    @property
    def newest(self) -> int:
        listed = self.player.packet_list
        size = listed.stat().st_size if listed.exists() else 0
        if size != self._size:
            self._size, self._newest = size, self._camera.number
        return self._newest

    @property
    def running(self) -> bool:
        return self.player.running

    def pictures(self) -> list[Seen]:
        return []

    def problems(self) -> list[str]:
        return self.player.errors.splitlines()


class Drill(threading.Thread):
    """Lets the active encoder of a stream fail again and again; the encoder comes back as the one that stands by.

    Args:
        camera: Gives the pictures.
        log: The server's.
        key: The stream.
        places: Its encoders.
        viewer: Its viewer.
        fail: Lets an encoder fail; its second argument is the number of the failure.
        recover: Lets it come back, after another one has become active. Returns False if a new encoder is needed.
    """

    def __init__(
        self,
        camera: Camera,
        log: Log,
        key: str,
        places: tuple[Place, Place],
        viewer: Viewer | Listener,
        fail: Callable[[Place, int], object],
        recover: Callable[[Place, int], bool] = lambda place, number: False,
        failures: int = FAILURES,
    ) -> None:
        super().__init__(name=key, daemon=True)
        self.outcome = Outcome()
        self._camera, self._log, self._key, self._places, self._viewer = camera, log, key, places, viewer
        self._fail, self._recover, self._failures = fail, recover, failures

    def wait(self, condition: Callable[[], object], what: str) -> None:
        def met() -> object:
            assert self._viewer.running, f"{self._key}: the viewer has ended: {self._viewer.err.read_text()[-1000:]}"
            return condition()

        wait_until(met, f"{what} of {self._key}")

    def see(self, pictures: int) -> None:
        """Wait until the viewer sees pictures that are taken later than now."""
        number = self._camera.number + pictures
        self.wait(lambda: self._viewer.newest >= number, f"picture {number}")

    def start_encoder(self, place: Place) -> None:
        """Start an encoder, again if it is refused: what its predecessor has sent before a cut may still come in."""
        before = len(self._log.find(f" publishes {self._key}$"))
        url = f"{place.scheme}://{place.host}/{self._key}?role={place.role}"
        name = f"{self._key.replace('/', '_')}_{place.role}"

        def publishes() -> bool:
            if place.encoder is None or place.encoder.process.poll() is not None:
                place.encoder = self._camera.encoder(name, place.encoding, *place.output, url, prefix=place.prefix)
            return len(self._log.find(f" publishes {self._key}$")) > before

        if place.encoder is not None:
            place.encoder.process.wait(PATIENCE_S)
        self.wait(publishes, f"the {place.role}")

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001 - raised by the test
            self.outcome.error = error

    def _run(self) -> None:
        pattern = rf"{self._key}: the (\w+) from \S+ is active from now on"
        active, standby = self._places
        self.start_encoder(active)
        self.see(0)
        self.start_encoder(standby)
        for number in range(self._failures):
            self.see(SETTLE)
            switches = len(self._log.find(pattern))
            begun_s = time.monotonic()
            self._fail(active, number)
            self.wait(lambda: len(self._log.find(pattern)) > switches, "a failover")  # noqa: B023
            self.see(RATE // 2)
            self.outcome.failures.append(Failure(begun_s, time.monotonic()))
            if not self._recover(active, number):
                self.start_encoder(active)
            active, standby = standby, active
            assert self._log.find(pattern)[-1][1] == active.role, "another encoder failed"
        self.see(SETTLE)

    def finish(self) -> Outcome:
        """Wait for the end, and return what was seen."""
        self.join(10 * PATIENCE_S)
        outcome = self.outcome
        outcome.running = self._viewer.running
        outcome.pictures = self._viewer.pictures()
        outcome.problems = self._viewer.problems()
        return outcome


def kill(place: Place, number: int) -> None:
    place.running.kill()


def stall(place: Place, number: int) -> None:
    place.running.stall()


def resume(place: Place, number: int) -> bool:
    place.running.resume()
    return True


def end(place: Place, number: int) -> None:
    place.running.end()


def cut(place: Place, number: int) -> None:
    place.cut()


def restore(place: Place, number: int) -> bool:
    """End a cut. Every second encoder connects again; the others go on with their connections."""
    if number % 2:
        place.running.kill()
    place.join()
    return number % 2 == 0


def assert_decodes_on(key: str, outcome: Outcome, *, noticed_s: float = 0.0) -> None:
    """The viewer has noticed nothing but a short freeze."""
    if outcome.error is not None:
        raise outcome.error
    pictures, on_screen = outcome.pictures, shown(outcome.pictures)
    freezes_s = outcome.freezes_s
    latency_s = [seen.pts_s - seen.number * FRAME_S for seen in on_screen]
    print(
        f"{key}: {len(freezes_s)} failures, freezes of {' '.join(f'{each * 1000:.0f}' for each in freezes_s)} ms, median"
        f" {statistics.median(freezes_s) * 1000:.0f}; {len(pictures) - len(on_screen)} of {len(pictures)} pictures compressed;"
        f" the time of a picture varies by {(max(latency_s) - min(latency_s)) * 1000:.0f} ms"
    )
    assert outcome.running
    assert backward(pictures) == []
    assert outcome.problems == []
    assert [(one, other) for one, other in pairwise(on_screen) if other.number < one.number - RATE // 5] == []
    # Pictures that are only for the decoder take no time.
    assert statistics.median(freezes_s) <= noticed_s + USUAL_S
    assert max(freezes_s) <= noticed_s + BUSY_S


INI = """
[publish]
on_conflict = backup
failback = never
stall_timeout_s = {never}
[record]
record_all = yes
record_directory = {directory}
record_file_name = {{app}}-{{n:02}}
[applications]
[[kill]]
relay_to = {destinations}
[[end]]
[[stall]]
stall_timeout_s = {stall}
[[cut]]
publisher_takeover_s = {stall}
stall_timeout_s = {stall}
"""
FAR = "application far { live on; }"


class Failures(NamedTuple):
    """What is left of the failures of all kinds.

    Attributes:
        outcomes: By the name of the application.
        recordings: The directory.
        nginx_log: The log of nginx-rtmp; empty without it.
        rtmpd_log: The log of the other rtmpd.
        lines: The log of the server.
    """

    outcomes: dict[str, Outcome]
    recordings: Path
    nginx_log: str
    rtmpd_log: list[str]
    lines: list[str]


class Network:
    """The network namespaces of the server and of two encoders, whose links can be cut; without root, nothing."""

    def __init__(self) -> None:
        self.usable = os.geteuid() == 0 and bool(shutil.which("nsenter")) and bool(shutil.which("ip"))
        self._namespaces = [Namespace() for _ in range(3)] if self.usable else []
        self.prefix = self._namespaces[0].prefix if self.usable else ()

    def place(self, role: str, encoding: str, number: int, port: int) -> Place:
        near, far = self._namespaces[0], self._namespaces[number]
        host = link(near, far, number)
        up, down = (lambda: near.run(f"ip link set far{number} up"), lambda: near.run(f"ip link set far{number} down"))
        return Place(role, encoding, f"{host}:{port}", far.prefix, cut=down, join=up)

    def close(self) -> None:
        for each in self._namespaces:
            each.close()


@pytest.fixture(scope="module")
def failures(ffmpeg: str, clips: Clips, tmp_path_factory) -> Iterator[Failures]:
    """Let encoders fail in each way, all at the same time."""
    directory: Path = tmp_path_factory.mktemp("failures")
    recordings = directory / "recordings"
    (directory / "far").mkdir()
    programs = Programs(ffmpeg, directory, clips)
    network = Network()
    camera = Camera(ffmpeg, directory)
    servers: list[Server] = []
    viewers: list[Viewer] = []
    nginx, module = shutil.which("nginx"), find_nginx_module()
    try:
        far = Server(AT_ONCE, directory=directory / "far", level="info", prefix=network.prefix)
        servers.append(far)
        destinations = [f"rtmp://127.0.0.1:{far.port}/far/rtmpd"]
        if nginx and module:
            port = free_port()
            conf = directory / "nginx.conf"
            conf.write_text(NGINX_CONF.format(module=module, directory=directory, port=port, applications=FAR))
            programs.start("nginx", *network.prefix, nginx, "-p", directory, "-c", conf, "-e", directory / "nginx.log")
            destinations.append(f"rtmp://127.0.0.1:{port}/far/nginx")
        ini = INI.format(never=NEVER_S, stall=STALL_S, directory=recordings, destinations=", ".join(destinations))
        port = free_port()
        server = Server(ini, "--listen", f":{port}", directory=directory, level="info", prefix=network.prefix)
        servers.append(server)
        log = Log(server)
        host = f"127.0.0.1:{port}"

        def drill(app: str, places: tuple[Place, Place], *how) -> Drill:
            viewer = Viewer(ffmpeg, directory, f"viewer_{app}", f"rtmp://{host}/{app}/cam", network.prefix)
            viewers.append(viewer)
            return Drill(camera, log, f"{app}/cam", places, viewer, *how)

        def pair(first: str, second: str) -> tuple[Place, Place]:
            return Place("primary", first, host, network.prefix), Place("backup", second, host, network.prefix)

        drills = {
            "kill": drill("kill", pair(H264, H264), kill),
            "stall": drill("stall", pair(H264_B_FRAMES, H264_B_FRAMES), stall, resume),
            "end": drill("end", pair(H264, H264_B_FRAMES), end),
        }
        if network.usable:
            places = (network.place("primary", H264, 1, port), network.place("backup", H264, 2, port))
            drills["cut"] = drill("cut", places, cut, restore)
        for each in drills.values():
            each.start()
        outcomes = {name: each.finish() for name, each in drills.items()}
        camera.close()
        code = server.stop()
        lines = list(server.lines)
        far.stop()
        nginx_log = (directory / "nginx.log").read_text() if nginx and module else ""
        assert code == 0
        yield Failures(outcomes, recordings, nginx_log, list(far.lines), lines)
    finally:
        (directory / "server.log").write_text("\n".join(servers[-1].log()))
        camera.close()
        for viewer in viewers:
            viewer.close()
        programs.kill_all()
        for each in servers:
            each.stop()
        network.close()


NOTICED_S = {"kill": 0.0, "end": 0.0, "stall": STALL_S, "cut": STALL_S}
"""The streams, and how long it takes until a failure is noticed."""
SAME_HEADERS = ("kill", "stall", "cut")


def outcome_of(failures: Failures, name: str) -> Outcome:
    if name not in failures.outcomes:
        pytest.skip("needs root")
    return failures.outcomes[name]


@pytest.mark.parametrize("name", NOTICED_S)
def test_a_viewer_decodes_on_when_the_active_encoder_fails(failures, name):
    assert_decodes_on(name, outcome_of(failures, name), noticed_s=NOTICED_S[name])


def test_every_failure_is_reported(failures):
    for name in failures.outcomes:
        lines = [
            line for line in failures.lines if re.search(rf"WARNING {name}/cam: the \w+ from \S+ is active from now on", line)
        ]
        assert len(lines) >= FAILURES, name
    assert [line for line in failures.lines if "internal error" in line or "Traceback" in line or " CRITICAL" in line] == []


def assert_recording_is_whole(ffmpeg: str, path: Path) -> Tracks:
    """A recording decodes without a warning, and its times go forward. Return its packets."""
    with path.open("rb") as file:
        assert scan(file).clean
    listed = path.with_suffix(".packets")
    decode = "-map 0 -fps_mode passthrough -enc_time_base:v 1:1000 -f null -"
    command = [ffmpeg, "-v", "warning", "-nostdin", "-y", "-copyts", "-i", path, *decode.split()]
    command += ["-map", "0", "-c", "copy", "-f", "framemd5", listed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    # A segment may be so short that it has no audio.
    complaints = [line for line in done.stderr.splitlines() if "No filtered frames" not in line]
    assert (done.returncode, complaints) == (0, []), path.name
    tracks = read_framemd5(listed)
    for track in tracks.values():
        assert [(one, other) for one, other in pairwise(track) if other.dts <= one.dts] == []
    shown_ms = sorted(packet.pts for packet in tracks["video 0"])
    assert [(a, b) for a, b in pairwise(shown_ms) if b <= a] == []
    return tracks


@pytest.mark.parametrize("name", SAME_HEADERS)
def test_one_recording_decodes_across_all_failures(failures, ffmpeg, name):
    outcome = outcome_of(failures, name)
    (path,) = failures.recordings.glob(f"{name}-*")
    tracks = assert_recording_is_whole(ffmpeg, path)
    # It has what the viewer has seen.
    seen_s = outcome.pictures[-1].pts_s - outcome.pictures[0].pts_s
    assert len(tracks["video 0"]) >= len(outcome.pictures)
    assert tracks["video 0"][-1].dts / 1000 >= seen_s


def test_encoders_with_other_parameters_begin_another_file(failures, ffmpeg):
    paths = sorted(failures.recordings.glob("end-*"))
    assert len(paths) >= FAILURES + 1
    for path in paths:
        assert_recording_is_whole(ffmpeg, path)


def test_a_relay_stays_up_across_all_failures(failures):
    ended = [line for line in failures.lines if re.search(r"kill/cam: relay to \S+ ended", line)]
    assert ended
    for line in ended:
        assert line.endswith(" 0 reconnects, 0 failures, 0 skips"), line
    assert sum(line.endswith(" publishes far/rtmpd") for line in failures.rtmpd_log) == 1
    assert not [line for line in failures.rtmpd_log if "WARNING #" in line or " ERROR" in line]


@pytest.mark.peer
def test_nginx_gets_one_publish_across_all_failures(failures, peer):
    if not failures.nginx_log:
        peer("nginx-rtmp", "libnginx-mod-rtmp")
    assert failures.nginx_log.count("publish: name='nginx'") == 1
    assert "[error]" not in failures.nginx_log


SLATE = 777_777
"""The number that the slate shows; the camera does not get there."""
OTHERS_INI = """
[tls]
tls_listen = 127.0.0.1:0
{pair}
[publish]
on_conflict = backup
failback = never
stall_timeout_s = {stall}
[record]
record_streams = slate/*
record_directory = {directory}
record_file_name = {{app}}-{{n:02}}
[slate]
slate_record = yes
[applications]
[[copies]]
stall_timeout_s = {never}
[[slate]]
publisher_grace_s = 1
slate_file = {slate}
[[hevc]]
[[sound]]
"""
CUTS = 8
DELAY_S = 0.12
FIFO = (
    "f=fifo:fifo_format=flv:attempt_recovery=1:recover_any_error=1:recovery_wait_time=0.2:restart_with_keyframe=1"
    ":drop_pkts_on_overflow=1:queue_size=200"
)
MIX = (kill, stall, end)


class Others(NamedTuple):
    """What is left of the other streams.

    Attributes:
        drills: Outcomes by application.
        heard: What the listener got.
        received: The packets of the player of the copies.
        encoded: Those that their encoder has written to a file.
        slate: What the viewer of the slate has seen.
        recordings: The directory of those of the slate.
        lines: The log of the server.
    """

    drills: dict[str, Outcome]
    heard: Tracks
    received: Tracks
    encoded: Tracks
    slate: Outcome
    recordings: Path
    lines: list[str]


def fail_in_turn(place: Place, number: int) -> None:
    MIX[number % len(MIX)](place, number)


def recover_in_turn(place: Place, number: int) -> bool:
    return MIX[number % len(MIX)] is stall and resume(place, number)


class Task(threading.Thread):
    """Runs a function; `finish` raises what it has raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._function()
        except BaseException as error:  # noqa: BLE001 - raised by `finish`
            self._error = error

    def finish(self) -> None:
        self.join(10 * PATIENCE_S)
        if self._error is not None:
            raise self._error


def cut_copies(camera: Camera, log: Log, paths: list[NetworkPath], file: Path) -> None:
    """Publish over two paths, and cut one of them at random, again and again."""
    outputs = [f"[{FIFO}]rtmp://127.0.0.1:{path.port}/copies/cam?path={number}" for number, path in enumerate(paths)]
    encoder = camera.encoder(
        "copies", f"{H264_B_FRAMES} -flags +global_header", "-f", "tee", "|".join([*outputs, f"[f=flv]{file}"])
    )
    chance = random.Random(14)
    for number in range(CUTS):
        wait_until(lambda: len(log.find("copies/cam: .* send identical frames")) > number, f"copies, cut {number}")  # noqa: B023
        taken = camera.number + chance.randrange(1, RATE)
        wait_until(lambda: camera.number >= taken, "the camera")  # noqa: B023
        chance.choice(paths).cut()
    wait_until(lambda: len(log.find("copies/cam: .* send identical frames")) > CUTS, "copies at the end")
    encoder.end()
    # With fifo it does not wait for its connections.
    encoder.process.wait(PATIENCE_S)


def show_slate(camera: Camera, viewer: Viewer, url: str) -> None:
    """Let a publisher come, stall, return, be killed, and come again; the viewer sees the slate meanwhile."""

    def see(what: str, *, slate: bool) -> None:
        after = camera.number
        wait_until(lambda: viewer.newest == SLATE if slate else after < viewer.newest < SLATE, what)

    see("the slate before the publisher", slate=True)
    encoder = camera.encoder("slate", H264, url)
    see("the publisher", slate=False)
    encoder.stall()
    see("the slate in the stall", slate=True)
    encoder.resume()
    see("the publisher after the stall", slate=False)
    encoder.kill()
    see("the slate after the kill", slate=True)
    encoder = camera.encoder("slate", H264_B_FRAMES, url)
    see("another publisher", slate=False)
    encoder.end()
    see("the slate after the end", slate=True)


def make_slate(ffmpeg: str, directory: Path, run: Path) -> Path:
    """Make a slate of a picture with the command, like what the encoders send."""
    (run / "bin").mkdir()
    (run / "bin" / "ffmpeg").symlink_to(ffmpeg)
    raw = f"-f rawvideo -pix_fmt gray -s {WIDTH}x{HEIGHT} -r {RATE}"
    make = f"{ffmpeg} -v error -y {raw} -i - "
    still, like, slate = run / "slate.png", run / "like.flv", run / "slate.mp4"
    subprocess.run([*make.split(), "-frames:v", "1", still], input=picture(SLATE), check=True, timeout=PATIENCE_S)
    encode = f"{make} {TONE} -t 1 {H264}".split()
    subprocess.run([*encode, like], input=b"".join(map(picture, range(RATE))), check=True, timeout=PATIENCE_S)
    command = [sys.executable, "-m", "rtmpd", "--make-slate", still, slate, "--like", like]
    environment = {**os.environ, "PATH": f"{run / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return slate


@pytest.fixture(scope="module")
def others(ffmpeg: str, clips: Clips, authority, tmp_path_factory) -> Iterator[Others]:
    """Copies over two paths, a slate, HEVC over RTMPS, and sound without pictures, all at the same time."""
    directory: Path = tmp_path_factory.mktemp("others")
    programs = Programs(ffmpeg, directory, clips)
    slate = make_slate(ffmpeg, ROOT, directory)
    pair = authority.issue("localhost", "127.0.0.1")
    ini = OTHERS_INI.format(pair=pair.ini, never=NEVER_S, stall=STALL_S, slate=slate, directory=directory / "recordings")
    server = Server(ini, directory=directory, level="info")
    camera = Camera(ffmpeg, directory)
    viewers: list[Viewer] = []
    paths: list[NetworkPath] = []
    try:
        log = Log(server)
        host, tls_host = f"127.0.0.1:{server.port}", f"localhost:{tls_port(server)}"

        def view(app: str) -> Viewer:
            viewers.append(Viewer(ffmpeg, directory, f"viewer_{app}", f"rtmp://{host}/{app}/cam"))
            return viewers[-1]

        def drill(app: str, viewer: Viewer | Listener, **options) -> Drill:
            places = (Place("primary", **options), Place("backup", **options))
            return Drill(camera, log, f"{app}/cam", places, viewer, fail_in_turn, recover_in_turn, 2 * len(MIX))

        enhanced = ("-rtmp_enhanced_codecs", "hvc1", "-tls_verify", "1", "-ca_file", str(authority.path), "-f", "flv")
        listener = Listener(programs, camera, f"rtmp://{host}/sound/cam")
        drills = {
            "hevc": drill("hevc", view("hevc"), encoding=HEVC, host=tls_host, scheme="rtmps", output=enhanced),
            "sound": drill("sound", listener, encoding=SOUND, host=host),
        }
        for each in drills.values():
            each.start()
        player = programs.play(f"rtmp://{host}/copies/cam", name="copies", seconds=10 * PATIENCE_S)
        server.wait_for_line(" plays copies/cam")
        paths += [NetworkPath(server.port), NetworkPath(server.port, DELAY_S)]
        file = directory / "copies.flv"
        slate_viewer = view("slate")
        tasks = [
            Task(lambda: cut_copies(camera, log, paths, file)),
            Task(lambda: show_slate(camera, slate_viewer, f"rtmp://{host}/slate/cam")),
        ]
        for task in tasks:
            task.finish()
        outcomes = {name: each.finish() for name, each in drills.items()}
        seen = Outcome(slate_viewer.pictures(), [], slate_viewer.problems(), slate_viewer.running)
        heard = listener.player.packets()
        encoded = Clips(ffmpeg, directory).read(file)

        def has_ended() -> bool:
            got = player.packets()
            return all(got[kind][-1].digest == encoded[kind][-1].digest for kind in encoded)

        wait_until(has_ended, "the last frames of the copies")
        received = player.packets()
        camera.close()
        code = server.stop()
        assert code == 0
        yield Others(outcomes, heard, received, encoded, seen, directory / "recordings", list(server.lines))
    finally:
        (directory / "server.log").write_text("\n".join(server.log()))
        camera.close()
        for path in paths:
            path.close()
        for viewer in viewers:
            viewer.close()
        programs.kill_all()
        server.stop()


def test_every_frame_of_copies_arrives_once_while_paths_are_cut(others):
    for kind in ("video 0", "audio 0"):
        got, wanted = others.received[kind], others.encoded[kind]
        first = [packet.digest for packet in wanted].index(got[0].digest)
        if kind == "audio 0":
            # A tone: some frames are the same.
            first = min(range(len(wanted)), key=lambda number: abs(wanted[number].dts - got[0].dts))
        wanted = wanted[first:]
        assert [packet.digest for packet in got] == [packet.digest for packet in wanted[: len(got)]]
        assert len(got) >= len(wanted) - 2
        assert len({one.dts - other.dts for one, other in zip(got, wanted, strict=False)}) == 1
        assert len({one.pts - other.pts for one, other in zip(got, wanted, strict=False)}) == 1
    cuts = [line for line in others.lines if "copies/cam" in line and "stopped publishing" in line]
    assert len(cuts) >= CUTS


def test_a_viewer_decodes_on_from_slate_to_publisher_and_back(others):
    pictures = others.slate.pictures
    print("slate:", len(pictures), "pictures;", "largest step", max(b.pts_s - a.pts_s for a, b in pairwise(pictures)), "s")
    assert others.slate.running
    assert backward(pictures) == []
    assert others.slate.problems == []
    assert max(b.pts_s - a.pts_s for a, b in pairwise(pictures)) <= STALL_S + BUSY_S


def test_recordings_with_a_slate_decode(others, ffmpeg):
    paths = list(others.recordings.glob("slate-*"))
    assert paths
    for path in paths:
        assert_recording_is_whole(ffmpeg, path)


def test_hevc_over_rtmps_decodes_on(others):
    assert_decodes_on("hevc", others.drills["hevc"], noticed_s=STALL_S)


def test_sound_without_pictures_goes_on(others):
    outcome = others.drills["sound"]
    if outcome.error is not None:
        raise outcome.error
    assert outcome.running
    assert outcome.problems == []
    packets = others.heard["audio 0"]
    steps_ms = [other.dts - one.dts for one, other in pairwise(packets)]
    print(f"sound: {len(packets)} packets, longest step {max(steps_ms)} ms")
    assert min(steps_ms) > 0
    assert max(steps_ms) <= 1000 * (STALL_S + BUSY_S)


def test_the_server_of_the_other_streams_reports_no_internal_error(others):
    assert [line for line in others.lines if "internal error" in line or "Traceback" in line or " CRITICAL" in line] == []
