"""Parts left by a crash are repaired, files of other programs are not touched, and no useful data is deleted."""

from __future__ import annotations

import errno
import fcntl
import io
import itertools
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtmpd.config.file_names import FileNameTemplate
from rtmpd.media import flv, flv_repair
from rtmpd.media.fmp4 import repair as fmp4_repair
from rtmpd.media.fmp4.codecs import VIDEO_TRACK
from rtmpd.media.fmp4.files import MARK
from rtmpd.media.fmp4.fragments import SYNC, Run, Sample, fragment
from rtmpd.services.recorder import repair
from rtmpd.services.recorder.repair import Repaired, RepairOutcome, find_parts, repair_part
from rtmpd.services.recorder.throttle import Throttle
from tests.fmp4_files import all_kinds, samples
from tests.unit.services.recorder.recordings import FRAME, recording, write
from tests.unit.services.recorder.test_mp4_segment import Mp4Scene, check, fragments, video

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


# MP4 ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mp4() -> bytes:
    """What rtmpd has written of a recording of 8 s when it is killed: four fragments."""
    scene = Mp4Scene()
    scene.begin()
    scene.seconds(0, 9, 50)
    data = scene.files[1].getvalue()
    assert len(fragments(data)) == 4
    return data


@pytest.fixture
def mp4_part(tmp_path):
    def call(data: bytes, name: str = "cam") -> Path:
        return write(tmp_path / f"live/{name}.mp4.part", data, 1_000_000_000.5)

    return call


def test_a_part_of_mp4_becomes_a_recording_with_an_index(mp4_part, mp4, tmp_path):
    outcome = repair_one(mp4_part(mp4))
    size = outcome.path.stat().st_size
    assert outcome == RepairOutcome(tmp_path / "live/cam.mp4", Repaired.REPAIRED, 8.0, size, cut_bytes=0)
    assert size > len(mp4)
    data = check(io.BytesIO(outcome.path.read_bytes()))
    assert len(video(data)) == 200
    assert outcome.path.stat().st_mtime == 1_000_000_000.5
    assert files(tmp_path) == ["live/cam.mp4"]


def test_a_part_of_mp4_that_is_cut_anywhere_keeps_its_whole_fragments(mp4_part, mp4, tmp_path):
    starts = [*fragments(mp4), len(mp4)]
    for size in (*range(0, starts[0], 997), *range(starts[0], len(mp4), 331), *starts, *(each - 1 for each in starts)):
        # Blocks that were not written; but for the last bytes of a fragment, they are told from data.
        zeros = 0 if any(size < each <= size + 16 for each in starts) else size % 3 * 500
        outcome = repair_one(mp4_part(mp4[:size] + bytes(zeros)))
        whole = sum(each <= size for each in starts[1:])
        assert outcome.action is (Repaired.REPAIRED if whole else Repaired.REMOVED)
        if whole:
            assert len(video(check(io.BytesIO(outcome.path.read_bytes())))) == 50 * whole
            assert outcome.cut_bytes == size + zeros - starts[whole]
            outcome.path.unlink()
        assert files(tmp_path) == []


def test_damage_in_the_middle_of_mp4_costs_a_fragment(mp4_part, mp4):
    starts = fragments(mp4)
    damaged = bytearray(mp4)
    damaged[starts[1] : starts[1] + 100] = bytes(100)
    outcome = repair_one(mp4_part(bytes(damaged)))
    assert (outcome.gaps, outcome.gap_bytes) == (1, starts[2] - starts[1])
    assert outcome.gap_s == pytest.approx(2, abs=0.05)
    data = outcome.path.read_bytes()
    assert len([sample for sample in samples(data, numbered=False) if sample.track == VIDEO_TRACK]) == 150
    assert all_kinds(data)[5:11] == [b"moof", b"mdat", b"free", b"moof", b"mdat", b"moof"]


@pytest.mark.parametrize("place", ["the room", "the first fragment"])
def test_damage_before_or_at_the_first_fragment_costs_no_other(mp4_part, mp4, place):
    start = mp4.index(b"free") - 4 if place == "the room" else fragments(mp4)[0]
    outcome = repair_one(mp4_part(mp4[:start] + bytes(60) + mp4[start + 60 :]))
    assert outcome.action is Repaired.REPAIRED
    found = [sample for sample in samples(outcome.path.read_bytes(), numbered=False) if sample.track == VIDEO_TRACK]
    assert len(found) == (200 if place == "the room" else 150)


@pytest.mark.parametrize("size", [0, 7, 0xFFFFFFFF])
def test_a_damaged_size_of_the_room_costs_no_fragment(mp4_part, mp4, size):
    start = mp4.index(b"free") - 4
    outcome = repair_one(mp4_part(mp4[:start] + size.to_bytes(4, "big") + mp4[start + 4 :]))
    assert outcome.action is Repaired.REPAIRED
    found = [sample for sample in samples(outcome.path.read_bytes(), numbered=False) if sample.track == VIDEO_TRACK]
    assert len(found) == 200


def test_a_repair_of_mp4_that_was_interrupted_is_completed(mp4_part, mp4):
    whole = repair_one(mp4_part(mp4)).path.read_bytes()
    for size in range(len(mp4), len(whole), 20):
        outcome = repair_one(mp4_part(whole[:size], "again"))
        assert outcome.path.read_bytes() == whole
        outcome.path.unlink()


@pytest.mark.parametrize("value", [b"\xff" * 8, b"\x80" + bytes(7), b"\0\0\1" + bytes(5)])
def test_a_fragment_with_a_time_that_no_recording_has_is_damaged(mp4_part, mp4, value):
    damaged = bytearray(mp4)
    starts = fragments(mp4)
    place = mp4.index(b"tfdt", starts[1]) + 8
    damaged[place : place + 8] = value
    outcome = repair_one(mp4_part(bytes(damaged)))
    assert (outcome.action, outcome.duration_s) == (Repaired.REPAIRED, 8.0)
    assert (outcome.gaps, outcome.gap_bytes) == (1, starts[2] - starts[1])


def test_composition_times_beyond_any_number_are_damage(mp4_part, mp4):
    """A time that fits into 64 bits, but with its composition time does not."""
    start = fragments(mp4)[0]
    run = Run(VIDEO_TRACK, (1 << 64) - 1, [Sample(b"frame", 1, SYNC, 90)])
    outcome = repair_one(mp4_part(mp4[:start] + fragment(1, [run]) + mp4[start:]))
    assert (outcome.action, outcome.gaps, outcome.duration_s) == (Repaired.REPAIRED, 1, 8.0)


def test_a_last_fragment_that_reaches_to_the_end_of_the_file_does_not_take_in_the_index(mp4_part, mp4):
    place = mp4.index(b"mdat", fragments(mp4)[-1]) - 4
    outcome = repair_one(mp4_part(mp4[:place] + bytes(4) + mp4[place + 4 :]))
    assert outcome.action is Repaired.REPAIRED
    assert len(video(check(io.BytesIO(outcome.path.read_bytes())))) == 150


def test_mp4_of_other_programs_and_what_is_none_is_not_touched(mp4_part, mp4, tmp_path):
    foreign = mp4.replace(MARK[8:], bytes(len(MARK) - 8))
    assert repair_one(mp4_part(foreign)).reason == "it is not a recording of rtmpd"
    assert (tmp_path / "live/cam.mp4.part").read_bytes() == foreign
    outcome = repair_one(mp4_part(recording()))
    assert (outcome.action, outcome.path.name) == (Repaired.BROKEN, "cam.mp4.broken")
    assert outcome.reason == "it does not begin as MP4"
    # A damaged head may be worth an attempt by hand.
    assert repair_one(mp4_part(mp4.replace(b"moov", b"mooX"), "head")).path.name == "head.mp4.broken"
    # A fragment whose data would be longer than the file.
    start = fragments(mp4)[0]
    assert repair_one(mp4_part(mp4[:start] + mp4[start:].replace(b"mdat", b"mdaX"))).action is Repaired.REMOVED


def test_parts_of_both_formats_are_found(tmp_path):
    names = ["live/a.flv.part", "live/a.mp4.part", "live/b.mp4.part"]
    for name in (*names, "live/a.flv", "live/a.mp4", "live/a.part", "a.mp4.part"):
        write(tmp_path / name, b"")
    assert [str(path.relative_to(tmp_path)) for path in find(tmp_path)[0]] == names


@given(st.data())
def test_hostile_mp4_is_scanned_without_an_error(data):
    scene = Mp4Scene()
    scene.begin()
    scene.seconds(0, 3)
    content = bytearray(scene.files[1].getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.sampled_from((*range(1500), *range(fragments(scene.files[1].getvalue())[0], len(content)))))
        content[position : position + 4] = data.draw(st.binary(min_size=1, max_size=4))
    file = io.BytesIO(bytes(content))
    result = fmp4_repair.scan(file)
    plan = fmp4_repair.repair_plan(result)
    if plan is not None:
        flv_repair.apply_plan(file, plan)
        again = fmp4_repair.scan(file)
        assert (again.frames, again.rest_bytes) == (result.frames, 0)


def test_a_head_that_is_replaced_in_part_costs_nothing(mp4):
    """The pages of a file are written one after another: a kill, or a full disk, may come between any two of them."""
    result = fmp4_repair.scan(io.BytesIO(mp4))
    plan = fmp4_repair.repair_plan(result)
    content = bytearray(mp4)
    for position, data in plan.patches[:-1]:
        pages = [0, *range(4096 - position % 4096, len(data), 4096), len(data)]
        for start, end in itertools.pairwise(pages):
            content[position + start : position + end] = data[start:end]
            assert set(all_kinds(bytes(content))) <= {b"ftyp", b"uuid", b"moov", b"free", b"sidx", b"moof", b"mdat"}
            file = io.BytesIO(bytes(content))
            again = fmp4_repair.scan(file)
            assert (again.frames, again.gaps, again.rest_bytes) == (result.frames, (), 0)
            flv_repair.apply_plan(file, fmp4_repair.repair_plan(again))
            check(file)
    assert b"sidx" in all_kinds(bytes(content))


def test_a_repair_that_failed_keeps_one_copy_of_a_damaged_part(mp4_part, mp4, tmp_path, monkeypatch):
    starts = fragments(mp4)
    damaged = mp4[: starts[1]] + bytes(300 << 10) + mp4[starts[2] :]
    path = mp4_part(damaged)

    def fail(_: Path) -> Path:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(repair, "publish_part", fail)
        for _ in range(3):
            assert repair_one(path).action is Repaired.FAILED
    assert repair_one(path).action is Repaired.REPAIRED
    assert files(tmp_path) == ["live/cam.mp4", "live/cam.mp4.broken"]
    assert (tmp_path / "live/cam.mp4.broken").read_bytes() == damaged
