"""Predictor explorer: move one target block over a picture and see what is predicted there, and how well."""

# Shape legend:  S pictures  C channels  H,W pixels  P patch side (pixels)  h,w grid (patches)  N = h*w patches
#                K context patches  T patches of the block  D width

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import ipywidgets
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from toy_ijepa import plots
from toy_ijepa.imagination import Gallery, compose, imagine
from toy_ijepa.jepa import IJEPA
from toy_ijepa.masking import Grid, Masks
from toy_ijepa.patches import normalise
from toy_ijepa.widgets.blocks import Block, check_block, check_images, covered, masks_of
from toy_ijepa.widgets.canvas import PatchCanvas
from toy_ijepa.widgets.drawing import bare, heat, outline, panels, seen_only, whole
from toy_ijepa.widgets.view import Explorer, Report, control

CENTRED_ON = 64  # pictures whose mean feature is taken out if there is no gallery
VEIL = "rgba(120,120,120,.85)"  # over patches that are neither context nor target


def areas(grid: Grid) -> dict[str, Block]:
    """Where the context may lie: blocks by name; the target is taken out of each."""
    h, w = grid
    return {
        "everything else": (0, 0, h, w),
        "upper half": (0, 0, (h + 1) // 2, w),
        "lower half": (h // 2, 0, h - h // 2, w),
        "left half": (0, 0, h, (w + 1) // 2),
        "right half": (0, w // 2, h, w - w // 2),
    }


@torch.no_grad()
def mean_feature(model: IJEPA, images: Tensor) -> Tensor:
    """Mean over patches and some of the uint8 images (S, C, H, W) of what has to be predicted: (D,)."""
    everything = torch.arange(model.encoder.grid[0] * model.encoder.grid[1])
    some = images[:CENTRED_ON]
    return model.targets(normalise(some), everything.expand(len(some), 1, -1)).mean((0, 1, 2))


@dataclass(frozen=True, eq=False)
class PredictorModel:
    """One target block of a uint8 image (S, C, H, W), predicted from a context area without it.

    block  (top, left, rows, columns) in patches; context  a name of `areas`
    shelf  gallery for the imagined picture, None for none
    mean   (D,) feature around which similarities are taken: all features share a direction, which would make every
           cosine large; default the gallery's or, without one, that of some of the images
    Raises ValueError for a block outside the grid, an unknown area, or a block that leaves no context.
    """

    model: IJEPA
    images: Tensor
    shelf: Gallery | None = None
    image: int = 0
    block: Block = (2, 2, 3, 3)
    context: str = "everything else"
    mean: Tensor | None = None

    def __post_init__(self) -> None:
        check_images(self.images, self.image, self.model.encoder)
        named = areas(self.grid)
        if self.context not in named:
            raise ValueError(f"unknown context area {self.context!r}: choose from {', '.join(named)}")
        if not self.masks.context.numel():
            raise ValueError(f"the block hides all of the context ({self.context}): make it smaller or move it")
        if self.mean is None:
            mean = mean_feature(self.model, self.images) if self.shelf is None else self.shelf.mean
            object.__setattr__(self, "mean", mean)

    @property
    def grid(self) -> Grid:
        return self.model.encoder.grid

    @cached_property
    def masks(self) -> Masks:
        """The block as the only target (1, 1, T), and the area without it as context (1, K)."""
        hidden = covered([self.block], self.grid)
        return masks_of(hidden, covered([areas(self.grid)[self.context]], self.grid) & ~hidden)

    @cached_property
    def similarity(self) -> Tensor:
        """Cosine of each prediction (rows) with the true feature of every patch of the picture (columns): (T, N)."""
        with torch.no_grad():
            x = normalise(self.images[self.image : self.image + 1])
            everything = torch.arange(self.grid[0] * self.grid[1])[None, None]
            truth = self.model.targets(x, everything)[0, 0]  #                                         (N, D)
            context = self.model.encoder(x, self.masks.context)
            predicted = self.model.predictor(context, self.masks.context, self.masks.targets)[0, 0]  # (T, D)
        return F.normalize(predicted - self.mean, dim=-1) @ F.normalize(truth - self.mean, dim=-1).T

    @property
    def own(self) -> Tensor:
        """Similarity of each prediction to the truth at its own place: (T,)."""
        return self.similarity.gather(1, self.masks.targets[0, 0][:, None])[:, 0]

    @property
    def elsewhere(self) -> Tensor:
        """Mean similarity of each prediction to the truth at all *other* places of the picture: (T,)."""
        return (self.similarity.sum(1) - self.own) / (self.similarity.shape[1] - 1)

    @property
    def found(self) -> int:
        """Predictions that are closer to the truth at their own place than at any other of the block; by chance 1."""
        within = self.similarity[:, self.masks.targets[0, 0]]  #                                       (T, T)
        return int((within.argmax(1) == torch.arange(len(within))).sum())

    def figure(self, alone: bool = True) -> Figure:
        extra = int(alone) + (self.shelf is not None)
        figure, axes = panels(1, 3 + extra) if alone else panels(2, 2)
        image, patch, panel = self.images[self.image], self.model.encoder.patch, iter(axes)
        if alone:
            outline_on(next(panel), image, self.block, patch, "image and target")
        seen = torch.zeros(self.grid, dtype=torch.bool)
        seen.view(-1)[self.masks.context[0]] = True
        outline_on(next(panel), seen_only(image, seen), self.block, patch, "what the encoder sees")
        if self.shelf is not None:
            one = self.images[self.image : self.image + 1]
            filled = compose(one, self.masks, imagine(self.model, one, self.masks, self.shelf)[0], patch, [0])
            outline_on(next(panel), filled[0], self.block, patch, "imagined")
        for values, title in ((self.own, "cosine with its own place"), (self.elsewhere, "with other places (mean)")):
            ax = next(panel)
            heat(ax, whole(values, self.masks.targets[0, 0], self.grid), title, -1, 1, "{:.1f}")
            outline(ax, self.block)
        for ax in panel:
            ax.set_axis_off()
        return figure

    def alt(self) -> str:
        top, left, rows, columns = self.block
        imagined = "" if self.shelf is None else "the block as imagined from the nearest gallery patches, "
        return (
            f"Picture {self.image} with a target of {rows} x {columns} patches at row {top}, column {left}: the "
            f"context, {imagined}and maps: how similar each prediction is to the truth at its own place and at others."
        )

    def report(self) -> Report:
        T, (top, left, rows, columns) = len(self.own), self.block
        numbers = [("centred cosine similarity of predictions", "mean", "lowest", "highest")]
        pairs = (("with the truth at their own place", self.own), ("with the truth elsewhere", self.elsewhere))
        for name, values in pairs:
            numbers.append((name, *(f"{v.item():+.2f}" for v in (values.mean(), values.min(), values.max()))))
        return [
            f"Target {rows} x {columns} patches at row {top}, column {left}; context {self.context}: "
            f"{self.masks.context.shape[1]} patches.",
            numbers,
            f"Does the prediction know where it is asked? {self.found} of {T} are closer to the truth at their own "
            "place than anywhere else in the block; by chance it would be 1.",
        ]


def outline_on(axes, image: Tensor, block: Block, patch: int, title: str) -> None:
    """A picture with a block framed on it."""
    plots.show(axes, image)
    bare(axes, title)
    outline(axes, block, patch)


class PredictorExplorer(Explorer):
    """Move a target block with the sliders, the mouse or the arrow keys, and see what is predicted.

    Controls: image, row, column, height, width, context (a name of `areas`), and the block on the canvas.
    """

    listens = ("value",)  # the canvas is heard through the sliders, see `follow`

    def __init__(self, model: IJEPA, images: Tensor, shelf: Gallery | None = None) -> None:
        super().__init__()
        h, w = model.encoder.grid
        block = (h // 4, w // 4, max(h * 3 // 8, 1), max(w * 3 // 8, 1))
        self.model = PredictorModel(model, images, shelf, block=block)
        I = ipywidgets.IntSlider  # noqa: E741
        self.image = control(I, "image number", 0, max=len(images) - 1)
        self.row, self.column = control(I, "row", block[0], max=h - 1), control(I, "column", block[1], max=w - 1)
        self.height = control(I, "height (patches)", block[2], min=1, max=h)
        self.width = control(I, "width (patches)", block[3], min=1, max=w)
        self.context = control(ipywidgets.Dropdown, "context", "everything else", options=list(areas((h, w))))
        canvas = PatchCanvas(grid=(h, w), mode="move", blocks=[block], label="Picture: move the target block")
        canvas.observe(self.follow, "blocks")
        self.start([self.image, self.context, *self.sliders()], canvas)

    def sliders(self) -> list[ipywidgets.IntSlider]:
        """Top, left, rows and columns of the block."""
        return [self.row, self.column, self.height, self.width]

    def follow(self, change: dict) -> None:
        """The block was moved on the canvas: the sliders follow, unless they would have to bend it to fit."""
        try:
            if len(change["new"]) != 1:
                raise ValueError(f"{len(change['new'])} blocks on the canvas: this explorer has one")
            check_block(change["new"][0], self.model.grid)
        except ValueError as error:
            self.fail(str(error))
            return
        with self.together():
            for slider, number in zip(self.sliders(), change["new"][0], strict=True):
                slider.value = number

    def read(self) -> PredictorModel:
        block = tuple(slider.value for slider in self.sliders())
        return replace(self.model, image=self.image.value, block=block, context=self.context.value)

    def settle(self) -> None:
        model, canvas = self.model, self.canvas
        canvas.show(model.images[model.image])
        canvas.blocks = [model.block]
        known = {*model.masks.context[0].tolist(), *model.masks.targets[0, 0].tolist()}
        canvas.veil = ["" if n in known else VEIL for n in range(model.grid[0] * model.grid[1])]
