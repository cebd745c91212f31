from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from toy_ijepa.patches import PatchEmbed, grid_size, patchify, sincos_2d, unpatchify


def test_patchify_is_the_slow_loop():
    B, C, h, w, P = 2, 3, 4, 5, 6
    images = torch.randn(B, C, h * P, w * P)
    tokens = patchify(images, P)
    assert tokens.shape == (B, h * w, C * P * P)
    for i in range(h):
        for j in range(w):
            square = images[:, :, i * P : (i + 1) * P, j * P : (j + 1) * P]
            assert torch.equal(tokens[:, i * w + j], square.flatten(1))


def test_unpatchify_undoes_patchify():
    images = torch.randn(2, 3, 8, 20)
    assert torch.equal(unpatchify(patchify(images, 4), (2, 5)), images)
    with pytest.raises(ValueError, match="3x5 grid"):
        unpatchify(patchify(images, 4), (3, 5))


def test_patch_embed_is_a_strided_convolution(rng):
    embed = PatchEmbed(patch=4, width=7)
    images = torch.randn(2, 3, 8, 12)
    kernel = embed.proj.weight.reshape(7, 3, 4, 4)
    expected = F.conv2d(images, kernel, embed.proj.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(images), expected)


def test_first_half_of_the_position_channels_is_the_column():
    h, w, D = 3, 5, 16
    codes = sincos_2d((h, w), D).reshape(h, w, D)
    assert torch.equal(codes[0, :, : D // 2], codes[2, :, : D // 2])  # same column, other row
    assert torch.equal(codes[:, 1, D // 2 :], codes[:, 4, D // 2 :])  # same row, other column
    assert len(codes.flatten(0, 1).unique(dim=0)) == h * w
    i, j, k = 2, 4, 3  # one entry by hand: the 4th sine of the column
    assert codes[i, j, k].item() == pytest.approx(math.sin(j / 10000 ** (k / (D // 4))), abs=1e-6)


@pytest.mark.parametrize(("size", "patch"), [(30, 4), ((32, 30), 4), (2, 4), (32, 0)])
def test_sizes_that_do_not_fit_are_refused(size, patch):
    with pytest.raises(ValueError, match="not a whole number"):
        grid_size(size, patch)


def test_width_must_suit_positions_and_channels_the_embedding():
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d((2, 3), 6)
    with pytest.raises(ValueError, match="1 channels"):
        PatchEmbed(4, 8)(torch.zeros(1, 1, 8, 8))
