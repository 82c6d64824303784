"""What tests of hooks share: notices, and a policy that counts."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import gevent

from rtmpd.config.loader import load_text
from rtmpd.services.hooks.notice import Notice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.config.model import HooksConfig

LIMIT_S = 10


def options(ini: str = "") -> HooksConfig:
    return load_text("[hooks]\n" + ini).hooks


def notice(number: int = 1, key: str = "live/a", kind: str = "publish_start", connection: str = "7", **data) -> Notice:
    return Notice(f"run-{number}", kind, 1_700_000_000, connection, key, {"id": number, **data})


class CountingPolicy:
    """What a board asks of its service, as counters."""

    def __init__(self, ini: str = "") -> None:
        self.config = options(ini)
        self.counts: Counter[str] = Counter()

    def count_delivery(self) -> None:
        self.counts["deliveries"] += 1

    def count_failure(self) -> None:
        self.counts["failures"] += 1

    def count_timeout(self) -> None:
        self.counts["timeouts"] += 1

    def count_retry(self) -> None:
        self.counts["retries"] += 1

    def count_drops(self, number: int) -> None:
        self.counts["drops"] += number

    def count_bug(self) -> None:
        self.counts["bugs"] += 1


@contextmanager
def within(limit_s: float = LIMIT_S) -> Iterator[None]:
    """Fail if it takes longer."""
    with gevent.Timeout(limit_s, TimeoutError(f"not within {limit_s} s")):
        yield


def wait_for(condition, limit_s: float = LIMIT_S) -> None:
    with within(limit_s):
        while not condition():
            gevent.sleep(0.005)
