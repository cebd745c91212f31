"""What should be predicted? Features of several depths at once, and other norms than the layer norm."""

# Shape legend:  B images  N tokens  M target blocks  T patches of a block  D width

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toy_ijepa.encoder import Encoder, gather_tokens, init_weights
from toy_ijepa.jepa import IJEPA
from toy_ijepa.predictor import Predictor

# name -> what is done to a block's output (B, N, D) before it is predicted
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer": lambda x: F.layer_norm(x, x.shape[-1:]),  #  each token over its features: all tokens are equally strong
    "channel": lambda x: (x - x.mean((0, 1))) / (x.std((0, 1)) + 1e-3),  #  each feature over all tokens of the batch
    "tanh": torch.tanh,  #  bounded, but a strong token stays stronger than a faint one
    "none": lambda x: x,  #  the target's scale may drift
}


def block_outputs(encoder: Encoder, images: Tensor, last: int) -> list[Tensor]:
    """Outputs of the last `last` blocks, shallow first, (B, N, D) each, *before* the encoder's last norm.

    TRAP: `Encoder.layers` sends each through that norm, behind which all tokens are about equally strong.
    """
    x, outputs = encoder.embed(images), []
    for block in encoder.blocks:
        x = block(x)
        outputs.append(x)
    return outputs[-last:]


class DeepIJEPA(IJEPA):
    """I-JEPA that predicts the outputs of the target encoder's last `depths` blocks, concatenated.

    norm  name in NORMS, for each block's output by itself. "layer" stands behind the encoder's last norm, as in the
          plain method, which depths 1 and "layer" are; the others stand in place of it
    The last block alone is an unsteady target: it changes most while everything is still being learned. Early blocks
    change less and stay closer to the picture (chapter 13 measures both).
    Raises ValueError for an unknown norm or more depths than there are blocks.
    Source: several depths, arXiv:2603.15553; tanh in place of the norm, there with learned scales, arXiv:2508.02829.
    """

    def __init__(
        self, encoder: Encoder, predictor: Predictor, *, depths: int = 4, norm: str = "layer", **options
    ) -> None:
        super().__init__(encoder, predictor, **options)
        if norm not in NORMS:
            raise ValueError(f"unknown norm {norm!r}: choose from {', '.join(NORMS)}")
        if not 1 <= depths <= len(encoder.blocks):
            raise ValueError(f"depths {depths} is not within 1 and the encoder's {len(encoder.blocks)} blocks")
        self.depths, self.norm = depths, norm
        if depths > 1:
            self.predictor.proj = nn.Linear(predictor.proj.in_features, depths * encoder.width)
            init_weights(self.predictor.proj)

    @torch.no_grad()
    def targets(self, images: Tensor, target_idx: Tensor) -> Tensor:
        """What has to be predicted: (B, C, H, W) and (B, M, T) -> features (B, M, T, depths*D)."""
        outputs = block_outputs(self.target, images, self.depths)
        if self.norm == "layer":
            outputs = [self.target.norm(tokens) for tokens in outputs]
        x = torch.cat([NORMS[self.norm](tokens) for tokens in outputs], dim=-1)  # (B, N, depths*D)
        return gather_tokens(x, target_idx.flatten(1)).unflatten(1, target_idx.shape[1:])
