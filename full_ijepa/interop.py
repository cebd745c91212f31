"""Exchange of weights: checkpoints as released with I-JEPA, and Hugging Face `IJepaModel` folders, both ways.

Our parameter names are those of the released checkpoints already; three things differ. Theirs prefix `module.`, store
positions, and cut patches by a convolution. Hugging Face splits qkv in three and renames most of the rest.

TRAP: who wrote the weights decides how pictures are normalised. Here everything is trained on (x - 0.5) / 0.25, the
released weights on ImageNet's mean and std. Imported weights get that difference folded into their patch embedding,
exactly, so that everything in this package works with them unchanged.
Source: facebookresearch/ijepa, src/models/vision_transformer.py (names); transformers, models/ijepa (names, eps).
"""

# Shape legend:  N tokens  D width  C channels  P patch side (pixels)  h,w grid

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from full_ijepa.methods import IJEPA
from full_ijepa.pixels import PHOTOGRAPHS, Pixels
from full_ijepa.vit import SIZES, Encoder
from toy_ijepa import weights as toy_weights
from toy_ijepa.encoder import LAYER_NORM_EPS
from toy_ijepa.patches import sincos_2d
from toy_ijepa.predictor import Predictor

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std that released weights were trained with
OURS = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # toy_ijepa.patches.normalise
HEADS = {width: heads for width, _, heads in SIZES.values()} | {1408: 16}  # not in a released file; 1408: ViT-g

State = dict[str, Tensor]
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]

# ours -> Hugging Face's, inside a block; the second column is what older releases write
NAMES = {
    "norm1": ("layernorm_before", "layernorm_before"),
    "attn.proj": ("attention.o_proj", "attention.output.dense"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "mlp.fc1": ("mlp.fc1", "intermediate.dense"),
    "mlp.fc2": ("mlp.fc2", "output.dense"),
}
QKV = ("attention.{}_proj", "attention.attention.{}"), ({"q": "query", "k": "key", "v": "value"})


class InteropError(ValueError):
    """A file that is not what it should be, with what was expected."""


def load_state(path: Path | str) -> dict[str, Any]:
    """A released checkpoint, without executing code. Raises InteropError if it is not one."""
    if not Path(path).is_file():
        raise InteropError(f"no file {path}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises many kinds
        raise InteropError(f"{path} is not a checkpoint that loads without executing code ({error})") from error
    if not isinstance(found, dict) or "target_encoder" not in found:
        raise InteropError(f"{path} holds no `target_encoder`; expected a checkpoint as released with I-JEPA")
    return found


def plain(state: State) -> State:
    """Without the prefix that data-parallel training leaves."""
    return {name.removeprefix("module."): value.float() for name, value in state.items()}


def fold_normalisation(encoder: Encoder, found: Normalisation) -> None:
    """Change the patch embedding, in place, so that pictures normalised our way give what `found` gave before.

    An affine change of every channel commutes with a linear layer: weights are scaled, the bias takes up the shift.
    """
    proj, C = encoder.patch_embed.proj, encoder.patch_embed.channels
    (mean, std), (our_mean, our_std) = (tuple(map(torch.tensor, n)) for n in (found, OURS))
    with torch.no_grad():
        weight = proj.weight.double().reshape(len(proj.weight), C, -1)  #       (D, C, P*P)
        shift = ((our_mean - mean) / std).double()[:, None]
        proj.bias.add_((weight * shift).sum((1, 2)))
        proj.weight.copy_((weight * (our_std / std).double()[:, None]).reshape(proj.weight.shape))


def encoder_from(state: State, heads: int | None, found: Normalisation, pixels: Pixels = PHOTOGRAPHS) -> Encoder:
    """An encoder from weights with released names; sizes are read off the tensors.

    heads   needed only for a width that no released model has
    found   mean and std that the weights expect, of values from 0 to 1
    pixels  what else than photographs they expect; then it says mean and std
    Raises InteropError if the tensors do not make an encoder.
    """
    try:
        positions, conv = state["pos_embed"], state["patch_embed.proj.weight"]
        hidden = len(state["blocks.0.mlp.fc1.weight"])
        depth = 1 + max(int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name)))
    except (KeyError, ValueError) as error:
        raise InteropError(f"this is no I-JEPA encoder: {error} is missing") from error
    _, N, D = positions.shape
    side, P = round(N**0.5), conv.shape[-1]
    if side * side != N:
        raise InteropError(
            f"{N} positions are no square grid; a class token shifts every patch by one: remove it first"
        )
    heads = heads or HEADS.get(D)
    if heads is None:
        raise InteropError(f"an encoder {D} wide does not say how many heads it has; give `heads`")
    fixed = torch.allclose(positions[0], sincos_2d((side, side), D), atol=1e-5)
    options = dict(positions="fixed" if fixed else "learned", mlp_ratio=hidden / D, pixels=pixels)
    encoder = Encoder(side * P, P, D, depth, heads, **options)
    weights = {k: v for k, v in state.items() if k != "pos_embed"} | {"patch_embed.proj.weight": conv.flatten(1)}
    load(encoder, weights if fixed else weights | {"pos_embed": positions[0]})
    if pixels == PHOTOGRAPHS:
        fold_normalisation(encoder, found)
    return encoder.eval()


def load(module: nn.Module, weights: State) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise InteropError(f"the weights do not fit: {error}") from error


def released_encoder(
    path: Path | str, which: Literal["target_encoder", "encoder"] = "target_encoder", heads: int | None = None
) -> Encoder:
    """An encoder out of a released checkpoint; the target encoder is the one whose scores are published.

    Raises InteropError for a file that is not one.
    """
    found = load_state(path)
    return encoder_from(plain(found[which]), heads, found.get("normalisation", IMAGENET))


def released_predictor(path: Path | str, heads: int | None = None) -> Predictor:
    """The predictor of a released checkpoint. Its heads are the encoder's, the released code's convention.

    Raises InteropError for a file that is not one.
    """
    found = load_state(path)
    state = {re.sub("^predictor_", "", name): value for name, value in plain(found["predictor"]).items()}
    D, E = state["proj.weight"].shape
    side, depth = (
        round(state["pos_embed"].shape[1] ** 0.5),
        1 + max(int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name))),
    )
    predictor = Predictor((side, side), D, E, depth, heads or HEADS.get(D, 12), mode="block")
    load(predictor, {k: v for k, v in state.items() if k != "pos_embed"})
    return predictor.eval()


def encoder_state(encoder: Encoder) -> State:
    """An encoder's weights with released names; they expect pictures normalised our way."""
    state = {k: v.detach().cpu() for k, v in encoder.state_dict().items() if k != "pos_embed"}
    conv = state["patch_embed.proj.weight"].reshape(-1, encoder.patch_embed.channels, encoder.patch, encoder.patch)
    return state | {"patch_embed.proj.weight": conv, "pos_embed": encoder.pos_embed.detach().cpu()[None]}


def write_released(method: IJEPA, path: Path) -> None:
    """Both encoders and the predictor in the layout of the released checkpoints.

    They expect pictures normalised by mean 0.5 and std 0.25, which the entry `normalisation` says.
    Raises InteropError for other pictures than photographs, which that layout cannot describe.
    """
    only_photographs(method.encoder, "the released layout")
    predictor = {k if k == "mask_token" else f"predictor_{k}": v for k, v in method.predictor.state_dict().items()}
    predictor["predictor_pos_embed"] = method.predictor.pos_embed[None]
    parts = dict(
        encoder=encoder_state(method.encoder), predictor=predictor, target_encoder=encoder_state(method.target)
    )
    state: dict[str, Any] = {part: {f"module.{k}": v for k, v in named.items()} for part, named in parts.items()}
    torch.save(state | dict(epoch=0, normalisation=OURS), path)


def write_huggingface(encoder: Encoder, folder: Path) -> None:
    """A folder that `transformers.AutoModel.from_pretrained` opens as IJepaModel: weights, config and processor."""
    state, out = encoder_state(encoder), {}
    out["embeddings.position_embeddings"] = state.pop("pos_embed")
    for kind in ("weight", "bias"):
        out[f"embeddings.patch_embeddings.projection.{kind}"] = state.pop(f"patch_embed.proj.{kind}")
        out[f"layernorm.{kind}"] = state.pop(f"norm.{kind}")
    for name, value in state.items():
        _, number, rest = name.split(".", 2)
        inner, kind = rest.rsplit(".", 1)
        if inner == "attn.qkv":
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                out[f"layers.{number}.{QKV[0][0].format(letter)}.{kind}"] = third.contiguous()
        else:
            out[f"layers.{number}.{NAMES[inner][0]}.{kind}"] = value
    h, w = encoder.grid
    if h != w:
        raise InteropError(f"Hugging Face's model is square; this encoder's grid is {h}x{w}")
    config = dict(
        architectures=["IJepaModel"],
        model_type="ijepa",
        hidden_size=encoder.width,
        num_hidden_layers=len(encoder.blocks),
        num_attention_heads=encoder.config["heads"],
        intermediate_size=encoder.blocks[0].mlp.fc1.out_features,
        hidden_act="gelu",
        layer_norm_eps=LAYER_NORM_EPS,  # TRAP: their default is 1e-12
        image_size=h * encoder.patch,
        patch_size=encoder.patch,
        num_channels=encoder.patch_embed.channels,
        qkv_bias=True,
        torch_dtype="float32",
    )
    processor = processor_of(encoder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in out.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def processor_of(encoder: Encoder) -> dict[str, Any]:
    """How transformers' image processor has to prepare pictures for this encoder, as preprocessor_config.json says it.

    The shorter side is scaled and the middle cut out, grey becomes colour, values keep their range: as everywhere here.
    Two things it cannot do: it reads 16 bit into colour wrongly, and leaves out the white behind what is transparent.
    """
    pixels, side = encoder.pixels, encoder.grid[0] * encoder.patch
    top = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}[pixels.depth]
    return dict(
        image_processor_type="ViTImageProcessor",
        do_convert_rgb=pixels.channels == 3,
        do_resize=True,
        size={"shortest_edge": side},
        resample=2,
        do_center_crop=True,
        crop_size={"height": side, "width": side},
        do_rescale=True,
        rescale_factor=1 / top,
        do_normalize=True,
        image_mean=[value / top for value in pixels.mean * (pixels.channels // len(pixels.mean))],
        image_std=[value / top for value in pixels.std * (pixels.channels // len(pixels.std))],
        pixels=asdict(pixels),
    )


def read_huggingface(folder: Path) -> Encoder:
    """The encoder of an IJepaModel folder (config.json, model.safetensors), written by any release of transformers.

    Mean and std come from its processor, ImageNet's where it has none; channels and depth too, if it was written here.
    Raises InteropError for a folder that is not one.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        state = load_file(folder / "model.safetensors")
    except (OSError, ValueError) as error:
        raise InteropError(
            f"{folder} is no model folder: expected config.json and model.safetensors ({error})"
        ) from error
    if config.get("model_type") != "ijepa":
        raise InteropError(f"{folder} holds a {config.get('model_type')!r} model, not 'ijepa'")
    about = folder / "preprocessor_config.json"
    said = json.loads(about.read_text()) if about.exists() else {}
    pixels = Pixels(**{k: tuple(v) if isinstance(v, list) else v for k, v in said.get("pixels", {}).items()})
    found = tuple(said.get("image_mean", IMAGENET[0])), tuple(said.get("image_std", IMAGENET[1]))
    state = {re.sub(r"^(ijepa\.)?(encoder\.layer(?=\.))?", _layers, k): v.float() for k, v in state.items()}
    ours: State = {"pos_embed": state["embeddings.position_embeddings"]}
    for kind in ("weight", "bias"):
        ours[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embeddings.projection.{kind}"]
        ours[f"norm.{kind}"] = state[f"layernorm.{kind}"]
        for number in range(config["num_hidden_layers"]):
            for name, theirs in NAMES.items():
                ours[f"blocks.{number}.{name}.{kind}"] = either(state, number, theirs, kind)
            thirds = [either(state, number, (QKV[0][0].format(x), QKV[0][1].format(QKV[1][x])), kind) for x in "qkv"]
            ours[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(thirds)
    return encoder_from(ours, config["num_attention_heads"], found, pixels)


def _layers(match: re.Match) -> str:
    """Older releases say `encoder.layer.0`, newer ones `layers.0`."""
    return "layers" if match[2] else ""


def either(state: State, number: int, names: tuple[str, str], kind: str) -> Tensor:
    """A tensor of a block under its newer or its older name. Raises InteropError if it has neither."""
    for name in names:
        if (found := state.get(f"layers.{number}.{name}.{kind}")) is not None:
            return found
    raise InteropError(f"the model has no layers.{number}.{names[0]}.{kind} (nor its older name {names[1]})")


def only_photographs(encoder: Encoder, what: str) -> None:
    if encoder.pixels != PHOTOGRAPHS:
        p = encoder.pixels
        raise InteropError(
            f"{what} knows 8-bit colour with ImageNet's mean and std only; this encoder has {p.channels} channels of "
            f"{p.depth}, mean {p.mean} and std {p.std}"
        )


def write_toy(encoder: Encoder, path: Path) -> None:
    """An encoder with fixed positions as a file for `toy_ijepa.weights.load_encoder`.

    Raises InteropError for learned positions, another width of the MLPs or other pictures than photographs, which the
    toy does not have.
    """
    only_photographs(encoder, "the toy")
    if encoder.config["positions"] != "fixed":
        raise InteropError("the toy's encoder has fixed positions only; this one learned its own")
    if encoder.blocks[0].mlp.fc1.out_features != 4 * encoder.width:
        raise InteropError("the toy's MLPs are four times as wide as its tokens; this encoder's are not")
    config = {k: v for k, v in encoder.config.items() if k != "positions"}
    toy_weights.save(encoder, path, dict(encoder=config))
