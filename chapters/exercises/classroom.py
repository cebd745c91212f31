"""Make the students' release of the exercises with nbgrader: `python chapters/exercises/classroom.py [FOLDER]`.

The folder (default: classroom/ in the repository) becomes an nbgrader course: source/ holds the instructor's notebooks,
release/ the students', gradebook.db the hidden tests. Run again after a change; submissions and grades stay.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from nbgrader.converters import GenerateAssignment
from nbgrader.coursedir import CourseDirectory
from traitlets.config import Config, PyFileConfigLoader

HERE = Path(__file__).parent
CONFIG = """\
# Settings of nbgrader for this course; yours to edit, `make classroom` leaves an existing file as it is.
c = get_config()
c.CourseDirectory.course_id = "ijepa"
c.Execute.timeout = 120  # seconds for each cell of a submission; none of ours takes more than a few
c.Execute.iopub_timeout = 60  # seconds to wait for a kernel's first words; imports take long on a slow machine
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError  # your answer goes here"}
# To hand out and collect through a shared folder, name it: c.Exchange.root = "/srv/nbgrader/exchange"
"""


def notebooks() -> list[Path]:
    """The instructor's notebooks, in the order of the chapters."""
    return sorted(HERE.glob("[0-9][0-9]_*.ipynb"))


def settings(course: Path) -> Config:
    """What nbgrader_config.py in the folder `course` says."""
    config = PyFileConfigLoader("nbgrader_config.py", path=str(course)).load_config()
    config.CourseDirectory.root = str(course)
    return config


def release(course: Path) -> Path:
    """Fill the folder `course` and return the folder of the students' notebooks, one assignment each.

    Raises nbgrader's own errors if a notebook cannot be converted.
    """
    # TRAP: nbgrader calls `alembic` by name to make its database; without this only an activated environment has it.
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    course = course.resolve()
    for notebook in notebooks():
        source = course / "source" / notebook.stem
        source.mkdir(parents=True, exist_ok=True)
        shutil.copy(notebook, source)
    if not (course / "nbgrader_config.py").exists():
        (course / "nbgrader_config.py").write_text(CONFIG)
    for notebook in notebooks():
        config = settings(course)
        config.CourseDirectory.assignment_id = notebook.stem
        config.BaseConverter.force = True
        GenerateAssignment(coursedir=CourseDirectory(config=config), config=config).start()
    return course / "release"


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    made = release(Path(sys.argv[1]) if sys.argv[1:] else HERE.parents[1] / "classroom")
    print(f"{len(notebooks())} assignments for students in {made}")
    print(f"submissions belong in {made.parent}/submitted/STUDENT/ASSIGNMENT/; see chapters/exercises/README.md")
