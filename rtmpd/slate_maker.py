"""Makes a slate from a picture: ffmpeg encodes it with silence, by default or with the parameters of a recording.

It runs for the command ``rtmpd --make-slate`` and blocks; the server does not use it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rtmpd.errors import Mp4Error, SlateError
from rtmpd.media import flv
from rtmpd.media.audio_codecs import AudioConfig
from rtmpd.media.slate import USUAL_RATES, load_slate, read_parameters
from rtmpd.media.video_codecs import VideoConfig
from rtmpd.util.text import printable

if TYPE_CHECKING:
    from rtmpd.media.slate import Parameters, Slate

DURATION_S = 10
KEYFRAME_INTERVAL_S = 2

SUFFIXES: Final = (".flv", ".mp4")

_ENCODE_LIMIT_S = 600
_LARGEST_SIDE = 8192
_HIGHEST_RATE = 240
_HD_HEIGHT = 720
"""From this height on, players take colours without a description for BT.709, and below for BT.601."""
_ERROR_BYTES = 4096

_VIDEO_ENCODERS = {"h264": "libx264", "hevc": "libx265"}
_AUDIO_ENCODERS = {"aac": "aac", "mp3": "libmp3lame", "opus": "libopus", "ac3": "ac3", "eac3": "eac3", "flac": "flac"}
_PROFILES = {
    "Baseline": "baseline",
    "Constrained Baseline": "baseline",
    "Main": "main",
    "High": "high",
    "High 10": "high10",
    "High 4:2:2": "high422",
    "High 4:4:4 Predictive": "high444",
    "Main 10": "main10",
}
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
_CHROMA = {"4:2:0": "yuv420p", "4:2:2": "yuv422p", "4:4:4": "yuv444p", "4:0:0": "gray"}
_DEPTHS = {8: "", 10: "10le", 12: "12le"}


@dataclass(frozen=True, slots=True)
class Form:
    """How a slate is encoded.

    Attributes:
        video: Codec, profile, level, size and sample format.
        rate: Frames per second.
        b_frames: Whether there are B-frames.
        audio: Codec, sample rate and channels; None: no audio.
    """

    video: VideoConfig
    rate: Fraction
    b_frames: bool
    audio: AudioConfig | None


DEFAULT_FORM: Final = Form(
    VideoConfig("h264", "High", "", 1280, 720, 8, "4:2:0"), Fraction(30), False, AudioConfig("aac", "LC", 48000, 2)
)


def make_slate(picture: str, out: str, like: str | None = None) -> tuple[Slate, Form]:
    """Make a slate of 10 s from a picture, with a keyframe every 2 s and silence.

    Args:
        picture: The path of a picture that ffmpeg reads. It is scaled to the size of the video, with black borders.
        out: The path of the slate, which ends in ``.flv`` or ``.mp4``. A file there is replaced when all has succeeded.
        like: The path of an FLV or MP4 recording whose parameters the slate gets; None: `DEFAULT_FORM`.

    Returns:
        The slate, read from the new file, and the form that was asked for.

    Raises:
        SlateError: The slate can't be made.
    """
    suffix = Path(out).suffix.lower()
    if suffix not in SUFFIXES:
        raise SlateError(f"{out}: expected a name that ends in .flv or .mp4")
    if not Path(picture).is_file():
        raise SlateError(f"{picture}: expected a picture, found no such file")
    form = DEFAULT_FORM if like is None else _form_like(like)
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise SlateError("ffmpeg is not found in PATH: it is needed to make a slate")
    target = Path(out).absolute()
    try:
        with tempfile.TemporaryDirectory(prefix=".rtmpd-slate-", dir=target.parent) as directory:
            made = Path(directory, "slate.mp4")
            _encode(ffmpeg, Path(picture).absolute(), made, form)
            if suffix == ".flv":
                # rtmpd writes it, because ffmpeg does so for HEVC and others since version 6.1 or later only.
                made = _write_flv(load_slate(made), made.with_suffix(".flv"))
            slate = load_slate(made)
            made.replace(target)
    except OSError as error:
        raise SlateError(f"{out}: {error.strerror or error}") from error
    return slate, form


def _write_flv(slate: Slate, path: Path) -> Path:
    with path.open("wb") as file:
        file.write(flv.file_header(slate.audio is not None, slate.video is not None))
        for type_id, payload in slate.headers:
            file.write(flv.tag(type_id, 0, payload))
        for message in slate.messages:
            file.write(flv.tag(*message))
    return path


# The parameters of a recording -----------------------------------------------------------------------------------------


def _form_like(path: str) -> Form:
    """Return the form of a recording."""
    try:
        with Path(path).open("rb") as file:
            found = read_parameters(file)
        return form_of(found)
    except OSError as error:
        raise SlateError(f"{path}: {error.strerror or error}") from error
    except (SlateError, Mp4Error) as error:
        raise SlateError(f"{path}: {error}") from error


def form_of(found: Parameters) -> Form:
    """Return the form with which a slate is as near as possible to a recording. What is not known of it is as by default.

    Raises:
        SlateError: No slate can be made in the codecs or the size of the recording.
    """
    video, default = found.video, DEFAULT_FORM.video
    if video is None:
        raise SlateError("expected a recording with video, found none")
    if video.codec not in _VIDEO_ENCODERS:
        raise SlateError(f"expected a recording in H.264 or HEVC, found {video.codec}")
    if not video.width:
        video = replace(video, width=default.width, height=default.height)
    if max(video.width, video.height) > _LARGEST_SIDE:
        raise SlateError(f"expected at most {_LARGEST_SIDE} pixels in a row, found {video.width}x{video.height}")
    if video.bit_depth not in _DEPTHS or video.chroma not in _CHROMA:
        video = replace(video, bit_depth=default.bit_depth, chroma=default.chroma)
    # Encoders take no odd sizes; cropping would be needed.
    video = replace(video, width=video.width + video.width % 2, height=video.height + video.height % 2)
    audio = found.audio
    if audio is not None:
        if audio.codec not in _AUDIO_ENCODERS:
            raise SlateError(f"expected audio in {', '.join(_AUDIO_ENCODERS)}, found {audio.codec}")
        audio = replace(audio, sample_rate_hz=audio.sample_rate_hz or 48000, channels=audio.channels or 2)
        if audio.channels not in _LAYOUTS:
            raise SlateError(f"expected audio of 1 to 6 or 8 channels, found {audio.channels}")
    return Form(video, _rate(found.fps), found.reordered, audio)


def _rate(fps: float) -> Fraction:
    """Return a frame rate as a fraction: the usual one, if it is near."""
    if not 1 <= fps <= _HIGHEST_RATE:
        return DEFAULT_FORM.rate
    usual = min(USUAL_RATES, key=lambda rate: abs(rate - fps))
    return usual if abs(usual - fps) < 0.001 else Fraction(round(fps * 100), 100)


# ffmpeg ----------------------------------------------------------------------------------------------------------------


def _encode(ffmpeg: str, picture: Path, made: Path, form: Form) -> None:
    """Run ffmpeg.

    It gets the picture by a link with a plain name: it would take other names for options, URLs or patterns of names.
    """
    suffix = picture.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", picture.suffix) else ""
    link = made.with_name(f"picture{suffix}")
    link.symlink_to(picture)
    log = made.with_name("log")
    command = [ffmpeg, *arguments(form, link.name, made.name)]
    with log.open("wb") as errors:
        try:
            done = subprocess.run(  # noqa: S603 - no shell; names and numbers are made here
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=made.parent,
                timeout=_ENCODE_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SlateError(f"ffmpeg took longer than {_ENCODE_LIMIT_S} s") from None
    if done.returncode or not made.is_file():
        words = _last_words(log).replace(f"file:{link.name}", picture.name)
        raise SlateError(f"ffmpeg can't make the slate (exit status {done.returncode}): {printable(words)}")


def _last_words(log: Path) -> str:
    """Return what ffmpeg has written last, in one line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _ERROR_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    return "; ".join([line for line in lines if line][-3:]) or "no message"


def arguments(form: Form, picture: str, made: str) -> list[str]:
    """Return the arguments of ffmpeg.

    Args:
        form: How the slate is encoded.
        picture, made: Names of files in the working directory, which are no options, URLs or patterns.
    """
    video, rate = form.video, form.rate
    width, height = video.width, video.height
    matrix = "bt709" if height >= _HD_HEIGHT else "bt601"
    pixels = _CHROMA[video.chroma] + _DEPTHS[video.bit_depth]
    graph = (
        f"color=c=black:s={width}x{height}:r={rate}[back];"
        f"[0:v:0]trim=end_frame=1,scale={width}:{height}:force_original_aspect_ratio=decrease,setsar=1,format=rgba[front];"
        f"[back][front]overlay=x=(W-w)/2:y=(H-h)/2:eof_action=repeat:format=rgb,"
        f"scale=out_color_matrix={matrix}:out_range=tv,setsar=1,format={pixels}[video]"
    )
    # Only the picture is read, whatever a playlist in its place may name.
    words = ["-hide_banner", "-nostdin", "-y", "-v", "error", "-protocol_whitelist", "file", "-i", f"file:{picture}"]
    if form.audio is not None:
        layout = _LAYOUTS[form.audio.channels]
        words += ["-f", "lavfi", "-i", f"anullsrc=r={form.audio.sample_rate_hz}:cl={layout}"]
    words += ["-filter_complex", graph, "-map", "[video]", *_video_arguments(form)]
    if form.audio is not None:
        encoder = _AUDIO_ENCODERS[form.audio.codec]
        words += ["-map", "1:a", "-c:a", encoder, "-ar", str(form.audio.sample_rate_hz), "-ac", str(form.audio.channels)]
    return [*words, "-t", str(DURATION_S), "-strict", "-2", "-f", "mp4", f"file:{made}"]


def _video_arguments(form: Form) -> list[str]:
    video = form.video
    interval = str(round(form.rate * KEYFRAME_INTERVAL_S))
    encoder = _VIDEO_ENCODERS[video.codec]
    words = ["-c:v", encoder, "-preset", "medium", "-g", interval, "-bf", "2" if form.b_frames else "0"]
    if video.profile in _PROFILES:
        words += ["-profile:v", _PROFILES[video.profile]]
    level = video.level if re.fullmatch(r"[1-9]\.[0-9]|1b", video.level) else ""
    if video.codec == "h264":
        words += ["-keyint_min", interval, "-sc_threshold", "0", *(["-level:v", level] if level else [])]
    else:
        options = ["log-level=error", "open-gop=0", "scenecut=0", f"min-keyint={interval}"]
        words += ["-tag:v", "hvc1", "-x265-params", ":".join(options + ([f"level-idc={level}"] if level else []))]
    return words


def differences(slate: Slate, form: Form) -> list[str]:
    """Return what a slate has other than the form asked for: ``level 3.1 instead of 4.0``."""
    pairs = [
        (name, getattr(slate.video, name), getattr(form.video, name)) for name in ("profile", "level", "bit_depth", "chroma")
    ]
    pairs += [
        (f"{name} of audio", getattr(slate.audio, name, 0), getattr(form.audio, name, 0)) for name in ("profile", "channels")
    ]
    return [
        f"{name.replace('_', ' ')} {found} instead of {wanted}" for name, found, wanted in pairs if wanted and found != wanted
    ]
