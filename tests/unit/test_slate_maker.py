"""The form of a slate: as near as possible to a recording, within what encoders can do."""

from __future__ import annotations

from fractions import Fraction

import pytest

from rtmpd.errors import SlateError
from rtmpd.media.audio_codecs import AudioConfig
from rtmpd.media.slate import Parameters
from rtmpd.media.video_codecs import VideoConfig
from rtmpd.slate_maker import DEFAULT_FORM, arguments, form_of

AVC = VideoConfig("h264", "High 10", "4.1", 1921, 1080, 10, "4:2:0")
AAC = AudioConfig("aac", "LC", 44100, 1)


def test_a_form_has_the_parameters_of_a_recording():
    form = form_of(Parameters(AVC, AAC, 60000 / 1001, True))
    assert (form.video.profile, form.video.level, form.video.bit_depth) == ("High 10", "4.1", 10)
    assert (form.video.width, form.video.height) == (1922, 1080)
    assert (form.rate, form.b_frames, form.audio) == (Fraction(60000, 1001), True, AAC)
    words = arguments(form, "picture.png", "slate.mp4")
    for pair in ("-profile:v high10", "-level:v 4.1", "-g 120", "-bf 2", "-ar 44100", "-ac 1"):
        name, value = pair.split()
        assert words[words.index(name) + 1] == value
    assert "format=yuv420p10le[video]" in words[words.index("-filter_complex") + 1]


def test_what_is_not_known_is_as_by_default():
    form = form_of(Parameters(VideoConfig("h264"), AudioConfig("aac"), 0, False))
    assert (form.video.width, form.video.height, form.video.bit_depth) == (1280, 720, 8)
    assert (form.rate, form.audio.sample_rate_hz, form.audio.channels) == (DEFAULT_FORM.rate, 48000, 2)
    assert form_of(Parameters(AVC, None, 12.5, False)).rate == Fraction(25, 2)
    assert "anullsrc" not in " ".join(arguments(form_of(Parameters(AVC, None, 25, False)), "a", "b"))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (Parameters(None, AAC, 0, False), "expected a recording with video"),
        (Parameters(VideoConfig("av1"), AAC, 25, False), "in H.264 or HEVC, found av1"),
        (Parameters(VideoConfig("h264", width=60000, height=2), AAC, 25, False), "found 60000x2"),
        (Parameters(AVC, AudioConfig("speex"), 25, False), "found speex"),
        (Parameters(AVC, AudioConfig("aac", "LC", 48000, 12), 25, False), "1 to 6 or 8 channels, found 12"),
    ],
)
def test_what_can_not_be_made_is_refused(parameters, message):
    with pytest.raises(SlateError, match=message):
        form_of(parameters)
