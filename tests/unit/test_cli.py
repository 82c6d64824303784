import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import rtmpd
from rtmpd import cli
from rtmpd.config.loader import load_text
from rtmpd.config.spec import sections
from rtmpd.util import speed


@pytest.fixture
def daemon(monkeypatch):
    """Replace the daemon by one that stores its configuration and ends with status 7."""
    started = []

    def run(config, load):
        started.append(config)
        return 7

    module = types.ModuleType("rtmpd.daemon.main")
    module.run = run
    monkeypatch.setitem(sys.modules, "rtmpd.daemon.main", module)
    return started


@pytest.fixture
def ini(tmp_path):
    path = tmp_path / "rtmpd.ini"
    path.write_text("[server]\nlisten = :0\n[log]\nlevel = error\n[applications]\n[[ü]]\n")
    return str(path)


def command(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "rtmpd", *arguments], capture_output=True, timeout=60, **options)


def test_the_server_starts_with_the_defaults(daemon):
    assert cli.main([]) == 7
    assert daemon == [load_text("")]


def test_the_server_starts_with_a_file(daemon, ini):
    assert cli.main(["-c", ini]) == 7
    assert daemon[0].log.level == "error"
    assert list(daemon[0].applications) == ["ü"]


def test_flags_take_precedence_over_the_file(daemon, ini):
    assert cli.main(["--config", ini, "--listen", ":2", "--listen=[::1]:3", "--log-level", "debug", "--chunk-size", "999"])
    (config,) = daemon
    assert [str(address) for address in config.server.listen] == [":2", "[::1]:3"]
    assert config.log.level == "debug"
    assert config.server.chunk_size_bytes == 999


def test_flags_work_without_a_file(daemon):
    assert cli.main(["--listen", "127.0.0.1:0"])
    assert [str(address) for address in daemon[0].server.listen] == ["127.0.0.1:0"]


def test_the_server_does_not_start_with_problems(daemon, tmp_path, capsys):
    path = tmp_path / "rtmpd.ini"
    path.write_text("[log]\nlevel = loud\nsize = 3\n")
    assert cli.main(["-c", str(path), "--chunk-size", "1"]) == 1
    assert daemon == []
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        f'{path}:2: [log] level: expected debug, info, warning or error, got "loud"',
        f"{path}:3: [log] size: unknown option",
        '--chunk-size: expected a size from 128 to 16777215, got "1"',
    ]


def test_a_valid_file_is_ok(daemon, ini, capsys):
    assert cli.main(["-c", ini, "--check-config"]) == 0
    assert capsys.readouterr().out == f"{ini}: ok\n"
    assert daemon == []


def test_the_defaults_are_ok(capsys):
    assert cli.main(["--check-config", "--listen", "127.0.0.1:0"]) == 0
    assert capsys.readouterr().out == "the built-in configuration: ok\n"


def test_a_valid_file_that_does_not_fit_this_machine_is_not_ok(tmp_path, capsys):
    path = tmp_path / "rtmpd.ini"
    path.write_text("[server]\nlisten = 192.0.2.1:1\n[record]\nrecord_all = yes\nrecord_directory = /no/where\n")
    assert cli.main(["-c", str(path), "--check-config", "--record-dir", "/nor/here"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    lines = [line for line in output.err.splitlines() if ": note: " not in line]
    assert [line.partition(": ")[0] for line in lines] == ["--record-dir", f"{path}:2"]


@pytest.mark.parametrize("flag", ["--check-config", "--print-config"])
def test_a_file_may_be_a_pipe(flag):
    reading, writing = os.pipe()
    os.write(writing, b"[server]\nlisten = 127.0.0.1:0\n")
    os.close(writing)
    done = command("-c", f"/dev/fd/{reading}", flag, pass_fds=[reading])
    os.close(reading)
    assert done.returncode == 0
    assert f"/dev/fd/{reading}: ok".encode() in done.stdout or b"listen = 127.0.0.1:0" in done.stdout


@pytest.mark.parametrize("flag", ["--check-config", "--print-config"])
def test_a_wrong_file_is_not_ok(flag, tmp_path, capsys):
    assert cli.main(["-c", str(tmp_path / "none.ini"), flag]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"{tmp_path}/none.ini: can't be read: No such file or directory\n"


def test_the_effective_configuration_is_printed(ini, capsys):
    assert cli.main(["-c", ini, "--log-level", "debug", "--print-config"]) == 0
    printed = load_text(capsys.readouterr().out)
    assert printed.log.level == "debug"
    assert [str(address) for address in printed.server.listen] == [":0"]
    assert list(printed.applications) == ["ü"]


@pytest.mark.parametrize(
    "arguments",
    [["--bogus"], ["file.ini"], ["-c"], ["--listen"], ["--log", "info"], ["--check-config", "--print-config"]],
)
def test_wrong_arguments_end_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2
    assert "usage: rtmpd" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"rtmpd {rtmpd.__version__} ({speed.IN_USE})\n"


def test_version_and_help_import_no_event_loop_and_no_configuration():
    program = (
        "import sys; from rtmpd import cli\n"
        "try: cli.main(['--version'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('gevent', 'configobj', 'rtmpd.config', 'rtmpd.daemon') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout.endswith("\n[]\n")


def test_each_flag_is_one_that_the_spec_names():
    of_spec = {option.flag: (option.section, option.name) for section in sections() for option in section.options}
    del of_spec[""]
    assert {f"{flag.name} {flag.argument}".strip(): (flag.section, flag.option) for flag in cli.FLAGS} == of_spec


def test_a_pipe_that_is_not_read_to_its_end():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "rtmpd", "--print-config"], stdout=writing, stderr=subprocess.PIPE, timeout=60
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_full_disk():
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "rtmpd", "--print-config"], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert (ended.returncode, ended.stderr) == (1, b"rtmpd: can't write: No space left on device\n")


def test_the_locale_does_not_matter(tmp_path, ini):
    odd = os.fsencode(tmp_path) + b"/\xff.ini"
    Path(os.fsdecode(odd)).touch()
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    assert "[[ü]]".encode() in command("-c", ini, "--print-config", env=environment).stdout
    assert command("-c", odd, "--listen", ":0", "--check-config", env=environment).stdout == odd + b": ok\n"


def test_print_config_says_where_each_option_was_set(capsys, tmp_path):
    ini = tmp_path / "my.ini"
    ini.write_text("[server]\nread_timeout_s = 1m\n[live]\nkeyframe_wait_s = 3\n[applications]\n[[a]]\n  gop_cache = no\n")
    assert cli.main(["-c", str(ini), "--listen", ":0", "--print-config"]) == 0
    printed = capsys.readouterr().out
    lines = dict(re.findall(r"^(\w+) = .*?  # (.*)$", printed.partition("[applications]")[0], re.MULTILINE))
    assert lines["listen"] == "--listen"
    assert lines["read_timeout_s"] == f"{ini}:2"
    assert lines["keyframe_wait_s"] == f"{ini}:4"
    assert lines["gop_cache"] == "default"
    own = dict(re.findall(r"^(\w+) = .*?  # (.*)$", printed.partition("[[a]]")[2], re.MULTILINE))
    assert own["gop_cache"] == f"{ini}:7"
    assert own["keyframe_wait_s"] == f"{ini}:4"
    assert own["pacing"] == "default"
    assert load_text(printed) == load_text(ini.read_text(), overrides={("server", "listen"): [":0"]})
