"""Shards: the same pictures in the same steps, wherever they lie and whoever reads them; what is broken is named."""

from __future__ import annotations

import http.server
import io
import json
import os
import pickle
import re
import socket
import tarfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from full_ijepa import pack as packing
from full_ijepa import remote, shards, tars
from full_ijepa.__main__ import main
from full_ijepa.data import opened, probe_set, settled, training_set
from full_ijepa.distributed import STEP, World
from full_ijepa.embedding import Features, embed, load_encoder
from full_ijepa.evaluate import evaluate, pictures
from full_ijepa.evaluate.features import Streamed
from full_ijepa.evaluate.pictures import labelled
from full_ijepa.labels import read
from full_ijepa.look import look
from full_ijepa.order import ShardOrder, order, plan
from full_ijepa.pack import bytes_of, pack
from full_ijepa.shards import Shards, expand, places
from full_ijepa.streams import Stream
from full_ijepa.table import Table
from full_ijepa.tars import INDEX, TABLE, BrokenShardError, read_table
from full_ijepa.train import pretrain
from tests.full.test_train import losses, stop_after
from toy_ijepa.decoding import DataError

CPU = torch.device("cpu")
WAITS = remote.WAITS  # tests wait less


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IJEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01))


@pytest.fixture(scope="module")
def packed(tmp_path_factory, pictures):
    """60 pictures to train on in shards of nine or so, and 60 to test on."""
    out = tmp_path_factory.mktemp("packed")
    done = pack(pictures, out, 16_000)
    assert done.parts == dict(train=60, test=60)
    return out


@pytest.fixture
def sharded(recipe, packed):
    return recipe.replace(data=f"shards:{packed}", shards_together=2)


def crops_of(recipe, first: int = 0, last: int = 6, rank: int = 0, world: int = 1) -> list[torch.Tensor]:
    stream = training_set(recipe, CPU)
    return [images for images, _ in stream.batches(plan(stream.layout, recipe, first, last, rank, world), recipe)]


# --- order


def test_an_epoch_opens_few_shards_at_a_time_and_sees_every_picture_once():
    layout = ShardOrder((3, 5, 0, 2, 7, 4), 2)
    first, second = order(layout, 3, 0, 21), order(layout, 3, 21, 21)
    assert sorted(first) == sorted(second) == list(range(21))
    assert first != second
    assert order(layout, 3, 5, 30) == (first + second)[5:35]
    which = np.searchsorted(layout.starts, first, side="right") - 1
    last = {shard: max(np.flatnonzero(which == shard)) for shard in set(which.tolist())}
    for place, shard in enumerate(which):
        assert sum(last[other] >= place for other in set(which[: place + 1].tolist()) | {shard}) <= 2


def test_pictures_of_a_group_are_mixed():
    """Places of one shard's pictures among those of three: spread over the whole group."""
    layout = ShardOrder((200, 200, 200), 3)
    places_of = np.flatnonzero(np.array(order(layout, 0, 0, 600)) < 200)
    assert abs(places_of.mean() - 300) < 40
    assert 150 < places_of.std() < 195  # uniform: 173


# --- what a step sees


def test_processes_and_resumption_change_nothing(sharded):
    alone = crops_of(sharded)
    pair = [crops_of(sharded, rank=rank, world=2) for rank in (0, 1)]
    both = [images for together in zip(*pair, strict=True) for images in together]
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone[4:], crops_of(sharded, 2), strict=True))
    workers = crops_of(sharded.replace(workers=2))
    assert all(torch.equal(a, b) for a, b in zip(alone, workers, strict=True))


@pytest.fixture(scope="module")
def short(recipe, packed):
    return recipe.replace(data=f"shards:{packed}", shards_together=2, epochs=0.5, warmup_epochs=0.1, probe_epochs=0.5)


@pytest.fixture(scope="module")
def run(short, tmp_path_factory):
    """Four steps on shards."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert "knn" in pretrain(short, out, progress=False).rows[-1]  # labels of .cls reach the probe
    return out


def test_a_run_on_shards_is_continued_to_the_bit(short, run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        pretrain(short, tmp_path / "parts", progress=False)
    pretrain(short, tmp_path / "parts", resume=True, progress=False)
    assert losses(tmp_path / "parts") == losses(run)


def test_a_run_on_shards_is_judged_as_one_on_their_folder(run, pictures):
    """The same pictures, the same classes, the same kNN."""
    ours = evaluate(run, ("knn",))
    theirs = evaluate(run, ("knn",), data=f"folder:{pictures}")
    assert (ours["labels"], ours["tested"], ours["classes"]) == (60, 60, ["across", "down"])
    assert ours["protocols"] == theirs["protocols"]


def test_a_table_keeps_its_test_part_out_of_shards(short, pictures, tmp_path):
    """Packed without it, most of what the table tests on was trained on, and is told."""
    paths = sorted(pictures.rglob("*.png"))
    lines = [f"{p.relative_to(pictures)},{'across' if 'across' in p.parts else 'down'}" for p in paths]
    (tmp_path / "way.csv").write_text("\n".join(["image,way", *(line for line in lines if line.startswith("train"))]))
    table = Table(str(tmp_path / "way.csv"), ("way",))
    withheld = {path.stem for path in read(table, pictures).test.files}
    flags = ["--labels", table.labels, "--label-column", "way"]
    assert main(["pack", str(pictures), str(tmp_path / "apart"), *flags]) == 0
    assert main(["pack", str(pictures), str(tmp_path / "all")]) == 0
    apart = Shards(places(f"shards:{tmp_path / 'apart'}"))
    assert {blob.name.partition("_")[2].rpartition("_")[2].partition(".")[0] for blob in apart} & withheld == set()
    assert (len(apart), set(apart.labels(range(len(apart))).tolist())) == (48, {-1})
    for name, seen in (("apart", 0), ("all", 12)):
        trained = short.replace(data=f"shards:{tmp_path / name}", probe_epochs=0.0)
        pretrain(trained, tmp_path / f"run-{name}", progress=False)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = evaluate(tmp_path / f"run-{name}", ("knn",), data=f"folder:{pictures}", table=table)
        assert (found["pretrained_on"], found["tested"]) == (seen, 12)
        said = [str(w.message) for w in told if "were pre-trained on" in str(w.message)]
        assert len(said) == bool(seen)
        assert not seen or re.search(r"12 of 12 test .*; pack the folder as it is judged .*--label-column way", said[0])


def test_shards_packed_from_around_the_folder_that_is_judged_are_told(short, pictures, tmp_path):
    """Packed from its training part alone, with links on the way; of shards that do not say what they hold, nothing."""
    (tmp_path / "links").mkdir()
    for part in ("train", "test"):
        (tmp_path / "links" / part).symlink_to(pictures / part)
    paths = sorted((pictures / "train").rglob("*.png"))
    lines = [f"{p.relative_to(pictures)},{'across' if 'across' in p.parts else 'down'}" for p in paths]
    (tmp_path / "way.csv").write_text("\n".join(["image,way", *lines]))
    table = Table(str(tmp_path / "way.csv"), ("way",))
    run = short.replace(probe_epochs=0.0, epochs=0.2)
    for name, root in (("a", pictures / "train"), ("b", tmp_path / "links"), ("c", pictures / "test")):
        pack(root, tmp_path / name)
        pretrain(run.replace(data=f"shards:{tmp_path / name}"), tmp_path / f"run-{name}", progress=False)
    said = json.loads((tmp_path / "c" / INDEX).read_text())
    (tmp_path / "c" / INDEX).write_text(json.dumps({k: v for k, v in said.items() if k != "source"}))
    for name, folder in (("a", pictures), ("b", tmp_path / "links"), ("c", pictures)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = evaluate(tmp_path / f"run-{name}", ("knn",), data=f"folder:{folder}", table=table)
        tested = {path.name: path for path in read(table, folder).test.files}
        trained = Shards(places(f"shards:{tmp_path / name}"))
        both = sum(blob.name.rpartition("_")[2] in tested for blob in trained)
        assert found["pretrained_on"] == (None if name == "c" else both)
        assert name == "c" or both > 0


def test_pictures_of_shards_are_embedded(run, pictures, packed, tmp_path):
    assert main(["embed", str(run), f"shards:{packed}", "--out", str(tmp_path / "ours.npz")]) == 0
    ours = Features.read(tmp_path / "ours.npz")
    theirs = embed(load_encoder(run), pictures / "train")
    assert ours.names[0].startswith(f"{packed}/train-000000.tar/")
    assert torch.allclose(ours.values.sort(0).values, theirs.values.sort(0).values, atol=1e-5)


def test_a_look_and_a_dry_run_know_shards(packed, capsys):
    assert main(["look", f"shards:{packed}"]) == 0
    said = capsys.readouterr().out
    assert "60" in said
    assert "across" in said
    assert main(["pretrain", "smoke", "--data", f"shards:{packed}", "--dry-run", "--device", "cpu"]) == 0
    assert "of 60 pictures" in capsys.readouterr().out
    assert main(["look", "shards:memory://nowhere"]) == 2


def test_probe_pictures_have_the_labels_of_their_files(sharded, recipe):
    """Every picture of the shards is one of the folder's, with the class of its folder."""
    tables = []
    for found in (probe_set(sharded), probe_set(recipe)):
        images, labels = torch.cat([found[0], found[2]]), torch.cat([found[1], found[3]])
        tables.append({image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)})
    assert tables[0] == tables[1]
    assert len(tables[0]) == 60


# --- broken shards


def spoil(folder: Path, packed: Path, change) -> Path:
    """A copy of the shards, the second changed."""
    folder.mkdir()
    for file in packed.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change(folder / "train-000001.tar")
    return folder


def shorten(file: Path) -> None:
    os.truncate(file, 5000)


def scratch(file: Path) -> None:
    """The header of a member in its midst."""
    with tarfile.open(file) as tar:
        place = tar.getmembers()[4].offset
    data = bytearray(file.read_bytes())
    data[place : place + 512] = b"x" * 512
    file.write_bytes(data)


@pytest.mark.parametrize("change", [shorten, scratch, Path.unlink, lambda f: f.write_bytes(b""), lambda f: flip(f)])
def test_a_broken_shard_is_replaced_and_named_once(sharded, packed, tmp_path, change):
    broken = spoil(tmp_path / "broken", packed, change)
    recipe = sharded.replace(data=f"shards:{broken}", allow_skipped=True)
    stream = Stream(opened(recipe), CPU)
    with pytest.warns(UserWarning, match=r"^shard of \d+ pictures skipped \(1 so far\): .*train-000001.tar: ") as said:
        seen = [images for images, _ in stream.batches(plan(stream.layout, recipe, 0, 8), recipe)]
    assert len(said) == 1
    assert all(images.shape == (4, 3, 16, 16) for images in seen)
    assert list(stream.skipped.names) == [str(broken / "train-000001.tar")]
    stream = Stream(opened(recipe), CPU)
    recipe = recipe.replace(allow_skipped=False)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(DataError, match=r"\d+ of 60 pictures lie in shards that cannot be read, more than 5%"),
    ):
        list(stream.batches(plan(stream.layout, recipe, 0, 8), recipe))


@pytest.mark.parametrize("change", [shorten, scratch])
def test_shards_without_an_index_are_found_out_too(packed, tmp_path, change):
    broken = spoil(tmp_path / "broken", packed, change)
    with pytest.raises(BrokenShardError, match=r"train-000001\.tar(: unexpected end| is broken at byte \d+ of)"):
        read_table(broken / "train-000001.tar")
    (broken / INDEX).unlink()
    with pytest.warns(UserWarning, match="shard skipped"), pytest.raises(DataError, match=r"1 of \d shards cannot be"):
        Shards(places(f"shards:{broken}"))


def test_a_broken_picture_in_a_whole_shard_is_a_picture(sharded, packed, tmp_path):
    def change(file: Path) -> None:
        row = read_table(file)
        data = bytearray(file.read_bytes())
        data[row.starts[3] : row.starts[3] + 8] = b"no PNG.."
        file.write_bytes(data)
        promise(file, remote.checksum(file))  # it was packed with this picture

    broken = spoil(tmp_path / "broken", packed, change)
    recipe = sharded.replace(data=f"shards:{broken}")
    stream = Stream(opened(recipe), CPU)
    with pytest.warns(UserWarning, match="^picture skipped"):
        list(stream.batches(plan(stream.layout, recipe, 0, 8), recipe))
    ((name, reason),) = stream.skipped.names.items()
    assert name.startswith(f"{broken / 'train-000001.tar'}/")
    assert "0x" not in reason  # no address in memory


def promise(file: Path, sha256: str) -> None:
    """Change what the index says of a shard."""
    said = json.loads((file.parent / INDEX).read_text())
    said["shards"][file.name]["sha256"] = sha256
    (file.parent / INDEX).write_text(json.dumps(said))


def flip(file: Path) -> None:
    """One bit of a picture: a decoder may well say nothing."""
    data = bytearray(file.read_bytes())
    data[read_table(file).starts[3] + 20] ^= 1
    file.write_bytes(data)


def test_a_broken_shard_to_judge_on_is_named(packed, tmp_path):
    broken = spoil(tmp_path / "broken", packed, lambda file: shorten(file.parent / "test-000001.tar"))
    with pytest.raises(DataError, match=r"1 of \d shards to judge on cannot be read.*test-000001\.tar"):
        labelled(f"shards:{broken}", "test", 16)


def test_each_folder_of_a_pattern_has_its_own_index(packed, tmp_path):
    """Though shards are called the same in all of them."""
    first, second = packed / "train-000000.tar", packed / "train-000001.tar"
    said = json.loads((packed / INDEX).read_text())["shards"]
    for number, file in enumerate((first, second)):
        folder = tmp_path / f"p{number}"
        folder.mkdir()
        (folder / "t-0.tar").write_bytes(file.read_bytes())
        (folder / INDEX).write_text(json.dumps(dict(shards={"t-0.tar": said[file.name]})))
    found = Shards(places(f"shards:{tmp_path}/p{{0..1}}/t-0.tar"), together=1)
    assert found.order.counts.tolist() == [said[file.name]["pictures"] for file in (first, second)]
    assert found[len(found) - 1].getvalue()


def test_processes_that_find_different_shards_are_told(sharded, packed, tmp_path):
    """What they compare is the same for a copy elsewhere, and another where a shard is missing."""
    said = []

    class Told(World):
        def agree(self, value: float) -> bool:
            said.append(value)
            return value == said[0]

    copy, fewer = (spoil(tmp_path / name, packed, lambda file: None) for name in ("copy", "fewer"))
    (fewer / "train-000001.tar").unlink()
    (fewer / INDEX).unlink()
    here = Told(0, 1, CPU)
    opened(sharded, here)
    opened(sharded.replace(data=f"shards:{copy}"), here)
    with pytest.raises(DataError, match="processes find different pictures"):
        opened(sharded.replace(data=f"shards:{fewer}"), here)


def test_a_shard_that_the_index_does_not_name_is_told(packed, tmp_path, capsys):
    folder = spoil(tmp_path / "more", packed, lambda file: (file.parent / "train-000099.tar").write_bytes(b""))
    assert main(["verify", str(folder)]) == 2
    assert "train-000099.tar: index.json does not name it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"), [(flip, r"its SHA-256 is \w{12}\.\.\., index\.json says"), (Path.unlink, "is not there")]
)
def test_a_copy_can_be_compared_with_its_index(packed, tmp_path, capsys, change, told):
    assert main(["verify", str(packed)]) == 0
    assert re.fullmatch(r"\d+ shards: all are as index.json says\n", capsys.readouterr().out)
    broken = spoil(tmp_path / "broken", packed, change)
    assert main(["verify", str(broken)]) == 2
    said = capsys.readouterr()
    assert re.search(rf"^error: \S+train-000001\.tar: {told}", said.err)
    assert len(said.err.splitlines()) == 1
    assert "1 are not as index.json says: copy them anew" in said.out
    (broken / INDEX).unlink()
    assert main(["verify", str(broken)]) == 2
    assert "has no index.json with SHA-256" in capsys.readouterr().err


def test_a_table_is_made_anew_when_its_shard_changes(packed, tmp_path):
    folder = spoil(tmp_path / "changed", packed, lambda file: None)
    (folder / INDEX).unlink()
    before = Shards(places(f"shards:{folder}"))
    first = (folder / "train-000000.tar").read_bytes()
    (folder / "train-000001.tar").write_bytes(first)
    os.utime(folder / "train-000001.tar", (1, 1))
    after = Shards(places(f"shards:{folder}"))
    start, size = int(after.order.starts[1]), int(after.order.counts[0])
    assert [after[start + i].getvalue() for i in range(size)] == [after[i].getvalue() for i in range(size)]
    assert before[int(before.order.starts[1])].getvalue() != after[start].getvalue()


def test_threads_read_what_one_reads(packed, monkeypatch):
    """More shards than are kept open."""
    monkeypatch.setattr(shards, "KEPT", 1)
    found = Shards(places(f"shards:{packed}"))
    alone = [blob.getvalue() for blob in found]
    numbers = [n for n in range(0, 60, 7) for _ in range(40)] + list(range(60)) * 5
    again = pickle.loads(pickle.dumps(found))
    with ThreadPoolExecutor(8) as pool:
        for number, data in zip(numbers, pool.map(lambda n: again[n].getvalue(), numbers), strict=True):
            assert data == alone[number]


def test_names_that_look_alike_are_not_taken_for_one_another(short, tmp_path):
    """A suffix, a dot or a folder apart: no false alarm about what the table withheld."""
    for n in range(20):
        for name in (f"a/{n}.png", f"a_{n}.png", f"a/{n}.ppm"):
            (tmp_path / "alike" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((20, 20), 40).convert("RGB").save(tmp_path / "alike" / name)
    paths = sorted((tmp_path / "alike").rglob("*.p*"))
    sides = ["test" if path.suffix == ".ppm" else "train" for path in paths]
    lines = [
        f"{p.relative_to(tmp_path / 'alike')},{'xy'[n % 2]},{side}"
        for n, (p, side) in enumerate(zip(paths, sides, strict=True))
    ]
    (tmp_path / "t.csv").write_text("\n".join(["image,kind,side", *lines]))
    table = Table(str(tmp_path / "t.csv"), ("kind",), split_column="side")
    pack(tmp_path / "alike", tmp_path / "out", table=table)
    pretrain(short.replace(data=f"shards:{tmp_path / 'out'}", probe_epochs=0.0), tmp_path / "run", progress=False)
    found = evaluate(tmp_path / "run", ("knn",), data=f"folder:{tmp_path / 'alike'}", table=table)
    assert (found["pretrained_on"], found["tested"]) == (0, 20)


def test_a_cache_that_is_no_folder_costs_the_tables_only(packed, tmp_path, monkeypatch):
    """And is told once, however many shards there are."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IJEPA_CACHE", str(tmp_path / "file"))
    found = Shards(places(f"shards:{packed}"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        assert len([blob.getvalue() for blob in found]) == 60
    assert len(found.places) > 2
    assert ["are not kept" in str(w.message) for w in told] == [True]


def test_what_a_stopped_pack_left_is_not_trained_on(packed, tmp_path):
    left = spoil(tmp_path / "left", packed, lambda file: file.rename(f"{file}.part"))
    (left / INDEX).unlink()
    with pytest.raises(DataError, match="what a `pack` left that was stopped: remove it, and pack anew"):
        places(f"shards:{left}")


def test_pack_leaves_nothing_behind_that_is_in_its_own_way(pictures, tmp_path, capsys, monkeypatch):
    """It is told when too many are seen to be broken, and what it advises then goes."""
    root = tmp_path / "pictures"
    for n, path in enumerate(sorted(pictures.rglob("*.png"))):
        (root / path.relative_to(pictures)).parent.mkdir(parents=True, exist_ok=True)
        (root / path.relative_to(pictures)).write_bytes(b"" if n % 2 else path.read_bytes())
    monkeypatch.setattr(packing, "TOGETHER", 4)
    read, encoded = [], packing.encoded
    monkeypatch.setattr(packing, "encoded", lambda *said: (read.append(1), encoded(*said))[1])
    assert main(["pack", str(root), str(tmp_path / "out")]) == 2
    assert "--allow-skipped" in capsys.readouterr().err
    assert len(read) < 60
    assert list((tmp_path / "out").iterdir()) == []
    assert main(["pack", str(root), str(tmp_path / "out"), "--allow-skipped"]) == 0


# --- other people's shards


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 12), (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_webdataset_layouts_are_read(tmp_path):
    members = {
        "a/1.seg.png": png(1),
        "a/1.cls": b"7",
        "b/1.json": json.dumps({"label": 3, "caption": "x"}).encode(),
        "b/1.png": png(2),
        "c.txt": b"no picture",
        "long/" + "x" * 200 + ".png": png(3),
        "long/" + "x" * 200 + ".cls": b"nine",
    }
    write_tar(tmp_path / "some-03.tar", members)
    found = Shards(places(f"shards:{tmp_path}/some-{{03..03}}.tar"))
    assert [np.asarray(Image.open(blob))[0, 0, 0] for blob in found] == [1, 2, 3]
    assert found.labels([0, 1, 2]).tolist() == [7, 3, -1]
    assert str(found[1]) == f"{tmp_path}/some-03.tar/b/1.png"


def test_patterns_and_what_is_missing(tmp_path, packed):
    assert expand("a-{008..011}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert expand("{1..2}/{0..1}.tar") == ["1/0.tar", "1/1.tar", "2/0.tar", "2/1.tar"]
    with pytest.raises(DataError, match=r"9\d of 100 shards are not there"):
        places(f"shards:{packed}/train-{{000000..000099}}.tar")
    with pytest.raises(DataError, match=r"no shards train-.*pack"):
        places(f"shards:{tmp_path}")
    with pytest.raises(DataError, match="no folder"):
        places("shards:nowhere")
    assert places(f"shards:{packed}", "test")[0] == f"{packed}/test-000000.tar"
    (tmp_path / "val-000000.tar").touch()
    assert places(f"shards:{tmp_path}", "test") == [f"{tmp_path}/val-000000.tar"]
    (tmp_path / "test-000000.tar").touch()
    assert places(f"shards:{tmp_path}", "test") == [f"{tmp_path}/test-000000.tar"]


# --- elsewhere


class Server(http.server.BaseHTTPRequestHandler):
    """Serves a folder with ranges, and fails as it is told: {file name: [what to do first, then ...]}."""

    troubles: ClassVar[dict[str, list[str]]] = {}
    down: ClassVar[int] = 0
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def __init__(self, *args, folder: Path) -> None:
        self.folder = folder
        super().__init__(*args)

    def log_message(self, *_args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        name = self.path.rpartition("/")[2]
        file = self.folder / name
        if not file.is_file():
            return self.send_error(404)
        if Server.down:  # for all that is asked, its size as well
            Server.down -= 1
            return self.send_error(503)
        data, asked = file.read_bytes(), self.headers.get("Range")
        trouble = self.troubles[name].pop(0) if body and self.troubles.get(name) else ""
        if body:
            self.asked.append((name, asked))
        if trouble == "busy":
            return self.send_error(503)
        if trouble == "wrong":
            data = bytes(len(data))
        start, end = 0, len(data)
        if asked and trouble != "no ranges":
            low, _, high = asked.removeprefix("bytes=").partition("-")
            start, end = int(low), min(int(high or end) + 1, end)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            self.wfile.write(data[start : start + (end - start) // 2] if trouble == "cut" else data[start:end])
            if trouble == "cut":
                self.close_connection = True
        return None


@pytest.fixture
def served(packed):
    """The shards behind an address."""
    Server.troubles, Server.asked, Server.down = {}, [], 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, folder=packed))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_shards_elsewhere_give_the_same_pictures(sharded, served):
    pytest.importorskip("aiohttp")
    here, there = crops_of(sharded), crops_of(sharded.replace(data=f"shards:{served}", workers=1))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    fetched = [name for name, _ in Server.asked if name.endswith(".tar")]
    assert len(fetched) == len(set(fetched))  # each once


def test_classes_of_shards_elsewhere_are_known_without_fetching_them(packed, served, monkeypatch):
    """`pack` writes a table beside each; then each shard comes once, in order, though few have room."""
    pytest.importorskip("aiohttp")
    room = 2.1 * max(file.stat().st_size for file in packed.glob("*.tar"))
    there = labelled(f"shards:{served}", "train", 16, room=room)
    asked = [name for name, _ in Server.asked]
    assert {name.partition("-")[0] for name in asked if name.endswith(TABLE)} == {"train"}
    assert not [name for name in asked if name.endswith(".tar")]
    here = labelled(f"shards:{packed}", "train", 16)
    assert torch.equal(there.labels, here.labels)
    monkeypatch.setattr(pictures, "CHUNK", 4)
    monkeypatch.setattr(pictures, "THREADS", 2)
    assert torch.equal(there.images(), here.images())
    few = labelled(f"shards:{served}", "train", 16, 20, room=room)
    assert few.labels.tolist() == here.labels[torch.from_numpy(few.source.numbers)].tolist()
    assert (np.diff(few.source.numbers) > 0).all()
    fetched = [name for name, _ in Server.asked if name.endswith(".tar")]
    assert len(fetched) == len(set(fetched))


@pytest.mark.parametrize("text", [None, b"garbage", "another's"])
def test_a_table_that_is_not_its_shard_s_is_told(packed, tmp_path, capsys, text):
    """By `verify`; and where the shards are elsewhere the shard itself says what it holds."""
    folder = spoil(tmp_path / "tables", packed, lambda file: None)
    table, memory = folder / f"train-000000.tar{TABLE}", fsspec.filesystem("memory")
    if text is None:
        table.unlink()
    else:
        table.write_bytes(text if isinstance(text, bytes) else (folder / f"train-000001.tar{TABLE}").read_bytes())
    assert main(["verify", str(folder)]) == 2
    assert f"train-000000.tar{TABLE}: " in capsys.readouterr().err
    for file in folder.iterdir():
        memory.pipe_file(f"/{tmp_path.name}/{file.name}", file.read_bytes())
    with pytest.warns(UserWarning, match=rf"train-000000\.tar{TABLE} is not .*: the shard is fetched for what it says"):
        there = labelled(f"shards:memory://{tmp_path.name}", "train", 16)
    assert torch.equal(there.labels, labelled(f"shards:{packed}", "train", 16).labels)


def test_shards_elsewhere_are_not_drawn_from_here_and_there(packed, served):
    """A batch of random pictures would have as many shards fetched, for each batch."""
    pytest.importorskip("aiohttp")
    size = sum(file.stat().st_size for file in packed.glob("train-*.tar"))
    Streamed(labelled(f"shards:{served}", "train", 16, room=size))
    Streamed(labelled(f"shards:{packed}", "train", 16, room=1))
    with pytest.raises(DataError, match=r"random order from .* copy the shards to this machine"):
        Streamed(labelled(f"shards:{served}", "train", 16, room=size - 1))
    with pytest.raises(DataError, match="fetch some of the shards, then look"):
        look(f"shards:{served}")


@pytest.mark.parametrize("ample", [True, False])
def test_shards_without_an_index_are_counted_once(packed, served, monkeypatch, ample):
    """A second start, or another process, asks for none of them, though most had to go again."""
    pytest.importorskip("aiohttp")
    files = sorted(packed.glob("train-*.tar"))
    room = 1e9 if ample else 2.1 * max(file.stat().st_size for file in files)
    monkeypatch.setattr(shards, "index_of", lambda folder: {})
    start = partial(Shards, [f"{served}/{file.name}" for file in files], 1, room)
    counts = start().order.counts.tolist()
    assert counts == [len(read_table(file)) for file in files]
    asked = len(Server.asked)
    monkeypatch.setattr(tars, "read_table", lambda file: pytest.fail(f"{file} was gone through again"))
    assert start().order.counts.tolist() == counts
    assert len(Server.asked) == asked


@pytest.mark.parametrize("troubles", [["busy"], ["cut", "busy"], ["wrong", "cut"], ["no ranges"], ["down"]])
def test_a_server_in_trouble_is_asked_again(packed, served, tmp_path, monkeypatch, troubles):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(remote, "BLOCK", 4000)
    Server.troubles = {"train-000000.tar": list(troubles)}
    Server.down = 2 * (troubles == ["down"])
    about = json.loads((packed / INDEX).read_text())["shards"]["train-000000.tar"]
    fetch = partial(remote.fetch, f"{served}/train-000000.tar", tmp_path / "kept", 1e9, about["sha256"])
    if troubles == ["no ranges"]:
        found = fetch()
    else:
        with pytest.warns(UserWarning, match=r"train-000000\.tar: .*; asked again in 0.01 s"):
            found = fetch()
    assert found.read_bytes() == (packed / "train-000000.tar").read_bytes()
    assert not list(found.parent.glob("*.part"))


def test_a_server_that_falls_silent_is_given_up(tmp_path, monkeypatch):
    """It takes the request and never answers; processes that wait for this one wait ten minutes."""
    pytest.importorskip("aiohttp")
    assert 2 * remote.STALL * (len(WAITS) + 1) + sum(WAITS) < STEP.total_seconds()
    monkeypatch.setattr(remote, "WAITS", (0.01,))
    monkeypatch.setattr(remote, "STALL", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/train-000000.tar"
        begun = time.monotonic()
        with pytest.warns(UserWarning, match="asked again"), pytest.raises(remote.RemoteError, match="asked 2 times"):
            remote.fetch(url, tmp_path / "kept", 1e9)
        assert time.monotonic() - begun < 20


def test_what_one_could_not_get_those_that_waited_do_not_ask_for(tmp_path, monkeypatch):
    """Each in its turn would take minutes, while other processes wait for all of them."""
    asked, told = [], threading.Barrier(4)

    def download(*_):
        asked.append(1)
        time.sleep(0.5)
        raise OSError("silence")

    def fetch(_):
        told.wait()
        with pytest.raises(remote.RemoteError, match="silence"):
            remote.fetch("http://nowhere/train-000000.tar", tmp_path, 1e9)

    monkeypatch.setattr(remote, "download", download)
    with warnings.catch_warnings(), ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("ignore")
        list(pool.map(fetch, range(4)))
    assert len(asked) == 1 + len(remote.WAITS)
    told = threading.Barrier(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fetch(0)
    assert len(asked) == 2 * (1 + len(remote.WAITS)), "who comes later asks anew"


def test_what_is_not_there_is_asked_for_once():
    """Other file systems than HTTP give a cause for it too."""
    cause, asked = RuntimeError("NoSuchKey"), []

    def missing():
        asked.append(1)
        raise FileNotFoundError("no such key") from cause

    with pytest.raises(remote.RemoteError, match="no such key"):
        remote.patiently("s3://bucket/index.json", missing)
    assert len(asked) == 1
    denied = type("Denied", (Exception,), dict(status=403))

    def refused():
        asked.append(1)
        raise denied("forbidden")

    with pytest.raises(remote.RemoteError, match="forbidden"):
        remote.patiently("https://host/index.json", refused)
    assert len(asked) == 2


def test_an_index_that_may_not_be_read_is_none(monkeypatch):
    """S3 forbids what is not there to those who may not list a folder."""
    denied = type("Denied", (Exception,), dict(status=403))

    class Files:
        def cat_file(self, path):
            raise denied("forbidden")

    monkeypatch.setattr(remote, "system", lambda url: (Files(), url))
    with pytest.warns(UserWarning, match="may not be read"):
        assert shards.index_of("https://host/bucket") == {}


def test_a_shard_that_was_replaced_at_its_address_is_named(packed, tmp_path):
    """Its table is that of the one before; without an index nobody else would notice."""
    memory = fsspec.filesystem("memory")
    write_tar(tmp_path / "other.tar", {f"{n}.png": png(n) for n in range(40)})
    memory.pipe_file("/moved/t-0.tar", (packed / "train-000000.tar").read_bytes())
    assert Shards(["memory://moved/t-0.tar"], 1)[0].getvalue()
    memory.pipe_file("/moved/t-0.tar", (tmp_path / "other.tar").read_bytes())
    for old in (tmp_path / "cache").rglob("*.tar"):
        old.unlink()
    with pytest.raises(DataError, match=r"in a file of .* bytes that had .*: remove "):
        Shards(["memory://moved/t-0.tar"], 1)[0]


def test_an_empty_object_is_a_broken_shard(packed):
    memory = fsspec.filesystem("memory")
    for number in range(25):
        memory.pipe_file(f"/holes/t-{number:02}.tar", (packed / "train-000000.tar").read_bytes() if number else b"")
    with pytest.warns(UserWarning, match=r"shard skipped .*t-00\.tar: it is empty"):
        found = Shards(places("shards:memory://holes"), 1)
    assert found.order.counts[0] == 0 < found.order.counts[1]


def test_what_a_lost_connection_left_is_gone_on_with(packed, served, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(remote, "BLOCK", 4000)
    monkeypatch.setattr(remote, "WAITS", ())
    Server.troubles = {"train-000000.tar": ["", "", "busy"]}
    fetch = partial(remote.fetch, f"{served}/train-000000.tar", tmp_path / "kept", 1e9)
    with pytest.raises(remote.RemoteError):
        fetch()
    assert fetch().read_bytes() == (packed / "train-000000.tar").read_bytes()
    ranges = [asked for name, asked in Server.asked if name == "train-000000.tar"]
    assert ranges[:4] == ["bytes=0-3999", "bytes=4000-7999", "bytes=8000-11999", "bytes=8000-11999"]


@pytest.mark.filterwarnings("ignore:.*asked again")
def test_a_shard_that_stays_wrong_is_named_and_skipped(sharded, served):
    pytest.importorskip("aiohttp")
    Server.troubles = {"train-000001.tar": ["wrong"] * 100}
    recipe = sharded.replace(data=f"shards:{served}", allow_skipped=True)
    stream = Stream(opened(recipe), CPU)
    with pytest.warns(UserWarning, match=r"train-000001.tar: its SHA-256 is .*, the index says .*, asked 3 times"):
        list(stream.batches(plan(stream.layout, recipe, 0, 8), recipe))


def test_room_is_bounded(sharded, served, packed, tmp_path):
    pytest.importorskip("aiohttp")
    largest = max(file.stat().st_size for file in packed.glob("train-*.tar"))
    room = 4.2 * largest
    recipe = sharded.replace(data=f"shards:{served}", shard_room=room / 1e9)
    crops_of(recipe, 0, 8)
    kept = list((tmp_path / "cache").rglob("*.tar"))
    assert 2 <= len(kept) < len(list(packed.glob("train-*.tar")))
    assert sum(file.stat().st_size for file in kept) <= room
    with pytest.raises(DataError, match=r"2 shards are shuffled together .* shard_room is .*--shards-together"):
        opened(recipe.replace(shard_room=3 * largest / 1e9))


def test_room_is_bounded_when_several_come_at_once(tmp_path, monkeypatch):
    """Slow to make room: without a lock each would count on the same room."""
    files = fsspec.filesystem("memory")
    for number in range(8):
        files.pipe(f"/room/{number}.tar", bytes(1000))

    def slowly(cache, room, make_room=remote.make_room):
        make_room(cache, room)
        time.sleep(0.05)

    monkeypatch.setattr(remote, "make_room", slowly)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: remote.fetch(f"memory://room/{n}.tar", tmp_path, 3000), range(8)))
    assert sum(file.stat().st_size for file in tmp_path.glob("*.tar")) <= 3000


def test_a_table_that_cannot_be_had_costs_no_more_than_a_warning(packed, served):
    pytest.importorskip("aiohttp")
    Server.troubles = {f"train-000000.tar{TABLE}": ["busy"] * 100}
    with pytest.warns(UserWarning, match=rf"train-000000\.tar{TABLE} .*: the shard is fetched for what it says"):
        there = labelled(f"shards:{served}", "train", 16)
    assert torch.equal(there.labels, labelled(f"shards:{packed}", "train", 16).labels)


def test_what_went_to_make_room_is_not_held_open(packed, served, tmp_path):
    """Its bytes would stay on the disk."""
    pytest.importorskip("aiohttp")
    largest = max(file.stat().st_size for file in packed.glob("train-*.tar"))
    found = Shards(places(f"shards:{served}"), 1, 2.2 * largest)
    for number in range(len(found)):
        assert found[number].getvalue()
        held = {os.fstat(file.fileno()).st_ino: os.fstat(file.fileno()).st_size for file in found.files.values()}
        kept = {file.stat().st_ino: file.stat().st_size for file in (tmp_path / "cache").rglob("*.tar")}
        assert sum((held | kept).values()) <= 2.2 * largest


@pytest.fixture
def leaving(monkeypatch):
    """Each shard that is fetched goes at once, but for every third time: another process made room."""
    fetch, asked = remote.fetch, []

    def fetched(url, *said):
        file = fetch(url, *said)
        asked.append(url)
        if len(asked) % 3:
            file.unlink()
        return file

    monkeypatch.setattr(remote, "fetch", fetched)
    return asked


def test_a_shard_that_goes_before_it_is_opened_is_fetched_again(packed, leaving):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/gone/t-0.tar", (packed / "train-000000.tar").read_bytes())
    found = Shards(["memory://gone/t-0.tar"], 1)
    assert [blob.getvalue() for blob in found] == [blob.getvalue() for blob in Shards([f"{packed}/train-000000.tar"])]
    assert len(leaving) == 6  # three times for its table, three times to be read


def test_any_file_system_of_fsspec(sharded, packed):
    memory = fsspec.filesystem("memory")
    for file in packed.iterdir():
        memory.pipe_file(f"/shelf/{file.name}", file.read_bytes())
    there = crops_of(sharded.replace(data="shards:memory://shelf"))
    assert all(torch.equal(a, b) for a, b in zip(crops_of(sharded), there, strict=True))


# --- pack


def test_the_same_folder_gives_the_same_shards(pictures, packed, tmp_path):
    pack(pictures, tmp_path / "again", 16_000)
    for file in packed.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    about = json.loads((packed / INDEX).read_text())
    assert about["classes"] == ["across", "down"]
    for name, said in about["shards"].items():
        assert remote.checksum(packed / name) == said["sha256"]
        assert len(read_table(packed / name)) == said["pictures"]
    with pytest.raises(DataError, match="holds shards already"):
        pack(pictures, packed, 16_000)


def test_pictures_are_made_smaller(tmp_path, capsys):
    root = tmp_path / "large"
    random = np.random.default_rng(0)
    for number in range(10):
        file = root / ("ants" if number % 2 else "bees") / f"{number}.x.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(file)
    (root / "ants" / "broken.jpg").write_bytes(b"nothing")
    command = ["pack", str(root), str(tmp_path / "out"), "--side", "32"]
    assert main([*command, "--allow-skipped"]) == 0
    said = capsys.readouterr()
    assert "8 train, 2 test pictures in 2 shards" in said.out
    assert "broken.jpg: " in said.err
    found = Shards(places(f"shards:{tmp_path / 'out'}"))
    assert {Image.open(blob).size for blob in found} == {(48, 32)}
    assert main(["pack", f"folder:{root}", str(tmp_path / "as-they-are"), "--allow-skipped"]) == 0
    said = capsys.readouterr()
    assert "8 train, 2 test pictures in 2 shards" in said.out  # what is no picture is no picture here either
    assert "broken.jpg: " in said.err
    assert main(["pack", str(root), str(tmp_path / "other"), "--shard-size", "much"]) == 2
    assert bytes_of("1.5 GB") == 1.5e9


def test_deep_pictures_keep_their_numbers(tmp_path):
    for number in range(10):
        (tmp_path / "deep").mkdir(exist_ok=True)
        values = number + np.ones((5, 40, 1)) * np.arange(50)
        np.save(tmp_path / "deep" / f"{number}.npy", values.astype(np.uint16))
    with pytest.raises(DataError, match="pack without --side"):
        pack(tmp_path / "deep", tmp_path / "small", side=32)
    pack(tmp_path / "deep", tmp_path / "out")
    found = opened(settled_of(tmp_path / "out"))
    assert found is not None
    assert settled(settled_of(tmp_path / "out")).pixels.channels == 5


def settled_of(folder: Path):
    from full_ijepa.recipes.base import Recipe

    return Recipe(data=f"shards:{folder}", image_size=32, patch=16)


def test_a_file_that_is_no_tar_is_said(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    with pytest.raises(BrokenShardError, match=r"a\.tar"):
        read_table(tmp_path / "a.tar")


def test_pictures_of_the_shards_are_those_of_the_folder(pictures, packed):
    files = {path.read_bytes() for path in pictures.rglob("train/**/*.png")}
    assert {blob.getvalue() for blob in Shards(places(f"shards:{packed}"))} == files
