"""A relay's place in the fan-out: a player's, but that metadata goes out as encoders send it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.live.headers import Headers
from rtmpd.live.subscriber import Subscriber
from rtmpd.protocol import amf0
from rtmpd.protocol.message import CSID_DATA, MessageType

if TYPE_CHECKING:
    from rtmpd.live.subscriber import SubscriberTransport

__all__ = ["RelaySubscriber"]

_DATA = int(MessageType.DATA_AMF0)
_SET_DATA_FRAME = amf0.encode("@setDataFrame")


def _metadata_of(headers: Headers) -> bytes | None:
    return next((payload for _, type_id, payload in headers.items if type_id == _DATA), None)


class RelaySubscriber(Subscriber):
    """One connection to one destination.

    Headers have onMetaData in the envelope ``@setDataFrame``: servers of Adobe's kind only keep it for late joiners then. What
    comes later in the stream goes out as players get it, and once more in the envelope; see `news`.
    """

    __slots__ = ("_metadata",)

    def __init__(self, transport: SubscriberTransport, message_stream_id: int) -> None:
        super().__init__(transport, message_stream_id)
        self._metadata: bytes | None = None
        # What is thinned out here would be missing for all players there; and one that is cut off comes back, with more lost.
        self.skips_only = True

    def queue_headers(self, headers: Headers, timestamp: int, chunk_size: int) -> None:
        """Make headers pending, as `Subscriber.queue_headers` does."""
        self._metadata = _metadata_of(headers)
        items = ((csid, kind, _SET_DATA_FRAME + body if kind == _DATA else body) for csid, kind, body in headers.items)
        super().queue_headers(Headers(tuple(items), headers.version), timestamp, chunk_size)

    def news(self, headers: Headers, chunk_size: int) -> bytes:
        """Return metadata that has changed since it was last sent, as a message; nothing if it has not."""
        metadata = _metadata_of(headers)
        # Without a place in the log yet it gets all headers with that.
        if self.headers_version < 0 or metadata is None or metadata == self._metadata:
            return b""
        self._metadata = metadata
        return self.frame(CSID_DATA, _DATA, 0, _SET_DATA_FRAME + metadata, chunk_size)
