"""The toolkits' names: each lands in the recipe or is refused with the reason, and a run by them is a run of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import full_ijepa
from full_ijepa import checkpoint
from full_ijepa.facade import NAMES, JEPAAgent, JEPAConfig, create_config, create_model, table
from full_ijepa.methods import build
from full_ijepa.recipes.base import Recipe

ROOT = Path(__file__).parents[2]
BASE = dict(dataset="shapes")  # the rest are defaults

# argument -> a value other than the default, and what it has to become
LANDS = {
    "dataset": ("cifar10", dict(data="cifar10")),
    "image_size": (160, dict(image_size=160)),
    "crop_scale": ((0.3, 1.0), dict(crop_scale=(0.3, 1.0))),
    "use_horizontal_flip": (False, dict(flip=False)),
    "num_workers": (3, dict(workers=3)),
    "patch_size": (14, dict(patch=14)),
    "model_name": ("vit_huge", dict(encoder="h", predictor_heads=16)),
    "embed_dim": (1024, dict(encoder="l", predictor_heads=16)),
    "depth": (4, dict(encoder="toy", predictor_heads=3)),
    "num_heads": (6, dict(encoder="s", predictor_heads=6)),
    "pred_depth": (2, dict(predictor_depth=2)),
    "pred_emb_dim": (192, dict(predictor_width=192)),
    "enc_mask_scale": ((0.85, 1.0), dict(context_scale=(0.85, 1.0), masks="multiblock")),
    "pred_mask_scale": ((0.05, 0.1), dict(target_scale=(0.05, 0.1))),
    "num_pred_masks": (2, dict(targets=2)),
    "aspect_ratio": ([0.5, 2.0], dict(target_aspect=(0.5, 2.0))),
    "epochs": (300, dict(epochs=300)),
    "batch_size": (32, dict(batch=32, micro_batch=32)),
    "accum_iter": (4, dict(batch=256)),
    "lr": (1e-3, dict(lr=1e-3)),
    "blr": (1e-3, dict(lr=1e-3 * 64 / 256)),
    "min_lr": (1e-5, dict(final_lr=1e-5)),
    "warmup": (10, dict(warmup_epochs=10)),
    "weight_decay": (0.1, dict(weight_decay=(0.1, 0.1))),
    "final_weight_decay": (0.4, dict(weight_decay=(0.05, 0.4))),
    "clip_grad": (None, dict(clip=0.0)),
    "momentum": ((0.99, 0.999), dict(momentum=(0.99, 0.999))),
    "seed": (7, dict(seed=7)),
    "gradient_checkpointing": (True, dict(checkpointing=True)),
    "use_bfloat16": (False, dict(precision="fp32")),
    "save_ckpt_freq": (20, dict(checkpoint_epochs=20)),
    "enable_wandb": (True, dict(log_to=("tensorboard", "wandb"))),
}
# These set what is not a recipe, need a folder, or need a second argument; tests of their own below.
ELSEWHERE = {"root_path", "image_folder", "min_keep", "device", "folder", "write_tag", "read_checkpoint"}
ELSEWHERE |= {"load_checkpoint", "eval"}

REFUSED = {
    "use_gaussian_blur": (True, "no distortions"),
    "use_color_distortion": (True, "no distortions"),
    "color_jitter_strength": (0.5, "no distortions"),
    "val_split": (0.1, "every fifth picture"),
    "download": (False, "asks no server"),
    "copy_data": (True, "read where they lie"),
    "pin_mem": (False, "where there is a GPU"),
    "num_enc_masks": (2, "one context a picture"),
    "allow_overlap": (True, "sees what it has to predict"),
    "mask_ratio": (0.75, "say pred_mask_scale and num_pred_masks"),
    "predict_horizon": (1, "frames to predict: a picture has no next frame"),
    "disable_masking": (True, "nothing is left to predict"),
    "start_lr": (1e-6, "starts from 0"),
    "ipe_scale": (1.25, "more epochs"),
    "enable_deepspeed": (True, "torchrun"),
    "enable_tensorboard": (False, "always written"),
    "enable_sweep": (True, "a loop over"),
}


def changed(**said) -> dict:
    """Recipe fields that differ from those of the defaults."""
    before, after = (asdict(JEPAConfig(**(BASE | more)).recipe()) for more in ({}, said))
    return {name: value for name, value in after.items() if value != before[name]}


def test_every_name_is_tested():
    first = {name for name, entry in NAMES.items() if not entry.same_as}
    assert first == {*LANDS, *ELSEWHERE, *REFUSED}
    assert {entry.same_as for entry in NAMES.values()} - {""} <= first
    assert all(not entry.ours for name, entry in NAMES.items() if name in REFUSED)


@pytest.mark.parametrize("name", LANDS)
def test_lands_in_the_recipe_where_the_table_says(name):
    value, expected = LANDS[name]
    assert changed(**{name: value}) == expected
    assert set(expected) <= set(NAMES[name].ours.split()) <= set(Recipe.__dataclass_fields__)


@pytest.mark.parametrize("name", [name for name, entry in NAMES.items() if entry.same_as])
def test_other_spellings_say_the_same(name):
    first = NAMES[name].same_as
    value = LANDS[first][0] if first in LANDS else "there"
    assert JEPAConfig(**{name: value}).said == JEPAConfig(**{first: value}).said
    with pytest.raises(ValueError, match="another spelling"):
        JEPAConfig(**{name: value, first: value})


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name):
    value, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason) as told:
        JEPAConfig(**{name: value})
    assert f"{name}={value!r} is refused" in str(told.value)
    with pytest.raises(ValueError, match=reason):
        setattr(JEPAConfig(), name, value)
    for passes in NAMES[name].only:
        assert changed(**{name: passes}) == {}


def test_the_call_of_the_documentation(pictures):
    """Everything that the pages' example and table name, at once."""
    said = dict(dataset="imagefolder", root_path=pictures, image_folder="train", image_size=224, patch_size=16)
    said |= dict(embed_dim=768, depth=12, num_heads=12, batch_size=64, epochs=100, lr=1.5e-4, min_lr=1e-6, warmup=40)
    said |= dict(weight_decay=0.05, clip_grad=1.0, accum_iter=1, momentum=(0.996, 1.0), gradient_checkpointing=True)
    said |= dict(num_enc_masks=1, enc_mask_scale=(0.15, 0.2), num_pred_masks=4, pred_mask_scale=(0.15, 0.2))
    agent = full_ijepa.create_model("jepa", **said, aspect_ratio=(0.75, 1.5), eval=False, read_checkpoint=None)
    assert agent.cfg.recipe() == JEPAConfig(**BASE).recipe().replace(data=f"folder:{pictures}", checkpointing=True)
    assert agent.cfg.recipe().masks == "small_context"


def test_attributes_as_the_pages_set_them(pictures):
    config = full_ijepa.JEPAConfig()
    config.dataset, config.root_path, config.lr = "imagefolder", str(pictures), 3e-4
    assert (config.lr, config.learning_rate, config.warmup_epochs) == (3e-4, 3e-4, 40)
    agent = full_ijepa.JEPAAgent(config, lr=1e-4)
    assert (agent.cfg.lr, config.lr) == (1e-4, 3e-4), "the caller's config is left alone"
    assert agent.cfg.recipe().data == f"folder:{pictures}"
    with pytest.raises(AttributeError, match="warmpu"):
        _ = config.warmpu


def test_unknown_names_come_with_a_suggestion():
    for name, near in (("batchsize", "batch_size"), ("patch", "patch_size"), ("enc_mask_scales", "enc_mask_scale")):
        with pytest.raises(ValueError, match=f"unknown argument '{name}': did you mean '{near}'"):
            create_model("jepa", **{name: 1})
        with pytest.raises(ValueError, match=f"did you mean '{near}'"):
            setattr(JEPAConfig(), name, 1)
    with pytest.raises(ValueError, match="no model 'dreamer': only 'jepa'"):
        create_model("dreamer")
    assert create_config("I-JEPA", **BASE).recipe() == create_config("ijepa", **BASE).recipe()


def test_folders(tmp_path, pictures):
    def data(**said):
        return JEPAConfig(**said).recipe().data

    assert data(dataset="imagefolder", root_path=pictures, image_folder="test") == f"folder:{pictures / 'test'}"
    assert data(dataset="ImageNet1k") == "imagenet"
    assert data(dataset="imagenet", root_path=pictures) == f"folder:{pictures}"
    with pytest.raises(ValueError, match="imagefolder: image_folder 'train' is a folder in root_path, which is not"):
        data(dataset="imagefolder")
    with pytest.raises(ValueError, match="cifar10: image_folder 'mine' is a folder in root_path"):
        data(dataset="cifar10", image_folder="mine")
    with pytest.raises(ValueError, match=f"no folder {tmp_path / 'train'}"):
        data(dataset="imagefolder", root_path=tmp_path)
    with pytest.raises(ValueError, match="cifar10 is looked for in the folder IJEPA_DATA"):
        data(dataset="cifar10", root_path=tmp_path)
    with pytest.raises(ValueError, match="unknown dataset 'imagefolders': did you mean 'imagefolder'"):
        data(dataset="imagefolders")


def test_encoders_are_those_with_a_name():
    def encoder(**said):
        return JEPAConfig(**BASE, **said).recipe().encoder

    assert encoder(embed_dim=384, depth=12, num_heads=6, model_name="vit_small") == "s"
    with pytest.raises(
        ValueError, match=r"no encoder has embed_dim 384, depth 12, num_heads 12: .*'s' with embed_dim 384"
    ):
        encoder(embed_dim=384, depth=12, num_heads=12)
    with pytest.raises(ValueError, match="num_heads 16 is true of the encoders l, h"):
        encoder(num_heads=16)
    with pytest.raises(ValueError, match="no encoder has embed_dim 384: the nearest is 'b'"):
        encoder(model_name="vit_base", embed_dim=384)
    with pytest.raises(ValueError, match="did you mean 'vit_base'"):
        encoder(model_name="vit_bas")


def test_rates_and_batches(monkeypatch):
    assert changed(blr=1e-3, accum_iter=8) == dict(batch=512, lr=2e-3)
    with pytest.raises(ValueError, match="say one of them"):
        changed(blr=1e-3, lr=1e-3)
    with pytest.raises(ValueError, match="warm-up of 40 epochs does not end within 20"):
        changed(epochs=20)
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert JEPAConfig(**BASE, accum_iter=2).recipe().batch == 64 * 2 * 3


def test_ranges_are_two_numbers():
    for value in (0.996, (0.996,), (0.9, 0.99, 1.0)):
        with pytest.raises(ValueError, match=r"momentum=.* is not two numbers, as \(0.996, 1.0\) is"):
            JEPAConfig(momentum=value)


def test_min_keep_is_more_than():
    assert changed(min_keep=4, enc_mask_scale=(0.85, 1.0))["min_context"] == 5
    assert changed(min_keep=24) == {}  # a whole context has 5 x 5 of 14 x 14 patches at least
    with pytest.raises(ValueError, match=r"a context of 25 patches .* min_keep 25"):
        changed(min_keep=25)


def test_masks_reach_the_method():
    said = dict(image_size=64, patch_size=4, depth=4, embed_dim=96, num_heads=3, pred_emb_dim=96)
    for scale, covers in (((0.25, 0.25), 64), ((1.0, 1.0), 256 - 4 * 16)):  # 8 x 8 whole; 16 x 16 without 4 targets
        more = dict(enc_mask_scale=scale, num_pred_masks=4, pred_mask_scale=(1 / 16, 1 / 16), aspect_ratio=(1.0, 1.0))
        method = build(JEPAConfig(**BASE, **said, **more).recipe())
        drawn = method.sample(1, method.encoder.grid, generator=torch.Generator().manual_seed(0))
        assert drawn.targets.shape == (1, 4, 16)
        assert covers <= drawn.context.shape[1] <= (covers if scale[0] < 1 else 256 - 16)


def test_a_run_from_training_to_evaluation(tmp_path, pictures, capsys):
    small = dict(dataset="imagefolder", root_path=pictures, image_size=16, patch_size=4, depth=4, pred_emb_dim=96)
    small |= dict(pred_depth=1, batch_size=8, accum_iter=2, epochs=2, warmup=1, num_workers=0, lr=1e-3, device="cpu")
    agent = create_model("jepa", **small, folder=tmp_path, write_tag="one")
    run = agent.train()
    assert (run.ended, run.steps, run.out) == ("done", round(2 * 60 / 16), tmp_path / "one")
    assert json.loads((run.out / "recipe.json").read_text())["masks"] == "small_context"
    kept = checkpoint.read(checkpoint.written(run.out / "checkpoints")[-1])[0]
    assert torch.equal(agent.encoder.patch_embed.proj.weight, kept["model.method.target.patch_embed.proj.weight"])

    with pytest.raises(ValueError, match="already holds a run"):
        agent.train()
    newest = checkpoint.written(run.out / "checkpoints")[-1]
    assert create_model("jepa", **small, read_checkpoint=newest).train().step == run.steps  # nothing is left to do
    judge = JEPAAgent(dict(eval=True, read_checkpoint=str(run.out), device="cpu"))
    found = judge.train()
    assert found["step"] == run.steps
    assert {"knn", "linear"} <= found["protocols"].keys()
    assert judge.evaluate(["knn"])["protocols"]["knn"] == found["protocols"]["knn"]

    with pytest.raises(ValueError, match="neither a run with checkpoints nor"):
        create_model("jepa", **small, read_checkpoint=tmp_path / "ijepa.pth.tar").train()
    with pytest.raises(ValueError, match=f"is not the newest of its run: {newest.name} is"):
        create_model("jepa", **small, read_checkpoint=checkpoint.written(newest.parent)[0]).train()
    with pytest.raises(ValueError, match="goes on in its own folder"):
        create_model("jepa", **small, read_checkpoint=newest, folder=tmp_path / "two").train()
    assert create_model("jepa", **small, folder=run.out, load_checkpoint=True).train().step == run.steps


def test_the_table_is_made_of_the_code():
    rows = [line.split(" | ") for line in table().splitlines()[2:]]
    assert len(rows) == sum(not entry.same_as for entry in NAMES.values())
    assert all(len(row) == 4 for row in rows), "no note holds the table's own sign"
    assert table() in JEPAConfig.__doc__
    readme = (ROOT / "full_ijepa" / "README.md").read_text()
    assert "(facade.py)" in readme
    assert "full_ijepa.create_model(" in readme


def test_the_package_imports_no_more_than_before():
    """`import full_ijepa` may not wait for torch; the façade comes when it is asked for."""
    code = "import sys, full_ijepa; assert 'torch' not in sys.modules; "
    code += "full_ijepa.create_model; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert {"create_model", "create_config", "JEPAConfig", "JEPAAgent"} <= set(dir(full_ijepa))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = full_ijepa.nothing
