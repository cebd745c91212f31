"""What an evaluation found, as its file and as the text of a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from full_ijepa import labels, metrics
from full_ijepa.evaluate.protocols import SHARES, SHOTS
from full_ijepa.labels import Task


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """What `evaluate` wrote, also before there were tables of labels; None if it wrote nothing."""
    if not path.exists():
        return None
    return dict(task="classes", uneven=False, table=None) | json.loads(path.read_text())


def suffix_of(which: str) -> str:
    """What the names of files about another checkpoint than the last end with."""
    return "" if which == "last" else f"-{which}"


def title(protocol: str, task: Task) -> str:
    """What the column of a table is."""
    if protocol == "lowshot":
        return f"{SHOTS[-1]} a class" if task == "classes" else f"{SHARES[-1]:.0%} of labels"
    if (protocol, task) == ("linear", "numbers"):
        return "ridge"
    count = "count" if task == "classes" else "count, accuracy"
    return dict(knn="kNN", finetune="fine-tune", dense=count, paper="linear, paper", resolution="kNN, 2 x side").get(
        protocol, protocol
    )


def cells(result: dict[str, Any], name: str, sign: str = "+-") -> dict[str, dict[str, str]]:
    """One number of each protocol that has it, and of each row, with its spread over seeds; by title and row."""
    task, found = result["task"], {}
    for protocol, by in result["protocols"].items():
        # scenes have classes, whatever the task is
        key = "accuracy" if protocol == "dense" and name == metrics.SHOWN[task][0] else name
        texts = {row: metrics.text(numbers, key, sign) for row, numbers in by.items() if key in numbers}
        if texts:
            found[title(protocol, task)] = texts
    return found


def told(result: dict[str, Any]) -> str:
    """What a table of labels was taken for, in one line."""
    columns, names = ", ".join(result["table"]["label_column"]), result["classes"]
    which = f"{len(names)} {result['task']} ({labels.listed(names)})" if result["task"] != "numbers" else "numbers"
    return f"{columns}: {which}; divided by {result['division']}"


def leaked(result: dict[str, Any]) -> str:
    """How many test pictures were pre-trained on, in words; "" for none, or where it is not known."""
    seen = result.get("pretrained_on")
    return f"{seen} of {result['tested']} test pictures were pre-trained on, without their labels" if seen else ""


def table(result: dict[str, Any]) -> str:
    """The numbers that the task is judged by as text: a row an encoder, a column a protocol."""
    rows = list(dict.fromkeys(row for by in result["protocols"].values() for row in by))
    lines = [told(result)] if result["table"] else []
    lines += filter(None, [leaked(result)])
    for name in metrics.shown(result["task"], result["uneven"]):
        if columns := cells(result, name):
            of = f"{result['tested']} test pictures of {result['data']}, {result['labels']} labels"
            of += f"; checkpoint {result['checkpoint']}, step {result['step']}"
            lines += [f"{metrics.WORDS[name]} on {of}", f"{'':12}" + "".join(f"{title:>16}" for title in columns)]
            lines += [f"{row:12}" + "".join(f"{by.get(row, '-'):>16}" for by in columns.values()) for row in rows]
    return "\n".join(lines)
