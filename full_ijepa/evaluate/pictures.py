"""Labelled pictures, read a batch at a time wherever they lie: all in order, or any of them by their numbers."""

# Shape legend:  S pictures  B of a batch  C channels  H,W pixels, those that the encoder sees: sides
#                c classes, tags or columns of numbers

from __future__ import annotations

import os
import time
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
from full_ijepa.data import ALONE, SCHEMES, SMALL, folder_of, members, split_names
from full_ijepa.distributed import World
from full_ijepa.evaluate.sets import SETS, Pictures, fetch
from full_ijepa.formats import Places
from full_ijepa.names import Names, check_alike, once
from full_ijepa.pixels import PHOTOGRAPHS, Pixels, both, compare, fit
from full_ijepa.shards import Shards
from full_ijepa.table import NO_TABLE, Table
from toy_ijepa import data as toy
from toy_ijepa.folders import DataError, ImageSet, class_of, listed
from toy_ijepa.recipe import lookup

CHUNK = 125  # pictures read, resized or encoded at a time
NAMING = 60.0  # s to read on after a picture that is broken, so that others are named with it
THREADS = 16  # at most so many read ahead, and as many chunks wait in memory

Part, Done = TypeVar("Part"), TypeVar("Done")


class BrokenPicturesError(DataError):
    """Labelled pictures that cannot be read, each with the reason."""

    def __init__(self, broken: list[str]) -> None:
        super().__init__(
            f"{len(broken)} of the labelled pictures cannot be read: {listed(broken)}. Mend them, or move them away, "
            "take their rows out of a table of labels, and pack anew what is in shards"
        )
        self.broken = broken


def ahead(work: Callable[[Part], Done], parts: Iterable[Part]) -> Iterator[Done]:
    """work(part) of each part, in order, done by threads while the caller is busy with those before.

    Raises what `work` raises; where that is of broken pictures, it reads on for a while, to name them all at once.
    """
    count, rest = min(os.cpu_count() or 1, THREADS), iter(parts)
    pool = ThreadPoolExecutor(count)
    try:
        waiting = deque(pool.submit(work, part) for part in islice(rest, count))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(work, part) for part in islice(rest, 1))
            yield done
    except BrokenPicturesError as error:
        broken, end = dict.fromkeys(error.broken), time.monotonic() + NAMING
        while time.monotonic() < end:
            waiting.extend(pool.submit(work, part) for part in islice(rest, 1))
            if not waiting:
                break
            try:
                waiting.popleft().result()
            except BrokenPicturesError as more:
                broken |= dict.fromkeys(more.broken)
        raise BrokenPicturesError(list(broken)) from None
    finally:  # whoever stops early, or an error, leaves nothing running
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Labelled:
    """A labelled split: in memory at its own size, files, or pictures of torchvision; and how the encoder sees it.

    labels   classes int64 (S,), tags bool (S, c) or numbers float32 (S, c)
    classes  names of the classes, tags or columns of numbers
    groups   number of each picture's patient, slide ... (S,), None where there are none
    """

    source: ImageSet | Pictures | Places
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

        Raises BrokenPicturesError if some cannot be read.
        """
        if isinstance(self.source, ImageSet):
            return fit(self.source.images[part], self.sides)
        if isinstance(self.source, Pictures):
            return self.source[part].at(self.sides)
        files = self.source.take(part if isinstance(part, slice) else part.numpy())
        found = [self.pixels.read_fitted(place, self.sides) for place in files]
        if broken := [array for array in found if isinstance(array, str)]:
            raise BrokenPicturesError(broken)
        # A batch with fewer pictures than processes leaves some with none.
        empty = np.empty((0, self.pixels.channels, *self.sides), self.pixels.depth)
        return torch.from_numpy(np.stack(found) if found else empty)

    def blank(self) -> Tensor:
        """A picture (1, C, H, W) of zeros, to see what is made of one without reading any."""
        return torch.from_numpy(np.zeros((1, self.pixels.channels, *self.sides), self.pixels.depth))

    def check_any_order(self) -> None:
        """Raise DataError if they can only be had in order: shards that are elsewhere and do not fit here."""
        if isinstance(self.source, Places) and isinstance(self.source.pictures, Shards):
            self.source.pictures.check_all_fit()

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
            source = self.source.take(index.numpy())
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
    room: float = 20e9,
    here: World = ALONE,
) -> Labelled:
    """A labelled split of a set by name, at most `most` pictures of it drawn at random, as an encoder sees them.

    table  of labels beside the pictures of a folder; without one its sub-folders are the classes
    room   bytes that remote shards may take here
    here   every process of it has to call this: folders are listed once on each machine
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
        whole = Labelled(Places(part.files), part.labels, found.names, image_size, pixels, part.groups)
    elif name in SMALL:
        with here.leader_first():  # downloads
            found = toy.load(name, split, max(both(image_size)) if name == "shapes" else None)
        whole = Labelled(found, found.labels, found.classes, image_size, pixels)
    elif name in SETS:
        with here.leader_first():
            found = fetch(name, split)
        whole = Labelled(*found, image_size, pixels)
    else:
        if name != "imagenet" and not name.startswith(SCHEMES):
            known = (*SMALL, "imagenet", "folder:PATH", "shards:FOLDER", "hf:PATH_OR_NAME", *SETS)
            lookup(dict.fromkeys(known), name, "data set")  # raises
        if name.startswith(SCHEMES[1:]):
            with here.leader_first():  # tables are kept by the first
                found, truth, classes = members(name, split, room)
        else:
            found, truth, classes = split_files(folder_of(name), split, here)
        odd = (truth < 0).nonzero()[:, 0].tolist() if len(classes) > 1 else []
        if odd:
            where = found[odd[0]] if isinstance(found, Names) else found.name(odd[0])
            raise DataError(f"{where} lies in no class that training has; {len(odd)} such pictures in {split}")
        whole = Labelled(Places(found), truth, classes, image_size, pixels)
    if not table and len(whole.classes) < 2:
        packed = " (--data folder:PATH, what they were packed from)" if name.startswith("shards:") else ""
        raise DataError(
            f"{name} has no classes: judge at least two class folders, or a folder{packed} by a table (--labels)"
        )
    if isinstance(whole.source, Places) and not pixels.photographs:
        compare(whole.source.pictures, pixels)
    if most is not None and most < 2:
        raise DataError(f"at most {most} labelled pictures teach nothing: --most takes a number from 2 on")
    if most is None or most >= len(whole):
        return whole
    chosen = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))[:most]
    in_shards = isinstance(whole.source, Places) and isinstance(whole.source.pictures, Shards)
    return whole.some(chosen.sort().values if in_shards else chosen)  # one shard after another


def split_files(root: Path, split: str, here: World = ALONE) -> tuple[Names, Tensor, tuple[str, ...]]:
    """Files of a folder's split, the class of each (S,), -1 for none, and the names of the classes."""

    def listed() -> dict[str, Tensor]:
        base, names, classes = split_names(root, split)
        number = {name: i for i, name in enumerate(classes)}
        truth = torch.tensor([number.get(class_of(name), -1) for name in names])
        said = Names.of(base, [os.path.relpath(base, root), *classes]).tensors()
        return Names.of(base, names).tensors() | dict(truth=truth, said=said["text"], where=said["ends"])

    found = once(here, listed)
    text, ends, said, where = (found[name].numpy() for name in ("text", "ends", "said", "where"))
    check_alike(here, text, root)
    base, *classes = map(str, Names(Path(), said, where))
    return Names(root / base, text, ends), found["truth"], tuple(classes)
