"""What a run says of itself, each on rows or pictures made to have just that fault, and on ones that have none."""

import math

import pytest
import torch
import torch.nn.functional as F

from toy_ijepa import data, shapes, trouble
from toy_ijepa.patches import normalise
from toy_ijepa.recipe import METHODS, build
from toy_ijepa.training import TrainConfig, train


def rows(losses, mean_loss=1.0, ranks=None):
    ranks = ranks or [5.0] * len(losses)
    return [
        dict(step=10 * i, loss=loss, mean_loss=mean_loss, rank=rank)
        for i, (loss, rank) in enumerate(zip(losses, ranks, strict=True))
    ]


FALLING = [0.9 - 0.02 * i for i in range(30)]


def test_a_healthy_run_says_nothing():
    assert trouble.faults(rows(FALLING)) == []
    assert trouble.faults(rows(FALLING, mean_loss=math.nan)) == []
    assert trouble.faults([]) == []
    assert trouble.faults(rows([0.5])) == []


def test_a_constant_loss_is_named():
    (found,) = trouble.faults(rows([0.7] * 15 + [0.5] * 15))
    assert found.startswith("constant loss: 0.500000")
    assert trouble.faults(rows([0.5 + 0.001 * (i % 2) for i in range(30)])) == []


def test_a_loss_at_the_means_is_named_with_both_numbers():
    late = [0.5 + 0.01 * (i % 2) for i in range(30)]
    (found,) = trouble.faults(rows(late, mean_loss=0.505))
    assert found.startswith("no better than without the picture: loss 0.5100, where an answer that knows none has 0.50")
    assert trouble.faults(rows(late, mean_loss=0.6)) == []


def test_a_falling_rank_is_named_since_its_best_step():
    ranks = [3.0 + i for i in range(20)] + [22.0 - 1.5 * i for i in range(10)]
    (found,) = trouble.faults(rows(FALLING, ranks=ranks))
    assert found.startswith("falling since step 190: effective rank 22.0 there, 8.5 at the end")
    assert trouble.faults(rows(FALLING, ranks=ranks[:25] + [15.0] * 5)) == []
    for unknown in ([math.nan, *ranks[1:]], [*ranks[:-1], math.nan]):
        assert trouble.best_before(unknown) is None


def test_an_encoder_too_large_for_its_pictures_is_named():
    assert trouble.starving(450_000, 180) == ""
    assert trouble.starving(450_000, 100).startswith("0.5 M parameters on 100 pictures: 4500 a picture")


def test_flat_pictures_and_copies_are_told_from_pictures():
    g = torch.Generator().manual_seed(0)
    drawn = normalise(shapes.generate(100, seed=3).images)
    flat, copies = trouble.likeness(drawn)
    assert flat == 0.0
    assert copies < 0.2
    grain = 0.25 * torch.randn(60, 3, 32, 32, generator=g)
    assert trouble.likeness(drawn[:1] + grain) == (0.0, 1.0)
    assert trouble.likeness(torch.cat([drawn[:30], drawn[:1].expand(10, -1, -1, -1)])) == (
        0.0,
        pytest.approx(11 / 40, abs=0.1),
    )
    empty = torch.linspace(-2, 2, 60)[:, None, None, None] + 0.02 * torch.randn(60, 3, 32, 32, generator=g)
    assert trouble.likeness(empty) == (1.0, 0.0)
    assert trouble.likeness(empty[:1]) == (1.0, 0.0)


def test_a_tenth_of_copies_among_those_seen_is_named_before_a_run_but_does_not_explain_one():
    drawn = shapes.generate(600, seed=3).images
    seen = trouble.likeness(torch.cat([drawn, drawn[:33]]))
    assert seen == (0.0, pytest.approx(66 / 633, abs=0.01))
    assert trouble.alike(*seen, trouble.NAMED).startswith("10% of the pictures looked at have a near copy")
    assert trouble.alike(*seen) == trouble.alike(0.1, 0.0) == trouble.alike(0.04, 0.04, trouble.NAMED) == ""
    assert trouble.likeness(normalise(drawn)) == trouble.likeness(drawn)


def test_photographs_are_not_called_copies(real_data):
    seen = trouble.likeness(data.load("cifar10", "test").images[:5000])
    assert max(seen) < 0.02
    assert trouble.alike(*seen, trouble.NAMED) == ""


def test_the_loss_of_the_mean_is_that_of_the_best_constant():
    """For the squared error it is each number's variance."""
    truth = torch.randn(7, 3, 5) * torch.arange(1.0, 4.0)[:, None] + 9
    assert trouble.loss_of_mean(truth, F.mse_loss) == pytest.approx(truth.var(0).mean().item(), rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_row_has_the_means_loss_beside_its_own(method):
    """Of methods whose loss is a prediction alone it is 0 for pictures all alike; SimCLR's is a guess among views."""
    model = build(method, "tiny", 16, 4, seed=0)
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    history = train(model, images, TrainConfig(steps=2, batch=8), progress=False)  # a watch sees 40
    known = [math.isfinite(value) for value in history.column("mean_loss")]
    predicts = method in ("ijepa", "ijepa-deep", "salt", "mae")
    assert known == [predicts or method == "simclr"] * 2
    if method == "simclr":
        assert history.column("mean_loss") == [pytest.approx(math.log(15))] * 2
        assert model.agree(*torch.ones(2, 8, 4), None).item() == pytest.approx(math.log(15), abs=1e-5)
    if predicts:
        alike = normalise(images[:1]).expand(6, -1, -1, -1)
        assert model.mean_loss(alike) == pytest.approx(0.0, abs=1e-5)
        assert model.mean_loss(normalise(images)) > 1e-3


def test_a_loss_that_knows_no_picture_is_the_means():
    """A predictor whose answers are each place's mean has just that loss: the two columns can be compared."""
    model = build("ijepa", "tiny", 16, 4, seed=0)
    images = normalise(torch.randint(0, 256, (200, 3, 16, 16), dtype=torch.uint8))
    everywhere = torch.arange(16).expand(200, 1, -1)
    mean = model.targets(images, everywhere)[:, 0].mean(0)  #  (N, D)
    model.predictor.forward = lambda tokens, seen, asked: mean[asked]
    found = torch.stack([model.step_loss(images, torch.Generator().manual_seed(i)) for i in range(5)]).mean()
    assert model.mean_loss(images) == pytest.approx(found.item(), rel=0.05)
