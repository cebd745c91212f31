"""The protocols: they find what is there, nothing where nothing is, and choose on training data alone."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from full_ijepa import evaluate as package
from full_ijepa.evaluate import evaluate, heads, run
from full_ijepa.evaluate.features import labelled, pooled, tokens
from full_ijepa.evaluate.run import few_labels, load_run, nearest
from full_ijepa.recipes import RECIPES
from full_ijepa.train import pretrain
from full_ijepa.vit import build_encoder
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
    found = heads.attentive(x, y, x_test, 2, 3, torch.device("cpu"), epochs=8)
    mean = heads.linear(x.float().mean(1), y, x_test.float().mean(1), 2)
    attended, averaged = ((v.predicted == y_test).double().mean().item() for v in (found, mean))
    assert attended > averaged + 0.1


def test_finetune_moves_a_copy_and_learns(recipe, pictures):
    recipe = recipe.replace(drop_path=0.0)
    encoder = build_encoder("toy", 16, 4)
    before = encoder.patch_embed.proj.weight.clone()
    train, test = (labelled(recipe.data, split, 16) for split in ("train", "test"))
    found = heads.finetune(encoder, train.images(), train.labels, test.images(), 2, recipe, epochs=4)
    assert torch.equal(encoder.patch_embed.proj.weight, before)
    assert (found.predicted == test.labels).double().mean() > 0.9


def test_layer_decay_reaches_every_parameter_once():
    model = heads.Classifier(build_encoder("toy", 16, 4, positions="fixed"), 2)
    groups = model.groups(0.5)
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())
    assert [g["share"] for g in groups] == [0.5**n for n in (5, 4, 3, 2, 1, 0)]


def test_layer_decay_reaches_learned_positions():
    model = heads.Classifier(build_encoder("toy", 16, 4, positions="learned", drop_path=0.3), 2)
    assert any(p is model.encoder.pos_embed for p in model.groups(0.5)[0]["params"])
    assert model.encoder.blocks.rates == [0.0] * 4


def test_ridge_explains_what_is_linear():
    x, x_test = torch.randn(300, 5) * 3 + 1, torch.randn(200, 5) * 3 + 1
    truth = torch.arange(5.0)
    guess, _ = heads.ridge(x, x @ truth + 7, x_test)
    assert torch.allclose(guess, x_test @ truth + 7, atol=0.2)


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
    monkeypatch.setattr(run, "SCENES", {"train": 600, "test": 200})

    class Knowing:
        """Features that say which silhouette is nearest, and nothing else."""

        recipe, seed = RECIPES["smoke"].replace(image_size=16), 0

        def features(self, data, part):
            count, seed = scenes[part]
            factors = shapes.generate(count, seed, 16, most=run.MOST).factors
            return F.one_hot(nearest(factors, "shape").long(), len(shapes.CLASSES)).float()

    found = run.dense(Knowing())
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


def test_every_protocol_on_a_run(trained, monkeypatch):
    monkeypatch.setattr(package.run, "SCENES", {"train": 60, "test": 40})
    found = evaluate(trained, package.PROTOCOLS, seeds=(0, 1))
    assert set(found["protocols"]) == set(package.PROTOCOLS)
    for name, rows in found["protocols"].items():
        assert {"ijepa", "random"} <= set(rows)
        assert ("pixels" in rows) == (name not in ("attentive", "finetune", "resolution"))
        for row in rows.values():
            assert 0 <= row["accuracy"] <= 100
            assert row["spread"]["accuracy"] is not None
    confusion = found["protocols"]["linear"]["ijepa"]["confusion"]
    assert sum(map(sum, confusion)) == 60
    assert found["protocols"]["linear"]["ijepa"]["accuracy"] > 80  # stripes across or down
    assert json.loads((trained / "evaluation.json").read_text()) == json.loads(json.dumps(found))
    text = package.table(found)
    assert "+-" in text
    assert text.count("\n") == 4


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


def test_transfer_and_other_protocols_are_kept_apart(trained):
    (trained / "evaluation.json").unlink(missing_ok=True)
    evaluate(trained, ["knn"], data="shapes", labels=300)
    assert (trained / "evaluation-shapes.json").exists()
    assert not (trained / "evaluation.json").exists()
    evaluate(trained, ["knn"])
    evaluate(trained, ["linear"])
    assert set(json.loads((trained / "evaluation.json").read_text())["protocols"]) == {"knn", "linear"}


def test_pictures_outside_the_classes_are_refused(tmp_path, pictures):
    import shutil

    root = shutil.copytree(pictures, tmp_path / "odd")
    (root / "test" / "across").rename(root / "test" / "sideways")
    with pytest.raises(DataError):
        labelled(f"folder:{root}", "test", 16)
    shutil.rmtree(root / "test")
    shutil.copytree(root / "train" / "down", root / "val")
    with pytest.raises(DataError, match="no class folder"):
        labelled(f"folder:{root}", "test", 16)


def test_features_are_the_same_whatever_the_chunk(trained, monkeypatch):
    recipe, method, _ = load_run(trained)
    data = labelled(recipe.data, "test", 16)
    whole, all_tokens = pooled(method.target, data), tokens(method.target, data)
    monkeypatch.setattr(package.features, "CHUNK", 7)
    assert torch.allclose(whole, pooled(method.target, data), atol=1e-5)
    assert torch.allclose(all_tokens.float().mean(1), whole[:, -96:], atol=2e-3)


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
