"""Groups: nothing leaks, nothing is lost but what has to be, and no row is starved."""

from __future__ import annotations

import pytest
import torch

from full_ijepa import masking
from toy_ijepa.masking import first, multiblock

GRID = (9, 14)


@pytest.mark.parametrize("groups", [1, 2, 4, 50])
@pytest.mark.parametrize("name", ["multiblock", "complement", "single_block", "random", "released"])
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
