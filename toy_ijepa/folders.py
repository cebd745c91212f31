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
EXIF_ORIENTATION = 0x0112
MOST_BYTES = 4_000_000_000  # of one split at the pictures' own size
NAMED = 20  # files that could not be read are named up to so many
MIXED_SIDE = 32  # px: the side that pictures of different sizes are brought to if the caller names none


class DataError(ValueError):
    """Pictures that cannot be had, with what to do about it."""


@dataclass(frozen=True)
class ImageSet:
    """Pictures of one split, decoded.

    images   uint8 (S, 3, H, W), RGB
    labels   int64 (S,), class numbers; all -1 where the source has no classes
    classes  their names, empty where there are none
    factors  of `shapes` only: every generating factor, (S,) or (S, objects)
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


def pictures_below(base: Path) -> list[tuple[Path, str]]:
    """Image files below a folder, sorted, with the class each belongs to: the first sub-folder, or "" for none.

    Follows links; leaves out what is hidden. Raises DataError if some lie in class folders and some do not.
    """
    found = []
    for folder, below, names in os.walk(base, followlinks=True):
        below[:] = sorted(d for d in below if not d.startswith("."))
        inside = Path(folder).relative_to(base).parts
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                found.append((Path(folder) / name, inside[0] if inside else ""))
    loose = sum(label == "" for _, label in found)
    if 0 < loose < len(found):
        raise DataError(f"{loose} pictures lie loose in {base} beside class folders; put each into a class folder")
    return sorted(found)


def find(root: Path, split: str) -> tuple[list[tuple[Path, str]], tuple[str, ...]]:
    """Image files of a split with the class of each, and the names of all classes of the *whole* source.

    root/{train,test} is used where it exists; else every fifth file of each class is the test split.
    Raises DataError for a missing or empty folder, too few pictures, or a test class that training does not have.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}; --data folder:PATH needs one that holds pictures")
    if split not in SPLITS:
        raise DataError(f"a folder has no split {split!r}: choose from {', '.join(SPLITS)}")
    divided = (root / "train").is_dir()
    base = root / split if divided else root
    files = pictures_below(base) if base.is_dir() else []
    if not files:
        raise DataError(f"no pictures in {base}: expected {', '.join(SUFFIXES)}, in one folder a class or loose")
    classes = tuple(sorted({label for _, label in (pictures_below(root / "train") if divided else files)} - {""}))
    if unknown := {label for _, label in files} - {"", *classes}:
        raise DataError(f"{base} has a class {min(unknown)!r} that {root / 'train'} does not")
    if not divided:
        seen: Counter[str] = Counter()
        kept = []
        for file, label in files:
            if (seen[label] % 5 == 4) == (split == "test"):
                kept.append((file, label))
            seen[label] += 1
        files = kept
        if not files:
            raise DataError(f"too few pictures in {base} to set a test split aside: at least five a class are needed")
    return files, classes


def read_picture(path: Path) -> Image.Image:
    """One picture as 8-bit RGB, turned upright: first frame of an animation, transparency on white.

    16 bit grey is divided by 257; grey of 32 bit is taken for 16 bit values, of floats for values in [0, 1].
    Raises whatever the decoder raises for a broken file.
    """
    with Image.open(path) as picture:
        picture.load()
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I") or picture.mode == "F":
            # TRAP: PIL's convert clips 16 bit at 255: nearly every pixel becomes white.
            values = np.asarray(picture, dtype=np.float64) * (255.0 if picture.mode == "F" else 1 / 257)
            picture = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
        if "A" in picture.getbands() or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")


def read_jpeg(path: Path) -> np.ndarray | None:
    """A grey or coloured JPEG as uint8 (3, H, W), turned upright; None if it is anything else, or broken.

    The same pixels as `read_picture`, in half the time, and without holding up other threads.
    """
    from torchvision.io import decode_jpeg  # a slow import that only JPEG files need

    try:
        data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        pixels = decode_jpeg(data, apply_exif_orientation=True).numpy()
    except (RuntimeError, ValueError):  # no JPEG whatever its name, broken, or empty: `read_picture` says which
        return None
    if len(pixels) == 1:
        return np.repeat(pixels, 3, axis=0)
    return pixels if len(pixels) == 3 else None


def read_pixels(path: Path) -> np.ndarray:
    """One picture as uint8 (3, H, W), turned upright. Raises whatever the decoder raises for a broken file."""
    pixels = read_jpeg(path) if path.suffix.lower() in (".jpg", ".jpeg") else None
    return np.array(read_picture(path)).transpose(2, 0, 1) if pixels is None else pixels


def read_size(path: Path) -> tuple[int, int] | None:
    """Width and height in pixels after turning upright, from the header alone; None if there is no telling."""
    try:
        with Image.open(path) as picture:
            turned = picture.getexif().get(EXIF_ORIENTATION, 1) >= 5
            return picture.size[::-1] if turned else picture.size
    except Exception:  # whatever is wrong with the file, `read_array` says it
        return None


def read_sizes(paths: list[Path]) -> Counter[tuple[int, int]]:
    """How many pictures have each width and height; those without a readable header are left out."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return Counter(size for size in pool.map(read_size, paths) if size)


def read_array(path: Path, image_size: int | None) -> np.ndarray | str:
    """One picture (3, H, W) uint8, brought to image_size if given; or the reason why it cannot be read."""
    try:
        pixels = read_pixels(path)
    except Exception as error:  # decoders of broken files raise anything, struct.error and TypeError among it
        return f"{path}: {error or type(error).__name__}"
    if image_size is None or pixels.shape[1:] == (image_size, image_size):
        return pixels
    picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return np.asarray(ImageOps.fit(picture, (image_size, image_size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def common_size(files: list[Path], image_size: int | None) -> int | None:
    """The side to bring the pictures to: image_size, None for their own if it is one and fits in memory.

    Raises DataError if pictures at their own size would take more than MOST_BYTES.
    """
    if image_size is not None:
        return image_size
    sizes = read_sizes(files)
    if len(sizes) > 1:
        message = f"pictures of {len(sizes)} different sizes are brought to {MIXED_SIDE} px; --image-size chooses"
        warnings.warn(message, stacklevel=4)
        return MIXED_SIDE
    for width, height in sizes:
        if (needed := 3 * width * height * len(files)) > MOST_BYTES:
            raise DataError(
                f"{len(files)} pictures of {width}x{height} px need {needed / 1e9:.0f} GB; give --image-size"
            )
    return None


def fingerprint(files: list[Path], classes: tuple[str, ...], root: Path, image_size: int | None) -> str:
    """A hash of names, sizes and times of the files, of the classes and the size asked for: changes with the source."""
    lines = [f"{f.relative_to(root)} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    return hashlib.sha256("\n".join([f"v3 {image_size} {classes}", *lines]).encode()).hexdigest()


def from_folder(root: Path, split: str, image_size: int | None) -> ImageSet:
    """Pictures of a folder: class sub-folders or none; decoded once, then read from the cache while nothing changes."""
    files, classes = find(root, split)
    paths = [path for path, _ in files]
    mark = fingerprint(paths, classes, root, image_size)
    place = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    cached = cache_root() / "decoded" / f"{root.name}-{place}-{split}-{image_size or 'own'}.safetensors"
    result = read_cache(cached, mark)
    if result is None:
        result = decode(files, classes, common_size(paths, image_size))
        write_cache(cached, mark, result)
    if result.skipped:
        named = "; ".join(result.skipped[:NAMED]) + ("; ..." if len(result.skipped) > NAMED else "")
        warnings.warn(f"{len(result.skipped)} of {len(files)} pictures skipped: {named}", stacklevel=2)
    return result


def decode(files: list[tuple[Path, str]], classes: tuple[str, ...], image_size: int | None) -> ImageSet:
    """Read the pictures, of one size; those that cannot be read are left out and named."""
    # A hundred at a time: threads that hand over single small pictures spend most of their time waiting for each other.
    parts = [files[start : start + 100] for start in range(0, len(files), 100)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read = pool.map(lambda part: [read_array(path, image_size) for path, _ in part], parts)
        arrays = [array for part in read for array in part]
    skipped = tuple(a for a in arrays if isinstance(a, str))
    good = [(a, label) for a, (_, label) in zip(arrays, files, strict=True) if not isinstance(a, str)]
    if not good:
        raise DataError(f"none of the {len(files)} pictures could be read; the first: {skipped[0]}")
    number = {name: i for i, name in enumerate(classes)} | {"": -1}
    images = torch.from_numpy(np.stack([a for a, _ in good]))
    return ImageSet(images, torch.tensor([number[label] for _, label in good]), classes, {}, skipped)


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
