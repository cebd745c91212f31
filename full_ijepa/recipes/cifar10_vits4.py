"""I-JEPA, ViT-S/4, on CIFAR-10: a real run on small pictures.

hardware  meant for one GPU
time, score, spread  not measured yet
"""

from __future__ import annotations

from full_ijepa.recipes.base import Recipe

RECIPE = Recipe(
    data="cifar10",
    image_size=32,
    encoder="s",
    patch=4,  # 8 x 8 tokens
    crop_scale=(0.6, 1.0),  # 32 px leave little to cut away; chosen on the toy (assets/results/LOG.md)
    predictor_width=192,
    predictor_depth=4,
    predictor_heads=6,
    predictor_mode="joint",  # cheaper; not told apart from the paper's on the toy (assets/results/ablations.json)
    optimiser="muon",  # one of the three things that made the toy learn
    batch=512,
    micro_batch=512,
    lr=2e-3,
    epochs=100,
    warmup_epochs=10,
    weight_decay=(0.5, 0.5),  # for Muon's matrices; chosen on the toy
    ends_decay=0.04,
    momentum=(0.98, 0.9995),  # 1/(1 - m) = 50 steps of 9,800 at the start
    probe_epochs=10,
)
