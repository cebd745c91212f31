"""Whether test pictures were among those of the pre-training, which saw them without their labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from full_ijepa.data import base_of, folder_of, training_files
from full_ijepa.evaluate.pictures import Labelled
from full_ijepa.pack import mark_of, stem_of
from full_ijepa.recipes.base import Recipe
from full_ijepa.remote import is_remote
from full_ijepa.shards import Shards, places
from full_ijepa.table import Table, flags
from full_ijepa.tars import BrokenShardError
from toy_ijepa.folders import DataError


def seen_before(recipe: Recipe, name: str, table: Table, test: Labelled) -> int | None:
    """How many test pictures were pre-trained on, with a warning if there are any; None where that cannot be told.

    Looked for are the same files of a folder: where the run learned from it, from one around or inside it, or from
    shards on this machine that were packed from one of those. The same picture in two files is not found here; `look`
    finds those.
    """
    if name == recipe.data and not table:  # divided once, for both
        return 0
    if not is_folder(name):
        return None
    root = Path(os.path.realpath(folder_of(name)))
    try:
        if is_folder(recipe.data):
            there = Path(os.path.realpath(folder_of(recipe.data)))
            if not (there.is_relative_to(root) or root.is_relative_to(there)):
                return 0
            known = {os.path.realpath(path) for path in training_files(recipe)}
            seen = sum(os.path.realpath(place.fetched()) in known for place in test.source)
            same = there == root
            advice = f"pretrain with the same table to keep them apart: {flags(table)}" if same else "judge on others"
        elif recipe.data.startswith("shards:") and not is_remote(recipe.data):
            seen = packed(recipe, [place.fetched().absolute() for place in test.source])
            advice = f"pack the folder as it is judged to keep them apart: {flags(table) or 'without a table'}"
        else:
            return None
    except (DataError, BrokenShardError) as error:  # the run's own data has changed, or is no more
        warnings.warn(f"which test pictures were pre-trained on cannot be told: {error}", stacklevel=4)
        return None
    if seen:
        told = f"{seen} of {len(test)} test pictures were pre-trained on, without their labels; {advice}"
        warnings.warn(told, stacklevel=4)
    return seen


def packed(recipe: Recipe, files: Sequence[Path]) -> int | None:
    """How many of the files have their like, by name, in shards that were packed from a folder that they lie in.

    None if no index says what was packed.
    """
    shards = Shards(places(recipe.data), 1)
    marks = {index.get("source") for index in shards.indices.values()} - {None}
    if not marks:
        return None
    folders = {folder for parent in {file.parent for file in files} for folder in (parent, *parent.parents)}
    bases = [base_of(Recipe(data=f"folder:{folder}")) for folder in folders if mark_of(folder) in marks]
    if not bases:
        return 0
    names = (name for shard in range(len(shards.places)) for name in shards.table(shard).names)
    known = {name.partition("-")[2].rpartition(".")[0] for name in names}
    inside = (file.relative_to(base) for file in files for base in bases if file.is_relative_to(base))
    return sum(stem_of(str(name)) in known for name in inside)


def is_folder(name: str) -> bool:
    return name == "imagenet" or name.startswith("folder:")
