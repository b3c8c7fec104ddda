"""Expectations as code: a claim, the values that decide it, and the bounds that they must keep.

    expect("rows: at least 1.5 times one thread from H = 256 on", gain.loc[256:], at_least=1.5)

shows whether it held, where it failed, or that nothing was measured. What a chapter shows is kept in its executed
copy, so that `recorded` can say of every expectation on which machines it held.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from rnnpar import machine
from rnnpar.study import results, store
from rnnpar.words import ratio

MIME = "application/vnd.rnnpar.expectation+json"
Values = pd.Series | Mapping[Any, Any] | float | str
MOST = 6  # places that a sentence lists
RENDERED = Path(__file__).resolve().parents[2] / "notebooks" / "rendered"


@dataclass(frozen=True)
class Outcome:
    """How a claim fared: the values that decided it, and those of them that broke it."""

    claim: str
    values: pd.Series
    failed: pd.Series
    by: str = ""  # the machine that measured the values, where that is not the one that the chapter shows

    @property
    def word(self) -> str:
        """held, failed or not measured."""
        return "not measured" if self.values.empty else "failed" if len(self.failed) else "held"

    def _sentence(self) -> str:
        if self.values.empty:
            return "Not measured."
        low, high = Stats(self.values).min, Stats(self.values).max
        span = f" (the values: {low} to {high})" if low != high else f" (the value: {low})"
        span = "" if self.values.dtype == bool else span
        if not len(self.failed):
            return f"**Held**{span}."
        if len(self.values) == 1 and self.values.index[0] == "":
            return f"**Failed**{span}."
        places = [place(self.failed, n) + (f" ({ratio(v)})" if span else "") for n, v in enumerate(self.failed)]
        more = f" and {len(places) - MOST} more" if len(places) > MOST else ""
        return f"**Failed** at {', '.join(places[:MOST])}{more}, of {len(self.values)}{span}."

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        text = f"*Expected: {self.claim}.* {self._sentence()}"
        record = dict(claim=self.claim, outcome=self.word, tried=len(self.values), failed=len(self.failed),
                      by=self.by)  # fmt: skip
        return {"text/markdown": text, "text/plain": re.sub(r"[*]", "", text), MIME: record}


def expect(claim: str, values: Values, *, here: bool = False, by: str = "", **bounds: float) -> None:
    """Show how a claim fares: `check`, displayed. A cell may have several."""
    display(check(claim, values, here=here, by=by, **bounds))


def check(
    claim: str, values: Values, *, at_least: float | None = None, at_most: float | None = None,
    above: float | None = None, below: float | None = None, here: bool = False, by: str = "",
) -> Outcome:  # fmt: skip
    """Hold each of `values` against the bounds; a Series' index, or a mapping's keys, say where each was measured.

    Without bounds the values are truths. NaN is not measured. `here`: whether the machine that runs this measured the
    values just now, whichever a chapter shows; `by`: the machine that did, where it is neither. ValueError for numbers
    without a bound.
    """
    series = _series(values).dropna()
    bounds = [(at_least, np.greater_equal), (at_most, np.less_equal), (above, np.greater), (below, np.less)]
    kept = [compare(series.astype(float), bound) for bound, compare in bounds if bound is not None]
    if not kept and len(series) and not series.isin([True, False]).all():
        raise ValueError(f"{claim!r} has values and no bound: give at_least, at_most, above or below")
    held = np.logical_and.reduce(kept) if kept else series.astype(bool)
    return Outcome(claim, series if kept else series.astype(bool), series[~np.asarray(held, bool)],
                   machine.name() if here else by)  # fmt: skip


def say(text: str, **values: Values) -> None:
    """Show a finding: `{gain.max}` in it becomes the largest of the values `gain=`, `{gain.at_max}` its place.

    Also min, first, last, median and count; a plain number or word is put in as `{gain}`. Where one of them has no
    value, the sentence says that instead.
    """
    display(Markdown(sentence(text, **values)))


def sentence(text: str, **values: Values) -> str:
    """What `say` shows."""
    series = {name: _series(value).dropna() for name, value in values.items()}
    if any(found.empty for found in series.values()):
        return "Not measured on this machine."
    return text.format(**{name: Stats(found) for name, found in series.items()})


class Stats:
    """Words for some values: min, max, median, first and last as people write ratios, at_min ... their places."""

    def __init__(self, values: pd.Series):
        self.word = str(values.iloc[0])
        if isinstance(values.iloc[0], str):
            return
        numbers = values.astype(float)
        ends = {"first": 0, "last": len(values) - 1, "min": numbers.argmin(), "max": numbers.argmax()}
        for name, index in ends.items():
            setattr(self, name, ratio(float(numbers.iloc[index])))
            setattr(self, f"at_{name}", place(values, int(index)))
        self.median, self.count, self.word = ratio(float(numbers.median())), f"{len(values):,}", self.first

    def __format__(self, form: str) -> str:
        return self.word


def place(values: pd.Series, number: int) -> str:
    """Where the value of that number was measured, by the names of the index: H = 256, B = 4."""
    key = values.index[number]
    pairs = zip(values.index.names, key if isinstance(key, tuple) else (key,), strict=True)
    return ", ".join(f"{name} = {part:,}" if name and isinstance(part, int | np.integer) else str(part)
                     for name, part in pairs)  # fmt: skip


def _series(values: Values) -> pd.Series:
    if isinstance(values, pd.Series):
        return values
    return pd.Series(values if isinstance(values, Mapping) else {"": values}, dtype=object).infer_objects()


def recorded(rendered: Path | None = None) -> pd.DataFrame:
    """A row an expectation of the chapters executed in `rendered` (notebooks/rendered), which has a folder a machine.

    What was measured while a chapter ran counts for the machine that ran it; what a chapter shows of another machine,
    because its own has not measured it, counts for that one.
    """
    found = []
    for file in sorted((rendered or RENDERED).glob("*/[0-9][0-9]_*.ipynb")):
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", ()):
                if record := output.get("data", {}).get(MIME):
                    name = record["by"] or _measured_by(file.stem[:2], file.parent.name)
                    found.append(dict(chapter=file.stem[:2], claim=record["claim"], machine=name, **{
                        key: record[key] for key in ("outcome", "tried", "failed")}))  # fmt: skip
    return pd.DataFrame(found, columns=["chapter", "claim", "machine", "outcome", "tried", "failed"])


def _measured_by(chapter: str, name: str) -> str:
    """The machine whose results a chapter shows that was executed for the machine `name`."""
    return results.where(name, results.SHOWS.get(chapter, "sweep")) if name in store.machines() else name
