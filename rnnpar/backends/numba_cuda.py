"""CUDA threads and blocks, written in Python: from a thread a time step to a whole sequence in one launch.

Letters: T steps, B batch, I input, H hidden, O output, L layers. x (T,B,I), h (L,B,H), y (T,B,O), float32; Hs is H
rounded up to a multiple of four. All but `timestep` hoist U x and V h with softmax out of the recurrence, as products
of whole matrices on the GPU (rnnpar/kernels/gpu.py); what is written here is W h and the wait for the step before.
Where W lives, and how many blocks fit together, is planned first (rnnpar/kernels/launch.py). Instructions that Python
has no words for are in rnnpar/kernels/ptx.py. tests/executor.py runs these kernels, as they stand, on a CPU.

tanh is libdevice's __nv_tanhf, which NVIDIA's Programming Guide gives to a few units in the last place; no kernel uses
the approximating instruction (tanh.approx, off by 5e-4). `make check-gpu` holds it to 1e-6, which no CPU can show.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numba import cuda, float32, int32

from rnnpar.kernels import ptx
from rnnpar.kernels.gpu import ALIGNED, Forward, Pass, blocks_for, clear, open_gpu, place, take, weights_of
from rnnpar.kernels.launch import (
    BARRIERS,
    FOUR,
    OLDEST_ASYNC,
    WARP,
    BlockPlan,
    PersistentPlan,
    plan_block,
    plan_persistent,
    round_up,
    weights_a_word,
)
from rnnpar.network import RNN

# --- timestep: the origin's idea ---------------------------------------------------------------------------------


@cuda.jit
def timestep_kernel(x, weights, states, ready, y, T, B, I, H, O, L):
    """One block. Thread i takes the steps i, i + threads, ..., each from x to softmax, for all layers and sequences."""
    for t in range(cuda.threadIdx.x, T, cuda.blockDim.x):
        at = 0  # where this layer's W, U and b begin
        for l in range(L):
            fan_in = I if l == 0 else H
            U, b = at + H * H, at + H * H + H * fan_in
            now = (l * (T + 1) + t + 1) * B * H
            below = ((l - 1) * (T + 1) + t + 1) * B * H
            for j in range(B * H):
                row, first = j % H, j - j % H
                total = weights[b + row]
                for k in range(fan_in):
                    if l == 0:
                        total += weights[U + row * I + k] * x[(t * B + j // H) * I + k]
                    else:
                        total += weights[U + row * H + k] * states[below + first + k]
                states[now + j] = total
            if t > 0:
                while cuda.atomic.cas(ready, t - 1, -1, -1) < l + 1:  # spin until h[t-1] of this layer is published
                    pass
                cuda.threadfence()
            for j in range(B * H):
                row, first = j % H, j - j % H
                total = states[now + j]
                for k in range(H):
                    total += weights[at + row * H + k] * states[now - B * H + first + k]
                states[now + j] = math.tanh(total)
            cuda.threadfence()
            cuda.atomic.exch(ready, t, l + 1)
            at = b + H
        top = ((L - 1) * (T + 1) + t + 1) * B * H
        for j in range(B):
            into, most = (t * B + j) * O, float32(-math.inf)
            for o in range(O):
                total = weights[at + O * H + o]
                for k in range(H):
                    total += weights[at + o * H + k] * states[top + j * H + k]
                y[into + o] = total
                most = max(most, total)
            whole = float32(0)
            for o in range(O):
                y[into + o] = math.exp(y[into + o] - most)
                whole += y[into + o]
            for o in range(O):
                y[into + o] /= whole


def timestep(net: RNN, steps_at_once: int | None = None, device: int = 0) -> Forward:
    """One block, one thread a time step, as the origin did it: thread t spins on h[t-1], then does all of step t.

    Parallelises: time steps, dealt out to the threads of one block; but W h[t-1] waits for the step before, so that
    only U x and V h of different steps overlap, on one multiprocessor of the device's many. steps_at_once=1 is the
    origin's baseline, one thread; by default as many as a block can have. Synchronises: an atomic flag a step, which
    the next thread reads by compare-and-swap. Moves: U, W and V from the caches in every step, a number at a time.
    """
    gpu = open_gpu(device)
    most = min(1024, gpu.device.threads_per_block)
    if steps_at_once is not None and not (type(steps_at_once) is int and 1 <= steps_at_once <= most):
        raise ValueError(f"steps_at_once is {steps_at_once!r}; it must be 1 to {most}, the threads of a block")
    I, H, O, L = net.input_size, net.hidden_size, net.output_size, net.num_layers
    parts = [part for layer in net.layers for part in (layer.W, layer.U, layer.b)] + [net.V, net.c]
    with gpu:
        weights = gpu.send(np.concatenate([part.ravel() for part in parts]))

    def forward(x: Any, h0: Any) -> tuple[Any, Any]:
        T, B, _ = x.shape
        with gpu:
            given, before = gpu.take_in(x), gpu.take_in(h0)
            states, ready = gpu.empty((L * (T + 1) * B * H,)), gpu.empty((T,), np.int32)
            y, h = gpu.result((T, B, O)), gpu.result((L, B, H))
            gpu.launch(clear, blocks_for(T), 256, ready, T)
            for l in range(L):
                slot = l * (T + 1) * B * H
                gpu.launch(place, blocks_for(B * H), 256, before, l * B * H, states, slot, B, H, H)
            threads = min(T, steps_at_once or most)
            gpu.launch(timestep_kernel, 1, threads, given, weights, states, ready, y, T, B, I, H, O, L)
            for l in range(L):
                last = (l * (T + 1) + T) * B * H
                gpu.launch(take, blocks_for(B * H), 256, states, last, h, l * B * H, B, H, H)
            return gpu.hand_back(x, y), gpu.hand_back(x, h)

    forward.synchronize = gpu.synchronize
    forward.info = {"device": gpu.device.name}
    return forward


# --- steps: a launch a time step ---------------------------------------------------------------------------------

SEQUENCES = 4  # that a warp takes together, so that a row of W is read once for all of them
STEP_WARPS = 8


@cache
def step_kernel(dtype: str) -> Any:
    """states[t + 1] = tanh(b + states[t + 1] + W states[t]): a warp a row of W, for four sequences."""
    BF16, WORDS = dtype == "bfloat16", weights_a_word(dtype)

    @cuda.jit(launch_bounds=(STEP_WARPS * WARP, 1))
    def step(W, b, states, t, B, Hs, Hp):
        lane = cuda.threadIdx.x % WARP
        row = cuda.blockIdx.x * STEP_WARPS + cuda.threadIdx.x // WARP
        s = cuda.blockIdx.y * SEQUENCES
        before = (t * B + s) * Hs
        if row < Hs:
            sums = ptx.zeros(SEQUENCES)
            for k in range(FOUR * lane, Hs, FOUR * WARP):
                if BF16:
                    w = ptx.unpack_bf16(ptx.tile_load_bf16(W, (row * Hp + k) // WORDS, 0, 0, 1, 1))
                else:
                    w = ptx.tile_load(W, row * Hp + k, 0, 0, 1, 1)
                h = ptx.tile_load(states, before + k, Hs, 0, SEQUENCES, 1)
                sums = ptx.tile_times(h, w, sums)
            total = ptx.warp_sums(sums, lane)
            j = ptx.lane_row(lane, SEQUENCES)
            if j < SEQUENCES and s + j < B:
                at = before + (B + j) * Hs + row
                states[at] = math.tanh(b[row] + states[at] + total)

    return step


def steps(net: RNN, dtype: str = "float32", products: str = "auto", device: int = 0) -> Forward:
    """One launch a time step: the launch is the barrier.

    Parallelises: rows of W and sequences over warps, columns over a warp's lanes. Synchronises: launches of one
    stream, one after the other, which cost microseconds each. Moves: W from the L2 cache (or from memory, where it is
    larger) in every step, and h through it. dtype="bfloat16" halves W's bytes.
    """
    gpu = open_gpu(device)
    Hs = round_up(net.hidden_size, FOUR)
    kernel = step_kernel(dtype)
    with gpu:
        weights = [gpu.send(weights_of(layer.W, Hs, Hs, dtype)) for layer in net.layers]

    def recur(l: int, b: Any, states: Any, T: int, B: int) -> None:
        grid = (-(-Hs // STEP_WARPS), -(-B // SEQUENCES))
        for t in range(T):
            gpu.launch(kernel, grid, STEP_WARPS * WARP, weights[l], b, states, t, B, Hs, Hs)

    return Pass(net, gpu, recur, products)


# --- block: a sequence in one multiprocessor ---------------------------------------------------------------------


@cache
def block_kernel(plan: BlockPlan) -> Any:
    """All steps of one sequence after the other; W stays in registers and shared memory from the first to the last."""
    ROWS, EXTRA, GROUPS, THREADS = plan.rows, plan.extra, plan.groups, plan.threads
    OWN, SPREAD, Hp = plan.rows + plan.extra, FOUR * WARP, plan.Hp
    BF16, WORDS = plan.dtype == "bfloat16", weights_a_word(plan.dtype)
    load = ptx.tile_load_bf16 if BF16 else ptx.tile_load
    times = ptx.tile_times_bf16 if BF16 else ptx.tile_times
    weight = int32 if BF16 else float32
    STATE = EXTRA * plan.warps * Hp // WORDS  # where h begins in shared memory, behind the rows of W

    @cuda.jit(launch_bounds=(THREADS, 1))
    def block(W, b, states, T, B, Hs):
        memory = cuda.shared.array(0, float32, alignment=ALIGNED)
        stored = cuda.shared.array(0, weight, alignment=ALIGNED)  # the same memory, as W's words
        tid = cuda.threadIdx.x
        lane, first = tid % WARP, tid // WARP * OWN  # of the warp's rows
        tile = load(W, (first * Hp + FOUR * lane) // WORDS, Hp // WORDS, SPREAD // WORDS, ROWS, GROUPS)
        own = (tid // WARP * EXTRA * Hp + FOUR * lane) // WORDS  # this lane's columns of the rows in shared memory
        for r in range(EXTRA):
            for g in range(GROUPS):
                for i in range(FOUR // WORDS):
                    at = (r * Hp + g * SPREAD) // WORDS + i
                    stored[own + at] = W[((first + ROWS) * Hp + FOUR * lane) // WORDS + at]
        mine = ptx.lane_row(lane, OWN)
        row = first + mine
        active = mine < OWN and row < Hs
        bias = b[row] if active else float32(0)
        for s in range(cuda.blockIdx.x, B, cuda.gridDim.x):
            for k in range(tid, Hp, THREADS):
                memory[STATE + k] = states[s * Hs + k] if k < Hs else float32(0)
                memory[STATE + Hp + k] = float32(0)
            ahead = states[(B + s) * Hs + row] if active else float32(0)
            cuda.syncthreads()  # h0 is there
            for t in range(T):
                total = bias + ahead
                if active and t + 1 < T:  # U x of the next step is on its way during this one
                    ahead = states[((t + 2) * B + s) * Hs + row]
                h = ptx.tile_load(memory, STATE + t % 2 * Hp + FOUR * lane, 0, SPREAD, 1, GROUPS)
                sums = times(tile, h, ptx.zeros(ROWS))
                if EXTRA > 0:
                    more = load(stored, own, Hp // WORDS, SPREAD // WORDS, EXTRA, GROUPS)
                    sums = sums + times(more, h, ptx.zeros(EXTRA))
                total += ptx.warp_sums(sums, lane)
                if active:
                    state = math.tanh(total)
                    memory[STATE + (t + 1) % 2 * Hp + row] = state
                    states[((t + 1) * B + s) * Hs + row] = state
                cuda.syncthreads()  # h[t] is there, and nobody needs h[t-1] any more

    return block


def block(net: RNN, dtype: str = "float32", products: str = "auto", device: int = 0) -> Forward:
    """One block a sequence, for small H: W in the registers and shared memory of one multiprocessor.

    Parallelises: sequences over blocks, rows of W over warps, columns over lanes. Synchronises: the threads of a
    block, once a step; blocks never meet. Moves: W once in a call; in a step only h, within shared memory. A hidden
    size whose W does not fit into one multiprocessor is refused (DoesNotFit, a ValueError, names the limit).
    """
    gpu = open_gpu(device)
    plan_block(gpu.device, net.hidden_size, 1, dtype)  # refuses before any work

    @cache
    def planned(B: int) -> tuple[BlockPlan, Any]:
        plan = plan_block(gpu.device, net.hidden_size, B, dtype)
        return plan, block_kernel(replace(plan, blocks=0))  # their number is no part of the code

    @cache
    def weights(rows: int, columns: int) -> list[Any]:
        return [gpu.send(weights_of(layer.W, rows, columns, dtype)) for layer in net.layers]

    def recur(l: int, b: Any, states: Any, T: int, B: int) -> None:
        plan, kernel = planned(B)
        W, Hs = weights(plan.warps * (plan.rows + plan.extra), plan.Hp)[l], round_up(plan.H, FOUR)
        gpu.launch(kernel, plan.blocks, plan.threads, W, b, states, T, B, Hs, shared=plan.shared)
        forward.info["plan"] = plan

    forward = Pass(net, gpu, recur, products)
    return forward


# --- persistent: one launch for the whole sequence, on the whole device --------------------------------------------
# How blocks meet. `sync` holds int32 words that only grow: `base` is what they hold when the launch begins, so that
# nothing has to be cleared between calls. Blocks of one team meet: `team`, `blocks` of them, this one is number `n`.

APART = 8  # int32 of a sector of the L2 cache: stores to one sector, and looks at it, come one after the other


@cuda.jit(device=True)
def wait_flags(sync, base, team, n, blocks, t):
    """Each thread looks at one of the team's flags: all the looks are under way together."""
    i = cuda.threadIdx.x
    while i < blocks:
        while ptx.ld_acquire(sync, (team * blocks + i) * APART) - (base + t) < 0:
            pass
        i += cuda.blockDim.x
    cuda.syncthreads()  # all of the block may read what any of its threads has seen


@cuda.jit(device=True)
def arrive_flags(sync, base, team, n, blocks, t):
    """A flag a block, which only this block writes, in a sector of its own: nobody waits to write."""
    cuda.syncthreads()  # all of the block have written their h
    if cuda.threadIdx.x == 0:
        ptx.st_release(sync, (team * blocks + n) * APART, int32(base + t + 1))


@cuda.jit(device=True)
def wait_counter(sync, base, team, n, blocks, t):
    """One thread looks at the team's counter."""
    if cuda.threadIdx.x == 0:
        while ptx.ld_acquire(sync, team * APART) - (base + t) * blocks < 0:
            pass
    cuda.syncthreads()


@cuda.jit(device=True)
def arrive_counter(sync, base, team, n, blocks, t):
    """One counter a team: the additions of all its blocks come one after the other."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        ptx.red_release_add(sync, team * APART, int32(1))


@cuda.jit(device=True)
def arrive_grid(sync, base, team, n, blocks, t):
    """Cooperative groups' barrier over the whole grid."""
    cuda.cg.this_grid().sync()


@cuda.jit(device=True)
def nothing(sync, base, team, n, blocks, t):
    pass


MEETINGS = {
    "flags": (wait_flags, arrive_flags),
    "counter": (wait_counter, arrive_counter),
    "grid": (nothing, arrive_grid),
    "values": (nothing, nothing),  # each value says itself which step it belongs to
}


@cache
def persistent_kernel(plan: PersistentPlan, asynchronous: bool) -> Any:
    """All steps of the plan's teams; see `persistent`."""
    ROWS, EXTRA, GROUPS, THREADS = plan.rows, plan.extra, plan.groups, plan.threads
    OWN, WARPS, Hp, SPREAD = ROWS + EXTRA, plan.warps, plan.Hp, FOUR * plan.threads
    BLOCKS, SEQUENCES, CHUNK, POLL = plan.blocks, plan.sequences, plan.chunk, plan.poll
    BF16, WORDS = plan.dtype == "bfloat16", weights_a_word(plan.dtype)
    load = ptx.tile_load_bf16 if BF16 else ptx.tile_load
    times = ptx.tile_times_bf16 if BF16 else ptx.tile_times
    weight = int32 if BF16 else float32
    copy, copies_wait = (ptx.copy4_async, ptx.copies_wait) if asynchronous else (ptx.copy4, ptx.no_wait)
    wait, arrive = MEETINGS[plan.barrier]
    VALUES = plan.barrier == "values"
    DIRECT = plan.direct  # one sequence, and no column beyond the last: h comes right into registers
    PAIRS = SEQUENCES > 1  # two sequences at a time
    STAGE = EXTRA * Hp // WORDS  # in shared memory: rows of W, then h of a chunk of sequences, then the warps' sums
    PARTIAL = STAGE + CHUNK * Hp
    PART = WARPS * CHUNK * OWN  # of these there are two, by turns: one is read while the other is filled

    @cuda.jit(launch_bounds=(THREADS, 1))
    def persistent(W, b, states, words, sync, base, T, B, Hs):
        memory = cuda.shared.array(0, float32, alignment=ALIGNED)
        stored = cuda.shared.array(0, weight, alignment=ALIGNED)  # the same memory, as W's words
        tid = cuda.threadIdx.x
        lane, warp = tid % WARP, tid // WARP
        team, n = cuda.blockIdx.x // BLOCKS, cuda.blockIdx.x % BLOCKS
        first = n * OWN  # of the block's rows
        s0 = team * SEQUENCES  # of the team's sequences
        count = min(SEQUENCES, B - s0)

        # W, once: this thread's columns of ROWS rows into registers, of EXTRA rows into shared memory.
        tile = load(W, (first * Hp + FOUR * tid) // WORDS, Hp // WORDS, SPREAD // WORDS, ROWS, GROUPS)
        own = FOUR * tid // WORDS
        for r in range(EXTRA):
            for g in range(GROUPS):
                for i in range(FOUR // WORDS):
                    at = own + (r * Hp + g * SPREAD) // WORDS + i
                    stored[at] = W[(first + ROWS) * Hp // WORDS + at]
        for j in range(CHUNK):  # columns beyond the last are zero, and stay so
            for g in range(GROUPS):
                if FOUR * tid + g * SPREAD >= Hs:
                    for i in range(FOUR):
                        memory[STAGE + j * Hp + g * SPREAD + FOUR * tid + i] = float32(0)
        mine, other = ptx.lane_row(lane, ROWS), ptx.lane_row(lane, FOUR)

        # The first of the sums that this thread finishes: its U x is read a step ahead.
        seq, row = s0 + tid // OWN, first + tid % OWN
        early = tid < min(count, CHUNK) * OWN and row < Hs
        ahead = states[(B + seq) * Hs + row] if early else float32(0)
        bias = b[row] if early else float32(0)
        turn = 0

        for t in range(T):
            total = bias + ahead
            if early and t + 1 < T:
                ahead = states[((t + 2) * B + seq) * Hs + row]
            if t > 0:
                wait(sync, base, team, n, BLOCKS, t)  # until h[t-1] of all the team's blocks is there

            for c in range(0, count, CHUNK):
                chunk = min(CHUNK, count - c)
                part = PARTIAL + turn * PART
                turn = 1 - turn
                # h[t-1] of a chunk of sequences: each thread fetches the columns that it multiplies, for itself alone.
                if not DIRECT:
                    for g in range(GROUPS):
                        k = FOUR * (tid + g * THREADS)
                        if k < Hs:
                            if VALUES and t > 0:
                                for j in range(0, chunk, POLL):
                                    at = ((base + t) % 2 * B + s0 + c + j) * Hs + k
                                    values, ready = ptx.ld_tagged(words, at, Hs, POLL, int32(base + t))
                                    while not ready:
                                        values, ready = ptx.ld_tagged(words, at, Hs, POLL, int32(base + t))
                                    ptx.store4s(memory, STAGE + j * Hp + k, Hp, values)
                            else:
                                for j in range(chunk):
                                    copy(memory, STAGE + j * Hp + k, states, (t * B + s0 + c + j) * Hs + k)
                    copies_wait()

                if PAIRS:
                    for j in range(0, chunk, 2):
                        i = min(j + 1, chunk - 1)  # where one is left over it is done twice
                        h = ptx.tile_load(memory, STAGE + j * Hp + FOUR * tid, 0, SPREAD, 1, GROUPS)
                        h2 = ptx.tile_load(memory, STAGE + i * Hp + FOUR * tid, 0, SPREAD, 1, GROUPS)
                        sums, sums2 = times(tile, h, ptx.zeros(ROWS)), times(tile, h2, ptx.zeros(ROWS))
                        rows, rows2 = ptx.two_warp_sums(sums, sums2, lane)
                        to, to2 = part + (warp * CHUNK + j) * OWN, part + (warp * CHUNK + i) * OWN
                        if mine < ROWS:
                            memory[to + mine] = rows
                            memory[to2 + mine] = rows2
                        for r in range(0, EXTRA, FOUR):
                            more = load(stored, own + r * Hp // WORDS, Hp // WORDS, SPREAD // WORDS, FOUR, GROUPS)
                            fours, fours2 = times(more, h, ptx.zeros(FOUR)), times(more, h2, ptx.zeros(FOUR))
                            rows, rows2 = ptx.two_warp_sums(fours, fours2, lane)
                            if other < FOUR:
                                memory[to + ROWS + r + other] = rows
                                memory[to2 + ROWS + r + other] = rows2
                else:
                    if DIRECT:
                        if VALUES and t > 0:
                            at = ((base + t) % 2 * B + s0) * Hs + FOUR * tid
                            h, ready = ptx.ld_tagged(words, at, SPREAD, GROUPS, int32(base + t))
                            while not ready:
                                h, ready = ptx.ld_tagged(words, at, SPREAD, GROUPS, int32(base + t))
                        else:
                            h = ptx.tile_load(states, (t * B + s0) * Hs + FOUR * tid, 0, SPREAD, 1, GROUPS)
                    else:
                        h = ptx.tile_load(memory, STAGE + FOUR * tid, 0, SPREAD, 1, GROUPS)
                    to = part + warp * OWN
                    rows = ptx.warp_sums(times(tile, h, ptx.zeros(ROWS)), lane)
                    if mine < ROWS:
                        memory[to + mine] = rows
                    for r in range(0, EXTRA, FOUR):
                        more = load(stored, own + r * Hp // WORDS, Hp // WORDS, SPREAD // WORDS, FOUR, GROUPS)
                        rows = ptx.warp_sums(times(more, h, ptx.zeros(FOUR)), lane)
                        if other < FOUR:
                            memory[to + ROWS + r + other] = rows
                cuda.syncthreads()  # the sums of all warps are there

                for j in range(tid, chunk * OWN, THREADS):
                    s, r = s0 + c + j // OWN, first + j % OWN
                    if r < Hs:
                        at = ((t + 1) * B + s) * Hs + r
                        if c + j != tid:
                            total = b[r] + states[at]
                        for w in range(WARPS):
                            total += memory[part + w * CHUNK * OWN + j]
                        state = math.tanh(total)
                        if VALUES:
                            ptx.st_tagged(words, ((base + t + 1) % 2 * B + s) * Hs + r, state, int32(base + t + 1))
                        states[at] = state
            arrive(sync, base, team, n, BLOCKS, t)  # h[t] of this block is there

    return persistent


def persistent(
    net: RNN,
    dtype: str = "float32",
    barrier: str = BARRIERS[0],
    teams: int | None = None,
    products: str = "auto",
    device: int = 0,
) -> Forward:
    """One cooperative launch for the whole sequence: each block keeps its rows of W in registers and shared memory.

    Parallelises: rows of W over blocks, columns over a block's threads; a large batch over teams of blocks that have
    a W each. Synchronises: the blocks of a team, once a step, by `barrier`: "counter", one counter for all, which one
    thread of each block adds to and looks at; "flags", an arrival flag a block, released by one thread and acquired by
    a thread of each block; "grid", cooperative groups' barrier; "values", none at all: each value of h says by one bit
    which step it belongs to, and is polled for itself. Moves: W once
    in a call; h in every step, through the L2 cache, to all blocks of the team. dtype="bfloat16" halves W's bytes.
    A launch whose blocks do not all fit on the device together is refused before it happens (DoesNotFit).
    """
    gpu = open_gpu(device)
    plan_persistent(gpu.device, net.hidden_size, 1, dtype, barrier)  # refuses before any work
    held: dict[str, Any] = {}

    def prepare(T: int, B: int) -> None:
        """Weights and flags for a plan, which depends on B; they stay for the next call."""
        if held.get("B") != B:
            plan = plan_persistent(gpu.device, net.hidden_size, B, dtype, barrier, teams)
            Hs = round_up(plan.H, FOUR)
            rows = plan.blocks * (plan.rows + plan.extra)
            held.update(
                B=B,
                plan=plan,
                kernel=persistent_kernel(plan, gpu.device.capability >= OLDEST_ASYNC),
                weights=[gpu.send(weights_of(layer.W, rows, plan.Hp, dtype)) for layer in net.layers],
                words=gpu.send(np.zeros(2 * B * Hs if barrier == "values" else 2, np.int32)),
                sync=gpu.send(np.zeros(plan.grid * APART, np.int32)),
                base=0,
            )
        plan = held["plan"]
        if (held["base"] + T) * plan.blocks > 2**30:  # the numbers are 32 bits wide
            held.update(words=gpu.send(np.zeros(held["words"].shape, np.int32)), base=0)
            held["sync"] = gpu.send(np.zeros(plan.grid * APART, np.int32))

    def recur(l: int, b: Any, states: Any, T: int, B: int) -> None:
        prepare(T, B)
        plan = held["plan"]
        gpu.launch(
            held["kernel"], plan.grid, plan.threads, held["weights"][l], b, states, held["words"], held["sync"],
            held["base"], T, B, round_up(plan.H, FOUR), shared=plan.shared, plan=plan, what="numba_cuda/persistent",
        )  # fmt: skip
        held["base"] += T
        forward.info["plan"] = plan

    forward = Pass(net, gpu, recur, products)
    return forward
