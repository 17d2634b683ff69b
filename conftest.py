"""The option ``--update-golden``: golden files are written by the tests that check them."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--update-golden`` to pytest."""
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite tests/golden/ from the present code, then look at the diff",
    )


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten."""
    return bool(request.config.getoption("--update-golden"))
