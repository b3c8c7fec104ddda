"""A team of threads that surely run at the same time: what code that waits for other threads has to have.

Numba's prange promises no such thing. With the OpenMP layer and as many threads as there are parts, every part does
get a thread of its own, and starting them costs microseconds; with TBB, or with OpenMP held to fewer threads than
asked for, parts queue up behind each other, and one that waits for a later one waits for ever. The workqueue layer
starts its parts together, but aborts the process when a second Python thread comes. So: OpenMP where a trial shows
that the parts meet, and otherwise plain Python threads, which run compiled code at the same time since it holds no
GIL; they take some tens of microseconds to start, and are always right.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
from numba import prange

from rnnpar.kernels import trace
from rnnpar.kernels.atomics import LINE, fetch_add, load_acquire, yield_core
from rnnpar.kernels.jit import jit

TRIAL_SECONDS = 1.0  # how long the parts of a trial wait for each other: only ever reached where they never meet


class Team:
    """`size` threads for `body(rank, size, *arguments)`; `launcher`, what starts them: "caller", "openmp" or "python".

    `region` is the same body inside a prange: `for rank in prange(size): body(rank, size, *arguments)`.
    `marks`, with tracing, is what a body takes as its last argument, `trace`; without, it is None.
    """

    def __init__(self, size: int, body: Callable[..., None], region: Callable[..., None], traced: bool = False):
        self.size = size
        self.body = body
        self.region = region
        self.marks = trace.buffer(size) if traced else None
        self.launcher = "caller" if size == 1 else "openmp" if openmp_meets(size) else "python"

    def traced(self, *arguments: Any) -> dict[str, Any]:
        """`run` with the marks as last argument; returns what a runner tells as `info`: {"trace": ...}, or nothing."""
        if self.marks is None:
            self.run(*arguments, None)
            return {}
        self.marks[:, 0] = 0
        start = time.clock_gettime_ns(trace.CLOCK)
        self.run(*arguments, self.marks)
        return {"trace": trace.Trace.of(self.marks, start, time.clock_gettime_ns(trace.CLOCK))}

    def run(self, *arguments: Any) -> None:
        """Run the body once on every thread, and return when all have ended."""
        if self.launcher == "caller":
            self.body(0, 1, *arguments)
        elif self.launcher == "openmp":
            before = numba.get_num_threads()
            if before != self.size:
                numba.set_num_threads(self.size)
            try:
                self.region(self.size, *arguments)
            finally:
                if before != self.size:
                    numba.set_num_threads(before)
        else:
            others = [_pool(self.size).submit(self.body, rank, self.size, *arguments) for rank in range(1, self.size)]
            self.body(0, self.size, *arguments)
            for other in others:
                other.result()


_pool_lock = threading.Lock()


def _pool(size: int) -> ThreadPoolExecutor:
    """Threads of this calling thread's own, so that two calls at once never queue up behind each other."""
    store = _pools.__dict__
    if size not in store:
        store[size] = ThreadPoolExecutor(size - 1, thread_name_prefix="rnnpar")
    return store[size]


_pools = threading.local()


@cache
def openmp_meets(size: int) -> bool:
    """Whether `size` parts of a parallel region run at the same time here: by OpenMP, and they met in a trial."""
    if size > numba.config.NUMBA_NUM_THREADS:
        return False
    with _pool_lock:
        arrived, met = np.zeros(LINE, np.int64), np.zeros(size, np.int64)
        try:
            before = numba.get_num_threads()  # starts the threading layer, so that its name is known
        except ValueError:  # no layer of the kind that NUMBA_THREADING_LAYER asks for
            return False
        if numba.threading_layer() != "omp":
            return False
        numba.set_num_threads(size)
        try:
            _trial(size, arrived, met, int(TRIAL_SECONDS * 1e6))
        finally:
            numba.set_num_threads(before)
    return bool(met.all())


@jit()
def _meet(rank, size, arrived, met, yields):
    fetch_add(arrived, 0, 1)
    while load_acquire(arrived, 0) < size and yields > 0:
        yield_core()
        yields -= 1
    met[rank] = load_acquire(arrived, 0) >= size


@jit(parallel=True)
def _trial(size, arrived, met, yields):
    for rank in prange(size):
        _meet(rank, size, arrived, met, yields)
