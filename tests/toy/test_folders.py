from __future__ import annotations

import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from toy_ijepa import folders
from toy_ijepa.data import load, resize


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


def test_every_kind_of_picture_becomes_rgb(tmp_path):
    root = tmp_path / "kinds"
    paint(root / "a_grey.png", (77, 77, 77), mode="L")
    paint(root / "b_cmyk.jpg", (77, 77, 77), mode="CMYK")
    Image.new("RGB", (8, 8), (77, 77, 77)).quantize(2).save(root / "c_palette.gif")
    Image.fromarray(np.full((8, 8), 77 * 257, dtype=np.uint16)).save(root / "d_16bit.png")
    frames = [Image.new("RGB", (8, 8), (v, v, v)) for v in (77, 200)]
    frames[0].save(root / "e_animated.gif", save_all=True, append_images=frames[1:])
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(root / "f_transparent.png")
    files = sorted(root.iterdir())
    for path in files[:-1]:
        array = folders.read_array(path, None)
        assert array.shape == (3, 8, 8), path.name
        assert np.abs(array.astype(int) - 77).max() <= 3, f"{path.name}: {array[:, 0, 0]}"
    assert folders.read_array(files[-1], None).min() == 255  # transparency lies on white


def test_dark_16_bit_stays_dark_and_floats_are_shares(tmp_path):
    Image.fromarray(np.full((4, 4), 255, dtype=np.uint16)).save(tmp_path / "dark.png")
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "half.tiff")
    assert folders.read_array(tmp_path / "dark.png", None).max() == 1
    assert folders.read_array(tmp_path / "half.tiff", None).min() == 128


def test_rotated_picture_is_turned_upright(tmp_path):
    picture = Image.new("RGB", (8, 4))
    picture.paste((255, 255, 255), (0, 0, 4, 4))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to view"
    picture.save(tmp_path / "turned.png", exif=exif)
    array = folders.read_array(tmp_path / "turned.png", None)
    assert array.shape == (3, 8, 4)
    assert array[:, :4].min() == 255  # top half white now
    assert array[:, 4:].max() == 0


def test_the_fast_way_through_jpeg_gives_the_same_pixels(tmp_path):
    """Colour, grey, progressive, coarse colours, turned, CMYK, and a PNG that calls itself JPEG; H != W, both odd."""
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((35, 21))
    turned = Image.Exif()
    turned[0x0112] = 8
    kinds = dict(plain={}, fine=dict(subsampling=0), progressive=dict(progressive=True), turned=dict(exif=turned))
    for name, options in kinds.items():
        picture.save(tmp_path / f"{name}.jpg", **options)
    picture.convert("L").save(tmp_path / "grey.jpeg")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.save(tmp_path / "disguised.jpg", format="PNG")
    fast = {p.stem for p in sorted(tmp_path.iterdir()) if folders.read_jpeg(p) is not None}
    assert fast == {*kinds, "grey"}
    for path in tmp_path.iterdir():
        slow = np.asarray(folders.read_picture(path)).transpose(2, 0, 1)
        assert slow.shape == ((3, 35, 21) if path.stem == "turned" else (3, 21, 35))
        assert np.array_equal(folders.read_pixels(path), slow), path.name


def test_unreadable_and_truncated_are_skipped_counted_and_named(tree):
    whole = tree / "train" / "ants" / "9.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).resize((8, 8)).save(whole)
    (tree / "train" / "ants" / "7.jpg").write_bytes(whole.read_bytes()[:-200])
    (tree / "train" / "bees" / "8.png").write_text("not a picture")
    with pytest.warns(UserWarning, match="2 of 9 pictures skipped"):
        train = load(f"folder:{tree}")
    with pytest.warns(UserWarning, match="2 of 9 pictures skipped"):
        load(f"folder:{tree}")  # from the cache: said again
    assert len(train) == 7
    assert {Path(s.split(": ")[0]).name for s in train.skipped} == {"7.jpg", "8.png"}


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
    read = folders.read_picture
    monkeypatch.setattr(folders, "read_picture", lambda path: calls.append(path) or read(path))
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
