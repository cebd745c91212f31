"""Maps over the patch grid, as the explorers draw them: colour, and the same in numbers or letters."""

# Shape legend:  h,w grid (patches)

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor

from toy_ijepa.masking import Grid

COLOURS = "cividis"  # its lightness rises evenly, for every kind of colour vision
MOST_LABELS = 12  # rows or columns of a grid up to which each patch gets its number


def panels(rows: int, columns: int, cell: float = 2.3) -> tuple[Figure, list]:
    """A figure of rows x columns panels, in reading order, with a place for a heading above each.

    Places are fixed: matplotlib's layout engines would take longer than everything else on the picture.
    """
    figure = Figure(figsize=(columns * cell, rows * (cell + 0.2)))
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    height = rows * (cell + 0.2)
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.08 / height, top=1 - 0.3 / height, wspace=0.06, hspace=0.16)
    return figure, axes


def bare(axes, title: str) -> None:
    """No ticks, and a heading."""
    axes.set_title(title, fontsize=9, pad=4)
    axes.set_xticks([])
    axes.set_yticks([])


def label(
    axes, texts: Sequence[Sequence[str]], ink: Sequence[Sequence[str]] | str = "black", most: int = MOST_LABELS
) -> None:
    """Write texts[i][j] into patch i, j, in the colour ink[i][j]; nothing on grids too fine to read it."""
    if max(len(texts), len(texts[0])) > most:
        return
    longest = max(len(text) for row in texts for text in row)
    size = min(8.5, 200 / (max(len(texts), len(texts[0])) * max(longest, 3)))
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            if text:
                colour = ink if isinstance(ink, str) else ink[i][j]
                axes.text(j, i, text, ha="center", va="center", fontsize=size, color=colour)


def heat(axes, values: Tensor, title: str, low: float, high: float, form: str = "{:.0f}") -> AxesImage:
    """A map (h, w) in colours from `low` to `high`, numbers in it; patches that are not a number stay white."""
    shown = axes.imshow(values.numpy(), cmap=COLOURS, vmin=low, vmax=high, interpolation="nearest")
    bare(axes, title)
    texts = [["" if v != v else form.format(v) for v in row] for row in values.tolist()]
    dark = [["white" if v < (low + high) / 2 else "black" for v in row] for row in values.tolist()]
    label(axes, texts, dark)
    return shown


def outline(axes, block: Sequence[int], unit: int = 1, colour: str = "#d55e00") -> None:
    """Frame a block [top, left, rows, columns], on a map (unit 1) or on a picture (unit = patch side in pixels)."""
    top, left, rows, columns = (unit * n for n in block)
    place = (left - 0.5, top - 0.5)
    for width, shade in ((4, "white"), (2, colour)):  # a white rim keeps the frame visible on its own colour
        axes.add_patch(Rectangle(place, columns, rows, fill=False, edgecolor=shade, linewidth=width))


def whole(values: Tensor, where: Tensor, grid: Grid) -> Tensor:
    """Values (T,) at patch numbers `where` (T,) as a map (h, w), not a number elsewhere."""
    full = torch.full((grid[0] * grid[1],), torch.nan)
    full[where] = values.float()
    return full.reshape(grid)


def seen_only(image: Tensor, seen: Tensor) -> Tensor:
    """An image (C, H, W), uint8, as (C, H, W) in [0, 1] with grey where the boolean map (h, w) is not True."""
    P = image.shape[1] // seen.shape[0]
    pixels = seen.repeat_interleave(P, 0).repeat_interleave(P, 1)  #  (H, W)
    return torch.where(pixels, image.float() / 255, 0.5)
