"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.conftest import Server
from tests.e2e.media import Clips, Programs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def clips(ffmpeg, tmp_path_factory) -> Clips:
    """The clips, encoded once."""
    return Clips(ffmpeg, tmp_path_factory.mktemp("clips"))


@pytest.fixture
def programs(ffmpeg, clips, tmp_path) -> Iterator[Programs]:
    """Publishers and players, which are killed at the end of the test."""
    made = Programs(ffmpeg, tmp_path, clips)
    yield made
    made.kill_all()


@contextmanager
def serving(ini: str, directory: Path) -> Iterator[Server]:
    """A server for all tests of a module; they fail if the server has an internal error."""
    server = Server(ini, directory=directory)
    try:
        yield server
    finally:
        code = server.stop()
    internal = [line for line in server.lines if "internal error" in line or "Traceback" in line or " CRITICAL" in line]
    assert (code, internal) == (0, []), "\n".join(server.lines[-60:])
