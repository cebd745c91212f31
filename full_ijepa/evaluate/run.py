"""The protocols, and a run of them over every encoder of a table: the trained one, a random one, and pixels."""

# Shape legend:  S pictures  F features  c classes

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch
from torch import Tensor

from full_ijepa import checkpoint, labels, methods, metrics
from full_ijepa.data import folder_of, mix, training_files
from full_ijepa.evaluate import heads
from full_ijepa.evaluate.features import Labelled, labelled, pooled, tokens
from full_ijepa.labels import NO_TABLE, Table, Task, task_of
from full_ijepa.recipes.base import Recipe
from full_ijepa.train import precision_of
from full_ijepa.vit import Encoder, build_encoder
from toy_ijepa import shapes
from toy_ijepa.data import ImageSet
from toy_ijepa.probing import pixel_features
from toy_ijepa.recipe import lookup

SHARES = (0.01, 0.1)  # of the labels, for low-shot; and so many of each class:
SHOTS = (1, 5, 20)
FEW_RATE, FEW_PENALTY = 1e-2, 1.0  # of classes and tags, and of numbers, on a handful of labels
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
                self.known[key] = torch.cat([pixel_features(data.pixels.scaled(images)) for images in data.chunks()])
            else:
                self.known[key] = pooled(self.encoder, data, 4, precision_of(self.recipe, self.device))
        found = self.known[key]
        return found if layers == "last4" or self.encoder is None else found[:, -self.encoder.width :]

    def pair(self, layers: Literal["last", "last4"] = "last") -> tuple[Tensor, Tensor]:
        return self.features(self.train, "train", layers), self.features(self.test, "test", layers)

    @property
    def classes(self) -> int:
        """How many classes, tags or columns of numbers."""
        return len(self.train.classes)

    @property
    def task(self) -> Task:
        return task_of(self.train.labels)


def judged(verdict: heads.Verdict, test: Labelled) -> dict[str, Any]:
    """All numbers of the task, and the rate (or penalty) that was chosen."""
    return metrics.judged(verdict.scores, test.labels, test.classes) | dict(rate=verdict.rate)


def knn(s: Subject) -> dict[str, Any]:
    """20 nearest neighbours by cosine, last layer."""
    x, x_test = s.pair()
    scores = metrics.neighbours(x, s.train.labels, x_test, s.classes)
    return metrics.judged(scores, s.test.labels, s.test.classes)


def fitted(s: Subject, x: Tensor, y: Tensor, x_test: Tensor, groups: Tensor | None, few: bool = False) -> heads.Verdict:
    """What is linear in features: logistic for classes and tags, ridge regression for numbers.

    few  a handful of labels leaves nothing to choose on: the same rate or penalty for everybody
    """
    if s.task == "numbers":
        return heads.Verdict(*heads.ridge(x, y, x_test, s.seed, groups, FEW_PENALTY if few else None))
    return heads.linear(x, y, x_test, s.classes, s.seed, rate=FEW_RATE if few else None, groups=groups)


def linear(s: Subject) -> dict[str, Any]:
    """A linear layer on averaged features of the last block, and of the last four."""
    found = {}
    for layers in ("last", "last4"):
        x, x_test = s.pair(layers)
        found[layers] = judged(fitted(s, x, s.train.labels, x_test, s.train.groups), s.test)
    more = {f"{name}_last4": found["last4"][name] for name in (metrics.SHOWN[s.task][0], "rate")}
    return found["last"] | more


def attentive(s: Subject) -> dict[str, Any] | None:
    """One learned query over all frozen tokens, then a linear layer."""
    if s.encoder is None:
        return None
    dtype = precision_of(s.recipe, s.device)
    x, x_test = tokens(s.encoder, s.train, dtype), tokens(s.encoder, s.test, dtype)
    args = x, s.train.labels, x_test, s.classes, s.encoder.config["heads"], s.device, s.seed
    return judged(heads.attentive(*args, groups=s.train.groups), s.test)


def finetune(s: Subject) -> dict[str, Any] | None:
    """Everything is trained on the labels."""
    if s.encoder is None:
        return None
    args = s.train.images(), s.train.labels, s.test.images(), s.classes, s.recipe, s.seed
    dtype = precision_of(s.recipe, s.device)
    return judged(heads.finetune(s.encoder, *args, dtype=dtype, groups=s.train.groups), s.test)


def lowshot(s: Subject) -> dict[str, Any]:
    """What is linear, on few labels: 1 %, 10 %, and n of each class; mean and spread over DRAWS choices of them.

    Raises ValueError if there are too few labels for any of it.
    """
    x, x_test = s.pair()
    found: dict[str, Any] = {}
    name = metrics.SHOWN[s.task][0]
    wanted = {f"{share:.0%}": ("share", share) for share in SHARES}
    if s.task == "classes":  # a picture may have several tags, and a number has no class
        wanted |= {f"{n} a class": ("each", n) for n in SHOTS}
    for label, (kind, amount) in wanted.items():
        scores = []
        for draw in range(DRAWS):
            few = few_labels(s.train.labels, kind, amount, mix(s.seed, "few", draw))
            if len(few) < 2:
                break
            verdict = fitted(s, x[few], s.train.labels[few], x_test, None, few=True)
            scores.append(metrics.judged(verdict.scores, s.test.labels, s.test.classes)[name])
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
    if not s.recipe.pixels.photographs or len(set(s.recipe.sides)) > 1:  # what is drawn is square and coloured
        return None
    side = s.recipe.sides[0]
    drawn = {
        split: shapes.generate(n, {"train": 11, "test": 12}[split], side, most=MOST) for split, n in SCENES.items()
    }
    counts = {split: d.factors["count"] - 1 for split, d in drawn.items()}
    views = dict(classes=(), image_size=side)
    sets = {
        split: Labelled(ImageSet(d.images, counts[split], ()), counts[split], **views) for split, d in drawn.items()
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
    patch = s.recipe.patch
    sizes = {tuple(n * side // 2 // patch * patch for side in s.recipe.sides) for n in (2, 3, 4)}
    curve = {}
    for size in sorted(sizes):
        name = "x".join(map(str, dict.fromkeys(size)))
        x, x_test = (s.features(d.at(size), f"{key} {name}") for key, d in (("train", s.train), ("test", s.test)))
        scores = metrics.neighbours(x, s.train.labels, x_test, s.classes)
        curve[name] = metrics.judged(scores, s.test.labels, s.test.classes)[metrics.SHOWN[s.task][0]]
    return {metrics.SHOWN[s.task][0]: curve[name], "curve": curve}


PROTOCOLS: dict[str, Callable[[Subject], dict[str, Any] | None]] = {
    "knn": knn,
    "linear": linear,
    "attentive": attentive,
    "finetune": finetune,
    "lowshot": lowshot,
    "dense": dense,
    "resolution": resolution,
}


def load_run(
    out: Path, device: torch.device | str = "cpu", which: str = "last"
) -> tuple[Recipe, methods.IJEPA | methods.MAE, int]:
    """Recipe, method and step of a run's checkpoint: "last" (the newest whole one), "best", or a step's number.

    Raises CheckpointError if there is none.
    """
    weights, about = checkpoint.choose(out / "checkpoints", which)
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
    table: Table = NO_TABLE,
    most: int | None = None,
    seeds: Iterable[int] = (0,),
    device: str = "auto",
    which: str = "last",
) -> dict[str, Any]:
    """Judge a run by one protocol after another, beside a random encoder and pixels; writes OUT/evaluation.json.

    data     the set to judge on (default: the one trained on); another one is transfer
    encoder  I-JEPA's "target" encoder (default) or its "context" encoder; MAE has one
    table    of labels beside the folder of pictures (default: the one that the recipe names, if it names one)
    most     at most so many labelled training pictures, drawn at random
    seeds    of heads, of the random encoder and of what is held out; mean and spread are reported
    which    the checkpoint, as `load_run` takes it; others than the last write OUT/evaluation-WHICH.json
    Raises ValueError for an unknown protocol, a run without checkpoints, data without labels, or a table with mistakes.
    """
    chosen = {name: lookup(PROTOCOLS, name, "protocol") for name in protocols}
    seeds = list(seeds)
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("no GPU that torch can use here: leave out --device, or give cpu")
    recipe, method, step = load_run(out, where, which)
    name = data or recipe.data
    if not table and table != NO_TABLE:
        raise ValueError("columns and a task are those of a table of labels: name it too (--labels FILE)")
    if not table and name == recipe.data:
        table = Table.of(recipe)
    views = dict(pixels=recipe.pixels, table=table)
    train = labelled(name, "train", recipe.image_size, most, **views)
    test = labelled(name, "test", recipe.image_size, **views)
    task = about(recipe, name, table, test)
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
        checkpoint=which,
        data=name,
        encoder=encoder,
        labels=len(train),
        tested=len(test),
        classes=list(train.classes),
        **task,
        seeds=seeds,
        protocols={p: {row: summary(found) for row, found in by.items()} for p, by in rows.items()},
    )
    suffix = suffix_of(which) + ("" if name == recipe.data else f"-{Path(name).name}")
    target = out / f"evaluation{suffix}{'' if encoder == 'target' else '-context'}.json"
    if target.exists():  # other protocols of the same encoder, step and data stay
        before = json.loads(target.read_text())
        plain = json.loads(json.dumps(result))
        same = all(before.get(k) == plain[k] for k in ("step", "data", "labels", "tested", "task", "table", "seeds"))
        result["protocols"] = (before["protocols"] if same else {}) | result["protocols"]
    part = target.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(target)
    return result


def about(recipe: Recipe, name: str, table: Table, test: Labelled) -> dict[str, Any]:
    """What the task is, and of a table: its columns, what divided the pictures, and how many were trained on.

    Warns if test pictures were among those of the pre-training.
    """
    found = dict(task=task_of(test.labels), uneven=metrics.uneven(test.labels), table=None)
    if not table:
        return found
    seen = 0
    if name == recipe.data:
        trained_on = {os.path.realpath(path) for path in training_files(recipe)}
        seen = sum(os.path.realpath(path) in trained_on for path, _ in test.source)
        if seen:
            warnings.warn(
                f"{seen} of {len(test)} test pictures were pre-trained on, without their labels; pretrain with the "
                "same --labels, --group-column and --split-column to keep them apart",
                stacklevel=3,
            )
    division = labels.read(table, folder_of(name)).division
    return found | dict(table=asdict(table), division=division, pretrained_on=seen)


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """What `evaluate` wrote, also before there were tables of labels; None if it wrote nothing."""
    if not path.exists():
        return None
    return dict(task="classes", uneven=False, table=None) | json.loads(path.read_text())


def suffix_of(which: str) -> str:
    """What the names of files about another checkpoint than the last end with."""
    return "" if which == "last" else f"-{which}"


def fresh(recipe: Recipe, seed: int) -> Encoder:
    """An untrained encoder of the recipe: the row that every number has to beat."""
    torch.manual_seed(1000 + seed)
    options = dict(positions=recipe.positions, pixels=recipe.pixels)
    return build_encoder(recipe.encoder, recipe.image_size, recipe.patch, **options).eval()


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The first seed's details, with mean and spread over seeds of every number that all have."""
    numbers = {k for k in found[0] if all(isinstance(f[k], int | float) for f in found)}
    spread = {k: round(stdev(f[k] for f in found), 3) if len(found) > 1 else None for k in sorted(numbers)}
    return found[0] | {k: round(mean(f[k] for f in found), 3) for k in numbers} | dict(spread=spread)


def title(protocol: str, task: Task) -> str:
    """What the column of a table is."""
    if protocol == "lowshot":
        return f"{SHOTS[-1]} a class" if task == "classes" else f"{SHARES[-1]:.0%} of labels"
    if (protocol, task) == ("linear", "numbers"):
        return "ridge"
    count = "count" if task == "classes" else "count, accuracy"
    return dict(knn="kNN", finetune="fine-tune", dense=count, resolution="kNN, 2 x side").get(protocol, protocol)


def cells(result: dict[str, Any], name: str, sign: str = "+-") -> dict[str, dict[str, str]]:
    """One number of each protocol that has it, and of each row, with its spread over seeds; by title and row."""
    task, found = result["task"], {}
    for protocol, by in result["protocols"].items():
        # scenes have classes, whatever the task is
        key = "accuracy" if protocol == "dense" and name == metrics.SHOWN[task][0] else name
        texts = {row: metrics.text(numbers, key, sign) for row, numbers in by.items() if key in numbers}
        if texts:
            found[title(protocol, task)] = texts
    return found


def told(result: dict[str, Any]) -> str:
    """What a table of labels was taken for, in one line."""
    columns, names = ", ".join(result["table"]["label_column"]), result["classes"]
    which = f"{len(names)} {result['task']} ({labels.listed(names)})" if result["task"] != "numbers" else "numbers"
    return f"{columns}: {which}; divided by {result['division']}"


def table(result: dict[str, Any]) -> str:
    """The numbers that the task is judged by as text: a row an encoder, a column a protocol."""
    rows = list(dict.fromkeys(row for by in result["protocols"].values() for row in by))
    lines = [told(result)] if result["table"] else []
    for name in metrics.shown(result["task"], result["uneven"]):
        if columns := cells(result, name):
            of = f"{result['tested']} test pictures of {result['data']}, {result['labels']} labels"
            of += f"; checkpoint {result['checkpoint']}, step {result['step']}"
            lines += [f"{metrics.WORDS[name]} on {of}", f"{'':12}" + "".join(f"{title:>16}" for title in columns)]
            lines += [f"{row:12}" + "".join(f"{by.get(row, '-'):>16}" for by in columns.values()) for row in rows]
    return "\n".join(lines)
