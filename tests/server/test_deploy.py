"""deploy/: what the files promise is there, their options exist, and the start command of the image runs."""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from serving import ROOT, Served

from soundmark.cli import cli

DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile: name and argument, lines joined."""
    text = re.sub(r"\\\n", " ", "\n".join(line for line in DOCKERFILE.splitlines() if line[:1] != "#"))
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]  # type: ignore[misc]


def start_command() -> list[str]:
    given = dict(instructions())
    return [*json.loads(given["ENTRYPOINT"]), *json.loads(given["CMD"])]


def test_the_image_is_as_promised() -> None:
    given = dict(instructions())
    assert given["USER"] not in ("root", "0")
    assert "slim" in given["FROM"]
    assert "/health/ready" in given["HEALTHCHECK"]
    assert "torch" not in "\n".join(argument for _, argument in instructions())
    assert ":latest" not in DOCKERFILE
    for _, argument in (one for one in instructions() if one[0] == "COPY" and "--from" not in one[1]):
        for source in argument.split()[:-1]:
            assert (ROOT / source).exists(), source


def options_of(words: list[str]) -> None:
    """Fail unless click takes these arguments of ``soundmark``."""
    assert words[0].endswith("soundmark")
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None
    command.make_context(words[1], words[2:])


def test_every_start_command_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    options_of(start_command())
    unit = (DEPLOY / "soundmark.service").read_text("utf-8")
    options_of(shlex.split(re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)[1]))
    compose = (DEPLOY / "compose.yaml").read_text("utf-8")
    arguments = json.loads(re.search(r"command: (\[\"--host.*\])", compose)[1])
    options_of(["soundmark", "serve", *arguments])
    assert "read_only: true" in compose
    assert "SOUNDMARK_TOKEN:?" in compose
    assert "ExecReload=/bin/kill -HUP" in unit


def test_the_start_command_of_the_image_runs(
    serve: Callable[..., Served], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, wav: bytes
) -> None:
    words = start_command()[2:]
    words[words.index("--port") + 1] = "0"
    words[words.index("--host") + 1] = "127.0.0.1"  # tests stay on loopback
    server = serve(
        *words, "--model", tiny_bundle, env={"HOME": "/nonexistent", "SOUNDMARK_TOKEN": "0123456789abcdef"}
    )
    check = re.search(r"'http://127.0.0.1:8000(/[a-z/]+)'", DOCKERFILE)[1]
    assert server.get(check).status_code == 200
    assert server.post(wav).status_code == 401
    assert server.stop(signal.SIGTERM) == 0
