"""How good an answer is: of classes, of tags (several at once) and of numbers; and the answer of nearest neighbours.

Shares are in %, R2 among them; a mean absolute error has the unit of its column.
"""

# Shape legend:  S samples  F features  c classes, tags or columns of numbers  k neighbours

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from full_ijepa.labels import Task, task_of

# Of each task the numbers that tables show, the one that stands for all first.
SHOWN: dict[Task, tuple[str, ...]] = {
    "classes": ("accuracy", "balanced_accuracy"),
    "tags": ("auroc", "average_precision"),
    "numbers": ("r2", "mae"),
}
WORDS = dict(
    accuracy="accuracy in %",
    balanced_accuracy="balanced accuracy in %",
    macro_f1="macro F1 in %",
    auroc="mean AUROC in %",
    average_precision="mean average precision in %",
    r2="R2 in %",
    mae="mean absolute error",
)
BLOCK = 100_000  # samples that queries are compared with at a time
CONFUSED = 100  # classes up to which every mistake is counted by itself
UNEVEN = 1.5  # times as many pictures in the largest class as in the smallest


def shown(task: Task, uneven: bool) -> tuple[str, ...]:
    """Names of the numbers that a table shows: balanced accuracy only where classes are uneven."""
    return SHOWN[task][:1] if task == "classes" and not uneven else SHOWN[task]


def text(found: dict[str, Any], name: str, sign: str = "+-") -> str:
    """A number with its spread over seeds, if there is one."""
    value, spread = found[name], found.get("spread", {}).get(name)
    form = "{:.3g}" if name == "mae" else "{:.1f}"
    return "-" if value is None else form.format(value) + ("" if spread is None else f" {sign} {form.format(spread)}")


def uneven(labels: Tensor) -> bool:
    """Whether some class has far more pictures than another."""
    if task_of(labels) != "classes":
        return False
    counts = labels.bincount()
    return bool(counts.max() > UNEVEN * counts.min())


def judged(scores: Tensor, truth: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    """All numbers about an answer: scores (S, c) for true classes (S,), tags (S, c) or numbers (S, c).

    scores  of classes and tags: the higher the likelier, comparable between samples; numbers as they are
    """
    return {"classes": of_classes, "tags": of_tags, "numbers": of_numbers}[task_of(truth)](scores, truth, names)


def of_classes(scores: Tensor, truth: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy, balanced accuracy, macro F1; each class's accuracy, and one against the rest; confusion (rows: truth).

    Of more than CONFUSED classes there is no confusion: its square is millions of numbers in a file.
    A class that the test part does not have counts 0 in macro F1 and is left out of the other means.
    """
    from sklearn.metrics import confusion_matrix, f1_score, recall_score  # slow: only who judges waits for it

    said, true = scores.argmax(1).numpy(), truth.numpy()
    table = confusion_matrix(true, said, labels=range(len(names)))
    each = 100 * table.diagonal() / table.sum(1).clip(1)
    recall = recall_score(true, said, average="macro", labels=np.unique(true), zero_division=0)
    macro = f1_score(true, said, average="macro", labels=range(len(names)), zero_division=0)
    return dict(
        accuracy=100 * float((said == true).mean()),
        balanced_accuracy=100 * float(recall),
        macro_f1=100 * float(macro),
        **ranked(scores, F.one_hot(truth, len(names)).bool(), names),
        each_class=dict(zip(names, each.round(2).tolist(), strict=True)),
        **(dict(confusion=table.tolist()) if len(names) <= CONFUSED else {}),
    )


def of_tags(scores: Tensor, truth: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    """Mean AUROC and mean average precision, and those of each tag; how many pictures have it."""
    counts = truth.sum(0).tolist()
    return dict(**ranked(scores, truth, names), each_count=dict(zip(names, counts, strict=True)))


def ranked(scores: Tensor, truth: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    """AUROC and average precision of each column of truth (S, c), None where all or none are true, and their means."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    found: dict[str, Any] = {}
    for name, measure in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        each = {
            label: 100 * float(measure(true, score)) if 0 < true.sum() < len(true) else None
            for label, true, score in zip(names, truth.T.numpy(), scores.T.numpy(), strict=True)
        }
        known = [value for value in each.values() if value is not None]
        found[name] = float(np.mean(known)) if known else None
        found[f"each_{name}"] = {label: value and round(value, 2) for label, value in each.items()}
    return found


def of_numbers(scores: Tensor, truth: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    """R2 (mean over columns) and mean absolute error (of one column), and those of each column."""
    from sklearn.metrics import mean_absolute_error, r2_score

    shares = 100 * r2_score(truth, scores, multioutput="raw_values")
    errors = mean_absolute_error(truth, scores, multioutput="raw_values")
    found: dict[str, Any] = dict(r2=float(shares.mean()))
    if len(names) == 1:  # several columns have several units
        found["mae"] = float(errors[0])
    each = dict(each_r2=shares.round(2).tolist(), each_mae=errors.tolist())
    return found | {key: dict(zip(names, values, strict=True)) for key, values in each.items()}


def neighbours(
    x: Tensor,
    y: Tensor,
    queries: Tensor,
    count: int,
    k: int = 20,
    temperature: float = 0.07,
    device: torch.device | None = None,
) -> Tensor:
    """What the k nearest samples (S, F) say of queries (Q, F), weighted by exp(cosine / temperature): (Q, c).

    On the CPU. Shares of classes or tags, or means of numbers; `count` is c. The highest share is the answer of
    `toy_ijepa.probing.knn`.
    device  where it is computed (default: where x is), BLOCK samples at a time
    """
    near = nearest(x, queries, x.mean(0), k, device or x.device)
    return vote(*near, y, count, temperature)


def nearest(x: Tensor, queries: Tensor, mean: Tensor, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines of queries (Q, F) with the k nearest of the samples (S, F), and their numbers: (Q, min(k, S)) each.

    mean  what both are centred on; all of it is computed on the device, BLOCK samples at a time
    """
    mean = mean.to(device)
    asked = F.normalize(queries.to(device) - mean, dim=1)
    best = torch.empty(len(asked), 0, device=device), torch.empty(len(asked), 0, dtype=torch.long, device=device)
    for first in range(0, len(x), BLOCK):
        bank = F.normalize(x[first : first + BLOCK].to(device) - mean, dim=1)
        found = [(part @ bank.T).topk(min(k, len(bank)), dim=1) for part in asked.split(1000)]  # (b, k) each
        cosine, index = (torch.cat(parts) for parts in zip(*found, strict=True))
        best = closest(torch.cat([best[0], cosine], dim=1), torch.cat([best[1], index + first], dim=1), k)
    return best


def closest(cosine: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest cosines of each row (Q, n), and what has them: (Q, min(k, n)) each."""
    cosine, order = cosine.topk(min(k, cosine.shape[1]), dim=1)
    return cosine, index.gather(1, order)


def vote(cosine: Tensor, index: Tensor, y: Tensor, count: int, temperature: float = 0.07) -> Tensor:
    """What the neighbours (Q, k) of queries say, of all labels (S,) or (S, c): (Q, c), on the CPU; see `neighbours`."""
    y, known, said = y.to(cosine.device), torch.eye(count, device=cosine.device), []
    for near, rows in zip(cosine.split(1000), index.split(1000), strict=True):
        told = known[y[rows]] if task_of(y) == "classes" else y[rows].float()  #    (b, k, c)
        said.append(torch.einsum("bk,bkc->bc", (near / temperature).softmax(1), told).cpu())
    return torch.cat(said)


def headline(scores: Tensor, truth: Tensor) -> float:
    """The first number that `judged` shows, alone, in %: accuracy of classes, mean AUROC of tags, R2 of numbers."""
    if task_of(truth) == "classes":
        return 100 * (scores.argmax(1) == truth).double().mean().item()
    names = tuple(map(str, range(truth.shape[1])))
    found = judged(scores, truth, names)[SHOWN[task_of(truth)][0]]
    return float("nan") if found is None else found


def knn_score(x: Tensor, y: Tensor, queries: Tensor, truth: Tensor) -> float:
    """kNN by the first number of its task, in %."""
    count = int(y.max()) + 1 if task_of(y) == "classes" else y.shape[1]
    return headline(neighbours(x, y, queries, count), truth)
