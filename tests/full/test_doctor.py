"""The doctor names each illness, and finds nothing in a healthy run."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from full_ijepa import checkpoint
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


def test_a_peak_between_two_rows_is_not_missed(healthy):
    """Of a short run only rows behind the peak are left: they say nothing about it."""
    late = [row for row in history(healthy.recipe) if row["epoch"] > 0.6 * healthy.recipe.epochs]
    assert max(row["lr"] for row in late) < 0.9 * healthy.recipe.lr
    assert "schedule never reaches its peak" not in names(replace(healthy, rows=late))


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


def probed(chart: Chart, *scores: float) -> Chart:
    """The chart with probes at even distances, two standard errors 3 points."""
    rows = [dict(row) for row in chart.rows]
    every = len(rows) // len(scores)
    for n, score in enumerate(scores, 1):
        rows[n * every - 1] |= dict(knn=score, knn_doubt=3.0)
    return replace(chart, rows=rows)


def test_falling_since_its_best_step_is_named(healthy):
    assert names(probed(healthy, 40, 50, 48, 48)) == []  #  within the doubt
    assert names(probed(healthy, 40, 50, 44, 48)) == []  #  one low look may be chance
    (finding,) = examine(probed(healthy, 40, 52, 45, 44))
    assert finding.name == "falling since step 1000"
    assert "44.0 % at step 2000, 52.0 % at step 1000" in finding.seen
    assert "--checkpoint best" in finding.advice
    assert names(replace(probed(healthy, 40, 52, 45, 44), finished=False)) == [finding.name]


def test_a_loss_that_does_not_move_is_named(healthy):
    rows = [row | dict(loss=2.302585 + 1e-6 * (n % 2)) for n, row in enumerate(healthy.rows)]
    assert names(replace(healthy, rows=rows)) == ["constant loss"]


def test_a_loss_no_better_than_the_mean_is_named(healthy):
    with_mean = [row | dict(mean_loss=0.5) for row in healthy.rows]
    assert names(replace(healthy, rows=with_mean)) == []
    rows = [row | dict(mean_loss=row["loss"]) for row in healthy.rows]
    assert names(replace(healthy, rows=rows)) == ["no better than the mean"]
    penalised = healthy.recipe.replace(regulariser=(0.1, 0.005))  # whose loss is more than that of predicting
    assert names(replace(healthy, rows=rows, recipe=penalised)) == []


def test_steps_that_wait_for_pictures_are_named(healthy):
    rows = [row | dict(waiting=0.9 if n == 0 else 0.1) for n, row in enumerate(healthy.rows)]
    assert names(replace(healthy, rows=rows)) == []
    rows = [row | dict(waiting=0.6) for row in healthy.rows]
    (finding,) = examine(replace(healthy, rows=rows, recipe=healthy.recipe.replace(workers=0)))
    assert (finding.name, "60%" in finding.seen) == ("steps wait for pictures", True)
    assert "(now 0; this machine has" in finding.advice


def test_a_process_that_all_others_wait_for_is_named(healthy):
    """Not one that is slow by turns, nor one that is hardly slower."""
    for ratio, places, said in ((1.5, [3], ["a slow process"]), (1.5, range(8), []), (1.1, [3], [])):
        rows = [row | dict(slowest=places[n % len(places)], slowest_ratio=ratio) for n, row in enumerate(healthy.rows)]
        assert names(replace(healthy, rows=rows)) == said
    rows = [row | dict(slowest=3, slowest_ratio=1.5) for row in healthy.rows]
    (finding,) = examine(replace(healthy, rows=rows))
    assert re.search(r"process 3 is the slowest in \d+ of \d+ rows of history, 1.50 times the mean", finding.seen)


@pytest.mark.parametrize("what", ["flat", "copies"])
def test_pictures_too_much_alike_are_the_cause(healthy, what):
    """Then nobody is told to train longer."""
    rows = [dict(row) for row in healthy.rows]
    rows[0] |= dict(flat=0.0, copies=0.0) | {what: 0.95}
    sick = replace(healthy, rows=rows, features=Health(0.5, 1.5, 0.4), scores=(32.5, 32.0))
    found = {finding.name: finding for finding in examine(sick)}
    assert list(found) == ["pictures too much alike", "low rank", "no better than random"]
    for name in ("low rank", "no better than random"):
        assert "95% of the pictures" in found[name].advice
        assert "a longer run does not help" in found[name].advice
    rows[0] |= dict(flat=0.1, copies=0.1)
    assert "train longer" in examine(replace(sick, rows=rows))[-1].advice


def draw_same(root, flat: bool):
    """Sixty flat pictures, or sixty grainy copies of one, in two class folders."""
    random, ramp = np.random.default_rng(0), np.linspace(0, 200, 16)[None, :, None]
    for n in range(60):
        grain = random.integers(0, 30, (16, 16, 3))
        picture = np.full((16, 16, 3), 4 * n) if flat else np.broadcast_to(ramp, (16, 16, 3)) + grain
        for split in ("train", "test"):
            folder = root / split / "ab"[n % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(folder / f"{n}.png")
    return root


@pytest.mark.parametrize("flat", [True, False])
def test_sixty_pictures_alike_are_named_before_the_run_and_after(tmp_path, recipe, capsys, flat):
    recipe = recipe.replace(data=f"folder:{draw_same(tmp_path / 'same', flat)}", epochs=0.5, warmup_epochs=0.0)
    out = pretrain(recipe, tmp_path / "run", progress=False).out
    words = "100% of the pictures looked at " + ("are flat" if flat else "have a near copy")
    assert f"warning: {words}" in capsys.readouterr().err
    said = report(chart_of(out))
    assert "! pictures too much alike" in said
    assert words in said
    assert "train longer" not in said


def test_the_best_checkpoint_is_looked_at_when_asked(tmp_path, recipe):
    """Its features, and the history of the whole run."""
    out = pretrain(recipe.replace(probe_epochs=0.4), tmp_path / "run", progress=False).out
    (best,) = checkpoint.best_of(out / "checkpoints").values()
    chart = chart_of(out, "best")
    assert len(chart.rows) == 15
    assert chart.finished
    assert f"features of checkpoint best (step {best.step})" in report(chart)
    assert f"best by held-out probe or rank, never by loss: {best} (kept" in report(chart)
    assert report(chart).count("computed on: device CPU, ") == 1
    with pytest.raises(ValueError, match="no checkpoint '999'"):
        chart_of(out, "999")


def test_a_probe_that_everybody_passes_is_named(healthy):
    assert names(replace(healthy, scores=(100.0, 100.0))) == ["the probe says nothing here"]
    assert names(replace(healthy, scores=(99.5, 98.0))) == []


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
