"""The target encoder follows the context encoder as an exponential moving average (EMA) of its weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move `target` a little towards `online`, in place:  t <- m*t + (1-m)*o.

    momentum  in [0, 1]; 1.0 freezes the target, 0.0 copies. The average remembers about 1/(1-m) updates.
    Call it after the optimiser step, once per step (not once per batch when gradients are accumulated).
    TRAP: `t.mul(m).add(o)` without the underscores returns new tensors and leaves the target as it was; half of it
    (`t.mul_(m)` then `.add`) makes the target decay to zero while the loss falls.
    Raises ValueError if momentum is out of range or the parameter names or shapes differ.
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"EMA momentum {momentum} is not in [0, 1]")
    ours, theirs = dict(target.named_parameters()), dict(online.named_parameters())
    if {n: p.shape for n, p in ours.items()} != {n: p.shape for n, p in theirs.items()}:
        odd = sorted(ours.keys() ^ theirs.keys()) or [n for n in ours if ours[n].shape != theirs[n].shape]
        raise ValueError(f"target and online encoder differ in {len(odd)} parameters, first {odd[0]!r}")
    # One call for all tensors instead of a Python loop over many small ones.
    torch._foreach_lerp_(list(ours.values()), [theirs[name] for name in ours], 1.0 - momentum)
