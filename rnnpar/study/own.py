"""A method of your own, registered at run time: held against every method's rules, and timed beside the others.

Letters as everywhere: T steps, B batch, I input, H hidden, O output, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown

from rnnpar import machine, registry
from rnnpar.auto import prepare
from rnnpar.network import RNN
from rnnpar.reference import reference, relative_error
from rnnpar.runner import Runner
from rnnpar.study import measure, plots, store, sweep, tell

SHAPES = [  # T, B, I, H, O, L: ones, primes, several layers, a long output
    (1, 1, 1, 1, 1, 1),
    (17, 5, 31, 50, 29, 1),
    (7, 3, 11, 97, 13, 3),
    (15, 1, 50, 50, 800, 1),
    (130, 1, 16, 64, 10, 1),
    (5, 37, 8, 64, 7, 2),
]
SAME = 1e-6  # two ways to compute the same element in float32 may differ by so much
SIZES = (16, 32, 64, 128, 256, 512)
T, B = 64, 1  # of the points in `beside`


# --- the rules -------------------------------------------------------------------------------------------------------


def _right(prepared: Callable[[RNN], Runner]) -> str:
    """The oracle's answer at awkward sizes, from no initial state and from one."""
    worst, where = 0.0, ""
    for shape in SHAPES:
        net, x, h0 = _problem(*shape)
        for start in (None, h0):
            error = _error(prepared(net)(x, start), reference(net, x, start))
            if not error <= worst:
                worst, where = error, ", ".join(f"{k} {v}" for k, v in zip("TBIHOL", shape, strict=True))
    if not worst <= measure.BOUND:
        return f"relative error {worst:.2g} at {where}, over the bound of {plots.plain(measure.BOUND)}"
    return ""


def _pieces(prepared: Callable[[RNN], Runner]) -> str:
    """A sequence in pieces, each from the state that the one before has left, is the whole."""
    net, x, _ = _problem(40, 3, 7, 33, 11, 2)
    run = prepared(net)
    whole, last = run(x)
    first, state = run(x[:13])
    second, state = run(x[13:], state)
    return _differ(np.concatenate([first, second]), whole) or _differ(state, last)


def _alone(prepared: Callable[[RNN], Runner]) -> str:
    """A sequence by itself has the answer that it has among others."""
    net, x, _ = _problem(21, 9, 7, 40, 11, 1)
    run = prepared(net)
    y, h = run(x)
    alone, state = run(x[:, 4:5])
    return _differ(alone[:, 0], y[:, 4]) or _differ(state[:, 0], h[:, 4])


def _form(prepared: Callable[[RNN], Runner]) -> str:
    """y (T,B,O) and h (L,B,H), both float32."""
    net, x, h0 = _problem(5, 3, 2, 4, 6, 2)
    for name, array, shape in zip("yh", prepared(net)(x, h0), ((5, 3, 6), (2, 3, 4)), strict=True):
        if array.shape != shape or array.dtype != np.float32:
            return f"{name} is {array.shape} of {array.dtype}; it must be {shape} of float32"
    return ""


def _untouched(prepared: Callable[[RNN], Runner]) -> str:
    """x, h0 and the weights are as they were after the call."""
    net, x, h0 = _problem(9, 2, 5, 8, 3, 2)
    kept = {"x": x, "h0": h0, "V": net.V, "c": net.c}
    kept |= {f"{key} of layer {l}": getattr(layer, key) for l, layer in enumerate(net.layers) for key in "WUb"}
    before = {name: array.copy() for name, array in kept.items()}
    prepared(net)(x, h0)
    changed = [name for name, array in kept.items() if not np.array_equal(array, before[name])]
    return f"it has changed {', '.join(changed)}" if changed else ""


def _callers_own(prepared: Callable[[RNN], Runner]) -> str:
    """What a call has returned stays as it is in the next call."""
    net, x, h0 = _problem(9, 2, 5, 8, 3, 2)
    run = prepared(net)
    y, h = run(x, h0)
    before = y.copy(), h.copy()
    run(2 * x, -h0)
    return "" if np.array_equal(y, before[0]) and np.array_equal(h, before[1]) else "the next call overwrites them"


RULES: dict[str, Callable[[Callable[[RNN], Runner]], str]] = {
    "right at awkward sizes, with several layers, with an initial state": _right,
    "a sequence in pieces gives what it gives whole": _pieces,
    "a sequence gives alone what it gives among others": _alone,
    "y and h have their shapes and are float32": _form,
    "input, state and weights are left as they were": _untouched,
    "results are the caller's own": _callers_own,
}


def check(method: str, **options: Any) -> dict[str, str]:
    """Each rule that a method has to keep, and how it broke it: "" where it kept it. Takes a second or less.

    What the method raises breaks the rule under which it was raised. ValueError for a method that is not there.
    """
    registry.find(method)

    def prepared(net: RNN) -> Runner:
        run = prepare(net, method, **options)
        run.checks_returned = False  # the rules do, one by one
        return run

    found = {}
    for rule, broken in RULES.items():
        try:
            found[rule] = broken(prepared)
        except Exception as error:
            found[rule] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return found


def rules(method: str, **options: Any) -> Markdown:
    """`check` as a table below a verdict."""
    found = check(method, **options)
    broken = [rule for rule, how in found.items() if how]
    held = f"keeps all {len(found)} rules" if not broken else f"breaks {len(broken)} of {len(found)} rules"
    table = tell.table_of(("rule", method), [(rule, f"no: {how}" if how else "kept") for rule, how in found.items()])
    return Markdown(f"{tell.say(f'{method} {held}').data}\n\n{table.data}")


def _problem(T: int, B: int, I: int, H: int, O: int, L: int) -> tuple[RNN, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((T, B, I), dtype=np.float32)
    return RNN.random(I, H, O, L), x, rng.uniform(-1, 1, (L, B, H)).astype(np.float32)


def _error(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """The larger of the relative errors of y and h; NaN where either holds one."""
    for array, right in zip(got, wanted, strict=True):
        if array.shape != right.shape:
            raise ValueError(f"shape {array.shape} where the oracle has {right.shape}")
    return float(np.max([relative_error(array, right) for array, right in zip(got, wanted, strict=True)]))


def _differ(one: np.ndarray, other: np.ndarray) -> str:
    away = float(np.abs(one - other).max()) if one.shape == other.shape else np.inf
    return "" if away <= SAME else f"they differ by {away:.2g}"


# --- beside the others -----------------------------------------------------------------------------------------------


def beside(
    methods: Sequence[str],
    sizes: Sequence[int] = SIZES,
    name: str = "",
    experiment: str = "own",
    samples: int = 15,
    budget_s: float = 0.1,
) -> pd.DataFrame:
    """The times of some methods at B = 1, T = 64 and I = O = H, a size of `sizes` after the other.

    They are stored like a sweep's, under the name of the experiment: a size is measured only where the source of one
    of the methods has changed since, and then all of them anew, taking turns. Each set of methods that is compared
    needs an experiment of its own, lest times of different races meet. Of another machine than this one, `name`, what
    is stored there is taken.
    """
    if name not in ("", machine.name()):
        stored = store.load(experiment, name)
        return stored[stored["method"].isin(methods)]
    cases = [(method, {"threads": machine.cores_allowed()} if _takes_threads(method) else {}) for method in methods]
    planned = {measure.Point("random", H, H, H, T, B): cases for H in sizes}
    rng = np.random.default_rng(0)
    if not (store.results_folder() / "machine.json").exists():
        store.save_machine(machine.describe())
    for point in sweep.remaining(planned, store.newest(experiment)):
        store.append(measure.measure_group(point, cases, samples, budget_s, rng), experiment)
    frame = store.load(experiment, machine.name())
    return frame[frame["method"].isin(methods) & frame["H"].isin(sizes) & (frame["T"] == T)]


def _takes_threads(method: str) -> bool:
    return "threads" in registry.find(method).options()


def joined(frame: pd.DataFrame, method: str = "mine/joined") -> Markdown:
    """The verdict of chapter 09 on its first method."""
    over, fixed = tell.ratios_of(frame, "H", method, "serial/hoisted")
    naive, _ = tell.ratios_of(frame, "H", method, "serial/naive")
    fared = [
        tell.fared_at("level with serial/hoisted, within a quarter, up to H = 64", "H", over,
                        lambda r: 0.8 <= r <= 1.25, most=64),
        tell.fared_at("0.4 to 0.7 times as fast at H = 512", "H", over, lambda r: 0.4 <= r <= 0.7, least=512),
    ]  # fmt: skip
    if not over or not naive:
        return tell.say(tell.NOT_MEASURED, *fared)
    few, many = min(over), max(over)
    return tell.say(
        f"{tell.on(frame)}, {method} is {tell.compared_with(over[few], 'serial/hoisted')} at H = {few:,} and "
        f"{tell.as_times(over[many])} at H = {many:,}; over serial/naive it is "
        f"{tell.as_times(naive[few])} and {tell.as_times(naive[many])} as fast ({fixed})",
        *fared,
    )


def caught(frame: pd.DataFrame, method: str) -> Markdown:
    """The verdict on a method whose answers are wrong: by how much, and that it got no time."""
    mine = frame[frame["method"] == method]
    wrong = mine[mine["status"] == "inaccurate"]
    last = mine.groupby("H")["status"].last()
    fared = tell.outcome("it is caught at every size", {f"H = {H:,}": status != "ok" for H, status in last.items()})
    if mine.empty:
        return tell.say(tell.NOT_MEASURED, fared)
    if wrong.empty:
        return tell.say(f"{tell.on(frame)}, nothing wrong was found in the answers of {method}", fared)
    low, high = (plots.percent(value) for value in (wrong["error"].min(), wrong["error"].max()))
    return tell.say(
        f"{tell.on(frame)}, the answers of {method} are {low} to {high} away from the oracle's, where "
        f"{plots.plain(100 * measure.BOUND)}% is allowed: it has no time at {wrong['H'].nunique()} of "
        f"{mine['H'].nunique()} sizes",
        fared,
    )
