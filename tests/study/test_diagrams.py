"""The drawings of ideas: what they say is true of the idea, and nothing is cut or lies on something else."""

from __future__ import annotations

from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rnnpar.study import diagrams


def words(figure):
    """Every text of a figure that says something, with its place in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [*figure.texts, *(text for ax in figure.axes for text in ax.texts)]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]


@pytest.mark.parametrize("draw", ["dependency_graph", "wavefront", "rows_over_caches", "cluster_exchange", "scan_tree"])
def test_no_word_is_cut_or_lies_on_another(draw):
    figure = getattr(diagrams, draw)().figure
    box, found = figure.bbox, words(figure)
    assert [said for said, at in found if at.x0 < box.x0 or at.x1 > box.x1 or at.y0 < box.y0 or at.y1 > box.y1] == []
    assert [(one, two) for (one, a), (two, b) in combinations(found, 2) if a.overlaps(b)] == []


def rows_of(ax):
    """The words of a drawing's panel, line by line from above, each from left to right."""
    lines: dict[float, list] = {}
    for text in ax.texts:
        x, y = text.get_position()
        lines.setdefault(round(y, 2), []).append((x, text.get_text()))
    return [[said for _, said in sorted(line)] for _, line in sorted(lines.items())]


@pytest.mark.parametrize("steps", [2, 3, 8, 11])
def test_after_the_last_round_of_a_scan_every_state_is_known(steps):
    rounds = [line for line in rows_of(diagrams.scan_tree(steps)) if line and line[-1].endswith(str(steps))]
    assert len(rounds) == 1 + (steps - 1).bit_length()
    assert rounds[0] == [str(n + 1) for n in range(steps)]
    assert rounds[-1] == ["1", *(f"1..{n + 1}" for n in range(1, steps))]


def test_a_wavefronts_stages_have_a_chunk_each_at_a_time():
    ax = diagrams.wavefront(layers=2, chunks=6)
    boxes = [(round(t.get_position()[0], 2), t.get_position()[1], int(t.get_text()))
             for t in ax.texts if t.get_text().isdigit()]  # fmt: skip
    assert len(boxes) == 5 * 6
    when = {(y, chunk): x for x, y, chunk in boxes}
    stages = sorted({y for _, y, _ in boxes})
    for row, y in enumerate(stages):
        for chunk in range(1, 7):
            if chunk > 1:
                assert when[y, chunk] > when[y, chunk - 1]
            if row:
                assert when[y, chunk] > when[stages[row - 1], chunk]
