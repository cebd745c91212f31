"""What a run should say of itself: before it, whether there is anything to learn; after it, what its rows tell.

One rule each, for the toy's runs and for the doctor of full scale alike.
"""

# Shape legend:  B images  C channels  H,W pixels  N places  F numbers of what is predicted

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from toy_ijepa.patches import normalise

FLAT = 0.05  # std within a picture, where 1 is that of photographs: three grey levels
COPY = 0.97  # correlation of two outlines (8 x 8 grey squares) of copies; none of 256 CIFAR-10 pictures reaches it
ALIKE = 0.5  # share of flat pictures, or of pictures with a copy, that explains a run which learned nothing
NAMED = 0.05  # share that is named before a run; of 5,000 CIFAR-10 pictures 0.4 % have a copy by the rule above
CHUNK = 500  # pictures that are floats at a time
FED = 2500  # parameters of an encoder a picture: ViT-S on Imagenette's 9,469 (2,300) is the sparsest known to learn
STILL = 1e-4  # relative spread of a loss below which it does not move; the luck of masks alone makes hundredths
EXPLAINED = 0.02  # share of the mean predictor's loss that has to be explained away


def likeness(images: Tensor) -> tuple[float, float]:
    """Shares of flat pictures, and of pictures that have a near copy among the others, of images (B, C, H, W).

    uint8, or float and normalised. Copies are told by grey outlines of 8 x 8 squares, in which grain averages out and
    photographs differ. Of a sample of n of S pictures it sees a copy of each picture with probability n/S.
    """
    flat, outlines = [], []
    for part in images.split(CHUNK):
        part = normalise(part) if part.dtype == torch.uint8 else part
        flat.append(part.flatten(2).std(2).mean(1) < FLAT)  #                                      (b,)  nothing to see
        outlines.append(F.adaptive_avg_pool2d(part.mean(1, keepdim=True), 8).flatten(1))  #        (b, 64)
    flat = torch.cat(flat)
    outlines = torch.cat(outlines)[~flat]
    if len(outlines) < 2:
        return flat.float().mean().item(), 0.0
    outlines = F.normalize(outlines - outlines.mean(1, keepdim=True), dim=1)
    nearest = (outlines @ outlines.T).fill_diagonal_(-1).amax(1)
    return flat.float().mean().item(), (nearest > COPY).sum().item() / len(images)


def alike(flat: float, copies: float, least: float = ALIKE) -> str:
    """ "" or what is wrong with the pictures themselves, where it is wrong with more than the share `least` of them."""
    if flat > least:
        return f"{flat:.0%} of the pictures looked at are flat: nothing in them can be predicted"
    if copies > least:
        return f"{copies:.0%} of the pictures looked at have a near copy among the others, seen as 8 x 8 squares"
    return ""


def starving(parameters: int, pictures: int) -> str:
    """ "" or that an encoder has more parameters than so many pictures are known to feed."""
    if parameters <= FED * pictures:
        return ""
    return (
        f"{parameters / 1e6:.1f} M parameters on {pictures} pictures: {parameters // pictures} a picture, where up to "
        f"{FED} are known to learn"
    )


def loss_of_mean(truth: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The loss of predicting the mean over images of each place, for what has to be predicted (B, N, F).

    The mean is taken from these B images (two at least): the residuals are widened by what that makes them too small.
    """
    residual = (truth - truth.mean(0)).float() * (len(truth) / (len(truth) - 1)) ** 0.5
    return loss(residual, torch.zeros_like(residual)).item()


def still(losses: Sequence[float]) -> bool:
    """Whether a loss does not move at all in the second half of its rows (five at least)."""
    late = losses[len(losses) // 2 :]
    return len(late) > 4 and max(late) - min(late) <= STILL * abs(max(late))


def no_better(losses: Sequence[float], means: Sequence[float]) -> bool:
    """Whether the losses of late rows (five at least) are those of answering with each place's mean."""
    return len(losses) > 4 and median(losses) > (1 - EXPLAINED) * median(means)  #  False for nan: no mean is known


def best_before(values: Sequence[float]) -> int | None:
    """Where values that should rise were best, if the last is less than half of that; None if it is not."""
    if len(values) > 4 and values[-1] < 0.5 * max(values):  #  False where the last is nan
        return max(range(len(values)), key=values.__getitem__)
    return None


def doubt(share: float, count: int) -> float:
    """Two standard errors, in points, of a share of right answers among `count`."""
    share = (share * count + 1) / (count + 2)  # never 0 or 1, where the formula knows no doubt
    return 200 * math.sqrt(share * (1 - share) / count)


def fallen(values: Sequence[float], doubts: Sequence[float]) -> int | None:
    """Where a held-out probe was best, if both of the last two looks are below that by more than their doubt."""
    if len(values) < 3:
        return None
    best = max(range(len(values)), key=values.__getitem__)
    late = zip(values[-2:], doubts[-2:], strict=True)
    return best if all(value < values[best] - off for value, off in late) else None


def faults(rows: Sequence[dict[str, float]]) -> list[str]:
    """What is wrong with a run of the toy by its rows of history, as sentences; [] if nothing is."""
    if not rows:
        return []
    losses, means, ranks = ([row[name] for row in rows] for name in ("loss", "mean_loss", "rank"))
    found = []
    if still(losses):
        found.append(
            f"constant loss: {losses[-1]:.6f} in all of the second half; see whether pictures differ and whether the "
            "rate is above 0, for a loss always moves with its masks"
        )
    late = max(len(rows) // 4, 1)
    if no_better(losses[-late:], means[-late:]):
        found.append(
            f"no better than without the picture: loss {median(losses[-late:]):.4f}, where an answer that knows none "
            f"has {median(means[-late:]):.4f}; a longer run, or a higher rate"
        )
    if (best := best_before(ranks)) is not None:
        found.append(
            f"falling since step {rows[best]['step']:.0f}: effective rank {ranks[best]:.1f} there, {ranks[-1]:.1f} at "
            "the end; a shorter run, a lower rate, or the regulariser (ijepa-vc)"
        )
    return found
