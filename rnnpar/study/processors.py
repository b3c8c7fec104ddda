"""Chapter 07's predictions: the recurrence alone on many processors like a core of a machine, and on an H100.

Letters: T steps, H hidden, p processors, n steps a processor; one sequence, one layer.
"""

from __future__ import annotations

import math

import pandas as pd

from rnnpar.model import Model

COUNTS = [2**k for k in range(15)]  # processors
METHODS = ["serial/compiled", "threads/rows", "in_time/jacobi", "in_time/segments", "in_time/quasi_deer",
           "in_time/deer"]  # fmt: skip
H100 = dict(flops=67e12, share=0.1, launch=4e-6, step=0.6e-6, bytes=80e9, bandwidth=3.35e12)


def predict(
    cost: Model | None, H: int, T: int, chain: float = math.nan, memory: int = 40, iterations: float = 4
) -> pd.DataFrame:
    """Seconds of the recurrence alone: a row a number of processors, a column a method. Empty without a cost model.

    `chain` is the seconds of a step along the chain; where it is NaN, the model's. `memory` is after how many steps
    the network has forgotten its start, `iterations` how many corrections deer makes.
    """
    rows = {} if cost is None else {p: _seconds(cost, p, H, T, chain, memory, iterations) for p in COUNTS}
    return pd.DataFrame.from_dict(rows, "index", columns=METHODS, dtype=float).rename_axis("processors")


def _seconds(
    cost: Model, p: int, H: int, T: int, chain: float, memory: int, iterations: float
) -> list[float]:  # fmt: skip
    """Those of METHODS on p processors.

    Along the chain: T steps, and with several processors a meeting in each, whose cost grows with log2(p). In time:
    passes over all steps, shared by all, and for each iteration log2(p) rounds of meeting. A segment shorter than the
    network's memory needs more sweeps (segments), or maps of H rows to its end (deer).
    """
    chain = chain if chain > 0 else cost.step(1, H, H)
    row = cost.product(64, H, H) / 64 + cost.line("tanh", 0, 2 * H)  # a step among many
    meet = cost.meet(2, H) * max(1.0, math.log2(p)) if p > 1 else 0.0
    n = max(1.0, T / p)
    panels = max(1, math.ceil(H / cost.width))
    check = 2 * n * row + meet
    again = math.ceil(memory / n) * (min(n, memory) * row + meet)  # each start anew
    maps = min(n, memory) * H * row + (math.log2(p) * H * row if n < memory else 0.0)
    return [
        T * chain,
        T * (chain * max(1 / p, 1 / panels) + meet),
        memory * (n * row + meet) + check,
        2 * n * row + again + check,  # a whole sweep and the last evaluation, and what is swept again
        memory * (2 * n * row + 4 * meet) + check,
        iterations * (3 * n * row + maps + 3 * meet) + n * row + check,
    ]


def on_h100(H: int, T: int, memory: int = 40, iterations: float = 4, segments: int = 2048) -> pd.Series:
    """Seconds of each method on an H100, from its data sheet and three guesses; no GPU has been timed at it.

    Guessed: 0.6 µs a step of one block along the chain, 4 µs a launch, a tenth of the float32 peak in small products.
    The array code launches about 4 kernels a step of a segment.
    """
    once = 2 * H * H * T / (H100["flops"] * H100["share"]) + 24 * T * H / H100["bandwidth"]  # a pass over all steps
    rounds = 4 * math.ceil(T / segments) * H100["launch"]
    check = 2 * once + rounds
    return pd.Series({
        "serial/compiled": T * H100["step"],
        "in_time/jacobi": (memory + 1) * (once + 4 * H100["launch"]) + check,
        "in_time/segments": (2 + math.ceil(memory * segments / T)) * (once + rounds) + check,
        "in_time/quasi_deer": memory * (3 * once + 2 * rounds) + check,
        "in_time/deer": iterations * (once * (3 + H) + 2 * rounds) + check,
    })  # fmt: skip
