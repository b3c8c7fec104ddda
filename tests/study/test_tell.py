"""Verdicts say what the data says: on a full sweep, on one with holes, and on nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from IPython.display import Markdown

from rnnpar import machine, peaks
from rnnpar.study import corpus, measure, on_one_core, plots, store, tell, which
from tests.study.test_plots import COLUMNS, failed, holes, synthetic
from tests.test_model import simple_peaks

VERDICTS: dict[str, tuple[Callable[[pd.DataFrame], Markdown], str]] = {
    "hoisting": (on_one_core.hoisting, "serial/naive"),
    "compiling": (on_one_core.compiling, "serial/hoisted"),
    "lengths": (on_one_core.lengths, "serial/compiled"),
    "batches": (on_one_core.batches, "serial/compiled"),
    "stairs": (on_one_core.stairs, "serial/naive"),
    "peak": (lambda frame: on_one_core.peak(frame, on_one_core.peak_shares(frame)), "measured arithmetic peak"),
}
CACHES = {"L1": 48 * 1024, "L2": 2**20, "L3": 2**25}


def peaks_of(name: str, folder: Path, **other: object) -> dict:
    """Peaks and caches of a machine, on the disk: a multiply-add takes 1 ns whatever the shape."""
    found = simple_peaks() | {
        "version": peaks.VERSION, "measured": "2026-01-31", "counter_barrier": {"2": 0.5e-6},
    } | other  # fmt: skip
    place = folder / "results" / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "peaks.json").write_text(json.dumps(found))
    (place / "machine.json").write_text(json.dumps({"name": name, "caches": CACHES}))
    return found


@pytest.fixture(autouse=True)
def _peaks(tmp_path_factory, monkeypatch):
    """The machine of the synthetic frames has peaks; text and models are the real ones."""
    folder = tmp_path_factory.mktemp("data")
    for part in ("text", "models"):
        (folder / part).symlink_to(corpus.data_folder() / part)
    monkeypatch.setenv("RNNPAR_DATA", str(folder))
    peaks_of("a-machine", folder)


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
    if name in ("hoisting", "timestep", "stairs", "rows or batch"):
        assert tell.NOT_MEASURED in said.data


def test_the_numbers_of_a_verdict_are_those_of_the_data() -> None:
    frame = synthetic()
    hoisted = frame["method"] == "serial/hoisted"
    twice = frame.assign(seconds=frame["seconds"].mask(hoisted, _like(frame, "serial/naive", hoisted) / 2))
    assert "makes serial/hoisted 2.0 times as fast as serial/naive at H = 16 and 2.0 times at H = 2,048" in bold(
        on_one_core.hoisting(twice)
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
    said = on_one_core.hoisting(frame.assign(seconds=frame["seconds"].mask(slow, frame["seconds"] * 10)))
    assert "It failed at H = 64 (0." in said.data
    assert "H = 64" not in on_one_core.hoisting(frame).data


def test_what_is_not_ok_takes_no_part() -> None:
    frame = synthetic()
    frame = failed(frame, frame["method"] == "serial/hoisted", "inaccurate", seconds=1e-12)
    assert tell.NOT_MEASURED in on_one_core.hoisting(frame).data
    assert not [name for name, (say, _) in VERDICTS.items() if "serial/hoisted" in bold(say(frame))]


def test_a_live_run_has_times_and_errors() -> None:
    table = tell.live(["serial/naive", "threads/rows"], H=16, T=4)
    assert list(table.index) == ["serial/naive", "threads/rows"]
    assert (table[tell.TIME].astype(float) > 0).all()
    assert (table[tell.ERROR].astype(float) < 1e6 * measure.BOUND).all()
    assert table["over serial/naive"].iloc[0] == "1.00×"


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
    assert tell.as_bytes(value) == text


def test_ratios_have_figures_that_say_something() -> None:
    said = [plots.ratio(value) for value in (0.0123, 0.3, 0.999, 1.04, 2.34, 9.97, 17.4, 117.0)]
    assert said == ["0.012", "0.30", "1.00", "1.04", "2.3", "10", "17", "117"]
    assert np.isfinite([float(text) for text in said]).all()


# --- what a verdict says of numbers made by hand ---------------------------------------------------------------------


def sweep(seconds: Callable[[pd.Series], float], **shapes: object) -> pd.DataFrame:
    """The synthetic sweep's steady rows of one sample, each with the seconds a call that `seconds` makes of it."""
    frame = synthetic(1).query("kind == 'steady'")
    for letter, value in shapes.items():
        frame = frame[frame[letter] == value]
    return frame.assign(seconds=frame.apply(seconds, axis=1))


def test_stairs() -> None:
    cost = {"serial/naive": 8e-6, "serial/hoisted": 4e-6, "serial/compiled": 1e-6}
    said = on_one_core.stairs(sweep(lambda row: row["T"] * cost.get(row["method"], 1e-6)))
    assert "2.0 times by hoisting and 4.0 times by compiling at H = 64; 2.0 times" in bold(said)
    assert "It failed at H = 256 (2.0 times and 4.0 times), H = 1,024" in said.data


def test_peak_shares() -> None:
    """A multiply-add takes 1 ns: 2 GFLOP/s, and 4 GB/s of W at one row; a step at twice the least time has half."""
    shares = on_one_core.peak_shares(sweep(lambda row: 2 * row["T"] * row["B"] * 3 * row["H"] ** 2 * 1e-9))
    assert set(shares["B"]) == {1, 16, 32, 64, 128}
    assert shares["share"].to_numpy() == pytest.approx(0.5)
    assert "| 256 | 64 | 32 | arithmetic | 1 of 2 GFLOP/s | 50% |" in on_one_core.peak_table(shares).data
    assert "at least 75% of the arithmetic peak.* It failed at" in on_one_core.peak(synthetic(), shares).data
    assert on_one_core.peak_table(shares.iloc[:0]).data == on_one_core.NO_PEAKS


def test_a_cache_level_and_its_bandwidth() -> None:
    found = {"products": {"1": [[64, 1, 4 * 64**2 / 300e9], [256, 1, 4 * 256**2 / 200e9], [512, 1, 4 * 512**2 / 180e9],
                                [2048, 1, 4 * 2048**2 / 90e9], [4096, 1, 4 * 4096**2 / 30e9]]}}  # fmt: skip
    levels = {H: on_one_core.bandwidth(found, CACHES, H) for H in (64, 200, 512, 1024, 4000)}
    assert [level for level, _ in levels.values()] == ["L1", "L2", "L2", "L3", "memory"]
    assert [speed for _, speed in levels.values()] == pytest.approx([300e9, 200e9, 200e9, 90e9, 30e9])
    assert on_one_core.bandwidth(found, {}, 64)[0] == "memory"


def test_the_tile_beside_numpy() -> None:
    points = [[H, rows, 1e-6] for H in (64, 256, 1024) for rows in (1, 64)]
    twice = [[H, rows, 2e-6] for H, rows, _ in points]
    peaks_of("a-machine", corpus.data_folder(), products={"1": points, "2": points}, blas=twice)
    assert "| H = 64 | 2.0× | – | 2.0× |" in on_one_core.tile_table("a-machine").data
    assert on_one_core.tile_table("unknown").data == on_one_core.NO_PEAKS


def test_peaks_of_another_version_and_damaged_ones() -> None:
    peaks_of("a-machine", corpus.data_folder(), version=-1)
    assert tell.peaks("a-machine") == {}
    assert tell.cost_model("a-machine") is None
    (corpus.data_folder() / "results" / "a-machine" / "peaks.json").write_text("{")
    with pytest.raises(store.ResultsError, match="damaged"):
        tell.peaks("a-machine")


def test_advice() -> None:
    said = which.advice(256, 128, 64, 256, 256, 1, "a-machine").data  # here the model sees no difference: the first
    assert said.startswith('**On a-machine, with 2 threads: take `rnnpar.prepare(net, "threads/rows", threads=2)`.')
    assert re.search(r"threads/batch is predicted within [\d.]+%: try both\.", said)
    assert all(f"| `{method}` |" in said for method in tell.model.AUTO)
    assert "| 1.00× |" in said
    one = which.advice(64, 16, 1, 64, 64, 1, "a-machine", threads=1).data
    assert 'take `rnnpar.prepare(net, "serial/compiled")`' in one
    assert "No advice" in which.advice(64, 16, 1, 64, 64, 1, "unknown").data
    assert which.advice(64, 16, 0, 64, 2.5, 1).data == "B is 0, O is 2.5: sizes are whole numbers of at least 1."


def test_what_ran_on_which_machine(tmp_path) -> None:
    frame = synthetic()
    said = tell.ran(frame, "the last section").data
    times, shapes = (frame["kind"] == "steady") & (frame["status"] == "ok"), len(frame[tell.SHAPE].drop_duplicates())
    assert said.startswith("Measured on `a-machine` on ")
    assert f": {times.sum():,} samples of {frame['method'].nunique()} methods at {shapes:,} shapes." in said
    assert said.endswith(f"Computed while this page ran, on `{machine.name()}`: the last section.")
    both = frame.assign(date=["2026-01-30"] + ["2026-02-01T10:00:00"] * (len(frame) - 1))
    assert " from 2026-01-30 to 2026-02-01: " in tell.ran(both).data
    described = {"name": "a-machine", "cpu": "A CPU", "cores_allowed": 2, "gpu": {"name": "A GPU"}}
    (store.results_folder("a-machine") / "machine.json").write_text(json.dumps(described))
    assert "`a-machine` (A CPU, 2 cores, A GPU) on " in tell.ran(frame).data
    nothing = tell.ran(frame.iloc[:0], name="b-machine").data
    assert nothing == "Nothing of this has been measured on `b-machine` yet."
