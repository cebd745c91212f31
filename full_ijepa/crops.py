"""Random crops: a batch at once on its device, or pictures of any sizes, one by one; both draw the same places."""

# Shape legend:  B pictures of a batch  C channels  H,W pixels, at last those of recipe.sides

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from full_ijepa.recipes.base import Recipe


@dataclass(frozen=True)
class Crops:
    """Where to cut pictures, each (B,): size and centre as shares of the picture's sides, the centre from -1 to 1."""

    width: Tensor
    height: Tensor
    x: Tensor
    y: Tensor
    mirror: Tensor


def draw_crops(H: Tensor | float, W: Tensor | float, count: int, recipe: Recipe, generator: torch.Generator) -> Crops:
    """Random crops of `count` pictures, drawn as torchvision's RandomResizedCrop draws them.

    A share of the area, an aspect ratio evenly on the logarithm, a place anywhere inside; half of them mirrored.
    """
    u = torch.rand(5, count, generator=generator, device=generator.device)
    seen_H, seen_W = recipe.sides
    area = recipe.crop_scale[0] + (recipe.crop_scale[1] - recipe.crop_scale[0]) * u[0]
    low, high = map(math.log, recipe.crop_aspect)
    aspect = (low + (high - low) * u[1]).exp() * (seen_W / seen_H)  # a crop may be so much wider than what is seen
    width = (area * aspect * H / W).sqrt().clamp(max=1.0)
    height = (area / aspect * W / H).sqrt().clamp(max=1.0)
    x, y = (2 * u[3] - 1) * (1 - width), (2 * u[4] - 1) * (1 - height)
    return Crops(width, height, x, y, (u[2] < 0.5) & recipe.flip)


def augment(images: Tensor, recipe: Recipe, seed: int) -> Tensor:
    """Random crops of images (B, C, H, W) brought to the recipe's sides, half of them mirrored; normalised float.

    The whole batch at once on its device.
    """
    B, C, H, W = images.shape
    crops = draw_crops(H, W, B, recipe, torch.Generator(images.device).manual_seed(seed))
    affine = torch.zeros(B, 2, 3, device=images.device)
    affine[:, 0, 0], affine[:, 1, 1] = torch.where(crops.mirror, -crops.width, crops.width), crops.height
    affine[:, 0, 2], affine[:, 1, 2] = crops.x, crops.y
    where = F.affine_grid(affine, [B, C, *recipe.sides], align_corners=False)
    images = recipe.pixels.normalise(images)
    return F.grid_sample(images, where, mode="bilinear", padding_mode="reflection", align_corners=False)


def cut(pictures: list[Tensor], recipe: Recipe, seed: int) -> Tensor:
    """Random crops as `augment` draws them, of pictures (C, H, W) of any sizes, with antialiasing: (B, C, H, W).

    Sides are rounded to whole pixels. uint8 on the CPU stays uint8, all else becomes float32.
    """
    H, W = torch.tensor([picture.shape[1:] for picture in pictures], dtype=torch.float32).unbind(1)
    crops = draw_crops(H, W, len(pictures), recipe, torch.Generator().manual_seed(seed))
    h, w = ((share * side).round().clamp(min=1) for share, side in ((crops.height, H), (crops.width, W)))
    top, left = ((crops.y + 1) / 2 * H - h / 2).round(), ((crops.x + 1) / 2 * W - w / 2).round()
    corners = torch.stack([top.clamp(min=0), left.clamp(min=0), top + h, left + w], dim=1).long().tolist()
    bytes_kept = {picture.device.type for picture in pictures} == {"cpu"}  # CUDA resizes only floats with antialiasing
    pictures = [p if p.dtype == torch.uint8 and bytes_kept else p.float() for p in pictures]
    found = [
        F.interpolate(picture[None, :, y:y2, x:x2], recipe.sides, mode="bilinear", antialias=True)
        for picture, (y, x, y2, x2) in zip(pictures, corners, strict=True)
    ]
    mirror = crops.mirror.tolist()  # known to the host: a device is never asked
    return torch.cat([image.flip(3) if turned else image for image, turned in zip(found, mirror, strict=True)])
