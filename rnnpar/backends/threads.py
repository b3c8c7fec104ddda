"""Threads of one machine that share memory: what can be split over them, and what each split has to wait for.

Letters: T steps, B batch, I input, H hidden, O output, L layers. x (T,B,I), h (L,B,H), y (T,B,O), float32.
Each strategy is one parallel region from input to softmax: every product, tanh and softmax is done by the threads of it
(rnnpar/kernels); NumPy's BLAS and its own threads take no part. A function `..._region` is what thread `rank` of `size`
does; `job` holds what all of them know (rnnpar/kernels/job.py). A `mark` says what a thread begins to do; without the
option `trace` it is no code at all. A call that is given up, as by Ctrl-C, is left where a thread finds it `stopped`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnpar.kernels.atomics import ONE, ZERO, barrier, fetch_add, stopped, store_release, wait, wait_for_others
from rnnpar.kernels.forward import (
    Forward,
    Plan,
    abreast,
    accumulate,
    batch_forward,
    copy,
    inputs,
    last_states,
    output_logits,
    output_row,
    outputs,
    step,
    steps_of,
    tanh_panels,
)
from rnnpar.kernels.jit import jit
from rnnpar.kernels.job import LINE
from rnnpar.kernels.pointers import at
from rnnpar.kernels.tile import ROWS, WIDTH, aligned, round_up
from rnnpar.kernels.trace import DONE, INPUTS, OUTPUTS, STEPS, WAIT, mark
from rnnpar.network import RNN

# --- timestep: the origin's idea ---------------------------------------------------------------------------------


def timestep_region(rank, size, job):
    T, B, L, I, H, ld = job.T, job.B, job.L, job.I, job.H, job.ld
    place = (job.flags, rank, size)
    for t in range(rank, T, size):
        now = job.states
        for l in range(L):
            if stopped(job.control, rank, B * H * (H + I)):
                return
            below, now = now, at(job.states, (l * T + t) * B * ld)
            mark(job, rank, INPUTS)
            inputs(job, l, t, ZERO, below, ONE, B, now, ZERO, ld // WIDTH)
            before, lda = at(job.h0, l * B * H), H
            if t > 0:
                mark(job, rank, WAIT)
                wait(job.ready, (t - 1) * LINE, l + 1, job.control, rank, place)  # another thread publishes h[t-1]
                before, lda = at(now, -B * ld), ld
            mark(job, rank, STEPS)
            step(before, lda, B, H, at(job.panels, job.table[3 * l + 1]), now, ld, ZERO, ld // WIDTH, t)
            store_release(job.ready, t * LINE, l + 1)
        mark(job, rank, OUTPUTS)
        outputs(job, rank, now, ZERO, B, at(job.logits, rank * job.block * job.ldo), t, ZERO, B)
    if rank == 0:
        mark(job, rank, WAIT)
        wait(job.ready, (T - 1) * LINE, L, job.control, rank, place)
        for l in range(L):
            for j in range(B):
                copy(job.states, ((l * T + T - 1) * B + j) * ld, job.h, (l * B + j) * H, H)
    mark(job, rank, DONE)


def timestep(net: RNN, threads: int, trace: bool = False) -> Forward:
    """One thread a time step, as the origin did it: step t spins on h[t-1], then does its own W h, V h and softmax.

    Parallelises: time steps, dealt out to the threads in turn; but W h[t-1] waits for the step before, so that only
    U x and V h of different steps overlap. Synchronises: one ready flag a step and layer, by release and acquire.
    Moves: all of U, W and V into every core's cache, and h to the next thread in every step. Keeps all T states.
    """

    def buffers(plan: Plan) -> dict[str, Any]:
        states = aligned(net.num_layers * plan.T * plan.B * round_up(net.hidden_size, WIDTH))
        logits = aligned(threads * ROWS * round_up(net.output_size, WIDTH))
        return dict(states=states, logits=logits, block=ROWS, ready=aligned(plan.T * LINE, np.int64))

    return Forward(timestep_region, buffers, net, threads, traced=trace)


# --- rows: every step shared by all threads ----------------------------------------------------------------------


def rows_region(own, threads, job):
    """Thread `own` of this process is number `rank` of `size`: more than `threads`, where ranks share memory (mpi)."""
    T, B, L, I, H, ld = job.T, job.B, job.L, job.I, job.H, job.ld
    rank, size, flags = job.first + own, job.everyone, job.flags
    place = (flags, rank, size)
    Q = ld // WIDTH
    q0, q1 = Q * rank // size, Q * (rank + 1) // size  # the panels, so rows of U and W, that this thread owns
    half = job.chunk * B * ld
    previous = epoch = parity = ZERO
    states = at(job.states, ZERO)
    for t0 in range(0, T, job.chunk):
        steps = min(job.chunk, T - t0)
        parity = (t0 // job.chunk) % 2
        for l in range(L):
            if stopped(job.control, own, steps * B * H * (H + I)):
                return
            below, states = states, at(job.states, (2 * l + parity) * half)
            mark(job, own, INPUTS)
            inputs(job, l, t0, ZERO, below, steps, B, states, q0, q1)
            for t in range(steps):
                now = at(states, t * B * ld)
                mark(job, own, STEPS)
                before, lda = at(now, -B * ld), ld
                if t == 0 and t0 > 0:
                    before = at(job.states, (2 * l + 1 - parity) * half + previous)
                elif t == 0:
                    before, lda = at(job.h0, l * B * H), H
                shared_step(job, l, before, lda, now, q0, q1, t, own, epoch, place)
                epoch += 1
                store_release(flags, rank * LINE, epoch)
            mark(job, own, WAIT)
            wait_for_others(flags, rank, size, epoch, job.control, own)  # what comes next reads all the chunk's states
        mark(job, own, OUTPUTS)
        if steps * B >= 4 * size or steps * B > job.block:  # enough rows for every thread
            r0, r1 = share(steps * B, rank, size)
            outputs(job, own, states, r0, r1, at(job.logits, rank * job.block * job.ldo), t0, ZERO, B)
        else:  # a few rows, such as a single step of a single sequence: the rows of V are shared out instead
            P = job.ldo // WIDTH
            output_logits(job, states, steps * B, job.logits, P * rank // size, P * (rank + 1) // size)
            epoch += 1
            mark(job, own, WAIT)
            barrier(flags, rank, size, epoch, job.control, own)  # softmax needs the logits of all threads
            mark(job, own, OUTPUTS)
            for r in range(rank, steps * B, size):
                output_row(job, job.logits, r, False, t0 + r // B, r % B)
        previous = (steps - 1) * B * ld
    if rank == 0:
        last_states(job, job.states, parity, half, previous, ZERO, B)
    mark(job, own, DONE)


@jit()
def shared_step(job, l, h, lda, s, q0, q1, t, own, epoch, place):
    """This thread's panels of a step. The first is begun with its own rows of h[t-1], while the others' are coming."""
    flags, rank, size = place
    B, H, ld, w = job.B, job.H, job.ld, at(job.panels, job.table[3 * l + 1])
    k0, k1 = q0 * WIDTH, min(q1 * WIDTH, H)  # its own rows
    unit = abreast(B, H, q1 - q0)
    backwards = t % 2  # to and fro, as forward.step does
    f0, f1, r0, r1 = split(q0, q1, min(unit, q1 - q0), backwards)
    accumulate(h, lda, B, H, k0, k1, w, s, ld, f0, f1, backwards, unit)
    mark(job, own, WAIT)
    wait_for_others(flags, rank, size, epoch, job.control, own)
    mark(job, own, STEPS)
    for first, end, p0, p1 in ((0, k0, f0, f1), (k1, H, f0, f1), (0, H, r0, r1)):
        accumulate(h, lda, B, H, first, end, w, s, ld, p0, p1, backwards, unit)
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


def rows(net: RNN, threads: int, dtype: str = "float32", trace: bool = False) -> Forward:
    """Every step shared by all threads: each owns some rows of W, and computes those elements of h[t].

    Parallelises: rows of U and W; then rows of the output (steps and sequences; where these are too few, rows of V
    and one more barrier). Synchronises: one flag a thread and step, waited for by all others; while it is on its way,
    each thread begins the next step with the columns of W that meet its own rows of h.
    Moves: each thread's share of W from its own core's cache (which is why two cores can be more than twice as
    fast: together they hold twice as much), and h, H floats a sequence, between the cores in every step.
    """

    def buffers(plan: Plan) -> dict[str, Any]:
        return dict(states=plan.states(), logits=plan.logits(threads))

    return Forward(rows_region, buffers, net, threads, dtype, trace)


# --- batch: every thread its own sequences -----------------------------------------------------------------------


def batch(net: RNN, threads: int, dtype: str = "float32", trace: bool = False) -> Forward:
    """Every thread takes its own sequences from the first step to the last, exactly as `serial/compiled` does.

    Parallelises: the batch. Synchronises: nothing. Moves: all of W into every core in every step; nothing between
    cores. With fewer sequences than threads, the other threads have nothing to do.
    """
    return batch_forward(net, threads, dtype, trace)


# --- wavefront: layers, and the products around the recurrence, pipelined over time ------------------------------

SLOTS = 3  # chunks of states that a layer keeps: one being begun, one in the recurrence, one being read above


def wavefront_region(rank, size, job):
    chunks = (job.T + job.chunk - 1) // job.chunk
    stages = 2 * job.L + 1  # the line of `ready` behind the stages' holds the next task's number
    place = (job.flags, rank, size)
    number = 0
    mine = fetch_add(job.ready, stages * chunks * LINE, 1)
    for wave in range(2 * chunks + stages):
        for stage in range(wave % 2, stages, 2):
            c = (wave - stage) // 2
            if c < 0 or c >= chunks:
                continue
            if number == mine:
                if stopped(job.control, rank, job.chunk * job.B * job.H * (job.H + job.I)):
                    return
                task(job, rank, stage, c, chunks, place)
                store_release(job.ready, (stage * chunks + c) * LINE, 1)
                mine = fetch_add(job.ready, stages * chunks * LINE, 1)
            number += 1
    mark(job, rank, DONE)


@jit()
def task(job, rank, stage, c, chunks, place):
    """Stage 2 l is U x of layer l, 2 l + 1 its recurrence, 2 L the output; of chunk c, once what it needs is there."""
    B, L, H, ld = job.B, job.L, job.H, job.ld
    l, t0 = min(stage // 2, L - 1), c * job.chunk
    steps, slot = min(job.chunk, job.T - t0), job.chunk * B * ld
    states = at(job.states, (l * SLOTS + c % SLOTS) * slot)
    mark(job, rank, WAIT)
    if stage == 2 * L:
        wait_for(job, rank, chunks, stage - 1, c, place)
        mark(job, rank, OUTPUTS)
        outputs(job, rank, states, ZERO, steps * B, at(job.logits, rank * job.block * job.ldo), t0, ZERO, B)
    elif stage % 2 == 0:
        # The last state of what the slot held was the start of the chunk after it, and all of it was read by the
        # layer above.
        wait_for(job, rank, chunks, stage + 1, c - SLOTS + 1, place)
        wait_for(job, rank, chunks, stage + 2, c - SLOTS, place)
        if l > 0:
            wait_for(job, rank, chunks, stage - 1, c, place)
        mark(job, rank, INPUTS)
        below = at(job.states, (max(l - 1, 0) * SLOTS + c % SLOTS) * slot)
        inputs(job, l, t0, ZERO, below, steps, B, states, ZERO, ld // WIDTH)
    else:
        wait_for(job, rank, chunks, stage - 1, c, place)
        wait_for(job, rank, chunks, stage, c - 1, place)
        mark(job, rank, STEPS)
        if c == 0:
            steps_of(job, l, states, at(job.h0, l * B * H), H, B, steps)
        else:
            before = at(job.states, (l * SLOTS + (c - 1) % SLOTS) * slot + (job.chunk - 1) * B * ld)
            steps_of(job, l, states, before, ld, B, steps)
        if c == chunks - 1:
            for j in range(B):
                copy(states, ((steps - 1) * B + j) * ld, job.h, (l * B + j) * H, H)


@jit()
def wait_for(job, rank, chunks, stage, c, place):
    """Wait until that stage has done chunk c; chunks before the first are always done."""
    if c >= 0:
        wait(job.ready, (stage * chunks + c) * LINE, 1, job.control, rank, place)


def wavefront(net: RNN, threads: int, dtype: str = "float32", trace: bool = False) -> Forward:
    """A pipeline over time: while one layer is at a chunk of steps, the layer above is at the chunk before.

    Each layer is two stages, U x and the recurrence, and the output is one more, so that even one layer gives a
    second thread something to do: only the recurrences wait for themselves. Tasks (a stage at a chunk of steps) are
    handed out in the order of the wave, by a ticket; whoever is free takes the next.
    Parallelises: stages, 2 L + 1 of them, and chunks of output. Synchronises: one flag a task, waited for by the
    tasks that need it; one ticket a task. Moves: a chunk's states from core to core, once a stage; W of a layer to
    another core when another thread takes its next chunk, so once in a chunk and not in every step.
    """

    def buffers(plan: Plan) -> dict[str, Any]:
        # Short chunks fill the pipeline soon; long ones have enough rows for a tile and few flags.
        chunk = min(plan.chunk, max(-(-2 * ROWS // plan.B), plan.T // 16))
        tasks = (2 * net.num_layers + 1) * -(-plan.T // chunk)
        states = aligned(net.num_layers * SLOTS * chunk * plan.B * round_up(net.hidden_size, WIDTH))
        return dict(
            chunk=chunk, states=states, logits=plan.logits(threads), ready=aligned((tasks + 1) * LINE, np.int64)
        )

    return Forward(wavefront_region, buffers, net, threads, dtype, trace)
