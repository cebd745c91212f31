"""What is trained on top of an encoder: a linear layer, attention and a linear layer, or everything.

Labels are classes (int64, S), tags (bool, S x c) or numbers (float32, S x c); the loss follows from their type.
"""

# Shape legend:  S samples  F features  N tokens  D width  c classes, tags or columns of numbers  R rates tried at once
#                B of a batch

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from full_ijepa.data import augment, mix
from full_ijepa.labels import apart, task_of
from full_ijepa.recipes.base import Recipe
from full_ijepa.vit import Encoder
from toy_ijepa.encoder import LAYER_NORM_EPS
from toy_ijepa.schedules import warmup_cosine

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # of Adam on standardised features; the best is chosen on a held-out part
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # of ridge regression on standardised features; chosen likewise
HELD = 0.1  # share of the training set that choices are made on


@dataclass(frozen=True)
class Verdict:
    """What is said of the test set, and the learning rate (or penalty) that the held-out part chose.

    scores  (S, c): of classes the higher the likelier, of tags their probability, of numbers what is predicted
    """

    scores: Tensor
    rate: float

    @property
    def predicted(self) -> Tensor:
        """The likeliest class (S,)."""
        return self.scores.argmax(-1)


def hold_out(count: int, seed: int, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Numbers of the samples to fit on and of those to choose on: a tenth of the samples, or of their groups (S,).

    A group is never on both sides. Raises ValueError if there is only one.
    """
    if groups is not None:
        return apart(groups, HELD, mix(seed, "held"))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(mix(seed, "held")))
    held = max(round(HELD * count), 1)
    return order[held:], order[:held]


def loss_of(out: Tensor, y: Tensor) -> Tensor:
    """The mean over samples of the loss of outputs (S, c): cross-entropy of classes, the sum over tags, squares."""
    if task_of(y) == "classes":
        return F.cross_entropy(out, y, reduction="sum") / len(y)
    if task_of(y) == "tags":
        return F.binary_cross_entropy_with_logits(out, y.float(), reduction="sum") / len(y)
    return F.mse_loss(out, y, reduction="sum") / len(y)


def worth(out: Tensor, y: Tensor) -> tuple[float, ...]:
    """What a choice on held-out samples goes by: accuracy of classes, then the loss, so that more is better.

    TRAP: on few held-out samples many rates have the same accuracy, the lowest among them, which has hardly learned.
    """
    loss = -loss_of(out, y).item()
    return ((out.argmax(-1) == y).double().mean().item(), loss) if task_of(y) == "classes" else (loss,)


def answer(out: Tensor, y: Tensor) -> Tensor:
    """Scores (S, c) of outputs: probabilities of classes or tags, numbers as they are; `y` says which."""
    if task_of(y) == "numbers":
        return out
    out = out.double()  # in float32 many probabilities would be exactly 1, and their order be lost
    return out.softmax(-1) if task_of(y) == "classes" else out.sigmoid()


def fit_linear(x: Tensor, y: Tensor, classes: int, rates: tuple[float, ...], epochs: int, seed: int) -> Tensor:
    """Linear classifiers for all rates at once, by Adam with a cosine schedule: weights and bias (R, c, F + 1)."""
    R, device = len(rates), x.device
    weight = torch.zeros(R, classes, x.shape[1] + 1, device=device, requires_grad=True)
    rate = torch.tensor(rates, device=device)[:, None, None]
    optimiser = torch.optim.Adam([weight], lr=1.0)
    batch = min(256, len(x))
    steps = epochs * (len(x) // batch)
    generator, step = torch.Generator().manual_seed(seed), 0
    while step < steps:
        for index in torch.randperm(len(x), generator=generator)[: len(x) // batch * batch].split(batch):
            logits = torch.einsum("bf,rcf->rbc", x[index], weight[:, :, :-1]) + weight[:, None, :, -1]
            many = y[index].repeat(R, *[1] * (y.ndim - 1))
            loss = R * loss_of(logits.flatten(0, 1), many)
            (weight.grad,) = torch.autograd.grad(loss, weight)
            before = weight.detach().clone()
            optimiser.step()
            with torch.no_grad():  # Adam's step of size 1, scaled for each classifier by its own rate
                weight.copy_(before + (weight - before) * rate * warmup_cosine(step / steps, 1.0, 0.0))
            step += 1
    return weight.detach()


def apply_linear(weight: Tensor, x: Tensor) -> Tensor:
    """What linear classifiers (R, c, F + 1) say of x (S, F), before any softmax: (R, S, c)."""
    return torch.einsum("sf,rcf->rsc", x, weight[:, :, :-1]) + weight[:, None, :, -1]


def linear(
    train: Tensor,
    y: Tensor,
    test: Tensor,
    classes: int,
    seed: int = 0,
    epochs: int = 50,
    rate: float | None = None,
    groups: Tensor | None = None,
) -> Verdict:
    """A linear probe on standardised features (S, F): logistic for classes, and for each tag on its own.

    rate    of learning; without one it is chosen on a held-out tenth of the training set
    groups  of the training samples (S,): none is parted by what is held out
    """
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    x, x_test = (train - mean) / std, (test - mean) / std
    if rate is None:
        rest, held = hold_out(len(x), seed, groups)
        tried = apply_linear(fit_linear(x[rest], y[rest], classes, RATES, epochs, seed), x[held])
        rate, _ = max(zip(RATES, tried, strict=True), key=lambda pair: worth(pair[1], y[held]))
    return Verdict(answer(apply_linear(fit_linear(x, y, classes, (rate,), epochs, seed), x_test)[0], y), rate)


class Attentive(nn.Module):
    """One learned query attends to all tokens (B, N, D), then a linear layer: (B, c).

    Source: Bardes et al. 2024 (V-JEPA), arXiv:2404.08471, section 4 (attentive probing), with one query and one layer.
    """

    def __init__(self, width: int, heads: int, classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.classify = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(tokens)
        answer, _ = self.attention(self.query.expand(len(x), -1, -1), x, x, need_weights=False)
        return self.classify(answer[:, 0])


def attentive(
    train: Tensor,
    y: Tensor,
    test: Tensor,
    classes: int,
    heads: int,
    device: torch.device,
    seed: int = 0,
    epochs: int = 20,
    groups: Tensor | None = None,
) -> Verdict:
    """An attentive probe on frozen tokens (S, N, D); the rate is chosen on a held-out tenth of the training set."""
    rest, held = hold_out(len(train), seed, groups)
    y, back = standardised(y)

    def fit(index: Tensor, rate: float) -> nn.Module:
        torch.manual_seed(seed)
        head = Attentive(train.shape[-1], heads, classes).to(device)
        batches = ((train[i].float().to(device), y[i].to(device)) for i in shuffled(index, epochs, seed))
        return fit_module(head, [dict(params=head.parameters())], batches, len(index), rate, epochs)

    def said(head: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([head(part.float().to(device)).cpu() for part in x.split(500)])

    tried = {rate: worth(said(fit(rest, rate), train[held]), y[held]) for rate in (3e-4, 1e-3, 3e-3)}
    rate = max(tried, key=tried.__getitem__)
    return Verdict(back(answer(said(fit(torch.arange(len(train)), rate), test), y)), rate)


def standardised(y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Numbers with mean 0 and std 1, which networks learn, and the way back; classes and tags as they are."""
    if task_of(y) != "numbers":
        return y, lambda found: found
    mean, std = y.mean(0), y.std(0).clamp_min(1e-6)
    return (y - mean) / std, lambda found: found * std + mean


def shuffled(index: Tensor, epochs: int, seed: int, batch: int = 128) -> Iterator[Tensor]:
    """Index batches of shuffled epochs; the last batch of an epoch may be smaller."""
    generator = torch.Generator().manual_seed(mix(seed, "shuffle"))
    for _ in range(epochs):
        yield from index[torch.randperm(len(index), generator=generator)].split(batch)


def fit_module(
    module: nn.Module,
    groups: list[dict],
    batches: Iterator[tuple[Tensor, Tensor]],
    count: int,
    rate: float,
    epochs: int,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Train a head, or all, by AdamW with warm-up and cosine, products in `dtype`; `groups` scale rates by "share"."""
    optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=0.05)
    steps = epochs * math.ceil(count / 128)
    module.train()
    for step, (x, y) in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = group.get("share", 1.0) * warmup_cosine(step / steps, rate, 0.1)
        with torch.autocast(x.device.type, dtype, enabled=dtype == torch.bfloat16):
            loss = loss_of(module(x), y)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 3.0)
        optimiser.step()
    return module.eval()


class Classifier(nn.Module):
    """An encoder, its tokens averaged, and a linear layer: normalised images (B, C, H, W) -> (B, c)."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(True)
        self.encoder.blocks.rates = [0.0] * len(encoder.blocks)  # no recipe's stochastic depth: the same for everybody
        self.classify = nn.Linear(encoder.width, classes)
        nn.init.zeros_(self.classify.weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.encoder(images).mean(1))

    def groups(self, decay: float) -> list[dict]:
        """Parameter groups whose rate falls by `decay` from each layer to the one below (Bao et al. 2022)."""
        blocks = [self.encoder.blocks[i] for i in range(len(self.encoder.blocks))]
        top = [*self.encoder.norm.parameters(), *self.classify.parameters()]
        low = list(self.encoder.patch_embed.parameters())
        if isinstance(self.encoder.pos_embed, nn.Parameter):  # learned positions
            low.append(self.encoder.pos_embed)
        layers = [low, *(list(b.parameters()) for b in blocks), top]
        return [dict(params=p, share=decay ** (len(layers) - 1 - i)) for i, p in enumerate(layers)]


def finetune(
    encoder: Encoder,
    train: Tensor,
    y: Tensor,
    test: Tensor,
    classes: int,
    recipe: Recipe,
    seed: int = 0,
    epochs: int = 20,
    dtype: torch.dtype = torch.float32,
    groups: Tensor | None = None,
) -> Verdict:
    """Train everything on pictures (S, C, H, W), cropped and mirrored; the rate is chosen on a held-out tenth.

    dtype  bfloat16 computes products in it; float16 would need its loss scaled, and is not used here
    """
    device = next(encoder.parameters()).device
    rest, held = hold_out(len(train), seed, groups)
    y, back = standardised(y)
    wide = recipe.replace(crop_scale=(0.5, 1.0))

    def fit(index: Tensor, rate: float) -> nn.Module:
        torch.manual_seed(seed)
        model = Classifier(encoder, classes).to(device)
        batches = (
            (augment(train[i].to(device), wide, mix(seed, "tune", n)), y[i].to(device))
            for n, i in enumerate(shuffled(index, epochs, seed))
        )
        return fit_module(model, model.groups(0.75), batches, len(index), rate, epochs, dtype)

    def said(model: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            parts = (encoder.pixels.normalise(part.to(device)) for part in x.split(250))
            return torch.cat([model(part).cpu() for part in parts])

    tried = {rate: worth(said(fit(rest, rate), train[held]), y[held]) for rate in (5e-4, 2e-3)}
    rate = max(tried, key=tried.__getitem__)
    return Verdict(back(answer(said(fit(torch.arange(len(train)), rate), test), y)), rate)


def ridge(
    train: Tensor,
    y: Tensor,
    test: Tensor,
    seed: int = 0,
    groups: Tensor | None = None,
    penalty: float | None = None,
) -> tuple[Tensor, float]:
    """Numbers (S,) or (S, c) predicted from features by ridge regression, and its penalty.

    penalty  without one it is chosen on a held-out tenth, which parts no group (S,)
    """
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    x, x_test = (train - mean) / std, (test - mean) / std

    def fit(x: Tensor, y: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
        gram = x.T @ x / len(x) + penalty * torch.eye(x.shape[1])
        weight = torch.linalg.solve(gram, x.T @ (y - y.mean(0)) / len(x))
        return lambda new: new @ weight + y.mean(0)

    if penalty is None:
        rest, held = hold_out(len(x), seed, groups)
        scale = y.std(0).clamp_min(1e-6)  # columns of numbers in different units count alike

        def lost(penalty: float) -> float:
            return ((fit(x[rest], y[rest], penalty)(x[held]) - y[held]) / scale).square().mean().item()

        penalty = min(PENALTIES, key=lost)
    return fit(x, y, penalty)(x_test), penalty
