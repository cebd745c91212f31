"""What a notebook becomes on the web: forms and explorers without a kernel, figures as files, no solutions."""

from __future__ import annotations

import ast
import base64
import hashlib
import html
import json
import re
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions
from PIL import Image

from toy_ijepa.widgets.predict import Question, choice, number, words

WIDGET = "application/vnd.jupyter.widget-view+json"
STUB = {"python": "raise NotImplementedError  # your answer goes here"}
# What stands in the page where a chapter shows an explorer of toy_ijepa/widgets: a module of book/explore.
EXPLORABLES = {
    "MaskExplorer": "masks",
    "AttentionExplorer": "attention",
    "ScheduleExplorer": "schedules",
    "PredictorExplorer": "imagine",
    "PaintTargets": "imagine",
}
CHECKED = "# NBVAL_CHECK_OUTPUT\n"  # for the tests of notebooks, not for readers
ASKS = {"choice": choice, "number": number, "words": words}


def students(notebook: NotebookNode) -> NotebookNode:
    """An exercise as a student gets it: without solutions and hidden tests."""
    for clear in ClearSolutions(code_stub=STUB), ClearHiddenTests():
        notebook, _ = clear.preprocess(notebook, {})
    return notebook


def chapter(notebook: NotebookNode, name: str, figures: Path) -> NotebookNode:
    """A chapter for the page `name`; its figures go into the folder `figures`, which pages find beside their own.

    Raises ValueError where a form or its answers cannot be read from what is stored.
    """
    asked: list[Question] = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.source = cell.source.removeprefix(CHECKED)
        if "IJEPA_SOURCE" in cell.source:  # set-up for Colab and Kaggle
            cell.metadata["tags"] = ["remove-cell"]
        elif "Predictions(" in cell.source and cell.outputs:
            asked = questions(cell.source)
        elif ".reveal(" in cell.source:
            found = answers(asked, "".join(output.get("text", "") for output in cell.outputs))
            cell.outputs = [shown(f'<ol class="answers" data-chapter="{name}">{found_list(asked, found)}</ol>')]
            cell.metadata["tags"] = ["hide-input"]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [replaced(output, cell.source, figures) for output in cell.outputs]
            if asked and "Predictions(" in cell.source and cell.outputs:
                cell.outputs = [shown(form(name, asked, found))]
                cell.metadata["tags"] = ["hide-input"]
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(doors(name)))
    return notebook


def doors(name: str) -> str:
    """Where to run what the page shows."""
    return (
        f'<p class="doors">To run it: <a href="../notebooks/{name}.ipynb" download>download the notebook</a>, or '
        f"<code>make lab</code> in your copy of the course and open <code>{name}.ipynb</code> in JupyterLab. "
        f'Then: <a href="exercises/{name}.html">its exercises</a>.</p>'
    )


def shown(text: str) -> NotebookNode:
    return nbformat.v4.new_output("display_data", {"text/html": text})


def replaced(output: NotebookNode, source: str, figures: Path) -> NotebookNode:
    """An output as a page can show it: a figure as a file with its description, an explorer as its like in the page."""
    data = output.get("data", {})
    if WIDGET in data:
        return shown(explorable(source))
    if "image/png" in data:
        return shown(figure(data["image/png"], output.metadata.get("image/png", {}).get("alt", ""), figures))
    return output


def explorable(source: str) -> str:
    """What stands in for a widget that needs a kernel."""
    for widget, module in EXPLORABLES.items():
        if f"{widget}(" in source:
            return (
                f'<div class="explore" data-explore="{module}"></div><p class="note">This one needs no Python. It has '
                "other pictures than the notebook's explorer, and fewer dials: "
                f'<a href="../book/play/{module}.html">more about it</a>.</p>'
            )
    return (
        '<p class="note">In JupyterLab this cell shows an explorer, which needs Python behind it: '
        "<code>make lab</code> opens the chapter there.</p>"
    )


def figure(png: str, alt: str, folder: Path) -> str:
    """Write a PNG (base64) into the folder, named by what is in it; an <img> with its description and size."""
    data = base64.b64decode(png)
    name = f"{hashlib.sha256(data).hexdigest()[:16]}.png"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    width, height = Image.open(BytesIO(data)).size
    size = f'width="{width}" height="{height}"'
    return f'<img class="figure" loading="lazy" alt="{html.escape(alt)}" src="../figures/{name}" {size}>'


def questions(source: str) -> list[Question]:
    """The questions of a cell `mine = Predictions(choice(...), number(...), words(...))`, which is not run."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Predictions":
            calls = [(call.func.id, [ast.literal_eval(arg) for arg in call.args]) for call in node.args]
            return [ASKS[kind](*arguments) for kind, arguments in calls]
    raise ValueError(f"no Predictions(...) in {source!r}")


def answers(asked: list[Question], text: str) -> list[tuple[str, str]]:
    """(answer, reason) of each question, from what `Predictions.reveal` printed when the notebook was stored."""
    found = re.findall(r"^(\d+)\. (.*)\n   .*$", text, re.MULTILINE)
    if [int(place) for place, _ in found] != list(range(1, len(asked) + 1)):
        raise ValueError(f"{len(asked)} questions, and stored answers {text!r}: run the chapter again and store it")
    return [split(question, line) for question, (_, line) in zip(asked, found, strict=True)]


def split(question: Question, line: str) -> tuple[str, str]:
    """A printed line as answer and reason; an answer in words is its reason."""
    if question.kind == "words":
        return "", line
    if question.kind == "choice":
        found = next(option for option in question.options if line.startswith(f"{option}: "))
        return found, line[len(found) + 2 :]
    m = re.match(rf"(-?[\d.,e+-]+){re.escape(question.unit or '')}: (.*)$", line)
    if m is None:
        raise ValueError(f"{line!r} does not begin with a number and {question.unit!r}")
    return m[1].replace(",", ""), m[2]


def form(name: str, asked: list[Question], found: list[tuple[str, str]]) -> str:
    """The form of a chapter; book/explore/predictions.js brings it to life."""
    listed = [
        {**asdict(q), "kind": q.kind, "found": answer, "reason": reason}
        for q, (answer, reason) in zip(asked, found, strict=True)
    ]
    data = json.dumps(listed, ensure_ascii=False).replace("</", "<\\/")
    return (
        f'<div class="ask" data-ask="{name}"><script type="application/json">{data}</script>'
        "<noscript>With JavaScript a form stands here; a pencil does as well.</noscript></div>"
    )


def found_list(asked: list[Question], found: list[tuple[str, str]]) -> str:
    """The answers as list items, each with a place for what the reader had said."""
    rows = []
    for question, (answer, reason) in zip(asked, found, strict=True):
        bold = f"<b>{html.escape(answer + (question.unit or ''))}</b>: " if answer else ""
        reason = re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(reason))
        reason = re.sub(r"[*](.+?)[*]", r"<em>\1</em>", reason)
        rows.append(f'<li>{bold}{reason}<span class="told"></span></li>')
    return "".join(rows)
