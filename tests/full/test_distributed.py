"""Several processes on one machine, over gloo: the same loss as one, and a dead one comes back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from full_ijepa import checkpoint
from full_ijepa.distributed import World
from full_ijepa.recipes.base import Recipe
from tests.full.test_train import arguments, environment, final, journal_size, losses

MODULE = ["-m", "full_ijepa", "pretrain", "smoke"]


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options, *MODULE]


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, pictures):
    """The flags of the tests' run, and where one process trained them."""
    flags = [*arguments(Recipe(data=f"folder:{pictures}")), "--optimiser", "adamw"]
    out = tmp_path_factory.mktemp("alone") / "run"
    subprocess.run(
        [sys.executable, *MODULE, *flags, "--out", str(out)], env=environment(), check=True, capture_output=True
    )
    return flags, out


def close(a: Path, b: Path) -> None:
    assert losses(a) == pytest.approx(losses(b), abs=1e-6)
    for (name, x), y in zip(final(a).items(), final(b).values(), strict=True):
        assert torch.allclose(x, y, atol=1e-5), name


@pytest.mark.parametrize(("rank", "local", "before"), [(0, 0, 0), (4, 0, 1), (1, 1, 2), (5, 1, 2)])
def test_the_leader_goes_first_then_one_of_each_machine(monkeypatch, rank, local, before):
    """Everybody waits as often, two times: some before the body, some after."""
    waited = []
    monkeypatch.setattr(World, "barrier", lambda self: waited.append(1))
    with World(rank, 8, torch.device("cpu"), local).leader_first():
        assert len(waited) == before
    assert len(waited) == 2


# Each launch imports torch in three processes or more. The quick suite keeps the first of these tests, where two
# processes train as one; that a run goes on after a stop is there in one process (test_train.py).
@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_give_the_loss_of_one(tmp_path, alone, parallel):
    flags, single = alone
    line = [*torchrun("--standalone", "--nproc-per-node", "2"), *flags, "--out", str(tmp_path / "run")]
    line += ["--parallel", parallel, "--probe-epochs", "1"]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    close(tmp_path / "run", single)


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
    end = time.monotonic() + 120
    while journal_size(out) < 1000 and time.monotonic() < end:
        time.sleep(0.02)
    victim = workers_of(launcher.pid)[-1]
    os.kill(victim, signal.SIGKILL)
    said = launcher.communicate(timeout=300)[0]
    assert launcher.returncode == 0, said[-3000:]
    assert "continuing at step" in said
    whole = subprocess.run(
        [sys.executable, *MODULE, *flags, "--epochs", "6", "--out", str(tmp_path / "whole")],
        env=environment(),
        capture_output=True,
    )
    assert whole.returncode == 0
    close(out, tmp_path / "whole")


def workers_of(parent: int) -> list[int]:
    """Process numbers of the children of a process (Linux)."""
    return [int(n) for n in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_checkpoint_of_one_process_is_continued_by_two(tmp_path, alone, parallel):
    flags, single = alone
    out = tmp_path / "run"
    subprocess.run([sys.executable, "-c", STOP_AT_7, *flags, "--out", str(out)], env=environment(), capture_output=True)
    assert checkpoint.written(out / "checkpoints")[-1].name == "step-00000007.safetensors"
    line = [*torchrun("--standalone", "--nproc-per-node", "2"), *flags, "--out", str(out), "--resume", "auto"]
    line += ["--parallel", parallel]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    close(out, single)


STOP_AT_7 = """
import os, signal, sys
from full_ijepa import train
from full_ijepa.__main__ import main
take_step = train.Trainer.take_step
def watched(self, batches):
    if self.step == 6:
        os.kill(os.getpid(), signal.SIGTERM)
    return take_step(self, batches)
train.Trainer.take_step = watched
sys.exit(main(["pretrain", "smoke", *sys.argv[1:]]))
"""
