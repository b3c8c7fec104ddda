"""The plans' predicted steps against those that an H200 took: data/results/<machine>/plans.csv, kernels alone."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from rnnpar.kernels import cluster_plan, launch
from rnnpar.kernels.launch import H200

FILE = Path(__file__).parents[2] / "data/results/nvidia-h200-16c-5bce/plans.csv"
CURRENT = "1d1360b"  # the revision of the kernels that is measured there last
WITH_CLOCK = 1e6 / H200.clock


def rows(method: str, dtype: str, revision: str) -> list[dict[str, str]]:
    with FILE.open(newline="") as file:
        found = [row for row in csv.DictReader(file) if (row["method"], row["dtype"]) == (method, dtype)]
    return [row for row in found if row["revision"] == revision]


def persistent(row: dict[str, str]) -> float:
    sizes = [int(row[name]) for name in ("H", "B", "groups", "teams")]
    plan = launch._persistent(H200, *sizes[:2], "float32", row["barrier"], *sizes[2:])
    return launch.step_cycles(H200, plan) * WITH_CLOCK


def cluster(row: dict[str, str]) -> float:
    H, B, blocks, sequences, split = (int(row[name]) for name in ("H", "B", "blocks", "sequences", "split"))
    make = cluster_plan._on_cores if row["dtype"] == "float32" else cluster_plan._on_tensor_cores
    return make(H, blocks, sequences, split, H200).seconds(H200, B) * 1e6


def compared(found: list[dict[str, str]], predict) -> tuple[float, float]:
    """(the median relative error, the chosen plan's time over the fastest one's at most)."""
    errors, shapes = [], {}
    for row in found:
        guess, took = predict(row), float(row["us"])
        errors.append(abs(guess / took - 1))
        shapes.setdefault((row["H"], row["B"], row["barrier"]), []).append((guess, took))
    return float(np.median(errors)), max(min(plans)[1] / min(took for _, took in plans) for plans in shapes.values())


@pytest.mark.parametrize(
    ("method", "dtype", "revision", "predict", "count", "slower"),
    [
        ("numba_cuda/persistent", "float32", CURRENT, persistent, 150, 1.05),
        ("cupy_gpu/cluster", "float32", CURRENT, cluster, 70, 1.6),
        ("cupy_gpu/cluster", "bfloat16", "ae0b9f5", cluster, 120, 1.3),  # that kernel is the same still
    ],
)
def test_the_plans_cost_what_was_measured(method, dtype, revision, predict, count, slower):
    found = [row for row in rows(method, dtype, revision) if row["barrier"] != "values"]
    assert len(found) >= count
    error, loss = compared(found, predict)
    assert error < 0.08
    assert loss < slower, "the chosen plan, over the fastest of those that were tried"
