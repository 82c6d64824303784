"""The packagers: which streams are packaged, how long, and the memory of all of them."""

from __future__ import annotations

import heapq
import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

import gevent
from gevent.pool import Group

from rtmpd.events import EventType
from rtmpd.live.lane import Mode
from rtmpd.media.hls.window import first_sequence_number
from rtmpd.phases import StreamPhase
from rtmpd.services.hls.packager import Packager
from rtmpd.services.hls.storage import Storage
from rtmpd.util.log_throttle import LogThrottle
from rtmpd.util.text import count_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.config.model import Config, HlsConfig
    from rtmpd.events import Event
    from rtmpd.hub import Hub
    from rtmpd.live.stream import Stream
    from rtmpd.media.hls.window import Segment
    from rtmpd.services.hls.packaged import Packaged
    from rtmpd.util.stream_key import StreamKey

log = logging.getLogger(__name__)

_SWEEP_S = 1.0
_NUMBERS = 4096
"""The number of streams whose last sequence numbers are remembered."""

_REPORTED = 200
"""The streams that SIGUSR2 shows."""

_TOTAL_LOG_S = 600.0
_FULL_SHARE = 0.02
"""When nothing can be removed, the next attempt is made when the segments have grown by this share of the limit."""

_PACKAGED_PHASES = (StreamPhase.LIVE, StreamPhase.GRACE, StreamPhase.SLATE)


class Packagers:
    """The service.

    Args:
        hub: The hub.
        options: The options of ``[hls]``; those of applications come with the streams.

    Attributes:
        options: The options in force.
        memory_bytes: The memory of all segments.
    """

    def __init__(self, hub: Hub, options: HlsConfig) -> None:
        self.options = options
        self.memory_bytes = 0
        self._hub = hub
        self._packagers: dict[str, Packager] = {}
        self._earlier: dict[str, Packager] = {}
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._greenlets = Group()
        self._sweeper: gevent.Greenlet[[], None] | None = None
        self._storage: Storage | None = None
        if options.hls_directory:
            self._storage = Storage(options.hls_directory, hub.count, lambda: self.options.hls_total_limit_bytes)
        self._throttle = LogThrottle(_TOTAL_LOG_S)
        self._full_bytes = 0  # how much all segments take that can't be removed; 0: some can

    @staticmethod
    def select(config: Config) -> HlsConfig:
        """Return the options of ``[hls]``."""
        return config.hls

    def start(self) -> None:
        """Follow the streams that are live."""
        self._hub.bus.subscribe((EventType.LIVE_START, EventType.SOURCE_ACTIVE, EventType.LIVE_STOP), self._handle)
        self._hub.gauges["hls_streams"] = lambda: sum(not each.ended for each in self._packagers.values())
        self._hub.gauges["hls_memory_bytes"] = lambda: self.memory_bytes
        self._hub.reports.append(self._report)
        if self._storage is not None:
            self._storage.start()
        self._sweeper = gevent.spawn(self._run)

    def reload(self, options: HlsConfig) -> None:
        """Apply new options. The durations of segments, and parts, are those that a packager has begun with."""
        self.options = options
        for packager in self._all():
            packager.reload()
            if packager.stream.options.hls.hls == "off":
                packager.stop()
                self._remove(packager)
        for stream in self._hub.streams.values():
            self._start_if_always(stream)
        self._limit_total()

    def stop(self, limit_s: float) -> None:
        """End all packagers, and remove their files."""
        self._hub.bus.unsubscribe(self._handle)
        if self._sweeper is not None:
            self._sweeper.kill(block=False)
        for packager in self._all():
            packager.stop()
        self._greenlets.join(timeout=limit_s)
        self._greenlets.kill(block=False)
        if self._storage is not None:
            self._storage.stop(limit_s)

    def find(self, key: str) -> Packager | None:
        """Return the packager of a stream that is available or has just ended; it is started on demand.

        None: there is no such stream, or it is not packaged (``hls = off``). Does not wait.
        """
        stream = self._hub.streams.get(key)
        packager = self._packagers.get(key)
        if stream is None or (packager is not None and packager.stream is stream and not packager.ending):
            return packager
        if stream.options.hls.hls == "off" or stream.phase not in _PACKAGED_PHASES:
            return packager
        if packager is not None and packager.failed and packager.stream is stream:
            return packager
        return self._begin(stream)

    def running(self, key: str) -> Packager | None:
        """Return the packager of a stream if it is packaged already, and has not ended."""
        packager = self._packagers.get(key)
        return packager if packager is not None and not packager.ended else None

    def earlier(self, key: str) -> Packager | None:
        """Return the packager of the publish before the present one, which ends or has ended; None: it is no longer kept."""
        return self._earlier.get(key)

    def _report(self) -> Iterator[str]:
        """Give lines for SIGUSR2: those that take most memory."""
        packagers = sorted(self._all(), key=lambda each: each.memory_bytes, reverse=True)
        if packagers:
            yield f"HLS: {count_of(len(packagers), 'stream')}, {self.memory_bytes} bytes of segments in memory"
        for each in packagers[:_REPORTED]:
            yield each.report()
        if len(packagers) > _REPORTED:
            yield f"HLS: and {count_of(len(packagers) - _REPORTED, 'more stream')}"

    # Streams -------------------------------------------------------------------------------------------------------------

    def _all(self) -> list[Packager]:
        return [*self._packagers.values(), *self._earlier.values()]

    def _handle(self, event: Event) -> None:
        stream = event.stream
        assert stream is not None
        packager = self._packagers.get(stream.key)
        if event.type is EventType.LIVE_START:
            if packager is not None and packager.failed:
                self._remove(packager)
            self._start_if_always(stream)
            return
        if packager is None or packager.ended or packager.stream is not stream:
            return
        active = stream.ingest.active
        if event.type is EventType.LIVE_STOP:
            if active is None:
                packager.end()
        elif active is not None and active.mode is not Mode.COPY:
            packager.source_changed(active.source.headers.current)

    def _start_if_always(self, stream: Stream) -> None:
        if stream.options.hls.hls != "always" or stream.phase is not StreamPhase.LIVE:
            return
        packager = self._packagers.get(stream.key)
        if packager is None or packager.stream is not stream or (packager.ending and not packager.failed):
            self._begin(stream)

    def _begin(self, stream: Stream) -> Packager:
        before = self._packagers.pop(stream.key, None)
        if before is not None:
            self._keep(before)
        packager = self._packagers[stream.key] = Packager(self, stream)
        self._greenlets.start(packager.greenlet)  # type: ignore[arg-type]
        return packager

    def _keep(self, packager: Packager) -> None:
        """End the packager of an earlier publish, and keep what it has made for its clients."""
        still_earlier = self._earlier.get(packager.key)
        if still_earlier is not None:
            still_earlier.stop()
            self._remove(still_earlier)
        if packager.failed or not packager.renditions:
            packager.stop()
            self._remove(packager)
            return
        packager.end()
        self._remember(packager)
        self._earlier[packager.key] = packager

    def _remove(self, packager: Packager) -> None:
        """Forget a packager, and free its segments."""
        for table in (self._packagers, self._earlier):
            if table.get(packager.key) is packager:
                del table[packager.key]
        self._remember(packager)
        packager.clear()

    def _remember(self, packager: Packager) -> None:
        number = max((window.next_part[0] for window in packager.windows), default=0)
        if number:
            # The segment that is open will be completed.
            self._numbers[packager.key] = max(number + 1, self._numbers.pop(packager.key, 0))
            while len(self._numbers) > _NUMBERS:
                self._numbers.popitem(last=False)

    def _run(self) -> None:
        while True:
            gevent.sleep(_SWEEP_S)
            try:
                self._sweep(time.monotonic())
            except Exception:
                self._hub.count("internal_errors")
                log.exception("internal error: the packagers of HLS were not checked this time")

    def _sweep(self, now_s: float) -> None:
        for packager in self._all():
            if packager.ended:
                if now_s - packager.ended_at_s > packager.kept_s:
                    self._remove(packager)
                continue
            if packager is self._earlier.get(packager.key):
                continue
            options = packager.stream.options.hls
            if packager.stream.phase in (StreamPhase.IDLE, StreamPhase.CLOSED):
                # Only a slate was played.
                packager.end()
            elif options.hls == "on_demand" and now_s - packager.touched_at_s > options.hls_idle_s:
                packager.stop()
                self._remove(packager)
        for stream in list(self._hub.streams.values()):
            self._start_if_always(stream)

    # The interface for packagers -----------------------------------------------------------------------------------------

    def first_number(self, key: StreamKey, begun_at_s: float) -> int:
        """Return the media sequence number of a first segment: higher than those of an earlier packager of the stream."""
        earlier = self._earlier.get(key)
        if earlier is not None:
            # It may have made more since it was told to end.
            self._remember(earlier)
        return max(first_sequence_number(begun_at_s), self._numbers.get(key, 0))

    def failed(self, packager: Packager) -> None:
        """Count an exception."""
        self._hub.count("hls_errors")

    def changed(self, packager: Packager) -> None:
        """Keep the memory of a packager, and of all, below the limits."""
        limit_bytes = packager.stream.options.hls.hls_memory_limit_bytes
        dropped = 0
        earlier = self._earlier.get(packager.key)
        if earlier is not None and earlier is not packager:
            # Both are of one stream, and the ended one gives way first.
            while packager.memory_bytes + earlier.memory_bytes > limit_bytes and earlier.drop_oldest():
                self._hub.count("hls_segments_dropped")
            limit_bytes -= min(earlier.memory_bytes, limit_bytes // 2)
        while packager.memory_bytes > limit_bytes and packager.drop_oldest():
            dropped += 1
        if dropped:
            self._hub.count("hls_segments_dropped", dropped)
            if not packager.limit_logged:
                packager.limit_logged = True
                log.warning(
                    "%s: its HLS segments take more than %d bytes: the oldest ones are removed early, and viewers can go back "
                    "less far than hls_window_s (hls_memory_limit_bytes)",
                    packager.key,
                    limit_bytes,
                    extra={"stream": packager.key},
                )
        self._limit_total()

    def _limit_total(self) -> None:
        limit_bytes = self.options.hls_total_limit_bytes
        if self.memory_bytes <= limit_bytes:
            return
        if self._full_bytes and self.memory_bytes < self._full_bytes + limit_bytes * _FULL_SHARE:
            return
        self._full_bytes = 0
        heap = [(-packager.memory_bytes, number, packager) for number, packager in enumerate(self._all())]
        heapq.heapify(heap)
        largest, dropped = heap[0][2].key, 0
        while heap and self.memory_bytes > limit_bytes:
            _, number, packager = heap[0]
            if packager.drop_oldest():
                dropped += 1
                heapq.heapreplace(heap, (-packager.memory_bytes, number, packager))
            else:
                heapq.heappop(heap)
        if not heap:
            self._full_bytes = self.memory_bytes
        self._hub.count("hls_segments_dropped", dropped)
        if dropped and self._throttle.due():
            log.warning(
                "the HLS segments of all streams take more than %d bytes, most of all those of %s: the oldest ones of the "
                "largest streams are removed early (hls_total_limit_bytes)",
                limit_bytes,
                largest,
            )

    def completed(self, packager: Packager, packaged: Packaged, segment: Segment) -> None:
        """Write a complete segment to the disk, if there is one."""
        self._hub.counters["hls_segments"] += 1
        if self._storage is not None:
            self._storage.put(packager, packaged, segment)

    def removed(self, segment: Segment) -> None:
        """Delete the file of a segment."""
        if self._storage is not None:
            self._storage.remove(segment)
