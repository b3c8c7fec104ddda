"""Timing one shape: what a measurement says, and that no time is kept that the oracle has not seen."""

from __future__ import annotations

import numpy as np
import pytest

import rnnpar
from rnnpar import registry
from rnnpar.study import corpus, measure
from rnnpar.study.measure import Point

POINT = Point("random", H=8, I=4, O=6, T=5, B=2)
METHODS = [("serial/naive", {}), ("serial/hoisted", {})]


def measured(methods=METHODS, point=POINT, samples=4, budget_s=1.0, **options):
    return measure.measure_group(point, methods, samples, budget_s, np.random.default_rng(0), **options)


class Fake:
    """A runner that answers rightly, in a time that the test chooses, or as its `spoil` says."""

    log: list[tuple[str, int]] = []  # noqa: RUF012
    info: dict[str, float] = {}  # noqa: RUF012

    def __init__(self, net, method, seconds=1.0, spoil=lambda call, y, h: None):
        self.net, self.method, self.seconds, self.spoil = net, method, seconds, spoil
        self.calls, self.closed = 0, False

    def timed(self, x, h0=None):
        y, h = (value.astype(np.float32) for value in rnnpar.reference(self.net, x, h0))
        self.spoil(self.calls, y, h)
        self.log.append((self.method, self.calls))
        self.calls += 1
        return self.seconds, y, h

    def close(self):
        self.closed = True


@pytest.fixture
def fake(monkeypatch):
    """Put a Fake, made with the options given here, in the place of every method; its runners, as they are made."""
    runners = []

    def use(**how):
        Fake.log = []

        def prepare(net, method, **_):
            runners.append(Fake(net, method, **how))
            return runners[-1]

        monkeypatch.setattr(measure, "prepare", prepare)
        return runners

    return use


def test_two_methods():
    found = measured()
    assert [one.method for one in found] == ["serial/naive", "serial/hoisted"]
    for one in found:
        assert (one.H, one.I, one.O, one.T, one.B, one.layers, one.threads) == (8, 4, 6, 5, 2, 1, 1)
        assert (one.status, one.message) == ("ok", "")
        assert one.seconds.keys() == {"steady"}
        assert len(one.seconds["steady"]) == 4
        assert min(one.first_call, *one.seconds["steady"]) > 0
        assert 0 <= one.error < 1e-6
        assert one.source == registry.find(one.method).source_hash()
    assert len({one.point for one in found}) == 2


def test_rounds_are_interleaved_and_shuffled(fake):
    fake()
    measured(samples=20, budget_s=1e9)
    timed = [method for method, call in Fake.log if call >= 2]  # 1 s a call: no more warming up, one call a sample
    rounds = [tuple(timed[start : start + 2]) for start in range(0, len(timed), 2)]
    assert len(rounds) == 20
    assert set(rounds) == {("serial/naive", "serial/hoisted"), ("serial/hoisted", "serial/naive")}


def test_a_short_call_is_repeated_within_a_sample(fake):
    runners = fake(seconds=1e-4)
    [one] = measured(METHODS[:1], samples=3)
    assert one.seconds["steady"] == pytest.approx([1e-4] * 3)
    assert runners[0].calls >= 2 + 3 * (1 + 10)  # 10 calls of 0.1 ms are 1 ms, and one settles before them


@pytest.mark.parametrize(("budget_s", "samples"), [(0.05, 3), (0.5, 5), (10, 9)])
def test_the_budget_bounds_the_samples(fake, budget_s, samples):
    fake(seconds=0.1)
    [one] = measured(METHODS[:1], samples=9, budget_s=budget_s)
    assert len(one.seconds["steady"]) == samples


def test_a_call_over_the_limit_is_sampled_once(fake):
    runners = fake(seconds=2.0)
    [one] = measured(METHODS[:1], samples=9, budget_s=100, limit_s=1.0)
    assert one.seconds == {"steady": [2.0]}
    assert runners[0].calls == 2


def test_an_inaccurate_method_is_not_timed(fake):
    def wrong(call, y, h):
        y *= 1.001

    runners = fake(spoil=wrong)
    [one] = measured(METHODS[:1])
    assert (one.status, one.seconds) == ("inaccurate", {})
    assert one.error == pytest.approx(1e-3, rel=1e-3)
    assert "relative error 0.001, over the bound of 1e-05" in one.message
    assert runners[0].closed


@pytest.mark.parametrize("value", [np.nan, 2.0])
def test_an_answer_that_goes_wrong_later_is_found(fake, value):
    def late(call, y, h):
        if call >= 3:
            h[0, 0, 0] = value

    fake(spoil=late)
    [one] = measured(METHODS[:1])
    assert one.status == "inaccurate"
    assert len(one.seconds["steady"]) == 1  # the one sample that was right is kept, as inaccurate
    assert np.isnan(one.error) or one.error > 1e-5


def test_other_bits_within_the_bound_are_checked_again(fake):
    def jitter(call, y, h):
        y *= np.float32(1 + 1e-6 * call)

    fake(spoil=jitter)
    [one] = measured(METHODS[:1])
    assert one.status == "ok"
    assert one.error == pytest.approx(4e-6, rel=0.1)  # the largest error of all checked answers


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (rnnpar.Unavailable("needs a GPU:\n buy one"), "unsupported", "needs a GPU: buy one"),
        (MemoryError("100 GB"), "oom", "MemoryError: 100 GB"),
        (ZeroDivisionError("division\nby zero"), "error", "ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.parametrize("when", [0, 1, 3])
def test_what_a_method_raises_is_told(fake, error, status, message, when):
    def fails(call, y, h):
        if call == when:
            raise error

    fake(spoil=fails)
    found = measured()
    assert [(one.method, one.status, one.message) for one in found] == [
        (method, status, message) for method, _ in METHODS
    ]
    assert all(one.first_call is None and not one.seconds for one in found)


def test_an_unknown_option_does_not_stop_the_others():
    found = measured([("serial/naive", {"threads": 2}), ("serial/hoisted", {})])
    assert {one.method: one.status for one in found} == {"serial/naive": "error", "serial/hoisted": "ok"}


def test_a_shape_that_the_oracle_cannot_hold(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(measure, "reference", full)
    assert [one.status for one in measured()] == ["oom", "oom"]


def test_no_steps_take_no_time():
    [one] = measured(METHODS[:1], Point("random", 8, 4, 6, T=0, B=2))
    assert one.status == "ok"
    assert set(one.seconds["steady"]) == {0.0}


def test_keys_tell_all_that_matters_apart():
    changes = [dict(workload="origin-large"), *({size: 99} for size in ("H", "I", "O", "T", "B", "layers"))]
    points = [POINT, *(Point(**(vars(POINT) | change)) for change in changes)]
    keys = {measure.key(point, method, threads) for point in points for method in ("a/b", "a/c") for threads in (1, 2)}
    assert len(keys) == len(points) * 4


@pytest.mark.parametrize(("name", "shape"), [("origin-large", (15, 1, 50)), ("origin-small", (50, 1, 120))])
def test_the_origins_workloads(name, shape):
    [point] = measure.named(name)
    net, x = measure.build(point)
    assert x.shape == shape
    assert (net.hidden_size, net.output_size) == {"origin-large": (50, 8_000), "origin-small": (120, 10_000)}[name]
    again, x_again = measure.build(point)
    assert np.array_equal(x, x_again)
    assert np.array_equal(net.V, again.V)


def test_trained_networks_read_held_out_text():
    for name in corpus.models():
        for point in measure.named(name):
            net, x = measure.build(point)
            assert (net.hidden_size, net.num_layers) == (point.H, point.layers)
            assert x.shape == (point.T, point.B, point.I)
            assert np.all(x.sum(axis=2) == 1)


def test_an_unknown_workload_lists_the_names(monkeypatch):
    monkeypatch.setattr(corpus, "models", lambda: {"kjv-h128": {}})
    with pytest.raises(ValueError, match=r"unknown workload 'origin'; .* random, .*, origin-small, kjv-h128"):
        measure.named("origin")


def test_revision_outside_git(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "PACKAGE", tmp_path)
    measure.revision.cache_clear()
    assert measure.revision() == ""
    measure.revision.cache_clear()
