"""Two views: what may change and what may not; the two losses against slow loops."""

import math

import pytest
import torch

from toy_ijepa.encoder import Encoder
from toy_ijepa.patches import normalise
from toy_ijepa.views import LeJEPA, SimCLR, jitter, two_views


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(count=64, h=16, w=24):
    return normalise(torch.randint(0, 256, (count, 3, h, w), dtype=torch.uint8, generator=generator(5)))


def test_jitter_changes_colour_and_not_place():
    x = picture()
    y = jitter(x, generator())
    assert y.shape == x.shape
    grey = (y - y.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-5
    assert 0.05 < grey.float().mean() < 0.4  # a fifth
    for a, b in zip(x.mean(1).flatten(1), y.mean(1).flatten(1), strict=True):  # brightness: a line, rising
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.999
    assert torch.equal(jitter(x, generator(1)), jitter(x, generator(1)))
    torch.testing.assert_close(jitter(x, generator(), strength=0.0)[~grey], x[~grey], atol=1e-5, rtol=0)


def test_black_stays_black_in_a_black_picture():
    black = normalise(torch.zeros(9, 3, 4, 6, dtype=torch.uint8))
    torch.testing.assert_close(jitter(black, generator()), black)


def test_two_views_differ_and_repeat():
    x = picture(6)
    first, second = two_views(x, generator())
    assert first.shape == second.shape == x.shape
    assert (first - second).abs().mean() > 0.1
    assert torch.equal(first, two_views(x, generator())[0])


def encoder():
    torch.manual_seed(0)
    return Encoder((16, 24), 4, 24, 2, 2)


def test_simclr_is_a_classification_among_all_other_views():
    model = SimCLR(encoder(), width=7, temperature=0.3)
    first, second = (torch.randn(5, 7, generator=generator(s)) for s in (0, 1))
    views = [*(first / first.norm(dim=1, keepdim=True)), *(second / second.norm(dim=1, keepdim=True))]
    total = 0.0
    for i, anchor in enumerate(views):
        scores = [math.exp((anchor @ other).item() / 0.3) for other in views]
        total -= math.log(scores[(i + 5) % 10] / (sum(scores) - scores[i]))
    assert model.agree(first, second, None).item() == pytest.approx(total / 10, rel=1e-5)


def test_lejepa_goes_to_the_mean_and_to_the_normal():
    model = LeJEPA(encoder(), width=6, weight=0.0)
    first, second = (torch.randn(5, 6, generator=generator(s)) for s in (0, 1))
    total = 0.0
    for a, b in zip(first, second, strict=True):
        for view in (a, b):
            total += sum((view[d] - (a[d] + b[d]) / 2).item() ** 2 for d in range(6))
    assert model.agree(first, second, generator()).item() == pytest.approx(total / (5 * 2 * 6), rel=1e-5)
    model.weight = 1.0
    point = torch.zeros(64, 6)
    spread = torch.randn(64, 6, generator=generator())
    assert model.agree(point, point, generator()) > 10 * model.agree(spread, spread, generator())


@pytest.mark.parametrize("kind", [SimCLR, LeJEPA])
def test_a_step_is_repeatable_and_learns(kind):
    model, x = kind(encoder()), picture(32)
    assert torch.equal(model.step_loss(x, generator()), model.step_loss(x, generator()))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        optimiser.zero_grad()
        loss = model.step_loss(x, generator(step))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])
    assert model.after_step(0.5) == 0.0
    assert model.probed is model.encoder
