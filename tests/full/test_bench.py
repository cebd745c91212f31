"""What a run costs: the benchmark takes the loop's own step."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from full_ijepa import bench


def test_the_step_of_a_recipe_is_timed(tmp_path, monkeypatch, capsys):
    out = tmp_path / "found.json"
    line = ["train", "--recipe", "smoke", "--micro-batch", "8", "--rounds", "2", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench", *line])
    assert bench.main() == 0
    found = json.loads(out.read_text())
    assert found["device"].startswith("CPU")
    assert 0 < found["share_of_matmul_rate"] < 1
    assert found["images_per_second"] > 0
    assert found["command"].endswith("--rounds 2 --recipe smoke --device cpu --micro-batch 8")
    assert "ijepa, ViT-toy/4, 32 px, batch 8" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["bench", "train", "--recipe", "smoke", "--rounds", "1", "--out", str(out)])
    assert bench.main() == 0
    found = json.loads(out.read_text())
    assert (found["batch"], found["micro_batch"]) == (64, 32)
    assert "--micro-batch" not in found["command"]


@pytest.mark.parametrize("side", [16, 96])
def test_reading_is_timed_and_turned_into_cores(tmp_path, monkeypatch, capsys, side):
    out = tmp_path / "read.json"
    line = ["read", "--side", str(side), "--count", "30", "--workers", "1", "--rounds", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench", *line])
    threads = torch.get_num_threads()
    try:
        assert bench.main() == 0
    finally:
        torch.set_num_threads(threads)
    found = json.loads(out.read_text())
    assert ("into memory" in found["images_per_second"]) == (side == 16)
    cores = found["images_per_core_second"]
    assert min(cores.values()) > 0
    assert f"{8000 / cores['decoded and cropped']:.1f}" in capsys.readouterr().out


def test_pictures_to_read_are_about_as_large_as_photographs(tmp_path):
    sizes = [path.stat().st_size for path in bench.draw_files(tmp_path / "files", 3, 224)]
    assert 90_000 < min(sizes) <= max(sizes) < 115_000
