"""One thread. What the recurrence costs on paper's terms, what can be taken out of it, what a compiler makes of it.

Letters: T steps, B batch, I input, H hidden, O output, L layers. x (T,B,I), h (L,B,H), y (T,B,O), float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rnnpar.kernels.blas import one_blas_thread
from rnnpar.network import RNN

Forward = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def naive(net: RNN) -> Forward:
    """The four equations as they stand, a step at a time, in NumPy.

    Parallelises: nothing. Synchronises: nothing. Moves: all of U, W and V through the caches in every step.
    """

    def forward(x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h = h0.copy()
        y = np.empty((*x.shape[:2], net.output_size), np.float32)
        with one_blas_thread(), quiet():
            for t in range(len(x)):
                below = x[t]
                for index, layer in enumerate(net.layers):
                    h[index] = below = np.tanh(layer.b + h[index] @ layer.W.T + below @ layer.U.T)
                y[t] = softmax(net.c + below @ net.V.T)
        return y, h

    return forward


def hoisted(net: RNN) -> Forward:
    """Only W h waits for the step before: U x and V h are taken out of the loop, one large product each.

    Parallelises: nothing. Synchronises: nothing. Moves: W in every step; U and V once in a sequence, at the price
    of keeping all T hidden states.
    """

    def forward(x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h = h0.copy()
        with one_blas_thread(), quiet():
            below = x
            for index, layer in enumerate(net.layers):
                a = all_steps(below, layer.U, layer.b)
                below = np.empty_like(a)
                state, W = h[index], layer.W.T
                for t in range(len(a)):
                    state = np.tanh(a[t] + state @ W, out=below[t])
                h[index] = state
            y = all_steps(below, net.V, net.c)
            for piece in pieces(y, ELEMENT * net.output_size):
                y[piece] = softmax(y[piece])
        return y, h

    return forward


PIECE = 1 << 29  # multiply-adds, some hundredths of a second: Python hears an interrupt only between two calls of NumPy
ELEMENT = 100  # multiply-adds in the time of an element's exp, or of its first way to memory


def quiet() -> np.errstate:
    """Infinity and NaN are answers, whatever the caller has told NumPy to do about them."""
    return np.errstate(all="ignore")


def all_steps(x: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x (T,B,K) times weights (N,K), plus bias (N,), as one product, or a few where it is large: (T,B,N)."""
    T, B, K = x.shape
    N = len(bias)
    out = np.empty((T, B, N), np.float32)
    for piece in pieces(x, N * (K + ELEMENT)):
        np.matmul(x[piece].reshape(-1, K), weights.T, out=out[piece].reshape(-1, N))
        out[piece] += bias
    return out


def pieces(x: np.ndarray, row_work: int) -> list[slice]:
    """The steps of x (T,B,...) in pieces of at most PIECE multiply-adds, of which each row takes `row_work`."""
    most = max(1, PIECE // (x.shape[1] * row_work))
    return [slice(t, t + most) for t in range(0, len(x), most)]


def softmax(o: np.ndarray) -> np.ndarray:
    """softmax over the last axis, in float32; the largest logit is taken off first so that exp cannot overflow."""
    e = np.exp(o - o.max(axis=-1, keepdims=True))
    e /= e.sum(axis=-1, keepdims=True)
    return e


def compiled(net: RNN, dtype: str = "float32") -> Forward:
    """The same order of work as `hoisted`, compiled: our own product, tanh and softmax instead of NumPy's.

    Parallelises: the vector lanes of one core. A register tile keeps up to 8 rows by 32 columns of sums in
    registers and reads weights that were packed into its order once; tanh and softmax are arithmetic that the
    compiler vectorises. Synchronises: nothing. Moves: W in every step; U and V once in a chunk of steps, whose
    hidden states never leave the core's cache (kernels/forward.py). dtype="bfloat16" halves the weights' bytes.
    """
    from rnnpar.kernels.forward import batch_forward  # here, so that naive and hoisted need no compiler

    return batch_forward(net, 1, dtype)
