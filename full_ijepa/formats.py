"""From a file to its numbers: photographs, deep and scientific pictures, as they stand there, nothing rescaled.

Pillow and torchvision read what people call pictures; tifffile reads TIFF with more pages, channels or bits than they
keep, numpy arrays, pydicom (not installed by itself) what comes from a hospital. Nothing read here can execute code.
"""

# Shape legend:  C channels  H,W pixels

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, Literal

import numpy as np
import tifffile
import torch
from PIL import Image, ImageOps

from toy_ijepa import folders
from toy_ijepa.decoding import EXIF_ORIENTATION, DataError, jpeg_decoder, read_pixels

Depth = Literal["uint8", "uint16", "float32"]
Stack = Literal["channels", "max", "mean"]

ONE_AT_A_TIME = threading.Lock()
TIFF, ARRAYS, DICOM = (".tif", ".tiff"), (".npy", ".npz"), (".dcm", ".dicom")
SUFFIXES = (*folders.SUFFIXES, *ARRAYS, *DICOM)
MAGIC = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"II*\0": ".tif", b"MM\0*": ".tif", b"\x93NUMPY": ".npy"}
MOST_BYTES = 2**32  # of an unpacked picture; Pillow has a limit of its own
MOST_CHANNELS = 16  # an axis up to so long may be one of channels, in an array that does not say


class Blob(io.BytesIO):
    """The bytes of a picture that is no file of its own, with as much of a path as those who read pictures ask for.

    name  where it lies, with the suffix that says how it is decoded; a name without a known one gets that of its first
          bytes
    """

    def __init__(self, name: str, data: bytes) -> None:
        super().__init__(data)
        self.called = name
        self.suffix = PurePosixPath(name).suffix
        if self.suffix.lower() not in SUFFIXES:
            self.suffix = next((s for start, s in MAGIC.items() if data.startswith(start)), self.suffix)

    def __str__(self) -> str:
        return self.called

    __repr__ = __str__  # what a decoder's message calls it

    @property
    def name(self) -> str:
        return PurePosixPath(self.called).name

    def read_bytes(self) -> bytes:
        return self.getvalue()

    def open(self, mode: str = "rb") -> io.BytesIO:
        return io.BytesIO(self.getvalue())

    def close(self) -> None:
        """Nothing: those who open a picture close it, and others read it again."""


Picture = Path | Blob  # what `Pixels.read` takes


@dataclass(frozen=True)
class Place:
    """A picture of a set by its number, not fetched yet: many of them take little room."""

    pictures: Sequence[Picture]
    number: int

    def __str__(self) -> str:
        return f"picture {self.number}"

    def fetched(self) -> Picture:
        """Raises UnreadableError if it cannot be had."""
        return self.pictures[self.number]


class Places(Sequence[Place]):
    """Pictures of a set by their numbers (S,), all of them if none are given: eight bytes each."""

    def __init__(self, pictures: Sequence[Picture], numbers: np.ndarray | None = None) -> None:
        self.pictures = pictures
        self.numbers = np.arange(len(pictures)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> Place:
        return Place(self.pictures, int(self.numbers[number]))

    def take(self, part: slice | np.ndarray) -> Places:
        """Some of them: a range, or those of the numbers (B,)."""
        return Places(self.pictures, self.numbers[part])


class UnreadableError(ValueError):
    """A picture, or a shard with `pictures` of them, that cannot be had; `beyond` is the number of what replaces it."""

    def __init__(self, name: str, reason: str, beyond: int, pictures: int = 1) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason, self.beyond, self.pictures = name, reason, beyond, pictures


@dataclass(frozen=True)
class Kind:
    """What a file's header says: pixels across and down, channels, and the type of its numbers."""

    width: int
    height: int
    channels: int
    depth: Depth


def source(picture: Picture) -> Path | io.BytesIO:
    """What libraries open: a path, or the bytes of a Blob from their start."""
    return picture.open() if isinstance(picture, Blob) else picture


def depth_of(dtype: np.dtype) -> Depth:
    """The depth that keeps every number of a type: anything but 8 and 16 bit without sign becomes float32."""
    return {"bool": "uint8", "uint8": "uint8", "uint16": "uint16"}.get(dtype.newbyteorder("=").name, "float32")


def read_values(path: Picture, stack: Stack) -> np.ndarray:
    """The numbers of a file, (c, H, W), uint8, uint16 or float32, as they stand there.

    Raises whatever a decoder raises for a broken file, ValueError for a shape that is no picture.
    """
    suffix = path.suffix.lower()
    if suffix in ARRAYS:
        values, axes = read_npy(path)
    elif suffix in DICOM:
        values, axes = read_dicom(path)
    elif suffix in TIFF and not simple_tiff(path):
        with tifffile.TiffFile(source(path)) as file:
            check_size(file.series[0].size * file.series[0].dtype.itemsize)
            values, axes = file.series[0].asarray(), file.series[0].axes
    else:
        values, axes = read_plain(path), "CYX"
    values = flatten(values, axes, stack)
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    return np.require(values, depth_of(values.dtype), ["C", "W"])


def flatten(values: np.ndarray, axes: str, stack: Stack) -> np.ndarray:
    """An array with named axes as (c, H, W): C and S are channels, all but these and Y, X are planes of a stack."""
    order = [i for i, a in enumerate(axes) if a not in "CSYX"], [i for i, a in enumerate(axes) if a in "CS"]
    planes, channels = order
    values = values.transpose(*planes, *channels, axes.index("Y"), axes.index("X"))
    count = int(np.prod([values.shape[i] for i in range(len(planes))]))
    values = values.reshape(count, -1, *values.shape[-2:])  #                          (planes, c, H, W)
    if stack == "channels":
        return values.reshape(-1, *values.shape[-2:])
    if stack == "max" or count == 1:
        return values.max(0)
    mean = values.mean(0, dtype=np.float64)
    return (mean if values.dtype.kind == "f" else mean.round()).astype(values.dtype)


def read_plain(path: Picture) -> np.ndarray:
    """A file that Pillow or torchvision reads, in its own depth: (c, H, W)."""
    suffix = path.suffix.lower()
    if suffix == ".png" and png_colour_type(path) is not None:
        Image.open(path).close()  # refuses a header that promises more pixels than any picture has
        jpeg_decoder()  # says what is wrong where torchvision's operators are missing
        from torchvision.io import ImageReadMode, decode_png

        data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        values = decode_png(data, mode=ImageReadMode.UNCHANGED).numpy()
        return values if len(values) % 2 else values[:-1]  # without transparency
    with Image.open(path) as picture:
        deep = picture.mode.startswith("I;16") or picture.mode in ("I", "F")
        grey = picture.mode in ("L", "1")
        if deep or grey:
            picture.load()
            picture = ImageOps.exif_transpose(picture)
            values = np.asarray(picture.convert("L") if picture.mode == "1" else picture)[None]
            return values.astype(np.uint16) if picture.mode == "I" and fits_16_bit(values) else values
    return read_pixels(path)


def fits_16_bit(values: np.ndarray) -> bool:
    """Pillow hands 16-bit PNG files over as 32-bit numbers in some of its releases."""
    return values.min() >= 0 and values.max() <= 65535


def png_colour_type(path: Picture) -> int | None:
    """2 (RGB), 4 (grey with alpha) or 6 (RGBA) of a PNG with 16 bits a channel, of which Pillow would keep 8."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[25] if len(head) == 26 and head[24] == 16 and head[25] in (2, 4, 6) else None


def read_npy(path: Picture) -> tuple[np.ndarray, str]:
    """The one array of a .npy or .npz file and its axes; nothing that could execute code is loaded."""
    mapped = path.suffix.lower() == ".npy" and isinstance(path, Path)
    # TRAP: numpy reads a header with `ast.literal_eval`, which two threads at once may break in older Pythons (a
    # SystemError, cpython issue 106905): a whole file then looks broken.
    with ONE_AT_A_TIME:
        found = np.load(source(path), mmap_mode="r" if mapped else None, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found, axes_of(found.shape)
        with found:
            if len(found.files) != 1:
                raise ValueError(f"it holds {len(found.files)} arrays ({', '.join(found.files[:5])}); one is expected")
            check_size(max(member.file_size for member in found.zip.infolist()))
            array = found[found.files[0]]
    return array, axes_of(array.shape)


def check_size(count: int) -> None:
    """Raise ValueError for a picture of more bytes than any has: a small file may promise to fill the memory."""
    if count > MOST_BYTES:
        raise ValueError(
            f"it would take {count / 1e9:.1f} GB of memory, more than the {MOST_BYTES / 1e9:.1f} of a picture"
        )


def axes_of(shape: tuple[int, ...]) -> str:
    """The axes of an array that does not name them: of three, the shortest is that of channels, if first or last.

    Raises ValueError if there is no telling.
    """
    if len(shape) == 2:
        return "YX"
    if len(shape) == 3 and min(shape) <= MOST_CHANNELS and shape.count(min(shape)) == 1 and shape[1] > min(shape):
        return "CYX" if shape[0] < shape[2] else "YXC"
    raise ValueError(f"an array of shape {shape} is no picture: expected (H, W), (C, H, W) or (H, W, C)")


def read_dicom(path: Picture) -> tuple[np.ndarray, str]:
    """The values of a DICOM file (rescaled as it says, bright where it is bright on screen) and their axes."""
    pydicom = import_pydicom()
    from pydicom.pixels import apply_rescale

    file = pydicom.dcmread(source(path))
    values = file.pixel_array
    if file.get("PhotometricInterpretation") == "MONOCHROME1":  # small numbers are bright
        top = -1 if file.get("PixelRepresentation", 0) else 2 ** int(file.BitsStored) - 1  # of all pictures alike
        values = (top - values.astype(np.int64)).astype(values.dtype)
    values = apply_rescale(values, file) if rescaled(file) else values
    frames = "I" if int(file.get("NumberOfFrames", 1) or 1) > 1 else ""
    return values, frames + ("YXS" if file.get("SamplesPerPixel", 1) > 1 else "YX")


def rescaled(file: Any) -> bool:
    return "RescaleSlope" in file and (float(file.RescaleSlope), float(file.RescaleIntercept)) != (1.0, 0.0)


def import_pydicom() -> ModuleType:
    """The library that reads DICOM. Raises DataError if it is not installed."""
    try:
        import pydicom
    except ImportError as error:
        raise DataError('DICOM files need one more package: pip install "pydicom>=3,<4"') from error
    return pydicom


def simple_tiff(path: Picture) -> bool:
    """Whether Pillow reads a TIFF without losing anything: one page, 8 bit, or grey."""
    with tifffile.TiffFile(source(path)) as file:
        series = file.series[0]
        samples = series.shape[series.axes.index("S")] if "S" in series.axes else 1
        one = set(series.axes) <= set("YXS") and len(file.series) == 1
        return one and (samples == 1 or (samples <= 4 and series.dtype == np.uint8))


def describe(path: Picture, stack: Stack = "channels") -> Kind | None:
    """What a file's header says; None if there is no telling.

    Raises DataError where a package is missing.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in ARRAYS:
            values, axes = read_npy(path)
            return kind_of(values.shape, axes, values.dtype, stack)
        if suffix in DICOM:
            return describe_dicom(path, stack)
        if suffix in TIFF and not simple_tiff(path):
            with tifffile.TiffFile(source(path)) as file:
                return kind_of(file.series[0].shape, file.series[0].axes, file.series[0].dtype, stack)
        return describe_plain(path)
    except DataError:
        raise
    except Exception:  # whatever is wrong with the file, reading it says so
        return None


def kind_of(shape: Sequence[int], axes: str, dtype: np.dtype, stack: Stack) -> Kind:
    counted = "CS" if stack != "channels" else "".join(a for a in axes if a not in "YX")
    channels = int(np.prod([n for n, a in zip(shape, axes, strict=True) if a in counted]))
    return Kind(shape[axes.index("X")], shape[axes.index("Y")], channels, depth_of(np.dtype(dtype)))


def describe_dicom(path: Picture, stack: Stack) -> Kind:
    file = import_pydicom().dcmread(source(path), stop_before_pixels=True)
    bits, signed = int(file.BitsAllocated), bool(file.get("PixelRepresentation", 0))
    exact = {8: "uint8", 16: "uint16"}.get(bits, "float32")
    depth = "float32" if signed or rescaled(file) else exact
    frames = int(file.get("NumberOfFrames", 1) or 1) if stack == "channels" else 1
    return Kind(int(file.Columns), int(file.Rows), frames * int(file.get("SamplesPerPixel", 1)), depth)


def describe_plain(path: Picture) -> Kind | None:
    with Image.open(path) as picture:
        size = picture.size[::-1] if picture.getexif().get(EXIF_ORIENTATION, 1) >= 5 else picture.size
        if path.suffix.lower() == ".png" and (colour := png_colour_type(path)) is not None:
            return Kind(*size, 1 if colour == 4 else 3, "uint16")
        if picture.mode == "F" or picture.mode.startswith("I"):
            return Kind(*size, 1, "float32" if picture.mode == "F" else "uint16")
        return Kind(*size, 1 if picture.mode in ("L", "1") else 3, "uint8")
