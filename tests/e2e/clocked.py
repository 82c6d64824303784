"""Encoders and players of a picture that shows its number: what a viewer sees can be compared with what was taken.

The test makes each picture once, and writes it to all encoders at the same time, as one camera with several encoders does. A
player decodes the stream; each decoded picture has a presentation time and the number that is in it.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import struct
import subprocess
import termios
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RATE = 25
_BITS, _BLOCK = 20, 16
WIDTH, HEIGHT, _NOISE = _BITS * _BLOCK, 64, 16
_SIZE = WIDTH * HEIGHT
_INPUT = f"-f rawvideo -pix_fmt gray -s {WIDTH}x{HEIGHT} -r {RATE} -i -"
_TONE = "-f lavfi -i sine=frequency=440:sample_rate=48000"
_ENCODING = "-map 0:v -map 1:a -c:v libx264 -preset ultrafast -tune zerolatency -pix_fmt yuv420p -c:a aac -b:a 64k"


def picture(number: int) -> bytes:
    """Return a gray picture that shows a number as bits, black or white; below them is noise, so that no frame is tiny."""
    row = b"".join(bytes([235 if number >> bit & 1 else 16]) * _BLOCK for bit in range(_BITS))
    return row * (HEIGHT - _NOISE) + random.Random(number).randbytes(WIDTH * _NOISE)


def number_in(data: bytes) -> int:
    """Return the number that a decoded picture shows."""
    middle = (HEIGHT - _NOISE) // 2 * WIDTH + _BLOCK // 2
    return sum((data[middle + bit * _BLOCK] > 128) << bit for bit in range(_BITS))


class Camera:
    """Writes the pictures to all encoders, in real time, each with its number since the beginning."""

    def __init__(self) -> None:
        self._encoders: list[subprocess.Popen[bytes]] = []
        self.number = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def encoder(
        self, directory: Path, name: str, *outputs: str, gop: int = 2 * RATE, arguments: str = "", b_frames: int = 0
    ) -> subprocess.Popen[bytes]:
        """Start an encoder that publishes to a URL, or with ffmpeg's output arguments."""
        output = outputs if len(outputs) > 1 else ("-f", "flv", *outputs)
        command = [
            *("ffmpeg -hide_banner -loglevel warning -probesize 32 " + _INPUT).split(),
            *_TONE.split(),
            *_ENCODING.split(),
            *f"-g {gop} -keyint_min {gop} -sc_threshold 0 {arguments}".split(),
            *(("-bf", str(b_frames)) if b_frames else ()),
            *(["-flush_packets", "1"]),
            *output,
        ]
        with (directory / f"{name}.err").open("ab") as err:
            made = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=err, bufsize=0)
        self._encoders.append(made)
        return made

    def _run(self) -> None:
        begun = time.monotonic()
        while not self._ending.is_set():
            data = picture(self.number)
            for encoder in list(self._encoders):
                self._write(encoder, data)
            self.number += 1
            self._ending.wait(max(0.0, begun + self.number / RATE - time.monotonic()))

    def _write(self, encoder: subprocess.Popen[bytes], data: bytes) -> None:
        assert encoder.stdin is not None
        try:
            # A stopped encoder must not hold up the others: its pictures are lost, as those of a camera are.
            _write_at_once(encoder, data)
        except (OSError, ValueError):
            if encoder in self._encoders:
                self._encoders.remove(encoder)

    def stop(self, encoder: subprocess.Popen[bytes], how: Callable[[subprocess.Popen[bytes]], object]) -> None:
        """End an encoder."""
        how(encoder)
        if encoder in self._encoders:
            self._encoders.remove(encoder)

    def close(self) -> None:
        """End all encoders."""
        self._ending.set()
        self._thread.join()
        for encoder in self._encoders:
            encoder.kill()
            encoder.wait()


def _write_at_once(encoder: subprocess.Popen[bytes], data: bytes) -> None:
    """Write a picture as a whole, or nothing if the pipe is full."""
    assert encoder.stdin is not None
    descriptor = encoder.stdin.fileno()
    waiting = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"))[0]
    if waiting + len(data) <= fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ):
        os.write(descriptor, data)


class Seen(NamedTuple):
    """A decoded picture: its presentation time, the number that it shows, and when it was decoded."""

    pts_s: float
    number: int
    at_s: float


class Viewer:
    """A player that decodes a stream, from the beginning to the end of the test."""

    def __init__(self, directory: Path, name: str, url: str) -> None:
        self.seen: list[Seen] = []
        self.err = directory / f"{name}.err"
        command = [
            *[
                "ffmpeg",
                "-hide_banner",
                "-nostdin",
                "-loglevel",
                "info",
                "-fflags",
                "nobuffer",
                "-flags",
                "low_delay",
                "-copyts",
                "-probesize",
                "5000",
            ],
            *("-analyzeduration", "500000", "-rtmp_live", "live", "-i", url),
            *[
                "-map",
                "0:v",
                "-fps_mode",
                "passthrough",
                "-enc_time_base",
                "1:1000",
                "-vf",
                "showinfo",
                "-pix_fmt",
                "gray",
                "-f",
                "rawvideo",
                "-flush_packets",
                "1",
                "-",
            ],
        ]
        with self.err.open("wb") as err:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, bufsize=0)
        self._numbers: list[tuple[int, float]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        data = b""
        while True:
            more = self.process.stdout.read(_SIZE - len(data))
            if not more:
                return
            data += more
            if len(data) == _SIZE:
                self._numbers.append((number_in(data), time.monotonic()))
                data = b""

    @property
    def count(self) -> int:
        """The pictures that were decoded so far."""
        return len(self._numbers)

    @property
    def newest(self) -> int:
        """The number in the newest picture; -1: there is none."""
        return self._numbers[-1][0] if self._numbers else -1

    def pictures(self) -> list[Seen]:
        """Return the decoded pictures so far."""
        times = re.findall(r"showinfo.* n: *\d+ pts: *-?\d+ +pts_time:(-?[\d.]+)", self.err.read_text(errors="replace"))
        return [Seen(float(pts), number, at_s) for pts, (number, at_s) in zip(times, list(self._numbers), strict=False)]

    def problems(self) -> list[str]:
        """Return the lines in which the decoder reports an error."""
        words = ("error", "invalid", "missing", "corrupt", "non-monoton", "non monoton", "decode_slice", "concealing")
        lines = self.err.read_text(errors="replace").splitlines()
        return [line for line in lines if any(word in line.lower() for word in words) and "showinfo" not in line]

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
