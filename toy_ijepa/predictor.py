"""The predictor: a narrow transformer that says, from the context, what the target encoder sees in hidden patches."""

# Shape legend:  B images  N = h*w patches  K context patches  M target blocks  T patches of a block
#                D encoder width  E predictor width

from __future__ import annotations

import torch
from torch import Tensor, nn

from toy_ijepa.encoder import LAYER_NORM_EPS, Block, init_weights
from toy_ijepa.patches import sincos_2d


class Predictor(nn.Module):
    """Predict target features: context (B, K, D) with its places, and the places of the targets -> (B, M, T, D).

    mode  "block": each target block is predicted alone, as in the paper (M sequences of K + T tokens).
          "joint": all blocks together in one sequence of K + M*T tokens; cheaper, and the blocks see each other's
          *places* (there is nothing else in a mask token to see).
    Raises ValueError for an unknown mode or a width that does not suit the heads.
    Source: Assran et al. 2023, section 3 ("Prediction") and appendix A.1; the context gets its positions a second
    time, as in the released code.
    """

    def __init__(
        self, grid: tuple[int, int], encoder_width: int, width: int, depth: int, heads: int, mode: str = "block"
    ) -> None:
        super().__init__()
        if mode not in ("block", "joint"):
            raise ValueError(f"unknown predictor mode {mode!r}: choose 'block' or 'joint'")
        self.config = dict(grid=grid, encoder_width=encoder_width, width=width, depth=depth, heads=heads, mode=mode)
        self.mode = mode
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", sincos_2d(grid, width), persistent=False)  # (N, E)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.proj = nn.Linear(width, encoder_width)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, context: Tensor, context_idx: Tensor, target_idx: Tensor) -> Tensor:
        """context (B, K, D), context_idx (B, K), target_idx (B, M, T) -> predictions (B, M, T, D)."""
        B, M, T = target_idx.shape
        seen = self.embed(context) + self.pos_embed[context_idx]  #     (B, K, E)
        asked = self.mask_token + self.pos_embed[target_idx]  #         (B, M, T, E)
        if self.mode == "block":
            seen = seen.repeat_interleave(M, dim=0)  #                  (B*M, K, E)
            asked = asked.flatten(0, 1)  #                              (B*M, T, E)
        else:
            asked = asked.flatten(1, 2)  #                              (B, M*T, E)
        x = torch.cat([seen, asked], dim=1)
        for block in self.blocks:
            x = block(x)
        x = x[:, seen.shape[1] :]  #                                    only the answers
        return self.proj(self.norm(x)).reshape(B, M, T, -1)  #          (B, M, T, D)
