"""Side by side: what a user would pick instead, and ours, each in a process of its own.

A profile selects this way of timing by `timing: bursts`. At each shape every engine is started, and finds its fastest
formulation; then come rounds in newly shuffled order. In a round an engine makes calls for a tenth of a second, right
one after another, and the median of all but the first is one sample: its threads are awake and its weights in its
caches, as in a program that does nothing else. Between two engines there is a pause, in which threads that spin go to
sleep, and a look at the cores: a round in which they were not whole (cores.py) is set aside for all engines and taken
again, up to twice the rounds in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd

from rnnpar import registry
from rnnpar.auto import prepare
from rnnpar.backends.peers import Child
from rnnpar.network import RNN
from rnnpar.study.measure import Problem, Trial


class Ours:
    """One of our methods as a forward pass for `Child`; `info` says which method it was."""

    def __init__(self, net: RNN, method: str, options: dict[str, Any]):
        self.runner = prepare(net, method, **options)
        self.info = {"formulation": method}

    def __call__(self, x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, h = self.runner(x, h0)
        self.info["formulation"] = self.runner.method
        return y, h


class Engine:
    """A method in a process of its own, as Trial takes a runner; its times are those that passed in there."""

    def __init__(self, child: Child, net: RNN):
        self.child, self.net = child, net

    @property
    def info(self) -> dict[str, Any]:
        return self.child.info

    def calls(self, x: np.ndarray, count: int) -> tuple[list[float], np.ndarray, np.ndarray]:
        """Seconds of so many calls, one right after another, and y and h of the last."""
        h0 = np.zeros((self.net.num_layers, x.shape[1], self.net.hidden_size), np.float32)
        return self.child.calls(x, h0, count)

    def timed(self, x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        seconds, y, h = self.calls(x, 1)
        return seconds[0], y, h

    def close(self) -> None:
        self.child.close()


@dataclass
class Burst(Trial):
    """One engine at one shape, in a process of its own: a sample is the median of a burst of calls."""

    least_s = 0.1
    most_calls = 50
    settle_s = 0.5  # a call that takes longer needs none before it
    pause_s = 0.05
    long = True

    formulation: str = ""

    @property
    def ran(self) -> str:
        return self.formulation if self.method == "auto" else self.method

    def prepare(self, net: RNN) -> Engine:
        if self.backend == "peers":
            return Engine(registry.find(self.method).load()(net, **self.options), net)
        threads = self.options.get("threads", 1)
        arguments = (net, self.method, self.options)
        return Engine(Child(self.method, "rnnpar.study.peers:Ours", arguments, threads), net)

    def tell(self, runner: Engine) -> str:
        """The formulation that ran, and the package and version where it is not ours."""
        self.formulation = runner.info.get("formulation", "")
        return "; ".join(filter(None, [self.formulation, version(self.method)]))

    def timed(self, problem: Problem) -> tuple[float, np.ndarray, np.ndarray]:
        seconds, y, h = self.runner.calls(problem.x, self.calls + self.settle)
        return float(np.median(seconds[self.settle :])), y, h


def version(method: str) -> str:
    """The engine's package and its version; "" for our methods."""
    if not method.startswith("peers/"):
        return ""
    package = registry.find(method).requires[0][1].split("==")[0]
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return ""


def closing(frame: pd.DataFrame, ours: str = "auto") -> str:
    """How the best peer of each shape compares with ours: the geometric mean of its time over ours, and the worst.

    `frame` is of one machine, as store.load gives it. Only times whose error is within the bound count.
    """
    good = frame[frame["status"] == "ok"]
    medians = good.assign(seconds=good["samples"].map(np.median))
    times = medians.groupby(["H", "I", "O", "T", "B", "layers", "method"])["seconds"].median().unstack()
    best = times.filter(like="peers/").min(axis=1)
    ratio = (best / times[ours]).dropna() if ours in times else pd.Series(dtype=float)
    if ratio.empty:
        return "no shape has both a peer's time and ours"
    worst = " ".join(f"{name}={size}" for name, size in zip(ratio.index.names, ratio.idxmin(), strict=True))
    return (
        f"best peer / {ours}: geometric mean {np.exp(np.log(ratio).mean()):.2f} over {len(ratio)} shapes, "
        f"worst {ratio.min():.2f} at {worst}"
    )
