"""I-JEPA, ViT-H/14, on ImageNet-1k: the paper's main run.

hardware  16 GPUs of 80 GB in the paper; weights, gradients, Adam's state and the target's copy take 13 GB of each, so
          nothing has to be shared out or computed twice
time, score  published in Assran et al. 2023, table 1; not measured here
"""

from __future__ import annotations

from full_ijepa.recipes import imagenet_vitb16

RECIPE = imagenet_vitb16.RECIPE.replace(
    encoder="h",
    patch=14,  # 16 x 16 tokens
    predictor_depth=12,  # deeper than for ViT-B: the paper's
    predictor_heads=16,  # as many as the encoder
    micro_batch=128,  # 16 x 128 images a step; 8 GPUs accumulate two
)
