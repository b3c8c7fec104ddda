"""The same iterations as in scan.py on whole arrays: NumPy on a CPU, CuPy on a GPU, in float32 or float64.

Every function takes `xp`, the module that its arrays are of. Arrays keep their shape here: z, g, r (T,B,H) and
h (T+1,B,H), the known state in front; W (H,H). S segments of n steps: T is padded to S * n by steps that do nothing.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

from rnnpar.kernels.scan import (
    DENSE,
    DIAGONAL,
    ERROR,
    GROWTH,
    JACOBI,
    LOOK,
    SINCE,
    STALLED,
    START,
    THROUGH,
    WARM,
    WITHIN,
)

Array = Any


def segments_of(xp: ModuleType, a: Array, S: int, n: int) -> Array:
    """(T,...) as (n,S,...): step i of every segment in one piece, so that all of them can take it at once."""
    padded = xp.zeros((S * n, *a.shape[1:]), a.dtype)
    padded[: len(a)] = a
    return xp.ascontiguousarray(padded.reshape(S, n, *a.shape[1:]).swapaxes(0, 1))


def whole_of(xp: ModuleType, a: Array, T: int) -> Array:
    """The reverse of `segments_of`: (n,S,...) as (T,...)."""
    n, S = a.shape[:2]
    return xp.ascontiguousarray(a.swapaxes(0, 1)).reshape(n * S, *a.shape[2:])[:T]


def times(a: Array, W: Array) -> Array:
    """W times every row of a (...,H), as one product: over several axes NumPy would make many small ones."""
    return (a.reshape(-1, a.shape[-1]) @ W.T).reshape(a.shape)


def dense_scan(xp: ModuleType, W: Array, g: Array, r: Array, S: int) -> Array:
    """d[t] = g[t] * (W d[t-1]) + r[t] from d[-1] = 0: (T,B,H). g, r: (T,B,H).

    Each segment's end from a zero start and the matrix that carries its start there; the starts from those by a
    scan over the segments, log2(S) rounds of products (Hillis and Steele 1986); then all segments run again.
    With S = T it is the scan of the DEER paper, and holds one matrix a step: T * B * H^2 numbers.
    """
    T, B, H = r.shape
    n = -(-T // S)
    S = -(-T // n)
    g, r = segments_of(xp, g, S, n), segments_of(xp, r, S, n)
    end = xp.zeros((S, B, H), r.dtype)
    images = xp.zeros((S, B, H, H), r.dtype)  # row i: where the unit vector e_i is carried
    images[:] = xp.eye(H, dtype=r.dtype)
    for i in range(n):
        end = g[i] * times(end, W) + r[i]
        images = times(images, W)
        images *= g[i][:, :, None, :]
    state = xp.zeros_like(end)
    state[1:] = _ends_so_far(xp, images, end)[:-1]
    d = xp.empty_like(r)
    for i in range(n):
        state = g[i] * times(state, W) + r[i]
        d[i] = state
    return whole_of(xp, d, T)


def _ends_so_far(xp: ModuleType, images: Array, end: Array) -> Array:
    """end[s] of the segments 0 to s run through one after another, for each s: (S,B,H). Changes both arrays."""
    reach, S = 1, len(end)
    while reach < S:
        carried = (end[:-reach, :, None, :] @ images[reach:])[:, :, 0]
        end[reach:] += xp.where(xp.isfinite(carried), carried, 0)
        if 2 * reach < S:
            images[reach:] = images[:-reach] @ images[reach:]
        reach *= 2
    return end


def diagonal_scan(xp: ModuleType, a: Array, r: Array, S: int) -> Array:
    """d[t] = a[t] * d[t-1] + r[t] from d[-1] = 0, element by element: (T,B,H). a, r: (T,B,H)."""
    T = len(r)
    n = -(-T // S)
    S = -(-T // n)
    a, r = segments_of(xp, a, S, n), segments_of(xp, r, S, n)
    end, factor = xp.zeros_like(r[0]), xp.ones_like(r[0])
    for i in range(n):
        end = a[i] * end + r[i]
        factor = factor * a[i]
    reach = 1
    while reach < S:
        end[reach:] += factor[reach:] * end[:-reach]
        factor[reach:] = factor[reach:] * factor[:-reach]
        reach *= 2
    state = xp.zeros_like(end)
    state[1:] = end[:-1]
    d = xp.empty_like(r)
    for i in range(n):
        state = a[i] * state + r[i]
        d[i] = state
    return whole_of(xp, d, T)


def sweep(xp: ModuleType, W: Array, z: Array, h: Array, S: int) -> None:
    """h[t] = tanh(z[t] + W h[t-1]) through every segment, all of them at once, from where they begin in h now."""
    T = len(z)
    n = -(-T // S)
    S = -(-T // n)
    steps = segments_of(xp, z, S, n)
    state = h[:T:n].copy()
    for i in range(n):
        state = xp.tanh(steps[i] + times(state, W))
        steps[i] = state
    h[1:] = whole_of(xp, steps, T)


def solve(
    xp: ModuleType,
    kind: int,
    W: Array,
    z: Array,
    h: Array,
    S: int,
    keep: float,
    most: int,
    tolerance: float,
    small: float,
) -> tuple[list[float], Array, Array]:
    """As `scan.solve_body`: h is corrected in place; returns the residuals, and g and r of the last evaluation."""
    residuals: list[float] = []
    diagonal = W.diagonal()
    while True:
        f = xp.tanh(z + times(h[:-1], W))
        g = (1 - f) * (1 + f) * xp.asarray(keep, f.dtype)
        r = f - h[1:]
        residuals.append(float(abs(r).max()))
        stalled = len(residuals) > STALLED and small > residuals[-1] > 0.9 * min(residuals[:-STALLED])
        if not residuals[-1] > tolerance or len(residuals) > most or stalled:
            h[1:] = f
            return residuals, g, r
        if kind == JACOBI:
            h[1:] = f
        elif kind in (DENSE, DIAGONAL):
            d = dense_scan(xp, W, g, r, S) if kind == DENSE else diagonal_scan(xp, g * diagonal, r, S)
            d += h[1:]
            h[1:] = xp.where(xp.isfinite(d), xp.clip(d, -1, 1), 0)
        else:
            sweep(xp, W, z, h, S)


def growth(xp: ModuleType, W: Array, g: Array, r: Array, noise: Array, rough: float, S: int) -> Array:
    """As `scan.growth_body`: how each segment carries errors on, (6,S,B), in the rows that it names.

    noise: (S,B,H), of the size of a rounding error; its sign is drawn anew in each step by rolling it. `rough`: how
    much more of it there is before the tanh.
    """
    T, B, H = r.shape
    n = -(-T // S)
    S = -(-T // n)
    found = xp.zeros((6, S, B), r.dtype)
    tangents = xp.zeros((2, S, B, H), r.dtype)  # the error, and a direction
    error, direction = tangents
    direction[:] = _normalised(xp, noise[:S] + 0 * direction)[0]
    starts = xp.arange(S) * n
    for i in range(-WARM, 0):
        live = -(i // n)  # the first segment that has a step i: before it, time had not begun
        t, luck = starts[live:] + i, xp.roll(noise[live:S], 7 * i, axis=2)
        tangents[:, live:] = times(tangents[:, live:], W) * g[t]
        error[live:] += g[t] * (rough * luck) + r[t] + luck
        direction[:] = _normalised(xp, direction)[0]
    found[START] = xp.sqrt((error * error).mean(axis=2))
    g, r = segments_of(xp, g, S, n), segments_of(xp, r, S, n)
    steps_in_last = T - (S - 1) * n
    for i in range(n):
        live = S if i < steps_in_last else S - 1
        luck = xp.roll(noise[:live], 7 * i, axis=2)
        tangents[:, :live] = times(tangents[:, :live], W) * g[i, :live]
        error[:live] += g[i, :live] * (rough * luck) + r[i, :live] + luck
        found[SINCE, :live] += (direction * direction).sum(axis=2)[:live]
        found[WITHIN, :live] += (error * error).mean(axis=2)[:live]
        if i % LOOK == LOOK - 1 or i == n - 1:
            direction[:], length = _normalised(xp, direction)
            found[THROUGH] += xp.exp(2 * found[GROWTH]) * found[SINCE]
            found[GROWTH] += xp.log(length)
            found[SINCE] = 0
    found[ERROR] = xp.sqrt((error * error).mean(axis=2))
    return found


def _normalised(xp: ModuleType, v: Array) -> tuple[Array, Array]:
    length = xp.maximum(xp.sqrt((v * v).sum(axis=-1)), 1e-30)
    return v / length[..., None], length


def array_bytes(kind: int, T: int, B: int, H: int, S: int, itemsize: int) -> int:
    """The most bytes that `solve` and `growth` hold at once, besides z and h."""
    states, n = T * B * H, math.ceil(T / S)
    padded = S * n * B * H
    maps = 2 * S * B * H * H if kind == DENSE else 0
    factors = 2 * states + 2 * padded if kind == DIAGONAL else 0  # a[t], and what the scan makes of it
    return itemsize * (3 * states + 3 * padded + maps + factors)
