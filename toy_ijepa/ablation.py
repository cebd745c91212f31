"""What happens when one dial of the toy is turned: the ablations that a laptop can show, with the spread over seeds.

python -m toy_ijepa.ablation --data cifar10 --steps 300 --seed 0 1 2 --jobs 2 --out assets/results/ablations.json
"""

# Shape legend:  B images  M target blocks  T patches of a block  D width

from __future__ import annotations

import argparse
import json
import shlex
import sys
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toy_ijepa import probing
from toy_ijepa.data import ImageSet, load
from toy_ijepa.diagnostics import health
from toy_ijepa.jepa import IJEPA
from toy_ijepa.masking import STRATEGIES
from toy_ijepa.patches import normalise
from toy_ijepa.predictor import Predictor
from toy_ijepa.recipe import MOMENTUM, SIZES, build_encoder, lookup
from toy_ijepa.salt import SALT, fit
from toy_ijepa.sigreg import SIGRegIJEPA
from toy_ijepa.targets import DeepIJEPA
from toy_ijepa.training import TrainConfig
from toy_ijepa.verdict import paired
from toy_ijepa.views import LeJEPA, SimCLR, TwoViews


class NoStop(IJEPA):
    """Without stop-gradient and without a second encoder: both sides of the loss learn."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.target = self.encoder

    def targets(self, images: Tensor, target_idx: Tensor) -> Tensor:
        return IJEPA.targets.__wrapped__(self, images, target_idx)  #  the same, without its torch.no_grad

    def after_step(self, progress: float) -> float:
        return 0.0


MEASURED = ("linear", "knn", "std", "rank", "position")
ONLINE = tuple(f"online_{name}" for name in MEASURED)  # the same of the encoder that the gradient trains
UNTRAINED = "random encoder"

# name -> what differs from the default recipe, grouped as the chapters discuss them
ABLATIONS: dict[str, dict] = {
    "default": {},
    "masks: complement": dict(masks="complement"),
    "masks: single block": dict(masks="single_block"),
    "masks: random patches": dict(masks="random"),
    "masks: released code": dict(masks="released", options=dict(min_context=4)),
    "targets: 1 of 15-20 %": dict(options=dict(targets=1)),
    "targets: 2 of 15-20 %": dict(options=dict(targets=2)),
    "targets: 4 of 5-10 %": dict(options=dict(target_scale=(0.05, 0.1))),
    "predictor: 1 deep": dict(predictor_depth=1),
    "predictor: 4 deep": dict(predictor_depth=4),
    "predictor: 32 wide": dict(predictor_width=32),
    "predictor: a block at a time": dict(mode="block"),
    "momentum: 0.996 to 1 (paper)": dict(momentum=(0.996, 1.0)),
    "momentum: 0": dict(momentum=(0.0, 0.0)),
    "momentum: 1": dict(momentum=(1.0, 1.0)),
    "no stop-gradient": dict(kind=NoStop),
}
# What came after I-JEPA (chapters 13 and 14); run only when asked for by name.
BEYOND: dict[str, dict] = {
    "targets: 2 depths": dict(kind=DeepIJEPA, given=dict(depths=2)),
    "targets: 4 depths": dict(kind=DeepIJEPA, given=dict(depths=4)),
    "norm: channel": dict(kind=DeepIJEPA, given=dict(depths=1, norm="channel")),
    "norm: tanh": dict(kind=DeepIJEPA, given=dict(depths=1, norm="tanh")),
    "norm: none": dict(kind=DeepIJEPA, given=dict(depths=1, norm="none")),
    "sigreg and momentum": dict(kind=SIGRegIJEPA, given=dict(ema=True)),
    "sigreg for momentum": dict(kind=SIGRegIJEPA, given=dict(ema=False)),
    "sigreg for momentum and stop-gradient": dict(kind=SIGRegIJEPA, given=dict(ema=False, stop=False)),
    # Dearer steps, fewer of them: about the CPU time of the default. Of SALT's, the teacher takes as many steps again.
    "salt": dict(kind=SALT, share=2 / 3),
    "simclr": dict(kind=SimCLR, share=2 / 3),
    "lejepa": dict(kind=LeJEPA, share=2 / 3),
}
VARIANTS = ABLATIONS | BEYOND


def build(
    seed: int,
    *,
    kind: type[nn.Module] = IJEPA,
    masks: str = "multiblock",
    options: dict | None = None,
    momentum: tuple[float, float] = MOMENTUM,
    mode: str = "joint",
    given: dict | None = None,
    share: float = 1.0,
    **narrow: int,
) -> nn.Module:
    """The tiny I-JEPA for 32 px pictures with some dials turned; `given` goes to `kind`, `narrow` to `recipe.Size`."""
    dial = replace(SIZES["tiny"], **narrow)
    encoder = build_encoder("tiny", 32, 4, seed)
    if issubclass(kind, TwoViews):
        return kind(encoder)
    predictor = Predictor(
        encoder.grid, dial.width, dial.predictor_width, dial.predictor_depth, dial.predictor_heads, mode
    )
    model = kind(encoder, predictor, masks=masks, momentum=momentum, **(given or {}))
    model.sample = partial(STRATEGIES[masks], **(options or {}))
    return model


def score(model: nn.Module, data: tuple[ImageSet, ImageSet], seed: int) -> dict[str, float]:
    """MEASURED of the encoder that is kept (the target), and ONLINE of the one that the gradient trains."""
    kept = measure(model.probed, data, seed)
    online = kept if model.encoder is model.probed else measure(model.encoder, data, seed)
    return dict(zip((*MEASURED, *ONLINE), (*kept, *online), strict=True))


def measure(encoder: nn.Module, data: tuple[ImageSet, ImageSet], seed: int) -> tuple[float, ...]:
    """Both probes (%) on the last layer, and the diagnostics, of one encoder."""
    x = [probing.features(encoder, part.images) for part in data]
    found = probing.probe(x[0], data[0].labels, x[1], data[1].labels, seed)
    with torch.no_grad():
        state = health(encoder(normalise(data[1].images[:1000])))
    return found.linear, found.knn, state.std, state.rank, state.position


# what a worker of the pool keeps between runs: training pictures, and the labelled ones of the probes
worker: dict[str, Any] = {}


def prepare(name: str, labels: int, threads: int) -> None:
    """Load the pictures of this process once and give it its share of the cores."""
    torch.set_num_threads(threads)
    pictures, test = load(name, "train"), load(name, "test")
    some = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:labels]
    labelled = ImageSet(pictures.images[some], pictures.labels[some], pictures.classes)
    worker.update(images=pictures.images, data=(labelled, test))


def run(name: str, seed: int, steps: int) -> dict[str, float]:
    """Scores of one variant trained from one seed, or of a random encoder for the name UNTRAINED."""
    dials = VARIANTS.get(name, {})
    model, spent = build(seed, **dials), 0.0
    if name != UNTRAINED:
        config = TrainConfig(steps=round(steps * dials.get("share", 1.0)), seed=seed)
        spent = fit(model, worker["images"], config, progress=False).cpu_seconds
    return score(model, worker["data"], seed) | dict(cpu_seconds=spent)


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m toy_ijepa.ablation", description=__doc__.splitlines()[0])
    p.add_argument("--data", default="cifar10", help="a picture set of 32 px (default %(default)s)")
    p.add_argument("--steps", type=int, default=400, help="optimiser steps of each run (default %(default)s)")
    p.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2], help="runs of each variant (default 0 1 2)")
    names = f"variants by name (default {', '.join(map(repr, ABLATIONS))}; others are {', '.join(map(repr, BEYOND))})"
    p.add_argument("--only", nargs="+", default=list(ABLATIONS), help=names.replace("%", "%%"))
    p.add_argument("--labels", type=int, default=10_000, help="training pictures of the probes (default %(default)s)")
    p.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default %(default)s)")
    p.add_argument("--out", type=Path, required=True, help="JSON file to write, after every variant")
    args = p.parse_args()
    threads = max(torch.get_num_threads() // args.jobs, 1)
    try:
        for name in args.only:
            lookup(VARIANTS, name, "variant")
        prepare(args.data, args.labels, threads)  # here too: bad input is said at once, and the cache is written once
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = shlex.join(["python", "-m", "toy_ijepa.ablation", *sys.argv[1:]])
    found, first = {}, args.only[0]
    with pool(args.jobs, (args.data, args.labels, threads)) as workers:
        runs = {
            name: [workers.submit(run, name, seed, args.steps) for seed in args.seed]
            for name in [UNTRAINED, *args.only]
        }
        for name, pending in runs.items():
            found[name] = probing.summary([r.result() for r in pending])
            line = "".join(f"{k} {found[name][k]:7.2f}  " for k in MEASURED)
            if first in found and name != first:
                line += f"over {first}: {', '.join(f'{k} {paired(found, name, first, k)}' for k in ('linear', 'knn'))}"
            print(f"{name:32}{line}", flush=True)
            args.out.write_text(json.dumps(dict(command=command, data=args.data, variants=found), indent=1) + "\n")
    return 0


def pool(jobs: int, prepared: tuple) -> Executor:
    """`jobs` processes, or a thread of this one, which is prepared already."""
    if jobs == 1:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(jobs, get_context("spawn"), initializer=prepare, initargs=prepared)


if __name__ == "__main__":
    sys.exit(main())
