"""What the model would take at given sizes, in words: for chapter 08, and for `explore`."""

from __future__ import annotations

from IPython.display import Markdown

from rnnpar import machine
from rnnpar.advice import advise, cautions, check_sizes, gpu_here
from rnnpar.study import results
from rnnpar.words import duration, ratio, short
from rnnpar.work import Work


def advice(H: int, T: int, B: int, I: int, O: int, layers: int = 1, name: str = "", threads: int = 0) -> Markdown:
    """The predicted time of each method at given sizes on a machine, what to take, and why."""
    costs, where, work = (
        results.cost_model(name),
        name or machine.name(),
        Work(T=T, B=B, I=I, H=H, O=O, layers=layers),
    )
    try:
        check_sizes(work)
        if costs is None:
            return Markdown(f"No advice: the peaks of {where} are not measured; `rnnpar.prepare(net)` measures them.")
        threads = threads or max(int(n) for n in costs.peaks["launch"])
        gpu = gpu_here(work) if where == machine.name() else None
        advised = advise(costs, work, threads, where, gpu)
    except ValueError as error:
        return Markdown(str(error))
    best = advised.seconds[advised.method]
    lines = [(f"`{method}`", duration(value), short(1e6 * value / T), f"{ratio(value / best)}×")
             for method, value in advised.seconds.items()]  # fmt: skip
    heads = ("method", "predicted time of a call", "µs a step", "over the advice")
    table = "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *lines])
    told = [gpu.sentence] if gpu else []
    left_out = "\n".join(["Not considered:", "", *(f"- {line}" for line in advised.not_considered)])
    size = work if where == machine.name() else None
    return Markdown("\n\n".join([f"**{advised.sentence}**", advised.details, table, *told, left_out,
                                 *cautions(costs.peaks, size)]))  # fmt: skip
