"""Streams of ffmpeg go on to nginx-rtmp and to another rtmpd, which are killed and restarted; ffmpeg plays what they get."""

from __future__ import annotations

import shutil
import socket
from typing import TYPE_CHECKING

import pytest

from tests.conftest import Server
from tests.e2e.media import AT_ONCE, NGINX_CONF, PATIENCE_S, assert_same, until
from tests.e2e.test_peers import find_nginx_module
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.e2e.media import Clips, Player, Program, Programs

CLIP = "h264_aac"
LONG = "h264_aac_long_gop"
LARGER = "h264_b_frames"
SECONDS = 3
FAR = "application far { live on; wait_key on; wait_video on; }"
RELAY = "[relay]\nrelay_to = {}\nrelay_retry_s = 0.2\nrelay_retry_limit_s = 1\n"


class Nginx:
    """nginx-rtmp as a destination."""

    def __init__(self, programs: Programs, directory: Path, nginx: str, module: Path) -> None:
        self.port = free_port()
        self._programs = programs
        self._conf = directory / "nginx-far.conf"
        self._conf.write_text(NGINX_CONF.format(module=module, directory=directory, port=self.port, applications=FAR))
        self._command = (nginx, "-p", directory, "-c", self._conf, "-e", directory / "nginx.log")
        self._program: Program | None = None

    def start(self) -> None:
        program = self._program = self._programs.start("nginx", *self._command)

        def listens() -> bool:
            assert program.running, program.errors
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", self.port)) == 0

        until(listens, "nginx")

    def kill(self) -> None:
        assert self._program is not None
        self._program.kill()

    def stop(self) -> None:
        self.kill()


class Rtmpd:
    """A second rtmpd as a destination."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        self._server: Server | None = None

    def start(self) -> None:
        self._server = Server(AT_ONCE, "--listen", f"127.0.0.1:{self.port}", directory=self._directory)

    def kill(self) -> None:
        assert self._server is not None
        self._server.process.kill()
        self._server.process.wait()

    def stop(self) -> None:
        assert self._server is not None
        self._server.stop()
        assert not [line for line in self._server.lines if "internal error" in line or "WARNING #" in line]


@pytest.fixture(params=[pytest.param("nginx", marks=pytest.mark.peer), "rtmpd"])
def far(request, programs, tmp_path, peer):
    """A destination of each kind, started."""
    if request.param == "nginx":
        nginx, module = shutil.which("nginx"), find_nginx_module()
        made = Nginx(programs, tmp_path, nginx or "", module) if nginx and module else peer("nginx-rtmp", "libnginx-mod-rtmp")
    else:
        (tmp_path / "far").mkdir()
        made = Rtmpd(tmp_path / "far")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def play(far, programs) -> Callable[..., Player]:
    """Return a function that plays from the destination."""
    return lambda *options: programs.play(f"rtmp://127.0.0.1:{far.port}/far/cam", *options, name="play_far", seconds=SECONDS)


def publish_for_ever(programs: Programs, clips: Clips, url: str, clip: str = CLIP) -> Program:
    command = (programs.ffmpeg, "-v", "error", "-nostdin", "-re", "-stream_loop", -1, "-i", clips[clip], "-c", "copy")
    return programs.start("publish", *command, "-flvflags", "no_duration_filesize", "-f", "flv", url)


def assert_decodes(player: Player) -> None:
    """It has decoded what it was given from the first packet on, and had nothing to say."""
    player.succeed()
    assert len(player.pictures()) >= (SECONDS - 1) * 25
    assert len(player.packets()["audio 0"]) > 50


def test_every_packet_arrives(far, play, server, programs, clips):
    running = server(RELAY.format(f"rtmp://127.0.0.1:{far.port}/far/{{name}}"))
    _ = clips[LONG]
    player = play()
    programs.publish(LONG, running.url("cam")).succeed()
    running.wait_for_line(r"relay to \S+ ended: .* 0 reconnects, 0 failures, 0 skips")
    player.succeed()
    got, expected = player.packets(), clips.packets(LONG)
    # It may have begun at the second keyframe, if the machine is busy.
    first = got["video 0"][0].dts
    assert first in (0, 1000)
    wanted = {name: [packet for packet in packets if packet.dts >= first] for name, packets in expected.items()}
    assert_same(got, {name: packets[: len(got[name])] for name, packets in wanted.items()})
    assert len(got["video 0"]) >= (SECONDS - 1) * 25


def test_a_destination_is_killed_and_started_again_while_ffmpeg_publishes(far, play, server, programs, clips):
    running = server(RELAY.format(f"rtmp://127.0.0.1:{far.port}/far/{{name}}"))
    # Their time is the stream's, which goes on whatever happens.
    first = play("-start_at_zero")
    near = programs.play(running.url("cam"), name="play_near", seconds=4 * SECONDS)
    publisher = publish_for_ever(programs, clips, running.url("cam"))
    assert_decodes(first)
    far.kill()
    running.wait_for_line(r"WARNING live/cam: relay to \S+ is down: ")
    running.wait_for_line(r"WARNING live/cam: relay to \S+ does not come up: can't connect to \S+: Connection refused")
    far.start()
    second = play("-start_at_zero")
    running.wait_for_line(r"INFO +live/cam: relay to \S+ is up again, attempt \d+", PATIENCE_S)
    assert_decodes(second)
    # The player of this server has noticed nothing.
    near.succeed()
    assert len(near.pictures()) >= (4 * SECONDS - 1) * 25
    assert publisher.running
    publisher.interrupt()
    running.wait_for_line(r"relay to \S+ ended: .* 1 reconnect, [1-9]\d* failures?, 0 skips")


def test_a_publisher_is_killed_and_started_again_and_the_destination_sees_one_publish(far, play, server, programs, clips):
    running = server(RELAY.format(f"rtmp://127.0.0.1:{far.port}/far/{{name}}"))
    player = programs.play(f"rtmp://127.0.0.1:{far.port}/far/cam", "-start_at_zero", name="play_far", seconds=3 * SECONDS)
    publisher = publish_for_ever(programs, clips, running.url("cam"))
    until(lambda: player.has_reached(SECONDS * 1000), "the player")
    publisher.kill()
    second = publish_for_ever(programs, clips, running.url("cam"))
    # It goes on to play, and has nothing to say.
    player.succeed()
    assert len(player.pictures()) >= (3 * SECONDS - 2) * 25
    times = [packet.dts for packet in player.packets()["video 0"]]
    assert times == sorted(set(times))
    second.interrupt()
    running.wait_for_line(r"relay to \S+ ended: .* 0 reconnects, 0 failures, 0 skips")


def test_a_publisher_returns_with_another_size_and_the_destination_gets_another_publish(far, play, server, programs, clips):
    ini = RELAY.format(f"rtmp://127.0.0.1:{far.port}/far/{{name}}") + "relay_on_header_change = reconnect\n"
    running = server(ini)
    _ = clips[LARGER]
    first = play("-start_at_zero")
    publisher = publish_for_ever(programs, clips, running.url("cam"))
    assert_decodes(first)
    publisher.kill()
    publisher = publish_for_ever(programs, clips, running.url("cam"), LARGER)
    running.wait_for_line(r"INFO +live/cam: relay to \S+ publishes anew: ", PATIENCE_S)
    running.wait_for_line(r"INFO +live/cam: relay to \S+ is up again, after \d\.\d s", PATIENCE_S)
    second = play("-start_at_zero")
    assert_decodes(second)
    assert {picture.size for picture in first.pictures()} == {160 * 120 * 3 // 2}
    assert {picture.size for picture in second.pictures()} == {320 * 180 * 3 // 2}
    publisher.interrupt()
    running.wait_for_line(r"relay to \S+ ended: .* 1 reconnect, 0 failures, 0 skips")
