"""The chapters as one static site: pages with navigation, search, dark and light, that need no network and no server.

    python -m rnnpar.study.site [--to build/html]

Sphinx makes it, with MyST-NB (notebooks as pages) and Furo (the look). This module gathers the pages, what is executed
from notebooks/rendered, puts right what only means something inside the checkout, and checks the result: every link has
its target, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat

from rnnpar.study import notebooks
from rnnpar.words import write_anything

ROOT = notebooks.ROOT
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
LIMIT_BYTES = 10 * 2**20
WIDGETS = "application/vnd.jupyter.widget-view+json"

CONFIGURATION = """\
project = "rnnpar"
html_title = "rnnpar"
extensions = ["myst_nb"]
root_doc = "index"
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_render_markdown_format = "myst"
nb_merge_streams = True
myst_heading_anchors = 3
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_show_search_summary = False  # the summaries are fetched, which a page opened as a file may not do
html_static_path = ["_static"]
html_css_files = ["rnnpar.css"]
html_js_files = ["rnnpar.js"]
html_extra_path = ["_extra"]
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
suppress_warnings = ["mystnb.unknown_mime_type"]
"""

STYLE = """\
/* Figures are drawn on white: on a dark page they lie on a white card, at most as wide as the column. */
.cell_output img, .body-figure { background: white; border-radius: 6px; max-width: 100%; height: auto; }
.cell_output table, article table { display: block; overflow-x: auto; }
.cell_output pre, .highlight pre { overflow-x: auto; }
/* Tables of numbers: a line a row, however narrow the page; they scroll. */
table.dataframe { border: 0; border-collapse: collapse; font-size: 90%; }
table.dataframe td, table.dataframe th { border: 0; border-bottom: 1px solid var(--color-background-border);
  padding: 0.2rem 0.6rem; text-align: right; white-space: nowrap; }
/* Squeezed into a phone, a figure's words could not be read: there it keeps its size and scrolls. */
@media (max-width: 46em) {
  .cell_output:has(img), .figure-box { overflow-x: auto; }
  .cell_output img, .body-figure { max-width: none; width: 640px !important; }
  .cell_output:has(img)::after, .figure-box::after { content: "the figure goes on to the right \\2192";
    position: sticky; left: 0; font-size: 80%; color: var(--color-foreground-secondary); }
}
"""

SCRIPT = """\
// What scrolls sideways on a narrow page can be reached by the keyboard too.
document.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll("article table, article pre, .table-wrapper, .cell_output, .figure-box"))
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
});
"""


class SiteError(RuntimeError):
    """The site cannot be made, or is not in order; the message says why."""


@dataclass
class Page:
    """A notebook that becomes a page: `name` without suffix, its heading, and whether it has been executed."""

    name: str
    source: Path
    title: str
    executed: bool


def pages(folder: Path = ROOT / "notebooks") -> list[Page]:
    """The pages in the order of reading: executed chapters, then explore and sweep as they are."""
    found = [
        Page(path.stem, path, title(path), True) for path in sorted((folder / "rendered").glob("[0-9][0-9]*.ipynb"))
    ]
    if not found:
        raise SiteError(f"no executed chapters in {folder / 'rendered'}; `make figures` makes them")
    return found + [
        Page(path.stem, path, title(path), False)
        for name in ("explore", "sweep")
        if (path := folder / f"{name}.ipynb").exists()
    ]


def title(path: Path) -> str:
    """The first heading of a notebook, or its name."""
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "markdown" and (heading := re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE)):
            return heading[1].strip()
    return path.stem


def gather(found: Iterable[Page], to: Path) -> None:
    """Write Sphinx's source folder: configuration, a front page, and each notebook put right."""
    found = list(found)
    for folder in ("_static", "_extra"):
        (to / folder).mkdir(parents=True)
    (to / "conf.py").write_text(CONFIGURATION)
    (to / "_static" / "rnnpar.css").write_text(STYLE)
    (to / "_static" / "rnnpar.js").write_text(SCRIPT)
    names = {page.name for page in found}
    for page in found:
        notebook = nbformat.read(page.source, 4)
        notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", ())]
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = relink(cell.source, page.source.name, names, to / "_extra")
            else:
                _dress(cell)
        if page.name == "explore":
            _still(notebook)
        nbformat.write(notebook, to / f"{page.name}.ipynb")
    (to / "index.md").write_text(front(found, names, to))


def relink(text: str, name: str, names: set[str], extra: Path) -> str:
    """Links between notebooks stay; files of the checkout are copied beside the pages. SiteError for a dead link."""

    def mend(match: re.Match) -> str:
        words, target = match.groups()
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return match[0]
        if path.endswith(".ipynb") and Path(path).stem in names:
            return f"[{words}]({Path(path).name}{'#' + anchor if anchor else ''})"
        # Sources lie in notebooks/, their executed copies one folder deeper: a link may be meant from either.
        for base in (ROOT / "notebooks", ROOT, ROOT / "notebooks" / "rendered"):
            file = Path(os.path.normpath(base / path))
            if file.is_file() and file.is_relative_to(ROOT):
                copy = extra / "files" / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
                return f'<a href="files/{file.relative_to(ROOT).as_posix()}">{words}</a>'
            if file.is_dir() and file.is_relative_to(ROOT):
                return words  # a folder has no page
        raise SiteError(f"{name} links to {target}, which is no page and no file of this checkout")

    return LINK.sub(mend, text)


def _dress(cell: nbformat.NotebookNode) -> None:
    """Give pictures their alternative text and width in MyST-NB's words, and leave widgets to their still picture."""
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        data.pop(WIDGETS, None)
        about = output.get("metadata", {}).get("image/png", {})
        if "image/png" in data and about.get("alt"):
            cell.metadata["mystnb"] = {"image": {"alt": about["alt"], "width": f"{about.get('width', 740)}px"}}


def _still(notebook: nbformat.NotebookNode) -> None:
    """Put the first picture of explore's widgets where they would be: a page that is only read has no kernel."""
    import base64

    from rnnpar.study import explore, tell

    setting = explore.Setting(threads=explore.machine.cores_allowed())
    costs, where = tell.cost_model(), ""
    if costs is None:  # a machine without peaks shows another's
        where = tell.store.machines()[0]
        costs = tell.cost_model(where)
    picture = explore.picture(costs, setting, "H", {}, where)
    data = {"image/png": base64.b64encode(explore.png(picture)).decode()}
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.outputs = [nbformat.v4.new_output("display_data", data, metadata={})]
    cell.metadata["mystnb"] = {"image": {"alt": picture.get_label(), "width": "740px"}}
    note = "This is the picture that the widgets begin with. To move the sliders, open the notebook: `make lab`."
    notebook.cells.insert(notebook.cells.index(cell) + 1, nbformat.v4.new_markdown_cell(note))


def front(found: Iterable[Page], names: set[str], to: Path) -> str:
    """The front page: what README.md says before its first section, and the chapters."""
    head = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")[0]
    for words, image in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", head):
        shutil.copyfile(ROOT / image, to / "_static" / Path(image).name)
        head = head.replace(
            f"![{words}]({image})",
            f'<div class="figure-box"><img class="body-figure" alt="{words}" src="_static/{Path(image).name}"></div>',
        )
    head = relink(head, "README.md", names, to / "_extra")
    lines = [f"- {numbered(page)}[{page.title}]({page.name}.ipynb)" for page in found]
    entries = [f"{numbered(page)}{page.title} <{page.name}>" for page in found]
    toctree = ["```{toctree}", ":hidden:", "", *entries, "```"]
    return "\n".join([head.rstrip(), "", "## Chapters", "", *lines, "", *toctree, ""])


def numbered(page: Page) -> str:
    """The chapter's number before its title; nothing for what is no chapter."""
    return f"{page.name[:2]} " if page.name[:2].isdigit() else ""


def build(to: Path, scratch: Path) -> None:
    """Make the site in `to`. SiteError with Sphinx's own words where it fails or warns."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    gather(pages(), scratch)
    shutil.rmtree(to, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "-d",
        str(scratch / ".doctrees"),
    ]
    done = subprocess.run([*command, str(scratch), str(to)], capture_output=True, text=True)
    if done.returncode:
        raise SiteError(f"Sphinx failed:\n{done.stderr.strip()}")
    for leftover in (".buildinfo", "objects.inv"):
        (to / leftover).unlink(missing_ok=True)


# --- is it in order? -------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """What a page refers to, and the places in it that can be referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []  # pages that a reader may go to
        self.loaded: list[str] = []  # what the browser takes without being asked
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.targets.append(given["href"])
        if tag in ("script", "img", "source", "iframe") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("href") and given.get("rel") != "canonical":
            self.loaded.append(given["href"])


def faults(site: Path) -> Iterator[str]:
    """What is wrong with a site, a line each: dead links, what is loaded from elsewhere, more than LIMIT_BYTES."""
    parsed: dict[Path, Links] = {}
    for file in sorted(site.rglob("*.html")):
        if "files" not in file.relative_to(site).parts:
            parsed[file] = Links()
            parsed[file].feed(file.read_text(encoding="utf-8"))
    for file, links in parsed.items():
        name = file.relative_to(site)
        for target in links.loaded:
            if urlsplit(target).netloc:
                yield f"{name} loads {target} from the network"
        for target in (*links.targets, *links.loaded):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            wanted = Path(os.path.normpath(file.parent / unquote(parts.path))) if parts.path else file
            if not wanted.is_file():
                yield f"{name} links to {target}, which is not there"
            elif parts.fragment and wanted in parsed and unquote(parts.fragment) not in parsed[wanted].anchors:
                yield f"{name} links to {target}, a place that {wanted.name} does not have"
    for file in site.rglob("*.css"):
        for target in re.findall(r"url\(['\"]?((?:https?:)?//[^)'\"]+)", file.read_text(encoding="utf-8")):
            yield f"{file.relative_to(site)} loads {target} from the network"
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
    if size > LIMIT_BYTES:
        yield f"the site has {size / 2**20:.1f} MB, over the limit of {LIMIT_BYTES / 2**20:.0f} MB"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    write_anything()
    parser = argparse.ArgumentParser(prog="python -m rnnpar.study.site", description="Make the static site.")
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "html", help="where it goes; emptied first")
    options = parser.parse_args(arguments)
    try:
        build(options.to, options.to.with_name(options.to.name + "-source"))
    except SiteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    wrong = list(faults(options.to))
    for fault in wrong:
        print(f"error: {fault}", file=sys.stderr)
    size = sum(file.stat().st_size for file in options.to.rglob("*") if file.is_file())
    if not wrong:
        print(f"{options.to / 'index.html'} ({size / 2**20:.1f} MB) opens in any browser, with no network")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
