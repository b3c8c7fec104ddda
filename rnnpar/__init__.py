"""rnnpar: how far can the forward pass of a recurrent network be parallelised?

net = rnnpar.RNN.random(input_size=256, hidden_size=256, output_size=256)
run = rnnpar.prepare(net, "threads/rows", threads=2)
y, h = run(x)                      # x (T,B,I) float32 -> y (T,B,O) probabilities, h (L,B,H)
rnnpar.methods()                   # every method, and why not where it cannot run
rnnpar.register("mine/first", f)   # a method of your own, in this process
rnnpar.reference(net, x)           # the float64 oracle
"""

from typing import TYPE_CHECKING, Any

from rnnpar.network import RNN
from rnnpar.reference import reference
from rnnpar.registry import Unavailable, methods, register, unregister

if TYPE_CHECKING:
    from rnnpar.auto import prepare

__all__ = ["RNN", "Unavailable", "methods", "prepare", "reference", "register", "unregister"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`prepare`, imported when it is first asked for: `python -m rnnpar.machine` must not find itself imported."""
    if name != "prepare":
        raise AttributeError(f"module 'rnnpar' has no attribute {name!r}")
    from rnnpar.auto import prepare

    globals()["prepare"] = prepare
    return prepare


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
