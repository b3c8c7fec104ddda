"""The table of results: medians and intervals with known answers, gaps, picking, speed-ups, predictions."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from rnnpar import machine
from rnnpar.study import results, store

REFERENCE = results.REFERENCE


def row(method: str, seconds: list[float], status: str = "ok", threads: int = 1, **sizes) -> list[store.Measurement]:
    """A measurement in a list: the first call of half a second, and these samples."""
    shape = dict(workload="random", H=8, I=8, O=8, T=10, B=1, layers=1) | sizes
    point = f"{method}{threads}{sorted(shape.items())}".replace(",", ";")
    timed = status in ("ok", "inaccurate")
    return [store.Measurement(
        point=point, method=method, threads=threads, first_call=0.5 if timed else None,
        seconds={"steady": seconds} if timed else {}, error=1e-7, status=status, message="", source="abc",
        revision="0", date="2026-01-31T12:00:00", **shape)]  # fmt: skip


@pytest.fixture
def runs(tmp_path, monkeypatch) -> pd.DataFrame:
    """Two methods at three H, one of them not everywhere, stored and loaded."""
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    for H, naive, rows in ((8, [4e-3, 5e-3, 6e-3], [2e-3]), (16, [8e-3], []), (32, [9e-3], [1e-3, 3e-3])):
        square = dict(H=H, I=H, O=H)
        store.append(row("serial/naive", naive, **square), "sweep", "a-machine")
        store.append(row("threads/rows", rows, "ok" if rows else "oom", threads=2, **square), "sweep", "a-machine")
    store.append(row("threads/rows", [4e-3], threads=1), "sweep", "a-machine")
    store.append(row("serial/naive", [7.0], workload="origin-large", O=800), "sweep", "a-machine")
    store.append(row("serial/naive", [1e-9], "inaccurate", T=20), "sweep", "a-machine")
    return results.load("a-machine")


def test_a_row_is_a_measurement_with_its_median_and_interval(runs):
    assert list(runs.columns) == results.COLUMNS
    first = runs[(runs.method == "serial/naive") & (runs.H == 8) & (runs["T"] == 10) & (runs.O == 8)].squeeze()
    assert (first.seconds, first.us_per_step, first.first_call) == (5e-3, 500, 0.5)
    assert 4e-3 <= first.seconds_low < 5e-3 < first.seconds_high <= 6e-3
    assert list(first.samples) == [4e-3, 5e-3, 6e-3]


def test_a_point_without_a_time_keeps_its_row_and_its_reason(runs):
    gaps = runs[runs.seconds.isna()].set_index("status")
    assert set(gaps.index) == {"oom", "inaccurate"}  # the inaccurate one's time is no time
    assert gaps.loc["oom", "H"] == 16


def test_pick(runs):
    assert results.pick(runs, T=10).H.tolist() == [8, 8, 16, 16, 32, 32]  # of threads/rows, those with most threads
    assert results.pick(runs, "threads", threads="each", H=8).threads.tolist() == [1, 2]
    assert results.pick(runs, ["threads/rows"], threads=1).seconds.tolist() == [4e-3]
    assert results.pick(runs, "serial/naive", workload="origin-large").seconds.tolist() == [7.0]
    assert results.pick(runs, layers=2).empty
    with pytest.raises(ValueError, match="no column 'hidden'"):
        results.pick(runs, hidden=8)


def test_speed_up_over_a_method_and_over_one_thread(runs):
    gain = results.series(results.speed_up(results.pick(runs, T=10), over="serial/naive"), "H", "speed_up")
    assert gain.to_dict() == {8: 2.5, 32: 4.5}
    table = results.speed_up(results.pick(runs, T=10, H=8), over="serial/naive").squeeze()
    assert 2.0 <= table.speed_up_low < 2.5 < table.speed_up_high <= 3.0
    scaled = results.speed_up(results.pick(runs, "threads", threads="each"), over={"threads": 1})
    assert scaled.speed_up.tolist() == [2.0]
    assert results.speed_up(runs, over="no/method").empty


def test_numbers_that_messages_name(runs):
    told = runs.iloc[:2].assign(message=["iterations=4 exponent=-0.62 error=2e-07", "exponent=inf"])
    found = results.numbers(told)
    assert found.exponent.tolist() == [-0.62, np.inf]
    assert found.iterations.iloc[0] == 4
    assert np.isnan(found.iterations.iloc[1])
    assert found.error.tolist() == [1e-7, 1e-7]  # the column's own


def test_predictions_are_rows_from_the_machines_own_peaks():
    one = results.pick(results.load(REFERENCE), "serial/compiled", T=128, B=1)
    both = results.with_predictions(one)
    assert both.source.value_counts().to_dict() == {"measured": len(one), "predicted": len(one)}
    off = results.beside(one)
    assert ((off.predicted / off.seconds - 1).abs() < 0.5).all()


def test_without_peaks_nothing_is_predicted(runs):
    assert results.predicted(runs).empty
    assert results.cost_model("a-machine") is None


def test_damaged_peaks_are_an_error(runs):
    (store.results_folder("a-machine") / "peaks.json").write_text("{")
    with pytest.raises(store.ResultsError, match="damaged"):
        results.peaks("a-machine")


def test_whose_results_are_shown(runs, monkeypatch):
    assert results.where("a-machine") == results.where() == "a-machine"  # the only one that has some
    monkeypatch.setenv("RNNPAR_MACHINE", "new-machine")
    assert "`new-machine` has not measured this" in results.banner(results.load()).data
    assert results.where(experiment="mpi") == "new-machine"
    assert results.load(experiment="mpi").dtypes.equals(results.EMPTY.dtypes)
    with pytest.raises(store.ResultsError, match="did you mean a-machine"):
        results.load("a-machin")


def test_the_banner_says_where_and_when(runs, monkeypatch):
    monkeypatch.setenv("RNNPAR_MACHINE", "a-machine")
    store.save_machine({"cpu": "a processor", "cores_allowed": 2, "gpu": {}}, "a-machine")
    said = results.banner(runs, here="a race").data
    assert "measured on `a-machine` (a processor, 2 cores) on 2026-01-31, 9 measurements of 2 methods" in said
    assert f"on `{machine.name()}`: a race." in said
    assert "has not measured" not in said


def test_every_experiment_of_every_stored_machine_has_the_same_columns():
    for name in store.machines():
        for file in store.results_folder(name).glob("*.jsonl"):
            assert list(results.load(name, file.stem).columns) == results.COLUMNS


def test_methods_timed_here_and_now():
    table = results.live(["serial/naive", "threads/rows"], H=8, T=4)
    assert table.method.tolist() == ["serial/naive", "threads/rows"]
    assert (table.error < 1e-5).all()
    assert (table.seconds > 0).all()
    assert table.machine.unique().tolist() == [machine.name()]


def test_caches_come_from_the_machines_description(runs):
    store.save_machine({"caches": {"L2": 1024}}, "a-machine")
    assert results.caches("a-machine") == {"L2": 1024}
    assert results.caches("elsewhere") == {}
    assert json.loads((store.results_folder("a-machine") / "machine.json").read_text())
