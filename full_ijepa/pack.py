"""A folder of pictures into shards, WebDataset's layout: files that a cluster reads one after another.

Pictures are put in in a random order, so that each shard is a sample of the set; index.json says what each shard holds,
with its SHA-256. A shard is written whole or not at all.
"""

# Shape legend:  C channels  H,W pixels

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from full_ijepa.data import split_names, training_files
from full_ijepa.formats import SUFFIXES, describe, read_values
from full_ijepa.names import Names
from full_ijepa.order import mix, shuffled
from full_ijepa.recipes.base import Recipe
from full_ijepa.remote import checksum
from full_ijepa.shards import index_of
from full_ijepa.table import NO_TABLE, Table
from full_ijepa.tars import INDEX, TABLE, read_table
from toy_ijepa.decoding import DataError, blame, read_pixels
from toy_ijepa.folders import check_skipped, class_of, find_names

QUALITY = 95  # of JPEG, where pictures are made smaller: little is lost a second time
UNITS = dict(kB=1e3, MB=1e6, GB=1e9)
TOGETHER = 64  # pictures read at a time
SOURCES = "sources"  # in the table beside a shard: what its pictures were called

Sample = tuple[str, dict[str, bytes], str]  # its name, its members by ending, and its file's name below the folder


@dataclass(frozen=True)
class Packed:
    """What was written: pictures of each part, shards, bytes, and files that could not be read, with the reason."""

    parts: dict[str, int]
    shards: int
    size: int
    skipped: tuple[str, ...]


def bytes_of(text: str) -> float:
    """ "100MB" as a number of bytes. Raises ValueError for anything else."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([kMG]B)\s*", text)
    if not found or not float(found[1]) > 0:
        raise ValueError(f"{text!r} is no size: expected a number with kB, MB or GB, as in 100MB")
    return float(found[1]) * UNITS[found[2]]


def pack(
    root: Path,
    out: Path,
    shard_size: float = 100e6,
    side: int | None = None,
    allow: bool = False,
    table: Table = NO_TABLE,
) -> Packed:
    """Write OUT/train-000000.tar ..., OUT/test-000000.tar ... and OUT/index.json.

    side   pictures whose shorter side is longer are brought to it, as JPEG; None leaves every file as it is
    allow  go on although more than one in twenty of the files cannot be read
    table  of labels: only pictures to train on are packed, without classes; those of its test part are left out, to be
           judged on where they are
    Raises DataError (a ValueError) if OUT has shards already, pictures cannot be had, or those to be made smaller are
    no 8-bit colour.
    """
    if list(out.glob("*.tar")) or (out / INDEX).exists():
        raise DataError(f"{out} holds shards already; choose another folder")
    parts, classes = parts_of(root) if not table else ({"train": training_files(tabled(root, table))}, [])
    out.mkdir(parents=True, exist_ok=True)
    shards, skipped, total = {}, [], sum(map(len, parts.values()))
    try:
        for part, names in parts.items():
            members = samples(names, classes, side, skipped, partial(check_skipped, skipped, total, allow))
            bar = tqdm(members, f"packing {part}", len(names), unit="picture", delay=2.0, mininterval=1.0)
            shards |= write_part(out, part, bar, shard_size)
        if not shards:
            raise DataError(f"none of {total} pictures could be read; the first: {skipped[0]}")
    except BaseException:  # Ctrl-C too: nothing is left that would be in the way of the next attempt
        for file in [file for part in parts for file in out.glob(f"{part}-*.tar*")]:
            file.unlink()
        raise
    target = out / f"{INDEX}.part"
    told = dict(classes=classes, source=mark_of(root), shards=shards)
    target.write_text(json.dumps(told, indent=1) + "\n")
    target.replace(out / INDEX)
    counts = {p: sum(said["pictures"] for name, said in shards.items() if name.startswith(f"{p}-")) for p in parts}
    return Packed(counts, len(shards), sum(said["bytes"] for said in shards.values()), tuple(skipped))


def tabled(root: Path, table: Table) -> Recipe:
    """A run on a folder with a table of labels beside it."""
    return Recipe(data=f"folder:{root}", **asdict(table))


def parts_of(root: Path) -> tuple[dict[str, Names], list[str]]:
    """The files of the training and test part, and the names of all classes; no test part where there is none."""
    base, names, classes = find_names(root, "train", SUFFIXES)
    parts = {"train": Names.of(base, names)}
    if base == root or (root / "test").is_dir() or (root / "val").is_dir():
        parts["test"] = Names.of(*split_names(root, "test")[:2])
    for files in parts.values():
        if unknown := set(files.classes) - set(classes):
            raise DataError(f"{files.root} has a class {min(unknown)!r} that {base} does not")
    return parts, list(classes)


def samples(
    names: Names, classes: list[str], side: int | None, skipped: list[str], check: Callable[[], None]
) -> Iterator[Sample]:
    """Samples in a random order; what cannot be read is added to `skipped`.

    check  is called now and then; it raises DataError where that is too much
    """
    order = shuffled(np.arange(len(names)), len(names), mix("pack"))
    number = {name: i for i, name in enumerate(classes)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(order), TOGETHER):
            part = order[start : start + TOGETHER].tolist()
            read = pool.map(lambda n: encoded(names[n], side), part)
            for place, (n, found) in enumerate(zip(part, read, strict=True), start):
                if isinstance(found, str):
                    skipped.append(found)
                    continue
                suffix, data = found
                members, label = {suffix.removeprefix("."): data}, class_of(names.name(n))
                if label in number:
                    members["cls"] = str(number[label]).encode()
                # WebDataset cuts names at the first dot; a number keeps those apart that differ in what is left out.
                stem = re.sub(r"[^\w-]+", "_", names.name(n).rpartition(".")[0])
                yield f"{place:09}-{stem}", members, names.name(n)
            check()


def sources_of(table: Path) -> list[str]:
    """Names of the files that a shard was packed from, below their folder, from the table beside it."""
    return [os.fsdecode(name) for name in load_file(table)[SOURCES].tobytes().split(b"\n")]


def mark_of(root: Path) -> str:
    """Says in an index which folder was packed, to who knows the folder, and to nobody else."""
    return hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:12]


def encoded(path: Path, side: int | None) -> tuple[str, bytes] | str:
    """Suffix and bytes of a picture, made smaller if need be; or the reason why it cannot be read.

    Of one that stays as it is only the header is read.
    """
    try:
        kind = describe(path)
        if side is None:
            if kind is None:
                read_values(path, "channels")  # says what is wrong
            return path.suffix.lower(), path.read_bytes()
        if kind is not None and (kind.channels, kind.depth) not in ((3, "uint8"), (1, "uint8")):
            raise DataError(f"{path} is no 8-bit colour: JPEG would not keep its numbers; pack without --side")
        if kind is not None and min(kind.width, kind.height) <= side:
            return path.suffix.lower(), path.read_bytes()
        picture = Image.fromarray(np.ascontiguousarray(read_pixels(path).transpose(1, 2, 0)))
        shorter = min(picture.size)
        size = tuple(max(round(length * side / shorter), side) for length in picture.size)
        file = io.BytesIO()
        picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0).save(file, "JPEG", quality=QUALITY)
        return ".jpg", file.getvalue()
    except DataError:
        raise
    except Exception as error:  # decoders of broken files raise anything
        return blame(path, error)


def write_part(out: Path, part: str, members: Iterator[Sample], shard_size: float) -> dict[str, dict[str, int | str]]:
    """Shards of about `shard_size` bytes; what the index says of each, by name."""
    found, waiting = {}, iter(members)
    while (first := next(waiting, None)) is not None:
        name = f"{part}-{len(found):06}.tar"
        target, sources, used = out / f"{name}.part", [], 0
        with target.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            while first is not None:
                used += add(tar, *first[:2])
                sources.append(os.fsencode(first[2]))
                first = next(waiting, None) if used < shard_size else None
        text = np.frombuffer(b"\n".join(sources), dtype=np.uint8).copy()
        save_file(read_table(target).tensors() | {SOURCES: text}, out / f"{name}{TABLE}")
        sums = dict(sha256=checksum(target), table=checksum(out / f"{name}{TABLE}"))
        found[name] = dict(pictures=len(sources), bytes=target.stat().st_size, **sums)
        target.replace(out / name)
    return found


def add(tar: tarfile.TarFile, name: str, members: dict[str, bytes]) -> int:
    """Add a sample; returns the bytes it takes. The same pictures give the same file: no times, no owners."""
    for ending, data in members.items():
        info = tarfile.TarInfo(f"{name}.{ending}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return sum(512 + -(-len(data) // 512) * 512 for data in members.values())


def verify(folder: Path) -> tuple[int, list[str]]:
    """Read all shards of a folder, and tables beside them; how many shards its index names, and what is not as it says.

    Raises DataError if there is no index to compare with.
    """
    told = index_of(str(folder)).get("shards", {})
    if not any("sha256" in said for said in told.values()):
        raise DataError(f"{folder} has no {INDEX} with SHA-256 of its shards: `python -m full_ijepa pack` writes one")

    expected = {name: said.get("sha256", "nothing") for name, said in told.items()}
    expected |= {f"{name}{TABLE}": said["table"] for name, said in told.items() if "table" in said}

    def wrong(name: str) -> str:
        file, said = folder / name, expected[name]
        try:
            found = checksum(file)
        except FileNotFoundError:
            return f"{file}: is not there"
        except OSError as error:
            return f"{file}: {error}"
        return "" if found == said else f"{file}: its SHA-256 is {found[:12]}..., {INDEX} says {said[:12]}..."

    others = sorted({file.name for file in folder.glob("*.tar")} - set(told))
    more = [f"{folder / name}: {INDEX} does not name it, and a run would train on it" for name in others]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(pool.map(wrong, expected), "reading", len(expected), unit="file", delay=2.0)
        return len(told), list(filter(None, bar)) + more
