"""A job's fields: what Python sets is what compiled code reads."""

import numpy as np
import pytest

from rnnpar.kernels.job import FLAGS, LINE, Job
from rnnpar.kernels.team import Region


def read_region(rank, size, job):
    job.out[0] = job.number
    job.out[1] = job.half * 2
    job.out[2] = job.short[1]
    job.out[3] = job.y[0] if job.truth else -1


def test_fields_of_every_kind():
    out = np.zeros(4)
    four = dict.fromkeys(("x", "h0", "y", "h"), np.float32)
    job = Job(1, **four, number=-(2**40), half=0.25, short=np.uint16([3, 60_000]), truth=True, out=out)
    region = Region(read_region, job)
    arrays = [np.full((2, 2), value, np.float32) for value in (5, 6, 7, 8)]
    region.run(*arrays)
    assert out.tolist() == [-(2**40), 0.5, 60_000, 7]
    region.job.set(number=3, half=1.5, truth=False)
    region.run(*arrays)
    assert out.tolist() == [3, 3.0, 60_000, -1]
    assert job.control.size == FLAGS + LINE
    assert job.control.ctypes.data % 64 == 0


def test_a_field_keeps_its_type():
    job = Job(1, number=0, floats=np.float32)
    for wrong in ({"number": 0.5}, {"floats": np.zeros(3)}, {"floats": 3}):
        with pytest.raises(TypeError, match="it must be"):
            job.set(**wrong)


def test_arrays_live_as_long_as_the_job():
    job, out = Job(1, floats=np.float32, out=np.float64), np.zeros(1)
    job.set(floats=np.full(1000, 7, np.float32), out=out)  # the first is nobody else's
    others = [np.full(1000, 1, np.float32) for _ in range(100)]
    Region(first_region, job).run()
    assert out[0] == 7
    assert len(others) == 100


def first_region(rank, size, job):
    job.out[0] = job.floats[999]
