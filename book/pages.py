"""Pages of the web edition beside the notebooks: links to code, the code itself, docstrings, formulas."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).parents[1]
PACKAGES = ("toy_ijepa", "full_ijepa")
CODE = re.compile(r"\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<path>[\w./]+\.py)(?:#L(?P<line>\d+))?\)")
CODE_SPAN = re.compile(r"(`[^`\s](?:[^`]*[^`\s])?`)")
ENTRY = re.compile(r"^- \*\*(.+?)\*\*:", re.MULTILINE)
WORD = re.compile(r"\[([^\[\]]+)\]\(((?:\.\./)?glossary\.md)\)")


def slug(term: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", term.lower()).strip("-")


def terms() -> dict[str, str]:
    """Words as chapters write them -> the anchor of their entry in the glossary."""
    found = {}
    for term in ENTRY.findall((ROOT / "chapters" / "glossary.md").read_text()):
        for word in re.split(r", | / | \(", re.sub(r"[*`)]", "", term)):  # "k nearest neighbours (kNN)" are two words
            found[word.lower()] = slug(term)
    return found


def entry(word: str, known: dict[str, str]) -> str | None:
    """The anchor of a word's entry, also of its plural; None if the glossary has none."""
    plain = re.sub(r"[*`]", "", word).lower()
    forms = (plain, plain.removesuffix("s"), plain.removesuffix("es"), re.sub("ies$", "y", plain))
    return next((known[form] for form in forms if form in known), None)


def linked(text: str, page: str) -> str:
    """Markdown of a page: links to Python files lead to their lines, words of the glossary to their entries."""
    up = "../" * page.count("/")

    def code(m: re.Match) -> str:
        path = ((ROOT / page).parent / m["path"]).resolve()
        if ROOT not in path.parents or path.relative_to(ROOT).parts[0] not in PACKAGES:
            return m[0]
        anchor = f"#L-{m['line']}" if m["line"] else ""
        words = re.sub(r"`(.+?)`", r"<code>\1</code>", m["text"])
        return f'<a href="{up}code/{path.relative_to(ROOT).with_suffix(".html").as_posix()}{anchor}">{words}</a>'

    known = terms()

    def word(m: re.Match) -> str:
        found = entry(m[1], known)
        return f'<a class="term" href="{up}chapters/glossary.html#{found}">{m[1]}</a>' if found else m[0]

    return WORD.sub(word, CODE.sub(code, text))


def glossary(text: str) -> str:
    """The glossary with an anchor at each entry."""
    return ENTRY.sub(lambda m: f'- <span id="{slug(m[1])}"></span>**{m[1]}**:', text)


def modules(package: str) -> list[str]:
    """Names of the modules right in a package, without those that only run."""
    path = import_module(package).__path__
    found = [part.name for part in pkgutil.iter_modules(path) if not part.ispkg and part.name != "__main__"]
    return [f"{package}.{name}" for name in found]


def reference(title: str) -> str:
    """Markdown that asks autodoc for the modules that a title names: "`package`" or "`package`, a to f"."""
    m = re.fullmatch(r"`(?P<package>[\w.]+)`(?:, (?P<first>\w) to (?P<last>\w))?", title)
    if m is None:
        raise ValueError(f"{title!r} names no package: write `package`, or `package`, a to f")
    first, last = m["first"] or "a", m["last"] or "z"
    parts = []
    for name in modules(m["package"]):
        short = name.removeprefix(f"{m['package']}.")
        if first <= short[0] <= last:
            link = f"../../code/{name.replace('.', '/')}.html"
            directive = f".. automodule:: {name}\n   :members:\n   :member-order: bysource\n"
            parts.append(f'## {short}\n\n<a href="{link}">Its source</a>\n\n```{{eval-rst}}\n{directive}```\n')
    return "\n".join(parts)


def source_of(domain: str, info: dict[str, str]) -> str | None:
    """The address of a function's or class's first line, from a page of the reference (sphinx.ext.linkcode)."""
    thing: object = sys.modules.get(info["module"])
    for part in info["fullname"].split("."):
        thing = getattr(thing, part, None)
    if domain != "py" or not (inspect.isfunction(thing) or inspect.isclass(thing)):
        return None
    thing = inspect.unwrap(thing)  # `torch.no_grad()` and the like make functions of their own file
    file, (_, line) = inspect.getsourcefile(thing), inspect.getsourcelines(thing)
    if file is None or ROOT not in Path(file).parents:
        return None
    return f"../../code/{Path(file).relative_to(ROOT).with_suffix('.html').as_posix()}#L-{line}"


def code_pages() -> Iterator[tuple[str, dict[str, str], str]]:
    """A page for every file of both packages, with an anchor `L-12` at its twelfth line."""
    show = HtmlFormatter(lineanchors="L", anchorlinenos=True, linenos="inline", wrapcode=True)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            body = f"<h1>{name}</h1>" + highlight(path.read_text(), PythonLexer(), show)
            yield f"code/{name.removesuffix('.py')}", {"title": name, "body": body}, "page.html"


def plain(lines: list[str]) -> list[str]:
    """A docstring line by line: it is text laid out by hand, not a markup language; only `code` is marked."""

    def part(text: str) -> str:
        if CODE_SPAN.fullmatch(text):
            return f"\\ ``{text[1:-1]}``\\ "
        return re.sub(r"([\\*_|`])", r"\\\1", text)

    return ["| " + "".join(map(part, CODE_SPAN.split(line))) for line in lines]


def formula(writer: object, node: nodes.Element) -> None:
    """A formula as MathML, which browsers draw themselves."""
    block = isinstance(node, nodes.math_block)
    math = tex2mathml(node.astext(), as_block=block)
    writer.body.append(f'<div class="math">{math}</div>' if block else math)
    raise nodes.SkipNode
