"""I-JEPA, ViT-B/16, on STL-10's 100,000 unlabelled pictures at 224 px: the run of chapter 12.

hardware  meant for one GPU with 24 GB or more
time, score, spread  not measured yet
"""

from __future__ import annotations

from full_ijepa.recipes.base import Recipe

RECIPE = Recipe(
    data="stl10",  # enough pictures for a ViT-B, few enough for one GPU
    image_size=224,  # from 96 px: the paper's number of tokens, 14 x 14
    encoder="b",  # the backbone that most published comparisons use
    patch=16,
    batch=256,
    micro_batch=128,  # 12.4 GB, counted (tests/full/test_step_on_gpu.py); stl10_vitb16_80gb takes all at once
    contexts="packed",  # all of the context, in a third of the kernels of four groups
    compile=True,
    lr=1e-3,
    final_lr=1e-6,
    epochs=50,
    warmup_epochs=15,  # 1e-3 is high for batch 256: a third of the run to get there
    weight_decay=(0.04, 0.4),
    momentum=(0.996, 1.0),
    predictor_depth=6,
    predictor_width=384,
    predictor_heads=12,
)
