"""Processes of our own: one that answers requests, and what starting any takes.

`Child` makes an object in a fresh interpreter and asks it by the names of its methods: an engine of the peers, a method
on a GPU, the bench of a Dask worker, explore's measurements. Whatever happens in there (it crashes, hangs, takes all
memory) ends with it.
"""

from __future__ import annotations

import importlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FAILED = " failed in its process: "
STARTED: weakref.WeakSet[Any] = weakref.WeakSet()  # what has processes; each hears of a fork on both sides of it


def _in_parent() -> None:
    for owner in list(STARTED):
        owner.stay_with_parent()


def _in_child() -> None:
    for owner in list(STARTED):
        owner.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_in_parent, after_in_child=_in_child)


@contextmanager
def held_back() -> Iterator[None]:
    """What is begun in here is not left half done: signals that Python handles are heard after it.

    An interrupt between the start of a process and the note of it would leave a process that nobody ends.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main thread only
        yield
        return
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    came: list[int] = []
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def listen(pipe: Any, words: deque[str]) -> None:
    """Keep the last lines that a pipe brings, then close it.

    The pipe has no buffer, but this reading of it: a buffer has a lock, which a forked child would find taken for ever.
    """
    with pipe, open(pipe.fileno(), "rb", closefd=False) as lines:
        for line in lines:
            words.append(line.decode(errors="replace"))


class Died(RuntimeError):
    """A process has ended, or was killed since it did not answer; the message says how, with its last lines."""


class Failed(RuntimeError):
    """What was asked of a process has raised there; the message has the error and where it came from."""

    @property
    def reason(self) -> str:
        """The error alone, in a line."""
        return str(self).partition(FAILED)[2].partition("\n")[0]


class Child:
    """An object in a process of its own: a fresh interpreter that makes it once, and then answers `ask`.

    `factory`, "module:function", is called there with `arguments`. The process is kept to `threads` of its cores (None:
    all), has `environment` in place of this one's, and ends when nobody has asked it for `idle_s` (a request that comes
    at that very moment ends as Died: ask again). Requests and answers go through pipes, pickled. A start or an answer
    that takes longer than `limit_s`, a death, an interrupt and `kill` end the process, and the next request starts a
    new one; so does the next request in a forked process. The process ends with this one, whatever this one dies of.
    """

    def __init__(self, name: str, factory: str, arguments: tuple = (), *, threads: int | None = None,
                 environment: Mapping[str, str] | None = None, limit_s: float | None = None,
                 idle_s: float | None = None):  # fmt: skip
        self.name, self.limit_s = name, limit_s
        self._first = (factory, arguments, threads, idle_s)
        self._environment = environment
        self._closed = False
        self._end: weakref.finalize | None = None
        self._start()

    def _start(self) -> None:
        environment = dict(os.environ if self._environment is None else self._environment)
        path = [str(Path(__file__).parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
        self._words: deque[str] = deque(maxlen=12)
        try:
            with held_back():
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", __name__],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    bufsize=0,  # a buffer has a lock, which a forked process would find taken for ever
                    env=environment | {"PYTHONPATH": os.pathsep.join(path)},
                    start_new_session=True,  # an interrupt from the keyboard is for the parent
                )  # fmt: skip
                self._listener = threading.Thread(target=listen, args=(self._process.stderr, self._words), daemon=True)
                self._end = weakref.finalize(self, _end, self._process, self._listener)
                STARTED.add(self)
            self._listener.start()
            self._ask(self._first, self.limit_s)
        except BaseException:
            self._abandon()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether there is a process to be asked; else the next request starts one."""
        return self._end is not None and self._end.alive and self._process.poll() is None

    def ask(self, method: str, *arguments: Any, limit_s: float | None = None) -> Any:
        """What a method of the object returns. Failed where it raises; Died where the process ends, or is late."""
        if self._closed:
            raise RuntimeError(f"{self.name} is closed; prepare a new one")
        if not self.alive:
            if self._end is not None:
                self._end()
            self._start()
        return self._ask((method, arguments), limit_s or self.limit_s)

    def close(self) -> None:
        """End the process, and wait until it has."""
        self._closed = True
        if self._end is not None:
            self._end()

    def kill(self) -> None:
        """End the process at once, from whichever thread; a request that it was at ends as Died."""
        if self.alive:
            _kill(self._process)
            with suppress(subprocess.TimeoutExpired):  # else the next request might still find it alive
                self._process.wait(10)

    def _abandon(self) -> None:
        """End the process at once, whatever it is at, and do not wait for it for long."""
        if self._end is not None and self._end.alive:
            _kill(self._process)
            self._end.detach()
            _end(self._process, self._listener, 0.1)

    def stay_with_parent(self) -> None:
        """After a fork: nothing is shared with it."""

    def leave_to_parent(self) -> None:
        """In a forked process: the child is its parent's. Close what was inherited of it, and end nothing."""
        self._end.detach()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            pipe.close()
        self._process.poll()  # no child of this process, which it finds out here, so that it never warns of it

    def _ask(self, request: tuple, limit_s: float | None) -> Any:
        late = threading.Event()
        watch = threading.Timer(limit_s or 0.0, lambda: (late.set(), _kill(self._process)))
        watch.daemon = True
        try:
            if limit_s:
                watch.start()
            _send(self._process.stdin, request)
            with open(self._process.stdout.fileno(), "rb", closefd=False) as pipe:
                well, answer = pickle.load(pipe)
        except (EOFError, ConnectionError, pickle.UnpicklingError):
            watch.cancel()
            _kill(self._process)
            self._end()
            status = f"did not answer within {limit_s:g} s" if late.is_set() else f"ended ({self._status()})"
            words = "; it wrote:\n" + "".join(self._words) if self._words else ""
            raise Died(f"the process of {self.name} {status}{words}") from None
        except BaseException:  # an interrupt: the answer, still to come, would be taken for the next request's
            self._abandon()
            raise
        finally:
            watch.cancel()
        if not well:
            raise Failed(f"{self.name}{FAILED}{answer}")
        return answer

    def _status(self) -> str:
        code = self._process.returncode
        return f"signal {-code}" if code and code < 0 else f"exit status {code}"


def imported(name: str) -> Callable[..., Any]:
    """The function that "module:function" names."""
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def _send(pipe: Any, request: tuple) -> None:
    data = memoryview(pickle.dumps(request, protocol=5))
    while data:  # a signal may come between two parts
        data = data[pipe.write(data) :]


def _kill(process: subprocess.Popen) -> None:
    """Kill a process and what it may have started: its pipes end only with the last who holds them."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()


def _end(process: subprocess.Popen, listener: threading.Thread, seconds: float = 10.0) -> None:
    process.stdin.close()  # the child leaves at once, even out of a call
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    _kill(process)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    if listener.ident is not None:
        listener.join(0.1)  # it closes its pipe
    process.stdout.close()


def _serve() -> None:
    """The child: make what the first request asks for, then answer until the parent is gone or long silent."""
    pipe, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed in here must not get between the answers
    requests: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_read, args=(pipe, requests), daemon=True).start()
    made, idle_s = None, None
    while True:
        try:
            request = requests.get(timeout=idle_s)
        except queue.Empty:
            return
        try:
            if made is None:
                factory, arguments, threads, idle_s = request
                stay_on_cores(threads)
                made, answer = imported(factory)(*arguments), (True, None)
            else:
                answer = (True, getattr(made, request[0])(*request[1]))
        except Exception as error:
            answer = (False, f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}")
        pickle.dump(answer, answers, protocol=5)
        answers.flush()
        answer = request = None  # held on to, they would keep the next call from using their memory again


def _read(pipe: Any, requests: queue.SimpleQueue) -> None:
    """Pass requests on. This thread always waits here: the child ends with its parent even from within a call."""
    with suppress(Exception):
        while True:
            requests.put(pickle.load(pipe))
    os._exit(0)


def stay_on_cores(threads: int | None) -> None:
    """Keep this process to `threads` of its cores, a core's second hardware thread last. (JAX knows no other limit.)"""
    if threads is None or not hasattr(os, "sched_getaffinity"):
        return

    seen: Counter = Counter()

    def place(cpu: int) -> int:
        """Which hardware thread of its core `cpu` is: 1, 2, ..."""
        try:
            core = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            core = str(cpu)
        seen[core] += 1
        return seen[core]

    allowed = sorted(sorted(os.sched_getaffinity(0)), key=place)
    os.sched_setaffinity(0, allowed[:threads])


if __name__ == "__main__":
    from rnnpar.backends import processes  # what is pickled here must be found by the module's own name

    processes._serve()
