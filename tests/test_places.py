"""Other places to run the course: what their files name exists, and agrees with the pins."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = re.search(r"- python=([\d.]+)", (ROOT / "environment.yml").read_text())[1]
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.fixture
def container() -> dict:
    return json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())


def targets_of(command: str) -> list[str]:
    return re.findall(r"\bmake ([a-z]+)", command)


def test_one_python_everywhere(container):
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert wanted == f">={PYTHON}"
    assert re.search(r"python:([\d.]+)-", container["image"])[1] == PYTHON
    assert f"- python={PYTHON}\n" in (ROOT / "binder/environment.yml").read_text()


def test_dev_container_sets_up_with_a_target_that_exists(container):
    asked = [target for command in container["postCreateCommand"].values() for target in targets_of(command)]
    assert asked == ["setup"]
    assert set(asked) <= set(TARGETS)
    assert container["containerEnv"]["TORCH"] == "cpu"  # the Makefile reads it


def test_dev_container_names_the_environment_that_the_makefile_makes(container):
    venv = re.search(r"^VENV \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    settings = container["customizations"]["vscode"]["settings"]
    assert settings["python.defaultInterpreterPath"].endswith(f"/{venv}/bin/python")


def test_binder_lists_no_pins_of_its_own():
    """repo2docker takes binder/ alone; pins there would be a third copy, so Make installs those of pyproject.toml."""
    text = (ROOT / "binder/environment.yml").read_text()
    assert re.findall(r"^ +- (.+)$", text, re.MULTILINE) == ["conda-forge", f"python={PYTHON}", "pip"]


def test_binder_sets_up_where_jupyter_starts():
    script = ROOT / "binder/postBuild"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!")
    assert targets_of(text) == ["setup"]
    assert "setup" in TARGETS
    assert 'TORCH=cpu VENV="$NB_PYTHON_PREFIX"' in text


def test_the_book_is_published_as_it_is_built_here():
    text = (ROOT / ".github/workflows/book.yml").read_text()
    assert targets_of(text) == ["book"]
    assert "book" in TARGETS
    assert f'python-version: "{PYTHON}"' in text
    assert "          path: site\n" in text
