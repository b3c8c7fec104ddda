"""The table of methods: what a method's hash covers, and why GPU methods cannot run where they cannot."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

import rnnpar
from rnnpar import registry
from rnnpar.kernels import launch

GPU = [method for method in registry.TABLE if method.backend == "numba_cuda"]


def names(method: str) -> set[str]:
    backend = registry.find(method).backend
    return {file.name for file in registry.source_files(registry.PACKAGE / "backends" / f"{backend}.py")}


def test_a_hash_covers_what_is_imported_directly_or_not():
    kernels = {"blas", "forward", "tile", "activations", "pointers", "jit", "trace", "team", "job", "atomics", "system"}
    assert {"serial.py", "placement.py", *(f"{name}.py" for name in kernels)} == names("serial/naive")
    assert {"threads.py", "atomics.py", "team.py", "forward.py", "tile.py", "activations.py"} <= names("threads/rows")
    assert {"numba_cuda.py", "gpu.py", "ptx.py", "launch.py", "cublas.py"} == names("numba_cuda/persistent")
    assert names("peers/torch") == {"peers.py"}


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The package's backends and kernels in a place where they may be edited."""
    for folder in ("backends", "kernels"):
        shutil.copytree(registry.PACKAGE / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(registry, "PACKAGE", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("edited", "changes"),
    [
        ("kernels/tile.py", {"serial", "threads"}),
        ("kernels/team.py", {"serial", "threads"}),
        ("kernels/ptx.py", {"numba_cuda"}),
        ("kernels/launch.py", {"numba_cuda"}),
        ("backends/threads.py", {"threads"}),
        ("kernels/new.py", set()),
    ],
)
def test_an_edit_changes_the_hashes_of_those_who_use_the_file(copied, edited, changes):
    backends = {"serial", "threads", "numba_cuda"}
    first = {method.backend: method.source_hash() for method in registry.TABLE if method.backend in backends}
    with (copied / edited).open("a") as file:
        file.write("\n# edited\n")
    then = {method.backend: method.source_hash() for method in registry.TABLE if method.backend in backends}
    assert {backend for backend in backends if first[backend] != then[backend]} == changes


def test_the_ways_to_import_a_kernel(copied):
    (copied / "backends" / "serial.py").write_text(
        "from rnnpar.kernels import atomics, jit\nimport rnnpar.kernels.blas\n"
        "def f():\n    from rnnpar.kernels.ptx import x\n"
    )
    files = {file.name for file in registry.source_files(copied / "backends" / "serial.py")}
    assert files == {
        "serial.py",
        "ptx.py",
        *(f"{name}.py" for name in ["atomics", "blas", "jit", "job", "placement", "pointers", "system", "tile"]),
    }


@pytest.mark.parametrize("method", GPU, ids=lambda method: method.name)
def test_gpu_methods_without_numba_cuda_say_what_to_install(monkeypatch, method):
    monkeypatch.setattr(registry, "_importable", lambda module: module != "numba_cuda")
    with pytest.raises(rnnpar.Unavailable, match=rf"{method.name} cannot run here: .*pip install 'numba-cuda\[cu13\]'"):
        rnnpar.prepare(rnnpar.RNN.random(2, 2, 2), method.name)


@pytest.mark.parametrize("method", GPU, ids=lambda method: method.name)
def test_gpu_methods_without_a_driver_say_so(monkeypatch, method):
    monkeypatch.setattr(registry, "_importable", lambda module: True)
    monkeypatch.setattr(launch, "_driver", lambda: (None, 0, "no NVIDIA driver here"))
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: object())
    registry._probed.cache_clear()
    with pytest.raises(rnnpar.Unavailable, match="no NVIDIA driver here"):
        rnnpar.prepare(rnnpar.RNN.random(2, 2, 2), method.name)
    registry._probed.cache_clear()


def test_the_table_does_not_touch_cuda():
    code = (
        "import sys, rnnpar; repr(rnnpar.methods()); print([m for m in ('numba', 'cuda', 'cupy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
