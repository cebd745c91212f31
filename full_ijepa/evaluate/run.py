"""The protocols, and a run of them over every encoder of a table: the trained one, a random one, and pixels."""

# Shape legend:  S pictures  F features  c classes

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch
from torch import Tensor

from full_ijepa import checkpoint, methods
from full_ijepa.data import mix
from full_ijepa.evaluate import heads
from full_ijepa.evaluate.features import Labelled, labelled, pooled, tokens
from full_ijepa.recipes.base import Recipe
from full_ijepa.train import precision_of
from full_ijepa.vit import Encoder, build_encoder
from toy_ijepa import shapes
from toy_ijepa.data import ImageSet
from toy_ijepa.probing import knn as knn_accuracy
from toy_ijepa.probing import pixel_features
from toy_ijepa.recipe import lookup

SHARES = (0.01, 0.1)  # of the labels, for low-shot; and so many of each class:
SHOTS = (1, 5, 20)
FEW_RATE = 1e-2  # a handful of labels leaves nothing to choose a rate on: the same for everybody
DRAWS = 3  # random choices of the few labels; their spread is reported
SCENES = {"train": 8000, "test": 2000}  # embedded pictures of the dense tasks
MOST = 5  # objects of a scene


@dataclass
class Subject:
    """An encoder under judgement, or pixels (encoder None), and the data it is judged on."""

    encoder: Encoder | None
    recipe: Recipe
    train: Labelled
    test: Labelled
    device: torch.device
    seed: int = 0
    known: dict[str, Tensor] = field(default_factory=dict)  #  features that were computed already

    def features(self, data: Labelled, key: str, layers: Literal["last", "last4"] = "last") -> Tensor:
        """Features (S, F) of a set, remembered under a key."""
        if key not in self.known:
            if self.encoder is None:
                self.known[key] = torch.cat([pixel_features(images) for images in data.chunks()])
            else:
                self.known[key] = pooled(self.encoder, data, 4, precision_of(self.recipe, self.device))
        found = self.known[key]
        return found if layers == "last4" or self.encoder is None else found[:, -self.encoder.width :]

    def pair(self, layers: Literal["last", "last4"] = "last") -> tuple[Tensor, Tensor]:
        return self.features(self.train, "train", layers), self.features(self.test, "test", layers)

    @property
    def classes(self) -> int:
        return len(self.train.classes)


def judged(verdict: heads.Verdict, truth: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy (%), macro F1 (%), accuracy of each class (%), confusion matrix (rows: truth), and the rate chosen."""
    from sklearn.metrics import confusion_matrix, f1_score  # a slow import that only this function needs

    table = confusion_matrix(truth, verdict.predicted, labels=range(len(classes)))
    each = 100 * table.diagonal() / table.sum(1).clip(1)
    return dict(
        accuracy=100 * (verdict.predicted == truth).double().mean().item(),
        macro_f1=100
        * float(f1_score(truth, verdict.predicted, average="macro", labels=range(len(classes)), zero_division=0)),
        each_class=dict(zip(classes, each.round(2).tolist(), strict=True)),
        confusion=table.tolist(),
        rate=verdict.rate,
    )


def knn(s: Subject) -> dict[str, Any]:
    """20 nearest neighbours by cosine, last layer."""
    x, x_test = s.pair()
    return dict(accuracy=knn_accuracy(x, s.train.labels, x_test, s.test.labels, k=min(20, len(x))))


def linear(s: Subject) -> dict[str, Any]:
    """A linear layer on averaged features of the last block, and of the last four."""
    found = {}
    for layers in ("last", "last4"):
        x, x_test = s.pair(layers)
        verdict = heads.linear(x, s.train.labels, x_test, s.classes, s.seed)
        found[layers] = judged(verdict, s.test.labels, s.test.classes)
    best = found["last"]
    return best | dict(accuracy_last4=found["last4"]["accuracy"], rate_last4=found["last4"]["rate"])


def attentive(s: Subject) -> dict[str, Any] | None:
    """One learned query over all frozen tokens, then a linear layer."""
    if s.encoder is None:
        return None
    dtype = precision_of(s.recipe, s.device)
    x, x_test = tokens(s.encoder, s.train, dtype), tokens(s.encoder, s.test, dtype)
    n_heads = s.encoder.config["heads"]
    verdict = heads.attentive(x, s.train.labels, x_test, s.classes, n_heads, s.device, s.seed)
    return judged(verdict, s.test.labels, s.test.classes)


def finetune(s: Subject) -> dict[str, Any] | None:
    """Everything is trained on the labels."""
    if s.encoder is None:
        return None
    args = s.train.images(), s.train.labels, s.test.images(), s.classes
    verdict = heads.finetune(s.encoder, *args, s.recipe, s.seed, dtype=precision_of(s.recipe, s.device))
    return judged(verdict, s.test.labels, s.test.classes)


def lowshot(s: Subject) -> dict[str, Any]:
    """A linear layer on few labels: 1 %, 10 %, and n of each class; mean and spread over DRAWS choices of them."""
    x, x_test = s.pair()
    found: dict[str, Any] = {}
    wanted = {f"{share:.0%}": ("share", share) for share in SHARES} | {f"{n} a class": ("each", n) for n in SHOTS}
    for name, (kind, amount) in wanted.items():
        scores = []
        for draw in range(DRAWS):
            few = few_labels(s.train.labels, kind, amount, mix(s.seed, "few", draw))
            if len(few) < 2:
                break
            verdict = heads.linear(x[few], s.train.labels[few], x_test, s.classes, s.seed, rate=FEW_RATE)
            scores.append(100 * (verdict.predicted == s.test.labels).double().mean().item())
        if scores:
            found[name] = dict(accuracy=mean(scores), spread=stdev(scores), labels=len(few))
    return dict(accuracy=next(reversed(found.values()))["accuracy"], curve=found)


def few_labels(labels: Tensor, kind: str, amount: float, seed: int) -> Tensor:
    """Numbers of a few samples: a share of all, or so many of each class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if kind == "share":
        return order[: round(amount * len(labels))]
    return torch.cat([order[labels[order] == c][: int(amount)] for c in labels.unique()])


def dense(s: Subject) -> dict[str, Any]:
    """Scenes of objects that hide each other: count, depth and place.

    accuracy  of the number of objects, "front" of the silhouette that lies nearest (an order that only what hides what
    tells), both from a linear probe; "nearest_size_r2", "nearest_x_r2", "nearest_y_r2" the share of variance explained
    of that object's size and place. All in per cent.
    """
    side = s.recipe.image_size
    drawn = {
        split: shapes.generate(n, {"train": 11, "test": 12}[split], side, most=MOST) for split, n in SCENES.items()
    }
    counts = {split: d.factors["count"] - 1 for split, d in drawn.items()}
    sets = {
        split: Labelled(ImageSet(d.images, counts[split], ()), counts[split], (), side) for split, d in drawn.items()
    }
    x, x_test = (s.features(data, f"scene {split}") for split, data in sets.items())

    def classified(labels: dict[str, Tensor], classes: int) -> float:
        verdict = heads.linear(x, labels["train"], x_test, classes, s.seed)
        return 100 * (verdict.predicted == labels["test"]).double().mean().item()

    front = {split: nearest(d.factors, "shape").long() for split, d in drawn.items()}
    found = dict(accuracy=classified(counts, MOST), front=classified(front, len(shapes.CLASSES)))
    for name in ("size", "x", "y"):
        y, truth = (nearest(d.factors, name) for d in drawn.values())
        guess, _ = heads.ridge(x, y, x_test, s.seed)
        found[f"nearest_{name}_r2"] = 100 * (1 - ((guess - truth).square().mean() / truth.var(correction=0))).item()
    return found


def nearest(factors: dict[str, Tensor], name: str) -> Tensor:
    """A factor (S,) of the object with depth 1."""
    where = (factors["object_depth"] == 1).int().argmax(1)
    return factors[f"object_{name}"].gather(1, where[:, None])[:, 0].float()


def resolution(s: Subject) -> dict[str, Any] | None:
    """kNN with pictures one and a half times and twice as large, through interpolated positions."""
    if s.encoder is None:
        return None
    sides = {n * s.recipe.image_size // 2 // s.recipe.patch * s.recipe.patch for n in (2, 3, 4)}
    curve = {}
    for side in sorted(sides):
        x, x_test = (s.features(d.at(side), f"{key} {side}") for key, d in (("train", s.train), ("test", s.test)))
        curve[str(side)] = knn_accuracy(x, s.train.labels, x_test, s.test.labels, k=min(20, len(x)))
    return dict(accuracy=curve[str(max(sides))], curve=curve)


PROTOCOLS: dict[str, Callable[[Subject], dict[str, Any] | None]] = {
    "knn": knn,
    "linear": linear,
    "attentive": attentive,
    "finetune": finetune,
    "lowshot": lowshot,
    "dense": dense,
    "resolution": resolution,
}

TITLES = dict(zip(PROTOCOLS, PROTOCOLS, strict=True)) | dict(  # what the accuracy of a table is
    knn="kNN", finetune="fine-tune", lowshot=f"{SHOTS[-1]} a class", dense="count", resolution="kNN, 2 x side"
)


def load_run(out: Path, device: torch.device | str = "cpu") -> tuple[Recipe, methods.IJEPA | methods.MAE, int]:
    """Recipe, method and step of a run's newest whole checkpoint. Raises CheckpointError if there is none."""
    found = checkpoint.newest(out / "checkpoints")
    if found is None:
        raise checkpoint.CheckpointError(f"no checkpoint in {out / 'checkpoints'}; is {out} the --out of a pretrain?")
    weights, about, _ = found
    recipe = Recipe.read(about["recipe"])
    step = methods.Step(methods.build(recipe.replace(compile=False)))
    checkpoint.restore(step, [], weights)
    return recipe, step.method.to(device).eval(), about["step"]


def evaluate(
    out: Path,
    protocols: Iterable[str] = ("knn", "linear", "lowshot"),
    *,
    data: str | None = None,
    encoder: Literal["target", "context"] = "target",
    labels: int | None = None,
    seeds: Iterable[int] = (0,),
    device: str = "auto",
) -> dict[str, Any]:
    """Judge a run by one protocol after another, beside a random encoder and pixels; writes OUT/evaluation.json.

    data     the set to judge on (default: the one trained on); another one is transfer
    encoder  I-JEPA's "target" encoder (default) or its "context" encoder; MAE has one
    labels   at most so many labelled training pictures, drawn at random
    seeds    of heads, of the random encoder and of what is held out; mean and spread are reported
    Raises ValueError for an unknown protocol, a run without checkpoints, or data without classes.
    """
    chosen = {name: lookup(PROTOCOLS, name, "protocol") for name in protocols}
    seeds = list(seeds)
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("no GPU that torch can use here: leave out --device, or give cpu")
    recipe, method, step = load_run(out, where)
    name, side = data or recipe.data, recipe.image_size
    train, test = labelled(name, "train", side, labels), labelled(name, "test", side)
    own = method.probed if encoder == "target" else method.encoder
    rows: dict[str, dict[str, list]] = {}
    for seed in seeds:
        subjects = {recipe.method: own, "random": fresh(recipe, seed).to(where), "pixels": None}
        for row, network in subjects.items():
            subject = Subject(network, recipe, train, test, where, seed)
            for protocol, judge in chosen.items():
                found = judge(subject)
                if found is not None:
                    rows.setdefault(protocol, {}).setdefault(row, []).append(found)
    result = dict(
        run=str(out),
        step=step,
        data=name,
        encoder=encoder,
        labels=len(train),
        tested=len(test),
        classes=list(train.classes),
        seeds=seeds,
        protocols={p: {row: summary(found) for row, found in by.items()} for p, by in rows.items()},
    )
    suffix = "" if name == recipe.data else f"-{Path(name).name}"
    target = out / f"evaluation{suffix}{'' if encoder == 'target' else '-context'}.json"
    if target.exists():  # other protocols of the same encoder, step and data stay
        before = json.loads(target.read_text())
        same = all(before[k] == result[k] for k in ("step", "data", "labels", "seeds"))
        result["protocols"] = (before["protocols"] if same else {}) | result["protocols"]
    part = target.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(target)
    return result


def fresh(recipe: Recipe, seed: int) -> Encoder:
    """An untrained encoder of the recipe: the row that every number has to beat."""
    torch.manual_seed(1000 + seed)
    return build_encoder(recipe.encoder, recipe.image_size, recipe.patch, positions=recipe.positions).eval()


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The first seed's details, with mean and spread over seeds of every number."""
    numbers = {k for k, v in found[0].items() if isinstance(v, int | float)}
    spread = {k: round(stdev(f[k] for f in found), 3) if len(found) > 1 else None for k in sorted(numbers)}
    return found[0] | {k: round(mean(f[k] for f in found), 3) for k in numbers} | dict(spread=spread)


def table(result: dict[str, Any]) -> str:
    """Accuracies in % as text: a row an encoder, a column a protocol."""
    protocols = result["protocols"]
    rows = list(dict.fromkeys(row for by in protocols.values() for row in by))
    lines = [f"{'':12}" + "".join(f"{name:>16}" for name in map(TITLES.get, protocols))]
    for row in rows:
        cells = []
        for by in protocols.values():
            spread = by.get(row, {}).get("spread", {}).get("accuracy")
            text = f"{by[row]['accuracy']:.1f}" if row in by else "-"
            cells.append(f"{text + (f' +- {spread:.1f}' if spread is not None else ''):>16}")
        lines.append(f"{row:12}" + "".join(cells))
    note = f"accuracy in % on {result['tested']} test pictures of {result['data']}, {result['labels']} labels"
    return "\n".join([note, *lines])
