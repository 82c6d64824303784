"""VLC without a screen: the pictures that it decodes."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING

from tests.conftest import find_peer
from tests.e2e.clocked import HEIGHT, SIZE, WIDTH, number_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AS_NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
"""VLC does not run as root."""


class Vlc:
    """A VLC that plays, made by `playing`: it writes each fifth decoded picture as a file."""

    def __init__(self, directory: Path, process: subprocess.Popen) -> None:
        self.directory, self.process = directory, process

    @property
    def errors(self) -> str:
        """What it has printed so far."""
        return (self.directory / "vlc.err").read_text(errors="replace")

    def pictures(self) -> list[bytes]:
        """Return the pictures so far, as PNGs. One that VLC repeats while it buffers is there once."""
        # It may be writing the newest file.
        pictures = [path.read_bytes() for path in sorted(self.directory.glob("picture*.png"))[:-1]]
        return [data for data, _ in groupby(pictures)]

    def numbers(self, ffmpeg: str) -> list[int]:
        """Return the numbers of the camera in the pictures so far."""
        # VLC adds lines to a picture whose height does not suit it.
        raw = ("-vf", f"crop={WIDTH}:{HEIGHT}:0:0", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "gray", "-")
        command = [ffmpeg, "-v", "error", "-f", "png_pipe", "-i", "-", *raw]
        data = subprocess.run(command, input=b"".join(self.pictures()), capture_output=True, check=True, timeout=30).stdout
        return [number_in(data[i : i + SIZE]) for i in range(0, len(data), SIZE)]


@contextmanager
def playing(url: str, directory: Path) -> Iterator[Vlc]:
    """Play a URL, and end it. The directory is one that every user can reach."""
    directory.chmod(0o777)
    user = AS_NOBODY if os.geteuid() == 0 else ()
    command = (
        *(*user, find_peer("cvlc", "vlc-bin vlc-plugin-base"), "--quiet", "--no-color", "--vout=dummy", "--aout=dummy"),
        *("--video-filter=scene", "--scene-format=png", "--scene-ratio=5", "--scene-prefix=picture"),
        *(f"--scene-path={directory}", url),
    )
    with (directory / "vlc.err").open("wb") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=err, stderr=err, env=os.environ | {"HOME": "/nonexistent"}
        )
    try:
        yield Vlc(directory, process)
    finally:
        process.kill()
        process.wait()
