"""Chapter 05's figures and sentences: from the plans where no GPU ran, from results where one did."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.text import Text

from rnnpar import model_gpu
from rnnpar.kernels import cluster_plan
from rnnpar.kernels.launch import A100, H100
from rnnpar.study import gpu, gpu_cupy, store, tell
from rnnpar.study.check_gpu import steps
from rnnpar.study.gpu import Seen

COLUMNS = ["machine", *store.COLUMNS]


def seen_on(device=H100, rows=()) -> Seen:
    import pandas as pd

    return Seen(device, model_gpu.published(device), "a-machine", pd.DataFrame(list(rows), columns=COLUMNS))


def measured(method: str, H: int, B: int, us: float) -> list[dict]:
    """Three samples of a method, microseconds a step."""
    same = dict(
        machine="a-machine", point=f"{method} {H} {B}", workload="random", method=method, H=H, I=H, O=H, T=steps(B),
        B=B, layers=1, threads=1, samples=3, error=0.0, status="ok", message="", source="", revision="",
        date="2026-11-23T00:00:00+00:00",
    )  # fmt: skip
    times = [
        dict(kind="compile", seconds=1.5),
        *[dict(kind="steady", seconds=us * steps(B) * 1e-6 * f) for f in (0.99, 1, 1.01)],
    ]
    return [same | time | dict(sample=index) for index, time in enumerate(times)]


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


def words(figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


def test_figures_without_a_gpu_say_that_they_are_predicted():
    seen = seen_on()
    for figure in (gpu_cupy.cluster_sizes(seen), gpu_cupy.tensor_cores(seen)):
        assert words(figure).count(gpu.PREDICTED) == 2  # in the panel, and in the corner
        assert "H = 256" in words(figure)


def test_sentences_without_a_gpu_are_predictions_and_never_verdicts_of_a_run():
    seen = seen_on()
    for verdict in (gpu_cupy.hand_over_verdict, gpu_cupy.microsecond_verdict, gpu_cupy.tensor_verdict,
                    gpu_cupy.libraries_verdict, gpu_cupy.replay_verdict, gpu_cupy.cluster_verdict,
                    gpu_cupy.decision_verdict):  # fmt: skip
        assert verdict(seen).data.startswith("**Predicted, not measured"), verdict
    assert "No GPU has run" in gpu_cupy.cublas_verdict(seen).data
    assert "Not measured here" in gpu_cupy.microsecond_verdict(seen).data


def test_a_card_without_clusters():
    seen = seen_on(A100)
    assert gpu_cupy.cluster_steps(seen, 64) == {}
    assert "A100 has no clusters" in gpu_cupy.cluster_verdict(seen).data
    assert "A100 has no clusters" in words(gpu_cupy.cluster_sizes(seen))
    assert np.isnan(gpu.predict(seen, "cupy_gpu/cluster", 64, 1))
    assert "no time here" in gpu_cupy.microsecond_verdict(seen).data


def test_cluster_steps_are_the_plans_and_begin_where_w_fits():
    seen = seen_on()
    found = gpu_cupy.cluster_steps(seen, 512)
    assert min(found) > 1
    alone = cluster_plan.plan(512, 1, "float32", H100, 16).seconds(H100, 1)
    assert alone < found[16] < alone + 0.5e-6  # with U x, V h and softmax
    assert "up to H = 32 one block is enough" in gpu_cupy.cluster_verdict(seen).data
    assert "Not measured here" in gpu_cupy.cluster_verdict(seen).data


def test_measured_clusters_of_each_size_take_the_plans_place():
    slow_alone = {1: 2.0, 2: 1.0, 4: 0.5, 8: 0.6}
    rows = [
        row for blocks, us in slow_alone.items() for row in measured(f"cupy_gpu/cluster blocks={blocks}", 64, 1, us)
    ]
    seen = seen_on(rows=rows)
    assert gpu_cupy.cluster_steps(seen, 64, measured=True) == pytest.approx(
        {k: 1e-6 * v for k, v in slow_alone.items()}
    )
    assert gpu_cupy.cluster_steps(seen, 256, measured=True) == {}
    told = gpu_cupy.cluster_verdict(seen).data
    assert "from H = 64 of those tried on 4 are best" in told
    assert "It failed at H = 64 (4)" in told
    assert gpu.PREDICTED not in words(gpu_cupy.cluster_sizes(seen))
    assert "over 4 points" in gpu.model_verdict(seen).data  # options that are numbers reach the model as numbers


def test_measured_results_take_the_predictions_place():
    rows = [
        *measured("cupy_gpu/cluster", 256, 1, 0.8), *measured("cupy_gpu/cluster dtype=bfloat16", 256, 1, 0.4),
        *measured("cupy_gpu/fused", 256, 1, 6.0), *measured("cupy_gpu/graph", 256, 1, 4.0),
    ]  # fmt: skip
    seen = seen_on(rows=rows)
    assert gpu_cupy.half_measured(seen) == {(256, 1): pytest.approx(2, rel=0.03)}
    assert "at 1 of 1 sizes" in gpu_cupy.tensor_verdict(seen).data
    told = gpu_cupy.microsecond_verdict(seen).data
    assert "0.8 µs" in told
    assert "It held" in told
    told = gpu_cupy.replay_verdict(seen).data
    assert "1.50" in told
    assert "It failed at H = 256, B = 1 (1.50 times)" in told
    assert "cupy_gpu/cluster at 1" in gpu_cupy.decision_verdict(seen).data
    table = gpu_cupy.compared(seen).data
    assert "1.5 s" in table
    assert table.count("(predicted)") == 2  # Numba's two were not measured
    gpu_cupy.tensor_cores(seen)


def test_a_slow_cluster_fails_its_prediction():
    seen = seen_on(rows=measured("cupy_gpu/cluster", 128, 1, 1.7))
    assert "It failed at H = 128 (1.7 µs)" in gpu_cupy.microsecond_verdict(seen).data


def test_products_are_held_against_cublas_in_the_same_results():
    rows = [
        *measured("cublas/products", 1024, 256, 20.0), *measured("cupy_gpu/steps", 1024, 256, 25.0),
        *measured("cupy_gpu/graph", 1024, 256, 50.0), *measured("cublas/products", 64, 256, 2.0),
        *measured("cupy_gpu/graph", 64, 256, 2.0), *measured("cupy_gpu/steps", 64, 64, 1.0),
        *measured("cupy_gpu/fused dtype=bfloat16", 1024, 256, 19.0),  # another arithmetic: not what is claimed
    ]  # fmt: skip
    seen = seen_on(rows=rows)
    shares = gpu_cupy.cublas_shares(seen)
    assert list(shares) == [(64, 256), (1024, 256)]
    assert shares[1024, 256] == (pytest.approx(0.8), "cupy_gpu/steps")
    told = gpu_cupy.cublas_verdict(seen).data
    assert "failed at H = 1,024, B = 256 (80%)" in told
    assert "100% of the rate of cuBLAS's products alone at best (cupy_gpu/graph at H = 64, B = 256)" in told
    only_ours = seen_on(rows=measured("cupy_gpu/steps", 1024, 256, 25.0))
    assert "No GPU has run these sizes beside cuBLAS" in gpu_cupy.cublas_verdict(only_ours).data


def test_lines_of_code_leave_out_words(tmp_path, monkeypatch):
    (tmp_path / "backends").mkdir()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "backends" / "it.py").write_text(
        '"""Head."""\n# --- a: words ---\n# no\ndef f():\n    """Two\n    lines."""\n\n    return 1\n'
        "# --- b: more ---\nx = 1\n"
    )
    (tmp_path / "kernels" / "k.cuh").write_text("// no\nint x;\n\nint y;  // yes\n")
    monkeypatch.setattr(gpu_cupy, "PACKAGE", tmp_path)
    assert gpu_cupy.lines_of_code("it", "a") == 2
    assert gpu_cupy.lines_of_code("it", "b", ["k.cuh"]) == 3
    with pytest.raises(ValueError, match="no section 'c'"):
        gpu_cupy.lines_of_code("it", "c")


def test_the_pairs_are_methods_that_there_are():
    for pair in gpu_cupy.PAIRS.values():
        for backend, section, files in pair:
            assert f"{backend}/{section}" in tell.family(backend)
            assert gpu_cupy.lines_of_code(backend, section, files) > 20


def test_smaller_clusters_are_all_that_a_smaller_card_is_asked_for():
    small = seen_on(dataclasses.replace(H100, cluster=8))
    assert max(gpu_cupy.cluster_steps(small, 256)) == 8
