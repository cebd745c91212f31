"""Groups: nothing leaks, nothing is lost but what has to be, and no row is starved."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch

from full_ijepa import masking
from full_ijepa.data import plan
from full_ijepa.methods import build
from full_ijepa.recipes.base import FIXED, MASK_OPTIONS, Recipe
from tests.toy.test_masking import check_coverage, check_every_grid, check_no_leak, check_shapes
from toy_ijepa.masking import first, multiblock

GRID = (9, 14)


@pytest.mark.parametrize("groups", [1, 2, 4, 50])
@pytest.mark.parametrize("name", masking.STRATEGIES)
def test_every_image_once_and_no_leak(name, groups, generator):
    found = masking.sample(name, 37, GRID, generator, groups)
    assert sorted(torch.cat([rows for rows, _ in found]).tolist()) == list(range(37))
    for rows, masks in found:
        assert len(masks.context) == len(masks.targets) == len(rows)
        for context, targets in zip(masks.context, masks.targets, strict=True):
            seen = context.tolist()
            assert len(set(seen)) == len(seen)
            assert set(seen) <= set(range(9 * 14))
            assert not set(seen) & set(targets.flatten().tolist())


def kept(groups: int, batch: int = 64) -> float:
    generator = torch.Generator().manual_seed(0)
    drawn = [masking.sample("multiblock", batch, (14, 14), generator, groups) for _ in range(20)]
    return sum(masks.context.numel() for found in drawn for _, masks in found) / (20 * batch)


def test_groups_keep_what_one_cut_throws_away():
    one, four, all_ = kept(1), kept(4), kept(64)
    assert one < four < all_
    assert four > 0.85 * all_ > 1.2 * one


def test_one_group_is_the_toy():
    ours = masking.sample("multiblock", 11, GRID, torch.Generator().manual_seed(5), 1)
    theirs = multiblock(11, GRID, generator=torch.Generator().manual_seed(5))
    assert torch.equal(ours[0][1].context, theirs.context)
    assert torch.equal(ours[0][1].targets, theirs.targets)


def row_profile(pick) -> torch.Tensor:
    """How often each row is context, of 14, with contexts cut to the smallest of the batch."""
    generator, count = torch.Generator().manual_seed(1), torch.zeros(14)
    for _ in range(60):
        if pick is None:
            parts = [masks.context for _, masks in masking.sample("multiblock", 64, (14, 14), generator, 4)]
        else:
            parts = [multiblock(64, (14, 14), generator=generator, pick=pick).context]
        for part in parts:
            count += torch.bincount(part.flatten() // 14, minlength=14)
    return count / count.sum()


def test_no_row_is_starved():
    """The cut in raster order, which nearly everybody has, fails this."""
    ours, raster = row_profile(None).tolist(), row_profile(first).tolist()
    assert sum(ours[-3:]) == pytest.approx(sum(ours[:3]), rel=0.1)
    assert sum(raster[-3:]) < 0.6 * sum(raster[:3])


def test_keep_all_keeps_all(generator):
    allowed = torch.rand(13, 30, generator=generator) < 0.4
    index = masking.keep_all(allowed, 0, generator)
    for row, found in zip(allowed, index, strict=True):
        assert sorted(n for n in found.tolist() if n != masking.NOTHING) == row.nonzero().flatten().tolist()
        assert (found.flip(0) == masking.NOTHING).int().cummin(0).values.sum() == len(found) - row.sum()


# A small context, whole, and targets elsewhere


@pytest.mark.parametrize("check", [check_coverage, check_shapes, check_no_leak, check_every_grid])
def test_small_contexts_are_proper_masks(check):
    check(masking.small_context)


def test_small_contexts_are_what_a_slow_loop_allows(generator):
    """On 5 x 7 with a context of 2 x 3 and targets of 3 x 3: every pair of places that are apart, and no other."""

    def block(top: int, left: int, rows: int, columns: int) -> frozenset[int]:
        return frozenset(i * 7 + j for i in range(top, top + rows) for j in range(left, left + columns))

    contexts = [block(i, j, 2, 3) for i in range(4) for j in range(5)]
    targets = [block(i, j, 3, 3) for i in range(3) for j in range(5)]
    allowed = {(c, t) for c in contexts for t in targets if not c & t}
    options = dict(targets=2, target_scale=(9 / 35, 9 / 35), target_aspect=(1.0, 1.0), context_scale=(0.2, 0.2))
    found = masking.small_context(4000, (5, 7), **options, generator=generator)
    assert found.targets.shape == (4000, 2, 9)
    seen = [frozenset(row) for row in found.context.tolist()]
    pairs = {(c, frozenset(t)) for c, row in zip(seen, found.targets.tolist(), strict=True) for t in row}
    assert pairs == allowed
    counts = [seen.count(c) for c in {c for c, _ in allowed}]
    assert max(counts) < 1.5 * min(counts), "a context lies evenly wherever it leaves room"


def test_small_context_says_where_no_room_is():
    with pytest.raises(ValueError, match=r"a context of 6x6 patches leaves no room for a target of 3x3 on a 8x8 grid"):
        masking.small_context(2, (8, 8), context_scale=(0.6, 0.6), target_scale=(0.15, 0.15), target_aspect=(1.0, 1.0))
    with pytest.raises(ValueError, match="context_scale"):
        masking.small_context(2, (8, 8), context_scale=(0.3, 0.2))


# What a recipe says about masks


def test_the_table_of_fixed_options_is_that_of_the_signatures():
    assert set(FIXED) == set(masking.STRATEGIES) == set(get_args(get_type_hints(Recipe)["masks"]))
    for name, strategy in masking.STRATEGIES.items():
        free = {option for option in MASK_OPTIONS if option not in FIXED[name]}
        values = dict(targets=2, target_scale=(0.1, 0.2), target_aspect=(1.0, 1.0), min_context=2)
        values["context_scale"] = (0.15, 0.2) if name == "small_context" else (0.9, 1.0)
        for option in MASK_OPTIONS:
            if option in free:
                strategy(2, (16, 16), **{option: values[option]})
            else:
                with pytest.raises(TypeError):
                    strategy(2, (16, 16), **{option: values[option]})


def test_options_reach_the_sampler():
    recipe = Recipe(masks="multiblock", targets=3, target_scale=(0.1, 0.1), target_aspect=(2.0, 2.0), min_context=60)
    recipe = recipe.replace(encoder="toy", image_size=112, patch=8, context_scale=(0.9, 0.9), data="shapes")
    method = build(recipe)
    assert method.mask_options == {name: getattr(recipe, name) for name in MASK_OPTIONS}
    masks = method.sample(40, (14, 14), generator=torch.Generator().manual_seed(0))
    assert masks.targets.shape == (40, 3, 6 * 3)  # sqrt(.1*196*2) = 6.3 rows, sqrt(.1*196/2) = 3.1 columns
    assert 60 <= masks.context.shape[1] <= 13 * 13 - 18


def test_what_a_strategy_has_no_choice_of_is_refused():
    with pytest.raises(ValueError, match=r"single_block always have targets 1: 4 cannot be chosen"):
        Recipe(masks="single_block", targets=4)
    with pytest.raises(ValueError, match=r"complement always have context_scale \(1.0, 1.0\): \(0.85, 1.0\)"):
        Recipe(masks="complement", context_scale=(0.85, 1.0))
    with pytest.raises(ValueError, match=r"random have no target_aspect: \(0.75, 1.5\) cannot"):
        Recipe(masks="random", target_aspect=(0.75, 1.5))
    with pytest.raises(ValueError, match="small_context have no min_context: 3"):
        Recipe(masks="small_context", min_context=3)
    assert Recipe(masks="single_block", targets=1, context_scale=(1.0, 1.0)).mask_options == {}
    with pytest.raises(ValueError, match=r"target_scale 0.3 0.2 is not a range within \(0, 1.0\]"):
        Recipe(target_scale=(0.3, 0.2))
    for name in ("targets", "min_context"):
        with pytest.raises(ValueError, match=f"{name} 0 must be at least 1"):
            Recipe(**{name: 0})
    with pytest.raises(ValueError, match="unknown mask strategy 'multi_block': did you mean 'multiblock'"):
        build(Recipe(masks="multi_block", encoder="toy", image_size=32, patch=8))


# Sizes belong to the step, places to the micro-batch


def extent(block: list[int], width: int) -> tuple[int, int]:
    """Rows and columns that a block's patches span."""
    rows, columns = [n // width for n in block], [n % width for n in block]
    return max(rows) - min(rows) + 1, max(columns) - min(columns) + 1


@pytest.mark.parametrize("name", masking.STRATEGIES)
def test_all_micro_batches_of_a_step_have_blocks_of_one_size(name):
    """Targets and context block; and steps differ, but where a strategy has one size only."""
    sizes, outers = [], []
    for step in range(12):
        options = masking.at_one_size(name, GRID, {}, torch.Generator().manual_seed(step))
        drawn = [
            masking.STRATEGIES[name](9, GRID, generator=torch.Generator().manual_seed(n), **options) for n in (1, 2)
        ]
        assert not torch.equal(drawn[0].targets, drawn[1].targets)
        found = {extent(block, 14) for masks in drawn for block in masks.targets.flatten(0, 1).tolist()}
        assert len(found) == 1 or name == "random"
        sizes.append(drawn[0].targets.shape[2])
        outers.append(options.get("context_scale"))
    assert (len(set(sizes)) > 1) == (name != "random")
    assert (len(set(outers)) == 12) == (name in ("multiblock", "released", "small_context"))


@pytest.mark.parametrize("name", masking.STRATEGIES)
def test_sizes_are_drawn_as_the_strategy_draws_them(name):
    """How many patches a target has, over many draws: the same shares whether the strategy or the step draws."""
    counts = [torch.zeros(127), torch.zeros(127)]
    for seed in range(600):
        generator = torch.Generator().manual_seed(seed)
        options = masking.at_one_size(name, GRID, {}, torch.Generator().manual_seed(seed + 7000))
        for count, how in zip(counts, ({}, options), strict=True):
            count[masking.STRATEGIES[name](1, GRID, generator=generator, **how).targets.shape[2]] += 1
    assert (counts[0] - counts[1]).abs().sum() < 0.25 * 600
    assert ((counts[0] > 30) == (counts[1] > 30)).float().mean() > 0.95


def test_the_released_sampler_keeps_its_one_number_for_size_and_shape():
    for seed in range(20):
        found = masking.at_one_size("released", GRID, {}, torch.Generator().manual_seed(seed))
        (scale, _), (aspect, _) = found["target_scale"], found["target_aspect"]
        assert (scale - 0.15) / 0.05 == pytest.approx((aspect - 0.75) / 0.75, abs=1e-9)


def test_options_are_narrowed_within_what_was_asked():
    asked = dict(target_scale=(0.3, 0.4), targets=2)
    found = masking.at_one_size("multiblock", GRID, asked, torch.Generator().manual_seed(1))
    assert 0.3 <= found["target_scale"][0] == found["target_scale"][1] < 0.4
    assert 0.85 <= found["context_scale"][0] == found["context_scale"][1] < 1.0
    assert found["targets"] == 2
    assert asked == dict(target_scale=(0.3, 0.4), targets=2)


def test_small_contexts_of_a_step_leave_room():
    """Sizes that leave none are drawn again before any place is."""
    asked = dict(context_scale=(0.2, 0.6), target_scale=(0.15, 0.3))
    refused = 0
    for seed in range(60):
        options = masking.at_one_size("small_context", (8, 8), asked, torch.Generator().manual_seed(seed))
        masking.small_context(2, (8, 8), **options, generator=torch.Generator().manual_seed(0))
        sizes = masking.small_sizes((8, 8), (0.15, 0.3), (0.75, 1.5), (0.2, 0.6), torch.Generator().manual_seed(seed))
        refused += not masking.has_room((8, 8), *sizes)
    assert refused > 3


def test_masks_are_those_of_the_plan_whoever_computes_the_step(recipe):
    """Two processes draw together what one draws; sizes are those of the step; a thread draws all in order."""
    recipe = recipe.replace(batch=16, micro_batch=4)
    method = build(recipe)

    def drawn(rank: int, processes: int) -> dict[int, list]:
        found = {}
        for micro in plan(60, recipe, 3, 5, rank, processes):
            found[micro.seed] = method.draw(len(micro.index), micro.seed, micro.sizes)
        return found

    alone, pair = drawn(0, 1), drawn(0, 2) | drawn(1, 2)
    assert alone.keys() == pair.keys()
    for seed, groups in alone.items():
        for ours, theirs in zip(groups, pair[seed], strict=True):
            assert torch.equal(ours.context, theirs.context)
            assert torch.equal(ours.targets, theirs.targets)
    shapes = [groups[0].targets.shape[2] for groups in alone.values()]
    assert len(set(shapes[:4])) == len(set(shapes[4:])) == 1
    micros = list(plan(60, recipe, 3, 5))
    images = [(torch.full((4, 1), n), micro) for n, micro in enumerate(micros)]
    found = masking.beside(iter(images), iter(micros), lambda m: method.draw(4, m.seed, m.sizes), torch.device("cpu"))
    for number, (picture, groups) in enumerate(found):
        assert picture[0, 0] == number
        assert torch.equal(groups[0].context, alone[micros[number].seed][0].context)
    assert number == 7


def test_what_goes_wrong_with_masks_is_said_where_the_step_is():
    def none(_micro):
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        next(masking.beside(iter([(torch.zeros(1), None)]), iter([None]), none, torch.device("cpu")))
