"""The experiment of the methods that are parallel in time, in small: what they tell is stored, refusals too."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from rnnpar import machine
from rnnpar.study import corpus, measure, results, scan_probe, store
from rnnpar.study.measure import Point

OURS = results.methods_of("in_time")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> pd.DataFrame:
    """Real measurements of a few small points, one of them refused, stored and read back."""
    alone, cores = {"threads": 1}, {"threads": machine.cores_allowed()}
    ours = [(name, alone) for name in OURS]  # where tests run side by side, threads that meet wait for long
    chains = [("serial/compiled", {}), ("threads/rows", cores)]
    todo = [(Point(f"radius-{radius}", 32, 16, 10, 300, 1), ours) for radius in (0.5, 0.9, 3.0)]
    todo += [(Point("random", 32, 32, 32, 256, 1), [*chains, *ours, ("in_time/deer", cores)])]
    todo += [(Point("kjv-h128", 128, 64, 64, 100, 1), chains + ours[:2])]
    with pytest.MonkeyPatch.context() as patch:
        real = corpus.data_folder()
        folder = tmp_path_factory.mktemp("data")
        for name in ("models", "text"):
            (folder / name).symlink_to(real / name)
        patch.setenv("RNNPAR_DATA", str(folder))
        patch.setattr(measure, "cores", lambda: SimpleNamespace(whole=lambda: True))
        for point, methods in todo:
            found = measure.measure_group(point, methods, 2, 0.5, np.random.default_rng(0))
            store.append(found, "in_time")
        store.append(scan_probe.measure_scans(2, T=400), "in_time")
        return results.numbers(results.load(experiment="in_time"))


def test_every_measurement_was_checked_and_says_how_it_went(runs):
    assert set(runs["status"]) == {"ok", "error"}
    lost = runs[runs["status"] == "error"]
    assert set(lost["workload"]) == {"radius-3.0"}
    ours = runs[(runs["status"] == "ok") & runs["method"].isin(OURS)]
    assert (ours["error"] <= measure.BOUND).all()
    assert (ours["iterations"] >= 1).all()
    assert (ours["exponent"] < 0).all()
    assert (ours["solve"] > 0).all()


def test_the_scans_are_measured_beside(runs):
    scans = runs[runs["workload"] == "scan"]
    assert set(scans["method"]) == set(scan_probe.SCANS)
    assert (scans["error"] < measure.BOUND).all()


def test_what_a_runner_tells_is_read_back():
    info = dict(iterations=4, exponent=-0.25, error=2e-7, exchange="window", seconds=dict(solve=1e-3, check=2e-4))
    assert measure.numbers(info) == "iterations=4 exponent=-0.25 error=2e-07 solve=0.001 check=0.0002"
    assert measure.numbers({}) == ""


@pytest.mark.parametrize("radius", [0.5, 2.0])
def test_a_network_of_a_spectral_radius(radius):
    net = measure.of_radius(radius, 32, 16, 10)
    assert np.abs(np.linalg.eigvals(net.layers[0].W.astype(float))).max() == pytest.approx(radius, rel=1e-5)
