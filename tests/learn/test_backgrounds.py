"""backgrounds: other training clips or a folder of recordings, never the clip itself and never one kept aside."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from msgspec.structs import replace  # noqa: E402

import synthetic  # noqa: E402
from soundmark import audio  # noqa: E402
from soundmark.config import AugmentConfig, FrontendConfig, WaveConfig, WindowConfig  # noqa: E402
from soundmark.dataset import Dataset  # noqa: E402
from soundmark.errors import DatasetError, TrainingError  # noqa: E402
from soundmark.learn import batches as batches_module  # noqa: E402
from soundmark.learn.backgrounds import Backgrounds, recordings  # noqa: E402
from soundmark.learn.batches import Batches  # noqa: E402
from soundmark.learn.features import extract  # noqa: E402
from soundmark.learn.run_folder import open_run  # noqa: E402
from soundmark.learn.train import train  # noqa: E402
from soundmark.preset import Preset  # noqa: E402

pytestmark = pytest.mark.train

RATE = synthetic.RATE
WAVE = Preset(
    frontend=FrontendConfig(kind="wave", sample_rate=RATE),
    window=WindowConfig(window_s=1.0, hop_s=1.0),
    waves=WaveConfig(background_share=1.0, background_snr_db=(6.0, 6.0)),
    augment=AugmentConfig(mix_probability=0, gain_db=0, roll=0, time_masks=0, freq_masks=0),
)


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Return a folder with two recordings, one of them long, in a folder within."""
    folder = tmp_path / "street"
    (folder / "deep").mkdir(parents=True)
    noise = np.random.default_rng(0).standard_normal
    soundfile.write(folder / "cars.wav", 0.1 * noise(2 * RATE), RATE)
    soundfile.write(folder / "deep" / "rain.wav", 0.1 * noise(RATE // 2), RATE)
    (folder / "notes.txt").write_text("no sound")
    return folder


def added(preset: Preset, some: Dataset, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return clips ``(batch, n_samples)`` and what was laid behind them."""
    rows = torch.arange(len(some.clips))
    got = Batches(preset, some)(rows, torch.Generator().manual_seed(seed))[0][:, 0].numpy()
    own = np.stack([audio.load(clip.path, sample_rate=RATE).samples for clip in some.clips])
    return own, got.astype(np.float64) - own


def test_other_training_clips_are_the_background_at_the_ratio_asked_for(dataset: Dataset) -> None:
    some = dataset.in_folds([1])
    own, behind = added(WAVE, some)
    ratio = 10 * np.log10(np.mean(own**2, axis=1) / np.mean(behind**2, axis=1))
    np.testing.assert_allclose(ratio, 6.0, atol=0.05)
    alike = np.abs(np.corrcoef(behind, own)[: len(own), len(own) :])  # (behind, own)
    found = alike.argmax(axis=1)
    assert (alike.max(axis=1) > 0.99).all()  # it is one of the clips
    assert (found != np.arange(len(own))).all()  # another one
    assert len(set(found)) > len(own) // 4


def test_no_clip_stands_behind_itself_and_all_others_can(dataset: Dataset) -> None:
    some = dataset.in_folds([1, 2])
    window = WindowConfig(window_s=0.4, hop_s=0.3)  # several windows per clip
    store = extract(some, FrontendConfig(kind="wave", sample_rate=RATE), window)
    backgrounds = Backgrounds(store, own=True)
    windows = {store.linear[i][0].tobytes(): int(clip) for i, clip in enumerate(store.clip_of)}
    for row in (0, 7, len(store.linear) - 1):
        picks = [backgrounds.pick(u, row) for u in np.linspace(0, 1, 400)]
        clips = {windows[pick.tobytes()] for pick in picks if pick is not None}
        assert clips == set(range(len(some.clips))) - {int(store.clip_of[row])}


def test_recordings_of_a_folder_are_the_background(dataset: Dataset, street: Path) -> None:
    preset = replace(WAVE, waves=replace(WAVE.waves, background=str(street)))
    own, behind = added(preset, dataset.in_folds([1]))
    ratio = 10 * np.log10(np.mean(own**2, axis=1) / np.mean(behind**2, axis=1))
    np.testing.assert_allclose(ratio, 6.0, atol=0.05)
    cars = audio.load(street / "cars.wav", sample_rate=RATE).samples
    rain = np.pad(audio.load(street / "deep" / "rain.wav", sample_rate=RATE).samples, (0, RATE // 2))
    pieces = np.stack([cars[:RATE], cars[RATE:], rain])
    alike = np.corrcoef(behind, pieces)[: len(own), len(own) :]
    assert (alike.max(axis=1) > 0.99).all()
    assert set(alike.argmax(axis=1)) == {0, 1, 2}


def test_the_label_stays_that_of_the_clip(dataset: Dataset) -> None:
    some = dataset.in_folds([1])
    soft = Batches(WAVE, some)(torch.arange(len(some.clips)), torch.Generator())[1]
    assert soft.argmax(dim=1).tolist() == some.targets
    assert (soft.max(dim=1).values == 1).all()


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DatasetError) as caught:
            recordings(folder)
        assert caught.value.code == "no_audio"


def preset_with(folder: str, **train_values: object) -> Preset:
    waves = WaveConfig(background_share=0.5, background=folder)
    return replace(synthetic.tiny_preset(epochs=1, **train_values), waves=waves)


@pytest.mark.parametrize("aside", ["test fold", "inner"])
def test_a_folder_with_a_clip_that_is_kept_aside_is_a_leak(
    dataset: Dataset, street: Path, tmp_path: Path, aside: str
) -> None:
    if aside == "test fold":
        preset, clip = preset_with(str(street)), dataset.in_folds([5]).clips[3]
    else:
        from soundmark.learn.inner import inner_split

        preset = preset_with(str(street), patience=1, inner=0.25)
        clip = inner_split(dataset.in_folds([1, 2, 3, 4]), 0.25, 0)[1].clips[0]
    shutil.copy(clip.path, street / "deep" / "innocent.wav")
    with pytest.raises(TrainingError, match="innocent") as caught:
        train(preset, dataset, test_fold=5, out=tmp_path / "run")
    assert caught.value.code == "leak"


def test_clips_behind_others_are_those_that_are_learnt_from(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Watched(Backgrounds):
        def __init__(self, store: object, *, own: bool) -> None:
            super().__init__(store, own=own)  # type: ignore[arg-type]
            seen.append(len(self._linear))

    monkeypatch.setattr(batches_module, "Backgrounds", Watched)
    train(preset_with("", patience=1, inner=0.25), dataset, test_fold=5, out=tmp_path / "run")
    assert seen == [60]  # of 80 in four folds, 20 are the inner split


def test_a_run_knows_its_backgrounds_and_names_those_it_cannot_read(
    dataset: Dataset, street: Path, tmp_path: Path
) -> None:
    for i in range(4):
        shutil.copy(street / "cars.wav", street / f"more{i}.wav")
    (street / "bad.wav").write_bytes(b"RIFF")
    notes: list[str] = []
    preset, out = preset_with(str(street)), tmp_path / "run"
    run = train(preset, dataset, test_fold=5, out=out, on_note=notes.append)
    assert run.info["background"]["recordings"] == 7
    assert notes == ["1 of 87 clips cannot be used and are left out: background/bad.wav (corrupt_header)"]
    (street / "more0.wav").unlink()
    with pytest.raises(TrainingError, match=r"background\.digest was") as caught:
        train(preset, dataset, test_fold=5, out=out, resume=True)
    assert caught.value.code == "other_run"
    assert open_run(out).info["finished"] is True
