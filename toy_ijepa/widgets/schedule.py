"""Schedule explorer: learning rate, weight decay and momentum of a run, and what counting wrongly does to them."""

# `step` counts optimiser steps, from 0.

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import ipywidgets
from matplotlib.figure import Figure

from toy_ijepa.schedules import SHAPES, cosine, momentum_at, warmup_cosine
from toy_ijepa.widgets.view import Explorer, Report, control

COUNTING = {
    "steps": "optimiser steps (right)",
    "batches": "batches, of a length in steps (bug)",
    "length": "steps, of a length in batches (bug)",
}
POINTS = 400  # of a curve
LARGELY, HARDLY = 0.5, 0.05  # share of the initial weights left in the target encoder


@dataclass(frozen=True)
class ScheduleModel:
    """The schedules of a run of `steps` optimiser steps, each on `accumulation` batches.

    warmup    share of the run; lr  its peak; decay, momentum  start and end, momentum's way as `shape` says
    counting  what progress is made of. "steps": steps done / steps. "batches": batches done / *steps*, so that the
              schedule ends early. "length": steps done / *batches*, so that it never reaches its end.
    Raises ValueError for a number out of range or an unknown shape or counting.
    """

    steps: int = 1000
    warmup: float = 0.1
    lr: float = 3e-3
    decay: tuple[float, float] = (0.04, 0.4)
    momentum: tuple[float, float] = (0.996, 1.0)
    shape: str = "linear"
    accumulation: int = 1
    counting: str = "steps"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulation < 1:
            raise ValueError(f"{self.steps} steps of {self.accumulation} batches: both must be at least 1")
        if not (self.lr > 0 and min(self.decay) >= 0):
            raise ValueError(f"learning rate {self.lr} must be above 0, weight decay {self.decay} not below 0")
        if self.counting not in COUNTING:
            raise ValueError(f"unknown counting {self.counting!r}: choose from {', '.join(COUNTING)}")
        warmup_cosine(0.0, self.lr, self.warmup)
        momentum_at(0.0, *self.momentum, self.shape)

    def progress(self, step: int) -> float:
        """What the schedules are told at a step; above 1 when they are over."""
        done, length = step, self.steps
        if self.counting == "batches":
            done = step * self.accumulation
        elif self.counting == "length":
            length = self.steps * self.accumulation
        return done / length

    def lr_at(self, step: int) -> float:
        return warmup_cosine(self.progress(step), self.lr, self.warmup)

    def decay_at(self, step: int) -> float:
        return cosine(self.progress(step), *self.decay)

    def momentum_at(self, step: int) -> float:
        return momentum_at(self.progress(step), *self.momentum, self.shape)

    def memory_at(self, step: int) -> float:
        """Over about how many steps the target encoder averages: 1/(1-m), infinite for m = 1."""
        return memory(self.momentum_at(step))

    @cached_property
    def peak(self) -> tuple[int, float]:
        """The first step with the highest learning rate of the run, and that rate."""
        rates = [self.lr_at(step) for step in range(self.steps)]
        return rates.index(max(rates)), max(rates)

    @cached_property
    def share_left(self) -> float:
        """Weight of its random initial values in the target encoder at the end: the product of all momenta.

        From t <- m*t + (1-m)*o: each step multiplies what is left of the start by m.
        """
        return math.prod(self.momentum_at(step) for step in range(self.steps))

    @property
    def idle(self) -> int:
        """Steps that come after the schedule's end: they train with learning rate 0."""
        return sum(self.progress(step) >= 1 for step in range(self.steps))

    def verdict(self) -> str:
        """What the target encoder is made of at the end."""
        percent = "less than 0.1" if self.share_left < 0.001 else f"{100 * self.share_left:.2g}"
        share = f"{percent} % of the target encoder is still its random start when the run ends"
        if self.share_left > LARGELY:
            return f"TRAP: {share}, so that is what the predictor learns. Start with a lower momentum or run longer."
        return f"{share}{': more than a trace.' if self.share_left > HARDLY else ': forgotten.'}"

    def curves(self) -> dict[str, list[float]]:
        """Steps and, at each, the four quantities; about POINTS of them."""
        at = sorted({round(i * (self.steps - 1) / POINTS) for i in range(POINTS + 1)})
        named = dict(lr=self.lr_at, decay=self.decay_at, momentum=self.momentum_at, memory=self.memory_at)
        return {"step": at} | {name: [value(step) for step in at] for name, value in named.items()}

    def figure(self, alone: bool = True) -> Figure:
        """Four curves; where counting is wrong, the right ones dashed beside them."""
        figure = Figure(figsize=(9.6, 4.8))
        axes = figure.subplots(2, 2).flatten()
        figure.subplots_adjust(left=0.08, right=0.98, bottom=0.1, top=0.94, wspace=0.18, hspace=0.42)
        runs = [(self, "-", "#0072b2", "as set")]
        if self.counting != "steps" and self.accumulation > 1:
            right = replace(self, counting="steps")
            runs.append((right, "--", "#d55e00", "counted rightly"))
        titles = dict(lr="learning rate", decay="weight decay", momentum="EMA momentum m", memory="EMA memory 1/(1-m)")
        for model, line, colour, name in runs:
            curves = model.curves()
            for ax, quantity in zip(axes, titles, strict=True):
                ax.plot(curves["step"], curves[quantity], line, color=colour, label=name, linewidth=1.8)
        for ax, title in zip(axes, titles.values(), strict=True):
            ax.set_title(title, fontsize=10)
            ax.set_xlabel("optimiser step", fontsize=8)
            ax.tick_params(labelsize=8)
            ax.set_xlim(0, max(self.steps - 1, 1))
        axes[2].ticklabel_format(axis="y", useOffset=False)
        axes[3].set_yscale("log")
        axes[3].axhline(self.steps, color="0.4", linestyle=":", label="length of the run")
        axes[3].legend(fontsize=8)
        return figure

    def alt(self) -> str:
        return (
            f"Four curves over {self.steps} optimiser steps: learning rate, weight decay, EMA momentum and the EMA's "
            "memory in steps beside the length of the run. The text below has their ends and highest values."
        )

    def report(self) -> Report:
        (step, rate), last = self.peak, self.steps - 1
        rows = [("", "at the start", "at the end")]
        rows.append(("learning rate", f"{self.lr_at(0):.2g}", f"{self.lr_at(last):.2g}"))
        rows.append(("weight decay", f"{self.decay_at(0):.3g}", f"{self.decay_at(last):.3g}"))
        rows.append(("EMA momentum", f"{self.momentum_at(0):.5g}", f"{self.momentum_at(last):.5g}"))
        rows.append(("EMA memory", *(self.remembers(at) for at in (0, last))))
        lines: Report = [f"Highest learning rate {rate:.2g}, at step {step} of {self.steps}.", rows, self.verdict()]
        if self.idle:
            lines.append(f"The schedule is over early: the last {self.idle} steps train with learning rate 0.")
        elif self.counting != "steps" and self.accumulation > 1:
            share = 100 * self.progress(last)
            lines.append(f"The run ends at {share:.0f} % of its schedule: the rate never comes down to 0.")
        return lines

    def remembers(self, step: int) -> str:
        steps = self.memory_at(step)
        return "for ever" if math.isinf(steps) else f"{steps:,.0f} steps = {steps / self.steps:.3g} of the run"


def memory(momentum: float) -> float:
    """Over about how many updates an exponential moving average remembers: 1/(1-m), infinite for m = 1."""
    return math.inf if momentum >= 1 else 1 / (1 - momentum)


class ScheduleExplorer(Explorer):
    """Plan a run: its length, warm-up, rates and momenta; then count wrongly and see.

    Controls: steps, warmup, lr, decay_start, decay_end, momentum_start, momentum_end, shape, accumulation, counting
    ("steps", "batches" or "length").
    """

    def __init__(self) -> None:
        super().__init__()
        self.model, F = ScheduleModel(), ipywidgets.FloatSlider
        self.steps = control(ipywidgets.IntSlider, "optimiser steps", 1000, min=100, max=20_000, step=100)
        self.accumulation = control(ipywidgets.IntSlider, "batches a step", 1, min=1, max=16)
        ways = [(text, name) for name, text in COUNTING.items()]
        self.counting = control(ipywidgets.Dropdown, "progress counts", "steps", options=ways)
        self.warmup = control(F, "warm-up share", 0.1, min=0, max=0.95, step=0.01)
        self.lr = control(ipywidgets.FloatLogSlider, "peak learning rate", 3e-3, min=-5, max=-1, step=0.05)
        self.decay_start = control(F, "weight decay, start", 0.04, min=0, max=1, step=0.01)
        self.decay_end = control(F, "weight decay, end", 0.4, min=0, max=1, step=0.01)
        fine = dict(min=0, max=1, step=0.0005, readout_format=".4f")
        self.momentum_start = control(F, "momentum, start", 0.996, **fine)
        self.momentum_end = control(F, "momentum, end", 1.0, **fine)
        self.shape = control(ipywidgets.Dropdown, "momentum's way", "linear", options=list(SHAPES))
        ends = [self.decay_start, self.decay_end, self.momentum_start, self.momentum_end]
        self.start([self.steps, self.accumulation, self.counting, self.warmup, self.lr, *ends, self.shape])

    def read(self) -> ScheduleModel:
        return ScheduleModel(
            steps=self.steps.value,
            warmup=self.warmup.value,
            lr=self.lr.value,
            decay=(self.decay_start.value, self.decay_end.value),
            momentum=(self.momentum_start.value, self.momentum_end.value),
            shape=self.shape.value,
            accumulation=self.accumulation.value,
            counting=self.counting.value,
        )
