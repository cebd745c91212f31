"""The toy's Vision Transformer, furnished for scale: sizes by name, stochastic depth, checkpointing, other resolutions.

Everything that scale does not change (patch embedding, attention, blocks, initialisation, names of parameters) is the
toy's; toy weights load here and give the same outputs (tests/full/test_vit.py).
"""

# Shape legend:  B images  C channels  H,W pixels  h,w grid (patches)  N = h*w tokens  K kept tokens  D width

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from full_ijepa.pixels import Pixels
from toy_ijepa import encoder as toy
from toy_ijepa.patches import grid_size

# name -> width, depth, heads. Source: Dosovitskiy et al. 2021, table 1; Ti and S: Touvron et al. 2021, table 1.
SIZES = {
    "toy": (96, 4, 3),
    "ti": (192, 12, 3),
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "h": (1280, 32, 16),
}


class Stack(nn.ModuleList):
    """Blocks that are skipped at random and that forget their activations, if asked to.

    Iterating gives callables (B, N, D) -> (B, N, D), one a block; indexing gives the blocks themselves. State dict and
    parameter names are those of a plain ModuleList.

    drop_path      probability that the last block is skipped for an image; it grows linearly from 0 at the first
    checkpointing  keep only the blocks' inputs for the backward pass and compute the rest again
    Source: Huang et al. 2016, arXiv:1603.09382 (stochastic depth, linear decay rule); Chen et al. 2016,
    arXiv:1604.06174.
    """

    def __init__(self, blocks: nn.ModuleList, drop_path: float = 0.0, checkpointing: bool = False) -> None:
        super().__init__(blocks[i] for i in range(len(blocks)))
        self.rates = torch.linspace(0.0, drop_path, len(self)).tolist()
        self.checkpointing = checkpointing

    def __iter__(self) -> Iterator[Callable[[Tensor], Tensor]]:
        for index, rate in enumerate(self.rates):
            yield partial(self.run, self[index], rate if self.training else 0.0)

    def run(self, block: nn.Module, rate: float, x: Tensor) -> Tensor:
        """One block on x (B, N, D), skipped for a share `rate` of the images."""
        forget = self.checkpointing and torch.is_grad_enabled()
        y = checkpoint(block, x, use_reentrant=False) if forget else block(x)
        if not rate:
            return y
        kept = torch.rand(len(x), 1, 1, device=x.device) >= rate
        return x + (y - x) * (kept / (1.0 - rate))


class Encoder(toy.Encoder):
    """The toy's encoder with learned positions, other resolutions, stochastic depth and activation checkpointing.

    positions  "fixed" sin-cos, or "learned": a parameter that starts from it
    pixels     what the numbers of pictures mean: `encoder.pixels.normalise` makes them what `forward` expects; it says
               the number of channels, too
    Images of another size than `image_size` are encoded with interpolated positions.
    Raises ValueError as the toy's does, and for an unknown kind of positions.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch: int = 16,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        channels: int = 3,
        *,
        positions: str = "fixed",
        drop_path: float = 0.0,
        checkpointing: bool = False,
        pixels: Pixels | None = None,
    ) -> None:
        pixels = pixels or Pixels(channels)
        super().__init__(image_size, patch, width, depth, heads, pixels.channels)
        self.pixels = pixels
        if positions not in ("fixed", "learned"):
            raise ValueError(f"unknown positions {positions!r}: choose 'fixed' or 'learned'")
        self.config |= dict(positions=positions)
        if positions == "learned":
            start = self.pos_embed
            del self.pos_embed
            self.pos_embed = nn.Parameter(start)
        self.blocks = Stack(self.blocks, drop_path, checkpointing)

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens before the first block, as the toy's; on another grid with interpolated positions."""
        grid = grid_size(tuple(images.shape[2:]), self.patch)
        x = self.patch_embed(images) + interpolate_positions(self.pos_embed, self.grid, grid)  # (B, N, D)
        return x if keep is None else toy.gather_tokens(x, keep)  #                              (B, K, D)


def interpolate_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position codes (N, D) of an `old` grid (h, w), stretched to a `new` one: bicubic, (N', D).

    Source: Dosovitskiy et al. 2021, section 3.2 (fine-tuning at higher resolution).
    """
    if old == new:
        return positions
    x = positions.float().T.reshape(1, -1, *old)  #                                   (1, D, h, w)
    x = F.interpolate(x, size=new, mode="bicubic", align_corners=False)
    return x.flatten(2)[0].T.to(positions.dtype)  #                                    (N', D)


def build_encoder(
    size: str,
    image_size: int | tuple[int, int],
    patch: int,
    *,
    positions: str = "fixed",
    drop_path: float = 0.0,
    checkpointing: bool = False,
    pixels: Pixels | None = None,
) -> Encoder:
    """A fresh encoder of a named size. Raises ValueError if there is none of that name."""
    if size not in SIZES:
        raise ValueError(f"unknown encoder {size!r}: choose from {', '.join(SIZES)}")
    options = dict(positions=positions, drop_path=drop_path, checkpointing=checkpointing, pixels=pixels)
    return Encoder(image_size, patch, *SIZES[size], **options)


def compile_blocks(module: nn.Module) -> None:
    """Let torch compile every block below `module`, in place, for any number of tokens.

    Block by block, since all blocks of an encoder share one compiled code.
    """
    for part in module.modules():
        if isinstance(part, toy.Block):
            part.compile(dynamic=True)
