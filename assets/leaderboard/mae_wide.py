"""A row of the leaderboard: MAE in the encoder of ijepa_wide.py, for nearly its CPU seconds (845 of 949).

python -m toy_ijepa.leaderboard assets/leaderboard/mae_wide.py
"""

import torch

from toy_ijepa.encoder import Encoder
from toy_ijepa.mae import MAE

CONFIG = dict(steps=5200, lr=5e-3)  # with positions times 0.5 better than MAE's defaults (one seed)
POSITION = 0.35


def build(seed: int) -> MAE:
    """The method, ready for `train`."""
    torch.manual_seed(seed)
    encoder = Encoder(32, 4, width=144, depth=4, heads=3)
    encoder.pos_embed.mul_(POSITION)
    return MAE(encoder, width=96, depth=2, heads=3)
