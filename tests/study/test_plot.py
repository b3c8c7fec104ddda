"""The drawing functions: they draw what there is, break at what is not, and never show a time that does not count."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from rnnpar.study import plot, results

METHODS = ["serial/naive", "serial/hoisted", "serial/compiled", "threads/timestep", "threads/rows", "threads/batch"]


def table(methods: list[str] = METHODS, sizes: tuple[int, ...] = (16, 64, 256, 1024), B: tuple[int, ...] = (1, 8),
          ) -> pd.DataFrame:  # fmt: skip
    """Measurements with plain times: 1 µs a step for the first method at H = 16 and B = 1, and so on."""
    rows = [dict(machine="a-machine", experiment="sweep", workload="random", H=H, I=H, O=H, T=128, B=b, layers=1,
                 method=name, threads=1 + name.startswith("threads"), kind="steady", source="measured", status="ok",
                 message="", date="2026-01-31T12:00:00", error=1e-7, seconds=128e-6 * (n + 1) * (H / 16) * b)
            for n, name in enumerate(methods) for H in sizes for b in B]  # fmt: skip
    found = pd.DataFrame(rows, columns=results.COLUMNS)
    for end, factor in (("low", 0.9), ("high", 1.1)):
        found[f"seconds_{end}"] = found["seconds"] * factor
    return results.per_step(found.assign(samples=[np.array([one]) for one in found["seconds"]]))


def gap(found: pd.DataFrame, where: pd.Series, status: str) -> pd.DataFrame:
    """The table, where the rows chosen have no time for that reason."""
    times = {name: found[name].mask(where) for name in results.TIMES}
    return found.assign(status=found["status"].mask(where, status), **times)


def with_gaps() -> pd.DataFrame:
    found = table()
    found = gap(found, found["method"] == "threads/timestep", "unsupported")
    found = gap(found, (found["method"] == "serial/naive") & (found["H"] >= 1024), "oom")
    return gap(found, (found["method"] == "threads/batch") & (found["H"] == 64), "inaccurate")


FRAMES: dict[str, Callable[[], pd.DataFrame]] = {
    "full": table,
    "gaps": with_gaps,
    "one point": lambda: table(METHODS[:1], (64,), (1,)),
    "no time": lambda: gap(table(), table()["H"] > 0, "error"),
    "empty": lambda: results.EMPTY.copy(),
}
FIGURES = {
    "lines": lambda runs: plot.lines(runs[runs.B == 1], "H"),
    "predicted": lambda runs: plot.lines(runs.assign(source="predicted"), "H"),
    "speed-up": lambda runs: plot.lines(results.speed_up(runs[runs.B == 1], "serial/naive"), "H", "speed_up",
                                        baseline="serial/naive"),
    "facets": lambda runs: plot.facets(runs, "H", "us_per_step", "B", "Two batches"),
    "dots": lambda runs: plot.dots(runs[(runs.H == 64) & (runs.B == 1)], "us_per_step", suffix=" µs"),
    "map": lambda runs: plot.best_map(runs),
}  # fmt: skip


def figure_of(axes) -> Figure:
    return np.ravel(axes)[0].figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts] + [text.get_text() for ax in figure.axes for text in ax.texts]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path))
    monkeypatch.setenv("RNNPAR_MACHINE", "a-machine")
    return tmp_path


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("frame", FRAMES)
def test_draws_what_there_is(figure, frame, folder):
    runs = FRAMES[frame]()
    axes = FIGURES[figure](runs)
    shown = plot.show(axes, "00_try", runs)
    assert shown.data.startswith(b"\x89PNG")
    assert shown.alt
    if len(runs):
        assert "a-machine · 2026-01-31" in texts(figure_of(axes))
        assert sorted(path.name for path in (folder / "a-machine").iterdir()) == ["00_try.png", "00_try.svg"]
    else:
        assert any("not measured" in text for text in texts(figure_of(axes)))
    said = [label.get_text() for ax in figure_of(axes).axes for label in ax.get_xticklabels() + ax.get_yticklabels()]
    assert not [text for text in said if "^" in text or "e-" in text or "e+" in text]


def test_the_same_figure_is_the_same_file(folder):
    files = []
    for _ in range(2):
        plot.show(plot.lines(with_gaps()[lambda runs: runs.B == 1], "H"), "00_try", table())
        files.append([(folder / "a-machine" / f"00_try.{kind}").read_bytes() for kind in ("svg", "png")])
    assert files[0] == files[1]
    assert b"<dc:date>" not in files[0][0]


def test_only_the_machine_that_is_drawn_for_has_files_written(folder, monkeypatch):
    monkeypatch.setenv("RNNPAR_MACHINE", "another")
    plot.show(plot.lines(table(), "H"), "00_try", table())
    assert list(folder.iterdir()) == []
    plot.show(plot.panels("A drawing"), "00_drawing")
    assert sorted(path.name for path in folder.iterdir()) == ["00_drawing.png", "00_drawing.svg"]
    (folder / "00_drawing.png").write_bytes(b"kept")
    plot.show(plot.panels("A drawing"), "00_drawing")
    assert (folder / "00_drawing.png").read_bytes() == b"kept"
    monkeypatch.setenv("RNNPAR_MACHINE", results.REFERENCE)
    plot.show(plot.panels("A drawing"), "00_drawing")
    assert (folder / "00_drawing.png").read_bytes() != b"kept"


@pytest.mark.parametrize("status", sorted(plot.STATUS))
def test_what_has_no_time_is_a_gap_and_says_why(status):
    runs = table(B=(1,))
    runs = gap(runs, (runs["method"] == "threads/rows") & (runs["H"] == 64), status)
    ax = plot.lines(runs, "H")
    line = next(
        line for line in ax.lines if line.get_color() == plot.look("threads/rows").colour and len(line.get_xdata()) == 4
    )
    assert np.isnan(line.get_ydata()).tolist() == [False, True, False, False]
    assert f"threads/rows: {plot.STATUS[status]}" in texts(ax.figure)


def test_a_prediction_far_off_does_not_move_the_axis():
    runs = table(B=(1,))
    wild = runs.assign(source="predicted", us_per_step=runs["us_per_step"] * 1e6)
    limits = [plot.lines(rows, "H").get_ylim() for rows in (runs, pd.concat([runs, wild]))]
    assert limits[1][1] < 5 * limits[0][1]


@pytest.mark.filterwarnings("error:constrained_layout")
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_a_line_that_ends_off_the_page_has_its_name_on_it(factor):
    runs = table(METHODS[:2], B=(1,))
    wild = runs[runs["method"] == METHODS[1]].assign(
        source="predicted", us_per_step=lambda row: row.us_per_step * factor
    )
    ax = plot.lines(pd.concat([runs[runs["method"] == METHODS[0]], wild]), "H")
    ax.figure.draw_without_rendering()
    page = ax.figure.bbox
    for name in METHODS[:2]:
        box = next(text for text in ax.texts if text.get_text() == name).get_window_extent()
        assert page.fully_contains(box.x0, box.y0)
        assert page.fully_contains(box.x1, box.y1)


def test_one_predicted_point_is_seen():
    runs = table(METHODS[:1], (64,), (1,))
    ax = plot.lines(pd.concat([runs, runs.assign(source="predicted")]), "H")
    dashed = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert {line.get_marker() for line in dashed} == {plot.look(METHODS[0]).marker, "."}


def test_a_page_says_what_is_held_fixed():
    assert plot.about(table(B=(1,)), "H").startswith("T = 128, B = 1, I = O = H, one layer, 2 threads. Medians")
    assert "Dashed: predicted." in plot.about(table().assign(source="predicted"))


def test_the_map_names_the_fastest_its_time_and_its_lead():
    said = [text for text in texts(plot.best_map(table()).figure) if "µs" in text]
    assert "serial/naive\n1 µs\n2.0×" in said
    assert len(said) == 8


def test_a_map_with_a_gap_says_what_hatched_means():
    whole, holed = table(), table()[lambda runs: (runs.H != 64) | (runs.B != 8)]
    hatched = ["Hatched: not measured." in plot.best_map(runs).figure.get_label() for runs in (whole, holed)]
    assert hatched == [False, True]


def test_ticks_of_sizes_keep_apart():
    sizes = [64, 128, 256, 512, 1024, 1536, 2048]
    ax = plot.lines(table(sizes=tuple(sizes), B=(1,)), "H")
    assert list(ax.get_xticks()) == [64, 128, 256, 512, 1024, 2048]


def test_labels_at_line_ends_do_not_touch():
    runs = table(B=(1,))
    runs["us_per_step"] = 1.0 + 0.001 * np.arange(len(runs))
    ax = plot.lines(runs, "H")
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text() in METHODS]
    assert len(boxes) == len(METHODS)
    assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert all(box.x1 <= ax.figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize("wanted", [[0.5], [0.5, 0.5, 0.5], [0.0, 0.01, 1.0, 0.99], [1.0, 1.0, 1.0, 0.0], [0.2, 0.1]])
def test_labels_move_apart_and_keep_their_order(wanted):
    places = plot.spread(wanted, 0.1)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    in_order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    assert all(places[b] - places[a] >= 0.1 - 1e-9 for a, b in pairwise(in_order))


def test_methods_look_different_and_always_the_same():
    assert len(set(plot.LOOKS.values())) == len(plot.LOOKS)
    assert plot.look("new/method") == plot.look("new/method")


def test_pictures_keep_their_colours(folder):
    import io

    from PIL import Image

    ax = plot.panels("Colours")
    ax.axhspan(0, 1, color=plot.ORANGE)
    picture = Image.open(io.BytesIO(plot.show(ax, "00_colours").data)).convert("RGB")
    colours = {colour for _, colour in picture.getcolors(1 << 24)}
    assert tuple(int(plot.ORANGE[i : i + 2], 16) for i in (1, 3, 5)) in colours
    assert (255, 255, 255) in colours


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path / "file"))
    with pytest.raises(OSError, match="RNNPAR_FIGURES"):
        plot.show(plot.panels("A drawing"), "00_try")
