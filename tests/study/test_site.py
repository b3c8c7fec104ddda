"""The static site's own work, without Sphinx or a browser: pages, links put right, faults found."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from rnnpar.study import notebooks, site
from rnnpar.study.site import Page, SiteError


def notebook(path: Path, *cells: nbformat.NotebookNode) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return path


def test_pages_are_the_chapters_there_are_in_order(tmp_path):
    for name in ("03_threads", "00_start"):
        notebook(tmp_path / "rendered" / f"{name}.ipynb", nbformat.v4.new_markdown_cell(f"# About {name}"))
    notebook(tmp_path / "sweep.ipynb", nbformat.v4.new_markdown_cell("no heading"))
    found = site.pages(tmp_path)
    assert [(page.name, page.title, page.executed) for page in found] == [
        ("00_start", "About 00_start", True), ("03_threads", "About 03_threads", True), ("sweep", "sweep", False),
    ]  # fmt: skip
    with pytest.raises(SiteError, match="make figures"):
        site.pages(tmp_path / "nowhere")


def test_links_are_put_right(tmp_path):
    def mend(text):
        return site.relink(text, "x.ipynb", {"02_serial"}, tmp_path)

    assert mend("[a](02_serial.ipynb) [b](rendered/02_serial.ipynb#x)") == "[a](02_serial.ipynb) [b](02_serial.ipynb#x)"
    assert mend("[a](https://example.org/x) [b](#here)") == "[a](https://example.org/x) [b](#here)"
    assert mend("[MIT](LICENSE)") == '<a href="files/LICENSE">MIT</a>'
    assert (tmp_path / "files" / "LICENSE").read_text() == (notebooks.ROOT / "LICENSE").read_text()
    assert mend("[code](../rnnpar/model.py)") == '<a href="files/rnnpar/model.py">code</a>'
    assert mend("[code](../rnnpar)") == "code"
    for dead in ("04_nothing.ipynb", "../rnnpar/nothing.py", "../../../etc/hostname"):
        with pytest.raises(SiteError, match=r"x\.ipynb links to"):
            mend(f"[dead]({dead})")


def test_pictures_keep_their_words(tmp_path):
    cell = nbformat.v4.new_code_cell("show")
    widget = {site.WIDGETS: {"model_id": "1"}, "image/png": "aGk="}
    cell.outputs = [
        nbformat.v4.new_output("display_data", widget, metadata={"image/png": {"alt": "a line", "width": 7}})
    ]
    source = notebook(tmp_path / "00_a.ipynb", nbformat.v4.new_markdown_cell("# A"), cell)
    site.gather([Page("00_a", source, "A", True)], tmp_path / "source")
    made = nbformat.read(tmp_path / "source" / "00_a.ipynb", 4).cells[1]
    assert made.metadata["mystnb"] == {"image": {"alt": "a line", "width": "7px"}}
    assert site.WIDGETS not in made.outputs[0].data
    front = (tmp_path / "source" / "index.md").read_text()
    assert "- 00 [A](00_a.ipynb)" in front
    assert "## Start" not in front  # of README.md only what stands before


def faults(tmp_path: Path, body: str) -> list[str]:
    (tmp_path / "index.html").write_text(f"<html><body>{body}</body></html>")
    return list(site.faults(tmp_path))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('<a href="gone.html">x</a>', "gone.html, which is not there"),
        ('<img src="gone.png">', "gone.png, which is not there"),
        ('<a href="#gone">x</a>', "a place that index.html does not have"),
        ('<script src="https://cdn.example.org/x.js"></script>', "from the network"),
        ('<link rel="stylesheet" href="//cdn.example.org/x.css">', "from the network"),
    ],
)
def test_faults_are_found(tmp_path, body, says):
    (fault,) = faults(tmp_path, body)
    assert says in fault


def test_what_is_no_fault(tmp_path):
    assert (
        faults(tmp_path, '<a id="here" href="https://example.org">x</a><a href="#here">y</a><a href="index.html">z</a>')
        == []
    )


def test_a_stylesheet_from_elsewhere_and_too_many_bytes(tmp_path, monkeypatch):
    (tmp_path / "a.css").write_text("@import url(https://fonts.example.org/x);")
    monkeypatch.setattr(site, "LIMIT_BYTES", 10)
    found = faults(tmp_path, "")
    assert len(found) == 2
    assert "MB, over the limit" in found[1]
