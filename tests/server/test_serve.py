"""The verb ``serve``: what it refuses to start, tokens, hosts, an order of ends; the light core stays light."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import ROOT, Served

from soundmark import cli
from soundmark.config import to_toml
from soundmark.errors import ConfigError
from soundmark.serve_config import ServeConfig
from soundmark.server.serve import check, loopback

TOKEN = "0123456789abcdef-token"


def serve_status(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[object, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(["serve", *args])
    return left.value.code, capsys.readouterr().err


def test_what_is_not_started(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOUNDMARK_TOKEN", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for args, word in (
            (["--host", "0.0.0.0"], "token"),
            (["--host", "::"], "token"),
            (["--token", "short"], "token"),
            (["--port", "70000"], "port"),
            (["--port", "x"], "port"),
            (["--port", port], "port"),
            (["--workers", "0"], "workers"),
            (["--host", "no.such.host.invalid", "--token", TOKEN], "host"),
        ):
            status, err = serve_status(capsys, *args)
            assert (status, word in err) == (2, True), (args, err)
            assert len(err.splitlines()) == 1


def test_a_model_that_is_refused_is_status_5(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tmp_path: Path
) -> None:
    import shutil

    status, err = serve_status(capsys, "--port", "0", "--model", "nope")
    assert (status, "model_not_found" in err) == (5, True)
    broken = shutil.copytree(tiny_bundle, tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"cut")
    status, err = serve_status(capsys, "--port", "0", "--model", str(broken))
    assert (status, "hash_mismatch" in err) == (5, True)


def test_the_config_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--print-config", "--queue", "5", "--allow-hosts", "a.example,b.example"])
    assert capsys.readouterr().out == to_toml(ServeConfig(queue=5, allow_hosts=("a.example", "b.example")))


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("10.0.0.1", False)],
)
def test_loopback(host: str, own: bool) -> None:
    assert loopback(host) is own
    if not own:
        with pytest.raises(ConfigError):
            check(ServeConfig(host=host), None)
    check(ServeConfig(host=host), TOKEN)


def test_tokens_and_hosts(serve: Callable[..., Served], tiny_bundle: Path, wav: bytes) -> None:
    server = serve(
        "--model", tiny_bundle, "--allow-hosts", "sound.example", "--workers", 2, env={"SOUNDMARK_TOKEN": TOKEN}
    )  # fmt: skip
    right = {"Authorization": f"Bearer {TOKEN}"}
    audio = {"Content-Type": "audio/wav"}
    assert server.post(wav, headers={**audio, **right}).status_code == 200
    assert len(server.workers()) == 2
    wrong = [
        "",
        "Bearer",
        "Bearer x",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        "Bearer " + "x" * 10_000,
    ]
    for value in wrong:
        response = server.post(wav, headers={**audio, "Authorization": value})
        assert (response.status_code, response.json()["code"]) == (401, "unauthorized"), value
        assert response.headers["www-authenticate"] == "Bearer"
    twice = [
        ("Content-Type", "audio/wav"),
        ("Authorization", f"Bearer {TOKEN}"),
        ("Authorization", f"Bearer {TOKEN}"),
    ]
    assert server.post(wav, headers=twice).status_code == 401
    assert server.get(f"/v1/labels?token={TOKEN}").status_code == 401
    assert server.get("/metrics").status_code == 401
    assert server.get("/health/live").status_code == server.get("/docs").status_code == 200
    assert server.get("/v1/labels", headers={**right, "Host": "sound.example"}).status_code == 200
    assert server.get("/v1/labels", headers={**right, "Host": "evil.example"}).status_code == 400
    assert server.stop() == 0
    assert not any(TOKEN in line for line in server.lines)


def test_workers_end_with_the_server_even_when_it_is_killed(
    serve: Callable[..., Served], tiny_bundle: Path
) -> None:
    import signal
    import time

    server = serve("--model", tiny_bundle)
    workers = server.workers()
    assert workers
    server.stop(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_the_extra_it_says_which_one() -> None:
    code = "import sys; sys.modules['fastapi'] = None; from soundmark import cli; cli.main(['serve'])"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "pip install 'soundmark[serve]'" in done.stderr


def test_the_http_process_holds_no_model_and_workers_no_web_framework() -> None:
    heavy = {"onnxruntime", "numpy", "soundfile", "soxr"}
    for module, never in (
        ("soundmark.server.serve", heavy),
        ("soundmark.server.worker", {"fastapi", "starlette", "uvicorn", "torch", "onnx"}),
    ):
        code = f"import json, sys, {module}; print(json.dumps([n.split('.')[0] for n in sys.modules]))"
        env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60, check=True
        )
        assert not never & {*json.loads(done.stdout)}, module


def test_without_a_gpu_the_cpu_answers_and_says_so(
    serve: Callable[..., Served], tiny_bundle: Path, wav: bytes
) -> None:
    server = serve("--model", tiny_bundle, "--provider", "cuda")
    info = server.get("/v1/model").json()
    if info["provider"] == "cuda":
        pytest.skip("this machine has a GPU")
    assert "CUDA" in info["provider_fallback"]
    assert "CUDA" in json.loads(server.wait_for("the model runs on the CPU"))["saw"]
    assert server.post(wav).status_code == 200
