"""Fixtures of the tests of streams."""

from __future__ import annotations

import pytest

from rtmpd.util import event_loop


@pytest.fixture(autouse=True)
def turns(monkeypatch):
    """Let a greenlet that gives way continue in the next turn of the greenlets, not of the event loop: tests count these."""
    monkeypatch.setattr(event_loop, "_MOMENT_S", 0)
