"""Metadata that agree with what players get."""

import pytest

from rtmpd.media.rewrite import AS_PUBLISHED, Rewrite
from rtmpd.media.rewritten_metadata import rewritten_metadata
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import EcmaArray

HVC1, AVC1, MP4A, MP3 = (float(int.from_bytes(code, "big")) for code in (b"hvc1", b"avc1", b"mp4a", b".mp3"))
OLD = Rewrite(old_video=True, old_audio=True)


def metadata(**members):
    return amf0.encode("onMetaData", EcmaArray(width=1280.0, **members))


@pytest.mark.parametrize(
    ("rewrite", "published", "expected"),
    [
        (Rewrite(hevc="codec12"), {"videocodecid": HVC1}, {"videocodecid": 12.0}),
        (Rewrite(hevc="hvc1"), {"videocodecid": 12.0}, {"videocodecid": HVC1}),
        (OLD, {"videocodecid": AVC1, "audiocodecid": MP4A}, {"videocodecid": 7.0, "audiocodecid": 10.0}),
        (OLD, {"audiocodecid": MP3}, {"audiocodecid": 2.0}),
        (Rewrite(default_track=True), {"audioTrackIdInfoMap": {"1": {"channels": 2.0}}, "videoTrackIdInfoMap": {}}, {}),
        (Rewrite(mute=True), {"audiocodecid": MP4A, "videocodecid": 7.0}, {"videocodecid": 7.0}),
    ],
)
def test_what_players_choose_a_decoder_by(rewrite, published, expected):
    assert rewritten_metadata(metadata(**published), rewrite) == metadata(**expected)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        metadata(),
        metadata(videocodecid=7.0, audiocodecid=10.0),
        metadata(videocodecid="hvc1", audiocodecid=None),
        metadata()[:-4],
        amf0.encode("onMetaData"),
        amf0.encode("onMetaData", "text"),
        amf0.encode("onCuePoint", {"videocodecid": AVC1}),
    ],
)
@pytest.mark.parametrize("rewrite", [AS_PUBLISHED, OLD, Rewrite(default_track=True, hevc="codec12")])
def test_what_need_not_or_can_not_be_changed_stays_the_same_object(payload, rewrite):
    assert rewritten_metadata(payload, rewrite) is payload
