"""Every figure draws what there is: a full sweep, one with holes, almost nothing; and no time for what did not run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from rnnpar.study import on_one_core, plots, store

COLUMNS = ["machine", *store.COLUMNS]
METHODS = [
    "serial/naive",
    "serial/hoisted",
    "serial/compiled",
    "threads/timestep",
    "threads/rows",
    "threads/batch",
    "threads/wavefront",
]
CORES = 2


def seconds_a_step(method: str, H: int, output: int, T: int, B: int, threads: int) -> float:
    """A made-up cost of a step that has the shape of the real ones; no claim is built on it."""
    product, stream = 2e-12 * B, 4 / (200e9 if H < 500 else 95e9 if H < 2500 else 36e9)
    one = max(H * H * product * 2, H * H * stream)
    out = H * (H + output) * max(product * 2, stream)
    out_at_once = H * (H + output) * product * 5
    cost = {
        "serial/naive": 9e-6 + one + out,
        "serial/hoisted": 3e-6 + one + out_at_once,
        "serial/compiled": 6e-8 + one + out_at_once,
        "threads/timestep": 3e-7 + max(one, (one + out) / threads) * 1.1,
        "threads/rows": 6e-8 + 2e-7 * (threads > 1) + (one + out_at_once) / threads,
        "threads/batch": 6e-8 + (one + out_at_once) / min(threads, B),
        "threads/wavefront": 1e-7 + max(one, (one + out_at_once) / threads),
    }[method]
    return cost + 4e-6 / T


@cache
def synthetic(samples: int = 7, date: str = "2026-01-31T12:00:00") -> pd.DataFrame:
    """A frame as `store.load` returns it, of the quick sweep's points, for development and tests."""
    rng = np.random.default_rng(1)
    shapes = [("random", H, H, H, 128, 1, 1) for H in (16, 32, 64, 128, 256, 512, 1024, 2048)]
    shapes += [("random", 128, 128, 128, T, 1, 1) for T in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)]
    shapes += [("random", 256, 256, 256, 32, B, 1) for B in (1, 2, 4, 8, 16, 32, 64, 128)]
    shapes += [("random", H, H, H, 32, B, 1) for H in (64, 256, 1024) for B in (1, 8, 64)]
    shapes += [("random", 256, 256, 256, 128, 1, layers) for layers in (2, 4)]
    shapes += [("origin-large", 50, 50, 8000, 15, 1, 1), ("origin-small", 120, 120, 10000, 50, 1, 1)]
    shapes += [("kjv-h128", 128, 64, 64, 1000, 8, 1), ("kjv-2x256", 256, 64, 64, 1000, 8, 2)]
    rows = []
    for workload, H, I, O, T, B, layers in dict.fromkeys(shapes):
        for method in METHODS:
            threaded = method.startswith("threads/")
            scaled = threaded and workload == "random" and (H, T, B) in ((256, 128, 1), (1024, 128, 1), (256, 32, 64))
            for threads in range(1, CORES + 1) if scaled else [CORES if threaded else 1]:
                base = dict(
                    machine="a-machine", point=f"{len(rows)}", workload=workload, method=method, H=H, I=I, O=O, T=T,
                    B=B, layers=layers, threads=threads, samples=samples, error=3e-7 * rng.uniform(0.5, 2), status="ok",
                    message="", source="abc", revision="0", date=date,
                )  # fmt: skip
                whole = T * layers * seconds_a_step(method, H, O, T, B, threads)
                rows.append(base | dict(sample=-1, seconds=0.5, kind="compile"))
                for sample in range(samples):
                    noisy = whole * rng.lognormal(0.0, 0.04)
                    rows.append(base | dict(sample=sample, seconds=noisy, kind="steady"))
    return pd.DataFrame(rows, columns=COLUMNS)


def failed(frame: pd.DataFrame, where: pd.Series, status: str, seconds: float = np.nan) -> pd.DataFrame:
    """The frame, where the rows chosen have that status and those seconds."""
    return frame.assign(
        status=frame["status"].mask(where, status), seconds=frame["seconds"].mask(where, seconds), message="as told"
    )


@cache
def holes() -> pd.DataFrame:
    """A sweep in which a method is missing, others fail at some points in each of the ways there are."""
    frame = synthetic()
    frame = frame[frame["method"] != "serial/hoisted"]
    frame = failed(frame, (frame["method"] == "threads/timestep"), "unsupported")
    frame = failed(frame, (frame["method"] == "serial/naive") & (frame["H"] >= 1024), "oom")
    frame = failed(frame, (frame["method"] == "threads/rows") & (frame["H"].isin([64, 50])), "error")
    return failed(frame, (frame["method"] == "threads/batch") & (frame["H"] == 256), "inaccurate", seconds=1e-9)


FRAMES: dict[str, Callable[[], pd.DataFrame]] = {
    "full": synthetic,
    "holes": holes,
    "almost empty": lambda: synthetic(1).query("workload == 'random' and H == 128 and T == 128").iloc[:2],
    "empty": lambda: pd.DataFrame(columns=COLUMNS),
}


def predicted(frame: pd.DataFrame) -> pd.DataFrame:
    """What `which.predictions` returns: every steady sample as a point of its own, predicted up to three times off."""
    rows = frame[(frame["kind"] == "steady") & (frame["status"] == "ok")]
    off = np.exp(np.random.default_rng(2).normal(0, 0.4, len(rows)))
    return rows.assign(measured=rows["seconds"], predicted=rows["seconds"] * off)


FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "step H": lambda frame: plots.step_time(frame, "H", predicted={"floor": ([16, 2048], [1e-8, 1e-4])}),
    "step T": lambda frame: plots.step_time(frame, "T"),
    "step B": lambda frame: plots.step_time(frame, "B", methods=METHODS[:3]),
    "speed-up": lambda frame: plots.speed_up(frame, "H"),
    "speed-up layers": lambda frame: plots.speed_up(frame, "layers", over=["serial/compiled"]),
    "map": lambda frame: plots.best_map(frame),
    "stairs": lambda frame: on_one_core.stairs_figure(frame),
    "model": lambda frame: plots.model_error(predicted(frame)),
}


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("frame", FRAMES)
def test_draws_what_there_is(figure: str, frame: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path))
    drawn = FIGURES[figure](FRAMES[frame]())
    assert drawn.axes
    png = plots.save(drawn, "00_try", "a-machine")
    assert png == tmp_path / "a-machine" / "00_try.png"
    assert png.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a-machine" / "00_try.svg").read_text().rstrip().endswith("</svg>")
    assert sorted(path.name for path in png.parent.iterdir()) == [
        "00_try.png",
        "00_try.svg",
    ]  # nothing half-written stays


@pytest.mark.parametrize("figure", ["step H", "map", "model"])
def test_the_same_figure_is_the_same_file(figure: str, tmp_path, monkeypatch) -> None:
    files = []
    for name in ("one", "other"):
        monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path / name))
        plots.save(FIGURES[figure](holes()), "00_try", "a-machine")
        files.append([(tmp_path / name / "a-machine" / f"00_try.{kind}").read_bytes() for kind in ("svg", "png")])
    assert files[0] == files[1]
    assert b"<dc:date>" not in files[0][0]


@pytest.mark.parametrize("status", sorted(plots.STATUS))
def test_what_is_not_ok_is_never_a_time(status: str) -> None:
    frame = failed(synthetic(), synthetic()["method"] == "threads/rows", status, seconds=1e-12)
    figure = plots.step_time(frame, "H")
    assert all(y > 0.01 for line in figure.axes[0].lines for y in values(line))  # 1e-12 s is 1e-6 µs
    assert f"threads/rows: {plots.STATUS[status]}" in texts(figure)
    for (method, _), value in plots.medians(plots.steady(frame), ["method", "H"]).items():
        assert method != "threads/rows"
        assert value.value > 1e-9


def test_a_line_breaks_where_a_point_has_no_time() -> None:
    frame = synthetic()
    frame = failed(frame, (frame["method"] == "serial/naive") & (frame["H"] == 256), "oom", seconds=1.0)
    (naive,) = [
        line for line in plots.step_time(frame, "H", methods=["serial/naive"]).axes[0].lines if line.get_zorder() == 3
    ]
    heights = dict(zip(naive.get_xdata(), naive.get_ydata(), strict=True))
    assert np.isnan(heights[256])
    assert sum(np.isnan(list(heights.values()))) == 1


def test_a_compile_time_is_no_time() -> None:
    frame = synthetic()
    assert all(
        value.value < 0.4 for value in plots.medians(plots.steady(frame), ["method", "H", "T", "B", "layers"]).values()
    )
    assert set(plots.steady(frame)["kind"]) == {"steady"}


def test_results_of_two_machines_are_not_mixed() -> None:
    frame = pd.concat([synthetic(1), synthetic(1).assign(machine="another")])
    with pytest.raises(ValueError, match="a-machine, another"):
        plots.step_time(frame, "H")


def test_every_figure_of_results_names_machine_and_day() -> None:
    frame = synthetic(1)
    for name, draw in FIGURES.items():
        assert "a-machine · 2026-01-31" in texts(draw(frame)), name


def test_log_axes_read_as_plain_numbers() -> None:
    for draw in FIGURES.values():
        figure = draw(synthetic(1))
        figure.canvas.draw()
        said = [
            label.get_text() for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for label in axis.get_ticklabels()
        ]
        assert not [text for text in said if "^" in text or "e-" in text or "e+" in text]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (1, "1"), (2048, "2,048"), (1e6, "1,000,000"), (0.0001, "0.0001"), (0.30000000000000004, "0.3")],
)
def test_numbers_as_people_write_them(value: float, text: str) -> None:
    assert plots.plain(round(value, 12)) == text


@pytest.mark.parametrize("wanted", [[0.5], [0.5, 0.5, 0.5], [0.0, 0.01, 1.0, 0.99], [1.0, 1.0, 1.0, 0.0], [0.2, 0.1]])
def test_labels_move_apart_and_keep_their_order(wanted: list[float]) -> None:
    places = plots.spread_labels(wanted, 0.1, 0.0, 1.0)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    in_order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    assert all(places[b] - places[a] >= 0.1 - 1e-9 for a, b in pairwise(in_order))


def test_labels_at_line_ends_do_not_touch() -> None:
    for axis in "HTB":
        figure = plots.step_time(synthetic(), axis)
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text() in METHODS]
        assert len(boxes) == len(METHODS)
        assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
        assert all(box.x1 <= figure.bbox.x1 for box in boxes)


def test_a_median_lies_in_its_interval_and_is_always_the_same() -> None:
    samples = np.random.default_rng(3).lognormal(0, 0.3, 15)
    one, other = plots.median(samples), plots.median(samples)
    assert one.low <= one.value == np.median(samples) <= one.high
    assert (one.low, one.high) == (other.low, other.high)
    assert one.over(one).value == 1
    assert one.over(one).low < 1 < one.over(one).high  # both have an uncertainty, equal or not


def test_methods_look_different_and_always_the_same() -> None:
    assert len(set(plots.LOOKS.values())) == len(plots.LOOKS)
    assert plots.look("new/method") == plots.look("new/method")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.6e-7, "260 ns"),
        (9.99e-7, "1 µs"),
        (2.61e-6, "2.6 µs"),
        (8e-3, "8 ms"),
        (12.3, "12 s"),
        (1e-3, "1 ms"),
        (3e-10, "0.3 ns"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert plots.duration(seconds) == text


def test_stairs_say_what_each_change_brings() -> None:
    frame = synthetic()
    times = {"serial/naive": 8e-6, "serial/hoisted": 4e-6, "serial/compiled": 1e-6}
    frame = frame[frame["method"].isin(times) & (frame["kind"] == "steady")]
    frame = frame.assign(seconds=frame["method"].map(times) * frame["T"])
    said = texts(on_one_core.stairs_figure(frame))
    assert said.count("8 µs") == 3
    assert said.count("4 µs   2.0×") == 3
    assert said.count("1 µs   4.0×") == 3


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path / "file"))
    with pytest.raises(OSError, match="RNNPAR_FIGURES"):
        plots.save(plots.step_time(synthetic(1), "H"), "00_try", "a-machine")


def values(line) -> list[float]:
    """The heights of a line that is drawn over data, as numbers."""
    over_data = line.get_transform().contains_branch(line.axes.transData) and line.get_zorder() == 3
    return [float(y) for y in line.get_ydata() if not np.isnan(y)] if over_data else []


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts] + [text.get_text() for ax in figure.axes for text in ax.texts]
