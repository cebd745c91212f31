"""Any folder of picture files as one uint8 tensor: decoded once, then read from a cache while nothing changes."""

# Shape legend:  S pictures  C = 3 channels  H,W pixels

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from toy_ijepa.decoding import DataError, read_array, read_sizes

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
JUNK = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # folders of systems, with previews that look like pictures
SPLITS = ("train", "test")
MOST_BYTES = 4_000_000_000  # of one split at the pictures' own size
MOST_SKIPPED = 0.05  # share of a set's files that may be unreadable before a run stops and asks
LOOKS = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"  # of the progress bar
NAMED = 20  # files that could not be read are named up to so many
MIXED_SIDE = 32  # px: the side that pictures of different sizes are brought to if the caller names none


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


def names_below(base: Path, suffixes: Sequence[str] = SUFFIXES) -> list[str]:
    """Image files below a folder as "sub-folder/.../name", sorted folder by folder: text alone, for millions of them.

    Follows links, but none that leads back to a folder on its way; leaves out what is hidden or JUNK.
    """
    found, ends = [], tuple(suffixes)
    for folder, below, names in os.walk(base, followlinks=True):
        kept = [d for d in below if not d.startswith(".") and d not in JUNK]
        linked = any(os.path.islink(os.path.join(folder, d)) for d in kept)
        way = {str(p.resolve()) for p in (Path(folder), *Path(folder).parents)} if linked else set()
        below[:] = [d for d in kept if not leads_back(Path(folder) / d, way)]
        inside = "".join(f"{part}/" for part in Path(folder).relative_to(base).parts)
        found += [inside + name for name in names if name[0] != "." and name.lower().endswith(ends)]
    return sorted(found, key=lambda name: name.replace("/", "\0"))  # as paths are sorted: a folder's own files together


def class_of(name: str) -> str:
    """The first sub-folder that a picture lies in, or "" for none."""
    return name.partition("/")[0] if "/" in name else ""


def files_below(base: Path, suffixes: Sequence[str] = SUFFIXES) -> list[tuple[Path, str]]:
    """Image files below a folder, sorted, each with the first sub-folder it lies in, or "" for none."""
    return [(base / name, class_of(name)) for name in names_below(base, suffixes)]


def classes_below(base: Path, suffixes: Sequence[str] = SUFFIXES) -> list[str]:
    """As `names_below`, the first sub-folder being the class.

    Raises DataError if some lie in class folders and some do not.
    """
    found = names_below(base, suffixes)
    loose = sum("/" not in name for name in found)
    if 0 < loose < len(found):
        raise DataError(f"{loose} pictures lie loose in {base} beside class folders; put each into a class folder")
    return found


def leads_back(folder: Path, way: set[str]) -> bool:
    """Whether a folder is a link to one of those on the way to it, so that following it would never end."""
    return folder.is_symlink() and str(folder.resolve()) in way


def find(root: Path, split: str, suffixes: Sequence[str] = SUFFIXES) -> tuple[list[tuple[Path, str]], tuple[str, ...]]:
    """Image files of a split with the class of each, and the names of all classes of the *whole* source.

    Raises DataError as `find_names`.
    """
    base, names, classes = find_names(root, split, suffixes)
    return [(base / name, class_of(name)) for name in names], classes


def find_names(root: Path, split: str, suffixes: Sequence[str] = SUFFIXES) -> tuple[Path, list[str], tuple[str, ...]]:
    """The folder of a split, its image files as names below it, and the names of all classes of the *whole* source.

    root/{train,test} is used where it exists; else every fifth file of each class is the test split.
    Raises DataError for a missing or empty folder, too few pictures, or a test class that training does not have.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root.absolute()}: expected one that holds pictures")
    if split not in SPLITS:
        raise DataError(f"a folder has no split {split!r}: choose from {', '.join(SPLITS)}")
    divided = (root / "train").is_dir()
    base = root / split if divided else root
    names = classes_below(base, suffixes) if base.is_dir() else []
    if not names:
        raise DataError(f"no pictures in {base}: expected {', '.join(suffixes)}, in one folder a class or loose")
    known = classes_below(root / "train", suffixes) if divided and split != "train" else names
    classes = tuple(sorted(set(map(class_of, known)) - {""}))
    if unknown := set(map(class_of, names)) - {"", *classes}:
        raise DataError(f"{base} has a class {min(unknown)!r} that {root / 'train'} does not")
    if not divided:
        names = every_fifth(names, split == "test")
        if not names:
            raise DataError(f"too few pictures in {base} to set a test split aside: at least five a class are needed")
    return base, names, classes


def every_fifth(names: list[str], test: bool) -> list[str]:
    """Every fifth name of each class, or all others."""
    seen: Counter[str] = Counter()
    kept = []
    for name in names:
        label = class_of(name)
        if (seen[label] % 5 == 4) == test:
            kept.append(name)
        seen[label] += 1
    return kept


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
    lines = [f"{f.relative_to(root)} {stamp(f)}" for f in files]
    return hashlib.sha256(os.fsencode("\n".join([f"v4 {image_size} {classes}", *lines]))).hexdigest()


def stamp(path: Path) -> str:
    """Size and time of a file; a file that has vanished since it was listed is named when it is read."""
    try:
        found = path.stat()
    except OSError:
        return "gone"
    return f"{found.st_size} {found.st_mtime_ns}"


def from_folder(root: Path, split: str, image_size: int | None, allow_skipped: bool = False) -> ImageSet:
    """Pictures of a folder: class sub-folders or none; decoded once, then read from the cache while nothing changes.

    Raises DataError as `find` and `decode`; then nothing is cached.
    """
    files, classes = find(root, split)
    paths = [path for path, _ in files]
    mark = fingerprint(paths, classes, root, image_size)
    place = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    cached = cache_root() / "decoded" / f"{root.name}-{place}-{split}-{image_size or 'own'}.safetensors"
    result = read_cache(cached, mark)
    if result is None:
        read = partial(read_array, image_size=common_size(paths, image_size))
        result = decode(files, classes, read, allow_skipped)
        write_cache(cached, mark, result)
    check_skipped(result.skipped, len(files), allow_skipped)  # the cache may come from a run that allowed them
    if result.skipped:
        warnings.warn(f"{len(result.skipped)} of {len(files)} pictures skipped: {listed(result.skipped)}", stacklevel=2)
    return result


def listed(skipped: Sequence[str]) -> str:
    """The first few in one line."""
    return "; ".join(skipped[:NAMED]) + ("; ..." if len(skipped) > NAMED else "")


def check_skipped(skipped: Sequence[str], seen: int, allowed: bool) -> None:
    """Raise DataError if more than a small share of the files seen could not be read, unless that is allowed."""
    if not allowed and len(skipped) > MOST_SKIPPED * seen:
        raise DataError(
            f"{len(skipped)} of {seen} pictures cannot be read, more than {MOST_SKIPPED:.0%}: {listed(skipped)}. Mend "
            "or remove them, or train without them: --allow-skipped"
        )


def decode(
    files: list[tuple[Path, str]],
    classes: tuple[str, ...],
    read: Callable[[Path], np.ndarray | str],
    allow_skipped: bool = False,
) -> ImageSet:
    """Read the pictures, of one size; files that are broken are left out and named.

    read  one picture (C, H, W), or the reason why it cannot be read

    Raises DataError if no file can be read, or more than MOST_SKIPPED of them cannot and `allow_skipped` does not allow
    it; MachineError if what goes wrong is not the fault of a file.
    """
    # A hundred at a time: threads that hand over single small pictures spend most of their time waiting for each other.
    parts = [files[start : start + 100] for start in range(0, len(files), 100)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(lambda part: [read(path) for path, _ in part], parts)
        told = f"decoding {len(files)} pictures, once"
        bar = tqdm(done, told, len(parts), bar_format=LOOKS, mininterval=1.0, delay=2.0)
        arrays = [array for part in bar for array in part]
    skipped = tuple(a for a in arrays if isinstance(a, str))
    good = [(a, label) for a, (_, label) in zip(arrays, files, strict=True) if not isinstance(a, str)]
    if not good:
        raise DataError(f"none of the {len(files)} pictures could be read; the first: {skipped[0]}")
    check_skipped(skipped, len(files), allow_skipped)
    number = {name: i for i, name in enumerate(classes)} | {"": -1}
    images = torch.from_numpy(np.stack([a for a, _ in good]))
    return ImageSet(images, torch.tensor([number[label] for _, label in good]), classes, {}, skipped)


def read_cache(path: Path, mark: str) -> ImageSet | None:
    """The cached set if it was made from exactly this source, and is one."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("fingerprint") != mark:
                return None
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
        classes, skipped = tuple(json.loads(about["classes"])), tuple(json.loads(about["skipped"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None  # none yet, one that a full disk cut short, or something else: decode again
    pictures = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3 and len(images) > 0
    numbers = labels.dtype == torch.int64 and labels.shape == images.shape[:1]
    if not (pictures and numbers and int(labels.min()) >= -1 and int(labels.max()) < max(len(classes), 1)):
        return None
    return ImageSet(images, labels, classes, {}, skipped)


def write_cache(path: Path, mark: str, images: ImageSet) -> None:
    """Write the decoded set in one piece or not at all; a full disk costs only the cache."""
    about = dict(fingerprint=mark, classes=json.dumps(images.classes), skipped=json.dumps(images.skipped))
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(images=images.images.contiguous(), labels=images.labels), part, metadata=about)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink()
        warnings.warn(f"decoded pictures not cached ({error}); they will be decoded again next time", stacklevel=2)
