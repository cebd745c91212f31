"""What the numbers in picture files mean: channels, depth, and the mean and std that bring them to the encoder.

Photographs are three channels of 8 bit, and keep the toy's round constants. Everything else (grey, 16 bit, five
channels, floats) is measured on the training pictures, said, and saved with recipe and weights.

TRAP: twelve bits in a file of sixteen look black to everything that divides by 65,535; nothing here does.
"""

# Shape legend:  S pictures  B pictures of a batch  C channels  H,W pixels

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from full_ijepa.formats import (
    ARRAYS,
    DICOM,
    TIFF,
    Depth,
    Kind,
    Picture,
    Place,
    Stack,
    UnreadableError,
    describe,
    read_values,
    simple_tiff,
)
from toy_ijepa.decoding import DataError, blame, read_pixels
from toy_ijepa.folders import ImageSet, decode
from toy_ijepa.patches import normalise

SAMPLED = 2000  # headers that say what a set is made of; a large set is not read whole before its first step
MEASURED = 500  # pictures whose values are measured, and so many values of a channel of each:
VALUES = 4096
FAR = 3.0  # stds between means, or ratio of stds, from which values are called foreign to an encoder
TAILS = 0.001  # share of the values at either end (dead and hot pixels) that mean and std leave out
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's


T = TypeVar("T")


@dataclass(frozen=True)
class Pixels:
    """How pictures of files become numbers for an encoder.

    mean, std  in the files' own units, of all channels or of each
    stack      what the pages of a stack are: channels, or planes of which the largest or mean value counts
    """

    channels: int = 3
    depth: Depth = "uint8"
    mean: tuple[float, ...] = (127.5,)
    std: tuple[float, ...] = (63.75,)
    stack: Stack = "channels"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(f"{name} has {len(getattr(self, name))} numbers for {self.channels} channels")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be above 0: a channel that is the same everywhere says nothing")

    @property
    def photographs(self) -> bool:
        """Whether files are read as the toy reads them: 8-bit RGB, whatever they were."""
        return (self.channels, self.depth) == (3, "uint8")

    def normalise(self, images: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in their own units -> float around 0 with std about 1."""
        if images.shape[1] != self.channels:
            raise ValueError(f"pictures have {images.shape[1]} channels, {self.channels} are expected")
        if self == PHOTOGRAPHS:
            return normalise(images)
        x = images.float()
        # TRAP: numbers that are copied to a GPU make the host wait for it; numbers that it fills in itself do not.
        mean, std = (torch.cat([x.new_full((1, 1, 1), n) for n in v]) for v in (self.mean, self.std))  # (C or 1, 1, 1)
        return (x - mean) / std

    def scaled(self, images: Tensor) -> Tensor:
        """Pictures (B, C, H, W) on the scale of photographs, 0 ... 255 and beyond: what the toy's functions expect."""
        return images if self == PHOTOGRAPHS else 63.75 * self.normalise(images) + 127.5

    def shown(self, images: Tensor) -> Tensor:
        """Pictures (B, C, H, W) as people can see them, uint8 (B, 3, H, W): two stds either way from black to white.

        Grey is shown grey, of more than three channels the first three.
        """
        return self.rgb(self.scaled(images).float().round().clamp(0, 255).byte(), 1)

    def rgb(self, values: Tensor, axis: int) -> Tensor:
        """Three of the channels that lie along an axis."""
        three = [0, min(1, self.channels - 1), min(2, self.channels - 1)]
        return values.index_select(axis, torch.tensor(three, device=values.device))

    def read(self, path: Picture) -> np.ndarray:
        """One picture as (C, H, W) of this depth.

        Grey becomes as many channels as are wanted, colour becomes grey where one channel is wanted.
        Raises ValueError if channels or depth do not fit, and whatever a decoder raises for a broken file.
        """
        suffix = path.suffix.lower()
        if self.photographs and suffix not in (*ARRAYS, *DICOM) and not (suffix in TIFF and not simple_tiff(path)):
            return read_pixels(path)
        values = read_values(path, self.stack)
        if values.dtype != self.depth:
            raise ValueError(f"its numbers are {values.dtype}, those of the set {self.depth}")
        if len(values) != self.channels:
            values = convert(values, self.channels)
        if values.dtype == np.float32 and not np.isfinite(values).all():
            raise ValueError("some of its numbers are not finite")
        return values

    def read_fitted(self, path: Picture | Place, sides: tuple[int, int] | None) -> np.ndarray | str:
        """One picture (C, H, W) brought to sides (H, W) if given; or the reason why it cannot be read.

        Raises MachineError if the file is not to blame.
        """
        try:
            path = path.fetched() if isinstance(path, Place) else path
            values = torch.from_numpy(np.ascontiguousarray(self.read(path)))
        except UnreadableError as error:
            return str(error)
        except Exception as error:  # decoders of broken files raise anything
            return blame(path, error)
        return values.numpy() if sides is None else fit(values[None], sides)[0].numpy()


PHOTOGRAPHS = Pixels()


def both(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels, of a square's side or of the two."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def convert(values: np.ndarray, channels: int) -> np.ndarray:
    """Values (c, H, W) with another number of channels. Raises ValueError unless one of the two is grey or alpha."""
    if len(values) == 1:
        return np.repeat(values, channels, axis=0)
    if len(values) in (3, 4) and channels == 1:
        grey = np.tensordot(np.array(LUMINANCE), values[:3].astype(np.float64), 1)[None]
        return (grey if values.dtype == np.float32 else grey.round()).astype(values.dtype)
    if (len(values), channels) == (4, 3):
        return values[:3]  # without its transparency
    raise ValueError(f"it has {len(values)} channels, the set {channels}")


def fit(images: Tensor, sides: tuple[int, int]) -> Tensor:
    """Pictures (B, C, H, W) of any type brought to sides (H, W): scaled to cover them, then the middle cut out.

    For squares the same pixels as transformers' image processor cuts out, so that exports see what we see.
    """
    H, W = images.shape[2:]
    if sides == (H, W):
        return images
    by_height = sides[0] * W >= sides[1] * H
    h, w = (sides[0], sides[0] * W // H) if by_height else (sides[1] * H // W, sides[1])
    top, left = (h - sides[0]) // 2, (w - sides[1]) // 2
    found = []
    for part in images.split(500):
        whole = part if part.dtype == torch.uint8 else part.float()
        big = F.interpolate(whole, size=(h, w), mode="bilinear", antialias=True, align_corners=False)
        cut = big[:, :, top : top + sides[0], left : left + sides[1]]
        found.append(typed(cut, images.dtype) if images.dtype == torch.uint16 else cut.contiguous())
    return torch.cat(found)


def typed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats rounded to a type of whole numbers, within its range."""
    info = torch.iinfo(dtype)
    return values.round().clamp(info.min, info.max).to(dtype)


def survey(pictures: Sequence[Picture], stack: Stack = "channels") -> dict[str, Kind]:
    """What the headers of pictures say, by name; those without a readable one are left out."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(partial(describe, stack=stack), pictures)
        return {str(picture): kind for picture, kind in zip(pictures, found, strict=True) if kind is not None}


def some(pictures: Sequence[T], count: int) -> list[T]:
    """At most `count` of the pictures, evenly spread, or as a set that is far away hands them out (`sample`).

    Those that cannot be had are left out here; who trains on them is told.
    """
    if hasattr(pictures, "sample"):
        return pictures.sample(count)
    if len(pictures) <= count:
        return list(pictures)
    return [pictures[i * len(pictures) // count] for i in range(count)]


def settle(paths: Sequence[Picture], asked: int = 0, stack: Stack = "channels") -> tuple[int, Depth]:
    """Channels and depth of a set, from its headers.

    asked  the number of channels wanted; 0 for as many as the pictures have: grey among colour counts as colour
    Raises DataError if the pictures do not have one depth, or one number of channels.
    """
    kinds = survey(some(paths, SAMPLED), stack)
    if not kinds:
        return asked or 3, "uint8"
    depths = Counter(kind.depth for kind in kinds.values())
    if len(depths) > 1 and not most_are_photographs(kinds.values()):
        raise DataError(
            f"the pictures have numbers of {told(kinds, 'depth')}: their values mean different things. "
            "Convert them to one, or put them into folders of their own"
        )
    if len(depths) > 1:  # a few files of 16 bit among photographs are brought to 8, as ever
        return 3, "uint8"
    (depth,) = depths
    channels = Counter(kind.channels for kind in kinds.values())
    if asked or len(channels) == 1:
        return asked or next(iter(channels)), depth
    if set(channels) <= {1, 3}:
        return 3, depth
    raise DataError(
        f"the pictures have {told(kinds, 'channels')}; give --channels, or --stack max for stacks of different heights"
    )


def most_are_photographs(kinds: Iterable[Kind]) -> bool:
    found = [(kind.channels, kind.depth) == (3, "uint8") for kind in kinds]
    return 2 * sum(found) > len(found)


def told(kinds: dict[str, Kind], name: str) -> str:
    """How many files have each value of a field, with an example of each."""
    example = {getattr(kind, name): path for path, kind in reversed(kinds.items())}
    count = Counter(getattr(kind, name) for kind in kinds.values())
    return ", ".join(f"{value} {name} ({n} files, {Path(example[value]).name})" for value, n in count.most_common(4))


def measure(paths: Sequence[Picture], pixels: Pixels, seed: int = 0) -> Pixels:
    """The same pixels with mean and std of each channel, measured on some of the pictures, one after another.

    The TAILS at both ends are left out: a hot pixel does not stretch the scale. Raises DataError if none can be read or
    a channel is the same everywhere.
    """
    random = np.random.default_rng(seed)
    values: list[np.ndarray] = []
    skipped: list[str] = []
    for path in some(paths, MEASURED):
        read = pixels.read_fitted(path, None)
        if isinstance(read, str):
            skipped.append(read)
            continue
        flat = read.reshape(len(read), -1)
        index = random.integers(0, flat.shape[1], min(VALUES, flat.shape[1]))
        values.append(flat[:, index].astype(np.float64))
    if not values:
        raise DataError(f"none of {len(skipped)} pictures could be read; the first: {skipped[0]}")
    mean, std = [], []
    for channel, found in enumerate(np.concatenate(values, axis=1)):
        low, high = np.quantile(found, (TAILS, 1 - TAILS))
        inside = found[(low <= found) & (found <= high)]
        if not inside.std() > 0:
            raise DataError(f"channel {channel} is {inside.mean():g} in all {len(values)} pictures that were measured")
        mean.append(round(float(inside.mean()), 4))
        std.append(float(f"{inside.std():.6g}"))
    return Pixels(pixels.channels, pixels.depth, tuple(mean), tuple(std), pixels.stack)


def compare(paths: Sequence[Picture], pixels: Pixels) -> None:
    """Warn if pictures have other values than those that an encoder was trained on."""
    compare_measured(measure(paths, pixels), pixels)


def compare_measured(found: Pixels, pixels: Pixels) -> None:
    """As `compare`, of pictures that were measured."""
    mean, std = (np.array(v) * np.ones(pixels.channels) for v in (pixels.mean, pixels.std))
    off = np.abs(np.array(found.mean) - mean) / std
    if off.max() > FAR or not 1 / FAR < (np.array(found.std) / std).min() <= (np.array(found.std) / std).max() < FAR:
        warnings.warn(
            f"these pictures have mean {found.mean} and std {found.std}, those of the training {pixels.mean} and "
            f"{pixels.std}: other units, or another instrument? The encoder does not know such values",
            stacklevel=3,
        )


def decoded(
    files: list[tuple[Path, str]], classes: tuple[str, ...], sides: tuple[int, int] | None, pixels: Pixels, allow: bool
) -> ImageSet:
    """Pictures of files at sides (H, W), or at their own where that is one; broken files are left out and named.

    Raises as `toy_ijepa.folders.decode`.
    """
    return decode(files, classes, partial(pixels.read_fitted, sides=sides), allow)
