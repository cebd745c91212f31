"""Groups: nothing leaks, nothing is lost but what has to be, and no row is starved."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch

from full_ijepa import masking
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
