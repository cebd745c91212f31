"""The training loop at scale: any number of processes, interrupted at any moment, continued as if not.

On a CPU to the same last bit; on a GPU with the same pictures and masks, where the order of some sums is not fixed.
"""

# Shape legend:  B images of a micro-batch  C channels  H,W pixels  S pictures

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from full_ijepa import balance, checkpoint, methods
from full_ijepa.balance import steps_of
from full_ijepa.data import Resident, Stream, accumulation, opened, plan, settled, told_plainly, training_set
from full_ijepa.distributed import World, local_only, only_run, share, world
from full_ijepa.journal import check_boards
from full_ijepa.loop import Loop, Run, listening
from full_ijepa.machine import OwnTime
from full_ijepa.masking import Drawn, beside
from full_ijepa.names import Names
from full_ijepa.order import Micro
from full_ijepa.recipes.base import Recipe
from toy_ijepa import trouble
from toy_ijepa.diagnostics import Health, health
from toy_ijepa.recipe import lookup
from toy_ijepa.schedules import cosine, warmup_cosine
from toy_ijepa.training import make_optimisers, uses_bf16

LOOKED = 256  # pictures that are searched for flat ones and copies before the first step
WATCHED = 64  # of them, those whose features are watched for collapse
SELDOM = 200  # optimiser steps between two looks at features in a long run; a shorter one has 50 looks
ABLE = 8, 0  # compute capability from which attention has a kernel for packed sequences (FlashAttention 2)
PACKED = 256  # packed lengths on a GPU are whole multiples of it
CROPS = 64  # crops on which predicting each place's mean is tried


def set_schedules(optimisers: list[torch.optim.Optimizer], recipe: Recipe, progress: float) -> tuple[float, float]:
    """Set learning rate and weight decay for this step; returns both."""
    warmup = recipe.warmup_epochs / recipe.epochs
    lr = warmup_cosine(progress, recipe.lr, warmup, recipe.start_lr, recipe.final_lr)
    decay = cosine(progress, *recipe.weight_decay)
    ends = decay if recipe.ends_decay < 0 else recipe.ends_decay
    for group in (g for optimiser in optimisers for g in optimiser.param_groups):
        group["lr"] = lr
        group["weight_decay"] = {"blocks": decay, "ends": ends, "spared": 0.0}[group["name"]]
    return lr, decay


def precision_of(recipe: Recipe, device: torch.device) -> torch.dtype:
    """What products are computed in: torch.float32, bfloat16 or float16."""
    if recipe.precision == "auto":
        return torch.bfloat16 if uses_bf16(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.precision]


def set_up(recipe: Recipe, device: torch.device) -> None:
    """Choose the kernels of this process: fp32 products as TF32, and attention without cuDNN where lengths vary.

    TRAP: PyTorch's attention asks cuDNN first on recent cards, which makes a plan for each length that it has not met:
    contexts in groups, or cut, have a new one nearly every micro-batch. Packed ones leave it the whole pictures only.
    Raises ValueError if the card is too old for the recipe.
    """
    if device.type != "cuda":
        return
    packed, dtype = recipe.contexts == "packed" and recipe.method == "ijepa", precision_of(recipe, device)
    has = torch.cuda.get_device_capability(device)
    if packed and dtype != torch.float32 and has < ABLE:
        raise ValueError(
            f"packed contexts in {recipe.precision} need a GPU of compute capability {ABLE[0]}.{ABLE[1]}, this one has "
            f"{has[0]}.{has[1]}: give --contexts groups, or --precision fp32"
        )
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(packed or recipe.method == "mae")


class Trainer:
    """One process of a run: model, optimisers and data at some optimiser step."""

    def __init__(self, recipe: Recipe, here: World, data: Resident | Stream | None = None) -> None:
        self.pictures = opened(recipe, here) if data is None else None
        with here.leader_first():
            recipe = settled(recipe, self.pictures) if data is None else recipe
            self.data = training_set(recipe, here.device, self.pictures) if data is None else data
        self.files = self.pictures.mark if isinstance(self.pictures, Names) else ""
        self.recipe, self.world = recipe, here
        set_up(recipe, here.device)
        self.parts = accumulation(recipe, here.size)
        self.steps = steps_of(recipe, len(self.data))
        self.dtype = precision_of(recipe, here.device)
        build = lambda: methods.Step(methods.build(recipe))  # noqa: E731
        self.model = share(build, here, recipe.parallel, recipe.shard_size, self.dtype)
        self.method = getattr(self.model, "module", self.model).method  # within DDP
        self.own = OwnTime(self.model, here.device) if here.size > 1 else None
        self.optimisers = make_optimisers(self.model, recipe)
        self.scaler = torch.amp.GradScaler(here.device.type, enabled=self.dtype == torch.float16)
        whole = recipe.replace(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=False)
        looked = some_pictures(self.data, whole, LOOKED)
        # Shares of flat pictures and of copies; a small set is looked at once, not in rounds.
        self.likeness = trouble.likeness(looked[: len(self.data)])
        self.watched, self.crops = looked[:WATCHED].clone(), some_pictures(self.data, recipe, CROPS)
        self.watch_every = recipe.watch_every or min(max(self.steps // 50, 1), SELDOM)
        self.step, self.seconds, self.waited = 0, 0.0, 0.0

    def resume(self, folder: Path) -> list[str]:
        """Continue from the newest whole checkpoint, if there is one; returns what was wrong with newer ones.

        The leader reads it and sends the others their share.
        """
        tensors: dict[str, Tensor] = {}

        def found() -> tuple[dict[str, Any], list[str]] | None:
            newest = checkpoint.newest(folder)
            tensors.update(newest[0] if newest else {})
            return newest and newest[1:]

        told = self.world.lead(found)
        if told is None:
            return []
        about, wrong = told
        checkpoint.compare(self.recipe, about, folder)
        if (was := about.get("pictures", len(self.data))) != len(self.data) or about["steps"] != self.steps:
            raise checkpoint.CheckpointError(
                f"{folder} has a run of {was} pictures and {about['steps']} steps, now there are {len(self.data)} and "
                f"{self.steps}: the pictures have changed. Put them back, or choose another --out"
            )
        if about.get("files", self.files) != self.files:
            raise checkpoint.CheckpointError(
                f"{folder} has a run of as many pictures with other names: they have changed. Put them back, or choose "
                "another --out"
            )
        checkpoint.restore(self.model, self.optimisers, tensors)
        self.scaler.load_state_dict(about["scaler"])
        self.step, self.seconds = about["step"], about["seconds"]
        return wrong

    def about(self) -> dict[str, Any]:
        """What a checkpoint says beside its numbers and its recipe."""
        about = dict(seconds=self.seconds, steps=self.steps, pictures=len(self.data), files=self.files)
        return about | dict(scaler=self.scaler.state_dict())

    def batches(self, start: int, steps: int) -> Iterator[tuple[Tensor, Drawn]]:
        """Images and finished masks of this process's micro-batches from optimiser step `start` to `steps`."""

        def micros() -> Iterator[Micro]:
            return plan(self.data.layout, self.recipe, start, steps, self.world.rank, self.world.size)

        def draw(micro: Micro) -> Drawn:
            return self.method.draw(len(micro.index), micro.seed, micro.sizes, multiple)

        multiple = PACKED if self.world.device.type == "cuda" else 1  # few shapes for kernels; a CPU does not mind
        return beside(self.data.batches(micros(), self.recipe), micros(), draw, self.world.device)

    def autocast(self) -> torch.autocast:
        """Products in the precision of the run."""
        return torch.autocast(self.world.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def take_step(self, batches: Iterator[tuple[Tensor, Drawn]]) -> tuple[Tensor, Tensor, dict[str, float]]:
        """One optimiser step: loss and gradient norm (on the device), and what the schedules were."""
        progress = self.step / self.steps
        lr, decay = set_schedules(self.optimisers, self.recipe, progress)
        total = torch.zeros((), device=self.world.device)
        for part in range(self.parts):
            asked = time.perf_counter()
            images, drawn = next(batches)
            self.waited += time.perf_counter() - asked
            with local_only(self.model, part == self.parts - 1):
                with self.autocast():
                    loss = self.model(images, drawn) / self.parts
                self.scaler.scale(loss).backward()
            total += loss.detach()
        for optimiser in self.optimisers:
            self.scaler.unscale_(optimiser)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe.clip or math.inf)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP2 gives each process its share
        for optimiser in self.optimisers:
            self.scaler.step(optimiser)
            optimiser.zero_grad()
        self.scaler.update()
        momentum = self.method.after_step(progress)  # TRAP: once an optimiser step and after it, never once a batch
        self.step += 1
        return total, norm, dict(lr=lr, weight_decay=decay, momentum=momentum)

    @torch.no_grad()
    def watch(self) -> tuple[Health, float]:
        """Health of features on fixed pictures, and the loss of answering with each place's mean on fixed crops."""
        was = self.method.training
        self.method.eval()
        with self.autocast():
            found = health(self.method.probed(self.watched)), self.method.mean_loss(self.crops)
        self.method.train(was)
        return found


def some_pictures(data: Resident | Stream, recipe: Recipe, count: int) -> Tensor:
    """A few training pictures, cropped as the recipe says, the same in every process: (count, C, H, W).

    A set of fewer pictures is gone through again and again, in whole rounds.
    """
    still = recipe.replace(batch=count, micro_batch=count, workers=0)
    images, _ = next(data.batches(plan(data.layout, still, 0, 1), still))
    return images


def pretrain(
    recipe: Recipe | str, out: Path | str, *, resume: bool = False, device: str = "auto", progress: bool = True
) -> Run:
    """Train a recipe and write everything to `out`: recipe.json, history.jsonl, checkpoints/, tensorboard/.

    recipe  or the name of one
    resume  continue from the newest whole checkpoint in `out`; a new run if there is none
    SIGTERM and Ctrl-C save a checkpoint after the current step and return with ended "stopped".
    Raises ValueError for what the caller can mend, and NonFiniteLossError.
    """
    if isinstance(recipe, str):
        from full_ijepa.recipes import RECIPES

        recipe = lookup(RECIPES, recipe, "recipe")
    recipe, out = recipe.located(), Path(out)
    balance.refuse(recipe)
    check_boards(recipe)
    with world(device) as here, listening() as interrupt, told_plainly():
        trainer = Trainer(recipe, here)
        with only_run(out, here):
            return Loop(trainer, out, resume, progress).run(interrupt)
