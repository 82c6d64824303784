"""Publishers and clients of HLS: a hub with synthetic publishers, whose packager is checked by clients after each step."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import TYPE_CHECKING

import gevent

from rtmpd.config.loader import load_text
from rtmpd.hub import Hub
from rtmpd.live.grant import Grant
from rtmpd.live.source import Source, SourceInfo, SourceKind
from rtmpd.media.flv import AUDIO, SCRIPT, VIDEO
from rtmpd.media.hls.playlist import media_playlist, part_name, segment_name
from rtmpd.services.hls.packagers import Packagers
from rtmpd.util.stream_key import StreamKey
from tests.fmp4_files import box, boxes, samples
from tests.hls_rules import Client, Media, Violation
from tests.hls_stream import media_of
from tests.media_files import split_flv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rtmpd.services.hls.packaged import Packaged
    from rtmpd.services.hls.packager import Packager

KEY = "live/show"
LIMIT_S = 10.0

# What libx264 and ffmpeg's AAC encoder send for 1280x720 at 30 frames/s, and for 64x48; 44100 Hz and 48000 Hz.
AVC_HEADER = bytes.fromhex("17000000000142c01fffe100176742c01fda014016ec0440000003004000000f03c60ca801000468ce0fc8")
SMALL_HEADER = bytes.fromhex("17000000000142c00affe100176742c00ada110fbbe10000030001000003003c0f1226a001000468ce0fc8")
AAC_HEADER = bytes.fromhex("af00120856e500")
AAC_48_HEADER = bytes.fromhex("af00119056e500")
AUDIO_STEP_MS = 1024 / 44.1


class Publisher:
    """Publishes H.264 and AAC.

    Args:
        show: The stream.
        fps, gop: Frames of video per second; 0: no video. The frames from one keyframe to the next.
        audio: Whether there is audio.
        starts_ms: The first timestamp.
        key_bytes, frame_bytes: The sizes of frames.
        composition: Returns the composition time of a frame by its number, milliseconds.
        jitter: Returns how much later than regular a frame by its number is, milliseconds.
        header: The sequence header of video.

    Attributes:
        time_ms: Up to where it has sent frames.
        stopped: Whether it was stopped by the hub.
    """

    def __init__(
        self,
        show: Show,
        *,
        fps: float = 30,
        gop: int = 60,
        audio: bool = True,
        starts_ms: int = 0,
        key_bytes: int = 4000,
        frame_bytes: int = 800,
        composition: Callable[[int], int] = lambda number: 0,
        jitter: Callable[[int], int] = lambda number: 0,
        header: bytes = AVC_HEADER,
        sends_headers: bool = True,
    ) -> None:
        self.show, self.fps, self.gop, self.audio = show, fps, gop, audio
        self.starts_ms = starts_ms
        self.key_bytes, self.frame_bytes = key_bytes, frame_bytes
        self.composition, self.jitter = composition, jitter
        self.time_ms = 0.0
        self.stopped = False
        self._frames = self._sounds = 0
        grant = Grant(StreamKey(KEY))
        info = SourceInfo(SourceKind.RTMP, "192.0.2.1:50000")
        self.source = Source(info, logging.getLogger("test.source"), self._stop, grant=grant)
        self.stream = show.hub.publish(KEY, self.source)
        if sends_headers:
            if fps:
                self.source.video(starts_ms, header)
            if audio:
                self.source.audio(starts_ms, AAC_HEADER)

    def _stop(self, reason: object) -> None:
        self.stopped = True
        self.leave()

    def leave(self, *, lost: bool = True) -> None:
        """End the publish: the connection is lost, or the publisher ends it in an orderly way."""
        self.show.hub.unpublish(self.stream, self.source, lost=lost, reason="it left")

    def send(self, until_ms: float) -> None:
        """Send all frames before a time, milliseconds since its beginning."""
        while True:
            video_ms = self._frames * 1000 / self.fps if self.fps else until_ms
            audio_ms = self._sounds * AUDIO_STEP_MS if self.audio else until_ms
            if min(video_ms, audio_ms) >= until_ms:
                break
            if video_ms <= audio_ms:
                self.video(round(video_ms) + self.jitter(self._frames), key=bool(self.gop) and self._frames % self.gop == 0)
                self._frames += 1
            else:
                self.source.audio(self.starts_ms + round(audio_ms), b"\xaf\x01" + bytes(160))
                self._sounds += 1
        self.time_ms = until_ms

    def video(self, time_ms: int, *, key: bool = False) -> None:
        """Send a frame of video."""
        head = (b"\x17" if key else b"\x27") + b"\x01" + (self.composition(self._frames) & 0xFFFFFF).to_bytes(3, "big")
        self.source.video(self.starts_ms + time_ms, head + bytes(self.key_bytes if key else self.frame_bytes))


class Tape:
    """Publishes an FLV file again and again.

    Args:
        show: The stream.
        flv: The file.
        length_ms: After this time it begins again.
    """

    def __init__(self, show: Show, flv: bytes, length_ms: int = 1000) -> None:
        self._tags, self._length_ms = split_flv(flv), length_ms
        self.time_ms = 0.0
        self._next = 0
        info = SourceInfo(SourceKind.RTMP, "192.0.2.1:50000")
        self.source = Source(info, logging.getLogger("test.source"), lambda reason: None, grant=Grant(StreamKey(KEY)))
        self._hub, self.stream = show.hub, show.hub.publish(KEY, self.source)

    def send(self, until_ms: float) -> None:
        """Send all messages before a time."""
        while True:
            round_, index = divmod(self._next, len(self._tags))
            type_id, tag_ms, payload = self._tags[index]
            if round_ and (type_id == SCRIPT or payload[1] == 0):
                self._next += 1
                continue
            time_ms = round_ * self._length_ms + tag_ms
            if time_ms >= until_ms:
                break
            self._next += 1
            method = {AUDIO: self.source.audio, VIDEO: self.source.video, SCRIPT: self.source.data}[type_id]
            method(time_ms, payload)
        self.time_ms = until_ms

    def leave(self, *, lost: bool = True) -> None:
        """End the publish."""
        self._hub.unpublish(self.stream, self.source, lost=lost, reason="it left")


class Viewer:
    """Loads the playlist of one rendition after each step, with all its media.

    Attributes:
        media: The fragments, by name.
        inits: The initialization segments, by id.
        violations: What is against the rules.
        playlists: All that it has loaded.
    """

    def __init__(self, packaged: Packaged, *, has_keyframes: bool = True) -> None:
        self.packaged = packaged
        self.media: dict[str, bytes] = {}
        self.inits: dict[str, bytes] = {}
        self.violations: list[Violation] = []
        self.playlists: list[str] = []
        self._found: dict[str, Media] = {}
        self._client = Client(self._found, has_keyframes=has_keyframes)
        self._longest_ms = 0.0
        self._newest: list[str] = []

    def load(self) -> None:
        """Load the playlist, and what it lists for the first time."""
        packaged, window = self.packaged, self.packaged.window
        text = media_playlist(window)
        if self.playlists and text == self.playlists[-1]:
            return
        self.playlists.append(text)
        for segment in [*window.listed, *([window.open] if window.open else [])]:
            number = segment.sequence_number
            if segment_name(number) in self.media:
                continue
            init = packaged.init_segment(segment.init_id)
            assert init is not None
            self.inits[segment.init_id] = init
            tracks = b"vide" in init, _audio_khz(init)
            for index in range(len(segment.parts)):
                name = part_name(number, index)
                if name not in self.media:
                    self._take(name, packaged.part_data(number, index), *tracks)
            if segment is not window.open:
                data = packaged.segment_data(number)
                assert data is not None or segment.is_gap
                self._take(segment_name(number), b"".join(data or ()), *tracks)
        self.violations += self._client.load(text)

    def _take(self, name: str, data: bytes | None, has_video: bool, audio_khz: float) -> None:
        if not data:
            return
        self.media[name] = data
        found = []
        for sample in samples(data, numbered=False):
            scale = 90 if sample.track == 1 else audio_khz
            found.append(
                (9 if sample.track == 1 else 8, sample.time / scale, sample.duration / scale, sample.sync and sample.track == 1)
            )
        made = media_of(found, has_video=has_video, longest_ms=self._longest_ms)
        if not made.frames:
            self._found[name] = made
            return
        self._longest_ms = float(made.longest_ms)
        self._found[name] = made = made._replace(longest_ms=made.longest_ms + Decimal(2))
        # A frame may extend from what comes before into this, where its duration is known.
        for each in self._newest:
            before = self._found[each]
            self._found[each] = before._replace(longest_ms=max(before.longest_ms, made.longest_ms))
        self._newest = [*self._newest[-1:], name]

    @property
    def segments(self) -> list[tuple[str, bytes]]:
        """The complete segments that it has loaded, in order."""
        return [(name, data) for name, data in self.media.items() if name.startswith("seg")]


class Show:
    """A hub with the packagers of its streams, and viewers of one stream.

    Args:
        ini: The configuration.
        has_keyframes: Whether each segment is to begin with a keyframe.
    """

    def __init__(self, ini: str = "", *, has_keyframes: bool = True) -> None:
        self.hub = Hub(load_text(ini))
        self.packagers = Packagers(self.hub, Packagers.select(self.hub.config))
        self.hub.parts.append(self.packagers)
        self.packagers.start()
        self.has_keyframes = has_keyframes
        self.viewers: dict[str, Viewer] = {}
        self.packager: Packager | None = None

    def find(self) -> Packager:
        """Ask for the stream as a viewer does."""
        found = self.packagers.find(KEY)
        assert found is not None
        found.touch()
        self.packager = found
        return found

    def step(self) -> None:
        """Let the packager read all, and the viewers load the playlists that have changed."""
        packager = self.packager
        assert packager is not None
        packager.wake()
        # It gives way between two slices of a batch.
        for _ in range(2):
            gevent.sleep(1e-6)
        for packaged in packager.renditions:
            viewer = self.viewers.get(packaged.name)
            if viewer is None or viewer.packaged is not packaged:
                viewer = self.viewers[packaged.name] = Viewer(packaged, has_keyframes=self.has_keyframes)
            viewer.load()

    def run(self, until_ms: float, *publishers: Publisher | Tape, step_ms: float = 250) -> None:
        """Let publishers send up to a time, each since its own beginning, in steps."""
        while any(each.time_ms < until_ms for each in publishers):
            for each in publishers:
                each.send(min(until_ms, each.time_ms + step_ms))
            self.step()

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds."""
        with gevent.Timeout(LIMIT_S):
            while not condition():
                gevent.sleep(0.002)

    @property
    def main(self) -> Viewer:
        """The viewer of the default rendition."""
        return self.viewers["main"]

    def end(self, *publishers: Publisher | Tape) -> None:
        """End the publishes, and let the viewers see the end."""
        for each in publishers:
            each.leave(lost=False)
        packager = self.packager
        assert packager is not None
        self.wait(lambda: packager.ended)
        self.step()

    def check(self) -> None:
        """Fail if any playlist was against the rules."""
        found = {name: viewer.violations for name, viewer in self.viewers.items() if viewer.violations}
        assert not found, found

    def close(self) -> None:
        """End everything."""
        self.packagers.stop(LIMIT_S)
        for stream in list(self.hub.streams.values()):
            stream.ingest.stop_slate()
            stream.end()
            stream.close()


def _audio_khz(init: bytes) -> float:
    """The sample rate of the audio track of an initialization segment, kHz; 0 without one."""
    moov = box(init, b"moov")
    for kind, start, end in boxes(moov):
        if kind == b"trak" and box(moov[start:end], b"mdia", b"hdlr")[8:12] == b"soun":
            return int.from_bytes(box(moov[start:end], b"mdia", b"mdhd")[12:16], "big") / 1000
    return 0.0


def durations(viewer: Viewer) -> Iterable[float]:
    """The durations of the segments of the newest playlist, seconds."""
    lines = viewer.playlists[-1].splitlines()
    return [float(line[8:].rstrip(",")) for line in lines if line.startswith("#EXTINF:")]
