"""Side by side: what a user would pick instead, and ours, over small and large shapes, each in a process of its own.

    python -m rnnpar.study.peers [--methods auto,threads/rows] [--rounds 7] [--only H=1024] [--quick]

At each shape every engine is started, and finds its fastest formulation; then come rounds in newly shuffled order. In
a round an engine makes calls for a tenth of a second, right one after another, and the median of all but the first is
one sample: its threads are awake and its weights in its caches, as in a program that does nothing else. Between two
engines there is a pause, in which threads that spin go to sleep, and a look at the cores: a round in which they were
not whole (cores.py) is set aside for all engines and taken again, up to twice the rounds in all. A shape for which
even so there were too few, or at which another program took part of the cores, is measured once more when all others
have been, up to twice; the last measurement stands. Every sample is checked against the float64 oracle.

Letters as everywhere: T steps, B batch, I input, H hidden, O output, L layers.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import psutil
from tqdm import tqdm

from rnnpar import machine, registry
from rnnpar.auto import prepare
from rnnpar.backends.peers import Child
from rnnpar.network import RNN
from rnnpar.reference import reference
from rnnpar.study import measure, store
from rnnpar.study.cores import FEW, SHARED, count
from rnnpar.study.measure import BOUND, Point, Problem
from rnnpar.words import write_anything

EXPERIMENT = "peers"
PEERS = ("peers/torch", "peers/onnxruntime", "peers/openvino", "peers/jax")
BURST_S = 0.1  # an engine's calls in a round
MOST_CALLS = 50  # in a round
LONG_S = 0.5  # a call that takes longer is made once in a round, and needs no call before it
PAUSE_S = 0.05  # between two engines, for the threads of the one before to go to sleep
BUSY = 10.0  # percent of all cores that others may take before a shape counts as disturbed
AGAIN = 2  # times that a disturbed shape is measured once more

#   H, I, O, T, B and, where there are several, layers
SIZES = [
    (64, 64, 64, 128, 1),
    (256, 256, 256, 128, 1),
    (512, 512, 512, 128, 1),
    (1024, 1024, 1024, 128, 1),
    (2048, 2048, 2048, 32, 1),
    (50, 29, 29, 5000, 1),
    (128, 29, 29, 5000, 1),
    (512, 29, 29, 1000, 1),
    (1024, 64, 64, 1000, 1),
    (512, 512, 512, 64, 4),
    (128, 128, 128, 512, 8),
    (512, 29, 29, 1000, 8),
    (120, 120, 10_000, 50, 8),
    (50, 50, 8_000, 15, 16),
    (256, 256, 256, 128, 16),
    (1024, 1024, 1024, 128, 16),
    (2048, 256, 2048, 15, 16),
    (512, 512, 512, 64, 32),
    (1024, 1024, 1024, 32, 64),
    (50, 50, 50, 500, 128),
    (256, 256, 256, 64, 128),
    (2048, 256, 2048, 15, 128),
    (256, 256, 256, 128, 1, 3),
    (512, 512, 512, 32, 16, 2),
]
ORIGIN = [point for name in measure.ORIGIN for point in measure.named(name)]
GRID = [*ORIGIN, *(Point("random", *sizes) for sizes in SIZES)]
QUICK = [ORIGIN[0], *(Point("random", *SIZES[index]) for index in (1, 3, 14, 20, 22))]


class Ours:
    """One of our methods as a forward pass for `Child`; `info` says which method it was."""

    def __init__(self, net: RNN, method: str, threads: int):
        takes = method == "auto" or "threads" in registry.find(method).options()
        self.runner = prepare(net, method, **({"threads": threads} if takes else {}))
        self.info = {"formulation": method}

    def __call__(self, x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, h = self.runner(x, h0)
        self.info["formulation"] = self.runner.method
        return y, h


@dataclass
class Contender:
    """One engine at one shape: from the start of its process to its rows."""

    point: Point
    method: str
    threads: int
    child: Child | None = None
    compile_s: float | None = None
    call_s: float = 0.0
    seconds: list[float] = field(default_factory=list)  # of a call, one a round
    aside: list[float] = field(default_factory=list)  # the same, of rounds in which the cores were not whole
    error: float | None = None
    status: str = "ok"
    message: str = ""

    def start(self, problem: Problem) -> None:
        """Start the process, let it choose, and see how long a call takes."""
        try:
            begin = time.perf_counter()
            if self.method in PEERS:
                self.child = registry.find(self.method).load()(problem.net, self.threads)
            else:
                arguments = (problem.net, self.method, self.threads)
                self.child = Child(self.method, "rnnpar.study.peers:Ours", arguments, self.threads)
            y, h = self.child(problem.x, self._h0(problem))
            self.compile_s = time.perf_counter() - begin
            if self._check(problem, y, h):
                self.call_s = min(self.child.calls(problem.x, self._h0(problem), 2)[0])
        except Exception as error:
            self._fail(error)

    def sample(self, problem: Problem) -> None:
        """One round: the median of a burst's calls, the first of which only wakes threads and fills caches."""
        unheeded = int(self.call_s < LONG_S)
        count = unheeded + max(1, min(MOST_CALLS, round(BURST_S / max(self.call_s, 1e-7))))
        try:
            seconds, y, h = self.child.calls(problem.x, self._h0(problem), count)
        except Exception as error:
            self._fail(error)
            return
        if self._check(problem, y, h):
            self.seconds.append(float(np.median(seconds[unheeded:])))

    def set_aside(self) -> None:
        """Set the last round aside: it may not count (cores.count)."""
        if self.status == "ok":
            self.aside.append(self.seconds.pop())

    def rows(self) -> list[store.Row]:
        """The measurement: the start with its first call, then a row a round; one row where something went wrong."""
        seconds, said = count(self.seconds, self.aside) if self.status == "ok" else ([], "")
        times = [self.compile_s, *seconds]
        message = "; ".join(filter(None, [self.message, said]))
        sizes = {key: value for key, value in asdict(self.point).items() if key != "workload"}
        date = datetime.now(UTC).isoformat(timespec="seconds")
        return [
            store.Row(
                point=measure.key(self.point, self.method, self.threads), workload=self.point.workload,
                method=self.method, **sizes, threads=self.threads, sample=index, samples=len(times), seconds=seconds,
                kind="steady" if index else "compile", error=self.error, status=self.status, message=message,
                source=self._source(), revision=measure.revision(), date=date,
            )
            for index, seconds in enumerate(times)
        ]  # fmt: skip

    def close(self) -> None:
        if self.child is not None:
            self.child.close()

    def _h0(self, problem: Problem) -> np.ndarray:
        return np.zeros((self.point.layers, self.point.B, self.point.H), np.float32)

    def _check(self, problem: Problem, y: np.ndarray, h: np.ndarray) -> bool:
        """Whether y and h are within the bound; notes which formulation made them."""
        self.message = "; ".join(filter(None, [self.child.info.get("formulation", ""), version(self.method)]))
        self.error = float(np.max([problem.error(y, h), self.error or 0.0]))
        if self.error <= BOUND:
            return True
        self.status = "inaccurate"
        self.message = f"relative error {self.error:.2g}, over the bound of {BOUND:.0e}; {self.message}"
        return False

    def _fail(self, error: Exception) -> None:
        kinds = {registry.Unavailable: "unsupported", MemoryError: "oom"}
        self.status = next((status for kind, status in kinds.items() if isinstance(error, kind)), "error")
        self.message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        self.compile_s = None

    def _source(self) -> str:
        """The hash of the code that ran; for "auto" that of the method which it chose."""
        ran = self.message.split("; ")[0] if self.method == "auto" else self.method
        return measure.source(ran) if ran in {method.name for method in registry.methods()} else ""


def compare(
    point: Point,
    methods: Sequence[str],
    threads: int,
    rounds: int,
    rng: np.random.Generator,
    tell: Callable[[str], Any] = lambda _: None,
) -> list[store.Row]:
    """All rows of `methods` at one shape, each in a process of its own, in interleaved and shuffled rounds."""
    net, x = measure.build(point)
    problem = Problem(net, x, *reference(net, x))
    contenders = [Contender(point, method, threads) for method in methods]
    try:
        for index in rng.permutation(len(contenders)):
            tell(contenders[index].method)
            contenders[index].start(problem)
        tell("rounds")
        whole_rounds = 0
        for _ in range(2 * rounds):
            if whole_rounds == rounds:
                break
            whole = True
            for index in rng.permutation(len(contenders)):
                if contenders[index].status == "ok":
                    time.sleep(PAUSE_S)
                    whole &= measure.cores().whole()
                    contenders[index].sample(problem)
            whole &= measure.cores().whole()
            whole_rounds += whole
            if not whole:
                for contender in contenders:
                    contender.set_aside()
    finally:
        for contender in contenders:
            contender.close()
    return [row for contender in contenders for row in contender.rows()]


def ratios(frame: pd.DataFrame, ours: str = "auto") -> pd.DataFrame:
    """A line a shape: microseconds a step of each method, the best peer, what ours was, and best peer / ours.

    `frame` has the columns of the results, as store.load("peers", machine) gives them: of one machine, and of one
    number of threads. Only times whose error is within the bound count.
    """
    sizes = ["workload", "H", "I", "O", "T", "B", "layers"]
    steady = frame[(frame["kind"] == "steady") & (frame["status"] == "ok")]
    steady = steady.assign(us=1e6 * steady["seconds"] / steady["T"])
    table = steady.pivot_table(index=sizes, columns="method", values="us", aggfunc="median", sort=False)
    peers = table[[name for name in PEERS if name in table]]
    if ours not in table or peers.empty:
        return table
    said = steady[steady["method"] == ours].groupby(sizes, sort=False)["message"].last()
    return table.assign(
        best=peers.idxmin(axis=1, skipna=True), best_us=peers.min(axis=1), method=said.str.split(";").str[0],
        ratio=peers.min(axis=1) / table[ours],
    )  # fmt: skip


def version(method: str) -> str:
    """The engine's name and version; "" for our methods."""
    if method not in PEERS:
        return ""
    package = registry.find(method).requires[0][1].split("==")[0]
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return ""


def label(point: Point) -> str:
    """A shape in one word or a few, as the table has it."""
    sizes = f"B={point.B} H={point.H} I={point.I} O={point.O} T={point.T}"
    return sizes + (f" L={point.layers}" if point.layers > 1 else "")


def line(rows: Sequence[store.Row], methods: Sequence[str], ours: str) -> str:
    """A shape as a line of the table, with what went wrong below it."""
    point = Point(*(getattr(rows[0], name) for name in Point.__dataclass_fields__))
    found = ratios(pd.DataFrame(map(asdict, rows)), ours)
    only = found.iloc[0].to_dict() if len(found) else {}
    cells = [f"{only.get(method, np.nan):{WIDTH}.4g}" for method in methods]
    end = [f"{only['ratio']:7.2f}", f"{only['best'].split('/')[1]:12}", only["method"]] if "ratio" in only else []
    text = " ".join([f"{label(point):{LABEL}}", *cells, *end])
    said = {part for row in rows for part in row.message.split("; ") if part.startswith(SHARED)}
    text += "".join(f"\n    {part}" for part in sorted(said))
    for row in rows:
        if row.sample == 0 and row.status != "ok":
            text += f"\n    {row.method}: {row.status}: {row.message}"
    return text


LABEL, WIDTH = 42, 12


def header(methods: Sequence[str]) -> str:
    names = [f"{method.removeprefix('peers/')[:WIDTH]:>{WIDTH}}" for method in methods]
    return " ".join([f"{'us a step':{LABEL}}", *names, "  ratio", f"{'best peer':12}", "ours"])


def closing(table: pd.DataFrame) -> str:
    """The geometric mean of best peer / ours, and the worst shape."""
    if "ratio" not in table or table["ratio"].isna().all():
        return "no shape has both a peer's time and ours"
    ratio = table["ratio"].dropna()
    worst = dict(zip(table.index.names, ratio.idxmin(), strict=True))
    return (
        f"best peer / ours: geometric mean {np.exp(np.log(ratio).mean()):.2f} over {len(ratio)} shapes, "
        f"worst {ratio.min():.2f} at {label(Point(**worst))} ({table.loc[ratio.idxmin(), 'best']})"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    write_anything()
    parser = argparse.ArgumentParser(prog="python -m rnnpar.study.peers", description=__doc__.split("\n\n")[0])
    parser.add_argument("--methods", default="auto", help="ours, the first of which is compared: auto (the default)")
    parser.add_argument("--peers", default=",".join(PEERS), help="all four by default")
    parser.add_argument("--rounds", type=int, default=7, help="samples an engine at a shape (7)")
    parser.add_argument("--threads", type=int, default=machine.cores_allowed(), help="of each engine (cores allowed)")
    parser.add_argument("--only", default="", metavar="REGEX", help="shapes whose line matches, such as 'B=1 H=1024'")
    parser.add_argument("--quick", action="store_true", help="6 shapes, 3 rounds")
    parser.add_argument("--no-store", action="store_true", help="print only; by default results are kept too")
    options = parser.parse_args(arguments)
    ours, wanted = options.methods.split(","), options.peers.split(",")
    try:
        for method in [*wanted, *(method for method in ours if method != "auto")]:
            registry.find(method)
        if options.threads < 1 or options.rounds < 1:
            raise ValueError("--threads and --rounds must be at least 1")
        if not options.no_store:
            store.check_writable()
    except (ValueError, store.ResultsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    peers = [method for method in wanted if registry.find(method).available]
    for method in set(wanted) - set(peers):
        print(f"{method} is left out: {registry.find(method).why_not}")
    points = [point for point in (QUICK if options.quick else GRID) if re.search(options.only, label(point))]
    methods = [*peers, *ours]
    rounds = min(options.rounds, 3) if options.quick else options.rounds
    print(f"{machine.name()}, {options.threads} threads; {', '.join(map(version, peers))}\n{header(methods)}")
    measured: dict[Point, list[store.Row]] = {}
    rng, due = np.random.default_rng(0), points
    try:
        for turn in range(1 if options.quick else 1 + AGAIN):
            if turn and due:
                print(f"disturbed, and measured again: {len(due)} of {len(points)} shapes")
            disturbed = []
            with tqdm(due, unit="shape", disable=None) as progress:
                for point in progress:
                    busy = psutil.cpu_percent(0.3)
                    here = compare(point, methods, options.threads, rounds, rng, progress.set_postfix_str)
                    note = f"\n    others took {busy:.0f}% of the cores: not to be trusted" if busy > BUSY else ""
                    tqdm.write(line(here, methods, ours[0]) + note)
                    measured[point] = here
                    if note or any(FEW in row.message for row in here):
                        disturbed.append(point)
                    if not options.no_store:
                        store.append(here, EXPERIMENT)
            due = disturbed
    except KeyboardInterrupt:
        print("\ninterrupted" + ("" if options.no_store else "; the shapes above are stored"), file=sys.stderr)
    except store.ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = [row for here in measured.values() for row in here]
    if rows:
        print(closing(ratios(pd.DataFrame(map(asdict, rows)), ours[0])))
    return 0 if len({row.point for row in rows}) == len(points) * len(methods) else 130


if __name__ == "__main__":
    sys.exit(main())
