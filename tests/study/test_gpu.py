"""The GPU chapters: the model's predictions where no GPU ran, and what was measured where one did."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from rnnpar import machine
from rnnpar.kernels.launch import A100, H100, T4
from rnnpar.peaks import GPU_VERSION
from rnnpar.study import gpu, results, store
from rnnpar.study.measure import Point, identity
from rnnpar.study.store import Measurement
from tests.chapters import figures, outcomes, run

NAME = "nvidia-a100-16c-abcd"
PEER = "peers/cudnn tf32=False"


def measurement(method: str, H: int, B: int, device_us: float, numpy_us: float, status: str = "ok") -> Measurement:
    """One as check_gpu stores it: microseconds a step from device arrays, and from NumPy arrays."""
    times = {"steady": [device_us * 512e-6 * f for f in (0.99, 1.0, 1.01)], "transfer": [numpy_us * 512e-6]}
    good = status == "ok"
    told = identity(Point("random", H, H, H, 512, B), method, 1) | {"date": "2026-11-01T00:00:00+00:00"}
    return Measurement(**told, first_call=1.0 if good else None, seconds=times if good else {}, error=1e-7,
                       status=status, message="", source="")  # fmt: skip


@pytest.fixture
def nothing(monkeypatch, tmp_path):
    """No machine has results, and this one has no GPU."""
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr(machine, "gpu", dict)
    return tmp_path


@pytest.fixture
def measured(nothing, monkeypatch):
    """A machine with an A100 ran check-gpu: persistent is 4 times as fast as a peer at H = 512, 2 times at 1,024."""
    monkeypatch.setattr(machine, "name", lambda: NAME)
    found = []
    for H, peer_us in ((512, 8.0), (1024, 4.0)):
        found += [measurement("numba_cuda/persistent", H, 1, 2.0, 20.0), measurement(PEER, H, 1, peer_us, 30.0)]
    found += [measurement("numba_cuda/block", 512, 1, 0, 0, "unsupported")]
    found += [measurement("numba_cuda/block", 256, 1, 1.5, 15.0)]
    store.append(found, "gpu")
    store.save_machine({"name": NAME, "gpu": {"name": A100.name}, "gpu_limits": asdict(A100)})
    store.update_machine(
        "gpu_checks", {"hardware fences": {"status": "ok"}, "memcheck numba_cuda/steps": {"status": "wrong"}}
    )
    peaks = {"gpu": {"version": GPU_VERSION, "name": A100.name, "barrier": {"flags": 1.5e-6, "counter": 1e-6}}}
    (store.results_folder(NAME) / "peaks.json").write_text(json.dumps(peaks))
    monkeypatch.setattr(machine, "name", lambda: "another-machine-2c-0000")
    return gpu.load()


def said(shown) -> str:
    """All sentences that a chapter has shown."""
    return "\n".join(one.data for one in shown if hasattr(one, "data") and isinstance(one.data, str))


@pytest.mark.parametrize("number", ["04", "05"])
def test_without_any_gpu_all_is_predicted_and_says_so(number, nothing, monkeypatch):
    names, shown = run(number, monkeypatch)
    assert "NVIDIA H100 SXM, with published peaks" in said(shown) or "with published peaks" in said(shown)
    assert set(outcomes(shown).values()) == {"not measured"}
    pages = [path.read_text() for path in (nothing / "figures").rglob("*.svg")]
    assert pages
    assert names["corner"]["day"].startswith("predicted, not measured")


def test_what_a_gpu_measured_is_held_against_each_size(measured, monkeypatch):
    monkeypatch.setenv("RNNPAR_MACHINE", NAME)
    names, shown = run("04", monkeypatch)
    assert names["persistent"].to_dict() == {(512, 1): 4.0, (1024, 1): 2.0}
    claim = (
        "numba_cuda/persistent is at least 3 times as fast as cuDNN at equal error at B of 1 to 4, H of 512 to 2,048"
    )
    assert outcomes(shown)[claim] == "failed"
    assert outcomes(shown)["one counter is dearer than flags, since all blocks add to the same word"] == "failed"
    assert f"model is that of {A100.name}, with measured peaks" in said(shown)
    states = names["table"].set_index("check-gpu tests it as").iloc[:, 1]
    assert states["fences"] == "ok"
    assert states["same bits"] == "not run"
    assert states["compute-sanitizer's memcheck"] == "wrong"


def test_device_times_and_numpy_times_are_told_apart(measured):
    one = measured[(measured["method"] == "numba_cuda/persistent") & (measured["H"] == 512)].set_index("kind")
    assert one.us_per_step.round(3).to_dict() == {"steady": 2.0, "transfer": 20.0}


def test_points_of_an_earlier_version_are_named(measured, monkeypatch):
    later = measurement("numba_cuda/persistent", 2048, 1, 4.0, 20.0)
    store.append([replace(later, source="new", date="2026-11-02T00:00:00+00:00")], "gpu", NAME)
    _, shown = run("04", monkeypatch)
    assert "At H = 256 with B = 1, H = 512 with B = 1, H = 1,024 with B = 1 some" in said(shown)


def test_what_tuning_brought_is_computed_from_the_plans(measured, monkeypatch):
    (store.results_folder(NAME) / "plans.csv").write_text(
        "method,dtype,barrier,H,B,us,revision\n"
        "numba_cuda/persistent,float32,flags,512,1,3.0,one\nnumba_cuda/persistent,float32,counter,512,1,2.0,one\n"
        "numba_cuda/persistent,float32,flags,512,1,1.0,two\nnumba_cuda/persistent,float32,flags,256,1,1.0,two\n"
    )
    names, _ = run("04", monkeypatch)
    assert names["tuned"].iloc[0].tolist() == [2.0, 1.0]
    assert len(names["tuned"]) == 1


def test_one_block_is_judged_only_where_its_sizes_were_measured(measured, monkeypatch):
    store.update_machine("gpu_limits", asdict(H100), NAME)

    def fared() -> tuple[str, str]:
        found = outcomes(run("05", monkeypatch)[1])
        return found["one block is best up to H = 128"], found["several blocks are best above H = 128"]

    def store_cluster(blocks: int, H: int, device_us: float) -> None:
        monkeypatch.setattr(machine, "name", lambda: NAME)
        store.append([measurement(f"cupy_gpu/cluster blocks={blocks}", H, 1, device_us, 9.0)], "gpu")

    store_cluster(8, 256, 0.6)
    assert fared() == ("not measured", "held")
    store_cluster(1, 64, 0.5)
    store_cluster(8, 64, 0.4)
    assert fared() == ("failed", "held")


@pytest.mark.parametrize("card", [A100, T4])
def test_a_card_without_clusters_has_all_figures(card, measured, monkeypatch):
    store.update_machine("gpu_limits", asdict(card), NAME)
    _, shown = run("05", monkeypatch)
    assert outcomes(shown)["several blocks are best above H = 128"] == "not measured"
    assert len(figures(shown)) == 7


def test_options_in_a_name_reach_the_model(nothing):
    costs = gpu.model("a-machine")
    plain, flags = (gpu.predict(costs, f"numba_cuda/persistent{how}", 512, 1) for how in ("", " barrier=grid"))
    assert plain != flags
    assert np.isnan(gpu.predict(costs, "numba_cuda/block", 4096, 1))
    table = gpu.predicted(costs, ["numba_cuda/block"], [64, 4096], [1], "a-machine")
    assert table.H.tolist() == [64]
    assert table.source.tolist() == ["predicted"]


def test_where_w_stays_on_the_chip():
    assert [gpu.largest(card) for card in (H100, A100, T4)] == [3072, 2048, 912]
    assert gpu.near(H100, 1024)
    assert not gpu.near(T4, 2048)


def test_tensor_cores_pay_only_for_batches():
    assert gpu.half_pays(H100, 128, 1) < 1.5 < gpu.half_pays(H100, 512, 256)
    assert np.isnan(gpu.half_pays(H100, 4096, 1))


def test_lines_of_code_are_counted_without_comments():
    assert gpu.lines_of_code("numba_cuda", "steps") < gpu.lines_of_code("numba_cuda", "persistent")
    with pytest.raises(ValueError, match="no section 'nothing'"):
        gpu.lines_of_code("numba_cuda", "nothing")


def test_damaged_peaks_are_an_error(nothing):
    folder = store.results_folder("a-machine")
    folder.mkdir(parents=True)
    (folder / "peaks.json").write_text("[")
    with pytest.raises(store.ResultsError, match="damaged"):
        gpu.model("a-machine")
    assert results.where("", "gpu")
