"""Make book/gallery-cifar10.safetensors: real patches, with their features, to show predictions of photographs by.

IJEPA_DATA=FOLDER python -m book.gallery    needs CIFAR-10; the file holds single patches of 4x4 pixels, no pictures.
"""

from __future__ import annotations

from pathlib import Path

from book.files import shelf
from toy_ijepa import course
from toy_ijepa.data import load

PICTURES, PATCHES = 500, 2500

if __name__ == "__main__":
    order = course.shuffled(50_000)[:PICTURES]
    shelf(
        "ijepa-cifar10",
        load("cifar10", "train").images[order],
        PATCHES,
        Path(__file__).with_name("gallery-cifar10.safetensors"),
    )
