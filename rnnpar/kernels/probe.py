"""What a machine's peaks are measured with: the kernels themselves, each repeated by itself, on one thread or on all.

The model predicts from these; so it predicts what these kernels can do here, not what a data sheet says.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from rnnpar.kernels.activations import exp_inplace, scale_into, softmax_row, sum_of, tanh_inplace
from rnnpar.kernels.atomics import ZERO, barrier, counter_barrier, meet
from rnnpar.kernels.blas import one_blas_thread
from rnnpar.kernels.forward import SHORT, step
from rnnpar.kernels.jit import jit
from rnnpar.kernels.job import LINE, Job
from rnnpar.kernels.pointers import at
from rnnpar.kernels.team import Region
from rnnpar.kernels.tile import WIDTH, aligned, multiply, round_up

SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # H of a square W, from a first-level cache's to memory's
ROWS = (1, 4, 16, 64)
STEP_ROWS = (1, 2, 4, 8, 16, 64)
SAMPLES = 7
SAMPLE_SECONDS = 1.5e-3
LONG_S = 5e-3  # of a repetition: three samples of such are enough


def product_region(rank, size, job):
    ld, K = job.ld, job.K
    panels, out = at(job.panels, rank * ld * K), at(job.out, rank * job.rows * ld)
    for _ in range(job.repeat):
        for q in range(ld // WIDTH):
            p, n = q * K * WIDTH, q * WIDTH
            multiply(job.a, 0, K, job.rows, K, panels, p, job.zeros, n, ZERO, out, n, ld)


def steps_region(rank, size, job):
    """One time step after another, each from the last: what the chain costs, and not only its arithmetic."""
    H, ld, rows = job.H, job.ld, job.rows
    panels, states = at(job.panels, rank * ld * H), at(job.states, rank * 2 * rows * ld)
    for t in range(job.repeat):
        before, now = at(states, t % 2 * rows * ld), at(states, (t + 1) % 2 * rows * ld)
        step(before, ld, rows, H, panels, now, ld, ZERO, ld // WIDTH, t)


def exchange_region(rank, size, job):
    """Each thread writes its share of a board, meets the others, and reads theirs: a step without its arithmetic.

    The threads are numbers `first` to `first + size` of `everyone`, which may be those of several processes; sync: a
    line of flags each, that say epoch `start` - 1; boards: (2, elements); seen: a line a thread.
    """
    elements, number = job.elements, job.first + rank
    first, end = elements * number // job.everyone, elements * (number + 1) // job.everyone
    total = np.float32(0)
    for epoch in range(job.start, job.start + job.repeat):
        board = at(job.boards, epoch % 2 * elements)
        for i in range(first, end):
            board[i] = total
        barrier(job.sync, number, job.everyone, epoch, job.control, rank)
        for i in range(0, elements, 16):  # one element of each cache line brings the line
            total += board[i]
    job.seen[number * LINE] = total


def barrier_region(rank, size, job):
    for epoch in range(job.repeat):
        meet(job, rank, size, epoch)


def counter_region(rank, size, job):
    for epoch in range(1, 1 + job.repeat):
        counter_barrier(job.counter, rank, size, epoch, job.control)


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
    for _ in range(SAMPLES if took < LONG_S else 3):
        start = time.perf_counter()
        call(repeat)
        samples.append((time.perf_counter() - start) / repeat)
    return sorted(samples)[len(samples) // 4]


def products(threads: int) -> Iterator[tuple[int, int, float]]:
    """(H, rows, seconds) of rows x H times H x H, each of `threads` threads at once on weights of its own."""
    for H in SIZES:
        for rows in ROWS:
            yield H, rows, seconds_of(product(threads, H, rows))


def product(threads: int, H: int, rows: int) -> Callable[[int], None]:
    """What repeats one such product so many times."""
    ld = round_up(H, WIDTH)
    job = Job(threads, a=aligned(rows * H), panels=aligned(threads * ld * H), zeros=aligned(ld),
              out=aligned(threads * rows * ld), repeat=0, rows=rows, K=H, ld=ld)  # fmt: skip
    return repeated(Region(product_region, job))


def steps(threads: int) -> Iterator[tuple[int, int, float]]:
    """(H, rows, seconds) of one step of the recurrence, W h and tanh, on each of `threads` threads at once."""
    region = Region(steps_region, Job(threads, panels=np.float32, states=np.float32, repeat=0, rows=0, H=0, ld=0))
    for H in SIZES:
        ld = round_up(H, WIDTH)
        region.job.set(panels=aligned(threads * ld * H), H=H, ld=ld)
        for rows in STEP_ROWS:
            region.job.set(states=aligned(threads * 2 * rows * ld), rows=rows)
            yield H, rows, seconds_of(repeated(region))


def repeated(region: Region) -> Callable[[int], None]:
    """Run a region whose job repeats its work as many times as it is told."""

    def call(n: int) -> None:
        region.job.set(repeat=n)
        region.run()

    return call


class Exchange:
    """`exchange(n)`: so many meetings of `threads` threads, numbers `first` and on of `everyone`.

    boards: (2, elements); sync: a line of flags for each of `everyone`, zeros, which they share.
    """

    def __init__(self, threads: int, boards: np.ndarray, sync: np.ndarray, first: int, everyone: int):
        job = Job(threads, boards=boards, elements=boards.shape[1], sync=sync, seen=aligned(everyone * LINE), start=1,
                  repeat=0, first=first, everyone=everyone)  # fmt: skip
        self.region, self.epoch = Region(exchange_region, job), 1

    def __call__(self, n: int) -> None:
        self.region.job.set(start=self.epoch, repeat=n)
        self.region.run()
        self.epoch += n


def exchange_line(threads: int) -> tuple[float, float]:
    """(seconds a meeting, seconds an element) of threads that each write a share and then read all of it."""
    exchanges: dict[int, Exchange] = {}

    def call(n: int, size: int) -> None:
        if size not in exchanges:
            sync = aligned(threads * LINE, np.int64)
            exchanges[size] = Exchange(threads, aligned(2 * size).reshape(2, size), sync, 0, threads)
        exchanges[size](n)

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
    counter = aligned(LINE, np.int64)
    region = Region({"flags": barrier_region, "counter": counter_region}[kind], Job(threads, repeat=0, counter=counter))

    def call(n: int) -> None:
        counter.fill(0)
        region.job.set(repeat=n)
        region.run()

    return seconds_of(call)


def launch_seconds(threads: int) -> float:
    """Seconds of a parallel region of `threads` threads that have nothing to do."""
    region = Region(barrier_region, Job(threads, repeat=0))

    def call(n: int) -> None:
        for _ in range(n):
            region.run()

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
