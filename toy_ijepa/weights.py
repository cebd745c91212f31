"""Weights on disk as safetensors: numbers and a description, never code."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from toy_ijepa.encoder import Encoder


def save(module: nn.Module, path: Path, about: dict) -> None:
    """Write a module's weights and `about` (anything JSON can hold), in one piece or not at all.

    Raises OSError (no space, no permission); a file that stood there before is then still whole.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        # Cloned: an encoder that is its own target stands under two names, and safetensors refuses shared memory.
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
        save_file(tensors, part, metadata={"about": json.dumps(about)})
        part.replace(path)
    except SafetensorError as error:
        raise OSError(f"could not write {path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors by name, and what was said about them; no code is run.

    Raises FileNotFoundError, or ValueError if the file is not one of ours.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights file {path}")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a weights file of this project ({error}); expected safetensors written by `toy_ijepa`"
        ) from error


def save_encoder(encoder: Encoder, path: Path, about: dict | None = None) -> None:
    """Write an encoder with what is needed to build it again."""
    save(encoder, path, {**(about or {}), "encoder": encoder.config})


def load_encoder(path: Path) -> Encoder:
    """The encoder that `save_encoder` wrote, ready to use. Raises as `read`, or ValueError if the parts do not fit."""
    tensors, about = read(path)
    if "encoder" not in about:
        raise ValueError(f"{path} does not say how to build its encoder")
    config = dict(about["encoder"])
    if isinstance(config["image_size"], list):  # JSON has no tuples
        config["image_size"] = tuple(config["image_size"])
    encoder = Encoder(**config)
    try:
        encoder.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the encoder it describes: {error}") from error
    return encoder.eval()
