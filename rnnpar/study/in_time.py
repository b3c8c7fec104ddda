"""Chapter 07's experiments, figures and sentences: parallel in time.

    python -m rnnpar.study.in_time [--quick]        # or: make in-time

measures this machine and stores rows of the experiment "in_time": random networks of a set spectral radius, trained
networks, long sequences, sizes, and the parallel scan alone. A row's message tells what the method said of itself
(`iterations=4 evaluations=5 exponent=-0.62 error=2e-07`), or why it refused.

Letters: T steps, B sequences, H hidden, p processors.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from tqdm import tqdm

from rnnpar import machine, peaks
from rnnpar.backends.in_time import KINDS
from rnnpar.kernels.scan import FADED, Scan
from rnnpar.network import RNN
from rnnpar.reference import reference
from rnnpar.study import corpus, measure, store
from rnnpar.study.cores import count
from rnnpar.study.measure import Point, Problem, Trial
from rnnpar.words import write_anything

EXPERIMENT = "in_time"
OURS = [f"in_time/{name}" for name in KINDS]
CHAINS = ["serial/compiled", "threads/rows", "threads/wavefront"]  # what goes along the chain
RADII = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0)
LENGTHS = (64, 256, 1024, 4096, 16384, 65536)
SIZES = (16, 32, 64, 128, 256)
TRAINED = ("kjv-h128", "kjv-h512", "kjv-2x256")
LARGEST_DEER = 256  # H up to which `deer` is tried: a map costs H^3 a step
RADIUS_T, SIZE_T, TRAINED_T = 1000, 8192, 1000
SCANS = {"scan/dense": (True, FADED), "scan/dense-all": (True, 0.0), "scan/diagonal": (False, FADED)}
SCAN_S, SCAN_ROUNDS = 16, 9
WIDE = 1e-5

# --- measuring --------------------------------------------------------------------------------------------------------


def network(radius: float, H: int = 32, I: int = 16, O: int = 10, seed: int = 0) -> RNN:
    """Gaussian W of that spectral radius and weak inputs, so that the radius decides what becomes of an error."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((H, H))
    W *= radius / np.abs(np.linalg.eigvals(W)).max()
    U = 0.3 * rng.uniform(-1, 1, (H, I)) / np.sqrt(I)
    V = rng.uniform(-1, 1, (O, H)) / np.sqrt(H)
    return RNN.from_arrays([dict(W=W, U=U, b=np.zeros(H))], V, np.zeros(O))


def problem(point: Point) -> Problem:
    """The network, input and truth of a point: workload "radius-0.9", "random", or a trained network's name."""
    if point.workload.startswith("radius-"):
        net = network(float(point.workload.removeprefix("radius-")), point.H, point.I, point.O)
        x = np.random.default_rng(1).standard_normal((point.T, point.B, point.I), dtype=np.float32)
    elif point.workload == "random":
        net, x = measure.build(point)
    else:
        net, x = corpus.load(point.workload), corpus.sequences(point.B, point.T)[0]
    return Problem(net, x, *reference(net, x))


def cases(quick: bool = False) -> list[tuple[Point, list[tuple[str, dict[str, Any]]]]]:
    """Every point of the experiment, with the methods and their options."""
    cores = {"threads": machine.cores_allowed()}
    ours = [(name, cores) for name in OURS]
    both = [(name, options) for name in OURS for options in ({"threads": 1}, cores)]
    chains = [("serial/compiled", {}), *((name, cores) for name in CHAINS[1:])]
    found = [(Point(f"radius-{radius}", 32, 16, 10, RADIUS_T, 1), ours) for radius in RADII[:: 3 if quick else 1]]
    found += [(Point("random", 32, 32, 32, T, 1), chains + both) for T in LENGTHS[: 4 if quick else None]]
    for H in SIZES[: 3 if quick else None]:
        found.append((Point("random", H, H, H, SIZE_T // (4 if quick else 1), 1), chains + both))
    for name in TRAINED if not quick else ():
        net = corpus.load(name)
        sizes = (net.hidden_size, net.input_size, net.output_size)
        found.append((Point(name, *sizes, TRAINED_T, 1, net.num_layers), chains + ours))
    kept = {}
    for point, methods in found:
        some = [m for m in methods if m[0] != "in_time/deer" or point.H <= LARGEST_DEER]
        kept[point] = [m for i, m in enumerate(some) if m not in some[:i]]
    return list(kept.items())


def measure_case(
    point: Point, methods: Sequence[tuple[str, dict[str, Any]]], samples: int, rng: Any
) -> list[store.Row]:
    """All rows of a point: as `measure.measure_group`, and in the message what the method says of itself."""
    truth = problem(point)
    trials = [Trial(point, name, dict(options)) for name, options in methods]
    said: dict[int, str] = {}
    try:
        for index in rng.permutation(len(trials)):
            trials[index].start(truth, samples, 0.5, 1.0)
            said[index] = says(trials[index].runner.info if trials[index].runner else {})
        measure.in_rounds(trials, truth, rng)
    finally:
        for trial in trials:
            trial.close()
    return [
        replace(row, message="; ".join(filter(None, [said.get(index, ""), row.message]))) if row.status == "ok" else row
        for index, trial in enumerate(trials)
        for row in trial.rows()
    ]


def says(info: Mapping[str, Any]) -> str:
    """run.info as a message; `told` reads it back."""
    if "iterations" not in info:
        return ""
    seconds = " ".join(f"{part}={value:.3g}" for part, value in info["seconds"].items())
    return (
        f"iterations={info['iterations']} evaluations={info['evaluations']:.3g} exponent={info['exponent']:.3g} "
        f"error={info['error']:.2g} window={info['window']} bytes={info['bytes']} {seconds}"
    )


def told(message: str) -> dict[str, float]:
    """The numbers of a message; of a refusal those that it names."""
    found = {key: float(value) for key, value in re.findall(r"(\w+)=(-?inf|-?[\d.e+-]+)", message)}
    if refused := re.search(r"exponent is (-?[\d.e+-]+) a step", message):
        found["exponent"] = float(refused[1])
    if refused := re.search(r"after (\d+) iterations", message):
        found["iterations"] = float(refused[1])
    return found


def measure_scans(rounds: int = SCAN_ROUNDS, T: int = 65536, H: int = 32) -> list[store.Row]:
    """The scan alone, the same segments on one thread and on all cores in turn, held against the recurrence.

    A round in which the cores were not whole is set aside and taken again, up to twice the rounds in all.

    `scan/dense` drops maps that have faded away, `scan/dense-all` carries every map to its segment's end.
    """
    rng = np.random.default_rng(0)
    net = RNN.random(H, H, H)
    g, r = rng.uniform(0.5, 1, (T, 1, H)).astype(np.float32), (1e-3 * rng.standard_normal((T, 1, H))).astype(np.float32)
    W, state, wanted = net.layers[0].W, np.zeros((1, H)), {True: np.empty((T, H)), False: np.empty((T, H))}
    for dense in wanted:
        state[:] = 0
        for t in range(T):
            state = g[t] * (state @ W.T if dense else state * W.diagonal()) + r[t]
            wanted[dense][t] = state
    cores = machine.cores_allowed()
    scans = {
        (name, threads): Scan(W, g, r, threads, SCAN_S, dense, faded)
        for name, (dense, faded) in SCANS.items()
        for threads in dict.fromkeys((1, cores))
    }
    errors, seconds, aside = {}, {key: [] for key in scans}, {key: [] for key in scans}
    for (name, threads), scan in scans.items():
        scan.run()
        truth = wanted[SCANS[name][0]]
        errors[name, threads] = float(np.linalg.norm(scan.d[:, 0] - truth) / np.linalg.norm(truth))
    for _ in range(2 * rounds):
        whole, took = measure.cores().whole(), {}
        for key, scan in scans.items():
            scan.run()  # its data into the caches, its threads awake
            begin = time.perf_counter()
            scan.run()
            took[key] = time.perf_counter() - begin
        kept = seconds if whole and measure.cores().whole() else aside
        for key, value in took.items():
            kept[key].append(value)
        if len(next(iter(seconds.values()))) == rounds:
            break
    counted = {key: count(seconds[key], aside[key]) for key in scans}
    shared = dict(workload="scan", H=H, I=0, O=0, T=T, B=1, layers=1, kind="steady",
                  source=measure.source("in_time/deer"), revision=measure.revision(),
                  date=datetime.now(UTC).isoformat(timespec="seconds"))  # fmt: skip
    return [
        store.Row(
            point=measure.key(Point("scan", H, 0, 0, T, 1), name, threads), method=name, threads=threads, sample=index,
            seconds=value, error=errors[name, threads], status="ok" if errors[name, threads] <= WIDE else "inaccurate",
            samples=len(values), message="; ".join(filter(None, [f"segments={SCAN_S}", said])), **shared,
        )
        for (name, threads), (values, said) in counted.items()
        for index, value in enumerate(values)
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    write_anything()
    parser = argparse.ArgumentParser(prog="python -m rnnpar.study.in_time", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer points and samples: half a minute")
    options = parser.parse_args(arguments)
    rng, samples = np.random.default_rng(0), 3 if options.quick else 9
    try:
        store.check_writable()
        if not (store.results_folder() / "machine.json").exists():
            store.save_machine(machine.describe())
        peaks.here()
        todo = cases(options.quick)
        store.append(measure_scans(3 if options.quick else SCAN_ROUNDS), EXPERIMENT)
        for index in tqdm(rng.permutation(len(todo)), unit="point", disable=None):
            point, methods = todo[index]
            once = point.workload.startswith("radius-")  # there the iterations count, and not the time
            store.append(measure_case(point, methods, 1 if once else samples, rng), EXPERIMENT)
    except KeyboardInterrupt:
        print("\ninterrupted; what was measured is stored", file=sys.stderr)
        return 130
    except (store.ResultsError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
