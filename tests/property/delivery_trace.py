"""What the players of a few streams with one courier are sent, at sockets of the system, as digests of all that can be seen.

As `tests.property.publish_trace`, for the way from the logs to the sockets::

    python -m tests.property.delivery_trace FIRST STOP     one digest per seed
    python -m tests.property.delivery_trace SEED           what the digest of one seed is made of
"""

from __future__ import annotations

import hashlib
import logging
import random
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING
from unittest import mock

from rtmpd.live.courier import Courier
from rtmpd.live.fanout import SMALL, Fanout
from rtmpd.live.rtmp_framing import RtmpSubscriberFraming
from rtmpd.live.subscriber import State, Subscriber
from tests.property.digests import main
from tests.unit.live.fakes import FakeTime, FakeTransport, Scene, app_options, frame, keyframe, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEPS = 200
SOME_KINDS = ["small", "small", "small", "large"]
SOME_SIZES = [0, 30, 300, 300, 700, 3000]
BUFFERS = {"small": 4096, "large": 1 << 16}  # bytes of a socket


def drain(sock: socket.socket) -> bytes:
    """Return what a socket has received."""
    found = b""
    while True:
        try:
            data = sock.recv(1 << 20)
        except (BlockingIOError, ConnectionResetError):
            return found
        if not data:
            return found
        found += data


class Player(Subscriber):
    """A subscriber whose place in sets is that of its number, in every process."""

    __slots__ = ("number",)

    def __hash__(self) -> int:
        return self.number


class SocketTransport(FakeTransport):
    """A transport whose ``try_send`` is the method of a plain socket, as a connection's is.

    The socket is not one of TCP, where it depends on the kernel's timing when bytes arrive.
    """

    def __init__(self, stack: ExitStack, kind: str) -> None:
        super().__init__()
        self.here, self.there = map(stack.enter_context, socket.socketpair())
        self.here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFERS[kind])
        self.here.setblocking(False)
        self.there.setblocking(False)
        self.try_send = self.here.send

    def read(self) -> None:
        if self.there.fileno() >= 0:
            self.data += drain(self.there)


class Loop:
    """Stands in for the courier's event loop: callbacks and timers run when the script says so."""

    def __init__(self) -> None:
        self.loop = self
        self.called: list[Callable[[], None]] = []
        self.rested: Callable[[], None] | None = None

    def run_callback(self, callback: Callable[[], None]) -> None:
        self.called.append(callback)

    def timer(self, rest_s: float) -> Loop:
        return self

    def start(self, callback: Callable[[], None], **_: object) -> None:
        self.rested = callback

    def stop(self) -> None:
        self.rested = None

    close = stop

    def turn(self, *, rest: bool) -> None:
        called, self.called = self.called, []
        for callback in called:
            callback()
        rested = self.rested
        if rest and rested is not None:
            self.rested = None
            rested()


class Trace:
    """A random script, and what can be seen after each step."""

    def __init__(self, seed: int, stack: ExitStack, loop: Loop) -> None:
        self.random, self.stack, self.loop = random.Random(seed), stack, loop
        choose = self.random.choice
        self.courier = Courier(choose([0.2, 0.2, 1]))
        self.scenes = []
        for number in range(choose([1, 2, 3, 40])):
            scene = Scene(choose([128, 4096]), gop_cache=choose([True] * 6 + [False]))
            options = app_options(scene.options, pacing=choose([True, False]))
            scene.fanout = Fanout(scene.log, options, f"live/{number}", courier=self.courier)
            scene.video(keyframe())
            self.scenes.append(scene)
        self.players: list[tuple[Scene, Player, FakeTransport]] = []
        self.kinds = choose([SOME_KINDS, SOME_KINDS, [*SOME_KINDS, "fake", "fake"]])
        self.calm = choose([0.3, 0.7, 0.9])
        for scene in self.scenes:
            for _ in range(choose([1, 2, 4, 9] if len(self.scenes) < 10 else [1, 2])):
                self.join(scene)
        if self.random.random() < 0.05:
            for _ in range(choose([SMALL - 1, SMALL, SMALL + 1])):
                self.join(self.scenes[0], choose([*self.kinds, "fake"]))

    def message(self, scene: Scene | None = None) -> None:
        scene = scene or self.random.choice(self.scenes)
        size = self.random.choice(SOME_SIZES)
        label = str(self.random.randrange(1000))
        scene.video(keyframe(label, size) if self.random.random() < 0.05 else frame(label, size))

    def join(self, scene: Scene, kind: str = "") -> None:
        kind = kind or self.random.choice(self.kinds)
        transport = FakeTransport(self.random.choice([None, 9000])) if kind == "fake" else SocketTransport(self.stack, kind)
        framing = RtmpSubscriberFraming(scene.chunk_size, self.random.choice([1] * 9 + [2]))
        subscriber = Player(transport, framing, "the player")
        subscriber.number = len(self.players)
        self.players.append((scene, subscriber, transport))
        scene.fanout.join(subscriber)

    def deed(self, *, inside: bool = False) -> None:
        """A player joins, leaves or asks for something, or something happens to its socket."""
        choose = self.random.choice
        deed = choose(["join", "leave", "reply", "pause", "resume", "reset", "close", "bug", "fill", "forget", "surprise"])
        if deed == "join":
            self.join(choose(self.scenes))
        elif deed == "forget":
            # Who joins now waits for a keyframe.
            scene = choose(self.scenes)
            scene.log.forget_join_point()
            self.join(scene)
        if not self.players:
            return
        scene, subscriber, transport = choose(self.players)
        plain = isinstance(transport, SocketTransport)
        if deed == "leave" and subscriber.state is not State.REMOVED:
            scene.fanout.leave(subscriber)
        elif deed == "reply":
            scene.fanout.write(subscriber, scene.reply("reply"))
        elif deed == "pause":
            scene.fanout.pause(subscriber)
        elif deed == "resume":
            scene.fanout.resume(subscriber)
        elif deed == "reset":
            if plain:
                # The error that the next send finds depends on whether the peer has read everything.
                if choose([True, False]):
                    transport.read()
                transport.there.close()
            else:
                transport.error = ConnectionResetError(104, "Connection reset by peer")
        elif deed == "close" and plain:
            transport.here.close()
        elif deed == "bug" and not plain:
            transport.error = KeyError("bug")
        elif deed == "fill" and not plain:
            transport.capacity = choose([0, 1, 2000])
        elif deed == "surprise" and not plain and not inside:
            transport.on_send = lambda: self.surprise(transport)

    def surprise(self, transport: FakeTransport) -> None:
        """Something happens while another player is sent something."""
        transport.on_send = None
        self.deed(inside=True)
        if self.random.random() < 0.3:
            self.message()

    def step(self) -> None:
        kind = self.random.random()
        if kind < 0.4:
            self.message()
        elif kind < 0.5:
            for scene in self.scenes:
                self.message(scene)
        elif kind < 0.7:
            self.loop.turn(rest=self.random.random() < 0.7)
        elif kind < 0.77:
            settle(5)
        elif kind < 0.9:
            for _, _, transport in self.players:
                if isinstance(transport, SocketTransport):
                    transport.read()
                    transport.take()
                elif self.random.random() < 0.5:
                    transport.take(self.random.choice([None, 1000]))
        elif self.random.random() > self.calm:
            self.deed()
        else:
            self.message(self.players[-1][0])

    def seen(self) -> list[object]:
        """What there is to compare."""
        found: list[object] = [len(self.courier._due), int(self.courier._state), len(self.loop.called)]
        for scene in self.scenes:
            fanout = scene.fanout
            group = fanout._group
            cursor = (group.position, group.offset, len(group), len(group.members), bool(group.passing), bool(fanout._noted))
            apart = (len(fanout._lagging), len(fanout._waiting), len(fanout._paused), len(fanout._after_pass), fanout.active)
            found.append((cursor, apart, repr(fanout.counters)))
        for scene, subscriber, transport in self.players:
            own = (subscriber.state.name, subscriber.blocked, scene.fanout.sent_bytes(subscriber), bytes(subscriber.pending))
            found.append((*own, subscriber.position, transport.sends, str(transport.close_reason)))
        return found

    def received(self) -> list[object]:
        """What the players have received."""
        found: list[object] = []
        for _, _, transport in self.players:
            if isinstance(transport, SocketTransport):
                transport.read()
            found.append((len(transport.data), hashlib.sha1(transport.data, usedforsecurity=False).hexdigest()))
        return found

    def run(self) -> Iterator[list[object]]:
        for _ in range(STEPS):
            self.step()
            yield self.seen()
        for _ in range(4):
            self.loop.turn(rest=True)
            settle(5)
        yield self.seen()
        yield self.received()
        for scene in self.scenes:
            scene.close()


def steps(seed: int) -> Iterator[list[object]]:
    """Yield what can be seen after each step. The clock of the machine decides nothing of it."""
    loop = Loop()
    with ExitStack() as stack:
        for name in ("source", "fanout"):
            stack.enter_context(mock.patch(f"rtmpd.live.{name}.time", FakeTime()))
        stack.enter_context(mock.patch("rtmpd.live.fanout._AFTER_ERROR_S", 0))
        # A turn takes a part of a millisecond for each look at the clock: rests follow.
        stack.enter_context(mock.patch("rtmpd.live.courier.time", FakeTime(step_s=0.0011 if seed % 2 else 0.004)))
        stack.enter_context(mock.patch("rtmpd.live.courier.get_hub", return_value=loop))
        stack.enter_context(mock.patch.object(logging.getLogger("rtmpd.live.fanout"), "disabled", True))
        yield from Trace(seed, stack, loop).run()


if __name__ == "__main__":
    main(steps)
