"""The predicted time of each method, from this machine's measured peaks: "auto" asks it, and chapters draw it first.

The model adds up what each strategy does, in the strategy's own order: products of so many rows at the rate that this
machine's cache levels allow, tanh and softmax by the element, a barrier or a flag where threads meet, a start of
threads. Nothing is fitted to the forward passes that it predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from rnnpar import machine, model_gpu, peaks, registry
from rnnpar.network import RNN
from rnnpar.work import Work

AUTO = (
    "serial/compiled",
    "threads/rows",
    "threads/batch",
    "threads/wavefront",
)  # what "auto" chooses among, the simplest first
TIE = 1.02  # as near the model cannot tell them apart
SLOTS = 3  # chunks that a layer of `wavefront` keeps, as in backends/threads.py


class Surface:
    """Seconds of a product for each weight that it holds, over (H of a square W, rows): straight lines between logs."""

    def __init__(self, points: list[tuple[int, int, float]]):
        self.H = sorted({H for H, _, _ in points})
        self.rows = sorted({rows for _, rows, _ in points})
        seconds = {(H, rows): took for H, rows, took in points}
        self.log = np.log([[seconds[H, rows] / (H * H) for rows in self.rows] for H in self.H])

    def __call__(self, side: float, rows: float) -> float:
        i, u = _place(self.H, side)
        j, v = _place(self.rows, rows)
        corner = self.log[i : i + 2, j : j + 2]
        seconds = math.exp(np.array([1 - u, u]) @ corner @ np.array([1 - v, v]))
        return seconds * max(1.0, rows / self.rows[-1])  # more rows than measured: at the rate of the most


def _place(grid: list[int], value: float) -> tuple[int, float]:
    """The interval of `grid` in which `value` lies and where in it, from 0 to 1, by logarithms; clamped at the ends."""
    position = np.interp(math.log(max(value, 1e-9)), np.log(grid), np.arange(len(grid)))
    index = min(int(position), len(grid) - 2)
    return index, float(position - index)


class Model:
    """Predictions from one machine's peaks: `predict(method, work, threads) -> seconds`."""

    def __init__(self, peaks: dict[str, Any], width: int, rows: int = 8):
        self.peaks = peaks
        self.width = width  # columns of a panel: what products are padded to
        self.rows = rows  # of a full tile

    @cached_property
    def surfaces(self) -> dict[str, dict[int, Surface]]:
        """The measured products and steps, by the number of threads that worked at once."""
        return {
            kind: {int(n): Surface(points) for n, points in self.peaks[kind].items()} for kind in ("products", "steps")
        }

    @cached_property
    def blas(self) -> Surface:
        return Surface(self.peaks["blas"])

    def _weights(self, kind: str, rows: float, N: int, K: int, active: int) -> float:
        """Seconds of `rows` rows times N x K weights by one thread, while `active` threads do as much."""
        if min(rows, N, K) <= 0:
            return 0.0
        weights = math.ceil(N / self.width) * self.width * K
        surfaces = self.surfaces[kind]
        fewest, most = min(surfaces), max(surfaces)
        one, all_ = (surfaces[n](math.sqrt(weights), rows) * weights for n in (fewest, most))
        share = 0.0 if most == fewest else min(1.0, (active - fewest) / (most - fewest))
        return one + share * (all_ - one)

    def product(self, rows: float, N: int, K: int, active: int = 1) -> float:
        """Seconds of rows x K times K x N by one thread, while `active` threads do as much."""
        block = min(rows, 64)
        return self._weights("products", block, N, K, active) * (rows / block if block else 0)

    def step(self, rows: float, N: int, K: int, active: int = 1) -> float:
        """Seconds of one step, N elements of tanh(W h) for each of `rows` rows, that waits for the one before."""
        return self._weights("steps", rows, N, K, active)

    def meet(self, threads: int, elements: float) -> float:
        """Seconds of one meeting at which the threads hand `elements` float32 to each other; 0 for one thread."""
        if threads == 1:
            return 0.0
        counts = sorted(map(int, self.peaks["exchange"]))
        lines = [self.peaks["exchange"][str(n)] for n in counts]
        a_meeting, an_element = (float(np.interp(threads, counts, [line[i] for line in lines])) for i in (0, 1))
        return a_meeting + an_element * elements

    def _at(self, key: str, threads: int) -> float:
        """A cost that was measured for some numbers of threads, between them in proportion; 0 for one thread."""
        table = {int(n): seconds for n, seconds in self.peaks[key].items()}
        counts = sorted(table)
        return float(np.interp(threads, counts, [table[n] for n in counts])) if counts else 0.0

    def launch(self, threads: int) -> float:
        """Seconds to start that many threads."""
        return self._at("launch", threads)

    def line(self, key: str, calls: float, elements: float) -> float:
        """Seconds of `calls` calls over `elements` elements in all."""
        a_call, an_element = self.peaks[key]
        return calls * a_call + elements * an_element

    def output(self, rows: float, work: Work, active: int = 1) -> float:
        """Seconds of V h and softmax for `rows` rows by one thread."""
        return self.product(rows, work.O, work.H, active) + self.line("softmax", rows, rows * work.O)

    def fresh(self, work: Work) -> float:
        """Seconds for the pages of y, which is new in every call."""
        return 4.0 * work.T * work.B * work.O * self.peaks["fresh_memory"]

    def predict(self, method: str, work: Work, threads: int = 1) -> float:
        """Seconds of one call of `method`; NaN for a method that the model knows nothing of."""
        formula = FORMULAS.get(method) or registry.formula(method)
        return self.peaks["call"] + formula(self, work, threads) if formula else math.nan


def _naive(model: Model, work: Work, threads: int) -> float:
    """Per step and layer two products, four small operations; then V h and the six operations of softmax."""
    T, B, H = work.T, work.B, work.H
    blas = lambda N, K: model.blas(math.sqrt(N * K), B) * N * K  # noqa: E731
    a_step = sum(blas(H, I) + blas(H, H) for I in work.inputs()) + blas(work.O, H)
    small = work.layers * (model.line("numpy_add", 4, 3 * B * H) + model.line("numpy_tanh", 1, B * H))
    small += model.line("numpy_add", 7, 5 * B * work.O) + model.line("numpy_exp", 1, B * work.O)
    return T * (a_step + small)


def _hoisted(model: Model, work: Work, threads: int) -> float:
    """The same products with T * B rows for U x and V h; only W h is left in the loop."""
    T, B, H = work.T, work.B, work.H
    rows = T * B
    blas = lambda r, N, K: model.blas(math.sqrt(N * K), r) * N * K  # noqa: E731
    outside = sum(blas(rows, H, I) for I in work.inputs()) + blas(rows, work.O, H)
    outside += model.line("numpy_add", 12, 6 * rows * work.O + 2 * rows * H) + model.line("numpy_exp", 1, rows * work.O)
    a_step = blas(B, H, H) + model.line("numpy_add", 3, B * H) + model.line("numpy_tanh", 1, B * H)
    return T * work.layers * a_step + outside + 2 * model.fresh(work)


def one_thread(model: Model, work: Work, B: int, active: int) -> float:
    """One thread takes B sequences from the first step to the last."""
    T, H = work.T, work.H
    ahead = sum(model.product(T * B, H, I, active) for I in work.inputs())
    return ahead + work.layers * T * model.step(B, H, H, active) + model.output(T * B, work, active)


def _compiled(model: Model, work: Work, threads: int) -> float:
    return one_thread(model, work, work.B, 1) + model.fresh(work)


def _batch(model: Model, work: Work, threads: int) -> float:
    """The largest share of the batch, while as many threads as there are sequences do as much."""
    share, active = math.ceil(work.B / threads), min(threads, work.B)
    return model.launch(threads) + one_thread(model, work, share, active) + model.fresh(work) / active


def _rows(model: Model, work: Work, threads: int) -> float:
    """Each thread has a share of the panels of U and W, and of the rows of the output; they meet after each step."""
    T, B, H = work.T, work.B, work.H
    share = math.ceil(math.ceil(H / model.width) / threads) * model.width  # the largest share, in whole panels
    ahead = sum(model.product(T * B, share, I, threads) for I in work.inputs())
    a_step = model.step(B, share, H, threads) + model.meet(threads, B * H)
    outputs = model.output(math.ceil(T * B / threads), work, threads)
    return model.launch(threads) + ahead + work.layers * T * a_step + outputs + model.fresh(work) / threads


def _timestep(model: Model, work: Work, threads: int) -> float:
    """The longer of two: the chain of W h and flags, or all the work dealt out over the threads."""
    T, B, H = work.T, work.B, work.H
    ahead = sum(model.product(B, H, I, threads) for I in work.inputs())
    chain = work.layers * (model.step(B, H, H, threads) + model.meet(threads, B * H))
    behind = model.output(B, work, threads)
    busy = math.ceil(T / threads) * (ahead + chain + behind)
    return model.launch(threads) + max(T * chain + ahead + behind, busy) + model.fresh(work) / threads


def _wavefront(model: Model, work: Work, threads: int) -> float:
    """Tasks in the order in which their tickets are drawn, each by the thread that is free first: played through.

    A task waits for two lines from another core, its ticket and a flag. States that another thread computed come while
    it multiplies, and cost no time of their own.
    """
    B, H = work.B, work.H
    told = 2 * model.meet(min(threads, 2), 0)

    def stages(steps: int) -> list[float]:
        """Seconds of each stage at a chunk of so many steps."""
        costs: list[float] = []
        for I in work.inputs():
            costs += [model.product(steps * B, H, I, threads), steps * model.step(B, H, H, threads)]
        return [cost + told for cost in [*costs, model.output(steps * B, work, threads)]]

    chunk = wavefront_chunk(work, model.width, model.rows)
    whole, rest = divmod(work.T, chunk)
    played = play([stages(chunk)] * whole + [stages(rest)] * (rest > 0), threads)
    return model.launch(threads) + played + model.fresh(work) / threads


def wavefront_chunk(work: Work, width: int, rows: int) -> int:
    """Steps of a chunk, as threads.wavefront chooses them with panels of `width` columns and tiles of `rows` rows."""
    T, B, H = work.T, work.B, work.H
    states = min(max(64 * 1024, H * H // 4), 1024 * 1024) // (B * math.ceil(H / width) * width)
    most = min(states, (1 << 31) // (B * H * (H + work.I)))  # as in forward.Plan.of
    return max(1, min(T, most, max(math.ceil(2 * rows / B), T // 16)))


def play(costs: Sequence[Sequence[float]], threads: int) -> float:
    """Seconds of a pipeline, as threads.wavefront_region takes its tasks; costs: a row a chunk, of a column a stage.

    A thread that drew a task waits for what it needs, even if a later task could begin at once.
    """
    chunks, stages, done, free = len(costs), len(costs[0]), {}, [0.0] * threads
    for wave in range(2 * chunks + stages):
        for stage in range(wave % 2, stages, 2):
            c = (wave - stage) // 2
            if not 0 <= c < chunks:
                continue
            needs = [(stage - 1, c)]
            if stage % 2:
                needs += [(stage, c - 1)]
            elif stage < stages - 1:  # the place that it writes to must have been read
                needs += [(stage + 1, c - SLOTS + 1), (stage + 2, c - SLOTS)]
            begin = max(min(free), *(done.get(task, 0.0) for task in needs))
            free[free.index(min(free))] = done[stage, c] = begin + costs[c][stage]
    return max(free)


# --- parallel in time: a window of steps at once, several times over --------------------------------------------------

ITERATIONS = {"jacobi": 25, "segments": 1, "quasi_deer": 25, "deer": 4}  # of a network with an exponent of about -0.5
FADES = 40  # steps until such a network has forgotten its start, and a segment's map has faded away
SEGMENTS = {"segments": (32, 128)}  # segments a thread at most, and their shortest length: as in backends/in_time.py
ELSE = (8, 64)


def windows(T: int, least: int = 64) -> list[int]:
    """Lengths of window to choose among: all of T, its half, its quarter and so on, down to `least`."""
    found = [T]
    while found[-1] > least:
        found.append(-(-found[-1] // 2))
    return found


def best_window(method: str, work: Work, threads: int, choices: list[int]) -> int:
    """The window for which the model expects the shortest time; the longest of equals.

    Only windows whose states stay in the threads' second-level caches from one iteration to the next, if there are
    any: an iteration reads and writes four arrays of states, and from memory it would take about twice as long.
    """
    near = threads * machine.caches().get("L2", 2**20)
    choices = [window for window in choices if 16 * window * work.B * work.H <= near] or [min(choices)]
    if len(choices) == 1:
        return choices[0]
    seconds = {window: in_time_seconds(here(), method.split("/")[1], work, threads, window) for window in choices}
    return max(choices, key=lambda window: (-seconds[window], window))


def in_time_seconds(model: Model, strategy: str, work: Work, threads: int, window: int,
                    iterations: float | None = None) -> float:  # fmt: skip
    """Seconds of one call in windows of that length, after so many iterations (by default those of ITERATIONS)."""
    T, B, H = work.T, work.B, work.H
    each, shortest = SEGMENTS.get(strategy, ELSE)
    each = max(1, min(each, window // (threads * shortest)))
    n = math.ceil(window / (threads * each))  # steps of a segment
    rows = math.ceil(window / threads) * B  # of one thread
    evaluate = model.product(rows, H, H, threads) + model.line("tanh", 1, 2 * rows * H) + model.meet(threads, H)
    roll = n * model.step(each * B, H, H, threads)  # all segments of a thread at once, step by step
    maps = each * B * min(n, FADES) * model.product(H, H, H, threads)
    correct = {
        "jacobi": 0.0,
        "segments": roll * (1 + FADES / n),
        "quasi_deer": 2 * model.line("tanh", 1, rows * H),  # a few operations an element, twice
        "deer": 2 * roll + maps,
    }[strategy]
    check = (n + FADES) * model.step(2 * each * B, H, H, threads)
    times = ITERATIONS[strategy] if iterations is None else iterations
    a_window = 3 * model.launch(threads) + (times + 1) * evaluate + times * correct + check
    ahead = sum(model.product(T * B / threads, H, I, threads) for I in work.inputs())
    behind = model.output(T * B / threads, work, threads) + model.fresh(work) / threads
    return ahead + work.layers * math.ceil(T / window) * a_window + behind


def _in_time(strategy: str) -> Callable[[Model, Work, int], float]:
    """The time in the best window there is, memory apart."""
    return lambda model, work, threads: min(
        in_time_seconds(model, strategy, work, threads, window) for window in windows(work.T)
    )


FORMULAS: dict[str, Callable[[Model, Work, int], float]] = {
    "serial/naive": _naive,
    "serial/hoisted": _hoisted,
    "serial/compiled": _compiled,
    "threads/timestep": _timestep,
    "threads/rows": _rows,
    "threads/batch": _batch,
    "threads/wavefront": _wavefront,
    "in_time/jacobi": _in_time("jacobi"),
    "in_time/segments": _in_time("segments"),
    "in_time/quasi_deer": _in_time("quasi_deer"),
    "in_time/deer": _in_time("deer"),
}


def here() -> Model:
    """The model of this machine; measures its peaks if that was never done."""
    from rnnpar.kernels.tile import ROWS, WIDTH

    return Model(peaks.here(), WIDTH, ROWS)


def fastest(
    net: RNN,
    T: int,
    B: int,
    threads: int,
    on_device: bool = False,
    dtype: str = "float32",
    without: Collection[str] = (),
) -> str:
    """The name of the method that the model expects to be fastest at this shape on this machine.

    For NumPy arrays a GPU's method counts with its copies to the device and back; `on_device` says that x lies on the
    GPU already, and then only its methods count; those named in `without` do not. Without a GPU, or a GPU method that
    can run, nothing of CUDA is asked.
    """
    work = Work.of(net, max(T, 1), max(B, 1))
    best, seconds = _fastest_on_gpu(work, transfers=not on_device, dtype=dtype, without=without)
    if on_device:
        if not best:
            raise registry.Unavailable(f"no GPU method can compute {work}: {machine.gpu_problem() or 'none fits'}")
        return best
    model = here()
    on_cpu = {name: model.predict(name, work, threads) for name in (AUTO if threads > 1 else AUTO[:1])}
    chosen = choose(on_cpu)
    return best if seconds < on_cpu[chosen] else chosen


def choose(seconds: Mapping[str, float]) -> str:
    """The name with the least predicted seconds; of those of AUTO that come as near as the model sees, the first.

    The earlier keep fewer weights in each core's cache: one's share of them in `rows`, all of them in `batch`. Where
    they just fill it, what a step takes depends on how its memory happens to lie, which the model cannot know.
    """
    least = min(seconds, key=seconds.__getitem__)
    near = [name for name in AUTO if name in seconds and seconds[name] <= TIE * seconds[least]]
    return near[0] if least in AUTO else least


def _fastest_on_gpu(work: Work, transfers: bool, dtype: str, without: Collection[str] = ()) -> tuple[str, float]:
    """The GPU's fastest method and its seconds; ("", inf) where there is no GPU, or nothing to use it with."""
    if not machine.gpu():
        return "", math.inf
    named = {method.name for method in registry.methods() if method.on_gpu and method.available}
    methods = tuple(name for name in model_gpu.AUTO if name in named and name not in without)
    return model_gpu.fastest(model_gpu.here(), work, methods, transfers, dtype) if methods else ("", math.inf)
