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

from rnnpar import machine, peaks, registry
from rnnpar.study import corpus, measure, on_one_core, on_threads, plots, store, tell, which
from tests.study.test_plots import COLUMNS, bits_table, failed, holes, synthetic
from tests.test_model import simple_peaks

VERDICTS: dict[str, tuple[Callable[[pd.DataFrame], Markdown], str]] = {
    "hoisting": (on_one_core.hoisting, "serial/naive"),
    "compiling": (on_one_core.compiling, "serial/hoisted"),
    "lengths": (on_one_core.lengths, "serial/compiled"),
    "batches": (on_one_core.batches, "serial/compiled"),
    "timestep": (on_threads.timestep, "serial/compiled"),
    "rows": (on_threads.rows, "serial/compiled"),
    "batch": (on_threads.batch, "serial/compiled"),
    "wavefront": (on_threads.wavefront, "serial/compiled"),
    "scaling": (on_threads.scaling, "one of the same method"),
    "origin": (on_threads.origin, "serial/naive"),
    "stairs": (on_one_core.stairs, "serial/naive"),
    "rows or batch": (on_threads.rows_or_batch, "threads/rows"),
    "pipeline": (on_threads.pipeline, "serial/compiled"),
    "weights": (lambda frame: on_threads.weights(frame, "a-machine"), "threads/rows"),
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
    frame = failed(frame, frame["method"] == "threads/rows", "inaccurate", seconds=1e-12)
    assert tell.NOT_MEASURED in on_threads.rows(frame).data
    assert not [name for name, (say, _) in VERDICTS.items() if "threads/rows" in bold(say(frame))]


def test_bits_are_held_against_the_oracle() -> None:
    table = bits_table(synthetic(1))
    said = on_threads.same_bits(table)
    assert "0.1 millionths of a bit" in bold(said)
    assert "It held" in said.data
    wrong = table.assign(bits=table["bits"] + 1e-3 * (table["method"] == "threads/batch"))
    assert "It failed at threads/batch on kjv-h128" in on_threads.same_bits(wrong).data
    assert tell.NOT_MEASURED in on_threads.same_bits(table.iloc[:0]).data


def test_bits_of_every_method_on_the_trained_networks() -> None:
    table = on_threads.bits(batch=2, steps=40)
    ours = [method for method in registry.methods() if method.backend not in measure.ELSEWHERE]
    assert set(table["method"]) == {method.name for method in ours}
    ran = table[table["status"] == "ok"]
    assert {method.name for method in ours if method.available} == set(ran["method"])
    assert (ran["bits"] - ran["oracle"]).abs().max() < on_threads.BITS


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


def test_rows_or_batch() -> None:
    def seconds(row: pd.Series) -> float:
        return 4e-6 if row["method"] == "threads/rows" else 8e-6 / row["B"]

    said = bold(on_threads.rows_or_batch(sweep(seconds)))
    assert "threads/batch is level with threads/rows or ahead from about B = 2 on (H = 256, T = 32" in said
    assert "from B = 8 on at H = 64, from B = 8 on at H = 256, from B = 8 on at H = 1,024" in said
    never = bold(on_threads.rows_or_batch(sweep(lambda row: 1e-6 if row["method"] == "threads/rows" else 2e-6)))
    assert "does not reach threads/rows up to B = 128" in never
    assert "never at H = 64" in never
    always = on_threads.rows_or_batch(sweep(lambda row: 2e-6 if row["method"] == "threads/rows" else 1e-6))
    assert "or ahead from B = 1 on" in bold(always)
    assert "It failed at H = 256 (2.0 times), H = 1,024" in always.data


def test_pipeline() -> None:
    stage = {"U x": 1e-3, "W h": 2e-3, "V h": 1e-3}

    def seconds(row: pd.Series) -> float:
        alone = row["layers"] * (stage["U x"] + stage["W h"]) + stage["V h"]
        return alone if row["method"] == "serial/compiled" else alone / 1.6

    frame = sweep(seconds, H=256, T=128, B=1)
    ideals = on_threads.pipeline_ideals(frame)
    assert ideals["all work / longest stage"] == pytest.approx({1: 2.0, 2: 3.5, 4: 6.5})
    assert ideals["layers"] == {1: 1, 2: 2, 4: 4}
    said = on_threads.pipeline(frame)
    assert "80% with 1 layer (1.60 of 2.0 times), 80% with 2 layers (1.60 of 2.0 times)" in bold(said)
    assert on_threads.pipeline_ideals(frame.query("layers == 1")) == {}
    assert tell.NOT_MEASURED in on_threads.pipeline(frame.query("layers == 1")).data


def test_weights() -> None:
    def seconds(row: pd.Series) -> float:
        speed = 100e9 if row["H"] <= 512 else 50e9
        many = 2.0 if row["method"] == "threads/rows" else 1.0
        return row["T"] * 4 * row["H"] ** 2 / (speed * many * (2 if many > 1 and row["H"] == 512 else 1))

    said = on_threads.weights(sweep(seconds), "a-machine")
    assert "serial/compiled reads W at up to 100 GB/s (at H = 16) and at 50 at H = 2,048" in bold(said)
    assert "threads/rows reads W at up to 400 GB/s (at H = 512) and at 100 at H = 2,048" in bold(said)
    assert said.data.count("It held.") == 2
    assert "Not measured here" in on_threads.weights(sweep(seconds), "unknown").data


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


def test_meetings() -> None:
    said = on_threads.meetings(synthetic(), "a-machine")
    assert "with 2 threads, a barrier of flags costs 1 µs, a barrier with one counter 0.50 times as much, " in bold(
        said
    )
    assert "a new parallel region 5.0 times as much; a whole step" in bold(said)
    assert said.data.count("It held.") == 2
    assert "cores busy" not in said.data
    assert tell.NOT_MEASURED in on_threads.meetings(synthetic(), "unknown").data
    peaks_of("a-machine", corpus.data_folder(), barrier={"2": 8e-3})
    busy = on_threads.meetings(pd.DataFrame(columns=COLUMNS), "a-machine").data
    assert "a barrier of flags costs 8 ms" in busy
    assert "while other programs kept the cores busy" in busy


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


def test_bfloat16() -> None:
    bits = on_threads.bfloat16_bits(batch=2, steps=20, methods=["serial/compiled"])
    assert (bits["error float32"] < measure.BOUND).all()
    assert bits["error bfloat16"].between(1e-5, 0.05).all()
    speed = on_threads.bfloat16_speed({32: 4}, ["serial/compiled"], rounds=3)
    assert list(speed) == [("serial/compiled", 32)]
    assert len(on_threads.bfloat16_table(bits, speed).data.split("\n")) == 3
    fixed = {("serial/compiled", 2048): plots.median([1.5]), ("threads/rows", 512): plots.median([0.9])}
    said = on_threads.bfloat16(bits.assign(bfloat16=bits["float32"] + 0.002), fixed)
    assert "0.90 times as fast as float32 in threads/rows at H = 512 and 1.50 times in serial/compiled" in bold(said)
    assert "by at most 2 thousandths" in bold(said)
    assert "no more than 0.01 bits lost.* It held." in said.data
    lost = on_threads.bfloat16(bits.assign(bfloat16=bits["float32"] + 0.02), fixed)
    assert "no more than 0.01 bits lost.* It failed at serial/compiled on" in lost.data
    assert tell.NOT_MEASURED in on_threads.bfloat16(bits, {}).data


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
