"""Cores that are not whole: the question, and what becomes of samples taken on them."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from rnnpar import machine, peaks
from rnnpar.study import measure, peers, results, scan_probe, store
from rnnpar.study.cores import FEW, SHARED, SIZE, Cores, count, usual_meeting, usual_seconds
from rnnpar.study.measure import Point

POINT = Point("random", H=8, I=4, O=6, T=5, B=2)
METHODS = [("serial/naive", {}), ("serial/hoisted", {})]


@pytest.fixture
def two(monkeypatch):
    """A machine with two cores, or told that it has; each of them one of its own, or so the system says."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("threads cannot be given a core here")
    here = os.sched_getaffinity(0)
    monkeypatch.setattr(machine, "cores_allowed", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: sorted(here)[:2] if len(here) > 1 else [*here, *here])
    monkeypatch.setattr(peaks, "separate", lambda: True)


allowed = getattr(os, "sched_getaffinity", None)  # the real one


def test_each_thread_computes_on_a_core_of_its_own(two):
    found = Cores()
    assert found.known
    where = [thread.submit(allowed, 0).result() for thread in found._threads]
    assert where == [{core} for core in os.sched_getaffinity(0)]
    assert found._seconds(1) > 0
    assert found._meeting() > 0
    assert isinstance(found.whole(), bool)


@pytest.mark.parametrize(
    ("alone", "together", "meetings", "whole"),
    [
        ([1.0], [1.1], [0.1], True),
        ([1.0] * 3, [2.0] * 3, [], False),
        ([1.0] * 3, [2.0, 2.0, 1.2], [0.1], True),
        ([1.3] * 3, [], [], False),  # slower than usual, and so no matter how all together are
        ([1.3, 1.1], [1.2], [0.1], True),
        ([1.1] * 3, [1.6] * 3, [], False),  # one of them is, though not by half
        ([1.0] * 3, [1.1] * 3, [0.3] * 3, False),  # far apart
        ([1.0] * 2, [1.1] * 2, [0.3, 0.1], True),
    ],
)
def test_the_best_of_three_tries_counts(two, monkeypatch, alone, together, meetings, whole):
    found = Cores()
    found._usual, found._repeat, found._usual_meeting = {1: 0.5, 2: 0.6}, 2, 0.1
    monkeypatch.setattr(found, "_seconds", lambda cores: (alone if cores == 1 else together).pop(0))
    monkeypatch.setattr(found, "_meeting", lambda: meetings.pop(0))
    assert found.whole() is whole
    assert alone == together == meetings == []


def test_what_is_usual_is_what_the_peaks_say(tmp_path, monkeypatch):
    file = tmp_path / "peaks.json"
    monkeypatch.setattr(peaks, "file", lambda: file)
    assert usual_seconds(1) == usual_meeting() == np.inf
    points = [[SIZE, 1, 1e-7], [SIZE, SIZE, 2e-6], [2 * SIZE, SIZE, 8e-6]]
    found = {
        "version": peaks.VERSION,
        "products": {"1": points, "2": [[SIZE, SIZE, 3e-6]]},
        "exchange": {"2": [1e-7, 1e-9]},
    }
    file.write_text(json.dumps(found))
    assert [usual_seconds(n) for n in (1, 2, 3)] == [2e-6, 3e-6, np.inf]
    assert usual_meeting() == pytest.approx(1e-7 + SIZE * 1e-9)
    file.write_text(json.dumps(found | {"version": peaks.VERSION - 1}))  # they are about to be measured anew
    assert usual_seconds(1) == usual_meeting() == np.inf
    file.write_text(json.dumps({"version": peaks.VERSION}))  # one that says nothing of them
    assert usual_seconds(1) == usual_meeting() == np.inf


@pytest.mark.parametrize("what", ["one core", "halves by name"])
def test_where_nothing_can_be_told_no_question_is_asked(monkeypatch, what):
    if what == "one core":
        monkeypatch.setattr(machine, "cores_allowed", lambda: 1)
    else:
        monkeypatch.setattr(peaks, "separate", lambda: False)
    found = Cores()
    assert not found.known
    assert found.whole()


def test_few_samples_count_all_the_same():
    assert count([1, 2, 3], []) == ([1, 2, 3], "")
    assert count([1, 2, 3], [9, 9]) == ([1, 2, 3], f"{SHARED}: 2 samples left out")
    assert count([1, 2], [9]) == ([1, 2, 9], f"{SHARED}: 1 of 3 {FEW}")


def test_a_round_on_shared_cores_is_taken_again(cores):
    cores.answers[:] = [True, True, False, True, True, True, True]  # the 2nd round ends on shared ones, the 3rd begins
    found = measure.measure_group(POINT, METHODS, 4, 1.0, np.random.default_rng(0))
    assert [len(one.seconds["steady"]) for one in found] == [4] * 2
    assert {one.message for one in found} == {f"{SHARED}: 2 samples left out"}
    assert cores.asked == 1 + 6


def test_where_cores_are_never_whole_it_ends_and_says_so(cores):
    cores.answers[:] = [False] * 100
    found = measure.measure_group(POINT, METHODS, 4, 1.0, np.random.default_rng(0))
    assert [len(one.seconds["steady"]) for one in found] == [8] * 2  # twice the rounds
    assert {(one.status, one.message) for one in found} == {("ok", f"{SHARED}: 8 of 8 {FEW}")}


def test_a_method_that_fails_in_a_round_set_aside_stays_failed(cores, monkeypatch):
    cores.answers[:] = [False] * 100
    real = measure.Trial.sample

    def fails(self, problem):
        real(self, problem)
        if self.method == "serial/naive":
            self.fail(RuntimeError("lost"))

    monkeypatch.setattr(measure.Trial, "sample", fails)
    found = measure.measure_group(POINT, METHODS, 4, 1.0, np.random.default_rng(0))
    assert [one.status for one in found] == ["error", "ok"]
    assert [len(one.seconds.get("steady", [])) for one in found] == [0, 8]


def test_the_scans_rounds_are_taken_again(cores):
    cores.answers[:] = [True, False]
    found = scan_probe.measure_scans(rounds=3, T=256, H=8)
    assert {len(one.seconds["steady"]) for one in found} == {3}
    assert {one.message for one in found} == {f"segments={scan_probe.SEGMENTS}; {SHARED}: 1 sample left out"}


def test_rounds_of_bursts_are_taken_again_for_all(cores):
    cores.answers[:] = [True, True, False]  # before each of two, and after the round
    found = measure.measure_group(POINT, METHODS, 3, 1.0, np.random.default_rng(0), 10.0, peers.Burst)
    assert {one.status for one in found} == {"ok"}
    assert {len(one.seconds["steady"]) for one in found} == {3}
    assert {one.message.split("; ")[-1] for one in found} == {f"{SHARED}: 1 sample left out"}


def test_a_chapter_says_where_samples_on_shared_cores_count(cores):
    cores.answers[:] = [False] * 100
    found = measure.measure_group(POINT, METHODS, 4, 1.0, np.random.default_rng(0))
    runs = results.table(store.frame(found, "a-machine"))
    assert "In 2 of them fewer than 3 samples are from whole cores" in results.banner(runs).data
    assert "whole cores" not in results.banner(runs.assign(message="")).data
