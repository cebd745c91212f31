"""The best of a run, kept beside its last: by kNN on training pictures, or by effective rank where none has a class."""

# Shape legend:  S pictures  C channels  H,W pixels

from __future__ import annotations

import copy
import math

import torch

from toy_ijepa.data import ImageSet
from toy_ijepa.diagnostics import LOW_STD
from toy_ijepa.encoder import Encoder
from toy_ijepa.probing import features, knn
from toy_ijepa.training import History, Method, uses_bf16
from toy_ijepa.trouble import doubt, fallen

LOOKS = 10  # in a run, about; each costs as much as ten steps of the toy
NAME = "encoder-best.safetensors"
BANK, QUERIES = 1000, 500  # training pictures: those that are known, and those whose class is asked for


class Best:
    """Looks at a model's encoder now and then, and keeps a copy of the best; never by loss, which tells nothing.

    Given to `train` as its `look`. The labels choose which encoder is kept, they never train it.
    TRAP: rank and kNN do not see how large features are; a collapsed step may be best by both, so it counts for 0.
    """

    def __init__(self, model: Method, pictures: ImageSet, precision: str = "auto") -> None:
        self.model, self.pictures, self.precision = model, pictures, precision
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[: BANK + QUERIES]
        third = len(order) // 3
        self.queries, self.bank = order[:third], order[third:]
        self.by = "knn" if len(pictures.classes) > 1 and third else "rank"
        self.looks: list[tuple[int, float]] = []  # step and value
        self.begun, self.step, self.value = False, 0, 0.0
        self.encoder: Encoder | None = None

    def __call__(self, row: dict[str, float]) -> dict[str, float]:
        """What a row of history gets: {"knn": in %, nan between two looks}, or {} where there are no classes."""
        self.begun = True
        due = row["progress"] >= (len(self.looks) + 1) / LOOKS
        value = self.look(row) if due else math.nan
        return {"knn": value} if self.by == "knn" else {}

    def look(self, row: dict[str, float]) -> float:
        """Judge the encoder as it is now, and keep it if it is the best so far."""
        value = self.score() if self.by == "knn" else row["rank"]
        worth = value if row["std"] >= LOW_STD else 0.0
        self.looks.append((int(row["step"]), worth))
        if worth and worth >= self.value:  # of equals the later, which has learned longer
            self.step, self.value, self.encoder = int(row["step"]), worth, copy.deepcopy(self.model.probed)
        return value

    @torch.no_grad()
    def score(self) -> float:
        """kNN accuracy (%) of the queries in the bank."""
        encoder, images, labels = self.model.probed, self.pictures.images, self.pictures.labels
        device = next(encoder.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(device, self.precision)):
            bank, queries = (features(encoder, images[index]) for index in (self.bank, self.queries))
        return knn(bank, labels[self.bank], queries, labels[self.queries], k=min(20, len(bank)))

    def close(self, history: History) -> list[str]:
        """Look a last time, at the end of a run; what to say of it, a sentence a line. [] for one that never began."""
        if self.begun:
            self.look(dict(history.rows[-1], step=history.steps))
        if self.encoder is None:
            return []
        how = f"kNN on training pictures {self.value:.1f} %" if self.by == "knn" else f"rank {self.value:.1f}"
        said = [f"best look of {len(self.looks)}: step {self.step} of {history.steps} ({how}), kept in {NAME}"]
        values = [value for _, value in self.looks]
        doubts = [doubt(value / 100, len(self.queries)) if self.by == "knn" else math.inf for value in values]
        if (best := fallen(values, doubts)) is not None:
            said.append(
                f"warning: falling since step {self.looks[best][0]}: kNN {values[best]:.1f} % there, {values[-1]:.1f} "
                f"at the end, more than the doubt of {doubts[-1]:.1f} points; a shorter run, or a lower rate"
            )
        return said
