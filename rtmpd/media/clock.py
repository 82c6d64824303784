"""Clocks in the content of a stream: wall-clock times and timecodes that encoders put into frames and data messages.

Two encoders of one scene have timestamps of their own; a clock in the content tells which frames belong together. Read are:

* The Broadcast Performance Metrics that OBS Studio adds to keyframes, behind the slices: user data with an RFC 3339 time of
  composition, in SEI messages of H.264 and HEVC and in metadata OBUs of AV1.
* The precision time stamps of MISB ST 0604, in microseconds, and in nanoseconds for HEVC.
* Timecodes: the time code SEI message of HEVC (section D.2.27), the picture timing SEI message of H.264 (section D.1.3), and
  the timecode metadata of AV1 (section 5.8.6).
* The data messages onFI, of Flash Media Live Encoder and others, onTimecode and onTextData.

A timecode counts frames, whose rate is not known here: those of whole seconds are read only. Nothing raises, and the work for a
hostile message is bounded: of its first 64 units, 32 SEI messages are parsed, in 8 KiB.
"""

from __future__ import annotations

import datetime as dt
import enum
import re
import statistics
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rtmpd.errors import AmfError, LimitExceeded
from rtmpd.media.bits import BitReader, unescape
from rtmpd.media.tags import Kind, VideoPacket, first_track_data, skip_mod_ex, split_tracks, video_info
from rtmpd.media.video_codecs import avc_timing_bits
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import AmfLimits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


DAY_MS = 86_400_000
_WRAP = 1 << 32

_MAX_UNITS = 64
_MAX_BYTES = 8192
_MAX_MESSAGES = 32

_USER_DATA = 5  # SEI payload types
_PICTURE_TIMING = 1
_TIME_CODE = 136
_AVC_SEI = 6
_HEVC_SEI = (39, 40)
_AV1_METADATA = 5
_AV1_TIMECODE, _AV1_PRIVATE = 5, range(6, 32)

_BPM_TIMES = bytes.fromhex("0aecffe752724e2fa62fd19cd61a93b5")
_BPM_RFC3339, _BPM_DURATION, _BPM_DELTA = 1, 2, 3
_BPM_COMPOSITION = 1
_MISP_MICROSECONDS = (b"MISPmicrosectime", bytes.fromhex("a8687dd4d7593758a5cef0338b6545f1"))
_MISP_NANOSECONDS = bytes.fromhex("cf848278ee23306c9265e8fef22fb8b8")
_MISP_SIZE = 12  # a status, and eight bytes with a byte 0xFF after each second one


class ClockKind(enum.Enum):
    """Where a time comes from. Only times of one kind can be compared."""

    BPM = "broadcast performance metrics"
    """UTC, milliseconds since 1970."""
    MISP = "precision time stamp"
    """Milliseconds since 1970, in UTC or without leap seconds."""
    ON_FI = "onFI"
    """Milliseconds since 1970, in the time zone of the encoder."""
    TEXT = "onTextData"
    """UTC, milliseconds since 1970."""
    TIMECODE = "timecode"
    """Milliseconds since midnight."""
    DATA_TIMECODE = "timecode in data messages"
    """Milliseconds since midnight."""

    @property
    def wraps(self) -> bool:
        """Whether it is a time of day, which begins again each 24 hours."""
        return self in (ClockKind.TIMECODE, ClockKind.DATA_TIMECODE)


class ContentTime(NamedTuple):
    """The time of the content at the timestamp of a message.

    Attributes:
        kind: The kind of clock.
        time_ms: Milliseconds, as the kind says. The composition time offset of a frame is subtracted.
    """

    kind: ClockKind
    time_ms: int


# Video --------------------------------------------------------------------------------------------------------------------


class FrameLayout(NamedTuple):
    """What a sequence header tells of the SEI messages in frames.

    Attributes:
        length_size: The size of the length before each NAL unit, 1..4 bytes.
        timing_bits: The bits before pic_struct in the picture timing of H.264; None: it is not read.
    """

    length_size: int = 4
    timing_bits: int | None = None


USUAL_LAYOUT: Final = FrameLayout()


def frame_layout(payload: bytes) -> FrameLayout:
    """Return the layout of the frames after a sequence header; the usual one for other codecs and messages.

    Args:
        payload: The payload of the video message.
    """
    info = video_info(payload)
    if info.kind is not Kind.HEADER:
        return USUAL_LAYOUT
    record = first_track_data(payload, info)
    if info.codec == "h264" and len(record) > 4 and record[0] == 1:
        return FrameLayout((record[4] & 3) + 1, avc_timing_bits(record))
    if info.codec == "hevc" and len(record) > 21:
        return FrameLayout((record[21] & 3) + 1)
    return USUAL_LAYOUT


def video_time(payload: bytes, layout: FrameLayout = USUAL_LAYOUT) -> ContentTime | None:
    """Find a time in a video message; with several tracks, in the frame of the first one.

    Args:
        payload: The payload of the message.
        layout: That of the newest sequence header.

    Returns:
        The first time that is found, or None.
    """
    frame = _frame(payload)
    if frame is None:
        return None
    codec, start, end, composition_ms = frame
    found = _av1_time(payload, start, end) if codec == "av1" else _nal_time(payload, start, end, codec, layout)
    return found and ContentTime(found.kind, found.time_ms - composition_ms)


def _frame(payload: bytes) -> tuple[str, int, int, int] | None:
    """Return codec, start and end of the coded frame, and its composition time in milliseconds."""
    if len(payload) < 6:
        return None
    first, start, end = payload[0], 5, len(payload)
    if first < 0x80:
        codec = {7: "h264", 12: "hevc"}.get(first & 15, "")
        if not codec or payload[1] != VideoPacket.CODED_FRAMES:
            return None
        return codec, start, end, _signed24(payload, 2)
    info = video_info(payload)
    if info.packet_type not in (VideoPacket.CODED_FRAMES, VideoPacket.CODED_FRAMES_X):
        return None
    codec, start = info.codec, info.body_offset
    if info.multitrack:
        _, position, _ = skip_mod_ex(payload, first & 15, VideoPacket.MOD_EX)
        track, _, start, end = next(split_tracks(payload, position), (-1, b"", 0, 0))
        if track < 0:
            return None
    if codec == "av1":
        return codec, start, end, 0
    if codec not in ("h264", "hevc"):
        return None
    if info.packet_type == VideoPacket.CODED_FRAMES_X:
        return codec, start, end, 0
    return codec, start + 3, end, _signed24(payload, start)


def _signed24(payload: bytes, position: int) -> int:
    return int.from_bytes(payload[position : position + 3], "big", signed=True)


def _nal_time(payload: bytes, position: int, end: int, codec: str, layout: FrameLayout) -> ContentTime | None:
    """Find a time in the SEI units of a frame. Other units are skipped: OBS puts SEI behind them."""
    length_size, budget, messages = layout.length_size, _MAX_BYTES, 0
    for _ in range(_MAX_UNITS):
        start = position + length_size
        if start >= end:
            return None
        position = start + int.from_bytes(payload[start - length_size : start], "big")
        head = payload[start]
        if codec == "h264":
            if head & 31 != _AVC_SEI:
                continue
            body = start + 1
        elif head >> 1 & 63 in _HEVC_SEI:
            body = start + 2
        else:
            continue
        unit = payload[body : min(position, end, body + budget)]
        budget -= len(unit)
        for kind, data in _sei_messages(unescape(unit)):
            found = _sei_time(kind, data, codec, layout.timing_bits)
            messages += 1
            if found is not None or messages == _MAX_MESSAGES:
                return found
    return None


def _sei_messages(unit: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and payload of each message of an SEI unit (H.264 section 7.3.2.3.1, HEVC section 7.3.5)."""
    position = 0
    while True:
        numbers = [0, 0]
        for index in range(2):
            while position < len(unit) and unit[position] == 0xFF:
                numbers[index] += 255
                position += 1
            if position >= len(unit):
                return
            numbers[index] += unit[position]
            position += 1
        kind, size = numbers
        if position + size > len(unit):
            return
        yield kind, unit[position : position + size]
        position += size


def _sei_time(kind: int, data: bytes, codec: str, timing_bits: int | None) -> ContentTime | None:
    if kind == _USER_DATA:
        return _user_data_time(data)
    reader = BitReader(data)
    if kind == _TIME_CODE and codec == "hevc" and len(data) > 1:
        if reader.bits(2) and reader.flag():
            return _timecode(reader, skipped=1, frame_bits=9)
    elif kind == _PICTURE_TIMING and codec == "h264" and timing_bits is not None and len(data) * 8 > timing_bits + 4:
        reader.skip(timing_bits + 4)
        if reader.flag():
            return _timecode(reader, skipped=3, frame_bits=8)
    return None


def _timecode(reader: BitReader, *, skipped: int, frame_bits: int) -> ContentTime | None:
    """Read a timecode; the three codecs have its fields from counting_type on in common.

    Args:
        reader: Where it begins.
        skipped: The bits before counting_type.
        frame_bits: The bits of n_frames.
    """
    try:
        reader.skip(skipped + 5)
        full = reader.flag()
        reader.skip(2)
        frames, parts = reader.bits(frame_bits), []
        for bits in (6, 6, 5):  # seconds, minutes, hours
            if not full and not reader.flag():
                return None
            parts.append(reader.bits(bits))
    except EOFError:
        return None
    time_ms = _time_of_day(parts[2], parts[1], parts[0])
    return ContentTime(ClockKind.TIMECODE, time_ms) if not frames and time_ms is not None else None


def _time_of_day(hours: int, minutes: int, seconds: int, milliseconds: int = 0) -> int | None:
    if hours > 23 or minutes > 59 or seconds > 59:
        return None
    return (hours * 3600 + minutes * 60 + seconds) * 1000 + milliseconds


def _user_data_time(data: bytes) -> ContentTime | None:
    """Find a time in user data: a UUID and what belongs to it."""
    uuid = data[:16]
    if uuid == _BPM_TIMES:
        return _bpm_time(data[16:])
    if uuid in _MISP_MICROSECONDS or uuid == _MISP_NANOSECONDS:
        stamp = data[16 : 16 + _MISP_SIZE]
        # The bytes 0xFF prevent the emulation of start codes.
        if len(stamp) < _MISP_SIZE or stamp[3::3] != b"\xff\xff\xff":
            return None
        number = int.from_bytes(stamp[1:3] + stamp[4:6] + stamp[7:9] + stamp[10:12], "big")
        return ContentTime(ClockKind.MISP, number // (1_000_000 if uuid == _MISP_NANOSECONDS else 1000))
    return None


def _bpm_time(data: bytes) -> ContentTime | None:
    """Read the time of composition from the list of times that OBS writes (shared/bpm/bpm.c)."""
    position = 1
    for _ in range((data[0] & 15) + 1 if data else 0):
        kind, event = data[position : position + 2].ljust(2, b"\0")
        position += 2
        if kind == _BPM_RFC3339:
            stop = data.find(b"\0", position)
            if stop < 0:
                return None
            time_ms = _rfc3339_ms(data[position:stop])
            position = stop + 1
        elif kind in (_BPM_DURATION, _BPM_DELTA):
            number = data[position : position + 8]
            position += 8
            time_ms = int.from_bytes(number, "big") if kind == _BPM_DURATION and len(number) == 8 else None
        else:
            return None
        if event == _BPM_COMPOSITION:
            return ContentTime(ClockKind.BPM, time_ms) if time_ms is not None else None
    return None


_RFC3339 = re.compile(rb"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII)


def _rfc3339_ms(text: bytes) -> int | None:
    """Return the milliseconds since 1970 of a time as in RFC 3339."""
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    year, month, day, hours, minutes, seconds = (int(part) for part in found.groups()[:6])
    milliseconds = int((found[7] or b"").ljust(3, b"0")[:3])
    zone = 0
    if found[8]:
        zone = (int(found[9]) * 60 + int(found[10])) * (-1 if found[8] == b"-" else 1)
    midnight = _date_ms(year, month, day)
    time = _time_of_day(hours, minutes, min(seconds, 59), milliseconds)  # a leap second has number 60
    return None if midnight is None or time is None else midnight + time - zone * 60_000


def _date_ms(year: int, month: int, day: int) -> int | None:
    try:
        return (dt.date(year, month, day) - dt.date(1970, 1, 1)).days * DAY_MS
    except ValueError:
        return None


def _av1_time(payload: bytes, position: int, end: int) -> ContentTime | None:
    """Find a time in the metadata OBUs of a temporal unit (AV1 sections 5.3 and 5.8)."""
    for _ in range(_MAX_UNITS):
        if position >= end:
            return None
        head = payload[position]
        position += 2 if head & 4 else 1
        size = end - position
        if head & 2:
            size, position = _leb128(payload, position, end)
        stop = position + size
        if size < 0 or stop > end:
            return None
        if head >> 3 & 15 == _AV1_METADATA:
            kind, start = _leb128(payload, position, stop)
            data = payload[start : min(stop, start + _MAX_BYTES)]
            found = None
            if kind in _AV1_PRIVATE:
                found = _user_data_time(data)
            elif kind == _AV1_TIMECODE:
                found = _timecode(BitReader(data), skipped=0, frame_bits=9)
            if found is not None:
                return found
        position = stop
    return None


def _leb128(payload: bytes, position: int, end: int) -> tuple[int, int]:
    """Return a number (AV1 section 4.10.5) and the offset after it; -1 if it is truncated or has more than eight bytes."""
    number = 0
    for shift in range(0, 56, 7):
        if position >= end:
            break
        byte = payload[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
    return -1, position


# Data messages ------------------------------------------------------------------------------------------------------------

_NAMES = (b"onFI", b"onTimecode", b"onTimeCode", b"onTextData")
_NAME_BYTES = 64
_LIMITS = AmfLimits(depth=4, values=64, string_bytes=_MAX_BYTES, total_bytes=_MAX_BYTES)
_DATE = re.compile(r"(\d{1,4})[-/.](\d{1,2})[-/.](\d{1,4})", re.ASCII)
_TIME = re.compile(r"(\d{1,2}):(\d{2}):(\d{2})(?:\.(\d{1,6})|[:;](\d{1,3}))?", re.ASCII)


def data_time(payload: bytes) -> ContentTime | None:
    """Find a time in a data message: onFI with ``sd`` and ``st``, onTimecode, or onTextData with a time as its whole text.

    Args:
        payload: The payload of a data message, in AMF0.
    """
    head = payload[:_NAME_BYTES]
    if len(payload) > _MAX_BYTES or not any(name in head for name in _NAMES):
        return None
    try:
        values = amf0.decode_all(payload, limits=_LIMITS, lenient=True)
    except (AmfError, LimitExceeded):
        return None
    if values[:1] == ["@setDataFrame"]:
        values = values[1:]
    if len(values) < 2 or not isinstance(values[0], str):
        return None
    name, value = values[0].lower(), values[1]
    members = value if isinstance(value, dict) else {"": value}
    if name == "onfi":
        return _on_fi_time(_text(members, "sd", "date"), _text(members, "st", "time"), _text(members, "tc", "timecode"))
    text = _text(members, "", "timecode", "tc", "text", "time", "value")
    if name == "ontextdata":
        time_ms = _rfc3339_ms(text.encode(errors="replace"))
        if time_ms is not None:
            return ContentTime(ClockKind.TEXT, time_ms)
    time_ms = _clock_ms(text)
    return None if time_ms is None else ContentTime(ClockKind.DATA_TIMECODE, time_ms)


def _text(members: Mapping[Any, object], *names: str) -> str:
    """Return the first text under one of the names."""
    for name in names:
        value = members.get(name)
        if isinstance(value, str):
            return value.strip()
    return ""


def _on_fi_time(date: str, time: str, timecode: str) -> ContentTime | None:
    found, time_ms = _DATE.fullmatch(date), _clock_ms(time)
    if found is not None and time_ms is not None:
        first, month, last = (int(part) for part in found.groups())
        year_first, year_last = len(found[1]) == 4, len(found[3]) == 4
        midnight_ms = _date_ms(first, month, last) if year_first else _date_ms(last, month, first)
        if year_first is not year_last and midnight_ms is not None:
            return ContentTime(ClockKind.ON_FI, midnight_ms + time_ms)
    time_ms = _clock_ms(timecode)
    return None if time_ms is None else ContentTime(ClockKind.DATA_TIMECODE, time_ms)


def _clock_ms(text: str) -> int | None:
    """Return the milliseconds of ``hh:mm:ss``, ``hh:mm:ss.mmm``, or ``hh:mm:ss:00``, a timecode of a whole second."""
    found = _TIME.fullmatch(text)
    if found is None or int(found[5] or 0):
        return None
    return _time_of_day(int(found[1]), int(found[2]), int(found[3]), int((found[4] or "").ljust(3, "0")[:3]))


# The clock of a source ----------------------------------------------------------------------------------------------------

_SAMPLES, _LEAST_SAMPLES = 9, 2
_MAX_SPREAD_MS = 100
_WRAP_SLACK_MS = 3_600_000


class ContentClock:
    """The clocks in the content of one source, compared with its timestamps."""

    def __init__(self) -> None:
        self._offsets: dict[ClockKind, deque[int]] = {}

    def note(self, timestamp_ms: int, time: ContentTime) -> None:
        """Take note of a time.

        Args:
            timestamp_ms: The timestamp of the message, modulo 2**32.
            time: What was found in it.
        """
        offsets = self._offsets.setdefault(time.kind, deque(maxlen=_SAMPLES))
        offset = time.time_ms - timestamp_ms
        for wrap in (_WRAP, DAY_MS) if offsets and time.kind.wraps else (_WRAP,) if offsets else ():
            # The offset stays the same when the timestamp or the time of day wraps.
            jump = offset - offsets[-1]
            if abs(abs(jump) - wrap) < _WRAP_SLACK_MS:
                offset -= wrap if jump > 0 else -wrap
        offsets.append(offset)

    def shift(self, by_ms: int) -> None:
        """Take note that all timestamps are later by *by_ms* from now on, those of the past, too."""
        for offsets in self._offsets.values():
            moved = [offset - by_ms for offset in offsets]
            offsets.clear()
            offsets.extend(moved)

    def offset_of(self, kind: ClockKind) -> int | None:
        """Return the time of the content minus the timestamp, in milliseconds: the median of the newest samples.

        None if there are fewer than two samples of that kind, or if they differ by more than 100 ms.
        """
        offsets = self._offsets.get(kind, ())
        if len(offsets) < _LEAST_SAMPLES or max(offsets) - min(offsets) > _MAX_SPREAD_MS:
            return None
        return round(statistics.median(offsets))

    @property
    def kind(self) -> ClockKind | None:
        """The best kind of clock that is known and steady: the first one of `ClockKind`."""
        return next((kind for kind in ClockKind if self.offset_of(kind) is not None), None)

    @property
    def offset_ms(self) -> int | None:
        """`offset_of` the best `kind`; None without one."""
        kind = self.kind
        return None if kind is None else self.offset_of(kind)


def timestamp_shift_ms(first: ContentClock, second: ContentClock, near_ms: int = 0) -> int | None:
    """Return the timestamps of the second source minus those of the first, for the same content.

    Args:
        first, second: The clocks of the sources.
        near_ms: An estimate, such as the difference of the newest timestamps: they are modulo 2**32, and a time of day begins
            again each 24 hours.

    Returns:
        The possible value that is nearest to *near_ms*; None if the sources have no steady clock of one kind.
    """
    for kind in ClockKind:
        one, other = first.offset_of(kind), second.offset_of(kind)
        if one is not None and other is not None:
            wrap = DAY_MS if kind.wraps else _WRAP
            return near_ms + (one - other - near_ms + wrap // 2) % wrap - wrap // 2
    return None
