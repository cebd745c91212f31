"""Every explorer in a real JupyterLab: a control moved by keyboard, the canvas by mouse and by keyboard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Locator

from tests.browser.lab import NotebookPage, wait

CHAPTERS = Path(__file__).parents[2] / "chapters"
# The chapter that brings each explorer, and words from the cell that makes it.
EXPLORERS = {
    "mask": ("03_sample_masks", "= MaskExplorer("),
    "attention": ("02_build_encoder", "= AttentionExplorer("),
    "schedule": ("05_follow_target", "= ScheduleExplorer("),
    "predictor": ("04_predict_features", "= PredictorExplorer("),
    "paint": ("07_probe_features", "= PaintTargets("),
    "search": ("11_use_your_images", "= SearchExplorer("),
    "projection": ("14_spread_features", "= ProjectionExplorer("),
    "dashboard": ("12_train_full_scale", "= Dashboard("),
}
ALONE = """\
from toy_ijepa import recipe, shapes
from toy_ijepa.widgets.attention import AttentionExplorer

explorer = AttentionExplorer(recipe.build("ijepa", "tiny", 32, 4, 0).target.eval(), shapes.generate(6, seed=1).images)
explorer
"""
ASKED = """\
from toy_ijepa.widgets.predict import Predictions, choice, number, words

mine = Predictions(number("how many tokens?"), choice("which half?", "first", "second"), words("why?"))
mine
"""
REVEALED = """\
mine.reveal((64, "8 x 8"), ("first", "by convention"), ("", "nobody knows"))
"""
GRID = 8  # patches a side of the toy's pictures


class Shown:
    """An explorer in the page, by what a reader sees of it."""

    def __init__(self, page: NotebookPage, marker: str) -> None:
        self.page, self.cell = page.page, page.cell(marker)
        self.picture, self.text = self.cell.locator("img.ijepa-picture"), self.cell.locator(".ijepa-text")
        self.canvas, self.status = self.cell.locator(".ijepa-canvas"), self.cell.locator(".ijepa-status")
        self.error = self.cell.locator('[role="alert"]')
        self.picture.wait_for()

    def changes(self, act: Callable[[], None], text: str = "", canvas: bool = False) -> None:
        """Picture and numbers change on this, the canvas too if said so, and the new words hold `text`."""
        before = self.looks(canvas)
        act()
        message = f"picture, numbers and canvas did not all change; the text says {self.text.text_content()!r}"
        wait(lambda: all(old != new for old, new in zip(before, self.looks(canvas), strict=True)), message)
        wait(lambda: text in self.text.text_content(), f"{text!r} does not appear")
        assert self.error.count() == 0, self.error.inner_text()

    def looks(self, canvas: bool) -> list[str]:
        pixels = [self.canvas.evaluate("canvas => canvas.toDataURL()")] if canvas else []
        return [self.picture.get_attribute("src"), self.text.text_content(), *pixels]

    def slider(self, label: str, handle: int = 0) -> Locator:
        row = self.cell.locator(".widget-inline-hbox").filter(has=self.page.get_by_text(label, exact=True))
        return row.locator(".noUi-handle").nth(handle)

    def press(self, label: str, key: str, handle: int = 0) -> None:
        self.slider(label, handle).focus()
        self.page.keyboard.press(key)

    def choose(self, label: str, option: str) -> None:
        self.cell.get_by_label(label).select_option(label=option)

    def patch(self, row: int, column: int) -> tuple[float, float]:
        """The middle of a patch on the canvas, in the page's pixels."""
        self.canvas.scroll_into_view_if_needed()
        box = self.canvas.bounding_box()
        return box["x"] + (column + 0.5) * box["width"] / GRID, box["y"] + (row + 0.5) * box["height"] / GRID

    def drag(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        self.page.mouse.move(*self.patch(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.patch(*end), steps=5)
        self.page.mouse.up()

    def keys(self, *keys: str) -> None:
        self.canvas.focus()
        for key in keys:
            self.page.keyboard.press(key)


@pytest.fixture
def open_explorer(notebook) -> Callable[[str], Shown]:
    """Opens the chapter of an explorer and runs it as far as the explorer and the cell that drives it.

    In the quick way only the cells that these two need: every cell of the chapter runs once, under nbval.
    `make test-all` runs in JupyterLab all that comes before them too.
    """

    def open_explorer(name: str) -> Shown:
        chapter, marker = EXPLORERS[name]
        return Shown(notebook(CHAPTERS / f"{chapter}.ipynb", marker, short=True), marker)

    return open_explorer


def test_mask_explorer(open_explorer):
    shown = open_explorer("mask")
    shown.changes(lambda: shown.press("target blocks", "ArrowLeft"))
    shown.changes(lambda: shown.press("target scale", "ArrowRight", handle=1))
    shown.changes(lambda: shown.cell.get_by_role("button", name="released code").click(), "0 to 0")
    shown.changes(lambda: shown.choose("strategy", "random"))
    assert shown.cell.locator(".noUi-target[disabled]").count() == 3  # number, aspect and context scale
    assert "Picture 0" in shown.picture.get_attribute("alt")


def test_attention_explorer(open_explorer):
    shown = open_explorer("attention")
    shown.changes(lambda: shown.page.mouse.click(*shown.patch(1, 6)), "asked by row 1, column 6", canvas=True)
    shown.changes(lambda: shown.keys("ArrowDown", "ArrowLeft"), "asked by row 2, column 5", canvas=True)
    assert shown.status.inner_text() == "Patch at row 2, column 5"
    shown.changes(lambda: shown.press("layer", "ArrowRight"), "Layer 1")


def test_schedule_explorer(open_explorer):
    shown = open_explorer("schedule")
    shown.changes(lambda: shown.press("optimiser steps", "ArrowRight"), "of 1100")
    shown.press("batches a step", "ArrowRight")
    shown.changes(lambda: shown.choose("progress is", "batches done / steps (bug)"), "is over early")


def test_projection_explorer(open_explorer):
    shown = open_explorer("projection")
    shown.changes(lambda: shown.choose("cloud", "a line"), "Over all 180 directions")
    shown.changes(lambda: shown.press("direction (degrees)", "ArrowRight"), "this one, 1 degrees")
    shown.changes(lambda: shown.press("samples", "ArrowLeft"))
    assert "'a line'" in shown.picture.get_attribute("alt")


def test_predictor_explorer(open_explorer):
    shown = open_explorer("predictor")
    shown.changes(lambda: shown.drag((3, 3), (5, 4)), "at row 4, column 3", canvas=True)
    shown.changes(lambda: shown.keys("ArrowUp", "Shift+ArrowRight"), "3 x 4 patches at row 3, column 3", canvas=True)
    shown.changes(lambda: shown.press("column", "ArrowLeft"), "at row 3, column 2", canvas=True)
    shown.changes(lambda: shown.choose("context", "upper half"), "context upper half", canvas=True)
    shown.press("height (patches)", "End")  # eight rows from row 3: they do not fit, and the reader is told
    shown.error.wait_for()
    assert "does not fit" in shown.error.inner_text()
    shown.press("height (patches)", "Home")
    shown.error.wait_for(state="detached")


def test_paint_targets(open_explorer):
    shown = open_explorer("paint")
    shown.changes(lambda: shown.drag((6, 5), (7, 7)), "2 blocks", canvas=True)
    assert shown.status.inner_text() == "Hidden: 2 x 3 patches at row 6, column 5; 2 in all"
    keys = ["ArrowUp", "ArrowLeft", " ", "ArrowUp", "ArrowUp", "Enter"]
    shown.changes(lambda: shown.keys(*keys), "3 blocks", canvas=True)
    assert "Hidden: 3 x 1 patches at row 4, column 6" in shown.status.inner_text()
    shown.changes(lambda: shown.keys("Delete"), "2 blocks", canvas=True)
    shown.changes(lambda: shown.cell.get_by_role("button", name="Remove last block").click(), "1 block", canvas=True)
    shown.cell.get_by_role("button", name="Clear").click()
    shown.error.wait_for()
    assert "nothing is hidden" in shown.error.inner_text()


@pytest.mark.slow  # quick: its model and controls in Python, tests/toy/test_widgets.py, and the other explorers here
def test_search_explorer(open_explorer):
    shown = open_explorer("search")
    shown.changes(lambda: shown.press("picture", "ArrowRight"), "Asked by picture 4")
    shown.changes(lambda: shown.press("neighbours", "ArrowLeft"), "of 7")
    assert "Picture 4" in shown.picture.get_attribute("alt")


def test_dashboard_follows_a_run(open_explorer):
    """Rows that another process wrote arrive without anybody touching the page; then one curve is drawn large."""
    shown = open_explorer("dashboard")
    wait(lambda: "ijepa: step " in shown.text.text_content(), "the run never shows")
    assert "mae: waiting for the first row" in shown.text.text_content()
    before = shown.picture.get_attribute("src")
    shown.choose("curve", "momentum")
    wait(lambda: shown.picture.get_attribute("src") != before, "the picture stays as it was")
    assert "Curves of momentum" in shown.picture.get_attribute("alt")
    assert shown.error.count() == 0


def made(folder: Path, *sources: str) -> Path:
    """A notebook of these cells in a folder of its own."""
    new = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    new.metadata["kernelspec"] = dict(name="python3", display_name="Python 3", language="python")
    (folder / "made").mkdir()
    nbformat.write(new, folder / "made" / "alone.ipynb")
    return folder / "made" / "alone.ipynb"


def test_predictions_are_committed_by_keyboard_and_mouse_and_stay(notebook, tmp_path):
    page = notebook(made(tmp_path, ASKED, "print('between')", REVEALED), ASKED[:40])
    cell = page.cell("mine = Predictions(")
    parts = cell.locator("fieldset")
    field, said = parts.nth(0).locator("input"), [parts.nth(n).locator("p") for n in range(3)]
    field.fill("many")
    field.press("Enter")
    wait(lambda: "A number is asked" in said[0].inner_text(), "no word about a number that is none")
    field.fill("16")
    field.press("Enter")
    wait(lambda: "Committed" in said[0].inner_text(), "Enter does not commit")
    assert field.is_disabled()
    parts.nth(1).get_by_label("second").focus()
    page.page.keyboard.press("Space")
    parts.nth(1).get_by_role("button").click()
    wait(lambda: "Committed" in said[1].inner_text(), "the button does not commit")
    page.run()  # asks again: a form of its own, so that the old answers are not in the way of a new reader
    wait(lambda: "nobody knows" in said[2].inner_text(), "the answers do not arrive in the form")
    assert "You made no prediction" in page.cell("mine.reveal").inner_text()


def test_predictions_stand_beside_the_answers(notebook, tmp_path):
    page = notebook(made(tmp_path, ASKED, "print('between')", REVEALED), ASKED[:40])
    parts = page.cell("mine = Predictions(").locator("fieldset")
    parts.nth(0).locator("input").fill("16")
    parts.nth(0).get_by_role("button").click()
    wait(lambda: "Committed" in parts.nth(0).inner_text(), "the button does not commit")
    page.run_cell("mine.reveal")
    wait(lambda: "You said 16: 4 times too low." in parts.nth(0).inner_text(), "the form does not say how far it was")
    assert "1. 64: 8 x 8" in page.cell("mine.reveal").inner_text()


@pytest.mark.slow  # quick: none for dense screens and dark themes; this one wants a page of its own
def test_canvas_is_sharp_on_dense_screens_and_readable_in_the_dark(notebook, tmp_path):
    page = notebook(made(tmp_path, ALONE), scale=2, theme="JupyterLab Dark")
    shown = Shown(page, "AttentionExplorer(")
    width, css = shown.canvas.evaluate("canvas => [canvas.width, canvas.clientWidth]")
    assert width == 2 * css
    colours = shown.status.evaluate("e => [getComputedStyle(e).color, getComputedStyle(document.body).color]")
    red, green, blue = (int(n) for n in colours[0].split("(")[1].rstrip(")").split(",")[:3])
    assert min(red, green, blue) > 150, colours  # light words on the dark ground
    shown.changes(lambda: shown.keys("ArrowRight"), canvas=True)
