"""Streams as players of the web play them: mpegts.js in Chromium, on a page of another site; and VLC."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.e2e.browser import Browser, browsing
from tests.e2e.clocked import FRAME_S, H264, HEIGHT, RATE, WIDTH, Camera
from tests.e2e.conftest import serving
from tests.e2e.media import until
from tests.e2e.npm_packages import HLS_JS, MPEGTS_JS, script_of
from tests.e2e.test_http import address
from tests.e2e.vlc import playing
from tests.e2e.web_pages import Site, serving_pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Server

pytestmark = pytest.mark.peer

H264_2S = H264.replace(f"-g {RATE} ", f"-g {2 * RATE} ")
"""Groups of pictures of 2 s, as most encoders make them."""

PAGE = """<!doctype html><title>players</title><body><script src="/watch.js"></script><script src="/{script}"></script><script>
'use strict';
const watches = [];
performance.setResourceTimingBufferSize(10000);
for (const url of new URLSearchParams(location.search).getAll('url')) {{
    const watch = new Watch(url);
    watches.push(watch);
    {play}
}}
</script>"""

PLAY_FLV = """
    const player = mpegts.createPlayer({type: 'flv', isLive: true, url, cors: true}, {
        enableStashBuffer: false, liveSync: true, liveSyncTargetLatency: 0.4, liveSyncMaxLatency: 0.7,
    });
    player.on(mpegts.Events.ERROR, (...details) => watch.errors.push(JSON.stringify(details)));
    player.attachMediaElement(watch.video);
    player.load();
    player.play().catch(error => watch.errors.push(String(error)));
"""


POSTERS = """<!doctype html><title>posters</title><body><script>
for (const url of new URLSearchParams(location.search).getAll('url')) {
    const video = document.createElement('video');
    video.muted = true;
    // The first keyframe may not have come.
    video.onerror = () => setTimeout(() => { video.src = url; }, 200);
    video.src = url;
    document.body.append(video);
}
</script>"""

LIVE_S = 2
"""How far behind the camera a live picture may be on a busy machine. On a quiet one it is half a second."""
LOW_LATENCY_S = 2.5
"""The same for low-latency HLS with parts of half a second. On a quiet machine it is 1.2 s."""
FLASH_MS = 100
SLACK = 10
"""Pictures that the encoder holds, and those of the time that a question takes."""

PLAY_HLS = """
    const low = url.endsWith('#low');
    const hls = new Hls({lowLatencyMode: low, maxLiveSyncPlaybackRate: low ? 1.5 : 1});
    Object.assign(watch, {hls, stalls: [], playlists: [], skipped: 0, media: []});
    hls.on(Hls.Events.ERROR, (_, {details, fatal, error}) => {
        (details === Hls.ErrorDetails.BUFFER_STALLED_ERROR ? watch.stalls : watch.errors).push(`${details} ${fatal} ${error}`);
    });
    hls.on(Hls.Events.LEVEL_LOADED, (_, {details, networkDetails}) => {
        watch.playlists.push(networkDetails.responseURL);
        watch.skipped += details.skippedSegments;
    });
    hls.on(Hls.Events.FRAG_LOADED, (_, {frag, part}) => watch.media.push((part ?? frag).url));
    hls.loadSource(url);
    hls.attachMedia(watch.video);
    watch.video.play().catch(error => watch.errors.push(String(error)));
"""


class Frame(NamedTuple):
    """A picture on the screen: when, the number that it shows, and its time in the media."""

    at_ms: float
    number: int
    media_s: float


class Scene:
    """A server, a camera whose pictures are published, a browser, and the site of the pages."""

    def __init__(self, server: Server, camera: Camera, browser: Browser, site: Site) -> None:
        self.server, self.camera, self.browser, self.site = server, camera, browser, site

    def open(self, page: str, *urls: str, origin: str = "") -> None:
        """Open a page that plays some URLs, by default of the origin that the server allows."""
        self.browser.open(f"{origin or self.site.origin}/{page}?" + "&".join(f"url={url}" for url in urls))

    def frames(self, player: int = 0) -> list[Frame]:
        """Return what a player of the page has shown."""
        return [Frame(*frame) for frame in self.browser.run("return watches[arguments[0]].frames", player)]

    def wait_for_number(self, number: int, players: int = 9) -> None:
        """Wait until the first *players* of the page have shown this picture, or a later one."""
        script = "return watches.slice(0, arguments[1]).every(({frames}) => (frames.at(-1) ?? [0, 0])[1] >= arguments[0])"
        self.browser.wait_for(script, number, players)

    def delay_s(self, player: int = 0) -> float:
        """Return how old the picture on the screen is, from the camera to the screen."""
        shown = self.browser.run("return watches[arguments[0]].number()", player)
        return (self.camera.number - shown) * FRAME_S

    def errors(self) -> list[str]:
        """Return what the players of the page have reported as errors, and the errors on the console.

        Those of hls.js say whether they are fatal. On a busy machine there are others.
        """
        reported = self.browser.run("return watches.flatMap(watch => watch.errors)")
        return [error for error in reported if " false " not in error] + self.browser.console_errors()


def assert_goes_forward(frames: list[Frame]) -> None:
    """Compare each picture with the newest one before it.

    One that leads the decoder of another source to the present may flash up, and is older.
    """
    newest = frames[0]
    for frame in frames:
        if frame.number >= newest.number:
            newest = frame
        else:
            assert frame.at_ms - newest.at_ms < FLASH_MS, (newest, frame)


def longest_freeze_s(frames: list[Frame]) -> float:
    """Return the longest time that one picture stayed."""
    return max(b.at_ms - a.at_ms for a, b in pairwise(frames)) / 1000


@pytest.fixture(scope="module")
def scene(ffmpeg, authority, tmp_path_factory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("players")
    with serving_pages() as site, browsing("--disable-features=BackForwardCache") as browser:
        site.add_script("/watch.js", Path(__file__).with_name("watch.js").read_text())
        site.add_script("/mpegts.js", script_of(MPEGTS_JS))
        site.add("/flv", PAGE.format(script="mpegts.js", play=PLAY_FLV))
        site.add_script("/hls.js", script_of(HLS_JS))
        site.add("/hls", PAGE.format(script="hls.js", play=PLAY_HLS))
        site.add("/posters", POSTERS)
        ini = (
            f"[http]\nhttp_listen = 127.0.0.1:0\nhttp_tls_listen = 127.0.0.1:0\nhttp_allow_origin = {site.origin}\n"
            f"[tls]\n{authority.issue('localhost', '127.0.0.1').ini}"
            "[hls]\nhls_segment_s = 1\nhls_renditions = _small\n[publish]\non_conflict = backup\n"
        )
        with serving(ini, directory) as server:
            camera = Camera(ffmpeg, directory)
            try:
                yield Scene(server, camera, browser, site)
            finally:
                camera.close()


def test_mpegts_js_plays_over_http_and_websocket_and_goes_on_with_the_next_publisher(scene):
    camera, url, http = scene.camera, scene.server.url(), address(scene.server)
    urls = (f"{http}/live/test.flv", f"{http.replace('http', 'ws')}/live/test.flv")
    publisher = camera.encoder("first", H264_2S, url)
    scene.server.wait_for_line("publishes live/test")
    scene.open("flv", *urls)
    scene.wait_for_number(camera.number + RATE)
    publisher.kill()
    killed = camera.number
    camera.encoder("second", H264_2S, url)
    scene.wait_for_number(killed + 2 * RATE)
    for player in (0, 1):
        assert scene.delay_s(player) < LIVE_S, scene.browser.state()
        frames = scene.frames(player)
        assert_goes_forward(frames)
        assert longest_freeze_s(frames) < 2
        before = [frame for frame in frames if frame.number < killed]
        # A busy browser shows fewer than it decodes.
        assert len(before) > (before[-1].number - before[0].number) / 2
    assert scene.browser.run("return watches.map(({video}) => [video.videoWidth, video.videoHeight])") == [[WIDTH, HEIGHT]] * 2

    # Late players start at the last keyframe.
    scene.open("flv", *urls)
    asked = camera.number
    scene.wait_for_number(asked)
    for player in (0, 1):
        frames = scene.frames(player)
        assert asked - 2 * RATE - SLACK <= frames[0].number <= asked
        assert frames[0].at_ms < 2000
    assert scene.errors() == []


def test_a_page_of_an_origin_that_is_not_allowed_gets_no_stream(scene):
    scene.camera.encoder("refused", H264_2S, scene.server.url("refused"))
    http = address(scene.server)
    scene.server.wait_for_line("publishes live/refused")
    scene.open(
        "flv", f"{http}/live/refused.flv", f"{http.replace('http', 'ws')}/live/refused.flv", origin=scene.site.other_origin
    )
    scene.browser.wait_for("return watches.every(watch => watch.errors.length)")
    assert any("blocked by CORS policy" in line for line in scene.browser.console_errors())
    assert any("Unexpected response code: 403" in line for line in scene.browser.console_errors())
    assert [scene.frames(player) for player in (0, 1)] == [[], []]


def test_hls_js_plays_with_and_without_low_latency_over_a_failover_and_the_next_publisher(scene):
    camera, url = scene.camera, scene.server.url("hls")
    primary = camera.encoder("primary", H264, url)
    scene.server.wait_for_line("publishes live/hls")
    backup = camera.encoder("backup", H264, url)
    index = f"{address(scene.server)}/live/hls/index.m3u8"
    scene.open("hls", f"{index}%23low", index)
    scene.wait_for_number(camera.number + RATE, players=1)
    primary.kill()
    failed = camera.number
    scene.wait_for_number(failed + 2 * RATE, players=1)
    backup.kill()
    killed = camera.number
    camera.encoder("next", H264, url)
    scene.wait_for_number(killed + 2 * RATE)
    assert scene.delay_s(0) < LOW_LATENCY_S
    for player in (0, 1):
        frames = scene.frames(player)
        assert_goes_forward(frames)
        assert longest_freeze_s(frames) < 2
    assert scene.errors() == []
    low, usual = scene.browser.run("return watches.map(({playlists, skipped, media}) => ({playlists, skipped, media}))")
    # Both ask for playlists that do not exist yet, and get what is new in them.
    assert sum("_HLS_msn=" in url for url in low["playlists"]) > 0.9 * len(low["playlists"])
    assert all("_HLS_skip=YES" in url for url in low["playlists"][1:])
    assert low["skipped"] > 0
    assert sum("/part-" in url for url in low["media"]) > 0.7 * len(low["media"])
    assert all("/seg-" in url for url in usual["media"])


def test_hls_js_switches_renditions_and_plays_other_codecs(scene, clips, programs):
    camera, url, http = scene.camera, scene.server.url, address(scene.server)
    camera.encoder("large", H264, url("ladder"))
    camera.encoder("small", f"-vf scale={WIDTH // 2}:-2 {H264}", url("ladder_small"))
    names = ("ladder", "aac_only", "av1_opus", "two_audio_tracks")
    for name in names[1:]:
        programs.publish(name, url(name))
    for name in names:
        scene.server.wait_for_line(f"publishes live/{name}$")
    scene.open("hls", *(f"{http}/live/{name}/index.m3u8" for name in names))
    scene.browser.wait_for("return watches.every(({video}) => video.currentTime > 0.5)")
    sizes = scene.browser.run("return watches.map(({hls}) => hls.levels.map(({width, height}) => [width, height]))")
    assert [sorted(levels) for levels in sizes] == [
        [[WIDTH // 2, HEIGHT // 2], [WIDTH, HEIGHT]],
        [[0, 0]],
        [[160, 120]],
        [[160, 120]],
    ]
    assert scene.browser.run("return watches.map(({hls}) => hls.audioTracks.length)") == [0, 0, 0, 2]
    for width in (WIDTH, WIDTH // 2):
        scene.browser.run(
            "const {hls} = watches[0]; hls.nextLevel = hls.levels.findIndex(({width}) => width === arguments[0])", width
        )
        scene.browser.wait_for("return watches[0].video.videoWidth === arguments[0]", width)
    scene.browser.run("watches[3].hls.audioTrack = 1; watches[3].begin = watches[3].video.currentTime")
    scene.browser.wait_for("return watches[3].video.currentTime > watches[3].begin + 1")
    assert scene.browser.run("return watches[3].hls.audioTrack") == 1
    assert scene.browser.run("return watches.map(({video}) => video.videoWidth)") == [WIDTH // 2, 0, 160, 160]
    assert scene.errors() == []


def test_a_browser_shows_the_poster_of_each_codec(scene, programs):
    names = ("h264_only", "av1_opus", "vp9_aac")
    for name in names:
        programs.publish(name, scene.server.url(f"poster_{name}"))
    for name in names:
        scene.server.wait_for_line(f"publishes live/poster_{name}$")
    scene.open("posters", *(f"{address(scene.server)}/live/poster_{name}/poster.mp4" for name in names))
    scene.browser.wait_for("return [...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
    shown = "return [...document.querySelectorAll('video')].map(video => [video.videoWidth, video.videoHeight, video.duration])"
    assert scene.browser.run(shown) == [[160, 120, 1]] * len(names)


def test_browsers_use_http_2(scene):
    https = address(scene.server, "https")
    scene.camera.encoder("secure", H264, scene.server.url("secure"))
    scene.server.wait_for_line("publishes live/secure")
    scene.browser.open(f"{https}/live/secure")
    scene.browser.wait_for("return document.querySelector('video').currentTime > 0.5")
    assert scene.browser.run("return performance.getEntriesByType('resource').every(each => each.nextHopProtocol === 'h2')")
    assert scene.browser.console_errors() == []
    # One connection for both of a site, and one for a WebSocket.
    stream = f"{https}/live/secure"
    scene.open("hls", f"{stream}/index.m3u8%23low", f"{stream}/index.m3u8")
    scene.wait_for_number(scene.camera.number, players=1)
    scene.browser.wait_for("return watches[1].frames.length")
    scene.open("flv", f"{stream}.flv", f"{stream.replace('https', 'wss')}.flv")
    scene.wait_for_number(scene.camera.number)
    assert scene.errors() == []


def test_vlc_plays_each_form(scene, public_path, ffmpeg):
    scene.camera.encoder("for_vlc", H264, scene.server.url("vlc"))
    scene.server.wait_for_line("publishes live/vlc")
    with ExitStack() as stack:
        players = []
        for number, path in enumerate(("vlc.flv", "vlc.mp4", "vlc/index.m3u8")):
            directory = public_path / str(number)
            directory.mkdir()
            players.append(stack.enter_context(playing(f"{address(scene.server)}/live/{path}", directory)))
        until(lambda: all(len(vlc.pictures()) >= 6 for vlc in players), "pictures of VLC")
    for vlc in players:
        numbers = vlc.numbers(ffmpeg)
        assert numbers == sorted(set(numbers)), vlc.errors
        assert numbers[-1] - numbers[0] < 2 * RATE * len(numbers) / 6, vlc.errors
