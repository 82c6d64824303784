from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from dataclasses import replace

import pytest

from rtmpd.config.loader import load_text
from rtmpd.daemon import log_sinks, logs
from rtmpd.daemon.log_formats import text_line
from rtmpd.daemon.log_sinks import Target
from rtmpd.daemon.logs import LogPipe, Logs
from rtmpd.errors import RtmpdError

LIMIT_S = 10
HERE = Target("file", "/var/log/here")
log = logging.getLogger("rtmpd.test")
access = logging.getLogger("rtmpd.access")


@pytest.fixture(autouse=True)
def root():
    """The package's loggers, restored after the test."""
    loggers = [logging.getLogger("rtmpd"), access]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield loggers[0]
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)


class Collected:
    """A sink that accepts lines unless it is paused, has a problem or has no room."""

    batch_bytes = 65536

    def __init__(self):
        self.problem = ""
        self.taken = []
        self.room = 1_000_000
        self.entered = threading.Event()
        self.released = threading.Event()
        self.released.set()
        self.reopened = 0

    def pause(self):
        self.released.clear()

    def write(self, lines):
        self.entered.set()
        self.released.wait(LIMIT_S)
        kept = lines[: self.room]
        self.room -= len(kept)
        self.taken += kept
        self.problem = "No space left on device" if len(kept) < len(lines) else ""
        return len(lines) - len(kept)

    def reopen(self):
        self.reopened += 1

    def follow(self):
        pass

    def close(self):
        pass

    def lines(self):
        return b"".join(self.taken).decode().splitlines()

    def words(self):
        return [line.split()[-1] for line in self.lines()]


class Pipe:
    """A log pipe with a sink in memory, and the problems that it reports."""

    def __init__(self, queue_limit=1000, *, self_reporting=True):
        self.sink = Collected()
        self.reports = []
        logger = logging.getLogger("rtmpd")
        logger.setLevel("INFO")
        self.pipe = LogPipe(
            logger,
            queue_limit,
            lambda target, form: text_line,
            lambda level, text: self.reports.append((logging.getLevelName(level), text)),
            self_reporting=self_reporting,
        )
        self.pipe.start(HERE, "text", self.sink)
        self.stop = self.pipe.stop

    def flush(self):
        wait_until(self.pipe._lines.empty)
        # The thread has taken the last line; this item comes after it has been written.
        done = threading.Event()
        self.pipe._apply_changes, before = (lambda: (before(), done.set())), self.pipe._apply_changes
        self.pipe._lines.put((0, None))
        assert done.wait(LIMIT_S)
        self.pipe._apply_changes = before


@pytest.fixture
def pipe():
    """Return a function that makes a `Pipe`."""
    made = []

    def make(*arguments, **options):
        made.append(Pipe(*arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.sink.released.set()
        each.stop()


def wait_until(condition):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)


# A pipe -----------------------------------------------------------------------------------------------------------------


def test_lines_are_written_in_order_with_their_level(pipe):
    made = pipe()
    for number in range(100):
        log.info("line %d", number)
    log.warning("a warning")
    assert made.stop()
    lines = made.sink.lines()
    assert len(lines) == 101
    assert all(line.endswith(f"INFO    line {number}") for number, line in enumerate(lines[:100]))
    assert lines[100].endswith("WARNING a warning")
    assert made.pipe.dropped == 0
    assert made.reports == []


def test_after_the_stop_nothing_is_written_and_nothing_fails(pipe, root):
    made = pipe()
    made.stop()
    log.info("too late")
    assert made.sink.taken == []
    assert not [handler for handler in root.handlers if isinstance(handler, logs._Lines)]


def test_a_traceback_is_written_whole_and_keeps_no_object_alive(pipe):
    made = pipe()
    try:
        raise RuntimeError("a bug")
    except RuntimeError:
        log.exception("internal error")
    made.stop()
    text = b"".join(made.sink.taken).decode()
    assert "ERROR   internal error\nTraceback (most recent call last)" in text
    assert text.endswith("RuntimeError: a bug\n")


def test_a_message_is_formatted_when_it_is_logged(pipe):
    made = pipe()
    made.sink.pause()
    names = ["a"]
    log.info("first")
    made.sink.entered.wait(LIMIT_S)
    log.info("names %s", names)
    names.append("b")
    made.sink.released.set()
    made.stop()
    assert made.sink.lines()[1].endswith("names ['a']")


def test_a_message_that_can_not_be_formatted_is_logged_as_an_error(pipe, capfd):
    made = pipe()
    log.info("%d lines", "many")
    log.info("the last")
    made.stop()
    text = b"".join(made.sink.taken).decode()
    assert "internal error: can't format '%d lines'" in text
    assert made.sink.lines()[-1].endswith("the last")
    assert capfd.readouterr().err == ""


def test_a_paused_terminal_blocks_nothing_and_dropped_lines_are_counted(pipe):
    made = pipe(10)
    made.sink.pause()
    log.info("the first")
    assert made.sink.entered.wait(LIMIT_S)
    begun = time.monotonic()
    for number in range(50):
        log.info("line %d", number)
    assert time.monotonic() - begun < LIMIT_S / 2
    # Ten wait in the queue, and one is being written.
    assert made.pipe.dropped == 40
    made.sink.released.set()
    wait_until(lambda: len(made.sink.taken) == 11)
    log.info("the last")
    made.stop()
    lines = made.sink.lines()
    assert lines[10].endswith("line 9")
    assert "WARNING 40 log lines were dropped: /var/log/here is too slow (queue_limit)" in lines[11]
    assert lines[12].endswith("the last")
    assert len(lines) == 13
    assert made.pipe.dropped == 40


def test_lines_dropped_last_are_reported_at_the_stop(pipe):
    made = pipe(3)
    made.sink.pause()
    log.info("the first")
    assert made.sink.entered.wait(LIMIT_S)
    for number in range(5):
        log.info("line %d", number)
    made.sink.released.set()
    made.stop()
    assert "2 log lines were dropped" in made.sink.lines()[-1]
    assert len(made.sink.lines()) == 5


def test_a_log_for_programs_contains_only_its_entries(pipe):
    made = pipe(3, self_reporting=False)
    made.sink.pause()
    log.info("the first")
    assert made.sink.entered.wait(LIMIT_S)
    for number in range(5):
        log.info("line %d", number)
    made.sink.released.set()
    made.flush()
    made.sink.room = 0
    log.info("lost")
    made.flush()
    made.sink.room = 100
    log.info("last")
    made.stop()
    assert made.sink.words() == ["first", "0", "1", "2", "last"]
    problem = "can't write to /var/log/here: No space left on device"
    assert made.reports == [
        ("WARNING", "2 log lines were dropped: /var/log/here is too slow (queue_limit)"),
        ("ERROR", f"{problem}; its lines are dropped until writing works again"),
        ("WARNING", f"/var/log/here can be written to again; 1 log lines were dropped: {problem}"),
    ]
    assert made.pipe.dropped == 3


def test_a_full_queue_does_not_prevent_the_stop(pipe):
    """A server that is stopped while its terminal is paused ends without an error, and writes the waiting lines."""
    made = pipe(3)
    made.sink.pause()
    log.info("the first")
    assert made.sink.entered.wait(LIMIT_S)
    for number in range(10):
        log.info("line %d", number)
    failures = []

    def stop():
        try:
            made.stop()
        except Exception as error:  # noqa: BLE001 - whatever it is
            failures.append(error)

    stopping = threading.Thread(target=stop, daemon=True)
    stopping.start()
    stopping.join(0.05)
    made.sink.released.set()
    stopping.join(LIMIT_S)
    assert failures == []
    assert not stopping.is_alive()
    assert made.sink.words()[:4] == ["first", "0", "1", "2"]


def test_the_stop_does_not_wait_for_a_paused_terminal(pipe):
    made = pipe(3)
    made.sink.pause()
    log.info("the first")
    assert made.sink.entered.wait(LIMIT_S)
    begun = time.monotonic()
    assert not made.stop(0.02)
    for number in range(10):
        log.info("line %d", number)
    assert time.monotonic() - begun < LIMIT_S / 2


def test_a_full_disk_is_reported_once_elsewhere_and_later_in_the_log(pipe):
    made = pipe()
    made.sink.room = 1
    log.info("line 0")
    made.flush()
    for number in range(1, 5):
        log.info("line %d", number)
        made.flush()
    assert made.pipe.dropped == 4
    problem = "can't write to /var/log/here: No space left on device"
    assert made.reports == [("ERROR", f"{problem}; its lines are dropped until writing works again")]
    made.sink.room = 100
    log.info("line 5")
    made.flush()
    lines = made.sink.lines()
    assert [lines[0][-6:], lines[2][-6:]] == ["line 0", "line 5"]
    assert lines[1].endswith(f"WARNING 4 log lines were dropped: {problem}")
    assert made.reports[1:] == [("WARNING", f"/var/log/here can be written to again; 4 log lines were dropped: {problem}")]
    assert made.pipe.dropped == 4


def test_a_nearly_full_disk_counts_each_line_once_and_is_reported_once(pipe):
    """Room for one line now and then: the notice is written, and the line is lost."""
    made = pipe()
    made.sink.room = 0
    for number in range(20):
        log.info("line %d", number)
        made.flush()
        made.sink.room = number % 2
    made.sink.room = 1000
    log.info("the last")
    made.flush()
    told = sum(int(line.split()[3]) for line in made.sink.lines() if "were dropped" in line)
    kept = sum(" line " in line for line in made.sink.lines())
    assert told + kept == 20
    assert made.pipe.dropped == told
    assert [level for level, _ in made.reports] == ["ERROR", "WARNING"]


def test_a_bug_in_a_format_loses_lines_but_not_the_thread(pipe, capfd):
    made = pipe()

    def broken(record):
        raise RuntimeError("a bug")

    made.pipe._format, before = broken, made.pipe._format
    log.info("lost")
    wait_until(lambda: made.pipe.dropped == 1)
    made.pipe._format = before
    log.info("the last")
    made.stop()
    assert made.sink.words() == ["last"]
    assert "internal error in the log: Traceback" in capfd.readouterr().err.replace("\\n", "\n")


# Targets that change ----------------------------------------------------------------------------------------------------


def test_waiting_lines_are_written_to_the_new_target(pipe, tmp_path):
    made = pipe()
    log.info("here")
    made.flush()
    made.pipe.change(Target("file", str(tmp_path / "there")), "text")
    log.info("there")
    made.stop()
    assert made.sink.words() == ["here"]
    assert (tmp_path / "there").read_text().endswith("there\n")


def test_the_old_target_is_kept_if_the_new_one_can_not_be_opened(pipe, tmp_path):
    made = pipe()
    made.pipe.change(Target("file", str(tmp_path / "nowhere" / "log")), "text")
    log.info("still here")
    made.stop()
    lines = made.sink.lines()
    assert lines[0].endswith(
        f"ERROR   can't open {tmp_path}/nowhere/log: No such file or directory; the log is still written to /var/log/here"
    )
    assert lines[1].endswith("still here")


def test_a_change_is_applied_with_a_full_queue_and_without_new_lines(pipe, tmp_path):
    made = pipe(2)
    made.sink.pause()
    log.info("first")
    assert made.sink.entered.wait(LIMIT_S)
    log.info("second")
    log.info("third")
    made.pipe.change(Target("file", str(tmp_path / "there")), "text")
    made.sink.released.set()
    wait_until(lambda: (tmp_path / "there").exists())
    made.stop()
    assert made.sink.words() == ["first"]
    assert [line.split()[-1] for line in (tmp_path / "there").read_text().splitlines()] == ["second", "third"]


def test_a_requested_reopen_is_logged(pipe):
    made = pipe()
    made.pipe.change(HERE, "text", logged=True)
    made.pipe.change(HERE, "text")
    made.stop()
    assert made.sink.reopened == 2
    (line,) = made.sink.lines()
    assert line.endswith("INFO    /var/log/here was reopened")


def test_a_file_that_can_not_be_opened_again_is_an_error_once(pipe):
    made = pipe()

    def fail():
        raise PermissionError(13, "Permission denied")

    made.sink.reopen = fail
    made.sink.follow = fail
    made.pipe.change(HERE, "text", logged=True)
    for number in range(3):
        log.info("line %d", number)
        made.flush()
    made.stop()
    lines = made.sink.lines()
    assert lines[0].endswith("ERROR   can't reopen /var/log/here: Permission denied; the log is still written to the old file")
    assert lines[1].endswith(
        "ERROR   can't reopen /var/log/here after it was moved: Permission denied; lines are written to the moved file"
    )
    assert [line[-6:] for line in lines[2:]] == ["line 0", "line 1", "line 2"]


# Both logs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_logs():
    made = []

    def make(ini=""):
        made.append(Logs(load_text(f"[log]\n{ini}").log))
        return made[-1]

    yield make
    for each in made:
        each.finish()


def test_lines_before_the_start_wait_for_the_file(make_logs, tmp_path, capfd):
    path = tmp_path / "log"
    made = make_logs(f"log_file = {path}\n")
    log.info("early")
    assert not path.exists()
    made.start()
    log.info("late")
    assert made.finish()
    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["early", "late"]
    assert capfd.readouterr().err == ""


def test_without_a_start_lines_go_to_standard_error(make_logs, tmp_path, capfd):
    made = make_logs(f"log_file = {tmp_path}/log\n")
    log.error("can't listen")
    made.echo_error("can't listen")
    assert made.finish()
    assert capfd.readouterr().err.count("ERROR   can't listen\n") == 1
    assert not (tmp_path / "log").exists()


def test_a_start_that_fails_later_is_reported_on_standard_error_too(make_logs, tmp_path, capfd):
    made = make_logs(f"log_file = {tmp_path}/log\n")
    made.start()
    log.error("can't begin")
    made.echo_error("can't begin")
    made.finish()
    assert capfd.readouterr().err.count("ERROR   can't begin\n") == 1
    assert (tmp_path / "log").read_text().count("ERROR   can't begin\n") == 1


@pytest.mark.parametrize("option", ["log_file", "access_log_file"])
def test_a_file_that_can_not_be_opened_is_an_error_at_start(make_logs, tmp_path, capfd, option):
    made = make_logs(f"{option} = {tmp_path}/nowhere/log\n")
    with pytest.raises(RtmpdError, match=rf"^can't log to {tmp_path}/nowhere/log: No such file or directory$"):
        made.start()
    log.error("the end")
    made.finish()
    assert "ERROR   the end" in capfd.readouterr().err


def test_a_journal_that_is_not_there_is_an_error_at_start(make_logs, monkeypatch, tmp_path):
    monkeypatch.setattr(log_sinks.JournalSink.__init__, "__defaults__", (str(tmp_path / "none"),))
    made = make_logs("log_target = journal\n")
    with pytest.raises(RtmpdError, match=r"^can't log to the journal: No such file or directory$"):
        made.start()


def config_of(ini):
    return load_text(f"[log]\n{ini}")


def test_a_reload_changes_level_format_and_target_at_once(make_logs, tmp_path):
    path = tmp_path / "log"
    made = make_logs(f"log_file = {path}\nlevel = warning\n")
    made.start()
    log.info("no")
    log.warning("text")
    wait_until(lambda: path.exists() and "text" in path.read_text())
    made.reload(config_of(f"log_file = {path}\nlevel = debug\nlog_format = json\n").log)
    log.debug("json")
    wait_until(lambda: "json" in path.read_text())
    made.reload(config_of(f"log_file = {tmp_path}/other\nlevel = debug\n").log)
    log.debug("elsewhere")
    made.finish()
    lines = path.read_text().splitlines()
    assert lines[0].endswith("WARNING text")
    assert json.loads(lines[1])["message"] == "json"
    assert len(lines) == 2
    assert (tmp_path / "other").read_text().endswith("DEBUG   elsewhere\n")


def test_a_reload_to_a_target_that_can_not_be_opened_keeps_the_old_and_the_next_tries_again(make_logs, tmp_path):
    path = tmp_path / "log"
    made = make_logs(f"log_file = {path}\n")
    made.start()
    elsewhere = config_of(f"log_file = {tmp_path}/later/log\n")
    made.reload(elsewhere.log)
    wait_until(lambda: path.exists() and f"can't open {tmp_path}/later/log: No such file or directory" in path.read_text())
    log.info("here")
    (tmp_path / "later").mkdir()
    wait_until(lambda: "here\n" in path.read_text())
    made.reload(elsewhere.log)
    log.info("there")
    made.finish()
    assert "there" not in path.read_text().replace("later", "")
    assert (tmp_path / "later" / "log").read_text().endswith("there\n")


def test_the_access_log_begins_and_ends_with_a_reload(make_logs, tmp_path, capfd):
    made = make_logs()
    made.start()
    made.reload(config_of(f"access_log_file = {tmp_path}/access\n").log)
    access.info("x", extra={"entry": {"action": "one"}})
    wait_until(lambda: (tmp_path / "access").exists() and "one" in (tmp_path / "access").read_text())
    made.reload(config_of("").log)
    access.info("x", extra={"entry": {"action": "two"}})
    made.finish()
    (line,) = (tmp_path / "access").read_text().splitlines()
    assert " action=one " in line
    assert capfd.readouterr().err == ""


def test_the_access_log_is_written_whatever_the_level(make_logs, tmp_path):
    made = make_logs(f"level = error\naccess_log_file = {tmp_path}/access\n")
    made.start()
    access.info("x", extra={"entry": {"action": "one"}})
    made.finish()
    assert "action=one" in (tmp_path / "access").read_text()


def test_a_failed_access_log_is_reported_in_the_log(make_logs, capfd):
    made = make_logs("access_log_file = /dev/full\n")
    made.start()
    access.info("x", extra={"entry": {"action": "one"}})
    wait_until(lambda: made.access_dropped == 1)
    made.finish()
    assert "ERROR   can't write to /dev/full: No space left on device; its lines are dropped" in capfd.readouterr().err
    assert made.dropped == 0


def test_a_failed_log_is_reported_on_standard_error(make_logs, capfd):
    made = make_logs("log_file = /dev/full\n")
    made.start()
    for number in range(10):
        log.info("line %d", number)
    made.finish()
    assert made.dropped == 10
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].endswith(
        "ERROR   can't write to /dev/full: No space left on device; its lines are dropped until writing works again"
    )


def test_a_paused_standard_error_does_not_block_the_file(make_logs, tmp_path, monkeypatch):
    """Also when a problem of the file is reported."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    monkeypatch.setattr(logs, "stderr_descriptor", lambda: writing)
    made = make_logs("log_file = /dev/full\n")
    made.start()
    log.info("lost")
    wait_until(lambda: made.dropped == 1)
    made.reload(replace(config_of(f"log_file = {tmp_path}/log\n").log))
    log.info("kept")
    assert made.finish()
    assert "kept" in (tmp_path / "log").read_text()
    os.close(reading)
    os.close(writing)
