"""Short media files that ffmpeg makes for tests of readers, and FLV files taken apart."""

from __future__ import annotations

import subprocess
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import imageio_ffmpeg

from rtmpd.media.flv import VIDEO
from rtmpd.media.tags import Kind, audio_info, video_info

if TYPE_CHECKING:
    from pathlib import Path

_PICTURE = "-f lavfi -i testsrc2=size=64x48:rate=30"
_TONE = "-f lavfi -i sine=frequency=440:sample_rate=48000"
_X264 = f"{_PICTURE} -c:v libx264 -preset medium -pix_fmt yuv420p -g 15"
_B_FRAMES = f"{_TONE} {_X264} -bf 3 -c:a aac -t 1"
_X265 = f"{_TONE} {_PICTURE} -c:v libx265 -preset ultrafast -bf 3 -x265-params log-level=none:keyint=15"
_AV1 = "-c:v libsvtav1 -preset 12 -svtav1-params lookahead=0 -g 15"

FILES = {
    "b_frames.mp4": _B_FRAMES,
    "faststart.mp4": f"{_B_FRAMES} -movflags faststart",
    "negative.mp4": f"{_B_FRAMES} -movflags negative_cts_offsets",
    "fragments.mp4": f"{_B_FRAMES} -movflags frag_keyframe+empty_moov",
    "delayed_moov.mp4": f"{_B_FRAMES} -movflags frag_keyframe+empty_moov+delay_moov+default_base_moof",
    "short_fragments.mp4": f"{_TONE} {_X264} -bf 0 -c:a aac -t 1 -frag_duration 100000",
    "quicktime.mov": _B_FRAMES,
    "h264_only.mp4": f"{_X264} -t 1",
    "no_b_frames.mp4": f"{_TONE} {_X264} -bf 0 -c:a aac -t 1",
    "aac_only.m4a": f"{_TONE} -c:a aac -t 1",
    "late_audio.mp4": f"-itsoffset 0.3 {_TONE} {_X264} -bf 2 -c:a aac -t 1",
    "variable_rate.mp4": f"{_TONE} {_X264} -vf select='not(mod(floor(n/3)\\,2))' -fps_mode vfr -c:a aac -t 1",
    "hevc_opus.mp4": f"{_X265} -c:a libopus -t 1",
    "hevc_mp3.mp4": f"{_X265} -tag:v hvc1 -c:a libmp3lame -t 1",
    "hevc_ac3.mp4": f"{_X265} -c:a ac3 -t 1",
    "av1_eac3.mp4": f"{_TONE} {_PICTURE} {_AV1} -c:a eac3 -t 1",
    "vp9_flac.mp4": f"{_TONE} {_PICTURE} -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 15 -c:a flac -strict -2 -t 1",
    "h264_aac.flv": f"{_TONE} {_X264} -bf 2 -c:a aac -t 1",
    "two_tracks.flv": f"{_PICTURE} -f lavfi -i testsrc=size=32x32:rate=30 {_TONE} -f lavfi -i sine=sample_rate=44100"
    " -map 0 -map 1 -map 2 -map 3 -c:v libx264 -pix_fmt yuv420p -g 15 -c:a aac -t 1",
    "aac_only.flv": f"{_TONE} -c:a aac -t 1",
    "hevc_aac.flv": f"{_X265} -c:a aac -t 1",
    "cmaf.mp4": f"{_B_FRAMES} -movflags cmaf+frag_keyframe",
    "prores.mov": f"{_PICTURE} -c:v prores_ks -t 0.3",
}
"""The arguments of each file."""


def run_ffmpeg(*arguments: object) -> bytes:
    """Run ffmpeg and return what it writes to standard output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-v", "error", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


class MediaFiles:
    """Makes each file once.

    Args:
        directory: Where they are written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = cache(self._make)
        self.remuxed = cache(self._remux)

    def _make(self, name: str) -> Path:
        path = self._directory / name
        run_ffmpeg(*FILES[name].split(), path)
        return path

    def _remux(self, name: str) -> bytes:
        return run_ffmpeg("-i", self.path(name), "-c", "copy", "-f", "flv", "-")


class Frame(NamedTuple):
    """A message with a frame, without its header."""

    timestamp_ms: int
    composition_ms: int
    keyframe: bool
    data: bytes


def split_flv(data: bytes) -> list[tuple[int, int, bytes]]:
    """Return type id, timestamp and payload of each tag of a good file."""
    tags, position = [], 13
    while position < len(data):
        length = int.from_bytes(data[position + 1 : position + 4], "big")
        time = int.from_bytes(data[position + 4 : position + 7], "big") | data[position + 7] << 24
        tags.append((data[position], time, data[position + 11 : position + 11 + length]))
        position += 15 + length
    return tags


def frames(messages: object, type_id: int) -> list[Frame]:
    """Return the frames of one type, parsed."""
    found = []
    for kind, time_ms, payload in messages:
        info = (video_info if kind == VIDEO else audio_info)(payload)
        if kind != type_id or info.kind not in (Kind.FRAME, Kind.KEYFRAME):
            continue
        start, composition = info.body_offset, 0
        if kind == VIDEO and info.codec == "h264":
            composition = int.from_bytes(payload[2:5], "big", signed=True)
        elif info.codec == "hevc" and info.packet_type == 1:
            composition, start = int.from_bytes(payload[start : start + 3], "big", signed=True), start + 3
        found.append(Frame(time_ms, composition, info.kind is Kind.KEYFRAME, payload[start:]))
    return found


def sequence_headers(messages: object, type_id: int) -> list[bytes]:
    """Return the sequence headers of one type, without multichannel configurations."""
    infos = [
        (payload, (video_info if kind == VIDEO else audio_info)(payload)) for kind, _, payload in messages if kind == type_id
    ]
    return [payload for payload, info in infos if info.kind is Kind.HEADER and info.packet_type == 0]
