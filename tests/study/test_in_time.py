"""Chapter 07's experiments in small."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from rnnpar import machine
from rnnpar.study import in_time, measure, store
from rnnpar.study.in_time import Point


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """Real rows of a few small points, one of them refused, stored and read back."""
    alone, cores = {"threads": 1}, {"threads": machine.cores_allowed()}
    ours = [(name, alone) for name in in_time.OURS]  # where tests run side by side, threads that meet wait for long
    both = [*ours, ("in_time/segments", cores), ("in_time/deer", cores)]
    chains = [("serial/compiled", {}), ("threads/rows", cores)]
    todo = [(Point(f"radius-{radius}", 32, 16, 10, 300, 1), ours) for radius in (0.5, 0.9, 3.0)]
    todo += [(Point("random", 32, 32, 32, T, 1), chains + methods) for T, methods in ((64, ours), (256, both))]
    todo += [(Point("kjv-h128", 128, 64, 64, 100, 1), chains + ours[:2])]
    with pytest.MonkeyPatch.context() as patch:
        real = in_time.corpus.data_folder()
        folder = tmp_path_factory.mktemp("data")
        for name in ("models", "text"):
            (folder / name).symlink_to(real / name)
        patch.setenv("RNNPAR_DATA", str(folder))
        patch.setattr(measure, "cores", lambda: SimpleNamespace(whole=lambda: True))
        for point, methods in todo:
            store.append(in_time.measure_case(point, methods, 2, np.random.default_rng(0)), in_time.EXPERIMENT)
        store.append(in_time.measure_scans(2, T=400), in_time.EXPERIMENT)
        found = store.load(in_time.EXPERIMENT)
    said = pd.DataFrame([in_time.told(message) for message in found["message"]], index=found.index)
    return found.join(said[["iterations", "exponent"]])


def test_every_row_was_checked_and_says_how_it_went(frame):
    assert set(frame["status"]) == {"ok", "error"}
    lost = frame[frame["status"] == "error"]
    assert set(lost["workload"]) == {"radius-3.0"}
    assert (lost["exponent"] > 0).all()
    ours = frame[(frame["status"] == "ok") & frame["method"].isin(in_time.OURS)]
    assert (ours["error"] <= measure.BOUND).all()
    assert (ours["iterations"] >= 1).all()
    assert (ours["exponent"] < 0).all()


def test_a_message_is_read_back():
    info = dict(iterations=4, evaluations=5.0, exponent=-0.25, error=2e-7, window=64, bytes=1000,
                seconds=dict(solve=1e-3, check=2e-4))  # fmt: skip
    told = in_time.told(in_time.says(info))
    assert told["iterations"] == 4
    assert told["exponent"] == -0.25
    assert told["error"] == 2e-7
    assert told["solve"] == 1e-3
    refused = "NotConverged: deer did not converge after 100 iterations, residual 2: errors may have grown to 10 (the "
    told = in_time.told(refused + "estimated largest Lyapunov exponent is 0.066 a step); a shorter sequence would do")
    assert told == {"iterations": 100, "exponent": 0.066}
    assert in_time.says({}) == ""


def test_every_case_is_within_what_may_be_tried():
    for quick in (False, True):
        todo = in_time.cases(quick)
        assert len({point for point, _ in todo}) == len(todo)
        for point, methods in todo:
            names = [(name, tuple(options.items())) for name, options in methods]
            assert len(set(names)) == len(names)
            assert point.H <= in_time.LARGEST_DEER or "in_time/deer" not in dict(methods)
