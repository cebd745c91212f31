"""A frozen teacher instead of a moving one: predict the features of an encoder that was trained on pixels."""

# Shape legend:  S pictures  C channels  H,W pixels

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from toy_ijepa.encoder import Encoder
from toy_ijepa.jepa import IJEPA
from toy_ijepa.mae import MAE
from toy_ijepa.training import History, TrainConfig, train


class SALT(IJEPA):
    """I-JEPA whose target encoder never moves: a teacher that was trained before, on pixels; the student is kept.

    `teach` puts the teacher in; without it the target is the student as it began. The teacher's features cannot
    collapse, whatever the student does, so neither moving average nor stop-gradient has anything to prevent.
    Source: arXiv:2509.24317 (SALT).
    """

    @property
    def probed(self) -> Encoder:
        """The student."""
        return self.encoder

    def teach(self, teacher: Encoder) -> None:
        """Copy a trained encoder's weights into the target. Raises ValueError if it is of another shape."""
        if teacher.config != self.encoder.config:
            raise ValueError(f"the teacher is {teacher.config}, the student {self.encoder.config}")
        self.target.load_state_dict(teacher.state_dict())

    def after_step(self, progress: float) -> float:
        """The teacher stays as it is."""
        return 1.0


def train_teacher(model: SALT, images: Tensor, config: TrainConfig, progress: bool = True) -> History:
    """Train an MAE of the student's size on uint8 images (S, C, H, W) as `config` says, and make it the teacher.

    Ctrl-C ends it early; the history says so.
    """
    torch.manual_seed(config.seed)
    narrow = (model.predictor.config[name] for name in ("width", "depth", "heads"))
    mae = MAE(Encoder(**model.encoder.config), *narrow)
    history = train(mae, images, config, progress)
    model.teach(mae.probed)
    return history


def fit(model: nn.Module, images: Tensor, config: TrainConfig, progress: bool = True, **options) -> History:
    """`train` for every method: SALT's teacher first, for as many steps or half of the minutes.

    options  `rows` and `look` of `train`
    The history is the student's; its seconds, of the clock and of the cores, are those of both.
    """
    if not isinstance(model, SALT):
        return train(model, images, config, progress, **options)
    config = replace(config, minutes=config.minutes and config.minutes / 2)
    before = train_teacher(model, images, config, progress)
    if before.ended == "interrupted":
        return before
    history = train(model, images, config, progress, **options)
    history.seconds += before.seconds
    history.cpu_seconds += before.cpu_seconds
    return history
