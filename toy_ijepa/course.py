"""What every chapter needs beside its idea: pictures, shipped weights, figures with a description."""

# Shape legend:  S pictures  C channels  H,W pixels

from __future__ import annotations

import base64
import html
import io
import os
import platform
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from toy_ijepa.data import load, photographs
from toy_ijepa.environment import import_torchvision
from toy_ijepa.folders import ImageSet, cache_root
from toy_ijepa.recipe import load_model
from toy_ijepa.training import uses_bf16

ASSETS = Path(__file__).parents[1] / "assets"
QUICK_STEPS = 10  # of a training that only has to run: one mean over ten steps, which is what curves are made of
QUICK_PICTURES = 200  # of a split: three batches of a training, and enough for every cell to run


@cache
def kind() -> str:
    """ "cifar10" if it is here or can be fetched, otherwise "shapes"; says which, once."""
    found, why = photographs(otherwise="shapes")
    if found == "shapes":
        print(f"Pictures: {why}.")
        print("Everything runs; numbers and pictures differ from those printed in the text.")
    else:
        print("Pictures: CIFAR-10, 32 x 32 pixels, ten classes.")
    return found


@cache
def source(name: str | None = None) -> str:
    """The set that this course uses here (default: `kind`), as `--data` takes it, or a small part of it for tests."""
    if not quick():
        return name or kind()
    print("IJEPA_QUICK is set: few pictures and few steps, for tests. Nothing that is printed here is worth storing.")
    return f"folder:{small_part(name or kind())}"


def small_part(name: str) -> Path:
    """A folder with QUICK_PICTURES of each split of a set, written once: whatever reads it is quick."""
    where = zlib.crc32(os.environ.get("IJEPA_DATA", "").encode())  # other pictures of that name are another part
    root = cache_root() / "quick" / f"{name}-{QUICK_PICTURES}-{where:08x}"
    if not root.is_dir():
        part = root.with_name(f"{root.name}.{os.getpid()}.part")
        for split in ("train", "test"):
            found = load(name, split)
            for number in shuffled(len(found))[:QUICK_PICTURES].tolist():
                folder = part / split / found.classes[found.labels[number]]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(found.images[number].permute(1, 2, 0).numpy()).save(folder / f"{number:05}.png")
        with suppress(OSError):  # another process was first
            part.rename(root)
        shutil.rmtree(part, ignore_errors=True)
    return root


def shuffled(count: int) -> Tensor:
    """Numbers of pictures in an order that is always the same."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def pictures(split: str = "train", count: int | None = None) -> ImageSet:
    """CIFAR-10, or `shapes` where it cannot be had; the first `count` pictures of a fixed shuffle, or all.

    Folders are sorted by class, so without the shuffle the first thousand pictures would all be aeroplanes.
    """
    found = load(source(), split)
    if count is None:
        return found
    order = shuffled(len(found))[:count]
    factors = {name: value[order] for name, value in found.factors.items()}
    return ImageSet(found.images[order], found.labels[order], found.classes, factors)


def hurried() -> bool:
    """Whether the reader is in a hurry (environment variable IJEPA_HURRY=1): long trainings load shipped weights."""
    return quick() or os.environ.get("IJEPA_HURRY", "0") not in ("", "0")


def quick() -> bool:
    """Whether nobody reads along (environment variable IJEPA_QUICK=1, set by `make test`): every cell runs, few learn.

    Cells whose checks need the whole training are tagged "whole"; pytest reports them as not checked.
    """
    return os.environ.get("IJEPA_QUICK", "0") not in ("", "0")


def steps(whole: int, hurry: int | None = None, tests: int = QUICK_STEPS) -> int:
    """How many optimiser steps to train for: `whole`; `hurry` for a reader in a hurry; at most `tests` for tests."""
    asked = hurry if hurry is not None and hurried() else whole
    return min(asked, tests) if quick() else asked


def few(whole: int, hurry: int | None = None, tests: int = QUICK_PICTURES) -> int:
    """How many pictures to draw or to train on, in the same way."""
    return steps(whole, hurry, tests)


def pretrained(method: str = "ijepa", data: str | None = None) -> nn.Module:
    """The shipped toy: `method` "ijepa" or "mae", trained on `data` (default: the pictures that this course uses here).

    How it was trained stands in assets/weights/README.md. Raises FileNotFoundError if there is no such file.
    """
    model, _ = load_model(ASSETS / "weights" / f"{method}-{data or kind()}.safetensors")
    return model


def show(figure: Figure, alt: str, dpi: int = 90) -> None:
    """Show a figure with a description `alt` for those who cannot see it.

    JupyterLab gives plain images no description, so the picture is sent as HTML too.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    data = base64.b64encode(buffer.getvalue()).decode()
    picture = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
    bundle = {"image/png": data, "text/html": picture, "text/plain": alt}
    display(bundle, raw=True, metadata={"image/png": {"alt": alt}})


def part_of(kind: type) -> Callable[[Callable], Callable]:
    """Decorator: the function becomes a method of `kind`, so that a long class can be read in several cells."""

    def add(method: Callable) -> Callable:
        setattr(kind, method.__name__, method)
        return method

    return add


@contextmanager
def stopwatch(what: str) -> Iterator[None]:
    """Print how long the body took, rounded: "training: about 42 s"."""
    begun = time.perf_counter()
    yield
    print(f"{what}: about {time.perf_counter() - begun:.0f} s")


def environment() -> None:
    """Print what the course runs on. Raises MachineError if torch and torchvision do not fit each other."""
    import_torchvision()
    device = torch.device("cpu")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"bf16 on this processor: {'yes, used for training' if uses_bf16(device) else 'no, training runs in fp32'}")
    print(f"graphics card: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none, none needed'}")
    print(f"in a hurry (IJEPA_HURRY): {'yes' if hurried() else 'no'}")
