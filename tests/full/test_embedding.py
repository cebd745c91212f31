"""Any encoder, any pictures: the same features wherever it was loaded from, whatever the files are like."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import full_ijepa
from full_ijepa import export, interop
from full_ijepa.__main__ import main
from full_ijepa.embedding import Features, embed, load_encoder, maps, maps_figure
from full_ijepa.evaluate.run import load_run
from full_ijepa.pixels import Pixels
from full_ijepa.train import pretrain
from full_ijepa.vit import build_encoder
from toy_ijepa.decoding import DataError


def encoder_of(pixels: Pixels | None = None, image_size=16, seed: int = 3):
    """A small encoder whose features differ between pictures."""
    torch.manual_seed(seed)
    found = build_encoder("toy", image_size, 4, pixels=pixels).eval()
    for p in found.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    return found


def centred_cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of pooled features (S, D), row by row, less the mean of `a`."""
    return torch.cosine_similarity(a - a.mean(0), b - a.mean(0))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Files as people have them: wide, high, grey, small; structured, so that features of other crops differ."""
    root = tmp_path_factory.mktemp("mixed")
    random = np.random.default_rng(0)
    for number, (w, h) in enumerate(((200, 64), (64, 200), (120, 160), (160, 120), (16, 16), (33, 17))):
        coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        picture = coarse.resize((w, h), Image.Resampling.BICUBIC)
        picture.save(root / f"{number}-colour.png")
        picture.convert("L").save(root / f"{number}-grey.png")
    return root


@torch.no_grad()
def test_transformers_prepares_the_same_files_the_same_way(mixed, tmp_path):
    """What a stranger does with the export: the files as they lie on the disk, AutoImageProcessor, AutoModel."""
    transformers = pytest.importorskip("transformers")
    encoder = encoder_of()
    interop.write_huggingface(encoder, tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    found = embed(encoder, mixed, progress=False)
    assert len(found) == 12
    files = [Image.open(mixed / name) for name in found.names]
    theirs = torch.cat([model(**processor(images=f, return_tensors="pt")).last_hidden_state.mean(1) for f in files])
    assert centred_cosines(found.values, theirs).min() > 0.9999
    stretched = processor(images=files[0], size={"height": 16, "width": 16}, do_center_crop=False, return_tensors="pt")
    theirs[0] = model(**stretched).last_hidden_state.mean(1)
    assert centred_cosines(found.values, theirs)[0] < 0.9  # so the test would notice


@torch.no_grad()
@pytest.mark.parametrize("pixels", [Pixels(1, "uint16", (1200.0,), (170.0,)), Pixels(5, "uint16", (9.0,), (3.0,))])
def test_transformers_takes_deep_arrays_as_the_card_says(tmp_path, pixels):
    transformers = pytest.importorskip("transformers")
    encoder = encoder_of(pixels)
    interop.write_huggingface(encoder, tmp_path / "hf")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    model = transformers.AutoModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False)
    arrays = [export.example(encoder, 1, seed)[0].clamp(0, 65535).round() for seed in range(4)]
    (tmp_path / "files").mkdir()
    for number, array in enumerate(arrays):
        values = array.numpy().astype(np.uint16)
        tifffile.imwrite(tmp_path / "files" / f"{number}.tif", values, photometric="minisblack")
    ours = embed(encoder, tmp_path / "files", progress=False).values
    fed = processor(images=[a.numpy() for a in arrays], input_data_format="channels_first", return_tensors="pt")
    assert torch.allclose(model(**fed).last_hidden_state.mean(1), ours, atol=1e-4)
    again = interop.read_huggingface(tmp_path / "hf")
    assert again.pixels == pixels
    assert torch.allclose(embed(again, tmp_path / "files", progress=False).values, ours, atol=1e-5)
    for write, where in ((interop.write_toy, "toy.safetensors"),):
        with pytest.raises(interop.InteropError, match="knows 8-bit colour with ImageNet"):
            write(encoder, tmp_path / where)


@pytest.mark.parametrize(
    "pixels", [pytest.param(None, marks=pytest.mark.slow), Pixels(5, "uint16", (1000.0,), (200.0,))]
)
def test_graphs_run_elsewhere(tmp_path, pixels):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    encoder = encoder_of(pixels)
    export.write_onnx(encoder, tmp_path / "encoder.onnx")
    export.write_program(encoder, tmp_path / "encoder.pt2")
    session = runtime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(tmp_path / "encoder.pt2").module()
    for batch in (1, 5):
        x = export.example(encoder, batch, seed=9)
        ours = embed(encoder, x, progress=False).values
        features, tokens = session.run(None, {"pictures": x.numpy()})
        assert tokens.shape == (batch, 16, 96)
        assert np.allclose(features, ours, atol=1e-4)
        assert torch.allclose(program(x)[0], ours, atol=1e-4)


def test_a_graph_that_differs_is_not_kept(tmp_path):
    path = tmp_path / "wrong.onnx"
    path.touch()
    with pytest.raises(interop.InteropError, match="not kept"):
        export.check(path, (torch.zeros(1),), [torch.ones(1)])
    assert not path.exists()


def test_arrays_and_files_give_the_same(mixed):
    encoder = encoder_of()
    files = [mixed / "4-colour.png", mixed / "4-grey.png"]
    images = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])
    found = embed(encoder, files, progress=False)
    assert found.names == tuple(map(str, files))
    for array in (images, torch.from_numpy(images).permute(0, 3, 1, 2)):
        assert torch.allclose(embed(encoder, array, batch=1, progress=False).values, found.values, atol=1e-5)
    tokens = embed(encoder, images, tokens=True, progress=False)
    assert tokens.values.shape == (2, 16, 96)
    assert torch.allclose(tokens.values.mean(1), found.values, atol=1e-5)
    with pytest.raises(ValueError, match="expects"):
        embed(encoder, np.zeros((2, 5, 16, 16)), progress=False)


def test_broken_files_are_named_and_many_stop(mixed, tmp_path):
    encoder = encoder_of()
    for number in range(30):
        (tmp_path / f"{number:02}.png").write_bytes((mixed / "4-colour.png").read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    found = embed(encoder, tmp_path, batch=7, progress=False)
    assert len(found) == 30
    assert "broken.png" in found.skipped[0]
    (tmp_path / "loose").mkdir()  # beside files, and with a link that leads back: neither is a matter here
    (tmp_path / "loose" / "one.png").write_bytes((mixed / "4-colour.png").read_bytes())
    (tmp_path / "loose" / "back").symlink_to(tmp_path)
    assert embed(encoder, tmp_path, progress=False).names[-1] == "loose/one.png"
    for number in range(3):
        (tmp_path / f"broken-{number}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="--allow-skipped"):
        embed(encoder, tmp_path, progress=False)
    assert len(embed(encoder, tmp_path, progress=False, allow_skipped=True)) == 31
    for nowhere in (tmp_path / "none", mixed.parent / "empty"):
        (mixed.parent / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=r"no folder|no pictures"):
            embed(encoder, nowhere, progress=False)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
@pytest.mark.parametrize("shape", [(3, 7), (3, 4, 7)])
def test_features_come_back_from_disk(tmp_path, suffix, shape):
    names = ("a", "b/ü.png", "c\n.png")
    Features(torch.randn(shape, generator=torch.manual_seed(0)), names).write(tmp_path / f"x.{suffix}")
    again = Features.read(tmp_path / f"x.{suffix}")
    assert again.names == names
    assert torch.equal(again.values, torch.randn(shape, generator=torch.manual_seed(0)))
    with pytest.raises(ValueError, match=r"npz or \.parquet"):
        again.write(tmp_path / "x.csv")
    (tmp_path / f"bad.{suffix}").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no features"):
        Features.read(tmp_path / f"bad.{suffix}")


def test_neighbours_are_those_of_a_slow_search(generator):
    x = torch.randn(20, 6, generator=generator) + 5
    known = Features(x, tuple(map(str, range(20))))
    queries = torch.randn(3, 6, generator=generator) + 5
    for query, found in zip(queries, known.nearest(queries, 4), strict=True):
        cosine = [torch.cosine_similarity(row - x.mean(0), query - x.mean(0), dim=0).item() for row in x]
        assert [int(name) for name, _ in found] == sorted(range(20), key=lambda i: -cosine[i])[:4]
        assert found[0][1] == pytest.approx(max(cosine), abs=1e-5)
    assert known.nearest(x[7:8], 1)[0][0][0] == "7"
    with pytest.raises(ValueError, match="21 neighbours"):
        known.nearest(queries, 21)


def test_maps_are_those_of_the_encoder():
    encoder = encoder_of(image_size=(16, 24))
    picture = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8)
    attention, similar = maps(encoder, picture, (1, 5))
    assert attention.shape == similar.shape == (4, 6)
    assert attention.sum() == pytest.approx(1, abs=1e-5)
    assert similar[1, 5] == pytest.approx(1, abs=1e-5)
    assert similar.argmax() == 1 * 6 + 5
    assert len(maps_figure(encoder, picture, (1, 5)).axes) == 3
    with pytest.raises(ValueError, match="outside the 4 rows"):
        maps(encoder, picture, (4, 0))


def test_every_source_gives_the_same_encoder(tmp_path, recipe, pictures, capsys):
    """The command line, from a run to features and neighbours, and every export loaded back."""
    out = pretrain(recipe.replace(epochs=1.0, probe_epochs=0.0), tmp_path / "run", progress=False).out
    ours = embed(full_ijepa.load_encoder(out), pictures / "test", progress=False)
    assert load_run(out)[1].probed.pixels == full_ijepa.load_encoder(out).pixels
    for to, name in (("huggingface", "hf"), ("released", "jepa.pth"), ("toy", "toy.safetensors")):
        assert main(["export", str(out), "--to", to, "--out", str(tmp_path / name), "--license", "cc-by-4.0"]) == 0
        again = embed(load_encoder(tmp_path / name), pictures / "test", progress=False)
        assert torch.allclose(again.values, ours.values, atol=1e-4), to
        assert again.names == ours.names
    page = (tmp_path / "hf" / "README.md").read_text()
    assert "license: cc-by-4.0" in page
    assert "Not judged at this step" in page
    assert f'"batch": {recipe.batch}' in page
    assert main(["evaluate", str(out), "--protocols", "knn"]) == 0
    assert main(["export", str(out), "--out", str(tmp_path / "hf")]) == 0
    page = (tmp_path / "hf" / "README.md").read_text()
    assert re.search(r"\| accuracy in % \| kNN \|\n.*\n\| ijepa \| [\d.]+ \|\n\| random \|", page), page
    assert "Nobody has said under which licence" in page
    context = embed(load_encoder(out, "context"), pictures / "test", progress=False)
    assert not torch.allclose(context.values, ours.values, atol=1e-4)
    index = tmp_path / "features.parquet"
    assert main(["embed", str(out), str(pictures / "test"), "--out", str(index)]) == 0
    assert "60 pictures, 96 numbers each" in capsys.readouterr().out
    one = sorted((pictures / "test").rglob("*.png"))[7]
    assert main(["near", str(index), str(out), str(one), "--count", "2"]) == 0
    assert f"1.000  {one.relative_to(pictures / 'test')}" in capsys.readouterr().out
    assert main(["attend", str(out), str(one), "--out", str(tmp_path / "map.png")]) == 0
    assert Image.open(tmp_path / "map.png").size[0] > 500
    assert main(["embed", str(tmp_path / "nowhere"), str(pictures)]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_device_that_cannot_serve_is_said():
    with pytest.raises(ValueError, match=r"Apple's GPU \(mps\) is refused"):
        embed(encoder_of(), torch.zeros(2, 3, 16, 16), device="mps")


@pytest.mark.parametrize(
    ("depth", "change", "told"),
    [
        ("uint8", lambda x: x.float() / 255, "0 to 1.*times 255"),
        ("uint8", lambda x: (x.float() - 127.5) / 63.75, "as their files have them, uint8"),
        ("uint8", lambda x: x.float().index_fill(0, torch.tensor([1]), torch.nan), "not finite"),
        ("uint8", lambda x: x.long(), "pictures of int64; the encoder knows uint8"),
        ("uint16", lambda x: x, "pictures of uint8; the encoder knows uint16"),
    ],
)
def test_arrays_in_other_units_are_refused(depth, change, told):
    images = torch.randint(1, 256, (4, 3, 16, 16), dtype=torch.uint8)
    pixels = Pixels(3, depth, (900.0,), (300.0,)) if depth == "uint16" else None
    with pytest.raises(ValueError, match=told):
        embed(encoder_of(pixels), change(images), progress=False)


def test_pictures_of_another_instrument_are_warned_of(tmp_path):
    """As arrays and as files; the same values as in training are taken without a word."""
    encoder = encoder_of(Pixels(1, "uint16", (900.0,), (300.0,)))
    random = np.random.default_rng(0)
    for mean, fits in ((900, True), (30_000, False)):
        values = random.normal(mean, 300, (6, 1, 16, 16)).clip(0).astype(np.uint16)
        folder = tmp_path / str(mean)
        folder.mkdir()
        for number, picture in enumerate(values):
            tifffile.imwrite(folder / f"{number}.tif", picture[0])
        for pictures in (values, folder):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                embed(encoder, pictures, progress=False)
            assert any("other units" in str(w.message) for w in caught) != fits


def test_where_features_go_is_looked_at_first(mixed, tmp_path, capsys):
    """Before anything is read or encoded; folders are made."""
    assert main(["embed", str(tmp_path / "nothing"), str(mixed), "--out", str(tmp_path / "new" / "x.csv")]) == 2
    assert ".npz or .parquet" in capsys.readouterr().err
    embed(encoder_of(), mixed, progress=False).write(tmp_path / "new" / "x.npz")
    assert len(Features.read(tmp_path / "new" / "x.npz")) == 12


def test_an_encoder_may_be_named_and_features_asked_for(mixed, tmp_path):
    interop.write_huggingface(encoder_of(), tmp_path)
    found, again = (embed(source, mixed, progress=False) for source in (encoder_of(), str(tmp_path)))
    torch.testing.assert_close(found.values, again.values)
    assert [near[0][0] for near in found.nearest(again, 1)] == list(found.names)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_features_of_two_encoders_do_not_compare(mixed, tmp_path, suffix):
    """The file says whose they are; one of an older version, which does not, is searched as ever."""
    found, other = (embed(encoder_of(seed=seed), mixed, progress=False) for seed in (3, 4))
    found.write(tmp_path / f"x.{suffix}")
    known = Features.read(tmp_path / f"x.{suffix}")
    assert known.encoder == found.encoder != other.encoder
    with pytest.raises(ValueError, match="do not compare; embed both with one"):
        known.nearest(other)
    assert replace(known, encoder="").nearest(other, 1)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_names_of_old_disks_need_not_be_utf8(mixed, tmp_path, suffix):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / os.fsdecode(b"Gem\xe4lde.png")).write_bytes((mixed / "0-grey.png").read_bytes())
    found = embed(encoder_of(), folder, progress=False)
    found.write(tmp_path / f"x.{suffix}")
    again = Features.read(tmp_path / f"x.{suffix}")
    assert torch.equal(again.values, found.values)
    assert again.names[0].startswith("Gem")


def test_too_many_broken_files_are_told_when_they_are_seen(mixed, tmp_path, monkeypatch):
    """Not when all others have been read, or encoded."""
    for number in range(100):
        (tmp_path / f"{number:02}.png").write_bytes(b"" if 10 <= number < 90 else (mixed / "0-grey.png").read_bytes())
    encoder, asked, read = encoder_of(), [], []
    encoder.register_forward_hook(lambda *_: asked.append(1))
    read_fitted = Pixels.read_fitted
    monkeypatch.setattr(Pixels, "read_fitted", lambda *said, **more: (read.append(1), read_fitted(*said, **more))[1])
    with pytest.raises(DataError, match="6 of 100 pictures cannot be read"):
        embed(encoder, tmp_path, batch=2, progress=False)
    assert len(asked) == 5
    assert len(read) < 30
