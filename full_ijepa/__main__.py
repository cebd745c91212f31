"""The command line: python -m full_ijepa pretrain RECIPE [--field value ...] --out RUN [--resume auto]

Exit codes: 0 done, 2 wrong input (nothing was changed), 3 the loss is not finite, 4 the last checkpoint could not be
written, 75 stopped by SIGTERM or Ctrl-C after saving (run the same line with --resume auto).
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal, Union

import tyro

from full_ijepa import cost, train
from full_ijepa.recipes import RECIPES
from full_ijepa.recipes.base import Recipe
from toy_ijepa.training import NonFiniteLossError


def described(name: str) -> str:
    """A recipe's docstring, its lines kept apart."""
    return "\n\n".join((sys.modules[f"full_ijepa.recipes.{name}"].__doc__ or "").strip().splitlines())


# One subcommand a recipe; its fields are flags, with the recipe's values as defaults and the comments as help.
Named = Union[  # noqa: UP007 (built from a table)
    tuple(
        Annotated[Recipe, tyro.conf.subcommand(name, default=value, description=described(name), prefix_name=False)]
        for name, value in RECIPES.items()
    )
]


def pretrain(
    recipe: Named,
    out: Path | None = None,
    resume: Literal["never", "auto"] = "never",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dry_run: bool = False,
) -> int:
    """Pre-train a recipe; under torchrun, in all its processes together.

    Args:
        recipe: which run; its fields are flags
        out: folder to write to (default: runs/ and the recipe's method and data)
        resume: "auto" continues from the newest whole checkpoint in --out, or starts if there is none
        device: where to compute; "auto" is the GPU if there is one
        dry_run: print parameters, FLOPs, memory and time estimated for this device, and train nothing
    """
    if dry_run:
        print(cost.estimate(recipe, device))
        return 0
    name = recipe.data.removeprefix("folder:").strip("/").replace("/", "-")
    out = out or Path("runs") / f"{recipe.method}-{name}-{recipe.encoder}{recipe.patch}"
    run = train.pretrain(recipe, out, resume=resume == "auto", device=device)
    return run.exit_code


def main(argv: list[str] | None = None) -> int:
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"
    try:
        return tyro.extras.subcommand_cli_from_dict(
            {"pretrain": pretrain},
            prog="python -m full_ijepa",
            description="Pre-train and judge I-JEPA and MAE at scale.",
            args=argv,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.CascadeSubcommandArgs),
        )
    except NonFiniteLossError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return train.NOT_FINITE
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return train.WRONG_INPUT


if __name__ == "__main__":
    sys.exit(main())
