"""Shared by all tests: fixed random states, and no cache or data but what a test makes or asks for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

REAL_DATA = os.environ.get("IJEPA_DATA")
# Files of more than twenty seconds, which a whole file to a worker would otherwise leave for one of them at the end.
LONGEST = (
    "test_widgets.py",
    "test_distributed.py",
    "test_main.py",
    "test_train.py",
    "test_training.py",
    "test_exercises.py",
    "test_evaluate.py",
    "test_step_on_gpu.py",
    "test_data.py",
    "test_command.py",
    "test_site.py",
)


def pytest_configure() -> None:
    """A job that a shell started in the background ignores Ctrl-C, and its children inherit that: tests press it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cells of chapters are marked as such. Long files go first, then chapters from the last to the first, for the
    later ones take longer, then what is left: the workers end at about the same time."""

    def turn(item: pytest.Item) -> tuple[int, int]:
        if item.path.suffix == ".ipynb":
            return 1, -int(item.path.name[:2])
        return (0 if item.path.name in LONGEST else 2), 0

    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("chapter")
    items.sort(key=turn)


def keep_apart(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Nothing that is decoded lands in the user's cache; neither this process nor one that it starts asks a server."""
    monkeypatch.setenv("IJEPA_CACHE", str(cache))
    monkeypatch.setenv("IJEPA_WAIT", "0")
    monkeypatch.delenv("IJEPA_DATA", raising=False)
    monkeypatch.delenv("IJEPA_MIRROR", raising=False)


@pytest.fixture(scope="module", autouse=True)
def cache_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures that several tests of a file share: they are set up before any test's own cache."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        keep_apart(monkeypatch, tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_apart(monkeypatch, tmp_path / "cache")


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of real images that IJEPA_DATA named when the tests began; skips where there is none."""
    if REAL_DATA is None or not (Path(REAL_DATA) / "cifar10").is_dir():
        pytest.skip("IJEPA_DATA names no folder with real cifar10 images")
    monkeypatch.setenv("IJEPA_DATA", REAL_DATA)
    return Path(REAL_DATA)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.fixture
def rng() -> Iterator[None]:
    """A fixed global random state, put back afterwards."""
    state = torch.get_rng_state()
    torch.manual_seed(11)
    yield
    torch.set_rng_state(state)
