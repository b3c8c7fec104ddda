"""Predictions on many processors, on a machine whose costs are simple."""

import math

import pytest

from rnnpar.model import Model
from rnnpar.study import processors
from tests.test_model import simple_peaks

OURS = [name for name in processors.METHODS if name.startswith("in_time/")]


@pytest.fixture
def seconds():
    """H = 32, T = 65,536 where meeting is free: a step of the chain, or of one row among many, takes 1,024 ns."""
    return processors.predict(Model(simple_peaks(barrier=1e-9), 32), 32, 65536)


def test_in_time_gains_from_processors_and_the_chain_does_not(seconds):
    assert (seconds.loc[64, OURS] < seconds.loc[1, OURS] / 32).all()
    assert seconds["serial/compiled"].nunique() == 1
    assert seconds.loc[1, "serial/compiled"] == pytest.approx(65536 * 1.024e-6)


def test_on_one_processor_a_method_costs_its_passes(seconds):
    passes = (seconds.loc[1, OURS] / seconds.loc[1, "serial/compiled"]).round(2)
    assert passes["in_time/jacobi"] == 40 + 2  # one each iteration, and two for the check
    assert passes["in_time/quasi_deer"] == 2 * 40 + 2
    assert passes["in_time/segments"] == 4  # twice over all steps: 40 steps more are next to nothing
    assert passes["in_time/deer"] == pytest.approx(4 * 3 + 1 + 2 + 4 * 40 * 32 / 65536, abs=0.01)


def test_a_longer_memory_costs_more_and_a_chain_that_is_known_replaces_the_models():
    cost = Model(simple_peaks(), 32)
    short, long = (processors.predict(cost, 32, 1024, 1e-9, memory) for memory in (40, 400))
    assert (long[OURS] >= short[OURS]).all(axis=None)
    assert (long["in_time/jacobi"] > 5 * short["in_time/jacobi"]).all()
    assert short.loc[1, "serial/compiled"] == pytest.approx(1024e-9)
    assert processors.predict(cost, 32, 1024, math.nan).loc[1, "serial/compiled"] == pytest.approx(1024 * 1.024e-6)


def test_without_a_cost_model_there_is_no_row():
    none = processors.predict(None, 32, 1024)
    assert none.empty
    assert list(none) == processors.METHODS


def test_on_an_h100_the_chain_waits_for_every_step():
    assert processors.on_h100(32, 65536)["serial/compiled"] == pytest.approx(65536 * 0.6e-6)
    assert processors.on_h100(32, 65536)["in_time/deer"] < processors.on_h100(32, 65536)["serial/compiled"]
