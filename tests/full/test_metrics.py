"""Metrics against numbers worked out by hand; neighbours against the toy's."""

from __future__ import annotations

import math

import pytest
import torch

from full_ijepa.metrics import CONFUSED, judged, knn_score, neighbours, shown, text, uneven
from toy_ijepa import probing


def test_classes_by_hand():
    """Six of a, two of b; one of each is missed."""
    truth = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    a = torch.tensor([0.9, 0.8, 0.7, 0.7, 0.6, 0.2, 0.65, 0.1])  # of b the rest; nothing is said to be c
    found = judged(torch.stack([a, 1 - a, torch.zeros(8)], dim=1), truth, ("a", "b", "c"))
    assert found["accuracy"] == pytest.approx(100 * 6 / 8)
    assert found["balanced_accuracy"] == pytest.approx(100 * (5 / 6 + 1 / 2) / 2)
    assert found["macro_f1"] == pytest.approx(100 * (10 / 12 + 2 / 4 + 0) / 3)  # a class that is not there counts 0
    assert found["each_class"] == {"a": 83.33, "b": 50.0, "c": 0.0}
    assert found["confusion"] == [[5, 1, 0], [1, 1, 0], [0, 0, 0]]
    # of the 12 pairs of an a and a b, b is ranked wrongly by 0.65 against 0.6 and 0.2, 0.1 never
    assert found["each_auroc"] == {"a": 83.33, "b": 83.33, "c": None}
    assert found["auroc"] == pytest.approx(100 * 10 / 12)
    # b by falling score: 0.1 first (right), 0.2, 0.6, 0.65 (right): precision 1 and 2/4 at the two hits
    assert found["each_average_precision"]["b"] == pytest.approx(100 * (1 + 1 / 2) / 2)


def test_of_many_classes_there_is_no_confusion():
    found = judged(torch.eye(CONFUSED + 1), torch.arange(CONFUSED + 1), tuple(map(str, range(CONFUSED + 1))))
    assert found["accuracy"] == 100
    assert "confusion" not in found


def test_tags_by_hand():
    truth = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]]).bool()
    scores = torch.tensor([[0.9, 0.1, 0.4], [0.8, 0.1, 0.4], [0.7, 0.1, 0.6], [0.1, 0.1, 0.3]])
    found = judged(scores, truth, ("x", "never", "y"))
    assert found["each_auroc"] == {"x": 75.0, "never": None, "y": 87.5}  # a tie counts half
    assert found["auroc"] == pytest.approx((75 + 87.5) / 2)
    assert found["each_average_precision"] == {"x": round(100 * (1 + 2 / 3) / 2, 2), "never": None, "y": 83.33}
    assert found["each_count"] == {"x": 2, "never": 0, "y": 2}


def test_numbers_by_hand():
    truth, said = torch.tensor([[1.0], [2.0], [3.0], [6.0]]), torch.tensor([[1.0], [3.0], [3.0], [4.0]])
    found = judged(said, truth, ("age",))
    assert found["r2"] == pytest.approx(100 * (1 - 5 / 14))
    assert found["mae"] == pytest.approx(0.75)
    both = judged(torch.cat([said, truth], dim=1), torch.cat([truth, truth], dim=1), ("age", "dose"))
    assert both["r2"] == pytest.approx((found["r2"] + 100) / 2)
    assert "mae" not in both, "columns of different units have no mean"
    assert both["each_mae"] == {"age": 0.75, "dose": 0.0}


def test_neighbours_are_those_of_the_toy():
    generator = torch.Generator().manual_seed(0)
    y, truth = torch.randint(5, (300,), generator=generator), torch.randint(5, (90,), generator=generator)
    x = torch.randn(300, 7, generator=generator) + y[:, None]
    queries = torch.randn(90, 7, generator=generator) + truth[:, None]
    scores = neighbours(x, y, queries, 5)
    assert torch.allclose(scores.sum(1), torch.ones(90), atol=1e-5)
    right = probing.knn(x, y, queries, truth)
    assert 100 * (scores.argmax(1) == truth).double().mean().item() == pytest.approx(right)
    assert knn_score(x, y, queries, truth) == pytest.approx(right)


def test_neighbours_of_tags_and_numbers_by_a_slow_loop():
    torch.manual_seed(0)
    x, queries = torch.randn(30, 4), torch.randn(7, 4)
    for y in (torch.rand(30, 3) > 0.5, torch.randn(30, 2)):
        found = neighbours(x, y, queries, y.shape[1], k=5, temperature=0.5)
        for query, row in zip(queries, found, strict=True):
            near = sorted(
                (torch.cosine_similarity(sample - x.mean(0), query - x.mean(0), dim=0).item(), n)
                for n, sample in enumerate(x)
            )[-5:]
            weight = [math.exp(cosine / 0.5) for cosine, _ in near]
            slow = sum(w * y[n].float() for w, (_, n) in zip(weight, near, strict=True)) / sum(weight)
            assert torch.allclose(row, slow, atol=1e-5)


def test_what_a_probe_of_a_run_is():
    x = torch.linspace(-1, 1, 40)[:, None] * torch.ones(3)
    number = x[:, :1] * 7 + 3
    assert knn_score(x, number > 3, x, number > 3) == 100
    assert 50 < knn_score(x, number, x, number) <= 100


def test_what_is_shown():
    assert uneven(torch.tensor([0, 0, 1]))
    assert not uneven(torch.tensor([0, 0, 0, 1, 1]))
    assert not uneven(torch.tensor([[True], [True], [False]]))
    assert shown("classes", False) == ("accuracy",)
    assert shown("classes", True) == ("accuracy", "balanced_accuracy")
    found = dict(accuracy=51.26, auroc=None, mae=0.01234, spread=dict(accuracy=0.34, mae=None))
    assert [text(found, name) for name in ("accuracy", "auroc", "mae")] == ["51.3 +- 0.3", "-", "0.0123"]
