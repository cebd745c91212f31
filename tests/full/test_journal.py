"""History is written whatever becomes of the boards; a board that is missing is said before the first step."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from types import ModuleType, SimpleNamespace

import pytest

from full_ijepa import journal
from full_ijepa.journal import BOARDS, Journal, check_boards, read_lines, read_machines, read_rows
from full_ijepa.train import pretrain


class Shelf:
    """What a stand-in for a library has seen: runs by id, each of (step, values), and how often it was closed."""

    def __init__(self) -> None:
        self.runs: dict[str, list] = {}
        self.config: dict[str, dict] = {}
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def stand_in_wandb(shelf: Shelf) -> ModuleType:
    module = ModuleType("wandb")

    def init(*, project, name, dir, config, id, resume):
        assert (project, name, resume) == ("full_ijepa", "run", "allow")
        rows = shelf.runs.setdefault(id, [])
        shelf.config[id] = config
        log = lambda row: rows.append((row["step"], {k: v for k, v in row.items() if k != "step"}))  # noqa: E731
        return SimpleNamespace(log=log, finish=shelf.close, define_metric=lambda *_args, **_options: None)

    module.init = init
    return module


def stand_in_trackio(shelf: Shelf) -> ModuleType:
    module = ModuleType("trackio")

    def init(*, project, name, resume, config, embed):
        assert (project, resume, embed) == ("full_ijepa", "allow", False)
        rows = shelf.runs.setdefault(name, [])
        shelf.config[name] = config
        return SimpleNamespace(log=lambda values, step: rows.append((step, values)), finish=shelf.close)

    module.init = init
    return module


def stand_in_mlflow(shelf: Shelf) -> ModuleType:
    module = ModuleType("mlflow")

    class MlflowClient:
        def __init__(self, home):
            assert home.startswith("sqlite:///")

        def get_experiment_by_name(self, name):
            return SimpleNamespace(experiment_id="7") if shelf.runs else None

        def create_experiment(self, name):
            assert name == "full_ijepa"
            return "7"

        def create_run(self, experiment, run_name):
            found = f"{experiment}-{run_name}-{len(shelf.runs)}"
            shelf.runs[found], shelf.config[found] = [], {}
            return SimpleNamespace(info=SimpleNamespace(run_id=found))

        def log_param(self, run, name, value):
            shelf.config[run][name] = value

        def update_run(self, run, status):
            assert run in shelf.runs

        def log_metric(self, run, name, value, step):
            rows = shelf.runs[run]
            if not rows or rows[-1][0] != step or name in rows[-1][1]:
                rows.append((step, {}))
            rows[-1][1][name] = value

        def set_terminated(self, run):
            shelf.close()

    module.MlflowClient = MlflowClient
    return module


STAND_INS = dict(wandb=stand_in_wandb, mlflow=stand_in_mlflow, trackio=stand_in_trackio)
ROWS = [dict(step=step, loss=1.0 / step, rank=3.0) for step in range(1, 5)]


@pytest.fixture
def out(tmp_path, monkeypatch):
    for variable in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", STAND_INS)
def test_a_board_gets_every_row_and_goes_on_in_its_own_curve(out, recipe, monkeypatch, name):
    shelf = Shelf()
    monkeypatch.setitem(sys.modules, name, STAND_INS[name](shelf))
    recipe = recipe.replace(log_to=(name,))
    first = Journal(out, 0, recipe)
    for row in ROWS[:3]:
        first.add(row)
    first.close()
    second = Journal(out, 2, recipe)  # killed after step 3, continued from the checkpoint at 2
    for row in ROWS[2:]:
        second.add(row)
    second.close()
    ((run, seen),) = shelf.runs.items()
    assert [step for step, _ in seen] == [1, 2, 3, 3, 4]
    assert dict(seen) == {row["step"]: dict(loss=row["loss"], rank=3.0) for row in ROWS}
    assert json.loads((out / "boards.json").read_text()) == {name: run}
    assert shelf.config[run]["lr"] == recipe.lr
    assert shelf.closed == 2
    assert read_rows(out / "history.jsonl") == ROWS


@pytest.mark.parametrize("name", STAND_INS)
def test_the_library_itself_takes_rows_without_a_network(out, recipe, name):
    """Skipped where it is not installed; the stand-ins above were written after it."""
    pytest.importorskip(name)
    board = BOARDS[name](out, recipe, 0, None)
    for row in ROWS[:3]:
        board.add(row)
    board.close()
    again = BOARDS[name](out, recipe, 2, board.id)
    assert again.id == board.id
    again.add(ROWS[3])
    again.close()
    if name == "mlflow":
        told = again.client.get_metric_history(board.id, "loss")
        assert [(m.step, m.value) for m in told] == [(row["step"], row["loss"]) for row in ROWS]
        assert again.client.get_run(board.id).data.params["method"] == "ijepa"
    assert any(path.is_file() for place in (out / name, out.parent / name) for path in place.rglob("*"))


def test_a_missing_library_is_said_before_anything_is_written(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(journal, "find_spec", lambda name: None if name == "wandb" else True)
    with pytest.raises(ValueError, match=r"wandb, which is not installed: pip install wandb, or --log-to tensorboard"):
        pretrain(recipe.replace(log_to=("wandb", "tensorboard")), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    check_boards(recipe)


class Broken:
    """A board that fails when it is opened, or with its second row, or when it is closed."""

    library = "json"

    def __init__(self, when: str) -> None:
        self.when, self.rows, self.id = when, 0, "broken"

    def __call__(self, *_args) -> Broken:
        if self.when == "open":
            raise RuntimeError("no key")
        return self

    def add(self, row) -> None:
        self.rows += 1
        if self.when == "row" and self.rows == 2:
            raise RuntimeError("the server is gone")

    def close(self) -> None:
        if self.when == "close":
            raise RuntimeError("nothing uploaded")


@pytest.mark.parametrize("when", ["row", "close"])
def test_a_board_that_fails_costs_its_rows_and_not_the_run(out, recipe, monkeypatch, when):
    broken = Broken(when)
    monkeypatch.setitem(BOARDS, "trackio", broken)
    told = {"row": "the server is gone", "close": "nothing uploaded"}[when]
    with pytest.warns(UserWarning, match=f"trackio not written: {told}; training goes on; history.jsonl has the rows"):
        found = pretrain(recipe.replace(log_to=("trackio", "tensorboard"), epochs=0.6), out / "x", progress=False)
    assert found.ended == "done"
    assert broken.rows == (
        2 if when == "row" else len(found.rows)
    )  # not asked again: a dead server would be waited for
    assert read_rows(out / "x" / "history.jsonl") == found.rows
    assert list((out / "x" / "tensorboard").iterdir())


def test_a_board_that_cannot_be_opened_stops_a_new_run_and_no_old_one(out, recipe, monkeypatch):
    monkeypatch.setitem(BOARDS, "trackio", Broken("open"))
    recipe = recipe.replace(log_to=("trackio",))
    with pytest.raises(ValueError, match="log_to trackio: no key; mend it, or leave trackio out"):
        Journal(out, 0, recipe)
    with pytest.warns(UserWarning, match="trackio not written: no key"):
        later = Journal(out, 3, recipe)
    later.add(ROWS[3])
    assert read_rows(out / "history.jsonl") == ROWS[3:]


def test_no_board_at_all(out, recipe):
    quiet = Journal(out, 0, recipe.replace(log_to=()))
    quiet.add(ROWS[0])
    quiet.close()
    assert sorted(path.name for path in out.iterdir()) == ["boards.json", "history.jsonl", "recipe.json"]
    assert json.loads((out / "recipe.json").read_text())["lr"] == asdict(recipe)["lr"]


def test_a_start_that_led_nowhere_is_forgotten(out, recipe):
    """History says what its rows were computed on: not what was tried between."""
    for step, rows, where in ((0, ROWS[:3], "here"), (2, [], "died at once"), (2, ROWS[2:], "there")):
        journal = Journal(out, step, recipe.replace(log_to=()), dict(device=where))
        for row in rows:
            journal.add(row)
    lines = [line.get("step", line.get("machine")) for line in read_lines(out / "history.jsonl")]
    assert lines == [dict(device="here"), 1, 2, dict(device="there"), 3, 4]
    assert read_rows(out / "history.jsonl") == journal.rows == ROWS
    assert read_machines(out / "history.jsonl") == [dict(device="here"), dict(device="there")]
