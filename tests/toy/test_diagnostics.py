from __future__ import annotations

import pytest
import torch

from toy_ijepa.diagnostics import effective_rank, feature_std, health, position_share


def test_rank_counts_the_directions_that_vary(rng):
    x = torch.zeros(500, 12)
    x[:, :4] = torch.randn(500, 4)
    assert effective_rank(x) == pytest.approx(4.0, abs=0.1)
    assert effective_rank(torch.ones(10, 3)) == 1.0


def test_position_share_separates_place_from_content(rng):
    place, content = torch.randn(1, 30, 8), torch.randn(200, 30, 8)
    assert position_share(place.expand(200, -1, -1)) == pytest.approx(1.0)
    assert position_share(content) < 0.02
    assert position_share(place + content) == pytest.approx(0.5, abs=0.05)


def test_collapse_is_named_and_health_is_not(rng):
    assert health(torch.randn(100, 5, 16)).warnings() == {}
    assert set(health(torch.ones(100, 5, 16)).warnings()) == {"std", "rank"}
    one_direction = torch.randn(100, 1, 1) * torch.ones(1, 5, 16)  # std looks healthy, rank does not
    assert feature_std(one_direction.mean(1)) > 0.5
    assert set(health(one_direction).warnings()) == {"rank"}
