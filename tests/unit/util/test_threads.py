from __future__ import annotations

import threading

import gevent
import pytest

from rtmpd.util.threads import Threads

LIMIT_S = 10


def test_a_job_runs_in_a_native_thread_and_gives_its_value():
    assert Threads(1).call(threading.get_ident) != threading.get_ident()
    assert Threads(1).call(lambda one, two: one + two, 1, 2) == 3


def test_an_exception_of_a_job_is_raised_only_where_its_result_is_asked_for(capfd, monkeypatch):
    printed = []
    monkeypatch.setattr(gevent.get_hub(), "print_exception", lambda *about: printed.append(about))

    def fail():
        raise OSError("full")

    threads = Threads(1)
    job = threads.spawn(fail)
    job.wait()
    assert (job.done, job.succeeded) == (True, False)
    with pytest.raises(OSError, match="full"):
        job.get()
    with pytest.raises(OSError, match="full"):
        threads.call(fail)
    assert printed == []
    assert capfd.readouterr().err == ""


def test_a_callback_runs_at_the_end_of_a_job():
    told = []
    job = Threads(1).spawn(int)
    job.when_done(lambda: told.append(job.get()))
    with gevent.Timeout(LIMIT_S):
        while not told:
            gevent.sleep(0)
    assert job.succeeded


def test_more_jobs_than_threads_wait_and_the_event_loop_goes_on():
    threads = Threads(1)
    gate = threading.Event()
    # One runs, one may wait in the pool.
    threads.spawn(gate.wait)
    threads.spawn(gate.wait)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        threads.spawn(int)
    gate.set()
    with gevent.Timeout(LIMIT_S):
        assert threads.call(int) == 0


def test_more_threads_and_fewer():
    threads = Threads(1)
    gate = threading.Event()
    jobs = [threads.spawn(gate.wait, LIMIT_S)]
    threads.resize(3)
    with gevent.Timeout(LIMIT_S):
        jobs += [threads.spawn(gate.wait, LIMIT_S) for _ in range(2)]
        gate.set()
        for job in jobs:
            job.wait()
        threads.resize(1)
        assert threads.call(int) == 0
