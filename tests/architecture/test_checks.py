"""The linters are tests: `ruff`, `mypy` and the contracts of import-linter hold, and the contracts do catch."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, cwd: Path = ROOT, source: Path = ROOT / "src") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(source), "COLUMNS": "120", "NO_COLOR": "1"}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def tool(name: str) -> str:
    """The command beside this Python, or on the path."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (extra 'dev')")
    return found


def test_ruff_finds_nothing() -> None:
    done = run(tool("ruff"), "check", "--no-cache", "--output-format=concise", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_is_formatted() -> None:
    done = run(tool("ruff"), "format", "--no-cache", "--check", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_finds_nothing(tmp_path: Path) -> None:
    mypy = tool("mypy")
    if importlib.util.find_spec("torch") is None:
        pytest.skip("mypy reads torch's types: needs the extra 'train'")
    done = run(mypy, "--no-error-summary", f"--cache-dir={ROOT / '.mypy_cache'}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dependency_rule_holds() -> None:
    done = run(tool("lint-imports"), "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("runtime.py", "def hidden():\n    import torch\n", "Only learn imports torch"),
        ("classifier.py", "import onnx\n", "Only learn imports torch"),
        ("evaluate.py", "def hidden():\n    import scipy.signal\n", "Nobody imports a second"),
        ("learn/augment.py", "import librosa\n", "Nobody imports a second"),
        ("postprocess.py", "import sklearn\n", "Only what draws splits"),
        ("cli.py", "import streamlit\n", "Only server and studio"),
        ("learn/train.py", "import ray\n", "Only batch knows Ray"),
        ("evaluate.py", "from soundmark.frontend import Frontend\n", "Spectra reach the rest"),
        ("audio.py", "from soundmark import frontend\n", "A module imports only from the lines below"),
        ("errors.py", "from soundmark import config\n", "A module imports only from the lines below"),
        (
            "evaluate.py",
            "def hidden():\n    from soundmark import batch\n",
            "A module imports only from the lines",
        ),
        ("utils.py", '"""A stray module."""\n', "A module imports only from the lines below"),
        ("server/__init__.py", "from soundmark import learn\n", "A module imports only from the lines below"),
    ],
)
def test_the_dependency_rule_catches(file: str, line: str, broken: str, tmp_path: Path) -> None:
    linter = tool("lint-imports")
    shutil.copytree(
        ROOT / "src" / "soundmark",
        tmp_path / "soundmark",
        ignore=shutil.ignore_patterns("models", "__pycache__"),
    )
    shutil.copy(ROOT / ".importlinter", tmp_path)
    target = tmp_path / "soundmark" / file
    target.parent.mkdir(exist_ok=True)
    with target.open("a") as handle:
        handle.write("\n\n" + line)
    done = run(linter, "--no-cache", cwd=tmp_path, source=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    kept = [text for text in done.stdout.splitlines() if "KEPT" in text]
    assert not any(text.startswith(broken) for text in kept), done.stdout
    assert broken in done.stdout
