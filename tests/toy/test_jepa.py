from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.wrong import models as wrong
from toy_ijepa.encoder import Encoder
from toy_ijepa.jepa import IJEPA, variance_covariance
from toy_ijepa.mae import MAE
from toy_ijepa.masking import multiblock
from toy_ijepa.patches import patchify
from toy_ijepa.predictor import Predictor

H, W, P, D = 24, 32, 4, 32  # a 6 x 8 grid


def build(kind=IJEPA, **options):
    torch.manual_seed(3)
    encoder = Encoder((H, W), P, D, depth=2, heads=4)
    return kind(encoder, Predictor(encoder.grid, D, 16, 1, 2, mode="joint"), **options)


@pytest.fixture
def images(rng):
    return torch.randn(5, 3, H, W)


@pytest.fixture
def masks(generator):
    return multiblock(5, (6, 8), generator=generator)


def check_teacher_sees_the_whole_image(kind, images, masks):
    """Change one context pixel: the targets move."""
    model, changed = build(kind), images.clone()
    n = masks.context[0, 0].item()
    changed[0, :, n // 8 * P, n % 8 * P] += 5.0
    before, after = model.targets(images, masks.targets), model.targets(changed, masks.targets)
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1:], after[1:])


def check_no_gradient_reaches_the_target(kind, images, masks):
    """Targets carry no gradient, so the encoder cannot make them easier."""
    model = build(kind)
    assert not model.targets(images, masks.targets).requires_grad
    assert all(not p.requires_grad for p in model.target.parameters())


def test_teacher_sees_the_whole_image(images, masks):
    check_teacher_sees_the_whole_image(IJEPA, images, masks)
    with pytest.raises(AssertionError):
        check_teacher_sees_the_whole_image(wrong.BlindTeacher, images, masks)


def test_no_gradient_reaches_the_target(images, masks):
    check_no_gradient_reaches_the_target(IJEPA, images, masks)
    with pytest.raises(AssertionError):
        check_no_gradient_reaches_the_target(wrong.GradientsToTarget, images, masks)


def test_targets_are_the_slow_loop(images, masks):
    model = build()
    targets = model.targets(images, masks.targets)
    tokens = model.target(images)
    for b in range(5):
        for m in range(4):
            for t, n in enumerate(masks.targets[b, m].tolist()):
                x = tokens[b, n].double()
                expected = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
                torch.testing.assert_close(targets[b, m, t].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["smooth_l1", "l2"])
def test_the_loss_is_a_mean(name, images, masks):
    out = build(loss=name)(images, masks)
    gap = (out.predictions - out.targets).abs()
    each = gap.square() if name == "l2" else torch.where(gap < 1, gap.square() / 2, gap - 0.5)
    assert out.loss.item() == pytest.approx(each.mean().item(), rel=1e-5)
    assert out.context.shape == (5, masks.context.shape[1], D)


def test_gradients_reach_encoder_and_predictor_only(images, masks):
    model = build()
    model(images, masks).loss.backward()
    assert all(p.grad is not None for p in [*model.encoder.parameters(), *model.predictor.parameters()])
    assert all(p.grad is None for p in model.target.parameters())


def test_target_follows_after_the_step(images):
    model = build(momentum=(0.5, 1.0))
    with torch.no_grad():
        model.encoder.norm.bias += 2.0
    assert build(momentum=(0.5, 1.0), momentum_schedule="cosine").after_step(0.25) < model.after_step(0.25) == 0.625
    model.target.norm.bias.data.zero_()
    assert model.after_step(0.0) == 0.5
    assert model.target.norm.bias.eq(1.0).all()
    assert model.after_step(1.0) == 1.0
    assert model.target.norm.bias.eq(1.0).all()


def test_regulariser_is_vicreg_by_hand(rng):
    x = torch.randn(7, 3) * torch.tensor([0.1, 1.0, 3.0])
    variance, covariance = variance_covariance(x)
    stds, table = (x.var(0) + 1e-4).sqrt(), torch.cov(x.T)
    assert variance.item() == pytest.approx(sum(max(0.0, 1 - s.item()) for s in stds) / 3, rel=1e-5)
    off = sum(table[i, j].item() ** 2 for i in range(3) for j in range(3) if i != j)
    assert covariance.item() == pytest.approx(off / 3, rel=1e-5)


def test_plain_method_has_no_regulariser(images, masks):
    plain, with_term = build(), build(regulariser=(0.1, 0.005))
    extra = variance_covariance(with_term(images, masks).context.mean(1))
    difference = with_term(images, masks).loss - plain(images, masks).loss
    assert difference.item() == pytest.approx((0.1 * extra[0] + 0.005 * extra[1]).item(), rel=1e-4)


def test_mae_predicts_the_hidden_patches(images):
    torch.manual_seed(0)
    model = MAE(Encoder((H, W), P, D, depth=2, heads=4), 16, 1, 2)
    order = torch.stack([torch.randperm(48) for _ in range(5)])
    visible, hidden = order[:, :12], order[:, 12:]
    predictions, pixels = model(images, visible, hidden)
    assert predictions.shape == pixels.shape == (5, 36, 3 * P * P)
    patch = patchify(images, P)[2, hidden[2, 7]]
    torch.testing.assert_close(pixels[2, 7], F.layer_norm(patch, patch.shape))
    changed = images.clone()
    i, j = divmod(hidden[0, 0].item(), 8)
    changed[0, :, i * P : (i + 1) * P, j * P : (j + 1) * P] += 3.0
    assert torch.equal(model(changed, visible, hidden)[0], predictions)  # hidden pixels are never seen


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown loss"):
        build(loss="l1")
    with pytest.raises(ValueError, match="unknown mask strategy"):
        build(masks="blocks")
    with pytest.raises(ValueError, match="EMA momentum"):
        build(momentum=(0.9, 1.5))
    with pytest.raises(ValueError, match="unknown momentum schedule"):
        build(momentum_schedule="step")
    with pytest.raises(ValueError, match="share of the patches"):
        MAE(Encoder(16, 4, 16, 1, 1), 8, 1, 1, hidden=1.0)
