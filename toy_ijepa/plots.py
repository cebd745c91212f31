"""Pictures for the chapters and the main job. Each function returns a matplotlib Figure and writes nothing."""

# Shape legend:  B images  C channels  H,W pixels  P patch side (pixels)  h,w grid  M target blocks  S samples
#                F features

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from toy_ijepa.imagination import compose
from toy_ijepa.masking import Masks
from toy_ijepa.training import History

# Okabe & Ito's palette: told apart with every kind of colour vision. Hatches repeat the message without colour.
CONTEXT = (0.0, 0.62, 0.45)
TARGETS = [(0.84, 0.37, 0.0), (0.0, 0.45, 0.7), (0.94, 0.89, 0.26), (0.8, 0.47, 0.65)]
UNUSED = (0.6, 0.6, 0.6)
CURVES = [
    ("loss", "loss"),
    ("lr", "learning rate"),
    ("weight_decay", "weight decay"),
    ("momentum", "EMA momentum"),
    ("std", "feature std"),
    ("rank", "effective rank"),
]


def show(axes, image: Tensor, title: str = "") -> None:
    """Draw an image (C, H, W), uint8 or in [0, 1], without ticks."""
    array = image.permute(1, 2, 0).cpu().numpy()
    axes.imshow(array if array.dtype == np.uint8 else array.clip(0, 1), interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def grid_of(rows: int, columns: int, cell: float = 1.3) -> tuple[Figure, np.ndarray]:
    """A figure of rows x columns axes, always as a 2-d array."""
    figure = Figure(figsize=(columns * cell, rows * cell), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def mask_map(masks: Masks, grid: tuple[int, int], image: int = 0) -> Tensor:
    """Colours (h, w, 3) of one image's patches: context green, each target its colour, unused grey.

    Where targets overlap the later one is drawn.
    """
    colours = torch.tensor(UNUSED).repeat(grid[0] * grid[1], 1)
    colours[masks.context[image].cpu()] = torch.tensor(CONTEXT)
    for m, index in enumerate(masks.targets[image].cpu()):
        colours[index] = torch.tensor(TARGETS[m % len(TARGETS)])
    return colours.reshape(*grid, 3)


def masks(images: Tensor, drawn: Masks, grid: tuple[int, int]) -> Figure:
    """Each image (B, C, H, W), its mask, and what the context encoder sees of it."""
    B, H, W = len(images), images.shape[2], images.shape[3]
    figure, axes = grid_of(3, B)
    for b in range(B):
        show(axes[0, b], images[b], "image" if b == 0 else "")
        colours = mask_map(drawn, grid, b).permute(2, 0, 1)
        show(axes[1, b], colours, "mask" if b == 0 else "")
        seen = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
        seen[drawn.context[b]] = True
        seen = seen.reshape(grid).repeat_interleave(H // grid[0], 0).repeat_interleave(W // grid[1], 1)
        show(axes[2, b], torch.where(seen, images[b].float() / 255, 0.5), "context" if b == 0 else "")
    names = [("context", CONTEXT), *((f"target {m + 1}", TARGETS[m % 4]) for m in range(drawn.targets.shape[1]))]
    handles = [Patch(color=colour, label=name) for name, colour in [*names, ("neither", UNUSED)][:7]]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    return figure


def training_curves(histories: dict[str, History]) -> Figure:
    """Loss, learning rate, weight decay, momentum, feature std and rank against the share of the run done.

    Grey, beside each loss: that of an answer which knows places and no picture, where that is known.
    """
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots(2, 3)
    for history in histories.values():
        means = [row.get("mean_loss", math.nan) for row in history.rows]
        if any(map(math.isfinite, means)):
            axes[0, 0].plot(history.column("progress"), means, color="0.6", linewidth=1)
    known = bool(axes[0, 0].lines)
    for ax, (name, label) in zip(axes.flat, CURVES, strict=True):
        for (run, history), style in zip(histories.items(), ["-", "--", ":", "-."] * len(histories), strict=False):
            ax.plot(history.column("progress"), history.column(name), style, label=run)
        ax.set_title(label, fontsize=9)
        ax.set_xlabel("share of the run", fontsize=8)
        ax.tick_params(labelsize=7)
    if known:
        axes[0, 0].set_title("loss (grey: of an answer without the picture)", fontsize=9)
    ax.legend(fontsize=8)
    return figure


def tsne(features: dict[str, Tensor], labels: Tensor, classes: Sequence[str], seed: int = 0) -> Figure:
    """t-SNE maps of several encoders' features (S, F), the same samples in each, coloured by class.

    Distances between clusters mean nothing here; look at whether neighbours share a colour.
    Source: van der Maaten & Hinton 2008; scikit-learn's implementation.
    """
    from sklearn.manifold import TSNE  # a slow import that only this picture needs

    figure, axes = grid_of(1, len(features), cell=3.6)
    markers = "osD^v<>pP*Xh"
    for ax, (name, x) in zip(axes.flat, features.items(), strict=True):
        x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
        perplexity = min(30.0, (len(x) - 1) / 3)
        place = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(x.numpy())
        for c, label in enumerate(classes):
            rows = (labels == c).numpy()
            ax.scatter(*place[rows].T, s=6, marker=markers[c % len(markers)], label=label, color=f"C{c % 10}")
        ax.set_title(name, fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
    handles, names = ax.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    return figure


def imagination(images: Tensor, drawn: Masks, patches: Tensor, patch: int) -> Figure:
    """Original, context, targets 1-4 and all targets filled with imagined patches (B, M, T, C*P*P), a row an image."""
    B, M = len(images), drawn.targets.shape[1]
    figure, axes = grid_of(B, M + 3, cell=1.25)
    columns = [[]] + [[m] for m in range(M)] + [list(range(M))]
    titles = ["context", *(f"target {m + 1}" for m in range(M)), "all targets"]
    for b in range(B):
        show(axes[b, 0], images[b], "original" if b == 0 else "")
    for column, (blocks, title) in enumerate(zip(columns, titles, strict=True), start=1):
        filled = compose(images, drawn, patches, patch, blocks)
        for b in range(B):
            show(axes[b, column], filled[b], title if b == 0 else "")
    return figure


def hide_and_imagine(images: Tensor, drawn: Masks, patches: Tensor, patch: int, columns: int = 2) -> Figure:
    """For each image (B, C, H, W): itself, what the encoder sees, and all targets imagined; `columns` of three.

    patches (B, M, T, C*P*P) as from `imagination.imagine`
    """
    B, M = len(images), drawn.targets.shape[1]
    figure, axes = grid_of(-(-B // columns), 3 * columns, cell=1.5)
    views = images, compose(images, drawn, patches, patch, []), compose(images, drawn, patches, patch, list(range(M)))
    for b in range(B):
        for k, (view, title) in enumerate(zip(views, ("picture", "what is seen", "what is imagined"), strict=True)):
            show(axes[b // columns, 3 * (b % columns) + k], view[b], title if b < columns else "")
    for ax in axes.flat[3 * B :]:
        ax.axis("off")
    return figure


def grain_curves(levels: dict[float, dict], chance: float) -> Figure:
    """Accuracy against grain: I-JEPA, MAE and the random encoder under both probes, mean and spread over seeds.

    levels  std of the grain -> what the main job wrote under "probes"
    """
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    looks = {"ijepa": ("I-JEPA", "o-", "C0"), "mae": ("MAE", "s--", "C1"), "random": ("random encoder", "^:", "0.5")}
    for ax, (column, title) in zip(figure.subplots(1, 2), (("linear", "linear probe"), ("knn", "kNN")), strict=True):
        for name, (label, style, colour) in looks.items():
            x = sorted(levels)
            y = [levels[std][name][column] for std in x]
            spread = [levels[std][name]["spread"][column] or 0.0 for std in x]
            ax.errorbar(x, y, spread, fmt=style, color=colour, capsize=3, label=label, markersize=5)
        ax.axhline(chance, color="0.8", linewidth=1)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("std of the grain (black 0, white 1)", fontsize=8)
        ax.set_ylabel("accuracy in %", fontsize=8)
        ax.tick_params(labelsize=8)
    ax.legend(fontsize=8)
    return figure
