"""Expectations: held, failed and where, not measured; sentences from values; the record that a chapter keeps."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from rnnpar.study import expect
from rnnpar.study.expect import check, recorded, sentence

GAIN = pd.Series([0.9, 1.5, 2.5], pd.Index([64, 256, 1024], name="H"))


@pytest.mark.parametrize(
    ("bounds", "failed"),
    [
        (dict(at_least=0.9), []),
        (dict(at_least=1.5), [64]),
        (dict(above=1.5), [64, 256]),
        (dict(at_most=1.5), [1024]),
        (dict(below=1.5), [256, 1024]),
        (dict(at_least=1, at_most=2), [64, 1024]),
    ],
)
def test_bounds(bounds, failed):
    outcome = check("a claim", GAIN, **bounds)
    assert outcome.failed.index.tolist() == failed
    assert outcome.word == ("failed" if failed else "held")


def test_what_is_shown():
    def text(*args, **bounds):
        return check(*args, **bounds)._repr_mimebundle_()["text/markdown"]

    assert text("faster", GAIN, at_least=0.5) == "*Expected: faster.* **Held** (the values: 0.90 to 2.5)."
    failed = "*Expected: faster.* **Failed** at H = 64 (0.90), H = 256 (1.50), of 3 (the values: 0.90 to 2.5)."
    assert text("faster", GAIN, above=2) == failed
    assert text("faster", GAIN.iloc[:0], above=2) == "*Expected: faster.* Not measured."
    assert text("faster", {"a": np.nan}, above=2) == "*Expected: faster.* Not measured."
    assert text("one", 3.0, above=4) == "*Expected: one.* **Failed** (the value: 3.0)."
    assert text("both", {"small": True, "large": False}) == "*Expected: both.* **Failed** at large, of 2."
    many = pd.Series(0.5, pd.MultiIndex.from_product([[64, 128], range(1, 5)], names=["H", "B"]))
    assert "H = 64, B = 1 (0.50)" in text("many", many, above=1)
    assert "and 2 more, of 8" in text("many", many, above=1)


def test_numbers_need_a_bound():
    with pytest.raises(ValueError, match="no bound"):
        check("a claim", GAIN)


def test_sentences():
    assert sentence("up to {gain.max} times at {gain.at_max}", gain=GAIN) == "up to 2.5 times at H = 1,024"
    assert sentence("{gain.first}, {gain.last}, {gain.median}, {gain.count}", gain=GAIN) == "0.90, 2.5, 1.50, 3"
    assert sentence("{name} takes {time} µs", name="rows", time=12.3) == "rows takes 12 µs"
    assert sentence("{a} and {b.min}", a=1.0, b=GAIN.iloc[:0]) == "Not measured on this machine."


def test_both_show_what_they_found(monkeypatch):
    shown = []
    monkeypatch.setattr(expect, "display", shown.append)
    expect.expect("a claim", GAIN, above=0)
    expect.say("{gain.min}", gain=GAIN)
    assert shown[0].word == "held"
    assert shown[1].data == "0.90"


def test_the_record_of_executed_chapters(tmp_path):
    for name, bound in (("one", 0.5), ("other", 2)):
        bundles = [check("faster", GAIN, at_least=bound)._repr_mimebundle_(),
                   check("live", GAIN, at_least=0, here=True)._repr_mimebundle_()]  # fmt: skip
        outputs = [{"data": bundle} for bundle in bundles]
        (tmp_path / name).mkdir()
        text = json.dumps({"cells": [{"cell_type": "markdown"}, {"outputs": outputs}]})
        (tmp_path / name / "03_threads.ipynb").write_text(text)
    found = recorded(tmp_path)
    here = found[found.claim == "live"]
    assert here.machine.nunique() == 1
    assert not set(here.machine) & {"one", "other"}
    told = found[found.claim == "faster"].set_index("machine")
    assert told.outcome.to_dict() == {"one": "held", "other": "failed"}
    assert told.failed.to_dict() == {"one": 0, "other": 2}
    assert set(found.chapter) == {"03"}


def test_what_another_machine_measured_counts_for_that_one(tmp_path, monkeypatch):
    """Of a-machine there is a sweep and no in_time: its chapter 07 shows another machine's."""
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    for name, experiment in (("a-machine", "sweep"), ("b-machine", "in_time")):
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / f"{experiment}.jsonl").write_text("")
    (tmp_path / "a-machine").mkdir()
    for chapter, by in (("03", ""), ("07", ""), ("08", "b-machine")):
        bundle = check("faster", GAIN, at_least=0, by=by)._repr_mimebundle_()
        text = json.dumps({"cells": [{"outputs": [{"data": bundle}]}]})
        (tmp_path / "a-machine" / f"{chapter}_a_chapter.ipynb").write_text(text)
    told = recorded(tmp_path).set_index("chapter").machine.to_dict()
    assert told == {"03": "a-machine", "07": "b-machine", "08": "b-machine"}


def test_nothing_recorded(tmp_path):
    assert recorded(tmp_path).empty
