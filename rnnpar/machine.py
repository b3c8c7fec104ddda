"""Which machine this is (CPU, caches, memory, GPU, BLAS, versions), and its peaks, measured once.

Results are kept under a machine's name, `<processor>-<cores allowed>c-<hash of the host>`: made by the program,
never typed, so that two alike machines are not taken for one and one machine is not called by two names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from rnnpar.network import RNN
from rnnpar.registry import Unavailable

PEAKS_VERSION = 3  # raised when what is measured changes, so that older files are measured anew
PEAKS_TRIES = 5
GPU_PEAKS_VERSION = 1  # the same for what `gpu_peaks` measures; the CPU's are not measured again for it
PEAKS_PAUSE_S = 2.0
CROWDED = 1.5  # all threads' time for a product over one's; they have a core each, so it should be near 1
DISTURBED_S = 5e-4  # for a barrier or a start of threads; undisturbed, the slowest takes a tenth of it
SMI_S = 20.0  # that nvidia-smi may take: on a machine with many GPUs it takes seconds
GPU_FIELDS = ("index", "uuid", "name", "driver_version", "memory.total")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_THREAD_LIMIT", "GOMP_SPINCOUNT",
    "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES",
)  # fmt: skip
PACKAGES = ("numpy", "numba", "llvmlite", "threadpoolctl", "papermill", "torch", "onnxruntime", "openvino", "jax",
            "jaxlib", "mpi4py", "cupy-cuda13x", "numba-cuda", "cuda-bindings", "nvidia-cudnn-cu13")  # fmt: skip


@cache
def cores_allowed() -> int:
    """How many cores this process may use: its affinity mask, and the quota of its control group if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, int(quota))) if quota else cores


def memory() -> int:
    """Bytes of memory of this machine."""
    return psutil.virtual_memory().total


def _cgroup_quota() -> float | None:
    """Cores' worth of time that the control group allows (Linux, v2 or v1), or None."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        return limit / int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text()) if limit > 0 else None
    except (OSError, ValueError):
        return None


@cache
def cpu() -> str:
    """The processor's marketing name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "cpu model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        return subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True
        ).stdout.strip()
    return platform.processor() or platform.machine()


@cache
def caches() -> dict[str, int]:
    """Bytes of each data cache that core 0 sees, {"L1": ..., "L2": ..., "L3": ...}; empty where unknown."""
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if (index / "type").read_text().strip() in ("Data", "Unified"):
                size = (index / "size").read_text().strip()
                sizes["L" + (index / "level").read_text().strip()] = int(size.rstrip("K")) * 1024
        except (OSError, ValueError):
            continue
    return sizes


@cache
def gpu() -> dict[str, Any]:
    """The NVIDIA GPU that CUDA calls device 0: name, driver, memory_bytes, compute_capability; empty where none is.

    nvidia-smi tells it, in a process of its own, so that nothing of CUDA is loaded here; where a container left it out,
    the driver itself is asked. What neither can tell is left out. CUDA_VISIBLE_DEVICES is heeded. A GPU that is there
    and does not answer is none: `gpu_problem` says why.
    """
    return _ask_for_gpu()[0]


def gpu_problem() -> str:
    """Why there is no GPU here, in a sentence; empty where there is one."""
    return _ask_for_gpu()[1]


@cache
def _ask_for_gpu() -> tuple[dict[str, Any], str]:
    if shutil.which("nvidia-smi") is None:
        return _ask_driver()
    rows, problem = _nvidia_smi((*GPU_FIELDS, "compute_cap"))
    if "not a valid field" in problem:  # a driver of before 2021
        rows, problem = _nvidia_smi(GPU_FIELDS)
    if not rows:
        return {}, problem
    row, problem = _visible(rows, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if row is None:
        return {}, problem
    found: dict[str, Any] = {"name": row["name"], "driver": row["driver_version"]}
    if memory := re.fullmatch(r"(\d+) MiB", row["memory.total"]):
        found["memory_bytes"] = int(memory[1]) * 2**20
    if re.fullmatch(r"\d+\.\d+", row.get("compute_cap", "")):
        found["compute_capability"] = row["compute_cap"]
    return found, ""


def _ask_driver() -> tuple[dict[str, Any], str]:
    from rnnpar.kernels.launch import Device

    try:
        device = Device.current()
    except (RuntimeError, ValueError) as error:
        why = str(error).removeprefix("no GPU can be used here: ")
        return {}, f"{why} (nor is nvidia-smi in PATH)"
    found: dict[str, Any] = {"name": device.name, "driver": "unknown", "memory_bytes": device.memory}
    found["compute_capability"] = ".".join(map(str, device.capability))
    with suppress(OSError):
        words = Path("/proc/driver/nvidia/version").read_text()
        if version := re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", words):
            found["driver"] = version[1]
    return found, ""


def _nvidia_smi(fields: tuple[str, ...]) -> tuple[list[dict[str, str]], str]:
    """A row of `fields` for each GPU, and in place of rows why there are none."""
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=SMI_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi does not answer: {error}"
    lines = [line for line in answer.stdout.splitlines() if line.strip()]
    rows = [[field.strip() for field in line.split(",")] for line in lines]
    if answer.returncode or any(len(row) != len(fields) for row in rows):
        words = " ".join((answer.stdout + answer.stderr).split())[:200]
        return [], f"nvidia-smi failed (exit status {answer.returncode}): {words}"
    if not rows:
        return [], "nvidia-smi knows of no GPU"
    return [dict(zip(fields, row, strict=True)) for row in rows], ""


def _visible(rows: list[dict[str, str]], visible: str | None) -> tuple[dict[str, str] | None, str]:
    """The first of `rows` that CUDA_VISIBLE_DEVICES lets a program see, or None and why."""
    if visible is None:
        return rows[0], ""
    first = visible.split(",")[0].strip()
    if first.startswith("MIG-"):
        return rows[0], ""  # a slice of a GPU: nvidia-smi lists only whole ones, and most often there is one
    for row in rows:
        if first and (first == row["index"] or row["uuid"].startswith(first)):
            return row, ""
    listed = ", ".join(f"{row['index']} ({row['name']})" for row in rows)
    return None, f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU; there are: {listed}"


@cache
def name() -> str:
    """This machine's name, as folders and figures carry it: `amd-epyc-znver5-2c-1f3a`."""
    if gpu():
        model = gpu()["name"]
    else:
        import llvmlite.binding as llvm  # llvmlite knows the microarchitecture, which a cloud's model name hides

        model = f"{re.sub(r'[(]R[)]|[(]TM[)]|CPU|Processor|@.*|[0-9]+-Core', '', cpu())} {llvm.get_host_cpu_name()}"
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return f"{slug}-{cores_allowed()}c-{_host_hash()}"


def _host_hash() -> str:
    identity = platform.node()
    for file in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            identity += Path(file).read_text().strip()
            break
        except OSError:
            continue
    return hashlib.sha256(identity.encode()).hexdigest()[:4]


def blas() -> dict[str, Any]:
    """NumPy's BLAS: name, version, threads, and the core type it took this processor for."""
    from threadpoolctl import threadpool_info

    for pool in threadpool_info():
        if pool["user_api"] == "blas":
            return {key: pool.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
    return {}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter to a time, where they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """What machine.json holds beside the results: everything above, in plain types."""
    return {
        "name": name(),
        "cpu": cpu(),
        "cores_allowed": cores_allowed(),
        "caches": caches(),
        "memory_bytes": memory(),
        "gpu": gpu(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "blas": blas(),
        "thread_variables": {key: os.environ[key] for key in THREAD_VARIABLES if key in os.environ},
        "versions": versions(),
        "numpy_simd": np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", []),
    }


def folder() -> Path:
    """Where this machine's results and peaks are kept: data/results/<machine>, beside the package or in RNNPAR_DATA.

    Installed without its data folder, the package keeps the peaks in the user's cache instead.
    """
    data = os.environ.get("RNNPAR_DATA")
    beside = Path(__file__).resolve().parents[1] / "data"
    if not data and not beside.is_dir():
        return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rnnpar" / name()
    return Path(data or beside) / "results" / name()


def peaks() -> dict[str, Any]:
    """This machine's peaks, measured at the first call ever (some seconds) and kept in peaks.json; see `measure_peaks`.

    A file that cannot be read is an error and never overwritten; a folder that cannot be written costs only that
    the next process measures again.
    """
    return _peaks(folder() / "peaks.json")


@cache
def _peaks(file: Path) -> dict[str, Any]:
    found = _stored_peaks(file)
    if found.get("version") == PEAKS_VERSION:
        return found
    print("rnnpar: measuring this machine's peaks, once (about 20 s) ...", file=sys.stderr, flush=True)
    found = measure_peaks()
    for _ in range(PEAKS_TRIES - 1):
        found = least(found, measure_peaks())  # twice at least: a disturbance of seconds does not last for both
        if not (disturbed(found) or crowded(found)):
            break
        time.sleep(PEAKS_PAUSE_S)
    if disturbed(found):
        print(
            "rnnpar: other programs keep this machine's cores busy; the peaks are used but not kept: "
            "`python -m rnnpar.machine --peaks` measures them at a quieter time",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        return found
    gpus = {key: value for key, value in _stored_peaks(file).items() if key == "gpu"}
    _keep_peaks(file, found | gpus)
    return found | gpus


def gpu_peaks() -> dict[str, Any]:
    """The GPU's peaks, measured at the first call ever and kept under `gpu` in peaks.json; see `gpu_probe.measure`.

    Empty where there is no GPU. Unavailable where there is one, and no numba-cuda to measure it with.
    """
    return _gpu_peaks(folder() / "peaks.json") if gpu() else {}


@cache
def _gpu_peaks(file: Path) -> dict[str, Any]:
    stored = _stored_peaks(file)
    found = stored.get("gpu", {})
    if (found.get("version"), found.get("name")) == (GPU_PEAKS_VERSION, gpu()["name"]):
        return found
    if importlib.util.find_spec("numba_cuda") is None:
        raise Unavailable("the GPU's peaks are measured with numba-cuda: pip install 'numba-cuda[cu13]'")
    from rnnpar.kernels import gpu_probe

    print("rnnpar: measuring this GPU's peaks, once (about 20 s) ...", file=sys.stderr, flush=True)
    measured = {"version": GPU_PEAKS_VERSION, "name": gpu()["name"], "measured": time.strftime("%Y-%m-%d")}
    found = measured | gpu_probe.measure()
    _keep_peaks(file, stored | {"gpu": found})
    return found


def _stored_peaks(file: Path) -> dict[str, Any]:
    """What a file of peaks holds, of the CPU, of the GPU or of both; empty without one. ValueError if it is damaged."""
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
        if found.get("version") is None and "gpu" not in found:
            raise KeyError("version")
        return found
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete it, and the peaks are measured again") from error


def _keep_peaks(file: Path, found: dict[str, Any]) -> None:
    """Write a file of peaks whole, or say why it cannot be."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(temporary, file)
    except OSError as error:
        print(f"rnnpar: the peaks cannot be kept: {error}", file=sys.stderr, flush=True)


def disturbed(found: dict[str, Any]) -> bool:
    """Whether other programs were in the way: threads that share their cores meet in milliseconds, not in less."""
    return any(seconds > DISTURBED_S for key in ("barrier", "launch") for seconds in found[key].values())


def crowded(found: dict[str, Any]) -> bool:
    """Whether threads took each other's arithmetic away, though the system says that each core is whole.

    A virtual machine's two cores may for a while be the two halves of one: then all threads together are no faster
    than one. It passes, so it is worth another try; where it does not, it is the truth, and kept.
    """
    try:
        siblings = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return False
    seconds = {int(n): {(H, rows): took for H, rows, took in points}[64, 64] for n, points in found["products"].items()}
    return siblings.isdigit() and seconds[max(seconds)] > CROWDED * seconds[min(seconds)]


def least(one: Any, other: Any) -> Any:
    """Two measurements of the peaks as one: the smaller of each pair of times, which less was in the way of."""
    if isinstance(one, dict):
        return {key: least(value, other[key]) for key, value in one.items()}
    if isinstance(one, list | tuple):
        return [least(*pair) for pair in zip(one, other, strict=True)]
    return min(one, other) if isinstance(one, float) else one


def measure_peaks() -> dict[str, Any]:
    """Measure what the model predicts from, in seconds; about 10 s.

    products: threads -> list of (H, rows, seconds) of the packed product, `blas` the same by NumPy on one thread;
    steps: the same of one step after another, W h and tanh; exchange: threads -> (seconds a meeting, an element);
    barrier (of flags), counter_barrier, launch, python_launch (by Python's threads): threads -> seconds;
    call: seconds of a call that has next to nothing to compute;
    tanh, softmax, numpy_*: (seconds a call, seconds an element); fresh_memory: seconds a byte for pages that are new.
    """
    from rnnpar.kernels import probe
    from rnnpar.runner import prepare  # a call's own cost is what a user pays, so it is measured from outside

    cores = cores_allowed()
    teams = sorted({1, cores})
    several = sorted({n for n in (2, cores // 4, cores // 2, cores) if 2 <= n <= cores})
    return {
        "version": PEAKS_VERSION,
        "measured": time.strftime("%Y-%m-%d"),
        "products": {str(n): list(probe.products(n)) for n in teams},
        "steps": {str(n): list(probe.steps(n)) for n in teams},
        "blas": list(probe.blas_products()),
        "call": probe.call_seconds(prepare(RNN.random(1, 1, 1), "serial/compiled")),
        "barrier": {str(n): probe.barrier_seconds(n) for n in several},
        "exchange": {str(n): probe.exchange_line(n) for n in several},
        "counter_barrier": {str(n): probe.barrier_seconds(n, "counter") for n in several},
        "python_launch": {str(n): probe.launch_seconds(n, "python") for n in several},
        "launch": {str(n): probe.launch_seconds(n) for n in (1, *several)},
        "tanh": probe.tanh_line(),
        "softmax": probe.softmax_line(),
        "numpy_tanh": probe.numpy_line(np.tanh),
        "numpy_exp": probe.numpy_line(np.exp),
        "numpy_add": probe.numpy_line(lambda a: a + a),
        "fresh_memory": probe.fresh_memory_seconds(),
    }


def forget_peaks(part: str) -> None:
    """Drop what is kept of the peaks of the "cpu" or the "gpu", so that it is measured anew; the other part stays."""
    file = folder() / "peaks.json"
    try:
        stored = _stored_peaks(file)
    except ValueError:  # damaged: all of it is measured anew
        file.unlink()
        return
    left = {key: value for key, value in stored.items() if (key == "gpu") == (part == "cpu")}
    if left != stored:
        _keep_peaks(file, left) if left else file.unlink()


def main(arguments: list[str]) -> int:
    """`python -m rnnpar.machine` prints this machine's name; with --peaks or --gpu-peaks, measures those anew."""
    if arguments == ["--peaks"]:
        forget_peaks("cpu")
        return int(disturbed(peaks()))
    if arguments == ["--gpu-peaks"]:
        if not gpu():
            print(f"error: no GPU to measure: {gpu_problem()}", file=sys.stderr)
            return 2
        forget_peaks("gpu")
        print(json.dumps(gpu_peaks(), indent=1))
        return 0
    if arguments:
        print("usage: python -m rnnpar.machine [--peaks | --gpu-peaks]", file=sys.stderr)
        return 2
    print(name())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
