"""A table beside a folder of pictures: its columns, its lines, and the picture that each line names."""

from __future__ import annotations

import csv
import os
import shlex
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from full_ijepa.formats import SUFFIXES
from full_ijepa.recipes.base import Recipe
from toy_ijepa.folders import DataError
from toy_ijepa.recipe import lookup

PATHS = ("path", "image", "file", "filename", "file_name", "image_path", "image_id")  # looked for, in this order
EMPTY = {"", "na", "n/a", "nan", "null"}
NAMED = 5  # lines that a message names


@dataclass(frozen=True)
class Table:
    """Where labels stand. The comments are also the help texts."""

    # a table of labels beside the folder of pictures: .csv, .tsv or .parquet
    labels: str = ""
    # its column of classes, numbers, or tags with | or ; between them; several columns: tags (0 or 1) or numbers
    label_column: tuple[str, ...] = ()
    # its column of pictures, relative to the folder or to the table (default: one called path, image, file ...)
    path_column: str = ""
    # its column of patients, slides, cameras ...: a group never lies on both sides of a division
    group_column: str = ""
    # its column of "train" and "test" (default: the folders train and test, else a fifth is set aside)
    split_column: str = ""
    # what labels are, instead of what they look like
    task: Literal["auto", "classes", "tags", "numbers"] = "auto"

    def __bool__(self) -> bool:
        return bool(self.labels)

    @classmethod
    def of(cls, recipe: Recipe) -> Table:
        """The table of a recipe."""
        return cls(**{field.name: getattr(recipe, field.name) for field in fields(cls)})

    @property
    def unit(self) -> str:
        """What a division sets aside, in the plural."""
        return f"groups of {self.group_column!r}" if self.group_column else "pictures"


NO_TABLE = Table()


def flags(table: Table) -> str:
    """A table as the flags that name it: a division may depend on each."""
    said = {name.replace("_", "-"): value for name, value in asdict(table).items() if value not in ("", (), "auto")}
    return shlex.join(
        word for name, v in said.items() for word in (f"--{name}", *(v if isinstance(v, tuple) else (v,)))
    )


@dataclass(frozen=True)
class Row:
    """A picture of the table; `cells` are its labels as written, () for none."""

    line: int
    path: Path
    cells: tuple[str, ...]
    group: str
    side: str

    def __str__(self) -> str:
        return f"line {self.line} ({self.path.name})"


class Followed:
    """Paths with the links of their folders followed: one file of two spellings is known as one."""

    def __init__(self) -> None:
        self.folders: dict[Path, Path] = {}

    def __call__(self, path: Path) -> Path:
        if path.parent not in self.folders:
            self.folders[path.parent] = Path(os.path.realpath(path.parent))
        return self.folders[path.parent] / path.name


def listed(items: Iterable[Any]) -> str:
    """The first few in one line, and how many more there are."""
    items = list(items)
    return ", ".join(map(str, items[:NAMED])) + (f" and {len(items) - NAMED} more" if len(items) > NAMED else "")


def read_lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a table, and its rows with their line numbers (of a .parquet file: numbers of rows).

    Raises DataError if it cannot be read, or a row has too few or too many cells.
    """
    if not path.is_file():
        few = f"; for at most {path} labelled pictures say --most {path}" if str(path).isdigit() else ""
        raise DataError(f"no table {path.absolute()}: --labels takes a .csv, .tsv or .parquet file{few}")
    if path.suffix.lower() == ".parquet":
        return read_parquet(path)
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise DataError(f"{path} is no .csv, .tsv or .parquet file; save the table as one")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max("\t;,", key=first.count), strict=True)
            found = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table ({error}); save it as CSV in UTF-8") from error
    if len(found) < 2:
        raise DataError(f"{path} has no rows below a header")
    (_, header), *lines = found
    if odd := [n for n, cells in lines if len(cells) != len(header)]:
        raise DataError(f"{path}: line {listed(odd)} does not have the {len(header)} cells of the header")
    return header, lines


def read_parquet(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """As `read_lines`; lists become cells with | between their items."""
    import pyarrow.lib  # a slow import that only these files need
    import pyarrow.parquet

    def text(value: Any) -> str:
        return "|".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value).strip()

    try:
        found = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.lib.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error})") from error
    columns = [map(text, column.to_pylist()) for column in found.columns]
    return found.column_names, list(enumerate(map(list, zip(*columns, strict=True)), start=1))


def chosen(table: Table, header: list[str], path: Path) -> tuple[str, ...]:
    """The columns of labels. Raises DataError for a column that is not there, twice there, or not said."""
    if double := [name for name, count in Counter(header).items() if count > 1]:
        raise DataError(f"{path} has more than one column {double[0]!r}")
    for name in (*table.label_column, table.path_column, table.group_column, table.split_column):
        if name:
            lookup(dict.fromkeys(header), name, "column")
    if not table.label_column:
        raise DataError(f"which column of {path} holds the labels? --label-column takes one of {', '.join(header)}")
    return table.label_column


def rows_in(
    table: Table,
    root: Path,
    path: Path,
    header: list[str],
    lines: list[tuple[int, list[str]]],
    columns: Sequence[str],
) -> list[Row]:
    """The rows of a table by picture, each once. Raises DataError for the mistakes of single rows."""
    lower = {name.lower(): name for name in header}
    where = table.path_column or next((lower[name] for name in PATHS if name in lower), "")
    if not where:
        raise DataError(f"which column of {path} holds the pictures? --path-column takes one of {', '.join(header)}")
    bases = [Path(os.path.realpath(base)) for base in (root, path.parent)]
    real = Followed()
    rows, missing, empty, alone = [], [], [], []
    for line, cells in lines:
        by = dict(zip(header, cells, strict=True))
        file = locate(by[where], bases)
        if file is None:
            missing.append(f"line {line} ({by[where] or 'nothing'})")
            continue
        if not file.is_relative_to(bases[0]) and real(file).is_relative_to(bases[0]):
            file = real(file)  # named through a link; the folder's own files are compared with it
        labels = tuple(by[name] for name in columns)
        labels = () if any(cell.lower() in EMPTY for cell in labels) else labels
        row = Row(line, file, labels, by.get(table.group_column, ""), by.get(table.split_column, "").lower())
        (rows if labels else empty).append(row)
        if labels and table.group_column and row.group.lower() in EMPTY:
            alone.append(row)
    if missing:
        tried = " or ".join(dict.fromkeys(map(str, bases)))
        raise DataError(
            f"{path}: {len(missing)} of {len(lines)} pictures are not there, looked for in {tried}: {listed(missing)}"
        )
    if alone:
        raise DataError(f"{path}: no {table.group_column!r} in {listed(alone)}; without it they may lie on both sides")
    if empty:
        warnings.warn(f"{path}: no label in {listed(empty)}; these are only trained on", stacklevel=4)
    return without_doubles([*rows, *empty], path)


def locate(text: str, bases: list[Path]) -> Path | None:
    """The picture that a cell names, below one of the bases; its suffix may be missing, its slashes may lean left."""
    if not text:
        return None
    for name in dict.fromkeys((text, text.replace("\\", "/"))):
        for base in bases:
            for suffix in ("",) if Path(name).suffix.lower() in SUFFIXES else ("", *SUFFIXES):
                file = Path(os.path.normpath(base / f"{name}{suffix}"))
                if file.is_file():
                    return file
    return None


def without_doubles(rows: list[Row], path: Path) -> list[Row]:
    """Each picture once, in the order of their paths. Raises DataError if two rows of one contradict each other."""
    found: dict[Path, Row] = {}
    twice, against = [], []
    for row in sorted(rows, key=lambda row: (row.path, row.line)):
        first = found.setdefault(row.path, row)
        if first is not row:
            same = (first.cells, first.group, first.side) == (row.cells, row.group, row.side)
            (twice if same else against).append(f"lines {first.line} and {row.line} ({row.path.name})")
    if against:
        raise DataError(f"{path}: two rows of one picture contradict each other: {listed(against)}")
    if twice:
        warnings.warn(f"{path}: two rows of one picture, used once: {listed(twice)}", stacklevel=5)
    return list(found.values())
