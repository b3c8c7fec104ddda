"""Check and measure the GPU methods on a machine with an NVIDIA GPU: `make check-gpu`, or with any Python that is there

    python -m rnnpar.study.check_gpu [--minutes 9] [--only answers,sanitizers,hardware,peaks,sweep] [--methods REGEX]

    answers      every method and option against the float64 oracle, over shapes, seeds, NumPy and device arrays
    sanitizers   a small case of each method under compute-sanitizer's memcheck, racecheck and synccheck, where it is
                 installed
    hardware     what no CPU executor can show, each by a named check: rnnpar/study/gpu_checks.py
    peaks        what the GPU does at most: launches, barriers, bandwidths; kept in peaks.json
    sweep        H and B at T=512, device arrays and NumPy arrays, beside peers/cudnn and peers/jax_gpu; large batches
                 at T=64, beside cuBLAS's products alone; in_time on CuPy at one long sequence; kept in gpu.jsonl

Everything that touches the GPU runs in processes of its own within time limits. What passed with the same source, and
points that are stored, are not done again, so the same command continues where the time was up; --again starts anew.
Exit status: 0 all done and right, 1 something is wrong, 2 no GPU, 3 right so far, and the time was up.
Neither papermill nor JupyterLab nor pandas is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

try:
    import numpy as np

    from rnnpar import machine, registry
    from rnnpar.backends.peers import Child, gpu_environment
    from rnnpar.network import RNN
    from rnnpar.peaks import forget as forget_peaks
    from rnnpar.reference import reference, relative_error
    from rnnpar.study import gpu_cublas, measure, store
    from rnnpar.study.gpu_checks import CHECKS, Check
    from rnnpar.study.measure import BOUND, Point
    from rnnpar.words import write_anything
except ImportError as missing:  # a bare machine: say what this Python lacks instead of where
    if __name__ != "__main__":
        raise
    sys.exit(f"error: this Python ({sys.executable}) lacks {missing.name}: {sys.executable} -m pip install -e '.[gpu]'")

PARTS = ("answers", "sanitizers", "hardware", "peaks", "sweep")
SHARES = {"answers": 0.3, "sanitizers": 0.2, "hardware": 0.25, "peaks": 0.5, "sweep": 1.0}  # of the time then left
EXPERIMENT = "gpu"
FACTORY = "rnnpar.study.gpu_worker:Worker"
CUBLAS = "rnnpar.study.gpu_cublas:Products"
CASE_S = 90.0  # for a call with all that it compiles
CHECK_S = 150.0  # for a check of the hardware
SANITIZER_S = 240.0
SANITIZERS = ("memcheck", "racecheck", "synccheck")
T_SWEEP, T_LARGE = 512, 64  # steps of a call; with hundreds of sequences fewer, each of which does more
SAMPLES = 20  # with device arrays; fewer with NumPy arrays, which mostly measure the copies
NUMPY_SAMPLES = 3
SAMPLE_S = 1e-3  # a sample lasts at least as long
CHECKED_BYTES = 2**25  # of y: a larger one is checked in the first and in the last sample, a smaller one in all
LONGEST_S = 1.0  # a method that is predicted to take longer for a call is left out
ENOUGH_S = 2.0  # a contender that has been sampled for so long at a shape, from one kind of array, gets no more samples
ALL_DONE, WRONG, NO_GPU, TIME_UP = 0, 1, 2, 3
LATE = "late"
FAULTS = ("error", "inaccurate")  # what of the statuses in results is wrong

BF16_BOUND = 3e-2  # of bfloat16 weights, and of TF32: both round to 8 or 10 bits

#   T, B, I, H, O, layers: every edge of a tile, a warp and a block; one thread; thousands of outputs; stacked layers
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (5, 1, 3, 7, 2, 1),
    (9, 3, 5, 50, 11, 2),
    (17, 1, 64, 128, 64, 1),
    (6, 17, 33, 100, 30, 3),
    (8, 2, 256, 256, 256, 1),
    (0, 2, 4, 8, 3, 1),
    (3, 0, 4, 8, 3, 2),
    (4, 1, 20, 31, 10_000, 1),
    (33, 4, 16, 513, 16, 1),
    (5, 130, 16, 64, 8, 1),
    (12, 1, 32, 1024, 32, 1),
    (7, 16, 8, 384, 8, 2),
    (4, 2, 8, 2048, 8, 1),
]
FEW = (SHAPES[2], SHAPES[5], SHAPES[9])  # for options beside the defaults
SEEDS = (0, 1, 2)
SMALL = (5, 2, 3, 50, 4, 2)  # under a sanitizer, which makes everything tens of times slower

IN_TIME = ("array_module", "cupy")  # the option by which the methods of in_time compute on a GPU
#   H, B, T: long enough for them; beside these of the others
LONG = (32, 1, 65_536)
SEQUENTIAL = ("numba_cuda/block", "cupy_gpu/cluster", "peers/cudnn tf32=False")
#   H, B, the most telling first
SWEEP = [
    (1024, 1), (256, 1), (512, 1), (128, 1), (2048, 1), (64, 1), (1024, 16), (256, 16), (256, 64), (512, 16),
    (1024, 256), (1024, 64), (512, 4), (1024, 4), (2048, 4), (1536, 1), (768, 1), (384, 1), (256, 256), (512, 64),
    (128, 16), (32, 1), (192, 1), (256, 4), (2048, 16), (64, 64), (128, 64), (64, 16), (3072, 1), (128, 4),
    (64, 256), (128, 256), (2048, 64),
]  # fmt: skip


# --- methods and their options -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A method with options beside its defaults; `label` names it in results and reports."""

    method: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        return " ".join([self.method, *(f"{name}={value}" for name, value in self.options)])

    @property
    def bound(self) -> float:
        options = dict(self.options)
        return BF16_BOUND if options.get("dtype") == "bfloat16" or options.get("tf32") else BOUND


def cases(pattern: str = "") -> list[Case]:
    """Every GPU method that can run here with its defaults, then with each other value of an option that it has."""
    found = [Case(method.name) for method in registry.methods() if method.on_gpu and method.available]
    for case in list(found):
        known = registry.find(case.method).options()
        for name, values in variants().items():
            if name in known:
                found += [Case(case.method, ((name, value),)) for value in values if value != known[name]]
        for name in {"barrier", "blocks"} & set(known) if "dtype" in known else ():
            others = [value for value in variants()[name] if value != known[name]]
            found += [Case(case.method, (("dtype", "bfloat16"), (name, value))) for value in others]
    if found and registry._importable("cupy"):  # parallel in time, as array code
        found += [Case(method.name, (IN_TIME,)) for method in registry.methods() if method.backend == "in_time"]
    return [case for case in found if re.search(pattern, case.label)]


def variants() -> dict[str, tuple[Any, ...]]:
    from rnnpar.kernels.cluster_plan import BLOCKS
    from rnnpar.kernels.launch import BARRIERS

    products = ("own", "cublas") if registry._importable("cupy") else ("own",)
    return {"barrier": BARRIERS, "dtype": ("float32", "bfloat16"), "products": products, "blocks": BLOCKS}


def contenders(pattern: str = "") -> list[Case]:
    """What the sweep times: our methods, options that make another claim, the peers that can run here, cuBLAS alone."""
    ours = [case for case in cases() if len(case.options) < 2 and dict(case.options).get("products") is None]
    peers = [Case("peers/cudnn", (("tf32", False),)), Case("peers/cudnn", (("tf32", True),)), Case("peers/jax_gpu")]
    found = ours + [case for case in peers if registry.find(case.method).available]
    if registry.find("cupy_gpu/steps").available:
        found.append(Case(gpu_cublas.METHOD))
    return [case for case in found if re.search(pattern, case.label)]


# --- time, and what is said --------------------------------------------------------------------------------------


class OutOfTime(Exception):
    """The time that was given is up."""


@dataclass
class Session:
    """The clock, what went wrong, and what earlier sessions have found right."""

    end: float
    again: bool = False
    wrong: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    part_end: float = 0.0

    def left(self) -> float:
        return min(self.end, self.part_end) - time.monotonic()

    def begin(self, part: str) -> None:
        self.part_end = time.monotonic() + SHARES[part] * (self.end - time.monotonic())
        say(f"\n{part}: {self.left():.0f} s at most")

    def need(self, seconds: float) -> None:
        if self.left() < seconds:
            raise OutOfTime

    def passed(self, check: str, source: str) -> bool:
        """Whether this check was right with the same source, on this machine, before."""
        found = earlier_checks().get(check, {})
        return not self.again and found.get("status") == "ok" and found.get("source") == source

    def note(self, check: str, status: str, words: str, source: str) -> None:
        """Say and keep how a check went: "ok", "wrong" or "left out"."""
        words = " ".join(words.split())
        say(f"  {status:8} {check}: {words[:400]}" if words else f"  {status:8} {check}")
        {"wrong": self.wrong, "left out": self.left_out}.get(status, []).append(f"{check}: {words}")
        when = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"status": status, "words": words[:1000], "source": source, "date": when}
        store.update_machine("gpu_checks", {check: entry})


def say(text: str) -> None:
    print(text, flush=True)


def earlier_checks() -> dict[str, Any]:
    if not (store.results_folder() / "machine.json").exists():
        return {}
    return store.load_machine(machine.name()).get("gpu_checks", {})


def source_of(method: str) -> str:
    return gpu_cublas.source() if method == gpu_cublas.METHOD else measure.source(method)


def start_child(case: Case, timeout_s: float) -> Child:
    """A process for one method, which sees one GPU, and is ended when it does not answer in time.

    CuPy compiles anew in each: its first call is compared with Numba's, which keeps nothing on disk either.
    """
    options = dict(case.options)
    environment = gpu_environment(0, tf32=bool(options.get("tf32"))) | {"CUPY_CACHE_IN_MEMORY": "1"}
    factory = CUBLAS if case.method == gpu_cublas.METHOD else FACTORY
    return Child(case.label, factory, (case.method, options), machine.cores_allowed(), environment, timeout_s)


# --- answers -----------------------------------------------------------------------------------------------------


def answers(session: Session, pattern: str) -> None:
    """Every method with every option against the oracle."""

    def answer(case: Case) -> None:
        source, check = source_of(case.method), f"answers {case.label}"
        if session.passed(check, source):
            say(f"  ok       {check} (before, with the same source)")
            return
        session.need(10)
        status, words = judge(case, session)
        session.note(check, status, words, source)

    side_by_side(answer, cases(pattern))
    session.left_out += [f"{method.name}: {method.why_not}" for method in registry.methods()
                         if method.on_gpu and not method.available]  # fmt: skip


def side_by_side(work: Callable[[Any], None], chosen: Iterable[Any]) -> None:
    """Do `work` for several cases or checks at a time, since most of it is compiling, in processes of its own.

    Raises OutOfTime.
    """
    late = None
    with ThreadPoolExecutor(max(1, min(6, machine.cores_allowed() // 2))) as pool:
        for future in [pool.submit(work, case) for case in chosen]:
            try:
                future.result()
            except OutOfTime as error:
                late = error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    if late:
        raise late


def judge(case: Case, session: Session) -> tuple[str, str]:
    """How a method with its options does on all shapes: ("ok" or "wrong", what was seen). Raises OutOfTime."""
    worst, count, refused, faults = 0.0, 0, {}, []
    child = None
    try:
        for shape, seed in problems(case):
            session.need(5)
            child = child or start_child(case, CASE_S)
            try:
                error, refusal = try_shape(child, case, shape, seed)
            except RuntimeError as fault:  # it raised, died or hung, in its own process
                faults.append(f"{describe(shape)}: {last_line(fault)}")
                if len(faults) == 3 or "did not answer" in str(fault):
                    break
                child = alive(child)
                continue
            if refusal:
                refused[describe(shape)] = refusal
                continue
            count, worst = count + 1, max(worst, error)
            if not error <= case.bound:
                faults.append(f"{describe(shape)}: relative error {error:.2g}, over the bound of {case.bound:g}")
    finally:
        if child is not None:
            child.close()
    if faults:
        return "wrong", "; ".join(faults)
    if not count:
        return "wrong", f"it refused every shape: {next(iter(refused.values()), 'none was tried')}"
    told = f"; refused as too large: {', '.join(refused)}" if refused else ""
    return "ok", f"{count} cases, error {worst:.1e} at most{told}"


def problems(case: Case) -> Iterator[tuple[tuple[int, ...], int]]:
    """The shapes and seeds of a case: all of them for a method's defaults, a few for its options."""
    if case.options:
        yield from ((shape, 0) for shape in FEW)
        return
    yield from ((shape, 0) for shape in SHAPES)
    yield from ((shape, seed) for shape in FEW for seed in SEEDS[1:])


def try_shape(child: Child, case: Case, shape: tuple[int, ...], seed: int) -> tuple[float, str]:
    """(the largest error, "") of a case at a shape; or (0, why it is refused). RuntimeError where it fails.

    A whole sequence from NumPy and from device arrays, with and without h0, and the same in two pieces.
    """
    T, B, I, H, O, layers = shape
    if case.method.endswith("/timestep") and T * B * H * (H + I + O) > 1e9:
        return 0.0, "one thread a step would take minutes"
    net = RNN.random(I, H, O, layers, seed=seed)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((T, B, I), dtype=np.float32)
    h0 = rng.uniform(-1, 1, (layers, B, H)).astype(np.float32)
    refusal = child.ask("prepare", net)
    if refusal:
        return 0.0, refusal
    errors = []
    for start, on_device in ((h0, False), (None, True), (h0, True)):
        refusal, y, h = child.ask("answer", x, start, on_device)
        if refusal:
            return 0.0, refusal
        errors += [relative_error(*pair) for pair in zip((y, h), reference(net, x, start), strict=True)]
    if T > 1 and B:
        _, y1, state = child.ask("answer", x[: T // 2], h0, False)
        _, y2, state = child.ask("answer", x[T // 2 :], state, False)
        errors += [relative_error(*pair) for pair in zip((np.concatenate([y1, y2]), state), (y, h), strict=True)]
    return float(np.max(errors)), ""


def alive(child: Child) -> Child | None:
    """The child if it can be asked again, else None: the next shape gets a new one."""
    try:
        child.ask("close")
        return child
    except RuntimeError:
        return None


def describe(shape: tuple[int, ...]) -> str:
    return " ".join(
        f"{letter}={size}" for letter, size in zip("TBIHOL", shape, strict=True) if letter != "L" or size > 1
    )


def last_line(error: Exception) -> str:
    """What a failure in another process comes down to: who ended and how, or the last line of its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines and "failed in its process" not in lines[0] else lines[-1] if lines else repr(error)


# --- sanitizers --------------------------------------------------------------------------------------------------


def sanitizers(session: Session, pattern: str) -> None:
    """compute-sanitizer's memcheck, racecheck and synccheck on a small case of each method."""
    program = find_sanitizer()
    if program is None:
        session.note("compute-sanitizer", "left out", "it is neither in PATH nor under CUDA_HOME, CUDA_PATH or "
                     "/usr/local/cuda: install the CUDA toolkit's, and run this part again", "")  # fmt: skip
        return
    chosen = [case for case in cases(pattern) if not case.options or dict(case.options).get("barrier")]

    def watch(tool: str, case: Case) -> None:
        check, source = f"{tool} {case.label}", source_of(case.method)
        if session.passed(check, source):
            say(f"  ok       {check} (before, with the same source)")
            return
        session.need(20)
        limit_s = min(SANITIZER_S, session.left())
        status, words = sanitize(program, tool, case, limit_s)
        if status == LATE:
            if limit_s < SANITIZER_S:  # the time of this part, not the tool's
                raise OutOfTime
            status = "wrong"
        session.note(check, status, words, source)

    for tool in SANITIZERS:
        side_by_side(partial(watch, tool), [case for case in chosen if len(case.options) < 2])


def find_sanitizer() -> str | None:
    """Where compute-sanitizer is: in PATH, or in a CUDA toolkit."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    places = [Path(home) / part for home in homes if home for part in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or next(
        (found for place in places if (found := shutil.which("compute-sanitizer", path=str(place)))), None
    )


def sanitize(program: str, tool: str, case: Case, limit_s: float) -> tuple[str, str]:
    """One case under one tool: ("ok", "wrong" or LATE, what was said)."""
    # Without API errors: cuda-bindings asks the driver for functions of newer ones, and is told that it has none.
    command = [program, "--tool", tool, *(["--report-api-errors", "no"] if tool == "memcheck" else []),
               "--error-exitcode", "86", "--print-limit", "3", sys.executable, "-m", "rnnpar.study.check_gpu",
               "--one", json.dumps([case.method, dict(case.options), SMALL])]  # fmt: skip
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    status, output = bounded(command, limit_s, os.environ | {"PYTHONPATH": path})
    errors = [line.strip("= ").strip() for line in output.splitlines() if line.startswith("=========")]
    if status is None:
        return LATE, f"did not end within {limit_s:.0f} s"
    if status == 0 and "right" in output:
        return "ok", errors[-1] if errors else "no errors"
    told = "; ".join(line for line in errors if line)[:300]
    return "wrong", f"exit status {status}: {told or ' '.join(output.split())[-300:]}"


def bounded(command: list[str], limit_s: float, environment: Mapping[str, str]) -> tuple[int | None, str]:
    """(exit status, output) of a program, and all that it started; (None, ...) where it was ended for its time."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                               env=dict(environment), start_new_session=True)  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit_s)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
            process.stdout.close()


def one(text: str) -> int:
    """What a sanitizer watches: one case in this process, held against the oracle."""
    from rnnpar.auto import prepare

    method, options, (T, B, I, H, O, layers) = json.loads(text)
    net = RNN.random(I, H, O, layers)
    x = np.random.default_rng(0).standard_normal((T, B, I), dtype=np.float32)
    with prepare(net, method, **options) as run:
        errors = [relative_error(*pair) for pair in zip(run(x), reference(net, x), strict=True)]
    bound = Case(method, tuple(options.items())).bound
    say(f"{'right' if max(errors) <= bound else 'not correct'}: relative error {max(errors):.2g}")
    return int(not max(errors) <= bound)


# --- hardware ----------------------------------------------------------------------------------------------------


def hardware(session: Session, pattern: str) -> None:
    """The named checks of gpu_checks, each in a process of its own."""
    sources = [source_of(method.name) for method in registry.methods() if method.on_gpu]
    source = max(sources, default="") if len(set(sources)) == 1 else "+".join(sorted(set(sources)))[:80]

    def look(check: Check) -> None:
        name = f"hardware {check.name}"
        if session.passed(name, source):
            say(f"  ok       {name} (before, with the same source)")
            return
        session.need(10)
        try:
            limit_s = min(CHECK_S, session.left())
            words = in_child("rnnpar.study.gpu_checks:run", (check.name,), limit_s)
            session.note(name, "ok", words, source)
        except RuntimeError as error:
            if "did not answer" in str(error) and limit_s < CHECK_S:  # the time of this part, not the check's
                raise OutOfTime from None
            session.note(name, "wrong", last_line(error), source)

    side_by_side(look, [check for check in CHECKS if re.search(pattern, f"hardware {check.name}")])


def in_child(function: str, arguments: tuple, timeout_s: float) -> Any:
    """What a function returns in a process of its own; RuntimeError where it raises, dies or hangs."""
    child = start_child(Case("hardware/check"), timeout_s)
    try:
        return child.ask("call", function, arguments)
    finally:
        child.close()


# --- peaks -------------------------------------------------------------------------------------------------------


def peaks(session: Session, pattern: str) -> None:
    """The GPU's peaks, in a process of its own: measured once, or the stored ones."""
    session.need(20)
    if not registry._importable("numba_cuda"):
        session.note("peaks", "left out", "they are measured with numba-cuda: pip install 'numba-cuda[cu13]'", "")
        return
    if session.again:
        forget_peaks("gpu")
    try:
        found = in_child("rnnpar.peaks:of_gpu", (), min(300.0, session.left()))
    except RuntimeError as error:
        session.note("peaks", "wrong", last_line(error), "")
        return
    failed = found.get("failed", {})
    for name, value in found.items():
        if name not in ("failed", "version", "name", "measured"):
            say(f"    {name:14} {value}")
    words = "; ".join(f"{name}: {why}" for name, why in failed.items())
    session.note("peaks", "wrong" if failed else "ok", words or f"{len(found)} measured", str(found.get("version")))


# --- sweep -------------------------------------------------------------------------------------------------------


@dataclass
class Contender:
    """A method with its options in the sweep: its process, and what was found at the shape at hand."""

    case: Case
    child: Child | None = None
    first_s: float | None = None
    call_s: dict[bool, float] = field(default_factory=dict)  # by whether arrays lie on the device
    seconds: dict[bool, list[float]] = field(default_factory=dict)
    error: float | None = None
    status: str = "ok"
    message: str = ""

    def start(self, point: Point, net: RNN, folder: str) -> None:
        """Prepare for a shape and call once from each kind of array; a process that ended is started again."""
        self.first_s, self.call_s, self.seconds, self.error = None, {}, {True: [], False: []}, None
        self.status, self.message = "ok", ""
        try:
            if self.child is None:
                self.child = start_child(self.case, CASE_S)
            refused = self.child.ask("prepare", net)
            if not refused:
                self.child.ask("load", folder)
                for on_device in (True,) if self.case.method == gpu_cublas.METHOD else (True, False):
                    found = self.child.ask("start", on_device)
                    refused = refused or found.get("refused", "")
                    if refused or not self._judged(found["error"]):
                        break
                    self.call_s[on_device] = found["call_s"]
                    self.first_s = self.first_s or found["first_s"]
                    told = [found["info"].get(key, "") for key in ("formulation", "products")]
                    self.message = "; ".join(filter(None, [*told, version(self.case.method)]))
            if refused:
                self.status, self.message = "unsupported", refused
        except RuntimeError as error:
            self.fail(error)

    def sample(self, on_device: bool, check: bool) -> None:
        """The mean of enough calls to last a sample; with `check`, the last is held against the oracle."""
        call_s = self.call_s[on_device]
        count = max(1, min(100, round(SAMPLE_S / max(call_s, 1e-7))))
        try:
            found = self.child.ask("sample", on_device, count, check)
        except RuntimeError as error:
            self.fail(error)
            return
        if self._judged(found["error"]):
            self.seconds[on_device].append(float(np.mean(found["seconds"])))

    def fail(self, error: Exception) -> None:
        memory = "MemoryError" in str(error) or "out of memory" in str(error).lower()
        self.status, self.message = ("oom" if memory else "error"), last_line(error)[:300]
        self.close()

    def measurement(self, point: Point) -> store.Measurement:
        """What there is to keep: the first call, samples from device arrays, samples from NumPy arrays."""
        good = self.status == "ok"
        seconds = {"steady": self.seconds[True], "transfer": self.seconds[False]} if good else {}
        return store.Measurement(
            **measure.identity(point, self.case.label, 1), first_call=self.first_s if good else None,
            seconds={kind: times for kind, times in seconds.items() if times}, error=self.error, status=self.status,
            message=self.message, source=source_of(self.case.method),
        )  # fmt: skip

    def close(self) -> None:
        child, self.child = self.child, None
        if child is not None:
            child.close()

    def _judged(self, error: float) -> bool:
        self.error = float(np.max([error, self.error or 0.0]))
        if self.error <= self.case.bound:
            return True
        self.status = "inaccurate"
        self.message = f"relative error {self.error:.2g}, over the bound of {self.case.bound:g}; {self.message}"
        return False


def sweep(session: Session, pattern: str) -> None:
    """Time all contenders at one shape after another, in interleaved and shuffled rounds, and keep each shape."""
    stored = store.newest(EXPERIMENT)
    points = [*map(point_of, SWEEP[:10]), long_point(), *map(point_of, SWEEP[10:])]
    labels = [case.label for case in contenders(pattern)]
    points.sort(key=lambda point: any(measure.key(point, label, 1) in stored for label in labels))  # new ones first
    wanted = {point: still_due(point, pattern, stored, session.again) for point in points}
    wanted = {point: found for point, found in wanted.items() if found}
    count = sum(map(len, wanted.values()))
    say(f"  {count} points to measure at {len(wanted)} shapes, from device arrays and from NumPy's")
    running: dict[str, Contender] = {}
    took, rng = 20.0, np.random.default_rng(0)
    try:
        for done, (point, due) in enumerate(wanted.items()):
            if session.left() < 1.3 * took:
                raise OutOfTime
            begin = time.monotonic()
            here = [running.setdefault(case.label, Contender(case)) for case in due]
            compare(point, here, rng, session)
            store.append([contender.measurement(point) for contender in here], EXPERIMENT)
            took = time.monotonic() - begin
            say(f"  {table(point, here)}")
            say(f"  shape {done + 1} of {len(wanted)} in {took:.0f} s, {session.left():.0f} s left")
            session.wrong += [faulty(point, contender) for contender in here if contender.status in FAULTS]
    finally:
        for contender in running.values():
            contender.close()
    store.update_machine("measured", {EXPERIMENT: datetime.now(UTC).isoformat(timespec="seconds")})


def faulty(point: Point, contender: Contender) -> str:
    return f"{contender.case.label} at H={point.H} B={point.B}: {contender.status}: {contender.message}"


def steps(B: int) -> int:
    """The steps of a call with B sequences."""
    return T_SWEEP if B < gpu_cublas.LARGE else T_LARGE


def point_of(sizes: tuple[int, int]) -> Point:
    H, B = sizes
    return Point("random", H, H, H, steps(B), B)


def long_point() -> Point:
    H, B, T = LONG
    return Point("random", H, H, H, T, B)


def still_due(point: Point, pattern: str, stored: Mapping[str, store.Measurement], again: bool) -> list[Case]:
    """The contenders that are not stored with the source that stands now, and will end within reason."""
    due = []
    for case in contenders(pattern):
        old = stored.get(measure.key(point, case.label, 1))
        fresh = old and old.source == source_of(case.method) and old.status in ("ok", "unsupported")
        told = case.method != gpu_cublas.METHOD or point.B >= gpu_cublas.LARGE
        told &= "blocks" not in dict(case.options) or point.B == 1  # how many blocks is asked of one sequence,
        told &= "barrier" not in dict(case.options) or point.B <= 4  # and how they meet of a few
        long = (point.H, point.B, point.T) == LONG
        told &= (IN_TIME in case.options or case.label in SEQUENTIAL) if long else IN_TIME not in case.options
        if told and (again or not fresh) and expected(case, point) < LONGEST_S:
            due.append(case)
    return due


def expected(case: Case, point: Point) -> float:
    """Seconds of a call as published figures have it, 0 where nobody knows: only what takes minutes is left out."""
    from rnnpar import model_gpu
    from rnnpar.kernels.launch import H100, DoesNotFit
    from rnnpar.work import Work

    work = Work(point.T, point.B, point.I, point.H, point.O, point.layers)
    try:
        found = model_gpu.GpuModel(H100).predict(case.method, work)
    except DoesNotFit:
        return 0.0
    return found.seconds if found else 0.0


def compare(point: Point, here: list[Contender], rng: np.random.Generator, session: Session) -> None:
    """Prepare all at once, while the oracle computes; then rounds, one after another."""
    net, x = measure.build(point)
    with tempfile.TemporaryDirectory(prefix="rnnpar-", dir=shared_memory_folder()) as folder:
        wanted = reference(net, x)
        for name, array in zip("xyh", (x, *wanted), strict=True):
            np.save(Path(folder) / f"{name}.npy", array)
        with ThreadPoolExecutor(max(1, machine.cores_allowed() // 2)) as pool:  # they compile, each in its own process
            list(pool.map(lambda contender: contender.start(point, net, folder), here))
        large = 4 * wanted[0].size > CHECKED_BYTES
        for on_device, rounds in ((True, SAMPLES), (False, 1 if large else NUMPY_SAMPLES)):
            for number in range(rounds):
                check = not large or number in (0, rounds - 1)
                for index in rng.permutation(len(here)):
                    contender = here[index]
                    if contender.status == "ok" and on_device not in contender.call_s:
                        continue  # cuBLAS alone: its products know no NumPy arrays
                    enough = number > 0 and 2 * number * contender.call_s.get(on_device, 0.0) > ENOUGH_S
                    if contender.status == "ok" and not enough and (number < 3 or session.left() > 10):
                        contender.sample(on_device, check)


def shared_memory_folder() -> str | None:
    """Where large arrays pass from process to process without a disk, if there is such a place."""
    place = Path("/dev/shm")
    return str(place) if place.is_dir() and shutil.disk_usage(place).free > 8 * 2**30 else None


def table(point: Point, here: Iterable[Contender]) -> str:
    """A shape in lines: microseconds a step from device arrays, the whole call from NumPy in brackets, the error."""
    lines = [f"H={point.H} B={point.B} T={point.T}: microseconds a step from device arrays (from NumPy), error"]
    for contender in here:
        if contender.status != "ok":
            lines.append(f"  {contender.case.label:44} {contender.status}: {contender.message[:120]}")
            continue
        device, host = (1e6 * float(np.median(contender.seconds[kind] or [np.nan])) / point.T for kind in (True, False))
        told = f"{device:9.3f} ({host:9.3f})  {contender.error:.1e}  {contender.message[:60]}"
        lines.append(f"  {contender.case.label:44} {told}")
    return "\n  ".join(lines)


def version(method: str) -> str:
    """The peer's name and version; "" for our methods."""
    package = {"peers/cudnn": "torch", "peers/jax_gpu": "jax"}.get(method)
    try:
        return f"{package} {metadata.version(package)}" if package else ""
    except metadata.PackageNotFoundError:
        return ""


# --- the command -------------------------------------------------------------------------------------------------

RUN: dict[str, Callable[[Session, str], None]] = {
    "answers": answers, "sanitizers": sanitizers, "hardware": hardware, "peaks": peaks, "sweep": sweep,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    write_anything()
    parser = argparse.ArgumentParser(prog="python -m rnnpar.study.check_gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="stop before so many have passed (9)")
    parser.add_argument(
        "--only", default=",".join(PARTS), metavar="PARTS", help=f"of {', '.join(PARTS)}; all by default"
    )
    parser.add_argument("--methods", default="", metavar="REGEX", help="methods whose name and options match")
    parser.add_argument("--again", action="store_true", help="also what has passed, or is stored, with the same source")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        return one(options.one)
    parts = [part.strip() for part in options.only.split(",") if part.strip()]
    try:
        re.compile(options.methods)
        unknown = [part for part in parts if part not in PARTS]
        if unknown or not parts:
            raise ValueError(f"unknown part {', '.join(unknown) or 'none'}; the parts are: {', '.join(PARTS)}")
        if not 0 < options.minutes < float("inf"):
            raise ValueError(f"--minutes is {options.minutes:g}; it must be above 0")
    except (ValueError, re.error) as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    why = why_not()
    if why:
        print(f"error: nothing can be checked: {why}", file=sys.stderr)
        return NO_GPU
    try:
        return check(parts, options.methods, Session(time.monotonic() + 60 * options.minutes, options.again))
    except KeyboardInterrupt:
        print("\ninterrupted; what was found is kept, and the same command continues", file=sys.stderr)
        return 130
    except store.ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG


def why_not() -> str:
    """Why there is nothing to check here, with what would do; "" where there is."""
    if not machine.gpu():
        return f"{machine.gpu_problem()}. This needs a machine with an NVIDIA GPU, its driver, and numba-cuda or CuPy"
    rows = [method for method in registry.methods() if method.on_gpu]
    if not any(method.available for method in rows):
        return "; ".join(sorted({f"{method.name} {method.why_not}" for method in rows})) or "there is no GPU method"
    return ""


def check(parts: list[str], pattern: str, session: Session) -> int:
    """Run the parts in their order; the exit status."""
    store.check_writable()
    store.save_machine(machine.describe())
    store.update_machine("gpu_limits", in_child("rnnpar.study.gpu_worker:limits", (), CASE_S))
    gpu = machine.gpu()
    say(f"{machine.name()}: {gpu['name']}, driver {gpu['driver']}; {', '.join(case.label for case in cases(pattern))}")
    for part in (part for part in PARTS if part in parts):
        session.begin(part)
        try:
            RUN[part](session, pattern)
        except OutOfTime:
            session.unfinished.append(part)
            say(f"  the time for {part} is up")
    return verdict(session)


def verdict(session: Session) -> int:
    """Say how it went, what failed first; the exit status."""
    say("")
    for line in session.left_out:
        say(f"left out: {line}")
    for line in session.wrong:
        say(f"WRONG: {line}")
    if session.unfinished:
        say(f"not finished: {', '.join(session.unfinished)}; the same command continues")
    where = os.path.relpath(store.results_folder())
    if session.wrong:
        say(f"{len(session.wrong)} wrong; results in {where}")
        return WRONG
    say(f"all right{' so far' if session.unfinished else ''}; results in {where}")
    return TIME_UP if session.unfinished else ALL_DONE


if __name__ == "__main__":
    sys.exit(main())
