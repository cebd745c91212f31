"""From a file to pixels, and who is to blame when that fails: the file, or the machine that reads it."""

# Shape legend:  C = 3 channels  H,W pixels

from __future__ import annotations

import errno
import io
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from toy_ijepa.environment import MachineError, import_torchvision

EXIF_ORIENTATION = 0x0112
KNOWN = (200, 120, 40)  # colour of the picture that a decoder must be able to read
DARK = 16  # of 255: a picture of 16 bit that stays below has fewer bits in truth, and hardly any are left here
TOO_DARK = (
    "pictures of 16 bit that use only their lowest values are nearly black in 8 bit; stretch them first, or put them "
    "into a folder of their own: at full scale such a folder keeps its range, which is measured"
)
# What the system says about one file; all else that it says (no memory, too many open files, a disk that fails) would
# hit every file.
OF_A_FILE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


class DataError(ValueError):
    """Pictures that cannot be had, with what to do about it."""


@cache
def jpeg_decoder() -> Callable[[Tensor], Tensor]:
    """torchvision's JPEG decoder: encoded bytes (n,) uint8 -> (C, H, W) uint8, turned upright.

    Imported once, outside of everything that forgives a broken file. Raises MachineError if it cannot be.
    """
    import_torchvision()
    from torchvision.io import decode_jpeg

    return lambda data: decode_jpeg(data, apply_exif_orientation=True)


def check_decoders() -> None:
    """Read a picture that is known to be whole, with Pillow and with torchvision.

    Raises MachineError if that fails: then no file is to blame.
    """
    decode = jpeg_decoder()
    try:
        file = io.BytesIO()
        Image.new("RGB", (16, 16), KNOWN).save(file, "JPEG")
        slow = np.asarray(Image.open(file).convert("RGB"))[8, 8]
        fast = decode(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8))[:, 8, 8]
    except Exception as error:
        raise MachineError(
            f"pictures cannot be read on this machine now ({error or type(error).__name__}): a picture that is known "
            "to be whole fails too. Nothing was cached; mend this first and run again"
        ) from error
    if max(abs(int(a) - b) for found in (slow, fast) for a, b in zip(found, KNOWN, strict=True)) > 8:
        raise MachineError("the decoders of this machine return wrong colours for a known picture; set it up anew")


def blame(path: Path, error: Exception) -> str:
    """The reason why this one file cannot be read, as "path: reason".

    Raises MachineError if the file is not to blame: what went wrong would hit every file.
    """
    if isinstance(error, MachineError):
        raise error
    system = isinstance(error, OSError) and error.errno is not None and error.errno not in OF_A_FILE
    if system or isinstance(error, MemoryError | ImportError):
        raise MachineError(
            f"reading stopped at {path}: {error or 'not enough memory'}. This is not the picture's fault; nothing was "
            "cached, mend it and run again"
        ) from error
    check_decoders()
    return f"{path}: {error or type(error).__name__}"


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
            if picture.mode != "F" and 0 < values.max() < DARK:
                warnings.warn(TOO_DARK, stacklevel=2)
            picture = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
        if "A" in picture.getbands() or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")


def jpeg_area(data: bytes) -> int:
    """Pixels that the header of a JPEG promises; 0 if this simple search does not find it.

    Source: ITU-T T.81, B.1.1: segments of marker and length, SOF0 to SOF15 without DHT, JPG and DAC hold the size.
    """
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[place + 5 : place + 7]) * int.from_bytes(data[place + 7 : place + 9])
        place += 2 + length
    return 0


def read_jpeg(path: Path) -> np.ndarray | None:
    """A grey or coloured JPEG as uint8 (3, H, W), turned upright; None if it is anything else, or broken.

    The same pixels as `read_picture`, in half the time, and without holding up other threads.
    """
    decode = jpeg_decoder()
    data = path.read_bytes()
    # TRAP: torchvision believes any header and fills what is missing with grey: 700 bytes become gigabytes.
    if not 0 < jpeg_area(data) <= 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
        return None  # Pillow refuses such a picture
    try:
        pixels = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8)).numpy()
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


def read_array(path: Path, image_size: int | tuple[int, int] | None) -> np.ndarray | str:
    """One picture (3, H, W) uint8, brought to image_size (a side, or H and W) if given; or why it cannot be read.

    Raises MachineError if the file is not to blame.
    """
    try:
        pixels = read_pixels(path)
    except Exception as error:  # decoders of broken files raise anything, struct.error and TypeError among it
        return blame(path, error)
    H, W = (image_size, image_size) if isinstance(image_size, int) else image_size or pixels.shape[1:]
    if pixels.shape[1:] == (H, W):
        return pixels
    picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return np.asarray(ImageOps.fit(picture, (W, H), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
