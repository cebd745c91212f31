"""The exercises: ours are right, stubs fail where they should and nowhere else, wrong answers are rejected.

Cells are executed here in one process, which is fast; one assignment goes the whole way through nbgrader's own kernel,
gradebook and feedback.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import re
import shutil
import textwrap
from functools import cache
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from tests.chapters.test_book import LONGEST, imported, opened

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "chapters" / "exercises").glob("[0-9][0-9]_*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n.*?### END SOLUTION$", re.DOTALL | re.MULTILINE)
FACTS = re.compile(
    r"\*(?P<kind>fill in|find the bug|change and predict)\* · difficulty (?P<dots>●+)○* · "
    r"importance [123] of 3 · about (?P<minutes>\d+) minutes · (?P<points>\d+) points?"
)
HIDDEN = re.compile(r"^### BEGIN HIDDEN TESTS\n.*?### END HIDDEN TESTS$", re.DOTALL | re.MULTILINE)
SILENT = {"silent bug 1": "02_build_encoder", "silent bug 2": "06_train_ijepa", "silent bug 3": "06_train_ijepa"}


def load_classroom():
    """The script chapters/exercises/classroom.py as a module."""
    spec = importlib.util.spec_from_file_location("classroom", ROOT / "chapters" / "exercises" / "classroom.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


classroom = load_classroom()


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def cells(name: str) -> dict[str, NotebookNode]:
    """The cells of an instructor's notebook by their id."""
    return {cell.id: cell for cell in read(ROOT / "chapters" / "exercises" / f"{name}.ipynb").cells}


def exercises(name: str) -> list[str]:
    """ "ex1", "ex2", ... of a notebook."""
    return [id.removesuffix("-task") for id in cells(name) if id.endswith("-task")]


def answers(name: str) -> dict[str, dict[str, dict[str, str]]]:
    return importlib.import_module(f"tests.chapters.answers.a{name}").ANSWERS


def stored(kind: str) -> list:
    """Every stored answer of that kind: (notebook, exercise, name of the answer)."""
    return [
        pytest.param(name, exercise, answer, id=f"{name[:2]}-{exercise}-{answer.replace(' ', '_')}")
        for name in NAMES
        for exercise, kinds in answers(name).items()
        for answer in kinds.get(kind, {})
    ]


def fill(source: str, answer: str) -> str:
    """The source of an answer cell with another answer between the solution marks."""
    found = SOLUTION.search(source)
    indented = textwrap.indent(textwrap.dedent(answer).strip("\n"), found[1])
    return source[: found.start()] + indented + source[found.end() :]


def run(source: str, names: dict, label: str = "cell") -> tuple[str, str]:
    """Execute a cell's source; what it printed on stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        exec(compile(source, label, "exec"), names)
    return out.getvalue(), err.getvalue()


def check(name: str, exercise: str, answer: str, *, hidden: bool = True) -> None:
    """Run an exercise with this answer, up to and with its tests; without `hidden`, those that a student sees."""
    found = cells(name)
    if predicts(found[f"{exercise}-answer"].source):
        names, parts = dict(measured(name, exercise)), ("answer", "test")
    else:
        names, parts = run_cells(name, "setup"), ("given", "look", "answer", "tools", "test")
    for part in parts:
        if (id := f"{exercise}-{part}") in found:
            source = fill(found[id].source, answer) if part == "answer" else found[id].source
            run(source if hidden else HIDDEN.sub("", source), names, f"{name}:{id}")


def predicts(source: str) -> bool:
    """Whether an answer is a prediction: a function without arguments, which nothing but its test asks."""
    return not any(n.args.args for n in ast.walk(ast.parse(fill(source, "pass"))) if isinstance(n, ast.FunctionDef))


@cache
def measured(name: str, exercise: str) -> dict:
    """The names that a prediction is compared with, the same for every answer: small trainings among them."""
    return run_cells(name, "setup", *(f"{exercise}-{part}" for part in ("given", "look", "tools")))


def run_cells(name: str, *ids: str) -> dict:
    """The names after those of these cells that there are."""
    found, names = cells(name), {}
    for id in ids:
        if id in found:
            run(found[id].source, names, f"{name}:{id}")
    return names


def handed_over(name: str) -> list[tuple[str, str]]:
    """Answers that only pass their arguments on to a function of the course which the first cell imports."""
    imports = [n for n in ast.walk(ast.parse(cells(name)["setup"].source)) if isinstance(n, ast.ImportFrom)]
    ours = [a.asname or a.name for n in imports if n.module.startswith(("toy_", "full_")) for a in n.names]
    found = []
    for exercise in exercises(name):
        tree = ast.parse(fill(cells(name)[f"{exercise}-answer"].source, "pass"))
        functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.args.args]
        for function in functions[:1]:
            arguments = ", ".join(a.arg for a in function.args.args)
            found += [(exercise, f"return {f}({arguments})") for f in ours if f.islower()]
    return found


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Path:
    """A classroom as `make classroom` leaves it."""
    folder = tmp_path_factory.mktemp("classroom")
    classroom.release(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
class TestNotebook:
    def test_frame(self, name):
        """Every exercise states its facts, has two hints, an answer, tests and a picture, in this order."""
        found, order = cells(name), list(cells(name))
        assert order[:2] == ["intro", "setup"]
        assert 2 <= len(exercises(name)) <= 5
        for exercise in exercises(name):
            parts = ["task", "given", "look", "hints", "answer", "tools", "test", "picture", "after"]
            wanted = [f"{exercise}-{part}" for part in parts if f"{exercise}-{part}" in found]
            begin = order.index(wanted[0])
            assert order[begin : begin + len(wanted)] == wanted
            needed = set(parts) - {"given", "look", "tools", "after"}
            assert {f"{exercise}-{part}" for part in needed} <= set(wanted)
            facts = FACTS.search(found[f"{exercise}-task"].source)
            assert facts, exercise
            assert int(facts["points"]) == found[f"{exercise}-test"].metadata.nbgrader.points
            assert found[f"{exercise}-hints"].source.count("<details>") == 2
            assert "course.show(" in found[f"{exercise}-picture"].source
            assert len(SOLUTION.findall(found[f"{exercise}-answer"].source)) == 1
            assert (facts["kind"] == "find the bug") <= (f"{exercise}-given" in found)

    def test_cells_are_what_nbgrader_expects(self, name):
        for id, cell in cells(name).items():
            about = cell.metadata.get("nbgrader", {})
            kind = id.partition("-")[2]
            assert about.get("solution", False) == (kind == "answer"), id
            assert about.get("grade", False) == (kind == "test"), id
            assert about.get("locked", False) == (kind not in ("answer", "picture")), id
            assert about.get("grade_id", id) == id

    def test_stored_clean(self, name):
        for id, cell in cells(name).items():
            if cell.cell_type == "code":
                assert (cell.outputs, cell.execution_count) == ([], None), id
                assert not re.search(r"^\s*[%!]", cell.source, re.MULTILINE), id

    def test_cells_are_short(self, name):
        for id, cell in cells(name).items():
            lines = [line for line in cell.source.splitlines() if line.strip()]
            assert cell.cell_type != "code" or len(lines) <= LONGEST, f"{id} has {len(lines)} lines"

    def test_imports_only_opened_rooms(self, name):
        chapter = int(name[:2])
        allowed = opened(6) if chapter == 0 else opened(chapter)
        for cell in cells(name).values():
            if cell.cell_type == "code":
                found = imported(ast.parse(cell.source))
                assert found - {"exercises"} <= allowed | ({"probing"} if chapter == 0 else set())

    def test_ours_pass(self, name):
        """Every cell runs; a test prints one line; nothing is written to stderr, which would cost nbgrader's points."""
        names = {}
        for id, cell in cells(name).items():
            if cell.cell_type == "code":
                out, err = run(cell.source, names, f"{name}:{id}")
                assert not err, f"{id} writes to stderr: {err}"
                if id.endswith("-test"):
                    assert re.fullmatch(rf"{int(name[:2])}\.{id[2]} passed: .+\n", out), f"{id} prints {out!r}"

    def test_stubs_fail_at_their_tests_alone(self, name, course):
        names, failed = {}, set()
        for cell in read(course / "release" / name / f"{name}.ipynb").cells:
            assert "BEGIN" not in cell.source, f"{cell.id} shows what students should not see"
            if cell.id.endswith("-answer"):
                assert "raise NotImplementedError" in cell.source
            if cell.cell_type == "code":
                try:
                    run(cell.source, names, f"{name}:{cell.id}")
                except NotImplementedError:
                    failed.add(cell.id)
        assert failed == {f"{exercise}-test" for exercise in exercises(name)}

    def test_enough_wrong_answers_are_stored(self, name):
        assert set(answers(name)) == set(exercises(name))
        for exercise, kinds in answers(name).items():
            assert len(kinds["wrong"]) >= 3, exercise

    def test_minutes_are_in_the_readme(self, name):
        minutes = sum(int(m["minutes"]) for c in cells(name).values() for m in FACTS.finditer(c.source))
        points = sum(int(m["points"]) for c in cells(name).values() for m in FACTS.finditer(c.source))
        assert f"about {minutes} minutes" in cells(name)["intro"].source
        readme = (ROOT / "chapters" / "exercises" / "README.md").read_text()
        assert re.search(rf"\| \[{name}\]\({name}\.ipynb\) \|.*\| {minutes} \| {points} \|", readme)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")  # a wrong answer to 6.4
@pytest.mark.parametrize(("name", "exercise", "answer"), stored("wrong"))
def test_wrong_answers_are_rejected(name, exercise, answer):
    with pytest.raises(Exception) as caught:  # noqa: PT011 (a wrong answer may raise anything)
        check(name, exercise, answers(name)[exercise]["wrong"][answer], hidden=False)
    assert not isinstance(caught.value, SyntaxError | NameError), "the stored answer itself is broken"
    assert str(caught.value), "the failure says nothing"


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_brings_no_whole_module(name):
    """A module would bring functions along that are answers; the cells below an answer import what they need."""
    imports = [n for n in ast.walk(ast.parse(cells(name)["setup"].source)) if isinstance(n, ast.ImportFrom)]
    modules = {a.name for n in imports if n.module in ("toy_ijepa", "full_ijepa") for a in n.names}
    assert modules <= {"course", "exercises", "shapes"}


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_does_not_hand_over_an_answer(name):
    for exercise, answer in handed_over(name):
        accepted = False
        with contextlib.suppress(Exception):  # whatever it raises, it is not accepted
            check(name, exercise, answer)
            accepted = True
        assert not accepted, f"{exercise} is solved by {answer!r}: import the module, not the function"


@pytest.mark.parametrize(("name", "exercise", "answer"), stored("right"))
def test_other_right_answers_pass(name, exercise, answer):
    check(name, exercise, answers(name)[exercise]["right"][answer])


def test_the_silent_bugs_are_among_them():
    for bug, name in SILENT.items():
        assert any(a.startswith(bug) for kinds in answers(name).values() for a in kinds["wrong"]), bug


def test_classroom_keeps_what_a_teacher_changed(course, monkeypatch):
    monkeypatch.setattr(classroom, "notebooks", lambda: NOTEBOOKS[:1])
    released = course / "release" / NAMES[0] / NOTEBOOKS[0].name
    released.write_text("an older one")
    config = course / "nbgrader_config.py"
    config.write_text(config.read_text() + "# mine\n")
    (course / "submitted").mkdir(exist_ok=True)
    classroom.release(course)
    assert config.read_text().endswith("# mine\n")
    assert (course / "submitted").is_dir()
    assert read(released).cells
    assert sorted(path.name for path in (course / "release").iterdir()) == NAMES


@pytest.mark.filterwarnings("ignore:Object of type")  # nbgrader's queries
def test_nbgrader_gives_the_points(course, monkeypatch):
    """One right and one partly wrong submission of one assignment, through kernel, gradebook and feedback."""
    from nbgrader.api import Gradebook
    from nbgrader.converters import Autograde, GenerateFeedback
    from nbgrader.coursedir import CourseDirectory

    name, spoilt = "01_cut_patches", "ex2"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for student in ("right", "wrong"):
        submission = read(course / "release" / name / f"{name}.ipynb")
        for cell in submission.cells:
            if cell.id.endswith("-answer"):
                exercise, ours = cell.id.removesuffix("-answer"), cells(name)[cell.id].source
                bad = next(iter(answers(name)[exercise]["wrong"].values()))
                cell.source = fill(ours, bad) if (student, exercise) == ("wrong", spoilt) else ours
        folder = course / "submitted" / student / name
        folder.mkdir(parents=True)
        nbformat.write(submission, folder / f"{name}.ipynb")
    config = classroom.settings(course)
    config.CourseDirectory.assignment_id = name
    for converter in (Autograde, GenerateFeedback):
        converter(coursedir=CourseDirectory(config=config), config=config).start()
    points = {e: cells(name)[f"{e}-test"].metadata.nbgrader.points for e in exercises(name)}
    with Gradebook(CourseDirectory(config=config).db_url, "ijepa") as book:
        found = {s: book.find_submission(name, s) for s in ("right", "wrong")}
        scores = {s: (f.score, f.max_score, f.needs_manual_grade) for s, f in found.items()}
    total = sum(points.values())
    assert scores == {"right": (total, total, False), "wrong": (total - points[spoilt], total, False)}
    feedback = (course / "feedback" / "wrong" / name / f"{name}.html").read_text()
    assert "13 ends the second row" in feedback
    shutil.rmtree(course / "submitted")
