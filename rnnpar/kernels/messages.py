"""Messages between ranks from inside compiled code: MPI's own C functions, called by their addresses.

A step of the recurrence takes microseconds, and so does one call of mpi4py; a compiled loop that starts and tests
persistent requests itself sends a kilobyte in half a microsecond. mpi4py makes the requests (peers, buffers, counts
are fixed once); here they are only started and tested, so that nothing depends on how an MPI lays out its handles.

A state is exchanged through a *board*: (2, ranks, block) float32, a block a rank, two boards in turn. Whoever has
received everybody's block of step t may overwrite its own of step t - 1. There are four ways (`link[0]`):

    ALONE      one rank: nothing to do
    WINDOW     the board lies in memory that all ranks of a machine share (MPI_Win_allocate_shared); a flag a rank
    MESSAGES   a message to every other rank, all at once
    ALLGATHER  MPI's own persistent Allgather (MPI 4), whose rounds grow with the logarithm of the ranks
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnnpar.kernels.atomics import (
    LINE,
    SPINS,
    YIELDS,
    nap,
    pause,
    store_release,
    wait_until,
    yield_core,
)
from rnnpar.kernels.forward import copy
from rnnpar.kernels.jit import jit

ALONE, WINDOW, MESSAGES, ALLGATHER = range(4)


def make_call(count: int):
    """An intrinsic `call(address, arguments)` of a C function of `count` integers or pointers; returns its int."""

    @intrinsic
    def call(typing, address, arguments):
        def codegen(context, builder, signature, args):
            kind = ir.FunctionType(ir.IntType(32), [ir.IntType(64)] * count)
            function = builder.inttoptr(args[0], kind.as_pointer())
            return builder.call(function, [builder.extract_value(args[1], i) for i in range(count)])

        return types.int32(types.int64, arguments), codegen

    return call


call_2, call_3 = make_call(2), make_call(3)


@jit()
def start(link, handles, parity):
    """MPI_Startall of the requests of one board."""
    count, size, startall = link[4], link[5], link[6]
    call_2(startall, (count, handles.ctypes.data + parity * count * size))


@jit()
def finish(link, handles, parity, index, answer):
    """Wait until one request of a board is done: MPI_Test, spinning, then yielding, then napping, as wait_until does.

    (MPI's own wait only spins: with fewer cores than ranks it would hold the core that the sender needs.)
    answer: int32 of 1 for MPI's flag and then room for its status.
    """
    count, size, test = link[4], link[5], link[7]
    request = handles.ctypes.data + (parity * count + index) * size
    polls = 0
    answer[0] = 0
    while True:
        call_3(test, (request, answer.ctypes.data, answer.ctypes.data + 8))
        if answer[0] != 0:
            break
        polls += 1
        if polls < SPINS // 10:  # a test costs ten times what a look at a flag does
            pause()
        elif polls < SPINS // 10 + YIELDS:
            yield_core()
        else:
            nap()


@jit()
def publish(link, board, flags, handles, states, s0, ld, count, epoch):
    """Send this rank's columns of the state at states[s0], (count, ld), on its way to all other ranks."""
    mode, rank, ranks, wide = link[0], link[1], link[2], link[3]
    if mode == ALONE:
        return
    parity = epoch % 2
    b0, k0 = (parity * ranks + rank) * count * wide, rank * wide
    for j in range(count):
        copy(states, s0 + j * ld + k0, board, b0 + j * wide, max(0, min(wide, ld - k0)))
    if mode == WINDOW:
        store_release(flags, rank * LINE, epoch)
    else:
        start(link, handles, parity)


@jit()
def collect(link, board, flags, handles, answer, states, s0, ld, count, epoch):
    """Wait for the other ranks' columns of that state, and put them into states[s0]; ends what `publish` began."""
    mode, rank, ranks, wide = link[0], link[1], link[2], link[3]
    if mode == ALONE:
        return
    parity = epoch % 2
    if mode == ALLGATHER:
        finish(link, handles, parity, 0, answer)
    for i in range(1, ranks):
        other = (rank + i) % ranks
        if mode == WINDOW:
            wait_until(flags, other * LINE, epoch)
        elif mode == MESSAGES:
            finish(link, handles, parity, i - 1, answer)
        b0, k0 = (parity * ranks + other) * count * wide, other * wide
        for j in range(count):
            copy(board, b0 + j * wide, states, s0 + j * ld + k0, max(0, min(wide, ld - k0)))
    if mode == MESSAGES:
        for i in range(ranks - 1, 2 * (ranks - 1)):  # what was sent has left, so its block may be overwritten
            finish(link, handles, parity, i, answer)


class Exchange:
    """What a rank needs to exchange a state of `count` sequences: the board, and how; a link for compiled code.

    comm: an mpi4py communicator; wide: columns a rank. Making and closing one is collective.
    """

    def __init__(self, comm: Any, mode: int, count: int, wide: int):
        from mpi4py import MPI

        self.epoch = 0
        rank, ranks = (0, 1) if mode == ALONE else (comm.rank, comm.size)
        block = count * wide
        self._window, self._requests = None, []
        self.flags = np.zeros(1, np.int64)
        if mode == WINDOW:
            elements = 2 * ranks * block
            self._window = MPI.Win.Allocate_shared((ranks * LINE * 8 + elements * 4) if rank == 0 else 0, 1, comm=comm)
            memory = np.frombuffer(self._window.Shared_query(0)[0], np.uint8)
            self.flags = memory[: ranks * LINE * 8].view(np.int64)
            self.board = memory[ranks * LINE * 8 :].view(np.float32)
            if rank == 0:
                memory[:] = 0
            comm.Barrier()
        else:
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
        self.handles = np.zeros(max(1, len(self._requests)) * size, np.uint8)
        for index, request in enumerate(self._requests):
            self.handles[index * size : (index + 1) * size] = ctypes_bytes(MPI._addressof(request), size)
        self.answer = np.zeros(2 + MPI._sizeof(MPI.Status) // 4 + 1, np.int32)
        self.link = (mode, rank, ranks, wide, len(self._requests) // 2, size, address("MPI_Startall"), address("MPI_Test"))  # fmt: skip

    def close(self) -> None:
        for request in self._requests:
            request.Free()
        self._requests = []
        if self._window is not None:
            self.flags = self.board = None
            self._window.Free()
            self._window = None


def ctypes_bytes(place: int, size: int) -> np.ndarray:
    """The bytes at an address, copied."""
    return np.frombuffer(ctypes.string_at(place, size), np.uint8)


def address(name: str) -> int:
    """Where a function of the MPI library that mpi4py uses lies."""
    from mpi4py import MPI

    return ctypes.cast(getattr(ctypes.CDLL(MPI.__file__), name), ctypes.c_void_p).value
