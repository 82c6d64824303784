"""Fragmented MP4 taken apart by a parser of its own, and what ffmpeg decodes of it."""

from __future__ import annotations

import struct
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import imageio_ffmpeg

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"mvex", b"moof", b"traf", b"mfra")


class Sample(NamedTuple):
    """A sample, its times in ticks."""

    track: int
    time: int
    duration: int
    composition: int
    sync: bool
    data: bytes


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, and start and end of the content of each box; fail if they do not end where *data* does."""
    end = len(data) if end is None else end
    while start < end:
        size, kind = struct.unpack_from(">I4s", data, start)
        assert 8 <= size <= end - start, (kind, size, start)
        yield kind, start + 8, start + size
        start += size
    assert start == end


def box(data: bytes, *path: bytes) -> bytes:
    """Return the content of the first box of a path."""
    for kind in path:
        data = next(data[start:end] for each, start, end in boxes(data) if each == kind)
    return data


def all_kinds(data: bytes) -> list[bytes]:
    """The types of the boxes at the top."""
    return [kind for kind, _, _ in boxes(data)]


def samples(data: bytes, *, numbered: bool = True) -> list[Sample]:
    """Return the samples of all fragments, in their order in the file. Fragments are *numbered* from 1 on."""
    found, sequences = [], []
    for kind, start, end in boxes(data):
        if kind != b"moof":
            continue
        moof = start - 8
        for inner, at, until in boxes(data, start, end):
            if inner == b"mfhd":
                sequences.append(int.from_bytes(data[at + 4 : at + 8], "big"))
            elif inner == b"traf":
                found += _run(data, moof, at, until)
    assert not numbered or sequences == list(range(1, len(sequences) + 1))
    return found


def _run(data: bytes, moof: int, start: int, end: int) -> list[Sample]:
    inner = {kind: data[at:until] for kind, at, until in boxes(data, start, end)}
    tfhd, tfdt, trun = inner[b"tfhd"], inner[b"tfdt"], inner[b"trun"]
    flags = int.from_bytes(tfhd[1:4], "big")
    assert flags & 0x20000, "the base of offsets is the moof"
    track, *defaults = struct.unpack(f">{len(tfhd) // 4 - 1}I", tfhd[4:])
    default_duration = defaults.pop(0) if flags & 8 else 0
    default_flags = defaults.pop(0) if flags & 0x20 else 0
    assert not defaults
    assert tfdt[0] == 1
    time = int.from_bytes(tfdt[4:12], "big")
    assert trun[0] == 1
    flags = int.from_bytes(trun[1:4], "big")
    count, offset = struct.unpack_from(">Ii", trun, 4)
    numbers = [number for (number,) in struct.iter_unpack(">I", trun[12:])]
    position, found = moof + offset, []
    for _ in range(count):
        duration = numbers.pop(0) if flags & 0x100 else default_duration
        size = numbers.pop(0)
        sample_flags = numbers.pop(0) if flags & 0x400 else default_flags
        composition = numbers.pop(0) if flags & 0x800 else 0
        composition -= composition >> 31 << 32
        found.append(Sample(track, time, duration, composition, not sample_flags & 0x10000, data[position : position + size]))
        time += duration
        position += size
    assert not numbers
    return found


def decoded(path: Path) -> dict[str, list[tuple[int, str]]]:
    """Return the presentation time (ms) and the hash of each decoded frame of the first track of each kind, by ``video`` and
    ``audio``. Fail if ffmpeg has a warning about an MP4 file.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-v", "warning", "-copyts", "-i", str(path)]
    command += ["-map", "0:v:0?", "-map", "0:a:0?", "-fps_mode", "passthrough", "-f", "framehash", "-hash", "md5", "-"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert path.suffix != ".mp4" or not done.stderr, done.stderr.decode(errors="replace")
    found: dict[str, list[tuple[int, str]]] = {}
    kinds, bases = {}, {}
    for line in done.stdout.decode().splitlines():
        words = line.replace(":", "").split()
        if line.startswith("#tb"):
            numerator, denominator = words[2].split("/")
            bases[words[1]] = 1000 * int(numerator) / int(denominator)
        elif line.startswith("#media_type"):
            kinds[words[1]] = words[2]
        elif not line.startswith("#"):
            stream, _, time, _, _, digest = (field.strip() for field in line.split(","))
            found.setdefault(kinds[stream], []).append((round(int(time) * bases[stream]), digest))
    return found
