"""Pictures of every kind arrive as the numbers that stand in their files: channels, depth, range, rectangles."""

from __future__ import annotations

import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from full_ijepa import formats
from full_ijepa.data import Resident, Stream, draw_crops, probe_set, settled, training_set
from full_ijepa.evaluate.pictures import labelled
from full_ijepa.evaluate.run import evaluate, load_run
from full_ijepa.formats import Kind, describe, read_values
from full_ijepa.pixels import PHOTOGRAPHS, Pixels, compare, fit, measure, settle
from full_ijepa.train import pretrain
from toy_ijepa.data import resize
from toy_ijepa.decoding import DataError
from toy_ijepa.patches import normalise

H, W = 12, 20
CPU = torch.device("cpu")


def numbers(
    channels: int, dtype: str, low: int, high: int, seed: int = 0, size: tuple[int, int] = (H, W)
) -> np.ndarray:
    """(C, H, W) of whole numbers in a range, of any type."""
    return np.random.default_rng(seed).integers(low, high, (channels, *size)).astype(dtype)


def write_png_16(path, values: np.ndarray) -> None:
    """A 16-bit RGB PNG (3, H, W), byte by byte: Pillow cannot write one."""
    rows = values.transpose(1, 2, 0).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", values.shape[2], values.shape[1], 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def write_dicom(path, values: np.ndarray, **extra) -> None:
    """A grey DICOM picture (H, W) of 16 bit."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, generate_uid()
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.Rows, file.Columns, file.SamplesPerPixel = *values.shape, 1
    file.PhotometricInterpretation = "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation = 15, 0
    for name, value in extra.items():
        setattr(file, name, value)
    file.PixelData = values.astype("<u2").tobytes()
    file.save_as(path, enforce_file_format=True)


GREY, DEEP = numbers(1, "uint8", 0, 256), numbers(1, "uint16", 900, 1500)
COLOUR, FIVE = numbers(3, "uint8", 0, 256), numbers(5, "uint16", 0, 65536)
FLOATS = np.random.default_rng(1).normal(-3, 40, (1, H, W)).astype(np.float32)


def save(path, values: np.ndarray):
    """Write values (C, H, W) as the suffix of the path says."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, picture=values)
    elif path.suffix == ".dcm":
        write_dicom(path, values[0])
    elif path.suffix == ".tif":
        tifffile.imwrite(path, values if len(values) > 1 else values[0], photometric="minisblack")
    elif values.dtype == np.uint16 and len(values) == 3:
        write_png_16(path, values)
    else:
        Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0)).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("grey.png", GREY),
        ("colour.png", COLOUR),
        ("deep.png", DEEP),
        ("deep.tif", DEEP),
        ("deep-colour.png", numbers(3, "uint16", 900, 1500)),
        ("five.tif", FIVE),
        ("floats.tif", FLOATS),
        ("five.npy", FIVE),
        ("grey.npz", GREY[0]),
        ("wide.npy", numbers(1, "uint8", 0, 9)[0]),
        ("scan.dcm", DEEP),
    ],
)
def test_values_are_those_of_the_file(tmp_path, name, values):
    path = save(tmp_path / name, values)
    read = read_values(path, "channels")
    assert read.dtype == values.dtype
    assert np.array_equal(read, values.reshape(-1, H, W))
    assert describe(path) == Kind(W, H, len(read), str(values.dtype))


def test_channels_last_and_other_types(tmp_path):
    np.save(tmp_path / "last.npy", FIVE.transpose(1, 2, 0))
    assert np.array_equal(read_values(tmp_path / "last.npy", "channels"), FIVE)
    np.save(tmp_path / "signed.npy", FLOATS[0].astype(np.int32))
    read = read_values(tmp_path / "signed.npy", "channels")
    assert read.dtype == np.float32
    assert np.array_equal(read[0], FLOATS[0].astype(np.int32))
    np.save(tmp_path / "mask.npy", FLOATS[0] > 0)
    assert set(np.unique(read_values(tmp_path / "mask.npy", "channels"))) == {0, 255}
    for shape in ((H,), (2, 3, H, W), (5, 9, 5), (9, 5, 8), (30, 40, 50)):
        np.save(tmp_path / "odd.npy", np.zeros(shape))
        with pytest.raises(ValueError, match="is no picture"):
            read_values(tmp_path / "odd.npy", "channels")
    np.savez(tmp_path / "two.npz", a=GREY[0], b=GREY[0])
    with pytest.raises(ValueError, match="2 arrays"):
        read_values(tmp_path / "two.npz", "channels")


def test_nothing_that_executes_code_is_loaded(tmp_path):
    np.save(tmp_path / "planted.npy", np.array([[print]]), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        read_values(tmp_path / "planted.npy", "channels")


def test_stacks_are_channels_or_planes(tmp_path):
    stack = numbers(6, "uint16", 0, 60000).reshape(3, 2, H, W)  # three planes of two channels
    tifffile.imwrite(tmp_path / "stack.ome.tif", stack, metadata={"axes": "ZCYX"}, photometric="minisblack")
    tifffile.imwrite(tmp_path / "pages.tif", stack[:, 0], photometric="minisblack")
    assert np.array_equal(read_values(tmp_path / "stack.ome.tif", "channels"), stack.reshape(6, H, W))
    assert np.array_equal(read_values(tmp_path / "stack.ome.tif", "max"), stack.max(0))
    assert np.abs(read_values(tmp_path / "stack.ome.tif", "mean") - stack.mean(0)).max() <= 0.5
    assert [describe(tmp_path / "stack.ome.tif", s).channels for s in ("channels", "max", "mean")] == [6, 2, 2]
    pages = [read_values(tmp_path / "pages.tif", s) for s in ("channels", "max")]
    assert np.array_equal(pages[0], stack[:, 0])
    assert np.array_equal(pages[1], stack[:, 0].max(0)[None])


def test_dicom_says_what_its_numbers_mean(tmp_path):
    write_dicom(tmp_path / "ct.dcm", DEEP[0], RescaleSlope=2, RescaleIntercept=-1024)
    assert np.array_equal(read_values(tmp_path / "ct.dcm", "channels")[0], 2.0 * DEEP[0] - 1024)
    assert describe(tmp_path / "ct.dcm").depth == "float32"
    write_dicom(tmp_path / "film.dcm", DEEP[0], PhotometricInterpretation="MONOCHROME1")
    film = read_values(tmp_path / "film.dcm", "channels")[0].astype(int)
    assert np.array_equal(film, 65535 - DEEP[0].astype(int))


def test_dicom_without_its_library_is_said(tmp_path, monkeypatch):
    write_dicom(tmp_path / "scan.dcm", DEEP[0])
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(DataError, match="pip install"):
        describe(tmp_path / "scan.dcm")


def folder(root, kind: str, values, count: int = 8):
    """Two class folders, train and test, of files made by `values(number)`."""
    for split in ("train", "test"):
        for number in range(count):
            below = root / split / "ab"[number % 2]
            below.mkdir(parents=True, exist_ok=True)
            save(below / f"{number}.{kind}", values(number))
    return root


def paths_of(root):
    return sorted((root / "train").rglob("*.*"))


def test_channels_follow_from_the_pictures(tmp_path):
    grey = paths_of(folder(tmp_path / "grey", "png", lambda n: GREY))
    colour = paths_of(folder(tmp_path / "colour", "png", lambda n: COLOUR))
    deep = paths_of(folder(tmp_path / "deep", "png", lambda n: DEEP))
    five = paths_of(folder(tmp_path / "five", "tif", lambda n: FIVE))
    six = paths_of(folder(tmp_path / "six", "tif", lambda n: numbers(6, "uint16", 0, 9)))
    assert settle(grey) == (1, "uint8")
    assert settle(grey, asked=3) == (3, "uint8")
    assert settle(grey + colour) == (3, "uint8")  # grey among colour
    assert settle(deep) == (1, "uint16")
    assert settle(five) == (5, "uint16")
    assert settle(colour + deep[:2]) == (3, "uint8")  # two of sixteen bits among photographs, brought to eight
    with pytest.raises(DataError, match=r"8 files.*mean different things"):
        settle(grey + deep)
    with pytest.raises(DataError, match=r"5 channels \(8 files, .*--channels"):
        settle(five + six)


def test_twelve_bits_in_sixteen_do_not_become_black(tmp_path):
    root = folder(tmp_path, "png", lambda n: numbers(1, "uint16", 900, 1500, seed=n))
    files = paths_of(root)
    pixels = measure(files, Pixels(1, "uint16"))
    assert pixels.mean[0] == pytest.approx(1199.5, abs=15)
    assert pixels.std[0] == pytest.approx(600 / 12**0.5, rel=0.05)
    x = pixels.normalise(torch.from_numpy(read_values(files[0], "channels"))[None])
    assert abs(x.mean()) < 0.3
    assert 0.8 < x.std() < 1.2


def test_a_hot_pixel_does_not_stretch_the_scale(tmp_path):
    def spoilt(number):
        values = numbers(1, "uint16", 900, 1500, seed=number, size=(40, 60))
        values[0, 3, number] = 65535
        return values

    pixels = measure(paths_of(folder(tmp_path, "tif", spoilt, count=30)), Pixels(1, "uint16"))
    assert pixels.std[0] == pytest.approx(600 / 12**0.5, rel=0.2)


def test_flat_channels_and_foreign_numbers_are_refused(tmp_path):
    flat = numbers(2, "uint8", 0, 200)
    flat[1] = 7
    with pytest.raises(DataError, match="channel 1 is 7 in all 8 pictures"):
        measure(paths_of(folder(tmp_path / "flat", "npy", lambda n: flat)), Pixels(2, "uint8"))
    deep = Pixels(1, "uint16", (1200.0,), (170.0,))
    path = save(tmp_path / "grey.png", GREY)
    assert "uint8, those of the set uint16" in deep.read_fitted(path, None)
    assert "2 channels, the set 1" in Pixels(1).read_fitted(save(tmp_path / "two.npy", flat), None)
    broken = FLOATS.copy()
    broken[0, 0, 0] = np.nan
    assert "not finite" in Pixels(1, "float32").read_fitted(save(tmp_path / "nan.npy", broken), None)
    with pytest.raises(ValueError, match="3 channels, 1 are expected"):
        deep.normalise(torch.zeros(1, 3, 4, 4))
    for wrong in (dict(mean=(1.0, 2.0)), dict(std=(0.0,))):
        with pytest.raises(ValueError, match=r"std|mean"):
            Pixels(5, **wrong)


def test_other_units_at_evaluation_are_named(tmp_path):
    files = paths_of(folder(tmp_path, "png", lambda n: DEEP))
    compare(files, measure(files, Pixels(1, "uint16")))  # says nothing: warnings are errors of this test
    with pytest.warns(UserWarning, match="other units"):
        compare(files, Pixels(1, "uint16", (40000.0,), (9000.0,)))


def test_photographs_keep_the_toys_numbers():
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    assert torch.equal(PHOTOGRAPHS.normalise(images), normalise(images))
    assert torch.equal(PHOTOGRAPHS.scaled(images), images)
    assert torch.equal(PHOTOGRAPHS.shown(images), images)
    written = Pixels(3, "uint8", (127.5,) * 3, (63.75,) * 3)  # the same numbers, the long way
    assert torch.allclose(written.normalise(images), normalise(images), atol=1e-6)
    grey = Pixels(1, "uint16", (1200.0,), (100.0,)).shown(torch.tensor([[[[1000, 1200, 1400, 9000]]]]))
    assert grey[0, :, 0].tolist() == [[0, 128, 255, 255]] * 3


def test_fit_covers_and_cuts_the_middle():
    images = torch.randint(0, 256, (3, 3, 20, 30), dtype=torch.uint8)
    assert (fit(images, (16, 16)).int() - resize(images, 16).int()).abs().max() <= 1
    assert fit(images, (20, 30)) is images
    wide = fit(images.float(), (10, 40))
    assert wide.shape == (3, 3, 10, 40)
    ramp = torch.arange(64.0).expand(1, 1, 32, 64)
    middle = fit(ramp, (32, 32))  # from column 16 on
    assert torch.equal(middle[0, 0, 0], torch.arange(16.0, 48.0))
    assert fit(torch.full((1, 1, 9, 9), 65535, dtype=torch.uint16), (4, 4)).int().max() == 65535


def test_crops_of_a_rectangle_are_as_wide_as_it(recipe, generator):
    wide = recipe.replace(image_size=(16, 64), patch=4, crop_aspect=(0.75, 4 / 3))
    crops = draw_crops(50.0, 200.0, 4000, wide, generator)
    ratio = (crops.width * 200) / (crops.height * 50)
    inside = (crops.width < 1) & (crops.height < 1)
    assert 0.75 * 4 <= ratio[inside].min() < 3.2
    assert 5.1 < ratio[inside].max() <= 4 / 3 * 4


@pytest.fixture(scope="module")
def quick(recipe):
    return recipe.replace(epochs=8.0, warmup_epochs=1.0, log_every=4, checkpoint_epochs=8.0, probe_epochs=8.0)


@pytest.mark.parametrize("method", ["ijepa", "mae"])
def test_five_channels_of_sixteen_bits_from_end_to_end(tmp_path, quick, method):
    """Class 0 is bright in channel 3: a random encoder may see it too, so only that all stages run is asked here."""

    def values(number):
        found = numbers(5, "uint16", 800, 1200, seed=number)
        found[3] += 400 * (number % 2)
        return found

    root = folder(tmp_path / "cells", "tif", values, count=16)
    loss = "auto"
    run = pretrain(
        quick.replace(data=f"folder:{root}", method=method, loss=loss, image_size=(12, 20)),
        tmp_path / "run",
        progress=False,
    )
    recipe, trained, _ = load_run(run.out)
    assert (recipe.channels, recipe.depth) == (5, "uint16")
    assert recipe.mean[3] == pytest.approx(1200, abs=60)
    assert trained.encoder.grid == (3, 5)
    assert trained.encoder.pixels == recipe.pixels
    found = evaluate(run.out, ("knn", "linear", "resolution", "dense"))
    assert set(found["protocols"]) == {"knn", "linear", "resolution"}  # what is drawn for "dense" is coloured
    again = pretrain(recipe.replace(data=f"folder:{root}", epochs=recipe.epochs), tmp_path / "run", resume=True)
    assert again.step == run.step


def test_wide_grey_strips_are_streamed_and_probed(tmp_path, recipe):
    def strip(number):
        return numbers(1, "uint8", 40 * (number % 2), 200, seed=number, size=(30 + number, 130))

    root = folder(tmp_path / "strips", "png", strip)
    wide = settled(recipe.replace(data=f"folder:{root}", image_size=(8, 32)))
    assert (wide.channels, wide.depth) == (1, "uint8")
    found = training_set(wide, CPU)
    assert isinstance(found, Stream)
    bank, _, queries, _ = probe_set(wide)
    assert bank.shape[1:] == queries.shape[1:] == (1, 8, 32)
    test = labelled(f"folder:{root}", "test", wide.image_size, pixels=wide.pixels)
    assert test.images().shape == (8, 1, 8, 32)


def test_small_deep_pictures_stay_in_memory_as_they_are(tmp_path, recipe):
    root = folder(tmp_path / "deep", "png", lambda n: numbers(1, "uint16", 900, 1500, seed=n, size=(16, 16)))
    found = training_set(settled(recipe.replace(data=f"folder:{root}")), CPU)
    assert isinstance(found, Resident)
    assert found.images.dtype == torch.uint16
    assert found.images.shape == (8, 1, 16, 16)


def test_sets_by_name_are_coloured(recipe):
    assert settled(recipe.replace(data="shapes")).pixels == PHOTOGRAPHS
    with pytest.raises(DataError, match="3 channels"):
        settled(recipe.replace(data="shapes", channels=1))
    with pytest.raises(DataError, match="this encoder knows 5"):
        labelled("shapes", "test", 16, pixels=Pixels(5, "uint16"))


def test_recipes_refuse_what_does_not_fit(recipe):
    for wrong, said in (
        (dict(image_size=(16, 18)), "16 18 is not a whole number"),
        (dict(image_size=0), "whole number"),
        (dict(channels=-1), "channels -1"),
        (dict(mean=(1.0,)), "belong together"),
        (dict(channels=5, mean=(1.0, 2.0), std=(1.0, 1.0)), "2 numbers for 5"),
    ):
        with pytest.raises(ValueError, match=said):
            recipe.replace(**wrong)


def test_suffixes_hold_what_the_toy_reads():
    assert {".png", ".jpg", ".tif", ".npy", ".dcm"} <= set(formats.SUFFIXES)


def test_headers_of_arrays_are_read_one_at_a_time(tmp_path, monkeypatch):
    """In older Pythons two threads that read one at once may find a whole file broken."""
    paths, load, inside, most = [tmp_path / f"{n}.npy" for n in range(8)], np.load, [], []
    for path in paths:
        np.save(path, FIVE)

    def watched(*args, **options):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        found = load(*args, **options)
        inside.pop()
        return found

    monkeypatch.setattr(np, "load", watched)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda path: read_values(path, "channels"), paths))
    assert all(np.array_equal(values, FIVE) for values in found)
    assert max(most) == 1


def test_a_small_file_cannot_fill_the_memory(tmp_path, monkeypatch):
    """Nothing is unpacked of what says that it is larger than any picture."""
    zeros = np.zeros((5, 64, 64), np.uint16)
    np.savez_compressed(tmp_path / "bomb.npz", zeros)
    tifffile.imwrite(tmp_path / "bomb.tif", zeros, compression="zlib", photometric="minisblack")
    for name in ("bomb.npz", "bomb.tif"):
        assert read_values(tmp_path / name, "channels").shape == zeros.shape
    monkeypatch.setattr(formats, "MOST_BYTES", zeros.nbytes - 1)
    for name in ("bomb.npz", "bomb.tif"):
        assert "GB of memory" in Pixels(5, "uint16").read_fitted(tmp_path / name, None)
