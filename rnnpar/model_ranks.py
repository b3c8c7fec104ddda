"""The predicted time of each strategy of `mpi` on ranks: the alpha-beta model on top of the machine's model.

A message of n bytes takes alpha + beta n seconds (Hockney's model); alpha and beta are measured by ping-pong
(rnnpar/study/messages_probe.py), or assumed for a network that is not at hand. What a rank computes is predicted as for
threads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rnnpar import machine, peaks
from rnnpar.model import Model, here, one_thread
from rnnpar.network import RNN
from rnnpar.work import Work


@dataclass(frozen=True)
class Link:
    """What a message costs: alpha seconds, beta seconds a byte, and `busy` seconds of the core that sends it."""

    alpha: float
    beta: float
    busy: float = 0.0

    def message(self, size: float) -> float:
        """Seconds of one message of so many bytes."""
        return self.alpha + self.beta * size


NEAR = Link(alpha=1e-6, beta=1 / 6e9)  # between cores of one machine, where it was not measured
FAR = Link(alpha=5e-6, beta=1 / 3e9)  # between machines
CALL_S = 8e-6  # of Python and mpi4py, a chunk


# --- One strategy after another ----------------------------------------------------------------------------------


def batch(model: Model, work: Work, ranks: int, link: Link | None = None) -> float:
    """Seconds of `mpi/batch`: the largest share, and the other ranks' answers one after another into rank 0."""

    share = math.ceil(work.B / ranks)
    gather = 0.0
    if link is not None and ranks > 1:
        bytes_ = 4.0 * share * (work.T * work.O + work.layers * work.H)
        gather = (ranks - 1) * (link.busy + link.beta * bytes_) + link.alpha
    return one_thread(model, work, share, min(ranks, work.B, cores(model))) + gather


def cores(model: Model) -> int:
    """The largest number of threads that the machine's peaks were measured with."""
    return max(map(int, model.peaks["products"]))


def rows(model: Model, work: Work, ranks: int, meet: Callable[[int, float], float]) -> float:
    """Seconds of `mpi/rows`; meet(ranks, elements): seconds of one exchange of a state of so many elements."""
    parts = rows_parts(model, work, ranks)
    a_step = parts["step"] + (meet(ranks, work.B * work.H) if ranks > 1 else 0.0)
    return parts["ahead"] + work.layers * work.T * a_step + parts["behind"]


def rows_parts(model: Model, work: Work, ranks: int) -> dict[str, float]:
    """Of one rank: seconds of all U x ("ahead"), of one step of one layer, and of the output; columns of h it has."""
    T, B, H = work.T, work.B, work.H
    active = min(ranks, cores(model))
    columns = math.ceil(math.ceil(H / model.width) / ranks) * model.width
    return {
        "columns": min(columns, H),
        "ahead": sum(model.product(T * B, columns, I, active) for I in work.inputs()),
        "step": model.step(B, columns, H, active),
        "behind": model.output(math.ceil(T * B / ranks), work, active),
    }


def allgather(link: Link, ranks: int, size: float) -> float:
    """Seconds of an allgather of `size` bytes in all: as many rounds as the ranks have bits, each a message."""
    if ranks == 1:
        return 0.0
    return math.ceil(math.log2(ranks)) * (link.alpha + link.busy) + link.beta * size * (ranks - 1) / ranks


def pipeline(model: Any, work: Work, ranks: int, link: Link = NEAR, chunk: int = 0) -> float:
    """Seconds of `mpi/pipeline`: the slowest place for every chunk, and the way of the first one through all places."""
    chunk = chunk or best_chunk(model, work, ranks, link)
    taken, message = places(model, work, ranks, link, chunk)
    chunks = math.ceil(work.T / chunk)
    return sum(taken) + (len(taken) - 1) * message + (chunks - 1) * max(taken)


def best_chunk(model: Any, work: Work, ranks: int, link: Link = NEAR) -> int:
    """The steps of a chunk for which the pipeline takes least."""
    counts = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
    sizes = sorted({max(1, math.ceil(work.T / count)) for count in counts})
    return min(sizes, key=lambda chunk: pipeline(model, work, ranks, link, chunk))


def places(model: Any, work: Work, ranks: int, link: Link, chunk: int) -> tuple[list[float], float]:
    """Seconds a chunk of each place that has stages, and of the message between two places."""
    costs = stage_seconds(model, work, chunk, min(ranks, cores(model)))
    edges = cuts(costs, ranks)
    message = link.message(4.0 * chunk * work.B * work.H)
    taken = [sum(costs[a:b]) for a, b in pairwise(edges) if b > a]
    busy = CALL_S + (link.busy + link.beta * 4.0 * chunk * work.B * work.H if len(taken) > 1 else 0.0)
    return [seconds + busy for seconds in taken], message


def stage_seconds(model: Any, work: Work, chunk: int, active: int = 1) -> list[float]:
    """Seconds of each of the 2 L + 1 stages for a chunk of so many steps."""
    found = []
    for I in work.inputs():
        found += [model.product(chunk * work.B, work.H, I, active), chunk * model.step(work.B, work.H, work.H, active)]
    return [*found, model.output(chunk * work.B, work, active)]


def cuts(costs: Sequence[float], ranks: int) -> list[int]:
    """Where to cut stages in a row into as many parts as there are ranks, so that the largest part is smallest.

    ranks + 1 places from 0 to len(costs); where there are fewer stages, the first parts are empty.
    """
    ranks_used = min(ranks, len(costs))
    best: dict[tuple[int, int], tuple[float, int]] = {(0, 0): (0.0, 0)}
    for part in range(1, ranks_used + 1):
        for end in range(part, len(costs) + 1):
            options = [
                (max(best[part - 1, start][0], sum(costs[start:end])), start)
                for start in range(part - 1, end)
                if (part - 1, start) in best
            ]
            if options:
                best[part, end] = min(options)
    edges, end = [len(costs)], len(costs)
    for part in range(ranks_used, 0, -1):
        end = best[part, end][1]
        edges.append(end)
    return [0] * (ranks - ranks_used) + edges[::-1]


# --- What the pipeline asks before it runs -----------------------------------------------------------------------


class Nominal:
    """A stand-in for a machine whose peaks were never measured: 50 GFLOP/s and 50 GB/s a core."""

    peaks = {"products": {"1": []}}  # noqa: RUF012

    def product(self, rows: float, N: int, K: int, active: int = 1) -> float:
        return 2.0 * rows * N * K / 50e9

    def step(self, rows: float, N: int, K: int, active: int = 1) -> float:
        return 1e-7 + max(2.0 * rows * N * K, 4.0 * N * K) / 50e9

    def output(self, rows: float, work: Work, active: int = 1) -> float:
        return self.product(rows, work.O, work.H) + 1e-9 * rows * work.O


def known() -> Any:
    """The machine's model if its peaks have been measured, else a nominal one: this must not take seconds."""
    file = machine.folder() / "peaks.json"
    try:
        if json.loads(file.read_text())["version"] == peaks.VERSION:
            return here()
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return Nominal()


def pipeline_plan(net: RNN, T: int, B: int, ranks: int, chunk: int = 0, link: Link = NEAR) -> list[int]:
    """The steps of a chunk (the one given, or the model's choice), then where the stages are cut: ranks + 1 places."""
    work, model = Work.of(net, T, B), known()
    chunk = min(T, chunk) or best_chunk(model, work, ranks, link)
    return [chunk, *cuts(stage_seconds(model, work, chunk, min(ranks, cores(model))), ranks)]
