"""Sets of torchvision, laid out as torchvision lays them out, from files made here: the right picture to each label."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from full_ijepa.evaluate.pictures import labelled
from full_ijepa.evaluate.sets import BY_HAND, SETS, fetch, labels_of
from toy_ijepa.folders import DataError


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("IJEPA_CACHE", str(tmp_path))
    return tmp_path / "downloads"


def paint(path, grey: int, size: tuple[int, int] = (30, 20)) -> None:
    """A plain picture whose brightness names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)


def brightness(pictures, side: int = 8) -> list[int]:
    images = pictures.at((side, side))
    assert images.shape[1:] == (3, side, side)
    return images.float().mean((1, 2, 3)).round().int().tolist()


def test_clevr_counts_objects(downloads):
    base = downloads / "clevr" / "CLEVR_v1.0"
    for split, counts in (("train", [3, 10, 7, 3]), ("val", [7, 3])):
        scenes = []
        for number, count in enumerate(counts):
            name = f"CLEVR_{split}_{number:06}.png"
            paint(base / "images" / split / name, 20 * count)
            scenes.append(dict(image_filename=name, objects=[{}] * count))
        (base / "scenes").mkdir(exist_ok=True)
        (base / "scenes" / f"CLEVR_{split}_scenes.json").write_text(json.dumps(dict(scenes=scenes)))
    train, test = labelled("clevr-count", "train", 8), labelled("clevr-count", "test", 8)
    assert train.classes == test.classes == ("3", "7", "10")
    assert train.labels.tolist() == [0, 2, 1, 0]
    assert test.labels.tolist() == [1, 0]
    assert test.images()[:, 0, 0, 0].tolist() == [140, 60]
    few = labelled("clevr-count", "train", 8, most=2)
    assert [20 * int(train.classes[n]) for n in few.labels] == few.images()[:, 0, 0, 0].tolist()


def test_a_set_of_one_part_is_divided_once(downloads):
    for kind, name in enumerate(("Forest", "River")):
        for number in range(10):
            paint(downloads / "eurosat" / "2750" / name / f"{name}_{number}.png", 100 * kind + 10 * number)
    parts = {split: fetch("eurosat", split) for split in ("train", "test")}
    seen = {split: brightness(pictures) for split, (pictures, _, _) in parts.items()}
    assert len(seen["train"]) == 16
    assert sorted(seen["train"] + seen["test"]) == sorted(range(0, 200, 10))
    for split, (_, labels, classes) in parts.items():
        assert classes == ("Forest", "River")
        assert labels.tolist() == [value // 100 for value in seen[split]]


def test_numbering_follows_training_classes(downloads):
    """A test part without the first class must not shift the others."""
    root = downloads / "food-101"
    for split, names in (("train", ["apple_pie/1", "ramen/2", "sushi/3"]), ("test", ["ramen/4", "sushi/5"])):
        for name in names:
            paint(root / "images" / f"{name}.jpg", 40 * int(name[-1]))
        (root / "meta").mkdir(exist_ok=True)
        by = {kind: [n for n in names if n.startswith(kind)] for kind in ("apple_pie", "ramen", "sushi")}
        (root / "meta" / f"{split}.json").write_text(json.dumps(by))
    pictures, labels, classes = fetch("food101", "test")
    assert classes == ("apple_pie", "ramen", "sushi")
    assert labels.tolist() == [1, 2]
    assert brightness(pictures) == [160, 200]


def test_labels_kept_as_pairs_of_file_and_label(downloads):
    for number in (0, 1):
        paint(downloads / "gtsrb" / "GTSRB" / "Training" / f"{number:05}" / "a.ppm", 50 + number)
    pictures, labels, _ = fetch("gtsrb", "train")
    assert (labels.tolist(), brightness(pictures)) == ([0, 1], [50, 51])


def test_grey_digits_become_colour(downloads):
    """MNIST's own file format: a header of big-endian numbers, then bytes."""
    raw = downloads / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 3), ("t10k", 2)):
        pixels = np.arange(count, dtype=np.uint8).repeat(28 * 28)
        header = np.array([0x803, count, 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = np.array([7, 1, 7][:count], dtype=np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            np.array([0x801, count], dtype=">i4").tobytes() + labels.tobytes()
        )
    pictures, labels, classes = fetch("mnist", "train")
    assert classes == ("1 - one", "7 - seven")
    assert (labels.tolist(), brightness(pictures)) == ([1, 0, 1], [0, 1, 2])


def test_inaturalist_is_read_as_it_is_laid_out(downloads):
    for number, kind in enumerate(("Aves", "Fungi", "Aves")):  # species are numbered through
        for n in range(5):
            paint(downloads / "2018" / kind / f"{number:04}" / f"{n}.jpg", 20 + 50 * number + n)
    parts = [fetch("inaturalist18", split) for split in ("train", "test")]
    assert parts[0][2] == parts[1][2]
    assert [len(labels) for _, labels, _ in parts] == [12, 3]
    for pictures, labels, classes in parts:
        for label, grey in zip(labels.tolist(), brightness(pictures), strict=True):
            assert (grey - 20) // 50 == int(classes[label].rpartition("/")[2])


def test_pictures_in_one_file_of_hdf5(downloads):
    h5py = pytest.importorskip("h5py")
    (downloads / "pcam").mkdir(parents=True)
    for kind, key, values in (
        ("x", "images", np.full((2, 96, 96, 3), 90, np.uint8)),
        ("y", "targets", np.array([1, 0], np.uint8).reshape(2, 1, 1, 1)),
    ):
        with h5py.File(downloads / "pcam" / datasets.PCAM._FILES["train"][key][0], "w") as file:
            file[kind] = values
    pictures, labels, classes = fetch("pcam", "train")
    assert (labels.tolist(), classes, brightness(pictures)) == ([1, 0], ("0", "1"), [90, 90])


@pytest.mark.parametrize("name", SETS)
def test_arguments_are_those_of_torchvision(name):
    kind, train, test = SETS[name]
    known = [inspect.signature(c.__init__).parameters for c in getattr(datasets, kind).__mro__[:2]]
    for key in {*train, *(test or {})} | (set() if kind in BY_HAND else {"download"}):
        assert any(key in parameters for parameters in known), f"{kind} has no {key}"


def test_labels_under_any_name():
    for name in ("targets", "labels", "_labels", "y"):
        holder = type("Source", (), {name: [2, 0, 1]})()
        assert torch.equal(labels_of(holder), torch.tensor([2, 0, 1]))
    assert labels_of(type("Digits", (), {"targets": torch.tensor([[2, 9], [0, 8]])})()).tolist() == [2, 0]
    for name in ("index", "_flat_character_images", "_samples"):
        holder = type("Source", (), {name: [(2, "a"), (0, "b")] if name == "index" else [("a", 2), ("b", 0)]})()
        assert labels_of(holder).tolist() == [2, 0]


def test_a_set_that_cannot_be_had_says_where_it_belongs(downloads, monkeypatch):
    def refuse(*_, download, **__):
        raise RuntimeError("no network" if download else "not found")

    monkeypatch.setattr(datasets, "DTD", refuse)
    with pytest.raises(DataError, match=f"could not fetch dtd .no network.. Put its files under {downloads}"):
        labelled("dtd", "train", 8)
    with pytest.raises(ValueError, match="did you mean 'clevr-count'"):
        labelled("clevr", "train", 8)
