"""The main job: pre-train, probe against baselines, draw what was imagined.

python -m toy_ijepa --data cifar10 --steps 6000 --seed 0 1 2
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from toy_ijepa import imagination, plots, probing, trouble, weights
from toy_ijepa.best import LOOKS, Best
from toy_ijepa.best import NAME as BEST
from toy_ijepa.data import EMBEDDED, ImageSet, load, photographs
from toy_ijepa.diagnostics import health
from toy_ijepa.encoder import Encoder
from toy_ijepa.environment import check_versions
from toy_ijepa.jepa import IJEPA
from toy_ijepa.masking import STRATEGIES, strategy
from toy_ijepa.patches import normalise
from toy_ijepa.recipe import METHODS, SIZES, STEPS, build, build_encoder, default_patch, lookup, save_model
from toy_ijepa.salt import fit
from toy_ijepa.training import History, NonFiniteLossError, TrainConfig
from toy_ijepa.verdict import BASELINES, reference_for, table, verdict

LABELS = 20_000  # of the probes: on CIFAR-10 all 50,000 would take longer than the training
LOOKED = 5000  # training pictures that are looked at for flat ones and copies
TRIAL_STEPS = 5, 20  # of a throw-away model, to warm up and to measure: how long will the run take on this machine?


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m toy_ijepa",
        description="Pre-train a toy I-JEPA on small images and probe it against pixels, a random encoder and an MAE.",
    )
    p.add_argument(
        "--data",
        default="auto",
        help="cifar10, cifar100, stl10, folder:PATH, shapes (embedded) or shapes:STD (under grain of that std); "
        f"default: cifar10 if it is here or can be fetched, else {EMBEDDED}",
    )
    length = p.add_mutually_exclusive_group()
    length.add_argument(
        "--steps",
        type=int,
        help="optimiser steps of each method and seed: the same run on any machine (default "
        f"{', '.join(f'{name} {steps}' for name, steps in STEPS.items())}: about the same CPU time)",
    )
    length.add_argument("--minutes", type=float, help="training time of each method and seed instead")
    p.add_argument("--seed", type=int, nargs="+", default=[0], help="one run of every method for each (default 0)")
    p.add_argument(
        "--method", nargs="+", default=["ijepa", "mae"], help=f"any of: {', '.join(METHODS)} (default ijepa mae)"
    )
    p.add_argument("--size", default="tiny", help=f"one of: {', '.join(SIZES)} (default %(default)s)")
    p.add_argument("--image-size", type=int, help="side in pixels to resize to (default: the set's own)")
    p.add_argument("--patch", type=int, help="patch side in pixels (default: 4 up to 48 px, 8 up to 112 px, then 16)")
    p.add_argument("--masks", default="multiblock", help=f"one of: {', '.join(STRATEGIES)} (default %(default)s)")
    p.add_argument("--batch", type=int, default=TrainConfig(steps=1).batch, help="images a step (default %(default)s)")
    p.add_argument("--lr", type=float, default=TrainConfig(steps=1).lr, help="peak learning rate (default %(default)s)")
    p.add_argument("--optimiser", default=TrainConfig(steps=1).optimiser, help="muon or adamw (default %(default)s)")
    p.add_argument("--precision", default="auto", help="auto, fp32 or bf16 (default %(default)s)")
    p.add_argument(
        "--labels", type=int, help=f"fit the probes on this many training images (default {LABELS}, or all if fewer)"
    )
    p.add_argument("--allow-skipped", action="store_true", help="go on although many files of a folder are broken")
    p.add_argument("--no-pixels", action="store_true", help="leave out the pixel baselines, slow on large sets")
    p.add_argument("--out", type=Path, help="folder to write to (default: a new one under runs/)")
    return p


def fresh_folder(out: Path | None, data: str) -> Path:
    """The folder to write to, made now so that a wrong one costs no training. Raises ValueError if it holds a run."""
    if out is None:
        stem = data.removeprefix("folder:").strip("/").replace("/", "-") or "folder"
        out = next(p for n in range(1, 10_000) if not (p := Path("runs") / f"{stem}-{n:03d}").exists())
    if any((out / name).exists() for name in ("metrics.json", "history.csv", "encoder.safetensors")):
        raise ValueError(f"{out} already holds a run; choose another --out (nothing was changed)")
    source = Path(data.removeprefix("folder:")).expanduser().resolve()
    if data.startswith("folder:") and out.resolve().is_relative_to(source):
        raise ValueError(f"--out {out} lies inside the pictures' folder; its figures would become pictures")
    out.mkdir(parents=True, exist_ok=True)
    return out


def all_scores(
    train_x: dict[str, Tensor], test_x: dict[str, Tensor], data: tuple[ImageSet, ImageSet], seed: int
) -> dict:
    """Both probes on each named set of features, and the linear one on few labels.

    {"knn": ..., "linear": ..., "linear_10each": ..., "linear_1pct": ..., "knn_last4": ..., ...}
    """
    found = {}
    for name in train_x:
        features = (train_x[name], data[0].labels, test_x[name], data[1].labels, seed)
        scores = probing.probe(*features)
        found |= {f"knn{name}": scores.knn, f"linear{name}": scores.linear}
        found |= {f"linear{name}_{few}": score for few, score in probing.few_labels(*features).items()}
    return found


def probe_encoder(encoder: Encoder, data: tuple[ImageSet, ImageSet], seed: int) -> dict[str, float]:
    """Scores of the last layer and of the last four, from one pass over the pictures."""
    last = min(4, len(encoder.blocks))
    deep = [probing.features(encoder, part.images, last) for part in data]
    narrow = [x[:, -encoder.width :] for x in deep]
    return all_scores({"": narrow[0], "_last4": deep[0]}, {"": narrow[1], "_last4": deep[1]}, data, seed)


def probe_pixels(data: tuple[ImageSet, ImageSet], seed: int) -> dict[str, dict[str, float]]:
    """Scores of raw pixels and of their principal components."""
    raw = [probing.pixel_features(part.images) for part in data]
    few = probing.pca(*raw, components=min(256, raw[0].shape[1], len(raw[0])))
    return {name: all_scores({"": x[0]}, {"": x[1]}, data, seed) for name, x in (("pixels", raw), ("pixels-pca", few))}


@dataclass
class Job:
    """What is fixed before training starts, and what has been found so far."""

    args: argparse.Namespace
    config: TrainConfig
    dial: dict[str, Any]  #  size, image_size, patch
    data: tuple[ImageSet, ImageSet]
    labelled: tuple[ImageSet, ImageSet] | None  #  what the probes use; None without classes
    out: Path
    begun: float = field(default_factory=time.perf_counter)
    scores: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    diagnostics: dict[str, list[dict]] = field(default_factory=dict)
    training: dict[str, list[dict]] = field(default_factory=dict)
    models: dict[str, nn.Module] = field(default_factory=dict)  #  of the first seed
    metrics: dict[str, Any] = field(default_factory=dict)  #  as last written
    histories: dict[str, History] = field(default_factory=dict)

    def probe(self, name: str, encoder: Encoder, seed: int) -> None:
        """Add an encoder's scores, if there are classes."""
        if self.labelled:
            self.scores.setdefault(name, []).append(probe_encoder(encoder, self.labelled, seed))

    def steps(self, method: str) -> int | None:
        """Optimiser steps of a method; None if the clock ends the run."""
        return self.args.steps or (STEPS[method] if self.args.minutes is None else None)

    def write_metrics(self) -> None:
        """Write all that is known so far to metrics.json."""
        order = [*BASELINES, *self.args.method]
        probes = {name: probing.summary(self.scores[name]) for name in order if name in self.scores}
        first = self.training[self.args.method[0]]
        settings = {k: v for k, v in asdict(self.config).items() if k not in ("seed", "steps")}
        settings["steps"] = {name: self.steps(name) for name in self.args.method}
        metrics = dict(
            command=shlex.join(["python", "-m", "toy_ijepa", *sys.argv[1:]]),
            data=self.args.data,
            pictures={
                "train": len(self.data[0]),
                "labelled": len(self.labelled[0]) if self.labelled else 0,
                "test": len(self.data[1]),
            },
            seconds=round(mean(t["seconds"] for t in first), 1),
            images_per_second=round(sum(t["images"] for t in first) / sum(t["seconds"] for t in first), 1),
            probes=probes,
            diagnostics=self.diagnostics,
            training=self.training,
            settings=dict(**self.dial, masks=self.args.masks, seeds=self.args.seed, **settings),
            machine=dict(threads=torch.get_num_threads(), processor=platform.machine(), torch=torch.__version__),
            job_seconds=round(time.perf_counter() - self.begun, 1),
        )
        self.metrics = plain(metrics)
        part = self.out / "metrics.json.part"
        part.write_text(json.dumps(self.metrics, indent=2, allow_nan=False) + "\n")
        part.replace(self.out / "metrics.json")

    def draw(self) -> None:
        """Write the figures: curves, t-SNE where there are classes and, for I-JEPA, masks and what it imagined."""
        seed, test = self.args.seed[0], self.data[1]
        plots.training_curves(self.histories).savefig(self.out / "curves.png", dpi=110)
        generator = torch.Generator().manual_seed(seed)
        some = torch.randperm(len(test), generator=generator)
        images, shelf_images = test.images[some[:6]], spread(self.data[0].images, 500)
        predicting = {name: model for name, model in self.models.items() if isinstance(model, IJEPA)}
        for name, model in predicting.items():
            drawn = model.sample(len(images), model.encoder.grid, generator=generator)
            if name == next(iter(predicting)):  # masks are alike for all of them
                plots.masks(images, drawn, model.encoder.grid).savefig(self.out / "masks.png", dpi=110)
            shelf = imagination.gallery(model, shelf_images)
            patches, _ = imagination.imagine(model, images, drawn, shelf)
            figure = plots.imagination(images, drawn, patches, model.encoder.patch)
            figure.savefig(self.out / f"imagination-{name}.png", dpi=110)
        few = some[:1000]
        if test.classes and len(few) >= 20:
            maps = {"pixels": probing.pixel_features(test.images[few])}
            maps |= {name: probing.features(model.probed, test.images[few]) for name, model in self.models.items()}
            plots.tsne(maps, test.labels[few], test.classes, seed).savefig(self.out / "tsne.png", dpi=110)


def spread(images: Tensor, count: int) -> Tensor:
    """At most `count` of the images, evenly spaced: folders are sorted by class."""
    return images[:: max(len(images) // count, 1)][:count]


def plain(value: Any) -> Any:
    """The same with None for what JSON cannot hold (nan, inf)."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_names(args: argparse.Namespace) -> None:
    """Raise ValueError for an unknown or repeated name, a seed or a patch out of range, before anything is loaded."""
    for method in args.method:
        lookup(METHODS, method, "method")
    lookup(SIZES, args.size, "size")
    strategy(args.masks)
    for what, values in (("--seed", args.seed), ("--method", args.method)):
        if len(set(values)) < len(values):
            raise ValueError(f"{what} {' '.join(map(str, values))} names one twice")
    if not all(0 <= seed < 2**32 for seed in args.seed):
        raise ValueError(f"--seed {' '.join(map(str, args.seed))} is not within 0 and 4294967295")
    if args.patch is not None and args.patch < 1:
        raise ValueError(f"--patch {args.patch} is not a positive number of pixels")


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Say what is being done, and how long it took: "reading cifar10 ... 3 s"."""
    begun, ended = time.perf_counter(), "stopped"
    print(f"{what} ...", end=" ", flush=True)
    try:
        yield
        ended = f"{time.perf_counter() - begun:.0f} s"
    finally:
        print(ended, flush=True)


def choose(name: str) -> str:
    """The pictures of this run: what was asked for, else photographs if they can be had; says which and why."""
    if name != "auto":
        return name
    found, why = photographs()
    print(f"pictures: {why}", flush=True)
    return found


def forecast(job: Job) -> None:
    """Train a throw-away model of each method for a few steps, and say how long the run will take on this machine."""
    minutes = {}
    for method in job.args.method:
        model = build(method, seed=0, masks=job.args.masks, **job.dial)
        for steps in TRIAL_STEPS:
            trial = replace(job.config, steps=steps, minutes=None)
            # One look at the features in twenty steps, about as in a whole run; one a step would more than double it.
            tried = fit(model, job.data[0].images[:2000], trial, progress=False, rows=1)
            if tried.ended == "interrupted":  # the loop keeps Ctrl-C to itself, but here there is nothing to keep
                raise KeyboardInterrupt
            rate = tried.images_per_second
        begun, best = time.perf_counter(), Best(model, job.data[0], job.config.precision)
        if best.by == "knn":
            best.score()
        looks = LOOKS * (time.perf_counter() - begun)
        batch = min(job.config.batch, len(job.data[0]))
        seconds = job.steps(method) * batch / rate + looks if job.steps(method) else 60 * job.args.minutes
        minutes[method] = seconds / 60
    total = len(job.args.seed) * sum(minutes.values())
    each = ", ".join(f"{name} {job.steps(name) or ''} steps {m:.1f}" for name, m in minutes.items())
    print(
        f"about {max(total, 0.1):.1f} minutes of training at this machine's present speed ({each} a seed), then probes"
    )


def forewarnings(job: Job) -> list[str]:
    """What is known before the first step: pictures with nothing to learn in them, or too few for the encoder."""
    train_set = job.data[0]
    some = torch.randperm(len(train_set), generator=torch.Generator().manual_seed(0))[:LOOKED]
    parameters = sum(p.numel() for p in build_encoder(seed=0, **job.dial).parameters())
    found = trouble.alike(*trouble.likeness(train_set.images[some]), trouble.NAMED)
    return [told for told in (found, trouble.starving(parameters, len(train_set))) if told]


def fitting(args: argparse.Namespace, side: int) -> dict[str, Any]:
    """The dial for pictures of `side` px, tried with one loss of each method.

    Raises ValueError if they are not a whole number of patches or the grid is too small for the masks.
    """
    dial = dict(size=args.size, image_size=side, patch=default_patch(side) if args.patch is None else args.patch)
    for method in args.method:
        model = build(method, seed=0, masks=args.masks, **dial)
        with torch.no_grad():
            model.step_loss(torch.zeros(2, 3, side, side), torch.Generator().manual_seed(0))
    return dial


def prepare(args: argparse.Namespace) -> Job:
    """Check everything that can be checked before training, then make the folder to write to."""
    check_names(args)
    asked = args.image_size or 0
    dial = fitting(args, asked) if asked > 0 else None  # before the pictures are read, which may take minutes
    dials = dict(batch=args.batch, lr=args.lr, optimiser=args.optimiser, precision=args.precision)
    steps = STEPS["ijepa"] if args.steps is None and args.minutes is None else args.steps
    config = TrainConfig(steps=steps, minutes=args.minutes, **dials)
    args.data = choose(args.data)
    with stage(f"reading {args.data}"):
        data = tuple(load(args.data, split, args.image_size, args.allow_skipped) for split in ("train", "test"))
    side = data[0].images.shape[-1]
    if data[0].images.shape[-2] != side or data[1].images.shape[1:] != data[0].images.shape[1:]:
        raise ValueError("training and test pictures differ in size or are not square; give --image-size")
    if len(data[0]) < 2 or len(data[1]) < 2:
        raise ValueError(f"{len(data[0])} training and {len(data[1])} test pictures are too few; at least 2 of each")
    dial = dial or fitting(args, side)
    labelled = probed_part(data, args.labels)
    return Job(args, config, dial, data, labelled, fresh_folder(args.out, args.data))


def train_one(job: Job, method: str, seed: int) -> bool:
    """Train, save and probe one method from one seed. False if it was interrupted (weights and history are saved)."""
    print(f"{method}, seed {seed}: {METHODS[method]}")
    first = (method, seed) == (job.args.method[0], job.args.seed[0])
    where = job.out if first else job.out / f"{method}-seed{seed}"
    where.mkdir(exist_ok=True)
    model = build(method, seed=seed, masks=job.args.masks, **job.dial)
    best = Best(model, job.data[0], job.config.precision)
    about = dict(method=method, data=job.args.data, seed=seed)

    def keep_best() -> None:
        if best.encoder:
            weights.save_encoder(best.encoder, where / BEST, about | dict(step=best.step))

    try:
        config = replace(job.config, seed=seed, steps=job.steps(method))
        history = fit(model, job.data[0].images, config, look=best)
    except NonFiniteLossError as error:
        error.history.save(where / "history.csv")
        keep_best()
        raise
    history.save(where / "history.csv")
    ended = about | dict(images=history.images, ended=history.ended)
    weights.save_encoder(model.probed, where / "encoder.safetensors", ended)
    save_model(model, where / "model.safetensors", method, job.dial, ended)
    keep_best()
    for told in best.close(history) + [f"warning: {fault}" for fault in trouble.faults(history.rows)]:
        print(told)
    keep_best()
    if history.ended == "interrupted":
        print(f"interrupted: the weights of this moment are kept in {where / 'encoder.safetensors'}")
        return False
    with torch.no_grad():
        found = health(model.probed(normalise(spread(job.data[1].images, 1000))))
    job.diagnostics.setdefault(method, []).append(asdict(found))
    timing = dict(seconds=history.seconds, cpu_seconds=history.cpu_seconds, images=history.images, steps=history.steps)
    job.training.setdefault(method, []).append(
        timing | {name: history.rows[-1][name] for name in ("loss", "mean_loss")}
    )
    with stage(f"probing {method}"):
        job.probe(method, model.probed, seed)
    if seed == job.args.seed[0]:
        job.models[method], job.histories[method] = model, history
    job.write_metrics()
    return True


def run(args: argparse.Namespace) -> int:
    """The main job; returns the exit code. Raises ValueError or OSError for what the caller can mend."""
    job = prepare(args)
    train_set, test_set = job.data
    side = job.dial["image_size"]
    print(f"{args.data}: {len(train_set)} training, {len(test_set)} test pictures of {side} px; writing to {job.out}")
    for told in forewarnings(job):
        print(f"warning: {told}")
    forecast(job)
    for seed in args.seed:
        for method in args.method:
            if not train_one(job, method, seed):
                return 130
        with stage("probing the random encoder"):
            job.probe("random", build_encoder(seed=seed, **job.dial), seed)
    if job.labelled and not args.no_pixels:
        with stage("probing pixels (--no-pixels leaves this out)"):
            job.scores |= {name: [scores] for name, scores in probe_pixels(job.labelled, args.seed[0]).items()}
    job.write_metrics()
    with stage("drawing"):
        job.draw()
    conclude(job)
    return 0


def conclude(job: Job) -> None:
    """Print the table, what it means, and where everything lies."""
    if probes := job.metrics["probes"]:
        print(f"\naccuracy in % on {len(job.data[1])} test pictures, frozen features\n{table(probes)}\n")
        for sentence in verdict(job.metrics, reference_for(job.args.data)):
            print(textwrap.fill(sentence, 100))
    else:
        print("no classes in this folder: nothing to probe")
    print(f"\npictures, curves, weights and metrics.json are in {job.out}")


def probed_part(data: tuple[ImageSet, ImageSet], labels: int | None) -> tuple[ImageSet, ImageSet] | None:
    """Pictures for the probes: `labels` training ones at random (default LABELS) and all for testing.

    None without two classes.
    """
    train_set, test_set = data
    if len(train_set.classes) < 2:
        return None
    labels = max(LABELS, 10 * len(train_set.classes)) if labels is None else labels
    if labels >= len(train_set):
        return data
    if labels < 10 * len(train_set.classes):
        raise ValueError(f"--labels {labels} is too few for {len(train_set.classes)} classes; at least 10 a class")
    some = torch.randperm(len(train_set), generator=torch.Generator().manual_seed(0))[:labels]
    return ImageSet(train_set.images[some], train_set.labels[some], train_set.classes), test_set


def main() -> int:
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"
    args = parser().parse_args()
    try:
        check_versions()
        return run(args)
    except NonFiniteLossError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 3
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what was finished before is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
