"""What is linear in features: logistic regression for classes and tags, ridge regression for numbers.

Features stay where they are, a disk perhaps, but for the rows that are asked for; what is computed, is on the device.
Of several processes each has its share of the rows (`features.share`), and all labels; all have to call, and have the
same weights and the same answer.
Labels are classes (int64, S), tags (bool, S x c) or numbers (float32, S x c); the loss follows from their type.
"""

# Shape legend:  S samples  F features  c classes, tags or columns of numbers  R rates tried at once  B of a batch

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from full_ijepa.distributed import World
from full_ijepa.evaluate.features import alone, gathered, matmul, placed, share
from full_ijepa.labels import apart, task_of
from full_ijepa.order import mix
from toy_ijepa.schedules import warmup_cosine

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # of Adam on standardised features; the best is chosen on a held-out part
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # of ridge regression on standardised features; chosen likewise
BLOCK = 20_000  # rows of features standardised and multiplied at a time where all are wanted
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


def loss_of(out: Tensor, y: Tensor, count: int | None = None) -> Tensor:
    """The mean over samples of the loss of outputs (S, c): cross-entropy of classes, the sum over tags, squares.

    count  of the samples, where these are only a part of them
    """
    count = len(y) if count is None else count
    if task_of(y) == "classes":
        return F.cross_entropy(out, y, reduction="sum") / count
    if task_of(y) == "tags":
        return F.binary_cross_entropy_with_logits(out, y.float(), reduction="sum") / count
    return F.mse_loss(out, y, reduction="sum") / count


def worth(out: Tensor, y: Tensor, count: int, here: World) -> tuple[float, ...]:
    """What a choice on held-out samples goes by: accuracy of classes, then the loss, so that more is better.

    out, y  of this process's share of them; `count` are all
    TRAP: on few held-out samples many rates have the same accuracy, the lowest among them, which has hardly learned.
    """
    right = (out.argmax(-1) == y).sum().item() if task_of(y) == "classes" else 0
    right, loss = here.total(torch.tensor([right, loss_of(out, y, count).item()], dtype=torch.float64)).tolist()
    return right / count, -loss


def answer(out: Tensor, y: Tensor) -> Tensor:
    """Scores (S, c) of outputs: probabilities of classes or tags, numbers as they are; `y` says which."""
    if task_of(y) == "numbers":
        return out
    out = out.double()  # in float32 many probabilities would be exactly 1, and their order be lost
    return out.softmax(-1) if task_of(y) == "classes" else out.sigmoid()


@dataclass(frozen=True)
class Rows:
    """Features (S, F), standardised on the device when they are asked for; x itself may be larger than its memory.

    x      the rows of this process: its share of `count`
    index  numbers of the rows that there are, of `count`; None for all
    """

    x: Tensor
    count: int
    here: World
    index: Tensor | None = None
    mean: Tensor | float = 0.0
    std: Tensor | float = 1.0

    @staticmethod
    def of(x: Tensor, here: World | None = None) -> Rows:
        """This process's rows (S, F) of a set, on the device if they fit (default: one process, where they are)."""
        here = here or alone(x.device)
        return Rows(placed(x.float(), here.device), int(here.total(torch.tensor(len(x)))), here)

    @property
    def device(self) -> torch.device:
        return self.here.device

    @property
    def mine(self) -> range:
        """Numbers of the rows in x."""
        return share(self.count, self.here)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.x.shape[1]

    def __len__(self) -> int:
        return self.count if self.index is None else len(self.index)

    def __getitem__(self, part: Tensor) -> Tensor:
        """Rows (B, F) of these numbers (B,), which are this process's; whoever asks may write in them."""
        part = part if self.index is None else self.index[part]
        rows = self.x[(part - self.mine.start).to(self.x.device)].to(self.device)
        return rows.sub_(self.mean).div_(self.std)

    def some(self, index: Tensor) -> Rows:
        """The rows of these numbers, of those that there are."""
        return replace(self, index=index.to(self.device) if self.index is None else self.index[index])

    def batches(self, order: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (B, F) of each `batch` of these numbers (S,), whoever has them, and the numbers; both on the device.

        Rows travel, and every process computes the same: of many classes gradients would be far larger.
        """
        numbers = order.to(self.device).split(batch)
        if self.here.size == 1:
            yield from ((self[index], index) for index in numbers)
            return
        rows = order if self.index is None else self.index.cpu()[order]
        mine = ((rows >= self.mine.start) & (rows < self.mine.stop)).split(batch)
        places = torch.cat([part.nonzero()[:, 0] for part in mine]).to(self.device)  # sent at once
        for index, at in zip(numbers, places.split([int(part.sum()) for part in mine]), strict=True):
            found = torch.zeros(len(index), self.x.shape[1], device=self.device)
            found[at] = self[index[at]]
            yield self.here.total(found), index

    @property
    def own(self) -> Tensor:
        """Numbers of the rows that are this process's, on the device."""
        if self.index is None:
            return torch.arange(self.mine.start, self.mine.stop, device=self.device)
        return ((self.index >= self.mine.start) & (self.index < self.mine.stop)).nonzero()[:, 0]

    def blocks(self) -> Sequence[Tensor]:
        """The same numbers, BLOCK at a time."""
        return self.own.split(BLOCK)

    def standardised(self) -> Rows:
        """The same rows with a mean of 0 and a std of 1 over all of them."""
        first = sum(self[block].sum(0).cpu().double() for block in self.blocks())
        mean = (self.here.total(first) / len(self)).float().to(self.device)
        second = sum(self[block].sub_(mean).square_().sum(0).cpu().double() for block in self.blocks())
        std = (self.here.total(second) / (len(self) - 1)).sqrt().float().to(self.device)
        return replace(self, mean=mean, std=std.clamp_min(1e-6))


def as_rows(train: Tensor, test: Tensor, here: World | None = None, few: Tensor | None = None) -> tuple[Rows, Rows]:
    """Both sets of features (S, F), standardised by the first, or by the `few` rows of it that are to be used."""
    x, x_test = Rows.of(train, here), Rows.of(test, here)
    x = (x if few is None else x.some(few)).standardised()
    return x, replace(x_test, mean=x.mean, std=x.std)


def fit_linear(x: Tensor | Rows, y: Tensor, classes: int, rates: tuple[float, ...], epochs: int, seed: int) -> Tensor:
    """Linear classifiers for all rates at once, by Adam with a cosine schedule: weights and bias (R, c, F + 1)."""
    x = x if isinstance(x, Rows) else Rows.of(x)
    R, device, y = len(rates), x.device, y.to(x.device)
    weight = torch.zeros(R, classes, x.shape[1] + 1, device=device, requires_grad=True)
    rate = torch.tensor(rates).to(device)[:, None, None]
    optimiser = torch.optim.Adam([weight], lr=1.0)
    batch = min(256, len(x))
    steps = epochs * (len(x) // batch)
    generator, step = torch.Generator().manual_seed(seed), 0
    while step < steps:
        order = torch.randperm(len(x), generator=generator)[: len(x) // batch * batch]
        for rows, index in x.batches(order, batch):
            logits = torch.einsum("bf,rcf->rbc", rows, weight[:, :, :-1]) + weight[:, None, :, -1]
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


def applied(weight: Tensor, x: Rows) -> Tensor:
    """What `apply_linear` says of all rows, or of this process's share of them: (R, S, c)."""
    return torch.cat([apply_linear(weight, x[block]) for block in x.blocks()], dim=1)


def linear(
    train: Tensor,
    y: Tensor,
    test: Tensor,
    classes: int,
    seed: int = 0,
    epochs: int = 50,
    rate: float | None = None,
    groups: Tensor | None = None,
    here: World | None = None,
    few: Tensor | None = None,
) -> Verdict:
    """A linear probe on standardised features (S, F): logistic for classes, and for each tag on its own.

    rate    of learning; without one it is chosen on a held-out tenth of the training set
    groups  of the training samples (S,): none is parted by what is held out
    here    the process among others, and where to compute (default: one, where the features are)
    few     numbers of the training samples that are used, and y of all; None for all
    """
    x, x_test = as_rows(train, test, here, few)
    y, groups = (part if few is None or part is None else part[few] for part in (y, groups))
    with matmul(x.device, "high"):
        if rate is None:
            rest, held = hold_out(len(x), seed, groups)
            tried = applied(fit_linear(x.some(rest), y[rest], classes, RATES, epochs, seed), x.some(held))
            truth = y[held].to(x.device)[x.some(held).own]
            worths = [worth(scores, truth, len(held), x.here) for scores in tried]
            rate = RATES[worths.index(max(worths))]
        said = gathered(applied(fit_linear(x, y, classes, (rate,), epochs, seed), x_test)[0], len(x_test), x.here)
    return Verdict(answer(said.cpu(), y), rate)


def standardised(y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Numbers with mean 0 and std 1, which networks learn, and the way back; classes and tags as they are."""
    if task_of(y) != "numbers":
        return y, lambda found: found
    mean, std = y.mean(0), y.std(0).clamp_min(1e-6)
    return (y - mean) / std, lambda found: found * std + mean


def moments(x: Rows, y: Tensor) -> tuple[Tensor, Tensor]:
    """Products of features with each other (F, F) and with numbers (F,) or (F, c), both means over samples."""
    gram, cross = 0.0, 0.0
    for block in x.blocks():
        rows = x[block]
        gram, cross = gram + rows.T @ rows, cross + rows.T @ y[block]
    return x.here.total(gram) / len(x), x.here.total(cross) / len(x)


def ridge(
    train: Tensor,
    y: Tensor,
    test: Tensor,
    seed: int = 0,
    groups: Tensor | None = None,
    penalty: float | None = None,
    here: World | None = None,
    few: Tensor | None = None,
) -> tuple[Tensor, float]:
    """Numbers (S,) or (S, c) predicted from features by ridge regression, on the CPU, and its penalty.

    penalty    without one it is chosen on a held-out tenth, which parts no group (S,)
    here, few  as `linear` takes them
    """
    x, x_test = as_rows(train, test, here, few)
    y, groups = (part if few is None or part is None else part[few] for part in (y, groups))

    def fit(x: Rows, y: Tensor) -> Callable[[float, Rows], Tensor]:
        y = y.to(x.device)
        mean = y.mean(0)
        gram, cross = moments(x, y - mean)

        def predict(penalty: float, new: Rows) -> Tensor:
            weight = torch.linalg.solve(gram + penalty * torch.eye(len(gram), device=gram.device), cross)
            return torch.cat([new[block] @ weight + mean for block in new.blocks()])

        return predict

    with matmul(x.device, "highest"):
        if penalty is None:
            rest, held = hold_out(len(x), seed, groups)
            truth = y[held].to(x.device)[x.some(held).own]
            scale = y.std(0).clamp_min(1e-6).to(x.device)  # columns have units of their own
            predict = fit(x.some(rest), y[rest])

            def lost(penalty: float) -> float:
                squares = ((predict(penalty, x.some(held)) - truth) / scale).square().sum()
                return x.here.total(squares).item()

            penalty = min(PENALTIES, key=lost)
        return gathered(fit(x, y)(penalty, x_test), len(x_test), x.here).cpu(), penalty
