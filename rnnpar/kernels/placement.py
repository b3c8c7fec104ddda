"""Which core a thread is on, and how it goes to another: what the system says, called from compiled code."""

from __future__ import annotations

import platform

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnpar.kernels.jit import jit

LINUX = platform.system() == "Linux"  # others do not let a thread choose
WORDS = 16  # of 64 cores each, in the system's set of cores


@intrinsic
def current_core(typing):
    """The number of the core that this thread is on; negative where the system does not say."""

    def codegen(context, builder, signature, args):
        if not LINUX:
            return ir.Constant(ir.IntType(64), -1)
        kind = ir.FunctionType(ir.IntType(32), [])
        core = builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_getcpu"), [])
        return builder.sext(core, ir.IntType(64))

    return types.int64(), codegen


@intrinsic
def _get_cores(typing, address):
    """Write the set of cores that this thread may use, WORDS int64, to an address; negative if that failed."""
    return types.int64(types.int64), _affinity("sched_getaffinity")


@intrinsic
def _set_cores(typing, address):
    """Let this thread use that set of cores, and go to one of them; negative if that failed."""
    return types.int64(types.int64), _affinity("sched_setaffinity")


def _affinity(name):
    def codegen(context, builder, signature, args):
        if not LINUX:
            return ir.Constant(ir.IntType(64), -1)
        int32, int64, pointer = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(int32, [int32, int64, pointer]), name)
        this_thread = int32(0)
        done = builder.call(function, [this_thread, int64(8 * WORDS), builder.inttoptr(args[0], pointer)])
        return builder.sext(done, int64)

    return codegen


@jit()
def leave(core, size):
    """Go to another of the cores that this thread may use, if there are `size` at least; it may come back later."""
    mine = np.zeros(WORDS, np.int64)
    if core >= 64 * WORDS or _get_cores(mine.ctypes.data) < 0 or count(mine) < size:
        return
    others = mine.copy()
    others[core // 64] &= ~(np.int64(1) << np.int64(core % 64))
    _set_cores(others.ctypes.data)
    _set_cores(mine.ctypes.data)


@jit()
def count(cores):
    """How many cores a set has."""
    found = 0
    for word in cores:
        for bit in range(64):
            found += (word >> bit) & 1
    return found
