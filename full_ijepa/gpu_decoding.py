"""JPEG pictures decoded on the GPU (`decode: gpu`): workers hand over the bytes of the files, the device does the rest.

What the GPU cannot decode as the CPU does (turned by EXIF, grey, CMYK, no JPEG at all) is decoded by the workers. Its
colours differ from the CPU's by a few levels of 255: another decoder rounds otherwise. Crops are the same.
"""

# Shape legend:  C channels  H,W pixels

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from full_ijepa.formats import Picture
from full_ijepa.recipes.base import Recipe
from toy_ijepa.decoding import EXIF_ORIENTATION, DataError, jpeg_area


class Packed(NamedTuple):
    """Pictures one after another in one tensor, so that workers hand over one file handle a micro-batch.

    data    (n,) uint8
    shapes  of each: (length,) for the bytes of a file, (C, H, W) for a picture that is decoded already
    """

    data: Tensor
    shapes: list[tuple[int, ...]]


def check(recipe: Recipe, device: torch.device) -> None:
    """Raise DataError if the device cannot decode, or the pictures are none that it could."""
    if device.type != "cuda":
        raise DataError(f"decode gpu needs a CUDA device, this run is on {device.type}: take --decode workers")
    if not recipe.pixels.photographs:
        raise DataError("decode gpu knows colour of 8 bit alone; these pictures are read with --decode workers")


def suited(picture: Picture) -> Tensor | None:
    """The bytes (n,) of a JPEG that the GPU decodes as the CPU does; None for everything else."""
    if picture.suffix.lower() not in (".jpg", ".jpeg"):
        return None
    data = picture.read_bytes()
    if not 0 < jpeg_area(data) <= 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
        return None  # TRAP: decoders believe any header: 700 bytes become gigabytes
    with picture.open("rb") as file, Image.open(file) as header:
        if header.mode != "RGB" or header.getexif().get(EXIF_ORIENTATION, 1) != 1:
            return None
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def pack(pictures: Sequence[Tensor]) -> Packed:
    """Bytes of files (n,) and pictures (C, H, W), all uint8, as one tensor."""
    return Packed(torch.cat([p.flatten() for p in pictures]), [tuple(p.shape) for p in pictures])


def unpacked(packed: Packed, device: torch.device, again: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
    """The pictures (C, H, W) on the device.

    again  reads a picture anew on the CPU, or its replacement; called where the device finds a file broken
    """
    parts = packed.data.split([math.prod(shape) for shape in packed.shapes])
    encoded = [part for part, shape in zip(parts, packed.shapes, strict=True) if len(shape) == 1]
    try:
        done = iter(decode(encoded, device))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # which one is broken, torchvision does not say
        done = iter([decode_one(part, device) for part in encoded])
    found = []
    for part, shape, read in zip(parts, packed.shapes, again, strict=True):
        picture = next(done) if len(shape) == 1 else part.view(shape).to(device)
        found.append(read().to(device) if picture is None else picture)
    return found


def decode_one(data: Tensor, device: torch.device) -> Tensor | None:
    """A picture, or None if its file is broken."""
    try:
        return decode([data], device)[0]
    except RuntimeError:
        return None


def decode(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """JPEG files (n,) to pictures (3, H, W) on a CUDA device. Raises RuntimeError if one is broken."""
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(files, mode=ImageReadMode.RGB, device=device) if files else []
