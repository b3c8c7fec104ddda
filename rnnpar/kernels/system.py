"""What the operating system offers, called from compiled code: a clock, sleep, condition variables, any C function."""

from __future__ import annotations

import platform
import time

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

SYSTEM = platform.system()
NAP = 50  # microseconds
YIELD = {"Windows": "SwitchToThread"}.get(SYSTEM, "sched_yield")
SLEEP, NAP_UNITS = {"Windows": ("Sleep", 1)}.get(SYSTEM, ("usleep", NAP))  # Windows sleeps by milliseconds
PAUSE = {"x86_64": "llvm.x86.sse2.pause", "AMD64": "llvm.x86.sse2.pause"}.get(platform.machine())
CLOCK = getattr(time, "CLOCK_MONOTONIC", None)  # POSIX's number of the clock; Windows has none
POSIX = SYSTEM != "Windows"  # which has threads' condition variables


def _named(builder, name, result, arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@intrinsic
def pause(typing):
    """Tell the core that this is a spin: it leaves the loop without a misprediction, and lets its sibling run."""

    def codegen(context, builder, signature, args):
        if PAUSE:
            _named(builder, PAUSE, ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_core(typing):
    """Offer the core to another thread: the one waited for may have none of its own."""

    def codegen(context, builder, signature, args):
        _named(builder, YIELD, ir.IntType(32), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def nap(typing):
    """Sleep for a moment: others get the core, whatever the scheduler thinks of a yield."""

    def codegen(context, builder, signature, args):
        _named(builder, SLEEP, ir.IntType(32), [ir.IntType(32)(NAP_UNITS)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def now(typing):
    """Nanoseconds on the system's monotonic clock, the same for all threads."""

    def codegen(context, builder, signature, args):
        i32, i64 = ir.IntType(32), ir.IntType(64)
        if CLOCK is None:
            return builder.mul(_named(builder, "GetTickCount64", i64, []), i64(10**6))
        spec = cgutils.alloca_once(builder, ir.ArrayType(i64, 2))  # struct timespec: seconds, nanoseconds
        _named(builder, "clock_gettime", i32, [i32(CLOCK), spec])
        seconds, rest = (builder.load(builder.gep(spec, [i32(0), i32(field)])) for field in (0, 1))
        return builder.add(builder.mul(seconds, i64(10**9)), rest)

    return types.int64(), codegen


@intrinsic
def current_core(typing):
    """The number of the core that this thread is on; negative where the system does not say."""

    def codegen(context, builder, signature, args):
        if SYSTEM != "Linux":
            return ir.Constant(ir.IntType(64), -1)
        return builder.sext(_named(builder, "sched_getcpu", ir.IntType(32), []), ir.IntType(64))

    return types.int64(), codegen


@intrinsic
def sixteen_words(typing):
    """A pointer to 16 int64, zeros, that last until the function returns."""

    def codegen(context, builder, signature, args):
        room = cgutils.alloca_once_value(builder, ir.Constant(ir.ArrayType(ir.IntType(64), 16), None))
        return builder.bitcast(room, ir.IntType(64).as_pointer())

    return types.CPointer(types.int64)(), codegen


def c_function(name, result=32):
    """An intrinsic `f((a, b, ...))` of POSIX's C function `name`: int64 arguments, an int of so many bits as result."""

    @intrinsic
    def call(typing, arguments):
        def codegen(context, builder, signature, args):
            values = [builder.extract_value(args[0], i) for i in range(len(arguments))]
            return _named(builder, name, ir.IntType(result), values) if POSIX else ir.IntType(result)(-1)

        return getattr(types, f"int{result}")(arguments), codegen

    return call


init_mutex, lock, unlock = map(c_function, ("pthread_mutex_init", "pthread_mutex_lock", "pthread_mutex_unlock"))
init_condition, wait_for_signal, signal_one = map(
    c_function, ("pthread_cond_init", "pthread_cond_wait", "pthread_cond_signal")
)


@intrinsic
def call_address(typing, address, arguments):
    """Call the C function at an address: int64 or pointer arguments, an int64 out (its lower half, if it is an int).

    Addresses come in as data: a function that names them as constants could not be kept on the disk.
    """

    def codegen(context, builder, signature, args):
        values = [builder.extract_value(args[1], i) for i in range(len(arguments))]
        kind = ir.FunctionType(ir.IntType(64), [value.type for value in values])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)

    return types.int64(types.int64, arguments), codegen
