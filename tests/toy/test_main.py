from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest
from PIL import Image

from toy_ijepa import __main__ as job
from toy_ijepa import data, probing, shapes
from toy_ijepa.data import EMBEDDED
from toy_ijepa.recipe import METHODS, SIZES, build, default_patch
from toy_ijepa.training import History
from toy_ijepa.verdict import NAMES, learned
from toy_ijepa.weights import load_encoder

SMALL = ["--batch", "8", "--labels", "40", "--patch", "4"]
TWINS = ["ijepa", "mae"]  # what the job trains when nobody chooses
OTHERS = [name for name in METHODS if name not in TWINS]


def run(*args, cwd, **options):
    command = [sys.executable, "-m", "toy_ijepa", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, **options)


def run_here(*args, cwd):
    """The job in this process: a new one takes seconds to import torch."""
    line, out, err = ["toy_ijepa", *map(str, args)], io.StringIO(), io.StringIO()
    told = patch.object(warnings, "formatwarning", warnings.formatwarning)  # the job sets its own: put back afterwards
    with chdir(cwd), patch.object(sys, "argv", line), told, redirect_stdout(out), redirect_stderr(err):
        try:
            code = job.main()
        except SystemExit as end:  # argparse
            code = end.code
    return subprocess.CompletedProcess(line, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module", autouse=True)
def short():
    """Less of what the job does beside its work: drawing 24,000 shapes, timing steps, comparing penalties."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(data, "SHAPES_COUNT", {"train": 400, "test": 100})
        monkeypatch.setattr(job, "TRIAL_STEPS", (1, 2))
        monkeypatch.setattr(probing, "PENALTIES", (1e-1, 1e-2))
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Arguments of a job on a few dozen small pictures of three classes, three steps long."""
    folder = tmp_path_factory.mktemp("small")
    for split, count in (("train", 60), ("test", 30)):
        drawn = shapes.generate(10 * count, seed=len(split), side=16)
        for i in (drawn.factors["shape"] < 3).nonzero().flatten()[:count].tolist():
            path = folder / split / list(shapes.CLASSES)[drawn.factors["shape"][i]] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawn.images[i].permute(1, 2, 0).numpy()).save(path)
    return ["--data", f"folder:{folder}", "--steps", "3", *SMALL]


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """One tiny run of I-JEPA and its twin with two seeds."""
    out = tmp_path_factory.mktemp("job") / "run"
    done = run_here(*small, "--seed", 0, 1, "--method", *TWINS, "--out", out, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    return out, done


def test_metrics_hold_what_the_table_needs(finished, small):
    out, done = finished
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["data"] == small[1]
    assert metrics["seconds"] > 0
    assert metrics["images_per_second"] > 0
    assert set(metrics["probes"]) == {"pixels", "pixels-pca", "random", *TWINS}
    for name in ("random", *TWINS):
        scores = metrics["probes"][name]
        values = [r["linear"] for r in scores["runs"]]
        assert scores["linear"] == pytest.approx(sum(values) / 2, abs=0.02)
        assert scores["spread"]["linear"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5, abs=0.02)
        assert f"{scores['knn']:.1f} +- {scores['spread']['knn']:.1f}" in done.stdout
    assert len(metrics["diagnostics"]["ijepa"]) == 2
    assert metrics["settings"]["steps"] == dict.fromkeys(TWINS, 3)
    assert metrics["pictures"] == dict(train=60, labelled=40, test=30)
    assert "--steps 3" in metrics["command"]


def test_every_stage_is_told_and_the_end_is_a_verdict(finished):
    """Whatever three steps have taught, the job says what its own numbers say, of each method."""
    out, done = finished
    for line in (
        r"reading folder:\S+ \.\.\. \d+ s",
        r"about [\d.]+ minutes of training .*ijepa 3 steps",
        r"best look of \d: step \d of 3 \(kNN on training pictures [\d.]+ %\), kept in encoder-best.safetensors",
        r"drawing \.\.\. \d+ s",
    ):
        assert re.search(line, done.stdout), done.stdout
    told = judged(out, done, TWINS)
    assert "Predicting features (I-JEPA) against predicting pixels (MAE)" in told
    assert "Next: " in told


def judged(out, done, methods):
    """Check that the job probed each method and drew the right conclusion; all that it said, on one line."""
    told, metrics = " ".join(done.stdout.split()), json.loads((out / "metrics.json").read_text())
    for name in methods:
        assert re.search(rf"probing {name} \.\.\. \d+ s", told)
        fails = not learned(metrics, name, None)
        assert (f"NOT A SUCCESS: {NAMES[name]} is no better than the random encoder" in told) == fails
        assert (f"{NAMES[name]} has learned" in told) != fails
    return told


@pytest.mark.slow  # quick: test_leaderboard's rows of MAE and SALT, test_targets' steps of every method
def test_every_other_method_goes_the_same_way(small, tmp_path):
    done = run_here(*small, "--method", *OTHERS, "--no-pixels", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{OTHERS[0]} 3 steps" in done.stdout
    judged(tmp_path / "run", done, OTHERS)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["probes"]) == {"random", *OTHERS}
    assert metrics["settings"]["steps"] == dict.fromkeys(OTHERS, 3)
    for name in OTHERS[1:]:
        assert load_encoder(tmp_path / "run" / f"{name}-seed0" / "encoder.safetensors").grid == (4, 4)


def test_figures_weights_and_history_are_there(finished):
    out, _ = finished
    for name in ("curves.png", "masks.png", "tsne.png", "imagination-ijepa.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
    with (out / "history.csv").open() as file:
        assert {"loss", "mean_loss", "knn", "lr", "momentum", "rank", "images_per_second"} <= set(
            next(csv.DictReader(file))
        )
    for name in ("encoder.safetensors", "encoder-best.safetensors"):
        assert load_encoder(out / name).config["width"] == SIZES["tiny"].width
    assert load_encoder(out / "mae-seed1" / "encoder.safetensors").grid == (4, 4)


def outcome(out):
    """What a run found, without what the clock says."""
    metrics = json.loads((out / "metrics.json").read_text())
    return (
        metrics["probes"],
        metrics["diagnostics"],
        [[t["loss"] for t in runs] for runs in metrics["training"].values()],
    )


@pytest.mark.slow  # quick: test_training's same_seed_same_loss_to_the_last_bit
def test_a_busy_machine_gives_the_same_table(small, tmp_path):
    """The same bits, while other programs keep every core busy."""
    args = [*small, "--no-pixels", "--method", "ijepa", "mae", "--out"]
    assert run(*args, "quiet", cwd=tmp_path).returncode == 0
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        assert run(*args, "busy", cwd=tmp_path).returncode == 0
    finally:
        for other in others:
            other.kill()
    assert outcome(tmp_path / "quiet") == outcome(tmp_path / "busy")


def test_without_photographs_the_embedded_set_steps_in_and_the_first_line_says_why(tmp_path):
    """IJEPA_WAIT is 0 in all tests: no server is asked."""
    args = ["--steps", 1, "--method", "ijepa", "--labels", 200, "--image-size", 16, "--patch", 4, "--no-pixels"]
    done = run_here(*args, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert first.startswith(f"pictures: the embedded {EMBEDDED}, because CIFAR-10 cannot be had here: no server had")
    assert "IJEPA_MIRROR" in first
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["data"] == EMBEDDED


def test_photographs_are_the_default_where_they_can_be_had(tmp_path, monkeypatch):
    for i in range(60):
        folder = tmp_path / "data" / "cifar10" / ("test" if i % 3 == 0 else "train") / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), 20 + 40 * (i % 2)).convert("RGB").save(folder / f"{i}.png")
    monkeypatch.setenv("IJEPA_DATA", str(tmp_path / "data"))
    done = run_here("--steps", 1, "--batch", 4, "--method", "ijepa", "--no-pixels", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pictures: CIFAR-10, photographs")
    assert "40 training, 20 test pictures of 16 px" in done.stdout
    told = " ".join(done.stdout.split())
    assert "1 steps instead of 1200" in told or "Yours agrees with it" in told


def test_a_set_that_is_mostly_broken_asks_first(tmp_path):
    for i in range(40):
        (tmp_path / "p").mkdir(exist_ok=True)
        Image.effect_noise((16, 16), 50).save(tmp_path / "p" / f"{i:02}.png")
    for i in range(0, 40, 4):
        (tmp_path / "p" / f"{i:02}.png").write_text("broken")
    args = ["--data", f"folder:{tmp_path / 'p'}", "--steps", 1, "--batch", 4, "--method", "ijepa"]
    done = run_here(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert "pictures cannot be read, more than 5%" in done.stderr
    assert not (tmp_path / "runs").exists()
    assert run_here(*args, "--no-pixels", "--allow-skipped", cwd=tmp_path).returncode == 0


def test_a_run_is_never_overwritten(finished, small):
    out, _ = finished
    before = (out / "metrics.json").read_bytes()
    again = run_here(*small, "--out", out, cwd=out.parent)
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
    assert "already holds a run" in again.stderr
    assert (out / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data", "cifar11"], "did you mean 'cifar10'"),
        (["--masks", "multi-block"], "did you mean 'multiblock'"),
        (["--method", "ijeppa"], "did you mean 'ijepa'"),
        (["--size", "tini"], "did you mean 'tiny'"),
        (["--image-size", "30", "--patch", "4"], "not a whole number of 4 px patches"),
        (["--image-size", "16", "--patch", "16"], "context patches on a 1x1 grid"),
        (["--data", "folder:nowhere"], "/nowhere: expected one that holds pictures"),
        (["--labels", "5"], "too few"),
        (["--steps", "0"], "too short"),
        (["--minutes", "nan"], "too short"),
        (["--seed", "0", "0"], "names one twice"),
        (["--seed", "-1"], "is not within"),
        (["--patch", "0"], "--patch 0 is not a positive number"),
        (["--method", "mae", "--image-size", "16", "--patch", "16"], "no target or no context"),
    ],
)
def test_a_mistake_costs_one_line_and_leaves_nothing(args, words, tmp_path):
    done = run_here(*([] if "--data" in args else ["--data", "shapes"]), *args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert ("reading" in done.stdout) == (args[0] in ("--data", "--labels")), "pictures are read only where they tell"
    assert not list(tmp_path.glob("runs/*"))


def test_pictures_without_classes_train_and_are_not_probed(tmp_path):
    (tmp_path / "p").mkdir()
    for i in range(40):
        Image.new("RGB", (16, 16), (6 * i, 0, 0)).save(tmp_path / "p" / f"{i}.png")
    done = run_here(
        "--data", f"folder:{tmp_path / 'p'}", "--steps", 2, "--method", "ijepa", "--out", "run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    before, _ = done.stdout.split("minutes of training")
    assert "warning: 100% of the pictures looked at are flat" in before
    assert re.search(r"warning: 0\.5 M parameters on \d+ pictures: \d+ a picture, where up to 2500 are", before)
    assert "nothing to probe" in done.stdout
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["probes"] == {}


def test_few_and_large_pictures_go_through(tmp_path):
    """Two classes, six test pictures, 224 px: probes, figures and valid JSON."""
    for i in range(30):
        (tmp_path / "p" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((224, 224), 20 + 40 * (i % 2)).save(tmp_path / "p" / "ab"[i % 2] / f"{i}.png")
    args = ["--steps", 1, "--batch", 2, "--method", "ijepa", "--out", "run"]
    done = run_here("--data", f"folder:{tmp_path / 'p'}", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert 0 <= metrics["probes"]["pixels"]["linear"] <= 100


def test_out_inside_the_pictures_is_refused(tmp_path):
    for i in range(10):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    done = run_here("--data", f"folder:{tmp_path}", "--patch", 1, "--out", tmp_path / "run", cwd=tmp_path)
    assert (done.returncode, (tmp_path / "run").exists()) == (2, False)
    assert "lies inside" in done.stderr


def test_ctrl_c_keeps_weights_and_history_and_says_where(small, tmp_path):
    args = [*small[:2], *SMALL, "--method", "ijepa", "--minutes", "5", "--out", "run"]
    command = [sys.executable, "-m", "toy_ijepa", *args]
    job = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in job.stderr:  # the progress bar: training has begun
        if "images/s" in line:
            break
    job.send_signal(signal.SIGINT)
    out, _ = job.communicate(timeout=120)
    assert job.returncode == 130
    assert "kept in run/encoder.safetensors" in out
    assert load_encoder(tmp_path / "run" / "encoder.safetensors").grid == (4, 4)
    again = run_here(*small, "--out", "run", cwd=tmp_path)
    assert "already holds a run" in again.stderr


def test_help_names_every_choice(tmp_path):
    text = " ".join(run_here("--help", cwd=tmp_path).stdout.split())
    for word in (*METHODS, *SIZES, "multiblock", "--minutes", "folder:PATH"):
        assert word in text


def test_224_px_with_16_px_patches(tmp_path):
    """The variant with the paper's 14x14 grid runs and its loss is finite at every row."""
    args = ["--image-size", 224, "--patch", 16, "--batch", 4, "--steps", 3, "--method", "ijepa", "--out", "run"]
    for i in range(30):
        (tmp_path / "p" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / "test").mkdir(exist_ok=True)
        Image.effect_noise((32, 32), 60).save(tmp_path / "p" / ("test" if i % 3 == 0 else "train") / f"{i}.png")
    done = run_here("--data", f"folder:{tmp_path / 'p'}", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_encoder(tmp_path / "run" / "encoder.safetensors").grid == (14, 14)
    with (tmp_path / "run" / "history.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 3
    assert all(map(math.isfinite, losses))


def test_default_patch_and_builds():
    assert [default_patch(s) for s in (32, 48, 64, 96, 224)] == [4, 4, 8, 8, 16]
    one, two = build("ijepa", "tiny", 32, 4, seed=5), build("mae", "tiny", 32, 4, seed=5)
    for a, b in zip(one.encoder.parameters(), two.encoder.parameters(), strict=True):
        assert a.equal(b)  # both methods start from the same encoder


def test_a_new_folder_for_every_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert job.fresh_folder(None, "cifar10") == Path("runs/cifar10-001")
    assert job.fresh_folder(None, "cifar10") == Path("runs/cifar10-002")
    assert job.fresh_folder(None, "folder:/a/b") == Path("runs/a-b-001")


def test_ctrl_c_during_the_forecast_ends_the_job(small, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(job, "fit", lambda *_, **how: asked.append(how) or History(ended="interrupted"))
    assert run_here(*small, "--method", "ijepa", "--out", "run", cwd=tmp_path).returncode == 130
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert asked == [dict(progress=False, rows=1)], "looking at the features at each step would double the forecast"
