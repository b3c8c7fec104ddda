"""One method timed against a named baseline, here and now: what `python -m rnnpar time` prints.

Both are checked against the float64 oracle at every sample, and take turns in shuffled order.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from rnnpar import machine, model, registry
from rnnpar.advice import too_large
from rnnpar.study import measure, results, store
from rnnpar.words import duration, plain, ratio, short

SAMPLES, BUDGET_S = 31, 1.5  # of each of the two
BASELINES = ("serial/compiled", "serial/naive")  # the second where the first is what is timed


class NoTime(RuntimeError):
    """A method has no time at this shape; the message says why."""


def compare(method: str, work: model.Work, threads: int | None = None, baseline: str = "") -> str:
    """Time a method and a baseline at one shape, taking turns: the times, their ratio and the errors, as lines.

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
    asked_for = {name: registry.find(name) for name in (method, baseline)}
    for row in asked_for.values():
        if not row.available:
            raise NoTime(f"{row.name} cannot run here: {row.why_not}")
    takes = {name: "threads" in row.options() for name, row in asked_for.items()}
    if threads and asked != "auto" and not takes[method]:
        raise ValueError(f"{method} takes no threads; leave --threads out")
    cases = [(name, {"threads": cores} if takes[name] else {}) for name in takes]
    timed = measure.measure_group(point, cases, SAMPLES, BUDGET_S, np.random.default_rng(0))
    found = results.table(store.frame(timed, machine.name()), "time").set_index("method")
    for name in (method, baseline):
        if found.status[name] != "ok":
            raise NoTime(f"{name} has no time: {found.message[name] or found.status[name]}")
    return _report(found.loc[[method, baseline]], baseline, cores if any(takes.values()) else 1)


def _report(found: pd.DataFrame, baseline: str, threads: int) -> str:
    """The row of a method and that of a baseline, of the columns of results.COLUMNS, as lines."""
    one, wide = found.iloc[0], max(map(len, found.index))
    layers = f", {one.layers} layers" if one.layers > 1 else ""
    lines = [f"H {one.H:,}, I {one.I:,}, O {one.O:,}, T {one['T']:,}, B {one.B:,}{layers}, {threads} "
             f"thread{'s' * (threads > 1)}, on {machine.name()}"]  # fmt: skip
    for name, row in found.iterrows():
        lines.append(
            f"{name:{wide}}  {duration(row.seconds)} a call ({duration(row.seconds_low)} to "
            f"{duration(row.seconds_high)}, {len(row.samples)} samples), {duration(row.seconds / row['T'])} a step, "
            f"error to the oracle {short(1e6 * row.error)} millionths"
        )
    over = results.speed_up(found.reset_index(), over=baseline).iloc[0]
    lines.append(f"{over.method} is {ratio(over.speed_up)} times as fast as {baseline} "
                 f"({ratio(over.speed_up_low)} to {ratio(over.speed_up_high)})")  # fmt: skip
    return "\n".join([*lines, "Medians with 95% bootstrap intervals; errors are relative, and at most "
                      f"{plain(1e6 * measure.BOUND)} millionths are allowed."])  # fmt: skip
