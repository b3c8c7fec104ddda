"""What a GPU's peaks are measured with, run on the executor: the kernels end, and do what their names say."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="pip install 'numba-cuda[cu13]'")
pytest.importorskip("greenlet", reason="pip install greenlet")

from rnnpar.kernels import gpu_probe, launch
from rnnpar.study import gpu_checks
from tests import executor
from tests.kernels import cuda_on_cpu, fake_cupy


@pytest.fixture
def gpu(monkeypatch):
    """A device of four multiprocessors on the executor."""
    from dataclasses import replace

    fake = executor.FakeGpu(replace(launch.SMALL, multiprocessors=4), seed=3)
    monkeypatch.setattr("rnnpar.kernels.gpu.open_gpu", lambda number: fake)
    monkeypatch.setattr(gpu_checks, "HANDOVERS", 30)
    return fake


@pytest.mark.parametrize("kind", ["flags", "counter", "grid", "values"])
def test_meetings_end_and_follow_each_other(gpu, monkeypatch, kind):
    """Three launches after each other, with words that only grow."""
    counts = []
    monkeypatch.setattr(gpu_probe, "each", lambda run, wait, few, many: [counts.append(n) or run(n) for n in (3, 4, 3)])
    gpu_probe.meeting(gpu, kind)
    assert counts == [3, 4, 3]
    assert len(gpu.launches) == 3


def test_a_chase_visits_every_line_once(gpu):
    lines = 16
    order = np.random.default_rng(0).permutation(lines) * 32
    chain = np.zeros(lines * 32, np.int32)
    chain[order] = np.roll(order, -1)
    seen = np.zeros(1, np.int32)
    for count in range(1, lines + 1):
        executor.launch(gpu_probe.chase_kernel, 1, 1, chain, count, seen)
        assert (seen[0] == 0) == (count == lines)


def test_every_element_is_read(gpu):
    """By two blocks, whose parts are exchanged in the second round."""
    a = np.random.default_rng(1).standard_normal(2 * 32 * 16 * 2).astype(np.float32)
    seen = np.zeros(2 * 32, np.float32)
    executor.launch(gpu_probe.read_kernel, 2, 32, a, a.size, 2, seen)
    four = a.reshape(-1, 4, 32, 4)  # trip, load, thread, element
    wanted = sum(four[:, part, :, part].sum() for part in range(4))
    assert seen.sum() == pytest.approx(2 * wanted, rel=1e-4)


def test_multiply_adds_are_counted_rightly(gpu):
    a, seen = np.full(4 * 32, 0.5, np.float32), np.zeros(32, np.float32)
    executor.launch(gpu_probe.multiply_kernel, 1, 32, a, 3, seen)
    assert seen == pytest.approx(np.full(32, 3 * gpu_probe.ROWS * 4 * 0.25))


def test_a_message_is_stale_only_where_the_flag_orders_nothing(gpu):
    """The check of the fences, and that it can fail: the executor's memory is as weak as the model allows."""
    assert gpu_checks.handover(released=True) == 0
    assert gpu_checks.handover(released=False) > 0


def test_fences_reports_and_faults(gpu, monkeypatch):
    assert "no stale message in 30" in gpu_checks.fences()
    monkeypatch.setattr(gpu_checks, "handover", lambda released: 7)
    with pytest.raises(gpu_checks.Fault, match="7 of 30 messages were read before they were there"):
        gpu_checks.fences()


def test_a_failed_probe_is_named_and_the_others_are_kept(gpu, monkeypatch):
    def fails():
        raise RuntimeError("the driver says no")

    copies = {"to_device": (1.0, 2.0), "from_device": (3.0, 4.0)}
    parts = {"latency": lambda: 1e-7, "barrier flags": lambda: 2e-6, "l2": fails, "copies": lambda: copies}
    monkeypatch.setattr(gpu_probe, "open_gpu", lambda number: gpu)
    monkeypatch.setattr(gpu_probe, "parts", lambda gpu: parts)
    found = gpu_probe.measure()
    assert found == {
        "latency": 1e-7,
        "barrier": {"flags": 2e-6},
        **copies,
        "failed": {"l2": "RuntimeError: the driver says no"},
    }


def test_repetitions_and_bytes_are_differences(monkeypatch):
    """What every launch costs drops out."""
    clock = [0.0]
    monkeypatch.setattr(gpu_probe.time, "perf_counter", lambda: clock[0])

    def run(count):
        clock[0] += 5.0 + 0.25 * count

    assert gpu_probe.each(run, lambda: None, 10, 30) == pytest.approx(0.25)
    assert gpu_probe.line(run, lambda: None, 8, 1000) == pytest.approx((5.0, 0.25))


@pytest.mark.skipif(bool(cuda_on_cpu.WHY_NOT), reason=cuda_on_cpu.WHY_NOT)
def test_a_hand_over_within_a_cluster_is_the_one_that_the_method_makes(gpu, monkeypatch):
    """The whole probe, its kernel on the other executor: messages, and not a barrier of the cluster."""
    cupy = fake_cupy.FakeCupy(seed=1)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    counts = []
    monkeypatch.setattr(gpu_probe, "each", lambda run, wait, few, many: [counts.append(n) or run(n) for n in (2, 5)])
    gpu_probe.cluster(gpu)
    assert counts == [2, 5]
    assert cupy.launches == [("rnn_hand_over", (8,), (32,))] * 2


def test_what_is_measured_is_what_the_model_takes(gpu):
    from rnnpar.model_gpu import Rates

    names = {name.split()[0] for name in gpu_probe.parts(gpu)} - {"copies"} | {"to_device", "from_device"}
    assert names <= set(Rates.__dataclass_fields__)
    assert set(Rates.__dataclass_fields__) - names <= {"measured", "tensor", "graph_node", "cluster"}
