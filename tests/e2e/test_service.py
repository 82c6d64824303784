"""``make install``, and what was installed under a real systemd: the sandbox, restarts, reloads, the watchdog."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.machine import ROOT, SOURCE, Machine, can_unshare, has_programs, install, run_apart

pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]

UNITS = "usr/local/lib/systemd/system"
QUICK = ("CFLAGS=-O0", "PIP_NO_COMPILE=0")
"""pip compiles nothing in the environment of the build; 0 is what it takes for yes."""
BARE = ("RTMPD_PURE=1", "PIP_NO_DEPS=1", "PIP_NO_COMPILE=0")
"""One installation with the extension and what rtmpd needs is enough: these take three quarters of the time."""
INI = "[server]\nlisten = :1935\n"

# Connects again and again; says how often, and how often in vain.
_CALLERS = """
import socket, sys, time
port, limit_s = int(sys.argv[1]), float(sys.argv[2])
end = time.monotonic() + limit_s
served = cut = failed = 0
print("begun", flush=True)
while time.monotonic() < end:
    try:
        with socket.create_connection(("127.0.0.1", port), 20) as sock:
            sock.sendall(bytes([3]) + bytes(1536))
            if sock.recv(1) == bytes([3]):
                served += 1
            else:
                cut += 1
    except ConnectionResetError:
        cut += 1
    except OSError as error:
        failed += 1
        print(error, file=sys.stderr)
    time.sleep(0.005)
print(served, cut, failed)
"""


_PUBLISH = """
from rtmpd.client import Client
with Client("rtmp://127.0.0.1/live/a") as client:
    client.publish()
    for number in range(50):
        client.send_video(number * 40, bytes([0x17 if number % 25 == 0 else 0x27, 1, 0, 0, 0]) + bytes(1000))
"""


def unavailable(reason):
    if os.environ.get("RTMPD_REQUIRE_PEERS"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What ``make install DESTDIR=`` lays out for systemd 252."""
    missing = has_programs()
    if missing:
        unavailable(f"{', '.join(missing)}: not installed (apt-get install util-linux iproute2 systemd make python3-venv)")
    path = tmp_path_factory.mktemp("installed")
    install(path, "SYSTEMD_VERSION=252", *QUICK)
    return path


# What is laid out -------------------------------------------------------------------------------------------------------


def names(path: Path) -> set[str]:
    """What is there, without the inside of the environment."""
    found = {str(each.relative_to(path)) for each in path.rglob("*") if not each.is_dir() or each.is_symlink()}
    return {name for name in found if not name.startswith("opt/rtmpd/")}


def test_install_lays_out_these_files(installed):
    assert names(installed) == {
        "etc/rtmpd.ini",
        "usr/local/bin/rtmpd",
        f"{UNITS}/rtmpd.service",
        f"{UNITS}/rtmpd.socket",
        f"{UNITS}/rtmpd-tls.socket",
        "usr/local/lib/sysusers.d/rtmpd.conf",
        "usr/local/lib/tmpfiles.d/rtmpd.conf",
        "usr/local/share/man/man5/rtmpd.ini.5",
        "usr/local/share/man/man8/rtmpd.8",
    }
    assert (installed / "usr/local/bin/rtmpd").readlink() == Path("/opt/rtmpd/bin/rtmpd")
    assert (installed / "etc/rtmpd.ini").read_bytes() == (ROOT / "etc/rtmpd.ini").read_bytes()
    # It may be given secrets.
    assert (installed / "etc/rtmpd.ini").stat().st_mode & 0o777 == 0o640
    assert (installed / "opt/rtmpd/bin/rtmpd").read_text().startswith("#!/opt/rtmpd/bin/python")


def test_no_installed_file_contains_destdir(installed):
    needles = [str(installed).encode(), str(ROOT).encode() + b"/", b"rtmpd.new"]
    for path in installed.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            assert not [needle for needle in needles if needle in data], path


def test_a_second_installation_keeps_the_configuration_and_writes_the_new_one_beside_it(tmp_path, installed):
    again = tmp_path / "again"
    shutil.copytree(installed, again, symlinks=True)
    ini = again / "etc/rtmpd.ini"
    said = install(again, "SYSTEMD_VERSION=252", *BARE)
    assert ".new" not in said
    assert names(again) == names(installed)
    ini.write_text(INI)
    (again / "opt/rtmpd/lib/left-over").write_text("of an older version")
    said = install(again, "SYSTEMD_VERSION=252", *BARE)
    assert "/etc/rtmpd.ini is kept; the new default configuration is /etc/rtmpd.ini.new" in said
    assert ini.read_text() == INI
    assert (again / "etc/rtmpd.ini.new").read_bytes() == (ROOT / "etc/rtmpd.ini").read_bytes()
    assert not (again / "opt/rtmpd/lib/left-over").exists()
    said = install(again, target="uninstall")
    assert "Kept: /etc/rtmpd.ini, /var/lib/rtmpd" in said
    assert names(again) == {"etc/rtmpd.ini"}
    assert not (again / "opt/rtmpd").exists()
    assert ini.read_text() == INI
    # A second time it finds nothing to do.
    install(again, target="uninstall")


def test_a_foreign_directory_in_the_place_of_the_environment_is_kept(tmp_path):
    precious = tmp_path / "opt/rtmpd/precious"
    precious.parent.mkdir(parents=True)
    precious.write_text("")
    for target in ("install", "uninstall"):
        command = ["make", target, f"DESTDIR={tmp_path}", "PYTHON=/usr/bin/python3"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        assert "is not an environment of rtmpd: set APPDIR" in done.stderr
    assert precious.exists()


def test_a_failed_installation_keeps_the_old_environment(tmp_path, installed):
    again = tmp_path / "again"
    shutil.copytree(installed, again, symlinks=True)
    command = ["make", "install", f"DESTDIR={again}", "PYTHON=/usr/bin/python3"]
    nowhere = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=nowhere)
    assert done.returncode != 0
    assert (again / "opt/rtmpd/bin/rtmpd").exists()
    assert not (again / "opt/rtmpd.new").exists()


def test_other_places_are_in_the_files_too(tmp_path):
    places = ("PREFIX=/usr", "APPDIR=/srv/rtmpd", "SYSCONFDIR=/etc/media")
    install(tmp_path, *places, "SYSTEMD_VERSION=253", *BARE)
    unit = (tmp_path / "usr/lib/systemd/system/rtmpd.service").read_text()
    assert "ExecStart=/srv/rtmpd/bin/rtmpd -c /etc/media/rtmpd.ini\n" in unit
    assert (tmp_path / "usr/bin/rtmpd").readlink() == Path("/srv/rtmpd/bin/rtmpd")
    assert (tmp_path / "srv/rtmpd/bin/rtmpd").read_text().startswith("#!/srv/rtmpd/bin/python")
    assert "z /etc/media/rtmpd.ini" in (tmp_path / "usr/lib/tmpfiles.d/rtmpd.conf").read_text()
    assert ".I /etc/media/rtmpd.ini\n" in (tmp_path / "usr/share/man/man5/rtmpd.ini.5").read_text()
    # Of systemd 253: it asks for the reload itself, and waits for its end.
    assert "\nType=notify-reload\n" in unit
    assert "ExecReload" not in unit
    assert "make install" not in unit


@pytest.mark.parametrize(
    ("version", "kind"), [("252", "notify"), ("253", "notify-reload"), ("256", "notify-reload"), ("", "notify")]
)
def test_the_type_is_that_of_the_systemd_that_is_there(version, kind):
    command = ["make", "-n", "install", f"SYSTEMD_VERSION={version}"]
    plan = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert ("Type=notify-reload" in plan) is (kind == "notify-reload")


# What systemd thinks of it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apart(installed, tmp_path_factory):
    """Return a function that runs a script where everything is installed."""
    if not can_unshare():
        unavailable("namespaces need root, and a kernel that allows them")

    def run(script):
        directory = tmp_path_factory.mktemp("apart")
        process = run_apart(installed, directory, script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    return run


def test_systemd_analyze_verify_accepts_the_units(apart, peer):
    peer("systemd-analyze", "systemd")
    assert apart(f"systemd-analyze verify /{UNITS}/rtmpd.service /{UNITS}/rtmpd.socket /{UNITS}/rtmpd-tls.socket") == (0, "")


def test_systemd_analyze_security_rates_the_unit_as_ok(peer):
    command = [peer("systemd-analyze", "systemd"), "security", "--offline=true", "--no-pager", "--threshold=25"]
    done = subprocess.run([*command, ROOT / "systemd/rtmpd.service"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"Overall exposure level for rtmpd\.service: [0-2]\.\d OK", done.stdout)


def test_the_user_and_the_permissions_of_the_configuration(apart):
    code, output = apart("id -un rtmpd; stat -c '%a %U %G' /etc/rtmpd.ini; getent passwd rtmpd")
    assert code == 0
    assert output.splitlines()[:2] == ["rtmpd", "640 root rtmpd"]
    assert output.splitlines()[2].endswith(":/var/lib/rtmpd:/usr/sbin/nologin")


def test_manual_pages_are_found(apart, peer):
    peer("man", "man-db")
    code, output = apart("man -w 8 rtmpd; man -w 5 rtmpd.ini")
    # Debian has /usr/local/man, too: a link.
    assert (code, output.replace("/share/", "/").split()) == (
        0,
        ["/usr/local/man/man8/rtmpd.8", "/usr/local/man/man5/rtmpd.ini.5"],
    )


# A machine that runs it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine(installed, tmp_path_factory):
    if not can_unshare():
        unavailable("namespaces need root, and a kernel that allows them")
    made = Machine(installed, tmp_path_factory.mktemp("machine"))
    yield made
    made.close()


@pytest.fixture
def configure(machine):
    """Return a function that starts the service again with another configuration; afterwards all is as it was."""

    def change(text=INI):
        machine.shell(f"cat > /etc/rtmpd.ini <<'END'\n{text}\nEND")
        machine.run("systemctl", "reset-failed", "rtmpd.service")
        machine.run("systemctl", "restart", "rtmpd.service")

    yield change
    machine.run("systemctl", "stop", "rtmpd.service")
    for unit in ("rtmpd.service", "rtmpd.socket"):
        machine.run("rm", "-rf", f"/run/systemd/system/{unit}.d")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "rtmpd.socket")
    change()


def test_the_service_runs_as_its_own_user_without_capabilities(machine):
    assert machine.show("StatusText") == "0 streams, 0 players"
    assert machine.show("ActiveState") == "active"
    assert "WARNING" not in machine.log()
    status = machine.run("cat", f"/proc/{machine.show('MainPID')}/status")
    uid = machine.run("id", "-u", "rtmpd").strip()
    assert re.search(rf"^Uid:(\t{uid}){{4}}$", status, re.MULTILINE)
    for facts in (r"NoNewPrivs:\t1", r"Seccomp:\t2", r"CapBnd:\t0+", r"CapEff:\t0+"):
        assert re.search(rf"^{facts}$", status, re.MULTILINE)
    limits = machine.run("cat", f"/proc/{machine.show('MainPID')}/limits")
    # Or as much as this machine lets its systemd give.
    most = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert int(re.search(r"^Max open files +\d+ +(\d+) ", limits, re.MULTILINE)[1]) in (most, 65536)


def test_recordings_hooks_and_metrics_work_in_the_sandbox(machine, configure):
    machine.shell("echo 'echo $RTMP_EVENT_TYPE > /run/rtmpd/hook' > /var/lib/hook")
    hook = "[hooks]\nhook_scripts = publish_start=/bin/sh /var/lib/hook\n"
    configure(f"{INI}[record]\nrecord_all = yes\n[metrics]\nmetrics_listen = :9500\n{hook}")
    machine.run("/opt/rtmpd/bin/python", "-c", _PUBLISH)
    machine.wait_for(lambda: machine.shell("cat /run/rtmpd/hook", check=False) == "publish_start\n", "the hook has run")
    machine.wait_for(
        lambda: re.search(r"\.flv$", machine.shell("find /var/lib/rtmpd/recordings -type f", check=False), re.MULTILINE),
        "a recording",
    )
    assert machine.shell("stat -c '%U %a' /var/lib/rtmpd").split() == ["rtmpd", "750"]
    page = machine.run(
        "/opt/rtmpd/bin/python", "-c", "import requests; print(requests.get('http://127.0.0.1:9500/metrics', timeout=10).text)"
    )
    assert "process_start_time_seconds" in page


def test_no_connection_is_refused_during_a_restart(machine, configure):
    configure()
    callers = machine.start(
        "/opt/rtmpd/bin/python", "-c", _CALLERS, "1935", "5", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert callers.stdout.readline() == "begun\n"
    before = machine.show("MainPID")
    machine.run("systemctl", "restart", "rtmpd.service")
    assert machine.show("MainPID") != before
    output, errors = callers.communicate(timeout=60)
    assert errors == ""
    served, cut, failed = map(int, output.split())
    assert failed == 0
    # One may have been accepted already when the old process ended.
    assert cut <= 1
    assert served > 20


def test_the_socket_alone_starts_the_service_with_the_first_connection(machine, configure):
    configure()
    machine.run("systemctl", "stop", "rtmpd.service")
    assert machine.show("ActiveState") == "inactive"
    assert machine.run("/opt/rtmpd/bin/python", "-c", _CALLERS, "1935", "0.1").split()[-1] == "0"
    machine.wait_for(lambda: machine.show("ActiveState") == "active", "it has been started")


def test_port_443_needs_no_privilege(machine, configure):
    machine.drop_in("rtmpd.socket", "[Socket]\nListenStream=443")
    machine.run("systemctl", "stop", "rtmpd.service")
    machine.run("systemctl", "restart", "rtmpd.socket")
    configure()
    assert "listening on [::]:443" in machine.log()
    assert machine.run("/opt/rtmpd/bin/python", "-c", _CALLERS, "443", "0.2").split()[-1] == "0"
    assert "CapEff:\t0000000000000000" in machine.run("cat", f"/proc/{machine.show('MainPID')}/status")


def test_rtmps_on_port_443_needs_no_privilege_and_a_reload_renews_the_certificate(machine, configure, peer):
    openssl = peer("openssl", "openssl")
    # As root, for the group of the service, as the hook of certbot has it.
    make = (
        f"umask 077; cd /run; {openssl} req -x509 -newkey rsa:2048 -nodes -subj /CN=$0 -keyout tls.key -out tls.crt 2>/dev/null"
        " && install -D -m 0644 tls.crt /run/tls/tls.crt && install -D -m 0640 -g rtmpd tls.key /run/tls/tls.key"
    )
    show = f"{openssl} s_client -connect 127.0.0.1:443 </dev/null 2>/dev/null | {openssl} x509 -noout -subject"
    machine.run("sh", "-c", make, "first.example")
    machine.run("systemctl", "stop", "rtmpd.service")
    machine.run("systemctl", "start", "rtmpd-tls.socket")
    try:
        configure(f"{INI}[tls]\ntls_cert = /run/tls/tls.crt\ntls_key = /run/tls/tls.key\n")
        log = machine.log()
        assert "listening on [::]:443 for RTMPS" in log
        assert "listening on [::]:1935\n" in log
        assert machine.shell(show) == "subject=CN = first.example\n"
        machine.run("sh", "-c", make, "second.example")
        machine.run("systemctl", "reload", "rtmpd.service")
        assert machine.shell(show) == "subject=CN = second.example\n"
        assert "CapEff:\t0000000000000000" in machine.run("cat", f"/proc/{machine.show('MainPID')}/status")
    finally:
        machine.run("systemctl", "stop", "rtmpd.service")
        machine.run("systemctl", "stop", "rtmpd-tls.socket")


def test_a_reload_that_succeeds_and_one_that_fails(machine, configure):
    configure()
    process = machine.show("MainPID")
    machine.shell("echo 'ping_interval_s = 7' >> /etc/rtmpd.ini")
    machine.run("systemctl", "reload", "rtmpd.service")
    machine.wait_for(lambda: "configuration reloaded: " in machine.log(), "the reload")
    machine.shell("echo 'lissen = :1' >> /etc/rtmpd.ini")
    assert "failed" in machine.run("systemctl", "reload", "rtmpd.service", check=False)
    machine.wait_for(lambda: "[server] lissen: unknown option" in machine.log(), "what is wrong")
    # Without the check before it.
    machine.run("systemctl", "kill", "-s", "HUP", "rtmpd.service")
    machine.wait_for(lambda: "reload failed: /etc/rtmpd.ini:5: [server] lissen" in machine.show("StatusText"), "the status")
    assert machine.show("ActiveState") == "active"
    assert machine.show("MainPID") == process


def test_the_check_before_a_start_and_a_reload_accepts_ports_of_systemd_and_the_service(machine, configure):
    check = "/opt/rtmpd/bin/rtmpd -c /etc/rtmpd.ini --check-config"
    machine.drop_in("rtmpd.socket", "[Socket]\nListenStream=443")
    reload = f"ExecReload=\nExecReload={check}\nExecReload=/bin/kill -HUP $MAINPID"
    machine.drop_in("rtmpd.service", f"[Service]\nType=notify\nExecStartPre={check}\n{reload}")
    machine.run("systemctl", "stop", "rtmpd.service")
    machine.run("systemctl", "restart", "rtmpd.socket")
    ini = "[server]\nlisten = :1935, :443, 127.0.0.1:1936\n[record]\nrecord_all = yes\nrecord_directory = {}\n"
    configure(ini.format("recordings"))
    assert machine.show("ActiveState") == "active"
    log = machine.log()
    # Only systemd has the port, and the service can't see the processes of root.
    assert "[server] listen: note: :443 is in use by a process of the user root that is not visible to" in log
    process = machine.show("MainPID")
    machine.run("systemctl", "reload", "rtmpd.service")
    machine.wait_for(lambda: "configuration reloaded: " in machine.log(), "the reload")
    for address in (":1935", ":443", "127.0.0.1:1936"):
        assert f"[server] listen: note: {address} is in use by rtmpd (pid {process})" in machine.log()
    # The sandbox shows this directory as it is for the service.
    machine.shell(f"cat > /etc/rtmpd.ini <<'END'\n{ini.format('/usr/recordings')}\nEND")
    assert "failed" in machine.run("systemctl", "reload", "rtmpd.service", check=False)
    what = "/etc/rtmpd.ini:5: [record] record_directory: can't create /usr/recordings: /usr is on a read-only file system"
    machine.wait_for(lambda: what in machine.log(), "what is wrong")
    assert machine.show("MainPID") == process


def test_a_process_that_hangs_is_ended_and_started_again(machine, configure):
    machine.drop_in("rtmpd.service", "[Service]\nWatchdogSec=1")
    configure()
    process = machine.show("MainPID")
    machine.run("kill", "-STOP", process)
    machine.wait_for(lambda: machine.show("MainPID") not in (process, "0"), "another process")
    machine.wait_for(lambda: machine.show("ActiveState") == "active", "it is up again")
    log = machine.log()
    assert (
        "Watchdog timeout" in machine.run("journalctl", "--no-pager", "-u", "rtmpd.service", "-o", "cat") or "watchdog" in log
    )
    assert "Fatal Python error: Aborted" in log


def test_a_stop_that_takes_longer_than_systemd_waits_is_not_cut_short(machine, configure):
    machine.drop_in("rtmpd.service", "[Service]\nTimeoutStopSec=1")
    machine.shell("echo 'sleep 3; echo done > /run/rtmpd/hook' > /var/lib/hook")
    configure(f"{INI}[hooks]\nhook_scripts = publish_stop=/bin/sh /var/lib/hook\n")
    machine.drop_in("rtmpd.service", "[Service]\nTimeoutStopSec=1\nRuntimeDirectoryPreserve=yes")
    machine.run("/opt/rtmpd/bin/python", "-c", _PUBLISH)
    machine.run("systemctl", "stop", "rtmpd.service")
    assert machine.show("Result") == "success"
    assert machine.run("cat", "/run/rtmpd/hook") == "done\n"


def test_uninstall_stops_the_service_and_keeps_the_files_of_the_operator(machine):
    said = machine.run("make", "--no-print-directory", "-C", SOURCE, "uninstall")
    assert "Kept: /etc/rtmpd.ini, /var/lib/rtmpd, /var/log/rtmpd and the user rtmpd." in said
    assert machine.show("LoadState") == "not-found"
    left = machine.shell("ls -d /opt/rtmpd /usr/local/bin/rtmpd /etc/rtmpd.ini /var/lib/rtmpd 2>/dev/null", check=False)
    assert left.split() == ["/etc/rtmpd.ini", "/var/lib/rtmpd"]
    assert machine.run("id", "-un", "rtmpd") == "rtmpd\n"
    # The port is free.
    assert machine.run("/usr/bin/python3", "-c", "import socket; socket.create_server(('', 1935))") == ""
