"""Fixtures of the web edition's tests: Chromium, a plain file server, and the site, built once."""

from __future__ import annotations

import functools
import http.server
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from book import files
from tests.browser.conftest import browser  # noqa: F401 (a fixture)
from tests.browser.lab import PATIENCE

ROOT = Path(__file__).parents[2]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def serve(folder: Path) -> Iterator[str]:
    """The address of a plain file server over the folder."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="package")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a folder with the explorables' modules and what they fetch, without any page."""
    folder = tmp_path_factory.mktemp("modules")
    files.modules(folder / "explore")
    files.pictures(folder / "pictures")
    (folder / "index.html").write_text("<!doctype html><title>empty</title><link rel=icon href=data:,><body>")
    (folder / "weights").symlink_to(ROOT / "assets" / "weights")
    yield from serve(folder)


@pytest.fixture(scope="package")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built as `make book` does."""
    folder = tmp_path_factory.mktemp("book")
    site = folder / "site"
    command = ["-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(folder / "doctrees"), "-c", "book", ".", str(site)]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture(scope="package")
def site(built: Path) -> Iterator[str]:
    yield from serve(built)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:  # noqa: F811
    """Opens an address. No page may leave console errors, or ask anybody but its own server.

    forgive  words of errors that the test makes on purpose; prepare  called with the page before it goes anywhere
    """
    opened, wrong, forgiven = [], [], []

    def open_page(
        address: str, forgive: str = "", prepare: Callable[[Page], object] | None = None, **options: object
    ) -> Page:
        forgiven.extend([forgive] if forgive else [])
        options = {"viewport": {"width": 1280, "height": 900}} | options
        page = browser.new_context(**options).new_page()
        page.set_default_timeout(1000 * PATIENCE)
        server = "/".join(address.split("/")[:3])
        allowed = (server + "/", "data:", "blob:")
        page.on("console", lambda said: wrong.append(f"{address}: {said.text}") if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(f"{address}: {error}"))
        page.on("request", lambda r: None if r.url.startswith(allowed) else wrong.append(f"{address} asks {r.url}"))
        page.on("response", lambda r: wrong.append(f"{address}: {r.status} {r.url}") if r.status >= 400 else None)
        opened.append(page)
        if prepare is not None:
            prepare(page)
        page.goto(address)
        return page

    yield open_page
    for page in opened:
        page.context.close()
    wrong = [words for words in wrong if not any(each in words for each in forgiven)]
    assert not wrong, "\n".join(wrong)
