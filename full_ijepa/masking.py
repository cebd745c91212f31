"""Masks of a micro-batch, drawn on the host ahead of the step: the toy's strategies and one more at scale.

The contexts of a batch differ in size: targets overlap each other and stick out of the context block more or less. One
tensor needs one size. There are five ways out; a recipe chooses among the last three (`contexts`):

- cut all to the smallest, in raster order (released code): the lower rows are starved
- pad to the largest: nothing lost, but attention needs a mask, and with it leaves its fastest kernel
- *cut* all to the smallest, at random (the toy): unbiased, but the larger the batch the less context is left
- *groups*: sort the images by the size of their context, cut the batch into a few groups, and cut at random to the
  smallest of each group; every group is a plain dense tensor
- *packed*: one after the other in one tensor, nothing lost and nothing padded; attention is told where each ends

Measured for 64 images of 14 x 14 patches (`python -m full_ijepa.bench masks`, assets/results/bench-masks.json): one cut
keeps 68 % of the context, four groups 92 %, eight 96 %. A kept patch costs the same in four groups as in one, and 1.4
times as much with padding and an attention mask.

Sizes of blocks are drawn for an optimiser step, places for a micro-batch: all processes of a step have equal work.
"""

# Shape legend:  B images  N patches  M target blocks  T patches of a block  K context patches
#                J sequences of packed tokens  Z all of their tokens

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from inspect import signature
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from full_ijepa.packing import Sequences, sequences
from full_ijepa.recipes.base import FIXED
from toy_ijepa import masking as toy
from toy_ijepa.masking import MAX_TRIES, Grid, Masks, Range, block_size, fill, marked, uniform
from toy_ijepa.recipe import lookup

UNEVEN = ("multiblock", "complement", "single_block")  # strategies whose contexts differ in size within a batch
NOTHING = -1  # fills up the rows of contexts that are not cut
AHEAD = 3  # micro-batches whose masks are drawn before their step
RANGES = ("target_scale", "target_aspect", "context_scale")  # options from which sizes of blocks are drawn


def keep_all(allowed: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """All patch numbers where `allowed` (B, N) is True in random order, filled up with NOTHING: (B, largest)."""
    # TRAP: `draw` gives a random subset, but it need not be in random order; cutting such a row may starve the bottom.
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
        size, outer = small_sizes(grid, **ranges, generator=generator)
        seen, hidden = places(grid, outer), places(grid, size)  #                (outer places, K) and (places, T)
        apart = marked(seen, N).float() @ marked(hidden, N).float().T == 0  #               (outer places, places)
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


def small_sizes(
    grid: Grid, target_scale: Range, target_aspect: Range, context_scale: Range, generator: torch.Generator | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the targets and of the context of `small_context`."""
    size = block_size(grid, uniform(*target_scale, generator), uniform(*target_aspect, generator))
    side = uniform(*context_scale, generator) ** 0.5
    return size, (max(round(grid[0] * side), 1), max(round(grid[1] * side), 1))


def has_room(grid: Grid, size: tuple[int, int], outer: tuple[int, int]) -> bool:
    """Whether a context of `outer` in a corner leaves room for a target of `size`."""
    return grid[0] - outer[0] >= size[0] or grid[1] - outer[1] >= size[1]


def at_one_size(name: str, grid: Grid, options: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """Options of a strategy with each range narrowed to one number: all masks drawn with them have the same sizes.

    The numbers are drawn as the strategy draws them. Raises ValueError for an unknown strategy.
    """
    own = signature(lookup(STRATEGIES, name, "mask strategy")).parameters
    known = {key: multiblock_range(key) for key in RANGES if key not in FIXED[name]}
    known |= {key: own[key].default for key in RANGES if key in own} | options
    ranges = {key: known[key] for key in RANGES if key in known}
    for _ in range(MAX_TRIES):
        found = {key: uniform(*ends, generator) for key, ends in ranges.items()}
        if name == "released":  # one random number sets size and shape
            (low, high), (narrow, wide) = ranges["target_scale"], ranges["target_aspect"]
            share = (found["target_scale"] - low) / (high - low) if high > low else 0.0
            found["target_aspect"] = narrow + (wide - narrow) * share
        narrowed = {key: (value, value) for key, value in found.items()}
        if name != "small_context" or has_room(grid, *small_sizes(grid, **narrowed, generator=generator)):
            break
    return options | narrowed


def multiblock_range(key: str) -> Range:
    """The paper's range, which strategies have that do not say their own."""
    return signature(toy.multiblock).parameters[key].default


def sample(
    name: str, batch: int, grid: Grid, generator: torch.Generator, groups: int = 1, **options: Any
) -> list[tuple[Tensor, Masks]]:
    """Masks of a batch, in at most `groups` groups of similar context size.

    options  keyword arguments of the strategy (`Recipe.mask_options`)
    Each group is (numbers of its images, their masks); the groups together hold every image once.
    Raises ValueError as the strategy does.
    """
    strategy = lookup(STRATEGIES, name, "mask strategy")
    if groups == 1 or name not in UNEVEN:
        return [(torch.arange(batch), strategy(batch, grid, generator=generator, **options))]
    return grouped(strategy(batch, grid, generator=generator, pick=keep_all, **options), groups)


def grouped(masks: Masks, groups: int) -> list[tuple[Tensor, Masks]]:
    """Split masks whose contexts are filled up with NOTHING into groups, each cut to its smallest context.

    Contexts are in random order, so that cutting a row is dropping at random.
    """
    room, order = (masks.context != NOTHING).sum(1).sort(descending=True)
    rooms = room.tolist()  # shapes have to be known to the host: masks are drawn there
    found, end = [], 0
    for rows in order.tensor_split(min(groups, len(rooms))):
        end += len(rows)
        found.append((rows, Masks(masks.context[rows, : rooms[end - 1]], masks.targets[rows])))
    return found


class Group(NamedTuple):
    """Images of a micro-batch whose contexts have one size: all of them, or one of a few groups.

    rows  (b,) their numbers in the micro-batch; context (b, K) and targets (b, M, T) as in `Masks`
    kept  (depth, b) what each block of the encoder counts for an image (`vit.draw_kept`); None: each counts once
    """

    rows: Tensor
    context: Tensor
    targets: Tensor
    kept: Tensor | None = None


class Packed(NamedTuple):
    """A micro-batch whose contexts lie one after the other in one tensor, none cut.

    context  (Z,) number of each context token among all B * N tokens of the micro-batch: image * N + patch
    seen     the B sequences of the context encoder, and filler
    targets  (B, M, T) as in `Masks`
    order    (Z',) where each token of the predictor comes from: below Z from the context, Z and above from the targets
    asked    the predictor's sequences, one a target block or one an image, and filler
    answers  (B * M * T,) numbers of the target tokens among the Z' of the predictor
    kept     (depth, J) as in `Group`, a column a sequence of `seen`
    """

    context: Tensor
    seen: Sequences
    targets: Tensor
    order: Tensor
    asked: Sequences
    answers: Tensor
    kept: Tensor | None = None


Drawn = list[Group] | Packed  # finished masks: all that is random about a micro-batch but its crops


def packed(masks: Masks, patches: int, joint: bool, multiple: int = 1, kept: Tensor | None = None) -> Packed:
    """Pack masks whose contexts may be filled up with NOTHING.

    patches   N of the grid
    joint     whether the predictor has all target blocks of an image in one sequence, or each alone
    multiple  Z becomes a multiple of it, Z' of it times the predictor's sequences an image
    kept      (depth, B) as in `Group`
    """
    there = masks.context != NOTHING
    B, M, T = masks.targets.shape
    room = there.sum(1)  #                                                                (B,)
    seen = sequences(room, multiple)
    numbers = masks.context + patches * torch.arange(B)[:, None]
    context = F.pad(numbers[there], (0, len(seen.number) - int(room.sum())))  #           (Z,) filler is token 0

    each = 1 if joint else M  # sequences of an image
    rows = torch.arange(B).repeat_interleave(each)  #                                     (B * each,) image of each
    length = M * T // each  # target tokens of a sequence
    asked = sequences(room[rows] + length, multiple * each)
    first = asked.ends[: len(rows), None] + room[rows, None]  #                           first target token of each
    answers = (first + torch.arange(length)).flatten()  #                                 (B * M * T,)
    number = asked.number.clamp(max=len(rows) - 1)
    order = seen.ends[rows[number]] + asked.place  #                                      right where it is context
    order[answers] = len(context) + torch.arange(B * M * T)
    order[asked.number >= len(rows)] = 0  #                                               (Z',) filler is token 0
    if kept is not None:
        kept = F.pad(kept, (0, len(seen.lengths) - B), value=1.0)
    return Packed(context, seen, masks.targets, order.long(), asked, answers.long(), kept)


def mapped(change: Callable[[Tensor], Tensor], drawn: Any) -> Any:
    """Finished masks with `change` done to each of their tensors."""
    if isinstance(drawn, Tensor):
        return change(drawn)
    if isinstance(drawn, list):
        return [mapped(change, part) for part in drawn]
    return type(drawn)(*(mapped(change, part) for part in drawn)) if isinstance(drawn, tuple) else drawn


def beside(
    batches: Iterable[tuple[Tensor, Any]],
    micros: Iterator[Any],
    draw: Callable[[Any], Drawn],
    device: torch.device,
) -> Iterator[tuple[Tensor, Drawn]]:
    """Images (B, C, H, W) of micro-batches with their finished masks on the device.

    batches  images and what else is known of each micro-batch; micros  the same micro-batches a second time
    draw     masks of one of them, on the CPU
    A thread draws AHEAD of the step. A GPU is given copies from pinned memory, and nobody waits for it.
    """
    gpu = device.type == "cuda"
    prepared = (lambda micro: mapped(Tensor.pin_memory, draw(micro))) if gpu else draw
    waiting: deque[Future[Drawn]] = deque()
    with ThreadPoolExecutor(1, "masks") as thread:
        for images, _ in batches:  # before the thread is there: data loaders fork their workers at the first
            waiting.extend(thread.submit(prepared, micro) for micro in islice(micros, AHEAD - len(waiting)))
            drawn = waiting.popleft().result()
            yield images, mapped(lambda x: x.to(device, non_blocking=True), drawn)
