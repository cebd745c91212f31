"""A JupyterLab of its own for the browser tests, and one notebook page in it. Nothing touches the user's settings."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import shutil
import subprocess
import symtable
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

ROOT = Path(__file__).parents[2]
TOKEN = "browser-tests"
PATIENCE = float(os.environ.get("BROWSER_PATIENCE", "60"))  # seconds to wait for anything; more on a busy machine
POLL = 100  # milliseconds between two looks at whether the page is ready; by default one a frame, drawn for it
SETTINGS = {
    # Every cell is in the page, also those far below the window: helpers can find and scroll to them.
    "notebook-extension/tracker": {"windowingMode": "none"},
    # No calls to the network, no dialogs that cover the notebook.
    "extensionmanager-extension/plugin": {"enabled": False},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
# JupyterLab's own noise, not ours. Everything else that the console calls an error fails the test.
NOISE: tuple[re.Pattern[str], ...] = ()
IDLE = """path => {
  const notebook = window.jupyterapp?.shell.currentWidget;
  return notebook?.context?.path === path && notebook.context.isReady
    && notebook.sessionContext?.session?.kernel?.connectionStatus === "connected"
    && notebook.sessionContext.session.kernel.status === "idle";
}"""
# Makes the second cell after the first code cell with a text the active one.
SELECT = """text => {
  const notebook = window.jupyterapp.shell.currentWidget.content;
  const cells = notebook.widgets.map(cell => cell.model);
  const found = cells.findIndex(cell => cell.type === "code" && cell.sharedModel.getSource().includes(text));
  notebook.activeCellIndex = found + 2;
  return found >= 0;
}"""
PARTS = re.compile(r"course\.part_of\((\w+)\)")  # a cell that adds a method to a class of an earlier one
NUMBERS = itertools.count()


def wait(what: Callable[[], object], message: str, seconds: float = PATIENCE) -> object:
    """Ask until the answer is true; returns it. Raises AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < end, f"{message} (waited {seconds:.0f} s)"
        time.sleep(0.1)
    return answer


def names(source: str) -> tuple[set[str], set[str]]:
    """What a cell makes for others, and what it uses before it has made that itself."""
    made: set[str] = set()
    used: set[str] = set()
    for statement in ast.parse(source).body:
        makes, uses = names_of(ast.unparse(statement))
        used |= uses - made
        made |= makes
    return made, used


def names_of(statement: str) -> tuple[set[str], set[str]]:
    """What a statement makes, and what it uses."""
    top = symtable.symtable(statement, "cell", "exec")
    made = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    used = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    below = top.get_children()
    while below:
        table = below.pop()
        used |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
        below += table.get_children()
    return made, used


def excerpt(cells: list[NotebookNode], text: str) -> list[NotebookNode]:
    """The code cell that holds a text, the cell after it, and those before them that make what they use."""
    found = next(n for n, cell in enumerate(cells) if cell.cell_type == "code" and text in cell.source)
    kept = [cell for cell in cells[found : found + 2] if cell.cell_type == "code"]
    wanted = set().union(*(names(cell.source)[1] for cell in kept))
    for cell in reversed([cell for cell in cells[:found] if cell.cell_type == "code"]):
        made, used = names(cell.source)
        if wanted & (made | set(PARTS.findall(cell.source))):
            kept, wanted = [cell, *kept], (wanted - made) | used
    return kept


class LabServer:
    """JupyterLab on a free port over a folder of its own; kernels run the Python that runs the tests."""

    def __init__(self, home: Path) -> None:
        self.files, self.log = home / "files", home / "server.log"
        names = ("config", "data", "runtime", "settings", "workspaces", "ipython", "files")
        folders = {name: home / name for name in names}
        for folder in folders.values():
            folder.mkdir()
        for name in ("toy_ijepa", "full_ijepa", "assets"):  # where processes that a chapter starts look for them
            (self.files / name).symlink_to(ROOT / name)
        for name, values in SETTINGS.items():
            path = folders["settings"] / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        kernel = folders["data"] / "kernels" / "python3" / "kernel.json"
        kernel.parent.mkdir(parents=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel.write_text(json.dumps(dict(argv=argv, display_name="Python 3", language="python")))
        env = os.environ | {
            "JUPYTER_CONFIG_DIR": str(folders["config"]),
            "JUPYTER_DATA_DIR": str(folders["data"]),
            "JUPYTER_RUNTIME_DIR": str(folders["runtime"]),
            "JUPYTERLAB_SETTINGS_DIR": str(folders["settings"]),
            "JUPYTERLAB_WORKSPACES_DIR": str(folders["workspaces"]),
            "JUPYTER_PREFER_ENV_PATH": "0",  # our kernel before that of the environment
            "IPYTHONDIR": str(folders["ipython"]),
            "IJEPA_HURRY": "1",  # long trainings of the chapters load shipped weights
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": 0,
            "ServerApp.root_dir": self.files,
            "IdentityProvider.token": TOKEN,
            "LabApp.extension_manager": "readonly",
            "LabApp.expose_app_in_browser": True,  # `window.jupyterapp`, to run commands without hunting for menus
        }
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
        command += [f"--{name}={value}" for name, value in options.items()]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=home)
        try:
            self.url = wait(lambda: self.address(folders["runtime"]), "JupyterLab did not start")
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"{error}\n{self.log.read_text()[-3000:]}") from error

    def address(self, runtime: Path) -> str:
        """Where the server listens, "" while it does not yet."""
        assert self.process.poll() is None, "JupyterLab ended"
        try:
            (found,) = runtime.glob("jpserver-*.json")
            url = json.loads(found.read_text())["url"]
            self.ask(url + "api/status")
        except (OSError, ValueError):
            return ""
        return url

    def ask(self, url: str, method: str = "GET") -> bytes:
        request = urllib.request.Request(url, method=method, headers={"Authorization": f"token {TOKEN}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read()

    def stop_kernels(self) -> None:
        for session in json.loads(self.ask(self.url + "api/sessions")):
            self.ask(f"{self.url}api/sessions/{session['id']}", "DELETE")

    def stop(self) -> None:
        """End the server, which ends its kernels."""
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def copy(self, path: Path, text: str = "") -> Path:
        """A copy of a notebook, in a copy of its folder inside the server's files; its path from there.

        text  copy of the notebook only what the cell with this text needs (`excerpt`)
        """
        copied = Path(f"{path.parent.name}-{next(NUMBERS)}") / path.name
        shutil.copytree(path.parent, self.files / copied.parent)
        if text:
            notebook = nbformat.read(path, as_version=4)
            notebook.cells = excerpt(notebook.cells, text)
            nbformat.write(notebook, self.files / copied)
        return copied


class NotebookPage:
    """JupyterLab in a page of its own, with one notebook at a time: to load it anew for each takes as long as a test.

    `errors` collects what the console calls an error, less JupyterLab's own noise.
    """

    def __init__(self, server: LabServer, browser: Browser, scale: float = 1) -> None:
        self.server, self.errors, self.notebook = server, [], ""
        self.context = browser.new_context(viewport={"width": 1500, "height": 1000}, device_scale_factor=scale)
        self.context.set_default_timeout(1000 * PATIENCE)
        self.page: Page = self.context.new_page()
        self.page.on("console", self.listen)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def listen(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(noise.search(message.text) for noise in NOISE):
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")

    def open(self, notebook: Path, theme: str = "JupyterLab Light") -> None:
        """Open a notebook (path from the server's files), at first in a fresh workspace, and wait for its kernel."""
        first, self.notebook = self.page.url == "about:blank", notebook.as_posix()
        if first:
            workspace = f"lab/workspaces/test-{next(NUMBERS)}/tree/{self.notebook}"
            self.page.goto(f"{self.server.url}{workspace}?token={TOKEN}&reset")
        else:
            self.command("docmanager:open", path=self.notebook)
        self.page.locator(".jp-Notebook").wait_for()
        if theme != "JupyterLab Light":
            self.command("apputils:change-theme", theme=theme)
        self.idle()

    def command(self, name: str, seconds: float = PATIENCE, **options: str) -> None:
        """Run a command of JupyterLab and wait until it is done."""
        # Playwright would wait for the promise itself, but without end.
        start = "([name, options]) => { window.done = false; window.jupyterapp.commands.execute(name, options)"
        self.page.evaluate(f"{start}.then(() => {{ window.done = true; }}); }}", [name, options])
        self.page.wait_for_function("window.done", timeout=1000 * seconds, polling=POLL)

    def idle(self) -> None:
        """Wait until the notebook is loaded and its kernel is there and has nothing to do.

        TRAP: the indicator in the toolbar says idle before there is a kernel, and cells run then are lost.
        """
        self.page.wait_for_function(IDLE, arg=self.notebook, polling=POLL)

    def run(self, through: str = "", seconds: float = PATIENCE) -> None:
        """Run all cells, or those up to the one after the cell that holds a text; AssertionError if one fails."""
        if through:
            found = self.page.evaluate(SELECT, through)
            assert found, f"no cell holds {through!r}"
        self.command("notebook:run-all-above" if through else "notebook:run-all-cells", seconds)
        self.idle()
        failed = self.page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
        assert failed.count() == 0, failed.first.inner_text()

    def run_cell(self, marker: str) -> None:
        """Run the one code cell that holds a text."""
        found = self.page.evaluate(SELECT.replace("found + 2", "found"), marker)
        assert found, f"no cell holds {marker!r}"
        self.command("notebook:run-cell")
        self.idle()

    def cell(self, marker: str) -> Locator:
        """The first code cell that holds a text, scrolled into view."""
        found = self.page.locator(".jp-CodeCell").filter(has_text=marker).first
        found.scroll_into_view_if_needed()
        return found

    def clear(self) -> None:
        """Leave no notebook in the page, without a word about changes that are not saved, no kernel, and no error."""
        self.page.evaluate("window.jupyterapp?.shell.currentWidget?.dispose()")
        self.server.stop_kernels()
        self.errors.clear()

    def close(self) -> None:
        self.context.close()
        self.server.stop_kernels()
