"""The formats of viewers: what each needs to know of a stream before the head of a response, and how it frames the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import gevent

from rtmpd.errors import HttpError, UnsupportedByMp4
from rtmpd.live.flv_framing import FLV, FlvSubscriberFraming
from rtmpd.live.fmp4_framing import FMP4, Fmp4Framing
from rtmpd.live.ws_framing import WS_FLV, WS_FMP4, WsFraming, WsSubscriberFraming
from rtmpd.media.rewrite import AS_PUBLISHED
from rtmpd.protocol.enhanced import NOTHING_DECLARED
from rtmpd.rtmp.fitness import wanted
from rtmpd.viewers.codecs import CodecWatch, Mp4Codecs, is_complete, mp4_codecs, tracks_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.live.framing import Framing, SubscriberFraming
    from rtmpd.live.output import Output
    from rtmpd.live.stream import Stream
    from rtmpd.media.rewrite import Rewrite

_FLV_TYPE = "video/x-flv"
_TRACKS_STEP_S = 0.05

_LONG_POLL_S = 20.0
"""How long the head of a response is held for a viewer that waits for the stream."""

_CODECS_S = 3.0
"""How long for any other: its stream is there, and may just have begun."""


class Format(Protocol):
    """A format.

    Attributes:
        framing: By HTTP.
        ws_framing: By WebSocket.
    """

    framing: Framing
    ws_framing: Framing

    def describe(self, stream: Stream) -> str:
        """Return the media type of a stream that is available, as the response to HEAD.

        Raises:
            HttpError: The format does not carry the stream (415), or it is not known yet (404).
        """

    def wait(self, key: str, ensure_open: Callable[[], None], *, long: bool) -> None:
        """Wait until it is known of a stream what the head of a response says. The viewer is no player yet.

        Args:
            key: The stream.
            ensure_open: Raises `TransportClosed` if the viewer has left.
            long: The viewer waits for a stream that may not be there.

        Raises:
            HttpError: The format does not carry the stream (415), or it is not known (404).
            TransportClosed: The viewer has left.
        """

    def announce(self, output: Output) -> str:
        """Return the media type of an output, on which its readers rely from now on.

        Raises:
            HttpError: The format does not carry the stream.
        """

    def wanted(self, stream: Stream) -> Rewrite:
        """Return what is to be rewritten for viewers, whatever the content."""

    def subscriber_framing(self, stream: Stream, output: Output) -> SubscriberFraming:
        """Return the framing of a viewer of an output."""


class FlvFormat:
    """FLV: any codec, as players of RTMP get it that declare none.

    Args:
        find: Returns the stream of a key, if there is one.
    """

    framing: Framing = FLV
    ws_framing: Framing = WS_FLV

    def __init__(self, find: Callable[[str], Stream | None]) -> None:
        self._find = find

    def describe(self, stream: Stream) -> str:
        """Return the media type."""
        return _FLV_TYPE

    def wait(self, key: str, ensure_open: Callable[[], None], *, long: bool) -> None:
        """Wait until a source that has just begun has sent both audio and video, for a second at most.

        The first bytes of FLV say which of them there are, and players trust that.

        Raises:
            TransportClosed: The viewer has left.
        """
        while (stream := self._find(key)) is not None and stream.ingest.active is not None and not is_complete(stream):
            gevent.sleep(_TRACKS_STEP_S)
            ensure_open()

    def announce(self, output: Output) -> str:
        """Return the media type."""
        return _FLV_TYPE

    def wanted(self, stream: Stream) -> Rewrite:
        """Return what a player of RTMP gets that declares nothing: browsers say nothing of what they support."""
        return wanted(NOTHING_DECLARED, stream.options.live, stream.content)

    def subscriber_framing(self, stream: Stream, output: Output) -> SubscriberFraming:
        """Return the framing of a viewer: its file header lists the tracks that the source has shown."""
        framing = FlvSubscriberFraming(lambda: tracks_of(stream))
        return WsSubscriberFraming(framing) if isinstance(output.log.framing, WsFraming) else framing


class Mp4Format:
    """Fragmented MP4, for Media Source Extensions.

    Args:
        watch: Waits for codecs.
    """

    framing: Framing = FMP4
    ws_framing: Framing = WS_FMP4

    def __init__(self, watch: CodecWatch) -> None:
        self._watch = watch

    def describe(self, stream: Stream) -> str:
        """Return the media type with the codecs.

        Raises:
            HttpError: MP4 carries nothing of the stream (415), or its codecs are not known yet (404).
        """
        return _type_of(stream.key, mp4_codecs(stream))

    def wait(self, key: str, ensure_open: Callable[[], None], *, long: bool) -> None:
        """Wait until the codecs of a stream are known.

        Raises:
            HttpError: MP4 carries nothing of the stream (415), or its codecs are not known (404).
        """
        _type_of(key, self._watch.wait(key, _LONG_POLL_S if long else _CODECS_S, ensure_open))

    def announce(self, output: Output) -> str:
        """Return the media type with the codecs.

        Raises:
            HttpError: MP4 carries nothing of the stream (415).
        """
        framing = output.log.framing
        inner = framing.inner if isinstance(framing, WsFraming) else framing
        assert isinstance(inner, Fmp4Framing)
        try:
            return inner.announce()
        except UnsupportedByMp4 as error:
            raise HttpError(415, f"{error}.", closes=True) from None

    def wanted(self, stream: Stream) -> Rewrite:
        """Return nothing: the framing takes what MP4 carries."""
        return AS_PUBLISHED

    def subscriber_framing(self, stream: Stream, output: Output) -> SubscriberFraming:
        """Return the framing of a viewer."""
        return output.log.framing.for_subscriber()


def _type_of(key: str, found: Mp4Codecs) -> str:
    if found.mime:
        return found.mime
    if found.problem:
        raise HttpError(415, f"{key}: {found.problem}.", closes=True)
    raise HttpError(404, f"{key} is not being published, or its codecs are not known yet.", closes=True)
