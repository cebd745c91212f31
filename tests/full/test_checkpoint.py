"""Checkpoints: whole or not there, checked when read, never taken for another run's."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch

from full_ijepa import checkpoint, methods
from full_ijepa.checkpoint import Best, CheckpointError, Part
from full_ijepa.distributed import World
from full_ijepa.saving import Outcome, Saver
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


def save(folder, at, made, recipe, kind="step", optimisers=True, **about):
    """What the saver's thread does for one process."""
    path = checkpoint.path_of(folder, at, kind)
    about |= dict(step=at, recipe=asdict(recipe), scaler={}, seconds=1.0)
    checkpoint.write_part(path, checkpoint.collect(made[0], made[1] if optimisers else []), about)
    return checkpoint.finish(path, 1, recipe.keep)


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
    (tmp_path / "step-00000002.part").mkdir()
    (tmp_path / "step-00000002.part" / "0-of-2.safetensors").write_bytes(b"one of two")
    whole = save(tmp_path, 3, made, recipe)
    checkpoint.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == checkpoint.written(tmp_path) == [whole]


def test_only_the_last_are_kept(tmp_path, recipe, made):
    for at in (1, 2, 30, 4):
        save(tmp_path, at, made, recipe)
    assert [path.name for path in checkpoint.written(tmp_path)] == [f"step-{n:08}.safetensors" for n in (2, 4, 30)]


def save_best(folder, best, made, recipe):
    return save(folder, best.step, made, recipe, "best", optimisers=False, best=asdict(best))


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


def test_what_an_error_advises_can_be_followed(recipe):
    """A run that stopped at broken pictures goes on with the flag that it names."""
    checkpoint.compare(recipe.replace(allow_skipped=True), dict(recipe=asdict(recipe)), Path("run"))


def test_whoever_judges_is_told_of_a_damaged_checkpoint(tmp_path, recipe, made):
    for step in (1, 2):
        save(tmp_path, step, made, recipe)
    checkpoint.path_of(tmp_path, 2).write_bytes(b"half")
    with pytest.warns(UserWarning, match="truncated or not a checkpoint.*the checkpoint before it is used"):
        assert checkpoint.choose(tmp_path)[1]["step"] == 1
    assert checkpoint.files_of(tmp_path) == ""


def test_a_recipe_of_a_newer_version_is_said(recipe):
    with pytest.raises(CheckpointError, match="newer version"):
        checkpoint.compare(recipe, dict(recipe=asdict(recipe) | dict(warp=3)), Path("run"))


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


def in_parts(made, count: int = 3) -> list[Part]:
    """The checkpoint of a process as three processes would write it: rows of each tensor, counters with the first."""
    whole = checkpoint.collect(*made).tensors
    parts = [Part({}, number, count) for number in range(count)]
    for name, value in whole.items():
        pieces = list(value.chunk(count)) if value.ndim else [value]
        begin = 0
        for number in range(count if value.ndim else 1):
            piece = pieces[number] if number < len(pieces) else value[:0]  # fewer rows than processes
            parts[number].tensors[name] = piece.clone()
            if value.ndim:
                parts[number].places[name] = list(value.shape), [begin, *[0] * (value.ndim - 1)]
                begin += len(piece)
    return parts


def save_parts(folder, at, made, recipe, missing=()):
    path = checkpoint.path_of(folder, at, parts=3)
    for part in in_parts(made):
        if part.number not in missing:
            checkpoint.write_part(path, part, dict(step=at, recipe=asdict(recipe), scaler={}, seconds=1.0))
    return checkpoint.finish(path, 3, recipe.keep)


def test_parts_of_several_processes_are_one_checkpoint(tmp_path, recipe, made):
    one, three = save(tmp_path / "one", 3, made, recipe), save_parts(tmp_path / "three", 3, made, recipe)
    assert sorted(file.name for file in three.iterdir()) == [f"{n}-of-3.safetensors" for n in range(3)]
    (x, about), (y, other) = checkpoint.read(one), checkpoint.choose(tmp_path / "three")
    assert x.keys() == y.keys()
    assert all(torch.equal(x[name], y[name]) for name in x)
    assert (
        (about["step"], about["recipe"])
        == (other["step"], other["recipe"])
        == (3, json.loads(json.dumps(asdict(recipe))))
    )
    assert checkpoint.about_of(three)["step"] == 3


def test_parts_count_only_when_all_are_there(tmp_path, recipe, made):
    whole = save(tmp_path, 1, made, recipe)
    with pytest.raises(OSError, match=r"2 of 3 parts are in .* all processes need one folder"):
        save_parts(tmp_path, 2, made, recipe, missing=(1,))
    assert checkpoint.written(tmp_path) == [whole]
    path = save_parts(tmp_path, 3, made, recipe)
    (path / "1-of-3.safetensors").unlink()
    _, about, wrong = checkpoint.newest(tmp_path)
    assert about["step"] == 1
    assert "is not whole: 2 of its parts are there" in wrong[0]


@pytest.mark.parametrize("number", [0, 2])
def test_a_damaged_part_is_found(tmp_path, recipe, made, number):
    save(tmp_path, 1, made, recipe)
    part = save_parts(tmp_path, 2, made, recipe) / f"{number}-of-3.safetensors"
    content = bytearray(part.read_bytes())
    content[-100] ^= 1
    part.write_bytes(content)
    _, about, wrong = checkpoint.newest(tmp_path)
    assert about["step"] == 1
    assert f"{part} is damaged" in wrong[0]


def test_the_last_are_kept_and_a_step_is_kept_once(tmp_path, recipe, made):
    """A run that other numbers of processes continue: files and folders of parts take turns."""
    recipe = recipe.replace(keep=1)
    for at in (2, 4):
        save(tmp_path, at, made, recipe)
    save_parts(tmp_path, 4, made, recipe)
    assert [path.name for path in checkpoint.written(tmp_path)] == ["step-00000002.safetensors", "step-00000004"]
    save_parts(tmp_path, 6, made, recipe)
    assert [path.name for path in checkpoint.written(tmp_path)] == ["step-00000004", "step-00000006"]
    for at in (6, 8):
        save(tmp_path, at, made, recipe)
    assert [path.name for path in checkpoint.written(tmp_path)] == [f"step-{n:08}.safetensors" for n in (6, 8)]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def disk(monkeypatch):
    """A disk that writes nothing before `disk.ready` is set, and counts how many files are written at a time."""
    found = SimpleNamespace(ready=Event(), now=0, most=0, order=[])
    real = checkpoint.save_file

    def slow(tensors, path, metadata):
        found.now += 1
        found.most = max(found.most, found.now)
        assert found.ready.wait(60)
        real(tensors, path, metadata=metadata)
        found.order.append(path.name.split(".")[0])
        found.now -= 1

    monkeypatch.setattr(checkpoint, "save_file", slow)
    return found


@pytest.fixture
def saver(tmp_path, recipe):
    found = Saver(tmp_path, World(0, 1, torch.device("cpu")), recipe)
    yield found
    found.close()


def test_a_slow_disk_does_not_stop_the_loop(tmp_path, made, saver, disk):
    """What is written is what was there when it began, whatever the loop does meanwhile; one file at a time."""
    before = {name: p.detach().clone() for name, p in made[0].named_parameters()}
    saver.add("best", 1, checkpoint.collect(made[0], []), dict(best=asdict(Best(1, "knn", 2.0))))
    saver.add("step", 1, checkpoint.collect(*made), dict(scaler={}))
    assert saver.look() == []
    step(*made)
    assert saver.busy("step")
    assert not list(tmp_path.glob("*.safetensors"))
    disk.ready.set()
    assert saver.look(wait=True) == [Outcome("best", 1, ""), Outcome("step", 1, "")]
    assert not saver.busy("step")
    assert (disk.most, disk.order) == (1, ["best-00000001", "step-00000001"])
    found = checkpoint.read(checkpoint.path_of(tmp_path, 1))[0]
    assert all(torch.equal(found[f"model.{name}"], value) for name, value in before.items())
    assert not torch.equal(found["model.method.encoder.norm.bias"], made[0].method.encoder.norm.bias)


def test_what_could_not_be_written_is_told_and_the_next_one_tries_again(tmp_path, made, saver, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoint, "save_file", lambda *_args, **_options: (_ for _ in ()).throw(OSError(28, "No space"))
        )
        saver.add("step", 1, checkpoint.collect(*made), {})
        (failed,) = saver.look(wait=True)
    assert (failed.kind, failed.step, "No space" in failed.error) == ("step", 1, True)
    saver.add("step", 2, checkpoint.collect(*made), {})
    assert saver.look(wait=True) == [Outcome("step", 2, "")]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002.safetensors"]


def test_a_checkpoint_of_before_there_were_parts_still_opens(tmp_path, recipe, made):
    """Its description says nothing of parts, its recipe nothing of groups of processes."""
    path = save(tmp_path, 1, made, recipe)
    tensors, about = checkpoint.read(path)
    for name in ("parts", "places"):
        del about[name]
    del about["recipe"]["shard_size"]
    checkpoint.save_file(tensors, path, metadata={"about": json.dumps(about)})
    found, again, wrong = checkpoint.newest(tmp_path)
    checkpoint.compare(recipe.replace(parallel="fsdp", shard_size=2), again, tmp_path)
    checkpoint.restore(*made, found)
    assert (again["step"], wrong) == (1, [])
