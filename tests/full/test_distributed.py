"""Several processes on one machine, over gloo: the same loss as one, and a dead one comes back."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from full_ijepa import checkpoint
from full_ijepa.__main__ import main
from full_ijepa.data import opened, plan
from full_ijepa.distributed import World
from full_ijepa.recipes.base import Recipe
from tests.full.conftest import draw_pictures
from tests.full.test_train import arguments, environment, final, losses

MODULE = ["-m", "full_ijepa", "pretrain", "smoke", "--device", "cpu"]


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options, *MODULE]


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, pictures):
    """The flags of the tests' run, and where one process, this one, trained them."""
    flags = [*arguments(Recipe(data=f"folder:{pictures}")), "--optimiser", "adamw"]
    return flags, trained(tmp_path_factory.mktemp("alone") / "run", flags)


@pytest.fixture(scope="module")
def in_parts(tmp_path_factory, alone):
    """The same in micro-batches of two pictures, so that four processes have one each."""
    flags = [*alone[0], "--micro-batch", "2"]
    return flags, trained(tmp_path_factory.mktemp("parts") / "run", flags)


def trained(out: Path, flags: list[str]) -> Path:
    assert main([*MODULE[2:], *flags, "--out", str(out)]) == 0
    return out


def close(a: Path, b: Path) -> None:
    assert losses(a) == pytest.approx(losses(b), abs=1e-6)
    one, other = final(a), final(b)
    assert one.keys() == other.keys()
    for name, x in one.items():
        there = torch.ones(len(x) if x.ndim else 1, dtype=torch.bool)
        if "qkv.bias" in name and x.ndim:
            # The loss does not depend on the keys' bias: its gradient is rounding, which Adam makes steps of.
            there.view(3, -1)[1] = False
        assert torch.allclose(
            x.reshape(len(there), -1)[there], other[name].reshape(len(there), -1)[there], atol=1e-5
        ), name


@pytest.mark.parametrize(("rank", "local", "before"), [(0, 0, 0), (4, 0, 1), (1, 1, 2), (5, 1, 2)])
def test_the_leader_goes_first_then_one_of_each_machine(monkeypatch, rank, local, before):
    """Everybody waits as often, two times: some before the body, some after."""
    waited = []
    monkeypatch.setattr(World, "barrier", lambda self: waited.append(1))
    with World(rank, 8, torch.device("cpu"), local).leader_first():
        assert len(waited) == before
    assert len(waited) == 2


# Each launch imports torch in three processes or more. In the quick suite chapter 9 lets two processes train as one;
# that a run goes on after a stop is there in one process (test_train.py).
@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_give_the_loss_of_one(tmp_path, alone, parallel):
    flags, single = alone
    line = [*torchrun("--standalone", "--nproc-per-node", "2"), *flags, "--out", str(tmp_path / "run")]
    line += ["--parallel", parallel, "--probe-epochs", "1"]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    close(tmp_path / "run", single)


@pytest.mark.slow
def test_packed_contexts_give_the_loss_of_one(tmp_path, alone):
    flags = [*alone[0], "--contexts", "packed", "--micro-batch", "2"]
    trained(tmp_path / "one", flags)
    for parallel, count in (("ddp", "4"), ("fsdp", "2")):
        out = tmp_path / parallel
        line = [*torchrun("--standalone", "--nproc-per-node", count), *flags, "--parallel", parallel, "--out", str(out)]
        done = subprocess.run(line, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        close(out, tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize(("count", "more"), [(4, []), (4, ["--shard-size", "2"]), (2, ["--shard-size", "1"])])
def test_groups_that_share_a_copy_give_the_loss_of_one(tmp_path, in_parts, count, more):
    """Four processes share one copy, two groups of two share one each, and two processes have one each (HSDP)."""
    flags, single = in_parts
    out = tmp_path / "run"
    line = [*torchrun("--standalone", "--nproc-per-node", str(count)), *flags, "--out", str(out), "--parallel", "fsdp"]
    done = subprocess.run([*line, *more], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    close(out, single)
    path = checkpoint.written(out / "checkpoints")[-1]
    size = int(more[-1]) if more else count
    assert path.is_dir() == (size > 1)
    assert not path.is_dir() or len(list(path.iterdir())) == size
    best = checkpoint.choose(out / "checkpoints", "best")[1]
    assert best["step"] == best["best"]["step"]


@pytest.mark.slow
def test_two_nodes_give_the_loss_of_one(tmp_path, alone):
    flags, single = alone
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port())]
    agents = [
        subprocess.Popen(
            [*torchrun(*where, "--node-rank", str(rank)), *flags, "--out", str(tmp_path / "run")],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    close(tmp_path / "run", single)


@pytest.mark.slow
def test_a_killed_process_comes_back_and_the_run_ends_the_same(tmp_path, alone):
    flags, _ = alone
    out = tmp_path / "run"
    line = torchrun("--standalone", "--nproc-per-node", "2", "--max-restarts", "2")
    launcher = subprocess.Popen(
        [*line, *flags, "--epochs", "6", "--out", str(out), "--resume", "auto"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 240
    while not checkpoint.written(out / "checkpoints") and time.monotonic() < end:  # the first of some
        time.sleep(0.02)
    victim = workers_of(launcher.pid)[-1]
    os.kill(victim, signal.SIGKILL)
    said = launcher.communicate(timeout=300)[0]
    assert launcher.returncode == 0, said[-3000:]
    assert "continuing at step" in said
    close(out, trained(tmp_path / "whole", [*flags, "--epochs", "6"]))


def workers_of(parent: int) -> list[int]:
    """Process numbers of the children of a process (Linux)."""
    return [int(n) for n in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.slow
def test_processes_take_leave_without_waiting_for_ever(tmp_path):
    """Again and again, straight after a message: without its pause `world` hung within a hundred rounds."""
    script = tmp_path / "rounds.py"
    script.write_text(ROUNDS)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


# Each start goes on from the checkpoint of the one before: (processes, more flags, step to stop at).
LADDERS = {
    "ddp": [(1, [], 7), (2, [], 15)],
    "fsdp": [
        (1, [], 4),
        (2, ["--parallel", "fsdp"], 7),
        (4, ["--parallel", "fsdp", "--shard-size", "2"], 11),
        (1, [], 15),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LADDERS)
def test_any_number_of_processes_continues_what_another_began(tmp_path, in_parts, name):
    flags, single = in_parts
    flags = [*flags, "--device", "cpu", "--resume", "auto"]
    out = tmp_path / "run"
    stopping = tmp_path / "stopping.py"
    stopping.write_text(STOPPING)
    for count, more, stop in LADDERS[name]:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
        line = [sys.executable, *launch, str(stopping), str(stop), *flags, *more, "--out", str(out)]
        done = subprocess.run(line, env=environment(), capture_output=True, text=True)
        assert stop < 15 or done.returncode == 0, done.stderr[-3000:]
        path = checkpoint.written(out / "checkpoints")[-1]
        assert checkpoint.step_of(path) == stop, done.stderr[-3000:]
        assert path.is_dir() == ("fsdp" in more)
    close(out, single)


@pytest.mark.slow
def test_a_part_that_could_not_be_written_is_told_by_the_leader(tmp_path, alone):
    """The second process has no space at step 4, and again for the last checkpoint: no half of either is left."""
    flags, _ = alone
    script, out = tmp_path / "full.py", tmp_path / "run"
    script.write_text(FULL)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), *flags]
    line += ["--device", "cpu", "--parallel", "fsdp", "--out", str(out)]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True)
    assert "warning: no checkpoint at step 4 ([Errno 28] No space left on device)" in done.stderr
    assert "error: the last checkpoint could not be written" in done.stderr
    assert "exitcode  : 4" in done.stderr
    names = sorted(path.name for path in (out / "checkpoints").glob("step-*"))
    assert names == [f"step-{step:08}" for step in (2, 6, 8, 10, 12, 14)]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_processes_agree_while_a_slow_disk_is_waited_for(tmp_path, alone, parallel):
    """A checkpoint every step, each of which takes longer than the step; the first, longer than a hang may.

    The leader writes under ddp, each process its part under fsdp.
    """
    flags, single = alone
    script, out = tmp_path / "slow.py", tmp_path / "run"
    script.write_text(SLOW)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), *flags]
    line += ["--device", "cpu", "--checkpoint-epochs", "0.1", "--parallel", parallel, "--out", str(out)]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the disk is slower than checkpoints come" in done.stderr
    close(out, single)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_processes_compile_no_more_than_one_does(tmp_path, alone, parallel):
    """One graph each for target encoder, context encoder and predictor, though lengths differ from step to step."""
    script = tmp_path / "compiled.py"
    script.write_text(COMPILED)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    line += [*alone[0], "--device", "cpu", "--contexts", "packed", "--compile", "--parallel", parallel]
    done = subprocess.run([*line, "--out", str(tmp_path / "run")], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.findall(r"compiled (\d+)", done.stdout) == ["3", "3"]


@pytest.mark.slow
def test_broken_pictures_of_all_processes_are_counted(tmp_path):
    """Each process meets one of two; history has both."""
    recipe, out = Recipe(data=f"folder:{draw_pictures(tmp_path / 'pictures', 60, 32)}"), tmp_path / "run"
    files = opened(recipe)
    for rank in (0, 1):  # in the second step, after those that all of them look at before the first
        (micro,) = plan(len(files), recipe.replace(batch=8, micro_batch=4), 1, 2, rank, 2)
        files[micro.index[0]].write_text("no picture")
    (tmp_path / "skip.py").write_text(SKIP)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line += [str(tmp_path / "skip.py"), *arguments(recipe), "--epochs", "0.3", "--warmup-epochs", "0.1"]
    line += ["--device", "cpu", "--out", str(out)]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows if "loss" in row] == [0, 2]
    assert re.findall(r"skipped (\d+)", done.stdout) == ["1", "1"]


@pytest.mark.slow
def test_weights_are_gathered_once_a_step_and_are_those_of_the_leader(tmp_path):
    """Whatever the groups of contexts and the micro-batches, in bf16; other processes begin without numbers."""
    script = tmp_path / "gathers.py"
    script.write_text(GATHERS)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # encoder, target and predictor, and their 4 + 4 + 2 blocks
    assert found["gathers"] == {"cut x 1": 13, "groups x 1": 13, "groups x 2": 13, "packed x 2": 13}
    assert found["types"] == ["c10::BFloat16"]
    assert found["same"]
    assert max(found["losses"]) - min(found["losses"]) < 1e-3  # of one step, in fp32 and in bf16


STOPPING = """
import os, signal, sys
from full_ijepa import train
from full_ijepa.__main__ import main
stop, take_step = int(sys.argv[1]), train.Trainer.take_step
def watched(self, batches):
    if self.step == stop - 1 and stop < self.steps:
        os.kill(os.getpid(), signal.SIGTERM)
    return take_step(self, batches)
train.Trainer.take_step = watched
sys.exit(main(["pretrain", "smoke", *sys.argv[2:]]))
"""

FULL = """
import os, sys
from full_ijepa import checkpoint
from full_ijepa.__main__ import main
save_file = checkpoint.save_file
def full(tensors, path, metadata):
    if os.environ["RANK"] == "1" and any(f"step-{step:08}" in str(path) for step in (4, 15)):
        raise OSError(28, "No space left on device")
    save_file(tensors, path, metadata=metadata)
checkpoint.save_file = full
sys.exit(main(["pretrain", "smoke", *sys.argv[1:]]))
"""

ROUNDS = """
import os
import torch
from torch import nn
from full_ijepa.distributed import share, world

class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.method = nn.Linear(3, 3)

    def forward(self, x):
        return self.method(x).sum()

def meet(number):
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
    with world("cpu") as here:
        model = share(Step, here)
        model(torch.ones(2, 3)).backward()
        here.lead(lambda: "")

for number in range(100):
    meet(number)
"""

SLOW = """
import sys, time
from datetime import timedelta
from full_ijepa import checkpoint, loop
from full_ijepa.__main__ import main
loop.STEP = timedelta(seconds=10)
save_file, naps = checkpoint.save_file, [0.5, 15.0]
checkpoint.save_file = lambda *said, **options: (time.sleep(naps.pop() if naps else 0.5), save_file(*said, **options))
sys.exit(main(["pretrain", "smoke", *sys.argv[1:]]))
"""

COMPILED = """
import sys
import torch
from torch._dynamo.testing import CompileCounter
from full_ijepa import methods, vit
from full_ijepa.__main__ import main
torch._dynamo.config.fail_on_recompile_limit_hit = True
counter = CompileCounter()
methods.compile_blocks = lambda method: vit.compile_blocks(method, backend=counter)
code = main(["pretrain", "smoke", *sys.argv[1:]])
print(f"compiled {counter.frame_count}", flush=True)
sys.exit(code)
"""

SKIP = """
import sys
from full_ijepa import train
from full_ijepa.__main__ import main
train.LOOKED = train.WATCHED = train.CROPS = 4
take_step, seen = train.Trainer.take_step, {}
def watched(self, batches):
    seen.update(skipped=self.data.skipped.names)
    return take_step(self, batches)
train.Trainer.take_step = watched
code = main(["pretrain", "smoke", *sys.argv[1:]])
print(f"skipped {len(seen['skipped'])}", flush=True)
sys.exit(code)
"""

GATHERS = """
import json
import torch
from torch.profiler import profile
from full_ijepa import checkpoint, methods
from full_ijepa.distributed import local_only, share, world
from full_ijepa.recipes.base import Recipe

small = dict(image_size=32, encoder="toy", patch=4, predictor_width=32, predictor_depth=2, predictor_heads=2)
recipe = Recipe(data="shapes", epochs=20, predictor_mode="joint", **small)

def step(model, parts, dtype):
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for part in range(parts):
        with local_only(model, part == parts - 1):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = model(images, model.method.draw(8, 3, 3))
            loss.backward()
    model.zero_grad()
    return loss.item()

with world("cpu") as here:
    found = dict(gathers={}, losses=[], same=True)
    bf16 = torch.bfloat16
    packed, cut, grouped = (dict(contexts=name) for name in ("packed", "cut", "groups"))
    tries = [(cut, 1, torch.float32), (cut, 1, bf16), (grouped, 1, bf16), (grouped, 2, bf16), (packed, 2, bf16)]
    for contexts, parts, dtype in tries:
        build = lambda: methods.Step(methods.build(recipe.replace(**contexts)))
        alone, model = build(), share(build, here, "fsdp", 0, dtype)
        whole = {name: value.full_tensor() for name, value in model.state_dict().items()}
        found["same"] &= all(torch.equal(value, whole[name]) for name, value in alone.state_dict().items())
        found["same"] &= all(torch.equal(a, b) for a, b in zip(alone.buffers(), model.buffers(), strict=True))
        step(model, parts, dtype)  # the first one sets up
        with profile(record_shapes=True) as seen:
            loss = step(model, parts, dtype)
        found["losses"] += [loss] if contexts == cut else []
        events = [event for event in seen.events() if event.name == "c10d::_allgather_base_"]
        if dtype == torch.bfloat16:
            found["gathers"][f"{contexts['contexts']} x {parts}"] = len(events)
            found["types"] = sorted({event.input_dtypes[0] for event in events})
    if here.leads:
        print(json.dumps(found))
"""
