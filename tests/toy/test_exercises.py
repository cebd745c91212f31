from __future__ import annotations

import pytest
import torch

from toy_ijepa.exercises import agree, attempt, bars, curves, panels


def stub():
    raise NotImplementedError


def test_attempt_returns_what_comes_or_what_is_raised():
    assert attempt(divmod, 7, 2) == (3, 1)
    assert isinstance(attempt(stub), NotImplementedError)


def test_agree_names_the_likely_cause():
    right = torch.arange(6.0).reshape(2, 3)
    agree(right + 1e-6, right)
    with pytest.raises(AssertionError, match="upside down"):
        agree(right.flip(0), right, {"upside down": right.flip(0)})
    with pytest.raises(AssertionError, match=r"\(3, 2\) instead of \(2, 3\)"):
        agree(right.T, right)
    with pytest.raises(AssertionError, match="only 0% of"):
        agree(right * float("nan"), right)
    with pytest.raises(AssertionError, match="return"):
        agree(None, right)


def test_pictures_also_of_answers_that_are_none():
    image, odd = torch.rand(3, 8, 12), torch.rand(2, 8, 12)
    drawn = panels({"image": image, "map": torch.eye(3), "stub": attempt(stub), "odd": odd, "nothing": None})
    told = [text.get_text() for ax in drawn.axes for text in ax.texts]
    assert told == ["not written yet", "a tensor of shape (2, 8, 12)", "NoneType None"]
    legend = curves({"right": [1, 2], "yours": attempt(stub), "odd": [None]}, "step", "loss").axes[0].get_legend()
    assert [text.get_text() for text in legend.texts] == ["right", "yours: not written yet", "odd: list [None]"]
    drawn = bars({"right": 2.5, "all": 12345, "yours": attempt(lambda: 1 / 0)}, "count").axes[0]
    labels = [label.get_text() for label in drawn.get_yticklabels()][::-1]
    assert labels == ["right: 2.5", "all: 12,345", "yours: raised ZeroDivisionError"]
