"""What the tests run on every rank of a job: mpiexec -n 3 python -m tests.backends.mpi_cases CASE."""

from __future__ import annotations

import os
import signal
import sys
import warnings

import numpy as np

import rnnpar
from rnnpar.backends import mpi
from rnnpar.kernels.atomics import ZERO
from rnnpar.kernels.jit import jit
from rnnpar.kernels.job import STOP
from rnnpar.kernels.pointers import at
from rnnpar.kernels.team import Region
from rnnpar.reference import relative_error
from tests.conftest import BOUND, random_input

warnings.filterwarnings("ignore", "[0-9]+ ranks x")

# I, H, O, L: several panels of rows and layers; one row; fewer rows than ranks.
NETS = [(7, 97, 13, 3), (1, 1, 1, 1), (5, 7, 3, 2)]
SHAPES = [(13, 1), (29, 5), (1, 1)]
LONG = (40, 70)  # of the first network, several chunks of steps, in messages too large to be buffered
WAYS = {
    "mpi/batch": ("window", "messages"),
    "mpi/pipeline": ("window", "messages"),
    "mpi/rows": ("window", "messages", "allgather"),
}


def equal(rank: int, ranks: int) -> None:
    """Every strategy and way on every network: the oracle's results, whole and in pieces, and nothing to compute."""
    count = 0
    for sizes in NETS:
        net = rnnpar.RNN.random(*sizes)
        I, H, _, L = sizes
        for name, ways in WAYS.items():
            for way in ways:
                options = {"threads": 2} if ranks == 2 and (name, sizes) == ("mpi/rows", NETS[0]) else {}
                if name == "mpi/pipeline" and sizes == NETS[0]:
                    options["chunk"] = 5
                with rnnpar.prepare(net, name, ranks=ranks, exchange=way, **options) as run:
                    for T, B in [*SHAPES, *([LONG] if sizes == NETS[0] else [])]:
                        x = random_input(net, T, B, seed=T)
                        h0 = np.random.default_rng(1).uniform(-1, 1, (L, B, H)).astype(np.float32)
                        wanted = rnnpar.reference(net, x, h0)
                        for _ in range(2):
                            got = run(x, h0)
                            if rank == 0:
                                check(got, wanted, f"{name} {way} {sizes} {T} {B} on {ranks}")
                                count += 1
                            else:
                                assert got == (None, None), got
                    first, h = run(x[:2], h0)
                    h = share_state(h, h0.shape)
                    second, h = run(x[2:], h)
                    if rank == 0:
                        check((np.concatenate([first, second]), h), wanted, f"{name} {way} {sizes} in pieces")
                    for empty in ((0, 3, I), (3, 0, I)):
                        y, h = run(np.zeros(empty, np.float32))
                        assert (y is None) == (rank > 0)
                        if rank == 0:
                            assert y.shape == (*empty[:2], net.output_size)
                            assert h.shape == (L, empty[1], H)
                assert run.method == name
    count += overtaking(rank, ranks)
    if rank == 0:
        print(f"{count} cases are equal")


def overtaking(rank: int, ranks: int) -> int:
    """Short chunks through one layer, whose stages are a rank each: no place may be written to while it is sent."""
    net = rnnpar.RNN.random(256, 256, 256)
    x = random_input(net, 128, 1)
    wanted = rnnpar.reference(net, x)
    for chunk in (0, 4):
        with rnnpar.prepare(net, "mpi/pipeline", ranks=ranks, chunk=chunk) as run:
            for _ in range(5):
                got = run(x)
                if rank == 0:
                    check(got, wanted, f"chunks of {chunk} on {ranks}")
    return 10


def check(got, wanted, where: str) -> None:
    for mine, theirs in zip(got, wanted, strict=True):
        error = relative_error(mine, theirs)
        assert error < BOUND, f"{where}: {error}"
        assert mine.flags.writeable
        assert mine.dtype == np.float32


def share_state(h, shape):
    """The same h on every rank, as a caller has to see to."""
    from mpi4py import MPI

    h = np.empty(shape, np.float32) if h is None else h
    MPI.COMM_WORLD.Bcast(h)
    return h


NET = rnnpar.RNN.random(3, 40, 5)


def shapes(rank: int, ranks: int) -> None:
    """Rank 1 gives another T."""
    rnnpar.prepare(NET, "mpi/rows")(random_input(NET, 4 + (rank == 1), 2))


def refused(rank: int, ranks: int) -> None:
    """Rank 1 gives what no method takes; the others hear of it, and may go on."""
    run = rnnpar.prepare(NET, "mpi/batch")
    x = random_input(NET, 4, 2)
    try:
        run(x.astype(np.float64) if rank == 1 else x)
    except (TypeError, ValueError) as error:
        print(f"rank {rank} heard {type(error).__name__}: {error}", flush=True)
    y, _ = run(x)
    if rank == 0:
        assert relative_error(y, rnnpar.reference(NET, x)[0]) < BOUND
        print("and went on")


def weights(rank: int, ranks: int) -> None:
    """Rank 1 has another network of the same shape."""
    rnnpar.prepare(rnnpar.RNN.random(3, 40, 5, seed=rank), "mpi/rows")


def raises(rank: int, ranks: int) -> None:
    """Rank 1 fails between two calls."""
    run = rnnpar.prepare(NET, "mpi/rows")
    x = random_input(NET, 4, 2)
    run(x)
    if rank == 1:
        raise ArithmeticError("this rank has had enough")
    run(x)


def killed(rank: int, ranks: int) -> None:
    """Rank 1 is killed while the others wait for its part of a state."""
    run = rnnpar.prepare(NET, "mpi/rows")
    x = random_input(NET, 4, 2)
    run(x)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    run(x)


def unprepared(rank: int, ranks: int) -> None:
    """Rank 1 fails in `prepare`, before MPI has begun."""
    rnnpar.prepare(None if rank == 1 else NET, "mpi/rows")


def within(rank: int, ranks: int) -> None:
    """Rank 1 fails in a `with`, which closes its runner, while the others use theirs."""
    x = random_input(NET, 4, 2)
    with rnnpar.prepare(NET, "mpi/rows") as run:
        run(x)
        if rank == 1:
            raise ArithmeticError("this rank has had enough")
        run(x)


def leaves(rank: int, ranks: int) -> None:
    """Rank 1 ends its program; the others hear of it, may go on by themselves, and end."""
    run = rnnpar.prepare(NET, "mpi/rows")
    x = random_input(NET, 4, 2)
    run(x)
    if rank == 1:
        sys.exit(0)
    for _ in range(2):
        try:
            run(x)
        except (ValueError, RuntimeError) as error:
            print(f"{type(error).__name__}: {error}", flush=True)
    run.close()


def single(rank: int, ranks: int) -> None:
    """A job of one rank: every method runs on it, and may start some, as in a process that nobody launched."""
    x = random_input(NET, 4, 2)
    wanted = rnnpar.reference(NET, x)
    for name in WAYS:
        for options in ({}, {"ranks": 1}, {"ranks": 2}):
            with rnnpar.prepare(NET, name, **options) as run:
                check(run(x), wanted, f"{name} {options}")
                print(f"{name} on {options}: {len(run.info.get('pids', []))} started", flush=True)


chunk_region = jit()(mpi.chunk_region)


def given_up_chunk(thread, threads, job):
    job.control[STOP] = 1
    chunk_region(thread, threads, job)


def given_up_recurrence(thread, threads, job):
    job.control[STOP] = 1
    mpi.recurrence(job, 0, at(job.states, ZERO), thread, threads, job.q0, job.q1, ZERO)


def given_up(rank: int, ranks: int) -> None:
    """A rank whose call is given up begins no stage of a chunk, and ends a recurrence with the step that it is at."""
    with rnnpar.prepare(NET, "mpi/pipeline") as run:
        run(random_input(NET, 6, 1))
        strategy = run._forward.strategy
        states, ld = strategy.states, strategy.ld
        for region, rows in ((given_up_chunk, 0), (given_up_recurrence, 1)):
            states.fill(0.5)
            Region(region, strategy.job).run()
            changed = (states != 0.5).reshape(-1, ld)[:, :40].any(axis=1)
            assert changed.sum() == rows, (region, changed)


def too_many(rank: int, ranks: int) -> None:
    """More ranks than the job has."""
    try:
        rnnpar.prepare(NET, "mpi/rows", ranks=3)
    except ValueError as error:
        print(error, flush=True)


def forks(rank: int, ranks: int) -> None:
    """Forked children of the ranks call, fail and end; the ranks go on, and end well."""
    run = rnnpar.prepare(NET, "mpi/rows", exchange="messages")
    x = random_input(NET, 4, 2)
    wanted = rnnpar.reference(NET, x)
    run(x)
    for does in ("ends", "calls", "fails"):
        child = os.fork()
        if child == 0:
            if does == "calls":
                check(run(x), wanted, "in a child")
                assert run(x[:0])[0].shape == (0, 2, 5)
                run.close()
                print("a child has its own", flush=True)
            if does == "fails":
                raise ArithmeticError("only this child has had enough")
            sys.exit(0)
        os.waitpid(child, 0)
        y, h = run(x)
        if y is not None:
            check((y, h), wanted, "in the parent")
            print(f"after a child that {does}", flush=True)


def bound(rank: int, ranks: int) -> None:
    """Each rank on a core of its own; then both on the same."""
    from mpi4py import MPI

    from rnnpar.backends.mpi import Ranks

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank]})
    place = Ranks(MPI.COMM_WORLD)
    print(f"{place.cores} cores, in turns: {place.crowded}, with 2 threads each: {place.take_turns(2)}", flush=True)
    warnings.resetwarnings()
    x = random_input(NET, 4, 2)
    with rnnpar.prepare(NET, "mpi/rows", threads=2) as run:
        y, _ = run(x)
    if rank == 0:
        assert relative_error(y, rnnpar.reference(NET, x)[0]) < BOUND
    os.sched_setaffinity(0, {cores[0]})
    place = Ranks(MPI.COMM_WORLD)
    print(f"{place.cores} cores, in turns: {place.crowded}", flush=True)


if __name__ == "__main__":
    if sys.argv[1] in ("unprepared", "forks"):  # it must not be this file that begins MPI
        globals()[sys.argv[1]](int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", 0))), 2)
        sys.exit()
    from mpi4py import MPI

    globals()[sys.argv[1]](MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
