"""Chapter 06, the sweep over machines: does a Dask worker disturb what is measured beside it?

Computed while the page runs, on this machine: two benches take turns at the same points, one under a worker of a local
Dask cluster, as in a sweep over machines, the other under nobody.
"""

from __future__ import annotations

import os

import numpy as np
import pandas as pd

from rnnpar import machine
from rnnpar.study import measure
from rnnpar.study.store import Measurement

METHODS = ("serial/compiled", "threads/rows")
BUDGET_S = 0.3  # for the samples of a method in a round
LIMIT_S = 60.0


def beside_dask(rounds: int = 5, H: int = 256, T: int = 1024) -> pd.DataFrame:
    """Seconds of a call, a row a round and method: columns method, alone, dask. Empty where Dask is not installed."""
    try:
        from distributed import Client, LocalCluster

        from rnnpar.study import bench, cluster
    except ModuleNotFoundError:
        return pd.DataFrame(columns=["method", "alone", "dask"])
    point = measure.Point("random", H, H, H, T, 1)
    methods = [(name, {"threads": machine.cores_allowed()} if "threads" in name else {}) for name in METHODS]
    found = []
    ours = dict(os.environ)
    lone = bench.start()  # before the cluster, whose nanny sets variables in this process too
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as local,
        Client(local) as client,
    ):
        try:
            for turn in range(rounds + 1):
                # The first round compiles. In the others, a team needs 0.1 s to find its cores.
                request = ("measure", point, methods, (150 if turn else 1, BUDGET_S, 1.0), [turn])
                theirs = client.submit(cluster.ask_bench, "beside", request[0], request[1:], LIMIT_S, False, pure=False)
                dask = _medians(theirs.result(timeout=2 * LIMIT_S))
                alone = _medians(lone.ask(*request, limit_s=LIMIT_S))
                if turn:
                    found += [{"method": name, "alone": alone[name], "dask": dask[name]} for name in METHODS]
        finally:
            lone.close()
            for name in set(os.environ) - set(ours):
                del os.environ[name]
    return pd.DataFrame(found)


def _medians(found: list[Measurement]) -> dict[str, float]:
    """method -> median seconds of a call."""
    return {one.method: float(np.median(one.seconds["steady"])) for one in found}
