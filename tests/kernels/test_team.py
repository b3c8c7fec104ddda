"""The team of threads: all of a region's threads run at once, none is lost, and none stays behind in trouble."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

from rnnpar.kernels import team
from rnnpar.kernels.atomics import ONE, barrier, stopped, wait
from rnnpar.kernels.job import LINE, Job
from rnnpar.kernels.team import Region, Team

MANY = 2 * (os.cpu_count() or 1) + 3


def count_region(rank, size, job):
    job.count[rank * LINE] += 1


def meet_region(rank, size, job):
    """Threads that wait for each other, so that all have to run at once; each notes what its neighbour wrote."""
    for epoch in range(1, 1 + job.times):
        job.count[rank * LINE] = epoch
        barrier(job.flags, rank, size, epoch, job.control, rank)
        if job.count[(rank + 1) % size * LINE] < epoch:
            job.missed[0] += 1


def endless_region(rank, size, job):
    """Until it is given up: thread 0 computes, the others wait for what never comes."""
    job.count[rank * LINE] += 1
    while not stopped(job.control, rank, 1000):
        if rank != 0:
            wait(job.ready, 0, ONE, job.control, rank, (job.flags, rank, size))
    job.count[rank * LINE] -= 1


def job_of(size: int, **fields) -> Job:
    return Job(size, count=np.zeros(size * LINE, np.int64), **fields)


def counts(region: Region) -> list[int]:
    return region.job._arrays["count"][::LINE].tolist()


@pytest.mark.parametrize("size", [1, 2, 3, MANY])
def test_every_thread_runs_once_a_region(size):
    region = Region(count_region, job_of(size))
    for _ in range(100):
        region.run()
    assert counts(region) == [100] * size


@pytest.mark.parametrize("size", [2, 3, MANY])
def test_all_threads_of_a_region_run_at_once(size):
    missed = np.zeros(1, np.int64)
    region = Region(meet_region, job_of(size, times=20, missed=missed))
    for _ in range(20):
        region.run()
    assert missed[0] == 0


@pytest.mark.parametrize("park_ns", [0, 20_000])
def test_no_wake_up_is_lost(monkeypatch, park_ns):
    """Workers that sleep at once, or just when the next region comes: every one of them is woken."""
    eager = Team(spins=0, park_ns=park_ns)
    monkeypatch.setattr(team, "_team", eager)
    region = Region(count_region, job_of(3))
    for call in range(3000):
        region.run()
        if call % 300 == 0:
            time.sleep(0.01)  # long enough for all to sleep
    assert counts(region) == [3000] * 3
    eager.close()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not let threads choose a core")
def test_a_woken_worker_may_use_all_cores_again(monkeypatch):
    """The caller keeps it off its own core only until it has woken."""
    own = Team(3, spins=0, park_ns=0)
    monkeypatch.setattr(team, "_team", own)
    region = Region(count_region, job_of(3))
    for _ in range(20):
        time.sleep(0.005)
        region.run()
    assert [os.sched_getaffinity(thread.native_id) for thread in own._threads] == 2 * [os.sched_getaffinity(0)]
    own.close()


def test_a_closed_team_has_no_threads(monkeypatch):
    own = Team(3)
    before = [thread for thread in own._threads if thread.is_alive()]
    own.close()
    assert len(before) == 2
    assert not any(thread.is_alive() for thread in before)


@pytest.mark.parametrize("size", [1, 2, MANY])
def test_an_interrupt_ends_a_region_that_would_never_end(size):
    """Heard soon, by every thread: nobody is in the region any more, and the next one runs."""
    region = Region(endless_region, job_of(size, ready=np.zeros(LINE, np.int64)))
    after = Region(count_region, job_of(size))
    for _ in range(3):
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            region.run()
        assert counts(region) == [0] * size
        after.run()
    assert counts(after) == [3] * size


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such timer")
def test_what_a_handler_raises_comes_out_and_what_it_only_does_does_not(monkeypatch):
    heard = []

    def handler(number, frame):
        heard.append(number)
        if len(heard) == 2:
            raise LookupError("from a handler")

    before = signal.signal(signal.SIGALRM, handler)
    region = Region(endless_region, job_of(2, ready=np.zeros(LINE, np.int64)))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
        with pytest.raises(LookupError, match="from a handler"):
            region.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(heard) >= 2
    assert counts(region) == [0, 0]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such timer")
def test_a_handler_that_starts_a_region_in_a_region_is_told(monkeypatch):
    inner = Region(count_region, job_of(2))
    before = signal.signal(signal.SIGALRM, lambda *_: inner.run())
    region = Region(endless_region, job_of(2, ready=np.zeros(LINE, np.int64)))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(RuntimeError, match="handler called a runner"):
            region.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    inner.run()
    assert counts(inner) == [1, 1]


def test_regions_from_several_python_threads():
    regions = [Region(meet_region, job_of(2, times=5, missed=np.zeros(1, np.int64))) for _ in range(4)]
    threads = [threading.Thread(target=lambda r=r: [r.run() for _ in range(200)]) for r in regions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [counts(region) for region in regions] == [[5, 5]] * 4
    assert not any(region.job._arrays["missed"][0] for region in regions)


def test_a_thread_that_cannot_be_started_is_an_error(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    own = Team()
    monkeypatch.setattr(team, "_team", own)
    region = Region(count_region, job_of(3))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            region.run()
    region.run()
    assert counts(region) == [1] * 3
    own.close()
