"""Muon, with matrices of one shape taken together, and on processors that cannot multiply bf16 in fp32."""

# Shape legend:  S matrices of one shape, each (R, C): rows, columns

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

COEFFICIENTS = 3.4445, -4.775, 2.0315  # of a polynomial that takes singular values from (0, 1] to about 1
STEPS = 5


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """(S, R, C) with the same singular vectors and singular values near 1, computed in `dtype`.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (Newton-Schulz iteration).
    """
    a, b, c = COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices.to(dtype) if wide else matrices.to(dtype).mT  # the short side first: smaller products
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class Muon(torch.optim.Muon):
    """torch's Muon with Nesterov momentum and steps of AdamW's size: all matrices of one shape in one product.

    dtype  what matrices are orthogonalised in
    TRAP: torch's own does it in bf16 on any machine; a processor that cannot multiply bf16 emulates it, 15 times as
    slow as fp32 (assets/results/LOG.md).
    Source: Jordan et al. 2024, "Muon"; Liu et al. 2025, arXiv:2502.16982, for the step size that suits AdamW's rate.
    """

    def __init__(self, params, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(params, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None):
        """One optimiser step; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params, grads, averages = [], [], []
            self._init_group(group, params, grads, averages)
            if not params:
                continue
            torch._foreach_lerp_(averages, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, averages, group["momentum"])  # Nesterov: one step ahead
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            alike = defaultdict(list)
            for p, update in zip(params, updates, strict=True):
                alike[p.shape].append((p, update))
            for shape, pairs in alike.items():
                found = orthogonalise(torch.stack([update for _, update in pairs]), self.dtype)
                rate = 0.2 * max(shape) ** 0.5 * group["lr"]
                for (p, _), update in zip(pairs, found, strict=True):
                    p.add_(update, alpha=-rate)
        return loss
