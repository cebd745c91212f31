"""A chapter that takes more than twice the time it states fails at its last cell."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

SPENT: dict[Path, float] = {}
LAST: dict[Path, str] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.suffix == ".ipynb":
            LAST[item.path] = item.nodeid


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    begun = time.perf_counter()
    yield
    if item.path.suffix == ".ipynb":
        SPENT[item.path] = SPENT.get(item.path, 0.0) + time.perf_counter() - begun


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    outcome = yield
    report = outcome.get_result()
    if item.path.suffix != ".ipynb" or report.when != "call" or LAST.get(item.path) != item.nodeid:
        return
    stated = 60 * json.loads(item.path.read_text())["metadata"]["course"]["minutes"]
    spent = SPENT.get(item.path, 0.0) + call.duration
    if report.passed and spent > 2 * stated:
        report.outcome = "failed"
        report.longrepr = f"{item.path.name} took {spent:.0f} s, more than twice the {stated:.0f} s that it states"
