"""Chapter 07's experiments in small, its figures and sentences: on results, on some of them, and on none."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from rnnpar import machine
from rnnpar.model import Model
from rnnpar.study import in_time, measure, plots, store, tell
from rnnpar.study.in_time import Point
from tests.test_model import simple_peaks

EMPTY = pd.DataFrame(columns=["machine", *store.COLUMNS])


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """Real rows of a few small points, one of them refused, stored and read back as the chapter reads them."""
    alone, cores = {"threads": 1}, {"threads": machine.cores_allowed()}
    ours = [(name, alone) for name in in_time.OURS]  # where tests run side by side, threads that meet wait for long
    both = [*ours, ("in_time/segments", cores), ("in_time/deer", cores)]
    chains = [("serial/compiled", {}), ("threads/rows", cores)]
    todo = [(Point(f"radius-{radius}", 32, 16, 10, 300, 1), ours) for radius in (0.5, 0.9, 3.0)]
    todo += [(Point("random", 32, 32, 32, T, 1), chains + methods) for T, methods in ((64, ours), (256, both))]
    todo += [(Point("kjv-h128", 128, 64, 64, 100, 1), chains + ours[:2])]
    with pytest.MonkeyPatch.context() as patch:
        real = in_time.corpus.data_folder()
        folder = tmp_path_factory.mktemp("data")
        for name in ("models", "text"):
            (folder / name).symlink_to(real / name)
        patch.setenv("RNNPAR_DATA", str(folder))
        patch.setattr(measure, "cores", lambda: SimpleNamespace(whole=lambda: True))
        for point, methods in todo:
            store.append(in_time.measure_case(point, methods, 2, np.random.default_rng(0)), in_time.EXPERIMENT)
        store.append(in_time.measure_scans(2, T=400), in_time.EXPERIMENT)
        name, found = in_time.results()
    assert name == machine.name()
    return found


def test_every_row_was_checked_and_says_how_it_went(frame):
    assert set(frame["status"]) == {"ok", "error"}
    lost = frame[frame["status"] == "error"]
    assert set(lost["workload"]) == {"radius-3.0"}
    assert (lost["exponent"] > 0).all()
    ours = frame[(frame["status"] == "ok") & frame["method"].isin(in_time.OURS)]
    assert (ours["error"] <= measure.BOUND).all()
    assert (ours["iterations"] >= 1).all()
    assert (ours["exponent"] < 0).all()


def test_a_message_is_read_back():
    info = dict(iterations=4, evaluations=5.0, exponent=-0.25, error=2e-7, window=64, bytes=1000,
                seconds=dict(solve=1e-3, check=2e-4))  # fmt: skip
    told = in_time.told(in_time.says(info))
    assert told["iterations"] == 4
    assert told["exponent"] == -0.25
    assert told["error"] == 2e-7
    assert told["solve"] == 1e-3
    refused = "NotConverged: deer did not converge after 100 iterations, residual 2: errors may have grown to 10 (the "
    told = in_time.told(refused + "estimated largest Lyapunov exponent is 0.066 a step); a shorter sequence would do")
    assert told == {"iterations": 100, "exponent": 0.066}
    assert in_time.says({}) == ""


FIGURES = {
    "iterations": in_time.iterations_figure,
    "by length": in_time.iterations_by_length,
    "T": lambda frame: in_time.time_figure(frame, "T"),
    "H": lambda frame: in_time.time_figure(frame, "H"),
    "processors": lambda frame: in_time.processors_figure(Model(simple_peaks(), 32), frame, "a-machine", T=256),
    "no model": lambda frame: in_time.processors_figure(None, frame, "a-machine"),
}
SENTENCES = {
    "convergence": in_time.convergence,
    "trained": in_time.memory_of_trained,
    "pays": in_time.pays,
    "scan": in_time.scan_efficiency,
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_draw_what_there_is(frame, name, tmp_path, monkeypatch):
    monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path))
    for rows in (frame, frame[frame["method"] == "in_time/jacobi"], EMPTY):
        assert plots.save(FIGURES[name](rows), "drawn", "a-machine").stat().st_size > 2000


def test_the_memory_figure_needs_no_results(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path))
    assert plots.save(in_time.memory_figure(), "drawn", "a-machine").exists()


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences_are_computed_from_what_there_is(frame, name):
    assert SENTENCES[name](EMPTY).data == f"**{tell.NOT_MEASURED}.**"
    text = SENTENCES[name](frame).data
    assert text.startswith("**")
    assert "nan" not in text


def test_the_verdict_counts_what_was_refused(frame):
    text = in_time.convergence(frame).data
    assert "4 of 12 were refused" in text
    assert "all at an exponent above 0" in text


def test_a_faster_chain_turns_the_verdict(frame):
    """The times are set here, not measured: what a loaded machine took for a call of microseconds is no verdict."""
    ours = frame["method"].isin(in_time.OURS)
    slow = frame.copy()
    slow.loc[ours, "seconds"], slow.loc[~ours, "seconds"] = 1e-2, 1e-3
    assert "it does not pay" in in_time.pays(slow).data
    slow.loc[~ours, "seconds"] = 1e-1
    text = in_time.pays(slow).data
    assert "it pays at T = 64, T = 256" in text
    assert "It failed" in text


def test_trained_networks_stand_in_a_table(frame):
    text = in_time.trained(frame).data
    assert "| kjv-h128 | `in_time/segments` |" in text


def test_predictions_on_processors():
    """Where meeting is free, in time scales with p until a segment is as short as the memory; the chain does not."""
    cost = Model(simple_peaks(barrier=1e-9), 32)
    on = lambda method, p: in_time.on_processors(cost, method, p, 32, 65536)  # noqa: E731
    for method in in_time.OURS:
        assert on(method, 64) < on(method, 1) / 32
    assert on("serial/compiled", 1) == on("serial/compiled", 4096)
    assert on("in_time/segments", 1) > on("serial/compiled", 1)
    p = in_time.crossover(cost, "in_time/deer", 32, 65536)
    assert p > 1
    assert on("in_time/deer", p) < on("serial/compiled", p) <= on("in_time/deer", p // 2)
    assert in_time.on_h100("in_time/deer", 32, 65536) < in_time.on_h100("serial/compiled", 32, 65536)


def test_every_case_is_within_what_may_be_tried():
    for quick in (False, True):
        todo = in_time.cases(quick)
        assert len({point for point, _ in todo}) == len(todo)
        for point, methods in todo:
            names = [(name, tuple(options.items())) for name, options in methods]
            assert len(set(names)) == len(names)
            assert point.H <= in_time.LARGEST_DEER or "in_time/deer" not in dict(methods)
