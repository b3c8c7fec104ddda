"""The process that measures: its answers, that it can be stopped, and what it says when something is wrong."""

from __future__ import annotations

import queue
import time

import numpy as np
import psutil
import pytest

from rnnpar import model, registry
from rnnpar.study import live, results
from rnnpar.study.live import Bench, Job, Message
from rnnpar.study.measure import Point

SMALL = Point("random", 8, 8, 8, 5, 2)


def test_a_job_from_beginning_to_end():
    messages = list(live.run(1, Job(SMALL, ("serial/naive", "serial/hoisted"), 1)))
    kinds = [message.kind for message in messages]
    assert kinds.count("measured") == 2
    assert "trace" not in kinds
    steps = [message.done for message in messages if message.kind == "progress"]
    assert steps == sorted(steps)
    assert all(message.done <= message.of for message in messages)
    found = next(message.data for message in messages if message.kind == "measured")
    assert found.status == "ok"
    assert found.error < 1e-5


def test_time_and_ranks_are_measured_too():
    assert live.options("in_time/segments", 2) == {"threads": 2}
    assert live.options("serial/naive", 2) == {}
    methods = ["in_time/segments"]
    if registry.find("mpi/rows").available:
        assert live.options("mpi/rows", 2) == {"ranks": 2, "threads": 1}
        methods.append("mpi/rows")
    found = [told.data for told in live.run(1, Job(SMALL, tuple(methods), 2)) if told.kind == "measured"]
    assert [(one.method, one.threads, one.status) for one in found] == [(m, 2, "ok") for m in methods]


def test_what_the_model_does_not_know_is_not_free():
    costs = results.cost_model(results.REFERENCE)
    one, other = (live.seconds_expected(costs, Job(Point("random", 2048, 2048, 2048, 1024, 256), (method,), 1))
                  for method in ("mpi/rows", "serial/compiled"))  # fmt: skip
    assert one == other > 10


def test_sizes_that_do_not_fit_are_not_tried():
    huge = Point("random", 4096, 4096, 4096, 10**6, 10**4)
    (message,) = live.run(1, Job(huge, ("serial/naive",), 1))
    assert message.kind == "error"
    assert "GB" in message.text
    assert live.too_large(SMALL) == ""
    assert live.too_large(SMALL, free=10.0) != ""


def test_the_expected_seconds_grow_with_the_sizes():
    costs = results.cost_model(results.REFERENCE)
    small, large = (
        live.seconds_expected(costs, Job(Point("random", H, H, H, 100, 1), ("serial/naive",), 1)) for H in (64, 1024)
    )
    assert 0 < small < large
    assert np.isnan(live.seconds_expected(None, Job(SMALL, ("serial/naive",), 1)))
    assert isinstance(costs, model.Model)


class Heard:
    """Collects what a bench reports."""

    def __init__(self):
        self.messages: queue.Queue[Message] = queue.Queue()
        self.bench = Bench(self.messages.put)

    def until(self, kind: str, seconds: float = 60) -> Message:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            message = self.messages.get(timeout=left)
            if message.kind == kind:
                return message
        raise AssertionError(f"no {kind} in {seconds} s")


@pytest.fixture(scope="module")
def heard():
    heard = Heard()
    yield heard
    pid = heard.bench._child.pid
    heard.bench.close()
    assert heard.bench._child is None
    assert not psutil.pid_exists(pid)


def test_a_bench_measures_stops_and_goes_on(heard: Heard):
    heard.bench.submit(Job(SMALL, ("serial/naive",), 1))
    assert heard.until("measured").method == "serial/naive"
    heard.until("end")
    assert not heard.bench.busy
    # A job of minutes: stopped, its process is gone and another one takes the next job.
    long = Point("random", 1024, 1024, 1024, 2000, 64)
    old = heard.bench._child._process
    heard.bench.submit(Job(long, ("serial/naive",), 1))
    heard.until("progress")
    begin = time.monotonic()
    heard.bench.stop()
    assert time.monotonic() - begin < 2
    old.wait(2)
    end = time.monotonic() + 60
    while not heard.bench._child.alive and time.monotonic() < end:  # another is made ready before it is asked
        time.sleep(0.05)
    assert heard.bench._child.alive
    number = heard.bench.submit(Job(SMALL, ("serial/hoisted",), 1))
    assert heard.until("measured").job == number
    # A newer job replaces one that does not listen, within the time of grace and that of a start.
    heard.bench.submit(Job(long, ("serial/naive",), 1))
    heard.until("progress")
    old = heard.bench._child.pid
    number = heard.bench.submit(Job(SMALL, ("serial/naive",), 1))
    assert heard.until("measured").job == number
    assert heard.bench._child.pid != old
    heard.until("end")


def test_a_process_that_dies_is_told(heard: Heard):
    heard.bench.submit(Job(Point("random", 512, 512, 512, 2000, 64), ("serial/naive",), 1))
    heard.until("progress")
    heard.bench._child._process.kill()
    assert "signal 9" in heard.until("error").text
    heard.until("end")
    assert not heard.bench.busy


def test_an_unknown_method_is_an_error_and_the_process_lives(heard: Heard):
    heard.bench.submit(Job(SMALL, ("serial/nothing",), 1))
    assert "unknown method" in heard.until("error").text
    heard.until("end")
    assert heard.bench._child.alive
