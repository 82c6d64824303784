"""Build and run floor.c, which copies the media of one stream to many sockets with plain send(2)."""

import json
import shutil
import subprocess
from pathlib import Path

from bench import publisher
from bench.servers import BenchError

CHUNK_HEADER_BYTES = 12
LIMIT_S = 90  # beyond the window


class Floor:
    """The compiled program."""

    def __init__(self, work, kbps):
        """Compile the program.

        Raises:
            BenchError: There is no C compiler.
        """
        compiler = shutil.which("gcc") or shutil.which("cc")
        if not compiler:
            raise BenchError("it needs a C compiler")
        self._program = Path(work, "floor")
        subprocess.run([compiler, "-O2", "-o", self._program, Path(__file__).with_name("floor.c")], check=True)
        small = publisher.inter_frame_bytes(kbps)
        sizes = [small, small * publisher.KEY_FRAME_TIMES, publisher.AUDIO_BYTES]
        self._media = [size + CHUNK_HEADER_BYTES for size in sizes] + [publisher.FRAMES_PER_S, publisher.GOP_FRAMES]

    def figures(self, players, seconds, tick_ms=0, first_frame=0):
        """Run the program and return its figures. *first_frame* is the place in the GOP where the stream starts.

        Raises:
            BenchError: The program failed, or did not end.
        """
        command = [self._program, players, seconds, tick_ms, *self._media, first_frame]
        try:
            done = subprocess.run(list(map(str, command)), capture_output=True, check=True, timeout=seconds + LIMIT_S)
        except subprocess.SubprocessError as error:
            raise BenchError(str(error)) from error
        return json.loads(done.stdout)
