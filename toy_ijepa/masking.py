"""Which patches are seen and which are predicted: the multi-block masks of the paper, and four others to compare.

A mask is a pair of index tensors (row-major patch numbers), never a boolean: an index says what it picks.
"""

# Shape legend:  B images  h,w grid (patches)  N = h*w patches  M target blocks  T patches of a target block
#                K context patches

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[int, int]
Range = tuple[float, float]
Pick = Callable[[Tensor, int, torch.Generator | None], Tensor]  # allowed (B, N), size of the smallest -> (B, K)
MAX_TRIES = 100  # an image whose context came out too small is drawn again at most this often


@dataclass(frozen=True)
class Masks:
    """Patch numbers of one batch: `context` (B, K) and `targets` (B, M, T). No context patch is ever a target."""

    context: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> Masks:
        return Masks(self.context.to(device), self.targets.to(device))


def uniform(low: float, high: float, generator: torch.Generator | None) -> float:
    """One number drawn evenly from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def block_size(grid: Grid, scale: float, aspect: float) -> tuple[int, int]:
    """Rows and columns of a block that covers `scale` of the grid with height/width = `aspect`, at least 1x1."""
    h, w = grid
    rows = round((scale * h * w * aspect) ** 0.5)
    columns = round((scale * h * w / aspect) ** 0.5)
    return min(max(rows, 1), h), min(max(columns, 1), w)


def place(
    batch: int, blocks: int, grid: Grid, size: tuple[int, int], generator: torch.Generator | None, spare: int = 1
) -> Tensor:
    """Patch number of the top-left corner of each block (B, M), evenly over every place where the block fits.

    TRAP: randint's upper bound is exclusive; with `spare` = 0 the last row and column are never used.
    """
    top = torch.randint(0, grid[0] - size[0] + spare, (batch, blocks), generator=generator)
    left = torch.randint(0, grid[1] - size[1] + spare, (batch, blocks), generator=generator)
    return top * grid[1] + left


def fill(corner: Tensor, grid: Grid, size: tuple[int, int]) -> Tensor:
    """Patch numbers of blocks with these corners: (...,) -> (..., rows*columns)."""
    offset = torch.arange(size[0])[:, None] * grid[1] + torch.arange(size[1])
    return corner[..., None] + offset.flatten()


def marked(index: Tensor, patches: int) -> Tensor:
    """Boolean (B, N), True where a patch number occurs in index (B, ...)."""
    return torch.zeros(len(index), patches, dtype=torch.bool).scatter_(1, index.flatten(1), True)


def draw(allowed: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` patch numbers (B, count) of each row, evenly from where `allowed` (B, N) is True, in random order.

    TRAP: taking the first `count` instead (raster order) starves the bottom rows.
    """
    # Every allowed patch draws one of 32,768 tickets and the highest win. Four 16-bit tickets come out of each 64-bit
    # random number: drawing the numbers is what costs most here.
    B, N = allowed.shape
    ticket = torch.empty(B, -(-N // 4), dtype=torch.int64).random_(generator=generator).view(torch.int16)[:, :N]
    ticket = (ticket & 0x7FFF).masked_fill_(~allowed, -1)
    return ticket.topk(count, dim=1, sorted=False).indices


def first(allowed: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """The first `count` patch numbers (B, count) of each row in raster order: the flaw that `draw` repairs."""
    return allowed.byte().argsort(dim=1, descending=True, stable=True)[:, :count]


def check(batch: int, grid: Grid, targets: int, min_context: int | None, **ranges: Range) -> None:
    """Raise ValueError unless all counts are at least 1 and every range is 0 < low <= high (scales at most 1)."""
    if min(batch, *grid, targets, 1 if min_context is None else min_context) < 1:
        raise ValueError(
            f"cannot draw {targets} targets and a context of at least {min_context} patches for a batch of {batch} "
            f"on a {grid[0]}x{grid[1]} grid: all must be at least 1"
        )
    for name, (low, high) in ranges.items():
        top = 1.0 if "scale" in name else float("inf")
        if not 0 < low <= high <= top:
            raise ValueError(f"{name} {low}-{high} is not a range within (0, {top}]")


def multiblock(
    batch: int,
    grid: Grid,
    *,
    targets: int = 4,
    target_scale: Range = (0.15, 0.2),
    target_aspect: Range = (0.75, 1.5),
    context_scale: Range = (0.85, 1.0),
    min_context: int | None = None,
    generator: torch.Generator | None = None,
    pick: Pick = draw,
) -> Masks:
    """The paper's masks: `targets` blocks to predict, and one large block minus the targets as context.

    batch, grid    images B, and patches down and across (h, w)
    target_scale   share of the image a target block covers; target_aspect  its height/width, drawn independently
    context_scale  share of the image the context block covers before the targets are taken out (shape of the grid)
    min_context    an image left with fewer context patches is drawn again; default N/16, at least 1
    pick           how contexts of different sizes become rows of one tensor

    The shapes are drawn once a batch (so that blocks stack), the places once an image. Contexts are cut to the size
    of the batch's smallest by dropping patches at random, so their number depends on the batch size.
    Raises ValueError if a range is wrong or the targets leave too little context on this grid.
    Source: Assran et al. 2023, arXiv:2301.08243, section 3 and appendix A.1.
    """
    ranges = dict(target_scale=target_scale, target_aspect=target_aspect, context_scale=context_scale)
    check(batch, grid, targets, min_context, **ranges)
    size = block_size(grid, uniform(*target_scale, generator), uniform(*target_aspect, generator))
    side = uniform(*context_scale, generator) ** 0.5
    outer = max(round(grid[0] * side), 1), max(round(grid[1] * side), 1)
    least = max(grid[0] * grid[1] // 16, 1) if min_context is None else min_context
    return blocks(batch, grid, size, targets, outer, least, generator, pick=pick)


def blocks(
    batch: int,
    grid: Grid,
    size: tuple[int, int],
    targets: int,
    outer: tuple[int, int],
    least: int,
    generator: torch.Generator | None,
    spare: int = 1,
    pick: Pick = draw,
) -> Masks:
    """Place targets of `size` and a context block `outer` in every image; cut the contexts to the smallest.

    An image with fewer than `least` context patches is placed again; ValueError after MAX_TRIES.
    """
    N = grid[0] * grid[1]

    def sample(images: int) -> tuple[Tensor, Tensor]:
        index = fill(place(images, targets, grid, size, generator, spare), grid, size)  # (B, M, T)
        block = fill(place(images, 1, grid, outer, generator, spare), grid, outer)  #     (B, 1, h'*w')
        return index, marked(block, N) & ~marked(index, N)  #                             allowed (B, N)

    index, allowed = sample(batch)
    for _ in range(MAX_TRIES):
        room = allowed.sum(1)
        poor = (room < least).nonzero().flatten()
        if not len(poor):
            return Masks(pick(allowed, int(room.min()), generator), index)
        index[poor], allowed[poor] = sample(len(poor))
    raise ValueError(
        f"{targets} targets of {size[0]}x{size[1]} patches leave fewer than {least} context patches on a "
        f"{grid[0]}x{grid[1]} grid ({MAX_TRIES} draws); use fewer or smaller targets, or smaller patches"
    )


def complement(batch: int, grid: Grid, *, generator: torch.Generator | None = None, **options) -> Masks:
    """Multi-block targets with *everything else* as context (no context block); options as in `multiblock`."""
    return multiblock(batch, grid, context_scale=(1.0, 1.0), generator=generator, **options)


def single_block(
    batch: int, grid: Grid, *, target_scale: Range = (0.5, 0.6), generator: torch.Generator | None = None, **options
) -> Masks:
    """One large target block, everything else as context: the paper's "block" ablation (table 6)."""
    return complement(batch, grid, targets=1, target_scale=target_scale, generator=generator, **options)


def random(
    batch: int, grid: Grid, *, target_scale: Range = (0.6, 0.6), generator: torch.Generator | None = None
) -> Masks:
    """Scattered patches as one target "block", the others as context: the paper's "random" ablation (table 6)."""
    check(batch, grid, 1, None, target_scale=target_scale)
    N = grid[0] * grid[1]
    hidden = round(N * uniform(*target_scale, generator))
    if not 0 < hidden < N:
        raise ValueError(f"hiding {hidden} of {N} patches leaves no target or no context")
    order = torch.rand(batch, N, generator=generator).argsort(1)
    return Masks(order[:, hidden:], order[:, None, :hidden])


def released(
    batch: int,
    grid: Grid,
    *,
    targets: int = 4,
    target_scale: Range = (0.15, 0.2),
    target_aspect: Range = (0.75, 1.5),
    context_scale: Range = (0.85, 1.0),
    min_context: int = 10,
    generator: torch.Generator | None = None,
) -> Masks:
    """What the released sampler really draws, for comparison; options as in `multiblock`.

    Its three flaws are kept: one random number sets size *and* shape; corners exclude the last place, so the last row
    and column are never used; contexts are cut in raster order, so the bottom rows are starved. A fourth, the endless
    loop on small grids, becomes a ValueError. Not kept: after 20 failures the released code lets the context overlap a
    target; here the image is drawn again.
    Source: facebookresearch/ijepa, src/masks/multiblock.py, described in words and written anew.
    """
    ranges = dict(target_scale=target_scale, target_aspect=target_aspect, context_scale=context_scale)
    check(batch, grid, targets, min_context, **ranges)
    h, w = grid
    u = torch.rand((), generator=generator).item()
    scale, aspect = (low + (high - low) * u for low, high in (target_scale, target_aspect))
    size = block_size((h, w), scale, aspect)
    outer = block_size((h, w), uniform(*context_scale, generator), 1.0)
    size, outer = [(min(rows, h - 1), min(columns, w - 1)) for rows, columns in (size, outer)]
    if size[0] * size[1] <= min_context:
        raise ValueError(
            f"a target of {size[0]}x{size[1]} patches is no larger than {min_context}: here the released sampler "
            f"would never return on this {h}x{w} grid; use `multiblock`"
        )
    return blocks(batch, grid, size, targets, outer, min_context + 1, generator, spare=0, pick=first)


STRATEGIES: dict[str, Callable[..., Masks]] = {
    "multiblock": multiblock,
    "complement": complement,
    "single_block": single_block,
    "random": random,
    "released": released,
}


def strategy(name: str) -> Callable[..., Masks]:
    """The sampler of that name; raises ValueError naming the nearest ones if there is none."""
    if name not in STRATEGIES:
        near = difflib.get_close_matches(name, STRATEGIES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown mask strategy {name!r}: {hint}choose from {', '.join(STRATEGIES)}")
    return STRATEGIES[name]
