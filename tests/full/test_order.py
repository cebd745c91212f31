"""An order of any number of pictures: a permutation, shuffled, and any place of it at once."""

from __future__ import annotations

import time

import numpy as np
import pytest

from full_ijepa import order as ordering
from full_ijepa.order import mix, order, permuted


@pytest.mark.parametrize("count", [1, 2, 3, 5, 17, 255, 256, 257, 4095, 100_003])
def test_every_number_once(count):
    """Powers of two, one more and one less, primes."""
    found = permuted(np.arange(count), count, mix(3, "order", 0))
    assert np.array_equal(np.sort(found), np.arange(count))


def test_any_place_of_a_million_million_at_once():
    count = 10**12 + 1
    begun = time.process_time()
    found = permuted(np.array([0, 1, count // 2, count - 1]), count, 7)
    assert time.process_time() - begun < 0.1
    assert len(set(found.tolist())) == 4
    assert found.min() >= 0
    assert found.max() < count
    together = permuted(np.arange(5000, 6000), count, 7)
    assert together[17] == permuted(np.array([5017]), count, 7)[0]  # what else is asked makes no difference


def test_it_is_shuffled():
    """As a random permutation: no trend, neighbours unrelated, each tenth spread over all tenths, few fixed points."""
    count = 200_000
    found = permuted(np.arange(count), count, 5)
    places = np.arange(count)
    assert abs(np.corrcoef(found, places)[0, 1]) < 5 / count**0.5
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 5 / count**0.5
    table = np.histogram2d(places, found, bins=10)[0]
    assert ((table - count / 100) ** 2 / (count / 100)).sum() < 150  # chi-squared: mean 81, sd 13
    assert (found == places).sum() < 10  # 1 expected
    other = permuted(np.arange(count), count, 6)
    assert abs(np.corrcoef(found, other)[0, 1]) < 5 / count**0.5


def test_all_orders_of_five_come_up():
    """120 of them, in 2,400 keys each twenty times, give or take."""
    seen = [tuple(permuted(np.arange(5), 5, key)) for key in range(2400)]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 120
    assert counts.min() > 4


def test_large_sets_have_an_order_of_their_own_and_small_ones_what_they_had(monkeypatch):
    stored = order(50, 0, 0, 120)
    assert stored[:6] == [33, 36, 12, 46, 11, 15]  # as before there was another way
    monkeypatch.setattr(ordering, "KEPT", 10)
    found = order(50, 0, 0, 120)
    assert sorted(found[:50]) == sorted(found[50:100]) == list(range(50))
    assert found[:50] != found[50:100]
    assert found != stored
    assert order(50, 0, 45, 20) == found[45:65]
    assert order(50, 1, 0, 50) != found[:50]
