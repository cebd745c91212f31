"""Notebooks for the web: what is stored becomes forms, answers, explorables and figures; solutions stay out."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import nbformat
import pytest

from book import files, notebooks, pages
from toy_ijepa.widgets.predict import choice, number, words

ROOT = Path(__file__).parents[2]


def cells(path: Path, figures: Path):
    return notebooks.chapter(nbformat.read(path, as_version=4), path.stem, figures).cells


def html_of(found: list) -> str:
    outputs = [output for cell in found if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("data", {}).get("text/html", "") for output in outputs)


@pytest.mark.parametrize("path", files.CHAPTERS, ids=lambda path: path.stem)
class TestChapter:
    def test_its_form_holds_an_answer_to_every_question(self, path, tmp_path):
        shown = html_of(cells(path, tmp_path))
        asked = json.loads(re.search(r'<script type="application/json">(.*?)</script>', shown)[1])
        assert len(asked) == shown.count('<span class="told"></span>') >= 3
        for question in asked:
            assert question["reason"]
            if question["kind"] == "choice":
                assert question["found"] in question["options"]
            elif question["kind"] == "number":
                float(question["found"])

    def test_nothing_needs_a_kernel_and_every_figure_is_described(self, path, tmp_path):
        found = cells(path, tmp_path)
        shown = html_of(found)
        assert notebooks.WIDGET not in json.dumps(found)
        assert "NBVAL" not in json.dumps(found)
        pictures = re.findall(r'<img class="figure" loading="lazy" alt="([^"]*)" src="../figures/(\w+\.png)"', shown)
        assert len(pictures) == shown.count("<img")
        for alt, name in pictures:
            assert len(alt) > 20, name
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

    def test_it_says_how_to_run_it(self, path, tmp_path):
        doors = cells(path, tmp_path)[1].source
        assert f'href="../notebooks/{path.name}" download' in doors
        assert (ROOT / "chapters" / "exercises" / path.name).exists()


def test_explorers_become_the_explorable_of_the_same_idea_or_say_where_they_live(tmp_path):
    shown = {path.stem[:2]: html_of(cells(path, tmp_path)) for path in files.CHAPTERS}
    wanted = {"02": "attention", "03": "masks", "04": "imagine", "05": "schedules", "07": "imagine"}
    for chapter, text in shown.items():
        assert re.findall(r'data-explore="(\w+)"', text) == ([wanted[chapter]] if chapter in wanted else [])
        assert ("needs Python behind it" in text) == (chapter in ("11", "12", "14"))
    for module in set(wanted.values()):
        assert "export async function start(element)" in (ROOT / f"book/explore/{module}.js").read_text()


@pytest.mark.parametrize(
    ("question", "line", "found"),
    [
        (number("left", " %"), "1.82 %: 0.996 to the power", ("1.82", "0.996 to the power")),
        (number("steps", " steps"), "1,200 steps: a: b", ("1200", "a: b")),
        (number("small"), "-3e-05: tiny", ("-3e-05", "tiny")),
        (choice("which?", "up", "up and away"), "up and away: so it is", ("up and away", "so it is")),
        (words("why?"), "because: of this", ("", "because: of this")),
    ],
)
def test_stored_lines_are_taken_apart(question, line, found):
    assert notebooks.split(question, line) == found
    assert notebooks.answers([question], f"1. {line}\n   You made no prediction.\n") == [found]


def test_answers_that_do_not_fit_their_questions_are_refused():
    asked = [number("a"), number("b")]
    with pytest.raises(ValueError, match="2 questions, and stored answers"):
        notebooks.answers(asked, "1. 3: because\n   You made no prediction.\n")
    with pytest.raises(ValueError, match="does not begin with a number"):
        notebooks.split(number("a", " %"), "3 steps: because")


def test_a_form_cannot_end_its_own_script():
    text = notebooks.form("00", [words("</script><b>")], [("", "why")])
    assert text.count("</script>") == 1


def test_a_figure_is_a_file_named_by_what_is_in_it(tmp_path):
    png = base64.b64encode((ROOT / "assets" / "grain.png").read_bytes()).decode()
    shown = notebooks.figure(png, 'a "quoted" <figure>', tmp_path)
    (written,) = tmp_path.iterdir()
    assert written.read_bytes() == (ROOT / "assets" / "grain.png").read_bytes()
    assert f"../figures/{written.name}" in shown
    assert "a &quot;quoted&quot; &lt;figure&gt;" in shown
    assert notebooks.figure(png, "", tmp_path).split("src=")[1] == shown.split("src=")[1]


@pytest.mark.parametrize("path", files.EXERCISES, ids=lambda path: path.stem)
def test_students_get_no_solution(path):
    text = nbformat.writes(notebooks.students(nbformat.read(path, as_version=4)))
    assert "BEGIN SOLUTION" in path.read_text()
    for secret in ("BEGIN SOLUTION", "END SOLUTION", "BEGIN HIDDEN TESTS"):
        assert secret not in text
    assert "raise NotImplementedError  # your answer goes here" in text


def test_links_to_code_lead_to_the_line():
    found = pages.linked(
        "see [`IJEPA.forward`](../toy_ijepa/jepa.py#L102) and [all](../toy_ijepa/jepa.py)", "chapters/symbols"
    )
    assert '<a href="../code/toy_ijepa/jepa.html#L-102"><code>IJEPA.forward</code></a>' in found
    assert '<a href="../code/toy_ijepa/jepa.html">all</a>' in found
    other = "[tests](../tests/conftest.py)"
    assert pages.linked(other, "chapters/symbols") == other


def test_words_of_the_glossary_lead_to_their_entry():
    text = "The [learning rate](glossary.md), [optimiser steps](glossary.md), [the pages](glossary.md)."
    found = pages.linked(text, "chapters/05_follow_target")
    assert '<a class="term" href="../chapters/glossary.html#learning-rate">learning rate</a>' in found
    assert "[the pages](glossary.md)" in found
    entries = pages.glossary((ROOT / "chapters" / "glossary.md").read_text())
    for anchor in pages.terms().values():
        assert f'<span id="{anchor}"></span>' in entries


def test_words_that_chapters_link_have_an_entry():
    linked = [m[1] for path in files.CHAPTERS for m in pages.WORD.finditer(path.read_text())]
    known = pages.terms()
    missing = [word for word in linked if pages.entry(word, known) is None]
    assert linked
    assert set(missing) <= {"the glossary"}


def test_every_module_stands_in_the_reference():
    titles = [path.read_text().splitlines()[0].removeprefix("# ") for path in (ROOT / "book" / "api").glob("*.md")]
    shown = re.findall(r"automodule:: ([\w.]+)", "".join(pages.reference(title) for title in titles))
    wanted = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in pages.PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if not path.stem.startswith("__")
    }
    assert len(shown) == len(set(shown))
    assert set(shown) == wanted
    with pytest.raises(ValueError, match="names no package"):
        pages.reference("The code")


def test_docstrings_keep_their_lines_and_are_no_markup():
    assert pages.plain(["masks  name *or* `code_x`|"]) == ["| masks  name \\*or\\* \\ ``code_x``\\ \\|"]
    across = ["a `step_loss(images,", "generator)` and `after(x)`"]  # a span over two lines is none
    assert pages.plain(across) == ["| a \\`step\\_loss(images,", "| generator)\\` and \\ ``after(x)``\\ "]


def test_photographs_and_drawings_are_as_the_toy_sees_them():
    assert files.photographs().shape == (2, 3, files.SIDE, files.SIDE)
    images = files.photographs()
    whole = files.sheet(images, columns=2)
    assert whole.size == (2 * files.SIDE, files.SIDE)
    assert whole.getpixel((files.SIDE + 3, 7)) == tuple(images[1, :, 7, 3].tolist())
