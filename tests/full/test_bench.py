"""What a run costs: the benchmark takes the loop's own step."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from full_ijepa import bench, gpu
from full_ijepa.distributed import World
from full_ijepa.recipes import RECIPES


def test_the_step_of_a_recipe_is_timed(tmp_path, monkeypatch, capsys):
    out = tmp_path / "found.json"
    line = ["train", "--recipe", "smoke", "--micro-batch", "8", "--rounds", "2", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench", *line])
    assert bench.main() == 0
    found = json.loads(out.read_text())
    assert found["device"].startswith("CPU")
    assert 0 < found["share_of_matmul_rate"] < 1
    assert found["images_per_second"] > 0
    assert found["command"].startswith("python -m full_ijepa.bench train --recipe smoke --micro-batch 8")
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


@pytest.mark.slow  # quick: one question by itself, test_the_step_of_a_recipe_is_timed, and how failures are named
def test_one_gpu_is_asked_everything_within_minutes(tmp_path, monkeypatch, capsys):
    """Here on a CPU: what only a GPU can say is named, what does not fit the minutes too, nothing else is left out."""
    monkeypatch.setattr(gpu, "FIRST", 1)
    monkeypatch.setattr(gpu, "STEADY", 1)
    out = tmp_path / "gpu.json"
    line = ["gpu", "--device", "cpu", "--recipe", "smoke", "--large", "smoke", "--micro-batch", "4"]
    monkeypatch.setattr(sys, "argv", ["bench", *line, "--minutes", "0.9", "--out", str(out)])
    assert bench.main() == 0
    found = json.loads(out.read_text())
    assert found["4 images, groups, eager"]["images_per_second"] > 0
    assert 0 < found["4 images, groups, eager"]["share_of_matmul_rate"] < 1
    assert found["copy_gb"] > 0
    assert "minutes did not suffice" in found["4 images, packed, compiled"]["not_asked"]  # a compiler wants a minute
    asked = "synchronisations", "kernels, groups", "kernels, packed", "memory of toy, 4 images"
    for name in (*asked, "4 images, groups, eager, with cuDNN", "4 images, packed, eager, without cuDNN"):
        assert found[name]["not_asked"]
    assert found["4 images, packed, eager"]["images_per_second"] > 0
    assert found["watch"]["steps"] > 0
    assert [name for name, answer in found.items() if isinstance(answer, dict) and "failed" in answer] == []
    assert "4 images, groups, eager" in capsys.readouterr().out


def test_attention_asks_cudnn_as_the_question_says(monkeypatch):
    """Each time against what the recipe's set-up chose; all else is left as it was."""
    asked = []

    @contextmanager
    def idle(recipe, here):
        yield SimpleNamespace(take=lambda count: [1.0] * count, run_ahead=lambda count: 1.0)

    monkeypatch.setattr(gpu, "fresh", idle)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", asked.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    smoke, there = RECIPES["smoke"], World(0, 1, torch.device("cuda"))
    found = {}
    for name, answer in gpu.questions(smoke, smoke, there, dict(matmul=1e12)):
        if "images, " in name and "memory" not in name:
            asked.clear()
            answer()
            found[name] = list(asked)
    size = smoke.micro_batch
    assert found.pop(f"{size} images, groups, eager, with cuDNN") == [True]
    assert found.pop(f"{size} images, packed, eager, without cuDNN") == [False]
    assert len(found) == 8
    assert not any(found.values())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("no kernel for this\nand more"), "RuntimeError: no kernel for this"),
        (AssertionError(), "AssertionError: "),
        (KeyError("kernel"), "KeyError: 'kernel'"),
    ],
)
def test_an_answer_that_fails_is_named_and_the_next_is_asked(monkeypatch, error, told):
    def broken():
        raise error

    monkeypatch.setattr(gpu, "questions", lambda *_: iter([("one", broken), ("two", lambda: dict(well=1.0))]))
    kept = []
    here = World(0, 1, torch.device("cpu"))
    found = gpu.ask(1, RECIPES["smoke"], RECIPES["smoke"], here, lambda found: kept.append(dict(found)))
    assert found["one"]["failed"] == told
    assert found["two"]["well"] == 1.0
    assert "matmul_tflops" in kept[0]
    assert [list(one) for one in kept[:2]] == [[*other][:-1] for other in kept[1:]]  # nothing that was found is lost


def test_kernels_are_counted_once_and_idle_is_of_the_step_that_nobody_watched():
    def event(name, microseconds, device="CUDA", annotation=False):
        time = SimpleNamespace(elapsed_us=lambda: microseconds)
        kind = getattr(torch.autograd.DeviceType, device)
        return SimpleNamespace(name=name, time_range=time, device_type=kind, is_user_annotation=annotation)

    seen = [event("gemm", 300.0), event("gemm", 100.0), event("adam", 50.0), event("Memcpy HtoD", 50.0)]
    seen += [event("Optimizer.step", 50.0, annotation=True), event("aten::mm", 900.0, "CPU")]
    found = gpu.tally(seen, 1e-3)
    assert (found["count"], found["copies"]) == (3, 1)
    assert found["seconds"] == pytest.approx(5e-4)
    assert found["idle"] == pytest.approx(0.5)
    assert found["longest"] == pytest.approx({"gemm": 0.4, "adam": 0.05, "Memcpy HtoD": 0.05})


def test_the_profiler_keeps_what_it_saw_of_the_second_step():
    sizes = iter((3, 5))

    def step():
        torch.ones(size := next(sizes), size) @ torch.ones(size, size)

    names = [event.name for event in gpu.second(step, torch.profiler.ProfilerActivity.CPU)]
    assert names.count("aten::mm") == 1


def test_only_what_is_called_compiled_is():
    """The minutes are shared out by the name."""
    compiled = []

    def asked(recipe, *_):
        compiled.append(recipe.compile)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        for name in ("speed", "kernels", "synchronisations", "watching", "held"):
            patch.setattr(gpu, name, asked)
        large = RECIPES["imagenet_vith14"]
        assert large.compile
        every = gpu.questions(RECIPES["stl10_vitb16"], large, None, dict(matmul=1.0))
        names = [name for name, answer in every if answer() == {}]
    assert compiled == ["compiled" in name for name in names]
    memory = [place for place, name in enumerate(names) if name.startswith("memory of h")]
    assert len(memory) == 2
    assert max(memory) < len(names) - 4, "what takes longest comes last"
