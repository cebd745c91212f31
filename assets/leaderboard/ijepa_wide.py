"""A row of the leaderboard: the plain I-JEPA in a wider encoder, to which positions are added more faintly.

python -m toy_ijepa.leaderboard assets/leaderboard/ijepa_wide.py
"""

import torch

from toy_ijepa.encoder import Encoder
from toy_ijepa.jepa import IJEPA
from toy_ijepa.predictor import Predictor
from toy_ijepa.recipe import LOSS, MOMENTUM

CONFIG = dict(steps=3300)  # a step costs 1.6 of the toy's: these fit the ten minutes on a slow day
# Of the codes that are added to the patches. At 1 half of the tokens' variance is position; at 0.1 little is learned.
POSITION = 0.35


def encoder(seed: int) -> Encoder:
    """144 wide, 4 deep, 1.0 M parameters, with fainter positions."""
    torch.manual_seed(seed)
    found = Encoder(32, 4, width=144, depth=4, heads=3)
    found.pos_embed.mul_(POSITION)
    return found


def build(seed: int) -> IJEPA:
    """The method, ready for `train`."""
    wide = encoder(seed)
    predictor = Predictor(wide.grid, wide.width, width=96, depth=2, heads=3, mode="joint")
    return IJEPA(wide, predictor, loss=LOSS, momentum=MOMENTUM)
