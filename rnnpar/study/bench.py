"""The process in which a Dask worker measures: clean of what the worker brings along, and expendable.

A worker's own process is no place to time anything in. Dask tells it to use one thread, its event loop and its
profiler wake up all the time, and a crash in compiled code would take the worker with it. So a worker keeps one
process of its own (backends/processes.py), which ends with the worker, whatever that dies of. It is asked to

    introduce(profile, source)      who measures here, and which points the profile makes on this machine
    peaks()                         machine_peaks.here()
    measure(point, methods, ...)    measure.measure_group(), while no other bench or sweep of this machine times
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from typing import Any

import numpy as np

from rnnpar import machine, registry
from rnnpar import peaks as machine_peaks
from rnnpar.backends.processes import Child
from rnnpar.study import measure as measuring
from rnnpar.study import store, sweep

START_S = 120.0  # for the process to start, on a cold network file system
IDLE_S = 120.0  # a bench that nobody asks for so long ends; the next request starts another


def start(dropped: Sequence[str] = (), crowded: bool = False) -> Child:
    """A process that measures. It does not inherit the variables `dropped`; see `Bench` for `crowded`."""
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    return Child("the bench", "rnnpar.study.bench:Bench", (crowded,), environment=environment, limit_s=START_S,
                 idle_s=IDLE_S)  # fmt: skip


class Bench:
    """What is asked, in the process. `crowded` lets it measure while others do: for tests."""

    def __init__(self, crowded: bool):
        self._turn: Callable[[], AbstractContextManager] = nullcontext if crowded else measuring.alone

    def introduce(self, profile: Mapping[str, Any], wanted: str) -> dict[str, Any]:
        """Who measures here, in plain types which any other revision can read; the plan if our source is `wanted`."""
        description = machine.describe()
        found = {
            "machine": description["name"],
            "description": description,
            "versions": description["versions"] | {"distributed": metadata.version("distributed")},
            "source": source(),
            "revision": measuring.revision(),
        }
        return found | ({"plan": sweep.plan(profile)} if found["source"] == wanted else {})

    def peaks(self) -> dict[str, Any]:
        """This machine's peaks, measured if it has none; `disturbed`: other programs were in the way."""
        with self._turn():
            found = machine_peaks.here()
        return {"peaks": found, "disturbed": machine_peaks.disturbed(found)}

    def measure(self, point: measuring.Point, methods: Sequence[tuple[str, Mapping[str, Any]]],
                limits: tuple[int, float, float], seed: Sequence[int]) -> list[store.Measurement]:  # fmt: skip
        """One shape's measurements, as measure.measure_group gives them; `seed` draws the order of the rounds.

        `limits`: samples, budget_s and limit_s.
        """
        samples, budget_s, limit_s = limits
        with self._turn():
            return measuring.measure_group(point, methods, samples, budget_s, np.random.default_rng(seed), limit_s)


def source() -> str:
    """A short hash of all of the package's source: two that differ may measure or store differently."""
    hashed = hashlib.sha256()
    for file in sorted(registry.PACKAGE.rglob("*.py")):
        hashed.update(f"{file.relative_to(registry.PACKAGE).as_posix()}\n".encode() + file.read_bytes())
    return hashed.hexdigest()[:10]
