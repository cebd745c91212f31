"""One readable training loop, for I-JEPA and its pixel-predicting companion alike."""

# Shape legend:  S pictures  B images of a batch  C channels  H,W pixels

from __future__ import annotations

import csv
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from toy_ijepa.diagnostics import health
from toy_ijepa.encoder import Encoder
from toy_ijepa.muon import Muon
from toy_ijepa.patches import normalise
from toy_ijepa.schedules import cosine, warmup_cosine

WATCHED = 256  # training images whose features are watched for collapse
MEANT = 64  # of them, about: what an answer without the picture loses is taken from these, for it costs another pass
ROWS = 50  # rows of history of a run: enough for a curve, cheap enough not to be felt


class Method(Protocol):
    """What the loop needs: a loss on a batch, something to do after each step, and the encoder to watch."""

    def step_loss(self, images: Tensor, generator: torch.Generator | None) -> Tensor: ...
    def after_step(self, progress: float) -> float: ...
    @property
    def probed(self) -> Encoder: ...


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run (`steps` or `minutes`, exactly one) and how to step; a reason beside each field.

    What was chosen "on the toy" is in assets/results/LOG.md.
    """

    # the same seed gives the same loss to the last bit, on the same number of threads
    steps: int | None = None
    # schedules follow the clock, so that the run ends at its end on any machine
    minutes: float | None = None
    # small, so that a short run has many steps; others were not compared
    batch: int = 64
    # peak; chosen on the toy
    lr: float = 3e-3
    # or "adamw", the paper's: a short run has few steps, and Muon learns more from each
    optimiser: str = "muon"
    # share of the run; customary for transformers, other values were not compared
    warmup: float = 0.1
    # start and end, along a cosine, for the matrices of the blocks; the paper rises from 0.04 to 0.4; chosen on the toy
    weight_decay: tuple[float, float] = (0.5, 0.5)
    # for the matrices that lead in and out, throughout; 0.5 there too was a little worse on the toy
    ends_decay: float = 0.04
    # share of the picture a random crop keeps; the paper's 0.3-1 was a little worse on the toy
    crop: tuple[float, float] = (0.6, 1.0)
    # left and right look alike in photographs
    flip: bool = True
    # "fp32", "bf16", or bf16 where the processor multiplies it faster
    precision: str = "auto"
    # of data order, crops and masks; the weights are drawn before, by the caller
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give the length of the run either in steps or in minutes")
        length = self.steps if self.minutes is None else self.minutes
        if not (math.isfinite(length) and length > 0):
            raise ValueError(f"a run of {self.steps} steps / {self.minutes} minutes is too short")
        if self.batch < 2 or not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"batch {self.batch} must be at least 2 and lr {self.lr} above 0")
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop {self.crop} is not a range within (0, 1]")
        if self.optimiser not in ("muon", "adamw"):
            raise ValueError(f"unknown optimiser {self.optimiser!r}: choose muon or adamw")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"unknown precision {self.precision!r}: choose auto, fp32 or bf16")


@dataclass
class History:
    """Rows of measurements along a run, and how it ended ("done", "interrupted" or "diverged")."""

    rows: list[dict[str, float]] = field(default_factory=list)
    ended: str = "done"
    steps: int = 0
    images: int = 0
    seconds: float = 0.0  #  of the clock
    cpu_seconds: float = 0.0  #  of all cores together: comparable when the machine is busy

    @property
    def images_per_second(self) -> float:
        return self.images / max(self.seconds, 1e-9)

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows]

    def save(self, path: Path) -> None:
        """Write the rows as CSV."""
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]) if self.rows else ["step"])
            writer.writeheader()
            writer.writerows(self.rows)


class NonFiniteLossError(ArithmeticError):
    """The loss or the features became infinite or not a number; `history` is the run up to there."""

    history: History


def uses_bf16(device: torch.device, precision: str = "auto") -> bool:
    """Whether to compute in bf16: asked for, or where the processor has instructions that multiply it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX2":  # also ATEN_CPU_CAPABILITY=avx2
        return False
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def augment(images: Tensor, crop: tuple[float, float], flip: bool, generator: torch.Generator) -> Tensor:
    """A random square crop of each image, enlarged to the old size, and half of them mirrored: (B, C, H, W) float."""
    B = len(images)
    side = (crop[0] + (crop[1] - crop[0]) * torch.rand(B, generator=generator)).sqrt()
    mirror = torch.randint(0, 2, (B,), generator=generator) * 2.0 - 1.0 if flip else torch.ones(B)
    centre = (torch.rand(2, B, generator=generator) * 2 - 1) * (1 - side)
    affine = torch.zeros(B, 2, 3)
    affine[:, 0, 0], affine[:, 1, 1] = side * mirror, side
    affine[:, :, 2] = centre.T
    where = F.affine_grid(affine, list(images.shape), align_corners=False).to(images.device)
    return F.grid_sample(images, where, padding_mode="reflection", align_corners=False)


def batches(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffled index batches (B,); an epoch's remainder is left out, the next is shuffled anew."""
    batch = min(batch, count)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % batch].split(batch)


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by what they need.

    "blocks"  matrices inside transformer blocks: weight decay on a schedule, and Muon if asked for
    "ends"    the matrices that lead in and out (patch embedding, projections): a small weight decay
    "spared"  biases, norms, the mask token and learned positions: no weight decay
    """
    groups: dict[str, list[nn.Parameter]] = {"blocks": [], "ends": [], "spared": []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            spared = p.ndim < 2 or name.endswith(("mask_token", "pos_embed"))
            groups["spared" if spared else "blocks" if ".blocks." in name else "ends"].append(p)
    return groups


def make_optimisers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest."""
    groups = {name: dict(params=params, name=name) for name, params in parameter_groups(model).items()}
    blocks = groups.pop("blocks")
    if config.optimiser == "adamw":
        return [torch.optim.AdamW([blocks, *groups.values()], betas=(0.9, 0.95), fused=True)]
    return [
        torch.optim.AdamW(list(groups.values()), betas=(0.9, 0.95), fused=True),
        Muon([blocks], torch.bfloat16 if uses_bf16(blocks["params"][0].device) else torch.float32),
    ]


def set_schedules(optimisers: list[torch.optim.Optimizer], config: TrainConfig, progress: float) -> tuple[float, float]:
    """Set learning rate and weight decay for this step; returns the rate and the blocks' decay."""
    lr = warmup_cosine(progress, config.lr, config.warmup)
    decay = {"blocks": cosine(progress, *config.weight_decay), "ends": config.ends_decay, "spared": 0.0}
    for group in (g for optimiser in optimisers for g in optimiser.param_groups):
        group["lr"] = lr
        group["weight_decay"] = decay[group["name"]]
    return lr, decay["blocks"]


@torch.no_grad()
def watch(model: Method, images: Tensor, bf16: bool, warned: set[str]) -> dict[str, float]:
    """Feature std, effective rank and share of position on uint8 images; warns of each kind of collapse once.

    And `mean_loss`, the loss of an answer that knows no picture, on some of them; nan for methods without one.
    """
    known = getattr(model, "mean_loss", None)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        tokens = model.probed(normalise(images))
        mean_loss = known(normalise(images[:: max(len(images) // MEANT, 1)])) if known else math.nan
    found = health(tokens.float())
    if not math.isfinite(found.rank):
        raise NonFiniteLossError("the features are no longer finite numbers")
    for kind, message in found.warnings().items():
        if kind not in warned:
            warned.add(kind)
            warnings.warn(message, stacklevel=3)
    return dict(mean_loss=mean_loss, std=found.std, rank=found.rank, position=found.position)


def train(
    model: nn.Module,
    images: Tensor,
    config: TrainConfig,
    progress: bool = True,
    rows: int = ROWS,
    look: Callable[[dict[str, float]], dict[str, float]] | None = None,
) -> History:
    """Train `model` (a Method) in place on uint8 images (S, C, H, W) and return what was measured on the way.

    rows  of history, about; for each of them WATCHED images are encoded, in the step's precision: about a step's time
    look  is called with each row, and what it returns is added to the row (`toy_ijepa.best`)
    Ctrl-C ends the run early and keeps the weights. Features that collapse raise a warning.
    Raises NonFiniteLossError when the numbers blow up, and ValueError for fewer than two images.
    """
    if len(images) < 2:
        raise ValueError(f"{len(images)} image is too few to train on")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(config.seed)
    optimisers = make_optimisers(model, config)
    bf16 = uses_bf16(device, config.precision)
    watched = images[:: max(len(images) // WATCHED, 1)][:WATCHED].to(device)
    history, losses, warned = History(), [], set()
    start, cpu_start = time.perf_counter(), time.process_time()
    looks = "{percentage:3.0f}%|{bar}|{postfix} [{elapsed}<{remaining}]"
    # Once a second: a notebook's front end loses messages when it gets thousands from one cell.
    bar = tqdm(total=100, disable=not progress, bar_format=looks, mininterval=1.0)
    try:
        for index in batches(len(images), config.batch, generator):
            elapsed = time.perf_counter() - start
            done = history.steps / config.steps if config.steps else elapsed / (60 * config.minutes)
            if done >= 1.0 and history.steps:
                break
            lr, decay = set_schedules(optimisers, config, done)
            batch = augment(normalise(images[index].to(device)), config.crop, config.flip, generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = model.step_loss(batch, generator)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise NonFiniteLossError(f"the loss is {losses[-1]}")
            loss.backward()
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            momentum = model.after_step(done)
            history.steps += 1
            history.images += len(index)
            if not history.rows or done - history.rows[-1]["progress"] >= 1 / rows:
                row = dict(step=history.steps, progress=done, seconds=elapsed, loss=sum(losses) / len(losses), lr=lr)
                row |= dict(weight_decay=decay, momentum=momentum, **watch(model, watched, bf16, warned))
                row["images_per_second"] = history.images / (time.perf_counter() - start)
                history.rows.append(row | look(row) if look else row)
                losses.clear()
                beside = "" if math.isnan(row["mean_loss"]) else f" (without the picture {row['mean_loss']:.4f})"
                pace = "{images_per_second:.0f} images/s, rank {rank:.1f}".format(**row)
                bar.set_postfix_str(f"loss {row['loss']:.4f}{beside}, {pace}")
            bar.update(100 * done - bar.n)
        bar.update(100 - bar.n)
    except KeyboardInterrupt:
        history.ended = "interrupted"
    except NonFiniteLossError as error:
        history.ended = "diverged"
        told = f"{error} at step {history.steps}: try a lower learning rate than {config.lr}, a longer warm-up, or fp32"
        failure = NonFiniteLossError(told)
        failure.history = history
        raise failure from error
    finally:
        history.seconds, history.cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        bar.close()
    return history
