"""A table of labels beside a folder of pictures: read, checked line by line, and divided without parting a group.

What a label is, its tensor says: classes are int64 (S,), tags bool (S, c), numbers float32 (S, c). Pictures that the
table does not name, or names without a label, are only trained on.
"""

# Shape legend:  S labelled pictures  c classes, tags or columns of numbers

from __future__ import annotations

import math
import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from full_ijepa.table import Followed, Row, Table, chosen, listed, read_lines, rows_in
from toy_ijepa.folders import DataError

Task = Literal["classes", "tags", "numbers"]

TICKS = dict.fromkeys(("1", "1.0", "true", "yes"), True) | dict.fromkeys(("0", "0.0", "false", "no"), False)  # of tags
SEPARATORS = "|;"  # between tags of one cell; a comma only where tags were asked for, since names may have one
SIDES = dict(train="train", training="train", test="test", testing="test")
SIDES |= dict.fromkeys(("val", "valid", "validation"), "val")
GRADES = 20  # whole numbers are classes up to so many different ones, each seen OFTEN times on average
OFTEN = 5
FOLDS = 5  # one of them is the test part where nothing else divides the pictures


@dataclass(frozen=True)
class Part:
    """Pictures of one side with their labels, and the number of each one's group (S,), None without groups."""

    files: list[Path]
    labels: Tensor
    groups: Tensor | None

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class Labels:
    """Both sides of a table.

    names     of the classes, the tags, or the columns of numbers
    division  what divided the pictures, in words
    withheld  pictures that must not be trained on: those of the test part and all others of its groups
    """

    names: tuple[str, ...]
    train: Part
    test: Part
    division: str
    withheld: frozenset[Path]


def task_of(labels: Tensor) -> Task:
    """What labels are, by their type."""
    return {torch.int64: "classes", torch.bool: "tags"}.get(labels.dtype, "numbers")


def apart(groups: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the samples of most groups (S,), and of those of a share of the groups, drawn at random.

    Raises DataError if there is only one group.
    """
    if len(groups.unique()) < 2:
        raise DataError("all labelled training pictures are of one group: no other can be held out")
    from sklearn.model_selection import GroupShuffleSplit  # slow: only who has groups waits for it

    split = GroupShuffleSplit(1, test_size=share, random_state=seed % 2**32)
    rest, held = next(split.split(groups, groups=groups))
    return torch.from_numpy(rest), torch.from_numpy(held)


def read(table: Table, root: Path) -> Labels:
    """The labels of the pictures of a folder.

    Raises DataError, which names the lines, for: a file or column that is not there, a picture that is not there, one
    with two different rows, text among numbers, a group on both sides, a label that only the test part has, or too
    few pictures or classes. Empty labels, rows written twice and classes seen once are warned of.
    """
    path = Path(table.labels).expanduser()
    return read_once(table, root, path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=4)
def read_once(table: Table, root: Path, path: Path, _changed: int) -> Labels:
    """As `read`; both sides, the probe and the pre-training ask for the same table, and its warnings are said once."""
    header, lines = read_lines(path)
    columns = chosen(table, header, path)
    rows = rows_in(table, root, path, header, lines, columns)
    known = [row for row in rows if row.cells]
    if not known:
        raise DataError(f"{path}: no row has a label in {listed(columns)}")
    task = infer(known, columns) if table.task == "auto" else table.task
    names, values = {"classes": classes, "tags": tags, "numbers": numbers}[task](known, columns, path)
    held = holders(values, names)
    warn_of_single(known, held, path)
    test, division = divide(known, values, held, table, root, path)
    groups = {name: n for n, name in enumerate(sorted({row.group for row in rows}))}

    def part(side: bool) -> Part:
        index = np.flatnonzero(test == side)
        few = [known[n] for n in index]
        number = torch.tensor([groups[row.group] for row in few]) if table.group_column else None
        return Part([row.path for row in few], values[torch.from_numpy(index)], number)

    sides = part(False), part(True)
    if task == "classes" and len(names) < 2:
        raise DataError(f"{path}: all labels are {names[0]!r}; at least two classes are needed")
    if task == "tags" and not (sides[1].labels.any(0) & ~sides[1].labels.all(0)).any():
        raise DataError(f"{path}: all {len(sides[1])} test pictures have the same tags: nothing can be told apart")
    away = {known[n].group for n in np.flatnonzero(test)} - {""}
    withheld = {known[n].path for n in np.flatnonzero(test)} | {row.path for row in rows if row.group in away}
    return Labels(names, *sides, division, frozenset(withheld))


def number(cell: str) -> float | None:
    """A cell as a finite number, None if it is none."""
    try:
        found = float(cell)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def infer(rows: list[Row], columns: Sequence[str]) -> Task:
    """What labels look like: tags, numbers or classes."""
    cells = [row.cells for row in rows]
    if len(columns) > 1:
        return "tags" if all(cell.lower() in TICKS for row in cells for cell in row) else "numbers"
    values = [row[0] for row in cells]
    if any(mark in value for value in values for mark in SEPARATORS):
        return "tags"
    found = [x for x in map(number, values) if x is not None]
    if 2 * len(found) < len(values):
        return "classes"
    whole = len(found) == len(values) and all(x.is_integer() for x in found)
    few = len(set(found)) <= GRADES and len(found) >= OFTEN * len(set(found))
    return "classes" if whole and few else "numbers"


def classes(rows: list[Row], columns: Sequence[str], path: Path) -> tuple[tuple[str, ...], Tensor]:
    """Names of the classes, in the order of numbers where all are numbers, and int64 (S,)."""
    if len(columns) > 1:
        raise DataError(f"classes stand in one column, not in {len(columns)}: --label-column takes one name")
    values = [row.cells[0] for row in rows]
    if all(number(value) is not None for value in values):
        values = [f"{number(value):.15g}" for value in values]  # 3 and 3.0 are one class
        names = sorted(set(values), key=float)
    else:
        names = sorted(set(values))
    index = {name: n for n, name in enumerate(names)}
    return tuple(names), torch.tensor([index[value] for value in values])


def tags(rows: list[Row], columns: Sequence[str], path: Path) -> tuple[tuple[str, ...], Tensor]:
    """Names of the tags, and bool (S, c)."""
    if len(columns) > 1:
        if odd := [row for row in rows if any(cell.lower() not in TICKS for cell in row.cells)]:
            raise DataError(f"{path}: columns of tags hold 0 or 1; {listed(odd)} has {odd[0].cells}")
        return tuple(columns), torch.tensor([[TICKS[cell.lower()] for cell in row.cells] for row in rows])
    values = [row.cells[0] for row in rows]
    mark = next((mark for mark in f"{SEPARATORS}," if any(mark in value for value in values)), SEPARATORS[0])
    sets = [{word.strip() for word in value.split(mark)} - {""} for value in values]
    names = sorted(set().union(*sets))
    return tuple(names), torch.tensor([[name in held for name in names] for held in sets])


def numbers(rows: list[Row], columns: Sequence[str], path: Path) -> tuple[tuple[str, ...], Tensor]:
    """Names of the columns, and float32 (S, c)."""
    for n, column in enumerate(columns):
        if odd := [f"line {row.line} ({row.cells[n]!r})" for row in rows if number(row.cells[n]) is None]:
            raise DataError(
                f"{path}: text among the numbers of {column!r}: {listed(odd)}. Mend it, or say --task classes or tags"
            )
    return tuple(columns), torch.tensor([[number(cell) for cell in row.cells] for row in rows])


def holders(values: Tensor, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Numbers of the rows that have each class or tag; nothing for numbers."""
    task = task_of(values)
    if task == "numbers":
        return {}
    has = values if task == "tags" else values[:, None] == torch.arange(len(names))
    return {name: np.flatnonzero(has[:, n].numpy()) for n, name in enumerate(names)}


def warn_of_single(rows: list[Row], held: dict[str, np.ndarray], path: Path) -> None:
    """Name what only one picture has: a rare finding, or a slip of the pen."""
    single = [f"{name!r} in line {rows[index[0]].line}" for name, index in held.items() if len(index) == 1]
    if single:
        warnings.warn(f"{path}: seen only once: {listed(single)}", stacklevel=3)


def divide(
    rows: list[Row], values: Tensor, held: dict[str, np.ndarray], table: Table, root: Path, path: Path
) -> tuple[np.ndarray, str]:
    """Which rows are the test part (S,), bool, and what divided them, in words.

    Raises DataError if a division that is given leaves a side empty, parts a group, or gives a label to the test part
    alone.
    """
    given = by_column(rows, table, path) if table.split_column else by_folder(rows, root)
    if given is None:
        return drawn(rows, values, held, table, path), f"a fifth of the {table.unit}, drawn once"
    test, division = given
    if table.group_column:
        sides = defaultdict(set)
        for row, side in zip(rows, test, strict=True):
            sides[row.group].add(bool(side))
        if parted := sorted(group for group, both in sides.items() if len(both) == 2):
            raise DataError(
                f"{path}: {len(parted)} {table.unit} lie on both sides of {division}: {listed(parted)}. Divide them "
                "anew, or leave the division to us (no --split-column, no folders train and test)"
            )
    if only := {name: index for name, index in held.items() if len(index) and test[index].all()}:
        told = [f"{name!r} in line {rows[index[0]].line}" for name, index in only.items()]
        raise DataError(f"{path}: only the test part has {listed(told)}; nothing can learn it")
    return test, division


def by_column(rows: list[Row], table: Table, path: Path) -> tuple[np.ndarray, str]:
    """The division of the column of splits; "val" is the test part if nothing else is, else it trains."""
    if odd := [f"line {row.line} ({row.side!r})" for row in rows if row.side not in SIDES]:
        raise DataError(f"{path}: {table.split_column!r} is train or test (or val), not as in {listed(odd)}")
    sides = [SIDES[row.side] for row in rows]
    called = "test" if "test" in sides else "val"
    test = np.array([side == called for side in sides])
    if test.all() or not test.any():
        raise DataError(f"{path}: every labelled row has {table.split_column!r} {sides[0]!r}; both sides are needed")
    return test, f"the column {table.split_column!r}"


def by_folder(rows: list[Row], root: Path) -> tuple[np.ndarray, str] | None:
    """The division of the folders train and test (or val), None unless both hold labelled pictures, and all of them."""
    called, real = "test" if (root / "test").is_dir() else "val", Followed()
    tops = {name: Path(os.path.realpath(root / name)) for name in ("train", called)}
    inside = [next((n for n, top in tops.items() if real(row.path).is_relative_to(top)), "") for row in rows]
    if set(inside) != {"train", called}:
        return None
    return np.array([name == called for name in inside]), f"the folders train and {called}"


def drawn(rows: list[Row], values: Tensor, held: dict[str, np.ndarray], table: Table, path: Path) -> np.ndarray:
    """A fifth, by a draw that never changes: of the groups, of each class alike where that can be; (S,), bool.

    What would have a label alone goes to training.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    groups = np.array([row.group for row in rows]) if table.group_column else np.arange(len(rows))
    folds = min(FOLDS, len(np.unique(groups)))
    if folds < 2:
        raise DataError(f"{path}: {folds} {table.unit} cannot be divided; at least 2 are needed")
    kinds = values.numpy() if task_of(values) == "classes" else np.zeros(len(rows), dtype=int)
    alike = np.bincount(kinds).max() >= folds
    if table.group_column:
        splitter = (StratifiedGroupKFold if alike else GroupKFold)(folds, shuffle=True, random_state=0)
    else:
        splitter = (StratifiedKFold if alike else KFold)(folds, shuffle=True, random_state=0)
    with warnings.catch_warnings(action="ignore"):  # of classes smaller than the number of folds: they are seen to here
        _, chosen = next(iter(splitter.split(rows, kinds, groups)))
    test = np.zeros(len(rows), dtype=bool)
    test[chosen] = True
    for index in held.values():
        if test[index].all():
            test[np.isin(groups, groups[index])] = False
    if not test.any():
        raise DataError(f"{path}: too few {table.unit} a class to set a test part aside; at least 2 are needed")
    return test
