"""How evenly a mask strategy uses the picture, counted over many draws, and the flaws of the released sampler."""

# Shape legend:  h,w grid (patches)  N = h*w patches  T patches of a target block

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from toy_ijepa.masking import Grid, marked, strategy

DRAWS = 1000
ALL = ("targets", "target_scale", "target_aspect", "context_scale")
ACCEPTS = {
    "multiblock": ALL,
    "complement": ALL[:3],
    "single_block": ALL[1:3],
    "random": ALL[1:2],
    "released": ALL,
}
VERSIONS = {"multiblock": "as the paper says", "released": "released code"}
Options = tuple[tuple[str, object], ...]


@lru_cache(maxsize=64)
def usage(name: str, grid: Grid, options: Options, batch: int, draws: int = DRAWS) -> Tensor:
    """How often (%) each patch is target, context and neither: (3, h, w), over `draws` masks in batches of `batch`."""
    N, g, counts = grid[0] * grid[1], torch.Generator().manual_seed(0), 0
    for done in range(0, draws, batch):
        drawn = strategy(name)(batch, grid, generator=g, **dict(options))
        rows = slice(0, draws - done)  # of the last batch only as many as are still asked for
        counts = counts + torch.stack([marked(index[rows], N).sum(0) for index in (drawn.targets, drawn.context)])
    share = 100.0 * counts / draws  #                                         (2, N)
    return torch.cat([share, 100.0 - share.sum(0, keepdim=True)]).reshape(3, *grid)


@lru_cache(maxsize=64)
def shapes(name: str, grid: Grid, options: Options, draws: int = DRAWS) -> frozenset[tuple[int, int]]:
    """The different (rows, columns) of target blocks in `draws` batches; a batch's blocks share theirs."""
    g, found = torch.Generator().manual_seed(0), set()
    for _ in range(draws):
        block = strategy(name)(1, grid, generator=g, **dict(options)).targets[0, 0]  # (T,), in raster order
        first, last = int(block[0]), int(block[-1])
        found.add((last // grid[1] - first // grid[1] + 1, last % grid[1] - first % grid[1] + 1))
    return frozenset(found)


@dataclass(frozen=True)
class Flaws:
    """Three numbers that tell the samplers apart.

    edge    how often (%) a patch of the last row or column is used at all, as target or context; mean over them
    shapes  different shapes of target blocks in 1,000 draws
    upper, lower  how often (%) a patch is context in the upper and lower half of the rows that are ever used
    """

    edge: float
    shapes: int
    upper: float
    lower: float


def flaws(name: str, grid: Grid, options: Options, batch: int, draws: int = DRAWS) -> Flaws:
    """Measure a sampler with block-shaped targets. Raises ValueError where it cannot draw."""
    share = usage(name, grid, options, batch, draws)
    used, context = share[0] + share[1], share[1]
    edge = torch.cat([used[-1], used[:-1, -1]]).mean().item()
    rows = (used.sum(1) > 0).nonzero().flatten()
    half = max(len(rows) // 2, 1)
    upper, lower = context[rows[:half]].mean().item(), context[rows[-half:]].mean().item()
    return Flaws(edge, len(shapes(name, grid, options, draws)), upper, lower)
