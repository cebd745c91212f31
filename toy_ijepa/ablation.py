"""What happens when one dial of the toy is turned: the ablations that a laptop can show, with the spread over seeds.

python -m toy_ijepa.ablation --data cifar10 --steps 400 --seed 0 1 2 --out assets/results/ablations.json
"""

# Shape legend:  B images  M target blocks  T patches of a block  D width

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toy_ijepa import probing
from toy_ijepa.data import ImageSet, load
from toy_ijepa.diagnostics import health
from toy_ijepa.jepa import IJEPA
from toy_ijepa.masking import STRATEGIES
from toy_ijepa.predictor import Predictor
from toy_ijepa.recipe import MOMENTUM, SIZES, build_encoder, lookup
from toy_ijepa.training import TrainConfig, train


class NoStop(IJEPA):
    """Without stop-gradient and without a second encoder: both sides of the loss learn."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.target = self.encoder

    def targets(self, images: Tensor, target_idx: Tensor) -> Tensor:
        x = F.layer_norm(self.target(images), (self.target.width,))  #         (B, N, D)
        index = target_idx.flatten(1)[..., None].expand(-1, -1, x.shape[-1])
        return x.gather(1, index).reshape(*target_idx.shape, -1)  #            (B, M, T, D)

    def after_step(self, progress: float) -> float:
        return 0.0


# name -> what differs from the default recipe, grouped as the chapters discuss them
VARIANTS: dict[str, dict] = {
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


def build(
    seed: int,
    *,
    kind: type[IJEPA] = IJEPA,
    masks: str = "multiblock",
    options: dict | None = None,
    momentum: tuple[float, float] = MOMENTUM,
    mode: str = "joint",
    **narrow: int,
) -> IJEPA:
    """The tiny I-JEPA for 32 px pictures with some dials turned; `narrow` holds fields of `recipe.Size`."""
    dial = replace(SIZES["tiny"], **narrow)
    encoder = build_encoder("tiny", 32, 4, seed)
    predictor = Predictor(
        encoder.grid, dial.width, dial.predictor_width, dial.predictor_depth, dial.predictor_heads, mode
    )
    model = kind(encoder, predictor, masks=masks, momentum=momentum)
    model.sample = partial(STRATEGIES[masks], **(options or {}))
    return model


def score(model: nn.Module, data: tuple[ImageSet, ImageSet], seed: int) -> dict[str, float]:
    """Both probes on the last layer, and the diagnostics, of a trained model."""
    x = [probing.features(model.probed, part.images) for part in data]
    found = probing.probe(x[0], data[0].labels, x[1], data[1].labels, seed)
    with torch.no_grad():
        state = health(model.probed(probing.normalise(data[1].images[:1000])))
    return dict(linear=found.linear, knn=found.knn, std=state.std, rank=state.rank, position=state.position)


def summary(rows: list[dict[str, float]]) -> dict:
    """Mean, sample standard deviation (None for one seed) and every value of each measurement."""
    names = rows[0].keys()
    return dict(
        mean={n: round(mean(r[n] for r in rows), 3) for n in names},
        spread={n: round(stdev(r[n] for r in rows), 3) if len(rows) > 1 else None for n in names},
        runs=[{n: round(r[n], 3) for n in names} for r in rows],
    )


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m toy_ijepa.ablation", description=__doc__.splitlines()[0])
    p.add_argument("--data", default="cifar10", help="a picture set of 32 px (default %(default)s)")
    p.add_argument("--steps", type=int, default=400, help="optimiser steps of each run (default %(default)s)")
    p.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2], help="runs of each variant (default 0 1 2)")
    p.add_argument("--only", nargs="+", default=list(VARIANTS), help="some of the variants, by name")
    p.add_argument("--labels", type=int, default=10_000, help="training pictures of the probes (default %(default)s)")
    p.add_argument("--out", type=Path, required=True, help="JSON file to write, after every variant")
    args = p.parse_args()
    try:
        chosen = {name: lookup(VARIANTS, name, "variant") for name in args.only}
        pictures, test = load(args.data, "train"), load(args.data, "test")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    some = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[: args.labels]
    data = ImageSet(pictures.images[some], pictures.labels[some], pictures.classes), test
    found = {"random encoder": summary([score(build(seed), data, seed) for seed in args.seed])}
    command = shlex.join(["python", "-m", "toy_ijepa.ablation", *sys.argv[1:]])
    for name, changed in chosen.items():
        rows = []
        for seed in args.seed:
            model = build(seed, **changed)
            train(model, pictures.images, TrainConfig(steps=args.steps, seed=seed), progress=False)
            rows.append(score(model, data, seed))
        found[name] = summary(rows)
        print(f"{name:32}" + "".join(f"{k} {v:7.2f}  " for k, v in found[name]["mean"].items()), flush=True)
        args.out.write_text(json.dumps(dict(command=command, data=args.data, variants=found), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
