from __future__ import annotations

import errno
import os
import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import datasets

from toy_ijepa import decoding, folders
from toy_ijepa.data import load, resize
from toy_ijepa.environment import MachineError


def paint(path: Path, colour=(10, 200, 30), size=(8, 8), mode="RGB", **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **options)


@pytest.fixture
def tree(tmp_path):
    """NAME/{train,test}/<class>/*: two classes, one colour each."""
    root = tmp_path / "pictures"
    for split, count in (("train", 3), ("test", 2)):
        for i in range(count):
            paint(root / split / "ants" / f"{i}.png", (255, 0, 0))
            paint(root / split / "bees" / f"{i}.png", (0, 0, 255))
    return root


def test_tree_with_classes(tree):
    train, test = load(f"folder:{tree}", "train"), load(f"folder:{tree}", "test")
    assert train.images.shape == (6, 3, 8, 8)
    assert train.images.dtype == torch.uint8
    assert (train.classes, len(test)) == (("ants", "bees"), 4)
    for image, label in zip(train.images, train.labels, strict=True):
        assert image[:, 3, 3].tolist() == ([255, 0, 0] if label == 0 else [0, 0, 255])


def test_flat_folder_without_classes(tmp_path):
    for i in range(11):
        paint(tmp_path / "flat" / f"{i:02}.png")
    train, test = load(f"folder:{tmp_path / 'flat'}"), load(f"folder:{tmp_path / 'flat'}", "test")
    assert (len(train), len(test), train.classes) == (9, 2, ())
    assert train.labels.eq(-1).all()


def test_unreadable_and_truncated_are_skipped_counted_and_named(tree):
    whole = tree / "train" / "ants" / "9.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).resize((8, 8)).save(whole)
    (tree / "train" / "ants" / "7.jpg").write_bytes(whole.read_bytes()[:-200])
    (tree / "train" / "bees" / "8.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"2 of 9 pictures cannot be read, more than 5%.*--allow-skipped"):
        load(f"folder:{tree}")
    assert not list(folders.cache_root().rglob("*"))
    with pytest.warns(UserWarning, match="2 of 9 pictures skipped"):
        train = load(f"folder:{tree}", allow_skipped=True)
    with pytest.warns(UserWarning, match="2 of 9 pictures skipped"):
        load(f"folder:{tree}", allow_skipped=True)  # from the cache: said again
    with pytest.raises(ValueError, match="2 of 9 pictures cannot be read"):
        load(f"folder:{tree}")  # the cache forgets nothing
    assert len(train) == 7
    assert {Path(s.split(": ")[0]).name for s in train.skipped} == {"7.jpg", "8.png"}


def test_a_few_broken_files_are_left_out_without_asking(tmp_path):
    for i in range(49):
        paint(tmp_path / "p" / f"{i:02}.png")
    (tmp_path / "p" / "00.png").write_text("not a picture")  # 1 of the 39 for training
    with pytest.warns(UserWarning, match=r"1 of 40 pictures skipped: .*00\.png"):
        assert len(load(f"folder:{tmp_path / 'p'}")) == 39


def breaks_after(count, what):
    """A reader of pixels that works `count` times and then raises `what` for every file."""
    read, left = decoding.read_pixels, iter(range(count))

    def reader(path):
        if next(left, None) is None:
            raise what
        return read(path)

    return reader


@pytest.mark.parametrize(
    "what",
    [
        ImportError("operator torchvision::nms does not exist"),
        MemoryError(),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EIO, "Input/output error"),
    ],
    ids=lambda error: type(error).__name__ + str(getattr(error, "errno", "")),
)
def test_what_would_hit_every_file_stops_and_is_never_remembered(what, tree, monkeypatch):
    """Half of the files are read, then the machine fails: no picture is called broken, and nothing is cached."""
    with monkeypatch.context() as broken:
        broken.setattr(decoding, "read_pixels", breaks_after(3, what))
        with pytest.raises(MachineError, match=r"reading stopped at .*not the picture's fault"):
            load(f"folder:{tree}", allow_skipped=True)
    assert not list(folders.cache_root().rglob("*"))
    assert len(load(f"folder:{tree}")) == 6  # mended: all of them


def test_a_decoder_that_breaks_half_way_is_found_out(tree, monkeypatch):
    """It raises what a broken file raises; a picture that is known to be whole tells the two apart."""
    with monkeypatch.context() as broken:
        broken.setattr(decoding, "read_pixels", breaks_after(3, RuntimeError("decoding failed")))
        broken.setattr(decoding, "jpeg_decoder", lambda: lambda data: 1 / 0)
        with pytest.raises(MachineError, match="known to be whole fails too"):
            load(f"folder:{tree}", allow_skipped=True)
    assert not list(folders.cache_root().rglob("*"))
    assert len(load(f"folder:{tree}")) == 6


def test_classes_are_numbered_once_for_both_splits(tree):
    """A class that the test split lacks must not shift the others."""
    paint(tree / "train" / "aardvarks" / "0.png", (0, 255, 0))
    train, test = load(f"folder:{tree}"), load(f"folder:{tree}", "test")
    assert train.classes == test.classes == ("aardvarks", "ants", "bees")
    assert set(test.labels.tolist()) == {1, 2}
    paint(tree / "test" / "wasps" / "0.png")
    with pytest.raises(ValueError, match="class 'wasps' that"):
        load(f"folder:{tree}", "test")


def test_links_are_followed_and_hidden_folders_are_not(tree, tmp_path):
    paint(tmp_path / "elsewhere" / "0.png", (0, 255, 0))
    (tree / "train" / "cats").symlink_to(tmp_path / "elsewhere")
    paint(tree / "train" / ".thumbnails" / "0.png")
    assert load(f"folder:{tree}").classes == ("ants", "bees", "cats")


def test_names_of_old_disks_need_not_be_utf8(tree):
    """Latin-1, for instance."""
    paint(tree / "train" / "ants" / os.fsdecode(b"Gem\xe4lde.png"))
    assert len(load(f"folder:{tree}")) == 7


def test_a_cache_that_is_no_folder_costs_the_cache_only(tree, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IJEPA_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="decoded pictures not cached"):
        assert len(load(f"folder:{tree}")) == 6


def test_a_circle_of_links_ends(tree):
    (tree / "train" / "ants" / "again").symlink_to(tree / "train", target_is_directory=True)
    (tree / "train" / "ants" / "self").symlink_to(tree / "train" / "ants", target_is_directory=True)
    found = folders.classes_below(tree / "train")
    assert len(found) == len(set(found)) == 6


def test_what_systems_leave_behind_is_no_picture(tree):
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._0.png", "._x.jpg"):
        (tree / "train" / "ants" / name).write_bytes(b"\x00\x05\x16\x07")
    for place in ("train/__MACOSX/ants/._0.jpg", "train/ants/@eaDir/0.png/preview.jpg"):
        paint(tree / place, (0, 255, 0))
    found = load(f"folder:{tree}")
    assert (len(found), found.classes, found.skipped) == (6, ("ants", "bees"), ())


def test_files_that_vanish_while_they_are_read_are_named(tree, monkeypatch):
    """One before its size is asked for, one after; a dangling link is the same."""
    listing, marking = folders.find, folders.fingerprint

    def find(*args):
        found = listing(*args)
        (tree / "train" / "ants" / "0.png").unlink()
        return found

    def fingerprint(*args):
        found = marking(*args)
        (tree / "train" / "bees" / "1.png").unlink()
        return found

    (tree / "train" / "bees" / "9.png").symlink_to(tree / "nowhere.png")
    monkeypatch.setattr(folders, "find", find)
    monkeypatch.setattr(folders, "fingerprint", fingerprint)
    with pytest.warns(UserWarning, match="3 of 7 pictures skipped"):
        found = load(f"folder:{tree}", allow_skipped=True)
    assert len(found) == 4
    for name in ("ants/0.png", "bees/1.png", "bees/9.png"):
        assert any(f"{name}: " in line and "No such file" in line for line in found.skipped)


def test_loose_pictures_beside_classes_are_refused(tree):
    paint(tree / "train" / "loose.png")
    with pytest.raises(ValueError, match="1 pictures lie loose"):
        load(f"folder:{tree}")


def test_huge_pictures_ask_for_a_size(tree, monkeypatch):
    monkeypatch.setattr(folders, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="give --image-size"):
        load(f"folder:{tree}")
    assert load(f"folder:{tree}", image_size=4).images.shape == (6, 3, 4, 4)


def test_pictures_of_different_sizes_are_brought_to_one(tree):
    paint(tree / "train" / "ants" / "wide.png", (255, 0, 0), size=(40, 20))
    with pytest.warns(UserWarning, match="brought to 32 px"):
        assert load(f"folder:{tree}").images.shape == (7, 3, 32, 32)
    assert load(f"folder:{tree}", image_size=12).images.shape == (7, 3, 12, 12)


def test_decoded_once_and_again_when_the_source_changes(tree, monkeypatch):
    calls = []
    read = decoding.read_picture
    monkeypatch.setattr(decoding, "read_picture", lambda path: calls.append(path) or read(path))
    first, second = load(f"folder:{tree}"), load(f"folder:{tree}")
    assert len(calls) == 6
    assert torch.equal(first.images, second.images)
    assert first.classes == second.classes
    paint(tree / "train" / "bees" / "new.png", (0, 0, 255))
    assert len(load(f"folder:{tree}")) == 7
    assert len(calls) == 6 + 7


def test_a_broken_cache_is_decoded_again(tree):
    first = load(f"folder:{tree}")
    (cached,) = (folders.cache_root() / "decoded").iterdir()
    cached.write_bytes(cached.read_bytes()[:100])
    assert torch.equal(load(f"folder:{tree}").images, first.images)


def planted(**changes) -> tuple[dict, dict]:
    """Tensors and description of a cache of three pictures, some of it changed."""
    tensors = dict(images=torch.zeros(3, 3, 8, 8, dtype=torch.uint8), labels=torch.zeros(3, dtype=torch.int64))
    about = dict(fingerprint="mark", classes='["ants"]', skipped="[]")
    return (
        {name: changes.get(name, value) for name, value in tensors.items()},
        {name: changes.get(name, value) for name, value in about.items()},
    )


@pytest.mark.parametrize(
    "changes",
    [
        dict(images=torch.zeros(3, 3, 8, 8)),
        dict(images=torch.zeros(3, 5, 8, 8, dtype=torch.uint8)),
        dict(images=torch.zeros(3, 3, 8, dtype=torch.uint8)),
        dict(images=torch.zeros(2, 3, 8, 8, dtype=torch.uint8)),
        dict(labels=torch.full((3,), 7)),
        dict(labels=torch.zeros(3)),
        dict(classes="not JSON"),
        dict(classes="7"),
        dict(fingerprint="another"),
    ],
)
def test_a_cache_that_somebody_else_wrote_is_used_only_if_it_is_one(tmp_path, changes):
    for part in ({}, changes):
        tensors, about = planted(**part)
        save_file(tensors, tmp_path / "cache.safetensors", metadata=about)
        assert (folders.read_cache(tmp_path / "cache.safetensors", "mark") is None) == bool(part)


def test_nothing_in_a_cache_is_executed(tmp_path):
    class Planted:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save(dict(images=Planted()), tmp_path / "cache.safetensors")
    assert folders.read_cache(tmp_path / "cache.safetensors", "mark") is None
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_costs_only_the_cache(tree, monkeypatch):
    def full(_tensors, part, **_options):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "save_file", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert len(load(f"folder:{tree}")) == 6
    assert not list((folders.cache_root() / "decoded").iterdir())


def test_a_tree_under_ijepa_data_stands_in_for_a_download(tree, monkeypatch):
    monkeypatch.setenv("IJEPA_DATA", str(tree.parent))
    tree.rename(tree.parent / "cifar10")
    assert load("cifar10").classes == ("ants", "bees")


def test_torchvision_files_are_read(tmp_path, monkeypatch):
    """The real reader of torchvision on a tiny set in CIFAR's own format."""
    import hashlib
    import pickle

    base = folders.cache_root() / "downloads" / datasets.CIFAR10.base_folder
    base.mkdir(parents=True)

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    pixels = np.arange(2 * 3072, dtype=np.int64).reshape(2, 3072).astype(np.uint8)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [write("data_batch_1", {"data": pixels, "labels": [3, 1]})])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [write("test_batch", {"data": pixels, "labels": [0, 2]})])
    name, digest = write("batches.meta", {"label_names": ["a", "b", "c", "d"]})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": digest})
    train = load("cifar10")
    assert torch.equal(train.images, torch.from_numpy(pixels).reshape(2, 3, 32, 32))
    assert (train.labels.tolist(), train.classes) == ([3, 1], ("a", "b", "c", "d"))
    assert load("cifar10", "test", image_size=16).images.shape == (2, 3, 16, 16)


def test_no_network_says_where_to_put_the_files(monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(datasets, "CIFAR100", unreachable)
    with pytest.raises(ValueError, match=r"IJEPA_DATA.*--data shapes needs no download"):
        load("cifar100")


def test_bad_names_and_folders(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        load("cifar_10")
    with pytest.raises(ValueError, match="no split 'valid'"):
        load("shapes", "valid")
    with pytest.raises(ValueError, match="no pictures in"):
        load(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="no folder"):
        load("folder:/nowhere/at/all")
    with pytest.raises(ValueError, match="image size 0"):
        load("shapes", image_size=0)
    (tmp_path / "only.png").write_text("broken")
    with pytest.raises(ValueError, match="none of the 1 pictures"), warnings.catch_warnings():
        load(f"folder:{tmp_path}")


def test_resize_keeps_the_middle_square():
    images = torch.zeros(1, 3, 8, 16, dtype=torch.uint8)
    images[..., 4:12] = 200
    assert resize(images, 8).eq(200).all()
    assert resize(images, 4).shape == (1, 3, 4, 4)


def test_real_cifar10(real_data):
    test = load("cifar10", "test")
    assert test.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    assert test.classes[:2] == ("airplane", "automobile")
    assert 110 < test.images.float().mean() < 130  # photographs, not noise or black
