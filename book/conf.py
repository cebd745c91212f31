"""The web edition: `make book` builds it in site/ from the notebooks as they are stored. Nothing is run or fetched."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

import nbformat
from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from book import files, notebooks, pages  # noqa: E402

project = "I-JEPA, from a patch to full scale"
author = ""
copyright = "its authors, MIT licence"
version = release = importlib.metadata.version("ijepa-course")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.linkcode"]
root_doc = "chapters/README"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "book/play/*.md",
    "book/api/*.md",
    "chapters/*.md",
    "chapters/*.ipynb",
    "chapters/exercises/*.md",
    "chapters/exercises/*.ipynb",
    "assets/results/*.md",
    "assets/weights/*.md",
    "full_ijepa/README.md",
]
exclude_patterns = ["site", "classroom", ".venv"]

nb_execution_mode = "off"  # what is stored is shown
nb_ipywidgets_js: dict = {}  # would come from a server
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

smartquotes = False  # docstrings quote code

html_theme = "furo"
html_title = project
html_favicon = "static/icon.svg"
html_static_path = ["static"]
html_css_files = ["book.css"]
html_additional_pages = {"index": "start.html"}
html_domain_indices = html_use_index = False  # the reference is the list of modules, and there is a search
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"
templates_path = ["templates"]
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
toc_object_entries = False  # the side bar names modules, not each of their functions
suppress_warnings = ["ref.python"]  # both packages have an Encoder; its page is found either way
linkcode_resolve = pages.source_of

# The side bar: a caption, and the pages below it. It is put below the table of contents, which lies in the repository.
TREE = {
    "Play": [f"/book/play/{name}" for name in ("imagine", "masks", "attention", "schedules", "collapse")],
    "Chapters": [path.stem for path in sorted((HERE.parent / "chapters").glob("[0-9]*.ipynb"))],
    "Look up": ["glossary", "symbols", "paper"],
    "Exercises": ["exercises/README", *(f"exercises/{path.stem}" for path in files.EXERCISES)],
    "The code": [
        "/README",
        "/full_ijepa/README",
        *(f"/book/api/{p}" for p in ("toy_ijepa", "widgets", "full_ijepa", "full_ijepa_more", "evaluate", "recipes")),
    ],
    "Results": ["/assets/results/LOG", "/assets/results/LEADERBOARD", "/assets/weights/README", "/CONTRIBUTING"],
}


def tree(caption: str, names: list[str]) -> str:
    lines = "\n".join(names)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """What is different on the web from what lies in the repository."""
    text = source[0]
    if re.match(r"chapters/(exercises/)?\d", name):
        notebook = nbformat.reads(text, as_version=4)
        if "exercises" in name:
            notebook = notebooks.students(notebook)
        else:
            notebook = notebooks.chapter(notebook, Path(name).name, Path(app.outdir) / "figures")
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = pages.linked(cell.source, name)
        source[0] = nbformat.writes(notebook)
        return
    text = pages.linked(text, name)
    if name == root_doc:
        text += "".join(tree(caption, names) for caption, names in TREE.items())
    elif name == "chapters/glossary":
        text = pages.glossary(text)
    elif name.startswith("book/api/"):
        text += pages.reference(re.search(r"^# (.+)", text, re.MULTILINE)[1])
    source[0] = text


def page(app: Sphinx, name: str, template: str, context: dict, doctree: object) -> None:
    context["master_doc"] = "index"  # furo's way home: the start page
    if name.startswith("code/"):
        context.pop("toctree", None)  # a side bar for each of them would take longer than all chapters


def docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    lines[:] = pages.plain(lines)


def finish(app: Sphinx, error: Exception | None) -> None:
    """The files beside the pages, and no copy of the notebooks that myst-nb makes beside the site."""
    shutil.rmtree(app.env.mystnb_config.output_folder, ignore_errors=True)
    if error is None:
        files.write(Path(app.outdir))


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (pages.formula, None), (pages.formula, None))
    app.connect("source-read", read)
    app.connect("html-page-context", page, priority=400)  # before furo's
    app.connect("html-collect-pages", lambda app: pages.code_pages())
    app.connect("autodoc-process-docstring", docstring)
    app.connect("build-finished", finish)
