"""One page for one or more runs: curves, masks, imagination, t-SNE, confusion matrices, tables, config and cost.

The page is a single HTML file with its pictures inside; it needs no network and no script.
"""

# Shape legend:  S pictures  C channels  H,W pixels

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from full_ijepa import doctor, lookpage, page
from full_ijepa.cost import span
from full_ijepa.evaluate.features import labelled, pooled
from full_ijepa.evaluate.run import TITLES, fresh, load_run
from full_ijepa.look import look
from full_ijepa.methods import IJEPA
from full_ijepa.page import escaped, listed, picture, rows_table, short
from full_ijepa.recipes.base import Recipe
from toy_ijepa import imagination, plots
from toy_ijepa.folders import DataError
from toy_ijepa.masking import STRATEGIES
from toy_ijepa.training import History

LOOKED = 1000  # pictures opened for the section on the pictures
SHOWN = 6  # pictures whose masks and imagination are shown
MAPPED = 500  # test pictures of the t-SNE map
SHELF = 300  # training pictures whose patches imagination chooses from


def curves(histories: dict[str, list[dict[str, float]]]) -> Figure:
    """Loss, schedules, std and rank of all runs against the share of the run that is done."""
    label = {name: page.drawn(name, 40) for name in histories}
    if len(set(label.values())) < len(label):  # they differ in the middle, which was cut
        label = {name: f"{number}: {label[name]}" for number, name in enumerate(label, 1)}
    done = {
        label[name]: History(  # MAE has no momentum: a line at 0 would only squeeze the others
            [row | dict(progress=row["step"] / rows[-1]["step"], momentum=row["momentum"] or math.nan) for row in rows]
        )
        for name, rows in histories.items()
    }
    return plots.training_curves(done)


def confusion(matrix: list[list[int]], classes: Sequence[str]) -> Figure:
    """A confusion matrix: a row a true class, a column what was said, as shares of the row."""
    counts = torch.tensor(matrix, dtype=torch.float64)
    share = counts / counts.sum(1, keepdim=True).clamp_min(1)
    side = min(max(3.2, 0.42 * len(classes)), 24.0)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    ax = figure.subplots()
    drawn = ax.imshow(share.numpy(), vmin=0, vmax=1, cmap="cividis")
    if len(classes) <= 20:
        shown = [page.drawn(name, 16) for name in classes]
        ax.set_xticks(range(len(classes)), shown, rotation=90, fontsize=7)
        ax.set_yticks(range(len(classes)), shown, fontsize=7)
        for i, row in enumerate(share.tolist()):
            for j, value in enumerate(row):
                ax.text(
                    j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=6, color="w" if value < 0.6 else "k"
                )
    ax.set_xlabel("said", fontsize=8)
    ax.set_ylabel("true", fontsize=8)
    figure.colorbar(drawn, ax=ax, shrink=0.8).ax.tick_params(labelsize=7)
    return figure


def pictures_of(out: Path, name: str) -> list[str]:
    """Masks, imagination (I-JEPA) and a t-SNE map of one run; none where its data cannot be had."""
    recipe, method, _ = load_run(out)
    try:
        test = labelled(recipe.data, "test", recipe.image_size, MAPPED, pixels=recipe.pixels)
        shelf_pictures = labelled(recipe.data, "train", recipe.image_size, SHELF, pixels=recipe.pixels).images()
    except DataError as error:
        return [f"<p>No pictures: {escaped(str(error))}</p>"]
    pixels, found, some = recipe.pixels, [], test.images()[:SHOWN]
    seen = pixels.shown(some)
    if isinstance(method, IJEPA):
        drawn = STRATEGIES[recipe.masks](SHOWN, method.encoder.grid, generator=torch.Generator().manual_seed(0))
        words = (
            "Pictures, their masks (context green, targets coloured, neither grey), and what the context encoder sees"
        )
        found.append(picture(plots.masks(seen, drawn, method.encoder.grid), f"{name}: {words}"))
        shelf = imagination.gallery(method, pixels.scaled(shelf_pictures))
        patches, _ = imagination.imagine(method, pixels.scaled(some), drawn, shelf)
        patches = pixels.rgb(patches.unflatten(-1, (pixels.channels, -1)), -2).flatten(-2).clamp(0, 1)
        words = "Imagination: targets filled with the training patch whose feature is nearest to the predicted one"
        found.append(picture(plots.imagination(seen, drawn, patches, recipe.patch), f"{name}: {words}"))
    maps = {page.drawn(name, 40): pooled(method.probed, test, 1), "random encoder": pooled(fresh(recipe, 0), test, 1)}
    words = f"t-SNE maps of {len(test)} test pictures, coloured by class"
    found.append(picture(plots.tsne(maps, test.labels, [page.drawn(c) for c in test.classes]), f"{name}: {words}"))
    return found


def scores_table(evaluations: dict[str, dict[str, Any]]) -> str:
    """Every encoder of every run under each protocol; accuracy in %."""
    protocols = list(dict.fromkeys(p for e in evaluations.values() for p in e["protocols"]))
    rows = []
    for run, evaluation in evaluations.items():
        for row in dict.fromkeys(row for by in evaluation["protocols"].values() for row in by):
            cells = [evaluation["protocols"].get(p, {}).get(row) for p in protocols]
            rows.append([f"{run}: {row}", *(cell_text(cell) for cell in cells)])
    return rows_table(["accuracy in %", *(TITLES[p] for p in protocols)], rows)


def cell_text(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    spread = found.get("spread", {}).get("accuracy")
    return f"{found['accuracy']:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def write(runs: Sequence[Path], target: Path) -> Path:
    """Write the page of these runs. Raises ValueError if one of them is no run."""
    charts = {name: doctor.chart_of(out) for name, out in named(runs).items()}
    parts = ["<h1>I-JEPA and MAE: a report</h1>"]
    evaluations = {name: found for name, out in named(runs).items() if (found := read_json(out / "evaluation.json"))}
    if evaluations:
        parts += ["<h2>One protocol for all</h2>", scores_table(evaluations), notes(evaluations)]
    else:
        parts.append("<p>Not evaluated yet: <code>python -m full_ijepa evaluate RUN</code></p>")
    parts += [
        "<h2>Training</h2>",
        picture(curves({n: c.rows for n, c in charts.items()}), "Training curves of all runs"),
    ]
    parts.append(costs(charts))
    parts += looked({chart.recipe.data: chart.recipe for chart in charts.values()})
    for name, out in named(runs).items():
        parts += [f"<h2>{escaped(name)}</h2>", f"<pre>{escaped(doctor.report(charts[name]))}</pre>"]
        parts += pictures_of(out, name)
        linear = evaluations.get(name, {}).get("protocols", {}).get("linear", {})
        own = linear.get(charts[name].recipe.method)
        if own:
            words = f"{name}: confusion matrix of the linear probe, % of each true class (rows)"
            parts.append(picture(confusion(own["confusion"], evaluations[name]["classes"]), words))
            each = [[short(label), f"{value:.1f}"] for label, value in own["each_class"].items()]
            parts.append(rows_table(["class", "accuracy in %"], [*each, ["macro F1", f"{own['macro_f1']:.1f}"]]))
        parts.append(settings(charts[name].recipe))
    return page.write(target, "I-JEPA report", parts)


def looked(recipes: dict[str, Recipe]) -> list[str]:
    """What the pictures of the runs are, a section a set; none where they cannot be had."""
    parts = []
    for data, recipe in recipes.items():
        parts.append(f"<h2>Pictures: {escaped(short(data))}</h2>")
        try:
            parts += lookpage.sections(look(data, LOOKED, recipe.stack), 3)
        except DataError as error:
            parts.append(f"<p>No look at them: {escaped(str(error))}</p>")
    return parts


def named(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by the name of their folder, told apart by their parents where that is not enough."""
    names = [out.resolve().name for out in runs]
    return {out.resolve().name if names.count(out.resolve().name) == 1 else str(out): out for out in runs}


def notes(evaluations: dict[str, dict[str, Any]]) -> str:
    """What was judged on what."""
    lines = [
        f"{name}: {e['encoder']} encoder at step {e['step']}; {e['data']}, {e['labels']} labels, {e['tested']} test "
        f"pictures; seeds {e['seeds']}"
        for name, e in evaluations.items()
    ]
    return listed(lines)


def costs(charts: dict[str, doctor.Chart]) -> str:
    """Steps, time and speed of each run."""
    rows = []
    for name, chart in charts.items():
        last = chart.rows[-1]
        speed = sum(chart.column("images_per_second")) / len(chart.rows)
        rows.append([name, f"{last['step']:.0f}", f"{last['epoch']:.1f}", span(last["seconds"]), f"{speed:.0f}"])
    return rows_table(["run", "steps", "epochs", "training time", "images/s"], rows)


def settings(recipe: Recipe) -> str:
    """All fields of a recipe, folded away."""
    rows = [[name, json.dumps(value)] for name, value in asdict(recipe).items()]
    return f"<details><summary>recipe</summary>{rows_table(['field', 'value'], rows)}</details>"
