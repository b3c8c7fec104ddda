"""The network: stacked Elman layers and a softmax output, as plain float32 arrays.

Letters used everywhere:  T time steps, B batch, I input_size, H hidden_size, O output_size, L num_layers.

    a[t] = b + W h[t-1] + U x[t];   h[t] = tanh(a[t]);   o[t] = c + V h[t];   y[t] = softmax(o[t])
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Layer:
    """One recurrent layer: W (H,H) hidden-to-hidden, U (H,I) input-to-hidden, b (H,); float32."""

    W: np.ndarray
    U: np.ndarray
    b: np.ndarray


@dataclass(frozen=True, eq=False)
class RNN:
    """An Elman network: `layers` from bottom to top, V (O,H) hidden-to-output, c (O,); float32.

    Build one with `RNN.random`, `RNN.from_arrays`, `RNN.from_torch` or `RNN.load`.
    """

    layers: tuple[Layer, ...]
    V: np.ndarray
    c: np.ndarray

    @property
    def input_size(self) -> int:
        return self.layers[0].U.shape[1]

    @property
    def hidden_size(self) -> int:
        return self.layers[0].W.shape[0]

    @property
    def output_size(self) -> int:
        return self.V.shape[0]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return (
            f"RNN(input_size={self.input_size}, hidden_size={self.hidden_size}, "
            f"output_size={self.output_size}, num_layers={self.num_layers})"
        )

    @classmethod
    def random(cls, input_size: int, hidden_size: int, output_size: int, num_layers: int = 1, seed: int = 0) -> RNN:
        """Weights uniform in ±1/sqrt(hidden_size), as torch.nn.RNN draws them. ValueError on a size below 1."""
        sizes = dict(input_size=input_size, hidden_size=hidden_size, output_size=output_size, num_layers=num_layers)
        for name, value in sizes.items():
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
        rng = np.random.default_rng(seed)
        bound = 1 / np.sqrt(hidden_size)

        def uniform(*shape: int) -> np.ndarray:
            return rng.uniform(-bound, bound, shape).astype(np.float32)

        layers = []
        for index in range(num_layers):
            fan_in = input_size if index == 0 else hidden_size
            layers.append(
                Layer(W=uniform(hidden_size, hidden_size), U=uniform(hidden_size, fan_in), b=uniform(hidden_size))
            )
        return cls(tuple(layers), V=uniform(output_size, hidden_size), c=uniform(output_size))

    @classmethod
    def from_arrays(cls, layers: Sequence[Mapping[str, Any]], V: Any, c: Any) -> RNN:
        """A network from arrays: `layers` are mappings with W (H,H), U (H,I) and b (H,); V (O,H), c (O,).

        Raises TypeError for arrays that are not float32 or float64, ValueError for shapes that do not fit
        together and for values that are not finite in float32; each names the array and what it should be.
        """
        if not layers:
            raise ValueError("layers is empty; a network has at least one layer")
        built = []
        if isinstance(layers, Mapping):
            raise TypeError(
                "layers is one mapping; it must be a list of them, one a layer: [dict(W=..., U=..., b=...)]"
            )
        for index, layer in enumerate(layers):
            if not isinstance(layer, Mapping):
                raise TypeError(f"layers[{index}] is a {type(layer).__name__}; it must be dict(W=..., U=..., b=...)")
            keys = set(layer)
            if keys != {"W", "U", "b"}:
                raise ValueError(f"layers[{index}] has the keys {sorted(keys)}; it must have exactly W, U and b")
            W = _weights(layer["W"], f"layers[{index}]['W']", 2)
            U = _weights(layer["U"], f"layers[{index}]['U']", 2)
            b = _weights(layer["b"], f"layers[{index}]['b']", 1)
            hidden = W.shape[0] if index == 0 else built[0].W.shape[0]
            fan_in = U.shape[1] if index == 0 else hidden
            _shape(W, f"layers[{index}]['W']", (hidden, hidden))
            _shape(U, f"layers[{index}]['U']", (hidden, fan_in))
            _shape(b, f"layers[{index}]['b']", (hidden,))
            built.append(Layer(W, U, b))
        V = _weights(V, "V", 2)
        c = _weights(c, "c", 1)
        _shape(V, "V", (V.shape[0], built[0].W.shape[0]))
        _shape(c, "c", (V.shape[0],))
        return cls(tuple(built), V, c)

    @classmethod
    def from_torch(cls, rnn: Any, linear: Any) -> RNN:
        """A network from a torch.nn.RNN (tanh, one direction) and the torch.nn.Linear behind it.

        The two biases of a torch layer are added up. ValueError names a setting that has no counterpart here.
        """
        unfit = {"nonlinearity": "tanh", "bidirectional": False}
        for name, wanted in unfit.items():
            if getattr(rnn, name, None) != wanted:
                raise ValueError(f"rnn.{name} is {getattr(rnn, name, None)!r}; only {wanted!r} can be taken over")

        def array(tensor: Any) -> np.ndarray:
            return tensor.detach().cpu().float().numpy()

        layers = []
        for index in range(rnn.num_layers):
            W = array(getattr(rnn, f"weight_hh_l{index}"))
            b = np.zeros(W.shape[0], np.float32)
            if rnn.bias:
                b = array(getattr(rnn, f"bias_ih_l{index}")) + array(getattr(rnn, f"bias_hh_l{index}"))
            layers.append(dict(W=W, U=array(getattr(rnn, f"weight_ih_l{index}")), b=b))
        V = array(linear.weight)
        c = np.zeros(V.shape[0], np.float32) if linear.bias is None else array(linear.bias)
        return cls.from_arrays(layers, V, c)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights as one .npz file: W0, U0, b0, W1, ..., V, c (float32)."""
        arrays = {"V": self.V, "c": self.c}
        for index, layer in enumerate(self.layers):
            arrays |= {f"W{index}": layer.W, f"U{index}": layer.U, f"b{index}": layer.b}
        np.savez(Path(path), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RNN:
        """Read what `save` wrote. FileNotFoundError, or ValueError for a file that is damaged or something else."""
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; RNN.save writes one")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            count = sum(name.startswith("W") for name in arrays)
            layers = [{key: arrays.pop(f"{key}{index}") for key in "WUb"} for index in range(count)]
            V, c = arrays.pop("V"), arrays.pop("c")
        except (KeyError, ValueError, EOFError, OSError, AttributeError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no network saved by RNN.save, or it is damaged: {error}") from error
        if arrays:
            raise ValueError(f"{path} holds arrays that no network has: {sorted(arrays)}")
        return cls.from_arrays(layers, V, c)


def _weights(value: Any, name: str, ndim: int) -> np.ndarray:
    """`value` as a float32 array of its own memory order C, or an error that names it."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} is no array of {ndim} dimension(s): {error}") from None
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} has dtype {array.dtype}; it must be float32 or float64")
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; it must have {ndim} dimension(s), none of them 0")
    with np.errstate(over="ignore"):
        array = np.array(array, np.float32, order="C")  # a copy: what the caller changes later must not change the net
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite in float32 (NaN, infinity or beyond 3.4e38)")
    return array


def _shape(array: np.ndarray, name: str, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; with the other arrays it must be {shape}")
