"""Sphinx's configuration of the site: the executed chapters of one machine, explore and the sweep.

    make html [MACHINE=amd-epyc-znver5-2c-e3a5]        # into build/html; needs the extra `site`

The front page is index.md. MyST-NB makes pages of notebooks, Furo is the look. Where an executed chapter means
something only inside the checkout, `adapt` puts it right.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
from docutils import nodes
from myst_nb.core.render import MimeData, NbElementRenderer
from sphinx.application import Sphinx
from sphinx.errors import ConfigError

from rnnpar import machine
from rnnpar.study import explore, results

HERE = Path(__file__).parent
CHAPTERS = sorted(path.name for path in HERE.glob("[0-9][0-9]_*.ipynb"))
NO_KERNEL = "This is the picture that the widgets begin with. They need a kernel: `make lab` opens the notebook."


def shown(rendered: Path = HERE / "rendered") -> str:
    """The machine whose chapters the site shows: RNNPAR_MACHINE if set, else this one, else the reference.

    ConfigError unless all chapters have been executed for it, since they link to each other.
    """
    named = os.environ.get("RNNPAR_MACHINE")
    wanted = [named] if named else [machine.name(), results.REFERENCE]
    whole = [path.name for path in sorted(rendered.glob("*")) if all((path / name).exists() for name in CHAPTERS)]
    for name in wanted:
        if name in whole:
            return name
    raise ConfigError(
        f"not all chapters of {' or '.join(wanted)} are in {rendered}; `make figures` executes this machine's. "
        f"All are there of {', '.join(whole) or 'no machine'}"
    )


MACHINE = shown()

project = "rnnpar"
html_title = f"rnnpar on {MACHINE}"
include_patterns = ["index.md", *(f"rendered/{MACHINE}/{name}" for name in CHAPTERS), "explore.ipynb", "sweep.ipynb"]
extensions = ["myst_nb"]
nb_execution_mode = "off"
suppress_warnings = ["mystnb.unknown_mime_type"]  # an expectation's record, which only rnnpar.study.expect reads
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}  # they would come from the network
nb_mime_priority_overrides = [("*", "application/vnd.jupyter.widget-view+json", None)]
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_heading_anchors = 3
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["rnnpar.css"]
html_js_files = ["rnnpar.js"]
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_show_copyright = False
html_show_search_summary = False  # the summaries are fetched, which a page opened as a file may not do
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def adapt(app: Sphinx, docname: str, source: list[str]) -> None:
    """Number a chapter's title, drop the cell that papermill put in, and show what explore's widgets begin with."""
    if docname == "index":
        return
    notebook = nbformat.reads(source[0], 4)
    cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", ())]
    if (number := Path(docname).name[:2]).isdigit():
        cells[0].source = cells[0].source.replace("# ", f"# {number} ", 1)
    else:  # explore and the sweep lie beside the sources of the chapters, and link to those
        for cell in cells:
            cell.source = re.sub(r"\]\((?=\d\d_)", f"](rendered/{MACHINE}/", cell.source)
    if docname == "explore":
        at = next(index for index, cell in enumerate(cells) if cell.cell_type == "code")
        picture = explore.picture(results.cost_model(MACHINE), explore.Setting(threads=2), "H", {}, MACHINE)
        cells[at].outputs = [nbformat.v4.new_output("display_data", {"text/html": explore.image(picture)})]
        cells.insert(at + 1, nbformat.v4.new_markdown_cell(NO_KERNEL))
    notebook.cells = cells
    source[0] = nbformat.writes(notebook)


def render_image(self, data: MimeData, render=NbElementRenderer.render_image) -> list[nodes.Element]:
    """As MyST-NB does it, which takes the width from an output's metadata, but not the alternative text."""
    images = render(self, data)
    if alt := data.output_metadata.get(data.mime_type, {}).get("alt"):
        images[0]["alt"] = alt
    return images


NbElementRenderer.render_image = render_image


def setup(app: Sphinx) -> None:
    app.connect("source-read", adapt)
