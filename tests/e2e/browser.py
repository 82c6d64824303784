"""A headless Chromium for tests: pages, the state of their media elements, the console, screenshots, bad networks."""

from __future__ import annotations

import base64
import json
import tempfile
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import gevent
from selenium import webdriver
from selenium.common.exceptions import JavascriptException, WebDriverException
from selenium.webdriver.chrome.service import Service

from tests.conftest import find_peer
from tests.e2e.media import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--mute-audio"),
)
"""A Chromium of tests looks nothing up on the network by itself."""

MEDIA_STATE = """
return [...document.querySelectorAll('video, audio')].map(media => ({
    currentTime: media.currentTime, paused: media.paused, readyState: media.readyState, networkState: media.networkState,
    error: media.error && `${media.error.code} ${media.error.message}`,
    buffered: [...Array(media.buffered.length).keys()].map(i => [media.buffered.start(i), media.buffered.end(i)]),
    width: media.videoWidth, height: media.videoHeight, rate: media.playbackRate,
}));
"""


class Browser:
    """One Chromium with one page, made by `browsing`.

    JavaScript is given as the body of a function: ``return document.title``.
    """

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self._console: list[dict[str, Any]] = []

    def open(self, url: str) -> None:
        """Open a page and wait until it has loaded. The console of the page before is forgotten."""
        self.driver.get("about:blank")
        self.console()
        self._console.clear()
        self.driver.get(url)

    def run(self, script: str, *arguments: object) -> Any:
        """Run JavaScript in the page, and return what it returns, or what the promise it returns resolves to.

        Arguments are ``arguments[0]`` and so on.
        """
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, script: str, *arguments: object, limit_s: float = PATIENCE_S) -> Any:
        """Wait until JavaScript returns something true, and return that.

        Raises:
            AssertionError: That has not happened in *limit_s*; with the state of the page and its console.
        """
        deadline = time.monotonic() + limit_s
        while True:
            try:
                value = self.run(script, *arguments)
            except JavascriptException as error:
                # A page that has yet to make what the script reads.
                value, last = None, error.msg
            else:
                last = repr(value)
            if value:
                return value
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {limit_s:g} s for: {script.strip()}\nlast: {last}\n{self.state()}")
            gevent.sleep(0.02)

    def state(self) -> str:
        """Return what a failed test shows: the page, its media elements and its console."""
        with suppress(WebDriverException):
            lines = [f"{self.driver.current_url} ({self.driver.title})"]
            lines += [json.dumps(media) for media in self.run(MEDIA_STATE)]
            lines += [f"{entry['level']} {entry['message']}" for entry in self.console()[-40:]]
            return "\n".join(lines)
        return "the page does not answer"

    def console(self) -> list[dict[str, Any]]:
        """Return the console since the page was opened, failed requests included: ``level``, ``message``, ``timestamp``."""
        self._console += self.driver.get_log("browser")
        return self._console

    def console_errors(self) -> list[str]:
        """Return the errors on the console since the page was opened: exceptions, failed requests, violated policies."""
        return [entry["message"] for entry in self.console() if entry["level"] == "SEVERE"]

    def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Set the size of the page in CSS pixels; *mobile* is a phone: touch, a viewport of its own, overlay scrollbars."""
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.devtools("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def screenshot(self, path: Path, width: int, height: int, *, mobile: bool = False) -> None:
        """Write a PNG of the page at this size, which stays."""
        self.size(width, height, mobile=mobile)
        # The page lays itself out anew, and draws.
        self.run("return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        path.write_bytes(base64.b64decode(self.devtools("Page.captureScreenshot", format="png")["data"]))

    def set_offline(self, offline: bool) -> None:
        """Let new requests of the page fail, or no longer. Those under way and open WebSockets stay."""
        self.devtools("Network.enable")
        self.devtools(
            "Network.emulateNetworkConditions", offline=offline, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )

    def limit_network(self, bytes_per_second: int, latency_ms: int = 0) -> None:
        """Slow new requests of the page down; -1 bytes per second is no limit."""
        self.devtools("Network.enable")
        self.devtools(
            "Network.emulateNetworkConditions",
            offline=False,
            latency=latency_ms,
            downloadThroughput=bytes_per_second,
            uploadThroughput=-1,
        )

    def slow_cpu(self, times: float) -> None:
        """Make the page's JavaScript so many times slower; 1 is full speed."""
        self.devtools("Emulation.setCPUThrottlingRate", rate=times)

    def devtools(self, command: str, **parameters: Any) -> Any:
        """Call the Chrome DevTools Protocol, for what WebDriver has no words for."""
        return self.driver.execute_cdp_cmd(command, parameters)


@contextmanager
def browsing(*flags: str, autoplay: bool = True) -> Iterator[Browser]:
    """Start a Chromium with a fresh profile, and end it.

    Without Chromium or its driver the test is skipped, or fails with RTMPD_REQUIRE_PEERS.

    Args:
        flags: Further flags of its command line.
        autoplay: Whether media with sound plays before the page was clicked. Browsers of users do not allow that.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = find_peer("chromium", "chromium")
    policy = "no-user-gesture-required" if autoplay else "document-user-activation-required"
    for flag in (*QUIET, f"--autoplay-policy={policy}", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.set_capability("acceptInsecureCerts", True)
    service = Service(find_peer("chromedriver", "chromium-driver"))
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        options.add_argument(f"--user-data-dir={profile}")
        driver = webdriver.Chrome(options, service)
        try:
            driver.set_script_timeout(PATIENCE_S)
            driver.set_page_load_timeout(PATIENCE_S)
            yield Browser(driver)
        finally:
            driver.quit()
