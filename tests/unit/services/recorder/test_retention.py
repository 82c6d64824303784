"""Old recordings are deleted, and nothing else is, whatever lies beside them and whatever the clock does."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtmpd.config.file_names import FileNameTemplate
from rtmpd.media import flv, flv_metadata
from rtmpd.media.fmp4.files import MARK
from rtmpd.media.fmp4.movie import FTYP
from rtmpd.services.recorder import retention
from rtmpd.services.recorder.retention import JUMP_S, STEADY_S, ClockWatch, Deleted, Found, Limits, Retention, choose
from rtmpd.services.recorder.throttle import Throttle
from tests.unit.services.recorder.recordings import recording, write

DEFAULT = FileNameTemplate.parse("{app}/{name}-{start:%Y%m%d-%H%M%S}")
DATA = recording(3)
NOW = 2_000_000_000.0
DAY = 86400.0
MONTH = Limits(keep_age_s=30 * DAY)
ALL = Limits(keep_age_s=1, keep_size_bytes=1, keep_free_bytes=1 << 60)


def run(
    directory: Path, limits: Limits, template: FileNameTemplate = DEFAULT, keeper: Retention | None = None, **clocks: float
):
    keeper = keeper or Retention(Throttle(lambda _: None))
    return keeper.round(directory, template, limits, clocks.get("now_s", NOW), clocks.get("monotonic_s", 1000.0))


def add(directory: Path, name: str = "live/cam", age_s: float = 60 * DAY, data: bytes = DATA) -> Path:
    return write(directory / f"{name}-20310203-040506.flv", data, NOW - age_s)


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


# Decisions ----------------------------------------------------------------------------------------------------------------


def found(*ages_s: float, size: int = 10) -> list[Found]:
    return [Found(f"{number}", size, NOW - age_s) for number, age_s in enumerate(ages_s)]


@pytest.mark.parametrize(
    ("limits", "free", "chosen"),
    [
        (Limits(), 0, []),
        (Limits(keep_age_s=25), 0, [("2", "keep_age_s")]),
        (Limits(keep_age_s=30), 0, []),
        (Limits(keep_age_s=1), 0, [("2", "keep_age_s"), ("0", "keep_age_s"), ("1", "keep_age_s")]),
        (Limits(keep_size_bytes=30), 0, []),
        (Limits(keep_size_bytes=29), 0, [("2", "keep_size_bytes")]),
        (Limits(keep_size_bytes=1), 0, [("2", "keep_size_bytes"), ("0", "keep_size_bytes"), ("1", "keep_size_bytes")]),
        (Limits(keep_free_bytes=100), 100, []),
        (Limits(keep_free_bytes=100), 99, [("2", "keep_free_bytes")]),
        (Limits(keep_free_bytes=100), 90, [("2", "keep_free_bytes")]),
        (Limits(keep_free_bytes=100), 85, [("2", "keep_free_bytes"), ("0", "keep_free_bytes")]),
        (Limits(25, 15, 100), 80, [("2", "keep_age_s"), ("0", "keep_size_bytes")]),
        (Limits(25, 25, 100), 75, [("2", "keep_age_s"), ("0", "keep_free_bytes"), ("1", "keep_free_bytes")]),
    ],
)
def test_the_oldest_go_first_until_all_limits_are_kept(limits, free, chosen):
    assert [(file.path, reason) for file, reason in choose(found(20, 10, 30), limits, NOW, free)] == chosen


def test_a_recording_from_the_future_is_as_old_as_one_of_now():
    files = found(-1000, 0, -5, 1)
    assert [file.path for file, _ in choose(files, Limits(keep_size_bytes=1), NOW, 0)] == ["3", "0", "1", "2"]
    assert choose(files, Limits(keep_age_s=2), NOW, 0) == []


FOUND = st.builds(Found, st.text("ab", min_size=1, max_size=3), st.integers(0, 1000), st.floats(0, 2e9))
LIMITS = st.builds(
    Limits, st.just(0.0) | st.floats(1, 3e9), st.just(0) | st.integers(1, 5000), st.just(0) | st.integers(1, 5000)
)


@given(st.lists(FOUND, max_size=20, unique_by=lambda file: file.path), LIMITS, st.floats(0, 2e9), st.integers(0, 5000))
def test_no_more_and_no_less_is_chosen_than_has_to_be(files, limits, now_s, free_bytes):
    chosen = choose(files, limits, now_s, free_bytes)
    gone = [file for file, _ in chosen]
    left = [file for file in files if file not in gone]
    assert len({file.path for file in gone}) == len(gone)
    # The oldest, in order.
    age = [min(file.mtime_s, now_s) for file in gone]
    assert age == sorted(age)
    assert all(min(file.mtime_s, now_s) >= age[-1] for file in left if age)

    def kept(files: list[Found], removed: list[Found]) -> bool:
        total = sum(file.size_bytes for file in files)
        free = free_bytes + sum(file.size_bytes for file in removed)
        return (
            (not limits.keep_age_s or all(now_s - file.mtime_s <= limits.keep_age_s for file in files))
            and (not limits.keep_size_bytes or total <= limits.keep_size_bytes)
            and free >= limits.keep_free_bytes
        )

    assert kept(left, gone) or not left
    if gone:
        # With the youngest of them still there, a limit would not be kept.
        assert not kept([*left, gone[-1]], gone[:-1])
    assert choose(left, limits, now_s, free_bytes + sum(file.size_bytes for file in gone)) == []


# Clocks -------------------------------------------------------------------------------------------------------------------


def test_clocks_that_agree_are_trusted():
    clock = ClockWatch()
    assert all(clock.look(NOW + second, second) for second in range(0, 100_000, 60))
    # A few seconds are nothing, in either direction.
    assert clock.look(NOW + 100_000 - JUMP_S, 100_000)
    assert clock.look(NOW + 100_060 + JUMP_S, 100_060)


@pytest.mark.parametrize("jump_s", [JUMP_S + 1, -JUMP_S - 1, 1e9, -1e9])
def test_a_clock_that_jumps_is_not_trusted_until_it_is_steady(jump_s):
    clock = ClockWatch()
    assert clock.look(NOW, 0)
    for second in range(60, 60 + int(STEADY_S), 60):
        assert not clock.look(NOW + second + jump_s, second)
    assert clock.look(NOW + 60 + STEADY_S + jump_s, 60 + STEADY_S)
    # And from now on this is what it is compared with.
    assert not clock.look(NOW + 120 + STEADY_S, 120 + STEADY_S)


def test_a_clock_that_returns_is_trusted():
    clock = ClockWatch()
    assert clock.look(NOW, 0)
    assert not clock.look(NOW + 1e6, 60)
    assert clock.look(NOW + 120, 120)
    assert not clock.look(NOW + 1e6, 180)


def test_a_clock_that_jumps_again_has_to_be_steady_from_then_on():
    clock = ClockWatch()
    assert clock.look(NOW, 0)
    assert not clock.look(NOW + 60 + 1000, 60)
    assert not clock.look(NOW + 3000 + 5000, 3000)
    assert not clock.look(NOW + 3700 + 5000, 3700)
    assert clock.look(NOW + 6600 + 5000, 6600)


def test_a_clock_that_drifts_away_is_not_trusted():
    clock = ClockWatch()
    believed = [clock.look(NOW + second * 1.1, second) for second in range(0, 3300, 60)]
    assert believed == [second * 0.1 <= JUMP_S for second in range(0, 3300, 60)]


def test_with_a_clock_that_has_jumped_only_age_deletes_nothing(tmp_path):
    old, older = add(tmp_path, "live/a"), add(tmp_path, "live/b", 61 * DAY)
    keeper = Retention(Throttle(lambda _: None))
    limits = Limits(keep_age_s=90 * DAY, keep_size_bytes=1 << 30)
    assert run(tmp_path, limits, keeper=keeper).clock_trusted is None
    jump = run(tmp_path, limits, keeper=keeper, now_s=NOW + 365 * DAY, monotonic_s=1060)
    assert (jump.deleted, jump.files) == ([], 2)
    assert jump.clock_trusted is False
    again = run(tmp_path, Limits(90 * DAY, len(DATA)), keeper=keeper, now_s=NOW + 365 * DAY + 60, monotonic_s=1120)
    assert again.deleted == [Deleted(older, len(DATA), "keep_size_bytes")]
    assert again.clock_trusted is None
    steady = run(tmp_path, limits, keeper=keeper, now_s=NOW + 365 * DAY + 3600, monotonic_s=4660)
    assert steady.clock_trusted is True
    assert steady.deleted == [Deleted(old, len(DATA), "keep_age_s")]


def test_the_clock_does_not_matter_without_a_limit_of_age(tmp_path):
    keeper = Retention(Throttle(lambda _: None))
    run(tmp_path, Limits(), keeper=keeper)
    assert run(tmp_path, Limits(), keeper=keeper, now_s=NOW + 1e6).clock_trusted is None


# Files --------------------------------------------------------------------------------------------------------------------


def test_old_recordings_are_deleted_and_young_ones_kept(tmp_path):
    young = add(tmp_path, "live/young", 29 * DAY)
    old = add(tmp_path, "live/old", 31 * DAY, recording(100))
    oldest = add(tmp_path, "app/oldest", 99 * DAY)
    report = run(tmp_path, MONTH)
    assert report.deleted == [Deleted(oldest, len(DATA), "keep_age_s"), Deleted(old, len(recording(100)), "keep_age_s")]
    assert (report.files, report.total_bytes, report.errors) == (1, len(DATA), [])
    assert report.free_bytes > 0
    # The directory went with its last recording.
    assert files(tmp_path) == ["live", str(young.relative_to(tmp_path))]


def test_files_that_are_not_ours_are_never_deleted(tmp_path):
    directory, outside = tmp_path / "recordings", tmp_path / "outside"
    kept = [
        # By their names.
        add(directory, "deep/er/cam"),
        add(directory, "top"),
        add(directory, "live/.hidden"),
        add(directory, ".hidden/cam"),
        add(directory, "live/with space"),
        write(directory / "live/best-of.flv", DATA, 1.0),
        write(directory / "live/cam-20310203-040506-copy.flv", DATA, 1.0),
        write(directory / "live/cam-20310203-040506.flv.part", DATA, 1.0),
        write(directory / "live/cam-20310203-040506.flv.broken", DATA, 1.0),
        write(directory / "live/cam-20310203-040506.mp4", DATA, 1.0),
        write(directory / "live/cam-20310203-040506.FLV", DATA, 1.0),
        write(directory / "live/cam-20310203-040506", DATA, 1.0),
        # By what is in them.
        add(directory, "live/empty", data=b""),
        add(directory, "live/short", data=DATA[:100]),
        add(directory, "live/no-flv", data=b"X" + DATA[1:]),
        add(directory, "live/no-metadata", data=flv.file_header(True, True) + flv.tag(9, 0, b"\x17\1")),
        add(directory, "live/video-first", data=flv.file_header(True, True) + flv.tag(9, 0, b"\x17\1") + DATA[13:]),
        add(directory, "live/other", data=DATA.replace(b"\5rtmpd", b"\5other")),
        add(
            directory,
            "live/mentions",
            data=DATA.replace(b"metadatacreator", b"metadatacreat0r") + b"metadatacreator\2\0\5rtmpd",
        ),
    ]
    linked, second = add(directory, "live/linked"), outside / "second.flv"
    outside.mkdir()
    second.hardlink_to(linked)
    (directory / "live/link-20310203-040506.flv").symlink_to(second)
    (directory / "live/directory-20310203-040506.flv").mkdir()
    os.mkfifo(directory / "live/pipe-20310203-040506.flv")
    foreign = add(outside, "sub/cam")
    (directory / "sub").symlink_to(outside / "sub")
    kept.append(write(directory / "live/foreign-20310203-040506.mp4", FTYP + bytes(100), 1.0))
    before = files(tmp_path)
    ours = [
        write(directory / "live/ours-20310203-040506.mp4", FTYP + MARK + bytes(100), 1.0),
        add(directory, "live/ours"),
    ]
    report = run(directory, ALL)
    assert {deleted.path for deleted in report.deleted} == set(ours)
    assert report.errors == []
    assert files(tmp_path) == before
    assert all(path.exists() for path in (*kept, linked, second, foreign))


def test_a_copy_by_ffmpeg_is_not_ours(tmp_path, ffmpeg):
    def run_ffmpeg(*arguments: object) -> None:
        subprocess.run([ffmpeg, "-v", "error", *map(str, arguments)], check=True)

    clip, copy = tmp_path / "clip.flv", tmp_path / "live/copy-20310203-040506.flv"
    run_ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48", "-c:v", "flv", "-t", "1", clip)
    media = clip.read_bytes()
    media = media[13 + flv.tag_size(int.from_bytes(media[14:17], "big")) :]
    block = flv_metadata.MetadataBlock(index_entries=8)
    ours = add(tmp_path, "live/ours", data=flv.file_header(False, True) + block.render() + media)
    run_ffmpeg("-i", ours, "-c", "copy", copy)
    # The copy even names rtmpd as creator.
    assert b"metadatacreator\2\0\5rtmpd" in copy.read_bytes()
    os.utime(copy, (1, 1))
    assert [deleted.path for deleted in run(tmp_path, ALL).deleted] == [ours]


@pytest.mark.parametrize("metadata", [None, {"encoder": "e" * 512, **{f"n{i}": "x" * 500 for i in range(8)}}])
@pytest.mark.parametrize("entries", [0, 1, 4096])
def test_every_recording_of_ours_is_known(metadata, entries, tmp_path):
    add(tmp_path, data=recording(3, metadata, entries))
    assert len(run(tmp_path, ALL).deleted) == 1


def test_a_repaired_or_closed_recording_is_known(tmp_path):
    block = flv_metadata.MetadataBlock({"width": 7})
    rendered = block.render(duration_s=5.0, filesize_bytes=9, keyframes=[(0, 100), (1, 200)])
    add(tmp_path, data=flv.file_header(True, False) + rendered)
    assert len(run(tmp_path, ALL).deleted) == 1


def test_the_total_and_the_free_space_decide(tmp_path):
    paths = [add(tmp_path, f"live/{number}", (10 - number) * DAY) for number in range(5)]
    report = run(tmp_path, Limits(keep_size_bytes=3 * len(DATA)))
    assert [deleted.path for deleted in report.deleted] == paths[:2]
    assert (report.files, report.total_bytes) == (3, 3 * len(DATA))
    report = run(tmp_path, Limits(keep_free_bytes=report.free_bytes + (1 << 50)))
    assert [deleted.reason for deleted in report.deleted] == ["keep_free_bytes"] * 3


def test_only_directories_that_became_empty_are_removed(tmp_path):
    template = FileNameTemplate.parse("{start:%Y/%m}/{name}")
    for path in ("2031/01/a", "2031/02/b", "2032/01/c", "2032/02/d"):
        write(tmp_path / f"{path}.flv", DATA, 1.0)
    (tmp_path / "2031/03").mkdir()
    (tmp_path / "2033").mkdir()
    write(tmp_path / "2032/02/.notes", b"")
    assert len(run(tmp_path, ALL, template).deleted) == 4
    assert files(tmp_path) == ["2031", "2031/03", "2032", "2032/02", "2032/02/.notes", "2033"]
    template = FileNameTemplate.parse("{name}")
    write(tmp_path / "top/a.flv", DATA, 1.0)
    assert len(run(tmp_path / "top", ALL, template).deleted) == 1
    assert (tmp_path / "top").is_dir()


def test_each_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    opened: list[Path] = []
    real = retention._is_ours
    monkeypatch.setattr(retention, "_is_ours", lambda path, identity: opened.append(path) or real(path, identity))
    keeper = Retention(Throttle(lambda _: None))
    ours, other = add(tmp_path, "live/a"), add(tmp_path, "live/b", data=b"other")
    for _ in range(3):
        assert run(tmp_path, Limits(), keeper=keeper).files == 1
    assert sorted(opened) == [ours, other]
    other.write_bytes(DATA)
    assert run(tmp_path, Limits(), keeper=keeper).files == 2
    assert len(opened) == 3
    ours.unlink()
    run(tmp_path, Limits(), keeper=keeper)
    assert len(keeper._ours) == 1


def test_a_file_that_changes_after_it_was_chosen_is_kept(tmp_path, monkeypatch):
    path = add(tmp_path)

    def replace(*arguments: object) -> object:
        path.write_bytes(b"by an operator")
        return choose(*arguments)

    monkeypatch.setattr(retention, "choose", replace)
    report = run(tmp_path, ALL)
    assert (report.deleted, report.errors) == ([], [])
    assert path.read_bytes() == b"by an operator"


def test_no_directory_is_no_error_if_it_can_be_made(tmp_path):
    report = run(tmp_path / "recordings", ALL)
    assert (report.errors, report.files, report.free_bytes) == ([], 0, 0)
    report = run(tmp_path / "disk/recordings", ALL)
    assert report.errors == [f"{tmp_path}/disk/recordings: No such file or directory"]
    (tmp_path / "file").touch()
    assert run(tmp_path / "file", ALL).errors == [f"{tmp_path}/file: Not a directory"]


def test_an_error_for_one_file_is_reported_and_others_are_deleted(tmp_path, monkeypatch):
    paths = [add(tmp_path, f"live/{number}", (100 - number) * DAY) for number in range(20)]
    real = Path.unlink

    def unlink(path: Path) -> None:
        if path != paths[3]:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        real(path)

    monkeypatch.setattr(Path, "unlink", unlink)
    report = run(tmp_path, MONTH)
    assert [deleted.path for deleted in report.deleted] == [paths[3]]
    assert len(report.errors) == 11
    assert report.errors[0] == f"{paths[0]}: Permission denied"
    assert report.errors[-1] == "9 more errors"
    assert report.files == 19


def test_a_file_that_cannot_be_read_is_kept(tmp_path, monkeypatch):
    path = add(tmp_path)

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(retention.os, "open", refuse)
    report = run(tmp_path, ALL)
    assert report.errors == [f"{path}: Permission denied"]
    assert path.exists()


def test_a_round_can_be_cancelled(tmp_path):
    for number in range(200):
        add(tmp_path, f"live/{number}")
    slept: list[float] = []
    keeper = Retention(throttle := Throttle(lambda _: slept.append(1) or (len(slept) == 12 and throttle.cancel())))
    report = run(tmp_path, ALL, keeper=keeper)
    assert report.errors == []
    assert len(slept) == 12
    assert len(list((tmp_path / "live").iterdir())) >= 100
    assert run(tmp_path, ALL, keeper=keeper).deleted == []


def test_ten_thousand_recordings_are_looked_at_in_short_pieces(tmp_path):
    directory = tmp_path / "live"
    directory.mkdir()
    for number in range(10_000):
        (directory / f"{number}-20310203-040506.flv").write_bytes(DATA[:2000])
    slept: list[float] = []
    keeper = Retention(Throttle(slept.append))
    begun = time.process_time()
    report = run(tmp_path, Limits(keep_size_bytes=5000 * 2000), keeper=keeper)
    assert (report.files, len(report.deleted), report.errors) == (5000, 5000, [])
    assert time.process_time() - begun < 10
    assert len(slept) > 10_000 / 20
    # The processor time between two pauses, but for a few, such as sorting.
    pieces = sorted(rest_s / 4 for rest_s in slept)
    assert pieces[len(pieces) * 95 // 100] < 0.005
