"""What encoders make of labelled pictures: one pass for all of them, shared out over processes, in bounded memory.

Averages of a large set lie in a file without a name, which ends with the program. Tokens are kept only where they are
few; beyond that they are made anew whenever they are asked for, and so are pictures.
"""

# Shape legend:  S pictures  B of a batch  C channels  H,W pixels  N tokens  D width  F features

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from full_ijepa.distributed import World
from full_ijepa.evaluate import pictures
from full_ijepa.evaluate.pictures import Labelled, ahead
from full_ijepa.vit import Encoder
from toy_ijepa.folders import ImageSet

KEPT = 3_000_000_000  # bytes of features, tokens or pictures of a set that all processes together keep in memory

Make = Callable[[Tensor], Tensor]  # of pictures (B, C, H, W) in their own units, on the device


def alone(device: torch.device | str = "cpu") -> World:
    """A world of one process."""
    return World(0, 1, torch.device(device))


@contextmanager
def matmul(device: torch.device, precision: str) -> Iterator[None]:
    """Products of float32 inside are computed in this precision on a GPU: "high" (TF32) or "highest"; a CPU has one.

    TRAP: TF32 keeps ten bits: enough to encode and to train on, too few to rank neighbours or to invert a matrix.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def placed(x: Tensor, device: torch.device) -> Tensor:
    """x on the device, or where it is if it would take more than half of the memory that is free there."""
    if device.type == "cuda" and x.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return x
    return x.to(device)


def averages(encoder: Encoder, last: int = 4, dtype: torch.dtype = torch.float32) -> Make:
    """Makes the averaged tokens of each of the last `last` blocks of pictures, shallow first: (B, last * D), float32.

    dtype  what products are computed in
    """
    last = min(last, len(encoder.blocks))
    encoder.eval()

    def make(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            layers = encoder.layers(encoder.pixels.normalise(images), last)
        return torch.cat([tokens.float().mean(1) for tokens in layers], dim=1)

    return make


def all_tokens(encoder: Encoder, dtype: torch.dtype = torch.float32) -> Make:
    """Makes all tokens of the last layer in half precision: (B, N, D)."""
    encoder.eval()

    def make(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return encoder(encoder.pixels.normalise(images)).half()

    return make


def share(count: int, here: World) -> range:
    """The rows of one process: whole chunks, so that a picture's batch is the same for any number of processes."""
    chunks = -(-count // pictures.CHUNK)
    first, end = (min(-(-chunks * r // here.size) * pictures.CHUNK, count) for r in (here.rank, here.rank + 1))
    return range(first, end)


def roomy(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None, processes: int = 1) -> Tensor:
    """Room for features: in memory, or in a file without a name in the folder, or in the system's.

    processes  that need as much at the same time: the file is for more than KEPT bytes of all together
    Raises OSError if the disk has too little space.
    """
    size = prod(shape) * dtype.itemsize
    if size * processes <= KEPT:
        return torch.empty(shape, dtype=dtype)
    with tempfile.TemporaryFile(dir=folder) as file:  # the map below keeps it, whatever ends the program removes it
        free = shutil.disk_usage(folder or tempfile.gettempdir()).free
        full = OSError(
            f"features need {size / 1e9:.1f} GB in {folder or tempfile.gettempdir()}, where {free / 1e9:.1f} are "
            "free: make room, or take fewer labels (--most)"
        )
        if free < size:
            raise full
        if hasattr(os, "posix_fallocate"):  # TRAP: a map of a file with holes dies of a bus error on a full disk
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:  # other processes take room as well
                raise full from error
        else:
            file.truncate(size)
        return torch.from_numpy(np.memmap(file, np.dtype(str(dtype).removeprefix("torch.")), "r+", shape=shape))


@torch.no_grad()
def together(makers: Sequence[Make], data: Labelled, here: World, folder: Path | None = None) -> list[Tensor]:
    """What each of `makers` makes of this process's share of the pictures: (S, ...) each, on the CPU, in one pass.

    folder  where large features go
    """
    mine = share(len(data), here)
    parts = (slice(start, min(start + pictures.CHUNK, mine.stop)) for start in mine[:: pictures.CHUNK])
    found: list[Tensor] = []
    with bar(data, len(mine), here) as told, matmul(here.device, "high"):
        for part, images in ahead(lambda part: (part, sent(data.take(part), here.device)), parts):
            images = images.to(here.device, non_blocking=True)
            made = (make(images) for make in makers)
            for n, x in enumerate(made):
                if len(found) == n:
                    found.append(roomy((len(mine), *x.shape[1:]), x.dtype, folder, here.size))
                found[n][part.start - mine.start : part.stop - mine.start] = x.cpu()
            told.update(len(images))
        if not mine:  # more processes than chunks: no row, but rows as wide as those of the others
            found = [make(data.blank().to(here.device))[:0].cpu() for make in makers]
    return found


def bar(data: Labelled, count: int, here: World) -> tqdm:
    """Progress over pictures that have to be decoded, if it takes a while."""
    quiet = isinstance(data.source, ImageSet) or not here.leads
    return tqdm(total=count, desc="encoding", unit="picture", disable=quiet, delay=2.0, mininterval=1.0)


def sent(images: Tensor, device: torch.device) -> Tensor:
    """Pictures where a copy to the device does not hold up whoever asks for it."""
    return images.pin_memory() if device.type == "cuda" else images


def gathered(rows: Tensor, count: int, here: World) -> Tensor:
    """All rows (count, ...), of which each process has its share; every process gets them."""
    if here.size == 1:
        return rows
    mine, found = share(count, here), rows.new_zeros(count, *rows.shape[1:])
    found[mine.start : mine.stop] = rows
    return here.total(found)


def pooled(encoder: Encoder, data: Labelled, last: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    """Average-pooled features of the last `last` blocks, shallow first: (S, last * D), float32, on the CPU."""
    return together([averages(encoder, last, dtype)], data, alone(next(encoder.parameters()).device))[0]


class Streamed:
    """A set whose pictures are too many to keep: read, and what is made of them made, when they are asked for."""

    def __init__(self, data: Labelled, make: Make | None = None) -> None:
        data.check_any_order()
        self.data, self.make = data, make

    def __len__(self) -> int:
        return len(self.data)

    def batches(self, indices: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Pictures, or what is made of them, of each index (B,), on the device."""
        for images in ahead(lambda index: sent(self.data.take(index), device), indices):
            images = images.to(device, non_blocking=True)
            if self.make is None:
                yield images
            else:
                with torch.no_grad():
                    made = torch.cat([self.make(part) for part in images.split(pictures.CHUNK)])
                yield made


Source = Tensor | Streamed  # pictures (S, C, H, W) or tokens (S, N, D): kept, or made anew


def batches(source: Source, indices: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The samples of each index (B,), on the device."""
    if isinstance(source, Streamed):
        return source.batches(indices, device)
    return (source[index.to(source.device)].to(device) for index in indices)


def pictures_of(data: Labelled, here: World) -> Source:
    """Pictures in their own units: all at once where those of all processes take at most KEPT bytes."""
    return data.images() if data.nbytes * here.size <= KEPT else Streamed(data)


@torch.no_grad()
def tokens_of(encoder: Encoder, data: Labelled, here: World, dtype: torch.dtype = torch.float32) -> Source:
    """All tokens of the last layer in half precision (S, N, D): kept where all processes' take at most KEPT bytes.

    Each process encodes its share and keeps all of them, for any may be drawn in it.
    """
    make = all_tokens(encoder, dtype)
    one = make(data.blank().to(here.device))
    if len(data) * one.nbytes * here.size > KEPT:
        return Streamed(data, make)
    return placed(gathered(together([make], data, here)[0], len(data), here), here.device)
