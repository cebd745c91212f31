"""From pretrain to export on the command line, as a user would; the report is one page that needs nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest
import torch

from full_ijepa.__main__ import main
from full_ijepa.checkpoint import best_of
from full_ijepa.interop import read_huggingface
from full_ijepa.recipes.base import Recipe
from full_ijepa.table import Table
from tests.full.conftest import draw_pictures
from toy_ijepa import weights
from toy_ijepa.patches import normalise

FLAGS = [
    "--image-size",
    "16",
    "--batch",
    "8",
    "--micro-batch",
    "8",
    "--epochs",
    "1",
    "--probe-epochs",
    "0",
    "--log-every",
    "2",
    "--precision",
    "fp32",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, pictures):
    """An I-JEPA and an MAE, pretrained and evaluated on the command line."""
    folder = tmp_path_factory.mktemp("runs")
    for method, loss in (("ijepa", "smooth_l1"), ("mae", "l2")):
        out = folder / method
        line = ["pretrain", "smoke", "--out", str(out), "--data", f"folder:{pictures}", "--method", method]
        assert main([*line, "--loss", loss, *FLAGS]) == 0
        assert main(["evaluate", str(out), "--protocols", "knn", "linear", "--seeds", "0", "1"]) == 0
    return folder


class Page(HTMLParser):
    """Counts what is opened and closed, and collects alt texts, addresses and words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.alts: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag not in ("img", "meta"):
            self.open.append(tag)
        if tag == "img":
            self.alts.append(found["alt"])
        self.addresses += [v for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


@pytest.mark.slow  # quick: chapter 12 writes and checks a page of two runs, the next test one of one
def test_report_is_one_page_with_everything_in_it(runs, tmp_path, capsys):
    out = tmp_path / "page" / "report.html"
    assert main(["report", "--out", str(out)]) == 2
    assert "no run" in capsys.readouterr().err
    assert main(["report", str(runs / "ijepa"), str(runs / "mae"), "--out", str(out)]) == 0
    page = Page(out.read_text())
    assert page.open == []
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "<script" not in out.read_text()
    wanted = ["Training curves", "their masks", "Imagination", "t-SNE", "confusion matrix"]
    for words in wanted:
        assert any(words in alt for alt in page.alts), words
    assert sum("confusion" in alt for alt in page.alts) == 2
    for words in ("ijepa: ijepa", "ijepa: random", "mae: mae", "mae: pixels", "±", "macro F1", "momentum", "images/s"):
        assert words in page.words, words
    scores = json.loads((runs / "mae" / "evaluation.json").read_text())
    assert f"{scores['protocols']['linear']['mae']['accuracy']:.1f}" in page.words


def test_the_best_checkpoint_is_judged_shown_and_exported(runs, tmp_path, capsys):
    """The runs had no probes: their best is that of the highest rank."""
    out = runs / "mae"
    (step,) = (best.step for best in best_of(out / "checkpoints").values())
    assert main(["evaluate", str(out), "--protocols", "knn", "--checkpoint", "best"]) == 0
    assert f"checkpoint best, step {step}" in capsys.readouterr().out
    assert json.loads((out / "evaluation-best.json").read_text())["step"] == step
    assert main(["report", str(out), "--checkpoint", "best", "--out", str(tmp_path / "report.html")]) == 0
    page = Page((tmp_path / "report.html").read_text())
    assert f"features of checkpoint best (step {step})" in page.words
    assert "loss of the mean" in page.words
    target = str(tmp_path / "encoder.safetensors")
    assert main(["export", str(out), "--to", "toy", "--checkpoint", "8", "--out", target]) == 0
    capsys.readouterr()
    assert main(["doctor", str(out), "--checkpoint", "7"]) == 2
    assert "there are last, best and steps" in capsys.readouterr().err


def test_doctor_speaks(runs, capsys):
    assert main(["doctor", str(runs / "ijepa")]) == 0
    assert re.search(r"step 8: std [\d.]+, effective rank [\d.]+, share of position \d+%", capsys.readouterr().out)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["evaluate", "doctor", "report"])
def test_a_gpu_that_is_not_there_is_said(runs, command, tmp_path, capsys):
    line = [command, str(runs / "ijepa"), "--device", "cuda"]
    assert main([*line, *(["--out", str(tmp_path / "page.html")] if command == "report" else [])]) == 2
    assert "compute with --device cpu" in capsys.readouterr().err


def test_export_opens_elsewhere(runs, tmp_path, capsys):
    x = normalise(torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8))
    assert main(["export", str(runs / "mae"), "--out", str(tmp_path / "hf")]) == 0
    assert main(["export", str(runs / "mae"), "--to", "toy", "--out", str(tmp_path / "toy.safetensors")]) == 0
    with torch.no_grad():
        there, here = read_huggingface(tmp_path / "hf")(x), weights.load_encoder(tmp_path / "toy.safetensors")(x)
    assert torch.allclose(there, here, atol=1e-5)
    assert main(["export", str(runs / "mae"), "--to", "released"]) == 2
    assert "only I-JEPA" in capsys.readouterr().err
    assert main(["export", str(runs / "ijepa"), "--to", "released", "--out", str(tmp_path / "jepa.pth")]) == 0


@pytest.mark.parametrize("command", ["evaluate", "report", "doctor", "export"])
def test_a_folder_that_is_no_run_is_refused(command, tmp_path, capsys):
    assert main([command, str(tmp_path), *(["--out", str(tmp_path / "x")] if command == "report" else [])]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "x").exists()


def test_help_names_every_flag(capsys):
    for line in (["--help"], *([command, "--help"] for command in ("evaluate", "report", "doctor", "export"))):
        with pytest.raises(SystemExit):
            main(line)
    with pytest.raises(SystemExit):
        main(["pretrain", "smoke", "--help"])
    said = capsys.readouterr().out
    fields = [field.name for field in dataclasses.fields(Recipe)]
    assert fields[-6:] == [field.name for field in dataclasses.fields(Table)], "the recipe's are those of evaluate"
    names = (*fields, "checkpoint", "resume", "dry_run", "out", "protocols", "encoder", "most", "seeds", "to")
    for name in names:
        assert f"--{name.replace('_', '-')}" in said, name


@pytest.mark.slow  # quick: the parts, tests/full/test_labels.py and test_metrics.py, and the patients of chapter 11
def test_tags_of_patients_from_pretrain_to_report(tmp_path, capsys):
    """A table in one place: the probe of the run, the evaluation and the page speak of the same tags."""
    root = tmp_path / "scans"
    draw_pictures(root, 60)
    lines = [
        f"{path.relative_to(root).as_posix()},{'|'.join(tags)},p{n % 20}"
        for n, path in enumerate(sorted((root / "train").rglob("*.png")))
        if (tags := [path.parent.name, *(["even"] if n % 2 == 0 else [])])
    ]
    (tmp_path / "tags.csv").write_text("\n".join(["file,found,patient", *lines]))
    table = ["--labels", str(tmp_path / "tags.csv"), "--label-column", "found", "--group-column", "patient"]
    out = tmp_path / "run"
    flags = ["--image-size", "16", "--batch", "8", "--micro-batch", "8", "--precision", "fp32", "--log-every", "2"]
    flags += ["--epochs", "1", "--warmup-epochs", "0.1", "--probe-epochs", "0.5", "--workers", "0"]
    assert main(["pretrain", "smoke", "--out", str(out), "--data", f"folder:{root}", *flags, *table]) == 0
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert "knn" in rows[-1]
    assert main(["evaluate", str(out)]) == 0, "the recipe has the table"
    said = capsys.readouterr().out
    assert "found: 3 tags (across, down, even); divided by a fifth of the groups of 'patient', drawn once" in said
    for words in ("mean AUROC in % on 12 test pictures", "mean average precision in %", "ijepa ", "random ", "pixels "):
        assert words in said
    result = json.loads((out / "evaluation.json").read_text())
    assert result["pretrained_on"] == 0
    assert set(result["protocols"]) == {"knn", "linear", "lowshot"}
    pixels = result["protocols"]["linear"]["pixels"]
    assert pixels["each_auroc"]["across"] == 100
    assert pixels["each_auroc"]["even"] < 90, "no picture shows it"
    assert sum(pixels["each_count"][name] for name in ("across", "down")) == result["tested"] == 12
    assert main(["doctor", str(out)]) == 0
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    page = Page((tmp_path / "page.html").read_text())
    for words in ("mean AUROC in %", "test pictures that have it", "divided by a fifth of the groups"):
        assert words in page.words, words
    assert any("coloured by the commonest tag" in alt for alt in page.alts)
    assert not any("confusion" in alt for alt in page.alts)


def test_a_number_is_no_table(runs, capsys):
    assert main(["evaluate", str(runs / "ijepa"), "--labels", "500"]) == 2
    assert "say --most 500" in capsys.readouterr().err
    assert main(["evaluate", str(runs / "ijepa"), "--group-column", "patient"]) == 2
    assert "name it too (--labels FILE)" in capsys.readouterr().err
