"""Pointers into arrays, and arrays whose users are not counted: what kernels hand on to each other.

Numba counts who holds an array, by an indivisible addition at the start and another at the end of most calls that take
one, or a slice of one, and nothing may run ahead of it: at H=32 that was two thirds of a time step on one thread. The
caller of a kernel holds its arrays for as long as it runs, so none of it is needed: kernels take pointers.
"""

from __future__ import annotations

from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from rnnpar.kernels.jit import jit

INT64S = types.CPointer(types.int64)
FLOATS = types.CPointer(types.float32)


@intrinsic
def at(typing, base, offset):
    """A pointer to `offset` elements after another, or to that element of an array that lies in one piece."""
    is_pointer = isinstance(base, types.CPointer)

    def codegen(context, builder, signature, args):
        data = args[0] if is_pointer else context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.gep(data, [args[1]])

    return types.CPointer(base.dtype)(base, types.intp), codegen


@intrinsic
def int64s(typing, address):
    """A pointer to the int64 at an address."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(64).as_pointer())

    return INT64S(types.int64), codegen


@intrinsic
def bits_of(typing, pointer):
    """A pointer to the same place, where int32 are taken for what float32 are."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32).as_pointer())

    return types.CPointer(types.int32)(pointer), codegen


@intrinsic
def address_of(typing, pointer):
    """The address that a pointer holds."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(pointer), codegen


@jit(inline="always")
def view(base, start, size):
    """The `size` elements from `start` on of an array or behind a pointer, as an array with nobody counting."""
    return carray(at(base, start), size)
