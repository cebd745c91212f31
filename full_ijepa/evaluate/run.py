"""A run of protocols over every encoder of a table: the trained one, a random one, and pixels."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import count, zip_longest
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch
from torch import Tensor

from full_ijepa import checkpoint, labels, methods, metrics
from full_ijepa.data import ALONE, folder_of
from full_ijepa.distributed import World, world
from full_ijepa.evaluate import protocols as known
from full_ijepa.evaluate.leaks import seen_before
from full_ijepa.evaluate.pictures import Labelled, labelled
from full_ijepa.evaluate.protocols import PROTOCOLS, Subject
from full_ijepa.evaluate.tables import suffix_of
from full_ijepa.labels import task_of
from full_ijepa.machine import pick
from full_ijepa.recipes.base import Recipe, in_full
from full_ijepa.table import NO_TABLE, Table
from full_ijepa.vit import Encoder, build_encoder, fingerprint
from toy_ijepa.recipe import lookup


def load_run(
    out: Path, device: torch.device | str = "cpu", which: str = "last", here: World = ALONE
) -> tuple[Recipe, methods.IJEPA | methods.MAE, int]:
    """Recipe, method and step of a run's checkpoint: "last" (the newest whole one), "best", or a step's number.

    Of several processes (`here`) the leader reads it, and sends the others the weights.
    Raises CheckpointError if there is none.
    """
    weights: dict[str, Tensor] = {}

    def read() -> dict[str, Any]:
        found, about = checkpoint.choose(out / "checkpoints", which)
        weights.update({name: tensor for name, tensor in found.items() if name.startswith("model.")})
        return about

    about = here.lead(read)
    recipe = checkpoint.recipe_of(about, out)
    step = methods.Step(methods.build(recipe.replace(compile=False)))
    checkpoint.restore(step, [], weights)
    return recipe, step.method.to(device).eval(), about["step"]


def evaluate(
    out: Path,
    protocols: Iterable[str] = ("knn", "linear", "lowshot"),
    *,
    data: str | None = None,
    encoder: Literal["target", "context"] = "target",
    table: Table = NO_TABLE,
    most: int | None = None,
    seeds: Iterable[int] = (0,),
    device: str = "auto",
    which: str = "last",
) -> dict[str, Any]:
    """Judge a run by one protocol after another, beside a random encoder and pixels; writes OUT/evaluation.json.

    What is known is written after each protocol: what a later one fails at, or the end of a job's time, takes none.

    data     the set to judge on (default: the one trained on); another one is transfer
    encoder  I-JEPA's "target" encoder (default) or its "context" encoder; MAE has one
    table    of labels beside the folder of pictures (default: the one that the recipe names, if it names one)
    most     at most so many labelled training pictures, drawn at random
    seeds    of heads, of the random encoder and of what is held out; mean and spread are reported
    which    the checkpoint, as `load_run` takes it
    The file's name says what is not the last, own and target: evaluation-WHICH-DATA-context.json.
    Under torchrun all processes encode and fit together; the leader has the result, the others get an empty one.
    Raises ValueError for an unknown protocol, a run without checkpoints, data without labels, or a table with mistakes.
    """
    chosen, seeds = [name for name in protocols if lookup(PROTOCOLS, name, "protocol")], list(seeds)
    pick(device)  # a word about a GPU that is not there
    with world(device) as here:
        recipe, method, step = load_run(out, here.device, which, here)
        name = in_full(data) if data else recipe.data
        if not table and table != NO_TABLE:
            raise ValueError("columns and a task are those of a table of labels: name it too (--labels FILE)")
        if same_set(name, recipe.data):
            name, table = recipe.data, table or Table.of(recipe)
        views = dict(pixels=recipe.pixels, table=table, room=1e9 * recipe.shard_room, here=here)
        train = labelled(name, "train", recipe.image_size, most, **views)
        test = labelled(name, "test", recipe.image_size, **views)
        task = about(recipe, name, table, test, checkpoint.files_of(out / "checkpoints")) if here.leads else {}
        own = method.probed if encoder == "target" else method.encoder
        subjects = subjects_of(own, recipe, train, test, seeds, here, out)
        rows: dict[str, dict[str, list]] = {}
        result = dict(
            run=str(out),
            step=step,
            checkpoint=which,
            data=name,
            encoder=encoder,
            weights=fingerprint(own),
            labels=len(train),
            tested=len(test),
            classes=list(train.classes),
            **task,
            seeds=seeds,
            protocols={},
        )
        suffix = suffix_of(which) + ("" if name == recipe.data else f"-{Path(name.rpartition(':')[2]).name}")
        file = file_of(out, name, suffix, encoder)
        for protocol in chosen:
            learn_for(protocol, [subject for _, subject in subjects])
            add(protocol, subjects, rows)
            if here.leads:
                found = {p: {row: summary(each) for row, each in rows[p].items()} for p in chosen if p in rows}
                result = written(file, result | dict(protocols=found))
    known.scenes.cache_clear()
    return result if here.leads else {}


def file_of(out: Path, data: str, suffix: str, encoder: str) -> Path:
    """Where a verdict stands. A set that is called like another one, but lies elsewhere, has a file of its own."""
    end = "" if encoder == "target" else "-context"
    path = out / f"evaluation{suffix}{end}.json"
    if path.exists() and json.loads(path.read_text()).get("data") != data:
        path = out / f"evaluation{suffix}-{hashlib.sha256(data.encode()).hexdigest()[:6]}{end}.json"
    return path


def same_set(one: str, other: str) -> bool:
    """Whether two names are of one set: a folder may be spelled in many ways."""
    if one.startswith("folder:") and other.startswith("folder:"):
        return folder_of(one).resolve() == folder_of(other).resolve()
    return in_full(one) == in_full(other)


def subjects_of(
    own: Encoder, recipe: Recipe, train: Labelled, test: Labelled, seeds: Sequence[int], here: World, out: Path
) -> list[tuple[str, Subject]]:
    """Who is judged, with the name of its row, for each seed: what is known of encoder and pixels serves all seeds."""
    encoders, pixels, found = {}, {}, []
    for seed in seeds:
        rows = {
            recipe.method: (own, encoders),
            "random": (fresh(recipe, seed).to(here.device), {}),
            "pixels": (None, pixels),
        }
        for row, (network, features) in rows.items():
            found.append((row, Subject(network, recipe, train, test, here.device, seed, features, here, out)))
    return found


def learn_for(protocol: str, subjects: Sequence[Subject]) -> None:
    """All features that a protocol needs, a pass over the pictures of each set for all subjects together."""
    wanted: dict[str, tuple[Labelled, list[Subject]]] = {}
    for subject in subjects:
        for key, data in known.NEEDED[protocol](subject).items() if protocol in known.NEEDED else ():
            wanted.setdefault(key, (data, []))[1].append(subject)
    for key, (data, those) in wanted.items():
        known.learn(those, data, key)


def add(protocol: str, subjects: Sequence[tuple[str, Subject]], rows: dict[str, dict[str, list]]) -> None:
    """Add what a protocol says of each subject to the rows. Tokens are kept of one encoder at a time, for its seeds."""
    first: dict[int, int] = {}
    for place, (_, subject) in enumerate(subjects):
        first.setdefault(id(subject.known), place)
    those = sorted(subjects, key=lambda named: first[id(named[1].known)])  # the same order in every process
    for (row, subject), (_, later) in zip_longest(those, those[1:], fillvalue=("", None)):
        found = PROTOCOLS[protocol](subject)
        if found is not None:
            rows.setdefault(protocol, {}).setdefault(row, []).append(found)
        if later is None or later.known is not subject.known:
            for key in ("train tokens", "test tokens"):
                subject.known.pop(key, None)


def written(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The result as it stands in its file, where other protocols of the same encoder, step and data stay.

    What was judged otherwise is put aside, with a warning.
    """
    if path.exists():
        before, plain = json.loads(path.read_text()), json.loads(json.dumps(result))
        wanted = ("step", "data", "labels", "tested", "task", "table", "seeds")
        odd = [k for k in wanted if before.get(k) != plain[k]]
        if odd or before.get("weights", plain["weights"]) != plain["weights"]:  # older files do not say
            odd = odd or ["weights"]
            names = (path.with_name(f"{path.stem}-before-{number}.json") for number in count(1))
            aside = next(name for name in names if not name.exists())
            path.replace(aside)
            warnings.warn(f"{path.name} was of other {', '.join(odd)}: it is {aside.name} now", stacklevel=3)
        else:
            result["protocols"] = before["protocols"] | result["protocols"]
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)
    return result


def about(recipe: Recipe, name: str, table: Table, test: Labelled, files: str) -> dict[str, Any]:
    """What the task is, how many test pictures were pre-trained on, and of a table: its columns, what divided.

    files  the mark of those that the run was trained on
    """
    seen = seen_before(recipe, name, table, test, files)
    found = dict(task=task_of(test.labels), uneven=metrics.uneven(test.labels), table=None, pretrained_on=seen)
    if not table:
        return found
    return found | dict(table=asdict(table), division=labels.read(table, folder_of(name)).division)


def fresh(recipe: Recipe, seed: int) -> Encoder:
    """An untrained encoder of the recipe: the row that every number has to beat."""
    torch.manual_seed(1000 + seed)
    options = dict(positions=recipe.positions, pixels=recipe.pixels)
    return build_encoder(recipe.encoder, recipe.image_size, recipe.patch, **options).eval()


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The first seed's details, with mean and spread over seeds of every number that all have."""
    numbers = {k for k in found[0] if all(isinstance(f[k], int | float) for f in found)}
    spread = {k: round(stdev(f[k] for f in found), 6) if len(found) > 1 else None for k in sorted(numbers)}
    return found[0] | {k: round(mean(f[k] for f in found), 6) for k in numbers} | dict(spread=spread)
