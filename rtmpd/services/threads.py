"""Native threads for work that blocks: disks, names, libraries that know no event loop.

Each kind of work has threads of its own, so that a disk that stands still can't delay a name that is looked up. gevent's thread
pools report what a job raises as if nobody had asked for it; here it goes to whoever asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from gevent.threadpool import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.event import AsyncResult

__all__ = ["Job", "Threads"]

Result = TypeVar("Result")


class Job(Generic[Result]):
    """Work that a thread does, or has done."""

    def __init__(self, outcome: AsyncResult[tuple[Result | None, Exception | None]]) -> None:
        self._outcome = outcome

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return bool(self._outcome.ready())

    @property
    def succeeded(self) -> bool:
        """Whether it is over, and raised nothing."""
        return self.done and self._outcome.value is not None and self._outcome.value[1] is None

    def wait(self) -> None:
        """Wait until it is over, however long that takes."""
        self._outcome.wait()

    def when_done(self, action: Callable[[], None]) -> None:
        """Call *action* in the event loop when it is over."""
        self._outcome.rawlink(lambda _: action())

    def get(self) -> Result:
        """Wait for what it returns, or raise what it raised."""
        outcome = self._outcome.get()
        assert outcome is not None
        value, error = outcome
        if error is not None:
            raise error
        return value  # type: ignore[return-value]


class Threads:
    """A few native threads.

    Args:
        count: The most that run at the same time.
    """

    def __init__(self, count: int) -> None:
        self._pool = ThreadPool(count)

    def resize(self, count: int) -> None:
        """Let another number run at the same time. Threads that are at work end it first."""
        self._pool.maxsize = count

    def spawn(self, job: Callable[..., Result], *args: object) -> Job[Result]:
        """Have a thread run *job*. Waits, in the calling greenlet, while all threads are busy: put a deadline around it."""
        return Job(self._pool.spawn(_run, job, args))

    def call(self, job: Callable[..., Result], *args: object) -> Result:
        """Have a thread run *job*, and wait for what it returns or raises."""
        return self.spawn(job, *args).get()


def _run(job: Callable[..., Result], args: tuple[object, ...]) -> tuple[Result | None, Exception | None]:
    try:
        return job(*args), None
    except Exception as error:  # noqa: BLE001 - raised again by Job.get
        return None, error
