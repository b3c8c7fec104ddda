"""Engines in bursts: the closing words on hand-made results, and which formulation ran."""

from __future__ import annotations

import pandas as pd

from rnnpar.study import peers


def frame(**us: list[float | None]) -> pd.DataFrame:
    """Results of shapes H=10, 20, ...: microseconds a step of each method at each; None where it failed."""
    rows = []
    for method, values in us.items():
        for index, value in enumerate(values, 1):
            name = method if method == "auto" else f"peers/{method}"
            # the median is the value itself
            samples = [] if value is None else [value * 1e-4 * factor for factor in (1.0, 0.9, 1.5)]
            rows.append(dict(method=name, H=10 * index, I=3, O=3, T=100, B=1, layers=1, samples=samples,
                             status="ok" if samples else "inaccurate"))  # fmt: skip
    return pd.DataFrame(rows)


def test_closing_names_the_geometric_mean_and_the_worst_shape():
    words = peers.closing(frame(torch=[8.0, 3.0], jax=[4.0, 6.0], auto=[2.0, 6.0]))
    assert "geometric mean 1.00 over 2 shapes" in words
    assert "worst 0.50 at H=20" in words
    assert peers.closing(frame(torch=[8.0])) == "no shape has both a peer's time and ours"


def test_an_inaccurate_peer_does_not_count():
    assert "geometric mean 4.00 over 1 shapes" in peers.closing(frame(torch=[8.0], jax=[None], auto=[2.0]))


def test_versions_name_the_package():
    assert peers.version("serial/naive") == ""
    assert peers.version("peers/torch").split(" ")[0] in ("", "torch")
