"""The statistic against a slow integral and against what is known of it; masked I-JEPA with it."""

import math

import pytest
import torch

from toy_ijepa.encoder import Encoder
from toy_ijepa.masking import multiblock
from toy_ijepa.predictor import Predictor
from toy_ijepa.sigreg import NORMAL, SIGRegIJEPA, directions, epps_pulley, sigreg


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slow(samples, knots=2001, reach=8.0):
    """The integral of one column by its definition, with complex numbers and fine steps over both sides."""
    total, step = 0.0, 2 * reach / (knots - 1)
    for k in range(knots):
        t = -reach + k * step
        seen = sum(complex(math.cos(t * z), math.sin(t * z)) for z in samples) / len(samples)
        total += abs(seen - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2) * step
    return len(samples) * total


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.7, 0.4), (-2.0, 2.0)])
def test_the_statistic_is_the_integral(shift, scale):
    samples = shift + scale * torch.randn(9, 3, generator=generator())
    found = epps_pulley(samples)
    assert found.shape == (3,)
    for column in range(3):
        assert found[column].item() == pytest.approx(slow(samples[:, column].tolist()), rel=0.02)


@pytest.mark.parametrize("count", [16, 400])
def test_normal_samples_have_the_same_mean_whatever_their_number(count):
    found = epps_pulley(torch.randn(count, 4000, generator=generator()))
    exact = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)
    assert pytest.approx(exact, abs=1e-3) == NORMAL
    assert found.mean().item() == pytest.approx(exact, abs=4 * found.std().item() / math.sqrt(4000))


def test_what_is_not_normal_stands_out():
    count, g = 256, generator()
    normal = torch.randn(count, 1, generator=g)
    for name, samples in {
        "a point": torch.zeros(count, 1),
        "too narrow": 0.5 * normal,
        "off centre": normal + 1,
        "two heaps": torch.randn(count, 1, generator=g).sign(),
        "even": (torch.rand(count, 1, generator=g) - 0.5) * 12**0.5,
    }.items():
        assert epps_pulley(samples).item() > 2 * epps_pulley(normal).item(), name


def test_directions_have_length_one_and_come_from_the_generator():
    drawn = directions(50, 6, generator(3))
    torch.testing.assert_close(drawn.norm(dim=0), torch.ones(50))
    assert torch.equal(drawn, directions(50, 6, generator(3)))
    assert not torch.equal(drawn, directions(50, 6, generator(4)))


def test_features_that_follow_it_spread_out():
    """From one heap far too small, and from one line, the statistic's gradient leads to something near normal."""
    g = generator()
    for start in (0.01 * torch.randn(128, 4, generator=g), torch.randn(128, 1, generator=g) * torch.ones(1, 4)):
        x = (start + 0.01 * torch.randn(128, 4, generator=g)).requires_grad_()
        optimiser = torch.optim.Adam([x], lr=0.05)
        before = sigreg(x, g).item()
        for _ in range(200):
            optimiser.zero_grad()
            sigreg(x, g).backward()
            optimiser.step()
        assert before > 5
        assert sigreg(x, g).item() < NORMAL
        assert torch.linalg.eigvalsh(torch.cov(x.detach().T)).min() > 0.3  # of the four directions none is empty


def model(**options):
    torch.manual_seed(0)
    return SIGRegIJEPA(Encoder((16, 24), 4, 24, 2, 2), Predictor((4, 6), 24, 16, 1, 2, mode="joint"), **options)


IMAGES = torch.randn(5, 3, 16, 24, generator=generator(1))


@pytest.mark.parametrize(("ema", "stop"), [(True, True), (False, True), (False, False)])
def test_who_follows_and_where_gradients_go(ema, stop):
    found = model(ema=ema, stop=stop)
    masks = multiblock(5, (4, 6), min_context=2, generator=generator())
    assert (found.probed is found.encoder) != ema
    assert found.targets(IMAGES, masks.targets).requires_grad != stop
    moved = torch.optim.SGD([p for p in found.parameters() if p.requires_grad], lr=0.1)
    found.step_loss(IMAGES, generator()).backward()
    moved.step()
    found.after_step(0.0)
    same = torch.equal(found.target.norm.bias, found.encoder.norm.bias)
    assert same != ema


def test_the_statistic_is_weighted_and_repeatable():
    found = model(weight=0.0)
    masks = found.sample(5, (4, 6), generator=generator())
    plain = found.predict(IMAGES, masks)
    assert torch.equal(found.step_loss(IMAGES, generator()), plain.loss)
    found.weight = 2.0
    told = generator()
    found.sample(5, (4, 6), generator=told)
    expected = plain.loss + 2.0 * sigreg(plain.context.mean(1), told)
    assert torch.equal(found.step_loss(IMAGES, generator()), expected)


def test_an_average_takes_no_gradient():
    with pytest.raises(ValueError, match="ema=True with stop=False"):
        model(ema=True, stop=False)
