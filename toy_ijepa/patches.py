"""Images to tokens and back: patch embedding, patchify/unpatchify, and fixed 2-d sine-cosine positions."""

# Shape legend:  B images  C channels  H,W pixels  P patch side (pixels)  h,w grid (patches)  N = h*w tokens  D width

from __future__ import annotations

import torch
from torch import Tensor, nn


def normalise(images: Tensor) -> Tensor:
    """uint8 images (B, C, H, W) -> float around 0 with std about 1, the same for every data set and method.

    Photographs have mean 0.45-0.5 and std 0.2-0.28 a channel on a scale of 0 to 1; the round numbers 0.5 and 0.25 do.
    """
    return images.float() / 63.75 - 2.0  # (x / 255 - 0.5) / 0.25


def grid_size(image_size: int | tuple[int, int], patch: int) -> tuple[int, int]:
    """Number of patches down and across, (h, w), of an image of `image_size` pixels (H, W) or a square's side.

    Raises ValueError if the image is not a whole number of patches in either direction.
    """
    H, W = (image_size, image_size) if isinstance(image_size, int) else image_size
    if patch < 1 or patch > H or patch > W or H % patch or W % patch:
        raise ValueError(
            f"image {H}x{W} px is not a whole number of {patch} px patches; "
            f"choose a patch side that divides both {H} and {W}"
        )
    return H // patch, W // patch


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut images (B, C, H, W) into flat patches (B, N, C*P*P), row-major: token n = i*w + j is row i, column j.

    Raises ValueError if the image is not a whole number of patches.
    """
    B, C, H, W = images.shape
    P = patch
    h, w = grid_size((H, W), P)
    x = images.reshape(B, C, h, P, w, P)  #            (B, C, h, P, w, P)
    x = x.permute(0, 2, 4, 1, 3, 5)  #                 (B, h, w, C, P, P)  token axes first
    return x.flatten(3).flatten(1, 2)  #               (B, N, C*P*P)


def unpatchify(tokens: Tensor, grid: tuple[int, int], channels: int = 3) -> Tensor:
    """Sew flat patches (B, N, C*P*P) back into images (B, C, H, W); the inverse of `patchify`.

    Raises ValueError if N is not h*w or the last axis is not channels * a square.
    """
    B, N, L = tokens.shape
    h, w = grid
    P = round((L / channels) ** 0.5)
    if h * w != N or channels * P * P != L:
        raise ValueError(f"{N} tokens of {L} numbers do not make a {h}x{w} grid of {channels}-channel square patches")
    x = tokens.reshape(B, h, w, channels, P, P)  #     (B, h, w, C, P, P)
    x = x.permute(0, 3, 1, 4, 2, 5)  #                 (B, C, h, P, w, P)
    return x.reshape(B, channels, h * P, w * P)  #     (B, C, H, W)


def sincos_1d(positions: Tensor, width: int) -> Tensor:
    """Sines then cosines of positions (n,) at width/2 frequencies from 1 to 1/10000: (n, width), float64."""
    frequency = 1.0 / 10000 ** (torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = positions.double()[:, None] * frequency  # (n, width/2)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sincos_2d(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed position codes (N, D) for an h x w grid, row-major, float32.

    The first half of the channels encodes the *column*, the second half the row: the order in which the released
    I-JEPA checkpoints were trained, so weights can be exchanged.
    Raises ValueError if width is not a multiple of 4 (a sine and a cosine for each axis).
    Source: Vaswani et al. 2017, section 3.5; 2-d form and channel order as in the code released with MAE and I-JEPA.
    """
    if width % 4:
        raise ValueError(f"width {width} is not a multiple of 4, which 2-d sine-cosine positions need")
    h, w = grid
    row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    codes = [sincos_1d(axis.flatten(), width // 2) for axis in (column, row)]
    return torch.cat(codes, dim=1).float()  #          (N, D)


class PatchEmbed(nn.Module):
    """Cut images into P x P squares and map each square to a D-vector: (B, C, H, W) -> (B, N, D).

    Written as cut-then-Linear because that is what the words say; a strided Conv2d does the same sum
    (tests/toy/test_patches.py proves the two agree).
    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1.
    """

    def __init__(self, patch: int, width: int, channels: int = 3) -> None:
        super().__init__()
        self.patch = patch
        self.channels = channels
        self.proj = nn.Linear(channels * patch * patch, width)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] != self.channels:
            raise ValueError(f"image has {images.shape[1]} channels, the patch embedding expects {self.channels}")
        return self.proj(patchify(images, self.patch))
