"""The toy's dials in one place: sizes, methods, and the settings they train with; a reason beside every number."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from toy_ijepa import weights
from toy_ijepa.encoder import Encoder
from toy_ijepa.jepa import IJEPA
from toy_ijepa.mae import MAE
from toy_ijepa.predictor import Predictor
from toy_ijepa.salt import SALT
from toy_ijepa.sigreg import SIGRegIJEPA
from toy_ijepa.targets import DeepIJEPA
from toy_ijepa.views import LeJEPA, SimCLR


@dataclass(frozen=True)
class Size:
    """Encoder width, depth, heads; predictor (and MAE decoder) width, depth, heads."""

    width: int
    depth: int
    heads: int
    predictor_width: int
    predictor_depth: int
    predictor_heads: int


SIZES = {
    "tiny": Size(96, 4, 3, 64, 2, 2),  #   0.5 M parameters: what a laptop trains in minutes
    "small": Size(192, 6, 6, 96, 4, 3),  # 2.7 M: for longer runs
}

METHODS = {
    "ijepa": "I-JEPA as in the paper, no regulariser",
    "ijepa-vc": "I-JEPA with a light variance-covariance term on pooled context features (C-JEPA)",
    "ijepa-deep": "I-JEPA that predicts the features of all blocks, not of the last alone",
    "salt": "I-JEPA against a frozen teacher, an MAE trained first, in place of the moving average (SALT)",
    "ijepa-sigreg": "masked I-JEPA without a moving average: SIGReg keeps the features from collapsing",
    "lejepa": "two augmented views that agree, kept apart by SIGReg (LeJEPA)",
    "simclr": "two augmented views told from all others of the batch (SimCLR)",
    "mae": "masked autoencoder with the same encoder: predicts pixels",
}

# Steps of each method in the main job, about the same CPU seconds (measured; assets/results/first-*.json holds them):
# short enough for a first run, long enough that nearest neighbours tell I-JEPA from its twin. What a step of the others
# costs is in assets/results/LOG.md; SALT's teacher takes as many steps again.
STEPS = {"ijepa": 1200, "ijepa-vc": 1200, "ijepa-deep": 1200, "ijepa-sigreg": 1200, "mae": 2000}
STEPS |= {"salt": 800, "lejepa": 800, "simclr": 800}

MOMENTUM = (
    0.95,
    0.9995,
)  # a target that remembers 1/(1-m) = 20 steps at first: .996 is still random when a toy run ends
REGULARISER = (0.1, 0.005)  # of "ijepa-vc": enough to spread the features, too little to lead
LOSS = "smooth_l1"  # the released code's; the paper says L2


def default_patch(image_size: int) -> int:
    """Patch side in pixels for about 8x8 to 14x14 patches: 4 up to 48 px, 8 up to 112 px, then 16."""
    return 4 if image_size <= 48 else 8 if image_size <= 112 else 16


def build_encoder(size: str, image_size: int, patch: int, seed: int) -> Encoder:
    """A fresh encoder; the same seed gives the same weights, whatever is trained around it."""
    dial = lookup(SIZES, size, "size")
    torch.manual_seed(seed)
    return Encoder(image_size, patch, dial.width, dial.depth, dial.heads)


def build(method: str, size: str, image_size: int, patch: int, seed: int, masks: str = "multiblock") -> nn.Module:
    """A method around a fresh encoder, ready for `train`. Raises ValueError for an unknown method, size or strategy."""
    lookup(METHODS, method, "method")
    dial = lookup(SIZES, size, "size")
    encoder = build_encoder(size, image_size, patch, seed)
    narrow = (dial.predictor_width, dial.predictor_depth, dial.predictor_heads)
    if method == "mae":
        return MAE(encoder, *narrow)
    if method == "simclr":
        return SimCLR(encoder)
    if method == "lejepa":
        return LeJEPA(encoder)
    predictor = Predictor(encoder.grid, dial.width, *narrow, mode="joint")
    options = dict(masks=masks, loss=LOSS, momentum=MOMENTUM)
    if method == "ijepa-deep":
        return DeepIJEPA(encoder, predictor, depths=dial.depth, **options)
    if method == "salt":
        return SALT(encoder, predictor, masks=masks, loss=LOSS)
    if method == "ijepa-sigreg":
        return SIGRegIJEPA(encoder, predictor, **options)
    return IJEPA(encoder, predictor, regulariser=REGULARISER if method == "ijepa-vc" else (0.0, 0.0), **options)


def save_model(model: nn.Module, path: Path, method: str, dial: dict, about: dict | None = None) -> None:
    """Write a whole method (both encoders and predictor, or encoder and decoder) and how to build it again.

    dial  size, image_size and patch, as given to `build`
    """
    weights.save(model, path, {**(about or {}), "method": method, "dial": dial})


def load_model(path: Path) -> tuple[nn.Module, dict]:
    """The method that `save_model` wrote, ready to use, and what was said about it.

    Raises FileNotFoundError, or ValueError if the file is not one of ours or does not fit its description.
    """
    tensors, about = weights.read(path)
    if not {"method", "dial"} <= about.keys():
        raise ValueError(f"{path} does not say how to build its model; an encoder alone opens with `load_encoder`")
    model = build(about["method"], seed=0, **about["dial"])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the model it describes: {error}") from error
    return model.eval(), about


def lookup(table: dict, name: str, what: str):
    """table[name], or ValueError naming the nearest entry."""
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown {what} {name!r}: {hint}choose from {', '.join(table)}")
    return table[name]
