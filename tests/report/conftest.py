"""Eight clips in the layout of ESC-50, a report on them, and the command line in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
from told import made, other

from soundmark.dataset import Dataset
from soundmark.sources import load_esc50
from synthetic import RATE, sound, write_table


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return eight clips in the layout of ESC-50, two labels, two folds."""
    root = tmp_path_factory.mktemp("esc50")
    rows = []
    for fold in (1, 2):
        for target, label in ((0, "dog"), (10, "rain")):
            for take in "AB":
                source = str(100 * fold + target)
                name = f"{fold}-{source}-{take}-{target}.wav"
                row = {"filename": name, "fold": fold, "target": target, "category": label}
                rows.append({**row, "esc10": "True", "src_file": source, "take": take})
    write_table(root, [{key: str(value) for key, value in row.items()} for row in rows])
    (root / "audio").mkdir()
    for i, row in enumerate(rows):
        samples = sound("hum", i, 0)
        samples[: 6000 * (i % 3)] = 0
        soundfile.write(root / "audio" / str(row["filename"]), samples, RATE)
    return load_esc50(root)


@pytest.fixture
def file(data: Dataset, tmp_path: Path) -> Path:
    path = tmp_path / "told.json"
    made(data, other).write(path)
    return path
