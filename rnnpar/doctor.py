"""What is wrong with this machine's set-up for measuring and for speed, and how to mend it: `python -m rnnpar doctor`.

`read` looks at the machine once and gives the facts; each check is a function of the facts alone and returns its
findings, so that a test can put any fault in. A finding says what was found and what mends it:

    WRONG   times or answers here are not what this machine can do; the command's exit status is 1
    note    worth knowing; nothing has to be done
    ok      looked at, and in order
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

WRONG, NOTE, OK = "WRONG", "note", "ok"
BUSY = 0.15  # of a core: what others may take before times suffer
THROTTLED = 0.01  # of the control group's periods
STOLEN = 0.02  # of the processors' time, by other guests of the host
LOOK_S = 0.5  # how long the load of others is watched
AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512cd", "avx512vl"}
# Core types of OpenBLAS that use AVX-512, and those that use AVX2 and no more.
WIDE = {"skylakex", "cooperlake", "sapphirerapids"}
NARROW = {"haswell", "zen", "excavator", "steamroller", "piledriver", "bulldozer", "sandybridge", "nehalem", "penryn",
          "core2", "prescott", "barcelona", "dunnington", "bobcat", "atom", "nano"}  # fmt: skip
POOLS = {"OMP_NUM_THREADS": "OpenMP", "OPENBLAS_NUM_THREADS": "OpenBLAS", "MKL_NUM_THREADS": "MKL"}
CUPY = re.compile(r"cupy(-cuda\d+x|-rocm-[\d-]+)?$")
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}  # by CUDA's major version, on Linux; CUDA's release notes


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its check's subject, how bad it is, what was found, and the mend."""

    about: str
    level: str
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Facts:
    """What the checks judge: all that `read` found out. Where something cannot be read it keeps its default."""

    cores_allowed: int = 1  # affinity mask and quota together
    affinity: int = 1  # processors in the affinity mask
    quota: float | None = None  # cores' worth of time that the control group allows
    throttled: float = 0.0  # share of the control group's periods in which it was stopped
    siblings: tuple[tuple[int, ...], ...] = ()  # of the allowed processors: those that share a core
    flags: frozenset[str] = frozenset()  # instruction sets, as /proc/cpuinfo names them
    caches: Mapping[str, int] = field(default_factory=dict)  # bytes by level
    variables: Mapping[str, str] = field(default_factory=dict)  # of the environment
    blas: Mapping[str, Any] = field(default_factory=dict)  # as threadpoolctl tells it of NumPy's
    governor: str = ""
    frequency_driver: str = ""
    boost: bool | None = None
    on_battery: bool = False
    busy: float = 0.0  # cores that other programs keep busy, of those allowed
    stolen: float = 0.0  # share of time that the host gave to others
    huge_pages: str = ""  # always, madvise or never
    nvidia: bool = False  # whether the kernel has an NVIDIA driver
    driver: str = ""  # its version
    gpu: str = ""  # the GPU's name, where nvidia-smi tells one
    smi_error: str = ""  # what nvidia-smi said instead
    packages: Mapping[str, str] = field(default_factory=dict)  # versions of what touches a GPU, where installed


# --- the checks ------------------------------------------------------------------------------------------------------


def blas_core(facts: Facts) -> list[Finding]:
    """Whether OpenBLAS takes the processor for what it is. The serial baselines in NumPy stand on it."""
    about, kind = "BLAS core type", str(facts.blas.get("architecture") or "")
    asked = facts.variables.get("OPENBLAS_CORETYPE", "")
    if facts.blas.get("internal_api") != "openblas" or not kind:
        name = facts.blas.get("internal_api", "no BLAS that threadpoolctl knows")
        return [Finding(about, OK, f"NumPy uses {name}: its core type is its own affair")]
    has_avx512 = facts.flags >= AVX512
    if kind.lower() in WIDE and facts.flags and not has_avx512:
        return [Finding(about, WRONG, f"NumPy's OpenBLAS runs as {kind}, for AVX-512, which this processor lacks: "
                        "it will end with an illegal instruction", "unset OPENBLAS_CORETYPE")]  # fmt: skip
    if kind.lower() in NARROW and has_avx512:
        mend = "export OPENBLAS_CORETYPE=SkylakeX before Python starts (few rows may get slower: compare)"
        if asked:
            mend = f"unset OPENBLAS_CORETYPE, which asks for {asked}; if it still says so then: {mend}"
        return [Finding(about, WRONG, f"NumPy's OpenBLAS takes this processor for a {kind}, without AVX-512: "
                        "serial/naive and serial/hoisted are slower than they need be, and speed-ups over them "
                        "flatter", mend)]  # fmt: skip
    if asked and kind.lower() != asked.lower():
        return [Finding(about, NOTE, f"OPENBLAS_CORETYPE={asked}, but NumPy's OpenBLAS runs as {kind}: it knows no "
                        "such type, or was loaded before the variable was set", "unset OPENBLAS_CORETYPE")]  # fmt: skip
    return [Finding(about, OK, f"NumPy's OpenBLAS runs as {kind}")]


def blas_cache(facts: Facts) -> list[Finding]:
    """OPENBLAS_L2_SIZE, in KB, overrides the cache that OpenBLAS cuts its blocks for."""
    said, real = facts.variables.get("OPENBLAS_L2_SIZE", ""), facts.caches.get("L2", 0) // 1024
    if said and real and said != str(real):
        return [Finding("BLAS cache size", WRONG, f"OPENBLAS_L2_SIZE={said}, but a core's second-level cache has "
                        f"{real} KB: products are cut for another cache", "unset OPENBLAS_L2_SIZE")]  # fmt: skip
    return []


def numba_variables(facts: Facts) -> list[Finding]:
    """Variables that make Numba compile for another purpose than speed here."""
    about, found = "Numba's compiler", []
    if facts.variables.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        found.append(Finding(about, WRONG, "NUMBA_DISABLE_JIT is set: nothing is compiled, and only serial/naive and "
                             "serial/hoisted run", "unset NUMBA_DISABLE_JIT"))  # fmt: skip
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        if value := facts.variables.get(name):
            found.append(Finding(about, WRONG, f"{name}={value}: the code is compiled for that, not for this processor",
                                 f"unset {name}"))  # fmt: skip
    level = facts.variables.get("NUMBA_OPT", "3")
    if level not in ("", "3", "max"):
        found.append(Finding(about, WRONG, f"NUMBA_OPT={level}: loops are not vectorised as they could be",
                             "unset NUMBA_OPT"))  # fmt: skip
    return found or [Finding(about, OK, "compiles for this processor, with all optimisations")]


def oversubscription(facts: Facts) -> list[Finding]:
    """Threads against the cores that this process may use: more of them wait for each other's time slices."""
    about, cores, found = "threads and cores", facts.cores_allowed, []
    for name, library in POOLS.items():
        value = facts.variables.get(name, "").split(",")[0].strip()
        if not value:
            continue
        if not value.isdigit() or int(value) < 1:
            found.append(Finding(about, WRONG, f"{name}={value} is no number of threads", f"export {name}={cores}"))
        elif int(value) > cores:
            found.append(Finding(about, WRONG, f"{name}={value}, but this process may use {cores}: {library}'s threads "
                                 "wait for each other's time slices", f"export {name}={cores}"))  # fmt: skip
    pool = facts.blas.get("num_threads") or 0
    if pool > cores and not found:
        found.append(Finding(about, WRONG, f"NumPy's BLAS has started {pool} threads on {cores} cores",
                             f"export OPENBLAS_NUM_THREADS={cores} OMP_NUM_THREADS={cores}"))  # fmt: skip
    if facts.variables.get("OMP_WAIT_POLICY", "").lower() == "active":
        found.append(Finding(about, NOTE, "OMP_WAIT_POLICY=active: OpenMP's threads keep their cores between calls, "
                             "and other pools in the process fight them", "unset OMP_WAIT_POLICY"))  # fmt: skip
    return found or [Finding(about, OK, f"no pool is larger than the {cores} cores that may be used")]


def quota(facts: Facts) -> list[Finding]:
    """The control group's quota is time, not cores: who uses it up is stopped for the rest of the period."""
    about, found = "quota", []
    if facts.quota is None:
        return [Finding(about, OK, "no control group limits this process' time")]
    if facts.quota < facts.affinity:
        whole = max(1, int(facts.quota))
        cpus = f"0-{whole - 1}" if whole > 1 else "0"
        found.append(Finding(about, WRONG, f"the control group allows {facts.quota:g} cores' worth of time on "
                             f"{facts.affinity} processors: libraries that count processors start too many threads, "
                             "and all of them are stopped together when the time is used up",
                             f"give the container whole cores of its own (--cpuset-cpus {cpus}), or "
                             f"export OMP_NUM_THREADS={whole} OPENBLAS_NUM_THREADS={whole}"))  # fmt: skip
    if facts.throttled > THROTTLED:
        found.append(Finding(about, WRONG, f"this control group was stopped in {facts.throttled:.0%} of its periods",
                             "use fewer threads, or raise the quota"))  # fmt: skip
    return found or [Finding(about, OK, f"{facts.quota:g} cores' worth of time on {facts.affinity} processors")]


def power(facts: Facts) -> list[Finding]:
    """Whether the clock may rise: the governor, boost, the battery."""
    about, found = "power", []
    governed_in_hardware = facts.frequency_driver.startswith(("intel_pstate", "amd-pstate"))  # its powersave does rise
    if facts.governor in ("powersave", "conservative", "userspace") and not governed_in_hardware:
        found.append(Finding(about, WRONG, f"the governor is {facts.governor}: the clock stays low, or rises late",
                             "sudo cpupower frequency-set -g performance"))  # fmt: skip
    if facts.boost is False:
        found.append(Finding(about, NOTE, "boost is off: times are steadier, and longer than they need be",
                             "echo 1 | sudo tee /sys/devices/system/cpu/cpufreq/boost"))  # fmt: skip
    if facts.on_battery:
        found.append(Finding(about, WRONG, "the machine runs on its battery", "plug it in"))
    known = f"the governor is {facts.governor}" if facts.governor else "the system does not tell of a governor"
    return found or [Finding(about, OK, known)]


def disturbance() -> str:
    """Who else is on this process's cores at this moment, in words; empty where nobody is. Looks for half a second."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    busy, stolen = _load(allowed)
    found = others(Facts(cores_allowed=len(allowed), busy=busy, stolen=stolen))
    return "; ".join(finding.found for finding in found if finding.level == WRONG)


def others(facts: Facts) -> list[Finding]:
    """Other programs on the same cores, and other guests on the same host."""
    about, found = "load of others", []
    if facts.busy > BUSY:
        found.append(Finding(about, WRONG, f"other programs keep {facts.busy:.1f} of {facts.cores_allowed} cores busy: "
                             "threads that meet wait for them", "stop them, or measure at a quieter time"))  # fmt: skip
    if facts.stolen > STOLEN:
        found.append(Finding(about, WRONG, f"the host gave {facts.stolen:.0%} of this virtual machine's time to others",
                             "measure at a quieter time, or on a machine of your own"))  # fmt: skip
    return found or [Finding(about, OK, "nothing else uses these cores")]


def smt(facts: Facts) -> list[Finding]:
    """Processors that are halves of one core share its arithmetic and its caches."""
    about, cores, processors = "cores", len(facts.siblings), sum(map(len, facts.siblings))
    if not cores:
        return [Finding(about, OK, "the system does not tell which processors share a core")]
    if cores < processors:
        return [Finding(about, NOTE, f"the {processors} processors are {cores} cores: two threads on one share its "
                        "arithmetic and its caches, and wait for each other", f"prepare(..., threads={cores}), with "
                        "export OMP_PLACES=cores OMP_PROC_BIND=spread; compare it with all processors")]  # fmt: skip
    return [Finding(about, OK, f"each of the {processors} processors is a core of its own")]


def huge_pages(facts: Facts) -> list[Finding]:
    """Weights of megabytes are read in every step; NumPy asks for huge pages where the kernel gives them on request."""
    about = "huge pages"
    refused = facts.variables.get("NUMPY_MADVISE_HUGEPAGE") == "0"
    if facts.huge_pages == "never" or (facts.huge_pages == "madvise" and refused):
        mend = "unset NUMPY_MADVISE_HUGEPAGE"
        if facts.huge_pages == "never":
            mend = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        return [Finding(about, NOTE, "large arrays get small pages: some percent where W has many megabytes", mend)]
    said = f"the kernel gives them: {facts.huge_pages}" if facts.huge_pages else "the system does not tell"
    return [Finding(about, OK, said)]


def gpu(facts: Facts) -> list[Finding]:
    """The GPU, its driver, and the packages that would use it: each alone is no use."""
    about, found, installed = "GPU", [], facts.packages
    cupy = sorted(name for name in installed if CUPY.match(name))
    if len(cupy) > 1:
        found.append(Finding(about, WRONG, f"{' and '.join(cupy)} are installed together: they overwrite each other's "
                             "files", f"pip uninstall -y {' '.join(cupy)}, then pip install one of them"))  # fmt: skip
    if not facts.gpu:
        return found + _no_gpu(facts, about)
    hidden = facts.variables.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        found.append(Finding(about, WRONG, f"CUDA_VISIBLE_DEVICES={hidden!r} hides the {facts.gpu}",
                             "unset CUDA_VISIBLE_DEVICES"))  # fmt: skip
    missing = [name for name, there in (("numba-cuda", "numba-cuda" in installed), ("cupy", bool(cupy))) if not there]
    driver = int(facts.driver.split(".")[0]) if re.match(r"\d+", facts.driver) else 0
    newest = max((major for major, least in LEAST_DRIVER.items() if driver >= least), default=0)
    if missing:
        wheels = {"numba-cuda": f"'numba-cuda[cu{newest or 13}]'", "cupy": f"cupy-cuda{newest or 13}x"}
        found.append(Finding(about, WRONG, f"there is a {facts.gpu}, but no {' and no '.join(missing)} to use it",
                             f"pip install {' '.join(wheels[name] for name in missing)}"))  # fmt: skip
    for name, major in _wanted_cuda(installed).items():
        if driver and driver < LEAST_DRIVER.get(major, 0):
            instead = f", or pip install packages for CUDA {newest} in its place" if newest else ""
            found.append(Finding(about, WRONG, f"{name} is built for CUDA {major}, which needs driver "
                                 f"{LEAST_DRIVER[major]} or newer; this one is {facts.driver}",
                                 f"install a newer driver{instead}"))  # fmt: skip
    return found or [Finding(about, OK, f"{facts.gpu}, driver {facts.driver}; {', '.join(cupy)} and numba-cuda fit it")]


def _no_gpu(facts: Facts, about: str) -> list[Finding]:
    if facts.nvidia:
        said = f": {facts.smi_error}" if facts.smi_error else ""
        return [Finding(about, WRONG, f"the kernel has NVIDIA's driver {facts.driver}, but nvidia-smi tells of no GPU"
                        f"{said}", "after an update of the driver: reboot. In a container: start it with its GPU "
                        "(--gpus all) and with nvidia-smi")]  # fmt: skip
    useless = sorted(name for name in facts.packages if CUPY.match(name) or name == "numba-cuda")
    if useless:
        return [Finding(about, NOTE, f"{' and '.join(useless)} installed, but there is no NVIDIA GPU here",
                        "none is needed: methods that want one say so")]  # fmt: skip
    return [Finding(about, OK, "no NVIDIA GPU and no package that wants one")]


def _wanted_cuda(installed: Mapping[str, str]) -> dict[str, int]:
    """CUDA's major version that each installed package was built for."""
    found = {name: int(match[1]) for name in installed if (match := re.match(r"cupy-cuda(\d+)x$", name))}
    for name in ("cuda-bindings", "cuda-toolkit"):
        if match := re.match(r"\d+", installed.get(name, "")):
            found[name] = int(match[0])
    return found


CHECKS: tuple[Callable[[Facts], list[Finding]], ...] = (
    blas_core, blas_cache, numba_variables, oversubscription, quota, power, others, smt, huge_pages,
    gpu,
)  # fmt: skip


def examine(facts: Facts) -> list[Finding]:
    """Every check's findings."""
    return [finding for check in CHECKS for finding in check(facts)]


def report(findings: Iterable[Finding]) -> str:
    """The findings as lines, each mend below what it mends, and a sum."""
    findings, lines = list(findings), []
    wide = max((len(finding.about) for finding in findings), default=0)
    for finding in findings:
        lines.append(f"{finding.level:5}  {finding.about:{wide}}  {finding.found}")
        if finding.mend:
            lines.append(f"{'':5}  {'':{wide}}  mend: {finding.mend}")
    wrong = sum(finding.level == WRONG for finding in findings)
    lines += ["", f"{wrong} of {len(findings)} findings are wrong." if wrong else "Nothing is wrong."]
    return "\n".join(lines)


# --- reading the machine ---------------------------------------------------------------------------------------------


def read() -> Facts:
    """Look at this machine: about a second. Nothing is changed; what cannot be read is left out."""
    from rnnpar import machine

    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    busy, stolen = _load(allowed)  # first: what follows keeps a core busy itself
    name, smi_error = _nvidia_smi()
    driver_text = _text("/proc/driver/nvidia/version")
    return Facts(
        cores_allowed=machine.cores_allowed(), affinity=len(allowed), quota=machine._cgroup_quota(),
        throttled=_throttled(machine.control_groups()),
        siblings=_siblings(allowed), flags=cpu_flags(_text("/proc/cpuinfo")), caches=machine.caches(),
        variables=dict(os.environ), blas=_blas(),
        governor=_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        frequency_driver=_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver"), boost=_boost(),
        on_battery=_on_battery(), busy=busy, stolen=stolen,
        huge_pages=chosen(_text("/sys/kernel/mm/transparent_hugepage/enabled")),
        nvidia=bool(driver_text) or Path("/dev/nvidiactl").exists(), driver=name[1] or driver_version(driver_text),
        gpu=name[0], smi_error=smi_error, packages=_packages(),
    )  # fmt: skip


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The instruction sets of the first processor in /proc/cpuinfo."""
    match = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return frozenset(match[1].split() if match else ())


def chosen(text: str) -> str:
    """The choice in brackets, as in "always [madvise] never"."""
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else ""


def driver_version(text: str) -> str:
    """The driver's version in /proc/driver/nvidia/version."""
    match = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", text)
    return match[1] if match else ""


def processors(text: str) -> list[int]:
    """The numbers in a list such as "0-2,8"."""
    ranges = [part.split("-") for part in text.strip().split(",") if part]
    return [number for part in ranges for number in range(int(part[0]), int(part[-1]) + 1)]


def throttled_share(text: str) -> float:
    """The share of periods in which a control group was stopped, from its cpu.stat."""
    numbers = dict(line.split()[:2] for line in text.splitlines() if len(line.split()) >= 2)
    periods = int(numbers.get("nr_periods", 0))
    return int(numbers.get("nr_throttled", 0)) / periods if periods else 0.0


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _throttled(groups: Iterable[Path]) -> float:
    """The largest share of periods in which one of the control groups was stopped, and this process with it."""
    return max((throttled_share(_text(group / "cpu.stat")) for group in groups), default=0.0)


def _siblings(allowed: list[int]) -> tuple[tuple[int, ...], ...]:
    """The allowed processors, grouped by core; empty where the system does not tell."""
    groups = set()
    for cpu in allowed:
        text = _text(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        if not text:
            return ()
        groups.add(tuple(number for number in processors(text) if number in allowed))
    return tuple(sorted(groups))


def _blas() -> dict[str, Any]:
    import numpy  # noqa: F401  its BLAS is what is asked about

    from rnnpar import machine

    return machine.blas()


def _boost() -> bool | None:
    if no_turbo := _text("/sys/devices/system/cpu/intel_pstate/no_turbo"):
        return no_turbo == "0"
    boost = _text("/sys/devices/system/cpu/cpufreq/boost")
    return boost == "1" if boost else None


def _on_battery() -> bool:
    import psutil

    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return battery is not None and battery.power_plugged is False


def _load(allowed: list[int]) -> tuple[float, float]:
    """Cores kept busy by other processes, and the share of time stolen, over half a second in which this one sleeps."""
    import psutil

    before = psutil.cpu_times(percpu=True)
    time.sleep(LOOK_S)
    after = psutil.cpu_times(percpu=True)
    here = [cpu for cpu in allowed if cpu < len(before)]
    spans = [sum(after[cpu][:8]) - sum(before[cpu][:8]) for cpu in here]  # without guests, counted in user already
    total = sum(spans) or 1.0

    def passed(kind: str) -> float:
        return sum(getattr(after[cpu], kind, 0.0) - getattr(before[cpu], kind, 0.0) for cpu in here)

    stolen, idle = passed("steal"), passed("idle") + passed("iowait")
    return max(0.0, total - idle - stolen) / total * len(here), stolen / total


def _nvidia_smi() -> tuple[tuple[str, str], str]:
    """((the GPU's name, the driver's version), what nvidia-smi said in their place)."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return ("", ""), f"nvidia-smi does not run ({type(error).__name__})"
    first = answer.stdout.strip().split("\n")[0]
    if answer.returncode or "," not in first:
        return ("", ""), " ".join((answer.stdout + answer.stderr).split())[:160]
    name, driver = first.rsplit(",", 1)
    return (name.strip(), driver.strip()), ""


def _packages() -> dict[str, str]:
    """Installed packages that use a GPU, by their names as pip writes them."""
    names = ("numba-cuda", "cuda-bindings", "cuda-toolkit")
    found = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name in names or CUPY.match(name):
            found[name] = distribution.version
    return found
