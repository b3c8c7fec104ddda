"""The README as a reader takes it: links that lead somewhere, and code that runs as it stands."""

from __future__ import annotations

import importlib.util
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

import rnnpar
from rnnpar import registry
from rnnpar.study import own

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)```", README, re.DOTALL | re.MULTILINE)]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_it_begins_with_a_figure_and_two_commands():
    start = README[: README.index("## What to read")]
    assert len(re.findall(r"^!\[.+\]\(figures/.+\.svg\)$", start, re.MULTILINE)) == 1
    assert len(re.findall(r"^    make ", start, re.MULTILINE)) == 2


def test_every_make_target_is_there():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^    |`)make ([a-z-]+)", README, re.MULTILINE)) <= set(targets)


def test_every_command_is_known():
    from rnnpar.__main__ import parser

    lines = re.findall(r"^python -m rnnpar ([^#\n]+)", README, re.MULTILINE)
    assert len(lines) > 4
    for line in lines:
        parser().parse_known_args(line.split())


def test_the_example_runs():
    serial, _, mpi = BLOCKS[0].partition("with rnnpar.prepare")
    assert mpi  # ranks have their own tests
    names: dict = {}
    exec(compile(serial, "README.md", "exec"), names)
    assert names["y"].shape == (100, 1, 64)
    y, h = rnnpar.reference(names["net"], names["x"])
    np.testing.assert_allclose(names["y"], y, atol=1e-5)
    np.testing.assert_allclose(names["h"], h, atol=1e-5)


def test_the_method_to_add_is_one(tmp_path, monkeypatch):
    """Its code as a file, and its row: it keeps the rules, and takes no name that the tests or chapter 09 take."""
    monkeypatch.setattr(registry, "_own", {})
    row = eval(BLOCKS[2].strip().rstrip(","), {"Method": registry.Method})
    assert f"rnnpar/backends/{row.backend}.py" in README
    assert row.backend not in ("mine", "yours", *(method.backend for method in registry.TABLE))
    path = tmp_path / f"{row.backend}.py"
    path.write_text(BLOCKS[1])
    spec = importlib.util.spec_from_file_location(f"readme_{row.backend}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, spec.name, module)
    spec.loader.exec_module(module)
    function = getattr(module, row.strategy)
    assert all(word in function.__doc__ for word in ("Parallelises", "Synchronises", "Moves"))
    rnnpar.register(row.name, function)
    assert not any(own.check(row.name).values())
