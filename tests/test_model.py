"""The model: its arithmetic on peaks that are known, and the choice that "auto" makes by it."""

import json
import math

import numpy as np
import pytest

import rnnpar
from rnnpar import machine, model, peaks
from rnnpar.backends import threads as in_threads
from rnnpar.kernels import tile
from rnnpar.kernels.forward import Plan
from rnnpar.model import Model, Surface
from rnnpar.study import results, store
from rnnpar.study.cores import FEW
from rnnpar.work import Work
from tests.conftest import assert_matches_oracle, random_input


def simple_peaks(barrier=1e-6, launch=5e-6):
    """A machine that does a multiply-add in 1 ns whatever the shape, and nothing else takes time but meeting."""
    points = [(H, rows, H * H * rows * 1e-9) for H in (32, 1024) for rows in (1, 64)]
    free = [0.0, 0.0]
    return {
        "products": {"1": points, "2": points},
        "steps": {"1": points, "2": points},
        "exchange": {"2": [barrier, 0.0]},
        "blas": points,
        "barrier": {"2": barrier},
        "launch": {"1": 0.0, "2": launch},
        **dict.fromkeys(("tanh", "softmax", "numpy_tanh", "numpy_exp", "numpy_add"), free),
        "fresh_memory": 0.0,
        "call": 0.0,
    }


WORK = Work(T=100, B=4, I=64, H=128, O=96)
ONE = 100 * 4 * 128 * (64 + 128 + 96) * 1e-9


def test_flops_are_two_for_each_multiply_add():
    assert sum(WORK.flops().values()) * 1e-9 == pytest.approx(2 * ONE)
    stacked = Work(T=10, B=1, I=3, H=5, O=7, layers=3)
    assert stacked.flops() == {"U x": 20 * 5 * (3 + 5 + 5), "W h": 20 * 25 * 3, "V h": 20 * 35}


@pytest.mark.parametrize(
    ("method", "threads", "seconds"),
    [
        ("serial/naive", 1, ONE),
        ("serial/hoisted", 1, ONE),
        ("serial/compiled", 1, ONE),
        ("threads/rows", 2, ONE / 2 + 100 * 1e-6 + 5e-6),
        ("threads/batch", 2, ONE / 2 + 5e-6),
    ],
)
def test_predictions_on_a_machine_where_only_arithmetic_and_meeting_cost(method, threads, seconds):
    assert Model(simple_peaks(), 32).predict(method, WORK, threads) == pytest.approx(seconds, rel=1e-6)


def test_an_unknown_method_has_no_prediction():
    assert math.isnan(Model(simple_peaks(), 32).predict("peers/torch", WORK))


def test_surface_interpolates_between_measured_points():
    surface = Surface([(16, 1, 16.0 * 16), (64, 1, 64.0 * 64 * 4), (16, 4, 16.0 * 16 * 4), (64, 4, 64.0 * 64 * 16)])
    assert surface(16, 1) == pytest.approx(1)
    assert surface(32, 1) == pytest.approx(2)
    assert surface(32, 2) == pytest.approx(4)
    assert surface(5, 1) == pytest.approx(1)  # outside: as at the edge
    assert surface(64, 8) == pytest.approx(32)  # more rows: at the rate of the most that were measured


def test_auto_weighs_the_barrier_against_the_work(monkeypatch):
    net = rnnpar.RNN.random(64, 128, 96)
    for barrier, launch, wanted in ((1e-9, 1e-9, "threads/"), (1.0, 1.0, "serial/compiled")):
        monkeypatch.setattr(model, "here", lambda b=barrier, s=launch: Model(simple_peaks(b, s), 32))
        assert model.fastest(net, 100, 4, threads=2).startswith(wanted)
    assert model.fastest(net, 100, 4, threads=1) == "serial/compiled"


def test_of_methods_as_near_as_the_model_sees_the_first_is_taken():
    rows, batch, wave = "threads/rows", "threads/batch", "threads/wavefront"
    assert model.choose({wave: 1.0, batch: 1.01, rows: 1.015, "serial/compiled": 9.0}) == rows
    assert model.choose({wave: 1.0, batch: 1.01, rows: 1.05}) == batch
    assert model.choose({wave: 1.0, rows: 1.05}) == wave
    assert model.choose({"cupy_gpu/cluster": 1.0, rows: 1.01}) == "cupy_gpu/cluster"  # a GPU's is not of the order
    assert model.choose({rows: 1.0, "cupy_gpu/cluster": 1.0}) == rows


def test_auto_runs_and_says_which():
    net = rnnpar.RNN.random(5, 40, 7, 2)
    run = rnnpar.prepare(net)
    assert run.method == "auto"
    for T, B in ((1, 1), (30, 1), (3, 40), (0, 2), (2, 0)):
        assert_matches_oracle(run, random_input(net, T, B))
        assert run.method in model.AUTO
    assert rnnpar.prepare(net, "auto", threads=1)(random_input(net, 4, 4))[0].shape == (4, 4, 7)


ALONE, TOGETHER = [[64, 64, 2e-6]], [[64, 64, 2.1e-6]]
QUIET = {"version": peaks.VERSION, "barrier": {"2": 3e-7}, "launch": {"1": 3e-7, "2": 4e-6},
         "products": {"1": ALONE, "2": TOGETHER}, "steps": {"1": [[32, 1, 3e-8]], "2": [[32, 1, 3e-7]]}}  # fmt: skip


@pytest.mark.parametrize("slow", [{"barrier": {"2": 8e-3}}, {"launch": {"2": 8e-3}}, {"steps": {"2": [[32, 1, 8e-3]]}}])
def test_peaks_of_a_busy_machine_are_measured_again_and_not_kept(slow, tmp_path, monkeypatch, capsys):
    busy = QUIET | slow
    answers = [busy, QUIET, busy, *[QUIET] * (peaks.GOOD - 1)]
    monkeypatch.setattr(peaks, "PAUSE_S", 0.0)
    monkeypatch.setattr(peaks, "measure", lambda: answers.pop(0))
    assert peaks._here.__wrapped__(tmp_path / "peaks.json") == QUIET
    assert (tmp_path / "peaks.json").exists()
    assert not answers
    monkeypatch.setattr(peaks, "measure", lambda: busy)
    assert peaks._here.__wrapped__(tmp_path / "other.json") == busy
    assert not (tmp_path / "other.json").exists()
    assert "not kept" in capsys.readouterr().err


def test_the_median_of_the_measurements_counts():
    def measured(product, tanh):
        return {"version": 3, "products": {"1": [(64, 64, product)]}, "tanh": (1e-9, tanh), "measured": "2026-01-01"}

    found = peaks.median([measured(2e-6, 5e-10), measured(9e-6, 4e-10), measured(3e-6, 1e-10)])
    assert found == {"version": 3, "products": {"1": [[64, 64, 3e-6]]}, "tanh": [1e-9, 4e-10], "measured": "2026-01-01"}
    assert peaks.median([found]) == found


def test_a_crowded_measurement_counts_only_where_there_is_no_other(tmp_path, monkeypatch):
    crowded = {**QUIET, "products": {"1": ALONE, "2": [[64, 64, 4e-6]]}}
    monkeypatch.setattr(peaks, "PAUSE_S", 0.0)
    monkeypatch.setattr(peaks.Path, "read_text", lambda self: "0\n")
    answers = [crowded] * (peaks.TRIES - 1) + [QUIET]
    monkeypatch.setattr(peaks, "measure", lambda: answers.pop(0))
    assert peaks._here.__wrapped__(tmp_path / "one.json") == QUIET
    monkeypatch.setattr(peaks, "measure", lambda: crowded)
    assert peaks._here.__wrapped__(tmp_path / "none.json") == crowded


def test_cores_that_are_halves_of_one_are_noticed(monkeypatch):
    monkeypatch.setattr(peaks.Path, "read_text", lambda self: "0\n")
    assert not peaks.crowded(QUIET)
    halves = {**QUIET, "products": {"1": ALONE, "2": [[64, 64, 4e-6]]}}
    assert peaks.crowded(halves)
    monkeypatch.setattr(peaks.Path, "read_text", lambda self: "0-1\n")  # the system says that they are halves
    assert not peaks.crowded(halves)


def test_peaks_are_kept_and_a_damaged_file_is_not_overwritten(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(peaks, "measure", lambda: calls.append(1) or QUIET)
    file = tmp_path / "new" / "peaks.json"
    peaks._here.__wrapped__(file)
    peaks._here.__wrapped__(file)
    assert len(calls) == peaks.GOOD, "measured at the first call only"
    file.write_text("{ half")
    with pytest.raises(ValueError, match=r"peaks\.json is damaged.*delete it"):
        peaks._here.__wrapped__(file)
    assert file.read_text() == "{ half"


def test_peaks_that_cannot_be_kept_are_used_all_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peaks, "measure", lambda: QUIET)
    (tmp_path / "file").write_text("in the way")
    assert peaks._here.__wrapped__(tmp_path / "file" / "peaks.json")
    assert "cannot be kept" in capsys.readouterr().err


def test_probes_measure_what_they_name():
    from rnnpar.kernels import probe

    assert 0 < probe.barrier_seconds(2) < 1
    assert 0 < probe.launch_seconds(2) < 1
    a_call, an_element = probe.line(lambda n, size: [np.zeros(size).sum() for _ in range(n)])
    assert a_call > 0
    assert an_element >= 0


@pytest.mark.parametrize("strategy", model.ITERATIONS)
def test_in_time_is_predicted_for_every_window(strategy):
    """More iterations and more windows never take less time; the formula takes the best window."""
    found, work = Model(simple_peaks(), 32), Work(T=4096, B=1, I=32, H=32, O=32)
    seconds = [model.in_time_seconds(found, strategy, work, 2, window) for window in model.windows(work.T)]
    assert found.predict(f"in_time/{strategy}", work, 2) == pytest.approx(min(seconds))
    for more in (1, 10):
        few, many = (model.in_time_seconds(found, strategy, work, 2, 4096, iterations=n) for n in (more, more + 5))
        assert few < many


def test_windows_stay_in_the_caches_where_they_can(monkeypatch):
    monkeypatch.setattr(machine, "caches", lambda: {"L2": 2**20})
    monkeypatch.setattr(model, "here", lambda: Model(simple_peaks(), 32))
    work = Work(T=65536, B=1, I=32, H=32, O=32)
    assert model.windows(1000) == [1000, 500, 250, 125, 63]
    assert model.best_window("in_time/jacobi", work, 2, model.windows(work.T)) == 4096
    assert model.best_window("in_time/jacobi", work, 2, [65536]) == 65536
    assert model.best_window("in_time/jacobi", work, 2, [65536, 32768]) == 32768


@pytest.mark.parametrize(
    ("costs", "chunks", "threads", "seconds"),
    [
        ([8, 1, 1], 4, 1, 40),  # all there is to do
        ([8, 1, 1], 1, 2, 10),  # one chunk goes from stage to stage
        ([8, 1, 1], 4, 2, 34),  # the second thread has drawn a stage that waits for the first's, again and again
        ([1, 10, 0], 5, 8, 51),  # the recurrence waits for itself
        ([1, 1, 10], 6, 2, 37),  # two threads at the output, once the first chunk is there
    ],
)
def test_the_wavefront_is_played_through(costs, chunks, threads, seconds):
    assert model.play([costs] * chunks, threads) == seconds


def test_the_last_chunk_of_the_wavefront_may_be_short():
    assert model.play([[8, 4, 4], [2, 1, 1]], 1) == 20
    assert model.play([[8, 4, 4], [2, 1, 1]], 2) == 16  # the output of the first chunk; beside it all of the second


def test_a_layer_keeps_as_many_chunks_as_the_method():
    assert model.SLOTS == in_threads.SLOTS


@pytest.mark.parametrize("H", [16, 300, 700])
def test_a_chunk_has_as_many_steps_as_the_method_takes(H):
    net = rnnpar.RNN.random(3, H, 5)
    forward = in_threads.wavefront(net, 2)
    for T in (1, 40, 1000, 20000):
        for B in (1, 3, 50):
            taken = forward.buffers(Plan.of(net, T, B, B))["chunk"]
            assert model.wavefront_chunk(Work.of(net, T, B), tile.WIDTH, tile.ROWS) == taken


@pytest.mark.parametrize("name", ["amd-epyc-znver4-2c-e3a5", "amd-epyc-znver5-2c-e3a5"])
def test_auto_is_near_the_best_on_machines_that_were_measured(name, monkeypatch):
    """By their stored peaks and results. Points with too few samples from whole cores say nothing of two cores."""
    monkeypatch.delenv("RNNPAR_DATA", raising=False)
    costs = Model(json.loads((store.results_folder(name) / "peaks.json").read_text()), *store.tile(name))
    runs = store.load("sweep", name).query("status == 'ok'")
    runs = runs[(runs.threads == 2) | runs.method.str.startswith("serial")]
    shape = ["workload", "H", "I", "O", "T", "B", "layers"]
    shared = runs.message.str.contains(FEW, na=False).groupby([runs[one] for one in shape]).any()
    runs = runs.assign(seconds=runs.samples.map(np.median))
    times = runs.pivot_table("seconds", shape, "method", "median")[~shared]
    over = []
    for (_, H, I, O, T, B, layers), measured in times.iterrows():
        work = Work(T, B, I, H, O, layers)
        pick = model.choose({method: costs.predict(method, work, 2) for method in model.AUTO})
        over.append(measured[pick] / measured.min())
    assert len(over) > 0.9 * len(shared) > 100
    assert np.mean(np.array(over) <= 1.1) >= 0.99
    assert max(over) < 1.15


def test_a_named_machine_is_predicted_alike_on_every_other(monkeypatch):
    monkeypatch.delenv("RNNPAR_DATA", raising=False)
    monkeypatch.setattr(machine, "name", lambda: "another")
    work = Work(T=100, B=1, I=40, H=40, O=40)  # 64 columns in panels of 32, and 48 in those of 16
    seconds = []
    for shape in (tile.TileShape(16, 2, 8), tile.TileShape(4, 4, 6)):
        monkeypatch.setattr(tile, "TILE", shape)
        seconds.append(results.cost_model("amd-epyc-znver4-2c-e3a5").predict("threads/wavefront", work, 2))
    assert seconds[0] == seconds[1]
