"""Chapter 06: the simulation against the formula, and verdicts that the data makes."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from rnnpar import machine, model_ranks, peaks
from rnnpar.model import Model
from rnnpar.model_ranks import Link
from rnnpar.study import measure, ranks, simulate, store
from rnnpar.work import Work
from tests.test_model import simple_peaks

MODEL = Model(simple_peaks(), 32)
WORK = Work(T=96, B=4, I=64, H=1024, O=64)
FREE = Link(0.0, 0.0)


# --- Measuring messages ------------------------------------------------------------------------------------------


def probes(monkeypatch) -> list[float]:
    """What messages.exchange costs in each probe from now on: 1, 2, 3 ... seconds."""
    asked: list[float] = []
    monkeypatch.setattr(ranks, "run_probe", lambda n: asked.append(len(asked) + 1.0) or {"exchange": [[64, asked[-1]]]})
    return asked


def test_a_probe_counts_where_the_cores_were_whole_before_and_after(monkeypatch, cores):
    asked = probes(monkeypatch)
    cores.answers += [False, True, True, False, False, False]  # a no before is not asked again after
    assert ranks.typical_probe(2) == {"exchange": [[64, 6.0]]}, "the median of the 2nd, 6th and 7th"
    assert len(asked) == 7


def test_all_probes_count_where_the_cores_never_were(monkeypatch, cores):
    asked = probes(monkeypatch)
    cores.answers += [False] * 100
    assert ranks.typical_probe(2) == {"exchange": [[64, (ranks.TRIES + 1) / 2]]}
    assert len(asked) == ranks.TRIES


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


def row(method: str, count: int, seconds: float, H: int, T: int, B: int, layers: int) -> store.Row:
    point = measure.Point("random", H, H, H, T, B, layers)
    return store.Row(measure.key(point, method, count), "random", method, H, H, H, T, B, layers, count, 0, 1, seconds,
                     "steady", 1e-7, "ok", "", "x", "r", "2026-01-01T00:00:00+00:00")  # fmt: skip


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Results of a machine on which two ranks halve every time, and threads take 0.6 of one rank's."""
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    name, rows = machine.name(), []
    for strategy, sizes in ranks.LINES.items():
        for H, T, B, layers in sizes:
            seconds = T * layers * B * H * H * 1e-10
            shape = H, T, B, layers
            rows += [row(f"mpi/{strategy}", n, seconds * share, *shape) for n, share in HALVED.items()]
            rows.append(row(ranks.TWINS[f"mpi/{strategy}"], 2, 0.6 * seconds, *shape))
    store.append(rows, ranks.EXPERIMENT)
    folder = store.results_folder(name)
    (folder / ranks.FILE).write_text(json.dumps(MESSAGES))
    (folder / "peaks.json").write_text(json.dumps({**simple_peaks(), "version": peaks.VERSION}))
    ranks.scaling.cache_clear()
    ranks.shares.cache_clear()
    yield name
    ranks.scaling.cache_clear()
    ranks.shares.cache_clear()


def test_verdicts_say_what_the_data_says(measured):
    name, frame = ranks.results(measured)
    assert name == measured
    assert "2 times as fast as on one" in ranks.verdict(frame, "rows").data.replace("2.0 ", "2 ")
    for strategy in ranks.LINES:
        assert "It held" in ranks.verdict(frame, strategy).data
        assert "failed" not in ranks.verdict(frame, strategy).data
    said = ranks.messages_verdict(name).data
    assert "takes 1 µs and 1 GB/s beyond" in said
    assert "1 million messages" in said
    assert said.count("It held") == 2
    slow = frame.assign(seconds=frame["seconds"].where(frame["threads"] != 2, 3 * frame["seconds"]))
    assert "It failed" in ranks.verdict(slow, "rows").data


@pytest.mark.parametrize("ranks_", [2, 4])
def test_an_allgather_in_a_window_takes_what_its_exchange_takes(ranks_):
    found = {"exchange": {str(ranks_): {"window": [(64, 1e-7), (8192, 2e-6)]}}}
    link = ranks.window_link(found, ranks_)
    for H, seconds in found["exchange"][str(ranks_)]["window"]:
        assert model_ranks.allgather(link, ranks_, 4 * H) == pytest.approx(seconds)


def test_the_link_is_alpha_and_beta():
    found = ranks.link(MESSAGES)
    assert found.alpha == pytest.approx(1e-6)
    assert found.beta == pytest.approx(1e-9)
    meet = ranks.exchange(MESSAGES, "window", 2)
    assert meet(2, 64) == pytest.approx(1e-6)
    assert meet(2, 2048) == pytest.approx(4e-6)


def test_predictions_and_the_check_have_a_row_a_point(measured):
    name, frame = ranks.results(measured)
    table = ranks.predictions(frame, name)
    assert len(table) == 3 * sum(map(len, ranks.LINES.values()))
    assert np.isfinite(table["predicted"]).all()
    crossings = ranks.crossings(frame, name)
    assert list(crossings["at"]) == ["layers = 1"]  # where both happen to have been measured
    both = pd.DataFrame([("mpi/batch", f"B = {B}", m, p) for B, m, p in ((1, 0.5, 0.9), (4, 1.1, 0.8), (16, 2, 0.7))],
                        columns=["strategy", "at", "measured", "predicted"])  # fmt: skip
    said = ranks.crossing_verdict(both).data
    assert "mpi/batch is ahead of mpi/rows from B = 4 on (the model says nowhere for good)" in said
    assert "It failed at mpi/batch, B = 16 (2" in said
    check = ranks.simulation_check(frame, name)
    assert set(check["ranks"]) == {2, 4}
    for said in (ranks.model_verdict(table), ranks.simulation_verdict(check), ranks.scale_verdict(name),
                 ranks.ways_verdict(name)):  # fmt: skip
        assert said.data.startswith("**")


def test_figures_are_drawn_with_and_without_results(measured):
    name, frame = ranks.results(measured)
    for found, of, rows in ((ranks.messages(name), name, frame), ({}, "nobody", frame.iloc[:0])):
        for figure in (ranks.message_costs(found, of), ranks.strategies(rows), ranks.to_1024(of), ranks.three_ways(of)):
            assert figure.axes


def test_without_results_everything_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    name, frame = ranks.results()
    assert name == machine.name()
    assert frame.empty
    table = ranks.predictions(frame, "nobody")
    for said in (ranks.messages_verdict("nobody"), ranks.verdict(frame, "batch"), ranks.model_verdict(table),
                 ranks.simulation_verdict(ranks.simulation_check(frame, "nobody")), ranks.scale_verdict("nobody"),
                 ranks.ways_verdict("nobody")):  # fmt: skip
        assert "No verdict" in said.data


def test_the_plan_measures_every_strategy_beside_its_twin():
    planned = ranks.plan()
    methods = {name for cases in planned.values() for name, _ in cases}
    assert {*ranks.TWINS, *ranks.TWINS.values(), "serial/compiled"} == methods
    assert all(len(cases) == len({str(case) for case in cases}) for cases in planned.values())
    assert len(ranks.plan(quick=True)) < len(planned)
    assert {point.H for point in ranks.plan("H=1024")} == {1024}
    assert measure.workers({"ranks": 2, "threads": 3}) == 6


def test_the_command_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(ranks.registry, "_importable", lambda module: False)
    assert ranks.main([]) == 1
    assert "pip install mpi4py mpich" in capsys.readouterr().err
