"""Measure this machine: the experiments of a profile, through notebooks/sweep.ipynb.

    python -m rnnpar.study.sweep --profile quick|full|ci|mpi|in_time|peers [--parameters FILE.yaml] [--experiment NAME]
                                 [--scheduler tcp://host:8786 [--share]]

A profile is a YAML file beside this one. It holds the keys of one experiment, or a list `experiments` of several, each
with keys of its own or the name of a profile; `--parameters` overrides keys of all of them:

    experiment   names the file of results
    grids        each lists H, I, O, T, B and layers, and takes every combination; "H" as I or O means the value of H.
                 A `workload` is random, or radius-0.9 and the like; others have their own sizes: origin-large,
                 origin-small, trained networks. A grid may have methods, threads and ranks of its own
    methods      names, or "all": what can run here; peers, mpi and in_time have profiles of their own
    needs        methods: where none of them can run, the whole experiment is left out
    threads      numbers of threads, "each" (1, 2, 4 ... cores allowed), or null: the cores allowed. In a list "cores"
                 stands for those. Methods that take no threads are measured once
    ranks        numbers of ranks, for methods that take some
    timing       "calls", or "bursts": each method in a process of its own, see peers.py
    probes       what is no forward pass: scan (scan_probe.py), messages (messages_probe.py)
    again        how often a shape at which the cores were not whole is measured once more, after all others
    samples, budget_s, limit_s      as in measure.measure_group
    seed         of the shuffled order

What this machine has measured already with the same source is skipped, so a sweep that was cut short continues, and
two sweeps of one experiment that run at the same time share its points.
With a scheduler, the workers of a Dask cluster measure, each for its own machine (cluster.py).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import re
import signal
import sys
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

from rnnpar import machine, model, peaks, prepare, registry
from rnnpar.study import measure, messages_probe, peers, scan_probe, store
from rnnpar.study.cores import FEW
from rnnpar.words import did_you_mean, write_anything

PROFILES = Path(__file__).parent / "profiles"
NEEDED = ("experiment", "grids", "samples", "budget_s", "limit_s")
DEFAULTS = dict(methods="all", needs=[], threads=None, ranks=None, timing="calls", probes=[], again=0, seed=0)
KEYS = (*NEEDED, *DEFAULTS)
SIZES = ("H", "I", "O", "T", "B", "layers")
OWN = ("methods", "threads", "ranks")  # keys that a grid may have of its own
TIMINGS = {"calls": measure.Trial, "bursts": peers.Burst}
PROBES = {"scan": scan_probe, "messages": messages_probe}
BFLOAT16 = {"dtype": "bfloat16"}
CELL_LIMIT_S = 4 * 3600  # far beyond the full profile: a sweep that hangs ends one day

Plan = dict[measure.Point, list[tuple[str, dict[str, Any]]]]


class ProfileError(ValueError):
    """A profile cannot be used; the message says which key, what is wrong with it, and what would do."""


def load_profile(name: str, overrides: Path | None = None, experiment: str = "") -> list[dict[str, Any]]:
    """The experiments of the profile of that name, all keys filled in. ProfileError.

    `overrides` is a YAML file whose keys take the place of theirs; `experiment` names the results of the only one.
    """
    changes = _read(overrides, KEYS) if overrides else {}
    if experiment:
        changes["experiment"] = experiment
    entries = _entries(name)
    if len(entries) > 1 and "experiment" in changes:
        several = ", ".join(entry["experiment"] for entry in entries)
        raise ProfileError(f"a name for the results is for one experiment; the profile {name!r} has {several}")
    return [complete(entry | changes) for entry in entries]


def _entries(name: str) -> list[dict[str, Any]]:
    """The experiments of a profile as its file has them, and those of the profiles that it names."""
    known = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    if name not in known:
        raise ProfileError(f"no profile {name!r}; there are {', '.join(known)}")
    content = _read(PROFILES / f"{name}.yaml", (*KEYS, "experiments"))
    listed = content.get("experiments", [content])
    return [entry for one in listed for entry in (_entries(one) if isinstance(one, str) else [one])]


def complete(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of an experiment, defaults filled in. ProfileError for a key that is unknown, missing or unusable."""
    _check_keys(experiment, KEYS, "the profile")
    missing = [key for key in NEEDED if key not in experiment]
    if missing:
        raise ProfileError(f"the profile lacks {', '.join(missing)}")
    profile = DEFAULTS | experiment
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", str(profile["experiment"])):
        raise ProfileError(f"experiment is {profile['experiment']!r}; it names a file: letters, digits, '-', '_', '.'")
    for key in ("grids", "needs", "probes"):
        if not isinstance(profile[key], list):
            raise ProfileError(f"{key} is {profile[key]!r}; it must be a list")
    if profile["timing"] not in TIMINGS:
        raise ProfileError(f"timing is {profile['timing']!r}; it must be one of {', '.join(TIMINGS)}")
    if unknown := [name for name in profile["probes"] if name not in PROBES]:
        raise ProfileError(f"probes has {unknown[0]!r}; there are {', '.join(PROBES)}")
    _check_own(profile, "")
    if "messages" in profile["probes"] and not profile["ranks"]:
        raise ProfileError("the probe messages needs ranks, such as [1, 2]")
    _check_methods(profile["needs"], "needs")
    for number, grid in enumerate(profile["grids"], 1):
        _check_grid(grid, f"grid {number}")
    _check_numbers(profile)
    return profile


def run(experiments: Sequence[Mapping[str, Any]], scheduler: str = "", share: bool = False) -> list[str]:
    """Measure what is not stored yet of some experiments, and store each shape when it is done.

    An experiment is a mapping of a profile's keys. With a `scheduler`, the address of Dask's, its workers measure
    instead of this machine; `share` lets alike machines share the points. Returns the names of the machines that
    measured. Prints progress bars to stderr. ProfileError, store.ResultsError, cluster.ClusterError.
    """
    experiments = list(map(complete, experiments))
    if scheduler:
        alike = [one for one in experiments if one["timing"] == "calls" and not one["probes"]]
        for one in experiments:
            if one not in alike:
                print(f"{one['experiment']} is left out: it needs a machine of its own, without a scheduler")
        return list(dict.fromkeys(name for one in alike for name in _cluster().run(one, scheduler, share)))
    _measure_peaks()
    measured = [one["experiment"] for one in experiments if measure_here(one)]
    if measured:
        store.update_machine("measured", dict.fromkeys(measured, datetime.now(UTC).isoformat(timespec="seconds")))
    return [machine.name()]


def compile_ahead(experiments: Sequence[Mapping[str, Any]]) -> None:
    """Call every method of some experiments once, so that its kernels lie in Numba's cache before anything is timed.

    With bfloat16 weights as well, which chapter 03 times. Two backends at a time, a process each: compilation keeps
    only one core busy. What fails here, the sweep will say.
    """
    _measure_peaks()
    backends = {name.split("/")[0] for one in experiments for cases in plan(one).values() for name, _ in cases}
    # An interrupt from the keyboard ends these processes without a word.
    quiet = dict(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL))
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), **quiet) as pool:
        called = []
        if any("scan" in one.get("probes", []) for one in experiments):
            called.append(pool.submit(scan_probe.measure_scans, rounds=1, T=256))
        # What serial/compiled calls, threads/* call too: it is last, and has next to nothing left to compile.
        jobs = [*((backend, {}) for backend in sorted(backends - {"serial"})), ("threads", BFLOAT16)]
        jobs += [("serial", {}), ("serial", BFLOAT16)]
        wait([*called, *(pool.submit(_call_once, experiments, *job) for job in jobs)])


def _measure_peaks() -> None:
    """The peaks, which some methods plan by and chapters predict from, are measured while nothing else runs."""
    with measure.alone():
        peaks.here()


def _call_once(experiments: Sequence[Mapping[str, Any]], backend: str, more: Mapping[str, Any]) -> None:
    """Call each method of a backend that takes these options at the first point that has it."""
    cases = [(point, *case) for one in experiments for point, cases in plan(one).items() for case in cases]
    first = {method: (point, options) for point, method, options in reversed(cases)}
    for method, (point, options) in first.items():
        if method.split("/")[0] == backend and set(more) <= set(registry.find(method).options()):
            net, x = measure.build(point)
            with contextlib.suppress(Exception), prepare(net, method, **options, **more) as runner:
                runner(x)


def measure_here(experiment: Mapping[str, Any]) -> bool:
    """Measure an experiment (all keys filled in) on this machine, a shape at a time in shuffled order.

    Whether anything was new: else nothing is written, and what was measured keeps its date.
    """
    name = experiment["experiment"]
    absent = {method: why for method in _named(experiment) if (why := why_not(method))}
    if experiment["needs"] and set(experiment["needs"]) <= set(absent):
        method = experiment["needs"][0]
        print(f"{name} is left out: {method} {absent[method]}", flush=True)
        return False
    for method, why in absent.items():
        print(f"{name} without {method}: it {why}", flush=True)
    planned = plan(experiment)
    stored = store.newest(name)
    wanted = remaining(planned, stored)
    probes = [PROBES[probe] for probe in experiment["probes"] if PROBES[probe].due(experiment, stored)]
    points = sum(map(len, wanted.values()))
    todo = points + len(probes)
    changes = bool(todo) or not finished(name)
    if changes:
        store.save_machine(machine.describe())
    print(f"{name} on {machine.name()}: {todo} points to measure, "
          f"{sum(map(len, planned.values())) - points} stored already", flush=True)  # fmt: skip
    rng = np.random.default_rng(experiment["seed"])
    # Every shape, and within it every method and sample, comes in an order of chance: drift hits everyone equally.
    shapes = list(wanted)
    queue = deque(shapes[index] for index in rng.permutation(len(shapes)))
    tries: Counter[measure.Point] = Counter()
    elsewhere = 0
    limits = experiment["samples"], experiment["budget_s"], rng, experiment["limit_s"], TIMINGS[experiment["timing"]]
    bar = tqdm(total=todo, desc=name, unit="point", file=sys.stderr, ncols=80, mininterval=0.5, disable=not todo)
    with bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[0-9]+ ranks x")  # more ranks than cores are measured on purpose
        for probe in probes:
            with measure.alone():
                if probe.due(experiment, store.newest(name)):
                    store.append(probe.run(experiment), name)
            bar.update()
        while queue:
            point = queue.popleft()
            with measure.alone():  # from the look at what is stored until it is stored: no point is measured twice
                if store.grown(name):
                    stored = store.newest(name)
                due = wanted[point] if tries[point] else remaining({point: wanted[point]}, stored).get(point, [])
                found = measure.measure_group(point, due, *limits) if due else []
                store.append(news(found, stored), name)
            if not tries[point]:
                elsewhere += len(wanted[point]) - len(due)
                bar.update(len(wanted[point]))
            tries[point] += 1
            if tries[point] <= experiment["again"] and any(FEW in one.message for one in found):
                queue.append(point)
        if elsewhere:
            bar.write(f"{elsewhere} of them another sweep has measured meanwhile")
    if experiment["timing"] == "bursts":
        print(peers.closing(store.load(name, machine.name())), flush=True)
    return changes


def finished(experiment: str) -> bool:
    """Whether this machine has measured the experiment to its end, with whatever profile."""
    name = machine.name()
    if not store.newest(experiment, name) or not (store.results_folder(name) / "machine.json").exists():
        return False
    return experiment in store.load_machine(name).get("measured", {})


def plan(experiment: Mapping[str, Any]) -> Plan:
    """Every point of an experiment, with the methods that can run here and their options to be timed there."""
    experiment = complete(experiment)
    planned: Plan = {}
    for grid in experiment["grids"]:
        own = experiment | {key: grid[key] for key in OWN if key in grid}
        cases = [
            (name, options)
            for name in _able(own["methods"])
            for options in options_of(name, own["threads"], own["ranks"])
        ]
        for point in expand(grid) if cases else []:
            already = planned.setdefault(point, [])
            already += [case for case in cases if case not in already]
    return planned


def expand(grid: Mapping[str, Any]) -> list[measure.Point]:
    """A grid's points: every combination of its sizes, or of T and B where the workload has its own sizes."""
    points = []
    for workload in _listed(grid.get("workload", "random")):
        if _has_no_sizes(workload):
            lists = [_listed(grid.get(size, 1 if size == "layers" else "H")) for size in SIZES]
            for values in itertools.product(*lists):
                points.append(measure.Point(workload, *(values[0] if value == "H" else value for value in values)))
            continue
        for T, B in itertools.product(_listed(grid.get("T")), _listed(grid.get("B"))):
            points += [replace(point, T=T or point.T, B=B or point.B) for point in measure.named(workload)]
    return list(dict.fromkeys(points))


def options_of(method: str, threads: list[int | str] | str | None, ranks: list[int] | None) -> list[dict[str, int]]:
    """The options with which a method is measured: numbers of ranks or of threads, or none where it takes neither."""
    takes = ["threads"] if method == "auto" else registry.find(method).options()
    if "ranks" in takes:
        return [{"ranks": count} for count in ranks or [machine.cores_allowed()]]
    return [{"threads": count} for count in thread_counts(threads)] if "threads" in takes else [{}]


def thread_counts(threads: list[int | str] | str | None) -> list[int]:
    """Numbers of threads as a profile names them, less those beyond the cores allowed here."""
    cores = machine.cores_allowed()
    if threads is None:
        return [cores]
    if threads == "each":
        return sorted({*(2**k for k in range(cores.bit_length())), cores})
    counts = {cores if count == "cores" else count for count in threads}
    return sorted(count for count in counts if count <= cores) or [cores]


def why_not(method: str) -> str:
    """Why a method cannot run here, with what would do; "" where it can."""
    if method == "auto":
        return ""
    why = registry.find(method).why_not
    if not why and method.startswith("mpi/"):
        from rnnpar.backends.mpi_start import mpiexec

        try:
            mpiexec()
        except registry.Unavailable as error:
            return f"cannot start ranks: {error}"
    return why


def _named(experiment: Mapping[str, Any]) -> list[str]:
    """The methods that an experiment names, each once."""
    lists = [experiment["needs"], *(own.get("methods", []) for own in (experiment, *experiment["grids"]))]
    return list(dict.fromkeys(name for names in lists if names != "all" for name in names))


def _able(methods: list[str] | str) -> list[str]:
    """Those of `methods` that can run here; of "all", those that have no profile or command of their own."""
    if methods == "all":
        methods = [m.name for m in registry.methods() if m.backend not in measure.ELSEWHERE and not m.on_gpu]
    return [name for name in methods if not why_not(name)]


def remaining(planned: Plan, stored: Mapping[str, store.Measurement]) -> Plan:
    """What of a plan is not among `stored` (store.newest) with the source that stands now.

    A point that was "unsupported" is tried again: a package may have come since, and trying costs little.
    """
    left = {point: [case for case in cases if not _stands(point, *case, stored)] for point, cases in planned.items()}
    return {point: cases for point, cases in left.items() if cases}


def _stands(
    point: measure.Point, method: str, options: Mapping[str, Any], stored: Mapping[str, store.Measurement]
) -> bool:
    """Whether a measurement is stored that would not come out differently now, by the source of what ran."""
    found = stored.get(measure.key(point, method, measure.workers(options)))
    if found is None or found.status == "unsupported":
        return False
    if method == "auto":  # what it would choose now, which the model says, and whether that is what ran
        net = measure.build(point)[0]
        method = model.fastest(net, point.T, point.B, **options)
        if found.message.split(";")[0] != method:
            return False
    return found.source == measure.source(method)


def news(found: Iterable[store.Measurement], stored: Mapping[str, store.Measurement]) -> list[store.Measurement]:
    """Those of `found` that do not only say again that a method cannot do a point."""
    known = {(point, old.message) for point, old in stored.items() if old.status == "unsupported"}
    return [one for one in found if one.status != "unsupported" or (one.point, one.message) not in known]


def summary(experiments: Iterable[str], machines: Iterable[str] | None = None) -> pd.DataFrame:
    """What `machines`, this one by default, have stored of some experiments: points by method and status."""
    stored = [(one, name) for one in experiments for name in machines or [machine.name()] if store.newest(one, name)]
    if not stored:
        return pd.DataFrame()
    rows = pd.concat([store.load(one, name).assign(experiment=one) for one, name in stored])
    first = rows.drop_duplicates(["experiment", "machine", "point"])
    index = [first[key] for key in ("experiment", "machine") if first[key].nunique() > 1] + [first["method"]]
    return pd.crosstab(index, first["status"]).rename_axis([None] * len(index)).rename_axis(None, axis=1)


def execute(
    experiments: Sequence[Mapping[str, Any]], target: Path | None = None, scheduler: str = "", share: bool = False
) -> None:
    """Run notebooks/sweep.ipynb with some experiments, by default to build/. NotebookError, store.ResultsError."""
    from rnnpar.study import notebooks  # papermill takes a second to import, and the notebook needs none of it

    if not scheduler:
        store.check_writable()
    names = "-".join(one["experiment"] for one in experiments)
    target = target or notebooks.ROOT / "build" / f"sweep-{names}.ipynb"
    own = target.with_stem(f"{target.stem}-{os.getpid()}")  # another sweep of the same experiment may be running
    parameters = {"experiments": list(map(dict, experiments)), "scheduler": scheduler, "share": share}
    limit_s = None if scheduler else CELL_LIMIT_S  # each request to a worker has a limit of its own
    notebooks.execute(notebooks.ROOT / "notebooks" / "sweep.ipynb", own, parameters, limit_s)
    os.replace(own, target)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    write_anything()
    from rnnpar.study.notebooks import NotebookError

    parser = argparse.ArgumentParser(prog="python -m rnnpar.study.sweep", description="Measure this machine.")
    parser.add_argument("--profile", default="quick", help="quick (the default), full, ci, mpi, in_time, peers")
    parser.add_argument("--parameters", type=Path, metavar="FILE.yaml", help="keys in place of the profile's own")
    parser.add_argument("--experiment", metavar="NAME", help="the file of results, in place of the profile's")
    parser.add_argument("--scheduler", default="", metavar="tcp://...", help="measure on its workers; or a file's path")
    parser.add_argument("--share", action="store_true", help="alike machines share the points")
    options = parser.parse_args(arguments)
    if options.share and not options.scheduler:
        parser.error("--share is for machines beside each other: it needs --scheduler")
    try:
        if options.scheduler:
            _cluster()  # better known before a notebook starts
        experiments = load_profile(options.profile, options.parameters, options.experiment)
        execute(experiments, scheduler=options.scheduler, share=options.share)
    except KeyboardInterrupt:
        print("\ninterrupted; what was measured is stored, and the same command continues", file=sys.stderr)
        return 130
    except (ProfileError, NotebookError, store.ResultsError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not options.scheduler:  # which says itself what it has stored where
        print(f"stored in {os.path.relpath(store.results_folder())}")
    return 0


def _cluster() -> ModuleType:
    """cluster.py, which needs Dask. ProfileError where it is not installed."""
    try:
        from rnnpar.study import cluster
    except ModuleNotFoundError as error:
        raise ProfileError(f"a scheduler needs {error.name}: pip install 'rnnpar[cluster]'") from None
    return cluster


def _read(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ProfileError(f"{path} holds no keys; a profile has: {', '.join(keys)}")
    _check_keys(content, keys, path.name)
    return content


def _check_keys(mapping: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in mapping:
        if key not in known:
            near = did_you_mean(str(key), known)
            raise ProfileError(f"{where}: unknown key {key!r}{near or '; the keys are: ' + ', '.join(known)}")


def _check_grid(grid: Any, where: str) -> None:
    if not isinstance(grid, dict):
        raise ProfileError(f"{where} is {grid!r}; it must list {', '.join(SIZES)}")
    _check_keys(grid, ("workload", *SIZES, *OWN), where)
    for workload in _listed(grid.get("workload", "random")):
        _check_workload(workload, grid, where)
    for size in SIZES:
        for value in _listed(grid.get(size, 1)):
            if not (_whole(value, least=1) or (value == "H" and size in "IO")):
                also = ", or 'H'" if size in "IO" else ""
                raise ProfileError(f"{where}: {size} has {value!r}; it must be a whole number of at least 1{also}")
    _check_own(grid, f"{where}: ")


def _check_workload(workload: Any, grid: Mapping[str, Any], where: str) -> None:
    """ProfileError unless the grid has those sizes that the workload leaves to it."""
    if _has_no_sizes(workload):
        if missing := [size for size in "HTB" if size not in grid]:
            raise ProfileError(
                f"{where} lacks {', '.join(missing)}; I and O are 'H', and layers 1, where they are left out"
            )
        if workload != "random" and grid.get("layers", 1) not in (1, [1]):
            raise ProfileError(f"{where}: {workload} has one layer")
        return
    try:
        measure.named(workload)
    except ValueError as error:
        raise ProfileError(f"{where}: {error}") from None
    if given := [size for size in ("H", "I", "O", "layers") if size in grid]:
        raise ProfileError(f"{where}: {workload} has its own {', '.join(given)}; only T and B can be named")


def _has_no_sizes(workload: Any) -> bool:
    return workload == "random" or bool(measure.RADIUS.fullmatch(str(workload)))


def _check_own(keys: Mapping[str, Any], where: str) -> None:
    """ProfileError for methods, threads or ranks, of an experiment or a grid, that cannot be used."""
    _check_threads(keys.get("threads"), f"{where}threads")
    ranks = keys.get("ranks")
    if ranks is not None and not (isinstance(ranks, list) and ranks and all(_whole(count, least=1) for count in ranks)):
        raise ProfileError(f"{where}ranks is {ranks!r}; it must be null or a list of whole numbers from 1 on")
    methods = keys.get("methods", "all")
    if methods != "all":
        if not isinstance(methods, list):
            raise ProfileError(f"{where}methods is {methods!r}; it must be 'all' or a list of names")
        _check_methods(methods, f"{where}methods")


def _check_methods(names: list[Any], where: str) -> None:
    for name in names:
        try:
            _ = name == "auto" or registry.find(name)
        except ValueError as error:
            raise ProfileError(f"{where}: {error}") from None


def _check_numbers(profile: Mapping[str, Any]) -> None:
    for key, least in (("samples", 1), ("seed", 0), ("again", 0)):
        if not _whole(profile[key], least):
            raise ProfileError(f"{key} is {profile[key]!r}; it must be a whole number of at least {least}")
    for key in ("budget_s", "limit_s"):
        value = profile[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ProfileError(f"{key} is {value!r}; it must be a number of seconds above 0")


def _check_threads(threads: Any, where: str) -> None:
    if threads is None or threads == "each":
        return
    if not isinstance(threads, list) or not threads or not all(c == "cores" or _whole(c, least=1) for c in threads):
        raise ProfileError(
            f"{where} is {threads!r}; it must be null, 'each', or a list of whole numbers from 1 on and of 'cores'"
        )


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


if __name__ == "__main__":
    sys.exit(main())
