"""Plans for clusters, on written-down devices: what fits, what is refused, and the order of the packed weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rnnpar.kernels import cluster_plan
from rnnpar.kernels.launch import A100, H100, DoesNotFit
from rnnpar.kernels.tile import to_bfloat16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("H", [1, 4, 50, 128, 257, 512, 768, 1024])
@pytest.mark.parametrize("B", [1, 3, 16, 300])
def test_every_plan_holds_all_of_W_and_fits(dtype, H, B):
    for blocks in (None, 16):
        it = cluster_plan.plan(H, B, dtype, H100, blocks)
        assert it.blocks * it.rows >= H
        assert it.columns >= it.blocks * it.rows
        assert it.columns % 32 == it.rows % 4 == it.threads % 32 == 0
        assert it.threads <= H100.threads_per_block
        assert it.shared <= H100.shared_per_block
        assert it.clusters(B) * it.sequences >= B
        assert 0 <= it.spilled <= it.chunks
        # nothing is kept twice or lost: chunks of all threads are W
        assert it.chunks * it.threads * (4 if dtype == "float32" else 16) == it.rows * it.columns


def test_the_smallest_networks_stay_in_one_block_and_large_ones_spread():
    assert cluster_plan.plan(32, 1, "float32", H100).blocks == 1
    assert cluster_plan.plan(512, 1, "float32", H100).blocks >= 8
    assert cluster_plan.plan(1024, 1, "float32", H100).spilled > 0
    assert cluster_plan.plan(1024, 1, "bfloat16", H100).spilled == 0


def test_predicted_under_a_microsecond_a_step_where_the_measure_asks_for_it():
    """A prediction, not a measurement: the plans at H <= 256 leave room for the mark that a real run has to make."""
    for H in (64, 128, 256):
        assert cluster_plan.plan(H, 1, "float32", H100).seconds(H100, 1) < 0.5e-6


def test_what_does_not_fit_is_refused_with_the_limit():
    with pytest.raises(DoesNotFit, match=r"float32.*16 block.* needs 2,000 hidden units.*bfloat16") as caught:
        cluster_plan.plan(2000, 1, "float32", H100)
    largest = caught.value.has
    assert 900 < largest < 1300
    assert cluster_plan.plan(largest, 1, "float32", H100).spilled > 0
    with pytest.raises(DoesNotFit):
        cluster_plan.plan(largest + 4, 1, "float32", H100)
    with pytest.raises(DoesNotFit, match="2 block"):
        cluster_plan.plan(768, 1, "float32", H100, blocks=2)


@pytest.mark.parametrize("blocks", [0, 3, 32, True, "8"])
def test_a_size_of_cluster_that_there_is_not(blocks):
    with pytest.raises(ValueError, match="1, 2, 4, 8, 16 blocks"):
        cluster_plan.plan(64, 1, "float32", H100, blocks)


def test_a_card_with_smaller_clusters_is_asked_for_no_more():
    small = dataclasses.replace(H100, name="a small card", cluster=8)
    assert cluster_plan.plan(768, 1, "float32", small).blocks == 8
    with pytest.raises(ValueError, match="1, 2, 4, 8 blocks"):
        cluster_plan.plan(768, 1, "float32", small, 16)
    assert cluster_plan.plan(64, 1, "float32", A100).blocks == 1


def test_more_sequences_than_fit_at_once_take_turns():
    it = cluster_plan.plan(1024, 1, "float32", H100, 16)  # a block fills a multiprocessor
    one, many = (it.seconds(H100, B) for B in (1, 64))
    assert H100.resident_clusters(16) == 7
    assert many == pytest.approx(one * np.ceil(64 / 7))
    small = cluster_plan.plan(32, 1, "float32", H100, 16)  # some can share one: their work adds up, their waiting not
    assert small.turns(H100, 64)[0] < 64 / 7
    assert small.seconds(H100, 1) < small.seconds(H100, 64) < 64 / 7 * small.seconds(H100, 1)


def test_packed_weights_are_where_the_kernel_looks():
    H, rng = 20, np.random.default_rng(0)
    W = rng.standard_normal((H, H)).astype(np.float32)
    for split in (8, 16, 32):
        it = cluster_plan._on_cores(H, 2, 1, split, H100)
        rows = split // 8
        packed = cluster_plan.pack(W, it).reshape(2, it.chunks, it.threads, 4)
        for rank, chunk, thread, i in np.ndindex(packed.shape):
            row = rank * it.rows + thread // 32 * 4 + thread % 32 // split * rows + chunk % rows
            column = chunk // rows * 4 * split + thread % split * 4 + i
            assert packed[rank, chunk, thread, i] == (W[row, column] if row < H and column < H else 0)
    it = cluster_plan.plan(H, 1, "bfloat16", H100, 2)
    packed = cluster_plan.pack(W, it).reshape(2, it.chunks, 2, it.threads, 4, 2)
    half = to_bfloat16(W)
    for rank, chunk, i, thread, word, e in np.ndindex(packed.shape):
        warp, lane = divmod(thread, 32)
        share, tile = divmod(warp, it.rows // 16)
        row = rank * it.rows + tile * 16 + word % 2 * 8 + lane // 4
        column = (share * it.chunks + chunk) * 32 + lane % 4 * 8 + i * 4 + word // 2 * 2 + e
        assert packed[rank, chunk, i, thread, word, e] == (half[row, column] if row < H and column < H else 0)
