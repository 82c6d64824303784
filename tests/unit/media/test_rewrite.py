"""Rewritten messages: of messages written by hand, and of files of several tracks that ffmpeg muxes."""

from __future__ import annotations

import subprocess

import pytest

from rtmpd.media.rewrite import AS_PUBLISHED, AUDIO_FEATURES, VIDEO_FEATURES, Content, Feature, Rewrite, rewritten_metadata
from rtmpd.media.tags import Kind, video_info
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import EcmaArray
from tests.unit.live.fakes import AAC_HEADER, AVC_HEADER, frame, keyframe

FLAT = Rewrite(default_track=True)
BARE = Rewrite(mod_ex=False)
TO_HVC1 = Rewrite(hevc="hvc1")
TO_CODEC12 = Rewrite(hevc="codec12")
OLD = Rewrite(old_video=True, old_audio=True)
EVERYTHING = Rewrite(default_track=True, hevc="codec12", mod_ex=False)

NANO = "02 000001 0"  # before it 7 as the packet type, and behind it the packet type


def data(*parts: str | bytes) -> bytes:
    return b"".join(bytes.fromhex(part) if isinstance(part, str) else part for part in parts)


def same(rewrite: Rewrite, payload: bytes) -> bool:
    return rewrite.video(payload) is payload


# Nothing to do ----------------------------------------------------------------------------------------------------------

PLAIN_VIDEO = [
    data("17 00 000000 0164001f"),
    data("27 01 000010 aabb"),
    data("17 02 000000"),
    data("22 aabb"),
    data("91", b"av01", "aabb"),
    data("90", b"avc1", "0164001f"),
    data("94", b"vp09", "020009"),
    data("d4", b"av01", "020009"),
    data("d1 00"),
    data("57 00"),
    b"",
    b"\x91",
]
PLAIN_AUDIO = [
    data("af 00 1210"),
    data("2e ffFB"),
    data("91", b"Opus", "aa"),
    data("94", b"fLaC", "0106 0000003f"),
    b"",
    b"\x90",
]


def test_as_published_changes_nothing():
    assert Rewrite() == AS_PUBLISHED
    assert AS_PUBLISHED.identity
    for payload in [*PLAIN_VIDEO, data("96 00", b"avc1", "01 aa"), data("97", f"{NANO}1", b"av01"), data("1c 00 000000 01")]:
        assert same(AS_PUBLISHED, payload)
        assert AS_PUBLISHED.audio(payload) is payload


def test_messages_that_every_player_can_take_stay_the_same_object():
    for rewrite in (FLAT, BARE, TO_HVC1, TO_CODEC12, EVERYTHING):
        assert not rewrite.identity
        for payload in PLAIN_VIDEO:
            assert rewrite.video(payload) is payload, payload.hex()
        for payload in PLAIN_AUDIO:
            assert rewrite.audio(payload) is payload, payload.hex()


def test_a_rewrite_is_a_key():
    assert {FLAT: 1, Rewrite(default_track=True): 2} == {FLAT: 2}
    assert not any(Rewrite(hevc=form).identity for form in ("hvc1", "codec12"))
    assert not any(rewrite.identity for rewrite in (OLD, Rewrite(old_video=True), Rewrite(mute=True)))


# One track --------------------------------------------------------------------------------------------------------------

FRAMES = {0: b"\1\2\3", 1: b"", 7: b"\xff" * 300}


def one_track(first: int, packet: int, four_cc: bytes, track: int, body: bytes) -> bytes:
    return bytes((first, packet)) + four_cc + bytes((track,)) + body


def many_tracks(first: int, packet: int, four_cc: bytes, bodies: dict[int, bytes]) -> bytes:
    tracks = [bytes((track,)) + len(body).to_bytes(3, "big") + body for track, body in bodies.items()]
    return bytes((first, 0x10 | packet)) + four_cc + b"".join(tracks)


def many_codecs(first: int, packet: int, bodies: dict[int, tuple[bytes, bytes]]) -> bytes:
    tracks = [four_cc + bytes((track,)) + len(body).to_bytes(3, "big") + body for track, (four_cc, body) in bodies.items()]
    return bytes((first, 0x20 | packet)) + b"".join(tracks)


@pytest.mark.parametrize("packet", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("frame_type", [1, 2])
def test_video_of_one_track_becomes_plain(packet, frame_type):
    first = 0x80 | frame_type << 4
    payload = one_track(first | 6, packet, b"hvc1", 0, b"abc")
    assert FLAT.video(payload) == bytes((first | packet,)) + b"hvc1abc"
    assert Rewrite(default_track=True, video_track=1).video(payload) is None
    assert BARE.video(payload) is payload


@pytest.mark.parametrize("packet", [0, 1, 2, 4])
def test_audio_of_one_track_becomes_plain(packet):
    payload = one_track(0x95, packet, b"Opus", 3, b"abc")
    assert Rewrite(default_track=True, audio_track=3).audio(payload) == bytes((0x90 | packet,)) + b"Opusabc"
    assert FLAT.audio(payload) is None
    assert AS_PUBLISHED.audio(payload) is payload


@pytest.mark.parametrize("track", FRAMES)
def test_a_track_is_extracted_from_many(track):
    rewrite = Rewrite(default_track=True, video_track=track, audio_track=track)
    assert rewrite.video(many_tracks(0x96, 1, b"hvc1", FRAMES)) == b"\x91hvc1" + FRAMES[track]
    assert rewrite.audio(many_tracks(0x95, 1, b"Opus", FRAMES)) == b"\x91Opus" + FRAMES[track]


def test_a_track_is_extracted_from_many_with_their_own_codecs():
    payload = many_codecs(0x96, 0, {2: (b"av01", b"one"), 0: (b"hvc1", b"two"), 1: (b"avc1", b"three")})
    assert FLAT.video(payload) == b"\x90hvc1two"
    assert Rewrite(default_track=True, video_track=2).video(payload) == b"\x90av01one"
    assert Rewrite(default_track=True, video_track=1).video(payload) == b"\x90avc1three"
    assert Rewrite(default_track=True, video_track=3).video(payload) is None
    assert FLAT.audio(many_codecs(0x95, 1, {1: (b"fLaC", b"one"), 0: (b"mp4a", b"two")})) == b"\x91mp4atwo"


def test_the_frame_type_is_that_of_the_message():
    assert FLAT.video(many_tracks(0xA6, 3, b"avc1", {0: b"x"})) == b"\xa3avc1x"


def test_of_two_tracks_with_one_id_the_first_counts():
    assert FLAT.video(data("96 11", b"av01", "00 000001 aa", "00 000001 bb")) == data("91", b"av01", "aa")


def test_plain_messages_are_of_track_0():
    other = Rewrite(default_track=True, video_track=1, audio_track=1)
    assert other.video(data("17 01 000000 aa")) is None
    assert other.video(data("91", b"av01", "aa")) is None
    assert other.audio(data("af 01 aa")) is None
    assert other.audio(data("91", b"Opus", "aa")) is None
    for command in (data("57 00"), data("d1 00")):
        assert other.video(command) is command
    assert other.audio(b"") == b""  # silence is of no track


def test_multichannel_configuration_and_metadata_of_a_track():
    assert FLAT.audio(one_track(0x95, 4, b"fLaC", 0, data("01 06 0000003f"))) == data("94", b"fLaC", "01 06 0000003f")
    assert FLAT.video(one_track(0x96, 4, b"hvc1", 0, b"\2\0\x09colorInfo")) == b"\x94hvc1\2\0\x09colorInfo"


@pytest.mark.parametrize(
    "payload",
    [
        data("96"),
        data("96 10"),
        data("96 10", b"hvc"),
        data("96 10", b"hvc1"),
        data("96 00", b"hvc1"),
        data("96 10", b"hvc1", "00 0000"),
        data("96 10", b"hvc1", "00 000002 aa"),  # the track is truncated
        data("96 10", b"hvc1", "01 ffffff aa", "00 000000"),  # behind one that is
        data("96 20", b"hvc1"),
        data("96 20", b"hvc1", "00"),
        data("96 16", b"hvc1", "00 000001 aa"),  # multitrack in multitrack
        data("96 17", b"hvc1", "00 000001 aa"),  # ModEx in multitrack
    ],
)
def test_malformed_multitrack_messages_are_left_out(payload):
    assert FLAT.video(payload) is None
    assert same(BARE, payload)


# ModEx ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mod_ex", [NANO, f"{NANO}7 00 ff 1", "ff 0001 aabb 0", "00 aa f"])
def test_mod_ex_is_removed(mod_ex):
    assert BARE.video(data("97", f"{mod_ex}1", b"av01", "aabb")) == data("91", b"av01", "aabb")
    assert BARE.audio(data("97", f"{mod_ex}1", b"Opus", "aabb")) == data("91", b"Opus", "aabb")


def test_mod_ex_stays_for_players_that_support_it():
    payload = data("97", f"{NANO}1", b"av01", "aabb")
    for rewrite in (FLAT, TO_HVC1, TO_CODEC12):
        assert rewrite.video(payload) is payload
        assert rewrite.audio(payload) is payload


def test_mod_ex_before_multitrack():
    video = data("a7", f"{NANO}6 11", b"av01", "01 000001 aa", "00 000001 bb")
    audio = data("97", f"{NANO}5 01", b"Opus", "00 bb")
    assert FLAT.video(video) == data("a7", f"{NANO}1", b"av01", "bb")
    assert FLAT.audio(audio) == data("97", f"{NANO}1", b"Opus", "bb")
    assert BARE.video(video) == data("a6 11", b"av01", "01 000001 aa", "00 000001 bb")
    assert BARE.audio(audio) == data("95 01", b"Opus", "00 bb")
    assert EVERYTHING.video(video) == data("a1", b"av01", "bb")
    assert EVERYTHING.audio(audio) == data("91", b"Opus", "bb")


def test_a_command_behind_mod_ex():
    assert EVERYTHING.video(data("d7", f"{NANO}1 00")) == data("d1 00")


@pytest.mark.parametrize("rest", ["", "00", "00 aa", "02 0001", "ff 00", "ff 0100 aa", "00 aa 07"])
def test_truncated_mod_ex_is_only_sent_to_players_that_support_it(rest):
    payload = data("97", rest)
    assert BARE.video(payload) is BARE.audio(payload) is None
    assert FLAT.video(payload) is FLAT.audio(payload) is payload
    assert TO_CODEC12.video(payload) is payload


# HEVC -------------------------------------------------------------------------------------------------------------------

RECORD = bytes.fromhex("0101600000009000000000001ef000fcfdf8f8")
FORMS = [
    # what is published with codec id 12, and with the FourCC
    (data("1c 00 000000", RECORD), data("90", b"hvc1", RECORD)),
    (data("1c 01 000050 aabb"), data("91", b"hvc1", "000050 aabb")),
    (data("2c 01 ffffd8 aabb"), data("a1", b"hvc1", "ffffd8 aabb")),  # the time is signed
    (data("2c 01 000000 aabb"), data("a3", b"hvc1", "aabb")),
    (data("3c 01 000000 aabb"), data("b3", b"hvc1", "aabb")),
    (data("1c 02 000000"), data("92", b"hvc1")),
]


@pytest.mark.parametrize(("codec12", "hvc1"), FORMS)
def test_hevc_in_both_forms(codec12, hvc1):
    assert TO_HVC1.video(codec12) == hvc1
    assert TO_CODEC12.video(hvc1) == codec12
    for rewrite, payload in ((TO_HVC1, hvc1), (TO_CODEC12, codec12), (AS_PUBLISHED, hvc1), (AS_PUBLISHED, codec12)):
        assert rewrite.video(payload) is payload


def test_coded_frames_without_an_offset_are_the_same_to_codec_id_12():
    assert TO_CODEC12.video(data("91", b"hvc1", "000000 aabb")) == data("1c 01 000000 aabb")


@pytest.mark.parametrize("packet", [4, 5, 8, 15])
def test_packets_without_a_codec_id_12_form_are_left_out(packet):
    assert TO_CODEC12.video(data(bytes((0x90 | packet,)), b"hvc1", "aabb")) is None
    assert TO_CODEC12.video(data("d4", b"hvc1", "aabb")) is None


@pytest.mark.parametrize(
    "payload",
    [
        data("1c"),
        data("1c 00"),
        data("1c 01 0000"),
        data("1c 03 000000 aa"),  # no such packet
        data("5c 00 000000 aa"),  # a command
        data("17 00 000000 aa"),
        data("91", b"hvc"),
        data("91", b"hvc1"),
        data("91", b"hvc1", "0000"),
        data("91", b"hev1", "000000 aa"),
        data("91", b"avc1", "000000 aa"),
        data("d1 00"),
        data("96 00", b"hvc1", "00 aa"),
    ],
)
def test_truncated_messages_and_other_codecs_stay(payload):
    assert TO_HVC1.video(payload) is payload
    assert TO_CODEC12.video(payload) is payload


def test_mod_ex_is_removed_for_codec_id_12():
    assert TO_CODEC12.video(data("97", f"{NANO}1", b"hvc1", "000050 aabb")) == data("1c 01 000050 aabb")


def test_all_rewritings_at_once():
    payload = data("97", f"{NANO}6 20", b"av01", "01 000002 aabb", b"hvc1", "00 000003 ccddee")
    assert EVERYTHING.video(payload) == data("1c 00 000000 ccddee")
    assert EVERYTHING.video(one_track(0x96, 4, b"hvc1", 0, b"x")) is None


def test_a_command_before_the_multitrack_header_is_a_command():
    # As the specification reads it: only a Metadata packet without a multitrack header may have frame type 5.
    payload = one_track(0xD6, 4, b"hvc1", 0, b"x")
    assert EVERYTHING.video(payload) is payload
    assert video_info(payload).kind == Kind.OTHER


# What a stream has --------------------------------------------------------------------------------------------------------


def test_features_by_the_first_byte():
    assert [i for i in range(256) if VIDEO_FEATURES[i] == Feature.MULTITRACK] == [*range(0x86, 256, 16)]
    assert [i for i in range(256) if VIDEO_FEATURES[i] == Feature.MOD_EX] == [*range(0x87, 256, 16)]
    assert [i for i in range(256) if VIDEO_FEATURES[i] == Feature.HEVC_CODEC12] == [0x0C, 0x1C, 0x2C, 0x3C, 0x4C, 0x6C, 0x7C]
    assert [i for i in range(256) if AUDIO_FEATURES[i]] == [0x95, 0x97]
    assert (AUDIO_FEATURES[0x95], AUDIO_FEATURES[0x97]) == (Feature.MULTITRACK, Feature.MOD_EX)


# The old headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("enhanced", "old"),
    [
        (b"\x90avc1record", b"\x17\0\0\0\0record"),
        (b"\x91avc1\0\0\x28data", b"\x17\1\0\0\x28data"),
        (b"\xa1avc1\xff\xff\xd8data", b"\x27\1\xff\xff\xd8data"),
        (b"\xa3avc1data", b"\x27\1\0\0\0data"),
        (b"\x92avc1", b"\x17\2\0\0\0"),
        (b"\xd4avc1colorInfo", None),
        (b"\x91hvc1\0\0\x28data", b"\x91hvc1\0\0\x28data"),
        (b"\x91avc1\0", b"\x91avc1\0"),
        (b"\x17\1\0\0\0data", b"\x17\1\0\0\0data"),
        (b"\x96\x01avc1\x01\0\0\0data", b"\x96\x01avc1\x01\0\0\0data"),
    ],
)
def test_h264_under_the_old_header(enhanced, old):
    assert OLD.video(enhanced) == old


@pytest.mark.parametrize(
    ("enhanced", "old"),
    [
        (b"\x90mp4aconfig", b"\xaf\0config"),
        (b"\x91mp4adata", b"\xaf\1data"),
        (b"\x92mp4a", None),
        (b"\x94mp4a\x01\x02", None),
        (b"\x91.mp3data", b"\x2fdata"),
        (b"\x90.mp3", None),
        (b"\x91Opusdata", b"\x91Opusdata"),
        (b"\x91mp4", b"\x91mp4"),
        (b"\xaf\1data", b"\xaf\1data"),
        (b"\x95\x01mp4a\x01data", b"\x95\x01mp4a\x01data"),
    ],
)
def test_aac_and_mp3_under_the_old_header(enhanced, old):
    assert OLD.audio(enhanced) == old


def test_the_first_track_of_several_under_the_old_header():
    rewrite = Rewrite(default_track=True, mod_ex=False, old_video=True, old_audio=True)
    assert rewrite.video(b"\x96\x01avc1\x00\0\0\x28data") == b"\x17\1\0\0\x28data"
    assert rewrite.audio(b"\x95\x01mp4a\x00data") == b"\xaf\1data"


def test_mute_leaves_out_all_audio():
    assert [payload for payload in PLAIN_AUDIO if Rewrite(mute=True).audio(payload)] == []


# Content ----------------------------------------------------------------------------------------------------------------

HVC1_HEADER = b"\x90hvc1\x01record"
CODEC12_HEADER = b"\x1c\0\0\0\0\x01record"
SECOND_TRACK = b"\x96\x00avc1\x01record"
FIRST_TRACK = b"\x96\x00av01\x00record"
NANO_FRAME = b"\xa7\x02\0\x12\x34\x01avc1\0\0\0frame"
PLAIN = Rewrite(default_track=True, mod_ex=False)


def test_an_ordinary_stream_needs_no_rewriting():
    content = Content()
    for payload in (AVC_HEADER, keyframe(), frame()):
        content.look_at_video(payload)
    content.look_at_audio(AAC_HEADER)
    assert (content.video_four_cc, content.audio_four_cc, content.hevc) == ("", "", "")
    for wanted in (AS_PUBLISHED, PLAIN, Rewrite(hevc="hvc1"), Rewrite(hevc="codec12")):
        assert content.narrow(wanted).identity


def test_a_repeated_header_changes_no_content():
    content = Content()
    assert content.look_at_video(HVC1_HEADER)
    assert not content.look_at_video(HVC1_HEADER)
    assert content.look_at_audio(b"\x90Opushead")
    assert not content.look_at_audio(b"\x90Opushead")
    assert (content.video_four_cc, content.audio_four_cc) == ("hvc1", "Opus")


@pytest.mark.parametrize(
    ("header", "form", "wanted", "rewritten"),
    [
        (HVC1_HEADER, "hvc1", "codec12", "codec12"),
        (HVC1_HEADER, "hvc1", "hvc1", "published"),
        (CODEC12_HEADER, "codec12", "hvc1", "hvc1"),
        (CODEC12_HEADER, "codec12", "codec12", "published"),
        (CODEC12_HEADER, "codec12", "published", "published"),
    ],
)
def test_hevc_is_rewritten_only_into_another_form(header, form, wanted, rewritten):
    content = Content()
    content.look_at_video(header)
    assert content.hevc == form
    assert content.narrow(Rewrite(hevc=wanted)) == Rewrite(hevc=rewritten)


def test_the_default_track_is_extracted_once_the_stream_has_several():
    content = Content()
    content.look_at_video(AVC_HEADER)
    assert content.narrow(PLAIN).identity
    assert content.look_at_video(SECOND_TRACK)
    assert content.narrow(PLAIN) == Rewrite(default_track=True)
    assert content.narrow(AS_PUBLISHED).identity


def test_the_default_track_is_the_lowest_that_came():
    content = Content()
    content.look_at_video(SECOND_TRACK)
    assert content.narrow(PLAIN) == Rewrite(default_track=True, video_track=1)
    assert content.video_four_cc == "avc1"
    content.look_at_video(FIRST_TRACK)
    assert content.narrow(PLAIN) == Rewrite(default_track=True, video_track=0)
    assert content.video_four_cc == "av01"


def test_mod_ex_is_removed_for_players_that_cannot_parse_it():
    content = Content()
    content.look_at_video(NANO_FRAME)
    assert content.narrow(Rewrite(mod_ex=False)) == Rewrite(mod_ex=False)
    assert content.narrow(AS_PUBLISHED).identity


def test_a_known_feature_changes_no_content():
    content = Content()
    assert content.known == 0
    content.look_at_video(SECOND_TRACK)
    content.look_at_video(NANO_FRAME)
    known = content.known
    assert not content.look_at_video(NANO_FRAME)
    assert content.known == known != 0


@pytest.mark.parametrize("payload", [b"", b"\x96", b"\x97\xff", b"\x90hv", b"\x1c", b"\x5f\x00"])
def test_malformed_messages_change_no_codec(payload):
    content = Content()
    if payload:
        content.look_at_video(payload)
    assert (content.video_four_cc, content.audio_four_cc) == ("", "")


# Metadata ----------------------------------------------------------------------------------------------------------------

HVC1, AVC1, MP4A, MP3 = (float(int.from_bytes(code, "big")) for code in (b"hvc1", b"avc1", b"mp4a", b".mp3"))


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
def test_metadata_follows_the_rewritten_headers(rewrite, published, expected):
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
def test_metadata_without_a_change_is_the_same_object(payload, rewrite):
    assert rewritten_metadata(payload, rewrite) is payload


# Files of ffmpeg -------------------------------------------------------------------------------------------------------


def mux(ffmpeg, path, arguments):
    command = [ffmpeg, "-hide_banner", "-nostdin", "-y", "-v", "error", *arguments.split(), path]
    subprocess.run(command, check=True, timeout=60)
    content = path.read_bytes()
    tags, position = [], 13
    while position < len(content):
        size = int.from_bytes(content[position + 1 : position + 4], "big")
        tags.append((content[position], content[position + 11 : position + 11 + size]))
        position += 15 + size
    return tags


@pytest.fixture(scope="module")
def clips(ffmpeg, tmp_path_factory):
    """Two tracks each, and each of them alone: bit by bit the same frames."""
    folder = tmp_path_factory.mktemp("clips")
    source = folder / "source.mkv"
    inputs = "-f lavfi -i testsrc2=size=64x64:rate=10:duration=1 -f lavfi -i testsrc2=size=32x32:rate=10:duration=1"
    inputs += " -f lavfi -i sine=duration=1:sample_rate=48000 -f lavfi -i sine=440:duration=1:sample_rate=48000"
    codecs = "-c:v:0 libx265 -x265-params log-level=none -c:v:1 libx264 -pix_fmt yuv420p -c:a:0 libopus -c:a:1 flac"
    command = [ffmpeg, "-hide_banner", "-nostdin", "-v", "error", *inputs.split()]
    maps = "-map 0 -map 1 -map 2 -map 3"
    subprocess.run([*command, *maps.split(), *codecs.split(), source], check=True, timeout=60)
    both = mux(ffmpeg, folder / "both.flv", f"-i {source} -map 0 -c copy -f flv")
    first = mux(ffmpeg, folder / "first.flv", f"-i {source} -map 0:v:0 -map 0:a:0 -c copy -f flv")
    second = mux(ffmpeg, folder / "second.flv", f"-i {source} -map 0:v:1 -map 0:a:1 -c copy -f flv")
    return folder, both, first, second


def rewritten(tags, rewrite):
    video = [made for kind, payload in tags if kind == 9 and (made := rewrite.video(payload)) is not None]
    audio = [made for kind, payload in tags if kind == 8 and (made := rewrite.audio(payload)) is not None]
    return video, audio


def test_the_default_track_is_what_ffmpeg_muxes_for_it_alone(clips):
    _, both, first, _ = clips
    assert any(video_info(payload).multitrack for kind, payload in both if kind == 9)
    video, audio = rewritten(both, FLAT)
    wanted_video, wanted_audio = rewritten(first, AS_PUBLISHED)
    # FFmpeg writes colorInfo without saying of which track it is, and an end of sequence only for some codecs.
    frames = [payload for payload in video if video_info(payload).packet_type in (0, 1, 3)]
    assert [payload for payload in frames if video_info(payload).codec == "hevc"] == [
        payload for payload in wanted_video if video_info(payload).packet_type in (0, 1, 3)
    ]
    assert len(frames) > 10
    assert audio == wanted_audio
    assert len(audio) > 10


def test_another_track_is_what_ffmpeg_muxes_for_it_alone(clips):
    _, both, _, second = clips
    video, audio = rewritten(both, Rewrite(default_track=True, video_track=1, audio_track=1))
    wanted_video, wanted_audio = rewritten(second, AS_PUBLISHED)
    # Alone, H.264 has its legacy header; as a track, it has a FourCC.
    assert [(video_info(p).codec, video_info(p).kind) for p in video if video_info(p).packet_type in (0, 1, 3)] == [
        (video_info(p).codec, video_info(p).kind) for p in wanted_video if video_info(p).packet_type in (0, 1)
    ]
    assert audio == wanted_audio


def test_ffmpeg_decodes_hevc_of_codec_id_12_again(ffmpeg, clips):
    folder, _, first, _ = clips
    video, _ = rewritten(first, TO_CODEC12)
    assert {payload[0] & 0x8F for payload in video} == {12}
    back = [TO_HVC1.video(payload) for payload in video]
    path = folder / "back.flv"
    with path.open("wb") as file:
        file.write(b"FLV\1\1\0\0\0\x09\0\0\0\0")
        for number, payload in enumerate(back):
            header = b"\x09" + len(payload).to_bytes(3, "big") + (number * 100).to_bytes(3, "big") + bytes(4)
            file.write(header + payload + (11 + len(payload)).to_bytes(4, "big"))
    command = [ffmpeg, "-hide_banner", "-nostdin", "-v", "error", "-i"]
    frames = [
        subprocess.run(
            [*command, source, "-map", "0:v", "-f", "framehash", "-"], check=True, capture_output=True, text=True, timeout=60
        )
        for source in (path, folder / "first.flv")
    ]
    hashes = [[line.split(",")[-1] for line in run.stdout.splitlines() if not line.startswith("#")] for run in frames]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 10
    assert [run.stderr for run in frames] == ["", ""]
