"""What nbval does not see: the frame of a chapter, its imports, its definitions, its stored outputs."""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from toy_ijepa import ema, encoder, jepa, masking, predictor

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("[0-9][0-9]_*.ipynb"))

# Rooms that each chapter opens; a chapter may use those of the chapters before it.
ROOMS = {
    0: {"course", "drawings", "plots", "imagination", "masking", "patches", "recipe", "widgets.predict"},
    1: {"data", "shapes", "patches"},
    2: {"encoder", "widgets.attention"},
    3: {"masking", "widgets.mask"},
    4: {"predictor", "imagination", "widgets.predictor"},
    5: {"ema", "diagnostics", "widgets.schedule"},
    6: {"jepa", "schedules", "training", "trouble", "recipe"},
    7: {"probing", "imagination", "widgets.paint"},
    8: {"mae"},
    9: {
        f"full_ijepa.{room}"
        for room in ("recipes", "vit", "masking", "methods", "data", "crops", "order", "train", "loop", "interop")
    },
    10: {"full_ijepa.evaluate", "full_ijepa.report"},
    11: {"folders", "widgets.search"}
    | {f"full_ijepa.{room}" for room in ("balance", "doctor", "pixels", "labels", "embedding")},
    12: {"full_ijepa.cost", "full_ijepa.dashboard", "bench"},
    13: {"targets", "salt", "verdict"},
    14: {"sigreg", "views", "ablation", "widgets.projection"},
}
# What looks ahead: the welcome, and one widget. The chapters after them may not.
PREVIEW = {0: {"imagination", "masking", "patches", "recipe"}, 4: {"imagination"}}
# Chapters build these in the way that is easiest to read, the package in one that is faster.
SIMPLER = {2: {"Attention"}, 3: {"draw"}, 5: {"ema_update"}, 6: {"IJEPA"}, 10: {"hold_out", "linear"}}
HEADINGS = ["you can", "Predict first", "Play", "Exercise", "The whole idea in one cell", "What changed since"]
PACKAGES = ("toy_ijepa", "full_ijepa")
LONGEST = 25  # lines of a code cell without blanks


def cells(path: Path, kind: str = "code") -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def text(path: Path) -> str:
    return "\n\n".join(source(cell) for cell in cells(path, "markdown"))


def trees(path: Path) -> list[ast.Module]:
    return [ast.parse(source(cell)) for cell in cells(path)]


def number(path: Path) -> int:
    return int(path.name[:2])


def opened(chapter: int) -> set[str]:
    own = {name for n, rooms in ROOMS.items() if n <= chapter for name in rooms - PREVIEW.get(n, set())}
    return own | PREVIEW.get(chapter, set())


def imported(tree: ast.Module) -> set[str]:
    """Modules of the packages that a cell imports: those of the toy without the package's name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            inside = "." in node.module
            found |= {node.module} if inside else {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] in PACKAGES}
    return {room(name) for name in found}


def room(module: str) -> str:
    """ "toy_ijepa.widgets.mask" -> "widgets.mask"; "full_ijepa.recipes.base" -> "full_ijepa.recipes"."""
    return module.removeprefix("toy_ijepa.") if module.startswith("toy_ijepa") else ".".join(module.split(".")[:2])


def bare(node: ast.AST) -> str:
    """A definition without its docstrings."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner) is not None:
            inner.body = inner.body[1:] or [ast.Pass()]
    return ast.dump(node)


def definitions(tree: ast.Module) -> dict[str, str]:
    """Name -> definition, with the members of a class in the order of their names."""
    found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in found.values():
        if isinstance(node, ast.ClassDef):
            node.body.sort(key=lambda member: getattr(member, "name", ""))
    return {name: bare(node) for name, node in found.items()}


def joined(parts: list[ast.Module]) -> ast.Module:
    """All cells as one, with every `@course.part_of(Class)` function moved into its class."""
    body, classes = [], {}
    for node in (node for tree in parts for node in tree.body):
        marks = [ast.unparse(d) for d in getattr(node, "decorator_list", [])]
        owner = next((m[len("course.part_of(") : -1] for m in marks if m.startswith("course.part_of(")), None)
        if owner is None:
            body.append(node)
            classes |= {node.name: node} if isinstance(node, ast.ClassDef) else {}
        else:
            node.decorator_list = [d for d in node.decorator_list if "part_of" not in ast.unparse(d)]
            classes[owner].body.append(node)
    return ast.Module(body, type_ignores=[])


def package(chapter: int) -> dict[str, set[str]]:
    """Public definitions of the rooms opened up to this chapter; a name may be defined in several."""
    found: dict[str, set[str]] = {}
    for name in opened(chapter) - {"drawings", "plots", "course"}:
        base = ROOT / (name if name.startswith("full_ijepa") else f"toy_ijepa.{name}").replace(".", "/")
        for path in sorted(base.glob("*.py")) if base.is_dir() else [base.with_suffix(".py")]:
            for defined, what in definitions(ast.parse(path.read_text())).items():
                found.setdefault(defined, set()).add(what)
    return found


# Words of everyday use, which a reader knows well enough before their chapter makes them precise.
EVERYDAY = {"encoder", "mask", "patch", "seed", "rank"}


def glossary() -> dict[str, int]:
    """Terms of the glossary, and short forms in brackets, with the chapter that introduces them."""
    found = {}
    for line in (ROOT / "chapters" / "glossary.md").read_text().splitlines():
        entry = re.match(r"- \*\*(?P<term>[^(*]+?)(?: \((?P<short>[\w-]+)\))?\*\*: .*\(\[(?P<chapter>\d\d)\]", line)
        if entry:
            names = {entry["term"], entry["short"]} - {None} - EVERYDAY
            found |= dict.fromkeys(names, int(entry["chapter"]))
    return found


def test_chapters_are_numbered_without_gap():
    assert [number(path) for path in CHAPTERS] == list(range(len(CHAPTERS)))
    assert len(CHAPTERS) >= len(ROOMS)


class TestSetUp:
    """The first cell of a chapter, for places where the notebook comes without the course."""

    @pytest.fixture
    def commands(self, monkeypatch, tmp_path):
        """An empty folder, and a list of the commands that are asked for there; none is carried out."""
        asked = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command))
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.delenv("IJEPA_SOURCE", raising=False)
        return asked

    @pytest.fixture
    def alone(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    def run(self):
        exec(source(cells(CHAPTERS[0])[0]), {})

    def test_does_nothing_where_the_course_is_installed(self, commands, monkeypatch):
        monkeypatch.setenv("IJEPA_SOURCE", "somewhere")
        before = [*sys.path]
        self.run()
        assert (commands, sys.path) == ([], before)

    def test_says_what_to_do_without_an_address(self, commands, alone):
        with pytest.raises(ModuleNotFoundError, match="`make lab`, or set SOURCE"):
            self.run()
        assert commands == []

    def test_fetches_installs_and_makes_importable(self, commands, alone, monkeypatch, tmp_path):
        monkeypatch.setenv("IJEPA_SOURCE", "somewhere")
        clone = os.path.abspath("ijepa-course")
        fetch = ["git", "clone", "--quiet", "--depth", "1", "somewhere", clone]
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--editable", clone]
        self.run()
        assert commands == [fetch, install]
        assert sys.path[0] == clone
        (tmp_path / "ijepa-course").mkdir()  # fetched, but not installed: run again after a failure
        self.run()
        assert commands == [fetch, install, install]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
class TestChapter:
    def test_begins_with_the_set_up_cell(self, path):
        first = cells(path)[0]
        assert source(first) == source(cells(CHAPTERS[0])[0])
        assert first["outputs"] == []

    def test_only_the_set_up_cell_fetches_the_course(self, path):
        assert not any("IJEPA_SOURCE" in source(cell) for cell in cells(path)[1:])

    def test_has_the_frame(self, path):
        words = text(path)
        headings = re.findall(r"^#+ (.+)$", words, re.MULTILINE)
        place = 0
        for wanted in HEADINGS:
            rest = [n for n in range(place, len(headings)) if wanted.lower() in headings[n].lower()]
            assert rest, f"no heading with {wanted!r} after {headings[max(place - 1, 0)]!r}"
            place = rest[0] + 1
        stated = r"\*\*runs in\*\* about ([\d.]+) minutes? on two CPU cores,? with .*bf16.*? without"
        assert float(re.search(stated, words)[1]) == json.loads(path.read_text())["metadata"]["course"]["minutes"]
        assert "**memory**" in words
        assert "**Read on**" in words
        assert f"exercises/{path.name}" in words

    def test_objectives_name_checks_that_exist(self, path):
        promised = set(re.findall(r"checks? ((?:\d+\.\d+(?:, )?)+)\)", text(path).split("## ")[1]))
        promised = {c for group in promised for c in group.split(", ")}
        kept = {m for cell in cells(path) for m in re.findall(r"check (\d+\.\d+) passed", source(cell))}
        assert promised
        assert promised == kept

    def test_imports_only_opened_rooms(self, path):
        for tree in trees(path):
            assert imported(tree) <= opened(number(path)), "a room of a later chapter"

    def test_definitions_are_those_of_the_package(self, path):
        theirs = package(number(path))
        shared = {n: d for n, d in definitions(joined(trees(path))).items() if n in theirs}
        for name in shared.keys() - SIMPLER.get(number(path), set()):
            assert shared[name] in theirs[name], f"{name} differs from the package's"
        assert shared or number(path) == 0, "a chapter builds something that the package has"

    def test_cells_are_short(self, path):
        for cell in cells(path):
            lines = [line for line in source(cell).splitlines() if line.strip()]
            assert len(lines) <= LONGEST, f"{cell['id']} has {len(lines)} lines"

    def test_outputs_are_stored_in_order_without_errors(self, path):
        counts = [cell["execution_count"] for cell in cells(path)]
        assert counts == list(range(1, len(counts) + 1)), "run the chapter from top to bottom and store it"
        for cell in cells(path):
            for output in cell["outputs"]:
                assert output["output_type"] != "error", cell["id"]
                assert output.get("name") != "stderr", cell["id"]
            if "print(" in source(cell) or "show(" in source(cell):
                assert cell["outputs"] or "def " in source(cell), f"{cell['id']} stores no output"

    def test_outputs_come_from_real_pictures(self, path):
        said = "".join("".join(o.get("text", "")) for cell in cells(path) for o in cell["outputs"])
        if "course.pictures" in "".join(map(source, cells(path))):
            assert "Pictures: CIFAR-10" in said
            assert "IJEPA_QUICK" not in said, "stored from the quick way of `make test`: run it again without"

    def test_only_checks_are_excused_from_the_quick_way(self, path):
        """`make test` reports a cell tagged "whole" as not checked: it holds a check and no training."""
        for cell in cells(path):
            tags = cell["metadata"].get("tags", [])
            assert set(tags) <= {"whole"}, cell["id"]
            assert not tags or "assert" in source(cell), cell["id"]

    def test_figures_are_described_and_small(self, path):
        for cell in cells(path):
            for output in cell["outputs"]:
                data = output.get("data", {})
                if "image/png" in data:
                    assert len(output["metadata"]["image/png"]["alt"]) > 20, cell["id"]
                    assert "<img alt=" in "".join(data["text/html"])
        assert path.stat().st_size < 3_000_000

    def test_no_unknown_magic_hides_a_cell(self, path):
        """nbval calls a cell passed that begins with an unknown %%magic, without running the rest."""
        for cell in cells(path):
            assert not re.search(r"^\s*[%!]", source(cell), re.MULTILINE), cell["id"]

    def test_no_expected_error_outlives_its_cause(self, path):
        """nbval accepts a raises-exception cell that no longer raises; chapters use try/except and say so."""
        for cell in cells(path):
            assert "raises-exception" not in cell["metadata"].get("tags", [])

    def test_compared_outputs_are_marked_alone_on_their_line(self, path):
        for cell in cells(path):
            for line in source(cell).splitlines():
                assert "NBVAL" not in line or line.strip() == "# NBVAL_CHECK_OUTPUT", cell["id"]

    def test_no_word_before_its_explanation(self, path):
        """A term that a later chapter introduces is a link where it first stands (most lead to the glossary)."""
        words = re.sub(r"`[^`]*`", "", text(path))
        linked = " ".join(re.findall(r"\[([^\]]+)\]\(", words))
        for term, chapter in glossary().items():
            form = re.compile(rf"\b{re.escape(term)}\b")
            first = form.search(words)
            if chapter > number(path) and first:
                before = words[: first.start()]
                inside = before.rfind("[") > before.rfind("]") and form.search(linked)
                assert inside, f"{term!r} is explained in chapter {chapter}: link it where it first stands"

    def test_links_lead_somewhere(self, path):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text(path)):
            assert (path.parent / target).exists(), target
        for target in re.findall(r"`((?:chapters|assets|toy_ijepa|full_ijepa)/[\w./]+\.\w+)`", text(path)):
            assert (ROOT / target).exists(), target


def built(chapter: int, *names: str, **given) -> list:
    """What a chapter defines under these names, executed with `given` and the modules that it needs."""
    tree = joined(trees(CHAPTERS[chapter]))
    known = dict(torch=torch, nn=nn, F=F, Tensor=torch.Tensor, math=math, **given)
    wanted = [n for n in tree.body if getattr(n, "name", "") in names]
    exec(compile(ast.Module(wanted, []), "chapter", "exec"), known)
    return [known[name] for name in names]


class TestSimpler:
    """What a chapter writes in a simpler way than the package does the same."""

    def test_attention(self):
        (simple,) = built(2, "Attention")
        torch.manual_seed(0)
        ours, theirs, x = simple(24, 3), encoder.Attention(24, 3), torch.randn(2, 7, 24)
        theirs.load_state_dict(ours.state_dict())
        with torch.no_grad():
            assert torch.allclose(ours(x), theirs(x), atol=1e-6)  # there the fused kernel
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)  # with gradients, the products

    def test_draw(self):
        """Allowed patches alone, none twice, each of them equally often, and the generator decides."""
        (simple,) = built(3, "draw")
        allowed = torch.zeros(6000, 11, dtype=torch.bool)
        allowed[:, [0, 2, 3, 7, 10]] = True
        for draw in (simple, masking.draw):
            index = draw(allowed, 3, torch.Generator().manual_seed(0))
            assert index.shape == (6000, 3)
            counts = torch.bincount(index.flatten(), minlength=11)
            assert not counts[~allowed[0]].any()
            assert (index.sort(1).values.diff(dim=1) > 0).all()
            assert (counts[allowed[0]] - 3600).abs().max() < 150  # four standard deviations
            assert index.equal(draw(allowed, 3, torch.Generator().manual_seed(0)))

    def test_ema_update(self):
        (simple,) = built(5, "ema_update")
        torch.manual_seed(0)
        online, ours = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5)), nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))
        theirs = copy.deepcopy(ours)
        for momentum in (0.0, 0.3, 0.996, 1.0):
            simple(ours, online, momentum)
            ema.ema_update(theirs, online, momentum)
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                assert torch.allclose(a, b, atol=1e-6)
        for update in (simple, ema.ema_update):
            with pytest.raises(ValueError, match="momentum"):
                update(ours, online, 1.5)

    def test_ijepa(self):
        """The same loss under the same masks, and the same target after a step."""
        known = dict(copy=copy, masking=masking, ema_update=ema.ema_update, Encoder=encoder.Encoder)
        simple, _ = built(6, "IJEPA", "ijepa_loss", Predictor=predictor.Predictor, **known)
        torch.manual_seed(0)
        parts = encoder.Encoder(32, 4, 24, 2, 2), predictor.Predictor((8, 8), 24, 16, 1, 2, mode="joint")
        ours, theirs = simple(*copy.deepcopy(parts)), jepa.IJEPA(*copy.deepcopy(parts), momentum=(0.95, 0.9995))
        images, losses = torch.randn(3, 3, 32, 32), []
        for model in (ours, theirs):
            loss = model.step_loss(images, torch.Generator().manual_seed(1))
            loss.backward()
            torch.optim.SGD(model.encoder.parameters(), lr=0.1).step()
            losses.append((loss.item(), model.after_step(0.5)))
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)
        for a, b in zip(ours.probed.parameters(), theirs.probed.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-6)

    def test_linear(self):
        """The same choice and the same answers; the package can also keep groups together and take tags."""
        from full_ijepa.data import mix
        from full_ijepa.evaluate import heads

        names = ("HELD", "RATES", "Verdict", "apply_linear", "fit_linear")
        known = {name: getattr(heads, name) for name in names}
        ours, hold_out = built(10, "linear", "hold_out", mix=mix, **known)
        torch.manual_seed(0)
        x, y = torch.randn(80, 5), torch.arange(80) % 3
        for ours_part, theirs_part in zip(hold_out(80, 4), heads.hold_out(80, 4), strict=True):
            assert ours_part.equal(theirs_part)
        one, other = ours(x, y, x, 3, epochs=4), heads.linear(x, y, x, 3, epochs=4)
        assert (one.rate, one.predicted.tolist()) == (other.rate, other.predicted.tolist())

    def test_no_simpler_version_is_left_that_is_not_needed(self):
        for chapter, names in SIMPLER.items():
            theirs, ours = package(chapter), definitions(joined(trees(CHAPTERS[chapter])))
            assert not [name for name in names if ours[name] in theirs[name]]
