"""What a connection that publishes does with each read: the hot path of ingest. No I/O.

The extension has a form of its own, which the readers call without a step of Python in between (`rtmpd.net.readers`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtmpd.protocol.chunk import FRAMES_LIMIT
from rtmpd.util.speed import accelerated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rtmpd.protocol.chunk import RawMessage
    from rtmpd.protocol.endpoint import Endpoint

    Taker = Callable[[list[RawMessage]], list[RawMessage] | None]


@accelerated
class FrameIntake:
    """Hands the ordinary frames of each read to their sources, and everything else to the connection. Called with the bytes.

    Args:
        endpoint: The connection's.
        sources: The sources (`rtmpd.live.source.Source`) that it feeds, by message stream id: a dict.
        take_data: Called with what was read while ``direct`` is off; returns what the call returns.
        take_messages: Called with the messages that are left, if there are any, or the reader has unread bytes, or there is
            something to be sent; likewise.

    Attributes:
        direct: What is read goes to the sources.
    """

    __slots__ = ("_endpoint", "_sources", "_take_data", "_take_messages", "direct")

    def __init__(
        self,
        endpoint: Endpoint,
        sources: Mapping[int, object],
        take_data: Callable[[bytes | memoryview], list[RawMessage] | None],
        take_messages: Taker,
    ) -> None:
        self._endpoint = endpoint
        self._sources = sources
        self._take_data = take_data
        self._take_messages = take_messages
        self.direct = False

    def __call__(self, data: bytes | memoryview) -> list[RawMessage] | None:
        """Take what was read; a view is valid until this returns. Must not wait.

        Returns:
            None: all is done. Otherwise messages for the connection's greenlet.

        Raises:
            RemoteProtocolError, LimitExceeded: As `rtmpd.protocol.chunk.ChunkReader.feed`.
        """
        if not self.direct:
            return self._take_data(data)
        endpoint = self._endpoint
        endpoint.bytes_received += len(data)
        if endpoint.bytes_received >= endpoint.ack_at:
            endpoint.acknowledge()
        handed, messages = endpoint.reader.feed_frames(data, FRAMES_LIMIT, self._sources)
        endpoint.messages_received += handed + len(messages)
        if messages or endpoint.reader.unread or endpoint.outgoing:
            return self._take_messages(messages)
        return None
