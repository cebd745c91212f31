"""How fast is one training step, where does the time go, and how does lightly's I-JEPA compare? (`make bench`)

All candidates take turns in one process, step by step, so that a busy or throttled machine slows them alike: read the
ratios. Everyone trains the same architecture on the same masks; lightly's parts are put together as in its example.
"""

# Shape legend:  B images  h,w grid  N = h*w patches  M target blocks  T patches of a block  D width

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from toy_ijepa.encoder import Encoder
from toy_ijepa.jepa import IJEPA, LOSSES
from toy_ijepa.masking import Masks, multiblock
from toy_ijepa.predictor import Predictor
from toy_ijepa.recipe import SIZES, Size
from toy_ijepa.training import TrainConfig, make_optimisers, set_schedules, uses_bf16

SUSTAINED = 1.5  # s of products before a GPU's rate is believed
PARTS = ("masks", "target", "context", "predictor", "backward", "optimiser", "EMA")

Step = Callable[[Tensor, dict[str, float]], None]


@dataclass(frozen=True)
class Setup:
    """What is timed: images of a step, their side and the patches' in pixels, and the size of the networks."""

    batch: int
    side: int
    patch: int
    size: Size


SETUPS = {
    "tiny": Setup(64, 32, 4, SIZES["tiny"]),  #    96 wide, 4 deep: the step of `make toy`
    "small": Setup(128, 32, 4, SIZES["small"]),  # 192 wide, 6 deep
}


class Stopwatch:
    """Adds the seconds since the last call to the named part."""

    def __init__(self, parts: dict[str, float]) -> None:
        self.parts, self.last = parts, time.perf_counter()

    def __call__(self, part: str) -> None:
        now = time.perf_counter()
        self.parts[part] = self.parts.get(part, 0.0) + now - self.last
        self.last = now


def ours(setup: Setup, precision: str, mode: str = "block", optimiser: str = "adamw") -> Step:
    """This package's training step, taken apart to be timed; lightly's is compared with AdamW, its own optimiser."""
    torch.manual_seed(0)
    size = setup.size
    encoder = Encoder(setup.side, setup.patch, size.width, size.depth, size.heads)
    narrow = (size.predictor_width, size.predictor_depth, size.predictor_heads)
    model = IJEPA(encoder, Predictor(encoder.grid, size.width, *narrow, mode=mode))
    config = TrainConfig(steps=1, lr=1e-4, optimiser=optimiser)
    optimisers = make_optimisers(model, config)
    set_schedules(optimisers, config, 0.5)
    generator = torch.Generator().manual_seed(0)
    bf16 = uses_bf16(torch.device("cpu"), precision)

    def step(images: Tensor, parts: dict[str, float]) -> None:
        mark = Stopwatch(parts)
        masks = multiblock(setup.batch, encoder.grid, generator=generator)
        mark("masks")
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            targets = model.targets(images, masks.targets)
            mark("target")
            context = model.encoder(images, masks.context)
            mark("context")
            predictions = model.predictor(context, masks.context, masks.targets)
            loss = LOSSES["smooth_l1"](predictions.float(), targets.float())
            mark("predictor")
        loss.backward()
        mark("backward")
        for part in optimisers:
            part.step()
            part.zero_grad()
        mark("optimiser")
        model.after_step(0.5)
        mark("EMA")

    return step


def lightly(setup: Setup, precision: str) -> Step:
    """lightly's I-JEPA parts (timm blocks), as in its published example, fed with this package's masks."""
    import copy

    from lightly.models import utils
    from lightly.models.modules import IJEPAPredictorTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    size, grid = setup.size, (setup.side // setup.patch, setup.side // setup.patch)
    dial = dict(
        img_size=setup.side, patch_size=setup.patch, embed_dim=size.width, depth=size.depth, num_heads=size.heads
    )
    encoder = MaskedVisionTransformerTIMM(
        VisionTransformer(**dial, class_token=False, global_pool="avg", num_classes=0)
    )
    target = copy.deepcopy(encoder).requires_grad_(False)
    predictor = IJEPAPredictorTIMM(
        grid[0] * grid[1], size.predictor_depth, size.width, size.predictor_width, num_heads=size.predictor_heads
    )
    trained = [p for m in (encoder, predictor) for p in m.parameters() if p.requires_grad]
    optimiser, criterion = torch.optim.AdamW(trained, lr=1e-4), torch.nn.SmoothL1Loss()
    generator = torch.Generator().manual_seed(0)

    def step(images: Tensor, parts: dict[str, float]) -> None:
        masks = multiblock(setup.batch, grid, generator=generator)
        context_idx, target_idx = [masks.context], list(masks.targets.unbind(1))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            with torch.no_grad():
                targets = target.encode(images)
                targets = F.layer_norm(targets, (targets.size(-1),))
                targets = utils.apply_masks(targets, target_idx)
            context = encoder.encode(images, idx_keep=context_idx[0])
            predictions = predictor(context, context_idx, target_idx)
            loss = criterion(predictions.float(), targets.float())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        utils.update_momentum(encoder, target, 0.99)

    return step


CANDIDATES: dict[str, Callable[[Setup], Step]] = {
    "ours fp32": lambda setup: ours(setup, "fp32"),
    "ours bf16": lambda setup: ours(setup, "bf16"),
    "ours fp32, joint predictor": lambda setup: ours(setup, "fp32", "joint"),
    "ours bf16, joint predictor": lambda setup: ours(setup, "bf16", "joint"),
    "ours fp32, joint, Muon": lambda setup: ours(setup, "fp32", "joint", "muon"),  # what the toy trains with
    "ours bf16, joint, Muon": lambda setup: ours(setup, "bf16", "joint", "muon"),
    "lightly fp32": lambda setup: lightly(setup, "fp32"),
    "lightly bf16": lambda setup: lightly(setup, "bf16"),
}


def large_product(dtype: torch.dtype, side: int = 2048, device: str = "cpu") -> Callable[[], float]:
    """A function that multiplies two large square matrices and returns the FLOP/s: what this device can do at best."""
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    count = 1 if device == "cpu" else 20

    def rate() -> float:
        begun = time.perf_counter()
        for _ in range(count):
            a @ b
        if device != "cpu":
            torch.accelerator.synchronize()  # the products were only asked for, not computed
        return 2 * count * side**3 / (time.perf_counter() - begun)

    return rate


def matmul_rate(dtype: torch.dtype, side: int = 2048, device: str = "cpu") -> float:
    """FLOP/s of the fastest of eight large products; of a GPU what it keeps up, for its clock falls under load."""
    rate = large_product(dtype, side, device)
    if device == "cpu":
        return max(rate() for _ in range(8))
    begun, rates = time.perf_counter(), [rate()]
    while time.perf_counter() - begun < SUSTAINED:
        rates.append(rate())
    return median(rates[len(rates) // 2 :])


def step_flops(step: Step, images: Tensor) -> float:
    """FLOPs of the matrix products of one step, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode  # a slow import

    with FlopCounterMode(display=False) as counter:
        step(images, {})
    return float(counter.get_total_flops())


def mask_time(batch: int, draws: int = 30) -> float:
    """Median milliseconds to draw masks on the paper's 14x14 grid."""
    times = []
    for _ in range(draws):
        begun = time.perf_counter()
        drawn: Masks = multiblock(batch, (14, 14))
        times.append(1000 * (time.perf_counter() - begun))
        del drawn
    return median(times)


def high_water_mark() -> float:
    """Peak resident MiB of this process; nan where the system does not say.

    TRAP: getrusage's maximum is inherited from the parent process on Linux.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), float("nan"))


def peak_memory(name: str, bench: Sequence[str]) -> float:
    """Peak resident MiB of a fresh process that takes three steps of one candidate: the command with --memory-of."""
    command = [sys.executable, "-m", *bench, "--memory-of", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure(names: list[str], rounds: int, setup: Setup, bench: Sequence[str]) -> dict[str, dict]:
    """Median seconds of each candidate's step and its parts, taking turns; a large product has its turn as well.

    bench  module and options of the command that times this setup
    """
    images = torch.randn(setup.batch, 3, setup.side, setup.side)
    steps = {name: CANDIDATES[name](setup) for name in names}
    flops = {name: step_flops(step, images) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    parts: dict[str, dict[str, float]] = {name: {} for name in names}
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    products = {kind: large_product(dtype) for kind, dtype in types.items() if any(kind in name for name in names)}
    rates: dict[str, list[float]] = {kind: [] for kind in products}
    for _ in range(rounds):
        for name, step in steps.items():
            begun = time.perf_counter()
            step(images, parts[name])
            seconds[name].append(time.perf_counter() - begun)
        for kind, product in products.items():
            product()  # the caches are the steps' still
            rates[kind].append(product())
    rate = {kind: median(found) for kind, found in rates.items()}
    return {
        name: dict(
            seconds=median(seconds[name]),
            images_per_second=setup.batch / median(seconds[name]),
            share_of_matmul_rate=flops[name] / median(seconds[name]) / rate["bf16" if "bf16" in name else "fp32"],
            share_of_step={p: v / sum(parts[name].values()) for p, v in parts[name].items()},
            peak_mib=peak_memory(name, bench),
        )
        for name in names
    }


def report(found: dict[str, dict], masks_ms: dict[int, float]) -> str:
    """The measurements as text."""
    base = found.get("lightly fp32", found["ours fp32"])["images_per_second"]
    against = "lightly fp32" if "lightly fp32" in found else "ours fp32"
    lines = [f"{'':28}{'images/s':>10}{'x ' + against:>18}{'of matmul rate':>16}{'peak MiB':>10}"]
    for name, row in found.items():
        speed, share = row["images_per_second"], row["share_of_matmul_rate"]
        lines.append(f"{name:28}{speed:10.4g}{speed / base:18.2f}{share:16.0%}{row['peak_mib']:10.0f}")
    lines.append(f"\n{'share of the step':28}" + "".join(f"{part:>11}" for part in PARTS))
    for name, row in found.items():
        if row["share_of_step"]:
            lines.append(f"{name:28}" + "".join(f"{row['share_of_step'][part]:11.1%}" for part in PARTS))
    drawn = ", ".join(f"{ms:.2f} ms for {batch} images" for batch, ms in masks_ms.items())
    return "\n".join([*lines, f"\nmasks on a 14x14 grid: {drawn}"])


def memory_of(name: str, setup: Setup) -> None:
    """Three steps of one candidate, then this process's peak: what `peak_memory` starts."""
    step = CANDIDATES[name](setup)
    for _ in range(3):
        step(torch.randn(setup.batch, 3, setup.side, setup.side), {})
    print(high_water_mark())


def available(names: list[str]) -> list[str]:
    """Those of the candidates that can run here; says so if lightly is missing, or bf16 is only emulated."""
    if not uses_bf16(torch.device("cpu")):
        print("this processor has no instructions for bf16: timing fp32 alone", file=sys.stderr)
        names = [name for name in names if "bf16" not in name]
    try:
        import lightly  # noqa: F401
    except ImportError:
        print("lightly is not installed (`make bench` installs it): timing ours alone", file=sys.stderr)
        return [name for name in names if "lightly" not in name]
    return names


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m toy_ijepa.bench", description=__doc__.splitlines()[0])
    p.add_argument("--size", choices=SETUPS, default="tiny", help="of the networks (default %(default)s: the toy)")
    p.add_argument("--rounds", type=int, default=12, help="steps of each candidate (default %(default)s)")
    p.add_argument("--out", type=Path, help="write the figures as JSON")
    p.add_argument("--memory-of", choices=CANDIDATES, help=argparse.SUPPRESS)
    args = p.parse_args()
    setup = SETUPS[args.size]
    if args.memory_of:
        memory_of(args.memory_of, setup)
        return 0
    found = measure(available(list(CANDIDATES)), args.rounds, setup, ["toy_ijepa.bench", "--size", args.size])
    masks_ms = {batch: mask_time(batch) for batch in (64, 2048)}
    kernels = torch.backends.cpu.get_cpu_capability()
    print(f"{setup.size.width} x {setup.size.depth}, {setup.side} px, batch {setup.batch}, ", end="")
    print(f"{torch.get_num_threads()} threads, {kernels}")
    print(report(found, masks_ms))
    if args.out:
        command = shlex.join(["python", "-m", "toy_ijepa.bench", *sys.argv[1:]])
        about = dict(command=command, threads=torch.get_num_threads(), kernels=kernels)
        args.out.write_text(json.dumps(dict(about, steps=found, masks_ms=masks_ms), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
