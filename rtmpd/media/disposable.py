"""Detection of disposable video messages: no other frame refers to them, so that slow players can do without them.

Disposable are:

* Messages with a legacy header and frame type 3, "disposable inter frame" (FLV specification, section E.4.3.1), of codecs whose
  frames are not parsed: H.263, VP6, screen video.
* H.264 frames whose slices all have nal_ref_idc 0: non-reference pictures (ITU-T H.264 section 7.4.1). The frame type is
  ignored.
* HEVC frames whose slices are all of sub-layer non-reference pictures (ITU-T H.265 table 7-1: the even types up to 14) and of
  the highest temporal sub-layer. The type alone is not enough: pictures of a higher sub-layer may refer to the frame (section
  7.4.2.2). The number of sub-layers is sps_max_sub_layers_minus1 in the sequence header.

Frames of VP8, VP9, AV1 and VVC are never disposable. In VP8 and VP9, a frame that refreshes no buffer still passes
probabilities, loop filter deltas and, in VP9, motion vectors to the next one (RFC 6386 sections 9.6 and 9.11; section 7.2 of
the VP9 specification), and libvpx sets such deltas in every frame of a stream with temporal layers. In AV1, refresh_frame_flags
follow fields that depend on the sequence header, and a temporal unit may have several frames. In VVC, the flag is in the
picture header, after fields that depend on parameter sets.

A message of several tracks is disposable if each of its frames is. Truncated and invalid messages, and those with other units
than slices, SEI, delimiters and filler, are not. Nothing raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rtmpd.media.tags import Kind, VideoPacket, skip_mod_ex, split_tracks, video_info

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_DISPOSABLE_INTER = 3
_KEY, _COMMAND = 1, 5
_ENHANCED = 0x80
_LEGACY_AVC, _LEGACY_HEVC = 7, 12
_LEGACY_OTHERS = (2, 3, 4, 5, 6)  # H.263, screen video, VP6, VP6 with alpha, screen video 2
_CODED_FRAMES, _CODED_FRAMES_X = int(VideoPacket.CODED_FRAMES), int(VideoPacket.CODED_FRAMES_X)
_FOUR_CCS = {b"avc1": "h264", b"hvc1": "hevc"}
_COMPOSITION_TIME = 3

_MAX_NALS = 256
"""The number of NAL units of a frame that are parsed. A hostile frame could have millions; one with more is not disposable."""

# NAL unit types of slices, and those that may accompany them. Parameter sets, ends of sequences and unknown types must arrive.
_AVC_SLICES, _AVC_OTHERS = frozenset((1, 2, 3, 4)), frozenset((6, 9, 12))
_HEVC_SLICES, _HEVC_OTHERS = frozenset(range(0, 16, 2)), frozenset((35, 38, 39, 40))
_HEVC_SPS = 33


class FrameFormat(NamedTuple):
    """The format of a track's frames, from its sequence header.

    Attributes:
        codec: ``h264`` or ``hevc``.
        length_size: The size of the length before each NAL unit, 1..4 bytes.
        sub_layers: The highest number of temporal sub-layers of HEVC, 1..7; 0 if unknown.
    """

    codec: str
    length_size: int
    sub_layers: int


class _Frame(NamedTuple):
    track: int
    codec: str
    data: bytes


def read_formats(headers: Iterable[bytes]) -> dict[int, FrameFormat]:
    """Parse the formats of frames from sequence headers.

    Args:
        headers: The payloads of video messages, oldest first. Those that are not sequence headers are ignored.

    Returns:
        The formats by track id.
    """
    formats: dict[int, FrameFormat] = {}
    for payload in headers:
        if video_info(payload).kind is Kind.HEADER:
            for track, codec, record in _frames(payload, VideoPacket.SEQUENCE_START):
                formats.pop(track, None)
                found = _READERS[codec](record) if codec in _READERS else None
                if found is not None:
                    formats[track] = found
    return formats


def is_disposable(payload: bytes, formats: Mapping[int, FrameFormat]) -> bool:
    """Return whether a video message can be left out without damage to any other.

    Args:
        payload: The payload of the message.
        formats: The result of `read_formats` for the current sequence headers.
    """
    if len(payload) < 2:
        return False
    first = payload[0]
    frame_type = first >> 4 & 7
    if frame_type in (_KEY, _COMMAND):
        return False
    if first < _ENHANCED:
        codec = first & 15
        if codec in _LEGACY_OTHERS:
            return frame_type == _DISPOSABLE_INTER
        if codec not in (_LEGACY_AVC, _LEGACY_HEVC) or payload[1] != _CODED_FRAMES:
            return False
        return _frame_is_disposable(_Frame(0, "h264" if codec == _LEGACY_AVC else "hevc", payload[5:]), formats)
    found = False
    for frame in _frames(payload, _CODED_FRAMES, _CODED_FRAMES_X):
        if not _frame_is_disposable(frame, formats):
            return False
        found = True
    return found


def _frames(payload: bytes, *packets: int) -> Iterator[_Frame]:
    """Yield the data of each track of a video message, without headers; a frame without codec for a truncated track.

    Args:
        packets: The packet types to parse. Messages of other types have no frames here.
    """
    info = video_info(payload)
    if info.packet_type not in packets:
        return
    timed = info.packet_type == _CODED_FRAMES
    position = info.body_offset
    if payload[0] < _ENHANCED:
        yield _Frame(0, info.codec, payload[position:])
    elif not info.multitrack:
        yield _frame(0, info.four_cc, payload[position:], timed=timed)
    else:
        _, position, _ = skip_mod_ex(payload, payload[0] & 15, VideoPacket.MOD_EX)
        for track, four_cc, start, end in split_tracks(payload, position):
            yield _frame(track, four_cc, payload[start:end], timed=timed) if track >= 0 else _Frame(0, "", b"")


def _frame(track: int, four_cc: bytes, data: bytes, *, timed: bool) -> _Frame:
    codec = _FOUR_CCS.get(four_cc, "")
    # Of codecs with NAL units, "coded frames" have a composition time, and "coded frames X" have none.
    return _Frame(track, codec, data[_COMPOSITION_TIME:] if timed and codec in _READERS else data)


def _frame_is_disposable(frame: _Frame, formats: Mapping[int, FrameFormat]) -> bool:
    known = formats.get(frame.track)
    if known is None or known.codec != frame.codec:
        return False
    slices = 0
    for number, (first, second) in enumerate(_nal_heads(frame.data, known.length_size)):
        if number == _MAX_NALS or first < 0 or first & 0x80:
            return False
        if frame.codec == "h264":
            kind = first & 31
            if kind in _AVC_SLICES and not first & 0x60:
                slices += 1
            elif kind not in _AVC_OTHERS:
                return False
        else:
            kind, layer, temporal_id = first >> 1, (first & 1) << 5 | second >> 3, (second & 7) - 1
            if layer:
                return False
            if kind in _HEVC_SLICES and temporal_id == known.sub_layers - 1:
                slices += 1
            elif kind not in _HEVC_OTHERS:
                return False
    return slices > 0


def _nal_heads(data: bytes, length_size: int) -> Iterator[tuple[int, int]]:
    """Yield the first two bytes of each NAL unit; (-1, 0) for a truncated or empty one."""
    position = 0
    while position < len(data):
        start = position + length_size
        length = int.from_bytes(data[position:start], "big")
        position = start + length
        if length < 2 or position > len(data):
            yield -1, 0
            return
        yield data[start], data[start + 1]


# Headers ----------------------------------------------------------------------------------------------------------------


def _avc_format(record: bytes) -> FrameFormat | None:
    """Parse avcC (ISO/IEC 14496-15 section 5.3.3.1)."""
    return FrameFormat("h264", (record[4] & 3) + 1, 0) if len(record) >= 7 and record[0] == 1 else None


def _hevc_format(record: bytes) -> FrameFormat | None:
    """Parse hvcC (ISO/IEC 14496-15 section 8.3.3.1). Of several parameter sets, the one with the most sub-layers counts."""
    if len(record) < 23:
        return None
    sub_layers, position = 0, 23
    for _ in range(record[22]):
        head = record[position : position + 3]
        position += 3
        for _ in range(int.from_bytes(head[1:], "big")):
            size = int.from_bytes(record[position : position + 2], "big")
            unit = record[position + 2 : position + 2 + size]
            position += 2 + size
            if position > len(record):
                return None
            if head[0] & 63 == _HEVC_SPS and len(unit) > 2:
                sub_layers = max(sub_layers, (unit[2] >> 1 & 7) + 1)
    return FrameFormat("hevc", (record[21] & 3) + 1, sub_layers) if sub_layers else None


_READERS: dict[str, Callable[[bytes], FrameFormat | None]] = {"h264": _avc_format, "hevc": _hevc_format}
