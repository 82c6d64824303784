"""Native threads for blocking work: disks, name lookups, libraries that know no event loop.

Each kind of work has a pool of its own, so that a disk that does not answer can't delay a name lookup. gevent's thread pools
print what a job raises; here the exception goes to the caller that asks for the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from gevent.threadpool import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from gevent.event import AsyncResult

Result = TypeVar("Result")


class Job(Generic[Result]):
    """A function call that a thread runs, or has run."""

    def __init__(self, outcome: AsyncResult[tuple[Result | None, Exception | None]]) -> None:
        self._outcome = outcome

    @property
    def done(self) -> bool:
        """Whether the job has ended."""
        return bool(self._outcome.ready())

    @property
    def succeeded(self) -> bool:
        """Whether the job has ended and raised nothing."""
        return self.done and self._outcome.value is not None and self._outcome.value[1] is None

    def wait(self) -> None:
        """Wait until the job has ended, without a limit."""
        self._outcome.wait()

    def when_done(self, action: Callable[[], None]) -> None:
        """Call *action* in the event loop when the job has ended."""
        self._outcome.rawlink(lambda _: action())

    def get(self) -> Result:
        """Wait for the job; return what it returned, or raise what it raised."""
        outcome = self._outcome.get()
        assert outcome is not None
        value, error = outcome
        if error is not None:
            raise error
        return value  # type: ignore[return-value]


class Threads:
    """A pool of native threads.

    Args:
        count: The largest number of jobs that run at the same time.
    """

    def __init__(self, count: int) -> None:
        self._pool = ThreadPool(count)

    def resize(self, count: int) -> None:
        """Change the largest number of jobs that run at the same time. Running jobs end first."""
        self._pool.maxsize = count

    def spawn(self, job: Callable[..., Result], *args: object) -> Job[Result]:
        """Run *job* in a thread. Waits in the calling greenlet while all threads are busy: put a deadline around the call."""
        return Job(self._pool.spawn(_run, job, args))

    def call(self, job: Callable[..., Result], *args: object) -> Result:
        """Run *job* in a thread and wait; return what it returns, or raise what it raises."""
        return self.spawn(job, *args).get()


def _run(job: Callable[..., Result], args: tuple[object, ...]) -> tuple[Result | None, Exception | None]:
    try:
        return job(*args), None
    except Exception as error:  # noqa: BLE001 - raised again by Job.get
        return None, error
