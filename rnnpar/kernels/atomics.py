"""Atomic loads, stores and additions on int64 NumPy arrays, a wait that spins, yields, and naps, and a barrier.

Numba has none for the CPU; LLVM does, and an intrinsic of a few lines reaches it. An acquire load that sees what a
release store wrote also sees everything that the storing thread wrote before: a flag so stored publishes an array.
"""

from __future__ import annotations

import platform

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnpar.kernels.jit import jit
from rnnpar.kernels.placement import current_core, leave

SPINS = 2000  # polls (some ns each) before a waiting thread offers its core to others
YIELDS = 1000  # such offers (about a microsecond each) before it sleeps: Linux may hand the core straight back, and
NAP = 50  # microseconds of sleep are then what lets the thread that is waited for run, where cores are too few
LOOK = 100  # yields from one look at the others' cores to the next
SKIP = 2  # where a thread's line of a team's flags says how many polls to skip: SPINS where cores are too few to spin
LINE = 16  # int64 elements from one flag to the next: 128 bytes, since processors fetch cache lines in pairs

YIELD = {"Windows": "SwitchToThread"}.get(platform.system(), "sched_yield")
SLEEP, NAP_UNITS = {"Windows": ("Sleep", 1)}.get(platform.system(), ("usleep", NAP))  # Windows sleeps by milliseconds
PAUSE = {"x86_64": "llvm.x86.sse2.pause", "AMD64": "llvm.x86.sse2.pause"}.get(platform.machine())


def _pointer(context, builder, signature, args):
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
def pause(typing):
    """Tell the core that this is a spin: it leaves the loop without a misprediction, and lets its sibling run."""

    def codegen(context, builder, signature, args):
        if PAUSE:
            builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), []), PAUSE), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_core(typing):
    """Offer the core to another thread: the one waited for may have none of its own."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, YIELD), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def nap(typing):
    """Sleep for a moment: others get the core, whatever the scheduler thinks of a yield."""

    def codegen(context, builder, signature, args):
        unit = ir.IntType(32)
        sleep = cgutils.get_or_insert_function(builder.module, ir.FunctionType(unit, [unit]), SLEEP)
        builder.call(sleep, [unit(NAP_UNITS)])
        return context.get_dummy_value()

    return types.void(), codegen


@jit()
def wait_until(array, index, value):
    """Return when array[index] >= value. Spins, then yields, then naps: too few cores make it slow, not stuck."""
    wait_in_team(array, index, value, (array, 0, 1))


@jit()
def wait_in_team(array, index, value, place):
    """`wait_until`, and meanwhile see to it that this thread has a core of its own. place: what `take_core` takes."""
    cores, rank, size = place
    polls = 0
    while load_acquire(array, index) < value:
        if polls == 0 and size > 1:
            polls = cores[rank * LINE + SKIP]
        polls += 1
        if polls < SPINS:
            pause()
            continue
        if polls >= SPINS + YIELDS or (polls - SPINS) % LOOK == 0:
            take_core(cores, rank, size)
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
    cores: int64, (size * LINE,), lines as in `barrier`; the second element of each is used.
    """
    core = current_core()
    if core < 0 or size == 1:
        return
    for other in range(size):
        if other != rank and cores[other * LINE + 1] == core + 1:
            leave(core, size)
            core = current_core()
            break
    cores[rank * LINE + 1] = core + 1


@jit()
def barrier(sync, rank, size, epoch):
    """Nobody leaves before all `size` threads have come. Call with epoch 1, 2, 3, ... on a `sync` of zeros.

    Each thread stores its epoch in a flag of its own cache line, then watches the others': for a few threads that
    is one line sent each way, with no line that all of them fight for. sync: int64, (size * LINE,); of a thread's
    line the first element is its flag, the second its core, the third (SKIP) how many polls it skips.
    """
    store_release(sync, rank * LINE, epoch)
    wait_for_others(sync, rank, size, epoch)


@jit()
def wait_for_others(sync, rank, size, epoch):
    """The second half of a barrier: wait until every other thread has stored `epoch`."""
    for other in range(size):
        if other != rank:
            wait_in_team(sync, other * LINE, epoch, (sync, rank, size))


@jit()
def counter_barrier(sync, size, epoch):
    """The same by one shared counter: one atomic addition each, then all watch the one line. sync: int64, (1,)."""
    fetch_add(sync, 0, 1)
    wait_until(sync, 0, size * epoch)
