"""The toy's encoder on the embedded `shapes`: a minute or two of CPU that go through every part of a real run.

hardware  a laptop
time  two minutes (I-JEPA) and one (MAE) on one thread of a busy machine; too short for a score worth quoting
"""

from __future__ import annotations

from full_ijepa.recipes.base import Recipe

RECIPE = Recipe(
    data="shapes",
    image_size=32,
    encoder="toy",
    patch=4,
    crop_scale=(0.6, 1.0),  # the toy's
    predictor_width=64,
    predictor_depth=2,
    predictor_heads=2,
    predictor_mode="joint",
    groups=2,  # on a CPU, passes over a few images waste their time
    optimiser="muon",
    batch=64,
    micro_batch=32,  # two micro-batches a step, so that accumulation is run too
    lr=3e-3,
    epochs=1.0,  # 312 steps
    warmup_epochs=0.1,
    weight_decay=(0.5, 0.5),
    ends_decay=0.04,
    momentum=(0.95, 0.9995),  # the toy's: a target that remembers 20 steps at first
    workers=0,
    log_every=10,
    checkpoint_epochs=0.25,
    probe_epochs=0.2,  # five looks: enough to tell the best from the last
)
