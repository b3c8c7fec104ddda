"""Chapter 08: the model, auto's choices, the peers and the check of all expectations, on times with known answers."""

from __future__ import annotations

import json

import pytest

from rnnpar import model, peaks
from rnnpar.study import expect, results, store
from tests.chapters import outcomes, run
from tests.study.test_results import row
from tests.test_model import simple_peaks

SIZES = (dict(H=64, B=1), dict(H=256, B=1), dict(H=256, B=64))
CLAIMS = ["half of the predictions are within 25% of the measurement, for each method",
          "auto is within 10% of the best method everywhere",
          "auto is 1.6 times as fast as the best peer in the geometric mean",
          "auto is ahead of the best peer, by 5% or more, at every shape"]  # fmt: skip


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """Run the chapter on times that are what the model predicts, but for factors by method."""
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr(model, "TIE", 1.0)  # the one with the least predicted time, however near the next
    monkeypatch.setattr(expect, "RENDERED", tmp_path / "rendered")  # no chapter has been executed there
    (tmp_path / "results" / "a-machine").mkdir(parents=True)
    found = simple_peaks() | {"version": peaks.VERSION, "measured": "2026-01-31", "counter_barrier": {"2": 5e-7}}
    (tmp_path / "results" / "a-machine" / "peaks.json").write_text(json.dumps(found))

    def chapter(**off: float):
        costs = results.cost_model("a-machine")
        for size in SIZES:
            shape = dict(I=size["H"], O=size["H"], T=100, layers=1) | size
            for name in model.AUTO:
                seconds = costs.predict(name, model.Work(**shape), 2) * off.get(name.split("/")[1], 1)
                threads = 1 if name.startswith("serial") else 2
                store.append(row(name, [seconds], threads=threads, **shape), "sweep", "a-machine")
        return run("08", monkeypatch, machine="a-machine")

    return chapter


def race(times: dict[str, tuple[float, float]]) -> None:
    """Store times of auto and of peers at two shapes."""
    for name, both in times.items():
        for H, seconds in zip((64, 512), both, strict=True):
            store.append(row(name, [seconds], threads=2, H=H, I=H, O=H), "peers", "a-machine")


def test_what_is_as_predicted_is_chosen_right(chapter):
    names, shown = chapter()
    assert list(outcomes(shown).items()) == list(zip(CLAIMS, ("held", "held", *["not measured"] * 2), strict=True))
    assert names["points"].off.tolist() == pytest.approx([1] * 12, rel=1e-5)
    assert len(names["over"]) == 3
    assert names["over"].auto.tolist() == pytest.approx([1] * 3, rel=1e-5)


def test_a_method_that_is_slower_than_predicted_is_told(chapter):
    names, shown = chapter(batch=3)
    assert list(outcomes(shown).values())[:2] == ["failed", "failed"]
    assert names["medians"]["threads/batch"] == pytest.approx(2 / 3)  # predicted is a third of measured
    wrong = names["over"].query("auto > 1.1")
    assert set(names["picks"][wrong.index]) == {"threads/batch"}
    assert "H 256 T 100 B 64" in wrong.index


def test_the_best_peer_at_each_shape(chapter):
    race({"auto": (1e-3, 1e-3), "peers/torch": (2e-3, 1.02e-3), "peers/jax": (4e-3, 9e-3)})
    names, shown = chapter()
    assert names["nearest"].over.to_dict() == {"H 512 T 10 B 1": pytest.approx(1.02), "H 64 T 10 B 1": pytest.approx(2)}
    assert names["mean"] == pytest.approx((1.02 * 2) ** 0.5)
    assert list(outcomes(shown).values())[2:] == ["failed", "failed"]
    assert list(names["close"].index) == ["H 512 T 10 B 1"]
    assert names["table"].loc["geometric mean", ["jax", "torch"]].tolist() == ["6.0×", "1.43×"]


def test_every_expectation_by_machine(chapter, tmp_path):
    for name, bound in (("one", 1), ("other", 3)):
        outcome = [expect.check("twice", 2, at_least=bound), expect.check("always", 2, at_least=0)]
        cells = [{"outputs": [{"data": one._repr_mimebundle_()}]} for one in outcome]
        folder = tmp_path / "rendered" / name
        folder.mkdir(parents=True)
        (folder / "03_threads.ipynb").write_text(json.dumps({"cells": cells}))
    names, _ = chapter()
    assert names["held"].loc["03", "twice"].to_dict() == {"one": "held", "other": "failed"}
    assert {what: kind.sum() for what, kind in names["counts"].items()} == {
        "held on every machine that measured it": 1, "failed on every one": 0,
        "held on some and failed on others": 1, "measured nowhere": 0}  # fmt: skip
