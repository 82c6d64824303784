"""RTMPS with real programs: ffmpeg with OpenSSL and with GnuTLS, rtmpdump, GStreamer, stunnel, haproxy."""

from __future__ import annotations

import re
import shlex
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import serving
from tests.e2e.media import AT_ONCE, Programs, assert_same, until, wait_for_plays
from tests.e2e.test_peers import GST_SOURCES, find_gstreamer
from tests.integration.tls_wire import LISTEN, tls_port
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.media import Clips, Program

CLIP = "h264_aac"


@pytest.fixture(scope="module")
def pair(authority):
    return authority.issue("localhost", "127.0.0.1")


@pytest.fixture
def rtmps(pair, tmp_path):
    with serving(f"{AT_ONCE}{LISTEN}{pair.ini}", tmp_path) as server:
        yield server


def listens(program: Program, port: int) -> None:
    """Wait until a program listens."""

    def answers() -> bool:
        assert program.running, program.errors
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    until(answers, program.name)


@pytest.fixture(params=["wheel", pytest.param("debian", marks=pytest.mark.peer)])
def either(request, programs: Programs, peer, tmp_path, clips) -> Iterator[Programs]:
    """Programs with the ffmpeg of the wheel, which has OpenSSL, and of Debian, which has GnuTLS."""
    made = programs if request.param == "wheel" else Programs(peer("ffmpeg", "ffmpeg"), tmp_path, clips)
    yield made
    made.kill_all()


def test_ffmpeg_publishes_and_plays_and_verifies_the_certificate(
    rtmps, either: Programs, programs: Programs, clips: Clips, authority
):
    url = f"rtmps://localhost:{tls_port(rtmps)}/live/a"
    checks = ("-tls_verify", 1, "-ca_file", authority.path)
    player, plain = either.play(url, *checks), programs.play(rtmps.url("a"), name="plain")
    wait_for_plays(rtmps, "live/a", 2)
    either.publish(CLIP, url, *checks).succeed()
    for each in (player, plain):
        each.succeed()
        assert_same(each.packets(), clips.packets(CLIP), each.name)
    assert len([line for line in rtmps.log() if "TLS handshake done: TLSv1.3" in line]) == 2


def test_ffmpeg_refuses_a_certificate_of_an_unknown_authority(rtmps, either: Programs, tmp_path):
    from tests.certificates import Authority

    other = Authority(tmp_path / "other")
    url = f"rtmps://localhost:{tls_port(rtmps)}/live/a"
    assert either.publish(CLIP, url, "-tls_verify", 1, "-ca_file", other.path).wait() != 0
    # GnuTLS only looks when the handshake is done, and says nothing.
    rtmps.wait_for_line("TLS handshake: the client does not t(rust|ake) our certificate|closed: closed by the peer")
    assert not [line for line in rtmps.log() if " publishes " in line]


@pytest.mark.peer
def test_rtmpdump_plays(rtmps, programs: Programs, clips: Clips, peer):
    url = f"rtmps://127.0.0.1:{tls_port(rtmps)}/live/a"
    player = programs.start("rtmpdump", peer("rtmpdump", "rtmpdump"), "-q", "--live", "-r", url, "-o", "dump.flv")
    wait_for_plays(rtmps, "live/a")
    programs.publish(CLIP, rtmps.url("a")).succeed()
    player.wait()
    assert_same(clips.read(programs.directory / "dump.flv"), clips.packets(CLIP), "rtmpdump")


@pytest.mark.peer
def test_gstreamer_publishes(rtmps, programs: Programs, authority, peer):
    gst = find_gstreamer() or peer("gst-launch-1.0 with all its elements", "gstreamer1.0-plugins-good, -bad and -ugly")
    player = programs.play(rtmps.url("a"))
    wait_for_plays(rtmps, "live/a")
    # It has no option for a file of authorities, and tests can't change the system's: it does not check the issuer.
    sink = f"flvmux name=m streamable=true ! rtmp2sink location=rtmps://localhost:{tls_port(rtmps)}/live/a"
    pipeline = f"{GST_SOURCES} {sink} tls-validation-flags=bad-identity"
    publisher = programs.start("gst", gst, "-q", *shlex.split(pipeline))
    player.succeed()
    publisher.wait()
    assert len(player.pictures()) == 75
    rtmps.wait_for_line(r"TLS handshake done: TLSv1\.\d, \w[\w-]+, name 'localhost'")


STUNNEL = """\
foreground = yes
pid =
debug = err
[rtmp]
client = yes
accept = 127.0.0.1:{front}
connect = 127.0.0.1:{back}
verifyChain = yes
checkHost = localhost
sni = localhost
CAfile = {ca}
"""


@pytest.mark.peer
def test_stunnel_carries_a_client_that_has_no_tls(rtmps, programs: Programs, clips: Clips, authority, peer, tmp_path):
    front = free_port()
    conf = tmp_path / "stunnel.conf"
    conf.write_text(STUNNEL.format(front=front, back=tls_port(rtmps), ca=authority.path))
    listens(programs.start("stunnel", peer("stunnel4", "stunnel4"), conf), front)
    url = f"rtmp://127.0.0.1:{front}/live/a"
    player = programs.play(url)
    wait_for_plays(rtmps, "live/a")
    programs.publish(CLIP, url).succeed()
    player.succeed()
    assert_same(player.packets(), clips.packets(CLIP), "stunnel")


HAPROXY = """\
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen through
    bind 127.0.0.1:{through}
    server rtmpd 127.0.0.1:{back} send-proxy-v2
listen wrapping
    bind 127.0.0.1:{wrapping}
    server rtmpd 127.0.0.1:{back} send-proxy-v2 ssl verify required ca-file {ca} sni str(localhost) verifyhost localhost
"""


@pytest.mark.peer
def test_haproxy_sends_the_address_of_the_client_before_tls(programs: Programs, clips: Clips, authority, pair, peer, tmp_path):
    ini = f"{AT_ONCE}[server]\nproxy_protocol_from = 127.0.0.1\n{LISTEN}{pair.ini}"
    with serving(ini, tmp_path) as server:
        through, wrapping = free_port(), free_port()
        conf = tmp_path / "haproxy.cfg"
        conf.write_text(HAPROXY.format(through=through, wrapping=wrapping, back=tls_port(server), ca=authority.path))
        program = programs.start("haproxy", peer("haproxy", "haproxy"), "-db", "-f", conf)
        listens(program, through)
        # TLS is between ffmpeg and us for the one, and between haproxy and us for the other.
        checks = ("-tls_verify", 1, "-ca_file", authority.path)
        player = programs.play(f"rtmps://localhost:{through}/live/a", *checks)
        wait_for_plays(server, "live/a")
        publisher = programs.publish(CLIP, f"rtmp://127.0.0.1:{wrapping}/live/a")
        ports = [int(server.wait_for_line(rf"#\d+ 127\.0\.0\.1:(\d+) {what} live/a$")[1]) for what in ("plays", "publishes")]
        rows = [line.split()[1:4] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        for port, front in zip(ports, (through, wrapping), strict=True):
            # The client's end of its connection to haproxy, not haproxy's of its own.
            assert [f"0100007F:{port:04X}", f"0100007F:{front:04X}", "01"] in rows
        publisher.succeed()
        player.succeed()
        assert_same(player.packets(), clips.packets(CLIP), "haproxy")


def test_a_player_plays_on_while_the_certificate_is_renewed(authority, programs: Programs, clips: Clips, tmp_path):
    live = tmp_path / "live.pem"
    live.write_bytes(authority.issue("localhost").both.read_bytes())
    with serving(f"{AT_ONCE}{LISTEN}tls_cert = {live}\n", tmp_path) as server:
        url = f"rtmps://localhost:{tls_port(server)}/live/a"
        checks = ("-tls_verify", 1, "-ca_file", authority.path)
        player = programs.play(url, *checks)
        wait_for_plays(server, "live/a")
        publisher = programs.publish(CLIP, url, *checks)
        until(lambda: player.has_reached(1000), "1 s of the stream")
        live.write_bytes(authority.issue("localhost").both.read_bytes())
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("configuration reloaded")
        late = programs.play(url, *checks, name="late")
        wait_for_plays(server, "live/a", 2)
        for each in (publisher, player, late):
            each.succeed()
        assert_same(player.packets(), clips.packets(CLIP), "renewed")
        assert not [line for line in server.log() if re.search(" (WARNING|ERROR) +(?!running as root)", line)]
