"""Search explorer: the pictures that an encoder holds for most alike, beside what other encoders say."""

# Shape legend:  S pictures  C channels  H,W pixels  F features  k neighbours

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import ipywidgets
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from toy_ijepa import plots
from toy_ijepa.widgets.blocks import check_images
from toy_ijepa.widgets.drawing import panels
from toy_ijepa.widgets.view import Explorer, Report, control


def nearest(features: Tensor, query: int, k: int) -> tuple[Tensor, Tensor]:
    """Numbers (k,) of the samples most like sample `query` by cosine, itself left out, and their cosines (k,).

    features  (S, F), as they are: lengths do not matter
    Raises ValueError if there is no such sample, or there are not k others.
    """
    S = len(features)
    if not 0 <= query < S:
        raise ValueError(f"picture {query} is not one of the {S}, which are numbered from 0")
    if not 1 <= k < S:
        raise ValueError(f"{k} neighbours of a picture among {S}: choose 1 to {S - 1}")
    x = F.normalize(features.float(), dim=1)
    cosine = x @ x[query]  #                     (S,)
    cosine[query] = -2.0  # below every cosine
    found = cosine.topk(k)
    return found.indices, found.values


@dataclass(frozen=True, eq=False)
class SearchModel:
    """Neighbours of one of the uint8 images (S, C, H, W) under each encoder's features, name -> (S, F).

    labels, classes  (S,) and their names, where there are any: neighbours of the query's class are counted
    Raises ValueError for a picture that does not exist, too many neighbours, or numbers of samples that differ.
    """

    images: Tensor
    features: Mapping[str, Tensor]
    labels: Tensor | None = None
    classes: Sequence[str] = ()
    query: int = 0
    k: int = 6

    def __post_init__(self) -> None:
        check_images(self.images, self.query)
        for name, x in self.features.items():
            if len(x) != len(self.images):
                raise ValueError(f"{name} has features of {len(x)} pictures, there are {len(self.images)}")
        assert self.found.keys() == self.features.keys()

    @cached_property
    def found(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Name of the encoder -> neighbours' numbers and cosines."""
        return {name: nearest(x, self.query, self.k) for name, x in self.features.items()}

    def word(self, number: int) -> str:
        """The class of a picture, or its number."""
        return self.classes[self.labels[number]] if len(self.classes) else f"picture {number}"

    def same(self, name: str) -> int:
        """How many neighbours have the query's class."""
        index, _ = self.found[name]
        return int((self.labels[index] == self.labels[self.query]).sum())

    def figure(self, alone: bool = True) -> Figure:
        figure, axes = panels(len(self.features), self.k + 1, cell=1.35)
        for row, (name, (index, cosine)) in enumerate(self.found.items()):
            line = axes[row * (self.k + 1) :]
            plots.show(line[0], self.images[self.query], name)
            for ax, number, value in zip(line[1:], index.tolist(), cosine.tolist(), strict=False):
                plots.show(ax, self.images[number], f"{self.word(number)} {value:.2f}")
        for ax in axes:
            ax.title.set_fontsize(7)
        return figure

    def alt(self) -> str:
        return (
            f"Picture {self.query} ({self.word(self.query)}) and its {self.k} nearest neighbours, a row an encoder: "
            f"{', '.join(self.features)}. The table below names them."
        )

    def report(self) -> Report:
        known = bool(len(self.classes)) and self.labels is not None
        rows = [("", *(["of its class"] if known else []), "neighbours, nearest first: cosine")]
        for name, (index, cosine) in self.found.items():
            pairs = zip(index.tolist(), cosine.tolist(), strict=True)
            named = ", ".join(f"{self.word(n)} {v:.2f}" for n, v in pairs)
            rows.append((name, *([f"{self.same(name)} of {self.k}"] if known else []), named))
        return [f"Asked by picture {self.query}: {self.word(self.query)}.", rows]


class SearchExplorer(Explorer):
    """Choose a picture and see what each encoder finds most alike. Controls: query, neighbours."""

    def __init__(
        self,
        images: Tensor,
        features: Mapping[str, Tensor],
        labels: Tensor | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.model = SearchModel(images, features, labels, classes, k=min(6, len(images) - 1))
        self.query = control(ipywidgets.IntSlider, "picture", 0, max=len(images) - 1)
        most = min(10, len(images) - 1)
        self.neighbours = control(ipywidgets.IntSlider, "neighbours", self.model.k, min=1, max=most)
        self.start([self.query, self.neighbours])

    def read(self) -> SearchModel:
        return replace(self.model, query=self.query.value, k=self.neighbours.value)
