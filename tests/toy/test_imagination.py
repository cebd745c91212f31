from __future__ import annotations

import torch

from toy_ijepa import plots
from toy_ijepa.encoder import Encoder
from toy_ijepa.imagination import compose, gallery, imagine
from toy_ijepa.jepa import IJEPA
from toy_ijepa.masking import multiblock
from toy_ijepa.patches import patchify
from toy_ijepa.predictor import Predictor

H, W, P = 24, 32, 4  # a 6 x 8 grid


def setting(rng=None):
    torch.manual_seed(4)
    encoder = Encoder((H, W), P, 32, depth=2, heads=4)
    model = IJEPA(encoder, Predictor(encoder.grid, 32, 16, 1, 2, mode="joint"))
    images = torch.randint(256, (5, 3, H, W), dtype=torch.uint8)
    return model, images, multiblock(5, encoder.grid, generator=torch.Generator().manual_seed(1))


def test_perfect_predictions_find_the_true_patches():
    """With the targets themselves as predictions and the same pictures as gallery, nothing is imagined wrongly."""
    model, images, masks = setting()
    shelf = gallery(model, images, batch=2)
    assert shelf.features.shape == (5 * 48, 32)
    model.predictor.forward = lambda context, seen, asked: model.targets(context_images, asked)
    context_images = (images.float() / 255 - 0.5) / 0.25
    patches, error = imagine(model, images, masks, shelf)
    pixels = patchify(images.float() / 255, P)
    for b in range(5):
        torch.testing.assert_close(patches[b], pixels[b][masks.targets[b]])
    assert error.max() < 1e-6


def test_imagined_patches_come_from_the_gallery_and_errors_have_a_place():
    model, images, masks = setting()
    shelf = gallery(model, images.flip(0)[:2])
    patches, error = imagine(model, images, masks, shelf)
    known = {tuple(p.tolist()) for p in shelf.pixels}
    assert all(tuple(p.tolist()) in known for p in patches.flatten(0, 2))
    assert error.shape == masks.targets.shape
    assert error.min() > 0


def test_compose_shows_context_grey_and_the_chosen_blocks():
    _model, images, masks = setting()
    patches = torch.zeros(*masks.targets.shape, 3 * P * P)
    context_only = patchify(compose(images, masks, patches, P, []), P)
    truth = patchify(images.float() / 255, P)
    for b in range(5):
        seen = set(masks.context[b].tolist())
        for n in range(48):
            expected = truth[b, n] if n in seen else torch.full_like(truth[b, n], 0.5)
            assert torch.equal(context_only[b, n], expected)
    one = patchify(compose(images, masks, patches, P, [2]), P)
    assert one[0, masks.targets[0, 2]].eq(0).all()


def test_mask_colours_say_context_target_and_neither():
    _, images, masks = setting()
    colours = plots.mask_map(masks, (6, 8), image=1).reshape(48, 3)
    targets = set(masks.targets[1].flatten().tolist())
    for n in range(48):
        if n in set(masks.context[1].tolist()):
            expected = [plots.CONTEXT]
        else:
            expected = plots.TARGETS if n in targets else [plots.UNUSED]
        assert any(torch.allclose(colours[n], torch.tensor(c)) for c in expected)
    assert plots.masks(images, masks, (6, 8)).axes
