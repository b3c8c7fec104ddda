"""What each thread did and when: time stamps taken in the kernels, for those who want to see it (`trace=True`).

A region says `mark(job, rank, WAIT)`: from now on I wait. Without tracing the job has no field `trace`, which Numba
knows when it compiles: the mark is then no code at all. With it there is a buffer with a line of `marks` words a
thread, and a mark costs one look at the clock, some 20 to 40 ns. So a traced call is a little longer than it would have
been; times of traced calls are for pictures, never for results.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import types
from numba.extending import intrinsic

from rnnpar.kernels.jit import jit
from rnnpar.kernels.system import CLOCK, now

INPUTS, STEPS, OUTPUTS, WAIT, DONE = range(5)
WORDS = ("U x", "W h and tanh", "V h and softmax", "waiting", "done")  # what the kinds of marks mean
CAPACITY = 1 << 14  # marks of a thread that are kept; what comes later is counted only


@jit()
def record(marks, stride, rank, what):
    """Put a stamp down, or count it where there is no room."""
    count = marks[rank * stride]
    if 2 * count + 2 < stride:
        marks[rank * stride + 2 * count + 1] = now()
        marks[rank * stride + 2 * count + 2] = what
    marks[rank * stride] = count + 1


@intrinsic
def mark(typing, job, rank, what):
    """Thread `rank` begins `what` now. No code at all where the job has no field `trace`."""
    traced = job.has("trace")

    def codegen(context, builder, signature, args):
        if traced:
            write = lambda job, rank, what: record(job.trace, job.marks, rank, what)  # noqa: E731
            context.compile_internal(builder, write, signature, args)
        return context.get_dummy_value()

    return types.void(job, types.int64, types.int64), codegen


def buffer(threads: int) -> np.ndarray:
    """Room for the marks of a call, int64 (threads, 1 + 2 CAPACITY): a count, then pairs of time and kind.

    RuntimeError where the system has no clock that a kernel can ask.
    """
    if CLOCK is None:
        raise RuntimeError("trace=True needs POSIX's clock_gettime, which this system does not have; leave it away")
    return np.zeros((threads, 1 + 2 * CAPACITY), np.int64)


@dataclass(frozen=True)
class Span:
    """Thread `rank` did `what` (an index of WORDS) from `begin` to `end`, in seconds since the call began."""

    rank: int
    what: int
    begin: float
    end: float


@dataclass(frozen=True)
class Trace:
    """One call, as its threads tell it: `spans` in order of rank and time, `seconds` the whole call."""

    spans: tuple[Span, ...]
    threads: int
    seconds: float
    dropped: int  # marks for which there was no room

    @classmethod
    def of(cls, marks: np.ndarray, start_ns: int, end_ns: int) -> Trace:
        """The trace in a buffer; start and end of the call on the same clock (`time.clock_gettime_ns`)."""
        spans, dropped = [], 0
        for rank, line in enumerate(marks):
            count = min(int(line[0]), CAPACITY)
            dropped += int(line[0]) - count
            times, kinds = line[1 : 1 + 2 * count : 2], line[2 : 2 + 2 * count : 2]
            ends = np.append(times[1:], times[-1:])
            spans += [
                Span(rank, int(what), (int(begin) - start_ns) / 1e9, (int(end) - start_ns) / 1e9)
                for what, begin, end in zip(kinds, times, ends, strict=True)
                if what != DONE and end > begin
            ]
        return cls(tuple(spans), len(marks), (end_ns - start_ns) / 1e9, dropped)

    def shares(self) -> dict[int, dict[str, float]]:
        """Of each thread, which share of the call it spent on what; the rest it had nothing to do."""
        table = {rank: dict.fromkeys((*WORDS[:DONE], "nothing to do"), 0.0) for rank in range(self.threads)}
        for span in self.spans:
            table[span.rank][WORDS[span.what]] += (span.end - span.begin) / self.seconds
        for line in table.values():
            line["nothing to do"] = max(0.0, 1 - sum(line.values()))
        return table
