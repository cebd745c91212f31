from __future__ import annotations

import colorsys

import pytest
import torch

from toy_ijepa.data import load
from toy_ijepa.probing import pixel_features, probe
from toy_ijepa.shapes import CLASSES, SPLIT_SEED, generate, silhouette


def test_same_seed_same_pictures_and_splits_differ():
    one, two = generate(20, seed=3), generate(20, seed=3)
    assert torch.equal(one.images, two.images)
    assert not torch.equal(one.images, generate(20, seed=4).images)
    assert len(CLASSES) >= 10


def test_every_factor_is_a_label_of_every_picture():
    drawn = generate(30, seed=1, side=24, copies=3)
    assert drawn.images.shape == (30, 3, 24, 24)
    assert {n: f.shape for n, f in drawn.factors.items()} == {
        **dict.fromkeys(("shape", "size", "x", "y", "ground", "ground_hue", "dark"), (30,)),
        **dict.fromkeys(("object_hue", "object_angle"), (30, 9)),
    }


def test_a_silhouette_covers_what_its_factors_say():
    """A disc of radius r covers pi r^2 of the 2x2 square, wherever it stands."""
    r, side = torch.tensor([0.4, 0.6]), 64
    cover = silhouette(torch.zeros(2).long(), torch.tensor([0.3, -0.2]), torch.zeros(2), r, torch.zeros(2), side)
    torch.testing.assert_close(cover.mean((1, 2)), torch.pi * (0.85 * r) ** 2 / 4, rtol=0.03, atol=0)
    columns = cover.sum(1) * torch.linspace(-1, 1, side)
    torch.testing.assert_close(columns.sum(1) / cover.sum((1, 2)), torch.tensor([0.3, -0.2]), rtol=0, atol=0.03)


@pytest.mark.parametrize("number", range(len(CLASSES)))
def test_rotation_turns_the_outline(number):
    """A quarter turn of the factors is a quarter turn of the picture; the shape fits its frame."""
    shape, zero, one = torch.tensor([number]), torch.zeros(1), torch.ones(1)
    upright = silhouette(shape, zero, zero, 0.8 * one, zero, 32)[0]
    turned = silhouette(shape, zero, zero, 0.8 * one, torch.pi / 2 * one, 32)[0]
    torch.testing.assert_close(turned, upright.rot90(-1), atol=0.26, rtol=0)
    assert 0.05 < upright.mean() < 0.6


def test_scenes_count_and_order_their_objects():
    drawn = generate(200, seed=2, most=4)
    count, shape, depth = (drawn.factors[n] for n in ("count", "object_shape", "object_depth"))
    assert set(count.tolist()) == {1, 2, 3, 4}
    assert torch.equal((shape >= 0).sum(1), count)
    assert torch.equal(depth.amax(1), count)
    assert torch.equal((depth == 1).sum(1), torch.ones(200).long())


def test_the_nearest_object_hides_the_others():
    """At the nearest object's middle the picture has that object's hue, not that of one drawn before."""
    drawn = generate(300, seed=2, side=64, most=3)
    f, seen = drawn.factors, 0
    for b in range(300):
        o = int((f["object_depth"][b] == 1).nonzero())
        if f["object_shape"][b, o] != 0 or f["count"][b] < 2:  # a disc among others covers its own middle
            continue
        x, y = (((f[f"object_{axis}"][b, o] + 1) * 32).int().clamp(0, 63) for axis in "xy")
        r, g, blue = (drawn.images[b, :, y, x].float() / 255).tolist()
        hue = colorsys.rgb_to_hsv(r, g, blue)[0]
        gap = abs(hue - f["object_hue"][b, o].item())
        assert min(gap, 1 - gap) < 0.12
        seen += 1
    assert seen > 5


def test_class_cannot_be_read_off_pixels_or_colour():
    train, test = generate(3000, seed=0), generate(1000, seed=1)
    y, truth = train.factors["shape"], test.factors["shape"]
    chance = 100 / len(CLASSES)
    for view in (lambda images: pixel_features(images, most=16), lambda images: images.float().mean((2, 3))):
        scores = probe(view(train.images), y, view(test.images), truth)
        assert scores.linear < chance + 4
        assert scores.knn < chance + 20  # how much ground is covered can be seen without knowing the shape


def test_load_gives_the_factors():
    test = load("shapes", "test", image_size=16)
    assert test.images.shape == (4000, 3, 16, 16)
    assert torch.equal(test.factors["shape"], test.labels)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="cannot draw 0 pictures"):
        generate(0)
    with pytest.raises(ValueError, match="grain of std -1"):
        generate(1, grain=-1)
    for name in ("shapes:", "shapes:much", "shapes:-0.1", "shapes:nan", "shapes:3"):
        with pytest.raises(ValueError, match="the grain is a std between 0"):
            load(name)


def test_grain_is_grey_has_its_std_and_hides_the_same_pictures():
    clean, grainy = (generate(50, seed=4, side=24, grain=std) for std in (0.0, 0.1))
    assert torch.equal(clean.images, generate(50, seed=4, side=24).images)
    assert all(torch.equal(a, b) for a, b in zip(clean.factors.values(), grainy.factors.values(), strict=True))
    inside = ((clean.images > 90) & (clean.images < 165)).all(1, keepdim=True).expand_as(clean.images)  # nothing is cut
    noise = (grainy.images.float() - clean.images.float())[inside] / 255
    assert noise.std().item() == pytest.approx(0.1, rel=0.05)
    assert abs(noise.mean().item()) < 0.01
    by_channel = (grainy.images.float() - clean.images.float()).movedim(1, 0)[:, inside[:, 0]]
    assert (by_channel - by_channel[:1]).abs().max() <= 1  # rounding
    assert not torch.equal(grainy.images[:25], generate(50, seed=5, side=24, grain=0.1).images[:25])


def test_the_dial_is_part_of_the_name():
    test = load("shapes:0.3", "test", image_size=16)
    assert torch.equal(test.images, generate(4000, SPLIT_SEED["test"], 16, grain=0.3).images)
