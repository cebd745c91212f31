"""A run while it trains: curves, the masks of its last step, the probe, time left, and what the doctor says so far.

It reads the files that every run writes, so that it can follow a run of another process, or of another machine that
shares the folder.
"""

# Shape legend:  B images  C channels  L side in pixels  h,w grid (patches)

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from full_ijepa import doctor, masking
from full_ijepa.cost import span
from full_ijepa.journal import read_rows
from full_ijepa.recipes.base import Recipe
from toy_ijepa import plots
from toy_ijepa.masking import random
from toy_ijepa.patches import grid_size
from toy_ijepa.widgets.view import Explorer, Report, control

CURVES = {
    "loss": "loss (grey: of each place's mean)",
    "lr": "learning rate",
    "momentum": "momentum",
    "std": "feature std",
    "rank": "effective rank",
    "knn": "kNN probe (%)",
    "position": "share of position",
    "gradient_norm": "gradient norm",
    "images_per_second": "images/s",
    "waiting": "share of time waiting for data",
    "memory_gb": "peak memory (GB)",
    "mfu": "share of the card's peak (MFU)",
}
SHOWN = ("loss", "lr", "momentum", "std", "rank", "knn")
STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True, eq=False)
class State:
    """What a run's folder says now. `rows` is empty while there is no history yet."""

    out: Path
    recipe: Recipe | None
    rows: list[dict[str, float]]

    @classmethod
    def read(cls, out: Path) -> State:
        """A run that has not begun is not an error: it is shown as waited for."""
        try:
            recipe = Recipe.read(json.loads((out / "recipe.json").read_text()))
        except (OSError, json.JSONDecodeError):
            return cls(out, None, [])
        history = out / "history.jsonl"
        return cls(out, recipe, read_rows(history) if history.exists() else [])

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return round(self.recipe.epochs * self.rows[-1]["step"] / self.rows[-1]["epoch"])

    @property
    def done(self) -> bool:
        return bool(self.rows) and self.rows[-1]["step"] >= self.steps

    def points(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of a column; none for MAE's momentum, which there is not."""
        rows = [] if name == "momentum" and self.recipe and self.recipe.method == "mae" else self.rows
        return [(row["step"], row[name]) for row in rows if name in row]

    def sentence(self) -> str:
        """How far, how fast, how long still."""
        if not self.rows:
            return f"{self.out.name}: waiting for the first row of history"
        last = self.rows[-1]
        left = (self.steps - last["step"]) * last["seconds"] / last["step"]
        probe = next((f", kNN {row['knn']:.1f} %" for row in reversed(self.rows) if "knn" in row), "")
        mean = f" (each place's mean {last['mean_loss']:.4f})" if "mean_loss" in last else ""
        best = f", best {found}" if (found := doctor.best_of(self.rows)) else ""
        when = "done" if self.done else f"about {span(left)} left"
        return (
            f"{self.out.name}: step {last['step']:.0f} of {self.steps}, loss {last['loss']:.4f}{mean}{probe}{best}, "
            f"{last['images_per_second']:.0f} images/s, {when}"
        )

    def findings(self) -> list[str]:
        """What the doctor sees in the history."""
        if not self.rows:
            return []
        chart = doctor.Chart(self.recipe, self.rows, finished=self.done)
        return [f"{self.out.name}: {found.name} ({found.seen}). Try: {found.advice}" for found in doctor.examine(chart)]

    def colours(self) -> Tensor | None:
        """A map (h, w, 3) of what was seen and asked in the last step's kind of masks; a new one each step."""
        if self.recipe is None:
            return None
        r, grid = self.recipe, grid_size(self.recipe.sides, self.recipe.patch)
        generator = torch.Generator().manual_seed(int(self.rows[-1]["step"]) if self.rows else 0)
        if r.method == "mae":
            drawn = random(1, grid, target_scale=(r.hidden, r.hidden), generator=generator)
        else:
            drawn = masking.sample(r.masks, 1, grid, generator)[0][1]
        return plots.mask_map(drawn, grid)


@dataclass(frozen=True, eq=False)
class DashboardModel:
    """The states of runs at one moment, and which curve is shown large ("all": six small ones)."""

    runs: Sequence[Path]
    curve: str = "all"

    @cached_property
    def states(self) -> list[State]:
        return [State.read(Path(out)) for out in self.runs]

    @property
    def done(self) -> bool:
        return all(state.done for state in self.states)

    def figure(self, alone: bool = True) -> Figure:
        names = SHOWN if self.curve == "all" else (self.curve,)
        figure = Figure(figsize=(9.6, 3.8), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=[4, 1])
        axes = left.subplots(2, 3).flat if self.curve == "all" else [left.subplots()]
        for ax, name in zip(axes, names, strict=True):
            for number, state in enumerate(self.states):
                points = state.points(name)
                style = STYLES[number % len(STYLES)]
                ax.plot(*zip(*points, strict=True) if points else ([], []), style, label=state.out.name)
            for state in self.states if name == "loss" else ():
                if points := state.points("mean_loss"):
                    ax.plot(*zip(*points, strict=True), color="0.6", linewidth=1)
            ax.set_title(CURVES[name], fontsize=9)
            ax.tick_params(labelsize=7)
            if self.curve != "all":
                ax.set_xlabel("optimiser step", fontsize=8)
        if len(self.states) > 1:
            ax.legend(fontsize=7)
        for ax, state in zip(right.subplots(len(self.states), 1, squeeze=False).flat, self.states, strict=True):
            colours = state.colours()
            if colours is not None:
                ax.imshow(colours.numpy(), interpolation="nearest")
            ax.set_title(f"masks: {state.out.name}", fontsize=8)
            ax.set_xticks([])
            ax.set_yticks([])
        return figure

    def alt(self) -> str:
        shown = "loss, learning rate, momentum, std, rank and kNN" if self.curve == "all" else CURVES[self.curve]
        return (
            f"Curves of {shown} against optimiser steps, and a mask of the kind drawn last (context green, targets "
            f"coloured), of {', '.join(state.out.name for state in self.states)}. The sentences below give the numbers."
        )

    def report(self) -> Report:
        findings = [line for state in self.states for line in state.findings()]
        return [state.sentence() for state in self.states] + (findings or ["The doctor has found nothing so far."])


class Dashboard(Explorer):
    """Follows runs by their folders and draws them anew while they train.

    every  seconds between two looks
    Controls: curve, follow (off: the picture stands still). `stop()` ends it, and so do the runs by being done.
    """

    def __init__(self, *runs: Path | str, every: float = 2.0) -> None:
        super().__init__()
        if not runs:
            raise ValueError("a dashboard needs the --out of at least one run")
        self.runs = [Path(out) for out in runs]
        options = [("all", "all"), *((label, name) for name, label in CURVES.items())]
        self.curve = control(ipywidgets.Dropdown, "curve", "all", options=options)
        self.follow = control(ipywidgets.Checkbox, "follow", True)
        self.start([self.curve, self.follow])
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.watcher = threading.Thread(target=self.watch, args=(every,), daemon=True)
        self.watcher.start()

    def read(self) -> DashboardModel:
        return DashboardModel(self.runs, self.curve.value)

    def look(self) -> None:
        """Read the files again and draw."""
        with self.lock:
            self.answered = None
            self.refresh()

    def watch(self, every: float) -> None:
        """What the thread does: look, until all runs are done or `stop` is called."""
        while not self.ended.wait(every):
            if self.follow.value:
                self.look()
                if self.model.done:
                    return

    def stop(self) -> None:
        self.ended.set()
