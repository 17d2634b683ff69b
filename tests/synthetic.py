"""A small data set in the layout of ESC-50, of sounds made in code, and a preset that learns it in seconds."""

from __future__ import annotations

import csv
import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from soundmark.config import (
    AugmentConfig,
    ExportConfig,
    FrontendConfig,
    NetworkConfig,
    TrainConfig,
    WindowConfig,
)
from soundmark.preset import Preset

if TYPE_CHECKING:
    from soundmark.learn.run_folder import Run

RATE = 16_000
COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
CLASSES = {0: "tone", 3: "chirp", 10: "noise_band", 22: "clicks", 41: "hum"}
TEST_FOLD = 5


def sound(label: str, source: int, take: int, *, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """Return one clip: the source decides pitch and colour, the take decides phase, level and background noise."""
    of_source, of_take = np.random.default_rng(source), np.random.default_rng([source, take])
    t = np.arange(round(seconds * rate)) / rate
    phase = of_take.uniform(0, 1)
    if label == "tone":
        x = np.sin(2 * np.pi * (of_source.uniform(800, 3000) * t + phase))
    elif label == "chirp":
        low, high = of_source.uniform(300, 800), of_source.uniform(4000, 6000)
        x = np.sin(2 * np.pi * (low * t + (high - low) * t**2 / (2 * seconds) + phase))
    elif label == "noise_band":
        noise = of_take.standard_normal(t.size + 8)
        x = 0.4 * np.convolve(noise, np.ones(9) * (-1.0) ** np.arange(9), "valid") / 3  # high-pass
    elif label == "clicks":
        x = np.zeros(t.size)
        x[:: int(rate / of_source.uniform(5, 12))] = 1.0
        x = np.convolve(np.roll(x, int(phase * rate)), np.exp(-np.arange(40) / 8), "same")
    elif label == "hum":
        base = of_source.uniform(90, 180)
        x = sum(np.sin(2 * np.pi * (k * base * t + k * phase)) / k for k in range(1, 8)) / 2
    else:
        raise ValueError(label)
    x = of_take.uniform(0.2, 0.6) * x + 0.003 * of_take.standard_normal(t.size)
    return x.astype(np.float32)


def table_rows(
    classes: Mapping[int, str] = CLASSES, *, folds: int = 5, sources: int = 2, takes: int = 2
) -> list[dict[str, str]]:
    """Return the rows of the table: every source has its clips in one fold."""
    rows = []
    for target, category in classes.items():
        for fold in range(1, folds + 1):
            for index in range(sources):
                source = 100_000 + 1000 * target + 10 * fold + index
                for take in "ABCDEFGH"[:takes]:
                    name = f"{fold}-{source}-{take}-{target}.wav"
                    cells = (name, fold, target, category, target < 10, source, take)
                    rows.append(dict(zip(COLUMNS, map(str, cells), strict=True)))
    return rows


def write_table(root: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = COLUMNS) -> Path:
    """Write ``meta/esc50.csv`` and return its path."""
    table = root / "meta" / "esc50.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return table


def write_esc50(
    root: Path,
    classes: Mapping[int, str] = CLASSES,
    *,
    folds: int = 5,
    sources: int = 2,
    takes: int = 2,
    seconds: float = 1.0,
    container: str = "WAV",
) -> Path:
    """Write the data set and return ``root``; the same arguments give the same bytes."""
    rows = table_rows(classes, folds=folds, sources=sources, takes=takes)
    write_table(root, rows)
    (root / "audio").mkdir(parents=True, exist_ok=True)
    for row in rows:
        samples = sound(row["category"], int(row["src_file"]), ord(row["take"]), seconds=seconds)
        path = root / "audio" / f"{Path(row['filename']).stem}.{container.lower()}"
        soundfile.write(path, samples, RATE, format=container)
    return root


def tiny_preset(**train: Any) -> Preset:
    """Return a preset that learns the data set in a few seconds; keywords change its train section."""
    fast = {"epochs": 24, "batch_size": 16, "lr": 1e-2, "ema": 0.9, "warmup": 0.2}
    return Preset(
        name="tiny",
        frontend=FrontendConfig(
            sample_rate=RATE,
            n_fft=512,
            hop_length=320,
            n_mels=32,
            fmin=40.0,
            offset=1e-6,
            mean=-10.0,
            std=20.0,
        ),
        window=WindowConfig(window_s=1.0, hop_s=1.0),
        network=NetworkConfig(channels=(8, 12, 16), dropout=0.1),
        augment=AugmentConfig(time_mask_frames=8, freq_mask_rows=3),
        train=TrainConfig(**{**fast, **train}),
        export=ExportConfig(calibration_clips=40, golden_windows=40),
    )


@functools.cache
def shared_folder() -> Path:
    """Return a folder that lives as long as the process: the data set, the feature cache, the trained run."""
    _keep.append(tempfile.TemporaryDirectory(prefix="soundmark-tests-"))
    return Path(_keep[0].name)


_keep: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def shared_data() -> Path:
    """Return the root of the data set; do not change it."""
    return write_esc50(shared_folder() / "esc50")


@functools.cache
def shared_run() -> Run:
    """Return the run trained on folds 1 to 4; trained once per process, do not change it."""
    from soundmark.dataset import load_esc50
    from soundmark.learn.train import train

    return train(tiny_preset(), load_esc50(shared_data()), test_fold=TEST_FOLD, out=shared_folder() / "run")


@functools.cache
def shared_bundle(arithmetic: str) -> Path:
    """Return the exported bundle of `shared_run`, ``int8`` or ``fp32``; do not change it."""
    from msgspec.structs import replace

    from soundmark.learn.export import export

    run = shared_run()
    out = shared_folder() / f"bundle-{arithmetic}"
    export(run, out, config=replace(run.preset.export, quantize=arithmetic == "int8"))
    return out
