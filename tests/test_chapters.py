"""Every chapter on full, partial and no results: all figures drawn, nothing made up, its parameters cell in place."""

from __future__ import annotations

import json
import shutil

import nbformat
import papermill
import pytest

from rnnpar.study import notebooks, results, store
from rnnpar.study.corpus import data_folder
from tests.chapters import figures, outcomes, run

CHAPTERS = sorted(path.name[:2] for path in (notebooks.ROOT / "notebooks").glob("[0-9][0-9]*.ipynb"))
SETS = ("full", "partial", "empty")
KEPT = 3  # every so many-th point of the reference machine stays in the partial set


@pytest.fixture(scope="session")
def sets(tmp_path_factory):
    """A data folder for each set: all results as committed; every third point without peaks; none."""
    real, folders = data_folder().resolve(), {}
    for name in SETS:
        folders[name] = folder = tmp_path_factory.mktemp(name)
        for linked in ("text", "models", *(["results"] if name == "full" else [])):
            (folder / linked).symlink_to(real / linked, target_is_directory=True)
        (folder / "results").mkdir(exist_ok=True)
    for file in (real / "results" / results.REFERENCE).iterdir():
        to = folders["partial"] / "results" / results.REFERENCE / file.name
        to.parent.mkdir(exist_ok=True)
        if file.suffix == ".jsonl":
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = set(list(dict.fromkeys(json.loads(line)["point"] for line in lines))[::KEPT])
            to.write_text("".join(line for line in lines if json.loads(line)["point"] in kept))
        elif file.stem == "machine":
            shutil.copyfile(file, to)
    return folders


@pytest.fixture
def shown(sets, monkeypatch, tmp_path):
    """Run a chapter on one of the sets; what it has shown."""

    def chapter(number: str, name: str) -> list:
        monkeypatch.setenv("RNNPAR_DATA", str(sets[name]))
        monkeypatch.setenv("RNNPAR_FIGURES", str(tmp_path))
        monkeypatch.setenv("RNNPAR_MACHINE", results.REFERENCE)
        return run(number, monkeypatch)[1]

    return chapter


@pytest.mark.parametrize("number", CHAPTERS)
def test_a_chapter_on_every_set_of_results(number, shown):
    drawn, said = {}, {}
    for name in SETS:
        found = shown(number, name)
        drawn[name], said[name] = len(figures(found)), outcomes(found)
    assert drawn["full"] == drawn["partial"] == drawn["empty"]
    assert list(said["full"]) == list(said["partial"]) == list(said["empty"])
    measured = [claim for claim, word in said["empty"].items() if word != "not measured"]
    assert not measured or number in ("01", "04", "05", "09"), "what nothing was measured for has no outcome"
    assert "not measured" not in said["full"].values() or number in ("03", "04", "05", "07")


@pytest.mark.parametrize("path", sorted((notebooks.ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_cells(path):
    cells = nbformat.read(path, 4).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    assert len(tagged) == (path.stem != "explore")
    if tagged:  # papermill sees a parameter only where it is assigned alone
        found = papermill.inspect_notebook(str(path))
        assert len(found) == tagged[0].source.count(" = ")
        assert "machine" in found or path.stem == "sweep"
    lengths = [len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code"]
    assert max(lengths) <= 25


def test_a_machine_without_results_is_an_error(shown, monkeypatch):
    with pytest.raises(store.ResultsError, match="no results of a machine"):
        run("02", monkeypatch, machine="nobody")
