"""Atomic loads, stores and additions on int64, a wait that spins, yields, and naps, and a barrier.

Numba has none for the CPU; LLVM does, and an intrinsic of a few lines reaches it. An acquire load that sees what a
release store wrote also sees everything that the storing thread wrote before: a flag so stored publishes an array.
All take an array or a pointer, and an index.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnpar.kernels.jit import jit
from rnnpar.kernels.job import (
    CHECK,
    CORE,
    ENSURE,
    ERROR,
    FETCH,
    IDENT,
    LINE,
    LOOKED,
    MAIN,
    PYTHON,
    RELEASE,
    SKIP,
    STOP,
    WORK,
)
from rnnpar.kernels.placement import leave
from rnnpar.kernels.pointers import address_of, at, int64s
from rnnpar.kernels.system import call_address, current_core, nap, now, pause, yield_core

SPINS = 2000  # polls (some ns each) before a waiting thread offers its core to others
YIELDS = 1000  # such offers (about a microsecond each) before it sleeps: Linux may hand the core straight back, and
# a sleep is then what lets the thread that is waited for run, where cores are too few
LOOK = 100  # yields from one look at the others' cores to the next
ZERO, ONE = np.int64(0), np.int64(1)  # for calls: Numba would compile a function anew for a literal
ENOUGH = 1 << 20  # multiply-adds, some tens of microseconds, from one look at the clock to the next
ASK_NS = 50_000_000  # from one question for signals to the next: a Ctrl-C has to be heard within 0.2 s


def _pointer(context, builder, signature, args):
    if isinstance(signature.args[0], types.CPointer):
        return builder.gep(args[0], [args[1]])
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return cgutils.get_item_pointer(context, builder, signature.args[0], array, [args[1]], wraparound=False)


@intrinsic
def load_acquire(typing, array, index):
    """array[index], an int64; what its writer wrote before is visible after."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(_pointer(context, builder, signature, args), "acquire", 8)

    return types.int64(array, types.intp), codegen


@intrinsic
def store_release(typing, array, index, value):
    """array[index] = value, an int64; visible only after everything that this thread wrote before."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[2], _pointer(context, builder, signature, args), "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), codegen


@intrinsic
def fetch_add(typing, array, index, value):
    """array[index] += value in one indivisible step; returns the value before. Acquires and releases."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", _pointer(context, builder, signature, args), args[2], "acq_rel")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def fence(typing):
    """What this thread stored before is visible to all before it loads anything after."""

    def codegen(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


# --- Giving a call up --------------------------------------------------------------------------------------------


@jit(inline="always")
def stopped(control, rank, work):
    """Whether the call is given up. The calling thread, rank 0, asks Python for it, when there was enough `work`.

    work: multiply-adds since the last time.
    """
    if rank == 0:
        control[WORK] += work
        if control[WORK] > ENOUGH:
            ask(control)
    return load_acquire(control, STOP) != 0


@jit()
def ask(control):
    """Let Python run its signal handlers, if that is due; where one raises, as that of Ctrl-C does, the call stops.

    Only the main thread may. It takes the GIL for it, so it asks only now and then: others may hold that for long.
    """
    control[WORK] = 0
    time = now()
    if control[LOOKED] == 0:  # the call has only begun
        control[LOOKED] = time
    python = int64s(control[PYTHON])
    if time - control[LOOKED] < ASK_NS or call_address(python[IDENT], ()) != python[MAIN]:
        return
    control[LOOKED] = time
    state = call_address(python[ENSURE], ())
    if np.int32(call_address(python[CHECK], ())) != 0:
        error = address_of(at(control, ERROR))
        call_address(python[FETCH], (error, error + 8, error + 16))  # team.Region raises it again
        store_release(control, STOP, 1)
    call_address(python[RELEASE], (state,))


# --- Waiting -----------------------------------------------------------------------------------------------------


@jit()
def wait(flags, index, value, control, rank, place):
    """Return when flags[index] >= value, or the call is given up. Spins, then yields, then naps.

    So too few cores make it slow, not stuck. A long wait also sees to it that this thread has a core of its own.
    rank: among the threads of this process; place: what `take_core` takes.
    """
    cores, number, size = place
    polls = ZERO
    while load_acquire(flags, index) < value:
        if polls == 0:
            if load_acquire(control, STOP) != 0:  # at once: there may be thousands of steps to the end of a chunk
                return
            if size > 1:
                polls = cores[number * LINE + SKIP]
        polls += 1
        if polls < SPINS:
            pause()
            continue
        if stopped(control, rank, ENOUGH // LOOK):
            return
        if polls >= SPINS + YIELDS or (polls - SPINS) % LOOK == 0:
            take_core(cores, number, size)
        if polls < SPINS + YIELDS:
            yield_core()
        else:
            nap()


@jit()
def take_core(cores, rank, size):
    """Say which core this thread is on; but if another thread of the team has said the same, go elsewhere.

    Threads that slept are often woken on the core of who woke them. Those that compute, the system soon spreads out;
    but two that wait for each other in every step take turns on one core, each looks idle half of the time, and so
    they may stay there for a tenth of a second, at a tenth of their speed. What the others have said may be old:
    then a thread moves in vain, which costs it some microseconds of a wait that is longer.
    cores: int64, (size * LINE,), a line a thread.
    """
    core = current_core()
    if core < 0 or size == 1:
        return
    for other in range(size):
        if other != rank and cores[other * LINE + CORE] == core + 1:
            leave(core, size)
            core = current_core()
            break
    cores[rank * LINE + CORE] = core + 1


@jit()
def barrier(flags, rank, size, epoch, control, own):
    """Nobody leaves before all `size` threads have come. Call with epoch 1, 2, 3, ... on flags of zeros.

    Each thread stores its epoch in a flag of its own cache line, then watches the others': for a few threads that
    is one line sent each way, with no line that all of them fight for. own: the rank within this process.
    """
    store_release(flags, rank * LINE, epoch)
    wait_for_others(flags, rank, size, epoch, control, own)


@jit()
def wait_for_others(flags, rank, size, epoch, control, own):
    """The second half of a barrier: wait until every other thread has stored `epoch`."""
    for other in range(size):
        if other != rank:
            wait(flags, other * LINE, epoch, control, own, (flags, rank, size))


@jit()
def meet(job, rank, size, epoch):
    """A barrier of a job's threads, after number `epoch` of them; returns its own number."""
    barrier(job.flags, rank, size, epoch + 1, job.control, rank)
    return epoch + 1


@jit()
def counter_barrier(counter, rank, size, epoch, control):
    """The same by one shared counter: one atomic addition each, then all watch the one line."""
    fetch_add(counter, 0, 1)
    wait(counter, ZERO, size * epoch, control, rank, (counter, ZERO, ONE))
