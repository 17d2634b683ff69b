"""synth: the same set from the same config, in ESC-50 layout, that a spectrum alone does not solve."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from soundmark.config import FrontendConfig, SynthConfig
from soundmark.data import synth
from soundmark.data.synth import clip, plan, synthesise
from soundmark.dataset import leaking_sources
from soundmark.errors import EXIT_DISK, EXIT_USAGE, StorageError
from soundmark.frontend import Frontend
from soundmark.sources import open_dataset

SMALL = SynthConfig(classes=3, clips=10, seconds=1, sample_rate=16_000)


def test_a_set_is_in_esc50_layout_under_a_name_of_its_own(tmp_path: Path) -> None:
    seen: list[int] = []
    data = synthesise(tmp_path / "set", SMALL, on_clip=seen.append)
    assert sum(seen) == len(data.clips) == 30
    assert (data.name, data.layout) == ("synthetic", "ESC-50")
    assert data.labels == ("rising_chirps", "falling_chirps", "decaying_strikes")
    assert set(Counter(c.label for c in data.clips).values()) == {10}
    assert Counter(c.fold for c in data.clips) == dict.fromkeys(range(1, 6), 6)
    assert leaking_sources(data) == {}
    assert json.loads((data.root / "synth.json").read_text())["clips"] == 10
    info = soundfile.info(str(data.clips[0].path))
    assert (info.samplerate, info.channels, info.frames) == (16_000, 1, 16_000)
    assert open_dataset(data.root) == data


def test_sources_have_several_takes_and_one_label(tmp_path: Path) -> None:
    takes: dict[int, set[tuple[str, int, int]]] = defaultdict(set)
    rows = list(plan(SynthConfig()))
    assert len(rows) == 400
    for row in rows:
        takes[row.source].add((row.take, row.target, row.fold))
    assert {len(found) for found in takes.values()} == {1, 2, 3}
    assert all(len({(target, fold) for _, target, fold in found}) == 1 for found in takes.values())


def test_the_same_config_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first = synthesise(tmp_path / "a", SMALL)
    assert synthesise(tmp_path / "b", SMALL).digest() == first.digest()
    other = SynthConfig(classes=3, clips=10, seconds=1, sample_rate=16_000, seed=1)
    assert synthesise(tmp_path / "c", other).digest() != first.digest()


def test_every_label_makes_finite_sound_below_full_scale(tmp_path: Path) -> None:
    config = SynthConfig(classes=16, clips=5, seconds=1, sample_rate=16_000)
    for row in plan(config):
        samples = clip(row, config)
        assert samples.shape == (16_000,)
        assert np.isfinite(samples).all()
        assert 0.01 < np.abs(samples).max() <= 1
        assert samples[0] == samples[-1] == 0
    assert len({name for name, _ in synth._GENERATORS}) == 16


def test_a_finished_set_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = synthesise(tmp_path / "set", SMALL)

    def never(*_: object) -> Any:
        raise AssertionError

    monkeypatch.setattr(synth, "clip", never)
    seen: list[int] = []
    assert synthesise(tmp_path / "set", SMALL, on_clip=seen.append) == data
    assert seen == [30]


def test_something_else_is_left_alone(tmp_path: Path, call: Callable[..., Any]) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    assert call("data", "synth", "--out", mine, "--classes", 2, "--clips", 5, "--seconds", 1).status == 0
    before = open_dataset(mine).digest()
    done = call("data", "synth", "--out", mine, "--classes", 3, "--clips", 5, "--seconds", 1)
    assert (done.status, done.out) == (EXIT_DISK, "")
    assert "holds something else" in done.err
    assert open_dataset(mine).digest() == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="something else"):
        synthesise(tmp_path / "file", SMALL)


def test_a_stopped_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesise(tmp_path / "set", SMALL, on_clip=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("classes", 17), ("classes", 1), ("clips", 4), ("seconds", "nan"), ("seed", -1), ("clips", "x")],
)
def test_impossible_values_are_named(
    call: Callable[..., Any], tmp_path: Path, option: str, value: Any
) -> None:
    done = call("data", "synth", "--out", tmp_path / "set", f"--{option}", value)
    assert done.status == EXIT_USAGE
    assert option in done.err
    assert not (tmp_path / "set").exists()


def test_a_linear_model_on_mean_spectra_does_not_solve_it() -> None:
    """Half the clips of the default set, a held-out fold: chance is 10 %, 90 % would be trivial (docs/data.md)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    config = SynthConfig(clips=20, sample_rate=16_000, seconds=3)
    front = Frontend(FrontendConfig(sample_rate=16_000, n_fft=512, hop_length=512, fmin=40))
    rows = list(plan(config))

    def means(row: Any) -> Any:
        return front(clip(row, config)).mean(axis=1)

    with ThreadPoolExecutor() as pool:
        x = np.stack(list(pool.map(means, rows)))
    y, held = np.array([row.target for row in rows]), np.array([row.fold == 5 for row in rows])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(x[~held], y[~held])
    assert model.score(x[~held], y[~held]) > 0.3  # it does learn something by heart
    assert model.score(x[held], y[held]) < 0.5
