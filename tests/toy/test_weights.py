from __future__ import annotations

import os
import pickle

import pytest
import torch

from toy_ijepa import weights
from toy_ijepa.encoder import Encoder


@pytest.fixture
def encoder(rng):
    return Encoder((8, 12), 4, 16, depth=2, heads=2)


def test_there_and_back(encoder, tmp_path):
    images = torch.randn(2, 3, 8, 12)
    weights.save_encoder(encoder, tmp_path / "e.safetensors", {"method": "ijepa"})
    again = weights.load_encoder(tmp_path / "e.safetensors")
    assert torch.equal(again(images), encoder(images))
    assert weights.read(tmp_path / "e.safetensors")[1]["method"] == "ijepa"


def test_a_file_that_is_none_of_ours_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (tmp_path / "bad.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="not a weights file"):
        weights.load_encoder(tmp_path / "bad.safetensors")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError, match="no weights file"):
        weights.load_encoder(tmp_path / "none.safetensors")


def test_weights_of_another_encoder_are_refused(encoder, tmp_path):
    weights.save(encoder, tmp_path / "e.safetensors", {"encoder": {**encoder.config, "width": 32}})
    with pytest.raises(ValueError, match="does not hold the encoder it describes"):
        weights.load_encoder(tmp_path / "e.safetensors")


def test_a_full_disk_leaves_the_old_file_whole(encoder, tmp_path, monkeypatch):
    path = tmp_path / "e.safetensors"
    weights.save_encoder(encoder, path)
    before = path.read_bytes()

    def full(_tensors, part, **_options):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        weights.save_encoder(encoder, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
