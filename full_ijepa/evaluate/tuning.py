"""What is trained with an encoder in the loop: attention over its frozen tokens, or the encoder itself.

Samples are kept or made anew for each batch (`features.Source`). Under torchrun each process takes its share of every
batch and gradients are summed, so that any number of processes learns the same.
"""

# Shape legend:  S samples  B of a batch  C channels  H,W pixels  N tokens  D width  R rates tried
#                c classes, tags or columns of numbers

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from full_ijepa.crops import augment
from full_ijepa.distributed import World
from full_ijepa.evaluate.features import Source, alone, batches, gathered, matmul, share
from full_ijepa.evaluate.heads import Verdict, answer, hold_out, loss_of, standardised, worth
from full_ijepa.order import mix
from full_ijepa.recipes.base import Recipe
from full_ijepa.vit import Encoder
from toy_ijepa.encoder import LAYER_NORM_EPS
from toy_ijepa.schedules import warmup_cosine

BATCH = 128  # samples of a step, of all processes together
JUDGED = 250  # samples answered for at a time


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


def shuffled(index: Tensor, epochs: int, seed: int) -> Iterator[Tensor]:
    """Index batches of shuffled epochs; the last batch of an epoch may be smaller."""
    generator = torch.Generator().manual_seed(mix(seed, "shuffle"))
    for _ in range(epochs):
        yield from index[torch.randperm(len(index), generator=generator)].split(BATCH)


class Learner:
    """A head, or all, trained by AdamW with warm-up and cosine; `groups` scale its rate by their "share".

    dtype  what products are computed in
    """

    def __init__(
        self,
        module: nn.Module,
        groups: list[dict],
        rate: float,
        steps: int,
        here: World,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.module, self.rate, self.steps, self.here, self.dtype = module.train(), rate, steps, here, dtype
        self.optimiser, self.step = torch.optim.AdamW(groups, lr=rate, weight_decay=0.05), 0

    def learn(self, x: Tensor, y: Tensor, count: int) -> None:
        """One step on this process's samples x and labels y of a batch of `count`."""
        for group in self.optimiser.param_groups:
            group["lr"] = group.get("share", 1.0) * warmup_cosine(self.step / self.steps, self.rate, 0.1)
        self.optimiser.zero_grad()
        if len(y):
            with torch.autocast(x.device.type, self.dtype, enabled=self.dtype == torch.bfloat16):
                loss = loss_of(self.module(x), y, count)
            loss.backward()
        summed(list(self.module.parameters()), self.here)
        nn.utils.clip_grad_norm_(self.module.parameters(), 3.0)
        self.optimiser.step()
        self.step += 1


def summed(parameters: Sequence[nn.Parameter], here: World) -> None:
    """Gradients become their sum over all processes, in one message; one that has none adds nothing."""
    if here.size == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.reshape(p.shape)


def teach(
    learners: Sequence[Learner],
    source: Source,
    y: Tensor,
    index: Tensor,
    epochs: int,
    seed: int,
    prepare: Callable[[Tensor, int, int], Tensor],
) -> list[nn.Module]:
    """Train all learners on the same batches of the samples `index` of a source; their modules.

    prepare  what modules get of batch n, of `count` samples, from this process's part of it: prepare(x, n, count)
    """
    here = learners[0].here
    part = slice(here.rank, None, here.size)
    samples = batches(source, (whole[part] for whole in shuffled(index, epochs, seed)), here.device)
    for n, (whole, x) in enumerate(zip(shuffled(index, epochs, seed), samples, strict=True)):
        x, labels = prepare(x, n, len(whole)), y[whole[part]].to(here.device)
        for learner in learners:
            learner.learn(x, labels, len(whole))
    return [learner.module.eval() for learner in learners]


@torch.no_grad()
def said(
    modules: Sequence[nn.Module], source: Source, index: Tensor, here: World, prepare: Callable[[Tensor], Tensor]
) -> Tensor:
    """What modules say of this process's share of the samples `index` (S,) of a source: (S, R, c), on the CPU."""
    mine = of_mine(index, here)
    parts = (mine if len(mine) else index[:1]).split(JUDGED)  # no sample, but an answer as wide as those of the others
    found = [
        torch.stack([module(prepare(x)) for module in modules], dim=1).cpu()
        for x in batches(source, parts, here.device)
    ]
    return torch.cat(found)[: len(mine)]


def of_mine(index: Tensor, here: World) -> Tensor:
    """Those of the samples (S,) that this process answers for."""
    mine = share(len(index), here)
    return index[mine.start : mine.stop]


def chosen(
    fit: Callable[[Tensor, Sequence[float]], list[nn.Module]],
    say: Callable[[list[nn.Module], Source, Tensor], Tensor],
    rates: Sequence[float],
    sources: tuple[Source, Source],
    y: Tensor,
    seed: int,
    groups: Tensor | None,
    here: World,
) -> tuple[Tensor, float]:
    """What modules fitted to all training samples say of the test samples (S, c), and the rate that a tenth chose."""
    train, test = sources
    rest, held = hold_out(len(train), seed, groups)
    tried, truth = say(fit(rest, rates), train, held), y[of_mine(held, here)]
    worths = [worth(tried[:, n], truth, len(held), here) for n in range(len(rates))]
    rate = rates[worths.index(max(worths))]
    out = say(fit(torch.arange(len(train)), (rate,)), test, torch.arange(len(test)))
    return gathered(out[:, 0], len(test), here), rate


def attentive(
    train: Source,
    y: Tensor,
    test: Source,
    classes: int,
    heads: int,
    here: World,
    seed: int = 0,
    epochs: int = 20,
    groups: Tensor | None = None,
) -> Verdict:
    """An attentive probe on frozen tokens (S, N, D); the rate is chosen on a held-out tenth of the training set.

    All rates are tried on the same tokens at once, which may have to be made anew each time. Every process has to call
    it.
    """
    y, back = standardised(y)
    width = next(batches(train, [torch.arange(1)], here.device)).shape[-1]

    def fit(index: Tensor, rates: Sequence[float]) -> list[nn.Module]:
        learners = []
        for rate in rates:
            torch.manual_seed(seed)
            head = Attentive(width, heads, classes).to(here.device)
            steps = epochs * math.ceil(len(index) / BATCH)
            learners.append(Learner(head, [dict(params=head.parameters())], rate, steps, here))
        return teach(learners, train, y, index, epochs, seed, lambda x, n, count: x.float())

    def say(modules: list[nn.Module], source: Source, index: Tensor) -> Tensor:
        return said(modules, source, index, here, Tensor.float)

    with matmul(here.device, "high"):
        out, rate = chosen(fit, say, (3e-4, 1e-3, 3e-3), (train, test), y, seed, groups, here)
    return Verdict(back(answer(out, y)), rate)


class Classifier(nn.Module):
    """An encoder, its tokens averaged, and a linear layer: normalised images (B, C, H, W) -> (B, c)."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(True)
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
    train: Source,
    y: Tensor,
    test: Source,
    classes: int,
    recipe: Recipe,
    seed: int = 0,
    epochs: int = 20,
    dtype: torch.dtype = torch.float32,
    groups: Tensor | None = None,
    here: World | None = None,
) -> Verdict:
    """Train everything on pictures (S, C, H, W), cropped and mirrored; the rate is chosen on a held-out tenth.

    dtype  bfloat16 computes products in it; float16 would need its loss scaled, and is not used here
    Every process has to call it.
    """
    here = here or alone(next(encoder.parameters()).device)
    y, back = standardised(y)
    wide = recipe.replace(crop_scale=(0.5, 1.0))

    def cropped(x: Tensor, n: int, count: int) -> Tensor:
        part = slice(here.rank, None, here.size)
        whole = x.new_zeros(count, *x.shape[1:])  # crops are drawn for the whole batch, whoever has which part of it
        whole[part] = x
        return augment(whole, wide, mix(seed, "tune", n))[part]

    def fit(index: Tensor, rates: Sequence[float]) -> list[nn.Module]:
        found = []
        for rate in rates:  # one after another: each has an encoder of its own
            torch.manual_seed(seed)
            model = Classifier(encoder, classes).to(here.device)
            steps = epochs * math.ceil(len(index) / BATCH)
            learner = Learner(model, model.groups(0.75), rate, steps, here, dtype)
            found += teach([learner], train, y, index, epochs, seed, cropped)
        return found

    def say(modules: list[nn.Module], source: Source, index: Tensor) -> Tensor:
        return said(modules, source, index, here, encoder.pixels.normalise)

    with matmul(here.device, "high"):
        out, rate = chosen(fit, say, (5e-4, 2e-3), (train, test), y, seed, groups, here)
    return Verdict(back(answer(out, y)), rate)
