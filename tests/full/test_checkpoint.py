"""Checkpoints: whole or not there, checked when read, never taken for another run's."""

from __future__ import annotations

import pickle

import pytest
import torch

from full_ijepa import checkpoint, methods
from full_ijepa.checkpoint import Best, CheckpointError
from toy_ijepa.training import make_optimisers


@pytest.fixture
def made(recipe):
    """A model that has taken one step, and its optimisers."""
    model = methods.Step(methods.build(recipe))
    optimisers = make_optimisers(model, recipe)
    step(model, optimisers)
    return model, optimisers


def step(model, optimisers):
    model(torch.ones(4, 3, 16, 16), model.method.draw(4, seed=1, sizes=1)).backward()
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad()


def save(folder, at, made, recipe):
    return checkpoint.write(folder, at, checkpoint.collect(*made), recipe, dict(scaler={}, seconds=1.0))


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_what_is_restored_goes_on_as_before(tmp_path, recipe, optimiser):
    recipe = recipe.replace(optimiser=optimiser)
    model = methods.Step(methods.build(recipe))
    optimisers = make_optimisers(model, recipe)
    step(model, optimisers)
    path = save(tmp_path, 1, (model, optimisers), recipe)
    step(model, optimisers)
    again = methods.Step(methods.build(recipe.replace(seed=9)))
    others = make_optimisers(again, recipe)
    checkpoint.restore(again, others, checkpoint.read(path)[0])
    step(again, others)
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path, recipe, made):
    left = tmp_path / "step-00000001.123.part"
    left.write_bytes(b"half")
    save(tmp_path, 2, made, recipe)
    assert not left.exists()


def test_only_the_last_are_kept(tmp_path, recipe, made):
    for at in (1, 2, 30, 4):
        save(tmp_path, at, made, recipe)
    assert [path.name for path in checkpoint.written(tmp_path)] == [f"step-{n:08}.safetensors" for n in (2, 4, 30)]


def save_best(folder, best, made, recipe):
    return checkpoint.write_best(folder, best, checkpoint.collect(made[0], []), recipe, {})


def test_the_best_outlives_the_last_ones(tmp_path, recipe, made):
    """A better one takes its place; it holds the weights, which open as those of any checkpoint."""
    save_best(tmp_path, Best(1, "knn", 20.0), made, recipe)
    path = save_best(tmp_path, Best(3, "knn", 30.0), made, recipe)
    for at in (4, 5, 6, 7):
        save(tmp_path, at, made, recipe.replace(keep=1))
    assert checkpoint.best_of(tmp_path) == {path: Best(3, "knn", 30.0)}
    assert [path.name for path in checkpoint.written(tmp_path)] == [f"step-{n:08}.safetensors" for n in (6, 7)]
    again = methods.Step(methods.build(recipe.replace(seed=9)))
    tensors, about = checkpoint.choose(tmp_path, "best")
    checkpoint.restore(again, [], tensors)
    assert all(name.startswith("model.") for name in tensors)
    assert about["step"] == 3
    for (name, p), q in zip(made[0].named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_killed_between_writing_one_best_and_deleting_the_other(tmp_path, recipe, made):
    """The better one counts, whichever step came later; a damaged one does not."""
    for best in (Best(8, "knn", 40.0), Best(2, "rank", 90.0), Best(5, "knn", 35.0)):
        path = save_best(tmp_path / str(best.step), best, made, recipe)
        path.rename(tmp_path / path.name)
    assert [best.step for best in checkpoint.best_of(tmp_path).values()] == [8, 5, 2]
    path = tmp_path / "best-00000008.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    assert checkpoint.choose(tmp_path, "best")[1]["step"] == 5


def test_a_checkpoint_is_chosen_by_name_or_step(tmp_path, recipe, made):
    with pytest.raises(CheckpointError, match=r"is .* the --out of a pretrain"):
        checkpoint.choose(tmp_path)
    save(tmp_path, 2, made, recipe)
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        checkpoint.choose(tmp_path, "best")
    save(tmp_path, 30, made, recipe)
    save_best(tmp_path, Best(11, "rank", 9.0), made, recipe)
    steps = {which: checkpoint.choose(tmp_path, which)[1]["step"] for which in ("last", "best", "2", "30", "11")}
    assert steps == {"last": 30, "best": 11, "2": 2, "30": 30, "11": 11}
    for which in ("3", "first", "-2"):
        with pytest.raises(CheckpointError, match=f"no checkpoint '{which}' .* last, best and steps 2, 11, 30"):
            checkpoint.choose(tmp_path, which)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path, recipe, made, damage):
    save(tmp_path, 1, made, recipe)
    path = save(tmp_path, 2, made, recipe)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-1000] ^= 1
    path.write_bytes({"truncated": content[: len(content) // 2], "flipped": content, "empty": b""}[damage])
    _, about, wrong = checkpoint.newest(tmp_path)
    assert about["step"] == 1
    assert len(wrong) == 1
    assert str(path) in wrong[0]


def test_a_run_never_starts_anew_over_damaged_checkpoints(tmp_path, recipe, made):
    for at in (1, 2):
        save(tmp_path, at, made, recipe).write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        checkpoint.newest(tmp_path)
    assert checkpoint.newest(tmp_path / "other") is None


def test_code_is_never_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return print, ("executed",)

    path = checkpoint.path_of(tmp_path, 1)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
        checkpoint.read(path)


def test_another_run_is_recognised_by_what_it_learns(tmp_path, recipe, made):
    _, about = checkpoint.read(save(tmp_path, 1, made, recipe))
    checkpoint.compare(recipe.replace(workers=3, keep=9, log_to=(), allow_high_rate=True), about, tmp_path)
    with pytest.raises(CheckpointError, match=r"lr 0.001 there, 0.002 here.*choose another --out"):
        checkpoint.compare(recipe.replace(lr=2e-3), about, tmp_path)


def test_weights_of_another_size_do_not_fit(tmp_path, recipe, made):
    path = save(tmp_path, 1, made, recipe)
    other = methods.Step(methods.build(recipe.replace(encoder="ti", predictor_heads=2)))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        checkpoint.restore(other, [], checkpoint.read(path)[0])


def test_a_full_disk_leaves_what_was_there(tmp_path, recipe, made, monkeypatch):
    before = save(tmp_path, 1, made, recipe)

    def no_space(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", no_space)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, made, recipe)
    with pytest.raises(OSError, match="No space left"):
        save_best(tmp_path, Best(2, "knn", 1.0), made, recipe)
    assert list(tmp_path.iterdir()) == [before]
    checkpoint.read(before)
