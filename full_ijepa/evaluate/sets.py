"""Labelled sets to transfer to, by name: what torchvision downloads and checks, its pictures decoded when asked for."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from full_ijepa.data import mix
from toy_ijepa.folders import DataError, cache_root

# Name: torchvision's class, its arguments for the training part and for the test part. None: the set has one part,
# of which a fifth, drawn once for everybody, is the test part.
SETS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "caltech101": ("Caltech101", {}, None),
    "caltech256": ("Caltech256", {}, None),
    "clevr-count": ("CLEVRClassification", {"split": "train"}, {"split": "val"}),  # its test part has no labels
    "country211": ("Country211", {"split": "train"}, {"split": "test"}),
    "dtd": ("DTD", {"split": "train"}, {"split": "test"}),
    "emnist": ("EMNIST", {"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
    "eurosat": ("EuroSAT", {}, None),
    "fashionmnist": ("FashionMNIST", {"train": True}, {"train": False}),
    "fgvcaircraft": ("FGVCAircraft", {"split": "trainval"}, {"split": "test"}),
    "flowers102": ("Flowers102", {"split": "train"}, {"split": "test"}),
    "food101": ("Food101", {"split": "train"}, {"split": "test"}),
    "gtsrb": ("GTSRB", {"split": "train"}, {"split": "test"}),
    "fer2013": ("FER2013", {"split": "train"}, {"split": "test"}),
    "imagenette": ("Imagenette", {"split": "train"}, {"split": "val"}),
    # The paper's; torchvision has its training and validation pictures as one part, so figures are not the paper's.
    "inaturalist18": ("INaturalist", {"version": "2018"}, None),
    "inaturalist21-mini": ("INaturalist", {"version": "2021_train_mini"}, {"version": "2021_valid"}),
    "kmnist": ("KMNIST", {"train": True}, {"train": False}),
    "mnist": ("MNIST", {"train": True}, {"train": False}),
    "omniglot": ("Omniglot", {"background": True}, None),  # its other part has other characters
    "oxfordiiitpet": ("OxfordIIITPet", {"split": "trainval"}, {"split": "test"}),
    "pcam": ("PCAM", {"split": "train"}, {"split": "test"}),  # needs h5py
    "places365": ("Places365", {"split": "train-standard", "small": True}, {"split": "val", "small": True}),
    "qmnist": ("QMNIST", {"what": "train"}, {"what": "test"}),
    "renderedsst2": ("RenderedSST2", {"split": "train"}, {"split": "test"}),
    "semeion": ("SEMEION", {}, None),
    "stanfordcars": ("StanfordCars", {"split": "train"}, {"split": "test"}),
    "sun397": ("SUN397", {}, None),
    "svhn": ("SVHN", {"split": "train"}, {"split": "test"}),
    "usps": ("USPS", {"train": True}, {"train": False}),
}


BY_HAND = ("FER2013",)  # those that torchvision does not download


class Pictures:
    """Pictures of a torchvision set, of any sizes, decoded one at a time: `index` says which, in which order."""

    def __init__(self, source: Any, index: Tensor) -> None:
        self.source, self.index = source, index

    def __getitem__(self, part: slice | Tensor) -> Pictures:
        return Pictures(self.source, self.index[part])

    def at(self, sides: tuple[int, int]) -> Tensor:
        """uint8 RGB (S, 3, H, W): scaled to cover sides (H, W), then the middle cut out."""
        return torch.stack([fitted(self.source[i][0], sides) for i in self.index.tolist()])


def fitted(picture: Image.Image, sides: tuple[int, int]) -> Tensor:
    """One picture as uint8 RGB (3, H, W)."""
    fitted = ImageOps.fit(picture.convert("RGB"), sides[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def fetch(name: str, split: str) -> tuple[Pictures, Tensor, tuple[str, ...]]:
    """Pictures, labels (S,) and class names of the "train" or "test" part of one of SETS.

    Labels count from 0 over the classes that the training part has. Raises DataError (a ValueError) if the set cannot
    be had.
    """
    kind, train, test = SETS[name]
    source = part_of(name, kind, train)
    all_labels, names = (
        labels_of(source),
        [str(label) for label in getattr(source, "classes", getattr(source, "all_categories", ()))],
    )
    values = all_labels.unique()  # CLEVR's counts begin at 3
    classes = tuple(names[v] if v < len(names) else str(v) for v in values.tolist())
    if test is None:
        index = torch.randperm(len(all_labels), generator=torch.Generator().manual_seed(mix("parts of a set")))
        held = len(index) // 5
        index = index[:held] if split == "test" else index[held:]
    else:
        if split == "test":
            source = part_of(name, kind, test)
            all_labels = labels_of(source)
        index = torch.isin(all_labels, values).nonzero()[:, 0]
    return Pictures(source, index), torch.searchsorted(values, all_labels[index]), classes


def part_of(name: str, kind: str, arguments: dict[str, Any]) -> Any:
    """A torchvision set, downloaded and checked by torchvision if it is not there yet."""
    from torchvision import datasets  # a slow import that only these sets need

    root = cache_root() / "downloads"
    make = partial(getattr(datasets, kind), root, **arguments)
    try:
        root.mkdir(parents=True, exist_ok=True)
        if kind in BY_HAND:
            return make()
        try:
            return make(download=False)
        except (OSError, RuntimeError):
            return make(download=True)  # some refuse this once the files are there, so it is tried second
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise DataError(f"could not fetch {name} ({error}). Put its files under {root} as torchvision does") from error


def labels_of(source: Any) -> Tensor:
    """All labels of a torchvision set without decoding its pictures; each keeps them under a name of its own."""
    for name in ("targets", "labels", "_labels", "y"):
        if hasattr(source, name):
            found = torch.as_tensor(np.asarray(getattr(source, name))).long()
            return found if found.dim() == 1 else found[:, 0]  # QMNIST's first column is the digit
    if hasattr(source, "index"):  # iNaturalist's pairs of category and file
        return torch.tensor([label for label, _ in source.index])
    if hasattr(source, "h5py"):  # PCAM's labels lie in a file
        with source.h5py.File(source._base_folder / source._FILES[source._split]["targets"][0]) as file:
            return torch.from_numpy(file["y"][:].astype(np.int64)).flatten()
    pairs = source._flat_character_images if hasattr(source, "_flat_character_images") else source._samples
    return torch.tensor([label for _, label in pairs])
