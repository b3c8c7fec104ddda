"""One method timed against a named baseline, here and now: what `python -m rnnpar time` prints.

Both are checked against the float64 oracle at every sample, and take turns in shuffled order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rnnpar import machine, model, registry
from rnnpar.advice import too_large
from rnnpar.study import measure, store
from rnnpar.study.plots import Median, median
from rnnpar.words import duration, plain, ratio, short

SAMPLES, BUDGET_S = 31, 1.5  # of each of the two
BASELINES = ("serial/compiled", "serial/naive")  # the second where the first is what is timed


class NoTime(RuntimeError):
    """A method has no time at this shape; the message says why."""


@dataclass(frozen=True)
class Comparison:
    """Two methods at one shape: their seconds a call, and their errors to the oracle."""

    point: measure.Point
    threads: int
    method: str
    baseline: str
    seconds: dict[str, Median]
    samples: dict[str, int]
    errors: dict[str, float]

    def report(self) -> str:
        """The times, the ratio with its interval, and the errors, as lines."""
        p, wide = self.point, max(len(self.method), len(self.baseline))
        layers = f", {p.layers} layers" if p.layers > 1 else ""
        lines = [f"H {p.H:,}, I {p.I:,}, O {p.O:,}, T {p.T:,}, B {p.B:,}{layers}, {self.threads} "
                 f"thread{'s' * (self.threads > 1)}, on {machine.name()}"]  # fmt: skip
        for name, time in self.seconds.items():
            lines.append(
                f"{name:{wide}}  {duration(time.value)} a call ({duration(time.low)} to {duration(time.high)}, "
                f"{self.samples[name]} samples), {duration(time.value / p.T)} a step, "
                f"error to the oracle {short(1e6 * self.errors[name])} millionths"
            )
        over = self.seconds[self.baseline].over(self.seconds[self.method])
        lines.append(f"{self.method} is {ratio(over.value)} times as fast as {self.baseline} "
                     f"({ratio(over.low)} to {ratio(over.high)})")  # fmt: skip
        return "\n".join([*lines, "Medians with 95% bootstrap intervals; errors are relative, and at most "
                          f"{plain(1e6 * measure.BOUND)} millionths are allowed."])  # fmt: skip


def compare(method: str, work: model.Work, threads: int | None = None, baseline: str = "") -> Comparison:
    """Time a method and a baseline at one shape, taking turns.

    "auto" is what the model takes there. `threads` (default: the cores allowed) go to whichever of the two takes
    them. ValueError for names and options that cannot be; NoTime where either has no time, and why.
    """
    cores = threads or machine.cores_allowed()
    point = measure.Point("random", work.H, work.I, work.O, work.T, work.B, work.layers)
    asked = method
    if large := too_large(work, machine.memory(), times=4):  # in float32, and in the oracle's float64
        raise NoTime(f"{large} (the oracle's, in double precision, are counted)")
    if asked == "auto":
        method = model.fastest(measure.build(point)[0], work.T, work.B, cores)
    baseline = baseline or next(name for name in BASELINES if name != method)
    if method == baseline:
        raise ValueError(f"the baseline is {baseline} itself; name another with --baseline")
    rows = {name: registry.find(name) for name in (method, baseline)}
    for row in rows.values():
        if not row.available:
            raise NoTime(f"{row.name} cannot run here: {row.why_not}")
    takes = {name: "threads" in row.options() for name, row in rows.items()}
    if threads and asked != "auto" and not takes[method]:
        raise ValueError(f"{method} takes no threads; leave --threads out")
    cases = [(name, {"threads": cores} if takes[name] else {}) for name in rows]
    found: dict[str, list[store.Row]] = {name: [] for name in rows}
    for row in measure.measure_group(point, cases, SAMPLES, BUDGET_S, np.random.default_rng(0)):
        found[row.method].append(row)
    for name, its in found.items():
        if its[0].status != "ok":
            raise NoTime(f"{name} has no time: {its[0].message or its[0].status}")
    steady = {name: [row.seconds for row in its if row.kind == "steady"] for name, its in found.items()}
    return Comparison(
        point, cores if any(takes.values()) else 1, method, baseline,
        {name: median(seconds) for name, seconds in steady.items()},
        {name: len(seconds) for name, seconds in steady.items()},
        {name: its[0].error for name, its in found.items()},
    )  # fmt: skip
