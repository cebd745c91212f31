from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.wrong import models as wrong
from toy_ijepa.diagnostics import position_share
from toy_ijepa.encoder import Attention, Block, Encoder, init_weights

H, W, P = 16, 24, 4  # a 4 x 6 grid


@pytest.fixture
def images(rng):
    return torch.randn(3, 3, H, W)


def build(kind=Encoder):
    torch.manual_seed(2)
    return kind((H, W), P, width=32, depth=3, heads=4)


def check_hidden_patches_cannot_leak(kind):
    """Other pixels in the hidden patches: the same features of the kept ones, to the last bit."""
    encoder, images = build(kind), torch.randn(3, 3, H, W)
    keep = torch.tensor([[0, 7, 9, 20], [3, 2, 1, 23], [5, 11, 6, 8]])
    pixels = images.reshape(3, 3, 4, P, 6, P).permute(0, 2, 4, 1, 3, 5).reshape(3, 24, -1).clone()
    hidden = torch.ones(3, 24, dtype=torch.bool).scatter_(1, keep, False)
    pixels[hidden] = 9.0
    changed = pixels.reshape(3, 4, 6, 3, P, P).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)
    assert not torch.equal(images, changed)
    assert torch.equal(encoder(images, keep), encoder(changed, keep))


def check_index_means_patch(kind):
    """Keeping patch n means the n-th square of the picture: only its pixels move the answer."""
    encoder, images = build(kind), torch.randn(1, 3, H, W)
    for n in range(24):
        changed = images.clone()
        i, j = divmod(n, 6)
        changed[:, :, i * P : (i + 1) * P, j * P : (j + 1) * P] += 1
        keep = torch.tensor([[n]])
        assert not torch.equal(encoder(images, keep), encoder(changed, keep)), f"patch {n}"


def check_tokens_have_no_order(attention):
    """Attention without a mask: permuted tokens in, the same permuted tokens out."""
    x = torch.randn(2, 10, 32)
    order = torch.randperm(10)
    torch.testing.assert_close(attention(x)[:, order], attention(x[:, order]))


def check_std(initialise):
    """Weights are drawn around 0 with std sqrt(2 / (inputs + outputs))."""
    weight = nn.Linear(200, 300).weight
    initialise(weight)
    assert abs(weight.mean().item()) < 0.005
    assert weight.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.03)


def test_shapes_and_names(images):
    encoder = build()
    assert encoder(images).shape == (3, 24, 32)
    assert encoder(images, torch.zeros(3, 5, dtype=torch.long)).shape == (3, 5, 32)
    names = set(encoder.state_dict())
    assert {"patch_embed.proj.weight", "blocks.2.attn.qkv.bias", "blocks.0.mlp.fc1.weight", "norm.weight"} <= names
    assert not any("pos_embed" in n for n in names)  # fixed, rebuilt from the grid


def test_hidden_patches_cannot_leak(rng):
    check_hidden_patches_cannot_leak(Encoder)
    with pytest.raises(AssertionError):
        check_hidden_patches_cannot_leak(wrong.MasksAfterwards)


def test_index_means_patch(rng):
    check_index_means_patch(Encoder)
    with pytest.raises(AssertionError):
        check_index_means_patch(wrong.ShiftedByOne)


def test_tokens_have_no_order(rng):
    right = Attention(32, 4)
    check_tokens_have_no_order(right)
    with pytest.raises(AssertionError):
        check_tokens_have_no_order(wrong.PaddingAttention(right))


def test_initial_std(rng):
    check_std(lambda weight: init_weights_of(weight))
    with pytest.raises(AssertionError):
        check_std(wrong.mean_for_std)


def test_deeper_blocks_start_quieter(rng):
    """The weights that write into the residual stream shrink with depth: nothing initialises them again afterwards."""
    blocks = Encoder(16, 4, 64, depth=4, heads=4).blocks
    base = (2 / 128) ** 0.5  # Xavier's std of a 64 x 64 matrix
    stds = [block.attn.proj.weight.std().item() for block in blocks]
    assert stds == pytest.approx([base / (2 * i) ** 0.5 for i in (1, 2, 3, 4)], rel=0.05)
    assert blocks[3].attn.qkv.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)


def init_weights_of(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = weight
    init_weights(layer)


def test_all_kept_is_the_whole_image(images):
    encoder = build()
    everything = torch.arange(24).expand(3, -1)
    torch.testing.assert_close(encoder(images, everything), encoder(images))


def test_attention_is_torch_multihead_attention(rng):
    ours, theirs = Attention(24, 3), nn.MultiheadAttention(24, 3, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.qkv.weight.data, ours.qkv.bias.data
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = ours.proj.weight.data, ours.proj.bias.data
    x = torch.randn(2, 7, 24)
    expected, weights = theirs(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(ours.weights(x), weights)


def test_plain_attention_is_the_fused_kernel(rng):
    attention, x = Attention(24, 3), torch.randn(2, 7, 24)
    q, k, v = attention.split(x)
    fused = attention.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), fused)


def test_block_is_torch_transformer_layer(rng):
    ours = Block(24, 3)
    theirs = nn.TransformerEncoderLayer(24, 3, 96, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
    names = {"norm1": "norm1", "norm2": "norm2", "linear1": "mlp.fc1", "linear2": "mlp.fc2"}
    names |= {"self_attn.out_proj": "attn.proj", "self_attn.in_proj_": "attn.qkv."}
    state = ours.state_dict()
    for key in theirs.state_dict():
        old = next(n for n in names if key.startswith(n))
        theirs.get_parameter(key).data = state[key.replace(old, names[old])]
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(ours(x), theirs(x))


def test_layers_end_with_the_output(images):
    encoder = build()
    outputs = encoder.layers(images, last=2)
    assert len(outputs) == 2
    assert torch.equal(outputs[-1], encoder(images))
    assert not torch.equal(outputs[0], outputs[1])


def test_a_random_encoder_sees_the_picture_and_not_only_positions(rng):
    encoder, images = Encoder(), torch.randn(200, 3, 32, 32)
    assert position_share(encoder(images)) < 0.3
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
    assert position_share(encoder(images)) > 0.6  # what the copied 0.02 does at this width


def test_bad_input(images):
    with pytest.raises(ValueError, match="not a whole number of 3 heads"):
        Attention(32, 3)
    with pytest.raises(ValueError, match="built for 4x6"):
        build()(torch.randn(1, 3, 16, 16))
    with pytest.raises(ValueError, match="gives 6x4 patches"):
        build()(torch.randn(1, 3, W, H))  # as many patches, in other places
