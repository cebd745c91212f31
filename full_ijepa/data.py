"""Sets of pictures for training: what a recipe's `data` names, found once, settled by its headers, and streamed.

What is read is a Sequence of pictures (streams.py); what is random about it is in order.py and crops.py. This module is
also the door to those rooms: what the loop, the evaluation and the book need of them is imported from here.
"""

# Shape legend:  S pictures of the set  C channels  H,W pixels, at last those of recipe.sides

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from full_ijepa import labels
from full_ijepa.crops import Crops, augment, draw_crops
from full_ijepa.distributed import World
from full_ijepa.formats import SUFFIXES, Picture, Place, Stack
from full_ijepa.hub import Hub
from full_ijepa.names import Names, check_alike, once, shared_names
from full_ijepa.order import Micro, accumulation, mix, order, plan
from full_ijepa.pixels import PHOTOGRAPHS, SAMPLED, decoded, fit, measure, settle, some, survey
from full_ijepa.recipes.base import Recipe
from full_ijepa.shards import TESTS, Shards, places
from full_ijepa.streams import Resident, Skipped, Stream, check_shared_memory, told_plainly
from full_ijepa.table import Followed, Table
from toy_ijepa import data as toy
from toy_ijepa.decoding import DataError
from toy_ijepa.folders import SUFFIXES as PICTURES
from toy_ijepa.folders import ImageSet, classes_below, find_names, names_below

__all__ = [
    "Crops", "Micro", "Resident", "Skipped", "Stream", "accumulation", "augment", "draw_crops", "mix", "opened",
    "order", "plan", "probe_set", "settled", "told_plainly", "training_files", "training_set",
]  # fmt: skip

FITS = 3_000_000_000  # bytes of uint8 pictures, none larger than the encoder sees, that are kept in memory
SMALL = ("shapes", "cifar10", "cifar100", "stl10")  # sets that always fit
SCHEMES = ("folder:", "shards:", "hf:")
HEADERS = 50  # read at a time
ALONE = World(0, 1, torch.device("cpu"))


def opened(recipe: Recipe, here: World = ALONE) -> Sequence[Picture] | None:
    """The pictures to pre-train on, found but not read; None for a set by name that is kept in memory.

    Every process of `here` has to call it: folders are listed once on each machine.
    Raises DataError (a ValueError) if there are none.
    """
    if recipe.data in SMALL:
        return None
    if recipe.data.startswith("shards:"):
        with here.leader_first():  # index and tables are kept by the first
            found = Shards(places(recipe.data), recipe.shards_together, 1e9 * recipe.shard_room)
        names = [place.rpartition("/")[2] for place in found.places]
        check_alike(here, f"{names} {found.order.counts.tolist()}".encode(), recipe.data)
        return found
    if recipe.data.startswith("hf:"):
        with here.leader_first():  # so is what has to be downloaded
            found = Hub(recipe.data)
        check_alike(here, f"{len(found)}".encode(), recipe.data)
        return found
    return shared_names(here, base_of(recipe), partial(training_files, recipe))


def training_set(recipe: Recipe, device: torch.device, pictures: Sequence[Picture] | None = None) -> Resident | Stream:
    """The pictures to pre-train on: STL-10's unlabelled part, everything else's training part.

    Sets by name that are larger than the encoder sees are shrunk to its sides first; others are cropped at full size.
    The recipe should be `settled`. Raises DataError (a ValueError) if they cannot be had.
    pictures  of `opened`, if that was called
    """
    if recipe.data in SMALL:
        stand_in = Path(os.environ.get("IJEPA_DATA") or "-") / recipe.data  # has train and test only
        split = "unlabeled" if recipe.data == "stl10" and not stand_in.is_dir() else "train"
        found = toy.load(recipe.data, split, drawn_side(recipe), recipe.allow_skipped)
        images = found.images if within(found.images.shape[2:], recipe.sides) else fit(found.images, recipe.sides)
        return Resident(images, device, named(found) if stand_in.is_dir() else None)
    pictures = opened(recipe) if pictures is None else pictures
    each = recipe.pixels.channels * np.dtype(recipe.pixels.depth).itemsize * len(pictures)  # bytes a pixel of them all
    size = common_size(pictures, recipe.stack, FITS / each)
    whole = size is not None and within(size, recipe.sides)  # larger ones are cropped with antialiasing by workers
    if not whole or each * math.prod(size) > FITS or not isinstance(pictures, Names):
        check_shared_memory(recipe, size if whole else None)
        return Stream(pictures, device, whole)
    if recipe.pixels.photographs and not recipe.labels and all(path.suffix.lower() in PICTURES for path in pictures):
        found = toy.load(f"folder:{folder_of(recipe.data)}", "train", allow_skipped=recipe.allow_skipped)  # cached
    else:
        found = decoded([(path, "") for path in pictures], (), None, recipe.pixels, recipe.allow_skipped)
    return Resident(found.images, device, named(found))


def settled(recipe: Recipe, pictures: Sequence[Picture] | None = None) -> Recipe:
    """The recipe with all that it leaves to the pictures: channels, depth, mean and std of its training part.

    pictures  of `opened`, if that was called
    Raises DataError (a ValueError) if the pictures cannot be had or do not agree.
    """
    if recipe.data in SMALL or recipe.data == "imagenet":
        if recipe.channels not in (0, 3) or recipe.depth not in ("auto", "uint8"):
            raise DataError(f"{recipe.data} has 3 channels of uint8, not {recipe.channels} of {recipe.depth}")
        known = PHOTOGRAPHS
    elif recipe.channels and recipe.depth != "auto" and recipe.mean:
        return recipe
    else:
        pictures = opened(recipe) if pictures is None else pictures
        channels, depth = settle(pictures, recipe.channels, recipe.stack)
        depth = depth if recipe.depth == "auto" else recipe.depth
        known = replace(PHOTOGRAPHS, channels=channels, depth=depth, stack=recipe.stack)
        if known != PHOTOGRAPHS and not recipe.mean:
            known = measure(pictures, known)
    values = dict(mean=recipe.mean or known.mean, std=recipe.std or known.std)
    return recipe.replace(channels=known.channels, depth=known.depth, **values)


def drawn_side(recipe: Recipe) -> int | None:
    """The side that `shapes` are drawn at; None for a set that has its own."""
    return max(recipe.sides) if recipe.data == "shapes" else None


def within(size: Sequence[int], sides: tuple[int, int]) -> bool:
    """Whether pictures of a size (H, W) are nowhere larger than `sides`."""
    return size[0] <= sides[0] and size[1] <= sides[1]


def base_of(recipe: Recipe) -> Path:
    """The folder that a recipe's training files lie below; as a table of labels names its pictures, if there is one."""
    root = folder_of(recipe.data)
    root = Path(os.path.realpath(root)) if recipe.labels else root
    return root / "train" if (root / "train").is_dir() else root


def training_files(recipe: Recipe) -> Names:
    """The files of a folder to pre-train on: its training part, or all that a table of labels does not withhold."""
    root, base = folder_of(recipe.data), base_of(recipe)
    if not recipe.labels:
        return Names.of(base, find_names(root, "train", SUFFIXES)[1])
    real = Followed()
    withheld = set(map(real, labels.read(Table.of(recipe), root).withheld))
    if found := [name for name in names_below(base, SUFFIXES) if real(base / name) not in withheld]:
        return Names.of(base, found)
    raise DataError(f"no pictures in {base} that {recipe.labels} does not give to the test part")


def split_names(root: Path, split: str) -> tuple[Path, list[str], tuple[str, ...]]:
    """As `find_names`; ImageNet calls its test part `val`."""
    if split == "test" and not (root / "test").is_dir() and (root / "val").is_dir():
        _, _, classes = find_names(root, "train", SUFFIXES)
        if found := classes_below(root / "val", SUFFIXES):
            return root / "val", found, classes
        raise DataError(f"no pictures in {root / 'val'}: expected {', '.join(SUFFIXES)}, in one folder a class")
    return find_names(root, split, SUFFIXES)


def named(found: ImageSet) -> Skipped:
    """The files that were left out when a set was decoded, with the reason."""
    return Skipped(dict(text.split(": ", 1) for text in found.skipped))


def folder_of(name: str) -> Path:
    """The folder behind "folder:PATH" or "imagenet" (IJEPA_DATA/imagenet, with train/ and test/ or val/)."""
    if name.startswith("folder:"):
        return Path(name.removeprefix("folder:")).expanduser()
    if name == "imagenet":
        root = Path(os.environ.get("IJEPA_DATA", ".")) / "imagenet"
        if not root.is_dir():
            raise DataError(
                f"ImageNet is not at {root}: its licence forbids a download here. Set IJEPA_DATA to the folder that "
                "holds imagenet/train/<class>/*.JPEG and imagenet/val/<class>/*.JPEG"
            )
        return root
    raise DataError(
        f"unknown data set {name!r}: choose from {', '.join(SMALL)}, imagenet, folder:PATH, shards:..., hf:..."
    )


def members(name: str, part: str, room: float = 20e9) -> tuple[Shards | Hub, Tensor, tuple[str, ...]]:
    """Pictures of "shards:..." or "hf:...", the class of each (S,), and the names of the training part's classes.

    -1 for a picture without a class, or of one that the training part does not have.
    room  bytes that remote shards may take here
    Raises DataError if there are none.
    """

    def those_of(part: str) -> Shards | Hub:
        return Shards(places(name, part), 1, room) if name.startswith("shards:") else Hub(name, part)

    found = those_of(part)
    truth = found.labels(range(len(found)))
    if part == "test" and isinstance(found, Shards) and not (truth >= 0).any():
        with suppress(DataError):  # a test part whose labels are kept secret, as ImageNet's: the validation part, then
            found = those_of(TESTS[1])
            truth = found.labels(range(len(found)))
    if isinstance(found, Shards) and (broken := found.broken):
        raise DataError(
            f"{len(broken)} of {len(found.places)} shards to judge on cannot be read: mend or leave them out. The "
            f"first: {next(iter(broken.values()))}"
        )
    if found.classes:
        return found, truth.where(truth < len(found.classes), -1), found.classes
    training = found if part == "train" else those_of("train")
    known = training.labels(range(len(training))).unique() if training is not found else truth.unique()
    known = known[known >= 0]
    number = torch.searchsorted(known, truth)
    there = torch.isin(truth, known)
    return found, number.where(there, -1), tuple(map(str, known.tolist()))


def common_size(
    pictures: Sequence[Picture], stack: Stack = "channels", most: float = math.inf
) -> tuple[int, int] | None:
    """Height and width in pixels if pictures have the same, so that they stack without being resized.

    Nothing is read beyond the second size. Where all have one, every header is read if so many pixels a picture or
    fewer are to be kept in memory (`most`); else SAMPLED of them: workers handle the odd picture that is left.
    """
    size = one_size(some(pictures, SAMPLED), stack)
    if size is None or not isinstance(pictures, Names) or len(pictures) <= SAMPLED or math.prod(size) > most:
        return size
    return one_size(pictures, stack)


def one_size(pictures: Sequence[Picture], stack: Stack) -> tuple[int, int] | None:
    """The size of pictures that have one, read a few at a time up to the second."""
    sizes: set[tuple[int, int]] = set()
    for start in range(0, len(pictures), HEADERS):
        part = [pictures[i] for i in range(start, min(start + HEADERS, len(pictures)))]
        sizes |= {(kind.height, kind.width) for kind in survey(part, stack).values()}
        if len(sizes) > 1:
            return None
    return sizes.pop() if sizes else None


def probe_set(
    recipe: Recipe, most: int = 5000, pictures: Sequence[Picture] | None = None, here: World = ALONE
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Labelled *training* pictures for the probe that watches a run: a bank and its labels, a fifth held out and its.

    In their own units at the encoder's size; no group of a table of labels is on both sides. The test set is not
    touched. None for a set without classes and without a table.
    pictures  of `opened`, if that was called
    here      every process of it has to call this: pictures are decoded once on each machine
    """
    names = ("bank", "bank_labels", "queries", "query_labels")

    def made() -> dict[str, Tensor]:
        found = probe_pictures(recipe, most, pictures)
        return {} if found is None else {n: v.contiguous() for n, v in zip(names, found, strict=True)}

    found = once(here, made)
    return tuple(found[name] for name in names) if found else None


def classified(pictures: Sequence[Picture], numbers: Sequence[int]) -> tuple[list[tuple[int, str]], tuple[str, ...]]:
    """Those of the pictures that have a class, by number, with its name; and the names of all classes."""
    if isinstance(pictures, Names):
        return [(n, pictures.label(n)) for n in numbers], pictures.classes
    found = [(n, label) for n, label in zip(numbers, pictures.labels(numbers).tolist(), strict=True) if label >= 0]
    return [(n, str(label)) for n, label in found], tuple(str(label) for label in sorted({label for _, label in found}))


def probe_pictures(
    recipe: Recipe, most: int, pictures: Sequence[Picture] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """What `probe_set` returns, made in this process."""
    groups, seed = None, mix(recipe.seed, "probe")
    if recipe.data in SMALL:
        found = toy.load(recipe.data, "train", drawn_side(recipe), recipe.allow_skipped)
        images, truth, classes = found.images, found.labels, found.classes
        chosen = order(len(images), seed, 0, min(most, len(images)))
        images, truth = fit(images[chosen], recipe.sides), truth[chosen]
    elif recipe.labels:
        known = labels.read(Table.of(recipe), folder_of(recipe.data)).train
        chosen = order(len(known), seed, 0, min(most, len(known)))
        classes = tuple(map(str, chosen))  # a class a picture says which could be read
        files = [(known.files[i], str(i)) for i in chosen]
        found = decoded(files, classes, recipe.sides, recipe.pixels, recipe.allow_skipped)
        chosen = torch.tensor(chosen)[found.labels]
        images, truth = found.images, known.labels[chosen]
        groups = None if known.groups is None else known.groups[chosen]
    else:
        pictures = opened(recipe) if pictures is None else pictures
        if isinstance(pictures, Shards):
            chosen = pictures.numbers(most, seed)
        else:
            chosen = order(len(pictures), seed, 0, min(most, len(pictures)))
        known, classes = classified(pictures, chosen)
        if len(classes) < 2:
            return None
        files = [(Place(pictures, number), label) for number, label in known]
        found = decoded(files, classes, recipe.sides, recipe.pixels, recipe.allow_skipped)
        images, truth = found.images, found.labels
    if len(classes) < 2:
        return None
    if groups is not None:
        rest, queries = labels.apart(groups, 1 / 5, mix(recipe.seed, "held"))
        return images[rest], truth[rest], images[queries], truth[queries]
    held = max(len(images) // 5, 1)
    return images[held:], truth[held:], images[:held], truth[:held]
