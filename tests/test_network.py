"""Networks: made, saved, loaded, taken from torch, and refused with a clear word."""

import types

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
    again = RNN.load(tmp_path / "net.npz")
    assert again.num_layers == 3
    for one, other in zip(net.layers, again.layers, strict=True):
        assert np.array_equal(one.W, other.W)
        assert np.array_equal(one.U, other.U)
        assert np.array_equal(one.b, other.b)
    assert np.array_equal(net.V, again.V)
    assert np.array_equal(net.c, again.c)


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


class Tensor:
    """As much of a torch tensor as from_torch touches."""

    def __init__(self, array):
        self.array = np.asarray(array, np.float32)

    detach = cpu = float = lambda self: self

    def numpy(self):
        return self.array


def fake_torch(bias=True, **settings):
    rng = np.random.default_rng(0)
    rnn = types.SimpleNamespace(nonlinearity="tanh", bidirectional=False, num_layers=2, bias=bias)
    for index, fan_in in enumerate((3, 4)):
        setattr(rnn, f"weight_hh_l{index}", Tensor(rng.normal(size=(4, 4))))
        setattr(rnn, f"weight_ih_l{index}", Tensor(rng.normal(size=(4, fan_in))))
        if bias:
            setattr(rnn, f"bias_hh_l{index}", Tensor(rng.normal(size=4)))
            setattr(rnn, f"bias_ih_l{index}", Tensor(rng.normal(size=4)))
    vars(rnn).update(settings)
    return rnn, types.SimpleNamespace(weight=Tensor(rng.normal(size=(5, 4))), bias=Tensor(rng.normal(size=5)))


def test_from_torch_adds_the_two_biases():
    rnn, linear = fake_torch()
    net = RNN.from_torch(rnn, linear)
    assert np.array_equal(net.layers[1].b, rnn.bias_hh_l1.array + rnn.bias_ih_l1.array)
    assert np.array_equal(net.layers[0].U, rnn.weight_ih_l0.array)
    assert not RNN.from_torch(*fake_torch(bias=False)).layers[0].b.any()


@pytest.mark.parametrize("setting", [{"nonlinearity": "relu"}, {"bidirectional": True}])
def test_from_torch_refuses_what_it_cannot_take_over(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        RNN.from_torch(*fake_torch(**setting))


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
