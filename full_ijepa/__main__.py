"""The command line.

python -m full_ijepa look DATA [--out look.html]
python -m full_ijepa pack FOLDER OUT [--side 256]
python -m full_ijepa verify FOLDER
python -m full_ijepa pretrain RECIPE [--field value ...] --out RUN [--resume auto]
python -m full_ijepa evaluate RUN [--protocols ...]
python -m full_ijepa report RUN [RUN ...]
python -m full_ijepa doctor RUN
python -m full_ijepa export RUN [--to ...]
python -m full_ijepa embed RUN PICTURES --out features.parquet
python -m full_ijepa near features.parquet RUN PICTURES
python -m full_ijepa attend RUN PICTURE

Exit codes: 0 done, 2 wrong input or pictures that cannot be read (what is saved stays), 3 the loss is not finite, 4
the last checkpoint could not be written, 75 stopped by SIGTERM or Ctrl-C after saving (run the same line with
--resume auto).
"""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal, Union

import torch
import tyro
from tyro.conf import Positional

from full_ijepa import balance, cost, interop, loop, train
from full_ijepa import doctor as examining
from full_ijepa import evaluate as judging
from full_ijepa.card import UNKNOWN, card
from full_ijepa.distributed import leave
from full_ijepa.evaluate.run import load_run
from full_ijepa.look import OPENED
from full_ijepa.methods import IJEPA
from full_ijepa.recipes import RECIPES
from full_ijepa.recipes.base import Recipe
from full_ijepa.table import NO_TABLE, Table
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


def look(
    data: Positional[str],
    most: int = OPENED,
    stack: Literal["channels", "max", "mean"] = "channels",
    table: Table = NO_TABLE,
    out: Path | None = None,
) -> int:
    """Say what pictures are, what is wrong with them, and which recipe to start with.

    Args:
        data: a name, folder:PATH, the path of a folder, shards:... or hf:...
        most: pictures opened, evenly spread; all others are only counted
        stack: what pages of a stack are, as for pretrain
        table: of labels beside a folder
        out: an HTML file to write too, with pictures, histograms and pairs of near copies
    """
    from full_ijepa import look, lookpage  # a slow import, as are those of other commands: only theirs waits for it

    found = look.look(data, most, stack, table)
    print(lookpage.text(found))
    if out:
        print(f"written: {lookpage.write(found, out)}")
    return 0


def pack(
    folder: Positional[Path],
    out: Positional[Path],
    shard_size: str = "100MB",
    side: int | None = None,
    allow_skipped: bool = False,
    table: Table = NO_TABLE,
) -> int:
    """Put a folder's pictures into shards (tar files as WebDataset lays them out), to train on as shards:OUT.

    Args:
        folder: of pictures
        out: a folder for the shards and their index
        shard_size: about how large a shard becomes
        side: bring pictures whose shorter side is longer to it, as JPEG of quality 95 (default: files as they are)
        allow_skipped: go on although more than one in twenty of the files cannot be read
        table: of labels beside the pictures: those of its test part stay out of the shards, to be judged on where they
            are (evaluate --data folder:FOLDER with the same table)
    """
    from full_ijepa import pack as packing

    root = Path(str(folder).removeprefix("folder:")).expanduser()
    found = packing.pack(root, out.expanduser(), packing.bytes_of(shard_size), side, allow_skipped, table)
    for line in found.skipped:
        print(f"warning: skipped {line}", file=sys.stderr)
    told = ", ".join(f"{count:,} {part}" for part, count in found.parts.items())
    print(f"{told} pictures in {found.shards} shards, {cost.size(found.size)}; next: pretrain with --data shards:{out}")
    return 0


def verify(folder: Positional[Path]) -> int:
    """Read all shards of a folder on this machine and compare their SHA-256 with the index's, as after a copy.

    Args:
        folder: of shards, with index.json beside
    """
    from full_ijepa import pack as packing

    count, wrong = packing.verify(folder.expanduser())
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    told = "all are as index.json says" if not wrong else f"{len(wrong)} are not as index.json says: copy them anew"
    print(f"{count} shards: {told}")
    return 2 if wrong else 0


def pretrain(
    recipe: Named,
    out: Path | None = None,
    resume: Literal["never", "auto"] = "never",
    device: str = "auto",
    dry_run: bool = False,
) -> int:
    """Pre-train a recipe; under torchrun, in all its processes together.

    Args:
        recipe: which run; its fields are flags
        out: folder to write to (default: runs/ and the recipe's method, data, encoder and patch)
        resume: "auto" continues from the newest whole checkpoint in --out, or starts if there is none
        device: "auto", "cpu" or "cuda": where to compute; "auto" is the GPU if there is one, and the CPU only where no
            GPU is to be seen, or torch is built without CUDA, and torchrun did not start this
        dry_run: print parameters, FLOPs, memory and time estimated for this device, which batch, rate and momentum go
            together, and train nothing
    """
    if dry_run:
        pictures = cost.pictures_of(recipe)
        print(cost.estimate(recipe, device))
        print(f"\nwhat goes together here (full_ijepa/balance.py):\n{balance.table(recipe, pictures)}")
        for told in balance.odd(recipe, pictures):
            print(f"warning: {told}")
        balance.refuse(recipe)
        return 0
    name = re.sub(r"[^\w.-]+", "-", re.sub("^(folder|shards|hf):", "", recipe.data)).strip("-")
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
    table: Table = NO_TABLE,
    most: int | None = None,
    seeds: tuple[int, ...] = (0,),
    device: str = "auto",
    checkpoint: str = "last",
) -> int:
    """Judge a run beside a random encoder and pixels, under torchrun by all processes. Writes RUN/evaluation.json.

    Args:
        run: the --out of a pretrain
        protocols: how to judge; all choices are made on training data; "paper" is the linear probe of its appendix
        data: judge on another set (transfer): a name ("clevr-count" and torchvision's among them), folder:PATH,
            shards:FOLDER or hf:PATH_OR_NAME
        encoder: I-JEPA's target encoder, or its context encoder; MAE has one
        table: of labels beside the pictures
        most: at most so many labelled training pictures
        seeds: several give mean and spread
        device: "auto", "cpu" or "cuda": where to compute
        checkpoint: "last", "best" (by held-out probe, or by rank without labels) or a step; the file's name says
            which, if not the last; and another set, and the context encoder: evaluation-best-NAME-context.json
    """
    options = dict(data=data, encoder=encoder, table=table, most=most, seeds=seeds, device=device, which=checkpoint)
    if found := judging.evaluate(run, protocols, **options):  # only the process that leads has it
        print(judging.table(found))
    return 0


def report(
    runs: Positional[tuple[Path, ...]],
    out: Path = Path("report.html"),
    checkpoint: str = "last",
    device: str = "auto",
) -> int:
    """One self-contained HTML page of one or more runs.

    Args:
        runs: the --out of each pretrain
        out: the file to write
        checkpoint: "last", "best" or a step, for pictures, features and the evaluation that is shown
        device: "auto", "cpu" or "cuda": where to encode
    """
    from full_ijepa import report as reporting  # draws: a slow import that only this command needs

    print(f"written: {reporting.write(runs, out, checkpoint, device)}")
    return 0


def doctor(run: Positional[Path], checkpoint: str = "last", device: str = "auto") -> int:
    """Say what is wrong with a run, and what to try.

    Args:
        run: the --out of a pretrain
        checkpoint: whose features are looked at: "last", "best" or a step
        device: "auto", "cpu" or "cuda": where to encode
    """
    print(examining.report(examining.chart_of(run, checkpoint, device)))
    return 0


def export(
    run: Positional[Path],
    to: Literal["huggingface", "released", "toy", "onnx", "program"] = "huggingface",
    encoder: Literal["target", "context"] = "target",
    out: Path | None = None,
    license: str = UNKNOWN,
    checkpoint: str = "last",
) -> int:
    """Write a run's weights for use elsewhere.

    Args:
        run: the --out of a pretrain
        to: "huggingface": a folder for AutoModel; "released": a file laid out as the released checkpoints; "toy": an
            encoder file for toy_ijepa.weights.load_encoder; "onnx" and "program" (torch.export): a graph that takes
            pictures as they stand in their files and needs nothing of this package
        encoder: which encoder; "released" has both
        out: folder or file to write (default: beside the run's checkpoints)
        license: under which others may use the weights, for the model card in the "huggingface" folder
        checkpoint: "last", "best" or a step
    """
    from full_ijepa import export as graphs

    recipe, method, step = load_run(run, which=checkpoint)
    chosen = method.probed if encoder == "target" else method.encoder
    target = out or run / DEFAULT_NAMES[to]
    judged = f"evaluation{judging.suffix_of(checkpoint)}{'' if encoder == 'target' else '-context'}.json"
    if to == "huggingface":
        interop.write_huggingface(chosen, target)
        (target / "README.md").write_text(card(recipe, step, encoder, run / judged, license))
    elif to == "onnx":
        graphs.write_onnx(chosen, target)
    elif to == "program":
        graphs.write_program(chosen, target)
    elif to == "released":
        if not isinstance(method, IJEPA):
            raise ValueError("only I-JEPA has the parts of a released checkpoint; export an MAE to huggingface or toy")
        interop.write_released(method, target)
    else:
        interop.write_toy(chosen, target)
    print(f"written: {target}")
    return 0


def embed(
    source: Positional[Path],
    pictures: Positional[str],
    out: Path = Path("features.parquet"),
    encoder: Literal["target", "context"] = "target",
    tokens: bool = False,
    batch: int = 64,
    device: str = "auto",
    allow_skipped: bool = False,
) -> int:
    """Features of pictures, with the names of their files.

    Args:
        source: the --out of a pretrain, an exported Hugging Face folder, a released checkpoint or a file of the toy
        pictures: a folder, one file, shards:... or hf:...
        out: .parquet or .npz to write
        encoder: I-JEPA's target encoder, or its context encoder; where there is one, it is taken
        tokens: all tokens of a picture instead of their average
        batch: pictures encoded at a time
        device: "auto", "cpu" or "cuda": where to compute
        allow_skipped: go on although more than one in twenty of the files cannot be read
    """
    from full_ijepa import embedding

    embedding.writable(out)  # not after hours
    chosen = embedding.load_encoder(source, encoder)
    options = dict(tokens=tokens, batch=batch, device=device, allow_skipped=allow_skipped)
    found = embedding.embed(chosen, pictures, **options)
    found.write(out)
    for line in found.skipped:
        print(f"warning: skipped {line}", file=sys.stderr)
    shape = " x ".join(map(str, found.values.shape[1:]))
    print(f"{len(found)} pictures, {shape} numbers each, written to {out}")
    return 0


def near(
    index: Positional[Path],
    source: Positional[Path],
    pictures: Positional[str],
    count: int = 5,
    encoder: Literal["target", "context"] = "target",
) -> int:
    """The pictures of a saved index that are nearest to each of some others.

    Args:
        index: a file that `embed` wrote
        source: the encoder that wrote it, as for `embed`
        pictures: what to look for: a folder, or one file
        count: neighbours of each
        encoder: as for `embed`
    """
    from full_ijepa import embedding

    known = embedding.Features.read(index)
    asked = embedding.embed(embedding.load_encoder(source, encoder), pictures)
    for name, found in zip(asked.names, known.nearest(asked, count), strict=True):
        print(name, *(f"  {cosine:.3f}  {other}" for other, cosine in found), sep="\n")
    return 0


def attend(
    source: Positional[Path],
    picture: Positional[Path],
    out: Path = Path("attention.png"),
    patch: tuple[int, int] | None = None,
    encoder: Literal["target", "context"] = "target",
) -> int:
    """A figure of one picture: where a patch attends to, and which patches have features like its own.

    Args:
        source: the encoder, as for `embed`
        picture: a file
        out: .png, .pdf or .svg to write
        patch: row and column of the patch that asks, from 0 (default: the middle)
        encoder: as for `embed`
    """
    from full_ijepa import embedding

    chosen = embedding.load_encoder(source, encoder)
    values = torch.from_numpy(chosen.pixels.read(picture))
    out.parent.mkdir(parents=True, exist_ok=True)
    embedding.maps_figure(chosen, values, patch).savefig(out, dpi=150)
    print(f"written: {out}")
    return 0


COMMANDS = dict(look=look, pretrain=pretrain, evaluate=evaluate, report=report, doctor=doctor, export=export)
COMMANDS |= dict(embed=embed, near=near, attend=attend, pack=pack, verify=verify)
DEFAULT_NAMES = dict(
    huggingface="huggingface",
    released="released.pth",
    toy="encoder.safetensors",
    onnx="encoder.onnx",
    program="encoder.pt2",
)


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
        return loop.NOT_FINITE
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return loop.WRONG_INPUT


if __name__ == "__main__":
    leave(main)
