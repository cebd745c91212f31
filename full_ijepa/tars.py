"""Where the pictures of a tar file lie: gone through once, kept in the cache folder, found out if it is cut short."""

# Shape legend:  S pictures of a shard

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save_file

from full_ijepa.formats import SUFFIXES
from full_ijepa.remote import checksum
from toy_ijepa.decoding import blame

INDEX = "index.json"  # beside shards: what `pack` says of them
TABLE = ".table"  # beside a shard, after its name: where its pictures lie, and their classes
LABELS = ("cls", "label", "class")  # keys of a class in .json


class BrokenShardError(ValueError):
    """A shard that is not what it should be."""


@dataclass(frozen=True)
class Table:
    """Where the pictures of a shard lie: names, first bytes and lengths (S,), and classes (S,), -1 for none.

    size  of the whole file in bytes: of another size, it is another one
    """

    names: list[str]
    starts: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.names)

    def tensors(self) -> dict[str, np.ndarray]:
        """What a file of it holds."""
        names = np.frombuffer("\n".join(self.names).encode(), dtype=np.uint8).copy()
        return dict(names=names, starts=self.starts, sizes=self.sizes, labels=self.labels)

    @classmethod
    def of(cls, tensors: dict[str, np.ndarray], size: int) -> Table:
        """From what `tensors` returned."""
        names = tensors["names"].tobytes().decode()
        return cls(names.split("\n") if names else [], *(tensors[n] for n in ("starts", "sizes", "labels")), size)


def kept_table(
    place: Path | str,
    cache: Path,
    pictures: int | None = None,
    sha256: str | None = None,
    elsewhere: Callable[[], Table] | None = None,
) -> Table:
    """The table of a shard from the cache folder, else made anew.

    place      a file, whose table serves as long as its size and time are the same; or, with `elsewhere`, an address
    pictures   that it holds, and its checksum, if they are known; of a file the checksum is compared here
    elsewhere  makes the table of what is behind an address, which is not asked for where its table is there
    Raises BrokenShardError if the shard is cut short or is not what was promised.
    """
    name, mark = str(place), f"v3 {sha256 or ''}"
    if not elsewhere:
        try:
            name, stat = str(place.resolve()), place.stat()
        except OSError as error:
            raise BrokenShardError(blame(place, error)) from error
        mark += f" {stat.st_size} {stat.st_mtime_ns}"
    kept = cache / f"{name.rpartition('/')[2]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.table"
    try:
        with safe_open(kept, "np") as found:
            if (found.metadata() or {}).get("mark") == mark:
                made = Table.of({n: found.get_tensor(n) for n in found.keys()}, int(found.metadata()["size"]))  # noqa: SIM118
                return counted(made, place, pictures)
    except (OSError, SafetensorError, UnicodeDecodeError):
        pass  # none yet
    made = counted(elsewhere() if elsewhere else read_table(whole(place, sha256)), place, pictures)
    if len(made):
        part = kept.with_suffix(f".{os.getpid()}.part")
        try:
            cache.mkdir(parents=True, exist_ok=True)
            save_file(made.tensors(), part, metadata=dict(mark=mark, size=str(made.size)))
            part.replace(kept)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                part.unlink()
            told = f"tables of shards are not kept in {cache} ({type(error).__name__}); they are made anew next time"
            warnings.warn(told, stacklevel=2)  # Python says one text once
    return made


def counted(table: Table, place: Path | str, pictures: int | None) -> Table:
    if pictures is not None and len(table) != pictures:
        raise BrokenShardError(f"{place} holds {len(table)} pictures, {pictures} were promised")
    return table


def told_table(data: bytes | None, said: dict) -> Table:
    """The table of a shard from the file beside it. Raises BrokenShardError if it is not what the index says."""
    if data is None:
        raise BrokenShardError("is not there")
    if hashlib.sha256(data).hexdigest() != said["table"]:
        raise BrokenShardError(f"is not the one that {INDEX} names")
    return Table.of(load(data), said["bytes"])


def whole(file: Path, sha256: str | None) -> Path:
    """The file, if its bytes are those of the index."""
    try:
        found = checksum(file) if sha256 else None
    except OSError as error:
        raise BrokenShardError(blame(file, error)) from error
    if found != sha256:
        raise BrokenShardError(f"{file}: its SHA-256 is {found[:12]}..., {INDEX} says {sha256[:12]}...")
    return file


def read_table(file: Path) -> Table:
    """Go through the headers of a tar file. Raises BrokenShardError if it is cut short or no such file."""
    rows: OrderedDict[str, list] = OrderedDict()
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.isfile():
                    note(rows, tar, member)
            end, size = tar.offset, file.stat().st_size
        # TRAP: at a broken header in its midst tarfile stops as at the end, and says nothing. A whole file ends with
        # empty blocks.
        with file.open("rb") as opened:
            opened.seek(end)
            if opened.read(512).strip(b"\0") or (end > size):
                raise BrokenShardError(f"{file} is broken at byte {end} of {size}, or cut short")
    except tarfile.TarError as error:
        raise BrokenShardError(f"{file}: {error}") from error
    except OSError as error:
        raise BrokenShardError(blame(file, error)) from error
    found = [row for row in rows.values() if row[0]]
    columns = list(zip(*found, strict=True)) if found else [(), (), (), ()]
    return Table(list(columns[0]), *(np.array(column, dtype=np.int64) for column in columns[1:]), size)


def note(rows: OrderedDict[str, list], tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    """Add what a member says of its sample: [name of the picture, first byte, length, class]."""
    folder, slash, base = member.name.rpartition("/")
    stem, _, ending = base.partition(".")
    row = rows.setdefault(f"{folder}{slash}{stem}", ["", 0, 0, -1])
    if f".{ending.rpartition('.')[2].lower()}" in SUFFIXES:
        if not row[0]:  # of several pictures of a sample, the first
            row[:3] = member.name, member.offset_data, member.size
    elif ending in ("cls", "json"):
        row[3] = class_in(tar.extractfile(member).read(), ending)


def class_in(data: bytes, ending: str) -> int:
    """The class that a .cls or .json member holds; -1 for none, or one that is no number."""
    try:
        said = int(data) if ending == "cls" else json.loads(data)
    except ValueError:
        return -1
    value = next((said[key] for key in LABELS if key in said), -1) if isinstance(said, dict) else said
    return value if isinstance(value, int) and not isinstance(value, bool) else -1
