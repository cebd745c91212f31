"""The reference pages of the book: links lead somewhere, anchors point at the line that they name, tables agree.

When code has moved, the failure names the right line of every anchor that points at a wrong one.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
CHAPTERS = ROOT / "chapters"
PAGES = [*sorted(CHAPTERS.glob("*.md")), CHAPTERS / "exercises" / "README.md"]
NOTEBOOKS = sorted((CHAPTERS / "exercises").glob("[0-9][0-9]_*.ipynb"))
PACKAGES = ("toy_ijepa", "full_ijepa")

LINK = re.compile(r"\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#)(?P<path>[^)#\s]+)(?:#(?P<anchor>[^)\s]+))?\)")
ENTRY = re.compile(r"^- \*\*(?P<term>.+?)\*\*: .+ \(\[(?P<number>\d\d)\]\((?P=number)_\w+\.ipynb\)\)$")
TASK = re.compile(r"^## (?P<number>\d+\.\d) (?P<title>.+)$", re.MULTILINE)
FACTS = re.compile(
    r"\*(?P<kind>fill in|find the bug|change and predict)\* · difficulty ●+○* · importance \d of 3 · "
    r"about (?P<minutes>\d+) minutes · (?P<points>\d+) points?"
)


class Anchor(NamedTuple):
    """A link with a line number: the page, the name in backticks, the file, and the line it points to."""

    page: Path
    name: str
    path: str
    line: int
    span: tuple[int, int]  # of the line number in the page's text


def targets(node: ast.AST) -> list[ast.expr]:
    """What an assignment assigns to, tuples taken apart."""
    found = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [part for target in found for part in (target.elts if isinstance(target, ast.Tuple) else [target])]


def defined(body: list[ast.stmt], scope: tuple[str, ...] = (), owner: tuple[str, ...] = ()) -> list[tuple[str, int]]:
    """Qualified name and line of what is defined; `self.x` and buffers of a method belong to its class."""
    found: list[tuple[str, int]] = []
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = (*scope, node.name)
            found.append((".".join(inner), node.lineno))
            found += defined(node.body, inner, inner if isinstance(node, ast.ClassDef) else owner)
        for target in targets(node):
            if isinstance(target, ast.Name):
                found.append((".".join((*scope, target.id)), target.lineno))
            elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                found.append((".".join((*owner, target.attr)), target.lineno))
        if buffer := re.match(r"self\.register_buffer\('(\w+)'", ast.unparse(node)):
            found.append((".".join((*owner, buffer[1])), node.lineno))
    return found


@cache
def definitions(path: Path) -> list[tuple[str, int]]:
    return defined(ast.parse(path.read_text()).body)


def lines_of(name: str, path: Path) -> list[int]:
    """Lines that define `name` in a file: the whole qualified name if there is one, else names that end with it."""
    exact = [line for found, line in definitions(path) if found == name]
    return exact or [line for found, line in definitions(path) if found.endswith(f".{name}")]


def anchors(page: Path) -> list[Anchor]:
    """Every link of a page that carries a line number."""
    found = []
    for m in LINK.finditer(page.read_text()):
        if re.fullmatch(r"L\d+", m["anchor"] or ""):
            begin = m.start("anchor") + 1
            name = m["text"].strip("`")
            found.append(Anchor(page, name, m["path"], int(m["anchor"][1:]), (begin, m.end("anchor"))))
    return found


def wrong(anchor: Anchor) -> str:
    """ "" or what is wrong with an anchor, and the line that is right."""
    path = (anchor.page.parent / anchor.path).resolve()
    right = lines_of(anchor.name, path)
    if anchor.line in right:
        return ""
    told = f"`{anchor.name}` -> {anchor.path}#L{anchor.line}"
    if not right:
        return f"{told}: nothing of that name is defined there"
    return f"{told}: it is defined in line {' or '.join(map(str, right))}; write #L{right[0]}"


def shown(page: Path) -> str:
    return str(page.relative_to(ROOT))


def rows(page: Path, head: str) -> list[list[str]]:
    """The cells of the Markdown table whose first line begins with `head`."""
    lines = page.read_text().splitlines()
    begin = next((n for n, line in enumerate(lines) if line.startswith(head)), None)
    assert begin is not None, f"{shown(page)} has no table that begins with {head!r}"
    found = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def facts() -> dict[str, tuple[str, str, str, int, int]]:
    """Exercise number -> notebook, title, kind, minutes and points, as the tasks say."""
    found = {}
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            text = "".join(cell["source"])
            task, said = TASK.search(text), FACTS.search(text)
            if task and said:
                about = path.stem, task["title"], said["kind"], int(said["minutes"]), int(said["points"])
                found[task["number"]] = about
    return found


def order(term: str) -> str:
    """What a glossary is sorted by: letters, digits and blanks, without regard to capitals."""
    return re.sub(r"[^a-z0-9 ]", "", term.casefold())


@pytest.mark.parametrize("page", PAGES, ids=shown)
class TestPage:
    def test_links_lead_to_files(self, page):
        paths = [m["path"] for m in LINK.finditer(page.read_text())]
        missing = [path for path in paths if not (page.parent / path).exists()]
        assert paths
        assert not missing, f"{shown(page)} links to files that do not exist: {', '.join(sorted(set(missing)))}"

    def test_anchors_point_to_the_line_that_defines_the_name(self, page):
        found = [told for anchor in anchors(page) if (told := wrong(anchor))]
        assert not found, "\n".join([f"{len(found)} anchors of {shown(page)} are wrong:", *found])

    def test_anchors_have_names(self, page):
        """A line number without a name in backticks could not be checked."""
        for m in LINK.finditer(page.read_text()):
            if (m["anchor"] or "").startswith("L"):
                assert re.fullmatch(r"`[\w.]+`", m["text"]), f"{shown(page)}: {m[0]}"


def entries() -> list[re.Match]:
    lines = [line for line in (CHAPTERS / "glossary.md").read_text().splitlines() if line.startswith("- ")]
    found = [ENTRY.match(line) for line in lines]
    odd = [line for line, m in zip(lines, found, strict=True) if m is None]
    assert not odd, f"an entry is `- **term**: text ([NN](NN_chapter.ipynb))`, not {odd[0]!r}"
    return found


def test_glossary_is_alphabetical_and_unique():
    terms = [m["term"] for m in entries()]
    for one, other in itertools.pairwise(terms):
        assert order(one) < order(other), f"{other!r} stands after {one!r}"


def test_symbols_are_those_of_the_legends():
    """Every letter of the first table stands in a shape legend, and every letter of a legend in the table."""
    legends = ""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            found = re.search(r"^# Shape legend:(.*(?:\n#    .*)*)", path.read_text(), re.MULTILINE)
            legends += (found[1] if found else "") + "  "
    # a legend is `B images  h,w grid  N = h*w tokens`: letters at its beginning and after two blanks
    known = {x for m in re.finditer(r"(?:\s\s|#\s+)([A-Za-z](?:,[A-Za-z])*)(?= )", legends) for x in m[1].split(",")}
    listed = [letter for row in rows(CHAPTERS / "symbols.md", "| letter |") for letter in re.findall(r"`(\w)`", row[0])]
    assert len(listed) == len(set(listed)), f"a letter is listed twice in symbols.md: {listed}"
    assert set(listed) <= known, f"in no shape legend: {sorted(set(listed) - known)}"
    assert known <= set(listed), f"in a shape legend and not in symbols.md: {sorted(known - set(listed))}"


def test_every_source_is_in_the_index():
    """Whoever is named in a `Source:` line of the code stands in paper.md."""
    page = (CHAPTERS / "paper.md").read_text()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for line in re.findall(r"Source: (.+)", path.read_text()):
                for name in re.findall(r"(\w[\w-]+(?: et al\.| & \w+) \d{4})", line):
                    assert name in page, f"{path.relative_to(ROOT)} names {name!r} as a source, paper.md does not"


def test_exercise_table_agrees_with_the_notebooks():
    said = {row[1]: row for row in rows(CHAPTERS / "exercises" / "README.md", "| chapter | number |")}
    told = facts()
    assert set(said) - {""} == set(told), f"rows {sorted(set(said) ^ set(told))} are missing or too many"
    for number, (notebook, title, kind, minutes, points) in told.items():
        chapter, _, name, kind_here, *amounts, teaches, catches = said[number]
        assert chapter == f"[{notebook[:2]}]({notebook}.ipynb)", number
        assert (name, kind_here) == (title, kind), f"{number} is {title!r}, {kind}"
        assert amounts == [str(minutes), str(points)], f"{number} takes {minutes} minutes and gives {points} points"
        assert teaches, number
        assert catches, number


def test_totals_of_the_exercise_tables():
    told = facts().values()
    minutes, points = sum(about[3] for about in told), sum(about[4] for about in told)
    page = (CHAPTERS / "exercises" / "README.md").read_text()
    assert f"**{len(told)} exercises, {minutes} minutes, {points} points**" in page
    assert re.search(rf"^\| together \|.*\| {minutes} \| {points} \|$", page, re.MULTILINE)


def test_an_anchor_that_has_moved_is_told_the_right_line(tmp_path):
    (tmp_path / "code.py").write_text("X = 1\n\n\nclass A:\n    def f(self):\n        self.y = 2\n")
    page = tmp_path / "page.md"
    page.write_text("[`A.f`](code.py#L5) [`f`](code.py#L4) [`A.y`](code.py#L6) [`X`](code.py#L1) [`z`](code.py#L1)\n")
    told = [wrong(anchor) for anchor in anchors(page)]
    assert [bool(t) for t in told] == [False, True, False, False, True]
    assert "line 5; write #L5" in told[1]
    assert "nothing of that name" in told[4]
