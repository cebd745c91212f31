"""The toy's mask strategies and one more at scale: drawn on the device, contexts of different sizes without padding.

The contexts of a batch differ in size: targets overlap each other and stick out of the context block more or less. One
tensor needs one size. There are four ways out:

- cut all to the smallest, in raster order (released code): the lower rows are starved
- cut all to the smallest, at random (the toy): unbiased, but the larger the batch the less context is left
- pad to the largest: nothing lost, but attention needs a mask, and with it leaves its fastest kernel
- *groups* (here): sort the images by the size of their context, cut the batch into a few groups, and cut at random to
  the smallest of each group; every group is a plain dense tensor

Measured for 64 images of 14 x 14 patches (`python -m full_ijepa.bench masks`, assets/results/bench-masks.json): one cut
keeps 68 % of the context, four groups 92 %, eight 96 %. A kept patch costs the same in four groups as in one, and 1.4
times as much with padding and an attention mask.
"""

# Shape legend:  B images  N patches  M target blocks  T patches of a block  K context patches

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toy_ijepa import masking as toy
from toy_ijepa.masking import MAX_TRIES, Grid, Masks, Range, block_size, fill, marked, uniform
from toy_ijepa.recipe import lookup

UNEVEN = ("multiblock", "complement", "single_block")  # strategies whose contexts differ in size within a batch
NOTHING = -1  # fills up the rows of contexts that are not cut


def keep_all(allowed: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """All patch numbers where `allowed` (B, N) is True in random order, filled up with NOTHING: (B, largest)."""
    # TRAP: `draw` gives a random subset, but on a GPU in raster order; cutting such a row starves the bottom again.
    room = allowed.sum(1)
    ticket = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1.0)
    index = ticket.argsort(dim=1, descending=True)[:, : int(room.max())]  #               (B, K), allowed ones first
    return index.masked_fill(torch.arange(index.shape[1]) >= room[:, None], NOTHING)


def places(grid: Grid, size: tuple[int, int]) -> Tensor:
    """Patch numbers of a block of `size` at every place where it fits: (places, patches of the block)."""
    top, left = torch.arange(grid[0] - size[0] + 1), torch.arange(grid[1] - size[1] + 1)
    return fill((top[:, None] * grid[1] + left).flatten(), grid, size)


def small_context(
    batch: int,
    grid: Grid,
    *,
    targets: int = 4,
    target_scale: Range = (0.15, 0.2),
    target_aspect: Range = (0.75, 1.5),
    context_scale: Range = (0.15, 0.2),
    generator: torch.Generator | None = None,
) -> Masks:
    """One small block as context and `targets` blocks elsewhere: much is predicted from a sixth of the picture.

    Options as in `toy_ijepa.masking.multiblock`, but no target overlaps the context, which stays whole: contexts of a
    batch have one size and none is cut. The context lies evenly wherever it leaves room for a target, each target
    evenly wherever it leaves the context alone. Sizes that leave no such place are drawn again.
    Raises ValueError if a range is wrong, or if in MAX_TRIES draws no target had room beside the context.
    Source: the documentation of TorchWM (github.com/ParamThakkar123/torchwm, docs/source/jepa.md, "Masking").
    """
    ranges = dict(target_scale=target_scale, target_aspect=target_aspect, context_scale=context_scale)
    toy.check(batch, grid, targets, None, **ranges)
    N = grid[0] * grid[1]
    for _ in range(MAX_TRIES):
        size = block_size(grid, uniform(*target_scale, generator), uniform(*target_aspect, generator))
        side = uniform(*context_scale, generator) ** 0.5
        outer = max(round(grid[0] * side), 1), max(round(grid[1] * side), 1)
        seen, hidden = places(grid, outer), places(grid, size)  #                           (A, K) and (P, T)
        apart = marked(seen, N).float() @ marked(hidden, N).float().T == 0  #               (A, P)
        room = apart.any(1).nonzero().flatten()
        if len(room):
            where = room[torch.randint(len(room), (batch,), generator=generator)]  #        (B,)
            which = torch.multinomial(apart[where].float(), targets, replacement=True, generator=generator)  # (B, M)
            return Masks(seen[where], hidden[which])
    raise ValueError(
        f"a context of {outer[0]}x{outer[1]} patches leaves no room for a target of {size[0]}x{size[1]} on a "
        f"{grid[0]}x{grid[1]} grid ({MAX_TRIES} draws); use smaller ones, or masks multiblock"
    )


STRATEGIES = toy.STRATEGIES | {"small_context": small_context}


def sample(
    name: str, batch: int, grid: Grid, generator: torch.Generator, groups: int = 1, **options: Any
) -> list[tuple[Tensor, Masks]]:
    """Masks of a batch drawn on the generator's device, in at most `groups` groups of similar context size.

    options  keyword arguments of the strategy (`Recipe.mask_options`)
    Each group is (numbers of its images, their masks); the groups together hold every image once.
    Raises ValueError as the strategy does.
    """
    strategy = lookup(STRATEGIES, name, "mask strategy")
    with generator.device:  # factory functions make their tensors there
        if groups == 1 or name not in UNEVEN:
            return [(torch.arange(batch), strategy(batch, grid, generator=generator, **options))]
        return grouped(strategy(batch, grid, generator=generator, pick=keep_all, **options), groups)


def grouped(masks: Masks, groups: int) -> list[tuple[Tensor, Masks]]:
    """Split masks whose contexts are filled up with NOTHING into groups, each cut to its smallest context.

    Contexts are in random order, so that cutting a row is dropping at random.
    """
    room, order = (masks.context != NOTHING).sum(1).sort(descending=True)
    rooms = room.tolist()  # shapes have to be known to the host: the one copy from the device
    found, end = [], 0
    for rows in order.tensor_split(min(groups, len(rooms))):
        end += len(rows)
        found.append((rows, Masks(masks.context[rows, : rooms[end - 1]], masks.targets[rows])))
    return found
