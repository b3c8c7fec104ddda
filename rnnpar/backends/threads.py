"""Threads of one machine that share memory: what can be split over them, and what each split has to wait for.

Letters: T steps, B batch, I input, H hidden, O output, L layers. x (T,B,I), h (L,B,H), y (T,B,O), float32.
Each strategy is one parallel region from input to softmax: threads start once a call, and every product, tanh and
softmax is done by them (rnnpar/kernels); NumPy's BLAS and its own threads take no part. A `body` is what one thread
does; its `region` is the same in a prange, one iteration a thread (rnnpar/kernels/team.py makes sure of that).
A `mark` says what a thread begins to do; without the option `trace` it is no code at all (rnnpar/kernels/trace.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import prange

from rnnpar.kernels.atomics import (
    LINE,
    barrier,
    fetch_add,
    store_release,
    wait_for_others,
    wait_in_team,
    wait_until,
)
from rnnpar.kernels.forward import (
    Plan,
    abreast,
    accumulate,
    copy,
    inputs,
    last_states,
    output_logits,
    output_row,
    outputs,
    sequences,
    step,
    tanh_panels,
)
from rnnpar.kernels.jit import jit
from rnnpar.kernels.pointers import at, bare
from rnnpar.kernels.team import Team
from rnnpar.kernels.tile import ROWS, WIDTH, Packed, aligned, round_up
from rnnpar.kernels.trace import DONE, INPUTS, OUTPUTS, STEPS, WAIT, mark
from rnnpar.network import RNN

Forward = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


# --- timestep: the origin's idea ---------------------------------------------------------------------------------


@jit()
def timestep_body(rank, size, x, h0, y, h, panels, bias, table, states, logits, ready, T, B, sizes, trace):
    x, h0, y, h, panels, bias = bare(x), bare(h0), bare(y), bare(h), bare(panels), bare(bias)
    table, states, logits, ready = bare(table), bare(states), bare(logits), bare(ready)
    L, I, H, _, _ = sizes
    Q = (H + WIDTH - 1) // WIDTH
    ld = Q * WIDTH
    for t in range(rank, T, size):
        for l in range(L):
            u, w, b = table[l]
            now = (l * T + t) * B * ld
            mark(trace, rank, INPUTS)
            if l == 0:
                inputs(x, t * B * I, B * I, I, 1, B, I, panels, u, bias, b, states, now, ld, 0, Q)
            else:
                below = ((l - 1) * T + t) * B * ld
                inputs(states, below, B * ld, ld, 1, B, H, panels, u, bias, b, states, now, ld, 0, Q)
            if t == 0:
                mark(trace, rank, STEPS)
                step(at(h0, l * B * H), H, B, H, at(panels, w), at(states, now), ld, 0, Q, t)
            else:
                mark(trace, rank, WAIT)
                wait_until(ready, (t - 1) * LINE, l + 1)  # spin until another thread has published h[t-1]
                mark(trace, rank, STEPS)
                step(at(states, now - B * ld), ld, B, H, at(panels, w), at(states, now), ld, 0, Q, t)
            store_release(ready, t * LINE, l + 1)
        v, _, c = table[L]
        top = ((L - 1) * T + t) * B * ld
        own = logits[rank]
        mark(trace, rank, OUTPUTS)
        outputs(states, top, ld, 0, B, panels, v, bias, c, own, ROWS, y, t, 0, B, B, sizes)
    if rank == 0:
        mark(trace, rank, WAIT)
        wait_until(ready, (T - 1) * LINE, L)
        for l in range(L):
            for j in range(B):
                copy(states, ((l * T + T - 1) * B + j) * ld, h, (l * B + j) * H, H)
    mark(trace, rank, DONE)


@jit(parallel=True)
def timestep_region(size, x, h0, y, h, panels, bias, table, states, logits, ready, T, B, sizes, trace):
    for rank in prange(size):
        timestep_body(np.int64(rank), size, x, h0, y, h, panels, bias, table, states, logits, ready, T, B, sizes, trace)


def timestep(net: RNN, threads: int, trace: bool = False) -> Forward:
    """One thread a time step, as the origin did it: step t spins on h[t-1], then does its own W h, V h and softmax.

    Parallelises: time steps, dealt out to the threads in turn; but W h[t-1] waits for the step before, so that only
    U x and V h of different steps overlap. Synchronises: one ready flag a step and layer, by release and acquire.
    Moves: all of U, W and V into every core's cache, and h to the next thread in every step. Keeps all T states.
    """
    packed = Packed.of(net)
    team = Team(threads, timestep_body, timestep_region, trace)

    def forward(x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        T, B, _ = x.shape
        plan = Plan.of(net, packed, T, B, B)
        y, h = plan.results()
        states = aligned(net.num_layers * T * B * round_up(net.hidden_size, WIDTH))
        logits = aligned(threads * ROWS * round_up(net.output_size, WIDTH)).reshape(threads, -1)
        forward.info = team.traced(
            x.ravel(), h0.ravel(), y.ravel(), h.ravel(), packed.panels, packed.bias, packed.table,
            states, logits, np.zeros(T * LINE, np.int64), T, B, plan.sizes,
        )  # fmt: skip
        return y, h

    return forward


# --- rows: every step shared by all threads ----------------------------------------------------------------------


@jit()
def rows_body(rank, size, x, h0, y, h, panels, bias, table, states, logits, sync, block, chunk, T, B, sizes, trace):
    x, h0, y, h, panels, bias = bare(x), bare(h0), bare(y), bare(h), bare(panels), bare(bias)
    table, states, logits, sync = bare(table), bare(states), bare(logits), bare(sync)
    L, I, H, O, calm = sizes
    Q = (H + WIDTH - 1) // WIDTH
    ld = Q * WIDTH
    q0, q1 = Q * rank // size, Q * (rank + 1) // size  # the panels, so rows of U and W, that this thread owns
    O_panels = (O + WIDTH - 1) // WIDTH
    half = chunk * B * ld
    previous = epoch = 0
    for t0 in range(0, T, chunk):
        steps = min(chunk, T - t0)
        parity = (t0 // chunk) % 2
        for l in range(L):
            u, w, b = table[l]
            s0 = (2 * l + parity) * half
            mark(trace, rank, INPUTS)
            if l == 0:
                inputs(x, t0 * B * I, B * I, I, steps, B, I, panels, u, bias, b, states, s0, ld, q0, q1)
            else:
                below = (2 * (l - 1) + parity) * half
                inputs(states, below, B * ld, ld, steps, B, H, panels, u, bias, b, states, s0, ld, q0, q1)
            for t in range(steps):
                now = s0 + t * B * ld
                mark(trace, rank, STEPS)
                if t > 0:
                    before, lda = at(states, now - B * ld), ld
                elif t0 > 0:
                    before, lda = at(states, (2 * l + 1 - parity) * half + previous), ld
                else:
                    before, lda = at(h0, l * B * H), H
                shared_step(
                    before, lda, B, H, at(panels, w), at(states, now), ld, q0, q1, t, sync, rank, size, epoch, trace
                )
                epoch += 1
                store_release(sync, rank * LINE, epoch)
            mark(trace, rank, WAIT)
            wait_for_others(sync, rank, size, epoch)  # what comes next reads all of the chunk's states
        v, _, c = table[L]
        top = (2 * (L - 1) + parity) * half
        mark(trace, rank, OUTPUTS)
        if steps * B >= 4 * size or steps * B > block:  # enough rows for every thread
            r0, r1 = share(steps * B, rank, size)
            outputs(states, top, ld, r0, r1, panels, v, bias, c, logits[rank], block, y, t0, 0, B, B, sizes)
        else:  # a few rows, such as a single step of a single sequence: the rows of V are shared out instead
            p0, p1 = O_panels * rank // size, O_panels * (rank + 1) // size
            output_logits(states, top, ld, steps * B, H, panels, v, bias, c, logits[0], O, p0, p1)
            epoch += 1
            mark(trace, rank, WAIT)
            barrier(sync, rank, size, epoch)  # softmax needs the logits of all threads
            mark(trace, rank, OUTPUTS)
            for r in range(rank, steps * B, size):
                output_row(logits[0], r, False, y, t0, r, 0, B, B, O, calm)
        previous = (steps - 1) * B * ld
    if rank == 0:
        last_states(states, parity, half, previous, ld, h, 0, B, B, L, H)
    mark(trace, rank, DONE)


@jit()
def shared_step(h, lda, B, H, w, s, ld, q0, q1, t, sync, rank, size, epoch, trace):
    """This thread's panels of a step. The first is begun with its own rows of h[t-1], while the others' are coming."""
    own, end = q0 * WIDTH, min(q1 * WIDTH, H)
    unit = abreast(B, H, q1 - q0)
    backwards = t % 2  # to and fro, as forward.step does
    f0, f1, r0, r1 = split(q0, q1, min(unit, q1 - q0), backwards)
    accumulate(h, lda, B, H, own, end, w, s, ld, f0, f1, backwards, unit)
    mark(trace, rank, WAIT)
    wait_for_others(sync, rank, size, epoch)
    mark(trace, rank, STEPS)
    for k0, k1, first, last in ((0, own, f0, f1), (end, H, f0, f1), (0, H, r0, r1)):
        accumulate(h, lda, B, H, k0, k1, w, s, ld, first, last, backwards, unit)
    tanh_panels(s, ld, B, q0, q1)


@jit(inline="always")
def split(q0, q1, n, backwards):
    """The first n of the panels q0 to q1, and the others, in the order in which a step takes them."""
    return (q1 - n, q1, q0, q1 - n) if backwards else (q0, q0 + n, q0 + n, q1)


@jit()
def share(rows, rank, size):
    """The rows [r0, r1) of `rows` that belong to a thread: in whole tiles where there are enough of them."""
    unit = min(ROWS, (rows + size - 1) // size)
    units = (rows + unit - 1) // unit
    return min(rows, units * rank // size * unit), min(rows, units * (rank + 1) // size * unit)


@jit(parallel=True)
def rows_region(size, x, h0, y, h, panels, bias, table, states, logits, sync, block, chunk, T, B, sizes, trace):
    for rank in prange(size):
        rows_body(
            np.int64(rank), size, x, h0, y, h, panels, bias, table, states, logits, sync, block, chunk, T, B,
            sizes, trace,
        )  # fmt: skip


def rows(net: RNN, threads: int, dtype: str = "float32", trace: bool = False) -> Forward:
    """Every step shared by all threads: each owns some rows of W, and computes those elements of h[t].

    Parallelises: rows of U and W; then rows of the output (steps and sequences; where these are too few, rows of V
    and one more barrier). Synchronises: one flag a thread and step, waited for by all others; while it is on its way,
    each thread begins the next step with the columns of W that meet its own rows of h.
    Moves: each thread's share of W from its own core's cache (which is why two cores can be more than twice as
    fast: together they hold twice as much), and h, H floats a sequence, between the cores in every step.
    """
    packed = Packed.of(net, dtype)
    team = Team(threads, rows_body, rows_region, trace)
    sync = aligned(threads * LINE, np.int64)
    kept: dict = {}

    def forward(x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        T, B, _ = x.shape
        if kept.get("shape") != (T, B):
            plan = Plan.of(net, packed, T, B, B)
            kept.update(shape=(T, B), plan=plan, states=plan.states()[0], logits=plan.logits(threads))
        plan = kept["plan"]
        y, h = plan.results()
        sync.fill(0)
        forward.info = team.traced(
            x.ravel(), h0.ravel(), y.ravel(), h.ravel(), packed.panels, packed.bias, packed.table,
            kept["states"], kept["logits"], sync, plan.block, plan.chunk, T, B, plan.sizes,
        )  # fmt: skip
        return y, h

    return forward


# --- batch: every thread its own sequences -----------------------------------------------------------------------


@jit()
def batch_body(rank, size, x, h0, y, h, panels, bias, table, states, logits, block, chunk, T, B, sizes, trace):
    first, end = B * rank // size, B * (rank + 1) // size
    if end > first:
        sequences(
            x, h0, y, h, panels, bias, table, states[rank], logits[rank], block, chunk, T, B, first, end - first, sizes,
            rank, trace,
        )  # fmt: skip


@jit(parallel=True)
def batch_region(size, x, h0, y, h, panels, bias, table, states, logits, block, chunk, T, B, sizes, trace):
    for rank in prange(size):
        batch_body(
            np.int64(rank), size, x, h0, y, h, panels, bias, table, states, logits, block, chunk, T, B, sizes, trace
        )


def batch(net: RNN, threads: int, dtype: str = "float32", trace: bool = False) -> Forward:
    """Every thread takes its own sequences from the first step to the last, exactly as `serial/compiled` does.

    Parallelises: the batch. Synchronises: nothing. Moves: all of W into every core in every step; nothing between
    cores. With fewer sequences than threads, the other threads have nothing to do.
    """
    packed = Packed.of(net, dtype)
    team = Team(threads, batch_body, batch_region, trace)
    kept: dict = {}

    def forward(x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        T, B, _ = x.shape
        if kept.get("shape") != (T, B):
            plan = Plan.of(net, packed, T, B, -(-B // threads))  # the largest share
            kept.update(shape=(T, B), plan=plan, states=plan.states(threads), logits=plan.logits(threads))
        plan = kept["plan"]
        y, h = plan.results()
        forward.info = team.traced(
            x.ravel(), h0.ravel(), y.ravel(), h.ravel(), packed.panels, packed.bias, packed.table,
            kept["states"], kept["logits"], plan.block, plan.chunk, T, B, plan.sizes,
        )  # fmt: skip
        return y, h

    return forward


# --- wavefront: layers, and the products around the recurrence, pipelined over time ------------------------------

SLOTS = 3  # chunks of states that a layer keeps: one being begun, one in the recurrence, one being read above


@jit()
def wavefront_body(
    rank, size, x, h0, y, h, panels, bias, table, states, logits, done, cores, block, chunk, T, B, sizes, trace
):
    x, h0, y, h, panels, bias = bare(x), bare(h0), bare(y), bare(h), bare(panels), bare(bias)
    table, states, logits = bare(table), bare(states), bare(logits)
    done, cores = bare(done), bare(cores)
    L, I, H, _, _ = sizes
    place = (cores, rank, size)
    Q = (H + WIDTH - 1) // WIDTH
    ld = Q * WIDTH
    slot = chunk * B * ld
    chunks = (T + chunk - 1) // chunk
    tickets = stages = 2 * L + 1  # the line of `done` behind the stages' holds the next task's number
    number = 0
    mine = fetch_add(done, tickets * chunks * LINE, 1)
    for wave in range(2 * chunks + stages):
        for stage in range(wave % 2, stages, 2):
            c = (wave - stage) // 2
            if c < 0 or c >= chunks:
                continue
            if number == mine:
                l = stage // 2
                s0 = (l * SLOTS + c % SLOTS) * slot
                t0 = c * chunk
                steps = min(chunk, T - t0)
                mark(trace, rank, WAIT)
                if stage == 2 * L:
                    wait_for(done, chunks, stage - 1, c, place)
                    mark(trace, rank, OUTPUTS)
                    top = ((L - 1) * SLOTS + c % SLOTS) * slot
                    v, _, b = table[L]
                    own = logits[rank]
                    outputs(states, top, ld, 0, steps * B, panels, v, bias, b, own, block, y, t0, 0, B, B, sizes)
                elif stage % 2 == 0:
                    # The last state of what the slot held was the start of the chunk after it, and all of it was
                    # read by the layer above.
                    wait_for(done, chunks, stage + 1, c - SLOTS + 1, place)
                    wait_for(done, chunks, stage + 2, c - SLOTS, place)
                    u, _, b = table[l]
                    if l > 0:
                        wait_for(done, chunks, stage - 1, c, place)
                    mark(trace, rank, INPUTS)
                    if l == 0:
                        inputs(x, t0 * B * I, B * I, I, steps, B, I, panels, u, bias, b, states, s0, ld, 0, Q)
                    else:
                        below = ((l - 1) * SLOTS + c % SLOTS) * slot
                        inputs(states, below, B * ld, ld, steps, B, H, panels, u, bias, b, states, s0, ld, 0, Q)
                else:
                    wait_for(done, chunks, stage - 1, c, place)
                    wait_for(done, chunks, stage, c - 1, place)
                    mark(trace, rank, STEPS)
                    w = table[l, 1]
                    if c == 0:
                        step(at(h0, l * B * H), H, B, H, at(panels, w), at(states, s0), ld, 0, Q, 0)
                    else:
                        before = (l * SLOTS + (c - 1) % SLOTS) * slot + (chunk - 1) * B * ld
                        step(at(states, before), ld, B, H, at(panels, w), at(states, s0), ld, 0, Q, 0)
                    for t in range(1, steps):
                        now = s0 + t * B * ld
                        step(at(states, now - B * ld), ld, B, H, at(panels, w), at(states, now), ld, 0, Q, t)
                    if c == chunks - 1:
                        for j in range(B):
                            copy(states, s0 + ((steps - 1) * B + j) * ld, h, (l * B + j) * H, H)
                store_release(done, (stage * chunks + c) * LINE, 1)
                mine = fetch_add(done, tickets * chunks * LINE, 1)
            number += 1
    mark(trace, rank, DONE)


@jit()
def wait_for(done, chunks, stage, c, place):
    """Wait until that stage has done chunk c; chunks before the first are always done."""
    if c >= 0:
        wait_in_team(done, (stage * chunks + c) * LINE, 1, place)


@jit(parallel=True)
def wavefront_region(
    size, x, h0, y, h, panels, bias, table, states, logits, done, cores, block, chunk, T, B, sizes, trace
):
    for rank in prange(size):
        wavefront_body(
            np.int64(rank), size, x, h0, y, h, panels, bias, table, states, logits, done, cores, block, chunk, T, B,
            sizes, trace,
        )  # fmt: skip


def wavefront(net: RNN, threads: int, dtype: str = "float32", trace: bool = False) -> Forward:
    """A pipeline over time: while one layer is at a chunk of steps, the layer above is at the chunk before.

    Each layer is two stages, U x and the recurrence, and the output is one more, so that even one layer gives a
    second thread something to do: only the recurrences wait for themselves. Tasks (a stage at a chunk of steps) are
    handed out in the order of the wave, by a ticket; whoever is free takes the next.
    Parallelises: stages, 2 L + 1 of them, and chunks of output. Synchronises: one flag a task, waited for by the
    tasks that need it; one ticket a task. Moves: a chunk's states from core to core, once a stage; W of a layer to
    another core when another thread takes its next chunk, so once in a chunk and not in every step.
    """
    packed = Packed.of(net, dtype)
    team = Team(threads, wavefront_body, wavefront_region, trace)
    stages = 2 * net.num_layers + 1
    cores = aligned(threads * LINE, np.int64)
    kept: dict = {}

    def forward(x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        T, B, _ = x.shape
        if kept.get("shape") != (T, B):
            plan = Plan.of(net, packed, T, B, B)
            # Short chunks fill the pipeline soon; long ones have enough rows for a tile and few flags.
            chunk = min(plan.chunk, max(-(-2 * ROWS // B), T // 16))
            kept.update(shape=(T, B), plan=plan, chunk=chunk, logits=plan.logits(threads))
            kept["states"] = aligned(net.num_layers * SLOTS * chunk * B * round_up(net.hidden_size, WIDTH))
            kept["done"] = aligned((stages * -(-T // chunk) + 1) * LINE, np.int64)
        plan = kept["plan"]
        y, h = plan.results()
        kept["done"].fill(0)
        forward.info = team.traced(
            x.ravel(), h0.ravel(), y.ravel(), h.ravel(), packed.panels, packed.bias, packed.table,
            kept["states"], kept["logits"], kept["done"], cores, plan.block, kept["chunk"], T, B, plan.sizes,
        )  # fmt: skip
        return y, h

    return forward
