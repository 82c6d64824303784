"""Events as lines on standard output, written by a thread of their own: whoever reads them may pause."""

from __future__ import annotations

import logging
import os
import queue
import threading
from typing import TYPE_CHECKING

from gevent import get_hub

from rtmpd.services.hooks.board import Hush
from rtmpd.services.hooks.notice import as_lines

if TYPE_CHECKING:
    from rtmpd.services.hooks.board import Policy
    from rtmpd.services.hooks.notice import Notice

__all__ = ["Stdio"]

log = logging.getLogger(__name__)

_BATCH_BYTES = 4096
"""A pipe takes this much whole or not at all."""


class Stdio:
    """The thread and its queue.

    Args:
        policy: The service.
        form: json or env.
        descriptor: Where to write.

    Attributes:
        form: May be changed at any time.
    """

    def __init__(self, policy: Policy, form: str, descriptor: int = 1) -> None:
        self.form = form
        self._policy = policy
        self._descriptor = descriptor
        # Bounded by `offer`, by an option that may change.
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._drops = Hush()
        self._dropped = 0
        self._written = 0
        self._broken = ""
        self._loop = get_hub().loop
        # A daemon thread: one that is stuck in a write must not keep the process.
        self._thread = threading.Thread(target=self._run, name="hooks", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Events that have not been written yet."""
        return self._lines.qsize()

    def offer(self, notice: Notice) -> None:
        """Take an event, or drop it if too many wait. Never waits."""
        if self.waiting < self._policy.config.hook_queue_limit and not self._broken:
            self._lines.put(as_lines(notice, self.form))
            return
        self._dropped += 1
        self._policy.count_drops(1)
        why = self._broken or "whoever reads it has paused"
        self._drops.warn("hook standard output: %s: %d events dropped so far", why, self._dropped)

    def end(self) -> None:
        """Write what waits, and end. Does not wait for that."""
        self._lines.put(None)

    def stop(self, limit_s: float) -> None:
        """Write what waits, and wait for that."""
        self.end()
        # A thread can't be waited for in the event loop; one of the loop's own does it.
        get_hub().threadpool.apply(self._thread.join, (limit_s,))
        if self._thread.is_alive():
            lost = max(0, self.waiting - 1)
            self._policy.count_drops(lost)
            log.warning("hook standard output: %d events could not be written before the end", lost)

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
                # Somebody who shares the descriptor has changed it.
                os.set_blocking(self._descriptor, True)

    def _settle(self, number: int, broken: bool, problem: str) -> None:
        """Count what the thread has done; in the event loop, where counters are."""
        for _ in range(number):
            if broken:
                self._policy.count_failure()
            else:
                self._policy.count_delivery()
        if problem:
            self._broken = problem
            log.error("hook standard output: %s: no more events are written", problem)
