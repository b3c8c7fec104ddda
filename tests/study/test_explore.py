"""explore's logic, without a browser: sizes from text, pictures, answers, and the widgets' callbacks."""

from __future__ import annotations

import html
import time

import numpy as np
import pytest

from rnnpar import model, registry
from rnnpar.kernels.trace import STEPS, WAIT, Span, Trace
from rnnpar.study import explore, live, results
from rnnpar.study.explore import Explorer, Setting, measured
from rnnpar.study.store import Measurement


@pytest.fixture(scope="module")
def costs() -> model.Model:
    return results.cost_model(results.REFERENCE)


@pytest.fixture
def explorer(costs, monkeypatch):
    monkeypatch.setattr(results, "cost_model", lambda name="": costs)
    explorer = Explorer(measure=False)
    yield explorer
    explorer.close()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("H=512", dict(H=512, T=128, B=1, I=512, O=512, layers=1)),
        (explore.EXAMPLE, dict(H=512, T=100, B=8, I=64, O=1000, layers=2)),
        ("hidden_size: 64; batch_size: 3\nnum_layers = 2", dict(H=64, T=128, B=3, I=64, O=64, layers=2)),
        ("RNN(input_size=10, hidden_size=1_024)", dict(H=1024, T=128, B=1, I=10, O=1024, layers=1)),
    ],
)
def test_sizes_from_text(text, wanted):
    assert explore.parse_sizes(text) == wanted


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "no H"), ("H=0", "at least 1"), ("H=many", "whole number"), ("H=3 colour=4", "no size"), ("T=5", "no H"),
     ("H=2.5", "whole number"), ("H=-4", "at least 1")],
)  # fmt: skip
def test_text_that_is_no_sizes(text, says):
    with pytest.raises(ValueError, match=says) as error:
        explore.parse_sizes(text)
    assert explore.EXAMPLE in str(error.value)


def test_the_models_line_is_the_models(costs):
    setting = Setting(threads=2)
    lines = explore.predicted(costs, setting, "H")
    sizes, seconds = lines["threads/rows"]
    assert sizes == list(explore.SIZES["H"])
    at = sizes.index(256)
    assert seconds[at] == costs.predict("threads/rows", setting.work, 2) / setting.T


def one(*seconds: float, method: str = "threads/rows", status: str = "ok", message: str = "") -> Measurement:
    return Measurement(
        point="p", workload="random", method=method, H=256, I=256, O=256, T=128, B=1, layers=1, threads=2,
        first_call=9.0 if seconds else None, seconds={"steady": list(seconds)} if seconds else {}, error=1e-7,
        status=status, message=message, source="s", revision="r", date="2026-11-23",
    )  # fmt: skip


def test_a_measured_point_and_one_that_failed():
    good = measured(one(1e-3, 3e-3, 2e-3))
    assert good.seconds == 2e-3
    bad = measured(one(status="oom", message="MemoryError: <no room>"))
    assert np.isnan(bad.seconds)
    said = explore.answer(None, Setting(methods=("threads/rows",)), {Setting().key("threads/rows"): bad})
    assert "does not fit" in said
    assert "&lt;no room&gt;" in said


def test_the_answer_compares_and_names_noise(costs):
    setting = Setting(threads=2)
    first, other = (setting.key(method) for method in setting.methods)
    fast = measured(one(1e-4, 1e-4))
    slow, level = (measured(one(time, time, method=other[0])) for time in (2e-4, 1e-4))
    said = explore.answer(costs, setting, {first: fast, other: slow})
    assert "threads/rows is 2 times as fast as serial/compiled." in said.replace("2.0", "2").replace("2.00", "2")
    assert "predicted" in said
    assert "within the noise" in explore.answer(costs, setting, {first: fast, other: level})


@pytest.mark.parametrize("axis", explore.AXES)
def test_the_picture_along_every_axis(costs, axis):
    setting = Setting(threads=2)
    found = {setting.key("threads/rows"): measured(one(2e-4, 3e-4))}
    figure = explore.picture(costs, setting, axis, found)
    (ax,) = figure.axes
    ringed = [line for line in ax.lines if line.get_markersize() == 11]
    assert [list(line.get_ydata()) for line in ringed] == [[pytest.approx(1e6 * 2.5e-4 / 128)]]
    assert explore.png(figure)[:4] == b"\x89PNG"


def test_the_picture_without_peaks_says_so():
    figure = explore.picture(None, Setting(), "H", {})
    assert "peaks" in figure.axes[0].texts[0].get_text()


def traced() -> Trace:
    spans = [
        Span(rank, what, begin * 1e-6, (begin + 1) * 1e-6)
        for rank in range(2)
        for begin, what in enumerate([STEPS, WAIT] * 40)
    ]
    return Trace(tuple(spans), 2, 90e-6, 0)


def test_the_timeline_shows_waits_and_shares():
    trace = traced()
    begin, end = explore.close_up(trace)
    assert 0 < begin < end < trace.seconds
    figure = explore.timeline({"threads/rows": trace}, Setting())
    assert len(figure.axes) == 2
    assert all(ax.collections for ax in figure.axes)
    said = explore.told({"threads/rows": trace})
    assert "thread 1: W h and tanh 44%, waiting 44%, nothing to do 11%" in said
    assert explore.png(explore.timeline({}, Setting()))


def test_a_slider_answers_and_leaves_the_old_run(explorer):
    before = explorer.chart.value
    begin = time.perf_counter()
    explorer.sliders["H"].value = 1024
    assert time.perf_counter() - begin < 2  # 300 ms on a machine with nothing else to do
    assert explorer.chart.value != before
    assert "H = 256" not in explorer.answer.value
    assert explorer.setting.H == 1024
    assert explorer.job().point.H == 1024


def test_messages_become_points_and_timelines(explorer):
    explorer.bench.submit = lambda job: None
    explorer.measure()
    assert not explorer.stop_button.disabled
    number = explorer.bench.number
    explorer._heard(live.Message(number, "progress", "measuring <b>", 1, 4))
    assert explorer.progress.value == 0.25
    assert "&lt;b&gt;" in explorer.status.value
    explorer._heard(live.Message(number, "measured", method="threads/rows", data=one(2e-4)))
    assert "measured" in explorer.answer.value
    explorer._heard(live.Message(number, "trace", method="threads/rows", data=traced()))
    assert "What each thread did" in explorer.lanes.value
    explorer._heard(live.Message(number, "end"))
    assert explorer.stop_button.disabled
    explorer.sliders["B"].value = 8
    assert explorer.lanes.value == ""  # that timeline was of other sizes


def test_errors_are_shown(explorer, monkeypatch):
    explorer.bench.submit = lambda job: None
    explorer.measure()
    explorer._heard(live.Message(explorer.bench.number, "error", "the process died"))
    assert 'role="alert"' in explorer.status.value
    assert "the process died" in explorer.status.value
    monkeypatch.setattr(explore, "picture", lambda *arguments: 1 / 0)
    explorer.sliders["H"].value = 64
    assert "ZeroDivisionError" in explorer.status.value


def test_a_stale_message_is_not_heard(explorer):
    explorer.bench.submit = lambda job: None
    explorer.measure()
    explorer.sliders["H"].value = 64  # the run is left off
    explorer._heard(live.Message(explorer.bench.number, "measured", method="threads/rows", data=one(1.0)))
    assert explorer.results == {}


def test_long_measurements_wait_for_the_button(explorer, monkeypatch):
    monkeypatch.setattr(live, "seconds_expected", lambda *arguments: 60.0)
    explorer._rested()
    assert "press Measure" in explorer.status.value
    assert explorer.stop_button.disabled


def test_advice_and_what_it_does_not_understand(explorer):
    explorer.pasted.value = "H=512, T=100"
    (output,) = explorer.advice.outputs
    assert "rnnpar.prepare(net," in output["data"]["text/markdown"]
    explorer.pasted.value = "what?"
    assert "Not understood" in explorer.advice.outputs[0]["data"]["text/markdown"]


def test_where_a_page_is_only_read_the_picture_stays(explorer):
    bundle = explorer._repr_mimebundle_()
    assert bundle["image/png"]
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_compare_with_itself_is_one_method(explorer):
    explorer.other.value = explorer.method.value
    assert len(explorer.setting.methods) == 1
    explorer.other.value = explore.NONE
    assert len(explorer.setting.methods) == 1
    assert np.isfinite(live.seconds_expected(explorer.costs, explorer.job()))


def test_every_method_is_offered_or_said_why_not(explorer):
    for method in registry.methods():
        if method.backend != "peers":
            said = method.name in explorer.missing.value
            assert (method.name in explorer.method.options) == method.available != said
            assert html.escape(method.why_not) in explorer.missing.value
    assert explore.not_here({}) == ""
    said = explore.not_here({"a/one": "no <GPU>", "a/two": "no <GPU>"})
    assert "2 methods" in said
    assert "<code>a/one</code>, <code>a/two</code>: no &lt;GPU&gt;" in said


def test_methods_that_share_their_work_take_the_slider():
    setting = Setting(threads=2)
    taken = {method: setting.threads_of(method) for method in ("in_time/segments", "mpi/rows", "serial/compiled")}
    assert taken == {"in_time/segments": 2, "mpi/rows": 2, "serial/compiled": 1}
