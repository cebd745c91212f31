"""A frozen teacher instead of a moving one: predict the features of an encoder that was trained on pixels."""

from __future__ import annotations

from toy_ijepa.encoder import Encoder
from toy_ijepa.jepa import IJEPA


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
