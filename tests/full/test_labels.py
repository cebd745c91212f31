"""Tables of labels: what they are taken for, how they are divided, and each mistake by its line."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from full_ijepa import data
from full_ijepa.evaluate import heads, paper, tuning
from full_ijepa.evaluate.features import alone
from full_ijepa.evaluate.pictures import labelled
from full_ijepa.evaluate.protocols import few_labels
from full_ijepa.labels import apart, read, task_of
from full_ijepa.table import Table
from full_ijepa.train import pretrain
from toy_ijepa.folders import DataError

COUNT, SIDE = 60, 16  # pictures, px


def draw(root: Path, names: list[str], side: int = SIDE) -> None:
    """Plain pictures; the number in its name is a picture's brightness."""
    for n, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), (4 * n, 4 * n, 4 * n)).save(path)


def write(path: Path, rows: list[dict[str, object]], mark: str = ",") -> Path:
    path.write_text("\n".join(mark.join(map(str, row)) for row in (rows[0], *(row.values() for row in rows))) + "\n")
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    draw(tmp_path / "pictures", [f"{n:02}.png" for n in range(COUNT)])
    return tmp_path / "pictures"


def rows(**columns) -> list[dict[str, object]]:
    """A row a picture; a column is a function of its number."""
    return [dict(image=f"{n:02}.png") | {name: of(n) for name, of in columns.items()} for n in range(COUNT)]


def found(root: Path, lines: list[dict[str, object]], *columns: str, **options):
    path = write(root.parent / "labels.csv", lines)
    return read(Table(str(path), columns or ("grade",), **options), root)


def answers(part) -> dict[str, object]:
    return {path.name: label.tolist() for path, label in zip(part.files, part.labels, strict=True)}


# --- what labels are


def test_classes_are_numbered_by_name_and_pictures_keep_theirs(root):
    labels = found(root, rows(grade=lambda n: ("mild", "severe", "none")[n % 3]))
    assert labels.names == ("mild", "none", "severe")
    both = answers(labels.train) | answers(labels.test)
    assert both == {f"{n:02}.png": (0, 2, 1)[n % 3] for n in range(COUNT)}
    assert task_of(labels.train.labels) == "classes"
    assert torch.bincount(labels.test.labels).tolist() == [4, 4, 4], "a fifth of each class"
    assert labels.train.groups is None


@pytest.mark.parametrize(
    ("cell", "task", "names"),
    [
        (lambda n: n % 12, "classes", tuple(map(str, range(12)))),  # in the order of numbers: 2 before 10
        (lambda n: f"{n % 3}.0", "classes", ("0", "1", "2")),
        (lambda n: n % 30, "numbers", ("grade",)),  # each seen twice
        (lambda n: n % 2 + 0.5, "numbers", ("grade",)),
        (lambda n: ("cat|dog", "dog", "bird")[n % 3], "tags", ("bird", "cat", "dog")),
        (lambda n: ("1;3", "3", "1")[n % 3], "tags", ("1", "3")),
    ],
)
def test_one_column_is_taken_for_what_it_looks_like(root, cell, task, names):
    labels = found(root, rows(grade=cell))
    assert (task_of(labels.train.labels), labels.names) == (task, names)


def test_the_task_can_be_said(root):
    assert found(root, rows(grade=lambda n: n % 5), task="numbers").train.labels.dtype == torch.float32
    assert len(found(root, rows(grade=lambda n: n // 2), task="classes").names) == COUNT // 2
    comma = found(root, rows(grade=lambda n: '"a, b"' if n % 2 else "a"), task="tags")
    assert comma.names == ("a", "b")


def test_several_columns(root):
    lines = rows(a=lambda n: n % 2, b=lambda n: ("yes", "no")[n % 3 == 0], c=lambda n: n / 7)
    both = found(root, lines, "a", "b")
    assert both.names == ("a", "b")
    assert (answers(both.train) | answers(both.test))["03.png"] == [True, False]
    numbers = found(root, lines, "a", "c")
    assert (answers(numbers.train) | answers(numbers.test))["07.png"] == [1.0, 1.0]
    with pytest.raises(DataError, match="columns of tags hold 0 or 1; line 3"):
        found(root, lines, "a", "c", task="tags")
    with pytest.raises(DataError, match="classes stand in one column, not in 2"):
        found(root, lines, "a", "b", task="classes")


def test_tags_are_rows_of_truth(root):
    labels = found(
        root, rows(grade=lambda n: "|".join(name for name, k in zip("abc", (2, 3, 1), strict=True) if n % k == 0))
    )
    both = answers(labels.train) | answers(labels.test)
    for n in range(COUNT):
        assert both[f"{n:02}.png"] == [n % 2 == 0, n % 3 == 0, True]


# --- how tables are written


def test_other_formats_say_the_same(root):
    lines = rows(grade=lambda n: f"g{n % 3}", age=lambda n: n)
    expected = answers(found(root, lines).test)
    for name, mark in (("a.tsv", "\t"), ("b.csv", ";")):
        assert answers(read(Table(str(write(root.parent / name, lines, mark)), ("grade",)), root).test) == expected
    excel = root.parent / "excel.csv"
    excel.write_bytes(b"\xef\xbb\xbf" + (root.parent / "a.tsv").read_bytes().replace(b"\n", b"\r\n"))
    assert answers(read(Table(str(excel), ("grade",)), root).test) == expected
    parquet = root.parent / "c.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), parquet)
    assert answers(read(Table(str(parquet), ("grade",)), root).test) == expected
    listed = [dict(image=row["image"], grade=["x", row["grade"]]) for row in lines]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(listed), parquet)
    assert read(Table(str(parquet), ("grade",)), root).names == ("g0", "g1", "g2", "x")


def test_paths_as_people_write_them(tmp_path):
    """Relative to the folder or the table, absolute, with backslashes, and without the suffix."""
    draw(tmp_path / "set", [f"a/{n}.png" for n in range(10)])
    names = ["a/0.png", "set/a/1.png", str(tmp_path / "set/a/2.png"), "a\\3.png", "a/4", "./a/5.png", "a/../a/6.png"]
    table = write(tmp_path / "t.csv", [dict(id=name, y=n % 2) for n, name in enumerate([*names, "a/7", "a/8", "a/9"])])
    labels = read(Table(str(table), ("y",), "id", task="classes"), tmp_path / "set")
    both = answers(labels.train) | answers(labels.test)
    assert both == {f"{n}.png": n % 2 for n in range(10)}


def test_a_table_that_has_changed_is_read_again(root):
    assert found(root, rows(grade=lambda n: n % 2)).names == ("0", "1")
    assert found(root, rows(grade=lambda n: n % 3)).names == ("0", "1", "2")


# --- mistakes, by their lines


def good() -> list[dict[str, object]]:
    return rows(grade=lambda n: f"g{n % 3}", patient=lambda n: f"p{n // 4}")


def with_row(line: int, **changes) -> list[dict[str, object]]:
    lines = good()
    lines[line - 2] |= changes
    return lines


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (with_row(7, image="99.png"), {}, r"1 of 60 pictures are not there, looked for in .*: line 7 \(99.png\)"),
        (with_row(7, image=""), {}, r"line 7 \(nothing\)"),
        ([*good(), dict(image="03.png", grade="g1", patient="p0")], {}, r"contradict each other: lines 5 and 62 "),
        (with_row(9, patient=""), dict(group_column="patient"), r"no 'patient' in line 9 \(07.png\)"),
        (good(), dict(group_column="patiant"), "unknown column 'patiant': did you mean 'patient'"),
        (good(), dict(path_column="img"), "unknown column 'img': did you mean 'image'"),
        (rows(grade=lambda n: "" if n else "NA"), {}, "no row has a label in grade"),
        (rows(grade=lambda n: "a"), {}, "all labels are 'a'"),
        (rows(grade=lambda n: "high" if n == 3 else n / 3), {}, r"text among the numbers of 'grade': line 5 \('high"),
        (rows(grade=lambda n: "1e999" if n == 3 else n / 3), {}, r"line 5 \('1e999'\)"),
        (rows(grade=lambda n: "a|b"), {}, "have the same tags"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*no label in")
def test_a_mistake_is_refused_by_its_line(root, lines, options, message):
    with pytest.raises(ValueError, match=message):
        found(root, lines, **options)


def test_what_is_doubtful_is_said_and_used(root):
    with pytest.warns(UserWarning, match=r"no label in line 4 \(02.png\); these are only trained on"):
        labels = found(root, with_row(4, grade="n/a"))
    assert "02.png" not in answers(labels.train) | answers(labels.test)
    with pytest.warns(UserWarning, match=r"used once: lines 5 and 62 \(03.png\)"):
        labels = found(root, [*good(), good()[3]])
    assert len(labels.train) + len(labels.test) == COUNT
    with pytest.warns(UserWarning, match="seen only once: 'benin' in line 8"):
        labels = found(root, with_row(8, grade="benin"))
    assert answers(labels.train)["06.png"] == labels.names.index("benin"), "what is seen once cannot be judged"
    with warnings.catch_warnings(action="error"):
        found(root, good())


def test_files_that_are_no_tables(root, tmp_path):
    cases = {
        "500": ("", r"--labels takes a .csv, .tsv or .parquet file; for at most 500 labelled pictures say --most 500"),
        "a.xlsx": ("x", "is no .csv, .tsv or .parquet file"),
        "b.csv": ("image,grade\n", "has no rows below a header"),
        "c.csv": ("image,grade\na,b,c\n", "line 2 does not have the 2 cells of the header"),
        "d.csv": ("image,grade,grade\na,b,c\n", "more than one column 'grade'"),
        "e.parquet": ("no", "cannot be read as Parquet"),
        "f.csv": ("picture,grade\n00.png,1\n", "which column of .* holds the pictures"),
    }
    for name, (text, message) in cases.items():
        path = tmp_path / name
        if text:
            path.write_text(text)
        with pytest.raises(DataError, match=message):
            read(Table(str(path) if text else name, ("grade",)), root)
    (tmp_path / "g.csv").write_bytes("image,grade\nä,ö\n".encode("latin-1"))
    with pytest.raises(DataError, match="save it as CSV in UTF-8"):
        read(Table(str(tmp_path / "g.csv"), ("grade",)), root)
    with pytest.raises(DataError, match=r"which column of .* holds the labels.* image, grade, patient"):
        read(Table(str(write(tmp_path / "h.csv", good()))), root)


# --- divisions


def together(labels) -> set[int]:
    """Numbers of groups on both sides."""
    return set(labels.train.groups.tolist()) & set(labels.test.groups.tolist())


@pytest.mark.parametrize("cell", [lambda n: f"g{n // 4 % 3}", lambda n: n / 7, lambda n: "a|b" if n % 2 else "a"])
def test_groups_stay_together(root, cell):
    """Patients of uneven size, interleaved; the draw is the same whatever the order of the rows."""
    lines = rows(grade=cell, patient=lambda n: f"p{(n * n) % 23}")
    labels = found(root, lines, group_column="patient")
    assert not together(labels)
    patients = {row["image"]: row["patient"] for row in lines}
    sides = [{patients[p.name] for p in part.files} for part in (labels.train, labels.test)]
    assert not sides[0] & sides[1]
    assert 4 <= len(labels.test) <= 20
    assert answers(found(root, lines[::-1], group_column="patient").test) == answers(labels.test)
    assert labels.division == "a fifth of the groups of 'patient', drawn once"


def test_a_class_of_one_patient_is_learned_not_judged(root):
    lines = rows(grade=lambda n: "rare" if n < 6 else f"g{n % 2}", patient=lambda n: f"p{n // 6}")
    labels = found(root, lines, group_column="patient")
    assert labels.names.index("rare") in labels.train.labels
    assert labels.names.index("rare") not in labels.test.labels


def test_one_patient_cannot_be_divided(root):
    with pytest.raises(DataError, match="1 groups of 'patient' cannot be divided"):
        found(root, rows(grade=lambda n: f"g{n % 3}", patient=lambda n: "p"), group_column="patient")


def test_a_column_divides(root):
    lines = rows(grade=lambda n: f"g{n % 3}", part=lambda n: ("Train", "val", "test")[min(n % 5, 2)])
    labels = found(root, lines, split_column="part")
    assert sorted(answers(labels.test)) == [f"{n:02}.png" for n in range(COUNT) if n % 5 > 1], "val trains"
    lines = rows(grade=lambda n: f"g{n % 3}", part=lambda n: "valid" if n % 5 == 0 else "train")
    assert len(found(root, lines, split_column="part").test) == 12, "val is the test part where nothing else is"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (rows(grade=lambda n: f"g{n % 3}", part=lambda n: "train"), "every labelled row has 'part' 'train'"),
        (rows(grade=lambda n: f"g{n % 3}", part=lambda n: "tset" if n == 9 else "train"), r"line 11 \('tset'\)"),
        (
            rows(
                grade=lambda n: "odd" if n == 8 else f"g{n % 3}", part=lambda n: "test" if n in (7, 8, 9) else "train"
            ),
            "only the test part has 'odd' in line 10",
        ),
        (
            rows(grade=lambda n: "a|b" if n == 8 else "a", part=lambda n: "test" if n in (7, 8, 9) else "train"),
            "only the test part has 'b' in line 10",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*seen only once")
def test_a_division_that_cannot_be_judged_is_refused(root, lines, message):
    with pytest.raises(DataError, match=message):
        found(root, lines, split_column="part")


def test_a_division_that_parts_patients_is_refused(root):
    lines = rows(
        grade=lambda n: f"g{n % 3}", part=lambda n: "test" if n > 41 else "train", patient=lambda n: f"p{n // 4}"
    )
    with pytest.raises(DataError, match="1 groups of 'patient' lie on both sides of the column 'part': p10"):
        found(root, lines, split_column="part", group_column="patient")


def test_folders_divide_where_both_are_labelled(tmp_path):
    names = [f"{part}/{n:02}.png" for part in ("train", "test") for n in range(20)]
    draw(tmp_path / "set", names)
    lines = [dict(image=name, grade=f"g{n % 2}") for n, name in enumerate(names)]
    labels = read(Table(str(write(tmp_path / "t.csv", lines)), ("grade",)), tmp_path / "set")
    assert {p.parent.name for p in labels.train.files} == {"train"}
    assert {p.parent.name for p in labels.test.files} == {"test"}
    half = read(Table(str(write(tmp_path / "u.csv", lines[:20])), ("grade",)), tmp_path / "set")
    assert (len(half.train), len(half.test)) == (16, 4), "only train is labelled: a fifth of it is set aside"


# --- where choices are made


def test_what_is_held_out_parts_no_group():
    groups = torch.arange(90) ** 2 % 17
    for seed in range(5):
        for rest, held in (heads.hold_out(90, seed, groups), apart(groups, 0.2, seed)):
            assert sorted([*rest.tolist(), *held.tolist()]) == list(range(90))
            assert not set(groups[rest].tolist()) & set(groups[held].tolist())
    with pytest.raises(DataError, match="of one group"):
        heads.hold_out(9, 0, torch.zeros(9))


def test_heads_choose_without_parting_groups(monkeypatch):
    """Every head that chooses hands its groups to what holds out."""
    seen = []
    for module in (heads, tuning, paper):
        monkeypatch.setattr(
            module, "hold_out", lambda count, seed, groups=None: seen.append(groups) or apart(groups, 0.3, 0)
        )
    x, groups = torch.randn(40, 5, 6), torch.arange(40) // 4
    y = torch.arange(40) % 2
    heads.linear(x[:, 0], y, x[:, 0], 2, epochs=1, groups=groups)
    heads.ridge(x[:, 0], y.float()[:, None], x[:, 0], groups=groups)
    tuning.attentive(x.half(), y, x.half(), 2, 2, alone(), epochs=1, groups=groups)
    paper.linear({"last": (x[:, 0], x[:, 0])}, y, 2, groups=groups, epochs=1)
    assert len(seen) == 3 + 2
    assert all(torch.equal(g, groups) for g in seen)


def test_few_and_at_most_draw_from_the_training_patients(root):
    path = write(root.parent / "labels.csv", good())
    table = Table(str(path), ("grade",), group_column="patient")
    train, test = (labelled(f"folder:{root}", split, SIDE, 30, table=table) for split in ("train", "test"))
    assert len(train) == 30
    for kind, amount in (("share", 0.1), ("each", 5)):
        few = train.some(few_labels(train.labels, kind, amount, 0))
        assert not set(few.groups.tolist()) & set(test.groups.tolist())
    numbers = [int(place.fetched().stem) for place in train.source]
    assert train.images().float().mean((1, 2, 3)).tolist() == [4.0 * number for number in numbers]


# --- pre-training


def test_what_is_judged_is_not_trained_on(root, recipe, tmp_path):
    """Nor an unlabelled picture of a test patient; other unlabelled ones are."""
    draw(root, [f"extra{n}.png" for n in range(5)])
    lines = good()
    for n in (0, 1, 20):
        lines[n]["grade"] = ""
    path = write(tmp_path / "labels.csv", lines)
    options = dict(labels=str(path), label_column=("grade",), group_column="patient")
    recipe = recipe.replace(data=f"folder:{root}", **options)
    with pytest.warns(UserWarning, match="no label in line 2 .*, line 3 .*, line 22 "):
        labels = read(Table.of(recipe), root)
    trained = {p.name for p in data.training_files(recipe)}
    patients = {row["image"]: row["patient"] for row in lines}
    away = {patients[p.name] for p in labels.test.files}
    assert {f"extra{n}.png" for n in range(5)} <= trained
    assert trained == {p.name for p in root.iterdir() if patients.get(p.name) not in away}
    assert len(data.training_set(recipe, torch.device("cpu"))) == len(trained)


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        (lambda n: f"g{n > 30}", {}),
        (lambda n: n / 2, {}),
        (lambda n: "a|b" if n > 30 else "a", dict(group_column="patient")),
    ],
)
def test_the_probe_of_a_run_watches_labels(root, recipe, tmp_path, cell, options):
    """Brightness is the answer, and even a hardly trained encoder sees it."""
    path = write(tmp_path / "labels.csv", rows(grade=cell, patient=lambda n: f"p{n * 7 % 13}"))
    recipe = recipe.replace(data=f"folder:{root}", labels=str(path), label_column=("grade",), **options)
    bank, bank_labels, queries, labels = data.probe_set(recipe)
    known = read(Table.of(recipe), root)
    answer = answers(known.train)
    for images, said in ((bank, bank_labels), (queries, labels)):
        for image, label in zip(images, said, strict=True):
            assert answer[f"{int(image[0, 0, 0]) // 4:02}.png"] == label.tolist()
    numbers = [{int(image[0, 0, 0]) // 4 for image in images} for images in (bank, queries)]
    assert not numbers[0] & numbers[1]
    if options:
        patients = [{n * 7 % 13 for n in some} for some in numbers]
        assert not patients[0] & patients[1]
    done = pretrain(recipe.replace(epochs=0.4, warmup_epochs=0.1), tmp_path / "run", progress=False)
    assert done.rows[-1]["knn"] > 80


def test_a_broken_labelled_picture_shifts_no_label(root, recipe, tmp_path):
    path = write(tmp_path / "labels.csv", rows(grade=lambda n: n / 2))
    recipe = recipe.replace(data=f"folder:{root}", labels=str(path), label_column=("grade",))
    broken = read(Table.of(recipe), root).train.files[5]
    broken.write_bytes(b"no picture")
    bank, bank_labels, queries, labels = data.probe_set(recipe.replace(allow_skipped=True))
    shades = torch.cat([bank, queries])[:, 0, 0, 0].float()
    assert len(shades) == 47
    assert np.allclose(torch.cat([bank_labels, labels])[:, 0], shades / 8)


@pytest.mark.parametrize("whole", [True, False])
def test_a_picture_is_one_however_it_is_spelled(root, recipe, whole):
    """Named through a link to its folder, or lying in one that the folder links to: its test part stays withheld."""
    link = root.parent / "link"
    if whole:
        link.symlink_to(root)
    else:
        link.mkdir()
        (link / "train").symlink_to(root)
    lines = [dict(row, image=f"{'link' if whole else root.name}/{row['image']}") for row in good()]
    path = write(root.parent / "labels.csv", lines)
    table = Table(str(path), ("grade",), group_column="patient")
    fields = dict(labels=table.labels, label_column=("grade",), group_column="patient")
    for folder in (root, link):
        trained = {p.name for p in data.training_files(recipe.replace(data=f"folder:{folder}", **fields))}
        withheld = {p.name for p in read(table, folder).test.files}
        assert withheld
        assert trained == {f"{n:02}.png" for n in range(COUNT)} - withheld


def test_folders_divide_however_they_are_spelled(tmp_path):
    for part in ("train", "test"):
        draw(tmp_path / "there" / part, [f"{n:02}.png" for n in range(10)])
    (tmp_path / "link").symlink_to(tmp_path / "there")
    lines = [dict(image=f"link/{part}/{n:02}.png", grade="ab"[n % 2]) for part in ("train", "test") for n in range(10)]
    table = Table(str(write(tmp_path / "labels.csv", lines)), ("grade",))
    for name in ("there", "link"):
        found = read(table, tmp_path / name)
        assert (found.division, len(found.test)) == ("the folders train and test", 10)


def test_a_table_goes_with_a_folder(recipe):
    for make in (
        lambda: recipe.replace(data="cifar10", labels="a.csv"),
        lambda: labelled("shapes", "test", 16, table=Table("a.csv")),
    ):
        with pytest.raises(ValueError, match="a table of labels goes with a folder of pictures"):
            make()
