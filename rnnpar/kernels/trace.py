"""What each thread did and when: time stamps taken in the kernels, for those who want to see it (`trace=True`).

A body says `mark(trace, rank, WAIT)`: from now on I wait. Without tracing `trace` is None, which Numba knows when it
compiles: the mark is then no code at all. With it `trace` is a buffer with a line a thread, and a mark costs one look
at the clock, some 20 to 40 ns. So a traced call is a little longer than it would have been; times of traced calls
are for pictures, never for results.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

INPUTS, STEPS, OUTPUTS, WAIT, DONE = range(5)
WORDS = ("U x", "W h and tanh", "V h and softmax", "waiting", "done")  # what the kinds of marks mean
CAPACITY = 1 << 14  # marks of a thread that are kept; what comes later is counted only
CLOCK = getattr(time, "CLOCK_MONOTONIC", None)  # POSIX's number of the clock; Windows has none


@intrinsic
def now(typing):
    """Nanoseconds on the system's monotonic clock, the same for all threads."""

    def codegen(context, builder, signature, args):
        i32, i64 = ir.IntType(32), ir.IntType(64)
        spec = cgutils.alloca_once(builder, ir.ArrayType(i64, 2))  # struct timespec: seconds, nanoseconds
        kind = ir.FunctionType(i32, [i32, spec.type])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "clock_gettime"), [i32(CLOCK), spec])
        seconds, rest = (builder.load(builder.gep(spec, [i32(0), i32(field)])) for field in (0, 1))
        return builder.add(builder.mul(seconds, i64(10**9)), rest)

    return types.int64(), codegen


def record(trace, rank, what):
    """Put a stamp down, or count it where there is no room."""
    count = trace[rank, 0]
    if 2 * count + 2 < trace.shape[1]:
        trace[rank, 2 * count + 1] = now()
        trace[rank, 2 * count + 2] = what
    trace[rank, 0] = count + 1


@intrinsic
def mark(typing, trace, rank, what):
    """Thread `rank` begins `what` now. No code at all where `trace` is None: not even a call to be optimised away."""

    def codegen(context, builder, signature, args):
        if not isinstance(trace, types.NoneType):
            context.compile_internal(builder, record, signature, args)
        return context.get_dummy_value()

    return types.void(trace, types.int64, types.int64), codegen


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
