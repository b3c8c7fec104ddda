"""The widgets of explore.ipynb: move a slider, see the model's answer at once and the measured one soon after.

The first half is plain functions (sizes, words, pictures); `Explorer`, the second half, ties them to widgets. Measuring
is done in another process (rnnpar/study/live.py), so that the sliders never wait for it and it can be stopped.

Letters: T steps, B sequences side by side, I input, H hidden, O output size. A step's time is a call's over T.
"""

from __future__ import annotations

import asyncio
import base64
import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import ipywidgets as widgets
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rnnpar import machine, model, registry
from rnnpar.kernels.trace import DONE, STEPS, WAIT, WORDS, Trace
from rnnpar.study import live, plot, results, store, which
from rnnpar.study.measure import Point
from rnnpar.words import duration, percent, ratio, short

SIZES = {  # what each slider offers
    "H": (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048),
    "T": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    "B": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "layers": (1, 2, 3, 4, 6, 8),
}
AXES = (*SIZES, "threads")
START = {"H": 256, "T": 128, "B": 1, "layers": 1}
SETTLE_S = 0.5  # a slider that has rested for so long is worth a measurement
LONG_S = 8.0  # predicted measurements longer than this wait for the button
BUSY = 5  # times the prediction: so far off, the machine is rather busy than the model wrong
NONE = "none"
SHARING = ("threads", "in_time", "mpi")  # backends that take threads or ranks
COLOURS = ("#56b4e9", "#0072b2", "#009e73", "#e69f00")  # of U x, W h, V h and waiting
HATCHES = ("", "", "", "////")  # waiting is told apart without colours, too


# --- sizes, typed or pasted ------------------------------------------------------------------------------------------

NAMES = {
    "h": "H", "hidden": "H", "hidden_size": "H", "t": "T", "steps": "T", "seq_len": "T", "length": "T", "b": "B",
    "batch": "B", "batch_size": "B", "sequences": "B", "i": "I", "input": "I", "input_size": "I", "o": "O",
    "output": "O", "output_size": "O", "outputs": "O", "out_features": "O", "l": "layers", "layers": "layers",
    "num_layers": "layers",
}  # fmt: skip
EXAMPLE = "H = 512, T = 100, B = 8, I = 64, O = 1000, layers = 2"


def parse_sizes(text: str) -> dict[str, int]:
    """Sizes from text such as "H=512, T=100" or "hidden_size=512 batch=8": H, T, B, I, O, layers.

    What is not named: I and O are H, B and layers are 1, T is 128. ValueError says what could not be read, and an
    example of what can.
    """
    found: dict[str, int] = {}
    for name, value in re.findall(r"([A-Za-z_]+)\s*[=:]\s*([^\s,;)]+)", text):
        letter = NAMES.get(name.lower())
        if letter is None:
            raise ValueError(f"{name} is no size; sizes are H, T, B, I, O and layers, as in: {EXAMPLE}")
        digits = value.replace("_", "")
        if not digits.isdigit() or int(digits) < 1:
            raise ValueError(f"{name} is {value}; it must be a whole number of at least 1, as in: {EXAMPLE}")
        found[letter] = int(digits)
    if "H" not in found:
        raise ValueError(f"there is no H (the hidden size) in it; write, for example: {EXAMPLE}")
    return {"T": 128, "B": 1, "I": found["H"], "O": found["H"], "layers": 1} | found


# --- what the model says ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What the sliders say. Input and output are as large as the hidden state."""

    H: int = START["H"]
    T: int = START["T"]
    B: int = START["B"]
    layers: int = START["layers"]
    threads: int = 1
    methods: tuple[str, ...] = ("threads/rows", "serial/compiled")

    @property
    def point(self) -> Point:
        return Point("random", self.H, self.H, self.H, self.T, self.B, self.layers)

    @property
    def work(self) -> model.Work:
        return model.Work(T=self.T, B=self.B, I=self.H, H=self.H, O=self.H, layers=self.layers)

    def at(self, axis: str, size: int) -> Setting:
        return replace(self, **{axis: size})

    def threads_of(self, method: str) -> int:
        """The threads or ranks that a method uses: one, unless it shares its work among them."""
        return self.threads if method.partition("/")[0] in SHARING else 1

    def key(self, method: str) -> tuple:
        """What tells a measured point from the others."""
        return method, self.H, self.T, self.B, self.layers, self.threads_of(method)


def sizes_along(axis: str) -> Sequence[int]:
    """The sizes of an axis of the picture: a slider's, or the threads that may be used."""
    return range(1, machine.cores_allowed() + 1) if axis == "threads" else SIZES[axis]


def predicted(costs: model.Model, setting: Setting, axis: str) -> dict[str, tuple[list[int], list[float]]]:
    """The model's line of each method along an axis, all else as set: sizes, and seconds a step."""
    lines = {}
    for method in setting.methods:
        settings = [setting.at(axis, size) for size in sizes_along(axis)]
        seconds = [costs.predict(method, s.work, s.threads_of(method)) / s.T for s in settings]
        if all(map(math.isfinite, seconds)):
            lines[method] = [getattr(s, axis) for s in settings], seconds
    return lines


Results = Mapping[tuple, Any]  # a setting's key -> the row of study.results that was measured there


def measured(found: store.Measurement) -> Any:
    """A measurement as a row of study.results."""
    return next(results.table(store.frame([found], machine.name())).itertuples())


def answer(costs: model.Model | None, setting: Setting, found: Results) -> str:
    """What the picture shows, in HTML: a line a method, and how two of them compare."""
    lines = []
    for method in setting.methods:
        row = found.get(setting.key(method))
        guess = costs.predict(method, setting.work, setting.threads_of(method)) if costs else math.nan
        parts = [f"predicted {duration(guess / setting.T)} a step"] if math.isfinite(guess) else []
        if row and row.seconds > 0:
            parts.append(f"<b>measured {duration(row.seconds / setting.T)} a step</b>")
            if math.isfinite(guess):
                far = "; do other programs keep the cores busy?" if row.seconds > BUSY * guess else ""
                parts.append(f"{ratio(row.seconds / guess)} times the prediction{far}")
            parts.append(f"{duration(row.seconds)} a call, {short(1e6 * row.error)} millionths from the oracle")
        elif row:
            why = plot.STATUS.get(row.status, row.status)
            parts.append(f"<b>{html.escape(why)}</b>: {html.escape(row.message)}")
        else:
            parts.append("not measured yet")
        lines.append(f"<code>{method}</code>: {'; '.join(parts) or 'the model knows nothing of it'}.")
    return "<br>".join([*lines, *_comparison(setting, found)])


def _comparison(setting: Setting, found: Results) -> list[str]:
    pair = pd.DataFrame([row for method in setting.methods if (row := found.get(setting.key(method)))])
    if len(pair) < 2:
        return []
    one, other = setting.methods[:2]
    for factor in results.speed_up(pair, over=other).dropna(subset="speed_up").itertuples():
        noise = " (within the noise)" if factor.speed_up_low <= 1 <= factor.speed_up_high else ""
        return [f"<b>{one} is {ratio(factor.speed_up)} times as fast as {other}{noise}.</b>"]
    return []


def not_here(reasons: Mapping[str, str]) -> str:
    """Which methods cannot run here, and why not, in HTML that opens on a click; empty where all can."""
    if not reasons:
        return ""
    methods: dict[str, list[str]] = {}
    for method, reason in reasons.items():
        methods.setdefault(reason, []).append(f"<code>{method}</code>")
    lines = "".join(f"<li>{', '.join(names)}: {html.escape(reason)}</li>" for reason, names in methods.items())
    style = "max-width:30em;line-height:1.4;white-space:normal"
    return (
        f'<details style="{style}"><summary>{len(reasons)} methods do not run here</summary><ul>{lines}</ul></details>'
    )


# --- pictures --------------------------------------------------------------------------------------------------------


def picture(costs: model.Model | None, setting: Setting, axis: str, found: Results, name: str = "") -> Figure:
    """The model's lines along an axis, and every point that was measured on them; the present one is ringed.

    `name`: the machine whose costs these are, this one by default.
    """
    held = {name: getattr(setting, name) for name in ("H", "T", "B", "layers") if name != axis}
    said = ", ".join(f"{name} = {value:,}" for name, value in held.items())
    threads = "" if axis == "threads" else f", {setting.threads} thread{'s' * (setting.threads > 1)}"
    text = f"{said}, I = O = H{threads}.\nDashed: the model, before anything is run. Points: measured here and now."
    ax = plot.panels("Time of a step", text, height=3.1)
    plot.sign(ax.figure, name or machine.name())
    lines = predicted(costs, setting, axis) if costs else {}
    sizes = list(sizes_along(axis))
    points = {
        (method, size): row for method in setting.methods for size in sizes
        if (row := found.get(setting.at(axis, size).key(method))) and row.seconds > 0
    }  # fmt: skip
    times = [1e6 * second for _, seconds in lines.values() for second in seconds]
    times += [row.us_per_step for row in points.values()]
    if not times:
        plot.nothing(ax, "the model has no peaks of this machine yet; they are measured first")
        return ax.figure
    plot.size_axis(ax, sizes, axis)
    ax.set_ylim(min(times) / 1.5, max(times) * 1.5)
    plot.log_axis(ax.yaxis, suffix=" µs")
    here = getattr(setting, axis)
    ax.axvline(here, color=plot.FAINT, lw=6, zorder=0)
    ends = {}
    for method, (xs, seconds) in lines.items():
        ax.plot(xs, [1e6 * s for s in seconds], color=plot.look(method).colour, ls=plot.DASHES, lw=1.5, zorder=2)
        ends[method] = (xs[-1], 1e6 * seconds[-1], method, plot.look(method).colour)
    for (method, size), row in points.items():
        colour, marker = plot.look(method)
        ax.plot([size] * 2, [row.us_per_step_low, row.us_per_step_high], color=colour, lw=1.5, zorder=3)
        ringed = dict(ms=11, mew=1.6, mec=plot.INK) if size == here else dict(ms=7, mew=0.6, mec="white")
        ax.plot([size], [row.us_per_step], color=colour, marker=marker, zorder=4, **ringed)
        ends.setdefault(method, (size, row.us_per_step, method, colour))
    plot.label_ends(ax, list(ends.values()))
    return ax.figure


def timeline(traces: Mapping[str, Trace], setting: Setting) -> Figure:
    """What each thread did in a call, by the stamps of its kernels: all of it, and some steps of it from close by."""
    heights = [0.3 + 0.22 * trace.threads for trace in traces.values() for _ in range(2)] or [0.6]
    panels = plot.panels("What each thread did", "One call of median length: all of it above, a few steps from its "
                         "middle below.", len(heights), height=sum(heights) / len(heights) + 0.55, squeeze=False,
                         height_ratios=heights)[:, 0]  # fmt: skip
    figure = panels[0].figure
    plot.sign(figure, machine.name())
    if not traces:
        plot.nothing(panels[0], "no method with threads was measured at these sizes")
        return figure
    for (method, trace), whole, close in zip(traces.items(), panels[::2], panels[1::2], strict=True):
        _lanes(whole, trace, 0.0, trace.seconds)
        whole.set_title(f"{method}, the whole call", fontsize=9)
        begin, end = close_up(trace)
        for at in (begin, end):
            whole.axvline(1e6 * at, color=plot.INK, lw=0.7)
        _lanes(close, trace, begin, end)
        close.set_title("between the two lines", fontsize=9, weight="normal", color=plot.QUIET)
    panels[-1].set_xlabel("µs since the call began")
    kinds = [Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=word)
             for word, colour, hatch in zip(WORDS[:DONE], COLOURS, HATCHES, strict=True)]  # fmt: skip
    panels[0].legend(handles=kinds, ncols=4, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8.5, handlelength=1.4)
    return figure


def close_up(trace: Trace, steps: int = 6) -> tuple[float, float]:
    """A stretch from the middle of a call, in seconds: some steps of the thread that has most of them."""
    lanes: dict[int, list] = {}
    for span in trace.spans:
        if span.what == STEPS:
            lanes.setdefault(span.rank, []).append(span)
    longest = max(lanes.values(), key=len, default=[])
    if len(longest) <= 2 * steps:  # a few long spans: the middle tenth
        return 0.45 * trace.seconds, 0.55 * trace.seconds
    first = len(longest) // 2
    return longest[first].begin, longest[first + steps].begin


def _lanes(ax: Any, trace: Trace, begin: float, end: float) -> None:
    """A lane a thread, between two times."""
    for what, (colour, hatch) in enumerate(zip(COLOURS, HATCHES, strict=True)):
        for rank in range(trace.threads):
            bars = [
                (1e6 * max(span.begin, begin), 1e6 * (min(span.end, end) - max(span.begin, begin)))
                for span in trace.spans
                if span.rank == rank and span.what == what and span.end > begin and span.begin < end
            ]
            if bars:
                ax.broken_barh(_merged(bars, 1e6 * (end - begin) / 3000), (rank - 0.4, 0.8), facecolor=colour,
                               hatch=hatch if what == WAIT and len(bars) < 60 else "", edgecolor="white",
                               linewidth=0, snap=False)  # fmt: skip
    ax.set_xlim(1e6 * begin, 1e6 * end)
    ax.set_ylim(trace.threads - 0.5, -0.5)
    ax.set_yticks(range(trace.threads), [f"thread {rank}" for rank in range(trace.threads)])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(False)


def _merged(bars: Sequence[tuple[float, float]], least: float) -> list[tuple[float, float]]:
    """Bars with gaps that no picture could show closed, so that thousands of them are drawn fast."""
    merged = [list(bars[0])]
    for start, width in bars[1:]:
        if start - sum(merged[-1]) < least and start + width - merged[-1][0] < 4 * least:
            merged[-1][1] = start + width - merged[-1][0]
        else:
            merged.append([start, width])
    return [tuple(bar) for bar in merged]


def told(traces: Mapping[str, Trace]) -> str:
    """The timelines in HTML: of each thread, what took which share of the call."""
    lines = []
    for method, trace in traces.items():
        for rank, shares in trace.shares().items():
            spent = ", ".join(f"{word} {percent(share)}" for word, share in shares.items() if share >= 0.005)
            lines.append(f"<code>{method}</code>, thread {rank}: {spent}.")
        if trace.dropped:
            lines.append(f"{trace.dropped:,} later marks of it did not fit into the record.")
    return "<br>".join(lines)


def png(figure: Figure) -> bytes:
    """A figure as it goes to the page: sharp enough for a notebook's column, and drawn fast."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def image(figure: Figure) -> str:
    """A figure as HTML, with its title as the text for those who cannot see it."""
    data = base64.b64encode(png(figure)).decode()
    said = html.escape(figure.get_label(), quote=True)
    return f'<img alt="{said}" style="max-width:100%;background:white" src="data:image/png;base64,{data}">'


# --- widgets ---------------------------------------------------------------------------------------------------------


def _guarded(method: Callable[..., None]) -> Callable[..., None]:
    """Show what goes wrong in the widget: an exception in a callback would otherwise be lost."""

    @wraps(method)
    def call(self: Explorer, *arguments: Any) -> None:
        try:
            method(self, *arguments)
        except Exception as error:
            self.say(f"{type(error).__name__}: {error}", "error")

    return call


class Explorer:
    """Sliders, a picture that follows them, measurements in the background, timelines, and advice for pasted sizes.

    Display it, or its `box`. `setting` is what the sliders say, `results` what was measured, `traces` the latest
    timelines. `close` ends the process that measures.
    """

    def __init__(self, measure: bool = True):
        self.automatic = measure
        self.results: dict[tuple, Any] = {}
        self.traces: dict[str, Trace] = {}
        self.costs = results.cost_model()
        self._job: Setting | None = None
        self._later: asyncio.TimerHandle | None = None
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:  # outside a notebook
            self._loop = None
        self.bench = live.Bench(self._report)
        self._build()
        self._redraw()
        if measure:
            self.bench.start()
            self._rest()

    # what the reader sees

    def _build(self) -> None:
        cores = machine.cores_allowed()
        slider = dict(continuous_update=True, layout=widgets.Layout(width="30em", max_width="100%"), style=WIDE)
        labels = {"H": "hidden size H", "T": "time steps T", "B": "sequences B", "layers": "layers"}
        self.sliders = {
            name: widgets.SelectionSlider(options=[(f"{size:,}", size) for size in sizes], value=START[name],
                                          description=labels[name], **slider)
            for name, sizes in SIZES.items()
        }  # fmt: skip
        self.sliders["threads"] = widgets.SelectionSlider(
            options=list(range(1, cores + 1)), value=cores, description="threads or ranks", **slider
        )
        shown = [method for method in registry.methods() if method.backend in SHOWN]
        names = [method.name for method in shown if method.available]
        menu = dict(layout=widgets.Layout(width="24em", max_width="100%"), style=WIDE)
        first = "threads/rows" if cores > 1 else "serial/compiled"
        second = "serial/compiled" if cores > 1 else "serial/hoisted"
        self.method = widgets.Dropdown(options=names, value=first, description="method", **menu)
        self.other = widgets.Dropdown(options=[NONE, *names], value=second, description="compare with", **menu)
        self.axis = widgets.Dropdown(options=[(plot.LABELS[name], name) for name in AXES], value="H",
                                     description="draw along", **menu)  # fmt: skip
        self.measure_button = widgets.Button(description="Measure", icon="play", tooltip="Measure these sizes now")
        self.stop_button = widgets.Button(description="Stop", icon="stop", tooltip="Stop measuring", disabled=True)
        self.progress = widgets.FloatProgress(min=0, max=1, layout=widgets.Layout(width="12em"))
        self.status = widgets.HTML()
        self.chart, self.answer = widgets.HTML(), widgets.HTML()
        self.lanes, self.shares = widgets.HTML(), widgets.HTML()
        for widget in (*self.sliders.values(), self.method, self.other):
            widget.observe(self._changed, "value")
        self.axis.observe(lambda change: self._redraw(), "value")
        self.measure_button.on_click(lambda button: self.measure())
        self.stop_button.on_click(lambda button: self.stop())
        row = widgets.Layout(flex_flow="row wrap", align_items="center")
        self.missing = widgets.HTML(not_here({method.name: method.why_not for method in shown if method.why_not}))
        menus = [self.method, self.other, self.axis, self.missing]
        controls = [widgets.VBox(list(self.sliders.values())), widgets.VBox(menus)]
        self.box = widgets.VBox([
            widgets.HBox(controls, layout=widgets.Layout(flex_flow="row wrap", align_items="flex-start")),
            widgets.HBox([self.measure_button, self.stop_button, self.progress, self.status], layout=row),
            self.chart, self.answer, self.lanes, self.shares,
            widgets.HTML("<h3>Paste your sizes</h3>"), *self._advice(),
        ])  # fmt: skip

    def _advice(self) -> list[widgets.Widget]:
        self.pasted = widgets.Textarea(value=EXAMPLE, rows=2, description="sizes",
                                       layout=widgets.Layout(width="40em", max_width="100%"), style=WIDE)  # fmt: skip
        self.advice = widgets.Output()
        self.pasted.observe(lambda change: self.advise(), "value")
        self.advise()
        return [self.pasted, self.advice]

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widgets; and, where a page is only read, the picture as it stands."""
        still = png(picture(self.costs, self.setting, self.axis.value, self.results))
        return self.box._repr_mimebundle_(**options) | {"image/png": base64.b64encode(still).decode()}

    @property
    def setting(self) -> Setting:
        methods = dict.fromkeys((self.method.value, self.other.value))
        sizes = {name: slider.value for name, slider in self.sliders.items()}
        return Setting(**sizes, methods=tuple(name for name in methods if name != NONE))

    def say(self, text: str, kind: str = "") -> None:
        """A line beside the progress bar; `kind` "error" makes it stand out, and tells screen readers."""
        role, style = ("alert", "color:#b3261e;font-weight:bold") if kind == "error" else ("status", "")
        self.status.value = f'<span role="{role}" style="{style}">{html.escape(text)}</span>'

    # a slider moves

    @_guarded
    def _changed(self, change: Any) -> None:
        if self._job is not None and self._job != self.setting:
            self._ended("stopped: the sizes have changed")
        self.traces = {}
        self._redraw()
        self._rest()

    @_guarded
    def _redraw(self) -> None:
        setting = self.setting
        self.chart.value = image(picture(self.costs, setting, self.axis.value, self.results))
        self.answer.value = answer(self.costs, setting, self.results)
        if self.traces:
            self.lanes.value, self.shares.value = image(timeline(self.traces, setting)), told(self.traces)
        elif self.lanes.value:
            self.lanes.value = self.shares.value = ""

    def _rest(self) -> None:
        """Measure once the sliders have rested, where that takes seconds and not minutes."""
        if self._later is not None:
            self._later.cancel()
        if self.automatic and self._loop is not None:
            self._later = self._loop.call_later(SETTLE_S, self._rested)

    @_guarded
    def _rested(self) -> None:
        expected = live.seconds_expected(self.costs, self.job())
        if expected > LONG_S:
            self.say(f"Measuring this should take {duration(expected)}: press Measure if you want to wait.")
        else:
            self.measure()

    # measuring

    def job(self) -> live.Job:
        """What the bench is asked to do at the present setting."""
        setting = self.setting
        return live.Job(setting.point, setting.methods, setting.threads, peaks=self.costs is None)

    @_guarded
    def measure(self) -> None:
        """Measure the present setting, in the background."""
        if self._later is not None:
            self._later.cancel()
        self._job = self.setting
        self.progress.value, self.progress.bar_style = 0, "info"
        self.stop_button.disabled = False
        self.say("starting")
        self.bench.submit(self.job())

    @_guarded
    def stop(self) -> None:
        """End the measurement that is running."""
        self.bench.stop()
        self._ended("stopped")

    def _ended(self, text: str) -> None:
        self._job = None
        self.stop_button.disabled = True
        self.progress.bar_style = ""
        self.progress.value = 0
        if self.bench.busy:
            self.bench.stop()
        self.say(text)

    def _report(self, message: live.Message) -> None:
        """Called from the bench's thread: hand the message to the notebook's own."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._heard, message)
        else:
            self._heard(message)

    @_guarded
    def _heard(self, message: live.Message) -> None:
        if self._job is None or message.job != self.bench.number:
            return
        if message.kind == "progress":
            self.progress.value = message.done / message.of
            self.say(message.text)
        elif message.kind == "peaks":
            self.costs = results.cost_model() or model.here()
            self._redraw()
        elif message.kind == "measured":
            self.results[self._job.key(message.method)] = measured(message.data)
            self._redraw()
        elif message.kind == "trace":
            self.traces[message.method] = message.data
            self._redraw()
        elif message.kind == "error":
            self.progress.bar_style = "danger"
            self.say(message.text, "error")
        elif message.kind == "end":
            self.stop_button.disabled = True
            self._job = None
            if self.progress.bar_style != "danger":
                self.progress.value, self.progress.bar_style = 1, "success"
                self.say("measured")

    # advice

    @_guarded
    def advise(self) -> None:
        """The advice for the pasted sizes, or what could not be read in them; it follows as one types."""
        try:
            sizes = parse_sizes(self.pasted.value)
            said = which.advice(**sizes).data
        except ValueError as error:
            said = f"**Not understood:** {error}"
        self.advice.outputs = ({"output_type": "display_data", "data": {"text/markdown": said}, "metadata": {}},)

    def close(self) -> None:
        """End the process that measures, and take the widgets away."""
        if self._later is not None:
            self._later.cancel()
        self.bench.close()
        self.box.close()


WIDE = {"description_width": "9em"}
SHOWN = ("serial", "threads", "in_time", "mpi", "numba_cuda", "cupy_gpu")  # libraries race in chapter 08, each alone
