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

from typing import Any

import numpy as np
from numba import carray

from rnnpar.kernels.activations import CONTRACT, REDUCE, tanh_inplace
from rnnpar.kernels.atomics import ZERO, meet, stopped
from rnnpar.kernels.forward import inputs, outputs
from rnnpar.kernels.jit import jit
from rnnpar.kernels.job import LINE, Job
from rnnpar.kernels.pointers import at, bits_of, view
from rnnpar.kernels.team import Region
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
    bits = bits_of(at(values, 0))
    most = np.int32(0)
    for i in range(values.size):
        most = max(most, bits[i] & np.int32(0x7FFFFFFF))
    return np.int32(most).view(np.float32)


@jit()
def _finite(values):
    """What is no finite number becomes 0."""
    for i in range(values.size):
        if not (abs(values[i]) <= np.float32(3e38)):
            values[i] = np.float32(0)


# --- evaluate: f, its slope and the residual, of all rows -------------------------------------------------------------
# From here on `job` holds z, h, g, r and all sizes (see FIELDS). Every loop that may be long ends where the call is
# given up.


@jit(inline="always")
def _times_w(job, a, rows, out):
    """out = W a, of `rows` rows; both arrays or pointers, rows ld apart."""
    for q in range(job.ld // WIDTH):
        multiply(a, 0, job.ld, rows, job.H, job.panels, job.w + q * job.H * WIDTH, job.zero, 0, ZERO, out, q * WIDTH,
                 job.ld)  # fmt: skip


@jit()
def evaluate(job, rank, r0, r1):
    """For the rows r0 to r1: r = tanh(z + W h[t-1]) - h[t] and g. Returns the largest |r| and the sum of r^2."""
    B, H, ld = job.B, job.H, job.ld
    largest, total = np.float32(0), 0.0
    for row in range(r0, r1, BLOCK):
        rows = min(BLOCK, r1 - row)
        if stopped(job.control, rank, rows * H * H):
            break
        for q in range(ld // WIDTH):
            place = row * ld + q * WIDTH
            multiply(job.h, row * ld, ld, rows, H, job.panels, job.w + q * H * WIDTH, job.z, place, ld, job.r, place,
                     ld)  # fmt: skip
        f = view(job.r, row * ld, rows * ld)
        tanh_inplace(f)
        _slope_and_residual(
            f, view(job.h, (row + B) * ld, rows * ld), view(job.g, row * ld, rows * ld), np.float32(job.keep)
        )
        largest = max(largest, _largest(f))
        total += _squares(f)
    return largest, total


# --- the dense scan: J[t] = diag(g[t]) W ------------------------------------------------------------------------------


@jit()
def _roll(job, rank, s0, s1, state, product, write):
    """state[s] = g[t] * (W state[s]) + r[t] through the segments s0 to s1 at once, as one batch of rows.

    state: a row a segment and sequence, what the segments start from, then what they end with. With `write`, h[t] is
    corrected on the way.
    """
    n, T, width = job.n, job.T, job.B * job.ld
    rows = (s1 - s0) * job.B
    for i in range(n):
        if stopped(job.control, rank, rows * job.H * job.H):
            return
        _times_w(job, state, rows, product)
        for s in range(s0, s1):
            t = s * n + i
            if t < T:
                here = (s - s0) * width
                d = view(state, here, width)
                _advance(view(job.g, t * width, width), view(product, here, width), view(job.r, t * width, width), d)
                if write:
                    _correct(view(job.h, (t + 1) * width, width), d)


@jit()
def _map(job, rank, s, j, image, product):
    """The matrix by which the end of segment s depends on its start; False where it has faded away.

    image: row i is where the unit vector e_i is carried, so this is H rows times W in every step.
    """
    B, H, ld = job.B, job.H, job.ld
    _fill(image, np.float32(0))
    for i in range(H):
        image[i * ld + i] = np.float32(1)
    for t in range(s * job.n, min(job.T, (s + 1) * job.n)):
        if stopped(job.control, rank, H * H * H):
            return False
        _times_w(job, image, H, product)
        slope = view(job.g, (t * B + j) * ld, ld)
        for i in range(H):
            _multiply_into(view(image, i * ld, ld), view(product, i * ld, ld), slope)
        if t % LOOK == 0 and _largest(image) < np.float32(job.faded):
            return False
    return True


@jit()
def dense_reduce(job, rank, s0, s1, state, product):
    """ends: where the segments s0 to s1 end from a zero start. maps: how their ends depend on their starts."""
    B, H, ld = job.B, job.H, job.ld
    width = B * ld
    _fill(state, np.float32(0))
    _roll(job, rank, s0, s1, state, product, False)
    _put(view(job.ends, s0 * width, (s1 - s0) * width), state)
    for s in range(max(s0, 1), min(s1, job.S - 1)):  # the first one's start is known, the last one's end
        for j in range(B):
            image = view(job.maps, (s * B + j) * H * ld, H * ld)
            job.alive[s * B + j] = _map(job, rank, s, j, image, product)


@jit()
def dense_carry(job, s0, s1, state, start):
    """state: what the segments s0 to s1 start from. Every thread goes through all segments before its own."""
    B, H, ld = job.B, job.H, job.ld
    width = B * ld
    _fill(start, np.float32(0))
    for s in range(s1):
        if s >= s0:
            _put(view(state, (s - s0) * width, width), start)
        after = view(start, width, width)
        _put(after, view(job.ends, s * width, width))
        if s > 0:
            for j in range(B):
                if job.alive[s * B + j] != 0:
                    for i in range(H):
                        image = view(job.maps, ((s * B + j) * H + i) * ld, ld)
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
def diagonal_reduce(job, rank, t0, t1):
    """Where this thread's steps end from a zero start, and the product of their a[t]; that one lies in `maps`."""
    width = job.B * job.ld
    end, factor, diagonal = (view(job.ends, rank * width, width), view(job.maps, rank * width, width),
                             view(job.diagonal, 0, width))  # fmt: skip
    _fill(end, np.float32(0))
    _fill(factor, np.float32(1))
    for t in range(t0, t1):
        _compose(view(job.g, t * width, width), diagonal, view(job.r, t * width, width), end, factor)


@jit()
def diagonal_apply(job, rank, t0, t1, state):
    """Carry the start over from the threads before, then run again, correcting h."""
    width = job.B * job.ld
    d, diagonal = view(state, 0, width), view(job.diagonal, 0, width)
    _fill(d, np.float32(0))
    for other in range(rank):
        for i in range(width):
            d[i] = job.maps[other * width + i] * d[i] + job.ends[other * width + i]
        _finite(d)
    for t in range(t0, t1):
        _recur(view(job.g, t * width, width), diagonal, view(job.r, t * width, width), d)
        _correct(view(job.h, (t + 1) * width, width), d)


# --- segments: each swept step by step, all of them at once -----------------------------------------------------------


@jit()
def sweep(job, rank, s0, s1, state, product, again):
    """h[t] = tanh(z[t] + W h[t-1]) through the segments s0 to s1 as one batch, from the starts in `state`.

    With `again`, it stops where no element of h changes by more than a rounding: from there on all is as it was.
    """
    n, T, H, ld, width = job.n, job.T, job.H, job.ld, job.B * job.ld
    rows = (s1 - s0) * job.B
    for i in range(n):
        if stopped(job.control, rank, rows * H * H):
            return
        for s in range(s0, s1):
            t = min(s * n + i, T - 1)
            _put(view(product, (s - s0) * width, width), view(job.z, t * width, width))
        for q in range(ld // WIDTH):
            at_q = q * WIDTH
            multiply(state, 0, ld, rows, H, job.panels, job.w + H * at_q, product, at_q, ld, product, at_q, ld)
        tanh_inplace(view(product, 0, rows * ld))
        same = again
        for s in range(s0, s1):
            t = s * n + i
            if t < T:
                now, there = view(product, (s - s0) * width, width), view(job.h, (t + 1) * width, width)
                same = same and _apart(there, now) <= ROUNDING
                _put(there, now)
        state, product = product, state
        if same:
            return


@jit()
def _resume(job, s0, s1, state, again):
    """The segments s0 to s1 are to start from where those before them ended; the first time, from zeros."""
    width = job.B * job.ld
    for s in range(s0, s1):
        start = view(state, (s - s0) * width, width)
        if again or s == 0:
            _put(start, view(job.h, s * job.n * width, width))
        else:
            _fill(start, np.float32(0))


@jit()
def _apart(a, b):
    """The largest |a - b|, of bits as in `_largest`."""
    most = np.int32(0)
    for i in range(a.size):
        most = max(most, np.float32(a[i] - b[i]).view(np.int32) & np.int32(0x7FFFFFFF))
    return np.int32(most).view(np.float32)


# --- the iteration ----------------------------------------------------------------------------------------------------

# What the regions below find in their job, beside forward.FIELDS and a network's: see the top of this file. w: where W
# begins among the panels; zero: a row of zeros; scratch: `room` elements a thread; noise: `signs` random signs.
FIELDS: dict[str, Any] = dict(
    z=np.float32, g=np.float32, r=np.float32, diagonal=np.float32, ends=np.float32, maps=np.float32,
    scratch=np.float32, noise=np.float32, zero=np.float32, alive=np.uint8, partial=np.float64, history=np.float64,
    found=np.float64, kind=0, w=0, layer=0, S=0, n=0, room=0, signs=0, most=0, fresh=0,
    keep=1.0, faded=0.0, rough=0.0, tolerance=0.0, small=0.0,
)  # fmt: skip


def solve_region(rank, size, job):
    """Iterate until the residual is at most `tolerance`, or `most` times; then h is f, one evaluation further on.

    history[k] is the largest |r| after k corrections, and history[most + 1] how many there were; [most + 2] is the
    root mean square of the last r. All threads see the same residuals, and so decide alike. g and r stay those of
    the last evaluation.
    """
    S, n, T, B, H, ld, most = job.S, job.n, job.T, job.B, job.H, job.ld, job.most
    partial, history = job.partial, job.history
    s0, s1 = S * rank // size, S * (rank + 1) // size
    t0, t1 = min(T, s0 * n), min(T, s1 * n)
    width = B * ld
    rows = max(s1 - s0, 1) * width
    own = view(job.scratch, rank * job.room, job.room)
    state, product, start = own[:rows], own[rows : rows + max(rows, H * ld)], own[job.room - 2 * width :]
    epoch = corrections = stalled = ZERO
    best = np.inf
    # Corrections before the first evaluation: what is known to be only a guess costs as much to evaluate as to sweep.
    unseen = min(2, S, most) if job.kind == SEGMENTS and job.fresh else 0
    while True:
        residual, total = np.inf, 0.0
        if corrections >= unseen:
            mine = (2 * rank + corrections % 2) * LINE
            partial[mine], partial[mine + 1] = evaluate(job, rank, t0 * B, t1 * B)
            epoch = meet(job, rank, size, epoch)
            if stopped(job.control, rank, ZERO):
                return
            residual = 0.0
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
            best, stalled = residual, ZERO
        if not residual > job.tolerance or corrections == most or (stalled >= STALLED and residual < job.small):
            break
        if job.kind == JACOBI:
            _add(view(job.h, (t0 + 1) * width, (t1 - t0) * width), view(job.r, t0 * width, (t1 - t0) * width))
        elif job.kind == DIAGONAL:
            diagonal_reduce(job, rank, t0, t1)
            epoch = meet(job, rank, size, epoch)
            diagonal_apply(job, rank, t0, t1, state)
        elif job.kind == DENSE:
            dense_reduce(job, rank, s0, s1, state, product)
            epoch = meet(job, rank, size, epoch)
            dense_carry(job, s0, s1, state, start)
            _roll(job, rank, s0, s1, state, product, True)
        else:
            again = corrections > 0 or unseen == 0
            _resume(job, s0, s1, state, again)
            epoch = meet(job, rank, size, epoch)  # a segment's start is the one before's end, soon swept
            sweep(job, rank, s0, s1, state, product, again)
        epoch = meet(job, rank, size, epoch)
        corrections += 1
    _add(view(job.h, (t0 + 1) * width, (t1 - t0) * width), view(job.r, t0 * width, (t1 - t0) * width))
    if rank == 0:
        history[most + 1] = corrections
        history[most + 2] = np.sqrt(total / (T * B * H))


# --- how errors grow: the exponent, and the error itself --------------------------------------------------------------


def growth_region(rank, size, job):
    """How each segment carries errors on, in rows of `found` (6,S*B): what is new at its end, and what passes through.

    Two tangents run along the segment, and through the WARM steps before it. The first begins with 0 and gathers what
    the residuals r and the rounding (`noise`) of each step add, `rough` times a sign before the tanh: the linear
    estimate of the error. Rows START and ERROR are its root mean square over H where the segment begins and ends; row
    WITHIN is the sum of its mean squares over all steps, since what has grown may have faded again at the end. The
    second has any direction, and turns towards the one that grows fastest: the logarithm of its growth (row GROWTH),
    a step, is the largest Lyapunov exponent, and row THROUGH is the sum over the steps of its growth so far, squared.
    It stops early where nothing is left of any error. Row SINCE is of use here only.
    """
    S, n, T, B, H, ld = job.S, job.n, job.T, job.B, job.H, job.ld
    s0, s1 = S * rank // size, S * (rank + 1) // size
    width = B * ld
    half = (s1 - s0) * width  # the first tangents' rows, then the second ones'
    rows, both = (s1 - s0) * B, True
    own, noise, found = (view(job.scratch, rank * job.room, job.room), view(job.noise, 0, job.signs),
                         carray(job.found, (6, S * B)))  # fmt: skip
    state, product = own[: 2 * half], own[2 * half : 4 * half]
    _fill(state, np.float32(0))
    for row in range(rows):
        _put(view(state, half + row * ld, H), view(noise, row % LOOK, H))
        found[:, s0 * B + row] = 0.0
    for i in range(-WARM, n):
        if stopped(job.control, rank, 2 * rows * H * H):
            return
        if i == 0:
            for row in range(rows):
                found[START, s0 * B + row] = np.sqrt(_squares(view(state, row * ld, H)) / H)
                _normalise(view(state, half + row * ld, ld))
        _times_w(job, state, (1 + both) * rows, product)
        for s in range(s0, s1):
            t = s * n + i
            if 0 <= t < T:
                here, slope = (s - s0) * width, view(job.g, t * width, width)
                luck, new = view(noise, 37 * t % (job.signs - width), width), view(job.r, t * width, width)
                _gather(
                    slope,
                    view(product, here, width),
                    new,
                    luck,
                    view(state, here, width),
                    np.float32(job.keep),
                    np.float32(job.rough),
                )
                if both:
                    _stretch(
                        slope, view(product, half + here, width), view(state, half + here, width), np.float32(job.keep)
                    )
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


# --- before and after: what needs no iteration ------------------------------------------------------------------------


def inputs_region(rank, size, job):
    """z = b + U x, or U h of the layer below, which is still in h behind the known state; steps shared out."""
    T, B, width = job.T, job.B, job.B * job.ld
    t0, t1 = T * rank // size, T * (rank + 1) // size
    K = job.I if job.layer == 0 else job.H
    block = max(BLOCK // B, 1)
    for t in range(t0, t1, block):
        steps = min(block, t1 - t)
        if stopped(job.control, rank, steps * B * K * job.H):
            return
        below, z = at(job.h, (t + 1) * width), at(job.z, t * width)
        inputs(job, job.layer, t, ZERO, below, steps, B, z, ZERO, job.ld // WIDTH)


def outputs_region(rank, size, job):
    """y = softmax(c + V h) for the T steps, rows shared out; h has its known state in front."""
    r0, r1 = job.T * job.B * rank // size, job.T * job.B * (rank + 1) // size
    logits = at(job.logits, rank * job.block * job.ldo)
    outputs(job, rank, at(job.h, job.B * job.ld), r0, r1, logits, ZERO, ZERO, job.B)


# --- the scan alone, to be measured -----------------------------------------------------------------------------------


def scan_region(rank, size, job):
    """One linear recurrence, d[t] = J[t] d[t-1] + r[t] from d[-1] = 0, added to h: the scan of `solve_region` alone."""
    S, n, T, H, ld, width = job.S, job.n, job.T, job.H, job.ld, job.B * job.ld
    s0, s1 = S * rank // size, S * (rank + 1) // size
    t0, t1 = min(T, s0 * n), min(T, s1 * n)
    rows = max(s1 - s0, 1) * width
    own = view(job.scratch, rank * job.room, job.room)
    state, product, start = own[:rows], own[rows : rows + max(rows, H * ld)], own[job.room - 2 * width :]
    if job.kind == DENSE:
        dense_reduce(job, rank, s0, s1, state, product)
        meet(job, rank, size, ZERO)
        dense_carry(job, s0, s1, state, start)
        _roll(job, rank, s0, s1, state, product, True)
    else:
        diagonal_reduce(job, rank, t0, t1)
        meet(job, rank, size, ZERO)
        diagonal_apply(job, rank, t0, t1, state)


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
        rows = max(own, 1) * B * ld
        room = rows + max(rows, H * ld) + 2 * B * ld
        diagonal = np.tile(_padded(W.diagonal().reshape(1, 1, H).astype(np.float32), ld), B)
        self.shape, self.ld, self.h = r.shape, ld, aligned((T + 1) * B * ld)
        fields = FIELDS | dict(
            h=self.h, g=_padded(g, ld), r=_padded(r, ld), panels=pack(W), zero=aligned(ld), diagonal=diagonal,
            ends=aligned(max(S, threads) * B * ld), maps=aligned((S * H if dense else threads) * B * ld),
            alive=np.zeros(S * B, np.uint8), scratch=aligned(threads * room), room=room, S=S, n=n, T=T, B=B, H=H, ld=ld,
            kind=DENSE if dense else DIAGONAL, faded=float(faded),
        )  # fmt: skip
        self.region = Region(scan_region, Job(threads, **fields))

    def run(self) -> None:
        self.region.run()

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
