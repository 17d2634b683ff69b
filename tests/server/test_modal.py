"""deploy/modal_app.py as far as it goes without an account: it imports, its functions run here, its images are ours."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from serving import ROOT

modal = pytest.importorskip("modal", reason="needs the extra 'modal'")

import httpx  # noqa: E402

import synthetic  # noqa: E402
from soundmark.classifier import Classifier  # noqa: E402
from soundmark.config import to_toml  # noqa: E402
from soundmark.errors import ConfigError  # noqa: E402

TOKEN = "0123456789abcdef-token"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]


class Recorder:
    """An image that writes down how it is built, and checks that what it copies is there."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        def step(*args: Any, **options: Any) -> Recorder:
            if name.startswith("add_local"):
                assert Path(args[0]).exists(), args[0]
                assert options["copy"], "it is wanted while the image is built"
            self.steps.append((name, args))
            return self

        return step

    @property
    def commands(self) -> list[str]:
        return [command for name, args in self.steps if name == "run_commands" for command in args]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("modal_app", ROOT / "deploy" / "modal_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the app as it is deployed without settings."""
    for name in ("SOUNDMARK_MODEL", "SOUNDMARK_GPU", "SOUNDMARK_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return load()


def test_it_is_one_app_with_two_functions(cloud: ModuleType) -> None:
    assert isinstance(cloud.app, modal.App)
    assert isinstance(cloud.train, modal.Function)
    assert isinstance(cloud.web, modal.Function)
    changed = cloud.train.with_options(gpu="H100")  # what `modal run --gpu H100` calls
    assert isinstance(changed, modal.Function)


@pytest.mark.parametrize("gpu", ["", "T4"])
def test_images_are_built_from_our_extras(monkeypatch: pytest.MonkeyPatch, gpu: str) -> None:
    built: list[Recorder] = []

    def slim(*_: Any, **__: Any) -> Recorder:
        built.append(Recorder())
        return built[-1]

    monkeypatch.setenv("SOUNDMARK_GPU", gpu)
    monkeypatch.setattr(modal.Image, "debian_slim", slim)
    monkeypatch.setattr(modal.App, "function", lambda *_, **options: lambda function: function)
    load()
    train, serve = built
    for image, wanted in ((train, {"train", "data"}), (serve, {"serve"})):
        extras = re.fullmatch(r"pip install '/opt/soundmark\[([a-z,]+)\]'", image.commands[0])
        assert extras is not None
        assert {*extras[1].split(",")} == wanted <= {*EXTRAS}
        copied = [Path(args[0]).name for name, args in image.steps if name.startswith("add_local")]
        assert {*copied} == {"pyproject.toml", "README.md", "LICENSE", "src"}
    assert not train.commands[1:]
    assert bool(gpu) == any("onnxruntime-gpu" in command for command in serve.commands)
    assert not any("torch" in command for command in serve.commands)


def test_training_runs_here_on_a_small_set(
    cloud: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="needs the extra 'train'")
    import torch

    torch.set_num_threads(1)
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path / "cache"))
    shutil.copytree(synthetic.shared_data(), tmp_path / "data" / "small")
    (tmp_path / "tiny.toml").write_text(to_toml(synthetic.tiny_preset()))
    arguments = {
        "preset": "tiny.toml",
        "test_fold": 5,
        "data": "data/small",
        "overrides": ["train.epochs=1"],
        "root": str(tmp_path),
    }
    done = cloud.train.local(**arguments)
    assert (done["run"], done["bundle"]) == ("runs/tiny-fold5", "bundles/tiny-fold5")
    assert 0 <= done["accuracy"] <= 1
    assert json.loads((tmp_path / done["report"]).read_text())["figures"]["accuracy"] == done["accuracy"]
    assert [*(tmp_path / done["run"] / "tensorboard").iterdir()]
    heard = Classifier.load(tmp_path / done["bundle"])
    assert {*heard.labels} == {*synthetic.CLASSES.values()}
    again = cloud.train.local(**arguments)  # as after a container that was taken away
    assert again == done
    assert cloud.bundle_path("tiny-fold5", str(tmp_path)) == str(tmp_path / done["bundle"])
    assert cloud.bundle_path("edge", str(tmp_path)) == "edge"
    assert cloud.bundle_path("", str(tmp_path)) is None


def test_without_a_token_nothing_is_served(cloud: ModuleType) -> None:
    with pytest.raises(ConfigError, match="token"):
        cloud.web.local()


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_the_served_app_answers(tiny_bundle: Path, wav: bytes) -> None:
    with environment(SOUNDMARK_MODEL=str(tiny_bundle), SOUNDMARK_TOKEN=TOKEN, SOUNDMARK_GPU=""):
        app = load().web.local()

    async def ask() -> None:
        sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        living = asyncio.create_task(
            app({"type": "lifespan", "asgi": {"version": "3.0"}}, told.get, sent.put)
        )
        await told.put({"type": "lifespan.startup"})
        assert (await sent.get())["type"] == "lifespan.startup.complete"
        try:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(
                transport=transport, base_url="https://x--soundmark-web.modal.run"
            ) as client:
                assert (await client.get("/health/ready")).status_code == 200
                audio = {"Content-Type": "audio/wav"}
                refused = await client.post("/v1/classify", content=wav, headers=audio)
                assert refused.status_code == 401
                client.headers["Authorization"] = f"Bearer {TOKEN}"
                answer = await client.post("/v1/classify", content=wav, headers=audio)
                assert answer.status_code == 200, answer.text
                assert len(answer.json()["labels"]) == 3
                info = (await client.get("/v1/model")).json()
                assert (info["model"], info["provider"]) == (answer.json()["model"], "cpu")
        finally:
            await told.put({"type": "lifespan.shutdown"})
            assert (await sent.get())["type"] == "lifespan.shutdown.complete"
            await living

    asyncio.run(asyncio.wait_for(ask(), 60))
