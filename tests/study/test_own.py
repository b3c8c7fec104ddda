"""A method of one's own: the rules catch each way to break them, and chapter 09 runs as it stands."""

from __future__ import annotations

import linecache
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

import rnnpar
from rnnpar import machine, registry
from rnnpar.study import notebooks, own, plots, store, tell
from tests.study.test_plots import COLUMNS

CHAPTER = notebooks.ROOT / "notebooks" / "09_your_own_method.ipynb"


@pytest.fixture(autouse=True)
def _own(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_own", {})
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path / "figures"))


def oracle(net, x, h0):
    y, h = rnnpar.reference(net, x, h0)
    return y.astype(np.float32), h.astype(np.float32)


def right(net):
    return lambda x, h0: oracle(net, x, h0)


def forgets_its_state(net):
    return lambda x, h0: oracle(net, x, np.zeros_like(h0))


def in_float64(net):
    return lambda x, h0: rnnpar.reference(net, x, h0)


def no_layers(net):
    return lambda x, h0: (oracle(net, x, h0)[0], oracle(net, x, h0)[1][-1])


def mixes_the_batch(net):
    def forward(x, h0):
        y, h = oracle(net, x, h0)
        return (y + 1e-4 * y.mean(axis=1, keepdims=True)).astype(np.float32), h

    return forward


def rounds(net):
    return lambda x, h0: tuple(array.astype(np.float16).astype(np.float32) for array in oracle(net, x, h0))


def writes_its_input(net):
    def forward(x, h0):
        found = oracle(net, x, h0)
        h0 += 1
        return found

    return forward


def spoils_the_weights(net):
    def forward(x, h0):
        found = oracle(net, x, h0)
        net.layers[0].b[:] += 1
        return found

    return forward


def keeps_one_buffer(net):
    kept = {}

    def forward(x, h0):
        y, h = oracle(net, x, h0)
        kept.setdefault(y.shape, (y, h))
        kept[y.shape][0][:], kept[y.shape][1][:] = y, h
        return kept[y.shape]

    return forward


def raises(net):
    def forward(x, h0):
        raise IndexError("out of\nrange")

    return forward


RULES = list(own.RULES)
BREAKS = {  # the rule that must be among those that are broken, and how it is told
    forgets_its_state: (RULES[0], "relative error"),
    mixes_the_batch: (RULES[0], "over the bound of 0.00001"),
    rounds: (RULES[0], "relative error"),
    in_float64: (RULES[3], r"y is \(5, 3, 6\) of float64; it must be \(5, 3, 6\) of float32"),
    no_layers: (RULES[3], r"h is \(3, 4\) of float32; it must be \(2, 3, 4\)"),
    writes_its_input: (RULES[4], "it has changed h0"),
    spoils_the_weights: (RULES[4], "it has changed b of layer 0"),
    keeps_one_buffer: (RULES[5], "the next call overwrites them"),
    raises: (RULES[1], "IndexError: out of range"),
}


@pytest.mark.parametrize("method", BREAKS, ids=lambda method: method.__name__)
def test_each_rule_is_broken_by_somebody(method):
    rnnpar.register("mine/broken", method)
    rule, how = BREAKS[method]
    found = own.check("mine/broken")
    assert re.search(how, found[rule]), found
    said = own.rules("mine/broken").data
    broken = sum(map(bool, found.values()))
    assert said.startswith(f"**mine/broken breaks {broken} of {len(RULES)} rules.**")
    assert said.count("| no: ") == broken


def test_pieces_and_company_are_looked_at():
    """Two rules whose breach the oracle sees first: here alone."""
    state = own._pieces(lambda net: _Stub(lambda x, h0: (x, (np.zeros(3) if h0 is None else h0) + len(x) ** 2)))
    assert state.startswith("they differ by ")
    alone = own._alone(lambda net: _Stub(lambda x, h0: (x + x.mean(axis=1, keepdims=True), x[-1:])))
    assert alone.startswith("they differ by ")


class _Stub:
    def __init__(self, forward):
        self.forward = forward

    def __call__(self, x, h0=None):
        return self.forward(x, h0)


@pytest.mark.parametrize("method", ["mine/right", "serial/naive", "serial/hoisted"])
def test_right_methods_keep_all_rules(method):
    rnnpar.register("mine/right", right)
    assert set(own.check(method).values()) == {""}
    assert own.rules(method).data.startswith(f"**{method} keeps all {len(RULES)} rules.**")


def test_a_method_that_is_not_there():
    with pytest.raises(ValueError, match="unknown method 'mine/none'"):
        own.check("mine/none")


def test_beside_measures_once_and_all_again_after_a_change(monkeypatch):
    rnnpar.register("mine/right", right)
    methods = ["mine/right", "serial/naive"]
    first = own.beside(methods, [4, 8], samples=3, budget_s=0.01)
    assert set(first["method"]) == set(methods)
    assert set(first["H"]) == {4, 8}
    assert (first["status"] == "ok").all()
    pd.testing.assert_frame_equal(own.beside(methods, [4, 8]), first)
    monkeypatch.setattr(registry, "_source_of", lambda function: "changed")
    rnnpar.register("mine/right", right)
    again = own.beside(methods, [4, 8], samples=3, budget_s=0.01)
    assert set(again.loc[again["method"] == "mine/right", "source"]) == {"changed"}
    assert len(store.newest("own")) == 4
    rows = store._scan(store.results_folder() / "own.csv")[0]
    assert len(rows) == 8  # the other method was measured again as well, beside the new one
    assert own.beside(methods, [4], name=machine.name())["H"].unique() == [4]
    with pytest.raises(store.ResultsError, match="no results of 'own' of elsewhere"):
        own.beside(methods, name="elsewhere")


def frame_of(**seconds: float) -> pd.DataFrame:
    """A machine's times at H = 64 and 512, in microseconds: method=(of both)."""
    rows = []
    for method, times in seconds.items():
        for H, time in zip((64, 512), times, strict=True):
            row = dict.fromkeys(COLUMNS) | dict(
                machine="a-machine", workload="random", method=method.replace("_", "/"), H=H, I=H, O=H, T=64, B=1,
                layers=1, threads=1, sample=1, samples=1, seconds=time and 1e-6 * time, kind="steady", error=0.5,
                status="ok" if time else "inaccurate", date="2026-01-31")  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows)


def test_verdicts():
    frame = frame_of(mine_joined=(10, 20), serial_hoisted=(10, 10), serial_naive=(30, 40))
    said = own.joined(frame).data
    assert said.startswith("**On a-machine, mine/joined is as fast as serial/hoisted at H = 64 and 0.50 times at H ")
    assert "over serial/naive it is 3.0 times and 2.0 times as fast (T = 64, B = 1, I = O = H).**" in said
    assert said.count("It held.") == 2
    assert tell.NOT_MEASURED in own.joined(frame[frame["method"] == "serial/naive"]).data
    bad = own.caught(frame_of(mine_filled=(None, None)), "mine/filled").data
    assert bad.startswith("**On a-machine, the answers of mine/filled are 50% to 50% away from the oracle's, where ")
    assert "it has no time at 2 of 2 sizes.**" in bad
    assert "It held." in bad
    half = own.caught(frame_of(mine_filled=(None, 3)), "mine/filled").data
    assert "It failed at H = 512." in half
    assert "nothing wrong was found" in own.caught(frame, "mine/joined").data
    assert tell.NOT_MEASURED in own.caught(frame, "mine/none").data


def test_the_chapters_own_cells(monkeypatch):
    """Chapter 09 as a reader runs it, at two small sizes: its method is right and timed, the other is caught."""
    space: dict = {"__name__": "__main__"}
    said: dict = {}
    shown = []
    monkeypatch.setattr(plots, "show", lambda figure, name, machine: shown.append((figure, name)))
    for cell in nbformat.read(CHAPTER, 4).cells:
        if cell.cell_type == "code":
            *lines, last = _statements(cell.source, cell.id)
            exec(lines[0], space) if lines else None
            said[cell.id] = eval(last, space) if last else None
            space["sizes"] = [8, 16]
    assert {"mine/joined", "mine/filled"} <= {row.name for row in rnnpar.methods()}
    assert said["rules-table"].data.startswith("**mine/joined keeps all 6 rules.**")
    assert "**mine/filled breaks" in said["filled-rules"].data
    seen, tried = space["seen"], space["tried"]
    assert set(seen["method"]) == {"mine/joined", *space["others"]}
    assert (seen["status"] == "ok").all()
    assert set(tried.loc[tried["method"] == "mine/filled", "status"]) == {"inaccurate"}
    assert said["race-verdict"].data.startswith(f"**On {machine.name()}, mine/joined is ")
    assert "it has no time at 2 of 2 sizes.**" in said["filled-verdict"].data
    assert [name for _, name in shown] == ["09_beside", "09_caught"]
    caught = [text.get_text() for text in shown[1][0].axes[0].texts]
    assert "mine/filled: too inaccurate to count" in caught
    assert "mine/joined" in caught


def _statements(source: str, name: str):
    """A cell as code to execute, and its last expression to evaluate; its lines can be read back, as in IPython."""
    import ast

    file = f"<chapter 09, {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    yield compile(ast.Module(body, []), file, "exec")
    yield compile(ast.Expression(last.value), file, "eval") if last else None


def test_the_method_of_the_chapter_is_short():
    cells = {cell.id: cell.source for cell in nbformat.read(CHAPTER, 4).cells}
    assert len([line for line in cells["joined"].splitlines() if line.strip()]) <= 20


def test_every_link_of_every_chapter_leads_somewhere():
    folder = Path(CHAPTER).parent
    sources = {path.name: nbformat.read(path, 4) for path in folder.glob("*.ipynb")}
    heads = {
        name: {
            line.lstrip("# ").strip().replace(" ", "-")
            for cell in book.cells
            if cell.cell_type == "markdown"
            for line in cell.source.splitlines()
            if line.startswith("#")
        }
        for name, book in sources.items()
    }
    seen = 0
    for name, book in sources.items():
        for cell in book.cells:
            if cell.cell_type == "markdown":
                for target in re.findall(r"\]\(([^)\s]+)\)", cell.source):
                    if re.match(r"https?://", target):
                        continue
                    file, _, anchor = target.partition("#")
                    assert (folder / file).exists(), f"{name}: {target}"
                    assert not anchor or anchor in heads[file or name], f"{name}: {target}"
                    seen += 1
    assert seen > 30


def test_a_word_is_explained_once():
    glossary = nbformat.read(CHAPTER.with_name("10_glossary.ipynb"), 4)
    words = [word for cell in glossary.cells for word in re.findall(r"^- \*\*(.+?)\*\*:", cell.source, re.MULTILINE)]
    assert len(words) > 60
    assert len(words) == len({word.lower() for word in words})
    for cell in glossary.cells:
        mine = [word.lower() for word in re.findall(r"^- \*\*(.+?)\*\*:", cell.source, re.MULTILINE)]
        assert mine == sorted(mine), cell.id
