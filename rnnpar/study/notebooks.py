"""Run notebooks through papermill, and hold their sources to one form.

    python -m rnnpar.study.notebooks --check [--fix] [FILE ...]     # default: every source under notebooks/

A source has no outputs, the kernel python3, and the canonical bytes that `canonical` makes; what a program runs (the
chapters, and the sweep) has one cell tagged `parameters`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from papermill.exceptions import PapermillExecutionError

from rnnpar.words import write_anything

ROOT = Path(__file__).resolve().parents[2]  # the checkout
STARTS = 4  # kernels started at the same moment sometimes take each other's port
# Their message says what is wrong and what would do: no traceback needed.
SAY_IT_ALL = ("ResultsError", "ProfileError", "ClusterError")
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
METADATA = {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}


class NotebookError(RuntimeError):
    """A notebook could not be run, or failed; the message says which, why, and where it was kept."""


class ThisInterpreter(AsyncKernelManager):
    """Starts the kernel with the Python that runs papermill, whatever kernelspecs the user has installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        # The kernel's own remarks (unencrypted local ports, how it was interrupted) are not what a reader came for.
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
        return KernelSpec(argv=argv, display_name=KERNELSPEC["display_name"], language="python")


def execute(
    source: Path, target: Path, parameters: Mapping[str, Any], timeout_s: float | None = None, quiet: bool = False
) -> None:
    """Run a notebook with these parameters, its prints on our own stdout and stderr as they come; write `target`.

    The notebook runs under a temporary name, `*.running.ipynb`, and becomes `target` when all of it has succeeded.
    One that fails is kept as `*.failed.ipynb`. `timeout_s` bounds each cell; `quiet` passes on stderr alone, warnings
    and progress. NotebookError, also for parameters that the notebook does not have, before anything runs.
    """
    source, target = Path(source).resolve(), Path(target).resolve()
    check_parameters(source, parameters)
    running, failed = target.with_suffix(".running.ipynb"), target.with_suffix(".failed.ipynb")
    for variable in ("RNNPAR_DATA", "RNNPAR_FIGURES"):  # the kernel works in the notebook's folder, not in ours
        if os.environ.get(variable):
            os.environ[variable] = os.path.abspath(os.environ[variable])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _run(source, running, parameters, timeout_s, quiet)
        _tidy(running)
        relink(running, source.parent)
        os.replace(running, target)
        failed.unlink(missing_ok=True)
    except Exception as error:
        raise NotebookError(f"{source.name}: {_explain(error, timeout_s)}{_keep(running, failed)}") from None
    finally:
        with suppress(OSError):
            running.unlink()


def check_parameters(source: Path, parameters: Mapping[str, Any]) -> None:
    """NotebookError unless the notebook is there and has all of these parameters."""
    if not source.is_file():
        raise NotebookError(f"{source}: no such notebook")
    try:
        known = list(papermill.inspect_notebook(source))
    except Exception as error:  # whatever a damaged file makes nbformat raise
        raise NotebookError(f"{source} is no notebook, or damaged: {error}") from None
    unknown = [name for name in parameters if name not in known]
    if unknown:
        has = f"its parameters are {', '.join(known)}" if known else "it has none (no cell is tagged `parameters`)"
        raise NotebookError(f"{source.name} has no parameter {', '.join(unknown)}; {has}")


def _run(source: Path, running: Path, parameters: Mapping[str, Any], timeout_s: float | None, quiet: bool) -> None:
    for start in range(1, STARTS + 1):
        try:
            papermill.execute_notebook(
                source, running, dict(parameters), kernel_name="python3", kernel_manager_class=ThisInterpreter,
                cwd=source.parent, execution_timeout=timeout_s, progress_bar=False, record_timing=False,
                stdout_file=None if quiet else sys.stdout, stderr_file=sys.stderr,
            )  # fmt: skip
        except Exception as error:
            if start == STARTS or not _no_start(error):
                raise
        else:
            return


def _no_start(error: Exception) -> bool:
    """Whether the kernel died before the first cell, as it does when another process takes its port."""
    signs = ("address already in use", "address in use", "kernel died before replying")
    return not isinstance(error, PapermillExecutionError) and any(sign in str(error).lower() for sign in signs)


def _explain(error: Exception, timeout_s: float | None) -> str:
    """Why a run failed, on one line; the traceback of a failed cell goes to stderr where it is needed."""
    if isinstance(error, PapermillExecutionError):
        if error.ename not in SAY_IT_ALL:
            traceback = "\n".join(error.traceback)
            if not sys.stderr.isatty():
                traceback = re.sub(r"\x1b\[[0-9;]*m", "", traceback)
            print(traceback, file=sys.stderr)
        first = error.evalue.strip().split("\n")[0]
        return first if error.ename in SAY_IT_ALL else f"cell [{error.exec_count}] failed: {error.ename}: {first}"
    if isinstance(error, CellTimeoutError):
        print(error, file=sys.stderr)
        return f"a cell was stopped after {timeout_s:g} seconds"
    if isinstance(error, DeadKernelError):
        return "the kernel died: out of memory, or a crash in compiled code"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _keep(running: Path, failed: Path) -> str:
    """Keep what has run of a notebook that failed; where, as the end of a message."""
    try:
        _tidy(running)
        os.replace(running, failed)
    except (OSError, ValueError):  # it failed before its first cell, or the disk is full
        return ""
    return f" (kept as {os.path.relpath(failed)})"


def _tidy(path: Path) -> None:
    """Collapse the progress lines in an executed notebook, and drop what differs from run to run or names a path."""
    notebook = nbformat.read(path, 4)
    CoalesceStreamsPreprocessor().preprocess(notebook, {})
    widgets = {key: value for key, value in notebook.metadata.items() if key == "widgets"}
    notebook.metadata = nbformat.from_dict(METADATA | widgets)
    for index, cell in enumerate(notebook.cells):
        cell.metadata = {key: cell.metadata[key] for key in ("tags", "jupyter") if cell.metadata.get(key)}
        if "injected-parameters" in cell.metadata.get("tags", ()):
            cell.id = f"injected-{index}"  # papermill draws a new one in each run
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def relink(path: Path, folder: Path) -> None:
    """Let links to what is not executed (explore, the sweep, other files) lead where they did from `folder`."""
    notebook = nbformat.read(path, 4)

    def mend(match: re.Match) -> str:
        name = match[1]
        if re.match(r"\d\d", name) or not (folder / name).is_file():
            return match[0]
        return f"]({Path(os.path.relpath(folder / name, path.parent)).as_posix()}"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\(([^)\s#:]+)", mend, cell.source)
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def sources() -> list[Path]:
    """Every source notebook of the checkout, by name."""
    return sorted((ROOT / "notebooks").glob("[!.]*.ipynb"))


def canonical(notebook: nbformat.NotebookNode) -> str:
    """The one form of a source: no outputs, no counts, only the metadata that it needs, keys sorted."""
    cells = []
    for cell in notebook.cells:
        kept = {key: cell[key] for key in ("cell_type", "id", "source", "attachments") if key in cell}
        kept["metadata"] = {key: cell.metadata[key] for key in ("tags", "jupyter") if cell.metadata.get(key)}
        if cell.cell_type == "code":
            kept |= {"outputs": [], "execution_count": None}
        cells.append(kept)
    whole = dict(cells=cells, metadata=METADATA, nbformat=4, nbformat_minor=5)
    return nbformat.writes(nbformat.from_dict(whole)) + "\n"


def check(path: Path, fix: bool = False) -> list[str]:
    """What is wrong with a source notebook, a line each; with `fix`, what could not be mended."""
    text = path.read_text(encoding="utf-8")
    try:
        notebook = nbformat.reads(text, 4)
        wanted = canonical(notebook)
        nbformat.validate(nbformat.reads(wanted, 4))
    except Exception as error:  # whatever a damaged file makes nbformat raise
        return [f"{path.name}: is no notebook of format 4, or damaged: {str(error).splitlines()[0]}"]
    faults = []
    tagged = sum("parameters" in cell.metadata.get("tags", ()) for cell in notebook.cells)
    if re.match(r"\d\d|sweep", path.name) and tagged != 1:
        faults.append(f"{path.name}: {tagged} cells are tagged `parameters`; papermill needs one")
    if text != wanted:
        if fix:
            path.write_text(wanted, encoding="utf-8")
        else:
            faults.append(f"{path.name}: {_difference(notebook)}; `--fix` mends it")
    return faults


def _difference(notebook: nbformat.NotebookNode) -> str:
    ran = [n for n, cell in enumerate(notebook.cells) if cell.get("outputs") or cell.get("execution_count")]
    if ran:
        return f"cell {', '.join(map(str, ran))} (from 0) carries outputs or a count"
    if notebook.metadata.get("kernelspec") != KERNELSPEC:
        return f"its kernelspec is {dict(notebook.metadata.get('kernelspec', {}))}, not {KERNELSPEC}"
    return "it is not in the canonical form"


def main(arguments: list[str] | None = None) -> int:
    """The checker's command line; returns the exit status."""
    write_anything()
    parser = argparse.ArgumentParser(prog="python -m rnnpar.study.notebooks", description="Check source notebooks.")
    parser.add_argument("--check", action="store_true", required=True, help="say what is wrong, and exit with 1")
    parser.add_argument("--fix", action="store_true", help="mend what can be mended")
    parser.add_argument("files", nargs="*", type=Path, help="default: notebooks/*.ipynb")
    options = parser.parse_args(arguments)
    files = options.files or sources()
    faults = [fault for path in files for fault in check(path, options.fix)]
    print("\n".join(faults or [f"{len(files)} source notebooks are in order"]))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
