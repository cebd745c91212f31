"""Whether test pictures were among those of the pre-training, which saw them without their labels."""

from __future__ import annotations

import os
import warnings
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


def seen_before(recipe: Recipe, name: str, table: Table, test: Labelled) -> int:
    """How many test pictures of a folder were pre-trained on, with a warning if there are any.

    Looked for are the same files: where the run learned from this folder, from one around or inside it, or from shards
    on this machine that were packed from it. The same picture in two files is not found here; `look` finds those.
    """
    if not is_folder(name):
        return 0
    root = Path(os.path.realpath(folder_of(name)))
    try:
        if is_folder(recipe.data):
            there = Path(os.path.realpath(folder_of(recipe.data)))
            if there == root and not table:  # divided once, for both
                return 0
            if not (there.is_relative_to(root) or root.is_relative_to(there)):
                return 0
            known = {os.path.realpath(path) for path in training_files(recipe)}
            seen = sum(os.path.realpath(place.fetched()) in known for place in test.source)
            same = there == root
            advice = f"pretrain with the same table to keep them apart: {flags(table)}" if same else "judge on others"
        elif recipe.data.startswith("shards:") and not is_remote(recipe.data):
            seen = packed(recipe, root, test)
            advice = f"pack the folder as it is judged to keep them apart: {flags(table) or 'without a table'}"
        else:
            return 0
    except (DataError, BrokenShardError) as error:  # the run's own data has changed, or is no more
        warnings.warn(f"which test pictures were pre-trained on cannot be told: {error}", stacklevel=4)
        return 0
    if seen:
        told = f"{seen} of {len(test)} test pictures were pre-trained on, without their labels; {advice}"
        warnings.warn(told, stacklevel=4)
    return seen


def packed(recipe: Recipe, root: Path, test: Labelled) -> int:
    """How many test pictures have their like among shards that were packed from the folder, by name."""
    shards = Shards(places(recipe.data), 1)
    if all(index.get("source") != mark_of(root) for index in shards.indices.values()):
        return 0
    names = (name for shard in range(len(shards.places)) for name in shards.table(shard).names)
    known = {name.partition("-")[2].rpartition(".")[0] for name in names}
    base = base_of(Recipe(data=f"folder:{root}"))
    files = (Path(os.path.realpath(place.fetched())) for place in test.source)
    return sum(stem_of(str(path.relative_to(base))) in known for path in files if path.is_relative_to(base))


def is_folder(name: str) -> bool:
    return name == "imagenet" or name.startswith("folder:")
