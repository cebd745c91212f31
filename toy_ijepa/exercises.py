"""What the exercises share: an answer tried without stopping the notebook, a check that names the cause, pictures.

An exercise shows what is right beside what the reader wrote, also while that is wrong or not written yet.
"""

# Shape legend:  C channels  H,W pixels, or rows and columns of a map

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

from toy_ijepa import drawings, plots


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers of this shape, the same for the same seed."""
    return torch.randn(shape, generator=Generator().manual_seed(seed))


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
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    words = " ".join(f"{type(value).__name__} {value}".split())
    return words if len(words) <= 60 else f"{words[:56]} ..."


def agree(
    answer: Any,
    right: Tensor,
    causes: Mapping[str, Tensor] | None = None,
    tolerance: float = 1e-4,
    where: str = "",
) -> None:
    """Raise AssertionError unless `answer` is `right` up to `tolerance`.

    causes  likely mistakes, each with the tensor it leads to; the message names the one that fits the answer
    where   what is special about a second case, "patches of 4 pixels" for instance; the message says that the first
            case was right
    The answer may also be an exception that `attempt` returns.
    """
    if isinstance(answer, NotImplementedError | AssertionError):
        raise answer
    first = f"right at first, wrong for {where}: " if where else ""
    if isinstance(answer, Exception):
        words = f"it raises {type(answer).__name__} ({answer}); is a size written as a number that should be read?"
        raise AssertionError(first + words)
    if not isinstance(answer, Tensor):
        raise AssertionError(f"{first}the answer is {told(answer)}, not a tensor (is a `return` missing?)")
    if close(answer, right, tolerance):
        return
    for cause, wrong in (causes or {}).items():
        if close(answer, wrong, tolerance):
            raise AssertionError(first + cause)
    if answer.shape != right.shape:
        raise AssertionError(f"{first}the shape is {tuple(answer.shape)} instead of {tuple(right.shape)}")
    same = torch.isclose(answer.double(), right.double(), atol=tolerance, rtol=tolerance)
    place = tuple((~same).nonzero()[0].tolist())
    words = f"at {list(place)} stands {answer[place].item():.4g}, wanted is {right[place].item():.4g}"
    raise AssertionError(f"{first}the shape is right, but only {same.double().mean():.0%} of the numbers are; {words}")


def untouched(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns. AssertionError if it has written into one of the tensors that it was given."""
    before = [a.clone() if isinstance(a, Tensor) else None for a in arguments]
    answer = function(*arguments)
    for name, old, new in zip(inspect.signature(function).parameters, before, arguments, strict=False):
        if old is not None and not torch.equal(old, new):
            raise AssertionError(f"`{name}` was changed: `+=`, `/=` and names that end in _ write into what was given")
    return answer


def learnable(function: Callable[..., Tensor], *arguments: Any, fixed: Collection[str] = ()) -> None:
    """Raise AssertionError unless a gradient comes back to every argument that may learn.

    Those are tensors of floats and the parameters of modules, except for arguments named in `fixed`.
    """
    learners, given = {}, []
    for name, value in zip(inspect.signature(function).parameters, arguments, strict=False):
        if isinstance(value, nn.Module) and name not in fixed:
            learners[name] = list(value.parameters())
        if isinstance(value, Tensor) and value.is_floating_point() and name not in fixed:
            learners[name] = [value.detach().clone().requires_grad_()]
            value = learners[name][0] * 1.0  # no leaf: an answer may work in place
        given.append(value)
    answer = function(*given)
    flat = [p for parameters in learners.values() for p in parameters]
    found = torch.autograd.grad(answer.square().sum(), flat, allow_unused=True) if answer.requires_grad else ()
    reached = {id(p) for p, gradient in zip(flat, found, strict=False) if gradient is not None}
    cut = [name for name, parameters in learners.items() if any(id(p) not in reached for p in parameters)]
    if cut:
        raise AssertionError(f"no gradient reaches `{cut[0]}`: something cuts it off (`detach`, `.data`, `no_grad`)")


def drawn(draw: Callable[[Generator], Any], what: str) -> None:
    """Raise AssertionError unless `draw` takes its random numbers from the generator that it is given.

    Two draws with one generator have to differ, and generators of the same seed have to lead to the same.
    """
    generator, twin = (torch.Generator().manual_seed(1) for _ in range(2))
    first, second, again = (torch.as_tensor(draw(g)) for g in (generator, generator, twin))
    if torch.equal(first, second):
        raise AssertionError(f"{what}: two draws with one generator are the same; use it, and do not seed another one")
    if not torch.equal(first, again):
        raise AssertionError(f"{what}: the same seed leads to another draw; pass `generator` to every call that draws")


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
