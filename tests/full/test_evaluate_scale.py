"""Evaluation of sets of any size by any number of processes: the same numbers, in memory that does not grow."""

from __future__ import annotations

import runpy
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from full_ijepa.distributed import World
from full_ijepa.evaluate import features, heads, paper, pictures, protocols, run, tuning
from full_ijepa.evaluate.features import Streamed, alone, averages, share, together
from full_ijepa.evaluate.pictures import Labelled, ahead, labelled
from full_ijepa.recipes.base import Recipe
from full_ijepa.vit import build_encoder
from tests.full.test_train import environment

# What both numbers of processes do: features that every protocol uses, those that need nothing else, and both kinds of
# training in the loop.
JOB = """
import sys
import torch
from full_ijepa.distributed import world
from full_ijepa.evaluate import features, heads, paper, pictures, tuning
from full_ijepa.evaluate.pictures import labelled
from full_ijepa.evaluate.protocols import PROTOCOLS, Subject
from full_ijepa.recipes.base import Recipe
from full_ijepa.vit import build_encoder

data, out, kept = sys.argv[1], sys.argv[2], int(sys.argv[3])
pictures.CHUNK, features.KEPT = 8, kept
said = []

def kept(fit, **options):  # what it says is kept
    def act(*args, **more):
        found = fit(*args, **more, **options)
        verdict = found[0] if isinstance(found, tuple) else found
        said.append([verdict.scores, verdict.rate, str(found[1]) if verdict is not found else ""])
        return found
    return act

tuning.attentive, tuning.finetune = kept(tuning.attentive, epochs=3), kept(tuning.finetune, epochs=3)
heads.linear, paper.linear = kept(heads.linear), kept(paper.linear)
with world("cpu") as here:
    recipe = Recipe(data=data, image_size=16, encoder="toy", patch=4, precision="fp32")
    train, test = (labelled(data, split, 16) for split in ("train", "test"))
    torch.manual_seed(0)
    s = Subject(build_encoder("toy", 16, 4), recipe, train, test, here.device, here=here)
    found = {name: protocol(s) for name, protocol in PROTOCOLS.items() if name != "dense"}
    x = features.gathered(s.features(train, "train"), len(train), here)
    torch.save([x, found, said], f"{out}{here.rank}")
"""


def numbers(found) -> list[float]:
    """Every number in what was found, whatever holds it."""
    if isinstance(found, heads.Verdict):
        found = (found.scores, found.rate)
    if isinstance(found, torch.Tensor):
        return found.flatten().tolist()
    if isinstance(found, dict | tuple | list):
        return [n for part in (found.values() if isinstance(found, dict) else found) for n in numbers(part)]
    return [found] if isinstance(found, int | float) else []


def run_here(line: list[str]) -> None:
    """A script and its arguments, in this process; what it sets is put back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", line)
        own = [(module, "linear") for module in (heads, paper)] + [(tuning, name) for name in ("attentive", "finetune")]
        for module, name in [(pictures, "CHUNK"), (features, "KEPT"), *own]:
            patch.setattr(module, name, getattr(module, name))
        runpy.run_path(line[0], run_name="__main__")


@pytest.fixture(scope="module")
def job(tmp_path_factory, pictures):
    """Runs JOB in so many processes, one alone being this one, with so many bytes kept; what each of them found."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.py").write_text(JOB)

    def done(processes: int, kept: int) -> list:
        out = folder / f"{processes}-{kept}.pt"
        line = [str(folder / "job.py"), f"folder:{pictures}", str(out), str(kept)]
        if processes == 1:
            run_here(line)
        else:
            start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            ended = subprocess.run([sys.executable, *start, *line], env=environment(), capture_output=True, text=True)
            assert ended.returncode == 0, ended.stderr[-3000:]
        return [torch.load(f"{out}{rank}", weights_only=True) for rank in range(processes)]

    return done


@pytest.mark.slow  # quick: the parts that the processes share, below
def test_two_processes_that_keep_nothing_find_what_one_finds_that_keeps_all(job):
    """Features bit for bit; every protocol's numbers, scores and choices, in both."""
    ((x, told, said),) = job(1, 10**9)
    assert len(said) > 10
    for x2, found, said2 in job(2, 0):
        assert torch.equal(x, x2)
        assert numbers(found) == pytest.approx(numbers(told), abs=0.1)
        assert [choice for _, *choice in said2] == [choice for _, *choice in said]
        assert numbers([scores for scores, *_ in said2]) == pytest.approx(numbers([s for s, *_ in said]), abs=1e-3)


@pytest.mark.parametrize(("count", "size"), [(1, 3), (124, 2), (125, 2), (1000, 3), (1001, 7)])
def test_shares_are_whole_chunks_and_the_leader_has_one(count, size):
    parts = [share(count, World(rank, size, torch.device("cpu"))) for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(count))
    assert all(part.start % pictures.CHUNK == 0 for part in parts if part)
    assert len(parts[0]) > 0


class Thread(World):
    """A process played by a thread, which hands the others its tensors through a box."""

    def each(self, x):
        self.box[self.rank] = x.clone()
        self.meeting.wait()
        found = list(self.box)
        self.meeting.wait()
        return found

    def total(self, x):
        return sum(self.each(x))


def played(count: int, act) -> list:
    """What act(here) returns in each of so many processes."""
    Thread.box, Thread.meeting = [None] * count, threading.Barrier(count, timeout=60)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda rank: act(Thread(rank, count, torch.device("cpu"))), range(count)))


def mine(x: torch.Tensor, here: World) -> torch.Tensor:
    """The rows of a process."""
    part = share(len(x), here)
    return x[part.start : part.stop]


SAMPLES = torch.randn(90, 7, generator=torch.Generator().manual_seed(0))
ASKED = torch.randn(41, 7, generator=torch.Generator().manual_seed(1))
CLASSES = SAMPLES[:, :3].argmax(1)
TAGS, COLUMNS = SAMPLES[:, :3] > 0.3, SAMPLES[:, :2] ** 2
GROUPS, FEW = torch.arange(90) // 3, torch.randperm(90, generator=torch.Generator().manual_seed(2))[:11]


def near(x, q, here, count=90):
    train, test = (Labelled(None, CLASSES[:n], (), 16) for n in (count, len(ASKED)))
    return protocols.near(SimpleNamespace(train=train, test=test, here=here, device=here.device, classes=3), x, q)


FITTED = {
    "neighbours": near,
    "classes": lambda x, q, here: heads.linear(x, CLASSES, q, 3, epochs=4, here=here),
    "classes, in groups": lambda x, q, here: heads.linear(x, CLASSES, q, 3, epochs=2, groups=GROUPS, here=here),
    "a few classes": lambda x, q, here: heads.linear(x, CLASSES, q, 3, epochs=4, rate=0.01, here=here, few=FEW),
    "tags": lambda x, q, here: heads.linear(x, TAGS, q, 3, epochs=4, here=here),
    "numbers": lambda x, q, here: heads.ridge(x, COLUMNS, q, here=here),
    "a few numbers": lambda x, q, here: heads.ridge(x, COLUMNS, q, penalty=1.0, here=here, few=FEW),
    "the paper's": lambda x, q, here: paper.linear({"last": (x, q)}, CLASSES, 3, here=here, epochs=4)[0],
    "the paper's, numbers": lambda x, q, here: paper.linear({"last": (x, q)}, COLUMNS, 2, here=here, epochs=4)[0],
}


@pytest.mark.parametrize("what", FITTED)
@pytest.mark.parametrize("size", [2, 5])
def test_what_is_fitted_to_shares_is_what_is_fitted_to_all(what, size, monkeypatch):
    """By every process alike; of five one has no test sample at all."""
    monkeypatch.setattr(pictures, "CHUNK", 11)
    monkeypatch.setattr(heads, "BLOCK", 7)
    fit = FITTED[what]
    told = numbers(fit(SAMPLES, ASKED, alone()))
    for found in played(size, lambda here: fit(mine(SAMPLES, here), mine(ASKED, here), here)):
        assert numbers(found) == pytest.approx(told, abs=1e-4)


def test_neighbours_are_all_samples_where_these_are_few(monkeypatch):
    """Fewer than are asked for, some on the other side (cosines below 0), and processes that have none."""
    monkeypatch.setattr(pictures, "CHUNK", 4)
    few = SAMPLES[:6]
    told = near(few, ASKED, alone(), len(few))
    assert told.min() > 0
    for found in played(5, lambda here: near(mine(few, here), mine(ASKED, here), here, len(few))):
        assert torch.allclose(found, told, atol=1e-6)


def test_large_features_lie_in_a_file_that_nobody_sees(monkeypatch, tmp_path, pictures):
    data, encoder = labelled(f"folder:{pictures}", "train", 16), build_encoder("toy", 16, 4)
    (kept,) = together([averages(encoder)], data, alone(), tmp_path)
    monkeypatch.setattr(features, "KEPT", 100)
    (laid,) = together([averages(encoder)], data, alone(), tmp_path)
    assert torch.equal(kept, laid)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:  # the others were faster
        patch.setattr(features.os, "posix_fallocate", Mock(side_effect=OSError("no space left")), raising=False)
        with pytest.raises(OSError, match=r"features need .* make room"):
            together([averages(encoder)], data, alone(), tmp_path)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: type("Usage", (), dict(free=7))())
    with pytest.raises(OSError, match=r"features need .* make room, or take fewer labels \(--most\)"):
        together([averages(encoder)], data, alone(), tmp_path)


def test_what_counts_is_the_room_that_all_processes_need(monkeypatch, tmp_path):
    monkeypatch.setattr(features, "KEPT", 1000)
    memory, file = (features.roomy((25, 4), torch.float32, tmp_path, processes) for processes in (2, 3))
    assert memory.untyped_storage().resizable()
    assert not file.untyped_storage().resizable()  # a map of a file


def test_tokens_are_kept_only_while_they_are_few(monkeypatch, pictures):
    data, encoder = labelled(f"folder:{pictures}", "train", 16), build_encoder("toy", 16, 4)
    kept = features.tokens_of(encoder, data, alone())
    assert isinstance(kept, torch.Tensor)
    assert isinstance(features.pictures_of(data, alone()), torch.Tensor)
    pair = World(0, 2, torch.device("cpu"))  # of which each would keep all
    monkeypatch.setattr(features, "KEPT", kept.nbytes)
    assert isinstance(features.tokens_of(encoder, data, pair), Streamed)
    monkeypatch.setattr(features, "KEPT", data.nbytes)
    assert isinstance(features.pictures_of(data, pair), Streamed)
    monkeypatch.setattr(features, "KEPT", kept.nbytes - 1)
    made = features.tokens_of(encoder, data, alone())
    assert isinstance(made, Streamed)
    index = torch.tensor([59, 3, 3, 20])
    (found,) = made.batches([index], torch.device("cpu"))
    assert torch.allclose(found.float(), kept[index].float(), atol=2e-3)
    monkeypatch.setattr(features, "KEPT", data.nbytes - 1)
    (images,) = features.batches(features.pictures_of(data, alone()), [index], torch.device("cpu"))
    assert torch.equal(images, data.images()[index])
    (none,) = made.batches([index[:0]], torch.device("cpu"))  # a process without a sample of a last, small batch
    assert none.shape == (0, *kept.shape[1:])


@pytest.fixture
def subjects(pictures):
    recipe = Recipe(data=f"folder:{pictures}", image_size=16, encoder="toy", patch=4, precision="fp32")
    parts = [labelled(recipe.data, split, 16) for split in ("train", "test")]
    return run.subjects_of(build_encoder("toy", 16, 4), recipe, *parts, [0, 1, 2], alone(), None)


def test_a_set_is_read_once_for_all_and_each_encoder_runs_once(subjects, monkeypatch):
    """Three seeds: one trained encoder, three random ones, pixels."""
    read, encoded = [], []
    take = pictures.Labelled.take
    monkeypatch.setattr(pictures.Labelled, "take", lambda self, part: read.append(part) or take(self, part))
    monkeypatch.setattr(
        features.Encoder, "layers", lambda self, x, last: encoded.append(id(self)) or [x.mean((2, 3))[:, None]]
    )
    for protocol in ("knn", "linear", "lowshot"):
        run.learn_for(protocol, [subject for _, subject in subjects])
    assert len(read) == 2, "train and test, 60 pictures each"
    assert sorted(encoded.count(one) for one in set(encoded)) == [2, 2, 2, 2]
    assert subjects[0][1].known is subjects[3][1].known is not subjects[1][1].known


def test_tokens_are_made_once_for_the_seeds_of_an_encoder_and_kept_of_one_at_a_time(subjects, monkeypatch):
    """Three seeds: one trained encoder, three random ones; pixels have no tokens."""
    made, kept, rows = [], [], {}

    def judge(subject):
        kept.append({id(s.known) for _, s in subjects if "train tokens" in s.known})
        return attentive(subject)

    attentive, tokens_of = run.PROTOCOLS["attentive"], protocols.tokens_of
    monkeypatch.setitem(run.PROTOCOLS, "attentive", judge)
    monkeypatch.setattr(protocols, "tokens_of", lambda *args: made.append(id(args[0])) or tokens_of(*args))
    monkeypatch.setattr(tuning, "attentive", lambda x, *args, **options: heads.Verdict(torch.eye(2)[[0] * 60], len(x)))
    run.add("attentive", subjects, rows)
    assert sorted(made.count(one) for one in set(made)) == [2, 2, 2, 2]
    assert [len(of) for of in kept] == [0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert not any("train tokens" in s.known for _, s in subjects)
    assert {row: len(found) for row, found in rows["attentive"].items()} == {"ijepa": 3, "random": 3}
    assert list(rows["attentive"]) == ["ijepa", "random"]


def test_the_paper_chooses_among_all_its_settings(subjects):
    """And its row stands in the table, with what was chosen."""
    found = run.PROTOCOLS["paper"](subjects[0][1])
    assert found["accuracy"] > 90  # stripes across or down
    assert found["rate"] in (0.01, 0.05, 0.001)
    assert found["layers"] in ("last", "last4")
    assert isinstance(found["norm"], bool)


def test_what_reads_ahead_keeps_order_stops_early_and_passes_errors_on():
    started = []

    def work(n: int) -> int:
        started.append(n)
        return 10 // (5 - n)

    found = ahead(work, iter(range(1000)))
    assert [next(found) for _ in range(3)] == [2, 2, 3]
    found.close()
    assert len(started) < 1000
    with pytest.raises(ZeroDivisionError):
        list(ahead(work, range(6)))


# glibc gives large blocks back at once, and threads share one heap: peaks are what was in use, to a few megabytes.
TIDY = dict(MALLOC_MMAP_THRESHOLD_="1000000", MALLOC_ARENA_MAX="1")
GROWING = """
import resource, sys
import torch
from full_ijepa.evaluate import features, pictures, tuning
from full_ijepa.evaluate.pictures import labelled
from full_ijepa.recipes.base import Recipe
from full_ijepa.vit import Encoder

features.KEPT, pictures.THREADS = 10**6, 2
pictures.CHUNK = tuning.BATCH = tuning.JUDGED = 32  # so that few pictures are many batches
recipe = Recipe(image_size=256, encoder="toy", patch=64)
train, test = (labelled(f"folder:{sys.argv[1]}", split, 256) for split in ("train", "test"))
encoder = Encoder(256, 64, 24, 1, 2)
def make(images):  # as many tokens as they like
    return images[:, 0, ::4, ::8].flatten(1)[..., None].expand(-1, -1, 32).half()
here = features.alone()
tuning.attentive(features.Streamed(train, make), train.labels, features.Streamed(test, make), 2, 2, here, epochs=1)
sources = [features.pictures_of(part, features.alone()) for part in (train, test)]
tuning.finetune(encoder, sources[0], train.labels, sources[1], 2, recipe, epochs=1)
features.together([features.averages(encoder)], train, here)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow  # test_tokens_are_kept_only_while_they_are_few is the quick one
def test_memory_does_not_grow_with_the_set(tmp_path):
    """Four times as many pictures: their pixels alone would take 59 MB more, their tokens 39 MB."""
    picture, used = Image.fromarray(np.full((256, 256, 3), 90, np.uint8)), []
    for count in (100, 400):
        for kind in ("a", "b"):
            for split, n in (("train", count // 2), ("test", 20)):
                (folder := tmp_path / str(count) / split / kind).mkdir(parents=True)
                for number in range(n):
                    picture.save(folder / f"{number}.png")
        line = [sys.executable, "-c", GROWING, str(tmp_path / str(count))]
        ended = subprocess.run(line, env=environment() | TIDY, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr[-3000:]
        used.append(int(ended.stdout))
    assert used[1] - used[0] < 20, used


FITTING = """
import re, sys, threading
from pathlib import Path
import torch
from full_ijepa import metrics
from full_ijepa.evaluate import features, heads, paper

count, what = int(sys.argv[1]), sys.argv[2]
features.KEPT, heads.BLOCK, metrics.BLOCK = 10**6, 2000, 2000
x, y, test = features.roomy((count, 512), torch.float32, None), torch.arange(count) % 4, torch.randn(200, 512)
for part in x.split(1000):
    part.copy_(torch.randn(part.shape))
fit = dict(
    knn=lambda: metrics.neighbours(x, y, test, 4),
    linear=lambda: heads.linear(x, y, test, 4, epochs=1),
    ridge=lambda: heads.ridge(x, y[:, None].float(), test),
    paper=lambda: paper.linear({"last": (x, test)}, y, 4, epochs=1),
)[what]

def own():  # megabytes that no file stands behind
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

begun, peak, done = own(), 0, threading.Event()
def look():
    global peak
    while not done.wait(0.001):
        peak = max(peak, own() - begun)
watching = threading.Thread(target=look)
watching.start()
fit()
done.set()
watching.join()
print(peak)
"""


@pytest.mark.slow  # the quick suite has the parts that features are brought in (test_evaluate_on_gpu)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux what memory is a process's own")
@pytest.mark.parametrize("what", ["knn", "linear", "ridge", "paper"])
def test_fitting_features_on_disk_takes_memory_that_does_not_grow(what):
    """Four times as many features: their numbers alone would take 61 MB more."""
    used = []
    for count in (10_000, 40_000):
        line = [sys.executable, "-c", FITTING, str(count), what]
        ended = subprocess.run(line, env=environment() | TIDY, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr[-3000:]
        used.append(int(ended.stdout))
    assert used[1] - used[0] < 30, used
