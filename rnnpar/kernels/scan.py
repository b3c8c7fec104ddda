"""A window of time steps solved as a whole, by threads that each own a stretch of time.

    h[t] = tanh(z[t] + W h[t-1])   for all t of the window, where z[t] = b + U x[t] and h[-1] are known

Every iteration evaluates f[t] = tanh(z[t] + W h[t-1]) for all t at once (`evaluate`), and what is left over,
r[t] = f[t] - h[t]. Newton's correction d then obeys a linear recurrence, and that is solved by a parallel scan:

    d[t] = J[t] d[t-1] + r[t],    J[t] = diag(g[t]) W,    g[t] = 1 - f[t]^2

The scan (Blelloch 1990, in two levels as in his section 1.2.1): the window is cut into segments. Each segment finds
out where it would end from a zero start, and by which matrix its end depends on its start (`reduce`); the starts
follow from segment to segment (`carry`); then all of them run again, from their true starts (`apply`).

Letters: T steps, B sequences, H hidden, ld a row: H padded to whole panels. A row is one sequence at one step, and
row t * B + j is that of sequence j at step t. z, g, r: (T*B, ld); h: ((T+1)*B, ld), the known state in front. S
segments of n steps; a thread owns those from S * rank // size on. All float32 and flat. One map (H,H) a segment is
kept, not one a step: J[t] itself is never formed, since g[t] says all that is new in it.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from rnnpar.kernels.activations import CONTRACT, REDUCE, tanh_inplace
from rnnpar.kernels.atomics import LINE, barrier
from rnnpar.kernels.forward import inputs, outputs
from rnnpar.kernels.jit import jit
from rnnpar.kernels.pointers import bare, view
from rnnpar.kernels.team import Team
from rnnpar.kernels.tile import WIDTH, aligned, multiply, pack, round_up

JACOBI, DENSE, DIAGONAL, SEGMENTS = range(4)  # how an iteration corrects h
FADED = 1e-8  # a map whose entries are all below it no longer tells the end of a segment from where it started
LOOK = 8  # steps between two looks at a map, or at the length of a tangent
NOTHING = -25.0  # the logarithm of a growth that leaves nothing of an error: e^-25 is 1e-11
WARM = 24  # steps in which a tangent turns towards the direction that grows fastest
ROUNDING = 1.5e-7  # what a step's product, sum and tanh in float32 may add to the error of a state
BLOCK = 64  # rows of one product in `evaluate`: they stay in the first cache from the product to the residual
STALLED = 30  # iterations without a smaller residual, after which one below SMALL is as small as it gets
GROWTH, THROUGH, SINCE, START, ERROR, WITHIN = range(6)  # what `growth_body` finds of each segment and sequence
SMALL = 2e-6  # times the largest row sum of |W| where that is above 5: so much may rounding leave of a residual


# --- what is done to one row, or to rows that lie one behind the other ------------------------------------------------


@jit(fastmath=CONTRACT)
def _slope_and_residual(f, h, g, keep):
    """f becomes f - h, and g = (1 - f^2) * keep."""
    one = np.float32(1)
    for i in range(f.size):
        g[i] = (one - f[i]) * (one + f[i]) * keep
        f[i] -= h[i]


@jit(fastmath=REDUCE)
def _squares(values):
    """The sum of the squares; NaN where there is one."""
    total = np.float32(0)
    for i in range(values.size):
        total += values[i] * values[i]
    return total


@jit(fastmath=CONTRACT)
def _advance(g, product, r, state):
    """state = g * product + r."""
    for i in range(state.size):
        state[i] = g[i] * product[i] + r[i]


@jit()
def _correct(h, d):
    """h += d, kept within [-1, 1], where every tanh lies. A correction that is no number starts afresh from 0."""
    one = np.float32(1)
    for i in range(h.size):
        new = h[i] + d[i]
        new = one if new > one else new
        new = -one if new < -one else new
        h[i] = new if new == new else np.float32(0)


@jit()
def _multiply_into(target, values, factors):
    for i in range(target.size):
        target[i] = values[i] * factors[i]


@jit(fastmath=CONTRACT)
def _add_scaled(target, factor, values):
    for i in range(target.size):
        target[i] += factor * values[i]


@jit()
def _add(target, values):
    for i in range(target.size):
        target[i] += values[i]


@jit()
def _fill(target, value):
    for i in range(target.size):
        target[i] = value


@jit()
def _put(target, values):
    for i in range(target.size):
        target[i] = values[i]


@jit()
def _largest(values):
    """The largest |value|. Without their sign bit, floats compare as integers do, and that vectorises."""
    bits = values.view(np.int32)
    most = np.int32(0)
    for i in range(bits.size):
        most = max(most, bits[i] & np.int32(0x7FFFFFFF))
    return np.int32(most).view(np.float32)


@jit()
def _finite(values):
    """What is no finite number becomes 0."""
    for i in range(values.size):
        if not (abs(values[i]) <= np.float32(3e38)):
            values[i] = np.float32(0)


# --- evaluate: f, its slope and the residual, of all rows -------------------------------------------------------------


@jit()
def evaluate(r0, r1, z, h, g, r, panels, w, keep, B, H, ld):
    """For the rows r0 to r1: r = tanh(z + W h[t-1]) - h[t] and g. Returns the largest |r| and the sum of r^2."""
    largest, total = np.float32(0), 0.0
    for row in range(r0, r1, BLOCK):
        rows = min(BLOCK, r1 - row)
        for q in range(ld // WIDTH):
            place = row * ld + q * WIDTH
            multiply(h, row * ld, ld, rows, H, panels, w + q * H * WIDTH, z, place, ld, r, place, ld)
        f = view(r, row * ld, rows * ld)
        tanh_inplace(f)
        _slope_and_residual(f, view(h, (row + B) * ld, rows * ld), view(g, row * ld, rows * ld), keep)
        largest = max(largest, _largest(f))
        total += _squares(f)
    return largest, total


# --- the dense scan: J[t] = diag(g[t]) W ------------------------------------------------------------------------------


@jit()
def _roll(s0, s1, n, T, B, H, ld, panels, w, zero, g, r, state, product, h, write):
    """state[s] = g[t] * (W state[s]) + r[t] through the segments s0 to s1 at once, as one batch of rows.

    state: a row a segment and sequence, what the segments start from, then what they end with. With `write`, h[t] is
    corrected on the way.
    """
    width = B * ld
    rows = (s1 - s0) * B
    for i in range(n):
        for q in range(ld // WIDTH):
            multiply(state, 0, ld, rows, H, panels, w + q * H * WIDTH, zero, 0, 0, product, q * WIDTH, ld)
        for s in range(s0, s1):
            t = s * n + i
            if t < T:
                here = (s - s0) * width
                d = view(state, here, width)
                _advance(view(g, t * width, width), view(product, here, width), view(r, t * width, width), d)
                if write:
                    _correct(view(h, (t + 1) * width, width), d)


@jit()
def _map(s, j, n, T, B, H, ld, panels, w, zero, g, image, product, faded):
    """The matrix by which the end of segment s depends on its start; False where it has faded away.

    image: row i is where the unit vector e_i is carried, so this is H rows times W in every step.
    """
    _fill(image, np.float32(0))
    for i in range(H):
        image[i * ld + i] = np.float32(1)
    for t in range(s * n, min(T, (s + 1) * n)):
        for q in range(ld // WIDTH):
            multiply(image, 0, ld, H, H, panels, w + q * H * WIDTH, zero, 0, 0, product, q * WIDTH, ld)
        slope = view(g, (t * B + j) * ld, ld)
        for i in range(H):
            _multiply_into(view(image, i * ld, ld), view(product, i * ld, ld), slope)
        if t % LOOK == 0 and _largest(image) < faded:
            return False
    return True


@jit()
def dense_reduce(s0, s1, S, n, T, B, H, ld, panels, w, zero, g, r, state, product, ends, maps, alive, faded):
    """ends: where the segments s0 to s1 end from a zero start. maps: how their ends depend on their starts."""
    width = B * ld
    _fill(state, np.float32(0))
    _roll(s0, s1, n, T, B, H, ld, panels, w, zero, g, r, state, product, ends, False)
    _put(view(ends, s0 * width, (s1 - s0) * width), state)
    for s in range(max(s0, 1), min(s1, S - 1)):  # the first one's start is known, the last one's end is not asked for
        for j in range(B):
            image = view(maps, (s * B + j) * H * ld, H * ld)
            alive[s * B + j] = _map(s, j, n, T, B, H, ld, panels, w, zero, g, image, product, faded)


@jit()
def dense_carry(s0, s1, B, H, ld, ends, maps, alive, state, start):
    """state: what the segments s0 to s1 start from. Every thread goes through all segments before its own."""
    width = B * ld
    _fill(start, np.float32(0))
    for s in range(s1):
        if s >= s0:
            _put(view(state, (s - s0) * width, width), start)
        after = view(start, width, width)
        _put(after, view(ends, s * width, width))
        if s > 0:
            for j in range(B):
                if alive[s * B + j]:
                    for i in range(H):
                        image = view(maps, ((s * B + j) * H + i) * ld, ld)
                        _add_scaled(view(after, j * ld, ld), start[j * ld + i], image)
        _put(view(start, 0, width), after)
        _finite(view(start, 0, width))  # infinity times 0 must not spoil the steps that are right already


# --- the diagonal scan: a[t] = g[t] * diag(W), one number an element --------------------------------------------------


@jit(fastmath=CONTRACT)
def _compose(g, diagonal, r, end, factor):
    for i in range(end.size):
        a = g[i] * diagonal[i]
        end[i] = a * end[i] + r[i]
        factor[i] *= a


@jit(fastmath=CONTRACT)
def _recur(g, diagonal, r, state):
    for i in range(state.size):
        state[i] = g[i] * diagonal[i] * state[i] + r[i]


@jit()
def diagonal_reduce(rank, t0, t1, width, diagonal, g, r, ends, factors):
    """Where this thread's steps end from a zero start, and the product of their a[t]."""
    end, factor = view(ends, rank * width, width), view(factors, rank * width, width)
    _fill(end, np.float32(0))
    _fill(factor, np.float32(1))
    for t in range(t0, t1):
        _compose(view(g, t * width, width), diagonal, view(r, t * width, width), end, factor)


@jit()
def diagonal_apply(rank, t0, t1, width, diagonal, g, r, ends, factors, state, h):
    """Carry the start over from the threads before, then run again, correcting h."""
    _fill(view(state, 0, width), np.float32(0))
    for other in range(rank):
        for i in range(width):
            state[i] = factors[other * width + i] * state[i] + ends[other * width + i]
        _finite(view(state, 0, width))
    d = view(state, 0, width)
    for t in range(t0, t1):
        _recur(view(g, t * width, width), diagonal, view(r, t * width, width), d)
        _correct(view(h, (t + 1) * width, width), d)


# --- segments: each swept step by step, all of them at once -----------------------------------------------------------


@jit()
def sweep(s0, s1, n, T, B, H, ld, panels, w, z, h, state, product, again):
    """h[t] = tanh(z[t] + W h[t-1]) through the segments s0 to s1 as one batch, from the starts in `state`.

    With `again`, it stops where no element of h changes by more than a rounding: from there on all is as it was.
    """
    width = B * ld
    rows = (s1 - s0) * B
    for i in range(n):
        for s in range(s0, s1):
            t = min(s * n + i, T - 1)
            _put(view(product, (s - s0) * width, width), view(z, t * width, width))
        for q in range(ld // WIDTH):
            multiply(state, 0, ld, rows, H, panels, w + q * H * WIDTH, product, q * WIDTH, ld, product, q * WIDTH, ld)
        tanh_inplace(view(product, 0, rows * ld))
        same = again
        for s in range(s0, s1):
            t = s * n + i
            if t < T:
                now, there = view(product, (s - s0) * width, width), view(h, (t + 1) * width, width)
                same = same and _apart(there, now) <= ROUNDING
                _put(there, now)
        state, product = product, state
        if same:
            return


@jit()
def _resume(s0, s1, n, width, state, h):
    """The segments s0 to s1 are to start from where those before them ended."""
    for s in range(s0, s1):
        _put(view(state, (s - s0) * width, width), view(h, s * n * width, width))


@jit()
def _apart(a, b):
    """The largest |a - b|, of bits as in `_largest`."""
    most = np.int32(0)
    for i in range(a.size):
        most = max(most, np.float32(a[i] - b[i]).view(np.int32) & np.int32(0x7FFFFFFF))
    return np.int32(most).view(np.float32)


# --- the iteration ----------------------------------------------------------------------------------------------------


@jit()
def solve_body(
    rank, size, kind, z, h, g, r, panels, w, diagonal, ends, maps, alive, scratch, sync, partial, history,
    S, n, T, B, H, ld, keep, faded, most, tolerance, small, fresh,
):  # fmt: skip
    """Iterate until the residual is at most `tolerance`, or `most` times; then h is f, one evaluation further on.

    history[k] is the largest |r| after k corrections, and history[most + 1] how many there were; [most + 2] is the
    root mean square of the last r. All threads see the same residuals, and so decide alike. g and r stay those of
    the last evaluation.
    """
    z, h, g, r, panels, sync = bare(z), bare(h), bare(g), bare(r), bare(panels), bare(sync)
    ends, maps, alive, scratch, partial = bare(ends), bare(maps), bare(alive), bare(scratch), bare(partial)
    s0, s1 = S * rank // size, S * (rank + 1) // size
    t0, t1 = min(T, s0 * n), min(T, s1 * n)
    width = B * ld
    rows = max(s1 - s0, 1) * width
    own = scratch[rank]
    state, product, start = own[:rows], own[rows : rows + max(rows, H * ld)], own[-2 * width :]
    zero = own[-2 * width - ld : -2 * width]
    epoch = corrections = stalled = 0
    best = np.inf
    if kind == SEGMENTS and fresh:  # evaluating what is known to be only a guess would cost as much as a sweep
        _fill(state, np.float32(0))
        if s0 == 0:
            _put(view(state, 0, width), h)
        sweep(s0, s1, n, T, B, H, ld, panels, w, z, h, state, product, False)
        epoch += 1
        barrier(sync, rank, size, epoch)
        corrections = 1
        history[0] = np.inf
        if S > 1 and most > 1:
            _resume(s0, s1, n, width, state, h)
            epoch += 1
            barrier(sync, rank, size, epoch)
            sweep(s0, s1, n, T, B, H, ld, panels, w, z, h, state, product, True)
            epoch += 1
            barrier(sync, rank, size, epoch)
            corrections = 2
            history[1] = np.inf
    while True:
        mine = (2 * rank + corrections % 2) * LINE
        partial[mine], partial[mine + 1] = evaluate(t0 * B, t1 * B, z, h, g, r, panels, w, keep, B, H, ld)
        epoch += 1
        barrier(sync, rank, size, epoch)
        residual = total = 0.0
        for other in range(size):
            part = (2 * other + corrections % 2) * LINE
            residual = max(residual, partial[part])
            total += partial[part + 1]
        if not total >= 0:  # a NaN, which came with z: no iteration can get rid of it
            residual = np.nan
        if rank == 0:
            history[corrections] = residual
        stalled += 1
        if residual < 0.9 * best:
            best, stalled = residual, 0
        if not residual > tolerance or corrections == most or (stalled >= STALLED and residual < small):
            break
        if kind == JACOBI:
            _add(view(h, (t0 + 1) * width, (t1 - t0) * width), view(r, t0 * width, (t1 - t0) * width))
        elif kind == DIAGONAL:
            diagonal_reduce(rank, t0, t1, width, diagonal, g, r, ends, maps)
            epoch += 1
            barrier(sync, rank, size, epoch)
            diagonal_apply(rank, t0, t1, width, diagonal, g, r, ends, maps, state, h)
        elif kind == DENSE:
            dense_reduce(s0, s1, S, n, T, B, H, ld, panels, w, zero, g, r, state, product, ends, maps, alive, faded)
            epoch += 1
            barrier(sync, rank, size, epoch)
            dense_carry(s0, s1, B, H, ld, ends, maps, alive, state, start)
            _roll(s0, s1, n, T, B, H, ld, panels, w, zero, g, r, state, product, h, True)
        else:
            _resume(s0, s1, n, width, state, h)
            epoch += 1
            barrier(sync, rank, size, epoch)  # a segment's start is the end of the one before, soon swept anew
            sweep(s0, s1, n, T, B, H, ld, panels, w, z, h, state, product, True)
        epoch += 1
        barrier(sync, rank, size, epoch)
        corrections += 1
    _add(view(h, (t0 + 1) * width, (t1 - t0) * width), view(r, t0 * width, (t1 - t0) * width))
    if rank == 0:
        history[most + 1] = corrections
        history[most + 2] = np.sqrt(total / (T * B * H))


@jit(parallel=True)
def solve_region(
    size, kind, z, h, g, r, panels, w, diagonal, ends, maps, alive, scratch, sync, partial, history,
    S, n, T, B, H, ld, keep, faded, most, tolerance, small, fresh,
):  # fmt: skip
    for rank in prange(size):
        solve_body(
            np.int64(rank), size, kind, z, h, g, r, panels, w, diagonal, ends, maps, alive, scratch, sync,
            partial, history, S, n, T, B, H, ld, keep, faded, most, tolerance, small, fresh,
        )  # fmt: skip


# --- how errors grow: the exponent, and the error itself --------------------------------------------------------------


@jit()
def growth_body(rank, size, g, r, noise, rough, panels, w, scratch, found, S, n, T, B, H, ld, keep):
    """How each segment carries errors on, in rows of `found` (6,S*B): what is new at its end, and what passes through.

    Two tangents run along the segment, and through the WARM steps before it. The first begins with 0 and gathers what
    the residuals r and the rounding (`noise`) of each step add, `rough` times a sign before the tanh: the linear
    estimate of the error. Rows START and ERROR are its root mean square over H where the segment begins and ends; row
    WITHIN is the sum of its mean squares over all steps, since what has grown may have faded again at the end. The
    second has any direction, and turns towards the one that grows fastest: the logarithm of its growth (row GROWTH),
    a step, is the largest Lyapunov exponent, and row THROUGH is the sum over the steps of its growth so far, squared.
    It stops early where nothing is left of any error. Row SINCE is of use here only.
    """
    s0, s1 = S * rank // size, S * (rank + 1) // size
    width = B * ld
    half = (s1 - s0) * width  # the first tangents' rows, then the second ones'
    rows, both = (s1 - s0) * B, True
    own = scratch[rank]
    state, product, zero = own[: 2 * half], own[2 * half : 4 * half], own[-2 * width - ld : -2 * width]
    _fill(state, np.float32(0))
    for row in range(rows):
        _put(view(state, half + row * ld, H), view(noise, row % LOOK, H))
        found[:, s0 * B + row] = 0.0
    for i in range(-WARM, n):
        if i == 0:
            for row in range(rows):
                found[START, s0 * B + row] = np.sqrt(_squares(view(state, row * ld, H)) / H)
                _normalise(view(state, half + row * ld, ld))
        for q in range(ld // WIDTH):
            multiply(state, 0, ld, (1 + both) * rows, H, panels, w + q * H * WIDTH, zero, 0, 0, product, q * WIDTH, ld)
        for s in range(s0, s1):
            t = s * n + i
            if 0 <= t < T:
                here, slope = (s - s0) * width, view(g, t * width, width)
                luck, new = view(noise, 37 * t % (noise.size - width), width), view(r, t * width, width)
                _gather(slope, view(product, here, width), new, luck, view(state, here, width), keep, rough)
                if both:
                    _stretch(slope, view(product, half + here, width), view(state, half + here, width), keep)
                if i >= 0:
                    for j in range(B):
                        found[WITHIN, s * B + j] += _squares(view(state, here + j * ld, H)) / H
                        if both:
                            found[SINCE, s * B + j] += _squares(view(state, half + here + j * ld, H))
        if both and (i % LOOK == LOOK - 1 or i == n - 1):
            most = -np.inf
            for row in range(rows):
                length, sums = _normalise(view(state, half + row * ld, ld)), found[:, s0 * B + row]
                if i >= 0:
                    sums[THROUGH] += np.exp(2 * sums[GROWTH]) * sums[SINCE]
                    sums[GROWTH] += np.log(length)
                    sums[SINCE] = 0.0
                    most = max(most, sums[GROWTH])
            if i >= WARM and most < NOTHING:
                both = False
                for row in range(rows):
                    found[GROWTH, s0 * B + row] *= min(n, T - (s0 + row // B) * n) / (i + 1)
    for row in range(rows):
        found[ERROR, s0 * B + row] = np.sqrt(_squares(view(state, row * ld, H)) / H)


@jit(fastmath=CONTRACT)
def _stretch(g, product, state, keep):
    factor = np.float32(1) / keep
    for i in range(state.size):
        state[i] = g[i] * factor * product[i]


@jit(fastmath=CONTRACT)
def _gather(g, product, r, noise, state, keep, rough):
    factor = np.float32(1) / keep
    for i in range(state.size):
        state[i] = g[i] * factor * (product[i] + rough * noise[i]) + r[i] + np.float32(ROUNDING) * noise[i]


@jit()
def _normalise(v):
    total = 0.0
    for i in range(v.size):
        total += v[i] * v[i]
    length = max(np.sqrt(total), 1e-30)
    for i in range(v.size):
        v[i] = np.float32(v[i] / length)
    return length


@jit()
def carry_errors(found, carried):
    """The errors of the segments (6,S,B) one after another, from those `carried` into the first (B), which become
    those carried out of the last. Returns the sum of the mean squares over all steps and sequences; NaN or infinity
    where one is.
    """
    total = 0.0
    for s in range(found.shape[1]):
        for j in range(len(carried)):
            total += found[WITHIN, s, j]
            older = carried[j] - found[START, s, j]  # than WARM steps: the others the segment has seen itself
            carried[j] = found[ERROR, s, j]
            if not older <= 0:
                total += older**2 * found[THROUGH, s, j]
                carried[j] += older * np.exp(found[GROWTH, s, j])
    return total


@jit(parallel=True)
def growth_region(size, g, r, noise, rough, panels, w, scratch, found, S, n, T, B, H, ld, keep):
    for rank in prange(size):
        growth_body(np.int64(rank), size, g, r, noise, rough, panels, w, scratch, found, S, n, T, B, H, ld, keep)


# --- before and after: what needs no iteration ------------------------------------------------------------------------


@jit()
def inputs_body(rank, size, x, x0, row_stride, K, panels, u, bias, b, z, T, B, ld):
    """z = b + U x, steps shared out; x begins at x0 and has its rows `row_stride` apart."""
    t0, t1 = T * rank // size, T * (rank + 1) // size
    if t1 > t0:
        inputs(x, x0 + t0 * B * row_stride, B * row_stride, row_stride, t1 - t0, B, K, panels, u, bias, b,
               z, t0 * B * ld, ld, 0, ld // WIDTH)  # fmt: skip


@jit(parallel=True)
def inputs_region(size, x, x0, row_stride, K, panels, u, bias, b, z, T, B, ld):
    for rank in prange(size):
        inputs_body(np.int64(rank), size, x, x0, row_stride, K, panels, u, bias, b, z, T, B, ld)


@jit()
def outputs_body(rank, size, h, panels, v, bias, c, logits, block, y, t0, T, B, ld, sizes):
    """y = softmax(c + V h) for the T steps from t0 on, rows shared out; h has its known state in front."""
    r0, r1 = T * B * rank // size, T * B * (rank + 1) // size
    outputs(h, B * ld, ld, r0, r1, panels, v, bias, c, logits[rank], block, y, t0, 0, B, B, sizes)


@jit(parallel=True)
def outputs_region(size, h, panels, v, bias, c, logits, block, y, t0, T, B, ld, sizes):
    for rank in prange(size):
        outputs_body(np.int64(rank), size, h, panels, v, bias, c, logits, block, y, t0, T, B, ld, sizes)


# --- the scan alone, to be measured -----------------------------------------------------------------------------------


@jit()
def scan_body(
    rank, size, dense, h, g, r, panels, w, diagonal, ends, maps, alive, scratch, sync, S, n, T, B, H, ld, faded
):
    """One linear recurrence, d[t] = J[t] d[t-1] + r[t] from d[-1] = 0, added to h: the scan of `solve_body` alone."""
    s0, s1 = S * rank // size, S * (rank + 1) // size
    t0, t1 = min(T, s0 * n), min(T, s1 * n)
    width = B * ld
    rows = max(s1 - s0, 1) * width
    own = scratch[rank]
    state, product, start = own[:rows], own[rows : rows + max(rows, H * ld)], own[-2 * width :]
    zero = own[-2 * width - ld : -2 * width]
    if dense:
        dense_reduce(s0, s1, S, n, T, B, H, ld, panels, w, zero, g, r, state, product, ends, maps, alive, faded)
        barrier(sync, rank, size, 1)
        dense_carry(s0, s1, B, H, ld, ends, maps, alive, state, start)
        _roll(s0, s1, n, T, B, H, ld, panels, w, zero, g, r, state, product, h, True)
    else:
        diagonal_reduce(rank, t0, t1, width, diagonal, g, r, ends, maps)
        barrier(sync, rank, size, 1)
        diagonal_apply(rank, t0, t1, width, diagonal, g, r, ends, maps, state, h)


@jit(parallel=True)
def scan_region(size, dense, h, g, r, panels, w, diagonal, ends, maps, alive, scratch, sync, S, n, T, B, H, ld, faded):
    for rank in prange(size):
        scan_body(
            np.int64(rank), size, dense, h, g, r, panels, w, diagonal, ends, maps, alive, scratch, sync,
            S, n, T, B, H, ld, faded,
        )  # fmt: skip


class Scan:
    """One linear recurrence on threads: `run()` computes `d` (T,B,H) of d[t] = J[t] d[t-1] + r[t] from d[-1] = 0.

    J[t] = diag(g[t]) W, or diag(g[t] * W.diagonal()) where not `dense`; g, r (T,B,H), W (H,H), float32. S segments;
    one thread has no use for any, but the work stays the same. Where an element of d leaves [-1, 1] it is cut off,
    as a correction to a state is. faded=0 carries every map to the end of its segment.
    """

    def __init__(self, W: np.ndarray, g: np.ndarray, r: np.ndarray, threads: int, S: int, dense: bool = True,
                 faded: float = FADED):  # fmt: skip
        T, B, H = r.shape
        ld, n = round_up(H, WIDTH), -(-T // S)
        S = -(-T // n)
        own = max(S * (rank + 1) // threads - S * rank // threads for rank in range(threads))
        wide = lambda a: _padded(a, ld)  # noqa: E731
        self.team, self.shape, self.ld = Team(threads, scan_body, scan_region), r.shape, ld
        self.h, self.sync = aligned((T + 1) * B * ld), aligned(threads * LINE, np.int64)
        rows = max(own, 1) * B * ld
        scratch = aligned(threads * (rows + max(rows, H * ld) + ld + 2 * B * ld)).reshape(threads, -1)
        maps = aligned((S * H if dense else threads) * B * ld)
        diagonal = np.tile(wide(W.diagonal().reshape(1, 1, H).astype(np.float32)), B)
        self.arguments = (
            dense, self.h, wide(g), wide(r), pack(W), 0, diagonal, aligned(max(S, threads) * B * ld), maps,
            np.zeros(S * B, np.bool_), scratch, self.sync, S, n, T, B, H, ld, np.float32(faded),
        )  # fmt: skip

    def run(self) -> None:
        self.sync.fill(0)
        self.team.run(*self.arguments)

    @property
    def d(self) -> np.ndarray:
        """The result of the first run (each further run adds to it)."""
        T, B, H = self.shape
        return self.h.reshape(T + 1, B, self.ld)[1:, :, :H].copy()


def _padded(a: np.ndarray, ld: int) -> np.ndarray:
    """(T,B,H) with H padded to ld by zeros, flat."""
    T, B, H = a.shape
    out = aligned(T * B * ld)
    out.reshape(T, B, ld)[:, :, :H] = a
    return out
