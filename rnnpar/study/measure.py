"""Time every method at one shape: equally, in shuffled order, and each held against the float64 oracle.

Letters as everywhere: T steps, B batch, I input, H hidden, O output, L layers.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, ClassVar

import numpy as np

from rnnpar import machine, registry
from rnnpar.auto import prepare
from rnnpar.network import RNN
from rnnpar.reference import reference, relative_error
from rnnpar.runner import Runner
from rnnpar.study.cores import Cores, count
from rnnpar.study.store import Measurement

try:
    import fcntl
except ImportError:  # Windows: two sweeps at once are not kept apart there
    fcntl = None

BOUND = 1e-5  # the largest relative error to the oracle that a float32 method may have
SETTLE_S = 20e-3  # calls shorter than this have one untimed call of the same method before each sample; if it has
SETTLED = 1.2  # several threads, as many as it takes until one is at most so many times the shortest yet, or for so
#                long: threads that slept in other methods' turns may all wake on one core, and wait there for a while
ELSEWHERE = ("peers", "mpi", "in_time")  # backends that have profiles of their own: "all" leaves them out
APART = ("mpi", "peers")  # backends that compute in processes of their own: before a sample beside theirs comes a pause
FEWEST = 3  # samples of a method whose calls are within the limit

ORIGIN = {"origin-large": (50, 50, 8_000, 15, 1), "origin-small": (120, 120, 10_000, 50, 1)}  # H, I, O, T, B
EVALUATION_STEPS = 1000  # characters of held-out text that a trained network reads in a call
EVALUATION_BATCHES = (1, 8)
RADIUS = re.compile(r"radius-(\d+(?:\.\d+)?)")  # a workload of the grid's sizes on `of_radius`, such as radius-0.9


@dataclass(frozen=True)
class Point:
    """A workload at one shape: what every method is timed on."""

    workload: str
    H: int
    I: int
    O: int
    T: int
    B: int
    layers: int = 1


@dataclass(frozen=True)
class Problem:
    """A point made real: the network, its input x (T,B,I), and what the oracle says, y (T,B,O) and h (L,B,H)."""

    net: RNN
    x: np.ndarray
    y: np.ndarray
    h: np.ndarray

    def error(self, y: np.ndarray, h: np.ndarray) -> float:
        """The larger of the relative errors of y and h; NaN where either holds one."""
        return float(np.max([relative_error(y, self.y), relative_error(h, self.h)]))


def named(workload: str) -> list[Point]:
    """The points of a workload that has its own sizes. ValueError lists the names; FileNotFoundError."""
    from rnnpar.study import corpus

    if workload in ORIGIN:
        H, I, O, T, B = ORIGIN[workload]
        return [Point(workload, H, I, O, T, B)]
    trained = corpus.models()
    if workload not in trained:
        known = ", ".join(["random", "radius-0.9 and the like", *ORIGIN, *trained])
        raise ValueError(f"unknown workload {workload!r}; there are: {known}")
    net = corpus.load(workload)
    sizes = (net.hidden_size, net.input_size, net.output_size)
    return [Point(workload, *sizes, EVALUATION_STEPS, B, net.num_layers) for B in EVALUATION_BATCHES]


def build(point: Point) -> tuple[RNN, np.ndarray]:
    """The network and the input x (T,B,I) of a point: always the same for the same point."""
    radius = RADIUS.fullmatch(point.workload)
    if radius or point.workload == "random" or point.workload in ORIGIN:
        net = (of_radius(float(radius[1]), point.H, point.I, point.O) if radius else
               RNN.random(point.I, point.H, point.O, point.layers, seed=0))  # fmt: skip
        x = np.random.default_rng(1).standard_normal((point.T, point.B, point.I), dtype=np.float32)
        return net, x
    from rnnpar.study import corpus

    return corpus.load(point.workload), corpus.sequences(point.B, point.T)[0]


def of_radius(radius: float, H: int, I: int, O: int) -> RNN:
    """One layer with a Gaussian W of that spectral radius and weak inputs: the radius decides what becomes of an error.

    Above 1 an error in the state tends to grow from step to step, below it fades.
    """
    rng = np.random.default_rng(0)
    W = rng.standard_normal((H, H))
    W *= radius / np.abs(np.linalg.eigvals(W)).max()
    U = 0.3 * rng.uniform(-1, 1, (H, I)) / np.sqrt(I)
    V = rng.uniform(-1, 1, (O, H)) / np.sqrt(H)
    return RNN.from_arrays([dict(W=W, U=U, b=np.zeros(H))], V, np.zeros(O))


def key(point: Point, method: str, threads: int) -> str:
    """A point's key in the results: a short hash of all that tells it from the others."""
    sizes = (point.H, point.I, point.O, point.T, point.B, point.layers)
    return hashlib.sha256(repr((point.workload, method, sizes, threads)).encode()).hexdigest()[:12]


def identity(point: Point, method: str, threads: int) -> dict[str, Any]:
    """The fields of a measurement that say what was measured, by which revision, and when."""
    return dict(
        asdict(point), point=key(point, method, threads), method=method, threads=threads, revision=revision(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def workers(options: Mapping[str, Any]) -> int:
    """What the column "threads" holds: threads, or ranks times the threads of each."""
    return options.get("ranks", 1) * options.get("threads", 1)


def measure_group(
    point: Point,
    methods: Sequence[tuple[str, Mapping[str, Any]]],
    samples: int,
    budget_s: float,
    rng: np.random.Generator,
    limit_s: float = 10.0,
    trial: type[Trial] | None = None,
) -> list[Measurement]:
    """Time `methods`, pairs of a name and its options, at one shape: a measurement each.

    Every method is prepared and called once (its first call), called again and held against the oracle,
    and then timed in up to `samples` rounds, each in a newly shuffled order. `budget_s` bounds the rounds of one
    method, but for three samples; a method with a call over `limit_s` is sampled once. What a method raises
    becomes its status: "unsupported", "oom" or "error". `trial` is how a method is timed: Trial, or peers.Burst.
    """
    trials = [(trial or Trial)(point, name, dict(options)) for name, options in methods]
    try:
        net, x = build(point)
        problem = Problem(net, x, *reference(net, x))
    except MemoryError as error:
        for trial in trials:
            trial.fail(error)
        return [trial.measurement() for trial in trials]
    try:
        for index in rng.permutation(len(trials)):
            trials[index].start(problem, samples, budget_s, limit_s)
        in_rounds(trials, problem, rng)
    finally:
        for trial in trials:
            trial.close()
    return [trial.measurement() for trial in trials]


def in_rounds(trials: Sequence[Trial], problem: Problem, rng: np.random.Generator) -> None:
    """Sample all trials in turn, each round in a newly shuffled order, until all have what they planned.

    A round in which the cores were not whole (cores.py) is set aside and taken again, up to twice the rounds in all.
    """
    apart = any(trial.backend in APART for trial in trials)
    spare = max((trial.rounds for trial in trials), default=0)
    whole = spare > 0 and cores().whole()
    while due := [trial for trial in trials if trial.rounds]:
        for index in rng.permutation(len(due)):
            if apart:
                time.sleep(due[index].pause_s)
            whole = whole and (not due[index].long or cores().whole())
            due[index].sample(problem)
        before, whole = whole, cores().whole()
        if not (before and whole):
            for trial in due:
                trial.set_aside(again=spare > 0)
            spare -= 1


@cache
def cores() -> Cores:
    """This process's probe of its cores, compiled and calibrated once."""
    return Cores()


@dataclass
class Trial:
    """One method at one shape, from preparing to its measurement."""

    least_s: ClassVar[float] = 1e-3  # a sample lasts at least so long: the clock and the call's overhead vanish in it
    most_calls: ClassVar[int] = 1000  # in a sample
    settle_s: ClassVar[float] = SETTLE_S  # calls shorter than this have untimed ones before a sample
    pause_s: ClassVar[float] = 10e-3  # beside processes: this one's threads, still spinning, go to sleep in it
    long: ClassVar[bool] = False  # whether a sample takes so long that the cores are asked before each

    point: Point
    method: str
    options: dict[str, Any]
    runner: Runner | None = None
    compile_s: float | None = None
    seconds: list[float] = field(default_factory=list)  # of a call, one a sample
    aside: list[float] = field(default_factory=list)  # the same, from rounds in which the cores were not whole
    error: float | None = None
    status: str = "ok"
    message: str = ""
    rounds: int = 0  # samples still to be taken
    calls: int = 1  # in a sample
    settle: bool = True  # whether untimed calls go before a sample
    shortest: float = math.inf  # seconds of a call
    checked: tuple[np.ndarray, np.ndarray] | None = None  # y and h as the oracle has seen them
    told: str = ""  # what the runner has to tell of its last call

    @property
    def backend(self) -> str:
        return self.method.split("/")[0]

    @property
    def ran(self) -> str:
        """The method whose code ran; "" where that is not known."""
        return self.method

    def prepare(self, net: RNN) -> Runner:
        """What the calls are made of."""
        return prepare(net, self.method, **self.options)

    def tell(self, runner: Runner) -> str:
        """What `runner` has to tell of its last call, for the message."""
        return numbers(runner.info)

    def start(self, problem: Problem, samples: int, budget_s: float, limit_s: float) -> None:
        """Prepare, call, warm up, check; then plan the rounds from how long a call takes."""
        try:
            begin = time.perf_counter()
            self.runner = self.prepare(problem.net)
            self.runner.timed(problem.x)
            self.compile_s = time.perf_counter() - begin
            call_s, y, h = self.runner.timed(problem.x)
            if not self._check(problem, y, h):
                return
            if call_s > limit_s:
                self.seconds.append(call_s)  # it has been checked too, and once is enough
                return
            call_s = max(self._warm_up(problem, call_s), 1e-7)  # a call with T=0 takes no time at all
        except Exception as error:
            self.fail(error)
            return
        self.calls = math.ceil(min(self.least_s / call_s, self.most_calls))
        self.settle = call_s < self.settle_s
        self.rounds = max(min(samples, FEWEST), min(samples, int(budget_s / (call_s * (self.calls + self.settle)))))

    def sample(self, problem: Problem) -> None:
        """Take one sample, whose last answer is checked."""
        self.rounds -= 1
        try:
            call_s, y, h = self.timed(problem)
            if self._check(problem, y, h):
                self.seconds.append(call_s)
        except Exception as error:
            self.fail(error)

    def timed(self, problem: Problem) -> tuple[float, np.ndarray, np.ndarray]:
        """Seconds of a call, the mean over back-to-back calls, and y and h of the last."""
        if self.settle:  # the methods before it have taken the caches and left their threads spinning
            self._settle(problem)
        total = 0.0
        for _ in range(self.calls):
            call_s, y, h = self.runner.timed(problem.x)
            total += call_s
        return total / self.calls, y, h

    def set_aside(self, again: bool) -> None:
        """Set the last sample aside: it may not count (cores.count). `again`: and take another."""
        if self.status == "ok":
            self.aside.append(self.seconds.pop())
            self.rounds += again

    def measurement(self) -> Measurement:
        """What there is to keep: the first call and the samples, or what went wrong."""
        failed = self.status in ("unsupported", "oom", "error")
        seconds, counted = count(self.seconds, self.aside)
        parts = [self.message, "" if failed else self.told, "" if self.message else counted]
        # From NumPy to NumPy arrays: for a method on a GPU that includes the copies there and back.
        kind = "transfer" if self.ran and registry.find(self.ran).on_gpu else "steady"
        return Measurement(
            **identity(self.point, self.method, workers(self.options)),
            first_call=None if failed else self.compile_s, seconds={} if failed or not seconds else {kind: seconds},
            error=self.error, status=self.status, message="; ".join(filter(None, parts)),
            source=source(self.ran) if self.ran else "",
        )  # fmt: skip

    def fail(self, error: Exception) -> None:
        """End here: the error becomes this method's status and message."""
        kinds = {registry.Unavailable: "unsupported", MemoryError: "oom"}
        self.status = next((status for kind, status in kinds.items() if isinstance(error, kind)), "error")
        text = str(error) if self.status == "unsupported" else f"{type(error).__name__}: {error}"
        self.message = " ".join(text.split())[:300]
        self.rounds = 0

    def close(self) -> None:
        runner, self.runner, self.checked = self.runner, None, None
        if runner is not None:
            self.told = self.tell(runner)
            runner.close()

    def _check(self, problem: Problem, y: np.ndarray, h: np.ndarray) -> bool:
        """Whether y and h are within the method's bound: by the oracle, or bit by bit what the oracle has seen."""
        if self.checked and np.array_equal(y, self.checked[0]) and np.array_equal(h, self.checked[1]):
            return True
        error = problem.error(y, h)
        if self.error is None or not error <= self.error:
            self.error = error
        if error <= BOUND:
            self.checked = (y.copy(), h.copy())  # copies, lest a runner hands out its own buffers
            return True
        self.status, self.rounds = "inaccurate", 0
        self.message = f"relative error {error:.2g}, over the bound of {BOUND:.0e}"
        return False

    def _settle(self, problem: Problem) -> None:
        """Call, untimed: once, or as long as it takes until all threads have a core."""
        end = time.perf_counter() + SETTLE_S
        while True:
            call_s = self.runner.timed(problem.x)[0]
            self.shortest = min(self.shortest, call_s)
            settled = workers(self.options) == 1 or call_s <= SETTLED * self.shortest
            if settled or time.perf_counter() > end:
                return

    def _warm_up(self, problem: Problem, call_s: float) -> float:
        """Call for a sample's length, or until all threads surely have a core; the shortest call of all, in seconds."""
        end = time.perf_counter() + (self.least_s if workers(self.options) == 1 else SETTLE_S) - call_s
        while time.perf_counter() < end:
            call_s = min(call_s, self.runner.timed(problem.x)[0])
        self.shortest = call_s
        return call_s


def numbers(info: Mapping[str, Any]) -> str:
    """The numbers that a runner tells, and those in mappings among it, as in `iterations=4 error=2e-07 solve=0.011`."""
    said = []
    for name, value in info.items():
        if isinstance(value, Mapping):
            said.append(numbers(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            said.append(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}")
    return " ".join(said)


@contextmanager
def alone() -> Iterator[None]:
    """Hold this machine's turn at timing. Who else wants to measure here, in whichever sweep, waits meanwhile.

    The turn is a lock on a file in the folder for temporary files: a process that is killed gives it back.
    """
    descriptor = _turn()
    try:
        if descriptor is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _turn() -> int | None:
    """A descriptor of the file that stands for this machine's turn; None, and a word on it, where there can be none."""
    if fcntl is None:
        return None
    path = os.path.join(tempfile.gettempdir(), f"rnnpar-{machine.name()}.turn")
    try:
        try:
            return os.open(path, os.O_RDONLY)  # it may be another user's
        except FileNotFoundError:
            return os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    except OSError as error:
        print(f"{path}: {error.strerror}; other sweeps on this machine are not waited for", file=sys.stderr)
        return None


def source(method: str) -> str:
    """The hash of a method's source at its first use in this process: what is edited later is not what runs here."""
    return _source(registry.find(method))


@cache
def _source(method: registry.Method) -> str:
    return method.source_hash()


@cache
def revision() -> str:
    """The git revision of the package, "-dirty" behind it where files of the package differ; "" outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(registry.PACKAGE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a checkout around an installed package is not its own
        return git("rev-parse", "--short=10", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
