"""Networks: made, saved, loaded, taken from torch, and refused with a clear word."""

import errno
import io
import os
import random
import stat
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from rnnpar import RNN


def arrays(H=4, I=3, O=5, layers=2):
    rng = np.random.default_rng(0)
    rows = []
    for index in range(layers):
        rows.append(
            dict(W=rng.normal(size=(H, H)), U=rng.normal(size=(H, I if index == 0 else H)), b=rng.normal(size=H))
        )
    return rows, rng.normal(size=(O, H)), rng.normal(size=O)


def test_sizes_of_a_random_network():
    net = RNN.random(input_size=3, hidden_size=4, output_size=5, num_layers=2, seed=7)
    assert (net.input_size, net.hidden_size, net.output_size, net.num_layers) == (3, 4, 5, 2)
    assert net.layers[0].U.shape == (4, 3)
    assert net.layers[1].U.shape == (4, 4)
    assert all(array.dtype == np.float32 for array in (net.layers[0].W, net.V, net.c))
    assert np.abs(net.V).max() <= 0.5
    again = RNN.random(3, 4, 5, 2, seed=7)
    assert np.array_equal(net.layers[1].W, again.layers[1].W)
    assert not np.array_equal(net.layers[1].W, RNN.random(3, 4, 5, 2, seed=8).layers[1].W)


@pytest.mark.parametrize("bad", [0, -1, 2.5, "4", None])
def test_random_refuses_sizes(bad):
    with pytest.raises(ValueError, match="hidden_size"):
        RNN.random(3, bad, 5)


def test_from_arrays_copies_and_converts():
    layers, V, c = arrays()
    net = RNN.from_arrays(layers, V, c)
    assert net.V.dtype == np.float32
    before = net.layers[0].W[0, 0]
    layers[0]["W"][0, 0] = 99
    assert net.layers[0].W[0, 0] == before


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda layers, V, c: (layers, V[:, :3], c), ValueError, r"V has shape \(5, 3\).*\(5, 4\)"),
        (lambda layers, V, c: (layers, V, c[:4]), ValueError, r"c has shape \(4,\).*\(5,\)"),
        (lambda layers, V, c: (layers, V.astype(int), c), TypeError, "V has dtype int64.*float32"),
        (lambda layers, V, c: (layers, V, c + 1j), TypeError, "c has dtype complex128"),
        (lambda layers, V, c: (layers, V * np.nan, c), ValueError, "V has values that are not finite"),
        (lambda layers, V, c: (layers, V + 1e300, c), ValueError, "V has values that are not finite"),
        (lambda layers, V, c: ([], V, c), ValueError, "at least one layer"),
        (lambda layers, V, c: ([{**layers[0], "W": layers[0]["W"][:3]}], V, c), ValueError, r"W'\] has shape \(3, 4\)"),
        (lambda layers, V, c: ([{**layers[0], "U": layers[0]["U"][:0]}], V, c), ValueError, r"U'\] has shape \(0, 3\)"),
        (lambda layers, V, c: ([layers[0], layers[0]], V, c), ValueError, r"layers\[1\]\['U'\] has shape \(4, 3\)"),
        (lambda layers, V, c: ([{"W": layers[0]["W"]}], V, c), ValueError, "must have exactly W, U and b"),
    ],
)
def test_from_arrays_says_what_is_wrong(change, error, words):
    with pytest.raises(error, match=words):
        RNN.from_arrays(*change(*arrays()))


def test_save_and_load(tmp_path):
    net = RNN.from_arrays(*arrays(layers=3))
    net.save(tmp_path / "net.npz")
    assert same(net, RNN.load(tmp_path / "net.npz"))


def same(net, other):
    """Whether two networks have the same weights."""

    def weights(net):
        return [net.V, net.c, *(array for layer in net.layers for array in (layer.W, layer.U, layer.b))]

    pairs = zip(weights(net), weights(other), strict=net.num_layers == other.num_layers)
    return net.num_layers == other.num_layers and all(np.array_equal(*pair) for pair in pairs)


@pytest.mark.parametrize("name", ["net", "net.rnn", "net.NPZ", "a" * 255, "héllo"])
def test_a_network_is_saved_under_exactly_the_name_that_is_given(tmp_path, name):
    net = RNN.from_arrays(*arrays())
    for path in (tmp_path / name, str(tmp_path / name), os.fsencode(tmp_path / name)):
        net.save(path)
        assert same(net, RNN.load(path))
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name).unlink()


@pytest.mark.parametrize("path", [io.BytesIO(), None, 3])
def test_a_path_that_is_none(path):
    with pytest.raises(TypeError, match=rf"path is a {type(path).__name__}; it must name a file: a str or"):
        RNN.random(1, 2, 3).save(path)
    with pytest.raises(TypeError, match="it must name a file"):
        RNN.load(path)


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("what", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("fails", "error", "said"),
    [
        (no_space, OSError, r"No space left on device: nothing was changed; name a file .* has room: '.*net'$"),
        (interrupted, KeyboardInterrupt, None),
    ],
)
def test_a_save_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, what, fails, error, said):
    path = tmp_path / "net"
    net = RNN.random(1, 2, 3)
    net.save(path)
    monkeypatch.setattr(os, what, fails)
    with pytest.raises(error, match=said):
        RNN.random(4, 5, 6).save(path)
    assert same(net, RNN.load(path))
    assert os.listdir(tmp_path) == ["net"]


def test_where_nothing_can_be_saved(tmp_path):
    net = RNN.random(1, 2, 3)
    with pytest.raises(FileNotFoundError, match=r"nothing was changed; .*: '.*none/net'"):
        net.save(tmp_path / "none" / "net")
    for path in (tmp_path, "/dev/null"):
        with pytest.raises(FileExistsError, match="it is a folder or a device: nothing was changed"):
            net.save(path)
    assert os.listdir(tmp_path) == []
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_what_a_link_points_to_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "net")
    (tmp_path / "deep").mkdir()
    for net in (RNN.random(1, 2, 3), RNN.random(4, 5, 6)):  # a link to nothing yet, then to a file
        net.save(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert same(net, RNN.load(tmp_path / "deep" / "net"))
    assert os.listdir(tmp_path / "deep") == ["net"]


def test_who_may_read_a_saved_network(tmp_path):
    net, path, before = RNN.random(1, 2, 3), tmp_path / "net", os.umask(0o027)
    try:
        net.save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640  # as for any new file
    path.chmod(0o600)
    net.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # and what was private stays so


def test_load_refuses_what_is_no_network(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        RNN.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("this is no archive")
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    np.savez(tmp_path / "extra.npz", extra=np.ones(3), W0=np.ones((1, 1)), U0=np.ones((1, 1)), b0=np.ones(1),
             V=np.ones((1, 1)), c=np.ones(1))  # fmt: skip
    RNN.random(2, 30, 2).save(tmp_path / "whole.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:500])
    for name in ("text", "other", "extra", "cut"):
        with pytest.raises(ValueError, match=f"{name}.npz"):
            RNN.load(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match=r"is no network saved by RNN.save"):
        RNN.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        RNN.load(tmp_path / "text.npz" / "below")


def npy(header):
    """A .npy file of that header and no data."""
    text = f"{header}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def archive(**members):
    """A zip file of those members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name, data in members.items():
            zipped.writestr(f"{name}.npy", data)
    return file.getvalue()


def of_shape(V, descr="<f4"):
    """A zip file with the arrays of a network of one layer, whose V has another header."""
    one, two = io.BytesIO(), io.BytesIO()
    np.save(one, np.ones(1, np.float32))
    np.save(two, np.ones((1, 1), np.float32))
    V = npy(f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {V}}}")
    return archive(V=V, c=one.getvalue(), W0=two.getvalue(), U0=two.getvalue(), b0=one.getvalue())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        b"PK\x05\x06" + bytes(18),  # an empty zip file
        "a text, in UTF-8: ×".encode(),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0,)}"),
        archive(letter=b"Dear network,"),
        archive(V=b"no array", c=b"", W0=b"", U0=b"", b0=b""),
        of_shape((1 << 40, 1 << 20)),  # more than there is memory, or numbers for
        of_shape((1 << 44, 1)),
        of_shape((-1, 1)),
        of_shape((1, 1), "|O"),
        of_shape((0, 1)),
        of_shape("(1, 1", "<f4"),
        of_shape("(" * 5000),
    ],
)
def test_whatever_the_file_holds_load_raises_valueerror(tmp_path, data):
    (tmp_path / "net").write_bytes(data)
    with pytest.raises(ValueError, match=r"net is no network saved by RNN.save, or it is damaged: \S"):
        RNN.load(tmp_path / "net")


def damaged(rng, data):
    """`data` with one of several kinds of damage."""
    i, j = sorted(rng.sample(range(len(data)), 2))
    length = rng.randint(1, 200)
    part, others = data[i : i + length], rng.randbytes(length)
    swapped = data[:i] + data[j : j + length] + data[i + length : j] + part + data[j + length :]
    flipped = data[:i] + bytes([data[i] ^ 1 << rng.randrange(8)]) + data[i + 1 :]
    return rng.choice(
        [flipped, flipped, data[:i], data + others, others + data, data[:i] + data[j:], data[:i] + others + data[i:],
         swapped, data[:i] + others + data[i + length :], data[:j] + data, data[:i] + bytes(length) + data[i:]]
    )  # fmt: skip


@pytest.mark.filterwarnings("error")
def test_a_damaged_file_is_refused_or_gives_the_network_that_was_saved(tmp_path):
    net, path = RNN.random(2, 3, 4, num_layers=2), tmp_path / "net"
    net.save(path)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    with np.errstate(all="raise"):
        for _ in range(500):
            path.write_bytes(damaged(rng, whole))
            try:
                assert same(net, RNN.load(path))
            except ValueError:
                refused += 1
    assert 300 < refused < 500  # what damage leaves the weights alone, as in the dates, may pass


@pytest.mark.parametrize(
    ("name", "offset", "bits"),
    [
        (b"'shape': (30, 60)", 14, 4),  # 20 columns: NumPy reads no further, so not as far as the checksum
        (b"b0.npyPK\x01\x02", -13, 1),  # in the list of members, a comment that takes up those of the second layer
    ],
)
def test_damage_that_would_leave_a_smaller_network(tmp_path, name, offset, bits):
    path = tmp_path / "net"
    RNN.random(60, 30, 2, num_layers=2).save(path)
    data = bytearray(path.read_bytes())
    data[data.index(name) + offset] ^= bits
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"net is no network saved by RNN.save, or it is damaged"):
        RNN.load(path)


class Tensor:
    """As much of a torch tensor as from_torch touches."""

    def __init__(self, array, dtype="torch.float32"):
        self.array = np.asarray(array, np.float32)
        self.shape = self.array.shape
        self.dtype = dtype

    detach = cpu = float = lambda self: self

    def is_floating_point(self):
        return "float" in self.dtype

    def numpy(self):
        return self.array


class Module:
    """As much of a torch module as from_torch touches: its classes' names, and attributes."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


def of_kind(*names, **attributes):
    """A module of the class that `names` ends with; those before it are its bases."""
    kind = Module
    for name in names:
        kind = type(name, (kind,), {"__module__": "torch.nn"})
    return kind(**attributes)


def fake_torch(bias=True, **settings):
    rng = np.random.default_rng(0)
    rnn = of_kind(
        "RNNBase", "RNN", nonlinearity="tanh", bidirectional=False, batch_first=False, hidden_size=4, num_layers=2,
        bias=bias,
    )  # fmt: skip
    for index, fan_in in enumerate((3, 4)):
        setattr(rnn, f"weight_hh_l{index}", Tensor(rng.normal(size=(4, 4))))
        setattr(rnn, f"weight_ih_l{index}", Tensor(rng.normal(size=(4, fan_in))))
        if bias:
            setattr(rnn, f"bias_hh_l{index}", Tensor(rng.normal(size=4)))
            setattr(rnn, f"bias_ih_l{index}", Tensor(rng.normal(size=4)))
    vars(rnn).update(settings)
    return rnn, of_kind("Linear", weight=Tensor(rng.normal(size=(5, 4))), bias=Tensor(rng.normal(size=5)))


def test_from_torch_adds_the_two_biases():
    rnn, linear = fake_torch()
    net = RNN.from_torch(rnn, linear)
    assert np.array_equal(net.layers[1].b, rnn.bias_hh_l1.array + rnn.bias_ih_l1.array)
    assert np.array_equal(net.layers[0].U, rnn.weight_ih_l0.array)
    assert not RNN.from_torch(*fake_torch(bias=False)).layers[0].b.any()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"nonlinearity": "relu"}, "rnn.nonlinearity is 'relu'; only 'tanh' can be taken over: train one with"),
        ({"bidirectional": True}, "rnn.bidirectional is True; only False can be taken over"),
        ({"batch_first": True}, r"set rnn.batch_first = False .* and give x.transpose\(0, 1\)"),
    ],
)
def test_from_torch_refuses_settings_that_it_cannot_take_over(setting, said):
    with pytest.raises(ValueError, match=said):
        RNN.from_torch(*fake_torch(**setting))


@pytest.mark.parametrize(
    "rnn",
    [
        of_kind("RNNBase", "LSTM", mode="LSTM"),
        of_kind("RNNBase", "GRU", nonlinearity="tanh"),
        of_kind("RNNCellBase", "RNNCell", nonlinearity="tanh"),
        of_kind("Sequential"),
        of_kind("RNN", rnn=fake_torch()[0]),  # many a tutorial calls its whole model so
        RNN.random(1, 2, 3),
        None,
    ],
)
def test_from_torch_refuses_another_kind_of_network_by_its_name(rnn):
    with pytest.raises(TypeError, match=rf"rnn is a [\w.]*{type(rnn).__name__}; only a torch.nn.RNN can be taken over"):
        RNN.from_torch(rnn, fake_torch()[1])


WEIGHT = Tensor(np.ones((5, 4)))


@pytest.mark.parametrize(
    ("linear", "error", "said"),
    [
        (of_kind("Embedding", weight=WEIGHT), TypeError, r"linear is a [\w.]*Embedding; only a torch.nn.Linear can be"),
        (of_kind("Bilinear", weight=WEIGHT, bias=None), TypeError, r"linear is a [\w.]*Bilinear; only"),
        (of_kind("Sequential"), TypeError, r"linear is a [\w.]*Sequential; only .* give the one in your model"),
        (None, TypeError, "linear is a builtins.NoneType; only"),
        (of_kind("Linear", "LazyLinear", weight=type("UninitializedParameter", (), {})()), ValueError,
         "linear is a LazyLinear that has no weights yet; call it once"),
        (of_kind("Linear", weight=lambda: WEIGHT), TypeError, "linear is quantized; give the torch.nn.Linear that it"),
        (of_kind("Linear", "Linear8bitLt", weight=Tensor(np.ones((5, 4)), "torch.int8"), bias=None), TypeError,
         "a weight has dtype torch.int8; give a model that is not quantized"),
        (of_kind("Linear", weight=Tensor(np.ones((5, 3))), bias=None), ValueError,
         r"linear takes 3 numbers, but rnn.hidden_size is 4; give the torch.nn.Linear\(4, ...\)"),
    ],
)  # fmt: skip
def test_from_torch_refuses_another_head(linear, error, said):
    with pytest.raises(error, match=said):
        RNN.from_torch(fake_torch()[0], linear)


def test_from_torch_refuses_a_state_dict_and_takes_subclasses():
    rnn, linear = fake_torch()
    state = OrderedDict(vars(rnn))
    with pytest.raises(TypeError, match=r"rnn is a state_dict \(.*OrderedDict\), .* load it into the torch.nn.RNN"):
        RNN.from_torch(state, linear)
    with pytest.raises(TypeError, match=r"linear is a state_dict .* load it into the torch.nn.Linear"):
        RNN.from_torch(rnn, {"weight": WEIGHT})
    mine = of_kind("Linear", "MyLinear", **vars(linear))
    assert np.array_equal(RNN.from_torch(rnn, mine).V, linear.weight.array)


def test_biases_of_torch_that_add_up_to_infinity_are_refused_whatever_the_callers_error_handling():
    rnn, linear = fake_torch()
    rnn.bias_hh_l1 = rnn.bias_ih_l1 = Tensor(np.full(4, 3e38))
    with (
        np.errstate(all="raise"),
        pytest.raises(ValueError, match=r"layers\[1\]\['b'\] has values that are not finite"),
    ):
        RNN.from_torch(rnn, linear)


def test_from_torch_gives_what_torch_gives():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: train)")
    import rnnpar

    rnn, linear = torch.nn.RNN(6, 20, num_layers=2), torch.nn.Linear(20, 9)
    x = np.random.default_rng(0).standard_normal((11, 3, 6)).astype(np.float32)
    with torch.no_grad():
        h, last = rnn(torch.from_numpy(x))
        wanted = torch.softmax(linear(h), -1).numpy()
    y, state = rnnpar.reference(RNN.from_torch(rnn, linear), x)
    assert np.allclose(y, wanted, atol=1e-6)
    assert np.allclose(state, last.numpy(), atol=1e-6)


def test_layers_of_another_form():
    layers, V, c = arrays()
    with pytest.raises(TypeError, match="layers is one mapping; it must be a list"):
        RNN.from_arrays(layers[0], V, c)
    with pytest.raises(TypeError, match=r"layers\[0\] is a tuple; it must be dict"):
        RNN.from_arrays([tuple(layers[0].values())], V, c)
    with pytest.raises(ValueError, match=r"layers\[0\]\['W'\] is no array of 2 dimension"):
        RNN.from_arrays([layers[0] | {"W": [[1.0, 2.0], [3.0]]}], V, c)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda layers, V, c: (layers, np.ma.masked_less(V, 0), c), "V"),
        (lambda layers, V, c: (layers, V, np.ma.masked_array(c)), "c"),
        (lambda layers, V, c: (layers, list(np.ma.masked_less(V, 0)), c), "V"),
        (lambda layers, V, c: ([layers[0] | {"b": np.ma.masked_less(layers[0]["b"], 0)}], V, c), r"layers\[0\]\['b'\]"),
    ],
)
def test_masked_weights_are_refused(change, name):
    with pytest.raises(TypeError, match=rf"{name} is a masked array, .* give {name}.filled\(value\)"):
        RNN.from_arrays(*change(*arrays()))


@pytest.mark.filterwarnings("error")
def test_neither_weights_nor_files_depend_on_the_callers_error_handling(tmp_path):
    layers, V, c = arrays()
    V[0, 0], c[0] = 1e-42, 1e-300  # below float32's normal numbers, and below all of them
    with np.errstate(all="raise"):
        net = RNN.from_arrays(layers, V, c)
        net.save(tmp_path / "net")
        assert same(net, RNN.load(tmp_path / "net"))
        with pytest.raises(ValueError, match="V has values that are not finite"):
            RNN.from_arrays(layers, V + 1e300, c)
