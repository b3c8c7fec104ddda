"""The parts of a forward pass that every CPU method is put together from, each over a share of the work.

A sequence is taken a chunk of time steps at a time, so that a chunk's hidden states stay in the core's own cache
from the product that begins them to the softmax that ends them, and so that memory does not grow with T:

    inputs    states[r] = b + U x[r]                     all rows of the chunk (a row: one sequence at one step)
    step      states[t] = tanh(states[t] + W states[t-1])   one time step after another
    outputs   y[r] = softmax(c + V states[r])            all rows of the chunk

Each takes a range of panels [q0, q1) or of rows [r0, r1), which is how threads share it. `job` is a Job with FIELDS and
`fields_of`; `count` is how many sequences of the batch are meant (all B, or a slice), `ld` a row of states, H padded
to panels.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import carray

from rnnpar.kernels import trace
from rnnpar.kernels.activations import exp_inplace, scale_into, softmax_row, sum_of, tanh_inplace
from rnnpar.kernels.atomics import ZERO, stopped
from rnnpar.kernels.jit import jit
from rnnpar.kernels.job import Job
from rnnpar.kernels.pointers import at, view
from rnnpar.kernels.system import CLOCK
from rnnpar.kernels.team import Region
from rnnpar.kernels.tile import ROWS, WIDTH, Packed, aligned, round_up, tile_1_wide, tiles
from rnnpar.kernels.trace import DONE, INPUTS, OUTPUTS, STEPS, mark
from rnnpar.network import RNN

# float32 elements of one chunk's states, of which there are two: a quarter of what W has, within these bounds. Each
# chunk reads all of U and V once, so that short chunks of a large network would keep throwing W out of the cache.
STATES = (64 * 1024, 1024 * 1024)
# The same of one block of logits. V is read once for each block, so the more bytes a row of V has, the larger a block
# is worth its way out of the core's own cache: 1,024 elements for each of H, within these bounds.
LOGITS = (128 * 1024, 512 * 1024)
# Weights of a step up to which one row meets two panels at once: each h[k] is then fetched once for both, which is what
# counts in a first-level cache. Farther away it costs 2 to 5% instead, where two streams of weights come from L2.
NEAR = 32 * 1024
# Multiply-adds of a chunk's steps and inputs at most: some tenth of a second, since an interrupt is heard between two.
LONGEST = 1 << 31
POOL = 2  # results that a runner keeps for reuse: a caller often holds the last one during the next call
SHORT = 512  # outputs up to which exp takes a block of rows in one go, since starting a row costs more than its exp


@jit()
def inputs(job, l, t0, first, below, steps, count, states, q0, q1):
    """states = b + U x of layer l, from step t0 and sequence `first` on, or b + U below; panels q0 to q1.

    below, states: pointers to the first of steps * count rows; of x the first layer reads the same steps and sequences.
    """
    ld = job.ld
    K, source, step_stride, row_stride = job.H, below, count * ld, ld
    if l == 0:
        K, source, step_stride, row_stride = job.I, at(job.x, (t0 * job.B + first) * job.I), job.B * job.I, job.I
    u, b = at(job.panels, job.table[3 * l]), at(job.bias, job.table[3 * l + 2])
    for q in range(q0, q1):
        panel, bias, s = at(u, q * K * WIDTH), at(b, q * WIDTH), at(states, q * WIDTH)
        if step_stride == count * row_stride:  # the rows lie one behind the other: one product
            tiles(source, row_stride, steps * count, panel, K, bias, ZERO, s, ld)
        elif steps > count:  # a slice of a batch: one product a sequence, or one a step, whichever has more rows
            for j in range(count):
                tiles(at(source, j * row_stride), step_stride, steps, panel, K, bias, ZERO, at(s, j * ld),
                      count * ld)  # fmt: skip
        else:
            for t in range(steps):
                tiles(at(source, t * step_stride), row_stride, count, panel, K, bias, ZERO, at(s, t * count * ld),
                      ld)  # fmt: skip


@jit()
def step(h, lda, count, H, w, s, ld, q0, q1, t):
    """s = tanh(s + W h), panels q0 to q1 of each of the `count` rows. h, w, s: pointers, w to W's first panel.

    Every other step t goes through the panels backwards, as a ploughman turns at the end of a furrow: where W is
    larger than a cache, the panels used last are still there, and going round and round would always miss them.
    """
    accumulate(h, lda, count, H, ZERO, H, w, s, ld, q0, q1, t % 2, abreast(count, H, q1 - q0))
    tanh_panels(s, ld, count, q0, q1)


@jit(inline="always")
def abreast(count, H, n):
    """How many of a step's `n` panels are taken at once: two where one row meets weights that are near, else one."""
    return 2 if count == 1 and n * WIDTH * H <= NEAR else 1


@jit()
def accumulate(h, lda, count, H, k0, k1, w, s, ld, q0, q1, backwards, unit):
    """s += W[:, k0:k1] h[k0:k1] for `count` rows and the panels q0 to q1, `unit` (1, or 2) at once."""
    if k0 == k1:
        return
    h, n = at(h, k0), q1 - q0
    pairs = n // 2 if unit == 2 else 0
    for i in range(pairs):
        q = q1 - 2 - 2 * i if backwards else q0 + 2 * i
        place = at(s, q * WIDTH)
        tile_1_wide(h, at(w, (q * H + k0) * WIDTH), H * WIDTH, k1 - k0, place, place)
    for i in range(2 * pairs, n):
        q = q1 - 1 - i if backwards else q0 + i
        place = at(s, q * WIDTH)
        tiles(h, lda, count, at(w, (q * H + k0) * WIDTH), k1 - k0, place, ld, place, ld)


@jit()
def tanh_panels(s, ld, count, q0, q1):
    """s = tanh(s), panels q0 to q1 of each of the `count` rows."""
    if (q1 - q0) * WIDTH == ld:  # whole rows: they lie one behind the other
        tanh_inplace(carray(s, count * ld))
    else:
        for j in range(count):
            tanh_inplace(carray(at(s, j * ld + q0 * WIDTH), (q1 - q0) * WIDTH))


@jit()
def steps_of(job, l, states, before, lda, count, steps):
    """`steps` steps of the recurrence of layer l, from the state at `before` (count rows, lda apart); whole rows."""
    H, ld, w = job.H, job.ld, at(job.panels, job.table[3 * l + 1])
    step(before, lda, count, H, w, states, ld, ZERO, ld // WIDTH, ZERO)
    for t in range(1, steps):
        now = at(states, t * count * ld)
        step(at(now, -count * ld), ld, count, H, w, now, ld, ZERO, ld // WIDTH, t)


@jit()
def outputs(job, rank, states, r0, r1, logits, t0, first, count):
    """y = softmax(c + V states) for the rows r0 to r1 of the chunk that begins at step t0, `block` rows at a time.

    states: a pointer to the chunk's first row; logits: room for `block` rows; the chunk's rows are `count` sequences a
    step, from number `first` of the batch on. Gives up between two blocks.
    """
    O, ld = job.O, job.ld
    q1 = job.ldo // WIDTH
    together = job.calm != 0 and O <= SHORT
    for r in range(r0, r1, job.block):
        rows = min(job.block, r1 - r)
        if stopped(job.control, rank, rows * O * job.H):
            return
        output_logits(job, at(states, r * ld), rows, logits, 0, q1)
        if together:
            exp_inplace(carray(logits, rows * q1 * WIDTH))
        t, j = divmod(r, count)
        for i in range(rows):
            output_row(job, logits, i, together, t0 + t, first + j)
            j += 1
            if j == count:
                t, j = t + 1, ZERO


@jit(inline="always")
def output_logits(job, states, rows, logits, q0, q1):
    """logits = c + V states for `rows` rows, panels q0 to q1. states, logits: pointers."""
    H, ld, ldo, L = job.H, job.ld, job.ldo, job.L
    v, c = at(job.panels, job.table[3 * L]), at(job.bias, job.table[3 * L + 2])
    for q in range(q0, q1):
        tiles(states, ld, rows, at(v, q * H * WIDTH), H, at(c, q * WIDTH), ZERO, at(logits, q * WIDTH), ldo)


@jit(inline="always")
def output_row(job, logits, i, is_exp, t, j):
    """y = softmax of the i-th row of logits, or of what is exp of them, at step t for sequence j of the batch."""
    O, ldo = job.O, job.ldo
    row, into = view(logits, i * ldo, ldo), view(job.y, (t * job.B + j) * O, O)
    if is_exp:
        scale_into(row, np.float32(1) / sum_of(row), into)
    else:
        softmax_row(row, into, job.calm)


@jit()
def sequences(job, rank, states, logits, first, count):
    """The whole forward pass of `count` sequences of the batch, from number `first`, by thread `rank` alone.

    states: (L, 2, chunk * count * ld), logits: (block * ldo), both by pointer. Chunks alternate between the two halves
    of `states`, so that the last state of one is there when the next begins.
    """
    T, B, L, I, H, ld = job.T, job.B, job.L, job.I, job.H, job.ld
    half = job.chunk * count * ld
    previous = parity = ZERO
    s = states
    for t0 in range(0, T, job.chunk):
        steps = min(job.chunk, T - t0)
        parity = (t0 // job.chunk) % 2
        for l in range(L):
            if stopped(job.control, rank, steps * count * H * (H + I)):
                return
            below, s = s, at(states, (2 * l + parity) * half)
            mark(job, rank, INPUTS)
            inputs(job, l, t0, first, below, steps, count, s, ZERO, ld // WIDTH)
            mark(job, rank, STEPS)
            if t0 == 0:
                steps_of(job, l, s, at(job.h0, (l * B + first) * H), H, count, steps)
            else:
                steps_of(job, l, s, at(states, (2 * l + 1 - parity) * half + previous), ld, count, steps)
        mark(job, rank, OUTPUTS)
        outputs(job, rank, s, ZERO, steps * count, logits, t0, first, count)
        previous = (steps - 1) * count * ld
    last_states(job, states, parity, half, previous, first, count)
    mark(job, rank, DONE)


@jit(inline="always")
def copy(source, s, target, t, size):
    """target[t : t + size] = source[s : s + size], without the size check, whose message costs 4 s to compile."""
    for i in range(size):
        target[t + i] = source[s + i]


@jit()
def last_states(job, states, parity, half, previous, first, count):
    """h (L,B,H) from the last step of the last chunk, for the sequences first to first + count."""
    B, H, ld = job.B, job.H, job.ld
    for l in range(job.L):
        for j in range(count):
            copy(states, (2 * l + parity) * half + previous + j * ld, job.h, (l * B + first + j) * H, H)


@dataclass(frozen=True)
class Plan:
    """Sizes of one call: `chunk` time steps at a time, `block` rows of logits at a time, and the buffers' lengths."""

    net: RNN
    T: int
    B: int
    count: int  # sequences that one thread takes through all the steps
    chunk: int
    block: int
    pool: list[np.ndarray] = field(default_factory=list, compare=False)  # results that were handed out

    @classmethod
    def of(cls, net: RNN, T: int, B: int, count: int) -> Plan:
        """Chunk and block so that states and logits stay near the core, and weights need not be read too often."""
        H, ld, ldo = net.hidden_size, round_up(net.hidden_size, WIDTH), round_up(net.output_size, WIDTH)
        states = min(max(STATES[0], H**2 // 4), STATES[1])
        most = min(states // (count * ld), LONGEST // (count * H * (H + net.input_size)))
        chunk = min(T, max(1, most))
        logits = min(max(LOGITS[0], 1024 * H), LOGITS[1])
        block = min(round_up(chunk * count, ROWS), max(ROWS, logits // ldo // ROWS * ROWS), 64 // ROWS * ROWS)
        return cls(net, T, B, count, chunk, block)

    def states(self, copies: int = 1) -> np.ndarray:
        """Room for the hidden states of two chunks of every layer, `copies` times."""
        ld = round_up(self.net.hidden_size, WIDTH)
        return aligned(copies * self.net.num_layers * 2 * self.chunk * self.count * ld)

    def logits(self, copies: int = 1) -> np.ndarray:
        """Room for one block of logits, `copies` times."""
        return aligned(copies * self.block * round_up(self.net.output_size, WIDTH))

    def results(self) -> tuple[np.ndarray, np.ndarray]:
        """y (T,B,O) and h (L,B,H), not yet filled; the caller's own.

        An array that was handed out before and that nobody holds any more is handed out again: the system would
        otherwise take back large ones and give them out as new pages, which take longer to come than softmax does.
        """
        y = take_free(self.pool)
        if y is None:
            y = np.empty((self.T, self.B, self.net.output_size), np.float32)
            if len(self.pool) < POOL:
                self.pool.append(y)
        return y, np.empty((self.net.num_layers, self.B, self.net.hidden_size), np.float32)


def take_free(pool: list[np.ndarray]) -> np.ndarray | None:
    """An array of the pool that nobody else holds, nor a view of it; or None."""
    for index in range(len(pool)):
        if sys.getrefcount(pool[index]) <= FREE:
            return pool[index]
    return None


# What Python counts for an array that only its pool holds: it differs between versions of Python, so it is looked up.
FREE = (lambda pool: sys.getrefcount(pool[0]))([np.empty(0)])


class Forward:
    """A compiled forward pass, `forward(x, h0)` -> (y, h); buffers stay for the next call of the same shape.

    `function` is what each thread runs, `buffers(plan)` gives the job's fields that depend on the shape. Of those,
    `ready` are flags, zeros at the start of every call. With `share`, a thread has its own part of the batch.
    `info` is what a runner tells of its last call: with `trace`, what each thread did and when.
    """

    def __init__(self, function: Callable[..., None], buffers: Callable[[Plan], dict[str, Any]], net: RNN,
                 threads: int, dtype: str = "float32", traced: bool = False, share: bool = False):  # fmt: skip
        packed = Packed.of(net, dtype)
        self.net, self.share, self.buffers = net, threads if share else 1, buffers
        self.marks = trace.buffer(threads) if traced else None
        extra = {"trace": self.marks, "marks": self.marks.shape[1]} if traced else {}
        fields = FIELDS | fields_of(net, packed) | extra
        self.job = Job(threads, **fields | dict(everyone=threads, ready=np.int64))
        self.region = Region(function, self.job)
        self.plan: Plan | None = None
        self.ready, self.used = np.zeros(0, np.int64), False
        self.info: dict[str, Any] = {}

    def __call__(self, x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        T, B, _ = x.shape
        if self.plan is None or self.plan.B != B or self.plan.T != T:
            self._fit(T, B)
        y, h = self.plan.results()
        if self.used:
            self.ready.fill(0)
        self.used = True
        try:
            self._run(x, h0, y, h)
        except BaseException:
            self.plan = None  # new buffers: to make all flags of a long call zeros again might take a second
            raise
        return y, h

    def _run(self, *arrays: np.ndarray) -> None:
        if self.marks is None:
            self.region.run(*arrays)
            return
        self.marks[:, 0] = 0
        start = time.clock_gettime_ns(CLOCK)
        self.region.run(*arrays)
        self.info = {"trace": trace.Trace.of(self.marks, start, time.clock_gettime_ns(CLOCK))}

    def _fit(self, T: int, B: int) -> None:
        """Buffers for another shape. An interrupt in here leaves no plan, and the next call makes it anew."""
        self.plan = None
        plan = Plan.of(self.net, T, B, -(-B // self.share))
        fields = dict(T=T, B=B, count=plan.count, block=plan.block, chunk=plan.chunk) | self.buffers(plan)
        self.job.set(**fields)
        self.ready, self.used = fields.get("ready", self.ready), False  # new flags are zeros
        self.plan = plan

    def close(self) -> None:
        """Let go of weights and buffers."""
        del self.job, self.region, self.plan, self.ready, self.marks


def batch_region(rank, size, job):
    """Each thread its own sequences of the batch, from the first step to the last; the first threads the most."""
    first, end = (job.B * rank + size - 1) // size, (job.B * (rank + 1) + size - 1) // size
    states = at(job.states, rank * job.L * 2 * job.chunk * job.count * job.ld)
    if end > first:
        sequences(job, rank, states, at(job.logits, rank * job.block * job.ldo), first, end - first)


def batch_forward(net: RNN, threads: int, dtype: str = "float32", traced: bool = False) -> Forward:
    """The forward pass of threads/batch and, with one thread, of serial/compiled."""

    def buffers(plan: Plan) -> dict[str, Any]:
        return dict(states=plan.states(threads), logits=plan.logits(threads))

    return Forward(batch_region, buffers, net, threads, dtype, traced, share=True)


# The fields of a forward pass's job: the call's arrays, in the order in which team.Region takes them, then the rest.
# `first`, `everyone`: where this process's threads begin among all threads that share the work, and how many those are.
FIELDS: dict[str, Any] = dict(
    x=np.float32, h0=np.float32, y=np.float32, h=np.float32, states=np.float32, logits=np.float32,
    T=0, B=0, count=0, block=0, chunk=0, first=0, everyone=0,
)  # fmt: skip


def fields_of(net: RNN, packed: Packed) -> dict[str, Any]:
    """The fields of a job that a network decides; ld, ldo: elements from one row of states, of logits, to the next."""
    return dict(panels=packed.panels, bias=packed.bias, table=packed.table.ravel(), L=net.num_layers, I=net.input_size,
                H=net.hidden_size, O=net.output_size, ld=round_up(net.hidden_size, WIDTH),
                ldo=round_up(net.output_size, WIDTH), calm=packed.calm)  # fmt: skip
