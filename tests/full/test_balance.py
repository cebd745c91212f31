"""Batch, rate, momentum, length and size: one rule each, which no recipe of ours breaks."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from full_ijepa import balance, cost
from full_ijepa.cost import COUNTS
from full_ijepa.recipes import RECIPES
from full_ijepa.recipes.base import Recipe
from full_ijepa.vit import SIZES, build_encoder
from toy_ijepa.schedules import momentum_at

PICTURES = COUNTS | {"folder:imagenet22k": 14_197_122}  # as image-net.org counted them in 2011


@pytest.mark.parametrize("name", RECIPES)
def test_our_own_recipes_go_together(name):
    recipe = RECIPES[name]
    balance.refuse(recipe)
    assert balance.odd(recipe, PICTURES.get(recipe.data, 20_000)) == []


def test_the_rate_goes_by_the_root_of_the_batch_and_with_the_width():
    assert balance.rate_for(2048, 1280) == pytest.approx(1e-3)
    assert balance.rate_for(512, 1280) == pytest.approx(5e-4)
    assert balance.rate_for(2048, 320) == pytest.approx(4e-3)
    assert 1.5e-3 < balance.rate_for(64, 96) < 3e-3  # between the two that the toy was trained with


@pytest.mark.parametrize(
    ("lr", "named", "refused"), [(1e-5, "raise it", 0), (2e-3, "", 0), (9e-3, "lower it", 0), (0.05, "", 1)]
)
def test_a_rate_is_fine_named_or_refused(lr, named, refused):
    recipe = RECIPES["smoke"].replace(lr=lr, final_lr=0.0, batch=20, micro_batch=20)
    found = [line for line in balance.odd(recipe, 20_000) if line.startswith("lr")]
    assert bool(found) == bool(named or refused)
    assert all(named in line for line in found)
    if refused:
        with pytest.raises(ValueError, match=r"lr 0.05 is 38 times the 0.001 that batch 20 and ViT-TOY bear"):
            balance.refuse(recipe)
        recipe = recipe.replace(allow_high_rate=True)
    balance.refuse(recipe)


@pytest.mark.parametrize("momentum", [(0.9, 1.0), (0.996, 0.9995), (0.0, 0.5), (1.0, 1.0)])
def test_what_is_left_of_the_start_is_the_product_of_all_momenta(momentum):
    slow = math.prod(momentum_at(step / 37, *momentum) for step in range(37))
    assert balance.left_of(momentum, 37) == pytest.approx(slow)


@pytest.mark.parametrize("steps", [120, 312, 20_000])
def test_a_target_forgets_at_the_momentum_that_is_advised(steps):
    assert balance.left_of((balance.momentum_for(steps), 1.0), steps) < 1e-9
    recipe = RECIPES["smoke"].replace(momentum=(1 - 1 / steps, 1.0))
    (told,) = balance.odd(recipe.replace(epochs=steps * 64 / 20_000, warmup_epochs=0, probe_epochs=0), 20_000)
    assert f"after {steps} steps: begin at {balance.momentum_for(steps):.3f} at most" in told
    assert balance.odd(recipe.replace(method="mae", epochs=9.0), 20_000) == []


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_counted_as_built(name):
    with torch.device("meta"):
        encoder = build_encoder(name, 32, 4)
    assert balance.parameters_of(name, 4) == sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize(
    ("pictures", "advice"), [(1000, "take --encoder toy"), (3000, "take --encoder ti"), (100, "feed the smallest")]
)
def test_more_parameters_than_pictures_feed_are_named_with_the_size_to_take(pictures, advice):
    recipe = RECIPES["folder_vits16"].replace(epochs=1e4, warmup_epochs=1)
    (told,) = (line for line in balance.odd(recipe, pictures) if "parameters" in line)
    assert f"on {pictures} pictures" in told
    assert advice in told


def test_probes_too_far_apart_are_named():
    recipe = RECIPES["smoke"].replace(probe_epochs=0.5)
    assert balance.odd(recipe, 20_000) == [
        "probe_epochs 0.5 looks 2 times in 1 epochs: too seldom to tell the best checkpoint from the last; "
        "give --probe-epochs 0.1"
    ]


def test_a_recipe_for_gpus_is_named_on_a_cpu_only():
    smoke, cpu = RECIPES["smoke"].replace(epochs=0.2), torch.device("cpu")
    assert balance.missing_gpu(smoke, 20_000, cpu) == ""
    told = balance.missing_gpu(smoke.replace(compile=True), 20_000, cpu)
    assert "(compile) and will take about" in told
    assert balance.missing_gpu(RECIPES["stl10_vitb16"], 100_000, torch.device("cuda")) == ""


@pytest.mark.parametrize("name", [name for name in SIZES if SIZES[name][0] >= 768])
def test_each_large_encoder_is_named_on_a_cpu(name, monkeypatch):
    monkeypatch.setattr(cost, "matmul_rate", lambda *args: 1e11)
    told = balance.missing_gpu(Recipe(encoder=name, data="shapes", image_size=32, patch=8), 1000, torch.device("cpu"))
    assert f"(ViT-{name.upper()}) and will take about" in told


def test_the_tables_of_the_guide_are_these_rules():
    guide = (Path(balance.__file__).parent / "README.md").read_text()
    rates = re.search(r"\| batch \| (.+) \|\n\|[-|]+\n((?:\|.+\n)+)", guide)
    encoders = [name.lower().removeprefix("vit-") for name in rates[1].split(" | ")]
    assert len(encoders) == 5
    for batch, *cells in (row.strip("| ").split(" | ") for row in rates[2].splitlines()):
        found = [balance.rate_for(int(batch.replace(",", "")), balance.SIZES[name][0]) for name in encoders]
        assert cells == [f"{rate:.1e}" for rate in found]
    momenta = re.search(r"\| steps \| first momentum \|\n\|[-|]+\n((?:\|.+\n)+)", guide)
    for steps, momentum in re.findall(r"\| ([\d,]+) \| ([\d.]+) \|", momenta[1]):
        assert momentum == f"{balance.momentum_for(int(steps.replace(',', ''))):.4f}"
