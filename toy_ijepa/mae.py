"""The companion that predicts pixels: a masked autoencoder (MAE) with the same encoder, data and loop."""

# Shape legend:  B images  C channels  H,W pixels  P patch side (pixels)  N = h*w patches  K visible patches
#                E decoder width

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toy_ijepa.encoder import Encoder, init_weights
from toy_ijepa.masking import random
from toy_ijepa.patches import patchify
from toy_ijepa.predictor import Predictor
from toy_ijepa.trouble import loss_of_mean


class MAE(nn.Module):
    """Hide `hidden` of the patches at random and predict their pixels from the rest.

    encoder    sees only the visible patches
    decoder    as wide and deep as I-JEPA's predictor: what is compared is the target, not the network
    hidden     share of patches hidden
    Each patch is predicted in its own mean and std: contrast and brightness come free, structure does not.
    Source: He et al. 2022, arXiv:2111.06377, section 3.
    """

    def __init__(self, encoder: Encoder, width: int, depth: int, heads: int, hidden: float = 0.75) -> None:
        super().__init__()
        if not 0.0 < hidden < 1.0:
            raise ValueError(f"MAE hides a share of the patches in (0, 1), not {hidden}")
        self.encoder = encoder
        self.decoder = Predictor(encoder.grid, encoder.width, width, depth, heads, mode="joint")
        self.decoder.proj = nn.Linear(width, encoder.patch_embed.proj.in_features)
        init_weights(self.decoder.proj)
        self.hidden = hidden

    @property
    def probed(self) -> Encoder:
        """The encoder whose features are evaluated."""
        return self.encoder

    def forward(self, images: Tensor, visible: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and true normalised pixels (B, N-K, C*P*P) of patches `hidden` (B, N-K), from `visible` (B, K)."""
        tokens = self.encoder(images, visible)  #                        (B, K, D)
        predictions = self.decoder(tokens, visible, hidden[:, None])[:, 0]
        pixels = patchify(images, self.encoder.patch)  #                 (B, N, C*P*P)
        pixels = pixels.gather(1, hidden[..., None].expand(-1, -1, pixels.shape[-1]))
        return predictions, F.layer_norm(pixels.float(), pixels.shape[-1:])

    def mean_loss(self, images: Tensor) -> float:
        """The loss of a decoder that knows places and no picture: it answers with each place's mean patch."""
        pixels = patchify(images, self.encoder.patch).float()  #         (B, N, C*P*P)
        return loss_of_mean(F.layer_norm(pixels, pixels.shape[-1:]), F.mse_loss)

    def step_loss(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error on a batch under freshly drawn masks: what the training loop calls."""
        masks = random(len(images), self.encoder.grid, target_scale=(self.hidden, self.hidden), generator=generator)
        masks = masks.to(images.device)
        predictions, pixels = self(images, masks.context, masks.targets[:, 0])
        return F.mse_loss(predictions.float(), pixels)

    def after_step(self, progress: float) -> float:
        """Nothing moves beside the optimiser; the momentum of "no target encoder" is 0."""
        return 0.0
