from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import warnings

import pytest
import torch

from tests.wrong import models as wrong
from toy_ijepa.encoder import Encoder
from toy_ijepa.jepa import IJEPA
from toy_ijepa.patches import normalise
from toy_ijepa.predictor import Predictor
from toy_ijepa.probing import features, knn
from toy_ijepa.recipe import build
from toy_ijepa.shapes import generate
from toy_ijepa.training import (
    NonFiniteLossError,
    TrainConfig,
    augment,
    batches,
    make_optimisers,
    set_schedules,
    train,
    uses_bf16,
)


@pytest.fixture(scope="module")
def pictures():
    return generate(400, seed=0).images


def quick(kind=IJEPA, **options):
    torch.manual_seed(0)
    encoder = Encoder(32, 8, 32, depth=2, heads=2)
    return kind(encoder, Predictor(encoder.grid, 32, 16, 1, 2, mode="joint"), masks="random", **options)


def config(**options):
    return TrainConfig(**{"steps": 12, "batch": 32, "precision": "fp32", **options})


@pytest.mark.parametrize("method", ["ijepa", "ijepa-vc", "mae"])
def test_same_seed_same_loss_to_the_last_bit(method, pictures):
    def losses(seed):
        model = build(method, "tiny", 32, 8, seed=seed)
        return train(model, pictures, config(seed=seed, steps=6), progress=False).column("loss")

    first = losses(1)
    assert losses(1) == first
    assert losses(2) != first


def test_history_holds_every_schedule(pictures, tmp_path):
    history = train(quick(momentum=(0.5, 0.9)), pictures, config(weight_decay=(0.0, 0.4)), progress=False)
    assert history.images == 12 * 32
    assert history.column("step") == list(range(1, 13))
    assert history.column("momentum") == pytest.approx([0.5 + 0.4 * i / 12 for i in range(12)])
    assert history.column("lr")[0] == 0.0
    assert max(history.column("lr")) == pytest.approx(3e-3, rel=0.05)
    assert history.column("weight_decay")[0] == 0.0
    assert history.column("weight_decay")[-1] > 0.35
    history.save(tmp_path / "history.csv")
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["rank"]) for r in rows] == history.column("rank")


def test_a_run_in_minutes_ends_on_time_with_its_schedule(pictures):
    history = train(quick(), pictures, config(steps=None, minutes=0.05), progress=False)
    assert 3.0 <= history.seconds < 6.0
    assert history.column("progress")[-1] > 0.9
    assert history.column("lr")[-1] < 0.1 * max(history.column("lr"))


def test_target_moves_after_the_optimiser(pictures):
    """With momentum 0 the target is the encoder *after* the step, not before it."""
    model = quick(momentum=(0.0, 0.0))
    train(model, pictures, config(steps=3), progress=False)
    for target, online in zip(model.target.parameters(), model.encoder.parameters(), strict=True):
        assert torch.equal(target, online)


def test_i_jepa_learns_from_the_pictures_in_seconds():
    """A seconds-long run on small shapes: nearer neighbours share the class more often than in the random encoder."""
    train_set, test_set = generate(3000, seed=0, side=16), generate(1500, seed=1, side=16)
    model = build("ijepa-vc", "tiny", 16, 4, seed=0)

    def score():
        x, q = (features(model.probed, s.images) for s in (train_set, test_set))
        return knn(x, train_set.factors["shape"], q, test_set.factors["shape"])

    before = score()
    train(model, train_set.images, TrainConfig(steps=80), progress=False, rows=1)
    assert score() > before + 2  # measured: 12.5 -> 16.7; the sampling error of 1,500 pictures is 0.9


@pytest.mark.slow  # quick: chapter 5 trains without it too
def test_without_stop_gradient_the_features_collapse(pictures):
    """Right: many directions stay. Without stop-gradient the loss falls further and the features say nothing."""

    def end(kind):
        model = quick(kind, momentum=(0.9, 0.99))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            history = train(model, pictures, config(steps=150, lr=3e-3), progress=False, rows=10)
        warned = any("features" in str(w.message) for w in said)
        return history.column("loss")[-1], features(model.probed, pictures).std(0).mean().item(), warned

    loss, std, warned = end(IJEPA)
    loss_wrong, std_wrong, warned_wrong = end(wrong.GradientsToTarget)
    assert loss_wrong < loss / 3
    assert std_wrong < std / 3
    assert warned_wrong
    assert not warned


def test_non_finite_loss_stops_with_the_last_good_weights(pictures):
    model = quick()
    good = model.step_loss

    def step_loss(images, generator):
        loss = good(images, generator)
        return loss * float("nan") if step_loss.calls > 3 else count(loss)

    def count(loss):
        step_loss.calls += 1
        return loss

    step_loss.calls = 0
    model.step_loss = step_loss
    with pytest.raises(NonFiniteLossError, match=r"nan at step 4.*lower learning rate") as caught:
        train(model, pictures, config(), progress=False)
    assert all(p.isfinite().all() for p in model.parameters())
    assert (caught.value.history.ended, caught.value.history.steps) == ("diverged", 4)


def test_a_learning_rate_far_too_high_is_said(pictures):
    with pytest.raises(NonFiniteLossError, match="lower learning rate than 1e"):
        train(quick(), pictures, config(steps=40, lr=1e30), progress=False)


def test_ctrl_c_keeps_the_weights(pictures, monkeypatch):
    model = quick()
    before, after_step, steps = model.encoder.norm.bias.clone(), model.after_step, []

    def press_after_five(progress):
        steps.append(progress)
        if len(steps) == 5:
            signal.raise_signal(signal.SIGINT)
        return after_step(progress)

    monkeypatch.setattr(model, "after_step", press_after_five)
    history = train(model, pictures, config(steps=None, minutes=5), progress=False)
    assert history.ended == "interrupted"
    assert history.seconds < 60
    assert history.rows
    assert not torch.equal(model.encoder.norm.bias, before)


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_decay_spares_biases_norms_and_the_mask_token(optimiser):
    model = quick()
    optimisers = make_optimisers(model, config(optimiser=optimiser))
    set_schedules(optimisers, config(weight_decay=(0.3, 0.3), ends_decay=0.01), 0.5)
    names = {id(p): n for n, p in model.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for o in optimisers for g in o.param_groups for p in g["params"]}
    assert set(decay) == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, value in decay.items():
        matrix = name.endswith("weight") and "norm" not in name
        expected = (0.3 if ".blocks." in name else 0.01) if matrix else 0.0
        assert value == expected, name


def test_crops_stay_inside_and_half_are_mirrored(generator):
    ramp = torch.linspace(0, 1, 24).expand(500, 1, 16, 24)
    out = augment(ramp, (0.3, 1.0), True, generator)
    assert out.shape == ramp.shape
    assert out.min() >= 0
    assert out.max() <= 1
    mirrored = (out[:, 0, 8, -1] < out[:, 0, 8, 0]).float().mean().item()
    assert mirrored == pytest.approx(0.5, abs=0.1)
    whole = augment(ramp, (1.0, 1.0), False, generator)
    torch.testing.assert_close(whole, ramp.contiguous(), atol=1e-5, rtol=0)


def test_an_epoch_sees_every_image_once(generator):
    stream = batches(10, 4, generator)
    epoch = torch.cat([next(stream), next(stream)])
    assert len(epoch.unique()) == 8  # the remainder of 2 waits for the next shuffle
    assert len(next(batches(3, 64, generator))) == 3  # fewer pictures than a batch


def test_precision_is_chosen_by_the_processor(monkeypatch):
    device = torch.device("cpu")
    for able, kernels, used in [(True, "AVX512", True), (False, "AVX512", False), (True, "AVX2", False)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"avx512_bf16": able})
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda kernels=kernels: kernels)
        assert uses_bf16(device) is used
    assert uses_bf16(device, "bf16")
    assert not uses_bf16(device, "fp32")


def test_config_refuses_what_makes_no_sense():
    for wrong_one, words in [
        ({"steps": None}, "either in steps or in minutes"),
        ({"minutes": 3.0}, "either in steps or in minutes"),
        ({"steps": 0}, "too short"),
        ({"steps": None, "minutes": float("nan")}, "too short"),
        ({"lr": float("nan")}, "above 0"),
        ({"batch": 1}, "at least 2"),
        ({"crop": (0.0, 1.0)}, "not a range"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"optimiser": "sgd"}, "unknown optimiser"),
    ]:
        with pytest.raises(ValueError, match=words):
            config(**wrong_one)
    with pytest.raises(ValueError, match="too few to train"):
        train(quick(), torch.zeros(1, 3, 32, 32, dtype=torch.uint8), config(), progress=False)


def test_watching_does_not_change_the_training(pictures):
    def run(**options):
        model = quick()
        return train(model, pictures, config(), progress=False, **options).rows, model.encoder.norm.bias

    (often, one), (seldom, two) = run(), run(rows=1)
    assert (len(often), len(seldom)) == (12, 1)
    assert torch.equal(one, two)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_features_are_watched_in_the_precision_of_the_step(pictures, precision, dtype):
    model, seen = quick(), set()
    for part in (model.encoder, model.target):
        first = next(module for module in part.blocks.modules() if isinstance(module, torch.nn.Linear))
        first.register_forward_hook(lambda _module, _given, found: seen.add(found.dtype))
    history = train(model, pictures, config(steps=2, precision=precision), progress=False)
    assert seen == {dtype}
    assert all(row["rank"] > 1 for row in history.rows)


def test_normalised_pixels_are_around_zero():
    grey = torch.tensor([0, 128, 255], dtype=torch.uint8)
    torch.testing.assert_close(normalise(grey), torch.tensor([-2.0, 0.00784, 2.0]), atol=1e-4, rtol=0)


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is what torch brings on Linux")
@pytest.mark.parametrize(
    ("package", "given", "told"),
    [
        ("toy_ijepa", {}, "10000"),
        pytest.param("full_ijepa", {}, "10000", marks=pytest.mark.slow),  # each imports torch anew
        pytest.param("toy_ijepa", {"GOMP_SPINCOUNT": "77"}, "77", marks=pytest.mark.slow),
        pytest.param("toy_ijepa", {"OMP_WAIT_POLICY": "PASSIVE"}, "0", marks=pytest.mark.slow),
    ],
)
def test_waiting_threads_do_not_spin_for_long(package, given, told):
    """The setting arrives where it counts: libgomp itself says what it read when torch was imported."""
    plain = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    line = [sys.executable, "-c", f"import {package}, torch"]
    env = plain | given | {"OMP_DISPLAY_ENV": "VERBOSE"}
    said = subprocess.run(line, env=env, capture_output=True, text=True).stderr
    assert f"GOMP_SPINCOUNT = '{told}'" in said
