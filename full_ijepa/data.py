"""Pictures for training at scale: small ones on the device as uint8, others streamed from files by workers.

What is random (order, crops, mirroring) is a function of the recipe's seed and of the place in the run, never of the
process that happens to draw it: a run continued after a crash, or on another number of processes, sees the same.
"""

# Shape legend:  S pictures of the set  B pictures of a batch  C channels  H,W pixels, at last those of recipe.sides

from __future__ import annotations

import hashlib
import math
import os
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from full_ijepa import labels
from full_ijepa.formats import SUFFIXES, Stack
from full_ijepa.labels import Table
from full_ijepa.pixels import PHOTOGRAPHS, decoded, fit, measure, settle, survey
from full_ijepa.recipes.base import Recipe
from toy_ijepa import data as toy
from toy_ijepa.decoding import DataError, blame, jpeg_decoder
from toy_ijepa.environment import MachineError
from toy_ijepa.folders import SUFFIXES as PICTURES
from toy_ijepa.folders import ImageSet, check_skipped, files_below, find

FITS = 3_000_000_000  # bytes of uint8 pictures, none larger than the encoder sees, that are kept in memory
SMALL = ("shapes", "cifar10", "cifar100", "stl10")  # sets that always fit
FEW = 200  # pictures seen before the share of broken ones is judged
TRIES = 10  # broken pictures in a row before a stream gives up


@dataclass(frozen=True)
class Micro:
    """One micro-batch: numbers of its pictures in the set, and the seed of all that is random about it."""

    index: tuple[int, ...]
    seed: int


def mix(*parts: int | str) -> int:
    """A seed below 2**63 from numbers or words: neighbouring steps get unrelated seeds, the same on every machine."""
    text = " ".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@lru_cache(maxsize=2)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the pictures."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mix(seed, "order", epoch))).numpy()


def order(count: int, seed: int, start: int, length: int) -> list[int]:
    """Pictures number start ... start + length - 1 of the endless sequence of shuffled epochs."""
    found: list[int] = []
    while len(found) < length:
        epoch, offset = divmod(start + len(found), count)
        found += permutation(count, seed, epoch)[offset : offset + length - len(found)].tolist()
    return found


def plan(count: int, recipe: Recipe, start: int, steps: int, rank: int = 0, world: int = 1) -> Iterator[Micro]:
    """The micro-batches of one process from optimiser step `start` to `steps`.

    A step is cut into micro-batches in an order that does not depend on the number of processes; process `rank` of
    `world` takes every world-th. Raises ValueError if they cannot be shared out evenly.
    """
    parts = accumulation(recipe, world) * world
    size = recipe.batch // parts
    for step in range(start, steps):
        pictures = order(count, recipe.seed, step * recipe.batch, recipe.batch)
        for part in range(rank, parts, world):
            yield Micro(tuple(pictures[part * size : (part + 1) * size]), mix(recipe.seed, "micro", step, part))


def accumulation(recipe: Recipe, world: int = 1) -> int:
    """Micro-batches that each process accumulates before an optimiser step.

    Raises ValueError if the batch is not a whole number of micro-batches for every process.
    """
    micro = min(recipe.micro_batch, recipe.batch)
    if recipe.batch % (micro * world):
        raise ValueError(
            f"batch {recipe.batch} cannot be shared out: {world} processes x micro-batches of {micro} do not divide it"
        )
    return recipe.batch // (micro * world)


@dataclass(frozen=True)
class Crops:
    """Where to cut pictures, each (B,): size and centre as shares of the picture's sides, the centre from -1 to 1."""

    width: Tensor
    height: Tensor
    x: Tensor
    y: Tensor
    mirror: Tensor


def draw_crops(H: Tensor | float, W: Tensor | float, count: int, recipe: Recipe, generator: torch.Generator) -> Crops:
    """Random crops of `count` pictures, drawn as torchvision's RandomResizedCrop draws them.

    A share of the area, an aspect ratio evenly on the logarithm, a place anywhere inside; half of them mirrored.
    """
    u = torch.rand(5, count, generator=generator, device=generator.device)
    seen_H, seen_W = recipe.sides
    area = recipe.crop_scale[0] + (recipe.crop_scale[1] - recipe.crop_scale[0]) * u[0]
    low, high = map(math.log, recipe.crop_aspect)
    aspect = (low + (high - low) * u[1]).exp() * (seen_W / seen_H)  # a crop may be so much wider than what is seen
    width = (area * aspect * H / W).sqrt().clamp(max=1.0)
    height = (area / aspect * W / H).sqrt().clamp(max=1.0)
    x, y = (2 * u[3] - 1) * (1 - width), (2 * u[4] - 1) * (1 - height)
    return Crops(width, height, x, y, (u[2] < 0.5) & recipe.flip)


def augment(images: Tensor, recipe: Recipe, seed: int) -> Tensor:
    """Random crops of images (B, C, H, W) brought to the recipe's sides, half of them mirrored; normalised float.

    The whole batch at once on its device.
    """
    B, C, H, W = images.shape
    crops = draw_crops(H, W, B, recipe, torch.Generator(images.device).manual_seed(seed))
    affine = torch.zeros(B, 2, 3, device=images.device)
    affine[:, 0, 0], affine[:, 1, 1] = torch.where(crops.mirror, -crops.width, crops.width), crops.height
    affine[:, 0, 2], affine[:, 1, 2] = crops.x, crops.y
    where = F.affine_grid(affine, [B, C, *recipe.sides], align_corners=False)
    images = recipe.pixels.normalise(images)
    return F.grid_sample(images, where, mode="bilinear", padding_mode="reflection", align_corners=False)


@dataclass
class Skipped:
    """Pictures that could not be read; each is named once."""

    names: dict[str, str] = field(default_factory=dict)

    def note(self, path: str, reason: str) -> None:
        if path not in self.names:
            self.names[path] = reason
            warnings.warn(f"picture skipped ({len(self.names)} so far): {path}: {reason}", stacklevel=3)

    def lines(self) -> list[str]:
        """Each as "path: reason"."""
        return [f"{path}: {reason}" for path, reason in self.names.items()]


class Resident:
    """A set that stays on the device as it was read, (S, C, H, W); a batch is cut out, cropped and mirrored there.

    Crops are not antialiased: pictures should not be larger than the sides that the encoder sees.
    skipped  files that could not be read; None where there are no files
    """

    def __init__(self, images: Tensor, device: torch.device, skipped: Skipped | None = None) -> None:
        self.images, self.skipped = images.to(device), skipped

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, plan: Iterable[Micro], recipe: Recipe) -> Iterator[tuple[Tensor, Micro]]:
        """Normalised images (B, C, H, W) of each micro-batch."""
        for micro in plan:
            index = torch.tensor(micro.index, device=self.images.device)
            yield augment(self.images[index], recipe, mix(micro.seed, "crop")), micro


class Files(Dataset):
    """Micro-batches decoded from files by worker processes, crops cut out there unless pictures are wanted whole."""

    def __init__(self, paths: list[Path], recipe: Recipe, whole: bool = False) -> None:
        self.paths, self.recipe, self.whole, self.pixels = paths, recipe, whole, recipe.pixels

    def __getitem__(self, micro: Micro) -> tuple[Tensor, Micro, list[tuple[str, str]]]:
        """Crops, or whole pictures, (B, C, H, W) in their own units, and the files that could not be read."""
        bad: list[tuple[str, str]] = []
        pictures = [self.read(number, bad) for number in micro.index]
        if self.whole:
            return torch.stack(pictures), micro, bad
        return cut(pictures, self.recipe, mix(micro.seed, "crop")), micro, bad

    def read(self, number: int, bad: list[tuple[str, str]]) -> Tensor:
        """One picture (C, H, W), or the next that can be read.

        Raises DataError after TRIES failures, MachineError if the file is not to blame.
        """
        for step in range(TRIES):
            path = self.paths[(number + step) % len(self.paths)]
            try:
                return torch.from_numpy(self.pixels.read(path))
            except Exception as error:  # decoders of broken files raise anything
                bad.append((str(path), blame(path, error).split(": ", 1)[1]))
        raise DataError(f"{TRIES} pictures in a row cannot be read, the last {path}: {bad[-1][1]}")


def cut(pictures: list[Tensor], recipe: Recipe, seed: int) -> Tensor:
    """Random crops as `augment` draws them, of pictures (C, H, W) of any sizes, with antialiasing: (B, C, H, W).

    Sides are rounded to whole pixels. uint8 stays uint8, all else becomes float32.
    """
    H, W = torch.tensor([picture.shape[1:] for picture in pictures], dtype=torch.float32).unbind(1)
    crops = draw_crops(H, W, len(pictures), recipe, torch.Generator().manual_seed(seed))
    h, w = ((share * side).round().clamp(min=1) for share, side in ((crops.height, H), (crops.width, W)))
    top, left = ((crops.y + 1) / 2 * H - h / 2).round(), ((crops.x + 1) / 2 * W - w / 2).round()
    corners = torch.stack([top.clamp(min=0), left.clamp(min=0), top + h, left + w], dim=1).long().tolist()
    pictures = [picture if picture.dtype == torch.uint8 else picture.float() for picture in pictures]
    found = [
        F.interpolate(picture[None, :, y:y2, x:x2], recipe.sides, mode="bilinear", antialias=True)
        for picture, (y, x, y2, x2) in zip(pictures, corners, strict=True)
    ]
    images = torch.cat(found)  #                                                          (B, C, H, W)
    images[crops.mirror] = images[crops.mirror].flip(3)
    return images


class Stream:
    """Files too many for memory, or larger than the encoder sees: decoded by `recipe.workers` processes ahead.

    whole  pictures of one size arrive as they are and are cropped on the device; others are cropped by the workers
    """

    def __init__(self, paths: list[Path], device: torch.device, whole: bool = False) -> None:
        self.paths, self.device, self.whole, self.skipped = paths, device, whole, Skipped()

    def __len__(self) -> int:
        return len(self.paths)

    def pictures(self, plan: Iterable[Micro], recipe: Recipe) -> Iterator[tuple[Tensor, Micro]]:
        """Crops, or whole pictures, of each micro-batch; those that cannot be read are replaced and named."""
        jpeg_decoder()  # imported before workers are forked: each would spend seconds on it
        seen = 0
        loader = DataLoader(
            Files(self.paths, recipe, self.whole),
            batch_size=None,  # an item is a micro-batch already
            sampler=plan,
            num_workers=recipe.workers,
            prefetch_factor=4 if recipe.workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=partial(quiet, trainer=os.getpid()),
        )
        for images, micro, bad in loader:
            for path, reason in bad:
                self.skipped.note(path, reason)
            seen += len(micro.index)
            check_skipped(self.skipped.lines(), min(len(self), max(seen, FEW)), recipe.allow_skipped)
            yield images, micro

    def batches(self, plan: Iterable[Micro], recipe: Recipe) -> Iterator[tuple[Tensor, Micro]]:
        """Normalised images (B, C, H, W) of each micro-batch, on the device."""
        for images, micro in self.pictures(plan, recipe):
            images = images.to(self.device, non_blocking=True)
            crops = augment(images, recipe, mix(micro.seed, "crop")) if self.whole else recipe.pixels.normalise(images)
            yield crops, micro


@contextmanager
def told_plainly() -> Iterator[None]:
    """What goes wrong in a worker process becomes an error of one sentence.

    TRAP: torch raises the death of a worker from a signal handler, wherever the training process happens to be.
    """
    try:
        yield
    except (DataError, MachineError) as error:
        if "Traceback" not in str(error):
            raise
        # a worker's text is its whole traceback, the sentence at its end
        raise type(error)(str(error).strip().splitlines()[-1].split("Error: ", 1)[-1]) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a process that decodes pictures died ({str(error).splitlines()[0]}): out of memory? Lower workers or "
            "micro_batch; --resume auto continues from the last checkpoint"
        ) from None


def quiet(_: int, trainer: int) -> None:
    """Workers decode on one thread each and leave signals to the training process.

    TRAP: launchers send SIGTERM to whole groups of processes; a worker that died of it would cost the last save.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on every system
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=obey, args=(trainer,), daemon=True).start()


def obey(trainer: int) -> None:
    """Leave on a SIGTERM of the training process, which ends its workers so, and on nobody else's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid not in (trainer, os.getppid()):
        pass
    os._exit(0)


def training_set(recipe: Recipe, device: torch.device) -> Resident | Stream:
    """The pictures to pre-train on: STL-10's unlabelled part, everything else's training part.

    Sets by name that are larger than the encoder sees are shrunk to its sides first; files are cropped at full size.
    The recipe should be `settled`. Raises DataError (a ValueError) if they cannot be had.
    """
    if recipe.data in SMALL:
        stand_in = Path(os.environ.get("IJEPA_DATA") or "-") / recipe.data  # has train and test only
        split = "unlabeled" if recipe.data == "stl10" and not stand_in.is_dir() else "train"
        found = toy.load(recipe.data, split, drawn_side(recipe), recipe.allow_skipped)
        images = found.images if within(found.images.shape[2:], recipe.sides) else fit(found.images, recipe.sides)
        return Resident(images, device, named(found) if stand_in.is_dir() else None)
    root = folder_of(recipe.data)
    paths = training_files(recipe)
    size = common_size(paths, recipe.stack)
    whole = size is not None and within(size, recipe.sides)  # larger ones are cropped with antialiasing by workers
    bytes_each = recipe.pixels.channels * np.dtype(recipe.pixels.depth).itemsize
    if not whole or bytes_each * len(paths) * math.prod(size) > FITS:
        return Stream(paths, device, whole)
    if recipe.pixels.photographs and not recipe.labels and all(path.suffix.lower() in PICTURES for path in paths):
        found = toy.load(f"folder:{root}", "train", allow_skipped=recipe.allow_skipped)  # cached
    else:
        found = decoded([(path, "") for path in paths], (), None, recipe.pixels, recipe.allow_skipped)
    return Resident(found.images, device, named(found))


def settled(recipe: Recipe) -> Recipe:
    """The recipe with all that it leaves to the pictures: channels, depth, mean and std of its training part.

    Raises DataError (a ValueError) if the pictures cannot be had or do not agree.
    """
    if recipe.data in SMALL or recipe.data == "imagenet":
        if recipe.channels not in (0, 3) or recipe.depth not in ("auto", "uint8"):
            raise DataError(f"{recipe.data} has 3 channels of uint8, not {recipe.channels} of {recipe.depth}")
        known = PHOTOGRAPHS
    elif recipe.channels and recipe.depth != "auto" and recipe.mean:
        return recipe
    else:
        paths = training_files(recipe)
        channels, depth = settle(paths, recipe.channels, recipe.stack)
        depth = depth if recipe.depth == "auto" else recipe.depth
        known = replace(PHOTOGRAPHS, channels=channels, depth=depth, stack=recipe.stack)
        if known != PHOTOGRAPHS and not recipe.mean:
            known = measure(paths, known)
    values = dict(mean=recipe.mean or known.mean, std=recipe.std or known.std)
    return recipe.replace(channels=known.channels, depth=known.depth, **values)


def drawn_side(recipe: Recipe) -> int | None:
    """The side that `shapes` are drawn at; None for a set that has its own."""
    return max(recipe.sides) if recipe.data == "shapes" else None


def within(size: Sequence[int], sides: tuple[int, int]) -> bool:
    """Whether pictures of a size (H, W) are nowhere larger than `sides`."""
    return size[0] <= sides[0] and size[1] <= sides[1]


def training_files(recipe: Recipe) -> list[Path]:
    """The files of a folder to pre-train on: its training part, or all that a table of labels does not withhold."""
    root = folder_of(recipe.data)
    if not recipe.labels:
        return [path for path, _ in find(root, "train", SUFFIXES)[0]]
    withheld = labels.read(Table.of(recipe), root).withheld
    root = Path(os.path.realpath(root))  # as the table's pictures are named
    base = root / "train" if (root / "train").is_dir() else root
    if found := [path for path, _ in files_below(base, SUFFIXES) if path not in withheld]:
        return found
    raise DataError(f"no pictures in {base} that {recipe.labels} does not give to the test part")


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
    raise DataError(f"unknown data set {name!r}: choose from {', '.join(SMALL)}, imagenet, folder:PATH")


def common_size(paths: list[Path], stack: Stack = "channels") -> tuple[int, int] | None:
    """Height and width in pixels if all pictures have the same, so that they stack without being resized."""
    sizes = {(kind.height, kind.width) for kind in survey(paths, stack).values()}
    return sizes.pop() if len(sizes) == 1 else None


def probe_set(recipe: Recipe, most: int = 5000) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Labelled *training* pictures for the probe that watches a run: a bank and its labels, a fifth held out and its.

    In their own units at the encoder's size; no group of a table of labels is on both sides. The test set is not
    touched. None for a set without classes and without a table.
    """
    groups = None
    if recipe.data in SMALL:
        found = toy.load(recipe.data, "train", drawn_side(recipe), recipe.allow_skipped)
        images, truth, classes = found.images, found.labels, found.classes
        some = order(len(images), mix(recipe.seed, "probe"), 0, min(most, len(images)))
        images, truth = fit(images[some], recipe.sides), truth[some]
    elif recipe.labels:
        known = labels.read(Table.of(recipe), folder_of(recipe.data)).train
        some = order(len(known), mix(recipe.seed, "probe"), 0, min(most, len(known)))
        classes = tuple(map(str, some))  # a class a picture says which could be read
        files = [(known.files[i], str(i)) for i in some]
        found = decoded(files, classes, recipe.sides, recipe.pixels, recipe.allow_skipped)
        some = torch.tensor(some)[found.labels]
        images, truth = found.images, known.labels[some]
        groups = None if known.groups is None else known.groups[some]
    else:
        files, classes = find(folder_of(recipe.data), "train", SUFFIXES)
        some = order(len(files), mix(recipe.seed, "probe"), 0, min(most, len(files)))
        found = decoded([files[i] for i in some], classes, recipe.sides, recipe.pixels, recipe.allow_skipped)
        images, truth = found.images, found.labels
    if len(classes) < 2:
        return None
    if groups is not None:
        rest, queries = labels.apart(groups, 1 / 5, mix(recipe.seed, "held"))
        return images[rest], truth[rest], images[queries], truth[queries]
    held = max(len(images) // 5, 1)
    return images[held:], truth[held:], images[:held], truth[:held]
