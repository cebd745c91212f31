"""Muon: torch's updates in fewer products, and singular values near 1 in any precision."""

import pytest
import torch
from torch import nn

from toy_ijepa import training
from toy_ijepa.muon import Muon, orthogonalise
from toy_ijepa.recipe import build
from toy_ijepa.training import TrainConfig, make_optimisers

SHAPES = [(24, 8), (8, 8), (8, 24), (24, 8), (8, 8)]


def matrices(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_updates_are_torchs_own():
    ours, theirs = matrices(), matrices()
    options = dict(lr=0.1, weight_decay=0.5)
    one, other = (
        Muon([dict(params=ours, **options)], torch.bfloat16),
        torch.optim.Muon([dict(params=theirs, **options)], momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(3):
        for mine, its, gradient in zip(ours, theirs, matrices(1 + step), strict=True):
            mine.grad, its.grad = gradient.data.clone(), gradient.data.clone()
        one.step()
        other.step()
    for mine, its, start in zip(ours, theirs, matrices(), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=2e-3)  # bf16: products of a stack may be rounded otherwise
        assert (mine - start).abs().max() > 0.1
    assert one.state_dict()["state"].keys() == other.state_dict()["state"].keys()


def test_a_matrix_without_gradient_stays():
    found = matrices()
    for parameter in found[1:]:
        parameter.grad = torch.ones_like(parameter)
    before = found[0].detach().clone()
    optimiser = Muon([dict(params=found, lr=0.1, weight_decay=0.5)])
    optimiser.step()
    assert torch.equal(found[0], before)
    assert found[0] not in optimiser.state


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 24, 8)])
def test_singular_vectors_stay_and_values_go_to_one(shape, dtype, off):
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalise(given, dtype).float()
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(given, full_matrices=False)
    turned = u.mT @ found @ v.mT  # diagonal if the singular vectors are the same
    assert (turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))).abs().max() < off


@pytest.mark.parametrize("able", [True, False])
def test_a_processor_without_bf16_is_not_made_to_emulate_it(monkeypatch, able):
    monkeypatch.setattr(training, "uses_bf16", lambda device: able)
    muon = make_optimisers(build("mae", "tiny", 32, 4, 0), TrainConfig(steps=1))[1]
    assert muon.dtype == (torch.bfloat16 if able else torch.float32)
