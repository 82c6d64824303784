"""The initialization segment of fragmented MP4, and its MIME type (ISO/IEC 14496-12 section 8, CMAF section 7.3)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from rtmpd.errors import UnsupportedByMp4
from rtmpd.media.fmp4.boxes import box, full_box
from rtmpd.media.fmp4.codecs import VIDEO_TRACK
from rtmpd.media.fmp4.fragments import NOT_SYNC, SYNC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtmpd.media.fmp4.codecs import Track
    from rtmpd.media.fmp4.tracks import Tracks

_MOVIE_TIMESCALE = 1000
_EPOCH_S = 2_082_844_800
"""Times of MP4 are seconds since 1904."""
_LAST_CREATED_S = 0xFFFFFFFF - _EPOCH_S
_MATRIX = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
_ENABLED, _IN_MOVIE = 1, 2
_SELF_CONTAINED = 1
_UNDETERMINED = 0x55C4  # the language "und"

FTYP = box(b"ftyp", b"iso6", struct.pack(">I", 1), b"iso6", b"isom", b"mp41")
"""What an initialization segment begins with."""


def require_tracks(tracks: Tracks) -> list[Track]:
    """Return the tracks, at least one.

    Raises:
        UnsupportedByMp4: There is none; the message says why.
    """
    if not tracks.tracks:
        raise UnsupportedByMp4("; ".join(tracks.problems.values()) or "there is neither an audio nor a video track")
    return tracks.tracks


def mime_type(tracks: Sequence[Track]) -> str:
    """Return the MIME type (RFC 6381): ``video/mp4; codecs="avc1.64001f,mp4a.40.2"``."""
    kind = "video" if any(track.track_id == VIDEO_TRACK for track in tracks) else "audio"
    return f'{kind}/mp4; codecs="{",".join(track.codec for track in tracks)}"'


def init_segment(tracks: Sequence[Track], *, duration_ms: int | None = None, created_s: int = 0) -> bytes:
    """Return the initialization segment: ftyp and moov.

    Args:
        tracks: At least one.
        duration_ms: The duration of all fragments; None: it is not known, as of a live stream.
        created_s: When the file was begun, seconds since 1970; 0: unknown, as for anything behind 2040, which has no place.
    """
    created = created_s + _EPOCH_S if 0 < created_s <= _LAST_CREATED_S else 0
    moov = box(
        b"moov",
        full_box(
            b"mvhd",
            0,
            0,
            struct.pack(">4IIH10x", created, created, _MOVIE_TIMESCALE, 0, 1 << 16, 1 << 8),
            _MATRIX,
            bytes(24),
            _u32(3),
        ),
        *(_trak(track) for track in tracks),
        box(
            b"mvex",
            *([] if duration_ms is None else [full_box(b"mehd", 1, 0, struct.pack(">Q", duration_ms))]),
            *(_trex(track) for track in tracks),
        ),
    )
    return FTYP + moov


def _u32(number: int) -> bytes:
    return struct.pack(">I", number)


def _trex(track: Track) -> bytes:
    flags = NOT_SYNC if track.track_id == VIDEO_TRACK else SYNC
    return full_box(b"trex", 0, 0, struct.pack(">5I", track.track_id, 1, 0, 0, flags))


def _trak(track: Track) -> bytes:
    video = track.track_id == VIDEO_TRACK
    tkhd = full_box(
        b"tkhd",
        0,
        _ENABLED | _IN_MOVIE,
        struct.pack(">2II4xI8x2hH2x", 0, 0, track.track_id, 0, 0, 0, 0 if video else 1 << 8),
        _MATRIX,
        struct.pack(">II", track.width << 16, track.height << 16),
    )
    mdhd = full_box(b"mdhd", 0, 0, struct.pack(">4IHH", 0, 0, track.timescale, 0, _UNDETERMINED, 0))
    handler, name = (b"vide", b"VideoHandler\0") if video else (b"soun", b"SoundHandler\0")
    hdlr = full_box(b"hdlr", 0, 0, bytes(4), handler, bytes(12), name)
    media_header = full_box(b"vmhd", 0, 1, bytes(8)) if video else full_box(b"smhd", 0, 0, bytes(4))
    dinf = box(b"dinf", full_box(b"dref", 0, 0, _u32(1), full_box(b"url ", 0, _SELF_CONTAINED)))
    tables = [full_box(kind, 0, 0, bytes(4)) for kind in (b"stts", b"stsc", b"stco")]
    tables.insert(2, full_box(b"stsz", 0, 0, bytes(8)))
    stbl = box(b"stbl", full_box(b"stsd", 0, 0, _u32(1), track.entry), *tables)
    return box(b"trak", tkhd, box(b"mdia", mdhd, hdlr, box(b"minf", media_header, dinf, stbl)))
