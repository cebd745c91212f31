"""Projection explorer: a flat cloud seen from one direction after the other, and how normal each view of it looks."""

# Shape legend:  S samples  D width  V directions

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from toy_ijepa.drawings import histogram
from toy_ijepa.sigreg import NORMAL, epps_pulley
from toy_ijepa.widgets.view import Explorer, Report, control

MOST = 1024  # samples of a cloud
TURNS = 180  # directions all round, a degree apart: the other half circle looks at the same from behind
FAR = 3.0  # one projection of normal samples in twenty lies above it
LINE_AT = 30  # degrees, of the line


def clouds(seed: int = 0, count: int = MOST) -> dict[str, Tensor]:
    """Five clouds (S, 2) by name. Line, ring and heaps have mean 0; ring and heaps have unit covariance as well."""
    g = torch.Generator().manual_seed(seed)
    normal = torch.randn(count, 2, generator=g)
    turn = 2 * math.pi * torch.rand(count, generator=g)
    side = torch.randint(2, (count,), generator=g) * 2 - 1
    along = math.radians(LINE_AT)
    return {
        "normal": normal,
        "one point": torch.zeros(count, 2),
        "a line": normal[:, :1] * torch.tensor([math.cos(along), math.sin(along)]),
        "a ring": math.sqrt(2) * torch.stack([turn.cos(), turn.sin()], dim=1),
        "two heaps": torch.stack([0.95 * side + math.sqrt(1 - 0.95**2) * normal[:, 0], normal[:, 1]], dim=1),
    }


def flat(features: Tensor) -> Tensor:
    """Features (S, D) in the plane of their two principal directions: (S, 2). Not centred: the test is not either."""
    x = features.float()
    _, _, directions = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    return x @ directions[:2].T


@dataclass(frozen=True, eq=False)
class ProjectionModel:
    """A cloud (S, 2), and what is seen of it in a direction, in degrees from the first axis.

    Raises ValueError for a cloud that is none, or fewer than 8 samples.
    """

    points: Tensor
    name: str = "normal"
    degrees: int = 0

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 2:
            raise ValueError(f"a cloud is (S, 2), not {tuple(self.points.shape)}")
        if len(self.points) < 8:
            raise ValueError(f"{len(self.points)} samples are too few to look at; at least 8")

    @property
    def direction(self) -> Tensor:
        """Length 1: (2,)."""
        return towards(torch.tensor([float(self.degrees)]))[:, 0]

    @cached_property
    def projected(self) -> Tensor:
        """Where each sample lies along the direction: (S,)."""
        return self.points @ self.direction

    @property
    def statistic(self) -> float:
        """How far the projection is from a standard normal distribution."""
        return epps_pulley(self.projected[:, None]).item()

    @cached_property
    def statistics(self) -> Tensor:
        """The same for each of TURNS directions, a degree apart: (V,)."""
        return epps_pulley(self.points @ towards(torch.arange(TURNS)))

    @property
    def mean(self) -> float:
        """Over all directions: what SIGReg would be if it drew every one."""
        return self.statistics.mean().item()

    def verdict(self) -> str:
        """What this direction says, and whether the others agree."""
        here, all_round = self.statistic > FAR, self.mean > FAR
        if here and all_round:
            return "This direction sees that the cloud is not normal, and so do all directions together."
        if all_round:
            return "This direction sees nothing wrong; all directions together do."
        if here:
            return "This direction is far from normal, all directions together are not."
        return "Neither this direction nor all together are further from normal than normal samples may be."

    def figure(self, alone: bool = True) -> Figure:
        """The cloud with the direction; its projection beside the normal curve; the statistic all round."""
        figure = Figure(figsize=(10.4, 3.5))
        cloud, seen, turned = figure.subplots(1, 3)
        figure.subplots_adjust(left=0.05, right=0.985, bottom=0.15, top=0.9, wspace=0.24)
        reach = max(3.5, 1.1 * self.points.abs().max().item())
        self.draw_cloud(cloud, reach)
        histogram(seen, self.projected, reach)
        seen.set_title(f"seen at {self.degrees} degrees: {self.statistic:.2f}", fontsize=9)
        turned.plot(range(TURNS), self.statistics, color="#0072b2")
        turned.axhline(NORMAL, color="0.4", linestyle=":")
        turned.plot([self.degrees % TURNS], [self.statistic], "o", color="#d55e00")
        turned.set_yscale("log")
        turned.set_ylim(min(0.1, self.statistics.min().item()), max(10.0, 1.5 * self.statistics.max().item()))
        turned.set_title(f"statistic by direction; mean {self.mean:.2f}", fontsize=9)
        turned.set_xlabel("degrees (dotted: mean of normal samples)", fontsize=8)
        for ax in (cloud, seen, turned):
            ax.tick_params(labelsize=7)
        return figure

    def draw_cloud(self, ax, reach: float) -> None:
        """The samples, and a line in the direction of the projection."""
        x, y = self.direction.tolist()
        ax.scatter(*self.points.T, s=5, color="#0072b2", alpha=0.5, linewidths=0)
        ax.plot([-reach * x, reach * x], [-reach * y, reach * y], color="#d55e00", linewidth=1.6)
        ax.set_xlim(-reach, reach)
        ax.set_ylim(-reach, reach)
        ax.set_aspect("equal")
        ax.set_title(f"{self.name}: {len(self.points)} samples", fontsize=9)

    def alt(self) -> str:
        return (
            f"The cloud {self.name!r}, the direction at {self.degrees} degrees drawn as a line; a histogram of the "
            "cloud's projection beside the normal curve; and the statistic of every direction as a curve. The text "
            "below has the numbers."
        )

    def report(self) -> Report:
        least, most = self.statistics.argmin().item(), self.statistics.argmax().item()
        rows = [("direction", "statistic", "mean", "std")]
        for name, degrees in (("this one", self.degrees), ("least", least), ("greatest", most)):
            m = replace(self, degrees=degrees)
            spread = m.projected.std(correction=0)
            rows.append(
                (f"{name}, {degrees} degrees", f"{m.statistic:.2f}", f"{m.projected.mean():.2f}", f"{spread:.2f}")
            )
        together = f"Over all {TURNS} directions the statistic is {self.mean:.2f} on average"
        return [rows, f"{together}; for normal samples, of any number, about {NORMAL:.2f}.", self.verdict()]


def towards(degrees: Tensor) -> Tensor:
    """Directions of length 1 at these degrees (V,): (2, V)."""
    angle = degrees.float() * math.pi / 180
    return torch.stack([angle.cos(), angle.sin()])


class ProjectionExplorer(Explorer):
    """Turn a direction round a flat cloud and watch what the test of one projection sees.

    Controls: cloud, degrees, samples, seed. `features` (S, D), if given, is one more cloud: an encoder's, in the plane
    of its two principal directions.
    """

    def __init__(self, features: Tensor | None = None) -> None:
        super().__init__()
        self.features = None if features is None else flat(features)[:MOST]
        I = ipywidgets.IntSlider  # noqa: E741
        names = [*clouds(), *(["an encoder's features"] if features is not None else [])]
        self.cloud = control(ipywidgets.Dropdown, "cloud", "normal", options=names)
        self.degrees = control(I, "direction (degrees)", 0, max=TURNS)
        self.samples = control(I, "samples", 256, min=32, max=MOST, step=32)
        self.seed = control(I, "seed", 0, max=99)
        self.start([self.cloud, self.degrees, self.samples, self.seed])

    def read(self) -> ProjectionModel:
        name = self.cloud.value
        points = clouds(self.seed.value)[name] if name in clouds() else self.features
        return ProjectionModel(points[: self.samples.value], name, self.degrees.value)

    def settle(self) -> None:
        """An encoder's features are there, they are not drawn: no seed, and no more samples than there are."""
        own = self.cloud.value == "an encoder's features"
        self.seed.disabled = own
        self.samples.value = len(self.model.points)
