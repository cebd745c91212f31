"""Every recipe's step on a pretended GPU: nothing left on the CPU, nobody waits, few kernels, the numbers of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torchvision.io import write_png

from full_ijepa import checkpoint, cost, loop, masking, methods, train
from full_ijepa.data import Resident
from full_ijepa.distributed import World
from full_ijepa.packing import fits_kernel
from full_ijepa.recipes import RECIPES
from full_ijepa.recipes.base import Recipe
from full_ijepa.streams import Stream
from full_ijepa.vit import SIZES
from tests.full.pretend_cuda import CUDA, OnGPU, gpu, hollow, hollowed

TINY = dict(encoder="toy", predictor_width=32, predictor_depth=2, predictor_heads=2, batch=8, micro_batch=4, epochs=3.0)
TINY |= dict(warmup_epochs=1.0, compile=False, parallel="ddp", precision="bf16", data="shapes", workers=0, clip=3.0)


CARDS = dict(stl10_vitb16=24, stl10_vitb16_mae=24, stl10_vitb16_80gb=40)  # GB, as they say; who names none, 12
MOST = dict(packed=75, groups=250)  # kernels a block of encoder and predictor: 1,350 for ViT-B and its predictor of six


def tiny(name: str, **changes) -> Recipe:
    return RECIPES[name].replace(**dict(image_size=6 * RECIPES[name].patch) | TINY | changes)


@pytest.fixture(autouse=True)
def restored():
    """Choices of kernels are those of a process."""
    before = torch.get_float32_matmul_precision(), torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cuda.enable_cudnn_sdp(before[1])


def different() -> list[str]:
    """One recipe of each kind of step: many differ only in sizes, which TINY takes from them, or in what they log."""
    quiet = dict(probe_epochs=0.0, checkpoint_epochs=1.0, log_every=1)
    return list({tiny(name, **quiet): name for name in reversed(RECIPES)}.values())


def some(names: Iterable[str], *quick: str) -> list:
    """All names; the quick suite takes only a few of them."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some(different(), "smoke", "cifar10_vits4"))
def test_a_recipe_takes_its_step_there(name, tmp_path):
    """Data, forward, backward, clipping, optimisers and EMA; then a look at features and a checkpoint, which may wait.

    Whoever continues from the checkpoint, on a GPU or on a CPU, takes the third step as if nothing had been between.
    """
    check(tiny(name), tmp_path)


OTHERS = {
    "groups": dict(contexts="groups"),
    "cut, learned positions": dict(contexts="cut", positions="learned"),
    "joint, skipping blocks": dict(predictor_mode="joint", drop_path=0.3),
    "checkpointing, regulariser": dict(checkpointing=True, regulariser=(0.1, 0.05)),
    "fp32": dict(precision="fp32"),
    "released": dict(masks="released", image_size=144),
    "single block in groups": dict(masks="single_block", contexts="groups"),
    "small context": dict(masks="small_context"),
    "random": dict(masks="random"),
    "fp16": dict(precision="fp16"),
    "five channels": dict(
        channels=5, depth="uint16", mean=(900.0, 1.0, 2.0, 3.0, 4.0), std=(300.0, 2.0, 2.0, 2.0, 2.0)
    ),
}


@pytest.mark.parametrize("changes", some(OTHERS, "groups", "five channels"))
def test_other_choices_take_their_step_there(changes, tmp_path):
    check(tiny("stl10_vitb16", **OTHERS[changes]), tmp_path)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.parametrize("whole", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_pictures_read_from_files_are_sent_without_waiting(whole, tmp_path):
    """Cropped there, where they have one size, or by the workers."""
    paths = [tmp_path / f"{n}.png" for n in range(24)]
    for n, path in enumerate(paths):
        side = 24 if whole else 24 + n
        write_png(torch.randint(0, 256, (3, side, 24), dtype=torch.uint8, generator=torch.manual_seed(n)), str(path))
    check(tiny("cifar10_vits4", image_size=24), tmp_path, lambda device: Stream(paths, device, whole))


def check(recipe: Recipe, folder: Path, data: Callable[[torch.device], Resident | Stream] | None = None) -> None:
    with gpu() as seen:
        kind, shape = getattr(torch, recipe.pixels.depth), (24, recipe.pixels.channels, *recipe.sides)
        pictures = torch.randint(0, 256, shape, generator=torch.manual_seed(0)).to(kind)
        data = data or partial(Resident, pictures)
        start = lambda device: train.Trainer(recipe, World(0, 1, device), data(device))  # noqa: E731
        there, here = start(CUDA), start(torch.device("cpu"))
        assert all(isinstance(x, OnGPU) for x in there.method.state_dict().values())
        batches = there.batches(0, 3)
        there.take_step(batches)
        seen.forget()
        loss, norm, _ = there.take_step(batches)
        assert isinstance(loss, OnGPU)
        assert not seen.waits
        assert sum(seen.kernels.values()) > 100
        found = loss.item(), norm.item(), there.watch()[0]
        seen.forget()
        part = checkpoint.collect(there.model, there.optimisers)
        assert sum(seen.waits.values()) == 1, "the host waits once for all tensors, not once for each"
        assert all(x.pinned for x in part.tensors.values())
        about = dict(there.about(), step=2, recipe=asdict(recipe))
        checkpoint.write_part(checkpoint.path_of(folder, 2), part, about)
        next_loss, _, _ = there.take_step(batches)
        again = start(CUDA)
        again.resume(folder)
        assert all(isinstance(x, OnGPU) for x in again.method.state_dict().values())
        resumed, _, _ = again.take_step(again.batches(2, 3))
        assert resumed.item() == next_loss.item()
    batches = here.batches(0, 2)
    here.take_step(batches)
    loss, norm, _ = here.take_step(batches)
    rough = 1e-4 if recipe.precision == "fp32" else 5e-3
    assert found[0] == pytest.approx(loss.item(), rel=rough)
    assert found[1] == pytest.approx(norm.item(), rel=10 * rough)
    assert found[2].std == pytest.approx(here.watch()[0].std, rel=10 * rough)
    here.resume(folder)
    assert here.take_step(here.batches(2, 3))[0].item() == pytest.approx(next_loss.item(), rel=rough)


def test_masks_left_on_the_cpu_are_an_error():
    recipe = tiny("stl10_vitb16")
    for contexts in ("packed", "groups"):
        method = methods.build(recipe.replace(contexts=contexts))
        drawn = method.draw(4, seed=0, sizes=0, multiple=16)
        with gpu():
            step, images = methods.Step(method.to(CUDA)), torch.zeros(4, 3, *recipe.sides, device=CUDA)
            with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
                step(images, drawn)
            step(images, masking.mapped(lambda x: x.to(CUDA), drawn))


def test_waiting_is_seen():
    """What the tests above do not find would be found."""
    with gpu() as seen:
        x = torch.ones(3, device=CUDA)
        for waits in (x.sum().item, x.nonzero, x.tolist, x.cpu, lambda: x[x > 0], lambda: torch.ones(3).to(CUDA)):
            seen.forget()
            waits()
            assert sum(seen.waits.values()) == 1
        seen.forget()
        torch.ones(3).pin_memory().to(CUDA, non_blocking=True)
        assert not seen.waits


@pytest.mark.parametrize("mode", ["block", "joint"])
def test_a_vit_b_micro_batch_needs_few_kernels(mode):
    """Forward and backward of 64 images under autocast, shapes only."""
    recipe = RECIPES["stl10_vitb16"].replace(contexts="packed", predictor_mode=mode)
    with torch.device("meta"):
        method = methods.build(recipe.replace(compile=False))
    drawn = masking.mapped(hollowed, method.draw(64, seed=1, sizes=2, multiple=train.PACKED))
    step, images = methods.Step(hollow(method)), hollowed(torch.empty(64, 3, 224, 224, device="meta"))
    with gpu() as seen, torch.autocast("cuda", torch.bfloat16):
        step(images, drawn).backward()
    assert seen.kernels["_varlen_attn"] == 12 + 6
    assert sum(seen.kernels.values()) <= 1400
    assert not seen.waits


@pytest.mark.parametrize("name", some(RECIPES, "stl10_vits8"))
def test_a_recipe_goes_forward_and_back_at_its_own_size(name):
    """Eight pictures, shapes only; every trainable tensor gets a gradient, and a block has few kernels."""
    recipe = RECIPES[name].replace(compile=False)
    with torch.device("meta"):
        method = methods.build(recipe)
    drawn = masking.mapped(hollowed, method.draw(8, seed=1, sizes=2, multiple=train.PACKED))
    images = hollowed(torch.empty(8, recipe.pixels.channels, *recipe.sides, device="meta"))
    step = methods.Step(hollow(method))
    with gpu() as seen, torch.autocast("cuda", torch.bfloat16):
        step(images, drawn).backward()
    assert not seen.waits
    blocks = SIZES[recipe.encoder][1] + recipe.predictor_depth
    assert sum(seen.kernels.values()) <= MOST[recipe.contexts] * blocks
    assert [name for name, p in step.named_parameters() if p.requires_grad and p.grad is None] == []


def held(recipe: Recipe, micro: int) -> tuple[int, int, float]:
    """Bytes of weights, gradients and Adam's state, and what backward keeps of a micro-batch; and cost's estimate."""
    with torch.device("meta"):
        method = methods.build(recipe.replace(compile=False))
    drawn = masking.mapped(hollowed, method.draw(micro, seed=1, sizes=2, multiple=train.PACKED))
    images = hollowed(torch.empty(micro, recipe.pixels.channels, *recipe.sides, device="meta"))
    step, kept = methods.Step(hollow(method)), {}

    def note(x: torch.Tensor) -> torch.Tensor:
        storage = getattr(x, "data_on_cpu", x).untyped_storage()
        kept[storage._cdata] = storage  # each once, however many views of it are kept
        return x

    with gpu(), torch.autocast("cuda", torch.bfloat16), saved_tensors_hooks(note, lambda x: x):
        step(images, drawn)
    every = sum(p.numel() for p in step.parameters())
    trained = sum(p.numel() for p in step.parameters() if p.requires_grad)
    return 4 * (every + 3 * trained), sum(s.nbytes() for s in kept.values()), cost.memory(recipe, every, trained)


@pytest.mark.parametrize("name", some(RECIPES, "stl10_vitb16"))
def test_a_micro_batch_fits_the_card_it_is_meant_for(name):
    """Shapes only, at the recipe's own size; a fifth of the card is left for what is held for a moment."""
    recipe = RECIPES[name]
    weights, kept, estimate = held(recipe, min(recipe.micro_batch, recipe.batch))
    assert weights + kept < 0.8e9 * CARDS.get(name, 80 if name.startswith("imagenet") else 12)
    assert estimate == pytest.approx(weights + kept, rel=0.12)  # what --dry-run says


def test_kernels_are_chosen_where_there_is_a_gpu(recipe):
    """cuDNN plans attention anew for each length: only packed contexts, which do not ask it, leave it the rest."""
    train.set_up(recipe, torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == "highest"
    with gpu():
        for contexts, cudnn in (("packed", True), ("groups", False), ("cut", False)):
            train.set_up(recipe.replace(contexts=contexts), CUDA)
            assert torch.backends.cuda.cudnn_sdp_enabled() == cudnn
    assert torch.get_float32_matmul_precision() == "high"


def test_a_card_that_is_too_old_is_said(recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    with pytest.raises(
        ValueError, match=r"packed contexts in fp16 need .* 8.0, this one has 7.5: give --contexts groups"
    ):
        train.set_up(recipe.replace(contexts="packed", precision="fp16"), CUDA)
    train.set_up(recipe.replace(contexts="packed", precision="fp32"), CUDA)
    train.set_up(recipe.replace(contexts="groups", precision="fp16"), CUDA)


def test_the_kernel_is_asked_only_for_what_it_takes():
    """Half precision, heads of a width in steps of eight; all else goes through a mask, to the same numbers."""
    with gpu():
        for dtype, width, fits in ((torch.bfloat16, 32, True), (torch.float32, 32, False), (torch.bfloat16, 12, False)):
            assert fits_kernel(torch.zeros(5, 2, width, dtype=dtype, device=CUDA)) == fits
    assert not fits_kernel(torch.zeros(5, 2, 32, dtype=torch.bfloat16))


def test_the_loop_waits_for_nothing_between_two_rows(tmp_path, monkeypatch):
    """Neither for losses nor for whoever wants it to stop."""
    monkeypatch.setattr(loop.machine, "describe", lambda *_: {})
    monkeypatch.setattr(loop.machine, "sentence", lambda found: "a GPU that is not there")
    recipe = tiny("cifar10_vits4", log_every=1000, probe_epochs=0.0, checkpoint_epochs=1000.0, epochs=20.0)
    pictures = torch.randint(0, 256, (24, 3, *recipe.sides), generator=torch.manual_seed(0)).to(torch.uint8)
    with gpu() as seen:
        trainer = train.Trainer(recipe, World(0, 1, CUDA), Resident(pictures, CUDA))
        interrupt, take, waits = loop.Interrupt(), trainer.take_step, []

        def step(batches):
            waits.append(sum(seen.waits.values()))
            interrupt.wanted = len(waits) == 6
            return take(batches)

        monkeypatch.setattr(trainer, "take_step", step)
        assert loop.Loop(trainer, tmp_path / "run", False, progress=False).run(interrupt).ended == "stopped"
    assert waits[1:] == [waits[1]] * 5, seen.waits
