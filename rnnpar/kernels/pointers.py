"""Pointers into arrays, and arrays whose users are not counted: what kernels hand on to each other.

Numba counts who holds an array, by an indivisible addition at the start and another at the end of most calls that take
one, or a slice of one, and nothing may run ahead of it: at H=32 that was two thirds of a time step on one thread. The
caller of a kernel holds its arrays for as long as it runs, so none of it is needed: a kernel makes its arrays `bare`
before all else.
"""

from __future__ import annotations

from numba import carray, types
from numba.extending import intrinsic

from rnnpar.kernels.jit import jit


@intrinsic
def at(typing, array, offset):
    """A pointer to element `offset` of a one-dimensional array, or of one that lies in memory as one."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.gep(data, [args[1]])

    return types.CPointer(array.dtype)(array, types.intp), codegen


@intrinsic
def beyond(typing, pointer, offset):
    """A pointer to `offset` elements after another."""

    def codegen(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.intp), codegen


@jit(inline="always")
def bare(array):
    """The same array, C-contiguous, with nobody counting."""
    return carray(at(array, 0), array.shape)


@jit(inline="always")
def view(array, start, size):
    """array[start : start + size] of a one-dimensional array, with nobody counting."""
    return carray(at(array, start), size)
