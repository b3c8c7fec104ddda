"""Messages between ranks from inside compiled code: MPI's own C functions, called by their addresses.

A step of the recurrence takes microseconds, and so does one call of mpi4py; a compiled loop that starts and tests
persistent requests itself sends a kilobyte in half a microsecond. mpi4py makes the requests (peers, buffers, counts
are fixed once); here they are only started and tested, so that nothing depends on how an MPI lays out its handles.

A state is exchanged through a *board*: (2, ranks, block) float32, a block a rank, two boards in turn. Whoever has
received everybody's block of step t may overwrite its own of step t - 1. There are three ways (`mode`):

    ALONE      one rank: nothing to do
    MESSAGES   a message to every other rank, all at once
    ALLGATHER  MPI's own persistent Allgather (MPI 4), whose rounds grow with the logarithm of the ranks
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np

from rnnpar.kernels.atomics import ENOUGH, LOOK, SPINS, YIELDS, ZERO, stopped
from rnnpar.kernels.forward import copy
from rnnpar.kernels.jit import jit
from rnnpar.kernels.pointers import address_of
from rnnpar.kernels.system import call_address, nap, pause, yield_core

ALONE, MESSAGES, ALLGATHER = range(3)
NEXT = 1  # where `answer` keeps the request that is waited for; before it MPI's flag, behind it room for a status


@jit()
def publish(job, state, epoch):
    """Send this rank's columns of a state, B rows `ld` apart behind a pointer, on their way to all other ranks."""
    if job.mode == ALONE:
        return
    B, ld, wide = job.B, job.ld, job.wide
    b0, k0 = (epoch % 2 * job.ranks + job.rank) * B * wide, job.rank * wide
    for j in range(B):
        copy(state, j * ld + k0, job.board, b0 + j * wide, max(0, min(wide, ld - k0)))
    job.answer[NEXT] = 0
    here = address_of(job.handles) + epoch % 2 * job.requests * job.request_size
    call_address(job.startall, (job.requests, here))


@jit()
def arrived(job, epoch):
    """Whether all other ranks' columns are there (and what was sent has left); does not wait."""
    if job.mode != ALONE:
        answer = address_of(job.answer)
        while job.answer[NEXT] < job.requests:
            request = address_of(job.handles) + (epoch % 2 * job.requests + job.answer[NEXT]) * job.request_size
            call_address(job.test, (request, answer, answer + 8))
            if job.answer[0] == 0:
                return False
            job.answer[NEXT] += 1
    return True


@jit()
def collect(job, state, epoch):
    """Wait for the other ranks' columns of that state, and put them into it; ends what `publish` began.

    Spins, then yields, then naps, as atomics.wait does, and gives up where the call is given up. (MPI's own wait only
    spins: with fewer cores than ranks it would hold the core that the sender needs.)
    """
    polls = 0
    while not arrived(job, epoch):
        polls += 1
        if polls < job.spins:
            pause()
            continue
        if stopped(job.control, ZERO, ENOUGH // LOOK):
            return
        if polls < job.spins + YIELDS:
            yield_core()
        else:
            nap()
    B, ld, wide = job.B, job.ld, job.wide
    for i in range(1, job.ranks):
        other = (job.rank + i) % job.ranks
        b0, k0 = (epoch % 2 * job.ranks + other) * B * wide, other * wide
        for j in range(B):
            copy(job.board, b0 + j * wide, state, j * ld + k0, max(0, min(wide, ld - k0)))


def exchanges_region(rank, size, job):
    """So many exchanges of a state one after another: a step without its arithmetic."""
    for epoch in range(job.epoch + 1, job.epoch + 1 + job.repeat):
        publish(job, job.state, epoch)
        collect(job, job.state, epoch)


def ping_pong_region(rank, size, job):
    """A message there and one back, so many times; handles: a request that sends, and one that receives."""
    answer = address_of(job.answer)
    for _ in range(job.repeat):
        for turn in range(2):
            request = address_of(job.handles) + (turn if job.begins else 1 - turn) * job.request_size
            call_address(job.startall, (1, request))
            job.answer[0] = 0
            while job.answer[0] == 0:
                call_address(job.test, (request, answer, answer + 8))


class Exchange:
    """What a rank needs to exchange a state of `count` sequences: the board, and how; `fields` are a job's.

    comm: an mpi4py communicator; wide: columns a rank; crowded: whether ranks share cores, so that who waits had
    better offer its core at once. Making and closing one is collective.
    """

    def __init__(self, comm: Any, mode: int, count: int, wide: int, crowded: bool = False):
        from mpi4py import MPI

        self.epoch = 0  # states exchanged so far
        rank, ranks = (0, 1) if mode == ALONE else (comm.rank, comm.size)
        block = count * wide
        self._requests: list[Any] = []
        self.board = np.zeros(2 * ranks * block, np.float32)
        boards = self.board.reshape(2, ranks, block)
        others = [(rank + i) % ranks for i in range(1, ranks)]
        for parity in range(2) if mode != ALONE else ():
            if mode == MESSAGES:
                self._requests += [comm.Recv_init(boards[parity, other], other, parity) for other in others]
                self._requests += [comm.Send_init(boards[parity, rank], other, parity) for other in others]
            else:
                self._requests.append(comm.Allgather_init(MPI.IN_PLACE, boards[parity]))
        size = MPI._sizeof(MPI.Request)
        self.handles = handles_of(self._requests)
        self.fields = dict(
            mode=mode, rank=rank, ranks=ranks, wide=wide, requests=len(self._requests) // 2, request_size=size,
            startall=address("MPI_Startall"), test=address("MPI_Test"), board=self.board, handles=self.handles,
            answer=np.zeros(2 + MPI._sizeof(MPI.Status) // 4 + 1, np.int32),
            spins=0 if crowded else SPINS // 10,  # MPI's test takes ten times a flag's look
        )  # fmt: skip
        self._freed = weakref.finalize(self, free, self._requests)  # before MPI ends, which would complain

    def close(self) -> None:
        self._freed()


def free(requests: list[Any]) -> None:
    """Give persistent requests back."""
    while requests:
        requests.pop().Free()


def handles_of(requests: list[Any]) -> np.ndarray:
    """The handles of persistent requests, one behind the other, as MPI's own functions take them."""
    from mpi4py import MPI

    handles = [ctypes.string_at(MPI._addressof(request), MPI._sizeof(MPI.Request)) for request in requests]
    return np.frombuffer(b"".join(handles) or b"\0", np.uint8).copy()


def address(name: str) -> int:
    """Where a function of the MPI library that mpi4py uses lies."""
    from mpi4py import MPI

    return ctypes.cast(getattr(ctypes.CDLL(MPI.__file__), name), ctypes.c_void_p).value
