"""What a run writes down while it trains: its recipe, a row of history at a time, and the boards that draw the rows.

history.jsonl is the record; boards (TensorBoard, Weights & Biases, MLflow, trackio) are copies of it for the eye. A
board that fails costs its rows, never the run.
"""

from __future__ import annotations

import json
import os
import secrets
import warnings
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

from full_ijepa.recipes.base import Recipe

PROJECT = "full_ijepa"  # what runs are filed under, unless the library's own environment variable says otherwise


class Board(Protocol):
    """Draws rows somewhere. Made with the run's folder, recipe, first step, and the id that it had before it stopped.

    Its methods may raise anything: libraries that talk to servers do.
    """

    id: str  # by which a continued run finds its curves again

    def add(self, row: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Files in RUN/tensorboard, for `tensorboard --logdir`."""

    library: ClassVar[str] = "tensorboard"

    def __init__(self, out: Path, recipe: Recipe, step: int, known: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # seconds, so only where it is wanted

        self.id = "tensorboard"
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def add(self, row: dict[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Weights & Biases; WANDB_MODE=offline keeps everything in RUN/wandb until `wandb sync`."""

    library: ClassVar[str] = "wandb"

    def __init__(self, out: Path, recipe: Recipe, step: int, known: str | None) -> None:
        import wandb

        self.id = known or secrets.token_hex(8)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        options = dict(project=project, name=out.resolve().name, dir=str(out), config=asdict(recipe))
        self.run = wandb.init(**options, id=self.id, resume="allow")
        # TRAP: wandb's own step never goes back, but a run killed between two checkpoints does.
        self.run.define_metric("*", step_metric="step")

    def add(self, row: dict[str, float]) -> None:
        self.run.log(row)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """MLflow's server at MLFLOW_TRACKING_URI; without one a database in RUN/mlflow, for `mlflow ui`."""

    library: ClassVar[str] = "mlflow"

    def __init__(self, out: Path, recipe: Recipe, step: int, known: str | None) -> None:
        from mlflow import MlflowClient

        (out / "mlflow").mkdir(exist_ok=True)
        home = (out / "mlflow").resolve()
        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db"))
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self.client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self.client.create_experiment(name)
            known = self.client.create_run(experiment, run_name=out.resolve().name).info.run_id
            for field, value in asdict(recipe).items():
                self.client.log_param(known, field, value)
        self.id = known
        self.client.update_run(known, status="RUNNING")

    def add(self, row: dict[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                self.client.log_metric(self.id, name, value, step=int(row["step"]))

    def close(self) -> None:
        self.client.set_terminated(self.id)


class Trackio:
    """trackio's local database (TRACKIO_DIR), for `trackio show`."""

    library: ClassVar[str] = "trackio"

    def __init__(self, out: Path, recipe: Recipe, step: int, known: str | None) -> None:
        import trackio

        self.id = known or f"{out.resolve().name}-{secrets.token_hex(4)}"  # runs are told apart by name
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        config = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(recipe).items()}
        self.run = trackio.init(project=project, name=self.id, resume="allow", config=config, embed=False)

    def add(self, row: dict[str, float]) -> None:
        values = {name: value for name, value in row.items() if name != "step"}
        self.run.log(values, step=int(row["step"]))

    def close(self) -> None:
        self.run.finish()


BOARDS: dict[str, type[Board]] = dict(tensorboard=TensorBoard, wandb=WandB, mlflow=MLflow, trackio=Trackio)


def check_boards(recipe: Recipe) -> None:
    """Raise ValueError if a library that `log_to` names is not installed: before the run, not after its first row."""
    missing = [name for name in recipe.log_to if find_spec(BOARDS[name].library) is None]
    if missing:
        there = [name for name in recipe.log_to if name not in missing] or ["tensorboard"]
        raise ValueError(
            f"log_to names {', '.join(missing)}, which is not installed: pip install {' '.join(missing)}, or "
            f"--log-to {' '.join(there)}"
        )


class Journal:
    """Recipe and history of a run: one JSON object a line, and the boards that the recipe names.

    machine  what the run computes on from this step on: a line of its own before the rows, {"machine": ...}
    A full disk or a board that fails costs rows, not the run. Raises ValueError if a board cannot be opened for a new
    run; a run that is continued goes on without it.
    """

    def __init__(self, out: Path, step: int, recipe: Recipe, machine: dict[str, Any] | None = None) -> None:
        self.path, self.lines = out / "history.jsonl", []
        self.boards: dict[str, Board] = {}
        if self.path.exists():
            found = read_lines(self.path)
            # A start whose steps were all lost is forgotten with them.
            self.lines = [x for x in found if (x["from"] < step if "machine" in x else x["step"] <= step)]
        if machine:
            self.lines.append({"machine": machine, "from": step})
        try:
            replace(out / "recipe.json", json.dumps(asdict(recipe), indent=2) + "\n")
        except OSError as error:
            self.excuse("recipe.json", error)
        self.rewrite()
        self.open(out, step, recipe)

    @property
    def rows(self) -> list[dict[str, float]]:
        return [line for line in self.lines if "machine" not in line]

    def rewrite(self) -> None:
        try:
            replace(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))
        except OSError as error:
            self.excuse("history", error)

    def withdraw(self, step: int, name: str) -> None:
        """Take back what a row says: a best checkpoint that could not be written."""
        for row in self.rows:
            if row["step"] == step:
                row.pop(name, None)
        self.rewrite()

    def open(self, out: Path, step: int, recipe: Recipe) -> None:
        """Open the boards; a continued run draws on in the curves that it had."""
        path = out / "boards.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        for name in recipe.log_to:
            try:
                self.boards[name] = BOARDS[name](out, recipe, step, known.get(name))
            except Exception as error:
                if not step and not isinstance(error, OSError):
                    raise ValueError(f"log_to {name}: {error}; mend it, or leave {name} out") from error
                self.excuse(name, error)
        try:
            replace(path, json.dumps(known | {name: board.id for name, board in self.boards.items()}) + "\n")
        except OSError as error:
            self.excuse("boards.json", error)

    def add(self, row: dict[str, float]) -> None:
        self.lines.append(row)
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            self.excuse("history", error)
        for name, board in list(self.boards.items()):
            try:
                board.add(row)
            except Exception as error:
                self.boards.pop(name)  # a server that is gone would be waited for at every row
                self.excuse(name, error)

    def close(self) -> None:
        for name, board in self.boards.items():
            try:
                board.close()
            except Exception as error:
                self.excuse(name, error)
        self.boards.clear()

    def excuse(self, what: str, error: Exception) -> None:
        rest = "" if what in ("history", "recipe.json", "boards.json") else "; history.jsonl has the rows"
        warnings.warn(f"{what} not written: {error}; training goes on{rest}", stacklevel=3)


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a history.jsonl: rows, and before those of each start what it computed on. Raises OSError."""
    return [found for line in path.read_text().splitlines() if line.strip() and (found := parse(line))]


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a history.jsonl. Raises OSError if it cannot be read."""
    return [line for line in read_lines(path) if "machine" not in line]


def read_machines(path: Path) -> list[dict[str, Any]]:
    """What a run was computed on, in turn, each named once. Raises OSError if it cannot be read."""
    found: list[dict[str, Any]] = []
    for line in read_lines(path):
        if "machine" in line and line["machine"] not in found:
            found.append(line["machine"])
    return found


def parse(line: str) -> dict[str, Any] | None:
    """A row of history, None for the half line of a process that was killed while it wrote."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
