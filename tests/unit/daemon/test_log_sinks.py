from __future__ import annotations

import errno
import os
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from rtmpd.daemon import log_sinks
from rtmpd.daemon.log_sinks import FileSink, JournalSink, Sink, StreamSink, Target, is_journal, open_sink

LIMIT_S = 10


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def file(tmp_path, clock):
    sink = FileSink(str(tmp_path / "log"), clock)
    yield sink
    sink.close()


def lines(count, size=100, begin=0):
    return [b"%06d %s\n" % (number, b"x" * (size - 8)) for number in range(begin, begin + count)]


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


# Files ------------------------------------------------------------------------------------------------------------------


def test_a_file_is_made_for_its_owner_and_group_and_appended_to(tmp_path):
    path = tmp_path / "log"
    before = os.umask(0)
    try:
        first = FileSink(str(path))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert first.write([b"one\n"]) == 0
    first.close()
    second = FileSink(str(path))
    assert second.write([b"two\n", b"three\n"]) == 0
    second.close()
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_after_reopen_lines_go_to_the_file_of_that_name(tmp_path, file):
    file.write([b"one\n"])
    (tmp_path / "log").rename(tmp_path / "log.1")
    file.write([b"two\n"])
    file.reopen()
    file.write([b"three\n"])
    assert (tmp_path / "log.1").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "log").read_bytes() == b"three\n"


def test_a_file_that_can_not_be_opened_again_is_kept(tmp_path, file):
    (tmp_path / "log").rename(tmp_path / "log.1")
    (tmp_path / "log").mkdir()
    with pytest.raises(IsADirectoryError):
        file.reopen()
    assert file.write([b"one\n"]) == 0
    assert (tmp_path / "log.1").read_bytes() == b"one\n"


def test_reopening_does_not_leak_descriptors(file):
    before = open_descriptors()
    for _ in range(20):
        file.reopen()
    assert open_descriptors() == before


@pytest.mark.parametrize("go", ["rename", "delete", "replace"])
def test_a_moved_file_is_created_again_after_a_while(tmp_path, file, clock, go):
    """Not at once, since logrotate creates the new file itself between its two steps."""
    path = tmp_path / "log"
    file.write([b"one\n"])
    match go:
        case "rename":
            path.rename(tmp_path / "log.1")
        case "delete":
            path.unlink()
        case "replace":
            (tmp_path / "other").write_bytes(b"new\n")
            (tmp_path / "other").rename(path)
    for now, made in [(100, False), (106, False), (107, False), (111.5, True)]:
        clock.now = now
        file.follow()
        file.write([b"%d\n" % now])
        here = path.exists() and b"%d\n" % now in path.read_bytes()
        assert here == made, now


def test_a_file_that_comes_back_soon_is_not_reopened(tmp_path, file, clock):
    path = tmp_path / "log"
    path.rename(tmp_path / "log.1")
    clock.now = 106
    file.follow()
    (tmp_path / "log.1").rename(path)
    for now in (112, 118, 124):
        clock.now = now
        file.follow()
    path.rename(tmp_path / "log.1")
    clock.now = 130
    file.follow()
    assert not path.exists()


def test_a_moved_file_that_can_not_be_created_is_an_error_each_time(tmp_path, file, clock):
    path = tmp_path / "log"
    path.rename(tmp_path / "log.1")
    path.mkdir()
    clock.now = 106
    file.follow()
    for now in (112, 118):
        clock.now = now
        with pytest.raises(IsADirectoryError):
            file.follow()
        assert file.write([b"x\n"]) == 0
    path.rmdir()
    clock.now = 124
    file.follow()
    file.write([b"y\n"])
    assert path.read_bytes() == b"y\n"


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: path.mkdir(), errno.EISDIR),
        (lambda path: os.mkfifo(path), errno.ENXIO),
        (lambda path: path.symlink_to(path), errno.ELOOP),
        (lambda path: path.symlink_to(path.parent / "nowhere" / "x"), errno.ENOENT),
    ],
    ids=["a directory", "a pipe without a reader", "a loop", "no directory"],
)
def test_a_target_that_can_not_be_opened_is_an_error_without_waiting(tmp_path, make, error):
    make(tmp_path / "log")
    with pytest.raises(OSError, match=r".") as raised:
        open_sink(Target("file", str(tmp_path / "log")))
    assert raised.value.errno == error


@pytest.fixture
def dead_disk(monkeypatch):
    """A function `_open` that waits until the event that this returns is set."""
    answers = threading.Event()
    original = log_sinks._open

    def wait_and_open(path):
        answers.wait(20)
        return original(path)

    monkeypatch.setattr(log_sinks, "_open", wait_and_open)
    monkeypatch.setattr(log_sinks, "_OPEN_LIMIT_S", 0.05)
    yield answers
    answers.set()


def test_a_disk_that_does_not_answer_is_an_error_in_time_and_is_not_asked_again_meanwhile(tmp_path, dead_disk):
    target = Target("file", str(tmp_path / "log"))
    before, threads = open_descriptors(), threading.active_count()
    with pytest.raises(TimeoutError, match=r"not opened within 0\.05 s: its disk does not answer"):
        open_sink(target)
    for _ in range(20):
        with pytest.raises(TimeoutError, match="an earlier attempt to open it has not ended"):
            open_sink(target)
    assert threading.active_count() == threads + 1
    # Another disk may be well, and this one may be so later. What was opened too late is closed again.
    dead_disk.set()
    until = time.monotonic() + 10
    while log_sinks._being_opened or threading.active_count() > threads:
        assert time.monotonic() < until
    assert open_descriptors() == before
    open_sink(target).close()


def test_a_file_that_can_not_be_reopened_in_time_is_kept(file, dead_disk, tmp_path):
    dead_disk.set()
    sink = FileSink(str(tmp_path / "log"))
    dead_disk.clear()
    with pytest.raises(TimeoutError, match="not opened within"):
        sink.reopen()
    assert sink.write([b"one\n"]) == 0
    assert (tmp_path / "log").read_bytes() == b"one\n"
    sink.close()


def test_a_pipe_with_a_reader_is_as_good_as_a_file(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink = FileSink(str(path))
    assert sink.write([b"one\n"]) == 0
    assert os.read(reader, 100) == b"one\n"
    os.close(reader)
    assert sink.write([b"two\n"]) == 1
    assert sink.problem == "Broken pipe"
    sink.close()


def test_a_full_disk_loses_whole_lines_and_counts_them(tmpfs):
    path = tmpfs("64k") / "log"
    sink = FileSink(str(path))
    lost = [sink.write(lines(10, begin=10 * number)) for number in range(100)]
    assert sink.problem == "No space left on device"
    assert lost[0] == 0
    assert lost[-1] == 10
    *whole, last = path.read_bytes().splitlines(keepends=True)
    assert whole == lines(len(whole))
    assert lines(1, begin=len(whole))[0].startswith(last)
    sink.close()


def test_a_cut_line_is_completed_when_the_disk_has_space(tmpfs):
    directory = tmpfs("64k")
    ballast = directory / "ballast"
    ballast.write_bytes(b"x" * 32768)
    path = directory / "log"
    sink = FileSink(str(path))
    sent = lines(1000, size=77)
    lost = sum(sink.write(sent[begin : begin + 7]) for begin in range(0, len(sent), 7))
    assert lost > 0
    assert not path.read_bytes().endswith(b"\n")
    assert sink.write([b"lost\n"]) == 1
    ballast.unlink()
    assert sink.write([b"the next\n"]) == 0
    written = path.read_bytes().splitlines(keepends=True)
    assert written == [*sent[: len(sent) - lost], b"the next\n"]
    sink.close()


def test_a_cut_line_is_whole_in_the_new_file(tmpfs, tmp_path):
    directory = tmpfs("64k")
    (directory / "ballast").write_bytes(b"x" * 32768)
    link = tmp_path / "link"
    link.symlink_to(directory / "log")
    sink = FileSink(str(link))
    sent = lines(1000, size=77)
    lost = sum(sink.write(sent[begin : begin + 7]) for begin in range(0, len(sent), 7))
    torn = sent[len(sent) - lost - 1]
    link.unlink()
    link.symlink_to(tmp_path / "new")
    sink.reopen()
    assert sink.write([b"the next\n"]) == 0
    assert (tmp_path / "new").read_bytes() == torn + b"the next\n"
    sink.close()


def test_a_device_that_is_always_full_takes_nothing():
    sink = FileSink("/dev/full")
    assert sink.write(lines(3)) == 3
    assert sink.problem == "No space left on device"
    sink.close()


# Descriptors ------------------------------------------------------------------------------------------------------------


def test_other_writers_to_the_same_pipe_do_not_cut_a_line():
    reading, writing = os.pipe()
    sizes = []

    def read():
        while data := os.read(reading, 1 << 20):
            sizes.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    done = threading.Event()
    other = os.dup(writing)

    def interfere():
        while not done.is_set():
            os.write(other, b"other\n")

    interferer = threading.Thread(target=interfere)
    interferer.start()
    sink = StreamSink(writing)
    sent = lines(2000)
    assert sink.write(sent) == 0
    done.set()
    interferer.join(LIMIT_S)
    os.close(writing)
    os.close(other)
    reader.join(LIMIT_S)
    os.close(reading)
    received = b"".join(sizes).splitlines(keepends=True)
    assert [line for line in received if line != b"other\n"] == sent


def test_a_pipe_that_does_not_block_is_waited_for():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    sink = StreamSink(writing)
    sent = lines(5000)
    received = []

    def read():
        size = 0
        while size < len(sent) * 100:
            received.append(os.read(reading, 5000))
            size += len(received[-1])

    reader = threading.Thread(target=read)
    reader.start()
    assert sink.write(sent) == 0
    reader.join(LIMIT_S)
    assert b"".join(received) == b"".join(sent)
    os.close(reading)
    os.close(writing)


def test_a_pipe_without_a_reader_only_loses_lines():
    reading, writing = os.pipe()
    os.close(reading)
    sink = StreamSink(writing)
    assert sink.write(lines(3)) == 3
    assert sink.problem == "Broken pipe"
    sink.reopen()
    sink.follow()
    sink.close()
    os.close(writing)


def test_the_sink_without_a_target_discards_lines():
    sink = Sink()
    assert sink.write(lines(3)) == 0
    sink.reopen()
    sink.follow()
    sink.close()


def test_a_stream_to_the_journal_is_recognized(monkeypatch):
    reading, writing = os.pipe()
    status = os.fstat(writing)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert not is_journal(writing)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    assert is_journal(writing)
    assert not is_journal(0)
    os.close(reading)
    os.close(writing)
    assert not is_journal(writing)


# The journal ------------------------------------------------------------------------------------------------------------


def listen(path):
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journal.bind(str(path))
    journal.settimeout(LIMIT_S)
    return journal


def test_each_line_is_a_datagram(tmp_path):
    with listen(tmp_path / "socket") as journal:
        sink = JournalSink(str(tmp_path / "socket"))
        assert sink.write([b"MESSAGE=a\n", b"MESSAGE=b\n"]) == 0
        assert [journal.recv(1000), journal.recv(1000)] == [b"MESSAGE=a\n", b"MESSAGE=b\n"]
        sink.close()


def test_the_longest_message_is_one_datagram(tmp_path):
    with listen(tmp_path / "socket") as journal:
        sink = JournalSink(str(tmp_path / "socket"))
        # 48 Ki characters of three bytes, and the other fields.
        longest = b"x" * (3 * 48 * 1024 + 4096)
        assert sink.write([longest]) == 0
        assert journal.recv(1 << 20) == longest
        sink.close()


def test_a_restarted_journal_is_found_again(tmp_path):
    path = tmp_path / "socket"
    with listen(path):
        sink = JournalSink(str(path))
    assert sink.write([b"lost\n", b"too\n"]) == 2
    assert sink.problem == "Connection refused"
    path.unlink()
    assert sink.write([b"lost\n"]) == 1
    assert sink.problem == "No such file or directory"
    with listen(path) as journal:
        assert sink.write([b"MESSAGE=a\n"]) == 0
        assert sink.problem == ""
        assert journal.recv(1000) == b"MESSAGE=a\n"
    sink.close()


def test_no_journal_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        JournalSink(str(tmp_path / "nowhere"))
