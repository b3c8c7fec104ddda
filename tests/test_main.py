"""The command line: what each command prints, its exit status, and one line for whatever is wrong."""

from __future__ import annotations

import importlib
import io
import os
import re
import subprocess
import sys
from contextlib import suppress

import pytest

import rnnpar
from rnnpar import __main__, advice, doctor, machine, model, registry
from rnnpar.study import results, sweep, which
from rnnpar.words import write_anything
from tests.test_model import simple_peaks
from tests.test_register import right, wrong


@pytest.fixture(autouse=True)
def _peaks(monkeypatch):
    monkeypatch.setattr(registry, "_own", {})
    monkeypatch.setattr(model, "here", lambda: model.Model(simple_peaks(), 32))
    monkeypatch.setattr(machine, "cores_allowed", lambda: 2)
    monkeypatch.setattr(doctor, "disturbance", str)  # a quiet machine


def run(capsys, *arguments):
    """(exit status, lines of stdout, stderr) of a command."""
    try:
        status = __main__.main(list(arguments))
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def test_methods(capsys, monkeypatch):
    row = registry.Method("far/away", "the work", "something", requires=(("no_such_module", "no-such-package"),))
    monkeypatch.setattr(registry, "TABLE", registry.Methods([registry.find("serial/naive"), row]))
    status, lines, err = run(capsys, "methods")
    assert (status, err) == (0, "")
    assert lines == [
        "serial/naive  yes  nothing: NumPy, a step at a time, as on paper; waits: nothing",
        "far/away      no   the work; waits: something",
        "                   needs no-such-package: pip install no-such-package",
        "1 of 2 methods run here.",
    ]


def test_advise_says_what_the_chapters_say(capsys, monkeypatch):
    status, lines, _ = run(capsys, "advise", "256", "100", "1", "--input", "64")
    assert status == 0
    wanted = advice.advise(model.here(), model.Work(T=100, B=1, I=64, H=256, O=256), 2, machine.name())
    assert lines[:2] == [wanted.sentence, wanted.details]
    assert [line.split()[0] for line in lines[3 : 3 + len(wanted.seconds)]] == list(wanted.seconds)
    assert lines[3 + len(wanted.seconds) :] == ["", "Not considered:", *(f"  {line}" for line in wanted.not_considered)]
    assert [line.split()[-1] for line in lines[3:] if line.startswith(f"{wanted.method} ")] == ["1.00×"]
    monkeypatch.setattr(results, "cost_model", lambda name="": model.here())
    said = which.advice(256, 100, 1, 64, 256, 1).data
    assert said.startswith(f"**{wanted.sentence}**\n\n{wanted.details}\n\n")


def test_advise_says_what_is_predicted_of_a_gpu_that_is_named(capsys):
    status, lines, err = run(capsys, "advise", "256", "100", "1", "--gpu", "h100")
    assert (status, err) == (0, "")
    said = "On a GPU, NVIDIA H100 80GB HBM3: predicted from data sheets and papers, not measured"
    (start,) = (index for index, line in enumerate(lines) if line.startswith(said))
    wanted = advice.gpu_named("H100", model.Work(T=100, B=1, I=256, H=256, O=256))
    assert [line.split()[0] for line in lines[start + 1 : lines.index("Not considered:") - 1]] == list(wanted.seconds)


def test_advise_warns_of_sizes_that_do_not_fit(capsys, monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: 2**30)
    _, lines, _ = run(capsys, "advise", "30000", "100", "1")
    assert lines[0].startswith("It will not run here: weights, input and output of these sizes need 10 GiB, and this")
    assert run(capsys, "advise", "300", "100", "1")[1][0].startswith("On ")


def test_time(capsys):
    status, lines, err = run(
        capsys, "time", "serial/hoisted", "16", "8", "2", "--baseline", "serial/naive", "--layers", "2"
    )
    assert (status, err) == (0, "")
    assert lines[0] == f"H 16, I 16, O 16, T 8, B 2, 2 layers, 1 thread, on {machine.name()}"
    assert [line.split()[0] for line in lines[1:4]] == ["serial/hoisted", "serial/naive", "serial/hoisted"]
    assert all("samples), " in line and "error to the oracle 0." in line for line in lines[1:3])
    assert " times as fast as serial/naive (" in lines[3]


def test_time_says_that_the_machine_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "disturbance", lambda: "other programs keep 1.5 of 2 cores busy")
    status, lines, err = run(capsys, "time", "serial/hoisted", "8", "4", "1", "--baseline", "serial/naive")
    assert (status, len(lines)) == (0, 5)
    assert err == "warning: other programs keep 1.5 of 2 cores busy; these times are of a loaded machine\n"


def test_a_wrong_method_gets_no_time(capsys):
    rnnpar.register("mine/wrong", wrong)
    status, lines, err = run(capsys, "time", "mine/wrong", "8", "4", "1", "--baseline", "serial/naive")
    assert (status, lines) == (2, [])
    assert err.startswith("error: mine/wrong has no time: relative error ")


def test_threads_go_to_whoever_takes_them_and_too_many_are_warned_of(capsys):
    rnnpar.register("mine/right", right)
    status, lines, err = run(
        capsys, "time", "mine/right", "8", "4", "1", "--threads", "64", "--baseline", "serial/naive"
    )
    assert status == 0
    assert "64 threads" in lines[0]
    assert err == "warning: threads=64, but this process may use 2 cores: the result is right, the time is not\n"


def test_auto_is_what_the_model_takes(capsys, monkeypatch):
    monkeypatch.setattr(model, "fastest", lambda net, T, B, threads: "serial/naive")
    status, lines, _ = run(capsys, "time", "auto", "8", "4", "1", "--baseline", "serial/hoisted", "--threads", "1")
    assert status == 0
    assert lines[1].startswith("serial/naive ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["nothing"], "unknown command 'nothing'; there are: methods, advise, time, doctor, sweep"),
        (["advice", "64", "8", "1"], "unknown command 'advice': did you mean advise?"),
        (["advise", "64", "8", "1", "--gpu", "Z9"], "no GPU 'Z9' is written down; those that are: H100, H200, A100"),
        (["advise", "-1", "8", "0"], "error: H is -1, B is 0: sizes"),
        (
            ["time", "serial/naive", "1000000", "8", "1"],
            "weights, input and output of these sizes need 45,000 GiB, and",
        ),
        (["time", "serial/naive", "8", "8", "1", "--threads", "100000"], "serial/naive takes no threads"),
        (["time", "threads/row", "8", "8", "1"], "unknown method 'threads/row': did you mean threads/rows? ("),
        (["time", "Rows", "8", "8", "1"], "did you mean threads/rows or mpi/rows? ("),
        (["advise", "64", "x", "1"], "argument T: invalid int value: 'x'"),
        (["advise", "64", "8"], "the following arguments are required: B"),
        (["advise", "64", "0", "1"], "T is 0: sizes are whole numbers of at least 1."),
        (["advise", "64", "8", "1", "--threads", "9"], "threads is 9; the peaks of"),
        (
            ["time", "one/two", "64", "8", "1"],
            "unknown method 'one/two'; the methods are: auto, serial/naive, serial/h",
        ),
        (["time", "serial/naive", "8", "8", "1", "--threads", "2"], "serial/naive takes no threads"),
        (["time", "serial/naive", "8", "8", "1", "--threads", "0"], "threads is 0; it must be at least 1"),
        (["time", "serial/naive", "8", "8", "1", "--baseline", "serial/naive"], "the baseline is serial/naive itself"),
        (["time", "serial/naive", "8", "8", "-1"], "B is -1"),
        (["doctor", "now"], "unrecognized arguments: now"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, arguments, said):
    status, lines, err = run(capsys, *arguments)
    assert (status, lines) == (2, [])
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_method_that_cannot_run_here(capsys, monkeypatch):
    row = registry.Method("far/away", "", "", requires=(("no_such_module", "no-such-package"),))
    monkeypatch.setattr(registry, "TABLE", registry.Methods([*registry.TABLE, row]))
    status, _, err = run(capsys, "time", "far/away", "8", "8", "1")
    assert (status, err) == (2, "error: far/away cannot run here: needs no-such-package: pip install no-such-package\n")


def test_a_missing_package_is_named(capsys, monkeypatch):
    missing = ["pandas"]

    def gone(options):
        raise ModuleNotFoundError(f"No module named {missing[0]!r}", name=missing[0])

    monkeypatch.setitem(__main__.COMMANDS, "methods", gone)
    assert run(capsys, "methods")[::2] == (2, "error: this needs pandas: pip install 'rnnpar[study]'\n")
    missing[0] = "rnnpar.nothing"  # one of our own is a fault of ours: all of it is shown
    with pytest.raises(ModuleNotFoundError):
        __main__.main(["methods"])


@pytest.mark.parametrize(("level", "status"), [(doctor.OK, 0), (doctor.NOTE, 0), (doctor.WRONG, 1)])
def test_the_doctors_exit_status(capsys, monkeypatch, level, status):
    monkeypatch.setattr(doctor, "read", doctor.Facts)
    monkeypatch.setattr(doctor, "examine", lambda facts: [doctor.Finding("a", level, "found", "mend it")])
    assert run(capsys, "doctor")[0] == status


def test_sweep_is_handed_over(monkeypatch):
    given = []
    monkeypatch.setattr(sweep, "main", lambda arguments: given.append(arguments) or 7)
    assert __main__.main(["sweep", "--profile", "ci"]) == 7
    assert given == [["--profile", "ci"]]


def test_interrupted(capsys, monkeypatch):
    def stopped(options):
        raise KeyboardInterrupt

    monkeypatch.setitem(__main__.COMMANDS, "methods", stopped)
    assert run(capsys, "methods")[::2] == (130, "error: interrupted\n")


def test_as_a_process_and_with_nothing_heavy_imported():
    code = "import sys; from rnnpar.__main__ import main; main(['methods']); print(sorted({'numba', 'pandas', " \
        "'matplotlib', 'llvmlite', 'IPython'} & set(sys.modules)))"  # fmt: skip
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_has_enough():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "rnnpar", "methods"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


NO_UTF8 = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
]
SPEAKS = r"""
import sys
from rnnpar import __main__
__main__.COMMANDS["methods"] = lambda options: print("2.0\u00d7 \u2192") or print("1.5\u00d7", file=sys.stderr) or 3
sys.exit(__main__.main(["methods"]))
"""


@pytest.mark.parametrize("variables", NO_UTF8, ids=lambda variables: next(iter(variables.values())))
def test_output_that_is_no_utf8_gets_other_characters_instead(variables):
    ours = {key: value for key, value in os.environ.items() if key not in ("PYTHONIOENCODING", "PYTHONUTF8")}
    done = subprocess.run([sys.executable, "-c", SPEAKS], capture_output=True, env=ours | variables, timeout=60)
    assert done.returncode == 3, done.stderr
    assert done.stdout.strip() == (b"2.0\xd7 ?" if "latin-1" in variables.values() else b"2.0? ?")
    assert done.stderr.startswith(b"1.5")
    assert b"Traceback" not in done.stderr


ENTRY_POINTS = sorted(
    ".".join(file.relative_to(registry.PACKAGE.parent).with_suffix("").parts)
    for file in registry.PACKAGE.rglob("*.py")
    if re.search(r"^def main\(", file.read_text(encoding="utf-8"), re.MULTILINE)
)


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_every_entry_point_writes_whatever_the_output_can_take(monkeypatch, module):
    if module == "rnnpar.study.cluster":
        pytest.importorskip("distributed")
    main = importlib.import_module(module).main
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # which has no reconfigure
    if module == "rnnpar.study.live":  # takes no arguments, and gives its stdout away
        monkeypatch.setattr(os, "dup", lambda descriptor: pytest.fail("too late") if strict() else sys.exit())
    with suppress(SystemExit):
        main() if module == "rnnpar.study.live" else main(["--no-such-option"])
    assert not strict()
    print("2.0×")
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue().endswith(b"2.0?\n")


def strict():
    return sys.stdout.errors == "strict"


def test_an_error_handler_that_the_user_chose_stays(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii", errors="xmlcharrefreplace"))
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    write_anything()
    assert sys.stdout.errors == "xmlcharrefreplace"


def test_python_m_machine_has_nothing_to_warn_of():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "rnnpar.machine"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
