"""Measure a grid of points on this machine, through notebooks/sweep.ipynb.

    python -m rnnpar.study.sweep --profile ci|quick|full [--parameters FILE.yaml] [--experiment NAME]
                                 [--scheduler tcp://host:8786 [--share]]

A profile is a YAML file beside this one; `--parameters` overrides any of its keys:

    experiment   names the file of results
    grids        each lists H, I, O, T, B and layers, and takes every combination; "H" as I or O means the value of H
    workloads    workloads that have their own sizes: origin-large, origin-small, trained networks
    methods      names, or "all": what can run here; peers, mpi, in_time and the GPU's have commands of their own
    threads      numbers of threads, "each" (1, 2, 4 ... cores allowed), or null: the cores allowed; a grid may have
                 its own. Methods that take no threads are measured once
    samples, budget_s, limit_s      as in measure.measure_group
    seed         of the shuffled order

What this machine has measured already with the same source is skipped, so a sweep that was cut short continues, and
two sweeps of one experiment that run at the same time share its points.
With a scheduler, the workers of a Dask cluster measure, each for its own machine (cluster.py).
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import os
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

from rnnpar import machine, peaks, registry
from rnnpar.study import measure, store
from rnnpar.words import write_anything

PROFILES = Path(__file__).parent / "profiles"
KEYS = ("experiment", "grids", "workloads", "methods", "threads", "samples", "budget_s", "limit_s", "seed")
SIZES = ("H", "I", "O", "T", "B", "layers")
CELL_LIMIT_S = 4 * 3600  # far beyond the full profile: a sweep that hangs ends one day

Plan = dict[measure.Point, list[tuple[str, dict[str, Any]]]]


class ProfileError(ValueError):
    """A profile cannot be used; the message says which key, what is wrong with it, and what would do."""


def load_profile(name: str, overrides: Path | None = None) -> dict[str, Any]:
    """The profile of that name, with the keys in the YAML file `overrides` in place of its own. ProfileError."""
    known = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    if name not in known:
        raise ProfileError(f"no profile {name!r}; there are {', '.join(known)}")
    profile = _read(PROFILES / f"{name}.yaml")
    if overrides:
        profile |= _read(overrides)
    check_profile(profile)
    return profile


def check_profile(profile: Mapping[str, Any]) -> None:
    """ProfileError unless `profile` has all keys, no other, and values that a sweep can take."""
    _check_keys(profile, KEYS, "the profile")
    missing = [key for key in KEYS if key not in profile]
    if missing:
        raise ProfileError(f"the profile lacks {', '.join(missing)}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", str(profile["experiment"])):
        raise ProfileError(f"experiment is {profile['experiment']!r}; it names a file: letters, digits, '-', '_', '.'")
    for key in ("grids", "workloads"):
        if not isinstance(profile[key], list):
            raise ProfileError(f"{key} is {profile[key]!r}; it must be a list")
    for number, grid in enumerate(profile["grids"], 1):
        _check_grid(grid, f"grid {number}")
    _check_numbers(profile)
    _check_threads(profile["threads"], "threads")
    if profile["methods"] != "all":
        if not isinstance(profile["methods"], list):
            raise ProfileError(f"methods is {profile['methods']!r}; it must be 'all' or a list of names")
        for method in profile["methods"]:
            _or_profile_error(registry.find, method)
    for workload in profile["workloads"]:
        _or_profile_error(measure.named, workload)


def run(
    experiment: str,
    grids: list[dict[str, Any]],
    workloads: list[str],
    methods: list[str] | str,
    threads: list[int] | str | None,
    samples: int,
    budget_s: float,
    limit_s: float,
    seed: int,
    scheduler: str = "",
    share: bool = False,
) -> list[str]:
    """Measure what is not stored yet, a shape at a time in shuffled order, and store each shape when it is done.

    The parameters are a profile's keys. With a `scheduler`, the address of Dask's, its workers measure instead of
    this machine; `share` lets alike machines share the points. Returns the names of the machines that measured.
    Prints a progress bar to stderr. ProfileError, store.ResultsError, cluster.ClusterError.
    """
    profile = dict(experiment=experiment, grids=grids, workloads=workloads, methods=methods, threads=threads,
                   samples=samples, budget_s=budget_s, limit_s=limit_s, seed=seed)  # fmt: skip
    check_profile(profile)
    if scheduler:
        return _cluster().run(profile, scheduler, share)
    with measure.alone():
        peaks.here()  # what the chapters' predictions are made from, measured while nothing else runs
    planned = plan(profile)
    stored = store.newest(experiment)
    wanted = remaining(planned, stored)
    todo = sum(map(len, wanted.values()))
    skipped = sum(map(len, planned.values())) - todo
    changes = todo or not finished(experiment)  # else nothing is written: what was measured keeps its date
    if changes:
        store.save_machine(machine.describe())
    print(f"{experiment} on {machine.name()}: {todo} points to measure, {skipped} stored already", flush=True)
    rng = np.random.default_rng(seed)
    points = list(wanted)
    # Every shape, and within it every method and sample, comes in an order of chance: drift hits everyone equally.
    bar = tqdm(total=todo, desc=experiment, unit="point", file=sys.stderr, ncols=80, mininterval=0.5, disable=not todo)
    elsewhere = 0
    with bar:
        for index in rng.permutation(len(points)):
            point = points[index]
            with measure.alone():  # from the look at what is stored until it is stored: no point is measured twice
                if store.grown(experiment):
                    stored = store.newest(experiment)
                due = remaining({point: wanted[point]}, stored).get(point, [])
                if due:
                    rows = measure.measure_group(point, due, samples, budget_s, rng, limit_s)
                    store.append([row for row in rows if not known_unsupported(row, stored)], experiment)
            elsewhere += len(wanted[point]) - len(due)
            bar.update(len(wanted[point]))
        if elsewhere:
            bar.write(f"{elsewhere} of them another sweep has measured meanwhile")
    if changes:
        store.update_machine("measured", {experiment: datetime.now(UTC).isoformat(timespec="seconds")})
    return [machine.name()]


def finished(experiment: str) -> bool:
    """Whether this machine has measured the experiment to its end, with whatever profile."""
    name = machine.name()
    if not store.newest(experiment, name) or not (store.results_folder(name) / "machine.json").exists():
        return False
    return experiment in store.load_machine(name).get("measured", {})


def plan(profile: Mapping[str, Any]) -> Plan:
    """Every point of a profile, with the methods and their options to be timed there."""
    if profile["methods"] == "all":
        ours = [
            method for method in registry.methods() if method.backend not in measure.ELSEWHERE and not method.on_gpu
        ]
        methods = [method.name for method in ours if method.available]
    else:
        methods = profile["methods"]
    takes_threads = {name: _takes_threads(name) for name in methods}
    planned: Plan = {}

    def add(point: measure.Point, counts: list[int]) -> None:
        cases = planned.setdefault(point, [])
        for name in methods:
            for options in [{"threads": count} for count in counts] if takes_threads[name] else [{}]:
                if (name, options) not in cases:
                    cases.append((name, options))

    for grid in profile["grids"]:
        counts = thread_counts(grid.get("threads", profile["threads"]))
        for point in expand(grid):
            add(point, counts)
    for workload in profile["workloads"]:
        for point in measure.named(workload):
            add(point, thread_counts(profile["threads"]))
    return planned


def expand(grid: Mapping[str, Any]) -> list[measure.Point]:
    """A grid's points: every combination of its sizes, on random weights."""
    lists = [_listed(grid.get(size, 1 if size == "layers" else "H")) for size in SIZES]
    points = []
    for values in itertools.product(*lists):
        sizes = dict(zip(SIZES, values, strict=True))
        points.append(
            measure.Point("random", **{key: sizes["H"] if value == "H" else value for key, value in sizes.items()})
        )
    return points


def thread_counts(threads: list[int] | str | None) -> list[int]:
    """Numbers of threads as a profile names them, less those beyond the cores allowed here."""
    cores = machine.cores_allowed()
    if threads is None:
        return [cores]
    if threads == "each":
        return sorted({*(2**k for k in range(cores.bit_length())), cores})
    return sorted({count for count in threads if count <= cores}) or [cores]


def remaining(planned: Plan, stored: Mapping[str, store.Measurement]) -> Plan:
    """What of a plan is not among `stored` (store.newest) with the source that stands now.

    A point that was "unsupported" is tried again: a package may have come since, and trying costs little.
    """
    done = {key: rows[0].source for key, rows in stored.items() if rows[0].status != "unsupported"}
    left = {
        point: [
            (name, options)
            for name, options in cases
            if done.get(measure.key(point, name, options.get("threads", 1))) != measure.source(name)
        ]
        for point, cases in planned.items()
    }
    return {point: cases for point, cases in left.items() if cases}


def known_unsupported(row: store.Row, stored: Mapping[str, store.Measurement]) -> bool:
    """Whether `row` only says again that a method cannot do this point."""
    old = stored.get(row.point, [None])[0]
    return bool(old) and row.status == old.status == "unsupported" and row.message == old.message


def summary(experiment: str, machines: Iterable[str] | None = None) -> pd.DataFrame:
    """What `machines`, this one by default, have stored of an experiment: points by method and status."""
    names = list(machines or [machine.name()])
    first = store.load(experiment, names).query("sample == 0")
    index = [first["machine"], first["method"]] if len(names) > 1 else first["method"]
    return pd.crosstab(index, first["status"]).rename_axis([None] * (1 + (len(names) > 1))).rename_axis(None, axis=1)


def execute(profile: Mapping[str, Any], target: Path | None = None, scheduler: str = "", share: bool = False) -> None:
    """Run notebooks/sweep.ipynb with a profile, by default to build/. NotebookError, store.ResultsError."""
    from rnnpar.study import notebooks  # papermill takes a second to import, and the notebook needs none of it

    if not scheduler:
        store.check_writable()
    target = target or notebooks.ROOT / "build" / f"sweep-{profile['experiment']}.ipynb"
    own = target.with_stem(f"{target.stem}-{os.getpid()}")  # another sweep of the same experiment may be running
    parameters = dict(profile) | {"scheduler": scheduler, "share": share}
    limit_s = None if scheduler else CELL_LIMIT_S  # each request to a worker has a limit of its own
    notebooks.execute(notebooks.ROOT / "notebooks" / "sweep.ipynb", own, parameters, limit_s)
    os.replace(own, target)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    write_anything()
    from rnnpar.study.notebooks import NotebookError

    parser = argparse.ArgumentParser(prog="python -m rnnpar.study.sweep", description="Measure this machine.")
    parser.add_argument("--profile", default="quick", help="ci, quick (the default) or full")
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
        profile = load_profile(options.profile, options.parameters)
        if options.experiment:
            profile["experiment"] = options.experiment
            check_profile(profile)
        execute(profile, scheduler=options.scheduler, share=options.share)
    except KeyboardInterrupt:
        print("\ninterrupted; what was measured is stored, and the same command continues", file=sys.stderr)
        return 130
    except (ProfileError, NotebookError, store.ResultsError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not options.scheduler:  # which says itself what it has stored where
        print(f"stored in {os.path.relpath(store.results_folder() / profile['experiment'])}.csv")
    return 0


def _cluster() -> ModuleType:
    """cluster.py, which needs Dask. ProfileError where it is not installed."""
    try:
        from rnnpar.study import cluster
    except ModuleNotFoundError as error:
        raise ProfileError(f"a scheduler needs {error.name}: pip install 'rnnpar[cluster]'") from None
    return cluster


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ProfileError(f"{path} holds no keys; a profile has: {', '.join(KEYS)}")
    _check_keys(content, KEYS, path.name)
    return content


def _check_keys(mapping: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise ProfileError(f"{where}: unknown key {key!r}{meant}; the keys are: {', '.join(known)}")


def _check_grid(grid: Any, where: str) -> None:
    if not isinstance(grid, dict):
        raise ProfileError(f"{where} is {grid!r}; it must list {', '.join(SIZES)}")
    _check_keys(grid, (*SIZES, "threads"), where)
    missing = [size for size in ("H", "T", "B") if size not in grid]
    if missing:
        raise ProfileError(
            f"{where} lacks {', '.join(missing)}; I and O are 'H', and layers 1, where they are left out"
        )
    for size in SIZES:
        for value in _listed(grid.get(size, 1)):
            if not (_whole(value, least=1) or (value == "H" and size in "IO")):
                also = ", or 'H'" if size in "IO" else ""
                raise ProfileError(f"{where}: {size} has {value!r}; it must be a whole number of at least 1{also}")
    _check_threads(grid.get("threads"), f"{where}: threads")


def _check_numbers(profile: Mapping[str, Any]) -> None:
    for key, least in (("samples", 1), ("seed", 0)):
        if not _whole(profile[key], least):
            raise ProfileError(f"{key} is {profile[key]!r}; it must be a whole number of at least {least}")
    for key in ("budget_s", "limit_s"):
        value = profile[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ProfileError(f"{key} is {value!r}; it must be a number of seconds above 0")


def _check_threads(threads: Any, where: str) -> None:
    if threads is None or threads == "each":
        return
    if not isinstance(threads, list) or not threads or not all(_whole(count, least=1) for count in threads):
        raise ProfileError(f"{where} is {threads!r}; it must be null, 'each', or a list of whole numbers from 1 on")


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _or_profile_error(look_up: Any, name: str) -> None:
    try:
        look_up(name)
    except ValueError as error:
        raise ProfileError(str(error)) from None


def _takes_threads(method: str) -> bool:
    try:
        return "threads" in registry.find(method).options()
    except Exception:  # a backend that cannot be imported: measuring it says so, in its own row
        return False


if __name__ == "__main__":
    sys.exit(main())
