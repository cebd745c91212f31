"""An embedded picture set: copies of one silhouette, everything else about them a nuisance, every factor a label.

What carries the class must be predictable from context, or I-JEPA has no reason to learn it: each picture repeats one
silhouette, so the visible copies say what the hidden ones look like. Every copy has its own colour and rotation, and
figures may be lighter or darker than the ground, so no pixel and no colour gives the class away to a linear probe. How
much ground is covered does leak: nearest neighbours of pixels are well above chance, keep them beside every kNN score.

One dial more: grain, as of a grainy photograph. Nobody can predict it from context, so a method that predicts pixels
spends itself on it, and one that predicts features may leave it out.
"""

# Shape legend:  S pictures  O objects of a scene  H,W pixels (H = W = side)
#                u,v coordinates in the object's own frame, about [-1, 1]

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SUPERSAMPLE = 2  # each pixel is the mean of 2x2 samples: soft edges
GRAIN_SEED = 77_003  # added to the seed, so that the pictures under the grain are the same at every setting
SPLIT_SEED = {"train": 0, "test": 1_000_003}  # pictures are seeded by split, so the two never share a draw


def star(u: Tensor, v: Tensor) -> Tensor:
    """Five points: the radius of the outline swings between 0.4 and 1 with the angle."""
    wave = (torch.atan2(u, -v) * 5 / (2 * torch.pi)) % 1.0
    return torch.hypot(u, v) < 1.0 - 0.6 * (1.0 - (2 * wave - 1.0).abs())


CLASSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": lambda u, v: torch.hypot(u, v) < 0.85,
    "ring": lambda u, v: (torch.hypot(u, v) - 0.72).abs() < 0.23,
    "square": lambda u, v: torch.maximum(u.abs(), v.abs()) < 0.75,
    "frame": lambda u, v: (torch.maximum(u.abs(), v.abs()) - 0.6).abs() < 0.2,
    "triangle": lambda u, v: (v < 0.6) & (v > 1.75 * u.abs() - 1.0),
    "star": star,
    "cross": lambda u, v: (torch.minimum(u.abs(), v.abs()) < 0.27) & (torch.maximum(u.abs(), v.abs()) < 0.95),
    "crescent": lambda u, v: (torch.hypot(u, v) < 0.95) & (torch.hypot(u - 0.45, v) > 0.7),
    "heart": lambda u, v: (1.25 * u).square() + (-1.2 * v + 0.1 - (1.1 * u.abs()).sqrt() * 0.75).square() < 0.9,
    "bars": lambda u, v: (u.abs() < 0.85) & ((v.abs() - 0.52).abs() < 0.26),
    "arrow": lambda u, v: ((v > -0.1) & (v < 0.95) & (u.abs() < 0.24)) | ((v <= -0.1) & (v > 1.2 * u.abs() - 1.0)),
    "corner": lambda u, v: (torch.maximum(u.abs(), v.abs()) < 0.8) & ((u < -0.25) | (v > 0.25)),
}


@dataclass(frozen=True)
class Pictures:
    """uint8 images (S, 3, H, W) and the factors that made them.

    Of the picture, (S,): shape (class number in the order of CLASSES), size (radius in half sides), x and y (shift of
    the pattern in half sides), dark (1 if the ground is darker than the figures), ground_hue in [0, 1), ground (0 flat,
    1 gradient, 2 clouds). Of each object, (S, O): object_hue in [0, 1) and object_angle in radians.
    Of scenes instead: count (S,), and (S, O): object_shape (-1 for one that is not there), object_size, object_x,
    object_y, object_hue, object_angle, object_depth (1 nearest ... count farthest, 0 for one that is not there).
    """

    images: Tensor
    factors: dict[str, Tensor]


def silhouette(shape: Tensor, x: Tensor, y: Tensor, size: Tensor, angle: Tensor, side: int) -> Tensor:
    """Share of each pixel that the object covers: five factors (S,) -> (S, H, W) in [0, 1]."""
    fine = side * SUPERSAMPLE
    axis = (torch.arange(fine) + 0.5) * (2.0 / fine) - 1.0  #              pixel centres in half sides
    dx, dy = axis[None, None, :] - x[:, None, None], axis[None, :, None] - y[:, None, None]
    cos, sin = (f(angle)[:, None, None] / size[:, None, None] for f in (torch.cos, torch.sin))
    u, v = cos * dx + sin * dy, cos * dy - sin * dx  #                     (S, fine, fine)
    inside = torch.zeros_like(u)
    for number, outline in enumerate(CLASSES.values()):
        rows = (shape == number).nonzero().flatten()
        inside[rows] = outline(u[rows], v[rows]).float()
    return F.avg_pool2d(inside[:, None], SUPERSAMPLE)[:, 0]


def colour(hue: Tensor, value: Tensor, saturation: Tensor) -> Tensor:
    """RGB (S, 3) in [0, 1] from hue, brightness and saturation, each (S,) in [0, 1]."""
    wheel = (hue[:, None] * 6 + torch.tensor([5.0, 3.0, 1.0])) % 6
    ramp = torch.minimum(wheel, 4 - wheel).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * ramp)


def clouds(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Smooth random brightness (S, H, W) in [-1, 1]: coarse noise, enlarged."""
    coarse = torch.rand(count, 1, 5, 5, generator=generator) * 2 - 1
    return F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)[:, 0].clamp(-1, 1)


def background(kind: Tensor, base: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Flat, gradient or cloudy pictures (S, 3, H, W) around the colour base (S, 3)."""
    turn = torch.rand(len(kind), generator=generator) * 2 * torch.pi
    axis = torch.linspace(-1, 1, side)
    slope = turn.cos()[:, None, None] * axis[None, None, :] + turn.sin()[:, None, None] * axis[None, :, None]
    shade = torch.stack([torch.zeros_like(slope), slope / 1.5, clouds(len(kind), side, generator)])  # (3, S, H, W)
    shade = shade[kind, torch.arange(len(kind))]  #                        (S, H, W)
    return base[:, :, None, None] + 0.15 * shade[:, None]


def between(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers drawn evenly from [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def paint(objects: dict[str, Tensor], there: Tensor, side: int, g: torch.Generator) -> Pictures:
    """Draw the objects (shape, x, y, size, angle, each (S, O)) on random grounds in random colours, first ones first.

    there  boolean (S, O), True where the object exists
    """
    S, O = there.shape  # noqa: E741 (O objects, see the legend)
    hue, ground_hue = between(0, 1, (S, O), g), between(0, 1, (S,), g)
    ground, dark = torch.randint(3, (S,), generator=g), torch.randint(2, (S,), generator=g)
    low, high = between(0.15, 0.45, (S,), g), between(0.6, 0.95, (S,), g)
    saturation = between(0.2, 0.8, (2, S), g)
    images = background(ground, colour(ground_hue, torch.where(dark == 1, low, high), saturation[0]), side, g)
    for o in range(O):
        cover = silhouette(*(objects[n][:, o] for n in ("shape", "x", "y", "size", "angle")), side)
        cover = cover * there[:, o, None, None]  #                         (S, H, W)
        tone = torch.where(dark == 1, high, low) * between(0.85, 1.0, (S,), g)
        ink = colour(hue[:, o], tone, saturation[1])[:, :, None, None]
        images = images + cover[:, None] * (ink - images)
    images = (images + 0.02 * torch.randn(images.shape, generator=g)).clamp(0, 1)
    factors = dict(ground=ground, ground_hue=ground_hue, dark=dark, object_hue=hue, object_angle=objects["angle"])
    return Pictures(images.mul(255).round().byte(), factors)


def add_grain(images: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Grey grain on uint8 images (S, 3, H, W): the same normal noise on the three channels, cut to what a byte holds.

    std  of the grain, on a scale where black is 0 and white is 1
    """
    S, _, H, W = images.shape
    noise = torch.randn(S, 1, H, W, generator=generator)  #                (S, 1, H, W) one number for three channels
    return (images.float() + 255 * std * noise).clamp(0, 255).round().byte()


def pattern(S: int, side: int, copies: int, g: torch.Generator) -> Pictures:
    """S pictures of copies x copies versions of one silhouette on a shifted, uneven lattice."""
    O, cell = copies**2, 2.0 / copies  # noqa: E741
    shape = torch.randint(len(CLASSES), (S,), generator=g)
    shift = between(-0.3, 0.3, (2, S, 1), g) * cell
    size = between(0.38, 0.52, (S,), g) * cell
    row, column = torch.arange(O) // copies, torch.arange(O) % copies
    lattice = torch.stack([column, row])[:, None] * cell + cell / 2 - 1.0  # (2, 1, O)
    x, y = lattice + shift + between(-0.12, 0.12, (2, S, O), g) * cell  #   each (S, O)
    objects = dict(shape=shape[:, None].expand(S, O), x=x, y=y, angle=between(-torch.pi, torch.pi, (S, O), g))
    objects["size"] = size[:, None] * between(0.9, 1.1, (S, O), g)
    drawn = paint(objects, torch.ones(S, O, dtype=torch.bool), side, g)
    return Pictures(drawn.images, dict(shape=shape, size=size, x=shift[0, :, 0], y=shift[1, :, 0], **drawn.factors))


def scene(S: int, side: int, most: int, g: torch.Generator) -> Pictures:
    """S pictures of 1 ... `most` silhouettes that may be alike and hide each other, the farthest drawn first."""
    count = torch.randint(1, most + 1, (S,), generator=g)
    there = torch.arange(most) < count[:, None]  #                         (S, O)
    objects = dict(shape=torch.randint(len(CLASSES), (S, most), generator=g), size=between(0.25, 0.5, (S, most), g))
    objects["x"], objects["y"] = between(-0.7, 0.7, (2, S, most), g)
    objects["angle"] = between(-torch.pi, torch.pi, (S, most), g)
    drawn = paint(objects, there, side, g)
    factors = {f"object_{n}": f for n, f in objects.items()} | drawn.factors
    factors["object_shape"] = objects["shape"].masked_fill(~there, -1)
    factors["object_depth"] = (count[:, None] - torch.arange(most)).clamp_min(0)
    return Pictures(drawn.images, dict(count=count, **factors))


def generate(
    count: int, seed: int = 0, side: int = 32, copies: int = 2, most: int = 0, chunk: int = 1000, grain: float = 0.0
) -> Pictures:
    """`count` pictures of `side` pixels, the same for the same seed, count and chunk; class number in factors["shape"].

    copies  silhouettes along each side of the pattern
    most    if above 0, scenes of 1 ... `most` objects instead, with count and depth
    grain   std of the grain, black 0 and white 1; the pictures under it do not depend on it
    Raises ValueError if count, side, copies or most is too small to draw, or the grain is negative.
    """
    if not 0 <= grain <= 2:
        raise ValueError(f"grain of std {grain} is not within 0 and 2")
    if count < 1 or side < 8 or copies < 1 or most < 0:
        raise ValueError(
            f"cannot draw {count} pictures of {side} px (at least 1, 8 px), {copies} copies, {most} objects"
        )
    g = torch.Generator().manual_seed(seed)
    sizes = [min(chunk, count - i) for i in range(0, count, chunk)]
    parts = [scene(S, side, most, g) if most else pattern(S, side, copies, g) for S in sizes]
    images = torch.cat([part.images for part in parts])
    if grain:
        dust = torch.Generator().manual_seed(seed + GRAIN_SEED)
        images = torch.cat([add_grain(some, grain, dust) for some in images.split(chunk)])
    return Pictures(images, {name: torch.cat([part.factors[name] for part in parts]) for name in parts[0].factors})
