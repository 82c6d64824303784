"""What clients in the field put into media messages; the rows are numbered as in the project's notes on interoperability.

Also the rows of the chunk layer that only show on a live connection.
"""

from __future__ import annotations

import itertools
import struct

import pytest

from rtmpd.protocol import amf0, message
from rtmpd.protocol.amf_values import UNDEFINED, XmlDocument
from rtmpd.protocol.message import MessageType, UserControlType
from tests.integration.wire import (
    AAC_HEADER,
    AUDIO,
    AVC_HEADER,
    AVC_HEADER_2,
    DATA,
    VIDEO,
    Item,
    begin,
    gop,
    gops,
    headers,
    inter,
    key,
    metadata,
    played,
    send,
    sound,
)

SET_DATA_FRAME = amf0.encode("@setDataFrame")
HVC_HEADER = b"\x90hvc1" + bytes.fromhex("01016000000090000000000078f000fcfdf8f800000f00")
HVC_KEY = b"\x91hvc1\0\0\0" + bytes(range(40))


@pytest.fixture
def encoder(shared, raw, name):
    """A publisher of the test's stream."""
    return raw(shared).publish(name)


MULTITRACK_AND_MOD_EX = 2 | 4


@pytest.fixture
def watch(shared, player, name):
    """Return a function that adds a player."""
    return lambda: player(shared, name, connect_properties={"capsEx": MULTITRACK_AND_MOD_EX})


# The chunk layer, live


def test_row_51_acknowledgements_come_by_the_clients_window(shared, raw, name):
    wire = raw(shared)
    wire.connect()
    wire.write(message.window_ack_size(20_000, wire.chunk_size))
    wire.command("publish", name, msid=wire.create_stream())
    wire.status("NetStream.Publish.Start")
    acknowledged = []
    for n in range(8):
        wire.send(VIDEO, n * 40, key(n, 10_000))
        one = wire.until(lambda one: one.type_id == MessageType.ACKNOWLEDGEMENT)
        acknowledged.append(message.parse_uint32(one))
    assert all(0 < b - a <= 20_000 for a, b in itertools.pairwise(acknowledged))
    assert acknowledged[-1] > 70_000


def test_row_53_control_messages_are_sent_in_the_order_that_every_client_accepts(shared, raw):
    wire = raw(shared).handshake()
    wire.command("connect", obj={"app": "live"}, tid=1)
    events = []
    # One byte at a time shows where Set Chunk Size took effect, which the reader does not return.
    while not events or events[-1][0] != MessageType.COMMAND_AMF0:
        before = wire.reader.chunk_size
        events += [(one.type_id, one.payload) for one in wire.reader.feed(wire.read_exactly(1))]
        if wire.reader.chunk_size != before:
            events.append((MessageType.SET_CHUNK_SIZE, struct.pack(">I", wire.reader.chunk_size)))
    assert events[:3] == [
        (MessageType.WINDOW_ACK_SIZE, struct.pack(">I", 2_500_000)),
        (MessageType.SET_PEER_BANDWIDTH, struct.pack(">IB", 2_500_000, 2)),
        (MessageType.SET_CHUNK_SIZE, struct.pack(">I", 60_000)),
    ]
    assert amf0.decode_all(events[3][1])[:2] == ["_result", 1.0]
    assert len(events) == 4


@pytest.mark.parametrize("value", [0, 1, 0xFFFFFFFF])
def test_row_55_the_server_answers_pings(shared, raw, value):
    wire = raw(shared)
    wire.connect()
    wire.write(message.user_control(UserControlType.PING_REQUEST, value, chunk_size=wire.chunk_size))
    assert wire.user_control(UserControlType.PING_RESPONSE) == (value, 0)


def test_row_55_the_server_pings_players_and_publishers_that_are_quiet(server, raw, name):
    running = server("[server]\nping_interval_s = 0.2\n")
    encoder = raw(running).publish(name)
    watcher = raw(running).play(name)
    for wire in (watcher, encoder):
        wire.user_control(UserControlType.PING_REQUEST)
        running.wait_for_line(f"{wire.address} < ping response")


# Media


def test_row_56_the_envelope_is_stripped_and_the_array_count_not_trusted(encoder, watch):
    first = watch()
    members = b"\0\x05width\0" + struct.pack(">d", 64) + b"\0\x0cvideocodecid\0" + struct.pack(">d", 1635135537.0)
    on_metadata = amf0.encode("onMetaData") + b"\x08" + struct.pack(">I", 20) + members + b"\0\0\x09"
    encoder.send(DATA, 0, SET_DATA_FRAME + on_metadata)
    encoder.send(VIDEO, 0, key(1))
    # Kept for late joiners, it is encoded again, with the right count.
    cached = amf0.encode("onMetaData") + b"\x08" + struct.pack(">I", 2) + members + b"\0\0\x09"
    expected = [Item(DATA, 0, cached), Item(VIDEO, 0, key(1))]
    assert played(first, key(1)) == expected
    assert played(watch(), key(1)) == expected


@pytest.mark.parametrize("damage", ["undefined", "XML", "no end marker", "bytes behind", "rubbish"])
def test_row_77_late_joiners_get_sound_metadata_and_others_what_was_sent(encoder, watch, damage):
    good = amf0.encode("onMetaData", {"width": 64.0})
    bad = {"undefined": UNDEFINED, "XML": XmlDocument("<x/>")}.get(damage)
    sent = good if bad is None else amf0.encode("onMetaData", {"bad": bad, "width": 64.0})
    cut = {"no end marker": good[:-3], "bytes behind": good + b"\xff\0", "rubbish": good[:13] + b"\xffno AMF"}
    sent = cut.get(damage, sent)
    first = watch()
    encoder.send(VIDEO, 0, key(1))
    played(first, key(1))
    encoder.send(DATA, 0, SET_DATA_FRAME + sent)
    encoder.send(AUDIO, 0, AAC_HEADER)
    encoder.send(VIDEO, 40, key(2))
    # Live pass-through stays.
    assert played(first, key(2))[0] == Item(DATA, 0, sent)
    got = played(watch(), key(2))
    kept = amf0.decode_all(got[0].payload)
    members = {"audiocodecid": 10.0, "audiosamplerate": 44100.0, "audiochannels": 2.0, "stereo": True}
    assert kept == ["onMetaData", members if damage == "rubbish" else {"width": 64.0}]
    assert got[1:] == [Item(AUDIO, 40, AAC_HEADER), Item(VIDEO, 40, key(2))]


def test_row_57_ffmpegs_timecode_data_message_is_ignored(encoder, watch):
    watcher = watch()
    encoder.send(VIDEO, 0, key(1))
    encoder.send(DATA, 10, b"\0\0\0\x0a")
    encoder.send(VIDEO, 40, inter(2))
    assert played(watcher, inter(2)) == [Item(VIDEO, 0, key(1)), Item(VIDEO, 40, inter(2))]


def test_row_58_color_info_before_the_sequence_start_is_kept_and_no_keyframe(encoder, watch):
    color_info = b"\xd4hvc1" + amf0.encode("colorInfo", {"colorConfig": {"bitDepth": 10}})
    other_track = b"\x96\x00hvc1\x01" + HVC_HEADER[5:]
    other_key = b"\x96\x01hvc1\x01\0\0\0" + bytes(30)
    first = watch()
    sent = [Item(VIDEO, 0, payload) for payload in (color_info, HVC_HEADER, other_track, HVC_KEY, other_key)]
    send(encoder, sent)
    assert played(first, other_key) == sent
    encoder.send(VIDEO, 40, color_info)
    encoder.send(VIDEO, 40, HVC_KEY + b"2")
    played(first, HVC_KEY + b"2")
    late = played(watch(), HVC_KEY + b"2")
    assert [one.payload for one in late] == [color_info, HVC_HEADER, other_track, HVC_KEY + b"2"]


@pytest.mark.parametrize("codec", [7, 12], ids=["row 59 HEVC declared as codec 7", "row 60 HEVC as codec 12"])
def test_row_59_and_60_hevc_in_a_legacy_header_passes_untouched(encoder, watch, codec):
    header = bytes([0x10 | codec]) + b"\0\0\0\0" + HVC_HEADER[5:]
    frame = bytes([0x10 | codec]) + b"\x01\0\0\0" + bytes(range(50))
    first = watch()
    encoder.send(VIDEO, 0, header)
    encoder.send(VIDEO, 7, frame)
    assert played(first, frame) == [Item(VIDEO, 7, header), Item(VIDEO, 7, frame)]
    assert played(watch(), frame) == [Item(VIDEO, 7, header), Item(VIDEO, 7, frame)]


@pytest.mark.parametrize("values", [{}, {"duration": 0.0}])
def test_row_61_metadata_without_tracks_is_only_advice(encoder, watch, values):
    first = watch()
    encoder.send(DATA, 0, SET_DATA_FRAME + metadata(values))
    send(encoder, [Item(VIDEO, 0, AVC_HEADER), Item(AUDIO, 0, AAC_HEADER), Item(VIDEO, 0, key(1))])
    expected = [Item(DATA, 0, metadata(values)), *headers()[1:], Item(VIDEO, 0, key(1))]
    assert played(first, key(1)) == expected
    assert played(watch(), key(1)) == expected


def test_row_61_garbage_codecs_pass_untouched(shared, encoder, watch, name):
    first = watch()
    sent = [
        Item(VIDEO, 0, b"\x90\xff\0\x01\xfejunk"),
        Item(VIDEO, 0, b"\x91\xff\0\x01\xfe frame"),
        Item(VIDEO, 10, b"\x2f?"),
        Item(VIDEO, 20, b"\x9f????"),
        Item(AUDIO, 30, b"\x9f"),
        Item(AUDIO, 40, b"\xe7junk"),
    ]
    send(encoder, sent)
    assert played(first, sent[-1]) == sent
    encoder.close()
    assert "0xff0001fe" in shared.wait_for_line(rf"stopped publishing live/{name}: .* \((.*)\)$")[1]


def test_row_62_empty_messages_are_ignored_and_video_command_frames_pass(encoder, watch):
    watcher = watch()
    encoder.send(VIDEO, 0, key(1))
    encoder.send(AUDIO, 5, b"")
    encoder.send(VIDEO, 6, b"")
    encoder.send(VIDEO, 10, b"\x57\x00")
    encoder.send(AUDIO, 20, sound(1))
    assert played(watcher, sound(1)) == [Item(VIDEO, 0, key(1)), Item(VIDEO, 10, b"\x57\x00"), Item(AUDIO, 20, sound(1))]


def flv_tag(type_id, timestamp, payload):
    stamp = (timestamp & 0xFFFFFF).to_bytes(3, "big") + bytes([timestamp >> 24])
    tag = bytes([type_id]) + len(payload).to_bytes(3, "big") + stamp + b"\0\0\0" + payload
    return tag + len(tag).to_bytes(4, "big")


def test_row_63_aggregates_are_split_and_timed_from_their_header(encoder, watch):
    watcher = watch()
    parts = [Item(VIDEO, 90_000, key(1)), Item(AUDIO, 90_010, sound(1)), Item(VIDEO, 90_040, inter(2))]
    encoder.send(22, 5000, b"".join(flv_tag(*part) for part in parts))
    cue = amf0.encode("onCuePoint", {"name": "a"})
    # The last back pointer is missing, as some leave it out.
    encoder.send(22, 5080, flv_tag(DATA, 0, cue) + flv_tag(VIDEO, 0, inter(3))[:-4])
    assert played(watcher, inter(3)) == [
        Item(VIDEO, 5000, key(1)),
        Item(AUDIO, 5010, sound(1)),
        Item(VIDEO, 5040, inter(2)),
        Item(DATA, 5080, cue),
        Item(VIDEO, 5080, inter(3)),
    ]


def test_row_64_sequence_headers_repeated_and_changed(encoder, watch):
    first = watch()
    begin(encoder, first)
    sent = [Item(VIDEO, 160, AVC_HEADER), *gop(1), Item(VIDEO, 320, AVC_HEADER_2), *gop(2)]
    send(encoder, sent)
    assert played(first, gop(2)[-1]) == sent
    late = played(watch(), gop(2)[-1])
    assert late == [headers(320)[0], Item(AUDIO, 320, AAC_HEADER), Item(VIDEO, 320, AVC_HEADER_2), *gop(2)]


@pytest.mark.parametrize("kind", [AUDIO, VIDEO], ids=["audio", "video"])
def test_row_65_a_stream_of_one_kind_plays_at_once_and_for_late_joiners(encoder, watch, kind):
    first = watch()
    header = Item(kind, 0, AAC_HEADER if kind == AUDIO else AVC_HEADER)
    frames = [one for one in gop(0) if one.type_id == kind]
    send(encoder, [header, *frames])
    assert played(first, frames[-1]) == [header, *frames]
    assert played(watch(), frames[-1]) == [header, *frames]


@pytest.mark.parametrize(
    "stamps",
    [
        [1000, 1040, 1080, 0, 40, 80],
        [1000, 1040, 1030, 1060],
        [0, 40, 0xFFFFFF00, 0xFFFFFF28, 80],
        [0x7FFFFFF0, 0x80000010, 0x80000030, 5, 25],
        [0, 40, 10_000_000, 10_000_040],
    ],
    ids=["restart at 0", "jitter", "garbage and back", "past 2**31", "leap forward"],
)
def test_row_66_timestamps_that_jump_stay_monotonic_for_players(encoder, watch, stamps):
    watcher = watch()
    sent = [Item(VIDEO, stamp, inter(n) if n else key(n)) for n, stamp in enumerate(stamps)]
    send(encoder, sent)
    got = played(watcher, sent[-1])
    assert [one.payload for one in got] == [one.payload for one in sent]
    shown = [one.timestamp for one in got]
    assert shown == sorted(shown)
    assert shown[-1] - shown[0] < 60_000


def test_row_66_audio_and_video_of_different_bases_play_side_by_side(encoder, watch):
    watcher = watch()
    send(encoder, [Item(VIDEO, 5_000_000, key(0)), Item(AUDIO, 7, sound(0)), Item(VIDEO, 5_000_040, inter(1))])
    send(encoder, [Item(AUDIO, 47, sound(1)), Item(VIDEO, 5_000_080, inter(2)), Item(AUDIO, 87, sound(2))])
    got = played(watcher, sound(2))
    assert len(got) == 6
    assert max(one.timestamp for one in got) - min(one.timestamp for one in got) < 200


def test_row_67_extended_timestamps_are_repeated_on_every_type_3_chunk(server, raw, name):
    running = server("[server]\nchunk_size_bytes = 200\n")
    encoder = raw(running).publish(name)
    watcher = raw(running).play(name)
    watcher.sync()
    payload, stamp = key(1, 495), 0x01234567
    encoder.send(VIDEO, stamp, payload)
    extended = stamp.to_bytes(4, "big")
    expected = b"\x06\xff\xff\xff" + len(payload).to_bytes(3, "big") + b"\x09\x01\0\0\0" + extended
    expected += payload[:200] + b"\xc6" + extended + payload[200:400] + b"\xc6" + extended + payload[400:]
    assert watcher.read_exactly(len(expected)) == expected


def test_row_68_vlc_joins_in_the_middle_and_gets_headers_at_the_first_frames_time(encoder, watch):
    witness = watch()
    begin(encoder, witness)
    send(encoder, gops(1, 5))
    played(witness, gop(5)[-1])
    start = gop(5)[0].timestamp
    assert start == 800
    assert played(watch(), gop(5)[-1]) == headers(start) + gop(5)
