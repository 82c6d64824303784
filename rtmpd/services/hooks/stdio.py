"""Events as lines on standard output, written by a native thread of their own: a reader may pause."""

from __future__ import annotations

import logging
import os
import queue
import threading
from typing import TYPE_CHECKING

from gevent import get_hub

from rtmpd.util.log_throttle import LogThrottle

if TYPE_CHECKING:
    from collections import Counter

    from rtmpd.config.model import HooksConfig
    from rtmpd.services.hooks.event import HookEvent

__all__ = ["Stdio"]

log = logging.getLogger(__name__)

_BATCH_BYTES = 4096
"""A pipe takes this much whole or not at all."""


class Stdio:
    """The thread and its queue.

    Args:
        options: The options in force; may be replaced.
        counters: The server's counters.
        descriptor: The file descriptor to write to.
    """

    def __init__(self, options: HooksConfig, counters: Counter[str], descriptor: int = 1) -> None:
        self.options = options
        self._counters = counters
        self._descriptor = descriptor
        # Bounded by `offer`, by an option that may change.
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._drops = LogThrottle()
        self._dropped = 0
        self._broken = ""
        self._loop = get_hub().loop
        # A daemon thread: one that is stuck in a write must not keep the process.
        self._thread = threading.Thread(target=self._run, name="hooks", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of events that are not written yet."""
        return self._lines.qsize()

    def offer(self, event: HookEvent) -> None:
        """Queue an event, or discard it if the queue is full. Never waits."""
        if self.waiting < self.options.hook_queue_limit and not self._broken:
            self._lines.put(event.lines(self.options.hook_stdio_format))
            return
        self._dropped += 1
        self._counters["hook_drops"] += 1
        reason = self._broken or "the reader has paused (hook_queue_limit)"
        text = "hook standard output: %s: %d events discarded so far"
        self._drops.log(log, logging.WARNING, text, reason, self._dropped)

    def end(self) -> None:
        """Ask the thread to write what is queued and to end. Does not wait."""
        self._lines.put(None)

    def stop(self, limit_s: float) -> None:
        """Write what is queued, for at most *limit_s*, and discard the rest."""
        self.end()
        # The event loop can't wait for a thread; a thread of gevent's own does.
        get_hub().threadpool.apply(self._thread.join, (limit_s,))
        if self._thread.is_alive():
            dropped = max(0, self.waiting - 1)
            self._counters["hook_drops"] += dropped
            log.warning("hook standard output: %d events discarded at shutdown", dropped)

    def _run(self) -> None:
        over = broken = False
        while not over:
            batch = [self._lines.get()]
            size = len(batch[0] or b"")
            while batch[-1] is not None and size < _BATCH_BYTES and not self._lines.empty():
                batch.append(self._lines.get())
                size += len(batch[-1] or b"")
            over = batch[-1] is None
            lines = [each for each in batch if each is not None]
            if not lines:
                continue
            problem = ""
            try:
                if not broken:
                    self._write(b"".join(lines))
            except OSError as error:
                broken = True
                problem = os.strerror(error.errno) if error.errno else "it can't be written to"
            self._loop.run_callback_threadsafe(self._settle, len(lines), broken, problem)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                # Another process with the same descriptor has made it non-blocking.
                os.set_blocking(self._descriptor, True)

    def _settle(self, number: int, broken: bool, problem: str) -> None:
        """Count what the thread has written; in the event loop, which owns the counters."""
        self._counters["hook_failures" if broken else "hook_deliveries"] += number
        if problem:
            self._broken = problem
            log.error("hook standard output: %s: no further events are written until rtmpd is restarted", problem)
