"""Chapter 07 on a small stored set: its medians, what it takes from messages, and which expectations fail where."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rnnpar.model import Model
from rnnpar.study import results, store
from rnnpar.study.expect import Outcome
from tests.chapters import figures, run
from tests.study.test_results import row
from tests.test_model import simple_peaks

SMALL = dict(H=32, I=16, O=10, T=1000)
SQUARE = dict(H=32, I=32, O=32)
PARTS = "inputs=1e-05 solve=3e-03 check=1e-03 outputs=1e-05"


def measured(method, seconds=1e-3, iterations=0, exponent=-0.5, refused=False, **shape):
    """A measurement in a list, with the message of a call that was answered, or refused."""
    told = f"iterations={iterations} exponent={exponent} {PARTS}" if iterations else ""
    if refused:
        told = (f"NotConverged: it came to a residual of 4.5e-06 after {iterations} iterations, but not to an answer: "
                f"errors may have grown to 2 (the estimated largest Lyapunov exponent is {exponent} a step); "
                "a shorter sequence would do")  # fmt: skip
    return [replace(one, message=told) for one in row(method, [seconds], "error" if refused else "ok", **shape)]


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """What the chapter's cells leave, its expectations by their claims, and its pictures."""
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path))
    monkeypatch.setattr(results, "cost_model", lambda name: Model(simple_peaks(), 32))
    rows = [
        *measured("in_time/jacobi", 1e-3, 20, -0.7, workload="radius-0.5", **SMALL),
        *measured("in_time/quasi_deer", 1e-3, 10, -0.7, workload="radius-0.5", **SMALL),
        *measured("in_time/deer", 1e-3, 3, -0.7, workload="radius-0.5", **SMALL),
        *measured("in_time/jacobi", 1e-3, 30, -0.2, workload="radius-0.9", **SMALL),
        *measured("in_time/quasi_deer", 1e-3, 60, -0.2, workload="radius-0.9", **SMALL),
        *measured("in_time/deer", 1e-3, 9, -0.2, workload="radius-0.9", **SMALL),
        *measured("in_time/deer", None, 84, -0.05, refused=True, workload="radius-1.5", **SMALL),
        *measured("in_time/segments", None, 6, 0.1, refused=True, workload="radius-2.0", **SMALL),
        *measured("serial/compiled", 1e-3, T=64, **SQUARE),
        *measured("in_time/segments", 2e-3, 2, T=64, **SQUARE),
        *measured("serial/compiled", 1e-3, T=256, **SQUARE),
        *measured("threads/wavefront", 5e-4, threads=2, T=256, **SQUARE),
        *measured("in_time/segments", 25e-5, 2, threads=1, T=256, **SQUARE),
        *measured("in_time/segments", 25e-5, 3, threads=2, T=256, **SQUARE),
        *measured("serial/compiled", 1e-3, workload="kjv-h128", H=128, I=64, O=64, T=1000),
        *measured("in_time/deer", 2e-2, 17, -0.2, workload="kjv-h128", H=128, I=64, O=64, T=1000),
        *(one for name, seconds in (("scan/dense", 4e-3), ("scan/diagonal", 6e-3)) for threads in (1, 2)
          for one in measured(name, 8e-3 if threads == 1 else seconds, workload="scan", threads=threads)),
    ]  # fmt: skip
    store.append(rows, "in_time", "a-machine")
    names, shown = run("07", monkeypatch, machine="a-machine", T_many=256)
    return names, {one.claim: one for one in shown if isinstance(one, Outcome)}, figures(shown)


def test_expectations_fail_where_they_are_broken(chapter):
    failed = {claim: list(one.failed.index) for claim, one in chapter[1].items() if one.word == "failed"}
    assert failed["deer needs at most 8 iterations below an exponent of -0.1"] == [-0.2]
    assert failed["everything is solved below an exponent of 0"] == [(-0.05, "in_time/deer")]
    assert failed["quasi_deer needs fewer iterations than jacobi"] == ["radius-0.9"]
    assert failed["trained networks need at most 8 iterations of deer"] == ["kjv-h128"]
    assert failed["every method in time is behind the fastest method along the chain, everywhere"] == [(32, 256)]
    assert failed["the same scan, cut alike, reaches at least 80% of linear"] == [("scan/diagonal", 2)]
    assert chapter[1]["everything is refused at radius 2"].word == "held"


def test_numbers_are_those_of_the_set(chapter):
    names = chapter[0]
    refused = names["runs"][names["runs"].status == "error"]
    assert sorted(zip(refused.iterations, refused.exponent, strict=True)) == [(6, 0.1), (84, -0.05)]
    assert names["read"]["times as long"].tolist() == [20]
    assert names["gains"].loc[(32, 256), "in_time/segments"] == 2
    assert names["share"].loc["scan/dense", 2] == 1
    assert names["chain"] == pytest.approx((1e-3 - 2e-5) / 256)
    assert names["predicted"].loc[1, "serial/compiled"] == pytest.approx(1e-3 - 2e-5)
    assert names["solving"].us.to_numpy() == pytest.approx(1e6 * 4e-3 / 256)


def test_processors_from_which_on_it_pays(chapter):
    names = chapter[0]
    wide = names["predicted"]
    chain = wide[["serial/compiled", "threads/rows"]].min(axis=1)
    for method, p in names["first"].items():
        assert (wide.loc[wide.index < p, method] >= chain[chain.index < p]).all()
        assert np.isinf(p) or wide.loc[p, method] < chain[p]
    assert names["first"]["in_time/segments"] == 2  # four passes of 1,024 ns are more than a step of the chain
    assert len(chapter[2]) == 7
