"""The door: what the README promises exists, and the pins agree."""

from __future__ import annotations

import functools
import operator
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def make(*args):
    return subprocess.run(["make", "-n", *args], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("toy", "-m toy_ijepa"),
        ("test", 'IJEPA_QUICK=1 .*-m pytest .*-m "not slow"'),
        ("test-all", "-m pytest(?!.*slow)"),
        ("lab", "jupyter lab"),
        ("classroom", "chapters/exercises/classroom.py"),
        ("lint", "ruff check"),
        ("bench", "-m toy_ijepa.bench"),
        ("help", "this list|grep"),
    ],
)
def test_targets(target, words):
    done = make(target)
    assert done.returncode == 0, done.stderr
    assert re.search(words, done.stdout)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_help_lists_every_target():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    for target in ("toy", "test", "test-all", "lab", "classroom", "lint", "bench", "help"):
        assert f"make {target} " in listed


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_set_up_again_only_when_the_dependencies_changed(tmp_path):
    """In a copy with a stand-in for uv: set up once, not again after an edit elsewhere, again after a new pin."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    stand_in = tmp_path / "uv"
    stand_in.write_text('#!/bin/sh\nmkdir -p .venv/bin\n[ "$1" = venv ] || echo set-up >> calls\n')
    stand_in.chmod(0o755)

    def calls():
        done = subprocess.run(["make", f"UV={stand_in}", ".venv/.ready"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return len((tmp_path / "calls").read_text().splitlines())

    assert calls() == 1
    (tmp_path / "pyproject.toml").write_text((tmp_path / "pyproject.toml").read_text() + "\n# a remark\n")
    assert calls() == 1
    (tmp_path / "constraints.txt").write_text("numpy==2.0.0\n")
    assert calls() == 2


def test_readme_names_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert "make toy" in text
    assert "make test" in text
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / path).exists(), path


def test_environment_has_the_pins_of_pyproject():
    text = (ROOT / "environment.yml").read_text()
    listed = {line.strip()[2:] for line in text.splitlines() if line.startswith("      - ")}
    assert listed - {"-e ."} == set(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])


def test_constraints_are_names_and_versions_and_within_the_pins():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.!+]+( ; .+)?", line), line
    exact = dict(line.split(" ;")[0].split("==") for line in lines)
    wanted = PROJECT["dependencies"] + functools.reduce(operator.iadd, PROJECT["optional-dependencies"].values(), [])
    for pin in wanted:
        name = re.match(r"[a-z0-9-]+", pin).group()
        assert name in exact, name
        if "==" in pin:
            assert exact[name] == pin.split("==")[1]


def test_arrows_run_one_way():
    for path in (ROOT / "toy_ijepa").glob("*.py"):
        assert "full_ijepa" not in path.read_text(), path.name
