from __future__ import annotations

import importlib
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
from PIL import Image

from tests.toy.test_folders import paint
from toy_ijepa import decoding, environment
from toy_ijepa.environment import MachineError


def test_every_kind_of_picture_becomes_rgb(tmp_path):
    root = tmp_path / "kinds"
    paint(root / "a_grey.png", (77, 77, 77), mode="L")
    paint(root / "b_cmyk.jpg", (77, 77, 77), mode="CMYK")
    Image.new("RGB", (8, 8), (77, 77, 77)).quantize(2).save(root / "c_palette.gif")
    Image.fromarray(np.full((8, 8), 77 * 257, dtype=np.uint16)).save(root / "d_16bit.png")
    frames = [Image.new("RGB", (8, 8), (v, v, v)) for v in (77, 200)]
    frames[0].save(root / "e_animated.gif", save_all=True, append_images=frames[1:])
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(root / "f_transparent.png")
    files = sorted(root.iterdir())
    for path in files[:-1]:
        array = decoding.read_array(path, None)
        assert array.shape == (3, 8, 8), path.name
        assert np.abs(array.astype(int) - 77).max() <= 3, f"{path.name}: {array[:, 0, 0]}"
    assert decoding.read_array(files[-1], None).min() == 255  # transparency lies on white


def test_dark_16_bit_stays_dark_and_floats_are_shares(tmp_path):
    Image.fromarray(np.full((4, 4), 255, dtype=np.uint16)).save(tmp_path / "dark.png")
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "half.tiff")
    assert decoding.read_array(tmp_path / "dark.png", None).max() == 1
    assert decoding.read_array(tmp_path / "half.tiff", None).min() == 128


def test_rotated_picture_is_turned_upright(tmp_path):
    picture = Image.new("RGB", (8, 4))
    picture.paste((255, 255, 255), (0, 0, 4, 4))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to view"
    picture.save(tmp_path / "turned.png", exif=exif)
    array = decoding.read_array(tmp_path / "turned.png", None)
    assert array.shape == (3, 8, 4)
    assert array[:, :4].min() == 255  # top half white now
    assert array[:, 4:].max() == 0


def test_the_fast_way_through_jpeg_gives_the_same_pixels(tmp_path):
    """Colour, grey, progressive, coarse colours, turned, CMYK, and a PNG that calls itself JPEG; H != W, both odd."""
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((35, 21))
    turned = Image.Exif()
    turned[0x0112] = 8
    kinds = dict(plain={}, fine=dict(subsampling=0), progressive=dict(progressive=True), turned=dict(exif=turned))
    for name, options in kinds.items():
        picture.save(tmp_path / f"{name}.jpg", **options)
    picture.convert("L").save(tmp_path / "grey.jpeg")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.save(tmp_path / "disguised.jpg", format="PNG")
    fast = {p.stem for p in sorted(tmp_path.iterdir()) if decoding.read_jpeg(p) is not None}
    assert fast == {*kinds, "grey"}
    for path in tmp_path.iterdir():
        slow = np.asarray(decoding.read_picture(path)).transpose(2, 0, 1)
        assert slow.shape == ((3, 35, 21) if path.stem == "turned" else (3, 21, 35))
        assert np.array_equal(decoding.read_pixels(path), slow), path.name


def test_a_header_that_promises_too_much_is_refused_before_memory_is_asked_for(tmp_path, monkeypatch):
    """A JPEG of some hundred bytes that says it is 60,000 x 50,000 px: torchvision would fill 9 GB with grey."""
    paint(tmp_path / "bomb.jpg", size=(64, 48))
    data = bytearray((tmp_path / "bomb.jpg").read_bytes())
    place = data.index(b"\xff\xc0") + 5
    assert decoding.jpeg_area(data) == 64 * 48
    data[place : place + 4] = (60_000).to_bytes(2) + (50_000).to_bytes(2)
    (tmp_path / "bomb.jpg").write_bytes(data)
    assert decoding.jpeg_area(data) == 3_000_000_000
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "jpeg_decoder", lambda: lambda data: pytest.fail("decoded"))
        assert decoding.read_jpeg(tmp_path / "bomb.jpg") is None
    told = decoding.read_array(tmp_path / "bomb.jpg", 32)
    assert told.startswith(f"{tmp_path / 'bomb.jpg'}: ")
    assert "decompression bomb" in told


def test_a_jpeg_whose_size_is_not_found_is_read_the_slow_way(tmp_path):
    """Padding between segments is allowed; cut anywhere, the search still ends."""
    paint(tmp_path / "padded.jpg", size=(24, 16))
    data = (tmp_path / "padded.jpg").read_bytes()
    whole = decoding.read_pixels(tmp_path / "padded.jpg")
    (tmp_path / "padded.jpg").write_bytes(data[:2] + b"\xff\xff" + data[2:])
    assert decoding.read_jpeg(tmp_path / "padded.jpg") is None
    assert np.array_equal(decoding.read_pixels(tmp_path / "padded.jpg"), whole)
    assert {decoding.jpeg_area(data[:end]) for end in range(len(data))} == {0, 24 * 16}


def test_a_known_picture_is_read_and_wrong_colours_are_noticed(monkeypatch):
    decoding.check_decoders()
    right = decoding.jpeg_decoder()
    monkeypatch.setattr(decoding, "jpeg_decoder", lambda: lambda data: right(data).flip(0))
    with pytest.raises(MachineError, match="wrong colours"):
        decoding.check_decoders()


def test_the_file_is_blamed_for_its_own_faults_only(tmp_path):
    for error in (
        FileNotFoundError(2, "No such file"),
        PermissionError(13, "no"),
        ValueError("broken"),
        OSError("cut"),
    ):
        assert decoding.blame(tmp_path / "a.jpg", error).startswith(f"{tmp_path / 'a.jpg'}: ")
    for error in (OSError(24, "Too many open files"), MemoryError(), ModuleNotFoundError("torchvision")):
        with pytest.raises(MachineError, match=r"a\.jpg"):
            decoding.blame(tmp_path / "a.jpg", error)


def test_versions_that_do_not_fit_are_told_with_the_remedy(monkeypatch):
    environment.check_versions()
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.0.1" if name == "torch" else version(name))
    with pytest.raises(
        MachineError, match=r'torch 2\.0\.1 is installed.*pip install .*"torch==[\d.]+" "torchvision=='
    ) as e:
        environment.check_versions()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("package", ["toy_ijepa", "full_ijepa"])
def test_both_command_lines_check_at_the_start(package, monkeypatch, capsys):
    main = importlib.import_module(f"{package}.__main__").main
    monkeypatch.setattr(sys, "argv", ["run", *(["doctor", "nowhere"] if package == "full_ijepa" else [])])
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.0.1" if name == "torch" else version(name))
    assert main() == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: torchvision ")
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_a_missing_package_is_told(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(MachineError, match="torch is not installed: pip install"):
        environment.check_versions()


BROKEN = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
sys.meta_path.insert(0, Broken())
from toy_ijepa.data import load
load(sys.argv[1])
"""


@pytest.mark.parametrize("name", ["folder:p", "cifar10"])
def test_a_torchvision_that_does_not_fit_is_not_a_broken_picture(name, tmp_path, monkeypatch):
    """The case seen: its compiled operators are missing, which every JPEG or every download would be blamed for."""
    monkeypatch.chdir(tmp_path)
    for i in range(10):
        paint(tmp_path / "p" / f"{i}.jpg")
    line = [sys.executable, "-c", BROKEN, name]
    done = subprocess.run(line, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "MachineError: torchvision" in last
    assert "operator torchvision::nms does not exist" in last
    assert "pip install" in last
    assert not list((tmp_path / "cache").rglob("*"))
