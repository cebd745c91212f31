"""Names of many files: as paths, in little memory, listed once on a machine; a large set is ready soon."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from full_ijepa import data, names, pixels
from full_ijepa.distributed import World, world
from full_ijepa.formats import Kind
from full_ijepa.names import Names, once
from full_ijepa.recipes.base import Recipe
from tests.full.conftest import draw_pictures
from tests.full.test_distributed import port
from toy_ijepa import folders
from toy_ijepa.decoding import DataError


def test_names_are_the_paths_of_the_folder(tmp_path):
    for name in ("b.png", "a/z.png", "a/b/c.JPG", "a.b/d.png", "a/\udcff.png", "é/ü.png", ".hidden/x.png", "a/t.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    found = Names.of(tmp_path, folders.names_below(tmp_path))
    assert list(found) == sorted(
        p for p in tmp_path.rglob("*.*") if p.suffix in (".png", ".JPG") and ".hidden" not in str(p)
    )
    assert [found.label(i) for i in range(len(found))] == ["a", "a", "a", "a.b", "", "é"]
    assert found.classes == ("a", "a.b", "é")
    assert found[-1] == found[5]
    some = found.take([4, 0, 2]).take([2, 1])
    assert list(some) == [found[2], found[0]]
    with pytest.raises(IndexError):
        some[2]


def test_a_million_names_take_little(tmp_path):
    found = Names.of(tmp_path, [f"n{i // 1000:08}/n{i // 1000:08}_{i % 1000}.JPEG" for i in range(100_000)])
    assert found.text.nbytes + found.ends.nbytes < 40 * len(found)
    assert sys.getsizeof(found[5]) > 40  # what one path takes, beside its text


def folders_of(count: int, each: int):
    """What os.walk says of so many class folders."""

    def walk(base, **_options):
        kinds = [f"n{k:08}" for k in range(count)]
        yield str(base), kinds, []
        for kind in kinds:
            yield f"{base}/{kind}", [], [f"{kind}_{i}.JPEG" for i in range(each)]

    return walk


@pytest.fixture
def large(monkeypatch, tmp_path):
    """A folder of 1,281,000 files that are not there; returns the files whose headers are asked for."""
    (tmp_path / "train").mkdir()
    monkeypatch.setattr(folders.os, "walk", folders_of(1000, 1281))
    monkeypatch.setattr(folders.os.path, "islink", lambda path: False)
    asked = []

    def describe(path, stack="channels"):
        asked.append(path)
        return Kind(500 + len(asked) % 2, 375, 3, "uint8")

    monkeypatch.setattr(pixels, "describe", describe)
    return asked


def test_imagenet_is_ready_within_a_minute_of_a_core(large, tmp_path):
    """From the listing to the first plan; only a few headers are opened."""
    recipe = Recipe(data=f"folder:{tmp_path}", batch=2048, micro_batch=64, workers=0)
    begun = time.process_time()
    pictures = data.opened(recipe)
    recipe = data.settled(recipe, pictures)
    found = data.training_set(recipe, torch.device("cpu"), pictures)
    next(data.plan(found.layout, recipe, 5, 6))
    assert time.process_time() - begun < 60
    assert len(found) == 1_281_000
    assert str(pictures[1_280_999]).endswith("train/n00000999/n00000999_999.JPEG")
    assert len(large) <= pixels.SAMPLED + data.HEADERS


def test_headers_are_read_up_to_the_second_size(recipe, tmp_path, monkeypatch):
    root = draw_pictures(tmp_path / "many", 200, 8)
    opened = []
    describe = pixels.describe
    monkeypatch.setattr(pixels, "describe", lambda path, stack: opened.append(path) or describe(path, stack))
    files = data.training_files(recipe.replace(data=f"folder:{root}"))
    assert data.common_size(files) == (8, 8)
    assert len(opened) == 200
    opened.clear()
    draw_pictures(tmp_path / "other", 1, 9)
    (tmp_path / "other/train/across/000.png").rename(root / "train/across/001.png")
    assert data.common_size(data.training_files(recipe.replace(data=f"folder:{root}"))) is None
    assert len(opened) == data.HEADERS


def test_an_odd_picture_among_many_of_one_size_is_cropped_with_its_batch(recipe, tmp_path, monkeypatch):
    """Not all headers of a large set are read: the odd one comes to a worker that was told of one size."""
    root = draw_pictures(tmp_path / "many", 60, 16)
    draw_pictures(tmp_path / "other", 1, 20)
    odd = root / "train/across/001.png"
    (tmp_path / "other/train/across/000.png").rename(odd)
    monkeypatch.setattr(data, "SAMPLED", 30)  # every second one, without it
    monkeypatch.setattr(data, "FITS", 1000)
    recipe = recipe.replace(data=f"folder:{root}")
    stream = data.training_set(recipe, torch.device("cpu"))
    assert stream.whole
    kinds = [found.whole for found in stream.loaded(data.plan(stream.layout, recipe, 0, 8), recipe)]
    assert kinds.count(False) in (1, 2)  # 64 places of 61 pictures
    assert all(images.shape == (4, 3, 16, 16) for images, _ in stream.batches(data.plan(61, recipe, 0, 8), recipe))


def member(rank: int, gate: int, folder: Path, told) -> None:
    """One of two processes of a machine."""
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ |= dict(MASTER_PORT=str(gate), IJEPA_CACHE=str(folder / "cache"))
    made = []

    def make() -> dict[str, torch.Tensor]:
        made.append(rank)
        return dict(text=torch.arange(5) + rank)

    with world("cpu") as here:
        values = [once(here, make)["text"].tolist() for _ in range(2)]
        (folder / f"{rank}").mkdir()
        lists = [f"{rank}" if n else "same" for n in range(2)]
        try:
            for name in lists:
                names.shared_names(here, folder, lambda name=name: Names.of(folder, [name]))
            failed = ""
        except DataError as error:
            failed = str(error)
    told.put((rank, values, made, failed))


def test_one_process_of_a_machine_makes_what_all_use(tmp_path):
    forking = multiprocessing.get_context("fork")
    told, gate = forking.Queue(), port()
    processes = [forking.Process(target=member, args=(rank, gate, tmp_path, told)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(told.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(30)
    assert [values for _, values, *_ in found] == [[[0, 1, 2, 3, 4]] * 2] * 2
    assert [made for *_, made, _ in found] == [[0, 0], []]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))  # nothing is left


def test_machines_that_see_other_files_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(World, "agree", lambda self, value: False)
    with pytest.raises(DataError, match="the processes find different pictures in"):
        names.shared_names(World(0, 1, torch.device("cpu")), tmp_path, lambda: Names.of(tmp_path, ["a.png"]))


def test_a_full_disk_costs_no_run(monkeypatch, tmp_path):
    def no_space(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(names, "save_file", no_space)
    with pytest.warns(UserWarning, match=r"cannot be written .*No space left.*every process makes its own copy"):
        names.write(tmp_path / "x.safetensors", dict(a=torch.zeros(3)))
    assert not list(itertools.chain(tmp_path.rglob("*.part"), tmp_path.rglob("*.safetensors")))
