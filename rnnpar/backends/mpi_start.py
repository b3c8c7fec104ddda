"""Ranks for an ordinary process or a notebook: started once by mpiexec, kept for the runner's life, ended with it.

Every rank connects to a socket of this process and then waits there, asleep, for the next call. x and h0, y and h lie
in memory that this process and all ranks have mapped, so a call sends only its shape; nothing is pickled. A rank whose
connection ends, because this process closed the runner or died of whatever, ends at once.

An interrupt, or a rank that fails, ends all of them, and the runner's next call starts new ones. So does its next call
in a forked child: the ranks are the parent's, and nothing in the child ends them.

The time of a call, as `Runner.timed` tells it, is what passed in the ranks, from the moment when the first of them
begins, all having come, to the moment when the answer is complete: as under mpiexec, where there is no such process
beside them. `info` has the whole of it as well ("whole_s"), with the copy of x and the waking of the ranks.
"""

from __future__ import annotations

import array
import importlib
import json
import mmap
import os
import queue
import re
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from rnnpar.backends.processes import STARTED, held_back, listen
from rnnpar.kernels.forward import POOL
from rnnpar.network import RNN
from rnnpar.registry import Unavailable

START_S = 120.0  # ranks that have not reported by then are taken for hung
CALL_S = 600.0  # and so is a call that takes longer
WORDS_S = 2.0  # how long mpiexec is given to say what a rank died of


def mpiexec() -> list[str]:
    """The command that starts ranks: RNNPAR_MPIEXEC, else the mpiexec of this environment, else the one on the PATH."""
    named = os.environ.get("RNNPAR_MPIEXEC")
    if named:
        return shlex.split(named)
    beside = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("mpiexec")
    if not found:
        raise Unavailable(
            "there is no mpiexec to start ranks with: `pip install mpich` brings one; that of a cluster's own MPI has "
            "to be on the PATH, or named by RNNPAR_MPIEXEC"
        )
    return [found]


class Started:
    """The forward pass on ranks that this process starts; see the top of this file.

    `seconds` is the time of the last call in the ranks, `info` what the strategy tells, and the process ids. A rank
    that raises, dies or hangs ends all of them, and makes a RuntimeError that says why.
    """

    def __init__(self, name: str, net: RNN, ranks: int, threads: int, exchange: str, options: dict[str, Any]):
        if not hasattr(socket, "AF_UNIX"):
            raise Unavailable("ranks can be started from Python on Linux and macOS only; use mpiexec")
        self.seconds = 0.0
        self.info: dict[str, Any] = {}
        self._name, self._net, self._ranks = name, net, ranks
        self._how = dict(name=name, threads=threads, exchange=exchange, options=options)
        self._closed = False
        self._job: Running | None = None
        self._running()

    def _running(self) -> Running:
        """The ranks: those that there are, or new ones after an interrupt, after a failure or in a forked child."""
        if self._closed:
            raise RuntimeError(f"{self._name} is closed; prepare a new one")
        if self._job is None or not self._job.alive:
            self._job = None
            self._job = Running(self._net, self._ranks, self._how)
            self.info |= self._job.info
        return self._job

    def __call__(self, x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        begin = time.perf_counter()
        y, h, told = self._running().call(x, h0)
        self.seconds = told["seconds"]
        self.info |= told["info"] | {"whole_s": time.perf_counter() - begin}
        return y, h

    def close(self) -> None:
        """End the ranks, and wait until they have."""
        self._closed = True
        job, self._job = self._job, None
        if job is not None:
            job.close()


class Running:
    """Ranks that are running: mpiexec, a connection to each rank, and the memory that they share with this process."""

    def __init__(self, net: RNN, ranks: int, how: dict[str, Any]):
        self.ranks = ranks
        self.info: dict[str, Any] = {}
        self._title = f"{how['name']} on {ranks} ranks"
        self._sizes = net.num_layers, net.hidden_size, net.output_size
        self._input: Shared | None = None
        self._pool: list[Shared] = []  # what results lie in: a caller often holds the last one during the next call
        self._known: set[int] = set()
        self._words: deque[str] = deque(maxlen=30)
        self._lines: dict[int, Line] = {}  # by rank
        self._pids: list[int] = []
        self._sockets: list[socket.socket] = []
        self._end: weakref.finalize | None = None
        start = mpiexec()
        short = len(os.fsencode(tempfile.gettempdir())) < 60  # a socket's path has room for some 100 bytes
        with ExitStack() as stack:
            with held_back():
                folder = tempfile.mkdtemp(prefix="rnnpar-", dir=None if short else "/tmp")
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self._begin(start, folder, net, how)

    def _begin(self, start: list[str], folder: str, net: RNN, how: dict[str, Any]) -> None:
        """Start the ranks, and wait until all have prepared the strategy."""
        path = os.path.join(folder, "calls")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(self.ranks)
            save(net, os.path.join(folder, "net.npz"))
            command = [*start, "-n", str(self.ranks), sys.executable, "-P", "-m", __spec__.name, path, json.dumps(how)]
            try:
                with held_back():
                    self._process = run(command)
                    listens = (self._process.stdout, self._words)
                    self._reader = threading.Thread(target=listen, args=listens, daemon=True)
                    self._end = weakref.finalize(self, end_ranks, *self._parts())
                    STARTED.add(self)
                self._reader.start()
                self._connect(listener)
                self.info |= self._answers(set(range(self.ranks)), START_S)[0]["info"]
            except BaseException:
                self._kill()
                raise
        self.info["pids"] = list(self._pids)

    @property
    def alive(self) -> bool:
        """Whether a call can be asked of the ranks: nothing has ended them, and they are this process's."""
        return self._end is not None and self._end.alive

    def _connect(self, listener: socket.socket) -> None:
        """Take every rank's connection, and see that they are ranks of one job."""
        until = time.monotonic() + START_S
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while len(self._lines) < self.ranks:
                events = selector.select(0.1)
                for key, _ in events:
                    if key.fileobj is listener:
                        connection, _ = listener.accept()
                        self._sockets.append(connection)
                        selector.register(connection, selectors.EVENT_READ, Line(connection))
                    else:
                        selector.unregister(key.fileobj)
                        self._welcome(key.data)
                if not events and self._process.poll() is not None:
                    self._fail("its ranks did not start")
                if time.monotonic() > until:
                    self._fail(f"its ranks did not start within {START_S:g} s")

    def _welcome(self, line: Line) -> None:
        """What a rank says first: which one it is, of how many."""
        told = line.read()
        if told is None:
            self._fail("a rank ended before it was there")
        if "error" in told:
            self._fail(f"a rank failed:\n{told['error']}")
        if told["size"] != self.ranks:
            self._fail(
                f"{mpiexec()[0]} belongs to another MPI than mpi4py: its processes do not see each other (mpi4py "
                f"uses {told['library']}); name the right one by RNNPAR_MPIEXEC"
            )
        self._lines[told["rank"]] = line
        self._pids.append(told["pid"])

    def call(self, x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """y, h and what rank 0 tells of the call."""
        try:
            return self._call(x, h0)
        except BaseException:  # an interrupt: the answer, still to come, would be taken for the next call's
            self._kill()
            raise

    def _call(self, x: np.ndarray, h0: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        L, H, O = self._sizes
        T, B, _ = x.shape
        if self._input is None or self._input.size < x.nbytes + h0.nbytes:
            self._input = Shared(x.nbytes + h0.nbytes)
        self._input.floats(0, x.shape)[:] = x
        self._input.floats(x.size, h0.shape)[:] = h0
        result, shared = self._result(4 * (T * B * O + L * B * H))
        message = {"T": T, "B": B, "memory": [[m.key, m.size] for m in (self._input, shared)]}
        new = [m for m in (self._input, shared) if m.key not in self._known]
        message["new"] = [m.key for m in new]
        message["keep"] = [m.key for m in (self._input, *self._pool)]
        self._known = set(message["keep"])
        try:
            for line in self._lines.values():
                line.write(message, [m.descriptor for m in new])
        except ConnectionError:
            self._answers({0}, WORDS_S)  # a rank has gone, and this says which
            raise
        told = self._answers({0}, CALL_S)[0]
        y, h = result[: T * B * O].reshape(T, B, O), result[T * B * O :].reshape(L, B, H)
        return y, h.copy(), told

    def _result(self, size: int) -> tuple[np.ndarray, Shared]:
        """Memory for y and h that nobody holds any more, or new one; the ranks write the answer right into it."""
        self._pool = [shared for shared in self._pool if shared.size == size]
        shared = next((shared for shared in self._pool if not shared.held()), None)
        if shared is None:
            shared = Shared(size)
            if len(self._pool) < POOL:
                self._pool.append(shared)
        return shared.lend(), shared

    def _answers(self, wanted: set[int], seconds: float) -> dict[int, dict[str, Any]]:
        """One answer of each rank in `wanted`; whatever goes wrong in any rank ends all, and is raised here."""
        found: dict[int, dict[str, Any]] = {}
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            for rank, line in self._lines.items():
                selector.register(line.socket, selectors.EVENT_READ, rank)
            while wanted - set(found):
                events = selector.select(max(0.0, until - time.monotonic()))
                if not events:
                    self._fail(f"there was no answer within {seconds:g} s")
                for key, _ in events:
                    told = self._lines[key.data].read()
                    if told is None:
                        self._fail(f"rank {key.data} ended")
                    if "error" in told:
                        self._fail(f"rank {key.data} failed:\n{told['error']}")
                    found[key.data] = told
        return found

    def _fail(self, why: str) -> None:
        """End all ranks, and raise with what mpiexec and they have written."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(WORDS_S)  # it may have more to say of a rank that died
        code = self._process.poll()
        self.close()
        status = f" (mpiexec: exit status {code})" if code else ""
        words = "\nthey wrote:\n" + "".join(self._words) if self._words else ""
        raise RuntimeError(f"{self._title}: {why}{status}{words}") from None

    def close(self) -> None:
        """End the ranks, and wait until they have."""
        self._end()

    def _kill(self) -> None:
        """End the ranks at once, whatever they are at, and do not wait for them for long."""
        if self.alive:
            kill_ranks(self._process, self._sockets, self._pids)
            self._end.detach()
            end_ranks(*self._parts(), seconds=0.1)

    def _parts(self) -> tuple[subprocess.Popen, threading.Thread, list[socket.socket], list[int]]:
        return self._process, self._reader, self._sockets, self._pids

    def leave_to_parent(self) -> None:
        """In a forked child: the ranks are its parent's. Close what was inherited of them, and end nothing."""
        self._end.detach()
        for opened in (*self._sockets, self._process.stdout):
            opened.close()
        self._process.poll()  # no child of this process, which it finds out here, so that it never warns of it
        self._input, self._pool = None, []

    def stay_with_parent(self) -> None:
        """After a fork: write no more answers where earlier ones lie, since the child may hold these."""
        self._pool = []


def save(net: RNN, path: str) -> None:
    """Write the network where the ranks find it."""
    try:
        with held_back():  # a signal handler's TimeoutError is an OSError, too, but not one of the disk
            net.save(path)
    except OSError as error:
        if error.errno is None:
            raise
        where = f"the network cannot be written for the ranks to {os.path.dirname(path)} ({os.strerror(error.errno)})"
        raise OSError(error.errno, f"{where}; free some space, or let TMPDIR name another folder") from None


def run(command: list[str]) -> subprocess.Popen:
    """Start mpiexec."""
    packages = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            bufsize=0,  # a buffer has a lock, and at that of a thread that is gone a forked child would wait for ever
            env=own_environment() | SUITED | {"PYTHONPATH": packages},
            start_new_session=True,  # an interrupt from the keyboard is for this process
        )  # fmt: skip
    except OSError as error:
        if error.errno is None:  # not the system's: a signal handler's, such as a TimeoutError
            raise
        raise Unavailable(f"{command[0]} cannot be run: {error.strerror}") from None


# What launchers tell the processes that they start, and batch systems their jobs. Ranks that are started from here are
# a job of their own, on this machine. What tunes an MPI stays: MPICH_*, FI_*, UCX_*, OMPI_MCA_* and the like.
OTHER_JOB = re.compile(
    "PMI_|PMIX_(?!MCA_|PREFIX)|HYDRA_|HYDI_|MPI_LOCAL|MV2_COMM_WORLD_|PALS_|ALPS_"
    "|OMPI_(COMM_WORLD_|WORLD_|UNIVERSE_SIZE|APP_CTX_|NUM_APP_CTX|FIRST_RANKS|FILE_LOCATION|COMMAND|ARGV)"
    "|OMPI_MCA_(orte_|ess|pmix|num_procs|initial_wdir)|PRTE_LAUNCHED|PRTE_MCA_(prte_|ess|pmix)"
    "|SLURM_|PBS_|LSB_|LSF_|PE_HOSTFILE|LOADL_|COBALT_|FLUX_"
)


def own_environment() -> dict[str, str]:
    """This process's environment without what tells it of a job that it is in."""
    return {name: value for name, value in os.environ.items() if not OTHER_JOB.match(name)}


# Open MPI refuses more ranks than cores unless told otherwise; the caller has been warned already.
SUITED = {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "OMPI_MCA_rmaps_base_oversubscribe": "1"}


def end_ranks(process: subprocess.Popen, reader: threading.Thread, sockets: list[socket.socket], pids: list[int],
              seconds: float = 5.0) -> None:  # fmt: skip
    """Close the connections, at which every rank ends by itself; and see that all have, mpiexec too."""
    for connection in sockets:
        connection.close()
    until = time.monotonic() + seconds
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    for pid in pids:  # they are mpiexec's children, so they cannot be waited for, only looked at
        while time.monotonic() < until and alive(pid):
            time.sleep(0.01)
        if alive(pid):
            send(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    if reader.ident is not None:
        reader.join(0.1)  # it closes mpiexec's pipe


def kill_ranks(process: subprocess.Popen, sockets: list[socket.socket], pids: list[int]) -> None:
    """Kill mpiexec and everything that it has started; `pids` then has all of it.

    Each may be in a session of its own. They are stopped first, so that none makes more memory with a name meanwhile.
    """
    import psutil

    for connection in sockets:
        connection.close()
    with suppress(psutil.NoSuchProcess):
        started = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
        pids += started - set(pids)
    process.kill()
    for pid in pids:
        send(pid, signal.SIGSTOP)
    for pid in pids:
        remove_names(pid)
        send(pid, signal.SIGKILL)


def send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def remove_names(pid: int | str) -> None:
    """Let the shared memory of MPICH in a process end with who has mapped it.

    It has a name under /dev/shm until MPI ends in good order, which in a rank that ends with its starter it never does.
    """
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
        for name in set(re.findall(r"/dev/shm/mpich_shm_\w+$", maps, re.MULTILINE)):
            Path(name).unlink(missing_ok=True)


def alive(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Shared:
    """Memory that other processes can map: its descriptor goes to them through a socket. It has no name to be left."""

    count = 0

    def __init__(self, size: int):
        Shared.count += 1
        self.key, self.size = Shared.count, max(size, 4)
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("rnnpar")
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, self.size)
        self._memory = mmap.mmap(self.descriptor, self.size)
        self._lent: Callable[[], Any] = lambda: None

    def lend(self) -> np.ndarray:
        """All of it as an array; `held` as long as it, or any view of it, lives."""
        whole = self.floats(0, (self.size // 4,))
        self._lent = weakref.ref(whole.base)  # NumPy gives every view of an array the array's own base
        return whole

    def held(self) -> bool:
        return self._lent() is not None

    def floats(self, start: int, shape: tuple[int, ...]) -> np.ndarray:
        """`shape` float32 from element `start` on; the memory lives as long as any such array."""
        return floats(self._memory, start, shape)


def floats(memory: mmap.mmap, start: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(memoryview(memory), np.float32, int(np.prod(shape)), 4 * start).reshape(shape)


class Line:
    """Messages through a Unix socket: a line of JSON each, and descriptors of shared memory beside it."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self._rest = b""
        self.descriptors: list[int] = []

    def write(self, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        data = json.dumps(message).encode() + b"\n"
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        sent = self.socket.sendmsg([data], beside)
        self.socket.sendall(data[sent:])

    def read(self) -> dict[str, Any] | None:
        """The next message, or None when the other side has gone."""
        while b"\n" not in self._rest:
            try:
                data, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 16, 8)
            except ConnectionError:
                return None
            if not data:
                return None
            self._rest += data
            self.descriptors += descriptors
        line, self._rest = self._rest.split(b"\n", 1)
        return json.loads(line)


# --- One rank ----------------------------------------------------------------------------------------------------


def serve(path: str, job: dict[str, Any]) -> None:
    """Be a rank: prepare the strategy, then answer calls until the connection ends."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError as error:  # who started the ranks was killed meanwhile, and so left its files
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)
        sys.exit(f"no process waits for this rank any more: {error}")
    line = Line(connection)
    requests: queue.SimpleQueue = queue.SimpleQueue()
    try:
        from rnnpar.backends import mpi

        place = mpi.world()
        place.meet()
        remove_names("self")  # all have mapped it
        stay_on_cores(place.rank, place.size, job["threads"])
        from mpi4py import MPI

        library = MPI.Get_library_version().splitlines()[0].strip("\0")
        line.write({"rank": place.rank, "size": place.size, "pid": os.getpid(), "library": library})
        net = RNN.load(os.path.join(os.path.dirname(path), "net.npz"))
        threading.Thread(target=pass_on, args=(line, requests), daemon=True).start()
        strategy = mpi.STRATEGIES[job["name"]](place, net, job["threads"], job["exchange"], **job["options"])
        strategy.warm()
        line.write({"info": strategy.info})
        memory: dict[int, mmap.mmap] = {}
        while True:
            answer(place, strategy, memory, line, *requests.get())
    except Exception as error:
        from rnnpar.backends.mpi import last_words

        line.write({"error": last_words(error)})
        time.sleep(5)  # the process that started the ranks ends them all now; if it does not, mpiexec does
        os._exit(1)


def stay_on_cores(rank: int, ranks: int, threads: int) -> None:
    """Keep this rank to cores of its own, where there are enough; a core's second hardware thread comes last.

    Ranks that sleep between two calls are woken by one process, and so, often, all on its core: spinning there for
    each other they stay for milliseconds, until the system notices that another core has nothing to do.
    """
    if not hasattr(os, "sched_getaffinity"):
        return
    seen: dict[str, int] = {}

    def turn(cpu: int) -> int:
        """Which hardware thread of its core `cpu` is: 1, 2, ..."""
        try:
            core = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            core = str(cpu)
        seen[core] = seen.get(core, 0) + 1
        return seen[core]

    allowed = sorted(sorted(os.sched_getaffinity(0)), key=turn)
    if ranks * threads <= len(allowed):
        os.sched_setaffinity(0, allowed[rank * threads : (rank + 1) * threads])


def answer(place: Any, strategy: Any, memory: dict[int, mmap.mmap], line: Line, call: dict, descriptors: list) -> None:
    """One call: map what is new, compute, and let rank 0 say how long it took (all ranks here have the same clock)."""
    from mpi4py import MPI

    from rnnpar.backends.mpi import patiently

    sizes = dict(map(tuple, call["memory"]))
    for key, descriptor in zip(call["new"], descriptors, strict=True):
        memory[key] = mmap.mmap(descriptor, sizes[key])
        os.close(descriptor)
    T, B, net = call["T"], call["B"], strategy.net
    taken, given = (memory[key] for key, _ in call["memory"])
    x, h0 = floats(taken, 0, (T, B, net.input_size)), (net.num_layers, B, net.hidden_size)
    y = floats(given, 0, (T, B, net.output_size))
    place.meet()
    begin = time.perf_counter()
    strategy.run(x, floats(taken, x.size, h0), y, floats(given, y.size, h0))
    end = time.perf_counter()  # on rank 0, when everything has come
    first = np.empty(1)  # who left the meeting first: rank 0 may have slept on while others computed
    patiently(place.comm.Ireduce(np.array([begin]), first, MPI.MIN), place.crowded)
    if place.rank == 0:
        line.write({"seconds": end - float(first[0]), "info": strategy.info})
    for key in set(memory) - set(call["keep"]):
        del memory[key]


def pass_on(line: Line, requests: queue.SimpleQueue) -> None:
    """Pass calls on. This thread always waits here: the rank ends with its starter even from within a call."""
    with suppress(Exception):
        while (call := line.read()) is not None:
            count = len(call["new"])
            requests.put((call, line.descriptors[:count]))
            del line.descriptors[:count]
    os._exit(1)


if __name__ == "__main__":
    module = importlib.import_module("rnnpar.backends.mpi_start")  # not __main__: one Line, one everything
    module.serve(sys.argv[1], json.loads(sys.argv[2]))
