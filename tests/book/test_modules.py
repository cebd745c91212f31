"""The toy in JavaScript against the toy in Python, in Chromium: every stage, any weights, and its training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from playwright.sync_api import Page
from safetensors.torch import load_file
from torch import Tensor

from book import files
from toy_ijepa import imagination, masking, shapes
from toy_ijepa.diagnostics import effective_rank, feature_std
from toy_ijepa.encoder import Encoder
from toy_ijepa.patches import normalise, patchify
from toy_ijepa.predictor import Predictor
from toy_ijepa.recipe import SIZES, build, load_model, save_model
from toy_ijepa.schedules import cosine, warmup_cosine
from toy_ijepa.widgets.predict import choice, number, words
from toy_ijepa.widgets.schedule import ScheduleModel

ROOT = Path(__file__).parents[2]
CLOSE = 1e-4
STAGES = """async ({ address, sizes, image, context, targets, depth }) => {
  const { load } = await import("/explore/safetensors.js");
  const { IJEPA, errors } = await import("/explore/jepa.js");
  const { normalise, patchify } = await import("/explore/patches.js");
  const { Tensor } = await import("/explore/tensor.js");
  const model = new IJEPA(await load(address), sizes);
  const x = normalise(new Tensor(Float32Array.from(image), [3, 32, 32]));
  const truth = model.targets(x);
  const predicted = model.predict(x, context, targets);
  return {
    patches: [...patchify(x, 4).data],
    embedded: [...model.encoder.embed(x, context).data],
    context: [...model.encoder.forward(x, context).data],
    targets: [...truth.data],
    predicted: [...predicted.data],
    errors: [...errors(predicted, truth.rows(targets))],
    attention: model.target.attention(x, depth).flatMap((map) => [...map.data]),
  };
}"""
GRADIENTS = """async ({ weights, patches, masks, stop }) => {
  const { Weight } = await import("/explore/grad.js");
  const { SIZE, TinyIJEPA } = await import("/explore/tiny.js");
  const { Tensor } = await import("/explore/tensor.js");
  const weight = ({ data, shape }) => new Weight(Float32Array.from(data), shape);
  const made = Object.entries(weights).map(([name, each]) => [name, weight(each)]);
  const model = new TinyIJEPA(Object.fromEntries(made), SIZE, { stop });
  const loss = model.loss(new Tensor(Float32Array.from(patches), [patches.length / 48, 48]), masks);
  return { loss, grads: Object.fromEntries(made.map(([name, { grad }]) => [name, [...grad]])) };
}"""


@pytest.fixture
def page(modules, visit) -> Page:
    return visit(modules)


def close(found: list[float], wanted: Tensor) -> None:
    torch.testing.assert_close(torch.tensor(found).reshape(wanted.shape), wanted, atol=CLOSE, rtol=CLOSE)


@pytest.fixture(params=["shipped", "random"])
def weights(request, modules, tmp_path) -> tuple[Path, str]:
    """A file of weights, and the address under which the page finds it."""
    if request.param == "shipped":
        return ROOT / "assets/weights/ijepa-cifar10.safetensors", "/weights/ijepa-cifar10.safetensors"
    path = tmp_path / "random.safetensors"
    model = build("ijepa", "tiny", 32, 4, seed=3)
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    save_model(model, path, "ijepa", dict(size="tiny", image_size=32, patch=4))
    return path, "/random.safetensors"


def test_every_stage_has_the_numbers_of_torch(page, weights):
    path, address = weights
    page.route("**/random.safetensors", lambda route: route.fulfill(path=path))
    model, _ = load_model(path)
    image = shapes.generate(1, seed=5).images
    masks = masking.multiblock(1, (8, 8), generator=torch.Generator().manual_seed(1))
    context, targets = masks.context[0], masks.targets[0].flatten()
    asked = dict(address=address, sizes={name: asdict(size) for name, size in SIZES.items()}, depth=2)
    asked |= dict(image=image.flatten().tolist(), context=context.tolist(), targets=targets.tolist())
    found = page.evaluate(STAGES, asked)
    x = normalise(image)
    with torch.no_grad():
        out = model.predict(x, masks)
        whole = F.layer_norm(model.target(x), (96,))[0]
        deep = model.target.embed(x)
        for block in model.target.blocks[:2]:
            deep = block(deep)
        block = model.target.blocks[2]
        attention = block.attn.weights(block.norm1(deep))[0]
    predicted = out.predictions[0].flatten(0, 1)
    close(found["patches"], patchify(x, 4)[0])
    close(found["embedded"], model.encoder.embed(x, masks.context)[0].detach())
    close(found["context"], out.context[0])
    close(found["targets"], whole)
    close(found["predicted"], predicted)
    close(found["errors"], F.smooth_l1_loss(predicted, whole[targets], reduction="none").mean(-1))
    close(found["attention"], attention)


def test_imagined_patches_are_those_of_the_package(page, tmp_path):
    """The nearest of a gallery of half precision is the one that Python finds in the same gallery."""
    model, _ = load_model(ROOT / "assets/weights/ijepa-shapes.safetensors")
    files.shelf("ijepa-shapes", shapes.generate(20, seed=8).images, 300, tmp_path / "shelf.safetensors")
    page.route("**/shelf.safetensors", lambda route: route.fulfill(path=tmp_path / "shelf.safetensors"))
    image = shapes.generate(1, seed=6).images
    hidden = [9, 10, 17, 18, 19, 63]
    seen = [n for n in range(64) if n not in hidden]
    found = page.evaluate(
        """async ({ image, hidden, sizes }) => {
          const { load } = await import("/explore/safetensors.js");
          const { IJEPA } = await import("/explore/jepa.js");
          const { imagine } = await import("/explore/imagine.js");
          const { normalise } = await import("/explore/patches.js");
          const { Tensor } = await import("/explore/tensor.js");
          const model = new IJEPA(await load("/weights/ijepa-shapes.safetensors"), sizes);
          const shelf = (await load("/shelf.safetensors")).tensors;
          const picture = new Tensor(Float32Array.from(image), [3, 32, 32]);
          const truth = model.targets(normalise(picture));
          const { picture: filled, error } = imagine(model, shelf, picture, truth, hidden);
          const rest = [...error].filter(Number.isNaN).length;
          return { filled: [...filled.data], error: hidden.map((n) => error[n]), rest };
        }""",
        dict(image=image.flatten().tolist(), hidden=hidden, sizes={"tiny": asdict(SIZES["tiny"])}),
    )
    kept = load_file(tmp_path / "shelf.safetensors")
    shelf = imagination.Gallery(kept["features"].float(), kept["pixels"].float() / 255, kept["mean"])
    masks = masking.Masks(torch.tensor([seen]), torch.tensor([[hidden]]))
    patches, error = imagination.imagine(model, image, masks, shelf)
    close(found["error"], error[0, 0])
    assert found["rest"] == len(seen)
    filled = imagination.compose(image, masks, patches, 4, [0])[0] * 255
    torch.testing.assert_close(
        torch.tensor(found["filled"], dtype=torch.float32).reshape(3, 32, 32), filled, atol=0.01, rtol=0
    )


@pytest.mark.parametrize("stop", [True, False])
def test_the_written_out_backward_pass_is_that_of_autograd(page, stop):
    torch.manual_seed(0)
    encoder, predictor = Encoder(16, 4, 32, 2, 2), Predictor((4, 4), 32, 32, 1, 2, mode="joint")
    named = {f"encoder.{n}": p for n, p in encoder.named_parameters()}
    named |= {f"predictor.{n}": p for n, p in predictor.named_parameters()}
    for p in named.values():
        p.data.add_(0.1 * torch.randn_like(p))
    x = normalise(shapes.generate(3, seed=1, side=16).images)
    masks = masking.multiblock(3, (4, 4), generator=torch.Generator().manual_seed(2))
    target = F.layer_norm(encoder(x), (32,))
    target = target.detach() if stop else target
    index = masks.targets.flatten(1)[..., None].expand(-1, -1, 32)
    truth = target.gather(1, index).reshape(*masks.targets.shape, 32)
    loss = F.smooth_l1_loss(predictor(encoder(x, masks.context), masks.context, masks.targets), truth)
    loss.backward()
    asked = dict(
        weights={n: dict(data=p.detach().flatten().tolist(), shape=list(p.shape)) for n, p in named.items()},
        patches=patchify(x, 4).flatten().tolist(),
        masks=[dict(context=c, targets=t) for c, t in zip(masks.context.tolist(), masks.targets.tolist(), strict=True)],
        stop=stop,
    )
    found = page.evaluate(GRADIENTS, asked)
    assert found["loss"] == pytest.approx(loss.item(), abs=1e-6)
    for name, p in named.items():
        close(found["grads"][name], p.grad)
        assert p.grad.abs().max() > 0, name


def test_masks_are_drawn_by_the_rules_of_the_package(page):
    """The same sizes, disjoint, and every patch target or context as often, within what chance allows."""
    draws = 2000
    found = page.evaluate(
        """async (draws) => {
          const { multiblock, seeded } = await import("/explore/masking.js");
          const random = seeded(1);
          return Array.from({ length: draws }, () => multiblock([6, 9], {}, random));
        }""",
        draws,
    )
    g = torch.Generator().manual_seed(1)
    wanted = [masking.multiblock(1, (6, 9), generator=g) for _ in range(draws)]
    sizes = [{(len(m["targets"]), len(m["targets"][0])) for m in found}, {tuple(m.targets.shape[1:]) for m in wanted}]
    assert sizes[0] == sizes[1]
    shares = torch.zeros(2, 2, 54)
    for m in found:
        targets = {n for block in m["targets"] for n in block}
        assert targets.isdisjoint(m["context"])
        assert m["context"] == sorted(set(m["context"]))
        shares[0, 0, list(targets)] += 1 / draws
        shares[0, 1, m["context"]] += 1 / draws
    for m in wanted:
        shares[1, 0, m.targets.flatten().unique()] += 1 / draws
        shares[1, 1, m.context[0]] += 1 / draws
    spread = 5 * (2 * 0.25 / draws) ** 0.5  # five standard errors of the difference of two shares
    assert (shares[0] - shares[1]).abs().max() < spread
    assert shares.min() > 0


def test_schedules_and_verdicts_are_those_of_the_notebooks(page):
    plans = [
        dict(steps=500, momentum=(0.996, 0.996)),
        dict(steps=120, accumulation=4, counting="batches", shape="cosine"),
        dict(steps=200, accumulation=3, counting="length", warmup=0.0),
        dict(steps=150, momentum=(0.9999, 1.0)),
    ]
    found = page.evaluate(
        """async (plans) => {
          const { Plan, cosine, warmupCosine } = await import("/explore/plan.js");
          return plans.map((options) => {
            const plan = new Plan(options);
            const at = [0, 1, 40, plan.steps - 1];
            return {
              values: at.map((s) => [plan.lrAt(s), plan.decayAt(s), plan.momentumAt(s)]), share: plan.shareLeft,
              idle: plan.idle, verdict: plan.verdict(), plain: [cosine(0.3, 1, 2), warmupCosine(0.05, 2, 0.1)],
            };
          });
        }""",
        plans,
    )
    for plan, told in zip(plans, found, strict=True):
        model = ScheduleModel(**plan)
        values = [[model.lr_at(s), model.decay_at(s), model.momentum_at(s)] for s in (0, 1, 40, model.steps - 1)]
        assert told["values"] == [pytest.approx(row) for row in values]
        assert (told["share"], told["idle"]) == (pytest.approx(model.share_left), model.idle)
        assert told["verdict"].removeprefix("A trap: ") == model.verdict().removeprefix("TRAP: ")
        assert told["plain"] == pytest.approx([cosine(0.3, 1, 2), warmup_cosine(0.05, 2, 0.1)])


def test_predictions_are_judged_in_the_same_words(page):
    cases = [
        (number("", ""), "250", 250.0), (number("", ""), "230", 250.0), (number("", ""), "100", 250.0),
        (number("", ""), "-2", -1.0), (number("", ""), "3", -1.0), (number("", ""), "0.5", 0.0),
        (number("", " steps"), "1000000", 3.0), (number("", " %"), "40", 44.9), (number("", " %"), "20", 47.0),
        (number("", ""), "0.00001", 0.7), (choice("", "up", "down"), "up", "up"),
        (choice("", "up", "down"), "down", "up"), (words(""), "the norm", ""), (number("", " %"), "", 47.0),
    ]  # fmt: skip
    asked = [dict(kind=q.kind, unit=q.unit, found=str(found), said=said) for q, said, found in cases]
    told = page.evaluate(
        """async (asked) => {
          const { compare } = await import("/explore/guesses.js");
          return asked.map((each) => compare(each, each.said));
        }""",
        asked,
    )
    assert told == [question.compare(said, found) for question, said, found in cases]


def test_health_is_measured_as_by_the_package(page):
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(3)) @ torch.diag(torch.logspace(0, -3, 12))
    found = page.evaluate(
        """async ({ rows, shape }) => {
          const { effectiveRank, featureStd } = await import("/explore/health.js");
          const { Tensor } = await import("/explore/tensor.js");
          const x = new Tensor(Float32Array.from(rows), shape);
          return [featureStd(x), effectiveRank(x), effectiveRank(new Tensor(new Float32Array(x.data.length), shape))];
        }""",
        dict(rows=x.flatten().tolist(), shape=list(x.shape)),
    )
    assert found == pytest.approx([feature_std(x), effective_rank(x), 1.0], rel=1e-4)


def test_damaged_and_missing_weights_are_named(page):
    page.route("**/short.safetensors", lambda route: route.fulfill(body=b"short"))
    page.route("**/odd.safetensors", lambda route: route.fulfill(body=odd()))
    told = page.evaluate(
        """async (names) => {
          const { load } = await import("/explore/safetensors.js");
          const said = (name) => load(`/${name}.safetensors`).then(() => "", (error) => error.message);
          return Promise.all(names.map(said));
        }""",
        ["short", "odd"],
    )
    assert "not a safetensors file" in told[0]
    assert "holds I64" in told[1]


def odd() -> bytes:
    head = json.dumps({"x": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}).encode()
    return len(head).to_bytes(8, "little") + head + bytes(8)
