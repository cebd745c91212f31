"""A run from its first step to its end: history, checkpoints, probes, signals, and what is said on the way."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from full_ijepa import balance, checkpoint, machine
from full_ijepa.data import probe_set
from full_ijepa.distributed import PATIENCE, STEP
from full_ijepa.journal import Journal
from full_ijepa.labels import task_of
from full_ijepa.metrics import knn_score
from full_ijepa.saving import Saver
from toy_ijepa import trouble
from toy_ijepa.diagnostics import LOW_STD
from toy_ijepa.probing import features
from toy_ijepa.training import NonFiniteLossError

if TYPE_CHECKING:
    from full_ijepa.train import Trainer

# What the command line leaves with; the README lists them.
DONE, WRONG_INPUT, NOT_FINITE, NOT_SAVED, STOPPED = 0, 2, 3, 4, 75  # 75: EX_TEMPFAIL, "try again"
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
        self.rank = self.mean_loss = math.nan  # as last seen
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
        found = [trouble.alike(*t.likeness, trouble.NAMED), *balance.odd(t.recipe, len(t.data))]
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
            with self.patience():
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

    @contextmanager
    def patience(self) -> Iterator[None]:
        """All processes wait for those that have to wait for a disk inside: a slow one is not a hang."""
        world = self.trainer.world
        world.patience(PATIENCE)
        yield
        world.barrier()
        world.patience(STEP)

    def make_room(self, kind: str) -> None:
        """Wait for the last checkpoint of this kind: two copies of it would fill the memory."""
        if not self.trainer.world.any(self.saver.busy(kind)):  # under ddp the leader alone knows
            return
        begun = time.perf_counter()
        with self.patience():
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
            row |= self.watch(early=first and t.step < t.steps)
        if judged:
            row |= self.probe()
            row |= self.compare(row)
        if first:
            row |= dict(zip(("flat", "copies"), t.likeness, strict=True))
        if t.data.skipped is not None:
            told = t.world.tell("\n".join(t.data.skipped.names))
            row["skipped"] = len({name for names in told for name in names.split("\n")} - {""})
        if self.journal:
            self.journal.add({k: round(v, 8) if isinstance(v, float) else v for k, v in row.items()})
        if judged and self.journal:
            from full_ijepa import doctor  # it opens runs, so it asks this module

            for finding in doctor.on_the_way(t.recipe, self.journal.rows):
                self.warn(finding.name, f"{finding.name}: {finding.seen}; {finding.advice}")
        beside = "" if math.isnan(self.mean_loss) else f" (without the picture {self.mean_loss:.4f})"
        speed = f"{pace['images_per_second']:.0f} images/s"
        self.bar.set_postfix_str(f"loss {loss:.4f}{beside}, {speed}, rank {self.rank:.1f}")

    def watch(self, early: bool = False) -> dict[str, float]:
        """What features are like and what each place's mean would lose, for a row; warns of collapse.

        early  the first row: what features are like there is the random start's doing
        """
        found, self.mean_loss = self.trainer.watch()
        self.rank = found.rank
        for kind, message in {} if early else found.warnings("--regulariser 0.1 0.005").items():
            self.warn(kind, message)
        return asdict(found) | ({} if math.isnan(self.mean_loss) else dict(mean_loss=self.mean_loss))

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
            x = [
                torch.cat([features(encoder, encoder.pixels.scaled(part)) for part in images.split(64)])
                for images in (bank, queries)
            ]
        found = knn_score(x[0], bank_labels, x[1], labels)
        right = found / 100 if task_of(labels) == "classes" else 0.5
        return dict(knn=found, knn_doubt=trouble.doubt(right, len(labels)))

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
            self.saver.add("best", t.step, part, dict(steps=t.steps, files=t.files, best=asdict(now)))
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
        with self.patience():  # who left now would take the leader with it, in the middle of a checkpoint
            self.settle(wait=True)
        where = checkpoint.written(self.folder)
        kept = f"the last good checkpoint is {where[-1]}" if where else "no checkpoint had been written yet"
        raise NonFiniteLossError(
            f"{what} at step {self.trainer.step}; {kept}. Try a lower lr than {self.trainer.recipe.lr}, a longer "
            "warm-up, clip 1, or precision fp32"
        )
