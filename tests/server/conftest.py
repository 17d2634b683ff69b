"""Fixtures of the server tests: one server for all of them, servers of their own, a recording."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")

from serving import Served, sound


@pytest.fixture(scope="session")
def served(tiny_bundle: Path) -> Iterator[Served]:
    """Return a server of the tiny bundle, shared: leave it as it is."""
    server = Served("--model", tiny_bundle)
    yield server
    assert server.stop() == 0
    faults = [line for line in server.log if line["level"] == "error"]
    assert not faults, faults


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Return a function that starts a server of its own."""
    running: list[Served] = []

    def start(*args: object, **options: Any) -> Served:
        running.append(Served(*args, **options))
        return running[-1]

    yield start
    for server in running:
        server.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def wav(make_wav: Callable[..., bytes]) -> bytes:
    """Return a good recording."""
    return make_wav(sound(1.0), 16_000, "PCM_16")
