"""Tables of Hugging Face datasets, written here: the same steps for any number of processes, offline."""

from __future__ import annotations

import io

import fsspec
import pytest
import torch
from PIL import Image

from full_ijepa.data import members, opened, plan, probe_set, settled, training_set
from full_ijepa.formats import UnreadableError
from full_ijepa.hub import Hub
from toy_ijepa.decoding import DataError

datasets = pytest.importorskip("datasets")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, pictures):
    """train and test of the folder as save_to_disk leaves them."""
    folder = tmp_path_factory.mktemp("saved")
    parts = {}
    for part in ("train", "test"):
        files = sorted(pictures.rglob(f"{part}/**/*.png"))
        kinds = datasets.Features(picture=datasets.Image(), kind=datasets.ClassLabel(names=["across", "down"]))
        rows = dict(picture=[Image.open(f) for f in files], kind=[f.parent.name for f in files])
        parts[part] = datasets.Dataset.from_dict(rows, features=kinds)
    datasets.DatasetDict(parts).save_to_disk(folder)
    return folder


def batches(recipe, *which):
    stream = training_set(settled(recipe), CPU)
    return [images for images, _ in stream.batches(plan(stream.layout, recipe, *which), recipe)]


def test_rows_are_seen_as_files_are(recipe, saved):
    table = recipe.replace(data=f"hf:{saved}")
    alone, pair = batches(table, 0, 4), [batches(table, 0, 4, rank, 2) for rank in (0, 1)]
    assert all(
        torch.equal(a, b) for a, b in zip(alone, (x for two in zip(*pair, strict=True) for x in two), strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(alone[4:], batches(table, 2, 4), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone, batches(table.replace(workers=2), 0, 4), strict=True))


def test_the_folder_gives_the_same_batches(recipe, saved, monkeypatch):
    """Rows in the order of the files: the same numbers, the same crops."""
    monkeypatch.setattr("full_ijepa.data.FITS", 0)  # the folder is streamed too
    assert all(
        torch.equal(a, b)
        for a, b in zip(batches(recipe, 0, 4), batches(recipe.replace(data=f"hf:{saved}:train"), 0, 4), strict=True)
    )


def test_labels_reach_the_probe(recipe, saved):
    ours, theirs = probe_set(recipe.replace(data=f"hf:{saved}")), probe_set(recipe)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_what_is_missing_is_said(recipe, saved, tmp_path):
    with pytest.raises(DataError, match="has no split dev: it has train, test"):
        opened(recipe.replace(data=f"hf:{saved}:dev"))
    with pytest.raises(DataError, match="cannot be loaded"):
        opened(recipe.replace(data=f"hf:{tmp_path / 'nowhere'}"))
    datasets.Dataset.from_dict(dict(text=["a"])).save_to_disk(tmp_path / "text")
    with pytest.raises(DataError, match="has 0 columns of pictures among text; one is expected"):
        Hub(f"hf:{tmp_path / 'text'}")


def test_an_empty_row_is_named_and_replaced(tmp_path):
    kinds = datasets.Features(image=datasets.Image())
    rows = datasets.Dataset.from_dict(dict(image=[Image.new("RGB", (4, 4)), None]), features=kinds)
    rows.save_to_disk(tmp_path / "rows")
    found = Hub(f"hf:{tmp_path / 'rows'}")
    with pytest.raises(UnreadableError, match="row 1: it is empty") as said:
        found[1]
    assert said.value.beyond == 2
    assert found[0].suffix == ".png"


@pytest.fixture(scope="module")
def shelf(saved):
    """The table as the hub keeps it: parquet files, behind an address."""
    memory = fsspec.filesystem("memory")
    rows = datasets.load_from_disk(saved)
    for part in ("train", "test"):
        for number in range(4):
            file = io.BytesIO()
            rows[part].shard(4, number, contiguous=True).to_parquet(file)
            memory.pipe_file(f"/hub/data/{part}-0000{number}-of-00004.parquet", file.getvalue())
    return "memory://hub/data"


def test_parquet_files_of_the_hub_are_streamed_as_shards(recipe, saved, shelf, tmp_path, monkeypatch):
    """The same bytes in the same numbering as the table; any process sees its part; counted without being fetched."""
    monkeypatch.setenv("IJEPA_CACHE", str(tmp_path / "cache"))
    streamed = recipe.replace(data=f"shards:{shelf}", shards_together=2)
    there, here = opened(streamed), opened(recipe.replace(data=f"hf:{saved}"))
    assert not list((tmp_path / "cache").rglob("*.tar"))
    assert [there[n].getvalue() for n in range(60)] == [here[n].getvalue() for n in range(60)]
    assert torch.equal(there.labels(range(60)), here.labels(range(60)))
    alone, pair = batches(streamed, 0, 4), [batches(streamed, 0, 4, rank, 2) for rank in (0, 1)]
    both = [images for together in zip(*pair, strict=True) for images in together]
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))
    assert members(f"shards:{shelf}", "test")[2] == ("0", "1")
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_test_part_whose_labels_are_secret_gives_way_to_validation(saved, tmp_path, monkeypatch):
    """As ImageNet's on the hub; a table and its parquet files alike."""
    monkeypatch.setenv("IJEPA_CACHE", str(tmp_path / "cache"))
    rows = datasets.load_from_disk(saved)
    secret = rows["test"].map(lambda row: dict(kind=-1), features=rows["test"].features)
    parts = dict(train=rows["train"], validation=rows["test"].select(range(20)), test=secret)
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "secret")
    (tmp_path / "files").mkdir()
    for name, part in parts.items():
        part.to_parquet(tmp_path / "files" / f"{name}-00000-of-00001.parquet")
    for spec in (f"hf:{tmp_path / 'secret'}", f"shards:{tmp_path / 'files'}"):
        found, truth, _ = members(spec, "test")
        assert len(found) == len(truth) == 20
        assert set(truth.tolist()) <= {0, 1}


def test_parquet_files_that_hold_no_pictures_are_said(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("IJEPA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows").mkdir()
    datasets.Dataset.from_dict(dict(text=["a"] * 20)).to_parquet(tmp_path / "rows" / "a.parquet")
    found = opened(recipe.replace(data=f"shards:{tmp_path / 'rows'}"))
    with pytest.raises(DataError, match=r"none of 1 shards can be read.*0 columns of pictures among text"):
        found[3]


def test_odd_rows_of_parquet_stay_in_their_places(recipe, saved, tmp_path, monkeypatch):
    """A suffix that nobody knows is not that of the bytes; a row may be empty; numbering goes on all the same."""
    monkeypatch.setenv("IJEPA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows").mkdir()
    data = opened(recipe.replace(data=f"hf:{saved}"))[0].getvalue()
    rows = [dict(bytes=data, path=f"{n}.jfif" if n % 2 else f"{n}.png") for n in range(8)]
    rows[3]["bytes"] = b""
    table = datasets.Dataset.from_dict(dict(image=rows), features=datasets.Features(image=datasets.Image()))
    table.to_parquet(tmp_path / "rows" / "a.parquet")
    found = opened(recipe.replace(data=f"shards:{tmp_path / 'rows'}"))
    assert [len(found[n].getvalue()) for n in range(8)] == [0 if n == 3 else len(data) for n in range(8)]
    assert found[1].suffix == ".png"


def test_a_damaged_parquet_file_is_a_broken_shard(recipe, shelf, saved, tmp_path, monkeypatch):
    """One without a footer is skipped at the start, one with a damaged page when it is read."""
    monkeypatch.setenv("IJEPA_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    whole = memory.cat_file("/hub/data/train-00000-of-00004.parquet")
    for number in range(40):
        memory.pipe_file(f"/damaged/{number:02}.parquet", whole)
    memory.pipe_file("/damaged/00.parquet", whole[: len(whole) // 2])
    memory.pipe_file("/damaged/01.parquet", whole[:20] + bytes(400) + whole[420:])
    with pytest.warns(UserWarning, match=r"shard skipped .*00\.parquet"):
        found = opened(recipe.replace(data="shards:memory://damaged", shards_together=1))
    assert found.order.counts.tolist()[:3] == [0, 15, 15]
    with pytest.raises(UnreadableError, match=r"01\.parquet"):
        found[0]
    assert found[15].getvalue()
    assert list((tmp_path / "cache").rglob("*.failed"))
