"""Folders as people have them, each from a look to features that are loaded elsewhere, on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from full_ijepa.__main__ import main
from full_ijepa.embedding import Features, embed, load_encoder
from full_ijepa.evaluate.run import load_run

SHORT = "--encoder toy --patch 4 --predictor-width 32 --predictor-depth 1 --predictor-heads 2 --groups 2 --batch 8"
SHORT += " --micro-batch 8 --epochs 4 --warmup-epochs 0.5 --momentum 0.9 1.0 --probe-epochs 1 --log-every 2"
SHORT += " --precision fp32 --workers 0"
PICTURES = 48


def microscopy(root) -> list[str]:
    """Grey, 12 bits in 16, of mixed sizes; four pictures a patient; the brighter ones are of the second grade."""
    lines = ["image,grade,patient"]
    for n in range(PICTURES):
        random, bright = np.random.default_rng(n), n // 4 % 2
        size = (int(random.integers(18, 40)), int(random.integers(18, 40)))
        values = random.integers(900, 1200 + 300 * bright, size).astype(np.uint16)
        Image.fromarray(values).save(root / f"{n:02}.png")
        lines.append(f"{n:02}.png,{('low', 'high')[bright]},{n // 4}")
    (root / "labels.csv").write_text("\n".join(lines))
    return ["--labels", str(root / "labels.csv"), "--label-column", "grade", "--group-column", "patient"]


def channels(root) -> list[str]:
    """Five channels in TIFF, in class folders."""
    for n in range(PICTURES):
        values = np.random.default_rng(n).integers(100, 4000, (5, 16, 16)).astype(np.uint16)
        values[3] //= 1 + n % 2
        (root / "ab"[n % 2]).mkdir(exist_ok=True)
        tifffile.imwrite(root / "ab"[n % 2] / f"{n:02}.tif", values, photometric="minisblack")
    return []


def strips(root) -> list[str]:
    """Wide and coloured, several tags at once, in columns."""
    lines = ["image,red,striped"]
    for n in range(PICTURES):
        picture = np.random.default_rng(n).integers(0, 120, (12, 60, 3)).astype(np.uint8)
        picture[..., 0] += 100 * (n % 2)
        picture[:, ::6] //= 1 + n // 2 % 2
        Image.fromarray(picture).save(root / f"{n:02}.png")
        lines.append(f"{n:02}.png,{n % 2},{n // 2 % 2}")
    (root / "labels.csv").write_text("\n".join(lines))
    return ["--labels", str(root / "labels.csv"), "--label-column", "red", "striped"]


def numbers(root) -> list[str]:
    """Floats in numpy files; the number to predict is their mean."""
    lines = ["path,dose"]
    for n in range(PICTURES):
        values = np.random.default_rng(n).normal(n / 4 - 6, 2, (16, 16)).astype(np.float32)
        np.save(root / f"{n:02}.npy", values)
        lines.append(f"{n:02}.npy,{values.mean():.3f}")
    (root / "labels.csv").write_text("\n".join(lines))
    return ["--labels", str(root / "labels.csv"), "--label-column", "dose"]


KINDS = {
    microscopy: (["16"], (1, "uint16"), "accuracy", "1 channel of uint16"),
    channels: (["16"], (5, "uint16"), "accuracy", "5 channels of uint16"),
    strips: (["12", "48"], (3, "uint8"), "auroc", "12 x 60 px"),
    numbers: (["16"], (1, "float32"), "r2", "1 channel of float32"),
}


# In the quick suite chapter 11 goes this way but for the look; that and what each kind has of its own is in test_look,
# test_pixels and test_labels.
@pytest.mark.slow
@pytest.mark.parametrize("made", KINDS, ids=lambda made: made.__name__)
def test_from_a_look_to_features_elsewhere(tmp_path, capsys, made):
    sides, depth, measure, looks = KINDS[made]
    root, run = tmp_path / "pictures", tmp_path / "run"
    root.mkdir()
    table = made(root)
    data = f"folder:{root}"
    assert main(["look", data, *table, "--out", str(tmp_path / "look.html")]) == 0
    said = capsys.readouterr().out
    assert looks in said
    assert (" --labels " in said) == bool(table), "the run that is advised keeps the table's test part apart"
    assert ("groups to train on" in said) == (made is microscopy)
    assert "python -m full_ijepa pretrain" in said
    line = ["pretrain", "smoke", "--data", data, "--out", str(run), "--image-size", *sides, *SHORT.split(), *table]
    assert main(line) == 0
    recipe, method, _ = load_run(run)
    assert (recipe.channels, recipe.depth) == depth
    assert main(["evaluate", str(run), "--protocols", "knn", "linear", "--seeds", "0", "1"]) == 0
    judged = json.loads((run / "evaluation.json").read_text())
    assert set(judged["protocols"]["linear"]) == {"ijepa", "random", "pixels"}
    assert judged["protocols"]["linear"]["ijepa"]["spread"][measure] is not None
    assert main(["doctor", str(run)]) == 0
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Imagination" in page
    assert "t-SNE" in page
    index = tmp_path / "features.parquet"
    assert main(["embed", str(run), str(root), "--out", str(index), "--device", "cpu"]) == 0
    found = Features.read(index)
    assert found.values.shape == (PICTURES, 96)
    assert torch.isfinite(found.values).all()
    to, name = ("onnx", "encoder.onnx") if made is strips else ("huggingface", "huggingface")
    assert main(["export", str(run), "--to", to]) == 0
    if made is strips:  # what Hugging Face's square model cannot be, it refuses, and a graph can
        assert (run / name).exists()
        capsys.readouterr()
        assert main(["export", str(run)]) == 2
        assert "square" in capsys.readouterr().err
    else:
        again = embed(load_encoder(run / name), root, device="cpu", progress=False)
        assert again.names == found.names
        assert torch.allclose(again.values, found.values, atol=1e-4)
    assert method.encoder.pixels == load_encoder(run).pixels
