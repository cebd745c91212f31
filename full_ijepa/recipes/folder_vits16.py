"""I-JEPA, ViT-S/16, on your own folder of pictures: `--data folder:PATH`.

hardware  one GPU, or patience
time, score, spread  depend on the folder; `python -m full_ijepa doctor RUN` says what to look at
"""

from __future__ import annotations

from full_ijepa.recipes.base import Recipe

RECIPE = Recipe(
    data="folder:pictures",  # any tree of image files; class folders are used for probes only
    image_size=224,
    encoder="s",  # small sets do not feed a ViT-B
    patch=16,
    predictor_width=192,
    predictor_heads=6,
    drop_path=0.1,  # few pictures, many passes
    batch=256,
    micro_batch=64,
    lr=5e-4,  # half of ViT-B's on STL-10, to be on the safe side
    epochs=200,
    warmup_epochs=20,
    momentum=(0.99, 1.0),  # a run of a few thousand steps: the target must not remember its random start
)
