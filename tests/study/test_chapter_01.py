"""Chapter 01: Amdahl's table, the bounds of a step, and what hoisting brings, on times with known answers."""

from __future__ import annotations

import pytest

from rnnpar.study import measure, store
from rnnpar.study.corpus import data_folder
from tests.chapters import outcomes, run
from tests.study.test_results import row


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """Run the chapter where hoisting makes the origin's first workload twice as fast, and the second four times."""
    (tmp_path / "models").symlink_to(data_folder() / "models")
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path / "figures"))
    for (name, (H, I, O, T, B)), hoisted in zip(measure.ORIGIN.items(), (2e-3, 1e-3), strict=True):
        sizes = dict(workload=name, H=H, I=I, O=O, T=T, B=B)
        store.append(row("serial/naive", [4e-3], **sizes), "sweep", "a-machine")
        store.append(row("serial/hoisted", [hoisted], **sizes), "sweep", "a-machine")
    return lambda **parameters: run("01", monkeypatch, machine="a-machine", **parameters)


def test_amdahls_law(chapter):
    names, _ = chapter(threads=[2, 4])
    assert names["limits"].loc["I = O = H"].tolist() == ["1.50", "2.0", "3.0"]


def test_the_largest_bound_decides(chapter):
    names, _ = chapter(flops=2e9, latency=1e-6, levels={2**20: 4e9, 2**60: 1e9})
    alone, many = names["floor"](1), names["floor"](16)
    assert alone.loc[16].to_dict() == {"arithmetic": 0.256, "bytes of W": 0.256, "latency": 1.0}
    assert alone.loc[1024, "bytes of W"] == pytest.approx(4 * 1024**2 / 1e9 * 1e6)  # 4 MB come from memory
    assert alone.idxmax(axis=1)[[16, 1024]].tolist() == ["latency", "bytes of W"]
    assert many.idxmax(axis=1)[1024] == "arithmetic"


def test_hoisting_the_origin(chapter):
    names, shown = chapter()
    assert names["gain"].to_dict() == {"origin-large": 2, "origin-small": 4}
    (word,) = outcomes(shown).values()
    assert word == "failed"  # four times is more than three
