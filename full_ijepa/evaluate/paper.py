"""The paper's linear probe, so that its figures can stand beside the paper's; the choice is made on training data.

Assran et al. 2023, appendix A.2: LARS at a batch of 16,384 for 50 epochs, the rate a tenth after every 15; three rates
and two weight decays; a linear layer on the last layer or the last four, averaged and joined; the best of all counts.
The paper takes VISSL's recipe otherwise; that this means each of them with and without a batch norm before the linear
layer is our reading, not checked against VISSL's code. What is not the paper's:

- the best is chosen on a held-out tenth of the training set, not on what is reported;
- pictures are seen whole, once, not cropped and mirrored anew each epoch;
- a set smaller than ImageNet has smaller batches, so that an epoch has as many steps, at the same rates.
"""

# Shape legend:  S samples  F features  c classes, tags or columns of numbers  G settings tried at once  B of a batch

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from full_ijepa.distributed import World
from full_ijepa.evaluate.features import gathered, matmul
from full_ijepa.evaluate.heads import Rows, Verdict, answer, applied, as_rows, hold_out, loss_of, standardised, worth

BATCH, STEPS = 16384, 78  # samples of a step, and steps of an epoch of ImageNet with it
LEAST = 32  # samples of a step on a small set: a batch norm needs some
EPOCHS, FALLS = 50, 15  # and so many epochs lie between two falls of the rate to a tenth
RATES, DECAYS = (0.01, 0.05, 0.001), (0.0005, 0.0)
SCALE = BATCH / 256  # of rates. Source: He et al. 2022 (MAE), arXiv:2111.06377, appendix A.1 (rates scale with batches)
TRUST, MOMENTUM, STD = 0.001, 0.9, 0.01  # of LARS, and of weights at the start


class Setting(NamedTuple):
    """What is tried: layers ("last", "last4"), a batch norm before the linear layer, reference rate, weight decay."""

    layers: str
    norm: bool
    rate: float
    decay: float


def fit(x: Rows, y: Tensor, c: int, settings: list[Setting], seed: int, epochs: int) -> Tensor:
    """Linear layers of G settings, alike in layers and norm, by LARS: weights and bias (G, c, F + 1).

    A local rate belongs to all weights of a layer; biases have none, and no decay.
    Source: You et al. 2017, arXiv:1708.03888, section 4 (LARS).
    """
    G, generator, y = len(settings), torch.Generator().manual_seed(seed), y.to(x.device)
    rates, decays = (torch.tensor(v).to(x.device) for v in zip(*((s.rate, s.decay) for s in settings), strict=True))
    weight = (STD * torch.randn(1, c, x.shape[1], generator=generator)).to(x.device).repeat(G, 1, 1)  # (G, c, F)
    bias = torch.zeros(G, c, device=x.device)
    turning, shifting = torch.zeros_like(weight), torch.zeros_like(bias)
    batch = min(BATCH, max(len(x) // STEPS, LEAST), len(x))
    for epoch in range(epochs):
        rate = SCALE * rates * 0.1 ** (epoch // FALLS)
        order = torch.randperm(len(x), generator=generator)[: len(x) // batch * batch]
        for rows, index in x.batches(order, batch):
            down, aside = slopes(weight, bias, normed(rows) if settings[0].norm else rows, y[index])
            long, steep = weight.flatten(1).norm(dim=1), down.flatten(1).norm(dim=1)  # (G,)
            local = rate * TRUST * long / (steep + decays * long).clamp_min(1e-12)
            turning = MOMENTUM * turning + local[:, None, None] * (down + decays[:, None, None] * weight)
            shifting = MOMENTUM * shifting + rate[:, None] * aside
            weight, bias = weight - turning, bias - shifting
    return torch.cat([weight, bias[..., None]], dim=2)


def normed(rows: Tensor) -> Tensor:
    """Features (B, F) as a batch norm gives them in training; its scale and shift are those of the layer behind it."""
    return (rows - rows.mean(0)) / rows.std(0, correction=0).clamp_min(1e-6)


def slopes(weight: Tensor, bias: Tensor, rows: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the loss of each of G layers on rows (B, F): of weights (G, c, F) and biases (G, c)."""
    G = len(weight)
    out = (torch.einsum("bf,gcf->gbc", rows, weight) + bias[:, None]).requires_grad_()
    loss = G * loss_of(out.flatten(0, 1), y.repeat(G, *[1] * (y.ndim - 1)))
    (slope,) = torch.autograd.grad(loss, out)
    return torch.einsum("gbc,bf->gcf", slope, rows), slope.sum(1)


def linear(
    sets: dict[str, tuple[Tensor, Tensor]],
    y: Tensor,
    classes: int,
    seed: int = 0,
    groups: Tensor | None = None,
    here: World | None = None,
    epochs: int = EPOCHS,
) -> tuple[Verdict, Setting]:
    """The best of all settings, chosen on a held-out tenth, and which one it is.

    sets    features of training and of test samples, (S, F) both, of each kind of layers
    groups  of the training samples (S,): none is parted by what is held out
    here    the process among others, and where to compute (default: one, where the features are)
    """
    labels, back = standardised(y)
    tried: list[tuple[tuple[float, ...], Setting]] = []

    def rows(setting: Setting) -> tuple[Rows, Rows]:
        """As features are; where there is a norm, it has at last the statistics of all training samples."""
        train, test = sets[setting.layers]
        return as_rows(train, test, here) if setting.norm else (Rows.of(train, here), Rows.of(test, here))

    for layers, norm in product(sets, (False, True)):
        settings = [Setting(layers, norm, *pair) for pair in product(RATES, DECAYS)]
        x, _ = rows(settings[0])
        rest, held = hold_out(len(x), seed, groups)
        with matmul(x.device, "high"):
            out = applied(fit(x.some(rest), labels[rest], classes, settings, seed, epochs), x.some(held))
        truth = labels[held].to(x.device)[x.some(held).own]
        tried += zip((worth(scores, truth, len(held), x.here) for scores in out), settings, strict=True)
    _, best = max(tried, key=lambda pair: pair[0])
    x, x_test = rows(best)
    with matmul(x.device, "high"):
        said = gathered(applied(fit(x, labels, classes, [best], seed, epochs), x_test)[0], len(x_test), x.here)
    return Verdict(back(answer(said.cpu(), labels)), best.rate), best
