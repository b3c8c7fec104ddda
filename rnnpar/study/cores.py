"""Are this machine's cores whole? Asked between rounds of samples, so that a time is not taken for what it is not.

The two cores of a virtual machine may for a while be the two halves of one: the host has moved them, and the system
inside sees nothing of it. All threads together are then hardly faster than one, for tenths of a second or for minutes;
a program that computes beside the measurement does the same. So a product that lives in the nearest cache is timed on
one core, and then on all at once, by threads that each belong to one: that takes hardly longer where all are whole.

A core may also have a half taken away by another machine of the same host: then it is slower than it was when the
peaks were measured, alone or beside the others, and in a step's chain by more than in a product. Such a core is not
whole either. And the host may move one core far from another: each computes as ever, but a meeting of the two takes
four times as long.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from rnnpar import machine, peaks
from rnnpar.kernels import probe
from rnnpar.kernels.job import LINE
from rnnpar.kernels.tile import aligned

SIZE = 64  # H and rows of the product: its 16 KiB of weights stay in a first-level cache
LONG_S = 0.5e-3  # of a try, and
START_S = 50e-6  # as much longer for each core, since threads start one after another
SLOW = 1.15  # one core's time over what the peaks say; undisturbed, it is within 5%
SLOWEST = 1.25  # the same of the slowest of all at once; undisturbed, it is within 15%
FAR = 1.6  # the same of a meeting of two cores; undisturbed, it is within 20%
MEETINGS = 300  # of which a time is told; 30 us
TRIES = 3  # the best counts; a host does not give cores back for one try only
FEWEST = 3  # samples on whole cores, of which a median can be told
SHARED = "cores not whole"  # how a message begins that tells of samples set aside
FEW = "samples count all the same"  # how it ends where they count


class Cores:
    """The cores that this process may use; `whole()` says whether each is one now.

    Where there is one core, where the system itself says that cores share their arithmetic, or where it says nothing
    and lets no thread have a core of its own (it is not Linux), no question is asked: `known` is False, and `whole()`
    always True.
    """

    def __init__(self) -> None:
        cores = machine.cores_allowed()
        self.known = cores > 1 and peaks.separate() and hasattr(os, "sched_setaffinity")
        if not self.known:
            return
        self._products = [probe.product(1, SIZE, SIZE) for _ in range(cores)]
        self._threads = []
        for core in sorted(os.sched_getaffinity(0))[:cores]:
            # One of its own for each core. Free ones may all wake on the core of who wakes them, and wait in line.
            self._threads.append(ThreadPoolExecutor(1, "rnnpar-core", os.sched_setaffinity, (0, {core})))
        board, sync = aligned(2 * SIZE).reshape(2, SIZE), aligned(2 * LINE, np.int64)
        self._exchanges = [probe.Exchange(1, board, sync, rank, 2) for rank in range(2)]
        self._repeat = 1
        self._seconds(1)  # compiles, or takes it from the disk
        self._meeting()
        self._usual = {count: usual_seconds(count) for count in (1, cores)}
        self._usual_meeting = usual_meeting()
        while (took := self._seconds(1)) < LONG_S + START_S * cores:
            self._repeat = max(2 * self._repeat, int(self._repeat * LONG_S / max(took, 1e-7)))

    def whole(self) -> bool:
        """Whether all cores at once take about as long as one alone, that what it always does, and are as near as ever.

        1 to 6 ms.
        """
        if not self.known:
            return True
        return any(self._whole_now() and self._near_now() for _ in range(TRIES))

    def _near_now(self) -> bool:
        return self._meeting() < FAR * self._usual_meeting

    def _whole_now(self) -> bool:
        cores = len(self._threads)
        one = self._seconds(1)
        if one > SLOW * self._usual[1] * self._repeat:
            return False
        return self._seconds(cores) < min(SLOWEST * self._usual[cores] * self._repeat, peaks.CROWDED * one)

    def _seconds(self, cores: int) -> float:
        """The longest of the times of `cores` threads that compute at once."""
        pairs = list(zip(self._threads, self._products, strict=True))[:cores]
        futures = [thread.submit(seconds, product, self._repeat) for thread, product in pairs]
        return max(future.result() for future in futures)

    def _meeting(self) -> float:
        """Seconds in which two cores hand each other SIZE elements; the median of three runs of MEETINGS."""
        return statistics.median(self._meetings() for _ in range(3)) / MEETINGS

    def _meetings(self) -> float:
        """Of the two threads the one that began last has not waited for the other to begin."""
        futures = [
            thread.submit(seconds, exchange, MEETINGS)
            for thread, exchange in zip(self._threads[:2], self._exchanges, strict=True)
        ]
        return min(future.result() for future in futures)


def seconds(call: Callable[[int], None], repeat: int) -> float:
    """What a call takes on this thread."""
    begin = time.perf_counter()
    call(repeat)
    return time.perf_counter() - begin


def usual_seconds(cores: int) -> float:
    """Seconds of one such product on each of `cores` at once, from the peaks; infinity where they do not say."""
    points = usual("products").get(str(cores), [])
    return next((took for H, rows, took in points if H == rows == SIZE), math.inf)


def usual_meeting() -> float:
    """The same of two cores that hand each other SIZE elements."""
    a_meeting, an_element = usual("exchange").get("2", (math.inf, 0.0))
    return a_meeting + an_element * SIZE


def usual(kind: str) -> dict[str, Any]:
    """What this machine's peaks say of a kind; empty where they are not measured yet."""
    stored = peaks.stored_in(peaks.file())
    return stored.get(kind, {}) if stored.get("version") == peaks.VERSION else {}


def count(seconds: Sequence[float], aside: Sequence[float]) -> tuple[list[float], str]:
    """The samples that count, and what to say of those set `aside` since the cores were not whole; "" of none.

    They are left out, but where fewer than 3 others are left: then all count, lest there be nothing to tell.
    """
    if not aside:
        return list(seconds), ""
    if len(seconds) < FEWEST:
        return [*seconds, *aside], f"{SHARED}: {len(aside)} of {len(aside) + len(seconds)} {FEW}"
    return list(seconds), f"{SHARED}: {len(aside)} sample{'s' * (len(aside) > 1)} left out"
