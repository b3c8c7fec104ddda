"""The papermill wrapper: what runs, what is kept of a failure, and the one form of a source."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from rnnpar.study import notebooks
from rnnpar.study.notebooks import NotebookError, execute


def write(path: Path, *codes: str, tags: tuple[str, ...] = ("parameters",)) -> Path:
    """A source notebook of these code cells, the first with `tags`."""
    cells = [nbformat.v4.new_code_cell(code) for code in codes]
    cells[0].metadata["tags"] = list(tags)
    path.write_text(notebooks.canonical(nbformat.v4.new_notebook(cells=cells)), encoding="utf-8")
    return path


@pytest.fixture
def source(tmp_path):
    return lambda *codes: write(tmp_path / "a.ipynb", *codes)


def outputs(path: Path) -> list:
    return [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]


def test_runs_with_its_parameters_and_this_python(source, tmp_path, monkeypatch, capfd):
    # A kernelspec "python3" of the user's that leads elsewhere.
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("RNNPAR_DATA", "relative")
    path = source(
        "n = 1\nsizes = None",
        "import os, sys\nprint(n, sizes, sys.executable, os.getcwd(), os.environ['RNNPAR_DATA'], sep='|')",
        "from tqdm import tqdm\nfor _ in tqdm(range(3), mininterval=0, file=sys.stderr): pass",
    )
    target = tmp_path / "out" / "b.ipynb"
    execute(path, target, {"n": 2, "sizes": [{"H": [1, 2]}]})
    wanted = ["2", "[{'H': [1, 2]}]", sys.executable, str(tmp_path), str(Path("relative").absolute())]
    printed = capfd.readouterr()
    assert printed.out.strip().split("|") == wanted
    assert "2/3" in printed.err  # as it came
    assert [output.text.count("\n") for output in outputs(target)] == [1, 1]
    assert "3/3" in outputs(target)[1].text
    assert "\r" not in outputs(target)[1].text  # and as it is kept
    kept = target.read_text(encoding="utf-8")
    notebook = json.loads(kept)
    assert notebook["metadata"] == notebooks.METADATA
    assert "papermill" not in json.dumps([notebook["metadata"], [cell["metadata"] for cell in notebook["cells"]]])
    assert [file.name for file in target.parent.iterdir()] == ["b.ipynb"]


def test_unknown_parameters_stop_it_before_it_runs(source, tmp_path):
    path = source("n = 1\nsize = 2", "open('ran', 'w')")
    with pytest.raises(NotebookError, match=r"a.ipynb has no parameter m, k; its parameters are n, size"):
        execute(path, tmp_path / "b.ipynb", {"m": 2, "n": 3, "k": 1})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.ipynb"]


def test_no_parameters_no_notebook(tmp_path):
    plain = write(tmp_path / "a.ipynb", "n = 1", tags=())
    with pytest.raises(NotebookError, match="it has none"):
        execute(plain, tmp_path / "b.ipynb", {"n": 1})
    with pytest.raises(NotebookError, match="no such notebook"):
        execute(tmp_path / "c.ipynb", tmp_path / "b.ipynb", {})
    plain.write_text("{")
    with pytest.raises(NotebookError, match="is no notebook, or damaged"):
        execute(plain, tmp_path / "b.ipynb", {})


def test_a_failure_is_kept_and_shown(source, tmp_path, capfd):
    target = tmp_path / "b.ipynb"
    target.write_text("an earlier success")
    path = source("n = 1", "print('so far')", "def f(): return 1 / 0\nf()", "print('never')")
    with pytest.raises(
        NotebookError, match=r"a.ipynb: cell \[3\] failed: ZeroDivisionError: division by zero .kept as"
    ):
        execute(path, target, {})
    printed = capfd.readouterr()
    assert "so far" in printed.out
    assert "never" not in printed.out
    assert "def f(): return 1 / 0" in printed.err
    assert "\x1b" not in printed.err  # no colours where nobody looks
    assert target.read_text() == "an earlier success"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.ipynb", "b.failed.ipynb", "b.ipynb"]
    assert any(output.output_type == "error" for output in outputs(tmp_path / "b.failed.ipynb"))
    execute(source("n = 1"), target, {})  # a success clears it away
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.ipynb", "b.ipynb"]


def test_an_error_that_explains_itself_is_one_line(source, tmp_path, capfd):
    path = source("class ResultsError(Exception): pass\nraise ResultsError('disk full; free some space')")
    with pytest.raises(NotebookError, match=r"^a.ipynb: disk full; free some space \(kept as "):
        execute(path, tmp_path / "b.ipynb", {})
    assert "Traceback" not in capfd.readouterr().err


def test_a_cell_is_stopped_after_its_time(source, tmp_path):
    with pytest.raises(NotebookError, match=r"a cell was stopped after 1 seconds .kept as"):
        execute(source("import time\ntime.sleep(60)"), tmp_path / "b.ipynb", {}, timeout_s=1)
    assert (tmp_path / "b.failed.ipynb").exists()


def test_a_kernel_that_dies(source, tmp_path):
    with pytest.raises(NotebookError, match="the kernel died"):
        execute(source("import os\nos._exit(1)"), tmp_path / "b.ipynb", {})


def test_a_start_without_a_port_is_tried_again(source, tmp_path, monkeypatch):
    real, starts = papermill.execute_notebook, []

    def taken(*arguments, **options):
        starts.append(1)
        if len(starts) < 3:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return real(*arguments, **options)

    monkeypatch.setattr(papermill, "execute_notebook", taken)
    execute(source("n = 1"), tmp_path / "b.ipynb", {})
    assert len(starts) == 3

    def never(*arguments, **options):
        raise OSError("Address already in use")

    monkeypatch.setattr(papermill, "execute_notebook", never)
    with pytest.raises(NotebookError, match=r"OSError: Address already in use$"):
        execute(source("n = 1"), tmp_path / "b.ipynb", {})


def test_a_target_that_cannot_be_written(source, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(NotebookError, match=r"a.ipynb: .*Error"):
        execute(source("n = 1"), tmp_path / "file" / "b.ipynb", {})


def test_sources_are_in_order(capsys):
    assert notebooks.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said", "mended"),
    [
        (lambda cell, notebook: cell.update(execution_count=3), "cell 0 (from 0) carries outputs or a count", True),
        (lambda cell, notebook: notebook.metadata.update(kernelspec={"name": "conda"}), "its kernelspec is", True),
        (lambda cell, notebook: cell.metadata.update(scrolled=True), "not in the canonical form", True),
        (lambda cell, notebook: cell.metadata.pop("tags"), "0 cells are tagged `parameters`", False),
    ],
)
def test_the_checker_finds_and_mends(tmp_path, capsys, change, said, mended):
    path = write(tmp_path / "00_a.ipynb", "n = 1", "print(n)")
    assert notebooks.main(["--check", str(path)]) == 0
    wanted = path.read_text()
    notebook = nbformat.read(path, 4)
    change(notebook.cells[0], notebook)
    nbformat.write(notebook, path)
    assert notebooks.main(["--check", str(path)]) == 1
    assert said in capsys.readouterr().out
    assert notebooks.main(["--check", "--fix", str(path)]) == (0 if mended else 1)
    if mended:
        assert path.read_text() == wanted


def test_the_checker_on_what_is_no_notebook(tmp_path, capsys):
    (tmp_path / "a.ipynb").write_text("{}")
    assert notebooks.main(["--check", str(tmp_path / "a.ipynb")]) == 1
    assert "a.ipynb: is no notebook" in capsys.readouterr().out


def test_the_checkers_command_line_wants_check():
    with pytest.raises(SystemExit):
        notebooks.main([])


def test_links_to_what_is_not_executed_lead_to_the_source(tmp_path):
    (tmp_path / "sweep.ipynb").touch()
    (tmp_path / "01_next.ipynb").touch()
    (tmp_path / "rendered" / "box").mkdir(parents=True)
    left = "[b](01_next.ipynb) [c](nowhere.ipynb) [d](https://example.org/sweep.ipynb)"
    cell = nbformat.v4.new_markdown_cell(f"[a](sweep.ipynb#part) {left}", id="a")
    for place, wanted in (
        (tmp_path / "rendered" / "box" / "00.ipynb", "../../sweep.ipynb"),
        (tmp_path / "00.ipynb", "sweep.ipynb"),
    ):
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), place)
        notebooks.relink(place, tmp_path)
        found = nbformat.read(place, 4).cells[0].source
        assert found == f"[a]({wanted}#part) {left}"
