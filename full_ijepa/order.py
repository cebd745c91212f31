"""Which pictures a step sees, and with which seeds: functions of the recipe's seed and of the place in the run.

They ask neither which process draws nor what was drawn before: a run continued after a crash, or on another number of
processes, sees the same. Nothing here grows with the number of pictures beyond KEPT.
"""

# Shape legend:  S pictures of the set

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from full_ijepa.recipes.base import Recipe

# Up to so many pictures an epoch's order is a stored permutation, as it was before there was another way: runs on
# ImageNet-1k (1.28 M) and smaller sets keep their order to the bit. Two are kept, 64 MB a process.
KEPT = 4_000_000
ROUNDS = (
    6  # of the Feistel network; four make a permutation that cannot be told from a random one, with ideal functions
)


@dataclass(frozen=True)
class Micro:
    """One micro-batch: numbers of its pictures in the set, and the seed of all that is random about it.

    sizes  the seed of the sizes of mask blocks, which all micro-batches of an optimiser step share
    """

    index: tuple[int, ...]
    seed: int
    sizes: int = 0


def mix(*parts: int | str) -> int:
    """A seed below 2**63 from numbers or words: neighbouring steps get unrelated seeds, the same on every machine."""
    text = " ".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@lru_cache(maxsize=2)
def permutation(count: int, key: int) -> np.ndarray:
    """The numbers below `count` in a random order, stored."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(key)).numpy()


def permuted(places: np.ndarray, count: int, key: int) -> np.ndarray:
    """Which numbers below `count` stand at these places of a random order; nothing is stored, any place costs the same.

    A Feistel network permutes the numbers of 2k bits, of which there are less than four times `count`; who lands beyond
    `count` walks on until he lands below (cycle walking), which keeps it a permutation.
    Source: Black & Rogaway 2002 (cycle walking); Luby & Rackoff 1988 (how many rounds).
    """
    half = np.uint64(max((count - 1).bit_length() + 1, 2) // 2)
    keys = [np.uint64(mix(key, "round", number)) for number in range(ROUNDS)]
    found = feistel(places.astype(np.uint64), half, keys)
    while (beyond := found >= count).any():
        found[beyond] = feistel(found[beyond], half, keys)
    return found.astype(np.int64)


def feistel(values: np.ndarray, half: np.uint64, keys: list[np.uint64]) -> np.ndarray:
    """A permutation of the numbers of 2 * half bits: each round mixes one half into the other, then they swap."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (scrambled(right ^ key) & mask)
    return left << half | right


def scrambled(values: np.ndarray) -> np.ndarray:
    """64 bits to 64 bits that depend on all of them. Source: the finaliser of MurmurHash3 (Appleby, public domain)."""
    values = (values ^ values >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ values >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ values >> np.uint64(33)


def shuffled(places: np.ndarray, count: int, key: int) -> np.ndarray:
    """Which numbers below `count` stand at these places of a random order."""
    return permutation(count, key)[places] if count <= KEPT else permuted(places, count, key)


class ShardOrder:
    """Order of pictures that lie in shards: an epoch opens `together` shards at a time, drawn at random, and shuffles
    what is in them, so that few shards have to be at hand.

    counts  pictures of each shard; they are numbered one shard after another
    """

    def __init__(self, counts: Sequence[int], together: int) -> None:
        self.counts, self.together = np.array(counts, dtype=np.int64), together
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])  # number of each shard's first picture; then of all
        self.known: tuple[tuple[int, int], np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def opened(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards in the order in which an epoch opens them, and the place at which each group of them begins."""
        if self.known is None or self.known[0] != (seed, epoch):
            shards = shuffled(np.arange(len(self.counts)), len(self.counts), mix(seed, "shards", epoch))
            begins = np.concatenate([[0], np.cumsum(self.counts[shards])])[:: self.together]
            self.known = (seed, epoch), shards, begins
        return self.known[1:]

    def group(self, seed: int, place: int) -> tuple[int, int]:
        """Epoch and group in which a place of the endless sequence lies."""
        epoch, offset = divmod(place, len(self))
        return epoch, int(np.searchsorted(self.opened(seed, epoch)[1], offset, side="right")) - 1

    def members(self, seed: int, epoch: int, group: int) -> np.ndarray:
        """The shards of a group."""
        return self.opened(seed, epoch)[0][group * self.together : (group + 1) * self.together]

    def visit(self, places: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Which pictures stand at these places of an epoch."""
        begins = self.opened(seed, epoch)[1]
        groups = np.searchsorted(begins, places, side="right") - 1
        found = np.empty_like(places)
        for group in np.unique(groups):
            shards, here = self.members(seed, epoch, int(group)), groups == group
            ends = np.cumsum(self.counts[shards])
            inside = shuffled(places[here] - begins[group], int(ends[-1]), mix(seed, "group", epoch, int(group)))
            which = np.searchsorted(ends, inside, side="right")
            found[here] = self.starts[shards[which]] + inside - (ends - self.counts[shards])[which]
        return found


def order(pictures: int | ShardOrder, seed: int, start: int, length: int) -> list[int]:
    """Pictures number start ... start + length - 1 of the endless sequence of shuffled epochs.

    pictures  how many there are, or how they lie in shards
    """
    count = pictures if isinstance(pictures, int) else len(pictures)
    found: list[int] = []
    while len(found) < length:
        epoch, offset = divmod(start + len(found), count)
        places = np.arange(offset, min(offset + length - len(found), count))
        if isinstance(pictures, int):
            found += shuffled(places, count, mix(seed, "order", epoch)).tolist()
        else:
            found += pictures.visit(places, seed, epoch).tolist()
    return found


def plan(
    pictures: int | ShardOrder, recipe: Recipe, start: int, steps: int, rank: int = 0, world: int = 1
) -> Iterator[Micro]:
    """The micro-batches of one process from optimiser step `start` to `steps`.

    A step is cut into micro-batches in an order that does not depend on the number of processes; process `rank` of
    `world` takes every world-th. Raises ValueError if they cannot be shared out evenly.
    """
    parts = accumulation(recipe, world) * world
    size = recipe.batch // parts
    for step in range(start, steps):
        found = order(pictures, recipe.seed, step * recipe.batch, recipe.batch)
        sizes = mix(recipe.seed, "sizes", step)
        for part in range(rank, parts, world):
            yield Micro(tuple(found[part * size : (part + 1) * size]), mix(recipe.seed, "micro", step, part), sizes)


def accumulation(recipe: Recipe, world: int = 1) -> int:
    """Micro-batches that each process accumulates before an optimiser step.

    Raises ValueError if the batch is not a whole number of micro-batches for every process.
    """
    micro = min(recipe.micro_batch, recipe.batch)
    if recipe.batch % (micro * world):
        raise ValueError(
            f"batch {recipe.batch} cannot be shared out: {world} processes x micro-batches of {micro} do not divide it"
        )
    return recipe.batch // (micro * world)
