"""I-JEPA, ViT-g/16, on ImageNet-22k: the largest released model.

hardware  meant for 32 GPUs of 80 GB
time, score  published in Assran et al. 2023; not measured here
"""

from __future__ import annotations

from full_ijepa.recipes import imagenet22k_vith14

RECIPE = imagenet22k_vith14.RECIPE.replace(
    encoder="g",
    patch=16,  # 14 x 14 tokens
    predictor_depth=16,  # the released config's
    micro_batch=64,
    epochs=44,
)
