"""The network: stacked Elman layers and a softmax output, as plain float32 arrays.

Letters used everywhere:  T time steps, B batch, I input_size, H hidden_size, O output_size, L num_layers.

    a[t] = b + W h[t-1] + U x[t];   h[t] = tanh(a[t]);   o[t] = c + V h[t];   y[t] = softmax(o[t])
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

END_OF_ZIP = 22  # bytes at the end of a zip file, without a comment; 10 and 11 of them hold the number of members


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

        Raises TypeError for arrays that are not float32 or float64, or are masked, ValueError for shapes that do not
        fit together and for values that are not finite in float32; each names the array and what it should be.
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
    @np.errstate(all="ignore")  # biases that add up to infinity are refused below, whatever the caller's numpy.seterr
    def from_torch(cls, rnn: Any, linear: Any) -> RNN:
        """A network from a torch.nn.RNN (tanh, one direction, time first) and the torch.nn.Linear behind it.

        The two biases of a torch layer are added up. TypeError for modules of another kind, ValueError for a setting
        that has no counterpart here; each says what would do.
        """
        _check_torch_rnn(rnn)
        _check_torch_linear(linear, rnn.hidden_size)
        layers = []
        for index in range(rnn.num_layers):
            W = _from_tensor(getattr(rnn, f"weight_hh_l{index}"))
            b = np.zeros(W.shape[0], np.float32)
            if rnn.bias:
                b = _from_tensor(getattr(rnn, f"bias_ih_l{index}")) + _from_tensor(getattr(rnn, f"bias_hh_l{index}"))
            layers.append(dict(W=W, U=_from_tensor(getattr(rnn, f"weight_ih_l{index}")), b=b))
        V = _from_tensor(linear.weight)
        c = np.zeros(V.shape[0], np.float32) if linear.bias is None else _from_tensor(linear.bias)
        return cls.from_arrays(layers, V, c)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights as one .npz file of exactly this name: W0, U0, b0, W1, ..., V, c (float32).

        The file is written whole or not at all: where it fails, OSError, what was there before is still there.
        """
        path = _path(path)
        arrays = {"V": self.V, "c": self.c}
        for index, layer in enumerate(self.layers):
            arrays |= {f"W{index}": layer.W, f"U{index}": layer.U, f"b{index}": layer.b}
        try:
            _save_whole(Path(os.path.realpath(path)), arrays)  # a link stays one: what it points to is replaced
        except OSError as error:
            if error.errno is None:  # not the system's: a signal handler's, such as a TimeoutError
                raise
            advice = "nothing was changed; name a file in a folder that can be written and has room"
            raise OSError(error.errno, f"{error.strerror or error}: {advice}", str(path)) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RNN:
        """Read what `save` wrote. FileNotFoundError, or ValueError for a file that is damaged or something else."""
        path = _path(path)
        try:
            with path.open("rb") as file:
                return cls.from_arrays(*_read_arrays(file))
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{path}: no such file; RNN.save writes one") from None
        except Exception as error:  # damaged bytes make zipfile and NumPy raise nearly anything, MemoryError too
            why = str(error) or type(error).__name__
            raise ValueError(f"{path} is no network saved by RNN.save, or it is damaged: {why}") from error


def refuse_masked(array: Any, name: str) -> None:
    """TypeError for a masked array, or a list of them: NumPy would take the masked values as if they were not."""
    if isinstance(array, list | tuple):
        for part in array:
            refuse_masked(part, name)
    elif type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):  # the first is all that most cost
        raise TypeError(
            f"{name} is a masked array, and what is masked has no value to compute with; give {name}.filled(value), "
            "such as .filled(0)"
        )


def _path(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(os.fsdecode(path))
    except TypeError:
        raise TypeError(f"path is a {type(path).__name__}; it must name a file: a str or pathlib.Path") from None


def _save_whole(target: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays to a new file beside `target`, which then takes its place in one step."""
    if target.exists() and not target.is_file():
        raise FileExistsError(errno.EEXIST, "it is a folder or a device")  # not to be replaced by a file
    temporary = target.with_name(f".rnnpar-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)  # who may read it stays as it was
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _read_arrays(file: BinaryIO) -> tuple[list[dict[str, np.ndarray]], np.ndarray, np.ndarray]:
    """layers, V and c of a saved network. ValueError for other contents, or whatever zipfile and NumPy raise."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        layers = [{key: f"{key}{index}" for key in "WUb"} for index in range((len(names) - 2) // 3)]
        wanted = ["V", "c", *(name for layer in layers for name in layer.values())]
        if sorted(names) != sorted(f"{name}.npy" for name in wanted):
            more = " ..." if len(names) > 5 else ""
            raise ValueError(f"it holds {', '.join(names[:5])}{more}, not W0, U0, b0, W1, ..., V, c")
        # NumPy compares no checksum where a damaged header asks for fewer bytes than there are.
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong")
    # A damaged length in the list of members hides those behind it, and a network of fewer layers would be left.
    file.seek(-END_OF_ZIP, os.SEEK_END)
    if int.from_bytes(file.read()[10:12], "little") != len(names):
        raise ValueError(f"{len(names)} arrays are left, not as many as were saved")
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return [{key: arrays[name] for key, name in layer.items()} for layer in layers], arrays["V"], arrays["c"]


def _check_torch_rnn(rnn: Any) -> None:
    """TypeError or ValueError unless `rnn` is a torch.nn.RNN whose equations are this package's."""
    _check_torch_kind(rnn, "rnn", "RNN", "nonlinearity")
    for name, wanted in {"nonlinearity": "tanh", "bidirectional": False}.items():
        if getattr(rnn, name) != wanted:
            raise ValueError(f"rnn.{name} is {getattr(rnn, name)!r}; only {wanted!r} can be taken over: train one with "
                             f"{name}={wanted!r}")  # fmt: skip
    if rnn.batch_first:
        raise ValueError(
            "rnn.batch_first is True: it takes x as (B, T, I), which this package would read as (T, B, I); set "
            "rnn.batch_first = False (the weights are the same) and give x.transpose(0, 1), or x.swapaxes(0, 1) of a "
            "NumPy array"
        )


def _check_torch_linear(linear: Any, hidden_size: int) -> None:
    """TypeError or ValueError unless `linear` is a torch.nn.Linear with weights, which takes `hidden_size` numbers."""
    _check_torch_kind(linear, "linear", "Linear", "weight")
    if callable(linear.weight):
        raise TypeError("linear is quantized; give the torch.nn.Linear that it was made from, whose weight is a tensor")
    if "Uninitialized" in type(linear.weight).__name__:
        raise ValueError("linear is a LazyLinear that has no weights yet; call it once, or make a torch.nn.Linear")
    if linear.weight.shape[-1] != hidden_size:
        raise ValueError(
            f"linear takes {linear.weight.shape[-1]} numbers, but rnn.hidden_size is {hidden_size}; give the "
            f"torch.nn.Linear({hidden_size}, ...) that reads this rnn's output"
        )


def _check_torch_kind(module: Any, name: str, wanted: str, attribute: str) -> None:
    """TypeError unless `module` is a torch.nn.`wanted`, told by the names of its classes and an attribute.

    torch itself is not asked: whoever gives a module has it, but it is not imported here for this alone.
    """
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    if isinstance(module, Mapping):
        raise TypeError(f"{name} is a state_dict ({kind}), which does not tell the settings; load it into the "
                        f"torch.nn.{wanted}, with load_state_dict, and give that")  # fmt: skip
    if wanted not in [base.__name__ for base in type(module).__mro__] or not hasattr(module, attribute):
        raise TypeError(f"{name} is a {kind}; only a torch.nn.{wanted} can be taken over: give the one in your model, "
                        "or train one")  # fmt: skip


def _from_tensor(tensor: Any) -> np.ndarray:
    if not tensor.is_floating_point():  # some quantized modules keep integers, and their scale elsewhere
        raise TypeError(f"a weight has dtype {tensor.dtype}; give a model that is not quantized")
    return tensor.detach().cpu().float().numpy()


def _weights(value: Any, name: str, ndim: int) -> np.ndarray:
    """`value` as a float32 array of its own memory order C, or an error that names it."""
    refuse_masked(value, name)
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} is no array of {ndim} dimension(s): {error}") from None
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} has dtype {array.dtype}; it must be float32 or float64")
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; it must have {ndim} dimension(s), none of them 0")
    with np.errstate(all="ignore"):  # whatever the caller's numpy.seterr
        array = np.array(array, np.float32, order="C")  # a copy: what the caller changes later must not change the net
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite in float32 (NaN, infinity or beyond 3.4e38)")
    return array


def _shape(array: np.ndarray, name: str, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; with the other arrays it must be {shape}")
