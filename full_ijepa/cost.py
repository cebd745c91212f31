"""What a run will cost, before it is started: parameters, FLOPs, memory and time."""

# Shape legend:  B images of a micro-batch  N tokens  K context patches  M target blocks
#                T patches of a block  D width  E predictor width

from __future__ import annotations

import math
import time
from dataclasses import astuple, dataclass
from itertools import islice

import torch

from full_ijepa import methods
from full_ijepa.data import SMALL, opened, settled
from full_ijepa.machine import pick
from full_ijepa.masking import Drawn, Packed
from full_ijepa.order import plan
from full_ijepa.recipes.base import Recipe
from full_ijepa.train import precision_of, set_up, steps_of
from toy_ijepa.bench import matmul_rate

COUNTS = {"stl10": 100_000, "cifar10": 50_000, "cifar100": 50_000, "shapes": 20_000, "imagenet": 1_281_167}
SHARE = 0.4  # a guess: of the rate of one large product that a training step reaches; `full_ijepa.bench` measures it
TRIED = 0.3  # s of products at that rate for which a CPU tries steps instead: small networks reach a few per cent
TRIES = 2, 12  # steps tried, until PATIENCE s have passed
PATIENCE = 3.0


@dataclass(frozen=True)
class Flops:
    """FLOPs of the matrix products of a training step, an image.

    model       what the method asks for, forward and backward: the measure of how well a device is used (MFU)
    recomputed  what activation checkpointing computes a second time
    """

    model: float
    recomputed: float

    @property
    def hardware(self) -> float:
        """All that is computed: the measure of how long it takes."""
        return self.model + self.recomputed


def flops_per_image(recipe: Recipe, draws: int = 32) -> Flops:
    """FLOPs of the loop's own step, the mean over the masks of its first `draws` micro-batches."""
    with torch.device("meta"):
        method = methods.build(recipe.replace(compile=False))
    B, micros = min(recipe.micro_batch, recipe.batch), plan(recipe.batch, recipe, 0, draws)
    found = [flops_of(method, method.draw(B, micro.seed, micro.sizes)) for micro in islice(micros, draws)]
    return Flops(*(sum(numbers) / (draws * B) for numbers in zip(*map(astuple, found), strict=True)))


def flops_of(method: methods.IJEPA | methods.MAE, drawn: Drawn) -> Flops:
    """FLOPs of a micro-batch under its finished masks; filler, which is no work, is left out.

    Backward is twice forward, less the gradient of the pictures, which nobody wants. The target encoder goes forward
    once. tests/full/test_cost.py counts the same with torch's counter.
    """
    encoder, helper = method.encoder, method.predictor if isinstance(method, methods.IJEPA) else method.decoder
    D, E, depth = encoder.width, helper.config["width"], len(encoder.blocks)
    pixels, out = encoder.patch_embed.proj.in_features, helper.proj.out_features
    whole, seen, asked, answers = lengths_of(drawn, math.prod(encoder.grid), helper.mode == "joint")
    hidden = encoder.blocks[0].mlp.fc1.out_features
    embed = 2 * pixels * D * sum(whole)
    blocks = depth * block_flops(D, hidden, seen) + len(helper.blocks) * block_flops(E, 4 * E, asked)
    model = 2 * embed + 3 * (blocks + 2 * E * (D * sum(seen) + out * answers))
    if isinstance(method, methods.IJEPA):
        model += embed + depth * block_flops(D, hidden, whole)
    # The last product of a block is not computed again: its result is not needed to go backward.
    last = 2 * depth * D * hidden * sum(seen) + 8 * len(helper.blocks) * E**2 * sum(asked)
    return Flops(model, blocks - last if encoder.blocks.checkpointing else 0)


def block_flops(width: int, hidden: int, lengths: list[int]) -> int:
    """Forward FLOPs of a block: per token four products width x width and two width x hidden, and attention."""
    return 4 * width * ((2 * width + hidden) * sum(lengths) + sum(length**2 for length in lengths))


def lengths_of(drawn: Drawn, patches: int, joint: bool) -> tuple[list[int], list[int], list[int], int]:
    """Lengths of the sequences of target encoder, context encoder and predictor, and the number of target tokens."""
    if isinstance(drawn, Packed):
        B, M, T = drawn.targets.shape
        asked = drawn.asked.lengths[: B * (1 if joint else M)]
        return [patches] * B, drawn.seen.lengths[:B].tolist(), asked.tolist(), B * M * T
    seen, asked, answers = [], [], 0
    for group in drawn:
        (b, K), (_, M, T) = group.context.shape, group.targets.shape
        seen += [K] * b
        asked += [K + M * T] * b if joint else [K + T] * (b * M)
        answers += b * M * T
    return [patches] * len(seen), seen, asked, answers


def memory(recipe: Recipe, parameters: int, trained: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """Bytes that a process needs, roughly: weights, gradients, Adam's two moments, and what backward keeps.

    A block keeps about 17 numbers a token and channel, and under autocast, whose norms and sums stay in fp32, as much
    as 20.5 in half precision; with checkpointing one. Attention maps (kept on a CPU only), what is held for a moment,
    the pictures and FSDP's savings are left out.
    Source of the count: Korthikanti et al. 2022, arXiv:2205.05198, section 4; that under autocast is counted, with
    shapes alone, by tests/full/test_step_on_gpu.py.
    """
    from full_ijepa.vit import SIZES

    width, depth, _ = SIZES[recipe.encoder]
    tokens = math.prod(side // recipe.patch for side in recipe.sides)
    seen = tokens * (1 - recipe.hidden) if recipe.method == "mae" else 0.45 * tokens
    asked = tokens if recipe.method == "mae" or recipe.predictor_mode == "joint" else 4 * 0.65 * tokens
    kept = 1 if recipe.checkpointing else 17 if dtype == torch.float32 else 20.5
    numbers = seen * width * depth * kept + asked * recipe.predictor_width * recipe.predictor_depth * kept
    return 4.0 * (parameters + 3 * trained) + dtype.itemsize * numbers * min(recipe.micro_batch, recipe.batch)


def sizes(recipe: Recipe) -> tuple[int, int, int]:
    """Parameters of the encoder, all that are trained, and all (with the target encoder)."""
    with torch.device("meta"):
        method = methods.build(recipe.replace(compile=False))
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    encoder, everything = (sum(p.numel() for p in part.parameters()) for part in (method.encoder, method))
    return encoder, trained, everything


def pictures_of(recipe: Recipe) -> int:
    """How many pictures the run trains on, without decoding them."""
    if recipe.data in SMALL or recipe.data == "imagenet":
        return COUNTS[recipe.data]
    return len(opened(recipe))


def tried(recipe: Recipe, dtype: torch.dtype, images: int) -> float:
    """Seconds an image, forward and backward, of micro-batches of made pictures on this CPU: the fastest."""
    method = methods.build(recipe.replace(compile=False))
    pictures = torch.randn(images, recipe.channels, *recipe.sides)
    seconds: list[float] = []
    for micro in plan(images, recipe.replace(batch=images, micro_batch=images), 0, TRIES[1]):
        if len(seconds) >= TRIES[0] and sum(seconds) > PATIENCE:
            break
        begun = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = method.step_loss(pictures, method.draw(images, micro.seed, micro.sizes))
        loss.backward()
        seconds.append(time.perf_counter() - begun)
    return min(seconds) / images


def estimate(recipe: Recipe, device: str = "auto") -> str:
    """Parameters, FLOPs an image, memory and time of a run on one device, as text. Estimates say "about"."""
    recipe = settled(recipe)
    kind = pick(device)
    here = torch.device(kind)
    encoder, trained, parameters = sizes(recipe)
    pictures = pictures_of(recipe)
    steps, flops = steps_of(recipe, pictures), flops_per_image(recipe)
    dtype = precision_of(recipe, here)
    set_up(recipe, here)
    rate = matmul_rate(dtype, 2048 if kind == "cpu" else 8192, kind)
    share, how = SHARE, "if a step reaches {share:.0%} of that rate"
    images = min(recipe.micro_batch, recipe.batch, int(TRIED * rate / flops.hardware))
    if kind == "cpu" and images > 1:
        share = flops.hardware / tried(recipe, dtype, images) / rate
        how = f"as a step of {images} images just took, {{share:.1%}} of that rate"
    seconds = steps * recipe.batch * flops.hardware / (share * rate)
    held = memory(recipe, parameters, trained, dtype)
    name = torch.cuda.get_device_name() if kind == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    half = recipe.precision == "auto" and dtype == torch.float32  # here; a GPU has bf16
    beside = f" ({size(memory(recipe, parameters, trained))} in bfloat16)" if half else ""
    again = f", and {flops.recomputed / 1e9:.2f} G computed again (checkpointing)" if flops.recomputed else ""
    lines = {
        "run": f"{recipe.method}, ViT-{recipe.encoder.upper()}/{recipe.patch}, {shown(recipe)}, {recipe.data}",
        "parameters": f"{encoder / 1e6:.1f} M encoder, {trained / 1e6:.1f} M trained",
        "steps": f"{steps:,} of {recipe.batch} images ({recipe.epochs:g} epochs of {pictures:,} pictures)",
        "FLOPs": f"{flops.model / 1e9:.2f} G an image (forward and backward){again}, "
        f"{steps * recipe.batch * flops.hardware:.2e} in all",
        "memory": f"about {size(held)}{beside} a process at {min(recipe.micro_batch, recipe.batch)} images, "
        f"beside torch itself, pictures{' and maps of attention' if kind == 'cpu' else ''}",
        "device": f"{name}: {rate / 1e12:.2f} TFLOP/s in a large {str(dtype).removeprefix('torch.')} product",
        "time": f"about {span(seconds)} {how.format(share=share)}",
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
