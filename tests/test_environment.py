"""A process like its users': caches that cannot be written or are damaged, variables that others have set."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]

# A module whose one function stands for all that is compiled.
MODULE = """
from rnnpar.kernels.jit import jit

@jit()
def twice(a):
    return 2 * a

print(twice(21), len(twice.stats.cache_hits))
"""


def python(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": f"{PACKAGE}{os.pathsep}{folder}", **variables}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True,
        timeout=300, cwd=folder,
    )  # fmt: skip


@pytest.fixture
def module(tmp_path):
    """Run it with the folder of the cache; returns its output and what it said on stderr."""
    (tmp_path / "compiled_here.py").write_text(MODULE)
    (tmp_path / "cache").mkdir()

    def run(cache: Path = tmp_path / "cache") -> tuple[str, str]:
        done = python("import compiled_here", tmp_path, NUMBA_CACHE_DIR=str(cache))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), done.stderr

    run.cache = tmp_path / "cache"
    return run


def files(module) -> list[Path]:
    return [path for path in module.cache.rglob("*") if path.is_file()]


def test_what_is_compiled_is_kept(module):
    assert module() == ("42 0", "")
    assert module() == ("42 1", "")


def test_what_was_compiled_from_a_file_that_has_changed_is_not_run(module, tmp_path):
    """A constant is no part of a function's byte code, and the new file is as long as the old one."""
    assert module() == ("42 0", "")
    file = tmp_path / "compiled_here.py"
    file.write_text(MODULE.replace("2 * a", "3 * a"))
    os.utime(file, (time.time() + 10,) * 2)  # past what the system's clock of files can tell apart
    assert module() == ("63 0", "")


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "text"])
def test_a_damaged_cache_is_mended_and_said_once(module, suffix, damage):
    module()
    (file,) = [path for path in files(module) if path.suffix == suffix]
    data = bytearray(file.read_bytes())
    data[2 * len(data) // 3] ^= 8
    file.write_bytes({"cut": data[: len(data) // 2], "changed": data, "empty": b"", "text": b"no pickle"}[damage])
    output, said = module()
    assert output == "42 0"
    assert said.count("is damaged and is compiled anew") == 1
    assert module() == ("42 1", "")


def test_where_no_folder_can_be_written_it_is_said_once(module, tmp_path):
    """No home, a read-only installation: Numba finds no place for a cache."""
    code = """
        from numba.core.caching import CacheImpl

        CacheImpl._locator_classes = []
        import compiled_here
    """
    done = python(code, tmp_path)
    assert done.stdout.strip() == "42 0", done.stderr
    assert done.stderr.count("\n") == 1
    assert "NUMBA_CACHE_DIR" in done.stderr


def test_a_cache_that_cannot_be_written_any_more_is_said_once(module, tmp_path):
    """As on a full disk: the folder is there, and a file in it cannot be."""
    code = """
        from numba.core.caching import IndexDataCacheFile

        def full(*_):
            raise OSError(28, "No space left on device")

        IndexDataCacheFile._save_data = full
        import compiled_here
    """
    done = python(code, tmp_path, NUMBA_CACHE_DIR=str(module.cache))
    assert done.stdout.strip() == "42 0", done.stderr
    assert done.stderr.count("No space left") == 1


WITHOUT = """
    import numpy as np, rnnpar
    net = rnnpar.RNN.random(4, 16, 4)
    x = np.zeros((5, 2, 4), np.float32)
    wanted = rnnpar.reference(net, x)[0]
    for method in ("serial/naive", "serial/hoisted"):
        assert abs(rnnpar.prepare(net, method)(x)[0] - wanted).max() < 1e-6
    for method in ("serial/compiled", "threads/rows", "threads/batch", "in_time/deer", "mpi/rows"):
        try:
            rnnpar.prepare(net, method)
        except rnnpar.Unavailable as error:
            assert "NUMBA_DISABLE_JIT" in str(error) and "unset" in str(error), error
        else:
            raise AssertionError(method)
    print("right")
"""


def test_without_a_compiler_numpys_methods_work_and_the_others_say_why(tmp_path):
    done = python(WITHOUT, tmp_path, NUMBA_DISABLE_JIT="1")
    assert done.stdout.strip() == "right", done.stderr


@pytest.mark.parametrize(("command", "status"), [("methods", 0), ("doctor", 1), ("advise 64 16 1", 2)])
def test_the_commands_without_a_compiler_on_a_new_machine(tmp_path, command, status):
    done = python(f"from rnnpar.__main__ import main; raise SystemExit(main({command.split()!r}))", tmp_path,
                  NUMBA_DISABLE_JIT="1", RNNPAR_DATA=str(tmp_path))  # fmt: skip
    assert done.returncode == status, done.stderr
    assert "NUMBA_DISABLE_JIT" in (done.stderr if status == 2 else done.stdout)
    assert "Traceback" not in done.stderr


X86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the names are of x86 processors")
NAMED = [  # variables, and the lanes of a vector
    (dict(NUMBA_CPU_NAME="generic"), 4),
    (dict(NUMBA_CPU_NAME="nehalem", NUMBA_CPU_FEATURES="+sse4.2"), 4),
    (dict(NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="+sse4.2"), 8),
    (dict(NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="-avx2,-fma,-avx"), 4),
    (dict(NUMBA_CPU_NAME="icelake-server", NUMBA_CPU_FEATURES="+fma"), 16),
    (dict(NUMBA_CPU_NAME="icelake-server", NUMBA_CPU_FEATURES="-avx512f"), 8),
]


@X86
@pytest.mark.parametrize(("variables", "lanes"), NAMED, ids=str)
def test_the_tile_fits_the_processor_that_is_compiled_for(tmp_path, variables, lanes):
    done = python("from rnnpar.kernels.tile import TILE; print(TILE.lanes)", tmp_path, **variables)
    assert done.stdout.strip() == str(lanes), done.stderr


@X86
def test_another_processors_code_is_right_and_calls_no_library_for_each_product(tmp_path):
    code = """
        import numpy as np
        from rnnpar.kernels import tile
        from rnnpar.kernels.jit import jit

        def product(a, panels, c, o):
            tile.multiply(a, 0, 40, 3, 40, panels, 0, c, 0, 0, o, 0, tile.WIDTH)

        from numba import njit
        compiled = njit(product)
        rng = np.random.default_rng(0)
        a, w = rng.standard_normal((3, 40)).astype(np.float32), rng.standard_normal((tile.WIDTH, 40)).astype(np.float32)
        o = np.zeros(3 * tile.WIDTH, np.float32)
        compiled(a.ravel(), tile.pack(w), np.zeros(tile.WIDTH, np.float32), o)
        assert np.allclose(o.reshape(3, -1), a @ w.T, atol=1e-5)
        (text,) = compiled.inspect_asm().values()
        print("fmaf" in text)
    """
    done = python(code, tmp_path, NUMBA_CPU_NAME="generic", NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout.strip() == "False", done.stderr
