"""Set-up: what pip, conda and make install is the same thing, said once in each one's words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
CONDA_NAMES = {"cupy-cuda13x": "cupy"}  # conda has one name for every CUDA
NOT_OURS = {"python", "pip"}


def bounds(requirements: list[str]) -> dict[str, str]:
    """name -> version bound, of requirements such as "numpy>=2.0", without extras and systems."""
    form = r"([A-Za-z0-9_.-]+?)(?:\[[a-z0-9,]+\])?\s*([=<>~!][^;]*)?(?:;.*)?"
    pairs = (re.fullmatch(form, text).groups() for text in requirements)
    return {name.lower(): bound or "" for name, bound in pairs}


def test_conda_and_pip_name_the_same_dependencies():
    extras = ("study", "mpi", "cluster", "gpu", "dev")
    wanted = bounds([*PROJECT["dependencies"], *(entry for extra in extras for entry in EXTRAS[extra])])
    wanted = {CONDA_NAMES.get(name, name): bound for name, bound in wanted.items()}
    listed = bounds([entry for entry in CONDA if isinstance(entry, str)])
    assert {name: bound for name, bound in listed.items() if name not in NOT_OURS} == wanted
    assert listed["python"] == PROJECT["requires-python"]


def test_conda_installs_the_checkout_itself():
    assert [entry["pip"] for entry in CONDA if isinstance(entry, dict)] == [["-e ."]]


def test_the_packages_that_were_asked_for():
    assert {"jupyterlab", "numpy", "numba", "cupy", "matplotlib", "seaborn", "papermill"} <= set(
        bounds([entry for entry in CONDA if isinstance(entry, str)])
    )


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return bounds([line for line in lines if not line.startswith("#")])


def test_constraints_pin_all_that_make_installs():
    pinned = pins()
    assert all(re.fullmatch(r"==[0-9][0-9A-Za-z.+!]*", bound) for bound in pinned.values())
    made = ("study", "dev", "mpi", "cluster", "peers", "site", "ui")
    wanted = bounds([*PROJECT["dependencies"], *(entry for extra in made for entry in EXTRAS[extra])])
    assert set(wanted) <= set(pinned)
    for name, bound in wanted.items():
        least, found = (tuple(map(int, re.findall(r"\d+", version))) for version in (bound, pinned[name]))
        assert found >= least, name


def test_constraints_name_no_place_and_not_what_make_leaves_alone():
    assert not {"cupy-cuda13x", "rnnpar"} & set(pins())
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"://|^-|@ ", text, re.MULTILINE)


def test_one_cuda_generation_only():
    assert [name for extra in EXTRAS.values() for name in bounds(extra) if "cupy" in name] == ["cupy-cuda13x"]


TARGETS = "figures test test-ui check-gpu peers mpi in-time lab sweep cluster html clean help"


@pytest.mark.parametrize("target", TARGETS.split())
def test_make_help_lists_every_target(target):
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    assert re.search(rf"^{target}\s+\S", done.stdout, re.MULTILINE)


def test_clean_leaves_results_alone():
    done = subprocess.run(["make", "-n", "clean"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    assert "data" not in done.stdout


def lab_with(**variables: str) -> str:
    """What `make lab` would run, with these variables of an active environment."""
    others = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    command = ["make", "-n", "lab"]
    return subprocess.run(command, cwd=ROOT, env=others | variables, capture_output=True, text=True, timeout=20).stdout


def test_an_active_environment_with_rnnpar_is_used_whatever_its_path(tmp_path):
    active = tmp_path / "an environment"
    active.symlink_to(sys.prefix)
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        assert f"'{active}/bin/python' -m jupyterlab" in lab_with(**{variable: str(active)})


def test_an_active_environment_without_rnnpar_is_left_alone(tmp_path):
    (tmp_path / "bin").mkdir()
    for path in (tmp_path, ROOT / ".venv"):
        assert " .venv/bin/python -m jupyterlab" in lab_with(VIRTUAL_ENV=str(path))
