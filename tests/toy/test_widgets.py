"""The explorers: their pure models against slow loops and the modules they show, and their views driven from Python."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import traitlets

from toy_ijepa import recipe, shapes
from toy_ijepa.ema import ema_update
from toy_ijepa.encoder import Encoder
from toy_ijepa.imagination import gallery
from toy_ijepa.jepa import IJEPA
from toy_ijepa.masking import STRATEGIES, Masks, strategy
from toy_ijepa.patches import normalise
from toy_ijepa.predictor import Predictor
from toy_ijepa.schedules import cosine, momentum_at, warmup_cosine
from toy_ijepa.sigreg import epps_pulley
from toy_ijepa.widgets import survey
from toy_ijepa.widgets.attention import AttentionExplorer, AttentionModel
from toy_ijepa.widgets.blocks import check_block, covered, masks_of
from toy_ijepa.widgets.canvas import PatchCanvas, data_url
from toy_ijepa.widgets.mask import MaskExplorer, MaskModel, default_scale
from toy_ijepa.widgets.paint import PaintModel, PaintTargets
from toy_ijepa.widgets.predict import Predictions, choice, number, words
from toy_ijepa.widgets.predictor import PredictorExplorer, PredictorModel, areas
from toy_ijepa.widgets.projection import FAR, ProjectionExplorer, ProjectionModel, clouds, flat
from toy_ijepa.widgets.schedule import ScheduleExplorer, ScheduleModel
from toy_ijepa.widgets.search import SearchExplorer, SearchModel, nearest
from toy_ijepa.widgets.view import Explorer, picture_html, report_html

H, W, P = 24, 32, 4  # a 6 x 8 grid
GRID = (6, 8)


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(256, (5, 3, H, W), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    state = torch.get_rng_state()
    torch.manual_seed(3)
    encoder = Encoder((H, W), P, 32, depth=3, heads=4)
    built = IJEPA(encoder, Predictor(GRID, 32, 16, 2, 2, mode="joint")).eval()
    for p in built.target.parameters():  # another encoder than the context's, or a mix-up would not show
        p.data += 0.05 * torch.randn_like(p)
    torch.set_rng_state(state)
    return built


@pytest.fixture(scope="module")
def shelf(model, pictures):
    return gallery(model, pictures.flip(0, 3))


def changed(explorer: Explorer, act) -> bool:
    """Do something to an explorer; whether picture and text both changed, without an error."""
    before = explorer.picture.value, explorer.text.value
    act()
    assert explorer.error is None, explorer.error
    assert explorer.notice.value == ""
    return explorer.picture.value != before[0] and explorer.text.value != before[1]


def refused(explorer: Explorer, act, match: str) -> None:
    """Do something impossible: the message is shown and kept, and everything else stays."""
    before = explorer.model, explorer.picture.value, explorer.text.value
    act()
    assert re.search(match, explorer.error)
    assert 'role="alert"' in explorer.notice.value
    assert (explorer.model, explorer.picture.value, explorer.text.value) == before


# Blocks


def test_covered_is_the_union_of_the_blocks():
    blocks = [(1, 2, 3, 4), (3, 5, 2, 3)]
    for (i, j), hidden in zip(
        ((i, j) for i in range(6) for j in range(8)), covered(blocks, GRID).flatten(), strict=True
    ):
        assert hidden == any(t <= i < t + r and s <= j < s + c for t, s, r, c in blocks)


def test_masks_of_two_maps_are_row_major_indices():
    hidden = covered([(5, 6, 1, 2)], GRID)
    masks = masks_of(hidden, ~hidden)
    assert masks.targets.tolist() == [[[46, 47]]]
    assert masks.context.tolist() == [list(range(46))]


@pytest.mark.parametrize("block", [(5, 0, 2, 1), (0, 7, 1, 2), (-1, 0, 1, 1), (0, -1, 1, 1), (0, 0, 0, 1)])
def test_blocks_outside_the_grid_are_refused(block):
    with pytest.raises(ValueError, match=r"does not fit|is none"):
        check_block(block, GRID)


# Masks


@pytest.mark.parametrize("name", STRATEGIES)
def test_counts_add_up(pictures, name):
    m = MaskModel(pictures, 2, strategy=name, target_scale=default_scale(name), seed=5)
    context, targets = set(m.masks.context[0].tolist()), [set(t) for t in m.masks.targets[0].tolist()]
    union, h, w = set().union(*targets), H // 2, W // 2
    assert m.counts["context"] == len(context)
    assert m.counts["targets"] == len(union)
    assert m.counts["unused"] == len(set(range(h * w)) - context - union)
    assert m.counts["overlap"] == sum(map(len, targets)) - len(union)
    assert m.counts["context"] + m.counts["targets"] + m.counts["unused"] == h * w
    letters = [text for row in m.letters() for text in row]
    for n, text in enumerate(letters):
        last = max((i for i, t in enumerate(targets, start=1) if n in t), default=0)
        assert text == ("c" if n in context else str(last or ""))


def test_usage_is_what_a_slow_loop_counts():
    options, g = (("targets", 3), ("target_scale", (0.1, 0.2))), torch.Generator().manual_seed(0)
    target, context = Counter(), Counter()
    drawn = [strategy("multiblock")(4, GRID, generator=g, **dict(options)) for _ in range(3)]
    for b in range(10):  # ten of the twelve masks
        masks = drawn[b // 4]
        target.update(set(masks.targets[b % 4].flatten().tolist()))
        context.update(masks.context[b % 4].tolist())
    share = survey.usage("multiblock", GRID, options, 4, draws=10).flatten(1)
    for n in range(48):
        expected = [10 * target[n], 10 * context[n], 100 - 10 * target[n] - 10 * context[n]]
        assert share[:, n].tolist() == pytest.approx(expected)


def test_the_released_sampler_never_uses_the_last_row_and_column():
    options = (("targets", 4),)
    released, paper = (survey.usage(name, (14, 12), options, 16) for name in ("released", "multiblock"))
    assert released[:2, -1].sum() == released[:2, :, -1].sum() == 0
    assert paper[0, -1].min() > 0
    assert paper[0, :, -1].min() > 0
    torch.testing.assert_close(paper.sum(0), torch.full((14, 12), 100.0))


def test_flaws_tell_the_samplers_apart():
    options = (("targets", 4),)
    released, paper = (survey.flaws(name, (14, 14), options, 16) for name in ("released", "multiblock"))
    assert released.edge == 0 < paper.edge
    assert released.shapes < paper.shapes
    assert released.upper > 1.5 * released.lower
    assert paper.upper == pytest.approx(paper.lower, rel=0.15)


def test_each_strategy_takes_exactly_the_options_that_are_left_enabled():
    values = dict(targets=2, target_scale=(0.1, 0.2), target_aspect=(1.0, 1.0), context_scale=(0.9, 1.0))
    for name, sampler in STRATEGIES.items():
        for option, value in values.items():
            if option in survey.ACCEPTS[name]:
                sampler(2, (16, 16), **{option: value})
            else:
                with pytest.raises(TypeError):
                    sampler(2, (16, 16), **{option: value})


def test_mask_explorer_follows_its_controls(pictures):
    explorer = MaskExplorer(pictures)
    assert explorer.model.grid == (12, 16)  # next to the paper's 14 x 14
    assert changed(explorer, lambda: setattr(explorer.scale, "value", (0.3, 0.4)))
    assert explorer.model.target_scale == (0.3, 0.4)
    assert changed(explorer, lambda: setattr(explorer.patch, "value", 4))
    assert explorer.model.grid == GRID
    explorer.patch.value = 2
    assert changed(explorer, lambda: setattr(explorer.version, "value", "released"))
    assert explorer.strategy.value == "released"
    assert explorer.model.usage[:2, -1].sum() == 0
    assert "released code" in explorer.text.value
    assert changed(explorer, lambda: setattr(explorer.strategy, "value", "random"))
    assert explorer.version.value is None
    assert explorer.scale.value == (0.6, 0.6)
    assert [c.disabled for c in (explorer.targets, explorer.scale, explorer.aspect, explorer.context)] == [1, 0, 1, 1]
    assert explorer.figure().axes
    assert 'alt="Picture 0' in explorer.picture.value


def test_mask_explorer_shows_what_cannot_be_drawn(pictures):
    explorer = MaskExplorer(pictures)
    refused(explorer, lambda: setattr(explorer.scale, "value", (0.9, 0.95)), "fewer or smaller targets")
    assert changed(explorer, lambda: setattr(explorer.scale, "value", (0.1, 0.1)))


def test_an_answer_is_worked_out_once(pictures):
    explorer, seen = MaskExplorer(pictures), []
    read = explorer.read
    explorer.read = lambda: seen.append(1) or read()
    explorer.strategy.value = "single_block"  # sets scale and version too
    explorer.strategy.value = "released"
    assert len(seen) == 2


def test_where_the_released_sampler_cannot_draw_the_comparison_says_so(pictures):
    m = MaskModel(pictures[:, :, :, :24], 4)
    assert any("would never return" in cell for row in m.comparison() for cell in row)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"image": 5}, "numbered from 0"),
        ({"strategy": "multi"}, "unknown mask strategy"),
        ({"target_scale": (0.4, 0.2)}, "target_scale"),
        ({"targets": 0}, "at least 1"),
        ({"patch": 5}, "whole number"),
        ({"images": torch.zeros(2, 3, H, W)}, "uint8"),
    ],
)
def test_mask_model_refuses(pictures, options, match):
    with pytest.raises(ValueError, match=match):
        MaskModel(**{"images": pictures, "patch": 4, **options})


def test_mask_explorer_refuses_patches_that_do_not_fit(pictures):
    with pytest.raises(ValueError, match="not one of"):
        MaskExplorer(pictures, patch=5)


# Attention


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_attention_is_the_layers_own(pictures, model, layer):
    m = AttentionModel(model.encoder, pictures, image=2, layer=layer, picked=(4, 7))
    caught = []
    hook = model.encoder.blocks[layer].attn.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    model.encoder(normalise(pictures[2:3]))
    hook.remove()
    expected = model.encoder.blocks[layer].attn.weights(caught[0])[0]
    torch.testing.assert_close(m.weights, expected)
    torch.testing.assert_close(m.weights.sum(-1), torch.ones(4, 48))
    torch.testing.assert_close(m.maps[1], expected[1, 4 * 8 + 7].reshape(GRID))
    torch.testing.assert_close(m.maps[-1], expected[:, 4 * 8 + 7].mean(0).reshape(GRID))


def test_attention_spreads_over_between_one_and_all_patches(pictures, model):
    m = AttentionModel(model.encoder, pictures, picked=(1, 2))
    for values, spread in zip(m.maps, m.spread, strict=True):
        assert spread.item() == pytest.approx(
            math.exp(-sum(p * math.log(p) for p in values.flatten().tolist())), rel=1e-4
        )
    even = replace(m)
    even.__dict__["weights"] = torch.full((4, 48, 48), 1 / 48)
    torch.testing.assert_close(even.spread, torch.full((5,), 48.0))
    even.__dict__["weights"] = torch.eye(48).expand(4, 48, 48)
    torch.testing.assert_close(even.spread, torch.ones(5))


def test_attention_explorer_follows_canvas_and_controls(pictures, model):
    explorer = AttentionExplorer(model.encoder, pictures)
    assert changed(explorer, lambda: setattr(explorer.canvas, "picked", (0, 7)))
    assert explorer.model.picked == (0, 7)
    assert "row 0, column 7" in explorer.text.value
    assert changed(explorer, lambda: setattr(explorer.layer, "value", 2))
    image = explorer.canvas.image
    assert changed(explorer, lambda: setattr(explorer.image, "value", 1))
    assert explorer.canvas.image != image
    refused(explorer, lambda: setattr(explorer.canvas, "picked", (6, 0)), "does not fit")
    assert len(explorer.figure().axes) == 6
    assert "head 3" in explorer.text.value


@pytest.mark.parametrize(
    "options", [{"layer": 3}, {"picked": (0, 8)}, {"image": -1}, {"encoder": Encoder(32, 4, 32, 1, 2)}]
)
def test_attention_model_refuses(pictures, model, options):
    with pytest.raises(
        ValueError, match=r"layer 3|does not fit|picture -1|pictures of 24x32 px for an encoder of 32x32"
    ):
        AttentionModel(**{"encoder": model.encoder, "images": pictures, **options})


# Schedules


def test_schedule_is_that_of_the_module():
    m = ScheduleModel(steps=40, warmup=0.2, lr=0.01, decay=(0.1, 0.5), momentum=(0.9, 0.99), shape="cosine")
    for step in range(40):
        assert m.lr_at(step) == warmup_cosine(step / 40, 0.01, 0.2)
        assert m.decay_at(step) == cosine(step / 40, 0.1, 0.5)
        assert m.momentum_at(step) == momentum_at(step / 40, 0.9, 0.99, "cosine")
        assert m.memory_at(step) == pytest.approx(1 / (1 - m.momentum_at(step)))
    assert m.peak == (8, 0.01)
    assert m.idle == 0
    curves = m.curves()
    assert curves["step"] == list(range(40))
    assert curves["lr"] == [m.lr_at(step) for step in range(40)]


def test_share_left_is_what_an_average_keeps_of_its_start():
    m = ScheduleModel(steps=57, momentum=(0.9, 0.999))
    target, online = torch.nn.Linear(1, 1).double(), torch.nn.Linear(1, 1).double()
    torch.nn.init.ones_(target.weight)
    torch.nn.init.zeros_(online.weight)
    for step in range(57):
        ema_update(target, online, m.momentum_at(step))
    assert m.share_left == pytest.approx(target.weight.item())
    assert ScheduleModel(momentum=(1.0, 1.0)).share_left == 1
    assert ScheduleModel(momentum=(0.0, 0.9)).share_left == 0


def test_verdict_on_a_target_that_stays_random():
    short, right = ScheduleModel(steps=100, momentum=(0.996, 1.0)), ScheduleModel(steps=1000, momentum=(0.95, 0.9995))
    assert short.verdict().startswith("TRAP: 82 %")  # the product over 100 steps: exp(-0.002 * 100), about
    assert right.verdict().endswith("forgotten.")
    assert ScheduleModel(momentum=(1.0, 1.0)).remembers(0) == "for ever"


def test_counting_batches_ends_early_and_counting_length_in_batches_never_ends():
    right = ScheduleModel(steps=100, accumulation=4)
    early, late = replace(right, counting="batches"), replace(right, counting="length")
    for step in range(100):
        assert right.lr_at(step) == warmup_cosine(step / 100, 3e-3, 0.1)
        assert early.lr_at(step) == warmup_cosine(min(4 * step / 100, 1.0), 3e-3, 0.1)
        assert late.lr_at(step) == warmup_cosine(step / 400, 3e-3, 0.1)
    assert early.idle == 75
    assert all(early.lr_at(step) == 0 for step in range(25, 100))
    assert late.idle == 0
    assert late.lr_at(99) > 0.002
    assert replace(early, accumulation=1).curves() == replace(right, accumulation=1).curves()


def test_schedule_explorer_follows_its_controls():
    explorer = ScheduleExplorer()
    for control, value in [
        (explorer.steps, 500),
        (explorer.warmup, 0.3),
        (explorer.lr, 1e-4),
        (explorer.decay_start, 0.2),
        (explorer.decay_end, 0.1),
        (explorer.momentum_start, 0.9),
        (explorer.momentum_end, 0.99),
        (explorer.shape, "cosine"),
    ]:
        picture = explorer.picture.value
        control.value = value
        assert explorer.picture.value != picture, control.description
    expected = ScheduleModel(500, 0.3, 1e-4, (0.2, 0.1), (0.9, 0.99), "cosine")
    assert explorer.model == replace(expected, lr=explorer.lr.value)
    explorer.accumulation.value = 4
    assert changed(explorer, lambda: setattr(explorer.counting, "value", "batches"))
    assert "last 375 steps train with learning rate 0" in explorer.text.value
    assert changed(explorer, lambda: setattr(explorer.counting, "value", "length"))
    assert "25 % of its schedule" in explorer.text.value
    assert explorer.figure().axes


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"accumulation": 0},
        {"warmup": 1.0},
        {"lr": 0.0},
        {"decay": (-0.1, 0.1)},
        {"momentum": (0.9, 1.1)},
        {"shape": "s"},
        {"counting": "epochs"},
    ],
)
def test_schedule_model_refuses(options):
    with pytest.raises(ValueError, match=r"at least 1|warm-up|above 0|momentum|unknown counting"):
        ScheduleModel(**options)


# Predictor


def predict(model, pictures, image, masks):
    """Predictions (T, D) and true features of all patches (N, D) of one image, straight from the modules."""
    x = normalise(pictures[image : image + 1])
    with torch.no_grad():
        truth = F.layer_norm(model.target(x), (32,))[0]
        return model.predictor(model.encoder(x, masks.context), masks.context, masks.targets)[0, 0], truth


@pytest.mark.parametrize("context", areas(GRID))
def test_similarity_is_the_cosine_of_prediction_and_truth(pictures, model, shelf, context):
    m = PredictorModel(model, pictures, shelf, image=3, block=(2, 3, 2, 3), context=context)
    target = [i * 8 + j for i in (2, 3) for j in (3, 4, 5)]
    top, left, rows, columns = areas(GRID)[context]
    area = {i * 8 + j for i in range(top, top + rows) for j in range(left, left + columns)}
    masks = Masks(torch.tensor([sorted(area - set(target))]), torch.tensor([[target]]))
    predicted, truth = predict(model, pictures, 3, masks)
    found = 0
    for t, n in enumerate(target):
        cosines = [
            F.cosine_similarity(predicted[t] - shelf.mean, truth[k] - shelf.mean, dim=0).item() for k in range(48)
        ]
        assert m.own[t].item() == pytest.approx(cosines[n], abs=1e-5)
        assert m.elsewhere[t].item() == pytest.approx((sum(cosines) - cosines[n]) / 47, abs=1e-5)
        found += max(target, key=lambda k: cosines[k]) == n
    assert m.found == found


def test_a_perfect_predictor_knows_where_it_is_asked(pictures, model, shelf, monkeypatch):
    images = normalise(pictures[1:2])
    monkeypatch.setattr(model.predictor, "forward", lambda context, seen, asked: model.targets(images, asked))
    m = PredictorModel(model, pictures, shelf, image=1, block=(0, 0, 3, 4))
    torch.testing.assert_close(m.own, torch.ones(12))
    assert m.found == 12
    assert (m.elsewhere < 0.9).all()


def test_areas_lie_within_the_grid_and_halves_cover_it():
    for grid in ((6, 8), (7, 5)):
        named = {name: covered([block], grid) for name, block in areas(grid).items()}
        assert named["everything else"].all()
        assert (named["upper half"] | named["lower half"]).all()
        assert (named["left half"] | named["right half"]).all()


def test_predictor_explorer_moves_by_slider_and_by_canvas(pictures, model, shelf):
    explorer = PredictorExplorer(model, pictures, shelf)
    assert changed(explorer, lambda: setattr(explorer.row, "value", 3))
    assert explorer.canvas.blocks == [explorer.model.block]
    assert changed(explorer, lambda: setattr(explorer.canvas, "blocks", [[1, 4, 2, 3]]))
    assert [s.value for s in explorer.sliders()] == [1, 4, 2, 3]
    assert explorer.model.block == (1, 4, 2, 3)
    assert changed(explorer, lambda: setattr(explorer.context, "value", "left half"))
    assert sum(bool(colour) for colour in explorer.canvas.veil) == 48 - len(explorer.model.masks.context[0]) - 6
    refused(explorer, lambda: setattr(explorer.column, "value", 7), "does not fit")
    refused(explorer, lambda: setattr(explorer.canvas, "blocks", [[9, 0, 1, 1]]), "does not fit")
    refused(explorer, lambda: setattr(explorer.canvas, "blocks", []), "0 blocks")
    with explorer.together():
        explorer.row.value, explorer.column.value, explorer.height.value, explorer.width.value = 0, 0, 6, 4
    assert "hides all of the context" in explorer.error
    assert len(PredictorExplorer(model, pictures).figure().axes) == 4  # no gallery, nothing imagined


@pytest.mark.parametrize(
    "options", [{"block": (5, 0, 2, 1)}, {"context": "middle"}, {"block": (0, 0, 6, 8)}, {"image": 9}]
)
def test_predictor_model_refuses(pictures, model, shelf, options):
    with pytest.raises(ValueError, match=r"does not fit|unknown context|hides all|picture 9"):
        PredictorModel(model, pictures, shelf, **options)


# Paint


def test_painted_targets_are_predicted_as_by_the_model_itself(pictures, model, shelf):
    m = PaintModel(model, pictures, shelf, image=4, blocks=((1, 2, 3, 3), (3, 4, 2, 4)))
    hidden = sorted({i * 8 + j for t, s, r, c in m.blocks for i in range(t, t + r) for j in range(s, s + c)})
    seen = [n for n in range(48) if n not in hidden]
    predicted, truth = predict(model, pictures, 4, Masks(torch.tensor([seen]), torch.tensor([[hidden]])))
    for t, n in enumerate(hidden):
        error = F.smooth_l1_loss(predicted[t], truth[n]).item()
        assert m.answer.error[t].item() == pytest.approx(error, rel=1e-4)
        assert m.error_map.flatten()[n].item() == pytest.approx(error, rel=1e-4)
        best = F.normalize(predicted[t] - shelf.mean, dim=0) @ shelf.features.T
        assert torch.equal(m.answer.patches[t], shelf.pixels[best.argmax()])
    assert m.error_map.isnan().sum() == len(seen)
    assert m.answer.seconds > 0


def test_paint_answers_from_a_cell(pictures, model, shelf):
    paint = PaintTargets(model, pictures, shelf)
    assert changed(paint, lambda: setattr(paint, "blocks", [[1, 2, 3, 3]]))
    assert paint.canvas.blocks == [(1, 2, 3, 3)]
    assert "9 of 48 patches hidden" in paint.text.value
    assert changed(paint, lambda: setattr(paint.canvas, "blocks", [[1, 2, 3, 3], [0, 0, 1, 1]]))
    assert paint.blocks == [(1, 2, 3, 3), (0, 0, 1, 1)]
    paint.remove.click()
    assert paint.blocks == [(1, 2, 3, 3)]
    assert changed(paint, lambda: setattr(paint.image, "value", 2))
    refused(paint, paint.clear.click, "nothing is hidden")
    refused(paint, lambda: setattr(paint, "blocks", [[0, 0, 6, 8]]), "all 48 patches are hidden")
    refused(paint, lambda: setattr(paint, "blocks", [[4, 4, 3, 3]]), "does not fit")
    assert changed(paint, lambda: setattr(paint, "blocks", [[2, 2, 2, 2]]))
    with pytest.raises(traitlets.TraitError):
        paint.blocks = [[1, 2, 3]]
    with pytest.raises(traitlets.TraitError):
        paint.canvas.blocks = [[1, 2, 3, "x"]]
    assert paint.figure().axes


def test_paint_is_quick_on_the_toy():
    """The tiny model at 32 px with a gallery of 400 pictures, the picture drawn: well below a second."""
    model = recipe.build("ijepa", "tiny", 32, 4, 0).eval()
    images = shapes.generate(401, seed=0).images
    paint = PaintTargets(model, images[:1], gallery(model, images[1:]))
    paint.blocks = [[0, 0, 8, 7]]
    assert paint.error is None
    assert paint.model.answer.seconds < 1


# Views


def test_a_mistake_of_ours_is_shown_and_raised(pictures, monkeypatch):
    explorer = MaskExplorer(pictures)
    monkeypatch.setattr(MaskModel, "report", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explorer.seed.value = 3
    assert explorer.error == "ZeroDivisionError: division by zero"


def test_words_are_escaped_and_pictures_described():
    assert report_html(["1 < 2", [("a", "b"), ("<x>", "&")]]) == (
        report_html(["1 < 2"]) + report_html([[("a", "b"), ("<x>", "&")]])
    )
    assert "&lt;x&gt;" in report_html([[("a", "b"), ("<x>", "&")]])
    assert 'alt="a &quot;b&quot;"' in picture_html(ScheduleModel().figure(), 'a "b"')


def test_canvas_takes_pictures_and_refuses_nonsense(pictures):
    assert data_url(pictures[0]).startswith("data:image/png;base64,")
    assert data_url(pictures[0]) == data_url(pictures[0].float() / 255)
    canvas = PatchCanvas(grid=GRID)
    for name, value in [
        ("mode", "drag"),
        ("grid", (0, 3)),
        ("picked", (1,)),
        ("blocks", [1]),
        ("blocks", [[1.5, 0, 1, 1]]),
    ]:
        with pytest.raises(traitlets.TraitError):
            setattr(canvas, name, value)


def test_nearest_is_the_slow_loop():
    """Cosine, whatever the lengths; the query left out even where its double is there."""
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(1)) * torch.arange(1.0, 10.0)[:, None]
    x[7] = 3 * x[2]
    index, cosine = nearest(x, 2, 4)
    slow = sorted(((float(x[2] @ x[n] / (x[2].norm() * x[n].norm())), n) for n in range(9) if n != 2), reverse=True)
    assert index.tolist() == [n for _, n in slow[:4]]
    assert index[0] == 7
    assert cosine.tolist() == pytest.approx([c for c, _ in slow[:4]], abs=1e-6)


@pytest.mark.parametrize(
    ("query", "k", "message"), [(9, 2, "not one of the 9"), (0, 9, "choose 1 to 8"), (0, 0, "choose")]
)
def test_nearest_says_what_cannot_be(query, k, message):
    with pytest.raises(ValueError, match=message):
        nearest(torch.randn(9, 5), query, k)


@pytest.fixture
def search():
    images = torch.randint(256, (6, 3, H, W), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    angle = torch.tensor([0.0, 0.1, 0.2, 2.0, 2.1, 2.3])
    features = {
        "good": torch.stack([angle.cos(), angle.sin()], 1),
        "poor": torch.stack([angle.sin(), 0 * angle + 1], 1),
    }
    return images, features, torch.tensor([0, 0, 0, 1, 1, 1]), ("cat", "dog")


def test_search_names_neighbours_and_counts_classes(search):
    model = SearchModel(*search, query=3, k=2)
    assert model.found["good"][0].tolist() == [4, 5]
    assert model.same("good") == 2
    words, rows = model.report()
    assert words == "Asked by picture 3: dog."
    assert rows[1][:2] == ("good", "2 of 2")
    assert rows[1][2].startswith("dog 1.00")
    assert len([ax for ax in model.figure().axes if ax.images]) == 2 * 3
    assert "Picture 3 (dog)" in model.alt()


def test_search_without_classes(search):
    images, features, *_ = search
    words, rows = SearchModel(images, features, query=1, k=1).report()
    assert words.endswith("picture 1.")
    assert rows[1] == ("good", f"picture 2 {math.cos(0.1):.2f}")


def test_search_says_what_does_not_fit(search):
    images, features, labels, classes = search
    with pytest.raises(ValueError, match="features of 5 pictures, there are 6"):
        SearchModel(images, {"short": features["good"][:5]}, labels, classes)


def test_search_explorer(search):
    explorer = SearchExplorer(*search)
    assert changed(explorer, lambda: setattr(explorer.query, "value", 4))
    assert explorer.model.query == 4
    assert changed(explorer, lambda: setattr(explorer.neighbours, "value", 2))
    assert len(explorer.model.found["good"][0]) == 2
    assert explorer.error is None


@pytest.mark.parametrize(
    ("question", "said", "found", "told"),
    [
        (number("", " times"), "16", 16, "You said 16 times: right."),
        (number("", " times"), "15", 16, "right, within a tenth"),
        (number("", " times"), "4", 16, "4 times too low"),
        (number("", ""), "-2", -1, "2 times too low"),
        (number("", ""), "3", -1, "too high by 4"),
        (number("", ""), "0.5", 0, "too high by 0.5"),
        (number("", " %"), "40", 44.9, "right, within five points"),
        (number("", " %"), "20", 47, "You said 20 %: 27 points too low."),
        (choice("", "up", "down"), "up", "up", "You said up: right."),
        (choice("", "up", "down"), "down", "up", "You said down: not so."),
        (words(""), "the norm", "anything", "You wrote: the norm"),
        (number("", " %"), "", 47, "You made no prediction."),
    ],
)
def test_a_prediction_is_compared_with_what_was_found(question, said, found, told):
    assert told in question.compare(said, found)


def test_predictions_are_revealed_in_print_and_in_the_form(capsys):
    mine = Predictions(number("how many?", " %"), choice("which way?", "up", "down"), words("why?"))
    assert [q["kind"] for q in mine.questions] == ["number", "choice", "words"]
    mine.answers = ["60", "", "it has to"]
    mine.reveal((47.2, "half of it"), ("up", "see check 1.1"), ("", "nobody knows"))
    out = capsys.readouterr().out
    assert "1. 47.2 %: half of it\n   You said 60 %: 13 points too high." in out
    assert "2. up: see check 1.1\n   You made no prediction." in out
    assert "3. nobody knows\n   You wrote: it has to" in out
    assert mine.outcomes == ["It is 47.2 %. You said 60 %: 13 points too high.", "It is up.", "nobody knows"]


def test_predictions_say_what_does_not_fit():
    with pytest.raises(ValueError, match="a choice needs two"):
        choice("which?", "one")
    with pytest.raises(ValueError, match="2 answers to 1 questions"):
        Predictions(words("why?")).reveal(("", "a"), ("", "b"))
    with pytest.raises(ValueError, match="'sideways' is not one of the options up, down"):
        Predictions(choice("which?", "up", "down")).reveal(("sideways", "a"))


def test_predictions_are_saved_for_a_teacher_and_nothing_is_lost(tmp_path):
    mine = Predictions(number("how many, really?", " %"), choice("which way?", "up", "down"))
    mine.answers = ["20", ""]
    mine.save(tmp_path / "class.csv", who="Ada", chapter="03")
    mine.reveal((46.9, "counted"), ("up", "seen"))
    mine.save(tmp_path / "class.csv", who="Bea, again", chapter="03")
    with (tmp_path / "class.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["who", "chapter", "question", "said", "answer", "outcome"]
    assert rows == [
        ["Ada", "03", "how many, really?", "20", "", ""],
        ["Ada", "03", "which way?", "", "", ""],
        ["Bea, again", "03", "how many, really?", "20", "46.9", "You said 20 %: 27 points too low."],
        ["Bea, again", "03", "which way?", "", "up", "You made no prediction."],
    ]
    (tmp_path / "other.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="not a file of predictions"):
        mine.save(tmp_path / "other.csv")
    assert (tmp_path / "other.csv").read_text() == "a,b\n"


# Projections


def test_projection_is_the_slow_loop():
    points = clouds(3)["two heaps"][:40]
    m = ProjectionModel(points, "two heaps", 30)
    x, y = math.cos(math.pi / 6), math.sin(math.pi / 6)
    seen = [p * x + q * y for p, q in points.tolist()]
    assert m.projected.tolist() == pytest.approx(seen, abs=1e-6)
    assert m.statistic == pytest.approx(epps_pulley(torch.tensor(seen)[:, None]).item(), rel=1e-4)
    around = [replace(m, degrees=d).statistic for d in range(180)]
    assert m.statistics.tolist() == pytest.approx(around, rel=1e-3)
    assert m.mean == pytest.approx(sum(around) / 180, rel=1e-3)
    assert replace(m, degrees=210).statistic == pytest.approx(m.statistic, rel=1e-3)  # the same line from behind


def test_clouds_are_what_they_are_called():
    drawn = clouds(1, 20_000)
    for name, points in drawn.items():
        assert points.mean(0).abs().max() < 0.03, name
    for name in ("normal", "a ring", "two heaps"):  # moments of second order cannot tell these three apart
        torch.testing.assert_close(torch.cov(drawn[name].T), torch.eye(2), atol=0.03, rtol=0)
    assert torch.linalg.matrix_rank(drawn["a line"], atol=1e-3) == 1
    assert drawn["a ring"].norm(dim=1).std() < 1e-5


def test_what_one_direction_sees_and_what_all_see():
    drawn = {name: ProjectionModel(points[:256], name) for name, points in clouds(0).items()}
    assert {name for name, m in drawn.items() if m.mean > FAR} == set(drawn) - {"normal"}
    assert replace(drawn["a line"], degrees=30).statistic < FAR < replace(drawn["a line"], degrees=120).statistic
    assert "sees nothing wrong; all" in replace(drawn["a line"], degrees=30).verdict()
    assert replace(drawn["two heaps"], degrees=90).statistic < FAR < drawn["two heaps"].statistic
    points = torch.randn(256, 4000, generator=torch.Generator().manual_seed(0))
    assert (epps_pulley(points) > FAR).float().mean() == pytest.approx(0.05, abs=0.01)


def test_features_are_shown_in_the_plane_in_which_they_vary_most():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=g) * torch.tensor([0.1, 3.0, 0.2, 1.0, 0.1]) + 2.0
    points = flat(x)
    assert points.shape == (300, 2)
    torch.testing.assert_close(points.std(0), torch.tensor([3.0, 1.0]), atol=0.3, rtol=0)
    torch.testing.assert_close(points.mean(0).abs(), torch.full((2,), 2.0), atol=0.6, rtol=0)  # not centred


def test_projection_explorer_follows_its_controls():
    x = torch.randn(100, 7, generator=torch.Generator().manual_seed(0))
    explorer = ProjectionExplorer(x)
    assert changed(explorer, lambda: setattr(explorer.cloud, "value", "a line"))
    assert changed(explorer, lambda: setattr(explorer.degrees, "value", 120))
    assert explorer.model.projected.std() < 1e-5
    assert changed(explorer, lambda: setattr(explorer.samples, "value", 64))
    assert len(explorer.model.points) == 64
    assert changed(explorer, lambda: setattr(explorer.seed, "value", 5))
    assert changed(explorer, lambda: setattr(explorer.cloud, "value", "an encoder's features"))
    torch.testing.assert_close(explorer.model.points, flat(x)[:64])
    assert explorer.seed.disabled
    explorer.samples.value = 500
    assert explorer.samples.value == len(explorer.model.points) == 100
    assert "the direction at 120 degrees" in explorer.picture.value
    assert len(explorer.figure().axes) == 3
    assert "an encoder's features" not in ProjectionExplorer().cloud.options


@pytest.mark.parametrize("shape", [(20, 3), (20,), (7, 2)])
def test_projection_model_refuses(shape):
    with pytest.raises(ValueError, match=r"a cloud is|too few"):
        ProjectionModel(torch.zeros(shape))
