"""Real input for the study: a text to read character by character, and networks trained to predict the next one.

Letters as everywhere: T time steps, B sequences side by side, I characters in the alphabet (= O). The files lie
in the folder data/ beside the package, or in the one that the environment variable RNNPAR_DATA names.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rnnpar.network import RNN

Split = Literal["train", "held-out"]


def data_folder() -> Path:
    """The data folder: RNNPAR_DATA if that is set, else data/ beside the package."""
    named = os.environ.get("RNNPAR_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "data"


def text(split: Split = "train") -> str:
    """The running text: its first 90 % ("train") or its last 10 % ("held-out"). FileNotFoundError, ValueError."""
    whole = _whole_text()
    cut = len(whole) * 9 // 10
    parts = {"train": whole[:cut], "held-out": whole[cut:]}
    if split not in parts:
        raise ValueError(f"split is {split!r}; it must be 'train' or 'held-out'")
    return parts[split]


def alphabet() -> str:
    """The characters of the whole text, sorted: a character's index here is its id. FileNotFoundError."""
    return _characters(_whole_text())


def encode(characters: str) -> np.ndarray:
    """The ids of a text's characters, (len(characters),) int64. ValueError names characters that have no id."""
    known = np.frombuffer(alphabet().encode("utf-32-le"), np.uint32)
    codes = np.frombuffer(characters.encode("utf-32-le", "surrogatepass"), np.uint32)
    ids = np.searchsorted(known, codes)
    found = known[np.minimum(ids, len(known) - 1)] == codes
    if not found.all():
        strange = "".join(sorted({chr(code) for code in codes[~found]}))
        raise ValueError(f"the alphabet lacks {strange!r}; corpus.alphabet() lists the {len(known)} characters it has")
    return ids.astype(np.int64)


def one_hot(ids: np.ndarray) -> np.ndarray:
    """Ids (T,B), or (T,) for one sequence, as a network's input: (T,B,I) float32. TypeError, ValueError."""
    size = len(alphabet())
    ids = _ids(ids, "ids", size)
    if ids.ndim == 1:
        ids = ids[:, None]
    if ids.ndim != 2:
        raise ValueError(f"ids has shape {ids.shape}; it must be (T,B) or (T,)")
    x = np.zeros((*ids.shape, size), np.float32)
    np.put_along_axis(x, ids[:, :, None], 1, axis=2)
    return x


def sequences(batch: int = 8, steps: int | None = 1000, split: Split = "held-out") -> tuple[np.ndarray, np.ndarray]:
    """A text cut into `batch` sequences of `steps` characters: x (T,B,I) float32, targets (T,B) int64.

    Sequence i begins at character i * ((N-1) // batch) of the N; the target of a character is the one after it.
    steps=None takes the longest, (N-1) // batch. The defaults are the evaluation set that models.json speaks of.
    ValueError for a batch below 1 and for sequences that would overlap.
    """
    ids = encode(text(split))
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1")
    longest = (len(ids) - 1) // batch
    steps = longest if steps is None else steps
    if not 0 <= steps <= longest:
        raise ValueError(f"steps is {steps}; {batch} sequences of the {split} text have 0 to {longest} characters each")
    at = np.arange(steps)[:, None] + longest * np.arange(batch)
    return one_hot(ids[at]), ids[at + 1]


def bits_per_character(y: np.ndarray, targets: np.ndarray) -> float:
    """The mean of -log2 y[t, i, targets[t, i]] in float64: y (T,B,O) probabilities, targets (T,B) ids.

    The lower the better; log2(O) is a blind guess, infinity a target that was given probability 0.
    TypeError for targets that are not integers, ValueError for shapes that do not fit and for no characters at all.
    """
    y = np.asarray(y)
    if y.ndim != 3:
        raise ValueError(f"y has shape {y.shape}; it must be (T,B,O)")
    targets = _ids(targets, "targets", y.shape[2])
    if targets.shape != y.shape[:2]:
        raise ValueError(f"targets has shape {targets.shape}; with y of shape {y.shape} it must be {y.shape[:2]}")
    if targets.size == 0:
        raise ValueError("y and targets hold no characters; the mean over none is undefined")
    chosen = np.take_along_axis(y, targets[:, :, None], axis=2).astype(np.float64)
    with np.errstate(divide="ignore"):
        return float(-np.log2(chosen).mean())


def models() -> dict[str, dict[str, Any]]:
    """The trained networks: name -> file, sizes, bits per character, settings (see data/models/README.md)."""
    return json.loads(_read(_models_folder() / "models.json"))["models"]


def load(name: str) -> RNN:
    """The trained network of that name. ValueError lists the names there are; FileNotFoundError."""
    known = models()
    if name not in known:
        raise ValueError(f"no trained network {name!r}; there are {', '.join(known)}")
    return RNN.load(_present(_models_folder() / known[name]["file"]))


def _whole_text() -> str:
    return _read(data_folder() / "text" / "kjv.txt")


def _models_folder() -> Path:
    return data_folder() / "models"


def _present(path: Path) -> Path:
    """`path`, if there is such a file; else an error that says what would do."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; let RNNPAR_DATA name the data folder of an rnnpar checkout")
    return path


def _read(path: Path) -> str:
    return _present(path).read_bytes().decode("utf-8")  # bytes: a line feed stays one character on every system


@lru_cache(maxsize=4)
def _characters(whole: str) -> str:
    return "".join(sorted(set(whole)))


def _ids(value: np.ndarray, name: str, size: int) -> np.ndarray:
    """`value` as an array of ids from 0 to size - 1, or an error that names it."""
    ids = np.asarray(value)
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"{name} has dtype {ids.dtype}; it must be integers")
    if ids.size and (ids.min() < 0 or ids.max() >= size):
        raise ValueError(f"{name} runs from {ids.min()} to {ids.max()}; it must lie in 0 to {size - 1}")
    return ids
