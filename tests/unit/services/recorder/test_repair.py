"""Parts left by a crash are repaired, files of other programs are not touched, and no useful data is deleted."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import subprocess
from pathlib import Path

import pytest

from rtmpd.config.file_names import FileNameTemplate
from rtmpd.media import flv, flv_repair
from rtmpd.services.recorder import repair
from rtmpd.services.recorder.repair import Repaired, RepairOutcome, find_parts, repair_part
from rtmpd.services.recorder.throttle import Throttle
from tests.unit.services.recorder.recordings import FRAME, recording, write

TEMPLATE = FileNameTemplate.parse("{app}/{name}")
METADATA_END = 13 + flv.tag_size(flv_repair.scan(io.BytesIO(recording())).metadata_bytes)


def throttle() -> Throttle:
    return Throttle(lambda _: None)


def find(directory: Path) -> tuple[list[Path], list[OSError]]:
    return find_parts(directory, TEMPLATE, throttle())


def repair_one(part: Path) -> RepairOutcome:
    return repair_part(part, throttle())


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


@pytest.fixture
def part(tmp_path):
    """Write a part, written last a day ago."""

    def call(data: bytes, name: str = "cam") -> Path:
        return write(tmp_path / f"live/{name}.flv.part", data, 1_000_000_000.5)

    return call


# Outcomes -------------------------------------------------------------------------------------------------------


def test_a_part_that_was_cut_becomes_a_recording(part, tmp_path, ffmpeg):
    data = recording(50)
    path = part(data[:-30])
    outcome = repair_one(path)
    assert outcome == RepairOutcome(tmp_path / "live/cam.flv", Repaired.REPAIRED, 2.0, len(data) - 67, cut_bytes=37)
    assert files(tmp_path) == ["live/cam.flv"]
    with outcome.path.open("rb") as file:
        result = flv_repair.scan(file)
    assert result.clean
    assert result.metadata["duration"] == 2.0
    assert result.metadata["filesize"] == len(data) - 67
    # Its age counts from its end.
    assert outcome.path.stat().st_mtime == 1_000_000_000.5
    shown = subprocess.run([ffmpeg, "-hide_banner", "-i", outcome.path], capture_output=True, text=True, check=False)
    assert "Duration: 00:00:02.00" in shown.stderr


def test_a_part_that_is_whole_is_renamed_and_keeps_its_frames(part):
    data = recording(50)
    outcome = repair_one(part(data))
    assert (outcome.action, outcome.duration_s, outcome.cut_bytes) == (Repaired.REPAIRED, 2.0, 0)
    assert outcome.path.read_bytes()[METADATA_END:] == data[METADATA_END:]


def test_zeros_behind_a_part_are_cut_off(part):
    data = recording(20)
    outcome = repair_one(part(data + bytes(100_000)))
    assert (outcome.size_bytes, outcome.cut_bytes) == (len(data), 100_000)
    assert outcome.path.stat().st_size == len(data)


def test_a_part_that_is_cut_anywhere_is_repaired_or_removed(part, tmp_path):
    data = recording(2, index_entries=2)
    first_frame = len(data) - 2 * flv.tag_size(52) - flv.tag_size(505) - flv.tag_size(105) + flv.tag_size(505)
    for size in range(len(data)):
        outcome = repair_one(part(data[:size]))
        assert outcome.action is (Repaired.REPAIRED if size >= first_frame else Repaired.REMOVED)
        assert files(tmp_path) == (["live/cam.flv"] if size >= first_frame else [])
        if size >= first_frame:
            with outcome.path.open("rb") as file:
                assert flv_repair.scan(file).clean
            outcome.path.unlink()


def test_a_recording_is_never_overwritten(part, tmp_path):
    write(tmp_path / "live/cam.flv", b"old")
    assert repair_one(part(recording())).path.name == "cam-2.flv"
    assert (tmp_path / "live/cam.flv").read_bytes() == b"old"


@pytest.mark.parametrize("data", [b"GIF89a" + bytes(1000), bytes(1000), b"FL", b"FLX", b"FLV\1\5\0\0\0\x0a", b"x"])
def test_what_does_not_begin_as_flv_is_set_aside(data, part, tmp_path):
    write(tmp_path / "live/cam.flv.broken", b"old")
    outcome = repair_one(part(data))
    if b"FLV\1\5\0\0\0\x09".startswith(data):
        assert outcome.action is Repaired.REMOVED
    else:
        assert (outcome.action, outcome.path.name) == (Repaired.BROKEN, "cam-2.flv.broken")
        assert outcome.path.read_bytes() == data
        assert outcome.reason == "it does not begin as FLV"
    assert (tmp_path / "live/cam.flv.broken").read_bytes() == b"old"


@pytest.mark.parametrize(
    "data", [b"", flv.file_header(True, True), recording(0), recording(0) + flv.tag(9, 0, b"\x17\0\0\0\0")]
)
def test_a_part_without_frames_is_removed(data, part, tmp_path):
    assert repair_one(part(data)) == RepairOutcome(tmp_path / "live/cam.flv.part", Repaired.REMOVED, cut_bytes=len(data))
    assert files(tmp_path) == []


def test_a_large_part_without_readable_frames_is_kept(part):
    data = recording(0) + b"\xff" * (2 << 20)
    outcome = repair_one(part(data))
    assert (outcome.action, outcome.reason) == (Repaired.BROKEN, "it has no frames")
    assert outcome.path.read_bytes() == data


def test_what_is_behind_damaged_metadata_is_kept(part):
    data = bytearray(recording(5))
    data[13:METADATA_END] = bytes(METADATA_END - 13)
    outcome = repair_one(part(bytes(data)))
    assert (outcome.action, outcome.gaps, outcome.size_bytes) == (Repaired.REPAIRED, 1, len(data))


def test_zeros_at_a_tenth_of_a_part_cost_only_what_they_cover(part, tmp_path):
    data = bytearray(recording(2000))
    place = len(data) // 10
    data[place : place + 4096] = bytes(4096)
    outcome = repair_one(part(bytes(data)))
    assert (outcome.action, outcome.duration_s, outcome.size_bytes, outcome.cut_bytes) == (
        Repaired.REPAIRED,
        80.0,
        len(data),
        0,
    )
    assert (outcome.gaps, outcome.original) == (1, None)
    assert 4096 < outcome.gap_bytes < 6000
    assert 0 < outcome.gap_s < 2
    assert files(tmp_path) == ["live/cam.flv"]
    with outcome.path.open("rb") as file:
        assert flv_repair.scan(file).clean


def test_the_original_of_a_part_that_lost_more_than_a_trifle_is_kept(part, tmp_path):
    data = bytearray(recording(10_000))
    place = len(data) // 10
    data[place : place + (300 << 10)] = bytes(300 << 10)
    outcome = repair_one(part(bytes(data)))
    assert (outcome.action, outcome.duration_s, outcome.original) == (
        Repaired.REPAIRED,
        400.0,
        tmp_path / "live/cam.flv.broken",
    )
    assert outcome.original.read_bytes() == data
    assert outcome.original.stat().st_mtime == 1_000_000_000.5
    assert files(tmp_path) == ["live/cam.flv", "live/cam.flv.broken"]


def test_the_original_of_a_part_with_much_behind_its_last_tag_is_kept(part, tmp_path):
    data = recording(50) + b"\xff" * (2 << 20)
    outcome = repair_one(part(data))
    assert (outcome.action, outcome.cut_bytes) == (Repaired.REPAIRED, 2 << 20)
    assert outcome.original.read_bytes() == data
    outcome = repair_one(part(recording(50) + bytes(2 << 20), "zeros"))
    assert (outcome.action, outcome.original) == (Repaired.REPAIRED, None)


def test_a_damaged_part_waits_for_the_space_for_its_copy(part, tmp_path):
    data = recording(50) + b"\xff" * (2 << 20)
    path = part(data)
    outcome = repair_part(path, throttle(), 1 << 62)
    assert outcome.action is Repaired.FAILED
    assert "no space for a copy" in outcome.reason
    assert files(tmp_path) == ["live/cam.flv.part"]
    assert path.read_bytes() == data


def test_a_repair_that_is_cancelled_while_it_copies_leaves_no_copy(part, tmp_path):
    data = recording(50) + b"\xff" * (2 << 20)
    path = part(data)
    made = throttle()
    calls = []

    def pause() -> None:
        calls.append(0)
        if files(tmp_path) != ["live/cam.flv.part"]:
            raise repair.Cancelled

    made.pause = pause
    assert repair_part(path, made).action is Repaired.CANCELLED
    assert files(tmp_path) == ["live/cam.flv.part"]
    assert path.read_bytes() == data


def test_damaged_metadata_are_repaired(part):
    data = bytearray(recording(20))
    data[100:1000] = bytes(900)
    outcome = repair_one(part(bytes(data)))
    assert (outcome.action, outcome.duration_s) == (Repaired.REPAIRED, 0.8)


# What is not ours ---------------------------------------------------------------------------------------------------------


def test_a_part_that_is_being_written_is_left_alone(part, tmp_path):
    data = recording()[:-30]
    path = part(data)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert repair_one(path) == RepairOutcome(path, Repaired.SKIPPED, reason="it is being written")
    assert path.read_bytes() == data
    assert repair_one(path).action is Repaired.REPAIRED


def test_a_part_of_another_program_is_left_alone(part):
    data = (
        flv.file_header(False, True) + flv.tag(18, 0, b"\2\0\x0aonMetaData\x08\0\0\0\1\0\1x\1\1\0\0\x09") + flv.tag(9, 0, FRAME)
    )
    path = part(data)
    assert repair_one(path) == RepairOutcome(
        path, Repaired.SKIPPED, size_bytes=len(data), reason="it is not a recording of rtmpd"
    )
    assert path.read_bytes() == data


def test_an_entry_that_is_not_a_file_is_not_touched(tmp_path):
    outside = write(tmp_path / "outside.flv", recording()[:-30])
    directory = tmp_path / "recordings/live"
    directory.mkdir(parents=True)
    (directory / "a.flv.part").mkdir()
    (directory / "b.flv.part").symlink_to(outside)
    os.mkfifo(directory / "c.flv.part")
    found, problems = find(directory.parent)
    assert ([path.name for path in found], problems) == (["a.flv.part", "c.flv.part"], [])
    for name in "abc":
        outcome = repair_one(directory / f"{name}.flv.part")
        assert (outcome.action, outcome.reason) == (Repaired.SKIPPED, "it is not a file")
    assert outside.read_bytes() == recording()[:-30]
    assert len(list(directory.iterdir())) == 3


def test_a_part_that_is_gone_or_replaced_is_left_alone(part, tmp_path, monkeypatch):
    assert repair_one(tmp_path / "live/gone.flv.part").reason == "it is gone"
    path = part(recording()[:-30])
    flock = fcntl.flock

    def replace(descriptor: int, operation: int) -> None:
        path.rename(tmp_path / "elsewhere")
        flock(descriptor, operation)

    monkeypatch.setattr(repair.fcntl, "flock", replace)
    assert repair_one(path).reason == "it is gone"
    assert (tmp_path / "elsewhere").read_bytes() == recording()[:-30]


def test_only_parts_whose_names_match_are_found(tmp_path):
    for name in ("a", "live/b", "live/x/c", "live/.d", ".live/e"):
        write(tmp_path / f"{name}.flv.part", b"")
    write(tmp_path / "live/b.flv", b"")
    write(tmp_path / "live/b-2.flv.part", b"")
    found, problems = find(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["live/b-2.flv.part", "live/b.flv.part"]
    assert problems == []


def test_no_directory_has_no_parts(tmp_path):
    assert find(tmp_path / "missing") == ([], [])


def test_a_directory_that_cannot_be_read_is_a_problem(tmp_path):
    (tmp_path / "file").touch()
    found, problems = find(tmp_path / "file")
    assert (found, [type(problem) for problem in problems]) == ([], [NotADirectoryError])


# What goes wrong ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_an_error_of_the_disk_leaves_the_part_for_the_next_time(code, part, monkeypatch):
    path = part(recording()[:-30])
    with monkeypatch.context() as patch:

        def fail(_: int) -> None:
            raise OSError(code, os.strerror(code))

        patch.setattr(repair.os, "fsync", fail)
        assert repair_one(path) == RepairOutcome(path, Repaired.FAILED, reason=os.strerror(code))
    assert repair_one(path).action is Repaired.REPAIRED


def test_a_part_that_cannot_be_locked_is_left_alone(part, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(repair.fcntl, "flock", refuse)
    path = part(recording()[:-30])
    assert repair_one(path) == RepairOutcome(path, Repaired.FAILED, reason="No locks available")
    assert path.read_bytes() == recording()[:-30]


def test_a_kill_between_two_names_is_finished(part, tmp_path, monkeypatch):
    path = part(recording())
    with monkeypatch.context() as patch:

        def die(_: Path) -> None:
            raise OSError(errno.EIO, "died")

        patch.setattr(Path, "unlink", die)
        assert repair_one(path).action is Repaired.FAILED
    assert files(tmp_path) == ["live/cam.flv", "live/cam.flv.part"]
    outcome = repair_one(path)
    assert (outcome.action, outcome.path) == (Repaired.REPAIRED, tmp_path / "live/cam.flv")
    assert files(tmp_path) == ["live/cam.flv"]


def test_a_repair_can_be_cancelled(part, tmp_path):
    path = part(recording()[:-30])
    cancelled = throttle()
    cancelled.cancel()
    assert repair_part(path, cancelled) == RepairOutcome(path, Repaired.CANCELLED)
    assert find_parts(tmp_path, TEMPLATE, cancelled) == ([], [])
    assert path.read_bytes() == recording()[:-30]


def test_a_repair_that_is_cancelled_while_it_reads_changes_nothing(part, tmp_path):
    data = recording(5000)[:-30]
    path = part(data)
    cancelled = Throttle(lambda _: steps.append(1) or (len(steps) == 3 and cancelled.cancel()))
    steps: list[int] = []
    assert repair_part(path, cancelled).action is Repaired.CANCELLED
    assert len(steps) == 3
    assert path.read_bytes() == data
    assert files(tmp_path) == ["live/cam.flv.part"]
