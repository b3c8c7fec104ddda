"""Advice: the model's choice, its runner-up and the reason, in words."""

from __future__ import annotations

import pytest

from rnnpar import advice
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


def test_cautions():
    assert advice.cautions(simple_peaks()) == advice.cautions({}) == []
    (said,) = advice.cautions(simple_peaks(barrier=1e-3))
    assert "other programs kept the cores busy" in said
