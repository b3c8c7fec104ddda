"""Numbers and names as people write them."""

from __future__ import annotations

import pytest

from rnnpar.words import did_you_mean, gibibytes

NAMES = ("serial/naive", "threads/rows", "threads/wavefront", "mpi/rows", "numba_cuda/block")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("threads/row", ": did you mean threads/rows?"),
        ("Threads/Rows ", ": did you mean threads/rows?"),
        ("rows", ": did you mean threads/rows or mpi/rows?"),
        ("serial/navie", ": did you mean serial/naive?"),
        ("numba-cuda/block", ": did you mean numba_cuda/block?"),
        ("thread/rows", ": did you mean threads/rows?"),
        ("serial/fast", ""),  # one half alike is not enough
        ("something else", ""),
        ("", ""),
    ],
)
def test_did_you_mean(given, said):
    assert did_you_mean(given, NAMES) == said


def test_gibibytes():
    assert [gibibytes(size) for size in (2**29, 24.1 * 2**30, 37_100 * 2**30)] == ["0.5 GiB", "24 GiB", "37,000 GiB"]
