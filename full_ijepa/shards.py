"""Pictures in shards: tar files as WebDataset lays them out, on this machine or behind an address.

A sample is all members that share a name up to its first dot: a picture, and its class in `.cls` or `.json`, if it has
one. A table of where members lie is made once a shard and kept in the cache folder; after that any picture is one read.
Shards that are elsewhere (http, https, or what fsspec knows: s3, gs ...) are fetched whole into the cache folder, ahead
of the steps and no more of them than have room, and are then read as those that were here. So the order of pictures,
crops and masks are the same wherever the shards are.
Parquet files of pictures, as the hub of Hugging Face has them, are turned into shards as they come (parquet.py).
Source of the layout: github.com/webdataset/webdataset, README, "The WebDataset Format".
"""

# Shape legend:  S pictures of a shard

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import warnings
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from tqdm.auto import tqdm

from full_ijepa import remote
from full_ijepa.formats import Blob, UnreadableError
from full_ijepa.order import Micro, ShardOrder, shuffled
from full_ijepa.tars import INDEX, TABLE, BrokenShardError, Table, kept_table, read_table, told_table
from toy_ijepa.decoding import DataError, blame
from toy_ijepa.folders import LOOKS, cache_root

ENDINGS = (".tar", ".parquet")  # the second is turned into the first in the cache folder
KEPT = 64  # tables and open files that a process holds
FETCHING = 8  # remote shards that are fetched at a time
LONGEST = 20_000  # micro-batches that a plan is read ahead
SAMPLED = 4  # shards that are fetched to see what remote pictures are like
NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")


TESTS = ("test", r"val\w*")  # what shards of a test part are called, the first that there are
T = TypeVar("T")


def expand(pattern: str) -> list[str]:
    """A name with {000..123} in it, written out: shells and WebDataset do the same."""
    parts = NUMBERS.split(pattern)
    ranges = [
        [f"{n:0{len(low)}}" for n in range(int(low), int(high) + 1)]
        for low, high in zip(parts[1::3], parts[2::3], strict=True)
    ]
    return [
        "".join(itertools.chain(*itertools.zip_longest(parts[::3], picked, fillvalue="")))
        for picked in itertools.product(*ranges)
    ]


def places(spec: str, part: str = "train") -> list[str]:
    """The shards of "shards:FOLDER" (its part's, PART-*.tar, or all of them to train on) or "shards:PATTERN".

    Raises DataError if there are none, or a pattern is asked for another part than what it names.
    """
    where = spec.removeprefix("shards:")
    folder = where if remote.is_remote(where) else str(Path(where).expanduser())
    if where.endswith(ENDINGS):
        if part != "train":
            raise DataError(
                f"{spec} names shards to train on; to judge, give the folder that holds train-*.tar and {part}-*.tar"
            )
        found = expand(folder)
        missing = [place for place in found if not remote.is_remote(place) and not Path(place).is_file()]
        if missing:
            raise DataError(f"{len(missing)} of {len(found)} shards are not there, the first: {missing[0]}")
        return found
    listed = {*index_of(folder).get("shards", {})}  # a shard that is lost is missed
    if not (listed and remote.is_remote(folder)):  # web servers need not list folders
        there = {*remote.listing(folder)}
        if not listed and any(name.endswith(".tar.part") for name in there):
            raise DataError(f"{folder} holds what a `pack` left that was stopped: remove it, and pack anew")
        listed |= there
    names = sorted(name for name in listed if name.endswith(ENDINGS))
    for called in TESTS if part == "test" else (part,):
        if kept := [name for name in names if re.match(f"{called}-", name)]:
            return [f"{folder.rstrip('/')}/{name}" for name in kept]
    if part == "train" and names and not any(re.match(f"({'|'.join(('train', *TESTS))})-", name) for name in names):
        return [f"{folder.rstrip('/')}/{name}" for name in names]
    raise DataError(
        f"no shards {part}-*.tar in {folder}: `python -m full_ijepa pack` writes them, or name them as in "
        "shards:FOLDER/name-{000..123}.tar"
    )


def index_of(folder: str) -> dict:
    """What index.json in a folder says: `shards` (pictures, bytes, sha256 by name), `classes`; {} if there is none.

    Raises DataError if it is something else.
    """
    place = f"{folder.rstrip('/')}/{INDEX}"
    text = remote.small(place)
    try:
        found = {} if text is None else json.loads(text)
        return dict(found, shards=dict(found["shards"]), classes=tuple(found.get("classes", ()))) if found else {}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{place} is not what `pack` writes ({error!r}): mend or remove it") from error


class Shards(Sequence[Blob]):
    """The pictures of shards, numbered one shard after another.

    places    path or address of each
    together  shards whose pictures are shuffled together
    room      bytes that remote shards may take here
    Raises DataError if there are none, or the room is too small.
    """

    def __init__(self, places: Sequence[str], together: int = 32, room: float = 20e9) -> None:
        self.places, self.room = list(places), room
        self.fetched = any(map(self.is_fetched, self.places))  # they come and go
        folders = [place.rpartition("/")[0] for place in self.places]
        self.indices = {folder: index_of(folder or ".") for folder in dict.fromkeys(folders)}
        self.classes = self.indices[folders[0]].get("classes", ())
        self.tables: OrderedDict[int, Table] = OrderedDict()
        self.files: OrderedDict[int, BinaryIO] = OrderedDict()
        self.lock = Lock()  # pictures are read by threads too
        self.owner = os.getpid()
        self.broken: dict[int, str] = {}
        self.order = ShardOrder(self.count(), together)
        if not len(self):
            raise DataError(f"no pictures in {len(self.places)} shards, the first {self.places[0]}")
        self.check_room()

    def __len__(self) -> int:
        return len(self.order)

    def known(self, shard: int) -> dict:
        """What the index says of a shard; {} for nothing."""
        folder, _, name = self.places[shard].rpartition("/")
        return self.indices[folder].get("shards", {}).get(name, {})

    def is_fetched(self, place: str) -> bool:
        """Whether its file lies in the cache folder: what is elsewhere, or has to be turned into a shard."""
        return remote.is_remote(place) or place.endswith(".parquet")

    def count(self) -> list[int]:
        """Pictures of each shard: what the index says, else every shard is gone through once.

        Shards that cannot be read then have none, and are named; more than one in twenty raise DataError.
        """
        if all("pictures" in self.known(shard) for shard in range(len(self.places))):
            return [int(self.known(shard)["pictures"]) for shard in range(len(self.places))]
        told = f"no {INDEX}: counting the pictures of {len(self.places)} shards, once"
        counts, lost = [], []
        pool = ThreadPoolExecutor(self.abreast)
        try:
            waiting = [pool.submit(self.counted, shard) for shard in range(len(self.places))]
            for each in tqdm(waiting, told, bar_format=LOOKS, delay=2.0):
                try:
                    counts.append(each.result())
                except BrokenShardError as error:
                    counts.append(0)
                    lost.append(str(error))
                    warnings.warn(f"shard skipped ({len(lost)} so far): {error}", stacklevel=4)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if len(lost) > len(counts) / 20 or not any(counts):
            raise DataError(f"{len(lost)} of {len(counts)} shards cannot be read: {'; '.join(lost[:5])}")
        return counts

    def counted(self, shard: int) -> int:
        """Pictures of a shard: what its table has, or its footer. Raises BrokenShardError."""
        if not self.places[shard].endswith(".parquet"):
            return len(self.table(shard))
        from full_ijepa.parquet import rows

        return rows(self.places[shard])

    @cached_property
    def abreast(self) -> int:
        """Shards gone through at a time.

        TRAP: of more than have room, some would go again before they are gone through.
        """
        return max(1, min(FETCHING, int(self.room // max(self.largest, 1)))) if self.fetched else 1

    @cached_property
    def largest(self) -> int:
        """Bytes of the largest of the first shards that are fetched."""
        return max(self.known(s).get("bytes") or remote.size(self.places[s]) for s in range(min(len(self.places), 8)))

    def check_all_fit(self) -> None:
        """Raise DataError if shards would be fetched again and again by who draws pictures from all of them."""
        if not self.fetched:
            return
        total = sum(self.known(shard).get("bytes") or self.largest for shard in range(len(self.places)))
        if total > self.room:
            raise DataError(
                f"these pictures are drawn in random order from {len(self.places)} shards, {total / 1e9:.3g} GB, and "
                f"shard_room is {self.room / 1e9:g}: copy the shards to this machine and name their folder, or choose "
                "protocols that go through them in order (knn, linear, lowshot, paper)"
            )

    def check_room(self) -> None:
        """Raise DataError if the shards that two groups need do not fit into `room`."""
        if not self.fetched:
            return
        needed = 2 * min(self.order.together, len(self.places)) * self.largest
        if needed > self.room:
            raise DataError(
                f"{self.order.together} shards are shuffled together and as many are fetched ahead: up to "
                f"{needed / 1e9:.3g} GB, shard_room is {self.room / 1e9:g}. Raise it, or lower --shards-together"
            )

    def __getitem__(self, number: int) -> Blob:
        """A picture's bytes. Raises UnreadableError if its shard cannot be read, MachineError if the disk fails."""
        number = range(len(self))[number]
        shard = int(np.searchsorted(self.order.starts, number, side="right")) - 1
        inside = number - int(self.order.starts[shard])
        try:
            if shard in self.broken:
                raise BrokenShardError(self.broken[shard])
            table = self.table(shard)
            name = f"{self.places[shard]}/{table.names[inside]}"
            file = self.file(shard)
            if (size := os.fstat(file.fileno()).st_size) != table.size:
                raise BrokenShardError(
                    f"{name} is in a file of {size} bytes that had {table.size}: remove {self.cache}"
                )
            data = os.pread(file.fileno(), int(table.sizes[inside]), int(table.starts[inside]))
            if len(data) != table.sizes[inside]:
                raise BrokenShardError(f"{name} ends after {len(data)} of {table.sizes[inside]} bytes")
            return Blob(name, data)
        except BrokenShardError as error:
            self.broken[shard] = str(error)
        except OSError as error:
            self.broken[shard] = blame(Path(self.places[shard]), error)  # raises if the disk is at fault
        raise UnreadableError(
            self.places[shard],
            self.broken[shard].removeprefix(f"{self.places[shard]}: "),
            self.instead(shard, inside),
            max(int(self.order.counts[shard]), 2),
        )

    def instead(self, shard: int, inside: int) -> int:
        """The picture that takes the place of one in a broken shard: in the next shard, at the same place."""
        for step in range(1, len(self.places) + 1):
            other = (shard + step) % len(self.places)
            if other not in self.broken and self.order.counts[other]:
                return int(self.order.starts[other]) + inside % int(self.order.counts[other])
        raise DataError(f"none of {len(self.places)} shards can be read; the last: {self.broken[shard]}")

    def labels(self, numbers: Sequence[int]) -> torch.Tensor:
        """Classes of pictures, int64; -1 where there is none, or the shard cannot be read."""
        asked = np.asarray(numbers, dtype=np.int64)
        which = np.searchsorted(self.order.starts, asked, side="right") - 1
        found = np.full(len(asked), -1, dtype=np.int64)
        shards, firsts = np.unique(which, return_index=True)
        in_order = bool((np.diff(which) >= 0).all())  # as when all are asked for: no search a shard
        ends = [*firsts[1:].tolist(), len(asked)]
        with ThreadPoolExecutor(self.abreast) as pool:
            for shard, first, end, truth in zip(
                shards, firsts, ends, pool.map(self.truth, shards.tolist()), strict=True
            ):
                if truth is not None:
                    here = slice(first, end) if in_order else which == shard
                    found[here] = truth[asked[here] - self.order.starts[shard]]
        return torch.from_numpy(found)

    def truth(self, shard: int) -> np.ndarray | None:
        """Classes of a shard's pictures; None if it cannot be read."""
        try:
            return self.table(shard).labels
        except BrokenShardError as error:
            self.broken[shard] = str(error)
            return None

    def name(self, number: int) -> str:
        """Where a picture lies; its number, if its shard is broken."""
        shard = int(np.searchsorted(self.order.starts, number, side="right")) - 1
        inside = number - int(self.order.starts[shard])
        try:
            return f"{self.places[shard]}/{self.table(shard).names[inside]}"
        except BrokenShardError:
            return f"{self.places[shard]}/picture {inside}"

    # --- files

    def local(self, shard: int) -> Path:
        """The file of a shard on this machine, fetched if it is elsewhere."""
        place, convert = self.places[shard], None
        if place.endswith(".parquet"):
            from full_ijepa.parquet import to_tar as convert  # a slow import that only these wait for
        if not self.is_fetched(place):
            return Path(place)
        url = place if remote.is_remote(place) else Path(place).resolve().as_uri()
        try:
            return remote.fetch(url, self.cache, self.room, self.known(shard).get("sha256"), convert)
        except remote.RemoteError as error:
            raise BrokenShardError(f"{place}: {error}") from error

    def at_hand(self, shard: int, act: Callable[[Path], T]) -> T:
        """What `act` makes of the file of a shard on this machine.

        TRAP: one that was fetched may go, to make room for others, before it is opened; then it is fetched again.
        """
        for last in (False, False, False, True):
            file = self.local(shard)
            try:
                return act(file)
            except (FileNotFoundError, BrokenShardError):
                if last or file.exists() or not self.is_fetched(self.places[shard]):
                    raise
        raise AssertionError("the last attempt returns or raises")

    @cached_property
    def cache(self) -> Path:
        """Where remote shards and tables are kept."""
        return cache_root() / "shards" / hashlib.sha256(self.places[0].rpartition("/")[0].encode()).hexdigest()[:12]

    def file(self, shard: int) -> BinaryIO:
        """An open file; one that others have put away stays open until who reads it lets go.

        TRAP: `pread` on a bare number would read whatever another thread has opened under it since.
        """
        with self.lock:
            if self.owner != os.getpid():  # processes do not share what they opened
                self.owner, self.files = os.getpid(), OrderedDict()
            if shard in self.files:
                self.files.move_to_end(shard)
                return self.files[shard]
        opened = self.at_hand(shard, lambda file: file.open("rb"))
        self.let_go()
        return self.keep(self.files, shard, opened)

    def table(self, shard: int) -> Table:
        """Where a shard's pictures lie. Raises BrokenShardError."""
        with self.lock:
            if shard in self.tables:
                self.tables.move_to_end(shard)
                return self.tables[shard]
        place, said = self.places[shard], self.known(shard)
        pictures = self.order.counts[shard] if place.endswith(".parquet") else said.get("pictures")
        elsewhere = partial(self.table_of, shard) if self.is_fetched(place) else None
        made = kept_table(place if elsewhere else Path(place), self.cache, pictures, said.get("sha256"), elsewhere)
        return self.keep(self.tables, shard, made)

    def table_of(self, shard: int) -> Table:
        """The table that lies beside a shard that is elsewhere, else made of the shard, which is fetched for it."""
        place, said = self.places[shard], self.known(shard)
        if "table" in said:
            try:
                return told_table(remote.small(f"{place}{TABLE}"), said)
            except (BrokenShardError, DataError) as error:
                warnings.warn(f"{place}{TABLE} {error}: the shard is fetched for what it says", stacklevel=2)
        return self.at_hand(shard, read_table)

    def keep(self, shelf: OrderedDict[int, T], shard: int, made: T) -> T:
        """Put on a shelf, from which the one used longest ago goes."""
        with self.lock:
            shelf[shard] = made
            if len(shelf) > KEPT:
                shelf.popitem(last=False)
        return made

    def let_go(self) -> None:
        """Put away open files that went from the cache folder to make room.

        TRAP: their bytes stay on the disk as long as anybody has them open.
        """
        with self.lock:
            for shard in [shard for shard, file in self.files.items() if not os.fstat(file.fileno()).st_nlink]:
                del self.files[shard]

    def __getstate__(self) -> dict:
        return self.__dict__ | dict(files=OrderedDict(), lock=None)

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state | dict(lock=Lock())

    # --- few shards at a time

    def sample(self, count: int, seed: int | None = None) -> list[Blob]:
        """Pictures to see what the set is like: evenly spread, or drawn with a seed; of remote ones in few shards."""
        found = []
        for number in self.numbers(count, seed):
            with suppress(UnreadableError):  # named when it is trained on
                found.append(self[number])
        return found

    def numbers(self, count: int, seed: int | None = None) -> list[int]:
        """At most `count` numbers of pictures, evenly spread, or drawn with a seed; of remote ones in few shards."""
        shards = np.arange(len(self.places))
        if self.fetched:
            shards = shards[:SAMPLED] if seed is None else shuffled(shards, len(shards), seed)[: 2 * SAMPLED]
        starts, counts = self.order.starts[shards], self.order.counts[shards]
        total = int(counts.sum())
        places = np.arange(min(count, total))
        places = places * total // len(places) if seed is None else shuffled(places, total, seed)
        ends = np.cumsum(counts)
        which = np.searchsorted(ends, places, side="right")
        return (starts[which] + places - (ends - counts)[which]).tolist()

    def prepared(self, plan: Iterable[Micro]) -> Iterator[Micro]:
        """The same plan, read ahead: remote shards of this group and the next are fetched before they are needed."""
        if not self.fetched:
            yield from plan
            return
        plan, waiting, needed = iter(plan), deque(), Counter()
        pool = ThreadPoolExecutor(FETCHING)
        try:
            while True:
                while len(needed) < 2 * self.order.together and len(waiting) < LONGEST:
                    if (micro := next(plan, None)) is None:
                        break
                    shards = np.unique(np.searchsorted(self.order.starts, micro.index, side="right") - 1).tolist()
                    for shard in shards:
                        if shard not in needed:
                            pool.submit(self.try_local, shard)
                    needed.update(shards)
                    waiting.append((micro, shards))
                if not waiting:
                    return
                micro, shards = waiting.popleft()
                needed -= Counter(shards)  # those that nobody needs any more leave the count
                yield micro
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def try_local(self, shard: int) -> None:
        with suppress(BrokenShardError):  # named by who reads it
            self.local(shard)
