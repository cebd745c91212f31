"""One process or many: what `torchrun` started, and the few things that processes have to agree on.

A program started without torchrun is a world of one; the same code runs.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import nn

PATIENCE = timedelta(minutes=30)  # a process that waits longer for the others (while they download) gives up


class RunningError(ValueError):
    """Two runs at once in one folder."""


@dataclass(frozen=True)
class World:
    """Which process this is: `rank` of `size`, number `local` on its machine, and the device it computes on."""

    rank: int
    size: int
    device: torch.device
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        return self.reduce(value, dist.ReduceOp.SUM) / self.size

    def any(self, value: bool) -> bool:
        """Whether it is true in any process."""
        return self.reduce(float(value), dist.ReduceOp.MAX) > 0

    def reduce(self, value: float, how: dist.ReduceOp) -> float:
        if self.size == 1:
            return value
        # A CPU tensor travels through gloo, so that no GPU has to wait for it.
        box = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(box, how)
        return box.item()

    def agree(self, value: float) -> bool:
        """Whether a number is the same in all processes."""
        return self.reduce(value, dist.ReduceOp.MAX) == -self.reduce(-value, dist.ReduceOp.MAX)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leader goes through the body first, then one process of each machine, then the rest.

        Downloads and caches are written once, whether machines share a folder or have their own.
        """
        turn = 0 if self.leads else 1 if self.local == 0 else 2
        for _ in range(turn):
            self.barrier()
        yield
        for _ in range(turn, 2):
            self.barrier()

    def barrier(self) -> None:
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """The world that torchrun describes in the environment; a world of one without it.

    device  "auto" (the GPU of this process if there is one), "cpu" or "cuda"
    Raises ValueError if there are more processes than GPUs on this machine.
    """
    size, rank, local = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(f"process {local} has no GPU: this machine has {torch.cuda.device_count()}")
        torch.cuda.set_device(local)
    found = torch.device(kind, local if kind == "cuda" else 0) if kind == "cuda" else torch.device(kind)
    if size == 1 and "RANK" not in os.environ:
        yield World(0, 1, found)
        return
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))
    # TRAP: torchrun keeps one store for all restarts; without a name of its own, a restarted process reads there the
    # addresses of those that died.
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield World(rank, size, found, local)
    finally:
        dist.destroy_process_group()


@contextmanager
def only_run(out: Path, world: World) -> Iterator[None]:
    """Nobody else writes to `out` inside. A process that died holds nothing: the system takes its lock away.

    Raises RunningError, in every process, if another run writes there.
    """
    lock, name, told = FileLock(out / ".lock"), out / ".running", ""
    if world.leads:
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            name.write_text(f"process {os.getpid()} on {platform.node()}")
        except Timeout:
            told = name.read_text() if name.exists() else "another process"
        except (OSError, NotImplementedError) as error:  # a full disk, or a file system without locks
            warnings.warn(f"{out} is not guarded against a second run ({error})", stacklevel=3)
    try:
        if world.any(bool(told)):
            raise RunningError(f"{told or 'another process'} is writing to {out}; wait for it, or choose another --out")
        yield
    finally:
        if lock.is_locked:
            name.unlink(missing_ok=True)
            lock.release()


def share(step: nn.Module, world: World, parallel: str) -> nn.Module:
    """`step` (methods.Step) so that its gradients are those of all processes together.

    parallel  "ddp": a copy in every process; "fsdp": parameters, gradients and optimiser state shared out (FSDP2)
    """
    if world.size == 1:
        return step
    if parallel == "fsdp":
        return shard(step, world)
    from torch.nn.parallel import DistributedDataParallel

    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(step, device_ids=ids, gradient_as_bucket_view=True, forward_sync_buffers=False)


def shard(step: nn.Module, world: World) -> nn.Module:
    """Share out blocks, then networks, by FSDP2; encoder and target in the same way, so that the EMA is local."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    from toy_ijepa.encoder import Block, Encoder

    mesh = init_device_mesh(world.device.type, (world.size,))
    # Warns of in-place changes to a network's output, of which there are none here.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    # The networks too, not only the whole: they are called on their own when features are looked at.
    for part in [m for m in step.modules() if isinstance(m, Block)] + list(step.method.children()):
        fully_shard(part, mesh=mesh)
        if isinstance(part, Encoder):
            register_fsdp_forward_method(part, "layers")  # what probes call
    return fully_shard(step, mesh=mesh)


def local_only(model: nn.Module, last: bool):
    """Context in which gradients are accumulated in this process; the `last` micro-batch of a step shares them."""
    if hasattr(model, "set_requires_gradient_sync"):  # FSDP2
        model.set_requires_gradient_sync(last)
    elif not last and hasattr(model, "no_sync"):  # DDP
        return model.no_sync()
    return nullcontext()
