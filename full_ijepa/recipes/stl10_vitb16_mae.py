"""MAE with the encoder, data, optimiser and loop of `stl10_vitb16`: the companion under the same protocol.

hardware  meant for one GPU with 24 GB or more
time, score, spread  not measured yet
"""

from __future__ import annotations

from full_ijepa.recipes import stl10_vitb16

RECIPE = stl10_vitb16.RECIPE.replace(
    method="mae",
    hidden=0.75,  # the paper's best for linear probe and fine-tuning alike
    predictor_depth=8,  # the paper's decoder
    predictor_width=512,
    predictor_heads=16,
)
