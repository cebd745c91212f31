"""The README's figures, drawn anew from shipped weights and stored results: python assets/draw.py"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from toy_ijepa import imagination, plots
from toy_ijepa.data import grain_of, load
from toy_ijepa.recipe import load_model
from toy_ijepa.shapes import CLASSES

ASSETS = Path(__file__).parent
# Class and number within it of CIFAR-10 test pictures (JPEG files, sorted): chosen because they can be recognised at
# 32 px, before anything was imagined.
SHOWN = [("horse", 7), ("ship", 5), ("truck", 2), ("airplane", 7), ("automobile", 8), ("deer", 3)]
SEED = 3  # of the masks


def imagined() -> None:
    """Photographs, what the encoder sees of them, and what it imagines; the shelf holds training pictures only."""
    train, test = load("cifar10", "train"), load("cifar10", "test")
    model, _ = load_model(ASSETS / "weights" / "ijepa-cifar10.safetensors")
    rows = [(test.labels == test.classes.index(name)).nonzero()[n].item() for name, n in SHOWN]
    images = test.images[rows]
    drawn = model.sample(len(images), model.encoder.grid, generator=torch.Generator().manual_seed(SEED))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:2000]
    patches, _ = imagination.imagine(model, images, drawn, imagination.gallery(model, train.images[order]))
    figure = plots.hide_and_imagine(images, drawn, patches, model.encoder.patch)
    figure.savefig(ASSETS / "imagination.png", dpi=90)


def grain() -> None:
    """Accuracy against grain, from the stored runs of `shapes` and `shapes:STD`."""
    found = {}
    for path in ASSETS.glob("results/first-shapes*.json"):
        metrics = json.loads(path.read_text())
        found[grain_of(metrics["data"])] = metrics["probes"]
    plots.grain_curves(found, 100 / len(CLASSES)).savefig(ASSETS / "grain.png", dpi=110)


if __name__ == "__main__":
    imagined()
    grain()
