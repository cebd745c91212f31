"""Fixtures of the browser tests: one JupyterLab, one Chromium and one page for all of them, each with its notebook."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.lab import PATIENCE, LabServer, NotebookPage
from toy_ijepa import course

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No sandbox inside containers; no graphics card; nothing that a browser does on its own account.
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]


# The scope is the package, not the session: Playwright keeps an event loop running in this thread, which would be in
# the way of later tests that start their own.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium; skips where there is none, fails there if CI_BROWSER=1 says that there must be."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        message = f"no browser: none of {', '.join(BROWSERS)} is installed"
        if os.environ.get("CI_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """JupyterLab, after the browser: without one there is no need to start it."""
    server = LabServer(tmp_path_factory.mktemp("lab"))
    yield server
    server.stop()


@pytest.fixture(scope="package")
def shared(server: LabServer, browser: Browser) -> Iterator[NotebookPage]:
    """The page of all tests that ask for nothing particular."""
    page = NotebookPage(server, browser)
    yield page
    page.close()


@pytest.fixture
def notebook(server: LabServer, browser: Browser, shared: NotebookPage) -> Iterator[Callable[..., NotebookPage]]:
    """Opens and runs a copy of a notebook: `notebook(path)` -> NotebookPage. No test may leave console errors.

    through  run only up to the cell after the one that holds this text
    short    in the quick way, leave out the cells before it that it does not need; `make test` runs those elsewhere
    Another scale or theme has a page of its own.
    """
    opened: list[NotebookPage] = []

    def open_copy(path: Path, through: str = "", scale: float = 1, short: bool = False, **options: str) -> NotebookPage:
        page = NotebookPage(server, browser, scale) if options or scale != 1 else shared
        opened.append(page)
        short = short and course.quick()
        page.open(server.copy(path, through if short else ""), **options)
        page.run("" if short else through, 10 * PATIENCE)  # a chapter takes minutes
        return page

    yield open_copy
    errors = [error for page in opened for error in page.errors]
    for page in opened:
        page.clear() if page is shared else page.close()
    assert not errors, "\n".join(errors)
