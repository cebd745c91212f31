"""Targets of several depths and other norms; the frozen teacher."""

import pytest
import torch

from toy_ijepa.encoder import Encoder
from toy_ijepa.jepa import IJEPA
from toy_ijepa.masking import multiblock
from toy_ijepa.predictor import Predictor
from toy_ijepa.recipe import METHODS, build
from toy_ijepa.salt import SALT
from toy_ijepa.targets import NORMS, DeepIJEPA, block_outputs
from toy_ijepa.training import TrainConfig, make_optimisers, set_schedules

GRID = (4, 6)
IMAGES = torch.randn(3, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def parts(seed=0):
    torch.manual_seed(seed)
    encoder = Encoder((16, 24), 4, 24, 3, 2)
    return encoder, Predictor(GRID, 24, 16, 1, 2, mode="joint")


def masks():
    return multiblock(3, GRID, min_context=2, generator=torch.Generator().manual_seed(0))


def test_one_depth_with_the_layer_norm_is_the_plain_method():
    plain, deep = IJEPA(*parts()), DeepIJEPA(*parts(), depths=1, norm="layer")
    drawn = masks()
    assert torch.equal(plain(IMAGES, drawn).loss, deep(IMAGES, drawn).loss)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("depths", [1, 2, 3])
def test_each_depth_is_normed_by_itself_and_the_last_stands_last(norm, depths):
    model, drawn = DeepIJEPA(*parts(), depths=depths, norm=norm), masks()
    found = model.targets(IMAGES, drawn.targets)
    B, M, T = drawn.targets.shape
    assert found.shape == (B, M, T, depths * 24)
    layers = model.target.layers(IMAGES, depths)  #  behind the encoder's last norm
    outputs = layers if norm == "layer" else block_outputs(model.target, IMAGES, depths)
    for b, m, t in [(0, 0, 0), (2, M - 1, T - 1), (1, 1, T // 2)]:
        for level in range(depths):
            expected = NORMS[norm](outputs[level])[b, drawn.targets[b, m, t]]
            torch.testing.assert_close(found[b, m, t, level * 24 : (level + 1) * 24], expected)
    assert model(IMAGES, drawn).predictions.shape == found.shape


def test_what_the_norms_keep():
    x = torch.randn(5, 7, 11, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8)[:, None]
    strength = {name: norm(x).norm(dim=-1).mean(0) for name, norm in NORMS.items()}
    assert strength["layer"].std() < 1e-3  # every place counts the same
    for name in ("channel", "tanh", "none"):
        assert strength[name][-1] > strength[name][0], name
    channel = NORMS["channel"](x)
    torch.testing.assert_close(channel.mean((0, 1)), torch.zeros(11), atol=1e-5, rtol=0)
    torch.testing.assert_close(channel.std((0, 1)), torch.ones(11), atol=1e-2, rtol=0)
    assert NORMS["tanh"](x).abs().max() <= 1


def test_block_outputs_are_layers_without_the_last_norm():
    encoder, _ = parts()
    for depths in (1, 3):
        found = block_outputs(encoder, IMAGES, depths)
        assert [x.shape for x in found] == [(3, 24, 24)] * depths
        for ours, normed in zip(found, encoder.layers(IMAGES, depths), strict=True):
            torch.testing.assert_close(encoder.norm(ours), normed)
            assert not torch.allclose(ours, normed, atol=0.1)


@pytest.mark.parametrize("norm", NORMS)
def test_strong_tokens_stay_strong_in_the_targets_unless_the_layer_norm_levels_them(norm):
    """Behind the encoder's last norm no other norm could find a difference any more."""
    model, everywhere = DeepIJEPA(*parts(), depths=2, norm=norm), torch.arange(24).expand(3, 1, -1)
    with torch.no_grad():
        for block in model.target.blocks:  #  the stream is the embedded picture, contrast growing from left to right
            block.attn.proj.weight.zero_()
            block.mlp.fc2.weight.zero_()
    images = 0.05 * IMAGES * torch.linspace(1, 20, 24)
    model.target.pos_embed.zero_()
    found = model.targets(images, everywhere)[:, 0].norm(dim=-1).unflatten(1, GRID).mean((0, 1))
    assert (found[-1] > 1.5 * found[0]) == (norm != "layer")
    if norm == "layer":
        assert found.std() < 0.05 * found.mean()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="unknown norm 'batch': choose from layer"):
        DeepIJEPA(*parts(), norm="batch")
    for depths in (0, 4):
        with pytest.raises(ValueError, match=f"depths {depths} is not within 1 and the encoder's 3 blocks"):
            DeepIJEPA(*parts(), depths=depths)


def test_a_teacher_never_moves_and_the_student_is_kept():
    model, (teacher, _) = SALT(*parts(0)), parts(7)
    model.teach(teacher)
    before = {name: value.clone() for name, value in model.target.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(IMAGES, masks()).loss.backward()
    optimiser.step()
    assert model.after_step(0.5) == 1.0
    for name, value in model.target.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(value, teacher.state_dict()[name])
    assert model.probed is model.encoder
    assert not torch.equal(model.encoder.blocks[0].attn.qkv.weight, parts(0)[0].blocks[0].attn.qkv.weight)


def test_a_teacher_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"the teacher is .*'width': 12.* the student .*'width': 24"):
        SALT(*parts()).teach(Encoder((16, 24), 4, 12, 3, 2))


@pytest.mark.parametrize("method", METHODS)
def test_every_trainable_tensor_of_every_method_moves(method):
    """A predictor or a mask token that no gradient or no optimiser reaches trains nothing, and no curve shows it."""
    model = build(method, "tiny", 32, 4, seed=0)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimisers = make_optimisers(model, TrainConfig(steps=2))
    set_schedules(optimisers, TrainConfig(steps=2), 0.5)
    model.step_loss(images, torch.Generator().manual_seed(0)).backward()
    for optimiser in optimisers:
        optimiser.step()
    assert not [name for name, p in trained.items() if p.grad is None or not p.grad.any()]  # decay moves these as well
    assert not [name for name, p in trained.items() if torch.equal(p, before[name])]
