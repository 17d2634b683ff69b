"""foreign: sounds of no class are the same every time, and have the rhythm and the spectra that their names promise."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from soundmark import demo, scene
from soundmark.errors import ConfigError
from soundmark.foreign import FOREIGN_KINDS, SOFTEST_DB, foreign_clips

RATE = 16_000


def octaves(samples: np.ndarray, rate: int, low_hz: float, count: int) -> np.ndarray:
    """Return the mean power density in dB of ``count`` octaves from ``low_hz`` on."""
    power = np.abs(np.fft.rfft(samples * np.hanning(samples.size))) ** 2  # noqa: TID251 - an oracle
    hz = np.fft.rfftfreq(samples.size, 1 / rate)  # noqa: TID251
    edges = low_hz * 2.0 ** np.arange(count + 1)
    return np.array([10 * np.log10(power[(hz >= a) & (hz < b)].mean()) for a, b in itertools.pairwise(edges)])


def test_the_same_seed_gives_the_same_samples_and_kinds_do_not_move_each_other() -> None:
    few = list(foreign_clips(each=2, sample_rate=RATE, seconds=1.0, seed=3))
    more = {clip.name: clip for clip in foreign_clips(each=3, sample_rate=RATE, seconds=1.0, seed=3)}
    other = {clip.name: clip for clip in foreign_clips(each=2, sample_rate=RATE, seconds=1.0, seed=4)}
    assert Counter(clip.label for clip in few) == dict.fromkeys(FOREIGN_KINDS, 2)
    assert len({clip.samples.tobytes() for clip in few}) == len(few)
    for clip in few:
        np.testing.assert_array_equal(clip.samples, more[clip.name].samples)
        assert not np.array_equal(clip.samples, other[clip.name].samples)


def test_clips_are_usable_recordings_of_many_levels() -> None:
    peaks = []
    for clip in foreign_clips(each=8, sample_rate=RATE, seconds=1.0):
        assert (clip.samples.dtype, clip.samples.shape) == (np.float32, (RATE,))
        assert np.isfinite(clip.samples).all()
        peaks.append(20 * np.log10(np.abs(clip.samples).max() / scene.PEAK))
    assert min(peaks) >= SOFTEST_DB - 1e-3
    assert max(peaks) <= 1e-3
    assert np.ptp(peaks) > 12
    assert not {*FOREIGN_KINDS} & {clip.label for clip in demo.demo_clips(sample_rate=8_000, seconds=1.0)}


@pytest.mark.parametrize(("index", "fall_db"), [(0, 0.0), (1, 3.01), (2, 6.02)])
def test_noise_falls_as_its_colour_says(index: int, fall_db: float) -> None:
    clip = [one for one in foreign_clips(each=3, seconds=3.0) if one.label == "noise"][index]
    steps = -np.diff(octaves(clip.samples.astype(np.float64), clip.sample_rate, 150, 6))
    np.testing.assert_allclose(steps, fall_db, atol=1.3)  # tolerance of a random spectrum and of held values
    assert steps.mean() == pytest.approx(fall_db, abs=0.4)


def test_speech_swells_with_syllables_and_noise_does_not() -> None:
    def share(samples: np.ndarray) -> float:
        """Return the share of 2 to 10 Hz in how loudness changes, phrases (below 2 Hz) aside; 1/6 if evenly."""
        energy = np.sqrt(np.square(samples.astype(np.float64)).reshape(-1, RATE // 100).mean(axis=1))
        spectrum = np.abs(np.fft.rfft(energy - energy.mean())) ** 2  # noqa: TID251
        hz = np.fft.rfftfreq(energy.size, 0.01)  # noqa: TID251
        return float(spectrum[(hz >= 2) & (hz <= 10)].sum() / spectrum[hz >= 2].sum())

    found: dict[str, list[float]] = {kind: [] for kind in FOREIGN_KINDS}
    for clip in foreign_clips(each=6, sample_rate=RATE):
        found[clip.label].append(share(clip.samples))
    assert np.min(found["speech"]) > 0.8
    assert np.mean(found["noise"]) < 0.4  # slow parts of pink and brown noise are loudness too


def test_speech_has_pitch_and_lies_where_formants_are() -> None:
    for clip in foreign_clips(each=3, sample_rate=RATE):
        if clip.label != "speech":
            continue
        levels = octaves(clip.samples.astype(np.float64), RATE, 250, 5)  # 250 ... 8000 Hz
        assert levels[:2].max() > levels[4] + 15, clip.name  # 250 to 1000 Hz above 4 to 8 kHz


@pytest.mark.parametrize(
    "bad", [{"each": 0}, {"sample_rate": 4_000}, {"seconds": float("nan")}, {"seconds": 61}, {"seed": -1}]
)
def test_arguments_out_of_range(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        next(foreign_clips(**bad))
