"""The table beside the peers: ratios and closing words on hand-made results, and the command line's refusals."""

import pandas as pd
import pytest

from rnnpar.study import peers, store


def frame(**us: dict[str, list[float]]) -> pd.DataFrame:
    """Results of shapes H=10, 20, ...: microseconds a step of each method at each; None where it failed."""
    rows = []
    for method, values in us.items():
        for index, value in enumerate(values, 1):
            failed = value is None
            shape = dict(workload="random", H=10 * index, I=3, O=3, T=100, B=1, layers=1)
            said = "threads/rows; " if method == "auto" else "loop; torch 2"
            common = dict(method=method if method == "auto" else f"peers/{method}", message=said, **shape)
            rows.append(common | dict(kind="compile", seconds=1.0, status="inaccurate" if failed else "ok"))
            if not failed:
                seconds = [value * 1e-4 * factor for factor in (1.0, 0.9, 1.5)]  # the median is the value itself
                rows += [common | dict(kind="steady", seconds=s, status="ok") for s in seconds]
    return pd.DataFrame(rows)


def test_ratios_take_the_best_peer_of_each_shape():
    table = peers.ratios(frame(torch=[8.0, 3.0], jax=[4.0, 6.0], auto=[2.0, 6.0]))
    assert table["ratio"].tolist() == pytest.approx([2.0, 0.5])
    assert table["best"].tolist() == ["peers/jax", "peers/torch"]
    assert table["method"].tolist() == ["threads/rows", "threads/rows"]
    assert table["auto"].tolist() == pytest.approx([2.0, 6.0])


def test_an_inaccurate_peer_does_not_count():
    table = peers.ratios(frame(torch=[8.0], jax=[None], auto=[2.0]))
    assert table["ratio"].tolist() == pytest.approx([4.0])


def test_closing_names_the_geometric_mean_and_the_worst_shape():
    words = peers.closing(peers.ratios(frame(torch=[8.0, 3.0], jax=[4.0, 6.0], auto=[2.0, 6.0])))
    assert "geometric mean 1.00 over 2 shapes" in words
    assert "worst 0.50 at B=1 H=20" in words
    assert "peers/torch" in words
    assert peers.closing(peers.ratios(frame(torch=[8.0]))) == "no shape has both a peer's time and ours"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "threads/row"], "unknown method 'threads/row'"),
        (["--peers", "peers/tensorflow"], "unknown method 'peers/tensorflow'"),
        (["--threads", "0"], "at least 1"),
        (["--rounds", "0"], "at least 1"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, words, capsys):
    assert peers.main(["--no-store", *arguments]) == 1
    assert words in capsys.readouterr().err


def test_only_disturbed_shapes_are_measured_again(monkeypatch, capsys):
    """Whether others were busy decides, or the cores: never the times."""
    busy = iter([0, 50, 0, 0, 50, 0])  # of three shapes, then of those due, and so on
    whole = {peers.GRID[0]: 1}  # a shape whose cores are not whole the first time
    measured = []

    def compare(point, methods, *_):
        measured.append(point)
        said = f"cores not whole: 9 {peers.FEW}" if whole.pop(point, 0) else ""
        sizes = {key: value for key, value in vars(point).items() if key != "workload"}
        shared = dict(workload=point.workload, **sizes, threads=1, samples=2, error=0.0, status="ok",
                      message=said, source="", revision="", date="")  # fmt: skip
        return [
            store.Row(point=f"{point} {method}", method=method, sample=i, kind=kind, seconds=1.0, **shared)
            for method in methods for i, kind in enumerate(("compile", "steady"))
        ]  # fmt: skip

    monkeypatch.setattr(peers, "GRID", peers.GRID[:3])
    monkeypatch.setattr(peers, "compare", compare)
    monkeypatch.setattr(peers.psutil, "cpu_percent", lambda _: next(busy))
    assert peers.main(["--no-store", "--peers", "serial/naive", "--methods", "serial/compiled"]) == 0
    one, two, three = peers.GRID
    assert measured == [one, two, three, one, two, two]
    assert next(busy, None) is None
    assert "disturbed, and measured again: 2 of 3 shapes" in capsys.readouterr().out
