"""Models and updates with one flaw each; same interface as the right ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from toy_ijepa.encoder import Encoder, gather_tokens
from toy_ijepa.jepa import IJEPA
from toy_ijepa.predictor import Predictor


class MasksAfterwards(Encoder):
    """Encodes the whole image and picks the context tokens at the end: they have already seen the targets."""

    def forward(self, images, keep=None):
        x = super().forward(images)
        return x if keep is None else gather_tokens(x, keep)


class ShiftedByOne(Encoder):
    """Indices as if a class token stood first: every patch is its neighbour."""

    def forward(self, images, keep=None):
        N = self.grid[0] * self.grid[1]
        return super().forward(images, None if keep is None else (keep + 1) % N)


class PaddingAttention(nn.Module):
    """Wraps an attention and hides half of the keys: a boolean mask used the wrong way round."""

    def __init__(self, right):
        super().__init__()
        self.right = right

    def forward(self, x):
        q, k, v = self.right.split(x)
        real = torch.arange(x.shape[1]) < x.shape[1] // 2  # True = attend, but meant as "True = padding"
        return self.right.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=real[None]).transpose(1, 2).flatten(2))


class CausalPredictor(Predictor):
    """Each token attends only to those before it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for block in self.blocks:
            block.attn.forward = lambda x, attn=block.attn: attn.proj(
                F.scaled_dot_product_attention(*attn.split(x), is_causal=True).transpose(1, 2).flatten(2)
            )


class PlacelessPredictor(Predictor):
    """Mask tokens without positions: every target gets the same answer."""

    def forward(self, context, context_idx, target_idx):
        B, M, T = target_idx.shape
        seen = self.embed(context) + self.pos_embed[context_idx]
        asked = self.mask_token.expand(B, M * T, -1)
        x = torch.cat([seen, asked], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.proj(self.norm(x[:, seen.shape[1] :])).reshape(B, M, T, -1)


class BlindTeacher(IJEPA):
    """The target encoder sees only the patches it has to name, not the image around them."""

    def targets(self, images, target_idx):
        with torch.no_grad():
            B, M, T = target_idx.shape
            x = self.target(images, target_idx.flatten(1))
            return F.layer_norm(x, x.shape[-1:]).reshape(B, M, T, -1)


class GradientsToTarget(IJEPA):
    """No stop-gradient and no average: the target is the context encoder itself, so both can agree on nothing."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.target = self.encoder

    def targets(self, images, target_idx):
        B, M, T = target_idx.shape
        return gather_tokens(self.encoder(images), target_idx.flatten(1)).reshape(B, M, T, -1)

    def after_step(self, progress):
        return 0.0


@torch.no_grad()
def half_in_place(target, online, momentum):
    """`.add` for `.add_`: the target decays to zero and the loss falls."""
    for t, o in zip(target.parameters(), online.parameters(), strict=True):
        t.mul_(momentum).add(o, alpha=1 - momentum)


@torch.no_grad()
def swapped(target, online, momentum):
    """The two weights exchanged: a momentum of 0.99 nearly copies."""
    for t, o in zip(target.parameters(), online.parameters(), strict=True):
        t.mul_(1 - momentum).add_(o, alpha=momentum)


def mean_for_std(weight):
    """`trunc_normal_`'s second argument is the mean."""
    return nn.init.trunc_normal_(weight, 0.06)
