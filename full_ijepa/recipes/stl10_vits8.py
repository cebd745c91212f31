"""I-JEPA, ViT-S/8, on STL-10 at its own 96 px: 12 x 12 tokens.

hardware  meant for one GPU with 12 GB or more
time, score, spread  not measured yet
"""

from __future__ import annotations

from full_ijepa.recipes import stl10_vitb16

RECIPE = stl10_vitb16.RECIPE.replace(
    image_size=96,  # the pictures' own size: nothing is invented by enlarging
    encoder="s",
    patch=8,  # 12 x 12 tokens, near the paper's 14 x 14
    predictor_width=192,  # half of the encoder, as in the paper's ViT-B
    predictor_heads=6,
    batch=512,  # smaller steps fit in larger batches
    micro_batch=256,
    epochs=100,  # cheap enough to train longer
    warmup_epochs=15,
)
