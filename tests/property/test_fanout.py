"""The central property of the project: the bytes that a player's socket has accepted are exactly those that it should have.

A script of random steps runs against a fan-out with fake sockets. Then each player's bytes are parsed and explained: from its
join point on all messages of the log, in order, no gap and no duplicate, the headers first; replies in between, each once; gaps
only where the player paused, switched audio or video off, was moved to a keyframe and that was counted, or where disposable
frames were left out, under the policy for that, and each was counted. A player that was disconnected got nothing after the
notice.

The explanation knows nothing of the fan-out's state. Where the outcome depends on how far a socket had come (a pause in the
middle of a pass, for example), it follows all possible histories, and fails when none of them fits.
"""

from __future__ import annotations

import random
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtmpd.live.framing import NO_HEADERS, Headers
from rtmpd.protocol.chunk import frame_message
from rtmpd.protocol.message import CSID_COMMAND, CSID_STATUS, MessageType, RawMessage, UserControlType, user_control
from tests.unit.live.fakes import FakeTime, FakeTransport, Scene, kind_of, live_pages, reader, video_headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.live.fanout import DeliveryCounters
    from rtmpd.live.subscriber import Subscriber

TAGS = {
    "key": b"\x17\x01",
    "frame": b"\x27\x01",
    "disposable": b"\x37\x01",
    "audio": b"\xaf\x01",
    "data": b"\x02D",
    "status": b"\x02S",
}
HEADER = b"\x17\x00"
TYPES = {"audio": MessageType.AUDIO, "data": MessageType.DATA_AMF0, "status": MessageType.COMMAND_AMF0}
EVENTS = (UserControlType.STREAM_BEGIN, UserControlType.STREAM_EOF, UserControlType.STREAM_DRY)
REPLY = b"\x02R"
FAREWELL = b"\x02\0\x08onStatus"
SOON = 1 << 60  # a position in the log that nothing reaches


# What there is to explain -----------------------------------------------------------------------------------------------


class Logged(NamedTuple):
    """A message of the log."""

    kind: str
    type_id: int
    timestamp: int
    payload: bytes


class Got(NamedTuple):
    """The player's socket has accepted a whole message: of the log, a reply, a header, or the notice before a disconnect.

    A user control event of the log does not contain its number: `what` is "control" then, and `number` is the event.
    """

    what: str
    number: int
    part: int = 0
    timestamp: int = 0


@dataclass
class Asked:
    """A request to the fan-out for this player.

    Attributes:
        deed: join, pause, resume, or receive.
        join: Where the join point was: its index in the log, or None.
        log_size: How many messages the log had.
        bound: The index from which on messages can't have escaped it.
        version: Of the headers at the time.
        settings: For receive: audio, video; None leaves it.
        at_once: No pass was under way, so that it took effect before anything else happened.
        taken: How many messages of the log the player had by then.
    """

    deed: str
    join: int | None
    log_size: int
    bound: int
    version: int
    settings: tuple[bool | None, ...] = ()
    at_once: bool = True
    taken: int = 0


class Settled(NamedTuple):
    """The fan-out had done all that it could do, and the join point was there."""

    join: int | None


@dataclass(eq=False)
class Player:
    """One subscriber and everything that happened to it, in order."""

    subscriber: Subscriber
    transport: FakeTransport
    story: list[Got | Asked | Settled] = field(default_factory=list)
    replies: int = 0
    bytes_taken: int = 0  # by earlier transports
    left: bool = False

    def __post_init__(self) -> None:
        self.reader = reader(CHUNK_SIZE)
        self.read = 0

    @property
    def failed(self) -> bool:
        return bool(self.transport.close_reason)

    @property
    def socket_bytes(self) -> int:
        return self.bytes_taken + len(self.transport.data)


CHUNK_SIZE = 300


class Script:
    """Runs steps, and keeps the books."""

    def __init__(self, **options: object) -> None:
        self.scene = Scene(CHUNK_SIZE, **{"lag_limit_s": 1000, "keyframe_wait_s": 1000, **options})
        self.log, self.fanout = self.scene.log, self.scene.fanout
        self.time = FakeTime(step_s=0.005)
        self.logged: list[Logged] = []
        self.joins: list[tuple[int, int]] = []  # join points: index in the log, version of the headers
        self.late_starts: set[tuple[int, int]] = set()  # places where a player may start without a keyframe, likewise
        self.headers: list[Headers] = [NO_HEADERS]  # by version; the last one is in force
        self.players: list[Player] = []
        self.calm = True
        self.timestamp = 0xFFFFFF - 300  # so that every script sees extended timestamps

    # Books

    @property
    def join(self) -> int | None:
        cached = self.log.join_page is not None and self.scene.options.live.gop_cache
        return self.joins[-1][0] if cached else None

    @property
    def version(self) -> int:
        return len(self.headers) - 1

    def present(self) -> list[Player]:
        return [player for player in self.players if not player.left]

    def ask(self, player: Player, deed: str, *audio_video: bool | None) -> None:
        self.hear(player)
        # Joining is never put off until a pass has ended.
        at_once = self.calm or deed == "join"
        bound = len(self.logged) if at_once else SOON
        version = self.version
        player.story.append(Asked(deed, self.join, len(self.logged), bound, version, audio_video, at_once))

    def hear(self, player: Player) -> None:
        """Note what the player's socket has taken since the last time."""
        data = player.transport.data
        self.note(player, bytes(data[player.read :]))
        player.read = len(data)

    def note(self, player: Player, data: bytes) -> None:
        player.story += [self.recognise(player, message) for message in player.reader.feed(data)]

    def recognise(self, player: Player, message: RawMessage) -> Got:
        """Find out which message it is; it must be that to the last byte."""
        type_id, stream_id, timestamp, payload = message
        own = player.subscriber.framing.message_stream_id
        if type_id == MessageType.USER_CONTROL:
            event = int.from_bytes(payload[:2], "big")
            assert event in EVENTS
            assert message == (type_id, 0, 0, event.to_bytes(2, "big") + own.to_bytes(4, "big"))
            return Got("control", event)
        number = int.from_bytes(payload[2:6], "big")
        if payload.startswith(FAREWELL):
            assert (type_id, stream_id, timestamp) == (MessageType.COMMAND_AMF0, own, 0)
            assert b"NetStream.Play.InsufficientBW" in payload
            return Got("farewell", 0)
        if payload[:2] == REPLY:
            assert message == (MessageType.COMMAND_AMF0, 0, 0, reply_payload(number, len(payload)))
            return Got("reply", number)
        if payload[:2] == HEADER:
            part = payload[6]
            assert (stream_id, type_id, payload) == (own, *self.headers[number].items[part])
            return Got("header", number, part, timestamp)
        expected = self.logged[number]
        assert message == (expected.type_id, own, expected.timestamp, expected.payload)
        return Got("log", number)

    # Steps

    def run(self, steps: list[tuple[object, ...]]) -> None:
        for name, *arguments in steps:
            getattr(self, f"do_{name}")(*arguments)

    def pick(self, index: int) -> Player | None:
        present = self.present()
        return present[index % len(present)] if present else None

    def do_append(self, kind: str, size: int) -> None:
        number = len(self.logged)
        if kind == "notice":
            logged = Logged(kind, MessageType.USER_CONTROL, 0, bytes((0, EVENTS[number % len(EVENTS)], 0, 0, 0, 1)))
        else:
            payload = (TAGS[kind] + number.to_bytes(4, "big")).ljust(size, bytes((65 + number % 26,)))
            self.timestamp += 7
            timestamp = 0 if kind == "status" else self.timestamp
            logged = Logged(kind, TYPES.get(kind, MessageType.VIDEO), timestamp, payload)
        self.logged.append(logged)
        # Without the cache, only waiting players may start.
        join_point = kind == "key" and (self.scene.options.live.gop_cache or self.fanout.wants_keyframe)
        if join_point:
            self.joins.append((number, self.version))
        if kind == "notice":
            self.log.append_notice(user_control(EVENTS[number % len(EVENTS)], 1))
        elif kind == "status":
            self.log.append_notice(frame_message(CSID_STATUS, logged.type_id, 1, 0, logged.payload, CHUNK_SIZE))
        else:
            type_id, payload = int(logged.type_id), logged.payload
            self.log.append(type_id, logged.timestamp, payload, kind_of(type_id, payload), join_point)

    def do_headers(self, sizes: list[int]) -> None:
        start = HEADER + (self.version + 1).to_bytes(4, "big")
        payloads = ((start + bytes((part,))).ljust(size, b"h") for part, size in enumerate(sizes))
        self.log.headers = video_headers(*payloads)
        self.headers.append(self.log.headers)

    def do_join(self, message_stream_id: int, capacity: int | None) -> None:
        transport = FakeTransport(capacity)
        player = Player(self.scene.subscriber(transport, message_stream_id), transport)
        self.players.append(player)
        self.ask(player, "join")
        self.fanout.join(player.subscriber)

    def do_leave(self, index: int) -> None:
        player = self.pick(index)
        if player is not None:
            owed = self.fanout.leave(player.subscriber)
            self.hear(player)
            player.left = True
            if not player.failed:
                self.note(player, owed)
                self.check_boundary(player)
            player.bytes_taken, player.transport.data = player.socket_bytes, Untouchable()

    def do_take(self, index: int, capacity: int | None) -> None:
        player = self.pick(index)
        if player is not None:
            player.transport.take(capacity)

    def do_reply(self, index: int, size: int) -> None:
        player = self.pick(index)
        if player is not None:
            payload = reply_payload(player.replies, size)
            player.replies += 1
            self.fanout.write(player.subscriber, frame_reply(payload))

    def do_pause(self, index: int) -> None:
        player = self.pick(index)
        if player is not None:
            self.ask(player, "pause")
            self.fanout.pause(player.subscriber)

    def do_resume(self, index: int) -> None:
        player = self.pick(index)
        if player is not None:
            self.ask(player, "resume")
            self.fanout.resume(player.subscriber)

    def do_receive(self, index: int, audio: bool | None, video: bool | None) -> None:
        player = self.pick(index)
        if player is not None:
            self.ask(player, "receive", audio, video)
            self.scene.receive(player.subscriber, audio=audio, video=video)

    def do_transport(self, index: int, capacity: int | None) -> None:
        player = self.pick(index)
        if player is not None and not player.failed:
            old, new = player.transport, FakeTransport(capacity)
            owed = self.fanout.change_transport(player.subscriber, new)
            assert not old.watched
            self.hear(player)
            self.note(player, owed)
            self.check_boundary(player)
            player.bytes_taken += len(old.data)
            old.data = Untouchable()
            player.transport, player.read = new, 0

    def do_fail(self, index: int) -> None:
        player = self.pick(index)
        if player is not None:
            player.transport.error = ConnectionResetError(104, "Connection reset by peer")

    def do_forget(self) -> None:
        self.log.forget_join_point()

    def do_sweep(self) -> None:
        self.fanout.sweep(self.time.now_s)

    def do_patience(self) -> None:
        """Let waiting players start without a keyframe, if there has been any media: they have waited long enough."""
        if self.log.join_page is None and self.log.newest_timestamp >= 0:
            self.late_starts.add((len(self.logged), self.version))
        self.fanout.sweep(self.time.now_s + 5000)

    def do_yield(self) -> None:
        self.calm = False
        gevent.sleep(0)

    def do_busy(self, kind: str, size: int) -> None:
        """Leave the fan-out in the middle of its work."""
        self.do_append(kind, size)
        self.do_yield()

    def do_flush(self, steps: list[tuple[object, ...]]) -> None:
        """Flush after a last message, as a stopping server does, while others go on."""
        self.calm = False
        self.do_append("status", 40)
        others = gevent.spawn(self.run, steps)
        self.fanout.flush()
        others.get()

    def do_settle(self) -> None:
        quiet, seen = 0, -1
        while quiet < 30 + 3 * len(self.players):
            gevent.sleep(0)
            sends = sum(player.transport.sends for player in self.players)
            quiet, seen = (quiet + 1 if sends == seen else 0), sends
        if not self.calm:
            for player in self.players:
                for each in player.story:
                    if isinstance(each, Asked):
                        each.bound = min(each.bound, len(self.logged))
        self.calm = True
        for player in self.present():
            self.hear(player)
            player.story.append(Settled(self.join))
        self.check_books()

    # What must hold at rest

    def check_boundary(self, player: Player) -> None:
        """Check that what is sent on this connection now is read as a message of its own."""
        assert player.reader.feed(frame_reply(b"\x02Rboundary")) == [
            (MessageType.COMMAND_AMF0, 0, 0, b"\x02Rboundary"),
        ]

    def check_books(self) -> None:
        taken = {id(player): player.socket_bytes for player in self.players}
        for player in self.players:
            assert self.fanout.sent_bytes(player.subscriber) == taken[id(player)]
        assert self.fanout.counters.bytes_sent == sum(taken.values())
        counters, policy = self.fanout.counters, self.scene.options.backpressure.backpressure_policy
        assert counters.skips == sum(player.subscriber.skips for player in self.players)
        assert counters.disposed == sum(player.subscriber.disposed for player in self.players)
        assert counters.disposed == 0 or policy == "nonref"
        disconnects = sum(player.transport.close_reason.startswith("it was too slow") for player in self.players)
        assert counters.disconnects == disconnects
        assert disconnects == 0 or policy == "disconnect"
        there = sum(not player.failed for player in self.present())
        assert len(self.fanout) == there
        assert self.fanout.active == bool(there)

    def finish(self) -> None:
        """Let each socket accept all bytes; then all must be explained, and each player be up to date."""
        for _ in range(3):
            self.do_settle()
            for player in self.present():
                player.transport.take()
        self.do_settle()
        for player in self.players:
            if not player.left and not player.failed:
                self.check_boundary(player)
            self.explain(player)
            assert not player.transport.watched
        for player in self.present():
            self.fanout.leave(player.subscriber)
        assert len(self.fanout) == 0
        assert not self.fanout.has_cursors

    def explain(self, player: Player) -> None:
        replies = [got.number for got in player.story if isinstance(got, Got) and got.what == "reply"]
        if player.failed:
            assert replies == list(range(len(replies)))
        else:
            assert replies == list(range(player.replies)), f"replies {replies}, {player.replies} were written"
        Explanation(self, player).check()


class Untouchable(bytearray):
    """The bytes of a transport that must no longer be written to."""

    def __iadd__(self, data: object) -> Untouchable:
        raise AssertionError("bytes for a player that has left, or on a transport that it has left")


def reply_payload(number: int, size: int) -> bytes:
    return (REPLY + number.to_bytes(4, "big")).ljust(size, b"r")


def frame_reply(payload: bytes) -> bytes:
    return frame_message(CSID_COMMAND, MessageType.COMMAND_AMF0, 0, 0, payload, CHUNK_SIZE)


# The explanation --------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """A possible state of a player, as seen from outside.

    Attributes:
        mode: out, waiting, paused or playing.
        next: playing: the index of the next message of the log; waiting: the first index to start at.
        asked: How many of the player's requests have taken effect.
        audio, video, gate: What it receives; gate: no video until a keyframe.
        version: Of the headers that it was last sent; -1 - n: it is to be sent those of version n or newer again.
        due: Headers that must come before anything of the log: (version, part, index of the message that follows), or None.
        skips: How often it was moved forward.
        disposed: How many disposable frames it was not sent.
    """

    mode: str = "out"
    next: int = 0
    asked: int = 0
    audio: bool = True
    video: bool = True
    gate: bool = False
    version: int = -1
    due: tuple[int, int, int] | None = None
    skips: int = 0
    disposed: int = 0


class Explanation:
    """Follows all possible histories of one player, and fails when there is none."""

    def __init__(self, script: Script, player: Player) -> None:
        self.script = script
        self.player = player
        self.asked = [each for each in player.story if isinstance(each, Asked)]
        self.known = 0  # how many of these have been asked so far in the story
        self.taken = 0  # how many messages of the log have come
        self.states = {State()}
        self.plain = player.subscriber.framing.message_stream_id == 1 and all(each.deed != "receive" for each in self.asked)

    def check(self) -> None:
        for place, each in enumerate(self.player.story):
            if isinstance(each, Asked):
                self.known += 1
                each.taken = self.taken
                after = self.states
            elif isinstance(each, Settled):
                after = self.settle(each)
            elif each.what == "reply":
                after = self.states
            elif each.what == "farewell":
                assert self.player.failed
                assert not any(isinstance(later, Got) for later in self.player.story[place + 1 :])
                after = self.states
            elif each.what == "header":
                after = self.take_header(each)
            else:
                after = self.take(each)
                self.taken += 1
            if not after:
                near = "\n".join(map(str, self.player.story[max(0, place - 12) : place + 3]))
                states = "\n".join(map(str, sorted(self.states, key=repr)[:12]))
                raise AssertionError(f"no explanation for {each}, after:\n{near}\nwith:\n{states}")
            self.states = after
        if not self.player.left and not self.player.failed:
            self.check_end()

    def check_end(self) -> None:
        """Check that a player that is still subscribed has all messages, or has a reason not to."""
        end = len(self.script.logged)
        for state in self.closure(self.states):
            if state.mode == "paused" and state.asked == len(self.asked):
                return
            if state.mode == "waiting" and self.script.join is None:
                return
            done = state.due is None and state.asked == len(self.asked) and state.next == end
            if state.mode == "playing" and done and state.disposed == self.player.subscriber.disposed:
                return
        raise AssertionError(f"the player is not up to date: {self.states}, the log has {end} messages")

    def may_act(self, state: State) -> bool:
        return state.asked < self.known

    def closure(self, states: set[State]) -> set[State]:
        """Add the states that are reached without a message."""
        found = set(states)
        todo = list(states)
        while todo:
            state = todo.pop()
            for after in self.silent(state):
                if after not in found:
                    found.add(after)
                    todo.append(after)
        return found

    def silent(self, state: State) -> list[State]:
        found: list[State] = []
        # Headers go out before anything else happens to a player.
        if state.due is not None:
            return found
        if state.mode == "waiting":
            found += self.starts(state)
        if state.mode == "playing" and state.skips < self.player.subscriber.skips:
            ahead = state._replace(skips=state.skips + 1)
            found.append(ahead._replace(mode="waiting"))
            found += [self.start(ahead, *join) for join in self.script.joins if join[0] > state.next]
        if state.mode == "playing" and state.next < len(self.script.logged):
            logged = self.script.logged[state.next]
            wanted, gate = self.wants(state, logged)
            disposable = logged.kind == "disposable" and state.disposed < self.player.subscriber.disposed
            if disposable and self.in_time(state, state.next):
                found.append(state._replace(next=state.next + 1, disposed=state.disposed + 1))
            if not wanted and self.in_time(state, state.next):
                found.append(state._replace(next=state.next + 1, gate=gate))
        if state.mode == "playing" and state.version < 0:
            # The headers that it is to be sent again may be none.
            headers = enumerate(self.script.headers)
            found += [state._replace(version=v) for v, each in headers if not each.items and v >= -1 - state.version]
        if self.may_act(state):
            found += self.act(state, self.asked[state.asked])
        return found

    def act(self, state: State, asked: Asked) -> list[State]:
        """Let a request take effect."""
        done = state._replace(asked=state.asked + 1)
        if asked.deed == "receive":
            audio, video = asked.settings
            if audio is not None:
                done = done._replace(audio=audio)
            if video is not None and video != state.video:
                done = done._replace(video=video, gate=video, version=-1 - asked.version if video else state.version)
            return [done]
        if asked.deed == "pause":
            return [done._replace(mode="paused")]
        if asked.deed == "resume" and state.mode != "paused":
            return [done]
        if asked.at_once:
            # At once: from the join point, or the next one.
            if asked.join is not None:
                return [self.start(done, *join) for join in self.script.joins if join[0] == asked.join]
            return [done._replace(mode="waiting", next=asked.log_size)]
        earliest = asked.log_size if asked.join is None else asked.join
        early = self.starts(done._replace(mode="waiting", next=earliest), asked.bound)
        return [*early, done._replace(mode="waiting", next=asked.log_size)]

    def starts(self, state: State, bound: int = SOON) -> list[State]:
        """Start at any join point, or place to start without one, from ``state.next`` on."""
        found = [self.start(state, *join) for join in self.script.joins if state.next <= join[0] < bound]
        found += [self.start(state, *late, timed=False) for late in self.script.late_starts if state.next <= late[0] <= bound]
        return found

    def start(self, state: State, index: int, version: int, timed: bool = True) -> State:
        due = None
        if state.version != version and self.script.headers[version].items:
            due = (version, 0, index if timed else -1)
        return state._replace(mode="playing", next=index, version=version, due=due)

    def take_header(self, got: Got) -> set[State]:
        after = set()
        count = len(self.script.headers[got.number].items)
        for state in self.closure(self.states):
            due = state.due
            if due is None and state.mode == "playing" and state.version < 0 and got.number >= -1 - state.version:
                due = (got.number, 0, -1)
            if due is None or due[:2] != (got.number, got.part):
                continue
            if due[2] >= 0 and got.timestamp != self.script.logged[due[2]].timestamp:
                continue
            rest = (due[0], due[1] + 1, due[2]) if due[1] + 1 < count else None
            after.add(state._replace(version=got.number, due=rest))
        return after

    def take(self, got: Got) -> set[State]:
        """A message of the log has come: it must be the next one that the player is to have."""
        after = set()
        for state in self.closure(self.states):
            number = state.next
            if state.mode == "playing" and self.is_message(got, number) and state.due is None and state.version >= 0:
                wanted, gate = self.wants(state, self.script.logged[number])
                if wanted and self.in_time(state, number) and not self.paused(state):
                    after.add(state._replace(next=number + 1, gate=gate))
        return after

    def is_message(self, got: Got, number: int) -> bool:
        """Return whether the message that has come may be message *number* of the log."""
        if got.what == "log":
            return got.number == number
        logged = self.script.logged[number] if number < len(self.script.logged) else None
        return logged is not None and logged.kind == "notice" and logged.payload[1] == got.number

    def in_time(self, state: State, index: int) -> bool:
        """Whether everything that was asked before a message came into the log has taken effect."""
        return all(asked.bound > index for asked in self.asked[state.asked : self.known])

    def paused(self, state: State) -> bool:
        """Whether this would be the second message after a pause: the first may have been half sent."""
        return self.plain and any(
            asked.deed == "pause" and asked.at_once and self.taken > asked.taken
            for asked in self.asked[state.asked : self.known]
        )

    @staticmethod
    def wants(state: State, logged: Logged) -> tuple[bool, bool]:
        if logged.type_id == MessageType.AUDIO:
            return state.audio, state.gate
        if logged.type_id == MessageType.VIDEO:
            if not state.video:
                return False, state.gate
            return not state.gate or logged.kind == "key", state.gate and logged.kind != "key"
        return True, state.gate

    def settle(self, settled: Settled) -> set[State]:
        """Between passes no player waits while there is a join point."""
        if settled.join is None:
            return self.states
        return {
            state
            for state in self.closure(self.states)
            if state.mode != "waiting" and not (state.mode == "out" and state.asked < self.known)
        }


# Scripts ----------------------------------------------------------------------------------------------------------------

INDEX = st.integers(0, 7)
CAPACITY = st.none() | st.integers(0, 2500)
SIZES = st.sampled_from([0, 40, 299, 300, 301, 700, 2500])
STREAM_IDS = st.sampled_from([1, 1, 1, 7])

STEPS = {
    "append": (
        8,
        st.tuples(st.sampled_from(["key", "frame", "frame", "disposable", "audio", "data", "status", "notice"]), SIZES),
    ),
    "headers": (1, st.tuples(st.lists(st.sampled_from([7, 40, 700]), max_size=3))),
    "join": (3, st.tuples(STREAM_IDS, CAPACITY)),
    "leave": (1, st.tuples(INDEX)),
    "take": (4, st.tuples(INDEX, CAPACITY)),
    "reply": (2, st.tuples(INDEX, SIZES)),
    "pause": (1, st.tuples(INDEX)),
    "resume": (2, st.tuples(INDEX)),
    "receive": (3, st.tuples(INDEX, st.sampled_from([None, True, False]), st.sampled_from([None, True, False]))),
    "transport": (1, st.tuples(INDEX, CAPACITY)),
    "fail": (1, st.tuples(INDEX)),
    "forget": (1, st.tuples()),
    "sweep": (1, st.tuples()),
    "patience": (1, st.tuples()),
    "yield": (4, st.tuples()),
    "busy": (6, st.tuples(st.sampled_from(["key", "frame", "disposable", "audio"]), SIZES)),
    "settle": (2, st.tuples()),
    "flush": (1, st.tuples(st.lists(st.tuples(st.just("append"), st.sampled_from(["key", "frame"]), SIZES), max_size=2))),
}


def step(name: str) -> st.SearchStrategy[tuple[object, ...]]:
    return STEPS[name][1].map(lambda arguments: (name, *arguments))


ONE_STEP = st.sampled_from([name for name, (weight, _) in STEPS.items() for _ in range(weight)]).flatmap(step)
JOIN = ("join", 1, None)
LIMITS = st.fixed_dictionaries(
    {
        "lag_limit_bytes": st.sampled_from([1500, 6000, 1 << 20]),
        "gop_cache_limit_bytes": st.sampled_from([3000, 1 << 20]),
        "gop_cache": st.sampled_from([True, True, False]),
        "backpressure_policy": st.sampled_from(["keyframe", "nonref", "disconnect"]),
        "lag_limit_s": st.sampled_from([1000, 1000, 0.2]),
        "max_latency_s": st.sampled_from([0, 0, 0.1, 0.3]),
    }
)


# Small pages, small gathers, and blocks of two players: each pass gives way in its middle, and the script continues there.
PAGES = {"log.MIN_PAGE_BYTES": 256, "log.MAX_PAGE_BYTES": 1024}
PUMPED = {**PAGES, "fanout.SMALL": 0}
SMALL = {**PUMPED, "fanout._BLOCK": 2, "fanout._GATHER_BYTES": 3000, "subscriber._REFRAME_BYTES": 2000}
# A whole pass at once, by the courier, as long as all players are in sync; the pump does the rest.
COURIER = {**SMALL, "fanout.SMALL": 64}


@contextmanager
def stage(limits: dict[str, int], constants: dict[str, int]) -> Iterator[Script]:
    """Make a script whose time is a fake one, with other *constants* than the modules have."""
    with ExitStack() as stack:
        for name, value in constants.items():
            stack.enter_context(mock.patch(f"rtmpd.live.{name}", value))
        # Which frames are disposable is tested elsewhere.
        stack.enter_context(mock.patch("rtmpd.live.log.is_disposable", lambda data, _: data[:2] == TAGS["disposable"]))
        # The script counts the greenlets' turns, not the event loop's.
        stack.enter_context(mock.patch("rtmpd.util.event_loop._MOMENT_S", 0))
        script = Script(**limits)
        stack.enter_context(mock.patch("rtmpd.live.fanout.time", script.time))
        stack.callback(script.scene.close)
        yield script


def play(limits: dict[str, int], steps: list[tuple[object, ...]], constants: dict[str, int]) -> DeliveryCounters:
    with stage(limits, constants) as script:
        script.run(steps)
        script.finish()
        return script.fanout.counters


@pytest.mark.parametrize(("constants", "crowd"), [(SMALL, 6), (PUMPED, 150)])
def test_scripts_do_continue_in_the_middle_of_passes(constants, crowd):
    """Otherwise the scripts would show little."""
    with stage({}, constants) as script:
        script.run([("append", "key", 40), *[JOIN] * crowd, ("settle",), ("busy", "frame", 40)])
        taken = {len(player.transport.data) for player in script.players}
        assert len(taken) == 2
        script.finish()


@settings(deadline=None, max_examples=900)
@given(LIMITS, st.integers(0, 9), st.lists(ONE_STEP, max_size=60), st.sampled_from([SMALL, COURIER]))
def test_each_player_gets_exactly_what_it_should(limits, crowd, steps, constants):
    play(limits, [JOIN] * crowd + steps, constants)


def random_steps(source: random.Random, count: int) -> list[tuple[object, ...]]:
    """Steps like those of hypothesis, for scripts that are longer than it likes to make."""
    names = [name for name, (weight, _) in STEPS.items() for _ in range(weight)]

    def size() -> int:
        return source.choice([0, 40, 299, 300, 301, 700, 2500])

    def capacity() -> int | None:
        return source.choice([None, source.randrange(2500)])

    def switch() -> bool | None:
        return source.choice([None, True, False])

    def arguments(name: str) -> tuple[object, ...]:
        index = source.randrange(12)
        return {
            "append": lambda: (
                source.choice(["key", "frame", "frame", "disposable", "audio", "data", "status", "notice"]),
                size(),
            ),
            "busy": lambda: (source.choice(["key", "frame", "disposable", "audio"]), size()),
            "headers": lambda: ([source.choice([7, 40, 700]) for _ in range(source.randrange(3))],),
            "join": lambda: (source.choice([1, 1, 1, 7]), capacity()),
            "take": lambda: (index, capacity()),
            "reply": lambda: (index, size()),
            "receive": lambda: (index, switch(), switch()),
            "transport": lambda: (index, capacity()),
            "flush": lambda: ([("append", "frame", size())] * source.randrange(3),),
            "leave": lambda: (index,),
            "pause": lambda: (index,),
            "resume": lambda: (index,),
            "fail": lambda: (index,),
        }.get(name, tuple)()

    return [(name, *arguments(name)) for name in source.choices(names, k=count)]


@pytest.mark.parametrize("policy", ["keyframe", "nonref", "disconnect"])
@pytest.mark.parametrize("seed", range(8))
def test_each_player_of_a_long_script_gets_exactly_what_it_should(seed, policy):
    source = random.Random(seed)
    limits = {
        "backpressure_policy": policy,
        "max_latency_s": source.choice([0, 0.1, 0.3]),
        "lag_limit_bytes": source.choice([1500, 6000, 1 << 20]),
        "gop_cache_limit_bytes": source.choice([3000, 1 << 20]),
        "gop_cache": seed % 3 != 0,
    }
    before = live_pages()
    play(limits, random_steps(source, 400), {**(COURIER if seed % 2 else SMALL), "fanout._BLOCK": source.choice([1, 2, 3])})
    assert live_pages() == before


@pytest.mark.parametrize(("policy", "counted"), [("keyframe", "skips"), ("nonref", "disposed"), ("disconnect", "disconnects")])
def test_policies_do_act_in_scripts(policy, counted):
    """Otherwise the scripts would show little of the policies."""
    limits = {"backpressure_policy": policy, "lag_limit_bytes": 6000}
    tallies = [play(limits, random_steps(random.Random(seed), 400), SMALL) for seed in range(3)]
    assert sum(getattr(counters, counted) for counters in tallies) > 3


@pytest.mark.parametrize("seed", range(4))
def test_each_player_of_a_crowd_gets_exactly_what_it_should_with_the_real_constants(seed):
    source = random.Random(seed)
    limits = {"lag_limit_bytes": 1 << 16, "gop_cache_limit_bytes": 1 << 20}
    steps = [("append", "key", 700), *[JOIN] * 150, ("settle",)]
    for _ in range(12):
        steps += random_steps(source, 10)
        # Several passes over the whole crowd, each with steps of the script in its middle.
        steps += [("busy", "frame", 40), *random_steps(source, 3), ("take", source.randrange(150), None)]
    play(limits, steps, PAGES)
