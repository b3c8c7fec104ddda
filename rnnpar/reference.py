"""The oracle: the four equations in float64, as on paper. Every method and every timed point is held against it."""

from __future__ import annotations

import numpy as np

from rnnpar.network import RNN, refuse_masked


@np.errstate(all="ignore")  # the answer is the same whatever the caller's numpy.seterr, and nothing is warned of
def reference(net: RNN, x: np.ndarray, h0: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The forward pass in float64.

    x (T,B,I) and h0 (L,B,H, zeros if None), any float dtype; returns y (T,B,O), the probabilities, and
    h (L,B,H), the last hidden state of each layer, both float64.
    TypeError or ValueError where the network or a shape is wrong, or an array is masked, with what would do.
    """
    if not isinstance(net, RNN):
        raise TypeError(f"net is a {type(net).__name__}; it must be an rnnpar.RNN, from RNN.from_arrays or the like")
    for name, array in (("x", x), ("h0", h0)):
        refuse_masked(array, name)
    x = np.asarray(x, np.float64)
    if x.ndim != 3 or x.shape[2] != net.input_size:
        raise ValueError(f"x has shape {x.shape}; it must be (T, B, {net.input_size}): steps, batch, input_size")
    T, B, _ = x.shape
    state = (net.num_layers, B, net.hidden_size)
    h = np.zeros(state) if h0 is None else np.array(h0, np.float64)
    if h.shape != state:
        raise ValueError(f"h0 has shape {h.shape}; with this x it must be (num_layers, B, hidden_size) = {state}")
    layers = [(layer.W.astype(np.float64), layer.U.astype(np.float64), layer.b.astype(np.float64))
              for layer in net.layers]  # fmt: skip
    V, c = net.V.astype(np.float64), net.c.astype(np.float64)
    y = np.empty((T, B, net.output_size))
    for t in range(T):
        below = x[t]
        for index, (W, U, b) in enumerate(layers):
            a = b + h[index] @ W.T + below @ U.T
            h[index] = below = np.tanh(a)
        o = c + below @ V.T
        e = np.exp(o - o.max(axis=-1, keepdims=True))  # softmax(o) = softmax(o - max): exp cannot overflow
        y[t] = e / e.sum(axis=-1, keepdims=True)
    return y, h


@np.errstate(all="ignore")
def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """‖got - wanted‖ / ‖wanted‖ over all elements, in float64; 0 for empty arrays, NaN where `got` has a NaN."""
    wanted = np.asarray(wanted, np.float64)
    scale = np.linalg.norm(wanted)
    difference = np.linalg.norm(np.asarray(got, np.float64) - wanted)
    return float(difference / scale) if scale else float(difference)
