"""I-JEPA put together: context encoder, EMA target encoder, predictor, and one loss between features."""

# Shape legend:  B images  C channels  H,W pixels  N = h*w patches  K context patches  M target blocks
#                T patches of a block  D width

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toy_ijepa.ema import ema_update
from toy_ijepa.encoder import Encoder
from toy_ijepa.masking import Masks, strategy
from toy_ijepa.predictor import Predictor
from toy_ijepa.schedules import momentum_at
from toy_ijepa.trouble import loss_of_mean

LOSSES = {"smooth_l1": F.smooth_l1_loss, "l2": F.mse_loss}


@dataclass
class Output:
    """One forward pass: the scalar loss, and predictions and targets (B, M, T, D), context features (B, K, D)."""

    loss: Tensor
    predictions: Tensor
    targets: Tensor
    context: Tensor


def variance_covariance(features: Tensor) -> tuple[Tensor, Tensor]:
    """How far features (B, D) are from unit std, and how correlated their channels are; both 0 when ideal.

    Source: Bardes et al. 2022 (VICReg), arXiv:2105.04906, equations 1-4; used with I-JEPA by Mo & Tong 2024 (C-JEPA).
    """
    x = features.float() - features.float().mean(0)
    B, D = x.shape
    variance = F.relu(1.0 - (x.var(0) + 1e-4).sqrt()).mean()
    covariance = x.T @ x / (B - 1)
    covariance = (covariance.square().sum() - covariance.diagonal().square().sum()) / D
    return variance, covariance


class IJEPA(nn.Module):
    """Predict the *features* of hidden blocks from the visible rest.

    encoder    sees only the context patches; gets gradients
    target     the same encoder as an exponential moving average; sees the full image, no gradients
    predictor  context features -> features of the hidden patches
    masks      name of a strategy in `toy_ijepa.masking`
    loss       "smooth_l1" (released code, beta 1) or "l2" (paper); always a mean, so that batch and mask size do not
               act as a learning rate
    momentum   EMA momentum at the start and the end of the run; momentum_schedule  "linear" or "cosine" between
    regulariser  weights of VICReg's variance and covariance terms on the pooled context features; (0, 0), the
               default, is the plain method
    Source: Assran et al. 2023, arXiv:2301.08243, section 3.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: Predictor,
        *,
        masks: str = "multiblock",
        loss: str = "smooth_l1",
        momentum: tuple[float, float] = (0.996, 1.0),
        momentum_schedule: str = "linear",
        regulariser: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"unknown loss {loss!r}: choose from {', '.join(LOSSES)}")
        momentum_at(0.0, *momentum, momentum_schedule)
        self.encoder = encoder
        self.target = copy.deepcopy(encoder).requires_grad_(False)
        self.predictor = predictor
        self.sample = strategy(masks)
        self.loss, self.regulariser = loss, regulariser
        self.momentum, self.momentum_schedule = momentum, momentum_schedule

    @property
    def probed(self) -> Encoder:
        """The encoder whose features are evaluated: the target encoder."""
        return self.target

    @torch.no_grad()
    def targets(self, images: Tensor, target_idx: Tensor) -> Tensor:
        """What has to be predicted: (B, C, H, W) and (B, M, T) -> features (B, M, T, D).

        The target encoder sees the *full* image; each token is then normalised over its D features (no affine), so
        that the target's scale cannot drift; only then are the blocks cut out.
        """
        x = self.target(images)  #                                       (B, N, D)
        x = F.layer_norm(x, x.shape[-1:])
        B, M, T = target_idx.shape
        index = target_idx.reshape(B, M * T, 1).expand(-1, -1, x.shape[-1])
        return x.gather(1, index).reshape(B, M, T, -1)

    def forward(self, images: Tensor, masks: Masks) -> Output:
        """images (B, C, H, W), normalised; masks for the same B images."""
        found = self.predict(images, masks)
        return replace(found, loss=found.loss + self.penalty(found.context.mean(1)))

    def penalty(self, pooled: Tensor) -> Tensor | float:
        """The regulariser, weighted, on pooled context features (B, D); 0 for the plain method."""
        if not any(self.regulariser):
            return 0.0
        terms = variance_covariance(pooled)
        return sum(weight * term for weight, term in zip(self.regulariser, terms, strict=True))

    def predict(self, images: Tensor, masks: Masks) -> Output:
        """`forward` without the regulariser."""
        targets = self.targets(images, masks.targets)  #                 (B, M, T, D)
        context = self.encoder(images, masks.context)  #                 (B, K, D)
        predictions = self.predictor(context, masks.context, masks.targets)
        loss = LOSSES[self.loss](predictions.float(), targets.float())
        return Output(loss, predictions, targets, context)

    def mean_loss(self, images: Tensor) -> float:
        """The loss of a predictor that knows places and no picture: it answers with each place's mean feature.

        What a loss has to be below to mean anything, on images (B, C, H, W), two at least. nan with a regulariser,
        whose terms stand in the loss.
        """
        if any(self.regulariser):
            return math.nan
        places = self.encoder.grid[0] * self.encoder.grid[1]
        everywhere = torch.arange(places, device=images.device).expand(len(images), 1, -1)  # (B, 1, N)
        return loss_of_mean(self.targets(images, everywhere)[:, 0], LOSSES[self.loss])

    def step_loss(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The loss on a batch under freshly drawn masks: what the training loop calls."""
        return self(images, self.sample(len(images), self.encoder.grid, generator=generator).to(images.device)).loss

    def after_step(self, progress: float) -> float:
        """Move the target encoder after an optimiser step at `progress` in [0, 1]; returns the momentum used."""
        momentum = momentum_at(progress, *self.momentum, self.momentum_schedule)
        ema_update(self.target, self.encoder, momentum)
        return momentum
