"""HLS with programs of others: ffmpeg publishes and plays, curl asks for headers and ranges, nginx is a cache in front."""

from __future__ import annotations

import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import gevent
import pytest

from tests.e2e.conftest import serving
from tests.e2e.media import Programs, until
from tests.hls_player import Player
from tests.ports import free_port

DOCS = Path(__file__).parent.parent.parent / "docs" / "http.rst"
INI = """
[http]
http_listen = 127.0.0.1:0
http_allow_origin = *
[hls]
hls_secret = shared by all servers
hls_segment_s = 1
hls_part_ms = 250
[auth]
auth_ban_exempt = 127.0.0.1
[applications]
[[*]]
[[secret]]
auth_mode = token
auth_publish = no
auth_tokens = secret/test=s3cret
"""
CLIP = "h264_aac_minute"
PLAY_S = 4


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hls")
    with serving(f"{INI}[log]\naccess_log_file = {directory}/access.log\n", directory) as server:
        server.access_log = directory / "access.log"
        yield server


@pytest.fixture(scope="module")
def base(running):
    return running.wait_for_line(r"HTTP on (http://127\.0\.0\.1:\d+)/$")[1]


@pytest.fixture(scope="module")
def live(running, base, ffmpeg, clips, tmp_path_factory):
    """The address of a stream that is live for the whole module, and played by its first viewer."""
    programs = Programs(ffmpeg, tmp_path_factory.mktemp("publisher"), clips)
    programs.publish(CLIP, running.url())
    running.wait_for_line(r"publishes live/test$")
    yield f"{base}/live/test/index.m3u8"
    programs.kill_all()


def metric(base, name):
    with urllib.request.urlopen(f"{base}/metrics", timeout=10) as answer:
        return int(float(re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)[1]))


def test_ffmpeg_and_a_low_latency_player_get_the_stream(live, programs):
    player = programs.play(live, seconds=3)
    low = Player(live, checks=True, skips=True)
    low.start()
    begun, frames = time.monotonic(), low.frames
    low.run(lambda: time.monotonic() - begun > PLAY_S)
    assert low.violations == []
    # In real time: 25 frames per second.
    assert abs((low.frames - frames) / (time.monotonic() - begun) - 25) < 8
    low.close()
    assert player.wait() == 0
    assert {name: len(track) > 60 for name, track in player.packets().items()} == {"video 0": True, "audio 0": True}


def test_curl_sees_headers_and_ranges(live, peer):
    curl = peer("curl", "curl")

    def ask(*arguments):
        found = subprocess.run([curl, "-sS", *arguments], capture_output=True, check=True, timeout=30).stdout
        return found.decode("latin-1")

    low = Player(live)
    low.start()
    base = live.partition("/live")[0]
    segment = base + next(path for path in low.media if "part-" in path)
    size = len(low.media[segment.removeprefix(base)])
    head = ask("-I", segment)
    assert head.startswith("HTTP/1.1 200 OK")
    assert f"Content-Length: {size}" in head
    assert "Content-Type: video/mp4" in head
    etag = re.search(r'ETag: ("\S+")', head)[1]
    assert ask("-r", "4-7", segment) == "moof"
    assert "HTTP/1.1 206" in ask("-i", "-r", "-10", segment)
    assert "HTTP/1.1 416" in ask("-i", "-r", f"{size}-", segment)
    assert "HTTP/1.1 304" in ask("-i", "-H", f"If-None-Match: {etag}", segment)
    playlist = base + low.path
    assert "Content-Encoding: gzip" in ask("-i", "--compressed", playlist)
    assert ask("-o", "/dev/null", "-w", "%{http_code}", f"{playlist}&_HLS_msn=4294967295") == "400"
    assert "Access-Control-Allow-Origin: *" in ask("-i", "-H", "Origin: https://example.com", playlist)
    assert "HTTP/1.1 404" in ask("-i", f"{base}/live/nothing/index.m3u8")
    low.close()


# A cache in front -------------------------------------------------------------------------------------------------------

NGINX = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log info;
events {{ worker_connections 1024; }}
http {{
access_log off;
client_body_temp_path {directory}/body;
proxy_temp_path {directory}/proxy;
fastcgi_temp_path {directory}/fastcgi;
uwsgi_temp_path {directory}/uwsgi;
scgi_temp_path {directory}/scgi;
{sample}
}}
"""


def start_nginx(programs, peer, directory, port, text):
    configuration = directory / "nginx.conf"
    configuration.write_text(NGINX.format(directory=directory, sample=text))
    nginx = programs.start("nginx", peer("nginx", "nginx"), "-c", configuration, "-e", directory / "nginx.err")

    def listening():
        assert nginx.running, nginx.errors
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listening, "nginx")


def sample(base, port, directory):
    """The configuration in the documentation, with the ports and the path of the test."""
    text = DOCS.read_text("utf-8").partition(".. code:: nginx\n\n")[2].partition("\n\nWhile")[0]
    text = text.replace("http://127.0.0.1:8080", base).replace("listen 80;", f"listen 127.0.0.1:{port};")
    return text.replace("/var/cache/nginx/hls", str(directory / "cache"))


@pytest.mark.peer
def test_nginx_serves_200_viewers_with_one_request_for_each_file(base, live, programs, peer, tmp_path):
    port = free_port()
    start_nginx(programs, peer, tmp_path, port, sample(base, port, tmp_path))
    before = {name: metric(base, f"rtmpd_hls_{name}_total") for name in ("playlists", "media")}
    plays = metric(base, "rtmp_subscribers_total")
    players = [Player(f"http://127.0.0.1:{port}/live/test/index.m3u8", agent=f"player {number}") for number in range(200)]

    def play(player):
        player.start()
        begun = time.monotonic()
        player.run(lambda: time.monotonic() - begun > PLAY_S)
        player.close()

    begun = time.monotonic()
    gevent.joinall([gevent.spawn(play, player) for player in players], raise_error=True)
    lasted_s = time.monotonic() - begun
    asked = Counter(target for player in players for target in player.targets)
    media = {target for target in asked if "m3u8" not in target}
    blocking = {target for target in asked if "_HLS_msn" in target}
    assert len(media) > 2 * PLAY_S
    assert sum(asked.values()) > 200 * 10
    assert metric(base, "rtmpd_hls_media_total") - before["media"] == len(media)
    # The others are kept for a second.
    others = metric(base, "rtmpd_hls_playlists_total") - before["playlists"] - len(blocking)
    assert 2 <= others <= 2 * (lasted_s + 1)
    assert metric(base, "rtmp_subscribers_total") - plays == 1
    assert all(player.frames > 25 for player in players)


BALANCER = """
upstream servers {{ server {first}; server {second}; }}
server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://servers; }} }}
"""


# Authorization, and what happens to a stream ----------------------------------------------------------------------------


def test_a_publisher_that_returns_is_a_discontinuity_and_a_token_is_shown_once(running, base, programs):
    url = running.url("test", "secret")
    first = programs.publish(CLIP, url)
    running.wait_for_line(r"publishes secret/test$")
    index = f"{base}/secret/test/index.m3u8"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(index, timeout=10)
    low = Player(f"{index}?token=s3cret", checks=True)
    low.start()
    assert "s3cret" not in low.index
    frames = low.frames
    low.run(lambda: low.frames > frames + 12)
    first.kill()
    second = programs.publish(CLIP, url)
    low.run(lambda: any(segment.is_discontinuity for segment in low.playlist.segments))
    assert low.violations == []
    path = next(path for path in low.media if "seg-" in path)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(base + path.partition("?")[0], timeout=10)
    assert sum(line.endswith(" plays secret/test by hls") for line in running.log()) == 1
    second.interrupt()
    # Of earlier tests.
    stop = running.wait_for_line(r"stopped playing live/test by hls: no request for .* s; .* (\d+) bytes, 0 skips", limit_s=30)
    assert int(stop[1]) > 10_000
    lines = running.access_log.read_text().splitlines()
    plays = [line for line in lines if "action=play" in line and "stream=live/test" in line]
    assert f" bytes={stop[1]} " in plays[0]
    assert 'reason="no request for' in plays[0]
    # Connections whose requests were served have none.
    assert not [line for line in lines if "action=connect" in line and "agent=Lavf" in line]
    low.run(lambda: False)
    assert low.playlist.ended
    assert low.violations == []
    low.close()
    assert not [line for line in running.log() if "s3cret" in line or "s=" in line.partition("?")[2]]


@pytest.mark.peer
def test_behind_round_robin_the_id_of_one_server_is_a_play_at_each(running, base, programs, peer, tmp_path):
    with serving(INI, tmp_path) as other:
        bases = [base, other.wait_for_line(r"HTTP on (http://127\.0\.0\.1:\d+)/$")[1]]
        for server in (running, other):
            programs.publish(CLIP, server.url("test", "secret"))
        other.wait_for_line(r"publishes secret/test$")
        port = free_port()
        first, second = (each.removeprefix("http://") for each in bases)
        start_nginx(programs, peer, tmp_path, port, BALANCER.format(first=first, second=second, port=port))

        def ask(path):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/secret/test/{path}", timeout=10) as answer:
                return answer.read().decode()

        before = [metric(each, "rtmp_subscribers_total") for each in bases]
        index = ask("index.m3u8?token=s3cret")
        path = next(line for line in index.splitlines() if line and not line.startswith("#"))
        assert "s3cret" not in path
        playlists = [ask(path) for _ in range(4)]
        assert all("#EXTINF" in playlist for playlist in playlists)
        # Without the token, which only one of them has seen.
        assert [metric(each, "rtmp_subscribers_total") for each in bases] == [count + 1 for count in before]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask("main/media.m3u8")
