"""Decoding left to the device: the same crops through the same door. The CPU's decoder stands in for a GPU's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from full_ijepa import gpu_decoding, streams
from full_ijepa.data import opened, plan, settled
from full_ijepa.streams import Stream, check_shared_memory
from toy_ijepa.decoding import DataError
from toy_ijepa.environment import MachineError

CPU = torch.device("cpu")


@pytest.fixture
def jpegs(recipe, tmp_path):
    """JPEG files, one of them turned by EXIF, one grey, one PNG."""
    random = np.random.default_rng(0)
    for number in range(12):
        values = random.integers(0, 255, (30 + number, 40, 3), dtype=np.uint8)
        picture, options = Image.fromarray(values), {}
        if number == 3:
            exif = Image.Exif()
            exif[0x0112] = 6
            options = dict(exif=exif)
        picture = picture.convert("L") if number == 5 else picture
        folder = tmp_path / "train" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{number:02}.{'png' if number == 7 else 'jpg'}", **options)
    return settled(recipe.replace(data=f"folder:{tmp_path}"))


@pytest.fixture
def no_gpu_needed(monkeypatch):
    """The device is let in, and the files that it is given are counted."""
    given = []
    decode = gpu_decoding.decode
    monkeypatch.setattr(gpu_decoding, "check", lambda recipe, device: None)
    monkeypatch.setattr(gpu_decoding, "decode", lambda files, device: given.append(len(files)) or decode(files, device))
    return given


def batches(recipe):
    stream = Stream(opened(recipe), CPU)
    found = [images for images, _ in stream.batches(plan(12, recipe, 0, 3), recipe)]
    return found, stream


@pytest.mark.parametrize("workers", [0, 1])
def test_the_device_gives_what_workers_give(jpegs, no_gpu_needed, workers):
    (ours, _), (theirs, _) = batches(jpegs.replace(decode="gpu", workers=workers)), batches(jpegs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert sum(no_gpu_needed) == 2 * 9  # of twelve pictures, twice: the turned, the grey and the PNG came decoded


def test_a_broken_file_is_named_and_replaced(jpegs, no_gpu_needed, tmp_path):
    broken = tmp_path / "train/a/04.jpg"
    data = broken.read_bytes()
    start = data.index(b"\xff\xda")
    broken.write_bytes(data[: start + 2] + b"\0" * 20)
    with pytest.warns(UserWarning, match=r"^picture skipped \(1 so far\): .*04.jpg: "):
        ours, stream = batches(jpegs.replace(decode="gpu", allow_skipped=True))
    assert list(stream.skipped.names) == [str(broken)]
    with pytest.warns(UserWarning, match="04.jpg"):
        theirs, _ = batches(jpegs.replace(allow_skipped=True))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_no_memory_is_not_taken_for_broken_files(jpegs, monkeypatch):
    def full(files, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_decoding, "check", lambda recipe, device: None)
    monkeypatch.setattr(gpu_decoding, "decode", full)
    with pytest.raises(torch.OutOfMemoryError):
        batches(jpegs.replace(decode="gpu"))


def test_without_a_gpu_it_is_refused(jpegs):
    with pytest.raises(DataError, match="decode gpu needs a CUDA device, this run is on cpu: take --decode workers"):
        batches(jpegs.replace(decode="gpu"))
    deep = jpegs.replace(decode="gpu", channels=1, depth="uint16", mean=(), std=())
    with pytest.raises(DataError, match="knows colour of 8 bit alone"):
        gpu_decoding.check(deep, torch.device("cuda"))


def test_shared_memory_is_counted_before_the_first_step(recipe, monkeypatch, tmp_path):
    """8 processes x 12 workers x 5 micro-batches of 256 pictures of 224 px: 18.5 GB."""
    monkeypatch.setattr(streams, "SHARED", tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    large = recipe.replace(image_size=224, batch=2048, micro_batch=256, workers=12)
    needed = 8 * 12 * 5 * 256 * 3 * 224 * 224
    usage = streams.shutil.disk_usage(tmp_path)
    for free, fits in ((needed, True), (needed - 1, False), (64_000_000, False)):
        monkeypatch.setattr(streams.shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        if fits:
            check_shared_memory(large)
            continue
        left = 11 if free == needed - 1 else 0
        message = rf"8 x 12 workers .*: 18.5 GB, {free / 1e9:.1f} GB are free. Take --workers {left}.*--shm-size 20g$"
        with pytest.raises(MachineError, match=message):
            check_shared_memory(large)
    check_shared_memory(large.replace(workers=0))
