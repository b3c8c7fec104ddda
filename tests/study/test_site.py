"""The site of a small checkout with the chapters of two machines, as Sphinx builds it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nbformat import NotebookNode, write
from nbformat import v4 as form

from rnnpar.study import notebooks
from rnnpar.study.results import REFERENCE

pytest.importorskip("myst_nb", reason="needs the extra `site`, which `make test` and `make html` install")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real conf.py, explore and sweep; chapters of a heading each, but that 03 has cells."""
    top = tmp_path_factory.mktemp("checkout")
    shutil.copytree(notebooks.ROOT / "notebooks", top / "notebooks", ignore=shutil.ignore_patterns("rendered"))
    (top / "README.md").write_text("# rnnpar\n\nThe head.\n\n## Start\n\nThe rest.\n")
    (top / "LICENSE").write_text("MIT")
    for name in (REFERENCE, "other"):
        (top / "notebooks" / "rendered" / name).mkdir(parents=True)
        for source in (top / "notebooks").glob("[0-9]*.ipynb"):
            chapter(top, name, source.name, form.new_markdown_cell(f"# About {name}"))
    pictures = [
        form.new_output("display_data", {"image/png": data}, metadata={"image/png": {"alt": alt, "width": 7}})
        for data, alt in (("aGk=", "a line"), ("aG8=", "two lines"))
    ]
    text = "# Threads\n\n[back](02_serial.ipynb) [out](../../explore.ipynb) [MIT](../../../LICENSE)"
    cells = [
        form.new_markdown_cell(text),
        form.new_code_cell("machine = 7", metadata={"tags": ["injected-parameters"]}),
        form.new_code_cell("draw()", metadata={"tags": ["hide-input"]}, outputs=pictures),
        form.new_code_cell("compute()"),
    ]
    chapter(top, REFERENCE, "03_threads.ipynb", *cells)
    return top


def chapter(top: Path, name: str, file: str, *cells: NotebookNode) -> None:
    notebook = form.new_notebook(cells=list(cells), metadata=notebooks.METADATA)
    write(notebook, top / "notebooks" / "rendered" / name / file)


def build(top: Path, name: str) -> tuple[Path, str]:
    """Where the site of a machine lies, and what Sphinx said; an empty string where nothing is wrong."""
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "-q", "-d", str(top / "doctrees")]
    done = subprocess.run(
        [*command, str(top / "notebooks"), str(top / "html")], env=os.environ | {"RNNPAR_MACHINE": name},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert bool(done.returncode) == bool(done.stderr)
    return top / "html", done.stderr


def test_the_site_of_one_machine(checkout):
    site, said = build(checkout, REFERENCE)
    assert said == ""
    front = (site / "index.html").read_text()
    assert "The head." in front
    assert "The rest." not in front
    assert "03 Threads" in front
    assert len(list(site.glob(f"rendered/{REFERENCE}/*.html"))) == len(list(checkout.glob("notebooks/[0-9]*.ipynb")))
    assert not (site / "rendered" / "other").exists()
    page = (site / "rendered" / REFERENCE / "03_threads.html").read_text()
    assert "machine = 7" not in page
    assert page.count("<details") == 1
    folded = page[page.index("<details") : page.index("</details>")]
    assert ">draw<" in folded
    assert ">compute<" not in folded
    for word in ('alt="a line"', 'alt="two lines"', 'width="7"', 'href="02_serial.html"', 'href="../../explore.html"'):
        assert word in page
    assert [file.read_text() for file in site.glob("_downloads/*/LICENSE")] == ["MIT"]
    explore = (site / "explore.html").read_text()
    assert f'href="rendered/{REFERENCE}/03_threads.html"' in explore
    assert "data:image/png" in explore
    assert "They need a kernel" in explore


def test_dead_links_are_errors(checkout):
    dead = ["04_nothing.ipynb", "../../nothing.py", "10_glossary.ipynb#nowhere", "#nobody"]
    links = " ".join(f"[dead]({link})" for link in dead)
    chapter(checkout, "other", "02_serial.ipynb", form.new_markdown_cell(f"# Serial\n\n{links}"))
    said = build(checkout, "other")[1].splitlines()
    for word in ("04_nothing", "nothing.py", "nowhere", "nobody"):
        assert any(word in line for line in said), word


def test_a_machine_without_chapters_is_an_error(checkout):
    said = build(checkout, "nowhere")[1]
    assert "not all chapters of nowhere are in" in said
    assert f"All are there of {REFERENCE}, other" in said
