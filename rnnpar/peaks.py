"""A machine's peaks: what its arithmetic, caches, meetings and calls cost, measured once and kept beside its results.

    python -m rnnpar.peaks [--gpu]        measures this machine's, or its GPU's, anew

They are all that the cost models predict from (rnnpar/model.py, model_gpu.py, model_ranks.py).
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rnnpar import machine, registry
from rnnpar.network import RNN
from rnnpar.runner import Runner
from rnnpar.words import write_anything

VERSION = 4  # raised when what is measured changes, so that older files are measured anew
GOOD = 5  # undisturbed measurements, of which the median counts
TRIES = 7  # measurements at most
GPU_VERSION = 2  # the same for what `of_gpu` measures; the CPU's are not measured again for it
PAUSE_S = 1.0
CROWDED = 1.5  # all threads' time for a product over one's; they have a core each, so it should be near 1
SIBLINGS = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")  # 0, or 0,64, or 0-1
DISTURBED_S = 5e-4  # for a barrier, a start of threads or a small step; undisturbed, the slowest takes a tenth of it


def file() -> Path:
    """Where this machine's peaks are kept."""
    return machine.folder() / "peaks.json"


def here() -> dict[str, Any]:
    """This machine's peaks, measured at the first call ever (some seconds) and kept in peaks.json; see `measure`.

    A file that cannot be read is an error and never overwritten; a folder that cannot be written costs only that
    the next process measures again. Unavailable where there are none yet and nothing can be compiled.
    """
    return _here(file())


@cache
def _here(at: Path) -> dict[str, Any]:
    found = stored_in(at)
    if found.get("version") == VERSION:
        return found
    if why := registry.why_not_compiled():
        raise registry.Unavailable(f"this machine's peaks cannot be measured: {why}")
    print("rnnpar: measuring this machine's peaks, once (about 30 s) ...", file=sys.stderr, flush=True)
    every, good = [], []
    while len(every) < TRIES and len(good) < GOOD:
        every.append(measure())
        if disturbed(every[-1]) or crowded(every[-1]):
            time.sleep(PAUSE_S)
        else:
            good.append(every[-1])
    found = median(good or every)
    if disturbed(found):
        print(
            "rnnpar: other programs keep this machine's cores busy; the peaks are used but not kept: "
            "`python -m rnnpar.peaks` measures them at a quieter time",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        return found
    gpus = {key: value for key, value in stored_in(at).items() if key == "gpu"}
    keep(at, found | gpus)
    return found | gpus


def of_gpu() -> dict[str, Any]:
    """The GPU's peaks, measured at the first call ever and kept under `gpu` in peaks.json; see `gpu_probe.measure`.

    Empty where there is no GPU. Unavailable where there is one, and no numba-cuda to measure it with.
    """
    return _of_gpu(file()) if machine.gpu() else {}


@cache
def _of_gpu(at: Path) -> dict[str, Any]:
    stored = stored_in(at)
    found = stored.get("gpu", {})
    if (found.get("version"), found.get("name")) == (GPU_VERSION, machine.gpu()["name"]):
        return found
    if importlib.util.find_spec("numba_cuda") is None:
        raise registry.Unavailable("the GPU's peaks are measured with numba-cuda: pip install 'numba-cuda[cu13]'")
    from rnnpar.kernels import gpu_probe

    print("rnnpar: measuring this GPU's peaks, once (about 20 s) ...", file=sys.stderr, flush=True)
    measured = {"version": GPU_VERSION, "name": machine.gpu()["name"], "measured": time.strftime("%Y-%m-%d")}
    found = measured | gpu_probe.measure()
    keep(at, stored | {"gpu": found})
    return found


def stored_in(at: Path) -> dict[str, Any]:
    """What a file of peaks holds, of the CPU, of the GPU or of both; empty without one. ValueError if it is damaged."""
    if not at.exists():
        return {}
    try:
        found = json.loads(at.read_text())
        if found.get("version") is None and "gpu" not in found:
            raise KeyError("version")
        return found
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{at} is damaged ({error}); delete it, and the peaks are measured again") from error


def keep(at: Path, found: dict[str, Any]) -> None:
    """Write a file of peaks whole, or say why it cannot be."""
    try:
        at.parent.mkdir(parents=True, exist_ok=True)
        temporary = at.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(temporary, at)
    except OSError as error:
        print(f"rnnpar: the peaks cannot be kept: {error}", file=sys.stderr, flush=True)


def disturbed(found: dict[str, Any]) -> bool:
    """Whether other programs were in the way: threads that share their cores meet in milliseconds, not in less."""
    steps = [points[0][-1] for points in found["steps"].values()]  # the smallest, in which a team meets as well
    return any(seconds > DISTURBED_S for seconds in (*found["barrier"].values(), *found["launch"].values(), *steps))


def crowded(found: dict[str, Any]) -> bool:
    """Whether threads took each other's arithmetic away, though the system says that each core is whole.

    A virtual machine's two cores may for a while be the two halves of one: then all threads together are no faster
    than one. It passes, so it is worth another try; where it does not, it is the truth, and kept.
    """
    seconds = {int(n): {(H, rows): took for H, rows, took in points}[64, 64] for n, points in found["products"].items()}
    return separate() and seconds[max(seconds)] > CROWDED * seconds[min(seconds)]


def separate() -> bool:
    """Whether the system says that each of its processors is a core of its own; False too where it does not say."""
    try:
        return SIBLINGS.read_text().strip().isdigit()
    except OSError:
        return False


def median(measurements: Sequence[Any]) -> Any:
    """Several measurements of the peaks as one: the median of each time.

    Each measurement has its arrays anew, and some lie better in the caches than others. The best of all would be what
    a method has only where it is lucky as well, and predictions from it were short by a fifth.
    """
    first = measurements[0]
    if isinstance(first, dict):
        return {key: median([one[key] for one in measurements]) for key in first}
    if isinstance(first, list | tuple):
        return [median(group) for group in zip(*measurements, strict=True)]
    return statistics.median(measurements) if isinstance(first, float) else first


def measure() -> dict[str, Any]:
    """Measure what the model predicts from, in seconds; about 4 s, and as much as 15 more to compile it.

    products: threads -> list of (H, rows, seconds) of the packed product, `blas` the same by NumPy on one thread;
    steps: the same of one step after another, W h and tanh; exchange: threads -> (seconds a meeting, an element);
    barrier (of flags), counter_barrier, launch (a parallel region without work): threads -> seconds;
    call: seconds of a call that has next to nothing to compute;
    tanh, softmax, numpy_*: (seconds a call, seconds an element); fresh_memory: seconds a byte for pages that are new.
    """
    from rnnpar.kernels import probe

    cores = machine.cores_allowed()
    teams = sorted({1, cores})
    several = sorted({n for n in (2, cores // 4, cores // 2, cores) if 2 <= n <= cores})
    return {
        "version": VERSION,
        "measured": time.strftime("%Y-%m-%d"),
        "products": {str(n): list(probe.products(n)) for n in teams},
        "steps": {str(n): list(probe.steps(n)) for n in teams},
        "blas": list(probe.blas_products()),
        # a call's own cost is what a user pays, so it is measured from outside
        "call": probe.call_seconds(Runner(RNN.random(1, 1, 1), registry.find("serial/compiled"), {})),
        "barrier": {str(n): probe.barrier_seconds(n) for n in several},
        "exchange": {str(n): probe.exchange_line(n) for n in several},
        "counter_barrier": {str(n): probe.barrier_seconds(n, "counter") for n in several},
        "launch": {str(n): probe.launch_seconds(n) for n in (1, *several)},
        "tanh": probe.tanh_line(),
        "softmax": probe.softmax_line(),
        "numpy_tanh": probe.numpy_line(np.tanh),
        "numpy_exp": probe.numpy_line(np.exp),
        "numpy_add": probe.numpy_line(lambda a: a + a),
        "fresh_memory": probe.fresh_memory_seconds(),
    }


def forget(part: str) -> None:
    """Drop what is kept of the peaks of the "cpu" or the "gpu", so that it is measured anew; the other part stays."""
    at = file()
    try:
        stored = stored_in(at)
    except ValueError:  # damaged: all of it is measured anew
        at.unlink()
        return
    left = {key: value for key, value in stored.items() if (key == "gpu") == (part == "cpu")}
    if left != stored:
        keep(at, left) if left else at.unlink()


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status: 1 where other programs were in the way, 2 for a wrong command."""
    write_anything()
    if not arguments:
        forget("cpu")
        return int(disturbed(here()))
    if arguments != ["--gpu"]:
        print("usage: python -m rnnpar.peaks [--gpu]", file=sys.stderr)
        return 2
    if not machine.gpu():
        print(f"error: no GPU to measure: {machine.gpu_problem()}", file=sys.stderr)
        return 2
    forget("gpu")
    print(json.dumps(of_gpu(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
