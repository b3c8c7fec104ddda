"""Ranks by simulation and by formula, and the measured ones beside them, on a machine whose costs are simple."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rnnpar import model_ranks, peaks
from rnnpar.model import Model
from rnnpar.model_ranks import Link
from rnnpar.study import results, simulate, store
from rnnpar.work import Work
from tests.study.test_results import row
from tests.test_model import simple_peaks

MODEL = Model(simple_peaks(), 32)
WORK = Work(T=96, B=4, I=64, H=1024, O=64)
FREE = Link(0.0, 0.0)
SIZES = (64, 1024, 8192)
MESSAGES = {  # a message takes 1 us and 1 ns a byte; an exchange in the window as many us as there are KB
    "measured": "2026-01-31",
    "call": {"1": 1e-6, "2": 1e-5, "4": 1e-4},
    "messages": [[8, 1e-6], [262144, 1e-6 + (262144 - 8) * 1e-9]],
    "exchange": {n: {kind: [[H, 1e-6 * H * slower / 256] for H in SIZES]
                     for slower, kind in enumerate(("window", "messages", "allgather"), 1)} for n in ("2", "4")},
}  # fmt: skip


@pytest.fixture
def machine(tmp_path, monkeypatch) -> str:
    """The name of a machine with simple peaks and the messages above."""
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    folder = store.results_folder("a-machine")
    folder.mkdir(parents=True)
    (folder / "peaks.json").write_text(json.dumps(simple_peaks() | {"version": peaks.VERSION}))
    (folder / "mpi.json").write_text(json.dumps(MESSAGES))
    return "a-machine"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9, 16, 33, 100])
def test_an_exchange_waits_for_the_last(count):
    clocks = np.zeros(count)
    clocks[count // 2] = 1.0
    assert (simulate.exchange(clocks, FREE, 4.0) == 1.0).all()
    even = simulate.exchange(np.zeros(count), Link(1e-6, 0.0), 4.0)
    rounds = np.ceil(np.log2(count)) if count > simulate.FEW else min(count - 1, 1)
    assert even == pytest.approx(rounds * 1e-6)


def test_a_simulation_without_chance_is_the_formula():
    wire = Link(3e-6, 1e-10)
    for count in (16, 32):
        meet = lambda n, elements: model_ranks.allgather(wire, n, 4 * elements)  # noqa: E731
        formula = model_ranks.rows(MODEL, WORK, count, meet)
        simulated = simulate.rows(MODEL, WORK, count, wire, jitter=0.0)
        assert simulated == pytest.approx(formula + simulate.gather(WORK, count, wire), rel=1e-6)
    stacked = Work(T=96, B=4, I=64, H=64, O=64, layers=3)
    formula = model_ranks.pipeline(MODEL, stacked, 4, wire)
    assert simulate.pipeline(MODEL, stacked, 4, wire, jitter=0.0) == pytest.approx(formula, rel=0.05)
    assert simulate.batch(MODEL, WORK, 4, FREE, jitter=0.0) == pytest.approx(model_ranks.batch(MODEL, WORK, 4))


@pytest.mark.parametrize("method", simulate.SIMULATED)
def test_dearer_messages_and_chance_make_nothing_faster(method):
    run = simulate.SIMULATED[method]
    times = [run(MODEL, WORK, 16, wire, jitter=0.0) for wire in (FREE, Link(1e-6, 1e-11), Link(1e-4, 1e-9))]
    assert times == sorted(times)
    if method != "mpi/pipeline":  # its chance evens out over the chunks; the others wait for the slowest
        assert run(MODEL, WORK, 16, FREE, jitter=0.1) > times[0]
    assert run(MODEL, WORK, 16, FREE) == run(MODEL, WORK, 16, FREE), "the same chance every time"


def test_an_idle_crowd_does_not_help():
    """More ranks than sequences, panels or stages are idle."""
    curve = simulate.curve(MODEL, "mpi/batch", WORK, (4, 8, 64), FREE, jitter=0.0)
    assert curve[4] == pytest.approx(curve[64])


# --- on the ranks of a machine that was measured -----------------------------------------------------------------


def test_the_link_is_alpha_and_beta():
    found = simulate.link(MESSAGES)
    assert (found.alpha, found.beta) == pytest.approx((1e-6, 1e-9))
    assert simulate.link({}) == model_ranks.NEAR
    meet = simulate.measured_exchange(MESSAGES, 2)
    assert [meet(2, elements) for elements in (64, 128, 1024, 16384)] == pytest.approx([0.25e-6, 0.5e-6, 4e-6, 64e-6])


@pytest.mark.parametrize("ranks", [2, 4])
def test_an_allgather_in_a_window_takes_what_its_exchange_takes(ranks):
    link = simulate.window_link(MESSAGES, ranks)
    for H in (64, 8192):
        assert model_ranks.allgather(link, ranks, 4 * H) == pytest.approx(1e-6 * H / 256)


@pytest.mark.parametrize(("ranks", "turns"), [(1, 1), (2, 1), (4, 2)])
def test_ranks_that_take_turns_compute_as_many_times_as_long(ranks, turns):
    """On two cores. A call has 10 steps of three products of 256 x 256, 1 ns an element, and an exchange of 1 us."""
    square, alone = Work(T=10, B=1, I=256, H=256, O=256), 10 * 3 * 256 * 256 * 1e-9
    call, meeting = MESSAGES["call"][str(ranks)], 10 * 1e-6 * (ranks > 1)
    said = {name: simulate.formula(MODEL, MESSAGES, f"mpi/{name}", square, ranks) for name in ("rows", "batch")}
    assert said["batch"] == pytest.approx(call + turns * alone), "one sequence is not shared"
    # The output is shared by steps: 3 of 10 on four ranks.
    shared = alone * (2 / 3 / ranks + np.ceil(10 / ranks) / 30)
    assert said["rows"] == pytest.approx(call + turns * shared + meeting)


def test_measured_ranks_stand_beside_what_is_said_of_them(machine):
    for ranks in (1, 2, 4, 8):
        store.append(row("mpi/rows", [1e-3], threads=ranks, H=256, I=256, O=256), "mpi", machine)
    store.append(row("threads/rows", [1e-3], threads=2, H=256, I=256, O=256), "mpi", machine)
    runs = results.load(machine, "mpi")
    points = simulate.beside(runs, machine).set_index("threads")
    assert list(points.index) == [1, 2, 4], "what nobody measured messages for is left out, and so are threads"
    square, cost = Work(T=10, B=1, I=256, H=256, O=256), results.cost_model(machine)
    assert points.predicted.tolist() == [simulate.formula(cost, MESSAGES, "mpi/rows", square, n) for n in (1, 2, 4)]
    assert np.isnan(points.simulated[1])
    assert (points.simulated[[2, 4]] / points.predicted[[2, 4]]).between(0.5, 2).all()
    (store.results_folder(machine) / "peaks.json").unlink()
    assert simulate.beside(runs, machine).empty
