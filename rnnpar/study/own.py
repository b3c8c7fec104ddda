"""A method of your own, registered at run time: held against every method's rules, and timed beside the others.

Letters as everywhere: T steps, B batch, I input, H hidden, O output, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rnnpar import machine, registry
from rnnpar.auto import prepare
from rnnpar.network import RNN
from rnnpar.reference import reference, relative_error
from rnnpar.runner import Runner
from rnnpar.study import measure, results, store, sweep
from rnnpar.words import plain

SHAPES = [  # T, B, I, H, O, L: ones, primes, several layers, a long output
    (1, 1, 1, 1, 1, 1),
    (17, 5, 31, 50, 29, 1),
    (7, 3, 11, 97, 13, 3),
    (15, 1, 50, 50, 800, 1),
    (130, 1, 16, 64, 10, 1),
    (5, 37, 8, 64, 7, 2),
]
SAME = 1e-6  # two ways to compute the same element in float32 may differ by so much


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
        return f"relative error {worst:.2g} at {where}, over the bound of {plain(measure.BOUND)}"
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


def race(
    methods: Sequence[str], sizes: Sequence[int], T: int = 64, experiment: str = "own", name: str = "",
    samples: int = 15, budget_s: float = 0.1,
) -> None:  # fmt: skip
    """Measure some methods at B = 1 and I = O = H, taking turns, and store their times as a sweep's are stored.

    A size of `sizes` is measured only where the source of one of the methods has changed since, and then all of them
    anew. Each set of methods that is compared needs an experiment of its own, lest times of different races meet.
    Nothing happens for a page about another machine than this one, `name`.
    """
    if (name or results.drawn_for()) != machine.name():
        return
    cases = [(method, {"threads": machine.cores_allowed()} if "threads" in registry.find(method).options() else {})
             for method in methods]  # fmt: skip
    planned = {measure.Point("random", H, H, H, T, 1): cases for H in sizes}
    rng = np.random.default_rng(0)
    if not (store.results_folder() / "machine.json").exists():
        store.save_machine(machine.describe())
    for point in sweep.remaining(planned, store.newest(experiment)):
        store.append(measure.measure_group(point, cases, samples, budget_s, rng), experiment)
