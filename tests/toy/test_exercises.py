from __future__ import annotations

import pytest
import torch

from toy_ijepa.exercises import agree, attempt, bars, curves, drawn, learnable, panels, untouched


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
    with pytest.raises(AssertionError, match=r"at \[1, 2\] stands 7, wanted is 5"):
        agree(right + 2 * (right == 5), right)


def test_agree_says_where_a_second_case_is_wrong():
    right = torch.arange(6.0).reshape(2, 3)
    agree(attempt(lambda: right), right, where="3 columns")
    with pytest.raises(AssertionError, match="wrong for 3 columns: upside down"):
        agree(right.flip(0), right, {"upside down": right.flip(0)}, where="3 columns")
    with pytest.raises(AssertionError, match="wrong for 3 columns: it raises RuntimeError"):
        agree(attempt(right.reshape, 4, 4), right, where="3 columns")
    with pytest.raises(NotImplementedError):
        agree(attempt(stub), right, where="3 columns")


def test_untouched_notices_what_is_written_into_an_argument():
    def centre(x, by):
        x -= by
        return x

    assert untouched(lambda x, by: x - by, torch.ones(3), 1).tolist() == [0, 0, 0]
    with pytest.raises(AssertionError, match="`x` was changed"):
        untouched(centre, torch.ones(3), 1)


def test_learnable_names_what_no_gradient_reaches():
    layer, x, token = torch.nn.Linear(2, 2), torch.ones(3, 2), torch.ones(2)
    learnable(lambda x, token, layer: layer(x.mul_(2)) + token, x, token, layer)
    learnable(lambda x, token, layer: layer(x) + token.detach(), x, token, layer, fixed=["token"])
    with pytest.raises(AssertionError, match="`token`"):
        learnable(lambda x, token, layer: layer(x) + token.data, x, token, layer)
    with pytest.raises(AssertionError, match="`layer`"):
        learnable(lambda x, token, layer: x + token + layer(x).detach(), x, token, layer)
    with pytest.raises(AssertionError, match="`x`"):
        learnable(torch.no_grad()(lambda x, layer: layer(x)), x, layer)


def test_drawn_wants_the_generator_that_is_given():
    drawn(lambda generator: torch.rand(3, generator=generator), "numbers")
    with pytest.raises(AssertionError, match="numbers: two draws with one generator are the same"):
        drawn(lambda generator: torch.rand(3, generator=torch.Generator().manual_seed(0)), "numbers")
    with pytest.raises(AssertionError, match="numbers: the same seed leads to another draw"):
        drawn(lambda generator: torch.rand(3), "numbers")


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
