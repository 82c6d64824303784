"""Other implementations play from the server and publish to it: rtmpdump, GStreamer (its own and librtmp's), nginx-rtmp.

Where a program hands on what it was given, it must be the published packets, every one; ffmpeg decodes the result.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import serving
from tests.e2e.media import NGINX_CONF, Programs, assert_same, until, wait_for_plays
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.media import Clips, Player, Program

CLIP = "h264_aac"
FRAMES = 75  # 3 s
PULLED_S = 2

# Not at once: rtmp2src drops the last message if the end of the stream comes right behind it.
CONFIGURATION = "[publish]\npublisher_grace_s = 1\n"

PACKAGES = {
    "rtmpdump": "rtmpdump",
    "rtmpdump_live": "rtmpdump",
    "rtmp2src": "gstreamer1.0-plugins-bad",
    "rtmpsrc": "gstreamer1.0-plugins-bad",
    "rtmp2sink": "gstreamer1.0-plugins-good, -bad and -ugly",
    "rtmpsink": "gstreamer1.0-plugins-good, -bad and -ugly",
    "nginx": "libnginx-mod-rtmp",
}
INTERRUPT_AGAIN_S = 5
WRITTEN_S = 1
GST_ELEMENTS = "rtmp2src rtmpsrc rtmp2sink rtmpsink flvmux x264enc h264parse voaacenc aacparse"

NGINX_APPLICATIONS = """\
application pull {{ live on; pull rtmp://127.0.0.1:{rtmpd}/live; }}
application push {{ live on; push rtmp://127.0.0.1:{rtmpd}/live; }}
"""

GST_SOURCES = (
    f"videotestsrc is-live=true num-buffers={FRAMES} ! video/x-raw,format=I420,width=160,height=120,framerate=25/1"
    " ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25 bitrate=200 ! h264parse ! queue ! m."
    " audiotestsrc is-live=true num-buffers=60 samplesperbuffer=2205 ! audio/x-raw,rate=44100,channels=1"
    " ! voaacenc bitrate=64000 ! aacparse ! queue ! m."
)


@dataclass
class Stage:
    """What happened: programs and players by name."""

    programs: dict[str, Program]
    players: dict[str, Player]
    directory: Path


def find_gstreamer() -> str | None:
    """Return the path of gst-launch-1.0, if all elements are there too."""
    inspect = shutil.which("gst-inspect-1.0")
    if inspect is None or any(subprocess.run([inspect, "--exists", name]).returncode for name in GST_ELEMENTS.split()):
        return None
    return shutil.which("gst-launch-1.0")


def find_nginx_module() -> Path | None:
    """Return the path of nginx-rtmp, if it is where nginx was built to look for modules."""
    nginx = shutil.which("nginx")
    if nginx is None:
        return None
    options = subprocess.run([nginx, "-V"], stderr=subprocess.PIPE, text=True, check=True).stderr
    found = re.search(r"--modules-path=(\S+)", options)
    module = Path(found[1]) / "ngx_rtmp_module.so" if found else None
    return module if module and module.exists() else None


def start_nginx(programs: Programs, nginx: str, module: Path, rtmpd: int) -> tuple[Program, int]:
    directory, port = programs.directory, free_port()
    conf = directory / "nginx.conf"
    applications = NGINX_APPLICATIONS.format(rtmpd=rtmpd)
    conf.write_text(NGINX_CONF.format(module=module, directory=directory, port=port, applications=applications))
    program = programs.start("nginx", nginx, "-p", directory, "-c", conf, "-e", directory / "nginx.log")

    def listens() -> bool:
        assert program.running, program.errors
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    until(listens, "nginx")
    return program, port


@pytest.fixture(scope="module")
def stage(ffmpeg, clips: Clips, tmp_path_factory) -> Iterator[Stage]:
    """All that are installed, at the same time, on one server."""
    directory = tmp_path_factory.mktemp("peers")
    _ = clips[CLIP]
    rtmpdump, gst = shutil.which("rtmpdump"), find_gstreamer()
    nginx, module = shutil.which("nginx"), find_nginx_module()
    programs = Programs(ffmpeg, directory, clips)
    acts: dict[str, Program] = {}
    players: dict[str, Player] = {}
    try:
        with serving(CONFIGURATION, directory) as server:
            # Those that play: each writes an FLV file.
            played = {}
            if rtmpdump:
                played["rtmpdump"] = (rtmpdump, "--quiet", "-r", "{url}", "-o", "{file}")
                played["rtmpdump_live"] = (rtmpdump, "--quiet", "--live", "-r", "{url}", "-o", "{file}")
            if gst:
                sink = ("!", "filesink", "buffer-mode=unbuffered", "location={file}")
                played["rtmp2src"] = (gst, "-q", "-e", "rtmp2src", "location={url}", *sink)
                played["rtmpsrc"] = (gst, "-q", "-e", "--no-fault", "rtmpsrc", "location={url} live=1", *sink)
            numbers = {}
            for name, command in played.items():
                words = {"url": server.url("clip"), "file": directory / f"{name}.flv"}
                acts[name] = programs.start(name, *(word.format(**words) for word in command))
                numbers[name] = wait_for_plays(server, "live/clip", len(numbers) + 1)
            # Those that publish: an ffmpeg plays what the server makes of it.
            published: dict[str, Callable[[], Program]] = {}
            if gst:
                for sink, location in (("rtmp2sink", "location={}"), ("rtmpsink", "location='{} live=1'")):
                    words = f"flvmux name=m streamable=true ! {sink} {location.format(server.url(sink))} {GST_SOURCES}"
                    published[sink] = lambda name=sink, words=words: programs.start(name, gst, "-q", "-e", *shlex.split(words))
            if nginx and module:
                acts["nginx"], port = start_nginx(programs, nginx, module, server.port)
                # Nginx does not tell its players that the stream has ended: this one ends by itself.
                url = f"rtmp://127.0.0.1:{port}/pull/clip"
                players["pull"] = programs.play(url, name="play_pull", seconds=PULLED_S)
                wait_for_plays(server, "live/clip", len(numbers) + 1)
                published["push"] = lambda: programs.publish(CLIP, f"rtmp://127.0.0.1:{port}/push/push")
            for name in published:
                players[name] = programs.play(server.url(name), name=f"play_{name}")
                wait_for_plays(server, f"live/{name}")
            for name, start in published.items():
                acts[name] = start()
            acts["clip"] = programs.publish(CLIP, server.url("clip"))

            for player in players.values():
                player.wait()
            acts["clip"].wait()
            if "rtmpsrc" in acts:
                # It closes its connection, but sits there until it is interrupted.
                server.wait_for_line(rf"#{numbers['rtmpsrc']} \S+ closed: ")
                interrupt_when_written(acts["rtmpsrc"], directory / "rtmpsrc.flv")
            for name in (*played, *published):
                acts[name].wait()
            yield Stage(acts, players, directory)
    finally:
        programs.kill_all()


def interrupt_when_written(program: Program, file: Path) -> None:
    """Interrupt rtmpsrc, once it has written what it had. An interrupt is lost now and then: it gets another."""
    size, again_at = -1, 0.0

    def ended() -> bool:
        nonlocal size, again_at
        if size != file.stat().st_size:
            size, again_at = file.stat().st_size, time.monotonic() + WRITTEN_S
        if program.running and time.monotonic() >= again_at:
            again_at = time.monotonic() + INTERRUPT_AGAIN_S
            program.interrupt()
        return not program.running

    until(ended, f"the end of {program.name}\n{program.errors}")


@pytest.fixture
def act(stage, peer) -> Callable[[str], Program]:
    """Return a function that finds a program by its name on the stage, or skips."""

    def find(name: str) -> Program:
        if name not in stage.programs:
            peer(name, PACKAGES[name])
        return stage.programs[name]

    return find


@pytest.mark.peer
@pytest.mark.parametrize("name", ["rtmpdump", "rtmpdump_live", "rtmp2src", "rtmpsrc"])
def test_player_records_every_packet(name, act, stage, programs, clips):
    program = act(name)
    if not (name == "rtmpsrc" and program.wait() == -signal.SIGSEGV):
        # Debian's rtmpsrc crashes now and then when it has closed its connection. What it has written must be right.
        program.succeed()
    player = programs.play(stage.directory / f"{name}.flv")
    player.succeed()
    assert_same(player.packets(), clips.packets(CLIP))
    assert len(player.pictures()) == len(clips.packets(CLIP)["video 0"])


@pytest.mark.peer
@pytest.mark.parametrize("name", ["rtmp2sink", "rtmpsink"])
def test_publisher_gets_every_picture_through(name, act, stage):
    act(name).succeed()
    player = stage.players[name]
    player.succeed()
    assert len(player.pictures()) == FRAMES
    assert len(player.packets()["audio 0"]) > 120


@pytest.mark.peer
def test_nginx_pulls(act, stage, clips):
    act("nginx")
    player = stage.players["pull"]
    player.succeed()
    expected, got = clips.packets(CLIP), player.packets()
    assert_same(got, {name: packets[: len(got[name])] for name, packets in expected.items()})
    assert len(got["video 0"]) >= PULLED_S * 25 - 5
    assert len(player.pictures()) >= PULLED_S * 25 - 5


@pytest.mark.peer
def test_nginx_pushes(act, stage, clips):
    act("nginx")
    stage.programs["push"].succeed()
    player = stage.players["push"]
    player.succeed()
    assert_same(player.packets(), clips.packets(CLIP))
