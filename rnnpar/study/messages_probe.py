"""What a message between two ranks costs, and an exchange of a state by each way there is: mpi.json.

No forward pass, and so none of the sweep's points: a profile names it among its `probes`. The ranks are processes of
their own, which run this file:

    mpiexec -n 2 python -m rnnpar.study.messages_probe
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import numpy as np

import rnnpar
from rnnpar import peaks, registry
from rnnpar.study import measure, store

FILE = "mpi.json"
SIZES = (8, 64, 512, 4096, 32768, 262144, 2097152)  # bytes of a message
WIDE = (64, 256, 1024, 8192)  # H of the states that are exchanged
SAMPLES = 9
KINDS = ("window", "messages", "allgather")
PACKAGES = ("mpi4py", "mpich", "openmpi", "impi-rt")


def due(experiment: Mapping[str, Any], stored: Mapping[str, store.Measurement]) -> bool:
    """Whether mpi.json is missing, of another source, or lacks numbers of ranks. ResultsError where it is damaged."""
    if not registry.find("mpi/rows").available:
        return False
    kept = store.facts(store.results_folder() / FILE)
    lacking = {str(ranks) for ranks in experiment["ranks"] or []} - set(kept.get("call", {}))
    return kept.get("source") != measure.source("mpi/rows") or bool(lacking)


def run(experiment: Mapping[str, Any]) -> list[store.Measurement]:
    """Write mpi.json for the experiment's numbers of ranks. It holds no points: there are no measurements."""
    measure_messages(experiment["ranks"], tries=experiment["samples"])
    return []


def measure_messages(ranks: list[int], tries: int) -> dict[str, Any]:
    """What messages and exchanges cost here, for two ranks and for the numbers in `ranks`; also written to mpi.json.

    Each is measured up to `tries` times, in new processes, and the median counts, as of the peaks.
    """
    found = {str(count): typical_probe(count, tries) for count in sorted({2, *ranks} - {1})}
    kept = {
        "measured": time.strftime("%Y-%m-%d"),
        "source": measure.source("mpi/rows"),
        "library": library(),
        "call": {str(count): call_seconds(count) for count in ranks},
        "messages": found["2"]["messages"],
        "exchange": {count: told["exchange"] for count, told in found.items()},
    }
    folder = store.results_folder()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(kept, indent=1) + "\n")
    return kept


def typical_probe(ranks: int, tries: int) -> dict[str, Any]:
    """The median of a third of so many probes while the machine's cores were whole; of all where they never were."""
    every, good = [], []
    while len(every) < tries and len(good) < math.ceil(tries / 3):
        whole = measure.cores().whole()
        every.append(run_probe(ranks))
        if whole and measure.cores().whole():
            good.append(every[-1])
    return peaks.median(good or every)


def call_seconds(ranks: int) -> float:
    """Seconds of a call that has next to nothing to compute, in the ranks: what every call costs before its steps."""
    x = np.zeros((1, ranks, 1), np.float32)
    with rnnpar.prepare(rnnpar.RNN.random(1, 1, 1), "mpi/batch", ranks=ranks) as run:
        return float(np.median([run.timed(x)[0] for _ in range(100)]))


def library() -> str:
    """The packages by which ranks talk to each other here, with their versions."""
    versions = {found.name.lower(): found.version for found in metadata.distributions() if found.name}
    return ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions)


def run_probe(ranks: int) -> dict[str, Any]:
    """`probe` on so many ranks. RuntimeError with what they wrote where it fails."""
    from rnnpar.backends.mpi_start import SUITED, mpiexec, own_environment

    command = [*mpiexec(), "-n", str(ranks), sys.executable, "-m", __spec__.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=own_environment() | SUITED)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"the measurement on {ranks} ranks failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(lines[-1])


def probe() -> None:
    """On every rank of a job: measure, and let rank 0 print what it found as one line of JSON."""
    from rnnpar.backends.mpi import MODES, world
    from rnnpar.kernels import messages
    from rnnpar.kernels.job import Job
    from rnnpar.kernels.probe import repeated
    from rnnpar.kernels.team import Region

    place = world()
    comm, rank, ranks = place.comm, place.rank, place.size

    def seconds_of(call: Callable[[int], object]) -> float:
        """Seconds of one repetition: the lower quartile of the samples, as for the peaks."""
        call(1)
        repeat, took = np.array([10.0]), 0.0
        samples = []
        for _ in range(SAMPLES):
            place.meet()
            begin = time.perf_counter()
            call(int(repeat[0]))
            took = (time.perf_counter() - begin) / int(repeat[0])
            samples.append(took)
            if rank == 0:
                repeat[0] = np.clip(3e-3 / took, 3, 5000)
            comm.Bcast(repeat)
        return float(np.quantile(samples[1:], 0.25))

    found: dict[str, Any] = {"ranks": ranks, "messages": [], "exchange": {}}
    if ranks == 2:
        fields = messages.Exchange(comm, messages.ALONE, 1, 1).fields
        for size in SIZES:
            there, back = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
            requests = [comm.Send_init(there, 1 - rank, 5), comm.Recv_init(back, 1 - rank, 5)]
            fields |= dict(handles=messages.handles_of(requests), begins=rank == 0, repeat=0)
            took = seconds_of(repeated(Region(messages.ping_pong_region, Job(1, **fields))))
            found["messages"].append((size, took / 2))
            for request in requests:
                request.Free()
    for kind in KINDS:
        points = []
        for H in WIDE:
            call, close = in_window(place, H) if kind == "window" else by_messages(place, MODES[kind], H)
            points.append((H, seconds_of(call)))
            close()
        found["exchange"][kind] = points
    if rank == 0:
        print(json.dumps(found), flush=True)


def by_messages(place: Any, mode: int, H: int) -> tuple[Callable[[int], None], Callable[[], None]]:
    """What exchanges a state of H elements so many times by messages, and what ends it."""
    from rnnpar.kernels.job import Job
    from rnnpar.kernels.messages import Exchange, exchanges_region
    from rnnpar.kernels.team import Region

    exchange = Exchange(place.comm, mode, 1, -(-H // place.size), place.crowded)
    job = Job(1, **exchange.fields, state=np.zeros(H, np.float32), B=1, ld=H, epoch=0, repeat=0)
    region = Region(exchanges_region, job)

    def call(n: int) -> None:
        job.set(epoch=exchange.epoch, repeat=n)
        region.run()
        exchange.epoch += n

    return call, exchange.close


def in_window(place: Any, H: int) -> tuple[Callable[[int], None], Callable[[], None]]:
    """The same in memory that the ranks share: each writes its part there, says so by a flag, and reads the others'."""
    from rnnpar.backends.mpi import Window
    from rnnpar.kernels.probe import Exchange

    window = Window(place, 2 * H, place.size, place.crowded)
    exchange = Exchange(1, window.memory.reshape(2, H), window.flags, place.rank, place.size)
    return exchange, window.free


if __name__ == "__main__":
    probe()
