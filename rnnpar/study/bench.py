"""The process in which a Dask worker measures: clean of what the worker brings along, and expendable.

A worker's own process is no place to time anything in. Dask tells it to use one thread, its event loop and its
profiler wake up all the time, and a crash in compiled code would take the worker with it. So a worker keeps one
`Bench`: a fresh interpreter that answers one request after another and ends with the worker, whatever that dies of.

    introduce(profile, source)      who measures here, and which points the profile makes on this machine
    peaks()                         machine_peaks.here()
    measure(point, methods, ...)    measure.measure_group(), while no other bench or sweep of this machine times
"""

from __future__ import annotations

import hashlib
import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import metadata
from typing import Any

import numpy as np

from rnnpar import machine, registry
from rnnpar import peaks as machine_peaks
from rnnpar.study import measure as measuring
from rnnpar.study import store, sweep

IDLE_S = 120.0  # a bench that nobody asks for so long ends; the next request starts another
END_S = 5.0


class BenchDied(RuntimeError):
    """The measuring process ended or hung in the middle of a request; the message says how."""


class BenchFailed(RuntimeError):
    """A request raised; the message holds the error's last line first and then where it came from."""


class Bench:
    """A measuring process of its own. `ask("measure", ...)` calls the function of that name in it.

    `dropped` are the variables of the environment that the process does not inherit; `crowded` lets it measure while
    others do, for tests.
    """

    def __init__(self, dropped: Sequence[str] = (), crowded: bool = False):
        environment = {key: value for key, value in os.environ.items() if key not in dropped}
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(registry.PACKAGE.parent), *filter(None, [environment.get("PYTHONPATH")])]
        )
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, *(["--crowded"] if crowded else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            start_new_session=True,  # an interrupt from the keyboard is for the worker
        )  # fmt: skip
        self._end = weakref.finalize(self, _end, self._process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, what: str, *arguments: Any, limit_s: float) -> Any:
        """The answer of `what`(*arguments). BenchFailed if it raises; BenchDied if the process ends, or is late."""
        late = threading.Event()
        watch = threading.Timer(limit_s, lambda: (late.set(), self._process.kill()))
        watch.daemon = True
        watch.start()
        try:
            pickle.dump((what, arguments), self._process.stdin)
            self._process.stdin.flush()
            well, answer = pickle.load(self._process.stdout)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            self.close()
            code = self._process.returncode
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            raise BenchDied(f"gave no answer in {limit_s:g} s" if late.is_set() else f"ended with {how}") from None
        except BaseException:  # an interrupt: the answer, still to come, would be taken for the next one's
            self.close()
            raise
        finally:
            watch.cancel()
        if not well:
            raise BenchFailed(answer)
        return answer

    def close(self) -> None:
        """End the process, and wait until it has ended."""
        self._end()


def _end(process: subprocess.Popen) -> None:
    with suppress(OSError):
        process.stdin.close()  # it leaves at once, even out of a measurement
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    process.kill()
    process.wait()
    process.stdout.close()


# --- what runs in the process


def introduce(profile: Mapping[str, Any], wanted: str) -> dict[str, Any]:
    """Who measures here, in plain types which any other revision can read; and if our source is `wanted`, the plan."""
    description = machine.describe()
    found = {
        "machine": description["name"],
        "description": description,
        "versions": description["versions"] | {"distributed": metadata.version("distributed")},
        "source": source(),
        "revision": measuring.revision(),
    }
    return found | ({"plan": sweep.plan(profile)} if found["source"] == wanted else {})


def peaks() -> dict[str, Any]:
    """This machine's peaks, measured if it has none; `disturbed` says that other programs were in the way."""
    with _turn():
        found = machine_peaks.here()
    return {"peaks": found, "disturbed": machine_peaks.disturbed(found)}


def measure(
    point: measuring.Point,
    methods: Sequence[tuple[str, Mapping[str, Any]]],
    samples: int,
    budget_s: float,
    limit_s: float,
    seed: Sequence[int],
) -> list[store.Measurement]:
    """One shape's measurements, as measure.measure_group gives them; `seed` draws the order of the rounds."""
    with _turn():
        return measuring.measure_group(point, methods, samples, budget_s, np.random.default_rng(seed), limit_s)


def source() -> str:
    """A short hash of all of the package's source: two that differ may measure or store differently."""
    hashed = hashlib.sha256()
    for file in sorted(registry.PACKAGE.rglob("*.py")):
        hashed.update(f"{file.relative_to(registry.PACKAGE).as_posix()}\n".encode() + file.read_bytes())
    return hashed.hexdigest()[:10]


def _turn() -> AbstractContextManager:
    return nullcontext() if "--crowded" in sys.argv else measuring.alone()


REQUESTS = {function.__name__: function for function in (introduce, peaks, measure)}


def _serve() -> None:
    """Answer requests until the worker is gone, or has nothing to ask for a while."""
    pipe, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a method prints must not get between the answers
    requests: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_read, args=(pipe, requests), daemon=True).start()
    while True:
        try:
            what, arguments = requests.get(timeout=IDLE_S)
        except queue.Empty:
            return
        try:
            answer = (True, REQUESTS[what](*arguments))
        except Exception as error:
            answer = (False, f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}")
        pickle.dump(answer, answers)
        answers.flush()


def _read(pipe: Any, requests: queue.SimpleQueue) -> None:
    """Pass requests on. This thread always waits here: the process ends with its worker even from within a call."""
    with suppress(Exception):
        while True:
            requests.put(pickle.load(pipe))
    os._exit(0)


if __name__ == "__main__":
    from rnnpar.study import bench  # the classes that are pickled must not be those of __main__

    bench._serve()
