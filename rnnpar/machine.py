"""Which machine this is: CPU, caches, memory, GPU, BLAS, versions. (What it can do: rnnpar/peaks.py.)

Results are kept under a machine's name, `<processor>-<cores allowed>c-<hash of the host>`: made by the program,
never typed, so that two alike machines are not taken for one and one machine is not called by two names.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil

SMI_S = 20.0  # that nvidia-smi may take: on a machine with many GPUs it takes seconds
GPU_FIELDS = ("index", "uuid", "name", "driver_version", "memory.total")
V2_MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))  # the second beside version 1
V1_MOUNTS = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpu,cpuacct"))
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_THREAD_LIMIT", "GOMP_SPINCOUNT",
    "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES",
)  # fmt: skip
PACKAGES = ("numpy", "numba", "llvmlite", "threadpoolctl", "papermill", "torch", "onnxruntime", "openvino", "jax",
            "jaxlib", "mpi4py", "cupy-cuda13x", "numba-cuda", "cuda-bindings", "nvidia-cudnn-cu13")  # fmt: skip


@cache
def cores_allowed(masked: int | None = None) -> int:
    """How many cores this process may use: its affinity mask, and the quota of its control group if there is one.

    `masked`: the cores in the masks of several processes of the group, where all of them together are meant.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = own if masked is None else masked
    quota = _cgroup_quota()
    return max(1, min(cores, int(quota))) if quota else cores


def memory() -> int:
    """Bytes of memory of this machine."""
    return psutil.virtual_memory().total


def control_groups() -> list[Path]:
    """The folders that may limit this process's time: its control group and all above it, by v2 and by v1 (Linux).

    Whatever lies between a group and the root of its mount limits it too. In a container the group's own path is often
    not there below the mount, whose root then is the group: folders that do not exist are listed as well.
    """
    groups = {mount: mount for mounts in (V2_MOUNTS, V1_MOUNTS) for mount in mounts}
    try:
        text = Path("/proc/self/cgroup").read_text()
    except (OSError, ValueError):
        text = ""
    # "0::/path" of version 2, "4:cpu,cpuacct:/path" of version 1
    for number, controllers, path in re.findall(r"^(\d+):([^:]*):(.*)$", text, re.MULTILINE):
        mounts = V2_MOUNTS if number == "0" else V1_MOUNTS if "cpu" in controllers.split(",") else ()
        groups |= {mount: mount / path.lstrip("/") for mount in mounts}
    return [
        folder for mount, group in groups.items() for folder in (group, *group.parents) if folder.is_relative_to(mount)
    ]


def _cgroup_quota() -> float | None:
    """Cores' worth of time that the control groups allow: the least of their quotas, or None where none has one."""
    quotas = [_quota_of(group) for group in control_groups()]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(group: Path) -> float | None:
    """Cores' worth of time that one control group allows: v2 has it in one file, v1 in two."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            limit, period = " ".join((group / file).read_text() for file in files).split()
            if limit not in ("max", "-1"):
                return int(limit) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
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
        return _user_cache() / "rnnpar" / name()
    return Path(data or beside) / "results" / name()


def _user_cache() -> Path:
    """Where programs of this user keep what can be made again; the temporary folder for a user without a home."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # neither HOME nor an entry in the table of users
        return Path(tempfile.gettempdir())


if __name__ == "__main__":
    print(name())
