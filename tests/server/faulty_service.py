"""``soundmark serve`` with `faulty_worker` for workers. For tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from soundmark import cli
from soundmark.server import serve
from soundmark.server.app import Service

_run = serve.run


def run(model: str | None, config: Any, *, token: str | None = None, **options: Any) -> None:
    command = [sys.executable, str(Path(__file__).with_name("faulty_worker.py"))]
    _run(model, config, token=token, service=Service(model, config, token=token, command=command), **options)


serve.run = run

if __name__ == "__main__":
    cli.main(["serve", *sys.argv[1:]])
