"""Runs by name: every module here that holds a RECIPE."""

from __future__ import annotations

import importlib
import pkgutil

from full_ijepa.recipes.base import Recipe

RECIPES: dict[str, Recipe] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}").RECIPE
    for module in pkgutil.iter_modules(__path__)
    if module.name != "base"
}
