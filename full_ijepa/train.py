"""The training loop at scale: any number of processes, interrupted at any moment, continued to the same last bit."""

# Shape legend:  B images of a micro-batch  C channels  H,W pixels  S pictures

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from full_ijepa import balance, checkpoint, machine, methods
from full_ijepa.balance import steps_of
from full_ijepa.data import Resident, Stream, accumulation, opened, plan, probe_set, settled, told_plainly, training_set
from full_ijepa.distributed import PATIENCE, STEP, World, local_only, only_run, share, world
from full_ijepa.journal import Journal, check_boards
from full_ijepa.labels import task_of
from full_ijepa.machine import OwnTime
from full_ijepa.masking import Drawn, beside
from full_ijepa.metrics import knn_score
from full_ijepa.order import Micro
from full_ijepa.recipes.base import Recipe
from full_ijepa.saving import Saver
from toy_ijepa.diagnostics import LOW_STD, Health, health
from toy_ijepa.probing import features
from toy_ijepa.schedules import cosine, warmup_cosine
from toy_ijepa.training import NonFiniteLossError, make_optimisers, uses_bf16

# What the command line leaves with; the README lists them.
DONE, WRONG_INPUT, NOT_FINITE, NOT_SAVED, STOPPED = 0, 2, 3, 4, 75  # 75: EX_TEMPFAIL, "try again"
LOOKED = 256  # pictures that are searched for flat ones and copies before the first step
WATCHED = 64  # of them, those whose features are watched for collapse
SELDOM = 200  # optimiser steps between two looks at features in a long run; a shorter one has 50 looks
ABLE = 8, 0  # compute capability from which attention has a kernel for packed sequences (FlashAttention 2)
PACKED = 256  # packed lengths on a GPU are whole multiples of it
CROPS = 64  # crops on which predicting each place's mean is tried
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class Run:
    """What `pretrain` leaves: where, how far, how it ended ("done", "stopped" or "unsaved"), and rows of history."""

    out: Path
    step: int
    steps: int
    ended: Literal["done", "stopped", "unsaved"]
    rows: list[dict[str, float]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return {"done": DONE, "stopped": STOPPED, "unsaved": NOT_SAVED}[self.ended]


def set_schedules(optimisers: list[torch.optim.Optimizer], recipe: Recipe, progress: float) -> tuple[float, float]:
    """Set learning rate and weight decay for this step; returns both."""
    lr = warmup_cosine(progress, recipe.lr, recipe.warmup_epochs / recipe.epochs, end=recipe.final_lr)
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


class Interrupt:
    """Remembers SIGTERM and Ctrl-C instead of dying of them; the second Ctrl-C is not held back."""

    def __init__(self) -> None:
        self.wanted = False

    def __call__(self, number: int, _frame: Any) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True


@contextmanager
def listening() -> Iterator[Interrupt]:
    """Signals go to an Interrupt inside, and where they went before afterwards (only possible in the main thread)."""
    interrupt = Interrupt()
    try:
        before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    except ValueError:  # not in the main thread: a notebook's helper, for instance
        before = {}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Trainer:
    """One process of a run: model, optimisers and data at some optimiser step."""

    def __init__(self, recipe: Recipe, here: World, data: Resident | Stream | None = None) -> None:
        self.pictures = opened(recipe, here) if data is None else None
        with here.leader_first():
            recipe = settled(recipe, self.pictures) if data is None else recipe
            self.data = training_set(recipe, here.device, self.pictures) if data is None else data
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
        self.likeness = balance.likeness(looked[: len(self.data)])
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
        checkpoint.restore(self.model, self.optimisers, tensors)
        self.scaler.load_state_dict(about["scaler"])
        self.step, self.seconds = about["step"], about["seconds"]
        return wrong

    def about(self) -> dict[str, Any]:
        """What a checkpoint says beside its numbers and its recipe."""
        about = dict(seconds=self.seconds, steps=self.steps, pictures=len(self.data))
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


def pretrain(recipe: Recipe, out: Path, *, resume: bool = False, device: str = "auto", progress: bool = True) -> Run:
    """Train a recipe and write everything to `out`: recipe.json, history.jsonl, checkpoints/, tensorboard/.

    resume  continue from the newest whole checkpoint in `out`; a new run if there is none
    SIGTERM and Ctrl-C save a checkpoint after the current step and return with ended "stopped".
    Raises ValueError for what the caller can mend, and NonFiniteLossError.
    """
    balance.refuse(recipe)
    check_boards(recipe)
    with world(device) as here, listening() as interrupt, told_plainly():
        trainer = Trainer(recipe, here)
        with only_run(out, here):
            return Loop(trainer, out, resume, progress).run(interrupt)


class Loop:
    """Steps, and what happens between them: history, checkpoints, probes, and the end."""

    def __init__(self, trainer: Trainer, out: Path, resume: bool, progress: bool) -> None:
        self.trainer, self.out, self.folder = trainer, out, out / "checkpoints"
        self.leads, found = trainer.world.leads, machine.describe(trainer.recipe, trainer.world, trainer.dtype)
        self.say(f"computing on: {machine.sentence(found)}")
        kept = trainer.world.lead(lambda: self.kept(resume))
        for told in trainer.resume(self.folder):
            self.say(f"warning: {told}; the checkpoint before it is used")
        if trainer.step:
            self.say(f"continuing at step {trainer.step} of {trainer.steps}")
        self.journal = None
        if self.leads:
            out.mkdir(parents=True, exist_ok=True)
            self.journal = Journal(out, trainer.step, trainer.recipe, found)
        self.saver = Saver(self.folder, trainer.world, trainer.recipe)
        self.share_of_peak = 0.0  # of one image a second
        if self.leads and "peak_tflops" in found:
            from full_ijepa import cost  # it asks this module

            each = cost.flops_per_image(trainer.recipe).model
            self.share_of_peak = each / (found["peak_tflops"] * 1e12 * trainer.world.size)
        self.probing = None
        if trainer.recipe.probe_epochs:
            self.probing = probe_set(trainer.recipe, pictures=trainer.pictures, here=trainer.world)
        self.judge = "knn" if self.probing else "rank"
        self.best = next((best for best in kept if best.by == self.judge), None)
        self.beaten: dict[int, checkpoint.Best | None] = {}  # by steps whose best is not written yet
        self.rank = math.nan  # as last seen
        self.bar = tqdm(
            total=trainer.steps,
            initial=trainer.step,
            disable=not (progress and self.leads),
            unit="step",
            mininterval=1.0,  # a notebook's front end loses messages when it gets thousands from one cell
            smoothing=0.05,
        )
        self.unsaved = ""
        self.warned: set[str] = set()
        if not trainer.step:
            self.forewarn()

    def kept(self, resume: bool) -> list[checkpoint.Best]:
        """The best checkpoints of a run that is continued. Raises CheckpointError for another run's, or one in use."""
        best = checkpoint.best_of(self.folder)
        if not resume and (best or checkpoint.written(self.folder)):
            raise checkpoint.CheckpointError(
                f"{self.out} already holds a run; --resume auto continues it, another --out starts a new one"
            )
        for path in best:
            checkpoint.compare(self.trainer.recipe, checkpoint.about_of(path), self.folder)
        checkpoint.sweep(self.folder)
        return list(best.values())

    def forewarn(self) -> None:
        """What does not go together, before the first step."""
        t = self.trainer
        found = [balance.alike(*t.likeness), *balance.odd(t.recipe, len(t.data))]
        for told in filter(None, [*found, balance.missing_gpu(t.recipe, len(t.data), t.world.device)]):
            self.say(f"warning: {told}")

    def say(self, text: str) -> None:
        if self.trainer.world.leads:
            tqdm.write(text, file=sys.stderr)  # on a line of its own, whatever the progress bar is doing

    def every(self, epochs: float) -> int:
        """Epochs as optimiser steps, at least one."""
        return max(round(epochs * len(self.trainer.data) / self.trainer.recipe.batch), 1)

    def run(self, interrupt: Interrupt) -> Run:
        t, recipe = self.trainer, self.trainer.recipe
        batches = t.batches(t.step, t.steps)
        losses: list[Tensor] = []
        begun = mark = time.perf_counter()
        before, counted, waited = t.seconds, t.step, t.waited
        ended: Literal["done", "stopped", "unsaved"] = "done"
        # A non-finite loss is seen at once where looking costs nothing, elsewhere with the next row of history.
        alone = t.world.size == 1 and t.world.device.type == "cpu"
        t.world.patience(STEP)
        try:
            while t.step < t.steps:
                loss, norm, schedule = t.take_step(batches)
                # An infinite gradient spoils the weights though the loss was finite; with loss scaling (fp16) such a
                # step is skipped instead.
                losses.append(loss if t.dtype == torch.float16 else loss + 0.0 * norm)
                t.seconds = before + time.perf_counter() - begun
                self.bar.update()
                last = t.step == t.steps
                if last or t.step % recipe.log_every == 0 or (alone and not loss.isfinite()):
                    passed = time.perf_counter() - mark
                    pace = dict(images_per_second=(t.step - counted) * recipe.batch / passed)
                    pace |= machine.row(t.world, passed, t.waited - waited, t.own)
                    if self.share_of_peak:
                        pace["mfu"] = pace["images_per_second"] * self.share_of_peak
                    # What is looked at now is a part of the run: the next row's pace has it.
                    mark, counted, waited = time.perf_counter(), t.step, t.waited
                    self.log(losses, norm, schedule, pace)
                due = last or t.step % self.every(recipe.checkpoint_epochs) == 0
                if not due and t.step % t.world.round:
                    continue
                self.settle()
                stop = t.world.any(interrupt.wanted)
                if stop or due:
                    paused = time.perf_counter()
                    self.save(losses)
                    mark += time.perf_counter() - paused
                if stop and not last:
                    ended = "stopped"
                    break
            self.settle(wait=True)
            t.world.patience(PATIENCE)
            self.unsaved = t.world.lead(lambda: self.unsaved)  # once the leader has written: all leave with its code
        finally:
            self.bar.close()
            self.saver.close()
            if self.journal:
                self.journal.close()
        if ended == "stopped" and not self.unsaved:
            self.say(f"stopped at step {t.step} of {t.steps}; --resume auto continues")
        if self.best and t.step == t.steps:
            self.say(
                f"best: {self.best} of {t.steps}; --checkpoint best takes it where the last one is taken otherwise"
            )
        if self.unsaved:
            ended = "unsaved"
            self.say(f"error: the last checkpoint could not be written ({self.unsaved}); free space and --resume auto")
        return Run(self.out, t.step, t.steps, ended, self.journal.rows if self.journal else [])

    def settle(self, wait: bool = False) -> None:
        """Say what became of checkpoints that were on their way; `wait` for them.

        TRAP: under ddp only the leader knows of any and comes here to wait: nothing here may ask the others.
        """
        world = self.trainer.world
        if wait:
            world.patience(PATIENCE)  # a slow disk is not a hang
        for found in self.saver.look(wait):
            if found.kind == "step":
                self.unsaved = found.error
            before = self.beaten.pop(found.step, None) if found.kind == "best" else None
            if not found.error:
                continue
            if found.kind == "step":
                self.say(f"warning: no checkpoint at step {found.step} ({found.error}); training goes on")
                continue
            self.say(f"warning: the best checkpoint, {self.best}, was not kept ({found.error}); training goes on")
            self.best = before
            if self.journal:
                self.journal.withdraw(found.step, f"best_{self.judge}")
        if wait:
            world.patience(STEP)

    def make_room(self, kind: str) -> None:
        """Wait for the last checkpoint of this kind: two copies of it would fill the memory."""
        begun = time.perf_counter()
        while self.saver.busy(kind):
            self.settle(wait=True)
            self.warn(
                f"slow {kind}",
                f"step {self.trainer.step} waited {time.perf_counter() - begun:.1f} s for the checkpoint before to be "
                "written: the disk is slower than checkpoints come; raise checkpoint_epochs or probe_epochs",
            )

    def log(self, losses: list[Tensor], norm: Tensor, schedule: dict[str, float], pace: dict[str, float]) -> None:
        """A row of history; raises NonFiniteLossError if the numbers blew up."""
        t = self.trainer
        loss = t.world.mean(torch.stack(losses).mean().item())
        losses.clear()
        if not math.isfinite(loss):
            self.blown_up(f"the loss is {loss}")
        row = dict(step=t.step, epoch=t.step * t.recipe.batch / len(t.data), loss=loss, **schedule)
        row |= dict(gradient_norm=float(norm), seconds=t.seconds, **pace)
        due = self.every(t.recipe.probe_epochs or t.recipe.checkpoint_epochs)
        judged = t.step == t.steps or t.step % due < t.recipe.log_every
        first = t.step <= t.recipe.log_every
        if judged or first or t.step % t.watch_every < t.recipe.log_every:
            row |= self.watch()
        if judged:
            row |= self.probe()
            row |= self.compare(row)
        if first:
            row |= dict(zip(("flat", "copies"), t.likeness, strict=True))
        if t.data.skipped is not None:
            row["skipped"] = len(t.data.skipped.names)
        if self.journal:
            self.journal.add({k: round(v, 8) if isinstance(v, float) else v for k, v in row.items()})
        if judged and self.journal:
            from full_ijepa import doctor  # it opens runs, so it asks this module

            for finding in doctor.on_the_way(t.recipe, self.journal.rows):
                self.warn(finding.name, f"{finding.name}: {finding.seen}; {finding.advice}")
        self.bar.set_postfix_str(f"loss {loss:.4f}, {pace['images_per_second']:.0f} images/s, rank {self.rank:.1f}")

    def watch(self) -> dict[str, float]:
        """What features are like and what each place's mean would lose, for a row; warns of collapse."""
        found, mean_loss = self.trainer.watch()
        self.rank = found.rank
        for kind, message in found.warnings().items():
            self.warn(kind, message)
        return dict(mean_loss=mean_loss, **asdict(found))

    def warn(self, kind: str, message: str) -> None:
        """Say it once in a run."""
        if kind not in self.warned:
            self.warned.add(kind)
            self.say(f"warning: {message}")

    def probe(self) -> dict[str, float]:
        """kNN (%) on labelled training pictures, part of them held out, and two of its standard errors.

        Accuracy of classes, mean AUROC of tags, R2 of numbers; the doubt is that of an accuracy, at its widest for the
        other two.
        """
        if not self.probing:
            return {}
        bank, bank_labels, queries, labels = self.probing
        encoder = self.trainer.method.probed
        with self.trainer.autocast():
            x = [features(encoder, encoder.pixels.scaled(images), batch=64) for images in (bank, queries)]
        found = knn_score(x[0], bank_labels, x[1], labels)
        right = found / 100 if task_of(labels) == "classes" else 0.5
        share = (right * len(labels) + 1) / (len(labels) + 2)  # never 0 or 1, where the formula knows no doubt
        return dict(knn=found, knn_doubt=200 * math.sqrt(share * (1 - share) / len(labels)))

    def compare(self, row: dict[str, float]) -> dict[str, float]:
        """Keep this step if it is the best so far; what history says of it. Never by loss, which tells nothing.

        TRAP: rank and kNN do not see how large features are; a collapsed step may be best by both; it counts for 0,
        and nothing is kept for it.
        """
        t = self.trainer
        now = checkpoint.Best(t.step, self.judge, row[self.judge] if row["std"] >= LOW_STD else 0.0)
        better = math.isfinite(now.value) and now.value > (self.best.value if self.best else 0.0)
        if t.world.any(t.world.leads and better):  # numbers of other processes may differ in the last digit
            self.make_room("best")
            part = checkpoint.collect(t.model, [], t.world.leads)
            self.saver.add("best", t.step, part, dict(steps=t.steps, best=asdict(now)))
            self.beaten[t.step], self.best = self.best, now
        # A run that goes on from before its best step finds it again.
        return {f"best_{self.judge}": now.value} if self.best and self.best.step == t.step else {}

    def save(self, losses: list[Tensor]) -> None:
        """Begin a checkpoint, unless the numbers blew up since the last row."""
        t = self.trainer
        bad = bool(losses) and not torch.stack(losses).isfinite().all()
        if t.world.any(bad):
            self.blown_up("loss or gradient is not finite")
        self.make_room("step")
        self.saver.add("step", t.step, checkpoint.collect(t.model, t.optimisers, t.world.leads), t.about())

    def blown_up(self, what: str) -> None:
        self.settle(wait=True)
        where = checkpoint.written(self.folder)
        kept = f"the last good checkpoint is {where[-1]}" if where else "no checkpoint had been written yet"
        raise NonFiniteLossError(
            f"{what} at step {self.trainer.step}; {kept}. Try a lower lr than {self.trainer.recipe.lr}, a longer "
            "warm-up, clip 1, or precision fp32"
        )
