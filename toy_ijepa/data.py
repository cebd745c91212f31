"""Pictures as one uint8 tensor: the embedded `shapes`, torchvision's CIFAR and STL-10, or any folder of image files."""

# Shape legend:  S pictures  C = 3 channels  H,W pixels

from __future__ import annotations

import difflib
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from toy_ijepa import shapes
from toy_ijepa.environment import import_torchvision
from toy_ijepa.fetch import fetch
from toy_ijepa.folders import SPLITS, DataError, ImageSet, cache_root, from_folder

EMBEDDED = "shapes:0.5"  # the embedded pictures of the main job: silhouettes under grain of this std
NAMES = ("shapes", "cifar10", "cifar100", "stl10")
SHAPES_COUNT = {"train": 20_000, "test": 4_000}


def load(name: str, split: str = "train", image_size: int | None = None, allow_skipped: bool = False) -> ImageSet:
    """Load a picture set by name.

    name           "shapes" (embedded), "shapes:STD" (under grain of that std), "cifar10", "cifar100", "stl10" (through
                   torchvision), or "folder:PATH"
    split          "train" or "test"; "unlabeled" too for stl10
    image_size     side in pixels to resize to (shorter side, then the middle square); default the set's own
    allow_skipped  go on although more than a small share of a folder's files cannot be read

    A folder tree NAME/{train,test}/<class>/* under the environment variable IJEPA_DATA is read instead of a download;
    where else archives are looked for, and for how long, is in fetch.py.
    Raises DataError (a ValueError) for an unknown name or split, an empty folder, or a download that fails.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image size {image_size} px is not a positive number of pixels")
    if name.startswith("folder:"):
        return from_folder(Path(name.removeprefix("folder:")).expanduser(), split, image_size, allow_skipped)
    if name.startswith("shapes:"):
        return from_shapes(split, image_size, grain_of(name))
    if name not in NAMES:
        near = difflib.get_close_matches(name.lower(), [*NAMES, "folder:PATH"], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"unknown data set {name!r}: {hint}choose from {', '.join(NAMES)}, folder:PATH")
    known = (*SPLITS, "unlabeled") if name == "stl10" else SPLITS
    if split not in known:
        raise DataError(f"{name} has no split {split!r}: choose from {', '.join(known)}")
    stand_in = Path(os.environ.get("IJEPA_DATA", "")) / name
    if name != "shapes" and os.environ.get("IJEPA_DATA") and stand_in.is_dir():
        return from_folder(stand_in, split, image_size, allow_skipped)
    return from_shapes(split, image_size) if name == "shapes" else from_torchvision(name, split, image_size)


def photographs(otherwise: str = EMBEDDED) -> tuple[str, str]:
    """The name of the pictures to use where nobody chose, and why: CIFAR-10 if it can be had, else an embedded set.

    CIFAR-10 comes from IJEPA_DATA, the cache, a local archive or the network (toy_ijepa/fetch.py says how long it
    waits). Raises MachineError if pictures cannot be read at all.
    """
    try:
        load("cifar10", "test")
    except DataError as error:
        return otherwise, f"the embedded {otherwise}, because CIFAR-10 cannot be had here: {error}"
    return "cifar10", "CIFAR-10, photographs of 32 x 32 px in ten classes (--data shapes for the embedded ones)"


def resize(images: Tensor, image_size: int | None) -> Tensor:
    """uint8 images (S, 3, H, W) brought to image_size: shorter side to that size, then the middle square."""
    H, W = images.shape[2:]
    if image_size is None or (image_size, image_size) == (H, W):
        return images
    scale = image_size / min(H, W)
    h, w = max(round(H * scale), image_size), max(round(W * scale), image_size)
    top, left, out = (h - image_size) // 2, (w - image_size) // 2, []
    for chunk in images.split(500):
        big = F.interpolate(chunk.float(), size=(h, w), mode="bilinear", antialias=True, align_corners=False)
        out.append(big.round().clamp(0, 255).byte()[:, :, top : top + image_size, left : left + image_size])
    return torch.cat(out)


def grain_of(name: str) -> float:
    """The std behind "shapes:STD", 0 for plain "shapes". Raises DataError if it is not a number within 0 and 2."""
    try:
        std = 0.0 if name == "shapes" else float(name.removeprefix("shapes:"))
    except ValueError:
        std = -1.0
    if not 0 <= std <= 2:
        raise DataError(f"{name!r}: the grain is a std between 0 (none) and 2, black being 0 and white 1: shapes:0.3")
    return std


def from_shapes(split: str, image_size: int | None, grain: float = 0.0) -> ImageSet:
    """The embedded silhouettes; image_size is the side they are drawn at (default 32)."""
    pictures = shapes.generate(SHAPES_COUNT[split], shapes.SPLIT_SEED[split], image_size or 32, grain=grain)
    return ImageSet(pictures.images, pictures.factors["shape"], tuple(shapes.CLASSES), pictures.factors)


def from_torchvision(name: str, split: str, image_size: int | None) -> ImageSet:
    """A torchvision set, fetched and checked on first use. Raises MachineError if torchvision does not work here."""
    import_torchvision()  # outside of what is taken for a failed download
    root = cache_root() / "downloads"
    part = {"split": split} if name == "stl10" else {"train": split == "train"}
    try:
        root.mkdir(parents=True, exist_ok=True)
        source = fetch(name, root, **part)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"could not fetch {name} ({error}). Put its files under {root}, or set IJEPA_DATA to a folder that holds "
            f"{name}/train/<class>/*.jpg and {name}/test/<class>/*.jpg; --data shapes needs no download"
        ) from error
    array = np.asarray(source.data)
    images = torch.from_numpy(array if name == "stl10" else array.transpose(0, 3, 1, 2).copy())
    labels = torch.as_tensor(np.asarray(source.labels if name == "stl10" else source.targets))
    return ImageSet(resize(images, image_size), labels.long(), tuple(source.classes))
