"""Parallel in time: the chain of steps as one system of equations, solved for many steps at once.

    h[t] = tanh(z[t] + W h[t-1]),  z[t] = b + U x[t]        T equations for T unknown states

A guess at all h[t] is corrected until it satisfies every equation; each correction treats all time steps alike, so
there is no chain any more, but several corrections where one pass along the chain would do. Sequences too long for
memory are cut into windows: parallel inside, one after another between them (Song et al. call it GS-Jacobi).

Nothing is returned that was not checked. The residual, the most by which any equation is missed, must be small; and
since a small residual early on may have grown into a large error later, the residuals themselves are carried along the
sequence by the linearised equations (kernels/scan.py: `growth_region`). A network that makes too much of them, because
it is chaotic, is refused: `NotConverged`.

Letters: T steps, B batch, I input, H hidden, O output, L layers, S segments. x (T,B,I), h (L,B,H), y (T,B,O), float32.

Song, Meng, Liao, Ermon 2021, Accelerating feedforward computation via parallel nonlinear equation solving (ICML;
arXiv 2002.03629). Lim, Zhu, Selfridge, Kasim 2024, Parallelizing non-linear sequential models over the sequence
length (ICLR; arXiv 2309.12252): DEER. Gonzalez, Warrington, Smith, Linderman 2024, Towards scalable and stable
parallelization of nonlinear RNNs (NeurIPS; arXiv 2407.19115): quasi-DEER, ELK. Gonzalez, Kozachkov, Zoltowski,
Clarkson, Linderman 2025, Predictability enables parallelization of nonlinear state space models (NeurIPS; arXiv
2508.16817).
Blelloch 1990, Prefix sums and their applications (CMU-CS-90-190).
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from rnnpar import device_arrays, model
from rnnpar.kernels import scan, scan_arrays
from rnnpar.kernels.blas import one_blas_thread
from rnnpar.kernels.forward import FIELDS, fields_of
from rnnpar.kernels.forward import Plan as OutputPlan
from rnnpar.kernels.job import LINE, Job
from rnnpar.kernels.team import Region
from rnnpar.kernels.tile import WIDTH, Packed, aligned, round_up
from rnnpar.network import RNN
from rnnpar.registry import Unavailable

Forward = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

BOUND = 1e-5  # the largest error to be expected of an answer that is returned
# Residuals to be reached, the next one where the answer is not good enough yet. Newton's last step takes a residual far
# below what it had to reach, the others only just below it; and rounding leaves Newton's about 5e-7.
TOLERANCES = {"deer": (1e-6, 1e-7), "segments": (1e-6, 1e-7, 0.0), "quasi_deer": (5e-7, 1e-7), "jacobi": (5e-7, 0.0)}
TOLERANCES_64 = (1e-9, 1e-14, 0.0)
MEMORY = 0.5  # the share of the memory free at the time of a call that the call may take
EPSILON = float(np.finfo(np.float32).eps)
KEPT_NOISE = 1024  # signs drawn once, from which the rounding errors of `growth` are taken


class NotConverged(RuntimeError):
    """The iteration did not reach an answer that can be trusted; the message says what it came to, and what would do.

    `info` is what run.info would have said.
    """

    def __init__(self, message: str, info: dict[str, Any]):
        super().__init__(message)
        self.info = info


# --- the strategies, from plain to clever -----------------------------------------------------------------------------


def jacobi(net: RNN, threads: int, dtype: str = "float32", window: int | None = None,
           max_iterations: int | None = None, array_module: str | None = None) -> Forward:  # fmt: skip
    """All steps at once from the last iterate: h[t] = tanh(z[t] + W h[t-1]) with yesterday's h[t-1] (Song et al. 2021).

    Parallelises: time steps, each iteration one product over all of them. Synchronises: one barrier an iteration.
    Moves: all T states, in every iteration. After k iterations the first k steps are exact, whatever the network; a
    network that forgets its start within m steps is done after some m iterations. `max_iterations` bounds them: by
    default a window's length, which always suffices, or 5,000.
    """
    return InTime("jacobi", net, threads, dtype, window, max_iterations, 0.0, array_module)


def segments(net: RNN, threads: int, dtype: str = "float32", window: int | None = None,
             max_iterations: int | None = None, array_module: str | None = None) -> Forward:  # fmt: skip
    """Segments of time at once, step by step inside each, from the last iterate's ends (Song et al.: Jacobi-GS).

    Parallelises: segments, over threads and, as the rows of one batch, within a thread. Synchronises: two barriers
    an iteration. Moves: each segment's end to the next one. The first sweep starts every segment from zeros, and all
    but each one's first m steps are right if the network forgets its start within m; the next sweep redoes those, and
    stops where no bit changes any more. So it does hardly more work than one pass along the chain. Exact after as
    many sweeps as there are segments.
    """
    return InTime("segments", net, threads, dtype, window, max_iterations, 0.0, array_module)


def quasi_deer(net: RNN, threads: int, dtype: str = "float32", window: int | None = None,
               max_iterations: int | None = None, damping: float = 0.0,
               array_module: str | None = None) -> Forward:  # fmt: skip
    """Newton with the diagonal of the Jacobian only (Gonzalez et al. 2024): each iteration a scan of single numbers.

    Parallelises: time steps; the scan, segments of time. Synchronises: three barriers an iteration. Moves: T x H
    numbers in every iteration, twice. More iterations than `deer`, each far cheaper; what the diagonal leaves out is
    corrected only a step at a time, as in `jacobi`.
    """
    return InTime("quasi_deer", net, threads, dtype, window, max_iterations, damping, array_module)


def deer(net: RNN, threads: int, dtype: str = "float32", window: int | None = None, max_iterations: int | None = None,
         damping: float = 0.0, array_module: str | None = None) -> Forward:  # fmt: skip
    """Newton over the whole sequence (Lim et al. 2024): each iteration a linear recurrence with the dense Jacobian.

    Parallelises: time steps; the scan of d[t] = diag(1 - f[t]^2) W d[t-1] + r[t], segments of time. Synchronises:
    three barriers an iteration. Moves: T x H numbers in every iteration, and a matrix H x H a segment. Few iterations,
    since the error is squared in each. `damping` between 0 and 1 shrinks the Jacobian by that share, towards Jacobi's
    iteration at 1 (scale-ELK of Gonzalez et al. 2024): slower, and less easily thrown off its way.
    """
    return InTime("deer", net, threads, dtype, window, max_iterations, damping, array_module)


KINDS = {"jacobi": scan.JACOBI, "segments": scan.SEGMENTS, "quasi_deer": scan.DIAGONAL, "deer": scan.DENSE}
MOST = {"jacobi": 5000, "segments": 5000, "quasi_deer": 5000, "deer": 200}  # corrections of a window, by default


# --- windows, segments, and the bytes that they take ------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How a call is cut up: windows of `window` steps, each of S segments of n steps, and the bytes that this takes.

    `bytes` counts every array that the call makes, y among them; x is the caller's. ld: a row of states.
    """

    kind: int
    T: int
    B: int
    window: int
    S: int
    n: int
    ld: int
    own: int  # segments of the thread that has the most
    bytes: int

    @classmethod
    def of(cls, name: str, work: model.Work, threads: int, window: int, xp: bool, itemsize: int) -> Plan:
        """The plan for one length of window. `xp`: of the array code, which pads nothing and needs temporaries."""
        kind, (T, B, H) = KINDS[name], (work.T, work.B, work.H)
        S = segments_for(kind, window, threads, xp)
        n = -(-window // S) | 1  # odd, lest all segments' rows lie at multiples of a large power of two, where they
        S = -(-window // n)  # would drive each other out of the cache
        own = max(S * (rank + 1) // threads - S * rank // threads for rank in range(threads))
        ld = H if xp else round_up(H, WIDTH)
        plan = cls(kind, T, B, window, S, n, ld, own, 0)
        total = 4 * work.T * work.B * work.O + 8 * work.layers * B * H
        if xp:
            states = itemsize * window * B * H  # z and h, x as the array code has it, logits and softmax
            around = itemsize * window * B * (2 * work.I + 3 * work.O)
            total += 2 * states + max(around, scan_arrays.array_bytes(kind, window, B, H, S, itemsize))
        else:
            total += 4 * (4 * window + 1) * B * ld + 4 * threads * plan.scratch(H)
            total += 4 * plan.ends(threads) + 4 * plan.maps(H, threads) + 64 * round_up(work.O, WIDTH) * 4 * threads
        return cls(kind, T, B, window, S, n, ld, own, total)

    def scratch(self, H: int) -> int:
        """float32 numbers that one thread needs to itself."""
        width = self.B * self.ld
        rows = max(self.own, 1) * width
        return max(4 * rows, rows + max(rows, H * self.ld)) + 2 * width

    def ends(self, threads: int) -> int:
        """One row a segment, or a thread where there are more of them: the diagonal scan cuts by threads."""
        return max(self.S, threads) * self.B * self.ld

    def maps(self, H: int, threads: int) -> int:
        """One matrix a segment and sequence for the dense scan, one row a thread for the diagonal one."""
        width = self.B * self.ld
        return {scan.DENSE: self.S * width * H, scan.DIAGONAL: threads * width}.get(self.kind, 0)


def segments_for(kind: int, window: int, threads: int, xp: bool) -> int:
    """Segments of a window. More of them are more rows in each product, and more starts to be found.

    Threads: 8 rows each fill a register tile; 32 where segments cost nothing but their first steps. Arrays: every
    step of a segment is a few calls, so there are as many segments as steps in each, times 4.
    """
    if xp:
        return max(1, min(window, 4 * math.isqrt(window)))
    each, shortest = (32, 128) if kind == scan.SEGMENTS else (8, 64)
    return min(window, threads * max(1, min(each, window // (threads * shortest))))


# --- a call -----------------------------------------------------------------------------------------------------------


class InTime:
    """`forward(x, h0)` of one strategy; `info` says of the last call:

    iterations (corrections of the window and layer that needed most), evaluations (of all steps, summed up over
    windows and layers, as a share of one pass: the work), residual, error (estimated: see `_Sums.grown`), exponent
    (the largest Lyapunov exponent, a step), window, windows, segments, bytes (predicted peak), residuals (of the
    window with the most iterations, one after each), seconds (by part), engine.
    """

    def __init__(
        self,
        name: str,
        net: RNN,
        threads: int,
        dtype: str,
        window: int | None,
        max_iterations: int | None,
        damping: float,
        array_module: str | None,
    ):
        _check_options(dtype, window, max_iterations, damping, array_module)
        self.name, self.net, self.threads = name, net, threads
        self.window, self.most, self.damping = window, max_iterations, damping
        self.itemsize = 8 if dtype == "float64" else 4
        module = array_module or ("numpy" if dtype == "float64" else None)
        self.engine = Arrays(net, module, dtype, damping) if module else Threads(net, threads, damping)
        self.is_arrays, self.on_gpu = bool(module), module == "cupy"
        # Of an error in h, in V h. Beyond 10 a softmax has all but chosen one output, and passes on no more of it.
        self.out_gain = min(10.0, max(1.0, float(np.linalg.norm(net.V)) / math.sqrt(net.output_size)))
        # Rounding leaves the more of a residual the larger the products are that it is the difference of.
        self.scales = [max(1.0, float(np.abs(layer.W).sum(axis=1).max()) / 5) for layer in net.layers]
        norms = [float(np.linalg.norm(layer.W)) / math.sqrt(net.hidden_size) for layer in net.layers]
        self.rough = [max(0.0, norm / 2 - 1) for norm in norms]  # and before a tanh the rounding is larger as well
        self.plans: dict[tuple[int, int], Plan] = {}
        self.info: dict[str, Any] = {}

    def __call__(self, x: Any, h0: Any) -> tuple[Any, Any]:
        with np.errstate(all="ignore"):  # infinity and NaN are answers, whatever the caller has told NumPy
            return self._call(x, h0)

    def close(self) -> None:
        """Let go of weights and buffers."""
        self.engine = None

    def _call(self, x: Any, h0: Any) -> tuple[Any, Any]:
        """One call; where the iteration ends nowhere and no bounds were set, once more in short windows.

        Far from the answer Newton's method may win no more than a step with each correction, even on a network that
        forgets (one that settles in either of two states does so). In a window of 64 steps that is no more than 64.
        """
        plan = self._plan(*x.shape[:2])
        try:
            return self._run(plan, x, h0, 0.0)
        except NotConverged as refusal:
            shortest = min(model.windows(plan.T))
            if self.window or self.most or plan.window == shortest or not refusal.info["residual"] > BOUND:
                raise
            wasted = refusal.info["evaluations"]
        self.plans[plan.T, plan.B] = self._plan_of(plan.T, plan.B, shortest)
        return self._run(self.plans[plan.T, plan.B], x, h0, wasted)

    def synchronize(self) -> None:
        """Wait until a GPU has done all that it was asked to do."""
        if self.on_gpu:
            self.engine.xp.cuda.get_current_stream().synchronize()

    def _run(self, plan: Plan, x: Any, h0: Any, evaluations: float) -> tuple[Any, Any]:
        """One call by a plan, after so many evaluations in vain."""
        state = _Sums(plan, self.net.num_layers, self.engine.name, evaluations)
        self.info = state.info
        most = self.most or min(MOST[self.name], plan.window)
        y, h = self.engine.begin(plan, x, h0)
        for t0 in range(0, plan.T, plan.window):
            steps = min(plan.window, plan.T - t0)
            below = 0.0
            for layer in range(self.net.num_layers):
                state.time("inputs", self.engine.inputs, layer, t0, steps)
                below = self._layer(plan, state, layer, steps, min(most, steps), below)
                self.engine.end(layer, steps, h)
            state.time("outputs", self.engine.outputs, t0, steps, y)
        state.finish()
        return self.engine.results(y, h)

    def _layer(self, plan: Plan, state: _Sums, layer: int, steps: int, most: int, below: float) -> float:
        """Solve one layer of one window; returns the error to be expected of it. NotConverged."""
        residuals: list[float] = []
        lost: Any = None  # which states are NaN, since x or h0 is
        small = scan.SMALL if self.itemsize == 4 else 1e-9 * scan.SMALL
        for tolerance in TOLERANCES_64 if self.itemsize == 8 else TOLERANCES[self.name]:
            before, scale = len(residuals), self.scales[layer]
            solve = (self.engine.solve, plan, layer, steps, most, tolerance * scale, small * scale, not before)
            residuals = state.time("solve", *solve)
            if math.isnan(residuals[-1]) and lost is None:
                lost = set_aside(self.engine.xp, *self.engine.arrays(layer, steps))
                residuals = state.time("solve", *solve)
            state.solved(residuals, steps, first=not before)
            if math.isnan(residuals[-1]):
                raise ValueError(f"layer {layer} leads to NaN: an iteration cannot converge on that")
            noise = scan.ROUNDING * (np.finfo(np.float32 if self.itemsize == 4 else np.float64).eps / EPSILON)
            rough = self.rough[layer] + below * self.engine.gain[layer] / noise
            sums = state.time("check", self.engine.growth, plan, layer, steps, noise, rough)
            found = state.grown(layer, sums, steps, self.out_gain if layer == self.net.num_layers - 1 else 1.0)
            if found <= BOUND and residuals[-1] <= BOUND:
                if lost is not None:
                    self.engine.arrays(layer, steps)[1][1:][lost] = math.nan
                return state.keep(layer)
            if len(residuals) > most:
                break
        raise NotConverged(self._why(residuals, most, found, state), state.info)

    def _why(self, residuals: list[float], most: int, error: float, state: _Sums) -> str:
        done, residual = state.info["iterations"], residuals[-1]
        says = f"{self.name} did not converge after {done} iterations, residual {residual:.2g}"
        if residual <= BOUND:
            says = f"{self.name} came to a residual of {residual:.2g} after {done} iterations, but not to an answer"
        exponent = f"the estimated largest Lyapunov exponent is {state.info['exponent']:.3g} a step"
        if residual <= BOUND:  # solved, but rounding alone has grown too large
            would = "a shorter sequence would do" + (", or dtype='float64'" if self.itemsize == 4 else "")
        elif state.info["exponent"] > 0:
            would = "a shorter sequence or window would do, or a sequential method"
        else:
            would = "more max_iterations, a smaller window, or another method of in_time would do"
        return f"{says}: errors may have grown to {error:.2g} ({exponent}); {would}"

    def _plan(self, T: int, B: int) -> Plan:
        """The plan of a shape. MemoryError, with the bytes, where not even the smallest window fits."""
        work = model.Work.of(self.net, T, B)
        plan_of = lambda window: self._plan_of(T, B, window)  # noqa: E731
        room = self.engine.room()
        if (T, B) not in self.plans or self.plans[T, B].bytes > room:
            choices = [min(self.window, T)] if self.window else model.windows(T)
            fitting = [window for window in choices if plan_of(window).bytes <= room]
            if not fitting:
                least = plan_of(min(choices))
                advice = "a smaller window= would need less" if self.window else "a smaller batch would need less"
                raise MemoryError(
                    f"in_time/{self.name} needs {least.bytes:,} bytes at T={T}, B={B}, H={work.H} with windows of "
                    f"{least.window} steps, and may take {int(room):,} (half of what is free): {advice}"
                )
            self.plans[T, B] = plan_of(model.best_window(f"in_time/{self.name}", work, self.threads, fitting))
        return self.plans[T, B]

    def _plan_of(self, T: int, B: int, window: int) -> Plan:
        work = model.Work.of(self.net, T, B)
        return Plan.of(self.name, work, self.threads, window, self.is_arrays, self.itemsize)


class _Sums:
    """What is added up over windows and layers while a call runs."""

    def __init__(self, plan: Plan, layers: int, engine: str, evaluations: float):
        self.T, self.B = plan.T, plan.B
        self.logs = np.zeros((layers, plan.B))  # of how far an error grows from the first step on
        self.errors = np.zeros((layers, plan.B))  # carried into the window at hand
        self.squares = np.zeros(layers)  # sums over steps and sequences of the errors' mean squares
        self.trial = (self.logs[0], self.errors[0], 0.0, 0.0)
        self.done = np.zeros(layers)
        self.info: dict[str, Any] = dict(
            iterations=0, evaluations=evaluations, residual=0.0, error=0.0, exponent=-math.inf, window=plan.window,
            windows=-(-plan.T // plan.window), segments=plan.S, bytes=plan.bytes, residuals=[],
            seconds=dict.fromkeys(("inputs", "solve", "check", "outputs"), 0.0), engine=engine,
        )  # fmt: skip
        self.count = 0

    def time(self, part: str, work: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.perf_counter()
        try:
            return work(*arguments)
        finally:
            self.info["seconds"][part] += time.perf_counter() - begin

    def solved(self, residuals: list[float], steps: int, first: bool) -> None:
        """Note the residuals of a solve; one that goes on from where another stopped adds to its iterations."""
        self.history = residuals if first else self.history + residuals[1:]
        self.count = len(self.history) - 1
        if self.count >= self.info["iterations"]:
            self.info["iterations"], self.info["residuals"] = self.count, self.history
        self.info["evaluations"] += len(residuals) * steps / self.T

    def grown(self, layer: int, sums: np.ndarray, steps: int, gain: float) -> float:
        """The error to be expected so far, from what `growth_region` found of this window's segments (6,S,B), in order.

        As all errors are measured here: the root mean square over all steps of the call (`gain` times that for what
        is to come of it in y), or that of the last state, if larger.
        """
        carried = self.errors[layer].copy()
        total = scan.carry_errors(sums, carried)
        logs = self.logs[layer] + sums[scan.GROWTH].sum(axis=0)
        typical = gain * math.sqrt((self.squares[layer] + total) / (self.T * self.B))
        found = float(np.maximum(typical, carried.max()))  # a NaN in either stays one
        found = found if found >= 0 else math.inf
        self.trial = logs, carried, self.squares[layer] + total, math.sqrt(total / (steps * self.B))
        exponents = [self.logs[i].max() / self.done[i] for i in range(len(self.done)) if i != layer and self.done[i]]
        self.info["exponent"] = float(max([logs.max() / (self.done[layer] + steps), *exponents]))
        self.info["error"] = max(self.info["error"], found) if found <= BOUND else found
        self.info["residual"] = max(self.info["residual"], self.history[-1])
        self.steps = steps
        return found

    def keep(self, layer: int) -> float:
        """The window's answer was taken: the next one goes on from its errors. Returns their root mean square in it."""
        self.logs[layer], self.errors[layer], self.squares[layer], typical = self.trial
        self.done[layer] += self.steps
        return typical

    def finish(self) -> None:
        self.info["evaluations"] /= len(self.done)


def set_aside(xp: Any, z: Any, h: Any, W: Any) -> Any:
    """Put finite numbers in place of NaN in z (T,B,H) and h (T+1,B,H), the guess behind the known state.

    Returns which states (T,B,H) will be NaN: those elements where z is, and all that come after in their sequence. No
    iteration converges on NaN, and every other state stays what it is without them.
    """
    known = h[0]
    odd = ~xp.isfinite(known).all(axis=1)
    if odd.any():  # infinity, too, may become NaN by its product with W
        z[0, odd] += known[odd] @ W.T
        known[odd] = 0
    h[1:] = 0
    lost = xp.isnan(z)
    gone = xp.cumsum(lost.any(axis=2), axis=0) > 0
    lost[1:] |= gone[:-1, :, None]
    z[lost] = 0
    return lost


def _check_options(dtype: str, window: Any, most: Any, damping: float, array_module: str | None) -> None:
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype is {dtype!r}; it must be 'float32' or 'float64'")
    for name, value in (("window", window), ("max_iterations", most)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1, or None")
    if not isinstance(damping, int | float) or not 0 <= damping < 1:
        raise ValueError(f"damping is {damping!r}; it must be a number from 0 on and below 1 (1 would be jacobi)")
    if array_module not in (None, "numpy", "cupy"):
        raise ValueError(f"array_module is {array_module!r}; it must be None (our own threads), 'numpy' or 'cupy'")


def _gain(net: RNN) -> list[float]:
    """How much of an error of the layer below comes into each layer: U as a root mean square gain."""
    return [0.0] + [float(np.linalg.norm(layer.U) / math.sqrt(net.hidden_size)) for layer in net.layers[1:]]


# --- the two engines: our kernels on threads, and arrays --------------------------------------------------------------


class Threads:
    """The parts of a call on a team of threads (kernels/scan.py). Buffers stay for the next call of the same shape."""

    def __init__(self, net: RNN, threads: int, damping: float):
        self.net, self.threads, self.xp = net, threads, np
        self.name = f"{threads} threads"
        self.packed = Packed.of(net)
        self.gain = _gain(net)
        fields = FIELDS | fields_of(net, self.packed) | scan.FIELDS
        self.job = Job(threads, **fields | dict(keep=1.0 - damping, faded=scan.FADED))
        self.inputs_on, self.solve_on, self.growth_on, self.outputs_on = (
            Region(function, self.job)
            for function in (scan.inputs_region, scan.solve_region, scan.growth_region, scan.outputs_region)
        )
        self.diagonals: dict[tuple[int, int], np.ndarray] = {}
        self.plan: Plan | None = None

    def room(self) -> float:
        """Bytes that a call may take: what buffers of the last call take is free for this one."""
        return MEMORY * (psutil.virtual_memory().available + (self.plan.bytes if self.plan else 0))

    def begin(self, plan: Plan, x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if plan != self.plan:
            self._fit(plan)
        self.x = x
        self.state = h0.astype(np.float32, copy=True)
        y, h = self.outputs_plan.results()
        self.job.set(y=y)
        return y, h

    def _fit(self, plan: Plan) -> None:
        """Buffers for another plan. An interrupt in here leaves none, and the next call makes them anew."""
        H, threads, width = self.net.hidden_size, self.threads, plan.B * plan.ld
        self.plan = self.z = self.h = None
        self.job.set(**dict.fromkeys(("z", "g", "r", "h", "scratch", "ends", "maps"), np.zeros(1, np.float32)))
        outputs = self.outputs_plan = OutputPlan.of(self.net, plan.T, plan.B, plan.B)
        self.z, g, r = (aligned(plan.window * width) for _ in range(3))
        self.h = aligned((plan.window + 1) * width)
        noise = np.random.default_rng(0).choice(np.float32([-1, 1]), KEPT_NOISE + width)
        self.job.set(
            z=self.z, g=g, r=r, h=self.h, ends=aligned(plan.ends(threads)), maps=aligned(plan.maps(H, threads)),
            scratch=aligned(threads * plan.scratch(H)), room=plan.scratch(H), alive=np.zeros(plan.S * plan.B, np.uint8),
            noise=noise, signs=noise.size, zero=aligned(plan.ld), partial=np.zeros(2 * threads * LINE),
            logits=outputs.logits(threads), block=outputs.block, kind=plan.kind, B=plan.B,
        )  # fmt: skip
        self.plan = plan

    def inputs(self, layer: int, t0: int, steps: int) -> None:
        """z of the window, and the guess: zeros behind the known state."""
        width = self.plan.B * self.plan.ld
        self.job.set(x=self.x[t0:], layer=layer, T=steps)
        self.inputs_on.run()
        self.h.fill(0)
        self.h[:width].reshape(self.plan.B, -1)[:, : self.net.hidden_size] = self.state[layer]

    def arrays(self, layer: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """z (T,B,H) and h (T+1,B,H) of the window, and W; what pads H is made zeros, since NaN spreads to it too."""
        shape, H = (-1, self.plan.B, self.plan.ld), self.net.hidden_size
        width = self.plan.B * self.plan.ld
        z, h = self.z[: steps * width].reshape(shape), self.h[: (steps + 1) * width].reshape(shape)
        z[:, :, H:] = h[:, :, H:] = 0
        return z[:, :, :H], h[:, :, :H], self.net.layers[layer].W

    def solve(
        self, plan: Plan, layer: int, steps: int, most: int, tolerance: float, small: float, fresh: bool
    ) -> list[float]:
        n = min(plan.n, steps)
        history = np.zeros(most + 3)
        self.job.set(
            w=int(self.packed.table[layer, 1]), diagonal=self._diagonal(layer), history=history, S=-(-steps // n), n=n,
            T=steps, most=most, tolerance=float(tolerance), small=float(small), fresh=fresh,
        )  # fmt: skip
        self.solve_on.run()
        return history[: int(history[most + 1]) + 1].tolist()

    def growth(self, plan: Plan, layer: int, steps: int, noise: float, rough: float) -> np.ndarray:
        """How the segments carry errors on, (6,S,B): see scan.growth_region. `rough`: in units of `noise`."""
        n = min(plan.n, steps)
        sums = np.zeros((6, -(-steps // n), plan.B))
        self.job.set(found=sums, rough=float(noise * rough), S=sums.shape[1], n=n, T=steps)
        self.growth_on.run()
        return sums

    def end(self, layer: int, steps: int, h: np.ndarray) -> None:
        """The last state of the window begins the next one."""
        width = self.plan.B * self.plan.ld
        last = self.h[steps * width : (steps + 1) * width].reshape(self.plan.B, -1)
        self.state[layer] = h[layer] = last[:, : self.net.hidden_size]

    def outputs(self, t0: int, steps: int, y: np.ndarray) -> None:
        self.job.set(y=y[t0:], T=steps)
        self.outputs_on.run()

    def results(self, y: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.x = None
        self.job.set(x=np.zeros(1, np.float32), y=np.zeros(1, np.float32))  # the caller's own, no more held here
        return y, h

    def _diagonal(self, layer: int) -> np.ndarray:
        """The diagonal of W, a row a sequence."""
        key = (layer, self.plan.B)
        if key not in self.diagonals:
            row = np.zeros(self.plan.ld, np.float32)
            row[: self.net.hidden_size] = self.net.layers[layer].W.diagonal()
            self.diagonals[key] = np.tile(row, self.plan.B)
        return self.diagonals[key]


class Arrays:
    """The parts of a call on whole arrays (kernels/scan_arrays.py): NumPy on one BLAS thread, or CuPy on a GPU."""

    def __init__(self, net: RNN, module: str, dtype: str, damping: float):
        self.xp = _array_module(module)
        self.net, self.name, self.keep, self.dtype = net, f"{module}, {dtype}", 1 - damping, np.dtype(dtype)
        self.gain = _gain(net)
        array = lambda a: self.xp.asarray(a, self.dtype)  # noqa: E731
        self.layers = [(array(layer.W), array(layer.U), array(layer.b)) for layer in net.layers]
        self.V, self.c = array(net.V), array(net.c)
        self.on_gpu = module == "cupy"

    def room(self) -> float:
        """Bytes that a call may take, of the GPU's memory if that is where the arrays are.

        CuPy keeps what was freed in a pool, for the next call: the driver does not count that as free.
        """
        if self.on_gpu:
            return MEMORY * (self.xp.cuda.Device().mem_info[0] + self.xp.get_default_memory_pool().free_bytes())
        return MEMORY * psutil.virtual_memory().available

    def begin(self, plan: Plan, x: Any, h0: Any) -> tuple[Any, Any]:
        """y and h are of the kind that x is: NumPy's, or a GPU's arrays of any library, which are not copied."""
        self.plan, self.x, self.to_host = plan, x, self.on_gpu and isinstance(x, np.ndarray)
        shape = (*x.shape[:2], self.net.output_size)
        if not isinstance(x, np.ndarray):
            self.x, h0 = self.xp.asarray(x), self.xp.asarray(h0)
        self.state = [self.xp.asarray(h, self.dtype) for h in h0]
        if isinstance(x, np.ndarray):
            return np.empty(shape, np.float32), np.empty(h0.shape, np.float32)
        return device_arrays.empty(x, shape), device_arrays.empty(x, h0.shape)

    def inputs(self, layer: int, t0: int, steps: int) -> None:
        _, U, b = self.layers[layer]
        below = self.xp.asarray(self.x[t0 : t0 + steps], self.dtype) if layer == 0 else self.h[1:]
        with one_blas_thread():
            self.z = (below.reshape(-1, U.shape[1]) @ U.T).reshape(steps, self.plan.B, len(U))
        self.z += b
        self.h = self.xp.zeros((steps + 1, self.plan.B, self.net.hidden_size), self.dtype)
        self.h[0] = self.state[layer]

    def arrays(self, layer: int, steps: int) -> tuple[Any, Any, Any]:
        """z (T,B,H) and h (T+1,B,H) of the window, and W."""
        return self.z, self.h, self.layers[layer][0]

    def solve(
        self, plan: Plan, layer: int, steps: int, most: int, tolerance: float, small: float, fresh: bool
    ) -> list[float]:
        S = min(plan.S, steps)
        with one_blas_thread():
            residuals, self.g, self.r = scan_arrays.solve(
                self.xp, plan.kind, self.layers[layer][0], self.z, self.h, S, self.keep, most, tolerance, small
            )
        return residuals

    def growth(self, plan: Plan, layer: int, steps: int, noise: float, rough: float) -> np.ndarray:
        S = min(plan.S, steps)
        signs = np.random.default_rng(0).choice([-noise, noise], (S, 1, self.net.hidden_size))
        with one_blas_thread():
            found = scan_arrays.growth(
                self.xp, self.layers[layer][0], self.g / self.keep, self.r, self.xp.asarray(signs, self.dtype),
                self.dtype.type(rough), S,
            )  # fmt: skip
        return np.asarray(found.get() if self.on_gpu else found, np.float64)

    def end(self, layer: int, steps: int, h: np.ndarray) -> None:
        self.state[layer] = self.h[-1].copy()
        self._put(h, layer, self.state[layer])

    def outputs(self, t0: int, steps: int, y: np.ndarray) -> None:
        with one_blas_thread():
            o = (self.h[1:].reshape(-1, self.V.shape[1]) @ self.V.T).reshape(steps, self.plan.B, len(self.V))
        o += self.c
        o -= o.max(axis=-1, keepdims=True)
        e = self.xp.exp(o, out=o)
        e /= e.sum(axis=-1, keepdims=True)
        self._put(y, slice(t0, t0 + steps), e)

    def _put(self, target: Any, place: Any, values: Any) -> None:
        """target[place] = values, where target is the caller's."""
        if isinstance(target, np.ndarray):
            target[place] = values.get() if self.to_host else values
        else:
            self.xp.asarray(target)[place] = values

    def results(self, y: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.x = self.z = self.h = self.g = self.r = None
        return y, h


def _array_module(name: str) -> Any:
    """numpy, or cupy with a GPU to run on. Unavailable says what is missing."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        raise Unavailable(f"array_module={name!r} needs cupy-cuda13x: pip install cupy-cuda13x") from None
    if name == "cupy":
        try:
            module.cuda.runtime.getDeviceCount()
        except Exception as error:  # cupy has its own errors, which need cupy to be named
            raise Unavailable(f"array_module='cupy' needs an NVIDIA GPU and its driver: {error}") from None
    return module
