"""Pictures in tables of Hugging Face `datasets`: folders that `save_to_disk` wrote, or sets of the hub by name.

Both are memory-mapped Arrow files with any row in one read, so order, crops and masks are what they are for folders; a
set by name is first downloaded by `datasets` to its own cache (HF_HOME). It is `pip install "datasets>=4,<6"`.
"""

# Shape legend:  S pictures

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from full_ijepa.formats import Blob, UnreadableError
from toy_ijepa.decoding import DataError

TESTS = ("test", "validation", "valid", "val")  # what a test part is called: the first that there is, and has labels


def library() -> ModuleType:
    """Hugging Face's package. Raises DataError if it is not installed."""
    try:
        import datasets  # a slow import that only those who name it wait for
    except ImportError as error:
        raise DataError('hf:... needs one more package: pip install "datasets>=4,<6"') from error
    return datasets


def parted(spec: str) -> tuple[str, str | None, str]:
    """Path or name, configuration and split of "hf:PATH_OR_NAME[@CONFIG][:SPLIT]"; "" for no split."""
    where, _, split = spec.removeprefix("hf:").partition(":")
    where, _, config = where.partition("@")
    return where, config or None, split


def table(spec: str, part: str = "train") -> Any:
    """The rows of a set's part. Raises DataError if they cannot be had."""
    datasets = library()
    where, config, split = parted(spec)
    if split and part != "train":
        raise DataError(f"{spec} names one split; without :{split} the set's own test part is found")
    try:
        if (folder := Path(where).expanduser()).is_dir() and (
            (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
        ):
            found = datasets.load_from_disk(folder)
        else:
            found = datasets.load_dataset(where, config, **(dict(split=split) if split else {}))
    except Exception as error:  # `datasets` and the hub raise many kinds
        raise DataError(f"{where} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    if not isinstance(found, dict):
        if part != "train":
            raise DataError(f"{spec} has one part only: judge on another set (--data)")
        return found
    names = [split] if split else ["train"] if part == "train" else TESTS
    there = [name for name in names if name in found]
    if not there:
        raise DataError(f"{where} has no split {' or '.join(names)}: it has {', '.join(found)}")
    if len(there) == 1:  # a look at all labels takes a while
        return found[there[0]]
    return found[next((name for name in there if labelled(found[name])), there[0])]


def labelled(rows: Any) -> bool:
    """Whether some of the rows have a class: test parts of contests keep theirs secret (-1)."""
    label = label_of(rows)
    return label is not None and set(rows.unique(label)) - {-1, None} != set()


def label_of(rows: Any) -> str | None:
    """The column of classes, None if there is none."""
    return next((name for name, kind in rows.features.items() if isinstance(kind, library().ClassLabel)), None)


class Hub(Sequence[Blob]):
    """The pictures of a table, by row.

    Raises DataError if it has no column of pictures, or several.
    """

    def __init__(self, spec: str, part: str = "train") -> None:
        datasets, rows = library(), table(spec, part)
        kinds = rows.features
        pictures = [name for name, kind in kinds.items() if isinstance(kind, datasets.Image)]
        if len(pictures) != 1:
            raise DataError(f"{spec} has {len(pictures)} columns of pictures among {', '.join(kinds)}; one is expected")
        self.spec, self.column = spec, pictures[0]
        self.rows = rows.select_columns(pictures).cast_column(self.column, datasets.Image(decode=False))
        label = label_of(rows)
        self.classes = tuple(kinds[label].names) if label else ()
        self.truth = rows.select_columns([label]) if label else None
        if not len(self):
            raise DataError(f"{spec} has no rows")

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, number: int) -> str:
        """What a row is called."""
        return f"{self.spec} row {number}"

    def __getitem__(self, number: int) -> Blob:
        """A picture's bytes. Raises UnreadableError if its row has none."""
        number = range(len(self))[number]
        name = self.name(number)
        found = self.rows[number][self.column]
        if found is None or (found["bytes"] is None and not found["path"]):
            raise UnreadableError(name, "it is empty", number + 1)
        if found["bytes"] is None:
            try:
                return Blob(found["path"], Path(found["path"]).read_bytes())
            except FileNotFoundError as error:
                raise UnreadableError(name, f"{found['path']} is not there", number + 1) from error
        return Blob(f"{name}{Path(found['path'] or '').suffix}", found["bytes"])

    def labels(self, numbers: Sequence[int]) -> torch.Tensor:
        """Classes of pictures, int64; -1 where there is none."""
        if self.truth is None:
            return torch.full((len(numbers),), -1)
        (found,) = self.truth[list(numbers)].values()
        return torch.tensor([-1 if label is None else label for label in found])
