"""cuBLAS alone: timed, checked and kept by the same code as on a GPU, with NumPy's products in cuBLAS's place."""

from __future__ import annotations

import numpy as np
import pytest

from rnnpar import registry
from rnnpar.network import RNN
from rnnpar.study import check_gpu, gpu_cublas
from tests import fake_gpu
from tests.kernels import fake_cupy
from tests.study.test_check_gpu import command, here, kept  # noqa: F401 (a fixture)

T, B, I, H, O = 5, 3, 4, 6, 2


def products(*_) -> gpu_cublas.Products:
    """The factory of a Child on this CPU."""
    gpu_cublas.BUSY = 8
    return gpu_cublas.Products(gpu_cublas.METHOD, {}, fake_cupy.FakeCupy())


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_cublas, "BUSY", 8)
    monkeypatch.setattr(fake_cupy.Event, "late", 0)
    it = products()
    assert it.prepare(RNN.random(I, H, O, 2)) == ""
    np.save(tmp_path / "x.npy", np.random.default_rng(1).standard_normal((T, B, I), dtype=np.float32))
    it.load(str(tmp_path))
    return it


def test_a_call_is_all_products_of_a_forward_pass(loaded):
    """U x of all steps once, W h once a step, for each layer; V h once."""
    done = [(left.shape, right.shape, times) for left, right, _, times in loaded.pairs]
    assert done == [
        ((T * B, I), (I, H), 1), ((B, H), (H, H), T), ((T * B, H), (H, H), 1), ((B, H), (H, H), T),
        ((T * B, H), (H, O), 1),
    ]  # fmt: skip


def test_products_are_checked_and_a_wrong_one_is_seen(loaded):
    found = loaded.start(True)
    assert found["error"] < 1e-6
    assert found["call_s"] > 0
    assert found["info"]["products"].startswith("cuBLAS by CuPy")
    assert loaded.sample(True, 2, True)["error"] < 1e-6
    loaded.pairs[1][2][...] += 0.01
    assert loaded._error() > 1e-3


def test_a_call_is_scaled_from_the_products_that_were_timed(loaded, monkeypatch):
    asked = []
    monkeypatch.setattr(gpu_cublas, "IN_A_ROW", 2)
    monkeypatch.setattr(loaded, "_on_the_gpu", lambda work: asked.append(work) or 1.0)
    assert loaded._call_s() == pytest.approx(1 + T / 2 + 1 + T / 2 + 1)
    assert len(asked) == 5


def test_the_gpu_is_kept_busy_while_python_asks(loaded, monkeypatch):
    """An idle GPU would be timed waiting for Python: such a time is thrown away, and more is put before the next."""
    count = []
    monkeypatch.setattr(fake_cupy.Event, "late", 3)
    assert loaded._on_the_gpu(lambda: count.append(1)) >= 0
    assert (len(count), loaded.times) == (4, 8)
    monkeypatch.setattr(fake_cupy.Event, "late", 10**6)
    with pytest.raises(RuntimeError, match="CUDA_LAUNCH_BLOCKING"):
        loaded._on_the_gpu(lambda: None)


def test_the_sweep_times_it_beside_the_methods_at_large_batches(here, monkeypatch, capsys):  # noqa: F811
    row = fake_gpu.row("cupy_gpu/steps", fake_gpu.good)
    fake_gpu.install((*fake_gpu.ROWS, row), monkeypatch.setattr)
    assert registry.find("cupy_gpu/steps").available
    monkeypatch.setattr(check_gpu, "CUBLAS", f"{__name__}:products")
    monkeypatch.setattr(gpu_cublas, "LARGE", 2)
    arguments = ("--only", "sweep", "--methods", f"{gpu_cublas.METHOD}|good$")
    assert command(*arguments) == 0
    assert f"{gpu_cublas.METHOD}  " in capsys.readouterr().out
    [one] = [one for one in kept(here) if one["method"] == gpu_cublas.METHOD]
    assert (one["H"], one["B"], one["status"]) == (6, 2, "ok")  # not at B = 1
    assert {kind: len(times) for kind, times in one["seconds"].items()} == {"steady": 3}  # and from no NumPy arrays
    assert min(one["seconds"]["steady"]) > 0
    assert one["error"] < 1e-6
    assert one["source"] == gpu_cublas.source()
    assert command(*arguments) == 0
    assert "0 points to measure" in capsys.readouterr().out


def test_without_cupy_it_is_no_contender(here):  # noqa: F811
    if not registry.find("cupy_gpu/steps").available:
        assert not [case for case in check_gpu.contenders() if case.method == gpu_cublas.METHOD]
