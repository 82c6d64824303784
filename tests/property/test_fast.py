"""The extension does exactly what the pure Python form does: results, exceptions, their texts, and what has been sent.

Each input is given to both forms. Without the extension there is nothing to compare. In the environment, RTMPD_FUZZ_BYTES is
how many bytes of random publishers the chunk readers are fed, and RTMPD_FUZZ_STREAMS how many streams are compared.
"""

from __future__ import annotations

import os
import random
import socket
import ssl
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gevent.socket
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtmpd.errors import RemoteProtocolError
from rtmpd.live.copies import CopyMerger
from rtmpd.live.framing import VIDEO
from rtmpd.live.pages import MAX_PAGE_BYTES
from rtmpd.media.rewrite import Content
from rtmpd.protocol.chunk import ChunkStreamState, RawMessage, ReaderState
from rtmpd.util import speed
from tests.property import copies_trace, delivery_trace, publish_trace
from tests.property.delivery_trace import BUFFERS, SocketTransport, drain
from tests.property.digests import digest
from tests.property.test_chunk import generators, message_lists, noise, pieces_of, write_interleaved
from tests.unit.live.fakes import (
    AAC_HEADER,
    AVC_HEADER,
    FakeTransport,
    Scene,
    close_stream,
    frame,
    keyframe,
    new_source,
    new_stream,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from rtmpd.live.copies import CopyInput
    from rtmpd.live.fanout import Fanout

_fast = pytest.importorskip("rtmpd._fast", reason="the extension is not built")

PURE = speed.PURE
CLOSED = OSError(9, "Bad file descriptor")


# Sending -------------------------------------------------------------------------------------------------------------------


@dataclass
class Member:
    """What `send_each` needs of a subscriber, and how to look at what was sent."""

    send: Callable[[object], int]
    received: Callable[[], bytes]


def member(stack: ExitStack, kind: str, filled: int) -> Member:
    """Make a member: a plain socket in a state, or something else that has a send."""
    if kind == "fake":
        transport = FakeTransport(filled)
        return Member(transport.try_send, lambda: bytes(transport.data))
    if kind == "fake error":
        transport = FakeTransport()
        transport.error = ConnectionResetError(104, "Connection reset by peer")
        return Member(transport.try_send, lambda: bytes(transport.data))
    if kind == "tcp":
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        there = stack.enter_context(socket.socket())
        there.connect(listener.getsockname())
        here = stack.enter_context(listener.accept()[0])
    else:
        here, there = map(stack.enter_context, socket.socketpair())
    if kind == "gevent":
        here = stack.enter_context(gevent.socket.socket(fileno=here.detach()))._sock
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFERS["small"])
    here.setblocking(False)
    there.setblocking(False)
    if kind == "full":
        with suppress(BlockingIOError):
            while True:
                here.send(bytes(512))
    elif kind == "peer closed":
        there.close()
    elif kind == "closed":
        here.close()
    elif kind == "shut down":
        here.shutdown(socket.SHUT_RDWR)
    return Member(here.send, lambda: b"" if there.fileno() < 0 else drain(there))


KINDS = ["fake", "fake error", "tcp", "unix", "gevent", "full", "peer closed", "closed", "shut down"]


def shown(result: tuple[int, int | OSError]) -> tuple[int, object]:
    index, sent = result
    return index, (type(sent), str(sent)) if isinstance(sent, OSError) else sent


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 3000)), min_size=1, max_size=6),
    st.sampled_from([0, 1, 1400, 3000, 40_000]),
    st.sampled_from([bytes, bytearray, memoryview]),
)
def test_both_forms_send_alike(kinds, size, make):
    data = bytes(range(256)) * (size // 256 + 1)
    outcomes = []
    for form in (PURE["send_each"], _fast.send_each):
        with ExitStack() as stack:
            members = [member(stack, *kind) for kind in kinds]
            results, index = [], 0
            while index < len(members):
                index, sent = form(members, index, len(members), make(data[:size]))
                results.append(shown((index, sent)))
                index += 1
            outcomes.append((results, [each.received() for each in members]))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("form", [PURE["send_each"], _fast.send_each])
def test_an_exception_that_is_no_error_of_a_connection_is_raised(form):
    def send(data: object) -> int:
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        form([Member(send, bytes)], 0, 1, b"x")
    with pytest.raises(IndexError):
        form([], 0, 1, b"x")


@pytest.mark.parametrize("form", [PURE["send_each"], _fast.send_each])
def test_a_tls_socket_encrypts(form):
    """Its send is not that of a plain socket, though it is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        wrapped = context.wrap_socket(here, do_handshake_on_connect=False)
        with wrapped:
            index, sent = form([Member(wrapped.send, bytes)], 0, 1, b"secret")
            assert index == 0
            assert b"secret" not in drain(there)
            assert sent == 0 or isinstance(sent, OSError)


def test_the_descriptor_is_that_of_the_socket_at_the_time_of_the_send():
    """A closed socket's number soon belongs to another connection."""
    here, there = socket.socketpair()
    other, beyond = None, None
    with there:
        each = Member(here.send, bytes)
        number = here.fileno()
        here.close()
        other, beyond = socket.socketpair()
        with other, beyond:
            beyond.setblocking(False)
            assert number in (other.fileno(), beyond.fileno())
            index, sent = _fast.send_each([each], 0, 1, b"x")
            assert (index, sent.errno) == (0, 9)
            assert drain(beyond) == b""


# Chunks --------------------------------------------------------------------------------------------------------------------

FUZZ_BYTES = int(os.environ.get("RTMPD_FUZZ_BYTES", "3000000"))
LIMITS = {"message_limit_bytes": 100_000, "chunk_stream_limit": 7}
EDGE_TIMES = [0, 1, 0xFFFFFE, 0xFFFFFF, 0x1000000, 0x7FFFFFFF, 0x80000000, 0xFF000000, 0xFFFFFFFE, 0xFFFFFFFF]
SOME_CSIDS = [2, 3, 4, 6, 15, 16, 63, 64, 319, 320, 65599]
SOME_CHUNK_SIZES = [1, 2, 5, 64, 127, 128, 129, 4096, 65_536]
SOME_LENGTHS = [0, 1, 3, 4, 5, 127, 128, 129, 1600, 9000]


class WildPublisher:
    """Writes chunks as an encoder does, or as only a bad one does: any header where it may or must not be, at random.

    Most messages are whole and in order, so that a reader goes on for long.
    """

    def __init__(self, generator: random.Random) -> None:
        self.random = generator
        self.chunk_size = 128
        self.csids = generator.sample(SOME_CSIDS, generator.randint(1, 6))
        self.wildness = generator.choice([0, 0.002, 0.02, 0.2])
        self.time = generator.choice(EDGE_TIMES)
        self.lengths: dict[int, int] = {}
        self.left: dict[int, int] = {}
        self.fields: dict[int, int] = {}  # extended timestamps

    def basic(self, fmt: int, csid: int) -> bytes:
        if csid < 64:
            return bytes((fmt << 6 | csid,))
        if csid < 320 and self.random.random() < 0.7:
            return bytes((fmt << 6, csid - 64))
        return bytes((fmt << 6 | 1,)) + (csid - 64).to_bytes(2, "little")

    def chunk(self) -> bytes:
        """Write one chunk."""
        wild = self.random.random() < self.wildness
        if wild and self.random.random() < 0.3:
            return self.control(2, self.random.choice([*self.csids, 7]))
        if self.random.random() < 0.01:
            size = self.random.choice(SOME_CHUNK_SIZES)
            data = self.control(1, size)
            self.chunk_size = size
            return data
        csid = self.random.choice(self.csids)
        inside = self.left.get(csid, 0) > 0
        if wild:
            fmt = self.random.randrange(4)
        elif inside:
            fmt = 3
        else:
            fmt = self.random.randrange(4) if csid in self.lengths else 0
        data = self.basic(fmt, csid)
        if fmt < 3:
            data += self.header(fmt, csid, inside and self.random.random() < 0.7)
        elif csid in self.fields and self.random.random() < 0.8:
            data += (self.fields[csid] ^ self.random.choice([0, 0, 0x80000000])).to_bytes(4, "big")
        if fmt == 3 and not inside:
            self.left[csid] = self.lengths.get(csid, 0)
        piece = self.random.randbytes(min(self.left.get(csid, 0), self.chunk_size))
        self.left[csid] = self.left.get(csid, 0) - len(piece)
        return data + piece

    def header(self, fmt: int, csid: int, same: bool) -> bytes:
        self.time = (self.time + self.random.choice([0, 23, 40, 40, 40, -1, 0xFFFFFF, 0x80000000])) & 0xFFFFFFFF
        time = self.time if fmt == 0 else self.random.choice([0, 23, 40, *EDGE_TIMES])
        extended = time >= 0xFFFFFF or self.random.random() < 0.05
        data = b"\xff\xff\xff" if extended else time.to_bytes(3, "big")
        if fmt < 2:
            if not same:
                self.lengths[csid] = self.random.choice(SOME_LENGTHS)
            data += self.lengths.get(csid, 0).to_bytes(3, "big") + bytes((9 if same else self.random.choice([3, 8, 9, 9, 18]),))
        if fmt == 0:
            data += (1).to_bytes(4, "little")
        self.fields.pop(csid, None)
        if extended:
            data += time.to_bytes(4, "big")
            self.fields[csid] = time
        if not same:
            self.left[csid] = self.lengths.get(csid, 0)
        return data

    def control(self, type_id: int, value: int) -> bytes:
        payload = value.to_bytes(4, "big")
        data = b"\x02\0\0\0\0\0\4" + bytes((type_id,)) + b"\0\0\0\0" + payload[: self.chunk_size]
        for start in range(self.chunk_size, 4, self.chunk_size):
            data += b"\xc2" + payload[start : start + self.chunk_size]
        self.lengths[2], self.left[2] = 4, 0
        self.fields.pop(2, None)
        return data

    def write(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            data += self.chunk()
        if self.wildness and self.random.random() < 0.5:
            for _ in range(self.random.randint(1, 3)):
                data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        return bytes(data)


class Pair:
    """A reader of each form, which are fed alike and compared after each step."""

    def __init__(self, **limits: int) -> None:
        self.limits = limits
        self.readers = [form(**limits) for form in (PURE["ChunkReader"], _fast.ChunkReader)]

    def each(self, step: Callable[[object], object]) -> object:
        outcomes = []
        for reader in self.readers:
            try:
                outcomes.append(step(reader))
            except RemoteProtocolError as error:
                outcomes.append((type(error), str(error), vars(error)))
        assert outcomes[0] == outcomes[1]
        return outcomes[0]

    def feed(self, piece: bytes | bytearray | memoryview, *chunk_limit: int) -> bool:
        """Feed a piece, and whatever stays unread; return whether the readers are still good."""
        while True:
            found = self.each(lambda reader, piece=piece: reader.feed(piece, *chunk_limit))
            if isinstance(found, tuple):
                return False
            assert all(type(message) is RawMessage and type(message.payload) is bytes for message in found)
            self.each(lambda reader: (reader.buffered_bytes, reader.unread, reader.chunk_size, reader.dropped_messages))
            piece = b""
            if not self.readers[0].unread:
                return True

    def compare_states(self) -> ReaderState:
        state = self.each(lambda reader: reader.export_state())
        assert type(state) is ReaderState
        assert all(type(stream) is ChunkStreamState for stream in state.streams)
        return state

    def exchange(self) -> None:
        """Let each form continue where the other was."""
        states = [reader.export_state() for reader in self.readers]
        self.readers = [
            PURE["ChunkReader"].from_state(states[1], **self.limits),
            _fast.ChunkReader.from_state(states[0], **self.limits),
        ]


def compare(data: bytes, generator: random.Random, *, usual: int = 4000) -> int:
    """Feed both forms in random pieces, each as some type of buffer; return how many bytes that were, up to an error."""
    pair = Pair(**LIMITS)
    if generator.random() < 0.3:
        pair.each(lambda reader: reader.limit_buffered(5000, "some bytes"))
    position = 0
    while position < len(data):
        size = generator.choice([1, 2, 3, 11, 200, usual, usual])
        size = generator.randint(1, size)
        piece = generator.choice([bytes, bytearray, memoryview])(data[position : position + size])
        position += size
        if not pair.feed(piece, *([generator.choice([1, 2, 40])] if generator.random() < 0.3 else [])):
            return position
        if generator.random() < 0.1:
            pair.compare_states()
        if generator.random() < 0.02:
            pair.exchange()
    pair.compare_states()
    return len(data)


def test_growth_is_reported_alike():
    pair, reported = Pair(), ([], [])
    for reader, found in zip(pair.readers, reported, strict=True):
        reader.on_growth = lambda reader=reader, found=found: found.append(reader.buffered_bytes)
        reader.chunk_size = 65536
    header = b"\x06\0\0\1\x60\0\0\x09\1\0\0\0"
    for number in range(60):
        assert pair.feed((b"\xc6" if number else header) + bytes(65536))
        pair.each(lambda reader: reader.grown)
        if number == 40:
            pair.each(lambda reader: reader.watch_growth())
    assert reported[0] == reported[1]
    assert len(reported[0]) == 3
    # No limit is exceeded for it.
    pair.each(lambda reader: reader.limit_buffered(60 * 65536, "some bytes"))
    assert not pair.feed(b"\xc6x")


def test_random_publishers_are_read_alike():
    fed = seed = 0
    while fed < FUZZ_BYTES:
        generator = random.Random(seed)
        data = WildPublisher(generator).write(generator.choice([300, 3000, 60_000]))
        try:
            fed += compare(data, generator)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        seed += 1


@settings(deadline=None, max_examples=300)
@given(message_lists(), generators)
def test_chunks_of_other_writers_are_read_alike(sent, generator):
    compare(write_interleaved(sent, generator)[0], generator, usual=100)


@settings(deadline=None, max_examples=300)
@given(noise, generators)
def test_any_bytes_are_read_alike(data, generator):
    pair = Pair(**LIMITS)
    for piece in pieces_of(data, generator):
        if not pair.feed(piece):
            return
        pair.compare_states()


@pytest.mark.parametrize("form", [PURE["ChunkReader"], _fast.ChunkReader])
def test_a_reader_is_independent_of_the_one_whose_state_it_has(form):
    first = form()
    assert first.feed(b"\x03\0\0\1\0\0\5\x09\1\0\0\0ab\x04\0"[:14]) == []
    second = form.from_state(first.export_state())
    assert second.buffered_bytes == 2
    assert first.feed(b"cde") == [RawMessage(9, 1, 1, b"abcde")]
    assert second.feed(b"xyz\x04\0") == [RawMessage(9, 1, 1, b"abxyz")]
    assert second.export_state().tail == b"\x04\0"
    assert form.from_state(second.export_state()).export_state() == second.export_state()


STREAM = ChunkStreamState(4, 0, 0, 10, 9, 1, None, b"abc")
STATE = ReaderState(128, (STREAM,), 4, 7, b"", False, 0)


@pytest.mark.parametrize("form", [PURE["ChunkReader"], _fast.ChunkReader])
@pytest.mark.parametrize(
    "state",
    [
        STATE._replace(chunk_size=0),
        STATE._replace(chunk_size=1 << 31),
        STATE._replace(chunk_left=8),
        STATE._replace(chunk_left=0),
        STATE._replace(chunk_left=-1),
        STATE._replace(current=None),
        STATE._replace(current=5),
        STATE._replace(tail=b"x"),
        STATE._replace(unread=True),
        STATE._replace(dropped_messages=-1),
        STATE._replace(streams=()),
        STATE._replace(streams=(STREAM, STREAM)),
        *(
            STATE._replace(streams=(STREAM._replace(**{name: value}),))
            for name, value in {
                "csid": 1,
                "timestamp": 1 << 32,
                "delta": -1,
                "length": 1 << 24,
                "type_id": 256,
                "message_stream_id": -1,
                "extended": 1 << 32,
                "payload": None,
            }.items()
        ),
        STATE._replace(streams=(STREAM._replace(payload=bytes(10)),)),
    ],
)
def test_a_state_that_no_reader_can_have_is_refused(form, state):
    form.from_state(STATE)
    with pytest.raises(ValueError, match="no reader of chunks can be in this state"):
        form.from_state(state)


# From the wire to the players ----------------------------------------------------------------------------------------------

FUZZ_STREAMS = int(os.environ.get("RTMPD_FUZZ_STREAMS", "150"))


def in_pure_python(trace: ModuleType, *arguments: int) -> list[str]:
    """What a trace prints in a process that has the pure form."""
    command = [sys.executable, "-m", trace.__name__, *map(str, arguments)]
    environment = os.environ | {"RTMPD_PURE": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(speed.IN_USE != "compiled", reason="the extension is not in use")
@pytest.mark.timeout(120 + FUZZ_STREAMS)
@pytest.mark.parametrize(
    "trace",
    [publish_trace, copies_trace, delivery_trace],
    ids=["from the wire to the log", "identical copies", "from the log to the sockets"],
)
def test_streams_are_alike_from_the_wire_to_the_players(trace):
    """Log bytes, starts and kinds of messages, join point, timeline, counters, wake-ups, and what each player was sent.

    Of identical copies: what is emitted, counters, and which copy is held, behind or broken.
    From the log to the sockets: cursors, places of players, counters, the courier's turns, and what each socket has received.
    """
    for seed, expected in enumerate(in_pure_python(trace, 0, FUZZ_STREAMS)):
        if digest(trace.steps(seed)) != expected:
            steps = zip(trace.steps(seed), in_pure_python(trace, seed), strict=True)
            for number, (compiled, pure) in enumerate(steps):
                assert repr(compiled) == pure, f"seed {seed}, step {number}"
            pytest.fail(f"seed {seed} is different each time")


@pytest.mark.skipif(speed.IN_USE != "compiled", reason="the extension is not in use")
@pytest.mark.parametrize("name", ["video", "audio"])
def test_the_ordinary_frames_are_those_of_the_pure_form(name):
    """Every first two bytes: the pure form appends what the compiled one takes for an ordinary frame, as a frame."""
    stream, source = new_stream(), new_source()
    stream.begin(source)
    source.audio(0, AAC_HEADER)
    source.video(0, AVC_HEADER)
    source.video(0, keyframe())
    deliver, appended = stream.deliver, []
    stream.append = lambda *message: appended.append(message)
    stream.deliver = lambda *message: appended.append(message)
    for first in range(256):
        for second in range(256):
            found = []
            for take in (getattr(source, name), lambda *message: PURE[f"SourceState.{name}"](source, *message)):
                source.content = Content()
                source.stats.asks_audio = False
                appended.clear()
                take(0, bytes((first, second)) + b"\0\0\0\0")
                found.append(list(appended))
            assert found[0] == found[1], (first, second)
    stream.deliver = deliver
    close_stream(stream)


TRACK = ("first", "end", "newest_ms", "usual_ms", "gap_ms", "tolerance_ms", "duplicates", "filled")
LANE = ("offset_ms", "last_ms", "position", "mismatches")


def fields_of(state: object, names: tuple[str, ...]) -> list[int | float]:
    return [getattr(state, name) for name in names]


def remembered(track: object) -> list[tuple[int, int]]:
    """The frames of a merged sequence, and the errors beside them."""
    for number in (track.first - 1, track.end, -1):
        for ask in (track.time_of, track.signature_of, track.matched):
            with pytest.raises(KeyError):
                ask(number)
    return [(track.signature_of(number), track.time_of(number)) for number in range(track.first, track.end)]


def both_lanes(copies: int) -> list[list[object]]:
    """The lanes of copies with one merged sequence, in each form."""
    found = []
    for module in (PURE, vars(_fast)):
        track = module["MergedTrackState"]()
        found.append([module["CopyLaneState"](track, 0) for _ in range(copies)])
    return found


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from([0, 1, 2, 20, 20, 20, 21, 40, 900, 5000, -1, -20, -1500]),
            st.sampled_from([0, 0, 0, 1, -2, 9, 40]),
            st.integers(0, 9),
        ),
        max_size=200,
    ),
    st.sampled_from([0, 2**31, 2**32 - 60]),
)
def test_lanes_of_copies_take_the_same_frames(steps, base):
    """One copy appends frames, two follow: at any place, with other times and other payloads."""
    forms = both_lanes(3)
    time_ms = base
    for follower, step_ms, off_ms, deed in steps:
        time_ms += step_ms
        seen = []
        for lanes in forms:
            track, found = lanes[0].track, []
            found.append(lanes[0].take(time_ms, -deed))
            if found[0] == -2:
                found.append(track.append(-deed, time_ms))
                lanes[0].last_ms, lanes[0].position = time_ms, track.end - 1
            lane = lanes[1 + follower]
            number = lane.position + 1 if deed else max(track.first, track.end - 3)
            if number < track.end and number >= track.first:
                lane.position = number - 1
                found.append(lane.take(track.time_of(number) + off_ms, track.signature_of(number) + (deed == 9)))
            if deed == 8:
                track.matched(track.end - 1)
            seen.append((found, fields_of(track, TRACK), remembered(track), [fields_of(each, LANE) for each in lanes]))
        assert seen[0] == seen[1]


def test_merged_sequences_remember_4096_frames_or_8_s():
    for step_ms in (0, 1, 2, 50):
        pure, fast = both_lanes(1)
        for number in range(4500):
            for (lane,) in (pure, fast):
                if not number:
                    lane.position, lane.last_ms = -1, 0
                assert lane.take(number * step_ms, number) == number * step_ms
            if number % 500 == 499:
                assert fields_of(pure[0].track, TRACK) == fields_of(fast[0].track, TRACK)
                assert remembered(pure[0].track) == remembered(fast[0].track)
        # What is past 8 s after a pause is not remembered.
        for (lane,) in (pure, fast):
            lane.track.append(1, 4500 * step_ms + 8001)
            assert remembered(lane.track) == [(1, 4500 * step_ms + 8001)]


@pytest.mark.skipif(speed.IN_USE != "compiled", reason="the extension is not in use")
def test_only_the_first_frames_of_copies_and_those_after_a_gap_are_handed_over():
    found, pure = [], PURE["CopyInputState.append"]
    merger, scene = CopyMerger(), Scene()
    for copy in (1, 2):
        merger.add(copy)
    inputs = [merger.input(copy, scene.log, found.append) for copy in (1, 2)]
    handed: list[tuple[int, int]] = []

    def append(taking: CopyInput, *frame: object) -> None:
        handed.append((inputs.index(taking) + 1, frame[1]))
        pure(taking, *frame)

    _fast.hand_over("CopyInputState.append", append)
    try:
        for number in range(100):
            for index, each in enumerate(inputs):
                if index or number != 50:
                    each.append(VIDEO, number * 40, frame(str(number)), 0)
    finally:
        _fast.hand_over("CopyInputState.append", pure)
    # The first one of each copy has no place yet. After the gap, the leading copy waits for the other one.
    assert handed == [(1, 0), (2, 0), (1, 2040), (2, 2040)]
    assert [[timestamp for _, timestamp, _ in frames] for frames in found] == [[0], [2040]]
    assert merger.counters == (99, 0, 0, 1, 0)
    scene.close()


@pytest.fixture
def handed_over() -> Iterator[list[tuple[object, ...]]]:
    """How far each pass had come that was not ordinary."""
    found, pure = [], PURE["FanoutState.deliver_if_small"]

    def deliver_if_small(fanout: Fanout, *reached: object) -> None:
        found.append(reached)
        pure(fanout, *reached)

    _fast.hand_over("FanoutState.deliver_if_small", deliver_if_small)
    yield found
    _fast.hand_over("FanoutState.deliver_if_small", pure)


@pytest.mark.skipif(speed.IN_USE != "compiled", reason="the extension is not in use")
def test_a_pass_is_handed_over_at_the_first_socket_that_is_full_gone_or_not_plain(handed_over):
    with ExitStack() as stack:
        scene, fake = Scene(), FakeTransport()
        scene.log._page_bytes = MAX_PAGE_BYTES  # one page for all
        scene.video(keyframe())
        gone, full = SocketTransport(stack, "large"), SocketTransport(stack, "small")
        players = [scene.subscriber(transport) for transport in (gone, full, fake)]
        scene.fanout.join(players[0])
        scene.fanout.join(players[1])
        settle()

        def turn(size: int = 100) -> list[tuple[object, ...]]:
            handed_over.clear()
            scene.video(frame(size=size))
            settle()
            return list(handed_over)

        def catch_up() -> None:
            full.read()
            while full.watched:
                full.take()
                full.read()

        assert turn() == turn(0) == []
        ((index, sent),) = turn(30_000)
        assert index == 1
        assert 0 < sent < 30_000
        # It lags: the pump serves it.
        assert turn() == [()]
        catch_up()
        assert turn(3000) == turn(3000) == []
        assert turn(3000) == [(1, 0)]
        catch_up()
        assert turn() == []
        # One that is not plain enters.
        scene.fanout.join(players[2])
        settle()
        assert turn() == [(2, None)]
        scene.fanout.leave(players[2])
        assert turn() == []
        gone.there.close()
        ((index, error),) = turn()
        assert index == 0
        assert shown((index, error)) == (0, (BrokenPipeError, "[Errno 32] Broken pipe"))
        assert gone.close_reason
        turn()
        assert turn() == []
        full.read()
        assert bytes(full.data) == bytes(scene.log.tail.view[: scene.log.position])
        scene.close()


@pytest.mark.skipif(speed.IN_USE != "compiled", reason="the extension is not in use")
def test_a_pass_over_two_pages_is_ordinary_up_to_64_kib(handed_over):
    with ExitStack() as stack:
        scene = Scene()
        scene.video(keyframe())
        player = SocketTransport(stack, "large")
        scene.fanout.join(scene.subscriber(player))
        settle()

        def turn(until: Callable[[], bool], size: int = 500) -> list[tuple[object, ...]]:
            """Let messages come until one begins another page, and that holds."""
            handed_over.clear()
            first = scene.log.tail
            while scene.log.tail is first or not until():
                scene.video(frame(size=size))
            settle()
            player.read()
            while player.watched:
                player.take()
                player.read()
            return list(handed_over)

        for _ in range(5):
            assert turn(lambda: True) == []
            # The page is sent as a whole, then another one begins.
            page = scene.log.tail
            while page is scene.log.tail and page.end + 600 < page.size:
                scene.video(frame(size=500))
                settle()
            assert turn(lambda: True, 600) == []
        scene.log._page_bytes = MAX_PAGE_BYTES
        assert turn(lambda: True) == []
        position = scene.log.position
        assert turn(lambda: scene.log.position - position > 64 << 10, 50_000) == [()]
        assert bytes(player.data[-1000:]) == bytes(scene.log.tail.view[: scene.log.tail.end])[-1000:]
        scene.close()
