"""The doctor names each illness, and finds nothing in a healthy run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from full_ijepa.doctor import Chart, chart_of, examine, report
from full_ijepa.recipes import RECIPES
from full_ijepa.train import pretrain
from toy_ijepa.diagnostics import Health
from toy_ijepa.schedules import cosine, linear, warmup_cosine

STEPS = 2000


def history(recipe, peak: float = 1.0, length: float = 1.0) -> list[dict[str, float]]:
    """A healthy history; `peak` scales the rate, `length` stretches the schedule."""
    rows = []
    for step in range(20, STEPS + 1, 20):
        done = step / STEPS / length
        lr = peak * warmup_cosine(done, recipe.lr, recipe.warmup_epochs / recipe.epochs)
        row = dict(step=step, epoch=recipe.epochs * step / STEPS, loss=0.3 + 0.2 * math.exp(-step / 300), lr=lr)
        row |= dict(weight_decay=cosine(done, *recipe.weight_decay), momentum=linear(done, *recipe.momentum))
        row |= dict(gradient_norm=0.5, images_per_second=100.0, seconds=step / 10)
        rows.append(row | dict(std=0.5, rank=5 + 10 * step / STEPS, position=0.4))
    return rows


@pytest.fixture
def healthy() -> Chart:
    recipe = RECIPES["stl10_vitb16"]
    return Chart(recipe, history(recipe), Health(0.5, 15.0, 0.4), (50.0, 32.0), finished=True)


def names(chart: Chart) -> list[str]:
    return [finding.name for finding in examine(chart)]


def test_a_healthy_run_is_left_alone(healthy):
    assert names(healthy) == []
    assert "nothing wrong was found" in report(healthy)
    assert "kNN 50.0 % (random encoder 32.0 %)" in report(healthy)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_a_healthy_run_is_left_alone_before_its_end(healthy, share):
    part = healthy.rows[: round(share * len(healthy.rows))]
    assert names(replace(healthy, rows=part, finished=False)) == []


def test_collapse_is_named(healthy):
    assert names(replace(healthy, features=Health(0.01, 15.0, 0.4))) == ["collapse"]


def test_low_and_falling_rank_are_named(healthy):
    assert names(replace(healthy, features=Health(0.5, 1.5, 0.4))) == ["low rank"]
    rows = [dict(row) for row in healthy.rows]
    rows[-1]["rank"] = 6.0
    assert names(replace(healthy, rows=rows)) == ["falling rank"]


def test_features_that_say_where_are_named(healthy):
    assert names(replace(healthy, features=Health(0.5, 15.0, 0.93))) == ["position-dominated features"]


@pytest.mark.parametrize(
    ("peak", "length", "name"),
    [
        (0.25, 1.0, "schedule never reaches its peak"),
        (1.0, 4.0, "schedule never comes down"),
        (1.0, 0.25, "schedule is over early"),
    ],
)
def test_a_schedule_that_counts_the_wrong_thing_is_named(healthy, peak, length, name):
    """Stretched four times: steps planned in batches. Four times as fast: it advances once a batch."""
    found = names(replace(healthy, rows=history(healthy.recipe, peak, length)))
    assert name in found
    assert not set(found) & {"collapse", "learning rate too high for the batch"}


def test_a_target_that_never_follows_is_named(healthy):
    recipe = healthy.recipe.replace(momentum=(0.9999, 1.0))
    (finding,) = examine(replace(healthy, recipe=recipe, rows=history(recipe)))
    assert finding.name == "momentum too high for the run length"
    assert "at most 0.975" in finding.advice
    mae = recipe.replace(method="mae")
    assert names(replace(healthy, recipe=mae, rows=history(recipe))) == []


def test_steps_too_large_are_named(healthy):
    rows = [dict(row) for row in healthy.rows]
    rows[50]["loss"] *= 3
    assert names(replace(healthy, rows=rows)) == ["learning rate too high for the batch"]
    rows = [row | dict(gradient_norm=50.0) for row in healthy.rows]
    (finding,) = examine(replace(healthy, rows=rows))
    assert "gradients were cut" in finding.seen


def test_no_better_than_random_is_named(healthy):
    assert names(replace(healthy, scores=(32.5, 32.0))) == ["no better than random"]


def test_unreadable_pictures_are_named(healthy):
    rows = [row | dict(skipped=3) for row in healthy.rows]
    assert names(replace(healthy, rows=rows)) == ["unreadable pictures"]


def test_a_real_run_is_examined(tmp_path, recipe):
    """Eight steps at a momentum of nearly 1: the doctor sees it, from the files alone."""
    stuck = recipe.replace(momentum=(0.9999, 1.0), epochs=1.0)
    chart = chart_of(pretrain(stuck, tmp_path / "run", progress=False).out)
    assert chart.recipe == stuck.filled()  # with what the pictures say about themselves
    assert chart.features is not None
    assert chart.scores is not None
    assert "momentum too high for the run length" in names(chart)


def test_a_folder_that_is_no_run_is_said(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        chart_of(tmp_path)
