"""Features in three lines: any encoder that was written anywhere, any pictures, and what lies near what.

encoder = load_encoder("runs/ijepa")
found = embed(encoder, "my/pictures")
found.values, found.names
"""

# Shape legend:  S pictures  B pictures of a batch  C channels  H,W pixels  h,w grid  N = h*w tokens  D width

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from full_ijepa import interop
from full_ijepa.data import opened
from full_ijepa.evaluate.run import load_run
from full_ijepa.formats import SUFFIXES, Place, Places
from full_ijepa.machine import pick
from full_ijepa.pixels import compare, compare_measured, fit
from full_ijepa.recipes.base import Recipe
from full_ijepa.vit import Encoder, fingerprint
from toy_ijepa import plots, weights
from toy_ijepa.folders import DataError, check_skipped, files_below
from toy_ijepa.patches import grid_size
from toy_ijepa.widgets.drawing import heat, outline, panels

COMPARED = 500  # pictures whose values are compared with those of the training
AHEAD = 4  # batches of pictures that are decoded while one is encoded


@dataclass(frozen=True)
class Features:
    """What an encoder makes of pictures.

    values   float32 on the CPU: pooled (S, D), or tokens (S, N, D), row by row of the grid
    names    (S,), a file each; numbers for pictures that came as an array
    skipped  files that could not be read, with the reason
    encoder  `fingerprint` of who made them; "" where that is not known
    """

    values: Tensor
    names: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    encoder: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def write(self, path: Path | str) -> None:
        """Write .npz (arrays `values`, `names`) or .parquet (columns `name`, `values`), whole or not at all.

        Raises ValueError for another suffix.
        """
        path = writable(path)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            if path.suffix == ".npz":
                with part.open("wb") as file:
                    names = np.array(self.names, dtype=np.str_)
                    np.savez(file, values=self.values.numpy(), names=names, encoder=np.str_(self.encoder))
            else:
                self.write_parquet(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def write_parquet(self, path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        size = self.values[0].numel() if len(self) else 1
        flat = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(self.values.flatten().numpy()), size)
        shape = "x".join(map(str, self.values.shape[1:]))
        names = [as_text(name) for name in self.names]
        about = {"shape": shape, "encoder": self.encoder}
        table = pyarrow.table({"name": names, "values": flat}, metadata=about)
        parquet.write_table(table, path)

    @classmethod
    def read(cls, path: Path | str) -> Features:
        """What `write` wrote; no code is run. Raises ValueError if it is no such file."""
        path = Path(path)
        try:
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as file:
                    encoder = str(file["encoder"]) if "encoder" in file else ""
                    return cls(torch.from_numpy(file["values"]), tuple(file["names"].tolist()), encoder=encoder)
            from pyarrow import parquet

            table = parquet.read_table(path)
            said = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
            shape = tuple(map(int, said["shape"].split("x")))
            values = table.column("values").combine_chunks().flatten().to_numpy(zero_copy_only=False).copy()
            names = tuple(table.column("name").to_pylist())
            return cls(torch.from_numpy(values).reshape(-1, *shape), names, encoder=said.get("encoder", ""))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no features ({error}); expected a file that `embed` wrote") from error

    def nearest(self, queries: Tensor | Features, count: int = 5) -> list[list[tuple[str, float]]]:
        """For each query (S, D): the names of the `count` nearest pictures and their cosines, best first.

        Features are centred on the mean of those that are searched: without that every cosine is close to 1.
        Queries may be Features, too. Raises ValueError if there are not so many, features are not pooled, or queries
        are another encoder's.
        """
        if isinstance(queries, Features):
            if self.encoder and queries.encoder and self.encoder != queries.encoder:
                raise ValueError(
                    f"encoder {self.encoder} made what is searched, encoder {queries.encoder} the queries: numbers of "
                    "two encoders, or of one before and after more training, do not compare; embed both with one"
                )
            queries = queries.values
        if self.values.dim() != 2 or queries.shape[1:] != self.values.shape[1:]:
            raise ValueError(f"queries {tuple(queries.shape)} do not fit features {tuple(self.values.shape)}")
        if not 1 <= count <= len(self):
            raise ValueError(f"{count} neighbours asked of {len(self)} pictures")
        mean = self.values.mean(0)
        bank, asked = (F.normalize(x.float() - mean, dim=1) for x in (self.values, queries))
        found = []
        for part in asked.split(1000):
            cosine, index = (part @ bank.T).topk(count, dim=1)
            rows = zip(index.tolist(), cosine.tolist(), strict=True)
            found += [[(self.names[i], c) for i, c in zip(*row, strict=True)] for row in rows]
        return found


def as_text(name: str) -> str:
    """A file's name as UTF-8, which names on old disks need not be: what is not becomes a question mark."""
    return os.fsencode(name).decode(errors="replace")


def writable(path: Path | str) -> Path:
    """Where features can be written; its folder is made. Raises ValueError for another suffix than the two known."""
    path = Path(path).expanduser()
    if path.suffix not in (".npz", ".parquet"):
        raise ValueError(f"features are written to .npz or .parquet, not {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def load_encoder(source: Path | str, encoder: str = "target") -> Encoder:
    """The encoder of a run, an exported Hugging Face folder, a released checkpoint or a file of the toy, ready to use.

    source   the --out of a pretrain, a folder with config.json, a .pth file as released, or .safetensors of the toy
    encoder  "target" (whose scores are published) or "context", where there are two
    Raises ValueError (CheckpointError, InteropError among its kinds) if it is none of these.
    """
    source = Path(source).expanduser()
    if encoder not in ("target", "context"):
        raise ValueError(f"unknown encoder {encoder!r}: choose 'target' or 'context'")
    if (source / "config.json").is_file():
        return interop.read_huggingface(source)
    if source.is_dir():
        _, method, _ = load_run(source)
        return method.probed if encoder == "target" else method.encoder
    if source.suffix == ".safetensors":
        toy = weights.load_encoder(source)
        found = Encoder(**toy.config)
        found.load_state_dict(toy.state_dict())
        return found.eval()
    return interop.released_encoder(source, "target_encoder" if encoder == "target" else "encoder")


def files_of(pictures: Path | str | Sequence[Path | str]) -> tuple[Sequence[Path | Place], list[str]]:
    """Files of a folder or of a list, and how they are called: below the folder, or as they were given.

    Of "shards:..." and "hf:..." the places of their pictures, and where they lie.
    """
    if isinstance(pictures, str) and pictures.startswith(("shards:", "hf:")):
        found = opened(Recipe(data=pictures, shards_together=1))
        return Places(found), [found.name(n) for n in range(len(found))]
    if isinstance(pictures, Path | str):
        root = Path(str(pictures).removeprefix("folder:")).expanduser()
        if root.is_file():
            return [root], [root.name]
        if not root.is_dir():
            raise DataError(f"no folder {root.absolute()}")
        paths = [path for path, _ in files_below(root, SUFFIXES)]
        if not paths:
            raise DataError(f"no pictures in {root}: expected {', '.join(SUFFIXES)}")
        return paths, [str(path.relative_to(root)) for path in paths]
    return [Path(path).expanduser() for path in pictures], [str(path) for path in pictures]


def array_of(pictures: np.ndarray | Tensor, encoder: Encoder) -> Tensor:
    """Pictures (S, C, H, W), or (S, H, W, C), in the units of the files.

    Raises ValueError for another shape, for numbers that are not finite, and for those of other files: 0 to 1 where
    the encoder knows 0 to 255, or 8 bit where it knows 16. Warns of other values than those of the training.
    """
    found, pixels = torch.as_tensor(pictures), encoder.pixels
    C, depth = pixels.channels, str(found.dtype).removeprefix("torch.")
    if found.dim() == 4 and found.shape[1] != C and found.shape[3] == C:
        found = found.permute(0, 3, 1, 2)
    if found.dim() != 4 or found.shape[1] != C:
        raise ValueError(f"pictures of shape {tuple(found.shape)}; the encoder expects (S, {C}, H, W)")
    if not len(found):
        return found
    if found.is_floating_point():
        low, high = found.amin().item(), found.amax().item()
        if not math.isfinite(low + high):
            raise ValueError("some numbers of these pictures are not finite")
        if pixels.depth != "float32" and (high <= 1 or (low < 0 and high < 10)):
            raise ValueError(
                f"numbers from {low:g} to {high:g}: the encoder takes pictures as their files have them, "
                f"{pixels.depth}; undo what was scaled (for 0 to 1: times {255 if pixels.depth == 'uint8' else 65535})"
            )
    elif depth != pixels.depth:
        raise ValueError(f"pictures of {depth}; the encoder knows {pixels.depth}, whose numbers mean something else")
    if not pixels.photographs:
        some = found[:: -(-len(found) // COMPARED)].float()
        mean, std = some.mean((0, 2, 3)), some.std((0, 2, 3)).clamp_min(1e-6)
        compare_measured(replace(pixels, mean=tuple(mean.tolist()), std=tuple(std.tolist())), pixels)
    return found


def read_batches(
    paths: Sequence[Path | Place], names: list[str], encoder: Encoder, batch: int, skipped: list[str], allow: bool
) -> Iterator[tuple[Tensor, list[str]]]:
    """Pictures of files at the encoder's size, a batch at a time, decoded ahead; what is broken is named.

    Raises DataError as soon as more is broken than one in twenty of all, unless that is allowed: not after hours.
    """
    read = partial(encoder.pixels.read_fitted, sides=sides_of(encoder))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = [slice(start, start + batch) for start in range(0, len(paths), batch)]
        some = lambda part: [read(paths[number]) for number in range(len(paths))[part]]  # noqa: E731
        waiting = [pool.submit(some, part) for part in parts[:AHEAD]]
        for number, part in enumerate(parts):
            if number + AHEAD < len(parts):
                waiting.append(pool.submit(some, parts[number + AHEAD]))
            arrays = waiting.pop(0).result()
            skipped += [a for a in arrays if isinstance(a, str)]
            check_skipped(skipped, len(paths), allow)
            good = [(a, name) for a, name in zip(arrays, names[part], strict=True) if not isinstance(a, str)]
            if good:
                yield torch.from_numpy(np.stack([a for a, _ in good])), [name for _, name in good]


def sides_of(encoder: Encoder) -> tuple[int, int]:
    return tuple(n * encoder.patch for n in encoder.grid)


@torch.no_grad()
def embed(
    encoder: Encoder | Path | str,
    pictures: Path | str | Sequence[Path | str] | np.ndarray | Tensor,
    *,
    tokens: bool = False,
    batch: int = 64,
    device: str = "auto",
    progress: bool = True,
    allow_skipped: bool = False,
) -> Features:
    """Features of pictures, prepared as the encoder was trained: scaled to its size, the middle cut out, normalised.

    encoder        of `load_encoder`, or what that takes
    pictures       a folder, a file, a list of files, "shards:..." or "hf:..." as recipes take them, or an array
                   (S, C, H, W) in the units of the files
    tokens         all tokens (S, N, D) instead of their average (S, D)
    allow_skipped  go on although more than one in twenty of the files cannot be read
    device         as full_ijepa.machine.pick takes it
    Raises DataError (a ValueError) if there are no pictures or too many cannot be read, ValueError for a device.
    """
    where = torch.device(pick(device))
    encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    encoder = encoder.to(where).eval()
    skipped: list[str] = []
    if isinstance(pictures, np.ndarray | Tensor):
        images = array_of(pictures, encoder)
        count = len(images)
        batches = ((part, None) for part in images.split(batch))
    else:
        paths, names = files_of(pictures)
        count = len(paths)
        if not encoder.pixels.photographs:
            with suppress(DataError):  # nothing to compare; what cannot be read is told below
                compare(paths, encoder.pixels)
        batches = read_batches(paths, names, encoder, batch, skipped, allow_skipped)
    values, named = [], []
    with tqdm(total=count, unit="picture", disable=not progress, delay=2.0, mininterval=1.0) as bar:
        for images, part in batches:
            x = encoder(encoder.pixels.normalise(fit(images, sides_of(encoder)).to(where))).float()
            values.append((x if tokens else x.mean(1)).cpu())
            named += part or [str(len(named) + n) for n in range(len(images))]
            bar.update(len(images))
    if not values:
        reason = f"none of {count} pictures could be read; the first: {skipped[0]}" if skipped else "no pictures"
        raise DataError(reason)
    return Features(torch.cat(values), tuple(named), tuple(skipped), fingerprint(encoder))


@torch.no_grad()
def maps(encoder: Encoder, picture: Tensor, picked: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Where one patch attends to in the last block (mean of heads), and how like it all are (cosine): (h, w) each.

    picture  (C, H, W) in the units of its file
    picked   row and column of the patch that asks (default: the middle)
    """
    device = next(encoder.parameters()).device
    image = fit(picture[None], sides_of(encoder)).to(device)
    h, w = grid_size(tuple(image.shape[2:]), encoder.patch)
    row, column = picked or (h // 2, w // 2)
    if not (0 <= row < h and 0 <= column < w):
        raise ValueError(f"row {row}, column {column} lies outside the {h} rows and {w} columns of patches")
    x = encoder.embed(encoder.pixels.normalise(image))
    *first, last = encoder.blocks
    for block in first:
        x = block(x)
    layer = encoder.blocks[len(encoder.blocks) - 1]
    attention = layer.attn.weights(layer.norm1(x))[0, :, row * w + column].mean(0)  #    (N,)
    tokens = encoder.norm(last(x))[0]
    tokens = F.normalize(tokens - tokens.mean(0), dim=1)
    return attention.reshape(h, w).cpu(), (tokens @ tokens[row * w + column]).reshape(h, w).cpu()


def maps_figure(encoder: Encoder, picture: Tensor, picked: tuple[int, int] | None = None) -> Figure:
    """The picture, the attention of one of its patches, and the similarity of that patch's feature with the others."""
    attention, similar = maps(encoder, picture, picked)
    row, column = picked or (encoder.grid[0] // 2, encoder.grid[1] // 2)
    figure, axes = panels(1, 3)
    seen = encoder.pixels.shown(fit(picture[None], sides_of(encoder)))[0]
    plots.show(axes[0], seen, "the patch that asks")
    outline(axes[0], (row, column, 1, 1), encoder.patch)
    heat(axes[1], 100 * attention, "attention in the last block, %", 0, 100 * attention.max().item(), "{:.1f}")
    heat(axes[2], similar, "cosine with its feature", -1, 1, "{:.1f}")
    for ax in axes[1:]:
        outline(ax, (row, column, 1, 1))
    return figure
