"""Shared fixtures: a tiny, deterministic bundle (see tiny.py) and WAV files made in code."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from soundmark import bundle, cli, frontend
from soundmark.bundle import Bundle, Manifest
from soundmark.classifier import Classifier
from soundmark.config import DecisionConfig
from soundmark.golden import golden
from tiny import TINY_FRONTEND, TINY_LABELS, TINY_WINDOW, tiny_graph


@pytest.fixture(scope="session")
def tiny_model_bytes() -> bytes:
    """Return the ONNX file of the tiny model."""
    return tiny_graph().SerializeToString()


@pytest.fixture(scope="session")
def tiny_manifest(tiny_model_bytes: bytes) -> Manifest:
    """Return a manifest without hashes for the tiny model."""
    return Manifest(
        name="tiny",
        created_by="soundmark tests",
        labels=TINY_LABELS,
        frontend=TINY_FRONTEND,
        frontend_fingerprint=frontend.fingerprint(TINY_FRONTEND),
        window=TINY_WINDOW,
        decision=DecisionConfig(),
        golden=golden(TINY_FRONTEND, TINY_WINDOW, tiny_model_bytes, n_labels=len(TINY_LABELS)),
        licence="CC0-1.0",
        provenance={"training": {"preset": "none", "seed": 0}, "export": {}},
    )


@pytest.fixture
def make_bundle(tmp_path: Path, tiny_manifest: Manifest, tiny_model_bytes: bytes) -> Callable[..., Bundle]:
    """Return a function that writes a tiny bundle with changed manifest fields, or another ``model``."""

    def make(directory: Path | None = None, *, model: bytes | None = None, **changes: Any) -> Bundle:
        from msgspec.structs import replace

        return bundle.write(
            directory or tmp_path / f"tiny{len(list(tmp_path.iterdir()))}",
            manifest=replace(tiny_manifest, **changes),
            model=tiny_model_bytes if model is None else model,
            readme="# tiny\n",
        )

    return make


@pytest.fixture(scope="session")
def tiny_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_manifest: Manifest, tiny_model_bytes: bytes
) -> Path:
    """Return the directory of a good tiny bundle; shared, so do not change it."""
    directory = tmp_path_factory.mktemp("bundle") / "tiny"
    bundle.write(directory, manifest=tiny_manifest, model=tiny_model_bytes, readme="# tiny\n")
    return directory


@pytest.fixture(scope="session")
def tiny_classifier(tiny_bundle: Path) -> Classifier:
    """Return the classifier of the tiny bundle."""
    return Classifier.load(tiny_bundle)


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator with a fixed seed."""
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def make_wav() -> Callable[..., bytes]:
    """Return a function: samples (n,) or (n, channels), rate -> bytes of a WAV file."""

    def make(
        samples: np.ndarray, rate: int = 16_000, subtype: str = "FLOAT", container: str = "WAV"
    ) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, samples, rate, format=container, subtype=subtype)
        return file.getvalue()

    return make


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[object, str, str]]:
    """Return a function that runs the command and returns its exit status, output and errors."""
    monkeypatch.setenv("COLUMNS", "80")

    def called(*args: object) -> tuple[object, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main(list(map(str, args)))
        return (left.value.code, *capsys.readouterr())

    return called
