"""Samplers with one flaw each."""

from __future__ import annotations

import torch

from toy_ijepa import masking
from toy_ijepa.masking import Masks, fill, marked


def exclusive_corner(batch, grid, generator=None):
    """Corners never take the last place: the last row and column are unreachable."""
    size = masking.block_size(grid, masking.uniform(0.15, 0.2, generator), masking.uniform(0.75, 1.5, generator))
    return masking.blocks(batch, grid, size, 4, (grid[0] - 1, grid[1] - 1), 1, generator, spare=0)


def one_number(batch, grid, generator=None):
    """One random number sets both the size and the shape of the targets."""
    u = masking.uniform(0.0, 1.0, generator)
    size = masking.block_size(grid, 0.15 + 0.05 * u, 0.75 + 0.75 * u)
    return masking.blocks(batch, grid, size, 4, grid, 1, generator)


def raster_cut(batch, grid, generator=None):
    """Contexts are cut to the batch's smallest from the bottom."""
    size = masking.block_size(grid, masking.uniform(0.15, 0.2, generator), masking.uniform(0.75, 1.5, generator))
    return masking.blocks(batch, grid, size, 4, grid, 1, generator, pick=masking.first)


def context_keeps_targets(batch, grid, generator=None):
    """The targets are never taken out of the context."""
    right = masking.multiblock(batch, grid, generator=generator)
    everything = torch.arange(grid[0] * grid[1]).expand(batch, -1)
    return Masks(everything, right.targets)


def endless(batch, grid, generator=None):
    """Gives up its batch instead of drawing again when a context is empty: on small grids nothing is left."""
    size = masking.block_size(grid, 0.2, 1.0)
    index = fill(masking.place(batch, 6, grid, size, generator), grid, size)
    allowed = ~marked(index, grid[0] * grid[1])
    return Masks(masking.draw(allowed, int(allowed.sum(1).min()), generator), index)
