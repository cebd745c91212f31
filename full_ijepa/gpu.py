"""What one GPU makes of the training step: ceilings, ways to run it, synchronisations, kernels, memory.

python -m full_ijepa.bench gpu --minutes 8 --out gpu.json

Every question has its own few seconds; those for which the minutes do not suffice are named as not asked. Made pictures
lie on the device, so that reading files does not count.
"""

# Shape legend:  B images of a micro-batch

from __future__ import annotations

import gc
import itertools
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

from full_ijepa import cost
from full_ijepa.distributed import World
from full_ijepa.recipes.base import Recipe
from full_ijepa.streams import Resident
from full_ijepa.train import Trainer, precision_of, set_up
from toy_ijepa.bench import matmul_rate

CONTEXTS = ("groups", "packed")
PICTURES = 512  # made, on the device
STEADY = 12  # timed steps of a way to run
FIRST = 4  # before them: kernels are chosen and compiled
MOVES = ("Memcpy", "Memset")  # what the device does beside kernels


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def copy_rate(device: torch.device, megabytes: int = 1024) -> float:
    """Bytes a second that the device reads and writes when it copies within its own memory."""
    there = torch.zeros(megabytes * 2**18, device=device)
    here, times = torch.empty_like(there), []
    for _ in range(6):
        begun = time.perf_counter()
        here.copy_(there)
        synchronise(device)
        times.append(time.perf_counter() - begun)
    return 2 * there.nbytes / min(times)


class Steps:
    """A trainer on made pictures, and one optimiser step after another."""

    def __init__(self, recipe: Recipe, here: World) -> None:
        self.recipe, self.here = recipe, here
        generator = torch.Generator().manual_seed(0)
        pictures = torch.randint(0, 256, (PICTURES, 3, *recipe.sides), dtype=torch.uint8, generator=generator)
        self.trainer = Trainer(recipe, here, Resident(pictures, here.device))
        self.batches = self.trainer.batches(0, 10**6)

    def take(self, count: int) -> list[float]:
        """Seconds of each of `count` steps, each waited for."""
        seconds = []
        for _ in range(count):
            synchronise(self.here.device)
            begun = time.perf_counter()
            self.trainer.take_step(self.batches)
            synchronise(self.here.device)
            seconds.append(time.perf_counter() - begun)
        return seconds

    def run_ahead(self, count: int) -> float:
        """Seconds a step where the host may run ahead of the device, as in training."""
        synchronise(self.here.device)
        begun = time.perf_counter()
        for _ in range(count):
            self.trainer.take_step(self.batches)
        synchronise(self.here.device)
        return (time.perf_counter() - begun) / count


@contextmanager
def fresh(recipe: Recipe, here: World) -> Iterator[Steps]:
    """Steps of a recipe; what they held on the device is given back."""
    torch._dynamo.reset()
    if here.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps = Steps(recipe, here)
    try:
        yield steps
    finally:
        steps.trainer.__dict__.clear()
        steps.__dict__.clear()
        gc.collect()
        if here.device.type == "cuda":
            torch.cuda.empty_cache()


def speed(recipe: Recipe, here: World, rate: float, cudnn: bool | None = None) -> dict[str, Any]:
    """Images a second, share of the ceiling, slowest of the first steps and peak memory of a way to run a recipe.

    cudnn  whether attention may ask cuDNN, against what the recipe's set-up chose
    """
    if cudnn is not None and here.device.type != "cuda":
        return dict(not_asked="cuDNN is a GPU's")
    with fresh(recipe, here) as steps:
        if cudnn is not None:
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
        first = steps.take(FIRST)
        each = steps.take(STEADY)
        ahead = steps.run_ahead(STEADY)
        peak = torch.cuda.max_memory_allocated() / 2**30 if here.device.type == "cuda" else None
    pace = recipe.batch / ahead
    found = dict(images_per_second=pace, share_of_matmul_rate=pace * cost.flops_per_image(recipe).model / rate)
    return found | dict(first_steps=first, slowest_over_median=max(each) / median(each), peak_gib=peak)


def synchronisations(recipe: Recipe, here: World) -> dict[str, Any]:
    """Where the host waits for the device within a step, each place as often as torch warned of it."""
    if here.device.type != "cuda":
        return dict(not_asked="only a GPU runs apart from the host")
    places: dict[str, int] = {}
    with fresh(recipe, here) as steps:
        steps.take(FIRST)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                steps.trainer.take_step(steps.batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchroniz" in str(warning.message):
            where = f"{warning.filename.rsplit('/', 1)[-1]}:{warning.lineno}"
            places[where] = places.get(where, 0) + 1
    return dict(count=sum(places.values()), places=places)


def kernels(recipe: Recipe, here: World) -> dict[str, Any]:
    """Kernels of a step, the time they take together, and the share of the step in which the device stands idle.

    The profiler slows the host down: it watches the device alone, from its second step on, and the step's own time is
    taken before it.
    """
    if here.device.type != "cuda":
        return dict(not_asked="kernels are a GPU's")
    with fresh(recipe, here) as steps:
        steps.take(FIRST)
        seconds = median(steps.take(3))
        events = second(lambda: steps.take(1), torch.profiler.ProfilerActivity.CUDA)
    return tally(events, seconds)


def second(step: Callable[[], Any], activity: torch.profiler.ProfilerActivity) -> list[Any]:
    """A profiler's events of the second of two steps. Raises RuntimeError if it saw nothing."""
    # TRAP: a schedule without `repeat` begins a new cycle at the end, and what was seen is gone.
    schedule = torch.profiler.schedule(wait=0, warmup=1, active=1, repeat=1)
    with torch.profiler.profile(activities=[activity], schedule=schedule) as profile:
        for _ in range(2):
            step()
            profile.step()
    if not (events := profile.events()):
        raise RuntimeError("the profiler saw nothing")
    return list(events)


def tally(events: Iterable[Any], seconds: float) -> dict[str, Any]:
    """What a profiler's events of one step of so many seconds say; ranges that span kernels are not counted again."""
    found = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]
    times: Counter[str] = Counter()  # microseconds by name
    for event in found:
        times[event.name[:80]] += event.time_range.elapsed_us()
    busy, moves = sum(times.values()) / 1e6, sum(event.name.startswith(MOVES) for event in found)
    return dict(
        count=len(found) - moves,
        copies=moves,
        seconds=busy,
        step_seconds=seconds,
        idle=max(1 - busy / seconds, 0.0),
        longest={name: time / 1e3 for name, time in times.most_common(12)},  # ms
    )


def watching(recipe: Recipe, here: World) -> dict[str, Any]:
    """Seconds of looking at the features once, beside those of a step."""
    with fresh(recipe, here) as steps:
        steps.take(FIRST)
        step = median(steps.take(3))
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            steps.trainer.watch()
            synchronise(here.device)
            times.append(time.perf_counter() - begun)
    return dict(seconds=median(times), steps=median(times) / step)


def held(recipe: Recipe, here: World) -> dict[str, Any]:
    """Peak memory of two steps, or that it does not suffice; what `--dry-run` estimates beside it."""
    _, trained, parameters = cost.sizes(recipe)
    about = cost.memory(recipe, parameters, trained) / 2**30
    if here.device.type != "cuda":
        return dict(not_asked="a GPU's memory is counted", estimated_gib=about)
    try:
        with fresh(recipe, here) as steps:
            steps.take(2)
            return dict(peak_gib=torch.cuda.max_memory_allocated() / 2**30, estimated_gib=about)
    except torch.cuda.OutOfMemoryError as error:
        return dict(too_much=str(error).partition("\n")[0][:200], estimated_gib=about)


def questions(base: Recipe, large: Recipe, here: World, rates: dict) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is asked, the most telling first: a name and what finds the answer."""

    def ways(count: int) -> Iterator[tuple[str, Callable[[], Any]]]:
        for compiled, contexts in itertools.product((False, True), CONTEXTS):
            recipe = base.replace(batch=count, micro_batch=count, compile=compiled, contexts=contexts)
            name = f"{count} images, {contexts}, {'compiled' if compiled else 'eager'}"
            yield name, lambda recipe=recipe: speed(recipe, here, rates["matmul"])

    count = base.micro_batch
    yield from ways(count)
    one = base.replace(batch=count, compile=False)
    yield "synchronisations", lambda: synchronisations(one, here)
    for contexts in CONTEXTS:
        yield f"kernels, {contexts}", lambda contexts=contexts: kernels(one.replace(contexts=contexts), here)
    yield "watch", lambda: watching(one, here)
    for several in count, 2 * count:
        recipe = large.replace(batch=several, micro_batch=several, compile=False)
        yield f"memory of {large.encoder}, {several} images", lambda recipe=recipe: held(recipe, here)
    for contexts, cudnn in (("groups", True), ("packed", False)):  # is the choice of `train.set_up` the faster one?
        name = f"{count} images, {contexts}, eager, {'with' if cudnn else 'without'} cuDNN"
        recipe = one.replace(contexts=contexts)
        yield name, lambda recipe=recipe, cudnn=cudnn: speed(recipe, here, rates["matmul"], cudnn)
    yield from ways(4 * count)


def ask(minutes: float, base: Recipe, large: Recipe, here: World, keep: Callable[[dict], None]) -> dict[str, Any]:
    """All questions that fit into `minutes`; `keep` gets what is known after each answer, so that nothing is lost.

    An answer that fails says why in its place, and the next question is asked.
    """
    end = time.monotonic() + 60 * minutes
    set_up(base, here.device)  # fp32 products as a run's
    dtype = precision_of(base, here.device)
    side = 8192 if here.device.type == "cuda" else 1024
    rates = dict(matmul=matmul_rate(dtype, side, here.device.type), copy=copy_rate(here.device, side // 8))
    ceilings = dict(matmul_tflops=rates["matmul"] / 1e12, copy_gb=rates["copy"] / 1e9)
    found: dict[str, Any] = dict(about(here), precision=str(dtype).removeprefix("torch."), **ceilings)
    keep(found)
    longest: dict[bool, float] = {}  # seconds of the longest answer so far, with and without the compiler
    for name, answer in questions(base, large, here, rates):
        compiled = "compiled" in name
        if end - time.monotonic() < longest.get(compiled, 60.0 if compiled else 5.0):
            found[name] = dict(not_asked=f"the {minutes:g} minutes did not suffice")
            continue
        begun = time.monotonic()
        try:
            found[name] = answer()
        except Exception as error:  # whatever it is, the next answer is worth having
            found[name] = dict(failed=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}")
        found[name]["took"] = time.monotonic() - begun
        longest[compiled] = max(longest.get(compiled, 0.0), found[name]["took"])
        keep(found)
    return found


def about(here: World) -> dict[str, Any]:
    """The device and the versions that decide its speed."""
    if here.device.type != "cuda":
        return dict(device=f"CPU, {torch.get_num_threads()} threads", torch=torch.__version__)
    card = torch.cuda.get_device_properties(here.device)
    versions = dict(torch=torch.__version__, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    return dict(device=card.name, memory_gib=card.total_memory / 2**30, **versions)


def told(found: dict[str, Any]) -> str:
    """The answers as text, one a line."""
    lines = [f"{name:32}  {shown(value)}" for name, value in found.items()]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A number in four digits; of an answer, its numbers by name."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "  ".join(f"{name} {shown(part)}" for name, part in value.items() if not isinstance(part, dict | list))
    return str(value)
