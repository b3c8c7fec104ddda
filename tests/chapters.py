"""Run a chapter's cells in this process and keep what they show: fast, so that several sets of results can be tried."""

from __future__ import annotations

import ast
import linecache
from pathlib import Path
from typing import Any

import nbformat
from IPython.display import Image

from rnnpar import registry
from rnnpar.study import expect
from rnnpar.study.notebooks import ROOT


def run(name: str, monkeypatch: Any, skip: str = "live", **parameters: Any) -> tuple[dict[str, Any], list[Any]]:
    """The names that a chapter's cells leave, and all that they have shown; cells tagged `skip` are left out."""
    (path,) = (ROOT / "notebooks").glob(f"{name}*.ipynb")
    shown: list[Any] = []
    names: dict[str, Any] = {"display": lambda *many: shown.extend(many), "__name__": "__main__"}
    for place in ("IPython.display", "rnnpar.study.expect"):
        monkeypatch.setattr(f"{place}.display", names["display"])
    monkeypatch.setattr(registry, "_own", {})  # what a chapter registers goes when it ends
    monkeypatch.chdir(path.parent)
    for number, cell in enumerate(nbformat.read(path, 4).cells):
        tags = cell.metadata.get("tags", ())
        if cell.cell_type == "code" and skip not in tags:
            _execute(cell.source, f"{path.name}, cell {number}", names, shown)
        if "parameters" in tags:
            names |= parameters
    return names, [one for one in shown if one is not None]


def _execute(source: str, where: str, names: dict[str, Any], shown: list[Any]) -> None:
    """Run a cell as a notebook does: the value of a last expression is shown, and its functions' source can be read."""
    linecache.cache[where] = (len(source), None, source.splitlines(keepends=True), where)
    body = ast.parse(source, where).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) and not source.rstrip().endswith(";") else None
    exec(compile(ast.Module(body, []), where, "exec"), names)
    if last is not None:
        shown.append(eval(compile(ast.Expression(last.value), where, "eval"), names))


def outcomes(shown: list[Any]) -> dict[str, str]:
    """How each expectation of a chapter fared, by its claim."""
    return {one.claim: one.word for one in shown if isinstance(one, expect.Outcome)}


def figures(shown: list[Any]) -> list[Image]:
    """The pictures that a chapter has shown."""
    return [one for one in shown if isinstance(one, Image)]


def sources(path: Path) -> list[str]:
    """The code cells of a notebook."""
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
