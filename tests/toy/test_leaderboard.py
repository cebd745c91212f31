"""A row of the leaderboard, from the course's methods and from a reader's file; the table that is kept."""

import json
import re
import sys
from functools import partial
from unittest.mock import patch

import pytest
from PIL import Image

from toy_ijepa import leaderboard, shapes
from toy_ijepa.recipe import SIZES
from toy_ijepa.verdict import RESULTS

OWN = """
import torch
from torch import nn
from toy_ijepa.encoder import Encoder

CONFIG = dict(steps=2, batch=8, lr=1e-3)

class Flat(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.probed_after = encoder, []

    @property
    def probed(self):
        return self.encoder

    def step_loss(self, images, generator=None):
        return self.encoder(images).var(0).mean()

    def after_step(self, progress):
        return 0.0

def build(seed):
    torch.manual_seed(seed)
    return Flat(Encoder(32, 8, 24, 2, 2))
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 60), ("test", 30)):
        drawn = shapes.generate(count, seed=len(split))
        for i, image in enumerate(drawn.images):
            path = folder / split / f"kind{i % 3}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return f"folder:{folder}"


@pytest.fixture(autouse=True)
def few_plain_steps(monkeypatch):
    """Two steps of the plain I-JEPA are timed, not thirty."""
    monkeypatch.setattr(leaderboard, "plain_step", partial(leaderboard.plain_step, steps=2))


def board(*args):
    with patch.object(sys, "argv", ["leaderboard", *map(str, args)]):
        return leaderboard.main()


@pytest.mark.parametrize("method", ["mae", "salt", "own"])
def test_a_row_with_its_command_costs_and_every_seed(method, pictures, tmp_path, capsys):
    if method == "own":
        (tmp_path / "flat.py").write_text(OWN)
    asked = tmp_path / "flat.py" if method == "own" else method
    length = () if method == "own" else ("--steps", 2)
    out = tmp_path / "row.json"
    assert board(asked, *length, "--seed", 3, 4, "--data", pictures, "--out", out, "--by", "us") == 0
    entry = json.loads(out.read_text())
    assert [run["steps"] for run in entry["training"]] == [2, 2]
    assert len(entry["probes"]["runs"]) == 2
    assert {"linear_10each", "linear_last4_10each"} <= entry["probes"].keys()
    assert entry["settings"]["batch"] == (8 if method == "own" else 64)
    assert "--seed 3 4" in entry["command"]
    told = capsys.readouterr().out
    assert f"| {'flat' if method == 'own' else method} | {entry['probes']['linear']:.1f} ± " in told
    assert told.count("seed 3:") == told.count("seed 4:") == 1
    assert board(asked, "--out", out, "--data", pictures) == 2  # nothing is overwritten


def test_settings_are_chosen_without_the_test_pictures(pictures, tmp_path, capsys, monkeypatch):
    opened, judged = [], []
    load, probe = leaderboard.load, leaderboard.probe_encoder
    monkeypatch.setattr(leaderboard, "load", lambda name, split: opened.append(split) or load(name, split))
    monkeypatch.setattr(leaderboard, "probe_encoder", lambda e, d, seed: judged.append(d) or probe(e, d, seed))
    monkeypatch.chdir(tmp_path)
    assert board("mae", "--steps", 1, "--seed", 0, "--data", pictures, "--held-out") == 0
    assert opened == ["train"]
    learned, held = ({image.numpy().tobytes() for image in part.images} for part in judged[0])
    assert (len(learned), len(held), len(learned & held)) == (54, 6, 0)
    entry = json.loads((tmp_path / "held-out-mae.json").read_text())
    assert entry["data"].endswith("held out")
    assert not list(tmp_path.glob("leaderboard-*")), "no row of the table"


def test_sizes_are_those_of_the_course():
    for name, size in SIZES.items():
        assert leaderboard.built("mae", name, seed=0).probed.config["width"] == size.width


def test_a_size_is_not_for_a_method_of_ones_own(tmp_path, capsys):
    (tmp_path / "flat.py").write_text(OWN)
    assert board(tmp_path / "flat.py", "--size", "small", "--out", tmp_path / "row.json") == 2
    assert "--size is for the course's methods" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(RESULTS.parent.glob("leaderboard/*.py")), ids=lambda path: path.stem)
def test_our_files_build_what_their_rows_say(path):
    """The encoder's size and the settings of a row are those of the file that its command names."""
    build, given = leaderboard.own(path)
    encoder = build(seed=0).probed
    entries = [entry for entry in leaderboard.stored() if path.name in entry["command"]]
    assert entries
    for entry in entries:
        assert sum(p.numel() for p in encoder.parameters()) == entry["parameters"]
        assert given.items() <= entry["settings"].items()


def test_what_build_does_counts(pictures, tmp_path):
    """Else a file could train before its training."""
    busy = "    end = time.process_time() + 1\n    while time.process_time() < end:\n        pass\n"
    (tmp_path / "busy.py").write_text("import time\n" + OWN.replace("def build(seed):\n", "def build(seed):\n" + busy))
    out = tmp_path / "row.json"
    assert board(tmp_path / "busy.py", "--seed", 0, "--data", pictures, "--out", out) == 0
    (run,) = json.loads(out.read_text())["training"]
    assert run["cpu_seconds"] >= 1


def test_over_the_budget_there_is_no_row_and_nothing_is_lost(pictures, tmp_path, capsys, monkeypatch):
    """It ends with the first seed that is over, whose scores are kept under another name."""
    monkeypatch.setattr(leaderboard, "BUDGET", 0.001)
    assert board("mae", "--steps", 2, "--seed", 0, 1, "--data", pictures, "--out", tmp_path / "row.json") == 2
    assert "over the budget" in capsys.readouterr().err
    assert not (tmp_path / "row.json").exists()
    assert len(json.loads((tmp_path / "over-budget-row.json").read_text())["probes"]["runs"]) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no file .*choose from ijepa"),
        ("CONFIG = {}", r"no function build\(seed\)"),
        (OWN.replace("lr=", "rate="), "no use for rate"),
    ],
)
def test_what_is_no_method_is_said(text, words, tmp_path, capsys):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    assert board(path) == 2
    assert re.search(words, capsys.readouterr().err)


def test_the_kept_table_is_what_the_entries_say():
    entries = leaderboard.stored()
    assert entries
    assert leaderboard.TABLE.read_text() == leaderboard.table(entries)
    for entry in entries:
        assert entry["data"] == "cifar10"
        assert len(entry["probes"]["runs"]) == 3
        assert max(run["cpu_seconds"] for run in entry["training"]) <= leaderboard.BUDGET
