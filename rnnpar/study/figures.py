"""Draw every figure: measure this machine if it has no results yet, then execute the chapters.

    python -m rnnpar.study.figures [--profile quick]
    python -m rnnpar.study.figures --machine NAME                # another machine's, from its stored results
    python -m rnnpar.study.figures --only 03 -p T 32 --to build/try

Executed chapters go to notebooks/rendered/<machine>/, figures to figures/<machine>/. Nothing of another machine is
changed. `--to` names another folder for both, and `-p` sets a chapter's parameters. With `--scratch`, results are
measured and kept under that folder too.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from rnnpar import machine
from rnnpar.study import notebooks, store, sweep
from rnnpar.study.corpus import data_folder
from rnnpar.study.results import SHOWS
from rnnpar.words import did_you_mean, write_anything

EXPERIMENT = "sweep"
CELL_LIMIT_S = 900


def chapters(folder: Path = notebooks.ROOT / "notebooks") -> list[Path]:
    """The chapters' sources: in the order of reading, but that 08, which looks at all others, comes last."""
    return sorted(folder.glob("[0-9][0-9]*.ipynb"), key=lambda path: (path.name.startswith("08"), path.name))


def draw(sources: Iterable[Path], name: str, to: Path, parameters: Mapping[str, Any]) -> list[str]:
    """Execute chapters for the machine `name` into the folder `to`, a line each; returns why some failed.

    Two at a time, but for those that measure while they run, and for chapter 08, which looks at all others.
    """
    os.environ["RNNPAR_MACHINE"] = name

    def execute(source: Path) -> str:
        begin, failure = time.perf_counter(), ""
        try:
            notebooks.execute(source, to / source.name, {"machine": name, **parameters}, CELL_LIMIT_S, quiet=True)
        except notebooks.NotebookError as error:  # the other chapters are still worth drawing
            failure = str(error)
        said = "FAILED after" if failure else "drawn in"
        print(f"{source.stem:24} {said} {time.perf_counter() - begin:.1f} s", flush=True)
        return failure

    sources = list(sources)
    alone = [source for source in sources if source.name.startswith("08") or '"live"' in source.read_text("utf-8")]
    with ThreadPoolExecutor(2) as pool:
        failures = list(pool.map(execute, [source for source in sources if source not in alone]))
    return list(filter(None, [*failures, *map(execute, alone)]))


def set_apart(scratch: Path) -> None:
    """Let data of this process and its kernels lie under `scratch`, which is made if it is missing.

    Text, models and other machines' results are linked from the real data folder; this machine's results are not.
    """
    real, apart = data_folder().resolve(), scratch.resolve() / "data"
    linked = [real / "text", real / "models"]
    linked += [results for results in (real / "results").glob("*") if results.name != machine.name()]
    for path in linked:
        link = apart / path.relative_to(real)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path, target_is_directory=True)
    os.environ["RNNPAR_DATA"] = str(apart)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    write_anything()
    parser = argparse.ArgumentParser(prog="python -m rnnpar.study.figures", description="Draw every figure.")
    parser.add_argument("--profile", default="quick", help="what to measure if there are no results: ci, quick, full")
    parser.add_argument("--machine", default="", help="whose stored results to draw, in place of this machine's")
    parser.add_argument("--only", default="", metavar="03,04", help="chapters by number; all by default")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    parser.add_argument("--to", type=Path, metavar="DIR", help="write chapters and figures under DIR instead")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="measure and write everything under DIR instead")
    options = parser.parse_args(arguments)
    if options.profile == "ci" and not options.scratch:
        parser.error("profile ci measures too little to keep: name a folder for it with --scratch")
    if options.p and not (options.to or options.scratch):
        parser.error("parameters of your own are not for notebooks/rendered: name a folder with --to")
    if options.machine and options.machine not in store.machines():
        known = store.machines()
        parser.error(f"no results of {options.machine!r}{did_you_mean(options.machine, known)}; there are "
                     f"{', '.join(known) or 'none'}")  # fmt: skip
    try:
        return _figures(options)
    except KeyboardInterrupt:
        print("\ninterrupted; what was measured is stored, and the same command continues", file=sys.stderr)
        return 130
    except (sweep.ProfileError, notebooks.NotebookError, store.ResultsError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _figures(options: argparse.Namespace) -> int:
    parameters = {name: yaml.safe_load(value) for name, value in options.p}
    sources = _chosen(options.only.split(",") if options.only else [])
    for source in sources:  # better known before anything is measured
        notebooks.check_parameters(source, parameters)
    # What the profile ci measures, under a scratch folder alone, stands for the sweep.
    experiments = sweep.load_profile(options.profile, experiment=EXPERIMENT if options.profile == "ci" else "")
    to = options.to or options.scratch
    if options.scratch:
        set_apart(options.scratch)
    if to:
        os.environ["RNNPAR_FIGURES"] = str(to.resolve() / "figures")
    name = options.machine or machine.name()
    if name != machine.name():
        if not store.has(EXPERIMENT, name):  # a machine that has measured little has chapters of that alone
            sources = [source for source in sources if store.has(SHOWS.get(source.name[:2], EXPERIMENT), name)]
    elif not sweep.finished(EXPERIMENT):
        print(f"measuring {name} with the profile {options.profile}", flush=True)
        sweep.compile_ahead(experiments)
        sweep.execute(experiments, options.scratch and options.scratch / "sweep.ipynb")
    folder = (to or notebooks.ROOT / "notebooks") / "rendered" / name
    failures = draw(sources, name, folder, parameters)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return bool(failures)


def _chosen(numbers: list[str]) -> list[Path]:
    """The chapters of these numbers. ValueError for a number that no chapter has."""
    every = chapters()
    known = {path.name[:2] for path in every}
    if unknown := [number for number in numbers if number not in known]:
        raise ValueError(f"no chapter {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [path for path in every if not numbers or path.name[:2] in numbers]


if __name__ == "__main__":
    sys.exit(main())
