"""Ablations: every variant builds and takes a step; the file says what was run."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch

from toy_ijepa import ablation, probing
from toy_ijepa.ablation import MEASURED, ONLINE, VARIANTS, build, main


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_takes_a_step(name, generator):
    model = build(3, **VARIANTS[name])
    loss = model.step_loss(torch.randn(4, 3, 32, 32, generator=generator), generator)
    loss.backward()
    assert loss.isfinite()
    moved = [n for n, p in model.named_parameters() if p.grad is not None and n.startswith("target.")]
    assert not moved, "the target gets no gradient of its own"
    model.after_step(0.5)


def test_without_stop_gradient_both_sides_are_one_encoder():
    model = build(3, **VARIANTS["no stop-gradient"])
    assert model.target is model.encoder
    assert build(3).target is not build(3).encoder


def test_writes_mean_and_spread_of_every_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "load", lambda name, split: tiny(split))
    monkeypatch.setattr(probing, "PENALTIES", (1e-1, 1e-2))  # two to compare, where four take twice as long
    out = tmp_path / "found.json"
    line = ["ablation", "--steps", "2", "--seed", "0", "1", "--labels", "60"]
    line += ["--only", "predictor: 1 deep", "momentum: 1", "no stop-gradient"]
    monkeypatch.setattr(sys, "argv", [*line, "--out", str(out)])
    assert main() == 0
    found = json.loads(out.read_text())
    assert set(found["variants"]) == {"random encoder", "predictor: 1 deep", "momentum: 1", "no stop-gradient"}
    row = found["variants"]["predictor: 1 deep"]
    assert len(row["runs"]) == 2
    assert row["knn"] == pytest.approx(sum(r["knn"] for r in row["runs"]) / 2, abs=6e-3)
    assert "--steps 2" in found["command"]
    frozen, alone = (found["variants"][name]["runs"][0] for name in ("momentum: 1", "no stop-gradient"))
    untrained = found["variants"]["random encoder"]["runs"][0]
    assert [frozen[n] for n in MEASURED] == [untrained[n] for n in MEASURED], "a frozen target stays the random encoder"
    assert [frozen[n] for n in ONLINE] != [frozen[n] for n in MEASURED], "the encoder that learned is judged as well"
    assert [alone[n] for n in ONLINE] == [alone[n] for n in MEASURED], "without stop-gradient there is one encoder"
    told = capsys.readouterr().out.splitlines()
    assert [" over " in line for line in told] == [False, False, True, True]  # the untrained one, the first, the others
    assert re.search(r"over predictor: 1 deep: linear [+-][\d.]+ ± [\d.]+, knn", told[2])


def test_an_unknown_variant_is_named_with_the_near_miss(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablation", "--only", "momentum:0", "--out", str(tmp_path / "x.json")])
    assert main() == 2
    assert "did you mean 'momentum: 0'" in capsys.readouterr().err


def tiny(split):
    from toy_ijepa import shapes
    from toy_ijepa.folders import ImageSet

    drawn = shapes.generate(80, seed=len(split))
    return ImageSet(drawn.images, drawn.factors["shape"], tuple(shapes.CLASSES))
