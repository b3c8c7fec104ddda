"""Ranks: processes that share no memory by themselves, on one machine or on many, and send each other messages.

Letters: T steps, B batch, I input, H hidden, O output, L layers. x (T,B,I), h (L,B,H), y (T,B,O), float32.
A strategy is a class: made once on every rank of a job, and then its `run` called on every rank with the same x. Each
rank computes with the kernels of the threaded methods (rnnpar/kernels), by `threads` threads of its own. Only rank 0
has the answer in the end.

There are two ways to get ranks. Under `mpiexec -n 4 python script.py` this process is one of them already, and rank
0's runner gives (y, h), the others' (None, None). In any other process `prepare(net, "mpi/rows", ranks=4)` starts them
(rnnpar/backends/mpi_start.py) and the runner gives (y, h) as every other does.

A rank that fails, or ends early, ends the others or tells them, from its first `prepare` on. What fails on one rank
before that, such as a file that only the others have, they would wait for: begin the script by `from mpi4py import MPI`
and start it by `mpiexec -n 4 python -m mpi4py script.py`, and it ends them too.

Where all ranks are on one machine, `exchange="auto"` lets them write the answer, and the states that all of them read,
straight into memory that they share ("window"); else they send messages. Only arrays are sent, never pickled objects.
"""

from __future__ import annotations

import atexit
import math
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import prange

from rnnpar import machine, model_ranks
from rnnpar.backends.threads import rows_body, share, split
from rnnpar.kernels.atomics import LINE, SKIP, SPINS, barrier
from rnnpar.kernels.forward import Plan, abreast, accumulate, inputs, outputs, sequences, step, tanh_panels
from rnnpar.kernels.jit import jit
from rnnpar.kernels.messages import ALLGATHER, ALONE, MESSAGES, Exchange, collect, publish
from rnnpar.kernels.pointers import at, bare
from rnnpar.kernels.team import Team
from rnnpar.kernels.tile import WIDTH, Packed, aligned, round_up
from rnnpar.network import RNN
from rnnpar.registry import Unavailable

Forward = Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]
OUTPUT, CHUNK, STATE = 10, 11, 12  # tags; a state's exchange has 0 and 1, and layer l's last state STATE + l
ACTS = ("prepare", "run", "close", "leave")
MOST_CORES = 8192  # of one machine
WORDS = 64  # where the words begin in what a rank tells the others
MODES = {"messages": MESSAGES, "allgather": ALLGATHER}


# --- The three strategies ----------------------------------------------------------------------------------------


def batch(net: RNN, ranks: int | None = None, threads: int = 1, exchange: str = "auto") -> Forward:
    """Every rank takes its own sequences from the first step to the last, as `serial/compiled` does.

    Parallelises: the batch; over each rank's threads too. Synchronises: nothing until the end, when rank 0 gathers.
    Moves: each rank's part of y and h to rank 0, once; nothing where the ranks share memory.
    `exchange` is "window", "messages" or "auto", the first where all ranks are on one machine.
    """
    return on_ranks("mpi/batch", net, ranks, threads, exchange)


def pipeline(net: RNN, ranks: int | None = None, threads: int = 1, exchange: str = "auto", chunk: int = 0) -> Forward:
    """Layers over ranks: while one rank is at a chunk of steps, the next is at the chunk before, a layer further up.

    Each layer is two stages, U x and the recurrence, and the output is one more. The ranks share out the 2 L + 1
    stages in a row, so that the slowest has as little as possible; rank 0 has the last ones, so that the answer
    arises where it is wanted. More ranks than stages find nothing to do.
    Parallelises: stages. Synchronises: one message a chunk between neighbours, the next one under way meanwhile.
    Moves: a chunk's states, (chunk, B, H) floats, once from rank to rank. Each rank reads its own layers' weights only.
    `chunk` is its steps; 0 lets the model choose: long ones wait for the first to come through, short ones send often.
    """
    return on_ranks("mpi/pipeline", net, ranks, threads, exchange, chunk=chunk)


def rows(
    net: RNN, ranks: int | None = None, threads: int = 1, exchange: str = "auto", overlap: int | None = None
) -> Forward:
    """Every step shared by all ranks: each owns some rows of W, and computes those elements of h[t].

    Parallelises: rows of U and W; then rows of the output (steps and sequences). Synchronises: an allgather of h[t]
    a step. Moves: H floats a sequence to every rank in every step, and each rank's rows of y to rank 0, a chunk of
    steps at a time; W stays in the cores' own caches, a share each.
    `exchange`: "window" keeps the states in memory that the ranks share, and all their threads are one team, which
    does just what that of `threads/rows` does, with a flag a thread and step; "messages" sends by persistent requests
    to every other rank; "allgather" by MPI's own persistent collective; "auto" is the first where it can be, else the
    second for few ranks and the third for many. `overlap`, of messages: of how many panels W h[t] is begun with the
    rank's own columns of h[t] while the others' are under way; None for as many as take the time of a message. (A
    fixed number, and not "until they have come", so that the sums have the same order in every call, and the results
    the same bits. With a window it is always the first panel, or two: threads.shared_step.)
    """
    return on_ranks("mpi/rows", net, ranks, threads, exchange, overlap=overlap)


# --- What one thread of one rank does in a chunk of steps: stages of a layer each, or all of them ------------------


@jit()
def chunk_body(thread, threads, x, h0, y, panels, bias, table, states, logits, sync, board, handles, answer, link,
               sizes, job):  # fmt: skip
    """The stages `first` to `end` for one chunk: 2 l is U x of layer l, 2 l + 1 its recurrence, 2 L the output.

    states: (L, slots, chunk * B * ld), each rank's own. Of U and W this rank computes the panels q0 to q1, and each
    of its threads a share of them.
    """
    x, h0, y, panels, bias, table = bare(x), bare(h0), bare(y), bare(panels), bare(bias), bare(table)
    states, logits, sync, board = bare(states), bare(logits), bare(sync), bare(board)
    L, I, H, _, _ = sizes
    first, end, number, t0, steps, B, slots, chunk, block, q0, q1, overlap, epoch, y_step = job
    rank, ranks = link[1], link[2]
    ld = (H + WIDTH - 1) // WIDTH * WIDTH
    size = chunk * B * ld
    p0, p1 = q0 + (q1 - q0) * thread // threads, q0 + (q1 - q0) * (thread + 1) // threads
    own0, own1 = min(H, q0 * WIDTH), min(H, q1 * WIDTH)  # the columns of h that this rank computes
    met = begun = 0
    for stage in range(first, end):
        l = min(stage // 2, L - 1)
        u, w, b = table[l]
        s0 = (slots * l + number % slots) * size
        if stage == 2 * L:
            v, _, c = table[L]
            r0, r1 = share(steps * B, rank * threads + thread, ranks * threads)
            outputs(states, s0, ld, r0, r1, panels, v, bias, c, logits[thread], block, y, y_step, 0, B, B, sizes)
        elif stage == 0:
            inputs(x, t0 * B * I, B * I, I, steps, B, I, panels, u, bias, b, states, s0, ld, p0, p1)
        elif stage % 2 == 0:
            below = (slots * (l - 1) + number % slots) * size
            inputs(states, below, B * ld, ld, steps, B, H, panels, u, bias, b, states, s0, ld, p0, p1)
        else:
            for t in range(steps):
                now = s0 + t * B * ld
                if begun > 0:  # some panels of this step have this rank's columns of h[t-1] in them already
                    f0, f1, r0, r1 = split(p0, p1, begun, t % 2)
                    before, s, unit = at(states, now - B * ld), at(states, now), abreast(B, H, p1 - p0)
                    for k0, k1, first_q, last_q in ((0, own0, f0, f1), (own1, H, f0, f1), (0, H, r0, r1)):
                        accumulate(before, ld, B, H, k0, k1, at(panels, w), s, ld, first_q, last_q, t % 2, unit)
                    tanh_panels(s, ld, B, p0, p1)
                elif t > 0:
                    step(at(states, now - B * ld), ld, B, H, at(panels, w), at(states, now), ld, p0, p1, t)
                elif number > 0:
                    before = at(states, (slots * l + (number - 1) % slots) * size + (chunk - 1) * B * ld)
                    step(before, ld, B, H, at(panels, w), at(states, now), ld, p0, p1, t)
                else:
                    step(at(h0, l * B * H), H, B, H, at(panels, w), at(states, now), ld, p0, p1, t)
                epoch += 1
                met += 1
                barrier(sync, thread, threads, met)  # all of this rank's columns are there
                begun = 0
                if thread == 0:
                    publish(link, board, handles, answer, states, now, ld, B, epoch)
                    while t + 1 < steps and begun < min(overlap, p1 - p0) and own0 < own1:
                        q = p1 - 1 - begun if (t + 1) % 2 else p0 + begun
                        s = at(states, now + B * ld)
                        accumulate(at(states, now), ld, B, H, own0, own1, at(panels, w), s, ld, q, q + 1, 0, 1)
                        begun += 1
                    collect(link, board, handles, answer, states, now, ld, B, epoch)
                met += 1
                barrier(sync, thread, threads, met)  # all of h[t] is there


@jit(parallel=True)
def chunk_region(threads, x, h0, y, panels, bias, table, states, logits, sync, board, handles, answer, link, sizes,
                 job):  # fmt: skip
    for thread in prange(threads):
        chunk_body(np.int64(thread), threads, x, h0, y, panels, bias, table, states, logits, sync, board, handles,
                   answer, link, sizes, job)  # fmt: skip


@jit()
def window_body(thread, threads, first, size, x, h0, y, h, panels, bias, table, states, logits, sync, block, chunk, T,
                B, sizes):  # fmt: skip
    """What a thread of `threads/rows` does: this one is number first + thread of the `size` of all ranks together."""
    rows_body(first + thread, size, x, h0, y, h, panels, bias, table, states, logits, sync, block, chunk, T, B, sizes,
              None)  # fmt: skip


@jit(parallel=True)
def window_region(threads, first, size, x, h0, y, h, panels, bias, table, states, logits, sync, block, chunk, T, B,
                  sizes):  # fmt: skip
    for thread in prange(threads):
        window_body(np.int64(thread), threads, first, size, x, h0, y, h, panels, bias, table, states, logits, sync,
                    block, chunk, T, B, sizes)  # fmt: skip


@jit()
def batch_body(thread, threads, x, h0, y, h, panels, bias, table, states, logits, block, chunk, T, B, first, end,
               sizes):  # fmt: skip
    """The sequences first to end of a batch of B, shared out over the threads of this rank."""
    own, after = first + (end - first) * thread // threads, first + (end - first) * (thread + 1) // threads
    if after > own:
        sequences(x, h0, y, h, panels, bias, table, states[thread], logits[thread], block, chunk, T, B, own,
                  after - own, sizes, 0, None)  # fmt: skip


@jit(parallel=True)
def batch_region(threads, x, h0, y, h, panels, bias, table, states, logits, block, chunk, T, B, first, end, sizes):
    for thread in prange(threads):
        batch_body(np.int64(thread), threads, x, h0, y, h, panels, bias, table, states, logits, block, chunk, T, B,
                   first, end, sizes)  # fmt: skip


# --- What one rank does ------------------------------------------------------------------------------------------


class Ranks:
    """The ranks of a job: a communicator, this rank's number, and whether all of them are on one machine."""

    def __init__(self, comm: Any):
        from mpi4py import MPI

        self.comm, self.rank, self.size = comm, comm.rank, comm.size
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.near = node.size  # ranks on this machine
        self.one_machine = node.size == comm.size
        self.link = model_ranks.NEAR if self.one_machine else model_ranks.FAR
        self.cores = cores_of(node)
        self.crowded = self.take_turns()
        self.broken = False  # one has left the program: nothing can be done together any more
        node.Free()

    def take_turns(self, threads: int = 1) -> bool:
        """Whether this machine has fewer cores for its ranks than they have threads."""
        return self.near * threads > self.cores

    def meet(self) -> None:
        """Wait for all ranks, without keeping a core from them."""
        patiently(self.comm.Ibarrier(), self.crowded)

    def tell(self, act: str, mine: bytes, said: str, wrong: bool = False) -> np.ndarray:
        """What every rank is about to do, a row of bytes each: the act, whether it is wrong, 62 of `mine`, the words.

        Whatever the ranks do together begins with this, and so does a rank's end; so none can wait in a call for one
        that is elsewhere.
        """
        row = np.zeros(WORDS + 256, np.uint8)
        for start, part in ((0, bytes([ACTS.index(act), wrong])), (2, mine), (WORDS, said.encode()[:256])):
            row[start : start + len(part)] = np.frombuffer(part, np.uint8)
        rows = np.zeros((self.size, row.size), np.uint8)
        patiently(self.comm.Iallgather(row, rows))
        self.broken = self.broken or bool((rows[:, 0] == ACTS.index("leave")).any())
        return rows

    def leave(self) -> None:
        """The end of this rank's program: if others are not at theirs, they hear of it where they would wait for it."""
        from mpi4py import MPI

        if self.size > 1 and not self.broken and not MPI.Is_finalized():
            self.tell("leave", b"", "come to the end of its program")


def cores_of(node: Any) -> int:
    """How many cores the ranks of one machine may use, all together: mpiexec may have bound each to some of its own."""
    from mpi4py import MPI

    if not hasattr(os, "sched_getaffinity"):
        return machine.cores_allowed()
    masks = np.zeros(MOST_CORES, np.uint8)
    masks[sorted(os.sched_getaffinity(0))] = 1
    node.Allreduce(MPI.IN_PLACE, masks, MPI.MAX)
    return machine.cores_allowed(int(masks.sum()))


def patiently(request: Any, crowded: bool = False) -> None:
    """Wait for an mpi4py request: spin, then yield, then nap. MPI's own wait spins for ever."""
    for _ in range(1 if crowded else 200):
        if request.Test():
            return
    for _ in range(1000):
        os.sched_yield() if hasattr(os, "sched_yield") else time.sleep(0)
        if request.Test():
            return
    while not request.Test():
        time.sleep(50e-6)


class Window:
    """`elements` float32 that all ranks of one machine have mapped, and before them `lines` of flags, zeros.

    A line is as atomics.barrier takes it; `crowded`: who waits offers its core at once.
    Making and freeing a window is collective.
    """

    def __init__(self, ranks: Ranks, elements: int, lines: int = 0, crowded: bool = False):
        from mpi4py import MPI

        space = 2 * lines * LINE  # an int64 is as long as two float32
        size = 4 * (space + elements) if ranks.rank == 0 else 0
        self._window = MPI.Win.Allocate_shared(size, 4, comm=ranks.comm)
        memory = np.frombuffer(self._window.Shared_query(0)[0], np.float32)
        self.flags, self.memory = memory[:space].view(np.int64), memory[space:]
        if lines:
            if ranks.rank == 0:
                self.flags[:] = 0
                self.flags[SKIP::LINE] = SPINS if crowded else 0
            ranks.meet()

    def free(self) -> None:
        self.flags = self.memory = None
        self._window.Free()


def way(ranks: Ranks, exchange: str, far: str = "messages") -> str:
    """How the ranks exchange: as is asked for; for "auto" through a window on one machine, and `far` on several."""
    if exchange == "auto":
        return "window" if ranks.one_machine else far
    if exchange == "window" and not ranks.one_machine:
        raise ValueError("exchange is 'window', but the ranks are on several machines; 'auto' would do")
    return exchange


class Strategy:
    """What the three have in common: packed weights, a team of threads, and buffers for the shape of the last call.

    `run(x, h0, y, h)` on every rank; y (T,B,O) and h (L,B,H) are shared by all ranks if `direct`, else rank 0's own,
    and of no meaning on the others. `info` says how it is done.
    """

    def __init__(self, ranks: Ranks, net: RNN, threads: int, exchange: str, **options: Any):
        self.ranks, self.net, self.threads = ranks, net, threads
        self.exchange = way(ranks, exchange)
        self.direct = self.exchange == "window"
        self.packed = Packed.of(net)
        self.info = {"ranks": ranks.size, "threads": threads, "exchange": self.exchange}
        self._shape: tuple[int, int] = (-1, -1)
        self._prepare(**options)

    def _prepare(self) -> None: ...

    def warm(self) -> None:
        """Compile: rank 0 first, then the others, who find it in the cache on the disk."""
        x = np.zeros((0, 1, self.net.input_size), np.float32)
        h0 = np.zeros((self.net.num_layers, 1, self.net.hidden_size), np.float32)
        for turn in (self.ranks.rank == 0, self.ranks.rank != 0):
            if turn:
                self._compile(x, h0)
            self.ranks.meet()

    def close(self) -> None: ...


CACHE_BYTES_S = 100e9  # what a core reads from its caches, roughly
FEW = 8  # ranks up to which a message to each is sooner done than an allgather's rounds


class Batch(Strategy):
    """`batch` on one rank."""

    def _prepare(self) -> None:
        self.team = Team(self.threads, batch_body, batch_region)

    def _compile(self, x: np.ndarray, h0: np.ndarray) -> None:
        plan = Plan.of(self.net, self.packed, 1, 1, 1)
        y = np.zeros((0, 1, self.net.output_size), np.float32)
        self._sequences(x, h0, y, h0.copy(), plan, plan.states(self.threads), plan.logits(self.threads), 0, 0)

    def run(self, x: np.ndarray, h0: np.ndarray, y: np.ndarray, h: np.ndarray) -> None:
        T, B, _ = x.shape
        rank, size = self.ranks.rank, self.ranks.size
        first, end = B * rank // size, B * (rank + 1) // size
        if self._shape != (T, B):
            self._shape = (T, B)
            plan = self.plan = Plan.of(self.net, self.packed, T, B, max(1, -(-(end - first) // self.threads)))
            self.states, self.logits = plan.states(self.threads), plan.logits(self.threads)
        if self.direct:
            self._sequences(x, h0, y, h, self.plan, self.states, self.logits, first, end)
            self.ranks.meet()
            return
        own_x, own_h0 = np.ascontiguousarray(x[:, first:end]), np.ascontiguousarray(h0[:, first:end])
        own_y, own_h = (np.empty((*a.shape[:1], end - first, n), np.float32)
                        for a, n in ((x, self.net.output_size), (h0, self.net.hidden_size)))  # fmt: skip
        self._sequences(own_x, own_h0, own_y, own_h, self.plan, self.states, self.logits, 0, end - first)
        self._gather(own_y, y)
        self._gather(own_h, h)

    def _sequences(self, x, h0, y, h, plan, states, logits, first, end) -> None:
        packed = self.packed
        self.team.run(
            x.ravel(), h0.ravel(), y.ravel(), h.ravel(), packed.panels, packed.bias, packed.table, states, logits,
            plan.block, plan.chunk, x.shape[0], x.shape[1], first, end, plan.sizes,
        )  # fmt: skip

    def _gather(self, own: np.ndarray, whole: np.ndarray) -> None:
        """Each rank's sequences into their places in rank 0's array (N,B,M); own (N, its sequences, M)."""
        from mpi4py import MPI

        comm, size = self.ranks.comm, self.ranks.size
        if self.ranks.rank:
            patiently(comm.Isend(own, 0, OUTPUT))
            return
        N, B, M = whole.shape
        whole[:, : own.shape[1]] = own
        pending = []
        for rank in range(1, size):
            first, end = B * rank // size, B * (rank + 1) // size
            places = MPI.FLOAT.Create_vector(N, (end - first) * M, B * M).Commit()  # every step's, B sequences apart
            pending.append(comm.Irecv([whole.ravel()[first * M :], 1, places], rank, OUTPUT))
            places.Free()  # once the message is there
        for request in pending:
            patiently(request)


class Chunked(Strategy):
    """What `rows` and `pipeline` have in common: a chunk of steps at a time, some stages of it, some panels of W."""

    slots = 2  # chunks of states that are kept

    def _prepare(self, **options: Any) -> None:
        self.team = Team(self.threads, chunk_body, chunk_region)
        self.sync = aligned(self.threads * LINE, np.int64)
        self.alone = Exchange(self.ranks.comm, ALONE, 1, 1)
        self.ld = round_up(self.net.hidden_size, WIDTH)
        self.panels = (0, self.ld // WIDTH)
        self.overlap = 0

    def _buffers(self, T: int, B: int, chunk: int = 0) -> None:
        plan = self.plan = Plan.of(self.net, self.packed, T, B, B)
        self.chunk = min(T, chunk) or plan.chunk
        self.states = aligned(self.net.num_layers * self.slots * self.chunk * B * self.ld)
        self.logits = plan.logits(self.threads)

    def _compile(self, x: np.ndarray, h0: np.ndarray) -> None:
        self._buffers(1, 1)
        self._stages(x, h0, np.zeros(0, np.float32), self.alone, (0, 0), 0, 0, 0, 0)

    def _stages(self, x, h0, y, exchange, stages, number, t0, steps, y_step) -> None:
        packed, B = self.packed, x.shape[1]
        self.sync.fill(0)
        job = (*stages, number, t0, steps, B, self.slots, self.chunk, self.plan.block, *self.panels, self.overlap,
               exchange.epoch, y_step)  # fmt: skip
        self.team.run(
            x.ravel(), h0.ravel(), y.ravel(), packed.panels, packed.bias, packed.table, self.states, self.logits,
            self.sync, exchange.board, exchange.handles, exchange.answer, exchange.link, self.plan.sizes, job,
        )  # fmt: skip

    def _last_state(self, l: int, T: int, B: int) -> np.ndarray:
        """The last state of layer l (B,H), after all chunks."""
        number = (T - 1) // self.chunk
        start = (self.slots * l + number % self.slots) * self.chunk * B * self.ld + (T - 1) % self.chunk * B * self.ld
        return self.states[start : start + B * self.ld].reshape(B, self.ld)[:, : self.net.hidden_size]


class RowsInWindow(Strategy):
    """`rows` on one rank, where all of them share memory: all ranks' threads are one team with states in a window."""

    def _prepare(self) -> None:
        self.team = Team(self.threads, window_body, window_region)
        self.all = self.ranks.size * self.threads
        self.first = self.ranks.rank * self.threads
        self.calls = 0
        self._window: Window | None = None

    def _compile(self, x: np.ndarray, h0: np.ndarray) -> None:
        plan = Plan.of(self.net, self.packed, 1, 1, 1)
        y, sync = np.zeros((0, 1, self.net.output_size), np.float32), aligned(self.threads * LINE, np.int64)
        self._together(x, h0, y, h0.copy(), plan, plan.states()[0], plan.logits(self.threads), sync, 0, self.threads)

    def run(self, x: np.ndarray, h0: np.ndarray, y: np.ndarray, h: np.ndarray) -> None:
        T, B, _ = x.shape
        if self._shape != (T, B):
            self._shape = (T, B)
            self._share(Plan.of(self.net, self.packed, T, B, B))
        # Two arrays of flags in turn: nobody is still looking at those of the call before when they are taken back.
        now, then = self.sync[self.calls % 2], self.sync[(self.calls + 1) % 2]
        then[self.first * LINE : (self.first + self.threads) * LINE : LINE] = 0
        self.calls += 1
        self._together(x, h0, y, h, self.plan, self.states, self.logits, now, self.first, self.all)
        self.ranks.meet()

    def _share(self, plan: Plan) -> None:
        """Put what all ranks read and write into a window: flags, states and logits."""
        self.plan = plan
        states, (copies, block) = plan.states().size, plan.logits(self.all).shape  # no page of these is ever touched
        elements = states + copies * block
        if self._window is None or self._window.memory.size < elements:
            self.close()
            self._window = Window(self.ranks, elements, 2 * self.all, self.ranks.take_turns(self.threads))
        self.sync = self._window.flags.reshape(2, -1)
        self.states = self._window.memory[:states]
        self.logits = self._window.memory[states:elements].reshape(copies, block)

    def _together(self, x, h0, y, h, plan, states, logits, sync, first, size) -> None:
        packed = self.packed
        self.team.run(
            first, size, x.ravel(), h0.ravel(), y.ravel(), h.ravel(), packed.panels, packed.bias, packed.table, states,
            logits, sync, plan.block, plan.chunk, x.shape[0], x.shape[1], plan.sizes,
        )  # fmt: skip

    def close(self) -> None:
        if self._window is not None:
            self.sync = self.states = self.logits = None
            self._window.free()
            self._window = None


class Rows(Chunked):
    """`rows` on one rank, by messages."""

    def _prepare(self, overlap: int | None = None) -> None:
        super()._prepare()
        whole = self.ld // WIDTH
        share = -(-whole // self.ranks.size)  # the same for each, as a collective wants it; the last may have less
        self.wide = share * WIDTH
        self.panels = tuple(min(whole, (self.ranks.rank + i) * share) for i in (0, 1))
        self.overlap = overlap
        if overlap is None:
            a_panel = 4 * WIDTH * self.wide / CACHE_BYTES_S  # its part that has this rank's columns
            self.overlap = math.ceil(self.ranks.link.alpha / a_panel)
        self.info |= {"overlap": self.overlap}
        self._exchange: Exchange | None = None

    def run(self, x: np.ndarray, h0: np.ndarray, y: np.ndarray, h: np.ndarray) -> None:
        T, B, _ = x.shape
        ranks, O = self.ranks, self.net.output_size
        if self._shape != (T, B):
            self._buffers(T, B)
            if self._exchange is None or self._shape[1] != B:
                self.close()
                crowded = ranks.take_turns(self.threads)
                self._exchange = Exchange(ranks.comm, MODES[self.exchange], B, self.wide, crowded)
            self._shape = (T, B)
            self._own_y = np.empty((2, self.chunk * B * O) if ranks.rank else 0, np.float32)
            self.info["chunk"] = self.chunk
        stages = (0, 2 * self.net.num_layers + 1)
        pending: list[Any] = []
        for number, t0 in enumerate(range(0, T, self.chunk)):
            steps = min(self.chunk, T - t0)
            if ranks.rank == 0:
                self._stages(x, h0, y, self._exchange, stages, number, t0, steps, t0)
                for rank, part in self._parts(t0, steps, B):
                    pending.append(ranks.comm.Irecv(y.ravel()[part], rank, OUTPUT))
            else:
                for request in pending[-2:-1]:  # what this half of the buffer held has left
                    patiently(request)
                own_y = self._own_y[number % 2]
                self._stages(x, h0, own_y, self._exchange, stages, number, t0, steps, 0)
                part = dict(self._parts(0, steps, B))[ranks.rank]
                pending.append(ranks.comm.Isend(own_y[part], 0, OUTPUT))
            self._exchange.epoch += steps * self.net.num_layers
        for request in pending:
            patiently(request)
        if ranks.rank == 0:
            for l in range(self.net.num_layers):
                h[l] = self._last_state(l, T, B)

    def _parts(self, t0: int, steps: int, B: int) -> list[tuple[int, slice]]:
        """Which elements of y each rank but 0 computes in a chunk."""
        O, threads, all_ = self.net.output_size, self.threads, self.ranks.size * self.threads
        edges = [share(steps * B, rank * threads, all_)[0] for rank in range(self.ranks.size)] + [steps * B]
        return [
            (rank, slice((t0 * B + edges[rank]) * O, (t0 * B + edges[rank + 1]) * O))
            for rank in range(1, self.ranks.size)
        ]

    def close(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None


class Pipeline(Chunked):
    """`pipeline` on one rank."""

    slots = 3  # one being received, one being computed, and the one before, whose last state begins it

    def _prepare(self, chunk: int = 0) -> None:
        super()._prepare()
        self.wanted = chunk

    def run(self, x: np.ndarray, h0: np.ndarray, y: np.ndarray, h: np.ndarray) -> None:
        T, B, _ = x.shape
        comm, L = self.ranks.comm, self.net.num_layers
        place = self.ranks.size - 1 - self.ranks.rank  # in the pipeline: rank 0 is its end
        if self._shape != (T, B):
            self._shape = (T, B)
            self._plan(T, B)
        cuts = self.cuts
        stages = (cuts[place], cuts[place + 1])
        busy = [p for p in range(self.ranks.size) if cuts[p] < cuts[p + 1]]
        before = next((self.ranks.size - 1 - p for p in reversed(busy) if p < place), None)
        behind = next((self.ranks.size - 1 - p for p in busy if p > place), None)
        chunks = -(-T // self.chunk)
        coming: dict[int, Any] = {}
        leaving: dict[int, Any] = {}

        def buffer(stage: int, number: int) -> np.ndarray:
            """What a stage hands to the next: its layer's states of a chunk."""
            l, size = (stage - 1) // 2, self.chunk * B * self.ld
            start = (self.slots * l + number % self.slots) * size
            return self.states[start : start + min(self.chunk, T - number * self.chunk) * B * self.ld]

        if place in busy:
            for number in range(chunks):
                if number + 1 - self.slots in leaving:  # it was sent from where the next chunk will be put
                    patiently(leaving.pop(number + 1 - self.slots))
                for ahead in (number, number + 1):
                    if before is not None and ahead < chunks and ahead not in coming:
                        coming[ahead] = comm.Irecv(buffer(stages[0], ahead), before, CHUNK)
                if before is not None:
                    patiently(coming[number])
                t0 = number * self.chunk
                self._stages(x, h0, y, self.alone, stages, number, t0, min(self.chunk, T - t0), t0)
                if behind is not None:
                    leaving[number] = comm.Isend(buffer(stages[1], number), behind, CHUNK)
            for request in leaving.values():
                patiently(request)
        self._hand_over(h, T, B, [next(p for p in busy if cuts[p] <= 2 * l + 1 < cuts[p + 1]) for l in range(L)])

    def _plan(self, T: int, B: int) -> None:
        """Which stages each place in the pipeline has, and how long a chunk is; rank 0 decides for all."""
        decided = np.zeros(self.ranks.size + 2, np.int64)
        if self.ranks.rank == 0:
            decided[:] = model_ranks.pipeline_plan(self.net, T, B, self.ranks.size, self.wanted, self.ranks.link)
            if not self.wanted:  # longer ones would leave the core's own cache
                decided[0] = min(decided[0], Plan.of(self.net, self.packed, T, B, B).chunk)
        patiently(self.ranks.comm.Ibcast(decided))
        self.cuts = [int(cut) for cut in decided[1:]]
        self._buffers(T, B, int(decided[0]))
        self.info |= {"chunk": self.chunk, "stages": self.cuts}

    def _hand_over(self, h: np.ndarray, T: int, B: int, owners: Sequence[int]) -> None:
        """The last state of each layer, from the place that has its recurrence to rank 0."""
        comm, rank = self.ranks.comm, self.ranks.rank
        for l, place in enumerate(owners):
            owner = self.ranks.size - 1 - place
            if rank == owner and (rank == 0 or self.direct):
                h[l] = self._last_state(l, T, B)
            elif rank == owner:
                patiently(comm.Isend(np.ascontiguousarray(self._last_state(l, T, B)), 0, STATE + l))
            elif rank == 0 and not self.direct:
                patiently(comm.Irecv(h[l], owner, STATE + l))
        if self.direct:
            self.ranks.meet()


def rows_of(ranks: Ranks, net: RNN, threads: int, exchange: str, overlap: int | None = None) -> Strategy:
    """`rows` on one rank: in a window where there can be one, but where `overlap` asks for messages."""
    far = "messages" if ranks.size <= FEW else "allgather"
    exchange = far if exchange == "auto" and overlap is not None else way(ranks, exchange, far)
    if exchange == "window" or ranks.size == 1:
        return RowsInWindow(ranks, net, threads, exchange)
    return Rows(ranks, net, threads, exchange, overlap=overlap)


STRATEGIES: dict[str, Callable[..., Strategy]] = {"mpi/batch": Batch, "mpi/pipeline": Pipeline, "mpi/rows": rows_of}


# --- Where the ranks come from -----------------------------------------------------------------------------------

# What mpiexec of MPICH, Intel MPI and Open MPI, and srun with PMI, tell each process that they start.
LAUNCHED = ("PMI_RANK", "PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def launched() -> bool:
    """Whether this process is one of the ranks of a job that mpiexec started."""
    return any(name in os.environ for name in LAUNCHED)


def on_ranks(name: str, net: RNN, ranks: int | None, threads: int, exchange: str, **options: Any) -> Forward:
    """The forward pass of a strategy: on the ranks of the job that this process is in, or on ranks started for it."""
    check_options(name, ranks, threads, exchange, options)
    if launched():
        return Member(name, net, ranks, threads, exchange, options)
    if ranks is None:
        raise ValueError(
            f"{name} has no ranks: start the program by `mpiexec -n 2 python ...`, or let it start some by ranks=2"
        )
    from rnnpar.backends.mpi_start import Started

    warn_of_cores(ranks, threads, machine.cores_allowed())
    return Started(name, net, ranks, threads, exchange, options)


def check_options(name: str, ranks: Any, threads: Any, exchange: str, options: dict[str, Any]) -> None:
    """TypeError or ValueError for options that no strategy can use."""
    for key, value in (("ranks", ranks), ("threads", threads), *((o, options.get(o)) for o in ("chunk", "overlap"))):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{key} is {value!r}; it must be a whole number")
        least = int(key in ("ranks", "threads"))
        if value < least:
            raise ValueError(f"{key} is {value}; it must be at least {least}")
    known = ("auto", "window", *(MODES if name == "mpi/rows" else ("messages",)))
    if exchange not in known:
        raise ValueError(f"exchange is {exchange!r}; for {name} it must be one of {', '.join(known)}")
    if exchange == "window" and options.get("overlap") is not None:
        raise ValueError(
            "overlap is an option of messages, but exchange is 'window'; 'messages' or 'allgather' take it"
        )


def warn_of_cores(ranks: int, threads: int, cores: int) -> None:
    if ranks * threads > cores:
        warnings.warn(
            f"{ranks} ranks x {threads} threads, but they may use {cores} cores: the result is right, the time is not",
            UserWarning, stacklevel=5,
        )  # fmt: skip


def attend() -> None:
    """From here on, an error that ends one rank of a job ends all of them; else they would wait for it for ever.

    `prepare` calls it first of all. Nothing happens in a process that is no rank, or the only one.
    """
    if launched() and not any(os.environ.get(name) == "1" for name in LAUNCHED if name.endswith("SIZE")):
        _attend()


@cache
def _attend() -> None:
    told = sys.excepthook

    def end_all(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        told(kind, error, trace)
        where = f"rank {world().rank} of {world().size}" if world.cache_info().currsize else "a rank"
        print(f"{where} ended by {kind.__name__}: {error}", file=sys.stderr, flush=True)
        if world.cache_info().currsize:
            world().comm.Abort(1)
        # The others wait for it to begin MPI. To mpiexec only a signal tells that a rank has failed before that.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)

    sys.excepthook = end_all


@cache
def world() -> Ranks:
    """The ranks of the job that this process is in, on a communicator of our own. Unavailable where MPI fails."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError, OSError) as error:
        raise Unavailable(f"mpi4py finds no MPI ({error}); `pip install mpich` brings one") from None
    attend()
    ranks = Ranks(MPI.COMM_WORLD.Dup())
    atexit.register(ranks.leave)
    return ranks


class Member:
    """The forward pass in a process that is itself one of the ranks: rank 0 gets (y, h), the others (None, None).

    Making, calling and closing it is collective: every rank does it, with the same arguments. What cannot be the
    same by mistake (network, options, shapes) is compared first, and every rank is told who differs.
    """

    def __init__(self, name: str, net: RNN, ranks: int | None, threads: int, exchange: str, options: dict[str, Any]):
        self.place = world()
        self.root = self.place.rank == 0
        size = self.place.size
        wrong = ""
        if ranks not in (None, size):
            wrong = f"ranks is {ranks}, but mpiexec started {size}; leave it out, or start as many"
        elif ranks is None and size == 1:
            wrong = f"{name} needs two ranks at least, and this job has one: mpiexec -n 2 (or ranks=1, if one is meant)"
        self._compare("prepare", wrong, digest(name, net, threads, exchange, options), f"{name} on {net!r}")
        if self.root:
            warn_of_cores(self.place.near, threads, self.place.cores)
        self.strategy = STRATEGIES[name](self.place, net, threads, exchange, **options)
        self.info = self.strategy.info
        self._result: Window | None = None
        self.strategy.warm()

    def agree(self, check: Callable[..., tuple[np.ndarray, np.ndarray]], net: RNN, x: Any, h0: Any) -> tuple:
        """`check(net, x, h0)` on every rank: all accept their input, or all raise, and it is the same shape on all."""
        wrong, kind, checked = "", ValueError, None
        try:
            checked = check(net, x, h0)
        except (TypeError, ValueError) as error:
            wrong, kind = str(error), type(error)
        shape = getattr(x, "shape", ())
        sizes = np.array([*shape, 0, 0, 0])[:4].astype(np.int64)
        self._compare("run", wrong, sizes.tobytes(), f"x of shape {shape}", kind)
        return checked

    def _compare(self, what: str, wrong: str, mine: bytes, said: str, kind: type[Exception] = ValueError) -> None:
        """Raise on every rank if one has something wrong, or does something else than rank 0."""
        if self.place.broken:
            raise RuntimeError(f"{what}: a rank has come to the end of its program; the others cannot go on without it")
        rows = self.place.tell(what, mine, wrong or said, bool(wrong))
        if not rows[:, 1].any() and (rows[:, :WORDS] == rows[0, :WORDS]).all():
            return
        if wrong:
            raise kind(wrong)
        says = [bytes(row[WORDS:]).rstrip(b"\0").decode(errors="replace") for row in rows]
        for rank in np.flatnonzero(rows[:, 1]):
            raise ValueError(f"{what}: rank {rank} has it wrong, so no rank goes on: {says[rank]}")
        other = int(np.flatnonzero((rows[:, :WORDS] != rows[0, :WORDS]).any(axis=1))[0])
        raise ValueError(
            f"{what}: the ranks disagree, and each must give the same: rank 0 has {says[0]}, rank {other} has "
            f"{says[other] if says[other] != says[0] else 'other weights or options'}"
        )

    def __call__(self, x: np.ndarray, h0: np.ndarray) -> tuple[Any, Any]:
        T, B, _ = x.shape
        shapes = (T, B, self.strategy.net.output_size), h0.shape
        if self.strategy.direct:
            y, h = self._shared(shapes)
        else:
            y, h = (np.empty(shape if self.root else 0, np.float32) for shape in shapes)
        self.strategy.run(x, h0, y, h)
        if not self.root:
            return None, None
        return (y.copy(), h.copy()) if self.strategy.direct else (y, h)

    def _shared(self, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """y and h in memory that all ranks share; rank 0 hands out copies, since the next call writes there again."""
        sizes = [int(np.prod(shape)) for shape in shapes]
        if self._result is None or self._result.memory.size != sum(sizes):
            self._free()
            self._result = Window(self.place, sum(sizes))
        memory = self._result.memory
        return [memory[: sizes[0]].reshape(shapes[0]), memory[sizes[0] :].reshape(shapes[1])]

    def _free(self) -> None:
        if self._result is not None:
            self._result.free()
            self._result = None

    def close(self) -> None:
        if not self.place.broken:  # else what the ranks share lasts until the process ends
            self._compare("close", "", b"", "closed its runner")
            self._free()
            self.strategy.close()


def digest(name: str, net: RNN, threads: int, exchange: str, options: dict[str, Any]) -> bytes:
    """32 bytes that differ where the method, an option or a weight does."""
    import hashlib

    found = hashlib.sha256(repr((name, threads, exchange, sorted(options.items()))).encode())
    for array in [net.V, net.c, *(array for layer in net.layers for array in (layer.W, layer.U, layer.b))]:
        found.update(repr(array.shape).encode() + array.tobytes())
    return found.digest()


def last_words(error: BaseException) -> str:
    """An error with the last few places that it came through."""
    return "".join(traceback.format_exception(error, limit=-4))
