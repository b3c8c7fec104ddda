"""Ranks: processes that share no memory by themselves, on one machine or on many, and send each other messages.

Letters: T steps, B batch, I input, H hidden, O output, L layers. x (T,B,I), h (L,B,H), y (T,B,O), float32.
A strategy is a class: made once on every rank of a job, and then its `run` called on every rank with the same x. Each
rank computes with the kernels of the threaded methods (rnnpar/kernels), by `threads` threads of its own. Only rank 0
has the answer in the end.

There are two ways to get ranks. Under `mpiexec -n 4 python script.py` this process is one of them already, and rank
0's runner gives (y, h), the others' (None, None). In any other process `prepare(net, "mpi/rows", ranks=4)` starts them
(rnnpar/backends/mpi_start.py) and the runner gives (y, h) as every other does; so it may in a job of one rank.

A rank that fails, or ends early, ends the others or tells them, from its first `prepare` on. What fails on one rank
before that, such as a file that only the others have, they would wait for: begin the script by `from mpi4py import MPI`
and start it by `mpiexec -n 4 python -m mpi4py script.py`, and it ends them too.

Where all ranks are on one machine, `exchange="auto"` lets them write the answer, and the states that all of them read,
straight into memory that they share ("window"); else they send messages. Only arrays are sent, never pickled objects.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np

from rnnpar import machine, model_ranks
from rnnpar.backends.threads import rows_region, share, split
from rnnpar.kernels.atomics import ONE, SPINS, ZERO, meet, stopped
from rnnpar.kernels.forward import (
    FIELDS,
    Plan,
    abreast,
    accumulate,
    fields_of,
    inputs,
    outputs,
    sequences,
    step,
    tanh_panels,
)
from rnnpar.kernels.jit import jit
from rnnpar.kernels.job import LINE, SKIP, Job
from rnnpar.kernels.messages import ALLGATHER, ALONE, MESSAGES, Exchange, collect, publish
from rnnpar.kernels.pointers import at
from rnnpar.kernels.team import Region
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


def chunk_region(thread, threads, job):
    """The stages `first` to `end` for one chunk: 2 l is U x of layer l, 2 l + 1 its recurrence, 2 L the output.

    states: (L, slots, chunk * B * ld), each rank's own. Of U and W this rank computes the panels q0 to q1, and each
    of its threads a share of them.
    """
    B, I, H, ld, steps = job.B, job.I, job.H, job.ld, job.steps
    size = job.chunk * B * ld
    p0 = job.q0 + (job.q1 - job.q0) * thread // threads
    p1 = job.q0 + (job.q1 - job.q0) * (thread + 1) // threads
    epoch = ZERO
    for stage in range(job.first, job.end):
        l = min(stage // 2, job.L - 1)
        states = at(job.states, (job.slots * l + job.number % job.slots) * size)
        if stopped(job.control, thread, steps * B * H * max(H, I)):
            return
        if stage == 2 * job.L:
            r0, r1 = share(steps * B, job.rank * threads + thread, job.ranks * threads)
            outputs(job, thread, states, r0, r1, at(job.logits, thread * job.block * job.ldo), job.y_step, ZERO, B)
        elif stage % 2 == 0:
            below = at(job.states, (job.slots * max(l - 1, 0) + job.number % job.slots) * size)
            inputs(job, l, job.t0, ZERO, below, steps, B, states, p0, p1)
        else:
            recurrence(job, l, states, thread, threads, p0, p1, epoch)
            epoch += steps


@jit()
def recurrence(job, l, states, thread, threads, p0, p1, done):
    """The steps of a chunk of layer l, panels p0 to p1; after each the ranks exchange their columns of the state.

    done: how many steps the threads have done before in this region.
    """
    B, H, ld, steps, w = job.B, job.H, job.ld, job.steps, at(job.panels, job.table[3 * l + 1])
    own0, own1 = min(H, job.q0 * WIDTH), min(H, job.q1 * WIDTH)  # the columns of h that this rank computes
    met, begun = 2 * done, ZERO
    for t in range(steps):
        now = at(states, t * B * ld)
        before, lda = at(now, -B * ld), ld
        if t == 0 and job.number > 0:
            last = (job.slots * l + (job.number - 1) % job.slots) * job.chunk + job.chunk - 1
            before = at(job.states, last * B * ld)
        elif t == 0:
            before, lda = at(job.h0, l * B * H), H
        if begun > 0:  # some panels of this step have this rank's columns of h[t-1] in them already
            f0, f1, r0, r1 = split(p0, p1, begun, t % 2)
            unit = abreast(B, H, p1 - p0)
            for k0, k1, first, last in ((0, own0, f0, f1), (own1, H, f0, f1), (0, H, r0, r1)):
                accumulate(before, ld, B, H, k0, k1, w, now, ld, first, last, t % 2, unit)
            tanh_panels(now, ld, B, p0, p1)
        else:
            step(before, lda, B, H, w, now, ld, p0, p1, t)
        met = meet(job, thread, threads, met)  # all of this rank's columns are there
        begun = ZERO
        if thread == 0:
            epoch = job.epoch + done + t + 1
            publish(job, now, epoch)
            while t + 1 < steps and begun < min(job.overlap, p1 - p0) and own0 < own1:
                q = p1 - 1 - begun if (t + 1) % 2 else p0 + begun
                accumulate(now, ld, B, H, own0, own1, w, at(now, B * ld), ld, q, q + 1, ZERO, ONE)
                begun += 1
            collect(job, now, epoch)
        met = meet(job, thread, threads, met)  # all of h[t] is there
        if stopped(job.control, thread, B * H * H):
            return


def batch_region(thread, threads, job):
    """The sequences first to end of the batch, shared out over the threads of this rank."""
    first, end = job.first, job.end
    own, after = first + (end - first) * thread // threads, first + (end - first) * (thread + 1) // threads
    states = at(job.states, thread * job.L * 2 * job.chunk * job.count * job.ld)
    if after > own:
        sequences(job, thread, states, at(job.logits, thread * job.block * job.ldo), own, after - own)


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
    """What the three have in common: packed weights, a region of a rank's threads, and buffers for the last shape.

    `run(x, h0, y, h)` on every rank; y (T,B,O) and h (L,B,H) are shared by all ranks if `direct`, else rank 0's own,
    and of no meaning on the others. `info` says how it is done.
    """

    region_function: Callable[..., None]  # of a strategy, with the fields that its job has beside a forward pass's
    fields: dict[str, Any]

    def __init__(self, ranks: Ranks, net: RNN, threads: int, exchange: str, **options: Any):
        self.ranks, self.net, self.threads = ranks, net, threads
        self.exchange = way(ranks, exchange)
        self.direct = self.exchange == "window"
        self.info = {"ranks": ranks.size, "threads": threads, "exchange": self.exchange}
        self.ld = round_up(net.hidden_size, WIDTH)
        self._shape: tuple[int, int] = (-1, -1)
        self._prepare(**options)

    def _prepare(self) -> None: ...

    def warm(self) -> None:
        """Compile: rank 0 first, then the others, who find it in the cache on the disk."""
        fields = FIELDS | fields_of(self.net, Packed.of(self.net)) | self.fields
        for turn in (self.ranks.rank == 0, self.ranks.rank != 0):
            if turn:
                self.job = Job(self.threads, **fields)
                self.region = Region(type(self).region_function, self.job)
            self.ranks.meet()

    def _set(self, plan: Plan, **fields: Any) -> None:
        """The fields of the job that depend on the shape."""
        self.plan = plan
        sizes = dict(T=plan.T, B=plan.B, count=plan.count, block=plan.block, chunk=plan.chunk)
        self.job.set(**sizes | fields)

    def close(self) -> None:
        """Let go of weights and buffers."""
        self.job = self.region = None


CACHE_BYTES_S = 100e9  # what a core reads from its caches, roughly
FEW = 8  # ranks up to which a message to each is sooner done than an allgather's rounds


class Batch(Strategy):
    """`batch` on one rank."""

    region_function = batch_region
    fields: ClassVar = dict(end=0)

    def run(self, x: np.ndarray, h0: np.ndarray, y: np.ndarray, h: np.ndarray) -> None:
        T, B, _ = x.shape
        rank, size = self.ranks.rank, self.ranks.size
        first, end = B * rank // size, B * (rank + 1) // size
        if self._shape != (T, B):
            self._shape = (-1, -1)
            plan = Plan.of(self.net, T, B, max(1, -(-(end - first) // self.threads)))
            self._set(plan, states=plan.states(self.threads), logits=plan.logits(self.threads))
            self._shape = (T, B)
        if self.direct:
            self.job.set(first=first, end=end, B=B)
            self.region.run(x, h0, y, h)
            self.ranks.meet()
            return
        own_x, own_h0 = np.ascontiguousarray(x[:, first:end]), np.ascontiguousarray(h0[:, first:end])
        own_y, own_h = (np.empty((*a.shape[:1], end - first, n), np.float32)
                        for a, n in ((x, self.net.output_size), (h0, self.net.hidden_size)))  # fmt: skip
        self.job.set(first=0, end=end - first, B=end - first)
        self.region.run(own_x, own_h0, own_y, own_h)
        self._gather(own_y, y)
        self._gather(own_h, h)

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

    region_function = chunk_region
    slots = 2  # chunks of states that are kept

    def _prepare(self) -> None:
        self.alone = Exchange(self.ranks.comm, ALONE, 1, 1)
        self.fields = self.alone.fields | dict(
            end=0, number=0, t0=0, steps=0, slots=self.slots, q0=0, q1=self.ld // WIDTH, overlap=0, epoch=0,
            y_step=0,
        )  # fmt: skip

    def _buffers(self, T: int, B: int, chunk: int = 0) -> None:
        plan = Plan.of(self.net, T, B, B)
        self.chunk = min(T, chunk) or plan.chunk
        self.states = aligned(self.net.num_layers * self.slots * self.chunk * B * self.ld)
        self._set(plan, chunk=self.chunk, states=self.states, logits=plan.logits(self.threads))

    def _stages(self, x, h0, y, exchange, stages, number, t0, steps, y_step) -> None:
        first, end = stages
        self.job.set(first=first, end=end, number=number, t0=t0, steps=steps, epoch=exchange.epoch, y_step=y_step)
        self.region.run(x, h0, y, h0)  # nobody writes the last: `_last_state` has it

    def _last_state(self, l: int, T: int, B: int) -> np.ndarray:
        """The last state of layer l (B,H), after all chunks."""
        number = (T - 1) // self.chunk
        start = (self.slots * l + number % self.slots) * self.chunk * B * self.ld + (T - 1) % self.chunk * B * self.ld
        return self.states[start : start + B * self.ld].reshape(B, self.ld)[:, : self.net.hidden_size]


class RowsInWindow(Strategy):
    """`rows` on one rank, where all of them share memory: all ranks' threads are one team with states in a window."""

    region_function = rows_region
    fields: ClassVar = {}

    def _prepare(self) -> None:
        self.all = self.ranks.size * self.threads
        self.first = self.ranks.rank * self.threads
        self.calls = 0
        self._window: Window | None = None

    def run(self, x: np.ndarray, h0: np.ndarray, y: np.ndarray, h: np.ndarray) -> None:
        T, B, _ = x.shape
        if self._shape != (T, B):
            self._shape = (-1, -1)
            self._share(Plan.of(self.net, T, B, B))
            self._shape = (T, B)
        # Two arrays of flags in turn: nobody is still looking at those of the call before when they are taken back.
        now, then = self.sync[self.calls % 2], self.sync[(self.calls + 1) % 2]
        then[self.first * LINE : (self.first + self.threads) * LINE : LINE] = 0
        self.calls += 1
        self.job.set(flags=now)
        self.region.run(x, h0, y, h)
        self.ranks.meet()

    def _share(self, plan: Plan) -> None:
        """Put what all ranks read and write into a window: flags, states and logits."""
        states, logits = plan.states().size, plan.logits(self.all).size  # no page of these is ever touched
        if self._window is None or self._window.memory.size < states + logits:
            self._free()
            self._window = Window(self.ranks, states + logits, 2 * self.all, self.ranks.take_turns(self.threads))
        self.sync, memory = self._window.flags.reshape(2, -1), self._window.memory
        self._set(plan, states=memory[:states], logits=memory[states : states + logits], first=self.first,
                  everyone=self.all)  # fmt: skip

    def _free(self) -> None:
        if self._window is not None:
            self.sync = None
            self._window.free()
            self._window = None

    def close(self) -> None:
        super().close()
        self._free()


class Rows(Chunked):
    """`rows` on one rank, by messages."""

    def _prepare(self, overlap: int | None = None) -> None:
        super()._prepare()
        whole = self.ld // WIDTH
        share = -(-whole // self.ranks.size)  # the same for each, as a collective wants it; the last may have less
        self.wide = share * WIDTH
        if overlap is None:
            a_panel = 4 * WIDTH * self.wide / CACHE_BYTES_S  # its part that has this rank's columns
            overlap = math.ceil(self.ranks.link.alpha / a_panel)
        q0, q1 = (min(whole, (self.ranks.rank + i) * share) for i in (0, 1))
        self.fields |= dict(overlap=overlap, q0=q0, q1=q1)
        self.info |= {"overlap": overlap}
        self._exchange: Exchange | None = None

    def run(self, x: np.ndarray, h0: np.ndarray, y: np.ndarray, h: np.ndarray) -> None:
        T, B, _ = x.shape
        ranks, O = self.ranks, self.net.output_size
        if self._shape != (T, B):
            before, self._shape = self._shape[1], (-1, -1)
            self._buffers(T, B)
            if self._exchange is None or before != B:
                self._free()
                crowded = ranks.take_turns(self.threads)
                self._exchange = Exchange(ranks.comm, MODES[self.exchange], B, self.wide, crowded)
            self.job.set(**self._exchange.fields)
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

    def _free(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    def close(self) -> None:
        super().close()
        self._free()


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
            self._shape = (-1, -1)
            self._plan(T, B)
            self._shape = (T, B)
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
                decided[0] = min(decided[0], Plan.of(self.net, T, B, B).chunk)
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

# What mpiexec of MPICH, Intel MPI and Open MPI, and srun with PMI, tell each process that they start: its job's size.
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LAUNCHED = ("PMI_RANK", "PMIX_RANK", *SIZES)
began = 0  # the process in which MPI has begun


def forked() -> bool:
    """Whether this process was forked from a rank: it has a copy of that one's memory, and is no rank."""
    return began not in (0, os.getpid())


def launched() -> bool:
    """Whether this process is one of the ranks of a job that mpiexec started."""
    return any(name in os.environ for name in LAUNCHED) and not forked()


def size_told() -> int | None:
    """How many ranks this process's job has, as its launcher says; None where it does not."""
    names = list(SIZES)
    if os.environ.get("PMIX_NAMESPACE", "").startswith("slurm."):  # else srun may have started another launcher
        names.append("SLURM_STEP_NUM_TASKS")
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), None)


def job_size() -> int:
    """How many ranks the job has that this process is in; 0 where it is in none."""
    if not launched():
        return 0
    return size_told() or world().size


def on_ranks(name: str, net: RNN, ranks: int | None, threads: int, exchange: str, **options: Any) -> Forward:
    """The forward pass of a strategy: on the ranks of the job that this process is in, or on ranks started for it.

    A job of one rank is often a notebook or a script that a batch system started: it may start some as any other.
    """
    check_options(name, ranks, threads, exchange, options)
    size = job_size()
    if size > 1 or (size == 1 and ranks in (None, 1)):
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
    if launched() and size_told() != 1:
        _attend()


@cache
def _attend() -> None:
    told = sys.excepthook

    def end_all(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        told(kind, error, trace)
        if forked():
            return
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
        import mpi4py

        # mpi4py would end MPI at the end of a forked child, too, and with it the parent's job; `leave` does not.
        ours = "mpi4py.MPI" not in sys.modules and mpi4py.rc.finalize is None
        if ours:
            mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError, OSError) as error:
        raise Unavailable(f"mpi4py finds no MPI ({error}); `pip install mpich` brings one") from None
    attend()
    global began
    began = os.getpid()
    ranks = Ranks(MPI.COMM_WORLD.Dup())
    weakref.finalize(world, leave, ranks, ours)  # at the program's end, after those of what is made later
    return ranks


def leave(ranks: Ranks, ours: bool) -> None:
    """At the end of the program, which a forked child has, too."""
    from mpi4py import MPI

    if forked():
        return
    ranks.leave()
    if ours and not MPI.Is_finalized():
        MPI.Finalize()


class Member:
    """The forward pass in a process that is itself one of the ranks: rank 0 gets (y, h), the others (None, None).

    Making, calling and closing it is collective: every rank does it, with the same arguments. What cannot be the
    same by mistake (network, options, shapes) is compared first, and every rank is told who differs.
    In a process that was forked from a rank it starts as many ranks as there were, at its next call.
    """

    def __init__(self, name: str, net: RNN, ranks: int | None, threads: int, exchange: str, options: dict[str, Any]):
        self.place = world()
        self.root = self.place.rank == 0
        size = self.place.size
        wrong = ""
        if ranks not in (None, size):
            wrong = f"ranks is {ranks}, but mpiexec started {size}; leave it out, or start as many"
        self._elsewhere = (name, net, size, threads, exchange, options)
        self._started: Any = None
        self._compare("prepare", wrong, digest(name, net, threads, exchange, options), f"{name} on {net!r}")
        if self.root:
            warn_of_cores(self.place.near, threads, self.place.cores)
        self.strategy = STRATEGIES[name](self.place, net, threads, exchange, **options)
        self.info = self.strategy.info
        self._result: Window | None = None
        self.strategy.warm()

    def agree(self, check: Callable[..., tuple[np.ndarray, np.ndarray]], net: RNN, x: Any, h0: Any) -> tuple:
        """`check(net, x, h0)` on every rank: all accept their input, or all raise, and it is the same shape on all."""
        if forked():
            self.root = True
            return check(net, x, h0)
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
        if forked():
            return self._in_fork()(x, h0)
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

    def _in_fork(self) -> Forward:
        from rnnpar.backends.mpi_start import Started

        self._started = self._started or Started(*self._elsewhere)
        return self._started

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
        if forked():
            if self._started is not None:
                self._started.close()
            return
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
