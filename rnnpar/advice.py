"""Which method to take at given sizes, and why: what the model says, in a sentence.

Nothing is run. `python -m rnnpar advise` and the chapters say the same, since both ask here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rnnpar import machine, peaks, registry
from rnnpar.model import AUTO, Model, choose
from rnnpar.words import duration, gibibytes, percent, ratio
from rnnpar.work import Work

if TYPE_CHECKING:
    from rnnpar.model_gpu import GpuModel

CLOSE = 1.1  # predicted within so much of the best, another method is worth trying: the model is no better than that

LEFT_OUT = {  # why a backend's methods are not advised, those aside that "auto" considers
    "serial": "predicted above, for comparison: serial/compiled does the same, faster",
    "threads": "predicted above, for comparison: it is the origin's way",
    "in_time": "predicted above; but the weights decide how many iterations they take, not the sizes: chapter 07",
    "mpi": "for ranks on several machines; within one, threads share the work without messages: chapter 06",
    "peers": "other libraries, which the model knows nothing of: chapter 08, or `time` measures one",
}


@dataclass(frozen=True)
class OnGpu:
    """What the model says of a GPU: `seconds` of a call by method, the shortest first, copies there and back included.

    `refused`: why a method cannot do it on that GPU. `here`: it is this machine's. `measured`: so are its rates.
    """

    name: str
    seconds: dict[str, float]
    refused: dict[str, str]
    copies: float
    here: bool = False
    measured: bool = False

    @property
    def sentence(self) -> str:
        """What was predicted, from what; and which method to take there."""
        source = "this GPU's own peaks" if self.measured else "data sheets and papers"
        head = f"On a GPU, {self.name}: predicted from {source}, not measured"
        if not self.seconds:
            return f"{head}. No method can do it there."
        best = min(self.seconds, key=self.seconds.__getitem__)
        return (f"{head}; {duration(self.copies)} of each call for the copies there and back. "
                f'There: `rnnpar.prepare(net, "{best}")`.')  # fmt: skip


@dataclass(frozen=True)
class Advice:
    """What to take. `seconds` are those of a call by method, the shortest first; `runner_up` is "" for one thread.

    `gpu` is what was said of a GPU, if of any: where it is this machine's, its methods that can run are in `seconds`.
    """

    machine: str
    threads: int
    work: Work
    seconds: dict[str, float]
    method: str
    runner_up: str
    reason: str
    gpu: OnGpu | None = None
    considered: tuple[str, ...] = AUTO

    @property
    def not_considered(self) -> list[str]:
        """The methods that the advice leaves out, by backend, and why."""
        reasons: dict[str, list[str]] = {}
        for row in registry.methods():
            if why := self._left_out(row):
                reasons.setdefault(why, []).append(row.name)
        return [f"{', '.join(names)}: {why}" for why, names in reasons.items()]

    def _left_out(self, row: registry.Method) -> str:
        """Why a method is not advised; empty where it was considered."""
        if row.name in self.considered:
            return ""
        if row.on_gpu:
            return self._left_out_gpu(row)
        if row.function:
            return (
                "predicted above, by your own formula" if row.predicts else "registered without a formula, `predicts`"
            )
        if row.backend == "threads" and self.threads == 1:
            return "with one thread there is nothing to share out"
        return LEFT_OUT.get(row.backend, "the model knows nothing of it")

    def _left_out_gpu(self, row: registry.Method) -> str:
        if self.gpu is None:
            return "no NVIDIA GPU here; `--gpu H100` predicts them for one"
        if row.name in self.gpu.refused:
            return self.gpu.refused[row.name]
        if not self.gpu.here:
            return ""  # shown apart, with that GPU's sentence
        return row.why_not or "predicted above, for comparison"

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
        return (
            f" {self.runner_up} is predicted within {percent(max(0.01, abs(gap - 1)))}: try both."
            if gap < CLOSE
            else ""
        )

    @property
    def details(self) -> str:
        """The predicted time, the runner-up and the reason, in a sentence or two."""
        best = self.seconds[self.method]
        said = f"Predicted: {duration(best)} a call, {duration(best / self.work.T)} a step"
        if self.runner_up:
            longer = ratio(self.seconds[self.runner_up] / best)
            said += f"; of what auto considers, next is {self.runner_up}, {longer} times that"
        return f"{said}. {self.reason}"


def advise(costs: Model, work: Work, threads: int, where: str, gpu: OnGpu | None = None) -> Advice:
    """What the model of the machine `where` would take. ValueError for sizes or threads that cannot be.

    A GPU that is this machine's joins the choice, as it does in "auto", with the methods that can run.
    """
    check_sizes(work)
    most = max(int(count) for count in costs.peaks["launch"])
    if not isinstance(threads, int) or not 1 <= threads <= most:
        raise ValueError(f"threads is {threads!r}; the peaks of {where} tell of 1 to {most} threads.")
    seconds = {method.name: costs.predict(method.name, work, threads) for method in registry.methods()}
    choice = AUTO if threads > 1 else AUTO[:1]
    if gpu and gpu.here:
        from rnnpar.model_gpu import AUTO as GPU_AUTO

        able = {method: value for method, value in gpu.seconds.items() if registry.find(method).available}
        seconds, choice = seconds | able, (*choice, *(method for method in able if method in GPU_AUTO))
    seconds = {method: value for method, value in sorted(seconds.items(), key=lambda item: item[1]) if value > 0}
    best = choose({method: value for method, value in seconds.items() if method in choice})
    others = [method for method in seconds if method in choice and method != best]
    reason = _reason(costs, work, threads, best) if best in AUTO else f"Of that, {duration(gpu.copies)} are copies."
    return Advice(where, threads, work, seconds, best, (others or [""])[0], reason, gpu, choice)


def gpu_here(work: Work) -> OnGpu | None:
    """What the model says of this machine's GPU; None where there is none. Its peaks are measured once."""
    if not machine.gpu():
        return None
    from rnnpar import model_gpu

    costs = model_gpu.here()
    return on_gpu(costs, work, here=True)


def gpu_named(name: str, work: Work) -> OnGpu:
    """What the model says of a card that it knows by name, such as H100, or of this machine's if that is one such.

    ValueError for a card of which nothing is written down.
    """
    from rnnpar import model_gpu

    device = model_gpu.card(name)
    if machine.gpu().get("name") == device.name:
        return on_gpu(model_gpu.here(), work, here=True)
    return on_gpu(model_gpu.GpuModel(device), work)


def on_gpu(costs: GpuModel, work: Work, here: bool = False) -> OnGpu:
    """Each GPU method's time at these sizes from NumPy arrays to NumPy arrays, or why it cannot do it."""
    from rnnpar.kernels.launch import DoesNotFit
    from rnnpar.model_gpu import FORMULAS

    check_sizes(work)
    seconds, refused = {}, {}
    needed, limit = bytes_of(work), costs.device.memory
    for method in FORMULAS:
        try:
            if needed > limit:
                raise DoesNotFit("a call", "bytes of memory", needed, limit, f"on {costs.device.name}")
            seconds[method] = costs.predict(method, work, transfers=True).seconds
        except DoesNotFit as error:
            refused[method] = f"does not fit: {error}"
    ordered = dict(sorted(seconds.items(), key=lambda item: item[1]))
    return OnGpu(costs.device.name, ordered, refused, costs.copies(work), here, costs.rates.measured)


def check_sizes(work: Work) -> None:
    """ValueError unless all sizes are whole numbers of at least 1. I and O that are wrong as H is are its echo."""
    sizes = {"H": work.H, "T": work.T, "B": work.B, "I": work.I, "O": work.O, "layers": work.layers}
    sizes = {key: value for key, value in sizes.items() if key not in "IO" or value != work.H}
    wrong = [f"{key} is {value!r}" for key, value in sizes.items() if not isinstance(value, int) or value < 1]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: sizes are whole numbers of at least 1.")


def bytes_of(work: Work) -> int:
    """Bytes of the weights, the input and the output, in float32: the least that a call needs."""
    weights = work.H * sum(work.inputs()) + work.layers * (work.H**2 + work.H) + work.O * (work.H + 1)
    return 4 * (weights + work.T * work.B * (work.I + work.O) + work.layers * work.B * work.H)


def too_large(work: Work, memory: int, times: int = 1) -> str:
    """Why a machine of so many bytes cannot hold a call, kept `times` over; empty where it can."""
    needed = times * bytes_of(work)
    if needed <= memory:
        return ""
    return (f"weights, input and output of these sizes need {gibibytes(needed)}, and this machine has "
            f"{gibibytes(memory)} of memory")  # fmt: skip


def cautions(found: dict[str, Any], work: Work | None = None) -> list[str]:
    """Sentences about sizes that this machine cannot hold, and about peaks that cannot be true of a quiet one."""
    large = too_large(work, machine.memory()) if work else ""
    said = [f"It will not run here: {large}."] if large else []
    if not found or not peaks.disturbed(found):
        return said
    return [
        *said,
        "The peaks were measured while other programs kept the cores busy, so what is predicted for threads means "
        "little: `python -m rnnpar.peaks` measures them at a quieter time.",
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
