"""A container for the installed files: namespaces, with or without systemd as the first process. Needs root.

The real machine does not change: its file system is read only, and everything writable is in memory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import gevent

ROOT = Path(__file__).parents[2]
SOURCE = "/var/source"
LIMIT_S = 60
_POLL_S = 0.05

# Units that access devices, clocks or files of the real machine.
_MASKED = """
systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket systemd-udevd-kernel.socket
systemd-tmpfiles-setup.service systemd-tmpfiles-setup-dev.service systemd-tmpfiles-clean.timer systemd-sysctl.service
systemd-modules-load.service systemd-random-seed.service systemd-timesyncd.service systemd-logind.service
systemd-update-utmp.service systemd-remount-fs.service systemd-binfmt.service systemd-pstore.service
systemd-machine-id-commit.service systemd-hwdb-update.service systemd-firstboot.service systemd-pcrphase-sysinit.service
systemd-boot-system-token.service systemd-networkd-wait-online.service ifupdown-wait-online.service networking.service
proc-sys-fs-binfmt_misc.automount dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount
sys-fs-fuse-connections.mount
"""

# $1: a directory; $2: the files of make install DESTDIR=; $3: the checkout. $SOURCE has the part of it that make uninstall
# needs, since the path of the checkout may be hidden by a directory of the container.
_SETUP = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir -p "$1/etc" "$1/var/lib" "$1/var/log" "$1/var/tmp" "$1/var/cache" "$1/local" "$1/dev/shm" "$1/dev/pts"
cp -a /etc/. "$1/etc"
cp -a "$2/etc/." "$1/etc"
chown -R root:root "$1/etc/rtmpd.ini"
if test -d /usr/local/bin; then cp -a /usr/local/. "$1/local" 2>/dev/null || true; fi
cp -a "$2/usr/local/." "$1/local"
mount --bind "$1/etc" /etc
mkdir "$1/var/source" && cp "$3/Makefile" "$3/install.mk" "$1/var/source"
mount --bind "$1/var" /var
mount --bind "$1/local" /usr/local
mkdir -p "$1/opt" && cp -a "$2/opt/." "$1/opt" && mount --bind "$1/opt" /opt
for device in null zero full random urandom tty; do
    touch "$1/dev/$device" && mount --bind "/dev/$device" "$1/dev/$device"
done
touch "$1/dev/console"
ln -s pts/ptmx "$1/dev/ptmx" && ln -s /proc/self/fd "$1/dev/fd"
mount -t devpts devpts "$1/dev/pts"
mount --rbind "$1/dev" /dev
mount -t tmpfs tmpfs /run && mkdir /run/lock
ip link set lo up
systemd-sysusers rtmpd.conf 2>/dev/null
systemd-tmpfiles --create rtmpd.conf
"""

_BOOT = """
rm -rf /etc/fstab /etc/systemd/system && mkdir /etc/systemd/system
for unit in $MASKED; do ln -s /dev/null "/etc/systemd/system/$unit"; done
printf '[Unit]\\nWants=rtmpd.socket rtmpd.service\\n' > /etc/systemd/system/machine.target
mount -t sysfs -o ro sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /tmp
mount -o remount,ro,bind /
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=docker \\
    /lib/systemd/systemd --unit=machine.target --show-status=no
"""


def can_unshare() -> bool:
    """Return whether this machine allows namespaces."""
    command = ["unshare", "-m", "-p", "-n", "-u", "-i", "-C", "--fork", "--mount-proc", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0


def run_apart(installed: Path, directory: Path, script: str, **options) -> subprocess.Popen:
    """Run a script with the installed files, with its own network and without systemd."""
    command = ["unshare", "-m", "-n", "bash", "-c", f"{_SETUP}{script}", "bash", directory, installed, ROOT]
    return subprocess.Popen(command, start_new_session=True, **options)


class Machine:
    """A container with systemd, in which the installed service is running."""

    def __init__(self, installed: Path, directory: Path) -> None:
        command = ["unshare", "-m", "-p", "-n", "-u", "-i", "-C", "--fork", "--mount-proc", "bash", "-c", _SETUP + _BOOT]
        self._outer = subprocess.Popen(
            [*command, "bash", directory, installed, ROOT],
            env={**os.environ, "MASKED": " ".join(_MASKED.split())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        self._init = self._wait(lambda: int(children.read_text() or 0))
        self._wait(lambda: self.run("systemctl", "is-active", "rtmpd.service", check=False).strip() == "active")

    def _wait(self, condition):
        deadline = time.monotonic() + LIMIT_S
        while not (found := condition()):
            assert self._outer.poll() is None, "the machine has ended"
            assert time.monotonic() < deadline, f"the machine does not come up: {self.log()}"
            gevent.sleep(_POLL_S)
        return found

    def _command(self, command) -> list[str]:
        return ["nsenter", "-t", str(self._init), "-m", "-p", "-n", "-u", "-i", "-C", *map(str, command)]

    def run(self, *command, check: bool = True) -> str:
        """Run a command inside and return its output."""
        done = subprocess.run(
            self._command(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}"
        return done.stdout

    def start(self, *command, **options) -> subprocess.Popen:
        """Start a command inside."""
        return subprocess.Popen(self._command(command), text=True, **options)

    def shell(self, script: str, *, check: bool = True) -> str:
        return self.run("sh", "-c", script, check=check)

    def show(self, name: str) -> str:
        """Return a property of the service."""
        return self.run("systemctl", "show", "--value", "-p", name, "rtmpd.service").strip()

    def log(self) -> str:
        return self.run("journalctl", "-u", "rtmpd.service", "-o", "cat", "--no-pager", check=False)

    def wait_for(self, condition, what: str) -> None:
        """Wait until a condition is true; *what* names it in the error."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"not in time: {what}\n{self.log()}"
            gevent.sleep(_POLL_S)

    def drop_in(self, unit: str, text: str) -> None:
        """Write a drop-in as ``systemctl edit`` does; an empty text removes its effect."""
        directory = f"/run/systemd/system/{unit}.d"
        self.shell(f"mkdir -p {directory}; cat > {directory}/test.conf <<'END'\n{text}\nEND")
        self.run("systemctl", "daemon-reload")

    def close(self) -> None:
        """Kill the first process of the container, and with it all others."""
        os.kill(self._init, signal.SIGKILL)
        self._outer.wait(LIMIT_S)


def install(destination: Path, *variables: str, target: str = "install") -> str:
    """Run make and return its output."""
    command = ["make", "--no-print-directory", target, f"DESTDIR={destination}", "PYTHON=/usr/bin/python3", *variables]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def has_programs() -> list[str]:
    """Return the missing programs that a container needs."""
    return [name for name in ("unshare", "nsenter", "ip", "systemctl", "make", "/usr/bin/python3") if not shutil.which(name)]
