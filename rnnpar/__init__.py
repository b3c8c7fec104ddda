"""rnnpar: how far can the forward pass of a recurrent network be parallelised?

net = rnnpar.RNN.random(input_size=256, hidden_size=256, output_size=256)
run = rnnpar.prepare(net, "threads/rows", threads=2)
y, h = run(x)                      # x (T,B,I) float32 -> y (T,B,O) probabilities, h (L,B,H)
rnnpar.methods()                   # every method, and why not where it cannot run
rnnpar.reference(net, x)           # the float64 oracle
"""

from rnnpar.network import RNN
from rnnpar.reference import reference
from rnnpar.registry import Unavailable, methods
from rnnpar.runner import prepare

__all__ = ["RNN", "Unavailable", "methods", "prepare", "reference"]
__version__ = "0.1.0"
