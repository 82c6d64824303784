"""Start a server on one core, sample its CPU and memory, stop it; start the load on the other core."""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVER_CORE, LOAD_CORE = 0, 1
START_LIMIT_S, STOP_LIMIT_S = 20, 10

RTMPD_COMMAND = (sys.executable, "-m", "rtmpd", "--listen", "127.0.0.1:{port}", "--log-level", "warning")
UNPACED_INI = "[live]\npacing = no\n"

NGINX_MODULES = (
    Path("/usr/lib/nginx/modules/ngx_rtmp_module.so"),
    Path("/usr/lib64/nginx/modules/ngx_rtmp_module.so"),
)
# The core writes each message as it comes, as rtmpd does without pacing; wait_key makes joins comparable.
NGINX_INI = """\
daemon off; master_process off; worker_processes 1; pid {work}/nginx.pid; error_log stderr warn;
load_module {module};
events {{ worker_connections 16384; }}
rtmp {{ server {{
    listen 127.0.0.1:{port}; chunk_size 4096;
    application live {{ live on; wait_key on; }}
}} }}
"""


class BenchError(Exception):
    """A server or a load generator failed."""


def pause(seconds):
    time.sleep(seconds)  # noqa: TID251 - there is no event loop in this process


@dataclass(frozen=True)
class ServerSample:
    """CPU time and memory of a process and all its descendants at one moment."""

    time_s: float
    cpu_s: float
    rss_mb: float
    ksoftirqd_s: float  # network work of the server's core that the kernel has moved to a thread of its own
    core_busy_s: float  # everything that ran on the server's core

    @classmethod
    def take(cls, pid):
        processes = _processes()
        ticks = pages = 0
        for _, fields in _tree(processes, pid):
            ticks += _ticks(fields)
            pages += int(fields[21])
        ksoftirqd = sum(_ticks(fields) for name, fields in processes.values() if name == f"ksoftirqd/{SERVER_CORE}")
        rss_mb = round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
        per_s = os.sysconf("SC_CLK_TCK")
        return cls(time.monotonic(), ticks / per_s, rss_mb, ksoftirqd / per_s, _busy_ticks(SERVER_CORE) / per_s)


def core_figures(before, after):
    """Return the CPU between two samples, in percent of one core: the server, and other programs on its core."""
    window_s = after.time_s - before.time_s
    server_s = after.cpu_s - before.cpu_s
    ksoftirqd_s = after.ksoftirqd_s - before.ksoftirqd_s
    other_s = max(0, after.core_busy_s - before.core_busy_s - server_s - ksoftirqd_s)
    seconds = {"cpu": server_s, "ksoftirqd_cpu": ksoftirqd_s, "other_cpu": other_s}
    return {name: round(100 * value / window_s, 1) for name, value in seconds.items()}


def _processes():
    """Name and the fields of /proc/PID/stat after it, of every process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            start, _, end = path.read_text().rpartition(")")
            found[int(path.parent.name)] = start.partition("(")[2], end.split()
    return found


def _tree(processes, root):
    """The processes that are root or its descendants."""
    wanted = [root]
    for pid in wanted:
        wanted += [child for child, (_, fields) in processes.items() if pid and int(fields[1]) == pid]
    return [processes[pid] for pid in wanted if pid in processes]


def _ticks(fields):
    """User and system time."""
    return int(fields[11]) + int(fields[12])


def _busy_ticks(core):
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            return user + nice + system + irq + softirq + steal
    return 0


def cpu_ns(pid):
    """Return the CPU time of a process, without its children, in ns.

    /proc/PID/stat counts in ticks of 10 ms, which is too coarse for a turn of a second. This is the process's own clock, as
    clock_getcpuclockid(3) names it.
    """
    return time.clock_gettime_ns(~pid << 3 | 2)


def core_busy_s():
    """Return the CPU time of everything on the server's core."""
    return _busy_ticks(SERVER_CORE) / os.sysconf("SC_CLK_TCK")


def raise_file_limit():
    """Raise the limit of open files, here and for every child: thousands of sockets need it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pin(core):
    """A preexec_fn that keeps the child on one core where the machine has it."""

    def run():
        if core in os.sched_getaffinity(0):
            os.sched_setaffinity(0, {core})

    return run


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Kind:
    """A server that can be started: its name in the figures and what makes its command line for a port.

    ``protocol`` is how its players play, and ``play_port`` where from, if not from the port of RTMP.
    """

    name: str
    argv: object  # (work directory, port) -> list of arguments
    protocol: str = "rtmp"
    play_port: int = 0


def rtmpd(command=RTMPD_COMMAND, *, unpaced=False):
    return rtmpd_with("rtmpd-unpaced", UNPACED_INI, command) if unpaced else rtmpd_with("rtmpd", "", command)


def many_kinds(options, ini, suffix=""):
    """Return the servers of one paired run: rtmpd, then those that the options add to it."""
    commands = {"rtmpd": options.server_command}
    if options.pure:
        commands["rtmpd-pure"] = ("env", "RTMPD_PURE=1", *options.server_command)
    commands |= dict(options.also)
    return [
        by_protocol(f"{name}{suffix}", protocol, ini, command)
        for name, command in commands.items()
        for protocol in options.protocol
    ]


def by_protocol(name, protocol, ini, command=RTMPD_COMMAND):
    """Return rtmpd with players of a protocol."""
    if protocol == "rtmp":
        return rtmpd_with(name, ini, command)
    port = free_port()
    kind = rtmpd_with(f"{name}-{protocol}", f"{ini}[http]\nhttp_listen = 127.0.0.1:{port}\n", command)
    return replace(kind, protocol=protocol, play_port=port)


def rtmpd_with(name, ini, command=RTMPD_COMMAND):
    """Return rtmpd with a configuration, in which {work} becomes a temporary directory."""

    def argv(work, port):
        path = Path(work, "rtmpd.ini")
        path.write_text(ini.replace("{work}", str(work)))
        if "tls.pem" in ini:
            _make_certificate(Path(work, "tls.pem"))
        extra = ("-c", str(path)) if ini else ()
        return [*(word.replace("{port}", str(port)) for word in command), *extra]

    return Kind(name, argv)


def _make_certificate(path):
    """Write a key and a self-signed certificate: RSA with 2048 bits, the most common kind."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    with path.open("a") as file:
        file.write(Path(f"{path}.crt").read_text())


def nginx():
    """nginx-rtmp as Debian packages it, or None where it is not installed."""
    module = next((path for path in NGINX_MODULES if path.exists()), None)
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not module or not binary:
        return None

    def argv(work, port):
        configuration = Path(work, "nginx.conf")
        configuration.write_text(NGINX_INI.format(work=work, module=module, port=port))
        return [binary, "-p", str(work), "-c", str(configuration)]

    return Kind("nginx-rtmp", argv)


class Server:
    """A running server: a context manager that leaves nothing behind."""

    def __init__(self, kind, work):
        self.kind, self.port = kind, free_port()
        self._log = Path(work, f"{kind.name}-{self.port}.log")
        self._argv = kind.argv(work, self.port)

    def __enter__(self):
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                preexec_fn=pin(SERVER_CORE),
                start_new_session=True,
            )
        try:
            self._wait_listening()
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def pid(self):
        return self.process.pid

    def log_tail(self):
        return self._log.read_text(errors="replace")[-800:].strip()

    def _wait_listening(self):
        end_s = time.monotonic() + START_LIMIT_S
        while time.monotonic() < end_s:
            if self.process.poll() is not None:
                raise BenchError(f"{self.kind.name} ended with {self.process.returncode}: {self.log_tail()}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    pause(1)  # let the start-up work end before anything is measured
                    return
            pause(0.1)
        raise BenchError(f"{self.kind.name} does not listen on port {self.port}: {self.log_tail()}")

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_LIMIT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Load:
    """A load generator: a module of this package as a child process on the load's core."""

    def __init__(self, module, *arguments, commanded=False):
        """Start the module; if *commanded*, tell() sends it commands."""
        self._module = module
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"bench.{module}", *map(str, arguments)],
            stdin=subprocess.PIPE if commanded else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
            preexec_fn=pin(LOAD_CORE),
        )

    @property
    def pid(self):
        return self.process.pid

    def tell(self, command, **values):
        """Send a command to a module that reads commands from its standard input."""
        try:
            self.process.stdin.write(json.dumps({"command": command, **values}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise BenchError(f"bench.{self._module} ended with {self.process.wait()} before its figures") from None

    def line(self):
        """The next JSON line; every generator bounds its own time, so this ends."""
        line = self.process.stdout.readline()
        if not line:
            raise BenchError(f"bench.{self._module} ended with {self.process.wait()} before its figures")
        return json.loads(line)

    def figures(self, limit_s):
        """Wait for the end and return the last JSON line."""
        try:
            output, _ = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise BenchError(f"bench.{self._module} did not end in {limit_s:.0f} s") from None
        if not output.strip():
            raise BenchError(f"bench.{self._module} ended with {self.process.returncode} before its figures")
        return json.loads(output.strip().splitlines()[-1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
