"""The toy's mask strategies at scale: drawn on the device, and contexts of different sizes without padding.

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

import torch
from torch import Tensor

from toy_ijepa.masking import STRATEGIES, Grid, Masks, strategy

UNEVEN = ("multiblock", "complement", "single_block")  # strategies whose contexts differ in size within a batch
NOTHING = -1  # fills up the rows of contexts that are not cut


def keep_all(allowed: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """All patch numbers where `allowed` (B, N) is True in random order, filled up with NOTHING: (B, largest)."""
    # TRAP: `draw` gives a random subset, but on a GPU in raster order; cutting such a row starves the bottom again.
    room = allowed.sum(1)
    ticket = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1.0)
    index = ticket.argsort(dim=1, descending=True)[:, : int(room.max())]  #               (B, K), allowed ones first
    return index.masked_fill(torch.arange(index.shape[1]) >= room[:, None], NOTHING)


def sample(
    name: str, batch: int, grid: Grid, generator: torch.Generator, groups: int = 1
) -> list[tuple[Tensor, Masks]]:
    """Masks of a batch drawn on the generator's device, in at most `groups` groups of similar context size.

    Each group is (numbers of its images, their masks); the groups together hold every image once.
    Raises ValueError as the strategy does.
    """
    with generator.device:  # factory functions make their tensors there
        if groups == 1 or name not in UNEVEN:
            drawn = strategy(name)(batch, grid, generator=generator)
            return [(torch.arange(batch), drawn)]
        return grouped(STRATEGIES[name](batch, grid, generator=generator, pick=keep_all), groups)


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
