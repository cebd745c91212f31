"""Three numbers that tell learning from collapse. A falling loss tells nothing."""

# Shape legend:  B images  N tokens  D width  S samples

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOW_STD = 0.1  # pooled features of a layer-normed encoder: a healthy toy stays above 0.2
LOW_RANK = 2.0  # a random encoder has about 3


def feature_std(features: Tensor) -> float:
    """Mean over channels of the std over samples (S, D): 0 when all samples look the same."""
    return features.float().std(0).mean().item()


def effective_rank(features: Tensor) -> float:
    """exp(entropy) of the covariance's spectrum of features (S, D): between 1 and min(S - 1, D).

    The number of directions that carry variance; collapse that leaves the std healthy shows here.
    Source: Roy & Vetterli 2007, "The effective rank", taken on eigenvalues (variances).
    """
    x = features.float() - features.float().mean(0)
    if not x.isfinite().all():
        return math.nan
    variance = torch.linalg.svdvals(x).square()
    if variance.sum() <= 1e-12:
        return 1.0
    p = variance / variance.sum()
    return torch.special.entr(p).sum().exp().item()


def position_share(tokens: Tensor) -> float:
    """Share in [0, 1] of the variance of tokens (B, N, D) that is explained by *where* the token is.

    1 means that every image gives the same map: the predictor can be right without looking.
    """
    x = tokens.float()
    total = x.var((0, 1), correction=0).sum()
    return (x.mean(0).var(0, correction=0).sum() / total.clamp_min(1e-12)).item()


@dataclass(frozen=True)
class Health:
    """Diagnostics of token features (B, N, D): std and effective rank after pooling, and the share of position."""

    std: float
    rank: float
    position: float

    def warnings(self, regulariser: str = "--method ijepa-vc") -> dict[str, str]:
        """What looks like collapse ("std", "rank") and what to try; empty when nothing does.

        regulariser  how it is asked for where this is said
        """
        found = {}
        if self.std < LOW_STD:
            found["std"] = (
                f"features collapse: std {self.std:.3f} (below {LOW_STD}). Check that no gradient reaches the target "
                "encoder and that it follows slowly (momentum well above 0)"
            )
        if self.rank < LOW_RANK:
            found["rank"] = (
                f"features lose rank: effective rank {self.rank:.1f} (below {LOW_RANK}). Try a higher momentum, a "
                f"lower learning rate, or the regulariser ({regulariser})"
            )
        return found


def health(tokens: Tensor) -> Health:
    """Diagnostics of token features (B, N, D)."""
    pooled = tokens.float().mean(1)  # (B, D)
    return Health(feature_std(pooled), effective_rank(pooled), position_share(tokens))
