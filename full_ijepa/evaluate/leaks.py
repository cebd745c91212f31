"""Whether test pictures were among those of the pre-training, which saw them without their labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from full_ijepa.data import base_of, folder_of, training_files
from full_ijepa.evaluate.pictures import Labelled
from full_ijepa.pack import mark_of, sources_of
from full_ijepa.recipes.base import Recipe
from full_ijepa.remote import is_remote
from full_ijepa.shards import Shards, places
from full_ijepa.table import Followed, Table, flags
from full_ijepa.tars import TABLE
from toy_ijepa.folders import DataError


def seen_before(recipe: Recipe, name: str, table: Table, test: Labelled, files: str = "") -> int | None:
    """How many test pictures were pre-trained on, with a warning if there are any; None where that cannot be told.

    Looked for are the same files, links followed: those of the folder that the run learned from, or those that its
    shards on this machine were packed from. The same picture in two files is not found here; `look` finds those.
    files  the mark of those that the run was trained on; "" if that is not known
    """
    if not is_folder(name):
        return 0 if name == recipe.data else None  # its parts were divided once, for both
    try:
        if is_folder(recipe.data):
            same = os.path.realpath(folder_of(name)) == os.path.realpath(folder_of(recipe.data))
            trained = training_files(recipe)
            if files and trained.mark != files:
                raise DataError(f"{trained.root} has changed since (other pictures, or another table)")
            if same and not table:
                return 0
            real = Followed()
            known = {os.path.realpath(path) if path.is_symlink() else str(real(path)) for path in trained}
            seen = sum(os.path.realpath(place.fetched()) in known for place in test.source)
            advice = f"pretrain with the same table to keep them apart: {flags(table)}" if same else "judge on others"
        elif recipe.data.startswith("shards:") and not is_remote(recipe.data):
            seen = packed(recipe, [place.fetched().absolute() for place in test.source])
            advice = f"pack the folder as it is judged to keep them apart: {flags(table) or 'without a table'}"
        else:
            return None
    except (DataError, OSError) as error:  # the run's own data has changed, or is no more
        warnings.warn(f"which test pictures were pre-trained on cannot be told: {error}", stacklevel=4)
        return None
    if seen:
        told = f"{seen} of {len(test)} test pictures were pre-trained on, without their labels; {advice}"
        warnings.warn(told, stacklevel=4)
    return seen


def packed(recipe: Recipe, files: Sequence[Path]) -> int | None:
    """How many of the files are in shards that were packed from a folder that they lie in; None if that is not said."""
    shards = Shards(places(recipe.data), 1)
    marks = {index.get("source") for index in shards.indices.values()} - {None}
    folders = {folder for parent in {file.parent for file in files} for folder in (parent, *parent.parents)}
    bases = [base_of(Recipe(data=f"folder:{folder}")) for folder in folders if mark_of(folder) in marks]
    tables = [Path(f"{place}{TABLE}") for place in shards.places]
    if not bases or not all(table.is_file() for table in tables):
        return None
    known = {base / name for table in tables for name in sources_of(table) for base in bases}
    return sum(file in known for file in files)


def is_folder(name: str) -> bool:
    return name == "imagenet" or name.startswith("folder:")
