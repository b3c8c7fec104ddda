"""What a machine's peaks are measured with: the kernels themselves, each repeated by itself, on one thread or on all.

The model predicts from these; so it predicts what these kernels can do here, not what a data sheet says.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from numba import prange

from rnnpar.kernels.activations import exp_inplace, scale_into, softmax_row, sum_of, tanh_inplace
from rnnpar.kernels.atomics import LINE, barrier, counter_barrier
from rnnpar.kernels.blas import one_blas_thread
from rnnpar.kernels.forward import SHORT, step
from rnnpar.kernels.jit import jit
from rnnpar.kernels.pointers import at, bare
from rnnpar.kernels.team import Team
from rnnpar.kernels.tile import WIDTH, aligned, multiply, round_up

SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # H of a square W, from a first-level cache's to memory's
ROWS = (1, 4, 16, 64)
STEP_ROWS = (1, 2, 4, 8, 16, 64)
SAMPLES = 7
SAMPLE_SECONDS = 1.5e-3


@jit()
def product_body(rank, size, repeat, a, rows, K, panels, zeros, out):
    for _ in range(repeat):
        for q in range(zeros.size // WIDTH):
            p, n = q * K * WIDTH, q * WIDTH
            multiply(a, 0, K, rows, K, panels[rank], p, zeros, n, 0, out[rank], n, zeros.size)


@jit(parallel=True)
def product_region(size, repeat, a, rows, K, panels, zeros, out):
    for rank in prange(size):
        product_body(rank, size, repeat, a, rows, K, panels, zeros, out)


@jit()
def steps_body(rank, size, repeat, rows, H, panels, states):
    """One time step after another, each from the last: what the chain costs, and not only its arithmetic."""
    panels, states = bare(panels), bare(states)
    Q = (H + WIDTH - 1) // WIDTH
    ld = Q * WIDTH
    for t in range(repeat):
        before, now = t % 2 * rows * ld, (t + 1) % 2 * rows * ld
        step(at(states[rank], before), ld, rows, H, at(panels[rank], 0), at(states[rank], now), ld, 0, Q, t)


@jit(parallel=True)
def steps_region(size, repeat, rows, H, panels, states):
    for rank in prange(size):
        steps_body(rank, size, repeat, rows, H, panels, states)


@jit()
def exchange_body(rank, size, repeat, sync, start, boards, seen):
    """Each thread writes its share of a board, meets the others, and reads theirs: a step without its arithmetic."""
    sync, boards, seen = bare(sync), bare(boards), bare(seen)
    elements = boards.shape[1]
    first, end = elements * rank // size, elements * (rank + 1) // size
    total = np.float32(0)
    for epoch in range(start, start + repeat):
        board = boards[epoch % 2]
        for i in range(first, end):
            board[i] = total
        barrier(sync, rank, size, epoch)
        for i in range(0, elements, 16):  # one element of each cache line brings the line
            total += board[i]
    seen[rank * LINE] = total


@jit(parallel=True)
def exchange_region(size, repeat, sync, start, boards, seen):
    for rank in prange(size):
        exchange_body(rank, size, repeat, sync, start, boards, seen)


@jit()
def barrier_body(rank, size, repeat, sync, start):
    sync = bare(sync)
    for epoch in range(start, start + repeat):
        barrier(sync, rank, size, epoch)


@jit(parallel=True)
def barrier_region(size, repeat, sync, start):
    for rank in prange(size):
        barrier_body(rank, size, repeat, sync, start)


@jit()
def counter_body(rank, size, repeat, sync, start):
    sync = bare(sync)
    for epoch in range(start, start + repeat):
        counter_barrier(sync, size, epoch)


@jit(parallel=True)
def counter_region(size, repeat, sync, start):
    for rank in prange(size):
        counter_body(rank, size, repeat, sync, start)


@jit()
def tanh_many(repeat, a):
    for _ in range(repeat):
        tanh_inplace(a)


@jit()
def softmax_many(repeat, o, y, rows):
    size = o.size // rows
    for _ in range(repeat):
        if size <= SHORT:  # as in forward.outputs
            exp_inplace(o)
            for r in range(rows):
                row = o[r * size : (r + 1) * size]
                scale_into(row, np.float32(1) / sum_of(row), y)
        else:
            softmax_row(o, y, True)


def seconds_of(call: Callable[[int], object]) -> float:
    """Seconds of one repetition of `call(repeat)`, repeated until a sample is long enough to time.

    The lower quartile of the samples: what other programs do meanwhile only ever makes a sample longer.
    """
    call(1)  # compiles, and brings the data near
    repeat = 1
    while True:
        start = time.perf_counter()
        call(repeat)
        took = time.perf_counter() - start
        if took >= SAMPLE_SECONDS:
            break
        repeat = max(repeat + 1, min(repeat * 10, int(repeat * SAMPLE_SECONDS / max(took, 1e-7) * 1.2)))
    samples = []
    for _ in range(SAMPLES if took < 0.05 else 3):
        start = time.perf_counter()
        call(repeat)
        samples.append((time.perf_counter() - start) / repeat)
    return sorted(samples)[len(samples) // 4]


def products(threads: int) -> Iterator[tuple[int, int, float]]:
    """(H, rows, seconds) of rows x H times H x H, each of `threads` threads at once on weights of its own."""
    team = Team(threads, product_body, product_region)
    for H in SIZES:
        width = round_up(H, WIDTH)
        panels = aligned(threads * width * H).reshape(threads, -1)
        zeros = aligned(width)
        for rows in ROWS:
            a, out = aligned(rows * H), aligned(threads * rows * width).reshape(threads, -1)
            yield H, rows, seconds_of(lambda n, a=a, r=rows, o=out: team.run(n, a, r, H, panels, zeros, o))  # noqa: B023


def steps(threads: int) -> Iterator[tuple[int, int, float]]:
    """(H, rows, seconds) of one step of the recurrence, W h and tanh, on each of `threads` threads at once."""
    team = Team(threads, steps_body, steps_region)
    for H in SIZES:
        width = round_up(H, WIDTH)
        panels = aligned(threads * width * H).reshape(threads, -1)
        for rows in STEP_ROWS:
            states = aligned(threads * 2 * rows * width).reshape(threads, -1)
            yield H, rows, seconds_of(lambda n, r=rows, s=states: team.run(n, r, H, panels, s))  # noqa: B023


def exchange_line(threads: int) -> tuple[float, float]:
    """(seconds a meeting, seconds an element) of threads that each write a share and then read all of it."""
    team = Team(threads, exchange_body, exchange_region)
    sync, seen, epoch = aligned(threads * LINE, np.int64), aligned(threads * LINE), 1
    boards = {}

    def call(n: int, size: int) -> None:
        nonlocal epoch
        if size not in boards:
            boards[size] = aligned(2 * size).reshape(2, size)
        team.run(n, sync, epoch, boards[size], seen)
        epoch += n

    return line(call)


def blas_products() -> Iterator[tuple[int, int, float]]:
    """(H, rows, seconds) of the same products by NumPy's BLAS on one thread."""

    def repeat(n: int, a: np.ndarray, w: np.ndarray) -> None:
        for _ in range(n):
            a @ w

    with one_blas_thread():
        for H in SIZES:
            w = np.zeros((H, H), np.float32).T
            for rows in ROWS:
                a = np.zeros((rows, H), np.float32)
                yield H, rows, seconds_of(lambda n, a=a, w=w: repeat(n, a, w))


def barrier_seconds(threads: int, kind: str = "flags") -> float:
    """Seconds of one barrier among `threads` threads: of a flag each, or of one "counter" for all."""
    sync, epoch = aligned(threads * LINE, np.int64), 1
    bodies = {"flags": (barrier_body, barrier_region), "counter": (counter_body, counter_region)}
    team = Team(threads, *bodies[kind])

    def call(n: int) -> None:
        nonlocal epoch
        team.run(n, sync, epoch)
        epoch += n

    return seconds_of(call)


def launch_seconds(threads: int, launcher: str | None = None) -> float:
    """Seconds to start `threads` threads on an empty body and to see them end; `launcher` as in Team, or its choice."""
    team = Team(threads, barrier_body, barrier_region)
    team.launcher = launcher or team.launcher
    sync = aligned(threads * LINE, np.int64)

    def call(n: int) -> None:
        for _ in range(n):
            team.run(0, sync, 1)

    return seconds_of(call)


def line(call: Callable[[int, int], object], small: int = 32, large: int = 8192) -> tuple[float, float]:
    """(seconds a call, seconds an element) of `call(repeat, elements)`: a line through two sizes."""
    low, high = seconds_of(lambda n: call(n, small)), seconds_of(lambda n: call(n, large))
    slope = max(0.0, (high - low) / (large - small))
    return max(0.0, low - slope * small), slope


def call_seconds(run: Callable[[np.ndarray], object]) -> float:
    """Seconds of one call of a runner of a network with one input, one unit and one output, for one step."""
    x = np.zeros((1, 1, 1), np.float32)

    def repeat(n: int) -> None:
        for _ in range(n):
            run(x)

    return seconds_of(repeat)


def tanh_line() -> tuple[float, float]:
    """The compiled tanh's (seconds a call, seconds an element)."""
    return line(lambda n, size: tanh_many(n, aligned(size)))


def softmax_line() -> tuple[float, float]:
    """The compiled softmax's (seconds a row, seconds an element)."""
    rows = 16

    def call(n: int, size: int) -> None:
        many = rows if size <= SHORT else 1
        softmax_many(max(1, n // many), aligned(many * size), aligned(size), many)

    return line(call)


def numpy_line(function: Callable[[np.ndarray], object]) -> tuple[float, float]:
    """(seconds a call, seconds an element) of a NumPy function of one array."""

    def call(n: int, size: int) -> None:
        a = np.zeros(size, np.float32)
        for _ in range(n):
            function(a)

    return line(call)


def fresh_memory_seconds(size: int = 1 << 22) -> float:
    """Seconds a byte to write an array for the first time, beyond writing it again: the system hands out pages."""
    fresh, again = [], []
    for _ in range(SAMPLES):
        start = time.perf_counter()
        a = np.empty(size, np.uint8)
        a.fill(1)
        middle = time.perf_counter()
        a.fill(2)
        fresh.append(middle - start)
        again.append(time.perf_counter() - middle)
        del a
    return max(0.0, statistics.median(fresh) - statistics.median(again)) / size
