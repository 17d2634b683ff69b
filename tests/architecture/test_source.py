"""Rules about the source itself: one front end, short files, named after what flows out of them, nobody's machine."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "soundmark"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 350
LONGER: dict[str, int] = {}
"""Files that are over the limit today, and how long they may be: shorten, never raise."""


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(PACKAGE).as_posix() for path in paths]


def test_spectra_are_computed_in_the_front_end_alone() -> None:
    words = {"fft", "rfft", "irfft", "stft", "istft", "melspectrogram", "mfcc", "spectrogram", "lfilter"}
    for path in MODULES:
        if path.name == "frontend.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            used = {
                ast.Attribute: lambda n: [n.attr],
                ast.Import: lambda n: [part for alias in n.names for part in alias.name.split(".")],
                ast.ImportFrom: lambda n: [alias.name for alias in n.names] + (n.module or "").split("."),
            }.get(type(node), lambda n: [])(node)
            assert not words & {*used}, f"{path.name}:{getattr(node, 'lineno', 0)}: {used}"


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_files_are_short(path: Path) -> None:
    n_lines = len(path.read_text("utf-8").splitlines())
    limit = LONGER.get(path.relative_to(PACKAGE).as_posix(), LONGEST)
    assert n_lines <= limit, f"{n_lines} lines, {limit} are allowed: split it by what flows out"


def test_no_drawer_for_odds_and_ends() -> None:
    stray = {"util", "utils", "helper", "helpers", "common", "misc", "tools", "base"}
    assert not [name for name in names(MODULES) if stray & {*re.split(r"[/.]", name)}]


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_every_module_says_what_comes_out_of_it(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert docstring, "no docstring"
    assert docstring.splitlines()[0].endswith((".", ":", "?")), "the first line is not a sentence"


def tracked() -> list[Path]:
    """Files that are in git or would be."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_path_of_a_machine_and_no_package_registry() -> None:
    parts = [
        r"/(?:work|home|root|Users|mnt|media)/[\w.]",
        "[A-Z]:\\\\\\\\?Users",
        "files[.]pythonhosted",
        "pypi[.]org/simple",
    ]
    pattern = re.compile("|".join([*parts, "download[.]pytorch[.]org/whl", "--(?:extra-)?index-" + "url"]))
    found = []
    for path in tracked():
        if path == Path(__file__) or path.stat().st_size > 1 << 20:
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    assert not found, "\n".join(found)


def test_no_recording_is_in_git() -> None:
    """ESC-50 is CC BY-NC; signals for tests are made in code (tests/corpus holds made ones only)."""
    audio = {".wav", ".flac", ".ogg", ".mp3", ".m4a", ".aiff"}
    found = [path for path in tracked() if path.suffix.lower() in audio and "corpus" not in path.parts]
    assert not found


def test_the_licence_is_apache_2_in_full() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "\nmake test\n" in script.read_text()
    assert "`make test`" in (ROOT / "README.md").read_text("utf-8")


def test_the_wheel_holds_what_the_package_needs(tmp_path: Path) -> None:
    if not os.environ.get("CI"):
        pytest.skip("slow: builds the wheel where CI is set")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {*archive.namelist()}
    package = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {f"soundmark/{path.relative_to(PACKAGE).as_posix()}" for path in package} <= inside
    assert "soundmark/py.typed" in inside
    assert "soundmark/presets/edge.toml" in inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert not [name for name in inside if not name.startswith("soundmark")]
    assert wheel.stat().st_size < 10 << 20


def test_the_figures_of_the_readme_are_those_of_the_reports() -> None:
    script = ROOT / "benchmarks" / "tables.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
