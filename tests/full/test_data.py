"""Order, crops and streams are functions of the seed and the place in the run; broken pictures are named."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from full_ijepa import data, pixels, streams
from full_ijepa.crops import augment
from full_ijepa.crops import cut as cut_out
from full_ijepa.evaluate.pictures import labelled
from full_ijepa.order import Micro, accumulation, mix, order, plan
from full_ijepa.streams import Resident, Stream, told_plainly
from full_ijepa.train import pretrain
from tests.full.conftest import draw_pictures
from tests.full.test_train import arguments, environment, journal_size
from toy_ijepa.decoding import DataError, read_pixels
from toy_ijepa.environment import MachineError
from toy_ijepa.patches import normalise


def test_every_epoch_visits_every_picture_once_in_another_order():
    first, second = order(17, 3, 0, 17), order(17, 3, 17, 17)
    assert sorted(first) == sorted(second) == list(range(17))
    assert first != second
    assert order(17, 3, 5, 20) == (first + second)[5:25]
    assert order(17, 4, 0, 17) != first


def test_two_processes_see_what_one_sees(recipe):
    alone = list(plan(60, recipe, 3, 6))
    pair = [list(plan(60, recipe, 3, 6, rank, 2)) for rank in (0, 1)]
    assert sorted(micro.seed for part in pair for micro in part) == sorted(micro.seed for micro in alone)
    assert [micro for both in zip(*pair, strict=True) for micro in both] == alone
    assert len({micro.seed for micro in alone}) == len(alone) == 6
    assert {i for part in pair[0] for i in part.index}.isdisjoint(i for part in pair[1] for i in part.index)


def test_a_plan_continued_is_the_plan(recipe):
    assert list(plan(60, recipe, 0, 7))[8:] == list(plan(60, recipe, 4, 7))


def test_a_batch_that_cannot_be_shared_out_is_refused(recipe):
    with pytest.raises(ValueError, match="batch 8 cannot be shared out: 3 processes x micro-batches of 4"):
        accumulation(recipe, 3)


def test_seeds_are_the_same_everywhere():
    assert mix(1, "order", 2) == 8051174611285059255
    assert mix(1, 2) != mix(12) != mix(2, 1)


def test_crops(recipe, generator):
    images = torch.randint(0, 256, (200, 3, 16, 16), generator=generator, dtype=torch.uint8)
    still = recipe.replace(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=False)
    assert torch.allclose(augment(images, still, 0), normalise(images), atol=1e-4)
    mirrored = augment(images, still.replace(flip=True), 0)
    turned = torch.isclose(mirrored, normalise(images.flip(-1)), atol=1e-4).flatten(1).all(1)
    whole = torch.isclose(mirrored, normalise(images), atol=1e-4).flatten(1).all(1)
    assert (turned ^ whole).all()
    assert 70 < turned.sum() < 130
    assert torch.equal(augment(images, recipe, 5), augment(images, recipe, 5))
    assert not torch.equal(augment(images, recipe, 5), augment(images, recipe, 6))


@pytest.mark.parametrize("kind", ["resident", "files"])
def test_crops_keep_the_share_they_are_told(recipe, kind):
    """On a picture whose colours are coordinates, a crop's corners tell its area and shape; H != W."""
    cut = recipe.replace(crop_scale=(0.2, 0.5), crop_aspect=(0.5, 2.0), flip=False, image_size=16)
    down, across = np.meshgrid(np.linspace(0, 255, 40), np.linspace(0, 255, 80), indexing="ij")
    picture = np.stack([down, across, 0 * down]).astype(np.uint8)
    if kind == "resident":
        crops = augment(torch.from_numpy(picture).expand(400, -1, -1, -1).clone(), cut, 1)
    else:
        crops = normalise(cut_out([torch.from_numpy(picture)] * 400, cut, 1))
    span = [(crops[:, c].amax((1, 2)) - crops[:, c].amin((1, 2))) / 4 * 16 / 15 for c in (0, 1)]
    area, aspect = span[0] * span[1], span[1] * 80 / (span[0] * 40)
    assert 0.15 < area.min() < 0.25 < 0.42 < area.max() < 0.56
    assert 0.3 < area.mean() < 0.4
    assert 0.42 < aspect.min() < 0.7
    assert 1.5 < aspect.max() < 2.4
    assert aspect.log().mean().abs() < 0.1  # as often high as wide


def test_streamed_crops_are_those_in_memory(recipe):
    """The same places and mirroring, whether a batch is cut at once or a picture at a time; smooth, so that whole
    pixels and antialiasing make little difference."""
    down, across = torch.meshgrid(torch.linspace(0, 255, 48), torch.linspace(0, 255, 96), indexing="ij")
    picture = torch.stack([down, across, (down + across) / 2]).byte()
    together = augment(picture.expand(50, -1, -1, -1), recipe, 3)
    alone = normalise(cut_out([picture] * 50, recipe, 3))
    assert (together - alone).abs().mean() < 0.05
    assert (together.flip(3) - alone).abs().mean() > 0.5


def test_small_folders_stay_in_memory_and_mixed_ones_are_streamed(recipe, pictures, tmp_path):
    device = torch.device("cpu")
    assert isinstance(data.training_set(recipe, device), Resident)
    mixed = shutil.copytree(pictures, tmp_path / "mixed")
    Image.new("RGB", (40, 30)).save(mixed / "train" / "across" / "other.png")
    assert isinstance(data.training_set(recipe.replace(data=f"folder:{mixed}"), device), Stream)


def test_pictures_that_do_not_fit_in_memory_are_streamed(recipe, monkeypatch):
    monkeypatch.setattr(data, "FITS", 60 * 16 * 16 * 3 - 1)
    large = data.training_set(recipe, torch.device("cpu"))
    assert isinstance(large, Stream)
    assert large.whole
    assert not data.training_set(recipe.replace(image_size=8), torch.device("cpu")).whole


def test_whole_pictures_are_cropped_on_the_device_as_those_in_memory(recipe, pictures):
    paths = sorted(pictures.rglob("train/**/*.png"))
    stream, resident = (
        Stream(paths, torch.device("cpu"), whole=True),
        Resident(torch.stack([torch.from_numpy(read_pixels(path)) for path in paths]), torch.device("cpu")),
    )
    both = [[images for images, _ in source.batches(plan(60, recipe, 0, 2), recipe)] for source in (stream, resident)]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


@pytest.fixture
def broken(tmp_path):
    """A folder in which every tenth picture is cut short."""
    root = draw_pictures(tmp_path / "broken", 30, 24)
    bad = sorted(root.rglob("train/**/*.png"))[::10]
    for path in bad:
        path.write_bytes(path.read_bytes()[:60])
    return root, bad


@pytest.mark.filterwarnings("ignore:picture skipped")
def test_broken_pictures_are_replaced_and_named_once(recipe, broken):
    root, bad = broken
    stream = Stream(sorted(root.rglob("train/**/*.png")), torch.device("cpu"))
    recipe = recipe.replace(allow_skipped=True)
    seen = [images for images, _ in stream.batches(plan(30, recipe, 0, 12), recipe)]
    assert all(images.shape == (4, 3, 16, 16) for images in seen)
    assert set(stream.skipped.names) == {str(path) for path in bad}


@pytest.mark.filterwarnings("ignore:picture skipped")
def test_a_stream_of_too_many_broken_pictures_stops(recipe, broken):
    """Three of thirty are more than one in twenty."""
    root, _ = broken
    stream = Stream(sorted(root.rglob("train/**/*.png")), torch.device("cpu"))
    with pytest.raises(DataError, match=r"[23] of 30 pictures cannot be read.*--allow-skipped"):
        list(stream.batches(plan(30, recipe, 0, 12), recipe))


def test_a_worker_that_runs_out_of_file_handles_stops_the_run(recipe, pictures, monkeypatch):
    def refuse(path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(pixels, "read_pixels", refuse)  # forked workers inherit it
    stream = Stream(sorted(pictures.rglob("train/**/*.png")), torch.device("cpu"))
    for workers in (0, 1):
        with pytest.raises(MachineError, match=r"^reading stopped at [^\n]*Too many open files[^\n]*$"), told_plainly():
            next(stream.batches([Micro((0, 1), 0)], recipe.replace(workers=workers)))
    assert not stream.skipped.names


def test_workers_change_nothing(recipe, broken):
    root, _ = broken
    recipe = recipe.replace(allow_skipped=True)
    with pytest.warns(UserWarning, match="picture skipped"):
        drawn = [
            [images for images, _ in stream.batches(plan(30, recipe, 0, 3), recipe.replace(workers=workers))]
            for workers in (0, 2)
            for stream in [Stream(sorted(root.rglob("train/**/*.png")), torch.device("cpu"))]
        ]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_a_folder_of_nothing_but_broken_pictures_is_refused(recipe, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for path in paths:
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="10 pictures in a row cannot be read"):
        streams.Files(paths, recipe)[Micro((0, 1), 0)]
    stream = Stream(paths, torch.device("cpu"))
    message = r"^10 pictures in a row cannot be read, the last .*9\.png: [^\n]*$"
    with pytest.raises(DataError, match=message), told_plainly():
        next(stream.batches([Micro((0, 1), 0)], recipe.replace(workers=1)))


def test_many_broken_pictures_in_a_row_are_passed_where_that_is_allowed(recipe, pictures, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(15)] + sorted(pictures.rglob("train/**/*.png"))[:2]
    for path in paths[:15]:
        path.write_bytes(b"no picture")
    found = streams.Files(paths, recipe.replace(allow_skipped=True))[Micro((0, 15), 0)]
    assert len(found.bad) == 15
    assert found.images.shape[0] == 2


def test_a_worker_that_dies_while_it_hands_over_is_told_plainly(monkeypatch):
    """Its connection breaks before the signal of its death arrives; another broken connection stays what it is."""

    def signalled(_: float) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    for error in (ConnectionResetError("reset by peer"), EOFError()):
        monkeypatch.setattr(streams.time, "sleep", lambda _: None)
        with pytest.raises(type(error)), told_plainly():
            raise error
        monkeypatch.setattr(streams.time, "sleep", signalled)
        with pytest.raises(DataError, match=r"died \(DataLoader worker \(pid 7\).*--resume auto"), told_plainly():
            raise error


KILLED = """
import multiprocessing, os, sys, time
from full_ijepa import train
from full_ijepa.__main__ import main
take_step = train.Trainer.take_step
def watched(self, batches):
    found = take_step(self, batches)
    if self.step == 3:
        for worker in multiprocessing.active_children():
            worker.kill()
    return found
train.Trainer.take_step = watched
sys.exit(main(["pretrain", "smoke", *sys.argv[1:]]))
"""


@pytest.mark.slow  # quick: none; a process has to be killed
def test_a_dead_worker_is_told_plainly(recipe, pictures, tmp_path):
    """In a process of its own: torch raises it from a signal handler, at any place."""
    mixed = shutil.copytree(pictures, tmp_path / "mixed")
    Image.new("RGB", (40, 30)).save(mixed / "train" / "across" / "other.png")
    flags = [*arguments(recipe.replace(data=f"folder:{mixed}")), "--workers", "1", "--epochs", "50"]
    line = [sys.executable, "-c", KILLED, *flags, "--out", str(tmp_path / "run")]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    # The progress bar may not have ended its line.
    told = r"error: a process that decodes pictures died \(DataLoader worker.*--resume auto continues from the last "
    assert re.search(told, done.stderr), done.stderr[-2000:]
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="workers cannot tell who sent a signal here")
def test_a_sigterm_to_every_process_saves_first(recipe, pictures, tmp_path):
    """torchrun and Slurm send it to the decoding processes as well."""
    mixed = shutil.copytree(pictures, tmp_path / "mixed")
    Image.new("RGB", (40, 30)).save(mixed / "train" / "across" / "other.png")
    flags = [*arguments(recipe.replace(data=f"folder:{mixed}")), "--workers", "2", "--epochs", "500"]
    line = [sys.executable, "-m", "full_ijepa", "pretrain", "smoke", *flags, "--out", str(tmp_path / "run")]
    trainer = subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 120
    try:
        while journal_size(tmp_path / "run") < 1000 and time.monotonic() < end:
            time.sleep(0.1)
        os.killpg(trainer.pid, signal.SIGTERM)
        said = trainer.communicate(timeout=60)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(trainer.pid, signal.SIGKILL)
    assert trainer.returncode == 75, said[-2000:]
    assert "--resume auto continues" in said


def test_pictures_larger_than_the_encoder_sees_are_streamed(recipe, tmp_path):
    """In memory they would be cropped without antialiasing."""
    large = draw_pictures(tmp_path / "large", 10, 40)
    assert isinstance(data.training_set(recipe.replace(data=f"folder:{large}"), torch.device("cpu")), Stream)


def test_a_named_set_is_shrunk_to_what_the_encoder_sees(recipe, tmp_path, monkeypatch):
    draw_pictures(tmp_path / "cifar10", 10, 32)
    monkeypatch.setenv("IJEPA_DATA", str(tmp_path))
    found = data.training_set(recipe.replace(data="cifar10", image_size=16), torch.device("cpu"))
    assert found.images.shape == (10, 3, 16, 16)


def test_unreadable_pictures_of_a_set_in_memory_are_named_and_counted(recipe, broken, tmp_path):
    root, bad = broken
    recipe = recipe.replace(data=f"folder:{root}", image_size=24, probe_epochs=0, allow_skipped=True, epochs=1.0)
    with pytest.warns(UserWarning, match="3 of 30 pictures skipped: ") as said:
        done = pretrain(recipe, tmp_path / "run", progress=False)
    told = next(str(w.message) for w in said if "pictures skipped" in str(w.message))
    assert all(str(path) in told for path in bad)
    assert done.rows[-1]["skipped"] == 3


def test_imagenet_is_read_as_it_is_laid_out(recipe, tmp_path, monkeypatch):
    root = draw_pictures(tmp_path / "imagenet", 10)
    (root / "test").rename(root / "val")
    monkeypatch.setenv("IJEPA_DATA", str(tmp_path))
    assert len(data.training_set(recipe.replace(data="imagenet"), torch.device("cpu"))) == 10
    found = labelled("imagenet", "test", 16)
    assert (len(found), found.classes) == (10, ("across", "down"))


def test_imagenet_says_where_to_put_it(recipe):
    with pytest.raises(DataError, match="Set IJEPA_DATA"):
        data.training_set(recipe.replace(data="imagenet"), torch.device("cpu"))


def test_probe_set_holds_training_pictures_apart(recipe):
    bank, bank_labels, queries, labels = data.probe_set(recipe)
    assert bank.shape == (48, 3, 16, 16)
    assert queries.shape == (12, 3, 16, 16)
    assert len(bank_labels) == 48
    assert set(labels.tolist()) <= {0, 1}
    assert not {tuple(x.flatten().tolist()) for x in bank} & {tuple(x.flatten().tolist()) for x in queries}
