"""Chapter 09 as a reader runs it, at two small sizes: its method is right and timed, the other is caught."""

from __future__ import annotations

import pytest

from rnnpar import machine, registry
from rnnpar.study import store
from tests.chapters import figures, outcomes, run
from tests.study.test_results import row


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path / "figures"))


def test_a_method_is_timed_and_a_wrong_one_is_caught(monkeypatch):
    names, shown = run("09", monkeypatch, skip="", sizes=[8, 16], T=4)
    assert {"mine/joined", "mine/filled"} <= set(registry._own)
    assert set(names["kept"]) == {""}
    assert set(names["seen"].method) == set(names["names"])
    assert (names["seen"].status == "ok").all()
    assert set(names["seen"].machine) == {machine.name()}
    assert names["mine"].status.tolist() == ["inaccurate"] * 2
    said = outcomes(shown)
    assert said["mine/filled is caught at every size"] == said["mine/joined keeps every rule"] == "held"
    assert len(figures(shown)) == 2


def test_the_race_of_another_machine(monkeypatch):
    times = {"mine/joined": (1e-3, 2e-3), "serial/hoisted": (1e-3, 1e-3), "serial/naive": (3e-3, 1e-3)}
    for name, both in times.items():
        for H, seconds in zip((64, 512), both, strict=True):
            store.append(row(name, [seconds], H=H, I=H, O=H, T=64), "own", "a-machine")
    names, shown = run("09", monkeypatch, machine="a-machine")
    assert names["over_hoisted"].to_dict() == {64: 1, 512: 0.5}
    said = list(outcomes(shown).values())
    assert said == ["held", "held", "held", "failed", "not measured"]  # at H = 512 naive is twice as fast
