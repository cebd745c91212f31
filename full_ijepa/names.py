"""Names of many files in two arrays, and lists that one process of a machine makes for all.

TRAP: a list of a million paths is 0.7 GB, and every worker that reads it copies its part of that: reference counts are
written. Arrays are shared by all that are forked, and by all that map one file.
"""

# Shape legend:  S pictures

from __future__ import annotations

import os
import secrets
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from full_ijepa.distributed import World
from toy_ijepa.decoding import DataError
from toy_ijepa.folders import cache_root, class_of


class Names(Sequence[Path]):
    """Files below a folder, in some order.

    text    (n,) uint8, all names one after another
    ends    (S,) int64, where each ends
    chosen  (S,) int64, numbers of those that count; None for all
    """

    def __init__(self, root: Path, text: np.ndarray, ends: np.ndarray, chosen: np.ndarray | None = None) -> None:
        self.root, self.text, self.ends, self.chosen = root, text, ends, chosen

    @classmethod
    def of(cls, root: Path, names: Iterable[str]) -> Names:
        """Names below a folder, with "/" between their parts."""
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(root, np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def tensors(self) -> dict[str, Tensor]:
        """`text` and `ends` of those that count."""
        if self.chosen is not None:
            return Names.of(self.root, map(self.name, range(len(self)))).tensors()
        return dict(text=torch.from_numpy(self.text.copy()), ends=torch.from_numpy(self.ends))

    @property
    def mark(self) -> str:
        """Eight hex digits that change with the names and their order."""
        return f"{zlib.crc32(self.tensors()['text'].numpy()):08x}"

    def __len__(self) -> int:
        return len(self.ends if self.chosen is None else self.chosen)

    def name(self, number: int) -> str:
        """A picture's name below the folder. Raises IndexError beyond the last."""
        number = range(len(self))[number]
        number = number if self.chosen is None else int(self.chosen[number])
        start = int(self.ends[number - 1]) if number else 0
        return os.fsdecode(self.text[start : int(self.ends[number])].tobytes())

    def __getitem__(self, number: int) -> Path:
        return self.root / self.name(number)

    def label(self, number: int) -> str:
        """The first sub-folder that a picture lies in, or "" for none."""
        return class_of(self.name(number))

    @property
    def classes(self) -> tuple[str, ...]:
        """The first sub-folders that pictures lie in."""
        return tuple(sorted({self.label(number) for number in range(len(self))} - {""}))

    def take(self, numbers: Sequence[int] | np.ndarray) -> Names:
        """Some of the pictures; the text is shared."""
        numbers = np.asarray(numbers, dtype=np.int64)
        return Names(self.root, self.text, self.ends, numbers if self.chosen is None else self.chosen[numbers])


def once(here: World, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` returns: one process of each machine makes it, the others of that machine map its file.

    Every process has to call it. The file is of this call alone and goes when all have it; what a crash leaves behind
    lies in the cache folder under "shared".
    """
    if here.size == 1:
        return make()
    name = int(here.reduce(float(secrets.randbits(50)) if here.leads else 0.0, torch.distributed.ReduceOp.MAX))
    file = cache_root() / "shared" / f"{name:x}.safetensors"
    with here.leader_first():
        try:
            found = load_file(file)  # of a machine with the same cache folder
        except (OSError, SafetensorError):
            found = make()
            write(file, found)
    here.barrier()
    file.unlink(missing_ok=True)
    return found


def write(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write whole or not at all; a full disk costs memory and time only."""
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part)
        part.replace(file)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink()
        warnings.warn(f"{file.parent} cannot be written ({error}): every process makes its own copy", stacklevel=3)


def check_alike(here: World, found: bytes | np.ndarray, where: Path | str) -> None:
    """Raise DataError if processes found different things: each would train on pictures of its own."""
    if not here.agree(float(zlib.crc32(found))):
        raise DataError(f"the processes find different pictures in {where}: give all machines the same files")


def shared_names(here: World, root: Path, make: Callable[[], Names]) -> Names:
    """Names that one process of each machine lists. Raises DataError if machines find different ones."""
    found = {name: value.numpy() for name, value in once(here, lambda: make().tensors()).items()}
    check_alike(here, found["text"], root)
    return Names(root, found["text"], found["ends"])
