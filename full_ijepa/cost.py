"""What a run will cost, before it is started: parameters, FLOPs, memory and time."""

# Shape legend:  B images of a micro-batch  N tokens  D width

from __future__ import annotations

import math

import torch
from torch.utils.flop_counter import FlopCounterMode

from full_ijepa import methods
from full_ijepa.data import SMALL, opened, settled
from full_ijepa.recipes.base import Recipe
from full_ijepa.train import precision_of, steps_of
from toy_ijepa.bench import matmul_rate

COUNTS = {"stl10": 100_000, "cifar10": 50_000, "cifar100": 50_000, "shapes": 20_000, "imagenet": 1_281_167}
SHARE = 0.4  # a guess: of the rate of one large product that a training step reaches; `full_ijepa.bench` measures it


def flops_per_image(recipe: Recipe, batch: int = 4) -> float:
    """FLOPs of the matrix products of a training step, an image: what torch counts, recomputed blocks included."""
    step = methods.Step(methods.build(recipe.replace(compile=False, groups=1)))
    images = torch.zeros(batch, recipe.pixels.channels, *recipe.sides)
    with FlopCounterMode(display=False) as counter:
        step(images, 0).backward()
    return counter.get_total_flops() / batch


def memory(recipe: Recipe, parameters: int, trained: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """Bytes that a process needs, roughly: weights, gradients, Adam's two moments, and what backward keeps.

    A block keeps about 34 bytes a token and channel in half precision (twice that in fp32), with checkpointing two.
    Attention maps (kept on a CPU only), the pictures and FSDP's savings are left out.
    Source of the count: Korthikanti et al. 2022, arXiv:2205.05198, section 4.
    """
    from full_ijepa.vit import SIZES

    width, depth, _ = SIZES[recipe.encoder]
    tokens = math.prod(side // recipe.patch for side in recipe.sides)
    seen = tokens * (1 - recipe.hidden) if recipe.method == "mae" else 0.45 * tokens
    asked = tokens if recipe.method == "mae" or recipe.predictor_mode == "joint" else 4 * 0.65 * tokens
    kept = 1 if recipe.checkpointing else 17
    numbers = seen * width * depth * kept + asked * recipe.predictor_width * recipe.predictor_depth * kept
    return 4.0 * (parameters + 3 * trained) + dtype.itemsize * numbers * min(recipe.micro_batch, recipe.batch)


def pictures_of(recipe: Recipe) -> int:
    """How many pictures the run trains on, without decoding them."""
    if recipe.data in SMALL or recipe.data == "imagenet":
        return COUNTS[recipe.data]
    return len(opened(recipe))


def estimate(recipe: Recipe, device: str = "auto") -> str:
    """Parameters, FLOPs an image, memory and time of a run on one device, as text. Estimates say "about"."""
    recipe = settled(recipe)
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    here = torch.device(kind)
    method = methods.build(recipe.replace(compile=False))
    parameters = sum(p.numel() for p in method.parameters())
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    encoder = sum(p.numel() for p in method.encoder.parameters())
    pictures = pictures_of(recipe)
    steps, flops = steps_of(recipe, pictures), flops_per_image(recipe)
    dtype = precision_of(recipe, here)
    rate = matmul_rate(dtype, 2048 if kind == "cpu" else 8192, kind)
    seconds = steps * recipe.batch * flops / (SHARE * rate)
    held = memory(recipe, parameters, trained, dtype)
    name = torch.cuda.get_device_name() if kind == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    lines = {
        "run": f"{recipe.method}, ViT-{recipe.encoder.upper()}/{recipe.patch}, {shown(recipe)}, {recipe.data}",
        "parameters": f"{encoder / 1e6:.1f} M encoder, {trained / 1e6:.1f} M trained",
        "steps": f"{steps:,} of {recipe.batch} images ({recipe.epochs:g} epochs of {pictures:,} pictures)",
        "FLOPs": f"{flops / 1e9:.2f} G an image (forward and backward), {steps * recipe.batch * flops:.2e} in all",
        "memory": f"about {size(held)} a process at {min(recipe.micro_batch, recipe.batch)} images",
        "device": f"{name}: {rate / 1e12:.2f} TFLOP/s in a large {str(dtype).removeprefix('torch.')} product",
        "time": f"about {span(seconds)} if a step reaches {SHARE:.0%} of that rate",
    }
    return "\n".join(f"{word:12}{text}" for word, text in lines.items())


def shown(recipe: Recipe) -> str:
    """What the encoder sees: "224 px", or "64x256 px, 5 channels"."""
    sides = "x".join(map(str, dict.fromkeys(recipe.sides)))
    return f"{sides} px" + (f", {recipe.channels} channels" if recipe.channels != 3 else "")


def size(count: float) -> str:
    """Bytes in the unit that suits."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def span(seconds: float) -> str:
    """Seconds in the unit that suits."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
