"""A job: everything that the threads of one parallel region have to know, as named fields of 8 bytes each.

A job is made once, in `prepare`; a call changes the few fields that are new. Compiled code takes it by its address and
reads `job.name`: a pointer where an array was given, else a whole number or a float64. Its `type` lists the fields, and
a function is compiled once for each type: weights in bfloat16, for instance, make another one.

The first field, `control`, points to lines (128 bytes, since processors fetch cache lines in pairs) that the threads
write themselves, of which no two are written by different threads:

    STOP       set as soon as the call is given up; every wait and every loop over chunks looks at it
    WATCH      of the calling thread alone: when it has to ask Python for signals, how, and the error that came of it
    FLAGS + r  of thread r: the last epoch of a barrier that it has reached, its core, and how long it spins

The last field, `flags`, points to the third kind; threads of several processes have theirs elsewhere (backends/mpi.py).
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, lower_getattr_generic, models, register_model

from rnnpar.kernels.pointers import INT64S
from rnnpar.kernels.tile import aligned

LINE = 16  # int64 elements of a line
STOP, WATCH, FLAGS = 0, LINE, 2 * LINE  # where in `control`
CORE, SKIP = 1, 2  # within a thread's line: its core plus one; how many polls it skips, SPINS where cores are too few
WORK, LOOKED, PYTHON, ERROR = range(WATCH, WATCH + 4)  # within WATCH; three words of ERROR

# Where Python's own functions lie, and which thread is the main one, the only one that runs signal handlers.
ENSURE, RELEASE, CHECK, FETCH, IDENT, MAIN = range(6)
_NAMES = ("PyGILState_Ensure", "PyGILState_Release", "PyErr_CheckSignals", "PyErr_Fetch", "PyThread_get_thread_ident")
python = np.array([ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value for name in _NAMES] + [0])


def note_main_thread() -> None:
    """After a fork the thread that forked is the main one."""
    python[MAIN] = threading.main_thread().ident


note_main_thread()


class JobType(types.Type):
    """Numba's type of a job: a pointer to 8-byte words, whose names and types it knows."""

    def __init__(self, fields: tuple[tuple[str, Any], ...]):
        self.fields = fields
        super().__init__("Job(" + ", ".join(f"{name}: {kind}" for name, kind in fields) + ")")

    def has(self, name: str) -> bool:
        return any(field == name for field, _ in self.fields)


@register_model(JobType)
class JobModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: JobType):
        super().__init__(manager, kind, ir.IntType(64).as_pointer())


@infer_getattr
class JobAttributes(AttributeTemplate):
    key = JobType

    def generic_resolve(self, kind: JobType, name: str) -> Any:
        return dict(kind.fields).get(name)


@lower_getattr_generic(JobType)
def load_field(context, builder, kind, value, name):
    index = [field for field, _ in kind.fields].index(name)
    place = builder.gep(value, [ir.IntType(64)(index)])
    loaded = builder.load(builder.bitcast(place, context.get_value_type(dict(kind.fields)[name]).as_pointer()))
    loaded.set_metadata("invariant.load", builder.module.add_metadata([]))  # nothing writes fields during a call
    return loaded


class Job:
    """A job of `size` threads. `Job(2, x=np.float32, panels=panels, T=0)`: a dtype for an array that comes later.

    `job.set(T=5, states=array)` changes fields; arrays must be C-contiguous, and are kept alive. A bool is a whole
    number, `address` what compiled code takes.
    """

    def __init__(self, size: int, **fields: Any):
        self.size = size
        kinds = ((name, _kind(value)) for name, value in fields.items())
        self.type = JobType((("control", INT64S), *kinds, ("flags", INT64S)))
        self._index = {name: index for index, (name, _) in enumerate(self.type.fields)}
        words = -(-len(self._index) // LINE) * LINE
        self.words = aligned(words + FLAGS + size * LINE, np.int64)
        self.control = self.words[words:]
        self.control[PYTHON] = python.ctypes.data
        self._arrays: dict[str, np.ndarray] = {}
        self.address = self.words.ctypes.data
        self.set(control=self.control, flags=self.control[FLAGS:])
        self.set(**{name: value for name, value in fields.items() if not isinstance(value, type)})

    def set(self, **fields: Any) -> None:
        """Give fields other values. TypeError for a value of another type than the field's."""
        for name, value in fields.items():
            index, kind = self._index[name], _kind(value)
            if kind != self.type.fields[index][1]:
                raise TypeError(f"job.{name} is {kind}; it must be {self.type.fields[index][1]}")
            if isinstance(value, np.ndarray):
                assert value.flags.c_contiguous
                self._arrays[name] = value
                self.words[index] = value.ctypes.data
            elif kind is types.float64:
                self.words[index : index + 1].view(np.float64)[0] = value
            else:
                self.words[index] = value


def _kind(value: Any) -> Any:
    """Numba's type of a field that has this value."""
    if isinstance(value, type):
        return types.CPointer(from_dtype(np.dtype(value)))
    if isinstance(value, np.ndarray):
        return types.CPointer(from_dtype(value.dtype))
    return types.float64 if isinstance(value, float | np.floating) else types.int64
