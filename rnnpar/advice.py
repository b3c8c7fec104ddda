"""Which method to take at given sizes, and why: what the model says, in a sentence.

Nothing is run. `python -m rnnpar advise` and the chapters say the same, since both ask here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rnnpar import peaks, registry
from rnnpar.model import AUTO, Model
from rnnpar.words import duration, percent, ratio
from rnnpar.work import Work

CLOSE = 1.1  # predicted within so much of the best, another method is worth trying: the model is no better than that


@dataclass(frozen=True)
class Advice:
    """What to take. `seconds` are those of a call by method, the shortest first; `runner_up` is "" for one thread."""

    machine: str
    threads: int
    work: Work
    seconds: dict[str, float]
    method: str
    runner_up: str
    reason: str

    @property
    def call(self) -> str:
        """The call to paste into a program."""
        option = f", threads={self.threads}" if self.method.startswith("threads/") else ""
        return f'rnnpar.prepare(net, "{self.method}"{option})'

    @property
    def sentence(self) -> str:
        """Where, what to take, and what else to try."""
        many = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"On {self.machine}, with {many}: take `{self.call}`.{self.close}"

    @property
    def close(self) -> str:
        """A word on the runner-up where the model cannot tell it from the best; empty where it can."""
        gap = self.seconds[self.runner_up] / self.seconds[self.method] if self.runner_up else math.inf
        return f" {self.runner_up} is predicted within {percent(gap - 1)}: try both." if gap < CLOSE else ""

    @property
    def details(self) -> str:
        """The predicted time, the runner-up and the reason, in a sentence or two."""
        best = self.seconds[self.method]
        said = f"Predicted: {duration(best)} a call, {duration(best / self.work.T)} a step"
        if self.runner_up:
            longer = ratio(self.seconds[self.runner_up] / best)
            said += f"; of what auto considers, next is {self.runner_up}, {longer} times that"
        return f"{said}. {self.reason}"


def advise(costs: Model, work: Work, threads: int, where: str) -> Advice:
    """What the model of the machine `where` would take. ValueError for sizes or threads that cannot be."""
    check_sizes(work)
    most = max(int(count) for count in costs.peaks["launch"])
    if not isinstance(threads, int) or not 1 <= threads <= most:
        raise ValueError(f"threads is {threads!r}; the peaks of {where} tell of 1 to {most} threads.")
    seconds = {method.name: costs.predict(method.name, work, threads) for method in registry.methods()}
    seconds = {method: value for method, value in sorted(seconds.items(), key=lambda item: item[1]) if value > 0}
    best, *others = [method for method in seconds if method in (AUTO if threads > 1 else AUTO[:1])]
    return Advice(where, threads, work, seconds, best, (others or [""])[0], _reason(costs, work, threads, best))


def check_sizes(work: Work) -> None:
    """ValueError unless all sizes are whole numbers of at least 1."""
    sizes = {"H": work.H, "T": work.T, "B": work.B, "I": work.I, "O": work.O, "layers": work.layers}
    wrong = [f"{key} is {value!r}" for key, value in sizes.items() if not isinstance(value, int) or value < 1]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: sizes are whole numbers of at least 1.")


def cautions(found: dict[str, Any]) -> list[str]:
    """A sentence about peaks that cannot be true of a quiet machine; nothing where there is nothing to say."""
    if not found or not peaks.disturbed(found):
        return []
    return [
        "The peaks were measured while other programs kept the cores busy, so what is predicted for threads means "
        "little: `python -m rnnpar.peaks` measures them at a quieter time."
    ]


def _reason(costs: Model, work: Work, threads: int, best: str) -> str:
    """What decides, in numbers of the model: a step on one thread, a step shared, a meeting."""
    if threads == 1:
        return "With one thread there is nothing to share out."
    one, meet = costs.step(work.B, work.H, work.H), costs.meet(threads, work.B * work.H)
    alone = f"W h of a step takes one thread {duration(one)}"
    meeting = f"{duration(meet)} for {threads} threads to meet"
    every_step = f"sharing every step would cost {work.T * work.layers:,} times {meeting}"
    each = math.ceil(work.B / threads)
    share = math.ceil(math.ceil(work.H / costs.width) / threads) * costs.width
    shared = costs.step(work.B, share, work.H, threads)
    return {
        "serial/compiled": f"{alone}; {every_step}, and to start the threads {duration(costs.launch(threads))} a call.",
        "threads/rows": f"{alone}; shared by {threads} it takes {duration(shared)}, and {meeting}.",
        "threads/batch": f"A thread has {each} of {work.B:,} sequences to itself and never waits; {every_step}.",
        "threads/wavefront": f"Its {2 * work.layers + 1} stages work side by side and meet once a chunk of steps; "
        f"{every_step}.",
    }.get(best, "")
