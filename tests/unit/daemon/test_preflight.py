from __future__ import annotations

import os
import signal
import time

import pytest

from rtmpd.config.loader import load_file, load_text, origins
from rtmpd.daemon import preflight as module
from rtmpd.daemon.preflight import Finding, preflight
from tests.certificates import LONG_AGO, NOT_SO_LONG_AGO, Authority


def check(tmp_path, ini, overrides=None):
    path = tmp_path / "rtmpd.ini"
    path.write_text(ini)
    config = load_file(path, overrides or {})
    return preflight(config, str(path), origins(path, overrides or {}), is_file=True)


def test_problems_name_the_line_the_flag_or_only_the_file(tmp_path):
    ini = (
        "[server]\nlisten = 127.0.0.1:0\n[metrics]\nmetrics_listen = media.invalid:1\n"
        "[auth]\nauth_mode = file\nauth_file = /nope\n[applications]\n[[live]]\nauth_file = /none\n[record]\nrecord_all = yes\n"
    )
    overrides = {("record", "record_directory"): "/no/where", ("log", "log_file"): "/"}
    found = check(tmp_path, ini, overrides)
    places = [line.partition(" ")[0] for line in found.problems]
    path = tmp_path / "rtmpd.ini"
    assert places == ["--record-dir:", "--log-file:", f"{path}:7:", f"{path}:10:", f"{path}:4:"]
    assert found.problems[1] == "--log-file: [log] log_file: / is a directory: a file is expected"
    assert found.problems[3].startswith(f"{path}:10: [applications] [[live]] auth_file: /none: can't be read")


def test_an_option_without_a_line_names_the_file(monkeypatch):
    config = load_text("", "the file", {("server", "listen"): ["127.0.0.1:0"]})
    monkeypatch.setattr(module.resource, "getrlimit", lambda which: (20, 20))
    (problem,) = preflight(config, "the file", {}, is_file=False).problems
    assert problem.startswith("the file: [limits] connection_limit: a server of only ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_checks_as_the_user_of_the_server(public_path):
    tmp_path = public_path
    (tmp_path / "log").touch(0o600)
    ini = f"[server]\nlisten = 127.0.0.1:0\nuser = nobody\n[log]\nlog_file = {tmp_path}/log\n"
    (problem,) = check(tmp_path, ini).problems
    text = f"the user nobody may not write to {tmp_path}/log: chown or chmod it, or set another one"
    assert problem == f"{tmp_path}/rtmpd.ini:5: [log] log_file: {text}"
    # This process is still root.
    assert os.geteuid() == 0
    os.chown(tmp_path / "log", 65534, 65534)
    assert check(tmp_path, ini).problems == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a note for root")
def test_root_without_a_user_gets_a_note(tmp_path):
    found = check(tmp_path, "[server]\nlisten = 127.0.0.1:0\n")
    assert found.problems == []
    assert [line.partition("] ")[2][:32] for line in found.notes] == ["user: note: files were checked a"]


def test_a_user_that_does_not_exist(tmp_path):
    (problem,) = check(tmp_path, "[server]\nlisten = 127.0.0.1:0\nuser = never-made\n").problems
    assert problem.startswith(f"{tmp_path}/rtmpd.ini:3: [server] user: there is no user never-made: ")
    (problem,) = check(tmp_path, "[server]\nlisten = 127.0.0.1:0\ngroup = never-made\n").problems
    assert problem.startswith(f"{tmp_path}/rtmpd.ini:3: [server] group: there is no group never-made")


def test_disks_have_a_deadline():
    begun = time.monotonic()
    (finding,) = module._in_child(signal.pause, 0.2)
    assert time.monotonic() - begun < 10
    assert finding.text == "the files could not be checked within 0.2 s: does a disk or network file system not respond?"


def test_findings_are_transferred_completely():
    findings = [
        Finding(("applications", "ü", "auth_file"), "\udcff\n" * 100_000),
        Finding(("log", "log_file"), "", is_note=True),
    ]
    assert module._in_child(lambda: findings, 10) == findings


def test_a_bug_in_the_check_is_an_error(capfd):
    with pytest.raises(RuntimeError, match="the check of files failed"):
        module._in_child(lambda: [1 / 0], 10)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_certificates_are_checked(tmp_path):
    authority = Authority(tmp_path / "ca")
    good, old = authority.issue("localhost"), authority.issue("localhost", not_before=LONG_AGO, not_after=NOT_SO_LONG_AGO)
    ini = "[server]\nlisten = 127.0.0.1:0\n[tls]\ntls_listen = 127.0.0.1:0\n"
    assert check(tmp_path, ini + good.ini).problems == []
    (problem,) = check(tmp_path, ini + old.ini).problems
    assert problem.startswith(f"{tmp_path}/rtmpd.ini:5: [tls] tls_cert: {old.cert}: the certificate expired on 2021-01-01")
    (problem,) = check(tmp_path, ini + f"tls_cert = {good.cert}\ntls_key = {old.key}\n").problems
    assert "] tls_" in problem
    (problem,) = check(tmp_path, ini).problems
    assert problem.startswith(f"{tmp_path}/rtmpd.ini:3: [tls] tls_cert: not set")
