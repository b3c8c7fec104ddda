"""Traces: what the threads say they did, against what they must have done."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

import rnnpar
from rnnpar.kernels import trace
from rnnpar.kernels.jit import jit
from rnnpar.kernels.job import Job
from rnnpar.kernels.system import CLOCK, now
from rnnpar.kernels.team import Region
from rnnpar.kernels.trace import CAPACITY, DONE, INPUTS, OUTPUTS, STEPS, WAIT, Trace
from tests.conftest import assert_matches_oracle, random_input


@jit()
def clock():
    return now()


def marked_region(rank, size, job):
    for _ in range(job.times):
        trace.mark(job, rank, STEPS)
    trace.mark(job, rank, DONE)


def test_the_clock_is_the_systems():
    before = time.clock_gettime_ns(CLOCK)
    stamps = [clock() for _ in range(100)]
    assert before <= stamps[0]
    assert stamps == sorted(stamps)
    assert stamps[-1] <= time.clock_gettime_ns(CLOCK)


def test_a_full_buffer_counts_on():
    marks = trace.buffer(1)
    Region(marked_region, Job(1, trace=marks, marks=marks.shape[1], times=CAPACITY + 9)).run()
    found = Trace.of(marks, int(marks[0, 1]), int(marks[0, 1]) + 10**9)
    assert found.dropped == 10
    assert len(found.spans) <= CAPACITY


def test_shares_of_a_trace_made_by_hand():
    marks = np.zeros((2, 9), np.int64)
    marks[0, :7] = 3, 100, STEPS, 160, WAIT, 200, DONE
    found = Trace.of(marks, 100, 300)
    shares = found.shares()
    assert [(s.rank, s.what) for s in found.spans] == [(0, STEPS), (0, WAIT)]
    assert shares[0]["W h and tanh"] == pytest.approx(0.3)
    assert shares[0]["waiting"] == pytest.approx(0.2)
    assert shares[0]["nothing to do"] == pytest.approx(0.5)
    assert shares[1]["nothing to do"] == 1


@pytest.mark.parametrize("method", ["timestep", "rows", "batch", "wavefront"])
def test_a_traced_call(method: str):
    T, B = 40, 3
    net = rnnpar.RNN.random(5, 33, 7, num_layers=2)
    x = random_input(net, T, B)
    with rnnpar.prepare(net, f"threads/{method}", threads=2, trace=True) as run:
        assert_matches_oracle(run, x)
        found = run.info["trace"]
    assert found.threads == 2
    assert found.dropped == 0
    kinds = [span.what for span in found.spans]
    assert {INPUTS, STEPS, OUTPUTS} <= set(kinds)
    if method in ("rows", "timestep"):
        # Every step of both layers is a span; rows: by both threads, who each wait after it.
        steps = T * 2 * (2 if method == "rows" else 1)
        assert kinds.count(STEPS) >= 0.95 * steps  # a span shorter than the clock's tick is left out
        assert kinds.count(WAIT) >= 0.5 * steps
    if method == "batch":
        assert WAIT not in kinds
    for rank in range(2):
        spans = [span for span in found.spans if span.rank == rank]
        assert spans or method == "wavefront"  # on a busy machine the first thread may have taken all tasks
        assert all(0 <= span.begin < span.end <= found.seconds for span in spans)
        assert all(before.end <= after.begin + 1e-12 for before, after in itertools.pairwise(spans))


def test_without_the_option_nothing_is_recorded():
    net = rnnpar.RNN.random(3, 4, 5)
    with rnnpar.prepare(net, "threads/rows", threads=1) as run:
        run(random_input(net, 3, 1))
        assert run.info == {}
