"""A look at what was imagined: each predicted patch shown as the real patch whose feature comes nearest to it."""

# Shape legend:  B images  C channels  H,W pixels  P patch side (pixels)  N = h*w patches  M target blocks
#                T patches of a block  D width  G gallery patches

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toy_ijepa.encoder import gather_tokens
from toy_ijepa.jepa import IJEPA
from toy_ijepa.masking import Masks
from toy_ijepa.patches import normalise, patchify, unpatchify


@dataclass(frozen=True)
class Gallery:
    """Patches to show: features (G, D) of unit length around `mean` (D,), and their pixels (G, C*P*P) in [0, 1]."""

    features: Tensor
    pixels: Tensor
    mean: Tensor


@torch.no_grad()
def gallery(model: IJEPA, images: Tensor, batch: int = 250) -> Gallery:
    """Every patch of uint8 images (S, C, H, W), as the target encoder sees it inside its image.

    Use other images than those imagined, or the answer is in the gallery.
    """
    features, pixels = [], []
    for chunk in images.split(batch):
        places = torch.arange(model.encoder.pos_embed.shape[0], device=chunk.device)
        everywhere = places.expand(len(chunk), 1, -1)  #                 (S, 1, N) one "block": all
        features.append(model.targets(normalise(chunk), everywhere).flatten(0, 2))
        pixels.append(patchify(chunk.float() / 255, model.encoder.patch).flatten(0, 1))
    x = torch.cat(features)
    return Gallery(F.normalize(x - x.mean(0), dim=1), torch.cat(pixels), x.mean(0))


@torch.no_grad()
def imagine(model: IJEPA, images: Tensor, masks: Masks, shelf: Gallery) -> tuple[Tensor, Tensor]:
    """Fill the targets of uint8 images (B, C, H, W) with the gallery patches nearest to the *predicted* features.

    Returns the gallery patches (B, M, T, C*P*P) in [0, 1] and the smooth-L1 error of each predicted token (B, M, T).
    """
    x = normalise(images)
    targets = model.targets(x, masks.targets)
    context = model.encoder(x, masks.context)
    predictions = model.predictor(context, masks.context, masks.targets)  #       (B, M, T, D)
    query = F.normalize(predictions - shelf.mean, dim=-1).flatten(0, 2)
    nearest = torch.cat([(q @ shelf.features.T).argmax(1) for q in query.split(1000)])
    error = F.smooth_l1_loss(predictions, targets, reduction="none").mean(-1)
    return shelf.pixels[nearest].reshape(*masks.targets.shape, -1), error


def compose(images: Tensor, masks: Masks, patches: Tensor, patch: int, blocks: list[int]) -> Tensor:
    """Context pixels, grey elsewhere, and the imagined patches of these target blocks: (B, C, H, W) in [0, 1].

    images (B, C, H, W) uint8; patches (B, M, T, C*P*P) as from `imagine`.
    """
    pixels = patchify(images.float() / 255, patch)  #                             (B, N, C*P*P)
    canvas = torch.full_like(pixels, 0.5)
    index = masks.context[..., None].expand(-1, -1, pixels.shape[-1])
    canvas.scatter_(1, index, gather_tokens(pixels, masks.context))
    for block in blocks:
        index = masks.targets[:, block, :, None].expand(-1, -1, pixels.shape[-1])
        canvas.scatter_(1, index, patches[:, block])
    h, w = images.shape[2] // patch, images.shape[3] // patch
    return unpatchify(canvas, (h, w), images.shape[1])
