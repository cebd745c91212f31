"""Packed contexts: a loop over single images is the spec; nothing is cut, filler changes nothing, shapes are few."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._pytree import tree_map

from full_ijepa import masking, methods, packing
from full_ijepa.masking import NOTHING, Packed
from full_ijepa.packing import attend, sequences
from full_ijepa.recipes.base import Recipe
from full_ijepa.vit import compile_blocks
from tests.full.pretend_cuda import varlen_backward, varlen_forward
from tests.toy.test_masking import check_no_leak
from toy_ijepa.encoder import Attention
from toy_ijepa.masking import Masks, multiblock

RECIPE = Recipe(
    image_size=(48, 40),
    patch=4,
    channels=2,
    encoder="toy",
    predictor_width=32,
    predictor_depth=2,
    predictor_heads=2,
    batch=7,
    micro_batch=7,
    contexts="packed",
)
LENGTHS = torch.tensor([3, 11, 1, 6])
NEEDS_COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")


@pytest.fixture
def images(generator):
    return torch.randn(7, 2, 48, 40, generator=generator)


def gradient(method) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])
    method.zero_grad()
    return found


@pytest.mark.parametrize("multiple", [1, 2, 32, 40])
def test_sequences_lie_one_after_the_other(multiple):
    found = sequences(LENGTHS, multiple)
    S = len(found.number)
    assert S % multiple == 0
    assert 21 <= S < 21 + multiple
    assert found.ends.dtype == torch.int32
    assert found.lengths[:4].tolist() == LENGTHS.tolist()
    assert found.lengths.sum() == S
    assert found.longest >= found.lengths.max()
    assert len(found.lengths) == len(sequences(LENGTHS + 1, multiple).lengths), "always as many, whatever the filler"
    for number, (start, length) in enumerate(zip(found.ends.tolist(), found.lengths.tolist(), strict=False)):
        assert found.number[start : start + length].eq(number).all()
        assert found.place[start : start + length].tolist() == list(range(length))


@pytest.mark.parametrize("multiple", [1, 32])
def test_attention_keeps_sequences_apart(multiple, generator):
    """Against the toy's attention on each sequence alone, outputs and gradients."""
    torch.manual_seed(0)
    attention, where = Attention(24, 3), sequences(LENGTHS, multiple)
    x = torch.randn(len(where.number), 24, generator=generator, requires_grad=True)
    found = attend(attention, x, where)
    expected = torch.cat([attention(part[None])[0] for part in x.split(where.lengths.tolist()) if len(part)])
    assert torch.allclose(found, expected, atol=1e-6)
    weights = torch.randn(found.shape, generator=generator)
    for a, b in zip(
        *(torch.autograd.grad((y * weights)[:21].sum(), [x, attention.qkv.weight]) for y in (found, expected)),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("masks", ["multiblock", "single_block", "small_context", "released"])
@pytest.mark.parametrize("mode", ["block", "joint"])
def test_packed_is_a_loop_over_single_images(mode, masks, images):
    """Each image through the toy's own forward, with all of its context: the same loss and gradient."""
    method = methods.build(RECIPE.replace(predictor_mode=mode, masks=masks))
    drawn = method.draw(7, seed=3, sizes=5)
    loss = methods.Step(method)(images, drawn)
    loss.backward()
    found = gradient(method)
    single = []
    for number, context in enumerate(drawn.context.split(drawn.seen.lengths.tolist())):
        masks_of_one = Masks(context[None] - 120 * number, drawn.targets[number : number + 1])
        single.append(method(images[number : number + 1], masks_of_one).loss)
    expected = torch.stack(single).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert torch.allclose(found, gradient(method), atol=1e-6)


def test_packed_skips_the_blocks_that_were_drawn(images):
    """Stochastic depth image by image, in groups of one and packed: the same."""
    recipe, found = RECIPE.replace(drop_path=0.5, groups=7, regulariser=(1.0, 0.5)), []
    for contexts in ("packed", "groups"):
        method = methods.build(recipe.replace(contexts=contexts))
        drawn = method.draw(7, seed=3, sizes=5)
        loss = methods.Step(method)(images, drawn)
        loss.backward()
        found.append((loss.item(), gradient(method)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)
    whole = methods.build(recipe.replace(drop_path=0.0, contexts="packed"))
    assert methods.Step(whole)(images, whole.draw(7, seed=3, sizes=5)).item() != pytest.approx(found[0][0], abs=1e-4)


@pytest.mark.parametrize("mode", ["block", "joint"])
def test_filler_changes_nothing(mode, images):
    method = methods.build(RECIPE.replace(predictor_mode=mode, drop_path=0.3, regulariser=(1.0, 0.5)))
    found = []
    for multiple in (1, 64):
        drawn = method.draw(7, seed=3, sizes=5, multiple=multiple)
        loss = methods.Step(method)(images, drawn)
        loss.backward()
        found.append((loss.item(), gradient(method)))
    assert len(drawn.context) % 64 == 0
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6)
    assert found[1][1].isfinite().all()


def test_all_of_the_context_is_there_and_nothing_leaks(generator):
    def strategy(batch, grid, *, generator=None, **options):
        """As masks of the toy again, to be checked like them; with a batch of one nothing is cut."""
        whole = multiblock(batch, grid, generator=generator, pick=masking.keep_all, **options)
        found = masking.packed(whole, grid[0] * grid[1], joint=False, multiple=8)
        rows = found.context[: int(found.seen.ends[batch])].split(found.seen.lengths[:batch].tolist())
        shortest = min(map(len, rows))
        rows = [row - grid[0] * grid[1] * n for n, row in enumerate(rows)]
        for row, all_of_it in zip(rows, whole.context, strict=True):
            assert sorted(row.tolist()) == sorted(all_of_it[all_of_it != NOTHING].tolist())
        return Masks(torch.stack([row[:shortest] for row in rows]), found.targets)

    check_no_leak(strategy)


def test_the_three_ways_agree_in_expectation():
    """Cut and grouped contexts are packed ones with patches left out evenly; targets are the same to the last patch."""
    seen = {}
    for contexts in ("packed", "groups", "cut"):
        method = methods.build(RECIPE.replace(contexts=contexts, groups=3))
        places, targets, loss, kept = torch.zeros(120), [], 0.0, 0
        images = torch.randn(7, 2, 48, 40, generator=torch.Generator().manual_seed(1))
        for seed in range(80):
            drawn = method.draw(7, seed=seed, sizes=seed // 2)
            if seed % 2 == 0:
                with torch.no_grad():
                    loss += methods.Step(method)(images, drawn).item() / 40
            if isinstance(drawn, Packed):
                index, each = drawn.context % 120, drawn.targets
            else:
                index = torch.cat([group.context.flatten() for group in drawn])
                order = torch.cat([group.rows for group in drawn]).argsort()
                each = torch.cat([group.targets for group in drawn])[order]
            places += torch.bincount(index, minlength=120)
            targets.append(each.flatten())
            kept += len(index)
        seen[contexts] = places / places.sum(), torch.cat(targets), loss, kept
    assert seen["cut"][3] < 0.85 * seen["groups"][3] < 0.85 * seen["packed"][3]
    for contexts in ("groups", "cut"):
        assert torch.equal(seen[contexts][1], seen["packed"][1])
        assert (seen[contexts][0] / seen["packed"][0] - 1).abs().mean() < 0.04
        assert seen[contexts][2] == pytest.approx(seen["packed"][2], rel=0.01)


@pytest.mark.parametrize(("mode", "most", "whole", "fixed"), [("block", 24, 80, 24), ("joint", 24, 62, 17)])
def test_packed_lengths_are_few(mode, most, whole, fixed):
    """1,000 micro-batches of 64 at ViT-B/16's grid, padded as on a GPU: few lengths, one number of sequences.

    A graph of a whole step would be recorded for each combination: counted over 250, and where blocks have one size.
    """
    recipe = Recipe(encoder="toy", predictor_width=32, predictor_depth=1, predictor_heads=2, predictor_mode=mode)
    with torch.device("meta"):
        method = methods.build(recipe.replace(contexts="packed"))

    def lengths(drawn: Packed) -> tuple[int, ...]:  # a thousand of what they are the lengths of would take 0.6 GB
        ends = len(drawn.seen.ends), len(drawn.asked.ends)
        longest = drawn.seen.longest, drawn.asked.longest
        return len(drawn.context), len(drawn.order), *longest, *ends, len(drawn.answers)

    found = [lengths(method.draw(64, seed=step, sizes=step, multiple=256)) for step in range(1000)]
    contexts, orders, longest, _, *ends, answers = (len(set(column)) for column in zip(*found, strict=True))
    assert answers <= 8
    assert len(set(found[:250])) <= whole
    assert len({lengths(method.draw(64, seed=step, sizes=3, multiple=256)) for step in range(250)}) <= fixed
    assert contexts <= most
    assert orders <= most
    assert longest <= 8
    assert ends == [1, 1]
    own = {len(method.draw(64, seed=step, sizes=step).context) for step in range(200)}
    assert len(own) > 150, "without filler nearly each has its own"


@pytest.fixture
def counter():
    """Counts what is compiled; a limit that is reached is an error."""
    limit = torch._dynamo.config.recompile_limit
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=limit):
        torch._dynamo.reset()
        yield CompileCounter()
        torch._dynamo.reset()


@pytest.mark.parametrize(
    "contexts", ["packed", "packed, by the kernel", pytest.param("groups", marks=pytest.mark.slow)]
)
def test_blocks_are_compiled_a_few_times_whatever_the_lengths(images, counter, contexts, request):
    """One graph each for target encoder, context encoder and predictor, and at most one more for features alone."""
    contexts, *by_kernel = contexts.split(", ")
    calls = request.getfixturevalue("kernel") if by_kernel else []
    method = methods.build(RECIPE.replace(contexts=contexts, drop_path=0.2, predictor_depth=1))
    compile_blocks(method, backend=counter)
    for seed in range(5):
        methods.Step(method)(images, method.draw(7, seed=seed, sizes=seed, multiple=32)).backward()
    with torch.no_grad():
        method.probed(images[:3])
    assert bool(calls) == bool(by_kernel)
    assert 3 <= counter.frame_count <= 4
    assert torch._dynamo.config.recompile_limit >= 32
    assert not torch._dynamo.config.optimize_ddp, "DDP would cut each block in two"


@pytest.mark.slow  # quick: the same of single blocks, above
@pytest.mark.parametrize("by_kernel", [False, True])
def test_a_whole_step_is_one_graph_without_a_break(images, counter, by_kernel, request):
    """A few graphs until it is known which lengths vary, then none, however many come."""
    calls = request.getfixturevalue("kernel") if by_kernel else []
    method = methods.build(RECIPE.replace(drop_path=0.2))
    step, graphs = methods.Step(method), []
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for seed in range(12):
        drawn = method.draw(7, seed=seed, sizes=seed, multiple=32)
        with torch.no_grad():
            assert compiled(images, drawn).item() == pytest.approx(step(images, drawn).item(), abs=1e-6)
        graphs.append(counter.frame_count)
    assert bool(calls) == by_kernel
    assert graphs[-1] == graphs[-6] <= 6


@pytest.fixture
def kernel(monkeypatch):
    """The kernel for sequences of different lengths, on a CPU: what it computes, by pretend_cuda's loops.

    TRAP: what is registered stays for the rest of the process; only that it is asked is undone.
    """
    from torch.nn.attention import varlen

    calls = []

    def forward(q, k, v, ends, *_rest):
        calls.append("forward")
        return varlen_forward(q.float(), k.float(), v.float(), ends)

    def backward(grad, q, k, v, _out, _lse, ends, *_rest):
        calls.append("backward")
        return varlen_backward(*(x.float() for x in (grad, q, k, v)), ends)

    def cast(to):
        return lambda *args: tree_map(lambda x: x.to(args[0].dtype) if x.is_floating_point() else x, to(*args))

    varlen._varlen_attn.register_kernel("cpu")(cast(forward))
    varlen._varlen_attn_backward.register_kernel("cpu")(cast(backward))
    monkeypatch.setattr(packing, "fits_kernel", lambda q: True)
    return calls


@pytest.mark.parametrize(
    ("backend", "whole"),
    [
        ("aot_eager", False),
        pytest.param("aot_eager", True, marks=pytest.mark.slow),
        pytest.param("inductor", False, marks=[pytest.mark.slow, NEEDS_COMPILER]),
    ],
)
def test_the_kernel_is_compiled_forward_and_backward(images, kernel, backend, whole):
    """Compiled blocks, or a whole step, have the loss and the gradients of a step that is not, the kernel included."""
    torch._dynamo.reset()
    found = []
    for compiled in (False, True):
        method = methods.build(RECIPE.replace(drop_path=0.2))
        step = methods.Step(method)
        if compiled and whole:
            step = torch.compile(step, backend=backend, fullgraph=True)
        elif compiled:
            compile_blocks(method, backend=backend)
        for seed in range(3):
            method.zero_grad()
            loss = step(images, method.draw(7, seed=seed, sizes=seed, multiple=32))
            loss.backward()
        found.append([loss.detach(), *(p.grad for p in method.parameters() if p.requires_grad)])
        calls = Counter(kernel)
        kernel.clear()
        assert calls["forward"] == calls["backward"] == 3 * (4 + 2)  #  blocks of the context encoder, of the predictor
    torch._dynamo.reset()
    for eager, other in zip(*found, strict=True):
        assert torch.allclose(eager, other, atol=1e-5, rtol=1e-3)
