"""Mask explorer: what each strategy hides, how evenly it does so, and three flaws of the released sampler."""

# Shape legend:  S pictures  B images of a batch  C channels  H,W pixels  h,w grid (patches)  N = h*w patches
#                M target blocks  T patches of a block  K context patches

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from functools import cached_property

import ipywidgets
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from toy_ijepa import plots
from toy_ijepa.masking import STRATEGIES, Grid, Masks, Range, marked, multiblock, strategy
from toy_ijepa.patches import grid_size
from toy_ijepa.widgets.blocks import check_images
from toy_ijepa.widgets.drawing import bare, heat, label, panels, seen_only
from toy_ijepa.widgets.survey import ACCEPTS, ALL, DRAWS, VERSIONS, Options, flaws, usage
from toy_ijepa.widgets.view import Explorer, Report, Table, control

PAPERS_GRID = 14  # patches a side of a ViT-B/16 at 224 px


@dataclass(frozen=True, eq=False)
class MaskModel:
    """One setting of a mask strategy, and what comes of it on uint8 images (S, C, H, W) cut into P px patches.

    Options that the strategy does not take are kept but not used (`ACCEPTS` says which it takes).
    Raises ValueError for a picture, strategy or range that does not exist, or targets that leave no context.
    """

    images: Tensor
    patch: int
    image: int = 0
    strategy: str = "multiblock"
    targets: int = 4
    target_scale: Range = (0.15, 0.2)
    target_aspect: Range = (0.75, 1.5)
    context_scale: Range = (0.85, 1.0)
    batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_images(self.images, self.image)
        strategy(self.strategy)
        assert self.masks.context.numel(), "a strategy drew an empty context"

    @cached_property
    def grid(self) -> Grid:
        return grid_size(tuple(self.images.shape[2:]), self.patch)

    @property
    def options(self) -> Options:
        return tuple((name, getattr(self, name)) for name in ACCEPTS[self.strategy])

    @cached_property
    def masks(self) -> Masks:
        """The masks of the batch; the first one's is shown."""
        g = torch.Generator().manual_seed(self.seed)
        return strategy(self.strategy)(self.batch, self.grid, generator=g, **dict(self.options))

    @cached_property
    def counts(self) -> dict[str, int]:
        """Patches that are context, target, unused (these three add up to N), and covered more than once."""
        N, M, T = self.grid[0] * self.grid[1], *self.masks.targets.shape[1:]
        context, target = self.masks.context.shape[1], int(marked(self.masks.targets[:1], N).sum())
        return dict(context=context, targets=target, unused=N - context - target, overlap=M * T - target)

    @property
    def usage(self) -> Tensor:
        """How often (%) each patch is target, context and neither: (3, h, w)."""
        return usage(self.strategy, self.grid, self.options, self.batch)

    def letters(self) -> list[list[str]]:
        """What each patch is, without colour: c for context, the number of the target, nothing for neither."""
        text = [""] * (self.grid[0] * self.grid[1])
        for n in self.masks.context[0].tolist():
            text[n] = "c"
        for m, block in enumerate(self.masks.targets[0].tolist(), start=1):
            for n in block:
                text[n] = str(m)
        return [text[i : i + self.grid[1]] for i in range(0, len(text), self.grid[1])]

    def figure(self, alone: bool = True) -> Figure:
        """Above: image, mask, what the context encoder sees. Below: how often each patch is what."""
        figure, axes = panels(2, 3, cell=2.9)
        figure.subplots_adjust(bottom=0.1)
        plots.show(axes[0], self.images[self.image], "image")
        axes[1].imshow(plots.mask_map(self.masks, self.grid).numpy(), interpolation="nearest")
        bare(axes[1], "mask: c context, numbers targets")
        label(axes[1], self.letters(), most=20)
        seen = marked(self.masks.context[:1], self.grid[0] * self.grid[1]).reshape(self.grid)
        plots.show(axes[2], seen_only(self.images[self.image], seen), "what the context encoder sees")
        for ax, share, name in zip(axes[3:], self.usage, ("target", "context", "neither"), strict=True):
            shown = heat(ax, share, f"{name}, % of {DRAWS:,} draws", 0, 100)
        bar = figure.add_axes((0.62, 0.055, 0.34, 0.02))
        figure.colorbar(shown, cax=bar, orientation="horizontal").ax.tick_params(labelsize=7, pad=1)
        names = [("context", plots.CONTEXT), *((f"target {m + 1}", c) for m, c in enumerate(plots.TARGETS))]
        names = [*names[: 1 + min(self.masks.targets.shape[1], 4)], ("neither", plots.UNUSED)]
        handles = [Patch(facecolor=colour, label=name) for name, colour in names]
        figure.legend(handles=handles, loc="lower left", ncols=3, fontsize=7.5, frameon=False, borderaxespad=0.2)
        return figure

    def alt(self) -> str:
        c = self.counts
        return (
            f"Picture {self.image}; its {self.strategy} mask with {c['context']} context, {c['targets']} target and "
            f"{c['unused']} unused patches; the picture with only its context left; and three heat maps of how often "
            "each patch is target, context or neither. The text below has the numbers."
        )

    def report(self) -> Report:
        c, (h, w) = self.counts, self.grid
        lines: Report = [
            f"{h}x{w} = {h * w} patches: {c['context']} context + {c['targets']} target + {c['unused']} unused. "
            f"Overlap between targets: {c['overlap']}. The context is cut to the smallest of a batch of {self.batch}."
        ]
        if self.strategy in VERSIONS:
            lines.append(self.comparison())
        rows = [("row", "target, % of draws", "context, %", "neither, %")]
        for i in range(h):
            rows.append((str(i), *(f"{row.min():.0f} to {row.max():.0f}" for row in self.usage[:, i])))
        return [*lines, f"From the least to the most used patch of each row, {DRAWS:,} draws:", rows]

    def comparison(self) -> Table:
        """The three flaws of the released code in numbers, beside the sampler as the paper says; same options."""
        columns = []
        for name in VERSIONS:
            try:
                f = flaws(name, self.grid, self.options, self.batch)
            except ValueError as error:  # the released sampler cannot draw on every grid: that is a finding too
                columns.append((str(error), "", ""))
            else:
                columns.append((f"{f.edge:.1f} %", str(f.shapes), f"{f.upper:.0f} %, {f.lower:.0f} %"))
        questions = (
            "1. last row and column are used in",
            f"2. different block shapes in {DRAWS:,} draws",
            "3. context in the upper, lower half of the used rows",
        )
        return [("flaw", *VERSIONS.values()), *zip(questions, *columns, strict=True)]


def patch_sides(images: Tensor) -> list[int]:
    """Patch sides (pixels) that cut images (S, C, H, W) into at least 4 and at most 32 patches a side."""
    check_images(images, 0)
    H, W = images.shape[2:]
    sides = [P for P in range(1, min(H, W) // 4 + 1) if H % P == W % P == 0 and max(H, W) // P <= 32]
    if not sides:
        raise ValueError(f"no patch side cuts {H}x{W} px into 4 to 32 patches a side")
    return sides


def default_scale(name: str) -> Range:
    """The target scale that a strategy takes if it is told none."""
    for sampler in (STRATEGIES[name], multiblock):
        if "target_scale" in (parameters := inspect.signature(sampler).parameters):
            return parameters["target_scale"].default
    raise AssertionError("multiblock has a target scale")


class MaskExplorer(Explorer):
    """Move the dials of the mask strategies on uint8 images (S, C, H, W).

    Controls: image, patch, strategy, version (released code or as the paper says), targets, scale, aspect, context,
    batch, seed. What a strategy does not take is disabled.

    patch  side in pixels; by default the one that comes closest to the paper's grid, because on the toy's 8x8 the
           released sampler often cannot draw
    """

    def __init__(self, images: Tensor, patch: int | None = None) -> None:
        super().__init__()
        sides = patch_sides(images)
        if patch is not None and patch not in sides:
            raise ValueError(f"a patch side of {patch} px is not one of {', '.join(map(str, sides))}")
        nearest = min(sides, key=lambda P: abs(images.shape[2] / P - PAPERS_GRID))
        self.model = MaskModel(images, patch or nearest)
        I, F = ipywidgets.IntSlider, ipywidgets.FloatRangeSlider  # noqa: E741
        self.image = control(I, "image number", 0, max=len(images) - 1)
        self.patch = control(ipywidgets.Dropdown, "patch side (px)", self.model.patch, options=sides)
        self.strategy = control(ipywidgets.Dropdown, "strategy", "multiblock", options=list(STRATEGIES))
        both = [(text, name) for name, text in VERSIONS.items()]
        self.version = control(ipywidgets.ToggleButtons, "sampler", "multiblock", options=both)
        self.version.layout.width = "auto"  # or its two buttons would not stand beside each other
        self.targets = control(I, "target blocks", 4, min=1, max=8)
        self.scale = control(F, "target scale", (0.15, 0.2), min=0.05, max=0.95, step=0.01)
        self.aspect = control(F, "target aspect", (0.75, 1.5), min=0.25, max=4, step=0.05)
        self.context = control(F, "context scale", (0.85, 1.0), min=0.05, max=1, step=0.01)
        self.batch = control(I, "batch size", 16, min=1, max=64)
        self.seed = control(I, "seed", 0, max=99)
        self.strategy.observe(self.follow, "value")
        self.version.observe(self.switch, "value")
        dials = [self.targets, self.scale, self.aspect, self.context]
        self.start([self.image, self.patch, self.strategy, self.version, *dials, self.batch, self.seed])

    def follow(self, change: dict) -> None:
        """Another strategy: disable what it does not take, and start from its own target scale."""
        dials = dict(zip(ALL, (self.targets, self.scale, self.aspect, self.context), strict=True))
        with self.together():
            for name, dial in dials.items():
                dial.disabled = name not in ACCEPTS[change["new"]]
            self.version.value = change["new"] if change["new"] in VERSIONS else None
            if default_scale(change["new"]) != default_scale(change["old"]):
                self.scale.value = default_scale(change["new"])

    def switch(self, change: dict) -> None:
        """Released code or as the paper says: the same two strategies, side by side."""
        if change["new"] is not None:
            self.strategy.value = change["new"]

    def read(self) -> MaskModel:
        return replace(
            self.model,
            image=self.image.value,
            patch=self.patch.value,
            strategy=self.strategy.value,
            targets=self.targets.value,
            target_scale=self.scale.value,
            target_aspect=self.aspect.value,
            context_scale=self.context.value,
            batch=self.batch.value,
            seed=self.seed.value,
        )
