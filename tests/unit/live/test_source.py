from __future__ import annotations

import logging

import pytest

from rtmpd.live.framing import AUDIO, DATA, NO_HEADERS, VIDEO
from rtmpd.live.source import BitrateWatch
from rtmpd.media.tags import Kind
from rtmpd.phases import CloseKind, CloseReason
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import XmlDocument
from tests.unit.live.fakes import AAC_HEADER, AVC_HEADER, app_options, audio_frame, frame, keyframe, new_source

LIMIT = 1000


# The bitrate limit ------------------------------------------------------------------------------------------------------


def due(watch, times, bitrate, *, limit=LIMIT, grace_s=3, action="warn"):
    """Return those of the times at which it is due."""
    return [time for time in times if watch.is_due(time, bitrate, limit=limit, grace_s=grace_s, action=action)]


def test_a_source_within_the_limit_is_never_acted_on():
    assert due(BitrateWatch(), range(100), LIMIT) == []


def test_without_a_limit_no_bitrate_is_too_high():
    assert due(BitrateWatch(), range(100), 1e12, limit=0) == []


def test_it_is_due_once_when_the_grace_is_over():
    assert due(BitrateWatch(), range(10, 100), LIMIT + 1) == [13]


def test_it_is_due_again_only_after_it_was_below():
    watch = BitrateWatch()
    assert due(watch, range(10), LIMIT + 1) == [3]
    assert due(watch, range(10, 12), LIMIT) == []
    assert due(watch, range(12, 20), LIMIT + 1) == [15]


def test_a_source_below_the_limit_within_the_grace_begins_anew():
    watch = BitrateWatch()
    for begin in range(0, 30, 3):
        assert due(watch, (begin, begin + 1), LIMIT * 2) == []
        assert due(watch, (begin + 2,), LIMIT) == []


def test_changed_options_hold_at_once():
    watch = BitrateWatch()
    assert due(watch, range(2), LIMIT + 1, grace_s=10) == []
    assert due(watch, (2,), LIMIT + 1, grace_s=2) == [2]
    assert due(watch, (3, 4), LIMIT + 1, grace_s=2, action="disconnect") == [3]
    assert due(watch, range(5, 9), LIMIT + 1, limit=LIMIT * 2, grace_s=2) == []
    assert due(watch, range(9, 20), LIMIT + 1, grace_s=2) == [11]


@pytest.mark.parametrize("action", ["warn", "disconnect"])
def test_a_source_that_exceeds_the_limit_is_warned_about_or_stopped(action, caplog):
    caplog.set_level(logging.WARNING)
    reasons = []
    source = new_source(reasons.append)
    source.attach(Recipient(), lambda found: None)
    limits = app_options(publish_bitrate_limit=1000, publish_bitrate_grace_s=2, publish_bitrate_action=action).limits
    acted = []
    for second in range(6):
        acted.append(source.sweep(100 + second, limits, "live/a"))
        source.video(second * 1000, keyframe("", 1000))
    assert acted == [False, False, False, True, False, False]
    (record,) = caplog.records
    assert "live/a: the publisher sends 8 kbit/s" in record.getMessage()
    assert "publish_bitrate_limit" in record.getMessage()
    if action == "warn":
        assert reasons == []
        return
    assert reasons == ["publish_bitrate_limit"]
    assert reasons[0].kind is CloseKind.EXPELLED
    assert reasons[0].client_text == "The bitrate is too high: 8 kbit/s, and 1 kbit/s are allowed."


# A source and its stream ------------------------------------------------------------------------------------------------


class Recipient:
    """The part of a stream that a source uses."""

    def __init__(self, audio_joins=False):
        self.messages = []
        self.headers = NO_HEADERS
        self.changes = []
        self.audio_joins = audio_joins

    def deliver(self, type_id, timestamp, payload, kind, join_point=False):
        self.messages.append((type_id, timestamp, payload, kind, join_point))

    append = deliver

    def append_failed(self, error):
        raise error

    def audio_joins_at(self, timestamp):
        return self.audio_joins

    def set_headers(self, headers):
        self.headers = headers

    def content_changed(self, ordinary):
        self.changes.append(ordinary)


def attached(recipient, **info):
    source = new_source(**info)
    source.attach(recipient, lambda found: None)
    return source


def test_messages_are_delivered_with_their_kinds_and_join_points():
    recipient = Recipient()
    source = attached(recipient)
    source.video(0, AVC_HEADER)
    source.audio(0, AAC_HEADER)
    source.video(0, keyframe("a"))
    source.audio(10, audio_frame("b"))
    source.video(40, frame("c"))
    source.data(50, amf0.encode("onCuePoint", {}))
    assert recipient.messages == [
        (VIDEO, 0, AVC_HEADER, Kind.HEADER, False),
        (AUDIO, 0, AAC_HEADER, Kind.HEADER, False),
        (VIDEO, 0, keyframe("a"), Kind.KEYFRAME, True),
        (AUDIO, 10, audio_frame("b"), Kind.FRAME, False),
        (VIDEO, 40, frame("c"), Kind.FRAME, False),
        (DATA, 50, amf0.encode("onCuePoint", {}), Kind.OTHER, False),
    ]
    assert recipient.headers.items == ((VIDEO, AVC_HEADER), (AUDIO, AAC_HEADER))
    assert source.received == (sum(len(message[2]) for message in recipient.messages), 2, 3, 1, 2)


def test_headers_are_set_before_the_message_that_brought_them_is_delivered():
    """A log stores them with the join point that follows."""
    recipient = Recipient()
    source = attached(recipient)
    seen = []
    recipient.deliver = lambda *message: seen.append(recipient.headers.items)
    source.video(0, AVC_HEADER)
    assert seen == [((VIDEO, AVC_HEADER),)]


def test_audio_is_a_join_point_only_while_there_is_no_video():
    recipient = Recipient(audio_joins=True)
    source = attached(recipient)
    source.audio(0, audio_frame("a"))
    source.video(0, AVC_HEADER)
    source.audio(10, audio_frame("b"))
    assert [message[4] for message in recipient.messages] == [True, False, False]


def test_a_keyframe_of_a_higher_track_is_a_frame():
    recipient = Recipient()
    source = attached(recipient)
    lowest, higher = b"\x96\x01avc1\x00a", b"\x96\x01avc1\x01b"
    source.video(0, lowest)
    source.video(0, higher)
    assert [message[3:] for message in recipient.messages] == [(Kind.KEYFRAME, True), (Kind.FRAME, False)]
    assert source.stats.keyframes == 1


def test_a_change_of_content_is_reported_with_whether_all_players_can_take_it():
    recipient = Recipient()
    source = attached(recipient)
    source.video(0, b"\x90hvc1header")
    assert recipient.changes == [False]
    source.video(0, b"\x91hvc1\0\0\0key")
    assert recipient.changes == [False]


def test_a_detached_source_delivers_and_counts_nothing():
    recipient = Recipient()
    source = attached(recipient)
    source.detach()
    source.video(0, keyframe())
    source.audio(0, audio_frame())
    source.data(0, amf0.encode("onCuePoint", {}))
    assert recipient.messages == []
    assert source.received == (0, 0, 0, 0, 0)


def test_a_source_is_stopped_with_its_reason():
    reasons = []
    reason = CloseReason(CloseKind.TAKEN_OVER, "another one took over")
    new_source(reasons.append).stop(reason)
    assert reasons == [reason]


# Metadata for late joiners -----------------------------------------------------------------------------------------------


def test_cached_metadata_is_encoded_again_and_live_metadata_passes_as_it_is():
    recipient = Recipient()
    source = attached(recipient)
    good = amf0.encode("onMetaData", {"width": 1280.0})
    damaged = amf0.encode("onMetaData", {"width": 1280.0, "bad": XmlDocument("<x/>")})[:-1] + b"\xff\xff"
    source.data(0, amf0.encode("@setDataFrame") + damaged)
    assert recipient.headers.items == ((DATA, good),)
    assert recipient.messages == [(DATA, 0, damaged, Kind.METADATA, False)]


def test_metadata_that_cannot_be_decoded_is_replaced_by_what_is_known(caplog):
    caplog.set_level(logging.INFO)
    recipient = Recipient()
    source = attached(recipient)
    for _ in range(2):
        source.data(0, amf0.encode("@setDataFrame", "onMetaData") + b"\xffno AMF")
    assert recipient.headers.items == ()
    source.audio(0, AAC_HEADER)
    (type_id, payload), _ = recipient.headers.items
    members = {"audiocodecid": 10.0, "audiosamplerate": 44100.0, "audiochannels": 2.0, "stereo": True}
    assert (type_id, amf0.decode_all(payload)) == (DATA, ["onMetaData", members])
    source.audio(20, audio_frame("", 12_500))
    for second in range(8):
        source.sweep(source.started_at + second, app_options().limits, "live/a")
        source.audio(second * 1000, audio_frame("", 12_500))
    assert amf0.decode_all(recipient.headers.items[0][1]) == ["onMetaData", {**members, "totaldatarate": 100.0}]
    assert caplog.text.count("can't be decoded") == 1
    source.data(9, amf0.encode("onMetaData", {"width": 5.0}))
    source.audio(10, AAC_HEADER[:2] + b"\x11\x90")
    assert recipient.headers.items[0] == (DATA, amf0.encode("onMetaData", {"width": 5.0}))
