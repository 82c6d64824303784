"""Segments in files: written, read, deleted, and a disk that fails."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import threading

import gevent
import pytest

from rtmpd.errors import HttpError
from rtmpd.http.messages import Request, Response
from rtmpd.media.hls.window import Segment
from rtmpd.services.hls import storage
from tests.unit.services.hls.shows import Publisher, Show

LIMIT_S = 10


@pytest.fixture
def make_show(tmp_path):
    made = []

    def make(more=""):
        made.append(Show(f"[hls]\nhls_directory = {tmp_path}\nhls_window_s = 6\n{more}"))
        return made[-1]

    yield make
    for show in made:
        show.close()


def files(directory):
    return sorted(directory.glob("rtmpd-hls-*/*.m4s"))


def test_complete_segments_are_files(make_show, tmp_path):
    show = make_show()
    publisher = Publisher(show)
    publisher.send(3_000)
    packager = show.find()
    show.run(8_500, publisher)
    window = packager.renditions[0].window
    show.wait(lambda: all(segment.location for segment in window.listed))
    # Only what is not complete is in memory.
    assert window.open is not None
    assert window.size_bytes == window.open.size_bytes
    assert 0 < show.packagers.memory_bytes < 30_000
    # Parts and segments are read back as they were.
    (packaged,) = packager.renditions
    for segment in window.listed:
        number = segment.sequence_number
        whole = b"".join(packaged.segment_data(number))
        assert whole == show.main.media[f"seg-{number}.m4s"]
        parts = [packaged.part_data(number, index) for index in range(len(segment.parts))]
        assert b"".join(parts) == whole
        assert len(parts) > 2
    assert packaged.part_data(number, 99) is None
    assert packaged.segment_data(number + 9) is None
    # Names say nothing of the stream, and other users can't look at them.
    assert all(each.stem.isdigit() for each in files(tmp_path))
    assert all(not each.stat().st_mode & 0o007 for each in tmp_path.glob("rtmpd-hls-*/**"))
    # Files go with the window.
    first = files(tmp_path)[0]
    show.run(40_000, publisher)
    show.wait(lambda: not first.exists())
    show.wait(lambda: len(files(tmp_path)) <= 8)
    show.check()
    show.end(publisher)
    show.check()
    show.close()
    assert not list(tmp_path.iterdir())


def test_files_of_an_earlier_run_are_deleted(make_show, tmp_path):
    crashed, running, other = (tmp_path / name for name in ("rtmpd-hls-0123456789abcdef", "rtmpd-hls-" + "a" * 16, "mine"))
    for each in (crashed, running, other):
        each.mkdir()
        (each / "lock").touch()
        (each / "1.m4s").touch()
    with (running / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        show = make_show()
        show.wait(lambda: not crashed.exists())
        assert running.exists()
        assert other.exists()


def test_a_full_disk(make_show, tmp_path, monkeypatch, caplog):
    show = make_show("hls_memory_limit_bytes = 1M\n")
    is_full = True

    def write(descriptor, data):
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os_write(descriptor, data)

    os_write = os.write
    monkeypatch.setattr(storage.os, "write", write)
    publisher = Publisher(show, key_bytes=40_000, frame_bytes=2_000)
    publisher.send(3_000)
    packager = show.find()
    show.run(24_000, publisher)
    show.wait(lambda: show.hub.counters["hls_disk_errors"] > 0)
    show.check()
    assert packager.memory_bytes <= 1 << 20
    assert show.hub.counters["hls_segments_dropped"] > 0
    assert caplog.text.count("No space left on device; segments stay in memory") == 1
    assert not files(tmp_path)
    is_full = False
    show.run(30_000, publisher)
    show.wait(lambda: files(tmp_path))
    show.check()


def test_a_file_that_was_deleted_by_another_program(make_show, tmp_path):
    show = make_show()
    publisher = Publisher(show)
    publisher.send(3_000)
    packager = show.find()
    show.run(8_500, publisher)
    window = packager.renditions[0].window
    show.wait(lambda: all(segment.location for segment in window.listed))
    for each in files(tmp_path):
        each.unlink()
    assert packager.renditions[0].segment_data(window.first_number) is None


def test_a_disk_that_does_not_answer(make_show, monkeypatch, caplog):
    show = make_show("hls_memory_limit_bytes = 1M\n")
    answers, write = threading.Event(), storage.os.write

    def hang(descriptor, data):
        answers.wait(LIMIT_S)
        return write(descriptor, data)

    monkeypatch.setattr(storage.os, "write", hang)
    publisher = Publisher(show, key_bytes=40_000, frame_bytes=2_000)
    publisher.send(3_000)
    packager = show.find()
    gc.collect()
    others = sum(type(each) is Segment for each in gc.get_objects())
    show.run(30_000, publisher)
    # Nothing waits for it: what would be written too late is not kept.
    assert packager.memory_bytes <= 1 << 20
    gc.collect()
    kept = sum(type(each) is Segment for each in gc.get_objects())
    assert kept - others < 12
    show.check()
    answers.set()
    window = packager.renditions[0].window
    show.wait(lambda: all(segment.location for segment in window.listed))
    # Nor does a viewer wait for ever.
    monkeypatch.setattr(storage, "_READ_LIMIT_S", 0.05)
    answers.clear()
    monkeypatch.setattr(storage.os, "pread", lambda *arguments: answers.wait(LIMIT_S))
    assert packager.renditions[0].segment_data(window.first_number) is None
    assert "did not answer within 0.05 s" in caplog.text
    answers.set()


class Disk:
    """Counts what is read, and answers when it is let.

    Attributes:
        reads: The offsets that were read.
        answers: Set: it answers.
    """

    def __init__(self, monkeypatch):
        self.reads = []
        self.answers = threading.Event()
        self.answers.set()
        pread = storage.os.pread

        def slow(descriptor, size, offset):
            self.reads.append(offset)
            assert self.answers.wait(LIMIT_S)
            return pread(descriptor, size, offset)

        monkeypatch.setattr(storage.os, "pread", slow)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "1.m4s"
    made.write_bytes(bytes(range(200)))
    return made


def test_what_many_viewers_request_is_read_once(disk, path):
    reader = storage.Reader(lambda: 1000)
    disk.answers.clear()
    first, *others = [gevent.spawn(reader.read, path, 0, 100) for _ in range(20)]
    gevent.sleep(0)
    # The client of the first one goes away meanwhile.
    first.kill()
    disk.answers.set()
    gevent.joinall(others, timeout=LIMIT_S)
    assert {bytes(each.value) for each in others} == {bytes(range(100))}
    assert len(disk.reads) == 2
    assert reader.lent_bytes == 100
    assert reader.read(path, 0, 100) is others[0].value
    path.unlink()
    with pytest.raises(FileNotFoundError):
        reader.read(path, 100, 100)
    assert reader.lent_bytes == 100


def test_viewers_that_do_not_read_take_a_limited_amount_of_memory(monkeypatch, disk, path):
    monkeypatch.setattr(storage, "_KEPT_BYTES", 100)
    reader = storage.Reader(lambda: 150)
    first = Response(pieces=[reader.read(path, 0, 100)])
    # A range is not copied, and counts as the whole.
    part = Response(pieces=[reader.read(path, 50, 100)]).ranged(Request("GET", "/", "", {"range": "bytes=1-9"}))
    assert part.status == 206
    with pytest.raises(HttpError) as caught:
        reader.read(path, 100, 100)
    assert caught.value.status == 503
    # What is kept can still be had.
    reader.read(path, 50, 100)
    assert reader.lent_bytes == 200
    del first
    reader.read(path, 100, 100)
    # Now that of the range is no longer kept.
    assert reader.lent_bytes == 200
    assert b"".join(part.pieces) == bytes(range(51, 60))
    del part
    assert reader.lent_bytes == 100
