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
import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rnnpar import machine, model, registry
from rnnpar.kernels.trace import DONE, STEPS, WAIT, WORDS, Trace
from rnnpar.study import live, plots, tell, which
from rnnpar.study.measure import Point

SIZES = {  # what each slider offers
    "H": (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048),
    "T": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    "B": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "layers": (1, 2, 3, 4, 6, 8),
}
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


@dataclass(frozen=True)
class Measured:
    """A measured point: seconds a call, or why there is none."""

    median: plots.Median | None
    status: str = "ok"
    message: str = ""
    error: float = math.nan  # relative, to the oracle

    @classmethod
    def of(cls, rows: Sequence[Any]) -> Measured:
        frame = pd.DataFrame(rows)
        steady = frame[(frame["kind"] == "steady") & (frame["status"] == "ok")]["seconds"]
        last = frame.iloc[-1]
        if len(steady):
            return cls(plots.median(steady), error=float(last["error"]))
        return cls(None, str(last["status"]), str(last["message"]))


Results = Mapping[tuple, Measured]


def answer(costs: model.Model | None, setting: Setting, results: Results) -> str:
    """What the picture shows, in HTML: a line a method, and how two of them compare."""
    lines = []
    for method in setting.methods:
        measured = results.get(setting.key(method))
        guess = costs.predict(method, setting.work, setting.threads_of(method)) if costs else math.nan
        parts = [f"predicted {plots.duration(guess / setting.T)} a step"] if math.isfinite(guess) else []
        if measured and measured.median:
            value = measured.median.value
            parts.append(f"<b>measured {plots.duration(value / setting.T)} a step</b>")
            if math.isfinite(guess):
                far = "; do other programs keep the cores busy?" if value > BUSY * guess else ""
                parts.append(f"{plots.ratio(value / guess)} times the prediction{far}")
            parts.append(
                f"{plots.duration(value)} a call, {plots.short(1e6 * measured.error)} millionths from the oracle"
            )
        elif measured:
            why = plots.STATUS.get(measured.status, measured.status)
            parts.append(f"<b>{html.escape(why)}</b>: {html.escape(measured.message)}")
        else:
            parts.append("not measured yet")
        lines.append(f"<code>{method}</code>: {'; '.join(parts) or 'the model knows nothing of it'}.")
    return "<br>".join([*lines, *_comparison(setting, results)])


def _comparison(setting: Setting, results: Results) -> list[str]:
    if len(setting.methods) < 2:
        return []
    pair = [results.get(setting.key(method)) for method in setting.methods[:2]]
    if not all(measured and measured.median for measured in pair):
        return []
    (one, other), (first, second) = setting.methods[:2], (measured.median for measured in pair)
    factor = second.over(first)
    noise = " (within the noise)" if factor.low <= 1 <= factor.high else ""
    return [f"<b>{one} is {plots.ratio(factor.value)} times as fast as {other}{noise}.</b>"]


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


@plots.styled
def picture(costs: model.Model | None, setting: Setting, axis: str, results: Results, name: str = "") -> Figure:
    """The model's lines along an axis, and every point that was measured on them; the present one is ringed.

    `name`: the machine whose costs these are, this one by default.
    """
    held = {name: getattr(setting, name) for name in ("H", "T", "B", "layers") if name != axis}
    said = ", ".join(f"{name} = {value:,}" for name, value in held.items())
    threads = "" if axis == "threads" else f", {setting.threads} thread{'s' * (setting.threads > 1)}"
    subtitle = f"{said}, I = O = H{threads}.\nDashed: the model, before anything is run. Points: measured here and now."
    figure, (ax,) = plots.page("Time of a step", subtitle, name or machine.name(), (2.55,), head=0.12)
    lines = predicted(costs, setting, axis) if costs else {}
    sizes = list(sizes_along(axis))
    points = {
        method: {size: found for size in sizes if (found := results.get(setting.at(axis, size).key(method)))}
        for method in setting.methods
    }
    times = [1e6 * second for _, seconds in lines.values() for second in seconds]
    times += [1e6 * found.median.value / setting.at(axis, size).T for line in points.values()
              for size, found in line.items() if found.median]  # fmt: skip
    if not times:
        plots.nothing(ax, "the model has no peaks of this machine yet; they are measured first")
        return figure
    plots.size_axis(ax, sizes, plots.AXES[axis])
    low, high = min(times) / 1.5, max(times) * 1.5
    plots.log_axis(ax.yaxis, low, high, suffix=" µs")
    ax.set_ylim(low, high)
    here = getattr(setting, axis)
    ax.axvline(here, color=plots.FAINT, lw=6, zorder=0)
    ends = []
    for method in setting.methods:
        colour, marker = plots.look(method)
        if method in lines:
            xs, seconds = lines[method]
            ax.plot(xs, [1e6 * s for s in seconds], color=colour, ls=(0, (4, 2)), lw=1.5, zorder=2)
            ends.append((xs[-1], 1e6 * seconds[-1], method, colour))
        for size, found in points[method].items():
            if not found.median:
                continue
            micro = [1e6 * value / setting.at(axis, size).T
                     for value in (found.median.low, found.median.value, found.median.high)]  # fmt: skip
            ax.plot([size] * 2, micro[::2], color=colour, lw=1.5, zorder=3)
            ringed = dict(ms=11, mew=1.6, mec=plots.INK) if size == here else dict(ms=7, mew=0.6, mec="white")
            ax.plot([size], micro[1:2], color=colour, marker=marker, zorder=4, **ringed)
            if method not in lines:
                ends.append((size, micro[1], method, colour))
    plots.label_ends(ax, ends)
    return figure


@plots.styled
def timeline(traces: Mapping[str, Trace], setting: Setting) -> Figure:
    """What each thread did in a call, by the stamps of its kernels: all of it, and some steps of it from close by."""
    heights = [0.3 + 0.22 * trace.threads for trace in traces.values() for _ in range(2)]
    subtitle = "One call of median length: all of it above, a few steps from its middle below."
    room = dict(right=0.25, left=1.0, gap=0.72, head=0.5)
    figure, panels = plots.page("What each thread did", subtitle, machine.name(), heights or (0.6,), **room)
    if not traces:
        plots.nothing(panels[0], "no method with threads was measured at these sizes")
        return figure
    for (method, trace), whole, close in zip(traces.items(), panels[::2], panels[1::2], strict=True):
        _lanes(whole, trace, 0.0, trace.seconds)
        whole.set_title(f"{method}, the whole call", loc="left", fontsize=9, color=plots.INK, pad=4)
        begin, end = close_up(trace)
        for at in (begin, end):
            whole.axvline(1e6 * at, color=plots.INK, lw=0.7)
        _lanes(close, trace, begin, end)
        close.set_title("between the two lines", loc="left", fontsize=9, color=plots.QUIET, pad=4)
    panels[-1].set_xlabel("µs since the call began")
    kinds = [Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=word)
             for word, colour, hatch in zip(WORDS[:DONE], COLOURS, HATCHES, strict=True)]  # fmt: skip
    top = 1 - 0.62 / figure.get_figheight()
    figure.legend(handles=kinds, ncols=4, loc="upper left", bbox_to_anchor=(0.005, top), frameon=False, fontsize=8.5,
                  handlelength=1.4, borderaxespad=0)  # fmt: skip
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
            spent = ", ".join(f"{word} {plots.percent(share)}" for word, share in shares.items() if share >= 0.005)
            lines.append(f"<code>{method}</code>, thread {rank}: {spent}.")
        if trace.dropped:
            lines.append(f"{trace.dropped:,} later marks of it did not fit into the record.")
    return "<br>".join(lines)


def png(figure: Figure) -> bytes:
    """A figure as it goes to the page: sharp enough for a notebook's column, and drawn fast."""
    file = io.BytesIO()
    with mpl.rc_context(plots.STYLE):
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
        self.results: dict[tuple, Measured] = {}
        self.traces: dict[str, Trace] = {}
        self.costs = tell.cost_model()
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
        self.axis = widgets.Dropdown(options=[(words, name) for name, words in plots.AXES.items()], value="H",
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
            self.say(f"Measuring this should take {plots.duration(expected)}: press Measure if you want to wait.")
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
            self.costs = tell.cost_model() or model.here()
            self._redraw()
        elif message.kind == "rows":
            self.results[self._job.key(message.method)] = Measured.of(message.data)
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
