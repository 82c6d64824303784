"""Run a module as ``python -m`` does, and measure how long each turn of its gevent event loop holds the loop.

Runs as a script, ``python bench/holds.py FILE MODULE ARGUMENTS``, inside the server under test. A turn lasts from the return
of epoll to the next epoll: no other client is served meanwhile. Time in which another process had the core does not count.
If FILE.causes exists, samples of what the main thread does in long turns are written to it. Host names below
``hanging.invalid`` are looked up for LOOK_UP_S, as by a name server that does not answer.
"""

import _socket
import atexit
import contextlib
import mmap
import os
import runpy
import signal
import struct
import sys
import threading
import time
from collections import Counter
from pathlib import Path

BOUND_NS = 10_000_000
LOOK_UP_S = 30
SAMPLE_S = 0.004
_FIELDS = struct.Struct("=QQQ")  # whether turns are measured, the longest one in ns, and those above the bound
_FIGURES = struct.Struct("=QQ")
_FIGURES_AT = _FIELDS.size - _FIGURES.size


class Holds:
    """The figures, in a file that the server and the bench share."""

    def __init__(self, path, *, create=False):
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
        if create:
            os.ftruncate(descriptor, _FIELDS.size)
        self._map = mmap.mmap(descriptor, _FIELDS.size)
        os.close(descriptor)

    def begin(self):
        """Start to measure."""
        _FIELDS.pack_into(self._map, 0, 1, 0, 0)

    def end(self):
        """Stop to measure; return the longest turn in ms, and the number of turns above the bound."""
        _, longest_ns, above = _FIELDS.unpack_from(self._map)
        _FIELDS.pack_into(self._map, 0, 0, 0, 0)
        return round(longest_ns / 1e6, 1), above

    def measuring(self):
        return self._map[0]

    def add(self, turn_ns):
        longest_ns, above = _FIGURES.unpack_from(self._map, _FIGURES_AT)
        _FIGURES.pack_into(self._map, _FIGURES_AT, max(longest_ns, turn_ns), above + (turn_ns >= BOUND_NS))


class Turns:
    """Measures each turn of the event loop of the main thread."""

    def __init__(self, holds, loop):
        self._holds = holds
        self._schedule = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self.began_ns = self._waited_ns = 0
        self._long_ns = BOUND_NS // 100
        # Before everything else that is due after epoll, and behind everything that is due before it.
        self._after, self._before = loop.check(ref=False, priority=2), loop.prepare(ref=False, priority=-2)
        self._after.start(self._begin)
        self._before.start(self._end)

    def _waited(self):
        """Return for how long, in ns, the thread has been ready to run while others had the core."""
        return int(os.pread(self._schedule, 64, 0).split()[1])

    def _begin(self):
        if self._holds.measuring():
            self._waited_ns = self._waited()
            self.began_ns = time.monotonic_ns()

    def _end(self):
        if self.began_ns:
            turn_ns = time.monotonic_ns() - self.began_ns
            self.began_ns = 0
            if turn_ns > self._long_ns:
                self._holds.add(max(0, turn_ns - (self._waited() - self._waited_ns)))


class Causes:
    """Samples what the main thread does in long turns, and writes the most frequent stacks at the end."""

    DEPTH, LINES = 6, 12

    def __init__(self, turns, path):
        self._turns, self._path = turns, path
        self._stacks = Counter()
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, SAMPLE_S, SAMPLE_S)
        atexit.register(self._write)

    def _sample(self, _number, frame):
        began_ns = self._turns.began_ns
        if not began_ns or time.monotonic_ns() - began_ns < BOUND_NS / 2:
            return
        found = []
        while frame and len(found) < self.DEPTH:
            found.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
            frame = frame.f_back
        self._stacks[" < ".join(found)] += 1

    def _write(self):
        lines = [f"{count:5} {stack}" for stack, count in self._stacks.most_common(self.LINES)]
        with contextlib.suppress(OSError):
            self._path.write_text("\n".join(lines))


def _hang_look_ups():
    real, over = _socket.getaddrinfo, threading.Event()

    def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002 - the names of the real one
        name = host.decode() if isinstance(host, bytes) else str(host)
        # Whether a name is an address is found out without a name server.
        if name.endswith("hanging.invalid") and not flags & _socket.AI_NUMERICHOST:
            over.wait(LOOK_UP_S)
            raise _socket.gaierror(_socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real(host, port, family, type, proto, flags)

    _socket.getaddrinfo = getaddrinfo


def main():
    path, module = sys.argv[1:3]
    sys.argv[:] = [module, *sys.argv[3:]]
    sys.path[0] = str(Path.cwd())  # as with -m
    _hang_look_ups()
    from gevent import get_hub

    turns = Turns(Holds(path), get_hub().loop)
    if Path(f"{path}.causes").exists():
        Causes(turns, Path(f"{path}.causes"))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
