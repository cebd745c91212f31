"""Checkpoints that survive anything: written whole or not at all, checked when read, loaded without executing code.

Beside the last ones lies the best by held-out probe or, without labels, by effective rank: never by loss, which tells
nothing. It holds the method's weights alone.

One safetensors file a checkpoint: `model.*` the method's weights, `optimiser.<parameter>.<name>` the optimiser's state,
and a description with the step, the recipe, and a fingerprint of the numbers. Data order, crops, masks and stochastic
depth are functions of the seed and the step (full_ijepa.data), so there is no random state to save.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from full_ijepa.recipes.base import SCHEMA, Recipe

# Fields that may differ between the run that wrote a checkpoint and the one that continues it: they change where and
# how fast it is computed, or what is written, not what is learned.
FREE = {"workers", "shard_room", "checkpointing", "compile", "parallel", "log_every", "checkpoint_epochs", "keep"}
FREE |= {"watch_every", "probe_epochs", "log_to", "allow_high_rate"}
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with what to do about it."""


@dataclass(frozen=True)
class Best:
    """The step that was best so far, by which column of history ("knn" in % or "rank"), and its value there."""

    step: int
    by: str
    value: float

    def __str__(self) -> str:
        return f"step {self.step} by " + (f"kNN {self.value:.1f} %" if self.by == "knn" else f"rank {self.value:.1f}")


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, shapes, types and numbers."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def written(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def collect(model: nn.Module, optimisers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All tensors of a checkpoint on the CPU, by name, of the model alone without optimisers.

    Every process has to call it.
    """
    tensors = {f"model.{k}": v for k, v in get_model_state_dict(model, options=WHOLE).items()}
    if not optimisers:
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    state = get_optimizer_state_dict(model, optimisers, options=WHOLE).get("state", {})
    for parameter, values in state.items():
        tensors |= {f"optimiser.{parameter}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def write(folder: Path, step: int, tensors: dict[str, Tensor], recipe: Recipe, about: dict[str, Any]) -> Path:
    """Write a checkpoint, in one piece or not at all, then delete all but the last `recipe.keep` + 1.

    Raises OSError (no space, no permission); what stood there before is then still whole.
    """
    path = put(path_of(folder, step), tensors, dict(about, step=step, recipe=asdict(recipe)))
    for old in written(folder)[: -recipe.keep - 1]:
        old.unlink(missing_ok=True)
    return path


def write_best(folder: Path, best: Best, tensors: dict[str, Tensor], recipe: Recipe, about: dict[str, Any]) -> Path:
    """Write the best checkpoint as `write` does, then delete the one that it beats. Raises OSError."""
    about = dict(about, step=best.step, recipe=asdict(recipe), best=asdict(best))
    path = put(folder / f"best-{best.step:08d}.safetensors", tensors, about)
    for old in folder.glob("best-*.safetensors"):
        if old != path:
            old.unlink(missing_ok=True)
    return path


def put(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> Path:
    """Write tensors and what is said about them, in one piece or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob("*.part"):  # by a process that was killed while it wrote
        left.unlink(missing_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    described = dict(about, schema=SCHEMA, fingerprint=fingerprint(tensors))
    try:
        save_file(tensors, part, metadata={"about": json.dumps(described)})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except SafetensorError as error:
        raise OSError(f"could not write {path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a checkpoint. Raises CheckpointError if it is not one, or is not whole."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint {path}") from error
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is truncated or not a checkpoint ({error})") from error
    if about.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} was written by another version of the recipes; export it there, or start anew")
    if fingerprint(tensors) != about["fingerprint"]:
        raise CheckpointError(f"{path} is damaged: its numbers do not match its fingerprint")
    return tensors, about


def about_of(path: Path) -> dict[str, Any]:
    """The description of a checkpoint alone, its numbers unread and unchecked."""
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {})["about"])


def best_of(folder: Path) -> dict[Path, Best]:
    """The best checkpoints of a folder, the best first: one, or two of a process that was killed between them.

    Only what is said about them is read; damaged ones are left out.
    """
    found: dict[Path, Best] = {}
    for path in folder.glob("best-*.safetensors"):
        try:
            found[path] = Best(**about_of(path)["best"])
        except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError):
            continue  # half a file never has this name, so it was damaged later: a worse one, or none, is left
    # A probe says more than a rank, with which it cannot be compared: a run may have changed from one to the other.
    ranked = sorted(found.items(), key=lambda item: (item[1].by == "knn", item[1].value), reverse=True)
    return dict(ranked)


def choose(folder: Path, which: str = "last") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a checkpoint: "last" (the newest whole one), "best", or a step's number.

    Raises CheckpointError, which says what there is instead.
    """
    if not written(folder) and not best_of(folder):
        raise CheckpointError(f"no checkpoint in {folder}; is {folder.parent} the --out of a pretrain?")
    if which == "last":
        found = newest(folder)
        if found is None:
            raise CheckpointError(f"only the best checkpoint is left in {folder}: choose it with --checkpoint best")
        return found[:2]
    best = best_of(folder)
    if which == "best":
        if not best:
            raise CheckpointError(f"no best checkpoint in {folder}: one is kept from a run's first probe on")
        return read(next(iter(best)))
    paths = {path: int(path.stem.split("-")[1]) for path in (*written(folder), *best)}
    for path, step in paths.items():
        if which.isdecimal() and step == int(which):
            return read(path)
    there = ", ".join(map(str, sorted(set(paths.values()))))
    raise CheckpointError(f"no checkpoint {which!r} in {folder}: there are last, best and steps {there}")


def newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]] | None:
    """The newest whole checkpoint of a folder and what was wrong with newer ones; None for a folder without any.

    Raises CheckpointError if there are checkpoints and none is whole: a run never starts anew over them.
    """
    wrong: list[str] = []
    for path in reversed(written(folder)):
        try:
            return *read(path), wrong
        except CheckpointError as error:
            wrong.append(str(error))
    if wrong:
        told = "\n  ".join(wrong)
        raise CheckpointError(f"no checkpoint in {folder} is whole; move the folder away to start anew:\n  {told}")
    return None


def compare(recipe: Recipe, about: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError if a checkpoint belongs to a run that learns something else."""
    # fields that came later have the values that they had before
    saved, ours = (asdict(found.filled()) for found in (Recipe.read(about["recipe"]), recipe))
    odd = [n for n in ours if n not in FREE and saved.get(n) != ours[n]]
    if odd:
        told = ", ".join(f"{n} {saved.get(n)} there, {ours[n]} here" for n in odd)
        raise CheckpointError(f"the checkpoints in {path} are of another run ({told}); choose another --out")


def restore(model: nn.Module, optimisers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Put a checkpoint's tensors back, in place; every process has to call it.

    Raises CheckpointError if they do not fit the model.
    """
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    try:
        set_model_state_dict(model, weights, options=WHOLE)
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"the checkpoint does not fit the model: {error}") from error
    if not optimisers:
        return
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            parameter, _, kind = name.removeprefix("optimiser.").rpartition(".")
            state.setdefault(parameter, {})[kind] = value
    groups = get_optimizer_state_dict(model, optimisers)["param_groups"]
    set_optimizer_state_dict(model, optimisers, dict(state=state, param_groups=groups), options=WHOLE)
