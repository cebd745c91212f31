"""The loop: continued to the last bit, stopped cleanly, never silently wrong."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from full_ijepa import checkpoint, cost, doctor, loop, methods, report, train
from full_ijepa.__main__ import main
from full_ijepa.checkpoint import CheckpointError
from full_ijepa.data import Resident, accumulation, settled
from full_ijepa.distributed import RunningError, World, only_run
from full_ijepa.journal import read_rows
from full_ijepa.loop import STOPPED, Loop
from full_ijepa.recipes import RECIPES
from full_ijepa.train import Trainer, pretrain
from toy_ijepa.diagnostics import Health
from toy_ijepa.masking import Masks
from toy_ijepa.training import NonFiniteLossError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:Plan failed")  # a remark of cuDNN-less builds


OTHER = dict(precision="fp16", positions="learned", checkpointing=True, regulariser=(0.1, 0.005))


def run(recipe, out, **options):
    return pretrain(recipe, out, progress=False, **options)


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in rows_of(out)]


def final(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(checkpoint.written(out / "checkpoints")[-1])[0]


def rows_of(out: Path) -> list[dict[str, float]]:
    return read_rows(out / "history.jsonl")


def best(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.choose(out / "checkpoints", "best")[0]


def bests(row: dict[str, float]) -> dict[str, float]:
    """What a row says about being the best."""
    return {name: value for name, value in row.items() if name.startswith("best_")}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop_after(monkeypatch, steps: int, number: int = signal.SIGTERM):
    """Send this process a signal in the middle of a step."""
    take_step = Trainer.take_step

    def watched(self, batches):
        if self.step == steps - 1:
            os.kill(os.getpid(), number)
        return take_step(self, batches)

    monkeypatch.setattr(Trainer, "take_step", watched)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(dict(method="mae"), marks=pytest.mark.slow),
        pytest.param(dict(optimiser="muon", precision="bf16"), marks=pytest.mark.slow),
        pytest.param(OTHER, marks=pytest.mark.slow),
    ],
)
def test_interrupted_anywhere_the_run_ends_the_same(tmp_path, recipe, monkeypatch, changes):
    recipe = recipe.replace(**changes)
    whole = run(recipe, tmp_path / "whole")
    assert (whole.ended, whole.step) == ("done", 15)
    out = tmp_path / "parts"
    for place, number in ((1, signal.SIGTERM), (6, signal.SIGINT), (11, signal.SIGTERM)):
        with monkeypatch.context() as patch:
            stop_after(patch, place, number)
            part = run(recipe, out, resume=True)
        assert (part.ended, part.step, part.exit_code) == ("stopped", place, STOPPED)
    assert run(recipe, out, resume=True).ended == "done"
    assert losses(out) == losses(tmp_path / "whole")
    assert same(final(out), final(tmp_path / "whole"))
    assert same(best(out), best(tmp_path / "whole"))
    assert [bests(row) for row in rows_of(out)] == [bests(row) for row in whole.rows]


@pytest.mark.parametrize(("batch", "micro"), [(6, 3), (5, 5), (1, 1)])
def test_any_batch_trains(tmp_path, recipe, batch, micro):
    done = run(recipe.replace(batch=batch, micro_batch=micro, epochs=0.1, warmup_epochs=0), tmp_path / "run")
    assert done.ended == "done"


def test_the_regulariser_sees_the_whole_micro_batch(recipe):
    """Also where a group of contexts is a single image."""
    images, losses = torch.randn(4, 3, 16, 16), {}
    for groups in (1, 4):
        for weights in ((0.0, 0.0), (1.0, 1.0)):
            torch.manual_seed(0)
            method = methods.build(recipe.replace(groups=groups, regulariser=weights, drop_path=0.0))
            losses[groups, any(weights)] = methods.Step(method)(images, method.draw(4, seed=0, sizes=0)).item()
    assert math.isfinite(losses[4, True])
    assert losses[4, True] - losses[4, False] == pytest.approx(losses[1, True] - losses[1, False], rel=0.2)


@pytest.mark.parametrize("contexts", ["groups", "packed", "cut"])
def test_the_target_encoder_sees_a_micro_batch_once(recipe, contexts):
    method, calls = methods.build(recipe.replace(contexts=contexts)), []
    method.target.register_forward_hook(lambda *_: calls.append(1))
    methods.Step(method)(torch.randn(4, 3, 16, 16), method.draw(4, seed=0, sizes=0)).backward()
    assert len(calls) == 1


@pytest.mark.parametrize("groups", [1, 3])
def test_loss_and_gradient_are_those_of_the_toy_group_by_group(recipe, groups):
    """To the last bit: that the target encoder runs once, not once a group, changes nothing."""
    method = methods.build(recipe.replace(groups=groups, drop_path=0.0))
    images, drawn = torch.randn(6, 3, 16, 16), method.draw(6, seed=0, sizes=0)
    loss = methods.Step(method)(images, drawn)
    loss.backward()
    found = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    assert len(drawn) == groups
    parts = [(method(images[g.rows], Masks(g.context, g.targets)).loss, len(g.rows) / 6) for g in drawn]
    expected = sum(part * share for part, share in parts)
    expected.backward()
    assert loss.item() == expected.item()
    for name, grad in found.items():
        assert torch.equal(grad, method.get_parameter(name).grad), name


def test_features_are_watched_in_the_precision_of_the_run(recipe):
    """On few pictures, in bf16 where steps are, and at a cost far below a hundredth of the steps between."""
    with train.world("cpu") as here:
        trainer = Trainer(recipe.replace(precision="bf16"), here)
    seen = []
    trainer.method.target.blocks[0].mlp.fc1.register_forward_hook(lambda _, args, y: seen.append((y.dtype, len(y))))
    state, mean_loss = trainer.watch()
    assert seen == [(torch.bfloat16, train.WATCHED), (torch.bfloat16, train.CROPS)]
    assert math.isfinite(state.rank)
    assert mean_loss > 0
    large = RECIPES["stl10_vitb16"]
    look = 12 * cost.block_flops(768, 4 * 768, [196] * (train.WATCHED + train.CROPS))
    assert look < 0.005 * train.SELDOM * large.batch * cost.flops_per_image(large).model


def test_not_every_row_looks_at_features(tmp_path, recipe):
    """The first, every so many steps, and where the best is chosen; doctor and report read the others as well."""
    recipe = recipe.replace(watch_every=6, probe_epochs=2.0)
    rows = run(recipe, tmp_path / "run").rows
    assert [row["step"] for row in rows if "std" in row] == [1, 6, 12, 15]
    assert all(("std" in row) == ("mean_loss" in row) == ("rank" in row) for row in rows)
    with_terms = run(recipe.replace(regulariser=(0.1, 0.0), epochs=1.0, warmup_epochs=0.0), tmp_path / "terms").rows
    assert "std" in with_terms[0]
    assert "mean_loss" not in with_terms[0]
    assert "effective rank" in doctor.report(doctor.Chart(recipe, rows[:-2]))
    assert doctor.examine(doctor.Chart(recipe, rows[:-2]))
    assert [row["rank"] for row in report.held(rows)[5:11]] == [rows[5]["rank"]] * 6
    with train.world("cpu") as here:
        assert Trainer(recipe.replace(watch_every=0), here).watch_every == 1
        assert Trainer(recipe.replace(watch_every=0, epochs=200.0), here).watch_every == 30
        assert Trainer(recipe.replace(watch_every=0, epochs=9000.0), here).watch_every == train.SELDOM


def test_looking_counts_in_the_speed(tmp_path, recipe, monkeypatch):
    watch = Trainer.watch
    monkeypatch.setattr(Trainer, "watch", lambda self: (time.sleep(0.5), watch(self))[1])
    rows = run(recipe.replace(watch_every=5, probe_epochs=2.0, checkpoint_epochs=9.0), tmp_path / "run").rows
    for row in (rows[5], rows[10]):  # after a look
        assert row["images_per_second"] < recipe.batch / 0.5


def test_what_does_not_go_together_is_refused(recipe):
    with pytest.raises(ValueError, match="choose adamw, bf16 or fp32"):
        recipe.replace(optimiser="muon", precision="fp16")
    with pytest.raises(ValueError, match="at least 2"):
        recipe.replace(regulariser=(0.1, 0.0), batch=1, micro_batch=1)


@pytest.mark.parametrize("method", ["ijepa", "mae"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_trainable_tensor_moves_and_the_target_only_follows(name, method):
    """All recipes at a small size: nothing is left out of the optimisers, nothing but the average moves the target."""
    small = dict(encoder="toy", predictor_width=24, predictor_depth=2, predictor_heads=2, batch=4, micro_batch=2)
    small |= dict(compile=False, parallel="ddp", precision="fp32", epochs=4.0, warmup_epochs=0.1, loss="auto")
    recipe = RECIPES[name].replace(method=method, image_size=5 * RECIPES[name].patch, data="shapes", **small)
    pictures = torch.randint(0, 256, (12, 3, recipe.image_size, recipe.image_size), dtype=torch.uint8)
    with train.world("cpu") as here:
        trainer = Trainer(recipe, here, Resident(pictures, here.device))
    batches = trainer.batches(0, 3)
    trained = {name: p for name, p in trainer.method.named_parameters() if p.requires_grad}
    held = [p for optimiser in trainer.optimisers for group in optimiser.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, trained.values()))
    without: set[str] = set(trained)
    hooks = [p.register_post_accumulate_grad_hook(lambda p, n=n: without.discard(n)) for n, p in trained.items()]
    before = {name: p.detach().clone() for name, p in trained.items()}
    target = {name: p.clone() for name, p in trainer.method.named_parameters() if name.startswith("target.")}
    for _ in range(3):
        momentum = trainer.take_step(batches)[2]["momentum"]
        for full, p in target.items():
            p.lerp_(trained[full.replace("target.", "encoder.", 1)].detach(), 1 - momentum)
    assert len(hooks) == len(trained)
    assert not without, "no gradient"
    assert [name for name, p in trained.items() if torch.equal(p, before[name])] == []
    assert bool(target) == (method == "ijepa")
    now = dict(trainer.method.named_parameters())
    for full, p in target.items():
        assert not now[full].requires_grad
        assert torch.allclose(now[full], p, atol=1e-7), full


def test_the_loss_of_the_mean_sees_what_differs_between_pictures(recipe):
    """MAE's needs no encoder, I-JEPA's sees the target's."""
    images = torch.randn(1, 3, 16, 16).expand(6, -1, -1, -1)
    for method in ("ijepa", "mae"):
        built = methods.build(recipe.replace(method=method)).eval()
        assert built.mean_loss(images) == pytest.approx(0.0, abs=1e-6)
        assert built.mean_loss(torch.randn(6, 3, 16, 16)) > 1e-3
    assert math.isnan(methods.build(recipe.replace(regulariser=(0.1, 0.0))).mean_loss(images)), "its terms stand in it"


def scripted(monkeypatch, values: list[float]):
    """Probes that find these accuracies, one after the other."""
    found = iter(values)
    monkeypatch.setattr(Loop, "probe", lambda self: dict(knn=next(found), knn_doubt=2.0))


def test_the_best_is_kept_by_probe_although_the_run_goes_on_to_fall(tmp_path, recipe, monkeypatch, capsys):
    """Probes at every third step; the loss falls all the way."""
    scripted(monkeypatch, [40.0, 55.0, 54.0, 30.0, 20.0])
    recipe = recipe.replace(probe_epochs=0.4, checkpoint_epochs=0.1, keep=1)
    rows = run(recipe, tmp_path / "run").rows
    assert [(row["step"], bests(row)) for row in rows if bests(row)] == [
        (3, {"best_knn": 40.0}),
        (6, {"best_knn": 55.0}),
    ]
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoint.written(folder)] == [f"step-{n:08}.safetensors" for n in (14, 15)]
    assert [path.name for path in checkpoint.best_of(folder)] == ["best-00000006.safetensors"]
    said = capsys.readouterr().err
    assert "best: step 6 by kNN 55.0 % of 15; --checkpoint best" in said
    assert said.count("warning: falling since step 6: kNN 20.0 % at step 15, 55.0 % at step 6") == 1


def test_a_collapsed_step_is_never_the_best(tmp_path, recipe, monkeypatch):
    """Rank and kNN may be highest where all features are the same."""
    scripted(monkeypatch, [40.0, 55.0, 60.0, 70.0, 80.0])
    watch, shrunk = Trainer.watch, iter([1.0, 1.0, *[0.0] * 20])
    few = recipe.replace(probe_epochs=0.4, log_every=3)
    monkeypatch.setattr(Trainer, "watch", lambda self: (replace(watch(self)[0], std=next(shrunk)), 0.0))
    rows = run(few, tmp_path / "run").rows
    assert [row["step"] for row in rows if bests(row)] == [3, 6]
    shrunk = iter([0.0] * 20)
    scripted(monkeypatch, [40.0, 55.0, 60.0, 70.0, 80.0])
    assert not any(map(bests, run(few, tmp_path / "dead").rows))
    assert not checkpoint.best_of(tmp_path / "dead" / "checkpoints")


def test_a_continued_run_remembers_the_best(tmp_path, recipe, monkeypatch):
    """Stopped after the best: what comes later is compared with it, not with nothing."""
    recipe = recipe.replace(probe_epochs=0.4)
    scripted(monkeypatch, [40.0, 55.0])
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        run(recipe, tmp_path / "run")
    scripted(monkeypatch, [50.0, 54.0, 53.0])
    run(recipe, tmp_path / "run", resume=True)
    assert list(checkpoint.best_of(tmp_path / "run" / "checkpoints").values()) == [checkpoint.Best(6, "knn", 55.0)]


def test_without_labels_the_best_is_that_of_the_highest_rank(tmp_path, recipe):
    rows = run(recipe.replace(probe_epochs=0, checkpoint_epochs=0.4), tmp_path / "run").rows
    highest = max(rows[2::3], key=lambda row: row["rank"])
    (found,) = checkpoint.best_of(tmp_path / "run" / "checkpoints").values()
    assert (found.step, found.by) == (highest["step"], "rank")
    assert found.value == pytest.approx(highest["rank"], abs=1e-6)


def test_a_best_alone_is_not_trained_over(tmp_path, recipe, monkeypatch):
    """A run killed after its first probe and before its first checkpoint."""
    run(recipe, tmp_path / "run")
    for path in checkpoint.written(tmp_path / "run" / "checkpoints"):
        path.unlink()
    with pytest.raises(CheckpointError, match="already holds a run"):
        run(recipe, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"lr 0.001 there, 0.002 here"):
        run(recipe.replace(lr=2e-3), tmp_path / "run", resume=True)
    assert run(recipe, tmp_path / "run", resume=True).ended == "done"


def test_what_is_far_off_is_refused_before_anything_is_written(tmp_path, recipe, capsys):
    with pytest.raises(ValueError, match=r"lr 0.05 is 60 times the 0.0008 .*--allow-high-rate"):
        run(recipe.replace(lr=0.05), tmp_path / "run")
    with pytest.raises(ValueError, match=r"final_lr 0.01 is not between 0 and lr 0.001"):
        recipe.replace(final_lr=0.01)
    with pytest.raises(ValueError, match=r"start_lr 0.01 is not between 0 and lr 0.001"):
        recipe.replace(start_lr=0.01)
    assert not (tmp_path / "run").exists()
    short = recipe.replace(lr=0.05, allow_high_rate=True, epochs=0.2, warmup_epochs=0.0)
    assert run(short, tmp_path / "run").ended == "done"
    assert "warning: lr 0.05 is 60.0 times the 0.0008" in capsys.readouterr().err


def test_the_rate_rises_from_where_the_released_configs_start():
    """Warm-up of 40 of 300 epochs from 2e-4 to 1e-3, then down to 1e-6; nothing is cut."""
    recipe = RECIPES["imagenet_vith14"]
    rate = [train.set_schedules([], recipe, epoch / 300)[0] for epoch in (0, 20, 40, 300)]
    assert rate == pytest.approx([2e-4, 6e-4, 1e-3, 1e-6])
    assert recipe.clip == 0


def test_what_does_not_go_together_is_named_before_the_first_step(tmp_path, recipe, capsys):
    """Once: a run that goes on has been told."""
    recipe = recipe.replace(momentum=(0.9999, 1.0), compile=True, epochs=0.3, warmup_epochs=0.0, checkpoint_epochs=0.1)
    with train.world("cpu") as here:
        Loop(Trainer(recipe, here), tmp_path / "run", resume=False, progress=False)
    said = capsys.readouterr().err
    assert "100% of the pictures looked at have a near copy" in said  # of two pictures with grain
    assert "momentum 0.9999 to 1 leaves 100% of the target's random start after 2 steps: train longer" in said
    assert "ViT-TOY of 0.5 M parameters on 60 pictures: 7537 a picture" in said
    assert re.search(r"no GPU: this recipe is made for one \(compile\) and will take about \d+ seconds", said)


@pytest.mark.parametrize(
    ("name", "micro", "world"),
    [
        ("stl10_vitb16", 64, 4),
        ("imagenet_vitb16", 256, 8),
        ("imagenet_vith14", 128, 16),
        ("imagenet22k_vitg16", 64, 32),
    ],
)
def test_recipes_can_be_shared_out_as_the_documentation_says(name, micro, world):
    assert accumulation(RECIPES[name].replace(micro_batch=micro), world) >= 1


def test_the_loss_falls(tmp_path, recipe):
    quiet = dict(watch_every=20, probe_epochs=0, checkpoint_epochs=9.0)
    found = losses(run(recipe.replace(epochs=8.0, drop_path=0.0, lr=3e-3, **quiet), tmp_path / "run").out)
    assert sum(found[-5:]) < 0.6 * sum(found[:5])


def test_history_says_what_is_needed_to_judge(tmp_path, recipe):
    rows = run(recipe, tmp_path / "run").rows
    wanted = {"step", "epoch", "loss", "mean_loss", "lr", "weight_decay", "momentum", "gradient_norm", "seconds"}
    wanted |= {"images_per_second", "waiting", "memory_gb", "std", "rank", "position"}
    assert wanted | {"flat", "copies", "skipped"} == rows[0].keys()
    assert all(wanted <= row.keys() and 0 < row["waiting"] < 1 for row in rows)
    assert [row["step"] for row in rows] == list(range(1, 16))
    assert any("knn" in row for row in rows)
    assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize("micro", [8, 2])
def test_schedules_count_optimiser_steps(tmp_path, recipe, micro):
    """With four micro-batches a step the peak is where it is with one, and the end is at the end."""
    rows = run(recipe.replace(micro_batch=micro, probe_epochs=0), tmp_path / "run").rows
    rates = [row["lr"] for row in rows]
    assert len(rates) == 15
    assert max(rates) == rates[4] == pytest.approx(recipe.lr, rel=0.01)
    assert rates[0] == 0.0
    assert rates[-1] < 0.1 * recipe.lr


def test_one_step_is_that_of_the_large_batch(tmp_path, recipe):
    """Accumulation: the loss and the gradient are means over all micro-batches, the target moves once."""
    recipe = recipe.replace(epochs=0.2, warmup_epochs=0.0, drop_path=0.0, clip=0.0)
    with train.world("cpu") as here:
        trainer = Trainer(recipe, here)
    batches = list(trainer.batches(0, 1))
    expected = torch.stack([trainer.model(images, drawn) for images, drawn in batches]).mean()
    wanted = torch.autograd.grad(expected, [p for p in trainer.model.parameters() if p.requires_grad])
    total, norm, _ = trainer.take_step(iter(batches))
    assert total.item() == pytest.approx(expected.item(), abs=1e-6)
    assert norm.item() == pytest.approx(torch.cat([g.flatten() for g in wanted]).norm().item(), rel=1e-4)


def test_nothing_is_overwritten(tmp_path, recipe):
    run(recipe.replace(epochs=0.6), tmp_path / "run")
    with pytest.raises(CheckpointError, match="already holds a run; --resume auto continues it"):
        run(recipe.replace(epochs=0.6), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"lr 0.001 there, 0.002 here"):
        run(recipe.replace(epochs=0.6, lr=2e-3), tmp_path / "run", resume=True)


def test_a_damaged_last_checkpoint_costs_only_the_steps_since_the_one_before(tmp_path, recipe, monkeypatch, capsys):
    whole = run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        run(recipe, tmp_path / "run")
    path = checkpoint.written(tmp_path / "run" / "checkpoints")[-1]
    path.write_bytes(path.read_bytes()[:-200])
    run(recipe, tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert "is truncated" in said
    assert "continuing at step 8 of 15" in said
    assert losses(tmp_path / "run") == [row["loss"] for row in whole.rows]


def bad_at(monkeypatch, recipe, step: int, part: int, spoil):
    """Spoil the loss of one micro-batch, which is known by its masks."""
    step_loss, draw, bad = methods.IJEPA.step_loss, methods.IJEPA.draw, []
    seed = list(train.plan(60, recipe, step, step + 1))[part].seed

    def noted(self, batch, seed_, sizes, multiple=1):
        found = draw(self, batch, seed_, sizes, multiple)
        bad.extend([found[0].context] * (seed_ == seed))
        return found

    def spoiled(self, images, drawn):
        loss = step_loss(self, images, drawn)
        return spoil(self, loss) if any(drawn[0].context is known for known in bad) else loss

    monkeypatch.setattr(methods.IJEPA, "draw", noted)
    monkeypatch.setattr(methods.IJEPA, "step_loss", spoiled)


def test_a_loss_that_blows_up_stops_the_run_and_saves_nothing_bad(tmp_path, recipe, monkeypatch):
    bad_at(monkeypatch, recipe, 9, 1, lambda method, loss: loss * float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"at step 10; the last good checkpoint is .*step-00000008"):
        run(recipe, tmp_path / "run")
    assert all(value.isfinite().all() for value in final(tmp_path / "run").values())


def test_an_infinite_gradient_is_never_saved(tmp_path, recipe, monkeypatch):
    """The loss is finite, its gradient is not, and a checkpoint is due at this very step."""
    # value 0, slope infinite
    bad_at(monkeypatch, recipe, 7, 0, lambda method, loss: loss + torch.sqrt(method.encoder.norm.bias.sum() * 0.0))
    with pytest.raises(NonFiniteLossError, match=r"the last good checkpoint is .*step-00000004"):
        run(recipe.replace(log_every=50, checkpoint_epochs=0.5), tmp_path / "run")
    assert all(value.isfinite().all() for value in final(tmp_path / "run").values())


def test_a_run_whose_pictures_changed_is_not_continued(tmp_path, recipe, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        run(recipe, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(train, "steps_of", lambda recipe, pictures: 16)
        with pytest.raises(CheckpointError, match="the pictures have changed"):
            run(recipe, tmp_path / "run", resume=True)
    one_less = shutil.copytree(recipe.data.removeprefix("folder:"), tmp_path / "pictures")
    next(one_less.glob("train/*/*.png")).unlink()
    monkeypatch.setattr("full_ijepa.data.folder_of", lambda name: one_less)
    with pytest.raises(CheckpointError, match="60 pictures and 15 steps, now there are 59 and 15"):
        run(recipe, tmp_path / "run", resume=True)


def test_a_full_disk_is_said_and_training_goes_on(tmp_path, recipe, monkeypatch, capsys):
    def no_space(*_args, **_options):
        raise OSError(28, "No space left on device")

    recipe = recipe.replace(epochs=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", no_space)
        found = run(recipe, tmp_path / "run")
    assert (found.ended, found.exit_code, found.step) == ("unsaved", loop.NOT_SAVED, 8)
    said = capsys.readouterr().err
    assert "no checkpoint at step 4" in said
    assert re.search(r"the best checkpoint, step 8 by kNN [\d.]+ %, was not kept", said)
    assert "free space and --resume auto" in said


def slow_disk(monkeypatch, seconds: float) -> None:
    save_file = checkpoint.save_file
    slow = lambda *said, **options: (time.sleep(seconds), save_file(*said, **options))  # noqa: E731
    monkeypatch.setattr(checkpoint, "save_file", slow)


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path, recipe, monkeypatch):
    """One checkpoint of seven steps on a disk that takes longer for it than they do together."""
    taken, save = [], Loop.save

    def timed(self, losses):
        begun = time.perf_counter()
        save(self, losses)
        taken.append((self.trainer.step, time.perf_counter() - begun))

    monkeypatch.setattr(Loop, "save", timed)
    slow_disk(monkeypatch, 2.0)
    recipe = recipe.replace(epochs=1.0, checkpoint_epochs=0.5, probe_epochs=0, drop_path=0.0)
    begun = time.perf_counter()
    monkeypatch.setattr(Loop, "compare", lambda self, row: {})  # no best, which is written as well
    run(recipe.replace(epochs=0.9), tmp_path / "run")
    assert [step for step, _ in taken] == [4, 7]
    assert taken[0][1] < 1.0
    assert time.perf_counter() - begun > 4.0  # both were waited for
    assert [path.name for path in checkpoint.written(tmp_path / "run" / "checkpoints")] == [
        f"step-{n:08}.safetensors" for n in (4, 7)
    ]


def test_a_disk_slower_than_checkpoints_come_is_said(tmp_path, recipe, monkeypatch, capsys):
    slow_disk(monkeypatch, 0.4)
    monkeypatch.setattr(Loop, "compare", lambda self, row: {})  # no best, which is waited for as well
    run(recipe.replace(epochs=0.6, checkpoint_epochs=0.1, probe_epochs=0, keep=9), tmp_path / "run")
    assert re.search(
        r"step \d waited \d\.\d s for the checkpoint before .*raise checkpoint_epochs", capsys.readouterr().err
    )
    found = [checkpoint.read(path)[1]["step"] for path in checkpoint.written(tmp_path / "run" / "checkpoints")]
    assert found == [1, 2, 3, 4]


def test_a_stopped_run_waits_for_its_checkpoint(tmp_path, recipe, monkeypatch):
    slow_disk(monkeypatch, 1.0)
    stop_after(monkeypatch, 2)
    assert run(recipe.replace(probe_epochs=0), tmp_path / "run").ended == "stopped"
    assert checkpoint.newest(tmp_path / "run" / "checkpoints")[1]["step"] == 2


def test_a_checkpoint_that_failed_is_told_at_the_next_step_and_made_good_by_the_next(
    tmp_path, recipe, monkeypatch, capsys
):
    save_file, told, failed = checkpoint.save_file, [], threading.Event()

    def first_fails(tensors, path, metadata):
        if "step-00000004" in path.name:
            failed.set()
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata=metadata)

    say, take_step = Loop.say, Trainer.take_step

    def waits(self, batches):
        if self.step == 5:
            assert failed.wait(30)
            time.sleep(0.1)
        return take_step(self, batches)

    def noted(self, text):
        told.append((self.trainer.step, text))
        say(self, text)

    monkeypatch.setattr(checkpoint, "save_file", first_fails)
    monkeypatch.setattr(Trainer, "take_step", waits)
    monkeypatch.setattr(Loop, "say", noted)
    found = run(recipe.replace(epochs=1.0, probe_epochs=0), tmp_path / "run")
    assert (found.ended, found.exit_code) == ("done", loop.DONE)
    (step, text), *more = [(step, text) for step, text in told if "no checkpoint" in text]
    assert (step in (5, 6), text.startswith("warning: no checkpoint at step 4 ("), more) == (True, True, [])


def test_only_the_last_checkpoint_fails(tmp_path, recipe, monkeypatch, capsys):
    """Nothing comes after it that would tell: the run does not leave before it knows."""
    save_file = checkpoint.save_file

    def last_fails(tensors, path, metadata):
        if "step-00000008" in path.name:
            time.sleep(0.5)
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(checkpoint, "save_file", last_fails)
    found = run(recipe.replace(epochs=1.0, probe_epochs=0), tmp_path / "run")
    assert (found.ended, found.exit_code) == ("unsaved", loop.NOT_SAVED)
    assert "error: the last checkpoint could not be written" in capsys.readouterr().err


def test_history_takes_back_a_best_that_could_not_be_kept(tmp_path, recipe, monkeypatch, capsys):
    """And the one before it is the best again."""
    scripted(monkeypatch, [40.0, 55.0, 50.0, 30.0, 20.0])
    save_file = checkpoint.save_file

    def second_fails(tensors, path, metadata):
        if "best-00000006" in path.name:
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(checkpoint, "save_file", second_fails)
    found = run(recipe.replace(probe_epochs=0.4), tmp_path / "run")
    assert [(row["step"], bests(row)) for row in found.rows if bests(row)] == [
        (3, {"best_knn": 40.0}),
        (9, {"best_knn": 50.0}),
    ]
    assert rows_of(tmp_path / "run") == found.rows
    assert "the best checkpoint, step 6 by kNN 55.0 %, was not kept" in capsys.readouterr().err
    assert list(checkpoint.best_of(tmp_path / "run" / "checkpoints").values()) == [checkpoint.Best(9, "knn", 50.0)]


def hold(out: Path, held) -> None:
    with only_run(out, World(0, 1, torch.device("cpu"))):
        held.set()
        time.sleep(60)


def test_two_runs_never_share_a_folder_and_the_dead_hold_nothing(tmp_path, recipe):
    forking = multiprocessing.get_context("fork")
    held = forking.Event()
    other = forking.Process(target=hold, args=(tmp_path / "run", held))
    other.start()
    try:
        assert held.wait(30)
        with pytest.raises(RunningError, match=rf"^process {other.pid} on .+ is writing to .*run; wait for it, or"):
            run(recipe, tmp_path / "run")
    finally:
        other.kill()
        other.join()
    assert (tmp_path / "run" / ".running").exists()  # killed: its name is left, its lock is not
    assert run(recipe.replace(epochs=1.0), tmp_path / "run").ended == "done"
    assert not (tmp_path / "run" / ".running").exists()


def test_a_folder_that_cannot_be_guarded_is_said(tmp_path, monkeypatch):
    def without(self, **_options):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr("full_ijepa.distributed.FileLock.acquire", without)
    alone = World(0, 1, torch.device("cpu"))
    with pytest.warns(UserWarning, match="not guarded against a second run .no locks here"), only_run(tmp_path, alone):
        pass


def test_a_run_folder_that_vanishes_is_said_and_training_goes_on(tmp_path, recipe, monkeypatch):
    take_step = Trainer.take_step

    def vanishing(self, batches):
        while self.step == 5 and (tmp_path / "run").exists():  # a board's thread may write into it meanwhile
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return take_step(self, batches)

    monkeypatch.setattr(Trainer, "take_step", vanishing)
    with pytest.warns(UserWarning, match="history not written: .*No such file"):
        found = run(recipe.replace(epochs=1.0, checkpoint_epochs=1.0), tmp_path / "run")
    assert (found.ended, found.step) == ("done", 8)
    assert len(found.rows) == 8
    assert checkpoint.read(checkpoint.written(tmp_path / "run" / "checkpoints")[-1])[1]["step"] == 8


def command(recipe_file_args: list[str], out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "full_ijepa", "pretrain", "smoke", *recipe_file_args, "--out", str(out), *more]


def arguments(recipe) -> list[str]:
    """The recipe of the tests as flags."""
    flags = ["--data", recipe.data, "--image-size", "16", "--batch", "8", "--micro-batch", "4", "--epochs", "2"]
    flags += ["--precision", "fp32", "--checkpoint-epochs", "0.25", "--log-every", "1", "--probe-epochs", "0"]
    return [*flags, "--warmup-epochs", "0.5", "--keep", "9"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow  # quick: the same stops in this process, test_interrupted_anywhere_the_run_ends_the_same
def test_killed_at_any_moment_the_run_ends_the_same(tmp_path, recipe):
    """kill -9 at random moments, again and again; the first run is left alone."""
    flags, chance = arguments(recipe), random.Random(4)
    subprocess.run(command(flags, tmp_path / "whole"), env=environment(), check=True, capture_output=True)
    out, killed = tmp_path / "killed", 0
    for _ in range(6):
        process = subprocess.Popen(
            command(flags, out, "--resume", "auto"), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        wait_for_steps(out, process)
        time.sleep(chance.uniform(0.0, 0.4))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        killed += 1
    done = subprocess.run(command(flags, out, "--resume", "auto"), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert killed >= 2
    assert losses(out) == losses(tmp_path / "whole")
    assert same(best(out), best(tmp_path / "whole"))
    assert same(final(out), final(tmp_path / "whole"))


def wait_for_steps(out: Path, process: subprocess.Popen, seconds: float = 60.0) -> None:
    """Wait until the process has written something new, so that it is killed while it trains."""
    before, end = journal_size(out), time.monotonic() + seconds
    while process.poll() is None and journal_size(out) == before and time.monotonic() < end:
        time.sleep(0.02)


def journal_size(out: Path) -> int:
    path = out / "history.jsonl"
    return path.stat().st_size if path.exists() else 0


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    def said(*flags: str) -> tuple[int, str]:
        try:
            code = main(["pretrain", "smoke", "--out", str(tmp_path / "run"), *flags])
        except SystemExit as end:  # of a flag that does not exist
            code = end.code
        return code, "".join(capsys.readouterr())

    code, text = said("--image-size", "30")
    assert (code, "not a whole number of patches" in text) == (2, True)
    code, text = said("--epochs", "1", "--data", f"folder:{tmp_path / 'none'}")
    assert (code, "no folder" in text) == (2, True)
    code, text = said("--ephocs", "1")
    assert (code, "--epochs" in text) == (2, True)
    assert not (tmp_path / "run").exists()


def test_dry_run_estimates_and_trains_nothing(tmp_path, capsys):
    line = ["pretrain", "smoke", "--dry-run", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[:7]] == [
        *("run", "parameters", "steps", "FLOPs", "memory", "device", "time")
    ]
    numbers = {line.split()[0]: line.split(maxsplit=1)[1] for line in said.splitlines() if line}
    assert numbers["parameters"].startswith("0.5 M encoder")
    assert numbers["steps"].startswith("312 of 64 images")
    assert numbers["64"].split() == ["2.4e-03", "312", "0.8397"]  # what goes together at the recipe's batch
    assert numbers["this"].split()[1:] == ["3.0e-03", "312", "0.9500"]
    for name in ("FLOPs", "memory", "time"):
        assert float(re.search(r"[\d.]+", numbers[name])[0]) > 0
    assert re.search(r"as a step of \d+ images just took, [\d.]+% of that rate", numbers["time"])
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tries_what_can_be_tried_and_guesses_the_rest(recipe, monkeypatch):
    """Twice as slow a step makes twice the time; what would take too long is not tried."""
    monkeypatch.setattr(cost, "matmul_rate", lambda *_: 1e11)
    for each, words in ((1e-3, "30"), (2e-3, "60")):
        monkeypatch.setattr(cost, "tried", lambda *_, each=each: each)
        said = cost.estimate(recipe.replace(epochs=500.0), "cpu")  # 30,000 pictures shown
        assert f"time        about {words} seconds as a step of 4 images just took" in said
    monkeypatch.setattr(cost, "tried", lambda *_: pytest.fail("tried"))
    assert "if a step reaches 40% of that rate" in cost.estimate(RECIPES["stl10_vitb16"], "cpu")


def test_what_a_dry_run_tries_is_near_what_training_takes(recipe):
    recipe = settled(recipe.replace(batch=8, micro_batch=8))
    with train.world("cpu") as here:
        trainer = Trainer(recipe, here)
        batches, seconds = trainer.batches(0, 6), []
        for _ in range(6):
            begun = time.perf_counter()
            trainer.take_step(batches)
            seconds.append((time.perf_counter() - begun) / 8)
    found = cost.tried(recipe, torch.float32, 8)
    assert 0.1 * min(seconds) < found < 3 * sorted(seconds)[3]


def test_a_recipe_may_be_named(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'smoke'"):
        train.pretrain("smok", tmp_path / "run")


def test_a_low_rank_at_the_start_is_not_called_a_loss_of_it(tmp_path, recipe, monkeypatch, capsys):
    """Later it is, with what full scale calls the way out."""
    monkeypatch.setattr(train, "health", lambda tokens: Health(0.5, 1.2, 0.4))
    told: list[bool] = []

    def watched(self, early=False, watch=Loop.watch):
        found = watch(self, early)
        told.append("lose rank: effective rank 1.2" in capsys.readouterr().err)
        return found

    monkeypatch.setattr(Loop, "watch", watched)
    recipe = recipe.replace(watch_every=1, log_every=1, epochs=1.0, warmup_epochs=0.1)
    rows = run(recipe, tmp_path / "run").rows
    assert told == [False, True] + [False] * (len(rows) - 2)  # once
