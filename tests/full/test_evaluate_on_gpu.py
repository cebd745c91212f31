"""Every protocol on a pretended GPU: nothing mixes devices, and what is large is computed there."""

from __future__ import annotations

import pytest
import torch

from full_ijepa import doctor, machine, metrics, report
from full_ijepa.evaluate import PROTOCOLS, features, heads, paper, protocols
from full_ijepa.evaluate.features import alone
from full_ijepa.evaluate.pictures import Labelled, labelled
from full_ijepa.evaluate.protocols import Subject
from full_ijepa.recipes import RECIPES
from full_ijepa.recipes.base import Recipe
from full_ijepa.train import pretrain
from full_ijepa.vit import build_encoder
from tests.full.pretend_cuda import CUDA, gpu

FREE = 10**12  # bytes that the pretended GPU has


@pytest.fixture(autouse=True)
def room(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (FREE, FREE))


@pytest.fixture
def parts(pictures, monkeypatch):
    """A recipe and the arguments of a subject, small enough for all protocols."""
    monkeypatch.setattr(protocols, "SCENES", {"train": 40, "test": 20})
    monkeypatch.setattr(protocols, "DRAWS", 2)
    recipe = Recipe(data=f"folder:{pictures}", image_size=16, encoder="toy", patch=4, precision="fp32")
    return recipe, *(labelled(recipe.data, split, 16) for split in ("train", "test"))


def numbers(found: dict) -> dict[str, float]:
    return {name: value for name, value in found.items() if isinstance(value, float)}


def check(name: str, recipe: Recipe, train: Labelled, test: Labelled) -> None:
    """A protocol on the pretended GPU: what it asks of it, and that its numbers are those of a CPU."""
    torch.manual_seed(0)
    encoder = build_encoder("toy", recipe.image_size, recipe.patch, positions=recipe.positions)
    told = PROTOCOLS[name](Subject(encoder, recipe, train, test, torch.device("cpu")))
    with gpu() as seen:
        found = PROTOCOLS[name](Subject(encoder.to(CUDA), recipe, train, test, CUDA))
        assert seen.kernels
    assert numbers(found) == pytest.approx(numbers(told), rel=0.05, abs=2.0)


# The quick suite keeps the two probes that every run asks for, and the parts of the others (below).
@pytest.mark.parametrize(
    "name", [name if name in ("knn", "linear") else pytest.param(name, marks=pytest.mark.slow) for name in PROTOCOLS]
)
def test_a_protocol_mixes_no_devices_and_says_what_a_cpu_says(name, parts):
    check(name, *parts)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROTOCOLS)
def test_so_does_each_in_bf16(name, pictures, parts):
    """What a recipe chooses where a GPU has it. For protocols all recipes are one but for patches; here the oddest."""
    assert {(r.precision, r.positions, r.pixels) for r in RECIPES.values()} == {("auto", "fixed", Recipe().pixels)}
    side = 4 * RECIPES["imagenet_vith14"].patch
    changes = dict(data=f"folder:{pictures}", image_size=side, encoder="toy", precision="bf16")
    recipe = RECIPES["imagenet_vith14"].replace(**changes)
    check(name, recipe, *(labelled(recipe.data, split, side) for split in ("train", "test")))


def test_probes_compute_where_they_are_told():
    """Features may lie on the CPU: products, neighbours and weights are the device's."""
    x, y = torch.randn(90, 5), torch.arange(90) % 3
    with gpu() as seen:
        for probe in (
            lambda: heads.linear(x, y, x, 3, epochs=1, here=alone(CUDA)),
            lambda: heads.ridge(x, x[:, :2], x, here=alone(CUDA)),
            lambda: paper.linear({"last": (x, x)}, y, 3, here=alone(CUDA), epochs=1),
            lambda: metrics.neighbours(x, y, x, 3, device=CUDA),
        ):
            seen.forget()
            probe()
            assert seen.kernels["mm"] + seen.kernels["bmm"] > 0


def test_what_the_gpu_has_no_room_for_stays_and_is_brought_in_parts(monkeypatch):
    """With the same answer."""
    x, y = torch.randn(90, 5), torch.arange(90) % 3
    told = heads.linear(x, y, x, 3, epochs=2)
    for free, there in ((FREE, True), (x.nbytes, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        with gpu():
            rows, _ = heads.as_rows(x, x, alone(CUDA))
            assert (rows.x.device == CUDA) == there
            assert rows[torch.arange(4)].device == CUDA
            found = heads.linear(x, y, x, 3, epochs=2, here=alone(CUDA))
        assert torch.allclose(found.scores, told.scores, atol=1e-5)


def test_tf32_is_for_encoding_alone(monkeypatch):
    before = torch.get_float32_matmul_precision()
    with features.matmul(CUDA, "high"):
        assert torch.get_float32_matmul_precision() == "high"
        with features.matmul(CUDA, "highest"):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    with features.matmul(torch.device("cpu"), "high"):
        assert torch.get_float32_matmul_precision() == before


def test_doctor_and_report_encode_there(recipe, tmp_path, monkeypatch):
    """With the health and the scores that they have on a CPU."""
    out = pretrain(recipe.replace(epochs=0.5, warmup_epochs=0.1), tmp_path / "run", progress=False).out
    told = doctor.chart_of(out, device="cpu")
    monkeypatch.setattr(machine, "pick", lambda name: CUDA)
    with gpu() as seen:
        found = doctor.chart_of(out, device="cuda")
        assert seen.kernels["addmm"] + seen.kernels["mm"] > 0
        seen.forget()
        assert any("Imagination" in part for part in report.pictures_of(out, "run", {}, device="cuda"))
        assert seen.kernels["addmm"] + seen.kernels["mm"] > 0
    assert found.scores == pytest.approx(told.scores, abs=2.0)
    assert found.features.std == pytest.approx(told.features.std, abs=1e-3)
