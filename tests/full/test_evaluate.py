"""The protocols: they find what is there, nothing where nothing is, and choose on training data alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from full_ijepa import evaluate as package
from full_ijepa import labels
from full_ijepa.checkpoint import CheckpointError
from full_ijepa.evaluate import evaluate, heads, protocols, run, tuning
from full_ijepa.evaluate.features import alone, pooled, tokens_of
from full_ijepa.evaluate.pictures import labelled
from full_ijepa.evaluate.protocols import few_labels, nearest
from full_ijepa.evaluate.run import load_run
from full_ijepa.pixels import PHOTOGRAPHS, decoded
from full_ijepa.recipes import RECIPES
from full_ijepa.recipes.base import Recipe
from full_ijepa.table import Table
from full_ijepa.train import pretrain
from full_ijepa.vit import build_encoder
from toy_ijepa import data as toy
from toy_ijepa import probing, shapes
from toy_ijepa.folders import DataError

CLASSES = 4


def clouds(count: int, seed: int, apart: float = 2.0, features: int = 12):
    """Samples around one centre a class; some features are far larger than others."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (count,), generator=generator)
    centres = apart * torch.randn(CLASSES, features, generator=torch.Generator().manual_seed(9))
    scale = torch.logspace(-2, 2, features)
    return (centres[y] + torch.randn(count, features, generator=generator)) * scale, y


def test_linear_finds_what_there_is_and_nothing_in_noise():
    (x, y), (x_test, y_test) = clouds(600, 1), clouds(400, 2)
    found = heads.linear(x, y, x_test, CLASSES)
    exact, _ = probing.linear_probe(x, y, x_test, y_test)
    assert 100 * (found.predicted == y_test).double().mean() > exact - 2
    noise = heads.linear(torch.randn(600, 12), y, torch.randn(400, 12), CLASSES)
    assert (noise.predicted == y_test).double().mean() < 0.35


def test_all_rates_at_once_are_each_rate_alone():
    x, y = clouds(300, 3)
    x = (x - x.mean(0)) / x.std(0)
    together = heads.fit_linear(x, y, CLASSES, (1e-3, 1e-2), 5, 0)
    for i, rate in enumerate((1e-3, 1e-2)):
        alone = heads.fit_linear(x, y, CLASSES, (rate,), 5, 0)[0]
        assert torch.allclose(together[i], alone, atol=1e-5)


def test_choices_do_not_look_at_the_test_set():
    """Other test samples, same choice and same answers for those that stay."""
    (x, y), (x_test, _) = clouds(300, 4), clouds(100, 5)
    first = heads.linear(x, y, x_test, CLASSES)
    second = heads.linear(x, y, torch.cat([x_test, 100 * torch.ones(50, 12)]), CLASSES)
    assert first.rate == second.rate
    assert torch.equal(first.predicted, second.predicted[:100])


def tagged(x: torch.Tensor) -> torch.Tensor:
    """Three tags of samples: of the first feature, of the second, and nothing that features tell."""
    return torch.stack([x[:, 0] > 0, x[:, 1] / 10 > 0.8, torch.rand(len(x)) > 0.5], dim=1)


def test_each_tag_is_learned_on_its_own():
    torch.manual_seed(0)
    x, x_test = (torch.randn(500, 2) * torch.tensor([1.0, 10.0]) for _ in range(2))
    y, truth = tagged(x), tagged(x_test)
    found = heads.linear(x, y, x_test, 3)
    assert found.scores.min() >= 0
    assert found.scores.max() <= 1
    right = ((found.scores > 0.5) == truth).double().mean(0)
    assert (right[:2] > 0.9).all()
    assert right[2] < 0.65
    alone = [heads.linear(x, y[:, [n]], x_test, 1, rate=found.rate).scores[:, 0] for n in range(3)]
    assert torch.allclose(torch.stack(alone, dim=1), found.scores, atol=1e-4)


@pytest.mark.parametrize("task", ["tags", "numbers"])
def test_attention_reads_tags_and_numbers(task):
    """In their own units."""
    torch.manual_seed(0)
    x, answer = torch.randn(600, 3, 12), torch.randn(600, 2)
    x[:, :, :2] = answer[:, None]
    y = answer > 0 if task == "tags" else 100 * answer + 1000
    scores = tuning.attentive(x[:400], y[:400], x[400:], 2, 2, alone(), epochs=40).scores
    if task == "tags":
        assert ((scores > 0.5) == y[400:]).double().mean() > 0.85
    else:
        assert (scores - y[400:]).square().mean() < 0.3 * y[400:].var()


def test_attention_reads_one_token_among_many():
    """The class is in one token at a random place: an average drowns it, attention finds it."""
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        y = torch.randint(2, (count,), generator=generator)
        x = torch.randn(count, 16, 12, generator=generator) * 0.5
        place = torch.randint(16, (count,), generator=generator)
        sign = torch.where(y == 1, 1.0, -1.0)
        x[torch.arange(count), place] = 0.0
        x[torch.arange(count), place, 0] = 4.0  # "here"
        x[torch.arange(count), place, 1] = 2.0 * sign
        x[:, :, 1] += torch.randn(count, 1, generator=generator) * 2  # every token is shifted alike
        return x.half(), y

    (x, y), (x_test, y_test) = draw(1500), draw(500)
    found = tuning.attentive(x, y, x_test, 2, 3, alone(), epochs=8)
    mean = heads.linear(x.float().mean(1), y, x_test.float().mean(1), 2)
    attended, averaged = ((v.predicted == y_test).double().mean().item() for v in (found, mean))
    assert attended > averaged + 0.1


def test_finetune_moves_a_copy_and_learns(recipe, pictures):
    recipe = recipe.replace(drop_path=0.0)
    encoder = build_encoder("toy", 16, 4)
    before = encoder.patch_embed.proj.weight.clone()
    train, test = (labelled(recipe.data, split, 16) for split in ("train", "test"))
    found = tuning.finetune(encoder, train.images(), train.labels, test.images(), 2, recipe, epochs=4)
    assert torch.equal(encoder.patch_embed.proj.weight, before)
    assert (found.predicted == test.labels).double().mean() > 0.9


def test_finetune_predicts_numbers_in_their_unit(recipe, pictures):
    train, test = (labelled(recipe.data, split, 16) for split in ("train", "test"))
    y, truth = (100.0 * part.labels[:, None] + 1000 for part in (train, test))
    found = tuning.finetune(build_encoder("toy", 16, 4), train.images(), y, test.images(), 1, recipe, epochs=12)
    assert (found.scores - truth).abs().mean() < 40


def test_layer_decay_reaches_every_parameter_once():
    model = tuning.Classifier(build_encoder("toy", 16, 4, positions="fixed"), 2)
    groups = model.groups(0.5)
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())
    assert [g["share"] for g in groups] == [0.5**n for n in (5, 4, 3, 2, 1, 0)]


def test_layer_decay_reaches_learned_positions():
    model = tuning.Classifier(build_encoder("toy", 16, 4, positions="learned", drop_path=0.3), 2)
    assert any(p is model.encoder.pos_embed for p in model.groups(0.5)[0]["params"])


def test_ridge_explains_what_is_linear():
    x, x_test = torch.randn(300, 5) * 3 + 1, torch.randn(200, 5) * 3 + 1
    truth = torch.arange(5.0)
    guess, _ = heads.ridge(x, x @ truth + 7, x_test)
    assert torch.allclose(guess, x_test @ truth + 7, atol=0.2)


def test_ridge_takes_columns_in_any_unit():
    torch.manual_seed(0)
    x, x_test = torch.randn(300, 5), torch.randn(200, 5)
    weight = torch.randn(5, 2) * torch.tensor([1e-3, 1e3])
    guess, _ = heads.ridge(x, x @ weight, x_test)
    assert (((guess - x_test @ weight) / (x_test @ weight).std(0)).abs() < 0.02).all()


def test_few_labels():
    labels = torch.arange(3).repeat(50)
    each = few_labels(labels, "each", 4, 0)
    assert labels[each].bincount().tolist() == [4, 4, 4]
    assert len(few_labels(labels, "share", 0.1, 0)) == 15
    assert not torch.equal(each, few_labels(labels, "each", 4, 1))


def test_nearest_is_the_object_that_hides_the_others():
    factors = shapes.generate(50, 3, most=4).factors
    depth = nearest(factors, "size")
    rows = (factors["object_depth"] == 1).nonzero()
    assert len(rows) == 50
    assert torch.equal(depth, factors["object_size"][rows[:, 0], rows[:, 1]])


def test_dense_asks_which_shape_is_in_front(monkeypatch):
    scenes = {"scene train": (600, 11), "scene test": (200, 12)}
    monkeypatch.setattr(protocols, "SCENES", {"train": 600, "test": 200})

    class Knowing:
        """Features that say which silhouette is nearest, and nothing else."""

        recipe, seed, here = RECIPES["smoke"].replace(image_size=16), 0, alone()

        def features(self, data, part):
            count, seed = scenes[part]
            factors = shapes.generate(count, seed, 16, most=protocols.MOST).factors
            return F.one_hot(nearest(factors, "shape").long(), len(shapes.CLASSES)).float()

    found = protocols.dense(Knowing())
    assert found["front"] == 100
    assert found["accuracy"] < 40, "the number of objects is not in it"
    assert found["nearest_x_r2"] < 10


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pictures):
    from full_ijepa.recipes.base import Recipe

    small = dict(predictor_width=32, predictor_depth=1, predictor_heads=2, predictor_mode="joint", groups=2)
    steps = dict(batch=8, micro_batch=8, epochs=1.0, warmup_epochs=0.1, workers=0, probe_epochs=0, precision="fp32")
    recipe = Recipe(data=f"folder:{pictures}", image_size=16, encoder="toy", patch=4, **small, **steps)
    return pretrain(recipe, tmp_path_factory.mktemp("trained") / "run", progress=False).out


@pytest.mark.slow  # quick: chapters 10 and 12
def test_every_protocol_on_a_run(trained, monkeypatch):
    monkeypatch.setattr(protocols, "SCENES", {"train": 60, "test": 40})
    found = evaluate(trained, package.PROTOCOLS)
    assert set(found["protocols"]) == set(package.PROTOCOLS)
    for name, rows in found["protocols"].items():
        assert {"ijepa", "random"} <= set(rows)
        assert ("pixels" in rows) == (name not in ("attentive", "finetune", "resolution"))
        for row in rows.values():
            assert 0 <= row["accuracy"] <= 100
            assert row["spread"]["accuracy"] is None  # of one seed
    confusion = found["protocols"]["linear"]["ijepa"]["confusion"]
    assert sum(map(sum, confusion)) == 60
    assert found["protocols"]["linear"]["ijepa"]["accuracy"] > 80  # stripes across or down
    assert json.loads((trained / "evaluation.json").read_text()) == json.loads(json.dumps(found))
    assert package.table(found).count("\n") == 4


def test_two_seeds_have_a_spread(trained):
    found = evaluate(trained, ["knn", "linear"], seeds=(0, 1))
    for rows in found["protocols"].values():
        assert set(rows) == {"ijepa", "random", "pixels"}
        assert all(row["spread"]["accuracy"] is not None for row in rows.values())
    pixels = found["protocols"]["linear"]["pixels"]
    assert pixels["accuracy_last4"] == pixels["accuracy"]  # pixels have no layers
    assert "+-" in package.table(found)


def test_target_and_context_encoders_are_told_apart(trained, monkeypatch):
    """Each is asked when it is asked for, and has a file of its own."""
    _, method, step = load_run(trained)
    assert step == 8
    judged = []
    monkeypatch.setitem(package.PROTOCOLS, "knn", lambda s: judged.append(s.encoder) or dict(accuracy=1.0))
    for which in ("target", "context"):
        evaluate(trained, ["knn"], encoder=which)
    bias = [judged[0].norm.bias, judged[3].norm.bias]
    assert torch.equal(bias[0], method.target.norm.bias)
    assert torch.equal(bias[1], method.encoder.norm.bias)
    assert not torch.equal(*bias)
    assert (trained / "evaluation-context.json").exists()


def test_transfer_and_other_protocols_are_kept_apart(trained, monkeypatch):
    for split, count in {"train": 400, "test": 100}.items():  # all 24,000 take ten seconds to draw
        monkeypatch.setitem(toy.SHAPES_COUNT, split, count)
    (trained / "evaluation.json").unlink(missing_ok=True)
    evaluate(trained, ["knn"], data="shapes", most=300)
    assert (trained / "evaluation-shapes.json").exists()
    assert not (trained / "evaluation.json").exists()
    evaluate(trained, ["knn"])
    evaluate(trained, ["linear"])
    assert set(json.loads((trained / "evaluation.json").read_text())["protocols"]) == {"knn", "linear"}


def test_what_was_found_stays_when_a_later_protocol_fails(trained, monkeypatch):
    def fails(subject):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(package.PROTOCOLS, "dense", fails)
    file = trained / "evaluation-context.json"
    file.unlink(missing_ok=True)
    with pytest.raises(RuntimeError):
        evaluate(trained, ["knn", "dense"], encoder="context")
    assert list(json.loads(file.read_text())["protocols"]) == ["knn"]


def test_sets_called_alike_have_files_of_their_own(trained, pictures, tmp_path):
    places = [tmp_path / which / "mine" for which in ("a", "b")]
    for place in places:
        shutil.copytree(pictures, place)
    evaluate(trained, ["knn"], data=f"folder:{places[0]}")
    assert list(evaluate(trained, ["linear"], data=f"folder:{places[1]}")["protocols"]) == ["linear"]
    assert list(evaluate(trained, ["linear"], data=f"folder:{places[0]}")["protocols"]) == ["knn", "linear"]
    assert len(list(trained.glob("evaluation-mine*.json"))) == 2


def test_what_was_judged_otherwise_is_put_aside(trained, pictures):
    """And a folder is itself, however it is spelled."""
    file = trained / "evaluation.json"
    file.unlink(missing_ok=True)
    evaluate(trained, ["knn"])
    evaluate(trained, ["linear"], data=f"folder:{pictures.parent}/./{pictures.name}/")
    assert set(json.loads(file.read_text())["protocols"]) == {"knn", "linear"}
    for old in trained.glob("evaluation-before*"):
        old.unlink()
    with pytest.warns(UserWarning, match=r"evaluation\.json was of other seeds: it is evaluation-before-1\.json now"):
        evaluate(trained, ["knn"], seeds=(0, 1))
    with pytest.warns(UserWarning, match=r"it is evaluation-before-2\.json now"):
        evaluate(trained, ["knn"])
    assert set(json.loads((trained / "evaluation-before-1.json").read_text())["protocols"]) == {"knn", "linear"}


OTHER = dict(tested=3, labels=3, task="tags", table={}, step=1, weights="another")


@pytest.mark.parametrize(("key", "other"), OTHER.items())
def test_each_thing_that_sets_two_verdicts_apart_is_told(tmp_path, key, other):
    """By another run in the same folder, for instance, of as many steps; a file that does not say is added to."""
    same = dict(step=9, data="d", labels=9, tested=9, task="classes", table=None, seeds=[0], weights="one")
    path, old = tmp_path / "evaluation.json", dict(knn=dict(ours=1))
    path.write_text(json.dumps(same | {key: other} | dict(protocols=old)))
    with pytest.warns(UserWarning, match=rf"evaluation\.json was of other {key}: it is evaluation-before-1\.json now"):
        run.written(path, same | dict(protocols=dict(linear={})))
    assert set(json.loads(path.read_text())["protocols"]) == {"linear"}
    path.write_text(json.dumps({k: v for k, v in same.items() if k != "weights"} | dict(protocols=old)))
    run.written(path, same | dict(protocols=dict(linear={})))
    assert set(json.loads(path.read_text())["protocols"]) == {"knn", "linear"}


def test_broken_pictures_are_named_together(tmp_path, pictures, monkeypatch):
    """Not one a run. Those that are read before the others are told wait for no one."""
    root = shutil.copytree(pictures, tmp_path / "broken")
    names = [f"test/across/{n:03}.png" for n in (0, 20, 58)]
    for name in names:
        (root / name).write_text("no picture")
    monkeypatch.setattr(package.pictures, "CHUNK", 2)
    monkeypatch.setattr(package.pictures, "THREADS", 1)
    broken = labelled(f"folder:{root}", "test", 16)
    assert len(labelled(f"folder:{root}", "train", 16).images()) == 60
    with pytest.raises(DataError, match=r"3 of the labelled pictures cannot"):
        tokens_of(build_encoder("toy", 16, 4), broken, alone())
    with pytest.raises(DataError, match=r"3 of the labelled pictures cannot be read: .*000\.png.*020\.png.*058\.png"):
        broken.images()
    monkeypatch.setattr(package.pictures, "NAMING", 0.0)
    with pytest.raises(DataError, match=r"1 of the labelled pictures cannot be read: .*move them away"):
        broken.images()


def test_pictures_that_were_trained_on_are_told_wherever_the_folder_begins(trained, pictures, tmp_path):
    """The run's folder inside the one that is judged, and the one that is judged inside the run's."""
    shutil.copytree(pictures / "test", tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(pictures / "train")
    for name in ("classes", "files"):  # links to each class folder, and to each file
        for path in (pictures / "train").iterdir():
            (tmp_path / name).mkdir(exist_ok=True)
            if name == "classes":
                (tmp_path / name / path.name).symlink_to(path)
                continue
            (tmp_path / name / path.name).mkdir()
            for file in path.iterdir():
                (tmp_path / name / path.name / file.name).symlink_to(file)
    places = (pictures / "train", tmp_path / "link", tmp_path / "classes", tmp_path / "files")
    within = (f"folder:{place}" for place in places)
    for data, seen in (*((data, 12) for data in within), (f"folder:{tmp_path / 'elsewhere'}", 0), ("shapes", None)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = evaluate(trained, ["knn"], data=data)
        assert found["pretrained_on"] == seen
        said = [str(w.message) for w in told if "were pre-trained on" in str(w.message)]
        assert (
            said == ["12 of 12 test pictures were pre-trained on, without their labels; judge on others"][: len(said)]
        )
        assert len(said) == bool(seen)


def test_a_folder_that_has_changed_since_is_told(recipe, pictures, tmp_path, monkeypatch):
    """One picture more, and every fifth is another; from wherever the command is called, and where it is gone."""
    root = shutil.copytree(pictures / "train", tmp_path / "grown")
    monkeypatch.chdir(tmp_path)
    pretrain(recipe.replace(data="folder:grown", epochs=0.2, warmup_epochs=0.1), Path("run"), progress=False)
    monkeypatch.chdir(tmp_path.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(tmp_path / "run", ["knn"])["pretrained_on"] == 0
    shutil.copy(root / "down" / "001.png", root / "down" / "000.png")
    with pytest.warns(UserWarning, match=r"which test pictures .* cannot be told: \S+grown has changed since"):
        assert evaluate(tmp_path / "run", ["knn"])["pretrained_on"] is None
    (root / "down" / "003.png").unlink()  # as many as before
    with pytest.raises(CheckpointError, match="as many pictures with other names"):
        pretrain(recipe.replace(data=f"folder:{root}", epochs=0.2, warmup_epochs=0.1), tmp_path / "run", resume=True)
    root.rename(tmp_path / "moved")
    with pytest.warns(UserWarning, match="cannot be told: no folder"):
        evaluate(tmp_path / "run", ["knn"], data=f"folder:{pictures}")


@pytest.mark.parametrize("most", [0, 1, -3])
def test_too_few_labels_are_refused(trained, most):
    with pytest.raises(DataError, match=f"at most {most} labelled pictures teach nothing"):
        evaluate(trained, ["linear"], most=most)


def test_pictures_outside_the_classes_are_refused(tmp_path, pictures):
    root = shutil.copytree(pictures, tmp_path / "odd")
    (root / "test" / "across").rename(root / "test" / "sideways")
    with pytest.raises(DataError):
        labelled(f"folder:{root}", "test", 16)
    shutil.rmtree(root / "test")
    shutil.copytree(root / "train" / "down", root / "val")
    with pytest.raises(DataError, match="in no class that training has"):
        labelled(f"folder:{root}", "test", 16)


def test_features_are_the_same_whatever_the_chunk(trained, monkeypatch):
    recipe, method, _ = load_run(trained)
    data = labelled(recipe.data, "test", 16)
    whole, all_tokens = pooled(method.target, data), tokens_of(method.target, data, alone())
    monkeypatch.setattr(package.pictures, "CHUNK", 7)
    assert torch.allclose(whole, pooled(method.target, data), atol=1e-5)
    assert torch.allclose(all_tokens.float().mean(1), whole[:, -96:], atol=2e-3)


def test_a_table_of_the_run_that_is_no_more_is_told(pictures, tmp_path):
    """A corrected table serves, although the one that the run was trained with names a picture that is gone."""
    root = tmp_path / "pictures"
    shutil.copytree(pictures, root)
    paths = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    lines = [f"{path},{'across' if 'across' in path.parts else 'down'}" for path in paths]
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_text("\n".join(["image,way", *lines]))
    recipe = Recipe(data=f"folder:{root}", image_size=16, encoder="toy", patch=4, batch=8, micro_batch=8, workers=0)
    narrow = dict(predictor_width=32, predictor_depth=1, predictor_heads=2, precision="fp32")
    recipe = recipe.replace(**narrow, epochs=0.5, warmup_epochs=0.1, labels=str(old), label_column=("way",))
    out = pretrain(recipe, tmp_path / "run", progress=False).out
    (root / paths[0]).unlink()
    labels.read_once.cache_clear()  # as in another process
    new.write_text("\n".join(["image,way", *lines[1:]]))
    with pytest.warns(UserWarning, match=r"cannot be told: .*old.csv: 1 of 120 pictures are not there"):
        found = evaluate(out, ["knn"], table=Table(str(new), ("way",)))
    assert found["labels"] + found["tested"] == 119


def test_what_a_protocol_leaves_out_is_said(trained, pictures):
    sets = [labelled(f"folder:{pictures}", split, 16) for split in ("train", "test")]
    few = sets[0].some(torch.cat([torch.arange(3), torch.arange(30, 60)]))
    recipe, method, _ = load_run(trained)
    subject = protocols.Subject(method.probed, recipe, few, sets[1], torch.device("cpu"), 0)
    with pytest.warns(UserWarning, match="some classes have fewer than 5 labels"):
        protocols.lowshot(subject)
    grey = dataclasses.replace(subject, recipe=recipe.replace(image_size=(16, 32)))
    with pytest.warns(UserWarning, match="square and coloured"):
        assert protocols.dense(grey) is None


def test_what_cannot_be_judged_is_said(trained, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        evaluate(trained, ["liner"])
    with pytest.raises(ValueError, match="no checkpoint"):
        evaluate(tmp_path, ["knn"])
    loose = tmp_path / "loose"
    loose.mkdir()
    from PIL import Image

    for n in range(10):
        Image.new("RGB", (16, 16), (n, n, n)).save(loose / f"{n}.png")
    with pytest.raises(DataError, match="no classes"):
        evaluate(trained, ["knn"], data=f"folder:{loose}")


def test_a_table_of_numbers(trained, pictures, tmp_path):
    """The labels are a picture's mean brightness; folders divide, and each protocol speaks of R2."""
    paths = sorted(pictures.rglob("*.png"))
    shades = decoded([(p, "") for p in paths], (), None, PHOTOGRAPHS, False).images.float().mean((1, 2, 3)).tolist()
    lines = [f"{p.relative_to(pictures)},{shade:.3f}" for p, shade in zip(paths, shades, strict=True)]
    (tmp_path / "shade.csv").write_text("\n".join(["image,shade", *lines]))
    table = Table(str(tmp_path / "shade.csv"), ("shade",))
    found = evaluate(trained, ["knn", "linear", "lowshot", "attentive"], table=table, seeds=(0, 1))
    assert (found["task"], found["pretrained_on"], found["labels"], found["tested"]) == ("numbers", 0, 60, 60)
    pixels = found["protocols"]["linear"]["pixels"]
    assert pixels["r2"] > 50
    assert pixels["mae"] < 3
    assert set(pixels["spread"]) == {"r2", "mae", "rate", "r2_last4", "rate_last4"}
    assert "accuracy" not in found["protocols"]["attentive"]["ijepa"]
    text = package.table(found)
    assert text.startswith("shade: numbers; divided by the folders train and test\nR2 in % on 60 test pictures")
    for words in ("ridge", "10% of labels", "mean absolute error on"):
        assert words in text


def test_uneven_classes_show_balanced_accuracy(trained, pictures, tmp_path):
    """Beside accuracy; what lies in train is warned of where the table divides otherwise than the folders."""
    paths = sorted((pictures / "train").rglob("*.png"))
    lines = [f"{p.relative_to(pictures)},{'across' if 'across' in p.parts else 'down'}" for p in paths]
    few = [line for n, line in enumerate(lines) if line.endswith("down") or n % 3 == 0]
    (tmp_path / "few.csv").write_text("\n".join(["image,way", *few]))
    told = "8 of 8 test pictures were pre-trained on, without their labels.*--labels .*few.csv --label-column way"
    with pytest.warns(UserWarning, match=told):
        found = evaluate(trained, ["knn"], table=Table(str(tmp_path / "few.csv"), ("way",)))
    assert (found["uneven"], found["pretrained_on"]) == (True, 8)
    text = package.table(found)
    assert "\n8 of 8 test pictures were pre-trained on, without their labels\n" in text
    assert "\nbalanced accuracy in % on 8 test pictures" in text
    assert found["protocols"]["knn"]["pixels"]["balanced_accuracy"] == 100
