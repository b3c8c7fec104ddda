"""Verdicts say what the data says: on a full sweep, on one with holes, and on nothing."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from IPython.display import Markdown

from rnnpar import machine, registry
from rnnpar.study import measure, plots, store, tell
from tests.study.test_plots import COLUMNS, bits_table, failed, holes, synthetic

VERDICTS: dict[str, tuple[Callable[[pd.DataFrame], Markdown], str]] = {
    "glance": (tell.glance, "serial/naive"),
    "hoisting": (tell.hoisting, "serial/naive"),
    "hoisting the origin": (tell.hoisting_the_origin, "serial/naive"),
    "compiling": (tell.compiling, "serial/hoisted"),
    "lengths": (tell.lengths, "serial/compiled"),
    "batches": (tell.batches, "serial/compiled"),
    "timestep": (tell.timestep, "serial/compiled"),
    "rows": (tell.rows, "serial/compiled"),
    "batch": (tell.batch, "serial/compiled"),
    "wavefront": (tell.wavefront, "serial/compiled"),
    "scaling": (tell.scaling, "one of the same method"),
    "origin": (tell.origin, "serial/naive"),
}


def bold(said: Markdown) -> str:
    """The verdict; every one is one bold sentence at the beginning."""
    (sentence,) = re.findall(r"\*\*(.+?)\*\*", said.data)
    assert said.data.startswith(f"**{sentence}**")
    assert sentence.endswith(".")
    return sentence


@pytest.mark.parametrize("name", VERDICTS)
def test_a_verdict_names_its_machine_and_baseline(name: str) -> None:
    say, baseline = VERDICTS[name]
    sentence = bold(say(synthetic()))
    assert "On a-machine, " in sentence
    assert baseline in sentence
    assert "nan" not in sentence
    assert not re.search(r"\d e[-+]\d|0\.000\b", sentence)


@pytest.mark.parametrize("name", VERDICTS)
@pytest.mark.parametrize("frame", [pd.DataFrame(columns=COLUMNS), synthetic(1).iloc[:2]], ids=["empty", "one point"])
def test_without_data_there_is_no_verdict(name: str, frame: pd.DataFrame) -> None:
    said = VERDICTS[name][0](frame)
    assert bold(said) == f"{tell.NOT_MEASURED}."
    assert "It held" not in said.data


@pytest.mark.parametrize("name", VERDICTS)
def test_a_sweep_with_holes_still_has_verdicts_or_says_that_it_has_none(name: str) -> None:
    said = VERDICTS[name][0](holes())
    assert bold(said)
    if name in ("hoisting", "timestep"):
        assert tell.NOT_MEASURED in said.data


def test_the_numbers_of_a_verdict_are_those_of_the_data() -> None:
    frame = synthetic()
    hoisted = frame["method"] == "serial/hoisted"
    twice = frame.assign(seconds=frame["seconds"].mask(hoisted, _like(frame, "serial/naive", hoisted) / 2))
    assert "makes serial/hoisted 2.0 times as fast as serial/naive at H = 16 and 2.0 times at H = 2,048" in bold(
        tell.hoisting(twice)
    )


def _like(frame: pd.DataFrame, method: str, where: pd.Series) -> pd.Series:
    """The seconds of the same points and samples by another method, on the rows chosen."""
    by = ["workload", "H", "I", "O", "T", "B", "layers", "kind", "sample"]
    other = frame[frame["method"] == method].set_index(by)["seconds"]
    keys = pd.MultiIndex.from_frame(frame.loc[where, by])
    return pd.Series(other.loc[keys].to_numpy(), index=frame.index[where]).reindex(frame.index)


def test_a_prediction_that_failed_says_where() -> None:
    frame = synthetic()
    slow = (frame["method"] == "serial/hoisted") & (frame["H"] == 64) & (frame["kind"] == "steady")
    said = tell.hoisting(frame.assign(seconds=frame["seconds"].mask(slow, frame["seconds"] * 10)))
    assert "It failed at H = 64 (0." in said.data
    assert "H = 64" not in tell.hoisting(frame).data


def test_what_is_not_ok_takes_no_part() -> None:
    frame = synthetic()
    frame = failed(frame, frame["method"] == "threads/rows", "inaccurate", seconds=1e-12)
    assert tell.NOT_MEASURED in tell.rows(frame).data
    assert not [name for name, (say, _) in VERDICTS.items() if "threads/rows" in bold(say(frame))]


def test_bits_are_held_against_the_oracle() -> None:
    table = bits_table(synthetic(1))
    said = tell.same_bits(table)
    assert "0.1 millionths of a bit" in bold(said)
    assert "It held" in said.data
    wrong = table.assign(bits=table["bits"] + 1e-3 * (table["method"] == "threads/batch"))
    assert "It failed at threads/batch on kjv-h128" in tell.same_bits(wrong).data
    assert tell.NOT_MEASURED in tell.same_bits(table.iloc[:0]).data


def test_bits_of_every_method_on_the_trained_networks() -> None:
    table = tell.bits(batch=2, steps=40)
    assert set(table["method"]) == {method.name for method in registry.methods()}
    ran = table[table["status"] == "ok"]
    assert {method.name for method in registry.methods() if method.available} == set(ran["method"])
    assert (ran["bits"] - ran["oracle"]).abs().max() < tell.BITS


def test_a_live_run_has_times_and_errors() -> None:
    table = tell.live(["serial/naive", "threads/rows"], H=16, T=4)
    assert list(table.index) == ["serial/naive", "threads/rows"]
    assert (table[tell.TIME].astype(float) > 0).all()
    assert (table[tell.ERROR].astype(float) < 1e6 * measure.BOUND).all()
    assert table["over serial/naive"].iloc[0] == "1.00×"


def test_amdahls_law() -> None:
    assert "| I = O = H | 33% | 1.50 | 2.0 | 2.4 | 2.9 | 3.0 |" in tell.amdahl().data


def test_the_floor_is_the_largest_bound() -> None:
    parts = tell.floor_parts(B=1, sizes=[16, 256, 4096])
    largest = [max(parts, key=lambda name: parts[name][i]) for i in range(3)]
    assert largest == ["latency", "bytes of W", "bytes of W"]
    assert tell.floor_parts(B=16, sizes=[256])["arithmetic"] > tell.floor_parts(B=16, sizes=[256])["bytes of W"]


def test_tables_are_tables() -> None:
    for table in (tell.methods_table(), tell.machine_table(), tell.amdahl()):
        lines = table.data.split("\n")
        assert len({line.count("|") for line in lines}) == 1
        assert len(lines) > 3
    assert machine.name() in tell.machine_table().data


def test_results_of_this_machine_of_another_and_of_none(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    name, frame = tell.results()
    assert (name, len(frame)) == (machine.name(), 0)
    assert plots.step_time(frame, "H").axes
    rows = [store.Row(**{column: row[column] for column in store.COLUMNS} | dict(sample=0, samples=1))
            for _, row in synthetic(1).iloc[1::2].head(3).iterrows()]  # fmt: skip
    store.append(rows, tell.EXPERIMENT)
    name, frame = tell.results()
    assert (name, len(frame)) == (machine.name(), 3)
    (tmp_path / "results" / machine.name()).rename(tmp_path / "results" / "another")
    name, frame = tell.results()
    assert (name, len(frame)) == ("another", 3)
    with pytest.raises(store.ResultsError, match="no results"):
        tell.results("nowhere")


def test_predictions_need_peaks(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    assert tell.predicted(synthetic(1), "H", ["serial/naive"]) == {}
    assert tell.predicted(pd.DataFrame(columns=COLUMNS), "H", ["serial/naive"]) == {}


@pytest.mark.parametrize(("value", "text"), [(48 * 1024, "48 KB"), (2**20, "1 MB"), (1000, "1,000 B"), (0, "0 B")])
def test_bytes(value: int, text: str) -> None:
    assert tell._bytes(value) == text


def test_ratios_have_figures_that_say_something() -> None:
    said = [plots.ratio(value) for value in (0.0123, 0.3, 0.999, 1.04, 2.34, 9.97, 17.4, 117.0)]
    assert said == ["0.012", "0.30", "1.00", "1.04", "2.3", "10", "17", "117"]
    assert np.isfinite([float(text) for text in said]).all()
