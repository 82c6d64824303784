"""A subscriber: one reader's place in a log, and the bytes that wait to be sent to it.

Sends from a cursor of its own as far as its socket accepts data; when that happens, and which subscribers share a cursor, is
decided by `rtmpd.live.fanout`.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rtmpd.live.framing import Headers
from rtmpd.util.speed import accelerated

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.live.framing import SubscriberFraming
    from rtmpd.live.log import Log
    from rtmpd.live.pages import Page
    from rtmpd.phases import CloseReason

_REFRAME_BYTES = 64 << 10
"""How much is framed ahead for a subscriber that can't use the log's bytes."""


class SubscriberTransport(Protocol):
    """The connection that a subscriber writes to: a plain socket's non-blocking side."""

    def try_send(self, data: bytes | bytearray | memoryview) -> int:
        """Send without waiting; return how many bytes were accepted.

        Raises:
            BlockingIOError: Nothing fits now. OSError: The connection is gone.
        """

    def watch_writable(self, callback: Callable[[], None]) -> None:
        """Call *callback*, in the event loop, once the socket accepts data again."""

    def unwatch_writable(self) -> None:
        """Stop watching; harmless if it was not started."""

    def close(self, reason: CloseReason) -> None:
        """Close the connection; its session ends with *reason*."""


class State(enum.Enum):
    """Where a subscriber gets its bytes from."""

    WAITING = "waits for a keyframe"
    GROUP = "in sync: at the group's cursor"
    LAGGING = "has a cursor of its own: behind the group, or framed for it alone"
    PAUSED = "paused: has no cursor, and holds no pages"
    REMOVED = "has left, or its connection has failed"


class Progress(enum.Enum):
    """How far `Subscriber.advance` came."""

    IN_SYNC = "everything up to the limit was sent"
    BLOCKED = "the socket is full"
    IDLE = "there is nothing to send now"


class Slow(NamedTuple):
    """A subscriber begins to lose messages, since it is too slow.

    Attributes:
        action: ``skip`` (moved to a keyframe), ``thin`` (gets no disposable frames) or ``disconnect``.
        policy: ``backpressure_policy``, as it applies to the subscriber.
        lag_ms, lag_bytes: How far it is behind.
    """

    action: str
    policy: str
    lag_ms: int
    lag_bytes: int


def _send_nothing(data: object) -> int:
    raise OSError("the subscriber has been removed")


@accelerated
def send_each(members: list[Subscriber], start: int, stop: int, data: bytes | memoryview) -> tuple[int, int | OSError]:
    """Send *data* to each of the members from *start* to *stop*, up to one that does not accept everything. Never waits.

    Returns:
        The index of that member, and the number of bytes that it has accepted, or the error of its connection. If all have
        accepted everything: *stop*, and the size of *data*.
    """
    size = len(data)
    for index in range(start, stop):
        # In two steps: CPython reads a slot faster than it looks up a method.
        send = members[index].send
        try:
            sent = send(data)
        except BlockingIOError:
            return index, 0
        except OSError as error:
            return index, error
        if sent != size:
            return index, sent
    return stop, size


@accelerated
class SubscriberState:
    """What an ordinary pass needs of a subscriber.

    Attributes:
        send: The transport's try_send, looked up once.
    """

    __slots__ = ("send",)

    send: Callable[[bytes | bytearray | memoryview], int]


class Subscriber(SubscriberState):
    """One reader of one log.

    Args:
        transport: Where to send to.
        framing: How messages are framed for it.
        label: Names it in logs.

    Attributes:
        page, offset: The cursor, while the state is LAGGING.
        pending: Bytes that are sent before anything else: replies, headers, the rest of a half-sent message. Always ends at a
            message boundary.
        unread_replies: At most so many bytes of replies are among them.
        blocked: The socket is full and watched.
        joins_seen: The log's number of join points when it began to wait.
        listed: It is in the group's list of members, though it may have left the group since.
        progress_at: When its socket last accepted data (monotonic, seconds); not updated while it is in the group.
        waiting_since: Since when it waits for a keyframe (monotonic, seconds).
        headers: The headers that it was last sent; None: send them again in any case.
        early_headers: It was sent them before the source's first frame, and no frame since.
        sent: Bytes sent; while it is in the group: less the group's position, so that passes need not count.
        skips: How often it was moved to a keyframe, since it was too far behind.
        messages: The messages of the log that it was sent, up to where it last left the log.
        dropped: The messages that it was not sent: skipped, missed while it was away, and disposable frames.
        disposed: The disposable frames among these.
        thin: It gets no disposable frames.
        skips_only: It is only moved to keyframes, whatever ``backpressure_policy`` says: it is another server, not a player.
        skipped: It was moved, and has no new place yet.
        slow: It has lost messages since it was last in sync.
        on_slow: Called when it begins to lose messages; must not wait.
        slow_reported_at: When that was last called (monotonic, seconds).
        begun_behind_ms, begun_behind_bytes: How far behind it began, until it has caught up.
        left_at: The number of messages in the log before the place where it last left the log; None: it has not left.
        write_timeout_s: It is closed when its socket has accepted nothing for this long; 0: the server's option holds.
    """

    __slots__ = (
        "_begun_at",
        "begun_behind_bytes",
        "begun_behind_ms",
        "blocked",
        "disposed",
        "dropped",
        "early_headers",
        "framing",
        "headers",
        "joins_seen",
        "label",
        "left_at",
        "listed",
        "messages",
        "offset",
        "on_slow",
        "page",
        "pending",
        "progress_at",
        "sent",
        "skipped",
        "skips",
        "skips_only",
        "slow",
        "slow_reported_at",
        "state",
        "thin",
        "transport",
        "unread_replies",
        "waiting_since",
        "write_timeout_s",
    )

    def __init__(self, transport: SubscriberTransport, framing: SubscriberFraming, label: str = "") -> None:
        self.transport = transport
        self.send = transport.try_send
        self.framing = framing
        self.label = label
        self.state = State.WAITING
        self.page: Page | None = None
        self.offset = 0
        self.pending = bytearray()
        self.unread_replies = 0
        self.blocked = False
        self.joins_seen = 0
        self.listed = False
        self.progress_at = 0.0
        self.waiting_since = 0.0
        self.headers: Headers | None = None
        self.early_headers = False
        self.sent = 0
        self.skips = 0
        self.messages = 0
        self.dropped = 0
        self.disposed = 0
        self.thin = False
        self.skips_only = False
        self.skipped = False
        self.slow = False
        self.on_slow: Callable[[Slow], None] | None = None
        self.slow_reported_at = -math.inf
        self.begun_behind_ms = 0
        self.begun_behind_bytes = 0
        self.write_timeout_s = 0.0
        self.left_at: int | None = None
        self._begun_at: int | None = None

    # Its place in the log ----------------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The cursor as a position in the log; 0 without one."""
        return self.page.base + self.offset if self.page is not None else 0

    def remove(self) -> None:
        """Send nothing from now on: a pass under way may still reach it while its connection is sending something else."""
        self.state = State.REMOVED
        self.send = _send_nothing

    def successor(self) -> Subscriber:
        """Return a subscriber that continues for it in another log of the same stream. This one must have left its log."""
        made = Subscriber(self.transport, self.framing, self.label)
        made.skips, made.messages, made.dropped, made.sent = self.skips, self.messages, self.dropped, self.sent
        made.disposed, made.skips_only, made.slow = self.disposed, self.skips_only, self.slow
        made.on_slow, made.slow_reported_at, made.write_timeout_s = self.on_slow, self.slow_reported_at, self.write_timeout_s
        return made

    def begin_at(self, page: Page, offset: int) -> int:
        """Set its place in the log, of which it had none; return the number of messages that a skip has cost."""
        number = page.messages_before(offset)
        # It may begin before where it left: then it gets some messages twice.
        missed = max(0, number - self.left_at) if self.left_at is not None else 0
        self.dropped += missed
        skipped, self.skipped = self.skipped, False
        self._begun_at = number
        self.early_headers = False
        self.page, self.offset = page, offset
        return missed if skipped else 0

    def leave_at(self, page: Page | None, offset: int) -> None:
        """Take note of where it leaves the log, or its place in it; harmless if it had none."""
        if page is not None and self._begun_at is not None:
            self.left_at = page.messages_before(offset)
            self.messages += self.left_at - self._begun_at
            self._begun_at = None

    def messages_until(self, page: Page | None, offset: int) -> int:
        """Return the number of messages that it was sent, if that is its place in the log."""
        if page is None or self._begun_at is None:
            return self.messages
        return self.messages + page.messages_before(offset) - self._begun_at

    # Sending -----------------------------------------------------------------------------------------------------------

    def advance(self, log: Log, limit_page: Page | None, limit_offset: int) -> Progress:
        """Send what is pending, then from the cursor up to a limit, as far as the socket accepts data.

        Args:
            log: The log that the cursor is in.
            limit_page, limit_offset: A cursor at a message boundary. A cursor beyond it stays where it is.

        Raises:
            OSError: The connection is gone.
        """
        pending = self.pending
        try:
            while True:
                if pending:
                    sent = self.send(pending)
                    self.sent += sent
                    del pending[:sent]
                    if pending:
                        return Progress.BLOCKED
                page, offset = self.page, self.offset
                if self.state is not State.LAGGING or page is None:
                    return Progress.IDLE
                at_limit = page is limit_page and offset == limit_offset
                if not self.framing.shared:
                    if at_limit or not self._reframe(log, limit_page, limit_offset):
                        return Progress.IDLE
                    continue
                if at_limit:
                    return Progress.IN_SYNC
                end = limit_offset if page is limit_page else page.end
                if offset >= end:
                    if page.next is None or page is limit_page:
                        return Progress.IDLE
                    self.page, self.offset = page.next, 0
                    continue
                if self.thin:
                    end = min(end, page.next_disposable(offset))
                    if end == offset:
                        self._dispose(page.boundary(offset + 1))
                        continue
                sent = self.send(page.view[offset:end])
                self.sent += sent
                self.offset = offset + sent
                if sent < end - offset:
                    return Progress.BLOCKED
        except BlockingIOError:
            return Progress.BLOCKED

    def _dispose(self, offset: int) -> None:
        """Step over a disposable frame."""
        self.offset = offset
        self.disposed += 1
        self.dropped += 1
        # The frame is counted with those between where it began and where it leaves.
        self.messages -= 1

    def add_reply(self, data: bytes) -> None:
        """Make a reply pending."""
        self.unread_replies = min(self.unread_replies, len(self.pending)) + len(data)
        self.pending += data

    def finish_message(self) -> None:
        """Move the cursor to a message boundary; the rest of a half-sent message becomes pending."""
        page = self.page
        if page is None:
            return
        boundary = page.boundary(self.offset)
        if boundary > self.offset:
            self.pending += page.view[self.offset : boundary]
            self.offset = boundary

    def queue_headers(self, headers: Headers, timestamp: int) -> None:
        """Make headers pending, at the timestamp of the frame that follows them, unless they were sent last."""
        if self.headers is not headers:
            self.headers = headers
            self.pending += self.framing.headers(headers, timestamp)

    def queue_new_headers(self, headers: Headers, timestamp: int) -> None:
        """Make those headers pending that it was not sent last, while no frame comes between."""
        known = set(self.headers.items) if self.headers is not None and self.early_headers else set()
        new = tuple(item for item in headers.items if item not in known)
        if self.headers is None or new:
            self.pending += self.framing.headers(Headers(new), timestamp)
        self.headers = headers
        self.early_headers = True

    def _reframe(self, log: Log, limit_page: Page | None, limit_offset: int) -> bool:
        """Frame messages up to the limit for this subscriber; return whether that made anything pending.

        Stops at the message after which the log's bytes fit it.
        """
        page, offset = self.page, self.offset
        assert page is not None
        pending = self.pending
        if self.headers is None:
            # Not at the newest timestamp: there may be several messages from here to the end, and time must not go back.
            following = log.timestamp_at(page, offset)
            self.queue_headers(log.headers, max(log.newest_timestamp, 0) if following is None else following)
        while len(pending) < _REFRAME_BYTES and not self.framing.shared and not (page is limit_page and offset == limit_offset):
            message = log.read(page, offset)
            if message is None:
                break
            page, offset = message.page, message.offset
            if self.thin and page.next_disposable(offset - len(message.data)) == offset - len(message.data):
                self._dispose(offset)
            else:
                pending += self.framing.message(message)
        self.page, self.offset = page, offset
        return bool(pending)
