"""Chapter 08 in figures and words: which method at which sizes, how good the model is, and what peers take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from rnnpar import machine, model
from rnnpar.advice import advise, cautions, check_sizes, gpu_here
from rnnpar.study import on_one_core, plots, store, tell
from rnnpar.study.plots import BLUE, INK, RED
from rnnpar.study.tell import NOT_MEASURED, SHAPE, as_times, on, outcome, say, table_of
from rnnpar.words import ratio
from rnnpar.work import Work

# --- figures ---------------------------------------------------------------------------------------------------------


@plots.styled
def choices_figure(times: pd.DataFrame, machine: str = "", date: str = "") -> Figure:
    """What a choice costs: the share of points at which it takes at most so many times as long as the best method.

    `times` has a row a point and a column a way of choosing, in multiples of the best measured time; "auto" is ours.
    """
    names = [name for name in times if times[name].notna().any()]
    figure, (ax,) = plots.page(
        "What a wrong choice costs",
        "How many of the sweep's points a way of choosing does within so much of the fastest method measured there.\n"
        "The further up and to the left, the better. One method for everything, and auto, which asks the model.",
        " · ".join(filter(None, [machine, date])), [3.0], right=2.2,
    )  # fmt: skip
    if not names:
        plots.nothing(ax, "no choice to show: the peaks or the sweep are missing")
        return figure
    most = max(1.3, float(times[names].max().max())) * 1.02
    ticks = [1, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100]
    plots.log_axis(ax.xaxis, 0.995, most, [tick for tick in ticks if most < 3 or tick not in (1.1, 1.2)], suffix="×")
    ax.set(xlim=(0.99, most), ylim=(0, 103), yticks=range(0, 101, 25), xlabel="time over the best method's")
    ax.set_yticks(range(0, 101, 25), [f"{tick}%" for tick in range(0, 101, 25)])
    ax.set_ylabel("share of the points")
    for row, name in enumerate(names):
        losses = np.sort(times[name].dropna().to_numpy())
        share = 100 * np.arange(1, len(losses) + 1) / len(losses)
        colour, wide = (RED, 2.6) if name == "auto" else (plots.look(name).colour, 1.4)
        ax.step([1, *losses, most], [0, *share, 100], where="post", color=colour, lw=wide, zorder=3 + (name == "auto"))
        level = 1 - (0.14 + 0.2 * row) / 3.0
        ax.plot([1.03, 1.07], [level, level], transform=ax.transAxes, color=colour, lw=wide, clip_on=False)
        ax.text(1.085, level, name if name == "auto" else f"always {name}", transform=ax.transAxes, size=9,
                va="center", color=plots.ink_for(colour))  # fmt: skip
    return figure


@plots.styled
def against_peers_figure(frame: pd.DataFrame, table: pd.DataFrame, ours: str = "auto") -> Figure:
    """Peers over ours by shape, a row a shape, sorted by the best peer's; left of 1 a peer is ahead.

    `table` has a row a shape, sorted: label, ours (seconds a call), best (a peer's name), and a column a peer with the
    seconds of its call; ratio is best over ours, low and high its interval.
    """
    figure, (ax,) = plots.page(
        f"What a user would pick instead, over {ours}",
        f"Time of the best peer over that of {ours}, a row a shape, with its 95% bootstrap interval.\n"
        f"Right of 1, {ours} is ahead by so much. Small and grey: the other peers.",
        plots.corner_of(frame, frame), [max(0.235 * len(table), 1.0) + 0.1], left=2.5, right=1.45, foot=0.62,
    )  # fmt: skip
    if table.empty:
        plots.nothing(ax, "no shape has both a peer's time and ours")
        return figure
    peers = [name for name in plots.in_order(table.columns) if name.startswith("peers/")]
    others = table[peers].div(table["ours"], axis=0)
    low, high = min(0.8, table["low"].min() / 1.1), max(2.2, np.nanmax(others.to_numpy()) * 1.1)
    cut = max(2.2, 1.25 * table["high"].max())  # a peer far behind leaves the panel
    high = min(high, 3 * cut)
    plots.log_axis(ax.xaxis, low, high, [t for t in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= t <= high], "×")
    ax.set(xlim=(low, high), ylim=(len(table) - 0.4, -0.6), xlabel=f"best peer's time over {ours}'s")
    ax.grid(False, axis="y")
    ax.axvline(1, color=INK, lw=1.0)
    for row, (_, shape) in enumerate(table.iterrows()):
        colour = RED if shape["ratio"] < 1 else BLUE
        ax.plot([low, high], [row, row], color="#f1f2f4", lw=0.8, zorder=0)
        for peer in peers:
            at = shape[peer] / shape["ours"]
            if peer != shape["best"] and at <= high:
                ax.plot(at, row, color="#a9adb1", marker=plots.look(peer).marker, ms=4.5, mew=0, ls="")
        ax.plot([1, shape["ratio"]], [row, row], color=colour, lw=2.0, alpha=0.4, solid_capstyle="butt")
        ax.plot([shape["low"], shape["high"]], [row, row], color=colour, lw=4.5, alpha=0.3, solid_capstyle="butt")
        ax.plot(
            shape["ratio"],
            row,
            color=colour,
            marker=plots.look(shape["best"]).marker,
            ms=7,
            mec="white",
            mew=0.5,
            ls="",
        )
        said = f"{ratio(shape['ratio'])}×  {shape['best'].removeprefix('peers/')}"
        ax.text(1.02, row, said, transform=ax.get_yaxis_transform(), size=8.5, va="center", color=plots.ink_for(colour))
    ax.set_yticks(range(len(table)), list(table["label"]), size=8)
    ax.tick_params(axis="y", length=0)
    return figure


# --- tables, predictions and verdicts --------------------------------------------------------------------------------


def _work(shape: Mapping[str, Any]) -> Work:
    return Work(**{letter: int(shape[letter]) for letter in ("T", "B", "I", "H", "O", "layers")})


def predictions(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a point and method of the sweep that has a time and a prediction: both in seconds a call."""
    by = [*SHAPE, "method", "threads"]
    columns = ["machine", "date", *by, "measured", "predicted"]
    rows = plots.steady(frame)
    costs = tell.cost_model(frame["machine"].iloc[0]) if len(rows) else None
    if costs is None:
        return pd.DataFrame(columns=columns)
    found = []
    last = rows["date"].dropna().astype(str).max()
    for key, value in plots.medians(rows[(rows["T"] > 0) & (rows["B"] > 0)], by).items():
        shape = dict(zip(by, key, strict=True))
        seconds = costs.predict(shape["method"], _work(shape), int(shape["threads"]))
        if seconds > 0:  # NaN for a method that the model knows nothing of
            found.append(shape | dict(machine=frame["machine"].iloc[0], date=last, measured=value.value,
                                      predicted=seconds))  # fmt: skip
    return pd.DataFrame(found, columns=columns)


def model_table(table: pd.DataFrame) -> Markdown:
    """How far off the predictions are, by method and over all."""
    if table.empty:
        return Markdown("No prediction to hold against a measurement: the peaks or the sweep are missing.")
    lines = []
    groups = [(name, table[table["method"] == name]) for name in plots.in_order(table["method"])]
    for name, group in [*groups, ("all", table)]:
        off = group["predicted"] / group["measured"]
        away = (off - 1).abs()
        worst = off.index[np.log(off).abs().argmax()]
        lines.append((
            f"`{name}`" if name != "all" else "**all**", f"{len(group):,}", plots.percent(away.median()),
            f"{plots.ratio(off.median())}×", plots.percent((away <= 0.25).mean()),
            f"{plots.ratio(off[worst])}× at {tell.label(group.loc[worst])}",
        ))  # fmt: skip
    return table_of(("method", "points", "median error", "median predicted / measured", "within 25%", "worst"), lines)


def model_error(table: pd.DataFrame, name: str = "") -> Markdown:
    """How well the cost model predicts what was measured."""
    away = (table["predicted"] / table["measured"] - 1).abs()
    medians = {method: float(away[table["method"] == method].median()) for method in plots.in_order(table["method"])}
    outcomes = {f"{method} ({plots.percent(error)})": error <= 0.25 for method, error in medians.items()}
    fared = outcome("for each method, half of the predictions are within 25% of the measurement", outcomes)
    rest = [fared, *(cautions(tell.peaks(name)) if name else [])]
    if len(table) < 2:
        return say(NOT_MEASURED, *rest)
    best, worst = min(medians, key=medians.__getitem__), max(medians, key=medians.__getitem__)
    each = f", by method from {plots.percent(medians[best])} ({best}) to {plots.percent(medians[worst])} ({worst})"
    return say(
        f"{on(table)}, the model is off by {plots.percent(away.median())} in the median over {len(table):,} points"
        f"{each if len(medians) > 1 else ''}",
        *rest,
    )


def choices(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a point: what auto picks there, the best measured method, and the time of each candidate over its time.

    All of them with all threads. `auto` is the time of the pick over the best one's; `sure` says whether the bootstrap
    intervals of the two lie apart.
    """
    columns = [*SHAPE, "pick", "best", "sure", "auto", *model.AUTO]
    drawn = plots.all_cores(plots.steady(frame))
    costs = tell.cost_model(frame["machine"].iloc[0]) if len(drawn) else None
    if costs is None:
        return pd.DataFrame(columns=columns)
    threads, found = tell.team_size(frame), []
    times: dict[tuple, dict[str, plots.Median]] = {}
    for (*shape, method), value in plots.medians(drawn, [*SHAPE, "method"]).items():
        times.setdefault(tuple(shape), {})[method] = value
    for key, here in times.items():
        shape = dict(zip(SHAPE, key, strict=True))
        able = model.AUTO if threads > 1 else model.AUTO[:1]
        if not shape["T"] or not shape["B"] or len(here) < 2:
            continue
        pick = model.choose({name: costs.predict(name, _work(shape), threads) for name in able})
        best = min(here, key=lambda name: here[name].value)
        if pick not in here:
            continue
        over = {name: here[name].value / here[best].value if name in here else np.nan for name in model.AUTO}
        sure = pick != best and here[pick].low > here[best].high
        found.append(shape | dict(pick=pick, best=best, sure=sure, auto=over[pick]) | over)
    return pd.DataFrame(found, columns=columns)


def ways(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of `choices` that are times over the best one's, auto first."""
    return table[["auto", *model.AUTO]].astype(float)


def choice(frame: pd.DataFrame, table: pd.DataFrame) -> Markdown:
    """How often auto is right, and what it costs where it is wrong."""
    wrong = table[table["auto"] > 1.1]
    fared = outcome("auto is within 10% of the best method everywhere",
                   {f"{tell.label(s)} ({as_times(s['auto'])})": s["auto"] <= 1.1
                    for _, s in table.sort_values("auto", ascending=False).iterrows()})  # fmt: skip
    if table.empty:
        return say(NOT_MEASURED, fared)
    worst = table.loc[table["auto"].idxmax()]
    singles = {name: (table[name] <= 1.1).sum() for name in model.AUTO}
    single = max(singles, key=singles.__getitem__)
    loses = (
        f"its dearest choice, {worst['pick']} instead of {worst['best']} at {tell.label(worst)}, takes "
        f"{as_times(worst['auto'])} as long" if worst["auto"] > 1 else "it never picks another than the best"
    )  # fmt: skip
    return say(
        f"{on(frame)}, auto is within 10% of the best measured method at "
        f"{plots.percent(1 - len(wrong) / len(table))} of {len(table):,} points and within 3% at "
        f"{plots.percent((table['auto'] <= 1.03).mean())}; {loses}; {single} for everything, the best single method, "
        f"is within 10% at {plots.percent(singles[single] / len(table))}",
        fared,
    )


def wrong_choices(table: pd.DataFrame, most: int = 8) -> Markdown:
    """The points at which auto loses most."""
    some = table[table["auto"] > 1.03].sort_values("auto", ascending=False).head(most)
    if some.empty:
        return Markdown("auto loses more than 3% nowhere." if len(table) else "Nothing was measured to choose from.")
    lines = [(tell.label(s), s["pick"], s["best"], f"{plots.ratio(s['auto'])}×", "yes" if s["sure"] else "no")
             for _, s in some.iterrows()]  # fmt: skip
    return table_of(("point", "auto picks", "fastest", "takes", "intervals apart"), lines)


def peer_results(name: str = "") -> tuple[str, pd.DataFrame]:
    """A machine's name and its results beside the peers; another machine's where this has none, and a line says so."""
    chosen = name or machine.name()
    known = [other for other in store.machines() if (store.results_folder(other) / "peers.csv").exists()]
    if chosen in known:
        return chosen, store.load("peers", chosen)
    shown = f"What follows was measured on {known[0]}, not here." if known else "What follows is therefore empty."
    display(Markdown(f"Peers not measured on this machine ({chosen}): `make peers` does it. {shown}"))
    if known:
        return known[0], store.load("peers", known[0])
    return chosen, pd.DataFrame(columns=["machine", *store.COLUMNS])


def beside_peers(frame: pd.DataFrame, ours: str = "auto") -> pd.DataFrame:
    """A row a shape that has a time of ours and of a peer, the one where we fare worst first.

    label, ours (seconds a call), the method that ours was, best (peer), ratio (best over ours) with low and high, and
    a column a peer with its seconds. Of the numbers of threads, the largest.
    """
    rows = plots.steady(frame)
    rows = rows[rows["threads"] == rows["threads"].max()]
    peers = [name for name in plots.in_order(rows["method"]) if name.startswith("peers/")]
    columns = [*SHAPE, "label", "ours", "method", "best", "ratio", "low", "high", *peers]
    times: dict[tuple, dict[str, plots.Median]] = {}
    for (*shape, method), value in plots.medians(rows, [*SHAPE, "method"]).items():
        times.setdefault(tuple(shape), {})[method] = value
    said = rows[(rows["method"] == ours) & (rows["status"] == "ok")].groupby(SHAPE)["message"].last()
    found = []
    for key, here in times.items():
        there = [name for name in peers if name in here]
        if ours not in here or not there:
            continue
        shape = dict(zip(SHAPE, key, strict=True))
        best = min(there, key=lambda name: here[name].value)
        over = here[best].over(here[ours])
        found.append(shape | {name: here[name].value if name in here else np.nan for name in peers} | dict(
            label=tell.label(shape), ours=here[ours].value,
            method=str(said.get(key, "")).split(";")[0] or ours, best=best,
            ratio=over.value, low=over.low, high=over.high))  # fmt: skip
    return pd.DataFrame(found, columns=columns).sort_values("ratio", kind="stable").reset_index(drop=True)


def peer_table(table: pd.DataFrame) -> Markdown:
    """Each peer's own column: its time over ours, and the geometric mean below."""
    peers = [name for name in table.columns if name.startswith("peers/")]
    if table.empty:
        return Markdown("No shape has both a peer's time and ours.")
    over = table[peers].div(table["ours"], axis=0)
    cell = lambda value: f"{plots.ratio(value)}×" if np.isfinite(value) else "–"  # noqa: E731
    lines = [(s["label"], s["method"], plots.short(1e6 * s["ours"] / s["T"]), *(cell(v) for v in over.loc[i]))
             for i, s in table.iterrows()]  # fmt: skip
    means = [cell(float(np.exp(np.log(over[name].dropna()).mean()))) if over[name].notna().any() else "–"
             for name in peers]  # fmt: skip
    return table_of(("shape", "auto was", "µs a step", *(name.removeprefix("peers/") for name in peers)),
                  [*lines, ("**geometric mean**", "", "", *means)])  # fmt: skip


def peers(frame: pd.DataFrame, table: pd.DataFrame) -> Markdown:
    """How far ahead of the best peer auto is, and where it is worst."""
    ratios = table["ratio"]
    mean = float(np.exp(np.log(ratios.astype(float)).mean())) if len(ratios) else np.nan
    fared = [
        outcome("1.6 times as fast as the best peer in the geometric mean",
               {as_times(mean): mean >= 1.6} if len(ratios) else {}),
        outcome("ahead of the best peer, by 5% or more, at every shape",
               {f"{s['label']} ({as_times(s['ratio'])}, {s['best']})": s["ratio"] >= 1.05
                for _, s in table.iterrows()}),
    ]  # fmt: skip
    if table.empty:
        return say(NOT_MEASURED, *fared)
    worst, threads = table.iloc[0], int(frame["threads"].max())
    return say(
        f"{on(frame)}, on {threads} threads, auto is {as_times(mean)} as fast as the best peer in the geometric mean "
        f"over {len(table)} shapes, and {as_times(worst['ratio'])} as fast as {worst['best']} at the worst, "
        f"{worst['label']}",
        *fared,
    )


def behind(frame: pd.DataFrame, table: pd.DataFrame, name: str = "", within: float = 1.05) -> Markdown:
    """The shapes at which a peer is ahead, or less than 5% behind, each with how near the peak our arithmetic came.

    `frame` and `table`: as for `peers`; `name`: the machine, whose peaks say what the least time could be.
    """
    close = table[table["ratio"] < within]
    if close.empty:
        return Markdown("At no shape is a peer ahead, or less than 5% behind." if len(table) else "")
    found, threads = tell.peaks(name), int(frame["threads"].max())
    lines = []
    for _, s in close.iterrows():
        noise = "" if s["high"] < 1 or s["ratio"] > 1 else " (within the noise)"
        lines.append(f"- {s['label']}: {s['best']} takes {as_times(s['ratio'])} as long as auto, which was "
                     f"{s['method']}{noise}{_room(s, found, threads)}.")  # fmt: skip
    return Markdown("\n".join(["A peer is ahead here, or close behind:", "", *lines]))


def _room(shape: Mapping[str, Any], found: Mapping[str, Any], threads: int) -> str:
    """What share of the measured peak our arithmetic reached at a shape, and what that leaves to gain."""
    if not found:
        return ""
    share = sum(_work(shape).flops().values()) / (shape["ours"] * threads * on_one_core.arithmetic_peak(found))
    at = f". Our products ran at {plots.percent(share)} of this machine's peak of arithmetic"
    if share >= 0.75:
        return f"{at}: whoever multiplies well is nearly as fast"
    return f"{at}, which leaves room; why it is not used is not known yet"


def advice(H: int, T: int, B: int, I: int, O: int, layers: int = 1, name: str = "", threads: int = 0) -> Markdown:
    """The predicted time of each method at given sizes on a machine, what to take, and why."""
    costs, where, work = (
        tell.cost_model(name),
        name or machine.name(),
        Work(T=T, B=B, I=I, H=H, O=O, layers=layers),
    )
    try:
        check_sizes(work)
        if costs is None:
            return Markdown(f"No advice: the peaks of {where} are not measured; `rnnpar.prepare(net)` measures them.")
        threads = threads or max(int(n) for n in costs.peaks["launch"])
        gpu = gpu_here(work) if where == machine.name() else None
        advised = advise(costs, work, threads, where, gpu)
    except ValueError as error:
        return Markdown(str(error))
    best = advised.seconds[advised.method]
    lines = [(f"`{method}`", plots.duration(value), plots.short(1e6 * value / T), f"{plots.ratio(value / best)}×")
             for method, value in advised.seconds.items()]  # fmt: skip
    table = table_of(("method", "predicted time of a call", "µs a step", "over the advice"), lines).data
    told = [gpu.sentence] if gpu else []
    left_out = "\n".join(["Not considered:", "", *(f"- {line}" for line in advised.not_considered)])
    size = work if where == machine.name() else None
    return Markdown("\n\n".join([f"**{advised.sentence}**", advised.details, table, *told, left_out,
                                 *cautions(costs.peaks, size)]))  # fmt: skip
