"""The GPU chapters' figures and sentences: the model's where no GPU ran, and what was measured where one did."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from matplotlib.text import Text

from rnnpar import machine, model_gpu
from rnnpar.kernels.launch import A100, H100, SMALL, T4
from rnnpar.peaks import GPU_VERSION
from rnnpar.study import gpu, plots, store
from rnnpar.study.gpu_checks import CHECKS
from rnnpar.study.measure import Point, key
from rnnpar.study.store import Row

NAME = "nvidia-a100-16c-abcd"
METHODS = ["numba_cuda/timestep", "numba_cuda/steps", "numba_cuda/block", "numba_cuda/persistent"]
PEER = "peers/cudnn tf32=False"


def rows_of(method: str, H: int, B: int, device_us: float, numpy_us: float, status: str = "ok") -> list[Row]:
    """A measurement as check_gpu stores it: microseconds a step from device arrays, and from NumPy arrays."""
    times = [("compile", 1.0)]
    if status == "ok":
        times += [("steady", device_us * 512e-6 * f) for f in (0.99, 1.0, 1.01)] + [("transfer", numpy_us * 512e-6)]
    point = Point("random", H, H, H, 512, B)
    return [
        Row(key(point, method, 1), "random", method, H, H, H, 512, B, 1, 1, index, len(times),
            seconds if status == "ok" else None, kind, 1e-7, status, "", "", "", "2026-11-01T00:00:00+00:00")
        for index, (kind, seconds) in enumerate(times)
    ]  # fmt: skip


@pytest.fixture
def nothing(monkeypatch, tmp_path):
    """No machine has results, and this one has no GPU."""
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    monkeypatch.setattr(machine, "gpu", dict)
    return tmp_path


@pytest.fixture
def measured(nothing, monkeypatch):
    """A machine with an A100 ran check-gpu: persistent is 4 times as fast as a peer at H = 512, 2 times at 1,024."""
    monkeypatch.setattr(machine, "name", lambda: NAME)
    rows = []
    for H, peer_us in ((512, 8.0), (1024, 4.0)):
        rows += rows_of("numba_cuda/persistent", H, 1, 2.0, 20.0) + rows_of(PEER, H, 1, peer_us, 30.0)
    rows += rows_of("numba_cuda/block", 512, 1, 0, 0, "unsupported") + rows_of("numba_cuda/block", 256, 1, 1.5, 15.0)
    store.append(rows, "gpu")
    store.save_machine({"name": NAME, "gpu": {"name": A100.name}, "gpu_limits": asdict(A100)})
    store.update_machine(
        "gpu_checks", {"hardware fences": {"status": "ok"}, "memcheck numba_cuda/steps": {"status": "wrong"}}
    )
    peaks = {"gpu": {"version": GPU_VERSION, "name": A100.name, "barrier": {"flags": 1.5e-6, "counter": 1e-6}}}
    (store.results_folder(NAME) / "peaks.json").write_text(json.dumps(peaks))
    monkeypatch.setattr(machine, "name", lambda: "another-machine-2c-0000")
    return gpu.results()


def words(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def every_figure(seen):
    yield gpu.meeting_prices(seen)
    yield gpu.step_floor(seen)
    yield gpu.step_times(seen, METHODS)
    yield gpu.step_times(seen, METHODS[1:], B=16)
    yield gpu.decision(seen, METHODS[1:], sizes=(64, 1024), batches=(1, 16))
    yield gpu.launch_overhead(seen)


def test_what_no_gpu_measured_says_so_in_the_picture(nothing):
    seen = gpu.results()
    assert (seen.device, seen.measured) == (H100, False)
    for figure in every_figure(seen):
        assert "predicted, not measured" in words(figure)
        assert "predicted, not measured: NVIDIA H100" in words(figure)
    for sentence in (gpu.launch_verdict(seen), gpu.barrier_verdict(seen), gpu.floor_verdict(seen)):
        assert sentence.data.startswith("**Predicted, not measured: ")
    for sentence in (gpu.peers_verdict(seen, METHODS[3]), gpu.model_verdict(seen)):
        assert sentence.data.startswith("**No GPU has ")
    assert "No machine has results of a GPU yet" in gpu.source(seen).data


def test_what_a_gpu_measured_is_shown_with_its_machine(measured):
    assert (measured.machine, measured.device, measured.measured) == (NAME, A100, True)
    assert measured.rates.barrier["flags"] == 1.5e-6
    for figure in every_figure(measured):
        assert "predicted, not measured" not in words(figure)
        assert NAME in words(figure)
    assert gpu.floor_verdict(measured).data.startswith("**One sequence reaches the floor")
    assert NAME in gpu.source(measured).data
    assert gpu.launch_verdict(measured).data.startswith("**A launch from Numba takes")


def test_device_times_and_numpy_times_are_told_apart(measured):
    device, host = gpu.times(measured), gpu.times(measured, "transfer")
    assert device["numba_cuda/persistent", 512, 1].value == pytest.approx(2e-6)
    assert host["numba_cuda/persistent", 512, 1].value == pytest.approx(20e-6)
    lines, gaps = gpu.along(measured, "H", 1, ["numba_cuda/block"])
    assert list(lines["numba_cuda/block"]) == [256]
    assert gaps == {("numba_cuda/block", 512): "unsupported"}


def test_a_claim_is_held_against_each_size(measured):
    text = gpu.peers_verdict(measured, "numba_cuda/persistent", H=(512, 2048), least=3).data
    assert "is 2.8 times as fast as peers/cudnn tf32=False, in the geometric mean over 2 sizes" in text
    assert "It failed at H = 1,024, B = 1 (2.0 times)." in text
    assert "It held" in gpu.peers_verdict(measured, "numba_cuda/persistent", H=(512, 512), least=3).data
    assert "no verdict" in gpu.peers_verdict(measured, "numba_cuda/persistent", B=(16,)).data


def test_the_prediction_about_flags_can_fail(measured):
    text = gpu.barrier_verdict(measured).data
    assert "The cheapest way to meet is one counter" in text
    assert "It failed at A100 (0.67 times)." in text


def test_results_without_measured_peaks_call_the_peaks_predicted(measured):
    (store.results_folder(NAME) / "peaks.json").unlink()
    seen = gpu.results()
    assert seen.measured
    assert "predicted, not measured" in words(gpu.meeting_prices(seen))
    assert "predicted, not measured" not in words(gpu.step_times(seen, METHODS))
    assert gpu.barrier_verdict(seen).data.startswith("**Predicted, not measured: the cheapest")


def test_the_share_of_the_floor(measured):
    shares = gpu.share_of_floor(measured)
    assert set(shares) == {512, 1024}
    assert shares[512] == pytest.approx((1e-6 + 512**2 * 2 / measured.rates.flops) / 2e-6)
    assert "It held" in gpu.floor_verdict(measured).data
    assert "over 50% of a step" in gpu.floor_verdict(measured).data


def test_how_far_off_the_model_is(measured):
    predicted = gpu.predict(measured, "numba_cuda/persistent", 512, 1)
    assert predicted > 1e-6, "the measured barrier counts"
    assert "over 3 points; farthest at numba_cuda/" in gpu.model_verdict(measured).data


def test_points_of_an_earlier_version_are_named(measured):
    assert "earlier version" not in gpu.source(measured).data
    frame = measured.frame.assign(source="new")
    frame.loc[(frame["method"] == "numba_cuda/persistent") & (frame["H"] == 512), ["source", "date"]] = "old", "2020"
    told = gpu.source(replace(measured, frame=frame)).data
    assert told.endswith("with an earlier version of their kernels: at H = 512 with B = 1.")


def test_the_model_is_listed_by_method(measured, nothing):
    table = gpu.model_table(measured).data
    guess = gpu.predict(measured, "numba_cuda/block", 256, 1) / 1.5e-6
    assert f"| `numba_cuda/block` | 1 | {plots.ratio(guess)} |" in table
    assert "| `numba_cuda/persistent` | 2 |" in table


def test_what_tuning_brought_is_computed_from_the_plans(measured):
    assert "No launch plans" in gpu.tuning_table(measured).data
    lines = ["method,dtype,H,B,us,revision"]
    for us, revision in ((4.0, "first"), (3.0, "first"), (2.5, "last"), (1.5, "last")):
        lines.append(f"cupy_gpu/cluster,float32,512,1,{us},{revision}")
    lines.append("cupy_gpu/cluster,float32,256,1,1.0,first")  # measured once: nothing to compare
    (store.results_folder(NAME) / "plans.csv").write_text("\n".join(lines) + "\n")
    table = gpu.tuning_table(measured).data.splitlines()
    assert table[2:] == ["| `cupy_gpu/cluster` | 512 | 1 | 3.00 | 1.50 | 2.0 |"]


def test_checks_are_listed_with_what_they_saw(measured, nothing):
    table = gpu.checks_table(measured).data
    assert "| fences | ok |" in table
    assert "| co-residency | not run |" in table
    assert "| compute-sanitizer's memcheck | wrong |" in table
    assert all(check.unseen in table for check in CHECKS)


def test_a_machine_without_such_results_is_named(measured):
    with pytest.raises(store.ResultsError, match=rf"nowhere has no results of 'gpu'; those that have: \['{NAME}'\]"):
        gpu.results("nowhere")
    assert gpu.results("another-machine-2c-0000").machine == NAME, "this machine's chapter shows another's results"


def test_options_in_a_name_reach_the_model(nothing):
    seen = gpu.results()
    kinds = ("counter", "flags", "values")
    counter, flags, values = (gpu.predict(seen, f"numba_cuda/persistent barrier={kind}", 512, 1) for kind in kinds)
    assert counter < flags < values
    assert counter == gpu.predict(seen, "numba_cuda/persistent", 512, 1)
    assert np.isnan(gpu.predict(seen, "numba_cuda/block", 2048, 1))
    assert np.isnan(gpu.predict(seen, "peers/cudnn tf32=True", 64, 1))
    copies = gpu.predict(seen, "numba_cuda/block", 64, 1, transfers=True) - gpu.predict(seen, "numba_cuda/block", 64, 1)
    assert copies == pytest.approx(seen.model.copies(gpu.work(64, 1)) / 512)


def test_the_origins_limits_are_counted():
    limits = gpu.origin_limits((1, 2, 1024))
    assert [line[0] for line in limits.values()] == pytest.approx([1, 1, 1])
    square = limits["I = O = H = 256"][-1]
    assert square == pytest.approx(512 * 3 / (512 + 2))  # the chain of W h, and U x and V h of one step
    assert limits["origin-large"][-1] <= 15, "no more than there are steps"


def test_where_w_lives_is_drawn_and_told():
    assert "H100, float32" in words(gpu.where_w_lives((H100, T4)))
    assert gpu.largest(SMALL) < gpu.largest(T4) < gpu.largest(A100) < gpu.largest(H100)
    assert f"an H100 up to H = {gpu.largest(H100):,}" in gpu.where_verdict((H100,)).data
    assert "registers" in model_gpu.lives(H100, gpu.largest(H100))
    assert [gpu.short_name(card) for card in (H100, A100, T4, SMALL)] == ["H100", "A100", "T4", "1650"]


def test_tensor_cores_pay_only_for_batches(nothing):
    seen = gpu.results()
    assert gpu.tensor_cores(seen, 256, 1) < 1.1
    assert gpu.tensor_cores(seen, 1024, 64) > 2
