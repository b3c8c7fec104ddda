"""Chapter 06: what ranks cost, measured on the ranks at hand and computed for those that are not.

    python -m rnnpar.study.ranks [--quick] [--only REGEX]        or: make mpi

measures two things on this machine. First what a message costs, by ping-pong between two ranks, and an exchange of the
state, by each way there is, into mpi.json. Then the strategies of `mpi` beside those of `threads`, as the sweep would,
into mpi.csv, where "threads" counts the ranks. What is stored with the same source is not measured again.

Letters: T steps, B sequences side by side, I input, H hidden, O output size.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown

import rnnpar
from rnnpar import machine, model_ranks, registry
from rnnpar.model import Work
from rnnpar.model_ranks import Link
from rnnpar.study import measure, plots, simulate, store, tell
from rnnpar.study.measure import Point

EXPERIMENT = "mpi"
FILE = "mpi.json"
RANKS = (1, 2, 4)
SIZES = (8, 64, 512, 1024, 4096, 16384, 65536, 262144, 1048576)  # bytes of a message
WIDE = (64, 1024, 8192)  # H of the states that are exchanged
SAMPLES = 9
KINDS = ("window", "messages", "allgather")

# H, T, B, layers of the points, I = O = H; what is timed there beside serial/compiled
LINES = {
    "rows": [(H, 128 if H < 2048 else 32, 1, 1) for H in (64, 128, 256, 512, 1024, 2048)],
    "batch": [(256, 32, B, 1) for B in (1, 4, 16, 64, 256)],
    "pipeline": [(256, 128, 1, L) for L in (1, 2, 4, 8)],
}
TWINS = {"mpi/rows": "threads/rows", "mpi/batch": "threads/batch", "mpi/pipeline": "threads/wavefront"}


# --- Measuring: messages and exchanges, on the ranks themselves ----------------------------------------------------


def probe() -> None:
    """On every rank of a job: measure, and let rank 0 print what it found as one line of JSON."""
    from rnnpar.backends.mpi import MODES, world
    from rnnpar.kernels import messages

    place = world()
    comm, rank, ranks = place.comm, place.rank, place.size

    def seconds_of(call: Callable[[int], object]) -> float:
        """Seconds of one repetition; the least of the samples, for whatever else runs only ever adds to it."""
        call(1)
        repeat, took = np.array([10.0]), 0.0
        samples = []
        for _ in range(SAMPLES):
            place.meet()
            begin = time.perf_counter()
            call(int(repeat[0]))
            took = (time.perf_counter() - begin) / int(repeat[0])
            samples.append(took)
            if rank == 0:
                repeat[0] = np.clip(3e-3 / took, 3, 5000)
            comm.Bcast(repeat)
        return float(np.quantile(samples[1:], 0.25))

    found: dict[str, Any] = {"ranks": ranks, "messages": [], "exchange": {}}
    alone = messages.Exchange(comm, messages.ALONE, 1, 1)
    if ranks == 2:
        for size in SIZES:
            there, back = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
            requests = [comm.Send_init(there, 1 - rank, 5), comm.Recv_init(back, 1 - rank, 5)]
            handles = messages.handles_of(requests)
            took = seconds_of(
                lambda n, h=handles: messages.ping_pong_many(n, alone.link, h, alone.answer, int(rank == 0))
            )
            found["messages"].append((size, took / 2))
            for request in requests:
                request.Free()
    for kind in KINDS:
        points = []
        for H in WIDE:
            wide = -(-H // ranks)
            exchange = messages.Exchange(comm, MODES[kind], 1, wide, place.crowded)
            state = np.zeros(H, np.float32)

            def call(n: int, e: Any = exchange, s: np.ndarray = state) -> None:
                messages.exchange_many(n, e.link, e.board, e.flags, e.handles, e.answer, s, 1, e.epoch)
                e.epoch += n

            points.append((H, seconds_of(call)))
            exchange.close()
        found["exchange"][kind] = points
    if rank == 0:
        print(json.dumps(found), flush=True)


def run_probe(ranks: int) -> dict[str, Any]:
    """`probe` on so many ranks. RuntimeError with what they wrote where it fails."""
    from rnnpar.backends.mpi_start import SUITED, mpiexec

    command = [*mpiexec(), "-n", str(ranks), sys.executable, "-m", "rnnpar.study.ranks", "--probe"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | SUITED)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"the measurement on {ranks} ranks failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(lines[-1])


def measure_messages() -> dict[str, Any]:
    """What messages and exchanges cost here, for 2 and 4 ranks; written to mpi.json beside the results."""
    found = {str(ranks): run_probe(ranks) for ranks in RANKS if ranks > 1}
    kept = {
        "measured": time.strftime("%Y-%m-%d"),
        "source": registry.find("mpi/rows").source_hash(),
        "library": library(),
        "call": {str(ranks): call_seconds(ranks) for ranks in RANKS},
        "messages": found["2"]["messages"],
        "exchange": {ranks: told["exchange"] for ranks, told in found.items()},
    }
    folder = store.results_folder()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(kept, indent=1) + "\n")
    return kept


def call_seconds(ranks: int) -> float:
    """Seconds of a call that has next to nothing to compute, in the ranks: what every call costs before its steps."""
    x = np.zeros((1, ranks, 1), np.float32)
    with rnnpar.prepare(rnnpar.RNN.random(1, 1, 1), "mpi/batch", ranks=ranks) as run:
        return float(np.median([run.timed(x)[0] for _ in range(100)]))


def library() -> str:
    from importlib import metadata

    names = [name for name in ("mpi4py", "mpich", "openmpi", "impi-rt") if _version(metadata, name)]
    return ", ".join(f"{name} {_version(metadata, name)}" for name in names)


def _version(metadata: Any, name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


# --- Measuring: the strategies -------------------------------------------------------------------------------------


def plan(only: str = "", quick: bool = False) -> dict[Point, list[tuple[str, dict[str, int]]]]:
    """Every point, with the methods and options to be timed there."""
    cores = machine.cores_allowed()
    planned: dict[Point, list[tuple[str, dict[str, int]]]] = {}
    for strategy, sizes in LINES.items():
        for H, T, B, layers in sizes[:: 2 if quick else 1]:
            point = Point("random", H, H, H, T, B, layers)
            mine = [("serial/compiled", {}), (TWINS[f"mpi/{strategy}"], {"threads": cores})]
            mine += [(f"mpi/{strategy}", {"ranks": ranks}) for ranks in (RANKS[:2] if quick else RANKS)]
            if strategy != "rows" and not quick:
                mine.append(("mpi/rows", {"ranks": 2}))
            planned.setdefault(point, [])
            planned[point] += [case for case in mine if case not in planned[point]]
    return {point: cases for point, cases in planned.items() if re.search(only, label(point))}


def label(point: Point) -> str:
    return f"H={point.H} T={point.T} B={point.B} L={point.layers}"


def measure_strategies(only: str = "", quick: bool = False) -> int:
    """Time what is not stored yet, a shape at a time; returns how many points that were."""
    store.check_writable()
    store.save_machine(machine.describe())
    machine.peaks()
    rng, count = np.random.default_rng(0), 0
    stored = {key: rows[0].source for key, rows in store.newest(EXPERIMENT).items() if rows[0].status != "unsupported"}
    for point, cases in plan(only, quick).items():
        due = [
            (method, options)
            for method, options in cases
            if stored.get(measure.key(point, method, measure.workers(options))) != measure.source(method)
        ]
        if any(method.startswith("mpi/") for method, _ in due):  # the others only beside them, in the same rounds
            print(f"{label(point)}: {', '.join(method for method, _ in cases)}", flush=True)
            store.append(measure.measure_group(point, cases, SAMPLES, 0.6, rng), EXPERIMENT)
            count += len(cases)
    return count


# --- What was measured ---------------------------------------------------------------------------------------------


def results(name: str = "") -> tuple[str, pd.DataFrame]:
    """A machine's name and its results of this experiment: this machine's, or else those of another that has some."""
    known = [other for other in store.machines() if (store.results_folder(other) / f"{EXPERIMENT}.csv").exists()]
    chosen = name if name in known else known[0] if known else name or machine.name()
    frame = store.load(EXPERIMENT, chosen) if known else pd.DataFrame(columns=["machine", *store.COLUMNS])
    return chosen, frame


def messages(name: str) -> dict[str, Any]:
    """What messages cost on a machine (mpi.json); empty where that was not measured."""
    file = store.results_folder(name) / FILE
    return json.loads(file.read_text()) if file.exists() else {}


def link(found: Mapping[str, Any]) -> Link:
    """alpha and beta from the ping-pong: the least message, and the slope up to 64 KB."""
    table = dict(map(tuple, found.get("messages", [])))
    if not table:
        return model_ranks.NEAR
    alpha, size = table[min(table)], 65536
    return Link(alpha, (table[size] - alpha) / size, alpha / 2)


def exchange(found: Mapping[str, Any], kind: str, ranks: int) -> Callable[[int, float], float]:
    """meet(ranks, elements) as model_ranks.rows takes it: a line through the measured exchanges of a kind."""
    points = found["exchange"][str(ranks)][kind]
    sizes, seconds = zip(*points, strict=True)
    return lambda _, elements: (
        float(np.interp(elements, sizes, seconds))
        if elements <= sizes[-1]
        else float(seconds[-1] * elements / sizes[-1])
    )


def predict(name: str, method: str, shape: Mapping[str, Any], ranks: int) -> float:
    """Seconds of a call on the ranks of the machine that was measured; NaN without its peaks."""
    costs, found = tell.cost_model(name), messages(name)
    if costs is None or not found:
        return float("nan")
    work = Work(**{letter: int(shape[letter]) for letter in ("T", "B", "I", "H", "O", "layers")})
    # More ranks than cores take turns: each computes as slowly as if the others' work were its own.
    turns = max(1.0, ranks / model_ranks.cores(costs))
    start = found["call"][str(ranks)]
    if method == "mpi/rows":
        meet = exchange(found, "window", ranks) if ranks > 1 else lambda *_: 0.0
        computing = model_ranks.rows(costs, work, ranks, lambda *_: 0.0)
        meetings = work.layers * work.T * meet(ranks, work.B * work.H) if ranks > 1 else 0.0
        return start + turns * computing + meetings
    if method == "mpi/batch":
        return start + turns * model_ranks.batch(costs, work, ranks)
    return start + turns * model_ranks.pipeline(costs, work, ranks, link(found))


def predictions(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """A row a point of mpi: measured and predicted seconds of a call, as plots.model_error takes it."""
    rows = plots.steady(frame)
    rows = rows[rows["method"].str.startswith("mpi/")]
    by = ["workload", "H", "I", "O", "T", "B", "layers", "method", "threads"]
    found = []
    for key, value in plots.medians(rows, by).items():
        shape = dict(zip(by, key, strict=True))
        seconds = predict(name, shape["method"], shape, int(shape["threads"]))
        if seconds > 0:
            found.append(shape | dict(machine=name, date=tell.last_day(rows), measured=value.value, predicted=seconds))
    return pd.DataFrame(found, columns=["machine", "date", *by, "measured", "predicted"])


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rnnpar.study.ranks", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer points, 2 ranks at most")
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="points whose label matches, such as 'H=1024 .*B=1 '"
    )
    parser.add_argument(
        "--messages", action="store_true", help="measure messages and exchanges again, and nothing else"
    )
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)  # what each rank runs
    options = parser.parse_args(arguments)
    if options.probe:
        probe()
        return 0
    missing = registry.find("mpi/rows").why_not
    if missing:
        print(f"error: mpi/rows {missing}", file=sys.stderr)
        return 1
    warnings.filterwarnings("ignore", "[0-9]+ ranks x")  # 4 ranks on fewer cores are measured on purpose
    try:
        file = store.results_folder() / FILE
        if options.messages or not file.exists():
            measure_messages()
        if not options.messages:
            count = measure_strategies(options.only, options.quick)
            print(f"{count} points measured; stored in {os.path.relpath(store.results_folder() / EXPERIMENT)}.csv")
    except (store.ResultsError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
