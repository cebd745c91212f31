"""Blocks of patches as people draw them: [top, left, rows, columns], and the index tensors that the model wants."""

# Shape legend:  C channels  H,W pixels  S pictures  h,w grid (patches)  N = h*w patches  K context patches  T hidden

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toy_ijepa.encoder import Encoder
from toy_ijepa.masking import Grid, Masks
from toy_ijepa.patches import grid_size

Block = tuple[int, int, int, int]


def check_images(images: Tensor, number: int, encoder: Encoder | None = None) -> None:
    """Raise ValueError unless images are uint8 (S, 3, H, W), of the encoder's size if given, and `number` is one."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"pictures of type {images.dtype} and shape {tuple(images.shape)}: uint8 (S, C, H, W) needed")
    if not 0 <= number < len(images):
        raise ValueError(f"picture {number} is not one of the {len(images)}, which are numbered from 0")
    if encoder is not None and grid_size(tuple(images.shape[2:]), encoder.patch) != encoder.grid:
        H, W = (side * encoder.patch for side in encoder.grid)
        raise ValueError(f"pictures of {images.shape[2]}x{images.shape[3]} px for an encoder of {H}x{W} px")


def check_block(block: Sequence[int], grid: Grid) -> None:
    """Raise ValueError unless the block has at least one patch and lies within the grid."""
    top, left, rows, columns = block
    if min(rows, columns) < 1:
        raise ValueError(f"a block of {rows}x{columns} patches is none: at least 1x1")
    if min(top, left) < 0 or top + rows > grid[0] or left + columns > grid[1]:
        raise ValueError(
            f"a block of {rows}x{columns} patches at row {top}, column {left} does not fit into {grid[0]}x{grid[1]} "
            "patches (rows and columns count from 0)"
        )


def covered(blocks: Sequence[Sequence[int]], grid: Grid) -> Tensor:
    """Boolean (h, w), True where at least one of the blocks lies. Raises ValueError as `check_block`."""
    hidden = torch.zeros(grid, dtype=torch.bool)
    for block in blocks:
        check_block(block, grid)
        top, left, rows, columns = block
        hidden[top : top + rows, left : left + columns] = True
    return hidden


def masks_of(hidden: Tensor, seen: Tensor) -> Masks:
    """Two boolean maps (h, w), True where hidden and where seen, as one target row (1, 1, T) and a context (1, K).

    Blocks of different sizes do not stack into (B, M, T); their union is one row of targets, which the predictor
    takes like any other.
    """
    return Masks(seen.flatten().nonzero().flatten()[None], hidden.flatten().nonzero().flatten()[None, None])
