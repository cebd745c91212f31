"""An encoder as a graph that runs without this package: ONNX, or torch.export's program.

The graph takes pictures as they stand in their files, scaled to the encoder's size and converted to float: channels,
range, mean and std are inside, so that nobody can prepare them wrongly. What was written is run and compared at once.
"""

# Shape legend:  B pictures, any number  C channels  H,W pixels  N tokens  D width

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from full_ijepa.interop import InteropError
from full_ijepa.vit import Encoder

CLOSE = 1e-4  # largest difference from torch that is put down to another order of sums


class Graph(nn.Module):
    """Pictures (B, C, H, W), float32 in the units of their files -> pooled features (B, D) and tokens (B, N, D)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.encoder(self.encoder.pixels.normalise(pictures))
        return tokens.mean(1), tokens


def example(encoder: Encoder, batch: int, seed: int = 0) -> Tensor:
    """Noise with the mean and std that the encoder knows: (B, C, H, W) in the units of files."""
    p, (h, w) = encoder.pixels, encoder.grid
    noise = torch.randn(batch, p.channels, h * encoder.patch, w * encoder.patch, generator=torch.manual_seed(seed))
    return torch.tensor(p.std)[:, None, None] * noise + torch.tensor(p.mean)[:, None, None]


def program_of(encoder: Encoder) -> torch.export.ExportedProgram:
    """The encoder's graph for any number of pictures."""
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    return torch.export.export(Graph(encoder.cpu().eval()), (example(encoder, 2),), dynamic_shapes=shapes)


@torch.no_grad()
def write_program(encoder: Encoder, path: Path) -> None:
    """Write a .pt2 file for torch.export.load, checked on another batch. Raises InteropError if it differs."""
    torch.export.save(program_of(encoder), path)
    x = example(encoder, 3, seed=1)
    check(path, Graph(encoder)(x), torch.export.load(path).module()(x))


@torch.no_grad()
def write_onnx(encoder: Encoder, path: Path) -> None:
    """Write a .onnx file (input `pictures`, outputs `features` and `tokens`), checked with onnxruntime.

    Raises InteropError if a package is missing or the outputs differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise InteropError(f"ONNX needs two more packages ({error}): pip install onnxscript onnxruntime") from error
    names = dict(input_names=["pictures"], output_names=["features", "tokens"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own future
        torch.onnx.export(program_of(encoder), (), path, **names, dynamo=True, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = example(encoder, 3, seed=1)
    check(path, Graph(encoder)(x), [torch.from_numpy(y) for y in session.run(None, {"pictures": x.numpy()})])


def check(path: Path, ours: tuple[Tensor, ...], theirs: list[Tensor] | tuple[Tensor, ...]) -> None:
    """Raise InteropError, and remove the file, if what was written gives other features."""
    off = max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))
    if not off <= CLOSE:
        path.unlink(missing_ok=True)
        raise InteropError(f"the exported graph differs from torch by {off:.2g}; {path} was not kept")
