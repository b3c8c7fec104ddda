"""Messages between ranks from inside compiled code: MPI's own C functions, called by their addresses.

A step of the recurrence takes microseconds, and so does one call of mpi4py; a compiled loop that starts and tests
persistent requests itself sends a kilobyte in half a microsecond. mpi4py makes the requests (peers, buffers, counts
are fixed once); here they are only started and tested, so that nothing depends on how an MPI lays out its handles.

A state is exchanged through a *board*: (2, ranks, block) float32, a block a rank, two boards in turn. Whoever has
received everybody's block of step t may overwrite its own of step t - 1. There are three ways (`link[0]`):

    ALONE      one rank: nothing to do
    MESSAGES   a message to every other rank, all at once
    ALLGATHER  MPI's own persistent Allgather (MPI 4), whose rounds grow with the logarithm of the ranks
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnnpar.kernels.atomics import SPINS, YIELDS, nap, pause, yield_core
from rnnpar.kernels.forward import copy
from rnnpar.kernels.jit import jit
from rnnpar.kernels.pointers import bare

ALONE, MESSAGES, ALLGATHER = range(3)
NEXT = 1  # where `answer` keeps the request that is waited for; before it MPI's flag, behind it room for a status


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
def publish(link, board, handles, answer, states, s0, ld, count, epoch):
    """Send this rank's columns of the state at states[s0], (count, ld), on their way to all other ranks."""
    mode, rank, ranks, wide, requests, size, startall, _, _ = link
    if mode == ALONE:
        return
    parity = epoch % 2
    b0, k0 = (parity * ranks + rank) * count * wide, rank * wide
    for j in range(count):
        copy(states, s0 + j * ld + k0, board, b0 + j * wide, max(0, min(wide, ld - k0)))
    answer[NEXT] = 0
    call_2(startall, (requests, handles.ctypes.data + parity * requests * size))


@jit()
def arrived(link, handles, answer, epoch):
    """Whether all other ranks' columns are there (and what was sent has left); does not wait."""
    mode, _, _, _, requests, size, _, test, _ = link
    if mode != ALONE:
        while answer[NEXT] < requests:
            request = handles.ctypes.data + (epoch % 2 * requests + answer[NEXT]) * size
            call_3(test, (request, answer.ctypes.data, answer.ctypes.data + 8))
            if answer[0] == 0:
                return False
            answer[NEXT] += 1
    return True


@jit()
def collect(link, board, handles, answer, states, s0, ld, count, epoch):
    """Wait for the other ranks' columns of that state, and put them into states[s0]; ends what `publish` began.

    Spins, then yields, then naps, as atomics.wait_until does. (MPI's own wait only spins: with fewer cores than
    ranks it would hold the core that the sender needs.)
    """
    rank, ranks, wide, spins = link[1], link[2], link[3], link[8]
    polls = 0
    while not arrived(link, handles, answer, epoch):
        polls += 1
        if polls < spins:
            pause()
        elif polls < spins + YIELDS:
            yield_core()
        else:
            nap()
    for i in range(1, ranks):
        other = (rank + i) % ranks
        b0, k0 = (epoch % 2 * ranks + other) * count * wide, other * wide
        for j in range(count):
            copy(board, b0 + j * wide, states, s0 + j * ld + k0, max(0, min(wide, ld - k0)))


@jit()
def exchange_many(repeat, link, board, handles, answer, state, count, epoch):
    """So many exchanges of a state (count, ld) one after another: a step without its arithmetic."""
    board, state = bare(board), bare(state)
    for _ in range(repeat):
        epoch += 1
        publish(link, board, handles, answer, state, 0, state.size // count, count, epoch)
        collect(link, board, handles, answer, state, 0, state.size // count, count, epoch)


@jit()
def ping_pong_many(repeat, link, handles, answer, first):
    """A message there and one back, so many times; handles: a request that sends, and one that receives."""
    size, startall, test = link[5], link[6], link[7]
    for _ in range(repeat):
        for turn in range(2):
            request = handles.ctypes.data + (turn if first else 1 - turn) * size
            call_2(startall, (1, request))
            answer[0] = 0
            while answer[0] == 0:
                call_3(test, (request, answer.ctypes.data, answer.ctypes.data + 8))


class Exchange:
    """What a rank needs to exchange a state of `count` sequences: the board, and how; a link for compiled code.

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
        self.answer = np.zeros(2 + MPI._sizeof(MPI.Status) // 4 + 1, np.int32)
        functions = address("MPI_Startall"), address("MPI_Test")
        spins = 0 if crowded else SPINS // 10  # MPI's test takes ten times a flag's look
        self.link = (mode, rank, ranks, wide, len(self._requests) // 2, size, *functions, spins)

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
