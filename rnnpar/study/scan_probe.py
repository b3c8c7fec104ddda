"""The parallel scan alone: the same segments on one thread and on all cores, held against the recurrence.

No forward pass, and so none of the sweep's points: a profile names it among its `probes`. Its rows are of the workload
"scan" and of methods that no table holds: `scan/dense` drops maps that have faded away, `scan/dense-all` carries every
map to its segment's end, and `scan/diagonal` has diagonals in place of maps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnpar import machine
from rnnpar.kernels.scan import FADED, Scan
from rnnpar.network import RNN
from rnnpar.study import measure, store
from rnnpar.study.cores import count
from rnnpar.study.measure import Point

SCANS = {"scan/dense": (True, FADED), "scan/dense-all": (True, 0.0), "scan/diagonal": (False, FADED)}
SEGMENTS = 16
T, H = 65536, 32


def due(experiment: Mapping[str, Any], stored: Mapping[str, store.Measurement]) -> bool:
    """Whether a scan is not among `stored`, the experiment's measurements, with the source that stands now."""
    done = {key: found.source for key, found in stored.items()}
    keys = [measure.key(_point(), name, threads) for name in SCANS for threads in {1, machine.cores_allowed()}]
    return any(done.get(key) != measure.source("in_time/deer") for key in keys)


def run(experiment: Mapping[str, Any]) -> list[store.Measurement]:
    """The measurements of all scans, of as many samples as the experiment's."""
    return measure_scans(experiment["samples"])


def measure_scans(rounds: int, T: int = T, H: int = H) -> list[store.Measurement]:
    """Time all scans over T steps of H elements in turn.

    A round in which the cores were not whole is set aside and taken again, up to twice the rounds in all.
    """
    rng = np.random.default_rng(0)
    net = RNN.random(H, H, H)
    g, r = rng.uniform(0.5, 1, (T, 1, H)).astype(np.float32), (1e-3 * rng.standard_normal((T, 1, H))).astype(np.float32)
    W, state, wanted = net.layers[0].W, np.zeros((1, H)), {True: np.empty((T, H)), False: np.empty((T, H))}
    for dense in wanted:
        state[:] = 0
        for t in range(T):
            state = g[t] * (state @ W.T if dense else state * W.diagonal()) + r[t]
            wanted[dense][t] = state
    scans = {
        (name, threads): Scan(W, g, r, threads, SEGMENTS, dense, faded)
        for name, (dense, faded) in SCANS.items()
        for threads in dict.fromkeys((1, machine.cores_allowed()))
    }
    errors, seconds, aside = {}, {key: [] for key in scans}, {key: [] for key in scans}
    for (name, threads), scan in scans.items():
        scan.run()
        truth = wanted[SCANS[name][0]]
        errors[name, threads] = float(np.linalg.norm(scan.d[:, 0] - truth) / np.linalg.norm(truth))
    for _ in range(2 * rounds):
        whole, took = measure.cores().whole(), {}
        for key, scan in scans.items():
            scan.run()  # its data into the caches, its threads awake
            begin = time.perf_counter()
            scan.run()
            took[key] = time.perf_counter() - begin
        kept = seconds if whole and measure.cores().whole() else aside
        for key, value in took.items():
            kept[key].append(value)
        if len(next(iter(seconds.values()))) == rounds:
            break
    counted = {key: count(seconds[key], aside[key]) for key in scans}
    return [
        store.Measurement(
            **measure.identity(_point(T, H), name, threads), first_call=None, seconds={"steady": values},
            error=errors[name, threads], status="ok" if errors[name, threads] <= measure.BOUND else "inaccurate",
            message="; ".join(filter(None, [f"segments={SEGMENTS}", said])), source=measure.source("in_time/deer"),
        )
        for (name, threads), (values, said) in counted.items()
    ]  # fmt: skip


def _point(T: int = T, H: int = H) -> Point:
    return Point("scan", H, 0, 0, T, 1)
