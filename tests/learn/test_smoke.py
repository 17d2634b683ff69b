"""smoke: the whole road on a few clips, in shapes and one loss; and on real data for every preset (C1)."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from msgspec.structs import replace  # noqa: E402

import synthetic  # noqa: E402
from soundmark import bundle  # noqa: E402
from soundmark.config import WaveConfig  # noqa: E402
from soundmark.dataset import Dataset, load_esc50  # noqa: E402
from soundmark.errors import DatasetError  # noqa: E402
from soundmark.learn import teach  # noqa: E402
from soundmark.learn.smoke import few_clips, smoke  # noqa: E402
from soundmark.preset import load_preset, preset_names  # noqa: E402

pytestmark = pytest.mark.train


def test_it_takes_a_few_clips_of_different_sources(dataset: Dataset) -> None:
    few = few_clips(dataset, 5)
    assert few.labels == dataset.labels
    assert len(few.clips) == 5 * 4
    train, test = few.in_folds([f for f in few.folds if f != 5]), few.in_folds([5])
    assert len({clip.source for clip in train.clips}) == 15
    assert not {clip.source for clip in train.clips} & {clip.source for clip in test.clips}
    with pytest.raises(DatasetError):
        few_clips(dataset, 6)
    with pytest.raises(DatasetError, match="0 labels"):
        few_clips(dataset.in_folds([5]), 5)


def test_the_whole_road_in_shapes_and_one_loss(dataset: Dataset, tmp_path: Path) -> None:
    preset = replace(
        synthetic.tiny_preset(patience=1), labels=("hum", "tone", "clicks"), waves=WaveConfig(roll=1.0)
    )
    seen = smoke(preset, dataset, test_fold=5, out=tmp_path)
    assert seen.labels == 3
    assert seen.features[1:] == (32, 51)
    assert seen.logits == (seen.features[0], 3)
    assert seen.loss == pytest.approx(math.log(3), abs=0.5)
    assert seen.test_clips == 3
    made = bundle.read(tmp_path / "bundle")
    assert len(made.model) == seen.model_bytes
    assert made.manifest.labels == ("hum", "tone", "clicks")
    text = "\n".join(seen.lines())
    assert f"logits ({seen.features[0]}, 3)" in text
    assert "ln(3) = 1.099" in text


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name in preset_names() if not load_preset(name).ensemble.members])
def test_every_preset_passes_on_real_data_in_a_minute(name: str, tmp_path: Path) -> None:
    if not os.environ.get("SOUNDMARK_ESC50"):
        pytest.skip("SOUNDMARK_ESC50 does not name the real ESC-50")
    preset, began = load_preset(name), time.process_time()
    seen = smoke(preset, load_esc50(), test_fold=5, out=tmp_path)
    assert seen.loss == pytest.approx(math.log(8), abs=0.8)
    assert seen.logits[1] == 8
    assert time.process_time() - began < 60  # of one core, whatever else the machine does


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name in preset_names() if load_preset(name).ensemble.members])
def test_every_ensemble_passes_on_real_data_in_a_minute(name: str, tmp_path: Path) -> None:
    if not os.environ.get("SOUNDMARK_ESC50"):
        pytest.skip("SOUNDMARK_ESC50 does not name the real ESC-50")
    began = time.process_time()
    notes: list[str] = []
    lines = teach.smoke(load_preset(name), load_esc50(), test_fold=5, out=tmp_path, on_note=notes.append)
    assert "members" in lines[-1]
    if not os.environ.get("SOUNDMARK_YAMNET"):
        assert any("random weights" in note for note in notes)
    assert time.process_time() - began < 60
