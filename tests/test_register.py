"""Methods added at run time: they join the table, and leave it without a trace."""

from __future__ import annotations

import importlib.util
import math
import sys

import numpy as np
import pytest

import rnnpar
from rnnpar import registry
from rnnpar.model import Model
from rnnpar.study import measure, plot, results, store, sweep
from rnnpar.work import Work
from tests.conftest import assert_matches_oracle, random_input
from tests.test_model import simple_peaks


@pytest.fixture(autouse=True)
def _own(monkeypatch):
    """Whatever a test registers is gone after it."""
    monkeypatch.setattr(registry, "_own", {})


def right(net, threads, scale=1.0):
    """The oracle in float32, as a method with options."""

    def forward(x, h0):
        y, h = rnnpar.reference(net, x, h0)
        return (scale * y).astype(np.float32), h.astype(np.float32)

    forward.info = {"threads": threads}
    return forward


def wrong(net):
    return lambda x, h0: (np.full((*x.shape[:2], net.output_size), 0.5, np.float32), h0.copy())


def test_a_registered_method_is_one_of_the_methods():
    before = rnnpar.methods()
    row = rnnpar.register("mine/right", right, "nothing", "nothing")
    assert rnnpar.methods() == (*before, row)
    assert (row.backend, row.strategy, row.available) == ("mine", "right", True)
    assert "mine/right" in repr(rnnpar.methods())
    net = rnnpar.RNN.random(3, 5, 4)
    run = rnnpar.prepare(net, "mine/right", threads=1)
    assert_matches_oracle(run, random_input(net, 6, 2))
    assert run.info == {"threads": 1}
    assert rnnpar.prepare(net, "mine/right").options["threads"] >= 1  # no default: the cores allowed
    with pytest.raises(TypeError, match="mine/right takes no option size; it takes: threads, scale"):
        rnnpar.prepare(net, "mine/right", size=1)
    rnnpar.unregister("mine/right")
    assert rnnpar.methods() == before
    assert run(random_input(net, 1, 1))[0].shape == (1, 1, 4)  # what was prepared goes on
    with pytest.raises(ValueError, match="unknown method 'mine/right'"):
        rnnpar.prepare(net, "mine/right")


@pytest.mark.parametrize(
    ("returns", "error", "said"),
    [
        (lambda x, h0: x, TypeError, "the forward pass of mine/odd returned a ndarray; it must return y, h"),
        (lambda x, h0: None, TypeError, "the forward pass of mine/odd returned a NoneType"),
        (lambda x, h0: (h0, h0, h0), TypeError, "returned 3 values"),
        (lambda x, h0: ([1.0], h0), TypeError, r"returned y as a list; it must be a NumPy array \(6, 2, 4\)"),
        (lambda x, h0: (h0, h0), ValueError, r"y as \(1, 2, 5\) of float32; it must be \(6, 2, 4\) of float32"),
        (lambda x, h0: (np.zeros((6, 2, 4)), h0), ValueError, r"y as \(6, 2, 4\) of float64"),
        (lambda x, h0: (np.zeros((6, 2, 4), np.float32), h0[0]), ValueError, r"h as \(2, 5\) of float32"),
    ],
)
def test_what_a_method_of_your_own_returns_is_looked_at(returns, error, said):
    rnnpar.register("mine/odd", lambda net: returns)
    net = rnnpar.RNN.random(3, 5, 4)
    with pytest.raises(error, match=said):
        rnnpar.prepare(net, "mine/odd")(random_input(net, 6, 2))


def test_a_forward_pass_in_place_of_a_method():
    net = rnnpar.RNN.random(3, 5, 4)
    rnnpar.register("mine/passed", right(net, 1))  # the pass of one network, where what makes it was meant
    with pytest.raises(TypeError, match=r"mine/passed needs a value for h0, as in prepare\(net, 'mine/passed', h0="):
        rnnpar.prepare(net, "mine/passed")
    rnnpar.register("mine/nothing", lambda net: None)
    with pytest.raises(TypeError, match="mine/nothing returned a NoneType for the network; it must return the forward"):
        rnnpar.prepare(net, "mine/nothing")
    with pytest.raises(TypeError, match="parallelises is a int; it must be some words"):
        rnnpar.register("mine/words", right, 3)


def test_registering_again_replaces_and_has_a_source_of_its_own(function):
    one = rnnpar.register("mine/first", function("one", "a = 1"))
    assert measure.source("mine/first") == one.source_hash()
    two = rnnpar.register("mine/first", function("two", "a = 2"))
    assert measure.source("mine/first") == two.source_hash() != one.source_hash()
    same = rnnpar.register("mine/second", function("three", "a = 1"))
    assert same.source_hash() == one.source_hash()
    assert [row.name for row in rnnpar.methods() if row.backend == "mine"] == ["mine/first", "mine/second"]


@pytest.fixture
def function(tmp_path, monkeypatch):
    """function(name, line): the function `method` of a module of that name, which also holds the line."""
    return lambda name, line: _function(tmp_path / f"{name}.py", line, monkeypatch)


def _function(path, line, monkeypatch):
    path.write_text(f"{line}\n\ndef method(net):\n    return None\n")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, path.stem, module)
    return module.method


@pytest.mark.parametrize("name", ["mine", "Mine/first", "mine/first/second", "mine/", "../up", "mine/a b", 3, ""])
def test_a_name_that_is_none(name):
    with pytest.raises(ValueError, match="it must be 'backend/strategy' in small letters"):
        rnnpar.register(name, wrong)


@pytest.mark.parametrize("name", ["serial/naive", "serial/mine", "threads/rows"])
def test_what_the_package_brings_is_never_replaced(name):
    with pytest.raises(ValueError, match="are the package's own: take another"):
        rnnpar.register(name, wrong)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "function is a int; it must be a function"),
        (lambda: None, "must take the network as its first parameter"),
        (lambda *nets: None, "must take the network as its first parameter"),
        (lambda net, *rest: None, "options have a name each"),
        (lambda net, **rest: None, "options have a name each"),
    ],
)
def test_a_function_that_is_no_method(value, said):
    with pytest.raises(TypeError, match=said):
        rnnpar.register("mine/first", value)
    assert "mine/first" not in [row.name for row in rnnpar.methods()]


def test_a_source_that_cannot_be_read():
    space = {}
    exec("def method(net): pass", space)
    with pytest.raises(ValueError, match="define it in a file or a notebook"):
        rnnpar.register("mine/first", space["method"])


def test_only_what_was_registered_is_taken_out():
    with pytest.raises(ValueError, match="'serial/naive' was not registered; what was: nothing"):
        rnnpar.unregister("serial/naive")


def test_the_model_asks_its_formula():
    rnnpar.register("mine/right", right, predicts=lambda model, work, threads: work.T * threads * 1e-3)
    rnnpar.register("mine/wrong", wrong)
    costs, work = Model(simple_peaks(), 32), Work(T=10, B=1, I=1, H=1, O=1)
    assert costs.predict("mine/right", work, 2) == pytest.approx(0.02)
    assert math.isnan(costs.predict("mine/wrong", work))
    with pytest.raises(TypeError, match="predicts is a float; it must be a function"):
        rnnpar.register("mine/right", right, predicts=1.0)


def test_the_sweep_measures_it_stores_it_and_skips_it_until_its_source_changes(tmp_path, monkeypatch, function):
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    monkeypatch.setattr(sweep.peaks, "here", dict)
    rnnpar.register("mine/right", right)
    rnnpar.register("mine/wrong", wrong)
    profile = dict(experiment="mine", grids=[{"H": [4], "T": [3], "B": [1]}], threads=[1], samples=3,
                   methods=["mine/right", "mine/wrong", "serial/naive"], budget_s=0.1, limit_s=1.0, seed=0)  # fmt: skip
    sweep.run([profile])
    frame = store.load("mine", sweep.machine.name())
    status = frame.groupby("method")["status"].unique().map(list).to_dict()
    assert status == {"mine/right": ["ok"], "mine/wrong": ["inaccurate"], "serial/naive": ["ok"]}
    assert not sweep.remaining(sweep.plan(profile), store.newest("mine"))
    rnnpar.register("mine/wrong", function("other", "a = 3"))
    (left,) = sweep.remaining(sweep.plan(profile), store.newest("mine")).values()
    assert left == [("mine/wrong", {})]
    drawn = plot.lines(results.table(frame, "mine"), "H")
    assert "mine/wrong: too inaccurate to count" in [text.get_text() for text in drawn.texts]
