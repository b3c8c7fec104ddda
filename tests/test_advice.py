"""Advice: the model's choice, its runner-up and the reason, in words."""

from __future__ import annotations

import pytest

from rnnpar import advice, machine, model_gpu, registry
from rnnpar.model import AUTO, Model
from rnnpar.work import Work
from tests.test_model import simple_peaks

COSTS = Model(simple_peaks(), 32)  # a multiply-add takes 1 ns, a meeting 1 µs, a start of two threads 5 µs


def advised(threads=2, **sizes):
    return advice.advise(COSTS, Work(**(dict(T=100, B=1, I=256, H=256, O=256) | sizes)), threads, "a-machine")


def test_the_best_the_call_and_the_runner_up():
    rows = advised()
    assert rows.method == "threads/rows"
    assert rows.call == 'rnnpar.prepare(net, "threads/rows", threads=2)'
    assert rows.sentence.startswith(f"On a-machine, with 2 threads: take `{rows.call}`.")
    assert rows.method == min(AUTO, key=rows.seconds.__getitem__)
    assert rows.runner_up == sorted(AUTO, key=rows.seconds.__getitem__)[1]
    assert list(rows.seconds.values()) == sorted(rows.seconds.values())
    assert rows.runner_up in rows.details
    assert "W h of a step takes one thread 66 µs; shared by 2 it takes 33 µs, and 1 µs for 2 threads" in rows.details


def test_reasons():
    batch = advised(B=2, H=32, I=32, O=32)
    assert batch.method == "threads/batch"
    assert "A thread has 1 of 2 sequences to itself and never waits; sharing every step would cost 100 times" in (
        batch.details
    )
    small = advised(T=2, H=4, I=4, O=4)
    assert small.method == "serial/compiled"
    assert "to start the threads 5 µs a call" in small.details
    one = advised(threads=1)
    assert (one.method, one.runner_up, one.close) == ("serial/compiled", "", "")
    assert one.sentence == 'On a-machine, with 1 thread: take `rnnpar.prepare(net, "serial/compiled")`.'
    assert one.details.endswith("With one thread there is nothing to share out.")


def test_a_close_runner_up_is_named():
    both = advice.Advice("m", 2, Work(1, 1, 1, 1, 1), {"threads/rows": 1.0, "threads/batch": 1.05}, "threads/rows",
                         "threads/batch", "")  # fmt: skip
    assert both.close == " threads/batch is predicted within 5.0%: try both."
    assert both.close in both.sentence


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"B": 0}, "B is 0: sizes are whole numbers of at least 1."),
        ({"H": 2.5, "T": -1}, "H is 2.5, T is -1"),
        ({"threads": 3}, "threads is 3; the peaks of a-machine tell of 1 to 2 threads."),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_impossible_sizes(sizes, said):
    with pytest.raises(ValueError, match=said):
        advised(**sizes)


WORK = Work(T=100, B=1, I=256, H=256, O=256)
FAST = dict(name="NVIDIA H100 80GB HBM3", refused={"numba_cuda/block": "does not fit"}, copies=1e-6)


def test_what_is_not_considered_and_why():
    said = "\n".join(advised().not_considered)
    assert not [name for name in AUTO if name in said.replace("serial/compiled does the same", "")]
    left_out = {row.name for row in registry.methods()} - set(AUTO)
    assert {name for line in said.splitlines() for name in line.split(": ")[0].split(", ")} == left_out
    assert "mpi/batch, mpi/pipeline, mpi/rows: for ranks on several machines" in said
    assert "the weights decide how many iterations they take" in said
    assert "cupy_gpu/cluster: no NVIDIA GPU here; `--gpu H100` predicts them for one" in said
    assert "threads/rows, threads/batch, threads/wavefront: with one thread" in "\n".join(
        advised(threads=1).not_considered
    )


def test_methods_of_your_own_are_not_considered(monkeypatch):
    monkeypatch.setattr(registry, "_own", {})
    registry.register("mine/silent", lambda net: None)
    registry.register("mine/counted", lambda net: net, predicts=lambda model, work, threads: 1.0)
    found = advised()
    assert found.seconds["mine/counted"] > 0
    assert {
        "mine/silent: registered without a formula, `predicts`",
        "mine/counted: predicted above, by your own formula",
    } < (set(found.not_considered))


def test_a_gpu_that_is_named_is_told_of_apart():
    found = advice.gpu_named("a100", WORK)
    assert found.name == "NVIDIA A100-SXM4-40GB"
    assert (found.here, found.measured) == (False, False)
    assert "predicted from data sheets and papers, not measured" in found.sentence
    best = min(found.seconds, key=found.seconds.__getitem__)
    assert f'There: `rnnpar.prepare(net, "{best}")`.' in found.sentence
    assert found.seconds[best] > found.copies > 0
    assert "2 blocks a cluster" in found.refused["cupy_gpu/cluster"]  # which an A100 does not have
    told = advice.advise(COSTS, WORK, 2, "m", found)
    assert told.method in AUTO
    assert not set(told.seconds) & set(found.seconds)
    assert any(line.startswith("cupy_gpu/cluster: does not fit: ") for line in told.not_considered)
    assert not any("no NVIDIA GPU here" in line for line in told.not_considered)


def test_what_a_gpu_cannot_hold():
    found = advice.gpu_named("T4", Work(T=1, B=1, I=1, H=100_000, O=1))
    assert found.seconds == {}
    assert found.sentence.endswith("No method can do it there.")
    assert set(found.refused.values()) == {
        "does not fit: a call needs 40,001,600,012 bytes of memory, and there are 17,179,869,184: on Tesla T4"
    }


def test_this_machines_gpu_joins_the_choice(monkeypatch):
    rows = [registry.Method(name, "", "") for name in ("cupy_gpu/cluster", "cupy_gpu/steps")]
    gone = registry.Method("numba_cuda/persistent", "", "", requires=(("no_such", "no-such"),))
    own = [row for row in registry.TABLE if not row.on_gpu]
    monkeypatch.setattr(registry, "TABLE", registry.Methods([*own, *rows, gone]))
    seconds = {"numba_cuda/persistent": 1e-6, "cupy_gpu/steps": 2e-6, "cupy_gpu/cluster": 3e-6}
    found = advice.advise(COSTS, WORK, 2, "m", advice.OnGpu(seconds=seconds, here=True, measured=True, **FAST))
    assert found.method == "cupy_gpu/cluster"  # "auto" never takes steps, and persistent cannot run
    assert found.call == 'rnnpar.prepare(net, "cupy_gpu/cluster")'
    assert found.details.endswith("Of that, 1 µs are copies.")
    assert {"numba_cuda/persistent: needs no-such: pip install no-such",
            "cupy_gpu/steps: predicted above, for comparison"} < set(found.not_considered)  # fmt: skip
    slow = advice.OnGpu(seconds={"cupy_gpu/cluster": 9.0}, here=True, **FAST)
    assert advice.advise(COSTS, WORK, 2, "m", slow).method == "threads/rows"


def test_a_named_gpu_that_is_the_one_here(monkeypatch):
    monkeypatch.setattr(machine, "gpu", lambda: {"name": "NVIDIA H100 80GB HBM3"})
    monkeypatch.setattr(model_gpu, "here", lambda: model_gpu.GpuModel(model_gpu.card("H100")))
    assert advice.gpu_named("H100", WORK) == advice.gpu_here(WORK)
    assert advice.gpu_here(WORK).here
    assert not advice.gpu_named("T4", WORK).here
    monkeypatch.setattr(machine, "gpu", dict)
    assert advice.gpu_here(WORK) is None


def test_bytes_of_a_call():
    assert advice.bytes_of(Work(T=2, B=3, I=5, H=7, O=11, layers=2)) == 4 * (
        7 * 5 + 7 * 7 + 2 * (7 * 7 + 7) + 11 * 7 + 11 + 2 * 3 * (5 + 11) + 2 * 3 * 7
    )


def test_cautions():
    assert advice.cautions(simple_peaks()) == advice.cautions({}) == []
    (said,) = advice.cautions(simple_peaks(barrier=1e-3))
    assert "other programs kept the cores busy" in said
