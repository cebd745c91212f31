"""The protocols: each is asked of a `Subject`, an encoder with the pictures that it is judged on.

Under torchrun every process has to ask, and hears the same.
"""

# Shape legend:  S pictures  F features  c classes

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from full_ijepa import metrics
from full_ijepa.distributed import World
from full_ijepa.evaluate import heads, paper, tuning
from full_ijepa.evaluate.features import (
    Make,
    Source,
    alone,
    averages,
    gathered,
    matmul,
    pictures_of,
    placed,
    share,
    together,
    tokens_of,
)
from full_ijepa.evaluate.pictures import Labelled
from full_ijepa.labels import Task, task_of
from full_ijepa.order import mix
from full_ijepa.recipes.base import Recipe
from full_ijepa.train import precision_of
from full_ijepa.vit import Encoder
from toy_ijepa import shapes
from toy_ijepa.data import ImageSet
from toy_ijepa.probing import pixel_features

SHARES = (0.01, 0.1)  # of the labels, for low-shot; and so many of each class:
SHOTS = (1, 5, 20)
FEW_RATE, FEW_PENALTY = 1e-2, 1.0  # of classes and tags, and of numbers, on a handful of labels
DRAWS = 3  # random choices of the few labels; their spread is reported
SCENES = {"train": 8000, "test": 2000}  # embedded pictures of the dense tasks
MOST = 5  # objects of a scene


@dataclass
class Subject:
    """An encoder under judgement, or pixels (encoder None), and the data it is judged on.

    known   features, and tokens, that were computed already
    here    the process among others, which encode and fit together; without it, it is alone on its device
    folder  where features go that are too large for memory
    """

    encoder: Encoder | None
    recipe: Recipe
    train: Labelled
    test: Labelled
    device: torch.device
    seed: int = 0
    known: dict[str, Tensor | Source] = field(default_factory=dict)
    here: World | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        self.here = self.here or alone(self.device)

    @property
    def make(self) -> Make:
        """Makes features of all layers that are asked for: (B, F)."""
        if self.encoder is not None:
            return averages(self.encoder, 4, self.dtype)
        return lambda images: pixel_features(self.train.pixels.scaled(images))

    def features(self, data: Labelled, key: str, layers: Literal["last", "last4"] = "last") -> Tensor:
        """Features (S, F) of this process's share of a set, on the CPU, remembered under a key."""
        if key not in self.known:
            learn([self], data, key)
        found = self.known[key]
        return found if layers == "last4" or self.encoder is None else found[:, -self.encoder.width :]

    def pair(self, layers: Literal["last", "last4"] = "last") -> tuple[Tensor, Tensor]:
        return self.features(self.train, "train", layers), self.features(self.test, "test", layers)

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in where it encodes."""
        return precision_of(self.recipe, self.device)

    @property
    def classes(self) -> int:
        """How many classes, tags or columns of numbers."""
        return len(self.train.classes)

    @property
    def task(self) -> Task:
        return task_of(self.train.labels)


def learn(subjects: Sequence[Subject], data: Labelled, key: str) -> None:
    """Each subject gets its features of a set under a key, in one pass; those that share what they know, once."""
    lacking = {id(s.known): s for s in subjects if key not in s.known}
    if lacking:
        first = next(iter(lacking.values()))
        found = together([s.make for s in lacking.values()], data, first.here, first.folder)
        for s, x in zip(lacking.values(), found, strict=True):
            s.known[key] = x


def judged(verdict: heads.Verdict, test: Labelled) -> dict[str, Any]:
    """All numbers of the task, and the rate (or penalty) that was chosen."""
    return metrics.judged(verdict.scores, test.labels, test.classes) | dict(rate=verdict.rate)


def knn(s: Subject) -> dict[str, Any]:
    """20 nearest neighbours by cosine, last layer."""
    return metrics.judged(near(s, *s.pair()), s.test.labels, s.test.classes)


def near(s: Subject, x: Tensor, x_test: Tensor, k: int = 20) -> Tensor:
    """What the nearest neighbours in x say of x_test, shares of both: of all test samples (S, c).

    Each process finds those of all queries among its own samples; the nearest of all of them answer.
    """
    count, k = len(s.train), min(k, len(s.train))
    mean, queries = s.here.total(x.sum(0)) / count, gathered(x_test, len(s.test), s.here)
    with matmul(s.device, "highest"):
        cosine, index = metrics.nearest(x, queries, mean, k, s.device)
        lacking = (0, k - cosine.shape[1])  # of a process with few samples
        cosine, index = F.pad(cosine, lacking, value=-2.0), F.pad(index + share(count, s.here).start, lacking)
        found = metrics.closest(torch.cat(s.here.each(cosine), 1), torch.cat(s.here.each(index), 1), k)
        return metrics.vote(*found, s.train.labels, s.classes)


def fitted(s: Subject, x: Tensor, x_test: Tensor, few: Tensor | None = None) -> heads.Verdict:
    """What is linear in features: logistic for classes and tags, ridge regression for numbers.

    few  numbers of a handful of labels: they leave nothing to choose on, so the same rate or penalty for everybody
    """
    y, given = s.train.labels, dict(groups=s.train.groups, here=s.here, few=few)
    if s.task == "numbers":
        return heads.Verdict(*heads.ridge(x, y, x_test, s.seed, penalty=None if few is None else FEW_PENALTY, **given))
    return heads.linear(x, y, x_test, s.classes, s.seed, rate=None if few is None else FEW_RATE, **given)


def linear(s: Subject) -> dict[str, Any]:
    """A linear layer on averaged features of the last block, and of the last four."""
    found = {}
    for layers in ("last", "last4") if s.encoder is not None else ("last",):
        found[layers] = judged(fitted(s, *s.pair(layers)), s.test)
    found.setdefault("last4", found["last"])  # pixels have no layers
    more = {f"{name}_last4": found["last4"][name] for name in (metrics.SHOWN[s.task][0], "rate")}
    return found["last"] | more


def paper_linear(s: Subject) -> dict[str, Any]:
    """The linear probe of the paper's appendix (full_ijepa.evaluate.paper)."""
    sets = {layers: s.pair(layers) for layers in (("last",) if s.encoder is None else ("last", "last4"))}
    verdict, setting = paper.linear(sets, s.train.labels, s.classes, s.seed, s.train.groups, s.here)
    return judged(verdict, s.test) | dict(layers=setting.layers, norm=setting.norm, decay=setting.decay)


def attentive(s: Subject) -> dict[str, Any] | None:
    """One learned query over all frozen tokens, then a linear layer."""
    if s.encoder is None:
        return None
    for key, data in (("train tokens", s.train), ("test tokens", s.test)):
        if key not in s.known:
            s.known[key] = tokens_of(s.encoder, data, s.here, s.dtype)
    x, x_test = s.known["train tokens"], s.known["test tokens"]
    args = x, s.train.labels, x_test, s.classes, s.encoder.config["heads"], s.here, s.seed
    return judged(tuning.attentive(*args, groups=s.train.groups), s.test)


def finetune(s: Subject) -> dict[str, Any] | None:
    """Everything is trained on the labels."""
    if s.encoder is None:
        return None
    args = pictures_of(s.train, s.here), s.train.labels, pictures_of(s.test, s.here), s.classes, s.recipe, s.seed
    return judged(tuning.finetune(s.encoder, *args, dtype=s.dtype, groups=s.train.groups, here=s.here), s.test)


def lowshot(s: Subject) -> dict[str, Any]:
    """What is linear, on few labels: 1 %, 10 %, and n of each class; mean and spread over DRAWS choices of them.

    Raises ValueError if there are too few labels for any of it.
    """
    x, x_test = (placed(part, s.device) for part in s.pair())  # once for all fits
    found: dict[str, Any] = {}
    name = metrics.SHOWN[s.task][0]
    wanted = {f"{share:.0%}": ("share", share) for share in SHARES}
    if s.task == "classes":  # a picture may have several tags, and a number has no class
        wanted |= {f"{n} a class": ("each", n) for n in SHOTS}
    for label, (kind, amount) in wanted.items():
        scores = []
        for draw in range(DRAWS):
            few = few_labels(s.train.labels, kind, amount, mix(s.seed, "few", draw))
            if kind == "each" and s.here.leads and draw == 0 and len(few) < amount * len(s.train.labels.unique()):
                warnings.warn(f"lowshot: some classes have fewer than {amount:g} labels; all are taken", stacklevel=2)
            if len(few) < 2:
                break
            verdict = fitted(s, x, x_test, few)
            scores.append(metrics.headline(verdict.scores, s.test.labels))
        if scores:
            found[label] = {name: mean(scores), "spread": stdev(scores), "labels": len(few)}
    if not found:
        raise ValueError(f"lowshot takes {SHARES[-1]:.0%} of the labels, and {len(s.train)} are too few: leave it out")
    return {name: next(reversed(found.values()))[name], "curve": found}


def few_labels(labels: Tensor, kind: str, amount: float, seed: int) -> Tensor:
    """Numbers of a few samples: a share of all, or so many of each class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if kind == "share":
        return order[: round(amount * len(labels))]
    return torch.cat([order[labels[order] == c][: int(amount)] for c in labels.unique()])


def dense(s: Subject) -> dict[str, Any] | None:
    """Scenes of objects that hide each other: count, depth and place.

    accuracy  of the number of objects, "front" of the silhouette that lies nearest (an order that only what hides what
    tells), both from a linear probe; "nearest_size_r2", "nearest_x_r2", "nearest_y_r2" the share of variance explained
    of that object's size and place. All in per cent.
    """
    sets = scenes_of(s)
    if not sets:
        if s.here.leads:
            warnings.warn("dense: its scenes are square and coloured, what this encoder sees is not", stacklevel=2)
        return None
    x, x_test = (s.features(data, key) for key, data in sets.items())
    factors = {split: data.source.factors for split, data in zip(SCENES, sets.values(), strict=True)}
    counts = {split: f["count"] - 1 for split, f in factors.items()}

    def classified(labels: dict[str, Tensor], classes: int) -> float:
        verdict = heads.linear(x, labels["train"], x_test, classes, s.seed, here=s.here)
        return 100 * (verdict.predicted == labels["test"]).double().mean().item()

    front = {split: nearest(f, "shape").long() for split, f in factors.items()}
    found = dict(accuracy=classified(counts, MOST), front=classified(front, len(shapes.CLASSES)))
    for name in ("size", "x", "y"):
        y, truth = (nearest(f, name) for f in factors.values())
        guess, _ = heads.ridge(x, y, x_test, s.seed, here=s.here)
        found[f"nearest_{name}_r2"] = 100 * (1 - ((guess - truth).square().mean() / truth.var(correction=0))).item()
    return found


def scenes_of(s: Subject) -> dict[str, Labelled]:
    """Drawn scenes, by the key of their features; none for pictures that are not square and coloured."""
    if not s.recipe.pixels.photographs or len(set(s.recipe.sides)) > 1:
        return {}
    return {f"scene {split}": scenes(split, n, s.recipe.sides[0]) for split, n in SCENES.items()}


@lru_cache(maxsize=2)
def scenes(split: str, count: int, side: int) -> Labelled:
    """Pictures of a split, the same for everybody; `source.factors` says what is in them."""
    drawn = shapes.generate(count, {"train": 11, "test": 12}[split], side, most=MOST)
    counts = drawn.factors["count"] - 1
    return Labelled(ImageSet(drawn.images, counts, (), drawn.factors), counts, (), side)


def nearest(factors: dict[str, Tensor], name: str) -> Tensor:
    """A factor (S,) of the object with depth 1."""
    where = (factors["object_depth"] == 1).int().argmax(1)
    return factors[f"object_{name}"].gather(1, where[:, None])[:, 0].float()


def resolution(s: Subject) -> dict[str, Any] | None:
    """kNN with pictures one and a half times and twice as large, through interpolated positions."""
    if s.encoder is None:
        return None
    curve, sets = {}, sizes_of(s)
    for size in dict.fromkeys(data.sides for data in sets.values()):
        x, x_test = (s.features(data, key) for key, data in sets.items() if data.sides == size)
        found = metrics.judged(near(s, x, x_test), s.test.labels, s.test.classes)
        name = "x".join(map(str, dict.fromkeys(size)))
        curve[name] = found[metrics.SHOWN[s.task][0]]
    return {metrics.SHOWN[s.task][0]: curve[name], "curve": curve}


def sizes_of(s: Subject) -> dict[str, Labelled]:
    """Both sets at each size, smallest first, by the key of their features; none for pixels."""
    if s.encoder is None:
        return {}
    patch = s.recipe.patch
    sizes = {tuple(n * side // 2 // patch * patch for side in s.recipe.sides) for n in (2, 3, 4)}
    found = {}
    for size in sorted(sizes):
        for key, data in (("train", s.train), ("test", s.test)):
            found[key if size == data.sides else f"{key} {size}"] = data.at(size)
    return found


def own_sets(s: Subject) -> dict[str, Labelled]:
    """Both sets as they are, by the key of their features."""
    return {"train": s.train, "test": s.test}


PROTOCOLS: dict[str, Callable[[Subject], dict[str, Any] | None]] = {
    "knn": knn,
    "linear": linear,
    "paper": paper_linear,
    "attentive": attentive,
    "finetune": finetune,
    "lowshot": lowshot,
    "dense": dense,
    "resolution": resolution,
}
# What needs features of these sets; the others train with the encoder in the loop.
NEEDED: dict[str, Callable[[Subject], dict[str, Labelled]]] = {
    "knn": own_sets,
    "linear": own_sets,
    "paper": own_sets,
    "lowshot": own_sets,
    "dense": scenes_of,
    "resolution": sizes_of,
}
