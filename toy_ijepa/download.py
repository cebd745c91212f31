"""One archive from several servers: in a stated time, resumed where it stopped, used only if its checksum is right."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from toy_ijepa.folders import DataError

GRACE = 5.0  # s of a server over which its rate is measured, again and again
STALL = 10.0  # s without an answer or a byte after which a server is left
BLOCK = 1 << 18  # bytes


class ServerError(Exception):
    """A server that refuses, stalls, breaks off or is too slow: the message says which."""


def download(urls: list[str], target: Path, md5: str, wait: float) -> None:
    """Fetch from one server after another until `target` is there, whole; `wait` is in seconds, for all of them.

    All add to one `.part`, which outlives every failure: the checksum says that they have the same bytes.
    TRAP: two calls at a time would add to the same part; `fetch.alone` prevents it.
    Raises DataError with what each server did, and OSError if the disk fails.
    """
    part, deadline, tried = target.with_name(f"{target.name}.part"), time.monotonic() + wait, []
    state = "has not torchvision's checksum" if target.exists() else "is not here yet"
    say(f"{target} {state}: servers have {max(wait, 0):.0f} s to send it (IJEPA_WAIT)")
    waiting = list(urls)
    while waiting and time.monotonic() < deadline:
        url, start = waiting.pop(0), size(part)
        try:
            with part.open("ab") as file:
                for block in blocks(url, start, deadline):
                    file.write(block)
            if whole(part, md5):
                part.replace(target)
                return
            part.unlink()
            tried.append(f"{host(url)}: wrong checksum")
            waiting[:0] = [url] if start else []  # once more from zero: the wrong bytes may be another server's
        except ServerError as error:
            tried.append(f"{host(url)}: {error}")
        say(tried[-1])
    raise DataError(
        f"no server had {target.name} within {max(wait, 0):.0f} s ({'; '.join(tried) or 'none was asked'}). "
        f"{tqdm.format_sizeof(size(part), 'B')} are kept: go on with IJEPA_WAIT=3600 (seconds), or name a file, folder "
        f"or address in IJEPA_MIRROR=..., or put the file into {target.parent}; --data shapes needs no download"
    )


def blocks(url: str, start: int, deadline: float) -> Iterator[bytes]:
    """What a server has of an archive beyond its first `start` bytes.

    Raises ServerError for all that may be wrong with a server, so that an OSError of the caller is the disk's.
    """
    try:
        with answer(url, start, min(STALL, deadline - time.monotonic())) as response:
            yield from beyond(response, host(url), start, deadline)
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError) and error.code == 416 and start:
            return  # nothing lies beyond `start`: the checksum says whether that is all of it
        raise ServerError(str(error).strip("<>") or "no answer") from error


def answer(url: str, start: int, wait: float) -> HTTPResponse:
    """A server's answer within `wait` seconds, redirects included. Raises what urllib raises, and TimeoutError.

    In a thread: the look-up of a name knows no time-out, and the header may come byte by byte.
    """
    headers = {"User-Agent": "ijepa-course"} | ({"Range": f"bytes={start}-"} if start else {})
    future: Future[HTTPResponse] = Future()

    def ask() -> None:
        try:
            future.set_result(urlopen(Request(url, headers=headers), timeout=wait))
        except Exception as error:
            future.set_exception(error)

    Thread(target=ask, daemon=True).start()
    return future.result(wait)


def beyond(response: HTTPResponse, server: str, start: int, deadline: float) -> Iterator[bytes]:
    """The bytes of an answer that lie beyond `start`, under a progress bar.

    A server that knows no Range sends all of it: what is here already is read and dropped, so that nothing is lost
    if this server breaks off earlier than the one before. Raises ServerError for other bytes, too few, or too slow.
    """
    first, total = extent(response, start)
    if total is not None and total <= start:
        return  # as for 416
    place, base, begun = first, first, time.monotonic()
    # Once a second, as in training.py: a notebook's front end loses messages when it gets thousands.
    with tqdm(total=total, initial=first, desc=server, unit="B", unit_scale=True, mininterval=1.0) as bar:
        while block := response.read1(BLOCK):
            yield block[max(start - place, 0) :]
            place += len(block)
            bar.update(len(block))
            now = time.monotonic()
            if now > min(begun + GRACE, deadline):
                left = None if total is None else total - place
                judge(place - base, left, max(now - begun, 1e-3), deadline - now)
                base, begun = place, now
    if total is not None and place < total:
        raise ServerError(f"broke off at {place} of {total} bytes")


def extent(response: HTTPResponse, start: int) -> tuple[int, int | None]:
    """Which byte of the archive an answer begins with, and the archive's length, None if the server does not say.

    Raises ServerError if it is a web page (a network that asks for a login sends one) or begins elsewhere than asked.
    """
    if response.headers.get_content_type() == "text/html":
        raise ServerError("sent a web page")
    if response.status != 206:
        length = response.headers.get("Content-Length")
        return 0, None if length is None else int(length)
    sent = response.headers.get("Content-Range", "")
    if not sent.startswith(f"bytes {start}-"):
        raise ServerError(f"sent {sent!r} when asked for bytes from {start}")
    return start, None if sent.endswith("*") else int(sent.rpartition("/")[2])


def judge(got: int, left: int | None, took: float, remains: float) -> None:
    """Raise ServerError if `left` bytes, at the rate of those `got` in `took` seconds, need longer than what `remains`.

    A server that does not say how much is left (None) has all the seconds that remain.
    """
    needed = (left or 0) * took / got
    if left != 0 and needed > remains:
        raise ServerError(f"too slow, {tqdm.format_sizeof(got / took, 'B/s')}: {needed:.0f} s more")


def whole(file: Path, md5: str) -> bool:
    """Whether a file is there and has this checksum."""
    from torchvision.datasets.utils import check_integrity  # a slow import that only torchvision's sets need

    return check_integrity(file, md5)


def size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def host(url: str) -> str:
    return url.split("/")[2]


def say(text: str) -> None:
    """A line for the reader, whatever the progress bar is doing."""
    tqdm.write(text, file=sys.stderr)
