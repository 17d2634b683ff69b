"""data shortcut: labels that follow from length are guessed, labels that do not are not, and never on a clip learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundmark.data.measure import Measures, measure
from soundmark.data.shortcut import ALL, shortcut_check
from soundmark.dataset import Clip
from soundmark.errors import DatasetError

LABELS = ("cat", "dog", "rain")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Measures:
    path = tmp_path_factory.mktemp("one") / "a.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(8000), 16_000)
    return measure(path)


def made(
    one: Measures, *, n: int = 90, folds: int = 3, telling: str = "", seed: int = 0
) -> tuple[list, list]:
    """Return clips and measures in which the column ``telling`` follows from the label."""
    rng = np.random.default_rng(seed)
    clips, measures = [], []
    for i in range(n):
        label = LABELS[i % 3]
        values = {"duration_s": rng.uniform(1, 2), "bandwidth_hz": rng.uniform(4000, 8000)}
        if telling:
            values[telling] = 3 + i % 3 + 0.1 * rng.uniform()
        fold = 1 + (i // 3) % folds if folds else 0
        clips.append(Clip(f"{i}", Path(f"{i}.wav"), label, fold, f"s{i // 2}"))
        measures.append(replace(one, **values))
    return clips, measures


@pytest.mark.parametrize("folds", [3, 0])
def test_labels_that_follow_from_length_are_guessed(one: Measures, folds: int) -> None:
    check = shortcut_check(*made(one, folds=folds, telling="duration_s"))
    assert check.accuracy["duration"] > 0.95
    assert check.accuracy[ALL] > 0.95
    assert check.accuracy["bandwidth"] < 0.6
    assert check.chance == pytest.approx(1 / 3, abs=0.02)
    assert check.held_out == ("folds" if folds else "sources")
    (finding,) = check.findings()
    assert finding.code == "shortcut"
    assert "duration alone" in finding.message


def test_labels_that_do_not_are_not(one: Measures) -> None:
    check = shortcut_check(*made(one))
    assert check.interval_95[0] < check.accuracy[ALL] < 0.5
    assert not check.findings()
    assert shortcut_check(*made(one)).to_dict() == check.to_dict()


def test_chance_is_that_of_the_most_frequent_label(one: Measures) -> None:
    clips, measures = made(one)
    clips = [replace(clip, label="cat" if i % 10 else "dog") for i, clip in enumerate(clips)]
    check = shortcut_check(clips, measures)
    assert check.chance == pytest.approx(0.9, abs=0.01)
    assert not check.findings()


def test_unreadable_clips_count_neither_way(one: Measures) -> None:
    clips, measures = made(one)
    assert shortcut_check(clips, [None, None, *measures[2:]]).n_clips == 88


def test_too_little_to_say_anything(one: Measures) -> None:
    with pytest.raises(DatasetError, match="10 readable clips"):
        shortcut_check(*made(one, n=10))
    clips, measures = made(one, folds=0)
    with pytest.raises(DatasetError, match="1 sources"):
        shortcut_check([replace(clip, source="s") for clip in clips], measures)
