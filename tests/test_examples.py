"""Every example runs as it is, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from soundmark.demo import demo_clips

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def demo_wav(tmp_path_factory: pytest.TempPathFactory, make_wav: Callable[..., bytes]) -> Path:
    path = tmp_path_factory.mktemp("demo") / "rain.wav"
    clip = demo_clips(sample_rate=16_000, seconds=2.0)[0]
    path.write_bytes(make_wav(clip.samples, clip.sample_rate, "PCM_16"))
    return path


def run(name: str, *args: object, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key != "SOUNDMARK_ESC50"}
    environment = {**kept, "PYTHONPATH": str(ROOT / "src"), **variables}
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_classify_file(demo_wav: Path, tiny_bundle: Path) -> None:
    done = run("classify_file.py", demo_wav, tiny_bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert "(2.00 s, 2 windows)" in done.stdout
    assert len(done.stdout.splitlines()) == 4
    missing = run("classify_file.py", "nowhere.wav", tiny_bundle)
    assert missing.returncode == 1
    assert missing.stderr.startswith("not_found: ")


def test_classify_array(tiny_bundle: Path) -> None:
    done = run("classify_array.py", tiny_bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a wail: ")


def test_many_files(demo_wav: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    done = run("many_files.py", demo_wav, tmp_path / "empty.wav", "nowhere.wav", "--model", tiny_bundle)
    assert done.returncode == 0
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row.get("error", {}).get("code") for row in rows] == [None, "empty_file", "not_found"]
    assert done.stderr == "3 recordings, 2 failed ['empty_file', 'not_found']\n"


def test_features(demo_wav: Path, tiny_bundle: Path) -> None:
    done = run("features.py", demo_wav, tiny_bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("logmel (2, 32, 63): ")


def test_evaluate_fold_says_what_it_needs(tiny_bundle: Path) -> None:
    done = run("evaluate_fold.py", 5, tiny_bundle)
    assert done.returncode == 1
    assert done.stderr.startswith("no_dataset: ")
    assert "SOUNDMARK_ESC50" in done.stderr


def test_evaluate_fold(tiny_bundle: Path, tmp_path: Path) -> None:
    from test_cli import small_esc50

    done = run("evaluate_fold.py", 2, tiny_bundle, SOUNDMARK_ESC50=str(small_esc50(tmp_path)))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("fold 2: accuracy ")
    assert "UNKNOWN TRAINING" in done.stdout


def test_every_example_is_tested_and_short() -> None:
    source = Path(__file__).read_text("utf-8")
    assert EXAMPLES
    for name in EXAMPLES:
        assert f'run("{name}"' in source, name
        assert len((ROOT / "examples" / name).read_text("utf-8").splitlines()) <= 30
