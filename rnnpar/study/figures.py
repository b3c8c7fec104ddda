"""Draw every figure: measure this machine if it has no results yet, then execute the chapters.

    python -m rnnpar.study.figures [--profile quick] [--scratch DIR]

The chapters read this machine's experiment "sweep", whichever profile measured it, and write figures/<machine>/; their
executed copies go to notebooks/rendered/. With --scratch, everything is measured and written in a folder apart.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from rnnpar import machine
from rnnpar.study import notebooks, store, sweep
from rnnpar.study.corpus import data_folder
from rnnpar.words import write_anything

EXPERIMENT = "sweep"
CELL_LIMIT_S = 900


def chapters(folder: Path = notebooks.ROOT / "notebooks") -> list[Path]:
    """The chapters' sources in the order of reading: the notebooks whose names begin with two digits."""
    return sorted(folder.glob("[0-9][0-9]*.ipynb"))


def draw(sources: Iterable[Path], rendered: Path) -> list[str]:
    """Execute chapters for this machine into the folder `rendered`, a line each; returns why some failed."""
    failures = []
    for source in sources:
        begin = time.perf_counter()
        try:
            notebooks.execute(source, rendered / source.name, {"machine": machine.name()}, CELL_LIMIT_S, quiet=True)
        except notebooks.NotebookError as error:  # the other chapters are still worth drawing
            failures.append(str(error))
        said = "FAILED after" if failures and failures[-1].startswith(source.name) else "drawn in"
        print(f"{source.stem:24} {said} {time.perf_counter() - begin:.1f} s", flush=True)
    return failures


def set_apart(scratch: Path) -> None:
    """Let data and figures of this process and its kernels lie under `scratch`, which is made if it is missing.

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
    os.environ["RNNPAR_FIGURES"] = str(scratch.resolve() / "figures")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    write_anything()
    parser = argparse.ArgumentParser(prog="python -m rnnpar.study.figures", description="Draw every figure.")
    parser.add_argument("--profile", default="quick", help="what to measure if there are no results: ci, quick, full")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="measure and write everything under DIR instead")
    options = parser.parse_args(arguments)
    if options.profile == "ci" and not options.scratch:
        parser.error("profile ci measures too little to keep: name a folder for it with --scratch")
    try:
        return _figures(options.profile, options.scratch)
    except KeyboardInterrupt:
        print("\ninterrupted; what was measured is stored, and the same command continues", file=sys.stderr)
        return 130
    except (sweep.ProfileError, notebooks.NotebookError, store.ResultsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _figures(profile_name: str, scratch: Path | None) -> int:
    profile = sweep.load_profile(profile_name) | {"experiment": EXPERIMENT}
    if scratch:
        set_apart(scratch)
    if not sweep.finished(EXPERIMENT):
        print(f"measuring {machine.name()} with the profile {profile_name}", flush=True)
        sweep.execute(profile, scratch and scratch / "sweep.ipynb")
    failures = draw(chapters(), scratch / "rendered" if scratch else notebooks.ROOT / "notebooks" / "rendered")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
