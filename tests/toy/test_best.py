"""The best of a run: chosen by a probe on training pictures or by rank, never by loss, and not lost afterwards."""

import math

import pytest
import torch

from toy_ijepa import best as module
from toy_ijepa.best import Best
from toy_ijepa.data import ImageSet
from toy_ijepa.recipe import build
from toy_ijepa.training import History, TrainConfig, train


def stripes(count: int, classes: bool = True) -> ImageSet:
    """Two kinds of pictures, bright above or bright on the left, 16 px."""
    labels = torch.arange(count) % 2
    images = torch.randint(0, 100, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[labels == 0, :, :8] += 120
    images[labels == 1, :, :, :8] += 120
    return ImageSet(images, labels, ("above", "left") if classes else ())


def rows(**columns) -> list[dict]:
    count = len(next(iter(columns.values())))
    base = dict(std=[0.5] * count, rank=[5.0] * count) | columns
    return [
        dict(progress=(i + 1) / count, step=10 * (i + 1), **{k: v[i] for k, v in base.items()}) for i in range(count)
    ]


def play(best: Best, given: list[dict]) -> list[str]:
    """A run that has just these rows; each step leaves its mark on the encoder."""
    for row in given[:-1]:
        best.model.probed.norm.bias.data.fill_(row["step"])
        best(row)
    best.model.probed.norm.bias.data.fill_(given[-1]["step"])
    return best.close(History(rows=given[:-1], steps=given[-1]["step"]))


@pytest.fixture
def model():
    return build("ijepa", "tiny", 16, 4, seed=0)


def scored(monkeypatch, values):
    left = iter(values)
    monkeypatch.setattr(Best, "score", lambda self: next(left))


def test_the_best_by_knn_is_kept_and_falling_is_named(model, monkeypatch):
    scored(monkeypatch, [30, 40, 55, 70, 60, 50, 45, 44, 43, 42])
    best = Best(model, stripes(1500))
    said = play(best, rows(rank=[5.0] * 10))
    assert (best.step, best.value) == (40, 70)
    assert best.encoder.norm.bias[0] == 40
    assert model.probed.norm.bias[0] == 100, "the run's own encoder is the last"
    assert said[0].startswith("best look of 10: step 40 of 100 (kNN on training pictures 70.0 %)")
    assert said[1].startswith("warning: falling since step 40: kNN 70.0 % there, 42.0 at the end, more than the doubt")


def test_a_fall_within_its_doubt_is_not_named(model, monkeypatch):
    scored(monkeypatch, [30, 40, 55, 70, 69, 68, 68, 67, 68, 68])
    assert len(play(Best(model, stripes(1500)), rows(rank=[5.0] * 10))) == 1


def test_without_classes_rank_decides_and_collapse_counts_for_nothing(model):
    best = Best(model, stripes(60, classes=False))
    assert best.by == "rank"
    assert best(rows(rank=[5.0])[0]) == {}
    best = Best(model, stripes(60, classes=False))
    play(best, rows(rank=[2.0, 4.0, 3.0, 9.0, 9.0], std=[0.5, 0.5, 0.5, 0.01, 0.01]))
    assert (best.step, best.value) == (20, 4.0)


def test_a_run_that_is_collapsed_from_the_start_has_no_best(model):
    best = Best(model, stripes(60, classes=False))
    assert play(best, rows(rank=[9.0] * 4, std=[0.01] * 4)) == []
    assert best.encoder is None


def test_a_run_that_never_began_has_no_best(model):
    """Stopped before its first row, or while SALT's teacher was trained, whose history is another's."""
    for history in (History(), History(rows=rows(rank=[9.0]), steps=1)):
        best = Best(model, stripes(60))
        assert best.close(history) == []
        assert best.encoder is None


def test_of_equal_looks_the_later_is_kept(model, monkeypatch):
    scored(monkeypatch, [100] * 10)
    best = Best(model, stripes(1500))
    play(best, rows(rank=[5.0] * 10))
    assert best.step == 100


def test_a_collapsed_look_is_no_height_to_fall_from(model, monkeypatch):
    scored(monkeypatch, [30, 95, 40, 40, 40])
    assert len(play(Best(model, stripes(1500)), rows(rank=[5.0] * 5, std=[0.5, 0.01, 0.5, 0.5, 0.5]))) == 1


def test_queries_are_training_pictures_that_the_bank_does_not_hold(model):
    best = Best(model, stripes(3000))
    assert (len(best.bank), len(best.queries)) == (module.BANK, module.QUERIES)
    assert not set(best.bank.tolist()) & set(best.queries.tolist())
    assert len(Best(model, stripes(30)).queries) == 10


def test_a_real_run_is_looked_at_a_few_times_and_learns_the_same(model):
    """The columns of its history are there in every row; nothing that is drawn changes."""
    pictures, config = stripes(300), TrainConfig(steps=20, batch=16)
    best = Best(model, pictures)
    history = train(model, pictures.images, config, progress=False, look=best)
    best.close(history)
    found = history.column("knn")
    assert sum(map(math.isfinite, found)) == len(best.looks) - 1
    assert 5 <= len(best.looks) <= module.LOOKS + 1
    assert best.value >= 90, "above or left is easy"
    alone = build("ijepa", "tiny", 16, 4, seed=0)
    assert train(alone, pictures.images, config, progress=False).column("loss") == history.column("loss")
