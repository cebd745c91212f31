"""Weights go out and come back; outputs agree with transformers' own model, and what is written opens there."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from full_ijepa import interop, methods
from full_ijepa.interop import IMAGENET, InteropError, encoder_from, plain, read_huggingface, write_huggingface
from full_ijepa.vit import Encoder
from toy_ijepa import recipe as toy_recipe
from toy_ijepa.encoder import MLP
from toy_ijepa.masking import multiblock
from toy_ijepa.patches import normalise


@pytest.fixture
def method(recipe):
    """An I-JEPA whose encoders differ and whose norms are not those of the start."""
    method = methods.build(recipe).eval()
    torch.manual_seed(5)
    for p in method.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    return method


@pytest.fixture
def pixels(generator):
    return torch.randint(0, 256, (3, 3, 16, 16), generator=generator, dtype=torch.uint8)


def imagenet(pixels):
    mean, std = (torch.tensor(n)[:, None, None] for n in IMAGENET)
    return (pixels.float() / 255 - mean) / std


@torch.no_grad()
def test_transformers_gives_the_same_outputs(method, pixels, tmp_path):
    transformers = pytest.importorskip("transformers")
    write_huggingface(method.target, tmp_path / "model")
    theirs, about = transformers.AutoModel.from_pretrained(
        tmp_path / "model", add_pooling_layer=False, output_loading_info=True
    )
    assert type(theirs).__name__ == "IJepaModel"
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")
    fed = processor(images=list(pixels), return_tensors="pt")["pixel_values"]
    assert torch.allclose(fed, normalise(pixels.clone()), atol=1e-5)
    assert (theirs(fed).last_hidden_state - method.target(normalise(pixels.clone()))).abs().max() < 1e-5


@torch.no_grad()
def test_a_model_of_transformers_is_read(pixels, tmp_path):
    """Random weights and ImageNet's mean and std, as the published folders have them."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    dial = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96)
    config = transformers.IJepaConfig(**dial, image_size=16, patch_size=4, layer_norm_eps=1e-6)
    theirs = transformers.IJepaModel(config, add_pooling_layer=False).eval()
    for p in theirs.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    theirs.save_pretrained(tmp_path)
    said = dict(image_mean=IMAGENET[0], image_std=IMAGENET[1])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    ours = read_huggingface(tmp_path)
    assert ours.config["positions"] == "learned"
    assert (theirs(imagenet(pixels)).last_hidden_state - ours(normalise(pixels.clone()))).abs().max() < 1e-5


def test_older_names_are_read_too(method, tmp_path):
    write_huggingface(method.target, tmp_path)
    from safetensors.torch import load_file, save_file

    older = {}
    for name, value in load_file(tmp_path / "model.safetensors").items():
        for new, old in interop.NAMES.values():
            name = name.replace(f".{new}.", f".{old}.")
        for letter, word in interop.QKV[1].items():
            name = name.replace(f"attention.{letter}_proj", f"attention.attention.{word}")
        older[name.replace("layers.", "encoder.layer.")] = value
    assert "encoder.layer.0.attention.attention.query.weight" in older
    save_file(older, tmp_path / "model.safetensors")
    again = read_huggingface(tmp_path)
    for (name, p), q in zip(method.target.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.allclose(p, q, atol=1e-6), name


@torch.no_grad()
def test_released_layout_and_back(method, pixels, tmp_path, generator):
    path = tmp_path / "jepa.pth"
    interop.write_released(method, path)
    state = interop.load_state(path)
    assert set(state) >= {"encoder", "predictor", "target_encoder", "epoch"}
    assert state["encoder"]["module.pos_embed"].shape == (1, 16, 96)
    assert state["encoder"]["module.patch_embed.proj.weight"].shape == (96, 3, 4, 4)
    assert {"module.mask_token", "module.predictor_embed.weight"} <= set(state["predictor"])
    masks = multiblock(3, (4, 4), generator=generator)
    for which, ours in (("target_encoder", method.target), ("encoder", method.encoder)):
        again = encoder_from(plain(state[which]), 3, interop.OURS)
        assert (again(normalise(pixels.clone())) - ours(normalise(pixels.clone()))).abs().max() < 1e-5
    predictor = interop.released_predictor(path, heads=2)
    method.predictor.mode = "block"
    context = method.encoder(normalise(pixels.clone()), masks.context)
    there, here = (p(context, masks.context, masks.targets) for p in (predictor, method.predictor))
    assert torch.allclose(there, here, atol=1e-6)


@torch.no_grad()
def test_released_weights_expect_imagenet_and_ours_do_not(method, pixels, tmp_path):
    """What a released encoder gives for ImageNet-normalised pictures, the imported one gives for ours."""
    path = tmp_path / "jepa.pth"
    interop.write_released(method, path)
    ours = interop.released_encoder(path, heads=3)
    assert (ours(normalise(pixels.clone())) - method.target(normalise(pixels.clone()))).abs().max() < 1e-5
    torch.save({k: v for k, v in interop.load_state(path).items() if k != "normalisation"}, tmp_path / "theirs.pth")
    imported = interop.released_encoder(tmp_path / "theirs.pth", heads=3)
    assert (imported(normalise(pixels.clone())) - method.target(imagenet(pixels))).abs().max() < 1e-5
    assert (imported(normalise(pixels.clone())) - method.target(normalise(pixels.clone()))).abs().max() > 1e-2


@torch.no_grad()
def test_toy_weights_load_here(pixels):
    toy = toy_recipe.build("ijepa", "tiny", 16, 4, 3).eval()
    ours = Encoder(16, 4, 96, 4, 3).eval()
    ours.load_state_dict(toy.target.state_dict())
    assert torch.equal(ours(normalise(pixels.clone())), toy.target(normalise(pixels.clone())))


def test_bad_files_are_refused(tmp_path, method):
    class Bomb:
        def __reduce__(self):
            return print, ("executed",)

    path = tmp_path / "bad.pth"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InteropError, match="without executing code"):
        interop.load_state(path)
    torch.save({"model": 1}, path)
    with pytest.raises(InteropError, match="no `target_encoder`"):
        interop.load_state(path)
    state = interop.encoder_state(method.target)
    with pytest.raises(InteropError, match="a class token shifts every patch"):
        encoder_from(state | {"pos_embed": torch.zeros(1, 17, 96)}, 3, IMAGENET)
    with pytest.raises(InteropError, match="give `heads`"):
        encoder_from(state | {"pos_embed": torch.zeros(1, 16, 100)}, None, IMAGENET)
    with pytest.raises(InteropError, match=r"fc1\.weight' is missing"):
        encoder_from({k: v for k, v in state.items() if "fc1" not in k}, 3, IMAGENET)
    with pytest.raises(InteropError, match="is no model folder"):
        read_huggingface(tmp_path)


@torch.no_grad()
def test_an_mlp_of_another_width_is_read_as_it_is(pixels, tmp_path):
    """The released ViT-g/16's is 48/11 times as wide as its tokens."""
    encoder = Encoder(16, 4, 24, 2, 3)
    for block in encoder.blocks.children():
        block.mlp = MLP(24, 104)
    write_huggingface(encoder.eval(), tmp_path / "model")
    back = read_huggingface(tmp_path / "model")
    assert torch.allclose(back(normalise(pixels)), encoder(normalise(pixels)), atol=1e-5)
    with pytest.raises(InteropError, match="four times as wide"):
        interop.write_toy(back, tmp_path / "toy.safetensors")
