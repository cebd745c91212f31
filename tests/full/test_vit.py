"""The encoder at scale is the toy's: same weights, same outputs; and what it adds does what it says."""

from __future__ import annotations

import shutil

import pytest
import torch

from full_ijepa import methods
from full_ijepa.vit import SIZES, Encoder, Stack, build_encoder, compile_blocks, draw_kept, interpolate_positions
from toy_ijepa import encoder as toy
from toy_ijepa.patches import sincos_2d


@pytest.fixture
def images(generator):
    return torch.randn(2, 3, 16, 24, generator=generator)


def small(**options) -> Encoder:
    torch.manual_seed(3)
    return Encoder((16, 24), 4, 48, 3, 4, **options)


def test_toy_weights_give_the_same_outputs(images, generator):
    theirs = toy.Encoder((16, 24), 4, 48, 3, 4).eval()
    ours = small().eval()
    ours.load_state_dict(theirs.state_dict())
    keep = torch.stack([torch.randperm(24, generator=generator)[:7] for _ in range(2)])
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
        assert torch.equal(ours(images, keep), theirs(images, keep))
        for a, b in zip(ours.layers(images, 2), theirs.layers(images, 2), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("name", "millions"), [("ti", 5.5), ("s", 21.6), ("b", 85.8)])
def test_sizes_have_the_published_parameters(name, millions):
    """Touvron et al. 2021, table 1 and Dosovitskiy et al. 2021, table 1, less class token, positions and head."""
    with torch.device("meta"):
        encoder = toy.Encoder(224, 16, *SIZES[name])
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_checkpointing_gives_the_same_gradient(images):
    plain, forgetful = small(), small(checkpointing=True)
    for encoder in (plain, forgetful):
        encoder(images).square().mean().backward()
    for (name, p), q in zip(plain.named_parameters(), forgetful.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-7), name


def test_checkpointing_keeps_less(images):
    """Counts the bytes that autograd saves."""

    def saved(encoder):
        total = 0

        def pack(x):
            nonlocal total
            total += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            encoder(images)
        return total

    assert saved(small(checkpointing=True)) < 0.5 * saved(small())


def test_stochastic_depth_skips_what_was_drawn(images, generator):
    """A block that counts 0 for an image is as if it were not there; nothing is skipped that was not drawn."""
    encoder = small(drop_path=0.9)
    assert encoder.blocks.rates == pytest.approx([0.0, 0.45, 0.9])
    assert torch.equal(encoder(images), encoder(images))
    kept = torch.ones(3, 2)
    kept[1, 0] = 0.0
    with torch.no_grad():
        found = encoder(images, kept=kept)
        first, _, last = (encoder.blocks[i] for i in range(3))
        without = encoder.norm(last(first(encoder.embed(images[:1]))))
        assert torch.allclose(found[:1], without, atol=1e-6)
        assert torch.allclose(found[1:], encoder(images[1:]), atol=1e-6)


def test_stochastic_depth_keeps_the_mean(generator):
    """A kept block counts 1/(1 - rate) times, so that the mean over many draws is the block itself."""
    kept = draw_kept([0.0, 0.25], 20_000, generator)
    assert kept.mean(1).tolist() == pytest.approx([1.0, 1.0], abs=0.02)
    assert (kept == 0).float().mean(1).tolist() == pytest.approx([0.0, 0.25], abs=0.01)
    assert draw_kept([0.0, 0.0], 7, generator) is None
    stack = Stack([torch.nn.Identity(), torch.nn.Linear(3, 3)], drop_path=0.25)
    x = torch.ones(20_000, 1, 3)
    assert torch.allclose(stack(x, kept=kept).mean(0), stack[1](x)[0], atol=0.03)


def test_learned_positions_start_from_sincos_and_learn(images):
    encoder = small(positions="learned")
    assert torch.equal(encoder.pos_embed, sincos_2d((4, 6), 48))
    encoder(images).square().mean().backward()
    assert encoder.pos_embed.grad.abs().max() > 0
    with pytest.raises(ValueError, match="choose 'fixed' or 'learned'"):
        small(positions="rotary")


def test_other_resolutions_interpolate_positions(images):
    encoder = small().eval()
    with torch.no_grad():
        assert encoder(torch.randn(2, 3, 32, 20)).shape == (2, 40, 48)
        grown = encoder(torch.nn.functional.interpolate(images, scale_factor=2, mode="nearest"))
    assert grown.shape == (2, 96, 48)
    with pytest.raises(ValueError, match="not a whole number"):
        encoder(torch.randn(2, 3, 18, 24))


def test_interpolated_positions_keep_their_corners_apart_and_rows_in_place():
    """Twice the grid: every old code lies between the four new ones that replace it."""
    old = sincos_2d((4, 6), 48)
    new = interpolate_positions(old, (4, 6), (8, 12)).reshape(4, 2, 6, 2, 48).mean((1, 3)).reshape(24, 48)
    inner = torch.arange(24).reshape(4, 6)[1:-1, 1:-1].flatten()
    assert (new - old)[inner].abs().mean() < 0.1
    right = torch.cdist(new[inner], old).argmin(1)
    assert torch.equal(right, inner)


def test_unknown_size_is_named():
    with pytest.raises(ValueError, match="choose from toy, ti, s, b, l, h"):
        build_encoder("xl", 32, 4)


def test_the_target_encoder_is_always_whole(recipe):
    """No block of the target is skipped, not even before the first evaluation."""
    method = methods.build(recipe.replace(drop_path=0.5))
    assert method.encoder.training
    assert not any(part.training for part in method.target.modules())
    method.eval()
    method.train()
    assert not method.target.training


@pytest.mark.slow  # quick: none; only the compiler itself can tell
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_give_the_same_outputs_and_gradients(images):
    encoder = small(checkpointing=True)
    found = []
    for _ in range(2):
        encoder.zero_grad()
        y = encoder(images)
        y.square().sum().backward()
        found.append((y.detach(), encoder.patch_embed.proj.weight.grad.clone()))
        compile_blocks(encoder)
    for plain, compiled in zip(*found, strict=True):
        assert torch.allclose(plain, compiled, atol=1e-4, rtol=1e-3)
