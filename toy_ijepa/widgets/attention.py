"""Attention explorer: pick a patch, see what every head of a layer looks at from there."""

# Shape legend:  S pictures  C channels  H,W pixels  h,w grid (patches)  N = h*w patches  D width  A heads

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from toy_ijepa import plots
from toy_ijepa.encoder import Encoder
from toy_ijepa.patches import normalise
from toy_ijepa.widgets.blocks import check_block, check_images
from toy_ijepa.widgets.canvas import PatchCanvas
from toy_ijepa.widgets.drawing import heat, outline, panels
from toy_ijepa.widgets.view import Explorer, Report, control

TOP = 3  # patches named in the text


@dataclass(frozen=True, eq=False)
class AttentionModel:
    """What the heads of one layer attend to from one patch of a uint8 image (S, C, H, W).

    layer   from 0 to depth - 1
    picked  row and column of the patch that asks, from 0
    Raises ValueError for a picture, layer or patch that does not exist.
    """

    encoder: Encoder
    images: Tensor
    image: int = 0
    layer: int = 0
    picked: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        check_images(self.images, self.image, self.encoder)
        if not 0 <= self.layer < len(self.encoder.blocks):
            raise ValueError(f"layer {self.layer} is not one of the {len(self.encoder.blocks)}, numbered from 0")
        check_block((*self.picked, 1, 1), self.encoder.grid)

    @cached_property
    def weights(self) -> Tensor:
        """Who attends to whom in this layer: (A, N, N), each row a distribution."""
        with torch.no_grad():
            x = self.encoder.embed(normalise(self.images[self.image : self.image + 1]))  # (1, N, D)
            for block in self.encoder.blocks[: self.layer]:
                x = block(x)
            block = self.encoder.blocks[self.layer]
            return block.attn.weights(block.norm1(x))[0]  #                                (A, N, N)

    @property
    def maps(self) -> Tensor:
        """The picked patch's row of every head and, last, of their mean: (A + 1, h, w), each sums to 1."""
        row, column = self.picked
        heads = self.weights[:, row * self.encoder.grid[1] + column]  #                    (A, N)
        return torch.cat([heads, heads.mean(0, keepdim=True)]).reshape(-1, *self.encoder.grid)

    @property
    def names(self) -> list[str]:
        return [*(f"head {a}" for a in range(len(self.maps) - 1)), "mean of heads"]

    @property
    def spread(self) -> Tensor:
        """exp(entropy) of each map, (A + 1,): over how many patches the attention spreads, 1 to N."""
        return torch.special.entr(self.maps.flatten(1)).sum(1).exp()

    def figure(self, alone: bool = True) -> Figure:
        maps, (row, column), extra = self.maps, self.picked, int(alone)
        columns = math.ceil(math.sqrt(len(maps) + extra))
        figure, axes = panels(-(-(len(maps) + extra) // columns), columns)
        if alone:
            plots.show(axes[0], self.images[self.image], "the patch that asks")
            outline(axes[0], (row, column, 1, 1), self.encoder.patch)
        top = 100 * maps.max().item()
        form = "{:.1f}" if top < 10 else "{:.0f}"
        for ax, values, name in zip(axes[extra:], maps, self.names, strict=False):
            heat(ax, 100 * values, f"{name}, %", 0, top, form)
            outline(ax, (row, column, 1, 1))
        for ax in axes[extra + len(maps) :]:
            ax.set_axis_off()
        return figure

    def alt(self) -> str:
        return (
            f"Picture {self.image}, layer {self.layer}: one heat map a head, and their mean, of where the patch in row "
            f"{self.picked[0]}, column {self.picked[1]} attends to. The table below names the largest weights."
        )

    def report(self) -> Report:
        w = self.encoder.grid[1]
        rows = [("", "spreads over (patches)", f"looks most at (row, column): weight, first {TOP}")]
        for name, values, spread in zip(self.names, self.maps, self.spread.tolist(), strict=True):
            weight, index = values.flatten().topk(min(TOP, values.numel()))
            named = [
                f"({n // w}, {n % w}): {100 * p:.1f} %" for p, n in zip(weight.tolist(), index.tolist(), strict=True)
            ]
            rows.append((name, f"{spread:.1f}", ", ".join(named)))
        asks = f"Layer {self.layer} of 0-{len(self.encoder.blocks) - 1}, asked by row {self.picked[0]}, column"
        return [f"{asks} {self.picked[1]}. Even attention would spread over {self.maps[0].numel()} patches.", rows]


class AttentionExplorer(Explorer):
    """Click a patch (or move with the arrow keys) and see where a trained or random encoder looks from there.

    Controls: image, layer, and the canvas's patch (`explorer.canvas.picked = (row, column)`).
    """

    def __init__(self, encoder: Encoder, images: Tensor) -> None:
        super().__init__()
        h, w = encoder.grid
        self.model = AttentionModel(encoder, images, picked=(h // 2, w // 2))
        self.image = control(ipywidgets.IntSlider, "image number", 0, max=len(images) - 1)
        self.layer = control(ipywidgets.IntSlider, "layer", 0, max=len(encoder.blocks) - 1)
        canvas = PatchCanvas(grid=encoder.grid, mode="pick", picked=self.model.picked)
        canvas.label = "Picture: pick the patch whose attention is shown"
        self.start([self.image, self.layer], canvas)

    def read(self) -> AttentionModel:
        return replace(self.model, image=self.image.value, layer=self.layer.value, picked=tuple(self.canvas.picked))

    def settle(self) -> None:
        self.canvas.show(self.model.images[self.model.image])
