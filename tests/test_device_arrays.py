"""Device arrays in, device arrays out: what is checked of them, that nothing is copied, and what is timed."""

from __future__ import annotations

import time

import numpy as np
import pytest

import rnnpar
from rnnpar import device_arrays, registry
from tests import fake_gpu
from tests.conftest import random_input
from tests.fake_gpu import DeviceArray

NET = rnnpar.RNN.random(3, 8, 5, 2)
X = np.zeros((4, 2, 3), np.float32)
H0 = np.zeros((2, 2, 8), np.float32)


@pytest.fixture
def fake(monkeypatch):
    fake_gpu.install(setting=monkeypatch.setattr)
    return rnnpar.prepare(NET, "numba_cuda/good")


def test_the_kind_that_comes_is_the_kind_that_goes(fake):
    x, h0 = random_input(NET, 6, 2), np.full((2, 2, 8), 0.5, np.float32)
    wanted_y, wanted_h = rnnpar.reference(NET, x, h0)
    y, h = fake(x, h0)
    assert isinstance(y, np.ndarray)
    given = DeviceArray(x), DeviceArray(h0)
    on_device = fake(*given)
    assert fake._forward.given[-1] == given, "the method gets the caller's own arrays, not copies"
    for found, wanted in zip((y, h, *(array.host for array in on_device)), (wanted_y, wanted_h) * 2, strict=True):
        assert np.allclose(found, wanted, atol=1e-6)


def test_without_h0_the_state_is_zero_on_the_device_and_made_once(fake):
    fake(DeviceArray(X))
    fake(DeviceArray(X))
    (_, first), (_, second) = fake._forward.given
    assert first is second
    assert first.shape == (2, 2, 8)
    assert not first.host.any()
    fake(DeviceArray(np.zeros((4, 1, 3), np.float32)))
    assert fake._forward.given[-1][1].shape == (2, 1, 8)


@pytest.mark.parametrize(("T", "B"), [(0, 2), (3, 0)])
def test_no_steps_or_no_sequences_leave_the_state_as_it_is(fake, T, B):
    h0 = DeviceArray(np.full((2, B, 8), 0.25, np.float32))
    seconds, y, h = fake.timed(DeviceArray(np.zeros((T, B, 3), np.float32)), h0)
    assert (seconds, y.shape) == (0.0, (T, B, 5))
    assert np.array_equal(h.host, h0.host)
    assert h is not h0
    assert not fake._forward.given


def test_a_time_ends_when_the_gpu_is_done(fake, monkeypatch):
    """The call only puts work into a queue; what is in the queue before is waited for, and not counted."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    queue = [7.0]
    forward = fake._forward

    def synchronize():
        clock[0] += sum(queue)
        queue.clear()

    forward.synchronize = synchronize
    forward.spoil = lambda y, h: queue.append(2.0)
    assert fake.timed(DeviceArray(X))[0] == 2.0
    assert fake.timed(X)[0] == 2.0
    fake(DeviceArray(X))
    assert queue == [2.0], "a plain call does not wait"


class Gradient:
    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad")


class Elsewhere(DeviceArray):
    """On another GPU, by its address."""


@pytest.mark.parametrize(
    ("x", "h0", "error", "words"),
    [
        (DeviceArray(X.astype(np.float64)), None, TypeError, r"x has dtype float64.*x.astype\('float32'\)"),
        (DeviceArray(X[0]), None, ValueError, r"x has shape \(2, 3\).*\(T, B, 3\)"),
        (DeviceArray(X[..., :2].copy()), None, ValueError, r"x has shape \(4, 2, 2\).*\(T, B, 3\)"),
        (DeviceArray(X[::2]), None, ValueError, r"x has strides .*C-contiguous.*cupy.ascontiguousarray\(x\)"),
        (DeviceArray(X.T), None, ValueError, "x has strides"),
        (DeviceArray(X), H0, TypeError, r"x is a device array \(tests.DeviceArray\) and h0 a ndarray; give both"),
        (X, DeviceArray(H0), TypeError, r"x is a NumPy array and h0 a device array"),
        (DeviceArray(X), DeviceArray(H0[:1]), ValueError, r"h0 has shape \(1, 2, 8\).*\(2, 2, 8\)"),
        (DeviceArray(X), DeviceArray(H0.astype(np.int32)), TypeError, "h0 has dtype int32"),
        (Gradient(), None, TypeError, "cannot be read as a device array: .*requires grad"),
        (DeviceArray(X), [0.0], TypeError, "h0 a list"),
    ],
)
def test_what_does_not_fit_is_refused(fake, x, h0, error, words):
    with pytest.raises(error, match=words):
        fake(x, h0)
    assert not fake._forward.given


def test_a_slice_of_one_is_contiguous_whatever_its_stride(fake):
    whole = np.zeros((4, 6, 3), np.float32)
    fake(DeviceArray(whole[:, 2:3][:1]))
    assert len(fake._forward.given) == 1


def test_an_array_on_another_device_is_refused(fake, monkeypatch):
    monkeypatch.setattr(device_arrays, "device_of", lambda pointer: 1)
    with pytest.raises(ValueError, match=r"x lies on device 1 .* device 0: prepare\(net, method, device=1\)"):
        fake(DeviceArray(X))
    rnnpar.prepare(NET, "numba_cuda/good", device=1)(DeviceArray(X))


@pytest.mark.parametrize("method", ["serial/naive", "threads/rows"])
def test_a_cpu_method_says_what_would_do(fake, method):
    with pytest.raises(TypeError, match=rf"{method} computes on the CPU.*copy_to_host\(\).*numba_cuda/good"):
        rnnpar.prepare(NET, method)(DeviceArray(X))


def test_without_a_gpu_method_it_says_that_too(monkeypatch):
    monkeypatch.setattr(registry, "TABLE", registry.Methods(m for m in registry.TABLE if not m.on_gpu))
    with pytest.raises(TypeError, match="no GPU method can run here"):
        rnnpar.prepare(NET, "serial/naive")(DeviceArray(X))


def test_a_closed_runner_says_so(fake):
    fake.close()
    with pytest.raises(RuntimeError, match="closed"):
        fake.timed(DeviceArray(X))


def test_an_address_in_no_gpu_has_no_device():
    assert device_arrays.device_of(X.ctypes.data) is None


def test_torch_tensors_make_torch_tensors():
    torch = pytest.importorskip("torch")
    like = torch.zeros(2, 3)
    assert device_arrays.empty(like, (4, 5)).shape == (4, 5)
    assert not device_arrays.zeros(like, (4, 5)).any()
    copy = device_arrays.duplicate(like)
    assert torch.equal(copy, like)
    assert copy.data_ptr() != like.data_ptr()
    assert not device_arrays.is_device_array(like), "a tensor on the CPU"
