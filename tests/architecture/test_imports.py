"""What a fresh interpreter really imports; import-linter does not see `importlib.import_module`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEVER_TO_CLASSIFY = {
    "torch", "lightning_fabric", "safetensors", "onnx", "onnxscript", "tensorboard", "fastapi", "starlette", "uvicorn",
    "pydantic", "httpx", "prometheus_client", "streamlit", "plotly", "matplotlib", "ray", "pandas", "scipy", "librosa",
    "sklearn", "numba", "torchaudio",
}  # fmt: skip
NEVER_TO_START = NEVER_TO_CLASSIFY | {"numpy", "onnxruntime", "soundfile", "soxr", "rich"}

CLASSIFY = """
import json, math, sys
import numpy as np
from soundmark import Classifier
model = sys.argv[1] if len(sys.argv) > 1 else None
tone = np.float32([0.5 * math.sin(0.1 * i) for i in range(22_050)])
prediction = Classifier.load(model).classify((tone, 22_050))
best = prediction.labels[0].label
print(json.dumps({"label": best, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def python(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_classifying_imports_the_light_core_alone(tiny_bundle: Path) -> None:
    done = python("-c", CLASSIFY, str(tiny_bundle))
    assert done.returncode == 0, done.stderr
    assert not NEVER_TO_CLASSIFY & {*json.loads(done.stdout)["modules"]}


def test_the_default_bundle_needs_the_light_core_alone() -> None:
    done = python("-c", CLASSIFY)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["label"]
    assert not NEVER_TO_CLASSIFY & {*found["modules"]}


@pytest.mark.parametrize(
    "args", [("-c", "import soundmark"), ("-m", "soundmark", "--help"), ("-m", "soundmark", "--version")]
)
def test_starting_imports_neither_numpy_nor_onnxruntime(args: tuple[str, ...]) -> None:
    done = python("-X", "importtime", *args)
    assert done.returncode == 0, done.stderr
    imported = {name.split(".")[0] for name in re.findall(r"\|\s*([\w.]+)\s*$", done.stderr, re.MULTILINE)}
    assert "soundmark" in imported
    assert not NEVER_TO_START & imported


def test_training_says_which_extra_is_missing_when_torch_is_not_there() -> None:
    code = "import sys; sys.modules['torch'] = None; import soundmark.learn"
    done = python("-c", code)
    assert done.returncode == 1
    assert "pip install 'soundmark[train]'" in done.stderr


def test_public_names_are_those_that_are_promised() -> None:
    code = "import soundmark as s; print([n for n in s.__all__ if getattr(s, n, None) is None])"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
