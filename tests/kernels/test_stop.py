"""Every loop over work looks whether the call is given up: where it is, nothing more is begun.

The regions here give their own call up where `job.fresh` is set, and then do a part of the work.
"""

from __future__ import annotations

import numpy as np
import pytest

import rnnpar
from rnnpar.kernels import forward, scan
from rnnpar.kernels.job import STOP
from rnnpar.kernels.pointers import at, view
from rnnpar.kernels.team import Region
from tests.conftest import random_input

inputs = scan.jit()(scan.inputs_region)
growth = scan.jit()(scan.growth_region)


def evaluate_region(rank, size, job):
    job.control[STOP] = job.fresh
    scan.evaluate(job, rank, 0, job.T)


def roll_region(rank, size, job):
    job.control[STOP] = job.fresh
    room = job.S * job.ld
    scan._roll(job, rank, 0, job.S, view(job.scratch, 0, room), view(job.scratch, room, room), True)


def map_region(rank, size, job):
    job.control[STOP] = job.fresh
    room = job.H * job.ld
    job.alive[0] = scan._map(job, rank, 0, 0, view(job.maps, 0, room), view(job.scratch, 0, room))


def sweep_region(rank, size, job):
    job.control[STOP] = job.fresh
    room = job.S * job.ld
    scan.sweep(job, rank, 0, job.S, view(job.scratch, 0, room), view(job.scratch, room, room), False)


def growth_region(rank, size, job):
    job.control[STOP] = job.fresh
    growth(rank, size, job)


def inputs_region(rank, size, job):
    job.control[STOP] = job.fresh
    inputs(rank, size, job)


def outputs_region(rank, size, job):
    job.control[STOP] = job.fresh
    forward.outputs(job, rank, at(job.h, 0), 0, job.T, at(job.logits, 0), 0, 0, 1)


@pytest.mark.parametrize(
    ("region", "written"),
    [(evaluate_region, "r"), (roll_region, "h"), (map_region, "alive"), (sweep_region, "h"), (growth_region, "found"),
     (inputs_region, "z"), (outputs_region, "y")],
)  # fmt: skip
def test_nothing_is_computed_in_a_call_that_is_given_up(region, written):
    net = rnnpar.RNN.random(3, 5, 4)
    T = 40
    with rnnpar.prepare(net, "in_time/deer", threads=1, window=T) as run:
        run(random_input(net, T, 1))
        job = run._forward.engine.job
        job.set(x=random_input(net, T, 1), y=np.zeros((T, 1, 4), np.float32), faded=0.0)
        into, given_up = job._arrays[written], Region(region, job)
        for stop in (False, True):
            into.fill(0)
            job.set(fresh=stop)
            given_up.run()
            assert into.any() != stop
