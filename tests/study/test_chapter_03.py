"""Chapter 03 on a small stored set: its ratios, where its expectations fail, and that a cell can be run again."""

from __future__ import annotations

from functools import partial

import nbformat
import numpy as np
import pytest

import rnnpar
from rnnpar.kernels.launch import DoesNotFit
from rnnpar.study import corpus, results, store
from rnnpar.study.expect import Outcome
from rnnpar.study.notebooks import ROOT
from tests.chapters import _execute, figures, outcomes, run
from tests.study.test_results import row
from tests.test_model import simple_peaks

PEAKS = simple_peaks() | {
    "barrier": {"2": 1e-6, "8": 1e-6},
    "counter_barrier": {"2": 0.5e-6, "8": 0.8e-6},
    "launch": {"1": 0.0, "2": 4e-6, "8": 9e-6},
}
approx = partial(pytest.approx, rel=1e-5)  # times are stored with six digits
ORIGIN = {"origin-large": dict(H=50, I=50, O=8000, T=15), "origin-small": dict(H=120, I=120, O=10000, T=50)}


def measured(method, seconds, **shape):
    """A measurement in a list; I and O are H, and a method of threads ran on two, unless told otherwise."""
    shape = {"I": shape["H"], "O": shape["H"], "threads": 1 + method.startswith("threads/")} | shape
    return row(method, [seconds], **shape)


def gains(base, shape, **gain):
    """serial/compiled at `base` seconds, and the methods of threads so many times as fast."""
    rows = [(f"threads/{name}", base / times) for name, times in gain.items()]
    return [one for method, seconds in [("serial/compiled", base), *rows] for one in measured(method, seconds, **shape)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Results of a machine of two threads with 1 MiB of second-level cache each; what replaces the real ones."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        store_small(tmp_path_factory.mktemp("data"), monkeypatch)
        yield monkeypatch


def store_small(tmp_path, monkeypatch):
    for linked in ("text", "models"):
        (tmp_path / linked).symlink_to(corpus.data_folder() / linked, target_is_directory=True)
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr(results, "peaks", lambda name="": PEAKS)
    alone, company = dict(T=128, B=1), dict(H=256, T=32)
    rows = [
        *gains(1e-3, dict(H=64, **alone), timestep=0.5, rows=0.5),
        *gains(4e-3, dict(H=256, **alone), timestep=2.5, rows=1.6, wavefront=1.7),
        *gains(16e-3, dict(H=512, **alone), timestep=1.0, rows=1.4),
        *gains(64e-3, dict(H=1024, **alone), timestep=1.0, rows=2.5),
        *gains(7e-3, dict(H=256, layers=2, **alone), wavefront=1.7),
        *gains(13e-3, dict(H=256, layers=4, **alone), wavefront=1.3),
        *gains(1e-3, dict(B=1, **company), batch=1.0, rows=1.5),
        *gains(2e-3, dict(B=2, **company), batch=1.0, rows=1.2),
        *gains(16e-3, dict(B=16, **company), batch=1.96, rows=2.0),
        *gains(32e-3, dict(B=32, **company), batch=1.65, rows=1.5),
        *gains(16e-3, dict(H=64, T=32, B=16), batch=1.0, rows=2.0),
        *measured("threads/rows", 5e-3, H=256, threads=1, **alone),
        *(one for name, times in (("origin-large", 5), ("origin-small", 3)) for one in (
            *measured("serial/naive", 12e-3, workload=name, **ORIGIN[name]),
            *measured("serial/compiled", 6e-3, workload=name, **ORIGIN[name]),
            *measured("threads/rows", 12e-3 / times, workload=name, **ORIGIN[name]))),
    ]  # fmt: skip
    store.append(rows, "sweep", "a-machine")
    store.save_machine({"name": "a-machine", "cores_allowed": 2, "caches": {"L2": 2**20}}, "a-machine")


@pytest.fixture(scope="module")
def chapter(stored):
    """What the chapter's cells leave, and what they have shown."""
    return run("03", stored, machine="a-machine")


def test_expectations_fail_where_they_are_broken(chapter):
    said = {one.claim: one for one in chapter[1] if isinstance(one, Outcome)}
    failed = {claim: list(one.failed.index) for claim, one in said.items() if one.word == "failed"}
    assert failed == {
        "a new parallel region costs at least 5 barriers of flags": [2],
        "a counter is dearer than flags from 8 threads on": [8],
        "threads/timestep is nowhere twice as fast as serial/compiled": [256],
        "threads/rows is at least 1.5 times as fast as serial/compiled from H = 256 on": [512],
        "threads/rows gains more than the number of threads where W fits all their L2 caches but not one": [512],
        "with 4 layers, threads/wavefront reaches at least 70% of the ideal (as many times as threads, at most 7)": [4],
        "threads/wavefront reaches at least 80% of what the longest stage and the threads allow, at all layers": [4],
        "serial/compiled reads a W of more than twice its L2 at less than 85% of its best rate": [1024],
        "threads/rows gains most where W has left one core's L2 and not yet all threads'": [512],
        "with 8 sequences a thread or more, threads/batch reaches at least 85% of the ideal": [32],
        "from 8 sequences a thread on, threads/batch is nowhere more than 3% behind threads/rows": [(64, 16)],
        "the best method is at least 4 times as fast as serial/naive on both of the origin's workloads": [
            "origin-small"
        ],
    }
    assert {claim for claim, one in said.items() if one.word == "held"} == {
        "a counter is cheaper than flags for 2 threads",
        "threads/timestep loses to serial/compiled below H = 128",
        "up to H = 64 the barrier of threads/rows costs more than it saves",
        "alone, a sequence gains nothing by threads/batch",
        "threads/batch loses to threads/rows at B = 1",
        "threads/batch beats threads/rows at the most sequences",
        "one sequence, from H = 128 on: threads/rows is ahead of threads/batch",
    }
    assert len(figures(chapter[1])) == 12


def test_numbers_are_those_of_the_set(chapter):
    names = chapter[0]
    assert names["rows"].to_dict() == approx({64: 0.5, 256: 1.6, 512: 1.4, 1024: 2.5})
    # Layers cost 4, 7 and 13 ms: 3 ms each and 1 ms for the output, so the longest stage, W h, has 2 ms.
    assert names["ideal"].to_dict() == approx({1: 2.0, 2: 3.5, 4: 6.5})
    assert names["share"].to_dict() == approx({1: 0.85, 2: 0.85, 4: 0.65})
    assert names["single"][256] == approx(4e-9 * 256**2 * 128 / 4e-3)  # GB/s of W
    scaling = names["scaling"].set_index("threads")
    assert scaling.speed_up.to_dict() == approx({1: 1.0, 2: 2.0})
    assert scaling.efficiency.to_dict() == approx({1: 100, 2: 100})
    assert names["best"].over_compiled.to_dict() == approx({"origin-large": 2.5, "origin-small": 1.5})


def test_w_alone_is_read_as_the_peaks_have_it(chapter):
    bared = chapter[0]["bared"].set_index(["H", "threads"])["GB/s"]  # a multiply-add in 1 ns: 4 GB/s a thread
    assert (bared[256, 1], bared[256, 2]) == approx((4, 8))


def test_from_where_on_a_ratio_stays_above(chapter):
    first, against = chapter[0]["first_ahead"], chapter[0]["against"]
    assert against.to_dict() == approx({1: 1 / 1.5, 2: 1 / 1.2, 16: 0.98, 32: 1.1})
    assert (first(against), first(against, 0.97), first(against, 0.5), first(against, 2.0)) == (32, 16, 1, np.inf)
    words = chapter[0]["ahead"]
    assert (words(against), words(against, 2.0), words(against.iloc[:0])) == ("from B = 32 on", "nowhere", None)
    assert chapter[0]["level"] == {"H = 64": "nowhere", "H = 256": "from B = 16 on"}


def test_a_readers_other_sizes(stored, monkeypatch):
    names, shown = run("03", monkeypatch, machine="a-machine", H_along_B=64, map_B=[16])
    assert names["batch"].to_dict() == approx({16: 1.0})
    assert names["leads"][["H", "B"]].to_numpy().tolist() == [[64, 16], [256, 16]]
    assert outcomes(shown)["threads/batch loses to threads/rows at B = 1"] == "not measured"


def again(names, source, monkeypatch):
    """How the expectations of a cell that is run once more fare, by their claims."""
    shown: list = []
    monkeypatch.setattr("rnnpar.study.expect.display", shown.append)
    _execute(source, "a cell", names, shown)
    return outcomes(shown)


def cells():
    return [cell for cell in nbformat.read(ROOT / "notebooks" / "03_threads.ipynb", 4).cells
            if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", ())]  # fmt: skip


def test_a_cell_that_is_run_again_shows_the_same(chapter, monkeypatch):
    """No cell takes a name that another one still needs."""
    names, first = chapter[0], outcomes(chapter[1])
    for cell in cells():
        if "live" not in cell.metadata.get("tags", ()):
            assert again(dict(names), cell.source, monkeypatch).items() <= first.items(), cell.id


def test_a_network_that_does_not_fit_is_named(chapter, monkeypatch):
    """Bits of trained networks, where one method refuses a network: the others are held against the oracle."""
    names, prepare = chapter[0] | {"text_steps": 20}, rnnpar.prepare

    def refusing(net, method, **options):
        if (method, net.hidden_size) == ("threads/rows", 512):
            raise DoesNotFit("threads/rows", "bytes", 2, 1)
        return prepare(net, method, **options)

    monkeypatch.setattr(rnnpar, "prepare", refusing)
    source = {cell.id: cell.source for cell in cells()}
    again(names, source["bits-figure"], monkeypatch)
    assert again(names, source["bits-verdict"], monkeypatch) == {
        "every method within 0.0001 bits of the oracle": "held"
    }
    table = names["table"]
    assert "threads/rows on kjv-h512" in names["refused"]
    assert len(table) == 3 * len(names["able"]) - 1
    assert (table.bits - table.oracle).abs().max() < 1e-4
    names["table"] = table.assign(bits=table.oracle + 2e-4)
    assert again(names, source["bits-verdict"], monkeypatch) == {
        "every method within 0.0001 bits of the oracle": "failed"
    }
