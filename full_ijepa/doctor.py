"""What is wrong with a run, by name, and what to try: reads the history, the recipe and the features.

A falling loss tells nothing, so nothing here looks at whether it falls. Every finding names the numbers it rests on.
"""

# Shape legend:  S pictures  N tokens  D width

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, mode

import torch

from full_ijepa import machine
from full_ijepa.balance import LEFT, momentum_for, rate_for, width_of, workers_advice
from full_ijepa.checkpoint import Best, CheckpointError
from full_ijepa.data import probe_set
from full_ijepa.evaluate.features import matmul
from full_ijepa.evaluate.run import fresh, load_run
from full_ijepa.journal import read_machines, read_rows
from full_ijepa.metrics import knn_score
from full_ijepa.recipes.base import Recipe
from full_ijepa.train import precision_of
from toy_ijepa.diagnostics import LOW_RANK, LOW_STD, Health, health
from toy_ijepa.probing import features
from toy_ijepa.trouble import STILL, alike, best_before, fallen, no_better, still

PLAIN = 0.8  # share of position above which features mostly say where a patch is
GAIN = 1.0  # points of kNN above a random encoder, below which nothing was learned
AFTER = 0.15  # share of the schedule behind its peak in which a cosine still has nine tenths of it
IDLE = 0.01  # share of the peak rate below which nothing moves; a cosine is there for a sixteenth of its length
STARVED = 0.25  # share of the time that steps may wait for pictures
LATE = 1.2  # times the mean that a process may take for its own work
BEST = "evaluate, export and report take it with --checkpoint best"


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
    checkpoint: str = ""  # which one, and its step, where it is not the last
    machines: list[dict[str, str | float]] = field(default_factory=list)  # what the run was computed on

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]


def collapse(c: Chart) -> Iterator[Finding]:
    """All pictures have the same features."""
    std = c.features.std if c.features else c.column("std")[-1]
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
            because_of_pictures(c) or "raise the momentum, lower lr, or add regulariser 0.1 0.005",
        )
    elif (best := best_before(ranks)) is not None:
        step = [row["step"] for row in c.rows if "rank" in row][best]
        yield Finding(
            "falling rank",
            f"effective rank {ranks[-1]:.1f} after a best of {max(ranks):.1f} at step {step:.0f}",
            f"stop where it was best ({BEST}); lower lr or weight decay; add regulariser 0.1 0.005",
        )


def falling(c: Chart) -> Iterator[Finding]:
    """The held-out probe was better before, by more than its doubt, in the last two looks."""
    looks = [row for row in c.rows if "knn" in row]
    where = fallen([row["knn"] for row in looks], [row["knn_doubt"] for row in looks])
    if where is not None:
        best = looks[where]
        yield Finding(
            f"falling since step {best['step']:.0f}",
            f"kNN {looks[-1]['knn']:.1f} % at step {looks[-1]['step']:.0f}, {best['knn']:.1f} % at step "
            f"{best['step']:.0f}: more than the doubt of {looks[-1]['knn_doubt']:.1f} points",
            f"the best checkpoint is kept ({BEST}); a shorter run, a lower lr, or regulariser 0.1 0.005",
        )


def constant(c: Chart) -> Iterator[Finding]:
    """The loss does not move at all: nothing is trained, or there is nothing left to learn."""
    losses = c.column("loss")
    if still(losses):
        yield Finding(
            "constant loss",
            f"{losses[-1]:.6f} in each of the last {len(losses) - len(losses) // 2} rows of history, to within "
            f"{STILL:.0e} of it",
            "see whether pictures differ and whether the rate is above 0; a loss always moves with its masks",
        )


def mean_predictor(c: Chart) -> Iterator[Finding]:
    """The loss is that of answering with each place's mean, whatever the picture shows."""
    rows = [row for row in c.rows if "mean_loss" in row and row["epoch"] > 2 * c.recipe.warmup_epochs]
    late = rows[-max(len(c.column("mean_loss")) // 4, 1) :]
    losses, means = ([row[name] for row in late] for name in ("loss", "mean_loss"))
    if no_better(losses, means) and not any(c.recipe.regulariser):  # whose terms are in the loss
        yield Finding(
            "no better than the mean",
            f"loss {median(losses):.4f} over the last {len(late)} rows; answering with the mean of each place has "
            f"{median(means):.4f}",
            because_of_pictures(c) or "a longer run; a higher lr if it is below the rule's; a deeper predictor",
        )


def starved(c: Chart) -> Iterator[Finding]:
    """Steps wait for their pictures."""
    shares = c.column("waiting")[1:]  # the first row waits for workers to start
    if len(shares) > 2 and median(shares) > STARVED:
        yield Finding(
            "steps wait for pictures",
            f"{median(shares):.0%} of the time (half of the rows of history have more), above {STARVED:.0%}",
            workers_advice(c.recipe),
        )


def straggler(c: Chart) -> Iterator[Finding]:
    """One process is slow, and all others wait for it."""
    rows = [row for row in c.rows[1:] if "slowest" in row]  # the first row waits for workers and compilers
    if len(rows) < 3:
        return
    slowest = mode(row["slowest"] for row in rows)
    ratios = [row["slowest_ratio"] for row in rows if row["slowest"] == slowest]
    if len(ratios) > len(rows) / 2 and median(ratios) > LATE:
        yield Finding(
            "a slow process",
            f"process {slowest:.0f} is the slowest in {len(ratios)} of {len(rows)} rows of history, "
            f"{median(ratios):.2f} times the mean, above {LATE}",
            "look at its GPU (heat, clocks, other users) and at its machine's disk: all others wait for it every step",
        )


def position(c: Chart) -> Iterator[Finding]:
    """Tokens say where they are and little about the picture."""
    share = c.features.position if c.features else c.column("position")[-1]
    if share > PLAIN:
        yield Finding(
            "position-dominated features",
            f"place explains {share:.0%} of the variance of tokens",
            "larger or more targets; a deeper predictor; a longer run; look at the initial std of weights",
        )


def schedule(c: Chart) -> Iterator[Finding]:
    """The rate never reached its peak, or came down at the wrong time: steps and batches confused."""
    rates, first = c.column("lr"), c.recipe.warmup_epochs
    near = any(first <= row["epoch"] <= first + AFTER * (c.recipe.epochs - first) for row in c.rows)
    if near and max(rates) < 0.9 * c.recipe.lr:
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
        first = momentum_for(int(before))
        lower = f"a momentum of at most {first:.3f} at the start, or " if first > 0.5 else ""  # 0.5 is no average
        yield Finding(
            "momentum too high for the run length",
            f"after {before} steps {left:.0%} of the target's random start is left (momentum {c.recipe.momentum[0]})",
            f"{lower}a longer run",
        )


def rate(c: Chart) -> Iterator[Finding]:
    """Steps too large for their batch: the loss jumps, or every gradient is cut."""
    losses, norms = c.column("loss"), c.column("gradient_norm")
    jumps = [i for i in range(5, len(losses)) if losses[i] > 2 * median(losses[i - 5 : i])]
    cut = sum(n > c.recipe.clip for n in norms[len(norms) // 10 :]) if c.recipe.clip else 0
    borne = rate_for(c.recipe.batch, width_of(c.recipe))
    if jumps or cut > 0.5 * len(norms):
        seen = (
            f"the loss doubled at step {c.rows[jumps[0]]['step']}"
            if jumps
            else f"{cut} of {len(norms)} gradients were cut"
        )
        yield Finding(
            "learning rate too high for the batch",
            f"{seen}; lr {c.recipe.lr:.2g} at batch {c.recipe.batch}",
            f"lr around {min(borne, c.recipe.lr / 2):.1g} (batch {c.recipe.batch} and ViT-{c.recipe.encoder.upper()} "
            f"bear about {borne:.1g}), or a longer warm-up",
        )


def nothing(c: Chart) -> Iterator[Finding]:
    """A probe that cannot tell the trained encoder from a random one."""
    if c.scores and c.scores[1] > 100 - GAIN:
        yield Finding(
            "the probe says nothing here",
            f"a random encoder has {c.scores[1]:.1f} % already",
            "classes that brightness or colour tells apart need no features: judge by a harder task",
        )
    elif c.scores and c.scores[0] < c.scores[1] + GAIN:
        yield Finding(
            "no better than random",
            f"kNN {c.scores[0]:.1f} %, a random encoder {c.scores[1]:.1f} %",
            because_of_pictures(c)
            or "see the other findings first; then train longer: short runs of I-JEPA look like this before they learn",
        )


def sameness(c: Chart) -> Iterator[Finding]:
    """Pictures without anything in them, or one picture many times."""
    if seen := pictures_alike(c):
        yield Finding(
            "pictures too much alike",
            seen,
            "look at them: flat ones out, one of each group of copies; a longer run does not help",
        )


def pictures_alike(c: Chart) -> str:
    """What the run found in its pictures before its first step; "" for histories that do not say."""
    first = c.rows[0]
    return alike(first["flat"], first["copies"]) if "flat" in first else ""


def best_of(rows: list[dict[str, float]]) -> Best | None:
    """The best step that a history tells of; None if it was never judged."""
    for row in reversed(rows):
        for by in ("knn", "rank"):
            if f"best_{by}" in row:
                return Best(int(row["step"]), by, row[f"best_{by}"])
    return None


def because_of_pictures(c: Chart) -> str:
    """Advice where the pictures are the cause; "" where they are not."""
    seen = pictures_alike(c)
    return f"other pictures ({seen}); a longer run does not help" if seen else ""


def pictures(c: Chart) -> Iterator[Finding]:
    """Many files could not be read."""
    skipped = c.column("skipped")
    if skipped and skipped[-1] > 0:
        yield Finding(
            "unreadable pictures", f"{skipped[-1]:.0f} files were skipped", "the warnings of the run name them"
        )


CHECKS: tuple[Callable[[Chart], Iterator[Finding]], ...] = (
    sameness,
    collapse,
    rank,
    falling,
    position,
    constant,
    mean_predictor,
    schedule,
    momentum,
    rate,
    starved,
    straggler,
    nothing,
    pictures,
)
# Those that a run asks while it trains: cheap, and not said otherwise.
ON_THE_WAY = falling, constant, mean_predictor, starved, straggler


def examine(chart: Chart) -> list[Finding]:
    """Everything that is wrong with a run. Raises ValueError for a history without rows."""
    if not chart.rows:
        raise ValueError("the history has no rows: nothing to examine")
    return [finding for check in CHECKS for finding in check(chart)]


def on_the_way(recipe: Recipe, rows: list[dict[str, float]]) -> list[Finding]:
    """What a run that still trains should say, from its history alone."""
    return [finding for check in ON_THE_WAY for finding in check(Chart(recipe, rows))]


def chart_of(out: Path, which: str = "last", device: str = "auto") -> Chart:
    """A run's history and recipe, the health of a checkpoint's features, and kNN of its encoder beside a random one.

    which   the checkpoint: "last", "best" or a step; the history is the whole run's
    device  where to encode: on a GPU in the run's precision, on a CPU in float32
    A run without a whole checkpoint is judged by its history alone. Raises ValueError if there is no history, or no GPU
    where "cuda" asks for one.
    """
    where = torch.device(machine.pick(device))
    try:
        rows = read_rows(out / "history.jsonl")
        machines = read_machines(out / "history.jsonl")
        said = json.loads((out / "recipe.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{out} holds no run ({error}); give the --out of a pretrain") from error
    recipe = Recipe.read(said)
    try:
        _, method, step = load_run(out, where, which)
    except CheckpointError:
        if which != "last":
            raise
        return Chart(recipe, rows, machines=machines)
    epoch = rows[-1]["epoch"] / rows[-1]["step"] if rows else 0.0  # of a step
    finished = recipe.epochs - (step if which == "last" or not rows else rows[-1]["step"]) * epoch < epoch
    said = "" if which == "last" else f"{which} (step {step})"
    found = probe_set(recipe, 2000)
    if found is None:
        return Chart(recipe, rows, finished=finished, checkpoint=said, machines=machines)
    bank, bank_labels, queries, labels = found
    dtype, scores = precision_of(recipe, where) if where.type == "cuda" else torch.float32, []
    with matmul(where, "high"), torch.autocast(where.type, dtype, enabled=dtype != torch.float32):
        with torch.no_grad():
            state = health(method.probed(recipe.pixels.normalise(queries[:256].to(where))).float())
        for encoder in (method.probed, fresh(recipe, 0).to(where)):
            x = [features(encoder, recipe.pixels.scaled(images), batch=100) for images in (bank, queries)]
            scores.append(knn_score(x[0], bank_labels, x[1], labels))
    return Chart(recipe, rows, state, (scores[0], scores[1]), finished, said, machines)


def report(chart: Chart) -> str:
    """Findings as text; what was looked at where nothing is wrong."""
    found, last = examine(chart), chart.rows[-1]
    state = chart.features or Health(*(chart.column(name)[-1] for name in ("std", "rank", "position")))
    seen = f"std {state.std:.2f}, effective rank {state.rank:.1f}, share of position {state.position:.0%}"
    if chart.scores:
        seen += f", kNN {chart.scores[0]:.1f} % (random encoder {chart.scores[1]:.1f} %)"
    chosen = f", features of checkpoint {chart.checkpoint}" if chart.checkpoint else ""
    lines = [f"{chart.recipe.method} on {chart.recipe.data}, step {last['step']:.0f}{chosen}: {seen}"]
    lines += [f"computed on: {machine.sentence(found)}" for found in chart.machines]
    if best := best_of(chart.rows):
        lines.append(f"best by held-out probe or rank, never by loss: {best} (kept; {BEST})")
    for finding in found:
        lines += ["", f"! {finding.name}", f"  seen  {finding.seen}", f"  try   {finding.advice}"]
    return "\n".join(lines if found else [*lines, "", "nothing wrong was found"])
