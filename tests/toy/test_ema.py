from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.wrong import models as wrong
from toy_ijepa.ema import ema_update
from toy_ijepa.schedules import cosine, linear, momentum_at, warmup_cosine


def pair():
    target, online = nn.Linear(3, 4), nn.Linear(3, 4)
    nn.init.constant_(target.weight, 2.0)
    nn.init.constant_(online.weight, 10.0)
    return target, online


def check_closed_form(update):
    """After n updates towards a constant: t_n = o + (t_0 - o) * m**n, in place."""
    target, online = pair()
    weight = target.weight
    for _ in range(5):
        update(target, online, 0.9)
    assert target.weight is weight
    torch.testing.assert_close(target.weight, torch.full((4, 3), 10.0 - 8.0 * 0.9**5))
    assert online.weight.eq(10.0).all()


def test_closed_form():
    check_closed_form(ema_update)
    for flawed in (wrong.half_in_place, wrong.swapped):
        with pytest.raises(AssertionError):
            check_closed_form(flawed)


def test_ends_of_the_range():
    target, online = pair()
    ema_update(target, online, 1.0)
    assert target.weight.eq(2.0).all()
    ema_update(target, online, 0.0)
    assert torch.equal(target.weight, online.weight)


@pytest.mark.parametrize("momentum", [-0.1, 1.01, float("nan")])
def test_momentum_out_of_range(momentum):
    with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
        ema_update(*pair(), momentum)


def test_different_modules_are_refused():
    with pytest.raises(ValueError, match="differ"):
        ema_update(nn.Linear(3, 4), nn.Linear(3, 5), 0.5)
    with pytest.raises(ValueError, match="bias"):
        ema_update(nn.Linear(3, 4), nn.Linear(3, 4, bias=False), 0.5)


def test_schedules_go_from_start_to_end():
    for shape in (linear, cosine):
        assert (shape(0.0, 3.0, 7.0), shape(0.5, 3.0, 7.0), shape(1.0, 3.0, 7.0)) == pytest.approx((3.0, 5.0, 7.0))
        assert shape(2.0, 3.0, 7.0) == pytest.approx(7.0)  # a step too many does no harm
    rate = [warmup_cosine(p, 2.0, 0.1, end=0.5) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert rate == pytest.approx([0.0, 1.0, 2.0, 1.25, 0.5])
    assert momentum_at(0.25, 0.96, 1.0) == pytest.approx(0.97)


def test_schedules_refuse_nonsense():
    with pytest.raises(ValueError, match="not within"):
        momentum_at(0.5, 0.9, 1.1)
    with pytest.raises(ValueError, match="unknown momentum schedule"):
        momentum_at(0.5, 0.9, 1.0, "exponential")
    with pytest.raises(ValueError, match="warm-up"):
        warmup_cosine(0.5, 1.0, 1.0)
