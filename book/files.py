"""Files beside the pages: the modules of the explorables, pictures to play with, weights, notebooks to download."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import nbformat
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import Tensor

from book.notebooks import students
from toy_ijepa import shapes
from toy_ijepa.imagination import gallery
from toy_ijepa.recipe import SIZES, load_model
from toy_ijepa.widgets import canvas, predict

HERE = Path(__file__).parent
ROOT = HERE.parent
CHAPTERS = sorted((ROOT / "chapters").glob("[0-9]*.ipynb"))
EXERCISES = sorted((ROOT / "chapters" / "exercises").glob("[0-9]*.ipynb"))
WEIGHTS = ROOT / "assets" / "weights"
SHOWN = 10  # drawings to play with
CROWD = 480  # drawings to train on in the page
SHELF = 100  # drawings whose patches are the gallery of the drawings
SIDE = 32  # pixels
# Of scikit-learn's two photographs (CC BY 2.0): file, and left, top and side of the square that is shown, in pixels.
PHOTOGRAPHS = {"flower": ("flower.jpg", (150, 20, 390)), "pagoda": ("china.jpg", (30, 100, 320))}


def sheet(images: Tensor, columns: int) -> Image.Image:
    """Pictures (S, 3, H, W), uint8, beside and below each other."""
    S, _, H, W = images.shape
    rows = -(-S // columns)
    whole = torch.zeros(rows * columns, 3, H, W, dtype=torch.uint8)
    whole[:S] = images
    whole = whole.reshape(rows, columns, 3, H, W).permute(0, 3, 1, 4, 2).reshape(rows * H, columns * W, 3)
    return Image.fromarray(whole.numpy())


def photographs() -> Tensor:
    """scikit-learn's photographs as the toy sees them: (S, 3, 32, 32), uint8."""
    found = []
    for file, (left, top, side) in PHOTOGRAPHS.values():
        square = Image.fromarray(load_sample_image(file)).crop((left, top, left + side, top + side))
        found.append(np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def shelf(name: str, images: Tensor, patches: int, path: Path) -> None:
    """Write `patches` patches of uint8 images (S, C, H, W), drawn evenly, as the shipped model `name` sees them."""
    model, _ = load_model(WEIGHTS / f"{name}.safetensors")
    found = gallery(model, images)
    kept = torch.randperm(len(found.pixels), generator=torch.Generator().manual_seed(0))[:patches]
    tensors = {
        "features": found.features[kept].half().contiguous(),
        "pixels": found.pixels[kept].mul(255).round().byte().contiguous(),
        "mean": found.mean.float(),
    }
    save_file(tensors, path)


def modules(folder: Path) -> None:
    """The modules of the explorables, and those that they share with the notebooks' widgets."""
    shutil.copytree(HERE / "explore", folder, dirs_exist_ok=True)
    (folder / "canvas.js").write_text(canvas.PatchCanvas._esm)
    (folder / "predict.js").write_text(predict.Predictions._esm)
    (folder / "widgets.css").write_text(canvas.STYLE + predict.STYLE)
    (folder / "sizes.json").write_text(json.dumps({name: asdict(size) for name, size in SIZES.items()}))


def pictures(folder: Path) -> None:
    """Pictures to play with: drawings of the package (none that the shipped weights were trained on), photographs."""
    folder.mkdir(exist_ok=True)
    seed = shapes.SPLIT_SEED["test"]
    drawn = shapes.generate(SHOWN, seed=seed)
    sheet(drawn.images, SHOWN).save(folder / "drawings.png")
    sheet(photographs(), len(PHOTOGRAPHS)).save(folder / "photographs.png")
    small = shapes.generate(CROWD, seed=1, side=16, copies=2)
    sheet(small.images, 24).save(folder / "crowd.png")


def weights(folder: Path) -> None:
    """What is fetched when play begins: a model for photographs and one for drawings, each with its gallery."""
    folder.mkdir(exist_ok=True)
    for name in ("ijepa-cifar10", "ijepa-shapes"):
        shutil.copy(WEIGHTS / f"{name}.safetensors", folder)
    shutil.copy(HERE / "gallery-cifar10.safetensors", folder)
    others = shapes.generate(SHELF, seed=shapes.SPLIT_SEED["test"] + 1).images
    shelf("ijepa-shapes", others, 4000, folder / "gallery-shapes.safetensors")


def downloads(folder: Path) -> None:
    """The notebooks as they are stored, and the exercises as students get them."""
    (folder / "exercises").mkdir(parents=True, exist_ok=True)
    for path in CHAPTERS:
        shutil.copy(path, folder)
    for path in EXERCISES:
        nbformat.write(students(nbformat.read(path, as_version=4)), folder / "exercises" / path.name)


def write(site: Path) -> None:
    """Everything of this module into the folder of the site."""
    modules(site / "explore")
    pictures(site / "pictures")
    weights(site / "weights")
    downloads(site / "notebooks")
