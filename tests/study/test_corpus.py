"""The text and the trained networks: exact on tiny cases, clear errors, and the recorded numbers come out again."""

import json

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from rnnpar.reference import reference
from rnnpar.study import corpus

EVALUATION = json.loads((corpus.data_folder() / "models" / "models.json").read_text())


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A data folder whose text is twenty characters of the alphabet 'abc\\n'."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "kjv.txt").write_bytes(b"abcabcabc\nabcabcaccb")
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path))
    return tmp_path


def test_the_last_tenth_is_held_out(tiny):
    assert corpus.text("train") == "abcabcabc\nabcabcac"
    assert corpus.text("held-out") == "cb"
    assert corpus.alphabet() == "\nabc"


def test_a_text_written_anew_is_read_anew(tiny):
    assert corpus.alphabet() == "\nabc"
    (tiny / "text" / "kjv.txt").write_bytes(b"0123456789" * 2 + b"\n")
    assert corpus.alphabet() == "\n0123456789"


def test_ids_are_positions_in_the_alphabet(tiny):
    ids = corpus.encode("cab\n")
    assert ids.dtype == np.int64
    assert ids.tolist() == [3, 1, 2, 0]
    assert corpus.encode("").shape == (0,)


@pytest.mark.parametrize("strange", ["é", "Z", " ", "\ud800", "\U0001f40d"])
def test_characters_without_an_id_are_named(tiny, strange):
    with pytest.raises(ValueError, match="the alphabet lacks") as error:
        corpus.encode(f"ab{strange}c")
    assert repr(strange) in str(error.value)


def test_one_hot_is_one_at_the_id_and_zero_elsewhere(tiny):
    x = corpus.one_hot(np.array([[3, 0], [1, 2]]))
    assert x.dtype == np.float32
    assert x.tolist() == [[[0, 0, 0, 1], [1, 0, 0, 0]], [[0, 1, 0, 0], [0, 0, 1, 0]]]


def test_one_hot_takes_one_sequence_and_none(tiny):
    assert corpus.one_hot(np.array([2, 1])).tolist() == [[[0, 0, 1, 0]], [[0, 1, 0, 0]]]
    assert corpus.one_hot(np.zeros((0, 3), np.int64)).shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (np.array([[0.0]]), TypeError, "integers"),
        (np.array([[4]]), ValueError, "0 to 3"),
        (np.array([[-1]]), ValueError, "0 to 3"),
        (np.zeros((1, 1, 1), int), ValueError, r"\(T,B\)"),
    ],
)
def test_one_hot_refuses_what_is_no_id(tiny, ids, error, message):
    with pytest.raises(error, match=message):
        corpus.one_hot(ids)


def test_sequences_lie_side_by_side_and_targets_come_next(tiny):
    x, targets = corpus.sequences(batch=2, steps=3, split="train")  # of abcabcabc\nabcabcac: starts at 0 and at 8
    assert x.argmax(axis=2).T.tolist() == [[1, 2, 3], [3, 0, 1]]
    assert targets.T.tolist() == [[2, 3, 1], [0, 1, 2]]


def test_sequences_as_long_as_they_can_be(tiny):
    x, targets = corpus.sequences(batch=2, steps=None, split="train")
    assert x.shape == (8, 2, 4)
    assert targets[-1].tolist() == [3, 1]  # the characters at 8 and at 16


@pytest.mark.parametrize(
    ("batch", "steps", "split", "message"),
    [
        (0, 1, "train", "at least 1"),
        (2, 9, "train", "0 to 8"),
        (2, -1, "train", "0 to 8"),
        (1, 1, "test", "'train' or 'held-out'"),
    ],
)
def test_sequences_refuse_what_the_text_cannot_give(tiny, batch, steps, split, message):
    with pytest.raises(ValueError, match=message):
        corpus.sequences(batch, steps, split)


def test_bits_are_the_mean_of_minus_log2():
    y = np.array([[[0.5, 0.25, 0.25]], [[0.125, 0.875, 0.0]]], np.float32)
    assert corpus.bits_per_character(y, np.array([[1], [0]])) == 2.5
    assert corpus.bits_per_character(np.full((5, 3, 8), 0.125), np.zeros((5, 3), int)) == 3.0
    assert corpus.bits_per_character(y, np.array([[1], [2]])) == np.inf


@pytest.mark.parametrize(
    ("y", "targets", "error", "message"),
    [
        (np.ones((2, 3)), np.zeros((2, 3), int), ValueError, r"\(T,B,O\)"),
        (np.ones((2, 3, 4)), np.zeros((2, 2), int), ValueError, r"\(2, 3\)"),
        (np.ones((2, 3, 4)), np.full((2, 3), 4), ValueError, "0 to 3"),
        (np.ones((2, 3, 4)), np.zeros((2, 3)), TypeError, "integers"),
        (np.ones((0, 3, 4)), np.zeros((0, 3), int), ValueError, "no characters"),
    ],
)
def test_bits_refuse_what_does_not_fit(y, targets, error, message):
    with pytest.raises(error, match=message):
        corpus.bits_per_character(y, targets)


def test_a_missing_file_says_what_would_do(tmp_path, monkeypatch):
    monkeypatch.setenv("RNNPAR_DATA", str(tmp_path / "nowhere"))
    for call in (corpus.alphabet, corpus.models, corpus.text, corpus.sequences):
        with pytest.raises(FileNotFoundError, match="RNNPAR_DATA") as error:
            call()
        assert "\n" not in str(error.value)


def test_an_unknown_network_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="kjv-h128"):
        corpus.load("kjv-h1")


def test_the_committed_text_is_the_one_that_the_networks_were_trained_on():
    assert corpus.alphabet() == EVALUATION["alphabet"]
    assert len(corpus.text("train")) == 1_136_308
    assert len(corpus.text("held-out")) == 126_257


@pytest.mark.parametrize("name", sorted(EVALUATION["models"]))
def test_the_oracle_reaches_the_recorded_bits(name):
    net, recorded = corpus.load(name), corpus.models()[name]
    for size in ("num_layers", "hidden_size", "input_size", "output_size"):
        assert getattr(net, size) == recorded[size]
    x, targets = corpus.sequences(*(EVALUATION["evaluation"][key] for key in ("batch", "steps", "split")))
    with threadpool_limits(1):  # products this small are no faster on more threads, and crawl on a busy machine
        y, _ = reference(net, x)
    assert corpus.bits_per_character(y, targets) == pytest.approx(recorded["bits_per_character"], abs=1e-4)
    assert recorded["bits_per_character"] < 2.2
