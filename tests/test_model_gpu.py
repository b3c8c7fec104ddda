"""The GPU's cost model: its arithmetic on rates that are known, where W lies, and what "auto" chooses by it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import rnnpar
from rnnpar import machine, model, model_gpu
from rnnpar.kernels.launch import A100, H100, KNOWN, SMALL, T4, DoesNotFit, plan_persistent
from rnnpar.model_gpu import AUTO, FORMULAS, GpuModel, Prediction, Rates
from rnnpar.work import Work
from tests import fake_gpu
from tests.fake_gpu import DeviceArray

WORK = Work(T=100, B=4, I=64, H=128, O=96)
NOTHING = dict(
    launch={"numba": 0.0, "cupy": 0.0}, wait=0.0, graph_node=0.0, block_barrier=0.0, cluster=0.0, latency=0.0,
    thread=0.0, barrier=dict.fromkeys(("flags", "counter", "grid", "values"), 0.0), flops=math.inf,
    tensor=math.inf, shared=math.inf, l2=math.inf, memory=math.inf, to_device=(0.0, 0.0), from_device=(0.0, 0.0),
)  # fmt: skip


def only(**rates) -> GpuModel:
    """An H100 on which nothing takes time but what is given."""
    return GpuModel(H100, Rates(**(NOTHING | rates)))


def test_a_launch_a_step_costs_a_launch_a_step():
    found = only(launch={"numba": 1e-5, "cupy": 0.0}).predict("numba_cuda/steps", WORK)
    assert found.parts["launches of steps"] == pytest.approx(100 * 1e-5)
    assert found.seconds == pytest.approx((100 + 3 + 3) * 1e-5)


def test_a_step_behind_its_launch_is_free_until_it_is_longer():
    slow = dict(l2=128 * 128 * 4 / 3e-5)  # W takes 30 us
    found = only(launch={"numba": 1e-5, "cupy": 0.0}, **slow).predict("numba_cuda/steps", WORK)
    assert found.parts["launches of steps"] + found.parts["W h"] == pytest.approx(100 * 3e-5)


@pytest.mark.parametrize("barrier", ["flags", "counter", "grid", "values"])
def test_a_barrier_is_paid_once_a_step_and_layer(barrier):
    rates = dict(NOTHING["barrier"]) | {barrier: 1e-6}
    one = only(barrier=rates).predict("numba_cuda/persistent", WORK, barrier=barrier)
    two = only(barrier=rates).predict("numba_cuda/persistent", Work(100, 4, 64, 128, 96, layers=2), barrier=barrier)
    assert one.parts["meeting"] == pytest.approx(100 * 1e-6)
    assert two.parts["meeting"] == pytest.approx(200 * 1e-6)


def test_arithmetic_is_two_operations_a_weight_and_sequence():
    found = only(flops=1e12).predict("cupy_gpu/graph", WORK)
    assert found.parts["W h"] == pytest.approx(2 * 100 * 4 * 128 * 128 / 1e12)
    assert found.parts["U x"] == pytest.approx(2 * 100 * 4 * 128 * 64 / 1e12 / model_gpu.PRODUCT_REACH)
    assert found.parts["V h"] == pytest.approx(2 * 100 * 4 * 128 * 96 / 1e12 / model_gpu.PRODUCT_REACH)


def test_copies_are_counted_when_asked_for():
    model_ = only(to_device=(1e-5, 1e-9), from_device=(2e-5, 2e-9))
    apart = model_.predict("numba_cuda/block", WORK).seconds
    state = 4 * 4 * 128
    there, back = 4 * 100 * 4 * 64 + state, 4 * 100 * 4 * 96 + state
    found = model_.predict("numba_cuda/block", WORK, transfers=True)
    assert found.seconds - apart == pytest.approx(2 * 1e-5 + there * 1e-9 + 2 * 2e-5 + back * 2e-9)


@pytest.mark.parametrize("device", KNOWN, ids=lambda device: device.name)
@pytest.mark.parametrize("method", list(FORMULAS))
def test_every_method_is_predicted_or_refused_by_name(device, method):
    refused = 0
    for H, B in ((1, 1), (50, 3), (256, 1), (1024, 16), (5000, 2)):
        try:
            found = GpuModel(device).predict(method, Work(16, B, H, H, H))
        except DoesNotFit:
            refused += 1
            continue
        assert 0 < found.seconds < math.inf
        assert all(part >= 0 for part in found.parts.values())
        assert sum(found.where.values()) == pytest.approx(4 * H * H)
    keeps_w = method.split("/")[1] in ("block", "persistent", "cluster")
    assert bool(refused) == keeps_w, "5000 x 5000 fits into no card's registers and shared memory"


def test_a_cluster_needs_a_new_card_and_a_small_network():
    with pytest.raises(DoesNotFit, match="blocks a cluster"):
        GpuModel(A100).predict("cupy_gpu/cluster", WORK)
    with pytest.raises(DoesNotFit, match=r"needs 4,096 hidden units.*numba_cuda/persistent"):
        GpuModel(H100).predict("cupy_gpu/cluster", Work(8, 1, 8, 4096, 8))


def test_an_unknown_method_has_no_prediction():
    assert GpuModel(H100).predict("peers/cudnn", WORK) is None


@pytest.mark.parametrize("device", [H100, A100, T4, SMALL], ids=lambda device: device.name)
def test_w_moves_outwards_as_it_grows(device):
    """Registers, then shared memory too, then a cache, then memory: never back, and every byte is somewhere."""
    rank = {level: number for number, level in enumerate(model_gpu.LEVELS)}
    reached = 0
    for H in (32, 256, 512, 1024, 1536, 2048, 2560, 3072, 4096, 8192):
        where = model_gpu.lives(device, H)
        assert sum(where.values()) == pytest.approx(4 * H * H)
        if not {"registers", "shared memory"} & set(where):
            with pytest.raises(DoesNotFit):
                plan_persistent(device, H, 1)
        outermost = max(rank[level] for level in where)
        assert outermost >= (reached if reached > 1 else 0)
        reached = outermost
    assert reached == 3


def test_half_the_bytes_stay_near_longer():
    too_large = next(H for H in range(2048, 8192, 64) if "registers" not in model_gpu.lives(H100, H))
    assert set(model_gpu.lives(H100, too_large)) <= {"L2 cache", "memory"}
    assert "registers" in model_gpu.lives(H100, too_large, "bfloat16")


def test_the_floor_is_a_meeting_and_w_once():
    rates = Rates(**(NOTHING | dict(flops=2e12, barrier={"counter": 1e-6})))
    assert model_gpu.floor(H100, rates, 1024) == pytest.approx(1e-6 + 1024**2 / 1e12)
    assert model_gpu.floor(H100, rates, 1024, B=8) == pytest.approx(1e-6 + 8 * 1024**2 / 1e12)


def test_measured_rates_replace_published_ones():
    assert model_gpu.rates_of({}, H100) == model_gpu.published(H100)
    peaks = {
        "version": 1,
        "name": "x",
        "failed": {"l2": "no"},
        "latency": 5e-7,
        "barrier": {"flags": 2e-6},
        "launch": {},
    }
    found = model_gpu.rates_of(peaks, H100)
    assert (found.latency, found.barrier["flags"], found.measured) == (5e-7, 2e-6, True)
    assert found.barrier["grid"] == model_gpu.published(H100).barrier["grid"]
    assert found.launch == model_gpu.published(H100).launch
    assert found.l2 == model_gpu.published(H100).l2


def test_published_figures_are_the_data_sheets():
    rates = model_gpu.published(H100)
    assert rates.flops == pytest.approx(67e12, rel=0.01)  # H100 SXM5: 67 TFLOP/s float32
    assert model_gpu.published(A100).flops == pytest.approx(19.5e12, rel=0.01)
    assert model_gpu.published(T4).flops == pytest.approx(8.1e12, rel=0.01)
    assert not rates.measured


# --- auto --------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_gpu(monkeypatch):
    """A machine with an H100 and one fake method that the model knows; the CPU's model says what it is told."""
    rows = (fake_gpu.row("numba_cuda/persistent", fake_gpu.good),)
    fake_gpu.install(rows, monkeypatch.setattr)
    monkeypatch.setattr(machine, "gpu", lambda: fake_gpu.GPU)
    monkeypatch.setattr(model_gpu, "here", lambda: GpuModel(H100))
    monkeypatch.setattr(model, "AUTO", ("serial/naive",) * 2)  # nothing to compile

    def cpu(seconds):
        monkeypatch.setattr(model, "here", lambda: type("Fake", (), {"predict": lambda *_: seconds})())

    cpu(1e-3)
    return cpu


def test_numpy_input_goes_where_it_is_faster_with_its_copies(with_gpu):
    net = rnnpar.RNN.random(64, 512, 64)
    gpu_s = GpuModel(H100).predict("numba_cuda/persistent", Work(512, 1, 64, 512, 64), transfers=True).seconds
    for cpu_s, wanted in ((0.9 * gpu_s, "serial/naive"), (1.1 * gpu_s, "numba_cuda/persistent")):
        with_gpu(cpu_s)
        assert model.fastest(net, 512, 1, threads=2) == wanted


def test_device_arrays_stay_on_the_device(with_gpu):
    with_gpu(1e-12)
    net = rnnpar.RNN.random(3, 8, 5)
    run = rnnpar.prepare(net)
    y, _ = run(DeviceArray(np.zeros((4, 2, 3), np.float32)))
    assert run.method == "numba_cuda/persistent"
    assert isinstance(y, DeviceArray)
    run(np.zeros((4, 2, 3), np.float32))
    assert run.method == "serial/naive"
    with pytest.raises(ValueError, match="x has shape"):
        run(DeviceArray(np.zeros((4, 3), np.float32)))


@pytest.fixture
def three_on_a_gpu(with_gpu, monkeypatch):
    """The three methods of numba-CUDA that "auto" considers, where launching persistent says that it does not fit."""

    def refuses(net, **_):
        def spoil(y, h):
            raise DoesNotFit("numba_cuda/persistent", "blocks that are resident together", 132, 16)

        return fake_gpu.Forward(net, spoil=spoil)

    kinds = {"persistent": refuses, "block": fake_gpu.good, "steps": fake_gpu.good}
    rows = tuple(fake_gpu.row(f"numba_cuda/{name}", function) for name, function in kinds.items())
    fake_gpu.install(rows, monkeypatch.setattr)
    monkeypatch.setattr(fake_gpu.FakeMethod, "options", lambda method: {})
    return with_gpu


@pytest.mark.parametrize("H", [300, 4000])
def test_auto_takes_the_next_method_where_one_does_not_fit(three_on_a_gpu, H):
    """300 is too large for a block, and persistent, planned, is refused by the driver; 4,000 fits neither's plan."""
    three_on_a_gpu(1e-12)
    run = rnnpar.prepare(rnnpar.RNN.random(3, H, 2))
    for _ in range(2):
        y, _ = run(DeviceArray(np.zeros((4, 2, 3), np.float32)))
        assert run.method == "numba_cuda/steps"
        assert isinstance(y, DeviceArray)
    seconds, *_ = run.timed(DeviceArray(np.zeros((5, 2, 3), np.float32)))
    assert seconds > 0


def test_auto_ends_where_nothing_fits(three_on_a_gpu, monkeypatch):
    """With NumPy arrays the CPU is the last resort; with device arrays an error says that none is left."""
    three_on_a_gpu(10.0)
    monkeypatch.setattr(model_gpu, "AUTO", ("numba_cuda/persistent",))
    run = rnnpar.prepare(rnnpar.RNN.random(3, 300, 2))
    run(np.zeros((4, 2, 3), np.float32))
    assert run.method == "serial/naive"
    with pytest.raises(rnnpar.Unavailable, match="no GPU method can compute"):
        run(DeviceArray(np.zeros((4, 2, 3), np.float32)))


def test_device_arrays_without_a_gpu_method_say_so(monkeypatch):
    monkeypatch.setattr(machine, "gpu", dict)
    with pytest.raises(rnnpar.Unavailable, match="no GPU method can compute"):
        rnnpar.prepare(rnnpar.RNN.random(3, 8, 5))(DeviceArray(np.zeros((4, 2, 3), np.float32)))


def test_without_a_gpu_nothing_of_it_is_asked(monkeypatch):
    def never():
        raise AssertionError("the GPU's model was asked")

    monkeypatch.setattr(machine, "gpu", dict)
    monkeypatch.setattr(model_gpu, "here", never)
    assert model._fastest_on_gpu(WORK, True, "float32") == ("", math.inf)


def test_where_nothing_fits_nothing_is_chosen():
    best = model_gpu.fastest(
        GpuModel(T4), Work(8, 1, 8, 4096, 8), ("numba_cuda/block", "cupy_gpu/cluster"), False, "float32"
    )
    assert best == ("", math.inf)
    assert model_gpu.fastest(GpuModel(H100), WORK, AUTO, False, "float32")[0] in AUTO
    assert isinstance(GpuModel(H100).predict("numba_cuda/block", WORK), Prediction)
