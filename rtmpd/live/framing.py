"""The interface between a log and the format of its bytes: framings, and what they are given.

A framing says how one message becomes bytes in a page, what a new reader gets before the first message, and what a notice
looks like. Logs, subscribers, back-pressure and fan-out know only this interface.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rtmpd.live.pages import Page

AUDIO, VIDEO, DATA = 8, 9, 18
"""The types of a stream's messages: the type ids of RTMP messages and of FLV tags."""


class Message(NamedTuple):
    """A message that was read back from a log.

    Attributes:
        type_id: `AUDIO`, `VIDEO` or `DATA`; a framing's notices may have others.
        timestamp: Milliseconds, 0..2**32-1, on the stream's timeline.
        payload: The message's payload, in one piece.
        data: The message as it is framed: a view of the page.
        kind: A `rtmpd.media.tags.Kind`. A keyframe that is no place to start at is a frame here.
        page, offset: The cursor behind the message.
    """

    type_id: int
    timestamp: int
    payload: bytes | memoryview
    data: memoryview
    kind: int
    page: Page
    offset: int


@dataclass(frozen=True, slots=True, eq=False)
class Headers:
    """The metadata and sequence headers in force at one moment. Compared by identity: each change makes another object.

    Attributes:
        items: ``(type_id, payload)`` in the order in which to send them, metadata first.
    """

    items: tuple[tuple[int, bytes], ...] = ()


NO_HEADERS: Final = Headers()


class NoticeKind(enum.Enum):
    """What readers are notified of."""

    PUBLISHED = "the stream is published from now on"
    UNPUBLISHED = "the stream has ended"
    CHANGED = "the log has ended: what follows is nothing that its readers can take"
    TOO_SLOW = "the reader is disconnected, since it is too slow"
    UNSUPPORTED = "the reader is disconnected, since it does not support the codec"


class Notice(NamedTuple):
    """A notice to the readers of a stream.

    Attributes:
        kind: What it is about.
        text: For people.
    """

    kind: NoticeKind
    text: str


class KeptMessages(Protocol):
    """The part of a log that late joiners get.

    Attributes:
        headers, join_headers: What a decoder needs before the frames at the log's end, and at the join point.
    """

    headers: Headers
    join_headers: Headers

    def kept(self) -> Iterator[Message]:
        """Yield the messages from the join point on; none without one."""


class SubscriberFraming(Protocol):
    """How messages are framed for one subscriber. It may differ from the log's framing; then each message is framed again."""

    @property
    def shared(self) -> bool:
        """Whether the subscriber gets the log's own bytes."""

    @property
    def sends_early(self) -> bool:
        """Whether headers are sent before the source's first frame, as they come. If not, all are sent with that frame."""

    def headers(self, headers: Headers, timestamp: int) -> bytes:
        """Return headers, as they precede a message of that timestamp."""

    def message(self, message: Message) -> bytes:
        """Return a message; empty if the subscriber does not get it. Only called while not `shared`."""

    def notice(self, notice: Notice) -> bytes:
        """Return a notice; empty if the format has none."""


class Framing(Protocol):
    """How messages become the bytes of a log. The bytes of a message depend on no reader.

    A reader may begin at any message. From before, it needs the headers in force, and the frames that the codec refers to.
    """

    @property
    def name(self) -> str:
        """The name of the format."""

    @property
    def over(self) -> bool:
        """Whether the log has ended: what the stream sends now is nothing that the log's readers can take.

        From then on nothing is written, and readers need another log.
        """

    def for_log(self) -> Framing:
        """Return the framing of one log: itself, if it does not depend on what the log holds.

        A log's framing may also be asked, for a log that is joined with it: then both use the same clock.
        """

    def set_headers(self, headers: Headers) -> None:
        """Set the headers in force for the messages that follow."""

    def replay_headers(self, older: KeptMessages) -> Headers:
        """Return the headers to begin with when what another log holds, from its join point on, is about to be written."""

    def size(self, timestamp: int, length: int) -> int:
        """Return the number of bytes that a message with a payload of *length* bytes takes at most."""

    def write(self, page: Page, type_id: int, timestamp: int, payload: bytes) -> int:
        """Write a message behind a page's last one; return its end, or -1 if it does not fit. The hot path.

        Only the page's buffer is changed: the log does the rest. The page's end is returned for a message that the format does
        not carry.
        """

    def read(self, page: Page, index: int) -> Message:
        """Read back message *index* of a page."""

    def media_timestamp(self, page: Page, index: int) -> int:
        """Return the timestamp of message *index* of a page; -1 if it is neither audio nor video."""

    def notices(self, notice: Notice) -> Sequence[bytes]:
        """Return a notice as messages of the log."""

    def for_subscriber(self) -> SubscriberFraming:
        """Return the framing of an ordinary subscriber."""
