"""A look at pictures before training: what they are, what is wrong with them, and which of them are the same.

Nothing is changed. Every file is counted; so many are opened, evenly spread, and all that is said of values and copies
is said of those. What follows from it for a recipe is in advice.py, how it is told in lookpage.py.
"""

# Shape legend:  S pictures, or sampled values of a channel  C channels  H,W pixels  F numbers of an outline

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from full_ijepa import labels
from full_ijepa.data import SCHEMES, SMALL, folder_of, members, split_names
from full_ijepa.formats import SUFFIXES, Kind, Picture, Place, Stack
from full_ijepa.pixels import PHOTOGRAPHS, SAMPLED, Pixels, measure, settle, some, survey
from full_ijepa.remote import is_remote
from full_ijepa.shards import places
from full_ijepa.table import NO_TABLE, Followed, Table
from full_ijepa.twins import OUTLINE, Twin, outline, twins
from toy_ijepa import data as toy
from toy_ijepa.decoding import DataError
from toy_ijepa.folders import LOOKS, class_of, files_below, find

OPENED = 10_000  # pictures opened; all others are only counted
SAMPLE = 1_000_000  # values of a channel that histogram and percentiles are made of
FLAT = 0.05  # std within a picture, where 1 is that of the set: three grey levels of a photograph
PERCENTILES = (0.1, 1, 50, 99, 99.9)


@dataclass(frozen=True)
class Part:
    """A split as it can be read: all pictures by name and class, and how one of them is opened.

    read  (C, H, W) of a picture by its number, or the reason why it cannot be read
    """

    names: Sequence[str]
    labels: Sequence[str]
    read: Callable[[int], np.ndarray | str]


@dataclass(frozen=True)
class Seen:
    """What is kept of a picture that was opened.

    number  its place in the split
    low, high  its smallest and largest value
    spread  std within it, mean over channels, in stds of the set
    """

    number: int
    sides: tuple[int, int]
    low: float
    high: float
    spread: float


@dataclass(frozen=True)
class Split:
    """Findings about one split; Seen of the pictures that were opened, in order."""

    name: str
    part: Part
    asked: int
    seen: tuple[Seen, ...]
    unreadable: tuple[str, ...]
    copies: tuple[Twin, ...] = ()

    def __len__(self) -> int:
        return len(self.part.names)

    @property
    def flat(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.spread < FLAT]

    @property
    def classes(self) -> Counter[str]:
        """How many pictures of the whole split each class has; empty without classes."""
        return Counter(label for label in self.part.labels if label)

    def name_of(self, number: int) -> str:
        return self.part.names[self.seen[number].number]

    def label_of(self, number: int) -> str:
        return self.part.labels[self.seen[number].number]

    def picture(self, number: int) -> np.ndarray | str:
        """One of those that were opened, read again."""
        return self.part.read(self.seen[number].number)


@dataclass(frozen=True)
class Look:
    """All findings about a set; the first split is the one to train on.

    pixels  what the numbers mean; std 1 where it could not be measured
    kinds   how many files have each number of channels and depth, from at most SAMPLED headers; empty without files
    values  (C, S), of training pictures, in their own units
    leaks   pictures of the last split that have a copy in the first: Twin(its number, that of the copy)
    notes   what is wrong with the set as a whole
    table   of labels beside it, which divided it
    """

    data: str
    pixels: Pixels
    kinds: Counter[tuple[int, str]]
    splits: tuple[Split, ...]
    values: np.ndarray
    leaks: tuple[Twin, ...]
    notes: tuple[str, ...]
    table: Table = NO_TABLE

    @property
    def training(self) -> Split:
        return self.splits[0]

    @property
    def sides(self) -> tuple[int, int]:
        """Median height and width of training pictures, px."""
        return tuple(round(median(seen.sides[axis] for seen in self.training.seen)) for axis in (0, 1))

    @property
    def bits(self) -> int | None:
        """Bits that the largest value of training pictures needs; None for floats."""
        if self.pixels.depth == "float32":
            return None
        return max(int(max(seen.high for seen in self.training.seen)).bit_length(), 1)

    @property
    def top(self) -> float:
        """The value at which pictures are saturated."""
        return max(seen.high for seen in self.training.seen) if self.bits is None else float(2**self.bits - 1)


def name_of(data: str) -> str:
    """DATA as recipes take it: a bare path of a folder becomes folder:PATH."""
    known = (*SMALL, "imagenet")
    return f"folder:{data}" if data not in known and Path(data).expanduser().is_dir() else data


def look(data: str, most: int = OPENED, stack: Stack = "channels", table: Table = NO_TABLE) -> Look:
    """Look at a set: a name, folder:PATH, a folder's path, shards:... or hf:...; at most `most` pictures are opened.

    table  of labels beside the pictures of a folder, which then divides them
    Raises DataError (a ValueError) if there are no pictures, none of those to train on can be read, or the table has
    mistakes.
    """
    if most < 2:
        raise DataError(f"a look at {most} pictures says nothing; at least 2 are needed")
    data = name_of(data)
    notes: list[str] = []
    if table and not data.startswith("folder:"):
        raise DataError(f"a table of labels goes with a folder of pictures, not with {data!r}")
    if data in SMALL and not stand_in(data).is_dir():
        pixels, kinds, parts = PHOTOGRAPHS, Counter(), tensors(data)
    elif data.startswith(SCHEMES[1:]):
        pixels, kinds, parts = inside(data, stack, notes)
    else:
        root = stand_in(data) if data in SMALL else folder_of(data)
        files = {} if table else {"train": find(root, "train", SUFFIXES)[0]}
        if table:
            root = Path(os.path.realpath(root))  # as the table's pictures are named
            files, said = tabled(root, table)
            notes.append(said)
        else:
            try:
                base, names, _ = split_names(root, "test")
                files["test"] = [(base / name, class_of(name)) for name in names]
            except DataError as error:
                notes.append(f"no test split: {error}")
        if not table and not (root / "train").is_dir() and "test" in files:
            notes.append(
                "there is no train/ and test/: every fifth picture of a class is set aside to test, by name. Where "
                "neighbours look alike (frames of a film, slices of a body), divide the folder yourself"
            )
        paths = [path for path, _ in files["train"]]
        pixels, kinds = made_of(paths, stack, notes)
        parts = {name: part_of(found, root, pixels) for name, found in files.items()}
    whole = sum(len(part.names) for part in parts.values())
    rest = [max(round(most * len(part.names) / max(whole, most)), 1) for part in parts.values()]
    opened = [open_some(name, part, n, pixels) for (name, part), n in zip(parts.items(), rest, strict=True)]
    if not opened[0][0].seen:
        raise DataError(f"none of the pictures looked at can be read; the first: {opened[0][0].unreadable[0]}")
    splits = [replace(split, copies=tuple(twins(outlines))) for split, _, outlines in opened]
    leaks = twins(opened[-1][2], opened[0][2]) if len(opened) > 1 else []
    return Look(data, pixels, kinds, tuple(splits), opened[0][1], tuple(leaks), tuple(notes), table)


def tabled(root: Path, table: Table) -> tuple[dict[str, list[tuple[Path, str]]], str]:
    """Files to train on and to test on by a table of labels, with the class of each ("" for tags, numbers and none)."""
    known = labels.read(table, root)
    task = labels.task_of(known.train.labels)
    files = {}
    for name, part in (("train", known.train), ("test", known.test)):
        called = [known.names[n] for n in part.labels.tolist()] if task == "classes" else [""] * len(part)
        files[name] = list(zip(part.files, called, strict=True))
    real = Followed()
    listed = {real(path) for found in files.values() for path, _ in found} | set(map(real, known.withheld))
    base = root / "train" if (root / "train").is_dir() else root
    files["train"] += [(p, "") for p, _ in files_below(base, SUFFIXES) if real(p) not in listed]
    groups = "" if known.train.groups is None else f", {len({*known.train.groups.tolist()})} groups to train on"
    what = f"{len(known.names)} {task}" if task != "numbers" else "numbers"
    return files, f"{', '.join(table.label_column)}: {what}; divided by {known.division}{groups}"


def stand_in(data: str) -> Path:
    """The folder that stands in for a download, where it is one."""
    return Path(os.environ.get("IJEPA_DATA") or "-") / data


def tensors(data: str) -> dict[str, Part]:
    """The splits of a set by name that is no folder."""
    parts = {}
    for name in ("unlabeled", "train", "test") if data == "stl10" else ("train", "test"):
        found = toy.load(data, name)
        labels = tuple(found.classes[label] if label >= 0 else "" for label in found.labels.tolist())
        images = found.images
        parts[name] = Part(tuple(f"number {i}" for i in range(len(found))), labels, lambda i, x=images: x[i].numpy())
    return parts


def inside(data: str, stack: Stack, notes: list[str]) -> tuple[Pixels, Counter[tuple[int, str]], dict[str, Part]]:
    """Pixels, kinds and splits of shards or of a table. Raises DataError for shards that are elsewhere."""
    if data.startswith("shards:") and any(map(is_remote, places(data))):
        raise DataError(f"a look opens pictures here and there: fetch some of the shards, then look at those ({data})")
    found = {"train": members(data, "train")}
    try:
        found["test"] = members(data, "test")
    except DataError as error:
        notes.append(f"no test split: {error}")
    pixels, kinds = made_of(found["train"][0], stack, notes)
    parts = {}
    for name, (pictures, truth, classes) in found.items():
        names = [pictures.name(number) for number in range(len(pictures))]

        def read(number: int, pictures=pictures, names=names) -> np.ndarray | str:
            values = pixels.read_fitted(Place(pictures, number), None)
            return values.removeprefix(f"{names[number]}: ") if isinstance(values, str) else values

        parts[name] = Part(names, [classes[label] if label >= 0 else "" for label in truth.tolist()], read)
    return pixels, kinds, parts


def made_of(paths: Sequence[Picture], stack: Stack, notes: list[str]) -> tuple[Pixels, Counter[tuple[int, str]]]:
    """What most files are, and how many of which kind; what does not agree is added to `notes`."""
    kinds: dict[str, Kind] = survey(some(paths, SAMPLED), stack)
    counted = Counter((kind.channels, kind.depth) for kind in kinds.values())
    try:
        channels, depth = settle(paths, 0, stack)
    except DataError as error:
        notes.append(str(error))
        channels, depth = counted.most_common(1)[0][0]
    pixels = Pixels(channels, depth, stack=stack)
    if not pixels.photographs:
        try:
            pixels = measure(paths, pixels)
        except DataError as error:
            notes.append(str(error))
            pixels = replace(pixels, mean=(0.0,), std=(1.0,))
    return pixels, counted


def part_of(files: list[tuple[Path, str]], root: Path, pixels: Pixels) -> Part:
    """A split of files; names are paths below the root."""
    paths = [path for path, _ in files]
    names = tuple(str(path.relative_to(root) if path.is_relative_to(root) else path) for path in paths)

    def read(number: int) -> np.ndarray | str:
        found = pixels.read_fitted(paths[number], None)
        return found.removeprefix(f"{paths[number]}: ") if isinstance(found, str) else found

    return Part(names, tuple(label for _, label in files), read)


def open_some(name: str, part: Part, most: int, pixels: Pixels) -> tuple[Split, np.ndarray, Tensor]:
    """Open at most so many pictures: the split, values of its channels (C, S), and outlines (S, F)."""
    numbers = some(range(len(part.names)), most)
    share = min(max(SAMPLE // max(len(numbers), 1), 16), 4096)

    def one(number: int) -> tuple[Seen, np.ndarray, np.ndarray] | str:
        values = part.read(number)
        if isinstance(values, str):
            return f"{part.names[number]}: {values}"
        flat = values.reshape(len(values), -1)
        spread = float((flat.std(1, dtype=np.float64) / np.array(pixels.std)).mean())
        seen = Seen(number, values.shape[1:], float(flat.min()), float(flat.max()), spread)
        index = np.random.default_rng(number).integers(0, flat.shape[1], min(share, flat.shape[1]))
        return seen, flat[:, index], outline(values) if spread >= FLAT else np.zeros(OUTLINE, np.float32)

    pieces = [numbers[start : start + 100] for start in range(0, len(numbers), 100)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(lambda piece: [one(number) for number in piece], pieces)
        bar = tqdm(done, f"looking at {len(numbers)} pictures ({name})", len(pieces), bar_format=LOOKS, delay=2.0)
        found = [line for piece in bar for line in piece]
    good = [line for line in found if not isinstance(line, str)]
    values = np.concatenate([v for _, v, _ in good], 1) if good else np.zeros((pixels.channels, 0))
    outlines = torch.from_numpy(np.stack([o for *_, o in good])) if good else torch.zeros(0, OUTLINE)
    broken = tuple(line for line in found if isinstance(line, str))
    return Split(name, part, len(numbers), tuple(seen for seen, *_ in good), broken), values, outlines
