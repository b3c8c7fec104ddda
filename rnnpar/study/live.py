"""Measurements that can be stopped: a process of its own takes jobs, tells how far it is, and may be killed.

    notebook  -- Job -->  process            measures, checks against the oracle, takes a trace
              <-- Message --                 progress, times, traces, errors

The notebook's own process never computes, so that its sliders answer while something is measured; whatever a job does
to its process (backends/processes.py) ends with it. A newer job ends an older one at the next sample, and where that
takes longer than GRACE_S the process is killed for it.
"""

from __future__ import annotations

import atexit
import math
import queue
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rnnpar import model, peaks, registry
from rnnpar.backends.processes import Child, Failed
from rnnpar.study.measure import Point

GRACE_S = 1.0  # for a job to notice that a newer one is there
END_S = 5.0  # for the process to end
SAMPLES = 9
BUDGET_S = 0.8  # a method's samples together
LIMIT_S = 2.0  # a call that takes longer is made once more, and counted
TRACED_CALLS = 5  # of which the one of median length is shown
MEMORY_SHARE = 0.5  # of the free memory that a job may need


@dataclass(frozen=True)
class Job:
    """Methods to be measured in turn at one shape, on so many threads; `peaks`: first those of the machine."""

    point: Point
    methods: tuple[str, ...]
    threads: int
    trace: bool = True
    peaks: bool = False


@dataclass(frozen=True)
class Message:
    """What the process tells. kind: progress, peaks, measured, trace, error, end; `job` is the number it was given."""

    job: int
    kind: str
    text: str = ""
    done: int = 0
    of: int = 1
    method: str = ""
    data: Any = field(default=None, repr=False)


def options(method: str, threads: int) -> dict[str, Any]:
    """The options to prepare a method with: its threads, if it takes any, or as many ranks of one thread each."""
    takes = registry.find(method).options()
    if "ranks" in takes:
        return {"ranks": threads, "threads": 1}
    return {"threads": threads} if "threads" in takes else {}


def bytes_needed(point: Point) -> float:
    """Bytes that measuring a point needs at least: x, y and all states in float32 and, for the oracle, in float64."""
    rows = point.T * point.B * (point.I + point.O + point.H * point.layers)
    weights = point.H * (point.H + point.I + point.O) + (point.layers - 1) * 2 * point.H**2
    return (4 + 8) * (rows + weights) + 4 * weights


def too_large(point: Point, free: float | None = None) -> str:
    """Why a point cannot be measured here, in a sentence; empty where it can."""
    if free is None:
        import psutil

        free = psutil.virtual_memory().available
    needed = bytes_needed(point)
    if needed <= MEMORY_SHARE * free:
        return ""
    return (
        f"Not measured: these sizes need {needed / 2**30:.1f} GB of memory, and {free / 2**30:.1f} GB are free; "
        "fewer steps T or sequences B would do."
    )


# --- in the process: one job after another ---------------------------------------------------------------------------


class Measuring:
    """What is asked in the process: to begin a job, which ends the one before, and to go on with it."""

    def __init__(self) -> None:
        self._told: Generator[Message, None, None] = (message for message in ())

    def begin(self, number: int, job: Job) -> None:
        """Take up a job; nothing is measured yet."""
        self._told.close()  # and what it has prepared
        self._told = run(number, job)

    def go_on(self) -> Message | None:
        """The next message of the job; None at its end."""
        return next(self._told, None)


def run(number: int, job: Job) -> Generator[Message, None, None]:
    """Do a job; yields its messages, and may be left off after any of them."""
    from rnnpar.reference import reference
    from rnnpar.study.measure import APART, Problem, Trial, build

    if job.peaks:
        yield Message(number, "progress", "measuring this machine's peaks, once: some 30 seconds")
        peaks.here()
        yield Message(number, "peaks")
    if problem := too_large(job.point):
        yield Message(number, "error", problem)
        return
    steps = len(job.methods) * (2 + SAMPLES) + 2
    done = 0

    def progress(text: str) -> Message:
        nonlocal done
        done = min(done + 1, steps)
        return Message(number, "progress", text, done, steps)

    yield progress("drawing random weights and input")
    net, x = build(job.point)
    yield progress("asking the oracle, in double precision")
    problem = Problem(net, x, *reference(net, x))
    trials = [Trial(job.point, method, options(method, job.threads)) for method in job.methods]
    try:
        for trial in trials:
            yield progress(f"preparing {trial.method}; its first call compiles")
            trial.start(problem, SAMPLES, BUDGET_S, LIMIT_S)
        rng = np.random.default_rng()
        apart = any(registry.find(method).backend in APART for method in job.methods)
        while due := [trial for trial in trials if trial.rounds]:
            for index in rng.permutation(len(due)):
                if apart:
                    time.sleep(due[index].pause_s)
                due[index].sample(problem)
                yield progress(f"measuring {due[index].method}")
    finally:
        for trial in trials:
            trial.close()
    for trial in trials:
        yield Message(number, "measured", method=trial.method, data=trial.measurement())
    for trial in trials:
        if job.trace and trial.status == "ok" and "trace" in registry.find(trial.method).options():
            yield progress(f"recording what the threads of {trial.method} do")
            yield Message(number, "trace", method=trial.method, data=traced(problem, trial))


def traced(problem: Any, trial: Any) -> Any:
    """The trace of a call of median length, out of TRACED_CALLS."""
    from rnnpar.auto import prepare

    with prepare(problem.net, trial.method, trace=True, **trial.options) as runner:
        runner(problem.x)
        found = []
        for _ in range(TRACED_CALLS):
            runner(problem.x)
            found.append(runner.info["trace"])
    return sorted(found, key=lambda trace: trace.seconds)[len(found) // 2]


# --- in the notebook -------------------------------------------------------------------------------------------------


class Bench:
    """The notebook's end: `submit` a job, `stop` it; `report` is called with each Message, from another thread."""

    def __init__(self, report: Callable[[Message], None]):
        self.report = report
        self.number = 0
        self.busy = False
        self._taken = 0  # number of the last job that was begun
        self._jobs: queue.SimpleQueue[tuple[int, Job] | None] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._child: Child | None = None
        self._thread: threading.Thread | None = None
        atexit.register(self.close)

    def start(self) -> None:
        """Start the process, if it is not there: what it imports takes a second, best spent before the first job."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def submit(self, job: Job) -> int:
        """Measure this next; what is running is left off. Returns the job's number."""
        with self._lock:
            self.number += 1
            was_busy, self.busy = self.busy, True
            self._jobs.put((self.number, job))
            self.start()
            if was_busy:
                patience = threading.Timer(GRACE_S, self._impatient, (self.number,))
                patience.daemon = True
                patience.start()
            return self.number

    def stop(self) -> None:
        """End what is running, at once."""
        with self._lock:
            if self.busy:
                self.busy = False
                self.number += 1  # what it still says is no longer heard
                self._kill()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self.busy = False
            self.number += 1
            thread, self._thread = self._thread, None
            self._kill()
        if thread is not None:
            self._jobs.put(None)
            thread.join(END_S)
        atexit.unregister(self.close)

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()

    def _impatient(self, number: int) -> None:
        """Kill a process that is still in a long call of an older job: the next request starts another."""
        with self._lock:
            if self.busy and self.number == number and self._taken < number:
                self._kill()

    def _work(self) -> None:
        """In a thread: one job after another."""
        self._make_ready()
        while (item := self._jobs.get()) is not None:
            number, job = item
            with self._lock:
                self._taken = number
            if number == self.number:
                self._measure(number, job)
        if self._child is not None:
            self._child.close()
            self._child = None

    def _make_ready(self) -> None:
        """Start the process, or another one in the place of one that was killed."""
        with suppress(RuntimeError):  # told at the next job
            self._ready().ask("go_on")

    def _ready(self) -> Child:
        if self._child is None:
            self._child = Child("explore's measurements", "rnnpar.study.live:Measuring")
        return self._child

    def _measure(self, number: int, job: Job) -> None:
        """Do a job, until it ends, or nobody wants it any more."""
        try:
            child = self._ready()
            child.ask("begin", number, job)
            while message := child.ask("go_on"):
                if not self._tell(message):
                    return
        except Failed as error:
            self._tell(Message(number, "error", error.reason))
        except RuntimeError as error:
            memory = "; the memory may have run out" if "signal 9" in str(error) else ""
            wanted = self._tell(Message(number, "error", f"The measurement has ended: {error}{memory}."))
            if not wanted and self._thread is not None:  # stopped, and not closed
                self._make_ready()
        self._tell(Message(number, "end"))

    def _tell(self, message: Message) -> bool:
        """Report a message of the job that is wanted; whether it is."""
        with self._lock:
            wanted = self.busy and message.job == self.number
            if wanted and message.kind == "end":
                self.busy = False
        if wanted:
            self.report(message)
        return wanted


def seconds_expected(costs: model.Model | None, job: Job) -> float:
    """Seconds that a job takes by the model, but for compiling; NaN where there is no model.

    A method that the model knows nothing of counts as `serial/compiled`.
    """
    if costs is None:
        return math.nan
    point = job.point
    work = model.Work(T=point.T, B=point.B, I=point.I, H=point.H, O=point.O, layers=point.layers)
    plain = costs.predict("serial/compiled", work)
    calls = [costs.predict(method, work, job.threads) for method in job.methods]
    calls = [call if math.isfinite(call) else plain for call in calls]
    oracle = 3 * costs.predict("serial/hoisted", work)  # in double precision, a step at a time
    return oracle + sum(3 * call + min(BUDGET_S, SAMPLES * call) for call in calls)
