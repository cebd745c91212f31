"""Labelled pictures, read a batch at a time wherever they lie: all in order, or any of them by their numbers."""

# Shape legend:  S pictures  B of a batch  C channels  H,W pixels, those that the encoder sees: sides
#                c classes, tags or columns of numbers

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from math import prod
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from full_ijepa import labels
from full_ijepa.data import SCHEMES, SMALL, folder_of, members
from full_ijepa.evaluate.sets import SETS, Pictures, fetch
from full_ijepa.formats import SUFFIXES, Place
from full_ijepa.pixels import PHOTOGRAPHS, Pixels, both, compare, fit
from full_ijepa.table import NO_TABLE, Table
from toy_ijepa import data as toy
from toy_ijepa.folders import DataError, ImageSet, find, pictures_below
from toy_ijepa.recipe import lookup

CHUNK = 125  # pictures read, resized or encoded at a time
THREADS = 16  # at most so many read ahead, and as many chunks wait in memory

Part, Done = TypeVar("Part"), TypeVar("Done")


def ahead(work: Callable[[Part], Done], parts: Iterable[Part]) -> Iterator[Done]:
    """work(part) of each part, in order, done by threads while the caller is busy with those before."""
    count, rest = min(os.cpu_count() or 1, THREADS), iter(parts)
    pool = ThreadPoolExecutor(count)
    try:
        waiting = deque(pool.submit(work, part) for part in islice(rest, count))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(work, part) for part in islice(rest, 1))
            yield done
    finally:  # whoever stops early, or an error, leaves nothing running
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Labelled:
    """A labelled split: in memory at its own size, files, or pictures of torchvision; and how the encoder sees it.

    labels   classes int64 (S,), tags bool (S, c) or numbers float32 (S, c)
    classes  names of the classes, tags or columns of numbers
    groups   number of each picture's patient, slide ... (S,), None where there are none
    """

    source: ImageSet | Pictures | list[tuple[Path | Place, str]]
    labels: Tensor
    classes: tuple[str, ...]
    image_size: int | tuple[int, int]
    pixels: Pixels = PHOTOGRAPHS
    groups: Tensor | None = None

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in pixels that the encoder sees."""
        return both(self.image_size)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """What all pictures take as the encoder sees them, in their own units."""
        return len(self) * self.pixels.channels * prod(self.sides) * np.dtype(self.pixels.depth).itemsize

    def take(self, part: slice | Tensor) -> Tensor:
        """Some of the pictures (B, C, H, W) in their own units: a range of them, or those of the numbers (B,).

        Raises DataError, with the name of the file, if one cannot be read.
        """
        if isinstance(self.source, ImageSet):
            return fit(self.source.images[part], self.sides)
        if isinstance(self.source, Pictures):
            return self.source[part].at(self.sides)
        files = self.source[part] if isinstance(part, slice) else [self.source[i] for i in part.tolist()]
        found = [self.pixels.read_fitted(path, self.sides) for path, _ in files]
        for array in found:
            if isinstance(array, str):
                raise DataError(
                    f"a labelled picture cannot be read ({array}); mend it, or move it away and take its row out of a "
                    "table of labels"
                )
        empty = np.empty(
            (0, self.pixels.channels, *self.sides), self.pixels.depth
        )  # of a batch with fewer than processes
        return torch.from_numpy(np.stack(found) if found else empty)

    def chunks(self) -> Iterator[Tensor]:
        """Pictures (<= CHUNK, C, H, W) in order, in their own units, read ahead."""
        return ahead(self.take, (slice(start, start + CHUNK) for start in range(0, len(self), CHUNK)))

    def images(self) -> Tensor:
        """All pictures at once, (S, C, H, W)."""
        return torch.cat(list(self.chunks()))

    def at(self, image_size: int | tuple[int, int]) -> Labelled:
        """The same pictures at another size."""
        return replace(self, image_size=image_size)

    def some(self, index: Tensor) -> Labelled:
        """The pictures of these numbers."""
        if isinstance(self.source, ImageSet):
            source = ImageSet(self.source.images[index], self.labels[index], self.classes)
        elif isinstance(self.source, Pictures):
            source = self.source[index]
        else:
            source = [self.source[i] for i in index.tolist()]
        groups = None if self.groups is None else self.groups[index]
        return replace(self, source=source, labels=self.labels[index], groups=groups)


def labelled(
    name: str,
    split: str,
    image_size: int | tuple[int, int],
    most: int | None = None,
    seed: int = 0,
    pixels: Pixels = PHOTOGRAPHS,
    table: Table = NO_TABLE,
) -> Labelled:
    """A labelled split of a set by name, at most `most` pictures of it drawn at random, as an encoder sees them.

    table  of labels beside the pictures of a folder; without one its sub-folders are the classes
    Raises DataError (a ValueError) if it cannot be had, has fewer than two classes or other channels than the encoder,
    or the table has mistakes.
    """
    if (name in SMALL or name in SETS or name == "imagenet") and not pixels.photographs:
        raise DataError(f"{name} has 3 channels of uint8; this encoder knows {pixels.channels} of {pixels.depth}")
    if table:
        if name != "imagenet" and not name.startswith("folder:"):
            raise DataError(f"a table of labels goes with a folder of pictures (folder:PATH), not with {name!r}")
        found = labels.read(table, folder_of(name))
        part = {"train": found.train, "test": found.test}[split]
        whole = Labelled([(path, "") for path in part.files], part.labels, found.names, image_size, pixels, part.groups)
    elif name in SMALL:
        found = toy.load(name, split, max(both(image_size)) if name == "shapes" else None)
        whole = Labelled(found, found.labels, found.classes, image_size, pixels)
    elif name in SETS:
        whole = Labelled(*fetch(name, split), image_size, pixels)
    else:
        if name != "imagenet" and not name.startswith(SCHEMES):
            known = (*SMALL, "imagenet", "folder:PATH", "shards:FOLDER", "hf:PATH_OR_NAME", *SETS)
            lookup(dict.fromkeys(known), name, "data set")  # raises
        files, classes = (
            members_of(name, split) if name.startswith(SCHEMES[1:]) else split_files(folder_of(name), split)
        )
        number = {name: i for i, name in enumerate(classes)} | {"": -1}
        odd = [path for path, label in files if number.get(label, -1) < 0] if len(classes) > 1 else []
        if odd:
            raise DataError(f"{odd[0]} lies in no class folder that training has; {len(odd)} such pictures in {split}")
        whole = Labelled(files, torch.tensor([number[label] for _, label in files]), classes, image_size, pixels)
    if not table and len(whole.classes) < 2:
        raise DataError(
            f"{name} has no classes: judge it by at least two class folders, or by a table of labels (--labels)"
        )
    if isinstance(whole.source, list) and not pixels.photographs:
        compare([path for path, _ in whole.source], pixels)
    if most is None or most >= len(whole):
        return whole
    return whole.some(torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))[:most])


def members_of(name: str, split: str) -> tuple[list[tuple[Place, str]], tuple[str, ...]]:
    """Pictures of shards or of a table with their classes."""
    found, called, classes = members(name, split)
    return [(Place(found, number), label) for number, label in enumerate(called)], classes


def split_files(root: Path, split: str) -> tuple[list[tuple[Path, str]], tuple[str, ...]]:
    """Files of a split with their classes; ImageNet calls its test part `val`."""
    if split == "test" and not (root / "test").is_dir() and (root / "val").is_dir():
        _, classes = find(root, "train", SUFFIXES)
        return pictures_below(root / "val", SUFFIXES), classes
    return find(root, split, SUFFIXES)
