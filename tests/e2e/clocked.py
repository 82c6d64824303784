"""Encoders and viewers of a picture that shows its number: what a viewer sees can be compared with what the camera took.

The camera makes each picture once, and writes it to all encoders at the same time, as one camera with several encoders does. A
viewer decodes the stream; each decoded picture has a presentation time and the number that is in it.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

RATE = 25
FRAME_S = 1 / RATE
_BITS, _BLOCK = 20, 16
WIDTH, HEIGHT, _NOISE = _BITS * _BLOCK, 64, 16
SIZE = WIDTH * HEIGHT
_PIPE_BYTES = 1 << 18  # half a second of pictures
_INPUT = f"-f rawvideo -pix_fmt gray -s {WIDTH}x{HEIGHT} -r {RATE} -i -"
TONE = "-f lavfi -i sine=frequency=440:sample_rate=48000"
AAC = "-c:a aac -b:a 64k"
SOUND = AAC
H264 = f"-c:v libx264 -preset ultrafast -tune zerolatency -pix_fmt yuv420p -sc_threshold 0 -g {RATE} {AAC}"
H264_B_FRAMES = H264.replace("-preset ultrafast", "-preset veryfast").replace(AAC, f"-bf 2 {AAC}")
HEVC = (
    "-c:v libx265 -preset ultrafast -tune zerolatency -pix_fmt yuv420p"
    f" -x265-params log-level=none:keyint={RATE}:min-keyint={RATE}:scenecut=0:open-gop=0 {AAC}"
)


def picture(number: int) -> bytes:
    """Return a gray picture that shows a number as bits, black or white; below them is noise, so that no frame is tiny."""
    row = b"".join(bytes([235 if number >> bit & 1 else 16]) * _BLOCK for bit in range(_BITS))
    return row * (HEIGHT - _NOISE) + random.Random(number).randbytes(WIDTH * _NOISE)


def number_in(data: bytes) -> int:
    """Return the number that a decoded picture shows."""
    middle = (HEIGHT - _NOISE) // 2 * WIDTH + _BLOCK // 2
    return sum((data[middle + bit * _BLOCK] > 128) << bit for bit in range(_BITS))


class Encoder:
    """An ffmpeg that publishes; with a camera, its pictures.

    Args:
        command: Its command.
        err: The file of what it prints.
    """

    def __init__(self, command: Iterable[str], err: Path) -> None:
        self.err = err
        with err.open("ab") as file:
            self.process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=file, bufsize=0
            )
        assert self.process.stdin is not None
        self._pipe = self.process.stdin.fileno()
        fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._limit = fcntl.fcntl(self._pipe, fcntl.F_GETPIPE_SZ)

    def write(self, data: bytes) -> bool:
        """Write a picture as a whole, or nothing if the pipe is full; return whether the encoder still reads.

        An encoder that is stopped loses the pictures meanwhile, and does not hold up the others.
        """
        try:
            waiting = struct.unpack("i", fcntl.ioctl(self._pipe, termios.FIONREAD, b"\0\0\0\0"))[0]
            if waiting + len(data) <= self._limit:
                os.write(self._pipe, data)
        except OSError:
            return False
        return self.process.poll() is None

    def stall(self) -> None:
        """Stop the process for a while; `resume` ends that."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Let it end its publish, as an operator does."""
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Camera:
    """Writes the pictures to all encoders, in real time, each with its number since the beginning."""

    def __init__(self, ffmpeg: str, directory: Path) -> None:
        self.ffmpeg, self.directory = ffmpeg, directory
        self.number = 0
        self._encoders: list[Encoder] = []
        self._made: list[Encoder] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def encoder(self, name: str, encoding: str, *output: str, prefix: Iterable[str] = ()) -> Encoder:
        """Start an encoder that publishes to a URL, or with ffmpeg's output arguments.

        Args:
            name: Of the file of what it prints.
            encoding: The arguments of ffmpeg; `SOUND`: without pictures.
            output: The URL, or arguments that end with it.
            prefix: The prefix of its command.
        """
        inputs = f"-re {TONE}" if encoding == SOUND else f"-probesize 32 {_INPUT} {TONE} -map 0:v -map 1:a"
        command = f"{self.ffmpeg} -hide_banner -nostats -loglevel warning -y {inputs} {encoding} -flush_packets 1"
        output = output if len(output) > 1 else ("-f", "flv", *output)
        made = Encoder([*prefix, *command.split(), *output], self.directory / f"{name}.err")
        self._made.append(made)
        if encoding != SOUND:
            self._encoders.append(made)
        return made

    def _run(self) -> None:
        begun = time.monotonic()
        while not self._ending.is_set():
            data = picture(self.number)
            for encoder in list(self._encoders):
                if not encoder.write(data):
                    self._encoders.remove(encoder)
            self.number += 1
            self._ending.wait(max(0.0, begun + self.number / RATE - time.monotonic()))

    def close(self) -> None:
        """End all encoders."""
        self._ending.set()
        self._thread.join()
        for encoder in self._made:
            encoder.kill()


def pause() -> None:
    """Let a condition come true that a thread waits for: tests wait in threads here, without an event loop."""
    threading.Event().wait(0.02)


class Seen(NamedTuple):
    """A decoded picture: its presentation time, the number that it shows, and when it was decoded."""

    pts_s: float
    number: int
    at_s: float


class Viewer:
    """A player that decodes a stream, from the beginning to the end of the test."""

    def __init__(self, ffmpeg: str, directory: Path, name: str, url: str, prefix: Iterable[str] = ()) -> None:
        self.err = directory / f"{name}.err"
        command = (
            f"{ffmpeg} -hide_banner -nostdin -nostats -loglevel info -flags low_delay -copyts -probesize 5000"
            f" -analyzeduration 500000 -rtmp_live live -i {url} -map 0:v -fps_mode passthrough -enc_time_base 1:1000"
            " -vf showinfo=checksum=0 -pix_fmt gray -f rawvideo -flush_packets 1 -"
        )
        with self.err.open("wb") as err:
            self.process = subprocess.Popen([*prefix, *command.split()], stdout=subprocess.PIPE, stderr=err, bufsize=0)
        self._numbers: list[tuple[int, float]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        data = b""
        while True:
            more = self.process.stdout.read(SIZE - len(data))
            if not more:
                return
            data += more
            if len(data) == SIZE:
                self._numbers.append((number_in(data), time.monotonic()))
                data = b""

    @property
    def newest(self) -> int:
        """The number in the newest picture; -1: there is none."""
        return self._numbers[-1][0] if self._numbers else -1

    def pictures(self) -> list[Seen]:
        """Return the decoded pictures so far."""
        times = re.findall(r"showinfo.* n: *\d+ pts: *-?\d+ +pts_time:(-?[\d.]+)", self.err.read_text(errors="replace"))
        return [Seen(float(pts), number, at_s) for pts, (number, at_s) in zip(times, list(self._numbers), strict=False)]

    def problems(self) -> list[str]:
        """Return the lines in which the player or its decoder reports an error."""
        words = ("error", "invalid", "missing", "corrupt", "non-monoton", "non monoton", "decode_slice", "conceal", "discard")
        lines = self.err.read_text(errors="replace").splitlines()
        return [line for line in lines if any(word in line.lower() for word in words) and "showinfo" not in line]

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def shown(pictures: list[Seen]) -> list[Seen]:
    """Return the pictures that stay on the screen for half a frame: not those that only lead a decoder to the present."""
    return [one for one, other in pairwise(pictures) if other.pts_s - one.pts_s >= FRAME_S / 2]


def longest_freeze_s(pictures: list[Seen], begin_s: float, end_s: float) -> float:
    """Return the longest time between two decoded pictures that show something new, of those around a period."""
    times: list[float] = []
    newest = -1
    for seen in pictures:
        if seen.number > newest:
            newest = seen.number
            times.append(seen.at_s)
    return max((b - a for a, b in pairwise(times) if b >= begin_s and a <= end_s), default=0.0)


def backward(pictures: list[Seen]) -> list[tuple[Seen, Seen]]:
    """Return the neighbouring pictures between which presentation time does not go forward."""
    return [(one, other) for one, other in pairwise(pictures) if other.pts_s <= one.pts_s]
