from __future__ import annotations

import pytest
import torch

from tests.wrong import models as wrong
from toy_ijepa.predictor import Predictor

GRID, B, K, M, T, D = (3, 5), 2, 4, 3, 2, 16


def build(kind=Predictor, mode="block"):
    torch.manual_seed(1)
    return kind(GRID, D, width=12, depth=2, heads=3, mode=mode)


def inputs():
    torch.manual_seed(6)
    order = torch.stack([torch.randperm(15) for _ in range(B)])
    return torch.randn(B, K, D), order[:, :K], order[:, K : K + M * T].reshape(B, M, T)


def check_order_of_context_is_no_information(kind):
    """Context tokens in another order, with their places: the same predictions."""
    predictor, (context, context_idx, target_idx) = build(kind), inputs()
    turned = predictor(context.flip(1), context_idx.flip(1), target_idx)
    torch.testing.assert_close(predictor(context, context_idx, target_idx), turned)
    order = target_idx.flip(2)
    torch.testing.assert_close(
        predictor(context, context_idx, order), predictor(context, context_idx, target_idx).flip(2)
    )


@pytest.mark.parametrize("mode", ["block", "joint"])
def test_shape_and_places(mode):
    predictor, (context, context_idx, target_idx) = build(mode=mode), inputs()
    out = predictor(context, context_idx, target_idx)
    assert out.shape == (B, M, T, D)
    moved = predictor(context, (context_idx + 1) % 15, target_idx)
    assert not torch.allclose(out, moved)  # where the context stands matters


def check_each_target_gets_its_own_answer(kind):
    """The predictor is told where to look: other places, other predictions."""
    predictor, (context, context_idx, target_idx) = build(kind), inputs()
    out = predictor(context, context_idx, target_idx)
    assert (out[:, 0, 0] - out[:, 0, 1]).abs().max() > 1e-3
    assert not torch.allclose(out, predictor(context, context_idx, (target_idx + 1) % 15), atol=1e-3)


def test_each_target_gets_its_own_answer():
    check_each_target_gets_its_own_answer(Predictor)
    with pytest.raises(AssertionError):
        check_each_target_gets_its_own_answer(wrong.PlacelessPredictor)


def test_order_of_context_is_no_information():
    check_order_of_context_is_no_information(Predictor)
    with pytest.raises(AssertionError):
        check_order_of_context_is_no_information(wrong.CausalPredictor)


def test_blocks_are_predicted_alone_or_together():
    context, context_idx, target_idx = inputs()
    alone, joint = build(mode="block"), build(mode="joint")
    torch.testing.assert_close(
        alone(context, context_idx, target_idx)[:, :1], alone(context, context_idx, target_idx[:, :1])
    )
    assert not torch.allclose(
        joint(context, context_idx, target_idx)[:, :1], joint(context, context_idx, target_idx[:, :1])
    )
    torch.testing.assert_close(
        alone(context, context_idx, target_idx[:, :1]), joint(context, context_idx, target_idx[:, :1])
    )


def test_unknown_mode():
    with pytest.raises(ValueError, match="'block' or 'joint'"):
        build(mode="each")
