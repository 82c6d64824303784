"""Clips to publish, programs that play them, and the packets and pictures that arrive.

A clip is a short FLV file, encoded once per test run. Publishers send it unchanged (``-c copy -re``), so that each packet of a
player can be compared with the clip's.
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import gevent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tests.conftest import Server

PATIENCE_S = 60
"""How long a test waits for a required event: the machine may be busy."""

AT_ONCE = "[publish]\npublisher_grace_s = 0\n"
"""A configuration with which players end as soon as their publisher does."""

TRACKS = ("-map", "0:v?", "-map", "0:a?")
PICTURE = "-f lavfi -i testsrc2=size=160x120:rate=25"
OTHER_PICTURE = "-f lavfi -i testsrc=size=160x120:rate=25"
TONE = "-f lavfi -i sine=frequency=440:sample_rate=44100"
OTHER_TONE = "-f lavfi -i sine=frequency=880:sample_rate=48000"
X264 = "-c:v libx264 -preset veryfast -pix_fmt yuv420p"
NOISE = "-f rawvideo -pix_fmt yuv420p -framerate 25 -i -"


NGINX_CONF = """\
load_module {module};
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log info;
events {{ worker_connections 64; }}
rtmp {{
    access_log off;
    server {{
        listen 127.0.0.1:{port};
        {applications}
    }}
}}
"""
"""nginx-rtmp with some applications."""


class Clip(NamedTuple):
    """How a clip is encoded.

    ``enhanced`` are the FourCCs of E-RTMP that ffmpeg announces when it publishes the clip; ``noise`` is the size of the noise
    pictures that the encoder reads.
    """

    seconds: float
    arguments: str
    enhanced: str = ""
    noise: tuple[int, int] | None = None


CLIPS = {
    # Keyframes after 0 and 1 s and then no more: 10 s are 250 pictures.
    "h264_aac_long_gop": Clip(6, f"{PICTURE} {TONE} {X264} -g 250 -force_key_frames 0,1 -c:a aac"),
    # For publishes that must not end before the test, also on a busy machine.
    "h264_aac_minute": Clip(60, f"{PICTURE} {TONE} {X264} -g 25 -c:a aac"),
    # 1.3 Mbit/s, of which 0.9 are B-frames that no other frame needs.
    "h264_b_frames": Clip(
        20,
        f"-f lavfi -i testsrc2=size=320x180:rate=25,noise=alls=20:allf=t {TONE} {X264} -g 25 -bf 3"
        " -x264-params b-adapt=0:b-pyramid=none:qp=34:ipratio=1:pbratio=1:scenecut=0 -c:a aac -b:a 32k",
    ),
    "h264_aac": Clip(3, f"{PICTURE} {TONE} {X264} -g 25 -c:a aac"),
    "h264_aac_other": Clip(3, f"{OTHER_PICTURE} {TONE} {X264} -g 25 -c:a aac"),
    "hevc_aac": Clip(
        6, f"{PICTURE} {TONE} -c:v libx265 -preset ultrafast -x265-params log-level=none:keyint=25 -c:a aac", "hvc1"
    ),
    "av1_opus": Clip(6, f"{PICTURE} {TONE} -c:v libsvtav1 -preset 12 -g 25 -c:a libopus", "av01,Opus"),
    "vp9_aac": Clip(6, f"{PICTURE} {TONE} -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 25 -c:a aac", "vp09"),
    "sorenson_mp3": Clip(6, f"{PICTURE} {TONE} -c:v flv -b:v 200k -g 25 -c:a libmp3lame"),
    "aac_only": Clip(6, f"{TONE} -c:a aac"),
    "mp3_only": Clip(6, f"{TONE} -c:a libmp3lame"),
    "flac_only": Clip(6, f"{TONE} -c:a flac", "fLaC"),
    "h264_ac3": Clip(6, f"{PICTURE} {TONE} {X264} -g 25 -c:a ac3", "ac-3"),
    "h264_only": Clip(6, f"{PICTURE} {X264} -g 25"),
    "two_audio_tracks": Clip(
        6,
        f"{PICTURE} {TONE} {OTHER_TONE} -map 0:v -map 1:a -map 2:a {X264} -g 25 -c:a:0 aac -c:a:1 libopus",
        "Opus",
    ),
    "two_tracks_of_each": Clip(
        6,
        f"{PICTURE} {OTHER_PICTURE} {TONE} {OTHER_TONE} -map 0:v -map 1:v -map 2:a -map 3:a {X264} -g 25 -c:a aac",
        "avc1,mp4a",
    ),
    "slow": Clip(
        4,
        f"-video_size 160x120 {NOISE} {TONE} {X264} -g 25 -b:v 1M -minrate 1M -maxrate 1M -bufsize 1M"
        " -nal-hrd cbr -c:a aac -shortest",
        noise=(160, 120),
    ),
    "fast": Clip(
        4,
        f"-video_size 640x360 {NOISE} {TONE} -c:v libx264 -preset ultrafast -pix_fmt yuv420p -g 25"
        " -b:v 50M -minrate 50M -maxrate 50M -bufsize 50M -c:a aac -shortest",
        noise=(640, 360),
    ),
}


class Packet(NamedTuple):
    """A packet, or a decoded picture, as ffmpeg's framemd5 lists it. Times are milliseconds."""

    dts: int
    pts: int
    size: int
    digest: str


Tracks = dict[str, list[Packet]]
"""Packets by track: ``video 0``, ``audio 0``, ``audio 1`` ..."""


def read_framemd5(path: Path) -> Tracks:
    """Read what ffmpeg has written so far. Packets without content (some headers) are left out."""
    tracks: Tracks = {}
    names: dict[str, str] = {}
    kinds = {"video": count(), "audio": count()}
    text = path.read_text() if path.exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():
        if line.startswith("#media_type"):
            number, _, kind = line.removeprefix("#media_type ").partition(": ")
            names[number] = f"{kind} {next(kinds[kind])}"
            tracks[names[number]] = []
        elif line and line[0] != "#":
            # Side data may follow, such as the sequence header of a new publisher.
            number, dts, pts, _duration, size, digest = (part.strip() for part in line.split(",")[:6])
            if int(size):
                tracks[names[number]].append(Packet(int(dts), int(pts), int(size), digest))
    return tracks


def until(condition: Callable[[], object], what: str, limit_s: float = PATIENCE_S) -> None:
    """Wait until *condition* is true."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
        gevent.sleep(0.02)


class Program:
    """A process of another program, with its output in files, made by `Programs.start`."""

    def __init__(self, directory: Path, name: str, command: Iterable[object]) -> None:
        self.name = name
        self.out = directory / f"{name}.out"
        self.err = directory / f"{name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=directory
            )

    @property
    def errors(self) -> str:
        """The program's stderr so far."""
        return self.err.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self, limit_s: float = PATIENCE_S) -> int:
        """Wait for the end of the program and return the exit code."""
        until(lambda: not self.running, f"the end of {self.name}\n{self.errors}", limit_s)
        return self.process.returncode

    def succeed(self) -> None:
        """Wait for the end of the program, and assert that it succeeded with an empty stderr."""
        code = self.wait()
        assert (code, self.errors) == (0, ""), f"{self.name}: exit code {code}\n{self.errors}"

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Send SIGKILL, if the program still runs, and wait for its end."""
        if self.running:
            self.process.kill()
        self.process.wait()


class Player(Program):
    """An ffmpeg that plays, and lists each received packet and each decoded picture and audio frame."""

    def __init__(self, directory: Path, name: str, command: Iterable[object], seconds: float) -> None:
        self.packet_list = directory / f"{name}.packets"
        self.picture_list = directory / f"{name}.pictures"
        outputs = [
            *(*TRACKS, "-t", seconds, "-c", "copy", "-copyinkf", "-flush_packets", 1, "-f", "framemd5", self.packet_list),
            *(*TRACKS, "-t", seconds, "-fps_mode", "passthrough", "-flush_packets", 1, "-f", "framemd5", self.picture_list),
        ]
        super().__init__(directory, name, [*command, *outputs])

    def packets(self) -> Tracks:
        """Return the packets received so far."""
        return read_framemd5(self.packet_list)

    def pictures(self) -> list[Packet]:
        """Return the pictures decoded so far."""
        return read_framemd5(self.picture_list).get("video 0", [])

    def has_reached(self, milliseconds: float) -> bool:
        """Return whether a packet with this timestamp, or a later one, has arrived."""
        return any(track and track[-1].dts >= milliseconds for track in self.packets().values())


@dataclass
class Programs:
    """Start programs, and kill those that still run at the end."""

    ffmpeg: str
    directory: Path
    clips: Clips
    started: list[Program] = field(default_factory=list)

    def start(self, name: str, *command: object) -> Program:
        """Start any program."""
        program = Program(self.directory, f"{len(self.started)}_{name}", command)
        self.started.append(program)
        return program

    def publish(self, clip: str, url: str, *options: object) -> Program:
        """Publish a clip with ffmpeg, in real time."""
        enhanced = CLIPS[clip].enhanced
        return self.start(
            f"publish_{clip}",
            *(self.ffmpeg, "-v", "error", "-nostdin", "-re", "-copyts", "-i", self.clips[clip], "-map", "0", "-c", "copy"),
            *(("-rtmp_enhanced_codecs", enhanced) if enhanced else ()),
            *("-flvflags", "no_duration_filesize", *options, "-f", "flv", url),
        )

    def play(self, url: str | Path, *options: object, name: str = "play", seconds: float = PATIENCE_S) -> Player:
        """Play with ffmpeg, from the network or a file, to the end or for some seconds."""
        timeout = ("-rw_timeout", PATIENCE_S * 1_000_000) if "://" in str(url) else ()
        command = (self.ffmpeg, "-v", "error", "-nostdin", "-copyts", *timeout, *options, "-i", url)
        player = Player(self.directory, f"{len(self.started)}_{name}", command, seconds)
        self.started.append(player)
        return player

    def kill_all(self) -> None:
        for program in self.started:
            program.kill()


class Clips:
    """The clips, encoded on first use."""

    def __init__(self, ffmpeg: str, directory: Path) -> None:
        self.ffmpeg = ffmpeg
        self.directory = directory
        self._packets: dict[str, Tracks] = {}

    def __getitem__(self, name: str) -> Path:
        """Return a clip's file."""
        path = self.directory / f"{name}.flv"
        if not path.exists():
            clip = CLIPS[name]
            noise = None
            if clip.noise is not None:
                width, height = clip.noise
                noise = random.Random(1).randbytes(int(width * height * 3 / 2 * 25 * clip.seconds))
            command = [self.ffmpeg, "-v", "error", *clip.arguments.split(), "-t", str(clip.seconds), "-f", "flv", path]
            made = subprocess.run(command, input=noise or b"", capture_output=True, timeout=PATIENCE_S)
            assert made.returncode == 0, made.stderr.decode(errors="replace")
        return path

    def packets(self, name: str) -> Tracks:
        """Return the packets of a clip."""
        if name not in self._packets:
            self._packets[name] = self.read(self[name])
        return self._packets[name]

    def read(self, path: Path) -> Tracks:
        """Return the packets of a file, without the audio before the first picture, which no player gets."""
        listed = path.with_suffix(".packets")
        arguments = (*TRACKS, "-c", "copy", "-copyinkf", "-f", "framemd5", "-y", listed)
        command = [self.ffmpeg, "-v", "error", "-nostdin", "-copyts", "-i", path, *arguments]
        subprocess.run(command, check=True, timeout=PATIENCE_S)
        return from_first_picture(read_framemd5(listed))


def from_first_picture(tracks: Tracks) -> Tracks:
    """Remove the audio before the first picture, which no player gets."""
    first = min((packet.dts for name, track in tracks.items() for packet in track if name.startswith("video")), default=0)
    return {name: [packet for packet in track if packet.dts >= first] for name, track in tracks.items()}


def assert_same(got: Tracks, expected: Tracks, what: str = "") -> None:
    """Compare packets, and report in one line where they first differ."""
    assert got.keys() == expected.keys(), what
    for name, wanted in expected.items():
        had = got[name]
        pairs = enumerate(zip(had, wanted, strict=False))
        same = next((i for i, (one, other) in pairs if one != other), min(len(had), len(wanted)))
        assert had == wanted, (
            f"{what} {name}: {len(had)} packets, expected {len(wanted)}; the first that differs is number {same}:"
            f" {had[same : same + 2]}, expected {wanted[same : same + 2]}"
        )


def digests(packets: Iterable[Packet]) -> list[str]:
    return [packet.digest for packet in packets]


def wait_for_plays(server: Server, key: str, number: int = 1) -> int:
    """Wait until *number* plays of a stream have begun; return the number of the last one's connection."""
    marker = re.compile(rf"#(\d+) \S+ plays {re.escape(key)}(?: by [a-z]+)?$")

    def found() -> list[int]:
        return [int(match[1]) for match in map(marker.search, server.log()) if match]

    until(lambda: len(found()) >= number, f"play number {number} of {key}")
    return found()[number - 1]
