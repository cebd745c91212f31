"""What all explorers share: controls that describe a pure model, its picture and its words, and errors that show."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import ipywidgets
from matplotlib.figure import Figure

# A report is a list of sentences and of tables; a table is a list of rows, the first one its heads.
Table = list[tuple[str, ...]]
Report = list[str | Table]

WARNING = "#d55e00"  # Okabe & Ito's vermilion: readable on light and on dark ground
CELL = "padding:1px 10px 1px 0;text-align:left;font-variant-numeric:tabular-nums"


class PureModel(Protocol):
    """What a view needs of its model: a picture, what there is to see on it, and the numbers in words."""

    def figure(self, alone: bool = True) -> Figure: ...
    def alt(self) -> str: ...
    def report(self) -> Report: ...


def picture_html(figure: Figure, alt: str, dpi: int = 80) -> str:
    """The figure as an <img> with a description.

    An ipywidgets.Image would be the obvious choice, but has no alt text.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * dpi)  # twice the pixels, for dense and for zoomed screens
    data = base64.b64encode(buffer.getvalue()).decode()
    width = round(figure.get_figwidth() * dpi)
    style = f"width:{width}px;max-width:100%;height:auto;background:white"
    return f'<img class="ijepa-picture" alt="{html.escape(alt)}" style="{style}" src="data:image/png;base64,{data}">'


def report_html(report: Report) -> str:
    """Sentences as paragraphs, tables as tables."""
    return "".join(f'<p style="margin:4px 0">{html.escape(p)}</p>' if isinstance(p, str) else table(p) for p in report)


def table(rows: Table) -> str:
    """HTML of a table whose first row holds the heads of the columns and whose first column those of the rows."""
    heads, *body = [[html.escape(cell) for cell in row] for row in rows]
    lines = ["".join(f'<th scope="col" style="{CELL}">{cell}</th>' for cell in heads)]
    for first, *rest in body:
        cells = "".join(f'<td style="{CELL}">{cell}</td>' for cell in rest)
        lines.append(f'<th scope="row" style="{CELL};font-weight:normal">{first}</th>{cells}')
    return f'<table style="margin:6px 0;line-height:1.4">{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'


def control(kind: type[ipywidgets.Widget], label: str, value: Any, **options: Any) -> ipywidgets.Widget:
    """A control with its whole label beside it; sliders answer when let go, not on the way."""
    if "Slider" in kind.__name__:
        options.setdefault("continuous_update", False)
    style = {"description_width": "120px"}
    return kind(value=value, description=label, style=style, layout={"width": "350px"}, **options)


class Explorer(ipywidgets.VBox):
    """Controls above, a picture (and a canvas beside it), the numbers as text below.

    A subclass makes its controls, then calls `start`; its `read` returns the pure model that they describe. Whenever
    a control changes, model, picture and text follow. What cannot be done raises ValueError in the model and is shown
    in a red frame and kept in `error`; model, picture and text stay those of the last good setting.

    model    the pure model of what is shown
    picture  HTML with the picture; text  HTML with the numbers; error  the message, None if all is well
    """

    model: PureModel
    listens = ("value", "blocks", "picked")  # traits of controls and canvas that change what is shown

    def start(self, controls: Sequence[ipywidgets.Widget], canvas: ipywidgets.Widget | None = None) -> None:
        """Lay out, listen to the controls and answer for the first time."""
        self.error: str | None = None
        self.held = 0
        self.canvas = canvas
        self.notice, self.picture, self.text = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self.picture.layout.min_width = "0"
        self.text.add_class("ijepa-text")
        rows = ipywidgets.Box(list(controls), layout={"flex_flow": "row wrap"})
        shown = [self.picture] if canvas is None else [canvas, self.picture]
        middle = ipywidgets.Box(shown, layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        self.children = [rows, middle, self.notice, self.text]
        everything = [*controls, *([canvas] if canvas else [])]
        self.heard = [(each, name) for each in everything for name in self.listens if each.has_trait(name)]
        self.answered: list | None = None  # the settings last looked at
        for each, name in self.heard:
            each.observe(self.refresh, name)
        self.refresh()

    def read(self) -> PureModel:
        """The model that the controls describe. Raises ValueError if there is none."""
        raise NotImplementedError

    def figure(self) -> Figure:
        """The static picture of what is shown, for paper and for those who cannot run widgets."""
        return self.model.figure()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Set several controls and answer once, at the end."""
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1
        self.refresh()

    def refresh(self, _change: object = None) -> None:
        """Bring model, picture and text up to what the controls say."""
        if self.held or (self.error is None and self.settings() == self.answered):
            return
        self.answered = self.settings()
        try:
            model = self.read()
            picture = picture_html(model.figure(alone=self.canvas is None), model.alt())
            text = report_html(model.report())
        except ValueError as error:
            self.fail(str(error))
            return
        except Exception as error:  # a mistake of ours: shown too, and not kept from the console
            self.fail(f"{type(error).__name__}: {error}")
            raise
        self.error, self.notice.value = None, ""
        self.model, self.picture.value, self.text.value = model, picture, text
        self.held += 1
        self.settle()
        self.held -= 1
        self.answered = self.settings()

    def settings(self) -> list:
        """Where controls and canvas stand."""
        return [getattr(each, name) for each, name in self.heard]

    def settle(self) -> None:
        """After a new model: bring the canvas, and controls that depend on others, in line with it."""

    def fail(self, message: str) -> None:
        """Show what is wrong; read aloud at once by screen readers."""
        self.error = message
        style = f"border:2px solid {WARNING};padding:4px 8px;margin:4px 0"
        self.notice.value = f'<div role="alert" class="ijepa-error" style="{style}">{html.escape(message)}</div>'
