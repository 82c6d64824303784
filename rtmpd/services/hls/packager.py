"""The packager of one stream: a greenlet that reads the published log and makes segments of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gevent.event import Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtmpd.services.hls.packaged import Packaged
    from rtmpd.util.stream_key import StreamKey


class Packager:
    """Makes segments of one stream.

    Args:
        key: The stream.

    Attributes:
        key: The stream.
        renditions: The renditions, the default one first; empty until the codecs are known.
        problem: Why the stream can't be packaged; empty: it can.
        ended: Whether the stream has ended, or packaging has. The renditions can be served for a while all the same.
    """

    def __init__(self, key: StreamKey) -> None:
        self.key = key
        self.renditions: Sequence[Packaged] = ()
        self.problem = ""
        self.ended = False
        self._ready = Event()

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until there are renditions, or a problem, or the packager has ended; at most *timeout_s*."""
        self._ready.wait(timeout_s)

    def touch(self) -> None:
        """Take note that a viewer has requested something: packaging on demand continues for ``hls_idle_s``."""
