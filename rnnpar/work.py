"""The sizes of one call, and the arithmetic in it: what every prediction starts from."""

from __future__ import annotations

from dataclasses import dataclass

from rnnpar.network import RNN


@dataclass(frozen=True)
class Work:
    """The sizes of one call."""

    T: int
    B: int
    I: int
    H: int
    O: int
    layers: int = 1

    @classmethod
    def of(cls, net: RNN, T: int, B: int) -> Work:
        return cls(T, B, net.input_size, net.hidden_size, net.output_size, net.num_layers)

    def inputs(self) -> list[int]:
        """The input size of each layer."""
        return [self.I] + [self.H] * (self.layers - 1)

    def flops(self) -> dict[str, float]:
        """Floating-point operations of each product, over the whole call: two for a multiply-add."""
        rows = 2.0 * self.T * self.B
        return {
            "U x": rows * self.H * sum(self.inputs()),
            "W h": rows * self.H * self.H * self.layers,
            "V h": rows * self.H * self.O,
        }
