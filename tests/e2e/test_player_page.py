"""The player page in Chromium: it plays close to the live edge, and continues by itself after each interruption."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.conftest import Server
from tests.e2e.browser import Browser, browsing
from tests.e2e.clocked import FRAME_S, H264, HEIGHT, RATE, WIDTH, Camera
from tests.e2e.media import Programs, until
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.peer

H264_2S = H264.replace(f"-g {RATE} ", f"-g {2 * RATE} ")
"""Groups of pictures of 2 s, as most encoders make them."""

INI = """\
[http]
http_listen = 127.0.0.1:{http}
[applications]
[[secret]]
auth_mode = token
auth_tokens = secret/test=right
[[*]]
"""

LOSS = "Playing. This browser can't play AC-3 (ac-3)."
LIVE_S = 1.0
FIRST_PICTURE_MS = 300
BUSY = 5
"""How many times longer the first picture may take on a busy machine, on which tests run beside this one."""

NUMBER = """
    const video = document.querySelector('video'), {videoWidth: width, videoHeight: height} = video;
    if (!width || !document.getElementById('still').hidden) return -1;
    const canvas = new OffscreenCanvas(width, height).getContext('2d');
    canvas.drawImage(video, 0, 0);
    const row = canvas.getImageData(0, Math.floor(height * 3 / 8), width, 1).data;
    const bits = Array.from({length: 20}, (_, bit) => row[Math.floor((bit + 0.5) * width / 20) * 4] > 128 ? 1 << bit : 0);
    return bits.reduce((sum, bit) => sum + bit, 0);
"""
"""The number in the picture of the camera that the page shows; -1: none."""

LAYOUT = """
    const select = document.getElementById('renditions');
    select.replaceChildren(new Option('1080p60'));
    select.hidden = false;
    const {scrollWidth, scrollHeight} = document.documentElement;
    const outside = [...document.querySelectorAll('button, select, input, h1, h2')].filter(element => {
        const {left, top, right, bottom, width} = element.getBoundingClientRect();
        return width && (left < 0 || top < 0 || right > innerWidth || bottom > innerHeight);
    });
    return {fits: scrollWidth <= innerWidth && scrollHeight <= innerHeight, outside: outside.map(({id}) => id)};
"""


SIMULATION = """
    const {Latency} = await import('/_player/x/latency.js');
    const [jitterS, outages, seconds] = arguments;
    const latency = new Latency();
    let [edge, position, stalledS, least, fastest, slowest] = [1, 1 - latency.cushionS, 0, Infinity, 1, 1];
    const cushions = [];
    for (let ms = 0; ms < seconds * 1000; ms += 20) {
        // Media comes in steps of the jitter, and not at all in an outage.
        const out = outages.some(([from, to]) => ms >= from * 1000 && ms < to * 1000);
        if (!out)
            edge = 1 + Math.floor(ms / 1000 / jitterS) * jitterS;
        const rate = latency.rate;
        [fastest, slowest] = [Math.max(fastest, rate), Math.min(slowest, rate)];
        const ahead = edge - position;
        if (ahead > 0) {
            if (stalledS)
                latency.stalled(ms, stalledS);
            stalledS = 0;
            position += Math.min(ahead, 0.02 * rate);
        } else {
            stalledS += 0.02;
        }
        if (latency.isFarBehind(ahead)) {
            position = edge - latency.cushionS;
            latency.moved();
        }
        latency.sample(ms, edge - position);
        if (ms > (seconds - 5) * 1000)
            least = Math.min(least, edge - position);
        if (ms % 1000 === 0)
            cushions.push(latency.cushionS);
    }
    return {least, fastest, slowest, most: Math.max(...cushions), last: cushions.at(-1)};
"""
"""Plays simulated media for *seconds*; returns what happened, and the least media ahead in the last 5 s."""

ASYNC = "return (async function () {{{}}}).apply(null, arguments)"


class Scene:
    """A server that can be restarted on its ports, a camera, and a browser that shows player pages."""

    def __init__(self, directory: Path, camera: Camera, browser: Browser) -> None:
        self.directory, self.camera, self.browser = directory, camera, browser
        self.rtmp, self.http = free_port(), free_port()
        self.server = self.start()

    def start(self) -> Server:
        flags = ("-m", "rtmpd", "--listen", f"127.0.0.1:{self.rtmp}", "--log-level", "debug")
        self.server = Server(INI.format(http=self.http), directory=self.directory, start=flags)
        return self.server

    def open(self, path: str) -> None:
        self.browser.open(f"http://127.0.0.1:{self.http}/{path}")

    def publish(self, name: str, key: str = "test"):
        return self.camera.encoder(name, H264_2S, self.server.url(key))

    def wait_for_state(self, state: str) -> None:
        self.browser.wait_for("return document.getElementById('stage').dataset.state === arguments[0]", state)

    def wait_until_live(self) -> None:
        """Wait until the page shows what the camera has taken since the call."""
        number = self.camera.number
        until(lambda: self.browser.run(NUMBER) >= number, f"picture {number}\n{self.browser.state()}")

    def wait_until_close(self) -> None:
        """Wait until the picture on the screen is no older than it should be, from the camera to the screen.

        On a quiet machine it is at once; on a busy one the page has to play faster for a while.
        """
        until(lambda: (self.camera.number - self.browser.run(NUMBER)) * FRAME_S < LIVE_S, f"live\n{self.browser.state()}")

    def text(self, element: str) -> str:
        return self.browser.run("return document.getElementById(arguments[0]).textContent", element)

    def press(self, key: str) -> None:
        self.browser.driver.find_element(By.TAG_NAME, "body").send_keys(key)


@pytest.fixture(scope="module")
def scene(ffmpeg, tmp_path_factory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("player_page")
    with browsing(autoplay=False) as browser:
        camera = Camera(ffmpeg, directory)
        made = Scene(directory, camera, browser)
        try:
            yield made
        finally:
            camera.close()
            code = made.server.stop()
    internal = [line for line in made.server.lines if "internal error" in line or "Traceback" in line]
    assert (code, internal) == (0, []), "\n".join(made.server.lines[-60:])


def test_it_plays_at_once_close_to_the_live_edge_and_is_used_by_keys(scene):
    browser = scene.browser
    browser.size(1280, 800)
    publisher = scene.publish("first")
    scene.server.wait_for_line("live/test is: video")
    scene.open("live/test")
    scene.wait_for_state("playing")
    scene.wait_until_live()
    first_ms = browser.run(
        "return ['asked', 'picture'].map(name => performance.getEntriesByName(name)[0].startTime).reduce((a, b) => b - a)"
    )
    assert first_ms < BUSY * FIRST_PICTURE_MS
    scene.wait_until_close()
    [media] = browser.run(
        "return [...document.querySelectorAll('video')].map(video => [video.videoWidth, video.videoHeight, video.error])"
    )
    assert media == [WIDTH, HEIGHT, None]

    # The browser allows no sound before a click: the page says so, and keys are clicks.
    assert browser.run("return document.querySelector('video').muted && !document.getElementById('unmute').hidden")
    scene.press("m")
    assert browser.run("return !document.querySelector('video').muted && document.getElementById('unmute').hidden")
    scene.press("i")
    browser.wait_for("return document.getElementById('info-rate').textContent.includes('Mbit/s')")
    assert scene.text("info-video").startswith("H.264 (avc1.")
    assert f"{WIDTH} x {HEIGHT}" in scene.text("info-video")
    assert scene.text("info-audio").startswith("AAC (mp4a.40.2)")
    until(lambda: float(scene.text("latency").split()[0]) < LIVE_S, "a latency that is shown")
    assert int(scene.text("info-frames").split()[0]) > RATE
    scene.press("i")
    assert browser.run("return document.getElementById('info').hidden")
    scene.press(Keys.SPACE)
    scene.wait_for_state("stopped")
    until(lambda: any("stopped playing live/test" in line for line in scene.server.log()), "the end of the play")
    scene.press("k")
    scene.wait_until_live()
    scene.wait_until_close()

    # A viewer that leaves the page is no player any longer, though the browser keeps the page; and is one when back.
    def plays():
        return [
            word
            for line in scene.server.log()
            for word in ("stopped playing", " plays ")
            if f"{word.strip()} live/test" in line
        ]

    before = len(plays())
    browser.driver.get("about:blank")
    until(lambda: len(plays()) > before, "the end of the play")
    browser.driver.back()
    scene.wait_for_state("playing")
    scene.wait_until_live()
    assert plays()[before:] == ["stopped playing", " plays "]
    assert browser.console_errors() == []
    publisher.kill()


def test_it_continues_after_the_loss_of_a_publisher_a_restart_and_with_other_codecs(scene, ffmpeg, clips, tmp_path):
    browser = scene.browser
    first = scene.publish("second")
    scene.open("live/test")
    scene.wait_until_live()
    first.kill()
    scene.wait_for_state("interrupted")
    assert scene.text("status").startswith("The stream is interrupted")
    second = scene.publish("third")
    scene.wait_until_live()
    scene.wait_until_close()

    assert scene.server.stop() == 0
    scene.wait_for_state("unreachable")
    second.kill()
    scene.start()
    scene.wait_for_state("waiting")
    assert scene.text("headline") == "Not live right now"
    third = scene.publish("fourth")
    scene.wait_until_live()
    scene.wait_until_close()

    third.end()
    third.process.wait()
    until(lambda: any("stopped publishing live/test" in line for line in scene.server.log()), "the end of the publish")
    programs = Programs(ffmpeg, tmp_path, clips)
    try:
        programs.publish("av1_opus", scene.server.url())
        browser.wait_for("return document.querySelector('video').videoWidth === 160")
        scene.wait_for_state("playing")
        scene.press("i")
        browser.wait_for("return document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames > 20")
        assert scene.text("info-video").startswith("AV1 (av01.")
        assert scene.text("info-audio").startswith("Opus")
        scene.press("i")
        browser.screenshot(tmp_path / "playing_phone.png", 390, 844, mobile=True)
        browser.screenshot(tmp_path / "playing_desktop.png", 1280, 800)
        # Chromium of Debian has no AC-3: the page plays the picture, and says why there is no sound.
        programs.kill_all()
        programs.publish("h264_ac3", scene.server.url("without_sound"))
        scene.open("live/without_sound")
        browser.wait_for("return document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames > 10")
        browser.wait_for("return document.getElementById('status').textContent === arguments[0]", LOSS)
        assert browser.run("return document.getElementById('mute').disabled && document.getElementById('unmute').hidden")
    finally:
        programs.kill_all()


@pytest.mark.parametrize(("width", "height", "mobile"), [(390, 844, True), (320, 568, True), (1280, 800, False)])
def test_it_says_what_it_waits_for_and_fits_the_window(scene, tmp_path, width, height, mobile):
    browser = scene.browser
    browser.size(width, height, mobile=mobile)
    scene.open("secret/test?token=right")
    scene.wait_for_state("waiting")
    assert browser.run(LAYOUT) == {"fits": True, "outside": []}
    browser.screenshot(tmp_path / "waiting.png", width, height, mobile=mobile)
    scene.open("secret/test?token=wrong")
    scene.wait_for_state("refused")
    assert scene.text("headline") == "You may not watch this stream"
    assert browser.run(LAYOUT) == {"fits": True, "outside": []}
    assert browser.run("return getComputedStyle(document.getElementById('again')).display") != "none"
    browser.screenshot(tmp_path / "refused.png", width, height, mobile=mobile)


def test_a_name_of_markup_is_shown_as_text(scene):
    scene.open("live/%3Cimg%20src=x%20onerror=alert(1)%3E%22'")
    scene.wait_for_state("waiting")
    assert scene.browser.driver.title == "live/<img src=x onerror=alert(1)>\"'"
    assert scene.browser.driver.find_element(By.TAG_NAME, "h1").text == scene.browser.driver.title
    assert scene.browser.driver.find_elements(By.TAG_NAME, "img") == []


def test_the_distance_to_the_live_edge(scene):
    scene.open("live/none")

    def play(jitter_s, outages, seconds):
        return scene.browser.run(ASYNC.format(SIMULATION), jitter_s, outages, seconds)

    for jitter_s in (0.04, 0.5, 1.0):
        found = play(jitter_s, [], 60)
        assert found["least"] == pytest.approx(found["last"], abs=0.15)
        assert 0.9 <= found["slowest"] <= found["fastest"] <= 1.1
    # A short stall makes it larger for a while, an interruption does not.
    short = play(0.04, [[10, 11]], 30)
    assert short["most"] > 0.8
    assert short["least"] > 0.6
    assert play(0.04, [[10, 11]], 120)["last"] < 0.3
    long = play(0.04, [[10, 20]], 40)
    assert long["most"] < 0.3
    assert long["least"] < 0.5
