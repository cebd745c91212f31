"""What an encoder makes of labelled pictures, a chunk at a time so that any set fits."""

# Shape legend:  S pictures  C channels  H,W pixels, those that the encoder sees: sides  N tokens  D width  F features
#                c classes, tags or columns of numbers

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from full_ijepa import labels
from full_ijepa.data import SCHEMES, SMALL, folder_of, members
from full_ijepa.evaluate.sets import SETS, Pictures, fetch
from full_ijepa.formats import SUFFIXES, Place
from full_ijepa.labels import NO_TABLE, Table
from full_ijepa.pixels import PHOTOGRAPHS, Pixels, both, compare, decoded, fit
from full_ijepa.vit import Encoder
from toy_ijepa import data as toy
from toy_ijepa.folders import DataError, ImageSet, find, pictures_below
from toy_ijepa.recipe import lookup

CHUNK = 500  # pictures decoded, resized or encoded at a time


@dataclass(frozen=True)
class Labelled:
    """A labelled split: in memory at its own size, files, or pictures of torchvision; and how the encoder sees it.

    labels   classes int64 (S,), tags bool (S, c) or numbers float32 (S, c)
    classes  names of the classes, tags or columns of numbers
    groups   number of each picture's patient, slide ... (S,), None where there are none
    """

    source: ImageSet | Pictures | list[tuple[Path, str]]
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

    def chunks(self) -> Iterator[Tensor]:
        """Pictures (<= CHUNK, C, H, W) in order, in their own units."""
        for start in range(0, len(self), CHUNK):
            part = slice(start, start + CHUNK)
            if isinstance(self.source, ImageSet):
                yield fit(self.source.images[part], self.sides)
            elif isinstance(self.source, Pictures):
                yield self.source[part].at(self.sides)
            else:
                # a single one is refused below, with its name
                found = decoded(self.source[part], self.classes, self.sides, self.pixels, True)
                if found.skipped:
                    raise DataError(f"a labelled picture cannot be read ({found.skipped[0]}); mend it or move it away")
                yield found.images

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
        files, classes = placed(name, split) if name.startswith(SCHEMES[1:]) else split_files(folder_of(name), split)
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


def placed(name: str, split: str) -> tuple[list[tuple[Place, str]], tuple[str, ...]]:
    """Pictures of shards or of a table with their classes."""
    found, called, classes = members(name, split)
    return [(Place(found, number), label) for number, label in enumerate(called)], classes


def split_files(root: Path, split: str) -> tuple[list[tuple[Path, str]], tuple[str, ...]]:
    """Files of a split with their classes; ImageNet calls its test part `val`."""
    if split == "test" and not (root / "test").is_dir() and (root / "val").is_dir():
        _, classes = find(root, "train", SUFFIXES)
        return pictures_below(root / "val", SUFFIXES), classes
    return find(root, split, SUFFIXES)


@torch.no_grad()
def pooled(encoder: Encoder, data: Labelled, last: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    """Average-pooled features of the last `last` blocks, shallow first: (S, last * D), float32, on the CPU."""
    device = next(encoder.parameters()).device
    last, found = min(last, len(encoder.blocks)), []
    encoder.eval()
    for images in data.chunks():
        for part in encoder.pixels.normalise(images.to(device)).split(125):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                layers = encoder.layers(part, last)
            found.append(torch.cat([tokens.float().mean(1) for tokens in layers], dim=1).cpu())
    return torch.cat(found)


@torch.no_grad()
def tokens(encoder: Encoder, data: Labelled, dtype: torch.dtype = torch.float32) -> Tensor:
    """All tokens of the last layer in half precision: (S, N, D), on the CPU."""
    device = next(encoder.parameters()).device
    found = []
    encoder.eval()
    for images in data.chunks():
        for part in encoder.pixels.normalise(images.to(device)).split(125):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                found.append(encoder(part).half().cpu())
    return torch.cat(found)
