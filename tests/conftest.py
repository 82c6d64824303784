"""Shared fixtures: an ephemeral server for tests that need a real one, ffmpeg, and the peers of .ci/run."""

from __future__ import annotations

import gc
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, NoReturn

import pytest
from gevent import get_hub

from tests import starter
from tests.certificates import Authority
from tests.media_files import MediaFiles

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-rerunfailures send at once: its two small writes per test would wait 40 ms for a delayed ACK (Nagle)."""
    counts = getattr(config, "failures_db", None)
    if hasattr(counts, "sock"):
        counts.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from the objects of all collected tests: a collection would take half a second."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let timers of a test begin now: the event loop's time is that of its last turn, and tests without it may take seconds."""
    get_hub().loop.update_now()


class Server:
    """An rtmpd process on a port that the kernel chooses.

    ``lines`` collects the log; `wait_for_line` waits for a matching line, from the beginning of the log. The arguments *start*
    of Python start the server instead of a fork of `starter`, and the command *prefix* runs the process, if it is given.
    """

    def __init__(
        self,
        ini: str = "",
        *arguments: str,
        directory: Path | None = None,
        level: str = "debug",
        stdout: int | IO[bytes] | None = None,
        start: tuple[str, ...] = (),
        prefix: tuple[str, ...] = (),
    ) -> None:
        # A test with its own start command passes no flags: its file decides.
        own = start or ("-m", "rtmpd", "--listen", "127.0.0.1:0", "--log-level", level)
        if not start and "http_listen" not in ini:
            # The default port can be taken only once.
            own += ("--http-listen", "")
        command = [*prefix, sys.executable, *own, *arguments]
        if ini:
            assert directory is not None
            path = directory / "rtmpd.ini"
            path.write_text(ini)
            command += ["-c", str(path)]
        self.process: subprocess.Popen[bytes] | starter.Forked
        if start or prefix or stdout == subprocess.PIPE:
            self.process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, cwd=ROOT)
        else:
            self.process = starter.start(command[3:], stdout if stdout is None or isinstance(stdout, int) else stdout.fileno())
        self.lines: list[str] = []
        self._rest = b""
        assert self.process.stderr is not None
        os.set_blocking(self.process.stderr.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.process.stderr, selectors.EVENT_READ)
        self.port = int(self.wait_for_line(r"listening on .*:(\d+)")[1])

    @property
    def pid(self) -> int:
        return self.process.pid

    def url(self, name: str = "test", app: str = "live") -> str:
        return f"rtmp://127.0.0.1:{self.port}/{app}/{name}"

    def _read(self, wait_s: float) -> bool:
        assert self.process.stderr is not None
        if not self._selector.select(wait_s):
            return True
        data = self.process.stderr.read()
        if data == b"":
            return False
        *lines, self._rest = (self._rest + (data or b"")).split(b"\n")
        self.lines += [line.decode(errors="backslashreplace") for line in lines]
        return True

    def wait_for_line(self, pattern: str, limit_s: float = 20) -> re.Match[str]:
        """Wait for the first log line that *pattern* matches, and return the match."""
        deadline = time.monotonic() + limit_s
        seen = 0
        while True:
            for line in self.lines[seen:]:
                found = re.search(pattern, line)
                if found:
                    return found
            seen = len(self.lines)
            left = deadline - time.monotonic()
            if left <= 0 or not self._read(min(left, 0.5)):
                raise AssertionError(f"no log line matches {pattern!r}:\n" + "\n".join(self.lines[-40:]))

    def log(self) -> list[str]:
        """Return all log lines so far."""
        while self._selector.select(0) and self._read(0):
            pass
        return self.lines

    def rss_mb(self) -> float:
        """Return the resident set, MB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def stop(self) -> int:
        """Stop the process as systemd does, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        # Read the log meanwhile: a full pipe would delay the stop.
        deadline = time.monotonic() + 15
        while self._read(0.2):
            if time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                raise AssertionError("the server did not stop:\n" + "\n".join(self.lines[-40:]))
        return self.process.wait(5)


@pytest.fixture
def server(tmp_path):
    """Return a function that starts a server; the test fails if the server has an internal error."""
    with_cleanup = []

    def start(ini: str = "", *arguments: str, **options: str) -> Server:
        made = Server(ini, *arguments, directory=tmp_path, **options)
        with_cleanup.append(made)
        return made

    yield start
    for made in with_cleanup:
        code = made.stop()
        internal = [line for line in made.lines if "internal error" in line or "Traceback" in line or " CRITICAL" in line]
        assert not internal, "\n".join(made.lines[-60:])
        assert code == 0


@pytest.fixture
def public_path(tmp_path):
    """A directory of the test that every user can reach; pytest's directories are private to its user."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & 0o005 == 0o005:
            break
        path.chmod(path.stat().st_mode | 0o055)
    return tmp_path


@pytest.fixture
def tmpfs(tmp_path):
    """Return a function that mounts a file system in memory, of a size such as ``3m``. Needs root."""
    mounted = []

    def mount(size: str) -> Path:
        path = tmp_path / f"tmpfs{len(mounted)}"
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True, timeout=20)
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True, timeout=20)


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    """An authority that signs certificates for TLS."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def ffmpeg() -> str:
    """The path of a recent static ffmpeg, from the imageio-ffmpeg wheel."""
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def find_peer(program: str, package: str) -> str:
    """Return the path of a program, or skip the test; with .ci/run a missing program fails the test."""
    path = shutil.which(program)
    if path is None:
        miss_peer(f"{program} is not installed (apt-get install {package})")
    return path


def miss_peer(message: str) -> NoReturn:
    """Skip the test; with .ci/run fail it."""
    if os.environ.get("RTMPD_REQUIRE_PEERS"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def peer():
    """The function `find_peer`."""
    return find_peer


@pytest.fixture(scope="session")
def media_files(tmp_path_factory) -> MediaFiles:
    """Short media files of several codecs, each made once by ffmpeg."""
    return MediaFiles(tmp_path_factory.mktemp("media"))
