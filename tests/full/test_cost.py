"""FLOPs are those that the loop's own step computes, and they are the same in all processes of a step."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from full_ijepa import cost, methods
from full_ijepa.data import plan
from full_ijepa.recipes import RECIPES
from full_ijepa.recipes.base import Recipe

SMALL = Recipe(
    image_size=(24, 40), patch=4, encoder="toy", predictor_width=32, predictor_depth=2, predictor_heads=2, channels=2
)


def counted(recipe: Recipe, batch: int = 6) -> tuple[float, cost.Flops]:
    """What torch counts in a step, and what the formula says of the same masks."""
    method = methods.build(recipe)
    drawn = method.draw(batch, seed=1, sizes=2)
    # What a CPU takes without gradient, torch does not count: the target's attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        methods.Step(method)(torch.zeros(batch, 2, 24, 40), drawn).backward()
    return counter.get_total_flops(), cost.flops_of(method, drawn)


@pytest.mark.parametrize("changes", [{}, dict(predictor_mode="joint"), dict(contexts="cut"), dict(method="mae")])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_are_those_that_torch_counts(changes, checkpointing):
    total, said = counted(SMALL.replace(**changes, checkpointing=checkpointing, groups=3))
    assert total == said.hardware
    assert (said.recomputed > 0) == checkpointing


@pytest.mark.parametrize("mode", ["block", "joint"])
def test_packed_contexts_cost_what_single_images_cost(mode):
    """On a CPU attention is padded, which torch would count; images one by one have the same lengths."""
    packed, single = (
        methods.build(SMALL.replace(contexts=contexts, groups=6, predictor_mode=mode))
        for contexts in ("packed", "groups")
    )
    filled = cost.flops_of(packed, packed.draw(6, seed=1, sizes=2, multiple=64))
    assert filled == cost.flops_of(packed, packed.draw(6, seed=1, sizes=2))
    assert filled == cost.flops_of(single, single.draw(6, seed=1, sizes=2))


def test_the_mean_over_masks_is_that_of_the_loop():
    recipe = RECIPES["smoke"].replace(micro_batch=16, batch=32)
    method = methods.build(recipe)
    micros = list(plan(64, recipe, 0, 8))
    expected = sum(cost.flops_of(method, method.draw(16, m.seed, m.sizes)).model for m in micros) / (16 * len(micros))
    assert cost.flops_per_image(recipe, draws=16).model == pytest.approx(expected)


def work(recipe: Recipe, method: methods.IJEPA, processes: int, steps: int) -> list[list[float]]:
    """FLOPs of each process in each step."""
    plans = [list(plan(5000, recipe, 0, steps, rank, processes)) for rank in range(processes)]
    each = len(plans[0]) // steps
    drawn = [[method.draw(len(m.index), m.seed, m.sizes) for m in found] for found in plans]
    flops = [[cost.flops_of(method, masks).model for masks in found] for found in drawn]
    return [[sum(found[step * each : (step + 1) * each]) for found in flops] for step in range(steps)]


@pytest.mark.parametrize(("contexts", "micro"), [("packed", 64), ("groups", 64), ("groups", 16)])
def test_processes_have_equal_work(contexts, micro):
    """Sizes of blocks belong to the step: the slowest of eight processes has less than 3 % more than the mean."""
    recipe = RECIPES["stl10_vitb16"].replace(batch=512, micro_batch=micro, contexts=contexts)
    with torch.device("meta"):
        method = methods.build(recipe.replace(compile=False))
    found = work(recipe, method, processes=8, steps=6)
    slowest = sum(max(step) / (sum(step) / len(step)) for step in found) / len(found)
    assert 1.0 < slowest < 1.03
