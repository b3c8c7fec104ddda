"""Ranks: predicted from a machine's own messages, and simulated, up to 1,024 of them, on given networks.

Every rank has a clock. It computes for as long as the model says (times a little chance, since no two cores are ever
equally undisturbed), sends its messages, and goes on when those that it waits for have come. What is assumed:

- Each rank is one core like those of the machine whose peaks the model has. With shared memory there are as many of
  them in one machine as ranks, each with the caches and the share of the memory that it has here.
- A message of n bytes keeps its sender's core busy for `busy` seconds, and is there alpha + beta n after it was sent
  (Hockney's model). Every rank has a link of its own, and the network between them is never the narrow place.
- Up to `FEW` ranks an exchange is a message to each; beyond, rounds in which the distance doubles (Bruck's allgather).
- Computing and sending do not overlap, and each rank's times scatter by `jitter`, independently at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rnnpar import model_ranks
from rnnpar.backends.mpi import FEW
from rnnpar.model import Model
from rnnpar.model_ranks import Link
from rnnpar.study import results, store
from rnnpar.work import Work

JITTER = 0.02  # standard deviation of a step's time over its mean
STEPS = 48  # steps that are simulated; the rest go on in the same way


def exchange(clocks: np.ndarray, link: Link, block: float) -> np.ndarray:
    """When each rank has all blocks (of so many bytes each), if rank i has its own at clocks[i]."""
    ranks = len(clocks)
    if ranks == 1:
        return clocks
    if ranks <= FEW:  # a message to each, one behind the other; the last to come ends it
        sent = clocks[:, None] + (link.busy + link.beta * block) * np.arange(1, ranks)
        into = np.empty((ranks, ranks - 1))
        for i in range(1, ranks):
            into[:, i - 1] = np.roll(sent[:, i - 1], i)
        return np.maximum(sent[:, -1], into.max(axis=1) + link.alpha)
    have, now = 1, clocks.copy()
    while have < ranks:
        blocks = min(have, ranks - have)
        sent = now + link.busy + link.beta * block * blocks
        now = np.maximum(sent, np.roll(sent, -have) + link.alpha)  # from the rank that far ahead
        have *= 2
    return now


def rows(model: Any, work: Work, ranks: int, link: Link, jitter: float = JITTER, seed: int = 0) -> float:
    """Seconds of `mpi/rows`, by simulation."""
    parts = model_ranks.rows_parts(model, work, ranks)
    rng, clocks = np.random.default_rng(seed), np.zeros(ranks)
    steps = min(work.T, STEPS)
    for _ in range(steps):
        clocks += parts["step"] * scatter(rng, ranks, jitter)
        clocks = exchange(clocks, link, 4.0 * work.B * parts["columns"])
    recurrence = float(clocks.max()) * work.T / steps * work.layers
    return recurrence + parts["ahead"] + parts["behind"] + gather(work, ranks, link)


def batch(model: Any, work: Work, ranks: int, link: Link, jitter: float = JITTER, seed: int = 0) -> float:
    """Seconds of `mpi/batch`, by simulation: nobody waits for anybody until the end."""
    alone = model_ranks.batch(model, work, ranks)
    clocks = alone * scatter(np.random.default_rng(seed), min(ranks, work.B), jitter / math.sqrt(max(work.T, 1)))
    return float(clocks.max()) + gather(work, min(ranks, work.B), link)


def pipeline(model: Any, work: Work, ranks: int, link: Link, jitter: float = JITTER, seed: int = 0) -> float:
    """Seconds of `mpi/pipeline`, by simulation, chunk by chunk through all places."""
    chunk = model_ranks.best_chunk(model, work, ranks, link)
    places, message = model_ranks.places(model, work, ranks, link, chunk)
    rng, free = np.random.default_rng(seed), np.zeros(len(places))
    for _ in range(math.ceil(work.T / chunk)):
        took = np.array(places) * scatter(rng, len(places), jitter / math.sqrt(chunk))
        there = 0.0
        for place in range(len(places)):
            free[place] = max(free[place], there) + took[place]
            there = free[place] + message
    return float(free[-1])


SIMULATED = {"mpi/rows": rows, "mpi/batch": batch, "mpi/pipeline": pipeline}


def gather(work: Work, ranks: int, link: Link) -> float:
    """Seconds until rank 0 has the other ranks' outputs, which come through its one link."""
    if ranks == 1:
        return 0.0
    return link.alpha + (ranks - 1) * link.busy + link.beta * 4.0 * work.T * work.B * work.O * (ranks - 1) / ranks


def scatter(rng: np.random.Generator, count: int, jitter: float) -> np.ndarray:
    """Factors of mean 1 with that standard deviation, none below a half."""
    return np.maximum(0.5, rng.normal(1.0, jitter, count)) if jitter else np.ones(count)


def curve(
    model: Any, method: str, work: Work, ranks: Sequence[int], link: Link, jitter: float = JITTER
) -> dict[int, float]:
    """Seconds of a call on each number of ranks."""
    return {count: SIMULATED[method](model, work, count, link, jitter) for count in ranks}


# --- on the ranks of a machine that was measured --------------------------------------------------------------------


def messages(name: str) -> dict[str, Any]:
    """What messages cost on a machine (mpi.json): "call", "messages" and "exchange"; empty without. ResultsError."""
    return store.facts(store.results_folder(name) / "mpi.json")


def link(found: Mapping[str, Any]) -> Link:
    """alpha and beta from the ping-pong: the least message, and the slope up to 256 KB."""
    table = dict(map(tuple, found.get("messages", [])))
    if not table:
        return model_ranks.NEAR
    alpha, size = table[min(table)], 262144
    return Link(alpha, (table[size] - alpha) / size, alpha / 2)


def measured_exchange(found: Mapping[str, Any], ranks: int) -> Callable[[int, float], float]:
    """meet(ranks, elements) as model_ranks.rows takes it: a line through the exchanges measured in the window."""
    sizes, seconds = zip(*found["exchange"][str(ranks)]["window"], strict=True)
    return lambda _, elements: (
        float(np.interp(elements, sizes, seconds))
        if elements <= sizes[-1]
        else float(seconds[-1] * elements / sizes[-1])
    )


def window_link(found: Mapping[str, Any], ranks: int) -> Link:
    """alpha and beta of ranks that share memory: an allgather of a state takes what its exchange was measured to."""
    meet, (small, large) = measured_exchange(found, ranks), (64, 8192)
    rounds, sent = math.ceil(math.log2(ranks)), 4.0 * (ranks - 1) / ranks  # as model_ranks.allgather has them
    beta = max(0.0, meet(ranks, large) - meet(ranks, small)) / (sent * (large - small))
    return Link((meet(ranks, small) - beta * sent * small) / rounds, beta)


def formula(costs: Model, found: Mapping[str, Any], method: str, work: Work, ranks: int) -> float:
    """Seconds of a call of `mpi` on the ranks of the machine that was measured; more ranks than cores take turns."""
    start, turns = found["call"][str(ranks)], max(1.0, ranks / model_ranks.cores(costs))
    if method == "mpi/rows":
        meet = measured_exchange(found, ranks)(ranks, work.B * work.H) if ranks > 1 else 0.0
        return start + turns * model_ranks.rows(costs, work, ranks, lambda *_: 0.0) + work.layers * work.T * meet
    if method == "mpi/batch":
        return start + turns * model_ranks.batch(costs, work, ranks)
    return start + turns * model_ranks.pipeline(costs, work, ranks, link(found))


def simulated(costs: Model, found: Mapping[str, Any], method: str, work: Work, ranks: int) -> float:
    """Seconds of a call by simulation on the ranks of the machine that was measured, two at least.

    Two ranks have a core each, and the link that ping-pong measured, or in `rows`, whose states lie in a window, the
    exchange there. More ranks than cores take turns: computing takes as many times as long, and a message as long as
    an exchange was measured to take on as many ranks.
    """
    turns, wire = max(1.0, ranks / model_ranks.cores(costs)), link(found)
    if turns == 1 and method == "mpi/rows":
        wire = window_link(found, ranks)
    elif turns > 1:
        wire = Link(measured_exchange(found, ranks)(ranks, 64), wire.beta)
    computing = SIMULATED[method](costs, work, ranks, Link(0.0, 0.0), jitter=0.0)
    sending = SIMULATED[method](costs, work, ranks, wire) - computing
    return found["call"][str(ranks)] + turns * computing + sending


def beside(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """The measurements of `mpi` with their `predicted` seconds beside them, and `simulated` from two ranks on.

    Left out are those on numbers of ranks for which no messages were measured: all, without the machine's peaks.
    """
    costs, found = results.cost_model(name), messages(name)
    rows = runs[runs["method"].str.startswith("mpi/")].dropna(subset="seconds")
    known = {1, *map(int, found.get("exchange", ()))} & {*map(int, found.get("call", ()))}
    rows = rows[rows["threads"].isin(known if costs else ())]
    cases = [(costs, found, row.method, results.work(row), int(row.threads)) for row in rows.itertuples()]
    predicted = [formula(*case) for case in cases]
    told = [simulated(*case) if case[-1] > 1 else np.nan for case in cases]
    return rows.assign(predicted=np.array(predicted, float), simulated=np.array(told, float))
