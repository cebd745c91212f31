"""Sequences of different lengths one after the other in one tensor: (Z, D) instead of (B, K, D), nothing cut or padded.

All that works token by token (norms, products, GELU) does not notice. Attention has to keep the sequences apart: on a
GPU by a kernel that is told where they end, elsewhere by dense attention with a mask, to the same numbers.
"""

# Shape legend:  J sequences  Z tokens of all of them  K tokens of one  D width  A heads  d = D/A

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from toy_ijepa.encoder import Attention

SHORT = 16  # tokens of a sequence of filler at most, so that attention among filler costs nothing
WIDEST = 256  # channels of a head that the kernel takes, in steps of eight


class Sequences(NamedTuple):
    """Where J sequences lie among Z tokens.

    ends     (J + 1,) int32: sequence i is tokens ends[i] to ends[i + 1] - 1
    number   (Z,) the sequence of each token
    longest  no sequence has more tokens
    """

    ends: Tensor
    number: Tensor
    longest: int

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, (J,)."""
        return self.ends.diff()

    @property
    def place(self) -> Tensor:
        """The place of each token within its sequence, (Z,)."""
        return torch.arange(len(self.number), device=self.number.device) - self.ends[self.number]


def sequences(lengths: Tensor, multiple: int = 1) -> Sequences:
    """Sequences of `lengths` (J,), and behind them filler until Z is a multiple of `multiple`.

    Filler lies in short sequences of its own, always as many, some of them empty: with a `multiple` above 1 there are
    few different shapes, for which kernels, compilers and CUDA graphs are grateful.
    """
    filler = -int(lengths.sum()) % multiple
    starts = torch.arange(0, multiple - 1, SHORT)
    lengths = torch.cat([lengths, (filler - starts).clamp(0, SHORT)])
    ends = F.pad(lengths.cumsum(0), (1, 0)).int()
    longest = int(lengths.max())
    if multiple > 1:
        longest += -longest % SHORT
    return Sequences(ends, torch.arange(len(lengths)).repeat_interleave(lengths), longest)


def attend(attention: Attention, x: Tensor, where: Sequences) -> Tensor:
    """The toy's attention on packed tokens (Z, D), each sequence to its own tokens only: (Z, D)."""
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).unbind(1)  #   (Z, A, d) each
    if fits_kernel(q):
        from torch.nn.attention.varlen import varlen_attn  # brings torch's compiler, a second of import: only for GPUs

        y = varlen_attn(q, k, v, where.ends, where.ends, where.longest, where.longest)
    else:
        y = padded(q, k, v, where)
    return attention.proj(y.flatten(1))


def fits_kernel(q: Tensor) -> bool:
    """Whether queries (Z, A, d) may go through the kernel for sequences of different lengths: half precision, a GPU."""
    return q.is_cuda and q.dtype != torch.float32 and q.shape[-1] % 8 == 0 and q.shape[-1] <= WIDEST


def padded(q: Tensor, k: Tensor, v: Tensor, where: Sequences) -> Tensor:
    """The same by dense attention: sequences filled up to the longest, and what fills them up masked: (Z, A, d)."""
    Z, longest = len(q), where.longest
    index = where.ends[:-1, None] + torch.arange(longest, device=q.device)  #         (J, longest)
    there = index < where.ends[1:, None]  #                                           True: a token of the sequence
    # TRAP: not every kernel gives 0 where there is no key at all (empty filler); what is not a number spoils gradients.
    there[:, 0] = True
    index = index.clamp(max=Z - 1).flatten()
    q, k, v = (t.index_select(0, index).unflatten(0, (-1, longest)).transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=there[:, None, None])
    return y.transpose(1, 2).flatten(0, 1).index_select(0, where.number * longest + where.place)
