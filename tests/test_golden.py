"""Front-end features kept as files: a change that moves them is seen, on any machine.

``pytest tests/test_golden.py --update-golden`` rewrites ``tests/golden/``. Do that only together with a new
`FRONTEND_VERSION`: bundles and caches made before then refuse themselves instead of being quietly wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soundmark.config import FrontendConfig, from_dict
from soundmark.frontend import FRONTEND_VERSION, Frontend, fingerprint
from soundmark.preset import load_preset, preset_names

GOLDEN = Path(__file__).parent / "golden"
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "magnitude-ln": {
        "sample_rate": 16_000, "win_length": 400, "hop_length": 160, "n_fft": 512, "fmin": 125.0, "fmax": 7500.0,
        "power": 1, "scale": "ln", "offset": 0.001, "center": False,
    },
    "peak-log10": {
        "level": "peak", "n_fft": 2048, "hop_length": 1024, "n_mels": 96, "mel_norm": "sum", "scale": "log10",
        "gain": 1e4, "std": 9.4578,
    },
    "slaney": {
        "sample_rate": 22_050, "n_fft": 2048, "hop_length": 512, "n_mels": 64, "mel_scale": "slaney",
        "mel_norm": "slaney", "mean": -30.0, "std": 20.0,
    },
    "mfcc": {"kind": "mfcc", "sample_rate": 16_000, "n_fft": 512, "hop_length": 256, "n_mels": 40, "n_mfcc": 20},
    "spectrogram": {
        "kind": "spectrogram", "sample_rate": 16_000, "n_fft": 256, "hop_length": 256, "window": "hamming",
        "offset": 1e-4,
    },
    "wave": {"kind": "wave", "gain": 3.0, "mean": 0.1, "std": 0.5},
}  # fmt: skip


def signal(rate: int, n: int = 6000) -> np.ndarray:
    """A sweep, hiss from a linear congruential generator (the same bits everywhere), a click, and a second of calm."""
    t = np.arange(n) / rate
    sweep = 0.3 * np.sin(2 * np.pi * (200 * t + 0.5 * (rate / 3) / (n / rate) * t**2))
    state, hiss = 1, np.empty(n)
    for i in range(n):
        state = (1_103_515_245 * state + 12_345) % 2**31
        hiss[i] = state / 2**31 - 0.5
    x = sweep + 0.05 * hiss
    x[n // 2] = 0.9
    x[-n // 6 :] = 0.0
    return x.astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_features_equal_the_golden_file(name: str, update_golden: bool) -> None:
    """Stated tolerance: 2e-3 of a compressed value (0.002 dB), 1e-5 of a wave; BLAS rounds differently by machine."""
    config = from_dict(CASES[name], FrontendConfig)
    features = Frontend(config)(signal(config.sample_rate))
    path = GOLDEN / f"{name}.npy"
    if update_golden:
        np.save(path, np.ascontiguousarray(features))
    want = np.load(path, allow_pickle=False)
    assert want.dtype == np.float32
    np.testing.assert_allclose(features, want, rtol=0, atol=1e-5 if config.kind == "wave" else 2e-3)


def test_fingerprints_equal_the_golden_file(update_golden: bool) -> None:
    """A new field or default in `FrontendConfig` changes every fingerprint: export bundles again."""
    path = GOLDEN / "fingerprints.json"
    now = {name: fingerprint(from_dict(config, FrontendConfig)) for name, config in CASES.items()}
    if update_golden:
        path.write_text(json.dumps({"version": FRONTEND_VERSION, **now}, indent=1) + "\n")
    assert json.loads(path.read_text()) == {"version": FRONTEND_VERSION, **now}


def test_no_golden_file_without_its_case() -> None:
    assert {f.stem for f in GOLDEN.glob("*.npy")} == set(CASES)
    assert sum(f.stat().st_size for f in GOLDEN.iterdir() if f.is_file()) < 200_000


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_finite_features_in_a_sane_range(name: str) -> None:
    config = load_preset(name).frontend
    features = Frontend(config)(signal(config.sample_rate, config.sample_rate))
    assert np.isfinite(features).all()
    assert np.abs(features).max() < (400 if config.kind == "mfcc" else 120)
