"""The command line.

python -m full_ijepa pretrain RECIPE [--field value ...] --out RUN [--resume auto]
python -m full_ijepa evaluate RUN [--protocols ...]
python -m full_ijepa report RUN [RUN ...]
python -m full_ijepa doctor RUN
python -m full_ijepa export RUN

Exit codes: 0 done, 2 wrong input or pictures that cannot be read (what is saved stays), 3 the loss is not finite, 4
the last checkpoint could not be written, 75 stopped by SIGTERM or Ctrl-C after saving (run the same line with
--resume auto).
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal, Union

import tyro
from tyro.conf import Positional

from full_ijepa import cost, interop, train
from full_ijepa import doctor as examining
from full_ijepa import evaluate as judging
from full_ijepa.evaluate.run import load_run
from full_ijepa.methods import IJEPA
from full_ijepa.recipes import RECIPES
from full_ijepa.recipes.base import Recipe
from toy_ijepa.environment import check_versions
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
    if run.ended == "done" and run.rows:  # the process that leads has them
        print(f"done: {run.steps} steps, written to {out}; next: python -m full_ijepa evaluate {out}")
    return run.exit_code


def evaluate(
    run: Positional[Path],
    protocols: tuple[Literal[tuple(judging.PROTOCOLS)], ...] = ("knn", "linear", "lowshot"),  # type: ignore[valid-type]
    data: str | None = None,
    encoder: Literal["target", "context"] = "target",
    labels: int | None = None,
    seeds: tuple[int, ...] = (0,),
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> int:
    """Judge a run beside a random encoder and pixels; writes RUN/evaluation.json.

    Args:
        run: the --out of a pretrain
        protocols: how to judge; all choices are made on training data
        data: judge on another set (transfer): a name ("clevr-count" and torchvision's among them) or folder:PATH
        encoder: I-JEPA's target encoder, or its context encoder; MAE has one
        labels: at most so many labelled training pictures
        seeds: several give mean and spread
        device: where to compute
    """
    options = dict(data=data, encoder=encoder, labels=labels, seeds=seeds, device=device)
    print(judging.table(judging.evaluate(run, protocols, **options)))
    return 0


def report(runs: Positional[tuple[Path, ...]], out: Path = Path("report.html")) -> int:
    """One self-contained HTML page of one or more runs.

    Args:
        runs: the --out of each pretrain
        out: the file to write
    """
    from full_ijepa import report as reporting  # draws: a slow import that only this command needs

    print(f"written: {reporting.write(runs, out)}")
    return 0


def doctor(run: Positional[Path]) -> int:
    """Say what is wrong with a run, and what to try.

    Args:
        run: the --out of a pretrain
    """
    print(examining.report(examining.chart_of(run)))
    return 0


def export(
    run: Positional[Path],
    to: Literal["huggingface", "released", "toy"] = "huggingface",
    encoder: Literal["target", "context"] = "target",
    out: Path | None = None,
) -> int:
    """Write a run's weights for use elsewhere.

    Args:
        run: the --out of a pretrain
        to: "huggingface": a folder for AutoModel; "released": a file laid out as the released checkpoints; "toy": an
            encoder file for toy_ijepa.weights.load_encoder
        encoder: which encoder, for "huggingface" and "toy"
        out: folder or file to write (default: beside the run's checkpoints)
    """
    _, method, _ = load_run(run)
    chosen = method.probed if encoder == "target" else method.encoder
    target = out or run / {"huggingface": "huggingface", "released": "released.pth", "toy": "encoder.safetensors"}[to]
    if to == "huggingface":
        interop.write_huggingface(chosen, target)
    elif to == "released":
        if not isinstance(method, IJEPA):
            raise ValueError("only I-JEPA has the parts of a released checkpoint; export an MAE to huggingface or toy")
        interop.write_released(method, target)
    else:
        interop.write_toy(chosen, target)
    print(f"written: {target}")
    return 0


COMMANDS = dict(pretrain=pretrain, evaluate=evaluate, report=report, doctor=doctor, export=export)


def main(argv: list[str] | None = None) -> int:
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"
    try:
        check_versions()
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
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
