from __future__ import annotations

import os
import socket
import threading

import pytest

from rtmpd.util import files
from rtmpd.util.files import being_read, read_file


def test_a_regular_file_is_read_up_to_the_limit(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)
    assert read_file(str(path), 1 << 20) == path.read_bytes()
    assert read_file(str(path), 1000) == path.read_bytes()[:1000]
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_file(str(link), 256) == bytes(range(256))
    assert being_read() == []


def test_pipes_sockets_devices_and_directories_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "socket", tmp_path / "link", "/dev/zero", "/dev/tty"):
        with pytest.raises(OSError, match="only regular files are read"):
            read_file(str(path), 10)
    with pytest.raises(IsADirectoryError):
        read_file(str(tmp_path), 10)
    with pytest.raises(FileNotFoundError):
        read_file(str(tmp_path / "none"), 10)
    assert being_read() == []


def test_a_file_that_becomes_a_pipe_between_check_and_open_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "file"
    path.write_bytes(b"x")
    right = os.open
    monkeypatch.setattr(files.os, "open", lambda _path, flags: right(tmp_path / "pipe", flags))
    with pytest.raises(OSError, match="only regular files are read"):
        read_file(str(path), 10)


def test_a_file_that_does_not_answer_is_named(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    reached, answer = threading.Event(), threading.Event()
    right = os.read

    def read(descriptor, size):
        reached.set()
        assert answer.wait(10)
        return right(descriptor, size)

    monkeypatch.setattr(files.os, "read", read)
    thread = threading.Thread(target=read_file, args=(str(path), 10))
    thread.start()
    assert reached.wait(10)
    assert being_read() == [str(path)]
    answer.set()
    thread.join(10)
    assert being_read() == []
