from __future__ import annotations

import os
import socket

import pytest

from rtmpd.config.loader import load_text
from rtmpd.daemon.preflight import check_files, check_sources


def found(ini, config_file=""):
    return [(".".join(each.path), each.text) for each in check_files(load_text(ini), config_file) if not each.is_note]


def notes(ini, config_file=""):
    return [(".".join(each.path), each.text) for each in check_files(load_text(ini), config_file) if each.is_note]


@pytest.fixture
def unprivileged(monkeypatch):
    """The rights of a user other than root: paths with ``no`` in their name can't be written to or run."""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: real(path, mode) and (mode == os.F_OK or "no" not in str(path)))


def record(path):
    return f"[record]\nrecord_all = yes\nrecord_directory = {path}\n"


def test_the_defaults_name_no_file():
    assert found("") == []


def test_a_record_directory_exists_or_can_be_created_and_the_check_does_not_create_it(tmp_path):
    assert found(record(tmp_path)) == []
    assert found(record(tmp_path / "new")) == []
    assert list(tmp_path.iterdir()) == []


def test_a_directory_for_segments(tmp_path):
    assert found(f"[hls]\nhls_directory = {tmp_path / 'new'}\n") == []
    ((option, text),) = found(f"[hls]\nhls_directory = {tmp_path / 'a' / 'b'}\n")
    assert option == "hls.hls_directory"
    assert text.startswith(f"can't create {tmp_path}/a/b: ")


def test_only_the_last_directory_of_a_path_can_be_created(tmp_path):
    ((option, text),) = found(record(tmp_path / "a" / "b"))
    assert option == "record.record_directory"
    assert text.startswith(f"can't create {tmp_path}/a/b: the directory {tmp_path}/a does not exist, ")


def test_a_file_where_a_directory_is_expected(tmp_path):
    (tmp_path / "file").touch()
    assert found(record(tmp_path / "file")) == [("record.record_directory", f"{tmp_path}/file is not a directory")]
    ((_, text),) = found(record(tmp_path / "file" / "x"))
    assert text == f"the user {_me()} can't access {tmp_path}/file/x: Not a directory"


def _me():
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def test_a_directory_that_may_not_be_written_to(tmp_path, unprivileged):
    (tmp_path / "no").mkdir()
    for path in ("no", "no/new"):
        ((_, text),) = found(record(tmp_path / path))
        assert f"may not write to the directory {tmp_path}/no: chown or chmod it" in text


def test_a_file_system_that_is_read_only(monkeypatch, tmp_path):
    class ReadOnly:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr(os, "statvfs", lambda path: ReadOnly)
    ((_, text),) = found(record(tmp_path))
    assert text == f"{tmp_path} is on a read-only file system"


def test_without_recordings_their_directory_does_not_matter():
    assert found("[record]\nrecord_directory = /nowhere/at/all\n") == []
    assert found("[record]\nrecord_streams = live/*\nrecord_directory = /nowhere/at/all\n") != []


@pytest.mark.parametrize("option", ["log_file", "access_log_file"])
def test_log_files(option, tmp_path, unprivileged):
    def problem(path):
        results = found(f"[log]\n{option} = {path}\n")
        assert all(name == f"log.{option}" for name, _ in results)
        return "".join(text for _, text in results)

    (tmp_path / "there").touch()
    (tmp_path / "denied-no").touch()
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "missing" / "file")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        assert "is a socket or a block device: a file or a named pipe is expected" in problem(tmp_path / "socket")
    # The pipe has no reader: to open it would wait, or fail.
    for good in ("there", "new", "pipe"):
        assert problem(tmp_path / good) == ""
    assert "may not write to" in problem(tmp_path / "denied-no")
    assert problem(tmp_path / "directory") == f"{tmp_path}/directory is a directory: a file is expected"
    assert f"can't create {tmp_path}/missing/log: the directory {tmp_path}/missing does not exist" in problem(
        tmp_path / "missing" / "log"
    )
    assert f"can't create {tmp_path}/dangling: the directory {tmp_path}/missing does not exist" in problem(
        tmp_path / "dangling"
    )
    assert not (tmp_path / "new").exists()


def test_a_journal_that_is_not_there(monkeypatch, tmp_path):
    from rtmpd.daemon import preflight

    sink = preflight.JournalSink
    monkeypatch.setattr(preflight, "JournalSink", lambda: sink(str(tmp_path / "none")))
    ((option, text),) = found("[log]\nlog_target = journal\n")
    assert (option, "set log_target = stderr or a log_file" in text) == ("log.log_target", True)
    assert found(f"[log]\nlog_target = journal\nlog_file = {tmp_path}/log\n") == []


def test_tables_of_tokens_are_read_once_and_named_where_they_are_set(tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text('\ufeff{"live/a": "token"}')
    bad.write_text('{"live/a": 3}')
    ini = "[auth]\nauth_mode = file\nauth_file = {}\n[applications]\n[[live]]\n[[studio]]\nauth_file = {}\n"
    assert found(ini.format(good, good)) == []
    ((option, text),) = found(ini.format(good, bad))
    assert option == "applications.studio.auth_file"
    assert text.startswith(f"{bad}: ")
    assert [option for option, _ in found(ini.format(bad, good))] == ["auth.auth_file"]
    ((_, text),) = found(ini.format(tmp_path / "none", good))
    assert text == f"{tmp_path}/none: can't be read: No such file or directory"


def test_programs_of_hooks(tmp_path, unprivileged):
    def problem(path):
        return "".join(text for _, text in found(f"[hooks]\nhook_scripts = publish_start={path} -x, publish_stop={path}\n"))

    def script(name, first, mode=0o755):
        path = tmp_path / name
        path.write_text(first + "\nexit 0\n")
        path.chmod(mode)
        return path

    assert problem(script("good", "#!/bin/sh -e")) == ""
    assert problem("/bin/sh") == ""
    assert "may not run" in problem(script("plain", "#!/bin/sh", 0o644))
    assert "is not a program: a script needs" in problem(script("bare", "echo hello"))
    assert 'begins with "#!/bin/dash5", which' in problem(script("wrong", "#!/bin/dash5"))
    assert problem(tmp_path).endswith("is not a file: a program is expected")
    assert problem(tmp_path / "missing").endswith("No such file or directory")


def test_tokens_that_urls_can_not_carry_are_a_note_that_hides_them(tmp_path):
    (tmp_path / "table").write_text('{"live/a": "s3cret&", "live/b": {"play_token": "s3#cret", "publish_key": "s3?cret"}}')
    ini = 'auth_tokens = live/a=fine+%41, "live/b=s3 cret"\nauth_publish_keys = live/c=s3?cret, live/d=fine&\n'
    own = f"[applications]\n[[one]]\nauth_mode = file\nauth_file = {tmp_path}/table\n[[two]]\nauth_tokens = 'live/e=s3&'\n"
    carry = "contains characters that URLs can't carry as they are: percent-encode it in URLs (& as %26, # as %23)"
    name = "can't be sent as the name of a stream: use letters and digits"
    got = notes(f"[auth]\n{ini}{own}")
    assert not [text for _, text in got if "s3" in text]
    assert got == [
        ("applications.one.auth_file", f"the token of live/a {carry}"),
        ("applications.one.auth_file", f"the token of live/b {carry}"),
        ("applications.one.auth_file", f"the publish key of live/b {name}"),
        ("auth.auth_tokens", f"the token of live/b {carry}"),
        ("auth.auth_publish_keys", f"the publish key of live/c {name}"),
        ("applications.two.auth_tokens", f"the token of live/e {carry}"),
    ]


def test_a_file_that_a_reload_may_not_read_is_a_note(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("abc")
    ini = f"[auth]\nauth_callback = file:{tmp_path}/secret\n[hooks]\nhook_secret = file:{tmp_path}/secret\n"
    (tmp_path / "secret").write_text("http://localhost/ask")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert [option for option, _ in notes(ini, "/etc/rtmpd.ini")] == [
        "server.user",
        "auth.auth_callback",
        "hooks.hook_secret",
    ]


def test_a_slate_is_read_once_with_the_largest_limit_and_reported_where_it_is_named(tmp_path, media_files):
    good, bad = tmp_path / "good.flv", tmp_path / "bad.flv"
    good.write_bytes(media_files.path("h264_aac.flv").read_bytes())
    bad.write_bytes(b"no media")
    size = good.stat().st_size
    applications = f"[applications]\n[[a]]\nslate_file = {good}\nslate_limit_bytes = {size}\n[[b]]\nslate_file = {bad}\n"
    assert found(f"[slate]\nslate_file = {good}\nslate_limit_bytes = 2000\n{applications}") == [
        (
            "applications.b.slate_file",
            f"{bad}: expected an FLV or MP4 file, found one that begins with 6e 6f 20 6d 65 64 69 61",
        ),
    ]
    ((option, text),) = found(f"[slate]\nslate_file = {good}\nslate_limit_bytes = 2000\n")
    assert option == "slate.slate_file"
    assert "expected a slate of at most 2000 bytes (slate_limit_bytes)" in text
    assert found("[slate]\nslate_file = /no/slate.flv\n") == [("slate.slate_file", "/no/slate.flv: No such file or directory")]


@pytest.mark.parametrize(
    ("ini", "options"),
    [
        ("", []),
        ("[publish]\non_conflict = backup\nfrozen_timeout_s = 5\nsilence_timeout_s = 5\n", []),
        ("[publish]\nfrozen_timeout_s = 5\nsilence_timeout_s = 5\n", ["publish.frozen_timeout_s", "publish.silence_timeout_s"]),
        ("[publish]\nbackup_alias = {name}_b\ntakeover_by = any\n", ["publish.backup_alias", "publish.takeover_by"]),
        ("[publish]\non_conflict = takeover\ntakeover_by = any\n", []),
        ("[server]\nread_timeout_s = 5\n[publish]\nstall_timeout_s = 5\n", ["publish.stall_timeout_s"]),
        ("[publish]\non_conflict = backup\nstall_timeout_s = 9\n", ["publish.stall_timeout_s"]),
        ("[applications]\n[[a]]\n[[b]]\nbitrate_floor = 1M\n", ["applications.b.bitrate_floor"]),
    ],
)
def test_options_of_sources_that_have_no_effect_are_noted(ini, options):
    noted = list(check_sources(load_text(ini)))
    assert all(each.is_note for each in noted)
    assert [".".join(each.path) for each in noted] == options
