"""The model of ranks: its arithmetic on numbers that are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import rnnpar
from rnnpar import model_ranks
from rnnpar.model import Model
from rnnpar.model_ranks import Link
from rnnpar.work import Work
from tests.test_model import simple_peaks

WORK = Work(T=100, B=4, I=64, H=128, O=96)
MODEL = Model(simple_peaks(), 32)  # a multiply-add takes 1 ns, whatever the shape
ONE = 100 * 4 * 128 * (64 + 128 + 96) * 1e-9


def test_batch_and_rows_share_the_work_and_add_what_is_sent():
    assert model_ranks.batch(MODEL, WORK, 1) == pytest.approx(ONE, rel=1e-6)
    assert model_ranks.batch(MODEL, WORK, 2) == pytest.approx(ONE / 2, rel=1e-6)
    assert model_ranks.batch(MODEL, WORK, 4, Link(1e-6, 1e-9)) == pytest.approx(
        ONE / 4 + 3 * 4e-9 * (100 * 96 + 128) + 1e-6, rel=1e-6
    )
    assert model_ranks.rows(MODEL, WORK, 1, lambda *_: 1.0) == pytest.approx(ONE, rel=1e-6)
    assert model_ranks.rows(MODEL, WORK, 2, lambda ranks, n: 1e-6 * ranks * n) == pytest.approx(
        ONE / 2 + 100 * 2e-6 * 512, rel=1e-6
    )


def test_rows_beyond_the_panels_have_nothing_to_do():
    few, many = (model_ranks.rows(MODEL, WORK, ranks, lambda *_: 0.0) for ranks in (4, 64))
    assert model_ranks.rows_parts(MODEL, WORK, 64)["columns"] == 32
    assert model_ranks.rows_parts(MODEL, WORK, 64)["step"] == model_ranks.rows_parts(MODEL, WORK, 4)["step"]
    assert many < few  # but of the output they have a share


def test_an_allgather_takes_as_many_rounds_as_the_ranks_have_bits():
    link = Link(alpha=2e-6, beta=1e-9, busy=1e-6)
    assert model_ranks.allgather(link, 1, 1000) == 0
    assert model_ranks.allgather(link, 2, 1000) == pytest.approx(3e-6 + 0.5e-6)
    assert model_ranks.allgather(link, 1024, 0) == pytest.approx(30e-6)
    assert link.message(1000) == pytest.approx(3e-6)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 12])
def test_cuts_are_the_best_there_are(ranks):
    rng = np.random.default_rng(ranks)
    for size in (1, 3, 5, 9):
        costs = list(rng.uniform(0.1, 1, size))
        edges = model_ranks.cuts(costs, ranks)
        assert len(edges) == ranks + 1
        assert edges == sorted(edges)
        assert (edges[0], edges[-1]) == (0, size)
        found = max(sum(costs[a:b]) for a, b in itertools.pairwise(edges))
        parts = min(ranks, size)
        best = min(
            max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *inner, size)))
            for inner in itertools.combinations(range(1, size), parts - 1)
        )
        assert found == pytest.approx(best)
        assert edges[-2] < size, "the last part, which is rank 0's, has the output"


def test_the_chunk_is_longer_where_messages_are_dearer():
    work = Work(T=1000, B=1, I=256, H=256, O=256, layers=4)
    near, far = (model_ranks.best_chunk(MODEL, work, 4, Link(1e-6, 0.0, busy)) for busy in (1e-6, 1e-2))
    assert 1 <= near < far <= 1000
    alone = model_ranks.pipeline(MODEL, work, 1, Link(0.0, 0.0), 1000)
    assert model_ranks.pipeline(MODEL, work, 4, Link(1e-6, 0.0)) < alone


@pytest.mark.parametrize(("T", "ranks", "chunk"), [(1, 1, 0), (7, 2, 3), (500, 4, 0), (5, 9, 100)])
def test_a_plan_fits_what_it_is_for(T, ranks, chunk, monkeypatch):
    monkeypatch.setattr(model_ranks, "known", model_ranks.Nominal)
    net = rnnpar.RNN.random(3, 40, 5, 2)
    steps, *edges = model_ranks.pipeline_plan(net, T, 2, ranks, chunk)
    assert 1 <= steps <= T
    assert steps == min(chunk, T) or not chunk
    assert len(edges) == ranks + 1
    assert edges[-1] == 5


def test_a_plan_for_a_dearer_link_has_longer_chunks(monkeypatch):
    monkeypatch.setattr(model_ranks, "known", model_ranks.Nominal)
    net = rnnpar.RNN.random(64, 256, 64, 4)
    near, far = (model_ranks.pipeline_plan(net, 1000, 1, 4, link=Link(1e-6, 0.0, busy))[0] for busy in (0.0, 1e-3))
    assert near < far
