"""Checkpoints are written beside the training loop, by a thread of each process that has something to write.

The loop stops only for a copy of the numbers in memory. One checkpoint is written at a time, in the order in which they
were taken; what became of it is told when the loop asks.
"""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from full_ijepa import checkpoint
from full_ijepa.checkpoint import Part
from full_ijepa.distributed import World
from full_ijepa.recipes.base import Recipe


@dataclass(frozen=True)
class Outcome:
    """What became of a checkpoint ("step" or "best"): `error` is "" for one that is written, whole and in place."""

    kind: str
    step: int
    error: str


@dataclass
class Job:
    """A checkpoint on its way: `work` is what this process writes of it, None if that is nothing."""

    kind: str
    step: int
    path: Path
    parts: int
    work: Future | None


class Saver:
    """Writes the checkpoints of a run to `folder`.

    A model that FSDP shares out is written by all processes together: all of them have to call `add`, `look` and
    `close`, with the same arguments but for the part. Otherwise the leader writes, and calls of others do nothing.
    """

    def __init__(self, folder: Path, world: World, recipe: Recipe) -> None:
        self.folder, self.world, self.recipe = folder, world, recipe
        self.together = world.size > 1 and recipe.parallel == "fsdp"
        self.jobs: list[Job] = []
        self.thread = ThreadPoolExecutor(1, "checkpoint")

    def busy(self, kind: str) -> bool:
        """Whether a checkpoint of this kind is still on its way: the next one would wait for it."""
        return any(job.kind == kind for job in self.jobs)

    def add(self, kind: str, step: int, part: Part | None, about: dict[str, Any]) -> None:
        """Begin to write a checkpoint. Call `look(wait=True)` before if `busy`: copies fill the memory."""
        if part is None and not self.together:
            return
        parts = int(max(found for (found,) in self.world.gather([part.count if part else 0]))) if self.together else 1
        path = checkpoint.path_of(self.folder, step, kind, parts)
        about = dict(about, step=step, recipe=asdict(self.recipe))
        work = self.thread.submit(self.write, path, part, about) if part else None
        self.jobs.append(Job(kind, step, path, parts, work))

    def write(self, path: Path, part: Part, about: dict[str, Any]) -> None:
        """What the thread does."""
        checkpoint.write_part(path, part, about)
        if part.count == 1:
            checkpoint.finish(path, 1, self.recipe.keep)

    def look(self, wait: bool = False) -> list[Outcome]:
        """Checkpoints that came to an end since the last look; `wait` for those that did not."""
        found = []
        while self.jobs and (outcome := self.end_of(self.jobs[0], wait)):
            found.append(outcome)
            self.jobs.pop(0)
        return found

    def end_of(self, job: Job, wait: bool) -> Outcome | None:
        """What became of a checkpoint, None if it is still on its way somewhere."""
        done = wait or job.work is None or job.work.done()
        error = failure(job) if done else ""
        if not self.together:
            return Outcome(job.kind, job.step, error) if done else None
        if not all(there for (there,) in self.world.gather([done])):
            return None
        error = next(filter(None, self.world.tell(error)), "")
        if not error:
            try:
                self.world.lead(lambda: checkpoint.finish(job.path, job.parts, self.recipe.keep) and None)
            except OSError as found:
                error = str(found)
        if error and self.world.leads:
            shutil.rmtree(checkpoint.draft(job.path), ignore_errors=True)
        return Outcome(job.kind, job.step, error)

    def close(self) -> None:
        """Wait for the thread; what it did not end is not looked at."""
        self.thread.shutdown(wait=True)


def failure(job: Job) -> str:
    """Why this process could not write its part, "" if it could; waits for the end of it."""
    try:
        if job.work:
            job.work.result()
    except OSError as error:
        return str(error) or type(error).__name__
    return ""
