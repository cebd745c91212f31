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
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure

from full_ijepa import doctor, lookpage, machine, page
from full_ijepa.cost import span
from full_ijepa.evaluate.features import matmul, pooled
from full_ijepa.evaluate.pictures import Labelled, labelled
from full_ijepa.evaluate.run import fresh, load_run
from full_ijepa.evaluate.tables import cells, leaked, read_evaluation, suffix_of, told
from full_ijepa.labels import Task, task_of
from full_ijepa.look import look
from full_ijepa.methods import IJEPA
from full_ijepa.metrics import WORDS, shown
from full_ijepa.page import escaped, listed, picture, rows_table, short
from full_ijepa.recipes.base import Recipe
from full_ijepa.table import Table
from full_ijepa.train import precision_of
from toy_ijepa import imagination, plots
from toy_ijepa.folders import DataError
from toy_ijepa.training import History

LOOKED = 1000  # pictures opened for the section on the pictures
SHOWN = 6  # pictures whose masks and imagination are shown
MAPPED = 500  # test pictures of the t-SNE map
SHELF = 300  # training pictures whose patches imagination chooses from


def held(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Rows of a history in which features stay as last seen, since not every row looks at them."""
    found, known = [], {}
    for row in rows:
        known |= {name: row[name] for name in ("mean_loss", "std", "rank") if name in row}
        found.append(known | row)
    return found


def curves(histories: dict[str, list[dict[str, float]]]) -> Figure:
    """Loss, schedules, std and rank of all runs against the share of the run that is done."""
    label = {name: page.drawn(name, 40) for name in histories}
    if len(set(label.values())) < len(label):  # they differ in the middle, which was cut
        label = {name: f"{number}: {label[name]}" for number, name in enumerate(label, 1)}
    done = {
        label[name]: History(  # MAE has no momentum: a line at 0 would only squeeze the others
            [
                row | dict(progress=row["step"] / rows[-1]["step"], momentum=row["momentum"] or math.nan)
                for row in held(rows)
            ]
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


def pictures_of(
    out: Path, name: str, evaluation: dict[str, Any], which: str = "last", device: str = "auto"
) -> list[str]:
    """Masks, imagination (I-JEPA) and a t-SNE map of one run; none where its data cannot be had."""
    where = torch.device(machine.pick(device))
    recipe, method, _ = load_run(out, where, which)
    said = evaluation.get("table")
    table = Table(**said | dict(label_column=tuple(said["label_column"]))) if said else Table.of(recipe)
    try:
        views = dict(pixels=recipe.pixels, table=table)
        test = labelled(recipe.data, "test", recipe.image_size, MAPPED, **views)
        shelf_pictures = labelled(recipe.data, "train", recipe.image_size, SHELF, **views).images()
    except DataError as error:
        return [f"<p>No pictures: {escaped(str(error))}</p>"]
    pixels, found, some = recipe.pixels, [], test.images()[:SHOWN]
    seen = pixels.shown(some)
    if isinstance(method, IJEPA):
        drawn = method.sample(SHOWN, method.encoder.grid, generator=torch.Generator().manual_seed(0))
        words = (
            "Pictures, their masks (context green, targets coloured, neither grey), and what the context encoder sees"
        )
        found.append(picture(plots.masks(seen, drawn, method.encoder.grid), f"{name}: {words}"))
        with matmul(where, "high"):
            shelf = imagination.gallery(method, pixels.scaled(shelf_pictures.to(where)))
            patches = imagination.imagine(method, pixels.scaled(some.to(where)), drawn.to(where), shelf)[0].cpu()
        patches = pixels.rgb(patches.unflatten(-1, (pixels.channels, -1)), -2).flatten(-2).clamp(0, 1)
        words = "Imagination: targets filled with the training patch whose feature is nearest to the predicted one"
        found.append(picture(plots.imagination(seen, drawn, patches, recipe.patch), f"{name}: {words}"))
    encoders = {page.drawn(name, 40): method.probed, "random encoder": fresh(recipe, 0).to(where)}
    dtype = precision_of(recipe, where) if where.type == "cuda" else torch.float32
    maps = {who: pooled(encoder, test, 1, dtype) for who, encoder in encoders.items()}
    colours, groups, by = coloured(test)
    words = f"t-SNE maps of {len(test)} test pictures, coloured by {by}"
    found.append(picture(plots.tsne(maps, colours, [page.drawn(g) for g in groups]), f"{name}: {words}"))
    return found


def coloured(test: Labelled) -> tuple[torch.Tensor, tuple[str, ...], str]:
    """A colour a picture (S,), their names and what they are: classes, the commonest tag, or quarters of a number."""
    task, first = task_of(test.labels), test.classes[0]
    if task == "classes":
        return test.labels, test.classes, "class"
    if task == "tags":
        most = int(test.labels.sum(0).argmax())
        return test.labels[:, most].long(), (f"not {test.classes[most]}", test.classes[most]), "the commonest tag"
    cuts = test.labels[:, 0].quantile(torch.tensor([0.25, 0.5, 0.75]))
    quarters = ("lowest quarter", "second", "third", "highest quarter")
    return torch.bucketize(test.labels[:, 0], cuts), quarters, f"{first} in quarters"


def scores_tables(evaluations: dict[str, dict[str, Any]]) -> str:
    """Every encoder of every run under each protocol: a table for each number that the runs' tasks are judged by."""
    wanted = {name: None for e in evaluations.values() for name in shown(e["task"], e["uneven"])}
    found = []
    for name in wanted:
        columns = {run: cells(e, name, "±") for run, e in evaluations.items() if name in shown(e["task"], e["uneven"])}
        titles = list(dict.fromkeys(title for by in columns.values() for title in by))
        rows = []
        for run, by in columns.items():
            for row in dict.fromkeys(row for texts in by.values() for row in texts):
                rows.append([f"{run}: {row}", *(by.get(title, {}).get(row, "-") for title in titles)])
        found.append(rows_table([WORDS[name], *titles], rows))
    return "".join(found)


def each_table(own: dict[str, Any], task: Task) -> str:
    """What the linear probe of the first seed does with each class, tag or column of numbers."""
    heads = dict(each_class="accuracy in %", each_auroc="AUROC in %", each_average_precision="average precision in %")
    heads |= dict(each_count="test pictures that have it", each_r2="R2 in %", each_mae="mean absolute error")
    known = [key for key in heads if key in own]
    rows = [
        [short(label), *("-" if own[key][label] is None else f"{own[key][label]:.4g}" for key in known)]
        for label in own[known[0]]
    ]
    if task == "classes":
        rows.append(["macro F1", f"{own['macro_f1']:.1f}", *[""] * (len(known) - 1)])
    head = {"classes": "class", "tags": "tag", "numbers": "column"}[task]
    return rows_table([head, *(heads[key] for key in known)], rows)


def write(runs: Sequence[Path], target: Path, which: str = "last", device: str = "auto") -> Path:
    """Write the page of these runs at their last, best or some other checkpoint.

    device  where to encode
    Raises ValueError if one of them is no run, or has no such checkpoint.
    """
    if not runs:
        raise ValueError("a report of no run: name the --out of at least one pretrain")
    charts = {name: doctor.chart_of(out, which, device) for name, out in named(runs).items()}
    parts = ["<h1>I-JEPA and MAE: a report</h1>"]
    judged = f"evaluation{suffix_of(which)}.json"
    evaluations = {name: found for name, out in named(runs).items() if (found := read_evaluation(out / judged))}
    if evaluations:
        parts += ["<h2>One protocol for all</h2>", scores_tables(evaluations), notes(evaluations)]
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
        evaluation = evaluations.get(name, {})
        parts += pictures_of(out, name, evaluation, which, device)
        linear = evaluation.get("protocols", {}).get("linear", {})
        own = linear.get(charts[name].recipe.method)
        if own and "confusion" in own:
            words = f"{name}: confusion matrix of the linear probe, % of each true class (rows)"
            parts.append(picture(confusion(own["confusion"], evaluation["classes"]), words))
        if own:
            parts.append(each_table(own, evaluation["task"]))
        parts.append(settings(charts[name].recipe))
    return page.write(target, "I-JEPA report", parts)


def looked(recipes: dict[str, Recipe]) -> list[str]:
    """What the pictures of the runs are, a section a set; none where they cannot be had."""
    parts = []
    for data, recipe in recipes.items():
        parts.append(f"<h2>Pictures: {escaped(short(data))}</h2>")
        try:
            parts += lookpage.sections(look(data, LOOKED, recipe.stack, Table.of(recipe)), 3)
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
        + (f"; {told(e)}" if e["table"] else "")
        + (f"; {leaked(e)}" if leaked(e) else "")
        for name, e in evaluations.items()
    ]
    return listed(lines)


def costs(charts: dict[str, doctor.Chart]) -> str:
    """Steps, time and speed of each run, its last loss beside that of each place's mean, and its best step."""
    rows = []
    for name, chart in charts.items():
        last = chart.rows[-1]
        speed = sum(chart.column("images_per_second")) / len(chart.rows)
        mean = f"{last['mean_loss']:.4f}" if "mean_loss" in last else "-"
        waiting = f"{median(chart.column('waiting')):.0%}" if chart.column("waiting") else "-"
        cells = [f"{last['step']:.0f}", f"{last['epoch']:.1f}", span(last["seconds"]), f"{speed:.0f}", waiting]
        rows.append([name, *cells, f"{last['loss']:.4f}", mean, str(doctor.best_of(chart.rows) or "-")])
    head = ["steps", "epochs", "training time", "images/s", "waiting for data", "last loss", "loss of the mean", "best"]
    return rows_table(["run", *head], rows)


def settings(recipe: Recipe) -> str:
    """All fields of a recipe, folded away."""
    rows = [[name, json.dumps(value)] for name, value in asdict(recipe).items()]
    return f"<details><summary>recipe</summary>{rows_table(['field', 'value'], rows)}</details>"
