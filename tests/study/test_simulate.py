"""Ranks: the simulation against the formula, what is read from measured messages, and chapter 06 on a stored set."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rnnpar import machine, model_ranks, peaks
from rnnpar.model import Model
from rnnpar.model_ranks import Link
from rnnpar.study import measure, messages_probe, results, simulate, store
from rnnpar.work import Work
from tests.chapters import outcomes, run
from tests.test_model import simple_peaks

MODEL = Model(simple_peaks(), 32)
WORK = Work(T=96, B=4, I=64, H=1024, O=64)
FREE = Link(0.0, 0.0)


# --- Measuring messages ------------------------------------------------------------------------------------------


def probes(monkeypatch) -> list[float]:
    """What messages.exchange costs in each probe from now on: 1, 2, 3 ... seconds."""
    asked: list[float] = []
    monkeypatch.setattr(
        messages_probe, "run_probe", lambda n: asked.append(len(asked) + 1.0) or {"exchange": [[64, asked[-1]]]}
    )
    return asked


def test_a_probe_counts_where_the_cores_were_whole_before_and_after(monkeypatch, cores):
    asked = probes(monkeypatch)
    cores.answers += [False, True, True, False, False, False]  # a no before is not asked again after
    assert messages_probe.typical_probe(2, 9) == {"exchange": [[64, 6.0]]}, "the median of the 2nd, 6th and 7th"
    assert len(asked) == 7


def test_all_probes_count_where_the_cores_never_were(monkeypatch, cores):
    asked = probes(monkeypatch)
    cores.answers += [False] * 100
    assert messages_probe.typical_probe(2, 9) == {"exchange": [[64, 5.0]]}
    assert len(asked) == 9


# --- Simulation --------------------------------------------------------------------------------------------------


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


# --- What was measured -------------------------------------------------------------------------------------------

MESSAGES = {
    "measured": "2026-01-01", "library": "mpi4py 4", "source": "x",
    "call": {"1": 1e-6, "2": 1e-5, "4": 1e-4},
    "messages": [[8, 1e-6], [262144, 1e-6 + (262144 - 8) * 1e-9]],
    "exchange": {n: {kind: [[64, t], [1024, 2 * t]] for kind, t in (("window", 1e-6), ("messages", 2e-6),
                 ("allgather", 3e-6))} for n in ("2", "4")},
}  # fmt: skip
HALVED = {1: 1.0, 2: 0.5, 4: 0.6}
SHAPES = {  # H, T, B, layers
    "rows": ("threads/rows", [(64, 128, 1, 1), (1024, 128, 1, 1)]),
    "batch": ("threads/batch", [(256, 32, 1, 1), (256, 32, 64, 1)]),
    "pipeline": ("threads/wavefront", [(256, 128, 1, 1), (256, 128, 1, 4)]),
}


def row(method: str, count: int, seconds: float, H: int, T: int, B: int, layers: int) -> store.Row:
    point = measure.Point("random", H, H, H, T, B, layers)
    return store.Row(measure.key(point, method, count), "random", method, H, H, H, T, B, layers, count, 0, 1, seconds,
                     "steady", 1e-7, "ok", "", "x", "r", "2026-01-01T00:00:00+00:00")  # fmt: skip


@pytest.fixture
def name(tmp_path, monkeypatch):
    """A machine on which two ranks halve every time, and threads take 0.6 of one rank's."""
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path / "figures"))
    name, rows = machine.name(), []
    for strategy, (twin, shapes) in SHAPES.items():
        for H, T, B, layers in shapes:
            seconds = T * layers * B * H * H * 1e-10
            rows += [row(f"mpi/{strategy}", n, seconds * share, H, T, B, layers) for n, share in HALVED.items()]
            rows.append(row(twin, 2, 0.6 * seconds, H, T, B, layers))
    store.append(rows, "mpi")
    folder = store.results_folder(name)
    (folder / "mpi.json").write_text(json.dumps(MESSAGES))
    (folder / "peaks.json").write_text(json.dumps({**simple_peaks(), "version": peaks.VERSION}))
    return name


def test_the_chapter_says_what_the_data_says(name, monkeypatch):
    names, shown = run("06", monkeypatch)
    assert names["rows"].to_dict() == pytest.approx({64: 2.0, 1024: 2.0}, rel=1e-5)
    assert names["layers"].to_dict() == pytest.approx({1: 2.0, 4: 2.0}, rel=1e-5)
    held = outcomes(shown)
    assert held["mpi/rows: two ranks are at least 1.5 times as fast as one from H = 1,024 on"] == "held"
    assert held["mpi/batch: from B = 64 on, within 1.1 times the time of threads/batch"] == "held"
    assert held["a small message between two ranks takes less than 2 µs"] == "held"
    assert held["the window is the cheapest way to exchange a state of 1,024 floats"] == "held"
    slow = [row("mpi/rows", 2, 1.0, *shape) for shape in SHAPES["rows"][1]]
    store.append(slow, "mpi")
    held = outcomes(run("06", monkeypatch)[1])
    assert held["mpi/rows: two ranks are at least 1.5 times as fast as one from H = 1,024 on"] == "failed"


@pytest.mark.parametrize("ranks", [2, 4])
def test_an_allgather_in_a_window_takes_what_its_exchange_takes(ranks):
    found = {"exchange": {str(ranks): {"window": [(64, 1e-7), (8192, 2e-6)]}}}
    link = simulate.window_link(found, ranks)
    for H, seconds in found["exchange"][str(ranks)]["window"]:
        assert model_ranks.allgather(link, ranks, 4 * H) == pytest.approx(seconds)


def test_the_link_is_alpha_and_beta():
    found = simulate.link(MESSAGES)
    assert found.alpha == pytest.approx(1e-6)
    assert found.beta == pytest.approx(1e-9)
    meet = simulate.measured_exchange(MESSAGES, 2)
    assert meet(2, 64) == pytest.approx(1e-6)
    assert meet(2, 2048) == pytest.approx(4e-6)


def test_every_measurement_of_ranks_is_predicted_and_from_two_on_simulated(name):
    table = simulate.beside(results.load(name, "mpi"), name)
    assert len(table) == 3 * sum(len(shapes) for _, shapes in SHAPES.values())
    assert np.isfinite(table["predicted"]).all()
    assert set(table.loc[table["simulated"].notna(), "threads"]) == {2, 4}
    assert simulate.beside(results.load(name, "mpi"), "nobody").empty
