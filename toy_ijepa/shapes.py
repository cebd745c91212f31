"""An embedded picture set: one large silhouette a picture, everything else about it a nuisance, every factor a label.

TEXT
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
    """uint8 images (S, 3, H, W) and the factors that made them, each (S,) or (S, O).

    shape      class number (order of CLASSES); in scenes (S, O), -1 for an object that is not there
    hue, ground_hue  colour angle of figure and background in [0, 1)
    ground     kind of background: 0 flat, 1 gradient, 2 clouds
    size       radius in half sides; x, y  centre in half sides from the middle; angle  in radians
    count      objects in the picture; depth  1 nearest ... count farthest, 0 for an object that is not there
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


def paint(objects: int, size: tuple[float, float], place: float, S: int, side: int, g: torch.Generator) -> Pictures:
    """Draw S pictures of 1 ... `objects` silhouettes each, far ones first."""
    shape = torch.randint(len(CLASSES), (S, objects), generator=g)
    count = torch.randint(1, objects + 1, (S,), generator=g)
    there = torch.arange(objects) < count[:, None]  #                      (S, O), the farthest first
    radius = between(*size, (S, objects), g)
    x, y = between(-place, place, (2, S, objects), g)
    angle = between(-torch.pi, torch.pi, (S, objects), g)
    hue, ground_hue = between(0, 1, (S, objects), g), between(0, 1, (S,), g)
    ground = torch.randint(3, (S,), generator=g)
    dark = torch.randint(2, (S,), generator=g)  #                          is the ground dark or the figure?
    low, high = between(0.15, 0.45, (S,), g), between(0.6, 0.95, (S,), g)
    saturation = between(0.2, 0.8, (2, S), g)
    images = background(ground, colour(ground_hue, torch.where(dark == 1, low, high), saturation[0]), side, g)
    for o in range(objects):
        cover = silhouette(shape[:, o], x[:, o], y[:, o], radius[:, o], angle[:, o], side) * there[:, o, None, None]
        tone = torch.where(dark == 1, high, low) * between(0.85, 1.0, (S,), g)
        paint = colour(hue[:, o], tone, saturation[1])[:, :, None, None]
        images = images + cover[:, None] * (paint - images)
    images = (images + 0.02 * torch.randn(images.shape, generator=g)).clamp(0, 1)
    factors = dict(shape=shape.masked_fill(~there, -1), x=x, y=y, size=radius, angle=angle, hue=hue)
    factors["depth"] = (count[:, None] - torch.arange(objects)).clamp_min(0)
    factors |= dict(count=count, ground=ground, ground_hue=ground_hue)
    return Pictures(images.mul(255).round().byte(), factors)


def stack(parts: list[Pictures]) -> Pictures:
    """Several batches of pictures as one."""
    names = parts[0].factors
    return Pictures(torch.cat([p.images for p in parts]), {n: torch.cat([p.factors[n] for p in parts]) for n in names})


def generate(count: int, seed: int = 0, side: int = 32, scene: int = 1, chunk: int = 1000) -> Pictures:
    """`count` pictures of `side` pixels, the same for the same seed; class number in factors["shape"].

    scene  1 gives one large silhouette a picture, factors (S,); O > 1 gives 1 ... O smaller ones that may hide each
           other, object factors (S, O)
    Raises ValueError if count, side or scene is too small to draw.
    """
    if count < 1 or side < 8 or scene < 1:
        raise ValueError(f"cannot draw {count} pictures of {side} px with {scene} objects; at least 1, 8 px and 1")
    g = torch.Generator().manual_seed(seed)
    size, place = ((0.5, 0.95), 0.35) if scene == 1 else ((0.25, 0.5), 0.7)
    parts = [paint(scene, size, place, min(chunk, count - i), side, g) for i in range(0, count, chunk)]
    pictures = stack(parts)
    if scene > 1:
        return pictures
    return Pictures(pictures.images, {n: f[:, 0] if f.ndim == 2 else f for n, f in pictures.factors.items()})
