"""tanh, exp and softmax as plain arithmetic, so that the compiler turns the loops into vector code.

Numba's np.tanh and np.exp call libm for each element, which at H=256 costs more than the product does. Error bounds
(tests/kernels/test_activations.py runs them over all of float32):
    tanh  6 ulp at most against float64; odd, never beyond 1, NaN in NaN out
    exp   2 ulp at most on [-86.9, 88.7]; 0 below, infinity above, NaN in NaN out
"""

from __future__ import annotations

import numpy as np

from rnnpar.kernels.jit import jit
from rnnpar.kernels.pointers import at, bits_of

F = np.float32
# Contraction to fused multiply-adds is all that may differ: with full fastmath NaN and infinity would be anything.
CONTRACT = {"contract"}
# For a maximum and a sum over many elements, in any order (that is what lets them vectorise).
REDUCE = {"contract", "reassoc", "nsz"}
# Added to a float32 of less than 2^22, it leaves the nearest integer, plus 126, in the sum's last bits.
ROUNDING = F(1.5 * 2**23 + 126)


@jit(fastmath=CONTRACT, inline="always")
def tanh_element(x):
    """tanh of one float32: the rational approximation (degree 13 over 6) that Eigen and XLA publish."""
    limit = F(7.90531110763549805)
    z = max(min(x, limit), -limit)  # in this order a NaN passes, and each is one instruction
    s = z * z
    p = s * F(-2.76076847742355e-16) + F(2.00018790482477e-13)
    p = s * p + F(-8.60467152213735e-11)
    p = s * p + F(5.12229709037114e-08)
    p = s * p + F(1.48572235717979e-05)
    p = s * p + F(6.37261928875436e-04)
    p = s * p + F(4.89352455891786e-03)
    q = s * F(1.19825839466702e-06) + F(1.18534705686654e-04)
    q = s * q + F(2.26843463243900e-03)
    q = s * q + F(4.89352518554385e-03)
    return z * (p / q)  # not z * p first: for the smallest z that would be denormal


@jit(fastmath=CONTRACT)  # not inlined by Numba: in exp_sum, REDUCE would take the two ROUNDINGs for nothing
def exp_element(x):
    """exp of one float32: 2^k exp(r), |r| <= ln(2)/2, exp(r) = 1 + r + r^2 p(r) with the p of least relative error.

    The clamps are such that 2^(k-1) is 0 at the lower and 2^(k-1) exp(r) 2 infinite at the upper, with no more ado.
    """
    z = max(min(x, F(89)), F(-87.3))  # as in tanh
    shifted = z * F(1.44269504) + ROUNDING  # its last bits are k + 126
    k = shifted - ROUNDING
    r = z - k * F(0.693359375) - k * F(-2.12194440e-4)
    p = F(1.3814584e-3)
    p = p * r + F(8.3687240e-3)
    p = p * r + F(4.1668389e-2)
    p = p * r + F(1.6666521e-1)
    p = p * r + F(4.9999994e-1)
    power = np.int32(np.float32(shifted).view(np.int32) << np.int32(23)).view(np.float32)  # 2^(k-1), from its bits
    return ((p * r * r + r) * power + power) * F(2)  # 2 last: 2^128 is not a float32, and exp(88.7) needs it


# The loops run over whole slices: with a start and a stop, Numba would have to ask of every index whether it is
# negative (and counts from the end), and such a loop does not vectorise.


@jit(fastmath=CONTRACT)
def tanh_inplace(a):
    """a[:] = tanh(a); a: float32, one-dimensional."""
    for i in range(a.size):
        a[i] = tanh_element(a[i])


@jit(inline="always")
def ordered(bits):
    """The bits of a float32, as an int32, turned so that integers compare as the floats do; its own inverse."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@jit()
def largest(a):
    """The maximum of a, which is not empty. Compared as integers: LLVM vectorises that, and not Numba's float max."""
    bits = bits_of(at(a, 0))
    m = ordered(bits[0])
    for i in range(a.size):
        m = max(m, ordered(bits[i]))
    return np.int32(ordered(m)).view(np.float32)


@jit(fastmath=REDUCE)
def exp_sum(a, shift):
    """a[:] = exp(a - shift); returns their sum."""
    total = F(0)
    for i in range(a.size):
        e = exp_element(a[i] - shift)
        a[i] = e
        total += e
    return total


@jit(fastmath=CONTRACT)
def exp_inplace(a):
    """a[:] = exp(a)."""
    for i in range(a.size):
        a[i] = exp_element(a[i])


@jit(fastmath=REDUCE)
def sum_of(a):
    """The sum of a."""
    total = F(0)
    for i in range(a.size):
        total += a[i]
    return total


@jit(fastmath=CONTRACT)
def scale_into(a, factor, y):
    """y[:] = a[: len(y)] * factor."""
    for i in range(y.size):
        y[i] = a[i] * factor


@jit(inline="always")
def softmax_row(o, y, calm):
    """y[:] = softmax(o)[: len(y)], one row of logits; o is overwritten. Both float32, one-dimensional.

    The largest logit is taken off first, so that exp cannot overflow; `calm` says that it cannot in any case, and
    saves the pass that finds it. A NaN anywhere makes all of y NaN. Where o is longer than y, the rest is minus
    infinity: exp of that is 0, and whole vectors take no remainder.
    """
    scale_into(o, F(1) / exp_sum(o, F(0) if calm else largest(o)), y)
