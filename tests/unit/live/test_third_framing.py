"""A framing that the server does not know is delivered by the same log, fan-out and back-pressure, over real sockets.

Each message is a record: the length of its payload (4 bytes), its type (1 byte), its timestamp (4 bytes), and the payload. The
stream has RTMP players beside the readers of records.
"""

from __future__ import annotations

import struct
import time
from itertools import pairwise
from typing import NamedTuple

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from rtmpd.live.framing import AUDIO, DATA, VIDEO, Message, NoticeKind
from rtmpd.live.rtmp_framing import RtmpFraming
from rtmpd.live.subscriber import Subscriber
from rtmpd.media.tags import Kind
from rtmpd.net.transport import Transport
from rtmpd.phases import CloseKind
from tests.unit.live.fakes import (
    AAC_HEADER,
    AVC_HEADER,
    CHUNK,
    app_options,
    audio_frame,
    close_stream,
    frame,
    keyframe,
    new_source,
    new_stream,
    parse,
)

LIMIT_S = 10
FRAME_BYTES = 20_000
SOCKET_BYTES = 16 << 10
HEAD = struct.Struct(">IBI")
NOTICE = 1
MEDIA = (AUDIO, VIDEO)


def record(type_id, timestamp, payload):
    return HEAD.pack(len(payload), type_id, timestamp) + payload


class RecordFraming:
    """The framing of the log."""

    name = "records"
    over = False

    def for_log(self):
        return self

    def set_headers(self, headers):
        pass

    def replay_headers(self, older):
        return older.join_headers

    def size(self, timestamp, length):
        return HEAD.size + length

    def write(self, page, type_id, timestamp, payload):
        start = page.end
        end = start + HEAD.size + len(payload)
        if end > page.size:
            return -1
        HEAD.pack_into(page.buffer, start, len(payload), type_id, timestamp)
        page.buffer[start + HEAD.size : end] = payload
        return end

    def read(self, page, index):
        start, end = page.starts[index], page.message_end(index)
        _, type_id, timestamp = HEAD.unpack_from(page.buffer, start)
        data = page.view[start:end]
        return Message(type_id, timestamp, data[HEAD.size :], data, page.kinds[index], page, end)

    def media_timestamp(self, page, index):
        _, type_id, timestamp = HEAD.unpack_from(page.buffer, page.starts[index])
        return timestamp if type_id in MEDIA else -1

    def notices(self, notice):
        return [record(NOTICE, 0, notice.kind.name.encode())]

    def for_subscriber(self):
        return RecordSubscriberFraming()


class RecordSubscriberFraming:
    """The framing of one reader: the bytes of the log."""

    shared = True
    sends_early = True

    def headers(self, headers, timestamp):
        return b"".join(record(type_id, timestamp, payload) for type_id, payload in headers.items)

    def message(self, message):
        return bytes(message.data)

    def notice(self, notice):
        return record(NOTICE, 0, notice.kind.name.encode())


class AudioRecords(RecordSubscriberFraming):
    """The framing of a reader that wants audio only: each message is framed for it alone."""

    shared = False

    def headers(self, headers, timestamp):
        return b"".join(record(type_id, timestamp, payload) for type_id, payload in headers.items if type_id == AUDIO)

    def message(self, message):
        return bytes(message.data) if message.type_id == AUDIO else b""


RECORDS = RecordFraming()


class Received(NamedTuple):
    type_id: int
    timestamp: int
    payload: bytes


class Reader:
    """A subscriber with a socket, and the peer at the other end of it.

    Attributes:
        data: The bytes that the peer has read.
        reads: The peer reads while this is set.
    """

    def __init__(self, stream, framing, subscriber_framing=None):
        own, self.peer = socket.socketpair()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self.transport = Transport(own, "the reader")
        self.data = bytearray()
        self.reads = Event()
        self.reads.set()
        self.greenlet = gevent.spawn(self._read)
        self.output = stream.output(framing=framing)
        self.framing = self.output.log.framing
        self.subscriber = Subscriber(self.transport, subscriber_framing or self.framing.for_subscriber(), "the reader")
        self.output.fanout.join(self.subscriber)

    def _read(self):
        while True:
            self.reads.wait()
            data = self.peer.recv(SOCKET_BYTES)
            if not data:
                return
            self.data += data

    def messages(self):
        """Return what was received; fail if it does not end with a whole message."""
        if isinstance(self.framing, RtmpFraming):
            return [Received(each.type_id, each.timestamp, each.payload) for each in parse(bytes(self.data))]
        found, rest = self.records()
        assert rest == b""
        return found

    def records(self):
        """Return the whole records, and the beginning of another one."""
        found, position, data = [], 0, bytes(self.data)
        while position + HEAD.size <= len(data):
            length, type_id, timestamp = HEAD.unpack_from(data, position)
            end = position + HEAD.size + length
            if end > len(data):
                break
            found.append(Received(type_id, timestamp, data[position + HEAD.size : end]))
            position = end
        return found, data[position:]

    def media(self):
        return [each for each in self.messages() if each.type_id in MEDIA]

    def close(self):
        self.output.fanout.leave(self.subscriber)
        self.greenlet.kill()
        self.transport.dispose()
        self.peer.close()


class Scene:
    """A stream with a source, and readers."""

    def __init__(self, **options):
        self.stream = new_stream(options=app_options(lag_limit_s=3600, lag_limit_bytes=200_000, **options))
        self.source = new_source()
        self.stream.begin(self.source)
        self.readers = []
        self.sent = []
        self.source.video(0, AVC_HEADER)
        self.source.audio(0, AAC_HEADER)
        self.headers = [Received(VIDEO, 0, AVC_HEADER), Received(AUDIO, 0, AAC_HEADER)]

    def join(self, framing=None, subscriber_framing=None):
        self.readers.append(Reader(self.stream, framing, subscriber_framing))
        return self.readers[-1]

    def publish(self, count):
        """Publish *count* frames, a keyframe each ten, with audio between, as fast as the readers read that do."""
        for _ in range(count):
            number = len(self.sent) // 2
            payload = (frame if number % 10 else keyframe)(f"{number:05}", FRAME_BYTES)
            self.source.video(number * 40, payload)
            self.source.audio(number * 40 + 5, audio_frame(f"{number:05}"))
            self.sent += [Received(VIDEO, number * 40, payload), Received(AUDIO, number * 40 + 5, audio_frame(f"{number:05}"))]
            self.wait_for_last(*(reader for reader in self.readers if reader.reads.is_set()))
            self.stream.sweep(time.monotonic(), 30)

    def wait_for(self, condition):
        with gevent.Timeout(LIMIT_S):
            while not condition():
                gevent.sleep(0.001)

    def wait_for_last(self, *readers):
        """Wait until readers have received the last message."""
        last = self.sent[-1].payload
        self.wait_for(lambda: all(bytes(reader.data[-len(last) :]) == last for reader in readers))

    def close(self):
        for reader in self.readers:
            reader.close()
        close_stream(self.stream)


@pytest.fixture
def open_scene():
    made = []

    def make(**options):
        made.append(Scene(**options))
        return made[-1]

    yield make
    for scene in made:
        scene.close()


def test_late_joiners_of_both_formats_get_headers_and_then_the_messages_from_the_keyframe_on(open_scene):
    scene = open_scene()
    scene.publish(25)
    readers = [scene.join(RECORDS), scene.join(RECORDS), scene.join()]
    assert readers[0].output is readers[1].output
    assert readers[2].output is scene.stream.published
    scene.publish(15)
    scene.wait_for_last(*readers)
    expected = scene.sent[2 * 20 :]
    headers = [Received(type_id, expected[0].timestamp, payload) for type_id, _, payload in scene.headers]
    for reader in readers:
        assert reader.messages() == [*headers, *expected]
        assert not reader.transport.close_reason


def test_the_output_keeps_the_kinds_and_the_join_point_of_the_stream(open_scene):
    scene = open_scene()
    scene.publish(25)
    log = scene.join(RECORDS).output.log
    read = list(log.read_all(log.join_page, log.join_offset))
    assert [each.kind for each in read] == [Kind.KEYFRAME, Kind.FRAME, *[Kind.FRAME] * 8]
    assert (log.join_timestamp, log.newest_timestamp) == (800, 965)
    assert log.lag_ms(log.join_page, log.join_offset) == 165


def test_a_slow_reader_is_moved_to_a_keyframe_and_the_others_get_every_message(open_scene):
    scene = open_scene(backpressure_policy="keyframe")
    slow = scene.join(RECORDS)
    others = [scene.join(RECORDS), scene.join(), scene.join(RECORDS)]
    scene.publish(5)
    scene.wait_for_last(slow, *others)
    slow.reads.clear()
    scene.publish(60)
    scene.wait_for_last(*others)
    assert slow.subscriber.skips > 0
    slow.reads.set()
    scene.wait_for_last(slow)
    scene.publish(5)
    scene.wait_for_last(slow, *others)
    for reader in others:
        assert reader.messages() == [*scene.headers, *scene.sent]
        assert reader.subscriber.skips == 0
    media = slow.media()
    assert media[: 2 + 10] == [*scene.headers, *scene.sent[:10]]
    received = media[2:]
    assert not slow.transport.close_reason
    assert slow.subscriber.dropped == scene.stream.counters.dropped == len(scene.sent) - len(received) > 0
    places = [scene.sent.index(each) for each in received]
    assert places == sorted(set(places))
    gaps = [after for before, after in pairwise(places) if after != before + 1]
    assert 1 <= len(gaps) <= slow.subscriber.skips == scene.stream.counters.skips
    assert all(scene.sent[after].payload[0] == keyframe()[0] for after in gaps)
    assert places[-1] == len(scene.sent) - 1


def test_a_slow_reader_is_disconnected_by_policy_and_the_others_get_every_message(open_scene):
    scene = open_scene(backpressure_policy="disconnect")
    slow = scene.join(RECORDS)
    others = [scene.join(RECORDS), scene.join()]
    scene.publish(5)
    scene.wait_for_last(slow, *others)
    slow.reads.clear()
    scene.publish(40)
    scene.wait_for_last(*others)
    assert slow.transport.close_reason.kind is CloseKind.EXPELLED
    assert "lag_limit_bytes is 200000" in slow.transport.close_reason
    assert scene.stream.counters.disconnects == 1
    assert len(slow.output.fanout) == 1
    slow.reads.set()
    slow.greenlet.join(LIMIT_S)
    assert slow.greenlet.dead
    records, rest = slow.records()
    # What its socket had accepted arrives; there is no room for the end of the last message, or the notice.
    assert records == [*scene.headers, *scene.sent][: len(records)]
    assert len(records) >= 2 + 10
    following = record(*[*scene.headers, *scene.sent][len(records)])
    assert following.startswith(rest)
    for reader in others:
        assert reader.messages() == [*scene.headers, *scene.sent]
        assert not reader.transport.close_reason


def test_a_notice_comes_behind_the_last_message(open_scene):
    scene = open_scene()
    readers = [scene.join(RECORDS), scene.join(RECORDS)]
    scene.publish(3)
    scene.stream.end()
    scene.wait_for(lambda: all(reader.data.endswith(NoticeKind.UNPUBLISHED.name.encode()) for reader in readers))
    for reader in readers:
        assert reader.messages() == [
            *scene.headers,
            *scene.sent,
            Received(NOTICE, 0, NoticeKind.UNPUBLISHED.name.encode()),
        ]


def test_a_reader_may_have_a_framing_of_its_own_beside_those_that_share_the_bytes(open_scene):
    scene = open_scene()
    scene.publish(12)
    reader, other = scene.join(RECORDS, AudioRecords()), scene.join(RECORDS)
    scene.publish(12)
    scene.wait_for_last(reader, other)
    assert reader.messages() == [
        Received(AUDIO, 400, AAC_HEADER),
        *[each for each in scene.sent[20:] if each.type_id == AUDIO],
    ]
    assert other.media()[2:] == scene.sent[20:]


def test_data_messages_are_delivered_in_every_format(open_scene):
    scene = open_scene()
    readers = [scene.join(RECORDS), scene.join()]
    scene.publish(1)
    payload = b"\x02\x00\x0aonCuePoint\x05"
    scene.source.data(20, payload)
    scene.sent += [Received(DATA, 20, payload)]
    scene.wait_for_last(*readers)
    for reader in readers:
        assert reader.messages() == [*scene.headers, *scene.sent]


def test_the_output_is_dropped_a_while_after_its_last_reader(open_scene):
    scene = open_scene()
    reader = scene.join(RECORDS)
    assert scene.stream.outputs == [scene.stream.published, reader.output]
    reader.output.fanout.leave(reader.subscriber)
    now_s = time.monotonic()
    for second in range(20):
        scene.stream.sweep(now_s + second, 30)
    assert scene.stream.outputs == [scene.stream.published]
    assert RtmpFraming(CHUNK).name != RECORDS.name
