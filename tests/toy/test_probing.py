from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from toy_ijepa.encoder import Encoder
from toy_ijepa.patches import normalise
from toy_ijepa.probing import features, few_labels, fit_linear, knn, linear_probe, pca, probe, recovered


def clusters(count, spread, seed, classes=3, width=5):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0)) * 2
    labels = torch.randint(classes, (count,), generator=g)
    return centres[labels] + spread * torch.randn(count, width, generator=g), labels


def test_knn_is_the_slow_loop():
    (x, y), (q, truth) = clusters(60, 2.0, 1), clusters(25, 2.0, 2)
    right = 0
    for query, label in zip(q, truth, strict=True):
        cosine = torch.nn.functional.cosine_similarity(query - x.mean(0), x - x.mean(0))
        votes = [0.0, 0.0, 0.0]
        for i in sorted(range(60), key=lambda i: -cosine[i].item())[:7]:
            votes[y[i]] += torch.exp(cosine[i] / 0.07).item()
        right += votes.index(max(votes)) == label
    assert knn(x, y, q, truth, k=7) == pytest.approx(100 * right / 25)


def test_linear_fit_is_scikit_learns():
    x, y = clusters(300, 2.0, 1)
    x = (x - x.mean(0)) / x.std(0)
    ours = fit_linear(x, y, 3, penalty=0.01)
    theirs = LogisticRegression(C=1 / (0.01 * 300), tol=1e-6, max_iter=1000).fit(x.numpy(), y.numpy())
    mine = ours[:, :-1] - ours[:, :-1].mean(0)  # softmax does not see a shift common to all classes
    torch.testing.assert_close(mine.double(), torch.tensor(theirs.coef_).double(), rtol=0.02, atol=0.01)


def test_separated_clusters_are_easy_and_noise_is_chance():
    easy, noise = clusters(400, 0.2, 1), clusters(400, 0.2, 2)
    assert min(vars(probe(*easy, *noise)).values()) == 100.0
    x = torch.randn(900, 5, generator=torch.Generator().manual_seed(3))
    y = torch.randint(3, (900,), generator=torch.Generator().manual_seed(4))
    assert max(vars(probe(x[:600], y[:600], x[600:], y[600:])).values()) < 45


def test_the_penalty_is_chosen_without_the_test_labels():
    (x, y), (q, truth) = clusters(200, 3.0, 1), clusters(100, 3.0, 2)
    assert linear_probe(x, y, q, truth)[1] == linear_probe(x, y, q, (truth + 1) % 3)[1]


def test_few_labels_are_few_and_what_is_rare_is_still_learned():
    """The classes not chosen could not be told: ten of each are enough where the classes lie apart."""
    easy, more = clusters(2000, 0.2, 1), clusters(400, 0.2, 2)
    assert few_labels(*easy, *more) == {"10each": 100.0, "1pct": 100.0}
    assert few_labels(easy[0][:299], easy[1][:299], *more).keys() == {"10each"}
    (x, y), test = clusters(2000, 4.0, 1), clusters(400, 4.0, 2)
    found = few_labels(x, y, *test)
    assert found != few_labels(x, y, *test, seed=1)
    assert max(found.values()) < linear_probe(x, y, *test)[0]
    asked = []
    with patch(
        "toy_ijepa.probing.fit_linear", side_effect=lambda x, y, *rest: asked.append(y) or fit_linear(x, y, *rest)
    ):
        few_labels(x, y, *test, draws=1)
    assert asked[0].bincount().tolist() == [10, 10, 10]
    assert len(asked[1]) == 20


def test_features_are_pooled_tokens_in_order(rng):
    encoder = Encoder((8, 16), 4, 16, depth=3, heads=2)
    images = torch.randint(256, (7, 3, 8, 16), dtype=torch.uint8)
    expected = encoder(normalise(images)).mean(1)
    torch.testing.assert_close(features(encoder, images, batch=3), expected, rtol=1e-4, atol=1e-5)
    deep = features(encoder, images, last=2)
    assert deep.shape == (7, 32)
    torch.testing.assert_close(deep[:, 16:], expected, rtol=1e-4, atol=1e-5)
    assert encoder.training  # left as it was


def test_pca_keeps_distances_when_all_components_stay():
    x, _ = clusters(50, 1.0, 1)
    full, few = pca(x, components=5)[0], pca(x, components=2)[0]
    torch.testing.assert_close(torch.cdist(full, full), torch.cdist(x, x), rtol=1e-3, atol=1e-2)
    assert few.var(0).sum() > 0.5 * full.var(0).sum()


def test_pca_of_fewer_samples_than_features_finds_the_same_directions():
    x = torch.randn(7, 11) * torch.arange(1, 12)
    many = torch.cat([x, 2 * x.mean(0) - x])  # mirrored: the same mean and directions, and more samples than features
    (few, one), (whole, other) = pca(x, x[:2], components=3), pca(many, x[:2], components=3)
    torch.testing.assert_close(few.abs().flip(1), whole[:7].abs(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(one.abs().flip(1), other.abs(), rtol=1e-3, atol=1e-3)
    assert pca(x)[0].shape == (7, 7)


def test_too_many_neighbours():
    x, y = clusters(5, 1.0, 1)
    with pytest.raises(ValueError, match="k = 20 neighbours asked of 5"):
        knn(x, y, x, y)


def test_recovered_is_the_share_that_a_line_explains():
    g = torch.Generator().manual_seed(0)
    x, new = torch.randn(2000, 4, generator=g), torch.randn(500, 4, generator=g)
    noise, new_noise = torch.randn(2000, 2, generator=g), torch.randn(500, 2, generator=g)
    way = torch.randn(4, 2, generator=g)
    assert recovered(3 * x + 1, x @ way + 5, 3 * new + 1, new @ way + 5) > 99.9
    assert recovered(x, noise, new, new_noise) < 2
    half = way / way.norm(dim=0)  # a signal as large as the noise
    assert recovered(x, x @ half + noise, new, new @ half + new_noise) == pytest.approx(50, abs=5)
