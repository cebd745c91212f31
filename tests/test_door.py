"""The door: what the README promises exists, and the pins agree."""

from __future__ import annotations

import functools
import importlib
import operator
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from full_ijepa.journal import BOARDS

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
        ("book", "-m sphinx .*-W .*-c book .* site\n"),
        ("lint", "ruff check"),
        ("setup", "pip install"),
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
    for target in ("setup", "toy", "test", "test-all", "lab", "classroom", "book", "lint", "bench", "help"):
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
        command = ["make", f"UV={stand_in}", "VENV=.venv", "TORCH=", ".venv/.ready"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return len((tmp_path / "calls").read_text().splitlines())

    assert calls() == 1
    (tmp_path / "pyproject.toml").write_text((tmp_path / "pyproject.toml").read_text() + "\n# a remark\n")
    assert calls() == 1
    (tmp_path / "constraints.txt").write_text("numpy==2.0.0\n")
    assert calls() == 2


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_what_python_compiles_is_kept(tmp_path, monkeypatch):
    """Otherwise every kernel and process of the tests compiles torch again."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    stand_in = tmp_path / ".venv" / "bin" / "python"
    stand_in.write_text('#!/bin/sh\necho "forbidden: ${PYTHONDONTWRITEBYTECODE-no}"\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    command = ["make", "UV=true", "VENV=.venv", "TORCH=", "test"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "forbidden: no" in done.stdout, done.stdout + done.stderr


# Stands in for uv and for python: notes how it was called, and fails at what `missing` names.
STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> calls
case "$*" in
  "venv "*|"-m venv "*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  *"pip install"*" uv") grep -q uv missing && exit 1; cp "$0" .venv/bin/uv ;;
  *"--torch-backend cpu"*) ! grep -q index missing ;;
esac
"""
ASKED = "uv pip install .*--torch-backend cpu --dry-run .*torch torchvision"
CPU, PLAIN = "uv pip install .*--torch-backend cpu .*--editable .*", "pip install (?!.*torch-backend).*--editable .*"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("tool", "torch", "missing", "wanted"),
    [
        ("uv", "", "", ["uv " + PLAIN]),
        ("uv", "cpu", "", [ASKED, CPU]),
        ("uv", "cpu", "index", [ASKED, "uv " + PLAIN]),
        ("python", "", "", ["python -m " + PLAIN]),
        ("python", "cpu", "", ["python -m pip install .*uv", ASKED, CPU]),
        ("python", "cpu", "index", ["python -m pip install .*uv", ASKED, "python -m " + PLAIN]),
        ("python", "cpu", "uv", ["python -m pip install .*uv", "python -m " + PLAIN]),
    ],
)
def test_the_cpu_build_of_torch_is_asked_for_and_may_be_missing(tmp_path, tool, torch, missing, wanted):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    stand_in = tmp_path / tool
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    (tmp_path / "missing").write_text(missing)
    uv, python = (stand_in, "python3") if tool == "uv" else ("", stand_in)
    command = ["make", f"UV={uv}", f"PYTHON={python}", "VENV=.venv", f"TORCH={torch}", "setup"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = [line for line in (tmp_path / "calls").read_text().splitlines() if "pip install" in line]
    assert len(calls) == len(wanted), calls
    for call, pattern in zip(calls, wanted, strict=True):
        assert re.fullmatch(pattern, call), call
    assert ("cannot be had from here" in done.stdout) == bool(missing)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_an_unknown_build_of_torch_is_refused():
    done = make("TORCH=gpu", "toy")
    assert done.returncode == 2
    assert "TORCH=gpu is not known; say TORCH=cpu" in done.stderr


def test_readme_names_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert "make toy" in text
    assert "make test" in text
    for page in (ROOT / "README.md", ROOT / "full_ijepa" / "README.md"):
        for path in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / path).exists(), path


def test_environment_has_the_pins_of_pyproject():
    text = (ROOT / "environment.yml").read_text()
    listed = {line.strip()[2:] for line in text.splitlines() if line.startswith("      - ")}
    assert listed - {"-e ."} == set(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])


def test_constraints_are_names_and_versions_and_within_the_pins():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.!+]+( ; .+)?", line), line
    exact = dict(line.split(" ;")[0].split("==") for line in lines)
    # The boards of full_ijepa/journal.py are left out: two of them want an older pillow than everything else here.
    extras = [pins for name, pins in PROJECT["optional-dependencies"].items() if name not in BOARDS]
    wanted = PROJECT["dependencies"] + functools.reduce(operator.iadd, extras, [])
    for pin in wanted:
        name = re.match(r"[a-z0-9-]+", pin).group()
        assert name in exact, name
        if "==" in pin:
            assert exact[name] == pin.split("==")[1]


def test_arrows_run_one_way():
    for path in (ROOT / "toy_ijepa").glob("*.py"):
        assert "full_ijepa" not in path.read_text(), path.name


@pytest.mark.parametrize(
    "module",
    [f"toy_ijepa.{name}" for name in ("__main__", "ablation", "bench", "leaderboard")]
    + ["full_ijepa.__main__", "full_ijepa.bench"],
)
def test_every_command_has_a_help_text(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["it", "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main()
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out
