"""I-JEPA, ViT-B/16, on STL-10, for one GPU with 40 GB or more: the whole batch at once, no accumulation.

hardware  meant for one A100, H100 or the like
time, score, spread  not measured yet
"""

from __future__ import annotations

from full_ijepa.recipes import stl10_vitb16

RECIPE = stl10_vitb16.RECIPE.replace(micro_batch=256, workers=16)
