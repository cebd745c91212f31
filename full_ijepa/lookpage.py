"""What a look at pictures found, as text for a terminal and as a page of the same sentences with pictures."""

# Shape legend:  S sampled values of a channel  C channels  H,W pixels

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from matplotlib.figure import Figure

from full_ijepa import page
from full_ijepa.advice import LEAST, PATCHES, Advice, advise
from full_ijepa.look import PERCENTILES, Look, Split
from full_ijepa.page import drawn, listed, picture, rows_table, short
from full_ijepa.pixels import fit
from full_ijepa.twins import COPY, Twin
from toy_ijepa import plots

NAMED = 5  # examples of what is wrong, in a sentence
SHEET, PAIRS = 24, 12  # pictures of the contact sheet, and pairs of copies shown
UNEVEN = 10  # times the smallest class, from which classes are called uneven
CLIPPED = 0.02  # share of values at the end of their range that is named


def some_names(names: Sequence[str]) -> str:
    return ", ".join(short(name) for name in names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def sentences(found: Look) -> dict[str, list[str]]:
    """Findings by title, in plain words; names of files and classes are short and harmless."""
    told = {
        "Pictures": [count_of(split) for split in found.splits] + [page.plain(note) for note in found.notes],
        "Sizes": sizes_of(found.training),
        "Values": values_of(found),
        "What is wrong": faults_of(found),
        "Near copies": copies_of(found),
        "Classes": classes_of(found.training),
    }
    return {title: lines for title, lines in told.items() if lines}


def count_of(split: Split) -> str:
    opened = "all were opened" if split.asked == len(split) else f"{split.asked:,} of them, evenly spread, were opened"
    return f"{split.name}: {len(split):,} pictures; {opened}"


def sizes_of(split: Split) -> list[str]:
    """Smallest, median and largest by area, the aspect, and what is too small for which patch."""
    sides = sorted((seen.sides for seen in split.seen), key=lambda side: side[0] * side[1])
    aspects = sorted(W / H for H, W in sides)
    (h, w), (H, W) = sides[0], sides[-1]
    middle = [round(median(side[axis] for side in sides)) for axis in (0, 1)]
    lines = [
        f"{h} x {w} px (height x width) the smallest, {middle[0]} x {middle[1]} the median, {H} x {W} the largest",
        f"width over height from {aspects[0]:.2f} to {aspects[-1]:.2f}, {median(aspects):.2f} in the median",
    ]
    lines = lines if aspects[0] < aspects[-1] or (h, w) != (H, W) else [f"all are {h} x {w} px (height x width)"]
    for patch, _ in PATCHES:
        small = sum(min(side) < LEAST * patch for side in sides)
        if small:
            lines.append(
                f"{small:,} are below {LEAST * patch} px on a side, too small for patches of {patch} px unless enlarged"
            )
    return lines


def values_of(found: Look) -> list[str]:
    """Channels, depth, and what the numbers reach."""
    pixels, lines = found.pixels, []
    for (channels, depth), count in found.kinds.most_common():
        lines.append(
            f"{channels} channel{'s' * (channels != 1)} of {depth}: {count:,} of {found.kinds.total():,} headers"
        )
    if len(found.kinds) > 1 or not lines:
        lines.append(f"they are read as {pixels.channels} channels of {pixels.depth}")
    if pixels.depth == "uint16" and found.bits < 16:
        lines.append(
            f"the largest value is {found.top:g} or below: {found.bits} bits in files of 16. Programs that divide by "
            "65,535 show them nearly black; here mean and std are measured, nothing has to be done"
        )
    whole = pixels.depth != "float32"
    for channel, values in enumerate(found.values):
        zero, full = (values == 0).mean(), (values >= found.top).mean()
        at = ", ".join(f"{q:g}% {v:.4g}" for q, v in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True))
        lines.append(f"channel {channel}: percentiles {at}; {zero:.1%} zeros, {full:.1%} at the top, {found.top:g}")
        if whole and full > CLIPPED:
            lines.append(f"channel {channel} is saturated in {full:.1%} of its values: what was brighter there is lost")
    return lines


def faults_of(found: Look) -> list[str]:
    """Unreadable and flat pictures of all splits, by name."""
    lines = []
    for split in found.splits:
        if split.unreadable:
            lines.append(
                f"{split.name}: {len(split.unreadable)} of {split.asked:,} cannot be read: "
                + "; ".join(short(line, 160) for line in split.unreadable[:NAMED])
                + ("; ..." if len(split.unreadable) > NAMED else "")
            )
        if split.flat:
            names = [split.part.names[seen.number] for seen in split.flat]
            lines.append(f"{split.name}: {len(names)} flat, with nothing in them to be predicted: {some_names(names)}")
    return lines or ["nothing: all that were opened can be read, and none is flat"]


def copies_of(found: Look) -> list[str]:
    """Near copies within each split and across."""
    lines = []
    for split in found.splits:
        if split.copies:
            first = split.copies[0]
            pair = f"{short(split.name_of(first.one))} and {short(split.name_of(first.other))}"
            lines.append(f"{split.name}: {len(split.copies)} of {len(split.seen):,} nearly repeat another: {pair}")
            apart = [t for t in split.copies if split.label_of(t.one) != split.label_of(t.other)]
            if apart:
                pair = f"{short(split.name_of(apart[0].one))} and {short(split.name_of(apart[0].other))}"
                lines.append(f"{split.name}: {len(apart)} of these copies lie in different classes: {pair}")
    if found.leaks:
        test, train = found.splits[-1], found.training
        pair = f"{short(test.name_of(found.leaks[0].one))} and {short(train.name_of(found.leaks[0].other))}"
        lines.append(
            f"{len(found.leaks)} of {len(test.seen):,} in {test.name} nearly repeat one in {train.name}: a leak, "
            f"scores will be too good: {pair}"
        )
    parts = " and ".join(split.name for split in found.splits)
    lines = lines or [f"none among those opened of {parts}"]
    if any(split.asked < len(split) for split in found.splits):
        lines.append("copies of pictures that were not opened cannot be seen; --most opens more")
    return lines


def classes_of(split: Split) -> list[str]:
    """How many pictures each class has."""
    classes = split.classes.most_common()
    if not classes:
        return ["none, neither by folders nor by a table. Training needs no classes"]
    (most, many), (least, few) = classes[0], classes[-1]
    lines = [f"{len(classes)}: {short(most)} has {many:,} pictures, {short(least)} {few:,}"]
    if len(classes) == 1:
        lines.append("a single class cannot be told from others: nothing can be probed")
    if many > UNEVEN * few:
        lines.append(
            f"uneven: the largest has {many / few:.0f} times the smallest; read balanced accuracy beside accuracy"
        )
    once = [name for name, count in classes if count == 1]
    if once:
        lines.append(f"{len(once)} have a single picture and cannot be both learned and tested: {some_names(once)}")
    return lines


def advice_lines(advice: Advice) -> list[str]:
    return [page.plain(reason) for reason in advice.reasons]


def text(found: Look) -> str:
    """All of it for a terminal."""
    advice = advise(found)
    lines = [f"a look at {page.plain(found.data)}"]
    for title, told in {**sentences(found), "A recipe to start with, and why": advice_lines(advice)}.items():
        lines += ["", f"{title}:", *(f"  {line}" for line in told)]
    how = "start (with --dry-run first: how long it will take here):"
    return "\n".join([*lines, "", how, f"  {start(found, advice)}"])


def start(found: Look, advice: Advice) -> str:
    """The command, unless training would refuse the pictures, or a path cannot be written on one line."""
    if len({depth for _, depth in found.kinds}) > 1 and 2 * found.kinds[3, "uint8"] <= found.kinds.total():
        return "(not yet: training takes pictures whose numbers are of one kind; see above)"
    return (
        advice.command
        if advice.command.isprintable()
        else f"{page.plain(advice.command)}  (as codes; rename the folder)"
    )


def sections(found: Look, level: int = 2) -> list[str]:
    """All but the recipe as HTML, under headings of a level."""
    told = sentences(found)
    figures = {
        "Pictures": [
            picture(sheet(found), f"{found.data}: pictures, evenly spread, as the encoder's numbers show them")
        ],
        "Values": [picture(histogram(found), f"{found.data}: values of each channel of training pictures")],
        "Near copies": pairs(found),
        "Classes": class_table(found.training),
    }
    parts = []
    for title, lines in told.items():
        parts += [f"<h{level}>{title}</h{level}>", listed(lines), *figures.get(title, [])]
    return parts


def write(found: Look, target: Path) -> Path:
    """The page: one HTML file with everything inside."""
    advice = advise(found)
    parts = [f"<h1>A look at {page.escaped(short(found.data))}</h1>", *sections(found)]
    parts += ["<h2>A recipe to start with, and why</h2>", listed(advice_lines(advice))]
    parts.append("<p>With <code>--dry-run</code> it says first how long it will take.</p>")
    parts.append(f"<pre>{page.escaped(start(found, advice))}</pre>")
    return page.write(target, "A look at the pictures", parts)


def shown(found: Look, split: Split, number: int) -> np.ndarray | None:
    """One opened picture as people see it, (H, W, 3) uint8, at most 128 px; None if it has vanished since."""
    values = split.picture(number)
    if isinstance(values, str):
        return None
    values = torch.from_numpy(np.ascontiguousarray(values))[None]
    scale = min(1.0, 128 / max(values.shape[2:]))
    sides = tuple(max(round(side * scale), 1) for side in values.shape[2:])
    return found.pixels.shown(fit(values, sides))[0].permute(1, 2, 0).numpy()


def tile(ax, image: np.ndarray | None, title: str) -> None:
    if image is None:
        ax.axis("off")
        return
    plots.show(ax, torch.from_numpy(image).permute(2, 0, 1), "")
    ax.set_title(drawn(title, 24), fontsize=6)


def sheet(found: Look) -> Figure:
    """Some training pictures with their names."""
    split = found.training
    numbers = (
        [i * len(split.seen) // SHEET for i in range(SHEET)] if len(split.seen) > SHEET else range(len(split.seen))
    )
    columns = min(8, len(numbers))
    figure, axes = plots.grid_of(-(-len(numbers) // columns), columns)
    for ax in axes.flat:
        ax.axis("off")
    for ax, number in zip(axes.flat, numbers, strict=False):
        ax.axis("on")
        tile(ax, shown(found, split, number), split.name_of(number))
    return figure


def histogram(found: Look) -> Figure:
    """How often each value occurs, by channel; the ends are the outermost percentiles, dashed."""
    count = min(len(found.values), 16)
    figure, axes = plots.grid_of(-(-count // 4), min(count, 4), cell=2.4)
    for ax in axes.flat[count:]:
        ax.axis("off")
    for channel, (ax, values) in enumerate(zip(axes.flat, found.values, strict=False)):
        ax.hist(values.astype(np.float64), bins=64, log=True, color="0.4")
        for value in np.percentile(values, (PERCENTILES[0], PERCENTILES[-1])):
            ax.axvline(value, color="C1", linestyle="--", linewidth=1)
        ax.set_title(f"channel {channel}", fontsize=8)
        ax.tick_params(labelsize=7, which="both")
    return figure


def pairs(found: Look) -> list[str]:
    """Near copies side by side, leaks first; none without any."""
    test, train = found.splits[-1], found.training
    shown_pairs: list[tuple[Twin, Split, Split]] = [(twin, test, train) for twin in found.leaks[: PAIRS // 2]]
    for split in found.splits:
        shown_pairs += [(twin, split, split) for twin in split.copies]
    shown_pairs = shown_pairs[:PAIRS]
    if not shown_pairs:
        return []
    figure, axes = plots.grid_of(-(-len(shown_pairs) // 3), 6)
    for ax in axes.flat:
        ax.axis("off")
    for place, (twin, one, other) in enumerate(shown_pairs):
        for ax, split, number in ((axes.flat[2 * place], one, twin.one), (axes.flat[2 * place + 1], other, twin.other)):
            ax.axis("on")
            tile(ax, shown(found, split, number), f"{split.name}: {split.name_of(number)}")
    words = (
        f"{found.data}: pairs of near copies side by side (likeness {COPY} or more of at most 1); look whether they are"
    )
    return [picture(figure, words)]


def class_table(split: Split) -> list[str]:
    """Counts of the largest and smallest classes."""
    rows = [[short(name), f"{count:,}"] for name, count in split.classes.most_common()]
    rows = rows if len(rows) <= 40 else [*rows[:20], ["...", f"{len(rows) - 40} more"], *rows[-20:]]
    return [rows_table(["class", f"pictures in {split.name}"], rows)] if rows else []
