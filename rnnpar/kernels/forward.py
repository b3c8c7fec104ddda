"""The parts of a forward pass that every CPU method is put together from, each over a share of the work.

A sequence is taken a chunk of time steps at a time, so that a chunk's hidden states stay in the core's own cache
from the product that begins them to the softmax that ends them, and so that memory does not grow with T:

    inputs    states[r] = b + U x[r]                     all rows of the chunk (a row: one sequence at one step)
    step      states[t] = tanh(states[t] + W states[t-1])   one time step after another
    outputs   y[r] = softmax(c + V states[r])            all rows of the chunk

Each takes a range of panels [q0, q1) or of rows [r0, r1), which is how threads share it. Arrays are flat float32;
`count` is how many sequences of the batch are meant (all B, or a slice), `ld` a row of states, H padded to panels.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import numpy as np
from numba import carray

from rnnpar.kernels.activations import exp_inplace, scale_into, softmax_row, sum_of, tanh_inplace
from rnnpar.kernels.jit import jit
from rnnpar.kernels.pointers import at, bare, beyond, view
from rnnpar.kernels.tile import ROWS, WIDTH, Packed, aligned, multiply, round_up, tile_1_wide, tiles
from rnnpar.kernels.trace import DONE, INPUTS, OUTPUTS, STEPS, mark
from rnnpar.network import RNN

# float32 elements of one chunk's states, of which there are two: a quarter of what W has, within these bounds. Each
# chunk reads all of U and V once, so that short chunks of a large network would keep throwing W out of the cache.
STATES = (64 * 1024, 1024 * 1024)
# The same of one block of logits. V is read once for each block, so the more bytes a row of V has, the larger a block
# is worth its way out of the core's own cache: 1,024 elements for each of H, within these bounds.
LOGITS = (128 * 1024, 512 * 1024)
# Weights of a step up to which one row meets two panels at once: each h[k] is then fetched once for both, which is what
# counts in a first-level cache. Farther away it costs 2 to 5% instead, where two streams of weights come from L2.
NEAR = 32 * 1024
POOL = 2  # results that a runner keeps for reuse: a caller often holds the last one during the next call
SHORT = 512  # outputs up to which exp takes a block of rows in one go, since starting a row costs more than its exp


@jit()
def inputs(x, x0, step_stride, row_stride, steps, count, K, panels, p0, bias, b0, states, s0, ld, q0, q1):
    """states[s0 + (t * count + j) * ld] = b + U x[x0 + t * step_stride + j * row_stride], panels q0 to q1."""
    for q in range(q0, q1):
        p, b, s = p0 + q * K * WIDTH, b0 + q * WIDTH, s0 + q * WIDTH
        if step_stride == count * row_stride:  # the rows lie one behind the other: one product
            multiply(x, x0, row_stride, steps * count, K, panels, p, bias, b, 0, states, s, ld)
        elif steps > count:  # a slice of a batch: one product a sequence, or one a step, whichever has more rows
            for j in range(count):
                a = x0 + j * row_stride
                multiply(x, a, step_stride, steps, K, panels, p, bias, b, 0, states, s + j * ld, count * ld)
        else:
            for t in range(steps):
                a = x0 + t * step_stride
                multiply(x, a, row_stride, count, K, panels, p, bias, b, 0, states, s + t * count * ld, ld)


@jit()
def step(h, lda, count, H, w, s, ld, q0, q1, t):
    """s = tanh(s + W h), panels q0 to q1 of each of the `count` rows. h, w, s: pointers, w to W's first panel.

    Every other step t goes through the panels backwards, as a ploughman turns at the end of a furrow: where W is
    larger than a cache, the panels used last are still there, and going round and round would always miss them.
    """
    accumulate(h, lda, count, H, 0, H, w, s, ld, q0, q1, t % 2, abreast(count, H, q1 - q0))
    tanh_panels(s, ld, count, q0, q1)


@jit(inline="always")
def abreast(count, H, n):
    """How many of a step's `n` panels are taken at once: two where one row meets weights that are near, else one."""
    return 2 if count == 1 and n * WIDTH * H <= NEAR else 1


@jit()
def accumulate(h, lda, count, H, k0, k1, w, s, ld, q0, q1, backwards, unit):
    """s += W[:, k0:k1] h[k0:k1] for `count` rows and the panels q0 to q1, `unit` (1, or 2) at once."""
    if k0 == k1:
        return
    h, n = beyond(h, k0), q1 - q0
    pairs = n // 2 if unit == 2 else 0
    for i in range(pairs):
        q = q1 - 2 - 2 * i if backwards else q0 + 2 * i
        place = beyond(s, q * WIDTH)
        tile_1_wide(h, beyond(w, (q * H + k0) * WIDTH), H * WIDTH, k1 - k0, place, place)
    for i in range(2 * pairs, n):
        q = q1 - 1 - i if backwards else q0 + i
        place = beyond(s, q * WIDTH)
        tiles(h, lda, count, beyond(w, (q * H + k0) * WIDTH), k1 - k0, place, ld, place, ld)


@jit()
def tanh_panels(s, ld, count, q0, q1):
    """s = tanh(s), panels q0 to q1 of each of the `count` rows."""
    if (q1 - q0) * WIDTH == ld:  # whole rows: they lie one behind the other
        tanh_inplace(carray(s, count * ld))
    else:
        for j in range(count):
            tanh_inplace(carray(beyond(s, j * ld + q0 * WIDTH), (q1 - q0) * WIDTH))


@jit(inline="always")
def outputs(states, s0, ld, r0, r1, panels, p0, bias, b0, logits, block, y, t0, first, count, B, sizes):
    """y = softmax(c + V states) for the rows r0 to r1 of the chunk that begins at step t0, `block` rows at a time."""
    _, _, H, O, calm = sizes
    q1 = (O + WIDTH - 1) // WIDTH
    together = calm != 0 and O <= SHORT
    for r in range(r0, r1, block):
        rows = min(block, r1 - r)
        output_logits(states, s0 + r * ld, ld, rows, H, panels, p0, bias, b0, logits, O, 0, q1)
        if together:
            exp_inplace(view(logits, 0, rows * q1 * WIDTH))
        for i in range(rows):
            output_row(logits, i, together, y, t0, r + i, first, count, B, O, calm)


@jit(inline="always")
def output_logits(states, s0, ld, rows, H, panels, p0, bias, b0, logits, O, q0, q1):
    """logits = c + V states for `rows` rows from states[s0] on, panels q0 to q1."""
    ldo = (O + WIDTH - 1) // WIDTH * WIDTH
    for q in range(q0, q1):
        p, b = p0 + q * H * WIDTH, b0 + q * WIDTH
        multiply(states, s0, ld, rows, H, panels, p, bias, b, 0, logits, q * WIDTH, ldo)


@jit(inline="always")
def output_row(logits, i, is_exp, y, t0, r, first, count, B, O, calm):
    """y = softmax of the i-th row of logits, or of what is exp of them; row r of the chunk that begins at step t0."""
    ldo = (O + WIDTH - 1) // WIDTH * WIDTH
    t, j = divmod(r, count)
    row, into = view(logits, i * ldo, ldo), view(y, ((t0 + t) * B + first + j) * O, O)
    if is_exp:
        scale_into(row, np.float32(1) / sum_of(row), into)
    else:
        softmax_row(row, into, calm)


@jit()
def sequences(x, h0, y, h, panels, bias, table, states, logits, block, chunk, T, B, first, count, sizes, rank, trace):
    """The whole forward pass of `count` sequences of a batch of B, from number `first`, by one thread.

    states: (L, 2, chunk * count * ld), logits: (block * ldo), both flat; sizes as in Plan. Chunks alternate
    between the two halves of `states`, so that the last state of one is there when the next begins. `rank` and
    `trace`: as trace.mark takes them.
    """
    x, h0, y, h, panels, bias = bare(x), bare(h0), bare(y), bare(h), bare(panels), bare(bias)
    table, states, logits = bare(table), bare(states), bare(logits)
    L, I, H, _, _ = sizes
    Q = (H + WIDTH - 1) // WIDTH
    ld = Q * WIDTH
    half = chunk * count * ld
    previous = 0
    for t0 in range(0, T, chunk):
        steps = min(chunk, T - t0)
        parity = (t0 // chunk) % 2
        for l in range(L):
            u, w, b = table[l]
            s0 = (2 * l + parity) * half
            mark(trace, rank, INPUTS)
            if l == 0:
                inputs(x, (t0 * B + first) * I, B * I, I, steps, count, I, panels, u, bias, b, states, s0, ld, 0, Q)
            else:
                below = (2 * (l - 1) + parity) * half
                inputs(states, below, count * ld, ld, steps, count, H, panels, u, bias, b, states, s0, ld, 0, Q)
            mark(trace, rank, STEPS)
            if t0 == 0:
                step(at(h0, (l * B + first) * H), H, count, H, at(panels, w), at(states, s0), ld, 0, Q, 0)
            else:
                before = at(states, (2 * l + 1 - parity) * half + previous)
                step(before, ld, count, H, at(panels, w), at(states, s0), ld, 0, Q, 0)
            for t in range(1, steps):
                now = s0 + t * count * ld
                step(at(states, now - count * ld), ld, count, H, at(panels, w), at(states, now), ld, 0, Q, t)
        v, _, c = table[L]
        top = (2 * (L - 1) + parity) * half
        mark(trace, rank, OUTPUTS)
        outputs(states, top, ld, 0, steps * count, panels, v, bias, c, logits, block, y, t0, first, count, B, sizes)
        previous = (steps - 1) * count * ld
    last_states(states, parity, half, previous, ld, h, first, count, B, L, H)
    mark(trace, rank, DONE)


@jit(inline="always")
def copy(source, s, target, t, size):
    """target[t : t + size] = source[s : s + size], without the size check, whose message costs 4 s to compile."""
    for i in range(size):
        target[t + i] = source[s + i]


@jit(inline="always")
def last_states(states, parity, half, previous, ld, h, first, count, B, L, H):
    """h (L,B,H) from the last step of the last chunk, for the sequences first to first + count."""
    for l in range(L):
        for j in range(count):
            copy(states, (2 * l + parity) * half + previous + j * ld, h, (l * B + first + j) * H, H)


@dataclass(frozen=True)
class Plan:
    """Sizes of one call: `chunk` time steps at a time, `block` rows of logits at a time, and the buffers' lengths."""

    sizes: tuple[int, int, int, int, int]  # L, I, H, O, and 1 where the network is calm (tile.Packed)
    T: int
    B: int
    count: int  # sequences that one thread takes through all the steps
    chunk: int
    block: int
    pool: list[np.ndarray] = field(default_factory=list, compare=False)  # results that were handed out

    @classmethod
    def of(cls, net: RNN, packed: Packed, T: int, B: int, count: int) -> Plan:
        """Chunk and block so that states and logits stay near the core, and weights need not be read too often."""
        ld, ldo = round_up(net.hidden_size, WIDTH), round_up(net.output_size, WIDTH)
        states = min(max(STATES[0], net.hidden_size**2 // 4), STATES[1])
        chunk = min(T, max(1, states // (count * ld)))
        logits = min(max(LOGITS[0], 1024 * net.hidden_size), LOGITS[1])
        block = min(round_up(chunk * count, ROWS), max(ROWS, logits // ldo // ROWS * ROWS), 64 // ROWS * ROWS)
        sizes = (net.num_layers, net.input_size, net.hidden_size, net.output_size, int(packed.calm))
        return cls(sizes, T, B, count, chunk, block)

    def states(self, copies: int = 1) -> np.ndarray:
        """Room for the hidden states of two chunks of every layer, (copies, elements)."""
        size = self.sizes[0] * 2 * self.chunk * self.count * round_up(self.sizes[2], WIDTH)
        return aligned(copies * size).reshape(copies, size)

    def logits(self, copies: int = 1) -> np.ndarray:
        """Room for one block of logits, (copies, elements)."""
        size = self.block * round_up(self.sizes[3], WIDTH)
        return aligned(copies * size).reshape(copies, size)

    def results(self) -> tuple[np.ndarray, np.ndarray]:
        """y (T,B,O) and h (L,B,H), not yet filled; the caller's own.

        An array that was handed out before and that nobody holds any more is handed out again: the system would
        otherwise take back large ones and give them out as new pages, which take longer to come than softmax does.
        """
        L, _, H, O, _ = self.sizes
        y = take_free(self.pool)
        if y is None:
            y = np.empty((self.T, self.B, O), np.float32)
            if len(self.pool) < POOL:
                self.pool.append(y)
        return y, np.empty((L, self.B, H), np.float32)


def take_free(pool: list[np.ndarray]) -> np.ndarray | None:
    """An array of the pool that nobody else holds, nor a view of it; or None."""
    for index in range(len(pool)):
        if sys.getrefcount(pool[index]) <= FREE:
            return pool[index]
    return None


# What Python counts for an array that only its pool holds: it differs between versions of Python, so it is looked up.
FREE = (lambda pool: sys.getrefcount(pool[0]))([np.empty(0)])


class OneThread:
    """The compiled forward pass on the calling thread: `forward(x, h0)`. Buffers stay for the next call's shape."""

    def __init__(self, net: RNN, dtype: str):
        self.net = net
        self.packed = Packed.of(net, dtype)
        self.plan: Plan | None = None

    def __call__(self, x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        T, B, _ = x.shape
        if self.plan is None or (self.plan.T, self.plan.B) != (T, B):
            self.plan = Plan.of(self.net, self.packed, T, B, B)
            self.states, self.logits = self.plan.states()[0], self.plan.logits()[0]
        plan, packed = self.plan, self.packed
        y, h = plan.results()
        sequences(
            x.ravel(), h0.ravel(), y.ravel(), h.ravel(), packed.panels, packed.bias, packed.table,
            self.states, self.logits, plan.block, plan.chunk, T, B, 0, B, plan.sizes, 0, None,
        )  # fmt: skip
        return y, h
