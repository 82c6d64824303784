from __future__ import annotations

import io
import logging
import threading
import time

import pytest

from rtmpd.daemon.logs import LogPipe

LIMIT_S = 10
log = logging.getLogger("rtmpd.test")


@pytest.fixture(autouse=True)
def root():
    """The package's logger, as it was again afterwards."""
    logger = logging.getLogger("rtmpd")
    before = (logger.level, logger.propagate, list(logger.handlers))
    yield logger
    logger.setLevel(before[0])
    logger.propagate = before[1]
    for handler in set(logger.handlers) - set(before[2]):
        logger.removeHandler(handler)


class PausedTerminal(io.StringIO):
    """A stream that takes nothing until it is released."""

    def __init__(self):
        super().__init__()
        self.entered = threading.Event()
        self.released = threading.Event()

    def write(self, text):
        self.entered.set()
        self.released.wait(LIMIT_S)
        return super().write(text)

    def lines(self):
        return self.getvalue().splitlines()


def wait_until(condition):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)


def test_lines_come_out_in_order_with_their_level():
    stream = io.StringIO()
    pipe = LogPipe("info", 1000, stream)
    for number in range(100):
        log.info("line %d", number)
    log.warning("a warning")
    pipe.stop()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 101
    assert all(line.endswith(f"INFO    line {number}") for number, line in enumerate(lines[:100]))
    assert lines[100].endswith("WARNING a warning")
    assert pipe.dropped == 0


def test_the_level_can_be_changed():
    stream = io.StringIO()
    pipe = LogPipe("warning", 100, stream)
    log.info("no")
    pipe.set_level("debug")
    log.debug("yes")
    pipe.set_level("error")
    log.warning("no")
    pipe.stop()
    assert [line.split()[-1] for line in stream.getvalue().splitlines()] == ["yes"]


def test_after_the_end_nothing_comes_out_and_nothing_fails(root):
    stream = io.StringIO()
    pipe = LogPipe("info", 100, stream)
    pipe.stop()
    log.info("too late")
    assert stream.getvalue() == ""
    assert not root.handlers


def test_a_traceback_comes_out_whole():
    stream = io.StringIO()
    pipe = LogPipe("info", 100, stream)
    try:
        raise RuntimeError("a bug")
    except RuntimeError:
        log.exception("internal error")
    pipe.stop()
    assert "Traceback (most recent call last)" in stream.getvalue()
    assert stream.getvalue().endswith("RuntimeError: a bug\n")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_names_that_the_terminal_can_not_show_are_escaped(encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding, write_through=True)
    pipe = LogPipe("info", 100, stream)
    log.info("publishes %s", "live/\udcff\ud800 €")
    log.info("still there")
    pipe.stop()
    text = raw.getvalue().decode(encoding)
    assert "\\udcff\\ud800" in text
    assert text.endswith("still there\n")


def test_a_paused_terminal_holds_nobody_up_and_costs_lines_that_are_counted():
    stream = PausedTerminal()
    pipe = LogPipe("info", 10, stream)
    log.info("the first")
    assert stream.entered.wait(LIMIT_S)
    begun = time.monotonic()
    for number in range(50):
        log.info("line %d", number)
    assert time.monotonic() - begun < LIMIT_S / 2
    # Ten wait in the queue, and one is being written.
    assert pipe.dropped == 40
    stream.released.set()
    wait_until(lambda: len(stream.lines()) == 11)
    log.info("the last")
    pipe.stop()
    lines = stream.lines()
    assert lines[10].endswith("line 9")
    assert "40 log lines were dropped" in lines[11]
    assert lines[12].endswith("the last")
    assert len(lines) == 13
    assert pipe.dropped == 40


def test_the_end_comes_though_the_queue_is_full():
    """A server that is stopped while its terminal is paused ends without an error, and what waited comes out."""
    stream = PausedTerminal()
    pipe = LogPipe("info", 3, stream)
    log.info("the first")
    assert stream.entered.wait(LIMIT_S)
    for number in range(10):
        log.info("line %d", number)
    failures = []

    def stop():
        try:
            pipe.stop()
        except Exception as error:  # noqa: BLE001 - whatever it is
            failures.append(error)

    stopping = threading.Thread(target=stop, daemon=True)
    stopping.start()
    stopping.join(0.05)
    stream.released.set()
    stopping.join(LIMIT_S)
    assert failures == []
    assert not stopping.is_alive()
    assert [line.split()[-1] for line in stream.lines()[:4]] == ["first", "0", "1", "2"]


def test_the_end_does_not_wait_for_a_terminal_that_stays_paused():
    stream = PausedTerminal()
    pipe = LogPipe("info", 3, stream)
    log.info("the first")
    assert stream.entered.wait(LIMIT_S)
    begun = time.monotonic()
    assert not pipe.stop(0.02)
    for number in range(10):
        log.info("line %d", number)
    assert time.monotonic() - begun < LIMIT_S / 2
    stream.released.set()


def test_the_end_says_that_everything_has_come_out():
    stream = io.StringIO()
    pipe = LogPipe("info", 3, stream)
    log.info("the last")
    assert pipe.stop()
    assert stream.getvalue().endswith("the last\n")
