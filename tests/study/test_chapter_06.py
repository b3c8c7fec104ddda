"""Chapter 06: what its cells compute of messages and ranks, on times with known answers."""

from __future__ import annotations

import json
from functools import cache

import pytest

from rnnpar import peaks
from rnnpar.study import store
from tests.chapters import outcomes, run
from tests.study.test_results import row
from tests.study.test_simulate import MESSAGES
from tests.test_model import simple_peaks

SHAPES = {  # strategy, its twin on threads, and the sizes at which both are timed
    "rows": ("threads/rows", [dict(H=H, T=128) for H in (512, 1024)]),
    "batch": ("threads/batch", [dict(H=256, T=32, B=B) for B in (1, 64)]),
    "pipeline": ("threads/wavefront", [dict(H=256, T=128, layers=layers) for layers in (1, 4)]),
}
SHARES = {1: 1.0, 2: 0.5, 4: 0.8}  # of the time on one rank


def store_times(messages: dict, **slow: float) -> None:
    """Ranks that take SHARES of one rank, two of them `slow` by strategy; two threads take 0.4, rows beside by size."""
    for strategy, (twin, shapes) in SHAPES.items():
        for shape in shapes:
            times = {(f"mpi/{strategy}", ranks): share for ranks, share in SHARES.items()} | {(twin, 2): 0.4}
            times[f"mpi/{strategy}", 2] = slow.get(strategy, SHARES[2])
            if strategy != "rows":  # it is ahead where there is one sequence or layer, and behind where there are more
                times["mpi/rows", 2] = 0.25 if 1 in (shape.get("B"), shape.get("layers")) else 1.0
            for (method, threads), seconds in times.items():
                square = dict(I=shape["H"], O=shape["H"]) | shape
                store.append(row(method, [seconds], threads=threads, **square), "mpi", "a-machine")
    if messages:
        folder = store.results_folder("a-machine")
        (folder / "peaks.json").write_text(json.dumps(simple_peaks() | {"version": peaks.VERSION}))
        (folder / "mpi.json").write_text(json.dumps(messages))


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    """Run the chapter on these times: the names that it leaves, and the outcomes of its expectations."""

    @cache
    def chapter(messages: str, **slow: float) -> tuple[dict, dict[str, str]]:
        with pytest.MonkeyPatch.context() as patch:
            folder = tmp_path_factory.mktemp("data")
            patch.setenv("RNNPAR_DATA", str(folder))
            patch.setenv("RNNPAR_FIGURES", str(folder / "figures"))
            store_times(json.loads(messages), **slow)
            names, shown = run("06", patch, machine="a-machine", H_large=[4096])
            return names, outcomes(shown)

    return lambda messages=MESSAGES, **slow: chapter(json.dumps(messages), **slow)


def of(said: dict[str, str], start: str) -> list[str]:
    """How the expectations fared whose claims begin so."""
    return [word for claim, word in said.items() if claim.startswith(start)]


def test_ranks_over_one_rank_and_beside_threads(chapter):
    names, said = chapter()
    assert names["gain_rows"].to_dict() == pytest.approx({512: 2, 1024: 2})
    assert names["lag_batch"].to_dict() == pytest.approx({1: 1.25, 64: 1.25})
    assert names["gain_layers"].to_dict() == pytest.approx({1: 2, 4: 2})
    assert of(said, "mpi/rows") == ["held", "held"]
    assert of(said, "mpi/batch") == ["failed"], "1.25 times the time of threads/batch"
    assert of(said, "mpi/pipeline") == ["held", "held"]


def test_slow_ranks_and_dear_messages(chapter):
    points = MESSAGES["exchange"]["2"]
    dear = {"2": points | {"window": points["allgather"]}, "4": MESSAGES["exchange"]["4"]}
    dear = MESSAGES | {"messages": [[8, 3e-6], [262144, 1e-3]], "exchange": dear}
    _, said = chapter(dear, rows=0.7, pipeline=0.6)
    assert of(said, "mpi/rows") == ["failed", "failed"]
    assert of(said, "mpi/pipeline") == ["held", "failed"]
    assert of(said, "a small message") == of(said, "the window") == ["failed"]


def test_what_a_message_costs(chapter):
    names, said = chapter()
    assert names["least"].tolist() == pytest.approx([1])
    assert names["state"].to_dict() == pytest.approx({"window": 4, "messages": 8, "allgather": 12})
    assert of(said, "a small message") == of(said, "the window") == ["held"]


def test_where_strategies_cross(chapter):
    names, _ = chapter()
    measured = names["crossings"].measured
    assert measured.loc["mpi/batch"].tolist() == [0.5, 2]
    assert measured.loc["mpi/pipeline"].tolist() == [0.5, 2]
    assert names["ahead_from"](measured.loc[["mpi/batch"]]).endswith("B = 64")
    assert names["ahead_from"](measured.loc[["mpi/batch"]].iloc[:1]) == "nowhere"


def test_measured_times_are_held_against_what_is_said(chapter):
    """The model multiplies at 1 ns; the ranks of this test take half a second whatever the size."""
    names, said = chapter()
    assert of(said, "the model predicts") == ["failed"]
    assert of(said, "the simulation is within") == ["failed", "failed"]
    assert len(names["on_two"]) == 10
    assert len(names["check_four"]) == 6
    product = 128 * 1024 * 1024 * 1e-9 / 2  # of each of the three, on two ranks
    said_of_it = MESSAGES["call"]["2"] + 3 * product + 128 * 4e-6
    assert names["on_two"]["mpi/rows", "H 1,024 T 128 B 1"] == pytest.approx(said_of_it / 0.5)


def test_a_thousand_ranks_follow_the_networks_and_the_peaks(chapter):
    names, said = chapter()
    assert set(names["scale"].H) == {4096}, "as the parameter says"
    assert of(said, "with H = 16,384") == ["not measured"]
    two = names["scale"][names["scale"].ranks == 2].set_index("method").formula
    assert two.between(1.9, 2).all()
    assert two["shared memory"] > two["Ethernet, 25 Gb/s (TCP)"]
    assert of(said, "the pipeline ends") == ["held"]
    assert names["most"].set_index("method").ranks["mpi/batch"] == 256, "as many ranks as sequences"


def test_without_peaks_and_messages_only_what_was_measured_is_said(chapter):
    names, said = chapter({})
    assert of(said, "mpi/rows") == ["held", "held"]
    assert {word for claim, word in said.items() if not claim.startswith("mpi/")} == {"not measured"}
    assert names["points"].empty
