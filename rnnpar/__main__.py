"""The command line: `python -m rnnpar methods | advise | time | sweep | doctor`.

Each command imports what it needs when it runs. An error is one line on stderr and the exit status 2.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from typing import TYPE_CHECKING, NoReturn

from rnnpar import Unavailable
from rnnpar.words import did_you_mean, write_anything

if TYPE_CHECKING:
    from rnnpar.work import Work


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (`{self.prog} --help` explains)\n")


def parser() -> Parser:
    """The commands and their options."""
    top = Parser(prog="python -m rnnpar", description="How far can the forward pass of a recurrent network be "
                 "parallelised? Ask this machine.")  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    commands.add_parser("methods", help="every method: what runs here, and why not the rest")
    advise = commands.add_parser("advise", help="which method to take at given sizes, predicted: nothing is run")
    time = commands.add_parser("time", help="time a method here and now, against a named baseline and the oracle")
    time.add_argument("method", metavar="METHOD", help="a name that `methods` lists, or auto")
    for command in (advise, time):
        for name, what in (("H", "hidden size"), ("T", "time steps"), ("B", "sequences side by side")):
            command.add_argument(name, type=int, help=what)
        command.add_argument("--input", type=int, metavar="I", help="input size (default: H)")
        command.add_argument("--output", type=int, metavar="O", help="output size (default: H)")
        command.add_argument("--layers", type=int, default=1, metavar="L", help="stacked layers (default: 1)")
        command.add_argument("--threads", type=int, metavar="N", help="threads (default: the cores allowed)")
    advise.add_argument("--gpu", default="", metavar="NAME",
                        help="also what is predicted for this GPU, wherever it is: H100, H200, A100, T4, GTX 1650; "
                        "without it, for the GPU of this machine, if it has one")  # fmt: skip
    time.add_argument("--baseline", default="", metavar="METHOD",
                      help="what to compare with (default: serial/compiled; for that one, serial/naive)")  # fmt: skip
    commands.add_parser("sweep", add_help=False, help="measure this machine; its options: `sweep --help`")
    commands.add_parser("doctor", help="what is wrong with this machine's set-up, and its mend; exit status 1 if any")
    return top


def methods(options: argparse.Namespace) -> int:
    """List the methods."""
    from rnnpar import registry

    rows = registry.methods()
    wide = max(len(row.name) for row in rows)
    for row in rows:
        print(
            f"{row.name:{wide}}  {'yes' if row.available else 'no ':3}  {row.parallelises}; waits: {row.synchronises}"
        )
        if not row.available:
            print(f"{'':{wide}}       {row.why_not}")
    print(f"{sum(row.available for row in rows)} of {len(rows)} methods run here.")
    return 0


def advise(options: argparse.Namespace) -> int:
    """What the model would take."""
    from rnnpar import advice, machine, model

    work = _work(options)
    threads = machine.cores_allowed() if options.threads is None else options.threads
    gpu = advice.gpu_named(options.gpu, work) if options.gpu else advice.gpu_here(work)
    costs = model.here()
    advised = advice.advise(costs, work, threads, machine.name(), gpu)
    for caution in advice.cautions(costs.peaks, work):
        print(f"{caution}\n")
    print(f"{advised.sentence}\n{advised.details}\n")
    best = advised.seconds[advised.method]
    _predictions(advised.seconds, work.T, best)
    if gpu:
        print(f"\n{gpu.sentence}")
    if gpu and not gpu.here:
        _predictions(gpu.seconds, work.T, best)
    print("\nNot considered:")
    for line in advised.not_considered:
        print(f"  {line}")
    return 0


def _predictions(seconds: dict[str, float], steps: int, best: float) -> None:
    """A line a method: a call, a step, and over what is advised."""
    from rnnpar.words import duration, ratio

    wide = max(map(len, seconds), default=0)
    for name, a_call in seconds.items():
        print(f"{name:{wide}}  {duration(a_call):>8} a call  {duration(a_call / steps):>8} a step  "
              f"{ratio(a_call / best):>5}×")  # fmt: skip


def time(options: argparse.Namespace) -> int:
    """Time a method against a baseline."""
    work = _work(options)
    if options.threads is not None and options.threads < 1:
        raise ValueError(f"threads is {options.threads}; it must be at least 1")
    from rnnpar import doctor
    from rnnpar.study import compare

    if disturbed := doctor.disturbance():
        print(f"warning: {disturbed}; these times are of a loaded machine", file=sys.stderr)
    try:
        print(compare.compare(options.method, work, options.threads, options.baseline))
    except compare.NoTime as error:
        return _complain(error)
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Examine this machine."""
    from rnnpar import doctor

    findings = doctor.examine(doctor.read())
    print(doctor.report(findings))
    return int(any(finding.level == doctor.WRONG for finding in findings))


COMMANDS = {"methods": methods, "advise": advise, "time": time, "doctor": doctor}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    write_anything()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["sweep"]:
            from rnnpar.study import sweep

            return sweep.main(arguments[1:])
        if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            known = (*COMMANDS, "sweep")
            near = did_you_mean(arguments[0], known) or f"; there are: {', '.join(known)}"
            return _complain(f"unknown command {arguments[0]!r}{near}")
        options = parser().parse_args(arguments)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            return COMMANDS[options.command](options)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:  # whoever read our output has had enough, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "rnnpar":
            raise
        return _complain(f"this needs {error.name}: pip install 'rnnpar[study]'")
    except (ValueError, Unavailable, OSError) as error:
        return _complain(error)


def _work(options: argparse.Namespace) -> Work:
    from rnnpar.advice import check_sizes
    from rnnpar.work import Work

    H = options.H
    I, O = (H if size is None else size for size in (options.input, options.output))
    work = Work(T=options.T, B=options.B, I=I, H=H, O=O, layers=options.layers)
    check_sizes(work)
    return work


def _complain(error: object, status: int = 2) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
