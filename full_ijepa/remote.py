"""Files that are elsewhere: what fsspec knows (http, s3, gs ...), fetched whole, checked, and asked for again."""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from filelock import FileLock

from toy_ijepa.decoding import DataError
from toy_ijepa.environment import MachineError

WAITS = (1.0, 4.0, 15.0, 60.0)  # s between two attempts
BLOCK = 1 << 23  # bytes asked for at a time: what a lost connection costs
# s without a byte after which a connection counts as lost. With all WAITS well below the minutes that processes wait
# for one another.
STALL = 30.0
NOT_THERE = 401, 403, 404, 410  # answers of a server that asking again does not change
T = TypeVar("T")


class RemoteError(Exception):
    """A file that could not be fetched; says why."""


def is_remote(place: str) -> bool:
    """Whether a place is an address rather than a path."""
    return "://" in place


def over_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def system(url: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it. Raises DataError if a package is missing."""
    try:
        if not over_http(url):
            return fsspec.core.url_to_fs(url)
        from aiohttp import ClientTimeout

        patience = ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)
        return fsspec.core.url_to_fs(url, client_kwargs=dict(timeout=patience))
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{url} cannot be read ({error}): http needs `pip install aiohttp`, s3 `pip install s3fs`, gs `pip install "
            "gcsfs`"
        ) from error


def patiently(url: str, ask: Callable[[], T]) -> T:
    """What `ask` returns; asked again after each of WAITS. Raises RemoteError, at once if there is no such file."""
    for wait in (*WAITS, None):
        try:
            return ask()
        except (FileNotFoundError, PermissionError) as error:
            # TRAP: over HTTP fsspec says "not found" of whatever goes wrong while it asks for a size.
            trouble = error.__cause__ if over_http(url) else None
            if trouble is None or getattr(trouble, "status", 0) in NOT_THERE:
                raise RemoteError(f"{error or type(error).__name__}") from error
        except (MachineError, MemoryError, RemoteError):
            raise
        except Exception as error:  # each file system has its own
            trouble = error
            if getattr(error, "status", 0) in NOT_THERE:
                raise RemoteError(str(error)) from error
        told = str(trouble) or type(trouble).__name__
        if wait is None:
            raise RemoteError(f"{told}, asked {len(WAITS) + 1} times") from trouble
        warnings.warn(f"{url}: {told}; asked again in {wait:g} s", stacklevel=3)
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def small(place: str) -> bytes | None:
    """All of a small file, None if there is none. Raises DataError if its server does not answer.

    Object stores forbid to read what is not there to those who may not list a folder: that is none, with a warning.
    """
    if not is_remote(place):
        path = Path(place)
        return path.read_bytes() if path.is_file() else None
    try:
        files, path = system(place)
        return patiently(place, lambda: files.cat_file(path))
    except RemoteError as error:
        cause = error.__cause__
        if isinstance(cause, PermissionError) or getattr(cause, "status", 0) == 403:
            warnings.warn(f"{place} may not be read ({error}): going on as if there were none", stacklevel=3)
            return None
        if isinstance(cause, FileNotFoundError):
            return None
        raise DataError(f"{place}: {error}") from error


def listing(folder: str) -> list[str]:
    """Names in a folder. Raises DataError if there is none."""
    if not is_remote(folder):
        if not Path(folder).is_dir():
            raise DataError(f"no folder {Path(folder).absolute()}; --data shards:PATH needs one that holds .tar files")
        return os.listdir(folder)
    try:
        files, path = system(folder)
        return [name.rstrip("/").rpartition("/")[2] for name in patiently(folder, lambda: files.ls(path, detail=False))]
    except RemoteError as error:
        raise DataError(f"{folder}: {error}") from error


def size(url: str) -> int:
    """Bytes of a file; 0 if the server does not say. Raises DataError if it does not answer."""
    try:
        files, path = system(url)
        return int(patiently(url, lambda: files.size(path)) or 0)
    except RemoteError as error:
        raise DataError(f"{url}: {error}") from error


Convert = Callable[[Path, Path], None]  # writes the second file from the first; ValueError if that is no such file


def fetch(url: str, cache: Path, room: float, sha256: str | None = None, convert: Convert | None = None) -> Path:
    """The file behind an address, in `cache`: whole, its checksum right if one is known, by one process at a time.

    What a lost connection left is gone on with; what one process could not get, those that waited for it do not ask
    for again. The files used longest ago go where all would take more than `room` bytes. Raises RemoteError if the file
    cannot be had, MachineError if the disk fails.
    convert  makes a shard of the file, which is kept instead
    """
    name = Path(url.rpartition("/")[2])
    target = cache / f"{name.stem}-{hashlib.sha256(url.encode()).hexdigest()[:8]}{'.tar' if convert else name.suffix}"
    if used(target):
        return target
    part, failed = (target.with_name(f"{target.name}.{what}") for what in ("part", "failed"))
    begun = time.time()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not used(target):
                if failed.exists() and failed.stat().st_mtime > begun:
                    raise RemoteError(failed.read_text())
                try:
                    patiently(url, lambda: download(url, part, sha256))
                    whole = converted(part, part.with_suffix(".made"), convert) if convert else part
                except RemoteError as error:
                    failed.write_text(str(error))
                    raise
                with FileLock(cache / "room.lock"):  # two that come at once would each count on the same room
                    make_room(cache, room - whole.stat().st_size)
                    whole.replace(target)
    except OSError as error:
        raise MachineError(f"{url} cannot be kept in {cache}: {error}; IJEPA_CACHE names another folder") from error
    return target


def converted(part: Path, made: Path, convert: Convert) -> Path:
    """The file made of another, which goes. Raises RemoteError if it was none of its kind."""
    try:
        convert(part, made)
    except ValueError as error:
        made.unlink(missing_ok=True)
        raise RemoteError(str(error)) from error
    finally:
        part.unlink()
    return made


def used(file: Path) -> bool:
    """Whether a file is there; its time says when it was used last."""
    try:
        os.utime(file)
    except OSError:
        return False
    return True


def download(url: str, part: Path, sha256: str | None) -> None:
    """Add to `part` what it lacks; remove it if it is not what was promised."""
    files, path = system(url)
    if (whole := files.size(path)) == 0:
        raise RemoteError("it is empty")
    have = part.stat().st_size if part.exists() else 0
    while whole is None or have < whole:
        end = None if whole is None else min(have + BLOCK, whole)
        data = files.cat_file(path) if end is None else files.cat_file(path, start=have, end=end)
        if end is None or len(data) > end - have:  # a server that knows no ranges sends all of it
            data, whole = data[have:], len(data)
        if not data:
            raise OSError(f"ended after {have} of {whole} bytes")
        append(part, data)
        have += len(data)
    if sha256 and (found := checksum(part)) != sha256:
        part.unlink()
        raise OSError(f"its SHA-256 is {found[:12]}..., the index says {sha256[:12]}...")


def append(part: Path, data: bytes) -> None:
    """Write, so that what the disk does wrong is not taken for the server's."""
    try:
        with part.open("ab") as file:
            file.write(data)
    except OSError as error:
        raise MachineError(f"{part} cannot be written: {error}; IJEPA_CACHE names another folder") from error


def checksum(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def make_room(cache: Path, room: float) -> None:
    """Remove the files used longest ago until the rest takes at most `room` bytes. Open ones stay readable."""
    kept = []
    for file in cache.glob("*.tar"):
        try:
            kept.append((file.stat().st_mtime_ns, file.stat().st_size, file))
        except OSError:
            continue  # another process was faster
    total = sum(size for _, size, _ in kept)
    for _, size, file in sorted(kept):
        if total <= room:
            return
        file.unlink(missing_ok=True)
        total -= size
