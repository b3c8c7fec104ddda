"""A machine's GPU as chapters 04 and 05 need it: its limits, its measured or published rates, and what they predict.

Letters: T steps, B sequences side by side, I input, H hidden, O output size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rnnpar import machine, model_gpu
from rnnpar.kernels import cluster_plan, launch
from rnnpar.kernels.launch import H100, KNOWN, Device, DoesNotFit
from rnnpar.model_gpu import GpuModel
from rnnpar.peaks import GPU_VERSION
from rnnpar.study import results, store
from rnnpar.study.check_gpu import steps
from rnnpar.work import Work

PACKAGE = Path(model_gpu.__file__).parent
PEERS = ("peers/cudnn tf32=False", "peers/cudnn tf32=True", "peers/jax_gpu")


def load(name: str = "") -> pd.DataFrame:
    """The measurements of check-gpu's sweep, as results.load has them, at its own numbers of steps.

    Rows of kind "steady" are calls from device arrays to device arrays, those of kind "transfer" from NumPy arrays.
    """
    runs = results.load(name, "gpu")
    return runs[runs["T"] == runs["B"].map(steps)]


def model(name: str) -> GpuModel:
    """The cost model of a machine's GPU: with its measured peaks, else published ones, which `rates.measured` tells.

    Of an H100 where neither the machine nor this one has a GPU that is known.
    """
    known = store.load_machine(name) if (store.results_folder(name) / "machine.json").exists() else {}
    device = _device(known) or (_here() if name == machine.name() else None) or H100
    return GpuModel(device, model_gpu.rates_of(_peaks(name), device))


def _device(known: dict[str, Any]) -> Device | None:
    """The limits of a GPU: as its driver told check-gpu, or those written down for its model."""
    if known.get("gpu_limits"):
        limits = dict(known["gpu_limits"])
        return Device(**limits | {key: tuple(limits.get(key, ())) for key in ("capability", "clusters")})
    return next((device for device in KNOWN if device.name == (known.get("gpu") or {}).get("name")), None)


def _here() -> Device | None:
    try:
        return Device.current() if machine.gpu() else None
    except (RuntimeError, ValueError):
        return None


def _peaks(name: str) -> dict[str, Any]:
    """The peaks of a machine's GPU as measured there; empty where they were not. store.ResultsError."""
    found = store.facts(store.results_folder(name) / "peaks.json").get("gpu", {})
    return found if found.get("version") == GPU_VERSION else {}


def short_name(device: Device) -> str:
    """H100, A100, T4: what people call a card."""
    words = device.name.replace("-", " ").split()
    return next((word for word in words if any(c.isdigit() for c in word)), device.name)


def predict(costs: GpuModel, method: str, H: int, B: int) -> float:
    """Predicted seconds of a call; `method` may carry options, as results name them. NaN where it does not fit."""
    name, *options = method.split()
    pairs = (option.split("=") for option in options)
    chosen = {option: int(value) if value.isdigit() else value for option, value in pairs}
    try:
        found = costs.predict(name, Work(steps(B), B, H, H, H), False, **chosen)
    except DoesNotFit:
        return float("nan")
    return found.seconds if found else float("nan")


def predicted(costs: GpuModel, methods: Iterable[str], H: Sequence[int], B: Sequence[int], name: str) -> pd.DataFrame:
    """Predictions of methods at each H and B as rows of the table of results; what does not fit is left out."""
    rows = [dict(machine=name, experiment="gpu", workload="random", H=h, I=h, O=h, T=steps(b), B=b, layers=1,
                 method=method, threads=1, kind="steady", source="predicted", status="ok", message="",
                 seconds=predict(costs, method, h, b)) for method in methods for h in H for b in B]  # fmt: skip
    table = pd.DataFrame(rows, columns=results.COLUMNS)
    return results.per_step(table.astype({"seconds": float, "seconds_low": float, "seconds_high": float})).dropna(
        subset="seconds"
    )


def draws(costs: GpuModel, H: int, B: int = 1) -> float:
    """Seconds that W h alone takes on the whole device: W once from where it lies, or the arithmetic if longer."""
    return model_gpu.floor(costs.device, costs.rates, H, B) - costs.rates.barrier[launch.BARRIERS[0]]


def near(device: Device, H: int) -> bool:
    """Whether W stays in registers and shared memory for a whole sequence."""
    return bool({"registers", "shared memory"} & set(model_gpu.lives(device, H)))


def largest(device: Device, dtype: str = "float32") -> int:
    """The largest multiple of 16 up to which numba_cuda/persistent keeps W on the chip, one sequence."""
    return max((H for H in range(16, 8193, 16) if "registers" in model_gpu.lives(device, H, dtype)), default=0)


def half_pays(device: Device, H: int, B: int) -> float:
    """How many times as fast bfloat16 weights make a cluster's step, by the launch plans; NaN where W does not fit."""
    try:
        full, half = (cluster_plan.plan(H, B, dtype, device).seconds(device, B) for dtype in ("float32", "bfloat16"))
    except DoesNotFit:
        return float("nan")
    return full / half


def lines_of_code(backend: str, section: str, files: Sequence[str] = ()) -> int:
    """Lines that are neither blank nor comment nor docstring: of a section of a backend's file, and of its kernels.

    ValueError where the file has no such section.
    """
    text = (PACKAGE / "backends" / f"{backend}.py").read_text(encoding="utf-8")
    found = re.search(rf"^# --- {section}:.*?$(.*?)(?=^# --- |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"backends/{backend}.py has no section {section!r}")
    python = re.sub(r'""".*?"""', "", found[1], flags=re.DOTALL)
    cuda = "\n".join((PACKAGE / "kernels" / name).read_text(encoding="utf-8") for name in files)
    marks = ((python, "#"), (cuda, "//"))
    return sum(
        bool(line.strip()) and not line.strip().startswith(mark) for text, mark in marks for line in text.split("\n")
    )


def ratio_to(runs: pd.DataFrame, method: str, peer: str, B: Sequence[int], H: tuple[int, int]) -> pd.Series:
    """How many times as fast as a peer a method is, from device arrays, over H and B; empty where not measured."""
    some = runs[(runs["kind"] == "steady") & runs["B"].isin(B) & runs["H"].between(*H)]
    gain = results.speed_up(some, over=peer)
    return results.series(gain, ["H", "B"], "speed_up", method)


def outdated(calls: pd.DataFrame) -> str:
    """The sizes at which some of our methods were last measured with an earlier version of their kernels."""
    ours = calls[~calls["method"].str.startswith("peers/")].sort_values("date")
    backend = ours["method"].str.split("/").str[0]
    old = ours[ours["code"] != backend.map(ours.groupby(backend)["code"].last())]
    return ", ".join(f"H = {H:,} with B = {B}" for H, B in sorted(set(zip(old["H"], old["B"], strict=True))))


def geometric_mean(ratios: pd.Series) -> pd.Series:
    """The geometric mean as a Series of one value, for `say`; empty where there is none."""
    return pd.Series(np.exp(np.log(ratios.dropna()).mean()), index=["all"]).dropna()
