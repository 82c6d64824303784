"""Which video messages are disposable: no other frame needs them, so that a player may do without.

What is relied on:

* A legacy header with frame type 3, "disposable inter frame" (FLV specification, section E.4.3.1), of codecs whose frames are
  not looked into: H.263, VP6, screen video.
* H.264: every slice has nal_ref_idc 0, which makes it a non-reference picture (ITU-T H.264 section 7.4.1), whatever the
  frame type says.
* HEVC: every slice is of a sub-layer non-reference picture (ITU-T H.265 table 7-1: the even types up to 14) and of the highest
  temporal sub-layer. The type alone is not enough: it speaks for pictures of the same sub-layer only, and those of a higher one
  may refer to it (section 7.4.2.2). How many sub-layers there may be is sps_max_sub_layers_minus1, of the sets in the header.

Never disposable are frames of VP8, VP9, AV1 and VVC. VP8 and VP9: one that refreshes no buffer still leaves probabilities, loop
filter deltas and, in VP9, motion vectors to the next (RFC 6386 sections 9.6 and 9.11; section 7.2 of VP9's specification), and
libvpx sets such deltas in every frame of a stream with temporal layers. AV1: refresh_frame_flags come behind fields that only
the sequence header tells, and a temporal unit may hold several frames. VVC: it is in the picture header, behind parameter sets.

A message with several tracks is disposable if each of its frames is. What is cut short, what can't be read, and what has more
than slices, SEI, delimiters and filler in it, is not. Nothing raises. Imports media.tags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rtmpd.media.tags import Kind, VideoPacket, video_info

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["FrameFormat", "is_disposable", "read_formats"]

_DISPOSABLE_INTER = 3
_KEY, _COMMAND = 1, 5
_ENHANCED = 0x80
_LEGACY_AVC, _LEGACY_HEVC = 7, 12
_LEGACY_OTHERS = (2, 3, 4, 5, 6)  # H.263, screen video, VP6, VP6 with alpha, screen video 2
_CODED_FRAMES, _CODED_FRAMES_X = int(VideoPacket.CODED_FRAMES), int(VideoPacket.CODED_FRAMES_X)
_FOUR_CCS = {b"avc1": "h264", b"hvc1": "hevc"}
_COMPOSITION_TIME = 3
_ONE_TRACK, _MANY_CODECS = 0, 2

_MAX_NALS = 256
"""Units of a frame that are looked at; one with more is kept. A hostile one could have millions."""

# Types that may go with a disposable frame. Parameter sets, ends of sequences and what is unknown must arrive.
_AVC_SLICES, _AVC_BESIDES = frozenset((1, 2, 3, 4)), frozenset((6, 9, 12))
_HEVC_SLICES, _HEVC_BESIDES = frozenset(range(0, 16, 2)), frozenset((35, 38, 39, 40))
_HEVC_SPS = 33


class FrameFormat(NamedTuple):
    """What a track's header says of its frames.

    Attributes:
        codec: ``h264`` or ``hevc``.
        length_size: Bytes of the length before each NAL unit, 1..4.
        sub_layers: Temporal sub-layers of HEVC that there may be, 1..7; 0: not known.
    """

    codec: str
    length_size: int
    sub_layers: int


class _Frame(NamedTuple):
    track: int
    codec: str
    data: bytes


def read_formats(headers: Iterable[bytes]) -> dict[int, FrameFormat]:
    """Read what sequence headers say of the frames of their tracks.

    Args:
        headers: Payloads of video messages, the older first; what is no sequence header is ignored.

    Returns:
        The formats by track id.
    """
    formats: dict[int, FrameFormat] = {}
    for payload in headers:
        if video_info(payload).kind is Kind.HEADER:
            for track, codec, record in _parts(payload, VideoPacket.SEQUENCE_START):
                formats.pop(track, None)
                found = _READERS[codec](record) if codec in _READERS else None
                if found is not None:
                    formats[track] = found
    return formats


def is_disposable(payload: bytes, formats: Mapping[int, FrameFormat]) -> bool:
    """Tell whether a video message can be left out without harm to any other.

    Args:
        payload: The message's.
        formats: Of the headers in force, from `read_formats`.
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
    for frame in _parts(payload, _CODED_FRAMES, _CODED_FRAMES_X):
        if not _frame_is_disposable(frame, formats):
            return False
        found = True
    return found


def _parts(payload: bytes, *packets: int) -> Iterator[_Frame]:
    """Yield what a video message holds of each track, behind all headers; one without codec where it can't be read.

    Args:
        packets: The packet types that are wanted; of others nothing is yielded.
    """
    info = video_info(payload)
    if info.packet_type not in packets:
        return
    timed = info.packet_type == _CODED_FRAMES
    position = info.body_offset
    if payload[0] < _ENHANCED:
        yield _Frame(0, info.codec, payload[position:])
        return
    if not info.multitrack:
        yield _frame(0, payload[position - 4 : position], payload[position:], timed=timed)
        return
    position = _behind_mod_ex(payload)
    layout, four_cc = payload[position] >> 4, payload[position + 1 : position + 5]
    position += 1
    if layout == _ONE_TRACK:
        yield _frame(info.tracks[0], four_cc, payload[position + 5 :], timed=timed)
        return
    position += 0 if layout == _MANY_CODECS else 4
    while position < len(payload):
        if layout == _MANY_CODECS:
            four_cc = payload[position : position + 4]
            position += 4
        head = payload[position : position + 4]
        position += 4
        end = position + int.from_bytes(head[1:], "big")
        if end > len(payload):
            yield _Frame(0, "", b"")
            return
        yield _frame(head[0], four_cc, payload[position:end], timed=timed)
        position = end


def _behind_mod_ex(payload: bytes) -> int:
    """Return where the packet begins behind any ModEx, of a message whose header has been read."""
    position, packet = 1, payload[0] & 15
    while packet == VideoPacket.MOD_EX:
        size = payload[position] + 1
        position += 1
        if size == 256:
            size = int.from_bytes(payload[position : position + 2], "big") + 1
            position += 2
        packet = payload[position + size] & 15
        position += size + 1
    return position


def _frame(track: int, four_cc: bytes, data: bytes, *, timed: bool) -> _Frame:
    codec = _FOUR_CCS.get(four_cc, "")
    # With NAL units, "coded frames" has a composition time; "coded frames X" leaves it out.
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
            elif kind not in _AVC_BESIDES:
                return False
        else:
            kind, layer, temporal_id = first >> 1, (first & 1) << 5 | second >> 3, (second & 7) - 1
            if layer:
                return False
            if kind in _HEVC_SLICES and temporal_id == known.sub_layers - 1:
                slices += 1
            elif kind not in _HEVC_BESIDES:
                return False
    return slices > 0


def _nal_heads(data: bytes, length_size: int) -> Iterator[tuple[int, int]]:
    """Yield the first two bytes of each NAL unit; (-1, 0) for one that is cut short or empty."""
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
    """Read avcC (ISO/IEC 14496-15 section 5.3.3.1)."""
    return FrameFormat("h264", (record[4] & 3) + 1, 0) if len(record) >= 7 and record[0] == 1 else None


def _hevc_format(record: bytes) -> FrameFormat | None:
    """Read hvcC (ISO/IEC 14496-15 section 8.3.3.1). Of several parameter sets the one with the most sub-layers counts."""
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
