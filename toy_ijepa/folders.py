"""Any folder of picture files as one uint8 tensor: decoded once, then read from a cache while nothing changes."""

# Shape legend:  S pictures  C = 3 channels  H,W pixels

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = ("train", "test")
MIXED_SIDE = 32  # px: the side that pictures of different sizes are brought to if the caller names none


class DataError(ValueError):
    """Pictures that cannot be had, with what to do about it."""


@dataclass(frozen=True)
class ImageSet:
    """Pictures of one split, decoded.

    images   uint8 (S, 3, H, W), RGB
    labels   int64 (S,), class numbers; all -1 where the source has no classes
    classes  their names, empty where there are none
    factors  of `shapes` only: every generating factor, (S,)
    skipped  files that could not be read, with the reason
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    factors: dict[str, Tensor] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def cache_root() -> Path:
    """Where decoded arrays and downloads go: `IJEPA_CACHE`, else the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("IJEPA_CACHE") or Path(home) / "ijepa")


def find(root: Path, split: str) -> tuple[list[Path], list[str]]:
    """Image files of a split, sorted, and the class name of each ("" where there are no class folders).

    root/{train,test} is used where it exists; else every fifth file of each class is the test split.
    Raises DataError for a missing or empty folder.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}; --data folder:PATH needs one that holds pictures")
    if split not in SPLITS:
        raise DataError(f"a folder has no split {split!r}: choose from {', '.join(SPLITS)}")
    divided = (root / "train").is_dir()
    base = root / split if divided else root
    files = sorted(p for p in base.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()) if base.is_dir() else []
    if not files:
        raise DataError(f"no pictures in {base}: expected {', '.join(SUFFIXES)}, in one folder a class or loose")
    names = [p.relative_to(base).parts[0] if p.parent != base else "" for p in files]
    if not divided:
        seen: Counter[str] = Counter()
        keep = []
        for label in names:
            keep.append((seen[label] % 5 == 4) == (split == "test"))
            seen[label] += 1
        files = [f for f, k in zip(files, keep, strict=True) if k]
        names = [n for n, k in zip(names, keep, strict=True) if k]
        if not files:
            raise DataError(f"too few pictures in {base} to set a test split aside: at least five a class are needed")
    return files, names


def read_picture(path: Path) -> Image.Image:
    """One picture as 8-bit RGB, turned upright: first frame of an animation, 16 bit scaled, transparency on white.

    Raises OSError (unreadable or truncated), ValueError or Image.DecompressionBombError.
    """
    with Image.open(path) as picture:
        picture.load()
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I") or picture.mode == "F":
            # TRAP: PIL's convert clips 16 bit at 255: nearly every pixel becomes white.
            values = np.asarray(picture, dtype=np.float64)
            top = 65535.0 if values.max() > 255 else 255.0
            picture = Image.fromarray((values * (255.0 / top)).clip(0, 255).round().astype(np.uint8))
        if "A" in picture.getbands() or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")


def read_array(path: Path, image_size: int | None) -> np.ndarray | str:
    """One picture (3, H, W) uint8, brought to image_size if given; or the reason why it cannot be read."""
    try:
        picture = read_picture(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{path.name}: {error}"
    if image_size is not None and picture.size != (image_size, image_size):
        picture = ImageOps.fit(picture, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(picture).transpose(2, 0, 1)


def fingerprint(files: list[Path], root: Path, image_size: int | None) -> str:
    """A hash of names, sizes and times of the files, and of the size asked for: changes when the source does."""
    lines = [f"{f.relative_to(root)} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    return hashlib.sha256("\n".join([f"v1 {image_size}", *lines]).encode()).hexdigest()


def from_folder(root: Path, split: str, image_size: int | None) -> ImageSet:
    """Pictures of a folder: class sub-folders or none; decoded once, then read from the cache while nothing changes."""
    files, names = find(root, split)
    mark = fingerprint(files, root, image_size)
    place = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    cached = cache_root() / "decoded" / f"{root.name}-{place}-{split}-{image_size or 'own'}.safetensors"
    known = read_cache(cached, mark)
    if known is not None:
        return known
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        arrays = list(pool.map(lambda f: read_array(f, image_size), files))
        if len({a.shape for a in arrays if not isinstance(a, str)}) > 1:  # pictures of different sizes
            arrays = list(pool.map(lambda f: read_array(f, MIXED_SIDE), files))
    skipped = tuple(a for a in arrays if isinstance(a, str))
    good = [(a, n) for a, n in zip(arrays, names, strict=True) if not isinstance(a, str)]
    if not good:
        raise DataError(f"none of the {len(files)} pictures in {root} could be read; the first: {skipped[0]}")
    if skipped:
        warnings.warn(f"{len(skipped)} of {len(files)} pictures skipped; the first: {skipped[0]}", stacklevel=2)
    classes = tuple(sorted({n for n in names if n}))
    number = {n: i for i, n in enumerate(classes)} | {"": -1}
    images = torch.from_numpy(np.stack([a for a, _ in good]))
    result = ImageSet(images, torch.tensor([number[n] for _, n in good]), classes, {}, skipped)
    write_cache(cached, mark, result)
    return result


def read_cache(path: Path, mark: str) -> ImageSet | None:
    """The cached set if it was made from exactly this source."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            if about["fingerprint"] != mark:
                return None
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
    except (OSError, SafetensorError):
        return None  # none yet, or one that a full disk cut short: decode again
    return ImageSet(images, labels, tuple(json.loads(about["classes"])), {}, tuple(json.loads(about["skipped"])))


def write_cache(path: Path, mark: str, images: ImageSet) -> None:
    """Write the decoded set in one piece or not at all; a full disk costs only the cache."""
    about = dict(fingerprint=mark, classes=json.dumps(images.classes), skipped=json.dumps(images.skipped))
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(images=images.images.contiguous(), labels=images.labels), part, metadata=about)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        warnings.warn(f"decoded pictures not cached ({error}); they will be decoded again next time", stacklevel=2)
