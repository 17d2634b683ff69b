"""The steps of deploy/Dockerfile in a plain folder, without an engine: what they leave behind, and how it is started.

Absolute paths of the image lie under a folder, ``python`` is one of this machine, users are not made. Everything else
is done as it stands there: copies (within .dockerignore), commands, what the last stage takes over, environment, user,
start command, health check.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

OURS = ("/src", "/opt/soundmark")
"""Paths that the Dockerfile makes."""


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return name and argument of each instruction, lines joined."""
    kept = "\n".join(line for line in dockerfile.read_text("utf-8").splitlines() if line[:1] != "#")
    text = re.sub(r"\\\n", " ", kept)
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]  # type: ignore[misc]


@dataclass
class Image:
    """What the Dockerfile made."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    user: int = 0
    command: list[str] = field(default_factory=list)
    check: list[str] = field(default_factory=list)
    stop: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files beyond the base image."""
        files = (path for name in OURS for path in self.at(name).rglob("*") if not path.is_symlink())
        return sum(path.stat().st_size for path in files if path.is_file())

    def at(self, path: str) -> Path:
        """Return where a path of the image lies here."""
        return self.root / path.lstrip("/")

    def here(self, text: str) -> str:
        """Return a command or value with our paths as they are here."""
        return re.sub(rf"(?<![\w.])({'|'.join(OURS)})(?![\w])", lambda found: str(self.at(found[1])), text)


def ignored(context: Path, source: str) -> bool:
    """Return whether .dockerignore keeps a source out: everything is out but what is named."""
    lines = [line for line in (context / ".dockerignore").read_text("utf-8").splitlines() if line]
    assert lines[0] == "*"
    return f"!{source}" not in lines


def build(dockerfile: Path, context: Path, root: Path, python: str) -> Image:
    """Go through the Dockerfile."""
    image = Image(root)
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "python").symlink_to(python)
    base = {**os.environ, "PATH": f"{root / 'bin'}:/usr/bin:/bin", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"):
        base.pop(name, None)
    where, taken = root, set[str]()
    for name, argument in instructions(dockerfile):
        if name == "FROM":
            assert re.match(r"python:3\.\d+-slim\b", argument), argument
            where, taken = root, set()
            image.env, image.user = {}, 0
        elif name == "WORKDIR":
            where = image.at(argument)
            where.mkdir(parents=True, exist_ok=True)
        elif name == "COPY" and argument.startswith("--from="):
            _, source, target = argument.split()
            assert source == target, "a virtual environment cannot be moved"
            assert image.at(source).exists()
            taken.add(source)
            for path in {*OURS} - taken:  # nothing else of the stage before is in the image
                shutil.rmtree(image.at(path), ignore_errors=True)
        elif name == "COPY":
            *sources, target = argument.split()
            for source in sources:
                assert not ignored(context, source), source
                to = where / target / (source if (context / source).is_file() else "")
                copy(context / source, to)
        elif name == "RUN" and not argument.startswith("useradd "):
            subprocess.run(["/bin/sh", "-c", image.here(argument)], cwd=where, env=base, check=True)
        elif name == "ENV":
            image.env |= dict(one.split("=", 1) for one in argument.split())
        elif name == "USER":
            image.user = int(argument)
        elif name in ("ENTRYPOINT", "CMD"):
            image.command += json.loads(argument)
        elif name == "HEALTHCHECK":
            image.check = json.loads(argument.partition("CMD ")[2])
        elif name == "STOPSIGNAL":
            image.stop = argument
    return image


def copy(source: Path, target: Path) -> None:
    """Copy a file or what is in a folder."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    else:
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def environment(image: Image, **more: str) -> dict[str, str]:
    """Return what a process in the image finds, and nothing of this machine."""
    path = f"{image.root / 'bin'}:/usr/bin:/bin"
    own = {name: image.here(value).replace("$PATH", path) for name, value in image.env.items()}
    return {"PATH": path, **own, **more}


def interpreter(dockerfile: Path) -> str:
    """Return a Python of the image's version, else another one; one that the image's user reaches comes first."""
    wanted = re.search(r"FROM python:(3\.\d+)", dockerfile.read_text("utf-8"))
    assert wanted is not None
    question = "import ensurepip, sys; assert sys.version_info >= (3, 11); print(sys.executable)"
    found = []
    for name in (f"python{wanted[1]}", sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            asked = subprocess.run([name, "-c", question], capture_output=True, text=True, check=True)
            found.append(str(Path(asked.stdout.strip()).resolve()))
    return next(filter(reachable, found), found[0])


def reachable(path: str) -> bool:
    """Return whether every user may run a program."""
    return all(folder.stat().st_mode & 0o001 for folder in (Path(path), *Path(path).parents))
