"""The page that goes with exported weights: what they were trained on, how, what they score, under which licence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from full_ijepa import metrics
from full_ijepa.cost import shown
from full_ijepa.evaluate.tables import cells, leaked, read_evaluation
from full_ijepa.recipes.base import Recipe

UNKNOWN = "unknown"  # nobody said; the page says so


def scores(result: dict[str, Any]) -> list[str]:
    """What all encoders that were judged together reach, a table in Markdown for each number of the task."""
    lines = []
    for name in metrics.shown(result["task"], result["uneven"]):
        found = cells(result, name, "±")
        rows = list(dict.fromkeys(row for by in found.values() for row in by))
        lines += [f"| {metrics.WORDS[name]} | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
        lines += [f"| {row} | " + " | ".join(by.get(row, "-") for by in found.values()) + " |" for row in rows]
        lines += [""]
    return lines


def card(recipe: Recipe, step: int, encoder: str, evaluation: Path, licence: str = UNKNOWN) -> str:
    """The page in Markdown, with the front matter that model hubs read.

    evaluation  what `evaluate` wrote of this encoder; scores of another step are not told
    """
    p = recipe.pixels
    lines = ["---", f"license: {licence if licence != UNKNOWN else 'other'}", "library_name: transformers"]
    lines += ["pipeline_tag: image-feature-extraction", "tags: [i-jepa, self-supervised]", "---", ""]
    kind = f"the {encoder} encoder of an I-JEPA" if recipe.method == "ijepa" else "the encoder of an MAE"
    data = Path(recipe.data.removeprefix("folder:")).name if recipe.data.startswith("folder:") else recipe.data
    lines += [f"# ViT-{recipe.encoder}/{recipe.patch}, {recipe.method}, {data}", ""]
    lines += [f"This is {kind}, after {step} steps of {recipe.batch} pictures of `{data}` at {shown(recipe)}.", ""]
    lines += ["## Pictures", "", f"{p.channels} channels of {p.depth}, mean {list(p.mean)}, std {list(p.std)} in the"]
    lines += ["files' own units. The processor scales the shorter side, cuts out the middle and normalises."]
    if p.photographs:
        lines += ["It clips files of 16 bit: divide them by 257 first. Put transparent pictures on white first."]
    else:
        lines += ['Hand it arrays, as float32: `processor(images=[array], input_data_format="channels_first")`.']
    lines += ["", "## Scores", ""]
    told = read_evaluation(evaluation)
    if told and told["step"] == step:
        lines += [
            f"{told['labels']} labels, {told['tested']} test pictures of `{data}`, seeds {told['seeds']}:",
            *filter(None, [leaked(told)]),
            "",
        ]
        lines += scores(told)
    else:
        lines += ["Not judged at this step."]
    said = "Nobody has said under which licence these weights may be used: ask, or say it with `--license`."
    lines += ["", "## Licence", "", said if licence == UNKNOWN else licence]
    # Where pictures lie on this machine is nobody's concern.
    scheme, _, where = recipe.data.partition(":")
    short = f"{scheme}:{Path(where).name}" if scheme in ("folder", "shards") and "://" not in where else recipe.data
    own = recipe.__dict__ | dict(data=short, labels=Path(recipe.labels).name)
    lines += ["", "## Recipe", "", "```json", json.dumps(own, indent=1), "```", ""]
    return "\n".join(lines)
