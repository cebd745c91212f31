"""Ten minutes, two cores: a row of the leaderboard, for a method of the course or for yours.

python -m toy_ijepa.leaderboard ijepa --steps 6000
python -m toy_ijepa.leaderboard my_method.py --held-out --seed 0
python -m toy_ijepa.leaderboard my_method.py --name "my method" --by "my name"

Your file has a function `build(seed)` that returns the model (a `toy_ijepa.training.Method`) for 32 px pictures, and a
dictionary CONFIG with `steps` and any other field of `TrainConfig` whose default does not suit it (batch, lr ...).
Choose them with --held-out, which never opens the test pictures.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import shlex
import sys
import time
import warnings
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from toy_ijepa import probing, recipe
from toy_ijepa.__main__ import probe_encoder
from toy_ijepa.data import ImageSet, load
from toy_ijepa.salt import fit
from toy_ijepa.training import NonFiniteLossError, TrainConfig, train, uses_bf16
from toy_ijepa.verdict import RESULTS

BUDGET = 1200  # CPU seconds of a training: ten minutes of two cores
TABLE = RESULTS / "LEADERBOARD.md"
RULES = f"""# Ten minutes, two cores

What can be learned from CIFAR-10's 50,000 training pictures, without their labels, in ten minutes of two CPU cores?

Rules. `python -m toy_ijepa.leaderboard` counts the seconds and judges alike for all; that nothing else was learned
from, and how settings were chosen, it takes on trust.

1. **Data**: CIFAR-10's training pictures, 32 px, and nothing else. No labels, no weights from elsewhere.
2. **Cost**: at most {BUDGET:,} CPU seconds a training, all threads together; what trains a teacher counts, and what
   `build` does. Processors differ, so the table also says how long one step of the plain I-JEPA took there.
3. **Settings** are chosen on a part of the training pictures (`--held-out`). The test pictures are looked at once,
   at the end.
4. **Judged** frozen, average-pooled features of one encoder, fitted on all 50,000 labels and tested on the 10,000
   test pictures: logistic regression on the last layer and on the last four, and 20 nearest neighbours. Beside them,
   logistic regression on the last layer with few labels: 1 % of them, and ten a class (- where this was not measured).
5. **Three seeds** (0, 1, 2): the mean and the spread (sample standard deviation).

"""
COLUMNS = {
    "linear": "linear",
    "linear_last4": "last 4 layers",
    "knn": "kNN",
    "linear_1pct": "1 % of labels",
    "linear_10each": "10 a class",
}
HELD = 10  # one in so many training pictures is held out, where settings are chosen


def own(path: Path) -> tuple[Any, dict]:
    """`build` and CONFIG of a reader's file. Raises ValueError if there is no such file or function."""
    if not path.is_file():
        raise ValueError(f"no file {path}, and no method of that name: choose from {', '.join(recipe.METHODS)}")
    spec = importlib.util.spec_from_file_location("own_method", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "build", None)):
        raise ValueError(f"{path} has no function build(seed) that returns a model")
    return module.build, getattr(module, "CONFIG", {})


def row(build: Any, config: TrainConfig, seeds: list[int], data: tuple[ImageSet, ImageSet]) -> dict:
    """Train and judge one method from each seed: scores, costs, size. Stops after a seed that is over the budget."""
    scores, training, parameters = [], [], 0
    for seed in seeds:
        begun = time.process_time()
        model: nn.Module = build(seed)
        built = time.process_time() - begun
        history = fit(model, data[0].images, replace(config, seed=seed))
        if history.ended == "interrupted":
            raise KeyboardInterrupt
        spent = round(history.cpu_seconds + built, 1)
        parameters = sum(p.numel() for p in model.probed.parameters())
        training.append(dict(steps=history.steps, cpu_seconds=spent))
        scores.append(probe_encoder(model.probed, data, seed))
        print(f"seed {seed}: {json.dumps(scores[-1])}, {spent:.0f} CPU seconds", flush=True)
        if spent > BUDGET:
            break
    return dict(probes=probing.summary(scores), training=training, parameters=parameters)


def plain_step(data: tuple[ImageSet, ImageSet], steps: int = 30) -> float:
    """CPU milliseconds of a training step of the plain I-JEPA on this machine, now, one look at features in all."""
    model = recipe.build("ijepa", "tiny", data[0].images.shape[-1], recipe.default_patch(32), seed=0)
    for count in (5, steps):
        history = train(model, data[0].images[:2000], TrainConfig(steps=count), progress=False, rows=1)
    return 1000 * history.cpu_seconds / history.steps


def held_out(pictures: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Training pictures in two, always the same: nine in ten to learn from, one in ten to choose settings by."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    some, rest = order[: len(order) // HELD], order[len(order) // HELD :]
    return tuple(ImageSet(pictures.images[i], pictures.labels[i], pictures.classes) for i in (rest, some))


def machine() -> dict:
    """What the times depend on."""
    bf16 = uses_bf16(torch.device("cpu"))
    return dict(processor=platform.machine(), bf16=bf16, threads=torch.get_num_threads(), torch=torch.__version__)


def line(entry: dict) -> str:
    """One entry as a row of the table."""
    probes = entry["probes"]
    cells = [f"{probes[c]:.1f} ± {probes['spread'][c] or 0:.1f}" if c in probes else "-" for c in COLUMNS]
    cost = mean(run["cpu_seconds"] for run in entry["training"])
    kind = {True: "bf16", False: "fp32", None: "precision not recorded"}[entry["machine"]["bf16"]]
    threads = entry["machine"]["threads"]
    step = f"{entry['plain_step_ms']:.0f} ms ({kind}, {threads} thread{'s' * (threads > 1)})"
    size = f"{entry['parameters'] / 1e6:.2f} M"
    steps = f"{entry['training'][0]['steps']:,}"
    return f"| {' | '.join([entry['name'], *cells, size, steps, f'{cost:.0f} s', step, entry['by']])} |"


def table(entries: list[dict]) -> str:
    """LEADERBOARD.md: the rules, a row for each entry, best linear probe first, and the commands."""
    entries = sorted(entries, key=lambda entry: -entry["probes"]["linear"])
    titles = ["", *COLUMNS.values(), "encoder", "steps", "CPU time", "a plain I-JEPA step there", "by"]
    rows = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}", *map(line, entries)]
    told = [f"- {entry['name']}: `{entry['command']}`" for entry in entries]
    add = "Your row: a file with `build(seed)` and `CONFIG = dict(steps=...)`; run the command on it, send its JSON."
    return RULES + "\n".join(rows) + "\n\nHow each was made:\n\n" + "\n".join(told) + f"\n\n{add}\n"


def stored() -> list[dict]:
    """The entries kept with the course."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("leaderboard-*.json"))]


def main() -> int:
    p = argparse.ArgumentParser(
        prog="python -m toy_ijepa.leaderboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("method", nargs="?", help="one of the course's methods, or a file of yours")
    p.add_argument("--size", choices=recipe.SIZES, help="of the course's methods (default tiny)")
    p.add_argument("--name", help="what the row is called (default: the method)")
    p.add_argument("--by", default="a reader", help="who made it (default %(default)s)")
    p.add_argument(
        "--steps", type=int, help="optimiser steps (default: CONFIG's; for the course's methods those of the first run)"
    )
    p.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2, which the rules ask for")
    p.add_argument("--held-out", action="store_true", help="choose settings: judge on held-out training pictures")
    p.add_argument("--data", default="cifar10", help="the rules ask for %(default)s; others to try things out")
    p.add_argument(
        "--out", type=Path, help="JSON to write (default: leaderboard-NAME.json here, or held-out-NAME.json)"
    )
    p.add_argument("--table", action="store_true", help="write LEADERBOARD.md from the entries kept with the course")
    args = p.parse_args()
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"warning: {message}\n"
    try:
        if args.table:
            TABLE.write_text(table(stored()))
            return 0
        if args.method is None:
            p.error("name a method or a file")
        return run(args)
    except (ValueError, OSError, NonFiniteLossError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing is written", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    """Train, judge, write the JSON and print the row; returns the exit code."""
    name = args.name or Path(args.method).stem
    out = args.out or Path(f"{'held-out' if args.held_out else 'leaderboard'}-{name.replace(' ', '-')}.json")
    over = out.with_name(f"over-budget-{out.name}")
    for path in (out, over):
        if path.exists():
            raise ValueError(f"{path} exists; choose another --out")
    if args.method in recipe.METHODS:
        build, given = partial(built, args.method, args.size or "tiny"), dict(steps=recipe.STEPS[args.method])
    else:
        build, given = own(Path(args.method))
        if args.size:
            raise ValueError(f"--size is for the course's methods; the size of yours is in {args.method}")
    if strange := set(given) - {field.name for field in fields(TrainConfig)}:
        raise ValueError(f"CONFIG has no use for {', '.join(sorted(strange))}: its names are those of TrainConfig")
    config = TrainConfig(**{**given, **({"steps": args.steps} if args.steps else {})})
    data = held_out(load(args.data, "train")) if args.held_out else (load(args.data, "train"), load(args.data, "test"))
    entry = dict(
        name=name,
        by=args.by,
        command=shlex.join(["python", "-m", "toy_ijepa.leaderboard", *sys.argv[1:]]),
        data=f"{args.data}, training pictures held out" if args.held_out else args.data,
        plain_step_ms=round(plain_step(data), 1),
        machine=machine(),
        settings={k: v for k, v in asdict(config).items() if k != "seed"},
        **row(build, config, args.seed, data),
    )
    spent = max(run["cpu_seconds"] for run in entry["training"])
    if spent > BUDGET:
        out = over  # no row, and nothing is lost
    out.write_text(json.dumps(entry, indent=1) + "\n")
    print(f"{line(entry)}\nwritten to {out}")
    if spent > BUDGET:
        raise ValueError(f"{spent:.0f} CPU seconds are over the budget of {BUDGET}: take fewer steps; this is no row")
    return 0


def built(method: str, size: str, seed: int) -> nn.Module:
    """A method of the course for 32 px."""
    return recipe.build(method, size, 32, recipe.default_patch(32), seed)


if __name__ == "__main__":
    sys.exit(main())
