"""Names of files: no file is ever overwritten, even if several writers take names at the same time."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from rtmpd.config.file_names import FileNameTemplate
from rtmpd.services.recorder import files as module
from rtmpd.services.recorder.files import BROKEN, find_files, is_same_file, open_part, publish_part

TEMPLATE = FileNameTemplate.parse("{app}/{name}")


@pytest.fixture
def opened():
    """Open parts that are closed in the end."""
    descriptors = []

    def call(directory: Path, relative: str) -> Path:
        descriptor, path = open_part(directory, relative)
        descriptors.append(descriptor)
        call.descriptor = descriptor
        return path

    yield call
    for descriptor in descriptors:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


# Opening ------------------------------------------------------------------------------------------------------------------


def test_a_part_is_made_with_its_directories_and_locked(tmp_path, opened):
    old = os.umask(0)
    try:
        part = opened(tmp_path / "recordings", "live/2031/cam")
    finally:
        os.umask(old)
    assert part == tmp_path / "recordings/live/2031/cam.flv.part"
    assert part.stat().st_mode & 0o7777 == 0o640
    assert part.parent.stat().st_mode & 0o7777 == 0o750
    assert is_locked(part)
    assert is_same_file(opened.descriptor, part)
    assert not os.get_inheritable(opened.descriptor)
    os.write(opened.descriptor, b"x")
    assert part.read_bytes() == b"x"


def test_only_the_directory_itself_is_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_part(tmp_path / "not mounted/recordings", "cam")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("relative", ["", "../x", "/x", "a//b", "a/./b", "a/../../b", "a/"])
def test_a_path_that_leads_elsewhere_is_refused(relative, tmp_path):
    with pytest.raises(OSError, match="not a path inside"):
        open_part(tmp_path, relative)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_gets_a_number(tmp_path, opened):
    (tmp_path / "cam.flv").write_bytes(b"recording")
    (tmp_path / "cam-2.flv.part").write_bytes(b"part")
    (tmp_path / "cam-3.flv").symlink_to("nowhere")
    (tmp_path / "cam-4.flv.part").symlink_to("elsewhere")
    assert opened(tmp_path, "cam").name == "cam-5.flv.part"
    assert opened(tmp_path, "cam").name == "cam-6.flv.part"
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "cam.flv").read_bytes() == b"recording"


def test_after_99_names_come_random_ones(tmp_path, opened):
    names = [opened(tmp_path, "cam").name for _ in range(101)]
    assert names[98] == "cam-99.flv.part"
    template = FileNameTemplate.parse("{name}")
    assert len(names[99]) == len("cam-1a2b3c4d.flv.part")
    assert all(template.matches(name.removesuffix(".flv.part")) for name in names)


def test_the_search_for_a_name_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(module.secrets, "token_hex", lambda _: "00000000")
    for name in ("cam", "cam-00000000", *(f"cam-{number}" for number in range(2, 100))):
        (tmp_path / f"{name}.flv").touch()
    with pytest.raises(FileExistsError):
        open_part(tmp_path, "cam")


def test_a_part_that_a_repair_was_faster_to_lock_is_left_to_it(tmp_path, monkeypatch, opened):
    flock = fcntl.flock
    repairs = []

    def steal(descriptor: int, operation: int) -> None:
        if not repairs:
            repairs.append((tmp_path / "cam.flv.part").open("rb"))
            flock(repairs[0], fcntl.LOCK_EX)
        flock(descriptor, operation)

    monkeypatch.setattr(module.fcntl, "flock", steal)
    assert opened(tmp_path, "cam").name == "cam-2.flv.part"
    repairs[0].close()


def test_a_part_that_a_repair_has_removed_is_not_used(tmp_path, monkeypatch, opened):
    flock = fcntl.flock
    calls = []

    def remove(descriptor: int, operation: int) -> None:
        if not calls:
            (tmp_path / "cam.flv.part").unlink()
        calls.append(operation)
        flock(descriptor, operation)

    monkeypatch.setattr(module.fcntl, "flock", remove)
    assert opened(tmp_path, "cam").name == "cam-2.flv.part"


def test_a_recording_that_appears_in_between_takes_the_name(tmp_path, monkeypatch, opened):
    flock = fcntl.flock

    def appear(descriptor: int, operation: int) -> None:
        (tmp_path / "cam.flv").touch()
        flock(descriptor, operation)

    monkeypatch.setattr(module.fcntl, "flock", appear)
    assert opened(tmp_path, "cam").name == "cam-2.flv.part"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cam-2.flv.part", "cam.flv"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_can_be_written_to(code, tmp_path, monkeypatch, opened):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    assert opened(tmp_path, "cam").name == "cam.flv.part"


def test_an_error_of_the_lock_leaves_no_part(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(module.fcntl, "flock", fail)
    with pytest.raises(OSError, match="broken"):
        open_part(tmp_path, "cam")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_removed_in_between_is_made_again(tmp_path, monkeypatch, opened):
    make = module._make_directories
    times = iter(range(3))

    def remove(directory: Path, relative: str) -> None:
        make(directory, relative)
        if next(times) < 2:
            (directory / "live").rmdir()

    monkeypatch.setattr(module, "_make_directories", remove)
    assert opened(tmp_path, "live/cam") == tmp_path / "live/cam.flv.part"


# Publishing ---------------------------------------------------------------------------------------------------------------


def part(directory: Path, name: str = "cam", data: bytes = b"new") -> Path:
    path = directory / f"{name}.flv.part"
    path.write_bytes(data)
    return path


def names(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(params=["links", "no links"])
def file_system(request, monkeypatch):
    if request.param == "no links":

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EPERM, "no links here")

        monkeypatch.setattr(module.os, "link", refuse)


@pytest.mark.usefixtures("file_system")
def test_a_part_becomes_a_recording(tmp_path):
    assert publish_part(part(tmp_path, "a.b")) == tmp_path / "a.b.flv"
    assert names(tmp_path) == {"a.b.flv": b"new"}


@pytest.mark.usefixtures("file_system")
def test_nothing_is_overwritten(tmp_path):
    for name in ("cam.flv", "cam-2.flv", "cam-3.flv.part"):
        (tmp_path / name).write_bytes(b"old")
    assert publish_part(part(tmp_path)).name == "cam-4.flv"
    (tmp_path / "cam-5.flv").symlink_to("nowhere")
    assert publish_part(part(tmp_path)).name == "cam-6.flv"
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "cam-5.flv").unlink()
    old = dict.fromkeys(("cam.flv", "cam-2.flv", "cam-3.flv.part"), b"old")
    assert names(tmp_path) == {**old, "cam-4.flv": b"new", "cam-6.flv": b"new"}


@pytest.mark.usefixtures("file_system")
def test_a_part_can_be_set_aside(tmp_path):
    (tmp_path / "cam.flv.broken").touch()
    assert publish_part(part(tmp_path), BROKEN).name == "cam-2.flv.broken"


@pytest.mark.usefixtures("file_system")
def test_a_part_that_is_gone_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        publish_part(tmp_path / "cam.flv.part")
    assert names(tmp_path) == {}


@pytest.mark.parametrize("taken", [False, True])
def test_what_was_interrupted_between_two_names_is_finished(taken, tmp_path):
    path = part(tmp_path)
    if taken:
        (tmp_path / "cam.flv").write_bytes(b"old")
    target = tmp_path / ("cam-2.flv" if taken else "cam.flv")
    target.hardlink_to(path)
    assert publish_part(path) == target
    assert not path.exists()
    assert target.stat().st_nlink == 1


def test_an_error_of_the_disk_is_raised(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(module.os, "link", fail)
    with pytest.raises(OSError, match="broken"):
        publish_part(part(tmp_path))
    assert names(tmp_path) == {"cam.flv.part": b"new"}


@pytest.mark.usefixtures("file_system")
def test_many_threads_overwrite_nothing(tmp_path):
    def record(number: int) -> None:
        for _ in range(10):
            descriptor, path = open_part(tmp_path, "live/cam")
            os.write(descriptor, b"%d" % number)
            publish_part(path)
            os.close(descriptor)

    threads = [threading.Thread(target=record, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = names(tmp_path / "live")
    assert len(found) == 80
    assert all(name.endswith(".flv") for name in found)
    assert sorted(found.values()) == sorted(b"%d" % number for number in range(8) for _ in range(10))


# Finding ------------------------------------------------------------------------------------------------------------------


def find(directory: Path, template: FileNameTemplate = TEMPLATE) -> tuple[list[str], list[OSError]]:
    errors: list[OSError] = []
    return sorted(find_files(directory, template, [".flv"], lambda: None, errors.append)), errors


def test_files_whose_names_match_are_found(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    directory = tmp_path / "recordings"
    for path in (
        "live/a.flv",
        "live/b.txt",
        "live/c.flv.part",
        "live/.d.flv",
        "live/x/e.flv",
        "f.flv",
        ".g/h.flv",
        "x.flv/i.flv",
    ):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).touch()
    elsewhere.mkdir()
    (elsewhere / "k.flv").touch()
    (directory / "linked").symlink_to(elsewhere)
    (directory / "live/l.flv").symlink_to(elsewhere / "k.flv")
    (directory / "live/ü.flv").touch()
    Path(os.fsdecode(os.fsencode(directory) + b"/live/\xff.flv")).touch()
    (directory / "loop").symlink_to(directory)
    assert find(directory) == (["live/a.flv", "x.flv/i.flv"], [])
    assert find(directory, FileNameTemplate.parse("{name}")) == (["f.flv", "x.flv"], [])
    (tmp_path / "link").symlink_to(directory)
    assert len(find(tmp_path / "link")[0]) == 2


def test_a_directory_that_cannot_be_read_is_an_error(tmp_path):
    assert isinstance(find(tmp_path / "missing")[1][0], FileNotFoundError)
    (tmp_path / "file").touch()
    assert isinstance(find(tmp_path / "file")[1][0], NotADirectoryError)


def test_there_is_a_pause_every_100_entries(tmp_path):
    for number in range(250):
        (tmp_path / f"{number}.flv").touch()
    pauses = []
    found = list(find_files(tmp_path, FileNameTemplate.parse("{name}"), [".flv"], lambda: pauses.append(1), pytest.fail))
    assert (len(found), len(pauses)) == (250, 3)
