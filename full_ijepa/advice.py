"""From a look at pictures to a recipe to start with, a reason beside each choice. Rules of thumb, not measurements.

Rate, momentum and the size of the encoder are those of balance.py, which warns of others before the first step.
"""

# Shape legend:  H,W pixels  P patch side (pixels)

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from full_ijepa import balance
from full_ijepa.look import Look
from full_ijepa.recipes.base import Recipe
from full_ijepa.recipes.folder_vits16 import RECIPE
from full_ijepa.vit import SIZES
from toy_ijepa.trouble import FED

TOKENS = 196  # most tokens of a picture: 224 x 224 px in patches of 16
PATCHES = ((4, 64), (8, 144), (16, math.inf))  # patch side for pictures below so many px, root of their area
LEAST = 4  # patches on a side: with fewer there is nothing to mask
WIDE = 1.5  # width over height, or height over width, above which a square would lose more than a third
ALIKE = 0.75  # share of pictures that must have about the median's shape before it is that of the encoder
SHOWN = 2_000_000  # pictures that a run is shown, counted each time: 200 epochs of Imagenette's 9,469
EPOCHS = 50, 400
BATCHES = 8, 256
ROUNDS = 32  # steps an epoch that a batch leaves at least, where the set is not tiny
LARGEST = "b"  # what one GPU trains in reasonable time


@dataclass(frozen=True)
class Advice:
    """A recipe, what it is for, and why: sentences in the order of its fields."""

    recipe: Recipe
    reasons: tuple[str, ...]

    @property
    def command(self) -> str:
        """The line that starts it, for a shell."""
        return shlex.join(["python", "-m", "full_ijepa", "pretrain", "folder_vits16", *flags(self.recipe)])


def flags(recipe: Recipe) -> Iterator[str]:
    """Flags for all that differs from folder_vits16, and where to write."""
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if value != getattr(RECIPE, field.name):
            values = value if isinstance(value, tuple) else (value,)
            yield from (
                f"--{field.name.replace('_', '-')}",
                *(f"{v:g}" if isinstance(v, float) else str(v) for v in values),
            )
    yield from ("--out", "runs/first")


def advise(found: Look) -> Advice:
    """A recipe for the pictures of a look."""
    count = len(found.training)
    patch, sides, reasons = seen_at(found)
    encoder, told = size_for(count, patch)
    width, _, heads = SIZES[encoder]
    batch = batch_for(count)
    epochs = min(max(round(SHOWN / count, -1), EPOCHS[0]), EPOCHS[1])
    changes = dict(
        data=found.data,
        image_size=sides[0] if sides[0] == sides[1] else sides,
        channels=asked_channels(found),
        encoder=encoder,
        patch=patch,
        crop_scale=(0.6, 1.0) if patch == PATCHES[0][0] else RECIPE.crop_scale,
        predictor_width=width // 2,
        predictor_heads=12 if encoder == "b" else heads,
        batch=batch,
        micro_batch=min(batch, RECIPE.micro_batch),
        epochs=float(epochs),
        warmup_epochs=epochs / 10,
        lr=float(f"{balance.rate_for(batch, width):.1g}"),
        probe_epochs=epochs / 10 if found.table or len(found.training.classes) > 1 else 0.0,
        **dataclasses.asdict(found.table),  # without it the run would train on what the table sets aside
    )
    recipe = RECIPE.replace(**changes)
    steps = balance.steps_of(recipe, count)
    first = math.floor(1000 * min(balance.momentum_for(steps), Recipe().momentum[0])) / 1000
    recipe = recipe.replace(momentum=(first, 1.0))
    reasons += [
        told,
        f"epochs {epochs}, batch {batch}: {steps:,} steps, {epochs * count:,} pictures shown; about {SHOWN:,} are "
        f"enough for a first look, in {EPOCHS[0]} to {EPOCHS[1]} epochs, with {ROUNDS} steps an epoch or more "
        "where the set allows it",
        f"lr {recipe.lr:g}: what worked at batch 2048 and width 1280 (1e-3), by the root of the batch and 1/width; "
        "half of it if the loss jumps",
        f"momentum from {first:g}: the target forgets its random start within a fiftieth of {steps:,} steps",
        *channels_told(found, recipe.channels),
    ]
    return Advice(recipe, tuple(reasons))


def seen_at(found: Look) -> tuple[int, tuple[int, int], list[str]]:
    """Patch side and sides (H, W) of what the encoder sees, with reasons."""
    H, W = found.sides
    patch = next(side for side, below in PATCHES if math.sqrt(H * W) < below)
    aspect = W / H
    shapes = [seen.sides[1] / seen.sides[0] / aspect for seen in found.training.seen]
    alike = sum(1 / 1.25 < shape < 1.25 for shape in shapes) / len(shapes)
    wide = max(aspect, 1 / aspect) > WIDE and alike >= ALIKE
    h, w = (H, W) if wide else (math.sqrt(H * W),) * 2
    scale = min(1.0, patch * math.sqrt(TOKENS / (h * w)))
    sides = tuple(max(int(scale * side / patch + 1e-9), LEAST) * patch for side in (h, w))
    tokens = sides[0] // patch * (sides[1] // patch)
    shape = f"{H} x {W} px (height x width) in the median"
    why = f"patch {patch}: the pictures are {shape}; {tokens} tokens, and {TOKENS} at most keep a step cheap"
    if wide:
        form = f"a rectangle, as {alike:.0%} of the pictures are about {aspect:.2g} times as wide as high"
    elif max(aspect, 1 / aspect) > WIDE:
        form = f"a square: only {alike:.0%} of the pictures have the shape of the median"
    else:
        form = "a square, which crops of pictures of this shape fill"
    if patch == PATCHES[0][0]:
        why += "; crops keep 0.6 of the area or more, as there is little to cut away (chosen on the toy, at 32 px)"
    reasons = [why, f"image_size {' '.join(map(str, dict.fromkeys(sides)))}: {form}"]
    small = sum(min(seen.sides[0] / sides[0], seen.sides[1] / sides[1]) < 1 for seen in found.training.seen)
    if small:
        reasons.append(
            f"{small} of {len(shapes)} pictures are smaller than that and will be enlarged: tokens without detail. If "
            "they matter, take a smaller image_size and patch"
        )
    return patch, sides, reasons


def size_for(count: int, patch: int) -> tuple[str, str]:
    """The largest encoder that so many pictures feed, up to LARGEST, with the reason."""
    fed = balance.fed_by(count, patch)
    order = list(SIZES)
    encoder = order[min(order.index(fed or "toy"), order.index(LARGEST))]
    millions = balance.parameters_of(encoder, patch) / 1e6
    ratio = f"{millions:.1f} M parameters, where up to {FED:,} a picture are known to learn"
    if fed is None:
        least = math.ceil(balance.parameters_of("toy", patch) / FED)
        return encoder, (
            f"encoder {encoder}, the smallest: {ratio}, and {count:,} pictures are fewer than the {least:,} that it "
            "wants. Get more (labels are not needed), or take released weights instead"
        )
    larger = [name for name in order[order.index(encoder) + 1 :] if order.index(name) <= order.index(fed)]
    if larger:
        return encoder, f"encoder {encoder}: {ratio}; {', '.join(larger)} would be fed too, and ask for several GPUs"
    after = order[order.index(encoder) + 1 : order.index(encoder) + 2]
    wants = [f"; {n} wants {math.ceil(balance.parameters_of(n, patch) / FED):,} pictures" for n in after]
    return encoder, f"encoder {encoder}: {ratio}, and here are {count:,}{''.join(wants)}"


def batch_for(count: int) -> int:
    """The largest power of two within BATCHES that leaves ROUNDS steps an epoch."""
    return min(max(2 ** int(math.log2(max(count / ROUNDS, 1))), BATCHES[0]), BATCHES[1])


def asked_channels(found: Look) -> int:
    """--channels where the files do not agree, and 0 where they speak for themselves."""
    return found.pixels.channels if len({channels for channels, _ in found.kinds}) > 1 else 0


def channels_told(found: Look, asked: int) -> list[str]:
    pixels = found.pixels
    if pixels.photographs:
        return []
    how = "asked for, as the files do not agree" if asked else "as many as the files have"
    return [
        f"channels {pixels.channels}, {how}; mean and std are measured when training starts, and saved with the run"
    ]
