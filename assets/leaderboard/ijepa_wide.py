"""A row of the leaderboard: the plain I-JEPA in a wider encoder, to which positions are added more faintly.

python -m toy_ijepa.leaderboard assets/leaderboard/ijepa_wide.py
"""

import torch

from toy_ijepa.encoder import Encoder
from toy_ijepa.jepa import IJEPA
from toy_ijepa.predictor import Predictor
from toy_ijepa.recipe import LOSS, MOMENTUM

CONFIG = dict(steps=3300)  # a step costs 1.6 of the toy's: these fit the ten minutes on a slow day
# Of the codes that are added to the patches: at 96 channels 0.25 was better than 0.5 and 1, 0.1 far worse (one seed).
# They are not stored with an encoder's weights: who opens them again multiplies again.
POSITION = 0.35


def build(seed: int) -> IJEPA:
    """Encoder 144 wide and 4 deep (1.0 M parameters), a predictor in proportion; ready for `train`."""
    torch.manual_seed(seed)
    encoder = Encoder(32, 4, width=144, depth=4, heads=3)
    encoder.pos_embed.mul_(POSITION)
    predictor = Predictor(encoder.grid, encoder.width, width=96, depth=2, heads=3, mode="joint")
    return IJEPA(encoder, predictor, loss=LOSS, momentum=MOMENTUM)
