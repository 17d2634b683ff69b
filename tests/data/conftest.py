"""Fixtures of the tests about data: the command line in this process, and a feature cache of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from soundmark import cli
from soundmark.dataset import ESC50_VARIABLE


class Called(NamedTuple):
    """What a call of the command line gave."""

    status: object
    out: str
    err: str


@pytest.fixture(autouse=True)
def _cache(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Keep the feature cache out of the home folder, and torch, which tests marked ``train`` need, on one thread."""
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    if request.node.get_closest_marker("train"):
        pytest.importorskip("torch").set_num_threads(1)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Called]:
    """Return a function that runs ``soundmark`` with the given arguments; every line it prints fits 80 columns."""
    monkeypatch.delenv(ESC50_VARIABLE, raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def called(*args: object) -> Called:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main(list(map(str, args)))
        return Called(left.value.code, *capsys.readouterr())

    return called


@pytest.fixture
def touch(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes files below a folder (their own name is in them) and returns the folder."""

    def touched(*names: str, root: str = "data") -> Path:
        for name in names:
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode("utf-8", "surrogateescape"))
        return tmp_path / root

    return touched
