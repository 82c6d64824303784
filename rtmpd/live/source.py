"""A source: what feeds a stream. An RTMP publish makes one; whatever else can feed a stream makes its own.

A source examines its messages (kinds, headers, codecs, rates) and hands them to its stream, which delivers them. Streams, hub,
events, logs and metrics know only sources, and never the connection behind one.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rtmpd.live.framing import AUDIO, DATA, VIDEO
from rtmpd.live.grant import NOTHING_GRANTED
from rtmpd.live.headers import MAX_HEADER_BYTES, HeaderCache
from rtmpd.live.stats import Stats
from rtmpd.media.metadata import made_metadata, sound_metadata
from rtmpd.media.rewrite import AUDIO_FEATURES, VIDEO_FEATURES, Content
from rtmpd.media.tags import Kind, audio_kind, video_info, video_kind
from rtmpd.media.timestamps import Timeline
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.protocol import amf0
from rtmpd.util.speed import accelerated, completes

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from rtmpd.config.model import LimitsConfig
    from rtmpd.live.framing import Headers
    from rtmpd.live.grant import Grant
    from rtmpd.media.audio_codecs import AudioConfig
    from rtmpd.media.video_codecs import VideoConfig

_FRAME, _KEYFRAME, _HEADER, _METADATA = int(Kind.FRAME), int(Kind.KEYFRAME), int(Kind.HEADER), int(Kind.METADATA)
_TRACK_KEYFRAME, _OTHER = int(Kind.TRACK_KEYFRAME), int(Kind.OTHER)
_SET_DATA_FRAME = amf0.encode("@setDataFrame")
_CLEAR_DATA_FRAME = amf0.encode("@clearDataFrame")
_ON_METADATA = amf0.encode("onMetaData")
_SHORTEST_DATA = 5
_RATES_AFTER_S = 6.0  # rates are averages of some seconds
_DISCONNECT = "disconnect"


class SourceKind(enum.StrEnum):
    """What kind of source it is."""

    RTMP = "rtmp"
    """A client publishes by RTMP or RTMPS."""
    SLATE = "slate"
    """A file is played while there is no publisher."""


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """The identity of a source.

    Attributes:
        kind: How the source comes in.
        peer: Its address with the port.
        user: The name that the client has logged in with; empty: none.
        agent: What the client calls itself, fit to be shown; empty: nothing.
        via: The ids of the servers that the stream has come through, if relays brought it.
        connection_id: The number of its connection in the log; empty if it has none.
    """

    kind: SourceKind
    peer: str
    user: str = ""
    agent: str = ""
    via: tuple[str, ...] = ()
    connection_id: str = ""

    @property
    def address(self) -> str:
        """Its address without the port."""
        return self.peer.rpartition(":")[0]


class Received(NamedTuple):
    """Totals of what sources have sent.

    Attributes:
        bytes: Of message payloads.
        audio, video, data: Messages of each type.
        frames: The video messages that are frames, and no headers or the like.
    """

    bytes: int = 0
    audio: int = 0
    video: int = 0
    data: int = 0
    frames: int = 0

    def plus(self, other: Received) -> Received:
        """Return the sums."""
        return Received(*map(sum, zip(self, other, strict=True)))


class SourceStream(Protocol):
    """What a source asks of its stream."""

    @property
    def append(self) -> Callable[[int, int, bytes, int], None]:
        """Appends a frame to all outputs: `deliver`, or the ``append`` of the only output's log, which saves two calls.

        What it raises goes to `append_failed`.
        """

    def append_failed(self, error: Exception) -> None:
        """End the output whose log has raised an exception."""

    def deliver(self, type_id: int, timestamp: int, payload: bytes, kind: int, join_point: bool = False) -> None:
        """Append a message to all outputs."""

    def audio_joins_at(self, timestamp: int) -> bool:
        """Return whether new readers of a stream without video may start at an audio frame."""

    def set_headers(self, headers: Headers) -> None:
        """Set the headers in force from now on."""

    def content_changed(self, ordinary: bool) -> None:
        """Decide again what each player gets: the content has changed.

        Args:
            ordinary: Every player can take it, before the change and after.
        """


class BitrateWatch:
    """Decides when a source that exceeds its bitrate limit is acted on. Called by the sweep, never for a message. Pure."""

    __slots__ = ("_above_since_s", "_action_taken")

    def __init__(self) -> None:
        self._above_since_s: float | None = None
        self._action_taken = ""

    def is_due(self, now_s: float, bitrate: float, *, limit: int, grace_s: float, action: str) -> bool:
        """Return whether to act now: once, and again after the bitrate was below the limit, or if *action* has changed.

        Args:
            now_s: The monotonic clock.
            bitrate: What the source sends, bits per second, over the last seconds.
            limit: What it may send, bits per second; 0: anything.
            grace_s: How long it may exceed the limit.
            action: What is to be done.
        """
        if not limit or bitrate <= limit:
            self._above_since_s = None
            self._action_taken = ""
            return False
        if self._above_since_s is None:
            self._above_since_s = now_s
        if now_s - self._above_since_s < grace_s or self._action_taken == action:
            return False
        self._action_taken = action
        return True


@accelerated
class SourceState:
    """What an ordinary frame changes of a source, and what it needs.

    Attributes:
        stats: Codecs, keyframes and rates.
        wanted: The stream has readers; see `set_wanted`.
        bytes_in, audio_messages, video_messages: Totals; see `Received`.
    """

    __slots__ = ("_has_video", "_join_track", "_stream", "_timeline", "audio_messages", "bytes_in", "stats", "video_messages")

    stats: Stats
    bytes_in: int
    audio_messages: int
    video_messages: int
    _has_video: bool
    _join_track: int | None
    _stream: SourceStream | None
    _timeline: Timeline


class Source(SourceState):
    """One source of one stream.

    Args:
        info: Its identity.
        log: For lines about the source.
        on_stop: Ends what feeds it: called by `stop` with the reason. It must not wait.
        on_wanted: Called with True when a first reader of the stream comes, and with False when the stream has no readers: its
            messages may then come late.
        grant: What it was granted besides the options.

    Attributes:
        info, grant: Likewise.
        number: Counts the server's publishes; given by the hub.
        started_at: When it was attached to its stream (monotonic, seconds).
        active_at: When a sweep last saw new messages (monotonic, seconds).
        headers: Its metadata and sequence headers.
        content: What of its messages not every player can take.
        data_messages: A total; see `Received`.
        wanted: The stream has readers; see `set_wanted`.
    """

    __slots__ = (
        "_bitrate_watch",
        "_makes_metadata",
        "_on_stop",
        "_on_wanted",
        "_rates_from_s",
        "_swept_bytes",
        "_video_others",
        "active_at",
        "content",
        "data_messages",
        "grant",
        "headers",
        "info",
        "log",
        "number",
        "started_at",
        "wanted",
    )

    def __init__(
        self,
        info: SourceInfo,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
        on_stop: Callable[[CloseReason], None],
        on_wanted: Callable[[bool], None] = lambda wanted: None,
        grant: Grant = NOTHING_GRANTED,
    ) -> None:
        self.info = info
        self.grant = grant
        self.log = log
        self.number = 0
        self.started_at = self.active_at = time.monotonic()
        self.headers = HeaderCache()
        self.content = Content()
        self.stats = Stats(lambda found: None)
        self.bytes_in = 0
        self.audio_messages = 0
        self.video_messages = 0
        self.data_messages = 0
        self._on_stop = on_stop
        self._on_wanted = on_wanted
        self.wanted = True
        self._stream = None
        self._timeline = Timeline()
        self._join_track = None
        self._has_video = False
        self._makes_metadata = False  # those of the publisher can't be decoded
        self._rates_from_s = 0.0
        self._swept_bytes = 0
        self._video_others = 0  # video messages that are no frames
        self._bitrate_watch = BitrateWatch()

    # Its life ----------------------------------------------------------------------------------------------------------

    def attach(self, stream: SourceStream, on_codec: Callable[[VideoConfig | AudioConfig], None]) -> None:
        """Feed a stream from now on.

        Args:
            stream: Takes the messages.
            on_codec: Called with what a track is encoded with, when that is known and when it changes.
        """
        self._stream = stream

        def codec_found(found: VideoConfig | AudioConfig) -> None:
            on_codec(found)
            self._make_metadata()

        self.stats = Stats(codec_found)
        self.started_at = self.active_at = time.monotonic()

    def feed(self, stream: SourceStream) -> None:
        """Hand the messages to another recipient from now on."""
        self._stream = stream

    def feeds(self, stream: SourceStream) -> bool:
        """Return whether the messages go there."""
        return self._stream is stream

    def detach(self) -> None:
        """Stop feeding the stream. Messages that come later are discarded."""
        self._stream = None
        # Drops the reference to the stream, whose pages would stay until the garbage collector runs.
        self.stats.close()

    def stop(self, reason: CloseReason) -> None:
        """End the source: its publish ends, and its connection is closed as the reason requires. Must not wait."""
        self._on_stop(reason)

    def set_wanted(self, wanted: bool) -> None:
        """Take note of whether the stream has readers."""
        if wanted is not self.wanted:
            self.wanted = wanted
            self._on_wanted(wanted)

    @property
    def timeline(self) -> Timeline:
        """Maps its timestamps: to a timeline of its own at first, which is shifted to the stream's when it becomes active."""
        return self._timeline

    @property
    def has_video(self) -> bool:
        """Whether it has sent a video frame or header."""
        return self._has_video

    @property
    def video_frames(self) -> int:
        """The video messages that are frames."""
        return self.video_messages - self._video_others

    @property
    def received(self) -> Received:
        """Its totals."""
        return Received(self.bytes_in, self.audio_messages, self.video_messages, self.data_messages, self.video_frames)

    # Messages ----------------------------------------------------------------------------------------------------------

    @completes(SourceState)
    def video(self, timestamp: int, payload: bytes) -> None:
        """Take a video message. The hot path: once per message, never per player."""
        stream = self._stream
        if stream is None:
            return
        kind: int = video_kind(payload)
        self.video_messages += 1
        self.bytes_in += len(payload)
        if kind == _FRAME and not VIDEO_FEATURES[payload[0]]:
            self._has_video = True
            timestamp = self._timeline.stamp(self._timeline.video, timestamp)
            try:
                stream.append(VIDEO, timestamp, payload, kind)
            except Exception as error:  # noqa: BLE001 - logged by the stream
                stream.append_failed(error)
        elif payload:
            self._special_video(stream, timestamp, payload, kind)
        else:
            self._video_others += 1

    def _special_video(self, stream: SourceStream, timestamp: int, payload: bytes, kind: int) -> None:
        """Take a video message that is no ordinary frame."""
        joins = False
        if kind == _HEADER or VIDEO_FEATURES[payload[0]] & ~self.content.known:
            ordinary = self.content.ordinary
            if self.content.look_at_video(payload):
                stream.content_changed(ordinary and self.content.ordinary)
        if kind in (_FRAME, _KEYFRAME, _TRACK_KEYFRAME):
            self._has_video = True
            timestamp = self._timeline.stamp(self._timeline.video, timestamp)
            if kind != _FRAME:
                joins = self.joins_at(kind, payload)
                kind = _KEYFRAME if joins else _FRAME
                if joins:
                    self.stats.keyframe(timestamp, payload, time.monotonic())
        else:
            self._video_others += 1
            timestamp = self._timeline.beside(timestamp)
            if kind in (_HEADER, _METADATA):
                self._has_video = True
                self.headers.add_video(payload)
                stream.set_headers(self.headers.current)
                self.stats.video_header(payload)
                # A header without a size is not reported.
                self._make_metadata()
        stream.deliver(VIDEO, timestamp, payload, kind, joins)

    def joins_at(self, kind: int, payload: bytes) -> bool:
        """Return whether readers may start at this keyframe: with several tracks, only at those of the lowest."""
        track = 0 if kind == _KEYFRAME else min(video_info(payload).tracks)
        if self._join_track is None or track < self._join_track:
            self._join_track = track
        return track == self._join_track

    @completes(SourceState)
    def audio(self, timestamp: int, payload: bytes) -> None:
        """Take an audio message. An empty one (silence, as Wowza sends it) is discarded."""
        stream = self._stream
        if stream is None:
            return
        kind: int = audio_kind(payload)
        self.audio_messages += 1
        self.bytes_in += len(payload)
        if kind == _FRAME and self._has_video and not AUDIO_FEATURES[payload[0]] and not self.stats.asks_audio:
            timestamp = self._timeline.stamp(self._timeline.audio, timestamp)
            try:
                stream.append(AUDIO, timestamp, payload, kind)
            except Exception as error:  # noqa: BLE001 - logged by the stream
                stream.append_failed(error)
        elif payload:
            self._special_audio(stream, timestamp, payload, kind)

    def _special_audio(self, stream: SourceStream, timestamp: int, payload: bytes, kind: int) -> None:
        """Take an audio message that is no ordinary frame of a stream with video."""
        joins = False
        if kind == _HEADER or (AUDIO_FEATURES[payload[0]] and AUDIO_FEATURES[payload[0]] & ~self.content.known):
            ordinary = self.content.ordinary
            if self.content.look_at_audio(payload):
                stream.content_changed(ordinary and self.content.ordinary)
        if kind == _FRAME:
            timestamp = self._timeline.stamp(self._timeline.audio, timestamp)
            if not self._has_video:
                joins = stream.audio_joins_at(timestamp)
            if self.stats.asks_audio:
                self.stats.audio_frame(payload)
        else:
            timestamp = self._timeline.beside(timestamp)
            if kind == _HEADER:
                self.headers.add_audio(payload)
                stream.set_headers(self.headers.current)
                self.stats.audio_header(payload)
        stream.deliver(AUDIO, timestamp, payload, kind, joins)

    def data(self, timestamp: int, payload: bytes) -> None:
        """Take the AMF0 body of a data message: metadata is cached, the publisher's envelope is removed."""
        stream = self._stream
        if stream is None:
            return
        self.data_messages += 1
        self.bytes_in += len(payload)
        if payload.startswith(_SET_DATA_FRAME):
            payload = payload[len(_SET_DATA_FRAME) :]
        elif payload.startswith(_CLEAR_DATA_FRAME):
            self._makes_metadata = False
            self.headers.set_metadata(None)
            stream.set_headers(self.headers.current)
            return
        # FFmpeg's timecode messages are four bytes, 00 xx xx xx, and no AMF.
        if len(payload) < _SHORTEST_DATA:
            return
        timestamp, kind = self._timeline.beside(timestamp), _OTHER
        if payload.startswith(_ON_METADATA):
            # FFmpeg takes onMetaData at any other time for a subtitle.
            timestamp, kind = 0, _METADATA
            self._set_metadata(stream, payload)
        stream.deliver(DATA, timestamp, payload, kind)

    def _set_metadata(self, stream: SourceStream, payload: bytes) -> None:
        """Keep metadata for late joiners: encoded again, or made from what is known if they can't be decoded."""
        if len(payload) > MAX_HEADER_BYTES:
            self.headers.refused += 1
            return
        sound = sound_metadata(payload)
        if sound is None and not self._makes_metadata:
            self.log.info("the publisher's onMetaData can't be decoded: late players get one made from its codecs and rates")
            self._rates_from_s = time.monotonic() + _RATES_AFTER_S
        self._makes_metadata = sound is None
        if sound is None:
            self._make_metadata()
        else:
            self.headers.set_metadata(sound)
            stream.set_headers(self.headers.current)

    def _make_metadata(self, *, rates: bool = False) -> None:
        """Replace metadata that can't be decoded by what is known by now."""
        if self._makes_metadata and self._stream is not None:
            stats = self.stats
            fps, bitrate = (stats.fps, stats.bitrate) if rates else (0.0, 0.0)
            self.headers.set_metadata(made_metadata(stats.video, stats.audio, fps=fps, bitrate=bitrate))
            self._stream.set_headers(self.headers.current)

    # Upkeep ------------------------------------------------------------------------------------------------------------

    def check_activity(self, now_s: float) -> None:
        """Take note of whether there are new messages."""
        if self.bytes_in != self._swept_bytes:
            self._swept_bytes = self.bytes_in
            self.active_at = now_s

    def sweep(self, now_s: float, limits: LimitsConfig, key: str) -> bool:
        """Update activity and rates, and enforce the bitrate limit; return whether the limit was acted on."""
        self.check_activity(now_s)
        self.stats.sweep(now_s, self.bytes_in, self.video_frames)
        if self._makes_metadata and self._rates_from_s and now_s >= self._rates_from_s:
            self._rates_from_s = 0.0
            self._make_metadata(rates=True)
        limit, action, bitrate = limits.publish_bitrate_limit, limits.publish_bitrate_action, self.stats.bitrate
        grace_s = limits.publish_bitrate_grace_s
        if not self._bitrate_watch.is_due(now_s, bitrate, limit=limit, grace_s=grace_s, action=action):
            return False
        self.log.warning(
            "%s: the publisher sends %.0f kbit/s, and has sent more than %g kbit/s for %g s (publish_bitrate_limit): %s",
            key,
            bitrate / 1000,
            limit / 1000,
            grace_s,
            "it is disconnected" if action == _DISCONNECT else "it may continue",
        )
        if action == _DISCONNECT:
            text = f"The bitrate is too high: {bitrate / 1000:.0f} kbit/s, and {limit / 1000:g} kbit/s are allowed."
            self.stop(CloseReason(CloseKind.EXPELLED, "publish_bitrate_limit", client_text=text))
        return True
