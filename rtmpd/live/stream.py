"""A live stream: one name, at most one publisher at a time, any number of players.

Takes the publisher's messages, recognises what they are, puts them on one timeline and appends them to the wire log, which the
fan-out delivers; and to the logs of variants, for players that can't take them as they are. Imports the fan-out (and so gevent)
and everything below; knows no session.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from rtmpd.live.fanout import Fanout
from rtmpd.live.flvlog import FlvLog
from rtmpd.live.headers import HeaderCache
from rtmpd.live.stats import Vitals
from rtmpd.live.variant import Variant
from rtmpd.live.wirelog import WireLog
from rtmpd.media.rewrite import AUDIO_FEATURES, VIDEO_FEATURES, Content
from rtmpd.media.tags import Kind, audio_kind, video_info, video_kind
from rtmpd.media.timestamps import Timeline
from rtmpd.protocol import amf0, status
from rtmpd.protocol.command import amf0_body, encode_command
from rtmpd.protocol.message import CSID_AUDIO, CSID_CONTROL, CSID_DATA, CSID_STATUS, CSID_VIDEO, MessageType, UserControlType

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.config.model import ApplicationConfig
    from rtmpd.live.flvlog import FlvReader
    from rtmpd.media.audio_codecs import AudioConfig
    from rtmpd.media.rewrite import Rewrite
    from rtmpd.media.video_codecs import VideoConfig
    from rtmpd.protocol.chunk import RawMessage

__all__ = ["Decisions", "Stream", "StreamPlayer", "stream_status"]

_FRAME, _KEYFRAME, _HEADER, _METADATA = int(Kind.FRAME), int(Kind.KEYFRAME), int(Kind.HEADER), int(Kind.METADATA)
_TRACK_KEYFRAME, _OTHER = int(Kind.TRACK_KEYFRAME), int(Kind.OTHER)
_AUDIO, _VIDEO, _DATA = int(MessageType.AUDIO), int(MessageType.VIDEO), int(MessageType.DATA_AMF0)

_SET_DATA_FRAME = amf0.encode("@setDataFrame")
_CLEAR_DATA_FRAME = amf0.encode("@clearDataFrame")
_ON_METADATA = amf0.encode("onMetaData")

_REVISIONS = 4
"""How often the content may change between two sweeps before players are only moved by those."""

_UNUSED_S = 5.0
"""How long a variant is kept for its next player."""

_AUDIO_JOIN_MS = 1000
"""Without video any frame will do to start at; late joiners get up to this much at once, to fill their buffer."""


def stream_status(code: str, description: str) -> bytes:
    """Encode the payload of an onStatus command message."""
    return encode_command("onStatus", 0, None, status.info(code, description))


Decisions = dict[int, tuple[str, Fanout]]
"""By the id of what players said they take: why such a player is refused, if it is, or who delivers to it."""


class StreamPlayer(Protocol):
    """What a stream asks of those who play it."""

    def revise(self, decisions: Decisions) -> None:
        """Look again which variant it is to get: there is news of what is published, or of the options. Must not wait.

        Args:
            decisions: What has been decided for others in this go.
        """


class Stream:
    """One live stream.

    Args:
        key: ``app/name``.
        options: The application's options.
        chunk_size: The server's outbound chunk size, bytes.
        on_codec: Called with what a track is encoded with, when that is known and when it changes.

    Attributes:
        publisher: Whoever publishes now, or None.
        ended_at: When the last publisher went away (monotonic, seconds); None while one is live or before the first.
        players: Whoever plays it, or is about to; kept by the hub.
        active_at: When a sweep last saw that messages had come (monotonic, seconds).
        announced: Whether players have been told that the stream is live, and not yet that it has ended.
        bytes_in, audio_messages, video_messages, data_messages: Received from publishers.
        video_others: Those of the video messages that are no frames: headers and the like.
        begun_at: Where in the wire log the publisher's messages begin: a position.
        via: The ids of the servers that it has come through, if relays brought it.
        vitals: What is known of it: codecs, keyframes, rates.
        content: What of it not every player can take.
        variants: The stream as such players get it, by how it is rewritten.
        flvlog: The stream as FLV tags; None while nobody reads it.
        created_at: Monotonic, seconds.
    """

    def __init__(
        self,
        key: str,
        options: ApplicationConfig,
        chunk_size: int,
        on_codec: Callable[[Stream, VideoConfig | AudioConfig], None] | None = None,
    ) -> None:
        self.key = key
        self.options = options
        self.publisher: object | None = None
        self.players: set[StreamPlayer] = set()
        self.ended_at: float | None = None
        self.active_at = 0.0
        self.announced = False
        self.wirelog = WireLog(chunk_size, options.limits.gop_cache_limit_bytes)
        self.fanout = Fanout(self.wirelog, options, key)
        self.headers = HeaderCache()
        self.timeline = Timeline()
        self.bytes_in = 0
        self.audio_messages = 0
        self.video_messages = 0
        self.data_messages = 0
        self.video_others = 0
        self.begun_at = 0
        self.via: tuple[str, ...] = ()
        self.vitals = Vitals(lambda found: on_codec(self, found) if on_codec is not None else None)
        self.content = Content()
        self.variants: dict[Rewrite, Variant] = {}
        self.flvlog: FlvLog | None = None
        self.created_at = time.monotonic()
        self._swept_bytes = 0
        self._revisions = 0  # since the last sweep
        self._gop_cache = options.live.gop_cache
        self._join_track: int | None = None
        self._has_video = False

    # The publisher's life ----------------------------------------------------------------------------------------------

    def begin(self, publisher: object) -> None:
        """Let *publisher* be the one whose messages come. Players that were kept go on with it."""
        self.publisher = publisher
        self.active_at = time.monotonic()
        if self.ended_at is not None and self.fanout.has_cursors:
            self.timeline.restart(int((time.monotonic() - self.ended_at) * 1000))
        else:
            # Nobody is on the old timeline: the new one starts afresh, and nobody may join on the old one.
            self.timeline = Timeline()
            self._forget_join_points()
        self.ended_at = None
        self.headers.reset()
        self._set_headers()
        self.content = Content()
        self._join_track = None
        self._has_video = False
        self.vitals.reset()
        if not self.announced:
            self.announced = True
            self._tell_event(UserControlType.STREAM_BEGIN)
            self._tell_status(status.PLAY_PUBLISH_NOTIFY, f"{self.key} is now published.")
        self.begun_at = self.wirelog.position

    def pause(self) -> None:
        """Take leave of the publisher; players are kept until it is back or `end` is called."""
        self.publisher = None
        self.ended_at = time.monotonic()
        if self.options.live.publisher_grace_s:
            self._tell_event(UserControlType.STREAM_DRY)

    def end(self) -> None:
        """Tell players that the stream has ended. They may stay and wait for the next publisher."""
        if not self.announced:
            return
        self.announced = False
        self._tell_status(status.PLAY_UNPUBLISH_NOTIFY, f"{self.key} is now unpublished.")
        self._tell_event(UserControlType.STREAM_EOF)
        self._forget_join_points()
        for wirelog in self._wirelogs():
            wirelog.newest_timestamp = -1
        self.headers.reset()
        self._set_headers()

    def _tell_event(self, event: UserControlType) -> None:
        self._tell(CSID_CONTROL, MessageType.USER_CONTROL, int(event).to_bytes(2, "big") + (1).to_bytes(4, "big"), 0)

    def _tell_status(self, code: str, description: str) -> None:
        self._tell(CSID_STATUS, MessageType.COMMAND_AMF0, stream_status(code, description), 1)

    def _tell(self, csid: int, type_id: int, payload: bytes, message_stream_id: int) -> None:
        """Send players a notice: through the log, so that it comes behind the last frame; directly to those not in it.

        At timestamp 0: OBS reads no extended one on type 3 chunks of a command.
        """
        for fanout in self.fanouts:
            if fanout.active:
                fanout.wirelog.append(csid, type_id, 0, payload, message_stream_id=message_stream_id)
                fanout.wake()
                fanout.tell_waiting(csid, type_id, payload)

    # Variants ----------------------------------------------------------------------------------------------------------

    @property
    def fanouts(self) -> list[Fanout]:
        """Every fan-out: that of the stream as it is published, and those of its variants."""
        return [self.fanout, *(variant.fanout for variant in self.variants.values())]

    def fanout_for(self, wanted: Rewrite) -> Fanout:
        """Return the fan-out for a player.

        Args:
            wanted: What is to be rewritten for it, whatever the stream's content. What it need not be is left out.
        """
        rewrite = self.content.narrow(wanted)
        if rewrite.identity:
            return self.fanout
        variant = self.variants.get(rewrite)
        if variant is None:
            variant = self.variants[rewrite] = Variant(self.key, rewrite, self.options, self.wirelog)
            variant.fanout.tally = self.fanout.tally
        return variant.fanout

    def _drop_unused(self, now_s: float) -> None:
        """Let go of variants that nobody has played for a while: to make one again and again would be dear."""
        for rewrite, variant in list(self.variants.items()):
            if len(variant.fanout):
                variant.unused_since = None
            elif variant.unused_since is None:
                variant.unused_since = now_s
            elif now_s - variant.unused_since >= _UNUSED_S:
                del self.variants[rewrite]
                variant.close()

    def revise(self) -> None:
        """Let every player look again what it is to get. They may be thousands: what holds for one holds for all like it."""
        decisions: Decisions = {}
        for player in list(self.players):
            player.revise(decisions)

    def _set_headers(self) -> None:
        """Take the headers that are kept now for those of the logs."""
        self.wirelog.headers = self.headers.current
        for variant in self.variants.values():
            variant.set_headers(self.headers.current)

    def _wirelogs(self) -> list[WireLog]:
        return [fanout.wirelog for fanout in self.fanouts]

    def _forget_join_points(self) -> None:
        for wirelog in self._wirelogs():
            wirelog.forget_join_point()

    def _append_to_variants(self, csid: int, type_id: int, timestamp: int, payload: bytes, joins: bool) -> None:
        for variant in self.variants.values():
            variant.append(csid, type_id, timestamp, payload, joins)

    # Media -------------------------------------------------------------------------------------------------------------

    def video(self, timestamp: int, payload: bytes) -> None:
        """Take a video message. The hot path: twice per frame per stream, never per player."""
        kind: int = video_kind(payload)
        self.video_messages += 1
        self.bytes_in += len(payload)
        timeline = self.timeline
        joins = False
        if payload and (kind == _HEADER or (VIDEO_FEATURES[payload[0]] and VIDEO_FEATURES[payload[0]] & ~self.content.known)):
            self._look_at_video(payload)
        if kind == _FRAME:
            self._has_video = True
            timestamp = timeline.stamp(timeline.video, timestamp)
        elif kind in (_KEYFRAME, _TRACK_KEYFRAME):
            self._has_video = True
            timestamp = timeline.stamp(timeline.video, timestamp)
            if self._joins_at(kind, payload):
                kind = _KEYFRAME
                joins = True
                self.vitals.keyframe(timestamp, payload, time.monotonic())
            else:
                kind = _FRAME
        else:
            self.video_others += 1
            if not payload:
                return
            timestamp = timeline.beside(timestamp)
            if kind in (_HEADER, _METADATA):
                self._has_video = True
                self.headers.add_video(payload)
                self._set_headers()
                self.vitals.video_header(payload)
        self.wirelog.append(CSID_VIDEO, _VIDEO, timestamp, payload, joins and (self._gop_cache or self.fanout.anyone_waits))
        if self.variants:
            self._append_to_variants(CSID_VIDEO, _VIDEO, timestamp, payload, joins)
        if self.flvlog is not None:
            self.flvlog.append(_VIDEO, timestamp, payload, kind)
        fanout = self.fanout
        if fanout.active:
            fanout.wake()

    def _joins_at(self, kind: int, payload: bytes) -> bool:
        """Tell whether players may start at this keyframe: with several tracks, only at those of the lowest."""
        track = 0 if kind == _KEYFRAME else min(video_info(payload).tracks)
        if self._join_track is None or track < self._join_track:
            self._join_track = track
        return track == self._join_track

    def _look_at_video(self, payload: bytes) -> None:
        ordinary = self.content.ordinary
        if self.content.look_at_video(payload):
            self._content_changed(ordinary)

    def _look_at_audio(self, payload: bytes) -> None:
        ordinary = self.content.ordinary
        if self.content.look_at_audio(payload):
            self._content_changed(ordinary)

    def _content_changed(self, was_ordinary: bool) -> None:
        if not self.variants and was_ordinary and self.content.ordinary:
            return
        # To move thousands of players is dear, and a publisher could ask for it with every message.
        self._revisions += 1
        if self._revisions <= _REVISIONS:
            self.revise()

    def audio(self, timestamp: int, payload: bytes) -> None:
        """Take an audio message. An empty one (silence, as Wowza sends it) is ignored."""
        kind: int = audio_kind(payload)
        self.audio_messages += 1
        self.bytes_in += len(payload)
        joins = False
        if payload and (kind == _HEADER or (AUDIO_FEATURES[payload[0]] and AUDIO_FEATURES[payload[0]] & ~self.content.known)):
            self._look_at_audio(payload)
        if kind == _FRAME:
            timeline = self.timeline
            timestamp = timeline.stamp(timeline.audio, timestamp)
            if not self._has_video and (self._gop_cache or self.fanout.anyone_waits or self.variants):
                wirelog = self.wirelog
                age_ms = (timestamp - wirelog.join_timestamp) & 0xFFFFFFFF
                joins = wirelog.join_page is None or age_ms >= _AUDIO_JOIN_MS
            if self.vitals.asks_audio:
                self.vitals.audio_frame(payload)
        else:
            if not payload:
                return
            timestamp = self.timeline.beside(timestamp)
            if kind == _HEADER:
                self.headers.add_audio(payload)
                self._set_headers()
                self.vitals.audio_header(payload)
        self.wirelog.append(CSID_AUDIO, _AUDIO, timestamp, payload, joins and (self._gop_cache or self.fanout.anyone_waits))
        if self.variants:
            self._append_to_variants(CSID_AUDIO, _AUDIO, timestamp, payload, joins)
        if self.flvlog is not None:
            self.flvlog.append(_AUDIO, timestamp, payload, kind)
        fanout = self.fanout
        if fanout.active:
            fanout.wake()

    def data(self, message: RawMessage) -> None:
        """Take a data message: metadata is kept for late joiners, and all but the publisher's own envelope is passed on."""
        payload = amf0_body(message)
        self.data_messages += 1
        self.bytes_in += len(payload)
        if payload.startswith(_SET_DATA_FRAME):
            payload = payload[len(_SET_DATA_FRAME) :]
        elif payload.startswith(_CLEAR_DATA_FRAME):
            self.headers.set_metadata(None)
            self._set_headers()
            return
        # FFmpeg's timecode messages are four bytes, 00 xx xx xx, and no AMF.
        if len(payload) <= 4:
            return
        timestamp = self.timeline.beside(message.timestamp)
        if payload.startswith(_ON_METADATA):
            # FFmpeg takes onMetaData at any other time for a subtitle.
            timestamp = 0
            self.headers.set_metadata(payload)
            self._set_headers()
        self.wirelog.append(CSID_DATA, _DATA, timestamp, payload)
        if self.variants:
            self._append_to_variants(CSID_DATA, _DATA, timestamp, payload, joins=False)
        if self.flvlog is not None:
            self.flvlog.append(_DATA, timestamp, payload, _METADATA if payload.startswith(_ON_METADATA) else _OTHER)
        if self.fanout.active:
            self.fanout.wake()

    # Readers of FLV ----------------------------------------------------------------------------------------------------

    def read_flv(self, reader: FlvReader) -> FlvLog:
        """Let *reader* read the stream as FLV tags from now on; it begins at the log's end."""
        if self.flvlog is None:
            self.flvlog = FlvLog()
        self.flvlog.readers.append(reader)
        self.flvlog.look()
        return self.flvlog

    def leave_flv(self, reader: FlvReader) -> None:
        """Take leave of a reader; harmless if it has left. The last one takes the log with it."""
        if self.flvlog is not None and reader in self.flvlog.readers:
            self.flvlog.readers.remove(reader)
            self.flvlog.look()
            if not self.flvlog.readers:
                self.flvlog = None

    # Upkeep ------------------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nobody publishes, watches, or is waited for."""
        return self.publisher is None and not self.announced and not self.players

    def sweep(self, now_s: float, write_timeout_s: float) -> None:
        """Notice whether the publisher is active, end the stream when its grace is over, look after slow players."""
        if self.bytes_in != self._swept_bytes:
            self._swept_bytes = self.bytes_in
            self.active_at = now_s
        self.vitals.sweep(now_s, self.bytes_in, self.video_messages - self.video_others)
        if self.ended_at is not None and self.announced and now_s - self.ended_at >= self.options.live.publisher_grace_s:
            self.end()
        if self._revisions > _REVISIONS:
            self.revise()
        self._revisions = 0
        self._drop_unused(now_s)
        for fanout in self.fanouts:
            fanout.sweep(now_s, write_timeout_s)

    def reload(self, options: ApplicationConfig) -> None:
        """Go on under other options."""
        news = options.live != self.options.live
        self.options = options
        self.fanout.reload(options)
        self.wirelog.cache_limit_bytes = options.limits.gop_cache_limit_bytes
        self._gop_cache = options.live.gop_cache
        if not options.live.gop_cache:
            self._forget_join_points()
        for variant in self.variants.values():
            variant.reload(options)
        if news:
            self.revise()

    def flush(self, limit_s: float) -> None:
        """Wait until players have had what the logs hold, those that keep up, at most *limit_s*."""
        deadline = time.monotonic() + limit_s
        for fanout in self.fanouts:
            fanout.flush(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Let go of everything."""
        self._forget_join_points()
        for fanout in self.fanouts:
            fanout.close()
        self.vitals.close()
