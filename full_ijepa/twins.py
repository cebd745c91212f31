"""Near copies among pictures: the same picture saved twice, noisy, brighter, smaller or in another format.

A picture's outline is a perceptual hash that keeps its numbers: the low frequencies of a grey thumbnail, each as loud
as the others (in photographs the lowest drown all else). Two outlines are compared by their cosine. Crops and mirror
images are other pictures to it.
"""

# Shape legend:  S pictures  C channels  H,W pixels  F = OUTLINE numbers of an outline

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE, KEPT = 16, 8  # px of the thumbnail, and frequencies kept each way: grain lies above them
COPY = 0.94  # cosine from which pictures count as copies: of 5,000 of CIFAR-10 the 7 above are copies, the next is not
OUTLINE = KEPT**2 - 1  # numbers of an outline
BLOCK = 2048  # outlines compared with so many others at a time: 16 MB, whatever the size of the set


@dataclass(frozen=True)
class Twin:
    """A picture and the most similar of those it was compared with, by their numbers, and how similar: at most 1."""

    one: int
    other: int
    likeness: float


def frequencies() -> Tensor:
    """The lowest KEPT rows of the cosine transform of SIDE numbers, (KEPT, SIDE)."""
    place, wave = torch.arange(SIDE), torch.arange(KEPT)[:, None]
    return torch.cos(torch.pi * wave * (2 * place + 1) / (2 * SIDE))


def outline(values: np.ndarray) -> np.ndarray:
    """The outline of a picture (C, H, W) of any depth: (F,), of length 1; all 0 for a picture without any."""
    grey = torch.from_numpy(np.ascontiguousarray(values)).float().mean(0, keepdim=True)
    rows = frequencies()
    waves = rows @ F.adaptive_avg_pool2d(grey, SIDE)[0] @ rows.T  #                       (KEPT, KEPT)
    wave = torch.arange(KEPT)
    waves = (waves * (wave[:, None] ** 2 + wave**2).sqrt()).flatten()[1:]  #              (F,) without the mean
    return F.normalize(waves, dim=0, eps=1e-6).numpy()


def nearest(ones: Tensor, others: Tensor, earlier: bool = False) -> tuple[Tensor, Tensor]:
    """Cosine and number of the outline in `others` (T, F) that is nearest to each of `ones` (S, F): two tensors (S,).

    earlier  both are the same set, and only those before a picture are compared with it
    """
    best, where = torch.full((len(ones),), -1.0), torch.zeros(len(ones), dtype=torch.long)
    for start in range(0, len(ones), BLOCK):
        rows = slice(start, start + BLOCK)
        for first in range(0, min(len(others), start + BLOCK) if earlier else len(others), BLOCK):
            cosines = ones[rows] @ others[first : first + BLOCK].T  #                     (BLOCK, BLOCK)
            if earlier and first == start:
                cosines = cosines.tril(-1) - torch.ones_like(cosines).triu()
            value, index = cosines.max(1)
            better = value > best[rows]
            best[rows] = torch.where(better, value, best[rows])
            where[rows] = torch.where(better, index + first, where[rows])
    return best, where


def twins(ones: Tensor, others: Tensor | None = None) -> list[Twin]:
    """Pictures whose outline (S, F) has a near copy among `others` (T, F), or among those before it; likest first.

    One line a picture, not one a pair: a thousand copies of one picture are 999 lines.
    """
    best, where = nearest(ones, ones if others is None else others, others is None)
    found = [Twin(int(i), int(where[i]), min(float(best[i]), 1.0)) for i in (best >= COPY).nonzero()[:, 0]]
    return sorted(found, key=lambda twin: -twin.likeness)
