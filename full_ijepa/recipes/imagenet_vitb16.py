"""I-JEPA, ViT-B/16, on ImageNet-1k: the paper's method at its smallest size.

hardware  meant for one node of eight GPUs
time, score, spread  not measured
"""

from __future__ import annotations

from full_ijepa.recipes import stl10_vitb16

RECIPE = stl10_vitb16.RECIPE.replace(
    data="imagenet",
    batch=2048,  # the paper's
    micro_batch=256,
    epochs=300,  # the released ViT-H/14's length
    warmup_epochs=40,  # the released configs' for ImageNet-1k
    start_lr=2e-4,  # the released configs'
    clip=0.0,  # the released code cuts no gradients
    crop_scale=(0.3, 1.0),
    workers=12,  # pictures of half a megapixel: decoding is what limits
    flip=False,  # no hand-made augmentation: the released configs crop, nothing else
    probe_epochs=10,
)
