"""How fast is ViT-B/16, what do the ways of handling uneven contexts cost, and do files arrive fast enough?

python -m full_ijepa.bench step    one training step at 224 px beside lightly's, part by part, on the CPU
python -m full_ijepa.bench train   the loop's own step of a recipe, on a GPU if there is one (--recipe, --device)
python -m full_ijepa.bench masks   uneven contexts: cut, pad or group
python -m full_ijepa.bench read    pictures a second from JPEG files, beside the bare decoder, and cores that GPUs need
                                   (--side 224 --count 1000: files of about 100 kB)
python -m full_ijepa.bench gpu     all that one GPU can say within a few minutes (full_ijepa/gpu.py)

Candidates take turns, so that a busy machine slows them alike: read the ratios.
"""

# Shape legend:  B images  h,w grid  N patches  K context patches  D width

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from full_ijepa import cost, gpu, masking
from full_ijepa.distributed import leave, world
from full_ijepa.order import Micro
from full_ijepa.recipes import RECIPES
from full_ijepa.recipes.base import Recipe
from full_ijepa.shards import Shards, places
from full_ijepa.streams import Files, Resident, Stream
from full_ijepa.train import WATCHED, Trainer
from full_ijepa.vit import SIZES
from toy_ijepa import bench as toy
from toy_ijepa.decoding import DataError, read_array
from toy_ijepa.encoder import Encoder, gather_tokens
from toy_ijepa.masking import multiblock
from toy_ijepa.recipe import Size

VITB16 = toy.Setup(4, 224, 16, Size(*SIZES["b"], predictor_width=384, predictor_depth=6, predictor_heads=12))
SMALL = 64  # px: beyond, pictures are larger than what the encoder sees, and cropped by workers
STEPS = (
    "ours fp32",
    "ours bf16",
    "ours fp32, joint predictor",
    "ours bf16, joint predictor",
    "lightly fp32",
    "lightly bf16",
)


def step(rounds: int) -> dict:
    """The ViT-B/16 step of batch 4: prints the table, returns the figures."""
    found = toy.measure(toy.available(list(STEPS)), rounds, VITB16, ["full_ijepa.bench"])
    print(f"ViT-B/16, 224 px, batch {VITB16.batch}, {torch.get_num_threads()} threads")
    print(toy.report(found, {64: toy.mask_time(64)}))
    return found


def train(rounds: int, recipe: Recipe, device: str = "auto") -> dict:
    """The step of a recipe as `pretrain` takes it, on made pictures in memory: speed and share of the matmul rate.

    A third of the rounds, at least three, go before the clock starts: the compiler and caches have their turn then.
    """
    with world(device) as here:
        kind = here.device.type
        images = torch.randint(0, 256, (2 * WATCHED, 3, *recipe.sides), dtype=torch.uint8)
        trainer = Trainer(recipe, here, Resident(images, here.device))
        first = max(rounds // 3, 3)
        batches = trainer.batches(0, first + rounds)
        seconds = []
        for number in range(first + rounds):
            if number == first and kind == "cuda":
                torch.cuda.reset_peak_memory_stats()
            begun = time.perf_counter()
            loss, *_ = trainer.take_step(batches)
            loss.item()  # waits for a GPU
            seconds.append(time.perf_counter() - begun)
        peak = torch.cuda.max_memory_allocated() / 2**20 if kind == "cuda" else toy.high_water_mark()
        rate = here.size * toy.matmul_rate(trainer.dtype, 8192 if kind == "cuda" else 2048, kind)
    speed = recipe.batch / median(seconds[first:])
    flops = cost.flops_per_image(recipe)
    found = dict(
        device=torch.cuda.get_device_name() if kind == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        precision=str(trainer.dtype).removeprefix("torch."),
        batch=recipe.batch,
        micro_batch=recipe.micro_batch,
        images_per_second=speed,
        share_of_matmul_rate=speed * flops.model / rate,
        share_with_recomputation=speed * flops.hardware / rate,
        matmul_tflops=rate / 1e12,
        peak_mib=peak,
    )
    if here.leads:
        print(f"{recipe.method}, ViT-{recipe.encoder}/{recipe.patch}, {recipe.image_size} px, batch {recipe.batch}")
        for name, value in found.items():
            print(f"{name:24}{value if isinstance(value, str) else f'{value:.4g}'}")
    return found


class Padded:
    """Contexts filled up to the longest of the batch, with an attention mask (True: take part)."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def __call__(self, images: Tensor, context: Tensor) -> Tensor:
        there = context != masking.NOTHING
        x = gather_tokens(self.encoder.embed(images), context.clamp_min(0))  #     (B, K, D)
        mask = there[:, None, None, :]
        for block in self.encoder.blocks:
            q, k, v = block.attn.split(block.norm1(x))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + block.attn.proj(y.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
        return self.encoder.norm(x)[there]  #                                     (all real tokens, D)


def masks(rounds: int, batch: int = 64) -> dict:
    """Context encoder forward and backward under each way of handling contexts of different sizes."""
    torch.manual_seed(0)
    encoder, generator = Encoder(112, 8, 192, 6, 3), torch.Generator().manual_seed(0)
    images, padded = torch.randn(batch, 3, 112, 112), Padded(encoder)

    def run(parts: list[tuple[Tensor, Tensor]], through: Callable) -> float:
        begun = time.perf_counter()
        sum(through(images[rows], context).square().mean() for rows, context in parts).backward()
        return time.perf_counter() - begun

    everything = torch.arange(batch)
    ways: dict[str, tuple[int, Callable]] = {"cut to the smallest": (1, encoder), "2 groups": (2, encoder)}
    ways |= {"4 groups": (4, encoder), "8 groups": (8, encoder), "pad to the largest": (0, padded)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    kept: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        full = multiblock(batch, encoder.grid, generator=generator, pick=masking.keep_all)
        total = int((full.context != masking.NOTHING).sum())
        for name, (groups, through) in ways.items():
            found = masking.grouped(full, groups) if groups else [(everything, full)]
            parts = [(rows, drawn.context) for rows, drawn in found]
            seconds[name].append(run(parts, through))
            kept[name].append(sum(int((c != masking.NOTHING).sum()) for _, c in parts) / total)
    base = median(seconds["cut to the smallest"])
    result = {name: dict(kept=sum(kept[name]) / rounds, seconds=median(times)) for name, times in seconds.items()}
    print(f"context encoder 192 x 6, 14 x 14 patches, batch {batch}, forward and backward")
    print(f"{'':24}{'context kept':>14}{'time':>8}{'time a kept patch':>20}")
    for name, row in result.items():
        ratio = row["seconds"] / base
        each = ratio / (row["kept"] / result["cut to the smallest"]["kept"])
        row["time_ratio"], row["time_a_patch_ratio"] = ratio, each
        print(f"{name:24}{row['kept']:14.0%}{ratio:8.2f}{each:20.2f}")
    return result


def read(rounds: int, side: int = 64, count: int = 20_000, workers: int = 2) -> dict:
    """Pictures a second from JPEG files: into memory once, and streamed through workers, beside bare decoders.

    Then pictures a second of processor time (which a busy machine does not change much), file by file and out of
    shards, and how many cores that makes for GPUs.
    side  what the encoder sees; files are of this side up to 64 px, and photographs of about 100 kB beyond
    """
    from concurrent.futures import ProcessPoolExecutor

    from full_ijepa.pack import pack
    from toy_ijepa import folders

    as_it_is = partial(read_array, image_size=None)
    recipe = Recipe(image_size=side, patch=8, workers=workers, batch=100, micro_batch=100)
    torch.set_num_threads(1)  # of this process, so that idle threads do not take the workers' cores
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(workers) as pool:
        paths = draw_files(Path(folder) / "files", count, side)
        size = sum(path.stat().st_size for path in paths) / count
        chunks = [paths[i::workers] for i in range(workers)]
        micros = [Micro(tuple(range(i, min(i + 100, count))), i) for i in range(0, count, 100)]
        whole, cropped = (Stream(paths, torch.device("cpu"), whole) for whole in (True, False))
        ways: dict[str, Callable[[], object]] = {
            "bare decoder (Pillow)": lambda: list(pool.map(bare_pillow, chunks)),
            "bare decoder (torchvision)": lambda: list(pool.map(bare_torchvision, chunks)),
            "into memory": lambda: folders.decode([(path, "") for path in paths], (), as_it_is),
            "streamed, whole": lambda: [len(images) for images, _ in whole.pictures(micros, recipe)],
            "streamed, cropped": lambda: [len(images) for images, _ in cropped.batches(micros, recipe)],
        }
        if side > SMALL:  # cropped by the workers in any case, and too large for memory
            del ways["into memory"], ways["streamed, whole"]
        ways["bare decoder (torchvision)"]()  # processes are started and modules imported before the clock is
        speeds = paces(ways, rounds, count, time.perf_counter)
        pack(Path(folder) / "files", Path(folder) / "shards")
        files = Files(Shards(places(f"shards:{folder}/shards")), recipe)
        inside = [Micro(tuple(i % len(files.pictures) for i in micro.index), micro.seed) for micro in micros]
        alone = {
            "decoded": lambda: bare_torchvision(paths),
            "decoded and cropped": lambda: [len(cropped_of(Files(paths, recipe), micro)) for micro in micros],
            "the same out of shards": lambda: [len(cropped_of(files, micro)) for micro in inside],
        }
        cores = paces(alone, rounds, count, time.process_time)
    print(f"{count} JPEG files of {size / 1e3:.0f} kB, {workers} processes or threads: pictures a second")
    for name, speed in speeds.items():
        print(f"{name:28}{speed:10.0f}{speed / speeds['bare decoder (Pillow)']:8.2f} x Pillow")
    print("pictures a second of one core's time, and cores for each 1,000 images/s, of one GPU and of eight")
    for name, speed in cores.items():
        print(f"{name:28}{speed:10.0f}{1000 / speed:8.1f}{8000 / speed:8.1f}")
    return dict(side=side, file_bytes=size, workers=workers, images_per_second=speeds, images_per_core_second=cores)


def paces(
    ways: dict[str, Callable[[], object]], rounds: int, count: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Pictures a second of each way, the median of rounds in which they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = clock()
            way()
            seconds[name].append(clock() - begun)
    return {name: count / median(times) for name, times in seconds.items()}


def cropped_of(files: Files, micro: Micro) -> Tensor:
    """A micro-batch as a worker makes it. Raises DataError if a picture cannot be read."""
    found = files[micro]
    if found.bad:
        raise DataError(f"{found.bad[0][0]}: {found.bad[0][1]}")
    return found.images


def draw_files(folder: Path, count: int, side: int) -> list[Path]:
    """JPEG files with something in them: squares of `side` px, or beyond SMALL pictures of about 0.5 bytes a pixel."""
    random, paths = np.random.default_rng(0), []
    size = (side, side) if side <= SMALL else (round(side * 2.25), round(side * 1.7))  # of 224 px: 504 x 381
    grain = random.normal(0, 19, (size[1], size[0], 3))
    folder.mkdir()
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        picture = coarse.resize(size, Image.Resampling.BICUBIC)
        if side > SMALL:
            picture = Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))
        path = folder / f"{number:05}.jpg"
        picture.save(path, quality=90)
        paths.append(path)
    return paths


def bare_pillow(paths: list[Path]) -> None:
    """Bytes to RGB pixels, nothing else."""
    for path in paths:
        np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))


def bare_torchvision(paths: list[Path]) -> None:
    """Bytes to RGB pixels, nothing else."""
    from torchvision.io import decode_jpeg

    for path in paths:
        decode_jpeg(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8))


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m full_ijepa.bench", description=__doc__.splitlines()[0])
    p.add_argument("what", nargs="?", choices=("step", "train", "masks", "read", "gpu"), default="step")
    p.add_argument("--recipe", choices=RECIPES, default="stl10_vitb16", help="for train and gpu (default %(default)s)")
    p.add_argument("--large", choices=RECIPES, default="imagenet_vith14", help="for gpu: whose memory is asked for")
    p.add_argument("--minutes", type=float, default=8.0, help="for gpu: questions that do not fit are named")
    p.add_argument(
        "--micro-batch", type=int, help="for train and gpu: images held at a time, and its batch (gpu: 64, and 256)"
    )
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="for train and gpu")
    p.add_argument("--side", type=int, default=SMALL, help="for read: px that the encoder sees (default %(default)s)")
    p.add_argument("--count", type=int, default=20_000, help="for read: files (default %(default)s)")
    p.add_argument("--workers", type=int, default=2, help="for read: processes (default %(default)s)")
    p.add_argument("--rounds", type=int, default=8, help="turns of each candidate (default %(default)s)")
    p.add_argument("--out", type=Path, help="write the figures as JSON (gpu: bench-gpu.json)")
    p.add_argument("--memory-of", choices=toy.CANDIDATES, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.memory_of:
        toy.memory_of(args.memory_of, VITB16)
        return 0
    command = shlex.join(["python", "-m", "full_ijepa.bench", *sys.argv[1:]])
    if args.what == "gpu":
        args.micro_batch, args.out = args.micro_batch or 64, args.out or Path("bench-gpu.json")

    def keep(found: dict) -> None:
        if args.out and os.environ.get("RANK", "0") == "0":
            kernels = torch.backends.cpu.get_cpu_capability()
            about = dict(command=command, threads=torch.get_num_threads(), kernels=kernels)
            args.out.write_text(json.dumps(about | found, indent=2) + "\n")

    recipe = RECIPES[args.recipe]
    if args.micro_batch:
        recipe = recipe.replace(batch=args.micro_batch, micro_batch=args.micro_batch)
    if args.what == "gpu":
        with world(args.device) as here:
            found = gpu.ask(args.minutes, recipe, RECIPES[args.large], here, keep)
        print(gpu.told(found))
    elif args.what == "train":
        found = train(args.rounds, recipe, args.device)
    elif args.what == "read":
        found = read(args.rounds, args.side, args.count, args.workers)
    else:
        found = {"step": step, "masks": masks}[args.what](args.rounds)
    keep(found)
    return 0


if __name__ == "__main__":
    leave(main)
