"""Measurements that can be stopped: a process of its own takes jobs, tells how far it is, and may be killed.

    notebook  -- Job -->  process            measures, checks against the oracle, takes a trace
              <-- Message --                 progress, times, traces, errors

The notebook's own process never computes, so that its sliders answer while something is measured; whatever a job does
to its process (takes all memory, hangs, crashes) ends with it. A newer job ends an older one at the next sample, and
where that takes longer than GRACE_S the process is replaced.
"""

from __future__ import annotations

import atexit
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from rnnpar import model, peaks, registry
from rnnpar.study.measure import Point
from rnnpar.words import write_anything

GRACE_S = 1.0  # for a job to notice that a newer one is there
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


def serve(jobs: BinaryIO, messages: BinaryIO) -> None:
    """Take pickled (number, Job) from `jobs` until it ends, and write pickled Messages."""
    waiting: queue.Queue[tuple[int, Job] | None] = queue.Queue()

    def read() -> None:
        with suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                waiting.put(pickle.load(jobs))
        waiting.put(None)

    def say(message: Message) -> None:
        pickle.dump(message, messages)
        messages.flush()

    threading.Thread(target=read, daemon=True).start()
    while (item := waiting.get()) is not None:
        number, job = item
        try:
            with closing(run(number, job)) as told:
                for message in told:
                    say(message)
                    if not waiting.empty():
                        break
        except Exception as error:  # whatever a job raises is told, not fatal
            say(Message(number, "error", f"{type(error).__name__}: {error}"))
        say(Message(number, "end"))


def run(number: int, job: Job) -> Iterator[Message]:
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


def main() -> None:
    """The process: jobs come by stdin, messages go by what was stdout; prints of the methods go to stderr."""
    write_anything()
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, messages)


# --- in the notebook -------------------------------------------------------------------------------------------------


class Bench:
    """The notebook's end: `submit` a job, `stop` it; `report` is called with each Message, from another thread."""

    def __init__(self, report: Callable[[Message], None]):
        self.report = report
        self.number = 0
        self.busy = False
        self._heard = 0  # number of the last job that the process has answered
        self._lock = threading.RLock()
        self._process: subprocess.Popen | None = None
        atexit.register(self.close)

    def start(self) -> None:
        """Start the process, if it is not there: what it imports takes a second, best spent before the first job."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rnnpar.study.live"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt of the notebook's kernel is not meant for it
            )  # fmt: skip
            threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()

    def submit(self, job: Job) -> int:
        """Measure this next; what is running is left off. Returns the job's number."""
        with self._lock:
            self.number += 1
            was_busy, self.busy = self.busy, True
            self._send(job)
            if was_busy:
                patience = threading.Timer(GRACE_S, self._impatient, (self.number, job))
                patience.daemon = True
                patience.start()
            return self.number

    def stop(self) -> None:
        """End what is running, at once, and make ready for the next job."""
        with self._lock:
            if self.busy:
                self.busy = False
                self.number += 1  # what it still says is no longer heard
                self._kill()
                self.start()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self.busy = False
            self._kill()
        atexit.unregister(self.close)

    def _send(self, job: Job) -> None:
        for _ in range(2):  # the process may have died since the last job
            self.start()
            try:
                pickle.dump((self.number, job), self._process.stdin)
                self._process.stdin.flush()
                return
            except OSError:
                self._kill()
        raise RuntimeError("the process that measures cannot be started: see whether `python -m rnnpar.study.live` can")

    def _impatient(self, number: int, job: Job) -> None:
        """Replace a process that has not taken up the job after GRACE_S: it is in a long call of an older one."""
        with self._lock:
            if self.busy and self.number == number and self._heard < number:
                self._kill()
                self._send(job)

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _end(process)
            process.wait()
            with suppress(OSError):
                process.stdin.close()

    def _listen(self, process: subprocess.Popen) -> None:
        with process.stdout:
            while True:
                try:
                    message = pickle.load(process.stdout)
                except Exception:  # the pipe has ended, or what came through it is no message
                    break
                with self._lock:
                    self._heard = max(self._heard, message.job)
                    current = self.busy and message.job == self.number
                    if current and message.kind == "end":
                        self.busy = False
                if current:
                    self.report(message)
        with self._lock:
            died = self._process is process and self.busy
            if died:
                self.busy = False
        if died:
            _end(process)
            code = process.wait()
            self.report(Message(self.number, "error", f"The measuring process died ({_cause(code)})."))
            self.report(Message(self.number, "end"))


def _end(process: subprocess.Popen) -> None:
    """Kill a process and the ranks that it has started; where there are no process groups they end by themselves."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own, and so a group
    process.kill()


def _cause(code: int) -> str:
    if code == -9:
        return "killed, most likely since the memory ran out"
    return f"by signal {-code}" if code < 0 else f"exit status {code}"


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


if __name__ == "__main__":
    from rnnpar.study import live  # the module by its own name: what is pickled here must be found there

    live.main()
