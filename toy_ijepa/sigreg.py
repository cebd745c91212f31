"""Features that cannot collapse because they have to look normal: SIGReg, a test of random projections as a loss."""

# Shape legend:  B images  D width  V directions  f frequencies

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from toy_ijepa.encoder import Encoder
from toy_ijepa.jepa import IJEPA
from toy_ijepa.predictor import Predictor

KNOTS, REACH = 17, 5.0  # of the integral over frequencies: beyond 5 the weight exp(-t^2/2) is below 4e-6
DIRECTIONS = 256  # drawn anew for each batch; over the steps every direction has its turn
NORMAL = 1.059  # what `epps_pulley` is on average for samples that are normal, any number of them


def epps_pulley(samples: Tensor) -> Tensor:
    """How far each column of samples (B, V) is from a standard normal distribution: (V,), about 1 if it is one.

    Compares characteristic functions, the mean of exp(itz) over the samples z with the normal's exp(-t^2/2), and
    integrates B * |difference|^2 * exp(-t^2/2) over frequencies t. Every sample counts with bounded weight, and the
    gradient is defined everywhere: neither holds for a test on moments or on sorted samples.
    Source: Epps & Pulley 1983, "A test for normality based on the empirical characteristic function"; as a loss,
    Balestriero & LeCun 2025 (LeJEPA), arXiv:2511.08544, section 4.
    """
    t = torch.linspace(0, REACH, KNOTS, device=samples.device)
    angle = samples.float()[..., None] * t  #                        (B, V, f)
    normal = (-0.5 * t.square()).exp()  #                            (f,)
    gap = (angle.cos().mean(0) - normal).square() + angle.sin().mean(0).square()
    return 2 * len(samples) * torch.trapezoid(gap * normal, t)  #    (V,)  twice: negative frequencies are the same


def directions(count: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """`count` random directions of length 1: (D, V)."""
    return F.normalize(torch.randn(width, count, generator=generator), dim=0)


def sigreg(features: Tensor, generator: torch.Generator | None = None, count: int = DIRECTIONS) -> Tensor:
    """Mean of the statistic over random projections of features (B, D): least when they are standard normal in all.

    Collapse in any form (one point, one line, one circle) makes most projections far from normal.
    Source: Balestriero & LeCun 2025, arXiv:2511.08544: sketched isotropic Gaussian regularisation.
    """
    drawn = directions(count, features.shape[-1], generator).to(features.device)
    return epps_pulley(features.float() @ drawn).mean()


class SIGRegIJEPA(IJEPA):
    """Masked I-JEPA kept from collapse by SIGReg on the pooled features of the context.

    weight  of SIGReg's statistic beside the loss of prediction
    ema     whether the target encoder is a moving average, as in I-JEPA, or the encoder itself
    stop    whether gradients stop at the targets; False only without `ema`, which takes none
    Source: the loss is LeJEPA's (arXiv:2511.08544); inside masked prediction it is a question, not a published method.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: Predictor,
        *,
        weight: float = 0.05,
        ema: bool = False,
        stop: bool = True,
        **options,
    ) -> None:
        super().__init__(encoder, predictor, **options)
        if ema and not stop:
            raise ValueError("ema=True with stop=False: a moving average takes no gradient")
        self.weight, self.ema, self.stop = weight, ema, stop
        if not ema:
            self.target = self.encoder

    def targets(self, images: Tensor, target_idx: Tensor) -> Tensor:
        if self.stop:
            return super().targets(images, target_idx)
        return IJEPA.targets.__wrapped__(self, images, target_idx)  # the same, without its torch.no_grad

    def mean_loss(self, images: Tensor) -> float:
        """nan: the statistic stands in the loss, too."""
        return math.nan

    def step_loss(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The loss of prediction, and the statistic of the pooled context features: what the training loop calls."""
        masks = self.sample(len(images), self.encoder.grid, generator=generator).to(images.device)
        found = self.predict(images, masks)
        return found.loss + self.weight * sigreg(found.context.mean(1), generator)

    def after_step(self, progress: float) -> float:
        return super().after_step(progress) if self.ema else 0.0
