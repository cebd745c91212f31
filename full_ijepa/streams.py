"""Pictures on their way to the model: small sets on the device as uint8, others decoded by workers, ahead of the steps.

A set of pictures is a Sequence of what `Pixels.read` takes: files (names.Names), members of shards (shards.Shards),
rows of a table (hub.Hub). The streams do not ask which.
"""

# Shape legend:  S pictures of the set  B pictures of a batch  C channels  H,W pixels, at last those of recipe.sides

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from full_ijepa import gpu_decoding
from full_ijepa.crops import augment, cut
from full_ijepa.formats import Picture, UnreadableError
from full_ijepa.order import Micro, ShardOrder, mix
from full_ijepa.recipes.base import Recipe
from toy_ijepa.decoding import DataError, blame, jpeg_decoder
from toy_ijepa.environment import MachineError
from toy_ijepa.folders import MOST_SKIPPED, check_skipped, listed

FEW = 200  # pictures seen before the share of broken ones is judged
MOMENT = 2.0  # s in which the signal of a worker's death arrives
TRIES = 10  # broken pictures in a row before a stream gives up
AHEAD = 4  # micro-batches that each worker has ready
SHARED = Path("/dev/shm")  # where Linux keeps what workers hand over

Bad = tuple[str, str, int]  # what could not be read, why, and how many pictures are in it


@dataclass
class Skipped:
    """Pictures, or shards of them, that could not be read; each is named once.

    names  the reason of each
    lost   pictures of each shard that is lost as a whole
    """

    names: dict[str, str] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)

    def note(self, name: str, reason: str, pictures: int = 1) -> None:
        if name in self.names:
            return
        self.names[name] = reason
        what = "picture" if pictures == 1 else f"shard of {pictures} pictures"
        if pictures > 1:
            self.lost[name] = pictures
        warnings.warn(f"{what} skipped ({len(self.names)} so far): {name}: {reason}", stacklevel=3)

    def lines(self) -> list[str]:
        """Each as "name: reason"."""
        return [f"{name}: {reason}" for name, reason in self.names.items()]

    def check(self, seen: int, whole: int, allowed: bool) -> None:
        """Raise DataError if too large a share of the pictures seen, or of the whole set's in shards, is lost."""
        single = [line for line in self.lines() if line.split(": ")[0] not in self.lost]
        check_skipped(single, min(whole, max(seen, FEW)), allowed)
        if not allowed and (lost := sum(self.lost.values())) > MOST_SKIPPED * whole:
            raise DataError(
                f"{lost} of {whole} pictures lie in shards that cannot be read, more than {MOST_SKIPPED:.0%}: "
                f"{listed([line for line in self.lines() if line not in single])}. Mend or fetch them anew, or train "
                "without them: --allow-skipped"
            )


class Resident:
    """A set that stays on the device as it was read, (S, C, H, W); a batch is cut out, cropped and mirrored there.

    Crops are not antialiased: pictures should not be larger than the sides that the encoder sees.
    skipped  files that could not be read; None where there are no files
    """

    def __init__(self, images: Tensor, device: torch.device, skipped: Skipped | None = None) -> None:
        self.images, self.skipped = images.to(device), skipped

    def __len__(self) -> int:
        return len(self.images)

    @property
    def layout(self) -> int:
        """What `order.plan` shuffles."""
        return len(self)

    def batches(self, plan: Iterable[Micro], recipe: Recipe) -> Iterator[tuple[Tensor, Micro]]:
        """Normalised images (B, C, H, W) of each micro-batch."""
        for micro in plan:
            index = torch.tensor(micro.index)
            if self.images.device.type == "cuda":  # from pinned memory, so that nobody waits for the copy
                index = index.pin_memory().to(self.images.device, non_blocking=True)
            yield augment(self.images[index], recipe, mix(micro.seed, "crop")), micro


class Loaded(NamedTuple):
    """What a worker hands over: crops or whole pictures (B, C, H, W), or pictures for the device to decode."""

    images: Tensor | None
    packed: gpu_decoding.Packed | None
    whole: bool
    micro: Micro
    bad: list[Bad]


class Files(Dataset):
    """Micro-batches made by worker processes: decoded and cropped, decoded only (`whole`), or left to the device."""

    def __init__(self, pictures: Sequence[Picture], recipe: Recipe, whole: bool = False, on_gpu: bool = False) -> None:
        self.pictures, self.recipe, self.whole, self.on_gpu = pictures, recipe, whole, on_gpu
        self.pixels = recipe.pixels

    def __getitem__(self, micro: Micro) -> Loaded:
        """A micro-batch in the pictures' own units, and what could not be read."""
        bad: list[Bad] = []
        if self.on_gpu:
            return Loaded(
                None, gpu_decoding.pack([self.read(number, bad, True) for number in micro.index]), False, micro, bad
            )
        pictures = [self.read(number, bad) for number in micro.index]
        whole = self.whole and len({picture.shape for picture in pictures}) == 1
        images = torch.stack(pictures) if whole else cut(pictures, self.recipe, mix(micro.seed, "crop"))
        return Loaded(images, None, whole, micro, bad)

    def read(self, number: int, bad: list[Bad], undecoded: bool = False) -> Tensor:
        """One picture (C, H, W), or the next that can be read; if asked, the bytes (n,) of one that the GPU can decode.

        Raises DataError after TRIES failures (of all pictures, if any number of them is allowed to fail), MachineError
        if the file is not to blame.
        """
        tries = len(self.pictures) if self.recipe.allow_skipped else TRIES
        for _ in range(tries):
            name, beyond = f"picture {number}", number + 1
            try:
                picture = self.pictures[number]
                name = str(picture)
                if undecoded and (data := gpu_decoding.suited(picture)) is not None:
                    return data
                return torch.from_numpy(self.pixels.read(picture))
            except UnreadableError as error:
                name, beyond = error.name, error.beyond
                bad.append((name, error.reason, error.pictures))
            except Exception as error:  # decoders of broken files raise anything
                bad.append((name, blame(name, error).removeprefix(f"{name}: "), 1))
            number = beyond % len(self.pictures)
        raise DataError(f"{tries} pictures in a row cannot be read, the last {name}: {bad[-1][1]}")


class Stream:
    """Pictures too many for memory, or larger than the encoder sees: read by `recipe.workers` processes ahead.

    whole  pictures of one size arrive as they are and are cropped on the device; others are cropped by the workers
    """

    def __init__(self, pictures: Sequence[Picture], device: torch.device, whole: bool = False) -> None:
        self.files, self.device, self.whole, self.skipped = pictures, device, whole, Skipped()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def layout(self) -> int | ShardOrder:
        """What `order.plan` shuffles."""
        return getattr(self.files, "order", len(self))

    def loaded(self, plan: Iterable[Micro], recipe: Recipe) -> Iterator[Loaded]:
        """Micro-batches as the workers make them; pictures that cannot be read are replaced and named."""
        jpeg_decoder()  # imported before workers are forked: each would spend seconds on it
        on_gpu = recipe.decode == "gpu"
        if on_gpu:
            gpu_decoding.check(recipe, self.device)
        if hasattr(self.files, "prepared"):
            plan = self.files.prepared(plan)  # remote shards are fetched before workers ask for them
        seen = 0
        loader = DataLoader(
            Files(self.files, recipe, self.whole, on_gpu),
            batch_size=None,  # an item is a micro-batch already
            sampler=plan,
            num_workers=recipe.workers,
            prefetch_factor=AHEAD if recipe.workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=partial(quiet, trainer=os.getpid()),
        )
        for found in loader:
            for bad in found.bad:
                self.skipped.note(*bad)
            seen += len(found.micro.index)
            self.skipped.check(seen, len(self), recipe.allow_skipped)
            yield found

    def pictures(self, plan: Iterable[Micro], recipe: Recipe) -> Iterator[tuple[Tensor, Micro]]:
        """Crops, or whole pictures, of each micro-batch as the workers make them, in their own units."""
        for found in self.loaded(plan, recipe):
            yield found.images, found.micro

    def batches(self, plan: Iterable[Micro], recipe: Recipe) -> Iterator[tuple[Tensor, Micro]]:
        """Normalised images (B, C, H, W) of each micro-batch, on the device."""
        reader = Files(self.files, recipe)
        for found in self.loaded(plan, recipe):
            seed = mix(found.micro.seed, "crop")
            if found.packed is not None:
                bad: list[Bad] = []
                again = [partial(reader.read, number, bad) for number in found.micro.index]
                pictures = gpu_decoding.unpacked(found.packed, self.device, again)
                for broken in bad:
                    self.skipped.note(*broken)
                yield recipe.pixels.normalise(cut(pictures, recipe, seed)), found.micro
                continue
            images = found.images.to(self.device, non_blocking=True)
            yield augment(images, recipe, seed) if found.whole else recipe.pixels.normalise(images), found.micro


def check_shared_memory(recipe: Recipe, whole_sides: tuple[int, int] | None = None) -> None:
    """Whether what workers hand over fits into shared memory, for all processes of this machine together.

    whole_sides  height and width of pictures that are handed over uncropped
    Raises MachineError that says what to do; nothing is checked where the system has no such place.
    """
    if not recipe.workers or not SHARED.is_dir():
        return
    pixels, micro = recipe.pixels, min(recipe.micro_batch, recipe.batch)
    H, W = whole_sides or recipe.sides
    each = micro * pixels.channels * H * W * (1 if pixels.depth == "uint8" else 4)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # One more than those that wait: the one that is being made.
    needed, free = each * recipe.workers * (AHEAD + 1) * processes, shutil.disk_usage(SHARED).free
    if needed > free:
        fits = int(free // (each * (AHEAD + 1) * processes))
        raise MachineError(
            f"{processes} x {recipe.workers} workers keep up to {AHEAD + 1} micro-batches of {micro} pictures each in "
            f"{SHARED}: {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free. Take --workers {fits}"
            + (", " if fits else " (slow), ")
            + f"a smaller --micro-batch, or more room: docker run --shm-size {math.ceil(needed / 1e9) + 1}g"
        )


@contextmanager
def told_plainly() -> Iterator[None]:
    """What goes wrong in a worker process becomes an error of one sentence.

    TRAP: torch raises the death of a worker from a signal handler, wherever the training process happens to be.
    """
    try:
        yield
    except (DataError, MachineError) as error:
        if "Traceback" not in str(error):
            raise
        # a worker's text is its whole traceback, the sentence at its end
        raise type(error)(str(error).strip().splitlines()[-1].split("Error: ", 1)[-1]) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise death(error) from None
    except (ConnectionError, EOFError):  # a worker died while it handed over: the signal may come a moment later
        try:
            time.sleep(MOMENT)
        except RuntimeError as error:
            raise death(error) from None
        raise


def death(error: RuntimeError) -> DataError:
    """What torch says of a worker that died, and what to do."""
    return DataError(
        f"a process that decodes pictures died ({str(error).splitlines()[0]}): out of memory? Lower workers or "
        "micro_batch; --resume auto continues from the last checkpoint"
    )


def quiet(_: int, trainer: int) -> None:
    """Workers decode on one thread each and leave signals to the training process.

    TRAP: launchers send SIGTERM to whole groups of processes; a worker that died of it would cost the last save.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on every system
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=obey, args=(trainer,), daemon=True).start()


def obey(trainer: int) -> None:
    """Leave on a SIGTERM of the training process, which ends its workers so, and on nobody else's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid not in (trainer, os.getppid()):
        pass
    os._exit(0)
