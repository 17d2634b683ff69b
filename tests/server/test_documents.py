"""docs/serve.md: its curl lines and its Python run as they stand, against a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serving import ROOT, Served

TEXT = (ROOT / "docs" / "serve.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


LINES = [
    line for block in blocks("sh") for line in block.splitlines() if re.search(r"\bcurl |--server", line)
]


@pytest.fixture
def folder(tmp_path: Path, wav: bytes) -> Path:
    for name in ("dog.wav", "rain.wav"):
        (tmp_path / name).write_bytes(wav)
    return tmp_path


def run(command: str, folder: Path, served: Served) -> str:
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    script = bin_folder / "soundmark"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m soundmark "$@"\n')
    script.chmod(0o755)
    paths = f"{ROOT / 'src'}"
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": paths, "NO_PROXY": "*"}
    command = command.replace(ADDRESS, served.url).replace("curl ", "curl --silent --fail-with-body ")
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("line", LINES, ids=[line[:50] for line in LINES])
def test_the_lines_work(line: str, folder: Path, served: Served) -> None:
    out = run(line, folder, served)
    if "--server" in line:
        assert "dog.wav" in out
    elif "metrics" in line:
        assert "soundmark_requests_total" in out
    else:
        tree = json.loads(out)
        wanted = {"/inference": "predictions", "/batch": "results", "/v1/classify": "labels"}
        key = next((key for part, key in wanted.items() if part in line), None)
        assert key is None or tree[key]


def test_there_are_enough_lines() -> None:
    assert len(LINES) >= 12


def test_the_python_works(folder: Path, served: Served) -> None:
    for block in blocks("python"):
        code = block.replace(ADDRESS, served.url)
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_every_code_of_the_server_is_documented() -> None:
    from soundmark.server.problems import STATUS

    outcomes = (ROOT / "docs" / "reference" / "outcomes.md").read_text("utf-8")
    for code in STATUS:
        assert f"`{code}`" in TEXT + outcomes, code
