"""For any input, recordings are complete files, and no frame is lost or recorded twice."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from rtmpd.config.loader import load_text
from rtmpd.live.headers import HeaderCache
from rtmpd.media import flv
from rtmpd.media.flv_repair import repair_plan, scan
from rtmpd.media.fmp4.repair import scan as mp4_scan
from rtmpd.media.tags import Kind, video_kind
from rtmpd.protocol import amf0
from rtmpd.services.recorder.assembler import Assembler, SegmentLimits
from tests.fmp4_files import samples
from tests.unit.live.fakes import close_stream, new_source, new_stream
from tests.unit.services.recorder.recordings import write_pieces

AVC = bytes.fromhex(
    "1700000000 0164000bffe1001a6764000bacd94284 7e22c044000003000400000300c83c50a658 01000668ebe3cb22c0 fdf8f800"
)
OTHER_AVC = bytes.fromhex("17000000000142c00affe100176742c00ad9047b011000000300100000030320f122648001000568cb83cb20")
AAC = bytes.fromhex("af001208")
METADATA = amf0.encode("onMetaData") + amf0.encode({"width": 160.0, "encoder": "x"})

VIDEO_PAYLOADS = st.one_of(
    st.sampled_from([AVC, OTHER_AVC, b"\x17\x01\0\0\0key", b"\x27\x01\0\0\0inter", b"\x17\x02\0\0\0", b"\x57\0"]),
    st.sampled_from([b"\x90hvc1header", b"\x91hvc1\0\0\0key", b"\xa1hvc1\0\0\0inter", b"\x94hvc1meta", b"\x96\x00hvc1\0x"]),
    st.binary(max_size=40),
)
AUDIO_PAYLOADS = st.one_of(
    st.sampled_from([AAC, b"\xaf\x01sound", b"\x2f\xff\xfb\x90\xc4", b"\x91Opusx"]), st.binary(max_size=40)
)
DATA_PAYLOADS = st.one_of(st.sampled_from([METADATA, amf0.encode("@setDataFrame") + METADATA]), st.binary(max_size=60))
STEPS = st.one_of(st.integers(0, 60), st.integers(-100, 3000), st.integers(-(1 << 31), 1 << 31))
MESSAGES = st.lists(
    st.one_of(
        st.tuples(st.just(9), STEPS, VIDEO_PAYLOADS),
        st.tuples(st.just(8), STEPS, AUDIO_PAYLOADS),
        st.tuples(st.just(18), STEPS, DATA_PAYLOADS),
    ),
    max_size=120,
)
LIMITS = st.builds(SegmentLimits, st.sampled_from([0.0, 0.1, 1.0, 30.0]), st.sampled_from([0, 80_000, 500_000]))


class Reader:
    """A recording without a greenlet and a disk."""

    wake_at = 1 << 62

    def __init__(self, stream, limits, record_format="flv"):
        self.stream = stream
        self.assembler = Assembler(limits, record_format)
        self.assembler.restart(stream.headers)
        self.log = stream.read(self)
        self.page, self.offset = self.log.tail, self.log.tail.end
        self.files = {}
        self.fed = []
        self.cache = HeaderCache()

    def wake(self):
        raise AssertionError

    fail = wake

    def take(self):
        for tag in self.log.read_all(self.page, self.offset):
            self.page, self.offset = tag.page, tag.offset
            payload = bytes(tag.data[flv.TAG_HEADER_SIZE : -4])
            self.fed.append((tag.type_id, tag.kind, payload, header_for(self.cache, tag.type_id, payload)))
            self.assembler.feed(tag)
        write_pieces(self.assembler, self.files)

    def end(self):
        self.take()
        self.assembler.end()
        write_pieces(self.assembler, self.files)
        return [self.files[number] for number in sorted(self.files)]


def header_for(cache, type_id, payload):
    """Return the header in force for a video message of one track."""
    if type_id == 9 and video_kind(payload) == Kind.HEADER:
        cache.add_video(payload)
    return cache.sequence_headers.get("video 0")


def frames_of(file):
    """Audio and video payloads, in order, with the video header that is in force in the file."""
    data = file.getvalue()
    position = flv.FILE_HEADER_SIZE
    payloads = []
    cache = HeaderCache()
    last = {8: 0, 9: 0}
    while position < len(data):
        type_id = data[position]
        length = int.from_bytes(data[position + 1 : position + 4], "big")
        time = int.from_bytes(data[position + 4 : position + 7], "big") | data[position + 7] << 24
        assert data[position + 8 : position + 11] == b"\0\0\0"
        assert time < 1 << 31
        if type_id in last:
            payload = data[position + 11 : position + 11 + length]
            payloads.append((type_id, payload, header_for(cache, type_id, payload)))
        position += length + 15
    return payloads


def publish(source, messages, start, batch, take):
    """Publish messages; *take* what there is after each *batch* of them."""
    clocks = {8: start, 9: start, 18: start}
    for number, (type_id, step, payload) in enumerate(messages):
        clocks[type_id] = (clocks[type_id] + step) & 0xFFFFFFFF
        if type_id == 9:
            source.video(clocks[9], payload)
        elif type_id == 8:
            source.audio(clocks[8], payload)
        else:
            source.data(clocks[18], payload)
        if number % batch == 0:
            take()


@settings(max_examples=300, deadline=None)
@given(MESSAGES, LIMITS, st.integers(0, (1 << 32) - 1), st.integers(1, 10))
def test_recordings_are_complete_files_and_every_frame_is_in_one(messages, limits, start, batch):
    stream, source = new_stream(options=load_text("").defaults), new_source()
    stream.begin(source)
    reader = Reader(stream, limits)
    publish(source, messages, start, batch, reader.take)
    files = reader.end()
    recorded = []
    for file in files:
        result = scan(file)
        assert result.clean
        assert result.frames > 0
        assert result.metadata["filesize"] == len(file.getvalue())
        assert abs(result.metadata["duration"] * 1000 - result.duration_ms) <= 1
        plan = repair_plan(result)
        assert plan.truncate_to == result.size
        recorded += frames_of(file)
    # Every video frame from the first that is recorded on is there, in order, once.
    # The header that it needs is in force there.
    video = [(payload, header) for type_id, kind, payload, header in reader.fed if type_id == 9 and kind in (0, 1)]
    frames = {payload for payload, _ in video}
    got = [(payload, header) for type_id, payload, header in recorded if type_id == 9 and payload in frames]
    if got:
        assert got == video[len(video) - len(got) :]
    stream.stop_reading(reader)
    assert stream.outputs == [stream.published]
    close_stream(stream)


MP4_VIDEO = st.one_of(
    st.sampled_from([AVC, AVC, b"\x17\x01\0\0\0key", b"\x27\x01\0\0\0inter", b"\x27\x01\xff\xff\0early"]),
    st.sampled_from([OTHER_AVC, b"\x90hvc1header", b"\x91hvc1\0\0\0key", b"\x96\x01avc1\x01" + AVC[5:], b"\x12sorenson"]),
    st.binary(max_size=40),
)
MP4_AUDIO = st.one_of(
    st.sampled_from(
        [AAC, b"\xaf\x01sound", b"\xaf\x01sound", b"\xaf\0\x11\x90", b"\x2f\xff\xfb\x90\xc4", b"\xb2speex", b"\x91Opusx"]
    ),
    st.binary(max_size=40),
)
MP4_STEPS = st.one_of(st.integers(0, 60), st.integers(0, 60), st.integers(-100, 3000), st.integers(-(1 << 31), 1 << 31))
MP4_MESSAGES = st.lists(
    st.one_of(
        st.tuples(st.just(9), MP4_STEPS, MP4_VIDEO),
        st.tuples(st.just(8), MP4_STEPS, MP4_AUDIO),
        st.tuples(st.just(18), MP4_STEPS, DATA_PAYLOADS),
    ),
    max_size=150,
)


@settings(max_examples=100, deadline=None)
@given(MP4_MESSAGES, LIMITS, st.integers(0, (1 << 32) - 1), st.integers(1, 40))
@example([(9, 0, each) for each in (OTHER_AVC, b"\x91hvc1\0\0\0key", AVC, b"\x27\x01\0\0\0inter")], SegmentLimits(0.0, 0), 0, 1)
def test_recordings_as_mp4_are_whole_and_have_each_frame_once(messages, limits, start, batch):
    stream, source = new_stream(options=load_text("").defaults), new_source()
    stream.begin(source)
    reader = Reader(stream, limits, "mp4")

    def take():
        reader.assembler.flush(at_once=False)
        reader.take()

    numbered = [
        (type_id, step, payload + b"%d" % number if payload[1:2] == b"\1" else payload)
        for number, (type_id, step, payload) in enumerate(messages)
    ]
    publish(source, numbered, start, batch, take)
    seen = []
    for file in reader.end():
        if file.getvalue().startswith(b"FLV"):
            assert scan(file).clean
            continue
        data = file.getvalue()
        found = samples(data)
        result = mp4_scan(file)
        assert (result.ours, result.gaps, result.rest_bytes, result.frames) == (True, (), 0, len(found))
        assert found
        for track in (1, 2):
            mine = [sample for sample in found if sample.track == track]
            assert all(sample.duration > 0 for sample in mine)
        seen += [sample.data for sample in found if sample.data.startswith((b"key", b"inter", b"sound"))]
    assert len(seen) == len(set(seen))
    stream.stop_reading(reader)
    close_stream(stream)
