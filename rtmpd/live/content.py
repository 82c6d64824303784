"""What of a stream not every player can take: several tracks, ModEx, which form HEVC has, which FourCCs.

Pure: looked at for headers and for the first odd packets only, never for ordinary frames. Imports media.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING

from rtmpd.media.rewrite import AS_PUBLISHED, Feature, Rewrite
from rtmpd.media.tags import Kind, audio_info, video_info

if TYPE_CHECKING:
    from rtmpd.media.tags import TagInfo

__all__ = ["OLD_AUDIO", "Content"]

_ENHANCED_VIDEO = 0x80
_ENHANCED_AUDIO = 0x90
_LEGACY_HEVC = 12
OLD_AUDIO = ("mp4a", ".mp3")
"""FourCCs of audio that has a header without FourCCs too."""
_DESCRIBING = (Kind.HEADER, Kind.FRAME, Kind.KEYFRAME, Kind.TRACK_KEYFRAME)


@dataclass(slots=True)
class Content:
    """What a publisher has sent so far, as far as players may have trouble with it.

    Attributes:
        multitrack: There was a message with a multitrack header.
        mod_ex: There was one with a ModEx prefix.
        hevc: The form of HEVC in the first video track: ``hvc1``, ``codec12``, or empty if it is something else.
        video_track, audio_track: The lowest track of each, which is the one that players without multitrack get.
        known: What there is no need to look for any more: bits of `rtmpd.media.rewrite.Feature`.
        video_four_cc, audio_four_cc: Of these tracks; empty: they have the old tag headers, or nothing has come.
    """

    multitrack: bool = False
    mod_ex: bool = False
    hevc: str = ""
    video_track: int = -1
    audio_track: int = -1
    video_four_cc: str = ""
    audio_four_cc: str = ""
    known: int = 0

    @property
    def ordinary(self) -> bool:
        """Whether there is nothing that anybody could have trouble with."""
        others = self.multitrack or self.mod_ex or self.video_track > 0 or self.audio_track > 0
        return not (others or self.hevc or self.video_four_cc or self.audio_four_cc)

    def look_at_video(self, payload: bytes) -> bool:
        """Take note of a video message; return whether it brought news."""
        info = video_info(payload)
        before = astuple(self)
        self._look(info)
        track = min(info.tracks)
        if info.kind in _DESCRIBING and (self.video_track < 0 or track <= self.video_track):
            self.video_track = track
            self.video_four_cc = info.four_cc.decode("latin-1")
            legacy = payload[0] < _ENHANCED_VIDEO
            self.hevc = "codec12" if legacy and payload[0] & 15 == _LEGACY_HEVC else "hvc1" if info.four_cc == b"hvc1" else ""
            self.known = self.known & ~Feature.HEVC_CODEC12 | Feature.HEVC_CODEC12 * (self.hevc == "codec12")
        return astuple(self) != before

    def look_at_audio(self, payload: bytes) -> bool:
        """Take note of an audio message; return whether it brought news."""
        info = audio_info(payload)
        before = astuple(self)
        self._look(info)
        track = min(info.tracks)
        if info.kind in _DESCRIBING and (self.audio_track < 0 or track <= self.audio_track):
            self.audio_track = track
            self.audio_four_cc = info.four_cc.decode("latin-1")
        return astuple(self) != before

    def _look(self, info: TagInfo) -> None:
        self.multitrack = self.multitrack or info.multitrack
        self.mod_ex = self.mod_ex or info.mod_ex
        self.known |= Feature.MULTITRACK * info.multitrack | Feature.MOD_EX * info.mod_ex

    def narrow(self, wanted: Rewrite) -> Rewrite:
        """Return what there is to rewrite for a player, of what it would want at the most.

        Players that differ only in what does not matter for this content are alike then.
        """
        video_track, audio_track = max(self.video_track, 0), max(self.audio_track, 0)
        # A ModEx prefix may hide a multitrack header.
        one = wanted.default_track and (self.multitrack or self.mod_ex or video_track + audio_track > 0)
        same_hevc = wanted.hevc in ("published", self.hevc) or not self.hevc
        return replace(
            AS_PUBLISHED,
            default_track=one,
            video_track=video_track if one else 0,
            audio_track=audio_track if one else 0,
            hevc="published" if same_hevc else wanted.hevc,
            mod_ex=wanted.mod_ex or not self.mod_ex,
            old_video=wanted.old_video and self.video_four_cc == "avc1",
            old_audio=wanted.old_audio and self.audio_four_cc in OLD_AUDIO,
            mute=wanted.mute and bool(self.audio_four_cc),
        )
