"""A run's figures in words: what was learned, against what, how sure that is, and what to type next.

Everything here reads the dictionary that the main job writes as metrics.json; nothing is measured anew.
"""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from toy_ijepa.diagnostics import LOW_RANK, LOW_STD

RESULTS = Path(__file__).parents[1] / "assets" / "results"
COLUMNS = {"linear": "linear probe", "knn": "kNN"}
NAMES = {
    "ijepa": "I-JEPA",
    "ijepa-vc": "I-JEPA with the regulariser",
    "ijepa-deep": "I-JEPA of several depths",
    "salt": "SALT",
    "ijepa-sigreg": "I-JEPA with SIGReg",
    "lejepa": "LeJEPA",
    "simclr": "SimCLR",
    "mae": "MAE",
}
BASELINES = {"pixels": "raw pixels", "pixels-pca": "pixels, 256 principal components", "random": "random encoder"}
# Dials that a reference was measured with, and what they are called for a reader.
DIALS = dict(size="--size", image_size="--image-size", patch="--patch", masks="--masks", batch="--batch", lr="--lr")


@dataclass(frozen=True)
class Gap:
    """Difference of two accuracies in points, and the doubt about it: two standard errors."""

    points: float
    doubt: float

    @property
    def sure(self) -> bool:
        return abs(self.points) > self.doubt

    def __str__(self) -> str:
        return f"{self.points:+.1f} ± {self.doubt:.1f}"


def gap(metrics: dict, one: str, other: str, column: str, reference: dict | None = None) -> Gap | None:
    """How far `one` is above `other` under a probe, paired by seed; None if either was not probed.

    The doubt is made of the test set's size and of the spread of the paired differences over seeds, taken from the
    reference run where this run has one seed.
    """
    probes = metrics["probes"]
    if one not in probes or other not in probes:
        return None
    pairs = differences(probes, one, other, column)
    a, b = probes[one][column] / 100, probes[other][column] / 100
    sampling = 1e4 * (a * (1 - a) + b * (1 - b)) / max(metrics["pictures"]["test"], 1)
    spread = pairs if len(pairs) > 1 else differences((reference or {}).get("probes", {}), one, other, column)
    seeds = stdev(spread) ** 2 / len(pairs) if len(spread) > 1 else 0.0
    return Gap(mean(pairs), 2 * math.sqrt(sampling / len(pairs) + seeds))


def differences(probes: dict, one: str, other: str, column: str) -> list[float]:
    """One score minus the other for each seed; a baseline without seeds stands against every one."""
    if one not in probes or other not in probes:
        return []
    a, b = ([run[column] for run in probes[name]["runs"]] for name in (one, other))
    length = max(len(a), len(b))
    return [x - y for x, y in zip(a * (length // len(a)), b * (length // len(b)), strict=True)]


def paired(rows: dict[str, dict], one: str, other: str, column: str) -> Gap:
    """Mean difference of two variants whose runs share their seeds, and two of its standard errors.

    The pictures of the test are the same in every run, so only the seeds' spread counts; infinite for one seed.
    """
    found = differences(rows, one, other, column)
    return Gap(mean(found), 2 * stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.inf)


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


def reference_for(data: str) -> dict | None:
    """The stored run of three seeds that the same command gave on these pictures, if there is one."""
    path = RESULTS / f"first-{data.replace(':', '-')}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def verdict(metrics: dict, reference: dict | None) -> list[str]:
    """Sentences about a run, in order: learned or not, pixels, the twin, the reference, why and what next."""
    methods = [name for name in metrics["training"] if name in metrics["probes"]]
    said = [line for name in methods for line in against_baselines(metrics, name, reference)]
    if {"ijepa", "mae"} <= set(methods):
        said.append(against_twin(metrics, reference))
    said += [line for name in methods for line in against_reference(metrics, name, reference)]
    return [*said, *next_steps(metrics, reference)]


def learned(metrics: dict, method: str, reference: dict | None) -> bool:
    """Whether a method is above the random encoder by more than the doubt, under at least one probe."""
    gaps = [gap(metrics, method, "random", column, reference) for column in COLUMNS]
    return any(g is not None and g.sure and g.points > 0 for g in gaps)


def against_baselines(metrics: dict, method: str, reference: dict | None) -> list[str]:
    """Two sentences: above the random encoder or not, above pixels or not."""
    gaps = {column: gap(metrics, method, "random", column, reference) for column in COLUMNS}
    if None in gaps.values():
        return []
    told = ", ".join(f"{COLUMNS[column]} {g}" for column, g in gaps.items())
    if not learned(metrics, method, reference):
        return [f"NOT A SUCCESS: {NAMES[method]} is no better than the random encoder it started from ({told} points)."]
    said = [f"{NAMES[method]} has learned: points above the random encoder it started from: {told}."]
    lead = [gap(metrics, method, "pixels", column, reference) for column in COLUMNS]
    if None not in lead:
        words = [f"{COLUMNS[c]} {g}{'' if g.sure else ' (not told apart)'}" for c, g in zip(COLUMNS, lead, strict=True)]
        said.append(f"{NAMES[method]} against raw pixels: {', '.join(words)}.")
    return said


def against_twin(metrics: dict, reference: dict | None) -> str:
    """Features or pixels: who is the better teacher here, under each probe."""
    words = []
    for column, label in COLUMNS.items():
        g = gap(metrics, "ijepa", "mae", column, reference)
        who = "not told apart" if not g.sure else "I-JEPA ahead" if g.points > 0 else "MAE ahead"
        words.append(f"{label}: {who} ({g})")
    return f"Predicting features (I-JEPA) against predicting pixels (MAE): {'; '.join(words)}."


def against_reference(metrics: dict, method: str, reference: dict | None) -> list[str]:
    """The stored figures of the same command, and where this run falls short of them, why."""
    if reference is None or method not in reference["probes"]:
        return []
    known, own = reference["probes"][method], metrics["probes"][method]
    figures = ", ".join(f"{label} {known[c]:.1f} ± {known['spread'][c] or 0:.1f}" for c, label in COLUMNS.items())
    said = f"The reference run of {NAMES[method]} ({len(known['runs'])} seeds): {figures}."
    short = {c: known[c] - own[c] for c in COLUMNS if known[c] - own[c] > tolerance(metrics, known, c)}
    if not short:
        return [f"{said} Yours agrees with it."]
    missing = ", ".join(f"{COLUMNS[c]} by {points:.1f}" for c, points in short.items())
    reasons = causes(metrics, method, reference) or [
        "nothing known here explains it; three seeds (--seed 0 1 2) tell more"
    ]
    return [f"{said} Yours falls short of it ({missing}): {'; '.join(reasons)}."]


def tolerance(metrics: dict, known: dict, column: str) -> float:
    """Points that a run of one seed may lie below the reference without a reason: two standard errors, at least 1."""
    p = known[column] / 100
    sampling = 1e4 * 2 * p * (1 - p) / max(metrics["pictures"]["test"], 1)
    return max(2 * math.sqrt(sampling + (known["spread"][column] or 0.0) ** 2), 1.0)


def causes(metrics: dict, method: str, reference: dict) -> list[str]:
    """What differs from the reference run, or went wrong, as short phrases."""
    found = collapse(metrics, method)
    steps, wanted = (min(run["steps"] for run in m["training"][method]) for m in (metrics, reference))
    if steps < wanted:
        found.append(f"{steps} steps instead of {wanted}")
    for part in ("train", "labelled"):
        if metrics["pictures"][part] < reference["pictures"][part]:
            what = "training pictures" if part == "train" else "labels for the probes"
            found.append(f"{metrics['pictures'][part]} {what} instead of {reference['pictures'][part]}")
    for name, flag in DIALS.items():
        mine, theirs = (m["settings"].get(name) for m in (metrics, reference))
        if mine != theirs:
            found.append(f"{flag} {mine} instead of {theirs}")
    return found


def collapse(metrics: dict, method: str) -> list[str]:
    """What the diagnostics call collapse, for the worst seed."""
    seen = metrics["diagnostics"].get(method, [])
    low_std = min((d["std"] for d in seen if d["std"] is not None), default=math.inf)
    low_rank = min((d["rank"] for d in seen if d["rank"] is not None), default=math.inf)
    found = []
    if low_std < LOW_STD:
        found.append(f"its features collapsed (std {low_std:.2f}, below {LOW_STD})")
    if low_rank < LOW_RANK:
        found.append(f"its features lost rank ({low_rank:.1f} directions, below {LOW_RANK:.0f})")
    return found


def next_steps(metrics: dict, reference: dict | None) -> list[str]:
    """What to type next."""
    methods = [name for name in metrics["training"] if name in metrics["probes"]]
    failed = [name for name in methods if not learned(metrics, name, reference)]
    if not methods:
        return []
    data, steps = metrics["data"], max((r["steps"] for name in methods for r in metrics["training"][name]), default=0)
    command = f"python -m toy_ijepa --data {shlex.quote(data)}"
    if any(collapse(metrics, name) for name in failed):
        return [f"Next: {command} --method ijepa-vc, which keeps features spread; the history shows when it began."]
    if failed:
        return [
            f"Next: train longer, {command} --steps {max(4 * steps, 1200)}; chapter 05 shows what else can be wrong."
        ]
    if data == "cifar10":
        return [f"Next: five times as long, {command} --steps 6000: {longer()}"]
    seeds = f"three seeds, {command} --seed 0 1 2; or " if len(metrics["training"][methods[0]]) == 1 else ""
    return [f"Next: {seeds}photographs, python -m toy_ijepa --data cifar10."]


def longer() -> str:
    """What 6,000 steps reach on CIFAR-10, from the stored runs; empty where they are not."""
    files = {name: RESULTS / f"cifar10-{name}.json" for name in ("ijepa", "mae")}
    if not all(path.is_file() for path in files.values()):
        return "the linear probe needs longer than the nearest neighbours."
    runs = {name: json.loads(path.read_text()) for name, path in files.items()}
    one, other = (run["probes"][name] for name, run in runs.items())
    steps = runs["mae"]["training"]["mae"][0]["steps"]
    return (
        f"I-JEPA then reaches {one['linear']:.1f} linear and {one['knn']:.1f} kNN, MAE after {steps:,} steps "
        f"{other['linear']:.1f} and {other['knn']:.1f} (three seeds)."
    )
