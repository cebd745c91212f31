"""What has to go together: batch, rate, momentum, length, size, pictures. Said before a run, by the doctor after it.

One rule each, so that whoever speaks of it gives the same numbers. They are rules of thumb: what breaks one is named,
and only a rate that is far off is refused.
"""

# Shape legend:  P patch side (pixels)  D width

from __future__ import annotations

import math
import os

import torch

from full_ijepa.recipes.base import Recipe
from full_ijepa.vit import MLP_RATIOS, SIZES
from toy_ijepa.trouble import FED, starving

REFERENCE = 1e-3, 2048, 1280  # AdamW's peak rate, batch and width of the released ViT-H/14 configs
NAMED, REFUSED = 3.0, 10.0  # times that rate, scaled to the run
LEFT = 0.1  # share of the target's random start that may be left at the end
FORGETS = 50  # times that the target forgets, at its first momentum, in a run that is long enough
LOOKS = 4  # probes of a run below which the best of them says little
LARGE = ("b", "l", "h", "g")  # encoders that a CPU needs months for


def steps_of(recipe: Recipe, pictures: int) -> int:
    """Optimiser steps of the whole run. TRAP: schedules count these, never batches."""
    return max(round(recipe.epochs * pictures / recipe.batch), 1)


def rate_for(batch: int, width: int) -> float:
    """The peak rate that a batch and an encoder of some width bear: the reference's, by the root of the batch, 1/width.

    One rule for what worked at both ends: 1e-3 at batch 2048 and width 1280, and 1.5e-3 to 3e-3 at batch 64 and width
    96 (the toy; assets/results/LOG.md), for which it gives 2.4e-3.
    Source: Malladi et al. 2022, arXiv:2205.10287 (batch); Yang et al. 2022, arXiv:2203.03466 (width).
    """
    rate, reference, wide = REFERENCE
    return rate * (batch / reference) ** 0.5 * wide / width


def momentum_for(steps: int) -> float:
    """The first momentum at which a run is FORGETS times as long as the target's memory: 1/(1 - m) = steps / 50."""
    return max(1 - FORGETS / steps, 0.0)


def left_of(momentum: tuple[float, float], steps: int) -> float:
    """Share of the target's random start that is left after a run: the product of all its momenta."""
    each = torch.linspace(*momentum, steps + 1, dtype=torch.float64)[:-1]
    return each.log().sum().exp().item()


def parameters_of(encoder: str, patch: int) -> int:
    """Weights of an encoder by name: four D x D matrices and an MLP a block, biases and norms, the patch embedding."""
    width, depth, _ = SIZES[encoder]
    hidden = round(width * MLP_RATIOS.get(encoder, 4.0))
    block = 4 * width**2 + 2 * width * hidden + 9 * width + hidden
    return depth * block + (3 * patch**2 + 1) * width + 2 * width


def fed_by(pictures: int, patch: int) -> str | None:
    """The largest encoder that so many pictures feed; None if they are too few for the smallest."""
    fed = [name for name in SIZES if parameters_of(name, patch) <= FED * pictures]
    return max(fed, key=lambda name: parameters_of(name, patch), default=None)


def width_of(recipe: Recipe) -> int:
    return SIZES[recipe.encoder][0]


def refuse(recipe: Recipe) -> None:
    """Raise ValueError for a rate far above what the batch bears, unless the recipe allows it."""
    borne = rate_for(recipe.batch, width_of(recipe))
    if recipe.lr > REFUSED * borne and not recipe.allow_high_rate:
        raise ValueError(
            f"lr {recipe.lr:g} is {recipe.lr / borne:.0f} times the {borne:.1g} that batch {recipe.batch} and "
            f"ViT-{recipe.encoder.upper()} bear: give --lr {borne:.1g}, a larger batch, or --allow-high-rate"
        )


def odd(recipe: Recipe, pictures: int) -> list[str]:
    """What does not go together in a run on so many pictures, each with both numbers and what to do."""
    steps, borne, found = steps_of(recipe, pictures), rate_for(recipe.batch, width_of(recipe)), []
    named = f"batch {recipe.batch} and ViT-{recipe.encoder.upper()}"
    if recipe.lr > NAMED * borne:
        found.append(f"lr {recipe.lr:g} is {recipe.lr / borne:.1f} times the {borne:.1g} that {named} bear: lower it")
    if recipe.lr < borne / REFUSED:
        found.append(
            f"lr {recipe.lr:g} is far below the {borne:.1g} that {named} bear: little will be learned; raise it"
        )
    left = left_of(recipe.momentum, steps)
    if recipe.method == "ijepa" and left > LEFT:
        first = momentum_for(steps)
        advice = (
            f"begin at {first:.3f} at most, or train longer" if first > 0.5 else "train longer"
        )  # 0.5 is no average
        found.append(
            f"momentum {recipe.momentum[0]:g} to {recipe.momentum[1]:g} leaves {left:.0%} of the target's random start "
            f"after {steps} steps: {advice}"
        )
    if hungry := starving(parameters_of(recipe.encoder, recipe.patch), pictures):
        fed = fed_by(pictures, recipe.patch)
        advice = (
            f"take --encoder {fed}" if fed else f"{-(-parameters_of('toy', recipe.patch) // FED)} feed the smallest"
        )
        found.append(f"ViT-{recipe.encoder.upper()} of {hungry}; {advice}, or get more pictures")
    looks = recipe.epochs / recipe.probe_epochs if recipe.probe_epochs else LOOKS
    if looks < LOOKS:
        found.append(
            f"probe_epochs {recipe.probe_epochs:g} looks {math.ceil(looks)} times in {recipe.epochs:g} epochs: too "
            f"seldom to tell the best checkpoint from the last; give --probe-epochs {recipe.epochs / 10:.2g}"
        )
    return found


def missing_gpu(recipe: Recipe, pictures: int, device: torch.device) -> str:
    """ "" or that a recipe made for GPUs meets a CPU, and how long it will take (which takes seconds to find out)."""
    reasons = [f"ViT-{recipe.encoder.upper()}"] if recipe.encoder in LARGE else []
    reasons += ["compile"] if recipe.compile else []
    reasons += [recipe.precision] if recipe.precision in ("bf16", "fp16") else []
    if device.type == "cuda" or not reasons:
        return ""
    from full_ijepa import cost  # it asks the training loop, which asks here

    rate = cost.matmul_rate(cost.precision_of(recipe, device), 512, "cpu")
    count = steps_of(recipe, pictures) * recipe.batch * cost.flops_per_image(recipe).hardware
    return (
        f"no GPU: this recipe is made for one ({', '.join(reasons)}) and will take about "
        f"{cost.span(count / (cost.SHARE * rate))} on this CPU; the recipe smoke is a CPU's"
    )


def workers_advice(recipe: Recipe) -> str:
    """What to do about a step that waits for its pictures."""
    cores = os.cpu_count() or 1
    more = (
        f"--workers {cores} (now {recipe.workers}; this machine has {cores} cores); " if recipe.workers < cores else ""
    )
    sides = "x".join(map(str, dict.fromkeys(recipe.sides)))
    return f"{more}pictures stored no larger than {sides} px, on a disk of this machine"


def table(recipe: Recipe, pictures: int) -> str:
    """Batch, rate, steps and first momentum that go together for a recipe's encoder, epochs and pictures, as text."""
    lines = [f"{'batch':>8}{'lr about':>12}{'steps':>12}   momentum from"]
    for factor in (0.25, 0.5, 1, 2, 4):
        batch = max(round(factor * recipe.batch), 1)
        steps = steps_of(recipe.replace(batch=batch, micro_batch=batch, regulariser=(0.0, 0.0)), pictures)
        rate, momentum = rate_for(batch, width_of(recipe)), momentum_for(steps)
        lines.append(f"{batch:8}{rate:12.1e}{steps:12,}   {momentum:.4f}")
    return "\n".join(
        [*lines, f"{'this run':>8}{recipe.lr:12.1e}{steps_of(recipe, pictures):12,}   {recipe.momentum[0]:.4f}"]
    )
