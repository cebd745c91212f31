"""A folder of small pictures and a run of seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from full_ijepa import train
from full_ijepa.recipes.base import Recipe

COUNT, SIDE = 60, 16  # pictures of the folder, px


def draw_pictures(root: Path, count: int = COUNT, side: int = SIDE) -> Path:
    """Coloured gradients with noise in two class folders, train and test."""
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 200, side)
    for number in range(count):
        kind = number % 2
        picture = (ramp[None, :] if kind else ramp[:, None])[..., None] + random.integers(0, 56, (side, side, 3))
        for split in ("train", "test"):
            folder = root / split / ("across", "down")[kind]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number:03}.png")
    return root


@pytest.fixture(scope="package", autouse=True)
def few_are_watched() -> Iterator[None]:
    """A look at features takes as long as a step of these runs, which look after each: fewer pictures are enough."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(train, "WATCHED", 16)
        monkeypatch.setattr(train, "CROPS", 16)
        yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def recipe(pictures) -> Recipe:
    """15 optimiser steps of 8 images in two micro-batches, in fp32 so that numbers can be compared."""
    return Recipe(
        data=f"folder:{pictures}",
        image_size=16,
        encoder="toy",
        patch=4,
        predictor_width=32,
        predictor_depth=1,
        predictor_heads=2,
        predictor_mode="joint",
        groups=2,
        batch=8,
        micro_batch=4,
        epochs=2.0,
        warmup_epochs=0.5,
        lr=1e-3,
        momentum=(0.9, 1.0),
        drop_path=0.2,
        precision="fp32",
        workers=0,
        log_every=1,
        checkpoint_epochs=0.5,
        probe_epochs=1.0,
    )
