"""Shared by all tests: small generators, a folder of awkward pictures, and no cache but a temporary one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing a test decodes or downloads lands in the user's cache."""
    monkeypatch.setenv("IJEPA_CACHE", str(tmp_path / "cache"))


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
