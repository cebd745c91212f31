"""Pieces of a page that is one HTML file: pictures inside, no network, no script; names of files made harmless."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; background: white; }
figure { margin: 1rem 0; }
figcaption { font-size: .9rem; opacity: .8; }
pre { white-space: pre-wrap; padding: .8rem; background: #8881; }
.wide { overflow-x: auto; }
"""
LONGEST = 80  # characters of a name; the middle of a longer one is left out


def plain(text: str, most: int | None = None) -> str:
    """Text on one line that any terminal and any file can hold: what cannot be printed is written as its code."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if most is None or len(text) <= most:
        return text
    return f"{text[: most // 2]}…{text[-(most - most // 2 - 1) :]}"


def short(name: str, most: int = LONGEST) -> str:
    """The name of a file or class, plain and cut in its middle."""
    return plain(name, most)


def drawn(name: str, most: int = 30) -> str:
    r"""A name for a figure. TRAP: matplotlib takes what stands between two $ for a formula, and fails if it is none."""
    return short(name, most).replace("$", r"\$")


def escaped(text: str) -> str:
    """Text for a page or an attribute; lines stay lines."""
    return html.escape("\n".join(plain(line) for line in text.split("\n")))


def picture(figure: Figure, alt: str) -> str:
    """A figure as HTML with a description for those who cannot see it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    data = base64.b64encode(buffer.getvalue()).decode()
    words = escaped(alt.replace("\n", r"\n"))
    return f'<figure><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'


def rows_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; everything is escaped."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escaped(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f'<div class="wide"><table>{line(head, "th")}{"".join(line(row, "td") for row in rows)}</table></div>'


def listed(lines: Sequence[str]) -> str:
    """Sentences as a list."""
    return "<ul>" + "".join(f"<li>{escaped(line)}</li>" for line in lines) + "</ul>"


def write(target: Path, title: str, parts: Sequence[str]) -> Path:
    """Write the page, in one piece or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    body = "\n".join(parts)
    part.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title><meta '
        f'name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>{body}</body></html>\n',
        encoding="utf-8",
    )
    part.replace(target)
    return target
