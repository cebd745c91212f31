"""What a run computes on is said, and a GPU that is there is never passed over in silence."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from full_ijepa import loop, machine
from full_ijepa.__main__ import main
from full_ijepa.distributed import World, world
from full_ijepa.journal import read_lines, read_machines
from full_ijepa.loop import Loop
from full_ijepa.machine import OwnTime, form_of, gpu_here, name_of, peak, pick
from full_ijepa.recipes import RECIPES
from full_ijepa.train import Trainer, pretrain


@pytest.fixture
def system(monkeypatch):
    """Says what torch and the system find: system(usable=..., present=..., build=...)."""

    def set_up(usable=False, present=False, build="13.0", reason="The NVIDIA driver on your system is too old"):
        def refuse():
            raise RuntimeError(f"{reason} (found version 12020).\nMore text.")

        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
        monkeypatch.setattr(torch.cuda, "init", refuse)
        monkeypatch.setattr(torch.version, "cuda", build)
        monkeypatch.setattr(machine, "gpu_here", lambda: present)

    return set_up


def test_a_gpu_that_cannot_be_used_stops_the_run(system):
    system(present=True)
    with pytest.raises(ValueError, match=r"cannot use .*driver .* too old \(found version 12020\)\): .* --device cpu"):
        pick()
    assert pick("cpu") == "cpu"


def test_torch_without_cuda_is_a_choice(system):
    system(present=True, build=None)
    assert pick() == "cpu"
    assert name_of(torch.device("cpu")).endswith("an NVIDIA GPU unused: this torch is built without CUDA")
    system(present=False, build=None)
    assert "unused" not in name_of(torch.device("cpu"))


def test_torchrun_never_trains_on_a_cpu_unasked(system, monkeypatch):
    system()
    assert pick() == "cpu"
    with pytest.raises(ValueError, match=r"torchrun started this and torch .* finds no GPU .*say --device cpu"):
        pick(launched=True)
    assert pick("cpu", launched=True) == "cpu"
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="torchrun started this"), world():
        pass


def test_what_is_asked_for_is_taken_or_refused(system, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    system()
    with pytest.raises(ValueError, match=r"no GPU that torch can use here .*--device cpu"):
        pick("cuda")
    with pytest.raises(
        ValueError, match=r"unknown device 'mps': choose auto, cpu or cuda; Apple's GPU .mps. is refused"
    ):
        pick("mps")
    assert main(["pretrain", "smoke", "--device", "mps"]) == 2
    assert "Apple's GPU (mps) is refused" in capsys.readouterr().err
    system(usable=True, present=True)
    assert (pick(), pick("cuda"), pick("cpu")) == ("cuda", "cuda", "cpu")


def test_the_command_line_stops_before_it_writes(system, tmp_path, capsys):
    system(present=True)
    assert main(["pretrain", "smoke", "--out", str(tmp_path / "run")]) == loop.WRONG_INPUT
    assert "there is a GPU that torch" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_gpus_are_seen_where_torch_sees_none(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    answers = SimpleNamespace(returncode=0, stdout="GPU 0: NVIDIA L4 (UUID: GPU-1)\n")
    monkeypatch.setattr(machine, "Path", lambda name: tmp_path / name.lstrip("/"))
    monkeypatch.setattr(machine.subprocess, "run", lambda *_args, **_options: answers)
    assert gpu_here()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not gpu_here()  # hidden on purpose
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    answers.returncode = 9  # a container with the program and no GPU
    assert not gpu_here()
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert gpu_here()


@pytest.mark.parametrize(
    ("card", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA B200", 2250),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A10G", None),
        ("NVIDIA L40", None),
        ("Tesla T4", None),
    ],
)
def test_only_cards_that_are_known_have_a_peak(card, teraflops):
    assert peak(card) == (teraflops and pytest.approx(teraflops * 1e12))


def test_how_the_model_lies_in_the_processes():
    assert form_of("fsdp", 1, 0) == "one process"
    assert form_of("ddp", 8, 0) == "8 processes, ddp"
    assert form_of("fsdp", 8, 0) == form_of("fsdp", 8, 8) == "8 processes, fsdp"
    assert form_of("fsdp", 8, 2) == "8 processes, fsdp in 4 groups of 2"


def test_every_start_says_what_it_computes_on(tmp_path, recipe, monkeypatch, capsys):
    """On the screen and in the first line of history; a continued run says it again before its own rows."""
    recipe = recipe.replace(epochs=0.6, warmup_epochs=0.1, probe_epochs=0)
    with monkeypatch.context() as patch:
        take_step = Trainer.take_step

        def once(self, batches):
            if self.step == 2:
                raise KeyboardInterrupt
            return take_step(self, batches)

        patch.setattr(Trainer, "take_step", once)
        patch.setattr(Loop, "every", lambda self, epochs: 2)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, tmp_path / "run", progress=False)
    pretrain(recipe, tmp_path / "run", resume=True, progress=False)
    said = f"computing on: device CPU, {torch.get_num_threads()} threads; precision float32; "
    said += "attention fused without a gradient, plain products with one; "
    assert capsys.readouterr().err.count(f"{said}one process; torch {torch.__version__}\n") == 2
    lines = read_lines(tmp_path / "run" / "history.jsonl")
    assert [line.get("step", line.get("from")) for line in lines if "machine" in line] == [0, 2]
    assert [("machine" in line, line.get("step")) for line in lines[:4]] == [
        (True, None),
        (False, 1),
        (False, 2),
        (True, None),
    ]
    (found,) = read_machines(tmp_path / "run" / "history.jsonl")
    assert found.keys() == {"device", "precision", "attention", "processes", "torch"}


def test_mfu_is_said_of_a_known_card_and_of_no_other(tmp_path, recipe, monkeypatch, capsys):
    """The share that a step takes of the card's peak: images a second times FLOPs an image over it."""
    from full_ijepa import cost

    known = machine.describe
    recipe = recipe.replace(epochs=0.3, warmup_epochs=0.0, probe_epochs=0)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "describe", lambda *said: known(*said) | dict(peak_tflops=2.0))
        rows = pretrain(recipe, tmp_path / "known", progress=False).rows
    flops = cost.flops_per_image(recipe).model
    for row in rows:
        assert row["mfu"] == pytest.approx(row["images_per_second"] * flops / 2e12, rel=1e-3, abs=1e-8)
    assert "MFU relative to 2 TFLOP/s (dense bf16)" in capsys.readouterr().err
    assert not any("mfu" in row for row in pretrain(recipe, tmp_path / "other", progress=False).rows)


def test_only_a_card_has_a_peak(recipe, monkeypatch):
    """What a run on a GPU says, on a stand-in for one."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(machine, "attention_of", lambda *_args: "flash_attention")
    here = World(0, 8, torch.device("cuda", 0))
    found = machine.describe(recipe.replace(parallel="fsdp", shard_size=4), here, torch.bfloat16)
    assert machine.sentence(found) == (
        "device NVIDIA H100 80GB HBM3; precision bfloat16; attention flash_attention; 8 processes, fsdp in 2 groups of "
        f"4; torch {torch.__version__}; MFU relative to 989 TFLOP/s (dense bf16)"
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_kernel_of_attention_is_asked_for_with_the_shapes_of_the_recipe(name, monkeypatch):
    asked, recipe = [], RECIPES[name]
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda q, k, v: asked.append(q.shape) or 1)
    monkeypatch.setattr(torch, "empty", lambda *shape, device, dtype: torch.zeros(shape, dtype=dtype))
    monkeypatch.setattr(machine, "fits_kernel", lambda q: asked.append(q.shape) or True)
    width, _, heads = machine.SIZES[recipe.encoder]
    tokens = (recipe.sides[0] // recipe.patch) * (recipe.sides[1] // recipe.patch)
    found = machine.attention_of(recipe, torch.device("cuda"), torch.bfloat16)
    assert asked[0] == (1, heads, tokens, width // heads)
    if recipe.contexts == "packed" and recipe.method == "ijepa":
        assert asked[1] == (tokens, heads, width // heads)
        assert found == "flash_attention, varlen for packed contexts"
    else:
        assert found == "flash_attention"


def test_own_time_is_that_of_forward_passes(monkeypatch):
    clock = iter([10.0, 12.0, 20.0, 23.0, 30.0, 31.0])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    model = torch.nn.Linear(3, 2)
    own = OwnTime(model, torch.device("cpu"))
    model(torch.zeros(1, 3)), model(torch.zeros(1, 3))
    assert own.take() == 5.0
    model(torch.zeros(1, 3))
    assert own.take() == 1.0


def test_the_slowest_process_is_named(monkeypatch):
    """Three processes told of: the second one computes and waits for pictures longest."""
    told = [[1.0, 0.1, 2.0], [3.0, 0.5, 6.0], [2.0, 0.2, 4.0]]
    monkeypatch.setattr(World, "gather", lambda self, values: told)
    row = machine.row(World(0, 3, torch.device("cpu")), 1.0, 0.5, None)
    assert row == dict(memory_gb=3.0, waiting=0.5, slowest=1, slowest_ratio=1.5)


@pytest.fixture
def nccl(monkeypatch):
    """The third of eight processes on GPUs, pretended: what its world asked of torch."""
    import torch.distributed as dist

    asked = dict(left=0)
    monkeypatch.setattr(machine, "pick", lambda device, launched: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.update(gpu=device))
    monkeypatch.setattr(dist, "rendezvous", lambda *_args, timeout: iter([(dist.HashStore(), 3, 8)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: asked.update(backend=backend, **options))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: asked.update(left=asked["left"] + 1))
    monkeypatch.setattr(dist.distributed_c10d, "_set_pg_timeout", lambda limit: asked.update(timeout=limit))
    for name, value in dict(WORLD_SIZE="8", RANK="3", LOCAL_RANK="3").items():
        monkeypatch.setenv(name, value)
    return asked


def test_nccl_is_bound_to_its_gpu_and_waits_less_long_once_steps_begin(nccl):
    asked = nccl
    with world() as here:
        assert (asked["backend"], asked["device_id"], asked["gpu"]) == ("cpu:gloo,cuda:nccl", here.device, here.device)
        assert here.device == torch.device("cuda", 3)
        assert asked["timeout"].total_seconds() == 1800
        here.patience(loop.STEP)
        assert asked["timeout"].total_seconds() == 600
        assert here.round == 10
    assert World(0, 1, torch.device("cuda", 0)).round == World(0, 8, torch.device("cpu")).round == 1


def test_who_fails_on_a_gpu_waits_for_nobody(nccl):
    """Taking leave of NCCL waits for the others, who wait for this process: its error would never be told."""
    with world():
        pass
    assert nccl["left"] == 1
    with pytest.raises(ValueError, match="no folder"), world():
        raise ValueError("no folder")
    assert nccl["left"] == 1


LEAVING = """
import sys, time
import torch.distributed as dist
from full_ijepa.distributed import leave

class Slow:
    def __del__(self):
        time.sleep(60)

def main():
    print("said", end="")
    if sys.argv[1] == "raises":
        raise RuntimeError("something unforeseen")
    if sys.argv[1].startswith("interrupted"):
        raise KeyboardInterrupt
    if sys.argv[1] == "took leave":
        dist.destroy_process_group()
        Slow.__del__ = lambda self: print(", and took its time", end="")
    return 2

if sys.argv[1] != "interrupted alone":
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
keep = Slow()
leave(main)
"""


@pytest.mark.parametrize(
    ("how", "code", "out", "err"),
    [
        ("returns", 2, "said", ""),
        ("raises", 1, "said", "something unforeseen"),
        ("interrupted", 130, "said", "KeyboardInterrupt"),
        ("interrupted alone", 130, "said", "interrupted\n"),
        ("took leave", 2, "said, and took", ""),
    ],
)
def test_an_exit_code_is_told_at_once(how, code, out, err):
    done = subprocess.run([sys.executable, "-c", LEAVING, how], capture_output=True, text=True, timeout=50)
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith(out)
    assert err in done.stderr


def test_the_module_that_says_so_is_cheap_to_import():
    """`look` and `embed` ask it for a device: no training loop comes with it."""
    line = "import sys, full_ijepa.machine; print('full_ijepa.train' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], capture_output=True, text=True).stdout.strip() == "False"
