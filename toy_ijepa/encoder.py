"""The encoder: a pre-norm Vision Transformer without class token, which can be asked to see only some patches."""

# Shape legend:  B images  N = h*w tokens  K kept tokens  D width  A heads  d = D/A width of a head

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toy_ijepa.patches import PatchEmbed, grid_size, sincos_2d

LAYER_NORM_EPS = 1e-6  # the released checkpoints' value; torch's default is 1e-5


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens (B, N, D) by index (B, K) -> (B, K, D)."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def init_weights(module: nn.Module) -> None:
    """Xavier uniform for Linear weights, std sqrt(2 / (inputs + outputs)); zeros for biases, ones for norms.

    TRAP: the std of 0.02 that everybody copies suits width 768. In an encoder 96 wide it leaves the picture so faint
    beside the position codes that position is 93 % of the variance of a random encoder's tokens
    (assets/results/LOG.md), and I-JEPA has to bootstrap from that.
    TRAP: who does want 0.02: `trunc_normal_(x, 0.02)` sets the *mean*; the std has to be named.
    Source: Glorot & Bengio 2010; used for ViTs by the code released with MAE.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


class Attention(nn.Module):
    """Multi-head self-attention, every token to every token: (B, N, D) -> (B, N, D).

    Raises ValueError if the width is not a whole number of heads.
    Source: Vaswani et al. 2017, section 3.2.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a whole number of {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, A, N, d)."""
        B, N, D = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, D // self.heads)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def weights(self, x: Tensor) -> Tensor:
        """Who attends to whom: (B, A, N, N), each row a distribution over keys."""
        q, k, _ = self.split(x)
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        if x.device.type == "cpu" and (q.requires_grad or q.dtype == torch.bfloat16):
            # On a CPU the fused kernel's backward is slower than three plain products, several times so in bf16.
            x = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))  # (B, A, N, d) -> (B, N, D)


class MLP(nn.Module):
    """Two Linear layers with a GELU between, token by token: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)): (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def scale_by_depth(blocks: nn.ModuleList) -> None:
    """Divide the weights that write into the residual stream of block i (from 1) by sqrt(2*i), in place.

    TRAP: call it *after* the general initialisation; the released code overwrites it.
    Source: Bao et al. 2022 (BEiT), "Pre-Training Setup"; intended by the code released with I-JEPA.
    """
    with torch.no_grad():
        for depth, block in enumerate(blocks, start=1):
            block.attn.proj.weight.div_((2.0 * depth) ** 0.5)
            block.mlp.fc2.weight.div_((2.0 * depth) ** 0.5)


class Encoder(nn.Module):
    """Vision Transformer without class token: images (B, C, H, W) -> tokens (B, N, D), or (B, K, D) of `keep`.

    The parameter names are those of the released checkpoints, so weights can be exchanged.
    Raises ValueError if the image is not a whole number of patches or the width does not suit heads and positions.
    Source: Dosovitskiy et al. 2021, section 3.1; Assran et al. 2023, section 3 and appendix A.1.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 32,
        patch: int = 4,
        width: int = 96,
        depth: int = 4,
        heads: int = 3,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.config = dict(image_size=image_size, patch=patch, width=width, depth=depth, heads=heads, channels=channels)
        self.patch = patch
        self.width = width
        self.grid = grid_size(image_size, patch)
        self.patch_embed = PatchEmbed(patch, width, channels)
        self.register_buffer("pos_embed", sincos_2d(self.grid, width), persistent=False)  # (N, D)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.apply(init_weights)
        scale_by_depth(self.blocks)

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens before the first block: patch embedding + position, then only those of `keep` (B, K)."""
        found = grid_size(tuple(images.shape[2:]), self.patch)
        if found != self.grid:
            raise ValueError(
                f"image {images.shape[2]}x{images.shape[3]} px gives {found[0]}x{found[1]} patches, the encoder was "
                f"built for {self.grid[0]}x{self.grid[1]}"
            )
        x = self.patch_embed(images)  #                (B, N, D)
        x = x + self.pos_embed
        # The patches that are not kept leave here, before any token has seen another: nothing hidden can leak.
        return x if keep is None else gather_tokens(x, keep)  # (B, K, D)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode the whole image, or only the patches `keep` (B, K) of each image, in that order."""
        x = self.embed(images, keep)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def layers(self, images: Tensor, last: int) -> list[Tensor]:
        """Outputs of the last `last` blocks, each through the final norm: a list of (B, N, D), shallow first."""
        x, outputs = self.embed(images), []
        for depth, block in enumerate(self.blocks, start=1):
            x = block(x)
            if depth > len(self.blocks) - last:
                outputs.append(self.norm(x))
        return outputs
