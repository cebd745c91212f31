from __future__ import annotations

import itertools
import time

import pytest
import torch

from tests.wrong import masks as wrong
from toy_ijepa import masking
from toy_ijepa.masking import STRATEGIES, multiblock, released, strategy

GRID = (11, 9)  # H != W
PROPER = ["multiblock", "complement", "single_block", "random"]


def use(sampler, grid, draws=150, batch=32):
    """How often each patch is context and target, as shares (h, w) that sum to 1, and the block shapes seen."""
    g = torch.Generator().manual_seed(3)
    context, target, shapes = torch.zeros(grid).flatten(), torch.zeros(grid).flatten(), set()
    for _ in range(draws):
        m = sampler(batch, grid, generator=g)
        context += torch.bincount(m.context.flatten(), minlength=len(context))
        target += torch.bincount(m.targets.flatten(), minlength=len(target))
        rows = m.targets[0, 0] // grid[1]
        shapes.add((len(rows.unique()), m.targets.shape[2]))
    return (context / context.sum()).reshape(grid), (target / target.sum()).reshape(grid), shapes


def check_coverage(sampler):
    """Every patch is sometimes context and sometimes target, and top is as likely as bottom, left as right."""
    for share in use(sampler, GRID)[:2]:
        assert share.min() > 0
        for axis in (0, 1):
            profile = share.sum(axis)
            torch.testing.assert_close(profile, profile.flip(0), rtol=0.15, atol=0.004)


def check_shapes(sampler):
    """Size and shape vary independently: on a fine grid one batch's blocks take many (rows, patches) pairs."""
    assert len(use(sampler, (24, 20), draws=200, batch=1)[2]) > 12


def check_no_leak(sampler):
    """No image's context holds one of its targets, no index twice, all within the grid."""
    m = sampler(16, GRID, generator=torch.Generator().manual_seed(5))
    for context, targets in zip(m.context.tolist(), m.targets.flatten(1).tolist(), strict=True):
        assert not set(context) & set(targets)
        assert len(set(context)) == len(context) > 0
        assert min(context + targets) >= 0
        assert max(context + targets) < GRID[0] * GRID[1]


def check_every_grid(sampler):
    """Something to see is left, or ValueError, on every grid from 4x4 to 32x32; at once."""
    begun = time.perf_counter()
    for grid in itertools.product(range(4, 33, 3), range(4, 33, 2)):
        try:
            m = sampler(64, grid, generator=torch.Generator().manual_seed(1))
        except ValueError:
            continue
        assert m.context.shape[1] >= 1, f"no context on {grid}"
    assert time.perf_counter() - begun < 60


@pytest.mark.parametrize("name", PROPER)
def test_proper_strategies(name):
    if name != "single_block":  # a block of half the grid always covers the middle
        check_coverage(strategy(name))
    check_no_leak(strategy(name))
    check_every_grid(strategy(name))


def test_multiblock_draws_size_and_shape_independently():
    check_shapes(multiblock)


@pytest.mark.parametrize(
    ("check", "flawed"),
    [
        (check_coverage, wrong.exclusive_corner),
        (check_shapes, wrong.one_number),
        (check_coverage, wrong.raster_cut),
        (check_no_leak, wrong.context_keeps_targets),
        (check_every_grid, wrong.endless),
        (check_coverage, released),
        (check_shapes, released),
    ],
)
def test_the_checks_reject_what_is_wrong(check, flawed):
    with pytest.raises(AssertionError):
        check(flawed)


def test_every_grid_from_4_to_32_gives_masks():
    for grid in itertools.product(range(4, 33), repeat=2):
        m = multiblock(8, grid, generator=torch.Generator().manual_seed(0))
        assert m.context.shape[1] >= 1


def test_targets_are_whole_blocks_of_the_asked_size():
    m = multiblock(5, (14, 16), targets=3, target_scale=(0.1, 0.1), target_aspect=(2.0, 2.0))
    assert m.targets.shape == (5, 3, 7 * 3)  # sqrt(.1*224*2) = 6.7 rows, sqrt(.1*224/2) = 3.3 columns
    for block in m.targets.flatten(0, 1):
        rows, columns = (block // 16).unique(), (block % 16).unique()
        assert len(rows) == 7
        assert len(columns) == 3
        assert rows.diff().eq(1).all()
        assert columns.diff().eq(1).all()


def test_context_is_one_block_minus_targets(generator):
    """One image, a context block of 30 %: a 6x9 rectangle with no holes but the targets."""
    for _ in range(50):
        m = multiblock(1, (11, 16), context_scale=(0.3, 0.3), generator=generator)  # 11*sqrt(.3), 16*sqrt(.3)
        seen = set(m.context[0].tolist())
        rows, columns = {n // 16 for n in seen}, {n % 16 for n in seen}
        assert max(rows) - min(rows) < 6
        assert max(columns) - min(columns) < 9
        box = {i * 16 + j for i in range(min(rows), max(rows) + 1) for j in range(min(columns), max(columns) + 1)}
        assert box - seen <= set(m.targets.flatten().tolist())


def test_contexts_are_cut_at_random_and_never_below_the_least(generator):
    m = multiblock(64, (14, 14), generator=generator)
    assert not torch.equal(m.context, m.context.sort(1).values)  # not raster order
    free = [multiblock(64, (8, 8), generator=generator).context.shape[1] for _ in range(20)]
    rich = [multiblock(64, (8, 8), min_context=24, generator=generator).context.shape[1] for _ in range(20)]
    assert min(rich) >= 24 > min(free)


def test_draw_is_even_over_what_is_allowed(generator):
    allowed = torch.zeros(4000, 10, dtype=torch.bool)
    allowed[:, [1, 4, 5, 8, 9]] = True
    share = torch.bincount(masking.draw(allowed, 3, generator).flatten(), minlength=10) / 4000
    assert share[~allowed[0]].eq(0).all()
    torch.testing.assert_close(share[allowed[0]], torch.full((5,), 0.6), rtol=0, atol=0.04)


def test_same_seed_same_masks():
    one, two = (multiblock(9, GRID, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one.context, two.context)
    assert torch.equal(one.targets, two.targets)


def test_released_keeps_its_flaws_but_returns():
    context, target, _ = use(released, (14, 14))
    assert target[-1].sum() == target[:, -1].sum() == 0
    assert context[:7].sum() > 2 * context[7:].sum()
    with pytest.raises(ValueError, match="would never return"):
        released(4, (6, 6))


def test_bad_input_says_what_to_do():
    with pytest.raises(ValueError, match="did you mean 'multiblock'"):
        strategy("multi_block")
    with pytest.raises(ValueError, match="smaller targets"):
        multiblock(4, (4, 4), target_scale=(1.0, 1.0), target_aspect=(1.0, 1.0))
    with pytest.raises(ValueError, match="target_scale"):
        multiblock(4, (8, 8), target_scale=(0.3, 0.2))
    for options in ({"targets": 0}, {"targets": -1}, {"min_context": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            multiblock(4, (8, 8), **options)
    with pytest.raises(ValueError, match="no target or no context"):
        strategy("random")(4, (1, 1))
    assert set(STRATEGIES) == {*PROPER, "released"}


@pytest.mark.parametrize(("batch", "limit_ms"), [(64, 1.0), (2048, 5.0)])
def test_masks_are_cheap(batch, limit_ms, generator):
    """The best of many draws, and four times the target (make bench measures it): a busy machine must not decide."""
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        multiblock(batch, (14, 14), generator=generator)
        times.append(1000 * (time.perf_counter() - begun))
    assert min(times) < 4 * limit_ms
