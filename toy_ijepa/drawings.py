"""Drawings that explain: each returns a matplotlib Figure and writes nothing."""

# Shape legend:  h,w grid (patches)  N = h*w patches  P patch side (pixels)  D width  A heads

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

from toy_ijepa.patches import patchify
from toy_ijepa.plots import CONTEXT, TARGETS, grid_of, show

GREY = (0.85, 0.85, 0.85)


def box(ax, x: float, y: float, text: str, colour=GREY, width: float = 2.2, height: float = 0.8) -> None:
    """A rounded box centred at (x, y); without a colour, one in dashes for what is not there yet."""
    corner = (x - width / 2, y - height / 2)
    face, edge, line = ("white", "0.55", "--") if colour is None else ((*colour, 0.35), "0.3", "-")
    ax.add_patch(
        FancyBboxPatch(corner, width, height, "round,pad=0.05", facecolor=face, edgecolor=edge, linestyle=line)
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=9, color="0.45" if colour is None else "black")


def arrow(ax, start: tuple[float, float], end: tuple[float, float], text: str = "", style: str = "-") -> None:
    """An arrow with a word beside it."""
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, linestyle=style, color="0.2"))
    if text:
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        ax.text(middle[0], middle[1] + 0.12, text, ha="center", va="bottom", fontsize=8)


# What each chapter adds to the picture of the method.
BUILT_IN = {"patches": 1, "encoder": 2, "masks": 3, "predictor": 4, "target": 5, "loss": 6}


def overview(chapter: int = len(BUILT_IN)) -> Figure:
    """The method in one picture: who sees what, where the gradient flows, and where it does not.

    chapter  parts that come after this chapter are drawn without colour, in dashes
    """
    figure = Figure(figsize=(8.6, 3.2), layout="constrained")
    ax = figure.subplots()

    def part(name: str, x: float, y: float, text: str, colour=GREY, width: float = 2.2) -> None:
        built = BUILT_IN[name] <= chapter
        box(ax, x, y, text if built else f"{text}\n(chapter {BUILT_IN[name]})", colour if built else None, width)

    part("masks", 1.0, 2.6, "image, only the\ncontext patches")
    part("patches", 1.0, 0.6, "image, whole")
    part("encoder", 4.2, 2.6, "context encoder", CONTEXT)
    part("target", 4.2, 0.6, "target encoder", TARGETS[1])
    part("predictor", 7.4, 2.6, "predictor\n(narrow)", CONTEXT)
    part("target", 7.4, 0.6, "features of the\nhidden blocks")
    part("loss", 10.4, 1.6, "loss:\nhow far apart?", TARGETS[0], width=1.9)
    arrow(ax, (2.15, 2.6), (3.05, 2.6))
    arrow(ax, (5.35, 2.6), (6.25, 2.6), "features")
    arrow(ax, (8.55, 2.6), (9.5, 1.85))
    ax.text(9.2, 2.45, "predicted", fontsize=8)
    arrow(ax, (2.15, 0.6), (3.05, 0.6))
    arrow(ax, (5.35, 0.6), (6.25, 0.6))
    ax.text(5.8, 0.05, "no gradient", fontsize=8, ha="center")
    arrow(ax, (8.55, 0.6), (9.5, 1.35))
    ax.text(9.2, 0.65, "true", fontsize=8)
    arrow(ax, (4.2, 2.15), (4.2, 1.05), style="--")
    ax.text(4.35, 1.6, "moving average\nof the weights", fontsize=8, va="center")
    arrow(ax, (7.4, 3.6), (7.4, 3.05))
    ax.text(7.4, 3.7, "where are the hidden blocks?", fontsize=8, ha="center")
    ax.set_xlim(-0.3, 11.6)
    ax.set_ylim(-0.1, 4.0)
    ax.axis("off")
    return figure


# The way after the method is complete: chapter -> what it adds.
JOURNEY = {
    6: "I-JEPA,\ntrained",
    7: "probes,\nbaselines",
    8: "a twin:\nMAE",
    9: "the same\nfor GPUs",
    10: "every\nprotocol",
    11: "your\npictures",
    12: "ViT-B/16\non STL-10",
}


def journey(chapter: int) -> Figure:
    """What stands after a chapter from 6 on, and what is still to come (without colour, in dashes)."""
    figure = Figure(figsize=(8.6, 1.3), layout="constrained")
    ax = blank(figure, 11.8, 1.8)
    for place, (number, text) in enumerate(JOURNEY.items()):
        x = 0.85 + 1.68 * place
        colour = None if number > chapter else TARGETS[0] if number == chapter else CONTEXT
        box(ax, x, 0.75, text, colour, width=1.2)
        ax.text(x, 1.4, "chapters 0-6" if number == 6 else f"chapter {number}", fontsize=8, ha="center")
        if place:
            arrow(ax, (x - 1.03, 0.75), (x - 0.65, 0.75))
    return figure


def axes_of_patchify() -> Figure:
    """Where the axes of an image go when it is cut: split by `reshape`, moved by `permute`, joined by `flatten`."""
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    ax = blank(figure, 11.6, 4.6)
    colours = dict(B=GREY, C=TARGETS[2], h=CONTEXT, w=TARGETS[1], P=(1.0, 1.0, 1.0))
    split, moved = [("B", 2.6), ("C", 4.0), ("h", 5.4), ("P", 6.5), ("w", 7.9), ("P", 9.0)], [0, 2, 4, 1, 3, 5]
    places = (2.6, 4.0, 5.1, 6.5, 7.6, 8.7)
    for name, x, width in (("B", 2.6, 0.7), ("C", 4.0, 0.7), ("H", 5.95, 1.7), ("W", 8.45, 1.7)):
        box(ax, x, 4.1, name, GREY, width=width, height=0.45)
    for n, (name, x) in enumerate(split):
        box(ax, x, 2.9, name, colours[name], width=0.7, height=0.45)
        arrow(ax, (x, 3.8), (x, 3.2))
        to = places[moved.index(n)]
        arrow(ax, (x, 2.62), (to, 1.72))
        box(ax, to, 1.4, name, colours[name], width=0.7, height=0.45)
    for name, x, width in (("B", 2.6, 0.7), ("N = h*w", 4.55, 1.7), ("C*P*P", 7.6, 2.8)):
        box(ax, x, 0.3, name, GREY, width=width, height=0.45)
        arrow(ax, (x, 1.1), (x, 0.6))
    for y, words in ((3.5, "reshape"), (2.2, "permute"), (0.85, "flatten")):
        ax.text(0.1, y, words, fontsize=9, va="center", family="monospace")
    return figure


def query_key_value() -> Figure:
    """What one token does in attention: its query against every key, a softmax, a weighted sum of the values."""
    figure = Figure(figsize=(8.6, 2.7), layout="constrained")
    ax = blank(figure, 11.6, 3.6)
    box(ax, 0.9, 2.2, "query of\ntoken 1", CONTEXT, width=1.3)
    for n, (weight, y) in enumerate(((0.7, 3.1), (0.2, 2.1), (0.1, 1.1))):
        box(ax, 3.6, y, f"key of token {n + 1}", TARGETS[0], width=1.7, height=0.55)
        arrow(ax, (1.6, 2.2), (2.7, y))
        ax.text(5.35, y, f"{weight:.1f}", fontsize=10, ha="center", va="center")
        arrow(ax, (4.5, y), (5.05, y))
        box(ax, 7.3, y, f"value of token {n + 1}", TARGETS[1], width=1.8, height=0.55)
        ax.text(6.05, y, "x", fontsize=9, ha="center", va="center")
        arrow(ax, (8.25, y), (9.4, 2.2 + (y - 2.1) * 0.25))
    box(ax, 10.3, 2.2, "sum: answer\nto token 1", CONTEXT, width=1.6)
    ax.text(2.15, 0.35, "how well do they fit?\nq . k / sqrt(d)", fontsize=8, ha="center")
    ax.text(5.35, 0.35, "softmax:\nweights, sum 1", fontsize=8, ha="center")
    ax.text(7.3, 0.35, "what they carry", fontsize=8, ha="center")
    return figure


def block_and_joint() -> Figure:
    """Which tokens the predictor sees together: context and one block, or context and all blocks."""
    figure = Figure(figsize=(8.6, 2.6), layout="constrained")
    ax = blank(figure, 11.6, 3.5)
    for row, y in enumerate((3.0, 2.3, 1.6)):
        box(ax, 1.9, y, "context", CONTEXT, width=1.7, height=0.45)
        box(ax, 3.6, y, f"block {row + 1}?", TARGETS[row], width=1.2, height=0.45)
    ax.text(2.5, 0.85, "block: each block with the context,\nM sequences of K + T tokens", fontsize=9, ha="center")
    box(ax, 6.6, 2.3, "context", CONTEXT, width=1.7, height=0.45)
    for m, x in enumerate((8.3, 9.6, 10.9)):
        box(ax, x, 2.3, f"block {m + 1}?", TARGETS[m], width=1.0, height=0.45)
    ax.text(8.6, 0.85, "joint: all blocks at once,\none sequence of K + M*T tokens", fontsize=9, ha="center")
    return figure


def blank(figure: Figure, width: float, height: float):
    """Axes without frame or ticks, of so many units from (0, 0)."""
    ax = figure.subplots()
    ax.set_xlim(0, width)
    ax.set_ylim(0, height)
    ax.axis("off")
    return ax


def step_in_parts() -> Figure:
    """One optimiser step of 256 pictures: four micro-batches, two processes."""
    figure = Figure(figsize=(8.6, 2.5), layout="constrained")
    ax = blank(figure, 11.6, 3.4)
    for process, y in enumerate((2.5, 0.8)):
        ax.text(0.1, y, f"process {process}", fontsize=9, va="center")
        for part, x in enumerate((2.4, 4.6)):
            first = 64 * (process + 2 * part)  # every second part, as `plan` deals them
            box(ax, x, y, f"pictures {first}-{first + 63}\nforward, backward", CONTEXT, width=1.9)
        box(ax, 6.7, y, "sum of\ngradients", width=1.3)
        arrow(ax, (5.6, y), (6.0, y))
        arrow(ax, (7.4, y), (8.1, 1.85 if y > 1.65 else 1.45))
    box(ax, 8.8, 1.65, "mean of\n4 parts", width=1.2)
    box(ax, 10.7, 1.65, "clip, step,\nthen EMA, once", TARGETS[1], width=1.6)
    arrow(ax, (9.45, 1.65), (9.85, 1.65))
    return figure


def who_sees_labels() -> Figure:
    """Which labels fit a probe, which choose its settings, and which are looked at once."""
    figure = Figure(figsize=(8.6, 2.0), layout="constrained")
    ax = blank(figure, 11.6, 2.8)
    ax.text(3.3, 2.5, "training pictures", fontsize=9, ha="center")
    box(ax, 2.5, 1.9, "nine tenths: fit a probe for each rate", CONTEXT, width=4.6, height=0.6)
    box(ax, 5.7, 1.9, "a tenth: which\nrate is best?", TARGETS[0], width=1.5, height=0.6)
    box(ax, 3.25, 0.6, "all of them: fit once more, with that rate", CONTEXT, width=6.1, height=0.6)
    arrow(ax, (5.7, 1.5), (5.7, 1.0))
    box(ax, 9.6, 0.6, "test pictures: judged once", TARGETS[1], width=3.2, height=0.6)
    arrow(ax, (6.45, 0.6), (7.85, 0.6), "one probe")
    return figure


def run_folder() -> Figure:
    """What writes into a run's folder, and what reads it."""
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    ax = blank(figure, 11.6, 4.0)
    box(ax, 1.4, 2.0, "pretrain\n(a process of its own)", CONTEXT, width=2.5)
    box(ax, 5.3, 2.0, "runs/NAME\nrecipe.json\nhistory.jsonl\ncheckpoints/", width=2.3, height=1.9)
    arrow(ax, (2.8, 2.15), (4.0, 2.15), "writes")
    arrow(ax, (4.0, 1.75), (2.8, 1.75))
    ax.text(3.4, 1.55, "--resume auto", fontsize=8, ha="center", va="top")
    readers = ("dashboard, doctor: words", "evaluate: evaluation.json", "report: report.html", "export: huggingface/")
    for text, y in zip(readers, (3.5, 2.5, 1.5, 0.5), strict=True):
        box(ax, 9.7, y, text, TARGETS[1], width=3.0, height=0.55)
        arrow(ax, (6.6, 2.0 + (y - 2.0) / 3), (8.1, y))
    return figure


def three_targets() -> Figure:
    """Where the target comes from: the last block, every block, or the last block of a teacher that never moves."""
    figure = Figure(figsize=(8.6, 3.0), layout="constrained")
    ax = blank(figure, 11.6, 4.3)
    rows = {
        "the plain method:\nfollows the encoder": (3.5, [4], TARGETS[1]),
        "several depths:\nfollows the encoder": (2.0, [1, 2, 3, 4], TARGETS[1]),
        "frozen teacher:\nan MAE, trained before": (0.5, [4], TARGETS[2]),
    }
    for words, (y, used, colour) in rows.items():
        ax.text(0.1, y, words, fontsize=9, va="center")
        for n in range(1, 5):
            x = 2.3 + 1.5 * n
            box(ax, x, y, f"block {n}", colour if n in used else GREY, width=1.0, height=0.5)
            if n < 4:
                arrow(ax, (x + 0.5, y), (x + 1.0, y))
                if n in used:
                    ax.plot([x, x, 10.6], [y + 0.3, y + 0.6, y + 0.6], color="0.2", linewidth=1)
        arrow(ax, (8.85, y), (9.7, y))
        if len(used) > 1:
            arrow(ax, (10.6, y + 0.6), (10.6, y + 0.3))
        box(ax, 10.6, y, "target", TARGETS[0], width=1.6, height=0.5)
    return figure


def numbered_patches(image: Tensor, patch: int) -> Figure:
    """An image (C, H, W) and its patches (uint8), pulled apart and numbered in token order."""
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    show(left, image, f"{image.shape[1]} x {image.shape[2]} pixels")
    pieces = patchify(image[None], patch)[0].reshape(-1, image.shape[0], patch, patch)
    h, w = image.shape[1] // patch, image.shape[2] // patch
    gap = max(patch // 2, 1)
    canvas = torch.full((image.shape[0], h * (patch + gap), w * (patch + gap)), 255, dtype=torch.uint8)
    for n, piece in enumerate(pieces):
        top, across = n // w * (patch + gap), n % w * (patch + gap)
        canvas[:, top : top + patch, across : across + patch] = piece
        right.text(across + patch + gap / 2 - 0.5, top + patch / 2 - 0.5, str(n), fontsize=5, ha="center", va="center")
    show(right, canvas, f"{len(pieces)} tokens, numbered row by row")
    return figure


def maps(
    values: Sequence[Tensor], titles: Sequence[str], columns: int = 0, signed: bool = False, cell: float = 1.6
) -> Figure:
    """Maps (h, w) side by side on one colour scale; `signed` centres it on zero."""
    columns = columns or len(values)
    rows = -(-len(values) // columns)
    figure, axes = grid_of(rows, columns, cell)
    top = max(v.abs().max().item() if signed else v.max().item() for v in values)
    low = -top if signed else min(0.0, *(v.min().item() for v in values))
    for ax in axes.flat:
        ax.axis("off")
    for ax, value, title in zip(axes.flat, values, titles, strict=False):
        drawn = ax.imshow(value.float(), vmin=low, vmax=top, cmap="RdBu_r" if signed else "viridis")
        ax.set_title(title, fontsize=8)
    figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.01).ax.tick_params(labelsize=7)
    return figure


def pictures(images: Sequence[Tensor], titles: Sequence[str] = (), columns: int = 8, cell: float = 1.0) -> Figure:
    """Images (C, H, W), uint8 or in [0, 1], in rows."""
    columns = min(columns, len(images))
    figure, axes = grid_of(-(-len(images) // columns), columns, cell)
    for ax in axes.flat:
        ax.axis("off")
    for number, (ax, image) in enumerate(zip(axes.flat, images, strict=False)):
        ax.axis("on")
        show(ax, image, titles[number] if titles else "")
        ax.title.set_fontsize(7)
    return figure


def curves(
    lines: dict[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    x: Sequence[float] | None = None,
    spread: dict[str, Sequence[float]] | None = None,
) -> Figure:
    """Named curves in one plot, told apart by line style as well as colour; the spread, if given, as whiskers."""
    figure = Figure(figsize=(5.6, 2.8), layout="constrained")
    ax = figure.subplots()
    for number, (name, values) in enumerate(lines.items()):
        style = ["-", "--", ":", "-."][number % 4]
        wide = spread[name] if spread else None
        ax.errorbar(range(len(values)) if x is None else x, values, wide, fmt=style, capsize=2, label=name)
    ax.set_xlabel(xlabel, fontsize=9)
    ax.set_ylabel(ylabel, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.legend(fontsize=8)
    return figure


def against_normal(samples: dict[str, Tensor], reach: float = 3.5) -> Figure:
    """A histogram of each named set of numbers (S,) between -reach and reach, beside the normal curve."""
    figure, axes = grid_of(1, len(samples), cell=2.4)
    for ax, (name, values) in zip(axes.flat, samples.items(), strict=True):
        histogram(ax, values, reach)
        ax.set_title(name, fontsize=9)
    return figure


def histogram(ax, values: Tensor, reach: float, bins: int = 31) -> None:
    """Numbers (S,) as bars of area 1 together, and the standard normal curve; what lies beyond reach is at the ends."""
    grid = torch.linspace(-reach, reach, 200)
    inside = values.clamp(-reach, reach)
    ax.hist(inside, bins, range=(-reach, reach), density=True, color="#56b4e9", edgecolor="white", linewidth=0.4)
    ax.plot(grid, (-0.5 * grid.square()).exp() / (2 * torch.pi) ** 0.5, "--", color="black", label="normal")
    ax.set_ylim(0, 1.5)
    ax.tick_params(labelsize=7)
    ax.legend(fontsize=8, frameon=False)


def bars(
    values: dict[str, float], spread: dict[str, float] | None = None, xlabel: str = "", base: float | None = None
) -> Figure:
    """Named bars with the spread as whiskers and, at `base`, a line to compare with."""
    figure = Figure(figsize=(6.0, 0.36 * len(values) + 0.8), layout="constrained")
    ax = figure.subplots()
    names = list(values)[::-1]
    wide = [spread[n] for n in names] if spread else None
    ax.barh(names, [values[n] for n in names], xerr=wide, color=TARGETS[1], alpha=0.6, capsize=3)
    if base is not None:
        ax.axvline(base, color="0.2", linestyle="--", linewidth=1)
    ax.set_xlabel(xlabel, fontsize=9)
    ax.tick_params(labelsize=8)
    return figure
