"""The recording of a real stream, on a disk that the test controls."""

from __future__ import annotations

import errno
import io
import logging
import os
import threading
import time

import gevent
import pytest
from gevent.pool import Group

from rtmpd.config.loader import load_text
from rtmpd.live.flv_framing import FLV
from rtmpd.media.flv_repair import scan
from rtmpd.services.recorder import recording as module
from rtmpd.services.recorder.files import RecordingFile
from rtmpd.services.recorder.recording import Recording
from rtmpd.util.threads import Threads
from tests.fmp4_files import all_kinds, box
from tests.unit.live.fakes import close_stream, live_pages, new_source, new_stream
from tests.unit.media.test_fmp4 import AVC
from tests.unit.services.recorder.test_mp4_segment import check, video

LIMIT_S = 20
KEY, INTER = b"\x17\x01\0\0\0key", b"\x27\x01\0\0\0inter"


class Owner:
    """The part of the recorder that a recording uses."""

    def __init__(self, directory, **options):
        options = {"disk_reserve_bytes": 0, **options}
        lines = "".join(f"{name} = {value}\n" for name, value in options.items())
        ini = f"[record]\nrecord_directory = {directory}\nrecord_file_name = {{name}}-{{n}}\n{lines}"
        self.config = load_text(ini)
        self.options = self.config.record
        self.threads = Threads(2)
        self.greenlets = Group()
        self.errors = 0
        self.other_formats = 0
        self.files = []
        self.sizes = []

    def spawn(self, action):
        self.greenlets.spawn(action)

    def count_error(self):
        self.errors += 1

    def count_other_format(self):
        self.other_formats += 1

    def finished(self, recording, path, segment, reason):
        self.files.append((path, reason))
        self.sizes.append(segment.written.size_bytes)


class Scene:
    def __init__(self, directory, **options):
        self.directory = directory
        self.owner = Owner(directory, **options)
        self.stream = new_stream(options=self.owner.config.defaults)
        self.source = new_source()
        self.stream.begin(self.source)
        self.time = 0
        self.recording = Recording(self.owner, self.stream, "7")
        self.recording.greenlet.start()

    def frames(self, count, size=0):
        """Publish *count* frames, a keyframe each 25."""
        for _ in range(count):
            payload = INTER if self.time // 40 % 25 else KEY
            self.source.video(self.time, payload + b"x" * size)
            self.time += 40

    @property
    def flv_log(self):
        """The log that recordings read; None while there is none."""
        return next((output.log for output in self.stream.outputs if output.log.framing is FLV), None)

    def end(self, reason="publish_stop"):
        self.recording.end(reason)
        self.recording.greenlet.join(LIMIT_S)
        assert self.recording.greenlet.successful()
        self.owner.greenlets.join(LIMIT_S)
        return [path for path, _ in self.owner.files]


@pytest.fixture
def scene(tmp_path):
    made = []

    def make(directory=tmp_path, **options):
        made.append(Scene(directory, **options))
        return made[-1]

    yield make
    for each in made:
        each.recording.greenlet.kill()
        each.owner.greenlets.kill()
        close_stream(each.stream)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def wait_for(condition):
    with gevent.Timeout(LIMIT_S):
        while not condition():
            gevent.sleep(0.005)


@pytest.fixture
def gate(monkeypatch):
    """A disk whose writes wait while the gate is closed."""
    opened = threading.Event()
    entered = threading.Event()
    opened.set()
    write = RecordingFile.write

    def wait_and_write(self, *args):
        entered.set()
        assert opened.wait(LIMIT_S)
        write(self, *args)

    monkeypatch.setattr(RecordingFile, "write", wait_and_write)
    opened.entered = entered
    yield opened
    opened.set()


def test_a_publish_is_recorded_to_its_last_frame(scene, tmp_path):
    made = scene()
    made.frames(60)
    assert made.end() == [tmp_path / "test-1.flv"]
    with (tmp_path / "test-1.flv").open("rb") as file:
        result = scan(file)
    assert result.clean
    assert (result.frames, result.metadata["duration"]) == (60, 2.4)
    assert made.owner.files[0][1] == "publish_stop"
    assert names(tmp_path) == ["test-1.flv"]
    assert made.flv_log is None


def test_a_batch_is_written_when_it_is_large_enough(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_S", 1000.0)
    made = scene()
    gevent.sleep(0)
    made.frames(10, 10_000)
    gevent.sleep(0.05)
    assert names(tmp_path) == []
    made.frames(20, 10_000)
    wait_for(lambda: names(tmp_path) == ["test-1.flv.part"])
    made.end()


def test_a_batch_is_written_when_it_is_old_enough(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_S", 0.02)
    made = scene()
    made.frames(1)
    wait_for(lambda: names(tmp_path) == ["test-1.flv.part"])
    assert made.end()


def test_pages_are_released_once_they_are_written(scene):
    made = scene()
    before = live_pages()
    for _ in range(40):
        made.frames(25, 20_000)
        wait_for(lambda: made.recording.wake_at - made.flv_log.position <= module.BATCH_BYTES)
        gevent.sleep(0.01)
    assert live_pages() - before < 12
    made.end()


def test_segments_are_files_of_their_own(scene, tmp_path):
    made = scene(segment_duration_s=1)
    made.frames(75)
    paths = made.end()
    assert [path.name for path in sorted(paths)] == ["test-1.flv", "test-2.flv", "test-3.flv"]
    reasons = {path.name: reason for path, reason in made.owner.files}
    assert reasons["test-1.flv"] == "segment"
    for path in paths:
        with path.open("rb") as file:
            assert scan(file).metadata["duration"] == 1.0


def test_a_disk_that_does_not_answer_costs_no_memory_and_does_not_delay_the_publisher(scene, gate, caplog):
    made = scene(disk_backlog_limit_bytes=1_000_000, record_retry_s=1000)
    gate.clear()
    made.frames(30, 10_000)
    wait_for(gate.entered.is_set)
    before = live_pages()
    made.frames(2000, 10_000)
    assert made.flv_log is None
    wait_for(lambda: made.owner.errors == 1)
    assert live_pages() <= before
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "the disk is too slow: 1000000 bytes wait for it (disk_backlog_limit_bytes)" in line.getMessage()
    assert "; retrying every 1000 s (record_retry_s)" in line.getMessage()
    assert "live/test: can't record" in line.getMessage()
    # When the disk answers again, the file is completed with what was written.
    gate.set()
    wait_for(lambda: made.owner.files)
    ((path, reason),) = made.owner.files
    assert reason.startswith("error: ")
    with path.open("rb") as file:
        assert scan(file).clean
    made.end()


def test_a_disk_operation_that_exceeds_its_timeout_closes_the_recording(scene, gate, caplog):
    made = scene(disk_timeout_s=0.1, record_retry_s=1000)
    gate.clear()
    made.frames(30, 10_000)
    wait_for(lambda: made.owner.errors == 1)
    assert "the disk did not answer within 0.1 s (disk_timeout_s)" in caplog.text
    assert made.flv_log is None
    gate.set()
    assert len(made.end()) == 1


def test_recording_continues_in_another_file_when_the_disk_answers_again(scene, gate, caplog):
    caplog.set_level(logging.INFO, "rtmpd")
    made = scene(disk_timeout_s=0.1, record_retry_s=0.1)
    made.frames(30, 10_000)
    wait_for(gate.entered.is_set)
    gate.clear()
    made.frames(30, 10_000)
    wait_for(lambda: made.owner.errors)
    gate.set()
    wait_for(lambda: made.flv_log is not None)
    made.frames(60, 10_000)
    wait_for(lambda: "recording again, to" in caplog.text)
    paths = made.end()
    assert len(paths) == 2
    results = []
    for path in paths:
        with path.open("rb") as file:
            results.append(scan(file))
    assert all(result.clean for result in results)


def test_waiting_for_a_free_thread_counts_for_the_timeout_of_the_disk(scene, caplog):
    made = scene(disk_timeout_s=0.1, record_retry_s=1000)
    stuck = threading.Event()
    for _ in range(2):
        made.owner.threads.spawn(stuck.wait)
    made.frames(30, 10_000)
    wait_for(lambda: made.owner.errors == 1)
    assert "the disk did not answer within 0.1 s (disk_timeout_s)" in caplog.text
    stuck.set()
    made.end()


def test_an_error_of_the_disk_closes_the_file_and_is_logged_once(scene, monkeypatch, caplog):
    write = RecordingFile.write
    full = []

    def write_until_full(self, data, *args):
        if full:
            os.write(self._descriptor, data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data, *args)

    monkeypatch.setattr(RecordingFile, "write", write_until_full)
    made = scene(record_retry_s=0.1)
    made.frames(50, 10_000)
    wait_for(lambda: made.recording.file is not None and made.recording.file.size)
    full.append(True)
    made.frames(50, 10_000)
    wait_for(lambda: made.owner.errors)
    for _ in range(3):
        errors = made.owner.errors
        wait_for(lambda: made.flv_log is not None)
        made.frames(50, 10_000)
        wait_for(lambda seen=errors: made.owner.errors > seen)
    # The error is logged once, whatever the number of attempts.
    assert caplog.text.count("No space left on device") == 1
    full.clear()
    wait_for(lambda: made.flv_log is not None)
    made.frames(60, 10_000)
    paths = made.end()
    assert len(paths) == 2
    for path in paths:
        with path.open("rb") as file:
            assert scan(file).clean
    assert not list(made.directory.glob("*.part"))


def test_a_directory_that_can_not_be_created_is_logged_once_and_retried(scene, tmp_path, caplog):
    directory = tmp_path / "missing" / "too"
    made = scene(directory, record_retry_s=0.1)
    made.frames(30, 10_000)
    wait_for(lambda: made.owner.errors >= 1)
    assert f"live/test: can't record: No such file or directory: {tmp_path / 'missing'}" in caplog.text
    (tmp_path / "missing").mkdir()
    for _ in range(100):
        made.frames(25, 10_000)
        gevent.sleep(0.02)
        if made.recording.file is not None:
            break
    assert len(made.end()) == 1
    assert caplog.text.count("can't record") == 1


def test_a_file_that_is_deleted_by_another_program_is_replaced(scene, tmp_path, caplog):
    made = scene(record_retry_s=0.1)
    made.frames(50, 10_000)
    wait_for(lambda: names(tmp_path))
    wait_for(lambda: made.recording.file is not None and made.recording.file.size)
    (tmp_path / "test-1.flv.part").unlink()
    made.frames(50, 10_000)
    wait_for(lambda: made.owner.errors)
    assert "the file was deleted by another program" in caplog.text
    wait_for(lambda: made.flv_log is not None)
    made.frames(50, 10_000)
    made.end()
    assert len(names(tmp_path)) == 1


def test_no_file_is_created_on_a_disk_without_free_space(scene, tmp_path, caplog):
    made = scene(disk_reserve_bytes=1 << 49, record_retry_s=1000)
    made.frames(30, 10_000)
    wait_for(lambda: made.owner.errors)
    assert "are required (disk_reserve_bytes)" in caplog.text
    assert names(tmp_path) == []
    made.end()


def test_a_publish_that_ends_when_the_disk_has_just_become_too_slow_is_not_retried(scene, gate, caplog):
    made = scene(disk_backlog_limit_bytes=1_000_000, record_retry_s=1000)
    gate.clear()
    made.frames(30, 10_000)
    wait_for(gate.entered.is_set)
    # The log releases the recording, and the publish ends before its greenlet has run.
    made.frames(200, 10_000)
    made.recording.end("publish_stop")
    made.recording.greenlet.join(LIMIT_S)
    assert made.recording.greenlet.successful()
    assert made.owner.errors == 1
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line.endswith("the disk is too slow: 1000000 bytes wait for it (disk_backlog_limit_bytes)")
    gate.set()
    assert len(made.end()) == 1


def test_a_file_that_is_created_after_the_timeout_is_deleted(scene, tmp_path, monkeypatch, caplog):
    opened = threading.Event()
    create = RecordingFile.create

    def wait_and_create(*args):
        assert opened.wait(LIMIT_S)
        return create(*args)

    monkeypatch.setattr(RecordingFile, "create", wait_and_create)
    made = scene(disk_timeout_s=0.1, record_retry_s=1000)
    made.frames(30, 10_000)
    wait_for(lambda: made.owner.errors == 1)
    opened.set()
    assert made.end() == []
    assert names(tmp_path) == []


def test_a_publish_without_media_leaves_no_file(scene, tmp_path):
    assert scene().end() == []
    assert names(tmp_path) == []


def test_a_recording_that_ends_while_it_waits_for_the_disk_is_complete(scene, gate):
    made = scene()
    gate.clear()
    made.frames(40, 10_000)
    wait_for(gate.entered.is_set)
    made.frames(40, 10_000)
    made.recording.end("publish_stop")
    # These belong to the next publish.
    made.frames(40, 10_000)
    gate.set()
    (path,) = made.end()
    with path.open("rb") as file:
        result = scan(file)
    assert (result.clean, result.frames) == (True, 80)


def test_a_pause_and_its_end_while_the_disk_writes_lose_nothing_else(scene, gate):
    made = scene()
    gate.clear()
    made.frames(40, 10_000)
    wait_for(gate.entered.is_set)
    made.frames(40, 10_000)
    made.recording.source_changed(made.stream.headers, pause=True)
    made.frames(25, 10_000)
    made.recording.source_changed(made.stream.headers, pause=False)
    made.frames(45, 10_000)
    gate.set()
    (path,) = made.end()
    with path.open("rb") as file:
        result = scan(file)
    assert (result.clean, result.frames, result.duration_ms) == (True, 125, 150 * 40)


def test_what_waits_for_the_disk_is_bounded_however_often_the_source_changes(scene, gate):
    made = scene(disk_backlog_limit_bytes=1_000_000, record_retry_s=1000)
    gate.clear()
    made.frames(30, 10_000)
    wait_for(gate.entered.is_set)
    before = live_pages()
    for pause in (False, False, True, False, True, False):
        made.frames(50, 10_000)
        made.recording.source_changed(made.stream.headers, pause=pause)
    assert made.flv_log is None
    wait_for(lambda: made.owner.errors == 1)
    assert live_pages() <= before
    gate.set()
    made.end()


def test_a_disk_that_fails_before_a_pause_is_tried_again_after_it(scene, gate, caplog):
    caplog.set_level(logging.INFO, "rtmpd")
    made = scene(disk_timeout_s=0.1, record_retry_s=0.1)
    gate.clear()
    made.frames(30, 10_000)
    wait_for(gate.entered.is_set)
    made.recording.source_changed(made.stream.headers, pause=True)
    wait_for(lambda: made.owner.errors)
    gate.set()
    gevent.sleep(0.2)
    assert made.flv_log is None
    made.recording.source_changed(made.stream.headers, pause=False)
    made.frames(60, 10_000)
    wait_for(lambda: "recording again, to" in caplog.text)
    assert len(made.end()) == 2


def test_the_event_loop_runs_while_the_disk_writes(scene, gate):
    made = scene()
    gate.clear()
    made.frames(30, 10_000)
    wait_for(gate.entered.is_set)
    begun = time.monotonic()
    gevent.sleep(0.01)
    assert time.monotonic() - begun < 5
    gate.set()
    made.end()


def test_a_bug_releases_the_memory(scene, monkeypatch, capfd):
    made = scene()

    def fail(piece):
        raise RuntimeError("a bug")

    monkeypatch.setattr(made.recording, "_write", fail)
    made.frames(60, 10_000)
    made.recording.greenlet.join(LIMIT_S)
    assert isinstance(made.recording.greenlet.exception, RuntimeError)
    assert made.flv_log is None
    made.frames(60, 10_000)


# MP4 ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mp4(scene):
    """Return a function that begins to record a stream as MP4."""

    def make(**options):
        return scene(record_format="mp4", **options)

    return make


def test_a_publish_is_recorded_as_mp4(mp4, tmp_path):
    made = mp4()
    made.source.video(0, AVC)
    made.frames(60)
    made.end()
    assert names(tmp_path) == ["test-1.mp4"]
    data = check(io.BytesIO((tmp_path / "test-1.mp4").read_bytes()))
    assert len(video(data)) == 60
    created_s = int.from_bytes(box(data, b"moov", b"mvhd")[4:8], "big") - 2_082_844_800
    assert abs(time.time() - 2.4 - created_s) < LIMIT_S
    # The size in the event is that of the file, with its indexes.
    assert made.owner.sizes == [len(data)]


def test_mp4_that_cannot_be_carried_is_flv_with_one_warning(mp4, tmp_path, caplog):
    made = mp4(segment_duration_s=2)
    for number in range(150):
        made.source.video(number * 40, (b"\x22" if number % 25 else b"\x12") + b"\0\0\x84\0\x80")
    made.end()
    assert names(tmp_path) == ["test-1.flv", "test-2.flv", "test-3.flv"]
    assert made.owner.other_formats == 3
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.getMessage().endswith("recording as FLV instead of MP4: MP4 can't carry video codec h263 (record_format)")


def test_mp4_on_a_full_disk_is_a_whole_file(mp4, tmp_path, monkeypatch):
    write = RecordingFile.write
    full = []

    def write_until_full(self, data, *args):
        if full:
            os.write(self._descriptor, data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data, *args)

    monkeypatch.setattr(RecordingFile, "write", write_until_full)
    made = mp4(record_retry_s=0.1)
    made.source.video(0, AVC)
    made.frames(80, 10_000)
    wait_for(lambda: made.recording.file is not None and made.recording.file.size)
    full.append(True)
    made.frames(80, 10_000)
    wait_for(lambda: made.owner.errors)
    full.clear()
    wait_for(lambda: made.flv_log is not None)
    made.frames(80, 10_000)
    made.end()
    assert names(tmp_path) == ["test-1.mp4", "test-2.mp4"]
    first, second = (check(io.BytesIO((tmp_path / name).read_bytes())) for name in names(tmp_path))
    assert [time for time, _ in video(first)] == [number * 40 for number in range(len(video(first)))]
    assert len(video(first)) in (50, 75)
    assert video(second)[0][0] == 0


@pytest.mark.parametrize("in_place", [False, True])
def test_the_indexes_of_mp4_may_not_fit_on_a_full_disk(mp4, tmp_path, monkeypatch, in_place):
    pwrite = os.pwrite

    def write_in_part(descriptor: int, data: bytes, at: int) -> int:
        is_full = at and (in_place or at >= os.fstat(descriptor).st_size)
        return pwrite(descriptor, data[:30] if is_full else data, at)

    monkeypatch.setattr(os, "pwrite", write_in_part)
    made = mp4()
    made.source.video(0, AVC)
    made.frames(60)
    made.end()
    data = (tmp_path / "test-1.mp4").read_bytes()
    index = [] if in_place else [b"sidx"]
    assert all_kinds(data) == [b"ftyp", b"uuid", b"moov", b"free", *index, *[b"moof", b"mdat"] * 2]
    assert made.owner.sizes == [len(data)]


def test_a_pause_writes_what_waits_for_the_next_fragment(mp4, tmp_path):
    made = mp4()
    made.source.video(0, AVC)
    made.frames(60)
    made.recording.source_changed(made.stream.headers, pause=True)
    part = tmp_path / "test-1.mp4.part"
    wait_for(lambda: part.exists() and len(video(part.read_bytes())) == 60)
    made.end()
    assert len(video(check(io.BytesIO((tmp_path / "test-1.mp4").read_bytes())))) == 60
