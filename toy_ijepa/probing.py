"""What did it learn? Frozen, average-pooled features under two probes: nearest neighbours and a linear classifier."""

# Shape legend:  B images  C channels  H,W pixels  N tokens  D width  S samples  F features  c classes

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor

from toy_ijepa.encoder import Encoder
from toy_ijepa.patches import normalise

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)  # candidates for the linear probe's L2 penalty, strong first


@torch.no_grad()
def features(encoder: Encoder, images: Tensor, last: int = 1, batch: int = 500) -> Tensor:
    """Average-pooled features of uint8 images (S, C, H, W): (S, F), float32.

    last  how many of the last blocks to use, each normalised and pooled, concatenated: F = last * D (at most depth * D)
    """
    device = next(encoder.parameters()).device
    training, pooled = encoder.training, []
    encoder.eval()
    for chunk in images.split(batch):
        outputs = encoder.layers(normalise(chunk.to(device)), last)
        pooled.append(torch.cat([tokens.mean(1) for tokens in outputs], dim=1).float().cpu())
    encoder.train(training)
    return torch.cat(pooled)


def pixel_features(images: Tensor, most: int = 32) -> Tensor:
    """The uint8 images themselves, flattened: (S, C*H*W); those larger than `most` px are first shrunk to it.

    A linear probe on the 150,528 numbers of a 224 px image would need gigabytes and overfit.
    """
    if max(images.shape[2:]) > most:
        chunks = images.split(500)
        images = torch.cat([F.interpolate(c.float(), size=(most, most), mode="area") for c in chunks])
    return normalise(images).flatten(1)


def pca(train: Tensor, *others: Tensor, components: int = 256) -> list[Tensor]:
    """Project each set (S, F) on the first `components` principal directions of `train` (unwhitened), at most S."""
    mean = train.mean(0)
    if len(train) < train.shape[1]:  # fewer samples than features, whose covariance would be the larger by far
        basis = torch.linalg.svd(train - mean, full_matrices=False).Vh[:components].T
    else:
        covariance = (train - mean).T @ (train - mean)  #      (F, F)
        basis = torch.linalg.eigh(covariance).eigenvectors[:, -components:]
    return [(x - mean) @ basis for x in (train, *others)]


def knn(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20, temperature: float = 0.07
) -> float:
    """Accuracy (%) of the k nearest training samples' vote, weighted by exp(cosine / temperature).

    Features (S, F) are centred on the training mean first: without that every cosine is close to 1.
    Source: Wu et al. 2018, arXiv:1805.01978, section 3.4.
    """
    if k > len(train):
        raise ValueError(f"k = {k} neighbours asked of {len(train)} training samples")
    mean = train.mean(0)
    bank, queries = F.normalize(train - mean, dim=1), F.normalize(test - mean, dim=1)
    classes = int(train_labels.max()) + 1
    right = 0
    for chunk, truth in zip(queries.split(1000), test_labels.split(1000), strict=True):
        cosine, index = (chunk @ bank.T).topk(k, dim=1)  #     (b, k)
        votes = torch.zeros(len(chunk), classes).scatter_add_(1, train_labels[index], (cosine / temperature).exp())
        right += int((votes.argmax(1) == truth).sum())
    return 100.0 * right / len(test)


def fit_linear(x: Tensor, labels: Tensor, classes: int, penalty: float, start: Tensor | None = None) -> Tensor:
    """Weights and, last, bias (c, F+1) of multinomial logistic regression on x (S, F), by L-BFGS.

    Minimises mean cross-entropy + penalty/2 * |weights|^2 (the bias is free).
    """
    # A row a class: the other way round the products are several times slower on a CPU.
    weight = torch.zeros(classes, x.shape[1] + 1) if start is None else start.clone()
    weight.requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [weight], max_iter=100, history_size=10, tolerance_grad=1e-4, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight[:, :-1], weight[:, -1]), labels)
        loss = loss + 0.5 * penalty * weight[:, :-1].square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach()


def accuracy(weight: Tensor, x: Tensor, labels: Tensor) -> float:
    """Share (%) of x (S, F) that the linear classifier (c, F+1) gets right."""
    return 100.0 * (F.linear(x, weight[:, :-1], weight[:, -1]).argmax(1) == labels).double().mean().item()


def linear_probe(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, seed: int = 0
) -> tuple[float, float]:
    """Accuracy (%) of logistic regression on standardised features, and the L2 penalty it used.

    The penalty is chosen on a tenth of the *training* set; the test set is looked at once.
    """
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    x, y = (train - mean) / std, train_labels
    classes = int(y.max()) + 1
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held, rest = order[: len(x) // 10], order[len(x) // 10 :]
    best, weight, x_rest, x_held = (-1.0, PENALTIES[0]), None, x[rest], x[held]
    for penalty in PENALTIES:
        weight = fit_linear(x_rest, y[rest], classes, penalty, start=weight)
        best = max(best, (accuracy(weight, x_held, y[held]), penalty))
    weight = fit_linear(x, y, classes, best[1])
    return accuracy(weight, (test - mean) / std, test_labels), best[1]


def few_labels(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, seed: int = 0, draws: int = 3
) -> dict[str, float]:
    """Accuracy (%) of logistic regression on few labels: {"10each": on ten of each class, "1pct": on 1 % of them}.

    The mean over `draws` choices of the labelled pictures. Features (S, F) are standardised over *all* training
    pictures, which takes no labels; the penalty is the strongest candidate, since nothing is left to choose it on.
    1 % is left out where it would be fewer pictures than classes.
    """
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    classes, hundredth = int(train_labels.max()) + 1, len(train) // 100
    scores: dict[str, list[float]] = {"10each": []} | ({"1pct": []} if hundredth >= classes else {})
    for draw in range(draws):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(draws * seed + draw))
        each = torch.cat([order[train_labels[order] == c][:10] for c in range(classes)])
        chosen = {"10each": each, "1pct": order[:hundredth]}
        for name, found in scores.items():
            some = chosen[name]
            weight = fit_linear((train[some] - mean) / std, train_labels[some], classes, PENALTIES[0])
            found.append(accuracy(weight, (test - mean) / std, test_labels))
    return {name: sum(found) / draws for name, found in scores.items()}


def recovered(x: Tensor, y: Tensor, x_new: Tensor, y_new: Tensor, ridge: float = 1e-2) -> float:
    """Share (%) of the variance of y (S, c) that a ridge regression from x (S, F) explains on new samples."""
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    x, x_new = (x - mean) / std, (x_new - mean) / std
    gram = x.T @ x / len(x) + ridge * torch.eye(x.shape[1])
    weight = torch.linalg.solve(gram, x.T @ (y - y.mean(0)) / len(x))
    rest = (x_new @ weight + y.mean(0) - y_new).square().mean()
    return 100 * (1 - rest / (y_new - y_new.mean(0)).square().mean()).item()


@dataclass(frozen=True)
class Scores:
    """Accuracies in % of one set of features under each probe."""

    knn: float
    linear: float


def probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, seed: int = 0) -> Scores:
    """Both probes on features (S, F): the one protocol for pixels, random encoders and every method."""
    return Scores(
        knn=knn(train, train_labels, test, test_labels, k=min(20, len(train))),
        linear=linear_probe(train, train_labels, test, test_labels, seed)[0],
    )


def summary(runs: list[dict[str, float]]) -> dict:
    """Mean of each score over seeds, its spread (sample standard deviation, None for one seed), and every value.

    Hardly rounded: 42.0533 kept as 42.05 would be shown as 42.0.
    """
    names = runs[0].keys()
    means = {n: round(mean(r[n] for r in runs), 6) for n in names}
    spread = {n: round(stdev(r[n] for r in runs), 6) if len(runs) > 1 else None for n in names}
    return {**means, "spread": spread, "runs": [{n: round(r[n], 6) for n in names} for r in runs]}
