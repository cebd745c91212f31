"""Parquet files of pictures, as the hub of Hugging Face keeps most sets, turned into shards as they come.

So a set of the hub is streamed with all that shards have: an order that knows the place in the run, retries, a bound on
the disk. Footers say how many pictures there are, without fetching them.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
from pyarrow import parquet

from full_ijepa import remote
from full_ijepa.formats import SUFFIXES, Blob
from full_ijepa.pack import add
from full_ijepa.tars import BrokenShardError

ROWS = 100  # read at a time


def rows(place: str) -> int:
    """Rows of a file, from its footer. Raises BrokenShardError if it cannot be had."""
    try:
        files, path = remote.system(place)
        return remote.patiently(place, lambda: footer(files, path))
    except remote.RemoteError as error:
        raise BrokenShardError(f"{place}: {error}") from error


def footer(files: Any, path: str) -> int:
    with files.open(path, "rb") as file:
        try:
            return parquet.read_metadata(file).num_rows
        except pyarrow.ArrowException as error:  # asked again, it would be the same
            raise remote.RemoteError(str(error)) from error


def columns(schema: pyarrow.Schema) -> tuple[str, str | None]:
    """The column of pictures and that of classes, as the file's own notes for `datasets` say.

    Raises ValueError if there is not one column of pictures.
    """
    said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    pictures = [name for name, kind in said.items() if isinstance(kind, dict) and kind.get("_type") == "Image"]
    if not said:  # no notes: structs of bytes and path
        pictures = [field.name for field in schema if pyarrow.types.is_struct(field.type)]
    if len(pictures) != 1:
        raise ValueError(f"{len(pictures)} columns of pictures among {', '.join(schema.names)}; one is expected")
    kinds = [name for name, kind in said.items() if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"]
    return pictures[0], next(iter(kinds), None)


def to_tar(source: Path, target: Path) -> None:
    """Write the pictures of a parquet file, and their classes, as a shard. Raises ValueError for another content.

    A row without a picture becomes an empty file, which is named when it is read.
    """
    try:
        rewrite(source, target)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's; pyarrow's own of damaged pages have none
            raise
        raise ValueError(str(error)) from error


def rewrite(source: Path, target: Path) -> None:
    with parquet.ParquetFile(source) as file, tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
        picture, label = columns(file.schema_arrow)
        number = 0
        for batch in file.iter_batches(ROWS, columns=[picture, *([label] if label else [])]):
            for row in batch.to_pylist():
                data = (row[picture] or {}).get("bytes") or b""
                name = PurePosixPath((row[picture] or {}).get("path") or "").name
                suffix = Blob(name, data).suffix.lower()
                members = {(suffix if suffix in SUFFIXES else ".jpg").removeprefix("."): data}
                if label and row[label] is not None:
                    members["cls"] = str(row[label]).encode()
                add(tar, f"{number:08}", members)
                number += 1
