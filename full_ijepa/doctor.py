"""What is wrong with a run, by name, and what to try: reads the history, the recipe and the features.

A falling loss tells nothing, so nothing here looks at whether it falls. Every finding names the numbers it rests on.
"""

# Shape legend:  S pictures  N tokens  D width

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from full_ijepa.checkpoint import CheckpointError
from full_ijepa.data import probe_set
from full_ijepa.evaluate.run import fresh, load_run
from full_ijepa.metrics import knn_score
from full_ijepa.recipes.base import Recipe
from full_ijepa.train import read_rows
from toy_ijepa.diagnostics import LOW_RANK, LOW_STD, Health, health
from toy_ijepa.probing import features

LEFT = 0.1  # share of the target's random start that may be left at the end
PLAIN = 0.8  # share of position above which features mostly say where a patch is
GAIN = 1.0  # points of kNN above a random encoder, below which nothing was learned
IDLE = 0.01  # share of the peak rate below which nothing moves; a cosine is there for a sixteenth of its length
REFERENCE = 1e-3, 2048  # AdamW's rate and batch in the released configs; small batches want less


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (or "fine"), the numbers behind it, and what to try."""

    name: str
    seen: str
    advice: str


@dataclass(frozen=True)
class Chart:
    """All that the doctor looks at. `scores` are kNN of the trained and of a random encoder, in %."""

    recipe: Recipe
    rows: list[dict[str, float]]
    features: Health | None = None
    scores: tuple[float, float] | None = None
    finished: bool = False

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]


def collapse(c: Chart) -> Iterator[Finding]:
    """All pictures have the same features."""
    std = c.features.std if c.features else c.rows[-1]["std"]
    if std < LOW_STD:
        yield Finding(
            "collapse",
            f"std of pooled features {std:.3f}, below {LOW_STD}",
            "raise the momentum, lower lr, or add regulariser 0.1 0.005; no gradient may reach the target encoder",
        )


def rank(c: Chart) -> Iterator[Finding]:
    """Features differ, but along few directions, or fewer and fewer."""
    ranks = c.column("rank")
    last = c.features.rank if c.features else ranks[-1]
    if last < LOW_RANK:
        yield Finding(
            "low rank",
            f"effective rank {last:.1f}, below {LOW_RANK:g} (a random encoder has about 3)",
            "raise the momentum, lower lr, or add regulariser 0.1 0.005",
        )
    elif len(ranks) > 4 and ranks[-1] < 0.5 * max(ranks):
        yield Finding(
            "falling rank",
            f"effective rank {ranks[-1]:.1f} after a best of {max(ranks):.1f}",
            "stop where it was best; lower lr or weight decay; add regulariser 0.1 0.005",
        )


def position(c: Chart) -> Iterator[Finding]:
    """Tokens say where they are and little about the picture."""
    share = c.features.position if c.features else c.rows[-1]["position"]
    if share > PLAIN:
        yield Finding(
            "position-dominated features",
            f"place explains {share:.0%} of the variance of tokens",
            "larger or more targets; a deeper predictor; a longer run; look at the initial std of weights",
        )


def schedule(c: Chart) -> Iterator[Finding]:
    """The rate never reached its peak, or came down at the wrong time: steps and batches confused."""
    rates = c.column("lr")
    warm = c.finished or c.rows[-1]["epoch"] > 1.1 * c.recipe.warmup_epochs
    if warm and max(rates) < 0.9 * c.recipe.lr:
        yield Finding(
            "schedule never reaches its peak",
            f"highest rate {max(rates):.2g} of {c.recipe.lr:.2g}",
            "a shorter warm-up (warmup_epochs); or the schedule counts optimiser steps while its length is in batches",
        )
    if c.finished and len(rates) > 4 and rates[-1] > 0.5 * max(rates):
        yield Finding(
            "schedule never comes down",
            f"last rate {rates[-1]:.2g} of a peak of {max(rates):.2g}",
            "the run is shorter than its schedule: count optimiser steps in both",
        )
    idle = sum(rate < IDLE * max(rates) for rate in rates[len(rates) // 10 :])
    if idle > 0.3 * len(rates):
        yield Finding(
            "schedule is over early",
            f"{idle} of {len(rates)} rows of history have a rate below a hundredth of the peak",
            "the schedule advances once a batch instead of once an optimiser step",
        )


def momentum(c: Chart) -> Iterator[Finding]:
    """The target encoder is still mostly its random start."""
    if c.recipe.method != "ijepa" or not c.finished:
        return
    left, before = 1.0, 0
    for row in c.rows:
        left *= row["momentum"] ** (row["step"] - before)
        before = row["step"]
    if left > LEFT:
        yield Finding(
            "momentum too high for the run length",
            f"after {before} steps {left:.0%} of the target's random start is left (momentum {c.recipe.momentum[0]})",
            f"a momentum of at most {max(1 - 50 / before, 0):.3f} at the start, or a longer run",
        )


def rate(c: Chart) -> Iterator[Finding]:
    """Steps too large for their batch: the loss jumps, or every gradient is cut."""
    losses, norms = c.column("loss"), c.column("gradient_norm")
    jumps = [i for i in range(5, len(losses)) if losses[i] > 2 * median(losses[i - 5 : i])]
    cut = sum(n > c.recipe.clip for n in norms[len(norms) // 10 :]) if c.recipe.clip else 0
    allowed = REFERENCE[0] * (c.recipe.batch / REFERENCE[1]) ** 0.5
    if jumps or cut > 0.5 * len(norms):
        seen = (
            f"the loss doubled at step {c.rows[jumps[0]]['step']}"
            if jumps
            else f"{cut} of {len(norms)} gradients were cut"
        )
        yield Finding(
            "learning rate too high for the batch",
            f"{seen}; lr {c.recipe.lr:.2g} at batch {c.recipe.batch}",
            f"lr around {allowed:.1g} (the released 1e-3 at batch 2048, scaled by the root), or a longer warm-up",
        )


def nothing(c: Chart) -> Iterator[Finding]:
    """A probe that cannot tell the trained encoder from a random one."""
    if c.scores and c.scores[0] < c.scores[1] + GAIN:
        yield Finding(
            "no better than random",
            f"kNN {c.scores[0]:.1f} %, a random encoder {c.scores[1]:.1f} %",
            "see the other findings first; then train longer: short runs of I-JEPA look like this before they learn",
        )


def pictures(c: Chart) -> Iterator[Finding]:
    """Many files could not be read."""
    skipped = c.column("skipped")
    if skipped and skipped[-1] > 0:
        yield Finding(
            "unreadable pictures", f"{skipped[-1]:.0f} files were skipped", "the warnings of the run name them"
        )


CHECKS: tuple[Callable[[Chart], Iterator[Finding]], ...] = (
    collapse,
    rank,
    position,
    schedule,
    momentum,
    rate,
    nothing,
    pictures,
)


def examine(chart: Chart) -> list[Finding]:
    """Everything that is wrong with a run. Raises ValueError for a history without rows."""
    if not chart.rows:
        raise ValueError("the history has no rows: nothing to examine")
    return [finding for check in CHECKS for finding in check(chart)]


def chart_of(out: Path) -> Chart:
    """A run's history and recipe, its features' health, and kNN of its encoder beside a random one.

    A run without a whole checkpoint is judged by its history alone. Raises ValueError if there is no history.
    """
    try:
        rows = read_rows(out / "history.jsonl")
        said = json.loads((out / "recipe.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{out} holds no run ({error}); give the --out of a pretrain") from error
    recipe = Recipe.read(said)
    try:
        _, method, step = load_run(out)
    except CheckpointError:
        return Chart(recipe, rows)
    epoch = rows[-1]["epoch"] / rows[-1]["step"] if rows else 0.0  # of a step
    finished = recipe.epochs - step * epoch < epoch
    found = probe_set(recipe, 2000)
    if found is None:
        return Chart(recipe, rows, finished=finished)
    bank, bank_labels, queries, labels = found
    with torch.no_grad():
        state = health(method.probed(recipe.pixels.normalise(queries[:256])))
    scores = []
    for encoder in (method.probed, fresh(recipe, 0)):
        x = [features(encoder, recipe.pixels.scaled(images), batch=100) for images in (bank, queries)]
        scores.append(knn_score(x[0], bank_labels, x[1], labels))
    return Chart(recipe, rows, state, (scores[0], scores[1]), finished)


def report(chart: Chart) -> str:
    """Findings as text; what was looked at where nothing is wrong."""
    found, last = examine(chart), chart.rows[-1]
    state = chart.features or Health(last["std"], last["rank"], last["position"])
    seen = f"std {state.std:.2f}, effective rank {state.rank:.1f}, share of position {state.position:.0%}"
    if chart.scores:
        seen += f", kNN {chart.scores[0]:.1f} % (random encoder {chart.scores[1]:.1f} %)"
    lines = [f"{chart.recipe.method} on {chart.recipe.data}, step {last['step']:.0f}: {seen}"]
    for finding in found:
        lines += ["", f"! {finding.name}", f"  seen  {finding.seen}", f"  try   {finding.advice}"]
    return "\n".join(lines if found else [*lines, "", "nothing wrong was found"])
