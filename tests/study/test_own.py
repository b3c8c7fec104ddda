"""A method of one's own: the rules catch each way to break them, and a race measures what has changed."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

import rnnpar
from rnnpar import machine, registry
from rnnpar.study import notebooks, own, results, store

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


def test_a_method_that_is_not_there():
    with pytest.raises(ValueError, match="unknown method 'mine/none'"):
        own.check("mine/none")


def test_a_race_measures_once_and_all_again_after_a_change(monkeypatch):
    rnnpar.register("mine/right", right)
    methods, few = ["mine/right", "serial/naive"], dict(samples=3, budget_s=0.01)
    own.race(methods, [4, 8], T=2, **few)
    first = results.load("", "own")
    assert set(zip(first.method, first.H, strict=True)) == {(method, H) for method in methods for H in (4, 8)}
    assert (first.status == "ok").all()
    own.race(methods, [4, 8], T=2, **few)
    pd.testing.assert_frame_equal(results.load("", "own"), first)
    monkeypatch.setattr(registry, "_source_of", lambda function: "changed")
    rnnpar.register("mine/right", right)
    own.race(methods, [4, 8], T=2, **few)
    newest = store.newest("own").values()
    assert {one.source for one in newest if one.method == "mine/right"} == {"changed"}
    assert len(newest) == 4
    assert (
        len((store.results_folder() / "own.jsonl").read_text().splitlines()) == 8
    )  # the other method was measured again as well, beside the new one


@pytest.mark.parametrize("variable", [False, True])
def test_nothing_is_measured_for_a_page_about_another_machine(variable, monkeypatch):
    if variable:
        monkeypatch.setenv("RNNPAR_MACHINE", "elsewhere")
    own.race(["serial/naive"], [4], name="" if variable else "elsewhere")
    assert not store.has("own", machine.name())


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
