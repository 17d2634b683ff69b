"""Fixtures of the tests that train: one data set, one feature cache and one run for all of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import synthetic
from soundmark.dataset import Dataset, load_esc50

if TYPE_CHECKING:
    from soundmark.learn.run_folder import Run


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the feature cache out of the home folder, and torch on one thread, here and in child processes."""
    monkeypatch.setenv("SOUNDMARK_CACHE", str(synthetic.shared_folder() / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def data_root() -> Path:
    """Return the root of the synthetic data set, shared: do not change it."""
    return synthetic.shared_data()


@pytest.fixture
def dataset(data_root: Path) -> Dataset:
    """Return its index."""
    return load_esc50(data_root)


@pytest.fixture
def run(_cache: None) -> Run:
    """Return the shared trained run."""
    return synthetic.shared_run()


@pytest.fixture
def int8_bundle(_cache: None) -> Path:
    """Return the directory of its int8 bundle."""
    return synthetic.shared_bundle("int8")


@pytest.fixture
def fp32_bundle(_cache: None) -> Path:
    """Return the directory of its fp32 bundle."""
    return synthetic.shared_bundle("fp32")
