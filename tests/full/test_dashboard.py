"""The dashboard follows a run's files from before they are there until it is done."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import pytest
import torch

from full_ijepa.dashboard import CURVES, Dashboard, DashboardModel, State
from full_ijepa.doctor import best_of
from full_ijepa.journal import read_rows
from full_ijepa.train import pretrain


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A run to its end, which no test writes to."""
    return pretrain(recipe, tmp_path_factory.mktemp("dashboard") / "whole", progress=False).out


def part_of(run, out, rows: int):
    """A run as it looked when it had written so many rows."""
    out.mkdir(exist_ok=True)
    (out / "recipe.json").write_text((run / "recipe.json").read_text())
    lines = (run / "history.jsonl").read_text().splitlines()[: rows + 1]  # the first says what it runs on
    (out / "history.jsonl").write_text("".join(line + "\n" for line in lines))
    return out


def test_a_run_that_has_not_begun_is_waited_for(tmp_path):
    model = DashboardModel([tmp_path / "none"])
    assert model.report()[0] == "none: waiting for the first row of history"
    assert not model.done
    assert model.figure() is not None


def test_how_far_and_how_long_still(finished, tmp_path, recipe):
    state = State.read(part_of(finished, tmp_path / "half", 5))
    assert (state.steps, state.done) == (15, False)
    said = state.sentence()
    assert said.startswith("half: step 5 of 15, loss ")
    assert "left" in said
    last = state.rows[-1]
    assert f"{last['images_per_second']:.0f} images/s" in said
    whole = State.read(finished)
    assert whole.done
    assert whole.sentence().endswith("done")
    assert f"kNN {whole.rows[-1]['knn']:.1f} %" in whole.sentence()
    assert f"(each place's mean {whole.rows[-1]['mean_loss']:.4f})" in whole.sentence()
    assert f"best {best_of(whole.rows)}" in whole.sentence()


def test_a_half_written_row_is_not_an_error(finished, tmp_path):
    run = part_of(finished, tmp_path / "run", 4)
    with (run / "history.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert [row["step"] for row in State.read(run).rows] == [1, 2, 3, 4]


def test_the_doctor_speaks_while_the_run_goes_on(finished, tmp_path):
    run = part_of(finished, tmp_path / "run", 5)
    rows = read_rows(run / "history.jsonl")
    (run / "history.jsonl").write_text("".join(json.dumps(row | dict(std=0.001)) + "\n" for row in rows))
    report = DashboardModel([run]).report()
    assert any("collapse" in line and "Try:" in line for line in report)


def test_masks_are_those_of_the_recipe(finished, tmp_path, recipe):
    """MAE hides three quarters, each patch one colour or the other; I-JEPA leaves patches unused."""
    state = State.read(finished)
    mae = State(finished, recipe.replace(method="mae"), state.rows)
    assert mae.colours().shape == state.colours().shape == (4, 4, 3)
    assert len(mae.colours().flatten(0, 1).unique(dim=0)) == 2
    first = State(finished, recipe, state.rows[:1]).colours()
    assert not torch.equal(first, state.colours())


@pytest.mark.parametrize("curve", ["all", *CURVES])
def test_every_curve_is_drawn(finished, tmp_path, curve):
    model = DashboardModel([finished, part_of(finished, tmp_path / "half", 5)], curve)
    axes = [ax for ax in model.figure().axes if ax.lines]
    assert len(axes) == (6 if curve == "all" else 1)
    column = "loss" if curve == "all" else curve
    drawn = [line.get_xydata().tolist() for line in axes[0].lines]
    columns = ["loss", "mean_loss"] if column == "loss" else [column]  # what each place's mean reaches, in grey
    expected = [[[row["step"], row[c]] for row in s.rows if c in row] for c in columns for s in model.states]
    assert drawn == expected


def test_the_widget_follows_and_ends_with_the_run(finished, tmp_path, recipe):
    out = part_of(finished, tmp_path / "live", 3)
    shown = Dashboard(out, every=0.05)
    assert "step 3 of 15" in shown.text.value
    part_of(finished, out, 15)
    end = time.monotonic() + 20
    while shown.watcher.is_alive() and time.monotonic() < end:
        time.sleep(0.05)
    assert "step 15 of 15" in shown.text.value
    assert not shown.watcher.is_alive()
    assert shown.error is None


def test_it_stands_still_when_told_and_stops(finished, tmp_path):
    out = part_of(finished, tmp_path / "live", 3)
    shown = Dashboard(out, every=0.05)
    shown.follow.value = False
    part_of(finished, out, 6)
    time.sleep(0.4)
    assert "step 3 of 15" in shown.text.value
    shown.look()
    assert "step 6 of 15" in shown.text.value
    shown.stop()
    shown.watcher.join(5)
    assert not shown.watcher.is_alive()


def test_no_run_is_refused():
    with pytest.raises(ValueError, match="at least one run"):
        Dashboard()


def test_recipes_come_back_as_they_were(finished, recipe):
    assert asdict(State.read(finished).recipe) == asdict(recipe.filled())
