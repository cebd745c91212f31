"""Do torch and torchvision fit each other? A pair that does not makes every JPEG look broken."""

from __future__ import annotations

import re
from importlib import metadata
from types import ModuleType

PROJECT = "ijepa-course"


class MachineError(ValueError):
    """Something is wrong with this machine or its packages, not with a picture; says what to do."""


def remedy() -> str:
    """The command that installs the pair this project was tested with."""
    try:
        pins = [line for line in metadata.requires(PROJECT) or [] if re.match(r"(torch|torchvision)\s*==", line)]
    except metadata.PackageNotFoundError:
        pins = []  # the project lies on the path without having been installed
    return "pip install --force-reinstall " + " ".join(f'"{pin}"' for pin in pins or ["torch", "torchvision"])


def check_versions() -> None:
    """Compare torch with what torchvision was built for, by what both say about themselves, without importing them.

    Raises MachineError if one is missing or torchvision asks for another torch.
    """
    try:
        torch, vision = metadata.version("torch"), metadata.version("torchvision")
        needs = metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError as error:
        raise MachineError(f"{error.name} is not installed: {remedy()}") from error
    wanted = next((m[1] for line in needs if (m := re.match(r"torch\s*\(?==\s*([^\s;)]+)", line))), None)
    if wanted and wanted.split("+")[0] != torch.split("+")[0]:
        raise MachineError(
            f"torchvision {vision} was built for torch {wanted}, but torch {torch} is installed; pictures could not be "
            f"read: {remedy()}"
        )


def import_torchvision() -> ModuleType:
    """torchvision with its compiled operators. Raises MachineError if it cannot be imported here."""
    check_versions()
    try:
        import torchvision.io  # a slow import that only those who read pictures need

        return torchvision
    except Exception as error:  # a missing operator is a RuntimeError, a missing library an OSError or ImportError
        raise MachineError(
            f"torchvision {metadata.version('torchvision')} does not work with torch {metadata.version('torch')} "
            f"({str(error).strip().splitlines()[0]}): {remedy()}"
        ) from error
