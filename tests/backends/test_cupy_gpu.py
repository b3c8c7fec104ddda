"""CuPy's strategies without a GPU: `steps` on NumPy; the others whole, their kernels on the CPU executor."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import rnnpar
from rnnpar.backends import cupy_gpu
from rnnpar.kernels import cluster_plan, cuda_source, launch
from rnnpar.kernels.launch import A100, H100, DoesNotFit
from rnnpar.kernels.tile import to_bfloat16
from rnnpar.reference import relative_error
from tests.conftest import BOUND, random_input
from tests.kernels import cuda_on_cpu
from tests.kernels.fake_cupy import FakeCupy

executes = pytest.mark.skipif(bool(cuda_on_cpu.WHY_NOT), reason=cuda_on_cpu.WHY_NOT)


@pytest.fixture
def cupy(monkeypatch):
    """CuPy's place is taken by the executor, and the device is an H100 by its numbers."""
    fake = FakeCupy(seed=1)
    monkeypatch.setattr(cuda_source, "open_cupy", lambda device=0: fake)
    monkeypatch.setattr(launch.Device, "current", classmethod(lambda cls, number=0: H100))
    return fake


def check(forward, net, x, h0, rounded=False) -> None:
    """y and h against the oracle; `rounded`: against the oracle of W as bfloat16."""
    if rounded:
        up = lambda W: (to_bfloat16(W).astype(np.uint32) << 16).view(np.float32)  # noqa: E731
        net = rnnpar.RNN.from_arrays([dict(W=up(it.W), U=it.U, b=it.b) for it in net.layers], net.V, net.c)
    y, h = forward(x, h0)
    wanted_y, wanted_h = rnnpar.reference(net, x, h0)
    assert y.shape == wanted_y.shape
    assert h.shape == wanted_h.shape
    assert y.dtype == h.dtype == np.float32
    assert relative_error(y, wanted_y) < BOUND
    assert relative_error(h, wanted_h) < BOUND


def inputs(net, T, B, seed=0):
    h0 = np.random.default_rng(seed).uniform(-1, 1, (net.num_layers, B, net.hidden_size)).astype(np.float32)
    return random_input(net, T, B, seed), h0


# --- steps, on NumPy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(5, 13, 7, 1), (3, 1, 1, 2), (4, 8, 10, 3), (7, 50, 10_000, 1)])
@pytest.mark.parametrize(("T", "B"), [(1, 1), (6, 1), (5, 4)])
def test_steps_on_numpy(sizes, T, B):
    net = rnnpar.RNN.random(*sizes)
    check(cupy_gpu.array_code(net, np), net, *inputs(net, T, B))


def test_steps_in_pieces_and_one_of_a_batch():
    net = rnnpar.RNN.random(5, 13, 7, 2)
    forward = cupy_gpu.array_code(net, np)
    x, h0 = inputs(net, 9, 3)
    y, h = forward(x, h0)
    first, middle = forward(x[:4], h0)
    second, last = forward(x[4:], middle)
    np.testing.assert_allclose(np.concatenate([first, second]), y, atol=1e-6)
    np.testing.assert_allclose(last, h, atol=1e-6)
    one, _ = forward(x[:, 1:2], h0[:, 1:2])
    np.testing.assert_allclose(one, y[:, 1:2], atol=1e-6)
    forward.synchronize()  # nothing to wait for on NumPy, and no error


# --- the kernels, whole -------------------------------------------------------------------------------------------


@executes
def test_fused_and_graph(cupy):
    net = rnnpar.RNN.random(5, 13, 7, 2)
    x, h0 = inputs(net, 4, 3)
    fused = cupy_gpu.fused(net)
    check(fused, net, x, h0)
    assert fused.info["launches"] == 4
    assert [name for name, *_ in cupy.launches] == ["rnn_step"] * 8 + ["softmax_warps"]
    forward = cupy_gpu.graph(net)
    check(forward, net, x, h0)
    check(forward, net, *inputs(net, 4, 3, seed=1))
    assert forward.info["captures"] == 2  # one a layer, and none in the second call
    check(forward, net, *inputs(net, 3, 3))
    assert forward.info["captures"] == 4


@executes
def test_results_are_the_callers_own(cupy):
    net = rnnpar.RNN.random(2, 4, 3)
    forward = cupy_gpu.graph(net)
    y, h = forward(*inputs(net, 2, 1))
    kept = y.copy(), h.copy()
    forward(*inputs(net, 2, 1, seed=1))
    np.testing.assert_array_equal(y, kept[0])
    np.testing.assert_array_equal(h, kept[1])


@executes
def test_bfloat16_and_many_outputs(cupy):
    net = rnnpar.RNN.random(5, 40, 1200)
    check(cupy_gpu.fused(net, "bfloat16"), net, *inputs(net, 2, 9), rounded=True)
    assert cupy.launches[-1][0] == "softmax_blocks"


@executes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cluster(cupy, dtype):
    net = rnnpar.RNN.random(5, 30, 7, 2)
    forward = cupy_gpu.cluster(net, dtype, blocks=2)
    x, h0 = inputs(net, 5, 3)
    check(forward, net, x, h0, rounded=dtype == "bfloat16")
    assert [name for name, *_ in cupy.launches[:2]] == [f"rnn_{forward.info['plan'].kernel}"] * 2  # one a layer
    y, h = forward(x, h0)
    first, middle = forward(x[:2], h0)
    second, last = forward(x[2:], middle)
    np.testing.assert_allclose(np.concatenate([first, second]), y, atol=1e-6)
    np.testing.assert_allclose(last, h, atol=1e-6)


@executes
def test_cluster_asks_for_sixteen_blocks_and_much_shared_memory(cupy):
    net = rnnpar.RNN.random(2, 64, 3)
    forward = cupy_gpu.cluster(net, blocks=16)
    check(forward, net, *inputs(net, 2, 1))
    assert [it for it in cupy.attributes.values() if it == {cuda_source.NON_PORTABLE_CLUSTER: 1}]
    kernel = cuda_source.kernel(cupy, "cluster", "rnn_cluster", **forward.info["plan"].constants())
    cuda_source.allow_shared(kernel, 100_000)
    assert kernel.max_dynamic_shared_size_bytes == 100_000


@executes
def test_cluster_with_one_unit(cupy):
    net = rnnpar.RNN.random(3, 1, 2)
    check(cupy_gpu.cluster(net), net, *inputs(net, 3, 1))


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [cupy_gpu.fused, cupy_gpu.graph, cupy_gpu.cluster])
def test_a_wrong_dtype_is_refused_first(strategy):
    with pytest.raises(ValueError, match="dtype is 'float16'; it must be 'float32' or 'bfloat16'"):
        strategy(rnnpar.RNN.random(2, 3, 2), dtype="float16")


def test_cluster_refuses_an_older_card_and_says_what_else(monkeypatch):
    monkeypatch.setattr(launch.Device, "current", classmethod(lambda cls, number=0: A100))
    with pytest.raises(cuda_source.CudaUnavailable, match=r"A100.*8\.0.*9\.0 \(Hopper\).*cupy_gpu/graph"):
        cupy_gpu.cluster(rnnpar.RNN.random(2, 3, 2))


def test_cluster_refuses_a_network_that_does_not_fit(cupy):
    with pytest.raises(DoesNotFit, match="needs 2,000 hidden units"):
        cupy_gpu.cluster(rnnpar.RNN.random(1, 2000, 1))
    with pytest.raises(ValueError, match="blocks is 5"):
        cupy_gpu.cluster(rnnpar.RNN.random(1, 20, 1), blocks=5)


def test_the_methods_say_why_they_cannot_run_here():
    rows = [row for row in rnnpar.methods() if row.backend == "cupy_gpu"]
    assert [row.strategy for row in rows] == ["steps", "fused", "graph", "cluster"]
    for row in rows:
        assert callable(getattr(cupy_gpu, row.strategy))
        if not row.available:
            with pytest.raises(rnnpar.registry.Unavailable, match=row.name):
                rnnpar.prepare(rnnpar.RNN.random(2, 3, 2), row.name)


# --- arrays of the caller's kind ----------------------------------------------------------------------------------


def test_what_came_from_numpy_goes_back_and_cupy_stays():
    cupy = FakeCupy()
    on_device = type("ndarray", (), {"__module__": "cupy"})()
    assert cupy_gpu.same_kind_as(np.zeros(1), cupy) == cupy.asnumpy
    kept = np.zeros(1)
    assert cupy_gpu.same_kind_as(on_device, cupy)(kept) is kept


def test_arrays_of_numba_and_torch_get_theirs(monkeypatch):
    from types import ModuleType, SimpleNamespace

    numba, torch = ModuleType("numba"), ModuleType("torch")
    numba.cuda = SimpleNamespace(as_cuda_array=lambda array, sync: ("numba", array, sync))
    torch.from_dlpack = lambda array: ("torch", array)
    monkeypatch.setitem(sys.modules, "numba", numba)
    monkeypatch.setitem(sys.modules, "torch", torch)
    theirs = {name: type("Array", (), {"__module__": f"{name}.deep"})() for name in ("numba", "torch")}
    assert cupy_gpu.same_kind_as(theirs["numba"], FakeCupy())(1) == ("numba", 1, False)
    assert cupy_gpu.same_kind_as(theirs["torch"], FakeCupy())(1) == ("torch", 1)


def test_step_tiles_have_a_lane_for_each_element():
    for B in (1, 2, 3, 4, 5, 8, 9, 100):
        rows, sequences = cupy_gpu.step_tile(B)
        assert rows * sequences <= 32
        assert 32 % (rows * sequences) == 0
    assert cupy_gpu.step_tile(1) == (1, 1)
    assert cupy_gpu.step_tile(64) == (4, 8)


def test_plans_are_made_for_the_padded_size(cupy):
    cluster = cupy_gpu.cluster(rnnpar.RNN.random(2, 30, 2))
    assert cluster.recurrence.plan(1).H == cluster_plan.plan(30, 1, "float32", H100).H == 32
