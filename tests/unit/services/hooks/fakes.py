"""What tests of hooks share: events, options, and waiting."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import gevent

from rtmpd.config.loader import load_text
from rtmpd.services.hooks.event import HookEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.config.model import HooksConfig

LIMIT_S = 10


def options(ini: str = "") -> HooksConfig:
    return load_text("[hooks]\n" + ini).hooks


def hook_event(number: int = 1, key: str = "live/a", kind: str = "publish_start", connection: str = "7", **data) -> HookEvent:
    return HookEvent(f"run-{number}", kind, 1_700_000_000, connection, key, {"id": number, **data})


@contextmanager
def within(limit_s: float = LIMIT_S) -> Iterator[None]:
    """Fail if it takes longer."""
    with gevent.Timeout(limit_s, TimeoutError(f"not within {limit_s} s")):
        yield


def wait_for(condition, limit_s: float = LIMIT_S) -> None:
    with within(limit_s):
        while not condition():
            gevent.sleep(0.005)
