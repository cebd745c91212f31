"""Learning rate, weight decay and momentum as functions of how much of the run is done."""

# `progress` is the share of the run that is done, in [0, 1]: optimiser steps taken / steps planned (or seconds, in a
# run given minutes).
# TRAP: count optimiser steps, never batches; with accumulation the two differ and a schedule in batches ends early.

from __future__ import annotations

import math


def linear(progress: float, start: float, end: float) -> float:
    """From start to end in a straight line."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def cosine(progress: float, start: float, end: float) -> float:
    """From start to end along half a cosine: slow, fast, slow.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, section 3.
    """
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def warmup_cosine(progress: float, peak: float, warmup: float, start: float = 0.0, end: float = 0.0) -> float:
    """Linear from start to peak during the first `warmup` share of the run, then cosine to end.

    Raises ValueError unless 0 <= warmup < 1.
    """
    if not 0.0 <= warmup < 1.0:
        raise ValueError(f"warm-up {warmup} is not a share of the run in [0, 1)")
    if progress < warmup:
        return linear(progress / warmup, start, peak)
    return cosine((progress - warmup) / (1.0 - warmup), peak, end)


SHAPES = {"linear": linear, "cosine": cosine}


def momentum_at(progress: float, start: float, end: float, shape: str = "linear") -> float:
    """EMA momentum: from start to end, "linear" as released for I-JEPA or "cosine" as in BYOL.

    Choose the start from the length of the run: the target remembers about 1/(1-m) steps.
    Raises ValueError if either end is outside [0, 1] or the shape is unknown.
    """
    if not (0.0 <= start <= 1.0 and 0.0 <= end <= 1.0):
        raise ValueError(f"EMA momentum {start} -> {end} is not within [0, 1]")
    if shape not in SHAPES:
        raise ValueError(f"unknown momentum schedule {shape!r}: choose from {', '.join(SHAPES)}")
    return SHAPES[shape](progress, start, end)
