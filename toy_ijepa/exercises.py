"""What the exercises share: an answer tried without stopping the notebook, a check that names the cause, pictures.

An exercise shows what is right beside what the reader wrote, also while that is wrong or not written yet.
"""

# Shape legend:  C channels  H,W pixels, or rows and columns of a map

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from toy_ijepa import drawings, plots


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns, or the exception that it raises (NotImplementedError while it is still a stub)."""
    try:
        return function(*arguments)
    except Exception as error:  # the reader's code may raise anything; the picture says what
        return error


def told(value: Any) -> str:
    """A few words for a value that is not what was hoped for."""
    if isinstance(value, NotImplementedError):
        return "not written yet"
    if isinstance(value, Exception):
        return f"raised {type(value).__name__}"
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__} {value}"


def agree(answer: Any, right: Tensor, causes: Mapping[str, Tensor] | None = None, tolerance: float = 1e-4) -> None:
    """Raise AssertionError unless `answer` is `right` up to `tolerance`.

    causes  likely mistakes, each with the tensor it leads to; the message names the one that fits the answer
    """
    if not isinstance(answer, Tensor):
        raise AssertionError(f"the answer is {told(answer)}, not a tensor (is a `return` missing?)")
    if close(answer, right, tolerance):
        return
    for cause, wrong in (causes or {}).items():
        if close(answer, wrong, tolerance):
            raise AssertionError(cause)
    if answer.shape != right.shape:
        raise AssertionError(f"the shape is {tuple(answer.shape)} instead of {tuple(right.shape)}")
    share = torch.isclose(answer.double(), right.double(), atol=tolerance, rtol=tolerance).double().mean().item()
    raise AssertionError(f"the shape is right, but only {share:.0%} of the numbers are")


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors have the same shape and, up to `tolerance`, the same numbers."""
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), atol=tolerance, rtol=tolerance)


def panels(pictures: Mapping[str, Any], cell: float = 2.1) -> Figure:
    """A row of titled pictures.

    Images (3, H, W), uint8 or in [0, 1], are drawn as they are; maps (H, W) on one scale for all, bright is high;
    anything else, an exception from `attempt` for instance, in words.
    """
    maps = [p.double() for p in pictures.values() if isinstance(p, Tensor) and p.ndim == 2 and p.numel()]
    low, high = (min(m.min() for m in maps), max(m.max() for m in maps)) if maps else (0, 1)
    figure, axes = plots.grid_of(1, len(pictures), cell)
    for ax, (title, picture) in zip(axes.flat, pictures.items(), strict=True):
        drawable = isinstance(picture, Tensor) and picture.numel()
        if drawable and picture.ndim == 3 and len(picture) == 3:
            plots.show(ax, picture)
        elif drawable and picture.ndim == 2:
            ax.imshow(picture.double().numpy(), cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
        else:
            ax.text(0.5, 0.5, told(picture), ha="center", va="center", fontsize=8, wrap=True)
        ax.set_title(title, fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
    return figure


def numbers(values: Any) -> list[float] | None:
    """`values` as a list of floats, or None if they are not numbers."""
    try:
        return [float(v) for v in values]
    except (TypeError, ValueError):
        return None


def curves(lines: Mapping[str, Any], x: str, y: str) -> Figure:
    """A line for each sequence of numbers; the legend says what became of the others. x, y are words for the axes."""
    found = {label: numbers(line) for label, line in lines.items()}
    named = {
        label if values is not None else f"{label}: {told(lines[label])}": values or []
        for label, values in found.items()
    }
    return drawings.curves(named, x, y)


def bars(values: Mapping[str, Any], x: str) -> Figure:
    """A labelled bar for each number, the first on top; words for what is not a number. x is a word for the axis."""
    named = {}
    for label, value in values.items():
        found = numbers([value])
        named[f"{label}: {short(found[0]) if found else told(value)}"] = found[0] if found else 0.0
    return drawings.bars(named, xlabel=x)


def short(number: float) -> str:
    """Three digits below a thousand, thousands with commas above."""
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"
