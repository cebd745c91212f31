"""Checkpoints that survive anything: written whole or not at all, checked when read, loaded without executing code.

Beside the last ones lies the best by held-out probe or, without labels, by effective rank: never by loss, which tells
nothing. It holds the method's weights alone.

One safetensors file a checkpoint: `model.*` the method's weights, `optimiser.<parameter>.<name>` the optimiser's state,
and a description with the step, the recipe, and a fingerprint of the numbers. A model that FSDP shares out is a folder
of such files, one a process, which also say the place of each piece; opened, it is the same as the one file. Data
order, crops, masks and stochastic depth are functions of the seed and the step (full_ijepa.data): no random state.

torch's own distributed checkpoints (torch.distributed.checkpoint) would be less code, but nothing in them tells a
damaged number from a whole one, and their index is a pickle, which executes code when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed import is_initialized

from full_ijepa.recipes.base import SCHEMA, Recipe

# Fields that may differ between the run that wrote a checkpoint and the one that continues it: they change where and
# how fast it is computed, or what is written, not what is learned.
FREE = {"workers", "shard_room", "checkpointing", "compile", "parallel", "shard_size", "log_every", "keep"}
FREE |= {"checkpoint_epochs", "watch_every", "probe_epochs", "log_to", "allow_high_rate", "allow_skipped"}

# What reading the description of a damaged one raises.
DAMAGED = (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError)


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


@dataclass(frozen=True)
class Part:
    """What one process writes of a checkpoint: tensors on the CPU by name, its number among `count` parts.

    places  of pieces: the shape of the whole tensor, and where in it the piece begins
    """

    tensors: dict[str, Tensor]
    number: int = 0
    count: int = 1
    places: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, shapes, types and numbers."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def path_of(folder: Path, step: int, kind: str = "step", parts: int = 1) -> Path:
    """Where a checkpoint lies: a file, or a folder of several parts. kind  "step" or "best"."""
    return folder / (f"{kind}-{step:08d}" + (".safetensors" if parts == 1 else ""))


def written(folder: Path, kind: str = "step") -> list[Path]:
    """Checkpoints in a folder, oldest first. kind  "step", or "best"."""
    return sorted(
        path for path in folder.glob(f"{kind}-*") if path.suffix == (".safetensors" if path.is_file() else "")
    )


def step_of(path: Path) -> int:
    return int(path.stem.split("-")[1])


def state_of(model: nn.Module, optimisers: list[torch.optim.Optimizer]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a checkpoint, where they are, of the model alone without optimisers."""
    # A slow import, here and below, that only those who write or restore wait for.
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    for name, value in get_model_state_dict(model).items():
        yield f"model.{name}", value
    for parameter, values in get_optimizer_state_dict(model, optimisers)["state"].items() if optimisers else ():
        yield from ((f"optimiser.{parameter}.{k}", v) for k, v in values.items() if isinstance(v, Tensor))


def collect(model: nn.Module, optimisers: list[torch.optim.Optimizer], leads: bool = True) -> Part | None:
    """A copy on the CPU of what this process writes of a checkpoint, None if that is nothing.

    Without optimisers, the model's weights alone. Models that lie whole in every process are the leader's to write; of
    shared ones each process writes its own pieces, and only one group where groups hold the same (HSDP).
    """
    spread = next((p for p in model.parameters() if hasattr(p, "device_mesh")), None)  # a DTensor
    if spread is None:
        return Part(copies(dict(state_of(model, optimisers)))) if leads else None
    *groups, number = spread.device_mesh.get_coordinate()
    if any(groups):
        return None
    mine: dict[str, Tensor] = {}
    places: dict[str, tuple[list[int], list[int]]] = {}
    for name, value in state_of(model, optimisers):
        if hasattr(value, "device_mesh"):
            (chunk,) = value.__create_chunk_list__()
            places[name] = list(value.shape), list(chunk.offsets)
            mine[name] = value.to_local()
        elif number == 0:  # the optimiser's counters
            mine[name] = value
    return Part(copies(mine), number, spread.device_mesh.size(-1), places)


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, which a training step does not change: from GPUs into pinned memory, all at once."""
    found = {}
    for name, value in tensors.items():
        box = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        found[name] = box.copy_(value.detach(), non_blocking=True)
    if any(value.is_cuda for value in tensors.values()):
        torch.cuda.synchronize()
    return found


def write_part(path: Path, part: Part, about: dict[str, Any]) -> None:
    """Write what this process has of a checkpoint; several parts stay apart until `finish`. Raises OSError."""
    put(path if part.count == 1 else draft(path) / f"{part.number}-of-{part.count}.safetensors", part, about)


def draft(path: Path) -> Path:
    """Where the parts of a checkpoint lie until all are written."""
    return path.with_name(path.name + ".part")


def finish(path: Path, parts: int, keep: int) -> Path:
    """Give a checkpoint whose parts are all written its name, and delete those that it makes superfluous.

    Raises OSError if parts are missing, whose processes write elsewhere.
    """
    if parts > 1:
        found = len(list(draft(path).glob("*.safetensors")))
        if found != parts:
            raise OSError(f"{found} of {parts} parts are in {draft(path)}: all processes need one folder")
        shutil.rmtree(path, ignore_errors=True)  # of a run that was continued from before this step
        draft(path).replace(path)
    kind = path.name.split("-")[0]
    others = [old for old in written(path.parent, kind) if old != path]
    if kind == "step":  # of this step there may be one of another number of processes
        kept = sorted({step_of(old) for old in (path, *others)})[-keep - 1 :]
        others = [old for old in others if step_of(old) not in kept or step_of(old) == step_of(path)]
    for old in others:
        remove(old)
    return path


def remove(path: Path) -> None:
    """Delete a checkpoint. TRAP: a folder is renamed first, so that no half of it is ever taken for whole."""
    if path.is_dir():
        gone = path.rename(draft(path))
        shutil.rmtree(gone, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what a killed process left half written."""
    for left in folder.glob("*.part"):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def put(path: Path, part: Part, about: dict[str, Any]) -> None:
    """Write tensors and what is said about them, in one piece or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(f".{os.getpid()}.part")
    described = dict(about, schema=SCHEMA, fingerprint=fingerprint(part.tensors), parts=part.count, places=part.places)
    try:
        save_file(part.tensors, half, metadata={"about": json.dumps(described)})
        with half.open("rb") as file:
            os.fsync(file.fileno())
        half.replace(path)
    except SafetensorError as error:
        raise OSError(f"could not write {path}: {error}") from error
    finally:
        half.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Whole tensors and description of a checkpoint. Raises CheckpointError if it is not one, or is not whole."""
    if not path.is_dir():
        return read_file(path)
    files = sorted(path.glob("*.safetensors"), key=lambda file: int(file.name.split("-")[0]))
    with ThreadPoolExecutor(8) as pool:  # reading and hashing leave Python's lock
        found = list(pool.map(read_file, files))
    if not found or len(found) != found[0][1]["parts"]:
        raise CheckpointError(f"{path} is not whole: {len(found)} of its parts are there")
    tensors: dict[str, Tensor] = {}
    for pieces, about in found:
        for name, piece in pieces.items():
            shape, begin = about["places"].get(name, (piece.shape, [0] * piece.ndim))
            whole = tensors.setdefault(name, torch.empty(shape, dtype=piece.dtype))
            whole[tuple(slice(a, a + n) for a, n in zip(begin, piece.shape, strict=True))] = piece
    return tensors, found[0][1]


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`read` for one file: a checkpoint, or a part of one."""
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
    with safe_open(next(path.glob("0-of-*"), path / "0") if path.is_dir() else path, "pt") as file:
        return json.loads((file.metadata() or {})["about"])


def files_of(folder: Path) -> str:
    """The mark of the files that a run was trained on (`Names.mark`); "" where no checkpoint has one."""
    for path in [*reversed(written(folder)), *best_of(folder)]:
        with suppress(*DAMAGED):  # told by who loads it
            if found := about_of(path).get("files"):
                return found
    return ""


def best_of(folder: Path) -> dict[Path, Best]:
    """The best checkpoints of a folder, the best first: one, or two of a process that was killed between them.

    Only what is said about them is read; damaged ones are left out.
    """
    found: dict[Path, Best] = {}
    for path in written(folder, "best"):
        try:
            found[path] = Best(**about_of(path)["best"])
        except DAMAGED:
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
        for told in found[2]:
            warnings.warn(f"{told}; the checkpoint before it is used", stacklevel=2)
        return found[:2]
    best = best_of(folder)
    if which == "best":
        if not best:
            raise CheckpointError(f"no best checkpoint in {folder}: one is kept from a run's first probe on")
        return read(next(iter(best)))
    paths = {path: step_of(path) for path in (*written(folder), *best)}
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


def recipe_of(about: dict[str, Any], path: Path) -> Recipe:
    """The recipe that a checkpoint tells. Raises CheckpointError if it has fields that this version does not know."""
    try:
        return Recipe.read(about["recipe"])
    except TypeError as error:
        raise CheckpointError(f"{path} was written by a newer version of the recipes ({error}): use that") from error


def compare(recipe: Recipe, about: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError if a checkpoint belongs to a run that learns something else."""
    # fields that came later have the values that they had before
    saved, ours = (asdict(found.filled().located()) for found in (recipe_of(about, path), recipe))
    odd = [n for n in ours if n not in FREE and saved.get(n) != ours[n]]
    if odd:
        told = ", ".join(f"{n} {saved.get(n)} there, {ours[n]} here" for n in odd)
        raise CheckpointError(f"the checkpoints in {path} are of another run ({told}); choose another --out")


def restore(model: nn.Module, optimisers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Put a checkpoint's whole tensors back, in place.

    Of several processes all have to call it; the leader's tensors count, and are sent to the others.
    Raises CheckpointError if they do not fit the model.
    """
    from torch.distributed.checkpoint import state_dict as whole

    options = whole.StateDictOptions(full_state_dict=True, broadcast_from_rank0=is_initialized())
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    try:
        whole.set_model_state_dict(model, weights, options=options)
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"the checkpoint does not fit the model: {error}") from error
    if not optimisers:
        return
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            parameter, _, kind = name.removeprefix("optimiser.").rpartition(".")
            state.setdefault(parameter, {})[kind] = value
    groups = whole.get_optimizer_state_dict(model, optimisers)["param_groups"]
    whole.set_optimizer_state_dict(model, optimisers, dict(state=state, param_groups=groups), options=options)
