"""The main job: pre-train, probe against baselines, draw what was imagined.

python -m toy_ijepa --data cifar10 --minutes 10 --seed 0 1 2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from toy_ijepa import imagination, plots, probing, weights
from toy_ijepa.data import ImageSet, load
from toy_ijepa.diagnostics import health
from toy_ijepa.encoder import Encoder
from toy_ijepa.jepa import IJEPA
from toy_ijepa.masking import STRATEGIES, strategy
from toy_ijepa.recipe import METHODS, SIZES, build, build_encoder, default_patch, lookup
from toy_ijepa.training import History, NonFiniteLossError, TrainConfig, train

DEFAULT_MINUTES = 3.0  # of each method and seed
BASELINES = {"pixels": "raw pixels", "pixels-pca": "pixels, 256 principal components", "random": "random encoder"}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m toy_ijepa",
        description="Pre-train a toy I-JEPA on small images and probe it against pixels, a random encoder and an MAE.",
    )
    p.add_argument(
        "--data", default="shapes", help="shapes (embedded, default), cifar10, cifar100, stl10 or folder:PATH"
    )
    length = p.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes", type=float, help=f"training time of each method and seed (default {DEFAULT_MINUTES:g})"
    )
    length.add_argument("--steps", type=int, help="optimiser steps instead: the same seed gives the same loss")
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
    p.add_argument("--labels", type=int, help="fit the probes on this many training images (default: all)")
    p.add_argument("--out", type=Path, help="folder to write to (default: a new one under runs/)")
    return p


def fresh_folder(out: Path | None, data: str) -> Path:
    """The folder to write to, made now so that a wrong one costs no training. Raises ValueError if it holds a run."""
    if out is None:
        stem = data.removeprefix("folder:").strip("/").replace("/", "-") or "folder"
        out = next(p for n in range(1, 10_000) if not (p := Path("runs") / f"{stem}-{n:03d}").exists())
    if (out / "metrics.json").exists():
        raise ValueError(f"{out} already holds a run; choose another --out (nothing was changed)")
    out.mkdir(parents=True, exist_ok=True)
    return out


def all_scores(
    train_x: dict[str, Tensor], test_x: dict[str, Tensor], data: tuple[ImageSet, ImageSet], seed: int
) -> dict:
    """Both probes on each named set of features: {"knn": ..., "linear": ..., "knn_last4": ..., ...}."""
    found = {}
    for name in train_x:
        scores = probing.probe(train_x[name], data[0].labels, test_x[name], data[1].labels, seed)
        found |= {f"knn{name}": scores.knn, f"linear{name}": scores.linear}
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


def summary(runs: list[dict[str, float]]) -> dict:
    """Mean of each score over seeds, its spread (sample standard deviation, None for one seed), and every value."""
    names = runs[0].keys()
    means = {n: round(mean(r[n] for r in runs), 2) for n in names}
    spread = {n: round(stdev(r[n] for r in runs), 2) if len(runs) > 1 else None for n in names}
    return {**means, "spread": spread, "runs": [{n: round(r[n], 2) for n in names} for r in runs]}


def table(probes: dict[str, dict]) -> str:
    """The probes as a text table: accuracy in %, and the spread over seeds where there are several."""
    lines = [f"{'':34}{'linear':>14}{'last 4 layers':>16}{'kNN':>14}"]
    for name, scores in probes.items():
        cells = []
        for column, width in (("linear", 14), ("linear_last4", 16), ("knn", 14)):
            spread = scores["spread"].get(column)
            text = f"{scores[column]:.1f}" if column in scores else "-"
            cells.append(f"{text + (f' +- {spread:.1f}' if spread is not None else ''):>{width}}")
        lines.append(f"{BASELINES.get(name, name):34}{''.join(cells)}")
    return "\n".join(lines)


def draw(out: Path, data: ImageSet, models: dict[str, nn.Module], histories: dict[str, History], seed: int) -> None:
    """Write the figures: masks, curves, t-SNE and, for I-JEPA, what it imagined."""
    plots.training_curves(histories).savefig(out / "curves.png", dpi=110)
    generator = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(data), generator=generator)
    for name, model in models.items():
        if not isinstance(model, IJEPA):
            continue
        grid, images = model.encoder.grid, data.images[some[:6]]
        drawn = strategy("multiblock")(len(images), grid, generator=generator)
        plots.masks(images, drawn, grid).savefig(out / "masks.png", dpi=110)
        shelf = imagination.gallery(model, data.images[some[6:506]])
        patches, _ = imagination.imagine(model, images, drawn, shelf)
        plots.imagination(images, drawn, patches, model.encoder.patch).savefig(out / f"imagination-{name}.png", dpi=110)
    if data.classes:
        few = some[:1000]
        maps = {"pixels": probing.pixel_features(data.images[few])}
        maps |= {name: probing.features(model.probed, data.images[few]) for name, model in models.items()}
        plots.tsne(maps, data.labels[few], data.classes, seed).savefig(out / "tsne.png", dpi=110)


def run(args: argparse.Namespace) -> int:
    """The main job; returns the exit code. Raises ValueError or OSError for what the caller can mend."""
    begun = time.perf_counter()
    minutes = DEFAULT_MINUTES if args.minutes is None and args.steps is None else args.minutes
    dials = dict(batch=args.batch, lr=args.lr, optimiser=args.optimiser, precision=args.precision)
    config = TrainConfig(steps=args.steps, minutes=minutes, **dials)
    for method in args.method:
        lookup(METHODS, method, "method")
    lookup(SIZES, args.size, "size")
    strategy(args.masks)
    data = load(args.data, "train", args.image_size), load(args.data, "test", args.image_size)
    side = data[0].images.shape[-1]
    if data[0].images.shape[-2] != side or data[1].images.shape[1:] != data[0].images.shape[1:]:
        raise ValueError("training and test pictures differ in size or are not square; give --image-size")
    patch = args.patch or default_patch(side)
    dial = dict(size=args.size, image_size=side, patch=patch)
    for method in args.method:  # one draw of the masks before any training: too small a grid is said now
        if isinstance(model := build(method, seed=0, masks=args.masks, **dial), IJEPA):
            model.sample(config.batch, model.encoder.grid, generator=torch.Generator().manual_seed(0))
    labelled = probed_part(data, args.labels)
    out = fresh_folder(args.out, args.data)
    print(f"{args.data}: {len(data[0])} training and {len(data[1])} test pictures of {side} px; writing to {out}")

    models: dict[str, nn.Module] = {}
    histories: dict[str, History] = {}
    training: dict[str, list[dict]] = {method: [] for method in args.method}
    scores: dict[str, list[dict[str, float]]] = {}
    diagnostics: dict[str, list[dict]] = {}
    for seed in args.seed:
        if labelled:
            scores.setdefault("random", []).append(probe_encoder(build_encoder(seed=seed, **dial), labelled, seed))
        for method in args.method:
            print(f"{method}, seed {seed}: {METHODS[method]}")
            model = build(method, seed=seed, masks=args.masks, **dial)
            where = out if (method, seed) == (args.method[0], args.seed[0]) else out / f"{method}-seed{seed}"
            where.mkdir(exist_ok=True)
            history = train(model, data[0].images, TrainConfig(**{**asdict(config), "seed": seed}))
            history.save(where / "history.csv")
            about = dict(method=method, data=args.data, seed=seed, images=history.images, ended=history.ended)
            weights.save_encoder(model.probed, where / "encoder.safetensors", about)
            if history.ended == "interrupted":
                print(f"interrupted: the weights of this moment are kept in {where / 'encoder.safetensors'}")
                return 130
            with torch.no_grad():
                found = asdict(health(model.probed(probing.normalise(data[1].images[:1000]))))
            diagnostics.setdefault(method, []).append(found)
            timing = dict(seconds=history.seconds, cpu_seconds=history.cpu_seconds, images=history.images)
            training[method].append(timing | dict(steps=history.images // config.batch, loss=history.rows[-1]["loss"]))
            if labelled:
                scores.setdefault(method, []).append(probe_encoder(model.probed, labelled, seed))
            if seed == args.seed[0]:
                models[method], histories[method] = model, history
    probes = {}
    if labelled:
        pixels = probe_pixels(labelled, args.seed[0])
        probes = {name: summary([value]) for name, value in pixels.items()}
        probes |= {name: summary(values) for name, values in scores.items()}
    first = training[args.method[0]]
    metrics = dict(
        command=shlex.join(["python", "-m", "toy_ijepa", *sys.argv[1:]]),
        data=args.data,
        seconds=round(mean(t["seconds"] for t in first), 1),
        images_per_second=round(sum(t["images"] for t in first) / sum(t["seconds"] for t in first), 1),
        probes=probes,
        diagnostics=diagnostics,
        training=training,
        settings=dict(
            **dial, masks=args.masks, seeds=args.seed, **{k: v for k, v in asdict(config).items() if k != "seed"}
        ),
        machine=dict(threads=torch.get_num_threads(), processor=platform.machine(), torch=torch.__version__),
        job_seconds=round(time.perf_counter() - begun, 1),
    )
    write_text(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    if probes:
        print(f"\naccuracy in % on {len(labelled[1])} test pictures, frozen features\n{table(probes)}")
    else:
        print("no classes in this folder: nothing to probe")
    draw(out, data[1], models, histories, args.seed[0])
    print(f"\npictures, curves, weights and metrics.json are in {out}")
    return 0


def probed_part(data: tuple[ImageSet, ImageSet], labels: int | None) -> tuple[ImageSet, ImageSet] | None:
    """Training and test pictures for the probes: `labels` training pictures at random; None without two classes."""
    train_set, test_set = data
    if len(train_set.classes) < 2:
        return None
    if labels is None or labels >= len(train_set):
        return data
    if labels < 10 * len(train_set.classes):
        raise ValueError(f"--labels {labels} is too few for {len(train_set.classes)} classes; at least 10 a class")
    some = torch.randperm(len(train_set), generator=torch.Generator().manual_seed(0))[:labels]
    return ImageSet(train_set.images[some], train_set.labels[some], train_set.classes), test_set


def write_text(path: Path, text: str) -> None:
    """Write a file in one piece or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def main() -> int:
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"
    args = parser().parse_args()
    try:
        return run(args)
    except NonFiniteLossError as error:
        tqdm.write(f"stopped: {error}", file=sys.stderr)
        return 3
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
