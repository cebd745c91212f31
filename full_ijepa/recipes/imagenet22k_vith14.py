"""I-JEPA, ViT-H/14, on ImageNet-22k: `--data folder:PATH` or shards of it.

hardware  meant for 16 GPUs of 80 GB
time, score  published in Assran et al. 2023; not measured here
"""

from __future__ import annotations

from full_ijepa.recipes import imagenet_vith14

RECIPE = imagenet_vith14.RECIPE.replace(
    data="folder:imagenet22k",  # its pictures have to be asked for (image-net.org); no labels are used
    epochs=66,  # the released config's, as the warm-up
    warmup_epochs=3,
    probe_epochs=0,
)
