"""The toy's Vision Transformer, furnished for scale: packed tokens, stochastic depth, checkpointing, other resolutions.

Everything that scale does not change (patch embedding, attention, blocks, initialisation, names of parameters) is the
toy's; toy weights load here and give the same outputs (tests/full/test_vit.py).
"""

# Shape legend:  B images  C channels  H,W pixels  h,w grid (patches)  N = h*w tokens  K kept tokens  D width
#                J sequences of packed tokens  Z all of their tokens  M target blocks  T patches of a block
#                E predictor width

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from full_ijepa.packing import Sequences, attend
from full_ijepa.pixels import Pixels
from toy_ijepa import encoder as toy
from toy_ijepa import predictor as toy_predictor
from toy_ijepa.patches import grid_size

# name -> width, depth, heads. Source: Dosovitskiy et al. 2021, table 1; Ti and S: Touvron et al. 2021, table 1.
SIZES = {
    "toy": (96, 4, 3),
    "ti": (192, 12, 3),
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "h": (1280, 32, 16),
    "g": (1408, 40, 16),  # Zhai et al. 2022, table 2
}
MLP_RATIOS = {"g": 48 / 11}  # hidden width of the MLPs over that of the tokens, where it is not 4
RECOMPILES = 32  # ways to call a block that are compiled: with and without gradient, packed or not, by precision


class Block(toy.Block):
    """A block of the toy, made of its parts, that packed tokens go through as well."""

    def __init__(self, block: toy.Block) -> None:
        nn.Module.__init__(self)
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp

    def forward(self, x: Tensor, where: Sequences | None = None) -> Tensor:
        """Tokens (B, N, D), or packed ones (Z, D) and where their sequences lie."""
        if where is None:
            return super().forward(x)
        x = x + attend(self.attn, self.norm1(x), where)
        return x + self.mlp(self.norm2(x))


class Stack(nn.ModuleList):
    """Blocks that can be skipped for some images and that forget their activations, if asked to.

    Iterating gives callables (B, N, D) -> (B, N, D), one a block; indexing gives the blocks themselves. State dict and
    parameter names are those of a plain ModuleList.

    drop_path      probability that the last block is skipped for an image; it grows linearly from 0 at the first
    checkpointing  keep only the blocks' inputs for the backward pass and compute the rest again
    Source: Huang et al. 2016, arXiv:1603.09382 (stochastic depth, linear decay rule); Chen et al. 2016,
    arXiv:1604.06174.
    """

    def __init__(self, blocks: Iterable[nn.Module], drop_path: float = 0.0, checkpointing: bool = False) -> None:
        super().__init__(Block(block) if isinstance(block, toy.Block) else block for block in blocks)
        self.rates = [drop_path * index / max(len(self) - 1, 1) for index in range(len(self))]
        self.checkpointing = checkpointing

    __repr__ = nn.Module.__repr__  # a ModuleList's iterates

    def __iter__(self) -> Iterator[Callable[..., Tensor]]:
        for index in range(len(self)):
            yield partial(self.run, self[index])

    def run(self, block: nn.Module, x: Tensor, *where: Sequences) -> Tensor:
        """One block on x."""
        if self.checkpointing and torch.is_grad_enabled():
            # Nothing in a block is random, so that no random state has to be kept for the second time.
            return checkpoint(block, x, *where, use_reentrant=False, preserve_rng_state=False)
        return block(x, *where)

    def forward(self, x: Tensor, where: Sequences | None = None, kept: Tensor | None = None) -> Tensor:
        """All blocks on tokens (B, N, D), or on packed ones (Z, D) and where their sequences lie.

        kept  (depth, B) or (depth, J), from `draw_kept`: what each block counts for an image
        """
        for index, block in enumerate(self):
            y = block(x) if where is None else block(x, where)
            if kept is not None and self.rates[index]:
                share = kept[index][:, None, None] if where is None else kept[index][where.number, None]
                y = x + (y - x) * share
            x = y
        return x


def draw_kept(rates: Sequence[float], batch: int, generator: torch.Generator) -> Tensor | None:
    """What each block counts for an image, (depth, B): 0 where it is skipped, else 1/(1 - rate), so that the mean is 1.

    rates  probability of each block to be skipped; None if no block ever is
    """
    if not any(rates):
        return None
    rate = torch.tensor(rates)[:, None]
    return (torch.rand(len(rates), batch, generator=generator) >= rate) / (1.0 - rate)


class Encoder(toy.Encoder):
    """The toy's encoder with learned positions, other resolutions, stochastic depth and activation checkpointing.

    positions  "fixed" sin-cos, or "learned": a parameter that starts from it
    mlp_ratio  hidden width of the MLPs over that of the tokens
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
        mlp_ratio: float = 4.0,
        pixels: Pixels | None = None,
    ) -> None:
        pixels = pixels or Pixels(channels)
        super().__init__(image_size, patch, width, depth, heads, pixels.channels)
        self.pixels = pixels
        if mlp_ratio != 4:
            self.config |= dict(mlp_ratio=mlp_ratio)
            for block in self.blocks:
                block.mlp = toy.MLP(width, round(width * mlp_ratio))
            self.blocks.apply(toy.init_weights)
            toy.scale_by_depth(self.blocks)
        if positions not in ("fixed", "learned"):
            raise ValueError(f"unknown positions {positions!r}: choose 'fixed' or 'learned'")
        self.config |= dict(positions=positions)
        if positions == "learned":
            start = self.pos_embed
            del self.pos_embed
            self.pos_embed = nn.Parameter(start)
        self.blocks = Stack(self.blocks, drop_path, checkpointing)

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens before the first block, as the toy's; on another grid with interpolated positions.

        keep  (B, K) patches of each image; or (Z,) numbers among all B * N tokens, which gives packed ones (Z, D)
        """
        grid = grid_size(tuple(images.shape[2:]), self.patch)
        x = self.patch_embed(images) + interpolate_positions(self.pos_embed, self.grid, grid)  # (B, N, D)
        if keep is not None and keep.ndim == 1:
            return x.flatten(0, 1).index_select(0, keep)  #                                      (Z, D)
        return x if keep is None else toy.gather_tokens(x, keep)  #                              (B, K, D)

    def forward(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        where: Sequences | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Encode whole images or the patches `keep`, see `embed`: (B, N, D), (B, K, D) or (Z, D).

        where  the sequences of packed tokens
        kept   (depth, B) or (depth, J) as in `Stack.forward`; None: no block is skipped
        """
        return self.norm(self.blocks(self.embed(images, keep), where, kept))


class Predictor(toy_predictor.Predictor):
    """The toy's predictor with activation checkpointing, for packed tokens as well."""

    def __init__(self, *sizes, mode: str = "block", checkpointing: bool = False) -> None:
        super().__init__(*sizes, mode=mode)
        self.blocks = Stack(self.blocks, checkpointing=checkpointing)

    def forward(
        self,
        context: Tensor,
        context_idx: Tensor,
        target_idx: Tensor,
        order: Tensor | None = None,
        where: Sequences | None = None,
        answers: Tensor | None = None,
    ) -> Tensor:
        """As the toy's; or context (Z, D), context_idx (Z,) and the last three as in `masking.Packed`: (B, M, T, D)."""
        if where is None:
            return super().forward(context, context_idx, target_idx)
        seen = self.embed(context) + self.pos_embed[context_idx]  #         (Z, E)
        asked = self.mask_token[0] + self.pos_embed[target_idx.flatten()]  # (B*M*T, E)
        x = torch.cat([seen, asked]).index_select(0, order)  #              (Z', E)
        x = self.blocks(x, where).index_select(0, answers)  #               (B*M*T, E) only the answers
        return self.proj(self.norm(x)).reshape(*target_idx.shape, -1)  #    (B, M, T, D)


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
    return Encoder(image_size, patch, *SIZES[size], mlp_ratio=MLP_RATIOS.get(size, 4.0), **options)


def fingerprint(encoder: Encoder) -> str:
    """Twelve hex digits that the same weights have, wherever they were loaded from."""
    found = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]


def compile_blocks(module: nn.Module, backend: str | Callable = "inductor") -> None:
    """Let torch compile every block below `module`, in place, for any number of tokens.

    Block by block, since all blocks of an encoder share one compiled code.
    """
    # TRAP: beyond the limit, 8 unless it is raised, torch runs a block uncompiled and says so in a log only.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILES)
    # TRAP: within DDP torch cuts what it compiles where a bucket of gradients is full: every block of a ViT-B in two.
    # Blocks leave room enough for gradients to travel meanwhile.
    torch._dynamo.config.optimize_ddp = False
    for part in module.modules():
        if isinstance(part, toy.Block):
            part.compile(dynamic=True, backend=backend)
