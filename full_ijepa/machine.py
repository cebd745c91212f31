"""What a run computes on: the device that it takes or refuses, what is said of it, and what it did with its time."""

from __future__ import annotations

import math
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from full_ijepa.packing import fits_kernel
from full_ijepa.recipes.base import Recipe
from full_ijepa.vit import SIZES

if TYPE_CHECKING:
    from full_ijepa.distributed import World  # which asks here which device to take

# Dense bf16 products with fp32 sums, in TFLOP/s, by words of the name that torch gives the card; the first entry that
# fits counts. TRAP: data sheets print the doubled figure of sparse matrices.
# Sources: NVIDIA's data sheets of B200 (4.5 PFLOPS sparse), H200 (SXM 1,979 and NVL 1,671 sparse), H100 (SXM 1,979,
# NVL 1,671, PCIe 1,513 sparse), A100 (312), A10 (125), L40S (362) and L4 (242 sparse); for the RTX 4090 (165.2) that of
# its Ada architecture.
PEAKS = {
    "B200": 2250.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
}
OTHERS = {"Laptop", "D", "MIG"}  # a 4090 of less power, a card cut in parts: nothing above is theirs
DEVICES = ("auto", "cpu", "cuda")
HIDDEN = ("", "-1", "NoDevFiles")  # what CUDA_VISIBLE_DEVICES says where GPUs are hidden on purpose


def peak(card: str) -> float | None:
    """FLOP/s of dense bf16 products of a card by its name; None for one that is not in the table."""
    words = set(card.replace("-", " ").split())
    if words & OTHERS:
        return None
    return next((teraflops * 1e12 for name, teraflops in PEAKS.items() if words.issuperset(name.split())), None)


def gpu_here() -> bool:
    """Whether the system shows an NVIDIA GPU, usable by torch or not; not one that is hidden on purpose."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in HIDDEN:
        return False
    if Path("/dev/nvidia0").exists() or any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return True
    try:  # Windows and its Linux have neither of these files
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return told.returncode == 0 and "GPU 0" in told.stdout


def why_not() -> str:
    """What torch says when it is asked for a GPU and has none that it can use."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0].rstrip(".")
    return "torch finds none"


def pick(device: str = "auto", launched: bool = False) -> str:
    """The kind of device to compute on, "cpu" or "cuda".

    device    "auto" is the GPU if there is one
    launched  by torchrun, which nobody starts for a CPU by accident: there "auto" is a GPU, or an error
    Raises ValueError for a GPU that is there and cannot be used: hours on a CPU are never a silent substitute.
    """
    if device not in DEVICES:
        apple = "; Apple's GPU (mps) is refused, since no step was ever tried on one" if device == "mps" else ""
        raise ValueError(f"unknown device {device!r}: choose {', '.join(DEVICES[:-1])} or {DEVICES[-1]}{apple}")
    if device == "cpu" or torch.cuda.is_available():
        return "cuda" if device == "auto" else device
    if device == "cuda":
        raise ValueError(f"no GPU that torch can use here ({why_not()}): mend that, or compute with --device cpu")
    if torch.version.cuda and gpu_here():
        raise ValueError(
            f"there is a GPU that torch {torch.__version__} cannot use ({why_not()}): update its driver to one for "
            f"CUDA {torch.version.cuda}, install the torch that fits the driver, or compute with --device cpu"
        )
    if launched:
        raise ValueError(
            f"torchrun started this and torch {torch.__version__} finds no GPU ({why_not()}); to train on the CPU all "
            "the same, say --device cpu"
        )
    return "cpu"


def name_of(device: torch.device) -> str:
    """The card's name, or the processor's threads, and what is left unused."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    unused = ", Apple's GPU unused" if torch.backends.mps.is_available() else ""
    if torch.version.cuda is None and gpu_here():
        unused = ", an NVIDIA GPU unused: this torch is built without CUDA"
    return f"CPU, {torch.get_num_threads()} threads{unused}"


def attention_of(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> str:
    """The kernel of an encoder's attention on whole pictures (a name of SDPBackend), and on packed contexts.

    On a CPU: plain products, but torch's fused kernel where there is no gradient and no bf16.
    """
    width, _, heads = SIZES[recipe.encoder]
    packed = recipe.method == "ijepa" and recipe.contexts == "packed"
    if device.type == "cpu":  # toy_ijepa.encoder.Attention
        plain = "plain products" if dtype == torch.bfloat16 else "fused without a gradient, plain products with one"
        return plain + (", masked for packed contexts" if packed else "")
    from torch.nn.attention import SDPBackend

    q = torch.empty(1, heads, math.prod(recipe.sides) // recipe.patch**2, width // heads, device=device, dtype=dtype)
    found = SDPBackend(torch._fused_sdp_choice(q, q, q)).name.lower()
    if not packed:
        return found
    return found + (", varlen" if fits_kernel(q[0].transpose(0, 1)) else ", masked") + " for packed contexts"


def form_of(parallel: str, size: int, shard_size: int) -> str:
    """How the model lies in the processes."""
    if size == 1:
        return "one process"
    if parallel == "ddp":
        return f"{size} processes, ddp"
    if shard_size in (0, size):
        return f"{size} processes, fsdp"
    return f"{size} processes, fsdp in {size // shard_size} groups of {shard_size}"


class OwnTime:
    """Seconds of a model's forward passes, in which no process waits for another (but for what FSDP gathers).

    Steps end together, whoever was slow: only this tells which process the others waited for.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.cuda, self.begun, self.spans = device.type == "cuda", None, []
        model.register_forward_pre_hook(lambda *_: self.begin())
        model.register_forward_hook(lambda *_: self.spans.append((self.begun, self.now())))

    def now(self) -> float | torch.cuda.Event:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def begin(self) -> None:
        self.begun = self.now()

    def take(self) -> float:
        """Seconds since the last call; waits for the GPU."""
        if self.cuda and self.spans:
            self.spans[-1][1].synchronize()
        found = sum(a.elapsed_time(b) / 1000 if self.cuda else b - a for a, b in self.spans)
        self.spans.clear()
        return found


def memory_peak(device: torch.device) -> float:
    """GB that this process held at most: of a GPU since the last call, of a CPU since it began; nan where unknown."""
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return held / 1e9
    from toy_ijepa.bench import high_water_mark

    return high_water_mark() * 2**20 / 1e9


def describe(recipe: Recipe, world: World, dtype: torch.dtype) -> dict[str, str | float]:
    """What a run computes on, for the first lines of its history."""
    found: dict[str, str | float] = dict(
        device=name_of(world.device),
        precision=str(dtype).removeprefix("torch."),
        attention=attention_of(recipe, world.device, dtype),
        processes=form_of(recipe.parallel, world.size, recipe.shard_size),
        torch=torch.__version__,
    )
    if world.device.type == "cuda" and (flops := peak(found["device"])):
        found["peak_tflops"] = flops / 1e12
    return found


def sentence(about: dict[str, str | float]) -> str:
    """`describe` for people."""
    said = [f"{word} {about[word]}" for word in ("device", "precision", "attention")]
    mfu = f"MFU relative to {about['peak_tflops']:g} TFLOP/s (dense bf16)" if "peak_tflops" in about else ""
    return "; ".join(filter(None, [*said, about["processes"], f"torch {about['torch']}", mfu]))


def row(world: World, passed: float, waited: float, own: OwnTime | None) -> dict[str, float]:
    """What the machine did since the last row of history, `passed` seconds ago: columns for it, of all processes.

    waited  seconds of them in which this process waited for pictures
    """
    busy = (own.take() if own else 0.0) + waited
    found = world.gather([memory_peak(world.device), waited / passed, busy])
    memory, waiting, times = (list(column) for column in zip(*found, strict=True))
    columns = dict(waiting=max(waiting))
    if math.isfinite(max(memory)):  # not every system says
        columns["memory_gb"] = max(memory)
    if world.size > 1:
        slowest = max(range(len(times)), key=times.__getitem__)
        columns |= dict(slowest=slowest, slowest_ratio=times[slowest] * len(times) / max(sum(times), 1e-9))
    return columns
