"""A sweep over machines: the points of sweep.py, measured by the workers of a Dask cluster.

    make cluster                                        a cluster of this machine alone, to try it with
    make sweep SCHEDULER=tcp://127.0.0.1:8786           ... and the sweep, from another terminal
    make sweep SCHEDULER=... SHARE=1                    alike machines share the points instead of measuring all each

On real machines: `dask scheduler` on one, and `dask worker tcp://...:8786 --nthreads 1` on each that is to be
measured, from an environment with this revision of rnnpar. slurm/sweep.sbatch does it as a job.

Every machine measures every point in its own name, and its own peaks. With `share`, machines of one kind (one name
but for the hash of the host) stand in one line, and each point is measured by the first that is free. Dask carries
requests and answers; who measures what is decided here, one point at a time a machine:

- the workers of one machine take turns: one measures, the others stand by for it;
- a worker that goes gives its point back to the line; one that comes late joins in, once it is found to be alike;
- a point whose process died MOST_DEATHS times, or for which nobody has come for `patience_s`, is reported;
- each answer is stored here, once, in the folder of the machine that gave it, before the next point is handed out.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dask
import numpy as np
from distributed import Client, Future, KilledWorker, LocalCluster, get_worker, wait
from distributed.comm import CommClosedError
from tqdm import tqdm

from rnnpar import machine
from rnnpar.backends.processes import Died, Failed
from rnnpar.study import bench, measure, store, sweep
from rnnpar.words import write_anything

REACH_S = 5.0  # for the scheduler to answer
ANSWER_S = 3.0  # for a result to come over once it is there
INTRODUCE_S = 120.0  # for a bench to say who it is, beyond bench.START_S
REQUEST_S = 1800.0  # for one shape or the peaks; far beyond the full profile's longest
PATIENCE_S = 60.0  # for a worker to come, while there are points that only it can measure
POLL_S = 0.5
MOST_DEATHS = 3  # of the process that measures a point, before it is given up
COMPARED = ("python", "numpy", "numba", "llvmlite", "distributed")  # those of Dask itself fail in odd ways if mixed


class ClusterError(RuntimeError):
    """A sweep over machines cannot run, or has left points unmeasured; the message says why and what would do."""


@dataclass
class Job:
    """One request to a bench: a shape's measurement, or a machine's peaks."""

    what: str
    arguments: tuple
    label: str
    points: int = 0  # a method at a shape is a point, as everywhere
    deaths: int = 0  # of a process that was at it
    waiting: Future | None = None  # what stands for it on the dashboard until it is handed out


@dataclass
class Line:
    """The jobs that wait for one machine, or for any machine of a kind."""

    jobs: deque[Job] = field(default_factory=deque)
    seen: float = field(default_factory=time.monotonic)  # when somebody was last there to do them


@dataclass
class Worker:
    """A Dask worker as this sweep knows it: who it is, and what it is doing for us."""

    address: str
    future: Future | None = None
    job: Job | None = None  # None while it introduces itself
    who: dict[str, Any] = field(default_factory=dict)  # bench.introduce(), or {"error": why not}
    takes_part: bool = False

    @property
    def machine(self) -> str:
        return self.who.get("machine", "")

    def __str__(self) -> str:
        return f"{self.machine} at {self.address}" if self.machine else self.address


def run(
    profile: Mapping[str, Any],
    scheduler: str,
    share: bool = False,
    patience_s: float = PATIENCE_S,
    crowded: bool = False,
) -> list[str]:
    """Measure a profile on the workers of `scheduler`; the names of the machines that took part.

    `scheduler` is an address or the path of a scheduler file. `crowded` lets the workers of one machine measure at
    the same time: for tests, the times are spoilt. ClusterError where the scheduler cannot be reached, has no
    workers, or has workers that differ, before any point runs; and at the end, where points could not be measured.
    ProfileError, store.ResultsError.
    """
    profile = sweep.complete(profile)
    with connect(scheduler) as client:
        conductor = Conductor(client, profile, share, patience_s, crowded)
        try:
            return conductor.run()
        except (CommClosedError, ConnectionError, TimeoutError) as error:
            raise ClusterError(
                f"lost the scheduler at {scheduler} ({error}); what was measured is stored, and the same command "
                "continues"
            ) from None
        finally:
            conductor.close()


def connect(scheduler: str) -> Client:
    """A client of the scheduler at an address or in a scheduler file. ClusterError within seconds if there is none."""
    is_file = not re.match(r"[a-z]+://|[^/]+:\d+$", scheduler)
    if is_file and not Path(scheduler).is_file():
        raise ClusterError(f"{scheduler!r} is neither an address such as tcp://host:8786 nor a scheduler file")
    try:
        return Client(**{"scheduler_file" if is_file else "address": scheduler}, timeout=REACH_S, name="rnnpar-sweep")
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ClusterError(
            f"no Dask scheduler answers at {scheduler}: {reason[:200]}; `make cluster` starts one here, "
            "`dask scheduler` on another machine"
        ) from None


class Conductor:
    """Hands out the points of one sweep and stores what comes back."""

    def __init__(self, client: Client, profile: Mapping[str, Any], share: bool, patience_s: float, crowded: bool):
        self.client, self.profile, self.share = client, dict(profile), share
        self.patience_s, self.crowded = patience_s, crowded
        self.experiment = str(profile["experiment"])
        self.workers: dict[str, Worker] = {}  # by address
        self.lines: dict[str, Line] = {}
        self.stored: dict[str, dict[str, store.Measurement]] = {}  # by machine: what it had stored before
        self.plans: dict[str, sweep.Plan] = {}  # by machine
        self.measured: Counter[str] = Counter()  # points by machine
        self.source = bench.source()
        self.given_up = 0
        self.done: dict[str, list[Future]] = {}  # by address: kept, so that the dashboard counts them
        self.name = f"{os.getpid()}-{time.time_ns()}"  # tells this sweep's benches and keys from another's
        self.handed_out = 0
        self.looked = -POLL_S
        self.bar = tqdm(desc=self.experiment, unit="point", file=sys.stderr, ncols=80, mininterval=0.5, total=0)

    def run(self) -> list[str]:
        """Measure all there is to measure; the machines that took part. ClusterError."""
        self.tell(f"Dask's dashboard: {self.client.dashboard_link}")
        self._gather()
        while self._busy():
            self._meet()
            self._hand_out()
            self._give_up_on_the_gone()
            self._wait()
            self._take_back()
        self._close_the_books()
        if self.given_up:
            raise ClusterError(
                f"{self.given_up} requests were given up, as said above; all else is stored, and the same command "
                "tries them again"
            )
        return list(self.plans)

    def close(self) -> None:
        """Leave nothing behind on the scheduler. (What is being measured right now ends by itself, unheard.)"""
        self.bar.close()
        futures = [worker.future for worker in self.workers.values() if worker.future]
        futures += [job.waiting for line in self.lines.values() for job in line.jobs if job.waiting]
        if futures and self.client.status == "running":
            self.client.cancel(futures)

    def tell(self, text: str) -> None:
        """A line on stdout, above the progress bar."""
        self.bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def _busy(self) -> bool:
        return any(line.jobs for line in self.lines.values()) or any(worker.job for worker in self.workers.values())

    # --- workers come and go

    def _gather(self) -> None:
        """Wait for the first workers; those that are there must be alike."""
        begin = time.monotonic()
        self._meet()
        while not self.workers or any(worker.future for worker in self.workers.values()):
            if not self.workers and time.monotonic() - begin > self.patience_s:
                raise ClusterError(
                    f"the scheduler has no workers, and none came in {self.patience_s:g} s; on each machine to be "
                    f"measured: dask worker {self.client.scheduler.address} --nthreads 1"
                )
            self._wait()
            self._meet()
            self._take_back(joining=False)
        faults = differences(self.workers.values(), self.source)
        if faults:
            raise ClusterError(f"{'; '.join(faults)}; nothing was measured: install the same everywhere")
        for worker in self.workers.values():
            self._join(worker)

    def _meet(self) -> None:
        """See who is there: new ones are asked who they are, and what those who went were at goes back in line."""
        if time.monotonic() - self.looked < POLL_S:
            return
        known = self.client.scheduler_info()
        if self.client.status != "running" or "workers" not in known:
            raise ConnectionError("the connection broke")
        there = set(known["workers"])
        self.looked = time.monotonic()
        for address in set(self.workers) - there:
            worker = self.workers.pop(address)
            for future in self.done.pop(address, []):  # else Dask would measure again what went with the worker
                future.release()
            self.tell(f"{worker} has gone")
            self._put_back(worker, "the worker went")
        for address in there - set(self.workers):
            request = (self.profile, self.source)
            self.workers[address] = Worker(address, self._ask(address, "introduce", request, INTRODUCE_S))

    def _join(self, worker: Worker) -> None:
        """Let a worker take part; with the first of a machine come the machine's points."""
        worker.takes_part = True
        name = worker.machine
        if name not in self.plans:
            store.check_writable(name)
            store.save_machine(worker.who["description"], name)
            self.plans[name] = worker.who["plan"]
            self.stored[name] = store.newest(self.experiment, name)
            line = self.lines.setdefault(name, Line())
            if not store.has_peaks(name):  # first, and so at once it shows whether the machine is quiet
                line.jobs.append(Job("peaks", (), f"the peaks of {name}"))
            self._line_up(worker)
        for line in self._lines_of(worker):
            line.seen = time.monotonic()

    def _lines_of(self, worker: Worker) -> list[Line]:
        """Where the worker takes its jobs from, in this order."""
        names = [worker.machine, kind(worker.machine)] if self.share else [worker.machine]
        return [self.lines[name] for name in names if name in self.lines]

    def _line_up(self, worker: Worker) -> None:
        """Line up what the worker's machine, or its whole kind, has not measured yet, in an order of chance."""
        of = kind(worker.machine) if self.share else worker.machine
        if self.share and of in self.lines:
            return
        stored = self.stored[worker.machine]
        for other in store.machines() if self.share else ():
            stored = (store.newest(self.experiment, other) if kind(other) == of else {}) | stored
        planned = self.plans[worker.machine]
        wanted = sweep.remaining(planned, stored)
        todo = sum(map(len, wanted.values()))
        self.tell(f"{self.experiment} on {of}: {todo} points to measure, "
                  f"{sum(map(len, planned.values())) - todo} stored already")  # fmt: skip
        self.bar.total += todo
        self.bar.refresh()
        limits = tuple(self.profile[key] for key in ("samples", "budget_s", "limit_s"))
        points = list(wanted)
        jobs = []
        for index in map(int, np.random.default_rng(self.profile["seed"]).permutation(len(points))):
            point = points[index]
            arguments = (point, wanted[point], limits, [self.profile["seed"], index])
            jobs.append(Job("measure", arguments, label(point), len(wanted[point])))
        for job, waiting in zip(jobs, self._stand_ins(of, len(jobs)), strict=True):
            job.waiting = waiting
        self.lines.setdefault(of, Line()).jobs.extend(jobs)

    def _stand_ins(self, of: str, count: int) -> list[Future]:
        """Tasks that nobody can run, one a job: Dask's dashboard then shows all that there is to do."""
        keys = [("point", self.name, of, number) for number in range(count)]
        return self.client.map(int, range(count), key=keys, resources={"rnnpar: waits in line": 1}) if keys else []

    # --- jobs go out and come back

    def _hand_out(self) -> None:
        """Give each machine that measures nothing its next job; what Dask gets is never more than that."""
        for worker in self.workers.values():
            if not worker.takes_part or worker.future or (worker.machine in self._measuring() and not self.crowded):
                continue
            job = next((line.jobs.popleft() for line in self._lines_of(worker) if line.jobs), None)
            if job:
                worker.job = job
                worker.future = self._ask(worker.address, job.what, job.arguments, REQUEST_S)
                if job.waiting:
                    job.waiting.release()

    def _measuring(self) -> set[str]:
        return {worker.machine for worker in self.workers.values() if worker.job}

    def _ask(self, address: str, what: str, arguments: tuple, limit_s: float) -> Future:
        self.handed_out += 1
        group = "point" if what == "measure" else what  # by which the dashboard counts
        return self.client.submit(
            ASK, self.name, what, arguments, limit_s, self.crowded, key=(group, self.name, self.handed_out),
            workers=[address], allow_other_workers=False, pure=False,
        )  # fmt: skip

    def _wait(self) -> None:
        """Until an answer is there, or it is time to look who is there."""
        futures = [worker.future for worker in self.workers.values() if worker.future]
        if not futures:
            time.sleep(POLL_S)
            return
        with suppress(TimeoutError, CancelledError):
            wait(futures, timeout=POLL_S, return_when="FIRST_COMPLETED")

    def _take_back(self, joining: bool = True) -> None:
        """Take what has been answered: store it, or put it back in line, or give it up."""
        for worker in list(self.workers.values()):
            if not (worker.future and worker.future.done()):
                continue
            try:
                answer = worker.future.result(timeout=ANSWER_S)
            except (Died, KilledWorker) as error:
                self._put_back(worker, str(error))
            except (TimeoutError, CancelledError):  # the worker went with its answer, or the scheduler did
                if self.client.status != "running":
                    raise ConnectionError("the connection broke") from None
                self._put_back(worker, "the worker went with its answer")
            except Exception as error:
                self._fail(worker, error)
            else:
                self._accept(worker, answer)
            worker.future = None
            if joining and worker.who and not worker.takes_part:
                self._admit(worker)

    def _accept(self, worker: Worker, answer: Any) -> None:
        """Keep an answer: on the disk before anything else happens."""
        job, worker.job = worker.job, None
        if job is None:
            worker.who = answer
            return
        if job.what == "peaks":
            if answer["disturbed"]:
                self.tell(f"{worker}: other programs keep its cores busy; its peaks are not kept")
            else:
                store.save_peaks(answer["peaks"], worker.machine)
            return
        name = worker.machine
        store.append(sweep.news(answer, self.stored[name]), self.experiment, name)
        self.measured[name] += job.points
        self.done.setdefault(worker.address, []).append(worker.future)
        self.bar.update(job.points)

    def _put_back(self, worker: Worker, reason: str) -> None:
        """Put what a worker was at back in line, at its end; or give it up where it has been there too often."""
        if worker.future:
            worker.future.cancel()
        job, worker.job, worker.future = worker.job, None, None
        if job is None:
            if not worker.who:
                worker.who = {"error": reason}
            return
        job.deaths += 1
        if job.deaths < MOST_DEATHS:
            self.tell(f"{job.label} on {worker}: {reason}; it goes back in line")
            self._lines_of(worker)[0 if job.what == "peaks" else -1].jobs.append(job)
        else:
            self._give_up(job, f"on {worker}: {reason}, {job.deaths} times")

    def _fail(self, worker: Worker, error: Exception) -> None:
        """A request raised: that is no accident that another try would mend."""
        job, worker.job = worker.job, None
        # Where it is not Failed, the worker never came to ask its bench.
        reason = error.reason if isinstance(error, Failed) else f"{type(error).__name__}: {error}".splitlines()[0]
        if job is None:
            worker.who = {"error": reason}
        else:
            self._give_up(job, f"on {worker}: {reason}")

    def _admit(self, worker: Worker) -> None:
        """A late worker takes part only if it is like those that are there; else it is left alone."""
        others = [other for other in self.workers.values() if other.takes_part]
        faults = differences([worker, *others], self.source)
        if faults:
            worker.who["error"] = worker.who.get("error", "differs from the others")
            self.tell(f"{worker} came late and is not used: {'; '.join(faults)}")
        else:
            self.tell(f"{worker} has joined")
            self._join(worker)

    def _give_up(self, job: Job, reason: str) -> None:
        self.tell(f"not measured: {job.label} {reason}")
        self.given_up += 1
        self.bar.total -= job.points
        self.bar.refresh()
        if job.waiting:
            job.waiting.release()

    def _give_up_on_the_gone(self) -> None:
        """Give up the jobs of lines at which nobody has stood for `patience_s`."""
        for worker in self.workers.values():
            if worker.takes_part:
                for line in self._lines_of(worker):
                    line.seen = time.monotonic()
        for name, line in self.lines.items():
            if line.jobs and time.monotonic() - line.seen > self.patience_s:
                for job in line.jobs:
                    self._give_up(job, f"on {name}: no worker came back in {self.patience_s:g} s")
                line.jobs.clear()

    def _close_the_books(self) -> None:
        """Note for each machine whether it has all its points now, and say what is where."""
        for name, planned in self.plans.items():
            stored = store.newest(self.experiment, name)
            if not any(self._missing(point, cases, stored) for point, cases in planned.items()):
                now = datetime.now(UTC).isoformat(timespec="seconds")
                store.update_machine("measured", {self.experiment: now}, name)
            file = f"results/{name}/{self.experiment}.jsonl"  # in whichever data folder
            self.tell(f"{name}: {self.measured[name]} points measured, {len(stored)} are in {file}")

    @staticmethod
    def _missing(point: measure.Point, cases: list, stored: Mapping[str, store.Measurement]) -> bool:
        return any(measure.key(point, name, measure.workers(options)) not in stored for name, options in cases)


def differences(workers: Iterable[Worker], source: str) -> list[str]:
    """What is wrong with these workers together: who cannot measure, and what is not the same on all; a line each.

    Versions are compared between the workers, rnnpar's source also with ours, `source`: by its methods' hashes we know
    what is measured already.
    """
    workers = list(workers)
    able = [worker for worker in workers if "error" not in worker.who]
    faults = [f"{worker} cannot measure: {worker.who['error']}" for worker in workers if worker not in able]
    for package in COMPARED:
        faults += _groups(package, [(worker.who["versions"].get(package, "missing"), str(worker)) for worker in able])
    sources = [(worker.who["source"], f"{worker}{_revision(worker.who['revision'])}") for worker in able]
    return faults + _groups("rnnpar's source", [(source, f"this machine{_revision(measure.revision())}"), *sources])


def _revision(revision: str) -> str:
    return f" (revision {revision})" if revision else ""


def _groups(what: str, pairs: list[tuple[str, str]]) -> list[str]:
    """One line that says who has which, or none where all have the same."""
    having: dict[str, list[str]] = {}
    for value, who in pairs:
        having.setdefault(value, []).append(who)
    said = "; ".join(f"{value} on {_some(who)}" for value, who in having.items())
    return [f"{what} is {said}"] if len(having) > 1 else []


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def kind(name: str) -> str:
    """What a machine's name says of its like: all but the hash of the host."""
    return re.sub(r"-[0-9a-f]{4}$", "", name)


def label(point: measure.Point) -> str:
    """A shape in a few words."""
    sizes = f"H={point.H} I={point.I} O={point.O} T={point.T} B={point.B} L={point.layers}"
    return sizes if point.workload == "random" else f"{point.workload} {sizes}"


# --- what runs on the workers, and the cluster to try it with


def ask_bench(sweep_name: str, what: str, arguments: tuple, limit_s: float, crowded: bool) -> Any:
    """On a worker: pass a request on to its bench, which is started at a sweep's first."""
    worker = get_worker()
    benches = worker.__dict__.setdefault("rnnpar_benches", {})
    for name in [name for name, old in benches.items() if name != sweep_name and not old.alive]:
        benches.pop(name).close()
    if sweep_name not in benches:
        # What Dask's nanny sets for a process that computes beside others; a user's own settings it leaves alone.
        own = dask.config.get("distributed.nanny.pre-spawn-environ", {}) if worker.nanny else {}
        dropped = [name for name, value in own.items() if os.environ.get(name) == str(value)]
        benches[sweep_name] = bench.start(dropped, crowded)
    return benches[sweep_name].ask(what, *arguments, limit_s=limit_s)


# What a worker is sent. A lambda goes there whole: at a name that it cannot import, Dask ends a worker without a word.
ASK = lambda *request: __import__("rnnpar.study.cluster", fromlist=["ask_bench"]).ask_bench(*request)  # noqa: E731


def local(workers: int, port: int) -> None:
    """A cluster of this machine alone, until it is interrupted. OSError where the port is taken."""
    with LocalCluster(
        n_workers=workers, threads_per_worker=1, scheduler_port=port, dashboard_address=f"127.0.0.1:{port + 1}"
    ) as cluster:
        print(
            f"scheduler: {cluster.scheduler_address}   dashboard: {cluster.dashboard_link}\n"
            f"{workers} workers on {machine.name()}: one measures, the others stand by for it\n"
            f"in another terminal: make sweep SCHEDULER={cluster.scheduler_address}\n"
            "Ctrl-C ends it",
            flush=True,
        )
        while True:
            time.sleep(3600)


def main(arguments: list[str] | None = None) -> int:
    """The command line of the local cluster; returns the exit status."""
    write_anything()
    parser = argparse.ArgumentParser(
        prog="python -m rnnpar.study.cluster", description="Start a Dask cluster of this machine alone."
    )
    parser.add_argument("--workers", type=int, default=2, help="Dask workers (2)")
    parser.add_argument("--port", type=int, default=8786, help="of the scheduler (8786); the dashboard has the next")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers is {options.workers}; it must be at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by which the workers are ended too
    try:
        local(options.workers, options.port)
    except KeyboardInterrupt:
        print("\nended", file=sys.stderr)
    except (OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}; is another cluster here? --port names another", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
