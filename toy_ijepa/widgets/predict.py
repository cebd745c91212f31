"""Predict first, then check: a reader commits to answers before running on, and later sees how far they were."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from pathlib import Path

import anywidget
import traitlets

NEAR = 0.1  # a number is right within a tenth of the answer; a share in %, within five points
NEAR_POINTS = 5.0
HEAD = ("who", "chapter", "question", "said", "answer", "outcome")  # of a file of predictions; book/explore too

STYLE = """
.ijepa-ask { max-width: 46em; margin: 4px; padding: 0; border: 0; color: var(--jp-ui-font-color1, inherit); }
.ijepa-ask fieldset { border: 0; border-left: 3px solid var(--jp-border-color1, #888); }
.ijepa-ask fieldset { margin: 8px 0; padding: 2px 10px; }
.ijepa-ask legend { font-weight: 600; padding: 0; float: left; width: 100%; }
.ijepa-ask label { display: inline-block; margin-right: 1.2em; clear: left; }
.ijepa-ask input[type="text"] { width: 14em; max-width: 90%; font: inherit; }
.ijepa-ask p { margin: 2px 0; min-height: 1.3em; }
.ijepa-ask button { font: inherit; }
"""


@dataclass(frozen=True)
class Question:
    """What is asked: one of `options`, a number in `unit`, or (neither) words."""

    label: str
    options: tuple[str, ...] = ()
    unit: str | None = None

    @property
    def kind(self) -> str:
        return "choice" if self.options else "words" if self.unit is None else "number"

    def shown(self, found: object) -> str:
        """An answer as it stands before its reason. Raises ValueError if it is not among the options."""
        if self.options and found not in self.options:
            raise ValueError(f"{found!r} is not one of the options {', '.join(self.options)}")
        if self.kind == "number":
            return f"{found:,.0f}{self.unit}: " if abs(found) >= 1000 else f"{found:.3g}{self.unit}: "
        return f"{found}: " if self.options else ""

    def compare(self, said: str, found: object) -> str:
        """How an answer, "" for none, stands to what was found."""
        if not said:
            return "You made no prediction."
        if self.kind == "words":
            return f"You wrote: {said}"
        if self.kind == "choice":
            return f"You said {said}: {'right.' if said == found else 'not so.'}"
        return f"You said {said}{self.unit}: {distance(float(said), float(found), self.unit)}."


def distance(said: float, found: float, unit: str) -> str:
    """How far a number is from the one that was found: in points for shares, else as a factor where the signs agree."""
    off = said - found
    side = "high" if off > 0 else "low"
    if "%" in unit:
        return "right, within five points" if abs(off) <= NEAR_POINTS else f"{abs(off):.0f} points too {side}"
    if abs(off) <= NEAR * abs(found):
        return "right" if off == 0 else "right, within a tenth"
    if said * found > 0:
        return f"{max(said / found, found / said):.2g} times too {side}"
    return f"too {side} by {abs(off):.3g}"


def choice(label: str, *options: str) -> Question:
    """A question whose answer is one of the options. Raises ValueError for fewer than two."""
    if len(options) < 2:
        raise ValueError(f"{label!r} offers {len(options)} options: a choice needs two")
    return Question(label, options)


def number(label: str, unit: str = "") -> Question:
    """A question whose answer is a number; `unit` is written after it (" %", " times")."""
    return Question(label, unit=unit)


def words(label: str) -> Question:
    """A question to be answered in words; nobody marks them."""
    return Question(label)


class Predictions(anywidget.AnyWidget):
    """The questions of a chapter as a form; an answer that was committed can no longer be changed.

    answers   what was committed, as text, "" for nothing yet; the same in Python and JavaScript
    outcomes  how each answer stood, "" until `reveal`
    """

    _esm = (Path(__file__).parent / "predict.js").read_text()
    _css = STYLE

    questions = traitlets.List(traitlets.Dict()).tag(sync=True)
    answers = traitlets.List(traitlets.Unicode()).tag(sync=True)
    outcomes = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def __init__(self, *asked: Question) -> None:
        self.asked = asked
        self.found: list[object] = [""] * len(asked)  # the answers, "" until `reveal`
        blank = [""] * len(asked)
        super().__init__(questions=[asdict(q) | {"kind": q.kind} for q in asked], answers=blank, outcomes=list(blank))

    def __repr__(self) -> str:
        return f"Predictions({'; '.join(q.label for q in self.asked)})"

    def reveal(self, *found: tuple[object, str]) -> None:
        """Print each answer with its reason and how the prediction stood, and show that in the form too.

        found  (answer, reason) of each question, in order; an answer in words is its reason
        Raises ValueError if there are more or fewer than questions, or an answer is not among the options.
        """
        if len(found) != len(self.asked):
            raise ValueError(f"{len(found)} answers to {len(self.asked)} questions")
        outcomes = []
        for place, (question, said, (answer, reason)) in enumerate(
            zip(self.asked, self.answers, found, strict=True), 1
        ):
            told, shown = question.compare(said, answer), question.shown(answer)
            print(f"{place}. {shown}{reason}\n   {told}")
            mark = "" if question.kind == "words" or not said else f" {told}"
            outcomes.append(reason if question.kind == "words" else f"It is {shown.rstrip(': ')}.{mark}")
        self.outcomes, self.found = outcomes, [answer for answer, _ in found]

    def save(self, path: str | Path, who: str = "", chapter: str = "") -> None:
        """Add a row a question to a CSV file (columns HEAD), for a teacher who asked for it; nobody else gets it.

        path  of the file; a new one gets a line of names first
        Raises ValueError if a file is there that has other columns, OSError if it cannot be written.
        """
        path = Path(path)
        new = not path.exists() or not path.stat().st_size
        if not new:
            with path.open(newline="", encoding="utf-8") as file:
                if tuple(next(csv.reader(file))) != HEAD:
                    raise ValueError(f"{path} is not a file of predictions (columns {', '.join(HEAD)}): name another")
        with path.open("a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerows([HEAD] * new)
            for question, said, found in zip(self.asked, self.answers, self.found, strict=True):
                told = question.compare(said, found) if any(self.outcomes) else ""
                rows.writerow([who, chapter, question.label, said, found, told])
