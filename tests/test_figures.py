"""The README's tables of accuracies say what the files behind them give, to the digit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean, stdev

import pytest

from toy_ijepa.probing import summary

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "assets" / "results"
ROWS = {"raw pixels": "pixels", "pixels, 256": "pixels-pca", "random": "random", "MAE": "mae", "**I-JEPA**": "ijepa"}
COLUMNS = {"linear": "linear", "last 4 layers": "linear_last4", "kNN": "knn"}
COLUMNS |= {"linear, 1 % of the labels": "linear_1pct", "linear, 10 labels a class": "linear_10each"}


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(start: str) -> list[list[str]]:
    """Cells of the README's first table after the paragraph that starts so; its titles first."""
    text = (ROOT / "README.md").read_text().split(f"\n{start}", 1)[1]
    rows = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if not row.startswith("|--")]


def shown(scores: dict, probe: str) -> str:
    """As the README writes it: mean ± spread, or the mean alone where there is one run, or a dash."""
    if probe not in scores:
        return "-"
    spread = scores["spread"][probe]
    return f"{scores[probe]:.1f}" + ("" if spread is None else f" ± {spread:.1f}")


def lead(one: dict, other: dict, probe: str) -> str:
    """Paired by seed, with two standard errors."""
    gaps = [a[probe] - b[probe] for a, b in zip(one["runs"], other["runs"], strict=True)]
    return f"{mean(gaps):+.1f} ± {2 * stdev(gaps) / len(gaps) ** 0.5:.1f}"


@pytest.mark.parametrize(
    ("start", "files"),
    [
        ("**The first run**", ["first-cifar10"]),
        ("**For longer**", ["cifar10-10min-ends-decay-0.5", "cifar10-ijepa", "cifar10-mae"]),
        ("**shapes**", ["shapes-mae", "shapes-ijepa"]),
    ],
)
def test_a_table_has_the_figures_of_its_files(start, files):
    probes = {name: row for file in files for name, row in read(file)["probes"].items()}
    titles, *rows = table(start)
    assert len(rows) == len(ROWS)
    for name, *cells in rows:
        scores = next(probes[key] for said, key in ROWS.items() if name.startswith(said))
        assert cells == [shown(scores, COLUMNS[title]) for title in titles[1:]], name


def test_the_wider_encoder_and_its_lead():
    mae, ijepa = (read(f"leaderboard-{name}-wide")["probes"] for name in ("mae", "ijepa"))
    titles, *rows = table("**Wider")
    wanted = [COLUMNS[title] for title in titles[1:]]
    assert rows[0][1:] == [shown(mae, probe) for probe in wanted]
    assert rows[1][1:] == [shown(ijepa, probe) for probe in wanted]
    assert rows[2][1:] == [lead(ijepa, mae, probe) for probe in wanted]


def test_what_came_after_and_its_leads():
    names = {"**I-JEPA**": "default", "targets of all": "targets: 4 depths", "tanh": "norm: tanh"}
    names |= {"SALT": "salt", "SimCLR": "simclr", "LeJEPA": "lejepa"}
    variants = {}
    for file in ("beyond", "teacher", "tanh", "targets"):
        variants |= read(file)["variants"]
    _, *rows = table("**What came after I-JEPA**")
    assert len(rows) == len(names)
    for name, scores, over in rows:
        key = next(names[said] for said in names if name.startswith(said))
        assert scores == " / ".join(shown(variants[key], probe) for probe in ("linear", "knn")), name
        leads = [lead(variants[key], variants["default"], probe) for probe in ("linear", "knn")]
        assert over == ("-" if key == "default" else " / ".join(leads)), name


def test_grain_and_who_leads():
    _, *rows = table("**When is predicting features")
    assert [row[0].split()[0] for row in rows] == ["none", "0.2", "0.4", "0.5"]
    for name, *cells in rows:
        probes = read(re.search(r"results/(.*)\.json", name)[1])["probes"]
        assert cells[:2] == [
            " / ".join(shown(probes[method], probe) for probe in ("linear", "knn")) for method in ("ijepa", "mae")
        ]
        gaps = [
            mean(a[p] - b[p] for a, b in zip(*(probes[m]["runs"] for m in ("ijepa", "mae")), strict=True))
            for p in ("linear", "knn")
        ]
        assert re.findall(r"([+-][\d.]+) ±", cells[2]) == [
            f"{gap:+.1f}" for gap in gaps
        ]  # their doubt is of pictures, too


def test_a_mean_is_not_rounded_twice():
    """Kept as 42.05, the mean 42.0533 was shown as 42.0."""
    found = summary([dict(linear=v) for v in (42.4, 41.54, 42.22)])
    assert f"{found['linear']:.1f}" == "42.1"
    found = summary([dict(linear=v) for v in (55.62, 55.12, 55.38)])  # a spread of 0.2502, kept as 0.25
    assert f"{found['spread']['linear']:.1f}" == "0.3"
