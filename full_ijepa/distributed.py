"""One process or many: what `torchrun` started, and the few things that processes have to agree on.

A program started without torchrun is a world of one; the same code runs.
"""

from __future__ import annotations

import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor, nn

from full_ijepa import machine

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)  # a process that waits longer for the others (while they download) gives up
STEP = timedelta(minutes=10)  # and, once the steps have begun, after this: a hang costs all GPUs
TEARDOWN = 0.2  # seconds
ROUND = 10  # optimiser steps on GPUs between two times that processes ask each other whether to stop


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

    @property
    def round(self) -> int:
        """Optimiser steps between two questions to the other processes, which would hold up GPUs if put every step."""
        return ROUND if self.size > 1 and self.device.type == "cuda" else 1

    def gather(self, values: list[float]) -> list[list[float]]:
        """A few numbers of each process, by rank."""
        if self.size == 1:
            return [values]
        return [box.tolist() for box in self.each(torch.tensor(values, dtype=torch.float64))]

    def each(self, x: Tensor) -> list[Tensor]:
        """A tensor of each process, by rank; all have the same shape."""
        if self.size == 1:
            return [x]
        boxes = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(boxes, x)
        return boxes

    def tell(self, text: str) -> list[str]:
        """A text of each process, by rank."""
        box = [text] * self.size
        if self.size > 1:
            dist.all_gather_object(box, text)
        return box

    def lead(self, act: Callable[[], T]) -> T:
        """What `act` returns in the leader, told to all; only the leader calls it. What it raises, all raise."""
        box: list = [None]
        if self.leads:
            try:
                box = [(act(), None)]
            except (ValueError, OSError) as error:
                box = [(None, error)]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        found, error = box[0]
        if error:
            raise error
        return found

    def patience(self, limit: timedelta) -> None:
        """How long a process waits from now on for the others before it gives up."""
        if self.size > 1:
            dist.distributed_c10d._set_pg_timeout(limit)

    def any(self, value: bool) -> bool:
        """Whether it is true in any process."""
        return self.reduce(float(value), dist.ReduceOp.MAX) > 0

    def total(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all processes, to the same bits in each; x may be written over."""
        if self.size > 1:
            dist.all_reduce(x := x.contiguous())
        return x

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

    device  as full_ijepa.machine.pick takes it: "auto" (the GPU of this process), "cpu" or "cuda"
    Raises ValueError if there are more processes than GPUs on this machine, or a GPU that torch cannot use.
    TRAP: taking leave of NCCL waits for the others, and they may be waiting for this process. One that fails on a GPU
    takes no leave, so that its error is told at once; `leave` ends it, and torchrun the others.
    """
    size, rank, local = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    kind = machine.pick(device, launched="RANK" in os.environ)
    found = torch.device(kind)
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(f"process {local} has no GPU: this machine has {torch.cuda.device_count()}")
        found = torch.device(kind, local)
        torch.cuda.set_device(found)
    if size == 1 and "RANK" not in os.environ:
        yield World(0, 1, found)
        return
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))
    # TRAP: torchrun keeps one store for all restarts; without a name of its own, a restarted process reads there the
    # addresses of those that died.
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    options = dict(store=store, rank=rank, world_size=size, timeout=PATIENCE)
    if kind == "cuda":
        options["device_id"] = found  # NCCL connects at once, and never guesses the GPU
    dist.init_process_group(backend, **options)
    well = False
    try:
        yield World(rank, size, found, local)
        well = True
    finally:
        # TRAP: a thread of gloo's puts away the last message, for which it needs Python's lock. A process that takes
        # itself apart holds that lock and waits for the thread, for ever: let the thread have it before.
        time.sleep(TEARDOWN)
        if well or kind != "cuda":
            dist.destroy_process_group()


def leave(main: Callable[[], int]) -> NoReturn:
    """Call `main` and end this process with its exit code; at once, if it failed before it took leave of the others.

    TRAP: an ordinary end waits for NCCL as well.
    """
    try:
        code = main()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and not dist.is_initialized():
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        if not dist.is_initialized() or isinstance(error, SystemExit):
            raise
        traceback.print_exc()
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    if not dist.is_initialized():
        sys.exit(code)
    with suppress(OSError):  # nobody listens any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


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


def share(
    build: Callable[[], nn.Module],
    world: World,
    parallel: str = "ddp",
    shard_size: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A methods.Step whose gradients are those of all processes together, with the weights that the leader drew.

    build       makes it; processes that do not lead build without numbers (on the meta device) and are sent theirs
    parallel    "ddp": a copy in every process; "fsdp": parameters, gradients and optimiser state shared out (FSDP2)
    shard_size  processes that share one copy among them, 0 for all; the groups are copies of each other (HSDP)
    dtype       that of products: fsdp sends weights in bf16 where products are in bf16, and sums gradients in fp32
    Raises ValueError if shard_size does not divide the number of processes.
    """
    if world.size == 1:
        return build().to(world.device)
    if parallel == "fsdp" and world.size % (shard_size or world.size):
        raise ValueError(
            f"shard_size {shard_size} does not divide {world.size} processes: choose a divisor, or 0 for all of them"
        )
    if world.leads:
        step = build()
    else:
        with torch.device("meta"):
            step = build()
    if parallel == "fsdp":
        return shard(step, world, shard_size or world.size, dtype)
    from torch.nn.parallel import DistributedDataParallel

    step = step.to(world.device) if world.leads else step.to_empty(device=world.device)
    ids = [world.device.index] if world.device.type == "cuda" else None
    # It sends the leader's parameters and buffers to all.
    return DistributedDataParallel(step, device_ids=ids, gradient_as_bucket_view=True, forward_sync_buffers=False)


def shard(step: nn.Module, world: World, size: int, dtype: torch.dtype) -> nn.Module:
    """Share out blocks, then networks, by FSDP2; encoder and target in the same way, so that the EMA is local."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    from toy_ijepa.encoder import Block, Encoder

    groups = world.size // size
    if groups == 1:
        mesh = init_device_mesh(world.device.type, (size,))
    else:
        mesh = init_device_mesh(world.device.type, (groups, size), mesh_dim_names=("replicate", "shard"))
    weights = dict(step.state_dict()) if world.leads else {}
    types = (torch.bfloat16, torch.float32) if dtype == torch.bfloat16 else (None, None)
    # Gathered once an optimiser step, whatever the number of micro-batches and groups: `local_only` lets go.
    options = dict(mesh=mesh, mp_policy=MixedPrecisionPolicy(*types), reshard_after_forward=False)
    # Warns of in-place changes to a network's output, of which there are none here.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    # The networks too, not only the whole: they are called on their own when features are looked at.
    for part in [m for m in step.modules() if isinstance(m, Block)] + list(step.method.children()):
        fully_shard(part, **options)
        if isinstance(part, Encoder):
            register_fsdp_forward_method(part, "layers")  # what probes call
    # Pictures arrive as they are, since MAE predicts them; networks make of them what they need.
    fully_shard(step, mesh=mesh, mp_policy=MixedPrecisionPolicy(*types, cast_forward_inputs=False))
    step.set_reshard_after_backward(False)
    if not world.leads:
        step.to_empty(device=world.device)
    set_model_state_dict(step, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    for buffer in step.buffers():
        dist.broadcast(buffer, 0)
    return step


@contextmanager
def local_only(model: nn.Module, last: bool) -> Iterator[None]:
    """Gradients are accumulated in this process inside; the `last` micro-batch of a step shares them.

    TRAP: weights that FSDP2 gathered stand still while the optimiser moves their shards: they go with the last one.
    """
    if hasattr(model, "set_requires_gradient_sync"):  # FSDP2
        model.set_requires_gradient_sync(last)
        yield
        for part in model.modules() if last else ():
            if hasattr(part, "reshard"):
                part.reshard()
        return
    with nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():  # DDP
        yield
